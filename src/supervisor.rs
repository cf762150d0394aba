//! The wrapped child process of `tidegate run`.
