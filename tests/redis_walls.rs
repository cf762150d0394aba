//! Namespaces: ways around the wall, past its bounds, or into disorder, each of which was open once; and limits that are set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use support::eventually;
use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

struct Stage {
    server: Redis,
    gate: Tidegate,
}

impl Stage {
    /// `cache` says its names, `queue` knows of none; there are more lines for each, and for all.
    fn with(lines: &str, of_each: &str) -> Self {
        let server = Redis::start();
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "[redis]\n{lines}\n\
             [[redis.namespaces]]\nname = \"cache\"\nreadable = [\"shared:\"]\npassword = \"x\"\n{of_each}\n\
             [[redis.namespaces]]\nname = \"queue\"\nmode = \"prefix\"\npassword = \"x\"\n{of_each}\n"
        );
        std::fs::write(file.path(), text).unwrap();
        let gate = Setup::new().redis(&server).pool_size(4).config(file.path()).start();
        Self { server, gate }
    }

    fn new() -> Self {
        Self::with("", "")
    }

    fn client(&self, namespace: &str) -> Connection {
        let mut client = self.gate.redis_client();
        assert_eq!(client.command(&["AUTH", namespace, "x"]), ok());
        client
    }
}

fn ok() -> Value {
    Value::simple("OK")
}

fn queued() -> Value {
    Value::simple("QUEUED")
}

/// A transaction that comes in one piece goes over the lane as it was sent: not with what tells of the server's keys.
#[test]
fn a_transaction_in_one_piece_is_not_told_how_many_keys_there_are() {
    let stage = Stage::new();
    stage.server.direct().command(&["MSET", "queue:a", "1", "queue:b", "2"]);
    for namespace in ["cache", "queue"] {
        let mut client = stage.client(namespace);
        let told = client.pipeline(&[&["MULTI"], &["INFO", "keyspace"], &["EXEC"], &["PING"]]);
        assert!(told[1].error().starts_with("NOPERM"), "{namespace}: {told:?}");
        assert_eq!(told[3], Value::simple("PONG"));
    }
}

#[test]
fn a_transaction_in_one_piece_is_counted() {
    let stage = Stage::new();
    let mut cache = stage.client("cache");
    let count =
        || stage.gate.page().sum("tidegate_namespace_commands_total", &[("namespace", "cache")]);
    let before = count();
    cache.pipeline(&[&["MULTI"], &["SET", "cache:a", "1"], &["GET", "cache:a"], &["EXEC"]]);
    assert_eq!(count() - before, 4.0);
}

/// What a listener in RESP2 may not say is refused, and nothing is awaited for it.
#[test]
fn a_listener_that_asks_for_names_goes_on_listening() {
    let stage = Stage::new();
    for (namespace, channel) in [("cache", "cache:news"), ("queue", "news")] {
        let mut client = stage.client(namespace);
        client.command(&["SUBSCRIBE", channel]);
        for words in [
            &["KEYS", "*"][..],
            &["SCAN", "0"],
            &["DBSIZE"],
            &["LMPOP", "1", channel, "LEFT"],
            &["XREAD", "STREAMS", channel, "0"],
            &["EVAL", "return 1", "0"],
        ] {
            let told = client.command(words);
            assert!(told.error().contains("are allowed in this context"), "{words:?}: {told:?}");
            assert_eq!(client.command(&["PING"]).words(), ["pong", ""], "{words:?}");
        }
        stage.client(namespace).command(&["PUBLISH", channel, "hello"]);
        assert_eq!(client.reply().words(), ["message", channel, "hello"]);
    }
}

/// Bytes that a client may be made to hold while it reads nothing.
fn grows_no_more_than(stage: &Stage, kib: u64, mut tries: impl FnMut()) {
    let before = stage.gate.resident_kib();
    tries();
    let grown = stage.gate.resident_kib().saturating_sub(before);
    assert!(grown < kib, "{grown} KiB more");
}

fn send_until_full(client: &Connection, bytes: &[u8], times: usize) -> usize {
    client.stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    (0..times).take_while(|_| client.stream().write_all(bytes).is_ok()).count()
}

#[test]
fn refusals_that_nobody_reads_are_not_piled_up() {
    let stage = Stage::new();
    for words in [&["GET", "queue:a"][..], &["CLIENT", "LIST"]] {
        let client = stage.client("cache");
        let many = encode(words).repeat(1_000);
        grows_no_more_than(&stage, 30_000, || {
            assert!(send_until_full(&client, &many, 2_000) < 2_000);
        });
    }
    // On a connection of its own.
    let mut client = stage.client("cache");
    assert_eq!(client.command(&["WATCH", "cache:a"]), ok());
    let many = encode(&["CLIENT", "ID"]).repeat(1_000);
    grows_no_more_than(&stage, 30_000, || {
        assert!(send_until_full(&client, &many, 10_000) < 10_000);
    });
}

#[test]
fn what_is_to_be_chosen_in_a_transaction_is_bounded() {
    let stage = Stage::new();
    for watched in [false, true] {
        let mut client = stage.client("cache");
        if watched {
            client.command(&["WATCH", "cache:a"]);
        }
        assert_eq!(client.command(&["MULTI"]), ok());
        let pattern = format!("*{}", "x".repeat(500_000));
        grows_no_more_than(&stage, 30_000, || {
            let told: Vec<Value> = (0..150).map(|_| client.command(&["KEYS", &pattern])).collect();
            assert!(told.iter().any(|one| *one == queued()));
            assert!(told.last().unwrap().error().contains("transaction"), "{:?}", told.last());
        });
        assert!(client.command(&["EXEC"]).error().starts_with("EXECABORT"));
    }
}

/// The name of a large command is rewritten with what ends it, or not at all.
#[test]
fn a_large_name_that_is_cut_before_its_end_breaks_nothing() {
    let stage = Stage::new();
    // Everything but what ends it fits into one MiB and the last read.
    let name = "n".repeat(1_048_560);
    for cut in [0, 1] {
        let mut client = stage.client("queue");
        let bytes = encode(&["SET", &name, "v"]);
        let at = bytes.len() - b"\r\n$1\r\nv\r\n".len() + cut;
        client.send(&bytes[..at]);
        let held =
            || stage.gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]);
        // Either it is refused, or it is on its way: by then it has been looked at.
        client.stream().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let _maybe = client.stream().peek(&mut [0; 1]);
        client.stream().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.send(&bytes[at..]);
        let told = client.reply();
        assert!(told == ok() || told.error().contains("is too long"), "{cut}: {told:?}");
        assert_eq!(client.command(&["PING"]), Value::simple("PONG"), "{cut}");
        eventually("nothing is held", || (held() == 0.0).then_some(()));
    }
}

#[test]
fn the_error_names_the_key_and_leaves_the_group() {
    let stage = Stage::new();
    let mut client = stage.client("queue");
    client.command(&["XADD", "s", "1-1", "f", "v"]);
    for words in [
        &["XREADGROUP", "GROUP", "queue:g", "c", "STREAMS", "s", ">"][..],
        &["XGROUP", "DELCONSUMER", "s", "queue:g", "c"],
        &["XINFO", "CONSUMERS", "s", "queue:g"],
    ] {
        let told = client.command(words);
        let shown = told.error();
        assert!(shown.contains("'queue:g'") && shown.contains("'s'"), "{words:?}: {shown}");
    }
}

/// While a reply is owed, a large value is not read any further than it may be held.
#[test]
fn a_large_value_behind_a_slow_reply_is_not_held_whole() {
    let stage = Stage::new();
    for namespace in ["cache", "queue"] {
        let mut client = stage.client(namespace);
        let key = if namespace == "cache" { "cache:a" } else { "a" };
        client.command(&["SET", key, "v"]);
        stage.server.direct().command(&["CLIENT", "PAUSE", "3000", "ALL"]);
        client.send(&encode(&["GET", key]));
        client.send(
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$300000000\r\n", key.len()).as_bytes(),
        );
        grows_no_more_than(&stage, 30_000, || {
            assert!(send_until_full(&client, &vec![b'v'; 1_000_000], 300) < 300);
        });
    }
}

/// Lists of names that nobody reads: they are held for all together, not for each.
#[test]
fn chosen_names_that_nobody_reads_are_not_held_for_each() {
    let stage = Stage::with("reply_bytes_total = 20000000", "");
    let mut direct = stage.server.direct();
    let name = "n".repeat(7_000);
    for number in 0..1_000 {
        direct.command(&["SET", &format!("cache:{name}{number}"), ""]);
    }
    let mut clients: Vec<Connection> = (0..16).map(|_| stage.client("cache")).collect();
    grows_no_more_than(&stage, 70_000, || {
        for client in &mut clients {
            client.send(&encode(&["KEYS", "*n*"]));
        }
        let commands = || {
            let labels = [("namespace", "cache")];
            stage.gate.page().sum("tidegate_namespace_commands_total", &labels)
        };
        eventually("all have asked", || (commands() >= 16.0).then_some(()));
        // Whoever comes is answered all the same.
        let mut other = stage.client("cache");
        assert_eq!(other.command(&["SET", "cache:x", "1"]), ok());
        eventually("the last was answered", || {
            let stream = clients.last().unwrap().stream();
            stream.set_nonblocking(true).unwrap();
            let here = stream.peek(&mut [0; 1]);
            stream.set_nonblocking(false).unwrap();
            here.is_ok().then_some(())
        });
    });
}

/// Who sends more commands a second than its namespace may waits, and nobody else does.
#[test]
fn a_namespace_sends_no_more_commands_a_second_than_it_may() {
    let stage = Stage::with("", "commands_per_second = 200");
    let waits = |namespace: &str, limit: &str| {
        let labels = [("namespace", namespace), ("limit", limit)];
        stage.gate.page().sum("tidegate_namespace_waits_total", &labels)
    };
    let mut quick = stage.client("queue");
    let mut clients = [stage.client("cache"), stage.client("cache")];
    let began = Instant::now();
    // A second's worth at once; the rest in the second and a half behind it, in whatever form.
    for client in &mut clients {
        client.send(&encode(&["INCR", "cache:n"]).repeat(200));
        client.send(&encode(&["GET", "queue:n"]).repeat(20));
        client.send(&encode(&["KEYS", "cache:n"]).repeat(20));
        client.send(&encode(&["WATCH", "cache:n"]));
        client.send(&encode(&["INCR", "cache:n"]).repeat(9));
    }
    let asked = Instant::now();
    assert_eq!(quick.command(&["GET", "a"]), Value::Null);
    assert!(asked.elapsed() < Duration::from_millis(400), "{:?}", asked.elapsed());
    for client in &mut clients {
        let told: Vec<Value> = (0..250).map(|_| client.reply()).collect();
        assert!(told[..200].iter().all(|one| matches!(one, Value::Integer(_))));
        assert!(told[200..220].iter().all(|one| one.error().starts_with("NOPERM")));
        assert!(matches!(told[249], Value::Integer(_)), "{:?}", told[249]);
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_300) && took < Duration::from_secs(4), "{took:?}");
    assert!(waits("cache", "commands") > 0.0);
    assert_eq!(waits("queue", "commands"), 0.0);
    // What was used is used: another client waits, too.
    let asked = Instant::now();
    let mut other = stage.client("cache");
    other.pipeline(&[&["PING"][..]; 100]);
    assert!(asked.elapsed() > Duration::from_millis(300), "{:?}", asked.elapsed());
}

/// One that waits for leave is still seen to go, and the drain ends it.
#[test]
fn who_waits_for_leave_is_seen_to_go() {
    let stage = Stage::with("", "commands_per_second = 1");
    let mut client = stage.client("cache");
    client.send(&encode(&["PING"]).repeat(30));
    assert_eq!(client.reply(), Value::simple("PONG"));
    let clients = || stage.gate.page().sum("tidegate_namespace_clients", &[("namespace", "cache")]);
    assert_eq!(clients(), 1.0);
    client.hang_up();
    eventually("it has gone", || (clients() == 0.0).then_some(()));
}

#[test]
fn a_namespace_keeps_no_more_connections_than_it_may() {
    let stage = Stage::with("wait_ms = 700", "pinned_limit = 1");
    let gauge = |name: &str, labels: &[(&str, &str)]| stage.gate.page().sum(name, labels);
    let cache = [("namespace", "cache")];
    let mut first = stage.client("cache");
    assert_eq!(first.command(&["WATCH", "cache:a"]), ok());
    let mut second = stage.client("cache");
    second.send(&encode(&["WATCH", "cache:b"]));
    let waits = [("namespace", "cache"), ("limit", "pinned")];
    eventually("it waits", || {
        (gauge("tidegate_namespace_waits_total", &waits) == 1.0).then_some(())
    });
    // Others are not kept waiting, of this namespace for what is shared, of another for anything.
    assert_eq!(stage.client("cache").command(&["GET", "cache:a"]), Value::Null);
    assert_eq!(stage.client("queue").command(&["WATCH", "a"]), ok());
    assert_eq!(gauge("tidegate_namespace_pinned", &cache), 1.0);
    assert_eq!(first.command(&["UNWATCH"]), ok());
    assert_eq!(second.reply(), ok());
    // In vain.
    let mut third = stage.client("cache");
    let told = third.command(&["XREAD", "BLOCK", "0", "STREAMS", "cache:s", "$"]);
    assert!(told.error().contains("redis.namespaces.pinned_limit"), "{told:?}");
    assert_eq!(third.command(&["PING"]), Value::simple("PONG"));
    // One with a time of its own has waited long enough by then.
    let told = third.command(&["XREAD", "BLOCK", "100", "STREAMS", "cache:s", "$"]);
    assert_eq!(told, Value::Null);
    second.hang_up();
    assert_eq!(third.command(&["WATCH", "cache:c"]), ok());
    third.hang_up();
    eventually("none is kept", || {
        (gauge("tidegate_namespace_pinned", &cache) == 0.0).then_some(())
    });
}

/// FLUSHALL is about all databases, of which the namespace is shown; how far it is, is seen.
#[test]
fn a_flush_of_all_leaves_nothing_in_any_database() {
    let stage = Stage::new();
    let mut direct = stage.server.direct();
    let databases = ["0", "3", "7"];
    for database in databases {
        direct.command(&["SELECT", database]);
        for number in 0..50 {
            let [own, other] = ["queue", "cache"].map(|name| format!("{name}:{number}"));
            direct.command(&["MSET", &own, "1", &other, "1"]);
        }
    }
    let mut queue = stage.client("queue");
    assert_eq!(queue.command(&["SELECT", "7"]), ok());
    assert_eq!(queue.command(&["FLUSHDB"]), ok());
    assert_eq!(queue.command(&["DBSIZE"]), Value::Integer(0));
    let told = queue.pipeline(&[&["SET", "a", "1"], &["FLUSHALL", "ASYNC"], &["SET", "b", "2"]]);
    assert_eq!(told, [ok(), ok(), ok()]);
    // It is where it was.
    assert_eq!(queue.command(&["KEYS", "*"]).words(), ["b"]);
    for (database, left) in databases.iter().zip([50, 50, 51]) {
        direct.command(&["SELECT", database]);
        assert_eq!(direct.command(&["DBSIZE"]), Value::Integer(left), "{database}");
    }
    let labels = [("namespace", "queue")];
    assert_eq!(stage.gate.page().sum("tidegate_namespace_flushed_keys_total", &labels), 151.0);
}

/// Among many keys of others a SCAN comes to its end in fewer pages than there are keys in tens, and misses nothing.
#[test]
fn a_scan_among_many_foreign_keys_has_few_empty_pages() {
    let stage = Stage::new();
    let mut direct = stage.server.direct();
    let foreign: Vec<String> = (0..40_000).map(|number| format!("foreign:{number}")).collect();
    for some in foreign.chunks(1_000) {
        let mut words = vec!["MSET"];
        some.iter().for_each(|key| words.extend([&key[..], "x"]));
        direct.command(&words);
    }
    for number in 0..300 {
        let [own, other] = ["queue", "cache"].map(|name| format!("{name}:{number}"));
        direct.command(&["MSET", &own, "1", &other, "1"]);
    }
    for (namespace, words) in [
        ("queue", &[][..]),
        ("queue", &["MATCH", "*", "COUNT", "20"]),
        ("cache", &["MATCH", "cache:*"]),
        ("cache", &[]),
    ] {
        let mut client = stage.client(namespace);
        let (mut cursor, mut pages, mut seen) = ("0".to_owned(), Vec::new(), BTreeSet::new());
        loop {
            let page = client.command(&[&["SCAN", &cursor], words].concat());
            let Value::Array(page) = page else { panic!("{page:?}") };
            pages.push(page[1].words().len());
            seen.extend(page[1].words());
            cursor = page[0].text();
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(seen.len(), 300, "{namespace} {words:?}");
        assert!(pages.len() < 100, "{namespace} {words:?}: {} pages", pages.len());
        assert!(pages.iter().all(|page| *page < 100), "{namespace} {words:?}: {pages:?}");
    }
}
