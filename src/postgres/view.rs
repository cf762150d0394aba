//! The Postgres side as others see it: its pools and clients at one moment.

use std::sync::Arc;

use super::backend::PgPool;
use super::cancel::CancelRegistry;
use super::clients::{Card, Doing};
use crate::config::PoolMode;
use crate::status::{ClientStatus, Holder, PoolStatus};

/// One pool.
pub(super) fn pool(pool: &Arc<PgPool>) -> PoolStatus {
    let (connector, now_ns) = (pool.connector(), pool.metrics().times.now_ns());
    let upstream = connector.dial().upstream();
    let mode = match connector.mode() {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    };
    PoolStatus {
        protocol: "postgres".to_owned(),
        host: upstream.host.to_string(),
        port: upstream.port,
        user: upstream.user.clone(),
        database: upstream.database.clone(),
        mode: mode.to_owned(),
        holders: connector.seats().holders(now_ns, connector.limits().leak),
        ..pool.status()
    }
}

/// Every client that is logged in.
pub(super) fn clients(registry: &CancelRegistry) -> Vec<ClientStatus> {
    registry.everybody().iter().filter_map(|card| client(card)).collect()
}

fn client(card: &Card) -> Option<ClientStatus> {
    let seats = card.seats()?;
    let (doing, since_ms) = card.doing();
    let state = match doing {
        Doing::Idle => "idle",
        Doing::Waiting => "waiting",
        Doing::Linked => "active",
    };
    let holder = Holder {
        client: u64::try_from(card.pid()).unwrap_or(0),
        application_name: card.application_name(),
        user: seats.user.clone(),
        database: seats.database.clone(),
        address: card.address().map(|address| address.to_string()).unwrap_or_default(),
        ..Holder::default()
    };
    Some(ClientStatus {
        pool: seats.pool.clone(),
        holder,
        state: state.to_owned(),
        since_ms: card.born_ms(),
        state_seconds: std::time::Duration::from_millis(seats.now_ms().saturating_sub(since_ms))
            .as_secs_f64(),
    })
}
