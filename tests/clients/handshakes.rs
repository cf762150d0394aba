//! Redis libraries that can't be had here, by the bytes that they send: their greeting and a typical use bring the same
//! bytes as directly. What they send follows their sources: go-redis 9 (`initConn`), lettuce 7 (`RedisHandshake`) and
//! jedis 5 (`Connection.initializeFromClientConfig`).

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::redis::{PASSWORD, Redis};
use crate::support::resp::{Connection, encode};
use crate::support::tidegate::Setup;

/// One write: commands that leave together.
type Flight = &'static [&'static [&'static str]];

/// Behind each flight: what ends with its answer has come whole.
const MARK: &str = "that-was-all";

#[test]
fn go_redis() {
    bring_the_same(&[
        &[&["hello", "3", "auth", "default", PASSWORD]],
        &[&["select", "2"]],
        &[&["client", "maint_notifications", "on", "moving-endpoint-type", "internal-ip"]],
        &[
            &["client", "setinfo", "LIB-NAME", "go-redis(,go1.24.1)"],
            &["client", "setinfo", "LIB-VER", "9.17.3"],
        ],
        &[&["set", "k", "v", "ex", "100"]],
        &[&["get", "k"]],
        &[&["get", "missing"]],
        &[&["hset", "h", "a", "1", "b", "2"], &["hgetall", "h"], &["incr", "k"], &["ping"]],
        &[&["multi"], &["incr", "n"], &["incr", "n"], &["exec"]],
        &[&["watch", "n"]],
        &[&["get", "n"]],
        &[&["multi"], &["set", "n", "5"], &["exec"]],
        &[&["unwatch"]],
        &[&["evalsha", "da39a3ee5e6b4b0d3255bfef95601890afd80709", "1", "k"]],
        &[&["subscribe", "news"]],
        // Of its own message and the reply either may come first: 7.0 and 8.2 differ.
        &[&["publish", "other", "hello"]],
        &[&["unsubscribe"]],
        &[&["blpop", "empty", "0.01"]],
        &[&["xadd", "s", "1-1", "f", "v"], &["xrange", "s", "-", "+"]],
    ]);
}

#[test]
fn go_redis_with_a_name() {
    bring_the_same(&[
        &[&["hello", "3", "auth", "default", PASSWORD, "setname", "worker"]],
        &[&["client", "setname", "worker"]],
        &[&["client", "getname"]],
        &[&["get", "k"]],
    ]);
}

#[test]
fn lettuce() {
    bring_the_same(&[
        &[&["HELLO", "3", "AUTH", "default", PASSWORD, "SETNAME", "lettuce#1"]],
        &[&["SELECT", "1"]],
        &[
            &["CLIENT", "SETINFO", "lib-name", "Lettuce"],
            &["CLIENT", "SETINFO", "lib-ver", "7.2.3.RELEASE/1a2b3c4"],
        ],
        &[&["CLIENT", "MAINT_NOTIFICATIONS", "on", "moving-endpoint-type", "internal-ip"]],
        &[&["SET", "k", "v"], &["GET", "k"], &["STRLEN", "k"]],
        &[&["MULTI"]],
        &[&["SET", "k", "w"]],
        &[&["INCR", "k"]],
        &[&["EXEC"]],
        &[&["SUBSCRIBE", "news", "more"]],
        &[&["PUBLISH", "other", "hello"]],
        &[&["UNSUBSCRIBE", "news"]],
        &[&["UNSUBSCRIBE", "more"]],
        &[&["INFO"]],
        &[&["PING"]],
        &[&["QUIT"]],
    ]);
}

/// Where the server has no RESP3, and where `protocolVersion` says so.
#[test]
fn lettuce_in_resp2() {
    bring_the_same(&[
        &[&["AUTH", PASSWORD]],
        &[&["CLIENT", "SETNAME", "lettuce#2"], &["CLIENT", "SETINFO", "lib-name", "Lettuce"]],
        &[&["PING"]],
        &[&["HSET", "h", "a", "1"], &["HGETALL", "h"], &["GET", "missing"]],
    ]);
}

#[test]
fn jedis() {
    bring_the_same(&[
        &[&["AUTH", PASSWORD]],
        &[
            &["SELECT", "3"],
            &["CLIENT", "SETINFO", "lib-name", "jedis"],
            &["CLIENT", "SETINFO", "lib-ver", "5.2.0"],
        ],
        &[&["PING"]],
        &[&["SET", "k", "v"]],
        &[&["MULTI"]],
        &[&["SET", "k", "w"], &["GET", "k"]],
        &[&["EXEC"]],
        &[&["BRPOP", "empty", "1"]],
        &[&["QUIT"]],
    ]);
}

fn bring_the_same(flights: &[Flight]) {
    let server = Redis::with_password();
    let gate = Setup::new().redis(&server).pool_size(4).start();
    let direct = play(server.port(), flights);
    server.direct().command(&["FLUSHALL"]);
    let pooled = play(gate.redis_port(), flights);
    for ((flight, direct), pooled) in flights.iter().zip(direct).zip(pooled) {
        if flight == &[&["INFO"][..]] {
            // And ours behind them.
            assert_eq!([headings(&direct), vec!["# Tidegate"]].concat(), headings(&pooled));
        } else {
            assert_eq!(neutral(&direct), neutral(&pooled), "{flight:?}");
        }
    }
    assert!(!gate.output().contains(PASSWORD));
}

/// What each flight brings.
fn play(port: u16, flights: &[Flight]) -> Vec<String> {
    let client = Connection::open(port);
    let mut inside = Inside::Nothing;
    flights.iter().map(|flight| ask(client.stream(), flight, &mut inside)).collect()
}

/// Where a flight leaves the connection.
#[derive(PartialEq)]
enum Inside {
    Nothing,
    /// Behind MULTI.
    Block,
    /// Behind QUIT.
    Goodbye,
}

fn ask(mut stream: &TcpStream, flight: Flight, inside: &mut Inside) -> String {
    for words in flight {
        match words[0].to_uppercase().as_str() {
            "MULTI" => *inside = Inside::Block,
            "EXEC" => *inside = Inside::Nothing,
            "QUIT" => *inside = Inside::Goodbye,
            _ => {}
        }
    }
    let bytes: Vec<u8> = flight.iter().flat_map(|words| encode(words)).collect();
    stream.write_all(&bytes).expect("the peer takes bytes");
    if *inside == Inside::Nothing {
        stream.write_all(&encode(&["ECHO", MARK])).expect("the peer takes bytes");
    }
    let mut answer = Vec::new();
    let mut piece = [0; 16_384];
    loop {
        let said = String::from_utf8_lossy(&answer);
        let whole = match inside {
            Inside::Nothing => said.ends_with(&format!("${}\r\n{MARK}\r\n", MARK.len())),
            // One line for each.
            Inside::Block => said.matches("\r\n").count() == flight.len(),
            Inside::Goodbye => false,
        };
        if whole {
            return said.into_owned();
        }
        match stream.read(&mut piece).expect("an answer in time") {
            0 if *inside == Inside::Goodbye => return said.into_owned(),
            0 => panic!("closed behind {flight:?}"),
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
}

/// Without what may differ: the client's number, and that servers before 7.2 don't know SETINFO, which tidegate answers
/// in any case.
fn neutral(answer: &str) -> String {
    let mut lines: Vec<String> = answer.lines().map(str::to_owned).collect();
    for at in 0..lines.len() {
        if lines[at] == "id" {
            lines[at + 1] = ":number".to_owned();
        }
        if lines[at].to_lowercase().starts_with("-err unknown subcommand 'setinfo'") {
            lines[at] = "+OK".to_owned();
        }
    }
    lines.join("\r\n")
}

fn headings(info: &str) -> Vec<&str> {
    info.lines().filter(|line| line.starts_with('#')).collect()
}
