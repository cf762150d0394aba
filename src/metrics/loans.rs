//! How connections spend the time they are lent for: each keeps its own account, which is read at a scrape.
//!
//! Two loans of a connection can't overlap, so an account has one writer at a time and costs plain stores, where a sum that all
//! connections shared would cost locked instructions. What a loan has lasted for so far counts, too: a scrape is right to the
//! moment.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Phase;
use super::spread::{Cells, Limits, Totals};

/// Upper bounds, in nanoseconds, of loans: from one short statement to one that was forgotten.
pub(super) const HOLDS: Limits = Limits(&[
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    25_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
]);

/// What stands for no phase: the connection is not lent.
const AT_HOME: u64 = 3;

/// How a loan came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lent {
    /// To a checkout that did not have to wait.
    AtOnce,
    /// To one that did, or for a purpose of ours: counted elsewhere, or not at all.
    Otherwise,
}

/// The account of one connection; closed when dropped. Moments are nanoseconds of one clock.
#[derive(Debug)]
pub struct LoanAccount {
    sheet: Arc<Sheet>,
    loans: Arc<Loans>,
    phase: Phase,
    began_ns: u64,
    /// Of the present loan.
    spent_ns: [u64; 3],
}

impl LoanAccount {
    /// A loan begins, with a statement that runs.
    pub fn begin(&mut self, now_ns: u64, lent: Lent) {
        (self.phase, self.began_ns, self.spent_ns) = (Phase::Query, now_ns, [0; 3]);
        self.sheet.write(Phase::Query as u64, now_ns, None);
        if lent == Lent::AtOnce {
            add_alone(&self.sheet.at_once, 1);
        }
    }

    /// Its phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Since when it is in that.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.began_ns
    }

    /// Another phase begins.
    pub fn turn(&mut self, phase: Phase, now_ns: u64) {
        self.spend(phase as u64, now_ns);
        self.phase = phase;
    }

    /// The loan ends.
    pub fn end(&mut self, now_ns: u64) {
        self.spend(AT_HOME, now_ns);
        for (hold, spent_ns) in self.sheet.holds.iter().zip(self.spent_ns) {
            if spent_ns > 0 {
                hold.add_alone(HOLDS, spent_ns);
            }
        }
        self.phase = Phase::Query;
    }

    fn spend(&mut self, next: u64, now_ns: u64) {
        let ns = now_ns.saturating_sub(self.began_ns);
        self.spent_ns[self.phase as usize] += ns;
        self.sheet.write(next, now_ns, Some((self.phase, ns)));
        self.began_ns = now_ns;
    }
}

impl Drop for LoanAccount {
    fn drop(&mut self) {
        let mut book = self.loans.book();
        book.sheets.retain(|sheet| !Arc::ptr_eq(sheet, &self.sheet));
        book.closed.add(&self.sheet, self.sheet.spent(0));
    }
}

/// What others read of an account.
#[derive(Debug)]
struct Sheet {
    /// Odd while what follows is written.
    version: AtomicU64,
    phase: AtomicU64,
    since_ns: AtomicU64,
    spent_ns: [AtomicU64; 3],
    /// Loans that nobody waited for.
    at_once: AtomicU64,
    holds: [Cells; 3],
}

impl Sheet {
    fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            phase: AtomicU64::new(AT_HOME),
            since_ns: AtomicU64::new(0),
            spent_ns: Default::default(),
            at_once: AtomicU64::new(0),
            holds: Default::default(),
        }
    }

    /// For the account's owner alone. A sequence lock: who reads meanwhile reads again.
    fn write(&self, phase: u64, since_ns: u64, spent: Option<(Phase, u64)>) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        if let Some((before, ns)) = spent {
            add_alone(&self.spent_ns[before as usize], ns);
        }
        self.phase.store(phase, Ordering::Relaxed);
        self.since_ns.store(since_ns, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    /// The time spent in each phase until then. What began later has not lasted for less than nothing.
    fn spent(&self, now_ns: u64) -> [u64; 3] {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let phase = self.phase.load(Ordering::Relaxed);
            let since_ns = self.since_ns.load(Ordering::Relaxed);
            let mut spent =
                [0, 1, 2].map(|phase: usize| self.spent_ns[phase].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if version % 2 == 1 || self.version.load(Ordering::Relaxed) != version {
                // The writer is between two stores.
                std::thread::yield_now();
                continue;
            }
            if let Some(running) =
                usize::try_from(phase).ok().and_then(|phase| spent.get_mut(phase))
            {
                *running += now_ns.saturating_sub(since_ns);
            }
            return spent;
        }
    }
}

/// All accounts of one pool.
#[derive(Debug, Default)]
pub(super) struct Loans {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    sheets: Vec<Arc<Sheet>>,
    closed: Summary,
}

/// Accounts added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    pub(super) spent_ns: [u64; 3],
    pub(super) at_once: u64,
    pub(super) holds: [Totals; 3],
}

impl Summary {
    fn add(&mut self, sheet: &Sheet, spent_ns: [u64; 3]) {
        for (sum, spent_ns) in self.spent_ns.iter_mut().zip(spent_ns) {
            *sum += spent_ns;
        }
        self.at_once += sheet.at_once.load(Ordering::Relaxed);
        for (sum, cells) in self.holds.iter_mut().zip(&sheet.holds) {
            sum.add(cells);
        }
    }
}

impl Loans {
    /// Of a connection that has been opened.
    pub(super) fn open(self: &Arc<Self>) -> LoanAccount {
        let sheet = Arc::new(Sheet::new());
        self.book().sheets.push(Arc::clone(&sheet));
        let loans = Arc::clone(self);
        LoanAccount { sheet, loans, phase: Phase::Query, began_ns: 0, spent_ns: [0; 3] }
    }

    pub(super) fn summary(&self, now_ns: u64) -> Summary {
        let book = self.book();
        let mut summary = book.closed.clone();
        for sheet in &book.sheets {
            summary.add(sheet, sheet.spent(now_ns));
        }
        summary
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds to what only this thread writes now.
pub(super) fn add_alone(to: &AtomicU64, more: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn loans_count_while_they_last_and_after_the_connection_is_closed() {
        let loans = Arc::new(Loans::default());
        let (mut one, mut other) = (loans.open(), loans.open());
        one.begin(10 * SECOND, Lent::AtOnce);
        other.begin(11 * SECOND, Lent::Otherwise);
        assert_eq!(loans.summary(12 * SECOND).spent_ns, [3 * SECOND, 0, 0]);
        one.turn(Phase::IdleInTransaction, 13 * SECOND);
        assert_eq!(loans.summary(15 * SECOND).spent_ns, [7 * SECOND, 2 * SECOND, 0]);
        one.end(16 * SECOND);
        other.turn(Phase::Pinned, 20 * SECOND);
        drop(one);
        let summary = loans.summary(21 * SECOND);
        assert_eq!(summary.spent_ns, [12 * SECOND, 3 * SECOND, SECOND]);
        assert_eq!(summary.at_once, 1);
        assert_eq!(summary.holds[0].count(), 1, "what still lasts is in no histogram");
        assert_eq!(summary.holds[1].count(), 1);
        other.end(21 * SECOND);
        drop(other);
        let summary = loans.summary(99 * SECOND);
        assert_eq!(summary.spent_ns, [12 * SECOND, 3 * SECOND, SECOND]);
        assert_eq!(summary.holds.map(|hold| hold.count()), [2, 1, 1]);
    }

    /// A scrape on one thread, loans on another.
    #[test]
    fn what_begins_and_ends_while_it_is_read_adds_no_leap() {
        let loans = Arc::new(Loans::default());
        let mut account = loans.open();
        account.begin(SECOND, Lent::Otherwise);
        assert_eq!(loans.summary(SECOND - 1).spent_ns, [0; 3], "what began later than now");
        account.end(SECOND);
        let (at, over) = (1_000_000 * SECOND, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    account.begin(at, Lent::Otherwise);
                    account.turn(Phase::Pinned, at);
                    account.end(at);
                }
            });
            let most = (0..300_000).map(|_| loans.summary(at).spent_ns.iter().sum::<u64>()).max();
            over.store(true, Ordering::Relaxed);
            assert_eq!(most, Some(0));
        });
    }
}
