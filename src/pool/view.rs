//! A pool as others see it, as far as it knows: its protocol's side adds the rest.

use super::{Connect, Pool, Reachability};
use crate::metrics::{Phase, PoolMetrics, Reason};
use crate::status::{ClientCounts, PoolStatus, QueueStatus, Reach, ServerCounts, Totals};

impl<C: Connect> Pool<C> {
    /// The pool at this moment. What it counts together with another pool of the same metrics is of both.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let metrics = self.metrics();
        let wait_limit_ms = u64::try_from(self.settings.wait().as_millis()).unwrap_or(u64::MAX);
        let queue = QueueStatus {
            length: self.waiters(),
            limit: self.settings.queue_limit(),
            oldest_wait_ms: self.oldest_wait().as_secs_f64() * 1e3,
            wait_limit_ms,
        };
        PoolStatus {
            name: self.settings.name.clone(),
            limit: self.limit(),
            limit_configured: self.limit_configured(),
            limit_reason: self.shortfall(),
            paused: self.is_paused(),
            idle_min: self.settings.idle_min(),
            servers: servers(metrics),
            clients: clients(metrics),
            queue,
            totals: totals(metrics),
            reach: reach(self.state()),
            pins: metrics.pins(),
            plan: metrics.plans(),
            ..PoolStatus::default()
        }
    }
}

fn count(gauge: &prometheus::IntGauge) -> usize {
    usize::try_from(gauge.get()).unwrap_or(0)
}

fn servers(metrics: &PoolMetrics) -> ServerCounts {
    ServerCounts {
        idle: count(&metrics.servers_idle),
        active: count(&metrics.servers_active),
        idle_in_transaction: count(&metrics.servers_idle_in_transaction),
        pinned: count(&metrics.servers_pinned),
        opening: count(&metrics.servers_opening),
    }
}

fn clients(metrics: &PoolMetrics) -> ClientCounts {
    ClientCounts {
        idle: count(&metrics.clients_idle),
        active: count(&metrics.clients_active),
        waiting: count(&metrics.clients_waiting),
        greeting: count(&metrics.clients_greeting),
    }
}

fn totals(metrics: &PoolMetrics) -> Totals {
    let times = &metrics.times;
    let rejections =
        [Reason::WaitTimeout, Reason::QueueFull, Reason::Unreachable, Reason::ServerFull];
    Totals {
        logins: metrics.logins.get(),
        transactions: metrics.transactions.get(),
        requests: metrics.requests.get(),
        checkouts: metrics.checkouts.get(),
        waits: metrics.checkout_waits.get(),
        rejections: rejections.into_iter().map(|reason| metrics.rejected(reason)).sum(),
        received_bytes: metrics.bytes_received_client.get(),
        sent_bytes: metrics.bytes_sent_client.get(),
        waiting_seconds: times.waiting_seconds(),
        saturated_seconds: times.saturated_seconds(),
        query_seconds: times.busy_seconds(Phase::Query),
        idle_in_transaction_seconds: times.busy_seconds(Phase::IdleInTransaction),
        pinned_seconds: times.busy_seconds(Phase::Pinned),
    }
}

fn reach(reachability: Reachability) -> Reach {
    match reachability {
        Reachability::NotTried => Reach::NotTried,
        Reachability::Reachable => Reach::Reachable,
        Reachability::Failing { code, message } => Reach::Failing { code, message },
    }
}
