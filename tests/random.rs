//! Random scripts for two to eight sessions, run over a pool with fewer server connections than clients and, in the same
//! order, over direct connections: same rows, same errors, same notices, same settings reported, same notifications.
//!
//! Steps run in lock step, one to its complete reply and then the next, so that a script has one outcome. What differs on
//! the two sides is minimised to a short script and shown. Every script proves that at least two server connections
//! served each of its sessions, and that each is given back when its session has nothing on it.
//!
//! ```sh
//! cargo test --test random                                       # 2,000 scripts
//! TIDEGATE_RANDOM_SCRIPTS=50000 cargo test --test random         # by hand; shared out to the tests of this file
//! TIDEGATE_RANDOM_SEED=7 cargo test --test random                # other scripts
//! TIDEGATE_RANDOM_ONLY=123456 cargo test --test random listening # the one script with this seed, of one test
//! ```
//!
//! (Under cargo-nextest a test is ended after two minutes: use `cargo test` for many scripts.)
//!
//! What the README names as limits is not asked: `currval()` and `lastval()` in another transaction than the draw; whether
//! a custom setting that is not set is NULL or an empty text; `pg_listening_channels()`; LISTEN with a `client_encoding` other
//! than UTF8; functions that hide a SET. A statement whose result type has changed is prepared anew by the pool, outside
//! transactions; the direct side does the same here. Nor is asked what a connection's past decides: settings that can't
//! change once temporary tables were used, the order of rows in a table, whether `pg_temp` is there while it is empty.
//!
//! Left out, too, because the pool is known to differ: LISTEN behind the beginning of its transaction, where a session that
//! listens already hears what others notified since; one name for a statement of the protocol and one of SQL; names that a
//! flight takes, gives up and takes anew in several transactions; a look at settings behind a RESET in the same transaction's
//! flight, where the client gave some at startup, and SET TRANSACTION ISOLATION LEVEL behind a RESET there; a look at a named
//! statement in a failed transaction; a SET ROLE that a SET LOCAL SESSION AUTHORIZATION allowed (it can't be brought to
//! another connection: the session ends there); an UNLISTEN that overtakes a notification on its way through the hub; locks on tables that a Parse alone takes (the pool knows the statement). Which of several refusals a failed transaction gives is not compared, and a
//! setting may be reported behind the ReadyForQuery instead of before it (`late_reports` counts that); while the listening connection takes a
//! channel over, notifications of several channels may come in another order than they were sent (`mixed`: one script in a
//! thousand at most).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "random/chance.rs"]
mod chance;
#[path = "random/generator.rs"]
mod generator;
#[path = "random/runner.rs"]
mod runner;
#[path = "random/script.rs"]
mod script;
#[path = "random/shrinker.rs"]
mod shrinker;
#[path = "random/side.rs"]
mod side;
#[path = "random/stage.rs"]
mod stage;
#[path = "random/words.rs"]
mod words;

use std::time::{Duration, Instant};

use runner::{Difference, Tally};
use script::Script;
use stage::Stage;

/// What all tests of this file run together.
const SCRIPTS: u64 = 2_000;
/// How many tests share them.
const TESTS: u64 = 4;
/// Most scripts run to make a failed one shorter.
const SHRINK_TRIES: usize = 400;
/// For how long at most.
const SHRINK_TIME: Duration = Duration::from_secs(45);

/// One kind of stage.
pub struct Profile {
    /// Server connections of the pool.
    pool: usize,
    /// Whether sessions LISTEN; one connection of the pool listens for all of them then.
    listens: bool,
    /// Whether sessions may become anybody.
    superuser: bool,
    /// Most sessions of a script.
    sessions: usize,
}

/// What a session may give at startup; the last but one is refused.
pub const LOGINS: [&[(&str, &str)]; 10] = [
    &[],
    &[("application_name", "greeter"), ("TimeZone", "Asia/Tokyo")],
    &[("options", "-c work_mem=6MB -c search_path=two,public")],
    &[("client_encoding", "UTF8"), ("DateStyle", "German")],
    &[("options", "-c app.a=start --default-transaction-isolation=serializable")],
    &[("options", "-c role=other")],
    &[("extra_float_digits", "0"), ("application_name", "")],
    &[("options", "-c standard_conforming_strings=off"), ("IntervalStyle", "iso_8601")],
    &[("options", "-c work_mem=nonsense")],
    &[("client_encoding", "LATIN1")],
];

/// Of these, one that can't share the listening connection.
pub const LOGIN_IN_LATIN1: usize = 9;

static PLAIN: Profile = Profile { pool: 3, listens: false, superuser: false, sessions: 6 };
static LISTENING: Profile = Profile { pool: 4, listens: true, superuser: false, sessions: 6 };
static MANY: Profile = Profile { pool: 5, listens: true, superuser: false, sessions: 8 };
static ANYBODY: Profile = Profile { pool: 3, listens: false, superuser: true, sessions: 5 };

#[test]
fn plain_sessions_bring_the_same() {
    compare(&PLAIN, 1);
}

#[test]
fn listening_sessions_bring_the_same() {
    compare(&LISTENING, 2);
}

#[test]
fn many_sessions_bring_the_same() {
    compare(&MANY, 3);
}

#[test]
fn sessions_that_may_become_anybody_bring_the_same() {
    compare(&ANYBODY, 4);
}

/// Runs this test's share of scripts; stops at the first that differs.
fn compare(profile: &'static Profile, test: u64) {
    let mut stage = Stage::new(profile);
    let started = Instant::now();
    let mut tally = Tally::default();
    for seed in seeds(test) {
        let script = generator::script(seed, profile);
        match runner::run(&mut stage, &script) {
            Ok(one) => tally.add(one),
            Err(difference) => {
                panic!("{}", report(stage, &script, &difference));
            }
        }
    }
    stage.assert_alive();
    eprintln!("{tally:?} in {:?}", started.elapsed());
    assert!(tally.mixed <= 1 + tally.scripts / 1_000, "too often in another order: {tally:?}");
    let enough = tally.sessions * 4 / 10;
    assert!(tally.moved_early >= enough || tally.scripts < 20, "too few sessions move: {tally:?}");
}

fn seeds(test: u64) -> Vec<u64> {
    if let Some(only) = number("TIDEGATE_RANDOM_ONLY") {
        return vec![only];
    }
    let count = number("TIDEGATE_RANDOM_SCRIPTS").unwrap_or(SCRIPTS).div_ceil(TESTS);
    let first = number("TIDEGATE_RANDOM_SEED").unwrap_or(0) * 1_000_000_000 + test * 10_000_000;
    (first..first + count).collect()
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value}: give a number")))
}

/// The script made short.
fn report(stage: Stage, script: &Script, first: &Difference) -> String {
    // Kept by the test runner: making it short may fail, too.
    eprintln!("{script}differs at step {}: {}", first.step, first.what);
    let log = stage.log();
    let mut stage = Some(stage);
    let mut fails = |script: &Script| {
        let mut fresh = stage.take()?.renewed();
        let difference = runner::run(&mut fresh, script).err();
        stage = Some(fresh);
        difference
    };
    if fails(script).is_none() {
        return format!(
            "{script}differs at step {}: {}\nNot when it is run alone: what scripts before it have left matters.\n{log}",
            first.step, first.what
        );
    }
    let started = Instant::now();
    let short = shrinker::shrink(script, SHRINK_TRIES, |script| {
        started.elapsed() < SHRINK_TIME && fails(script).is_some()
    });
    let (step, what) = fails(&short)
        .map_or((0, "not any more".to_owned()), |difference| (difference.step, difference.what));
    format!(
        "{short}differs at step {step}: {what}\n(At first: step {}: {})",
        first.step, first.what
    )
}
