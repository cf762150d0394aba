//! Where sessions wait for elements together: for each database and class of commands a *station*, whose one backend waits on behalf of
//! all, as long as anybody does.
//!
//! What comes goes to whoever has waited longest for its key. If that session is gone before it could take it, it goes to the
//! next one; if nobody waits for it any more, back where it came from. A session that has joined is in the call to the server,
//! or the call is ended and made anew with its keys: so nothing that comes between is missed.

mod ask;
mod check;
mod shift;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::backend::{Key, RedisConnect, RedisPool, checkout_error};
use super::lane::Lane;
use super::mailbox::Backlog;
use super::pop::{Catch, Class, KeyName, Kind, Pop};
use super::roster::{Roster, Ticket};
use crate::pool::{Checkout, CheckoutError, CheckoutErrorKind, Lease};
pub(in crate::redis) use ask::ask_here;
use check::Check;
use shift::{Ending, Shift};

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
    stations: HashMap<Arc<Spot>, Station>,
    /// Where each client waits.
    clients: HashMap<u64, (Arc<Spot>, Ticket)>,
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

/// What a station waits for.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Spot {
    db: u32,
    class: Class,
}

/// The sessions' side of a station.
#[derive(Debug)]
struct Station {
    roster: Roster,
    seats: HashMap<Ticket, Place>,
    /// What nobody has yet.
    offers: VecDeque<Catch>,
    way: Way,
    /// Those who have waited long enough, and what they are told when no call is running that may still bring them something.
    leaving: Vec<(Ticket, Outcome)>,
    /// Who waits for a key without having tried it.
    untried: BTreeMap<Ticket, Vec<KeyName>>,
    work: Work,
    /// Of the task that waits for them.
    task: Option<Waker>,
}

/// Whether a call may be running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Off,
    On,
}

/// A waiter's place.
#[derive(Debug)]
enum Place {
    Waiting(Option<Waker>),
    Served(Outcome),
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

/// What the task is to do.
#[derive(Debug)]
enum Wish {
    /// Put these back: nobody waits for them.
    PutBack(Vec<Catch>),
    /// Wait for these.
    Call(Vec<KeyName>),
    Nothing,
}

/// A session's place at a station. Leaves it when dropped; what had come for it goes to the next one.
#[derive(Debug)]
pub struct Seat {
    stations: Arc<Stations>,
    spot: Arc<Spot>,
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
        let kind = pop.class.kind();
        pop.keys.iter().filter(|key| !inner.wants(db, kind, key)).cloned().collect()
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
        let mut inner = self.lock();
        let spot = self.station(&mut inner, Spot { db, class: pop.class.clone() }, way);
        let station = inner.stations.get_mut(&spot)?;
        let bytes: usize = pop.keys.iter().map(|key| key.len()).sum();
        if station.roster.key_count() + pop.keys.len() > KEY_LIMIT
            || station.roster.key_bytes() + bytes > KEY_BYTES
        {
            return None;
        }
        station.way = way.clone();
        station.roster.join(ticket, &pop.keys);
        station.seats.insert(ticket, Place::Waiting(None));
        station.hand_over();
        station.wake();
        inner.clients.insert(client, (Arc::clone(&spot), ticket));
        self.pool.metrics().parked.inc();
        let (stations, way) = (Arc::clone(self), way.clone());
        Some(Seat { stations, spot, ticket, client, way })
    }

    /// The station for `spot`, whose task is started if there was none.
    fn station(self: &Arc<Self>, inner: &mut Inner, spot: Spot, way: &Way) -> Arc<Spot> {
        if let Some((known, _)) = inner.stations.get_key_value(&spot) {
            return Arc::clone(known);
        }
        let spot = Arc::new(spot);
        inner.stations.insert(Arc::clone(&spot), Station::new(way.clone()));
        tokio::spawn(Arc::clone(self).serve(Arc::clone(&spot)));
        spot
    }

    /// Ends the waiting of the client with this number, if it waits.
    pub fn unblock(&self, client: u64, outcome: Outcome) -> Unblocked {
        let mut inner = self.lock();
        let Some((spot, ticket)) = inner.clients.get(&client).cloned() else {
            return Unblocked::Nobody;
        };
        let Some(station) = inner.stations.get_mut(&spot) else { return Unblocked::Nobody };
        if !station.is_waiting(ticket) {
            return Unblocked::Nobody;
        }
        station.give_up(ticket, outcome);
        Unblocked::One
    }

    /// A station's task: takes a connection while somebody waits.
    async fn serve(self: Arc<Self>, spot: Arc<Spot>) {
        let mut check = Check::default();
        while poll_fn(|cx| self.poll_needed(cx, &spot)).await.is_some() {
            match self.checkout(&spot).await {
                None => {}
                Some(Ok(lease)) => {
                    let shift = Shift::new(Arc::clone(&self), Arc::clone(&spot), lease, &mut check);
                    if let Ending::Lost { reason, elements } = shift.run().await {
                        self.note_loss(&spot, &reason, elements);
                        tokio::time::sleep(PAUSE).await;
                    }
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
            () = poll_fn(|cx| self.poll_idle(cx, spot)) => None,
        }
    }

    /// Whether the station still has something to do, once that is known. If not it is forgotten, but not before everybody has taken
    /// what came for them; its task ends then.
    fn poll_needed(&self, cx: &Context<'_>, spot: &Spot) -> Poll<Option<()>> {
        let mut inner = self.lock();
        let Some(station) = inner.stations.get_mut(spot) else { return Poll::Ready(None) };
        if !station.is_idle() {
            return Poll::Ready(Some(()));
        }
        if station.seats.is_empty() {
            inner.stations.remove(spot);
            return Poll::Ready(None);
        }
        station.task = Some(cx.waker().clone());
        Poll::Pending
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
            self.fail_first(spot, &Outcome::Failed(LOST.to_owned()));
        }
    }

    /// With one look under the lock.
    fn look<R>(&self, spot: &Spot, look: impl FnOnce(&mut Station) -> R) -> Option<R> {
        self.lock().stations.get_mut(spot).map(look)
    }

    fn wish(&self, spot: &Spot) -> Wish {
        let wish = |station: &mut Station| {
            station.hand_over();
            station.dismiss();
            if !station.offers.is_empty() {
                return Wish::PutBack(station.offers.drain(..).collect());
            }
            match station.roster.keys() {
                keys if keys.is_empty() => Wish::Nothing,
                keys => Wish::Call(keys),
            }
        };
        self.look(spot, wish).unwrap_or(Wish::Nothing)
    }

    /// From now on calls may be running, or are none any more.
    fn set_work(&self, spot: &Spot, work: Work) {
        self.look(spot, |station| {
            station.work = work;
            if work == Work::Off {
                station.dismiss();
            }
        });
    }

    /// The call asks for `keys` from now on; for `others`, too, there are waiters, but it can't.
    fn begin_call(&self, spot: &Spot, keys: &[KeyName], others: &HashSet<KeyName>) {
        self.look(spot, |station| station.roster.begin_call(keys, others));
    }

    /// The call is over, and brought this.
    fn end_call(&self, spot: &Spot, catch: Option<Catch>) {
        self.look(spot, |station| {
            station.roster.end_call();
            station.offers.extend(catch);
            station.hand_over();
        });
    }

    /// These could not be put back: they are offered again, ahead of what came later.
    fn offer(&self, spot: &Spot, catches: Vec<Catch>) {
        self.look(spot, |station| {
            catches.into_iter().rev().for_each(|catch| station.offers.push_front(catch));
            station.hand_over();
        });
    }

    fn fail_all(&self, spot: &Spot, outcome: &Outcome) {
        self.look(spot, |station| {
            for ticket in station.roster.everybody() {
                station.serve(ticket, outcome.clone());
            }
        });
    }

    fn fail_first(&self, spot: &Spot, outcome: &Outcome) {
        self.look(spot, |station| {
            if let Some(ticket) = station.roster.first() {
                station.serve(ticket, outcome.clone());
            }
        });
    }

    /// Nobody waits together any more: the server does not let us.
    fn refuse(&self, spot: &Spot) {
        self.lock().terms = Terms::Refused;
        self.fail_all(spot, &Outcome::Alone);
    }

    /// Ready when the station has nothing to do.
    fn poll_idle(&self, cx: &Context<'_>, spot: &Spot) -> Poll<()> {
        self.poll(cx, spot, Station::is_idle)
    }

    /// Ready when the station has something to do.
    fn poll_work(&self, cx: &Context<'_>, spot: &Spot) -> Poll<()> {
        self.poll(cx, spot, |station| !station.is_idle())
    }

    /// Ready when the running call must end.
    fn poll_stale(&self, cx: &Context<'_>, spot: &Spot) -> Poll<()> {
        self.poll(cx, spot, |station| {
            station.roster.must_end_call()
                || !station.offers.is_empty()
                || !station.leaving.is_empty()
        })
    }

    fn poll(&self, cx: &Context<'_>, spot: &Spot, is_it: impl Fn(&Station) -> bool) -> Poll<()> {
        let look = |station: &mut Station| {
            if is_it(station) {
                return Poll::Ready(());
            }
            station.task = Some(cx.waker().clone());
            Poll::Pending
        };
        self.look(spot, look).unwrap_or(Poll::Pending)
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

impl Inner {
    fn wants(&self, db: u32, kind: Kind, key: &[u8]) -> bool {
        self.stations.iter().any(|(spot, station)| {
            spot.db == db && spot.class.kind() == kind && station.roster.wants(key)
        })
    }
}

impl Station {
    fn new(way: Way) -> Self {
        Self {
            roster: Roster::default(),
            seats: HashMap::new(),
            offers: VecDeque::new(),
            way,
            leaving: Vec::new(),
            untried: BTreeMap::new(),
            work: Work::Off,
            task: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.roster.is_empty() && self.offers.is_empty()
    }

    /// Gives what is offered to those who wait for it; what nobody waits for is left.
    fn hand_over(&mut self) {
        for catch in std::mem::take(&mut self.offers) {
            match self.roster.first_for(&catch.key) {
                Some(ticket) => self.serve(ticket, Outcome::Caught(catch)),
                None => self.offers.push_back(catch),
            }
        }
    }

    fn leave(&mut self, ticket: Ticket) {
        self.roster.leave(ticket);
        self.untried.remove(&ticket);
    }

    fn is_waiting(&self, ticket: Ticket) -> bool {
        matches!(self.seats.get(&ticket), Some(Place::Waiting(_)))
    }

    fn serve(&mut self, ticket: Ticket, outcome: Outcome) {
        self.leave(ticket);
        let place = self.seats.insert(ticket, Place::Served(outcome));
        if let Some(Place::Waiting(Some(session))) = place {
            session.wake();
        }
    }

    /// Somebody waits no longer than until the call is over: what that brings is still theirs, as the server has it.
    fn give_up(&mut self, ticket: Ticket, outcome: Outcome) {
        if !self.is_waiting(ticket) {
            return;
        }
        match self.work {
            Work::Off => self.serve(ticket, outcome),
            Work::On => self.leaving.push((ticket, outcome)),
        }
        self.wake();
    }

    /// No call is running: whoever has given up is told so.
    fn dismiss(&mut self) {
        for (ticket, outcome) in std::mem::take(&mut self.leaving) {
            if self.is_waiting(ticket) {
                self.serve(ticket, outcome);
            }
        }
    }

    fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
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
        let note = |station: &mut Station| {
            if station.is_waiting(self.ticket) {
                station.untried.insert(self.ticket, keys.to_vec());
                station.wake();
            }
        };
        self.stations.look(&self.spot, note);
    }

    /// The session has waited long enough; [`Seat::poll_outcome`] tells when it is over.
    pub fn give_up(&self) {
        let leave = |station: &mut Station| station.give_up(self.ticket, Outcome::Nothing);
        self.stations.look(&self.spot, leave);
    }

    /// What became of it; once. The task is woken when there is something.
    pub fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let take = |station: &mut Station| match station.seats.get_mut(&self.ticket) {
            Some(Place::Waiting(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Place::Served(_)) => match station.seats.remove(&self.ticket) {
                Some(Place::Served(outcome)) => Poll::Ready(outcome),
                _ => Poll::Ready(Outcome::Alone),
            },
            None => Poll::Ready(Outcome::Alone),
        };
        self.stations.look(&self.spot, take).unwrap_or(Poll::Ready(Outcome::Alone))
    }

    /// What came could not be delivered: it is for the next one.
    pub fn pass_on(&self, catch: Catch) {
        let stations = &self.stations;
        let mut inner = stations.lock();
        let spot = Spot { db: self.spot.db, class: self.spot.class.clone() };
        let spot = stations.station(&mut inner, spot, &self.way);
        if let Some(station) = inner.stations.get_mut(&spot) {
            // It came before what else is offered.
            station.offers.push_front(catch);
            station.hand_over();
            station.wake();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let place = {
            let mut inner = self.stations.lock();
            inner.clients.remove(&self.client);
            self.stations.pool.metrics().parked.dec();
            let leave = |station: &mut Station| {
                station.leave(self.ticket);
                station.wake();
                station.seats.remove(&self.ticket)
            };
            inner.stations.get_mut(&self.spot).and_then(leave)
        };
        if let Some(Place::Served(Outcome::Caught(catch))) = place {
            self.pass_on(catch);
        }
    }
}
