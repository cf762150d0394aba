//! The Postgres side as others see it: its pools and clients at one moment.

use std::sync::Arc;

use super::backend::PgPool;
use super::cancel::CancelRegistry;
use super::clients::{Card, Doing, Seat, Seats};
use crate::config::PoolMode;
use crate::status::{ClientStatus, Holder, PoolStatus, ServerStatus};

/// One pool.
pub(super) fn pool(pool: &Arc<PgPool>) -> PoolStatus {
    let (connector, now_ns) = (pool.connector(), pool.metrics().times.now_ns());
    let dial = connector.dial();
    let upstream = dial.upstream();
    let mode = match connector.mode() {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    };
    PoolStatus {
        protocol: "postgres".to_owned(),
        host: upstream.hosts.names(),
        port: upstream.hosts.port(),
        user: upstream.user.clone(),
        database: upstream.database.clone(),
        mode: mode.to_owned(),
        holders: connector.seats().holders(now_ns, connector.limits().leak),
        ..pool.status()
    }
}

/// Every client that is logged in; `pools` have the time.
pub(super) fn clients(registry: &CancelRegistry, pools: &[Arc<PgPool>]) -> Vec<ClientStatus> {
    let now = |pool: &Arc<PgPool>| pool.metrics().times.now_ns() / 1_000_000;
    let clocks: Vec<_> = pools.iter().map(|pool| (pool.connector().seats(), now(pool))).collect();
    let now_ms = |seats: &Arc<Seats>| {
        let clock = clocks.iter().find(|(known, _)| Arc::ptr_eq(known, seats));
        clock.map_or_else(|| seats.now_ms(), |(_, now_ms)| *now_ms)
    };
    registry.everybody().iter().filter_map(|card| client(card, now_ms(card.seats()?))).collect()
}

/// The server connections of one pool.
pub(super) fn servers(pool: &PgPool) -> Vec<ServerStatus> {
    let (connector, now_ns) = (pool.connector(), pool.metrics().times.now_ns());
    let (seats, dial) = (connector.seats(), connector.dial());
    let server = |seat: &Arc<Seat>| ServerStatus {
        pool: seats.pool.clone(),
        user: dial.upstream().user.clone(),
        database: dial.upstream().database.clone(),
        server_pid: i64::from(seat.server_pid),
        since_ms: seat.way.born_ms,
        address: seat.way.ends.map(|(peer, _)| peer.to_string()).unwrap_or_default(),
        local_address: seat.way.ends.map(|(_, local)| local.to_string()).unwrap_or_default(),
        encryption: seat.way.encryption.clone(),
        holder: seat.holder(&seats.user, &seats.database, now_ns, u64::MAX),
    };
    seats.all().iter().map(server).collect()
}

fn client(card: &Card, now_ms: u64) -> Option<ClientStatus> {
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
        state_seconds: std::time::Duration::from_millis(now_ms.saturating_sub(since_ms))
            .as_secs_f64(),
        local_address: card.local_address().map(|local| local.to_string()).unwrap_or_default(),
    })
}
