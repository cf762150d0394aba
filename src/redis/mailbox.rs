//! Where a lane leaves a session's replies: the only thing the two share.
//!
//! A session that has gone leaves its mailbox behind with every reply still owed to it; what comes for it is dropped,
//! so nobody else ever gets it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Bytes of replies that lie in memory for clients who have not read them yet.
#[derive(Debug, Default)]
pub struct Backlog(AtomicUsize);

impl Backlog {
    fn add(&self, bytes: usize) -> usize {
        self.0.fetch_add(bytes, Ordering::Relaxed) + bytes
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

/// How much may lie in one mailbox and in all.
#[derive(Debug, Clone, Copy)]
pub struct MailLimits {
    /// One client's bytes.
    pub client_bytes: usize,
    /// All clients' bytes.
    pub total_bytes: usize,
}

/// A client with fewer bytes than this is not the one to suffer when all together have too many.
const INNOCENT_BYTES: usize = 64 * 1024;
/// From here on the lane waits a little for the client to read.
pub const SOFT_BYTES: usize = 1024 * 1024;

/// One session's mailbox.
#[derive(Debug)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    backlog: Arc<Backlog>,
}

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    owed: u32,
    state: MailState,
    session: Option<Waker>,
    /// The lane that waits for this mailbox to be emptied.
    lane: Option<Waker>,
    patience: Patience,
}

/// Whether a lane still waits for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    /// Not until the client has taken what is here.
    Spent,
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
            patience: Patience::Left,
        };
        Self { inner: Mutex::new(inner), backlog }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many replies more are owed.
    pub fn owe(&self, replies: u32) {
        let mut inner = self.lock();
        inner.owed = inner.owed.saturating_add(replies);
    }

    /// Replies that are still to come.
    #[must_use]
    pub fn owed(&self) -> u32 {
        self.lock().owed
    }

    /// Whether the session has everything that was owed to it.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let inner = self.lock();
        inner.owed == 0 && inner.bytes.is_empty()
    }

    /// The session takes what has come into its empty `out`, and is woken when there is more. Tells the state and how many
    /// replies are still to come.
    pub fn poll_take(&self, cx: &Context<'_>, out: &mut Vec<u8>) -> (MailState, u32) {
        let mut inner = self.lock();
        if out.is_empty() && !inner.bytes.is_empty() {
            std::mem::swap(out, &mut inner.bytes);
            inner.bytes = Vec::new();
            inner.patience = Patience::Left;
            if let Some(lane) = inner.lane.take() {
                lane.wake();
            }
        }
        if inner.session.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            inner.session = Some(cx.waker().clone());
        }
        (inner.state, inner.owed)
    }

    /// The lane brings bytes that end `replies` replies.
    pub fn deliver(&self, bytes: &[u8], replies: u32, limits: MailLimits) {
        let mut inner = self.lock();
        inner.owed = inner.owed.saturating_sub(replies);
        if inner.state == MailState::Open {
            inner.bytes.extend_from_slice(bytes);
            let total = self.backlog.add(bytes.len());
            let mine = inner.bytes.len();
            let too_many = total > limits.total_bytes && mine > INNOCENT_BYTES;
            if mine > limits.client_bytes || too_many {
                self.discard(&mut inner, MailState::Flooded);
            }
        }
        if let Some(session) = &inner.session {
            session.wake_by_ref();
        }
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

    /// Ready when less than [`SOFT_BYTES`] lie here, or patience was lost; the lane is woken when the session takes them.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.bytes.len() < SOFT_BYTES || inner.patience == Patience::Spent {
            return Poll::Ready(());
        }
        inner.lane = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The lane has waited long enough: it does so again when the client has read.
    pub fn lose_patience(&self) {
        self.lock().patience = Patience::Spent;
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
