//! A URL with several hosts: the one is found that is what the URL asks for, also after they have changed their roles, and
//! what was opened to one of them is cancelled there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use support::pg::{Connection, Login, framed, query};
use support::postgres::{PASSWORD, Postgres};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, ports};

const STANDBY: &str = "select pg_catalog.pg_is_in_recovery()";

fn url(ports: &[u16], options: &str) -> String {
    let hosts = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    format!("postgres://app:{PASSWORD}@{}/app?{options}", hosts.collect::<Vec<_>>().join(","))
}

fn gate(ports: &[u16], options: &str) -> Tidegate {
    Setup::new().database_url(&url(ports, options)).pool_size(2).start()
}

fn failures(gate: &Tidegate) -> f64 {
    gate.postgres_metric("tidegate_connect_errors_total", &[])
}

/// Where a session's next transaction runs: the server's port.
fn place(session: &mut Connection) -> String {
    session.one("select pg_catalog.current_setting('port')")
}

#[test]
fn the_one_that_is_asked_for_is_found_in_any_order() {
    let primary = Postgres::primary();
    let standby = Postgres::standby_of(&primary);
    let both = [primary.port(), standby.port()];
    let turned = [standby.port(), primary.port()];
    for (target, is_standby) in [
        ("primary", "f"),
        ("read-write", "f"),
        ("standby", "t"),
        ("read-only", "t"),
        ("prefer-standby", "t"),
    ] {
        for hosts in [&both, &turned] {
            let gate = gate(hosts, &format!("target_session_attrs={target}"));
            assert_eq!(gate.client().one(STANDBY), is_standby, "{target} {hosts:?}");
            assert_eq!(failures(&gate), 0.0, "a server that is passed over is no failure");
        }
    }
    for hosts in [&both, &turned] {
        let gate = gate(hosts, "target_session_attrs=any");
        assert_eq!(place(&mut gate.client()), hosts[0].to_string());
    }
    drop(standby);
    let gate = gate(&turned, "target_session_attrs=prefer-standby");
    assert_eq!(gate.client().one(STANDBY), "f", "better than nothing");
}

#[test]
fn a_session_goes_on_at_the_promoted_standby() {
    let mut primary = Postgres::primary();
    let standby = Postgres::standby_of(&primary);
    let hosts = [primary.port(), standby.port()];
    let gate = gate(&hosts, "target_session_attrs=read-write");
    let mut session = gate.client();
    session.query("create table kept (n int)").expect_no_error();
    session.query("insert into kept values (1)").expect_no_error();
    eventually("the standby has it", || {
        let reply = standby.superuser().query("select n from kept");
        (reply.rows().len() == 1).then_some(())
    });
    primary.stop();
    assert_eq!(standby.superuser().one("select pg_promote(true, 10)"), "t");
    session.query("insert into kept values (2)").expect_no_error();
    assert_eq!(place(&mut session), standby.port().to_string());
    assert_eq!(session.one("select sum(n) from kept"), "3");
    assert_eq!(gate.client().one(STANDBY), "f");
    // What was the primary comes back, and is none any more.
    primary.demote();
    for _ in 0..3 {
        let mut other = gate.client();
        other.query("begin").expect_no_error();
        session.query("begin").expect_no_error();
        session.query("insert into kept values (3)").expect_no_error();
        other.query("insert into kept values (4)").expect_no_error();
        session.query("commit").expect_no_error();
        other.query("commit").expect_no_error();
    }
}

#[test]
fn who_waits_while_nobody_writes_goes_on_when_somebody_does() {
    let mut primary = Postgres::primary();
    let standby = Postgres::standby_of(&primary);
    let gate = gate(&[standby.port(), primary.port()], "target_session_attrs=primary");
    let mut session = gate.client();
    assert_eq!(session.one(STANDBY), "f");
    primary.stop();
    session.send(&query("select pg_catalog.pg_is_in_recovery()"));
    eventually("there is no primary", || {
        let told = gate.page().sum("tidegate_connect_errors_total", &[("code", "role")]);
        (told > 0.0).then_some(())
    });
    assert_eq!(standby.superuser().one("select pg_promote(true, 10)"), "t");
    let reply = session.reply();
    assert_eq!(reply.rows(), [[Some("f".to_owned())]]);
}

#[test]
fn a_server_that_refuses_to_write_is_left() {
    let (one, other) = (Postgres::start(), Postgres::start());
    let gate = Setup::new()
        .database_url(&url(&[one.port(), other.port()], "target_session_attrs=read-write"))
        .pool_size(1)
        .start();
    for server in [&one, &other] {
        server.direct().query("create table kept (n int)").expect_no_error();
    }
    let mut session = gate.client();
    assert_eq!(place(&mut session), one.port().to_string());
    let backend = session.backend();
    // A client that refuses itself keeps it.
    session.query("begin read only").expect_no_error();
    assert_eq!(session.query("insert into kept values (1)").codes(), ["25006"]);
    session.query("rollback").expect_no_error();
    assert_eq!(session.backend(), backend);
    let mut boss = one.superuser();
    boss.query("alter system set default_transaction_read_only = on").expect_no_error();
    boss.query("select pg_reload_conf()").expect_no_error();
    eventually("it refuses", || {
        (boss.one("show default_transaction_read_only") == "on").then_some(())
    });
    // The pool's connection hears of it when it is used next; a session that goes on at once may still have it then.
    eventually("the other one writes", || {
        let codes = session.query("insert into kept values (1)").codes();
        assert!(codes.is_empty() || codes == ["25006"], "{codes:?}");
        codes.is_empty().then_some(())
    });
    assert_eq!(place(&mut session), other.port().to_string());
}

#[test]
fn a_standby_that_is_one_no_more_is_left() {
    let (one, other) = (Postgres::standby(), Postgres::standby());
    for target in ["standby", "read-only", "prefer-standby"] {
        let gate = Setup::new()
            .database_url(&url(
                &[one.port(), other.port()],
                &format!("target_session_attrs={target}"),
            ))
            .pool_size(1)
            .start();
        let mut session = gate.client();
        if target == "standby" {
            assert_eq!(place(&mut session), one.port().to_string());
            assert_eq!(one.superuser().one("select pg_promote(true, 10)"), "t");
        }
        // What it has become it reports with the end of the next transaction.
        let elsewhere = || (place(&mut session) == other.port().to_string()).then_some(());
        eventually("the other one is asked", elsewhere);
        assert_eq!(session.one(STANDBY), "t");
    }
}

#[test]
fn what_a_question_of_ours_hears_counts_as_well() {
    let (one, other) = (Postgres::standby(), Postgres::standby());
    let gate = Setup::new()
        .database_url(&url(&[one.port(), other.port()], "target_session_attrs=standby"))
        .pool_size(1)
        .start();
    assert_eq!(place(&mut gate.client()), one.port().to_string());
    assert_eq!(one.superuser().one("select pg_promote(true, 10)"), "t");
    // The server is asked about settings that are new, and says with the answer that it is a standby no more.
    let login = Login::app().with("extra_float_digits", "2");
    let mut session = gate.try_client(&login).expect("it is let in");
    assert_eq!(place(&mut session), other.port().to_string());
}

#[test]
fn a_follower_is_read_and_stands_in_for_nobody() {
    let primary = Postgres::primary();
    let mut standby = Postgres::standby_of(&primary);
    primary.direct().query("create table kept (n int)").expect_no_error();
    primary.superuser().query("grant all on kept to reader").expect_no_error();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
    let gate = Setup::new()
        .postgres(&primary)
        .env("FOLLOWER_URL", &format!("postgres://reader:reader-secret@{hosts}/app"))
        .env("TIDEGATE_POSTGRES_READ_ONLY_URLS", "FOLLOWER_URL")
        .start();
    let mut writer = gate.client();
    let mut reader = gate.try_client(&Login::of("reader", "reader-secret", "app")).expect("known");
    writer.query("insert into kept values (1)").expect_no_error();
    assert_eq!(place(&mut writer), primary.port().to_string());
    assert_eq!(place(&mut reader), standby.port().to_string());
    let pools = gate.page();
    for pool in ["DATABASE_URL", "FOLLOWER_URL"] {
        assert!(pools.sum("tidegate_server_connections", &[("pool", pool)]) >= 1.0, "{pool}");
    }
    // Without a standby the primary answers, and no sooner writes by accident.
    standby.stop();
    eventually("the primary answers", || {
        let answer = reader.query("select pg_catalog.pg_is_in_recovery()");
        answer.errors().is_empty().then_some(())
    });
    assert_eq!(place(&mut reader), primary.port().to_string());
    assert_eq!(reader.query("insert into kept values (2)").codes(), ["25006"]);
    assert_eq!(reader.one("select count(*) from kept"), "1");
}

#[test]
fn a_cancel_reaches_the_host_that_the_query_runs_on() {
    let primary = Postgres::primary();
    let standby = Postgres::standby_of(&primary);
    for target in ["primary", "standby"] {
        for hosts in [[primary.port(), standby.port()], [standby.port(), primary.port()]] {
            let gate = gate(&hosts, &format!("target_session_attrs={target}"));
            let mut session = gate.client();
            session.send(&query("select pg_sleep(60)"));
            let server = if target == "primary" { &primary } else { &standby };
            let mut boss = server.superuser();
            eventually("it sleeps", || {
                let count = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
                (boss.one(count) == "1").then_some(())
            });
            session.cancel();
            assert_eq!(session.reply().codes(), ["57014"], "{target} {hosts:?}");
        }
    }
}

#[test]
fn a_host_that_is_silent_or_gone_delays_the_next_and_no_more() {
    let server = Postgres::start();
    let gone = ports::free();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = (silent.local_addr().expect("it listens").port(), silent);
    let gate = gate(&[gone, silent.0, server.port()], "connect_timeout=1");
    assert_eq!(place(&mut gate.client()), server.port().to_string());
    assert_eq!(failures(&gate), 0.0);
}

#[test]
fn a_host_that_is_silent_is_waited_for_once() {
    let server = Postgres::start();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = (silent.local_addr().expect("it listens").port(), silent);
    let options = "connect_timeout=2&target_session_attrs=primary";
    let gate = gate(&[silent.0, server.port()], options);
    let (mut first, mut second) = (gate.client(), gate.client());
    first.query("begin").expect_no_error();
    let began = std::time::Instant::now();
    second.query("begin").expect_no_error();
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
}

#[test]
fn every_host_has_its_turn_where_load_is_to_be_balanced() {
    let (one, other) = (Postgres::start(), Postgres::start());
    let gate = Setup::new()
        .database_url(&url(&[one.port(), other.port()], "load_balance_hosts=random"))
        .pool_size(20)
        .start();
    let mut sessions: Vec<_> = (0..20).map(|_| gate.client()).collect();
    let places = sessions.iter_mut().map(|session| {
        session.query("begin").expect_no_error();
        place(session)
    });
    // By chance all of them would be the same once in half a million times.
    let places: std::collections::BTreeSet<_> = places.collect();
    assert_eq!(places.len(), 2, "{places:?}");
}

#[test]
fn the_second_of_several_hosts_may_be_named_by_its_address() {
    let server = Postgres::start();
    let options = format!(
        "host=nowhere.invalid,also.invalid&hostaddr=127.0.0.1,127.0.0.1&port={},{}",
        ports::free(),
        server.port()
    );
    let url = format!("postgres://app:{PASSWORD}@/app?{options}");
    let gate = Setup::new().database_url(&url).start();
    assert_eq!(gate.client().one("select 1"), "1");
}

#[test]
fn an_older_server_is_asked_what_it_is() {
    let server = Postgres::start();
    for (target, word) in
        [("read-write", "transaction_read_only"), ("primary", "pg_is_in_recovery")]
    {
        let (port, asked) = old_server("on");
        let gate = gate(&[port, server.port()], &format!("target_session_attrs={target}"));
        assert_eq!(place(&mut gate.client()), server.port().to_string());
        let question = asked.join().expect("it was asked");
        assert!(question.contains(word), "{question}");
    }
}

/// Serves one connection: reports nothing at login, answers a question with `word`; gives the question.
fn old_server(word: &'static str) -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it listens").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = [0; 4096];
        let asked_for_tls = stream.read(&mut bytes).expect("a request") == 8;
        if asked_for_tls {
            stream.write_all(b"N").expect("it listens");
            let _startup = stream.read(&mut bytes).expect("a startup packet");
        }
        let welcome = [framed(b'R', &[0; 4]), framed(b'K', &[0; 8]), framed(b'Z', b"I")].concat();
        stream.write_all(&welcome).expect("it listens");
        let question = read_text(&mut stream, &mut bytes);
        let length = i32::try_from(word.len()).expect("short").to_be_bytes();
        let row = framed(b'D', &[&[0, 1], &length[..], word.as_bytes()].concat());
        let answer = [row, framed(b'C', b"SHOW\0"), framed(b'Z', b"I")].concat();
        stream.write_all(&answer).expect("it listens");
        let last = read_text(&mut stream, &mut bytes);
        assert_eq!(last, "X\0\0\0\u{4}", "it takes its leave");
        question
    });
    (port, server)
}

fn read_text(stream: &mut TcpStream, bytes: &mut [u8]) -> String {
    let read = stream.read(bytes).expect("bytes");
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}
