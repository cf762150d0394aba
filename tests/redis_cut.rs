//! The way to Redis is cut at random byte offsets, in either direction: what was counted is what clients were told, no
//! reply is another's, and transactions happen whole or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "random/chance.rs"]
#[allow(dead_code, reason = "each test uses its own part")]
mod chance;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use chance::Chance;
use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

const SESSIONS: usize = 6;
/// Flights of each session.
const FLIGHTS: usize = 150;
/// A connection is cut behind at most so many bytes.
const CUT_BYTES: usize = 12_000;

/// Passes bytes on between tidegate and the server until a random number of them have gone one way.
struct Relay {
    port: u16,
    cuts: Arc<AtomicUsize>,
    /// From now on nothing is cut.
    calm: Arc<AtomicBool>,
}

impl Relay {
    fn before(server: u16, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let relay = Self { port, cuts: Arc::default(), calm: Arc::default() };
        let (cuts, calm) = (Arc::clone(&relay.cuts), Arc::clone(&relay.calm));
        std::thread::spawn(move || {
            let mut chance = Chance::new(seed);
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                let upward = chance.often(50);
                let cut = chance.below(CUT_BYTES);
                let ways = [(&client, &server, upward), (&server, &client, !upward)];
                for (from, to, cuts_here) in ways {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (cuts, calm) = (Arc::clone(&cuts), Arc::clone(&calm));
                    let room = if cuts_here { cut } else { usize::MAX };
                    std::thread::spawn(move || pass(from, to, room, &cuts, &calm));
                }
            }
        });
        relay
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    mut room: usize,
    cuts: &AtomicUsize,
    calm: &AtomicBool,
) {
    let mut part = [0; 4096];
    while let Ok(read) = from.read(&mut part) {
        let cut = room < read && !calm.load(Ordering::Relaxed);
        let passed = if cut { room } else { read };
        if read == 0 || to.write_all(&part[..passed]).is_err() {
            break;
        }
        if cut {
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
        room = room.saturating_sub(read);
    }
    let _closed = from.shutdown(Shutdown::Both);
    let _closed = to.shutdown(Shutdown::Both);
}

/// What one session was told.
#[derive(Debug, Default)]
struct Told {
    counted: i64,
    unknown: i64,
    /// Transactions known to have happened, and those that may have.
    pairs: i64,
    unknown_pairs: i64,
}

/// Its keys are its own, and each value says whose it is.
fn session(gate: &Tidegate, name: usize) -> Told {
    let mut chance = Chance::new(name as u64);
    let mut told = Told::default();
    let [n, own, left, right] = ["n", "own", "left", "right"].map(|word| format!("{word}{name}"));
    let mut client = gate.redis_client();
    for _ in 0..FLIGHTS {
        let pair = chance.often(30);
        let mut commands: Vec<Vec<&str>> = Vec::new();
        if pair {
            commands.push(vec!["MULTI"]);
            commands.push(vec!["INCR", &left]);
            commands.push(vec!["INCR", &right]);
            commands.push(vec!["EXEC"]);
        } else {
            for _ in 0..1 + chance.below(20) {
                commands.push(if chance.often(60) { vec!["INCR", &n] } else { vec!["GET", &own] });
            }
        }
        let bytes: Vec<u8> = commands.iter().flat_map(|words| encode(words)).collect();
        let sent = client.stream().write_all(&bytes).is_ok();
        let replies: Vec<Option<Value>> =
            if sent { read(&mut client, commands.len()) } else { vec![None; commands.len()] };
        if pair {
            note_pair(&replies, &mut told);
        } else {
            for (command, reply) in commands.iter().zip(&replies) {
                note(command, reply.as_ref(), name, &mut told);
            }
        }
        if replies.iter().any(Option::is_none) {
            client = gate.redis_client();
        }
    }
    told
}

fn read(client: &mut Connection, count: usize) -> Vec<Option<Value>> {
    let mut replies: Vec<_> = (0..count).map_while(|_| client.try_reply()).map(Some).collect();
    replies.resize(count, None);
    replies
}

fn note(command: &[&str], reply: Option<&Value>, name: usize, told: &mut Told) {
    match (command[0], reply) {
        ("INCR", Some(Value::Integer(now))) => {
            told.counted += 1;
            let most = told.counted + told.unknown;
            assert!((told.counted..=most).contains(now), "{now} of {most}: {told:?}");
        }
        ("INCR", Some(Value::Error(text))) => {
            assert!(text.contains("may or may not have been applied"), "{text}");
            told.unknown += 1;
        }
        ("INCR", None) => told.unknown += 1,
        ("GET", Some(Value::Bulk(value))) => {
            assert_eq!(*value, format!("value of {name}").into_bytes(), "another's reply");
        }
        ("GET", None | Some(Value::Error(_))) => {}
        other => panic!("not a reply to that: {other:?}"),
    }
}

fn note_pair(replies: &[Option<Value>], told: &mut Told) {
    match replies.last() {
        Some(Some(Value::Array(items))) => {
            assert_eq!(items[0], items[1], "half a transaction");
            told.pairs += 1;
        }
        Some(None | Some(Value::Error(_))) => told.unknown_pairs += 1,
        other => panic!("not a reply to EXEC: {other:?}"),
    }
}

fn count(server: &Redis, key: &str) -> i64 {
    match server.direct().command(&["GET", key]) {
        Value::Null => 0,
        value => value.text().parse().unwrap(),
    }
}

#[test]
fn what_is_cut_anywhere_is_counted_once_and_told_as_it_is() {
    let server = Redis::start();
    let relay = Relay::before(server.port(), 1);
    let url = format!("redis://127.0.0.1:{}/0", relay.port);
    let setup = Setup::new().redis_url(&url).pool_size(3).wait_ms(9_000);
    for name in 0..SESSIONS {
        let value = format!("value of {name}");
        server.direct().command(&["SET", &format!("own{name}"), &value]);
    }
    let mut gate = setup.start();
    let told: Vec<Told> = std::thread::scope(|scope| {
        let gate = &gate;
        let threads: Vec<_> =
            (0..SESSIONS).map(|name| scope.spawn(move || session(gate, name))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no wrong reply")).collect()
    });
    relay.calm.store(true, Ordering::Relaxed);
    gate.assert_alive();
    let cuts = relay.cuts.load(Ordering::Relaxed);
    eprintln!("{cuts} cuts: {told:?}");
    for (name, told) in told.iter().enumerate() {
        let counted = count(&server, &format!("n{name}"));
        assert!(
            (told.counted..=told.counted + told.unknown).contains(&counted),
            "{counted}: {told:?}"
        );
        let pairs = count(&server, &format!("left{name}"));
        assert_eq!(pairs, count(&server, &format!("right{name}")), "half a transaction");
        assert!(
            (told.pairs..=told.pairs + told.unknown_pairs).contains(&pairs),
            "{pairs}: {told:?}"
        );
        assert!(told.counted > told.unknown, "hardly anything got through: {told:?}");
    }
    assert!(cuts >= 10, "{cuts} cuts only");
}
