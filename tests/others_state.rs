//! Bugs that other poolers shipped in what a session leaves behind: settings, locks, transactions. One test each, named by
//! what must not happen; its comment says whose bug it was and what went wrong there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::process::Command;
use std::time::Duration;

use support::pg::{Connection, Frame, bind, copy_data, execute, flush, parse, query, sync};
use support::postgres::{self, Postgres};
use support::stage::Stage;
use support::tidegate::Tidegate;
use support::{eventually, within};

fn run(sql: &str, values: &[&str]) -> Vec<u8> {
    [parse("", sql), bind("", "", values), execute("", 0)].concat()
}

fn answers(client: &mut Connection, queries: &[&str]) -> Vec<Frame> {
    let replies = queries.iter().flat_map(|sql| client.query(sql).frames);
    replies.map(|frame| frame.neutral()).collect()
}

/// Queries bring the same frames as directly, and nothing is left pinned.
fn assert_alike(stage: &mut Stage, scripts: &[&[&str]], before_each: &str) {
    let [mut owner, mut client] = [stage.server.direct(), stage.server.direct()];
    let mut session = stage.gate.client();
    for script in scripts {
        owner.query(before_each).expect_no_error();
        let direct = answers(&mut client, script);
        owner.query(before_each).expect_no_error();
        assert_eq!(answers(&mut session, script), direct, "{script:?}");
        for same in [&mut client, &mut session] {
            same.query("reset all").expect_no_error();
        }
    }
    let last = session.backend();
    stage.elsewhere(&last, || assert_eq!(session.one("select 1"), "1"));
}

/// pgbouncer (`apply_var`): values whose SET is longer than 127 bytes were not applied, and from 300 bytes on its last byte
/// was lost and a zero stood in the Query.
#[test]
fn a_long_setting_is_not_lost() {
    let mut stage = Stage::new();
    let mut session = stage.gate.client();
    let mut last = session.backend();
    let lengths = (96..=132).chain(265..=305).chain([1_000, 4_095, 4_096, 20_000]);
    for (n, length) in lengths.enumerate() {
        // Every fourth byte is one that has to be doubled.
        let value: String = "abc'".chars().cycle().take(length).collect();
        let quoted = value.replace('\'', "''");
        let name = if n % 2 == 0 { "search_path" } else { "app.long" };
        let set = format!("set {name} = '{quoted}'");
        session.query(&set).expect_no_error();
        let shown = session.one(&format!("select current_setting('{name}')"));
        let elsewhere;
        (last, elsewhere) = stage.elsewhere(&last, || {
            session.one(&format!("select pg_catalog.current_setting('{name}')"))
        });
        assert_eq!(elsewhere, shown, "{length}");
    }
    let mut stranger = stage.gate.client();
    for _ in 0..2 {
        let seen;
        (last, seen) = stage.elsewhere(&last, || stranger.one("show search_path"));
        assert_eq!(seen, "\"$user\", public");
    }
}

/// pgbouncer #418, #176, teachanything PR #450 (nine months unnoticed): one client's `default_transaction_read_only` made
/// others' writes fail.
#[test]
fn read_only_of_one_client_does_not_fail_anothers_write() {
    let mut stage = Stage::new();
    stage.server.direct().query("create table t (n int)").expect_no_error();
    for make in [
        "set default_transaction_read_only = on",
        "set session characteristics as transaction read only, isolation level serializable",
        "select set_config('default_transaction_read_only', 'on', false)",
        "begin; set default_transaction_read_only = on; commit",
        "set session default_transaction_read_only to true; commit",
    ] {
        let mut reader = stage.gate.client();
        let mut writer = stage.gate.client();
        reader.query(make).expect_no_error();
        let mut last = reader.backend();
        for _ in 0..2 {
            (last, ()) = stage.elsewhere(&last, || {
                assert_eq!(reader.query("insert into t values (1)").codes(), ["25006"], "{make}");
                writer.query("insert into t values (2)").expect_no_error();
                assert_eq!(writer.one("show transaction_isolation"), "read committed");
            });
        }
    }
}

/// pgbouncer #452, #396, #976, pgdog #677, #1055: pg_dump empties `search_path` and changes a dozen settings more, and the
/// clients after it no longer found their tables.
#[test]
fn a_dump_does_not_poison_the_pool() {
    let mut stage = Stage::new();
    let make = "create table t (n int, v text); insert into t values (1, 'one'); \
                create view w as select n from t; create sequence s; \
                create function f(int) returns int language sql as 'select $1'";
    stage.server.direct().query(make).expect_no_error();
    let settings = "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings \
                    where source = 'session' and name <> 'application_name'";
    let all = |stage: &mut Stage, session: &mut Connection| {
        let last = session.backend();
        let (last, one) = stage.elsewhere(&last, || session.query(settings).rows());
        let (_, other) = stage.elsewhere(&last, || session.query(settings).rows());
        assert_eq!(one, other);
        one
    };
    let mut session = stage.gate.client();
    let before = all(&mut stage, &mut session);
    let dump = |port: u16| {
        let mut command = Command::new(postgres::tool("pg_dump"));
        command.env("PGPASSWORD", postgres::PASSWORD).args(["-h", "127.0.0.1"]);
        command.args(["-p", &port.to_string(), "-U", postgres::USER, "-d", postgres::DATABASE]);
        let output = command.output().expect("pg_dump");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    // Newer ones put a random word into \restrict.
    let words = |text: String| -> Vec<String> {
        text.lines().filter(|line| !line.contains("restrict ")).map(String::from).collect()
    };
    let direct = words(dump(stage.server.port()));
    for _ in 0..2 {
        assert_eq!(words(dump(stage.gate.postgres_port())), direct);
        assert_eq!(session.one("select v from t"), "one");
        assert_eq!(all(&mut stage, &mut session), before);
    }
}

/// pgdog PR #1298, #1399, PR #1299: a `set_config()` with bound values, one behind FROM and WHERE, one the parser never saw,
/// or a SET in mid-transaction stayed on the connection for the next client, and did not follow its own.
#[test]
fn a_set_config_in_any_place_is_not_anothers() {
    let mut stage = Stage::new();
    let bytea = "select set_config('bytea_output', 'escape', false) \
                 from pg_catalog.pg_settings where name = 'bytea_output'";
    for (change, probe, mine, theirs) in [
        (run(bytea, &[]), "show bytea_output", "escape", "hex"),
        (
            run("select pg_catalog.set_config($1, $2, $3)", &["work_mem", "9MB", "f"]),
            "show work_mem",
            "9MB",
            "4MB",
        ),
        (
            run("with x as (select set_config($1, $2, false)) select * from x", &["app.x", "v"]),
            "select coalesce(current_setting('app.x', true), '')",
            "v",
            "",
        ),
        (
            [
                run("begin", &[]),
                run("select 1", &[]),
                run("set app.y = 'v'", &[]),
                run("commit", &[]),
            ]
            .concat(),
            "select coalesce(current_setting('app.y', true), '')",
            "v",
            "",
        ),
        (
            run("select set_config('work_mem', '9MB', n > 1) from generate_series(1, 1) n", &[]),
            "show work_mem",
            "9MB",
            "4MB",
        ),
    ] {
        let mut session = stage.gate.client();
        let mut stranger = stage.gate.client();
        session.exchange(&[change, sync()]).expect_no_error();
        let mut last = session.backend();
        for _ in 0..2 {
            (last, ()) = stage.elsewhere(&last, || {
                assert_eq!(session.one(probe), mine);
                assert_eq!(stranger.one(probe), theirs);
            });
        }
    }
}

fn advisory_locks(server: &Postgres) -> String {
    server.superuser().one("select count(*) from pg_locks where locktype = 'advisory'")
}

/// pgdog #1407, #134, pgbouncer #102, authentik #23876: a client that was killed while it held a session's advisory lock
/// left it on the pooled connection, and everybody else waited for it.
#[test]
fn a_lock_of_a_dead_client_does_not_stay() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let backend = gate.client().backend();
    let lock = "select pg_try_advisory_lock($1, $2)";
    for (make, runs) in [
        (vec![run(lock, &["999125", "0"]), sync()], false),
        (vec![parse("l", lock), bind("", "l", &["1", "2"]), execute("", 0), flush()], false),
        (vec![query("select pg_advisory_lock(7); select pg_sleep(60)")], true),
        (vec![query("select pg_advisory_lock(7)"), query("select pg_sleep(60)")], true),
        (vec![query("begin; select pg_advisory_lock_shared(7)")], false),
        (vec![query("select pg_advisory_lock(7)"), query("begin"), query("select 1/0")], false),
        (vec![query("do $$ begin perform pg_advisory_lock(8); end $$")], false),
    ] {
        let mut victim = gate.client();
        victim.send(&make.concat());
        eventually("it holds the lock", || (advisory_locks(&server) == "1").then_some(()));
        if runs {
            let sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
            eventually("it sleeps", || (server.superuser().one(sleeps) == "1").then_some(()));
        }
        victim.hang_up();
        within(Duration::from_secs(3), "the lock is gone", || {
            (advisory_locks(&server) == "0").then_some(())
        });
        let mut next = gate.client();
        assert_eq!(next.one("select pg_try_advisory_xact_lock(999125, 0)"), "t");
        assert_eq!(next.backend(), backend, "cleaned, not closed");
    }
}

/// pgbouncer #63, #478, #1043, #1312: who left in mid-transaction, in a query or inside a reply took the server connection
/// with it, and what ran for it ran on; a crowd of them was a storm of logins.
#[test]
fn a_client_that_leaves_does_not_take_the_connection_with_it() {
    let server = Postgres::start();
    server.direct().query("create table t (n int)").expect_no_error();
    let gate = Tidegate::before(&server, 1);
    let backend = gate.client().backend();
    let insert = "insert into t values (1)";
    for leaving in [
        vec![query("begin"), query(insert)],
        vec![query("begin"), query(insert), query("select pg_sleep(60)")],
        vec![query("begin"), query("select 1/0")],
        vec![run("select pg_sleep(60)", &[]), sync()],
        vec![run("begin", &[]), run(insert, &[]), flush()],
        vec![
            query("begin"),
            query("declare c cursor for select generate_series(1, 9)"),
            query("fetch c"),
        ],
        vec![query("copy t from stdin"), copy_data(b"1\n")],
        vec![query("begin"), run("copy t from stdin", &[]), sync(), copy_data(b"1\n")],
        vec![query("copy (select generate_series(1, 3000000)) to stdout")],
        vec![query("select generate_series(1, 3000000)")],
        vec![query("begin; set local work_mem = '9MB'; savepoint a; select 1/0")],
    ] {
        let mut victim = gate.client();
        victim.send(&leaving.concat());
        eventually("it holds the connection", || {
            let active = gate.postgres_metric("tidegate_clients", &[("state", "active")]);
            (active == 1.0).then_some(())
        });
        victim.hang_up();
        let mut next = gate.client();
        assert_eq!(next.query("select 1").status(), 'I');
        assert_eq!(next.backend(), backend, "rolled back and kept");
        assert_eq!(next.one("select count(*) from t"), "0");
    }
    assert_eq!(gate.page().sum("tidegate_server_closed_total", &[("protocol", "postgres")]), 0.0);
}

/// Found beside them: what a client has not ended by a Sync is no work of its to be kept when it leaves.
#[test]
fn what_no_sync_ended_is_not_committed_for_one_that_left() {
    let server = Postgres::start();
    server.direct().query("create table t (n int)").expect_no_error();
    let gate = Tidegate::before(&server, 1);
    let backend = gate.client().backend();
    for (end, goodbye) in [(vec![], false), (flush(), false), (flush(), true)] {
        let mut victim = gate.client();
        victim.send(&[run("insert into t values (1)", &[]), end.clone()].concat());
        if !end.is_empty() {
            victim.frames_until('C');
        }
        if goodbye {
            victim.send(&support::pg::terminate());
        }
        victim.hang_up();
        let mut next = gate.client();
        assert_eq!(next.one("select count(*) from t"), "0");
        assert_eq!(next.backend(), backend);
    }
}

/// Found beside them: a cancel for one that left must not end the BEGIN of its pipeline alone: what follows in the server's
/// buffer would run outside any transaction, and be committed.
#[test]
fn a_transaction_of_one_that_left_does_not_run_without_its_begin() {
    let server = Postgres::start();
    server.direct().query("create table t (n int)").expect_no_error();
    let gate = Tidegate::before(&server, 1);
    let backend = gate.client().backend();
    for _ in 0..2 {
        let mut victim = gate.client();
        let first = query("select pg_sleep(1); begin");
        victim.send(&[first, query("insert into t values (1)")].concat());
        let sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        eventually("it sleeps", || (server.superuser().one(sleeps) == "1").then_some(()));
        victim.hang_up();
        let mut next = gate.client();
        assert_eq!(next.one("select count(*) from t"), "0");
        assert_eq!(next.backend(), backend);
    }
}

/// Transaction status that a pooler gets wrong when it reads words, not ReadyForQuery: chained transactions, COMMIT among
/// other statements of one Query, errors behind it (pgcat, pgdog and odyssey each guess by the command tag or a parser).
#[test]
fn a_commit_among_others_does_not_end_or_keep_what_it_should_not() {
    let mut stage = Stage::new();
    let scripts: &[&[&str]] = &[
        &[
            "begin; insert into t values (1); commit and chain",
            "insert into t values (2)",
            "rollback",
        ],
        &["begin", "rollback and chain", "insert into t values (3)", "commit", "select * from t"],
        &[
            "begin isolation level serializable",
            "commit and chain",
            "show transaction_isolation",
            "rollback",
        ],
        &[
            "insert into t values (1); commit; insert into t values (2); select 1/0",
            "select * from t",
        ],
        &["begin; insert into t values (1); commit; insert into t values (2); select 1/0"],
        &["begin; insert into t values (1); commit; begin; insert into t values (2)", "commit"],
        &["set work_mem = '9MB'; commit; select 1/0", "show work_mem"],
        &["begin; set work_mem = '9MB'; commit; set work_mem = '8MB'; select 1/0", "show work_mem"],
        &["set work_mem = '9MB'; select 1/0", "show work_mem"],
        &[
            "begin; set work_mem = '9MB'",
            "commit and chain",
            "set work_mem = '8MB'",
            "rollback",
            "show work_mem",
        ],
        &["select 1; begin; select 2; rollback; select 3", "commit"],
        &["begin; savepoint a; select 1/0", "rollback to a; release a; commit; select 5"],
        &["create temp table x (n int) on commit drop; commit; select * from x"],
        &[
            "begin; create temp table x (n int); commit; drop table x; select 1/0",
            "drop table if exists x",
        ],
        &["vacuum t", "begin; vacuum t", "rollback"],
        &[
            "do $$ begin insert into t values (1); commit; insert into t values (2); rollback; end $$",
            "table t",
        ],
    ];
    let before = "create table if not exists t (n int); truncate t";
    assert_alike(&mut stage, scripts, before);
}

/// Two-phase commit: PREPARE TRANSACTION ends the session's transaction, and whoever comes may end it: it is neither a
/// prepared statement nor something of the session's to be pinned or rolled back for.
#[test]
fn a_prepared_transaction_does_not_stay_with_its_session() {
    let mut stage = Stage::new();
    stage.server.direct().query("create table t (n int)").expect_no_error();
    let mut session = stage.gate.client();
    session.query("begin; insert into t values (1)").expect_no_error();
    let mut last = session.backend();
    assert_eq!(session.query("prepare transaction 'one'").status(), 'I');
    (last, ()) = stage.elsewhere(&last, || {
        assert_eq!(session.one("select count(*) from t"), "0");
        assert_eq!(session.query("commit prepared 'one'").tags(), ["COMMIT PREPARED"]);
        assert_eq!(session.one("select count(*) from t"), "1");
        session
            .query("begin; insert into t values (2); prepare transaction 'two'")
            .expect_no_error();
    });
    session.hang_up();
    let mut other = stage.gate.client();
    stage.elsewhere(&last, || {
        assert_eq!(other.query("rollback prepared 'two'").tags(), ["ROLLBACK PREPARED"]);
        assert_eq!(other.query("commit prepared 'two'").codes(), ["42704"]);
    });
    let scripts: &[&[&str]] = &[
        &[
            "begin; set work_mem = '9MB'; prepare transaction 'three'",
            "show work_mem",
            "rollback prepared 'three'",
        ],
        &[
            "begin; select pg_advisory_xact_lock(1)",
            "prepare transaction 'four'",
            "commit prepared 'four'",
        ],
        &["begin; create temp table x (n int)", "prepare transaction 'five'", "select 1"],
        &["prepare transaction 'six'", "begin", "commit prepared 'seven'", "rollback"],
    ];
    assert_alike(&mut stage, scripts, "select 1");
}

/// pgcat (replies are read up to ReadyForQuery and no further), pgbouncer #822: what the server says while nobody asks came
/// never, or to whoever was there next.
#[test]
fn what_is_said_while_idle_is_not_told_to_the_next() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let mut listener = gate.client();
    listener.query("listen news").expect_no_error();
    let mut other = gate.client();
    for n in 0..5 {
        other.query(&format!("notify news, '{n}'")).expect_no_error();
        assert_eq!(listener.frame().kind(), 'A', "told while idle");
        assert_eq!(other.query("select 1").shape(), "TDCZ");
    }
    // A notice of one's own flight, and a reload that all connections hear of.
    let notice = "do $$ begin raise notice 'mine'; end $$";
    other.send(&[query(notice), query("select 1")].concat());
    assert_eq!(other.reply().shape(), "NCZ");
    assert_eq!(other.reply().shape(), "TDCZ");
    assert_eq!(listener.query("select 1").shape(), "TDCZ");
}

/// Found beside pgbouncer PR #298: a connection that was brought to a session's settings is that session's: were it given on
/// before the session's request has passed, two sessions of different roles would take it from each other for ever.
#[test]
fn sessions_of_different_roles_do_not_take_the_connection_from_each_other() {
    let server = Postgres::start();
    let make = "create role one nologin; create role two nologin; create role three nologin; \
                grant one, two, three to app";
    server.superuser().query(make).expect_no_error();
    let gate = Tidegate::before(&server, 1);
    std::thread::scope(|scope| {
        for role in ["one", "two", "three"] {
            let gate = &gate;
            scope.spawn(move || {
                let mut session = gate.client();
                session.query(&format!("set role {role}")).expect_no_error();
                for _ in 0..50 {
                    assert_eq!(session.one("select current_user"), role);
                }
            });
        }
    });
    let handed = gate.postgres_metric("tidegate_checkouts_total", &[]);
    assert!(handed < 200.0, "{handed} checkouts for 153 transactions");
}
