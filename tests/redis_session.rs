//! Redis: what a client says about its own connection, wherever it says it, brings the same bytes as directly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use support::redis::Redis;
use support::resp::{Value, encode};
use support::tidegate::{Setup, Tidegate};
use support::{DEADLINE, eventually};

/// Inline commands, one conversation each; what is between the slashes is one word.
const CONVERSATIONS: &[&[&str]] = &[
    &["MULTI", "CLIENT SETNAME me", "CLIENT GETNAME", "EXEC", "CLIENT GETNAME"],
    &["CLIENT SETNAME before", "MULTI", "CLIENT GETNAME", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "CLIENT GETNAME", "CLIENT ID", "SET a 1", "EXEC", "CLIENT ID", "GET a"],
    &["MULTI", "CLIENT SETNAME me", "DISCARD", "CLIENT GETNAME"],
    &["MULTI", "CLIENT SETNAME", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "CLIENT SETNAME 'not one'", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "CLIENT SETNAME me", "NOSUCHCOMMAND", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "WATCH a", "MULTI", "CLIENT SETNAME me", "GET a", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "SELECT 1", "SET a one", "EXEC", "GET a", "SELECT 0", "GET a"],
    &["MULTI", "SELECT 99", "SET a b", "EXEC", "GET a", "SELECT 1", "GET a"],
    &["MULTI", "SELECT 1", "SELECT 99", "SET a b", "EXEC", "GET a"],
    &["MULTI", "SELECT 1", "DISCARD", "SET a nought", "SELECT 0", "GET a"],
    &["MULTI", "SELECT x", "EXEC", "MULTI", "SELECT", "EXEC"],
    &["MULTI", "HELLO 3", "HGETALL none", "EXEC", "GET none", "HGETALL none"],
    &["HELLO 3", "MULTI", "GET none", "HELLO 2 SETNAME foo", "GET none", "EXEC", "CLIENT GETNAME"],
    &["MULTI", "HELLO 9", "HELLO 3 NONSENSE", "HELLO 2", "EXEC", "GET none"],
    &["MULTI", "HELLO 3", "DISCARD", "GET none"],
    &["MULTI", "AUTH wrong", "AUTH a b c", "EXEC", "PING"],
    &["MULTI", "SET a reset", "RESET", "GET a", "CLIENT GETNAME", "EXEC"],
    &["MULTI", "CLIENT SETINFO LIB-NAME x", "EXEC"],
    &["MULTI", "CLIENT NO-EVICT on", "CLIENT REPLY ON", "EXEC", "PING"],
    &["MULTI", "CLIENT MAINT_NOTIFICATIONS ON", "PING", "EXEC", "PING"],
    // On again: a Redis that has nothing to say does not close behind QUIT.
    &["MULTI", "PING", "CLIENT REPLY OFF", "EXEC", "PING", "CLIENT REPLY ON", "PING"],
    &["MULTI", "PING", "CLIENT REPLY SKIP", "GET none", "EXEC", "PING", "PING"],
    &["MULTI", "CLIENT TRACKING on", "PING", "EXEC"],
    &["MULTI", "SUBSCRIBE a b", "PING", "EXEC", "UNSUBSCRIBE a", "UNSUBSCRIBE b", "PING"],
    &["HELLO 3", "MULTI", "SUBSCRIBE a", "PING", "EXEC", "UNSUBSCRIBE a", "PING"],
    &["MULTI", "MONITOR", "EXEC", "PING"],
    &["MULTI", "WAIT 0 10", "BLPOP q 0", "EXEC", "PING"],
    &[
        "WATCH a",
        "HELLO 3",
        "CLIENT SETNAME y",
        "GET none",
        "SELECT 2",
        "MULTI",
        "EXEC",
        "CLIENT GETNAME",
    ],
    &["WATCH a", "SELECT 1", "MULTI", "SELECT 2", "EXEC", "SET b 1", "SELECT 2", "GET b"],
    &["WATCH a", "SELECT 1", "MULTI", "HELLO 3", "GET a", "EXEC", "SET a 1", "SELECT 1", "GET a"],
    &["WATCH a", "SELECT 1", "HELLO 3", "SELECT 99", "UNWATCH", "SET a 1", "SELECT 1", "GET a"],
    &["SELECT 3", "SET a 3", "SELECT 99", "GET a", "SELECT 0", "GET a"],
    &["WATCH a", "SET a 1", "MULTI", "CLIENT SETNAME y", "SELECT 3", "EXEC", "CLIENT GETNAME"],
    &["WATCH a", "HELLO 9", "HELLO 3 SETNAME z", "CLIENT GETNAME", "UNWATCH", "GET none"],
    &["SUBSCRIBE a", "HELLO 3", "SELECT 1", "CLIENT ID", "AUTH x", "UNSUBSCRIBE a", "GET none"],
    &["HELLO 3", "SUBSCRIBE a", "HELLO 2", "SELECT 1", "CLIENT GETNAME", "UNSUBSCRIBE a"],
    &["HELLO 3", "SUBSCRIBE a", "SELECT 1", "SET a 1", "CLIENT GETNAME", "UNSUBSCRIBE a", "GET a"],
    &["SUBSCRIBE a", "RESET", "GET none", "CLIENT GETNAME"],
];

fn before(server: &Redis) -> Tidegate {
    Setup::new().redis(server).pool_size(2).wait_ms(5_000).start()
}

/// All that the peer answers to a conversation that ends with QUIT, with the numbers of connections hidden.
fn transcript(port: u16, conversation: &[&str], piece_bytes: usize) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let asked = [conversation, &["QUIT", ""]].concat().join("\r\n");
    for piece in asked.as_bytes().chunks(piece_bytes) {
        stream.write_all(piece).unwrap();
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let so_far = answer.escape_ascii();
        panic!(
            "port {port}: {conversation:?} in pieces of {piece_bytes}: {error}, behind {so_far}"
        );
    }
    let _closed = stream.shutdown(Shutdown::Both);
    let mut lines: Vec<String> =
        String::from_utf8(answer).unwrap().lines().map(str::to_owned).collect();
    let own_id = conversation.iter().position(|line| *line == "CLIENT ID");
    for n in 0..lines.len() {
        let hello = n > 0 && lines[n - 1] == "id";
        if lines[n].starts_with(':') && (hello || own_id.is_some()) {
            ":ID".clone_into(&mut lines[n]);
        }
    }
    lines.join("\n")
}

#[test]
fn words_about_the_connection_bring_the_same_bytes_as_directly() {
    let server = Redis::start();
    let gate = before(&server);
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

/// Newer servers have modules of their own.
#[test]
fn every_servers_hello_is_told_as_it_is() {
    for server in Redis::each() {
        let gate = before(&server);
        for conversation in [["HELLO 2", "HELLO 3"], ["HELLO 3", "HELLO"]] {
            let [direct, pooled] = [server.port(), gate.redis_port()]
                .map(|port| transcript(port, &conversation, 10_000));
            assert_eq!(pooled, direct, "{conversation:?}");
        }
    }
}

#[test]
fn what_a_transaction_says_about_the_connection_stays_with_its_client() {
    let server = Redis::start();
    let gate = before(&server);
    let mut client = gate.redis_client();
    let mut other = gate.redis_client();
    let id = client.command(&["CLIENT", "ID"]);
    let replies = client.pipeline(&[
        &["MULTI"],
        &["CLIENT", "SETNAME", "me"],
        &["CLIENT", "ID"],
        &["SELECT", "4"],
        &["SET", "where", "four"],
        &["EXEC"],
    ]);
    let Value::Array(items) = &replies[5] else { panic!("{replies:?}") };
    assert_eq!(items[1], id, "its own number, as outside");
    let list = server.direct().command(&["CLIENT", "LIST"]).text();
    assert!(!list.contains("name=me"), "a connection that others will use bears its name:\n{list}");
    for _ in 0..3 {
        assert_eq!(client.command(&["GET", "where"]), Value::bulk("four"));
        assert_eq!(other.command(&["GET", "where"]), Value::Null);
        assert_eq!(client.command(&["CLIENT", "GETNAME"]), Value::bulk("me"));
        let replies = other.pipeline(&[&["MULTI"], &["CLIENT", "GETNAME"], &["EXEC"]]);
        assert_eq!(replies[2], Value::Array(vec![Value::Null]));
        let replies = client.pipeline(&[&["MULTI"], &["GET", "where"], &["EXEC"]]);
        assert_eq!(replies[2].words(), ["four"]);
    }
}

#[test]
fn a_transaction_that_asks_or_selects_costs_no_connection() {
    let server = Redis::start();
    let gate = before(&server);
    let mut client = gate.redis_client();
    for database in ["1", "0", "2"] {
        client.pipeline(&[&["MULTI"], &["SELECT", database], &["CLIENT", "GETNAME"], &["EXEC"]]);
        client.pipeline(&[&["MULTI"], &["HELLO", "3"], &["CLIENT", "ID"], &["EXEC"]]);
    }
    assert_eq!(gate.redis_metric("tidegate_server_closed_total", &[]), 0.0);
}

#[test]
fn what_is_refused_inside_a_transaction_keeps_it_from_running() {
    let server = Redis::start();
    let gate = before(&server);
    let mut client = gate.redis_client();
    let refused = client.pipeline(&[
        &["MULTI"],
        &["SET", "k", "v"],
        &["CLIENT", "KILL", "ID", "1"],
        &["EXEC"],
    ]);
    assert!(refused[2].error().starts_with("ERR tidegate: CLIENT KILL"), "{refused:?}");
    assert!(refused[3].error().starts_with("EXECABORT"), "{refused:?}");
    assert_eq!(client.command(&["GET", "k"]), Value::Null);
    // More than can be remembered.
    let name = "n".repeat(30_000);
    let many = client.pipeline(&[
        &["MULTI"],
        &["CLIENT", "SETNAME", &name],
        &["CLIENT", "SETNAME", &name],
        &["CLIENT", "SETNAME", &name],
        &["CLIENT", "SETNAME", "last"],
        &["EXEC"],
    ]);
    assert!(many[4].error().contains("too many commands about the connection"), "{many:?}");
    assert!(many[5].error().starts_with("EXECABORT"), "{many:?}");
    assert_eq!(client.command(&["CLIENT", "GETNAME"]).text().replace("(nil)", ""), "");
}

/// CLIENT LIST shows those who are here, not tidegate's connections, and CLIENT KILL ends them.
#[test]
fn clients_see_and_end_each_other() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).pool_size(3).start();
    let mut one = gate.redis_client();
    let mut others: Vec<_> = (0..4).map(|_| gate.redis_client()).collect();
    for (n, other) in others.iter_mut().enumerate() {
        other.command(&["CLIENT", "SETNAME", &format!("other{n}")]);
    }
    others[1].command(&["SUBSCRIBE", "news"]);
    others[2].command(&["HELLO", "3"]);
    others[2].command(&["SELECT", "2"]);
    others[3].send(&encode(&["BLPOP", "never", "0"]));
    eventually("it waits", || {
        server
            .direct()
            .command(&["INFO", "clients"])
            .text()
            .contains("blocked_clients:1")
            .then_some(())
    });
    let list = one.command(&["CLIENT", "LIST"]).text();
    assert_eq!(list.lines().count(), 5, "{list}");
    let line = |name: &str| {
        let line = list.lines().find(|line| line.contains(&format!(" name={name} ")));
        line.unwrap_or_else(|| panic!("{name} in\n{list}")).to_owned()
    };
    let field = |line: &str, name: &str| {
        let begin = format!("{name}=");
        line.split(' ').find_map(|field| field.strip_prefix(&begin)).expect(name).to_owned()
    };
    let peer = others[0].stream().local_addr().unwrap().to_string();
    assert_eq!(field(&line("other0"), "addr"), peer);
    assert_eq!(
        (field(&line("other1"), "flags"), field(&line("other1"), "sub")),
        ("P".into(), "1".into())
    );
    assert_eq!(
        (field(&line("other2"), "db"), field(&line("other2"), "resp")),
        ("2".into(), "3".into())
    );
    let own = one.command(&["CLIENT", "INFO"]).text();
    assert_eq!(field(own.trim(), "addr"), one.stream().local_addr().unwrap().to_string());
    let pubsub = one.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).text();
    assert_eq!(pubsub.lines().count(), 1, "{pubsub}");

    assert_eq!(one.command(&["CLIENT", "KILL", &peer]), Value::simple("OK"));
    assert!(others[0].closed());
    assert_eq!(one.command(&["CLIENT", "KILL", &peer]).error(), "ERR No such client");
    assert_eq!(one.command(&["CLIENT", "KILL", "TYPE", "pubsub"]), Value::Integer(1));
    assert!(others[1].closed());
    let waiting = field(&line("other3"), "id");
    assert_eq!(one.command(&["CLIENT", "KILL", "ID", &waiting]), Value::Integer(1));
    assert!(others[3].closed());
    one.command(&["WATCH", "k"]);
    assert_eq!(one.command(&["CLIENT", "KILL", "USER", "default"]), Value::Integer(1));
    assert!(others[2].closed());
    assert!(one.command(&["CLIENT", "LIST"]).text().contains(" cmd=client|list "));
    assert_eq!(
        one.command(&["CLIENT", "KILL", "USER", "default", "SKIPME", "no"]),
        Value::Integer(1)
    );
    assert!(one.closed());
}
