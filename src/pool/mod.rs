//! The pool: checkout, lease, budget, reaper; knows no protocol.
//!
//! deadpool keeps the connections ([`holder`]); in front of it stand a strict FIFO queue with one deadline timer and a
//! bound ([`queue`]), and a budget that several pools of one server share and that changes at run time ([`budget`]).
//! A connection that is given back goes straight into the first waiter's slot and wakes exactly that task. Invariant:
//! while a connection lies idle nobody waits.

mod budget;
mod ceiling;
mod error;
mod gate;
mod holder;
mod lease;
mod opener;
mod pins;
mod queue;
mod reaper;
mod settings;
#[cfg(test)]
mod tests;
mod ticket;
mod view;

pub use budget::{Budget, CONNECTIONS_MAX, ReserveSettings};
pub use ceiling::Ceiling;
pub use error::{CheckoutError, CheckoutErrorKind, ConnectError, Fault, Reachability};
pub use lease::Lease;
pub use pins::PinPermit;
pub use settings::{CurrentSettings, PoolSettings};
pub use ticket::Ticket;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use deadpool::managed::{QueueMode, Timeouts};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{Lent, PoolMetrics};
use budget::{Account, Member};
use holder::{Held, Holder};
use queue::State;

/// A connection that is out of deadpool, on its way or lent.
type Object<C> = deadpool::managed::Object<Holder<C>>;

/// deadpool never waits here: see [`holder`].
const AT_ONCE: Timeouts = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };

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
    /// closed it or spoke of closing, and it is dropped. Notices are consumed here. Must not block, and must not touch
    /// the pool: it is called under the pool's lock.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Connections to one server as one user and database, lent one at a time.
pub struct Pool<C: Connect> {
    connect: C,
    settings: CurrentSettings,
    metrics: Arc<PoolMetrics>,
    account: Arc<Account>,
    /// Only used under the lock of `state`.
    connections: deadpool::managed::Pool<Holder<C>>,
    state: Mutex<State<C>>,
    born: Instant,
    /// The pool's age in milliseconds as of the reaper's latest round: spares the hot path the clock.
    age_ms: AtomicU64,
    closing: Arc<Notify>,
    /// Tells those who share that somebody waits.
    asked: Notify,
    /// Tells who keeps a connection for long that all are to be replaced.
    renewed: Notify,
    /// Tells that the gate has opened.
    opened: Notify,
    /// Tells the timer that waits end at other times.
    rescheduled: Arc<Notify>,
}

/// The answer to a checkout.
#[derive(Debug)]
pub enum Checkout<C: Connect> {
    /// A connection was free.
    Ready(Lease<C>),
    /// Wait for the ticket.
    Queued(Ticket<C>),
}

impl<C: Connect> Pool<C> {
    /// A pool without connections; spawns nothing.
    pub fn new(
        connect: C,
        settings: PoolSettings,
        budget: Arc<Budget>,
        metrics: Arc<PoolMetrics>,
    ) -> Arc<Self> {
        let account = budget.join(settings.ceilings.clone());
        let settings = CurrentSettings::new(&settings);
        let holder = Holder::new(Arc::clone(&account), Arc::clone(&metrics));
        let built = deadpool::managed::Pool::builder(holder)
            .max_size(CONNECTIONS_MAX)
            .queue_mode(QueueMode::Lifo)
            .build();
        let connections = match built {
            Ok(connections) => connections,
            Err(error) => unreachable!("a deadpool without timeouts needs no runtime: {error}"),
        };
        let pool = Arc::new(Self {
            connect,
            settings,
            metrics,
            account,
            connections,
            state: Mutex::new(State::default()),
            born: Instant::now(),
            age_ms: AtomicU64::new(0),
            closing: Arc::default(),
            asked: Notify::default(),
            renewed: Notify::default(),
            opened: Notify::default(),
            rescheduled: Arc::default(),
        });
        pool.limit_changed(budget.limit());
        let weak: Weak<Self> = Arc::downgrade(&pool);
        budget.admit(&pool.account, weak);
        pool
    }

    /// Asks for a connection: an idle one at once if nobody waits, else a place in the queue. Call it in a tokio
    /// runtime.
    pub fn checkout(self: &Arc<Self>) -> Checkout<C> {
        let mut state = self.lock();
        if state.may_take_idle()
            && let Some(object) = self.take_idle()
        {
            drop(state);
            let times = &self.metrics.times;
            self.metrics.checkouts.inc();
            let pool = Arc::clone(self);
            return Checkout::Ready(Lease::new(object, pool, times.now_ns(), Lent::AtOnce));
        }
        let ticket = self.join_queue(&mut state);
        drop(state);
        self.account.budget().settle();
        self.asked.notify_waiters();
        Checkout::Queued(ticket)
    }

    /// A connection that lies idle, for a question of ours: not counted as a checkout.
    #[must_use]
    pub fn spare(self: &Arc<Self>) -> Option<Lease<C>> {
        let state = self.lock();
        if !state.may_take_idle() {
            return None;
        }
        let object = self.take_idle()?;
        drop(state);
        let now_ns = self.metrics.times.now_ns();
        Some(Lease::new(object, Arc::clone(self), now_ns, Lent::Otherwise))
    }

    /// Leave to pin a connection, if as many as may be are not pinned yet and nobody waits for it.
    #[must_use]
    pub fn try_pin(&self) -> Option<PinPermit> {
        self.account.budget().pins().try_take()
    }

    /// Waits for leave to pin a connection, in the order of asking; `None` when it has not come by the deadline. Cancel
    /// safe.
    pub fn wait_to_pin(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Option<PinPermit>> + Send + use<C> {
        let permit = Arc::clone(self.account.budget().pins()).take();
        let wait = tokio::time::timeout_at(deadline, permit);
        async { wait.await.ok().flatten() }
    }

    /// Ends the pool: idle connections are closed now, lent ones when they are given back; waiters and later checkouts
    /// get [`CheckoutErrorKind::Closed`].
    pub fn close(&self) {
        let wakers = {
            let mut state = self.lock();
            state.close();
            let gone = self.connections.retain(|_, _| false).removed;
            self.count_closed(gone.len(), "shutdown");
            self.fail_waiters(&mut state, &CheckoutErrorKind::Closed)
        };
        wakers.into_iter().for_each(Waker::wake);
        self.closing.notify_one();
        self.account.budget().settle();
    }

    /// As [`Pool::close`], for a pool whose metrics go on with another that has another budget.
    pub fn retire(&self) {
        self.close();
        self.metrics.limit_gone(Arc::as_ptr(self.account.budget()).addr());
    }

    /// From now on no connection lies idle: those that do are closed now, lent ones when they are given back and nobody waits.
    /// For a process that will end, so that others find room at the server; it lends as before.
    pub fn keep_none_idle(&self) {
        {
            let mut state = self.lock();
            state.leave();
            let gone = self.connections.retain(|_, _| false).removed;
            self.count_closed(gone.len(), "leaving");
        }
        self.account.budget().settle();
    }

    /// What is known of the server. One that gives no more connections than there are is reached.
    pub fn state(&self) -> Reachability {
        let state = self.lock();
        match state.failure() {
            Some(error) if error.fault == Fault::Refused && self.serves(&state) => {
                Reachability::Reachable
            }
            _ => state.reachability(),
        }
    }

    /// Whether a checkout would bring a connection that nobody else waits for.
    #[must_use]
    pub fn has_place(&self) -> bool {
        let budget = self.account.budget();
        self.lock().may_take_idle() && (self.account.idle() > 0 || budget.in_use() < budget.limit())
    }

    /// Whether somebody waits for a connection.
    #[must_use]
    pub fn has_waiters(&self) -> bool {
        self.lock().has_waiters()
    }

    /// How many wait for a connection.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.lock().waiters()
    }

    /// Waits until more wait for a connection than the `patient` ones. Cancel safe.
    pub async fn until_asked(&self, patient: &AtomicUsize) {
        loop {
            let mut asked = pin!(self.asked.notified());
            // From here on no word is missed.
            asked.as_mut().enable();
            if self.waiters() > patient.load(Ordering::Relaxed) {
                return;
            }
            asked.await;
        }
    }

    /// How long the first of those has waited.
    #[must_use]
    pub fn oldest_wait(&self) -> Duration {
        self.lock().oldest_wait()
    }

    /// Why it may have fewer connections to its server than was set, if so.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        self.account.budget().shortfall()
    }

    /// Most connections there may be to its server as it was set.
    #[must_use]
    pub fn limit_configured(&self) -> usize {
        self.account.budget().configured()
    }

    /// Most connections there may be to its server, whoever's they are.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.account.budget().limit()
    }

    /// Whether its database or its user has more connections than it may have by now.
    #[must_use]
    pub fn exceeds_a_ceiling(&self) -> bool {
        self.account.exceeds_a_ceiling()
    }

    /// The budget that its connections are taken from.
    pub fn budget(&self) -> &Arc<Budget> {
        self.account.budget()
    }

    /// What opens the connections.
    pub fn connector(&self) -> &C {
        &self.connect
    }

    /// The pool's counters.
    pub fn metrics(&self) -> &Arc<PoolMetrics> {
        &self.metrics
    }

    /// The pool's limits as they are now.
    pub fn settings(&self) -> &CurrentSettings {
        &self.settings
    }

    /// The pool's age in milliseconds, kept to the second.
    #[must_use]
    pub fn age_ms(&self) -> u64 {
        self.age_ms.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection out of deadpool: a live idle one, or, if there is none, the one that was brought.
    fn take_object(&self) -> Option<Box<Object<C>>> {
        let get = pin!(self.connections.timeout_get(&AT_ONCE));
        match get.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(object)) => Some(Box::new(object)),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// A live idle connection; dead ones on the way are closed. Under the lock.
    fn take_idle(&self) -> Option<Box<Object<C>>> {
        if self.account.idle() == 0 {
            return None;
        }
        let object = self.take_object()?;
        self.account.idle_removed(1);
        self.metrics.servers_idle.dec();
        self.metrics.servers_active.inc();
        Some(object)
    }

    /// Lays a clean connection among the idle ones. Under the lock, and only if nobody waits.
    fn put_idle(&self, object: Box<Object<C>>) {
        self.put_idle_since(object, self.age_ms());
    }

    fn put_idle_since(&self, mut object: Box<Object<C>>, idle_since_ms: u64) {
        object.term.idle_since_ms = idle_since_ms;
        drop(object);
        self.account.idle_added();
        self.metrics.servers_active.dec();
        self.metrics.servers_idle.inc();
    }

    /// Puts a new connection into deadpool and takes it out as an object. Under the lock.
    fn adopt(&self, held: Box<Held<C::Backend>>) -> Option<Box<Object<C>>> {
        let holder = self.connections.manager();
        holder.bring(held);
        let mut idle = Vec::new();
        let mut adopted = self.take_object();
        while holder.has_brought()
            && let Some(object) = adopted.take()
        {
            self.account.idle_removed(1);
            self.metrics.servers_idle.dec();
            self.metrics.servers_active.inc();
            idle.push(object);
            adopted = self.take_object();
        }
        // Nothing is left here unless deadpool is full, which the budget's bound rules out.
        drop(holder.take_brought());
        idle.into_iter().rev().for_each(|object| self.put_idle(object));
        adopted.inspect(|_| self.metrics.servers_active.inc())
    }

    fn count_closed(&self, idle: usize, reason: &str) {
        self.account.idle_removed(idle);
        for _ in 0..idle {
            self.metrics.servers_idle.dec();
            self.metrics.server_closed(reason);
        }
    }

    /// Ends an object that is out of deadpool; its permit is left to the caller. Takes no lock of ours.
    fn dismantle(&self, object: Object<C>, reason: &str) -> budget::Permit {
        let Held { backend, permit, .. } = *Object::take(object);
        drop(backend);
        self.metrics.servers_active.dec();
        self.metrics.server_closed(reason);
        permit
    }

    /// Closes a lent connection.
    fn discard(&self, object: Object<C>, reason: &str) {
        drop(self.dismantle(object, reason));
        self.account.budget().settle();
    }

    /// Takes a clean connection back.
    fn take_back(&self, object: Box<Object<C>>) {
        let budget = self.account.budget();
        let unfit = object
            .term
            .ended(self.age_ms())
            .or_else(|| budget.is_overdrawn().then_some("budget"))
            .or_else(|| budget.owes_elsewhere(&self.account).then_some("fairness"));
        match unfit {
            Some(reason) => self.discard(*object, reason),
            None => self.pass_on(object),
        }
    }

    /// Hands a clean connection to the first waiter, or lays it among the idle ones.
    fn pass_on(&self, object: Box<Object<C>>) {
        let mut state = self.lock();
        let unfit = if state.is_closed() {
            Some("shutdown")
        } else {
            (!state.gate.lets_in(&object.era)).then_some("renewed")
        };
        if let Some(reason) = unfit {
            drop(state);
            return self.discard(*object, reason);
        }
        match state.grant_first(object) {
            Ok(waker) => {
                self.publish(&mut state);
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
            Err(object) if !state.keeps_idle() => {
                self.publish(&mut state);
                drop(state);
                self.discard(*object, "leaving");
            }
            Err(object) => {
                self.put_idle(object);
                self.publish(&mut state);
                drop(state);
                // Another pool may have a waiter for whom this one is closed.
                self.account.budget().settle();
            }
        }
    }
}

impl<C: Connect> Member for Pool<C> {
    fn open(self: Arc<Self>, permit: budget::Permit) -> Result<(), budget::Permit> {
        self.start_opener(permit, opener::Cause::Waiter)
    }

    fn evict_idle(&self) -> Option<budget::Permit> {
        let _state = self.lock();
        self.take_idle().map(|object| self.dismantle(*object, "room"))
    }

    fn limit_changed(&self, limit: usize) {
        let budget = self.account.budget();
        // Any number that is the budget's alone.
        let number = Arc::as_ptr(budget).addr();
        self.metrics.limit_changed(number, limit, budget.configured());
    }
}

impl<C: Connect> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.settings.name).finish_non_exhaustive()
    }
}
