//! Counters and gauges, resolved once and handed down.
//!
//! [`Metrics`] is built once; [`Metrics::pool`] resolves every handle of one pool, so that counting on the hot
//! path is one atomic add without a look-up. [`Metrics::render`] writes the Prometheus text format 0.0.4.

mod help;
mod journal;
mod lines;
mod loans;
mod meter;
mod namespace;
mod pool;
mod spread;
mod time;

pub use journal::{Journal, now_ms};
pub use lines::{Happening, Lines};
pub use loans::{Lent, LoanAccount};
pub use meter::{Meter, Spell, seconds};
pub use namespace::NamespaceMetrics;
pub use pool::PoolMetrics;
pub use time::{Outcome, Phase, Reason, Times};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use namespace::NamespaceFamilies;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use time::TimeFamilies;

/// Which of the two protocols a pool speaks: the value of the label `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Label value `postgres`.
    Postgres,
    /// Label value `redis`.
    Redis,
}

impl Protocol {
    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }
}

/// Who reads the metrics: the most waiters since the last reading are those since its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Whoever scrapes /metrics.
    Page,
    /// What sends them out.
    Push,
}

/// How sending the metrics out went: the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// They were taken.
    Taken,
    /// They were refused, and would be again.
    Refused,
    /// Whoever takes them can't just now.
    Busy,
    /// Nobody was reached, or the answer made no sense.
    Unreachable,
    /// It took too long.
    Timeout,
}

impl Sent {
    const ALL: [Self; 5] =
        [Self::Taken, Self::Refused, Self::Busy, Self::Unreachable, Self::Timeout];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
        }
    }
}

/// What became of the settings when they were read again: the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// They hold now.
    Taken,
    /// They were wrong: nothing has changed.
    Refused,
}

impl Reload {
    const ALL: [Self; 2] = [Self::Taken, Self::Refused];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
        }
    }
}

const POOL: [&str; 2] = ["protocol", "pool"];
const NAMESPACE: [&str; 3] = ["protocol", "pool", "namespace"];

type Registered<T> = Result<T, prometheus::Error>;

/// The registry and every family in it; built once by the composition root.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    pools: Mutex<BTreeMap<(Protocol, String), Arc<PoolMetrics>>>,
    journal: Arc<Journal>,
}

#[derive(Debug)]
struct Families {
    clients: IntGaugeVec,
    servers: IntGaugeVec,
    server_limit: IntGaugeVec,
    queue_length: IntGaugeVec,
    queue_length_max: IntGaugeVec,
    server_limit_configured: IntGaugeVec,
    server_reachable: IntGaugeVec,
    server_refusals: IntCounterVec,
    checkouts: IntCounterVec,
    checkout_waits: IntCounterVec,
    rejections: IntCounterVec,
    timeouts: IntCounterVec,
    leaks: IntGaugeVec,
    leaks_found: IntCounterVec,
    plan_used: IntGaugeVec,
    plan_limit: IntGaugeVec,
    times: TimeFamilies,
    transactions: IntCounterVec,
    requests: IntCounterVec,
    bytes: IntCounterVec,
    logins: IntCounterVec,
    login_failures: IntCounterVec,
    logins_limited: IntCounterVec,
    clients_aborted: IntCounterVec,
    pins: IntCounterVec,
    pin_waits: IntCounterVec,
    listen_losses: IntCounterVec,
    subscriptions: IntGaugeVec,
    subscription_losses: IntCounterVec,
    messages: IntCounterVec,
    parked: IntGaugeVec,
    elements: IntCounterVec,
    parked_losses: IntCounterVec,
    pin_timeouts: IntCounterVec,
    connect_errors: IntCounterVec,
    server_closed: IntCounterVec,
    push: IntCounterVec,
    reloads: ReloadFamilies,
    namespaces: NamespaceFamilies,
}

#[derive(Debug)]
struct ReloadFamilies {
    count: IntCounterVec,
    success: IntGauge,
}

impl ReloadFamilies {
    fn register(registry: &Registry) -> Registered<Self> {
        let opts = Opts::new("tidegate_reloads_total", help::RELOADS);
        let count = IntCounterVec::new(opts, &["outcome"])?;
        registry.register(Box::new(count.clone()))?;
        // From nought on: who looks at increases would not see the first.
        for outcome in Reload::ALL {
            count.with_label_values(&[outcome.as_str()]);
        }
        let opts = Opts::new("tidegate_reload_success_timestamp_seconds", help::RELOAD_SUCCESS);
        let success = IntGauge::with_opts(opts)?;
        registry.register(Box::new(success.clone()))?;
        success.set(seconds_now());
        Ok(Self { count, success })
    }
}

impl Families {
    fn register(registry: &Registry) -> Registered<Self> {
        let gauge = |name: &str, help: &str, extra: &[&str]| -> Registered<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &[&POOL, extra].concat())?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let counter = |name: &str, help: &str, extra: &[&str]| -> Registered<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), &[&POOL, extra].concat())?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        Ok(Self {
            clients: gauge("tidegate_clients", help::CLIENTS, &["state"])?,
            servers: gauge("tidegate_server_connections", help::SERVERS, &["state"])?,
            server_limit: gauge("tidegate_server_connections_limit", help::SERVER_LIMIT, &[])?,
            queue_length: gauge("tidegate_queue_length", help::QUEUE, &[])?,
            queue_length_max: gauge("tidegate_queue_length_max", help::QUEUE_MAX, &[])?,
            server_limit_configured: gauge(
                "tidegate_server_connections_limit_configured",
                help::SERVER_LIMIT_CONFIGURED,
                &[],
            )?,
            server_reachable: gauge("tidegate_server_reachable", help::SERVER_REACHABLE, &[])?,
            server_refusals: counter("tidegate_server_refusals_total", help::SERVER_REFUSALS, &[])?,
            checkouts: counter("tidegate_checkouts_total", help::CHECKOUTS, &[])?,
            checkout_waits: counter("tidegate_checkout_waits_total", help::CHECKOUT_WAITS, &[])?,
            rejections: counter("tidegate_rejections_total", help::REJECTIONS, &["reason"])?,
            timeouts: counter("tidegate_timeouts_total", help::TIMEOUTS, &["kind"])?,
            leaks: gauge("tidegate_leaking_clients", help::LEAKS, &[])?,
            leaks_found: counter("tidegate_leaks_total", help::LEAKS_FOUND, &[])?,
            plan_used: gauge("tidegate_plan_connections", help::PLAN_USED, &["scope"])?,
            plan_limit: gauge("tidegate_plan_connections_limit", help::PLAN_LIMIT, &["scope"])?,
            times: TimeFamilies::register(registry)?,
            transactions: counter("tidegate_transactions_total", help::TRANSACTIONS, &[])?,
            requests: counter("tidegate_requests_total", help::REQUESTS, &[])?,
            bytes: counter("tidegate_bytes_total", help::BYTES, &["peer", "direction"])?,
            logins: counter("tidegate_logins_total", help::LOGINS, &[])?,
            login_failures: counter("tidegate_login_failures_total", help::LOGIN_FAILURES, &[])?,
            logins_limited: counter(
                "tidegate_logins_limited_total",
                help::LOGINS_LIMITED,
                &["outcome"],
            )?,
            clients_aborted: counter("tidegate_clients_aborted_total", help::ABORTED, &[])?,
            pins: counter("tidegate_pins_total", help::PINS, &["reason"])?,
            pin_waits: counter("tidegate_pin_waits_total", help::PIN_WAITS, &[])?,
            pin_timeouts: counter("tidegate_pin_timeouts_total", help::PIN_TIMEOUTS, &[])?,
            listen_losses: counter("tidegate_listen_losses_total", help::LISTEN_LOSSES, &[])?,
            subscriptions: gauge("tidegate_subscriptions", help::SUBSCRIPTIONS, &[])?,
            subscription_losses: counter(
                "tidegate_subscription_losses_total",
                help::SUBSCRIPTION_LOSSES,
                &[],
            )?,
            messages: counter("tidegate_messages_total", help::MESSAGES, &[])?,
            parked: gauge("tidegate_parked_clients", help::PARKED, &[])?,
            elements: counter("tidegate_parked_elements_total", help::ELEMENTS, &["outcome"])?,
            parked_losses: counter("tidegate_parked_losses_total", help::PARKED_LOSSES, &[])?,
            connect_errors: counter("tidegate_connect_errors_total", help::CONNECT, &["code"])?,
            server_closed: counter("tidegate_server_closed_total", help::CLOSED, &["reason"])?,
            push: {
                let opts = Opts::new("tidegate_push_total", help::PUSH);
                let family = IntCounterVec::new(opts, &["outcome"])?;
                registry.register(Box::new(family.clone()))?;
                family
            },
            reloads: ReloadFamilies::register(registry)?,
            namespaces: NamespaceFamilies::register(registry)?,
        })
    }
}

impl Families {
    /// What a new pool's series begin with.
    fn begin(&self, labels: [&str; 2]) {
        self.server_reachable.with_label_values(&labels).set(1);
        // From nought on: who looks at increases would not see the first of each.
        for reason in Reason::ALL {
            self.rejections.with_label_values(&[labels[0], labels[1], reason.as_str()]);
        }
    }
}

/// By the calendar.
fn seconds_now() -> i64 {
    i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Builds the registry with every family and `tidegate_build_info`.
    ///
    /// # Errors
    /// If a family is ill-named or registered twice, which a test rules out.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let families = Families::register(&registry)?;
        let opts = Opts::new("tidegate_build_info", help::BUILD)
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(opts)?;
        build.set(1);
        registry.register(Box::new(build))?;
        Ok(Arc::new(Self { registry, families, pools: Mutex::default(), journal: Arc::default() }))
    }

    /// The handles of one pool; the same arguments give the same `Arc`.
    #[must_use]
    pub fn pool(&self, protocol: Protocol, pool: &str) -> Arc<PoolMetrics> {
        let mut pools = lock(&self.pools);
        let made = pools.entry((protocol, pool.to_owned())).or_insert_with(|| {
            Arc::new(PoolMetrics::resolve(&self.families, &self.journal, protocol, pool))
        });
        Arc::clone(made)
    }

    /// The settings were read again.
    pub fn reloaded(&self, outcome: Reload) {
        self.families.reloads.count.with_label_values(&[outcome.as_str()]).inc();
        if outcome == Reload::Taken {
            self.families.reloads.success.set(seconds_now());
        }
    }

    /// What deserved a word lately.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The handles of a namespace of a Redis pool.
    #[must_use]
    pub fn namespace(&self, pool: &str, namespace: &str) -> NamespaceMetrics {
        self.families.namespaces.resolve(pool, namespace)
    }

    /// Everything, in the Prometheus text format; begins a new period of `queue_length_max`.
    ///
    /// # Errors
    /// If a family can't be written down, which a test rules out.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.gather(Reader::Page))
    }

    /// Everything, as it is now; begins a new period of this reader's `queue_length_max`.
    #[must_use]
    pub fn gather(&self, reader: Reader) -> Vec<MetricFamily> {
        // Held until all is gathered: two readers must not see each other's periods.
        let pools = lock(&self.pools);
        for pool in pools.values() {
            pool.begin_scrape(reader);
        }
        self.registry.gather()
    }

    /// Logs what was only counted since its last line; to be called now and then.
    pub fn tell_rest(&self) {
        self.journal.tell_rest();
        for pool in lock(&self.pools).values() {
            pool.lines.tell_rest();
        }
    }

    /// The counters of sending them out, from nought on.
    #[must_use]
    pub fn push(&self) -> PushMetrics {
        let counter = |sent: Sent| self.families.push.with_label_values(&[sent.as_str()]);
        PushMetrics(Sent::ALL.map(counter))
    }
}

/// The counters of sending the metrics out.
#[derive(Debug)]
pub struct PushMetrics([IntCounter; 5]);

impl PushMetrics {
    /// It went so once more.
    pub fn count(&self, sent: Sent) {
        self.0[sent as usize].inc();
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_arguments_give_the_same_handles() {
        let metrics = Metrics::new().unwrap();
        let one = metrics.pool(Protocol::Postgres, "DATABASE_URL");
        let two = metrics.pool(Protocol::Postgres, "DATABASE_URL");
        assert!(Arc::ptr_eq(&one, &two));
        assert!(!Arc::ptr_eq(&one, &metrics.pool(Protocol::Redis, "DATABASE_URL")));
    }

    #[test]
    fn every_family_has_help_and_the_two_labels() {
        let metrics = Metrics::new().unwrap();
        let pool = metrics.pool(Protocol::Redis, "REDIS_URL");
        pool.servers_active.inc();
        pool.pin("multi", Phase::Query);
        pool.connect_error("io");
        pool.server_closed("idle");
        let text = metrics.render().unwrap();
        assert!(text.contains(concat!(
            "tidegate_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        )));
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let of_no_pool = ["build_info", "tidegate_reload"];
        for line in samples.filter(|line| !of_no_pool.iter().any(|name| line.contains(name))) {
            assert!(line.starts_with("tidegate_"), "{line}");
            assert!(line.contains("pool=\"REDIS_URL\",protocol=\"redis\""), "{line}");
        }
        assert!(text.contains(
            "tidegate_pins_total{pool=\"REDIS_URL\",protocol=\"redis\",reason=\"multi\"} 1"
        ));
        assert_eq!(
            text.matches("# HELP").count(),
            text.matches("# TYPE").count(),
            "a family without help"
        );
    }

    #[test]
    fn a_burst_between_two_scrapes_shows_once() {
        let metrics = Metrics::new().unwrap();
        let pool = metrics.pool(Protocol::Postgres, "p");
        pool.queue_changed(0, 7);
        pool.queue_changed(7, 1);
        let line = |value: i64| {
            format!("tidegate_queue_length_max{{pool=\"p\",protocol=\"postgres\"}} {value}")
        };
        assert!(metrics.render().unwrap().contains(&line(7)));
        assert!(metrics.render().unwrap().contains(&line(1)));
        pool.queue_changed(1, 0);
        assert!(metrics.render().unwrap().contains(&line(1)));
        assert!(metrics.render().unwrap().contains(&line(0)));
    }

    #[test]
    fn each_reader_sees_the_burst() {
        let metrics = Metrics::new().unwrap();
        let pool = metrics.pool(Protocol::Postgres, "p");
        pool.queue_changed(0, 7);
        pool.queue_changed(7, 0);
        for reader in [Reader::Page, Reader::Push] {
            assert!(!metrics.gather(reader).is_empty());
            assert_eq!(pool.queue_length_max.get(), 7, "{reader:?}");
            assert!(!metrics.gather(reader).is_empty());
            assert_eq!(pool.queue_length_max.get(), 0, "{reader:?}");
        }
    }

    /// Every family, whether it has a series yet or not: their names are written down where they are registered.
    #[test]
    fn every_family_is_in_the_list_for_readers() {
        let list = include_str!("../docs/metrics.md");
        let mut known = 0;
        for source in [
            include_str!("metrics.rs"),
            include_str!("metrics/namespace.rs"),
            include_str!("metrics/time.rs"),
        ] {
            let code = source.split("#[cfg(test)]").next().unwrap();
            let names = code.split("\"tidegate_").skip(1).filter_map(|rest| rest.split('"').next());
            for name in
                names.filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            {
                let row = |end: &str| list.contains(&format!("\n| `tidegate_{name}{end}"));
                assert!(row("`") || row("{"), "tidegate_{name} has no row in docs/metrics.md");
                known += 1;
            }
        }
        assert_eq!(known, list.matches("\n| `tidegate_").count(), "a row for something else");
    }

    #[test]
    fn nothing_is_told_of_sending_unless_something_is_sent() {
        let metrics = Metrics::new().unwrap();
        assert!(!metrics.render().unwrap().contains("tidegate_push_total"));
        metrics.push().count(Sent::Busy);
        let text = metrics.render().unwrap();
        assert!(text.contains("tidegate_push_total{outcome=\"busy\"} 1"), "{text}");
        assert!(text.contains("tidegate_push_total{outcome=\"taken\"} 0"), "{text}");
    }
}
