//! Which words of a command are keys: what tidegate reads is what the server says to COMMAND GETKEYS, for every command of the
//! table and many shapes of its words, on each version of Redis.
//!
//! Where the server does not answer (it finds the words wrong, or knows of no keys) there is nothing to compare; where it tells the
//! first of several STOREs only, tidegate must find that one and may find more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "random/chance.rs"]
mod chance;

use chance::Chance;
use support::redis::Redis;
use support::resp::Value;
use tidegate::redis::command::{Command, Named, all, look_up, names};

/// Cases of each command.
const CASES: usize = 150;

/// What commands are made of beside their keys.
const WORDS: &[&str] = &[
    "k1",
    "k2",
    "k3",
    "key:with:colons",
    "0",
    "1",
    "2",
    "3",
    "-1",
    "5",
    "+1",
    "01",
    "1.5",
    "9999999999",
    "STORE",
    "store",
    "STOREDIST",
    "STREAMS",
    "streams",
    "GROUP",
    "COUNT",
    "BLOCK",
    "NOACK",
    "BY",
    "GET",
    "#",
    "w_*",
    "LIMIT",
    "ASC",
    "ALPHA",
    "km",
    "m",
    "LEFT",
    "RIGHT",
    "MIN",
    "MAX",
    "WEIGHTS",
    "AGGREGATE",
    "SUM",
    "NX",
    "XX",
    "EX",
    "KEYS",
    "AUTH",
    "REPLACE",
    "DB",
    "AND",
    "OR",
    "WITHSCORES",
    ">",
    "$",
    "*",
    "",
];

/// A command's words: its name, then some of each kind.
fn case(command: &Command, chance: &mut Chance) -> Vec<&'static str> {
    let mut words: Vec<&str> = command.name.split('|').collect();
    let least = usize::from(command.arity.unsigned_abs());
    let more = [(3, 0), (3, 1), (2, 2), (2, 3), (1, 5), (1, 6)];
    let more = if command.arity < 0 { chance.weighted(&more) } else { 0 };
    while words.len() < least + more {
        words.push(chance.pick(WORDS));
    }
    // What a command needs to be one at all, more often than chance has it. Streams are always asked for in their order: the
    // server looks for the first STREAMS, wherever it stands, and the command for its own.
    if chance.often(60) || command.name.starts_with("XREAD") {
        match command.name {
            "SORT" | "SORT_RO" => {
                let options: &[&[&str]] = &[
                    &["BY", "w_*"],
                    &["GET", "#"],
                    &["LIMIT", "0", "5"],
                    &["STORE", "k3"],
                    &["DESC"],
                    &["ALPHA"],
                ];
                words.truncate(2);
                for _ in 0..chance.below(5) {
                    words.extend_from_slice(options[chance.below(options.len())]);
                }
            }
            "XREAD" | "XREADGROUP" => {
                let mut begins = match command.name {
                    "XREAD" => vec!["XREAD"],
                    _ => vec!["XREADGROUP", "GROUP", "g", "c"],
                };
                let options: &[&[&str]] = &[&["COUNT", "1"], &["BLOCK", "0"], &[]];
                begins.extend_from_slice(options[chance.below(3)]);
                begins.push(chance.pick(&["STREAMS", "streams"]));
                let keys = 1 + chance.below(3);
                begins.extend(
                    (0..2 * keys).map(|at| if at < keys { ["k1", "k2", "k3"][at] } else { "0" }),
                );
                words = begins;
            }
            "GEORADIUS" | "GEORADIUSBYMEMBER" if chance.often(70) => {
                words.truncate(least);
                words.extend_from_slice(&["COUNT", "1", "STORE", "k2"][chance.below(2) * 2..]);
            }
            _ => {}
        }
    }
    words
}

fn ours(words: &[&str]) -> Vec<String> {
    let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let mut found = Vec::new();
    if let Some(command) = look_up(&bytes) {
        names(command, &bytes, &mut |at, named| {
            if let Named::Key(_) = named {
                found.push(words[at].to_owned());
            }
        });
    }
    found
}

/// Whether the server tells the first of several places only, or in another order. (MIGRATE: of a key and KEYS one alone counts;
/// in a namespace it is refused.)
fn tells_less(command: &Command) -> bool {
    matches!(command.name, "SORT" | "SORT_RO" | "GEORADIUS" | "GEORADIUSBYMEMBER" | "MIGRATE")
}

#[test]
fn keys_are_where_the_server_says() {
    let (mut commands, mut cases) = (0, 0);
    for server in Redis::each() {
        let mut client = server.direct();
        for command in all().iter().filter(|command| !command.keys.is_empty()) {
            let mut chance = Chance::new(u64::try_from(command.name.len()).unwrap() * 7_919);
            let before = cases;
            let made: Vec<_> = (0..CASES).map(|_| case(command, &mut chance)).collect();
            let asked: Vec<Vec<&str>> =
                made.iter().map(|words| [&["COMMAND", "GETKEYS"][..], words].concat()).collect();
            let asked: Vec<&[&str]> = asked.iter().map(Vec::as_slice).collect();
            for (words, told) in made.iter().zip(client.pipeline(&asked)) {
                let Value::Array(_) = told else { continue };
                let (mut theirs, mut ours) = (told.words(), ours(words));
                theirs.sort();
                ours.sort();
                let agrees = if tells_less(command) {
                    theirs.iter().all(|key| ours.contains(key))
                } else {
                    theirs == ours
                };
                assert!(agrees, "{words:?}: the server says {theirs:?}, tidegate {ours:?}");
                cases += 1;
            }
            commands += usize::from(cases > before);
        }
    }
    println!("{commands} commands (each version's), {cases} cases, no difference");
    assert!(commands > 350 && cases > 10_000, "{commands} commands, {cases} cases");
}
