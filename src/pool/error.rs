//! What can go wrong: opening a server connection, and waiting for one.

use std::fmt;
use std::time::Duration;

/// Why a server connection could not be opened, as the connector saw it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ConnectError {
    /// What the pool does about it.
    pub fault: Fault,
    /// The server's SQLSTATE or error word; or `io`, `tls`, `dns`, `timeout`. A label value: keep it short.
    pub code: String,
    /// The server's or system's own words, without secrets.
    pub message: String,
}

/// The kinds of connect failure that the pool treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not there: io, dns, tls, timeout. Tried again with back-off, waiters go on waiting.
    Unreachable,
    /// There, but full (53300, `max number of clients`). The same.
    Refused,
    /// It will not help to ask again: wrong password, no such database. Waiters fail at once.
    Rejected,
}

/// What is known of the upstream server, for /readyz.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// No connection was needed yet.
    NotTried,
    /// The latest attempt succeeded.
    Reachable,
    /// The latest attempt failed.
    Failing {
        /// See [`ConnectError::code`].
        code: String,
        /// See [`ConnectError::message`].
        message: String,
    },
}

/// Why a checkout ended without a lease. Its `Display` says what happened and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckoutError {
    /// The pool's name.
    pub pool: String,
    /// What happened.
    pub kind: CheckoutErrorKind,
    /// Most server connections the pool's budget allows.
    pub limit: usize,
    /// Waiters at that moment, this one included.
    pub queue_length: usize,
    /// How long this one had waited.
    pub waited: Duration,
}

/// What ended the checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckoutErrorKind {
    /// All connections stayed in use until the deadline.
    TimedOut,
    /// As many clients as allowed were waiting already.
    QueueFull,
    /// The server could not be reached until the deadline.
    Unreachable {
        /// See [`ConnectError::code`].
        code: String,
        /// See [`ConnectError::message`].
        message: String,
    },
    /// The server had no connection left for us until the deadline.
    Refused {
        /// See [`ConnectError::code`].
        code: String,
        /// See [`ConnectError::message`].
        message: String,
    },
    /// The server does not let us in.
    Rejected {
        /// See [`ConnectError::code`].
        code: String,
        /// See [`ConnectError::message`].
        message: String,
    },
    /// Tidegate is shutting down.
    Closed,
}

impl CheckoutErrorKind {
    pub(super) fn of(error: &ConnectError) -> Self {
        let (code, message) = (error.code.clone(), error.message.clone());
        match error.fault {
            Fault::Unreachable => Self::Unreachable { code, message },
            Fault::Refused => Self::Refused { code, message },
            Fault::Rejected => Self::Rejected { code, message },
        }
    }
}

impl std::error::Error for CheckoutError {}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, kind, limit, queue_length, waited } = self;
        let waited_ms = waited.as_millis();
        match kind {
            CheckoutErrorKind::TimedOut => write!(
                f,
                "no server connection of pool {pool} came free within {waited_ms} ms: all {limit} are in use and \
                 {queue_length} clients wait; shorten transactions, or raise the pool size or the wait"
            ),
            CheckoutErrorKind::QueueFull => write!(
                f,
                "pool {pool} is exhausted: all {limit} server connections are in use and {queue_length} clients wait \
                 already, the most allowed; shorten transactions, or raise the pool size or the queue limit"
            ),
            CheckoutErrorKind::Unreachable { code, message } => write!(
                f,
                "the server of pool {pool} could not be reached within {waited_ms} ms: {message} ({code}); \
                 {queue_length} clients wait; check that it runs and that the host and port of its URL are right"
            ),
            CheckoutErrorKind::Refused { code, message } => write!(
                f,
                "the server of pool {pool} gave no further connection within {waited_ms} ms: {message} ({code}); \
                 the pool may hold {limit} and {queue_length} clients wait; close other connections to the server, \
                 or lower the pool size of each process"
            ),
            CheckoutErrorKind::Rejected { code, message } => write!(
                f,
                "the server of pool {pool} does not let tidegate in: {message} ({code}); \
                 check the user, password and database of its URL"
            ),
            CheckoutErrorKind::Closed => {
                write!(f, "pool {pool} is closed: tidegate is shutting down; connect again")
            }
        }
    }
}
