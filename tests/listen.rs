//! LISTEN over a transaction pool: one server connection listens for all sessions, and each hears what it would hear over
//! a connection of its own: everything, once, in order, and nothing more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "random/chance.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test uses its own part")]
mod chance;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use chance::Chance;
use support::eventually;
use support::pg::{Connection, Frame, Login, Reply, bind, execute, parse, query, sync};
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

/// The backend of the hub, whose latest words were to listen to `channel`.
fn hub_backend(server: &Postgres, channel: &str) -> i32 {
    let sql = format!(
        "select coalesce(max(pid), 0) from pg_stat_activity where query = 'LISTEN \"{channel}\";'"
    );
    let mut boss = server.superuser();
    eventually("the hub listens", || {
        let pid: i32 = boss.one(&sql).parse().unwrap();
        (pid != 0).then_some(pid)
    })
}

fn waiting(gate: &Tidegate) -> f64 {
    gate.postgres_metric("tidegate_clients", &[("state", "waiting")])
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

/// Says numbers on `news` until it is told to stop.
struct Speaker {
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Speaker {
    fn start(server: &Postgres) -> Self {
        let mut speaker = server.direct();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            for n in 0_u64.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                speaker.query(&format!("notify news, '{n}'")).expect_no_error();
            }
        });
        Self { done, thread }
    }

    fn stop(self) {
        self.done.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// What `session` hears on `news` until the end is said, behind what it has heard `already`.
fn until_the_end(session: &mut Connection, mut already: Vec<String>) -> Vec<String> {
    while already.last().is_none_or(|word| word != "end") {
        already.push(next(session).1);
    }
    already
}

/// Each session says a word of its own with its LISTEN: where a witness hears that, the session begins to hear. The server
/// may bring it a few words before that, which were being said meanwhile.
#[test]
fn nothing_is_lost_and_nothing_comes_twice_while_the_hub_takes_over() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut first = client(&gate);
    first.query("listen other").expect_no_error();
    let mut witness = server.direct();
    witness.query("listen news").expect_no_error();
    let speaker = Speaker::start(&server);
    let mut sessions = Vec::new();
    for n in 0..12 {
        let mut session = client(&gate);
        let reply = session.query(&format!("listen news; notify news, 'session {n}'"));
        reply.expect_no_error();
        // Whatever came with the answer belongs to it.
        sessions.push((session, words_of(&reply)));
    }
    settle(&gate);
    speaker.stop();
    server.direct().query("notify news, 'end'").expect_no_error();
    let said = until_the_end(&mut witness, Vec::new());
    for (n, (mut session, early)) in sessions.into_iter().enumerate() {
        let all = until_the_end(&mut session, early);
        let own = format!("session {n}");
        assert!(all.contains(&own), "{own} hears {:?} first", all[0]);
        let pairs = all.iter().rev().zip(said.iter().rev());
        let other = pairs.clone().find(|(heard, said)| heard != said);
        assert_eq!((other, pairs.len()), (None, all.len()), "{own}, from the end");
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
    // As it was before: on none of the connections anything is heard any more.
    let mut holders = [client(&gate), client(&gate), client(&gate)];
    for holder in &mut holders {
        holder.query("begin").expect_no_error();
        assert_eq!(holder.one("select count(*) from pg_listening_channels()"), "0");
    }
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
    let hub = hub_backend(&server, "news");
    assert_eq!(boss.one(&format!("select pg_terminate_backend({hub})")), "t");
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
        server.direct().query("notify news, 'é'").expect_no_error();
        let payload = if encoding == "LATIN1" { &b"\xe9"[..] } else { "é".as_bytes() };
        assert_eq!(session.frame().body[4..], [&b"news\0"[..], payload, b"\0"].concat());
        let active = gate.postgres_metric("tidegate_clients", &[("state", "active")]);
        assert_eq!(active, 1.0, "it is the session that keeps it");
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

/// A pool of two, one of them the hub's, which listens to `a` for the session.
fn before_the_hub() -> (Postgres, Tidegate, Connection, i32) {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(15_000).start();
    let mut session = client(&gate);
    session.query("listen a").expect_no_error();
    settle(&gate);
    let hub = hub_backend(&server, "a");
    (server, gate, session, hub)
}

/// The hub is lost while it is about to listen for a session: the handover goes on, and nothing waits for ever.
#[test]
fn a_hub_lost_in_the_middle_of_a_handover_is_replaced() {
    let (server, gate, mut session, hub) = before_the_hub();
    // Its LISTEN gets no answer.
    let stopped = Pid::from_raw(hub).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    session.query("listen b").expect_no_error();
    // Whoever waits already gets the next connection: the hub has to wait until the session gives its own back.
    let mut queued = client(&gate);
    queued.send(&query("begin"));
    eventually("it waits", || (waiting(&gate) == 1.0).then_some(()));
    let mut boss = server.superuser();
    assert_eq!(boss.one(&format!("select pg_terminate_backend({hub})")), "t");
    kill_process(stopped, Signal::CONT).unwrap();
    queued.reply().expect_no_error();
    assert_eq!(session.frame().kind(), 'N', "one gap is stated once");
    boss.query("notify b, 'x'; notify a, 'y'").expect_no_error();
    assert_eq!(next(&mut session), pair("b", "x"));
    assert_eq!(next(&mut session), pair("a", "y"));
    queued.query("commit").expect_no_error();
    settle(&gate);
}

/// A LISTEN while the hub has no connection, nor can get one before the session gives its own back.
#[test]
fn a_session_does_not_keep_the_connection_that_the_hub_waits_for() {
    let (server, gate, mut session, hub) = before_the_hub();
    session.query("begin").expect_no_error();
    let mut queued = client(&gate);
    queued.send(&query("begin"));
    eventually("it waits", || (waiting(&gate) == 1.0).then_some(()));
    let mut boss = server.superuser();
    assert_eq!(boss.one(&format!("select pg_terminate_backend({hub})")), "t");
    queued.reply().expect_no_error();
    session.query("listen b").expect_no_error();
    session.query("commit").expect_no_error();
    assert_eq!(session.frame_within(Duration::from_secs(10)).expect("the gap").kind(), 'N');
    boss.query("notify b, 'x'; notify a, 'y'").expect_no_error();
    assert_eq!(next(&mut session), pair("b", "x"));
    assert_eq!(next(&mut session), pair("a", "y"));
    queued.query("commit").expect_no_error();
}

/// A rollback takes back what the transaction did not want to hear any more, and nothing that comes behind it.
#[test]
fn an_unlisten_behind_a_rollback_counts() {
    let (server, gate, mut session, _) = before_the_hub();
    session.query("begin; listen b; rollback; unlisten *; select 1").expect_no_error();
    session.query("listen c").expect_no_error();
    settle(&gate);
    server.direct().query("notify a, 'not any more'; notify c, 'yes'").expect_no_error();
    assert_eq!(next(&mut session), pair("c", "yes"));
    session.query("begin; unlisten c; rollback").expect_no_error();
    server.direct().query("notify c, 'still'").expect_no_error();
    assert_eq!(next(&mut session), pair("c", "still"));
}

/// An UNLISTEN that the server refused to parse takes nothing away, at once and later.
#[test]
fn an_unlisten_that_never_ran_does_not_count() {
    let (server, gate, mut session, _) = before_the_hub();
    let mut speaker = server.direct();
    for round in 0..50 {
        let text = round.to_string();
        speaker.query(&format!("notify a, '{text}'")).expect_no_error();
        let name = format!("s{round}");
        session.send(
            &[
                parse(&name, "unlisten a; select 1/0"),
                bind("", &name, &[]),
                execute("", 0),
                execute("", 0),
                sync(),
            ]
            .concat(),
        );
        let reply = session.reply();
        assert_eq!(reply.errors()[0].code, "42601");
        let early = reply.frames.iter().find(|frame| frame.kind() == 'A').map(heard);
        assert_eq!(early.unwrap_or_else(|| next(&mut session)), pair("a", &text));
    }
    settle(&gate);
}

#[test]
fn who_leaves_notifications_unread_is_sent_away() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 2);
    let mut session = client(&gate);
    session.query("listen news").expect_no_error();
    settle(&gate);
    let before = gate.resident_kib();
    let mut speaker = server.direct();
    for n in 0..4 {
        let many = format!(
            "select count(pg_notify('news', '{n}' || n || repeat('x', 7900))) from generate_series(1, 1000) n"
        );
        assert_eq!(speaker.one(&many), "1000");
    }
    speaker.query("notify proof").expect_no_error();
    let mut witness = client(&gate);
    witness.query("listen news").expect_no_error();
    settle(&gate);
    speaker.query("notify news, 'behind all'").expect_no_error();
    assert_eq!(next(&mut witness), pair("news", "behind all"));
    let grown = gate.resident_kib().saturating_sub(before);
    assert!(grown < 16_000, "{grown} KiB are kept for one that reads nothing");
    let words = session.last_words();
    let told = words.iter().rev().find(|frame| frame.tag == b'E').map(Frame::refusal);
    let told = told.expect("an error that says why");
    assert_eq!((told.severity.as_str(), told.code.as_str()), ("FATAL", "53400"));
    gate.assert_alive();
}

/// Both connections hear a channel for a while each time.
#[test]
fn who_listens_again_hears_everything_once() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut session = client(&gate);
    session.query("listen news").expect_no_error();
    settle(&gate);
    session.query("begin; listen news; notify news, '-1'; commit").expect_no_error();
    let port = server.port();
    let done = Arc::new(AtomicBool::new(false));
    let speaks = Arc::clone(&done);
    let speaker = std::thread::spawn(move || {
        let mut speaker = Connection::open(port, &Login::app());
        let mut said = 0;
        while !speaks.load(Ordering::SeqCst) {
            speaker.query(&format!("notify news, '{said}'")).expect_no_error();
            said += 1;
        }
        said - 1
    });
    let mut all = Vec::new();
    let mut hear = |frame: &Frame| all.push(heard(frame).1.parse::<i64>().unwrap());
    for _ in 0..100 {
        let reply = session.query("listen news");
        reply.frames.iter().filter(|frame| frame.tag == b'A').for_each(&mut hear);
        let until = Instant::now() + Duration::from_millis(5);
        while Instant::now() < until
            && let Some(frame) = session.frame_within(Duration::from_millis(5))
        {
            hear(&frame);
        }
    }
    done.store(true, Ordering::SeqCst);
    let last: i64 = speaker.join().unwrap();
    settle(&gate);
    while let Some(frame) = session.frame_within(SILENCE) {
        hear(&frame);
    }
    assert_eq!(all, (-1..=last).collect::<Vec<_>>());
}

#[test]
fn the_hub_hears_no_more_what_nobody_wants_to_hear() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let [mut session, mut witness] = [client(&gate), client(&gate)];
    session.query("listen a; listen b").expect_no_error();
    witness.query("listen a").expect_no_error();
    settle(&gate);
    // What came before the end of the transaction is no longer wanted either.
    session.query("begin; unlisten a").expect_no_error();
    server.direct().query("notify a, 'x'; notify b, 'y'").expect_no_error();
    assert_eq!(next(&mut witness), pair("a", "x"));
    session.send(&query("commit"));
    let end = session.frames_until('Z');
    assert!(end.iter().all(|frame| frame.tag != b'A' || heard(frame).0 == "b"), "{end:?}");
    if end.iter().all(|frame| frame.tag != b'A') {
        assert_eq!(next(&mut session), pair("b", "y"));
    }
    assert!(session.frame_within(SILENCE).is_none());
    witness.query("unlisten a").expect_no_error();
    let mut boss = server.superuser();
    eventually("the hub is told to listen no more", || {
        let told = "select count(*) from pg_stat_activity where query = 'UNLISTEN \"a\";'";
        (boss.one(told) == "1").then_some(())
    });
}

/// What a session does that never ceases to listen to `news`, by writes: the queries of one go out together.
const WAYS: [&[&[&str]]; 10] = [
    &[&["listen news"]],
    &[&["listen other"]],
    &[&["unlisten other"]],
    &[&["unlisten *; listen news"]],
    &[&["begin; listen news; rollback"]],
    &[&["begin", "unlisten news", "listen news", "commit"]],
    &[&["begin"], &["unlisten news; listen news"], &["commit"]],
    &[&["listen other", "select 1"], &["begin", "unlisten other"], &["rollback"]],
    &[&["begin; create temp table t (n int) on commit drop"], &["listen news"], &["commit"]],
    &[&["create temp table t (n int)"], &["listen news"], &["drop table t"]],
];

/// The payloads of the notifications that come with a reply.
fn words_of(reply: &Reply) -> Vec<String> {
    let told = reply.frames.iter().filter(|frame| frame.tag == b'A');
    told.map(|frame| heard(frame).1).collect()
}

fn go(session: &mut Connection, way: &[&[&str]], heard_here: &mut Vec<String>) {
    for write in way {
        let queries: Vec<_> = write.iter().map(|words| query(words)).collect();
        session.send(&queries.concat());
        for _ in *write {
            let reply = session.reply();
            reply.expect_no_error();
            heard_here.extend(words_of(&reply));
        }
    }
}

/// `TIDEGATE_RANDOM_SCRIPTS` makes it go on for longer, `TIDEGATE_RANDOM_SEED` another way.
#[test]
fn who_never_ceases_to_listen_hears_everything_once() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let mut chance = Chance::new(number("TIDEGATE_RANDOM_SEED").unwrap_or(0));
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 4);
    let mut witness = server.direct();
    witness.query("listen news").expect_no_error();
    let mut sessions: Vec<_> = (0..4).map(|_| (client(&gate), Vec::new())).collect();
    for (n, (session, all)) in sessions.iter_mut().enumerate() {
        go(session, &[&[&format!("listen news; notify news, 'session {n}'")]], all);
    }
    let speaker = Speaker::start(&server);
    for _ in 0..number("TIDEGATE_RANDOM_SCRIPTS").unwrap_or(60) {
        for (session, all) in &mut sessions {
            go(session, WAYS[chance.below(WAYS.len())], all);
            if chance.often(20) {
                session.send(&query("select pg_sleep(0.005)"));
                session.cancel();
                all.extend(words_of(&session.reply()));
            }
            let pause = Duration::from_micros(500) * (1 + u32::try_from(chance.below(7)).unwrap());
            let until = Instant::now() + pause;
            while Instant::now() < until
                && let Some(frame) = session.frame_within(pause)
            {
                all.push(heard(&frame).1);
            }
        }
    }
    speaker.stop();
    settle(&gate);
    server.direct().query("notify news, 'end'").expect_no_error();
    let said = until_the_end(&mut witness, Vec::new());
    for (n, (mut session, early)) in sessions.into_iter().enumerate() {
        let all = until_the_end(&mut session, early);
        let begins = said.iter().position(|word| *word == format!("session {n}")).unwrap();
        let other = all.iter().zip(&said[begins..]).find(|(heard, said)| heard != said);
        assert_eq!((other, all.len()), (None, said.len() - begins), "session {n}");
    }
}

/// The hub hears so late of a handover that the session listens anew meanwhile.
#[test]
fn a_marker_that_comes_late_is_not_the_next_ones() {
    let (server, gate, mut other, hub) = before_the_hub();
    let hub = Pid::from_raw(hub).unwrap();
    kill_process(hub, Signal::STOP).unwrap();
    let mut session = client(&gate);
    for words in ["listen a", "unlisten a", "begin; listen a; notify a, 'x'; commit"] {
        let reply = session.query(words);
        reply.expect_no_error();
        let early = reply.frames.iter().filter(|frame| frame.tag == b'A').map(heard);
        let own = if words.contains("notify") { vec![pair("a", "x")] } else { vec![] };
        assert_eq!(early.collect::<Vec<_>>(), own);
        settle(&gate);
    }
    kill_process(hub, Signal::CONT).unwrap();
    server.direct().query("notify a, 'y'").expect_no_error();
    assert_eq!([next(&mut other), next(&mut other)], [pair("a", "x"), pair("a", "y")]);
    assert_eq!(next(&mut session), pair("a", "y"), "x was heard");
}

/// What the hub hears for the session already the session's own connection brings, too, in between.
#[test]
fn who_listens_no_more_and_again_at_once_hears_everything_once() {
    let (server, gate, mut session, hub) = before_the_hub();
    let hub = Pid::from_raw(hub).unwrap();
    for words in ["unlisten a|listen a; notify a, 'x'", "unlisten *; listen a; notify a, 'x'"] {
        kill_process(hub, Signal::STOP).unwrap();
        let mut heard_early = Vec::new();
        // At once: where the first is over before the second comes, the hub is asked again, and it is stopped.
        session.send(&words.split('|').map(query).collect::<Vec<_>>().concat());
        for _ in words.split('|') {
            let reply = session.reply();
            reply.expect_no_error();
            heard_early.extend(reply.frames.iter().filter(|frame| frame.tag == b'A').map(heard));
        }
        settle(&gate);
        kill_process(hub, Signal::CONT).unwrap();
        server.direct().query("notify a, 'y'").expect_no_error();
        while heard_early.last() != Some(&pair("a", "y")) {
            heard_early.push(next(&mut session));
        }
        assert_eq!(heard_early, [pair("a", "x"), pair("a", "y")], "{words}");
    }
}

/// On the server a transaction that ends with the LISTEN it began without has missed nothing.
#[test]
fn what_is_said_in_a_transaction_that_listens_again_is_heard() {
    let (server, gate, mut session, _) = before_the_hub();
    let mut witness = client(&gate);
    witness.query("listen a").expect_no_error();
    settle(&gate);
    for unlisten in ["unlisten a", "unlisten *"] {
        session.query("begin").expect_no_error();
        session.query(unlisten).expect_no_error();
        server.direct().query("notify a, 'x'").expect_no_error();
        assert_eq!(next(&mut witness), pair("a", "x"));
        session.query("listen a").expect_no_error();
        session.send(&query("commit"));
        let reply = session.reply();
        reply.expect_no_error();
        let early = reply.frames.iter().find(|frame| frame.tag == b'A').map(heard);
        assert_eq!(early.unwrap_or_else(|| next(&mut session)), pair("a", "x"));
        settle(&gate);
        server.direct().query("notify a, 'y'").expect_no_error();
        assert_eq!([next(&mut session), next(&mut witness)], [pair("a", "y"), pair("a", "y")]);
    }
}

/// The session's own connection brings what comes before the handover, wherever the hub is meanwhile.
#[test]
fn a_hub_that_comes_back_during_a_handover_brings_nothing_twice() {
    let (server, gate, mut session, hub) = before_the_hub();
    let stopped = Pid::from_raw(hub).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    session.query("listen b").expect_no_error();
    session.query("begin").expect_no_error();
    let mut boss = server.superuser();
    assert_eq!(boss.one(&format!("select pg_terminate_backend({hub})")), "t");
    kill_process(stopped, Signal::CONT).unwrap();
    eventually("the hub is back", || gate.output().contains("listening again").then_some(()));
    boss.query("notify b, 'x'").expect_no_error();
    session.send(&query("commit"));
    let mut all: Vec<_> = session.frames_until('Z');
    all.push(session.frame());
    settle(&gate);
    boss.query("notify b, 'y'").expect_no_error();
    all.retain(|frame| frame.tag == b'A');
    let mut all: Vec<_> = all.iter().map(heard).collect();
    while all.last() != Some(&pair("b", "y")) {
        all.push(next(&mut session));
    }
    assert_eq!(all, [pair("b", "x"), pair("b", "y")]);
}

/// The server would not say what the session listens to: nothing that was known before is a handover's.
#[test]
fn a_channel_that_the_server_did_not_tell_of_is_not_lost() {
    let (server, gate, mut session, hub) = before_the_hub();
    let hub = Pid::from_raw(hub).unwrap();
    kill_process(hub, Signal::STOP).unwrap();
    session.query("listen b").expect_no_error();
    let mut boss = server.superuser();
    let question = "execute on function pg_catalog.pg_listening_channels()";
    boss.query(&format!("revoke {question} from public")).expect_no_error();
    session.query("listen c").expect_no_error();
    assert_eq!(session.one("select 1"), "1");
    boss.query(&format!("grant {question} to public")).expect_no_error();
    kill_process(hub, Signal::CONT).unwrap();
    for channel in ["a", "b", "c"] {
        boss.query(&format!("notify {channel}, 'x'")).expect_no_error();
        assert_eq!(next(&mut session), pair(channel, "x"));
    }
    session.query("listen d").expect_no_error();
    settle(&gate);
    for channel in ["a", "b", "c", "d"] {
        boss.query(&format!("notify {channel}, 'y'")).expect_no_error();
        assert_eq!(next(&mut session), pair(channel, "y"));
    }
}

/// What the client asks for while its session is handed over comes behind that.
#[test]
fn a_listen_in_the_middle_of_a_handover_is_kept() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut session = client(&gate);
    let mut speaker = server.direct();
    for n in 0..60_u32 {
        session.query(&format!("listen c{n}")).expect_no_error();
        // At any moment of the handover.
        std::thread::sleep(Duration::from_micros(u64::from(n % 20) * 250));
    }
    settle(&gate);
    for n in 0..60 {
        speaker.query(&format!("notify c{n}")).expect_no_error();
        assert_eq!(next(&mut session).0, format!("c{n}"));
    }
}

/// The hub has given its connection back by the time the transaction with the LISTEN ends.
#[test]
fn a_listen_that_ends_late_is_handed_over_on_the_smallest_pool() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(15_000).start();
    let mut session = client(&gate);
    session.query("begin").expect_no_error();
    session.query("listen a").expect_no_error();
    eventually("the hub gives its connection back", || {
        let pinned = gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")]);
        (pinned == 0.0).then_some(())
    });
    session.query("commit").expect_no_error();
    settle(&gate);
    server.direct().query("notify a, 'x'").expect_no_error();
    assert_eq!(next(&mut session), pair("a", "x"));
}

/// Nobody waits long for the connection that listened for sessions which listen no more.
#[test]
fn who_waits_gets_the_connection_that_nobody_listens_on() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(3_000).start();
    let mut session = client(&gate);
    session.query("listen news").expect_no_error();
    settle(&gate);
    session.query("unlisten news").expect_no_error();
    session.query("begin").expect_no_error();
    assert_eq!(client(&gate).one("select 1"), "1");
}

/// While the hub is about to listen, the server is asked about something else that the session may have left.
#[test]
fn what_else_is_asked_takes_no_channel_away() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut session = client(&gate);
    session.query("listen a").expect_no_error();
    settle(&gate);
    let hub = Pid::from_raw(hub_backend(&server, "a")).unwrap();
    kill_process(hub, Signal::STOP).unwrap();
    session.query("listen b").expect_no_error();
    session.query("begin; create temp table t () on commit drop; commit").expect_no_error();
    session.query("select 1").expect_no_error();
    kill_process(hub, Signal::CONT).unwrap();
    settle(&gate);
    server.direct().query("notify b, 'x'").expect_no_error();
    assert_eq!(next(&mut session), pair("b", "x"));
}

/// Leave to listen is no leave to pin.
#[test]
fn who_may_listen_may_not_pin_the_last_connection() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(3).wait_ms(1_500).start();
    let [mut session, mut pinned, mut listens] = [client(&gate), client(&gate), client(&gate)];
    pinned.query("create temp table mine (n int)").expect_no_error();
    listens.query("listen other").expect_no_error();
    session.query("begin").expect_no_error();
    session.query("listen news").expect_no_error();
    session.send(&query("create temp table mine (n int)"));
    let words = session.last_words();
    let told = words.last().map(Frame::refusal).unwrap_or_default();
    assert_eq!((told.severity.as_str(), told.code.as_str()), ("FATAL", "53300"), "{words:?}");
    assert_eq!(client(&gate).one("select 1"), "1");
}

/// Nothing can listen there, and nobody may try for ever.
#[test]
fn a_standby_refuses_listen_in_its_own_words() {
    let server = Postgres::standby();
    let gate = Setup::new().postgres(&server).pool_size(3).wait_ms(20_000).start();
    let mut session = client(&gate);
    for _ in 0..3 {
        assert_eq!(session.query("listen news").codes(), ["25006"]);
        assert_eq!(session.one("select pg_is_in_recovery()"), "t");
    }
    settle(&gate);
    let closed = gate.page().sum("tidegate_server_closed_total", &[("protocol", "postgres")]);
    assert!(closed == 0.0, "{closed} connections were closed");
}
