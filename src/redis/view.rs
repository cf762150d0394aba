//! The Redis side as others see it: its upstreams at one moment.

use std::sync::Arc;

use super::upstream::{Realm, Upstream};
use crate::status::{NamespaceStatus, PoolStatus, QueueStatus, Reach};

/// One upstream: its lanes, and the connections of those who have one of their own.
pub(super) fn upstream(upstream: &Arc<Upstream>) -> PoolStatus {
    let entrance = upstream.entrance();
    let config = entrance.config();
    let holds = upstream.holds().status();
    // Who waits for a lane waits as well; with one connection in all they are the same queue.
    let lanes = upstream.lanes().first().map(|lane| lane.pool());
    let lanes =
        lanes.filter(|lanes| !Arc::ptr_eq(lanes, upstream.holds())).map(|pool| pool.status());
    let (limit, configured, queue) = match &lanes {
        None => (holds.limit, holds.limit_configured, holds.queue),
        Some(lanes) => {
            let queue = QueueStatus {
                length: holds.queue.length + lanes.queue.length,
                oldest_wait_ms: holds.queue.oldest_wait_ms.max(lanes.queue.oldest_wait_ms),
                ..holds.queue
            };
            (holds.limit + lanes.limit, holds.limit_configured + lanes.limit_configured, queue)
        }
    };
    let reach = match (&holds.reach, &lanes) {
        (Reach::NotTried, Some(lanes)) => lanes.reach.clone(),
        (reach, _) => reach.clone(),
    };
    let reason = lanes.as_ref().and_then(|lanes| lanes.limit_reason.clone());
    PoolStatus {
        protocol: "redis".to_owned(),
        host: config.host.to_string(),
        port: config.port,
        user: config.user.clone().unwrap_or_default(),
        database: config.database.to_string(),
        mode: "lanes".to_owned(),
        holders: upstream.clients.holders(),
        limit,
        limit_configured: configured,
        limit_reason: holds.limit_reason.clone().or(reason),
        queue,
        reach,
        lanes: upstream
            .lanes()
            .iter()
            .enumerate()
            .map(|(number, lane)| lane.status(number))
            .collect(),
        namespaces: upstream.realms.iter().map(|realm| namespace(realm)).collect(),
        ..holds
    }
}

fn namespace(realm: &Realm) -> NamespaceStatus {
    let metrics = &realm.metrics;
    let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
    NamespaceStatus {
        name: realm.namespace.name.to_string(),
        clients: count(&metrics.clients),
        commands: metrics.commands.get(),
        bytes: metrics.bytes_received.get() + metrics.bytes_sent.get(),
        keys: count(&metrics.keys),
        memory_bytes: count(&metrics.memory_bytes),
    }
}
