//! Drain: stop taking work, finish what is owed, until a deadline.
