//! The handles of one pool.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Families, Happening, Journal, Lines, Phase, Protocol, Reader, Reason, Times, lock};
use crate::status::PlanLimit;

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
    /// Failed logins that are answered later, being too many.
    pub logins_delayed: IntCounter,
    /// Logins refused without a look at the password, after too many failed ones.
    pub logins_refused: IntCounter,
    /// Clients that made room for others before they had logged in.
    pub logins_crowded_out: IntCounter,
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

impl Labelled {
    fn of(families: &Families, protocol: Protocol, pool: &str) -> Self {
        Self {
            protocol,
            pool: pool.to_owned(),
            pins: families.pins.clone(),
            connect_errors: families.connect_errors.clone(),
            server_closed: families.server_closed.clone(),
            rejections: families.rejections.clone(),
            timeouts: families.timeouts.clone(),
            plan_used: families.plan_used.clone(),
            plan_limit: families.plan_limit.clone(),
        }
    }
}

impl PoolMetrics {
    pub(super) fn resolve(
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
        let limited = |outcome: &str| {
            families.logins_limited.with_label_values(&[labels[0], labels[1], outcome])
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
            logins_delayed: limited("delayed"),
            logins_refused: limited("refused"),
            logins_crowded_out: limited("crowded_out"),
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
            labelled: Labelled::of(families, protocol, pool),
        }
    }

    /// A queue had `before` waiters and has `now`: one of several, perhaps, whose pools are counted together.
    pub fn queue_changed(&self, before: usize, now: usize) {
        let count = |waiters: usize| i64::try_from(waiters).unwrap_or(i64::MAX);
        self.queue_length.add(count(now) - count(before));
        let waiters = self.queue_length.get();
        for peak in self.queue_peaks.iter().chain([&self.sample_peak]) {
            // Mostly it is none, and a look costs less than a locked instruction.
            if peak.load(Ordering::Relaxed) < waiters {
                peak.fetch_max(waiters, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn begin_scrape(&self, reader: Reader) {
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

impl Labelled {
    fn count(&self, family: &IntCounterVec, value: &str) {
        family.with_label_values(&[self.protocol.as_str(), &self.pool, value]).inc();
    }
}
