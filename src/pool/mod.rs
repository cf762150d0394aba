//! The pool: checkout, lease, budget, reaper; knows no protocol.

mod error;

pub use error::{CheckoutError, CheckoutErrorKind, ConnectError, Fault, Reachability};

use std::future::Future;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::metrics::PoolMetrics;

/// Opens connections to one server as one user and database.
pub trait Connect: Send + Sync + 'static {
    /// What it opens.
    type Backend: Backend;

    /// Opens one connection, logged in and clean. The pool bounds it by its own connect deadline, by dropping the
    /// future.
    ///
    /// # Errors
    /// The fault decides what the pool does next.
    fn connect(&self) -> impl Future<Output = Result<Self::Backend, ConnectError>> + Send;
}

/// A connection to a server that can lie idle in a pool. Dropping it closes it.
pub trait Backend: Send + 'static {
    /// Polled while the backend lies idle, at checkout and by the reaper each second: `Ready` means that the server
    /// closed it or spoke of closing, and it is dropped. Notices are consumed here. Must not block; it is called under
    /// the pool's lock.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The limits of one pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// The pool's name in errors, logs and metrics.
    pub name: String,
    /// Longest wait for a connection.
    pub wait: Duration,
    /// Most clients that may wait at once.
    pub queue_limit: usize,
    /// Longest time to connect and log in.
    pub connect_timeout: Duration,
    /// Longest life of a connection; zero: no limit.
    pub lifetime: Duration,
    /// Longest time a connection lies idle; zero: no limit.
    pub idle: Duration,
    /// By how many per cent, at most, a connection's lifetime and idle limit are cut at random, so that connections
    /// opened together don't close together.
    pub jitter_percent: u32,
}

/// How many connections to one upstream server may be open; shared by its pools.
#[derive(Debug)]
pub struct Budget {}

impl Budget {
    /// A budget of `limit` connections.
    #[must_use]
    pub fn new(_limit: usize) -> Arc<Self> {
        Arc::new(Self {})
    }
    /// Changes the limit.
    pub fn set_limit(&self, _limit: usize) {}
    /// The limit now.
    #[must_use]
    pub fn limit(&self) -> usize {
        0
    }
    /// Connections open or being opened.
    #[must_use]
    pub fn in_use(&self) -> usize {
        0
    }
}

/// Server connections as one user to one database, lent one at a time.
pub struct Pool<C: Connect> {
    connect: C,
    settings: PoolSettings,
    metrics: Arc<PoolMetrics>,
}

impl<C: Connect> Pool<C> {
    /// A pool without connections; spawns nothing.
    pub fn new(
        connect: C,
        settings: PoolSettings,
        _budget: Arc<Budget>,
        metrics: Arc<PoolMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self { connect, settings, metrics })
    }
    /// Closes old and dead idle connections, each second, until the pool is closed.
    pub fn run_reaper(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<C> {
        std::future::pending()
    }
    /// Asks for a connection.
    pub fn checkout(self: &Arc<Self>) -> Checkout<C> {
        Checkout::Queued(Ticket { pool: Arc::clone(self) })
    }
    /// What opens the connections.
    pub fn connector(&self) -> &C {
        &self.connect
    }
    /// The pool's counters.
    pub fn metrics(&self) -> &Arc<PoolMetrics> {
        &self.metrics
    }
    /// The pool's limits.
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }
    /// Whether the server could be reached.
    pub fn state(&self) -> Reachability {
        Reachability::NotTried
    }
    /// Ends the pool.
    pub fn close(&self) {}
}

/// The answer to a checkout.
pub enum Checkout<C: Connect> {
    /// A connection was free.
    Ready(Lease<C>),
    /// Wait for the ticket.
    Queued(Ticket<C>),
}

/// A place in the queue.
pub struct Ticket<C: Connect> {
    pool: Arc<Pool<C>>,
}

impl<C: Connect> Ticket<C> {
    /// Polls for the lease.
    pub fn poll_lease(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Lease<C>, CheckoutError>> {
        Poll::Ready(Err(CheckoutError {
            pool: self.pool.settings.name.clone(),
            kind: CheckoutErrorKind::Closed,
            limit: 0,
            queue_length: 0,
            waited: Duration::ZERO,
        }))
    }
    /// Waits for the lease.
    ///
    /// # Errors
    /// See [`CheckoutErrorKind`].
    pub async fn lease(mut self) -> Result<Lease<C>, CheckoutError> {
        std::future::poll_fn(|cx| self.poll_lease(cx)).await
    }
}

/// A lent connection.
pub struct Lease<C: Connect> {
    pool: Arc<Pool<C>>,
    backend: Box<C::Backend>,
    marker: PhantomData<C>,
}

impl<C: Connect> Lease<C> {
    /// Gives the backend back: it is clean.
    pub fn give_back(self) {}
    /// Closes the backend.
    pub fn close(self, _reason: &'static str) {}
    /// The pool it came from.
    pub fn pool(&self) -> &Arc<Pool<C>> {
        &self.pool
    }
    /// The backend stays with its session.
    pub fn pin(&mut self, _reason: &'static str) {}
    /// The backend may be given back again.
    pub fn unpin(&mut self) {}
}

impl<C: Connect> Deref for Lease<C> {
    type Target = C::Backend;
    fn deref(&self) -> &C::Backend {
        &self.backend
    }
}

impl<C: Connect> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut C::Backend {
        &mut self.backend
    }
}
