//! The gate: shut, nobody gets a connection, and those who come wait until it opens. And eras: a new one begins when all
//! connections are to be replaced; those of earlier ones are closed as they come back. Where it is not sure that new
//! connections can be had (another password), the era before serves until the first of the new one is there.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::Member as _;
use super::holder::{Era, EraMark};
use super::opener::Cause;
use super::queue::Opening;
use super::{Connect, Lease, Pool, State};

/// A wait that can't be added to the clock's reading is cut to this: a year.
const WAIT_LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether connections are lent, and which.
pub(super) struct Gate {
    stance: Stance,
    era: Era,
    /// The era before, while nothing of the present one is there.
    serving: Option<Serving>,
    /// Those before, as long as somebody has a connection of theirs.
    past: Vec<Era>,
}

/// Changed by [`Pool::pause`] and [`Pool::resume`] only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stance {
    Open { since: Instant },
    Shut,
}

/// An era that ends when the one behind it has its first connection.
struct Serving {
    era: Era,
    room: Room,
}

/// Whether an idle connection was closed to make room for the first one of the new era: once is enough.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    NotMade,
    Made,
}

impl Default for Gate {
    fn default() -> Self {
        let stance = Stance::Open { since: Instant::now() };
        Self { stance, era: Era::default(), serving: None, past: Vec::new() }
    }
}

impl Gate {
    pub(super) fn is_open(&self) -> bool {
        self.stance != Stance::Shut
    }

    fn open_since(&self) -> Option<Instant> {
        match self.stance {
            Stance::Open { since } => Some(since),
            Stance::Shut => None,
        }
    }

    /// When a wait of `wait` ends that began at `since`. Never while it is shut; who waited then has the whole wait before
    /// it when it opens.
    pub(super) fn deadline(&self, since: Instant, wait: Duration) -> Option<Instant> {
        let since = self.open_since().map(|opened| opened.max(since))?;
        Some(since.checked_add(wait).unwrap_or_else(|| since + WAIT_LONGEST))
    }

    /// Whether what happens to a connection of this era tells of those that are opened now.
    pub(super) fn is_newest(&self, era: &Era) -> bool {
        self.era.is(era)
    }

    /// What a connection that is opened now belongs to.
    pub(super) fn era(&self) -> &Era {
        &self.era
    }

    /// Whether a connection of this era may be used by anybody else.
    pub(super) fn lets_in(&self, era: &Era) -> bool {
        self.is_open() && self.serves(era)
    }

    /// Whether connections of this era are to be replaced no more than others.
    pub(super) fn serves(&self, era: &Era) -> bool {
        self.era.is(era) || self.serving.as_ref().is_some_and(|before| before.era.is(era))
    }

    fn has_marked(&self, mark: &EraMark) -> bool {
        mark.is_of(&self.era) || self.serving.as_ref().is_some_and(|before| mark.is_of(&before.era))
    }

    fn begin_era(&mut self) {
        self.past.push(std::mem::take(&mut self.era));
        self.end_serving();
    }

    fn end_serving(&mut self) {
        self.past.extend(self.serving.take().map(|before| before.era));
        self.past.retain(|era| era.others() > 0);
    }

    /// A new era, which begins in earnest when it has its first connection.
    fn announce_era(&mut self) {
        let era = std::mem::take(&mut self.era);
        match &mut self.serving {
            // Nothing of the era just announced has come: the one before it goes on serving.
            Some(before) => {
                before.room = Room::NotMade;
                self.past.push(era);
            }
            None => self.serving = Some(Serving { era, room: Room::NotMade }),
        }
    }

    /// Whether a connection of the present era is yet to come, while others serve.
    pub(super) fn awaits_era(&self) -> bool {
        self.serving.is_some()
    }

    /// Whether an idle connection may be closed to make room for it.
    fn take_room(&mut self) -> bool {
        let Some(before) = &mut self.serving else { return false };
        std::mem::replace(&mut before.room, Room::Made) == Room::NotMade
    }
}

impl<C: Connect> Pool<C> {
    /// Shuts the gate: idle connections are closed now, lent ones when they are given back. Whoever wants a connection waits,
    /// without a deadline, until [`Pool::resume`]. `false`: it was shut.
    pub fn pause(&self) -> bool {
        let mut state = self.lock();
        let was_open = state.gate.is_open();
        state.gate.stance = Stance::Shut;
        self.begin_era(&mut state);
        drop(state);
        self.account.budget().settle();
        was_open
    }

    /// Opens the gate; those who wait may do so for the whole of the pool's wait from now on. `false`: it was open.
    pub fn resume(self: &Arc<Self>) -> bool {
        {
            let mut state = self.lock();
            if state.gate.is_open() {
                return false;
            }
            state.gate.stance = Stance::Open { since: Instant::now() };
            self.start_timer(&mut state);
            self.publish(&mut state);
        }
        self.opened.notify_waiters();
        self.account.budget().settle();
        true
    }

    /// Whether the gate is shut.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        !self.lock().gate.is_open()
    }

    /// Waits until the gate is open. Cancel safe.
    pub async fn until_open(&self) {
        loop {
            let mut opened = pin!(self.opened.notified());
            // From here on no word is missed.
            opened.as_mut().enable();
            if !self.is_paused() {
                return;
            }
            opened.await;
        }
    }

    /// Waits for what `coming` brings, beside the queue, at most as long as in it: not while the gate is shut. Cancel safe if
    /// that is.
    pub async fn within_wait<T>(&self, coming: impl Future<Output = T>) -> Option<T> {
        let (since, wait) = (Instant::now(), self.settings.wait());
        let mut coming = pin!(coming);
        loop {
            let ends = self.lock().gate.deadline(since, wait);
            match ends {
                Some(ends) if ends <= Instant::now() => return None,
                Some(ends) => {
                    if let Ok(brought) = tokio::time::timeout_at(ends, coming.as_mut()).await {
                        return Some(brought);
                    }
                }
                None => tokio::select! {
                    brought = coming.as_mut() => return Some(brought),
                    () = self.until_open() => {}
                },
            }
        }
    }

    /// Has every connection replaced: idle ones are closed now, lent ones when they are given back.
    pub fn renew(&self) {
        self.begin_era(&mut self.lock());
        self.account.budget().settle();
    }

    /// Has every connection replaced once a new one could be opened; until then those that are there serve. For when it is
    /// not sure that the server lets in whoever comes now. One is tried at once, hold-off or not.
    pub fn renew_when_opened(self: &Arc<Self>) {
        if self.account.held() == 0 {
            self.renew();
        } else {
            let mut state = self.lock();
            state.gate.announce_era();
            // One, and more when it has worked.
            state.opening = Opening::Probe;
        }
        self.retry();
        self.try_era();
    }

    /// Opens the first connection of an announced era, if it may be tried now.
    pub(super) fn try_era(self: &Arc<Self>) {
        {
            let mut state = self.lock();
            if self.account.held() == 0 {
                state.gate.end_serving();
            }
            if !state.gate.awaits_era() || state.openers > 0 || state.opening == Opening::HoldOff {
                return;
            }
        }
        let permit = self.account.reserve().or_else(|| {
            let may = self.account.idle() > 0 && self.lock().gate.take_room();
            may.then(|| self.evict_idle()).flatten()
        });
        if let Some(permit) = permit {
            drop(self.start_opener(permit, Cause::Era));
        }
    }

    /// A connection of `era` was opened: an era that was announced begins. Under the lock.
    pub(super) fn era_opened(&self, state: &mut State<C>, era: &Era) {
        if !state.gate.awaits_era() || !state.gate.era.is(era) {
            return;
        }
        state.gate.end_serving();
        let gone = self.connections.retain(|held, _| state.gate.serves(&held.era)).removed;
        self.count_closed(gone.len(), "renewed");
        drop(gone);
        // Who keeps a connection for good (a listener's) keeps it: the server has let it in.
    }

    /// How many connections are left of those that are to be replaced, or that a pause waits for.
    #[must_use]
    pub fn outdated(&self) -> usize {
        let mut state = self.lock();
        state.gate.past.retain(|era| era.others() > 0);
        state.gate.past.iter().map(Era::others).sum()
    }

    fn begin_era(&self, state: &mut State<C>) {
        state.gate.begin_era();
        let gone = self.connections.retain(|_, _| false).removed;
        self.count_closed(gone.len(), "renewed");
        drop(gone);
        self.publish(state);
        self.renewed.notify_waiters();
    }
}

impl<C: Connect> Lease<C> {
    /// Whether the connection is to be replaced, and is closed when it is given back. Takes the pool's lock.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.era().is_some_and(|era| !self.pool().lock().gate.has_marked(&era))
    }

    /// Waits until the connection is to be replaced: for whoever would keep it for good. Cancel safe.
    pub fn until_outdated(&self) -> impl Future<Output = ()> + Send + use<C> {
        let era = self.era();
        let pool = Arc::clone(self.pool());
        async move {
            let Some(era) = era else { return };
            let mut renewed = pin!(pool.renewed.notified());
            // From here on no word is missed.
            renewed.as_mut().enable();
            if pool.lock().gate.has_marked(&era) {
                renewed.await;
            }
        }
    }
}
