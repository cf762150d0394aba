//! Random scripts for Redis sessions, run over a pool with fewer server connections than clients and, in the same order,
//! over direct connections to a second server: the same replies, byte for byte.
//!
//! Steps run in lock step: one session sends a flight of commands, and all its replies are read, before the next. What
//! differs is minimised and shown.
//!
//! ```sh
//! cargo test --test redis_random                                     # 1,000,000 commands
//! TIDEGATE_RANDOM_COMMANDS=5000000 cargo test --test redis_random    # by hand; shared out to the tests of this file
//! TIDEGATE_RANDOM_SEED=7 cargo test --test redis_random              # other scripts
//! TIDEGATE_RANDOM_ONLY=123456 cargo test --test redis_random four    # the one script with this seed, of one test
//! ```
//!
//! Not asked, because two servers need not agree: SPOP, RANDOMKEY and the order of sets and KEYS (hash tables are seeded),
//! TIME, INFO, cursors of SCAN, near expiry, DUMP of sets. The connection's id in HELLO is not compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "random/chance.rs"]
#[allow(dead_code, reason = "each test uses its own part")]
mod chance;
#[path = "redis_random/generator.rs"]
mod generator;
#[path = "redis_random/runner.rs"]
mod runner;
#[path = "redis_random/script.rs"]
mod script;
#[path = "redis_random/shrinker.rs"]
mod shrinker;
#[path = "redis_random/stage.rs"]
mod stage;
#[path = "redis_random/words.rs"]
mod words;

use std::time::{Duration, Instant};

use runner::Difference;
use script::Script;
use stage::Stage;

/// What all tests of this file run together.
const COMMANDS: u64 = 1_000_000;
/// How many tests share them.
const TESTS: u64 = 4;
/// For how long at most a failed script is made shorter.
const SHRINK_TIME: Duration = Duration::from_secs(40);

/// One kind of stage.
pub struct Profile {
    /// Server connections of the pool.
    pool: usize,
    /// A script has one session more than the pool has connections, and fewer than so many besides.
    more_sessions: usize,
}

#[test]
fn one_connection_brings_the_same() {
    compare(&Profile { pool: 1, more_sessions: 4 }, 1);
}

#[test]
fn two_connections_bring_the_same() {
    compare(&Profile { pool: 2, more_sessions: 3 }, 2);
}

#[test]
fn three_connections_bring_many_sessions_the_same() {
    compare(&Profile { pool: 3, more_sessions: 5 }, 3);
}

#[test]
fn four_connections_bring_the_same() {
    compare(&Profile { pool: 4, more_sessions: 4 }, 4);
}

/// Runs this test's share of commands; stops at the first script that differs.
fn compare(profile: &Profile, test: u64) {
    let mut stage = Stage::new(profile);
    let started = Instant::now();
    let only = number("TIDEGATE_RANDOM_ONLY");
    let wanted = number("TIDEGATE_RANDOM_COMMANDS").unwrap_or(COMMANDS).div_ceil(TESTS);
    let first = number("TIDEGATE_RANDOM_SEED").unwrap_or(0) * 1_000_000_000 + test * 10_000_000;
    let (mut scripts, mut commands) = (0, 0);
    while commands < wanted && (only.is_none() || scripts == 0) {
        let seed = only.unwrap_or(first + scripts);
        let script = generator::script(seed, profile);
        if let Err(difference) = runner::run(&stage, &script) {
            panic!("seed {seed}\n{}", report(profile, &script, &difference));
        }
        scripts += 1;
        commands += script.commands() as u64;
    }
    stage.gate.assert_alive();
    let carried = stage.gate.redis_metric("tidegate_requests_total", &[]);
    eprintln!(
        "{scripts} scripts, {commands} commands, {carried} carried in {:?}",
        started.elapsed()
    );
    assert!(only.is_some() || commands >= wanted, "{commands} of {wanted}");
    assert!(carried > 0.5 * commands as f64, "{carried} of {commands} carried");
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value}: give a number")))
}

/// The script made short.
fn report(profile: &Profile, script: &Script, first: &Difference) -> String {
    let started = Instant::now();
    let mut last = format!("step {}: {}", first.step, first.what);
    let stage = Stage::new(profile);
    let short = shrinker::shrink(script, |script| {
        if started.elapsed() > SHRINK_TIME {
            return false;
        }
        let difference = runner::run(&stage, script).err();
        if let Some(difference) = &difference {
            last = format!("step {}: {}", difference.step, difference.what);
        }
        difference.is_some()
    });
    format!("{short}differs at {last}\n(At first: step {}: {})", first.step, first.what)
}
