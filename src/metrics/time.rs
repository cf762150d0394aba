//! What takes time in a pool: waits, loans and shortages.

use std::sync::Arc;

use prometheus::{Counter, CounterVec, Gauge, GaugeVec, Opts, Registry};
use tokio::time::Instant;

use super::loans::{HOLDS, LoanAccount, Loans};
use super::meter::{Meter, Spell, seconds};
use super::spread::{Cells, Limits, SpreadFamily, Totals};
use super::{POOL, Registered, help};

/// Upper bounds, in nanoseconds, of waits: from "at once" to "gave up".
const WAITS: Limits = Limits(&[
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
]);

/// What a client does with the connection it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// A statement runs.
    #[default]
    Query,
    /// Nothing runs, inside a transaction.
    IdleInTransaction,
    /// Nothing runs, outside of a transaction: the connection is pinned.
    Pinned,
}

impl Phase {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Query, Self::IdleInTransaction, Self::Pinned];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::IdleInTransaction => "idle_in_transaction",
            Self::Pinned => "pinned",
        }
    }
}

/// How a wait for a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a connection.
    Ok,
    /// At its deadline.
    Timeout,
    /// At once: the queue was full.
    Refused,
    /// The server could not be reached or let nobody in, or the pool was closed.
    Failed,
    /// The client left.
    Gone,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Ok, Self::Timeout, Self::Refused, Self::Failed, Self::Gone];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }
}

/// Why a client was told no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No connection came free in time.
    WaitTimeout,
    /// As many as may be were waiting.
    QueueFull,
    /// The server was away for as long as it may wait.
    Unreachable,
    /// The server gave no connection for as long as it may wait.
    ServerFull,
    /// The server does not let tidegate in.
    ServerLogin,
    /// As many clients as may be are here.
    ClientLimit,
    /// As many connections as may be were pinned.
    PinLimit,
    /// tidegate shuts down.
    Shutdown,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::WaitTimeout,
        Self::QueueFull,
        Self::Unreachable,
        Self::ServerFull,
        Self::ServerLogin,
        Self::ClientLimit,
        Self::PinLimit,
        Self::Shutdown,
    ];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WaitTimeout => "wait_timeout",
            Self::QueueFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::ServerFull => "server_full",
            Self::ServerLogin => "server_login",
            Self::ClientLimit => "client_limit",
            Self::PinLimit => "pin_limit",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The families of what takes time.
#[derive(Debug)]
pub(super) struct TimeFamilies {
    waits: SpreadFamily,
    holds: SpreadFamily,
    busy: CounterVec,
    waiting: CounterVec,
    saturated: CounterVec,
    oldest_wait: GaugeVec,
    exhaustion: GaugeVec,
}

impl TimeFamilies {
    pub(super) fn register(registry: &Registry) -> Registered<Self> {
        let spread = |name: &str, help: &str, limits: Limits, extra: &str| {
            SpreadFamily::register(registry, (name, help), limits, &[POOL[0], POOL[1], extra])
        };
        let counter = |name: &str, help: &str, extra: &[&str]| {
            let family = CounterVec::new(Opts::new(name, help), &[&POOL, extra].concat())?;
            registry.register(Box::new(family.clone()))?;
            Registered::Ok(family)
        };
        let gauge = |name: &str, help: &str| {
            let family = GaugeVec::new(Opts::new(name, help), &POOL)?;
            registry.register(Box::new(family.clone()))?;
            Registered::Ok(family)
        };
        let waits = "tidegate_checkout_wait_seconds";
        Ok(Self {
            waits: spread(waits, help::CHECKOUT_WAIT, WAITS, "outcome")?,
            holds: spread("tidegate_server_hold_seconds", help::HOLD, HOLDS, "phase")?,
            busy: counter("tidegate_server_busy_seconds_total", help::BUSY, &["phase"])?,
            waiting: counter("tidegate_waiting_seconds_total", help::WAITING, &[])?,
            saturated: counter("tidegate_pool_saturated_seconds_total", help::SATURATED, &[])?,
            oldest_wait: gauge("tidegate_queue_oldest_wait_seconds", help::OLDEST_WAIT)?,
            exhaustion: gauge("tidegate_pool_exhaustion_seconds", help::EXHAUSTION)?,
        })
    }

    pub(super) fn resolve(&self, labels: [&str; 2]) -> Times {
        let with = |extra| [labels[0], labels[1], extra];
        let exhaustion = self.exhaustion.with_label_values(&labels);
        exhaustion.set(f64::INFINITY);
        let (loans, waits) = (Arc::<Loans>::default(), Arc::<Waits>::default());
        for phase in Phase::ALL {
            let loans = Arc::clone(&loans);
            // Only loans that are over: the time until now adds nothing.
            let read = move || loans.summary(0).holds[phase as usize].clone();
            self.holds.add(&with(phase.as_str()), Box::new(read));
        }
        for outcome in Outcome::ALL {
            let (waits, loans) = (Arc::clone(&waits), Arc::clone(&loans));
            self.waits
                .add(&with(outcome.as_str()), Box::new(move || waits.totals(outcome, &loans)));
        }
        Times {
            born: Instant::now(),
            waits,
            loans,
            busy: Phase::ALL.map(|phase| self.busy.with_label_values(&with(phase.as_str()))),
            waiting: Published {
                meter: Meter::default(),
                counter: self.waiting.with_label_values(&labels),
            },
            saturated: Published {
                meter: Spell::default(),
                counter: self.saturated.with_label_values(&labels),
            },
            oldest_wait_seconds: self.oldest_wait.with_label_values(&labels),
            exhaustion_seconds: exhaustion,
        }
    }
}

/// A sum of times, and the counter that shows it.
#[derive(Debug)]
struct Published<M> {
    meter: M,
    counter: Counter,
}

impl<M> Published<M> {
    fn publish(&self, seconds: f64) {
        raise(&self.counter, seconds);
    }
}

/// A counter never goes back, whatever two threads were at when it was read.
fn raise(counter: &Counter, seconds: f64) {
    let more = seconds - counter.get();
    if more > 0.0 {
        counter.inc_by(more);
    }
}

/// Ended waits, by outcome.
#[derive(Debug, Default)]
struct Waits([Cells; 5]);

impl Waits {
    fn totals(&self, outcome: Outcome, loans: &Loans) -> Totals {
        let mut totals = Totals::default();
        totals.add(&self.0[outcome as usize]);
        if outcome == Outcome::Ok {
            totals.add_nothings(loans.summary(0).at_once);
        }
        totals
    }
}

/// The times of one pool. Moments are nanoseconds of [`Times::now_ns`].
#[derive(Debug)]
pub struct Times {
    born: Instant,
    waits: Arc<Waits>,
    loans: Arc<Loans>,
    busy: [Counter; 3],
    waiting: Published<Meter>,
    saturated: Published<Spell>,
    oldest_wait_seconds: Gauge,
    exhaustion_seconds: Gauge,
}

impl Times {
    /// Now.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.at_ns(Instant::now())
    }

    /// A moment by its reading of the clock.
    #[must_use]
    pub fn at_ns(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A checkout that had to wait begins to.
    pub fn wait_began(&self, at_ns: u64) {
        self.waiting.meter.begin(at_ns);
    }

    /// It has ended, after so many nanoseconds.
    pub fn wait_ended(&self, began_ns: u64, at_ns: u64, outcome: Outcome) {
        self.waiting.meter.end(at_ns);
        self.waits.0[outcome as usize].add(WAITS, at_ns.saturating_sub(began_ns));
    }

    /// How many waits have ended so.
    #[must_use]
    pub fn waits(&self, outcome: Outcome) -> u64 {
        self.waits.totals(outcome, &self.loans).count()
    }

    /// The account of a connection that has been opened.
    #[must_use]
    pub fn open_account(&self) -> LoanAccount {
        self.loans.open()
    }

    /// A client waits for whom there is no connection.
    pub fn saturation_began(&self, at_ns: u64) {
        self.saturated.meter.begin(at_ns);
    }

    /// No client does any more.
    pub fn saturation_ended(&self, at_ns: u64) {
        self.saturated.meter.end(at_ns);
    }

    /// Seconds during which the pool was saturated.
    #[must_use]
    pub fn saturated_seconds(&self) -> f64 {
        self.saturated.meter.seconds(self.now_ns())
    }

    /// Seconds waited, all waits together.
    #[must_use]
    pub fn waiting_seconds(&self) -> f64 {
        self.waiting.meter.seconds(self.now_ns())
    }

    /// Seconds lent in this phase, all connections together.
    #[must_use]
    pub fn busy_seconds(&self, phase: Phase) -> f64 {
        seconds(self.loans.summary(self.now_ns()).spent_ns[phase as usize])
    }

    /// How long the first of the queue has waited.
    pub fn set_oldest_wait(&self, seconds: f64) {
        self.oldest_wait_seconds.set(seconds);
    }

    /// In how many seconds the connections will run out.
    pub fn set_exhaustion(&self, seconds: Option<f64>) {
        self.exhaustion_seconds.set(seconds.unwrap_or(f64::INFINITY));
    }

    /// Brings the counters up to now.
    pub(super) fn publish(&self) {
        let now = self.now_ns();
        for (busy, spent_ns) in self.busy.iter().zip(self.loans.summary(now).spent_ns) {
            raise(busy, seconds(spent_ns));
        }
        self.waiting.publish(self.waiting.meter.seconds(now));
        self.saturated.publish(self.saturated.meter.seconds(now));
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::{Lent, Metrics, Outcome, Protocol};

    #[test]
    fn what_still_lasts_is_in_the_counters() {
        let metrics = Metrics::new().unwrap();
        let pool = metrics.pool(Protocol::Postgres, "p");
        let times = &pool.times;
        let mut account = times.open_account();
        account.begin(0, Lent::AtOnce);
        times.wait_began(0);
        times.saturation_began(0);
        std::thread::sleep(std::time::Duration::from_millis(2));
        let text = metrics.render().unwrap();
        for name in
            ["server_busy_seconds_total", "waiting_seconds_total", "pool_saturated_seconds_total"]
        {
            let value = text
                .lines()
                .filter(|line| line.starts_with(&format!("tidegate_{name}{{")))
                .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
                .sum::<f64>();
            assert!(value > 0.001, "{name}: {value}");
        }
        times.wait_ended(0, 2_000_000_000, Outcome::Timeout);
        account.end(1_000_000);
        let text = metrics.render().unwrap();
        assert!(text.contains(
            "tidegate_checkout_wait_seconds_sum{outcome=\"timeout\",pool=\"p\",protocol=\"postgres\"} 2"
        ));
        assert!(text.contains(
            "tidegate_server_hold_seconds_count{phase=\"query\",pool=\"p\",protocol=\"postgres\"} 1"
        ));
        assert!(text.contains("tidegate_server_hold_seconds_count{phase=\"pinned\",pool=\"p\",protocol=\"postgres\"} 0"));
    }
}
