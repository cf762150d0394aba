//! CLIENT UNBLOCK of a client that waits on a connection of its own: it ends that client's waiting, and nobody else's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::eventually;
use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

/// Each waits for what does not come, behind the first one.
const WAITS: &[(&str, &str)] = &[
    ("PING", "XREAD BLOCK 0 STREAMS s $"),
    ("PING", "XREADGROUP GROUP g c BLOCK 0 STREAMS s >"),
    ("SET k v", "WAIT 1 0"),
    ("WATCH k", "BLPOP nothing 0"),
    ("WATCH k", "XREAD BLOCK 0 STREAMS s $"),
];

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

fn before(server: &Redis, pool_size: usize) -> Tidegate {
    server.direct().command(&["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"]);
    Setup::new().redis(server).pool_size(pool_size).wait_ms(20_000).start()
}

fn blocked_on_server(direct: &mut Connection, clients: usize) {
    let wanted = format!("blocked_clients:{clients}\r\n");
    eventually("the server has them wait", || {
        direct.command(&["INFO", "clients"]).text().contains(&wanted).then_some(())
    });
}

fn waiting_for_a_connection(gate: &Tidegate, clients: f64) {
    eventually("they wait for a connection", || {
        (gate.redis_metric("tidegate_clients", &[("state", "waiting")]) == clients).then_some(())
    });
}

fn id(client: &mut Connection) -> String {
    client.command(&["CLIENT", "ID"]).text()
}

/// What the one who waits and the one who ends it are told.
fn ended(
    direct: &mut Connection,
    [mut waiter, mut other]: [Connection; 2],
    (first, line): (&str, &str),
    (how, proto): (&[&str], &str),
) -> [Value; 4] {
    waiter.command(&["HELLO", proto]);
    let id = id(&mut waiter);
    let unblock = [&["CLIENT", "UNBLOCK", &id], how].concat();
    waiter.send(&words(first));
    waiter.reply();
    let too_early = other.command(&unblock);
    waiter.send(&words(line));
    blocked_on_server(direct, 1);
    let told = other.command(&unblock);
    let answer = waiter.reply();
    blocked_on_server(direct, 0);
    assert_eq!(waiter.command(&["PING"]), Value::simple("PONG"));
    [too_early, told, answer, other.command(&unblock)]
}

#[test]
fn who_waits_on_a_connection_of_its_own_is_unblocked_as_directly() {
    for server in Redis::each() {
        let gate = before(&server, 3);
        let mut direct = server.direct();
        for wait in WAITS {
            for how in [(&[][..], "2"), (&["TIMEOUT"], "3"), (&["error"], "2")] {
                let clients = [server.direct(), server.direct()];
                let expected = ended(&mut direct, clients, *wait, how);
                let clients = [gate.redis_client(), gate.redis_client()];
                let told = ended(&mut direct, clients, *wait, how);
                assert_eq!(told, expected, "{wait:?} {how:?}");
                assert_eq!(told[1], Value::Integer(1));
            }
        }
        assert!(server.connections() <= 3, "{} connections", server.connections());
    }
}

#[test]
fn who_waits_for_a_connection_is_unblocked() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut direct = server.direct();
    let [mut holder, mut waiter, mut other] = [(); 3].map(|()| gate.redis_client());
    holder.send(&words("XREAD BLOCK 0 STREAMS s $"));
    blocked_on_server(&mut direct, 1);
    let id = id(&mut waiter);
    let error = Value::Error("UNBLOCKED client unblocked via CLIENT UNBLOCK".into());
    let none = Value::Null;
    for (line, nothing) in [
        ("XREAD BLOCK 0 STREAMS s $", none.clone()),
        ("XREADGROUP GROUP g c BLOCK 60000 STREAMS s >", none),
        ("WAIT 1 0", Value::Integer(0)),
    ] {
        for (how, expected) in [("TIMEOUT", &nothing), ("ERROR", &error)] {
            waiter.send(&[words(line), words("PING")].concat());
            waiting_for_a_connection(&gate, 1.0);
            let unblock = ["CLIENT", "UNBLOCK", &id, how];
            assert_eq!(other.command(&unblock), Value::Integer(1), "{line}");
            assert_eq!(waiter.reply(), *expected, "{line}");
            assert_eq!(waiter.reply(), Value::simple("PONG"));
            assert_eq!(other.command(&unblock), Value::Integer(0), "{line}");
        }
    }
    direct.command(&["XADD", "s", "1-1", "f", "v"]);
    assert!(matches!(holder.reply(), Value::Array(_)), "it waited on");
}

/// The connection of one is the other's a moment later: a late request must not meet that one.
#[test]
fn a_late_request_meets_nobody_else() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut direct = server.direct();
    let [mut one, mut next, mut other] = [(); 3].map(|()| gate.redis_client());
    let id = id(&mut one);
    one.send(&words("XREAD BLOCK 0 STREAMS s $"));
    blocked_on_server(&mut direct, 1);
    next.send(&words("XREAD BLOCK 0 STREAMS t $"));
    waiting_for_a_connection(&gate, 1.0);
    // These are before the request on its way; the server reads so much of them that it serves others in between.
    let busy = "local from = redis.call('TIME') repeat local now = redis.call('TIME') \
                until (now[1] - from[1]) * 1000000 + now[2] - from[2] > 50000";
    let mut slow = gate.redis_client();
    slow.send(&encode(&["EVAL", busy, "0", &"x".repeat(100_000)]).repeat(8));
    eventually("the server is at them", || {
        let stats = direct.command(&["INFO", "commandstats"]).text();
        stats.contains("cmdstat_eval:").then_some(())
    });
    other.send(&encode(&["CLIENT", "UNBLOCK", &id]));
    // Answered here: so the request is on its way.
    let mut near = gate.redis_client();
    (0..10).for_each(|_| drop(near.command(&["CLIENT", "ID"])));
    direct.command(&["XADD", "s", "1-1", "f", "v"]);
    assert!(matches!(one.reply(), Value::Array(_)), "it got what it waited for");
    assert_eq!(other.reply(), Value::Integer(0));
    blocked_on_server(&mut direct, 1);
    direct.command(&["XADD", "t", "1-1", "f", "v"]);
    assert!(matches!(next.reply(), Value::Array(_)), "it waited on");
}

/// Who asked may leave before the answer: the connection is kept from others all the same, and comes back.
#[test]
fn who_unblocks_may_leave_before_it_is_told() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut direct = server.direct();
    let mut waiter = gate.redis_client();
    let id = id(&mut waiter);
    for _ in 0..20 {
        waiter.send(&words("XREAD BLOCK 0 STREAMS s $"));
        blocked_on_server(&mut direct, 1);
        let mut other = gate.redis_client();
        other.send(&encode(&["CLIENT", "UNBLOCK", &id]));
        other.hang_up();
        assert_eq!(waiter.reply(), Value::Null);
        eventually("the connection is given back", || {
            let pinned = gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]);
            (pinned == 0.0).then_some(())
        });
    }
}
