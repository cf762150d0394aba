//! Whoever has waited longest for a key is served first, whatever each waits with: the server's own order, on few connections.
//!
//! Random scripts run in lock step over a pool and directly on a second server: clients come one after another to wait, some go,
//! and elements are pushed, one or several at a time. After each step the same clients must have the same bytes, and the keys the
//! same content. What differs is made shorter and shown.
//!
//! ```sh
//! TIDEGATE_RANDOM_COMMANDS=20000 cargo test --test redis_order   # more steps, shared out to the tests of this file
//! TIDEGATE_RANDOM_SEED=7 cargo test --test redis_order           # other scripts
//! ```
//!
//! Not asked: what a client gets that waits for several keys of which several are filled at once by one transaction, or one by
//! another's move. The server serves all in one go; here each takes what comes in a call of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "random/chance.rs"]
#[allow(dead_code, reason = "each test uses its own part")]
mod chance;
#[path = "redis_order/script.rs"]
mod script;
#[path = "redis_order/stage.rs"]
mod stage;

use std::fmt::Write;
use std::time::{Duration, Instant};

use chance::Chance;
use script::Act;
use stage::Stage;
use support::redis::{Redis, Version};
use support::resp::{Connection, encode};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, within};

/// What all random tests of this file do together.
const ACTS: u64 = 3_000;
const TESTS: u64 = 4;
/// For how long at most a failed script is made shorter.
const SHRINK_TIME: Duration = Duration::from_secs(60);

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

fn parked(gate: &Tidegate, clients: usize) {
    let wanted = clients as f64;
    eventually("they wait", || {
        (gate.redis_metric("tidegate_parked_clients", &[]) == wanted).then_some(())
    });
}

/// One after another comes to wait with one of `lines`.
fn come(gate: &Tidegate, lines: &[&str]) -> Vec<Connection> {
    let mut waiters = Vec::new();
    for line in lines {
        let mut waiter = gate.redis_client();
        waiter.send(&words(line));
        waiters.push(waiter);
        parked(gate, waiters.len());
    }
    waiters
}

/// Each gets its element before the next one does, be they pushed one by one or all at once.
#[test]
fn whoever_came_first_is_served_first_whatever_it_waits_with() {
    const LINES: [&str; 8] = [
        "BRPOP q 0",
        "BLPOP q 0",
        "BLPOP p q 0",
        "BRPOP q 0",
        "BLMPOP 0 1 q RIGHT",
        "BLMOVE q to LEFT RIGHT 0",
        "BRPOPLPUSH q to 0",
        "BLPOP q p 9",
    ];
    for server in Redis::each() {
        for pool_size in [2, 8] {
            let gate = Setup::new().redis(&server).pool_size(pool_size).wait_ms(5_000).start();
            let mut direct = server.direct();
            for round in 0..6 {
                let mut waiters = come(&gate, &LINES);
                // From both ends, so that each one's element tells whose turn it was.
                let mut jobs: Vec<String> = (0..LINES.len()).map(|n| format!("job{n}")).collect();
                if round % 2 == 0 {
                    for (n, (waiter, job)) in waiters.iter_mut().zip(&jobs).enumerate() {
                        direct.command(&["RPUSH", "q", job]);
                        let reply = format!("{:?}", waiter.reply());
                        let wanted = format!("{job:?}");
                        let bytes = format!("{:?}", job.as_bytes());
                        assert!(reply.contains(&wanted) || reply.contains(&bytes), "{n}: {reply}");
                    }
                } else {
                    direct.command(
                        &[
                            &["RPUSH", "q"][..],
                            &jobs.iter().map(String::as_str).collect::<Vec<_>>(),
                        ]
                        .concat(),
                    );
                    for (waiter, line) in waiters.iter_mut().zip(LINES) {
                        let last = line.starts_with("BR") || line.ends_with("RIGHT");
                        let job = if last { jobs.pop().unwrap() } else { jobs.remove(0) };
                        let reply = format!("{:?}", waiter.reply());
                        let bytes = format!("{:?}", job.as_bytes());
                        assert!(reply.contains(&bytes), "{line}: {reply}, not {job}");
                    }
                }
                direct.command(&["DEL", "to"]);
                parked(&gate, 0);
            }
            // One lane, one for each key in whose line somebody is first, and the one that pushes: not one for each command.
            let connections = server.connections();
            assert!(connections <= 4, "{connections}");
        }
    }
}

/// Between two that wait with the same command one waits with another.
#[test]
fn who_leaves_lets_the_next_one_in_its_key_come_first() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).pool_size(4).start();
    let mut direct = server.direct();
    for (first, second, third) in
        [("BLPOP q 0", "BRPOP q 0", "BLPOP q 0"), ("BRPOP q 0.2", "BLPOP q 0", "BRPOP q 0")]
    {
        let mut waiters = come(&gate, &[first, second, third]);
        let mut left = waiters.remove(0);
        if first.ends_with(" 0") {
            left.hang_up();
        } else {
            assert_eq!(left.reply(), support::resp::Value::Null);
        }
        parked(&gate, 2);
        direct.command(&["RPUSH", "q", "1", "2", "3"]);
        let [one, two] = &mut waiters[..] else { panic!("two are left") };
        let [one, two] = [one, two].map(|waiter| waiter.reply().words().remove(1));
        let wanted = if first.starts_with("BL") { ["3", "1"] } else { ["1", "3"] };
        assert_eq!([one, two], wanted);
        assert_eq!(direct.command(&["LRANGE", "q", "0", "-1"]).words(), ["2"]);
        direct.command(&["DEL", "q"]);
    }
}

/// Nothing can come for them as long as another one is first.
#[test]
fn time_is_kept_by_those_whose_turn_has_not_come() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).pool_size(4).start();
    let mut waiters = come(&gate, &["BLPOP q 0"]);
    let mut client = gate.redis_client();
    for time in ["0.05", "0.2"] {
        let asked = Instant::now();
        client.send(&words(&format!("BRPOP q {time}")));
        assert_eq!(client.reply(), support::resp::Value::Null);
        let late = asked.elapsed().as_secs_f64() - time.parse::<f64>().unwrap();
        assert!((0.0..0.05).contains(&late), "{late} s late");
    }
    server.direct().command(&["RPUSH", "q", "x"]);
    assert_eq!(waiters[0].reply().words(), ["q", "x"]);
}

#[test]
fn random_waiters_are_served_as_by_the_server() {
    compare(&|| Stage::new(Version::Systems, 8, &[]), 0);
}

#[test]
fn random_waiters_are_served_as_by_a_newer_server() {
    compare(&|| Stage::new(Version::Newest, 8, &[]), 1);
}

/// More kinds of waiting than connections.
#[test]
fn random_waiters_with_two_connections_are_served_as_by_the_server() {
    compare(&|| Stage::new(Version::Newest, 2, &[]), 2);
}

#[test]
fn random_waiters_of_a_server_without_client_command_are_served_as_by_it() {
    compare(&|| Stage::new(Version::Systems, 4, &["--rename-command", "CLIENT", ""]), 3);
}

/// Runs this test's share; stops at the first script that differs.
fn compare(open: &dyn Fn() -> Stage, test: u64) {
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
    let wanted = number("TIDEGATE_RANDOM_COMMANDS").unwrap_or(ACTS).div_ceil(TESTS);
    let first = number("TIDEGATE_RANDOM_SEED").unwrap_or(0) * 1_000_000_000 + test * 10_000_000;
    let (mut stage, mut done, mut served) = (open(), 0, 0);
    for seed in first.. {
        if done >= wanted {
            break;
        }
        let script = script::of(&mut Chance::new(seed));
        done += script.len() as u64;
        match stage.run(&script) {
            Ok(count) => served += count,
            Err(difference) => panic!("seed {seed}\n{}", report(open, script, difference)),
        }
    }
    eprintln!("{done} steps, {served} clients served after a wait");
    assert!(served as u64 > done / 10, "hardly anybody waited");
}

/// The script made short.
fn report(open: &dyn Fn() -> Stage, mut script: Vec<Act>, mut difference: String) -> String {
    let (began, first) = (Instant::now(), difference.clone());
    let mut at = script.len();
    while at > 0 && began.elapsed() < SHRINK_TIME {
        at -= 1;
        let mut shorter = script.clone();
        shorter.remove(at);
        if let Err(other) = open().run(&shorter) {
            (script, difference) = (shorter, other);
        }
    }
    let mut text = String::new();
    for act in &script {
        writeln!(text, "{act:?}").unwrap();
    }
    format!("{text}{difference}\n(At first: {first})")
}
