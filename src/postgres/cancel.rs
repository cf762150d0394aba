//! Who may cancel what: the keys given to clients, and the sessions that hear of a cancel request.
//!
//! A cancel request comes on a connection of its own. It only raises a flag; the session, which
//! knows what its client waits for, decides what to do: leave the queue, cancel at the server, or
//! nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use foldhash::fast::RandomState;

use super::greeting::CancelKeys;
use super::message::BackendKey;

/// Bytes of a secret in protocol 3.0.
const SHORT_BYTES: usize = 4;
/// Bytes of a secret in protocol 3.2; as many as Postgres 18 gives.
const LONG_BYTES: usize = 32;

/// The live sessions by the process id that their clients were told: also the one place that counts
/// them, so that there are never more than the client limit.
#[derive(Debug)]
pub struct CancelRegistry {
    sessions: Mutex<Sessions>,
}

/// As many clients as allowed have a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} clients have a session, the most allowed")]
pub struct Full {
    /// The client limit.
    pub limit: usize,
}

#[derive(Debug)]
struct Sessions {
    limit: usize,
    by_pid: HashMap<i32, Session, RandomState>,
    last_pid: i32,
}

#[derive(Debug)]
struct Session {
    secret: Secret,
    mailbox: Arc<Mailbox>,
}

/// Inline, as there is one for every client.
#[derive(Debug)]
enum Secret {
    Short([u8; SHORT_BYTES]),
    Long(Box<[u8; LONG_BYTES]>),
}

/// Where a session hears of a cancel request. Dropped, the key is forgotten.
#[derive(Debug)]
pub struct CancelHandle {
    pid: i32,
    mailbox: Arc<Mailbox>,
    registry: Arc<CancelRegistry>,
    /// Counted by its owner for as long as the session lives.
    visit: Option<Arc<()>>,
}

#[derive(Debug, Default)]
struct Mailbox {
    requested: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl CancelRegistry {
    /// Room for `limit` sessions.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let sessions = Sessions { limit, by_pid: HashMap::default(), last_pid: 0 };
        Arc::new(Self { sessions: Mutex::new(sessions) })
    }

    /// Makes a key for a new session: for the client, and the handle for its session. `random` is
    /// fresh from the system.
    ///
    /// # Errors
    /// When the client limit is reached.
    pub fn register(
        self: &Arc<Self>,
        keys: CancelKeys,
        random: &[u8; LONG_BYTES],
    ) -> Result<(BackendKey, CancelHandle), Full> {
        let (secret, bytes) = match keys {
            CancelKeys::Short => {
                let [a, b, c, d, ..] = *random;
                (Secret::Short([a, b, c, d]), vec![a, b, c, d])
            }
            CancelKeys::Long => (Secret::Long(Box::new(*random)), random.to_vec()),
        };
        let mailbox = Arc::new(Mailbox::default());
        let pid = self.lock().insert(Session { secret, mailbox: Arc::clone(&mailbox) })?;
        let handle = CancelHandle { pid, mailbox, registry: Arc::clone(self), visit: None };
        Ok((BackendKey { pid, secret: bytes }, handle))
    }

    /// Tells the session with this key. Unknown keys are ignored without a word, as in Postgres:
    /// the asker is anybody.
    pub fn request(&self, key: &BackendKey) {
        let mailbox = {
            let sessions = self.lock();
            let session = sessions.by_pid.get(&key.pid);
            session
                .filter(|session| session.secret.is(&key.secret))
                .map(|session| Arc::clone(&session.mailbox))
        };
        if let Some(mailbox) = mailbox {
            mailbox.requested.store(true, Ordering::Release);
            let waker = mailbox.lock().take();
            waker.into_iter().for_each(Waker::wake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Process ids count up and start again at 1; one that is still in use is passed over.
    fn insert(&mut self, session: Session) -> Result<i32, Full> {
        if self.by_pid.len() >= self.limit {
            return Err(Full { limit: self.limit });
        }
        loop {
            self.last_pid = self.last_pid.checked_add(1).unwrap_or(1);
            if let Entry::Vacant(free) = self.by_pid.entry(self.last_pid) {
                free.insert(session);
                return Ok(self.last_pid);
            }
        }
    }
}

impl Secret {
    /// Compares without telling by its time where the difference is.
    fn is(&self, offered: &[u8]) -> bool {
        let known: &[u8] = match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes.as_slice(),
        };
        let difference = known.iter().zip(offered).fold(0, |all, (a, b)| all | (a ^ b));
        known.len() == offered.len() && std::hint::black_box(difference) == 0
    }
}

impl CancelHandle {
    /// The process id the client was told.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Holds `visit` as long as the session lives.
    #[must_use]
    pub fn holding(self, visit: Option<Arc<()>>) -> Self {
        let mut handle = self;
        handle.visit = visit;
        handle
    }

    /// Ready when a cancel was requested since the last [`CancelHandle::clear`]. Wakes the task of
    /// the last call.
    pub fn poll_requested(&self, cx: &Context<'_>) -> Poll<()> {
        if self.mailbox.requested.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        {
            let mut waker = self.mailbox.lock();
            match waker.as_ref() {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        // The request may have come between the look and the keeping.
        if self.mailbox.requested.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Forgets the request: it has been served, or came too late for anything.
    pub fn clear(&self) {
        self.mailbox.requested.store(false, Ordering::Release);
    }
}

impl Drop for CancelHandle {
    fn drop(&mut self) {
        self.registry.lock().by_pid.remove(&self.pid);
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_the_right_key_wakes_the_right_session() {
        let registry = CancelRegistry::new(3);
        let (key, handle) = registry.register(CancelKeys::Short, &[1; 32]).unwrap();
        let (long, other) = registry.register(CancelKeys::Long, &[1; 32]).unwrap();
        assert_eq!((key.secret.len(), long.secret.len()), (4, 32));
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        assert!(handle.poll_requested(&cx).is_pending() && other.poll_requested(&cx).is_pending());

        for wrong in [
            BackendKey { pid: key.pid, secret: vec![1, 1, 1, 2] },
            BackendKey { pid: key.pid, secret: vec![1; 3] },
            BackendKey { pid: key.pid, secret: Vec::new() },
            BackendKey { pid: key.pid, secret: long.secret.clone() },
            BackendKey { pid: 99, secret: key.secret.clone() },
        ] {
            registry.request(&wrong);
        }
        assert!(handle.poll_requested(&cx).is_pending() && count.0.load(Ordering::SeqCst) == 0);

        registry.request(&key);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(handle.poll_requested(&cx).is_ready() && other.poll_requested(&cx).is_pending());
        handle.clear();
        assert!(handle.poll_requested(&cx).is_pending());
    }

    #[test]
    fn a_key_ends_with_its_session_and_pids_come_again() {
        let registry = CancelRegistry::new(3);
        let (key, handle) = registry.register(CancelKeys::Short, &[1; 32]).unwrap();
        drop(handle);
        assert!(registry.lock().by_pid.is_empty());
        registry.request(&key);
        let (held, _handle) = registry.register(CancelKeys::Short, &[2; 32]).unwrap();
        assert_ne!(held.pid, key.pid);
        registry.lock().last_pid = i32::MAX;
        let (first, _first) = registry.register(CancelKeys::Short, &[3; 32]).unwrap();
        let (second, _second) = registry.register(CancelKeys::Short, &[4; 32]).unwrap();
        assert_eq!((first.pid, second.pid), (1, 3));
        assert_eq!(held.pid, 2);
        let full = registry.register(CancelKeys::Short, &[5; 32]);
        assert_eq!(full.err(), Some(Full { limit: 3 }));
    }
}
