//! Who may cancel what: the keys given to clients, and the sessions that hear of a cancel request.
//!
//! A cancel request comes on a connection of its own. It only raises a flag; the session, which
//! knows what its client waits for, decides what to do: leave the queue, cancel at the server, or
//! nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use super::clients::{Card, Wanted};
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
    card: Arc<Card>,
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
    card: Arc<Card>,
    registry: Arc<CancelRegistry>,
    /// Counted by its owner for as long as the session lives.
    visit: Option<Arc<()>>,
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
        self.register_beyond(0, keys, random)
    }

    /// As [`CancelRegistry::register`], for those who may be here beyond the client limit: so many.
    ///
    /// # Errors
    /// When that is reached.
    pub fn register_beyond(
        self: &Arc<Self>,
        beyond: usize,
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
        let card = self.lock().insert(secret, beyond)?;
        let pid = card.pid();
        let handle = CancelHandle { card, registry: Arc::clone(self), visit: None };
        Ok((BackendKey { pid, secret: bytes }, handle))
    }

    /// Tells the session with this key. Unknown keys are ignored without a word, as in Postgres:
    /// the asker is anybody.
    pub fn request(&self, key: &BackendKey) {
        let card = {
            let sessions = self.lock();
            let session = sessions.by_pid.get(&key.pid);
            session
                .filter(|session| session.secret.is(&key.secret))
                .map(|session| Arc::clone(&session.card))
        };
        if let Some(card) = card {
            card.want(Wanted::CANCEL);
        }
    }

    /// Everybody who has a session or is about to have one.
    #[must_use]
    pub fn everybody(&self) -> Vec<Arc<Card>> {
        self.lock().by_pid.values().map(|session| Arc::clone(&session.card)).collect()
    }

    /// How many of them there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().by_pid.len()
    }

    /// Whether there is nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there may be.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    /// Changes it; those who are here stay.
    pub fn set_limit(&self, limit: usize) {
        self.lock().limit = limit;
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Process ids count up and start again at 1; one that is still in use is passed over.
    fn insert(&mut self, secret: Secret, beyond: usize) -> Result<Arc<Card>, Full> {
        if self.by_pid.len() >= self.limit.saturating_add(beyond) {
            return Err(Full { limit: self.limit });
        }
        loop {
            self.last_pid = self.last_pid.checked_add(1).unwrap_or(1);
            if let Entry::Vacant(free) = self.by_pid.entry(self.last_pid) {
                let card = Arc::new(Card::new(self.last_pid));
                free.insert(Session { secret, card: Arc::clone(&card) });
                return Ok(card);
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
        self.card.pid()
    }

    /// The client, as others see it.
    #[must_use]
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// Holds `visit` as long as the session lives.
    #[must_use]
    pub fn holding(self, visit: Option<Arc<()>>) -> Self {
        let mut handle = self;
        handle.visit = visit;
        handle
    }

    /// Forgets a cancel request: it has been served, or came too late for anything.
    pub fn clear(&self) {
        self.card.forget(Wanted::CANCEL);
    }
}

impl Drop for CancelHandle {
    fn drop(&mut self) {
        self.registry.lock().by_pid.remove(&self.card.pid());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

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
        assert!(
            handle.card.poll_wanted(&cx).is_pending() && other.card.poll_wanted(&cx).is_pending()
        );

        for wrong in [
            BackendKey { pid: key.pid, secret: vec![1, 1, 1, 2] },
            BackendKey { pid: key.pid, secret: vec![1; 3] },
            BackendKey { pid: key.pid, secret: Vec::new() },
            BackendKey { pid: key.pid, secret: long.secret.clone() },
            BackendKey { pid: 99, secret: key.secret.clone() },
        ] {
            registry.request(&wrong);
        }
        assert!(handle.card.poll_wanted(&cx).is_pending() && count.0.load(Ordering::SeqCst) == 0);

        registry.request(&key);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(
            handle.card.poll_wanted(&cx).is_ready() && other.card.poll_wanted(&cx).is_pending()
        );
        handle.clear();
        assert!(handle.card.poll_wanted(&cx).is_pending());
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
