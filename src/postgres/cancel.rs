//! Who may cancel what: the keys given to clients, and the sessions that hear of a cancel request.
//!
//! A cancel request comes on a connection of its own. It only raises a flag; the session, which
//! knows what its client waits for, decides what to do: leave the queue, cancel at the server, or
//! nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{mpsc, oneshot};

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
    elsewhere: Option<mpsc::Sender<ForeignCancel>>,
}

/// A cancel request for a session that is not here, on its way to the process that may have it.
#[derive(Debug)]
pub struct ForeignCancel {
    /// As the client said it.
    pub key: BackendKey,
    /// To be told when that process has heard of it; dropped if it can't.
    pub heard: oneshot::Sender<()>,
}

/// Longest time for another process to hear of a cancel request.
const ELSEWHERE_PATIENCE: Duration = Duration::from_secs(2);

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
    /// Of secrets longer than [`SHORT_BYTES`] what follows those: few clients ask for such.
    rests: HashMap<i32, [u8; LONG_BYTES - SHORT_BYTES], RandomState>,
    last_pid: i32,
}

/// As small as can be: there is one for every client.
#[derive(Debug)]
struct Session {
    secret: [u8; SHORT_BYTES],
    card: Arc<Card>,
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
        Self::before(limit, None)
    }

    /// The same; who is not here may be `elsewhere`.
    #[must_use]
    pub fn before(limit: usize, elsewhere: Option<mpsc::Sender<ForeignCancel>>) -> Arc<Self> {
        let (by_pid, rests) = (HashMap::default(), HashMap::default());
        let sessions = Sessions { limit, by_pid, rests, last_pid: 0 };
        Arc::new(Self { sessions: Mutex::new(sessions), elsewhere })
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
        let card = self.lock().insert(keys, random, beyond)?;
        let pid = card.pid();
        let handle = CancelHandle { card, registry: Arc::clone(self), visit: None };
        let secret = match keys {
            CancelKeys::Short => random[..SHORT_BYTES].to_vec(),
            CancelKeys::Long => random.to_vec(),
        };
        Ok((BackendKey { pid, secret }, handle))
    }

    /// Tells the session with this key, here or elsewhere; ends when it has been told. Unknown keys are ignored without a word,
    /// as in Postgres: the asker is anybody.
    pub async fn request(&self, key: &BackendKey) {
        if !self.tell(key) {
            self.pass_on(key).await;
        }
    }

    /// Tells the session with this key, if it is here: whether it is.
    pub fn tell(&self, key: &BackendKey) -> bool {
        let card = self.lock().with_key(key).map(Arc::clone);
        if let Some(card) = &card {
            card.want(Wanted::CANCEL);
        }
        card.is_some()
    }

    /// A crowd of requests is not queued: nobody is told whether one was of use.
    async fn pass_on(&self, key: &BackendKey) {
        let Some(elsewhere) = &self.elsewhere else { return };
        let (heard, told) = oneshot::channel();
        if elsewhere.try_send(ForeignCancel { key: key.clone(), heard }).is_ok() {
            // Dropped or late: there is nobody left to tell.
            let _told = tokio::time::timeout(ELSEWHERE_PATIENCE, told).await;
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
    fn insert(
        &mut self,
        keys: CancelKeys,
        random: &[u8; LONG_BYTES],
        beyond: usize,
    ) -> Result<Arc<Card>, Full> {
        if self.by_pid.len() >= self.limit.saturating_add(beyond) {
            return Err(Full { limit: self.limit });
        }
        loop {
            self.last_pid = self.last_pid.checked_add(1).unwrap_or(1);
            if let Entry::Vacant(free) = self.by_pid.entry(self.last_pid) {
                let card = Arc::new(Card::new(self.last_pid));
                let (secret, rest) = parts(random);
                free.insert(Session { secret, card: Arc::clone(&card) });
                if keys == CancelKeys::Long {
                    self.rests.insert(self.last_pid, rest);
                }
                return Ok(card);
            }
        }
    }

    fn remove(&mut self, pid: i32) {
        self.by_pid.remove(&pid);
        self.rests.remove(&pid);
    }

    /// The client that was given this key.
    fn with_key(&self, key: &BackendKey) -> Option<&Arc<Card>> {
        let session = self.by_pid.get(&key.pid)?;
        let rest = self.rests.get(&key.pid).map_or(&[][..], |rest| &rest[..]);
        let known = [&session.secret[..], rest].concat();
        is_same(&known, &key.secret).then_some(&session.card)
    }
}

/// A secret's beginning, and what only a long one has.
fn parts(random: &[u8; LONG_BYTES]) -> ([u8; SHORT_BYTES], [u8; LONG_BYTES - SHORT_BYTES]) {
    let (mut short, mut rest) = ([0; SHORT_BYTES], [0; LONG_BYTES - SHORT_BYTES]);
    short.copy_from_slice(&random[..SHORT_BYTES]);
    rest.copy_from_slice(&random[SHORT_BYTES..]);
    (short, rest)
}

/// Compares without telling by its time where the difference is.
fn is_same(known: &[u8], offered: &[u8]) -> bool {
    let difference = known.iter().zip(offered).fold(0, |all, (a, b)| all | (a ^ b));
    known.len() == offered.len() && std::hint::black_box(difference) == 0
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
        self.registry.lock().remove(self.card.pid());
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
            assert!(!registry.tell(&wrong));
        }
        assert!(handle.card.poll_wanted(&cx).is_pending() && count.0.load(Ordering::SeqCst) == 0);

        assert!(registry.tell(&key));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(
            handle.card.poll_wanted(&cx).is_ready() && other.card.poll_wanted(&cx).is_pending()
        );
        handle.clear();
        assert!(handle.card.poll_wanted(&cx).is_pending());
        registry.tell(&long);
        assert!(other.card.poll_wanted(&cx).is_ready());
        drop((handle, other));
        let sessions = registry.lock();
        assert!(sessions.by_pid.is_empty() && sessions.rests.is_empty());
    }

    #[test]
    fn a_session_takes_little_room() {
        assert_eq!(size_of::<(i32, Session)>(), 24);
        // With the counts of its Arc 128, which allocators have a size for.
        assert_eq!(size_of::<Card>(), 112);
    }

    #[tokio::test]
    async fn what_is_not_here_is_passed_on_and_waited_for() {
        let (elsewhere, mut asked) = mpsc::channel(1);
        let registry = CancelRegistry::before(3, Some(elsewhere));
        let (key, _handle) = registry.register(CancelKeys::Short, &[1; 32]).unwrap();
        registry.request(&key).await;
        assert!(asked.try_recv().is_err(), "it is here");
        let foreign = BackendKey { pid: key.pid, secret: vec![2; 4] };
        let other = async {
            let ForeignCancel { key, heard } = asked.recv().await.unwrap();
            heard.send(()).unwrap();
            key
        };
        let ((), key) = tokio::join!(registry.request(&foreign), other);
        assert_eq!(key, foreign);
        // The other process is gone: nobody waits for it.
        drop(asked);
        registry.request(&foreign).await;
    }

    #[test]
    fn a_key_ends_with_its_session_and_pids_come_again() {
        let registry = CancelRegistry::new(3);
        let (key, handle) = registry.register(CancelKeys::Short, &[1; 32]).unwrap();
        drop(handle);
        assert!(registry.lock().by_pid.is_empty());
        assert!(!registry.tell(&key));
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
