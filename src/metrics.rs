//! Counters and gauges, resolved once and handed down.
//!
//! [`Metrics`] is built once; [`Metrics::pool`] resolves every handle of one pool, so that counting on the hot
//! path is one atomic add without a look-up. [`Metrics::render`] writes the Prometheus text format 0.0.4.

mod help;
mod journal;
mod lines;
mod loans;
mod meter;
mod spread;
mod time;

pub use journal::{Journal, now_ms};
pub use lines::{Happening, Lines};
pub use loans::{Lent, LoanAccount};
pub use meter::{Meter, Spell, seconds};
pub use time::{Outcome, Phase, Reason, Times};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::status::PlanLimit;
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

#[derive(Debug)]
struct NamespaceFamilies {
    commands: IntCounterVec,
    refusals: IntCounterVec,
    bytes: IntCounterVec,
    clients: IntGaugeVec,
    pinned: IntGaugeVec,
    waits: IntCounterVec,
    flushed_keys: IntCounterVec,
    keys: IntGaugeVec,
    memory: IntGaugeVec,
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

impl NamespaceFamilies {
    fn register(registry: &Registry) -> Registered<Self> {
        let gauge = |name: &str, help: &str| -> Registered<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &NAMESPACE)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let counter = |name: &str, help: &str, extra: &[&str]| -> Registered<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), &[&NAMESPACE, extra].concat())?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        Ok(Self {
            commands: counter("tidegate_namespace_commands_total", help::NAMESPACE_COMMANDS, &[])?,
            refusals: counter(
                "tidegate_namespace_refusals_total",
                help::NAMESPACE_REFUSALS,
                &["command", "reason"],
            )?,
            bytes: counter(
                "tidegate_namespace_bytes_total",
                help::NAMESPACE_BYTES,
                &["direction"],
            )?,
            clients: gauge("tidegate_namespace_clients", help::NAMESPACE_CLIENTS)?,
            pinned: gauge("tidegate_namespace_pinned", help::NAMESPACE_PINNED)?,
            waits: counter("tidegate_namespace_waits_total", help::NAMESPACE_WAITS, &["limit"])?,
            flushed_keys: counter(
                "tidegate_namespace_flushed_keys_total",
                help::NAMESPACE_FLUSHED,
                &[],
            )?,
            keys: gauge("tidegate_namespace_keys", help::NAMESPACE_KEYS)?,
            memory: gauge("tidegate_namespace_memory_bytes", help::NAMESPACE_MEMORY)?,
        })
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
        let families = &self.families.namespaces;
        let labels = [Protocol::Redis.as_str(), pool, namespace];
        let bytes = |direction: &str| {
            families.bytes.with_label_values(&[labels[0], pool, namespace, direction])
        };
        let waits =
            |limit: &str| families.waits.with_label_values(&[labels[0], pool, namespace, limit]);
        NamespaceMetrics {
            commands: families.commands.with_label_values(&labels),
            clients: families.clients.with_label_values(&labels),
            pinned: families.pinned.with_label_values(&labels),
            waits_commands: waits("commands"),
            waits_pinned: waits("pinned"),
            flushed_keys: families.flushed_keys.with_label_values(&labels),
            bytes_received: bytes("received"),
            bytes_sent: bytes("sent"),
            keys: families.keys.with_label_values(&labels),
            memory_bytes: families.memory.with_label_values(&labels),
            pool: pool.to_owned(),
            name: namespace.to_owned(),
            refusals: families.refusals.clone(),
        }
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

/// The handles of one namespace.
#[derive(Debug)]
pub struct NamespaceMetrics {
    /// Commands of its clients.
    pub commands: IntCounter,
    /// Its clients.
    pub clients: IntGauge,
    /// Server connections that they keep for themselves.
    pub pinned: IntGauge,
    /// Waits for leave to send commands.
    pub waits_commands: IntCounter,
    /// Waits for leave to keep a connection.
    pub waits_pinned: IntCounter,
    /// Keys that its clients' flushes have removed.
    pub flushed_keys: IntCounter,
    /// Bytes read from them.
    pub bytes_received: IntCounter,
    /// Bytes written to them.
    pub bytes_sent: IntCounter,
    /// Its keys, estimated.
    pub keys: IntGauge,
    /// Their bytes, estimated.
    pub memory_bytes: IntGauge,
    pool: String,
    name: String,
    refusals: IntCounterVec,
}

impl NamespaceMetrics {
    /// A command was refused; both are short fixed words.
    pub fn refuse(&self, command: &str, reason: &str) {
        let labels = [Protocol::Redis.as_str(), &self.pool, &self.name, command, reason];
        self.refusals.with_label_values(&labels).inc();
    }
}

/// The handles of one pool. Sessions move the `clients_*` gauges, the pool moves `servers_*`, the queue and the
/// checkouts.
#[derive(Debug)]
pub struct PoolMetrics {
    /// Clients between transactions.
    pub clients_idle: IntGauge,
    /// Clients that hold a server connection.
    pub clients_active: IntGauge,
    /// Clients in the queue for a server connection.
    pub clients_waiting: IntGauge,
    /// Clients that have not logged in yet.
    pub clients_greeting: IntGauge,
    /// Server connections ready to use.
    pub servers_idle: IntGauge,
    /// Server connections lent, pinned ones and those whose client is idle in a transaction excepted.
    pub servers_active: IntGauge,
    /// Server connections whose client is idle in a transaction, pinned ones excepted.
    pub servers_idle_in_transaction: IntGauge,
    /// Server connections being opened.
    pub servers_opening: IntGauge,
    /// Server connections that stay with one client.
    pub servers_pinned: IntGauge,
    /// The budget of the upstream server.
    pub server_limit: IntGauge,
    /// The budget as it was set.
    pub server_limit_configured: IntGauge,
    /// 1, or 0 while the latest attempt to open a connection failed.
    pub server_reachable: IntGauge,
    /// Attempts to open a connection that the server refused because it was full.
    pub server_refusals: IntCounter,
    /// Waiters now.
    pub queue_length: IntGauge,
    /// Most waiters at once since the last scrape; written at the scrape.
    pub queue_length_max: IntGauge,
    /// By reader.
    queue_peaks: [AtomicI64; 2],
    /// Most waiters at once since the last sample of the pool's history.
    sample_peak: AtomicI64,
    /// Waits and loans, by the clock.
    pub times: Times,
    /// Leases handed out.
    pub checkouts: IntCounter,
    /// Checkouts that had to queue.
    pub checkout_waits: IntCounter,
    /// Clients that keep a connection without using it.
    pub leaks: IntGauge,
    /// How often one was found.
    pub leaks_found: IntCounter,
    /// Transactions finished.
    pub transactions: IntCounter,
    /// Queries or commands received.
    pub requests: IntCounter,
    /// Bytes read from clients.
    pub bytes_received_client: IntCounter,
    /// Bytes written to clients.
    pub bytes_sent_client: IntCounter,
    /// Bytes read from servers.
    pub bytes_received_server: IntCounter,
    /// Bytes written to servers.
    pub bytes_sent_server: IntCounter,
    /// Clients that logged in.
    pub logins: IntCounter,
    /// Clients turned away before they were logged in.
    pub login_failures: IntCounter,
    /// Clients that left in the middle of an exchange.
    pub clients_aborted: IntCounter,
    /// Statements that waited for leave to pin a connection.
    pub pin_waits: IntCounter,
    /// Statements that did not get it in time.
    pub pin_timeouts: IntCounter,
    /// Losses of the connection that listens for the pool.
    pub listen_losses: IntCounter,
    /// Channels and patterns that clients have subscribed to.
    pub subscriptions: IntGauge,
    /// Losses of the connection with all subscriptions.
    pub subscription_losses: IntCounter,
    /// Messages given to subscribers.
    pub messages: IntCounter,
    /// Clients that wait together for an element.
    pub parked: IntGauge,
    /// Pops of theirs that were handed to a client.
    pub elements_handed: IntCounter,
    /// Pops put back where they came from.
    pub elements_returned: IntCounter,
    /// Pops that could not be put back.
    pub elements_lost: IntCounter,
    /// Losses of a connection that waits for them.
    pub parked_losses: IntCounter,
    labelled: Labelled,
    journal: Arc<Journal>,
    /// What happens all day.
    pub lines: Lines,
    /// The limits of all budgets that the pool's connections come from, and as they were set.
    limits: Mutex<BTreeMap<usize, (usize, usize)>>,
    plans: Mutex<BTreeMap<String, (u64, u64)>>,
}

/// Rare counters with one more label: looked up when they count.
#[derive(Debug)]
struct Labelled {
    protocol: Protocol,
    pool: String,
    pins: IntCounterVec,
    connect_errors: IntCounterVec,
    server_closed: IntCounterVec,
    rejections: IntCounterVec,
    timeouts: IntCounterVec,
    plan_used: IntGaugeVec,
    plan_limit: IntGaugeVec,
}

impl PoolMetrics {
    fn resolve(
        families: &Families,
        journal: &Arc<Journal>,
        protocol: Protocol,
        pool: &str,
    ) -> Self {
        let labels = [protocol.as_str(), pool];
        let client =
            |state: &str| families.clients.with_label_values(&[labels[0], labels[1], state]);
        let server =
            |state: &str| families.servers.with_label_values(&[labels[0], labels[1], state]);
        let bytes = |peer: &str, direction: &str| {
            families.bytes.with_label_values(&[labels[0], labels[1], peer, direction])
        };
        families.begin(labels);
        let elements =
            |outcome: &str| families.elements.with_label_values(&[labels[0], labels[1], outcome]);
        Self {
            clients_idle: client("idle"),
            clients_active: client("active"),
            clients_waiting: client("waiting"),
            clients_greeting: client("greeting"),
            servers_idle: server("idle"),
            servers_active: server("active"),
            servers_idle_in_transaction: server("idle_in_transaction"),
            servers_opening: server("opening"),
            servers_pinned: server("pinned"),
            server_limit: families.server_limit.with_label_values(&labels),
            server_limit_configured: families.server_limit_configured.with_label_values(&labels),
            server_reachable: families.server_reachable.with_label_values(&labels),
            server_refusals: families.server_refusals.with_label_values(&labels),
            queue_length: families.queue_length.with_label_values(&labels),
            queue_length_max: families.queue_length_max.with_label_values(&labels),
            queue_peaks: Default::default(),
            sample_peak: AtomicI64::new(0),
            times: families.times.resolve(labels),
            checkouts: families.checkouts.with_label_values(&labels),
            checkout_waits: families.checkout_waits.with_label_values(&labels),
            leaks: families.leaks.with_label_values(&labels),
            leaks_found: families.leaks_found.with_label_values(&labels),
            transactions: families.transactions.with_label_values(&labels),
            requests: families.requests.with_label_values(&labels),
            bytes_received_client: bytes("client", "received"),
            bytes_sent_client: bytes("client", "sent"),
            bytes_received_server: bytes("server", "received"),
            bytes_sent_server: bytes("server", "sent"),
            logins: families.logins.with_label_values(&labels),
            login_failures: families.login_failures.with_label_values(&labels),
            clients_aborted: families.clients_aborted.with_label_values(&labels),
            pin_waits: families.pin_waits.with_label_values(&labels),
            pin_timeouts: families.pin_timeouts.with_label_values(&labels),
            listen_losses: families.listen_losses.with_label_values(&labels),
            subscriptions: families.subscriptions.with_label_values(&labels),
            subscription_losses: families.subscription_losses.with_label_values(&labels),
            messages: families.messages.with_label_values(&labels),
            parked: families.parked.with_label_values(&labels),
            elements_handed: elements("handed"),
            elements_returned: elements("returned"),
            elements_lost: elements("lost"),
            parked_losses: families.parked_losses.with_label_values(&labels),
            journal: Arc::clone(journal),
            lines: Lines::new(pool),
            limits: Mutex::default(),
            plans: Mutex::default(),
            labelled: Labelled {
                protocol,
                pool: pool.to_owned(),
                pins: families.pins.clone(),
                connect_errors: families.connect_errors.clone(),
                server_closed: families.server_closed.clone(),
                rejections: families.rejections.clone(),
                timeouts: families.timeouts.clone(),
                plan_used: families.plan_used.clone(),
                plan_limit: families.plan_limit.clone(),
            },
        }
    }

    /// A queue had `before` waiters and has `now`: one of several, perhaps, whose pools are counted together.
    pub fn queue_changed(&self, before: usize, now: usize) {
        let count = |waiters: usize| i64::try_from(waiters).unwrap_or(i64::MAX);
        self.queue_length.add(count(now) - count(before));
        let waiters = self.queue_length.get();
        for peak in &self.queue_peaks {
            peak.fetch_max(waiters, Ordering::Relaxed);
        }
        self.sample_peak.fetch_max(waiters, Ordering::Relaxed);
    }

    fn begin_scrape(&self, reader: Reader) {
        let peak = &self.queue_peaks[reader as usize];
        let peak = peak.swap(self.queue_length.get(), Ordering::Relaxed);
        self.queue_length_max.set(peak.max(self.queue_length.get()));
        self.times.publish();
    }

    /// Most waiters at once since this was asked last.
    #[must_use]
    pub fn take_queue_peak(&self) -> usize {
        let now = self.queue_length.get();
        let peak = self.sample_peak.swap(now, Ordering::Relaxed).max(now);
        usize::try_from(peak).unwrap_or(0)
    }

    /// A lent connection, not pinned, went from one phase to another.
    pub fn turned(&self, before: Phase, now: Phase) {
        self.lent(before).dec();
        self.lent(now).inc();
    }

    /// The gauge of lent connections in this phase; those that rest are pinned.
    #[must_use]
    pub fn lent(&self, phase: Phase) -> &IntGauge {
        match phase {
            Phase::Query | Phase::Pinned => &self.servers_active,
            Phase::IdleInTransaction => &self.servers_idle_in_transaction,
        }
    }

    /// The budget with this number allows so many connections, and was set to so many.
    pub fn limit_changed(&self, budget: usize, limit: usize, configured: usize) {
        let mut limits = lock(&self.limits);
        limits.insert(budget, (limit, configured));
        self.sum_up(&limits);
    }

    /// No pool that counts here has this budget any more.
    pub fn limit_gone(&self, budget: usize) {
        let mut limits = lock(&self.limits);
        limits.remove(&budget);
        self.sum_up(&limits);
    }

    fn sum_up(&self, limits: &BTreeMap<usize, (usize, usize)>) {
        let sum = |one: fn(&(usize, usize)) -> usize| {
            i64::try_from(limits.values().map(one).sum::<usize>()).unwrap_or(i64::MAX)
        };
        self.server_limit.set(sum(|limit| limit.0));
        self.server_limit_configured.set(sum(|limit| limit.1));
    }

    /// Something of this pool deserves a word; `kind` is a short fixed one.
    pub fn note(&self, kind: &str, message: String, hint: String) {
        self.journal.note(&self.labelled.pool, kind, message, hint);
    }

    /// A client was told no, because of `reason`.
    pub fn reject(&self, reason: Reason) {
        self.labelled.count(&self.labelled.rejections, reason.as_str());
    }

    /// How often clients were told no because of `reason`.
    #[must_use]
    pub fn rejected(&self, reason: Reason) -> u64 {
        let labels = [self.labelled.protocol.as_str(), &self.labelled.pool, reason.as_str()];
        self.labelled.rejections.with_label_values(&labels).get()
    }

    /// A limit on time has ended something; `kind` is its name without the unit.
    pub fn timed_out(&self, kind: &str) {
        self.labelled.count(&self.labelled.timeouts, kind);
    }

    /// What the server says of its limits: of each `scope`, which is `role`, `database` or `server`. Those that it doesn't
    /// name are no more.
    pub fn plan(&self, limits: &[PlanLimit]) {
        let Labelled { protocol, pool, plan_used, plan_limit, .. } = &self.labelled;
        let gauges = [plan_used, plan_limit];
        let (protocol, pool) = (protocol.as_str(), pool.as_str());
        let mut plans = lock(&self.plans);
        plans.retain(|scope, _| {
            let stays = limits.iter().any(|limit| limit.scope == *scope);
            if !stays {
                // One that is there can be removed.
                let _gone = gauges.map(|gauge| gauge.remove_label_values(&[protocol, pool, scope]));
            }
            stays
        });
        for PlanLimit { scope, used, limit } in limits {
            for (gauge, value) in gauges.into_iter().zip([*used, *limit]) {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                gauge.with_label_values(&[protocol, pool, scope]).set(value);
            }
            plans.insert(scope.clone(), (*used, *limit));
        }
    }

    /// What the server said of its limits.
    #[must_use]
    pub fn plans(&self) -> Vec<PlanLimit> {
        lock(&self.plans)
            .iter()
            .map(|(scope, (used, limit))| PlanLimit {
                scope: scope.clone(),
                used: *used,
                limit: *limit,
            })
            .collect()
    }

    /// Pins so far, by reason.
    #[must_use]
    pub fn pins(&self) -> BTreeMap<String, u64> {
        let mine = |label: &prometheus::proto::LabelPair| match label.name() {
            "pool" => label.value() == self.labelled.pool,
            "protocol" => label.value() == self.labelled.protocol.as_str(),
            _ => true,
        };
        let mut pins = BTreeMap::new();
        for family in prometheus::core::Collector::collect(&self.labelled.pins) {
            for metric in family.get_metric().iter().filter(|one| one.get_label().iter().all(mine))
            {
                let reason = metric.get_label().iter().find(|label| label.name() == "reason");
                let count = metric.get_counter().get_value();
                if let Some(reason) = reason.filter(|_| count > 0.0) {
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "a count"
                    )]
                    pins.insert(reason.value().to_owned(), count as u64);
                }
            }
        }
        pins
    }

    /// A lent server connection in this phase now stays with its client, because of `reason` (a short fixed word).
    pub fn pin(&self, reason: &str, phase: Phase) {
        self.lent(phase).dec();
        self.servers_pinned.inc();
        self.lines.tell(Happening::Pinned, format_args!("{reason}"));
        self.labelled.count(&self.labelled.pins, reason);
    }

    /// A pinned server connection in this phase is lent for one transaction again.
    pub fn unpin(&self, phase: Phase) {
        self.servers_pinned.dec();
        self.lent(phase).inc();
    }

    /// An attempt to open a server connection failed with this SQLSTATE, Redis error word, or `io`, `dns`, `tls`,
    /// `timeout`.
    pub fn connect_error(&self, code: &str) {
        self.labelled.count(&self.labelled.connect_errors, code);
    }

    /// A server connection was closed, because of `reason` (a short fixed word).
    pub fn server_closed(&self, reason: &str) {
        self.labelled.count(&self.labelled.server_closed, reason);
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Labelled {
    fn count(&self, family: &IntCounterVec, value: &str) {
        family.with_label_values(&[self.protocol.as_str(), &self.pool, value]).inc();
    }
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
        for source in [include_str!("metrics.rs"), include_str!("metrics/time.rs")] {
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
