//! The pool: checkout, lease, budget, reaper; knows no protocol.
