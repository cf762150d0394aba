//! The limits of a pool: as they are asked for, and as they are now, for they may change while the pool is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::{Ceiling, Connect, Pool};

/// The limits of one pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// The pool's name in errors, logs and metrics.
    pub name: String,
    /// Longest wait for a connection.
    pub wait: Duration,
    /// Most clients that may wait at once.
    pub queue_limit: usize,
    /// Longest time to connect and log in.
    pub connect_timeout: Duration,
    /// Longest life of a connection; zero: no limit. Kept to the second.
    pub lifetime: Duration,
    /// Longest time a connection lies idle; zero: no limit. Kept to the second.
    pub idle: Duration,
    /// Limits that it has in common with other pools.
    pub ceilings: Vec<Arc<Ceiling>>,
    /// Connections kept open though nobody needs them.
    pub idle_min: usize,
    /// By how many per cent, at most, a connection's lifetime and idle limit are cut at random, so that connections
    /// opened together don't close together.
    pub jitter_percent: u32,
}

/// A pool's limits as they are now: each is read without a lock.
#[derive(Debug)]
pub struct CurrentSettings {
    /// See [`PoolSettings::name`]. Never changes.
    pub name: String,
    pub(super) jitter_percent: u32,
    wait_ns: AtomicU64,
    queue_limit: AtomicUsize,
    connect_timeout_ns: AtomicU64,
    lifetime_ns: AtomicU64,
    idle_ns: AtomicU64,
    idle_min: AtomicUsize,
}

impl CurrentSettings {
    pub(super) fn new(settings: &PoolSettings) -> Self {
        let current = Self {
            name: settings.name.clone(),
            jitter_percent: settings.jitter_percent,
            wait_ns: AtomicU64::default(),
            queue_limit: AtomicUsize::default(),
            connect_timeout_ns: AtomicU64::default(),
            lifetime_ns: AtomicU64::default(),
            idle_ns: AtomicU64::default(),
            idle_min: AtomicUsize::default(),
        };
        current.change(settings);
        current
    }

    fn change(&self, settings: &PoolSettings) {
        self.wait_ns.store(nanos(settings.wait), Relaxed);
        self.queue_limit.store(settings.queue_limit, Relaxed);
        self.connect_timeout_ns.store(nanos(settings.connect_timeout), Relaxed);
        self.lifetime_ns.store(nanos(settings.lifetime), Relaxed);
        self.idle_ns.store(nanos(settings.idle), Relaxed);
        self.idle_min.store(settings.idle_min, Relaxed);
    }

    /// See [`PoolSettings::wait`].
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::from_nanos(self.wait_ns.load(Relaxed))
    }

    /// See [`PoolSettings::connect_timeout`].
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_nanos(self.connect_timeout_ns.load(Relaxed))
    }

    pub(super) fn queue_limit(&self) -> usize {
        self.queue_limit.load(Relaxed)
    }

    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_nanos(self.lifetime_ns.load(Relaxed))
    }

    pub(super) fn idle(&self) -> Duration {
        Duration::from_nanos(self.idle_ns.load(Relaxed))
    }

    pub(super) fn idle_min(&self) -> usize {
        self.idle_min.load(Relaxed)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<C: Connect> Pool<C> {
    /// Changes the limits, but for the name, the ceilings and the jitter. Waits that last end by the new one; lifetime and
    /// idle limit are those of connections that are opened from now on.
    pub fn reconfigure(&self, settings: &PoolSettings) {
        self.settings.change(settings);
        self.rescheduled.notify_waiters();
    }
}
