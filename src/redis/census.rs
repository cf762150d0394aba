//! How many keys, and how much of the server's memory, each namespace has: estimated from a sample now and then, over a connection
//! that nobody else needs at the time, and only if commands have come since the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::backend::{Key, RedisBackend, RedisConnect};
use super::greeting::Proto;
use super::incoming::Incoming;
use super::upstream::Upstream;
use super::wire::write_command;
use crate::pool::{Checkout, Lease};

/// Keys looked at each time.
const SAMPLE: u64 = 200;
/// Commands sent at once, so that others get their turn between.
const AT_ONCE: usize = 25;
/// Until then the server must have answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts every `period` until it is dropped; not at all if that is nought, or there is no namespace.
pub(super) async fn run(upstream: Arc<Upstream>, period: Duration) {
    if period.is_zero() || upstream.realms.is_empty() {
        return;
    }
    let mut counted = 0;
    loop {
        tokio::time::sleep(period).await;
        let commands = upstream.metrics.requests.get();
        if commands == counted || !upstream.holds().has_place() {
            continue;
        }
        let Checkout::Ready(lease) = upstream.holds().checkout() else { continue };
        counted = commands;
        match timeout(PATIENCE, count(&upstream, lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => tracing::debug!(pool = upstream.name(), reason, "no census"),
            Err(_late) => tracing::debug!(pool = upstream.name(), "no census in time"),
        }
    }
}

/// One sample. A lease that is dropped on the way closes its connection.
async fn count(upstream: &Upstream, mut lease: Lease<RedisConnect>) -> Result<(), String> {
    let mut incoming = Incoming::default();
    let key = Key { db: upstream.first_database(), proto: Proto::Resp2 };
    let mut switch = Vec::new();
    let switches = lease.write_switch(key, &mut switch);
    lease.stream.write_all(&switch).await.map_err(|error| error.to_string())?;
    lease.stream.flush().await.map_err(|error| error.to_string())?;
    for _ in 0..switches {
        let reply = incoming.reply(&mut lease.stream).await?;
        if reply.starts_with(b"-") {
            return Err(String::from_utf8_lossy(&reply).into_owned());
        }
    }
    lease.key = key;
    let all = integer(&ask(&mut lease, &mut incoming, &[vec![b"DBSIZE"]]).await?);
    let all = all.first().copied().unwrap_or(0);
    let draws = if all == 0 { 0 } else { SAMPLE };
    let (mut drawn, mut found) = (0, vec![(0_u64, 0_u64); upstream.realms.len()]);
    while drawn < draws {
        let draw = vec![vec![&b"RANDOMKEY"[..]]; AT_ONCE];
        let replies = ask(&mut lease, &mut incoming, &draw).await?;
        let keys: Vec<&[u8]> = replies.iter().filter_map(|reply| string(reply)).collect();
        let weigh: Vec<Vec<&[u8]>> =
            keys.iter().map(|key| vec![&b"MEMORY"[..], b"USAGE", key]).collect();
        let bytes = integer(&ask(&mut lease, &mut incoming, &weigh).await?);
        for (key, bytes) in keys.iter().zip(bytes) {
            let realms = upstream.realms.iter().zip(&mut found);
            for (_, place) in realms.filter(|(realm, _)| realm.namespace.owns(key)) {
                *place = (place.0 + 1, place.1 + bytes);
            }
        }
        drawn += u64::try_from(AT_ONCE).unwrap_or(0);
    }
    for (realm, (keys, bytes)) in upstream.realms.iter().zip(found) {
        let share = |of: u64| {
            let part = u128::from(of) * u128::from(all) / u128::from(drawn.max(1));
            i64::try_from(part).unwrap_or(i64::MAX)
        };
        realm.metrics.keys.set(share(keys));
        realm.metrics.memory_bytes.set(share(bytes));
    }
    lease.give_back();
    Ok(())
}

/// The replies to some commands, sent in one piece.
async fn ask(
    backend: &mut RedisBackend,
    incoming: &mut Incoming,
    commands: &[Vec<&[u8]>],
) -> Result<Vec<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    for words in commands {
        write_command(words, &mut bytes);
    }
    backend.stream.write_all(&bytes).await.map_err(|error| error.to_string())?;
    backend.stream.flush().await.map_err(|error| error.to_string())?;
    let mut replies = Vec::with_capacity(commands.len());
    for _ in commands {
        replies.push(incoming.reply(&mut backend.stream).await?);
    }
    Ok(replies)
}

fn integer(replies: &[Vec<u8>]) -> Vec<u64> {
    let number = |reply: &Vec<u8>| {
        let digits = reply.strip_prefix(b":")?.trim_ascii_end();
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    replies.iter().map(|reply| number(reply).unwrap_or(0)).collect()
}

/// What a string holds; a null is none.
fn string(reply: &[u8]) -> Option<&[u8]> {
    let framed = reply.first() == Some(&b'$') && reply.get(1) != Some(&b'-');
    let end = memchr::memchr(b'\n', reply)? + 1;
    framed.then(|| reply.get(end..reply.len().saturating_sub(2))).flatten()
}
