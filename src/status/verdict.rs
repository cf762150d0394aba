//! How a pool stands, in words: out of connections or not, since when, and what to do. One place, so that the page and `top`
//! say the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Holder, PoolStatus, Reach, Sample};

/// What a look at a pool comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The worst that is true of it.
    pub level: Level,
    /// The figures behind that.
    pub sentence: String,
    /// Since when it is out of connections: milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// What to do; empty if nothing is.
    pub advice: String,
}

/// How a pool stands; a worse one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No server connection is open, and nobody wants one.
    #[default]
    Idle,
    /// All is well.
    Well,
    /// The server gives fewer connections than were set.
    Reduced,
    /// Use grows, and will meet the limit before long.
    Rising,
    /// All connections are in use, and nobody waits.
    Full,
    /// Clients keep connections unused.
    Leaking,
    /// Clients wait for connections that are being opened.
    Waiting,
    /// Clients wait, and there is no connection for them.
    Exhausted,
    /// The server can't be reached.
    Unreachable,
}

impl Level {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Well => "Well",
            Self::Reduced => "Reduced",
            Self::Rising => "Rising",
            Self::Full => "Full",
            Self::Leaking => "Leaking",
            Self::Waiting => "Waiting",
            Self::Exhausted => "Exhausted",
            Self::Unreachable => "Unreachable",
        }
    }
}

/// A predicted exhaustion further off than this worries nobody yet; nor does one while most connections are free.
const SOON_SECONDS: f64 = 900.0;

impl Verdict {
    /// Of `pool`, whose history is in it, at `at_ms`.
    #[must_use]
    pub fn of(pool: &PoolStatus, at_ms: u64) -> Self {
        let level = level(pool);
        let since_ms = (level == Level::Exhausted).then(|| short_since(pool, at_ms));
        Self { level, sentence: sentence(pool, level), since_ms, advice: advice(pool, level) }
    }
}

fn level(pool: &PoolStatus) -> Level {
    let (servers, waits) = (&pool.servers, pool.queue.length > 0);
    let is_full = pool.limit > 0 && servers.in_use() >= pool.limit;
    // Others may have the connections of a limit that several pools share; Redis's lanes may lie idle while the
    // connections of single sessions are all taken.
    let is_dry = servers.opening == 0 && (servers.idle == 0 || pool.protocol == "redis");
    if matches!(pool.reach, Reach::Failing { .. }) {
        Level::Unreachable
    } else if waits && (is_full || is_dry) {
        Level::Exhausted
    } else if waits {
        Level::Waiting
    } else if pool.holders.iter().any(|holder| holder.leaks) {
        Level::Leaking
    } else if is_full {
        Level::Full
    } else if servers.in_use() * 2 > pool.limit
        && pool.exhaustion_seconds.is_some_and(|seconds| seconds < SOON_SECONDS)
    {
        Level::Rising
    } else if pool.limit < pool.limit_configured {
        Level::Reduced
    } else if servers.total() == 0 {
        Level::Idle
    } else {
        Level::Well
    }
}

/// When the shortage began: at the end of the latest sample without one, or when the first of the waiters came.
fn short_since(pool: &PoolStatus, at_ms: u64) -> u64 {
    let waited = Duration::try_from_secs_f64(pool.queue.oldest_wait_ms / 1e3).unwrap_or_default();
    let first_came = at_ms.saturating_sub(whole_ms(waited));
    let short: Vec<&Sample> =
        pool.history.iter().rev().take_while(|sample| sample.saturated > 0.0).collect();
    let Some(first) = short.last() else { return first_came };
    let before = pool.history.iter().rev().nth(short.len());
    let length = before.map_or(0, |before| first.at_ms.saturating_sub(before.at_ms));
    let part = Duration::from_millis(length).mul_f64(first.saturated.clamp(0.0, 1.0));
    first_came.min(first.at_ms.saturating_sub(whole_ms(part)))
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn sentence(pool: &PoolStatus, level: Level) -> String {
    let (used, limit) = (pool.servers.in_use(), pool.limit);
    let queue = queue(pool);
    let figures = match pool.servers.opening {
        0 => format!("{used} of {limit} in use, {queue}"),
        opening => format!("{used} of {limit} in use, {opening} being opened, {queue}"),
    };
    let word = level.word();
    match level {
        Level::Idle => format!("{word}: no server connection is open, {queue}"),
        Level::Unreachable => match &pool.reach {
            Reach::Failing { code, message } => format!("{word}: {message} ({code}); {figures}"),
            _ => format!("{word}: {figures}"),
        },
        Level::Leaking => {
            let leaking = pool.holders.iter().filter(|holder| holder.leaks).count();
            let kept = plural(leaking, "client keeps", "clients keep");
            format!("{word}: {kept} a connection unused; {figures}")
        }
        Level::Rising => {
            let left = pool.exhaustion_seconds.unwrap_or_default();
            format!("{word}: {figures}; at this pace all are in use in about {}", span(left))
        }
        Level::Reduced => {
            let set = pool.limit_configured;
            format!("{word}: {figures}; {set} are set, and the server gives no more")
        }
        Level::Well | Level::Full | Level::Waiting | Level::Exhausted => {
            format!("{word}: {figures}")
        }
    }
}

fn queue(pool: &PoolStatus) -> String {
    match pool.queue.length {
        0 => "nobody waits".to_owned(),
        length => {
            let wait = plural(length, "client waits", "clients wait");
            format!("{wait}, the first for {}", span(pool.queue.oldest_wait_ms / 1e3))
        }
    }
}

fn advice(pool: &PoolStatus, level: Level) -> String {
    if level == Level::Unreachable {
        return format!(
            "Is {}:{} the right address, does the server run, and does it take the login in {}? tidegate tries again by \
             itself; connections that are open go on.",
            pool.host, pool.port, pool.name
        );
    }
    let leaks: Vec<&Holder> = pool.holders.iter().filter(|holder| holder.leaks).collect();
    if let [worst, others @ ..] = &leaks[..] {
        return advice_on_leak(worst, others.len());
    }
    let is_short = matches!(level, Level::Full | Level::Waiting | Level::Exhausted);
    if pool.limit < pool.limit_configured {
        return advice_on_limit(pool);
    }
    match level {
        _ if is_short => advice_on_use(pool),
        Level::Rising => {
            "Look who holds connections, and for how long: it is early enough.".to_owned()
        }
        _ => String::new(),
    }
}

fn advice_on_leak(worst: &Holder, others: usize) -> String {
    let (who, unused) = (name(worst), span(worst.phase_seconds));
    let others = match others {
        0 => String::new(),
        1 => ", and 1 more does the like".to_owned(),
        others => format!(", and {others} more do the like"),
    };
    if worst.phase == "pinned" {
        let pin = worst.pin.as_deref().unwrap_or("nobody knows by what");
        return format!(
            "{who} has kept a pinned connection unused for {unused} (pinned by {pin}){others}: have it give that up, or let \
             postgres.pinned_timeout_ms end it."
        );
    }
    format!(
        "{who} has done nothing inside a transaction for {unused}{others}: have it commit or roll back before it does \
         anything else, or let postgres.idle_transaction_timeout_ms end it."
    )
}

fn advice_on_limit(pool: &PoolStatus) -> String {
    let (limit, set) = (pool.limit, pool.limit_configured);
    let reason = pool.limit_reason.as_deref().unwrap_or("it gave no reason");
    format!(
        "The server gives {limit} of {set} connections ({reason}): let fewer processes share it, or take a larger plan. \
         tidegate asks for more from time to time."
    )
}

fn advice_on_use(pool: &PoolStatus) -> String {
    let servers = &pool.servers;
    let more = match pool.protocol.as_str() {
        "redis" => "TIDEGATE_REDIS_POOL_SIZE",
        _ => "TIDEGATE_POSTGRES_POOL_SIZE",
    };
    let longest = pool.holders.first();
    let example = longest.map_or_else(String::new, |holder| {
        format!(", {} the longest ({})", name(holder), span(holder.held_seconds))
    });
    let room = headroom(pool);
    if servers.pinned > servers.active.max(servers.idle_in_transaction) {
        return format!(
            "Most connections are pinned{example}: see the reasons of pins, or raise {more}{room}."
        );
    }
    if servers.idle_in_transaction > servers.active {
        return format!(
            "Most connections wait for their clients inside transactions{example}: do slow work outside of them, or raise \
             {more}{room}."
        );
    }
    format!("Most connections are at work{example}: make that faster, or raise {more}{room}.")
}

/// What the tightest limit of the server's leaves, if any is known.
fn headroom(pool: &PoolStatus) -> String {
    let tightest = pool.plan.iter().min_by_key(|limit| limit.limit.saturating_sub(limit.used));
    tightest.map_or_else(String::new, |plan| {
        let left = plan.limit.saturating_sub(plan.used);
        format!(" (the {} allows {left} more)", plan.scope)
    })
}

/// Who a holder is, for a person to find it.
fn name(holder: &Holder) -> String {
    let number = holder.client;
    match holder.application_name.as_str() {
        "" => format!("client {number}"),
        name => format!("{name} (client {number})"),
    }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A length of time as people say it.
#[must_use]
pub fn span(seconds: f64) -> String {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let whole = time.as_secs();
    match whole {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PlanLimit, QueueStatus, ServerCounts};

    fn pool(active: usize, idle_in_transaction: usize, waiting: usize) -> PoolStatus {
        PoolStatus {
            protocol: "postgres".to_owned(),
            name: "DATABASE_URL".to_owned(),
            limit: 5,
            limit_configured: 5,
            servers: ServerCounts { active, idle_in_transaction, ..ServerCounts::default() },
            queue: QueueStatus {
                length: waiting,
                oldest_wait_ms: if waiting > 0 { 3_240.0 } else { 0.0 },
                ..QueueStatus::default()
            },
            reach: Reach::Reachable,
            ..PoolStatus::default()
        }
    }

    fn holder(leaks: bool) -> Holder {
        Holder {
            client: 17,
            application_name: "web.1".to_owned(),
            phase: "idle_in_transaction".to_owned(),
            phase_seconds: 45.0,
            held_seconds: 50.0,
            leaks,
            ..Holder::default()
        }
    }

    fn sentence_of(pool: &PoolStatus) -> String {
        Verdict::of(pool, 1_000_000).sentence
    }

    #[test]
    fn a_sentence_says_how_it_stands() {
        let exhausted = pool(5, 0, 12);
        let said = "Exhausted: 5 of 5 in use, 12 clients wait, the first for 3.2 s";
        assert_eq!(sentence_of(&exhausted), said);
        assert_eq!(sentence_of(&pool(5, 0, 0)), "Full: 5 of 5 in use, nobody waits");
        assert_eq!(sentence_of(&pool(2, 1, 0)), "Well: 3 of 5 in use, nobody waits");
        assert_eq!(sentence_of(&pool(0, 0, 0)), "Idle: no server connection is open, nobody waits");
        let mut opening = pool(1, 0, 1);
        opening.servers.opening = 2;
        assert_eq!(
            sentence_of(&opening),
            "Waiting: 1 of 5 in use, 2 being opened, 1 client waits, the first for 3.2 s"
        );
        let mut rising = pool(3, 0, 0);
        rising.exhaustion_seconds = Some(130.0);
        assert_eq!(
            Verdict::of(&PoolStatus { limit: 6, limit_configured: 6, ..rising.clone() }, 0).level,
            Level::Well
        );
        let said =
            "Rising: 3 of 5 in use, nobody waits; at this pace all are in use in about 2 min 10 s";
        assert_eq!(sentence_of(&rising), said);
    }

    #[test]
    fn the_worst_that_is_true_counts() {
        let mut pool = pool(5, 0, 3);
        pool.holders = vec![holder(true)];
        assert_eq!(Verdict::of(&pool, 0).level, Level::Exhausted);
        pool.reach = Reach::Failing { code: "io".to_owned(), message: "refused".to_owned() };
        let verdict = Verdict::of(&pool, 0);
        assert_eq!(verdict.level, Level::Unreachable);
        assert!(verdict.sentence.starts_with("Unreachable: refused (io); 5 of 5"), "{verdict:?}");
        (pool.reach, pool.queue.length) = (Reach::Reachable, 0);
        assert_eq!(Verdict::of(&pool, 0).level, Level::Leaking);
        assert!(Level::Exhausted > Level::Leaking && Level::Leaking > Level::Well);
    }

    #[test]
    fn the_shortage_began_in_the_first_of_the_short_samples() {
        let mut pool = pool(5, 0, 1);
        assert_eq!(Verdict::of(&pool, 100_000).since_ms, Some(96_760), "when the first came");
        let parts = [(80, 1.0), (85, 0.0), (90, 0.4), (95, 1.0)];
        pool.history = parts
            .map(|(at, saturated)| Sample { at_ms: at * 1_000, saturated, ..Sample::default() })
            .to_vec();
        assert_eq!(Verdict::of(&pool, 100_000).since_ms, Some(88_000));
        pool.queue.length = 0;
        assert_eq!(Verdict::of(&pool, 100_000).since_ms, None, "it is over");
    }

    #[test]
    fn advice_names_who_and_which_setting() {
        let mut pool = pool(1, 4, 2);
        pool.holders = vec![holder(true)];
        let advice = Verdict::of(&pool, 0).advice;
        assert!(
            advice.starts_with("web.1 (client 17) has done nothing inside a transaction for 45 s")
        );
        assert!(advice.contains("postgres.idle_transaction_timeout_ms"), "{advice}");
        pool.holders = vec![holder(false)];
        pool.plan = vec![PlanLimit { scope: "role".to_owned(), used: 7, limit: 20 }];
        let advice = Verdict::of(&pool, 0).advice;
        assert!(advice.contains("web.1 (client 17) the longest (50 s)"), "{advice}");
        assert!(
            advice.contains("TIDEGATE_POSTGRES_POOL_SIZE (the role allows 13 more)"),
            "{advice}"
        );
        (pool.limit, pool.limit_reason) = (3, Some("too many connections for role".to_owned()));
        let advice = Verdict::of(&pool, 0).advice;
        assert!(advice.contains("3 of 5 connections (too many connections for role)"), "{advice}");
    }

    #[test]
    fn times_are_said_as_people_do() {
        let said = [0.04, 9.94, 10.0, 75.9, 3_725.0, 90_000.0, f64::NAN].map(span);
        assert_eq!(said, ["0.0 s", "9.9 s", "10 s", "1 min 15 s", "1 h 2 min", "1 d 1 h", "0.0 s"]);
    }
}
