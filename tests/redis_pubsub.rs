//! Redis: pub/sub through tidegate brings the same bytes as directly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use support::DEADLINE;
use support::redis::Redis;
use support::tidegate::Setup;

/// At most one name is left for a command without arguments: Redis names several in an order of chance.
const CONVERSATIONS: &[&[&str]] = &[
    &["SUBSCRIBE a b a", "SUBSCRIBE b", "UNSUBSCRIBE a", "UNSUBSCRIBE a", "UNSUBSCRIBE"],
    &["PSUBSCRIBE a* b*", "SUBSCRIBE a", "PUNSUBSCRIBE a*", "PUNSUBSCRIBE", "UNSUBSCRIBE"],
    &["SSUBSCRIBE s", "SUBSCRIBE a", "SUNSUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE", "PING"],
    &["UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE a b", "PING"],
    &["GET a", "SUBSCRIBE c", "PING", "PING hello", "UNSUBSCRIBE c", "GET b", "PING"],
    &["SUBSCRIBE c", "GET a", "get a", "PUBLISH c x", "MULTI", "NOSUCH", "PUBSUB CHANNELS"],
    &["SUBSCRIBE", "PSUBSCRIBE", "SUBSCRIBE a", "PING a b", "SUBSCRIBE", "RESET", "GET a"],
    &["HELLO 3", "SUBSCRIBE a b a", "PING", "PING x", "GET a", "UNSUBSCRIBE b", "UNSUBSCRIBE"],
    &[
        "HELLO 3",
        "PSUBSCRIBE a*",
        "SSUBSCRIBE s",
        "SET a 1",
        "GET a",
        "PUNSUBSCRIBE",
        "RESET",
        "PING",
    ],
    &["HELLO 3", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE a b", "GET a"],
];

/// All that the peer answers to a conversation that ends with QUIT; HELLO's number of the connection is hidden.
fn transcript(port: u16, conversation: &[&str], piece_bytes: usize) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let asked = [conversation, &["QUIT", ""]].concat().join("\r\n");
    for piece in asked.as_bytes().chunks(piece_bytes) {
        stream.write_all(piece).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let _closed = stream.shutdown(Shutdown::Both);
    let mut lines: Vec<String> =
        String::from_utf8(answer).unwrap().split("\r\n").map(str::to_owned).collect();
    for n in 1..lines.len() {
        if lines[n - 1] == "id" {
            ":ID".clone_into(&mut lines[n]);
        }
    }
    lines.join("\n")
}

#[test]
fn words_about_subscriptions_bring_the_same_bytes_as_directly() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).pool_size(2).wait_ms(5_000).start();
    for conversation in CONVERSATIONS {
        for piece_bytes in [10_000, 1] {
            let [direct, pooled] = [server.port(), gate.redis_port()].map(|port| {
                server.direct().command(&["FLUSHALL"]);
                transcript(port, conversation, piece_bytes)
            });
            assert_eq!(pooled, direct, "{conversation:?} in pieces of {piece_bytes}");
        }
    }
}
