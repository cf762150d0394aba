//! Counters and gauges, resolved once and handed down.
//!
//! [`Metrics`] is built once; [`Metrics::pool`] resolves every handle of one pool, so that counting on the hot
//! path is one atomic add without a look-up. [`Metrics::render`] writes the Prometheus text format 0.0.4.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

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

/// Upper bounds, in seconds, of the checkout wait histogram: from "at once" to "gave up".
const WAIT_BUCKETS: [f64; 14] =
    [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const POOL: [&str; 2] = ["protocol", "pool"];
const NAMESPACE: [&str; 3] = ["protocol", "pool", "namespace"];

type Registered<T> = Result<T, prometheus::Error>;

/// The registry and every family in it; built once by the composition root.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    pools: Mutex<BTreeMap<(Protocol, String), Arc<PoolMetrics>>>,
}

#[derive(Debug)]
struct Families {
    clients: IntGaugeVec,
    servers: IntGaugeVec,
    server_limit: IntGaugeVec,
    queue_length: IntGaugeVec,
    queue_length_max: IntGaugeVec,
    checkout_wait_seconds: HistogramVec,
    checkouts: IntCounterVec,
    checkout_timeouts: IntCounterVec,
    checkout_refusals: IntCounterVec,
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
    namespaces: NamespaceFamilies,
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
        let waits = HistogramOpts::new("tidegate_checkout_wait_seconds", help::CHECKOUT_WAIT)
            .buckets(WAIT_BUCKETS.to_vec());
        let checkout_wait_seconds = HistogramVec::new(waits, &POOL)?;
        registry.register(Box::new(checkout_wait_seconds.clone()))?;
        Ok(Self {
            clients: gauge("tidegate_clients", help::CLIENTS, &["state"])?,
            servers: gauge("tidegate_server_connections", help::SERVERS, &["state"])?,
            server_limit: gauge("tidegate_server_connections_limit", help::SERVER_LIMIT, &[])?,
            queue_length: gauge("tidegate_queue_length", help::QUEUE, &[])?,
            queue_length_max: gauge("tidegate_queue_length_max", help::QUEUE_MAX, &[])?,
            checkout_wait_seconds,
            checkouts: counter("tidegate_checkouts_total", help::CHECKOUTS, &[])?,
            checkout_timeouts: counter("tidegate_checkout_timeouts_total", help::TIMEOUTS, &[])?,
            checkout_refusals: counter("tidegate_checkout_refusals_total", help::REFUSALS, &[])?,
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
            namespaces: NamespaceFamilies::register(registry)?,
        })
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

/// What each family counts, for whoever reads /metrics the first time.
mod help {
    pub(super) const CLIENTS: &str = "Clients connected to tidegate, by what they do now: idle (no transaction), active (holding a server connection), waiting (in the queue for one), greeting (not yet logged in).";
    pub(super) const SERVERS: &str = "Connections from tidegate to the server, by state: idle (ready to use), active (lent for one transaction or command), pinned (kept by one client across transactions), opening (connecting and logging in).";
    pub(super) const SERVER_LIMIT: &str =
        "Most connections tidegate may have open to the upstream server, all its pools together.";
    pub(super) const QUEUE: &str = "Clients waiting for a server connection now.";
    pub(super) const QUEUE_MAX: &str = "Most clients that waited at the same time since the last scrape of this page: shows bursts that began and ended between two scrapes.";
    pub(super) const CHECKOUT_WAIT: &str = "Seconds a client waited for a server connection; 0 if one was free. Waits that ended in an error or a hang-up are included.";
    pub(super) const CHECKOUTS: &str = "Server connections lent to clients.";
    pub(super) const TIMEOUTS: &str =
        "Waits given up because no server connection came free in time.";
    pub(super) const REFUSALS: &str =
        "Clients refused at once because the queue for a server connection was full.";
    pub(super) const PIN_WAITS: &str =
        "Statements that waited because as many server connections as may be were pinned.";
    pub(super) const PIN_TIMEOUTS: &str = "Statements refused after that wait.";
    pub(super) const LISTEN_LOSSES: &str = "Losses of the server connection that listens for a pool: notifications may have been missed.";
    pub(super) const SUBSCRIPTIONS: &str =
        "Channels and patterns that Redis clients have subscribed to, all clients together.";
    pub(super) const SUBSCRIPTION_LOSSES: &str = "Losses of the server connection with all subscriptions: messages may have been missed before it was replaced.";
    pub(super) const MESSAGES: &str = "Messages given to Redis clients that have subscribed.";
    pub(super) const PARKED: &str = "Redis clients that wait for an element (BLPOP and the like) without a server connection of their own.";
    pub(super) const ELEMENTS: &str = "Times something came for Redis clients that wait together, by outcome: handed (to the client), returned (put back, because nobody waited for it any more), lost (could not be put back).";
    pub(super) const PARKED_LOSSES: &str = "Losses of a server connection that waited on behalf of Redis clients: they wait on over a new one.";
    pub(super) const TRANSACTIONS: &str =
        "Transactions finished: for Postgres lone statements, too; for Redis those that EXEC ran.";
    pub(super) const REQUESTS: &str =
        "Queries (Postgres) or commands (Redis) received from clients.";
    pub(super) const BYTES: &str = "Bytes carried, by peer (client or server) and direction (received or sent, as tidegate sees it).";
    pub(super) const LOGINS: &str = "Clients that logged in.";
    pub(super) const LOGIN_FAILURES: &str = "Clients turned away at login: wrong password, unknown user or database, malformed or too slow greeting.";
    pub(super) const ABORTED: &str =
        "Clients that went away in the middle of a transaction or with replies still owed.";
    pub(super) const PINS: &str = "Times a server connection had to stay with one client beyond a transaction, by reason. A pinned connection serves nobody else.";
    pub(super) const CONNECT: &str = "Failed attempts to open a server connection, by code: the server's error code, or io, dns, tls, timeout.";
    pub(super) const CLOSED: &str = "Server connections closed, by reason.";
    pub(super) const NAMESPACE_COMMANDS: &str = "Redis commands of clients of a namespace.";
    pub(super) const NAMESPACE_REFUSALS: &str = "Redis commands refused in a namespace, by command and reason: key, channel, pattern (named something outside), command, script, read_only, size.";
    pub(super) const NAMESPACE_BYTES: &str = "Bytes carried for clients of a namespace, by direction (received or sent, as tidegate sees it).";
    pub(super) const NAMESPACE_CLIENTS: &str = "Clients of a namespace now.";
    pub(super) const NAMESPACE_PINNED: &str =
        "Clients of a namespace that keep a server connection for themselves now, or wait for one.";
    pub(super) const NAMESPACE_WAITS: &str = "Times a client of a namespace had to wait for a limit of it: commands (commands_per_second) or pinned (pinned_limit).";
    pub(super) const NAMESPACE_FLUSHED: &str =
        "Keys of a namespace removed by FLUSHDB and FLUSHALL of its clients; grows while they run.";
    pub(super) const NAMESPACE_KEYS: &str =
        "Keys of a namespace, as estimated from a sample of the database's keys.";
    pub(super) const NAMESPACE_MEMORY: &str =
        "Bytes that a namespace's keys take in Redis, as estimated from a sample.";
    pub(super) const BUILD: &str = "Always 1; the label says which version of tidegate runs.";
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
        Ok(Arc::new(Self { registry, families, pools: Mutex::default() }))
    }

    /// The handles of one pool; the same arguments give the same `Arc`.
    #[must_use]
    pub fn pool(&self, protocol: Protocol, pool: &str) -> Arc<PoolMetrics> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let made = pools
            .entry((protocol, pool.to_owned()))
            .or_insert_with(|| Arc::new(PoolMetrics::resolve(&self.families, protocol, pool)));
        Arc::clone(made)
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
        for pool in self.pools.lock().unwrap_or_else(PoisonError::into_inner).values() {
            pool.begin_scrape();
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
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
    /// Server connections lent, pinned ones excepted.
    pub servers_active: IntGauge,
    /// Server connections being opened.
    pub servers_opening: IntGauge,
    /// Server connections that stay with one client.
    pub servers_pinned: IntGauge,
    /// The budget of the upstream server.
    pub server_limit: IntGauge,
    /// Waiters now.
    pub queue_length: IntGauge,
    /// Most waiters at once since the last scrape; written at the scrape.
    pub queue_length_max: IntGauge,
    queue_peak: AtomicI64,
    /// Seconds from asking to getting a lease or an error, or to hanging up.
    pub checkout_wait_seconds: Histogram,
    /// Leases handed out.
    pub checkouts: IntCounter,
    /// Waits that reached their deadline.
    pub checkout_timeouts: IntCounter,
    /// Checkouts refused because the queue was full.
    pub checkout_refusals: IntCounter,
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
}

/// Rare counters with one more label: looked up when they count.
#[derive(Debug)]
struct Labelled {
    protocol: Protocol,
    pool: String,
    pins: IntCounterVec,
    connect_errors: IntCounterVec,
    server_closed: IntCounterVec,
}

impl PoolMetrics {
    fn resolve(families: &Families, protocol: Protocol, pool: &str) -> Self {
        let labels = [protocol.as_str(), pool];
        let client =
            |state: &str| families.clients.with_label_values(&[labels[0], labels[1], state]);
        let server =
            |state: &str| families.servers.with_label_values(&[labels[0], labels[1], state]);
        let bytes = |peer: &str, direction: &str| {
            families.bytes.with_label_values(&[labels[0], labels[1], peer, direction])
        };
        let elements =
            |outcome: &str| families.elements.with_label_values(&[labels[0], labels[1], outcome]);
        Self {
            clients_idle: client("idle"),
            clients_active: client("active"),
            clients_waiting: client("waiting"),
            clients_greeting: client("greeting"),
            servers_idle: server("idle"),
            servers_active: server("active"),
            servers_opening: server("opening"),
            servers_pinned: server("pinned"),
            server_limit: families.server_limit.with_label_values(&labels),
            queue_length: families.queue_length.with_label_values(&labels),
            queue_length_max: families.queue_length_max.with_label_values(&labels),
            queue_peak: AtomicI64::new(0),
            checkout_wait_seconds: families.checkout_wait_seconds.with_label_values(&labels),
            checkouts: families.checkouts.with_label_values(&labels),
            checkout_timeouts: families.checkout_timeouts.with_label_values(&labels),
            checkout_refusals: families.checkout_refusals.with_label_values(&labels),
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
            labelled: Labelled {
                protocol,
                pool: pool.to_owned(),
                pins: families.pins.clone(),
                connect_errors: families.connect_errors.clone(),
                server_closed: families.server_closed.clone(),
            },
        }
    }

    /// The queue has this many waiters now.
    pub fn queue_changed(&self, waiters: usize) {
        let waiters = i64::try_from(waiters).unwrap_or(i64::MAX);
        self.queue_length.set(waiters);
        self.queue_peak.fetch_max(waiters, Ordering::Relaxed);
    }

    fn begin_scrape(&self) {
        let peak = self.queue_peak.swap(self.queue_length.get(), Ordering::Relaxed);
        self.queue_length_max.set(peak.max(self.queue_length.get()));
    }

    /// A lent server connection now stays with its client, because of `reason` (a short fixed word).
    pub fn pin(&self, reason: &str) {
        self.servers_active.dec();
        self.servers_pinned.inc();
        self.labelled.count(&self.labelled.pins, reason);
    }

    /// A pinned server connection is lent for one transaction again.
    pub fn unpin(&self) {
        self.servers_pinned.dec();
        self.servers_active.inc();
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
        pool.pin("multi");
        pool.connect_error("io");
        pool.server_closed("idle");
        let text = metrics.render().unwrap();
        assert!(text.contains(concat!(
            "tidegate_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        )));
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        for line in samples.filter(|line| !line.contains("build_info")) {
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
        pool.queue_changed(7);
        pool.queue_changed(1);
        let line = |value: i64| {
            format!("tidegate_queue_length_max{{pool=\"p\",protocol=\"postgres\"}} {value}")
        };
        assert!(metrics.render().unwrap().contains(&line(7)));
        assert!(metrics.render().unwrap().contains(&line(1)));
        pool.queue_changed(0);
        assert!(metrics.render().unwrap().contains(&line(1)));
        assert!(metrics.render().unwrap().contains(&line(0)));
    }
}
