//! Namespaces on real servers: what is inside works as on a Redis of its own, what is outside can't be reached, seen or counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::eventually;
use support::redis::{PASSWORD, Redis};
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

const NAMESPACES: &str = r#"
[[redis.namespaces]]
name = "cache"
mode = "enforce"
password = "cache-secret"
readable = ["shared:"]

[[redis.namespaces]]
name = "queue"
mode = "prefix"
password = "queue-secret"

[[redis.namespaces]]
name = "watcher"
prefix = "cache:"
read_only = true
value_bytes = 1000
password = "watcher-secret"

[[redis.namespaces]]
name = "quiet"
scripts = "deny"
client_limit = 1
allow = ["NOSUCH", "MONITOR"]
password = "quiet-secret"
"#;

struct Stage {
    server: Redis,
    gate: Tidegate,
}

impl Stage {
    fn new() -> Self {
        Self::with("")
    }

    fn with(settings: &str) -> Self {
        Self::written(&format!("[redis]\n{settings}\n{NAMESPACES}"))
    }

    fn with_more(tables: &str) -> Self {
        Self::written(&format!("{NAMESPACES}\n{tables}"))
    }

    fn written(text: &str) -> Self {
        let server = Redis::with_password();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let gate = Setup::new().redis(&server).pool_size(4).config(file.path()).start();
        Self { server, gate }
    }

    /// A client of a namespace.
    fn client(&self, namespace: &str) -> Connection {
        let mut client = self.gate.redis_client();
        let told = client.command(&["AUTH", namespace, &format!("{namespace}-secret")]);
        assert_eq!(told, Value::simple("OK"), "{namespace}");
        client
    }

    fn modern(&self, namespace: &str) -> Connection {
        let mut client = self.gate.redis_client();
        let secret = format!("{namespace}-secret");
        let told = client.command(&["HELLO", "3", "AUTH", namespace, &secret]);
        assert!(!format!("{told:?}").contains("Error"), "{told:?}");
        client
    }

    /// The server itself, unbound.
    fn direct(&self) -> Connection {
        self.server.direct()
    }
}

/// All strings of a reply, in order, whatever they stand in.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) | Value::Push(items) => items.iter().flat_map(strings).collect(),
        Value::Map(pairs) => {
            pairs.iter().flat_map(|(key, value)| [strings(key), strings(value)].concat()).collect()
        }
        other => vec![other.text()],
    }
}

fn ok() -> Value {
    Value::simple("OK")
}

#[test]
fn a_client_of_a_namespace_gets_no_further_than_its_names() {
    let stage = Stage::new();
    let (mut cache, mut direct) = (stage.client("cache"), stage.direct());
    direct.command(&["MSET", "queue:a", "1", "shared:a", "2"]);
    assert_eq!(cache.command(&["SET", "cache:a", "x"]), ok());
    assert_eq!(cache.command(&["MGET", "cache:a", "shared:a"]).words(), ["x", "2"]);
    let told = cache.command(&["GET", "queue:a"]);
    assert_eq!(
        told.error(),
        "NOPERM 'get' names the key 'queue:a', which is outside of namespace 'cache'"
    );
    for words in [
        &["SET", "shared:a", "x"][..],
        &["RENAME", "cache:a", "queue:b"],
        &["CONFIG", "SET", "maxmemory", "1"],
        &["SUBSCRIBE", "queue:c"],
        &["nosuch", "cache:a"],
        &["EVAL", "return redis.call('GET', 'queue:a')", "1", "queue:a"],
    ] {
        assert!(cache.command(words).error().starts_with("NOPERM "), "{words:?}");
    }
    // In a pipeline each refusal stands in its place.
    let told = cache.pipeline(&[
        &["GET", "cache:a"],
        &["GET", "queue:a"],
        &["INCR", "cache:n"],
        &["DEL", "cache:a", "queue:a"],
        &["GET", "cache:a"],
    ]);
    assert_eq!(
        (&told[0], &told[2], &told[4]),
        (&Value::bulk("x"), &Value::Integer(1), &Value::bulk("x"))
    );
    assert!(told[1].error().starts_with("NOPERM ") && told[3].error().starts_with("NOPERM "));
    cache.send(b"get queue:a\r\nget cache:a\r\n");
    assert!(cache.reply().error().starts_with("NOPERM "));
    assert_eq!(cache.reply(), Value::bulk("x"));
    assert_eq!(direct.command(&["GET", "queue:a"]), Value::bulk("1"));
    let page = stage.gate.page();
    let labels = [("namespace", "cache"), ("command", "GET"), ("reason", "key")];
    assert_eq!(page.sum("tidegate_namespace_refusals_total", &labels), 3.0);
    assert!(page.sum("tidegate_namespace_commands_total", &[("namespace", "cache")]) > 10.0);
    assert_eq!(page.sum("tidegate_namespace_clients", &[("namespace", "cache")]), 1.0);
}

#[test]
fn only_who_knows_the_namespaces_password_comes_in() {
    let stage = Stage::new();
    let mut client = stage.gate.redis_client();
    for words in [
        &["AUTH", "cache", PASSWORD][..],
        &["AUTH", "cache", "queue-secret"],
        &["AUTH", "cache-secret"],
        &["AUTH", "nobody", "cache-secret"],
        &["HELLO", "3", "AUTH", "cache", "no"],
    ] {
        assert!(client.command(words).error().starts_with("WRONGPASS"), "{words:?}");
    }
    assert!(client.command(&["GET", "cache:a"]).error().starts_with("NOAUTH"));
    assert_eq!(client.command(&["AUTH", "cache", "cache-secret"]), ok());
    assert!(client.command(&["GET", "queue:a"]).error().starts_with("NOPERM"));
    // Another user, another namespace; RESET leads out of all.
    assert_eq!(client.command(&["AUTH", "queue", "queue-secret"]), ok());
    assert_eq!(client.command(&["SET", "a", "1"]), ok());
    assert_eq!(stage.direct().command(&["GET", "queue:a"]), Value::bulk("1"));
    assert_eq!(client.command(&["RESET"]), Value::simple("RESET"));
    assert!(client.command(&["GET", "a"]).error().starts_with("NOAUTH"));
    // The upstream's own password leads to all of it.
    assert_eq!(client.command(&["AUTH", PASSWORD]), ok());
    assert_eq!(client.command(&["GET", "queue:a"]), Value::bulk("1"));
    // Inside of something that lasts nobody becomes somebody else.
    let mut cache = stage.client("cache");
    assert_eq!(cache.command(&["MULTI"]), ok());
    assert!(cache.command(&["AUTH", "queue", "queue-secret"]).error().starts_with("NOPERM"));
    let said = client.pipeline(&[
        &["MULTI"],
        &["AUTH", "cache", "cache-secret"],
        &["GET", "queue:a"],
        &["AUTH", PASSWORD],
        &["EXEC"],
    ]);
    let Value::Array(answers) = &said[4] else { panic!("{said:?}") };
    assert!(answers[0].error().contains("another user"), "{answers:?}");
    assert_eq!(answers[1..], [Value::bulk("1"), ok()]);
    assert_eq!(client.command(&["GET", "queue:a"]), Value::bulk("1"), "it is who it was");
    let mut cache = stage.client("cache");
    assert_eq!(cache.command(&["WATCH", "cache:a"]), ok());
    assert!(cache.command(&["AUTH", "queue", "queue-secret"]).error().contains("another user"));
    let mut modern = stage.modern("cache");
    assert!(matches!(modern.command(&["SUBSCRIBE", "cache:c"]), Value::Push(_)));
    assert!(modern.command(&["AUTH", "queue", "queue-secret"]).error().contains("another user"));
}

#[test]
fn the_plain_user_may_be_bound_to_a_namespace() {
    let stage = Stage::with("namespace = \"queue\"");
    let mut client = stage.gate.redis_client();
    assert_eq!(client.command(&["AUTH", PASSWORD]), ok());
    assert_eq!(client.command(&["SET", "a", "1"]), ok());
    assert_eq!(stage.direct().command(&["GET", "queue:a"]), Value::bulk("1"));
}

#[test]
fn with_a_prefix_a_client_knows_of_nothing() {
    let stage = Stage::new();
    let mut direct = stage.direct();
    direct.command(&["MSET", "a", "outside", "cache:a", "outside"]);
    for mut queue in [stage.client("queue"), stage.modern("queue")] {
        assert_eq!(queue.command(&["GET", "a"]), Value::Null);
        assert_eq!(queue.command(&["MSET", "a", "1", "b", "2"]), ok());
        assert_eq!(queue.command(&["RPUSH", "l", "x", "y", "z", "w"]), Value::Integer(4));
        assert_eq!(queue.command(&["BLPOP", "none", "l", "1"]).words(), ["l", "x"]);
        assert_eq!(
            queue.command(&["LMPOP", "2", "none", "l", "LEFT"]),
            Value::Array(vec![Value::bulk("l"), Value::Array(vec![Value::bulk("y")])])
        );
        assert_eq!(queue.command(&["RPOPLPUSH", "l", "m"]), Value::bulk("w"));
        let mut keys = queue.command(&["KEYS", "*"]).words();
        keys.sort();
        assert_eq!(keys, ["a", "b", "l", "m"]);
        queue.command(&["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"]);
        queue.command(&["XADD", "s", "1-1", "f", "v"]);
        for words in [
            &["XREAD", "STREAMS", "s", "0"][..],
            &["XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"],
        ] {
            let told = strings(&queue.command(words));
            assert_eq!(told, ["s", "1-1", "f", "v"], "{words:?}");
        }
        let told = queue.command(&["XREADGROUP", "GROUP", "nobody", "c", "STREAMS", "s", ">"]);
        assert!(told.error().contains("'s'") && !told.error().contains("queue:"), "{told:?}");
        assert_eq!(queue.command(&["DBSIZE"]), Value::Integer(5));
        let mut seen = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let Value::Array(page) = queue.command(&["SCAN", &cursor]) else { panic!("no page") };
            seen.extend(page[1].words());
            cursor = page[0].text();
            if cursor == "0" {
                break;
            }
        }
        seen.sort();
        assert_eq!(seen, ["a", "b", "l", "m", "s"]);
        let any = queue.command(&["RANDOMKEY"]).text();
        assert!(seen.contains(&any), "{any}");
        // Everything in one pipeline, replies in their places.
        let told = queue.pipeline(&[
            &["GET", "a"],
            &["KEYS", "a*"],
            &["GET", "b"],
            &["DBSIZE"],
            &["LPOP", "m"],
        ]);
        let all = [
            Value::bulk("1"),
            Value::Array(vec![Value::bulk("a")]),
            Value::bulk("2"),
            Value::Integer(5),
            Value::bulk("w"),
        ];
        assert_eq!(told, all);
        assert_eq!(queue.command(&["FLUSHALL"]), ok());
        assert_eq!(queue.command(&["DBSIZE"]), Value::Integer(0));
        assert_eq!(queue.command(&["RANDOMKEY"]), Value::Null);
    }
    assert_eq!(direct.command(&["MGET", "a", "cache:a"]).words(), ["outside", "outside"]);
    assert_eq!(direct.command(&["DBSIZE"]), Value::Integer(2));
}

#[test]
fn transactions_keep_their_places() {
    let stage = Stage::new();
    let mut queue = stage.client("queue");
    queue.command(&["MSET", "a", "1", "b", "2"]);
    let told =
        queue.pipeline(&[&["MULTI"], &["GET", "a"], &["KEYS", "a"], &["GET", "b"], &["EXEC"]]);
    let ran = Value::Array(vec![
        Value::bulk("1"),
        Value::Array(vec![Value::bulk("a")]),
        Value::bulk("2"),
    ]);
    assert_eq!(told.last(), Some(&ran), "{told:?}");
    // The same on a connection of its own.
    let told = queue.pipeline(&[
        &["WATCH", "a"],
        &["MULTI"],
        &["GET", "a"],
        &["KEYS", "a"],
        &["GET", "b"],
        &["EXEC"],
        &["GET", "b"],
    ]);
    assert_eq!(told[5..], [ran, Value::bulk("2")], "{told:?}");
    // WATCH is about the name inside.
    queue.command(&["WATCH", "a"]);
    stage.direct().command(&["SET", "queue:a", "9"]);
    assert_eq!(queue.pipeline(&[&["MULTI"], &["INCR", "a"], &["EXEC"]])[2], Value::Null);
    // What is refused makes EXEC fail.
    for watched in [false, true] {
        let mut cache = stage.client("cache");
        if watched {
            assert_eq!(cache.command(&["WATCH", "cache:w"]), ok());
        }
        let told = cache.pipeline(&[
            &["MULTI"],
            &["SET", "cache:t", "1"],
            &["SET", "queue:a", "stolen"],
            &["FLUSHDB"],
            &["CLIENT", "LIST"],
            &["INFO"],
            &["EXEC"],
            &["EXISTS", "cache:t"],
        ]);
        assert_eq!(told[1], Value::simple("QUEUED"), "{told:?}");
        for refused in &told[2..6] {
            assert!(refused.error().starts_with("NOPERM"), "{watched} {told:?}");
        }
        assert!(told[6].error().starts_with("EXECABORT"), "{told:?}");
        assert_eq!(told[7], Value::Integer(0));
    }
    assert_eq!(stage.direct().command(&["GET", "queue:a"]), Value::bulk("9"));
}

#[test]
fn who_waits_at_a_station_hears_of_its_own_names() {
    let stage = Stage::new();
    let mut waiting = stage.client("queue");
    let mut modern = stage.modern("queue");
    waiting.send(&encode(&["BRPOP", "jobs", "0"]));
    modern.send(&encode(&["BLMPOP", "0", "2", "none", "others", "LEFT"]));
    let mut pusher = stage.client("queue");
    let parked = || stage.gate.page().sum("tidegate_parked_clients", &[]);
    eventually("two wait", || (parked() == 2.0).then_some(()));
    stage.direct().command(&["RPUSH", "jobs", "outside"]);
    pusher.command(&["RPUSH", "jobs", "1"]);
    pusher.command(&["RPUSH", "others", "2"]);
    assert_eq!(waiting.reply().words(), ["jobs", "1"]);
    assert_eq!(
        modern.reply(),
        Value::Array(vec![Value::bulk("others"), Value::Array(vec![Value::bulk("2")])])
    );
    // Another namespace's client can't end the waiting, nor see who waits.
    let id = waiting.command(&["CLIENT", "ID"]);
    waiting.send(&encode(&["BRPOP", "jobs", "0"]));
    eventually("one waits", || (parked() == 1.0).then_some(()));
    let Value::Integer(id) = id else { panic!("{id:?}") };
    let mut cache = stage.client("cache");
    assert_eq!(cache.command(&["CLIENT", "UNBLOCK", &id.to_string()]), Value::Integer(0));
    assert_eq!(cache.command(&["CLIENT", "KILL", "ID", &id.to_string()]), Value::Integer(0));
    assert_eq!(cache.command(&["CLIENT", "LIST"]).text().lines().count(), 1);
    assert_eq!(pusher.command(&["CLIENT", "UNBLOCK", &id.to_string()]), Value::Integer(1));
    assert_eq!(waiting.reply(), Value::Null);
}

#[test]
fn messages_are_for_the_namespace_they_are_from() {
    let stage = Stage::new();
    let mut direct = stage.direct();
    direct.command(&["CONFIG", "SET", "notify-keyspace-events", "KEA"]);
    let mut queue = stage.client("queue");
    assert_eq!(queue.command(&["SUBSCRIBE", "news"]).words()[..2], ["subscribe", "news"]);
    assert_eq!(queue.command(&["PSUBSCRIBE", "n*"]).words()[..2], ["psubscribe", "n*"]);
    assert_eq!(
        queue.command(&["PSUBSCRIBE", "__keyevent@*__:set"]).words()[1],
        "__keyevent@*__:set"
    );
    assert_eq!(queue.command(&["SUBSCRIBE", "__keyspace@0__:k"]).words()[1], "__keyspace@0__:k");
    let mut cache = stage.client("cache");
    assert_eq!(cache.command(&["SUBSCRIBE", "cache:news"]).words()[1], "cache:news");
    assert_eq!(
        cache.command(&["SUBSCRIBE", "__keyevent@0__:set"]).words()[1],
        "__keyevent@0__:set"
    );
    direct.command(&["PUBLISH", "news", "outside"]);
    direct.command(&["SET", "outside", "1"]);
    let mut publisher = stage.client("queue");
    assert!(matches!(publisher.command(&["PUBLISH", "news", "inside"]), Value::Integer(_)));
    publisher.command(&["SET", "k", "1"]);
    let told: Vec<Vec<String>> = (0..4).map(|_| queue.reply().words()).collect();
    for expected in [
        &["message", "news", "inside"][..],
        &["pmessage", "n*", "news", "inside"],
        &["message", "__keyspace@0__:k", "set"],
        &["pmessage", "__keyevent@*__:set", "__keyevent@0__:set", "k"],
    ] {
        assert!(told.iter().any(|one| one == expected), "{expected:?} is not in {told:?}");
    }
    stage.client("cache").command(&["SET", "cache:k", "1"]);
    assert_eq!(cache.reply().words(), ["message", "__keyevent@0__:set", "cache:k"]);
    assert_eq!(publisher.command(&["PUBSUB", "CHANNELS"]).words(), ["news"]);
    let mut second = stage.client("queue");
    second.command(&["SUBSCRIBE", "news"]);
    let counts = publisher.command(&["PUBSUB", "NUMSUB", "news", "none"]).words();
    assert_eq!(counts, ["news", "2", "none", "0"]);
    // UNSUBSCRIBE without words names the client's own.
    let left = queue.command(&["UNSUBSCRIBE"]).words();
    let other = queue.reply().words();
    let mut names = [left[1].clone(), other[1].clone()];
    names.sort();
    assert_eq!(names, ["__keyspace@0__:k", "news"]);
}

#[test]
fn a_namespace_that_may_only_be_read() {
    let stage = Stage::new();
    let mut watcher = stage.client("watcher");
    stage.direct().command(&["SET", "cache:a", "1"]);
    assert_eq!(watcher.command(&["GET", "cache:a"]), Value::bulk("1"));
    for words in [
        &["SET", "cache:a", "2"][..],
        &["FLUSHDB"],
        &["PUBLISH", "cache:c", "x"],
        &["GETDEL", "cache:a"],
    ] {
        assert!(watcher.command(words).error().contains("may only be read"), "{words:?}");
    }
    let told = watcher.command(&["GET", &"x".repeat(1_001)]);
    assert!(told.error().contains("redis.namespaces.value_bytes"), "{told:?}");
}

#[test]
fn what_is_too_large_to_be_held_is_looked_at_all_the_same() {
    let stage = Stage::new();
    let value = "v".repeat(3_000_000);
    let mut queue = stage.client("queue");
    assert_eq!(queue.command(&["SET", "large", &value]), ok());
    assert_eq!(queue.command(&["STRLEN", "large"]), Value::Integer(3_000_000));
    assert_eq!(queue.command(&["GET", "large"]).text().len(), 3_000_000);
    assert_eq!(stage.direct().command(&["STRLEN", "queue:large"]), Value::Integer(3_000_000));
    // In a transaction it has its place, and what stands behind it keeps its own.
    stage.direct().command(&["SET", "large", "outside"]);
    let mut cache = stage.client("cache");
    for mut client in [stage.client("queue"), stage.client("queue")] {
        assert_eq!(client.command(&["MULTI"]), ok());
        assert_eq!(client.command(&["SET", "large", &value]), Value::simple("QUEUED"));
        assert_eq!(client.command(&["KEYS", "large"]), Value::simple("QUEUED"));
        let ran = Value::Array(vec![ok(), Value::Array(vec![Value::bulk("large")])]);
        assert_eq!(client.command(&["EXEC"]), ran);
    }
    assert_eq!(cache.command(&["SET", "cache:large", &value]), ok());
    // The rest of what is refused is passed over, and the client goes on.
    for words in
        [&["SET", "queue:large", &value[..]][..], &["MSET", "cache:x", &value, "queue:large", "x"]]
    {
        assert!(cache.command(words).error().starts_with("NOPERM"));
        let told = cache.pipeline(&[&["MULTI"], words, &["INCR", "cache:n"], &["EXEC"]]);
        assert!(told[1].error().starts_with("NOPERM"), "{:?}", told[1]);
        assert!(told[3].error().starts_with("EXECABORT"), "{:?}", told[3]);
        assert_eq!(cache.command(&["EXISTS", "cache:n"]), Value::Integer(0));
    }
    // Holding a connection it can't: there is nowhere to leave the rest.
    let mut thief = stage.client("cache");
    assert_eq!(thief.command(&["WATCH", "cache:large"]), ok());
    let mut bytes = encode(&["SET", "queue:large", &value]);
    bytes.truncate(1_200_000);
    thief.send(&bytes);
    assert!(thief.reply().error().ends_with("the connection is closed"));
    assert!(thief.closed());
    assert_eq!(stage.direct().command(&["STRLEN", "queue:large"]), Value::Integer(3_000_000));
    assert_eq!(stage.direct().command(&["EXISTS", "cache:x"]), Value::Integer(0));
}

#[test]
fn a_list_of_the_whole_database_is_one_of_the_namespace() {
    let stage = Stage::new();
    let mut direct = stage.direct();
    for number in 0..500 {
        direct.command(&["MSET", &format!("cache:{number}"), "x", &format!("queue:{number}"), "x"]);
    }
    direct.command(&["SET", "shared:a", "x"]);
    let mut cache = stage.client("cache");
    assert_eq!(cache.command(&["KEYS", "*"]).words().len(), 501);
    assert_eq!(cache.command(&["KEYS", "*:7"]).words(), ["cache:7"]);
    assert_eq!(cache.command(&["KEYS", "queue:*"]).words(), Vec::<String>::new());
    let page = cache.command(&["SCAN", "0", "COUNT", "10000", "MATCH", "*:1?"]);
    let Value::Array(page) = page else { panic!("{page:?}") };
    assert_eq!(page[1].words().len(), 10);
    assert_eq!(cache.command(&["DBSIZE"]), Value::Integer(501));
    let info = cache.command(&["INFO"]).text();
    assert!(info.contains("# Tidegate") && info.contains("db0:keys=501,"), "{info}");
    direct.command(&["SELECT", "2"]);
    direct.command(&["SET", "queue:a", "x"]);
    direct.command(&["SELECT", "0"]);
    for mut client in [stage.client("cache"), stage.modern("cache")] {
        let told = client.pipeline(&[&["INFO", "keyspace"], &["GET", "cache:7"]]);
        let shown = told[0].text();
        assert!(shown.contains("db0:keys=501,") && !shown.contains("db2:"), "{shown}");
        assert_eq!(told[1], Value::bulk("x"));
    }
    // Of more keys than are counted each time nothing is told.
    for some in (0..20_000).collect::<Vec<_>>().chunks(1_000) {
        let names: Vec<String> = some.iter().map(|number| format!("other:{number}")).collect();
        let mut words = vec!["MSET"];
        names.iter().for_each(|name| words.extend([&name[..], "x"]));
        direct.command(&words);
    }
    assert!(!cache.command(&["INFO", "keyspace"]).text().contains("db0:"));
    direct.command(&["EVAL", "for i=0,19999 do redis.call('UNLINK', 'other:'..i) end", "0"]);
    direct.command(&["SELECT", "2"]);
    direct.command(&["FLUSHDB"]);
    direct.command(&["SELECT", "0"]);
    assert_eq!(cache.command(&["FLUSHDB", "ASYNC"]), ok());
    assert_eq!(direct.command(&["DBSIZE"]), Value::Integer(501));
    assert_eq!(direct.command(&["EXISTS", "cache:7"]), Value::Integer(0));
}

#[test]
fn scripts_run_inside_of_the_namespace() {
    const SCRIPT: &str = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', 'other')";
    const SHA: &str = "b5d6a3c4cbd97ae3c07e71d3b3a4b0a4a4ea0b1c";
    let stage = Stage::new();
    let mut direct = stage.direct();
    direct.command(&["MSET", "other", "outside", "queue:other", "inside"]);
    let mut queue = stage.client("queue");
    assert_eq!(queue.command(&["EVAL", SCRIPT, "1", "k", "v"]), Value::bulk("inside"));
    assert_eq!(direct.command(&["GET", "queue:k"]), Value::bulk("v"));
    // Its client knows it by the SHA1 of what it said.
    let own = direct.command(&["SCRIPT", "LOAD", SCRIPT]).text();
    assert_eq!(queue.command(&["SCRIPT", "LOAD", SCRIPT]), Value::bulk(&own));
    assert_eq!(queue.command(&["EVALSHA", &own, "1", "k", "w"]), Value::bulk("inside"));
    assert_eq!(
        queue.command(&["SCRIPT", "EXISTS", &own, SHA]),
        Value::Array(vec![Value::Integer(1), Value::Integer(0)])
    );
    // In one pipeline, and in a transaction.
    let run = &["EVALSHA", &own[..], "1", "k", "x"][..];
    let told =
        queue.pipeline(&[run, &["GET", "k"], run, &["MULTI"], run, &["GET", "k"], &["EXEC"]]);
    assert_eq!(told[..3], [Value::bulk("inside"), Value::bulk("x"), Value::bulk("inside")]);
    assert_eq!(told[6], Value::Array(vec![Value::bulk("inside"), Value::bulk("x")]));
    // What others gave the server, or nobody did, is not there.
    let foreign = direct.command(&["SCRIPT", "LOAD", "return redis.call('GET', 'other')"]).text();
    for sha in [&foreign[..], SHA] {
        assert!(queue.command(&["EVALSHA", sha, "0"]).error().starts_with("NOSCRIPT "), "{sha}");
    }
    assert_eq!(
        queue.command(&["SCRIPT", "EXISTS", &foreign]),
        Value::Array(vec![Value::Integer(0)])
    );
    // A server that has lost it says so, and EVAL brings it back.
    direct.command(&["SCRIPT", "FLUSH"]);
    assert!(queue.command(run).error().starts_with("NOSCRIPT "));
    assert_eq!(queue.command(&["EVAL", SCRIPT, "1", "k", "v"]), Value::bulk("inside"));
    assert_eq!(queue.command(run), Value::bulk("inside"));
    let told = queue.command(&["EVAL", "return redis.call('nosuch')", "0"]);
    assert!(
        told.error().contains("NOPERM") || told.error().contains("Unknown Redis command"),
        "{told:?}"
    );
    let mut cache = stage.client("cache");
    let told = cache.command(&["EVAL", "return redis.call('GET', ARGV[1])", "0", "queue:k"]);
    assert!(told.error().contains("NOPERM") && told.error().contains("'queue:k'"), "{told:?}");
    for words in [&["SCRIPT", "FLUSH"][..], &["FUNCTION", "LIST"], &["FCALL", "f", "0"]] {
        assert!(cache.command(words).error().starts_with("NOPERM "), "{words:?}");
    }
    let mut quiet = stage.client("quiet");
    let told = quiet.command(&["EVAL", "return 1", "0"]);
    assert!(told.error().contains("scripts = \"deny\""), "{told:?}");
    assert_eq!(stage.direct().command(&["GET", "other"]), Value::bulk("outside"));
}

#[test]
fn a_namespace_has_no_more_clients_than_it_may() {
    let stage = Stage::new();
    let first = stage.client("quiet");
    let mut second = stage.gate.redis_client();
    let told = second.command(&["AUTH", "quiet", "quiet-secret"]);
    assert!(told.error().contains("redis.namespaces.client_limit"), "{told:?}");
    assert!(second.closed());
    drop(first);
    eventually("its place is free", || {
        let mut next = stage.gate.redis_client();
        matches!(next.command(&["AUTH", "quiet", "quiet-secret"]), Value::Simple(_)).then_some(())
    });
}

#[test]
fn it_is_seen_who_fills_the_server() {
    let stage = Stage::with("namespace_census_ms = 100");
    let mut queue = stage.client("queue");
    for number in 0..200 {
        queue.command(&["SET", &number.to_string(), &"x".repeat(1_000)]);
        stage.direct().command(&["SET", &format!("other:{number}"), "x"]);
    }
    let labels = [("namespace", "queue")];
    let (keys, bytes) = eventually("a census", || {
        queue.command(&["PING"]);
        let page = stage.gate.page();
        let keys = page.sum("tidegate_namespace_keys", &labels);
        (keys > 0.0).then(|| (keys, page.sum("tidegate_namespace_memory_bytes", &labels)))
    });
    assert!((100.0..300.0).contains(&keys), "{keys} keys");
    assert!((100_000.0..400_000.0).contains(&bytes), "{bytes} bytes");
}

#[test]
fn what_is_allowed_passes_and_leaves_nothing_behind() {
    let stage = Stage::new();
    let mut quiet = stage.client("quiet");
    for _ in 0..5 {
        let told = quiet.command(&["NOSUCH", "queue:a"]);
        assert!(told.error().starts_with("ERR unknown command"), "{told:?}");
    }
    // Behind this nothing could be looked at.
    let told = quiet.command(&["MONITOR"]);
    assert!(told.error().contains("send it as the user of the URL"), "{told:?}");
    assert_eq!(quiet.command(&["SET", "quiet:a", "1"]), ok());
    eventually("no connection is held", || {
        let held = stage.gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]);
        (held == 0.0).then_some(())
    });
}

#[test]
fn no_value_is_longer_than_it_may_be_in_pieces_either() {
    let stage = Stage::with_more(
        "[[redis.namespaces]]\nname = \"small\"\nvalue_bytes = 2000000\npassword = \"small-secret\"\n",
    );
    let mut small = stage.client("small");
    assert_eq!(small.command(&["SET", "small:a", &"v".repeat(1_900_000)]), ok());
    // Its length is told before it comes.
    small.send(b"*3\r\n$3\r\nSET\r\n$7\r\nsmall:a\r\n$2100000\r\n");
    let told = small.reply();
    assert!(
        told.error().contains("2000000 bytes") && told.error().contains("value_bytes"),
        "{told:?}"
    );
    assert!(small.closed());
    assert_eq!(stage.direct().command(&["STRLEN", "small:a"]), Value::Integer(1_900_000));
}

#[test]
fn strangers_take_no_place_of_a_namespace() {
    let stage = Stage::with("namespace = \"quiet\"");
    let _strangers: Vec<_> = (0..5).map(|_| stage.gate.redis_client()).collect();
    let mut client = stage.gate.redis_client();
    assert_eq!(client.command(&["AUTH", PASSWORD]), ok());
    assert_eq!(client.command(&["SET", "quiet:a", "1"]), ok());
    assert_eq!(client.command(&["RESET"]), Value::simple("RESET"));
    assert!(client.command(&["GET", "quiet:a"]).error().starts_with("NOAUTH"));
    assert_eq!(stage.gate.page().sum("tidegate_namespace_clients", &[("namespace", "quiet")]), 0.0);
}

/// A client that reads nothing of a list with names to be changed: no more is held for it than for any other.
#[test]
fn a_slow_reader_of_names_is_held_as_any_other() {
    let stage = Stage::with("reply_bytes_per_client = 1000000\nreply_stall_ms = 300");
    let mut direct = stage.direct();
    let name = "n".repeat(10_000);
    for number in 0..3_000 {
        direct.send(&encode(&["SET", &format!("queue:{name}{number}"), ""]));
        direct.reply();
    }
    let mut slow = stage.client("queue");
    let before = stage.gate.resident_kib();
    for _ in 0..10 {
        slow.send(&encode(&["KEYS", "*"]));
    }
    let mut quick = stage.client("queue");
    assert_eq!(quick.command(&["SET", "quick", "1"]), ok());
    eventually("it is sent away", || {
        quick.command(&["GET", "quick"]);
        (stage.gate.redis_metric("tidegate_clients_aborted_total", &[]) >= 1.0).then_some(())
    });
    let grown = stage.gate.resident_kib().saturating_sub(before);
    assert!(grown < 20_000, "{grown} KiB for 30 MB of names");
}
