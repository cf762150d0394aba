//! Clients that die by the half, all the time: nothing of theirs stays on the server, and the server hardly notices.
//!
//! A hundred clients over five server connections, each killed in the middle of what it does as soon as it does it, every
//! second one of them; the others check what they get. `TIDEGATE_TEST_CHURN_SECONDS` says for how long, if not for 4.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::eventually;
use support::pg::{Connection, bind, copy_data, execute, flush, parse, query, sync};
use support::postgres::Postgres;
use support::tidegate::{Setup, Tidegate};

const CLIENTS: u64 = 100;
const BACKENDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

fn duration() -> Duration {
    let seconds = std::env::var("TIDEGATE_TEST_CHURN_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(4))
}

/// What a client is doing when it is killed.
const DEATHS: [&str; 12] = [
    "in a query",
    "in a query of the extended protocol",
    "in a transaction",
    "in a failed transaction",
    "in a pipeline without its end",
    "in a pipeline of transactions",
    "in a COPY to the server",
    "inside a frame of a COPY",
    "in a large result",
    "holding a lock",
    "holding a lock, in a query",
    "with settings and a temporary table",
];

/// The bytes of a client that is going to die, and the bytes of its answer that it waits for.
fn last_act(death: &str, lock: u64) -> (Vec<u8>, usize) {
    let insert =
        [parse("i", "insert into t values ($1::int)"), bind("", "i", &["1"]), execute("", 0)];
    let insert = insert.concat();
    match death {
        "in a query" => (query("select pg_sleep(20)"), 0),
        "in a query of the extended protocol" => {
            let parts = [parse("s", "select pg_sleep(20)"), bind("", "s", &[]), execute("", 0)];
            ([parts.concat(), sync()].concat(), 0)
        }
        "in a transaction" => (query("begin; insert into t values (1)"), 6),
        "in a failed transaction" => (query("begin; insert into t values (1); select 1/0"), 6),
        "in a pipeline without its end" => ([insert, flush()].concat(), 5),
        "in a pipeline of transactions" => {
            let begin = [query("begin"), insert, sync(), query("select pg_sleep(0.02)")];
            ([begin.concat(), query("rollback")].concat(), 6)
        }
        "in a COPY to the server" => {
            ([query("copy t from stdin"), copy_data(b"1\n2\n")].concat(), 5)
        }
        "inside a frame of a COPY" => (query("copy t from stdin"), 5),
        "in a large result" => {
            (query("select repeat('x', 1000) from generate_series(1, 20000)"), 50_000)
        }
        "holding a lock" => (query(&format!("select pg_advisory_lock({lock})")), 6),
        "holding a lock, in a query" => {
            (query(&format!("select pg_advisory_lock({lock}); select pg_sleep(20)")), 0)
        }
        "with settings and a temporary table" => {
            (query("set work_mem = '9MB'; create temp table mine (n int)"), 6)
        }
        other => panic!("{other}"),
    }
}

struct Field<'a> {
    gate: &'a Tidegate,
    over: AtomicBool,
    deaths: AtomicU64,
    served: AtomicU64,
    backends: Mutex<BTreeSet<String>>,
}

impl Field<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One after the other, each killed in its act.
    fn dying(&self, number: u64) {
        let mut round = number;
        while !self.is_over() {
            let Ok(mut victim) = self.gate.try_client(&support::pg::Login::app()) else { continue };
            let death = DEATHS[usize::try_from(round).unwrap() % DEATHS.len()];
            let (act, awaited) = last_act(death, number);
            victim.send(&act);
            if awaited > 0 {
                let mut answer = vec![0; awaited];
                // Whoever would pin one connection too many is refused, and dies all the same.
                let _read = std::io::Read::read_exact(&mut victim.stream(), &mut answer);
                if death == "inside a frame of a COPY" && answer[0] == b'G' {
                    victim.send(&copy_data(&[b'1'; 100_000])[..70_000]);
                }
            } else {
                std::thread::sleep(Duration::from_millis(round % 30));
            }
            victim.hang_up();
            self.deaths.fetch_add(1, Ordering::Relaxed);
            round += 1;
        }
    }

    /// Lives, and sees nothing of the others.
    fn living(&self) {
        let mut client = self.gate.client();
        client.exchange(&[parse("s", "select pg_backend_pid(), 'mine'"), sync()]).expect_no_error();
        while !self.is_over() {
            let reply = client.exchange(&[bind("", "s", &[]), execute("", 0), sync()]);
            assert_eq!(reply.shape(), "2DCZ");
            let row = reply.rows().concat();
            assert_eq!(row[1].as_deref(), Some("mine"));
            self.backends.lock().unwrap().extend(row[0].clone());
            let began = client.query("begin");
            assert_eq!((began.shape(), began.status()), ("CZ".to_owned(), 'T'));
            assert_eq!(client.one("show work_mem"), "4MB");
            let foreign = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
            assert_eq!(client.one(foreign), "0");
            assert_eq!(client.query("rollback").status(), 'I');
            self.served.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn half_of_the_clients_die_and_the_server_hardly_notices() {
    let server = Postgres::start();
    server.direct().query("create table t (n int)").expect_no_error();
    // What logins cost is not the matter here.
    let setup = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_AUTH", "trust");
    let mut gate = setup.pool_size(BACKENDS).wait_ms(30_000).start();
    let field = Field {
        gate: &gate,
        over: AtomicBool::new(false),
        deaths: AtomicU64::new(0),
        served: AtomicU64::new(0),
        backends: Mutex::default(),
    };
    let mut most = 0;
    std::thread::scope(|scope| {
        for number in 0..CLIENTS / 2 {
            let field = &field;
            scope.spawn(move || field.dying(number));
            scope.spawn(|| field.living());
        }
        let began = Instant::now();
        // On a busy machine it takes longer to mean anything.
        let enough = || {
            field.deaths.load(Ordering::Relaxed) >= 10 * CLIENTS
                && field.served.load(Ordering::Relaxed) >= CLIENTS
        };
        while began.elapsed() < duration() || (!enough() && began.elapsed() < PATIENCE) {
            most = most.max(server.sessions_of("app"));
            std::thread::sleep(Duration::from_millis(20));
        }
        field.over.store(true, Ordering::Relaxed);
    });
    let deaths = field.deaths.into_inner();
    let served = field.served.into_inner();
    let backends = field.backends.into_inner().unwrap();
    assert_nothing_left(&server, &gate);
    let closed = gate.page().sum("tidegate_server_closed_total", &[("protocol", "postgres")]).abs();
    println!(
        "{deaths} deaths, {served} rounds of the living, {closed} connections closed, {most} at most"
    );
    println!("{}", reasons(&gate));
    assert!(deaths >= CLIENTS, "{deaths} deaths prove nothing");
    assert!(most <= BACKENDS, "{most} server connections");
    let churn = closed / f64::from(u32::try_from(deaths).unwrap());
    assert!(churn < 0.01, "{closed} connections closed for {deaths} deaths\n{}", reasons(&gate));
    let replaced = backends.len().saturating_sub(BACKENDS);
    assert!(replaced as u64 * 100 <= deaths, "{} backends served", backends.len());
    gate.assert_alive();
}

fn reasons(gate: &Tidegate) -> String {
    let page = gate.page().0;
    let closed = page.lines().filter(|line| line.starts_with("tidegate_server_closed_total"));
    closed.collect::<Vec<_>>().join("\n")
}

/// No transaction, lock, temporary table or setting of the dead is on the server, nor any row of theirs.
fn assert_nothing_left(server: &Postgres, gate: &Tidegate) {
    let mut boss = server.superuser();
    for (what, sql) in [
        (
            "transactions",
            "select count(*) from pg_stat_activity where usename = 'app' and state <> 'idle'",
        ),
        ("locks", "select count(*) from pg_locks where locktype = 'advisory'"),
        ("temporary tables", "select count(*) from pg_class where relname = 'mine'"),
    ] {
        eventually(what, || (boss.one(sql) == "0").then_some(()));
    }
    eventually("all clients are counted out", || {
        (gate.postgres_metric("tidegate_clients", &[]) == 0.0).then_some(())
    });
    assert_eq!(boss.query("begin").status(), 'T');
    let mut owner = server.direct();
    assert_eq!(owner.one("select count(*) from t"), "0", "rows that nobody committed");
    let mut all: Vec<Connection> = (0..BACKENDS).map(|_| gate.client()).collect();
    for client in &mut all {
        client.query("begin").expect_no_error();
        assert_eq!(client.one("show work_mem"), "4MB");
    }
    let served: BTreeSet<_> = all.iter_mut().map(Connection::backend).collect();
    assert_eq!(served.len(), BACKENDS, "all can be had at once");
}
