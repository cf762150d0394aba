//! A server that is nothing but counters, and what the tests need to watch a pool.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::metrics::{Metrics, PoolMetrics, Protocol};
use crate::pool::*;

/// How the server answers the next attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Accepts,
    Fails(Fault),
    /// Never answers.
    Hangs,
    Panics,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) mood: Mutex<Mood>,
    pub(super) delay: Mutex<Duration>,
    pub(super) attempts: AtomicUsize,
    pub(super) open: AtomicUsize,
    pub(super) open_most: AtomicUsize,
    most: AtomicUsize,
    pub(super) alive: Mutex<Arc<AtomicBool>>,
}

impl Server {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(Mood::Accepts),
            delay: Mutex::new(Duration::from_millis(5)),
            attempts: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            open_most: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            alive: Mutex::new(Arc::new(AtomicBool::new(true))),
        })
    }

    pub(super) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// It gives so many connections from now on.
    pub(super) fn most(&self, most: usize) {
        self.most.store(most, SeqCst);
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    pub(super) fn attempts(&self) -> usize {
        self.attempts.load(SeqCst)
    }

    /// Closes all connections, as a restart does.
    pub(super) fn restart(&self) {
        let before =
            std::mem::replace(&mut *self.alive.lock().unwrap(), Arc::new(AtomicBool::new(true)));
        before.store(false, SeqCst);
    }
}

#[derive(Clone, Debug)]
pub(super) struct Fake(pub(super) Arc<Server>);

#[derive(Debug)]
pub(super) struct FakeBackend {
    server: Arc<Server>,
    pub(super) number: usize,
    alive: Arc<AtomicBool>,
}

impl Connect for Fake {
    type Backend = FakeBackend;

    async fn connect(&self) -> Result<FakeBackend, ConnectError> {
        let number = self.0.attempts.fetch_add(1, SeqCst);
        let delay = *self.0.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let full = self.0.open() >= self.0.most.load(SeqCst);
        let mood = *self.0.mood.lock().unwrap();
        match if full { Mood::Fails(Fault::Refused) } else { mood } {
            Mood::Accepts => {}
            Mood::Hangs => std::future::pending().await,
            Mood::Panics => panic!("the connector has a bug"),
            Mood::Fails(fault) => {
                let (code, message) = match fault {
                    Fault::Unreachable => ("io", "connection refused"),
                    Fault::Refused => ("53300", "sorry, too many clients already"),
                    Fault::Rejected => ("28P01", "password authentication failed"),
                };
                let (code, message) = (code.to_owned(), message.to_owned());
                return Err(ConnectError { fault, code, message });
            }
        }
        let open = self.0.open.fetch_add(1, SeqCst) + 1;
        self.0.open_most.fetch_max(open, SeqCst);
        let alive = Arc::clone(&self.0.alive.lock().unwrap());
        Ok(FakeBackend { server: Arc::clone(&self.0), number, alive })
    }
}

impl Backend for FakeBackend {
    fn poll_idle(&mut self, _: &mut Context<'_>) -> Poll<()> {
        if self.alive.load(SeqCst) { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, SeqCst);
    }
}

pub(super) fn settings(name: &str) -> PoolSettings {
    PoolSettings {
        name: name.to_owned(),
        wait: Duration::from_secs(10),
        queue_limit: 1000,
        connect_timeout: Duration::from_secs(3),
        lifetime: Duration::ZERO,
        idle: Duration::ZERO,
        ceilings: Vec::new(),
        idle_min: 0,
        jitter_percent: 0,
    }
}

pub(super) fn pool_with(
    server: &Arc<Server>,
    budget: &Arc<Budget>,
    settings: PoolSettings,
) -> Arc<Pool<Fake>> {
    let metrics = Metrics::new().unwrap().pool(Protocol::Postgres, &settings.name);
    pool_counted(server, budget, settings, metrics)
}

/// As [`pool_with`], counted there.
pub(super) fn pool_counted(
    server: &Arc<Server>,
    budget: &Arc<Budget>,
    settings: PoolSettings,
    metrics: Arc<PoolMetrics>,
) -> Arc<Pool<Fake>> {
    Pool::new(Fake(Arc::clone(server)), settings, Arc::clone(budget), metrics)
}

/// A server, a budget and one pool.
pub(super) fn pool_of(limit: usize) -> (Arc<Server>, Arc<Budget>, Arc<Pool<Fake>>) {
    let (server, budget) = (Server::new(), Budget::new(limit));
    let pool = pool_with(&server, &budget, settings("p"));
    (server, budget, pool)
}

pub(super) async fn lease(pool: &Arc<Pool<Fake>>) -> Result<Lease<Fake>, CheckoutError> {
    match pool.checkout() {
        Checkout::Ready(lease) => Ok(lease),
        Checkout::Queued(ticket) => ticket.lease().await,
    }
}

pub(super) fn queued(pool: &Arc<Pool<Fake>>) -> Ticket<Fake> {
    match pool.checkout() {
        Checkout::Queued(ticket) => ticket,
        Checkout::Ready(_) => panic!("got a connection at once"),
    }
}

pub(super) fn ready(pool: &Arc<Pool<Fake>>) -> Lease<Fake> {
    match pool.checkout() {
        Checkout::Ready(lease) => lease,
        Checkout::Queued(_) => panic!("had to queue"),
    }
}

pub(super) fn poll(ticket: &mut Ticket<Fake>) -> Poll<Result<Lease<Fake>, CheckoutError>> {
    ticket.poll_lease(&mut Context::from_waker(Waker::noop()))
}

/// The lease that has been handed to the ticket already.
pub(super) fn granted(ticket: &mut Ticket<Fake>) -> Lease<Fake> {
    match poll(ticket) {
        Poll::Ready(Ok(lease)) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

/// The lease that the ticket gets in at most so many milliseconds.
pub(super) async fn granted_within(ticket: &mut Ticket<Fake>, ms: u64) -> Lease<Fake> {
    for _ in 0..ms.div_ceil(50) {
        match poll(ticket) {
            Poll::Ready(Ok(lease)) => return lease,
            Poll::Ready(Err(error)) => panic!("no lease: {error}"),
            Poll::Pending => pass(50).await,
        }
    }
    panic!("no lease within {ms} ms")
}

pub(super) fn failed(ticket: &mut Ticket<Fake>) -> CheckoutErrorKind {
    match poll(ticket) {
        Poll::Ready(Err(error)) => error.kind,
        other => panic!("no error: {other:?}"),
    }
}

/// Lets all tasks that can run do so; the clock stands still.
pub(super) async fn breathe() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn pass(ms: u64) {
    breathe().await;
    // In steps, so that tasks see each deadline as it comes.
    for _ in 0..ms.div_ceil(50) {
        tokio::time::advance(Duration::from_millis(50)).await;
        breathe().await;
    }
}

#[derive(Default)]
pub(super) struct Wakes(pub(super) AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}
