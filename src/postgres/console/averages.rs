//! What was counted of each database, and averages over the last whole period. No IO.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::status::Totals;

/// Counted since the start; times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) transactions: u64,
    pub(super) requests: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) transaction_us: u64,
    pub(super) query_us: u64,
    pub(super) wait_us: u64,
}

/// Of each database at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// Since the start.
    pub(super) age: Duration,
    pub(super) counts: BTreeMap<String, Counts>,
}

/// The ends of the last whole period.
#[derive(Debug, Default)]
pub(super) struct Periods {
    before: Snapshot,
    /// None while the first is not over.
    latest: Option<Snapshot>,
}

impl Counts {
    pub(super) fn of(totals: &Totals) -> Self {
        let in_transaction = totals.query_seconds + totals.idle_in_transaction_seconds;
        Self {
            transactions: totals.transactions,
            requests: totals.requests,
            received_bytes: totals.received_bytes,
            sent_bytes: totals.sent_bytes,
            transaction_us: microseconds(in_transaction),
            query_us: microseconds(totals.query_seconds),
            wait_us: microseconds(totals.waiting_seconds),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.transactions += other.transactions;
        self.requests += other.requests;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.transaction_us += other.transaction_us;
        self.query_us += other.query_us;
        self.wait_us += other.wait_us;
    }

    /// Counts and waiting time for each second, times for each transaction and query.
    fn average(&self, before: &Self, lasted: Duration) -> Self {
        let per_second = |now: u64, then: u64| {
            let more = u128::from(now.saturating_sub(then)) * 1_000_000;
            u64::try_from(more.checked_div(lasted.as_micros()).unwrap_or(0)).unwrap_or(u64::MAX)
        };
        let each = |now: u64, then: u64, count: u64| {
            now.saturating_sub(then).checked_div(count).unwrap_or(0)
        };
        let transactions = self.transactions.saturating_sub(before.transactions);
        let requests = self.requests.saturating_sub(before.requests);
        Self {
            transactions: per_second(self.transactions, before.transactions),
            requests: per_second(self.requests, before.requests),
            received_bytes: per_second(self.received_bytes, before.received_bytes),
            sent_bytes: per_second(self.sent_bytes, before.sent_bytes),
            transaction_us: each(self.transaction_us, before.transaction_us, transactions),
            query_us: each(self.query_us, before.query_us, requests),
            wait_us: per_second(self.wait_us, before.wait_us),
        }
    }
}

impl Snapshot {
    fn of(&self, database: &str) -> Counts {
        self.counts.get(database).copied().unwrap_or_default()
    }
}

impl Periods {
    /// A period is over.
    pub(super) fn end(&mut self, now: Snapshot) {
        self.before = self.latest.replace(now).unwrap_or_default();
    }

    /// The averages of a database: over the last whole period, or since the start while there was none.
    pub(super) fn averages(&self, database: &str, now: &Snapshot) -> Counts {
        let end = self.latest.as_ref().unwrap_or(now);
        let lasted = end.age.saturating_sub(self.before.age);
        end.of(database).average(&self.before.of(database), lasted)
    }
}

/// Whole microseconds.
pub(super) fn microseconds(seconds: f64) -> u64 {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(age_seconds: u64, factor: u64) -> Snapshot {
        let counts = Counts {
            transactions: 60 * factor,
            requests: 120 * factor,
            received_bytes: 6_000 * factor,
            sent_bytes: 12_000 * factor,
            transaction_us: 600_000 * factor,
            query_us: 240_000 * factor,
            wait_us: 30_000_000 * factor,
        };
        let counts = BTreeMap::from([("app".to_owned(), counts)]);
        Snapshot { age: Duration::from_secs(age_seconds), counts }
    }

    #[test]
    fn averages_are_those_of_the_last_whole_period() {
        let mut periods = Periods::default();
        let since_start = periods.averages("app", &snapshot(30, 1));
        assert_eq!((since_start.transactions, since_start.wait_us), (2, 1_000_000));
        periods.end(snapshot(60, 1));
        periods.end(snapshot(120, 3));
        let average = periods.averages("app", &snapshot(130, 9));
        let wanted = Counts {
            transactions: 2,
            requests: 4,
            received_bytes: 200,
            sent_bytes: 400,
            transaction_us: 10_000,
            query_us: 2_000,
            wait_us: 1_000_000,
        };
        assert_eq!(average, wanted);
        assert_eq!(periods.averages("other", &snapshot(130, 9)), Counts::default());
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert_eq!(
            Counts::default().average(&Counts::default(), Duration::ZERO),
            Counts::default()
        );
        assert_eq!(microseconds(-1.0), 0);
        assert_eq!(microseconds(1.5), 1_500_000);
    }
}
