//! The rules and bounds that sessions of a pool look at for each transaction. They may change while the sessions live, and are
//! read without a lock.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::config::{Passing, PoolMode, PostgresLimits, Probe};

/// How a pool deals with its sessions.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// For how long clients keep a connection.
    pub mode: PoolMode,
    /// When the server is asked what a session has left.
    pub probe: Probe,
    /// How connections pass between sessions.
    pub passing: Passing,
    /// Most connections of the pool.
    pub connections: usize,
    /// Which part of them one application may have.
    pub share_percent: usize,
}

/// What is looked at for each transaction, as it is now.
#[derive(Debug, Default)]
pub struct Bounds {
    mode: AtomicU8,
    probe: AtomicU8,
    passing: AtomicU8,
    understood_frame_bytes: AtomicUsize,
    parked_bytes: AtomicUsize,
    statements_per_client: AtomicUsize,
    cleanup_timeout_ms: AtomicU64,
    slow_reader_ms: AtomicU64,
    sequence_hold_ms: AtomicU64,
}

const MODES: [PoolMode; 3] = [PoolMode::Transaction, PoolMode::Session, PoolMode::Statement];
const PROBES: [Probe; 2] = [Probe::Suspects, Probe::Always];
const PASSINGS: [Passing; 2] = [Passing::Difference, Passing::Strict];

impl Bounds {
    pub(super) fn new(rules: &Rules, limits: &PostgresLimits) -> Self {
        let bounds = Self::default();
        bounds.set(rules, limits);
        bounds
    }

    /// Changes them.
    pub(super) fn set(&self, rules: &Rules, limits: &PostgresLimits) {
        store(&self.mode, &MODES, rules.mode);
        store(&self.probe, &PROBES, rules.probe);
        store(&self.passing, &PASSINGS, rules.passing);
        self.understood_frame_bytes.store(limits.understood_frame_bytes, Relaxed);
        self.parked_bytes.store(limits.parked_bytes, Relaxed);
        self.statements_per_client.store(limits.statements_per_client, Relaxed);
        self.cleanup_timeout_ms.store(millis(limits.cleanup_timeout), Relaxed);
        self.slow_reader_ms.store(millis(limits.slow_reader), Relaxed);
        self.sequence_hold_ms.store(millis(limits.sequence_hold), Relaxed);
    }

    pub(super) fn mode(&self) -> PoolMode {
        load(&self.mode, &MODES)
    }

    pub(super) fn probe(&self) -> Probe {
        load(&self.probe, &PROBES)
    }

    pub(super) fn passing(&self) -> Passing {
        load(&self.passing, &PASSINGS)
    }

    /// Longest frame that must be understood whole, in bytes.
    #[must_use]
    pub fn understood_frame_bytes(&self) -> usize {
        self.understood_frame_bytes.load(Relaxed)
    }

    /// Most bytes kept of a client that waits for a connection.
    #[must_use]
    pub fn parked_bytes(&self) -> usize {
        self.parked_bytes.load(Relaxed)
    }

    /// Most prepared statements of one client.
    #[must_use]
    pub fn statements_per_client(&self) -> usize {
        self.statements_per_client.load(Relaxed)
    }

    /// Longest time for what is asked of the server between two transactions.
    #[must_use]
    pub fn cleanup_timeout(&self) -> Duration {
        Duration::from_millis(self.cleanup_timeout_ms.load(Relaxed))
    }

    /// Longest time a client may leave bytes unread while it holds a connection.
    #[must_use]
    pub fn slow_reader(&self) -> Duration {
        Duration::from_millis(self.slow_reader_ms.load(Relaxed))
    }

    /// For how long a session keeps its connection after it may have drawn from a sequence.
    #[must_use]
    pub fn sequence_hold(&self) -> Duration {
        Duration::from_millis(self.sequence_hold_ms.load(Relaxed))
    }
}

/// Settings are whole milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn store<T: PartialEq>(place: &AtomicU8, all: &[T], word: T) {
    let index = all.iter().position(|known| *known == word).unwrap_or_default();
    place.store(u8::try_from(index).unwrap_or_default(), Relaxed);
}

fn load<T: Copy + Default>(place: &AtomicU8, all: &[T]) -> T {
    all.get(usize::from(place.load(Relaxed))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read() {
        for (mode, probe, passing) in [
            (PoolMode::Transaction, Probe::Suspects, Passing::Difference),
            (PoolMode::Session, Probe::Always, Passing::Strict),
            (PoolMode::Statement, Probe::Always, Passing::Difference),
        ] {
            let rules = Rules { mode, probe, passing, connections: 5, share_percent: 100 };
            let limits = PostgresLimits { parked_bytes: 7, ..PostgresLimits::default() };
            let bounds = Bounds::new(&rules, &limits);
            assert_eq!((bounds.mode(), bounds.probe(), bounds.passing()), (mode, probe, passing));
            assert_eq!(bounds.parked_bytes(), 7);
        }
    }
}
