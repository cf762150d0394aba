//! The binary: parse, load, run, exit code.

fn main() {}
