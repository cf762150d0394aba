//! Limits that some pools of a budget have in common: of a database, of a user.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// So many connections, whichever of its pools has them.
#[derive(Debug)]
pub struct Ceiling {
    limit: AtomicUsize,
    used: AtomicUsize,
}

/// One connection below some ceilings; dropping it frees the place.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Arc<Ceiling>>);

impl Ceiling {
    /// A ceiling of `limit` connections.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) })
    }

    pub(super) fn is_reached(&self) -> bool {
        self.used.load(SeqCst) >= self.limit.load(SeqCst)
    }

    /// Changes the limit. Those that are too many stay: whoever lowers it has them replaced.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, SeqCst);
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.used.load(SeqCst) > self.limit.load(SeqCst)
    }

    fn take(&self) -> bool {
        let limit = self.limit.load(SeqCst);
        let one_more = |used: usize| (used < limit).then_some(used + 1);
        self.used.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }
}

impl Places {
    /// A place below each of `ceilings`, if all have one.
    pub(super) fn take(ceilings: &[Arc<Ceiling>]) -> Option<Self> {
        let mut places = Self::default();
        for ceiling in ceilings {
            // What was taken is freed when `places` is dropped.
            if !ceiling.take() {
                return None;
            }
            places.0.push(Arc::clone(ceiling));
        }
        Some(places)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for ceiling in &self.0 {
            ceiling.used.fetch_sub(1, SeqCst);
        }
    }
}
