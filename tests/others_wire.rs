//! Bugs that other poolers shipped in what travels on the wire: pipelines, prepared statements, COPY, cancel. One test
//! each, named by what must not happen; its comment says whose bug it was and what went wrong there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::eventually;
use support::pg::{
    Connection, Frame, Login, bind, close_statement, copy_data, copy_done, describe_portal,
    describe_statement, execute, flush, parse, query, sync,
};
use support::postgres::Postgres;
use support::stage::Stage;
use support::tidegate::{Setup, Tidegate};

/// One thing that a client does.
enum Step {
    Send(Vec<u8>),
    /// Reads until a frame of this kind has come.
    Until(char),
}
use Step::{Send, Until};

/// A statement prepared, bound and run, without its end.
fn run(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[]), describe_portal(""), execute("", 0)].concat()
}

/// The named statement bound and run, without its end.
fn run_named(name: &str) -> Vec<u8> {
    [bind("", name, &[]), execute("", 0)].concat()
}

fn ask(parts: &[Vec<u8>]) -> Vec<Step> {
    vec![Send(parts.concat()), Until('Z')]
}

fn play(port: u16, steps: &[Step]) -> Vec<Frame> {
    let mut client = Connection::open(port, &Login::app());
    let mut frames = Vec::new();
    for step in steps {
        match step {
            Send(bytes) => client.send(bytes),
            Until(kind) => frames.extend(client.frames_until(*kind)),
        }
    }
    frames
}

/// The steps bring the same frames over one shared connection, with a hungry client behind, as directly.
fn assert_alike(server: &Postgres, steps: &[Vec<Step>]) {
    let gate = Tidegate::before(server, 1);
    with_crowd(&gate, || {
        for steps in steps {
            let direct = play(server.port(), steps);
            for _ in 0..3 {
                let pooled = play(gate.postgres_port(), steps);
                let neutral =
                    |frames: &[Frame]| frames.iter().map(Frame::neutral).collect::<Vec<_>>();
                assert_eq!(neutral(&pooled), neutral(&direct));
            }
        }
    });
}

/// Runs `work` while another client asks for the same connections all the time, with statements of the same names.
fn with_crowd<T>(gate: &Tidegate, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            let mut client = gate.client();
            while !stop.load(Ordering::Relaxed) {
                let mut flight = vec![parse("s", "select 'crowd'"), run_named("s")];
                flight.extend([close_statement("s"), sync()]);
                let reply = client.exchange(&flight);
                assert_eq!(reply.shape(), "12DC3Z");
                assert_eq!(reply.rows(), [[Some("crowd".to_owned())]]);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        crowd.join().expect("the crowd is served as directly");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn with_config(server: &Postgres, pool_size: usize, lines: &str) -> (tempfile::TempDir, Tidegate) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    std::fs::write(&file, format!("[postgres]\n{lines}\n")).unwrap();
    let gate = Setup::new().postgres(server).pool_size(pool_size).config(&file).start();
    (directory, gate)
}

/// supavisor #1061, supabase #50358: the first ReadyForQuery of a pipeline gave the connection back, and the replies to
/// the later transactions were dropped, so that the client waited for ever.
#[test]
fn no_reply_of_a_pipeline_is_dropped() {
    let server = Postgres::start();
    let of_psql = [
        run("select 1 as a"),
        sync(),
        run("select 'slept' from pg_sleep(0.1)"),
        sync(),
        run("select 2 as a"),
        sync(),
    ];
    let twenty: Vec<_> = (0..20).map(|n| [run(&format!("select {n}")), sync()].concat()).collect();
    assert_alike(
        &server,
        &[
            vec![Send(of_psql.concat()), Until('Z'), Until('Z'), Until('Z')],
            std::iter::once(Send(twenty.concat())).chain((0..20).map(|_| Until('Z'))).collect(),
        ],
    );
}

/// pgbouncer #759: an error, then the next flight while its Sync was still being answered: the connection was given back
/// in between, and the flight went to one that knew nothing of it.
#[test]
fn a_failed_flight_frees_no_connection_that_the_next_is_on() {
    let server = Postgres::start();
    let failing = [parse("", "select 1 / $1::int"), bind("", "", &["0"]), execute("", 0), sync()];
    let describing = [parse("q", "select $1::int"), describe_statement("q"), flush()];
    let running = [bind("", "q", &["7"]), execute("", 0), sync()];
    assert_alike(
        &server,
        &[vec![
            Send(failing.concat()),
            Send(describing.concat()),
            Until('Z'),
            Until('T'),
            Send(running.concat()),
            Until('Z'),
        ]],
    );
}

/// pgdog #1508: pipelines were cut behind each Execute, and a Describe behind the last was waited for before its Sync was
/// sent on: both sides stood still, and the connection stayed taken.
#[test]
fn a_describe_behind_the_last_execute_does_not_stand_still() {
    let server = Postgres::start();
    let flight = [
        parse("", "select 1"),
        bind("a", "", &[]),
        execute("a", 0),
        parse("", "select 2"),
        bind("b", "", &[]),
        execute("b", 0),
        describe_portal("b"),
        sync(),
    ];
    assert_alike(&server, &[ask(&flight)]);
}

/// pgdog #999: a statement of the extended protocol behind a simple BEGIN hung for ten seconds.
#[test]
fn extended_queries_behind_a_simple_begin_do_not_hang() {
    let server = Postgres::start();
    let began = Instant::now();
    assert_alike(
        &server,
        &[[
            ask(&[query("BEGIN")]),
            ask(&[parse("", "select $1::int"), describe_statement(""), sync()]),
            ask(&[bind("", "", &["5"]), execute("", 0), sync()]),
            ask(&[query("ROLLBACK")]),
        ]
        .into_iter()
        .flatten()
        .collect()],
    );
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// pgcat PR #951, #953, #396: Flush was no frame it knew, or it read on for a ReadyForQuery that only a Sync brings; who
/// describes first (postgres.js, asyncpg) waited for ever.
#[test]
fn a_flush_is_not_waited_for_until_a_sync() {
    let server = Postgres::start();
    for name in ["", "s"] {
        assert_alike(
            &server,
            &[vec![
                Send([parse(name, "select $1::int"), describe_statement(name), flush()].concat()),
                Until('T'),
                Send([bind("", name, &["3"]), flush()].concat()),
                Until('2'),
                Send([execute("", 0), flush()].concat()),
                Until('C'),
                Send([execute("", 0), sync()].concat()),
                Until('Z'),
            ]],
        );
    }
}

/// odyssey #514: when the server ended a connection the client got the server's error and the pooler's; libpq's pipeline
/// never came out of that.
#[test]
fn a_lost_connection_is_not_told_twice() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut boss = server.superuser();
    let mut session = gate.client();
    session.exchange(&[parse("s", "select pg_sleep($1::int)"), sync()]).expect_no_error();
    let flight = [bind("", "s", &["60"]), describe_portal(""), execute("", 0), sync()];
    // Ended before it sleeps nothing of the flight has run, and it is sent to another backend without a word.
    let asleep = "from pg_stat_activity where wait_event = 'PgSleep'";
    let end = format!("select count(pg_terminate_backend(pid)) {asleep}");
    let left = format!("select count(*) {asleep}");
    for _ in 0..3 {
        // A backend is still listed for a moment after its last word; ending it twice would spare the next one.
        eventually("the one before is gone", || (boss.one(&left) == "0").then_some(()));
        session.send(&flight.concat());
        eventually("the server ends it", || (boss.one(&end) == "1").then_some(()));
        let told = session.reply();
        assert_eq!(told.codes(), ["57P01"]);
        assert_eq!(told.shape().matches(['E', 'Z']).count(), 2, "{told:?}");
        assert_eq!(session.frame_within(Duration::from_millis(50)), None);
        assert_eq!(session.one("select 1"), "1");
    }
    // With more under way it is over, by one error.
    eventually("the one before is gone", || (boss.one(&left) == "0").then_some(()));
    session.send(&[flight.concat(), flight.concat()].concat());
    eventually("the server ends it", || (boss.one(&end) == "1").then_some(()));
    let words = session.last_words();
    assert_eq!(words.iter().filter(|frame| frame.tag == b'E').count(), 1, "{words:?}");
}

/// supavisor #1164, #1172: when a client gave up inside a pipeline its half frame, or its open transaction, stayed on the
/// connection that the next client got.
#[test]
fn a_pipeline_cut_anywhere_leaves_nothing_to_the_next() {
    let server = Postgres::start();
    server.direct().query("create table t (n int)").expect_no_error();
    let gate = Tidegate::before(&server, 1);
    let statement = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    let pipeline = [
        statement("begin"),
        sync(),
        statement("insert into t values (1)"),
        statement("select set_config('work_mem', '9MB', false)"),
        flush(),
        statement("insert into t values (2)"),
        sync(),
        query("rollback"),
    ]
    .concat();
    for cut in (0..=pipeline.len()).step_by(7) {
        let mut victim = gate.client();
        victim.send(&pipeline[..cut]);
        victim.hang_up();
        let mut next = gate.client();
        let began = next.query("begin");
        assert_eq!((began.shape(), began.status()), ("CZ".to_owned(), 'T'), "cut at {cut}");
        assert_eq!(next.one("show work_mem"), "4MB", "cut at {cut}");
        let bound = next.exchange(&[bind("", "", &[]), execute("", 0), sync()]);
        assert_eq!(bound.codes(), ["26000"], "cut at {cut}: another's unnamed statement");
        next.query("rollback").expect_no_error();
    }
    assert_eq!(gate.client().one("select count(*) from t"), "0");
}

/// The same bugs' other half, found here: what was parsed behind a statement that is cancelled because its client has gone
/// is not on the server, whatever was noted when it was sent.
#[test]
fn a_statement_parsed_for_nobody_is_not_taken_for_there() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut victim = gate.client();
    let backend = victim.backend();
    let flight = [run("select pg_sleep(60)"), parse("s", "select 'shared'"), sync()];
    victim.send(&flight.concat());
    let running =
        "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'";
    eventually("it runs", || (server.superuser().one(running) == "1").then_some(()));
    victim.hang_up();
    let mut next = gate.client();
    next.query("begin").expect_no_error();
    assert_eq!(next.backend(), backend);
    next.exchange(&[parse("mine", "select 'shared'"), sync()]).expect_no_error();
    let reply = next.exchange(&[run_named("mine"), sync()]);
    assert_eq!(reply.expect_no_error().rows(), [[Some("shared".to_owned())]]);
}

/// pgbouncer PR #1470: a COPY that the server refused while the client was still sending: what came late (CopyData,
/// CopyDone) left the connection taken for ever.
#[test]
fn a_late_copy_done_keeps_no_connection() {
    let server = Postgres::start();
    server.direct().query("create table t (n int primary key)").expect_no_error();
    let late = [copy_data(b"3\n"), copy_data(b"4\n"), copy_done()];
    let bad = copy_data(b"1\n1\n");
    let copies = |start: Vec<Step>, end: Vec<u8>| {
        let mut steps = start;
        steps.extend([Send([bad.clone(), copy_done()].concat()), Until('E')]);
        steps.extend([Send([late.concat(), end].concat()), Until('Z')]);
        steps
    };
    let simple = || vec![Send(query("copy t from stdin")), Until('G')];
    let by_extended = [parse("", "copy t from stdin"), bind("", "", &[]), execute("", 0), flush()];
    let inside = || {
        let mut steps = ask(&[query("begin")]);
        steps.extend(simple());
        steps
    };
    assert_alike(
        &server,
        &[
            copies(simple(), Vec::new()),
            [copies(simple(), Vec::new()), ask(&[query("select 1")])]
                .into_iter()
                .flatten()
                .collect(),
            [copies(inside(), Vec::new()), ask(&[query("rollback")])]
                .into_iter()
                .flatten()
                .collect(),
            [
                copies(vec![Send(by_extended.concat()), Until('G')], sync()),
                ask(&[query("select 1")]),
            ]
            .into_iter()
            .flatten()
            .collect(),
        ],
    );
}

/// odyssey #554, #564: COPY through a pooler that maps prepared statements: "unexpected message type 0x00", and a named
/// COPY that the connection at hand had never parsed.
#[test]
fn a_prepared_copy_finds_its_statement_on_any_connection() {
    let mut stage = Stage::new();
    stage.server.direct().query("create table t (n int)").expect_no_error();
    let mut session = stage.gate.client();
    session.exchange(&[parse("c", "copy t from stdin"), sync()]).expect_no_error();
    let mut last = session.backend();
    for n in 1..=4 {
        let row = format!("{n}\n");
        (last, ()) = stage.elsewhere(&last, || {
            session.send(&[run_named("c"), flush()].concat());
            assert_eq!(session.frames_until('G').len(), 2);
            let reply = session.exchange(&[copy_data(row.as_bytes()), copy_done(), sync()]);
            assert_eq!(reply.tags(), ["COPY 1"]);
        });
    }
    assert_eq!(session.one("select sum(n) from t"), "10");
}

/// pgbouncer #52: a simple SET and an extended query in one packet: the connection was given back behind the first, and
/// the answers to the second went nowhere.
#[test]
fn a_setting_and_a_query_in_one_packet_are_both_answered() {
    let server = Postgres::start();
    let packet = [query("SET statement_timeout = 30000"), run("show statement_timeout"), sync()];
    assert_alike(&server, &[vec![Send(packet.concat()), Until('Z'), Until('Z')]]);
}

/// odyssey #459: pgjdbc's named BEGIN and the statement behind it travel in one flight; with names shared by clients it was
/// answered "Expected command status BEGIN, got INSERT 0 1".
#[test]
fn a_named_begin_is_not_anothers_insert() {
    let mut stage = Stage::new();
    stage.server.direct().query("create table t (n int)").expect_no_error();
    let mut one = stage.gate.client();
    let mut two = stage.gate.client();
    let first = [parse("S_1", "BEGIN"), run_named("S_1"), parse("S_2", "insert into t values (1)")];
    let flight = [first.concat(), run_named("S_2"), sync()];
    assert_eq!(one.exchange(&flight).tags(), ["BEGIN", "INSERT 0 1"]);
    one.query("commit").expect_no_error();
    // The other way round in the other session.
    let first = [parse("S_1", "insert into t values (2)"), parse("S_2", "BEGIN"), run_named("S_2")];
    assert_eq!(
        two.exchange(&[first.concat(), run_named("S_1"), sync()]).tags(),
        ["BEGIN", "INSERT 0 1"]
    );
    two.query("commit").expect_no_error();
    let mut last = one.backend();
    for _ in 0..4 {
        (last, ()) = stage.elsewhere(&last, || {
            let tags = one.exchange(&[run_named("S_1"), run_named("S_2"), sync()]).tags();
            assert_eq!(tags, ["BEGIN", "INSERT 0 1"]);
            one.query("commit").expect_no_error();
            let tags = two.exchange(&[run_named("S_2"), run_named("S_1"), sync()]).tags();
            assert_eq!(tags, ["BEGIN", "INSERT 0 1"]);
            two.query("commit").expect_no_error();
        });
    }
}

/// odyssey #1361: Close of a statement whose Parse had failed was an error. pgbouncer #1118: a name parsed again after the
/// transaction that parsed it was rolled back, or failed before it got there: the client was sent away.
#[test]
fn names_parsed_in_vain_or_twice_send_nobody_away() {
    let server = Postgres::start();
    let parsed = |name: &str, sql: &str| ask(&[parse(name, sql), describe_statement(name), sync()]);
    let failing = run("select 1/0");
    assert_alike(
        &server,
        &[
            [
                parsed("s", "select nothing from nowhere"),
                ask(&[close_statement("s"), sync()]),
                parsed("s", "select 1"),
                ask(&[run_named("s"), sync()]),
            ],
            [
                ask(&[query("begin")]),
                parsed("s", "select 2"),
                ask(&[query("rollback")]),
                [parsed("s", "select 3"), ask(&[run_named("s"), sync()])]
                    .into_iter()
                    .flatten()
                    .collect(),
            ],
            [
                ask(&[query("begin"), failing.clone(), parse("s", "select 4"), sync()])
                    .into_iter()
                    .chain([Until('Z')])
                    .collect(),
                parsed("s", "select 5"),
                ask(&[query("rollback")]),
                [parsed("s", "select 6"), ask(&[run_named("s"), sync()])]
                    .into_iter()
                    .flatten()
                    .collect(),
            ],
            [
                ask(&[close_statement("never"), close_statement("never"), sync()]),
                parsed("s", "select 7"),
                ask(&[close_statement("s"), run_named("s"), sync()]),
                parsed("s", "select 8"),
            ],
        ]
        .map(|script| script.into_iter().flatten().collect()),
    );
}

/// pgdog #604, #677: statements of SQL and of the protocol are one space of names: what SQL has prepared the protocol can
/// bind, and a name can't be given twice.
#[test]
fn the_protocol_does_not_miss_what_sql_has_prepared() {
    let mut stage = Stage::new();
    let script = |client: &mut Connection| {
        vec![
            client.query("prepare q as select 'sql'"),
            client.exchange(&[run_named("q"), sync()]),
            client.exchange(&[parse("q", "select 'again'"), sync()]),
            client.exchange(&[parse("p", "select 'protocol'"), sync()]),
            client.query("deallocate p"),
            client.query("deallocate p"),
            client.exchange(&[run_named("q"), sync()]),
            client.query("deallocate q"),
            client.exchange(&[parse("q", "select 'anew'"), run_named("q"), sync()]),
            client.query("deallocate q"),
            client.exchange(&[run_named("q"), sync()]),
        ]
        .into_iter()
        .flat_map(|reply| reply.frames)
        .map(|frame| frame.neutral())
        .collect::<Vec<_>>()
    };
    let direct = script(&mut stage.server.direct());
    let mut session = stage.gate.client();
    assert_eq!(script(&mut session), direct);
    let last = session.backend();
    stage.elsewhere(&last, || assert_eq!(script(&mut session), direct));
}

/// Found beside pgdog #604: a DEALLOCATE that fails, or is never reached, takes no name away.
#[test]
fn a_deallocate_that_failed_takes_no_name_away() {
    let server = Postgres::start();
    let parsed = || ask(&[parse("s", "select 'still here'"), sync()]);
    let used = || ask(&[run_named("s"), sync()]);
    let scripts = [
        ask(&[query("select 1/0; deallocate s")]),
        ask(&[query("deallocate s; select 1/0")]),
        [
            Send(
                [query("begin"), query("select 1/0"), query("deallocate s"), query("rollback")]
                    .concat(),
            ),
            Until('Z'),
            Until('Z'),
            Until('Z'),
            Until('Z'),
        ]
        .into(),
        ask(&[run("select 1/0"), run("deallocate s"), sync()]),
        ask(&[run("deallocate s"), sync()]),
        ask(&[query("deallocate t; deallocate s")]),
        ask(&[run("select 1/0"), run("deallocate s"), sync(), run("deallocate s"), sync()])
            .into_iter()
            .chain([Until('Z')])
            .collect(),
    ];
    assert_alike(
        &server,
        &scripts.map(|script| [parsed(), script, used(), used()].into_iter().flatten().collect()),
    );
}

/// pg_doorman (its change log): a statement thrown out of a full cache by another of the same batch was not there when the
/// batch came to it; and what a failed batch had to close stayed on the server.
#[test]
fn a_statement_evicted_inside_a_batch_is_not_missed() {
    let server = Postgres::start();
    let (_directory, gate) = with_config(&server, 1, "statements_per_backend = 2");
    let mut session = gate.client();
    let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    let mut batch = Vec::new();
    for name in &names {
        batch.push(parse(name, &format!("select '{name}'")));
        batch.push(describe_statement(name));
    }
    for name in &names {
        batch.push(bind(name, name, &[]));
    }
    for name in names.iter().rev() {
        batch.push(execute(name, 0));
        batch.push(run_named(name));
    }
    batch.push(sync());
    let reply = session.exchange(&batch);
    let rows: Vec<_> = reply.expect_no_error().rows().concat().into_iter().flatten().collect();
    let wanted: Vec<_> = names.iter().rev().flat_map(|name| [name.clone(), name.clone()]).collect();
    assert_eq!(rows, wanted);
    let parsed = "select count(*) from pg_prepared_statements where not from_sql";
    for round in 0..30 {
        let name = &names[round % names.len()];
        let failing = [run("select 1/0"), run_named(name), sync()];
        assert_eq!(session.exchange(&failing).codes(), ["22012"]);
        session.exchange(&[run_named(name), sync()]).expect_no_error();
    }
    let left: u32 = session.one(parsed).parse().unwrap();
    assert!(left <= 3, "{left} statements are left on a server that may have 2");
}

/// pg_doorman (its change log), npgsql with odyssey: Parse and Describe of several statements in one batch were answered
/// out of order ("Received ParseComplete while expecting BindComplete").
#[test]
fn a_batch_of_parse_and_describe_is_not_answered_out_of_order() {
    let server = Postgres::start();
    let batch = [
        parse("a", "select 1 as a"),
        describe_statement("a"),
        parse("b", "select $1::text as b"),
        describe_statement("b"),
        bind("", "a", &[]),
        parse("c", "select 3 as c"),
        describe_portal(""),
        execute("", 0),
        describe_statement("c"),
        close_statement("a"),
        bind("", "b", &["x"]),
        execute("", 0),
        sync(),
    ];
    assert_alike(&server, &[ask(&batch)]);
}

/// supavisor #1174, PR #1185: a Describe of a named statement went to a connection that had not parsed it: 26000.
#[test]
fn a_describe_does_not_miss_its_statement_on_another_connection() {
    let mut stage = Stage::new();
    let mut session = stage.gate.client();
    session.exchange(&[parse("s", "select $1::int as n"), sync()]).expect_no_error();
    let mut last = session.backend();
    for _ in 0..3 {
        let described;
        (last, described) =
            stage.elsewhere(&last, || session.exchange(&[describe_statement("s"), sync()]));
        assert_eq!(described.shape(), "tTZ");
    }
}

/// pgcat PR #953: a statement that could not be parsed again on another connection was forgotten, and the client, which
/// still had it, got 26000 from then on.
#[test]
fn a_statement_that_can_not_be_parsed_now_is_not_forgotten() {
    let mut stage = Stage::new();
    let mut owner = stage.server.direct();
    let make = "create table t (n int); insert into t values (1)";
    owner.query(make).expect_no_error();
    let mut session = stage.gate.client();
    session.exchange(&[parse("s", "select n from t"), sync()]).expect_no_error();
    let last = session.backend();
    owner.query("drop table t").expect_no_error();
    stage.elsewhere(&last, || {
        assert_eq!(session.exchange(&[run_named("s"), sync()]).codes(), ["42P01"]);
        owner.query(make).expect_no_error();
        let reply = session.exchange(&[run_named("s"), sync()]);
        assert_eq!(reply.expect_no_error().rows(), [[Some("1".to_owned())]]);
    });
}

/// Where poolers share statements by their text: `'now'` means the time at which it was parsed, and that was another
/// client's.
#[test]
fn now_is_not_when_another_client_parsed_it() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let texts = [
        "select 'now'::timestamptz::text",
        "select timestamptz  ' NOW '::text",
        "select now()::text",
    ];
    for sql in texts {
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let mut client = gate.client();
            let reply = client.exchange(&[parse("s", sql), run_named("s"), sync()]);
            seen.insert(reply.expect_no_error().rows().concat());
        }
        assert_eq!(seen.len(), 3, "{sql}: {seen:?}");
    }
}

/// pg_doorman (its change log): a client that left inside a large row left the rest of the row to the next.
#[test]
fn a_row_larger_than_any_buffer_is_not_left_to_the_next() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let backend = gate.client().backend();
    for _ in 0..3 {
        let mut victim = gate.client();
        victim.send(&query("select repeat('x', 50000000)"));
        std::io::Read::read_exact(&mut victim.stream(), &mut [0; 100_000]).unwrap();
        victim.hang_up();
        let mut next = gate.client();
        assert_eq!(next.query("select 1").shape(), "TDCZ");
        assert_eq!(next.backend(), backend, "read to its end, not closed");
    }
    let mut whole = gate.client();
    whole.send(&query("select repeat('x', 50000000)"));
    assert_eq!(whole.reply().rows()[0][0].as_ref().map(String::len), Some(50_000_000));
    let resident = gate.resident_kib();
    assert!(resident < 60_000, "{resident} KiB after rows of 50 MB");
}

/// odyssey #1475, pgjdbc #194: more requests than any buffer holds and more replies than any buffer holds, by prepared
/// statements that have to be renamed: who writes everything before it reads stands still.
#[test]
fn two_full_directions_do_not_stand_still() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    client.exchange(&[parse("s", "select $1::text"), sync()]).expect_no_error();
    let value = "v".repeat(200_000);
    let flight = [bind("", "s", &[&value]), execute("", 0), sync()].concat();
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..150 {
                std::io::Write::write_all(&mut writer, &flight).unwrap();
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..150 {
            let reply = client.reply();
            assert_eq!(reply.shape(), "2DCZ");
            assert_eq!(reply.rows()[0][0].as_deref(), Some(&*value));
        }
    });
}

/// pgbouncer #38, #245, #392: a cancel request that came when its query was over hit what another client ran there.
#[test]
fn a_late_cancel_does_not_hit_another_client() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bystander = scope.spawn(|| {
            let mut client = gate.client();
            while !stop.load(Ordering::Relaxed) {
                let reply = client.query("select count(*) from generate_series(1, 2000)");
                assert_eq!(reply.codes(), Vec::<String>::new());
            }
        });
        let mut canceller = gate.client();
        for _ in 0..200 {
            canceller.send(&query("select 1"));
            canceller.cancel();
            let codes = canceller.reply().codes();
            assert!(codes.is_empty() || codes == ["57014"], "{codes:?}");
        }
        stop.store(true, Ordering::Relaxed);
        bystander.join().expect("nothing of it was cancelled");
    });
}

/// pgbouncer #1222, #1314, PR #1265: the cancel of a client in the queue was ignored; where it was tried, the requests
/// behind the cancelled one were left over.
#[test]
fn a_cancel_in_the_queue_is_not_ignored_and_takes_one_request() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut holder = gate.client();
    holder.query("begin").expect_no_error();
    let mut queued = gate.client();
    for first in [
        query("select 'first'"),
        [run("select 'first'"), run("select 'first, too'"), sync()].concat(),
        [flush(), sync()].concat(),
    ] {
        let behind = [first, query("select 'second'"), run("select 'third'"), sync()];
        queued.send(&behind.concat());
        eventually("the client queues", || {
            (gate.postgres_metric("tidegate_queue_length", &[]) == 1.0).then_some(())
        });
        let asked = Instant::now();
        queued.cancel();
        let cancelled = queued.reply();
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
        assert_eq!(
            (cancelled.codes(), cancelled.shape()),
            (vec!["57014".to_owned()], "EZ".to_owned())
        );
        holder.query("commit").expect_no_error();
        assert_eq!(queued.reply().rows(), [[Some("second".to_owned())]]);
        assert_eq!(queued.reply().rows(), [[Some("third".to_owned())]]);
        holder.query("begin").expect_no_error();
    }
}

/// pgbouncer PR #298: a cancel that came while the connection was being brought to the client's settings hit that, and the
/// client heard "invalid server parameter" and was sent away.
#[test]
fn a_cancel_does_not_hit_the_settings_that_ride_ahead() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut session = gate.client();
    session.query("set default_tablespace = 'pg_default'").expect_no_error();
    let mut other = gate.client();
    let backend = other.backend();
    let mut boss = server.superuser();
    let mut looker = server.superuser();
    let blocked = "select count(*) from pg_locks where not granted";
    for _ in 0..3 {
        assert_eq!(other.one("show default_tablespace"), "");
        // Whoever looks a tablespace up has to wait.
        boss.query("begin; lock table pg_tablespace").expect_no_error();
        session.send(&query("select pg_sleep(60)"));
        eventually("the settings wait", || (looker.one(blocked) == "1").then_some(()));
        session.cancel();
        std::thread::sleep(Duration::from_millis(50));
        boss.query("rollback").expect_no_error();
        let cancelled = session.reply();
        assert_eq!((cancelled.codes(), cancelled.status()), (vec!["57014".to_owned()], 'I'));
        assert_eq!(session.one("show default_tablespace"), "pg_default");
    }
    assert_eq!(other.backend(), backend, "the connection is the same");
}

/// The same behind a transaction: what is asked of the server then is no request of the client's, and the client's next
/// waits behind it.
#[test]
fn a_cancel_does_not_hit_the_question_behind_a_transaction() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut session = gate.client();
    let mut boss = server.superuser();
    let mut looker = server.superuser();
    for _ in 0..3 {
        boss.query("begin; lock table pg_depend").expect_no_error();
        session.query("do $$ begin end $$").expect_no_error();
        let blocked = "select count(*) from pg_stat_activity where usename = 'app' \
                       and wait_event_type = 'Lock'";
        eventually("the question waits", || (looker.one(blocked) == "1").then_some(()));
        session.send(&query("select pg_sleep(60)"));
        std::thread::sleep(Duration::from_millis(50));
        session.cancel();
        std::thread::sleep(Duration::from_millis(50));
        boss.query("rollback").expect_no_error();
        assert_eq!(session.reply().codes(), ["57014"]);
        eventually("nothing is pinned", || {
            let pinned = [("state", "pinned")];
            (gate.postgres_metric("tidegate_server_connections", &pinned) == 0.0).then_some(())
        });
    }
}

/// Found beside them: who reads its last answer slowly is asked about all the same, and keeps no connection.
#[test]
fn a_slow_reader_keeps_no_connection_behind_a_setting() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(1).wait_ms(2_000).start();
    let sent = || {
        let to_client = [("peer", "client"), ("direction", "sent")];
        gate.postgres_metric("tidegate_bytes_total", &to_client)
    };
    let rows = |count: u32| {
        let rows = format!("select repeat('x', 1000) from generate_series(1, {count})");
        query(&format!("set work_mem = '9MB'; {rows}"))
    };
    let until_full = |before: f64| {
        let mut last = 0.0;
        eventually("it is full", || {
            std::thread::sleep(Duration::from_millis(100));
            let now = sent() - before;
            (now > 0.0 && std::mem::replace(&mut last, now).total_cmp(&now).is_eq()).then_some(now)
        })
    };
    // As much as fits between a client that doesn't read and a server that is not read from.
    let mut slow = gate.client();
    let before = sent();
    slow.send(&rows(20_000));
    let fits = until_full(before);
    slow.reply().expect_no_error();
    for spare in [4_000.0, 16_000.0, 32_000.0, 48_000.0] {
        let mut slow = gate.client();
        let before = sent();
        // Most of these times the very last of it has to wait here.
        slow.send(&rows(format!("{}", ((fits - spare) / 1011.0).floor()).parse().unwrap()));
        until_full(before);
        slow.reply().expect_no_error();
        assert_eq!(gate.client().one("show work_mem"), "4MB", "{spare}");
    }
}

/// The state of a process, in one letter.
fn state_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let behind_name = stat.rsplit_once(") ").expect("a name in brackets").1;
    behind_name.chars().take(1).collect()
}

/// pgbouncer (server goes between pick and write: the client is sent away): the server's end and the client's request are
/// there at the same moment.
#[test]
fn a_connection_that_dies_as_it_is_taken_costs_no_client_anything() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut session = gate.client();
    session.exchange(&[parse("s", "select 'prepared'"), sync()]).expect_no_error();
    let mut boss = server.superuser();
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'app'";
    let left = "select count(*) from pg_stat_activity where usename = 'app'";
    for round in 0..6 {
        session.backend();
        gate.signal(Signal::STOP);
        eventually("it has stopped", || (state_of(gate.pid()) == "T").then_some(()));
        session.send(&match round % 3 {
            0 => query("select 'simple'"),
            1 => [run("select 'extended'"), sync()].concat(),
            _ => [run_named("s"), sync()].concat(),
        });
        assert_eq!(boss.one(end), "1");
        eventually("it is gone", || (boss.one(left) == "0").then_some(()));
        gate.signal(Signal::CONT);
        session.reply().expect_no_error();
    }
}

/// pgbouncer #1459 (two answers where the client had to wait), and what libpq 19 will say to everybody: protocol 3.9999
/// with an option that nobody knows. One NegotiateProtocolVersion, and it names the option.
#[test]
fn grease_is_not_negotiated_twice_nor_taken_for_a_setting() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let login = Login::app().with("_pq_.test_protocol_negotiation", "");
    let mut holder = gate.client();
    holder.query("begin").expect_no_error();
    for _ in 0..2 {
        let mut client = Connection::knock(gate.postgres_port()).unwrap();
        client.send(&support::pg::startup(support::pg::VERSION_3_0 + 9999, &login));
        let first = client.frame();
        assert_eq!(first.kind(), 'v', "{first:?}");
        let (version, rest) = first.body.split_first_chunk::<4>().unwrap();
        let version = u32::from_be_bytes(*version);
        assert!((196_608..=196_610).contains(&version), "{version}");
        assert_eq!(rest, [&1_u32.to_be_bytes()[..], b"_pq_.test_protocol_negotiation\0"].concat());
        client.greet(&login).unwrap();
        assert_eq!(client.negotiated, 0, "no second answer");
        holder.query("commit").expect_no_error();
        assert_eq!(client.one("select 1"), "1");
        holder.query("begin").expect_no_error();
    }
}
