//! The command line: what may be said and how it is read.
