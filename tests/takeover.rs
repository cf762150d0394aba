//! One `serve` takes over from another: nobody is refused, work goes on, cancels reach whom they are for, and where the new one
//! can't serve the old one does as before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::pg::{Connection, Login, VERSION_3_0, query, startup};
use support::postgres::{Postgres, tool};
use support::redis::Redis;
use support::tidegate::{Setup, Tidegate};
use support::{DEADLINE, eventually, ports, resp};
use tempfile::TempDir;

/// Two servers, and a place for sockets and settings.
struct Stage {
    home: TempDir,
    server: Postgres,
    redis: Redis,
}

impl Stage {
    fn new(settings: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("tidegate.toml"), settings).unwrap();
        Self { home, server: Postgres::start(), redis: Redis::start() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn control(&self) -> PathBuf {
        self.path("control")
    }

    fn setup(&self) -> Setup {
        let setup = Setup::new().postgres(&self.server).redis(&self.redis).pool_size(3);
        let setup = setup.config(&self.path("tidegate.toml"));
        setup
            .env("TIDEGATE_CONTROL_SOCKET", self.control().to_str().unwrap())
            .env("TIDEGATE_POSTGRES_SOCKET_DIR", self.home.path().to_str().unwrap())
            .env("TIDEGATE_REDIS_SOCKET", self.path("redis.sock").to_str().unwrap())
    }

    fn first(&self) -> Tidegate {
        let gate = self.setup().start();
        eventually("successors can ask", || UnixStream::connect(self.control()).ok());
        gate
    }

    fn successor(&self, before: &Tidegate) -> Tidegate {
        let gate = self.setup().in_place_of(before).launch();
        has_taken_over(gate)
    }
}

fn has_taken_over(mut gate: Tidegate) -> Tidegate {
    eventually("it has taken over", || {
        assert!(gate.wait(Duration::ZERO).is_none(), "it ended: {}", gate.output());
        gate.output().contains("\"taken over\"").then_some(())
    });
    gate
}

fn ends(mut gate: Tidegate) -> String {
    let status = gate.wait(DEADLINE).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", gate.output());
    gate.output()
}

/// What clients have seen.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    refused: AtomicUsize,
    /// Sent away between two requests, or with the word that it was not run.
    sent_away: AtomicUsize,
    acknowledged: AtomicUsize,
}

/// How one request ended.
enum Outcome {
    Done,
    /// It was not run, and says so.
    NotRun,
}

impl Seen {
    /// A client that inserts one row after the other, and comes again when it is sent away.
    fn insert(&self, port: u16) {
        let mut client = None;
        while !self.over.load(SeqCst) {
            let connection = match client.take() {
                Some(connection) => connection,
                None => match Connection::try_open(port, &Login::app()) {
                    Ok(connection) => connection,
                    // Sent away as soon as it was here.
                    Err(refusal) if refusal.code == "57P01" => {
                        self.sent_away.fetch_add(1, SeqCst);
                        continue;
                    }
                    Err(refusal) => {
                        eprintln!("refused: {refusal:?}");
                        self.refused.fetch_add(1, SeqCst);
                        return;
                    }
                },
            };
            match one_insert(connection) {
                (Outcome::Done, connection) => {
                    self.acknowledged.fetch_add(1, SeqCst);
                    client = Some(connection);
                }
                (Outcome::NotRun, _gone) => {
                    self.sent_away.fetch_add(1, SeqCst);
                }
            }
        }
    }

    /// The same for Redis; with so many requests over each connection.
    fn count(&self, port: u16, requests: usize) {
        while !self.over.load(SeqCst) {
            let Some(mut connection) = resp::Connection::try_open(port) else {
                self.refused.fetch_add(1, SeqCst);
                return;
            };
            for _ in 0..requests {
                if self.over.load(SeqCst) {
                    return;
                }
                // Closed, or told so: it was not run.
                let Some(resp::Value::Integer(_)) = connection.try_command(&["INCR", "n"]) else {
                    self.sent_away.fetch_add(1, SeqCst);
                    break;
                };
                self.acknowledged.fetch_add(1, SeqCst);
            }
        }
    }

    /// Clients that connect anew for each transaction.
    fn bench(&self, port: u16) {
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), "select 1;\n").unwrap();
        let login = Login::app();
        while !self.over.load(SeqCst) {
            let mut command = Command::new(tool("pgbench"));
            command.args(["-n", "-C", "-c", "2", "-t", "20", "-f"]).arg(script.path());
            command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", &login.user]);
            command.arg(&login.database).env("PGPASSWORD", &login.password);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && said.contains("actually processed: 40/40") {
                self.acknowledged.fetch_add(40, SeqCst);
            } else {
                eprintln!("{output:?}");
                self.refused.fetch_add(1, SeqCst);
                return;
            }
        }
    }
}

fn one_insert(mut connection: Connection) -> (Outcome, Connection) {
    if connection.stream().write_all(&query("insert into seen values (1)")).is_err() {
        return (Outcome::NotRun, connection);
    }
    let mut done = false;
    loop {
        match connection.try_frame() {
            Ok(frame) if frame.tag == b'C' => done = true,
            Ok(frame) if frame.tag == b'E' => {
                let refusal = frame.refusal();
                assert_eq!(refusal.code, "57P01", "{refusal:?}");
                return (if done { Outcome::Done } else { Outcome::NotRun }, connection);
            }
            Ok(frame) if frame.tag == b'Z' => return (Outcome::Done, connection),
            Ok(_) => {}
            Err(_closed) => {
                return (if done { Outcome::Done } else { Outcome::NotRun }, connection);
            }
        }
    }
}

#[test]
fn five_takeovers_under_load_and_nobody_is_refused() {
    let stage = Stage::new("handover_ms = 3000\n");
    stage.server.direct().query("create table seen (n int)").expect_no_error();
    let mut gate = stage.first();
    let (port, redis_port) = (gate.postgres_port(), gate.redis_port());
    let all: [Arc<Seen>; 3] = std::array::from_fn(|_| Arc::default());
    let mut crowd = Vec::new();
    for requests in [1, 3, usize::MAX, usize::MAX] {
        let [postgres, redis, _] = all.clone();
        crowd.push(thread::spawn(move || postgres.insert(port)));
        crowd.push(thread::spawn(move || redis.count(redis_port, requests)));
    }
    let bench = Arc::clone(&all[2]);
    crowd.push(thread::spawn(move || bench.bench(port)));
    let done = || all.each_ref().map(|seen| seen.acknowledged.load(SeqCst));
    for _ in 0..5 {
        let before = done();
        let next = stage.successor(&gate);
        let output = ends(std::mem::replace(&mut gate, next));
        assert!(output.contains("handed over"), "{output}");
        assert!(!output.contains("sessions unfinished"), "{output}");
        let now = done();
        eventually("the new one serves all", || {
            assert!(all.iter().all(|seen| seen.refused.load(SeqCst) == 0), "somebody was refused");
            done().iter().zip(now).all(|(done, now)| *done > now).then_some(())
        });
        assert!(done().iter().zip(before).all(|(done, before)| *done > before));
    }
    all.iter().for_each(|seen| seen.over.store(true, SeqCst));
    crowd.into_iter().for_each(|one| one.join().unwrap());
    let counts = all.each_ref().map(|seen| {
        (seen.refused.load(SeqCst), seen.sent_away.load(SeqCst), seen.acknowledged.load(SeqCst))
    });
    eprintln!("(refused, sent away, done) of Postgres, Redis, pgbench: {counts:?}");
    assert_eq!(counts.map(|(refused, ..)| refused), [0; 3]);
    assert!(counts[..2].iter().all(|(_, away, _)| *away >= 5), "there are long-lived clients");
    assert_eq!(counts[2].1, 0);
    let rows = stage.server.direct().one("select count(*) from seen");
    assert_eq!(rows, counts[0].2.to_string(), "what was not acknowledged was not run");
    let n = stage.redis.direct().command(&["GET", "n"]).text();
    assert_eq!(n, counts[1].2.to_string(), "what was not acknowledged was not run");
}

/// Who was accepted before is in its greeting still: it comes in, and does what it has come for.
#[test]
fn a_greeting_that_has_begun_leads_in() {
    let stage = Stage::new("handover_ms = 60000\n");
    let first = stage.first();
    let mut slow = Connection::knock(first.postgres_port()).unwrap();
    let mut silent = first.redis_client();
    let greeting = [("state", "greeting")];
    eventually("it is accepted", || {
        (first.postgres_metric("tidegate_clients", &greeting) == 1.0).then_some(())
    });
    let second = stage.successor(&first);
    slow.send(&startup(VERSION_3_0, &Login::app()));
    slow.greet(&Login::app()).expect("it comes in");
    assert_eq!(slow.one("select 1"), "1");
    assert_eq!(silent.command(&["PING"]).text(), "PONG");
    assert_eq!(second.postgres_metric("tidegate_clients", &[]), 0.0, "it is the old one's");
    // Told to, it does not wait any longer.
    first.signal(Signal::TERM);
    ends(first);
}

/// A client's query goes on in the first process, and its cancel comes to the third.
#[test]
fn a_cancel_finds_its_query_in_a_process_before() {
    let stage = Stage::new("handover_ms = 20000\ndrain_ms = 20000\n");
    let first = stage.first();
    let mut client = first.client();
    let mut other = first.client();
    for one in [&mut client, &mut other] {
        one.send(&query("select pg_sleep(60)"));
    }
    let running = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'";
    let mut watch = stage.server.superuser();
    eventually("they run", || (watch.one(running) == "2").then_some(()));
    let second = stage.successor(&first);
    client.cancel();
    assert_eq!(client.reply().codes(), ["57014"]);
    let third = stage.successor(&second);
    // Its own clients are cancelled as ever.
    let mut own = third.client();
    own.send(&query("select pg_sleep(60)"));
    eventually("it runs, too", || (watch.one(running) == "2").then_some(()));
    other.cancel();
    assert_eq!(other.reply().codes(), ["57014"]);
    assert_eq!(watch.one(running), "1", "and nothing else is");
    own.cancel();
    assert_eq!(own.reply().codes(), ["57014"]);
    // Nobody is hurried: the old ones are told to.
    for gate in [&first, &second] {
        gate.signal(Signal::TERM);
    }
    ends(first);
    ends(second);
    // And once they are gone a stray request is nobody's.
    other.cancel();
    let mut own = third.client();
    assert_eq!(own.one("select 1"), "1");
}

#[test]
fn what_is_open_is_finished_and_idle_server_connections_are_not_kept() {
    let stage = Stage::new("handover_ms = 300\ndrain_ms = 9000\n");
    let first = stage.first();
    let mut open = first.client();
    open.query("begin").expect_no_error();
    let mut idle = [first.client(), first.client()];
    for client in &mut idle {
        client.query("begin").expect_no_error();
    }
    for client in &mut idle {
        client.query("commit").expect_no_error();
    }
    let user = Login::app().user;
    assert_eq!(stage.server.sessions_of(&user), 3);
    let second = stage.successor(&first);
    // The one that is in a transaction.
    eventually("idle ones are closed", || (stage.server.sessions_of(&user) == 1).then_some(()));
    let last_words = idle[0].last_words();
    assert_eq!(last_words.last().map(|frame| frame.refusal().code), Some("57P01".to_owned()));
    assert_eq!(open.one("select 7"), "7");
    open.query("commit").expect_no_error();
    ends(first);
    assert_eq!(second.client().one("select 8"), "8");
}

/// Both together want more than the server gives: the new one's clients wait until the old one has gone, and no longer.
#[test]
fn where_the_server_is_full_clients_wait_for_the_old_one_s_end() {
    let stage = Stage::new("handover_ms = 3000\ndrain_ms = 9000\n");
    let user = Login::app().user;
    let limit = format!("alter role {user} connection limit 3");
    stage.server.superuser().query(&limit).expect_no_error();
    let first = stage.first();
    let mut open: [Connection; 3] = std::array::from_fn(|_| first.client());
    for client in &mut open {
        client.query("begin").expect_no_error();
    }
    let second = stage.successor(&first);
    let port = second.postgres_port();
    // Three at once, each on a connection of its own.
    let all = Arc::new(Barrier::new(3));
    let three = (0..3).map(|_| {
        let all = Arc::clone(&all);
        thread::spawn(move || {
            let mut client = Connection::open(port, &Login::app());
            client.query("begin").expect_no_error();
            let served = Instant::now();
            all.wait();
            client.query("commit").expect_no_error();
            served
        })
    });
    let three: Vec<_> = three.collect();
    // So often that the next attempt by itself is seconds away.
    let refused = [("code", "53300")];
    eventually("the server refuses again and again", || {
        let times = second.postgres_metric("tidegate_connect_errors_total", &refused);
        (times >= 6.0).then_some(())
    });
    for client in &mut open {
        client.query("commit").expect_no_error();
    }
    drop(open);
    ends(first);
    let gone = Instant::now();
    // By itself it tries each further connection some 5 s after the one before.
    for one in three {
        let served = one.join().unwrap();
        assert!(served < gone + Duration::from_secs(4), "{:?}", served - gone);
    }
}

#[test]
fn files_stay_when_the_old_one_goes_and_go_with_the_new_one() {
    let stage = Stage::new("handover_ms = 100\n");
    let first = stage.first();
    let postgres = stage.path(&format!(".s.PGSQL.{}", first.postgres_port()));
    let paths = [postgres, stage.path("redis.sock"), stage.control()];
    let second = stage.successor(&first);
    ends(first);
    for path in &paths {
        UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    second.signal(Signal::TERM);
    ends(second);
    assert!(paths.iter().all(|path| !path.exists()));
}

/// Where the new one's settings are others, it listens where they say and nobody listens any more where the old one did.
#[test]
fn other_settings_lead_to_other_places() {
    let stage = Stage::new("handover_ms = 100\n");
    let first = stage.first();
    let (port, path) = (ports::free(), stage.path("other.sock"));
    let second = Setup::new().redis(&stage.redis).in_place_of(&first);
    let second = second.env("TIDEGATE_CONTROL_SOCKET", stage.control().to_str().unwrap());
    let second = second.env("TIDEGATE_REDIS_SOCKET", path.to_str().unwrap());
    let second = second.config(&stage.path("tidegate.toml"));
    let second = second.arguments(&["serve", "--redis-listen", &format!("127.0.0.1:{port}")]);
    let second = has_taken_over(second.launch());
    let (old_postgres, old_redis) = (first.postgres_port(), first.redis_port());
    ends(first);
    assert_eq!(resp::Connection::open(port).command(&["PING"]).text(), "PONG");
    for gone in [old_postgres, old_redis] {
        assert!(TcpStream::connect(("127.0.0.1", gone)).is_err(), "nobody listens on {gone}");
    }
    assert!(path.exists() && !stage.path("redis.sock").exists());
    assert!(!stage.path(&format!(".s.PGSQL.{old_postgres}")).exists());
    second.signal(Signal::TERM);
    ends(second);
}

#[test]
fn a_successor_that_cannot_serve_changes_nothing() {
    let stage = Stage::new("");
    let mut first = stage.first();
    let mut client = first.client();
    // Settings that can't be taken; a port that somebody else has; a unix socket's place that is taken.
    let file = stage.path("plain");
    fs::write(&file, "").unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let held = held.local_addr().map(|address| (held, address.to_string())).unwrap();
    for (name, value, code) in [
        ("TIDEGATE_WORKERS", "many", 2),
        ("TIDEGATE_REDIS_SOCKET", file.to_str().unwrap(), 1),
        ("TIDEGATE_TLS_CERT", "/nonexistent", 2),
    ] {
        let mut next = stage.setup().in_place_of(&first).env(name, value).launch();
        let status = next.wait(DEADLINE).and_then(|status| status.code());
        assert_eq!(status, Some(code), "{name}: {}", next.output());
        goes_on(&stage, &mut first, &mut client);
    }
    let next = stage.setup().in_place_of(&first);
    let next = next.arguments(&["serve", "--redis-listen", &held.1]);
    let mut next = next.launch();
    assert_eq!(next.wait(DEADLINE).and_then(|status| status.code()), Some(1), "{}", next.output());
    goes_on(&stage, &mut first, &mut client);
    // One that dies when it has the sockets, and others that talk nonsense.
    for words in ["tidegate takeover 2\n", "tidegate takeover 2\nno\n", "hello\n", ""] {
        let mut stream = UnixStream::connect(stage.control()).unwrap();
        stream.write_all(words.as_bytes()).unwrap();
        if words.starts_with("tidegate") {
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).unwrap();
        }
        drop(stream);
        goes_on(&stage, &mut first, &mut client);
    }
    // And then one that can.
    let second = stage.successor(&first);
    assert_eq!(second.client().one("select 1"), "1");
}

fn goes_on(stage: &Stage, gate: &mut Tidegate, client: &mut Connection) {
    gate.assert_alive();
    assert_eq!(client.one("select 1"), "1");
    assert_eq!(gate.client().one("select 2"), "2");
    let mut stream = UnixStream::connect(stage.path("redis.sock")).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

#[test]
fn who_is_alone_starts_as_ever() {
    let stage = Stage::new("");
    let mut first = stage.first();
    first.signal(Signal::KILL);
    first.wait(DEADLINE).expect("it is killed");
    assert!(stage.control().exists());
    let second = stage.first();
    assert!(!second.output().contains("taking over"));
    assert_eq!(second.client().one("select 1"), "1");
}

#[test]
fn the_service_manager_hears_who_serves_now() {
    let stage = Stage::new("handover_ms = 100\n");
    let path = stage.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let notify = path.to_str().unwrap();
    let first = stage.setup().env("NOTIFY_SOCKET", notify).start();
    let heard = || {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    eventually("the first is ready", || (heard() == "READY=1").then_some(()));
    let second = stage.setup().env("NOTIFY_SOCKET", notify).in_place_of(&first).launch();
    let second = has_taken_over(second);
    let main = format!("READY=1\nMAINPID={}", second.pid());
    eventually("the second is the main process", || (heard() == main).then_some(()));
    ends(first);
    // The first one's end is not the service's.
    manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 1024];
    while let Ok(length) = manager.recv(&mut buffer) {
        assert!(!buffer[..length].starts_with(b"STOPPING"));
    }
    assert!(Path::new(&stage.control()).exists());
}

/// Whoever has the sockets has all when the old one is told to stop, though it is not ready yet.
#[test]
fn who_gets_ready_has_all_when_the_old_one_is_told_to_stop() {
    let stage = Stage::new("handover_ms = 60000\n");
    let first = stage.first();
    let port = first.postgres_port();
    let paths = [stage.path("redis.sock"), stage.control()];
    let mut stream = UnixStream::connect(stage.control()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"tidegate takeover 2\n").unwrap();
    let mut heard = [0; 4096];
    let length = stream.read(&mut heard).unwrap();
    let offer = String::from_utf8_lossy(&heard[..length]);
    assert!(
        offer.starts_with(&format!("from {}\ntcp tidegate postgres\n", first.pid())),
        "{offer}"
    );
    first.signal(Signal::TERM);
    let length = stream.read(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard[..length]), "yours\n");
    let output = ends(first);
    assert!(output.contains("told to stop") && output.contains("handed over"), "{output}");
    assert!(paths.iter().all(|path| path.exists()), "the files were left to the new one");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "we have taken none of its sockets");
    // What is left behind keeps nobody from starting.
    let second = stage.first();
    assert_eq!(second.client().one("select 1"), "1");
}

/// However the old one's end and the new one's start cross: the new one serves.
#[test]
fn a_stop_and_a_start_that_cross_leave_somebody_who_serves() {
    let stage = Stage::new("");
    let mut gate = stage.first();
    let redis = stage.path("redis.sock");
    for (number, signal) in
        [Signal::TERM, Signal::TERM, Signal::KILL].into_iter().cycle().take(36).enumerate()
    {
        let mut next = stage.setup().in_place_of(&gate).launch();
        // A new one asks and is ready within these.
        thread::sleep(Duration::from_millis(5 * u64::try_from(number).unwrap()));
        gate.signal(signal);
        gate.wait(DEADLINE).expect("it ends");
        let port = next.postgres_port();
        eventually("the new one serves", || {
            let ended = next.wait(Duration::ZERO);
            assert!(ended.is_none(), "{number}, {signal:?}: {ended:?} {}", next.output());
            Connection::try_open(port, &Login::app()).ok()
        });
        eventually("over a unix socket, too", || UnixStream::connect(&redis).ok());
        eventually("and can be asked", || UnixStream::connect(stage.control()).ok());
        gate = next;
    }
}

/// A client's query goes on in the first process, the second one is gone, and its cancel comes to the third.
#[test]
fn a_cancel_finds_its_query_past_a_process_that_is_gone() {
    let stage = Stage::new("handover_ms = 20000\ndrain_ms = 20000\n");
    let first = stage.first();
    let first_pid = first.pid().to_string();
    let mut clients = [first.client(), first.client()];
    for client in &mut clients {
        client.send(&query("select pg_sleep(60)"));
    }
    let running = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'";
    let mut watch = stage.server.superuser();
    eventually("they run", || (watch.one(running) == "2").then_some(()));
    let second = stage.successor(&first);
    let third = stage.successor(&second);
    let said = third.output();
    assert!(
        said.contains(&format!("pid={} ", second.pid())) && !said.contains(&first_pid),
        "{said}"
    );
    second.signal(Signal::TERM);
    ends(second);
    let [one, other] = &mut clients;
    one.cancel();
    assert_eq!(one.reply().codes(), ["57014"]);
    // And so on.
    let fourth = stage.successor(&third);
    third.signal(Signal::TERM);
    ends(third);
    assert_eq!(watch.one(running), "1");
    other.cancel();
    assert_eq!(other.reply().codes(), ["57014"]);
    first.signal(Signal::TERM);
    ends(first);
    assert_eq!(fourth.client().one("select 1"), "1");
}
