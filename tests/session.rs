//! A transaction pool that keeps the session: every test moves a session to another server connection between two of
//! its transactions, and looks whether it, or anybody else, can tell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::eventually;
use support::pg::{
    Connection, Login, bind, close_statement, describe_portal, describe_statement, execute, flush,
    parse, query, sync,
};
use support::postgres::Postgres;
use support::stage::Stage;
use support::tidegate::{Setup, Tidegate};

/// What a session and a stranger see of `probe` after `change`, on another backend than the change ran on.
fn after(stage: &mut Stage, change: &[&str], probe: &str) -> (String, String) {
    let mut session = stage.gate.client();
    let last = session.backend();
    for sql in change {
        session.query(sql).expect_no_error();
    }
    // Each stranger on a connection of its own, before the session comes back to any.
    for stranger in &mut stage.blockers {
        stranger.query("begin").expect_no_error();
    }
    let foreign = stage.blockers.each_mut().map(|stranger| stranger.one(probe));
    if stage.blockers[0].backend() == last {
        stage.blockers.swap(0, 1);
    }
    let [free, held] = &mut stage.blockers;
    free.query("commit").expect_no_error();
    let seen = session.one(probe);
    held.query("commit").expect_no_error();
    assert_eq!(foreign[0], foreign[1], "a stranger sees the same everywhere: {change:?}");
    let [foreign, _] = foreign;
    (seen, foreign)
}

/// Whoever would pin the last connection waits; whoever pins nothing is served meanwhile.
#[test]
fn pins_leave_a_connection_to_the_others() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(1_000).start();
    let metric = |name: &str| gate.postgres_metric(name, &[]);
    let waiting = || gate.postgres_metric("tidegate_clients", &[("state", "waiting")]);
    let mut first = gate.client();
    first.query("create temp table mine (n int)").expect_no_error();
    let mut second = gate.client();
    let mut plain = gate.client();
    let in_one_flight =
        [parse("", "create temp table mine (n int)"), bind("", "", &[]), execute("", 0), sync()];
    for (wanted, waits) in
        [(query("create temp table mine (n int)"), 1.0), (in_one_flight.concat(), 2.0)]
    {
        second.send(&wanted);
        eventually("the second waits", || (waiting() == 1.0).then_some(()));
        assert_eq!(plain.one("select 1"), "1");
        let refusal = second.reply();
        assert_eq!((refusal.codes(), refusal.status()), (vec!["53300".to_owned()], 'I'));
        assert_eq!(second.one("select 2"), "2", "the session goes on");
        assert_eq!(metric("tidegate_pin_waits_total"), waits);
        assert_eq!(metric("tidegate_pin_timeouts_total"), waits);
    }
    // It can be cancelled, and what it waits for may come.
    second.send(&query("create temp table mine (n int)"));
    eventually("the second waits", || (waiting() == 1.0).then_some(()));
    second.cancel();
    assert_eq!(second.reply().codes(), ["57014"]);
    second.send(&query("create temp table mine (n int); insert into mine values (2)"));
    eventually("the second waits", || (waiting() == 1.0).then_some(()));
    first.query("drop table mine").expect_no_error();
    second.reply().expect_no_error();
    assert_eq!(second.one("select n from mine"), "2");
    // Inside a transaction there is no way back: the session ends, as the error says.
    first.query("begin").expect_no_error();
    first.send(&query("create temp table mine (n int)"));
    let words = first.last_words();
    assert!(
        words.iter().any(|frame| frame.kind() == 'E' && frame.refusal().code == "53300"),
        "{words:?}"
    );
    drop(second);
    eventually("nothing is pinned", || {
        let pinned = [("state", "pinned")];
        (gate.postgres_metric("tidegate_server_connections", &pinned) == 0.0).then_some(())
    });
    plain.query("create temp table mine (n int)").expect_no_error();
}

/// Leave to pin is not kept from one that holds a connection by one that waits for a connection.
#[test]
fn who_waits_for_a_connection_holds_no_leave_to_pin() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(8_000).start();
    let waiting = || gate.postgres_metric("tidegate_clients", &[("state", "waiting")]);
    let pin_waits = || gate.postgres_metric("tidegate_pin_waits_total", &[]);
    let [mut pinned, mut barred, mut inside, mut queued] = [(); 4].map(|()| gate.client());
    pinned.query("create temp table t (n int)").expect_no_error();
    barred.send(&query("create temp table t (n int)"));
    eventually("it waits for leave", || (waiting() == 1.0).then_some(()));
    inside.query("begin").expect_no_error();
    queued.send(&query("begin"));
    eventually("it waits for a connection", || (waiting() == 2.0).then_some(()));
    inside.send(&query("create temp table t (n int)"));
    eventually("it waits inside its transaction", || (pin_waits() == 2.0).then_some(()));
    pinned.query("drop table t").expect_no_error();
    inside.reply().expect_no_error();
    queued.reply().expect_no_error();
    inside.query("rollback").expect_no_error();
    barred.reply().expect_no_error();
    assert_eq!(pin_waits(), 2.0, "a wait in two parts is one");
}

#[test]
fn settings_follow_the_session_and_nobody_else() {
    let mut stage = Stage::new();
    let mut superuser = stage.server.superuser();
    superuser.query("create role other nologin; grant other to app").expect_no_error();
    let long = "x".repeat(5_000);
    let long_change = format!("set application_name = ''; set search_path = '{long}'");
    for (change, probe, mine, theirs) in [
        (vec!["set work_mem = '5MB'"], "show work_mem", "5MB", "4MB"),
        (vec!["set session work_mem to 4321"], "show work_mem", "4321kB", "4MB"),
        (vec!["begin", "set work_mem = '5MB'", "commit"], "show work_mem", "5MB", "4MB"),
        (vec!["begin", "set work_mem = '5MB'", "rollback"], "show work_mem", "4MB", "4MB"),
        (
            vec![
                "begin",
                "set work_mem = '5MB'",
                "savepoint a",
                "set work_mem = '6MB'",
                "rollback to a",
                "commit",
            ],
            "show work_mem",
            "5MB",
            "4MB",
        ),
        (vec!["set work_mem = '5MB'", "reset work_mem"], "show work_mem", "4MB", "4MB"),
        (vec!["set work_mem = '5MB'", "reset all"], "show work_mem", "4MB", "4MB"),
        (vec!["set work_mem = '5MB'", "discard all"], "show work_mem", "4MB", "4MB"),
        (vec!["select set_config('work_mem', '7MB', false)"], "show work_mem", "7MB", "4MB"),
        (vec!["set local work_mem = '5MB'"], "show work_mem", "4MB", "4MB"),
        (vec!["set role other"], "select current_user::text", "other", "app"),
        (vec!["set role other", "reset role"], "select current_user::text", "app", "app"),
        (vec!["set time zone 'Asia/Tokyo'"], "show timezone", "Asia/Tokyo", "Etc/UTC"),
        (
            vec!["set time zone interval '+02:00' hour to minute"],
            "show timezone",
            "<+02>-02",
            "Etc/UTC",
        ),
        (
            vec!["set session characteristics as transaction read only"],
            "show transaction_read_only",
            "on",
            "off",
        ),
        (
            vec![r#"set search_path = "a b", 'it''s', pg_catalog"#],
            "show search_path",
            r#""a b", "it's", pg_catalog"#,
            r#""$user", public"#,
        ),
        (vec![&long_change], "show search_path", &long, r#""$user", public"#),
        (
            vec!["set datestyle = 'german'"],
            "select '2026-11-24'::date::text",
            "24.11.2026",
            "2026-11-24",
        ),
        (vec!["set client_encoding = 'LATIN1'"], "show client_encoding", "LATIN1", "UTF8"),
    ] {
        let seen = after(&mut stage, &change, probe);
        assert_eq!(seen, (mine.to_owned(), theirs.to_owned()), "{change:?}");
    }
    assert_eq!(stage.pinned(), 0.0);
}

#[test]
fn reset_leads_to_what_the_client_gave_at_startup() {
    let mut stage = Stage::new();
    let login = Login::app().with("timezone", "Asia/Tokyo").with("options", "-c work_mem=6MB");
    for reset in [
        "reset timezone; reset work_mem",
        "reset all",
        "discard all",
        "set timezone to default; set work_mem to default",
        "set time zone local; reset work_mem",
    ] {
        let mut session = stage.gate.try_client(&login).unwrap();
        session.query("set timezone = 'UTC'; set work_mem = '9MB'").expect_no_error();
        let last = session.backend();
        for sql in reset.split(';') {
            session.query(sql).expect_no_error();
            session.query("select 1").expect_no_error();
        }
        for _ in 0..2 {
            assert_eq!(session.one("show timezone"), "Asia/Tokyo", "{reset}");
            assert_eq!(session.one("show work_mem"), "6MB", "{reset}");
            stage.moves(&mut session, &last);
        }
        // Within a transaction, too, and undone with it.
        session.query("set timezone = 'UTC'").expect_no_error();
        session.query("begin").expect_no_error();
        session.query("reset timezone").expect_no_error();
        assert_eq!(session.one("show timezone"), "Asia/Tokyo");
        session.query("rollback").expect_no_error();
        assert_eq!(session.one("show timezone"), "UTC");
        let mut stranger = stage.gate.client();
        assert_eq!(stranger.one("show timezone"), "Etc/UTC");
    }
}

/// pgcat #903, pgbouncer #655, #976: WITH HOLD cursors, temporary tables, session locks and SQL's PREPARE stayed with the
/// connection, where their session did not find them and others did.
/// RESET ALL does not reset who the session is: a role that was laid down must not come back with it.
#[test]
fn only_a_reset_of_the_role_leads_back_to_the_role_of_the_startup() {
    let server = Postgres::start();
    let make = "create role other nologin; grant other to app; alter role app superuser";
    server.superuser().query(make).expect_no_error();
    let gate = Tidegate::before(&server, 2);
    let mut stage = Stage::with(server, gate);
    let login = Login::app().with("options", "-c role=other -c work_mem=6MB");
    for words in [
        "set role none; reset all",
        "set role none|reset work_mem",
        "set session authorization app|reset all",
        "set role none|reset role",
        "set role none|set role to default",
        "set role none|select set_config('role', null, false)",
        "set session authorization other|reset session authorization",
        "set session authorization other|set session authorization default",
        "set role none|discard all",
    ] {
        let mut direct = Connection::open(stage.server.port(), &login);
        let mut session = stage.gate.try_client(&login).unwrap();
        let last = session.backend();
        for words in words.split('|') {
            direct.query(words).expect_no_error();
            session.query(words).expect_no_error();
        }
        let who = "select current_user || ' ' || session_user || ' ' || current_setting('role') \
                   || ' ' || current_setting('work_mem')";
        let expected = direct.one(who);
        assert_eq!(session.one(who), expected, "{words}");
        stage.moves(&mut session, &last);
        assert_eq!(session.one(who), expected, "{words}");
    }
}

/// An error took away the answer that a statement of the session waited for; the next words must not wait for it.
#[test]
fn what_an_error_took_away_is_not_waited_for() {
    let mut stage = Stage::new();
    let mut session = stage.gate.client();
    let prepare = [parse("s", "select 1"), describe_statement("s"), sync()];
    session.exchange(&prepare).expect_no_error();
    let last = session.backend();
    let [holds, _] = &mut stage.blockers;
    holds.query("begin").expect_no_error();
    assert_ne!(
        session.backend(),
        last,
        "nobody has parsed it there: how its rows look must be asked"
    );
    session.query("begin").expect_no_error();
    session.send(&[execute("none", 0), bind("", "s", &[]), flush()].concat());
    assert_eq!(session.frame().refusal().code, "34000");
    session.exchange(&[sync()]);
    let labels = [("peer", "server"), ("direction", "sent")];
    let passed = || stage.gate.postgres_metric("tidegate_bytes_total", &labels);
    let before = passed();
    session.send(&close_statement("any"));
    eventually("the server has it", || (passed() > before).then_some(()));
    assert_eq!(session.exchange(&[sync()]).shape(), "3Z");
    session.query("rollback").expect_no_error();
}

#[test]
fn a_custom_setting_of_the_startup_outlives_other_changes() {
    let mut stage = Stage::new();
    let login = Login::app().with("options", "-c app.tenant=acme");
    let mut session = stage.gate.try_client(&login).unwrap();
    session.query("set work_mem = '5MB'").expect_no_error();
    let last = session.backend();
    let mut stranger = stage.gate.client();
    let seen = "select coalesce(current_setting('app.tenant', true), '')";
    for _ in 0..2 {
        let foreign = stranger.backend();
        assert_eq!(stranger.one(seen), "", "nobody else has it");
        stage.moves(&mut stranger, &foreign);
    }
    stage.moves(&mut session, &last);
    for _ in 0..2 {
        assert_eq!(session.one(seen), "acme");
        let last = session.backend();
        stage.moves(&mut session, &last);
    }
}

#[test]
fn a_reset_leaves_alone_what_the_session_has_set_since() {
    let mut stage = Stage::new();
    stage
        .server
        .superuser()
        .query("create role other nologin; grant other to app")
        .expect_no_error();
    let login = Login::app().with("timezone", "Asia/Tokyo").with("options", "-c app.tenant=acme");
    let mut session = stage.gate.try_client(&login).unwrap();
    session
        .query("set timezone = 'UTC'; set app.tenant = 'mine'; set role other")
        .expect_no_error();
    for reset in ["reset role", "reset work_mem", "set work_mem to default"] {
        session.query(reset).expect_no_error();
        let last = session.backend();
        stage.moves(&mut session, &last);
        assert_eq!(session.one("show timezone"), "UTC", "{reset}");
        assert_eq!(session.one("show app.tenant"), "mine", "{reset}");
        assert_eq!(session.one("select current_user"), "app", "{reset}");
    }
    session.query("reset timezone").expect_no_error();
    assert_eq!(session.one("show timezone"), "Asia/Tokyo");
    session.query("reset app.tenant").expect_no_error();
    assert_eq!(session.one("show app.tenant"), "acme");
}

/// What SET TRANSACTION says is over with its transaction, though the server goes on calling it the session's.
#[test]
fn what_a_transaction_is_like_is_no_setting_of_the_session() {
    let mut stage = Stage::new();
    let mut session = stage.gate.client();
    for sql in ["begin", "set transaction isolation level serializable", "commit"] {
        session.query(sql).expect_no_error();
    }
    session.query("set default_transaction_isolation = 'serializable'").expect_no_error();
    let last = session.backend();
    stage.moves(&mut session, &last);
    assert_eq!(session.one("show transaction_isolation"), "serializable");
    session.query("reset default_transaction_isolation").expect_no_error();
    let last = session.backend();
    stage.moves(&mut session, &last);
    assert_eq!(session.one("show transaction_isolation"), "read committed");
}

/// The question about what a session has left is a Query, and a Query takes the server's unnamed statement away.
#[test]
fn the_unnamed_statement_survives_our_questions() {
    let stage = Stage::new();
    let mut session = stage.gate.client();
    session.query("create temp table keeps_it (n int)").expect_no_error();
    session.exchange(&[
        parse("q", "set work_mem = '5MB'"),
        bind("", "q", &[]),
        execute("", 0),
        parse("", "select 'mine'"),
        sync(),
    ]);
    let reply = session.exchange(&[bind("", "", &[]), execute("", 0), sync()]);
    assert_eq!(reply.expect_no_error().rows(), [[Some("mine".to_owned())]]);
}

/// What an error takes with it, of what the pool itself had sent ahead, is there for the next flight of the same write: and never
/// another session's statement in its place.
#[test]
fn statements_are_there_behind_a_flight_that_failed() {
    let mut stage = Stage::new();
    let mut session = stage.gate.client();
    let first = session.backend();
    session.exchange(&[parse("", "select 'mine'"), parse("q", "select 'named'"), sync()]);
    let run = |name: &str| [bind("", name, &[]), execute("", 0)].concat();
    for (lost, then, expected) in [
        (run(""), run(""), "mine"),
        (run("q"), run("q"), "named"),
        ([parse("", "select 'never'"), run("")].concat(), run(""), "mine"),
        (
            [parse("", "select 'never'"), run("")].concat(),
            [parse("", "select 'mine'"), run("")].concat(),
            "mine",
        ),
    ] {
        let bad = bind("", "nobody", &[]);
        let asked = [bad, lost, sync(), then, sync()].concat();
        let (pid, reply) = stage.elsewhere(&first, || {
            session.send(&asked);
            let failed = session.reply();
            assert_eq!(failed.errors()[0].code, "26000");
            session.reply()
        });
        assert_ne!(pid, first);
        assert_eq!(reply.expect_no_error().rows(), [[Some(expected.to_owned())]]);
        let later = session.exchange(&[run(""), sync()]);
        assert_eq!(later.expect_no_error().rows(), [[Some("mine".to_owned())]]);
        // Another session's, which ours must not meet.
        let mut other = stage.gate.client();
        let foreign = [parse("", "select 'of another'"), sync()];
        stage.elsewhere(&first, || other.exchange(&foreign));
    }
}

/// A session that keeps its connection for what a sequence gave may pin it, too, without waiting for itself.
#[test]
fn leave_to_keep_a_sequence_is_leave_to_pin() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(500).start();
    let mut session = gate.client();
    session.query("create sequence s").expect_no_error();
    session.query("select nextval('s'), currval('s')").expect_no_error();
    session.query("select nextval('s')").expect_no_error();
    session.query("begin").expect_no_error();
    session.query("create temp table mine (n int)").expect_no_error();
    session.query("commit").expect_no_error();
}

#[test]
fn what_stays_on_the_server_pins_until_it_is_gone() {
    let mut stage = Stage::new();
    for (make, look, expected, release) in [
        ("create temp table t (n int)", "select count(*) from t", "0", "drop table t"),
        ("create temp view v as select 7 as n", "select n from v", "7", "drop view v"),
        (
            "create function pg_temp.f() returns int language sql as 'select 8'",
            "select pg_temp.f()",
            "8",
            "drop function pg_temp.f()",
        ),
        ("create temp sequence s", "select nextval('s')", "1", "drop sequence s"),
        (
            "create temp table t (n int) on commit delete rows",
            "select count(*) from t",
            "0",
            "discard temp",
        ),
        (
            "select pg_advisory_lock(5)",
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            "1",
            "select pg_advisory_unlock(5)",
        ),
        (
            "select pg_try_advisory_lock_shared(1, 2)",
            "select 1",
            "1",
            "select pg_advisory_unlock_all()",
        ),
        ("begin; declare c cursor with hold for select 4; commit", "fetch c", "4", "close c"),
        ("prepare q as select 9", "execute q", "9", "deallocate q"),
    ] {
        let mut session = stage.gate.client();
        session.query(make).expect_no_error();
        eventually("the pin is counted", || (stage.pinned() == 1.0).then_some(()));
        let mine = session.backend();
        for _ in 0..3 {
            assert_eq!(session.backend(), mine, "it keeps its backend: {make}");
        }
        assert_eq!(session.one(look), expected, "{make}");
        session.query(release).expect_no_error();
        stage.until_pinned(0.0);
        stage.moves(&mut session, &mine);
    }
    // The protocol's Close takes away what SQL prepared, too.
    let mut session = stage.gate.client();
    session.query("prepare q as select 9").expect_no_error();
    stage.until_pinned(1.0);
    session.exchange(&[close_statement("q"), sync()]).expect_no_error();
    stage.until_pinned(0.0);
}

#[test]
fn nothing_left_is_no_pin() {
    let mut stage = Stage::new();
    for make in [
        "begin; create temp table t () on commit drop; commit",
        "begin; create temp table t (); rollback",
        "begin; select pg_advisory_lock(5); select pg_advisory_unlock(5); commit",
        "begin; declare c cursor with hold for select 4; rollback",
        "create temp table t (); drop table t",
    ] {
        let mut session = stage.gate.client();
        let last = session.backend();
        session.query(make).expect_no_error();
        stage.moves(&mut session, &last);
        stage.until_pinned(0.0);
    }
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let mut stage = Stage::new();
    for make in [
        "create temp table t ()",
        "select pg_advisory_lock(5)",
        "set work_mem = '5MB'",
        "prepare q as select 9",
    ] {
        let mut session = stage.gate.client();
        session.query(make).expect_no_error();
        session.hang_up();
        stage.until_pinned(0.0);
        for blocker in &mut stage.blockers {
            blocker.query("begin").expect_no_error();
            let left = "select (select count(*) from pg_class where relnamespace = pg_my_temp_schema()) \
                        + (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) \
                        + (select count(*) from pg_prepared_statements where from_sql)";
            assert_eq!(blocker.one(left), "0", "{make}");
            assert_eq!(blocker.one("show work_mem"), "4MB", "{make}");
        }
        for blocker in &mut stage.blockers {
            blocker.query("commit").expect_no_error();
        }
    }
}

/// What DISCARD ALL has taken away the next session gets anew, on the same connection.
#[test]
fn a_cleaned_connection_is_brought_to_the_next_sessions_settings() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let login = Login::app().with("options", "-c search_path=elsewhere");
    let mut goes = gate.try_client(&login).unwrap();
    let run = [parse("p", "select 'p'"), bind("", "p", &[]), execute("", 0), sync()];
    goes.exchange(&run).expect_no_error();
    goes.query("create temp table t ()").expect_no_error();
    let backend = goes.backend();
    goes.hang_up();
    let mut next = gate.try_client(&login).unwrap();
    // Inside a transaction nothing can be tried again.
    next.query("begin").expect_no_error();
    assert_eq!(next.one("show search_path"), "elsewhere");
    next.exchange(&run).expect_no_error();
    next.query("commit").expect_no_error();
    assert_eq!(next.backend(), backend, "it was cleaned, not closed");
}

#[test]
fn what_can_not_be_asked_pins_for_good_and_ends_the_connection() {
    let mut stage = Stage::new();
    for (n, discard) in [(1.0, "select 1"), (2.0, "discard all")] {
        let mut session = stage.gate.client();
        session.query("select setseed(0.5)").expect_no_error();
        let mine = session.backend();
        assert_eq!(session.backend(), mine);
        eventually("the pin is counted", || (stage.pinned() == 1.0).then_some(()));
        session.query(discard).expect_no_error();
        drop(session);
        let closed = [("reason", "not_cleanable")];
        eventually("its connection is closed", || {
            (stage.gate.postgres_metric("tidegate_server_closed_total", &closed) == n).then_some(())
        });
        for blocker in &mut stage.blockers {
            blocker.query("begin").expect_no_error();
            assert_ne!(blocker.backend(), mine);
        }
        for blocker in &mut stage.blockers {
            blocker.query("commit").expect_no_error();
        }
    }
}

#[test]
fn currval_is_never_another_sessions() {
    let mut stage = Stage::new();
    stage.server.superuser().query("create sequence s; grant all on s to app").expect_no_error();
    let mut other = stage.gate.client();
    let mut session = stage.gate.client();
    // Draw on both connections.
    let mut last = String::new();
    for _ in 0..4 {
        let first = other.backend();
        other.query("select nextval('s')").expect_no_error();
        last = stage.moves(&mut other, &first);
        other.query("select nextval('s')").expect_no_error();
    }
    // The first time anybody asks, by whatever protocol.
    for ask in ["select currval('s')", "select lastval()"] {
        assert_eq!(session.query(ask).codes(), ["55000"]);
        let asked = [parse("", ask), bind("", "", &[]), execute("", 0), sync()];
        assert_eq!(session.exchange(&asked).codes(), ["55000"]);
    }
    stage.moves(&mut session, &last);
    assert_eq!(session.query("begin").status(), 'T');
    assert_eq!(session.query("select currval('s')").codes(), ["55000"]);
    session.query("rollback").expect_no_error();

    // In one transaction it is there, and for a while behind it; nobody else sees it.
    session.query("begin").expect_no_error();
    let drawn = session.one("select nextval('s')");
    assert_eq!(session.one("select currval('s')"), drawn);
    session.query("commit").expect_no_error();
    let drawn = session.one("select nextval('s')");
    assert_eq!(session.one("select currval('s')"), drawn);
    let mut third = stage.gate.client();
    for _ in 0..2 {
        let last = third.backend();
        assert_eq!(third.query("select currval('s')").codes(), ["55000"]);
        stage.moves(&mut third, &last);
    }
    stage.until_pinned(0.0);
}

#[test]
fn a_bound_set_config_follows_the_session() {
    let mut stage = Stage::new();
    let mut session = stage.gate.client();
    let last = session.backend();
    let reply = session.exchange(&[
        parse("", "select set_config($1, $2, false)"),
        bind("", "", &["app.user_id", "it's Jürgen \\"]),
        execute("", 0),
        sync(),
    ]);
    reply.expect_no_error();
    let last = stage.moves(&mut session, &last);
    assert_eq!(session.one("show app.user_id"), "it's Jürgen \\");
    let mut stranger = stage.gate.client();
    for _ in 0..2 {
        let seen = stranger.one("select coalesce(current_setting('app.user_id', true), '')");
        assert_eq!(seen, "", "nobody else sees it");
        stage.moves(&mut stranger, &last);
    }
}

#[test]
fn custom_settings_follow_the_session() {
    let mut stage = Stage::new();
    for (change, mine) in [
        ("set app.tenant = 'acme'", "acme"),
        ("set \"app\".\"tenant\" to 'it''s'", "it's"),
        ("select set_config('app.tenant', 'é', false)", "é"),
        ("do $$ begin perform set_config('app.tenant', 'hidden', false); end $$", "hidden"),
    ] {
        let seen = after(
            &mut stage,
            &[change],
            "select coalesce(current_setting('app.tenant', true), '')",
        );
        assert_eq!(seen, (mine.to_owned(), String::new()), "{change}");
    }
    assert_eq!(stage.pinned(), 0.0);
}

#[test]
fn requests_behind_a_suspect_are_answered_in_order() {
    let stage = Stage::new();
    let mut session = stage.gate.client();
    for n in 0..50 {
        let set = format!("set work_mem = '{}MB'", n + 1);
        session.send(&[query(&set), query("show work_mem"), query("select 'next'")].concat());
        let replies = [session.reply(), session.reply(), session.reply()];
        assert_eq!(replies[1].rows()[0][0].as_deref(), Some(&*format!("{}MB", n + 1)));
        assert_eq!(replies[2].rows()[0][0].as_deref(), Some("next"));
    }
}

/// odyssey #477, pgbouncer #1038, pgdog #943: after a migration the pool's plans were void, and clients got "cached plan must
/// not change result type", or statements that did not exist, until somebody reconnected every pooler by hand.
#[test]
fn a_changed_table_costs_a_prepared_statement_nothing() {
    let mut stage = Stage::new();
    let mut owner = stage.server.direct();
    owner.query("create table m (a int); insert into m values (1)").expect_no_error();
    let mut session = stage.gate.client();
    let run = [bind("", "q", &[]), execute("", 0), sync()];
    session.exchange(&[parse("q", "select * from m"), sync()]).expect_no_error();
    // Both backends have it.
    let first = session.backend();
    session.exchange(&run).expect_no_error();
    let second = stage.moves(&mut session, &first);
    session.exchange(&run).expect_no_error();
    for (alter, columns) in [
        ("alter table m alter a type bigint", 1),
        ("alter table m add b text", 2),
        ("alter table m drop b", 1),
    ] {
        owner.query(alter).expect_no_error();
        for last in [&first, &second] {
            let reply = session.exchange(&run);
            assert_eq!(reply.shape(), "2DCZ", "{alter}: {:?}", reply.errors());
            assert_eq!(reply.rows()[0].len(), columns, "{alter}");
            stage.moves(&mut session, last);
        }
    }
    // One that comes new and brings the same statement gets it parsed before it fails: it hears of that once.
    owner.query("alter table m add c int").expect_no_error();
    let mut newcomer = stage.gate.client();
    let reply = newcomer.exchange(&[
        parse("p", "select * from m"),
        bind("", "p", &[]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]);
    assert_eq!(reply.shape(), "12TDCZ", "{:?}", reply.errors());
    assert_eq!(reply.rows()[0].len(), 2);
    assert_eq!(newcomer.exchange(&[parse("r", "select 1"), sync()]).shape(), "1Z");
    owner.query("alter table m drop c").expect_no_error();
    session.exchange(&run).expect_no_error();
    // Within a transaction nothing can be sent again: the error is the server's own, and only one.
    owner.query("alter table m alter a type text").expect_no_error();
    session.query("begin").expect_no_error();
    assert_eq!(session.exchange(&run).codes(), ["0A000"]);
    session.query("rollback").expect_no_error();
    session.query("begin").expect_no_error();
    assert_eq!(session.exchange(&run).rows().len(), 1);
    session.query("commit").expect_no_error();
    // What the server can't do at all is said once.
    let locked = "select count(*) from m for update";
    session.exchange(&[parse("w", locked), sync()]);
    assert_eq!(
        session.exchange(&[parse("v", locked), bind("", "v", &[]), execute("", 0), sync()]).codes(),
        ["0A000"]
    );
    assert_eq!(session.one("select 1"), "1");
}

/// Other connections' plans are void, too: inside a transaction, where nothing can be sent again, it is too late to hear of it.
#[test]
fn a_void_plan_is_void_on_every_connection() {
    let mut stage = Stage::new();
    let mut owner = stage.server.direct();
    owner.query("create table m (a int); insert into m values (1)").expect_no_error();
    let mut session = stage.gate.client();
    let run = [bind("", "q", &[]), execute("", 0), sync()];
    session.exchange(&[parse("q", "select * from m"), sync()]).expect_no_error();
    let [one, other] = &mut stage.blockers;
    one.query("begin").expect_no_error();
    session.exchange(&run).expect_no_error();
    other.query("begin").expect_no_error();
    one.query("commit").expect_no_error();
    session.exchange(&run).expect_no_error();
    other.query("commit").expect_no_error();
    // Both connections have it. That it is void is found out on one, and matters on the other.
    owner.query("alter table m alter a type bigint").expect_no_error();
    one.query("begin").expect_no_error();
    session.exchange(&run).expect_no_error();
    other.query("begin").expect_no_error();
    one.query("commit").expect_no_error();
    session.query("begin").expect_no_error();
    session.exchange(&run).expect_no_error();
    session.query("commit").expect_no_error();
}

/// What the server was made to keep under a client's name is gone before the next client comes.
#[test]
fn a_name_that_was_refused_is_free_for_the_next_client() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut session = gate.client();
    session.exchange(&[parse("name", "select 1"), sync()]).expect_no_error();
    assert_eq!(session.exchange(&[parse("name", "select 2"), sync()]).codes(), ["42P05"]);
    let mut next = gate.client();
    next.query("prepare name as select 3").expect_no_error();
}

/// What takes all statements away takes itself away, too.
#[test]
fn a_prepared_deallocate_all_is_gone_for_the_next_client() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let text = "deallocate all";
    let prepare = [parse("s", text), bind("p", "s", &[])].concat();
    let later = [parse("t", "select 1"), execute("p", 0), sync()].concat();
    for _ in 0..2 {
        let mut session = gate.client();
        session.exchange(&[prepare.clone(), later.clone()]).expect_no_error();
        assert_eq!(session.exchange(&[describe_statement("t"), sync()]).codes(), ["26000"]);
        let mut next = gate.client();
        for (name, sql) in [("s", text), ("t", "select 1")] {
            next.exchange(&[parse(name, sql), describe_statement(name), sync()]).expect_no_error();
        }
    }
}

/// Nothing runs under another role than the session's.
#[test]
fn a_role_that_is_taken_away_ends_its_session_before_it_runs_anything() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut boss = server.superuser();
    let make = "create role worker; grant worker to app; create table who (name text default current_user); \
                grant all on who to public";
    boss.query(make).expect_no_error();
    let mut session = gate.client();
    session.query("set role worker").expect_no_error();
    assert_eq!(session.one("insert into who default values returning name"), "worker");
    assert_eq!(gate.client().one("select current_user"), "app");
    boss.query("revoke worker from app").expect_no_error();
    session.send(&query("insert into who default values"));
    let words = session.last_words();
    let told = words.last().map(|frame| frame.refusal()).unwrap_or_default();
    assert_eq!((told.severity.as_str(), told.code.as_str()), ("FATAL", "08006"), "{words:?}");
    assert_eq!(boss.one("select string_agg(name, ' ') from who"), "worker");
}

/// Settings that a server refuses at login cost nobody else's.
#[test]
fn refused_startup_settings_take_nothing_from_others() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut session = gate.try_client(&Login::app().with("options", "-c work_mem=5MB")).unwrap();
    assert_eq!(session.one("show work_mem"), "5MB");
    let wrong = Login::app().with("options", "-c work_mem=much");
    assert_eq!(gate.try_client(&wrong).map(drop).unwrap_err().code, "22023");
    assert_eq!(session.one("show work_mem"), "5MB");
}

/// A session keeps its own leave to pin no longer than what it pinned, even if it goes on listening.
#[test]
fn who_has_unpinned_leaves_room_for_the_next() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(3).wait_ms(3_000).start();
    let login = Login::app().with("client_encoding", "UTF8");
    let mut session = gate.try_client(&login).unwrap();
    session.query("listen news").expect_no_error();
    session.query("create temp table mine (n int)").expect_no_error();
    session.query("drop table mine").expect_no_error();
    eventually("it keeps no connection", || {
        let active = gate.postgres_metric("tidegate_clients", &[("state", "active")]);
        (active == 0.0).then_some(())
    });
    gate.client().query("create temp table mine (n int)").expect_no_error();
}

/// The first who ever asks what a sequence gave has drawn from it itself, where others have drawn before.
#[test]
fn what_a_session_has_drawn_in_its_transaction_is_its_own() {
    let stage = Stage::new();
    stage.server.superuser().query("create sequence s; grant all on s to app").expect_no_error();
    let mut other = stage.gate.client();
    other.query("select nextval('s')").expect_no_error();
    let mut session = stage.gate.client();
    session.query("begin").expect_no_error();
    let drawn = session.one("select nextval('s')");
    assert_eq!(session.one("select currval('s')"), drawn);
    session.query("commit").expect_no_error();
}

/// Where sessions ask for what a sequence gave, a connection is nobody else's for a while after it gave something.
#[test]
fn what_was_drawn_may_be_asked_for_though_others_come() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Time enough on a slow machine.
    std::fs::write(file.path(), "[postgres]\nsequence_hold_ms = 3000\n").unwrap();
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).config(file.path()).start();
    let blockers = [gate.client(), gate.client()];
    let mut stage = Stage { server, gate, blockers };
    stage.server.superuser().query("create sequence s; grant all on s to app").expect_no_error();
    let mut session = stage.gate.client();
    assert_eq!(session.query("select currval('s')").codes(), ["55000"]);
    for _ in 0..4 {
        let drawn = session.one("select nextval('s')");
        let [blocker, _] = &mut stage.blockers;
        blocker.query("begin").expect_no_error();
        assert_eq!(session.one("select currval('s')"), drawn);
        blocker.query("commit").expect_no_error();
        stage.until_pinned(0.0);
        let last = session.backend();
        stage.moves(&mut session, &last);
    }
    // In the middle of a flight, too, others' values are out of reach.
    let mut other = stage.gate.client();
    for _ in 0..2 {
        let last = other.backend();
        other.query("select nextval('s')").expect_no_error();
        stage.until_pinned(0.0);
        stage.moves(&mut other, &last);
    }
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    let reply = session.exchange(&[run("select 1"), run("select currval('s')"), sync()]);
    assert_eq!(reply.codes(), ["55000"]);
}

/// Drivers read rows by what they were told when they had the statement described. When its table changes, the server
/// refuses it, and they prepare it again: rows of another kind must never come instead.
#[test]
fn rows_are_never_of_another_kind_than_the_client_was_told() {
    let mut stage = Stage::new();
    let mut owner = stage.server.direct();
    owner.query("create table m (a int); insert into m values (1)").expect_no_error();
    let text = "select * from m";
    for (name, shared) in [("", "alone"), ("q", "alone"), ("q", "with another")] {
        owner.query("alter table m alter a type int using a::float::int").expect_no_error();
        let mut session = stage.gate.client();
        let mut other = stage.gate.client();
        let run = [bind("", name, &[]), execute("", 0), sync()];
        let prepare = [parse(name, text), describe_statement(name), sync()];
        session.exchange(&prepare).expect_no_error();
        assert_eq!(session.exchange(&run).shape(), "2DCZ");
        // The change is met where the statement is known, or by a connection that parses it for the first time.
        let last = if name.is_empty() { String::new() } else { session.backend() };
        owner.query("alter table m alter a type float4").expect_no_error();
        if shared == "with another" {
            other.exchange(&prepare).expect_no_error();
            assert_eq!(other.exchange(&run).rows()[0][0].as_deref(), Some("1"));
        }
        if !name.is_empty() {
            stage.moves(&mut session, &last);
        }
        for _ in 0..3 {
            let refused = session.exchange(&run);
            assert_eq!(refused.codes(), ["0A000"], "{name}, {shared}: {refused:?}");
            let error = refused.frames.iter().find(|frame| frame.tag == b'E').unwrap();
            let routine = b"\0RRevalidateCachedQuery\0";
            assert!(error.body.windows(routine.len()).any(|field| field == routine), "{error:?}");
        }
        let again = [close_statement(name), parse(name, text), describe_statement(name), sync()];
        session.exchange(&again).expect_no_error();
        for _ in 0..2 {
            let reply = session.exchange(&run);
            assert_eq!(reply.shape(), "2DCZ", "{:?}", reply.errors());
            let last = session.backend();
            stage.moves(&mut session, &last);
            if name.is_empty() {
                session.exchange(&prepare).expect_no_error();
            }
        }
        // Who asks for a description each time gets the new rows without an error, as they come.
        let described = [bind("", name, &[]), describe_portal(""), execute("", 0), sync()];
        owner.query("alter table m alter a type text").expect_no_error();
        assert_eq!(other.exchange(&[parse("d", text), sync()]).shape(), "1Z");
        let described_d = [bind("", "d", &[]), describe_portal(""), execute("", 0), sync()];
        assert_eq!(other.exchange(&described_d).shape(), "2TDCZ");
        if !name.is_empty() {
            assert_eq!(session.exchange(&described).shape(), "2TDCZ");
        }
    }
}

/// What another session drew is out of reach in the middle of a pipeline, too, for the first who ever asks.
#[test]
fn the_first_to_ask_in_a_pipeline_gets_nothing_of_others() {
    let stage = Stage::new();
    stage.server.superuser().query("create sequence s; grant all on s to app").expect_no_error();
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    let mut blocker = stage.gate.client();
    blocker.query("begin").expect_no_error();
    let mut other = stage.gate.client();
    let value = other.one("select nextval('s')");
    let mut session = stage.gate.client();
    let reply = session.exchange(&[run("select 1"), run("select currval('s')"), sync()]);
    assert_eq!(reply.codes(), ["55000"], "{value} is another's: {:?}", reply.rows());
    assert_eq!(session.query("select lastval()").codes(), ["55000"]);
}

/// A statement that draws and reads at once has its own value, however it comes and whoever drew before.
#[test]
fn what_a_prepared_statement_draws_itself_it_may_read() {
    for name in ["", "n"] {
        let stage = Stage::new();
        let mut other = stage.server.direct();
        other.query("create table t (id serial)").expect_no_error();
        let text = "insert into t default values returning currval('t_id_seq')";
        let mut session = stage.gate.client();
        session.query("select nextval('t_id_seq')").expect_no_error();
        let mut asks = stage.gate.client();
        let run = [parse(name, text), bind("", name, &[]), execute("", 0), sync()];
        assert_eq!(asks.exchange(&run).expect_no_error().rows(), [[Some("2".to_owned())]]);
    }
}
