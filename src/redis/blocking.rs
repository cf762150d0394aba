//! Where sessions wait for elements together: for each database and class of commands a *station*, whose one backend waits on behalf of
//! all, as long as anybody does.
//!
//! What comes goes to whoever has waited longest for its key, of whatever class: stations share a *hall*, in which each key has one
//! line and is asked for by one station at a time. If a session is gone before it could take its element, that goes to the next one;
//! if it isn't for that one, back where it came from. A session that is first in the line of one of its keys is in its station's
//! call to the server, or that call is ended and made anew: so nothing that comes between is missed.

mod ask;
mod check;
mod hall;
mod shift;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::backend::{Key, RedisConnect, RedisPool, checkout_error};
use super::lane::Lane;
use super::mailbox::Backlog;
use super::pop::{Catch, Class, KeyName, Kind, Pop};
use super::roster::Ticket;
use crate::pool::{Checkout, CheckoutError, CheckoutErrorKind, Lease};
pub(in crate::redis) use ask::ask_here;
use hall::{Hall, Look, Wish};
use shift::Shift;

/// Most keys that one call waits for; who would bring more waits on a backend of its own.
const KEY_LIMIT: usize = 1024;
/// Most bytes of those keys: they are held here, and are sent anew with each call.
const KEY_BYTES: usize = 256 * 1024;
/// Between two attempts to wait, when the first one failed.
const PAUSE: Duration = Duration::from_millis(50);

/// What those are told whose element may be lost.
const LOST: &str = "ERR tidegate: the Redis server closed the connection while an element was on its way here; \
     it may be lost, unless it is still in its list";

/// All stations of one upstream.
#[derive(Debug)]
pub struct Stations {
    pool: Arc<RedisPool>,
    backlog: Arc<Backlog>,
    inner: Mutex<Inner>,
    /// Sessions that wait for a connection, and would keep it for long: a station that gave its own to them would wait in turn.
    patient: AtomicUsize,
}

/// That a session is one of the patient ones, as long as this lives.
#[derive(Debug)]
pub struct Patience(Arc<Stations>);

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.patient.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Inner {
    halls: HashMap<Floor, Hall>,
    /// Where each client waits.
    clients: HashMap<u64, (Floor, Ticket)>,
    tickets: Ticket,
    terms: Terms,
}

/// Whether the server lets one wait for many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Terms {
    /// As far as is known.
    #[default]
    Granted,
    /// It knows the commands not, or forbids them.
    Refused,
}

/// Whose lines are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Floor {
    db: u32,
    kind: Kind,
}

/// What a station waits for.
#[derive(Debug, Clone)]
struct Spot {
    floor: Floor,
    class: Arc<Class>,
}

/// The lane over which the end of a call is asked for.
#[derive(Debug, Clone)]
pub struct Way {
    /// Any.
    pub lane: Arc<Lane>,
    /// What it is likely to be set to.
    pub key: Key,
}

/// What became of the waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This came.
    Caught(Catch),
    /// Another client has ended it as if the time were over.
    Nothing,
    /// It failed; an error's line.
    Failed(String),
    /// The session must wait on a backend of its own.
    Alone,
}

/// Whom an end of waiting has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unblocked {
    /// The client, which waited.
    One,
    /// It does not wait here.
    Nobody,
}

/// A session's place at a station. Leaves it when dropped; what had come for it goes to the next one.
#[derive(Debug)]
pub struct Seat {
    stations: Arc<Stations>,
    spot: Spot,
    ticket: Ticket,
    client: u64,
    way: Way,
}

impl Stations {
    /// None yet. Takes backends from `pool` while somebody waits.
    #[must_use]
    pub fn new(pool: Arc<RedisPool>, backlog: Arc<Backlog>) -> Arc<Self> {
        Arc::new(Self { pool, backlog, inner: Mutex::default(), patient: AtomicUsize::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a session that waits for a connection which it would keep for long: stations need not share theirs.
    #[must_use]
    pub fn patience(self: &Arc<Self>) -> Patience {
        self.patient.fetch_add(1, Ordering::Relaxed);
        Patience(Arc::clone(self))
    }

    /// Whether the server lets one wait for many.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.lock().terms
    }

    /// Those of a pop's keys, in their order, for which nobody waits: what comes for the others belongs to those who do.
    #[must_use]
    pub fn free_keys(&self, db: u32, pop: &Pop) -> Vec<KeyName> {
        let inner = self.lock();
        let hall = inner.halls.get(&Floor { db, kind: pop.class.kind() });
        let is_free = |key: &&KeyName| hall.is_none_or(|hall| !hall.roster.wants(key));
        pop.keys.iter().filter(is_free).cloned().collect()
    }

    /// A number behind all others: whoever comes now.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        let mut inner = self.lock();
        inner.tickets += 1;
        inner.tickets
    }

    /// Takes a place for `client`, which came with `ticket`; `None` if there are too many keys.
    pub fn join(
        self: &Arc<Self>,
        ticket: Ticket,
        db: u32,
        pop: &Pop,
        client: u64,
        way: &Way,
    ) -> Option<Seat> {
        let spot = Spot::new(db, &pop.class);
        let mut inner = self.lock();
        let hall = inner.hall(spot.floor, way);
        let bytes: usize = pop.keys.iter().map(|key| key.len()).sum();
        if hall.roster.key_count(&spot.class) + pop.keys.len() > KEY_LIMIT
            || hall.roster.key_bytes(&spot.class) + bytes > KEY_BYTES
        {
            inner.sweep(spot.floor);
            return None;
        }
        hall.way = way.clone();
        self.open(hall, &spot);
        hall.sit_down(ticket, &spot.class, &pop.keys);
        hall.wake_changed();
        inner.clients.insert(client, (spot.floor, ticket));
        self.pool.metrics().parked.inc();
        Some(Seat { stations: Arc::clone(self), spot, ticket, client, way: way.clone() })
    }

    /// Starts the task of a station if there is none.
    fn open(self: &Arc<Self>, hall: &mut Hall, spot: &Spot) {
        if !hall.stations.contains_key(&spot.class) {
            hall.stations.insert(Arc::clone(&spot.class), hall::Station::default());
            tokio::spawn(Arc::clone(self).serve(spot.clone()));
        }
    }

    /// Ends the waiting of the client with this number, if it waits.
    pub fn unblock(&self, client: u64, outcome: Outcome) -> Unblocked {
        let place = self.lock().clients.get(&client).copied();
        let Some((floor, ticket)) = place else { return Unblocked::Nobody };
        let end = |hall: &mut Hall| {
            if !hall.is_waiting(ticket) {
                return Unblocked::Nobody;
            }
            hall.give_up(ticket, outcome);
            Unblocked::One
        };
        self.look(floor, end).unwrap_or(Unblocked::Nobody)
    }

    /// A station's task: finds a connection whenever one is needed. What works with that is a task of its own, for it may go on with
    /// another station.
    async fn serve(self: Arc<Self>, spot: Spot) {
        while poll_fn(|cx| self.poll_needed(cx, &spot)).await.is_some() {
            match self.checkout(&spot).await {
                None => {}
                Some(Ok(lease)) => {
                    let free = self.look(spot.floor, |hall| hall.take_up(&spot.class)).flatten();
                    if free.is_none() {
                        lease.give_back();
                        continue;
                    }
                    let shift = Shift::new(Arc::clone(&self), spot.clone(), lease);
                    tokio::spawn(shift.run());
                }
                Some(Err(error)) if error.kind == CheckoutErrorKind::Closed => return,
                Some(Err(error)) => {
                    self.fail_all(&spot, &Outcome::Failed(checkout_error(&error)));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// A connection; `None` if it is not needed any more.
    async fn checkout(&self, spot: &Spot) -> Option<Result<Lease<RedisConnect>, CheckoutError>> {
        let ticket = match self.pool.checkout() {
            Checkout::Ready(lease) => return Some(Ok(lease)),
            Checkout::Queued(ticket) => ticket,
        };
        tokio::select! {
            lease = ticket.lease() => Some(lease),
            () = poll_fn(|cx| self.poll_served(cx, spot)) => None,
        }
    }

    /// Whether the station must find a connection, once that is known. When nobody is left who may need it, it is forgotten, and its
    /// task ends.
    fn poll_needed(&self, cx: &Context<'_>, spot: &Spot) -> Poll<Option<()>> {
        let mut inner = self.lock();
        let Some(hall) = inner.halls.get_mut(&spot.floor) else { return Poll::Ready(None) };
        hall.note_task(&spot.class, cx);
        if hall.must_find_crew(&spot.class) {
            return Poll::Ready(Some(()));
        }
        if hall.is_over(&spot.class) {
            hall.stations.remove(&spot.class);
            inner.sweep(spot.floor);
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    /// Ready when the station needs no connection, or none more.
    fn poll_served(&self, cx: &Context<'_>, spot: &Spot) -> Poll<()> {
        let look = |hall: &mut Hall| {
            hall.note_task(&spot.class, cx);
            !hall.lacks_crew(&spot.class)
        };
        match self.look(spot.floor, look) {
            Some(false) => Poll::Pending,
            Some(true) | None => Poll::Ready(()),
        }
    }

    fn note_loss(&self, spot: &Spot, reason: &str, elements: Elements) {
        self.pool.metrics().parked_losses.inc();
        tracing::warn!(
            pool = self.pool.settings().name,
            reason,
            ?elements,
            "a connection that waits for elements was lost"
        );
        if elements == Elements::Lost {
            self.fail_first(spot, Outcome::Failed(LOST.to_owned()));
        }
    }

    /// With one look under the lock.
    fn look<R>(&self, floor: Floor, look: impl FnOnce(&mut Hall) -> R) -> Option<R> {
        let mut inner = self.lock();
        let hall = inner.halls.get_mut(&floor)?;
        let seen = look(hall);
        hall.wake_changed();
        inner.sweep(floor);
        Some(seen)
    }

    /// A connection works for the station no more.
    fn lay_down(&self, spot: &Spot) {
        self.look(spot.floor, |hall| hall.lay_down(&spot.class));
    }

    /// The station with which a connection goes on that has nothing to do for this one.
    fn change_over(&self, spot: &Spot) -> Option<Arc<Class>> {
        self.look(spot.floor, |hall| hall.change_over(&spot.class)).flatten()
    }

    fn wish(&self, spot: &Spot) -> Wish {
        self.look(spot.floor, |hall| hall.wish(&spot.class)).unwrap_or(Wish::Nothing)
    }

    /// The keys that a call could ask for now.
    fn keys(&self, spot: &Spot) -> Vec<KeyName> {
        self.look(spot.floor, |hall| hall.roster.keys(&spot.class)).unwrap_or_default()
    }

    /// A call asks from now on for the keys that it gets here; for `others`, too, there are waiters, but it can't.
    fn begin_call(&self, spot: &Spot, others: &[KeyName]) -> Vec<KeyName> {
        let begin = |hall: &mut Hall| hall.roster.begin_call(&spot.class, others);
        self.look(spot.floor, begin).unwrap_or_default()
    }

    /// The call is over, and brought this.
    fn end_call(&self, spot: &Spot, catch: Option<Catch>) {
        self.look(spot.floor, |hall| hall.end_call(&spot.class, catch));
    }

    /// These could not be put back: they are offered again, ahead of what came later.
    fn offer(&self, spot: &Spot, catches: Vec<Catch>) {
        self.look(spot.floor, |hall| hall.offer(&spot.class, catches));
    }

    /// What came from these keys was put back, or is offered again.
    fn end_return(&self, spot: &Spot, keys: &[KeyName]) {
        self.look(spot.floor, |hall| hall.end_return(&spot.class, keys));
    }

    fn fail_all(&self, spot: &Spot, outcome: &Outcome) {
        self.look(spot.floor, |hall| hall.serve_all(&spot.class, outcome));
    }

    fn fail_first(&self, spot: &Spot, outcome: Outcome) {
        self.look(spot.floor, |hall| hall.serve_first(&spot.class, outcome));
    }

    /// Nobody waits together any more: the server does not let us.
    fn refuse(&self, spot: &Spot) {
        self.lock().terms = Terms::Refused;
        self.fail_all(spot, &Outcome::Alone);
    }

    /// Ready when there is something to do for a connection that has nothing to do for its station.
    fn poll_work(&self, cx: &Context<'_>, spot: &Spot) -> Poll<()> {
        self.look(spot.floor, |hall| hall.linger(&spot.class, cx)).unwrap_or(Poll::Pending)
    }

    /// Ready when the running call must end.
    fn poll_stale(&self, cx: &Context<'_>, spot: &Spot) -> Poll<()> {
        let look = |hall: &mut Hall| {
            if hall.is_stale(&spot.class) {
                return Poll::Ready(());
            }
            hall.note_crew(&spot.class, cx);
            Poll::Pending
        };
        self.look(spot.floor, look).unwrap_or(Poll::Pending)
    }
}

/// Whether an element was under way when a connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elements {
    /// Not that it could be seen.
    NotSeen,
    /// A part of it was here.
    Lost,
}

impl Spot {
    fn new(db: u32, class: &Class) -> Self {
        let floor = Floor { db, kind: class.kind() };
        Self { floor, class: Arc::new(class.clone()) }
    }
}

impl Inner {
    fn hall(&mut self, floor: Floor, way: &Way) -> &mut Hall {
        self.halls.entry(floor).or_insert_with(|| Hall::new(way.clone()))
    }

    /// Forgets a hall in which nothing is left to do.
    fn sweep(&mut self, floor: Floor) {
        if self.halls.get(&floor).is_some_and(Hall::is_empty) {
            self.halls.remove(&floor);
        }
    }
}

impl Seat {
    /// For these keys others waited already, so the session has not asked the server for what is there: if that is of another type, it
    /// is to be told so.
    pub fn has_not_tried(&self, keys: &[KeyName]) {
        if keys.is_empty() {
            return;
        }
        let floor = self.spot.floor;
        let note = |hall: &mut Hall| hall.note_untried(self.ticket, keys);
        if self.stations.look(floor, note).flatten() == Some(Look::Off) {
            tokio::spawn(check::look_at_untried(Arc::clone(&self.stations), floor));
        }
    }

    /// The session has waited long enough; [`Seat::poll_outcome`] tells when it is over.
    pub fn give_up(&self) {
        self.stations.look(self.spot.floor, |hall| hall.give_up(self.ticket, Outcome::Nothing));
    }

    /// What became of it; once. The task is woken when there is something.
    pub fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let take = |hall: &mut Hall| hall.poll_outcome(self.ticket, cx);
        self.stations.look(self.spot.floor, take).unwrap_or(Poll::Ready(Outcome::Alone))
    }

    /// What came could not be delivered: it is for the next one. It came before what else is offered.
    pub fn pass_on(&self, catch: Catch) {
        let mut inner = self.stations.lock();
        let hall = inner.hall(self.spot.floor, &self.way);
        self.stations.open(hall, &self.spot);
        hall.offer(&self.spot.class, vec![catch]);
        hall.wake_changed();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let catch = {
            let mut inner = self.stations.lock();
            inner.clients.remove(&self.client);
            self.stations.pool.metrics().parked.dec();
            let hall = inner.halls.get_mut(&self.spot.floor);
            hall.and_then(|hall| {
                let catch = hall.stand_up(self.ticket);
                hall.wake_changed();
                catch
            })
        };
        if let Some(catch) = catch {
            self.pass_on(catch);
        }
        self.stations.lock().sweep(self.spot.floor);
    }
}
