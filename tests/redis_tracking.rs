//! CLIENT TRACKING in namespaces: a client is told of its own names, as it knows them, and of no others'.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::eventually;
use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

const NAMESPACES: &str = r#"
[[redis.namespaces]]
name = "cache"
readable = ["shared:"]
password = "x"

[[redis.namespaces]]
name = "queue"
mode = "prefix"
password = "x"
"#;

struct Stage {
    server: Redis,
    gate: Tidegate,
}

impl Stage {
    fn each() -> impl Iterator<Item = Self> {
        Redis::each().into_iter().map(|server| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), NAMESPACES).unwrap();
            let gate = Setup::new().redis(&server).pool_size(5).config(file.path()).start();
            Self { server, gate }
        })
    }

    fn client(&self, namespace: &str) -> Connection {
        let mut client = self.gate.redis_client();
        let told = client.command(&["HELLO", "3", "AUTH", namespace, "x"]);
        assert!(matches!(told, Value::Map(_)), "{told:?}");
        client
    }

    fn pinned(&self) -> f64 {
        self.gate.redis_metric("tidegate_server_connections", &[("state", "pinned")])
    }
}

fn ok() -> Value {
    Value::simple("OK")
}

/// That these keys have changed.
fn changed(keys: &[&str]) -> Value {
    let keys = keys.iter().map(|key| Value::bulk(key)).collect();
    Value::Push(vec![Value::bulk("invalidate"), Value::Array(keys)])
}

#[test]
fn who_has_read_a_key_is_told_that_it_has_changed() {
    for stage in Stage::each() {
        let mut direct = stage.server.direct();
        for (namespace, prefix) in [("queue", ""), ("cache", "cache:")] {
            let [a, b, l] = ["a", "b", "l"].map(|name| format!("{prefix}{name}"));
            let mut client = stage.client(namespace);
            assert_eq!(client.command(&["CLIENT", "TRACKING", "ON"]), ok());
            client.command(&["MGET", &a, &b]);
            direct.command(&["SET", "a", "outside"]);
            direct.command(&["SET", "shared:a", "outside"]);
            direct.command(&["SET", &format!("{namespace}:a"), "1"]);
            assert_eq!(client.reply(), changed(&[&a]));
            // What it says goes on as ever, in pipelines and in transactions; a push stands between two replies.
            let told = client.pipeline(&[
                &["GET", &a],
                &["KEYS", &format!("{prefix}*")],
                &["MULTI"],
                &["RPUSH", &l, "x", "y"],
                &["KEYS", &format!("{prefix}*")],
                &["LMPOP", "1", &l, "LEFT"],
                &["EXEC"],
                &["GET", "queue:other"],
            ]);
            assert_eq!(told[0], Value::bulk("1"));
            assert_eq!(told[1].words(), [&a[..]]);
            let Value::Array(ran) = &told[6] else { panic!("{told:?}") };
            let mut keys = ran[1].words();
            keys.sort();
            assert_eq!(keys, [&a[..], &l]);
            let popped = Value::Array(vec![Value::bulk("x")]);
            assert_eq!(ran[2], Value::Array(vec![Value::bulk(&l), popped]));
            let watched = client.pipeline(&[&["WATCH", &a], &["MULTI"], &["GET", &b], &["EXEC"]]);
            assert_eq!(watched[3], Value::Array(vec![Value::Null]));
            assert_eq!(client.pipeline(&[&["WATCH", &a], &["UNWATCH"]]), [ok(), ok()]);
            assert_eq!(client.command(&["BLPOP", &l, "1"]).words(), [&l[..], "y"]);
            direct.command(&["SET", &format!("{namespace}:b"), "1"]);
            assert_eq!(client.reply(), changed(&[&b]));
            // Another database is another one's; names are told of without it, as ever.
            client.pipeline(&[&["SELECT", "1"], &["GET", &a], &["SELECT", "0"]]);
            direct.command(&["FLUSHALL"]);
            let all = Value::Push(vec![Value::bulk("invalidate"), Value::Null]);
            assert_eq!(client.reply(), all);
            assert_eq!(stage.pinned(), 1.0);
            // Refused is refused, and what is not understood changes nothing.
            let told = client.command(&["CLIENT", "TRACKING", "OFF", "NOSUCH"]);
            assert!(told.error().contains("syntax"), "{told:?}");
            client.command(&["GET", &a]);
            direct.command(&["SET", &format!("{namespace}:a"), "2"]);
            assert_eq!(client.reply(), changed(&[&a]));
            assert_eq!(client.command(&["CLIENT", "TRACKING", "OFF"]), ok());
            assert_eq!(client.command(&["GET", &a]), Value::bulk("2"));
            direct.command(&["SET", &format!("{namespace}:a"), "3"]);
            assert_eq!(client.command(&["GET", &a]), Value::bulk("3"));
            assert_eq!(stage.pinned(), 0.0);
            direct.command(&["FLUSHALL"]);
        }
    }
}

#[test]
fn only_what_was_asked_for_is_told() {
    for stage in Stage::each() {
        let mut direct = stage.server.direct();
        let mut client = stage.client("queue");
        assert_eq!(client.command(&["CLIENT", "TRACKING", "on", "optin", "noloop"]), ok());
        client.command(&["GET", "a"]);
        assert_eq!(client.pipeline(&[&["CLIENT", "CACHING", "YES"], &["GET", "b"]])[0], ok());
        direct.command(&["MSET", "queue:a", "1", "queue:b", "1"]);
        assert_eq!(client.reply(), changed(&["b"]));
        client.pipeline(&[&["CLIENT", "CACHING", "YES"], &["GET", "b"], &["SET", "b", "2"]]);
        assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
        // Where nothing is tracked, it is an error.
        let told = stage.client("queue").command(&["CLIENT", "CACHING", "YES"]);
        assert!(told.error().starts_with("ERR"), "{told:?}");
    }
}

#[test]
fn a_broadcast_is_the_namespaces() {
    for stage in Stage::each() {
        let mut direct = stage.server.direct();
        let mut all = stage.client("queue");
        assert_eq!(all.command(&["CLIENT", "TRACKING", "ON", "BCAST"]), ok());
        let mut some = stage.client("queue");
        let told =
            some.command(&["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "u:", "PREFIX", "v"]);
        assert_eq!(told, ok());
        let mut cache = stage.client("cache");
        assert_eq!(cache.command(&["CLIENT", "TRACKING", "ON", "BCAST"]), ok());
        for key in ["a", "u:1", "cache:a", "queue:a", "queue:u:1", "shared:a", "queue:vv"] {
            direct.command(&["SET", key, "1"]);
        }
        for key in ["a", "u:1", "vv"] {
            assert_eq!(all.reply(), changed(&[key]));
        }
        for key in ["u:1", "vv"] {
            assert_eq!(some.reply(), changed(&[key]));
        }
        for key in ["cache:a", "shared:a"] {
            assert_eq!(cache.reply(), changed(&[key]));
        }
        for (client, prefixes) in [(&mut all, &[""][..]), (&mut some, &["u:", "v"])] {
            let Value::Map(told) = client.command(&["CLIENT", "TRACKINGINFO"]) else {
                panic!("no map")
            };
            let mut shown = told[2].1.words();
            shown.sort();
            assert_eq!(shown, prefixes);
        }
        // Many at once, more than one read brings.
        let names: Vec<String> = (0..20_000).map(|number| format!("queue:name:{number}")).collect();
        let mut words = vec!["MSET"];
        names.iter().for_each(|name| words.extend([&name[..], "1"]));
        direct.command(&words);
        let mut told = Vec::new();
        while told.len() < names.len() {
            let Value::Push(push) = all.reply() else { panic!("no push") };
            told.extend(push[1].words());
        }
        told.sort();
        let mut shown: Vec<_> = names.iter().map(|name| name.replace("queue:", "")).collect();
        shown.sort();
        assert!(told == shown);
        for client in [&mut all, &mut some, &mut cache] {
            assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
        }
    }
}

#[test]
fn nobody_is_told_of_what_is_others() {
    for stage in Stage::each() {
        let mut cache = stage.client("cache");
        for words in [
            &["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "queue:"][..],
            &["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", ""],
            &["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "cache:", "PREFIX", "q"],
            &["CLIENT", "TRACKING", "ON", "REDIRECT", "1"],
        ] {
            let told = cache.command(words);
            assert!(told.error().starts_with("NOPERM"), "{words:?}: {told:?}");
        }
        assert!(cache.command(&["CLIENT", "TRACKING", "ON", "NOSUCH"]).error().contains("syntax"));
        let mut old = stage.gate.redis_client();
        old.command(&["AUTH", "cache", "x"]);
        let told = old.command(&["CLIENT", "TRACKING", "ON"]);
        assert!(told.error().contains("HELLO 3"), "{told:?}");
        // Behind it the wall stands as before.
        stage.server.direct().command(&["MSET", "queue:a", "1", "queue:b", "1"]);
        assert_eq!(cache.command(&["CLIENT", "TRACKING", "ON"]), ok());
        for words in [
            &["GET", "queue:a"][..],
            &["INFO", "keyspace"],
            &["DBSIZE"],
            &["FLUSHDB"],
            &["SUBSCRIBE", "cache:c"],
            &["MONITOR"],
            &["CLIENT", "TRACKING", "ON", "BCAST"],
            &["HELLO", "3", "AUTH", "default", "x"],
            &["CLIENT", "REPLY", "OFF"],
        ] {
            let told = cache.command(words);
            assert!(told.error().starts_with("NOPERM"), "{words:?}: {told:?}");
        }
        assert!(cache.command(&["AUTH", "queue", "x"]).error().contains("another user"));
        assert_eq!(cache.command(&["CLIENT", "LIST"]).text().lines().count(), 2);
        let told = cache.pipeline(&[&["MULTI"], &["INFO"], &["EXEC"]]);
        assert!(told[2].error().starts_with("EXECABORT"), "{told:?}");
        assert_eq!(cache.command(&["RESET"]), Value::simple("RESET"));
        eventually("nothing is held", || (stage.pinned() == 0.0).then_some(()));
    }
}

/// A client that holds a connection can't have the server asked for another user.
#[test]
fn behind_watch_nobody_becomes_another_user() {
    for stage in Stage::each() {
        let mut cache = stage.client("cache");
        assert_eq!(cache.command(&["WATCH", "cache:a"]), ok());
        let told = cache.command(&["HELLO", "3", "AUTH", "default", "anything"]);
        assert!(told.error().contains("another user"), "{told:?}");
        assert_eq!(cache.command(&["UNWATCH"]), ok());
        assert!(cache.command(&["GET", "queue:a"]).error().starts_with("NOPERM"));
    }
}

#[test]
fn with_its_connection_the_tracking_ends_and_so_does_the_client() {
    for mut stage in Stage::each() {
        let mut client = stage.client("queue");
        assert_eq!(client.command(&["CLIENT", "TRACKING", "ON"]), ok());
        client.command(&["GET", "a"]);
        stage.server.restart();
        assert!(client.closed());
        // One that is idle does not keep a drain waiting.
        let mut idle = eventually("the server is back", || {
            let mut client = stage.client("queue");
            (client.command(&["CLIENT", "TRACKING", "ON"]) == ok()).then_some(client)
        });
        idle.send(&encode(&["GET", "a"]));
        assert_eq!(idle.reply(), Value::Null);
        stage.gate.signal(rustix::process::Signal::TERM);
        assert!(idle.closed());
        assert!(stage.gate.wait(std::time::Duration::from_secs(5)).is_some());
    }
}
