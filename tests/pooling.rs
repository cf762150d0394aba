//! Many clients, few server connections: the pool shares, bounds, queues in order and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::pg::{Login, Refusal};
use support::postgres::{Postgres, USER};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, within};

/// Looks at the server until told to stop; gives the most sessions it ever saw.
fn watch(server: &Postgres, stop: &AtomicBool) -> usize {
    let mut most = 0;
    let mut observer = server.superuser();
    let sql = format!("select count(*) from pg_stat_activity where usename = '{USER}'");
    while !stop.load(Ordering::Relaxed) {
        most = most.max(observer.one(&sql).parse().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

/// Runs `work` while the server is watched; gives the most sessions that it ever had.
fn watched(server: &Postgres, work: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(server, &stop));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let most = watcher.join().unwrap();
        match outcome {
            Ok(()) => most,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[test]
fn many_clients_share_few_backends() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let backends = std::sync::Mutex::new(BTreeSet::new());
    let most = watched(&server, || {
        std::thread::scope(|scope| {
            for _ in 0..30 {
                scope.spawn(|| {
                    let mut client = gate.client();
                    for _ in 0..20 {
                        client.query("begin").expect_no_error();
                        let first = client.backend();
                        assert_eq!(client.backend(), first, "a transaction keeps its backend");
                        client.query("commit").expect_no_error();
                        backends.lock().unwrap().insert(first);
                    }
                });
            }
        });
    });
    let backends = backends.into_inner().unwrap().len();
    assert!((2..=3).contains(&backends), "{backends} backends served");
    assert!((2..=3).contains(&most), "Postgres saw {most} sessions");
    let page = gate.page();
    let pool = [("protocol", "postgres"), ("pool", "DATABASE_URL")];
    assert!(page.sum("tidegate_transactions_total", &pool) >= 600.0, "{}", page.0);
}

#[test]
fn pgbench_fails_nothing_and_stays_within_the_pool() {
    let server = Postgres::start();
    let url = server.url();
    let filled = pgbench(&["-i", "-q", "-s", "1", &url]);
    assert!(filled.0, "{}", filled.1);
    let gate = Tidegate::before(&server, 5);
    let pooled = url.replace(&server.port().to_string(), &gate.postgres_port().to_string());
    let most = watched(&server, || {
        for mode in ["simple", "extended", "prepared"] {
            let (passed, said) =
                pgbench(&["-c", "60", "-j", "2", "-t", "50", "-S", "-n", "-M", mode, &pooled]);
            assert!(passed, "{mode}: {said}\n{}", gate.output());
            assert!(said.contains("actually processed: 3000/3000"), "{mode}: {said}");
        }
        // The transaction that writes: BEGIN, five statements, END. In prepared mode pgbench waits
        // for each Parse with its whole thread, transactions of other clients open: no more clients
        // than connections then.
        for (mode, clients) in [("simple", "20"), ("extended", "20"), ("prepared", "5")] {
            let (passed, said) =
                pgbench(&["-c", clients, "-j", "2", "-t", "20", "-n", "-M", mode, &pooled]);
            assert!(passed, "{mode}: {said}");
            assert!(said.contains("number of failed transactions: 0"), "{mode}: {said}");
        }
    });
    assert!(most <= 5, "Postgres saw {most} sessions");
}

fn pgbench(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(support::postgres::tool("pgbench")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Sessions of one pool on two threads.
#[test]
fn two_workers_serve_as_one_does() {
    let server = Postgres::start();
    let url = server.url();
    let filled = pgbench(&["-i", "-q", "-s", "1", &url]);
    assert!(filled.0, "{}", filled.1);
    let setup = Setup::new().postgres(&server).pool_size(4).env("TIDEGATE_WORKERS", "2");
    let mut gate = setup.start();
    let pooled = url.replace(&server.port().to_string(), &gate.postgres_port().to_string());
    let most = watched(&server, || {
        for (mode, clients) in [("simple", "20"), ("extended", "20"), ("prepared", "4")] {
            let (passed, said) =
                pgbench(&["-c", clients, "-j", "2", "-t", "20", "-n", "-M", mode, &pooled]);
            assert!(passed, "{mode}: {said}\n{}", gate.output());
            assert!(said.contains("number of failed transactions: 0"), "{mode}: {said}");
        }
    });
    assert!(most <= 4, "Postgres saw {most} sessions");
    gate.assert_alive();
}

#[test]
fn a_wait_that_is_over_says_which_pool_and_what_to_do() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(1).wait_ms(400).start();
    let mut holder = gate.client();
    let mut waiter = gate.client();
    holder.query("begin").expect_no_error();
    let asked = Instant::now();
    waiter.send(&support::pg::query("select 1"));
    let frame = waiter.frame();
    let waited = asked.elapsed();
    assert_eq!(frame.kind(), 'E', "{frame:?}");
    let refusal = frame.refusal();
    assert_eq!(refusal.code, "53300", "{refusal:?}");
    let text = [&refusal.message, &refusal.detail, &refusal.hint].map(String::as_str).join(" ");
    for word in ["DATABASE_URL", "all 1 ", "1 client", " ms", "pool size"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    assert!(waited >= Duration::from_millis(390), "only {waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    assert!(
        gate.postgres_metric("tidegate_rejections_total", &[("reason", "wait_timeout")]) >= 1.0
    );
    holder.query("commit").expect_no_error();
    assert_eq!(gate.client().one("select 2"), "2", "the pool goes on");
}

#[test]
fn waiters_are_served_in_the_order_they_came() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut holder = gate.client();
    let mut waiters: Vec<_> = (0..5).map(|_| gate.client()).collect();
    holder.query("create table turn (n serial, who int)").expect_no_error();
    holder.query("begin").expect_no_error();
    for (who, waiter) in waiters.iter_mut().enumerate() {
        waiter.send(&support::pg::query(&format!("insert into turn (who) values ({who})")));
        eventually("the client queues", || {
            let queued = gate.postgres_metric("tidegate_queue_length", &[]);
            (queued >= f64::from(u32::try_from(who + 1).unwrap())).then_some(())
        });
    }
    holder.query("commit").expect_no_error();
    for waiter in &mut waiters {
        waiter.reply().expect_no_error();
    }
    let order = holder.one("select string_agg(who::text, ' ' order by n) from turn");
    assert_eq!(order, "0 1 2 3 4");
}

#[test]
fn a_waiter_that_leaves_gives_up_its_place() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut holder = gate.client();
    holder.query("begin").expect_no_error();
    let mut leaver = gate.client();
    leaver.send(&support::pg::query("select 'never asked for'"));
    let queued = |wanted: f64| {
        eventually("the queue's length", || {
            (gate.postgres_metric("tidegate_queue_length", &[]) == wanted).then_some(())
        });
    };
    queued(1.0);
    leaver.hang_up();
    queued(0.0);
    holder.query("commit").expect_no_error();
    assert_eq!(gate.client().one("select 3"), "3");
}

#[test]
fn wrong_credentials_are_refused_in_the_servers_words() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let wrong = [
        Login { password: "not-it".into(), ..Login::app() },
        Login { user: "stranger".into(), ..Login::app() },
        Login { database: "nowhere".into(), ..Login::app() },
    ];
    for login in &wrong {
        let refused = |port| -> Refusal {
            let outcome = support::pg::Connection::try_open(port, login);
            outcome.map(|_| ()).expect_err("must be refused")
        };
        assert_eq!(refused(gate.postgres_port()), refused(server.port()), "{login:?}");
    }
    assert_eq!(gate.client().one("select 1"), "1");
}

#[test]
fn clients_come_and_go_without_the_server_noticing() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let first = gate.client().backend();
    let served = AtomicUsize::new(0);
    for _ in 0..50 {
        let backend = gate.client().backend();
        served.fetch_add(usize::from(backend == first), Ordering::Relaxed);
    }
    assert!(served.into_inner() >= 49, "the same backend serves all, one after the other");
    within(Duration::from_secs(5), "all clients are counted out", || {
        (gate.postgres_metric("tidegate_clients", &[]) == 0.0).then_some(())
    });
}

#[test]
fn the_admin_port_tells_what_the_pool_does() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut holder = gate.client();
    holder.query("begin").expect_no_error();
    let _idle = gate.client();
    let page = eventually("the gauges settle", || {
        let page = gate.page();
        let active = page.sum("tidegate_clients", &[("state", "active")]);
        let idle = page.sum("tidegate_clients", &[("state", "idle")]);
        ((active, idle) == (1.0, 1.0)).then_some(page)
    });
    let pool = [("protocol", "postgres"), ("pool", "DATABASE_URL")];
    assert_eq!(
        page.sum(
            "tidegate_server_connections",
            &[pool[0], pool[1], ("state", "idle_in_transaction")]
        ),
        1.0
    );
    assert_eq!(
        page.sum("tidegate_server_connections", &[pool[0], pool[1], ("state", "active")]),
        0.0
    );
    assert_eq!(page.sum("tidegate_server_connections_limit", &pool), 2.0);
    assert!(page.sum("tidegate_checkout_wait_seconds_count", &pool) >= 1.0);
    assert_eq!(page.sum("tidegate_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    for path in ["/healthz", "/readyz"] {
        let answer = support::metrics::get(gate.admin_port(), path).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    assert_eq!(support::metrics::get(gate.admin_port(), "/nonsense").unwrap().status, 404);
}
