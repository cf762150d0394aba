//! Drain: stop taking work, finish what is owed, until a deadline. And notice before it: the process will end, but somebody
//! still needs it; all are served, and no server connection is kept for later.
//!
//! The composition root keeps the [`DrainTrigger`]; everybody else gets a [`Drain`] to look at, and
//! each live session holds a [`DrainGuard`]. A drain is over when the last guard is gone or the
//! deadline has passed, whichever comes first. Shortly before the deadline sessions that are left end, so that
//! their clients hear why.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

/// How long before the deadline sessions must end, to tell their clients: a quarter of the grace at most.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Starts the drain and waits for its end. One per process.
#[derive(Debug)]
pub struct DrainTrigger {
    shared: Arc<Shared>,
}

/// Asks the composition root to stop, as SIGTERM does. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StopRequest {
    wanted: Arc<Notify>,
}

impl StopRequest {
    /// Asks.
    pub fn make(&self) {
        self.wanted.notify_one();
    }

    /// Waits until somebody has asked. Cancel safe.
    pub async fn made(&self) {
        self.wanted.notified().await;
    }
}

/// Asks the composition root to read the settings again, as SIGHUP does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReloadRequest {
    asked: mpsc::Sender<ReloadAnswer>,
}

/// Where the answer goes: what deserves a word, or why nothing has changed.
pub type ReloadAnswer = oneshot::Sender<Result<Vec<String>, String>>;

impl ReloadRequest {
    /// How to ask, and where it is heard of.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ReloadAnswer>) {
        // Who asks waits for the answer: few are on their way at once.
        let (asked, heard) = mpsc::channel(1);
        (Self { asked }, heard)
    }

    /// Asks, and waits until it is done. Cancel safe: who gives up does not hear of it.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub async fn make(&self) -> Result<Vec<String>, String> {
        let (answer, answered) = oneshot::channel();
        let over = || "tidegate is shutting down".to_owned();
        self.asked.send(answer).await.map_err(|_| over())?;
        answered.await.unwrap_or_else(|_| Err(over()))
    }
}

/// What becomes of clients that come while we drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomers {
    /// They are told why they can't come in, as long as the process lives: nobody else listens where they were sent.
    Refused,
    /// The listeners are closed: somebody else may be there already.
    LeftToOthers,
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
    watch: Watch,
}

/// What wakes the guard's task next.
enum Watch {
    /// Nothing yet.
    Nothing,
    /// The start, by its place among the sleepers.
    Start(usize),
    /// The time to end.
    End(Pin<Box<Sleep>>),
    /// Nothing any more: it was told to end.
    Over,
}

/// The end of a drain.
#[derive(Clone, Copy, Debug)]
struct End {
    /// When sessions must end.
    last_words: Instant,
    deadline: Instant,
    newcomers: Newcomers,
}

impl Drain {
    /// A drain that has not started, and the trigger that starts it.
    #[must_use]
    pub fn new() -> (DrainTrigger, Self) {
        let shared = Arc::new(Shared {
            notice: watch::Sender::new(Notice::NotGiven),
            end: watch::Sender::new(None),
            started: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            cut_off: AtomicUsize::new(0),
            ended: Notify::new(),
            sleepers: Mutex::new(Sleepers::default()),
        });
        (DrainTrigger { shared: Arc::clone(&shared) }, Self { shared })
    }

    /// Whether no new work may be taken any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.started.load(Ordering::Acquire)
    }

    /// Waits until notice is given, or the drain starts without. Cancel safe.
    pub async fn noticed(&self) {
        let mut notices = self.shared.notice.subscribe();
        // Cannot fail: the sender lives in `shared`.
        let _unfailing = notices.wait_for(|notice| *notice != Notice::NotGiven).await;
    }

    /// Waits until another process has taken the listeners over, if ever. Cancel safe.
    pub async fn handed_over(&self) {
        let mut notices = self.shared.notice.subscribe();
        // Cannot fail: the sender lives in `shared`.
        let _unfailing = notices.wait_for(|notice| *notice == Notice::HandedOver).await;
    }

    /// Waits until the drain starts. Cancel safe.
    pub async fn started(&self) {
        self.shared.wait_for_end().await;
    }

    /// Waits until the listeners are to be closed, if ever. Cancel safe.
    pub async fn listeners_close(&self) {
        let left_to_others = async {
            let end = self.shared.wait_for_end().await;
            if end.newcomers == Newcomers::Refused {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.handed_over() => {}
            () = left_to_others => {}
        }
    }

    /// Waits until owed work must be abandoned: the drain's start plus its grace. Cancel safe.
    pub async fn deadline(&self) {
        let end = self.shared.wait_for_end().await;
        tokio::time::sleep_until(end.deadline).await;
    }

    /// Counts one more live session until the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> DrainGuard {
        self.shared.live.fetch_add(1, Ordering::AcqRel);
        DrainGuard { shared: Arc::clone(&self.shared), watch: Watch::Nothing }
    }

    /// How many sessions are alive.
    #[must_use]
    pub fn live(&self) -> usize {
        self.shared.live.load(Ordering::Acquire)
    }

    /// How many sessions had to end before they had finished.
    #[must_use]
    pub fn cut_off(&self) -> usize {
        self.shared.cut_off.load(Ordering::Acquire)
    }
}

impl DrainTrigger {
    /// Says that the process will end, though not yet.
    pub fn give_notice(&self) {
        self.shared.notice.send_if_modified(|notice| {
            let first = *notice == Notice::NotGiven;
            if first {
                *notice = Notice::Given;
            }
            first
        });
    }

    /// Says so, and that another process accepts in our place from now on: the listeners are closed, and whoever is here is served.
    pub fn hand_over(&self) {
        self.shared.notice.send_replace(Notice::HandedOver);
    }

    /// Starts the drain. A second call may only bring the deadline nearer.
    pub fn start(&self, grace: Duration, newcomers: Newcomers) {
        self.give_notice();
        let deadline = Instant::now() + grace;
        let end = End { last_words: deadline - LAST_WORDS.min(grace / 4), deadline, newcomers };
        self.shared.end.send_if_modified(|current| {
            let nearer = current.is_none_or(|known| end.deadline < known.deadline);
            if nearer {
                *current = Some(end);
                self.shared.started.store(true, Ordering::Release);
            }
            nearer
        });
        self.shared.sleepers().wake_all();
    }

    /// Waits until the started drain has ended; `true` if everything owed was finished in time.
    /// Cancel safe. Waits for the start if nobody has started it.
    pub async fn finished(&self) -> bool {
        let mut ends = self.shared.end.subscribe();
        loop {
            let end = self.shared.wait_for_end().await;
            ends.mark_unchanged();
            let ended = self.shared.ended.notified();
            if self.shared.live.load(Ordering::Acquire) == 0 {
                return true;
            }
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep_until(end.deadline) => return false,
                // A second signal may have brought the deadline nearer.
                _ = ends.changed() => {}
            }
        }
    }
}

impl DrainGuard {
    /// Ready once the drain has started; for sessions that are written as a hand-made future. The
    /// task is woken once, when the drain starts.
    pub fn poll_started(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.is_draining() {
            return Poll::Ready(());
        }
        if let Watch::Nothing = self.watch {
            self.watch = Watch::Start(self.shared.sleepers().keep(cx.waker().clone()));
            // The start may have come between the look and the keeping.
            if self.is_draining() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Ready, once, when the session must end, whatever is owed: the deadline is near. Wakes the task then.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Watch::Nothing | Watch::Start(_) = self.watch {
            let Some(end) = *self.shared.end.borrow() else { return Poll::Pending };
            self.forget_start();
            self.watch = Watch::End(Box::pin(tokio::time::sleep_until(end.last_words)));
        }
        let Watch::End(end) = &mut self.watch else { return Poll::Pending };
        ready!(end.as_mut().poll(cx));
        self.watch = Watch::Over;
        self.shared.cut_off.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(())
    }

    fn forget_start(&mut self) {
        if let Watch::Start(slot) = self.watch {
            self.shared.sleepers().forget(slot);
            self.watch = Watch::Nothing;
        }
    }

    /// Whether no new work may be taken any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.started.load(Ordering::Acquire)
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.forget_start();
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    NotGiven,
    Given,
    /// With the listeners gone to another process.
    HandedOver,
}

#[derive(Debug)]
struct Shared {
    notice: watch::Sender<Notice>,
    /// `None` until the drain starts.
    end: watch::Sender<Option<End>>,
    /// Whether it has, beside the channel and its lock, as each session asks in each of its turns.
    started: AtomicBool,
    live: AtomicUsize,
    /// Sessions that had to end.
    cut_off: AtomicUsize,
    ended: Notify,
    sleepers: Mutex<Sleepers>,
}

impl Shared {
    async fn wait_for_end(&self) -> End {
        let mut ends = self.end.subscribe();
        loop {
            if let Some(end) = *ends.borrow_and_update() {
                return end;
            }
            // Cannot fail: the sender lives in `self`.
            let _unfailing = ends.changed().await;
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

    use futures_util::FutureExt as _;

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
        trigger.start(GRACE, Newcomers::LeftToOthers);
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
        trigger.start(GRACE, Newcomers::LeftToOthers);
        trigger.start(GRACE * 2, Newcomers::LeftToOthers);
        assert!(!trigger.finished().await);
        drain.deadline().await;
        assert_eq!(begun.elapsed(), GRACE);
        trigger.start(Duration::ZERO, Newcomers::LeftToOthers);
        assert!(!trigger.finished().await);
        assert_eq!(begun.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nearer_deadline_is_seen_by_who_already_waits() {
        let (trigger, drain) = Drain::new();
        let _guard = drain.guard();
        let begun = Instant::now();
        trigger.start(GRACE, Newcomers::LeftToOthers);
        let (finished, ()) = tokio::join!(trigger.finished(), async {
            trigger.start(GRACE / 5, Newcomers::LeftToOthers)
        });
        assert!(!finished);
        assert_eq!(begun.elapsed(), GRACE / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_are_left_end_shortly_before_the_deadline() {
        for (grace, last_words) in [(GRACE, GRACE - LAST_WORDS), (GRACE / 50, GRACE * 3 / 200)] {
            let (trigger, drain) = Drain::new();
            let mut guard = drain.guard();
            let begun = Instant::now();
            let session = tokio::spawn(async move {
                std::future::poll_fn(|cx| guard.poll_started(cx)).await;
                std::future::poll_fn(|cx| guard.poll_over(cx)).await;
                begun.elapsed()
            });
            tokio::task::yield_now().await;
            trigger.start(grace, Newcomers::LeftToOthers);
            assert!(trigger.finished().await, "its guard is gone in time");
            assert_eq!(drain.cut_off(), 1);
            // Timers count whole milliseconds.
            let ended = session.await.unwrap();
            assert!(ended >= last_words && ended < grace, "{ended:?} of {grace:?}");
        }
    }

    #[tokio::test]
    async fn notice_comes_before_the_drain_or_with_it() {
        let (trigger, drain) = Drain::new();
        assert!(drain.noticed().now_or_never().is_none());
        trigger.give_notice();
        drain.noticed().await;
        assert!(!drain.is_draining(), "all are served");
        let (trigger, drain) = Drain::new();
        trigger.start(GRACE, Newcomers::LeftToOthers);
        drain.noticed().await;
    }

    #[tokio::test]
    async fn a_handover_closes_the_listeners_and_drains_nobody() {
        let (trigger, drain) = Drain::new();
        assert!(drain.handed_over().now_or_never().is_none());
        trigger.give_notice();
        assert!(drain.handed_over().now_or_never().is_none());
        trigger.hand_over();
        for heard in [drain.noticed().now_or_never(), drain.listeners_close().now_or_never()] {
            assert!(heard.is_some());
        }
        assert!(!drain.is_draining(), "whoever is here is served");
        trigger.start(GRACE, Newcomers::LeftToOthers);
        assert!(drain.handed_over().now_or_never().is_some(), "it stays so");
    }

    #[tokio::test]
    async fn listeners_stay_where_newcomers_are_to_be_told() {
        for (newcomers, closes) in [(Newcomers::Refused, false), (Newcomers::LeftToOthers, true)] {
            let (trigger, drain) = Drain::new();
            assert!(drain.listeners_close().now_or_never().is_none());
            trigger.start(GRACE, newcomers);
            assert_eq!(drain.listeners_close().now_or_never().is_some(), closes);
        }
    }

    #[tokio::test]
    async fn an_empty_drain_ends_at_once() {
        let (trigger, _drain) = Drain::new();
        trigger.start(GRACE, Newcomers::LeftToOthers);
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
        trigger.start(GRACE, Newcomers::LeftToOthers);
        assert!(flag.0.load(Ordering::SeqCst));
        assert!(guard.poll_started(&cx).is_ready());
        assert!(drain.guard().poll_started(&cx).is_ready(), "a late one sees it at once");
    }
}
