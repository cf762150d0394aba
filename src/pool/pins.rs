//! How many lent connections may be pinned to sessions at once: all but one, unless told otherwise, so that those who pin
//! nothing are always served.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The permits to pin of one server's budget, first come, first served.
pub(super) struct Pins {
    free: Arc<Semaphore>,
    /// Permits to be taken out when they come back: the limit was lowered while they were out.
    debt: AtomicUsize,
    /// What was asked for instead of all but one.
    chosen: Mutex<Option<usize>>,
}

/// Leave to pin one connection; returned when dropped.
pub struct PinPermit {
    /// Taken only by `drop`.
    permit: Option<OwnedSemaphorePermit>,
    pins: Arc<Pins>,
}

impl Pins {
    pub(super) fn new(connections: usize, chosen: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most(connections, chosen))),
            debt: AtomicUsize::new(0),
            chosen: Mutex::new(chosen),
        })
    }

    /// The server's limit of connections has changed.
    pub(super) fn connections_changed(&self, before: usize, now: usize) {
        let chosen = *self.chosen();
        self.change(most(before, chosen), most(now, chosen));
    }

    /// Something else was asked for, with so many connections.
    pub(super) fn choose(&self, connections: usize, chosen: Option<usize>) {
        let before = std::mem::replace(&mut *self.chosen(), chosen);
        self.change(most(connections, before), most(connections, chosen));
    }

    fn chosen(&self) -> MutexGuard<'_, Option<usize>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, before: usize, now: usize) {
        if now < before {
            let missing = before - now - self.free.forget_permits(before - now);
            self.debt.fetch_add(missing, SeqCst);
            return;
        }
        let more = now - before;
        let pay = |debt: usize| Some(debt.saturating_sub(more));
        let paid = self.debt.fetch_update(SeqCst, SeqCst, pay).unwrap_or(0).min(more);
        self.free.add_permits(more - paid);
    }

    /// A permit, if one is free and nobody waits for it.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<PinPermit> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(PinPermit { permit: Some(permit), pins: Arc::clone(self) })
    }

    /// A permit, when those who came before have had theirs. Cancel safe: who gives up loses its place. `None` never
    /// comes: the semaphore is not closed.
    pub(super) async fn take(self: Arc<Self>) -> Option<PinPermit> {
        let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
        Some(PinPermit { permit: Some(permit), pins: self })
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.free.available_permits()
    }
}

/// Most pinned connections of so many: one at least, or nobody could ever pin.
fn most(connections: usize, chosen: Option<usize>) -> usize {
    chosen.unwrap_or(connections.saturating_sub(1)).min(connections).max(1)
}

impl Drop for PinPermit {
    fn drop(&mut self) {
        let owed = self.pins.debt.fetch_update(SeqCst, SeqCst, |debt| debt.checked_sub(1));
        if let (Ok(_), Some(permit)) = (owed, self.permit.take()) {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_is_left_to_the_others() {
        for (connections, chosen, expected) in
            [(5, None, 4), (2, None, 1), (1, None, 1), (5, Some(2), 2), (5, Some(9), 5)]
        {
            assert_eq!(Pins::new(connections, chosen).free(), expected);
        }
    }

    #[test]
    fn a_lowered_limit_takes_permits_when_they_come_back() {
        let pins = Pins::new(4, None);
        let out: Vec<_> = std::iter::from_fn(|| pins.try_take()).collect();
        assert_eq!(out.len(), 3);
        pins.connections_changed(4, 2);
        drop(out);
        assert_eq!(pins.free(), 1);
        pins.connections_changed(2, 4);
        assert_eq!(pins.free(), 3);
    }

    #[test]
    fn a_raised_limit_pays_the_debt_first() {
        let pins = Pins::new(4, None);
        let out: Vec<_> = std::iter::from_fn(|| pins.try_take()).collect();
        pins.connections_changed(4, 2);
        pins.connections_changed(2, 3);
        drop(out);
        assert_eq!(pins.free(), 2);
    }
}
