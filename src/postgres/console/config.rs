//! SHOW CONFIG: PgBouncer's names for what it and tidegate both have, then tidegate's own. Holds no secret. No IO.

use std::time::Duration;

use super::table::Kind::Text;
use super::table::{Columns, Table, Value};
use crate::config::{
    Auth, ConsoleUsers, Passing, PoolMode, PoolModes, PostgresLimits, PostgresSettings, Probe,
};

pub(super) const COLUMNS: Columns =
    &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];

/// What waits for a restart; the other settings change with RELOAD.
const FIXED: [&str; 7] = [
    "auth_type",
    "job_name",
    "listen_addr",
    "listen_port",
    "stats_period",
    "postgres.any",
    "postgres.auth",
];

/// Name and value.
type Pair = (&'static str, String);

/// Everything that is set on the Postgres side, and what it is when nothing is.
pub(super) fn table(settings: &PostgresSettings) -> Table {
    let default = PostgresSettings::default();
    let all = |settings: &PostgresSettings| {
        [theirs(settings), ours(settings), limits(&settings.limits)].concat()
    };
    let pairs = all(settings).into_iter().zip(all(&default));
    let row = |((name, value), (_, default)): (Pair, Pair)| {
        let changeable = if FIXED.contains(&name) { "no" } else { "yes" };
        vec![Value::from(name), value.into(), default.into(), Value::from(changeable)]
    };
    Table { columns: COLUMNS, rows: pairs.map(row).collect() }
}

/// Under PgBouncer's names, in its units: seconds.
fn theirs(settings: &PostgresSettings) -> Vec<Pair> {
    let limits = &settings.limits;
    let listen = settings.listeners.first().map(|listener| listener.listen);
    let text = |text: &str| text.to_owned();
    let database_limit = match settings.portions.database_limit {
        0 => settings.pool_size,
        limit => limit.min(settings.pool_size),
    };
    let mut pairs = vec![
        ("admin_users", console_users(settings)),
        ("auth_query", settings.auth_query.clone().unwrap_or_default()),
        ("auth_type", text(auth(settings.auth))),
        ("client_idle_timeout", seconds(limits.client_idle_timeout)),
        ("client_login_timeout", seconds(settings.login_timeout)),
        ("default_pool_size", settings.pool_size.to_string()),
        ("idle_transaction_timeout", seconds(limits.idle_transaction_timeout)),
        ("job_name", text("tidegate")),
        ("listen_addr", listen.map(|at| at.ip().to_string()).unwrap_or_default()),
        ("listen_port", listen.map(|at| at.port().to_string()).unwrap_or_default()),
        ("max_client_conn", limits.client_limit.to_string()),
        ("max_db_connections", database_limit.to_string()),
        ("max_packet_size", limits.understood_frame_bytes.to_string()),
        ("max_user_connections", settings.portions.user_limit.to_string()),
        ("min_pool_size", settings.portions.idle_min.to_string()),
        ("pool_mode", text(mode_word(settings.pool_modes.default))),
        ("query_timeout", seconds(limits.query_timeout)),
        ("query_wait_timeout", seconds(settings.wait)),
        ("reserve_pool_size", settings.portions.reserve_size.to_string()),
        ("reserve_pool_timeout", seconds(settings.portions.reserve_after)),
    ];
    pairs.extend([
        ("server_connect_timeout", seconds(settings.connect_timeout)),
        ("server_idle_timeout", seconds(settings.server_idle)),
        ("server_lifetime", seconds(settings.server_lifetime)),
        ("stats_period", seconds(super::PERIOD)),
        ("stats_users", console_users(settings)),
    ]);
    pairs
}

/// Under the names of tidegate's file.
fn ours(settings: &PostgresSettings) -> Vec<Pair> {
    let switch = |on: bool| on.to_string();
    vec![
        ("postgres.pool_size", settings.pool_size.to_string()),
        ("postgres.wait_ms", millis(settings.wait)),
        ("postgres.queue_limit", settings.queue_limit.to_string()),
        ("postgres.connect_timeout_ms", millis(settings.connect_timeout)),
        ("postgres.server_lifetime_ms", millis(settings.server_lifetime)),
        ("postgres.server_idle_ms", millis(settings.server_idle)),
        ("postgres.database_limit", settings.portions.database_limit.to_string()),
        ("postgres.user_limit", settings.portions.user_limit.to_string()),
        ("postgres.total_limit", settings.portions.total_limit.to_string()),
        (
            "postgres.application_share_percent",
            settings.portions.application_share_percent.to_string(),
        ),
        ("postgres.idle_min", settings.portions.idle_min.to_string()),
        ("postgres.reserve_size", settings.portions.reserve_size.to_string()),
        ("postgres.reserve_after_ms", millis(settings.portions.reserve_after)),
        ("postgres.login_timeout_ms", millis(settings.login_timeout)),
        ("password_overlap_ms", millis(settings.password_overlap)),
        ("postgres.any", switch(settings.any)),
        ("postgres.auth", auth_word(settings.auth).to_owned()),
        ("postgres.auth_query_kept_ms", millis(settings.auth_query_kept)),
        ("postgres.console_users", console_users(settings)),
        ("postgres.pool_mode", modes(&settings.pool_modes)),
        ("postgres.probe", probe_word(settings.probe).to_owned()),
        ("postgres.strict", switch(settings.passing == Passing::Strict)),
    ]
}

fn limits(limits: &PostgresLimits) -> Vec<Pair> {
    vec![
        ("postgres.client_limit", limits.client_limit.to_string()),
        ("postgres.pinned_limit", limits.pinned_limit.to_string()),
        ("postgres.startup_bytes", limits.startup_bytes.to_string()),
        ("postgres.login_frame_bytes", limits.login_frame_bytes.to_string()),
        ("postgres.understood_frame_bytes", limits.understood_frame_bytes.to_string()),
        ("postgres.parked_bytes", limits.parked_bytes.to_string()),
        ("postgres.statements_per_backend", limits.statements_per_backend.to_string()),
        ("postgres.statements_per_client", limits.statements_per_client.to_string()),
        ("postgres.statements_total", limits.statements_total.to_string()),
        ("postgres.statements_total_bytes", limits.statements_total_bytes.to_string()),
        ("postgres.settings_combinations", limits.settings_combinations.to_string()),
        ("postgres.any_pools", limits.any_pools.to_string()),
        ("postgres.cleanup_timeout_ms", millis(limits.cleanup_timeout)),
        ("postgres.slow_reader_ms", millis(limits.slow_reader)),
        ("postgres.query_timeout_ms", millis(limits.query_timeout)),
        ("postgres.transaction_timeout_ms", millis(limits.transaction_timeout)),
        ("postgres.idle_transaction_timeout_ms", millis(limits.idle_transaction_timeout)),
        ("postgres.pinned_timeout_ms", millis(limits.pinned_timeout)),
        ("postgres.client_idle_timeout_ms", millis(limits.client_idle_timeout)),
        ("postgres.leak_ms", millis(limits.leak)),
        ("postgres.slow_ms", millis(limits.slow)),
        ("postgres.plan_every_ms", millis(limits.plan_every)),
        ("postgres.sequence_hold_ms", millis(limits.sequence_hold)),
    ]
}

/// Whether SHOW CONFIG knows a setting of this name.
pub(super) fn knows(name: &str) -> bool {
    let named = |row: &Vec<Value>| row.first() == Some(&Value::from(name));
    table(&PostgresSettings::default()).rows.iter().any(named)
}

fn console_users(settings: &PostgresSettings) -> String {
    match &settings.console {
        ConsoleUsers::OfUrls => "*".to_owned(),
        ConsoleUsers::Named(users) => users.join(" "),
    }
}

fn modes(modes: &PoolModes) -> String {
    let any = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
    let rules = modes.rules.iter();
    let rules = rules.map(|rule| {
        format!("{}@{}={}", any(&rule.user), any(&rule.database), mode_word(rule.mode))
    });
    rules.chain([mode_word(modes.default).to_owned()]).collect::<Vec<_>>().join(" ")
}

/// A pool's mode, in PgBouncer's words and ours.
pub(super) fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    }
}

fn auth(auth: Auth) -> &'static str {
    match auth {
        Auth::Password => "scram-sha-256",
        Auth::Trust => "trust",
    }
}

fn auth_word(auth: Auth) -> &'static str {
    match auth {
        Auth::Password => "password",
        Auth::Trust => "trust",
    }
}

fn probe_word(probe: Probe) -> &'static str {
    match probe {
        Probe::Suspects => "suspects",
        Probe::Always => "always",
    }
}

fn seconds(time: Duration) -> String {
    time.as_secs_f64().to_string()
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_shown_under_both_names() {
        let settings =
            PostgresSettings { wait: Duration::from_millis(1_500), ..PostgresSettings::default() };
        let rows = table(&settings).rows;
        let row = |name: &str| rows.iter().find(|row| row[0] == Value::from(name)).unwrap().clone();
        assert_eq!(
            row("query_wait_timeout"),
            ["query_wait_timeout", "1.5", "10", "yes"].map(Value::from)
        );
        assert_eq!(
            row("postgres.wait_ms"),
            ["postgres.wait_ms", "1500", "10000", "yes"].map(Value::from)
        );
        assert!(knows("max_client_conn") && !knows("extra_float_digits"));
    }
}
