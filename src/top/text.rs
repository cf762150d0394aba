//! Everything as plain text, for pipes, logs and tickets.

use super::words;
use crate::status::{Event, Holder, PoolStatus, Status, span};

/// All pools and what happened lately.
pub(super) fn whole(status: &Status, url: &str) -> String {
    let draining = if status.draining { ", shutting down" } else { "" };
    let mut lines = vec![format!(
        "tidegate {} at {url}, up for {}{draining}",
        status.version,
        span(status.uptime_seconds)
    )];
    for pool in &status.pools {
        lines.push(String::new());
        lines.extend(of_pool(pool, status.at_ms));
    }
    lines.push(String::new());
    lines.push("Lately".to_owned());
    if status.events.is_empty() {
        lines.push("  nothing that deserves a word".to_owned());
    }
    lines.extend(status.events.iter().flat_map(|event| of_event(event, status.at_ms)));
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn of_pool(pool: &PoolStatus, at_ms: u64) -> Vec<String> {
    let mut lines = vec![
        format!("{} ({})", pool.name, words::place(pool)),
        format!("  {}", words::sentence(pool, at_ms)),
    ];
    if !pool.verdict.advice.is_empty() {
        lines.push(format!("  what to do: {}", pool.verdict.advice));
    }
    lines.push(format!("  servers: {}", words::counts(pool)));
    lines.push(format!("  15 min: {}", words::history(&pool.history)));
    lines.push(format!("  limits: {}", words::limits(pool)));
    for lane in &pool.lanes {
        let (runs, bytes) = (lane.batches, lane.pending_bytes);
        lines.push(format!("  {}: {runs} runs wait to be sent, {bytes} bytes", lane.name));
    }
    for space in &pool.namespaces {
        lines.push(format!(
            "  namespace {}: {} clients, {} commands, {} bytes, about {} keys and {} bytes of memory",
            space.name, space.clients, space.commands, space.bytes, space.keys, space.memory_bytes
        ));
    }
    if !pool.holders.is_empty() {
        lines.push("  held by:".to_owned());
        lines.extend(of_holders(&pool.holders));
    }
    lines
}

const COLUMNS: [&str; 8] =
    ["APPLICATION", "CLIENT", "ADDRESS", "SERVER", "PHASE", "FOR", "HELD", "STATEMENT"];

/// A table whose columns are as wide as what stands in them.
fn of_holders(holders: &[Holder]) -> Vec<String> {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(holders.iter().map(|holder| {
        [
            words::application(holder).to_owned(),
            holder.client.to_string(),
            holder.address.clone(),
            holder.server_pid.to_string(),
            words::phase(holder),
            span(holder.phase_seconds),
            span(holder.held_seconds),
            holder.statement.clone(),
        ]
    }));
    let mut widths = [0; COLUMNS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; COLUMNS.len()]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:width$}"));
        format!("  {}", cells.collect::<String>())
    };
    rows.iter().map(line).collect()
}

fn of_event(event: &Event, at_ms: u64) -> Vec<String> {
    let ago = std::time::Duration::from_millis(at_ms.saturating_sub(event.at_ms)).as_secs_f64();
    let often = if event.count > 1 { format!(", {} times", event.count) } else { String::new() };
    let Event { pool, kind, message, .. } = event;
    let mut lines = vec![format!("  {} ago, {pool} {kind}{often}: {message}", span(ago))];
    if !event.hint.is_empty() {
        lines.push(format!("    what to do: {}", event.hint));
    }
    lines
}
