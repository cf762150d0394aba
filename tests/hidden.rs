//! What the words of a query don't say: settings, locks and temporary objects that functions leave behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::pg::{bind, execute, parse, sync};
use support::postgres::Postgres;
use support::stage::Stage;
use support::tidegate::{Setup, Tidegate};

/// A server with functions whose bodies nobody can read, before a pool of two.
fn before_hiders(variable: &str, value: &str) -> Stage {
    let server = Postgres::start();
    let mut owner = server.direct();
    for (name, statement) in [
        ("hide_setting", "'se' || 't work_mem = ''5MB'''"),
        ("hide_name", "'sel' || 'ect set_con' || 'fig(''app.hidden'', ''mine'', false)'"),
        ("hide_lock", "'sel' || 'ect pg_adv' || 'isory_lock(5)'"),
        ("hide_table", "'crea' || 'te te' || 'mp table hidden ()'"),
        ("hide_release", "'dro' || 'p table if exists hidden'"),
    ] {
        let body = format!("begin execute {statement}; end");
        let sql =
            format!("create function {name}() returns void language plpgsql as $f$ {body} $f$");
        owner.query(&sql).expect_no_error();
    }
    let gate = Setup::new().postgres(&server).pool_size(2).env(variable, value).start();
    Stage::with(server, gate)
}

#[test]
fn always_asking_finds_what_functions_hide() {
    let mut stage = before_hiders("TIDEGATE_POSTGRES_PROBE", "always");
    let mut session = stage.gate.client();
    let last = session.backend();
    session.query("select hide_setting()").expect_no_error();
    stage.moves(&mut session, &last);
    assert_eq!(session.one("show work_mem"), "5MB");
    let mut stranger = stage.gate.client();
    for _ in 0..4 {
        assert_eq!(stranger.one("show work_mem"), "4MB");
        let last = stranger.backend();
        stage.moves(&mut stranger, &last);
    }
    for (make, look, seen, release) in [
        ("select hide_lock()", "select pg_advisory_unlock(5)", "t", "select 1"),
        ("select hide_table()", "select count(*) from hidden", "0", "select hide_release()"),
    ] {
        session.query(make).expect_no_error();
        stage.until_pinned(1.0);
        let mine = session.backend();
        assert_eq!(stranger.query("select 1; select pg_sleep(0)").codes(), [""; 0]);
        assert_ne!(stranger.backend(), mine);
        assert_eq!(session.one(look), seen, "{make}");
        session.query(release).expect_no_error();
        stage.until_pinned(0.0);
    }
}

#[test]
fn what_functions_say_they_set_follows_the_session() {
    let server = Postgres::start();
    let mut owner = server.direct();
    for sql in [
        "create function set_tenant(text) returns void language plpgsql as
            $$ begin perform set_config('app.tenant', $1, false); end $$",
        "create function set_memory() returns void language sql as $$ set work_mem = '7MB' $$",
        "create function outer_one(text) returns void language sql as $$ select set_tenant($1) $$",
        "create function dynamic(text) returns void language plpgsql as
            $$ begin execute 'set app.dynamic = ' || quote_literal($1); end $$",
        "create procedure by_procedure() language plpgsql as $$ begin set app.proc = 'p'; end $$",
        "create function by_trigger() returns trigger language plpgsql as
            $$ begin perform set_config('app.fired', new.id::text, false); return new; end $$",
        "create table fires (id int)",
        "create trigger fires before insert on fires for each row execute function by_trigger()",
    ] {
        owner.query(sql).expect_no_error();
    }
    let gate = Tidegate::before(&server, 2);
    let mut stage = Stage::with(server, gate);
    for (change, look, seen) in [
        ("select set_tenant('blue')", "app.tenant", "blue"),
        ("select set_memory()", "work_mem", "7MB"),
        ("select outer_one('red')", "app.tenant", "red"),
        ("select dynamic('it''s')", "app.dynamic", "it's"),
        ("call by_procedure()", "app.proc", "p"),
        ("insert into fires values (41)", "app.fired", "41"),
    ] {
        let mut session = stage.gate.client();
        let last = session.backend();
        session.query(change).expect_no_error();
        let look = format!("select coalesce(current_setting('{look}', true), '')");
        stage.moves(&mut session, &last);
        assert_eq!(session.one(&look), seen, "{change}");
        let mut strangers = [stage.gate.client(), stage.gate.client()];
        for stranger in &mut strangers {
            stranger.query("begin").expect_no_error();
            assert_ne!(stranger.one(&look), seen, "{change}");
        }
    }
}

#[test]
fn a_setting_that_the_server_reports_is_noticed_whoever_changed_it() {
    let server = Postgres::start();
    server
        .direct()
        .query(
            "create function hide() returns void language plpgsql as
                $$ begin execute 'se' || 't timezone = ''Asia/Tokyo'''; end $$",
        )
        .expect_no_error();
    let gate = Tidegate::before(&server, 2);
    let mut stage = Stage::with(server, gate);
    let mut session = stage.gate.client();
    let last = session.backend();
    session.query("select hide()").expect_no_error();
    stage.moves(&mut session, &last);
    assert_eq!(session.one("show timezone"), "Asia/Tokyo");
    let mut strangers = [stage.gate.client(), stage.gate.client()];
    for stranger in &mut strangers {
        stranger.query("begin").expect_no_error();
        assert_ne!(stranger.one("show timezone"), "Asia/Tokyo");
    }
}

#[test]
fn a_function_made_over_the_pool_is_known_at_once() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut stage = Stage::with(server, gate);
    let mut session = stage.gate.client();
    let prepared = [parse("s", "select set_late($1)"), sync()];
    session
        .query("create function set_late(text) returns void language sql as $$ select $$")
        .expect_no_error();
    session.exchange(&prepared).expect_no_error();
    session
        .query(
            "create or replace function set_late(text) returns void language sql as
                $$ select set_config('app.late', $1, false) $$",
        )
        .expect_no_error();
    // The statement was prepared before the function set anything.
    session.exchange(&[bind("", "s", &["mine"]), execute("", 0), sync()]).expect_no_error();
    let last = session.backend();
    stage.moves(&mut session, &last);
    assert_eq!(session.one("show app.late"), "mine");
    // Made and called in one transaction: nobody else sees what it left.
    session
        .query(
            "begin; create function set_now() returns void language sql as $$ set work_mem = '9MB' $$; \
             select set_now(); commit",
        )
        .expect_no_error();
    let last = session.backend();
    stage.moves(&mut session, &last);
    assert_eq!(session.one("show work_mem"), "9MB");
    let mut strangers = [stage.gate.client(), stage.gate.client()];
    for stranger in &mut strangers {
        stranger.query("begin").expect_no_error();
        assert_eq!(stranger.one("show work_mem"), "4MB");
    }
}

#[test]
fn a_strict_pool_passes_on_nothing_that_functions_hide() {
    let stage = before_hiders("TIDEGATE_POSTGRES_STRICT", "1");
    for hide in ["hide_setting()", "hide_name()", "hide_lock()", "hide_table()"] {
        let mut session = stage.gate.client();
        session.query(&format!("select {hide}")).expect_no_error();
        let mut blockers = [stage.gate.client(), stage.gate.client()];
        for blocker in &mut blockers {
            blocker.query("begin").expect_no_error();
            let left = blocker.query(
                "select current_setting('work_mem'), coalesce(current_setting('app.hidden', true), ''),
                    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
                    (select count(*) from pg_class where relnamespace = pg_my_temp_schema())",
            );
            let row = &left.rows()[0];
            let row: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap()).collect();
            assert_eq!(row, ["4MB", "", "0", "0"], "{hide}");
        }
        assert_eq!(stage.server.sessions_of("app"), 2);
    }
}

#[test]
fn a_strict_pool_keeps_what_a_session_set() {
    let stage = before_hiders("TIDEGATE_POSTGRES_STRICT", "1");
    let mut sessions = [stage.gate.client(), stage.gate.client(), stage.gate.client()];
    for (n, session) in sessions.iter_mut().enumerate() {
        session.query(&format!("set work_mem = '{}MB'", n + 10)).expect_no_error();
        session.query(&format!("set app.who = 'session {n}'")).expect_no_error();
    }
    for _ in 0..3 {
        for (n, session) in sessions.iter_mut().enumerate() {
            assert_eq!(session.one("show work_mem"), format!("{}MB", n + 10));
            assert_eq!(session.one("show app.who"), format!("session {n}"));
        }
    }
}
