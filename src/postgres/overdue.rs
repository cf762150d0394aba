//! Limits on time: who is over one, found by looking at those who hold connections now and then, so that no statement
//! needs a timer; and who keeps a connection without using it.

use std::sync::Arc;
use std::time::Duration;

use super::backend::PgPool;
use super::cancel::CancelRegistry;
use super::clients::{Card, Doing, Held, Seat, Wanted};
use crate::config::PostgresLimits;
use crate::metrics::{Phase, seconds};

/// Longest and shortest time between two looks, and the part of the shortest limit that lies between.
const ROUND_LONGEST: Duration = Duration::from_secs(1);
const ROUND_SHORTEST: Duration = Duration::from_millis(10);
const ROUNDS_PER_LIMIT: u32 = 20;

/// Which limit a client is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// `query_timeout_ms`.
    Query,
    /// `transaction_timeout_ms`.
    Transaction,
    /// `idle_transaction_timeout_ms`.
    IdleInTransaction,
    /// `pinned_timeout_ms`.
    Pinned,
    /// `client_idle_timeout_ms`.
    ClientIdle,
}

impl Overdue {
    /// Its name in metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Transaction => "transaction",
            Self::IdleInTransaction => "idle_in_transaction",
            Self::Pinned => "pinned",
            Self::ClientIdle => "client_idle",
        }
    }

    /// The setting.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Query => "postgres.query_timeout_ms",
            Self::Transaction => "postgres.transaction_timeout_ms",
            Self::IdleInTransaction => "postgres.idle_transaction_timeout_ms",
            Self::Pinned => "postgres.pinned_timeout_ms",
            Self::ClientIdle => "postgres.client_idle_timeout_ms",
        }
    }

    /// What to do.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Query => {
                "Look for a missing index or a lock that the statement waits for, or raise the limit."
            }
            Self::Transaction => "Split the transaction, or raise the limit.",
            Self::IdleInTransaction => {
                "Commit or roll back before doing other work, such as calling another service; or raise the limit."
            }
            Self::Pinned => {
                "Drop temporary tables, release session locks and close WITH HOLD cursors when done; or raise the limit."
            }
            Self::ClientIdle => "Connect again; or raise the limit.",
        }
    }

    /// Which limit the holder of a connection is over.
    #[must_use]
    pub fn of_held(limits: &PostgresLimits, held: &Held, now_ns: u64) -> Option<Self> {
        let over = |limit: Duration, since_ns: u64| {
            !limit.is_zero() && Duration::from_nanos(now_ns.saturating_sub(since_ns)) >= limit
        };
        let of_phase = match held.phase {
            Phase::Query => (Self::Query, limits.query_timeout),
            Phase::IdleInTransaction => (Self::IdleInTransaction, limits.idle_transaction_timeout),
            Phase::Pinned => (Self::Pinned, limits.pinned_timeout),
        };
        if held.transaction_ns.is_some_and(|since| over(limits.transaction_timeout, since)) {
            return Some(Self::Transaction);
        }
        over(of_phase.1, held.phase_ns).then_some(of_phase.0)
    }

    /// Which limit a client without a connection is over.
    #[must_use]
    pub fn of_idle(limits: &PostgresLimits, card: &Card) -> Option<Self> {
        let limit = limits.client_idle_timeout;
        let (doing, since_ms) = card.doing();
        let now_ms = card.seats().map_or(0, |seats| seats.now_ms());
        let idle = Duration::from_millis(now_ms.saturating_sub(since_ms));
        let over = doing == Doing::Idle && !limit.is_zero() && idle >= limit;
        over.then_some(Self::ClientIdle)
    }
}

/// How long between two looks.
#[must_use]
pub fn round(limits: &PostgresLimits) -> Duration {
    let all = [
        limits.query_timeout,
        limits.transaction_timeout,
        limits.idle_transaction_timeout,
        limits.pinned_timeout,
        limits.client_idle_timeout,
        limits.leak,
        limits.slow,
    ];
    let shortest = all.into_iter().filter(|limit| !limit.is_zero()).min();
    let round = shortest.map_or(ROUND_LONGEST, |shortest| shortest / ROUNDS_PER_LIMIT);
    round.clamp(ROUND_SHORTEST, ROUND_LONGEST)
}

/// Wakes the sessions of a pool that hold a connection and are over a limit; names those that keep one unused.
pub fn look_at_pool(pool: &PgPool) {
    let limits = pool.connector().limits();
    let now_ns = pool.metrics().times.now_ns();
    pool.connector().seats().tick(now_ns);
    let mut leaks = 0;
    for seat in pool.connector().seats().all() {
        let Some(held) = seat.held() else { continue };
        if Overdue::of_held(&limits, &held, now_ns).is_some() {
            held.card.want(Wanted::CLOCK);
        }
        let unused = Duration::from_nanos(now_ns.saturating_sub(held.phase_ns));
        if held.phase != Phase::Query && !limits.leak.is_zero() && unused >= limits.leak {
            leaks += 1;
            report(pool, &seat, &held, now_ns);
        }
        if held.phase == Phase::Query && !limits.slow.is_zero() && unused >= limits.slow {
            report_slow(pool, &seat, &held);
        }
    }
    pool.metrics().leaks.set(leaks);
}

/// Wakes the clients that have said nothing for too long.
pub fn look_at_idle(limits: &PostgresLimits, clients: &CancelRegistry) {
    if limits.client_idle_timeout.is_zero() {
        return;
    }
    for card in clients.everybody() {
        if Overdue::of_idle(limits, &card).is_some() {
            card.want(Wanted::CLOCK);
        }
    }
}

/// Once for each statement.
fn report_slow(pool: &PgPool, seat: &Arc<Seat>, held: &Held) {
    if !seat.report() {
        return;
    }
    let (card, limit_ms) = (&held.card, pool.connector().limits().slow.as_millis());
    let message = format!(
        "a statement of client {} (application_name {:?}) runs for more than {limit_ms} ms on server connection {}: {}",
        card.pid(),
        card.application_name(),
        seat.server_pid,
        seat.statement(),
    );
    let hint = "Look for a missing index or a lock that it waits for (pg_stat_activity, EXPLAIN).";
    pool.metrics().note("slow", message, hint.to_owned());
}

/// Once for each time that a client keeps a connection unused.
fn report(pool: &PgPool, seat: &Arc<Seat>, held: &Held, now_ns: u64) {
    if !seat.report() {
        return;
    }
    pool.metrics().leaks_found.inc();
    let (card, what) = (&held.card, held.phase);
    let kept = match (what, held.pin) {
        (Phase::Pinned, Some(pin)) => format!("pinned by {pin}"),
        (Phase::Pinned, None) => "pinned".to_owned(),
        _ => "idle in a transaction".to_owned(),
    };
    let message = format!(
        "client {} (application_name {:?}, {}) has kept server connection {} {kept} for {:.0} s; its last statement: {}",
        card.pid(),
        card.application_name(),
        card.address().map(|address| address.to_string()).unwrap_or_default(),
        seat.server_pid,
        seconds(now_ns.saturating_sub(held.phase_ns)),
        seat.statement(),
    );
    let overdue = if what == Phase::Pinned { Overdue::Pinned } else { Overdue::IdleInTransaction };
    let hint = format!("{} {} cuts such clients off.", overdue.advice(), overdue.setting());
    pool.metrics().note("leak", message, hint);
}
