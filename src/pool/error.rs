//! What can go wrong: opening a server connection, and waiting for one.

use std::fmt;
use std::time::Duration;

use crate::metrics::{Outcome, Reason};

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
    /// Server connections of the pool's budget at that moment.
    pub in_use: usize,
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
    /// The reason by which it is counted.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::TimedOut => Reason::WaitTimeout,
            Self::QueueFull => Reason::QueueFull,
            Self::Unreachable { .. } => Reason::Unreachable,
            Self::Refused { .. } => Reason::ServerFull,
            Self::Rejected { .. } => Reason::ServerLogin,
            Self::Closed => Reason::Shutdown,
        }
    }

    /// The outcome of the wait that it ended.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::TimedOut => Outcome::Timeout,
            Self::QueueFull => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }

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

impl CheckoutError {
    /// What happened, in one sentence.
    #[must_use]
    pub fn what(&self) -> String {
        let Self { pool, kind, waited, .. } = self;
        let waited_ms = waited.as_millis();
        match kind {
            CheckoutErrorKind::TimedOut => {
                format!("no server connection of pool {pool} came free within {waited_ms} ms")
            }
            CheckoutErrorKind::QueueFull => format!(
                "pool {pool} is exhausted: as many clients as may wait for a server connection do so already"
            ),
            CheckoutErrorKind::Unreachable { code, message } => format!(
                "the server of pool {pool} could not be reached within {waited_ms} ms: {message} ({code})"
            ),
            CheckoutErrorKind::Refused { code, message } => format!(
                "the server of pool {pool} gave no connection within {waited_ms} ms: {message} ({code})"
            ),
            CheckoutErrorKind::Rejected { code, message } => {
                format!("the server of pool {pool} does not let tidegate in: {message} ({code})")
            }
            CheckoutErrorKind::Closed => {
                format!("pool {pool} is closed: tidegate is shutting down")
            }
        }
    }

    /// The figures: who had what, and how long this one waited.
    #[must_use]
    pub fn figures(&self) -> String {
        let Self { pool, in_use, limit, queue_length, waited, .. } = self;
        let waited_ms = waited.as_millis();
        let in_use = match in_use >= limit {
            true => format!("all {limit} server connections in use"),
            false => format!("{in_use} of {limit} server connections open"),
        };
        format!(
            "Pool {pool}: {in_use}, {queue_length} clients wait, this one waited {waited_ms} ms."
        )
    }

    /// What to do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self.kind {
            CheckoutErrorKind::TimedOut => {
                "Shorten transactions, or raise the pool size (pool_size) or the wait (wait_ms)."
            }
            CheckoutErrorKind::QueueFull => {
                "Shorten transactions, or raise the pool size (pool_size) or the queue limit (queue_limit)."
            }
            CheckoutErrorKind::Unreachable { .. } => {
                "Check that it runs and that the host and port of its URL are right."
            }
            CheckoutErrorKind::Refused { .. } => {
                "Close other connections to the server, or lower the pool size of each process."
            }
            CheckoutErrorKind::Rejected { .. } => {
                "Check the user, password and database of its URL."
            }
            CheckoutErrorKind::Closed => "Connect again.",
        }
    }
}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {} {}", self.what(), self.figures(), self.advice())
    }
}
