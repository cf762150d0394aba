//! Told to stop: what is owed is finished, and what can't be finished in time is told so, on both sides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::eventually;
use support::pg::{Frame, query};
use support::postgres::Postgres;
use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

const DRAIN: Duration = Duration::from_millis(1_600);

fn with_drain(setup: Setup) -> Tidegate {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("drain_ms = {}\n", DRAIN.as_millis())).unwrap();
    setup.pool_size(3).wait_ms(9_000).config(file.path()).start()
}

/// Ends `gate`, which has work that does not end: it must take the time that it has, and no more.
fn ends_at_the_deadline(gate: &mut Tidegate, told: Instant) {
    let status = gate.wait(Duration::from_secs(15)).expect("it ends");
    let took = told.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(took > DRAIN / 2, "it ended after {took:?}");
    assert!(took < DRAIN + Duration::from_millis(500), "it ended after {took:?}");
    assert!(gate.output().contains("sessions unfinished"), "{}", gate.output());
}

/// Who has said something is no idle client, though it lies in the kernel while a lane has no room.
#[test]
fn what_was_not_read_for_lack_of_room_is_served_before_the_end() {
    const CLIENTS: usize = 60;
    let server = Redis::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "drain_ms = 20000\n").unwrap();
    let mut gate = Setup::new().redis(&server).pool_size(3).config(file.path()).start();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gate.redis_client()).collect();
    for client in &mut clients {
        assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
    }
    server.signal(Signal::STOP);
    let value = "v".repeat(300_000);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let set = |mut client: Connection| {
            client.send(&encode(&["SET", "k", &value]));
            client.try_reply()
        };
        let clients: Vec<_> =
            clients.into_iter().map(|client| scope.spawn(move || set(client))).collect();
        eventually("all wait", || {
            let active = gate.redis_metric("tidegate_clients", &[("state", "active")]);
            (active == CLIENTS as f64).then_some(())
        });
        gate.signal(Signal::TERM);
        eventually("it drains", || gate.output().contains("told to stop").then_some(()));
        server.signal(Signal::CONT);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(answers, vec![Some(Value::simple("OK")); CLIENTS]);
    assert_eq!(gate.wait(Duration::from_secs(15)).and_then(|status| status.code()), Some(0));
}

#[test]
fn redis_clients_that_are_left_at_the_deadline_are_told() {
    let server = Redis::start();
    let mut gate = with_drain(Setup::new().redis(&server));
    let [mut idle, mut open, mut holder, mut queued, mut blocked, mut waiting, mut paused] =
        std::array::from_fn(|_| gate.redis_client());
    assert_eq!(idle.command(&["PING"]), Value::simple("PONG"));
    assert_eq!(open.command(&["WATCH", "k"]), Value::simple("OK"));
    for client in [&mut open, &mut queued] {
        assert_eq!(client.command(&["MULTI"]), Value::simple("OK"));
        assert_eq!(client.command(&["SET", "k", "v"]), Value::simple("QUEUED"));
    }
    // No connection is left for those who come now.
    assert_eq!(holder.command(&["WATCH", "k"]), Value::simple("OK"));
    blocked.send(&encode(&["BLPOP", "never", "0"]));
    let mut direct = server.direct();
    eventually("it blocks", || {
        (gate.redis_metric("tidegate_parked_clients", &[]) == 1.0).then_some(())
    });
    waiting.send(&encode(&["WATCH", "k"]));
    eventually("it waits", || {
        (gate.redis_metric("tidegate_clients", &[("state", "waiting")]) == 1.0).then_some(())
    });
    assert_eq!(direct.command(&["CLIENT", "PAUSE", "9000", "WRITE"]), Value::simple("OK"));
    paused.send(&encode(&["SET", "k", "paused"]).repeat(3));
    eventually("it is on its way", || {
        (gate.redis_metric("tidegate_clients", &[("state", "active")]) == 4.0).then_some(())
    });
    gate.signal(Signal::TERM);
    let told = Instant::now();
    assert!(idle.closed());
    assert!(told.elapsed() < DRAIN / 2, "an idle one is not kept");
    let errors: [(&mut Connection, &str); 5] = [
        (&mut queued, "the transaction was not run"),
        (&mut open, "the transaction was not run"),
        (&mut blocked, "this command was not run"),
        (&mut waiting, "this command was not run"),
        (&mut paused, "may or may not have been applied"),
    ];
    for (client, words) in errors {
        let said = client.reply();
        assert!(said.error().starts_with("ERR tidegate: shutting down"), "{said:?}");
        assert!(said.error().contains(words), "{said:?}");
        assert!(client.closed());
    }
    ends_at_the_deadline(&mut gate, told);
    direct.command(&["CLIENT", "UNPAUSE"]);
    assert_eq!(direct.command(&["LLEN", "never"]), Value::Integer(0));
}

#[test]
fn a_redis_client_cut_off_inside_a_reply_gets_no_words_in_it() {
    let server = Redis::start();
    let mut gate = with_drain(Setup::new().redis(&server));
    let mut client = gate.redis_client();
    client.command(&["SETRANGE", "big", "39999999", "x"]);
    client.send(&encode(&["GET", "big"]));
    let moved = |peer, direction, bytes| {
        let labels = [("peer", peer), ("direction", direction)];
        (gate.redis_metric("tidegate_bytes_total", &labels) > bytes).then_some(())
    };
    eventually("it is being sent", || moved("server", "received", 100_000.0));
    gate.signal(Signal::TERM);
    let told = Instant::now();
    // Given up, the rest of the reply is thrown away: only then the client reads.
    eventually("it is given up", || moved("server", "received", 39_000_000.0));
    let mut rest = Vec::new();
    let _reset = std::io::Read::read_to_end(&mut client.stream(), &mut rest);
    assert!(gate.wait(Duration::from_secs(15)).is_some());
    assert!(told.elapsed() < DRAIN + Duration::from_millis(500), "{:?}", told.elapsed());
    assert!(rest.len() > 100_000 && rest.len() < 39_000_000, "{} bytes", rest.len());
    assert!(!rest.ends_with(b"\n"), "something follows inside the value");
}

#[test]
fn redis_work_that_ends_in_time_is_finished() {
    let server = Redis::start();
    let mut gate = with_drain(Setup::new().redis(&server));
    let mut open = gate.redis_client();
    assert_eq!(open.command(&["MULTI"]), Value::simple("OK"));
    let mut blocked = gate.redis_client();
    blocked.send(&encode(&["BLPOP", "queue", "0"]));
    let mut direct = server.direct();
    eventually("it blocks", || {
        direct.command(&["INFO", "clients"]).text().contains("blocked_clients:1").then_some(())
    });
    gate.signal(Signal::TERM);
    let told = Instant::now();
    assert_eq!(open.command(&["SET", "k", "v"]), Value::simple("QUEUED"));
    assert_eq!(open.command(&["EXEC"]).words(), ["OK"]);
    direct.command(&["RPUSH", "queue", "job"]);
    assert_eq!(blocked.reply().words(), ["queue", "job"]);
    assert!(open.closed() && blocked.closed());
    assert_eq!(gate.wait(Duration::from_secs(15)).and_then(|status| status.code()), Some(0));
    assert!(told.elapsed() < DRAIN, "nobody was waited for");
    assert!(!gate.output().contains("unfinished"), "{}", gate.output());
}

#[test]
fn postgres_clients_that_are_left_at_the_deadline_are_told() {
    let server = Postgres::start();
    let mut gate = with_drain(Setup::new().postgres(&server));
    let [mut idle, mut open, mut pinned, mut busy] = std::array::from_fn(|_| gate.client());
    idle.query("select 1").expect_no_error();
    pinned.query("create temporary table t (n int)").expect_no_error();
    open.query("begin").expect_no_error();
    busy.send(&query("select pg_sleep(600)"));
    let mut watcher = server.superuser();
    let mut sleeping = |count: &str| {
        let sql = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
        (watcher.one(sql) == count).then_some(())
    };
    eventually("it runs", || sleeping("1"));
    gate.signal(Signal::TERM);
    let told = Instant::now();
    for client in [&mut idle, &mut pinned] {
        assert_eq!(code_of(&client.last_words()), "57P01");
    }
    assert!(told.elapsed() < DRAIN / 2, "who owes nothing is not kept");
    for client in [&mut open, &mut busy] {
        assert_eq!(code_of(&client.last_words()), "57P01");
    }
    ends_at_the_deadline(&mut gate, told);
    eventually("nothing runs on", || sleeping("0"));
}

fn code_of(frames: &[Frame]) -> String {
    frames
        .iter()
        .find(|frame| frame.kind() == 'E')
        .map(|error| error.refusal().code)
        .unwrap_or_default()
}
