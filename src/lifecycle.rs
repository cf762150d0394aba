//! Drain: stop taking work, finish what is owed, until a deadline.
//!
//! The composition root keeps the [`DrainTrigger`]; everybody else gets a [`Drain`] to look at, and
//! each live session holds a [`DrainGuard`]. A drain is over when the last guard is gone or the
//! deadline has passed, whichever comes first.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Starts the drain and waits for its end. One per process.
#[derive(Debug)]
pub struct DrainTrigger {
    shared: Arc<Shared>,
}

/// The view of a drain that is handed down. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
}

/// Held by each live session: the drain ends when the last one is dropped.
///
/// Belongs to one task: [`DrainGuard::poll_started`] keeps the waker of its first call, so that the
/// thousands of polls after it cost one load. Make the guard in the task that keeps it.
pub struct DrainGuard {
    shared: Arc<Shared>,
    slot: Option<usize>,
}

impl Drain {
    /// A drain that has not started, and the trigger that starts it.
    #[must_use]
    pub fn new() -> (DrainTrigger, Self) {
        let shared = Arc::new(Shared {
            deadline: watch::Sender::new(None),
            live: AtomicUsize::new(0),
            ended: Notify::new(),
            sleepers: Mutex::new(Sleepers::default()),
        });
        (DrainTrigger { shared: Arc::clone(&shared) }, Self { shared })
    }

    /// Whether no new work may be taken any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.deadline.borrow().is_some()
    }

    /// Waits until the drain starts. Cancel safe.
    pub async fn started(&self) {
        self.shared.wait_for_deadline().await;
    }

    /// Waits until owed work must be abandoned: the drain's start plus its grace. Cancel safe.
    pub async fn deadline(&self) {
        let deadline = self.shared.wait_for_deadline().await;
        tokio::time::sleep_until(deadline).await;
    }

    /// Counts one more live session until the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> DrainGuard {
        self.shared.live.fetch_add(1, Ordering::AcqRel);
        DrainGuard { shared: Arc::clone(&self.shared), slot: None }
    }

    /// How many sessions are alive.
    #[must_use]
    pub fn live(&self) -> usize {
        self.shared.live.load(Ordering::Acquire)
    }
}

impl DrainTrigger {
    /// Starts the drain. A second call may only bring the deadline nearer.
    pub fn start(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.shared.deadline.send_if_modified(|current| {
            let nearer = current.is_none_or(|known| deadline < known);
            if nearer {
                *current = Some(deadline);
            }
            nearer
        });
        self.shared.sleepers().wake_all();
    }

    /// Waits until the started drain has ended; `true` if everything owed was finished in time.
    /// Cancel safe. Waits for the start if nobody has started it.
    pub async fn finished(&self) -> bool {
        let mut deadlines = self.shared.deadline.subscribe();
        loop {
            let deadline = self.shared.wait_for_deadline().await;
            deadlines.mark_unchanged();
            let ended = self.shared.ended.notified();
            if self.shared.live.load(Ordering::Acquire) == 0 {
                return true;
            }
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep_until(deadline) => return false,
                // A second signal may have brought the deadline nearer.
                _ = deadlines.changed() => {}
            }
        }
    }
}

impl DrainGuard {
    /// Ready once the drain has started; for sessions that are written as a hand-made future. The
    /// task is woken once, when the drain starts.
    pub fn poll_started(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.shared.deadline.borrow().is_some() {
            return Poll::Ready(());
        }
        if self.slot.is_none() {
            self.slot = Some(self.shared.sleepers().keep(cx.waker().clone()));
            // The start may have come between the look and the keeping.
            if self.shared.deadline.borrow().is_some() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Whether no new work may be taken any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.deadline.borrow().is_some()
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.shared.sleepers().forget(slot);
        }
        if self.shared.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.ended.notify_waiters();
        }
    }
}

impl fmt::Debug for DrainGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainGuard").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    /// `None` until the drain starts.
    deadline: watch::Sender<Option<Instant>>,
    live: AtomicUsize,
    ended: Notify,
    sleepers: Mutex<Sleepers>,
}

impl Shared {
    async fn wait_for_deadline(&self) -> Instant {
        let mut deadlines = self.deadline.subscribe();
        loop {
            if let Some(deadline) = *deadlines.borrow_and_update() {
                return deadline;
            }
            // Cannot fail: the sender lives in `self`.
            let _unfailing = deadlines.changed().await;
        }
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wakers of the sessions that lie idle, by slot: bounded by the number of guards.
#[derive(Debug, Default)]
struct Sleepers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Sleepers {
    fn keep(&mut self, waker: Waker) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(waker);
                slot
            }
            None => {
                self.slots.push(Some(waker));
                self.slots.len() - 1
            }
        }
    }

    fn forget(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.free.push(slot);
    }

    fn wake_all(&mut self) {
        for waker in self.slots.iter_mut().filter_map(Option::take) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_session() {
        let (trigger, drain) = Drain::new();
        let guards = [drain.guard(), drain.guard()];
        assert_eq!((drain.live(), drain.is_draining()), (2, false));
        trigger.start(GRACE);
        assert!(drain.is_draining());
        drain.started().await;
        let begun = Instant::now();
        let finished = tokio::spawn(async move { trigger.finished().await });
        for guard in guards {
            assert!(!finished.is_finished());
            drop(guard);
            tokio::task::yield_now().await;
        }
        assert!(finished.await.unwrap());
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody waited for the deadline");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_at_its_deadline_which_only_comes_nearer() {
        let (trigger, drain) = Drain::new();
        let _guard = drain.guard();
        let begun = Instant::now();
        trigger.start(GRACE);
        trigger.start(GRACE * 2);
        assert!(!trigger.finished().await);
        drain.deadline().await;
        assert_eq!(begun.elapsed(), GRACE);
        trigger.start(Duration::ZERO);
        assert!(!trigger.finished().await);
        assert_eq!(begun.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nearer_deadline_is_seen_by_who_already_waits() {
        let (trigger, drain) = Drain::new();
        let _guard = drain.guard();
        let begun = Instant::now();
        trigger.start(GRACE);
        let (finished, ()) = tokio::join!(trigger.finished(), async { trigger.start(GRACE / 5) });
        assert!(!finished);
        assert_eq!(begun.elapsed(), GRACE / 5);
    }

    #[tokio::test]
    async fn an_empty_drain_ends_at_once() {
        let (trigger, _drain) = Drain::new();
        trigger.start(GRACE);
        assert!(trigger.finished().await);
    }

    #[test]
    fn idle_sessions_are_woken_by_the_start_and_their_slots_used_again() {
        let (trigger, drain) = Drain::new();
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let cx = Context::from_waker(&waker);
        for _ in 0..3 {
            let mut gone = drain.guard();
            assert!(gone.poll_started(&cx).is_pending());
        }
        let mut guard = drain.guard();
        assert!(guard.poll_started(&cx).is_pending());
        assert!(guard.poll_started(&cx).is_pending(), "a second look keeps one waker");
        assert_eq!(drain.shared.sleepers().slots.len(), 1);
        assert!(!flag.0.load(Ordering::SeqCst));
        trigger.start(GRACE);
        assert!(flag.0.load(Ordering::SeqCst));
        assert!(guard.poll_started(&cx).is_ready());
        assert!(drain.guard().poll_started(&cx).is_ready(), "a late one sees it at once");
    }
}
