//! What the byte comparison can't hold: cancel, words from the server while idle, old and new
//! protocol versions, and what a session keeps from one backend to the next.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use support::eventually;
use support::pg::{
    Connection, Login, SSL, VERSION_3_0, bind, close_statement, copy_data, copy_done, execute,
    parse, query, startup, sync,
};
use support::postgres::Postgres;
use support::tidegate::{Setup, Tidegate};

#[test]
fn a_running_query_is_cancelled_and_no_other() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut victim = gate.client();
    let mut bystander = gate.client();
    victim.send(&query("select pg_sleep(30)"));
    bystander.send(&query("select pg_sleep(1), 'slept well'"));
    let sleeping = "select count(*) from pg_stat_activity where usename = 'app' \
                    and query like '%pg_sleep(30)%' and state = 'active'";
    eventually("the query runs", || (server.superuser().one(sleeping) == "1").then_some(()));
    let asked = Instant::now();
    victim.cancel();
    assert_eq!(victim.reply().codes(), ["57014"]);
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_eq!(bystander.reply().codes(), Vec::<String>::new());
    assert_eq!(victim.one("select 1"), "1");
}

#[test]
fn a_cancel_that_comes_late_hits_nobody() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut late = gate.client();
    let mut other = gate.client();
    assert_eq!(late.one("select 1"), "1");
    other.send(&query("select pg_sleep(1)"));
    let running =
        "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'";
    eventually("the other runs", || (server.superuser().one(running) == "1").then_some(()));
    late.cancel();
    assert_eq!(other.reply().codes(), Vec::<String>::new(), "not its cancel");
    assert_eq!(late.one("select 2"), "2", "a cancel without a query is forgotten");
}

/// The server hears of a cancel when what it meant is over: it must not hit what the client asked next.
#[test]
fn a_cancel_that_the_server_hears_late_hits_nothing() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    let mut other = gate.client();
    client.query("begin").expect_no_error();
    client.send(&query("select pg_sleep(1)"));
    server.signal(Signal::STOP);
    client.cancel();
    assert_eq!(client.reply().codes(), Vec::<String>::new(), "the server has not heard of it");
    client.send(&query("select pg_sleep(1), 'next'"));
    assert!(client.frame_within(Duration::from_millis(300)).is_none());
    server.signal(Signal::CONT);
    assert_eq!(client.reply().codes(), Vec::<String>::new());
    other.send(&query("select pg_sleep(1), 'somebody else'"));
    client.query("commit").expect_no_error();
    assert_eq!(other.reply().codes(), Vec::<String>::new());
}

/// A cancel request that is long on its way to the server hits nobody else: neither when its query has ended meanwhile, nor
/// when its client has gone.
#[test]
fn a_cancel_that_is_long_under_way_hits_nobody_else() {
    let server = Postgres::start();
    // A request that asks for TLS first is not under way before it has its answer.
    let url = format!("{}?sslmode=disable", server.url());
    let gate = Setup::new().database_url(&url).pool_size(1).start();
    let mut boss = server.superuser();
    let file = boss.one("select pg_read_file('postmaster.pid')");
    let postmaster = Pid::from_raw(file.lines().next().unwrap().parse().unwrap()).unwrap();
    let running =
        "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'";
    for goes in [false, true] {
        let [mut cancels, mut next] = [gate.client(), gate.client()];
        cancels.send(&query("select pg_sleep(0.5)"));
        eventually("it runs", || (boss.one(running) == "1").then_some(()));
        // It takes no connection, the cancel request's among them.
        kill_process(postmaster, Signal::STOP).unwrap();
        cancels.cancel();
        assert_eq!(cancels.reply().codes(), Vec::<String>::new());
        if goes {
            cancels.hang_up();
        }
        next.send(&query("select pg_sleep(1)"));
        // Long enough for it to begin, if it could.
        std::thread::sleep(Duration::from_millis(300));
        kill_process(postmaster, Signal::CONT).unwrap();
        assert_eq!(next.reply().codes(), Vec::<String>::new(), "not its cancel");
    }
}

#[test]
fn a_queued_query_is_cancelled_out_of_the_queue() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut holder = gate.client();
    holder.query("begin").expect_no_error();
    let mut queued = gate.client();
    queued.send(&query("select 'too late'"));
    eventually("the client queues", || {
        (gate.postgres_metric("tidegate_queue_length", &[]) == 1.0).then_some(())
    });
    queued.cancel();
    assert_eq!(queued.reply().codes(), ["57014"]);
    assert_eq!(gate.postgres_metric("tidegate_queue_length", &[]), 0.0);
    holder.query("commit").expect_no_error();
    assert_eq!(queued.one("select 4"), "4");
}

#[test]
fn a_stranger_cannot_cancel() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut victim = gate.client();
    victim.send(&query("select pg_sleep(1)"));
    let mut guess = gate.client();
    guess.key = victim.key.clone();
    *guess.key.last_mut().unwrap() ^= 1;
    guess.cancel();
    assert_eq!(victim.reply().codes(), Vec::<String>::new());
}

#[test]
fn encryption_is_declined_and_the_greeting_goes_on() {
    let server = Postgres::start();
    let gate =
        Setup::new().postgres(&server).pool_size(1).env("TIDEGATE_TLS_POSTGRES", "off").start();
    let gssenc = SSL + 1;
    let mut client = Connection::knock(gate.postgres_port()).unwrap();
    for request in [gssenc, SSL] {
        client.send(&[8_u32.to_be_bytes(), request.to_be_bytes()].concat());
        let mut answer = [0];
        std::io::Read::read_exact(&mut client.stream(), &mut answer).unwrap();
        assert_eq!(answer, *b"N");
    }
    let login = Login::app();
    client.send(&startup(VERSION_3_0, &login));
    client.greet(&login).unwrap();
    assert_eq!(client.one("select 1"), "1");
}

#[test]
fn protocol_3_2_and_what_lies_beyond_are_negotiated() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    for (version, negotiated, key_length) in [(2, false, 4..=256), (9, true, 4..=256)] {
        let login = Login::app();
        let mut client = Connection::knock(gate.postgres_port()).unwrap();
        client.send(&startup(VERSION_3_0 + version, &login));
        client.greet(&login).unwrap();
        assert_eq!(client.negotiated > 0, negotiated, "3.{version}");
        assert!(client.negotiated <= 1, "one answer is enough");
        assert!(key_length.contains(&(client.key.len() - 4)), "{} bytes", client.key.len());
        client.send(&query("select pg_sleep(30)"));
        let running = "select count(*) from pg_stat_activity where usename = 'app' \
                       and state = 'active'";
        eventually("it runs", || (server.superuser().one(running) == "1").then_some(()));
        client.cancel();
        assert_eq!(client.reply().codes(), ["57014"], "a key of 3.{version} works");
    }
}

#[test]
fn a_setting_reloaded_in_a_transaction_is_reported() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    let mut admin = server.superuser();
    admin.query("alter system set datestyle = 'German'").expect_no_error();
    admin.query("select pg_reload_conf()").expect_no_error();
    let reported = eventually("a ParameterStatus", || {
        client.query("select 1").frames.into_iter().find(|frame| frame.kind() == 'S')
    });
    assert!(reported.body.starts_with(b"DateStyle\0German"), "{reported:?}");
    client.query("commit").expect_no_error();
    assert_eq!(client.one("select 5"), "5");
}

#[test]
fn the_server_may_end_a_transaction_in_which_nothing_happens() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    client.query("begin; set local idle_in_transaction_session_timeout = 300").expect_no_error();
    // The only connection is free again.
    assert_eq!(gate.client().one("select 6"), "6");
    let told = client.query("select 7");
    assert_eq!((told.codes(), told.status()), (vec!["25P03".to_owned()], 'E'));
    assert_eq!(client.query("rollback").status(), 'I');
    assert_eq!(client.one("select 8"), "8");
}

#[test]
fn the_server_may_speak_while_its_connection_is_pooled() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    let backend = client.backend();
    let mut admin = server.superuser();
    admin.query("alter system set application_name = 'reloaded'").expect_no_error();
    admin.query("select pg_reload_conf()").expect_no_error();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(client.query("select 5").shape().replace('S', ""), "TDCZ");
    assert_eq!(client.backend(), backend, "a word from the server is no reason to close");
}

#[test]
fn settings_follow_their_session_over_backends() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut tokyo = gate.client();
    let mut lima = gate.client();
    tokyo.query("set timezone = 'Asia/Tokyo'; set work_mem = '3MB'").expect_no_error();
    lima.query("set timezone = 'America/Lima'").expect_no_error();
    for _ in 0..4 {
        assert_eq!(tokyo.one("show timezone"), "Asia/Tokyo");
        assert_eq!(lima.one("show timezone"), "America/Lima");
        assert_eq!(tokyo.one("show work_mem"), "3MB");
        assert_eq!(lima.one("show work_mem"), "4MB");
        // While this one holds a backend, the other session gets the other one.
        lima.query("begin").expect_no_error();
        assert_eq!(tokyo.one("show timezone"), "Asia/Tokyo");
        lima.query("commit").expect_no_error();
    }
}

/// pgbouncer #991, #1129, prisma #21877: two clients' statements of one name were one on the server: "already exists", or
/// another's rows.
#[test]
fn two_clients_use_one_name_for_different_statements_on_every_backend() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut one = gate.client();
    let mut two = gate.client();
    let mut blocker = gate.client();
    one.exchange(&[parse("s", "select 'one', pg_backend_pid()"), sync()]).expect_no_error();
    two.exchange(&[parse("s", "select 'two', pg_backend_pid()"), sync()]).expect_no_error();
    let mut backends = std::collections::BTreeSet::new();
    for round in 0..10 {
        if round % 2 == 1 {
            blocker.query("begin").expect_no_error();
        }
        for (client, word) in [(&mut one, "one"), (&mut two, "two")] {
            let reply = client.exchange(&[bind("", "s", &[]), execute("", 0), sync()]);
            let row = reply.expect_no_error().rows().concat();
            assert_eq!(row[0].as_deref(), Some(word));
            backends.insert(row[1].clone());
        }
        if round % 2 == 1 {
            blocker.query("rollback").expect_no_error();
        }
    }
    assert_eq!(backends.len(), 2, "both backends were used");
    one.exchange(&[close_statement("s"), sync()]).expect_no_error();
    let gone = one.exchange(&[bind("", "s", &[]), execute("", 0), sync()]);
    assert_eq!(gone.codes(), ["26000"]);
    let kept = two.exchange(&[bind("", "s", &[]), execute("", 0), sync()]);
    kept.expect_no_error();
}

/// pgbouncer #1288: Parse in one flight and Bind in the next: the unnamed statement was on another connection, or replaced.
#[test]
fn the_unnamed_statement_survives_another_client_on_the_backend() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    let mut other = gate.client();
    client.exchange(&[parse("", "select $1::text || '!'"), sync()]).expect_no_error();
    other.exchange(&[parse("", "select 0"), bind("", "", &[]), execute("", 0), sync()]);
    let reply = client.exchange(&[bind("", "", &["mine"]), execute("", 0), sync()]);
    assert_eq!(reply.expect_no_error().rows(), [[Some("mine!".to_owned())]]);
}

/// odyssey #1475, #1485: whoever wrote all requests before it read a reply stood still; see also tests/others_wire.rs.
#[test]
fn a_reply_flows_while_the_request_is_still_on_its_way() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let client = gate.client();
    // 300 queries of 100 kB with replies of 100 kB each: no socket buffer holds either direction,
    // so whoever writes everything before reading anything stands still for ever.
    let question = query(&format!("select '{}'", "q".repeat(100_000)));
    let writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut writer = writer;
            for _ in 0..300 {
                std::io::Write::write_all(&mut writer, &question).unwrap();
            }
        });
        let mut client = client;
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..300 {
            assert_eq!(client.reply().shape(), "TDCZ");
        }
    });
}

#[test]
fn a_client_that_does_not_read_costs_no_memory_and_stops_nobody() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).start();
    let mut slow = gate.client();
    slow.send(&query("select repeat('x', 1000) from generate_series(1, 200000)"));
    std::thread::sleep(Duration::from_secs(1));
    let mut quick = gate.client();
    for _ in 0..50 {
        assert_eq!(quick.one("select 1"), "1");
    }
    let resident = gate.resident_kib();
    assert!(resident < 100_000, "{resident} KiB while 200 MB wait");
    assert_eq!(slow.reply().rows().len(), 200_000);
}

#[test]
fn copy_in_streams_more_than_any_buffer_holds() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    client.query("create table wide (line text)").expect_no_error();
    client.send(&query("copy wide from stdin"));
    client.frames_until('G');
    let line = copy_data(format!("{}\n", "c".repeat(60_000)).as_bytes());
    for _ in 0..500 {
        client.send(&line);
    }
    client.send(&copy_done());
    client.reply().expect_no_error();
    assert_eq!(client.one("select count(*) from wide where length(line) = 60000"), "500");
    let resident = gate.resident_kib();
    assert!(resident < 100_000, "{resident} KiB after 30 MB");
}
