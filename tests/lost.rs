//! A server connection lost with a session on it: the client hears one honest error, or none where nothing was lost, and
//! its session goes on; it ends where something is gone that nothing brings back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Read;

use rustix::process::Signal;

use support::eventually;
use support::pg::{
    Connection, bind, copy_data, copy_done, execute, flush, framed, parse, query, sync,
};
use support::postgres::Postgres;
use support::script::{Script, farewell};
use support::tidegate::{Setup, Tidegate};

fn stage() -> (Postgres, Tidegate) {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    (server, gate)
}

/// Has the server end the backend `pid`, and waits until it has.
fn end_backend(server: &Postgres, pid: &str) {
    let mut boss = server.superuser();
    assert_eq!(boss.one(&format!("select pg_terminate_backend({pid})")), "t");
    eventually("the backend is gone", || {
        let there = boss.one(&format!("select count(*) from pg_stat_activity where pid = {pid}"));
        (there == "0").then_some(())
    });
}

/// Ends the backend that runs `pg_sleep` now.
fn end_sleeper(server: &Postgres) {
    let mut boss = server.superuser();
    let find = "select coalesce(max(pid), 0) from pg_stat_activity where wait_event = 'PgSleep'";
    let pid = eventually("a backend sleeps", || Some(boss.one(find)).filter(|pid| pid != "0"));
    end_backend(server, &pid);
}

fn settle(gate: &Tidegate) {
    eventually("no client holds a connection", || {
        let active = gate.postgres_metric("tidegate_client_connections", &[("state", "active")]);
        (active == 0.0).then_some(())
    });
}

#[test]
fn a_transaction_is_lost_and_the_session_goes_on() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("create table kept (n int)").expect_no_error();
    session.query("begin").expect_no_error();
    session.query("insert into kept values (1)").expect_no_error();
    let first = session.backend();
    end_backend(&server, &first);

    let told = session.query("insert into kept values (2)");
    assert_eq!((told.codes(), told.status()), (vec!["57P01".to_owned()], 'E'));
    assert_eq!(told.errors()[0].severity, "ERROR");
    assert!(told.errors()[0].hint.contains("ROLLBACK"), "{told:?}");
    let refused = session.query("insert into kept values (3)");
    assert_eq!((refused.codes(), refused.status()), (vec!["25P02".to_owned()], 'E'));
    let prepared =
        session.exchange(&[parse("p", "select 1"), bind("", "p", &[]), execute("", 0), sync()]);
    assert_eq!((prepared.codes(), prepared.status()), (vec!["25P02".to_owned()], 'E'));
    // A COMMIT of a failed transaction is a rollback.
    let ended = session.query("commit");
    assert_eq!((ended.tags(), ended.status()), (vec!["ROLLBACK".to_owned()], 'I'));
    assert_eq!(session.one("select count(*) from kept"), "0");
    assert_ne!(session.backend(), first);
    settle(&gate);
}

#[test]
fn a_commit_of_a_lost_transaction_is_told() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    let pid = session.backend();
    end_backend(&server, &pid);
    let told = session.query("commit");
    assert_eq!((told.codes(), told.status()), (vec!["57P01".to_owned()], 'E'));
    assert_eq!(session.query("rollback").status(), 'I');
    assert_eq!(session.one("select 1"), "1");
}

#[test]
fn a_rollback_of_a_lost_transaction_does_what_it_says() {
    let (server, gate) = stage();
    let mut session = gate.client();
    for request in [
        vec![query("rollback")],
        vec![parse("", "ROLLBACK"), bind("", "", &[]), execute("", 0), sync()],
    ] {
        session.query("begin").expect_no_error();
        let pid = session.backend();
        end_backend(&server, &pid);
        let ended = session.exchange(&request);
        assert_eq!((ended.codes(), ended.status()), (vec![], 'I'));
        assert_eq!(ended.tags(), ["ROLLBACK"]);
        assert_eq!(session.query("select 1").status(), 'I');
    }
}

#[test]
fn a_failed_transaction_that_is_lost_stays_failed() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    let pid = session.backend();
    assert_eq!(session.query("select 1/0").codes(), ["22012"]);
    end_backend(&server, &pid);
    // It has had its error.
    assert_eq!(session.query("select 1").codes(), ["25P02"]);
    assert_eq!(session.query("rollback").status(), 'I');
}

#[test]
fn a_running_statement_is_lost() {
    let (server, gate) = stage();
    let mut session = gate.client();
    for (begin, status) in [("select 1", 'I'), ("begin", 'T')] {
        session.query(begin).expect_no_error();
        session.send(&query("select pg_sleep(60)"));
        end_sleeper(&server);
        let told = session.reply();
        assert_eq!(told.codes(), ["57P01"]);
        assert_eq!(told.errors()[0].severity, "ERROR");
        assert_eq!(told.status(), if status == 'T' { 'E' } else { 'I' });
        assert_eq!(session.query("rollback").status(), 'I');
        assert_eq!(session.one("select 1"), "1");
    }
    // In the extended protocol without a Sync the rest is skipped, as after any error.
    session.send(
        &[parse("", "select pg_sleep(60)"), bind("", "", &[]), execute("", 0), flush()].concat(),
    );
    end_sleeper(&server);
    assert_eq!(session.frames_until('E').last().unwrap().refusal().code, "57P01");
    session.send(&[execute("", 0), sync()].concat());
    assert_eq!(session.reply().shape(), "Z");
    assert_eq!(session.one("select 1"), "1");
}

#[test]
fn what_was_committed_survives_and_what_was_not_does_not() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("set search_path = pg_catalog").expect_no_error();
    session.exchange(&[parse("kept", "select 'prepared'"), sync()]).expect_no_error();
    settle(&gate);
    session.query("begin").expect_no_error();
    session.query("set search_path = nowhere").expect_no_error();
    session.query("create temp table gone (n int)").expect_no_error();
    let pid = session.backend();
    end_backend(&server, &pid);
    assert_eq!(session.query("select 1").codes(), ["57P01"]);
    session.query("rollback").expect_no_error();
    assert_eq!(session.one("show search_path"), "pg_catalog");
    let bound = session.exchange(&[bind("", "kept", &[]), execute("", 0), sync()]);
    assert_eq!(bound.rows(), [[Some("prepared".to_owned())]]);
    settle(&gate);
}

#[test]
fn a_copy_under_way_is_lost() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("create table copied (n int)").expect_no_error();
    session.query("begin").expect_no_error();
    let pid = session.backend();
    session.send(&query("copy copied from stdin"));
    assert_eq!(session.frame().kind(), 'G');
    session.send(&copy_data(b"1\n"));
    end_backend(&server, &pid);
    session.send(&copy_data(b"2\n"));
    let told = session.reply();
    assert_eq!((told.codes(), told.status()), (vec!["57P01".to_owned()], 'E'));
    session.send(&[copy_data(b"3\n"), copy_done()].concat());
    assert_eq!(session.query("rollback").status(), 'I');
    assert_eq!(session.one("select count(*) from copied"), "0");
}

#[test]
fn a_session_whose_pinned_connection_is_lost_ends() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("create temp table mine (n int)").expect_no_error();
    let pid = session.backend();
    end_backend(&server, &pid);
    assert_last_words(&mut session);
    assert_eq!(gate.client().one("select 1"), "1");
}

/// FATAL 57P01 and the end, as from a server.
fn assert_last_words(session: &mut Connection) {
    let words = session.last_words();
    let refusals: Vec<_> =
        words.iter().filter(|frame| frame.tag == b'E').map(|frame| frame.refusal()).collect();
    assert_eq!(refusals.len(), 1, "{words:?}");
    assert_eq!((refusals[0].severity.as_str(), refusals[0].code.as_str()), ("FATAL", "57P01"));
}

#[test]
fn who_sends_ahead_outside_a_transaction_is_not_misled() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("create table ahead (n int)").expect_no_error();
    // The second would be a statement of its own if the first, with its BEGIN, is lost.
    session.send(&query("begin; select pg_sleep(60)"));
    session.send(&query("insert into ahead values (1)"));
    end_sleeper(&server);
    assert_last_words(&mut session);
    assert_eq!(gate.client().one("select count(*) from ahead"), "0");

    // Inside one all that follows is refused.
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    session.send(&query("select pg_sleep(60)"));
    session.send(&query("insert into ahead values (1)"));
    end_sleeper(&server);
    for _ in 0..2 {
        let told = session.reply();
        assert_eq!(told.status(), 'E');
        assert!(["57P01", "25P02"].contains(&told.codes()[0].as_str()), "{told:?}");
    }
    assert_eq!(session.query("rollback").status(), 'I');
    assert_eq!(session.one("select count(*) from ahead"), "0");
}

#[test]
fn a_connection_lost_between_transactions_is_not_noticed() {
    let (server, gate) = stage();
    let mut session = gate.client();
    for _ in 0..20 {
        let pid = session.backend();
        end_backend(&server, &pid);
        assert_eq!(session.one("select 1"), "1");
    }
}

#[test]
fn a_server_that_crashes_costs_one_error() {
    let (mut server, gate) = stage();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    server.stop();
    let told = session.query("select 1");
    assert_eq!((told.codes(), told.status()), (vec!["57P01".to_owned()], 'E'));
    server.resume();
    assert_eq!(session.query("rollback").status(), 'I');
    assert_eq!(session.one("select 1"), "1");
}

/// What a client is told whose request was answered with `last` before its connection was closed.
fn told(request: &[u8], last: &[u8]) -> (String, Vec<String>) {
    let mut server = Script::start();
    let gate = Setup::new().database_url(&server.url()).pool_size(1).start();
    server.says_at_last(last);
    server.gets_well();
    let mut session = gate.client();
    session.send(request);
    let reply = session.reply();
    assert_eq!(session.query("select 1").shape(), "IZ", "its session goes on");
    (reply.shape(), reply.codes())
}

#[test]
fn what_the_server_can_not_have_run_goes_again_and_nothing_else() {
    let flight = [parse("", "select 1"), bind("", "", &[]), execute("", 0), sync()].concat();
    let again = ("12IZ".to_owned(), vec![]);
    assert_eq!(told(&flight, &farewell("57P01")), again, "it went before it read it");
    assert_eq!(told(&flight, &farewell("57P05")), again);
    let error = |shape: &str, code: &str| (shape.to_owned(), vec![code.to_owned()]);
    assert_eq!(told(&flight, &farewell("57P02")), error("EZ", "57P02"), "who knows");
    let begun = [framed(b'1', b""), farewell("57P01")].concat();
    assert_eq!(told(&flight, &begun), error("1EZ", "57P01"), "it has begun");
    assert_eq!(told(&flight, b""), error("EZ", "08006"), "not a word");
    // A Query may be more than one transaction.
    assert_eq!(told(&query("select 1"), &farewell("57P01")), error("EZ", "57P01"));
}

#[test]
fn no_word_of_ours_gets_into_a_reply_that_is_cut_off() {
    let mut server = Script::start();
    let gate = Setup::new().database_url(&server.url()).pool_size(1).start();
    let row = framed(b'D', &[&[0, 1, 0, 0, 0, 90][..], &[b'x'; 90]].concat());
    let half = &row[..40];
    server.says_at_last(half);
    server.gets_well();
    let mut session = gate.client();
    session.send(&query("select 1"));
    let mut heard = Vec::new();
    session.stream().read_to_end(&mut heard).expect("its end");
    assert_eq!(heard.escape_ascii().to_string(), half.escape_ascii().to_string());
}

/// What waits in the socket when the connection is lost was sent ahead, too.
#[test]
fn who_has_sent_ahead_unread_is_not_misled() {
    let mut server = Script::start();
    let gate = Setup::new().database_url(&server.url()).pool_size(1).start();
    let mut session = gate.client();
    session.send(&query("begin; select 1"));
    eventually("it is served", || {
        (gate.postgres_metric("tidegate_clients", &[("state", "active")]) == 1.0).then_some(())
    });
    gate.signal(Signal::STOP);
    server.says_at_last(&farewell("57P01"));
    server.gets_well();
    server.has_said_them();
    session.send(&query("insert into ahead values (1)"));
    gate.signal(Signal::CONT);
    assert_last_words(&mut session);
}

/// Who once sent ahead may be about to.
#[test]
fn who_sends_ahead_at_times_is_not_misled() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.send(&[query("select 1"), query("select 2")].concat());
    session.reply().expect_no_error();
    session.reply().expect_no_error();
    session.send(&query("select pg_sleep(60)"));
    end_sleeper(&server);
    assert_last_words(&mut session);
}

#[test]
fn the_rest_of_a_lost_request_is_not_taken_for_another() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    let pid = session.backend();
    let long = query(&format!("select length('{}')", "x".repeat(300_000)));
    let (first, second) = long.split_at(200_000);
    session.send(first);
    end_backend(&server, &pid);
    session.send(second);
    let told = session.reply();
    assert_eq!((told.codes(), told.status()), (vec!["57P01".to_owned()], 'E'));
    assert_eq!(session.query("rollback").status(), 'I');
    assert_eq!(session.one("select 1"), "1");
}

/// In a failed transaction a Parse is refused, whatever the new connection has parsed already.
#[test]
fn a_lost_transaction_refuses_what_its_new_connection_knows() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    let pid = session.backend();
    let mut other = gate.client();
    other.exchange(&[parse("known", "select 'known'"), sync()]).expect_no_error();
    settle(&gate);
    end_backend(&server, &pid);
    assert_eq!(session.query("select 1").codes(), ["57P01"]);
    assert_eq!(session.exchange(&[parse("mine", "select 'known'"), sync()]).shape(), "EZ");
    assert_eq!(session.query("rollback").status(), 'I');
    let run = [parse("mine", "select 'known'"), bind("", "mine", &[]), execute("", 0), sync()];
    session.exchange(&run).expect_no_error();
}

#[test]
fn a_lost_parse_has_given_no_name() {
    let (server, gate) = stage();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    session.send(&query("select pg_sleep(60)"));
    session.send(&[parse("q", "select 1"), sync()].concat());
    end_sleeper(&server);
    assert_eq!(session.reply().codes(), ["57P01"]);
    assert_eq!(session.reply().shape(), "EZ");
    assert_eq!(session.query("rollback").status(), 'I');
    let run = [parse("q", "select 2"), bind("", "q", &[]), execute("", 0), sync()];
    assert_eq!(session.exchange(&run).rows(), [[Some("2".to_owned())]]);
}

/// What is lost with a transaction needs no leave to pin any more.
#[test]
fn a_lost_pin_is_free_for_others() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(3_000).start();
    let mut session = gate.client();
    session.query("begin").expect_no_error();
    session.query("create temp table mine (n int)").expect_no_error();
    let pid = session.backend();
    end_backend(&server, &pid);
    assert_eq!(session.query("select 1").codes(), ["57P01"]);
    gate.client().query("create temp table mine (n int)").expect_no_error();
    assert_eq!(session.query("rollback").status(), 'I');
}
