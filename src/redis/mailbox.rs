//! Where a lane leaves a session's replies: the only thing the two share.
//!
//! A session that has gone leaves its mailbox behind with every reply still owed to it; what comes for it is dropped,
//! so nobody else ever gets it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Bytes of replies that lie in memory for clients who have not read them yet.
#[derive(Debug, Default)]
pub struct Backlog(AtomicUsize);

impl Backlog {
    /// `bytes` lie here from now on.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` were written to their client, or dropped.
    pub fn settle(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// All of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// How much may be held for one client and for all, and how long a lane waits when it is reached.
#[derive(Debug, Clone, Copy)]
pub struct MailLimits {
    /// One client's bytes.
    pub client_bytes: usize,
    /// All clients' bytes.
    pub total_bytes: usize,
    /// So long others wait for a client that takes nothing, before it is cut.
    pub stall: Duration,
}

impl MailLimits {
    /// Whether a client that holds so many bytes is to get no more now.
    #[must_use]
    pub fn are_reached(self, held: usize, total: usize) -> bool {
        held >= self.client_bytes || (total > self.total_bytes && held > INNOCENT_BYTES)
    }

    /// From here on it gets more again.
    fn refill_bytes(self) -> usize {
        self.client_bytes.saturating_sub(SOFT_BYTES).max(self.client_bytes / 2)
    }
}

/// A client with fewer bytes than this is not the one to suffer when all together have too many.
const INNOCENT_BYTES: usize = 64 * 1024;
/// From here on the lane waits a little for the client to read.
pub const SOFT_BYTES: usize = 1024 * 1024;
/// Bytes of replies that one session may expect on a lane at once, as far as that can be known beforehand: everybody behind it
/// waits for them.
const WINDOW_BYTES: u64 = 1024 * 1024;
/// Commands of a session of whose replies nothing is known that may be on their way at once. Doubles with each round trip.
const FIRST_WINDOW: u32 = 8;
/// Replies longer than this, on average, travel apart.
const LARGE_BYTES: u64 = 128 * 1024;
/// Replies whose lengths are remembered, in about.
const REMEMBERED_REPLIES: u64 = 64;
/// Looks of a lane at a client that reads, but too slowly for those behind it, before it goes on without it.
const LOOKS: u32 = 10;

/// One session's mailbox.
#[derive(Debug)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    backlog: Arc<Backlog>,
    /// Bytes that came, and bytes that the client has taken.
    came: AtomicU64,
    taken: AtomicU64,
    /// The lane waits until fewer bytes than these are held; nought while it does not wait.
    awaited: AtomicUsize,
    /// Whether its replies are [`Size::Large`].
    large: AtomicBool,
    /// Whether [`Inner::stuck`] is set.
    stuck: AtomicBool,
    /// Whether its session stands among those who wait for a lane's room.
    calls: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    owed: u32,
    state: MailState,
    session: Option<Waker>,
    /// The lane that waits for this mailbox to be emptied.
    lane: Option<Waker>,
    /// How often the lane still looks whether the client reads; nought until the client has taken all that came.
    looks: u32,
    fill: Fill,
    window: Window,
    tail: Tail,
    /// Since when the client takes nothing of what is there for it.
    stuck: Option<Instant>,
}

/// Whether as much is held for the client as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Below,
    /// Until it has taken a good part.
    Full,
}

/// How what a lane has brought ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// With a whole reply.
    Whole,
    /// Inside a reply.
    Partial,
}

/// How many commands of one session may be on their way at once: as the replies were, of late, so the next ones will be.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// Of the latest replies.
    bytes: u64,
    replies: u64,
    /// Never more than this; grows while the session asks for more and short replies come.
    commands: u32,
    wanted: Wanted,
}

/// What a session's replies are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As most.
    Small,
    /// Others would wait for them.
    Large,
}

/// Whether the session had to stop for its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Less,
    More,
}

impl Window {
    const UNKNOWN: Self =
        Self { bytes: 256 * 1024, replies: 4, commands: FIRST_WINDOW, wanted: Wanted::Less };

    fn note(&mut self, bytes: usize, replies: u32) {
        self.bytes += u64::try_from(bytes).unwrap_or(0);
        self.replies += u64::from(replies);
        if self.replies > REMEMBERED_REPLIES {
            (self.bytes, self.replies) = (self.bytes / 2, self.replies / 2);
        }
        if self.wanted == Wanted::More {
            self.commands = self.commands.saturating_add(replies);
        }
    }

    fn average(&self) -> u64 {
        (self.bytes / self.replies).max(1)
    }

    /// What is to be expected, of one of which `before` was.
    fn size(&self, before: Size) -> Size {
        match self.average() {
            average if average > LARGE_BYTES => Size::Large,
            average if average < LARGE_BYTES / 4 => Size::Small,
            _ => before,
        }
    }

    /// How many more may be sent while `owed` are on their way.
    fn room(&mut self, depth: u32, owed: u32) -> u32 {
        let by_bytes = u32::try_from((WINDOW_BYTES / self.average()).max(1)).unwrap_or(u32::MAX);
        let most = by_bytes.min(depth);
        // What depth and bytes forbid no growth could bring.
        let stopped = owed >= self.commands && owed < most;
        self.wanted = if stopped { Wanted::More } else { Wanted::Less };
        most.min(self.commands).saturating_sub(owed)
    }
}

/// Whether a client has taken anything between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It reads.
    Some,
    /// It does not.
    None,
}

/// Whether a session that waits for room at a lane has to be called when there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// It has.
    Later,
    /// Somebody will already.
    Already,
}

/// What a session learns when it takes what has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mail {
    /// Whether it may go on.
    pub state: MailState,
    /// How many replies are still to come.
    pub owed: u32,
    /// How what was taken ends.
    pub tail: Tail,
}

impl Inner {
    fn mail(&self) -> Mail {
        Mail { state: self.state, owed: self.owed, tail: self.tail }
    }

    /// The session is woken from now on.
    fn hear(&mut self, cx: &Context<'_>) {
        if self.session.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.session = Some(cx.waker().clone());
        }
    }
}

/// Whether the session may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailState {
    /// It may.
    Open,
    /// The client did not read and too much has come for it: disconnect it.
    Flooded,
    /// The server went away in the middle of a reply, of which the client already has a part: disconnect it.
    Torn,
    /// Nobody is here any more.
    Gone,
    /// Another client has ended it.
    Killed,
}

impl Mailbox {
    /// An empty one.
    #[must_use]
    pub fn new(backlog: Arc<Backlog>) -> Self {
        let inner = Inner {
            bytes: Vec::new(),
            owed: 0,
            state: MailState::Open,
            session: None,
            lane: None,
            looks: LOOKS,
            fill: Fill::Below,
            window: Window::UNKNOWN,
            tail: Tail::Whole,
            stuck: None,
        };
        Self {
            inner: Mutex::new(inner),
            backlog,
            came: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            awaited: AtomicUsize::new(0),
            large: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            calls: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many replies more are owed.
    pub fn owe(&self, replies: u32) {
        let mut inner = self.lock();
        inner.owed = inner.owed.saturating_add(replies);
    }

    /// The session is woken by [`Mailbox::call`]. Tells whether it has to be called, or will be already.
    pub fn await_room(&self, cx: &Context<'_>) -> Called {
        self.lock().hear(cx);
        if self.calls.swap(true, Ordering::Relaxed) { Called::Already } else { Called::Later }
    }

    /// There is room for its session's commands.
    pub fn call(&self) {
        self.calls.store(false, Ordering::Relaxed);
        if let Some(session) = &self.lock().session {
            session.wake_by_ref();
        }
    }

    /// How many replies more may be owed: at most `depth` in all, and fewer if those that came of late were long.
    #[must_use]
    pub fn room(&self, depth: u32) -> u32 {
        let mut inner = self.lock();
        let owed = inner.owed;
        inner.window.room(depth, owed)
    }

    /// The client takes no more now.
    pub fn note_stuck(&self, now: Instant) {
        self.lock().stuck.get_or_insert(now);
        self.stuck.store(true, Ordering::Relaxed);
    }

    /// So long it has taken nothing, though there was something.
    #[must_use]
    pub fn stuck_for(&self, now: Instant) -> Duration {
        self.lock().stuck.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The client has taken so many bytes.
    pub fn note_taken(&self, bytes: usize) {
        if self.stuck.load(Ordering::Relaxed) {
            self.lock().stuck = None;
            self.stuck.store(false, Ordering::Relaxed);
        }
        // In one order with what the lane does in `poll_room`: one of both sees the other.
        self.taken.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::SeqCst);
        let awaited = self.awaited.load(Ordering::SeqCst);
        if awaited > 0
            && self.held() < awaited
            && let Some(lane) = self.lock().lane.take()
        {
            lane.wake();
        }
    }

    /// So many bytes that were taken wait for the client again.
    pub fn note_kept(&self, bytes: usize) {
        self.backlog.add(bytes);
        self.came.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes that came and were not taken by the client.
    fn held(&self) -> usize {
        let came = self.came.load(Ordering::Relaxed);
        usize::try_from(came.saturating_sub(self.taken())).unwrap_or(usize::MAX)
    }

    /// Bytes that the client has taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    /// What its replies were like of late.
    #[must_use]
    pub fn size(&self) -> Size {
        if self.large.load(Ordering::Relaxed) { Size::Large } else { Size::Small }
    }

    /// Whether a lane owes it something.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.lock().owed > 0
    }

    /// Whether the session has everything that was owed to it.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let inner = self.lock();
        inner.owed == 0 && inner.bytes.is_empty()
    }

    /// The session takes what has come into its empty `out`, and is woken when there is more.
    pub fn poll_take(&self, cx: &Context<'_>, out: &mut Vec<u8>) -> Mail {
        let mut inner = self.lock();
        if out.is_empty() && !inner.bytes.is_empty() {
            *out = std::mem::take(&mut inner.bytes);
        }
        inner.hear(cx);
        inner.mail()
    }

    /// As [`Mailbox::poll_take`], but takes nothing before all that is owed has come.
    pub fn poll_take_whole(&self, cx: &Context<'_>, out: &mut Vec<u8>) -> Mail {
        let mail = {
            let mut inner = self.lock();
            inner.hear(cx);
            inner.mail()
        };
        match mail.state {
            MailState::Open if mail.owed > 0 => mail,
            _ => self.poll_take(cx, out),
        }
    }

    /// The lane brings bytes that end `replies` replies.
    pub fn deliver(&self, bytes: &[u8], replies: u32, tail: Tail) {
        let mut inner = self.lock();
        if self.held() == 0 {
            inner.looks = LOOKS;
        }
        inner.tail = tail;
        inner.owed = inner.owed.saturating_sub(replies);
        inner.window.note(bytes.len(), replies);
        let before = self.size();
        let size = inner.window.size(before);
        if size != before {
            self.large.store(size == Size::Large, Ordering::Relaxed);
        }
        if inner.state == MailState::Open {
            if inner.bytes.is_empty() {
                // The one reply that most sessions wait for: no room for more.
                inner.bytes = bytes.to_vec();
            } else {
                inner.bytes.extend_from_slice(bytes);
            }
            self.backlog.add(bytes.len());
            self.came.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
        }
        if let Some(session) = &inner.session {
            session.wake_by_ref();
        }
    }

    /// Ends the session.
    pub fn kill(&self) {
        let mut inner = self.lock();
        self.discard(&mut inner, MailState::Killed);
        if let Some(session) = &inner.session {
            session.wake_by_ref();
        }
    }

    /// Whether the session may go on.
    #[must_use]
    pub fn state(&self) -> MailState {
        self.lock().state
    }

    /// The server went away in the middle of a reply, part of which was delivered: nothing more will come.
    pub fn tear(&self) {
        let mut inner = self.lock();
        if inner.state == MailState::Open {
            inner.state = MailState::Torn;
            inner.owed = 0;
        }
        if let Some(session) = &inner.session {
            session.wake_by_ref();
        }
    }

    /// Ready when the client has taken so much that it can get more: all but [`SOFT_BYTES`], or, if the others' patience is over
    /// ([`Mailbox::look`]), all but the limit. The lane is woken when it has.
    pub fn poll_room(&self, cx: &Context<'_>, limits: MailLimits) -> Poll<()> {
        let mut inner = self.lock();
        if inner.state != MailState::Open {
            return Poll::Ready(());
        }
        let held = self.held();
        let full = limits.are_reached(held, self.backlog.bytes());
        inner.fill = match inner.fill {
            _ if full => Fill::Full,
            Fill::Full if held > limits.refill_bytes() => Fill::Full,
            Fill::Full | Fill::Below => Fill::Below,
        };
        let patient = inner.looks > 0;
        let waits = inner.fill == Fill::Full || (patient && held >= SOFT_BYTES);
        let awaited = match (waits, patient) {
            (false, _) => 0,
            (true, true) => SOFT_BYTES / 2,
            (true, false) => limits.refill_bytes().min(INNOCENT_BYTES.max(held)),
        };
        self.awaited.store(awaited, Ordering::SeqCst);
        if !waits || self.held() < awaited {
            return Poll::Ready(());
        }
        inner.lane = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether others have waited long enough for the client to read: it gets what may be held for it, and no more.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.lock().looks == 0
    }

    /// Cuts the client: others wait, as much as may be is held for it, and it takes nothing.
    pub fn cut(&self) {
        let mut inner = self.lock();
        if inner.state == MailState::Open {
            self.discard(&mut inner, MailState::Flooded);
        }
        if let Some(session) = &inner.session {
            session.wake_by_ref();
        }
    }

    /// The lane has looked once more while others waited, and the client has read since, or has not: then it is not waited
    /// for until it has taken all that came.
    pub fn look(&self, progress: Progress) {
        let mut inner = self.lock();
        inner.looks = match progress {
            Progress::Some => inner.looks.saturating_sub(1),
            Progress::None => 0,
        };
    }

    /// The session gives up what is still owed to it, which is dropped when it comes; all that came is moved to `out`. Tells how
    /// that ends and how many replies are given up.
    pub fn give_up(&self, out: &mut Vec<u8>) -> (Tail, u32) {
        let mut inner = self.lock();
        out.append(&mut inner.bytes);
        let owed = std::mem::take(&mut inner.owed);
        self.discard(&mut inner, MailState::Gone);
        (inner.tail, owed)
    }

    /// The session has gone: what still comes is dropped.
    pub fn abandon(&self) {
        let mut inner = self.lock();
        inner.session = None;
        self.discard(&mut inner, MailState::Gone);
    }

    fn discard(&self, inner: &mut Inner, state: MailState) {
        self.backlog.settle(inner.bytes.len());
        inner.bytes = Vec::new();
        inner.state = state;
        if let Some(lane) = inner.lane.take() {
            lane.wake();
        }
    }
}
