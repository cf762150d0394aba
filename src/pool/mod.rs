//! The pool: checkout, lease, budget, reaper; knows no protocol.

/// Why no connection could be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectError {
    /// What it means for the pool.
    pub fault: Fault,
    /// The SQLSTATE or redis error word, or "io", "tls", "dns", "timeout".
    pub code: String,
    /// What happened.
    pub message: String,
}

/// What a failed connection means for the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Try again with back-off.
    Unreachable,
    /// The server is full.
    Refused,
    /// The server does not want this user, password or database.
    Rejected,
}
