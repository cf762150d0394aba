//! The rules and bounds that sessions of a pool look at for each transaction. They may change while the sessions live, and are
//! read without a lock.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

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
