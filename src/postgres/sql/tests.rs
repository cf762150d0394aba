//! What the lexer suspects, and what it leaves alone.

use super::*;
use proptest::prelude::*;

fn suspects(text: &str) -> Suspects {
    read(text.as_bytes(), Quoting::Standard, None).suspects
}

fn both(mut one: Suspects, other: Suspects) -> Suspects {
    one.insert(other);
    one
}

#[test]
fn names_what_is_not_listened_to_any_more() {
    let unlistens = |text: &str| read(text.as_bytes(), Quoting::Standard, None).unlistens;
    let one = |name: &str| Unlisten::Channel(name.as_bytes().into());
    assert_eq!(unlistens("UNLISTEN News"), [one("news")]);
    assert_eq!(
        unlistens("begin; unlisten \"Ne\"\"ws\"; unlisten *;"),
        [one("Ne\"ws"), Unlisten::All]
    );
    assert_eq!(unlistens("select 'unlisten a' * 2; listen b"), []);
}

#[test]
fn strings_over_lines_and_names_in_code_points_hide_nothing() {
    for (text, what) in [
        // The strings are one: its escapes are those of its beginning.
        ("select E'a'\n'b\\'', pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        ("select e'a' -- 'c\n\t'b\\'', pg_advisory_lock(1), '", Suspects::ADVISORY_LOCK),
        ("select 'a'\n'b\\', pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        ("select E'a' || 'b\\', pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        ("select E'a' - 'b\\', pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        ("select E'a', 'b\\', pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        ("select E'a' x, 'b\\', pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        // Nobody reads code points: it may be anything.
        ("select U&\"pg_advisory_loc\\006b\"(7)", OF_ANY_NAME),
        ("create table u&\"pg_t\\0065mp\".zz (a int)", OF_ANY_NAME),
        ("select u&'\\0061' & \"b\" & c", Suspects::NONE),
    ] {
        assert_eq!(suspects(text), what, "{text}");
    }
}

/// The server reads tags of any length.
#[test]
fn no_dollar_quote_is_too_long_to_be_seen() {
    for (length, what) in [
        (1, Suspects::SETTING),
        (62, Suspects::SETTING),
        (64, Suspects::SETTING),
        (TAG_BYTES, Suspects::SETTING),
        (TAG_BYTES + 1, both(OF_ANYTHING, Suspects::SETTING)),
    ] {
        let tag = "t".repeat(length);
        let text = format!("select ${tag}$ ' ${tag}$; set work_mem = '3MB' --'");
        assert!(suspects(&text).intersects(what), "{length}");
        let quoted = format!("select ${tag}$ ; set x = 1; ${tag}$");
        let quoted = suspects(&quoted);
        assert_eq!(quoted.is_empty(), length <= TAG_BYTES, "{length}: {quoted:?}");
    }
    assert!(
        suspects(&format!("select ${}$", "t".repeat(TAG_BYTES + 1))).intersects(Suspects::LOAD)
    );
}

#[test]
fn suspects_what_outlives_a_transaction() {
    for (text, what) in [
        ("SET x = 1", Suspects::SETTING),
        ("set session x to 1", Suspects::SETTING),
        ("SET \"app.user\" = 1", Suspects::SETTING),
        ("SET TIME ZONE 'UTC'", Suspects::SETTING),
        ("reset all", Suspects::RESET),
        ("reset role", both(Suspects::RESET, Suspects::RESET_IDENTITY)),
        ("reset \"role\"", both(Suspects::RESET, Suspects::RESET_IDENTITY)),
        ("reset session authorization", both(Suspects::RESET, Suspects::RESET_IDENTITY)),
        ("reset work_mem; set role x", both(Suspects::RESET, Suspects::SETTING)),
        ("select set_config('a', $1, $2)", Suspects::SETTING),
        ("select set_config('a', 'true', false)", Suspects::SETTING),
        ("select set_config('a', true::text, f(true))", Suspects::SETTING),
        ("select set_config('a', 'b', true and", Suspects::SETTING),
        ("select set_config('a', 'b', true), set_config('a', 'b', 'f')", Suspects::SETTING),
        ("select pg_catalog.set_config('a','b',false)", Suspects::SETTING),
        ("select \"set_config\"('a','b',false)", Suspects::SETTING),
        ("begin; SET ROLE x; commit", Suspects::SETTING),
        ("/* c */ -- d\n SET x = 1", Suspects::SETTING),
        ("listen jobs", Suspects::LISTEN),
        ("PREPARE a AS SELECT 1", Suspects::PREPARE),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Suspects::CURSOR),
        ("create temp table t()", Suspects::TEMPORARY),
        ("CREATE OR REPLACE LOCAL TEMPORARY VIEW v AS SELECT 1", Suspects::TEMPORARY),
        ("select 1 into temp t", Suspects::TEMPORARY),
        ("create temp table t () on commit delete rows", Suspects::TEMPORARY),
        ("create temp table t () on commit drop; create temp table u ()", Suspects::TEMPORARY),
        ("create temp table t (drop int, commit int)", Suspects::TEMPORARY),
        ("create table pg_temp.t()", Suspects::TEMPORARY),
        ("select pg_advisory_lock(1)", Suspects::ADVISORY_LOCK),
        ("select pg_try_advisory_lock_shared(1)", Suspects::ADVISORY_LOCK),
        ("LOAD 'auto_explain'", Suspects::LOAD),
        ("select setseed(0.5)", Suspects::SEED),
        ("select dblink_connect('a','b')", Suspects::DBLINK),
        ("DISCARD ALL", both(Suspects::DISCARD_ALL, Suspects::RELEASE)),
        ("deallocate all", both(Suspects::DEALLOCATE_ALL, Suspects::RELEASE)),
        ("deallocate prepare all", both(Suspects::DEALLOCATE_ALL, Suspects::RELEASE)),
        ("select pg_advisory_unlock_all()", Suspects::RELEASE),
        ("drop table t", Suspects::RELEASE),
        ("close c", Suspects::RELEASE),
        ("unlisten *", Suspects::UNLISTEN),
        ("do $$ begin end $$", Suspects::OF_A_BLOCK),
        ("do $a$ begin perform setseed(1); end $a$", both(Suspects::OF_A_BLOCK, Suspects::SEED)),
        (
            "do $$ begin if a then load 'x'; end if; end $$",
            both(Suspects::OF_A_BLOCK, Suspects::LOAD),
        ),
        ("do $$ begin end $$; select setseed(1)", both(Suspects::OF_A_BLOCK, Suspects::SEED)),
        ("set seed to 0.5", Suspects::SEED),
        ("set session seed = 0.5", both(Suspects::SETTING, Suspects::SEED)),
        ("select set_config('a', 'b', not true)", Suspects::SETTING),
        ("select set_config('a', 'b', false and true)", Suspects::SETTING),
        ("select set_config('a', 'b', \"true\")", Suspects::SETTING),
        ("select set_config('a', 'b', x.true)", Suspects::SETTING),
        ("-- c\rset a.b = 1", Suspects::SETTING),
        ("set local.x = 1", Suspects::SETTING),
        ("set transaction . x = 1", Suspects::SETTING),
        ("set x to default", both(Suspects::SETTING, Suspects::RESET)),
        ("update pg_settings set setting = 1", Suspects::SETTING),
    ] {
        assert_eq!(suspects(text), what, "{text}");
    }
}

#[test]
fn leaves_the_rest_alone() {
    for text in [
        "select 1",
        "select set_config('app.user_id', '7', true)",
        "select pg_catalog.set_config('a', lower(coalesce('b', 'c')), TRUE ) from t",
        "SET LOCAL x = 1",
        "SET LOCAL a.x = 1",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL DEFERRED",
        "update t set x = 1",
        "select 'SET x = 1; LISTEN y'",
        "select e'\\'; set x = 1; --'",
        "select 'it''s; set x = 1'",
        "select $$; set x = 1; $$",
        "select $a$ $b$; set x = 1; $a $a$",
        "select $1; select 2",
        "/* ; set x = 1; /* ; listen y */ ; set z = 2 */ select 1",
        "-- ; set x = 1\nselect 2",
        "select temp from weather",
        "create temp table t () on commit drop",
        "begin; create temporary table t (a int) ON COMMIT DROP AS select 1; commit",
        "select \"; set x = 1; \" from t",
        "select pg_advisory_xact_lock(1)",
        "declare c cursor for with hold as (select 1) select * from hold"
            .split(" for")
            .next()
            .unwrap(),
        "notify a, 'b'",
    ] {
        assert_eq!(suspects(text), Suspects::NONE, "{text}");
    }
}

#[test]
fn names_what_execute_names() {
    for (text, names) in [
        ("EXECUTE Foo", &["foo"][..]),
        ("begin; execute \"Foo\"(1); execute foo; explain execute bar", &["Foo", "foo", "bar"]),
        ("create temp table t on commit drop as execute q (1)", &["q"]),
        ("do $$ begin execute foo; end $$", &[]),
        ("select 'execute foo'", &[]),
    ] {
        let found = read(text.as_bytes(), Quoting::Standard, None).executes;
        let found: Vec<_> = found.iter().map(|name| String::from_utf8_lossy(name)).collect();
        assert_eq!(found, names, "{text}");
    }
}

#[test]
fn names_what_deallocate_names() {
    for (text, name) in [
        ("DEALLOCATE foo", "foo"),
        ("deallocate PREPARE \"Foo\"", "Foo"),
        ("select 1; deallocate Bar", "bar"),
    ] {
        let found = read(text.as_bytes(), Quoting::Standard, None);
        assert_eq!(found.deallocates, [name.as_bytes().into()], "{text}");
    }
}

#[test]
fn old_quoting_is_followed() {
    let text = b"select 'a\\'; set x = 1; --'";
    assert_eq!(read(text, Quoting::Backslash, None).suspects, Suspects::NONE);
    assert_eq!(read(text, Quoting::Standard, None).suspects, Suspects::SETTING);
}

proptest! {
    #[test]
    fn any_split_finds_the_same(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("set "), Just("'"), Just("$a$"), Just("$$"), Just("--"), Just("\n"), Just("/*"),
                Just("*/"), Just(";"), Just("x "), Just("\\"), Just("e'"), Just("\""), Just("with hold "),
                Just("declare "), Just("create "), Just("temp "), Just("deallocate "), Just("all"), Just("set_config("), Just("true"), Just(")"), Just(","),
            ],
            0..40,
        ),
        cuts in proptest::collection::vec(0usize..200, 0..6),
    ) {
        let text = parts.concat().into_bytes();
        let whole = read(&text, Quoting::Standard, None);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.sort_unstable();
        let mut lexer = Lexer::new(Quoting::Standard, None);
        let mut from = 0;
        for cut in cuts {
            lexer.feed(&text[from..cut]);
            from = cut;
        }
        lexer.feed(&text[from..]);
        let pieces = lexer.finish();
        prop_assert_eq!(pieces.suspects, whole.suspects.without(Suspects::RESET));
        prop_assert_eq!(pieces.deallocates, whole.deallocates);
    }

    /// The short ways lead where the long one does.
    #[test]
    fn byte_by_byte_finds_the_same(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("set "), Just("'"), Just("$a$"), Just("$1"), Just("--"), Just("\n"), Just("/*"), Just("*/"), Just(";"),
                Just("abalance"), Just(" = 1.5, ("), Just("e'"), Just("\""), Just("with hold "), Just("declare "),
                Just("create "), Just("temp "), Just("deallocate "), Just("all"), Just("set_config("), Just("true"),
                Just(")"), Just(","), Just("nextval"), Just("unlisten "), Just("*"), Just("."), Just("local"),
                Just("\u{e9}t\u{e9} "), Just("reset role"), Just("do $$"), Just("$$"), Just("begin "),
                Just("\"set_config\"("), Just("\"a\"\"b\""), Just(" select "), Just(" - 1"), Just(" / 2 "), Just("'it''s' "),
                Just("a_name_that_is_longer_than_postgres_keeps_it_0123456789_0123456789_0123456789 "),
            ],
            0..40,
        ),
    ) {
        let text = parts.concat().into_bytes();
        let mut quick = Lexer::new(Quoting::Standard, None);
        quick.feed(&text);
        let mut slow = Lexer::new(Quoting::Standard, None);
        for byte in &text {
            while slow.step(*byte) == Taken::No {}
        }
        prop_assert_eq!(quick.place.clone(), slow.place.clone());
        let found = slow.finish();
        prop_assert_eq!(quick.finish(), found.clone());
        prop_assert!(!quick::is_harmless(&text) || found == Findings::default(), "{found:?}");
    }
}
