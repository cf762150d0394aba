//! Exhaustion, explained: what a client is told, what the metrics and the status say, and who is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::pg::{self, Login, Refusal};
use support::postgres::Postgres;
use support::redis::Redis;
use support::resp::Value;
use support::tidegate::{Setup, Tidegate};
use support::{eventually, within};
use tempfile::NamedTempFile;
use tidegate::status::{Event, PoolStatus, Status};

fn status(gate: &Tidegate) -> Status {
    let answer =
        support::metrics::get(gate.admin_port(), "/status.json").expect("the admin port answers");
    serde_json::from_str(&answer.body).expect("a status")
}

fn pool(gate: &Tidegate) -> PoolStatus {
    status(gate).pools.into_iter().next().expect("a pool")
}

fn event(gate: &Tidegate, kind: &str) -> Event {
    eventually(&format!("{kind} is told"), || {
        status(gate).events.into_iter().find(|event| event.kind == kind)
    })
}

/// A configuration file with these lines for Postgres.
fn config(lines: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temp file");
    writeln!(file, "[postgres]\n{lines}").expect("a temp file");
    file
}

fn named(name: &str) -> Login {
    Login::app().with("application_name", name)
}

/// The server lets a role have three connections; tidegate was told it may have ten.
#[test]
fn a_servers_own_limit_is_found_and_no_client_hears_of_it() {
    let server = Postgres::start();
    server
        .superuser()
        .query("create role small login password 'pw' connection limit 3")
        .expect_no_error();
    server.superuser().query("grant all on schema public to small").expect_no_error();
    let gate = Setup::new()
        .database_url(&server.url_with("small", "pw", "app"))
        .pool_size(10)
        .wait_ms(30_000)
        .start();
    let login = Login { user: "small".into(), password: "pw".into(), ..Login::app() };
    let errors: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gate.try_client(&login).expect("no client is turned away");
                    (0..5)
                        .filter(|_| !client.query("select pg_sleep(0.02)").errors().is_empty())
                        .count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(errors, 0, "{}", gate.output());
    // One more is tried now and then while clients wait.
    let page = eventually("the limit settles", || {
        let page = gate.page();
        let limit = page.sum("tidegate_server_connections_limit", &[("protocol", "postgres")]);
        (limit == 3.0).then_some(page)
    });
    assert_eq!(page.sum("tidegate_server_connections_limit_configured", &[]), 10.0);
    assert!(page.sum("tidegate_server_refusals_total", &[]) >= 7.0);
    let pool = pool(&gate);
    assert_eq!((pool.limit, pool.limit_configured), (3, 10));
    let reason = pool.limit_reason.clone().expect("the page says why");
    assert!(reason.contains("too many connections for role"), "{reason}");
    assert!(pool.totals.saturated_seconds > 0.5, "{pool:?}");
    assert_eq!(pool.totals.rejections, 0);
}

#[test]
fn a_limit_that_the_server_lifts_is_used_again() {
    let server = Postgres::start();
    let mut superuser = server.superuser();
    superuser.query("create role small login password 'pw' connection limit 1").expect_no_error();
    let url = server.url_with("small", "pw", "app");
    let gate = Setup::new().database_url(&url).pool_size(3).wait_ms(30_000).start();
    let login = Login { user: "small".into(), password: "pw".into(), ..Login::app() };
    let mut holder = gate.try_client(&login).unwrap();
    holder.query("begin").expect_no_error();
    let mut waiter = gate.try_client(&login).unwrap();
    waiter.send(&pg::query("select 1"));
    eventually("the limit steps down", || (pool(&gate).limit == 1).then_some(()));
    superuser.query("alter role small connection limit 3").expect_no_error();
    let reply = waiter.reply();
    reply.expect_no_error();
    assert_eq!(pool(&gate).limit, 2, "one more was tried");
    holder.query("commit").expect_no_error();
}

#[test]
fn who_waits_in_vain_is_told_who_holds_the_connections() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(1).wait_ms(3_000).start();
    let mut waiter = gate.client();
    let mut holder = gate.try_client(&named("leaky-worker")).unwrap();
    holder.query("begin").expect_no_error();
    holder
        .query("select 'secret', 4711 as x from pg_class where relname = 'hidden'")
        .expect_no_error();
    let refusal: Refusal = waiter.query("select 1").errors().remove(0);
    assert_eq!(refusal.code, "53300");
    for part in ["all 1 server connections in use", "1 clients wait", "this one waited 30"] {
        assert!(refusal.detail.contains(part), "{part}: {refusal:?}");
    }
    for part in [
        "leaky-worker",
        "idle in a transaction",
        "select ?, ? as x from pg_class where relname = ?",
    ] {
        assert!(refusal.hint.contains(part), "{part}: {refusal:?}");
    }
    for secret in ["secret", "4711", "hidden"] {
        assert!(!format!("{refusal:?}").contains(secret), "{refusal:?}");
        assert!(!gate.output().contains(secret), "{}", gate.output());
    }
    let event = event(&gate, "wait_timeout");
    assert!(event.hint.contains("pool_size"), "{event:?}");
    assert_eq!(
        gate.postgres_metric("tidegate_rejections_total", &[("reason", "wait_timeout")]),
        1.0
    );
    let waits = [("outcome", "timeout")];
    assert!(gate.postgres_metric("tidegate_checkout_wait_seconds_sum", &waits) >= 2.9);
    let saturated = gate.postgres_metric("tidegate_pool_saturated_seconds_total", &[]);
    assert!((2.9..9.0).contains(&saturated), "{saturated}");
}

#[test]
fn a_client_that_keeps_its_connection_unused_is_named() {
    let server = Postgres::start();
    let file = config("leak_ms = 200\nslow_ms = 200");
    let gate = Setup::new().postgres(&server).pool_size(5).config(file.path()).start();
    let mut leaks: Vec<_> = (0..5)
        .map(|number| {
            let mut client = gate.try_client(&named(&format!("leak-{number}"))).unwrap();
            client.query("begin").expect_no_error();
            client.query(&format!("select {number} as number")).expect_no_error();
            client
        })
        .collect();
    let holders = eventually("all five are named", || {
        let holders = pool(&gate).holders;
        (holders.iter().filter(|holder| holder.leaks).count() == 5).then_some(holders)
    });
    for number in 0..5 {
        let name = format!("leak-{number}");
        let holder = holders.iter().find(|holder| holder.application_name == name).expect("named");
        assert_eq!(holder.phase, "idle_in_transaction");
        assert_eq!(holder.statement, "select ? as number");
        assert!(holder.phase_seconds >= 0.2 && holder.server_pid > 0, "{holder:?}");
    }
    eventually("they are counted", || {
        (gate.postgres_metric("tidegate_leaking_clients", &[]) == 5.0).then_some(())
    });
    assert_eq!(gate.postgres_metric("tidegate_leaks_total", &[]), 5.0);
    let told = event(&gate, "leak");
    assert!(
        told.message.contains("leak-") && told.message.contains("select ? as number"),
        "{told:?}"
    );
    assert!(gate.output().contains("kind=leak"), "{}", gate.output());
    leaks[0].query("select pg_sleep(0.5), 'secret'").expect_no_error();
    let slow = event(&gate, "slow");
    assert!(slow.message.ends_with("select pg_sleep(?), ?"), "{slow:?}");
    for client in &mut leaks {
        client.query("rollback").expect_no_error();
    }
    eventually("nobody leaks any more", || {
        (gate.postgres_metric("tidegate_leaking_clients", &[]) == 0.0).then_some(())
    });
    assert!(pool(&gate).holders.is_empty());
}

#[test]
fn limits_on_time_end_what_is_over_them_and_nothing_else() {
    let server = Postgres::start();
    let file = config(
        "query_timeout_ms = 300\ntransaction_timeout_ms = 1500\nidle_transaction_timeout_ms = 700",
    );
    let gate = Setup::new().postgres(&server).pool_size(2).config(file.path()).start();
    // A statement that runs too long is cancelled; the session goes on.
    let mut client = gate.client();
    let began = Instant::now();
    assert_eq!(client.query("select pg_sleep(20)").codes(), ["57014"]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(client.one("select 1"), "1");
    let count = |kind| gate.postgres_metric("tidegate_timeouts_total", &[("kind", kind)]);
    assert_eq!(count("query"), 1.0);
    // One that is silent in its transaction is sent away, and its connection is clean.
    let mut silent = gate.client();
    let backend = silent.backend();
    silent.query("begin").expect_no_error();
    let words = silent.last_words();
    assert_eq!(words[0].refusal().code, "25P03", "{words:?}");
    assert!(words[0].refusal().detail.contains("idle_transaction_timeout_ms"), "{words:?}");
    assert_eq!(count("idle_in_transaction"), 1.0);
    // One that is busy in its transaction for too long is sent away, too.
    let mut busy = gate.client();
    busy.query("begin").expect_no_error();
    let code = within(Duration::from_secs(10), "the transaction ends", || {
        busy.send(&pg::query("select pg_sleep(0.1)"));
        let frame = busy.frame();
        if frame.kind() == 'E' {
            return Some(frame.refusal().code);
        }
        while busy.frame().kind() != 'Z' {}
        None
    });
    assert_eq!(code, "25P04");
    assert_eq!(count("transaction"), 1.0);
    eventually("the connections are there for others", || {
        let mut client = gate.client();
        (client.backend() == backend).then_some(())
    });
    assert_eq!(server.superuser().one("select count(*) from pg_locks where not granted"), "0");
}

/// Sent ahead, each statement has its own time, inside a transaction and outside.
#[test]
fn statements_sent_ahead_are_each_judged_by_their_own_time() {
    let server = Postgres::start();
    let file = config("query_timeout_ms = 1000\ncleanup_timeout_ms = 1500");
    let gate = Setup::new().postgres(&server).pool_size(1).config(file.path()).start();
    let mut client = gate.client();
    let slow = pg::query("select pg_sleep(20)");
    client.send(&[slow.clone(), slow.clone(), slow].concat());
    for _ in 0..3 {
        assert_eq!(client.reply().codes(), ["57014"]);
    }
    let ended = || gate.postgres_metric("tidegate_timeouts_total", &[("kind", "query")]);
    // A server signals twice for one request, and may hit the next statement, too.
    let before = ended();
    assert!((2.0..=3.0).contains(&before), "{before}");
    let short = pg::query("select pg_sleep(0.3)");
    let flight = [pg::query("begin"), short.repeat(6), pg::query("commit")].concat();
    client.send(&flight);
    for _ in 0..8 {
        client.reply().expect_no_error();
    }
    assert_eq!(ended(), before);
}

#[test]
fn a_pinned_connection_and_a_silent_client_have_their_limits() {
    let server = Postgres::start();
    let file = config("pinned_timeout_ms = 300\nclient_idle_timeout_ms = 1500");
    let gate = Setup::new().postgres(&server).pool_size(2).config(file.path()).start();
    let mut pinned = gate.client();
    pinned.query("create temp table t (a int)").expect_no_error();
    let words = pinned.last_words();
    assert_eq!(words[0].refusal().code, "25P03", "{words:?}");
    let mut silent = gate.client();
    assert_eq!(silent.one("select 1"), "1");
    let words = silent.last_words();
    assert_eq!(words[0].refusal().code, "57P05", "{words:?}");
    let page = gate.page();
    assert_eq!(page.sum("tidegate_timeouts_total", &[("kind", "pinned")]), 1.0);
    assert_eq!(page.sum("tidegate_timeouts_total", &[("kind", "client_idle")]), 1.0);
}

#[test]
fn the_reserve_is_for_those_who_have_waited_long() {
    let server = Postgres::start();
    let file = config("reserve_size = 1\nreserve_after_ms = 500");
    let gate = Setup::new().postgres(&server).pool_size(1).config(file.path()).start();
    let mut holder = gate.client();
    holder.query("begin").expect_no_error();
    let mut waiter = gate.client();
    let began = Instant::now();
    assert_eq!(waiter.one("select 1"), "1");
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
    holder.query("commit").expect_no_error();
    eventually("the limit is what it was", || (pool(&gate).limit == 1).then_some(()));
    eventually("and the connection is closed", || (pool(&gate).servers.total() == 1).then_some(()));
}

#[test]
fn connections_are_kept_ready() {
    let server = Postgres::start();
    let file = config("idle_min = 2\nserver_idle_ms = 1000");
    let gate = Setup::new().postgres(&server).pool_size(4).config(file.path()).start();
    eventually("two are opened without a client", || (pool(&gate).servers.idle == 2).then_some(()));
    let mut clients: Vec<_> = (0..4).map(|_| gate.client()).collect();
    for client in &mut clients {
        client.query("begin").expect_no_error();
    }
    for client in &mut clients {
        client.query("commit").expect_no_error();
    }
    eventually("the others go when they are idle", || {
        (pool(&gate).servers.total() == 2).then_some(())
    });
}

/// Waiters, however many, are served in the order of their coming; one that cancels leaves at once.
#[test]
fn a_thousand_waiters_are_served_in_order_and_a_cancel_leaves_at_once() {
    let server = Postgres::start();
    let gate = Setup::new()
        .postgres(&server)
        .pool_size(1)
        .wait_ms(60_000)
        .env("TIDEGATE_POSTGRES_AUTH", "trust")
        .start();
    let mut holder = gate.client();
    holder.query("create table turn (n serial, who int)").expect_no_error();
    holder.query("begin").expect_no_error();
    let mut waiters: Vec<_> = (0..1_000).map(|_| gate.client()).collect();
    for (who, waiter) in waiters.iter_mut().enumerate() {
        waiter.send(&pg::query(&format!("insert into turn (who) values ({who})")));
        // So that they come one after the other.
        if who % 50 == 49 {
            eventually("they queue", || (pool(&gate).queue.length == who + 1).then_some(()));
        }
    }
    eventually("all queue", || (pool(&gate).queue.length == 1_000).then_some(()));
    let began = Instant::now();
    waiters[500].cancel();
    assert_eq!(waiters[500].reply().codes(), ["57014"]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    holder.query("commit").expect_no_error();
    for (who, waiter) in waiters.iter_mut().enumerate() {
        if who != 500 {
            waiter.reply().expect_no_error();
        }
    }
    let disorder = "select count(*) from (select who, lag(who) over (order by n) as before from turn) t where who < before";
    assert_eq!(holder.one(disorder), "0");
    assert_eq!(holder.one("select count(*) from turn"), "999");
}

/// A shortage of a fraction of a second shows in what is scraped long after it.
#[test]
fn a_burst_between_two_scrapes_shows() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).start();
    let _before = gate.page();
    let mut clients: Vec<_> = (0..8).map(|_| gate.client()).collect();
    for client in &mut clients {
        client.send(&pg::query("select pg_sleep(0.05)"));
    }
    for client in &mut clients {
        client.reply().expect_no_error();
    }
    let page = gate.page();
    let saturated = page.sum("tidegate_pool_saturated_seconds_total", &[]);
    assert!((0.1..5.0).contains(&saturated), "{saturated}");
    assert!(page.sum("tidegate_queue_length_max", &[]) >= 5.0);
    assert!(page.sum("tidegate_waiting_seconds_total", &[]) >= 0.3);
    assert!(page.sum("tidegate_checkout_waits_total", &[]) >= 6.0);
    let busy = page.sum("tidegate_server_busy_seconds_total", &[("phase", "query")]);
    assert!((0.4..8.0).contains(&busy), "{busy}");
    let held = page.sum("tidegate_server_hold_seconds_count", &[("phase", "query")]);
    assert!(held >= 8.0, "{held}");
}

/// Poisson arrivals, exponential service, four servers: what tidegate exports of use and waiting is what the clients
/// measured. Not a test of speed: both sides measure the same run.
#[test]
fn what_is_exported_agrees_with_what_the_clients_measured() {
    const REQUESTS: usize = 160;
    const SERVICE: f64 = 0.25;
    const PER_SECOND: f64 = 0.8 * 4.0 / SERVICE;
    let server = Postgres::start();
    let gate =
        Setup::new().postgres(&server).pool_size(4).env("TIDEGATE_POSTGRES_AUTH", "trust").start();
    let mut chance = Chance(20_261_127);
    let plan: Vec<(f64, f64)> = (0..REQUESTS)
        .scan(0.0, |at, _| {
            *at += chance.exponential(1.0 / PER_SECOND);
            Some((*at, chance.exponential(SERVICE)))
        })
        .collect();
    let clients: Vec<_> = (0..64).map(|_| Mutex::new(gate.client())).collect();
    for client in &clients[..8] {
        client.lock().unwrap().query("select 1").expect_no_error();
    }
    let before = gate.page();
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let measured: Vec<(f64, f64)> = thread::scope(|scope| {
        let workers: Vec<_> = clients
            .iter()
            .map(|client| {
                scope.spawn(|| {
                    let mut client = client.lock().unwrap();
                    let mut measured = Vec::new();
                    while let Some((at, service)) = plan.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let due = began + Duration::from_secs_f64(*at);
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let sent = Instant::now();
                        let took = client.one(&format!(
                            "select extract(epoch from clock_timestamp() - statement_timestamp()) from pg_sleep({service})"
                        ));
                        measured.push((sent.elapsed().as_secs_f64(), took.parse().unwrap()));
                    }
                    measured
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let after = gate.page();
    let exported =
        |name, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    let served: f64 = measured.iter().map(|(_, service)| service).sum();
    let waited: f64 = measured.iter().map(|(all, service)| all - service).sum();
    let busy = exported("tidegate_server_busy_seconds_total", &[]);
    let waiting = exported("tidegate_waiting_seconds_total", &[]);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "utilisation {:.4} exported, {:.4} measured; waiting {waiting:.3} s exported, {waited:.3} s measured",
        busy / 4.0 / seconds,
        served / 4.0 / seconds,
    );
    // Both are within 1 % on a machine with nothing else to do. A busy one delays the news that a statement has ended.
    assert!((busy / served - 1.0).abs() < 0.15, "{busy} {served}");
    assert!((waiting / waited - 1.0).abs() < 0.15, "{waiting} {waited}");
    let histogram = exported("tidegate_checkout_wait_seconds_sum", &[("outcome", "ok")]);
    assert!((histogram / waiting - 1.0).abs() < 0.01, "{histogram} {waiting}");
}

/// A small generator, so that a run can be repeated (Marsaglia, "Xorshift RNGs").
struct Chance(u64);

impl Chance {
    fn exponential(&mut self, mean: f64) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let part = f64::from(u32::try_from(self.0 >> 32).unwrap());
        -mean * ((part + 1.0) / 4_294_967_297.0).ln()
    }
}

#[test]
fn what_the_server_allows_is_seen_before_it_is_hit() {
    let server = Postgres::start();
    let mut superuser = server.superuser();
    superuser.query("alter role app connection limit 20").expect_no_error();
    let file = config("plan_every_ms = 100");
    let gate = Setup::new().postgres(&server).pool_size(2).config(file.path()).start();
    let _other = server.direct();
    let plan = eventually("the server was asked", || {
        gate.client().query("select 1").expect_no_error();
        let plan = pool(&gate).plan;
        plan.iter().any(|limit| limit.scope == "role" && limit.used >= 2).then_some(plan)
    });
    let role = plan.iter().find(|limit| limit.scope == "role").unwrap();
    assert_eq!(role.limit, 20);
    let all = plan.iter().find(|limit| limit.scope == "server").unwrap();
    assert!(all.used > role.used && all.limit > 20, "the superuser is one of them: {plan:?}");
    assert!(!plan.iter().any(|limit| limit.scope == "database"), "it has no limit");
    let labels = [("protocol", "postgres"), ("scope", "role")];
    assert_eq!(gate.page().sum("tidegate_plan_connections_limit", &labels), 20.0);
    superuser.query("alter role app connection limit -1").expect_no_error();
    eventually("a limit that is lifted is forgotten", || {
        gate.client().query("select 1").expect_no_error();
        (!pool(&gate).plan.iter().any(|limit| limit.scope == "role")).then_some(())
    });
    assert_eq!(gate.page().sum("tidegate_plan_connections_limit", &labels), 0.0);
}

#[test]
fn one_application_leaves_the_others_their_share() {
    let server = Postgres::start();
    let file = config("application_share_percent = 50");
    let gate =
        Setup::new().postgres(&server).pool_size(4).wait_ms(3_000).config(file.path()).start();
    let mut batch: Vec<_> = (0..4).map(|_| gate.try_client(&named("batch")).unwrap()).collect();
    for client in &mut batch {
        client.send(&pg::query("begin"));
    }
    eventually("two have one", || (pool(&gate).servers.idle_in_transaction == 2).then_some(()));
    eventually("two wait", || (pool(&gate).clients.waiting == 2).then_some(()));
    let mut web = gate.try_client(&named("web")).unwrap();
    assert_eq!(web.one("select 1"), "1");
    assert_eq!(pool(&gate).servers.in_use(), 2);
    // Whoever has waited in vain is told; the others go on.
    let mut served = 0;
    for client in &mut batch {
        let frame = client.frame();
        if frame.kind() == 'E' {
            assert!(frame.refusal().hint.contains("application_share_percent"), "{frame:?}");
            assert_eq!(client.frames_until('Z').len(), 1);
        } else {
            client.frames_until('Z');
            client.query("rollback").expect_no_error();
            served += 1;
        }
    }
    assert!((2..=4).contains(&served), "{served}");
    for client in &mut batch {
        assert_eq!(client.one("select 1"), "1");
    }
}

/// Whoever waits for a part of its share keeps nothing that one with a part may wait for.
#[test]
fn leave_to_pin_is_not_kept_while_waiting_for_a_share() {
    let server = Postgres::start();
    let file = config("application_share_percent = 25\npinned_limit = 1");
    let gate =
        Setup::new().postgres(&server).pool_size(4).wait_ms(5_000).config(file.path()).start();
    let mut pinning = gate.try_client(&named("web")).unwrap();
    pinning.query("create temp table t (a int)").expect_no_error();
    let mut stepped_back = gate.try_client(&named("batch")).unwrap();
    stepped_back.send(&pg::query("create temp table u (a int)"));
    eventually("it waits for leave", || {
        (gate.postgres_metric("tidegate_pin_waits_total", &[]) == 1.0
            && pool(&gate).clients.waiting == 1)
            .then_some(())
    });
    let mut in_transaction = gate.try_client(&named("batch")).unwrap();
    in_transaction.query("begin").expect_no_error();
    pinning.query("drop table t").expect_no_error();
    drop(pinning);
    eventually("nothing is pinned", || (pool(&gate).servers.pinned == 0).then_some(()));
    in_transaction.query("create temp table v (a int)").expect_no_error();
    in_transaction.query("rollback").expect_no_error();
    stepped_back.reply().expect_no_error();
}

/// A pause is nobody's fault: a wait for a share begins anew behind it.
#[test]
fn a_pause_does_not_use_up_the_wait_for_a_share() {
    let server = Postgres::start();
    let file = config("application_share_percent = 25");
    let gate =
        Setup::new().postgres(&server).pool_size(4).wait_ms(2_000).config(file.path()).start();
    let mut clients: Vec<_> = (0..2).map(|_| gate.try_client(&named("batch")).unwrap()).collect();
    let mut console =
        gate.try_client(&Login { database: "tidegate".into(), ..Login::app() }).unwrap();
    console.query("pause").expect_no_error();
    for client in &mut clients {
        client.send(&pg::query("select 1"));
    }
    eventually("both wait for longer than they may", || {
        let pool = pool(&gate);
        (pool.clients.waiting == 2 && pool.queue.oldest_wait_ms > 3_000.0).then_some(())
    });
    console.query("resume").expect_no_error();
    for client in &mut clients {
        client.reply().expect_no_error();
    }
}

/// The same for Redis: the server's limit is found, who keeps a connection is named, and whoever waits in vain may try again.
#[test]
fn redis_connections_that_are_kept_are_seen_and_the_servers_limit_is_kept_to() {
    let server = Redis::start();
    let mut direct = server.direct();
    let file = {
        let mut file = NamedTempFile::new().expect("a temp file");
        writeln!(file, "[redis]\nplan_every_ms = 100").expect("a temp file");
        file
    };
    let gate = Setup::new().redis(&server).pool_size(4).wait_ms(2_000).config(file.path()).start();
    let mut first = gate.redis_client();
    assert_eq!(first.command(&["CLIENT", "SETNAME", "worker"]), Value::simple("OK"));
    assert_eq!(first.command(&["GET", "k"]), Value::Null, "the lane is open");
    assert_eq!(first.command(&["WATCH", "k"]), Value::simple("OK"));
    let holder = eventually("it is named", || pool(&gate).holders.into_iter().next());
    assert_eq!((holder.application_name.as_str(), holder.phase.as_str()), ("worker", "pinned"));
    assert_eq!(holder.pin.as_deref(), Some("transaction"));
    // Two connections of ours and the direct one: no more for anybody.
    direct.command(&["CONFIG", "SET", "maxclients", "3"]);
    let mut second = gate.redis_client();
    let told = second.command(&["WATCH", "k"]);
    assert!(told.error().starts_with("TRYAGAIN tidegate: no server connection"), "{told:?}");
    // What follows a WATCH in vain must not run without it: that client was sent away.
    let mut second = gate.redis_client();
    let seen = pool(&gate);
    assert!(seen.limit < 4 && seen.limit_configured == 4, "{seen:?}");
    assert!(
        seen.limit_reason.clone().is_some_and(|words| words.contains("max number of clients")),
        "{seen:?}"
    );
    assert_eq!(second.command(&["SET", "k", "v"]), Value::simple("OK"), "lanes go on");
    let plan = eventually("the server was asked", || {
        second.command(&["GET", "k"]);
        pool(&gate).plan.into_iter().find(|limit| limit.limit == 3)
    });
    assert_eq!((plan.scope.as_str(), plan.used), ("server", 3));
    assert_eq!(first.command(&["UNWATCH"]), Value::simple("OK"));
    eventually("nobody is named any more", || pool(&gate).holders.is_empty().then_some(()));
    assert_eq!(second.command(&["WATCH", "k"]), Value::simple("OK"), "what is free serves");
}
