//! LISTEN over a transaction pool: one server connection listens for all sessions, and each hears what it would hear over
//! a connection of its own: everything, once, in order, and nothing more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::eventually;
use support::pg::{Connection, Frame, Login, bind, execute, parse, query, sync};
use support::postgres::Postgres;
use support::tidegate::{Setup, Tidegate};

/// Long enough for a notification that must not come.
const SILENCE: Duration = Duration::from_millis(300);

fn client(gate: &Tidegate) -> Connection {
    let login = Login::app().with("client_encoding", "UTF8");
    Connection::open(gate.postgres_port(), &login)
}

/// Channel and payload of a notification.
fn heard(frame: &Frame) -> (String, String) {
    assert_eq!(frame.kind(), 'A', "{frame:?}");
    let mut fields = frame.body[4..].split(|byte| *byte == 0);
    let mut field = || String::from_utf8(fields.next().unwrap().to_vec()).unwrap();
    (field(), field())
}

fn next(session: &mut Connection) -> (String, String) {
    heard(&session.frame())
}

fn pair(channel: &str, payload: &str) -> (String, String) {
    (channel.to_owned(), payload.to_owned())
}

/// Waits until the hub has taken over: the session holds no connection.
fn settle(gate: &Tidegate) {
    eventually("only the hub keeps a connection", || {
        let active = gate.postgres_metric("tidegate_clients", &[("state", "active")]);
        let pinned = gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")]);
        (active == 0.0 && pinned <= 1.0).then_some(())
    });
}

#[test]
fn many_sessions_listen_over_one_connection() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut sessions: Vec<Connection> = (0..50).map(|_| client(&gate)).collect();
    for (n, session) in sessions.iter_mut().enumerate() {
        session.query("listen news").expect_no_error();
        session.query(&format!("listen \"only {n}\"")).expect_no_error();
    }
    settle(&gate);
    assert_eq!(gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")]), 1.0);
    let mut speaker = client(&gate);
    for n in 0..1000 {
        speaker.query(&format!("notify news, '{n}'")).expect_no_error();
    }
    speaker.query("notify \"only 7\", 'seven'").expect_no_error();
    for (n, session) in sessions.iter_mut().enumerate() {
        for expected in 0..1000 {
            assert_eq!(next(session), pair("news", &expected.to_string()));
        }
        if n == 7 {
            assert_eq!(next(session), pair("only 7", "seven"));
        }
        assert_eq!(session.one("select 1"), "1");
    }
    let open = server.sessions_of("app");
    assert!(open <= 3, "{open} server connections");
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice_while_the_hub_takes_over() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut first = client(&gate);
    first.query("listen other").expect_no_error();
    let port = server.port();
    let done = Arc::new(AtomicBool::new(false));
    let heard_all = Arc::clone(&done);
    let speaker = std::thread::spawn(move || {
        let mut speaker = Connection::open(port, &Login::app());
        let mut said = 0;
        while said < 1000 || !heard_all.load(Ordering::SeqCst) {
            speaker.query(&format!("notify news, '{said}'")).expect_no_error();
            said += 1;
        }
        said - 1
    });
    let mut sessions = Vec::new();
    for _ in 0..12 {
        let mut session = client(&gate);
        let reply = session.query("listen news");
        reply.expect_no_error();
        // Whatever came with the answer belongs to it.
        let early: Vec<_> =
            reply.frames.iter().filter(|frame| frame.tag == b'A').map(heard).collect();
        sessions.push((session, early));
    }
    settle(&gate);
    done.store(true, Ordering::SeqCst);
    let last: u64 = speaker.join().unwrap();
    for (session, early) in &mut sessions {
        let mut all: Vec<u64> = early.iter().map(|(_, n)| n.parse().unwrap()).collect();
        while all.last() != Some(&last) {
            all.push(next(session).1.parse().unwrap());
        }
        let expected: Vec<u64> = (all[0]..=last).collect();
        assert_eq!(all, expected);
        assert!(session.frame_within(Duration::from_millis(20)).is_none());
    }
}

#[test]
fn a_transaction_decides_what_is_listened_to() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut session = client(&gate);
    let mut speaker = client(&gate);
    let mut silent = |session: &mut Connection, channel: &str| {
        settle(&gate);
        speaker.query(&format!("notify {channel}, 'x'; notify proof, 'y'")).expect_no_error();
        next(session) == pair("proof", "y")
    };
    session.query("listen proof").expect_no_error();

    for sql in ["begin", "listen a", "rollback"] {
        session.query(sql).expect_no_error();
    }
    assert!(silent(&mut session, "a"), "rolled back");
    for sql in ["begin", "listen a", "commit"] {
        session.query(sql).expect_no_error();
    }
    assert!(!silent(&mut session, "a"), "committed");
    assert_eq!(next(&mut session), pair("proof", "y"));
    for sql in ["begin", "unlisten a", "rollback"] {
        session.query(sql).expect_no_error();
    }
    assert!(!silent(&mut session, "a"), "still listened to");
    assert_eq!(next(&mut session), pair("proof", "y"));
    assert_eq!(session.query("unlisten a; select 1/0").codes(), ["22012"]);
    assert!(!silent(&mut session, "a"), "the error took it back");
    assert_eq!(next(&mut session), pair("proof", "y"));
    session.send(&[query("select 1/0"), query("unlisten a")].concat());
    assert_eq!(session.reply().codes(), ["22012"]);
    session.reply().expect_no_error();
    assert!(silent(&mut session, "a"), "an error before it does not");
    session.query("listen a").expect_no_error();
    for sql in ["begin", "unlisten a", "commit"] {
        session.query(sql).expect_no_error();
    }
    assert!(silent(&mut session, "a"), "no more");
    session.exchange(&[parse("", "listen \"A.b\""), bind("", "", &[]), execute("", 0), sync()]);
    assert!(!silent(&mut session, "\"A.b\""), "by the extended protocol");
    assert_eq!(next(&mut session), pair("proof", "y"));
    session.query("unlisten *; listen proof").expect_no_error();
    assert!(silent(&mut session, "\"A.b\""), "all but one");
    session.query("discard all").expect_no_error();
    settle(&gate);
    speaker.query("notify proof, 'z'").expect_no_error();
    assert!(session.frame_within(SILENCE).is_none(), "nothing is listened to");
    eventually("the hub gives its connection back", || {
        let pinned = gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")]);
        (pinned == 0.0).then_some(())
    });
}

#[test]
fn what_a_session_notifies_itself_and_what_is_long_comes_whole() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut session = client(&gate);
    session.query("listen \"Grüße 'n\\\"").expect_no_error();
    settle(&gate);
    let long = "ü".repeat(3900);
    session.query(&format!("select pg_notify('Grüße ''n\\', '{long}')")).expect_no_error();
    assert_eq!(next(&mut session), pair("Grüße 'n\\", &long));
    // Not inside a transaction, but at its end.
    session.query("begin").expect_no_error();
    session.query("select pg_notify('Grüße ''n\\', 'own')").expect_no_error();
    assert_eq!(session.query("select 1").shape(), "TDCZ");
    session.send(&query("commit"));
    let mut kinds = String::new();
    while kinds.len() < 3 {
        kinds.push(session.frame().kind());
    }
    assert!(["CZA", "CAZ"].contains(&kinds.as_str()), "{kinds}");
}

#[test]
fn a_lost_listening_connection_is_replaced_and_the_gap_is_stated() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut session = client(&gate);
    session.query("listen news").expect_no_error();
    settle(&gate);
    let mut boss = server.superuser();
    // The pool's own connection is idle in both cases: the one that said LISTEN last for the hub is it.
    let killed = boss.one(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'app' and query like '%LISTEN%'",
    );
    assert_ne!(killed, "0");
    let gap = session.frame();
    assert_eq!(gap.kind(), 'N', "{gap:?}");
    assert!(gap.refusal().message.contains("may have been missed"), "{gap:?}");
    boss.query("notify news, 'again'").expect_no_error();
    assert_eq!(next(&mut session), pair("news", "again"));
    assert_eq!(gate.postgres_metric("tidegate_listen_losses_total", &[]), 1.0);
    assert!(gate.output().contains("the listening connection is lost"), "{}", gate.output());
}

#[test]
fn who_can_not_share_keeps_a_connection() {
    let server = Postgres::start();
    for (size, encoding) in [("1", "UTF8"), ("2", "LATIN1")] {
        let setup = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_POOL_SIZE", size);
        let gate = setup.start();
        let login = Login::app().with("client_encoding", encoding);
        let mut session = Connection::open(gate.postgres_port(), &login);
        session.query("listen news").expect_no_error();
        eventually("its connection is pinned", || {
            let pinned =
                gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")]);
            (pinned == 1.0).then_some(())
        });
        server.direct().query("notify news, 'here'").expect_no_error();
        assert_eq!(next(&mut session), pair("news", "here"));
    }
}

#[test]
fn a_session_that_goes_is_forgotten() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut stays = client(&gate);
    stays.query("listen news").expect_no_error();
    for round in 0..20 {
        let mut goes = client(&gate);
        goes.query("listen news").expect_no_error();
        goes.query("listen other").expect_no_error();
        if round % 2 == 0 {
            goes.hang_up();
        }
    }
    settle(&gate);
    let mut speaker = client(&gate);
    speaker.query("notify other, 'x'; notify news, 'y'").expect_no_error();
    assert_eq!(next(&mut stays), pair("news", "y"));
    assert!(server.sessions_of("app") <= 2);
}
