//! Time summed up: of waits, loans and shortages, those that still last included, so that what happens between two
//! scrapes is never lost.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The sum of the times that many things last, which may overlap. Moments are nanoseconds of one clock.
///
/// A thing that begins at `a` and ends at `b` adds `b - a`. While it lasts only `-a` has been added, and the reader adds
/// the moment of reading for each that runs: two atomic additions a thing, no lock.
#[derive(Debug, Default)]
pub struct Meter {
    sum_ns: AtomicU64,
    running: AtomicI64,
}

impl Meter {
    /// One more runs.
    pub fn begin(&self, at_ns: u64) {
        self.running.fetch_add(1, Relaxed);
        self.sum_ns.fetch_sub(at_ns, Relaxed);
    }

    /// One of them has ended.
    pub fn end(&self, at_ns: u64) {
        self.running.fetch_sub(1, Relaxed);
        self.sum_ns.fetch_add(at_ns, Relaxed);
    }

    /// How many run.
    #[must_use]
    pub fn running(&self) -> i64 {
        self.running.load(Relaxed)
    }

    /// The sum until `at_ns`, in seconds. On several threads it may lag behind by what is being counted just then.
    #[must_use]
    pub fn seconds(&self, at_ns: u64) -> f64 {
        let running = u64::try_from(self.running().max(0)).unwrap_or(0);
        let open = running.wrapping_mul(at_ns);
        seconds(self.sum_ns.load(Relaxed).wrapping_add(open))
    }
}

/// How long at least one of several things lasted.
#[derive(Debug, Default)]
pub struct Spell(Mutex<Spells>);

#[derive(Debug, Default)]
struct Spells {
    running: u32,
    since_ns: u64,
    sum_ns: u64,
}

impl Spell {
    /// One more runs.
    pub fn begin(&self, at_ns: u64) {
        let mut spells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spells.running == 0 {
            spells.since_ns = at_ns;
        }
        spells.running += 1;
    }

    /// One of them has ended.
    pub fn end(&self, at_ns: u64) {
        let mut spells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spells.running = spells.running.saturating_sub(1);
        if spells.running == 0 {
            spells.sum_ns += at_ns.saturating_sub(spells.since_ns);
        }
    }

    /// How long until `at_ns`, in seconds.
    #[must_use]
    pub fn seconds(&self, at_ns: u64) -> f64 {
        let spells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = if spells.running > 0 { at_ns.saturating_sub(spells.since_ns) } else { 0 };
        seconds(spells.sum_ns + open)
    }
}

/// Nanoseconds as seconds; 104 days are exact, and a century to the microsecond.
#[must_use]
pub fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_meter_counts_what_overlaps_and_what_still_runs() {
        let meter = Meter::default();
        meter.begin(10 * SECOND);
        meter.begin(11 * SECOND);
        assert!(close(meter.seconds(12 * SECOND), 3.0));
        meter.end(13 * SECOND);
        assert!(close(meter.seconds(15 * SECOND), 3.0 + 4.0));
        meter.end(20 * SECOND);
        assert!(close(meter.seconds(99 * SECOND), 12.0));
        assert_eq!(meter.running(), 0);
    }

    #[test]
    fn a_spell_counts_once_what_overlaps() {
        let spell = Spell::default();
        spell.begin(SECOND);
        spell.begin(2 * SECOND);
        assert!(close(spell.seconds(3 * SECOND), 2.0));
        spell.end(4 * SECOND);
        spell.end(5 * SECOND);
        assert!(close(spell.seconds(9 * SECOND), 4.0));
        spell.begin(10 * SECOND);
        assert!(close(spell.seconds(11 * SECOND), 5.0));
    }
}
