//! Redis through tidegate: what clients may say, how few connections carry it, and the bad days.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use support::redis::{PASSWORD, Redis};
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, within};

/// Waits until `condition` holds.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

fn before(server: &Redis, pool_size: usize) -> Tidegate {
    Setup::new().redis(server).pool_size(pool_size).wait_ms(5_000).start()
}

#[test]
fn commands_bring_the_same_bytes_as_directly() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let commands: &[&[&str]] = &[
        &["PING"],
        &["PING", "words"],
        &["SET", "k", "v"],
        &["GET", "k"],
        &["GET", "missing"],
        &["INCR", "n"],
        &["INCR", "k"],
        &["LPUSH", "l", "a", "b", "c"],
        &["LRANGE", "l", "0", "-1"],
        &["HSET", "h", "f", "1", "g", "2"],
        &["HGETALL", "h"],
        &["ZADD", "z", "1.5", "m"],
        &["ZSCORE", "z", "m"],
        &["SADD", "s", "x"],
        &["SMEMBERS", "s"],
        &["EVAL", "return {1, {2, 'three'}, redis.status_reply('OK')}", "0"],
        &["EVAL", "return redis.error_reply('MY own')", "0"],
        &["NOSUCHCOMMAND", "x"],
        &["SET", "k"],
        &["GET", "h"],
        &["TYPE", "z"],
        &["OBJECT", "ENCODING", "n"],
        &["ECHO", ""],
        &["SETRANGE", "big", "1000000", "x"],
        &["GET", "big"],
        &["DEL", "k", "n", "l", "h", "z", "s", "big"],
    ];
    for protocol in ["2", "3"] {
        let mut replies = [server.port(), gate.redis_port()].map(|port| {
            let mut client = Connection::open(port);
            client.command(&["HELLO", protocol]);
            commands.iter().map(|command| client.command(command)).collect::<Vec<_>>()
        });
        let [direct, pooled] = &mut replies;
        for ((command, wanted), got) in commands.iter().zip(direct).zip(pooled) {
            assert_eq!(got, wanted, "{command:?} in RESP{protocol}");
        }
        server.direct().command(&["FLUSHALL"]);
    }
}

#[test]
fn two_hundred_clients_share_the_pool() {
    let server = Redis::start();
    let gate = before(&server, 4);
    let mut clients: Vec<_> = (0..200).map(|_| gate.redis_client()).collect();
    let mut most = 0;
    for round in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(&encode(&["SET", &format!("k{n}"), &format!("{round}-{n}")]));
        }
        for client in &mut clients {
            assert_eq!(client.reply(), Value::simple("OK"));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.command(&["GET", &format!("k{n}")]).text(), format!("{round}-{n}"));
        }
        most = most.max(server.connections());
    }
    assert!((1..=4).contains(&most), "{most} connections");
    assert_eq!(gate.redis_metric("tidegate_clients", &[]), 200.0);
}

#[test]
fn the_gauges_tell_who_holds_and_who_waits() {
    let server = Redis::start();
    // One connection is the lane's, one may be held.
    let gate = before(&server, 2);
    let clients = |state: &str| gate.redis_metric("tidegate_clients", &[("state", state)]);
    let mut holder = gate.redis_client();
    let mut waiter = gate.redis_client();
    let mut idler = gate.redis_client();
    assert_eq!(idler.command(&["PING"]), Value::simple("PONG"));
    assert_eq!(holder.command(&["WATCH", "k"]), Value::simple("OK"));
    waiter.send(&encode(&["WATCH", "k"]));
    until("one holds, one waits, one idles", || {
        (clients("active"), clients("waiting"), clients("idle")) == (1.0, 1.0, 1.0)
    });
    holder.command(&["MULTI"]);
    holder.command(&["SET", "k", "v"]);
    holder.command(&["EXEC"]);
    assert_eq!(waiter.reply(), Value::simple("OK"));
    waiter.command(&["UNWATCH"]);
    until("all idle", || clients("idle") == 3.0);
    assert_eq!(gate.redis_metric("tidegate_transactions_total", &[]), 1.0);
    drop((holder, waiter, idler));
    until("all gone", || gate.redis_metric("tidegate_clients", &[]) == 0.0);
}

#[test]
fn redis_benchmark_sees_no_error() {
    let server = Redis::start();
    let gate = before(&server, 4);
    for pipeline in ["1", "16"] {
        let output = std::process::Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "-p", &gate.redis_port().to_string(), "-c", "50"])
            .args(["-n", "20000", "-t", "get,set,incr,lpush,lrange_100,mset", "-q", "-P", pipeline])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !said.to_lowercase().contains("err"), "{said}");
    }
    assert!(server.connections() <= 4);
}

#[test]
fn pipelines_keep_their_order() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut one = gate.redis_client();
    let mut two = gate.redis_client();
    let echo = |word: &str, n: usize| encode(&["ECHO", &format!("{word}{n}")]);
    for (client, word) in [(&mut one, "a"), (&mut two, "b")] {
        let bytes: Vec<u8> = (0..3_000).flat_map(|n| echo(word, n)).collect();
        client.send(&bytes);
    }
    for n in 0..3_000 {
        assert_eq!(one.reply(), Value::bulk(&format!("a{n}")));
        assert_eq!(two.reply(), Value::bulk(&format!("b{n}")));
    }
}

#[test]
fn bytes_may_be_cut_anywhere_and_commands_may_be_inline() {
    let server = Redis::start();
    let gate = before(&server, 1);
    let mut client = gate.redis_client();
    let commands =
        [encode(&["SET", "cut", "a\r\nb"]), b"GET cut\r\n".to_vec(), b"PING\r\n".to_vec()];
    for byte in commands.concat() {
        client.send(&[byte]);
    }
    assert_eq!(client.reply(), Value::simple("OK"));
    assert_eq!(client.reply(), Value::bulk("a\r\nb"));
    assert_eq!(client.reply(), Value::simple("PONG"));
}

#[test]
fn transactions_are_whole_and_watch_works() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut client = gate.redis_client();
    let mut rival = gate.redis_client();
    let block = [&["MULTI"][..], &["INCR", "n"], &["INCR", "n"], &["EXEC"]];
    let replies = client.pipeline(&block);
    assert_eq!(replies[3].words(), ["1", "2"]);

    for client in [&mut client, &mut rival] {
        assert_eq!(client.command(&["MULTI"]), Value::simple("OK"));
    }
    assert_eq!(client.command(&["SET", "x", "mine"]), Value::simple("QUEUED"));
    assert_eq!(rival.command(&["SET", "x", "theirs"]), Value::simple("QUEUED"));
    assert_eq!(rival.command(&["DISCARD"]), Value::simple("OK"));
    assert_eq!(client.command(&["EXEC"]).words(), ["OK"]);
    assert_eq!(rival.command(&["GET", "x"]), Value::bulk("mine"));

    assert_eq!(client.command(&["WATCH", "x"]), Value::simple("OK"));
    assert_eq!(rival.command(&["SET", "x", "changed"]), Value::simple("OK"));
    let replies = client.pipeline(&[&["MULTI"], &["SET", "x", "late"], &["EXEC"]]);
    assert_eq!(replies[2], Value::Null, "the watched key changed");
    assert_eq!(client.command(&["EXEC"]).error().split(' ').next(), Some("ERR"));
    let broken = client.pipeline(&[&["MULTI"], &["SET", "x"], &["EXEC"]]);
    assert!(broken[2].error().starts_with("EXECABORT"), "{broken:?}");
}

#[test]
fn a_client_killed_in_a_transaction_leaves_nothing() {
    let server = Redis::start();
    let gate = before(&server, 1);
    for words in [&[&["WATCH", "x"][..], &["MULTI"], &["SET", "x", "half"]][..], &[&["MULTI"]]] {
        let mut victim = gate.redis_client();
        victim.pipeline(words);
        victim.hang_up();
        let mut next = gate.redis_client();
        assert_eq!(next.command(&["SET", "y", "1"]), Value::simple("OK"), "not QUEUED");
        assert_eq!(next.command(&["GET", "x"]), Value::Null);
        assert!(next.command(&["EXEC"]).error().contains("EXEC without MULTI"));
    }
}

#[test]
fn subscribers_hear_and_others_work_on() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut listener = gate.redis_client();
    let mut speaker = gate.redis_client();
    assert_eq!(listener.command(&["SUBSCRIBE", "news"]).words(), ["subscribe", "news", "1"]);
    assert_eq!(speaker.command(&["PUBLISH", "news", "flood"]), Value::Integer(1));
    assert_eq!(listener.reply().words(), ["message", "news", "flood"]);
    assert_eq!(listener.command(&["PING"]).words(), ["pong", ""]);
    assert!(listener.command(&["GET", "x"]).error().contains("allowed"), "RESP2 says no");
    assert_eq!(listener.command(&["PSUBSCRIBE", "w*"]).words(), ["psubscribe", "w*", "2"]);
    assert_eq!(listener.command(&["UNSUBSCRIBE", "news"]).words(), ["unsubscribe", "news", "1"]);
    assert_eq!(listener.command(&["PUNSUBSCRIBE"]).words(), ["punsubscribe", "w*", "0"]);
    assert_eq!(listener.command(&["SET", "x", "1"]), Value::simple("OK"));
    assert_eq!(speaker.command(&["PUBLISH", "news", "nobody"]), Value::Integer(0));

    let mut modern = gate.redis_client();
    modern.command(&["HELLO", "3"]);
    let told = modern.command(&["SUBSCRIBE", "news"]);
    assert_eq!(
        told,
        Value::Push(vec![Value::bulk("subscribe"), Value::bulk("news"), Value::Integer(1)])
    );
    assert_eq!(modern.command(&["GET", "x"]), Value::bulk("1"), "RESP3 mixes both");
    speaker.command(&["PUBLISH", "news", "tide"]);
    assert_eq!(modern.reply().words(), ["message", "news", "tide"]);
    modern.hang_up();
    eventually("nobody listens any more", || {
        (speaker.command(&["PUBLISH", "news", "x"]) == Value::Integer(0)).then_some(())
    });
}

#[test]
fn a_blocking_pop_waits_without_holding_up_others() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut worker = gate.redis_client();
    worker.send(&encode(&["BLPOP", "queue", "10"]));
    let mut other = gate.redis_client();
    for n in 0..20 {
        assert_eq!(other.command(&["ECHO", &n.to_string()]), Value::bulk(&n.to_string()));
    }
    assert_eq!(other.command(&["RPUSH", "queue", "job"]), Value::Integer(1));
    assert_eq!(worker.reply().words(), ["queue", "job"]);
    let asked = Instant::now();
    assert_eq!(worker.command(&["BLPOP", "queue", "0.3"]), Value::Null);
    assert!(asked.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_worker_killed_while_it_waits_takes_no_job_with_it() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut dying = gate.redis_client();
    dying.send(&encode(&["BLPOP", "queue", "0"]));
    let mut admin = server.direct();
    eventually("it waits", || {
        let info = admin.command(&["INFO", "clients"]).text();
        info.contains("blocked_clients:1").then_some(())
    });
    dying.hang_up();
    eventually("nobody waits any more", || {
        let info = admin.command(&["INFO", "clients"]).text();
        info.contains("blocked_clients:0").then_some(())
    });
    let mut client = gate.redis_client();
    client.command(&["RPUSH", "queue", "job"]);
    assert_eq!(client.command(&["LPOP", "queue"]), Value::bulk("job"));
}

#[test]
fn what_belongs_to_the_session_stays_with_it() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut one = gate.redis_client();
    let mut two = gate.redis_client();
    assert_eq!(one.command(&["SELECT", "3"]), Value::simple("OK"));
    assert_eq!(one.command(&["SET", "where", "three"]), Value::simple("OK"));
    assert_eq!(two.command(&["GET", "where"]), Value::Null);
    assert_eq!(two.command(&["SET", "where", "nought"]), Value::simple("OK"));
    assert_eq!(one.command(&["GET", "where"]), Value::bulk("three"));
    assert!(one.command(&["SELECT", "99"]).error().starts_with("ERR"));

    assert_eq!(one.command(&["CLIENT", "SETNAME", "first"]), Value::simple("OK"));
    assert_eq!(one.command(&["CLIENT", "GETNAME"]), Value::bulk("first"));
    assert_eq!(two.command(&["CLIENT", "GETNAME"]).text().replace("(nil)", ""), "");
    assert_ne!(one.command(&["CLIENT", "ID"]), two.command(&["CLIENT", "ID"]));
    assert_eq!(one.command(&["CLIENT", "SETINFO", "LIB-NAME", "probe"]), Value::simple("OK"));
    assert!(one.command(&["CLIENT", "INFO"]).text().contains("name=first"));

    let hello = two.command(&["HELLO", "3", "SETNAME", "second"]);
    assert!(matches!(hello, Value::Map(_)), "{hello:?}");
    assert_eq!(two.command(&["CLIENT", "GETNAME"]), Value::bulk("second"));
    assert!(two.command(&["HELLO", "9"]).error().starts_with("NOPROTO"));
    assert_eq!(one.command(&["RESET"]), Value::simple("RESET"));
    assert_eq!(one.command(&["GET", "where"]), Value::bulk("nought"));
    assert_eq!(one.command(&["QUIT"]), Value::simple("OK"));
    assert!(one.closed());
}

#[test]
fn the_upstream_password_is_asked_for() {
    let server = Redis::with_password();
    let gate = before(&server, 1);
    let mut client = gate.redis_client();
    assert!(client.command(&["GET", "x"]).error().starts_with("NOAUTH"));
    assert!(client.command(&["AUTH", "guess"]).error().starts_with("WRONGPASS"));
    assert_eq!(client.command(&["AUTH", PASSWORD]), Value::simple("OK"));
    assert_eq!(client.command(&["SET", "x", "1"]), Value::simple("OK"));
    let mut modern = gate.redis_client();
    let hello = modern.command(&["HELLO", "3", "AUTH", "default", PASSWORD]);
    assert!(matches!(hello, Value::Map(_)), "{hello:?}");
    assert_eq!(modern.command(&["GET", "x"]), Value::bulk("1"));
    assert!(!gate.output().contains(PASSWORD), "{}", gate.output());
}

#[test]
fn a_slow_reader_stalls_nobody_and_is_bounded() {
    let server = Redis::start();
    let mut gate = before(&server, 2);
    let mut quick = gate.redis_client();
    quick.command(&["SETRANGE", "big", "1000000", "x"]);
    let slow = gate.redis_client();
    slow.stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let asked: Vec<u8> = (0..300).flat_map(|_| encode(&["GET", "big"])).collect();
    // It asks for 300 MB and reads nothing; whether all its words are taken is not its business.
    let _maybe_cut = std::io::Write::write_all(&mut slow.stream(), &asked);
    for n in 0..200 {
        let asked = Instant::now();
        assert_eq!(quick.command(&["ECHO", &n.to_string()]), Value::bulk(&n.to_string()));
        assert!(asked.elapsed() < Duration::from_secs(3), "the slow reader stalls others");
    }
    let resident = gate.resident_kib();
    assert!(resident < 150_000, "{resident} KiB are kept for one slow reader");
    gate.assert_alive();
}

#[test]
fn a_client_that_closes_its_side_still_gets_its_replies() {
    let server = Redis::start();
    let mut gate = before(&server, 2);
    let conversations: [&[&[&str]]; 3] = [
        &[&["MULTI"], &["SET", "a", "2"], &["EXEC"]],
        &[&["SET", "a", "1"], &["CLIENT", "GETNAME"], &["GET", "a"]],
        &[&["GET", "a"], &["PING"]],
    ];
    for words in conversations {
        let asked: Vec<u8> = words.iter().flat_map(|words| encode(words)).collect();
        let [direct, pooled] = [server.port(), gate.redis_port()].map(|port| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(&asked).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut told = Vec::new();
            stream.read_to_end(&mut told).unwrap();
            String::from_utf8(told).unwrap()
        });
        assert_eq!(pooled, direct, "{words:?}");
        assert!(!pooled.is_empty(), "{words:?}");
    }
    gate.assert_alive();
}

#[test]
fn a_client_that_stops_inside_a_large_command_is_sent_away() {
    let server = Redis::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[redis]\nslow_reader_ms = 700\nunderstood_frame_bytes = 100000\n")
        .unwrap();
    let mut gate =
        Setup::new().redis(&server).pool_size(2).wait_ms(5_000).config(file.path()).start();
    let mut stopped = gate.redis_client();
    let asked = Instant::now();
    stopped.send(
        format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$9000000\r\n{}", "x".repeat(2_000_000)).as_bytes(),
    );
    assert!(stopped.closed());
    let waited = asked.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_secs(6), "{waited:?}");
    eventually("it is logged", || gate.output().contains("stopped inside a command").then_some(()));
    let mut next = gate.redis_client();
    assert_eq!(next.command(&["GET", "k"]), Value::Null);
    gate.assert_alive();
}

#[test]
fn a_client_that_vanishes_behind_a_blocking_command_takes_nothing() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut gone = gate.redis_client();
    gone.send(&encode(&["BLPOP", "list", "0"]));
    let mut direct = server.direct();
    let blocked = |direct: &mut Connection| {
        direct.command(&["INFO", "clients"]).text().contains("blocked_clients:1")
    };
    eventually("it waits", || blocked(&mut direct).then_some(()));
    drop(gone);
    eventually("it is seen to be gone", || (!blocked(&mut direct)).then_some(()));
    assert_eq!(direct.command(&["RPUSH", "list", "kept"]), Value::Integer(1));
    assert_eq!(direct.command(&["LLEN", "list"]), Value::Integer(1));
}

#[test]
fn redis_restarts_and_later_commands_work() {
    let mut server = Redis::start();
    let mut gate = before(&server, 3);
    let mut waiting = gate.redis_client();
    waiting.send(&encode(&["BLPOP", "never", "0"]));
    let mut admin = server.direct();
    eventually("it waits", || {
        let info = admin.command(&["INFO", "clients"]).text();
        info.contains("blocked_clients:1").then_some(())
    });
    let mut idle = gate.redis_client();
    assert_eq!(idle.command(&["SET", "x", "1"]), Value::simple("OK"));
    // Its transaction's connection stays in the pool and dies there.
    assert_eq!(idle.command(&["MULTI"]), Value::simple("OK"));
    assert_eq!(idle.command(&["EXEC"]), Value::Array(Vec::new()));
    server.restart();
    assert_eq!(idle.command(&["GET", "x"]), Value::Null, "an idle client notices nothing");
    for _ in 0..2 {
        assert_eq!(idle.command(&["MULTI"]), Value::simple("OK"));
        assert_eq!(idle.command(&["EXEC"]), Value::Array(Vec::new()));
    }
    assert_eq!(idle.command(&["RPUSH", "never", "now"]), Value::Integer(1));
    assert_eq!(waiting.reply().words(), ["never", "now"], "nor does one that waits");
    gate.assert_alive();
}

/// Listens in front of a server, and ends each connection on which the server says more than `limit` bytes.
fn cut_behind(server: &Redis, limit: usize) -> u16 {
    let (near, far) = (support::ports::free(), server.port());
    let listener = TcpListener::bind(("127.0.0.1", near)).unwrap();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = TcpStream::connect(("127.0.0.1", far)).unwrap();
            let (mut asks, mut asked) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
            std::thread::spawn(move || {
                let most = u64::try_from(limit).unwrap();
                let _cut = std::io::copy(&mut (&far).take(most), &mut &near);
                let _ended = [&near, &far].map(|stream| stream.shutdown(Shutdown::Both));
            });
        }
    });
    near
}

/// An error in the middle of a value would be taken for a part of it.
#[test]
fn a_reply_that_is_cut_off_ends_its_session() {
    let server = Redis::start();
    server.direct().command(&["SETRANGE", "big", "999999", "x"]);
    let url = format!("redis://127.0.0.1:{}/0", cut_behind(&server, 300_000));
    let mut gate = Setup::new().redis(&server).env("REDIS_URL", &url).pool_size(2).start();
    let mut session = gate.redis_client();
    let mut behind = gate.redis_client();
    session.send(&encode(&["GET", "big"]));
    let mut told = Vec::new();
    session.stream().read_to_end(&mut told).expect("its end");
    let head = b"$1000000\r\n";
    assert!(told.starts_with(head) && told.len() < 1_000_000, "{} bytes", told.len());
    assert!(told[head.len()..].iter().all(|byte| *byte == 0), "something was put in");
    assert_eq!(behind.command(&["STRLEN", "big"]), Value::Integer(1_000_000));
    gate.assert_alive();
}

#[test]
fn upstream_down_commands_wait_and_then_say_so() {
    let mut server = Redis::stopped();
    let mut gate = Setup::new().redis(&server).pool_size(1).wait_ms(900).start();
    let mut client = gate.redis_client();
    let asked = Instant::now();
    let told = client.command(&["GET", "x"]);
    assert!(told.error().contains("REDIS_URL"), "{told:?}");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    gate.assert_alive();
    server.resume();
    within(Duration::from_secs(10), "it works once Redis is up", || {
        (client.command(&["SET", "x", "1"]) == Value::simple("OK")).then_some(())
    });
}

#[test]
fn garbage_and_absurd_lengths_end_their_own_session_only() {
    let server = Redis::start();
    let mut gate = before(&server, 1);
    let mut bystander = gate.redis_client();
    let before = gate.resident_kib();
    let nested = "*1\r\n".repeat(40_000);
    for bytes in [
        "*2147483647\r\n$3\r\nGET\r\n",
        "*99999999999999999999\r\n",
        "*-5\r\n",
        "*1\r\n$2147483647\r\nx",
        "*1\r\n$-1\r\n",
        "*1\r\n:5\r\n",
        "*1\r\n$3\r\nPINGPONG",
        "$5\r\nhello\r\n",
        "\0\0\0\0\r\n",
        nested.as_str(),
    ] {
        let mut rude = gate.redis_client();
        let _cut_off = std::io::Write::write_all(&mut rude.stream(), bytes.as_bytes());
        let _cut_off = rude.stream().shutdown(std::net::Shutdown::Write);
        assert!(rude.closed(), "{:?}", bytes.chars().take(40).collect::<String>());
        assert_eq!(bystander.command(&["PING"]), Value::simple("PONG"));
    }
    let grown = gate.resident_kib().saturating_sub(before);
    assert!(grown < 20_000, "{grown} KiB were reserved for absurd lengths");
    gate.assert_alive();
}

#[test]
fn a_client_killed_in_a_pipeline_leaves_the_lane_in_step() {
    let server = Redis::start();
    let gate = before(&server, 1);
    let mut bystander = gate.redis_client();
    for cut in [0, 1, 7, 15] {
        let mut victim = gate.redis_client();
        let many: Vec<u8> = (0..500).flat_map(|n| encode(&["ECHO", &format!("v{n}")])).collect();
        victim.send(&many[..many.len() - cut]);
        victim.hang_up();
        for n in 0..50 {
            assert_eq!(bystander.command(&["ECHO", &n.to_string()]), Value::bulk(&n.to_string()));
        }
    }
    let mut fresh: Connection = gate.redis_client();
    assert_eq!(fresh.command(&["PING"]), Value::simple("PONG"));
}

#[test]
fn a_client_that_dies_behind_a_blocking_pop_gives_its_backend_back() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).env("TIDEGATE_REDIS_POOL_SIZE", "2").start();
    let dying = gate.redis_client();
    // More than tidegate reads ahead, so that the end of the stream lies behind unread bytes.
    let mut bytes = encode(&["BLPOP", "never", "0"]);
    bytes.extend(encode(&["PING"]).repeat(50_000));
    dying.stream().set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let _as_much_as_fits = std::io::Write::write_all(&mut dying.stream(), &bytes);
    let mut admin = server.direct();
    let blocked = |admin: &mut support::resp::Connection, count: &str| {
        admin.command(&["INFO", "clients"]).text().contains(&format!("blocked_clients:{count}"))
    };
    eventually("it blocks", || blocked(&mut admin, "1").then_some(()));
    dying.hang_up();
    eventually("its backend is free", || blocked(&mut admin, "0").then_some(()));
    let mut next = gate.redis_client();
    assert_eq!(next.command(&["MULTI"]), Value::simple("OK"));
    assert_eq!(next.command(&["EXEC"]), Value::Array(Vec::new()));
}

#[test]
fn a_wrong_upstream_password_is_told_logged_and_not_hammered() {
    let server = Redis::with_password();
    let url = server.url().replace(PASSWORD, "wrong-secret");
    let mut gate = Setup::new()
        .redis(&server)
        .env("REDIS_URL", &url)
        .env("TIDEGATE_REDIS_AUTH", "trust")
        .wait_ms(9_000)
        .start();
    let (began, mut asked_for) = (Instant::now(), 0);
    // As many as a busy application asks in a second and a half, and one of each kind at least.
    while asked_for < 16 || began.elapsed() < Duration::from_millis(1_500) {
        for words in [&["GET", "x"][..], &["WATCH", "x"], &["SET", "x", "1"], &["BLPOP", "x", "1"]]
        {
            let asked = Instant::now();
            let told = gate.redis_client().command(words);
            assert!(told.error().contains("REDIS_URL"), "{words:?}: {told:?}");
            assert!(asked.elapsed() < Duration::from_secs(5), "{words:?}: {:?}", asked.elapsed());
            asked_for += 1;
        }
    }
    assert!(asked_for >= 100, "only {asked_for} were answered: nothing that would hammer");
    let info = server.direct().command(&["INFO", "errorstats"]).text();
    let attempts = info
        .lines()
        .find_map(|line| line.strip_prefix("errorstat_WRONGPASS:count="))
        .and_then(|count| count.trim().parse::<u32>().ok());
    assert!(
        attempts.is_some_and(|count| count <= 6),
        "{attempts:?} attempts at the server:\n{info}"
    );
    let log = gate.output();
    let logged = log.lines().filter(|line| line.contains("cannot open a server")).count();
    assert!((1..=6).contains(&logged), "logged {logged} times:\n{log}");
    assert!(!log.contains("wrong-secret"), "the password is in the log:\n{log}");
    gate.assert_alive();
}

#[test]
fn half_a_command_and_silence_ends_at_the_login_deadline() {
    let server = Redis::with_password();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[redis]\nlogin_timeout_ms = 700\n").unwrap();
    let mut gate = Setup::new().redis(&server).config(file.path()).start();
    for half in ["", "*2\r\n$4\r\nAUTH\r\n$12\r\nredis", "PING\r\n"] {
        let asked = Instant::now();
        let mut silent = Connection::open(gate.redis_port());
        silent.send(half.as_bytes());
        if half.ends_with("PING\r\n") {
            assert!(silent.reply().error().starts_with("NOAUTH"));
        }
        assert!(silent.closed(), "{half:?}");
        let waited = asked.elapsed();
        assert!(waited >= Duration::from_millis(600), "ended after {waited:?}, before its time");
        assert!(waited < Duration::from_secs(6), "{waited:?}");
    }
    let mut known = gate.redis_client();
    assert_eq!(known.command(&["AUTH", PASSWORD]), Value::simple("OK"));
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(known.command(&["PING"]), Value::simple("PONG"), "only a login has a deadline");
    gate.assert_alive();
}

#[test]
fn a_stranger_may_not_send_much_before_the_password() {
    let server = Redis::with_password();
    let mut gate = before(&server, 1);
    let before = gate.resident_kib();
    let rude = Connection::open(gate.redis_port());
    rude.stream().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut stream = rude.stream();
    let mut sent = std::io::Write::write_all(&mut stream, b"*2\r\n$4\r\nAUTH\r\n$400000000\r\n");
    let chunk = vec![b'x'; 1_000_000];
    for _ in 0..100 {
        sent = sent.and_then(|()| std::io::Write::write_all(&mut stream, &chunk));
    }
    assert!(sent.is_err(), "100 MB of a password were taken");
    assert!(gate.resident_kib() < before + 20_000);
    let mut client = gate.redis_client();
    assert_eq!(client.command(&["AUTH", PASSWORD]), Value::simple("OK"));
    gate.assert_alive();
}

/// EVALSHA of what the server has forgotten with a restart works: who shares a connection can't see that it was replaced.
#[test]
fn scripts_outlive_a_restart() {
    let mut server = Redis::start();
    let mut gate = before(&server, 3);
    let mut client = gate.redis_client();
    let sha = client.command(&["SCRIPT", "LOAD", "return ARGV[1]"]).text();
    assert_eq!(client.command(&["EVAL", "return 'other'", "0"]), Value::bulk("other"));
    let other = "08f6e7ac6c2e5d7a1ac6bd2a2fc6b1a7b8e0a3a1";
    assert!(client.command(&["EVALSHA", other, "0"]).error().starts_with("NOSCRIPT"));
    server.restart();
    assert_eq!(client.command(&["EVALSHA", &sha, "0", "known"]), Value::bulk("known"));
    // On a backend of its own, too.
    assert_eq!(client.command(&["WATCH", "k"]), Value::simple("OK"));
    assert_eq!(client.command(&["EVALSHA", &sha, "0", "known"]), Value::bulk("known"));
    assert_eq!(client.command(&["UNWATCH"]), Value::simple("OK"));
    assert_eq!(client.command(&["SCRIPT", "FLUSH"]), Value::simple("OK"));
    server.restart();
    let forgotten = client.command(&["EVALSHA", &sha, "0", "x"]);
    assert!(forgotten.error().starts_with("NOSCRIPT"), "{forgotten:?}");
    gate.assert_alive();
}

/// A server that is reading its data back is as good as one that is not there yet: its clients wait.
#[test]
fn a_server_that_loads_its_data_is_waited_for() {
    let mut server = Redis::start();
    let mut gate = before(&server, 3);
    let mut client = gate.redis_client();
    let fill = "for n = 1, 6000 do redis.call('SET', 'k' .. n, n) end";
    assert_eq!(client.command(&["EVAL", fill, "0"]), Value::Null);
    assert_eq!(client.command(&["SAVE"]), Value::simple("OK"));
    server.stop();
    client.send(&encode(&["DBSIZE"]));
    // Half a second and more in all; it listens meanwhile.
    let slowly = ["--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024"];
    server.resume_with(&slowly);
    let told = server.direct().command(&["DBSIZE"]);
    assert!(told.error().starts_with("LOADING"), "{told:?}");
    assert_eq!(client.reply(), Value::Integer(6_000));
    gate.assert_alive();
}

/// Passes bytes between whoever connects and the port that is the target then.
fn relay(target: &Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Arc::clone(target);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let port = target.load(Ordering::SeqCst);
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _either_end_may_close = std::io::copy(&mut from, &mut to);
                    let _closed_already = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    port
}

#[test]
fn a_script_may_speak_of_readonly_and_runs_once() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).start();
    let script = "redis.call('INCR', 'n') return redis.error_reply(ARGV[1])";
    let words = "READONLY You can't write against a read only replica.";
    let told = gate.redis_client().command(&["EVAL", script, "0", words]);
    assert!(told.error().starts_with(words), "{told:?}");
    assert_eq!(server.direct().command(&["GET", "n"]), Value::bulk("1"));
}

/// It waits on its lane for the script's reply: what ends that must not stand behind it.
#[test]
fn a_script_that_never_ends_is_ended_by_another_client() {
    for (script, kill) in [("EVAL", "SCRIPT"), ("FCALL", "FUNCTION")] {
        let server = Redis::with(&["--lua-time-limit", "100"]);
        let gate = Setup::new().redis(&server).start();
        let (mut client, mut other) = (gate.redis_client(), gate.redis_client());
        let function =
            "#!lua name=f\nredis.register_function('f', function() while true do end end)";
        other.command(&["FUNCTION", "LOAD", function]);
        let body = if script == "EVAL" { "while true do end" } else { "f" };
        client.send(&encode(&[script, body, "0"]));
        let mut direct = server.direct();
        until("the server says that it is busy", || {
            matches!(direct.command(&["PING"]), Value::Error(_))
        });
        let asked = Instant::now();
        assert_eq!(other.command(&[kill, "KILL"]), Value::simple("OK"));
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert!(client.reply().error().contains("killed"));
        assert_eq!(other.command(&["PING"]), Value::simple("PONG"));
    }
}

/// A failover that leaves connections to the old master open: what it refuses goes to the new one.
#[test]
fn what_a_demoted_master_refuses_goes_to_the_new_one() {
    let (old, new) = (Redis::start(), Redis::start());
    let target = Arc::new(AtomicU16::new(old.port()));
    let url = format!("redis://127.0.0.1:{}/0", relay(&target));
    let mut gate = Setup::new().redis(&old).env("REDIS_URL", &url).start();
    let (mut client, mut other) = (gate.redis_client(), gate.redis_client());
    assert_eq!(client.command(&["INCR", "n"]), Value::Integer(1));
    // Of a master that is not there: it keeps its data.
    let demoted = ["REPLICAOF", "127.0.0.1", "1"];
    assert_eq!(old.direct().command(&demoted), Value::simple("OK"));
    // As long as the address leads to the old one, it has the word.
    assert!(other.command(&["INCR", "n"]).error().starts_with("READONLY"));
    assert_eq!(old.direct().command(&["REPLICAOF", "NO", "ONE"]), Value::simple("OK"));
    old.direct().command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until("its words count again", || matches!(other.command(&["INCR", "n"]), Value::Integer(_)));
    target.store(new.port(), Ordering::SeqCst);
    assert_eq!(old.direct().command(&demoted), Value::simple("OK"));
    let transaction = [&["MULTI"][..], &["INCR", "n"], &["EXEC"]];
    let asked = [&["PING"][..], &["SET", "x", "1"], &["GET", "x"], &["INCR", "y"]];
    let bytes: Vec<u8> = asked.iter().chain(&transaction).flat_map(|words| encode(words)).collect();
    client.send(&bytes);
    assert_eq!(client.reply(), Value::simple("PONG"));
    assert_eq!(client.reply(), Value::simple("OK"));
    assert_eq!(client.reply(), Value::bulk("1"));
    assert_eq!(client.reply(), Value::Integer(1));
    assert_eq!(client.reply(), Value::simple("OK"));
    assert_eq!(client.reply(), Value::simple("QUEUED"));
    assert_eq!(client.reply(), Value::Array(vec![Value::Integer(1)]));
    assert_eq!(new.direct().command(&["GET", "y"]), Value::bulk("1"), "once, and there");
    gate.assert_alive();
}

#[test]
fn information_has_a_section_of_ours() {
    let server = Redis::start();
    let mut gate = before(&server, 3);
    let mut client = gate.redis_client();
    let mut asked = encode(&["INFO"]);
    asked.extend(encode(&["SET", "x", "1"]));
    asked.extend(encode(&["INFO", "clients", "tidegate"]));
    asked.extend(b"info keyspace\r\n");
    asked.extend(encode(&["INFO", "server"]));
    client.send(&asked);
    let all = client.reply().text();
    assert!(all.contains("redis_version:") && all.contains("# Keyspace"), "{all}");
    assert!(all.ends_with("\r\n"), "{all}");
    let ours = all.split("\r\n\r\n# Tidegate\r\n").nth(1).expect("our section");
    for line in ["tidegate_clients:1", "tidegate_server_connections_limit:3"] {
        assert!(ours.contains(line), "{ours}");
    }
    assert_eq!(client.reply(), Value::simple("OK"));
    let some = client.reply().text();
    assert!(some.starts_with("# Clients") && some.contains("# Tidegate"), "{some}");
    assert!(client.reply().text().contains("db0:keys=1"));
    let server_alone = client.reply().text();
    assert!(server_alone.contains("run_id:") && !server_alone.contains("# Tidegate"));
    client.command(&["HELLO", "3"]);
    assert!(client.command(&["INFO", "TIDEGATE"]).text().contains("# Tidegate"));
    client.send(&[encode(&["MULTI"]), encode(&["INFO", "server"]), encode(&["EXEC"])].concat());
    assert_eq!(client.reply(), Value::simple("OK"));
    assert_eq!(client.reply(), Value::simple("QUEUED"));
    assert!(matches!(client.reply(), Value::Array(replies) if replies.len() == 1));
    gate.assert_alive();
}
