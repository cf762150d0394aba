//! Random commands of several sessions, over a gate with few server connections and, in the same order, over direct connections to
//! a server of their own: the same replies, byte for byte.
//!
//! A step is one session's pipeline, in one write or in pieces; its replies are read whole before the next step, so that a script
//! has one outcome. What differs is made short and shown.
//!
//! ```sh
//! cargo test --test redis_words                                        # 300,000 commands
//! TIDEGATE_RANDOM_COMMANDS=10000000 cargo test --test redis_words      # by hand; shared out to the tests of this file
//! TIDEGATE_RANDOM_SEED=7 cargo test --test redis_words                 # other scripts
//! ```
//!
//! Left out is what Redis itself answers by chance, by time or by connection: SPOP and its kin, the order of large sets, SCAN,
//! RANDOMKEY, TIME, TTLs, INFO, ids (HELLO's is hidden). Sets hold numbers, of which Redis keeps the order. SUBSCRIBE inside MULTI
//! keeps a connection, as the README says; subscriptions and long waits are in tests of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "random/chance.rs"]
mod chance;
#[path = "redis_words/side.rs"]
mod side;
#[path = "redis_words/words.rs"]
mod words;

use std::fmt::Write;
use std::time::{Duration, Instant};

use chance::Chance;
use side::Side;
use support::redis::{Redis, Version};
use support::tidegate::{Setup, Tidegate};
use words::{APART, Command, Place};

/// What all tests of this file run together.
const COMMANDS: u64 = 300_000;
/// How many tests share them.
const TESTS: u64 = 8;
/// Keys of others.
const FOREIGN: &[&str] =
    &["k0", "k1", "k2", "l0", "l1", "s0", "z0", "z1", "h0", "x0", "other:k0", "apar", "apart"];
/// For how long at most a script is made shorter.
const SHRINK_TIME: Duration = Duration::from_secs(40);

/// One session's pipeline.
#[derive(Debug, Clone)]
struct Step {
    session: usize,
    commands: Vec<Command>,
    /// Bytes of each write.
    piece_bytes: usize,
}

struct Stage {
    sides: [Side; 2],
    servers: [Redis; 2],
    gate: Tidegate,
    place: Place,
}

/// What a test is about.
#[derive(Debug, Clone, Copy)]
struct Profile {
    pool_size: usize,
    sessions: usize,
    place: Place,
    version: Version,
}

impl Stage {
    fn new(profile: Profile) -> Self {
        let Profile { pool_size, sessions, place, version } = profile;
        let servers = [Redis::of(version), Redis::of(version)];
        for server in &servers {
            // As long as they are, hashes keep their order.
            let longest = ["hash-max-listpack-value", "400000"];
            server.direct().command(&[&["CONFIG", "SET"][..], &longest].concat());
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut setup = Setup::new().redis(&servers[1]).pool_size(pool_size).wait_ms(1_500);
        if place == Place::Namespace {
            let text = format!(
                "[redis]\nnamespace = \"{APART}\"\n[[redis.namespaces]]\nname = \"{APART}\"\nmode = \"prefix\"\n"
            );
            std::fs::write(file.path(), text).unwrap();
            setup = setup.config(file.path());
        }
        let gate = setup.start();
        let sides = [servers[0].port(), gate.redis_port()].map(|port| Side::new(port, sessions));
        Self { sides, servers, gate, place }
    }

    /// Runs a script; the first difference, for people.
    fn run(&mut self, script: &[Step]) -> Result<u64, String> {
        self.sides.iter_mut().for_each(Side::reset);
        let empty = [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FUNCTION", "FLUSH"]];
        match self.place {
            // Over the gate: it is to know that the scripts are gone.
            Place::Alone => {
                let commands = empty.iter().map(|words| Command::new(words)).collect();
                let step = Step { session: 0, commands, piece_bytes: usize::MAX };
                self.sides.iter_mut().for_each(|side| drop(side.say(&step)));
            }
            Place::Namespace => {
                for server in &self.servers {
                    let mut direct = server.direct();
                    empty.iter().for_each(|words| drop(direct.command(words)));
                }
                self.fill();
            }
        }
        let mut count = 0;
        for (at, step) in script.iter().enumerate() {
            let [direct, pooled] = self.sides.each_mut().map(|side| side.say(step));
            for (n, command) in step.commands.iter().enumerate() {
                if direct.get(n) != pooled.get(n) {
                    return Err(format!(
                        "step {at}, session {}, {command}\n  direct: {}\n  pooled: {}",
                        step.session,
                        shown(direct.get(n)),
                        shown(pooled.get(n)),
                    ));
                }
            }
            count += u64::try_from(step.commands.len()).unwrap();
        }
        Ok(count)
    }

    /// What is in the server beside the namespace: the names that sessions say, and they are others.
    fn fill(&self) {
        let mut direct = self.servers[1].direct();
        for database in ["0", "1", "2"] {
            direct.command(&["SELECT", database]);
            for name in FOREIGN {
                direct.command(&["SET", name, "foreign"]);
            }
        }
    }

    /// What was there is there as it was.
    fn is_filled(&self) -> bool {
        let mut direct = self.servers[1].direct();
        ["0", "1", "2"].iter().all(|database| {
            direct.command(&["SELECT", database]);
            direct
                .command(&[&["MGET"][..], FOREIGN].concat())
                .words()
                .iter()
                .all(|value| value == "foreign")
        })
    }

    /// Every session is as good as new.
    fn tidy(&mut self, look: bool) -> Result<(), String> {
        self.sides.iter_mut().for_each(Side::reset);
        if look { self.left_behind().map_or(Ok(()), Err) } else { Ok(()) }
    }

    /// What sessions that are as good as new have left on the server's connections.
    fn left_behind(&self) -> Option<String> {
        let held = || self.gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]);
        let begun = Instant::now();
        while held() > 0.0 {
            if begun.elapsed() > Duration::from_secs(2) {
                return Some(format!("{} connections are still held", held()));
            }
        }
        let list = self.servers[1].direct().command(&["CLIENT", "LIST"]).text();
        let stained =
            list.lines().find(|line| !line.contains(" multi=-1 ") || line.contains("flags=x"));
        stained.map(|line| format!("a connection is inside MULTI: {line}"))
    }
}

fn shown(reply: Option<&Vec<u8>>) -> String {
    let Some(reply) = reply else { return "(closed)".to_owned() };
    let text = String::from_utf8_lossy(&reply[..reply.len().min(300)]).into_owned();
    format!("{text:?} ({} bytes)", reply.len())
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value}: give a number")))
}

/// Runs this test's share of the commands; stops at the first script that differs.
fn compare(test: u64, pool_size: usize, sessions: usize) {
    let (place, version) = (Place::Alone, Version::Systems);
    compare_in(Profile { pool_size, sessions, place, version }, test, share());
}

/// This test's.
fn share() -> u64 {
    number("TIDEGATE_RANDOM_COMMANDS").unwrap_or(COMMANDS) / TESTS + 1
}

fn compare_in(profile: Profile, test: u64, wanted: u64) {
    let Profile { pool_size, sessions, place, .. } = profile;
    // One for the lane, one for those who wait for elements, one for whatever else needs one.
    let holds = (pool_size - pool_size / 4).saturating_sub(2);
    let mut stage = Stage::new(profile);
    let mut seed = number("TIDEGATE_RANDOM_SEED").unwrap_or(0) * 1_000_000_000 + test * 10_000_000;
    let (mut done, mut most) = (0, 0);
    while done < wanted {
        let script = script(seed, sessions, holds, place);
        // This takes its time.
        let look = seed.is_multiple_of(25);
        match stage.run(&script).and_then(|count| stage.tidy(look).map(|()| count)) {
            Ok(count) => done += count,
            Err(difference) => panic!("{}", report(seed, script, &difference, profile)),
        }
        assert!(
            place == Place::Alone || stage.is_filled(),
            "seed {seed} has changed what is others'"
        );
        most = most.max(stage.servers[1].connections());
        seed += 1;
    }
    assert!(most < sessions, "{most} connections for {sessions} sessions");
    assert!(stage.gate.redis_metric("tidegate_requests_total", &[]) > 0.5 * lossless(done));
    stage.gate.assert_alive();
}

fn lossless(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

fn script(seed: u64, sessions: usize, holds: usize, place: Place) -> Vec<Step> {
    let mut chance = Chance::new(seed);
    let mut words = words::Words::new(sessions, holds, place);
    let steps = 10 + chance.below(30);
    (0..steps)
        .map(|_| {
            let session = chance.below(sessions);
            let count = chance.weighted(&[(3, 1), (3, 5), (4, 40), (1, 150)]);
            let count = 1 + chance.below(count);
            let commands = (0..count).map(|_| words.command(&mut chance, session)).collect();
            let piece_bytes = chance.weighted(&[(8, usize::MAX), (1, 700), (1, 13)]);
            Step { session, commands, piece_bytes }
        })
        .collect()
}

/// The script made short, over fresh servers.
fn report(seed: u64, script: Vec<Step>, first: &str, profile: Profile) -> String {
    let started = Instant::now();
    let fails = |script: &[Step]| {
        let mut stage = Stage::new(profile);
        started.elapsed() < SHRINK_TIME && stage.run(script).and_then(|_| stage.tidy(true)).is_err()
    };
    let mut short = script;
    if !fails(&short) {
        return format!("seed {seed}: {first}\nNot when it is run alone.");
    }
    let mut at = 0;
    while at < short.len() {
        let mut fewer = short.clone();
        fewer.remove(at);
        if fails(&fewer) {
            short = fewer;
        } else {
            at += 1;
        }
    }
    for step in 0..short.len() {
        let mut size = short[step].commands.len();
        while size > 0 {
            let mut begin = 0;
            while begin < short[step].commands.len() {
                let mut fewer = short.clone();
                let end = (begin + size).min(fewer[step].commands.len());
                fewer[step].commands.drain(begin..end);
                if fails(&fewer) {
                    short = fewer;
                } else {
                    begin += size;
                }
            }
            size /= 2;
        }
    }
    let last = Stage::new(profile).run(&short).err();
    let mut text = format!("seed {seed}: {first}\nshort:\n");
    for step in &short {
        writeln!(text, "  session {} in pieces of {}:", step.session, step.piece_bytes).unwrap();
        step.commands.iter().for_each(|command| writeln!(text, "    {command}").unwrap());
    }
    format!("{text}{}", last.unwrap_or_else(|| "not any more".to_owned()))
}

#[test]
fn eight_sessions_over_four_connections() {
    compare(1, 4, 8);
}

#[test]
fn five_sessions_over_one_connection() {
    compare(2, 1, 5);
}

#[test]
fn twelve_sessions_over_eight_connections() {
    compare(3, 8, 12);
}

#[test]
fn six_sessions_over_two_connections() {
    compare(4, 2, 6);
}

#[test]
fn five_sessions_over_four_connections() {
    compare(5, 4, 5);
}

#[test]
fn ten_sessions_over_six_connections() {
    compare(6, 6, 10);
}

/// A client in a namespace of a full server is answered as one that has an empty server for itself.
fn compare_in_a_namespace(test: u64, pool_size: usize, sessions: usize) {
    let (place, version) = (Place::Namespace, Version::Systems);
    compare_in(Profile { pool_size, sessions, place, version }, test, share());
}

#[test]
fn eight_sessions_in_a_namespace() {
    compare_in_a_namespace(7, 4, 8);
}

#[test]
fn nine_sessions_in_a_namespace_over_eight_connections() {
    compare_in_a_namespace(8, 8, 9);
}

/// Beyond the shares of all: fewer of them.
#[test]
fn seven_sessions_in_a_namespace_of_a_newer_server() {
    let (place, version) = (Place::Namespace, Version::Newest);
    compare_in(Profile { pool_size: 5, sessions: 7, place, version }, 9, share() / 3);
}
