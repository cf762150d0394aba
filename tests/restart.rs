//! A dyno is replaced: the new one starts while the old one finishes, on a plan that has no connections to spare.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::metrics::{Page, get};
use support::pg::{Connection, Frame, Login};
use support::postgres::Postgres;
use support::process::Process;
use support::redis::Redis;
use support::resp::Value;
use support::tidegate::{Setup, Tidegate, clean_command};
use support::{eventually, ports, within};

/// Connections that the plan allows, for whoever shares it.
const PLAN: usize = 20;
/// What each dyno may have of them: two of them take all.
const POOL: usize = 10;
/// How soon nothing may lie idle at the server.
const SOON: Duration = Duration::from_secs(1);

/// How often the dyno is replaced, and how late the old one's worker comes for new connections: more by hand.
fn restarts() -> usize {
    number("TIDEGATE_TEST_RESTARTS", 3)
}

const LATE: &str = "TIDEGATE_TEST_LATE_MS";

fn late() -> Duration {
    Duration::from_millis(number(LATE, 1_500))
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| text.parse().ok().expect("a number"))
}

/// The command of the dyno: web threads that end with the first SIGTERM, and a worker that goes on, and late opens new
/// connections. Each transaction leaves a row; how many there were is told at the end.
#[test]
#[ignore = "the command of others"]
fn the_application() {
    let url = std::env::var("DATABASE_URL").unwrap();
    let place = url.split_once('@').unwrap().1.split_once('/').unwrap().0;
    let port = place.split_once(':').unwrap().1.parse().unwrap();
    let generation = std::env::var("GENERATION").unwrap();
    let told = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(Signal::TERM.as_raw(), Arc::clone(&told)).unwrap();
    let open = || Connection::open(port, &Login::app().with("application_name", &generation));
    let done: usize = std::thread::scope(|scope| {
        let web: Vec<_> = (0..POOL + POOL / 2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut done) = (open(), 0);
                    while !told.load(Ordering::Relaxed) {
                        transact(&mut client, &generation);
                        done += 1;
                        if done % 25 == 0 {
                            client = open();
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    done
                })
            })
            .collect();
        let worker = scope.spawn(|| {
            let (mut client, mut done) = (open(), 0);
            let mut end = None;
            while end.is_none_or(|end| Instant::now() < end) {
                transact(&mut client, &generation);
                done += 1;
                std::thread::sleep(Duration::from_millis(20));
                if end.is_none() && told.load(Ordering::Relaxed) {
                    end = Some(Instant::now() + late());
                }
            }
            for _ in 0..5 {
                transact(&mut open(), &generation);
                done += 1;
            }
            done
        });
        let web: usize = web.into_iter().map(|thread| thread.join().unwrap()).sum();
        web + worker.join().unwrap()
    });
    println!("transactions: {done}.");
}

fn transact(client: &mut Connection, generation: &str) {
    client.query("begin").expect_no_error();
    let sql = format!("insert into ledger values ('{generation}')");
    assert_eq!(client.query(&sql).expect_no_error().tags(), ["INSERT 0 1"]);
    assert_eq!(client.query("commit").expect_no_error().tags(), ["COMMIT"]);
}

struct Dyno {
    process: Process,
    generation: String,
    admin: u16,
}

impl Dyno {
    fn start(server: &Postgres, number: usize) -> Self {
        let own = std::env::current_exe().unwrap();
        let generation = format!("generation-{number}");
        let mut command = clean_command();
        command.args(["run", "--postgres-pool-size", &POOL.to_string(), "--"]);
        command.arg(own).args(["--ignored", "--exact", "the_application", "--nocapture"]);
        let admin = ports::free();
        command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        // Nothing of tidegate's own reaches the command otherwise.
        command.env(LATE, late().as_millis().to_string());
        // It is not about logins, which cost more than all else.
        command.env("TIDEGATE_POSTGRES_AUTH", "trust");
        command.env("DATABASE_URL", server.url()).env("GENERATION", &generation);
        Self { process: Process::start(command, Signal::KILL), generation, admin }
    }

    /// Its idle server connections, by its own account: the server has some idle that wait for a client's next word. None when
    /// it has ended.
    fn idle(&self) -> f64 {
        let page = get(self.admin, "/metrics").map(|answer| Page(answer.body));
        page.map_or(0.0, |page| page.sum("tidegate_server_connections", &[("state", "idle")]))
    }

    /// Transactions it has done, by its own account; it was told to end then.
    fn finish(mut self, told: Instant) -> usize {
        let status = self.process.wait(late() + Duration::from_secs(10));
        let (said, took) = (self.process.output(), told.elapsed());
        assert!(took >= late(), "its worker has not come late: it ended after {took:?}");
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{said}");
        assert!(!said.contains("unfinished"), "{said}");
        let told = said.split_once("transactions: ").expect("its account").1;
        told.split_once('.').unwrap().0.parse().unwrap()
    }
}

/// Connections of that name that have been idle for longer than between two statements, by the server's account.
fn idle(watcher: &mut Connection, generation: &str) -> usize {
    let sql = format!(
        "select count(*) from pg_stat_activity where application_name = '{generation}' \
         and state = 'idle' and state_change < now() - interval '200 ms'"
    );
    watcher.one(&sql).parse().unwrap()
}

#[test]
fn no_transaction_fails_while_dynos_are_replaced() {
    let server = Postgres::start();
    let mut watcher = server.superuser();
    watcher.query(&format!("alter role app connection limit {PLAN}")).expect_no_error();
    server.direct().query("create table ledger (generation text)").expect_no_error();
    let rows = |watcher: &mut Connection, generation: &str| -> usize {
        let sql = format!("select count(*) from ledger where generation = '{generation}'");
        watcher.one(&sql).parse().unwrap()
    };
    let mut old = Dyno::start(&server, 0);
    eventually("it is at work", || (rows(&mut watcher, &old.generation) > 50).then_some(()));
    for number in 1..=restarts() {
        let new = Dyno::start(&server, number);
        old.process.signal(Signal::TERM);
        let told = Instant::now();
        within(SOON, "nothing of the old one's lies idle", || {
            (old.idle() == 0.0 && idle(&mut watcher, &old.generation) == 0).then_some(())
        });
        eventually("the new one is at work", || {
            assert_eq!(old.idle(), 0.0, "they stay closed");
            (rows(&mut watcher, &new.generation) > 50).then_some(())
        });
        let generation = old.generation.clone();
        let done = old.finish(told);
        assert_eq!(rows(&mut watcher, &generation), done, "each is there, once");
        old = new;
    }
    old.process.signal(Signal::TERM);
    old.finish(Instant::now());
}

/// `run` with a command that takes no notice of SIGTERM and ends with 3 when the file is there.
fn held_open(setup: Setup, until: &Path) -> Tidegate {
    let script = format!(
        "trap '' TERM; echo ready; while [ ! -e {} ]; do sleep 0.02; done; exit 3",
        until.display()
    );
    let gate = setup.pool_size(4).arguments(&["run", "--", "sh", "-c", &script]).start();
    eventually("the command is ready", || gate.output().contains("ready").then_some(()));
    gate
}

#[test]
fn all_are_served_until_the_command_is_gone_and_then_told() {
    let server = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    let until = directory.path().join("until");
    let mut gate = held_open(Setup::new().postgres(&server), &until);
    let mut watcher = server.superuser();
    let mut open = || -> usize {
        let sql = "select count(*) from pg_stat_activity where usename = 'app'";
        watcher.one(sql).parse().unwrap()
    };
    let [mut first, mut second, mut third] = std::array::from_fn(|_| gate.client());
    for client in [&mut first, &mut second, &mut third] {
        client.query("begin").expect_no_error();
    }
    for client in [&mut first, &mut second, &mut third] {
        client.query("commit").expect_no_error();
    }
    assert_eq!(open(), 3);
    for _ in 0..3 {
        gate.signal(Signal::TERM);
    }
    within(SOON, "nothing lies idle", || (open() == 0).then_some(()));
    let mut late = gate.client();
    late.query("begin").expect_no_error();
    assert_eq!(first.query("select 1").expect_no_error().tags(), ["SELECT 1"]);
    within(SOON, "what was given back is closed", || (open() == 1).then_some(()));
    gate.assert_alive();

    std::fs::write(&until, "").unwrap();
    assert_eq!(code_of(&first.last_words()), "57P01");
    let refused = gate.try_client(&Login::app()).err().expect("nobody comes in");
    assert_eq!(refused.code, "57P01");
    assert_eq!(late.query("select 2").expect_no_error().status(), 'T');
    late.query("commit").expect_no_error();
    let status = gate.wait(Duration::from_secs(5)).expect("it ends with its last transaction");
    assert_eq!(status.code(), Some(3));
    assert!(!gate.output().contains("unfinished"), "{}", gate.output());
}

/// A query that runs while the drain lasts can be cancelled.
#[test]
fn a_cancel_request_is_heard_while_clients_are_refused() {
    let server = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    let until = directory.path().join("until");
    let mut gate = held_open(Setup::new().postgres(&server), &until);
    let mut busy = gate.client();
    busy.send(&support::pg::query("select pg_sleep(60)"));
    let mut watcher = server.superuser();
    eventually("it runs", || {
        let sql = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
        (watcher.one(sql) == "1").then_some(())
    });
    std::fs::write(&until, "").unwrap();
    eventually("it drains", || gate.try_client(&Login::app()).err());
    busy.cancel();
    assert_eq!(busy.reply().codes(), ["57014"]);
    assert!(gate.wait(Duration::from_secs(5)).is_some_and(|status| status.code() == Some(3)));
}

#[test]
fn redis_connections_make_room_and_come_back_for_who_needs_one() {
    let server = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let until = directory.path().join("until");
    let mut gate = held_open(Setup::new().redis(&server), &until);
    let mut direct = server.direct();
    let mut open = || -> usize {
        let list = direct.command(&["CLIENT", "LIST"]).text();
        list.lines().filter(|line| !line.contains("cmd=client")).count()
    };
    let [mut plain, mut watching, mut subscribed] = std::array::from_fn(|_| gate.redis_client());
    assert_eq!(plain.command(&["SET", "k", "v"]), Value::simple("OK"));
    watching.command(&["WATCH", "k"]);
    watching.command(&["UNWATCH"]);
    subscribed.command(&["SUBSCRIBE", "news"]);
    subscribed.command(&["UNSUBSCRIBE", "news"]);
    assert!(open() >= 2);
    gate.signal(Signal::TERM);
    within(SOON, "nothing lies idle", || (open() == 0).then_some(()));
    let mut late = gate.redis_client();
    assert_eq!(late.command(&["GET", "k"]).text(), "v");
    assert_eq!(plain.command(&["INCR", "n"]), Value::Integer(1));
    within(SOON, "nothing lies idle again", || (open() == 0).then_some(()));
    assert_eq!(late.command(&["MULTI"]), Value::simple("OK"));
    assert_eq!(late.command(&["INCR", "n"]), Value::simple("QUEUED"));

    std::fs::write(&until, "").unwrap();
    assert!(plain.closed());
    let refused = gate.redis_client().command(&["PING"]);
    assert!(refused.error().starts_with("ERR tidegate: shutting down"), "{refused:?}");
    assert_eq!(late.command(&["EXEC"]), Value::Array(vec![Value::Integer(2)]));
    let status = gate.wait(Duration::from_secs(5)).expect("it ends with its last transaction");
    assert_eq!(status.code(), Some(3));
}

/// The grace is over, the command is not: transactions end, and it is told why no more begin, until it is gone.
#[test]
fn who_outstays_the_grace_is_told() {
    let server = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    let until = directory.path().join("until");
    let file = directory.path().join("tidegate.toml");
    std::fs::write(&file, "child_grace_ms = 300\ndrain_ms = 400\n").unwrap();
    let mut gate = held_open(Setup::new().postgres(&server).config(&file), &until);
    let mut idle = gate.client();
    idle.query("select 1").expect_no_error();
    gate.signal(Signal::TERM);
    assert_eq!(code_of(&idle.last_words()), "57P01");
    eventually("the drain is over", || {
        gate.output().contains("has not ended in time").then_some(())
    });
    std::thread::sleep(Duration::from_millis(600));
    let refused = gate.try_client(&Login::app()).err().expect("nobody comes in");
    assert_eq!(refused.code, "57P01");
    std::fs::write(&until, "").unwrap();
    assert!(gate.wait(Duration::from_secs(5)).is_some_and(|status| status.code() == Some(3)));
}

fn code_of(frames: &[Frame]) -> String {
    let error = frames.iter().find(|frame| frame.kind() == 'E');
    error.map(|error| error.refusal().code).unwrap_or_default()
}
