//! How often logins from an address have failed, so that nobody can go on trying passwords.
//!
//! On the loopback all clients have one address, and a worker with a mistyped password must not lock the application out: there
//! a failure too many is only answered later. From elsewhere nobody's password is looked at any more until the minute is over.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What failures are counted over, from the first one on.
const WINDOW: Duration = Duration::from_secs(60);
/// How much later the answer comes.
const LATER: Duration = Duration::from_secs(1);
/// Most addresses remembered: some 200 KiB.
const ORIGINS: usize = 4_096;

/// The failed logins of all clients; without a limit as it comes.
#[derive(Debug, Default)]
pub struct LoginFailures {
    /// Most within [`WINDOW`]; nought: no limit.
    limit: AtomicUsize,
    origins: Mutex<BTreeMap<Origin, Window>>,
}

/// Who is counted as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Loopback,
    V4(Ipv4Addr),
    /// The network of a link, 64 bits: all its addresses are for one machine to choose.
    V6(u64),
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    failures: usize,
}

impl LoginFailures {
    /// None so far; so many may come from an address within a minute.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), origins: Mutex::default() })
    }

    /// Another limit holds from now on.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// For how long no password from `peer` is looked at, if none is.
    #[must_use]
    pub fn barred(&self, peer: IpAddr) -> Option<Duration> {
        let limit = self.limit()?;
        let origin = Origin::of(peer);
        let window = *self.origins().get(&origin).filter(|_| origin != Origin::Loopback)?;
        let left = WINDOW.checked_sub(window.began.elapsed()).filter(|left| !left.is_zero())?;
        (window.failures >= limit).then_some(left)
    }

    /// Counts a login from `peer` that has failed; how much later to say so, if not at once.
    pub fn note(&self, peer: IpAddr) -> Option<Duration> {
        let limit = self.limit()?;
        let (origin, now) = (Origin::of(peer), Instant::now());
        let mut origins = self.origins();
        make_room(&mut origins, origin, now);
        let window = origins.entry(origin).or_insert(Window { began: now, failures: 0 });
        if now - window.began >= WINDOW {
            *window = Window { began: now, failures: 0 };
        }
        window.failures += 1;
        let failures = window.failures;
        drop(origins);
        if failures == limit {
            tracing::warn!(address = %peer, failures, "many failed logins within a minute: is a password wrong?");
        }
        (failures > limit && origin == Origin::Loopback).then_some(LATER)
    }

    fn limit(&self) -> Option<usize> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    fn origins(&self) -> MutexGuard<'_, BTreeMap<Origin, Window>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what is over, or else whoever has failed least: not those who are at their limit.
fn make_room(origins: &mut BTreeMap<Origin, Window>, origin: Origin, now: Instant) {
    if origins.len() < ORIGINS || origins.contains_key(&origin) {
        return;
    }
    origins.retain(|_, window| now - window.began < WINDOW);
    if origins.len() < ORIGINS {
        return;
    }
    let least = origins.iter().min_by_key(|(_, window)| (window.failures, window.began));
    if let Some(least) = least.map(|(origin, _)| *origin) {
        origins.remove(&least);
    }
}

impl Origin {
    fn of(peer: IpAddr) -> Self {
        match peer.to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => {
                let network = (ip.to_bits() >> 64).try_into();
                Self::V6(network.unwrap_or(u64::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_barred_until_its_minute_is_over() {
        let failures = LoginFailures::new(3);
        let (guesser, other) = (ip("192.0.2.7"), ip("192.0.2.8"));
        for _ in 0..3 {
            assert_eq!(failures.barred(guesser), None);
            assert_eq!(failures.note(guesser), None);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(failures.barred(guesser), Some(Duration::from_secs(57)));
        assert_eq!(failures.barred(ip("::ffff:192.0.2.7")), Some(Duration::from_secs(57)));
        assert_eq!(failures.barred(other), None);
        failures.set_limit(4);
        assert_eq!(failures.barred(guesser), None);
        failures.set_limit(3);
        tokio::time::advance(Duration::from_secs(57)).await;
        assert_eq!(failures.barred(guesser), None);
        assert_eq!(failures.note(guesser), None);
        assert_eq!(failures.barred(guesser), None, "a new minute has begun");
    }

    #[tokio::test(start_paused = true)]
    async fn on_the_loopback_answers_come_later_and_nobody_is_barred() {
        let failures = LoginFailures::new(2);
        for (peer, answer) in [
            ("127.0.0.1", None),
            ("127.9.9.9", None),
            ("::1", Some(LATER)),
            ("::ffff:127.0.0.1", Some(LATER)),
        ] {
            assert_eq!(failures.note(ip(peer)), answer, "{peer}");
            assert_eq!(failures.barred(ip(peer)), None);
        }
        failures.set_limit(0);
        assert_eq!(failures.note(ip("::1")), None, "off");
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_take_no_more_memory_and_free_nobody() {
        let failures = LoginFailures::new(2);
        let guesser = ip("2001:db8::1");
        failures.note(guesser);
        failures.note(ip("2001:db8::2"));
        assert!(failures.barred(ip("2001:db8::3")).is_some(), "all of one network");
        for number in 0..3 * u32::try_from(ORIGINS).unwrap() {
            failures.note(Ipv4Addr::from_bits(0x0a00_0000 + number).into());
        }
        assert_eq!(failures.origins().len(), ORIGINS);
        assert!(failures.barred(guesser).is_some());
        tokio::time::advance(WINDOW).await;
        failures.note(ip("192.0.2.7"));
        assert_eq!(failures.origins().len(), 1, "what is over is forgotten");
    }
}
