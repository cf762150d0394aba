//! The gate: shut, nobody gets a connection, and those who come wait until it opens. And eras: a new one begins when all
//! connections are to be replaced; those of earlier ones are closed as they come back.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::holder::Era;
use super::{Connect, Lease, Pool, State};

/// A wait that can't be added to the clock's reading is cut to this: a year.
const WAIT_LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether connections are lent, and which.
pub(super) struct Gate {
    stance: Stance,
    era: Era,
    /// Those before, as long as somebody has a connection of theirs.
    past: Vec<Era>,
}

/// Changed by [`Pool::pause`] and [`Pool::resume`] only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stance {
    Open { since: Instant },
    Shut,
}

impl Default for Gate {
    fn default() -> Self {
        let stance = Stance::Open { since: Instant::now() };
        Self { stance, era: Era::default(), past: Vec::new() }
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

    /// What a connection that is opened now belongs to.
    pub(super) fn era(&self) -> &Era {
        &self.era
    }

    /// Whether a connection of this era may be used by anybody else.
    pub(super) fn lets_in(&self, era: &Era) -> bool {
        self.is_open() && self.era.is(era)
    }

    fn begin_era(&mut self) {
        self.past.push(std::mem::take(&mut self.era));
        self.past.retain(|era| era.others() > 0);
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
        let (since, wait) = (Instant::now(), self.settings.wait);
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
    /// Waits until the connection is to be replaced: for whoever would keep it for good. Cancel safe.
    pub fn until_outdated(&self) -> impl Future<Output = ()> + Send + use<C> {
        let era = self.era();
        let pool = Arc::clone(self.pool());
        async move {
            let Some(era) = era else { return };
            let mut renewed = pin!(pool.renewed.notified());
            // From here on no word is missed.
            renewed.as_mut().enable();
            if era.is_of(&pool.lock().gate.era) {
                renewed.await;
            }
        }
    }
}
