//! Redis: pub/sub over one connection for all sessions brings the same bytes as directly, every message once, in order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};
use support::{DEADLINE, eventually};

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
    &[
        "HELLO 3",
        "SUBSCRIBE a",
        "WATCH k",
        "SUBSCRIBE b",
        "UNSUBSCRIBE a",
        "GET k",
        "UNSUBSCRIBE",
        "UNWATCH",
        "SUBSCRIBE c",
    ],
    &[
        "WATCH k",
        "SUBSCRIBE a",
        "GET a",
        "PING",
        "MULTI",
        "NOSUCH",
        "UNSUBSCRIBE",
        "MULTI",
        "PING",
        "EXEC",
        "PING",
    ],
    &["WATCH k", "SUBSCRIBE a", "RESET", "GET a", "WATCH k", "PSUBSCRIBE a"],
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
    let gate = Setup::new().redis(&server).pool_size(3).wait_ms(5_000).start();
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

fn before(server: &Redis, pool_size: usize) -> Tidegate {
    Setup::new().redis(server).pool_size(pool_size).wait_ms(5_000).start()
}

fn with_settings(server: &Redis, lines: &str) -> Tidegate {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[redis]\n{lines}\n")).unwrap();
    Setup::new().redis(server).pool_size(3).wait_ms(5_000).config(file.path()).start()
}

fn message(channel: &str, text: &str) -> Vec<String> {
    ["message", channel, text].map(str::to_owned).to_vec()
}

#[test]
fn a_hundred_subscribers_share_one_connection() {
    let server = Redis::start();
    let gate = before(&server, 4);
    let mut subscribers: Vec<_> = (0..100).map(|_| gate.redis_client()).collect();
    for (n, subscriber) in subscribers.iter_mut().enumerate() {
        if n % 2 == 1 {
            subscriber.command(&["HELLO", "3"]);
        }
        let channel = format!("c{}", n % 10);
        let told = subscriber.command(&["SUBSCRIBE", &channel]);
        assert_eq!(told.words(), ["subscribe", &channel, "1"]);
        if n % 10 == 0 {
            assert_eq!(subscriber.command(&["PSUBSCRIBE", "c0*"]).words()[2], "2");
        }
    }
    assert_eq!(gate.redis_metric("tidegate_subscriptions", &[]), 110.0);
    let mut speaker = gate.redis_client();
    for n in 0..200 {
        for channel in 0..10 {
            speaker.send(&encode(&["PUBLISH", &format!("c{channel}"), &n.to_string()]));
        }
        (0..10).for_each(|_| assert!(matches!(speaker.reply(), Value::Integer(1 | 2))));
    }
    assert!(server.connections() <= 2, "{} connections", server.connections());
    for (n, subscriber) in subscribers.iter_mut().enumerate() {
        let channel = format!("c{}", n % 10);
        for expected in 0..200 {
            let text = expected.to_string();
            let heard = subscriber.reply();
            assert_eq!(matches!(heard, Value::Push(_)), n % 2 == 1, "{heard:?}");
            assert_eq!(heard.words(), message(&channel, &text));
            if n % 10 == 0 {
                assert_eq!(subscriber.reply().words(), ["pmessage", "c0*", "c0", &text]);
            }
        }
    }
    drop(subscribers);
    eventually("nothing is subscribed any more", || {
        let channels = server.direct().command(&["PUBSUB", "CHANNELS"]);
        let pinned = gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]);
        (channels.words().is_empty() && pinned == 0.0).then_some(())
    });
    assert_eq!(gate.redis_metric("tidegate_subscriptions", &[]), 0.0);
}

/// Who was told that it is subscribed misses nothing from then on, and gets nothing once it was told that it is not.
#[test]
fn who_comes_and_goes_hears_all_in_between() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let done = AtomicBool::new(false);
    let port = server.port();
    std::thread::scope(|scope| {
        let speaker = scope.spawn(|| {
            let mut speaker = Connection::open(port);
            let mut said = 0;
            while !done.load(Ordering::Relaxed) {
                speaker.command(&["PUBLISH", "news", &said.to_string()]);
                said += 1;
            }
            said
        });
        let sessions: Vec<_> = (0..8)
            .map(|n| {
                let mut session = gate.redis_client();
                scope.spawn(move || {
                    let mut heard = 0;
                    for round in 0..100 {
                        if (round + n) % 7 == 0 {
                            session.command(&["HELLO", ["2", "3"][round % 2]]);
                        }
                        heard += subscribe_for_a_while(&mut session, (round + n) % 4);
                    }
                    heard
                })
            })
            .collect();
        let heard: usize = sessions.into_iter().map(|session| session.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        assert!(heard > 500 && speaker.join().unwrap() > 100, "{heard} were heard");
    });
}

/// Subscribes, hears at least so many messages, unsubscribes, and makes sure that they were all there were.
fn subscribe_for_a_while(session: &mut Connection, least: usize) -> usize {
    let told = session.command(&["SUBSCRIBE", "news"]);
    assert_eq!(told.words(), ["subscribe", "news", "1"]);
    let mut numbers: Vec<usize> = Vec::new();
    let mut asked = false;
    loop {
        if numbers.len() >= least && !asked {
            session.send(&encode(&["UNSUBSCRIBE", "news"]));
            asked = true;
        }
        let words = session.reply().words();
        match words[0].as_str() {
            "message" => numbers.push(words[2].parse().unwrap()),
            _ => break assert_eq!(words, ["unsubscribe", "news", "0"]),
        }
    }
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(session.command(&["ECHO", "x"]), Value::bulk("x"));
    numbers.len()
}

#[test]
fn subscriptions_outlive_their_connection() {
    let server = Redis::start();
    let mut gate = before(&server, 3);
    let (mut old, mut new) = (gate.redis_client(), gate.redis_client());
    old.command(&["SUBSCRIBE", "a"]);
    old.command(&["PSUBSCRIBE", "b*"]);
    old.command(&["SSUBSCRIBE", "s"]);
    let mut direct = server.direct();
    assert_eq!(direct.command(&["CLIENT", "KILL", "TYPE", "pubsub"]), Value::Integer(1));
    eventually("all is subscribed anew", || {
        let patterns = direct.command(&["PUBSUB", "NUMPAT"]) == Value::Integer(1);
        (patterns && direct.command(&["PUBSUB", "SHARDCHANNELS"]).words() == ["s"]).then_some(())
    });
    new.command(&["SUBSCRIBE", "a"]);
    for (command, channel) in [("PUBLISH", "a"), ("PUBLISH", "b1"), ("SPUBLISH", "s")] {
        assert_eq!(direct.command(&[command, channel, "x"]), Value::Integer(1));
    }
    assert_eq!(old.reply().words(), message("a", "x"));
    assert_eq!(old.reply().words(), ["pmessage", "b*", "b1", "x"]);
    assert_eq!(old.reply().words(), ["smessage", "s", "x"]);
    assert_eq!(new.reply().words(), message("a", "x"));
    assert_eq!(gate.redis_metric("tidegate_subscription_losses_total", &[]), 1.0);
    assert!(gate.output().contains("messages may have been missed"));
    gate.assert_alive();
}

/// A server that answers nothing but that it is busy does not end what was subscribed.
#[test]
fn subscriptions_outlive_a_busy_server() {
    let server = Redis::start();
    let mut gate = before(&server, 3);
    let [mut old, mut new] = [gate.redis_client(), gate.redis_client()];
    old.command(&["SUBSCRIBE", "a"]);
    let mut direct = server.direct();
    direct.command(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
    let busy = "local from = redis.call('TIME') repeat local now = redis.call('TIME') \
                until (now[1] - from[1]) * 1000000 + now[2] - from[2] > 600000 return 'over'";
    let told = direct.pipeline(&[&["CLIENT", "KILL", "TYPE", "pubsub"], &["EVAL", busy, "0"]]);
    assert_eq!(told, [Value::Integer(1), Value::bulk("over")]);
    eventually("it is subscribed anew", || {
        (direct.command(&["PUBLISH", "a", "x"]) == Value::Integer(1)).then_some(())
    });
    assert_eq!(old.reply().words(), message("a", "x"));
    assert_eq!(new.command(&["SUBSCRIBE", "a"]).words(), ["subscribe", "a", "1"]);
    assert!(!gate.output().contains("disconnected a subscriber"));
    gate.assert_alive();
}

/// While the server is away a subscription waits; a session that was subscribed before finds it again.
#[test]
fn subscriptions_outlive_their_server() {
    let mut server = Redis::start();
    let mut gate = before(&server, 3);
    let (mut old, mut new) = (gate.redis_client(), gate.redis_client());
    old.command(&["SUBSCRIBE", "a"]);
    server.stop();
    new.send(&encode(&["SUBSCRIBE", "b"]));
    server.resume();
    assert_eq!(new.reply().words(), ["subscribe", "b", "1"]);
    let mut direct = server.direct();
    eventually("it is subscribed anew", || {
        (direct.command(&["PUBLISH", "a", "x"]) == Value::Integer(1)).then_some(())
    });
    assert_eq!(old.reply().words(), message("a", "x"));
    gate.assert_alive();
}

#[test]
fn a_server_that_stays_away_is_an_honest_error() {
    let mut server = Redis::start();
    let gate = Setup::new().redis(&server).pool_size(3).wait_ms(300).start();
    server.stop();
    let mut client = gate.redis_client();
    let told = client.command(&["SUBSCRIBE", "a", "b"]);
    assert!(told.error().starts_with("TRYAGAIN tidegate: "), "{told:?}");
    assert!(told.error().contains("could not be reached"), "{told:?}");
    server.resume();
    // After a failure the next attempt waits a little.
    let told = eventually("it is subscribed", || match client.command(&["SUBSCRIBE", "a"]) {
        Value::Error(_) => None,
        told => Some(told),
    });
    assert_eq!(told.words(), ["subscribe", "a", "1"]);
}

#[test]
fn a_subscriber_that_does_not_read_is_dropped_alone() {
    let server = Redis::start();
    let mut gate = with_settings(&server, "reply_bytes_per_client = 1000000");
    let (mut slow, mut quick) = (gate.redis_client(), gate.redis_client());
    slow.command(&["SUBSCRIBE", "a"]);
    quick.command(&["SUBSCRIBE", "a"]);
    let before = gate.resident_kib();
    let text = "x".repeat(100_000);
    let mut speaker = server.direct();
    // What the kernel takes for it comes to a few megabytes.
    for _ in 0..300 {
        speaker.command(&["PUBLISH", "a", &text]);
        assert_eq!(quick.reply().words()[2].len(), text.len());
    }
    eventually("it is sent away", || {
        gate.output().contains("disconnected a subscriber").then_some(())
    });
    assert!(slow.closed());
    let grown = gate.resident_kib().saturating_sub(before);
    assert!(grown < 16_000, "{grown} KiB");
    assert_eq!(speaker.command(&["PUBLISH", "a", "end"]), Value::Integer(1));
    assert_eq!(quick.reply().words(), message("a", "end"));
    gate.assert_alive();
}

/// What lies here for all subscribers together is bounded, too, and is counted once however many it is for.
#[test]
fn subscribers_that_do_not_read_are_bounded_together() {
    let server = Redis::start();
    let lines = "reply_bytes_per_client = 100000000\nreply_bytes_total = 1000000";
    let mut gate = with_settings(&server, lines);
    let [mut slow, mut quick] = [gate.redis_client(), gate.redis_client()];
    slow.command(&["SUBSCRIBE", "a"]);
    quick.command(&["SUBSCRIBE", "a"]);
    let text = "x".repeat(100_000);
    let mut speaker = server.direct();
    // What the kernel takes for it comes to a few megabytes.
    for _ in 0..300 {
        speaker.command(&["PUBLISH", "a", &text]);
        assert_eq!(quick.reply().words()[2].len(), text.len());
    }
    eventually("it is sent away", || {
        gate.output().contains("disconnected a subscriber").then_some(())
    });
    assert!(slow.closed());
    speaker.command(&["PUBLISH", "a", "end"]);
    assert_eq!(quick.reply().words(), message("a", "end"));
    gate.assert_alive();
}

/// A SUBSCRIBE that is refused for one of its channels brings nothing of the others.
#[test]
fn who_is_refused_hears_nothing() {
    let server = Redis::start();
    let rules = ["ACL", "SETUSER", "default", "resetchannels", "&open*"];
    assert_eq!(server.direct().command(&rules), Value::simple("OK"));
    let gate = before(&server, 3);
    let [mut keeper, mut client] = [gate.redis_client(), gate.redis_client()];
    keeper.command(&["SUBSCRIBE", "open"]);
    client.command(&["SUBSCRIBE", "open2"]);
    // While the server is busy, both the question and the message come to it.
    let busy = "local from = redis.call('TIME') repeat local now = redis.call('TIME') \
                until (now[1] - from[1]) * 1000000 + now[2] - from[2] > 200000";
    let [mut direct, mut speaker] = [server.direct(), server.direct()];
    direct.send(&encode(&["EVAL", busy, "0"]));
    std::thread::sleep(Duration::from_millis(50));
    client.send(&encode(&["SUBSCRIBE", "open", "secret"]));
    speaker.send(&encode(&["PUBLISH", "open", "x"]));
    assert_eq!(keeper.reply().words(), message("open", "x"));
    assert!(client.reply().error().starts_with("NOPERM"));
    assert_eq!(client.command(&["PING"]).words(), ["pong", ""]);
}

/// Messages stand between replies, however large those are, and both keep their order.
#[test]
fn messages_and_replies_do_not_break_into_each_other() {
    let server = Redis::start();
    let gate = before(&server, 4);
    let mut client = gate.redis_client();
    client.command(&["HELLO", "3"]);
    client.command(&["SET", "large", &"v".repeat(300_000)]);
    client.command(&["SUBSCRIBE", "a"]);
    let (done, heard_of) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let speaker = scope.spawn(|| {
            let mut speaker = server.direct();
            let (mut said, began) = (0, Instant::now());
            while !done.load(Ordering::Relaxed) && began.elapsed() < DEADLINE {
                // On a slow machine it must not be cut for what it can't read in time.
                if said > heard_of.load(Ordering::Relaxed) + 1_000 {
                    std::thread::yield_now();
                    continue;
                }
                speaker.command(&["PUBLISH", "a", &format!("{said} {}", "m".repeat(2_000))]);
                said += 1;
            }
            said
        });
        let (mut heard, mut answered) = (0, 0);
        let mut next = |client: &mut Connection| {
            loop {
                match client.reply() {
                    Value::Push(words) => {
                        let text = words[2].text();
                        assert!(text.starts_with(&format!("{heard} m")) && text.len() > 2_000);
                        heard += 1;
                        heard_of.store(heard, Ordering::Relaxed);
                    }
                    reply => break reply,
                }
            }
        };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) || answered < 40 {
            let word = answered.to_string();
            client.send(
                &[encode(&["GET", "large"]), encode(&["ECHO", &word]), encode(&["GET", "no"])]
                    .concat(),
            );
            assert_eq!(next(&mut client).text().len(), 300_000);
            assert_eq!(next(&mut client), Value::bulk(&word));
            assert_eq!(next(&mut client), Value::Null);
            if answered % 5 == 0 {
                // On a backend of its own, too.
                client.send(&[encode(&["WATCH", "w"]), encode(&["GET", "large"])].concat());
                assert_eq!(next(&mut client), Value::simple("OK"));
                assert_eq!(next(&mut client).text().len(), 300_000);
                client.send(&encode(&["UNWATCH"]));
                assert_eq!(next(&mut client), Value::simple("OK"));
            }
            answered += 1;
        }
        done.store(true, Ordering::Relaxed);
        let said = speaker.join().unwrap();
        client.send(&encode(&["PING"]));
        while heard < said {
            match client.reply() {
                Value::Push(_) => heard += 1,
                other => assert_eq!(other, Value::simple("PONG")),
            }
        }
        assert!(said > 20, "{said} messages");
    });
}

#[test]
fn what_the_server_forbids_is_refused_in_its_words() {
    let server = Redis::start();
    let mut direct = server.direct();
    let rules = ["ACL", "SETUSER", "default", "resetchannels", "&open*"];
    assert_eq!(direct.command(&rules), Value::simple("OK"));
    let gate = before(&server, 3);
    let mut client = gate.redis_client();
    for words in [&["SUBSCRIBE", "secret"][..], &["SUBSCRIBE", "open", "secret"]] {
        let told = client.command(words);
        assert_eq!(told, direct.command(words), "{words:?}");
        assert!(told.error().starts_with("NOPERM"), "{told:?}");
    }
    assert_eq!(client.command(&["GET", "x"]), Value::Null, "nothing is subscribed");
    assert_eq!(client.command(&["SUBSCRIBE", "open2"]).words(), ["subscribe", "open2", "1"]);
    eventually("only that is subscribed", || {
        (direct.command(&["PUBSUB", "CHANNELS"]).words() == ["open2"]).then_some(())
    });
}

#[test]
fn subscriptions_are_limited() {
    let server = Redis::start();
    let gate = with_settings(&server, "subscription_limit = 3");
    let (mut one, mut other) = (gate.redis_client(), gate.redis_client());
    one.send(&encode(&["SUBSCRIBE", "a", "b"]));
    (0..2).for_each(|_| assert_eq!(one.reply().words()[0], "subscribe"));
    let told = other.command(&["SUBSCRIBE", "a", "c"]);
    assert!(told.error().contains("redis.subscription_limit"), "{told:?}");
    assert_eq!(other.command(&["PSUBSCRIBE", "d*"]).words(), ["psubscribe", "d*", "1"]);
    one.command(&["UNSUBSCRIBE", "a"]);
    assert_eq!(other.command(&["SUBSCRIBE", "a"]).words(), ["subscribe", "a", "2"]);
}

/// Everybody who is subscribed is counted, here and elsewhere, as soon as they were told, and no longer.
#[test]
fn all_subscribers_are_counted() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut elsewhere = server.direct();
    elsewhere.command(&["SUBSCRIBE", "b"]);
    elsewhere.command(&["SSUBSCRIBE", "s"]);
    let mut asker = gate.redis_client();
    let mut count = |words: &[&str], expected: &[&str]| {
        assert_eq!(asker.command(&[&["PUBSUB"], words].concat()).words(), expected, "{words:?}");
    };
    count(&["NUMSUB", "a", "b"], &["a", "0", "b", "1"]);
    count(&["NUMSUB"], &[]);
    let mut subscribers: Vec<_> = (0..5).map(|_| gate.redis_client()).collect();
    for _ in 0..20 {
        for subscriber in &mut subscribers {
            subscriber.command(&["SUBSCRIBE", "a"]);
            subscriber.command(&["SSUBSCRIBE", "s"]);
        }
        subscribers[0].command(&["SUBSCRIBE", "b"]);
        count(&["NUMSUB", "a", "b", "c", "a"], &["a", "5", "b", "2", "c", "0", "a", "5"]);
        count(&["shardnumsub", "s", "a"], &["s", "6", "a", "0"]);
        subscribers[0].command(&["UNSUBSCRIBE", "b"]);
        count(&["numsub", "b"], &["b", "1"]);
        for (left, subscriber) in (0..5).rev().zip(&mut subscribers) {
            subscriber.command(&["UNSUBSCRIBE", "a"]);
            subscriber.command(&["SUNSUBSCRIBE", "s"]);
            count(&["NUMSUB", "a"], &["a", &left.to_string()]);
            let others = (left + 1).to_string();
            count(&["SHARDNUMSUB", "s"], &["s", &others]);
        }
        count(&["NUMSUB", "a"], &["a", "0"]);
    }
    let told = asker.pipeline(&[&["SET", "k", "v"], &["PUBSUB", "NUMSUB", "b"], &["GET", "k"]]);
    assert_eq!(told[1].words(), ["b", "1"]);
    assert_eq!(told[2], Value::bulk("v"));
}

/// What is subscribed to is kept, so that names have a bound, too; it is free again when they are given up.
#[test]
fn the_names_of_subscriptions_are_limited() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut client = gate.redis_client();
    let name = |number: usize| format!("{}{number}", "n".repeat(1_000_000));
    for round in 0..2 {
        for number in 0..67 {
            let told = client.command(&["SUBSCRIBE", &name(number)]);
            assert_eq!(told.words()[0], "subscribe", "{round} {number}");
        }
        let told = client.command(&["SUBSCRIBE", &name(67)]);
        assert!(told.error().contains("64 MiB"), "{told:?}");
        client.send(&encode(&["UNSUBSCRIBE"]));
        (0..67).for_each(|_| assert_eq!(client.reply().words()[0], "unsubscribe"));
    }
}

#[test]
fn events_of_keys_are_heard() {
    let server = Redis::start();
    let gate = before(&server, 3);
    server.direct().command(&["CONFIG", "SET", "notify-keyspace-events", "KEA"]);
    let mut client = gate.redis_client();
    client.command(&["PSUBSCRIBE", "__keyevent@0__:*"]);
    let mut writer = gate.redis_client();
    writer.command(&["SET", "k", "v"]);
    let expected = ["pmessage", "__keyevent@0__:*", "__keyevent@0__:set", "k"];
    assert_eq!(client.reply().words(), expected);
    writer.command(&["DEL", "k"]);
    assert_eq!(client.reply().words()[2], "__keyevent@0__:del");
}

/// A web process with workers, subscribers and a cache: what a plan of few connections has to carry.
#[test]
fn workers_subscribers_and_a_cache_use_four_connections() {
    const JOBS: usize = 10_000;
    let server = Redis::start();
    let gate = before(&server, 4);
    let sent = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..50)
            .map(|_| {
                let mut worker = gate.redis_client();
                scope.spawn(move || {
                    let mut done = Vec::new();
                    loop {
                        let job = worker.command(&["BRPOP", "jobs", "0"]).words()[1].clone();
                        match job.parse::<usize>() {
                            Ok(number) => done.push(number),
                            Err(_end) => return done,
                        }
                    }
                })
            })
            .collect();
        let mut subscribers: Vec<_> = (0..100).map(|_| gate.redis_client()).collect();
        for (n, subscriber) in subscribers.iter_mut().enumerate() {
            subscriber.command(&["SUBSCRIBE", &format!("c{}", n % 10)]);
        }
        let caches: Vec<_> = (0..100)
            .map(|n| {
                let (mut cache, sent) = (gate.redis_client(), &sent);
                scope.spawn(move || {
                    let mut round = 0;
                    while !sent.load(Ordering::Relaxed) {
                        round += 1;
                        use_the_cache(&mut cache, &format!("k{n}"), &round.to_string());
                    }
                })
            })
            .collect();
        let mut direct = server.direct();
        let mut most = 0;
        for n in 0..JOBS {
            direct.command(&["LPUSH", "jobs", &n.to_string()]);
            direct.command(&["PUBLISH", &format!("c{}", n % 10), &n.to_string()]);
            if n % 50 == 0 {
                most = most.max(server.connections() - 1);
            }
        }
        sent.store(true, Ordering::Relaxed);
        caches.into_iter().for_each(|cache| cache.join().unwrap());
        (0..50).for_each(|_| drop(direct.command(&["LPUSH", "jobs", "end"])));
        let mut done = Vec::new();
        for worker in workers {
            let mine = worker.join().unwrap();
            assert!(mine.windows(2).all(|pair| pair[0] < pair[1]), "in another order: {mine:?}");
            done.extend(mine);
        }
        done.sort_unstable();
        assert_eq!(done, (0..JOBS).collect::<Vec<_>>(), "each job once");
        for (n, subscriber) in subscribers.iter_mut().enumerate() {
            for number in (n % 10..JOBS).step_by(10) {
                let expected = message(&format!("c{}", n % 10), &number.to_string());
                assert_eq!(subscriber.reply().words(), expected);
            }
        }
        assert!(most <= 4, "{most} connections");
    });
}

fn use_the_cache(cache: &mut Connection, key: &str, value: &str) {
    assert_eq!(cache.command(&["SET", key, value]), Value::simple("OK"));
    assert_eq!(cache.command(&["GET", key]), Value::bulk(value));
    let steps = [&["MULTI"][..], &["INCR", "all"], &["GET", key], &["EXEC"]];
    let replies = cache.pipeline(&steps);
    let Value::Array(items) = &replies[3] else { panic!("{replies:?}") };
    assert_eq!(items[1], Value::bulk(value));
}
