//! A client can't tell: the same frames, sent directly and through tidegate, bring the same bytes
//! back, while another client uses the same backends with the same statement names in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(clippy::too_many_lines, reason = "the scripts are tables")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use support::pg::{
    Connection, Frame, Login, bind, close_statement, copy_data, copy_done, copy_fail,
    describe_portal, describe_statement, execute, flush, function_call, parse, query, sync,
    terminate,
};
use support::postgres::Postgres;
use support::tidegate::Tidegate;

/// One thing that a client does.
enum Step {
    Send(Vec<u8>),
    /// Reads until a frame of this kind has come.
    Until(char),
    /// Reads until the server closes.
    UntilClosed,
}
use Step::{Send, Until, UntilClosed};

/// How the client's bytes are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pieces {
    Whole,
    /// In packets of at most so many bytes.
    Of(usize),
}

type Script = (&'static str, Vec<Step>);

/// Sends `parts` in one write and reads to the ReadyForQuery.
fn ask(parts: &[Vec<u8>]) -> Vec<Step> {
    vec![Send(parts.concat()), Until('Z')]
}

/// The same with several ReadyForQuery to come.
fn ask_for(ready: usize, parts: &[Vec<u8>]) -> Vec<Step> {
    let mut steps = vec![Send(parts.concat())];
    steps.extend((0..ready).map(|_| Until('Z')));
    steps
}

fn all(groups: Vec<Vec<Step>>) -> Vec<Step> {
    groups.into_iter().flatten().collect()
}

fn queries(texts: &[&str]) -> Vec<Step> {
    texts.iter().flat_map(|sql| ask(&[query(sql)])).collect()
}

fn simple_scripts() -> Vec<Script> {
    vec![
        ("one select", queries(&["select 1 as one, null as nothing, 'text' as words"])),
        ("several statements", queries(&["select 1; select 'two'; values (3), (4)"])),
        ("empty queries", queries(&["", ";", " -- only a comment\n"])),
        ("an error", queries(&["select 1/0", "select 1"])),
        ("an error between statements", queries(&["select 1; select 1/0; select 2", "select 3"])),
        ("a syntax error", queries(&["selec 1"])),
        ("a notice", queries(&["do $$ begin raise notice 'look: %', 7; end $$"])),
        ("a transaction", queries(&["begin", "update t set v = 'x'", "select * from t", "commit"])),
        (
            "a failed transaction",
            queries(&["begin", "select 1/0", "select 1", "commit", "select * from t order by id"]),
        ),
        (
            "savepoints",
            queries(&["begin", "savepoint a", "select 1/0", "rollback to a", "select 5", "end"]),
        ),
        (
            "a constraint that fails at commit",
            queries(&["begin", "insert into later values (1), (1)", "commit", "select 1"]),
        ),
        ("warnings", queries(&["commit", "begin; begin; rollback", "rollback"])),
        ("two queries in one write", ask_for(2, &[query("select 1"), query("select 2")])),
        (
            "five transactions in one write",
            ask_for(
                5,
                &[
                    query("begin"),
                    query("select 1"),
                    query("commit"),
                    query("select 2"),
                    query("select 1/0"),
                ],
            ),
        ),
        ("goodbye", vec![Send([query("select 1"), terminate()].concat()), Until('Z'), UntilClosed]),
        ("goodbye without a word", vec![Send(terminate()), UntilClosed]),
        ("a large value", queries(&["select repeat('x', 3000000)"])),
        ("many rows", queries(&["select g, repeat('y', 50) from generate_series(1, 20000) g"])),
        ("a large statement", queries(&[&format!("select length('{}')", "z".repeat(2_000_000))])),
        (
            "SQL-level PREPARE",
            queries(&[
                "prepare q as select $1::int + 1",
                "execute q(41)",
                "deallocate q",
                "execute q(1)",
            ]),
        ),
        (
            "settings",
            queries(&[
                "set application_name = 'me'",
                "show application_name",
                "set timezone = 'Asia/Tokyo'",
                "select '2026-01-01 00:00+00'::timestamptz",
                "reset timezone",
                "show timezone",
                "set nonsense = 1",
                "show application_name",
            ]),
        ),
        (
            "a setting that newer servers report",
            queries(&[
                "set search_path = pg_catalog, public",
                "begin; set local search_path = public; show search_path; commit",
                "begin; set search_path = 'elsewhere'; rollback",
                "select set_config('search_path', 'public', false)",
                "reset search_path",
                "set search_path = 'elsewhere'; discard all",
            ]),
        ),
        (
            "a local setting",
            queries(&["begin; set local work_mem = '5MB'; show work_mem; commit", "show work_mem"]),
        ),
        (
            "function call",
            all(vec![
                ask(&[function_call(177, &["40", "2"])]),
                ask(&[function_call(154, &["1", "0"])]),
                ask(&[function_call(4_000_000_000, &[])]),
                queries(&["select 1"]),
            ]),
        ),
    ]
}

fn extended_scripts() -> Vec<Script> {
    vec![
        (
            "all names taken away and one given anew, in one write",
            all(vec![
                ask(&[parse("k1", "select 10"), sync()]),
                ask_for(
                    3,
                    &[
                        query("deallocate all"),
                        parse("k1", "select 11"),
                        sync(),
                        bind("", "k1", &[]),
                        execute("", 0),
                        sync(),
                    ],
                ),
            ]),
        ),
        (
            "all names taken away and one used, in one write",
            all(vec![
                ask(&[parse("k1", "select 10"), sync()]),
                ask_for(2, &[query("deallocate all"), bind("", "k1", &[]), execute("", 0), sync()]),
                queries(&["select 1"]),
            ]),
        ),
        (
            "all names taken away inside one flight",
            all(vec![
                ask(&[parse("k1", "select 10"), parse("away", "deallocate all"), sync()]),
                ask(&[
                    bind("", "away", &[]),
                    describe_portal(""),
                    execute("", 0),
                    parse("k1", "select 12"),
                    bind("", "k1", &[]),
                    execute("", 0),
                    sync(),
                ]),
            ]),
        ),
        (
            "all names kept by a failed transaction, in one write",
            all(vec![
                ask(&[parse("k1", "select 10"), sync()]),
                ask_for(
                    5,
                    &[
                        query("begin"),
                        query("select 1/0"),
                        query("deallocate all"),
                        query("rollback"),
                        bind("", "k1", &[]),
                        execute("", 0),
                        sync(),
                    ],
                ),
            ]),
        ),
        (
            "the whole round",
            ask(&[
                parse("", "select id, v from t where id > $1::int order by id"),
                describe_statement(""),
                bind("", "", &["1"]),
                describe_portal(""),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "a portal in pieces",
            ask(&[
                parse("", "select id from t order by id"),
                bind("p", "", &[]),
                execute("p", 1),
                execute("p", 1),
                execute("p", 0),
                sync(),
            ]),
        ),
        (
            "a portal over several Syncs",
            all(vec![
                queries(&["begin"]),
                ask(&[
                    parse("", "select id from t order by id"),
                    bind("p", "", &[]),
                    execute("p", 1),
                    sync(),
                ]),
                ask(&[execute("p", 1), sync()]),
                ask(&[execute("p", 5), sync()]),
                queries(&["commit"]),
                ask(&[execute("p", 1), sync()]),
            ]),
        ),
        (
            "pipelined with a Sync each",
            ask_for(
                3,
                &[
                    parse("", "select 1"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                    parse("", "select 'two'"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                    parse("", "select 3"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ],
            ),
        ),
        (
            "pipelined with one Sync",
            ask(&[
                parse("", "insert into t values (10, 'ten')"),
                bind("", "", &[]),
                execute("", 0),
                parse("", "select count(*) from t"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]),
        ),
        (
            "one Sync, all or nothing",
            all(vec![
                ask(&[
                    parse("", "insert into t values (11, 'eleven')"),
                    bind("", "", &[]),
                    execute("", 0),
                    parse("", "select 1/0"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "Flush without Sync",
            all(vec![
                vec![
                    Send(
                        [parse("", "select 7"), bind("", "", &[]), execute("", 0), flush()]
                            .concat(),
                    ),
                    Until('C'),
                ],
                vec![Send([parse("", "select 8"), flush()].concat()), Until('1')],
                vec![Send([bind("", "", &[]), execute("", 0), sync()].concat()), Until('Z')],
            ]),
        ),
        (
            "error, then skip to Sync",
            ask_for(
                2,
                &[
                    parse("", "selec 1"),
                    bind("", "", &[]),
                    execute("", 0),
                    parse("", "select 1"),
                    flush(),
                    sync(),
                    query("select 2"),
                ],
            ),
        ),
        (
            "error in Bind",
            all(vec![
                ask(&[
                    parse("", "select $1::int"),
                    bind("", "", &["word"]),
                    execute("", 0),
                    sync(),
                ]),
                ask(&[parse("", "select $1::int"), bind("", "", &[]), execute("", 0), sync()]),
                queries(&["select 1"]),
            ]),
        ),
        (
            "error, Flush, answer, Sync",
            all(vec![
                vec![
                    Send(
                        [parse("", "select 1/0"), bind("", "", &[]), execute("", 0), flush()]
                            .concat(),
                    ),
                    Until('E'),
                ],
                ask(&[parse("", "select 1"), sync()]),
            ]),
        ),
        ("Syncs alone", ask_for(3, &[sync(), flush(), sync(), sync()])),
        (
            "a Query among extended",
            ask_for(
                3,
                &[
                    parse("", "select 1"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                    query("select 2"),
                    parse("", "select 3"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ],
            ),
        ),
        ("no such portal", ask(&[execute("nowhere", 0), sync()])),
        (
            "an empty statement",
            ask(&[parse("", ""), bind("", "", &[]), describe_portal(""), execute("", 0), sync()]),
        ),
        (
            "transaction by extended queries",
            all(["begin", "update t set v = 'y'", "rollback"]
                .iter()
                .map(|sql| ask(&[parse("", sql), bind("", "", &[]), execute("", 0), sync()]))
                .collect()),
        ),
        (
            "a large parameter",
            ask(&[
                parse("", "select length($1::text)"),
                bind("", "", &[&"w".repeat(2_000_000)]),
                execute("", 0),
                sync(),
            ]),
        ),
    ]
}

fn statement_scripts() -> Vec<Script> {
    vec![
        (
            "named, used later",
            all(vec![
                ask(&[parse("s", "select $1::int * 2"), describe_statement("s"), sync()]),
                ask(&[bind("", "s", &["21"]), execute("", 0), sync()]),
                ask(&[
                    bind("", "s", &["4"]),
                    execute("", 0),
                    bind("", "s", &["5"]),
                    execute("", 0),
                    sync(),
                ]),
                ask(&[describe_statement("s"), sync()]),
                ask(&[close_statement("s"), sync()]),
                ask(&[bind("", "s", &["1"]), execute("", 0), sync()]),
            ]),
        ),
        (
            "the same name twice",
            all(vec![
                ask(&[parse("s", "select 1"), sync()]),
                ask(&[parse("s", "select 2"), sync()]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
                ask(&[
                    close_statement("s"),
                    parse("s", "select 3"),
                    bind("", "s", &[]),
                    execute("", 0),
                    sync(),
                ]),
            ]),
        ),
        (
            "the same name again and again, and for a text with a fault",
            all(vec![
                ask(&[parse("s", "select 1"), sync()]),
                ask(&[parse("s", "select 2"), sync()]),
                ask(&[parse("s", "select 3"), sync()]),
                ask(&[parse("s", "selec"), sync()]),
                ask(&[parse("s", "select * from nowhere"), sync()]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
            ]),
        ),
        (
            "a name that is given up behind what fails, in one write",
            all(vec![
                ask(&[parse("s", "select 1"), sync()]),
                ask_for(2, &[bind("", "s", &["1", "2"]), sync(), close_statement("s"), sync()]),
            ]),
        ),
        (
            "the unnamed statement behind an Execute that fails",
            all(vec![
                queries(&["begin"]),
                ask(&[parse("", "create table unnamed ()"), execute("", 0), sync()]),
                ask(&[describe_statement(""), sync()]),
                queries(&["rollback"]),
                ask(&[bind("", "", &[]), execute("", 0), sync()]),
            ]),
        ),
        (
            "all names taken away by a statement that is bound wrongly",
            all(vec![ask(&[
                parse("s", "discard all"),
                bind("", "s", &["1"]),
                execute("", 0),
                sync(),
            ])]),
        ),
        (
            "executed by SQL",
            all(vec![
                ask(&[parse("s", "select $1::int * 3"), sync()]),
                queries(&["execute s(7)", "explain (costs off) execute s(7)", "execute s('x')"]),
                queries(&["begin", "execute s(8)", "execute s(8); select 1", "commit"]),
                ask(&[parse("", "execute s(9)"), describe_statement(""), sync()]),
                ask(&[bind("", "", &[]), describe_portal(""), execute("", 0), sync()]),
                ask(&[bind("", "s", &["5"]), execute("", 0), sync()]),
                ask_for(3, &[query("execute s(1)"), query("execute s(2)"), query("select 3")]),
                queries(&["deallocate s", "execute s(7)"]),
            ]),
        ),
        (
            "executed by SQL when its table has gone",
            all(vec![
                queries(&["create table executed (a int)"]),
                ask(&[parse("s", "select a + 0 as a from executed"), sync()]),
                queries(&["execute s", "drop table executed", "select 1"]),
                queries(&["begin", "select 1/0", "execute s", "rollback", "select 2"]),
            ]),
        ),
        (
            "errors call a statement by the client's name",
            all(vec![
                ask(&[parse("s", "select $1::int * 2"), sync()]),
                ask(&[bind("", "s", &["1", "2"]), execute("", 0), close_statement("s"), sync()]),
                ask_for(
                    2,
                    &[parse("v", "selec"), sync(), bind("", "v", &[]), execute("", 0), sync()],
                ),
            ]),
        ),
        (
            "never parsed",
            all(vec![
                ask(&[bind("", "ghost", &[]), execute("", 0), sync()]),
                ask(&[describe_statement("ghost"), sync()]),
                ask(&[close_statement("ghost"), sync()]),
                queries(&["select 1"]),
            ]),
        ),
        (
            "parsed in vain",
            all(vec![
                ask(&[parse("s", "select nothing from nowhere"), sync()]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
                ask(&[
                    parse("s", "select 'now it works'"),
                    bind("", "s", &[]),
                    execute("", 0),
                    sync(),
                ]),
            ]),
        ),
        (
            "skipped by an error before it",
            all(vec![
                ask(&[
                    parse("", "select 1/0"),
                    bind("", "", &[]),
                    execute("", 0),
                    parse("s", "select 1"),
                    sync(),
                ]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
            ]),
        ),
        (
            "parsed in a transaction that fails",
            all(vec![
                queries(&["begin"]),
                ask(&[parse("s", "select 'still here'"), sync()]),
                queries(&["select 1/0", "rollback"]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
            ]),
        ),
        (
            "unnamed, bound in a later Sync",
            all(vec![
                ask(&[parse("", "select $1::text"), sync()]),
                ask(&[bind("", "", &["kept"]), execute("", 0), sync()]),
                ask(&[describe_statement(""), sync()]),
                queries(&["select 'a simple query ends the unnamed statement'"]),
                ask(&[bind("", "", &["gone"]), execute("", 0), sync()]),
            ]),
        ),
        (
            "unnamed, replaced by one that fails",
            all(vec![
                ask(&[parse("", "select 'first'"), sync()]),
                ask(&[parse("", "selec"), sync()]),
                ask(&[bind("", "", &[]), execute("", 0), sync()]),
            ]),
        ),
        (
            "the table changes under it",
            all(vec![
                ask(&[parse("s", "select * from t where id = 1"), sync()]),
                ask(&[bind("", "s", &[]), describe_portal(""), execute("", 0), sync()]),
                queries(&["begin"]),
                // On this backend it has a plan now: on another there would be none to become void.
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
                queries(&["alter table t add column extra int"]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
                queries(&["rollback"]),
                ask(&[bind("", "s", &[]), execute("", 0), sync()]),
            ]),
        ),
        (
            "forty names",
            (0..40)
                .flat_map(|n| {
                    let name = format!("s{n}");
                    ask(&[
                        parse(&name, &format!("select {n}")),
                        bind("", &name, &[]),
                        execute("", 0),
                        sync(),
                    ])
                })
                .chain(
                    (0..40).flat_map(|n| {
                        ask(&[bind("", &format!("s{n}"), &[]), execute("", 0), sync()])
                    }),
                )
                .collect(),
        ),
    ]
}

/// What drivers are known to send that their neighbours do not.
fn habit_scripts() -> Vec<Script> {
    vec![
        (
            "JDBC: a transaction begun by a statement with a name, ahead of the first one in it",
            all(vec![
                ask(&[
                    parse("S_1", "BEGIN"),
                    bind("", "S_1", &[]),
                    execute("", 0),
                    parse("S_2", "select v from t where id = $1::int"),
                    bind("", "S_2", &["1"]),
                    describe_portal(""),
                    execute("", 0),
                    sync(),
                ]),
                ask(&[parse("S_3", "COMMIT"), bind("", "S_3", &[]), execute("", 1), sync()]),
                ask(&[
                    bind("", "S_1", &[]),
                    execute("", 0),
                    bind("C_1", "S_2", &["2"]),
                    execute("C_1", 1),
                    sync(),
                ]),
                ask(&[bind("", "S_3", &[]), execute("", 1), sync()]),
                ask(&[close_statement("S_2"), bind("", "S_2", &["1"]), sync()]),
            ]),
        ),
        (
            "JDBC: a batch in one piece, described first",
            all(vec![
                vec![
                    Send(
                        [
                            parse("S_1", "insert into t values ($1, $2) returning id"),
                            describe_statement("S_1"),
                            flush(),
                        ]
                        .concat(),
                    ),
                    Until('T'),
                ],
                ask(&[
                    bind("", "S_1", &["11", "eleven"]),
                    execute("", 0),
                    bind("", "S_1", &["12", "twelve"]),
                    execute("", 0),
                    bind("", "S_1", &["11", "again"]),
                    execute("", 0),
                    bind("", "S_1", &["13", "thirteen"]),
                    execute("", 0),
                    sync(),
                ]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "libpq: pipeline with requests to flush, and an error in it",
            all(vec![
                vec![
                    Send(
                        [
                            parse("", "select $1::int"),
                            bind("", "", &["1"]),
                            describe_portal(""),
                            execute("", 0),
                            flush(),
                        ]
                        .concat(),
                    ),
                    Until('C'),
                    Send([bind("", "", &["2"]), execute("", 0), flush()].concat()),
                    Until('C'),
                    Send([bind("", "", &["two"]), execute("", 0), flush()].concat()),
                    Until('E'),
                    Send([bind("", "", &["3"]), execute("", 0), flush()].concat()),
                ],
                ask(&[sync()]),
                ask(&[bind("", "", &["4"]), execute("", 0), sync()]),
            ]),
        ),
        (
            "Rails: at connect, and a statement it gives up",
            all(vec![
                queries(&[
                    "SET client_min_messages TO 'warning'",
                    "SET standard_conforming_strings = on",
                    "SET SESSION timezone TO 'UTC'",
                    "SET intervalstyle = iso_8601",
                    "SELECT t.oid, t.typname FROM pg_type as t WHERE t.typname IN ('int4', 'text')",
                ]),
                ask(&[parse("a1", "SELECT t.* FROM t WHERE t.id = $1 LIMIT $2"), sync()]),
                ask(&[describe_statement("a1"), sync()]),
                ask(&[bind("", "a1", &["1", "1"]), describe_portal(""), execute("", 0), sync()]),
                queries(&["DEALLOCATE a1", "SHOW intervalstyle", "SELECT '1 day'::interval"]),
                ask(&[bind("", "a1", &["1", "1"]), describe_portal(""), execute("", 0), sync()]),
            ]),
        ),
        (
            "Rails: a migration under a session's lock",
            queries(&[
                "SELECT pg_try_advisory_lock(4242)",
                "BEGIN",
                "CREATE TABLE migrated (id int)",
                "COMMIT",
                "SELECT pg_try_advisory_lock(4242)",
                "DROP TABLE migrated",
                "SELECT pg_advisory_unlock(4242)",
                "SELECT pg_advisory_unlock(4242)",
                "SELECT pg_advisory_unlock(4242)",
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
            ]),
        ),
        (
            "Prisma: everything deallocated before each transaction",
            all((0..3)
                .map(|_| {
                    all(vec![
                        queries(&["DEALLOCATE ALL", "BEGIN"]),
                        ask(&[
                            parse("s0", "select v from t where id = $1::int"),
                            describe_statement("s0"),
                            sync(),
                        ]),
                        ask(&[bind("", "s0", &["2"]), execute("", 0), sync()]),
                        queries(&["COMMIT"]),
                    ])
                })
                .collect()),
        ),
        (
            "Django: a cursor outside a transaction, with others between its parts",
            all(vec![queries(&[
                "DECLARE \"_django_curs_1_1\" NO SCROLL CURSOR WITH HOLD FOR SELECT id FROM t",
                "FETCH FORWARD 2 FROM \"_django_curs_1_1\"",
                "SELECT 1",
                "BEGIN",
                "UPDATE t SET v = 'x' WHERE id = 1",
                "ROLLBACK",
                "FETCH FORWARD 2 FROM \"_django_curs_1_1\"",
                "CLOSE \"_django_curs_1_1\"",
                "FETCH FORWARD 2 FROM \"_django_curs_1_1\"",
            ])]),
        ),
        (
            "pgx: prepared by a name of its own, a ping without a statement, a statement let go",
            all(vec![
                ask(&[
                    parse("stmtcache_1", "select id, v from t where id = $1"),
                    describe_statement("stmtcache_1"),
                    sync(),
                ]),
                ask(&[
                    bind("", "stmtcache_1", &["1"]),
                    describe_portal(""),
                    execute("", 0),
                    sync(),
                ]),
                queries(&["-- ping", "begin isolation level serializable"]),
                ask(&[
                    bind("", "stmtcache_1", &["2"]),
                    describe_portal(""),
                    execute("", 0),
                    sync(),
                ]),
                queries(&["rollback"]),
                ask(&[close_statement("stmtcache_1"), sync()]),
            ]),
        ),
        (
            "Npgsql: several statements behind one Sync; its reset ahead of the next in one write",
            all(vec![
                ask(&[
                    parse("", "SELECT version() IS NOT NULL"),
                    bind("", "", &[]),
                    describe_portal(""),
                    execute("", 0),
                    parse("", "SELECT typname FROM pg_type WHERE oid = 23"),
                    bind("", "", &[]),
                    describe_portal(""),
                    execute("", 0),
                    sync(),
                ]),
                queries(&["SET work_mem = '5MB'"]),
                ask_for(
                    2,
                    &[
                        query("DISCARD ALL"),
                        parse("", "SHOW work_mem"),
                        bind("", "", &[]),
                        describe_portal(""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                queries(&["SET work_mem = '5MB'"]),
                ask_for(
                    3,
                    &[
                        query(
                            "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;\
                             SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP",
                        ),
                        query("BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED"),
                        parse("_p1", "SHOW work_mem"),
                        bind("", "_p1", &[]),
                        describe_portal(""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                queries(&["COMMIT"]),
            ]),
        ),
    ]
}

fn copy_scripts() -> Vec<Script> {
    let start = |sql: &str| vec![Send(query(sql)), Until('G')];
    vec![
        (
            "COPY in",
            all(vec![
                start("copy t from stdin"),
                ask(&[copy_data(b"20\ttwenty\n21\ttwen"), copy_data(b"ty-one\n"), copy_done()]),
                queries(&["select * from t order by id"]),
            ]),
        ),
        (
            "COPY in, sent blindly, and a transaction behind it that no Sync ends",
            all(vec![
                vec![
                    Send(
                        [
                            query("copy t from stdin"),
                            copy_data(b"40\tforty\n"),
                            copy_done(),
                            parse("", "begin"),
                            bind("", "", &[]),
                            execute("", 0),
                            flush(),
                        ]
                        .concat(),
                    ),
                    Until('Z'),
                    Until('C'),
                ],
                queries(&["select 1"]),
                ask(&[sync()]),
                queries(&["select count(*) from t", "rollback", "select 2"]),
            ]),
        ),
        (
            "COPY in, given up",
            all(vec![
                start("copy t from stdin"),
                ask(&[copy_data(b"22\tx\n"), copy_fail("changed my mind")]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY in, refused by the server",
            all(vec![
                start("copy t from stdin"),
                ask(&[copy_data(b"word\tx\n"), copy_data(b"24\tx\n"), copy_done()]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY in, in one write",
            all(vec![
                ask(&[query("copy t from stdin"), copy_data(b"25\tx\n"), copy_done()]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY in, two of them",
            all(vec![
                start("copy t from stdin; copy t from stdin"),
                vec![Send([copy_data(b"26\tx\n"), copy_done()].concat()), Until('G')],
                ask(&[copy_data(b"27\tx\n"), copy_done()]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY in by the extended protocol",
            all(vec![
                vec![
                    Send(
                        [
                            parse("", "copy t from stdin"),
                            bind("", "", &[]),
                            execute("", 0),
                            flush(),
                        ]
                        .concat(),
                    ),
                    Until('G'),
                ],
                ask(&[copy_data(b"28\tx\n"), copy_done(), sync()]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY in by the extended protocol, refused",
            all(vec![
                vec![
                    Send(
                        [
                            parse("", "copy t from stdin"),
                            bind("", "", &[]),
                            execute("", 0),
                            flush(),
                        ]
                        .concat(),
                    ),
                    Until('G'),
                ],
                ask(&[copy_data(b"word\tx\n"), copy_data(b"29\tx\n"), copy_done(), sync()]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY in with a Sync too early",
            all(vec![
                ask(&[
                    parse("", "copy t from stdin"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                    copy_data(b"30\tx\n"),
                    copy_done(),
                    sync(),
                ]),
                queries(&["select count(*) from t"]),
            ]),
        ),
        (
            "COPY out",
            queries(&[
                "copy t to stdout",
                "copy (select g from generate_series(1, 5000) g) \
            to stdout with (format csv)",
            ]),
        ),
        (
            "COPY out that fails",
            queries(&[
                "copy (select 1 / (300 - g) from \
            generate_series(1, 400) g) to stdout",
                "select 1",
            ]),
        ),
        (
            "COPY out by the extended protocol",
            ask(&[parse("", "copy t to stdout"), bind("", "", &[]), execute("", 0), sync()]),
        ),
        (
            "COPY of much",
            all(vec![
                start("copy t from stdin"),
                ask(&[
                    (1000..30_000)
                        .map(|id| copy_data(format!("{id}\trow\n").as_bytes()))
                        .collect::<Vec<_>>()
                        .concat(),
                    copy_done(),
                ]),
                queries(&["select count(*), sum(id) from t", "copy t to stdout"]),
            ]),
        ),
    ]
}

#[test]
fn simple_queries_bring_the_same_bytes() {
    compare(&simple_scripts());
}

#[test]
fn extended_queries_bring_the_same_bytes() {
    compare(&extended_scripts());
}

#[test]
fn prepared_statements_bring_the_same_bytes() {
    compare(&statement_scripts());
}

#[test]
fn the_habits_of_drivers_bring_the_same_bytes() {
    compare(&habit_scripts());
}

#[test]
fn copies_bring_the_same_bytes() {
    compare(&copy_scripts());
}

#[test]
fn the_greeting_tells_the_same_parameters() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let logins = [
        Login::app(),
        Login::app().with("application_name", "greeter").with("client_encoding", "LATIN1"),
        Login::app().with("TimeZone", "Asia/Tokyo").with("options", "-c datestyle=german"),
    ];
    for login in &logins {
        let mut direct = Connection::open(server.port(), login);
        let mut pooled = Connection::open(gate.postgres_port(), login);
        let told = |connection: &Connection| {
            let mut parameters = connection.parameters.clone();
            parameters.sort();
            parameters
        };
        assert_eq!(told(&pooled), told(&direct), "{login:?}");
        for name in ["application_name", "client_encoding", "timezone", "datestyle"] {
            let show = format!("show {name}");
            assert_eq!(pooled.one(&show), direct.one(&show), "{name} of {login:?}");
        }
    }
}

fn compare(scripts: &[Script]) {
    let server = Postgres::start();
    let mut owner = server.direct();
    owner.query("create table t (id int primary key, v text)").expect_no_error();
    owner
        .query("create table later (id int, constraint once unique (id) deferrable initially deferred)")
        .expect_no_error();
    let gate = Tidegate::before(&server, 2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| disturb(gate.client(), &stop));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (name, steps) in scripts {
                let direct = play(&mut owner, server.port(), steps, Pieces::Whole);
                for pieces in [Pieces::Whole, Pieces::Of(1), Pieces::Of(7)] {
                    if pieces == Pieces::Whole || length(steps) < 2_000 {
                        // Kept by the test runner, and shown with a failure.
                        eprintln!("{name} ({pieces:?})");
                        let pooled = play(&mut owner, gate.postgres_port(), steps, pieces);
                        same(name, pieces, &direct, &pooled);
                    }
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Another client on the same backends: it uses the names of the scripts for statements of its own.
fn disturb(mut client: Connection, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for name in ["", "s", "s1", "ghost"] {
            let mut parts = vec![parse(name, "select 'another client'"), bind("", name, &[])];
            parts.extend([execute("", 0), close_statement(name), sync()]);
            let reply = client.exchange(&parts);
            assert_eq!(reply.rows(), [[Some("another client".to_owned())]]);
        }
        client.query("set application_name = 'another'").expect_no_error();
        assert_eq!(client.one("show application_name"), "another");
        client.query("begin").expect_no_error();
        client.query("select 1").expect_no_error();
        client.query("rollback").expect_no_error();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn length(steps: &[Step]) -> usize {
    steps.iter().map(|step| if let Send(bytes) = step { bytes.len() } else { 0 }).sum()
}

fn play(owner: &mut Connection, port: u16, steps: &[Step], pieces: Pieces) -> Vec<Frame> {
    let refill = "truncate t, later; insert into t values (1, 'one'), (2, 'two'), (3, null)";
    owner.query(refill).expect_no_error();
    let mut client = Connection::open(port, &Login::app());
    let mut frames = Vec::new();
    for step in steps {
        match step {
            Send(bytes) => match pieces {
                Pieces::Whole => client.send(bytes),
                Pieces::Of(most) => bytes.chunks(most).for_each(|piece| client.send(piece)),
            },
            Until(kind) => frames.extend(client.frames_until(*kind)),
            UntilClosed => frames.extend(client.last_words()),
        }
    }
    frames
}

fn same(name: &str, pieces: Pieces, direct: &[Frame], pooled: &[Frame]) {
    let differs =
        direct.iter().zip(pooled).position(|(one, other)| one.neutral() != other.neutral());
    if let Some(at) = differs {
        panic!(
            "{name} ({pieces:?}): frame {at} differs\n direct: {}\n pooled: {}",
            shortened(&direct[at]),
            shortened(&pooled[at])
        );
    }
    let shape = |frames: &[Frame]| frames.iter().map(Frame::kind).collect::<String>();
    assert_eq!(shape(direct), shape(pooled), "{name} ({pieces:?}): one has more frames");
}

fn shortened(frame: &Frame) -> String {
    format!("{frame:?}").chars().take(600).collect()
}
