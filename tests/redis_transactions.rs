//! Transactions without WATCH go over the lane that everybody shares, and bring the same bytes as directly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::DEADLINE;
use support::redis::Redis;
use support::resp::{Value, encode};
use support::tidegate::{Setup, Tidegate};

/// Conversations, word by word; each is sent whole, and command by command.
const CONVERSATIONS: &[&[&str]] = &[
    &["MULTI", "SET a 1", "INCR a", "GET a", "EXEC", "GET a"],
    &["SET a x", "MULTI", "INCR a", "SET b 1", "EXEC", "GET b"],
    &["MULTI", "EXEC", "PING"],
    &["MULTI", "SET a 1", "DISCARD", "GET a", "DISCARD", "EXEC"],
    &["MULTI", "SET a", "SET b 1", "EXEC", "GET b"],
    &["MULTI", "NOSUCH a", "SET b 1", "EXEC", "GET b"],
    &["MULTI", "SET b 1", "NOSUCH a", "EXEC", "GET b", "MULTI", "SET b 2", "EXEC", "GET b"],
    &["MULTI", "MULTI", "SET a 1", "EXEC", "GET a"],
    &["MULTI", "WATCH a", "SET a 1", "EXEC", "GET a"],
    &["MULTI", "UNWATCH", "SET a 1", "EXEC", "GET a"],
    &["MULTI x", "GET a", "EXEC"],
    &["MULTI", "SET a 1", "EXEC x", "EXEC", "GET a"],
    &["MULTI", "SET a 1", "DISCARD x", "EXEC", "GET a"],
    &["MULTI", "CONFIG NOTHING", "SET a 1", "EXEC", "GET a"],
    &["MULTI", "OBJECT HELP", "XINFO HELP", "EXEC", "GET a"],
    &["MULTI", "BLPOP q 0", "RPUSH q 1", "BRPOP q 0", "BLMOVE q r LEFT RIGHT 0", "EXEC", "LLEN q"],
    &["MULTI", "SAVE x", "EXEC"],
    &["MULTI", "SELECT 1", "SET a one", "EXEC", "GET a", "SELECT 0", "GET a"],
    &["HELLO 3", "MULTI", "HGETALL none", "HSET h a 1", "HGETALL h", "EXEC", "HGETALL h"],
    &["MULTI", "EVAL return{1,2} 0", "SCRIPT EXISTS abc", "EXEC"],
    &["MULTI", "SET a 1", "CLIENT GETNAME", "EXEC", "GET a"],
    &["MULTI", "SET a 1", "RESET", "GET a", "EXEC"],
    &["EXEC", "DISCARD", "UNWATCH", "MULTI", "EXEC"],
    &["WATCH a", "MULTI", "SET a 1", "EXEC", "MULTI", "INCR a", "EXEC", "GET a"],
    &["WATCH", "WATCH a", "SET a 1", "MULTI", "GET a", "EXEC", "GET a"],
    &["WATCH", "MULTI", "SET a 1", "CLIENT GETNAME", "EXEC", "GET a"],
    &["MULTI x", "CLIENT GETNAME", "HELLO 3", "HGETALL none"],
    &["WATCH a", "MULTI x", "CLIENT GETNAME", "SET a 1", "MULTI", "EXEC"],
    &["MULTI", "SET a 1", "QUIT"],
];

#[derive(Clone, Copy, Debug)]
enum Pieces {
    One,
    EachCommand,
    EachByte,
}

fn before(server: &Redis) -> Tidegate {
    Setup::new().redis(server).pool_size(2).wait_ms(5_000).start()
}

/// All that the peer answers to a conversation, up to its end.
fn transcript(port: u16, conversation: &[&str], pieces: Pieces) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut commands: Vec<Vec<u8>> = conversation
        .iter()
        .chain(&["QUIT"])
        .map(|line| encode(&line.split(' ').collect::<Vec<_>>()))
        .collect();
    if matches!(pieces, Pieces::One) {
        commands = vec![commands.concat()];
    }
    for command in &commands {
        let bytes = if matches!(pieces, Pieces::EachByte) { 1 } else { command.len() };
        for piece in command.chunks(bytes) {
            // A conversation may have ended already.
            if stream.write_all(piece).is_err() {
                break;
            }
        }
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && error.kind() != std::io::ErrorKind::ConnectionReset
    {
        panic!("{conversation:?}, {pieces:?}: {error} behind {}", answer.escape_ascii());
    }
    // Of HELLO's answer the number of the connection is its own.
    let text = answer.escape_ascii().to_string();
    let Some((before, behind)) = text.split_once("id\\r\\n:") else { return text };
    format!("{before}{}", behind.trim_start_matches(|digit: char| digit.is_ascii_digit()))
}

#[test]
fn a_transaction_brings_the_same_bytes_as_directly() {
    let server = Redis::start();
    let gate = before(&server);
    for conversation in CONVERSATIONS {
        for pieces in [Pieces::One, Pieces::EachCommand, Pieces::EachByte] {
            let [direct, pooled] = [server.port(), gate.redis_port()].map(|port| {
                server.direct().command(&["FLUSHALL"]);
                transcript(port, conversation, pieces)
            });
            assert_eq!(pooled, direct, "{conversation:?}, {pieces:?}");
        }
    }
}

#[test]
fn two_hundred_clients_inside_multi_share_one_connection() {
    let server = Redis::start();
    let gate = before(&server);
    let mut clients: Vec<_> = (0..200).map(|_| gate.redis_client()).collect();
    for client in &mut clients {
        assert_eq!(client.command(&["MULTI"]), Value::simple("OK"));
        assert_eq!(client.command(&["INCR", "n"]), Value::simple("QUEUED"));
        assert_eq!(client.command(&["INCR", "n"]), Value::simple("QUEUED"));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let last = i64::try_from(2 * n + 2).unwrap();
        let expected = vec![Value::Integer(last - 1), Value::Integer(last)];
        assert_eq!(client.command(&["EXEC"]), Value::Array(expected), "nothing comes between");
    }
    let mut direct = server.direct();
    let clients = direct.command(&["CLIENT", "LIST"]).text();
    assert!(clients.lines().count() <= 2, "the lane's connection and this one:\n{clients}");
}

/// Interleaved on one lane, each transaction runs as one.
#[test]
fn nothing_comes_between_the_commands_of_a_transaction() {
    let server = Redis::start();
    let gate = before(&server);
    let block = [&["MULTI"][..], &["INCR", "n"], &["ECHO", "x"], &["INCR", "n"], &["EXEC"]];
    let port = gate.redis_port();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = support::resp::Connection::open(port);
                for round in 0..200 {
                    let reply = if round % 2 == 0 {
                        client.pipeline(&block).pop().unwrap()
                    } else {
                        block.iter().map(|words| client.command(words)).last().unwrap()
                    };
                    let Value::Array(items) = reply else { panic!("{reply:?}") };
                    let [Value::Integer(first), _, Value::Integer(second)] = items[..] else {
                        panic!("{items:?}")
                    };
                    assert_eq!(second, first + 1);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(server.direct().command(&["GET", "n"]), Value::bulk("3200"));
}

/// Behind bytes that were never sent a transaction goes to the next connection; half of one is never left on a server.
#[test]
fn a_lost_connection_leaves_no_half_of_a_transaction() {
    let server = Redis::start();
    let gate = before(&server);
    let mut client = gate.redis_client();
    let mut direct = server.direct();
    for _ in 0..20 {
        assert_eq!(client.command(&["MULTI"]), Value::simple("OK"));
        assert_eq!(client.command(&["INCR", "n"]), Value::simple("QUEUED"));
        direct.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert_eq!(client.command(&["INCR", "n"]), Value::simple("QUEUED"));
        let Value::Array(items) = client.command(&["EXEC"]) else { panic!("it was never sent") };
        assert_eq!(items.len(), 2);
    }
    assert_eq!(direct.command(&["GET", "n"]), Value::bulk("40"));
}
