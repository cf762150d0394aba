//! Figures in words, for the screen and for plain text.

use crate::status::{Holder, PoolStatus, Sample, span};

/// Where a pool leads.
pub(super) fn place(pool: &PoolStatus) -> String {
    let PoolStatus { protocol, mode, host, port, database, user, .. } = pool;
    let login = if user.is_empty() { String::new() } else { format!(" as {user}") };
    format!("{protocol}, {mode}: {host}:{port}, database {database}{login}")
}

/// How it stands, and since when it is out of connections.
pub(super) fn sentence(pool: &PoolStatus, at_ms: u64) -> String {
    let said = &pool.verdict.sentence;
    match pool.verdict.since_ms {
        None => said.clone(),
        Some(since_ms) => {
            format!("{said}; since {} ago", span(seconds(at_ms.saturating_sub(since_ms))))
        }
    }
}

/// Its server connections and clients.
pub(super) fn counts(pool: &PoolStatus) -> String {
    let clients = &pool.clients;
    let states = states(pool).into_iter().filter(|(_, count)| *count > 0);
    let servers: Vec<String> = states.map(|(words, count)| format!("{count} {words}")).collect();
    format!(
        "{} | clients: {} with one, {} waiting, {} idle",
        servers.join(", "),
        clients.active,
        clients.waiting,
        clients.idle
    )
}

/// What its server connections do; all that it may have are in it.
pub(super) fn states(pool: &PoolStatus) -> [(&'static str, usize); 6] {
    let servers = &pool.servers;
    [
        ("run a statement", servers.active),
        ("idle in transaction", servers.idle_in_transaction),
        ("pinned, unused", servers.pinned),
        ("being opened", servers.opening),
        ("ready", servers.idle),
        ("not opened", pool.limit.saturating_sub(servers.total())),
    ]
}

/// What bounds it, and what is left of that.
pub(super) fn limits(pool: &PoolStatus) -> String {
    let mut parts = Vec::new();
    if pool.limit < pool.limit_configured {
        let reason =
            pool.limit_reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        parts.push(format!("limit {} of {} set{reason}", pool.limit, pool.limit_configured));
    } else {
        parts.push(format!("limit {}", pool.limit));
    }
    for plan in &pool.plan {
        let left = plan.limit.saturating_sub(plan.used);
        parts.push(format!("{}: {left} left of {}", plan.scope, plan.limit));
    }
    if let Some(left) = pool.exhaustion_seconds.filter(|seconds| *seconds > 0.0) {
        parts.push(format!("all in use in about {}", span(left)));
    }
    parts.push(format!("queue {} of {}", pool.queue.length, pool.queue.limit));
    let pins = pool.pins.iter().filter(|(_, count)| **count > 0);
    parts.extend(pins.map(|(reason, count)| format!("pins by {reason}: {count}")));
    parts.join(" | ")
}

/// Its last quarter of an hour.
pub(super) fn history(samples: &[Sample]) -> String {
    let Some(last) = samples.last() else { return "no samples yet".to_owned() };
    let most = samples.iter().map(|sample| sample.in_use).max().unwrap_or_default();
    let waited = samples.iter().map(|sample| sample.queue_max).max().unwrap_or_default();
    let pairs = samples.iter().zip(samples.iter().skip(1));
    let short: f64 = pairs
        .map(|(before, sample)| {
            sample.saturated * seconds(sample.at_ms.saturating_sub(before.at_ms))
        })
        .sum();
    let short =
        if short < 0.05 { String::new() } else { format!(", nothing left for {}", span(short)) };
    format!("at most {most} of {} in use, {waited} waiting{short}", last.limit)
}

/// What a holder does.
pub(super) fn phase(holder: &Holder) -> String {
    let phase = match holder.phase.as_str() {
        "query" => "query",
        "idle_in_transaction" => "idle in trans.",
        "pinned" => "unused",
        other => other,
    };
    let leak = if holder.leaks { "LEAK " } else { "" };
    match &holder.pin {
        None => format!("{leak}{phase}"),
        Some(pin) => format!("{leak}{phase}, pinned: {pin}"),
    }
}

/// How it calls itself.
pub(super) fn application(holder: &Holder) -> &str {
    if holder.application_name.is_empty() { "(no name)" } else { &holder.application_name }
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}
