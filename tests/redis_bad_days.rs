//! The bad days of a Redis pool that take more than one client: servers that go away, stay away or talk nonsense, and clients
//! killed by the dozen. (The end of `redis.rs` holds those of one client.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::redis::{PASSWORD, Redis};
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, ports, within};

fn before(server: &Redis, pool_size: usize) -> Tidegate {
    with_workers(server, pool_size, "1")
}

fn with_workers(server: &Redis, pool_size: usize, workers: &str) -> Tidegate {
    let setup = Setup::new().redis(server).pool_size(pool_size).wait_ms(9_000);
    setup.env("TIDEGATE_WORKERS", workers).start()
}

/// What one busy client has seen.
#[derive(Debug, Default)]
struct Tally {
    answered: i64,
    /// Told that a command may or may not have been applied.
    ambiguous: i64,
    /// Told that a transaction was lost, or the connection closed behind such an error.
    reconnects: usize,
}

const CLIENTS: usize = 8;

/// Counts up over and over, alone and in a transaction, until `stop`; every answer must fit its question.
fn count_up(gate: &Tidegate, name: &str, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    let mut client = gate.redis_client();
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let word = format!("{name}-{round}");
        let whole = [&["ECHO", &word][..], &["INCR", "n"]];
        let parts = [&["MULTI"][..], &["INCR", "n"], &["ECHO", &word], &["EXEC"]];
        let asked: &[&[&str]] = if round % 3 == 0 { &parts } else { &whole };
        let bytes: Vec<u8> = asked.iter().flat_map(|words| encode(words)).collect();
        let begun = Instant::now();
        let sent = client.stream().write_all(&bytes).is_ok();
        let replies: Vec<Value> =
            asked.iter().map_while(|_| client.try_reply().filter(|_| sent)).collect();
        assert!(begun.elapsed() < Duration::from_secs(15), "no answer at all: {tally:?}");
        let error = replies.iter().find(|reply| matches!(reply, Value::Error(_)));
        match (error, replies.last()) {
            (None, Some(Value::Integer(_))) if replies.len() == 2 => {
                assert_eq!(replies[0], Value::bulk(&word), "another's answer");
                tally.answered += 1;
            }
            (None, Some(Value::Array(items))) if replies.len() == 4 => {
                assert_eq!(items[1], Value::bulk(&word), "another's answer");
                tally.answered += 1;
            }
            (Some(error), _) => {
                let text = error.error();
                assert!(text.contains("may or may not have been applied"), "{text}");
                tally.ambiguous += 1;
            }
            // Inside a transaction the connection ends, as a direct one would.
            _ => tally.ambiguous += 1,
        }
        if replies.len() < asked.len() {
            client = gate.redis_client();
            tally.reconnects += 1;
        }
    }
    tally
}

/// Runs the load while `disturb` does its worst.
fn under_load(gate: &Tidegate, disturb: impl FnOnce(&AtomicUsize)) -> Vec<Tally> {
    let stop = AtomicBool::new(false);
    let started = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (stop, started) = (&stop, &started);
                scope.spawn(move || {
                    started.fetch_add(1, Ordering::Relaxed);
                    count_up(gate, &n.to_string(), stop)
                })
            })
            .collect();
        disturb(&started);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("no wrong answer")).collect()
    })
}

#[test]
fn connections_killed_under_load_cost_one_error_each_and_nothing_is_done_twice() {
    for workers in ["1", "2"] {
        kill_connections_under_load(workers);
    }
}

fn kill_connections_under_load(workers: &str) {
    let server = Redis::start();
    let mut gate = with_workers(&server, 4, workers);
    let mut direct = server.direct();
    let tallies = under_load(&gate, |_| {
        for _ in 0..30 {
            // Every connection of tidegate's, in the middle of whatever it does.
            direct.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            std::thread::sleep(Duration::from_millis(40));
        }
    });
    let answered: i64 = tallies.iter().map(|tally| tally.answered).sum();
    let ambiguous: i64 = tallies.iter().map(|tally| tally.ambiguous).sum();
    let counted: i64 = direct.command(&["GET", "n"]).text().parse().unwrap();
    assert!(answered > 200, "{tallies:?}");
    assert!(ambiguous > 0, "nobody noticed: the test disturbs nothing");
    assert!(counted >= answered, "an answer without a deed: {counted} of {answered}");
    assert!(
        counted <= answered + ambiguous,
        "something was done twice: {counted} of {answered} and {ambiguous}"
    );
    // 30 times at most each of the connections was lost with what it carried: nobody is told more often than that.
    assert!(ambiguous <= 30 * i64::try_from(CLIENTS).unwrap(), "{tallies:?}");
    drop(direct);
    gate.assert_alive();
    eventually("the server has seen our own go", || (server.connections() <= 4).then_some(()));
}

#[test]
fn redis_restarts_under_load_and_later_commands_work() {
    let mut server = Redis::start();
    let mut gate = before(&server, 4);
    let mut idle = gate.redis_client();
    assert_eq!(idle.command(&["PING"]), Value::simple("PONG"));
    let mut served = 0.0;
    let tallies = under_load(&gate, |_| {
        let requests = || gate.redis_metric("tidegate_requests_total", &[]);
        for _ in 0..3 {
            let before = requests();
            eventually("the load runs", || (requests() > before + 500.0).then_some(()));
            server.restart();
        }
        let before = requests();
        within(Duration::from_secs(10), "it goes on", || {
            (requests() > before + 500.0).then_some(())
        });
        served = requests();
    });
    for tally in &tallies {
        assert!(tally.answered > 0, "{tallies:?}");
        // One restart, one command in flight, one error; and another if what follows meets a pooled connection whose end
        // has not arrived yet.
        assert!(tally.ambiguous <= 6, "{tallies:?}");
        assert!(tally.reconnects <= 6, "{tallies:?}");
    }
    assert!(served > 0.0);
    assert_eq!(idle.command(&["PING"]), Value::simple("PONG"), "who asked nothing noticed nothing");
    gate.assert_alive();
}

#[test]
fn clients_killed_by_the_dozen_leak_nothing() {
    let server = Redis::start();
    let mut gate = before(&server, 3);
    let deaths: [&[&[&str]]; 6] = [
        &[&["MULTI"], &["SET", "x", "half"]],
        &[&["WATCH", "x"], &["GET", "x"]],
        &[&["SUBSCRIBE", "news"]],
        &[&["BLPOP", "never", "0"]],
        &[&["ECHO", "a"], &["ECHO", "b"], &["GET", "big"]],
        &[&["NOSUCHCOMMAND"]],
    ];
    server.direct().command(&["SETRANGE", "big", "999999", "x"]);
    for death in deaths {
        let asked: Vec<u8> = death.iter().flat_map(|words| encode(words)).collect();
        for round in 0..20 {
            let victim = gate.redis_client();
            let cut = if round % 2 == 0 { 0 } else { 3 };
            victim.stream().write_all(&asked[..asked.len() - cut]).unwrap();
            victim.hang_up();
        }
        assert_holds_are_clean(&gate);
    }
    eventually("all are gone", || {
        (gate.redis_metric("tidegate_clients", &[]) == 0.0).then_some(())
    });
    eventually("none is held", || {
        let state = |state| gate.redis_metric("tidegate_server_connections", &[("state", state)]);
        (state("pinned") == 0.0).then_some(())
    });
    assert!(server.connections() <= 3, "{} connections", server.connections());
    let info = server.direct().command(&["INFO", "clients"]).text();
    assert!(info.contains("blocked_clients:0"), "{info}");
    let subscribers = server.direct().command(&["PUBSUB", "NUMSUB", "news"]);
    assert_eq!(subscribers.words(), ["news", "0"]);
    gate.assert_alive();
}

/// Both connections that can be held bear nothing of whoever held them before.
fn assert_holds_are_clean(gate: &Tidegate) {
    let mut clients = [gate.redis_client(), gate.redis_client()];
    for client in &mut clients {
        assert_eq!(client.command(&["MULTI"]), Value::simple("OK"));
    }
    for client in &mut clients {
        assert_eq!(client.command(&["GET", "x"]), Value::simple("QUEUED"));
        assert_eq!(client.command(&["EXEC"]), Value::Array(vec![Value::Null]));
    }
}

#[test]
fn absurd_lengths_are_refused_before_the_password_too() {
    let server = Redis::with_password();
    let mut gate = before(&server, 1);
    let resident = gate.resident_kib();
    for (bytes, words) in [
        ("*2147483647\r\n", "unauthenticated multibulk length"),
        ("*11\r\n", "unauthenticated multibulk length"),
        ("*99999999999999999999\r\n", "mbulk count"),
        ("*1\r\n$2147483647\r\nx", "unauthenticated bulk length"),
        ("*1\r\n$16385\r\n", "unauthenticated bulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$16384\r\n", "unauthenticated bulk length"),
    ] {
        let mut rude = gate.redis_client();
        rude.send(bytes.as_bytes());
        // The last is told when it gets there.
        let _cut_off = rude.stream().write_all(&[b'x'; 20_000]);
        let asked = Instant::now();
        if let Some(told) = rude.try_reply() {
            assert!(told.error().contains(words), "{bytes:?}: {told:?}");
        }
        assert!(rude.closed(), "{bytes:?}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{bytes:?}: {:?}", asked.elapsed());
    }
    assert!(gate.resident_kib() < resident + 10_000);
    let mut client = gate.redis_client();
    assert_eq!(client.command(&["AUTH", PASSWORD]), Value::simple("OK"));
    gate.assert_alive();
}

#[test]
fn upstream_down_at_start_the_command_still_runs() {
    let server = Redis::stopped();
    let script = "echo started; redis-cli -u \"$REDIS_URL\" get k; exit 5";
    let mut gate = Setup::new()
        .redis(&server)
        .wait_ms(700)
        .arguments(&["run", "--", "sh", "-c", script])
        .launch();
    let status = gate.wait(Duration::from_secs(20)).expect("the command ends");
    let output = gate.output();
    assert_eq!(status.code(), Some(5), "{output}");
    assert!(output.contains("started"), "{output}");
    assert!(output.contains("TRYAGAIN tidegate") && output.contains("REDIS_URL"), "{output}");
}

/// Something that takes connections and greets each with `words`, or with silence.
fn impostor(words: &'static str) -> u16 {
    let port = ports::free();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut asked = [0; 512];
            let _asked = stream.read(&mut asked);
            let _told = stream.write_all(words.as_bytes());
            open.push(stream);
        }
    });
    port
}

/// Passes bytes on to the server, but ends so many connections at their HELLO 3.
fn relay_before(server: u16, ends: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let ends = Arc::clone(&ends);
                std::thread::spawn(move || pass_on(from, to, &ends));
            }
        }
    });
    port
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, ends: &AtomicUsize) {
    let hello = encode(&["HELLO", "3"]);
    let fewer = |left: usize| left.checked_sub(1);
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut part) {
        let says = part[..read].windows(hello.len()).any(|words| words == hello);
        if says && ends.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok() {
            break;
        }
        if to.write_all(&part[..read]).is_err() {
            break;
        }
    }
    let _closed = from.shutdown(Shutdown::Both);
    let _closed = to.shutdown(Shutdown::Both);
}

/// A gate before a server, and its client, which speaks RESP3; of the connections that are opened from now on so many end at their
/// HELLO 3.
fn speaking_resp3(server: &Redis, ends: usize) -> (Tidegate, Connection) {
    let left = Arc::new(AtomicUsize::new(0));
    let url = format!("redis://127.0.0.1:{}/0", relay_before(server.port(), Arc::clone(&left)));
    let gate = Setup::new().redis(server).env("REDIS_URL", &url).start();
    let mut client = gate.redis_client();
    client.command(&["HELLO", "3"]);
    assert_eq!(client.command(&["SET", "k", "v"]), Value::simple("OK"));
    left.store(ends, Ordering::SeqCst);
    (gate, client)
}

#[test]
fn a_connection_lost_before_its_command_was_sent_is_replaced_once() {
    let server = Redis::start();
    let (_gate, mut client) = speaking_resp3(&server, 1);
    assert_eq!(client.command(&["WATCH", "k"]), Value::simple("OK"));
    let (_gate, mut client) = speaking_resp3(&server, 1);
    assert_eq!(client.command(&["MULTI"]), Value::simple("OK"));
    assert_eq!(client.command(&["INCR", "n"]), Value::simple("QUEUED"));
    let told = client.command(&["TIDEGATE.NONE"]);
    assert!(told.error().contains("unknown command"), "{told:?}");
    assert!(client.command(&["EXEC"]).error().starts_with("EXECABORT"));
    let (_gate, mut client) = speaking_resp3(&server, 2);
    let told = client.command(&["XREAD", "BLOCK", "20000", "STREAMS", "s", "$"]);
    assert!(told.error().contains("it was not applied"), "{told:?}");
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"), "the session goes on");
}

#[test]
fn a_listener_that_speaks_no_redis_is_an_honest_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[redis]\nconnect_timeout_ms = 500\nwait_ms = 2000\n").unwrap();
    for words in ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "+OK\r\n", "*100000\r\n", "$99999999\r\n"]
    {
        let url = format!("redis://127.0.0.1:{}/0", impostor(words));
        let server = Redis::stopped();
        let mut gate =
            Setup::new().redis(&server).env("REDIS_URL", &url).config(file.path()).start();
        for command in [&["GET", "k"][..], &["WATCH", "k"]] {
            let asked = Instant::now();
            let told = Connection::open(gate.redis_port()).command(command);
            assert!(told.error().contains("REDIS_URL"), "{words:?}: {told:?}");
            assert!(asked.elapsed() < Duration::from_secs(5), "{words:?}: {:?}", asked.elapsed());
        }
        gate.assert_alive();
    }
}
