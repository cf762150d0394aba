//! Time summed up: of waits, loans and shortages, those that still last included, so that what happens between two
//! scrapes is never lost.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The sum of the times that many things last, which may overlap. Moments are nanoseconds of one clock.
///
/// A thing that begins at `a` and ends at `b` adds `b - a`. While it lasts only `-a` has been added, and the reader adds
/// the moment of reading for each that runs. A lock costs as much as two atomic additions, and lets no reader come in between.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Sum>);

#[derive(Debug, Default)]
struct Sum {
    /// Below nought by the beginnings of all that run.
    ns: i128,
    running: i64,
}

impl Meter {
    /// One more runs.
    pub fn begin(&self, at_ns: u64) {
        let mut sum = self.sum();
        sum.running += 1;
        sum.ns -= i128::from(at_ns);
    }

    /// One of them has ended.
    pub fn end(&self, at_ns: u64) {
        let mut sum = self.sum();
        sum.running -= 1;
        sum.ns += i128::from(at_ns);
    }

    /// How many run.
    #[must_use]
    pub fn running(&self) -> i64 {
        self.sum().running
    }

    /// The sum until `at_ns`, in seconds. What began after that, on another thread, has not lasted for less than nothing.
    #[must_use]
    pub fn seconds(&self, at_ns: u64) -> f64 {
        let sum = self.sum();
        let ns = sum.ns + i128::from(sum.running) * i128::from(at_ns);
        seconds(u64::try_from(ns.max(0)).unwrap_or(u64::MAX))
    }

    fn sum(&self) -> MutexGuard<'_, Sum> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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

    /// A scrape on one thread, loans on another.
    #[test]
    fn what_begins_and_ends_while_it_is_read_adds_no_leap() {
        let meter = Meter::default();
        meter.begin(SECOND);
        assert!(close(meter.seconds(SECOND - 1), 0.0), "what began later than now");
        meter.end(SECOND);
        let (at, over) = (1_000_000 * SECOND, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    meter.begin(at);
                    meter.end(at);
                }
            });
            let most = (0..1_000_000).map(|_| meter.seconds(at)).fold(0.0, f64::max);
            over.store(true, Relaxed);
            assert!(close(most, 0.0), "{most}");
        });
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
