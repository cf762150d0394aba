//! Users whom only the server knows: looked up with `auth_query`, and logged in with what they show of their password.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use support::eventually;
use support::pg::{Connection, Login, Refusal};
use support::postgres::Postgres;
use support::tidegate::{Setup, Tidegate};
use tempfile::TempDir;

const QUERY: &str = "SELECT * FROM look_up($1)";

/// A server on which `app` may look users up, and each look-up is counted.
fn server() -> Postgres {
    let server = Postgres::start();
    let mut superuser = server.superuser();
    for sql in [
        "create role ann login password 'ann-secret'",
        "create role old login",
        "set password_encryption = 'md5'",
        "alter role old password 'old-secret'",
        "create sequence asked",
        "create function look_up(text) returns table (name name, secret text) language sql security definer as $$ \
         select nextval('asked'); select usename, passwd from pg_shadow where usename = $1 $$",
        "revoke execute on function look_up from public",
        "grant execute on function look_up to app",
    ] {
        superuser.query(sql).expect_no_error();
    }
    server
}

fn asked(server: &Postgres) -> i64 {
    let sql =
        "select coalesce((select last_value from pg_sequences where sequencename = 'asked'), 0)";
    server.superuser().one(sql).parse().unwrap()
}

fn setup(server: &Postgres) -> Setup {
    let any = Setup::new().postgres(server).env("TIDEGATE_POSTGRES_ANY", "1");
    any.env("TIDEGATE_POSTGRES_AUTH_QUERY", QUERY)
}

fn enter(gate: &Tidegate, user: &str, password: &str) -> Result<Connection, Refusal> {
    let login = Login { user: user.into(), password: password.into(), ..Login::app() };
    gate.try_client(&login)
}

fn code(refused: Result<Connection, Refusal>) -> String {
    refused.err().expect("refused").code
}

#[test]
fn whom_the_server_knows_comes_in_and_works_as_itself() {
    let server = server();
    let gate = setup(&server).pool_size(3).start();
    let mut ann = enter(&gate, "ann", "ann-secret").unwrap();
    assert_eq!(ann.one("select session_user"), "ann");
    assert_eq!(gate.client().one("select session_user"), "app");
    let other = Login { user: "ann".into(), password: "ann-secret".into(), ..Login::app() };
    let other = Login { database: "other".into(), ..other };
    assert_eq!(gate.try_client(&other).unwrap().one("select current_database()"), "other");
    assert_eq!(asked(&server), 1, "it is remembered");
    // Nobody learns who exists.
    let (wrong, nobody) =
        (enter(&gate, "ann", "wrong-secret"), enter(&gate, "nobody", "wrong-secret"));
    let (wrong, nobody) = (wrong.err().unwrap(), nobody.err().unwrap());
    assert_eq!((wrong.code.as_str(), nobody.code.as_str()), ("28P01", "28P01"));
    assert_eq!(wrong.message.replace("ann", "nobody"), nobody.message);
    for name in ["", "x'; drop role ann; --", "\"quoted\"", &"long".repeat(200)] {
        let refused = code(enter(&gate, name, "wrong-secret"));
        assert!(refused == "28P01" || refused == "28000", "{name}: {refused}");
    }
    ann.query("select 1").expect_no_error();
}

#[test]
fn an_md5_hash_does_not_do() {
    let server = server();
    let gate = setup(&server).start();
    assert_eq!(code(enter(&gate, "old", "old-secret")), "28P01");
    let log = gate.output();
    assert!(log.contains("no SCRAM-SHA-256 verifier") && log.contains("user=old"), "{log}");
}

#[test]
fn many_at_once_ask_once() {
    let server = server();
    let gate = setup(&server).pool_size(2).start();
    thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| enter(&gate, "ann", "ann-secret").unwrap().query("select 1"));
        }
    });
    assert_eq!(asked(&server), 1);
    thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| assert_eq!(code(enter(&gate, "nobody", "x")), "28P01"));
        }
    });
    assert_eq!(asked(&server), 2);
    let sessions = server.sessions_of("app") + server.sessions_of("ann");
    assert!(sessions <= 2, "{sessions} connections");
}

#[test]
fn a_changed_password_is_heard_of() {
    let server = server();
    let home = TempDir::new().unwrap();
    let file = home.path().join("tidegate.toml");
    fs::write(&file, "[postgres]\npool_size = 2").unwrap();
    let gate = setup(&server).config(&file).start();
    let mut ann = enter(&gate, "ann", "ann-secret").unwrap();
    ann.query("begin").expect_no_error();
    server.superuser().query("alter role ann password 'rotated-secret'").expect_no_error();
    let mut new =
        eventually("the new password is known", || enter(&gate, "ann", "rotated-secret").ok());
    assert_eq!(new.one("select session_user"), "ann");
    assert_eq!(code(enter(&gate, "ann", "ann-secret")), "28P01");
    ann.query("commit").expect_no_error();
    // All that is opened from now on is opened with the new one.
    server
        .superuser()
        .query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ann'")
        .expect_no_error();
    let gone = || (server.sessions_of("ann") == 0).then_some(());
    eventually("they are gone", gone);
    assert_eq!(ann.one("select session_user"), "ann");
}

#[test]
fn a_query_that_fails_is_told_and_mended_by_a_reload() {
    let server = server();
    let home = TempDir::new().unwrap();
    let file = home.path().join("tidegate.toml");
    let settings = |query: &str| {
        let text = format!("reload_check_ms = 0\n[postgres]\nany = true\nauth_query = \"{query}\"");
        fs::write(&file, text).unwrap();
    };
    settings("SELECT * FROM not_there($1)");
    let gate = Setup::new().postgres(&server).config(&file).start();
    assert_eq!(code(enter(&gate, "ann", "ann-secret")), "58000");
    let told = "function not_there(unknown) does not exist";
    support::eventually("it is told", || gate.output().contains(told).then_some(()));
    settings(QUERY);
    gate.signal(rustix::process::Signal::HUP);
    support::within(Duration::from_secs(15), "it is asked again", || {
        enter(&gate, "ann", "ann-secret").ok()
    });
    gate.client().query("select 1").expect_no_error();
}

/// The users file's verifier is the server's own: then nobody needs to know the password.
#[test]
fn a_verifier_of_the_users_file_logs_in_as_well() {
    let server = server();
    let verifier = server.superuser().one("select passwd from pg_shadow where usename = 'ann'");
    let home = TempDir::new().unwrap();
    let users = home.path().join("users");
    fs::write(&users, format!("\"ann\" \"{verifier}\"\n")).unwrap();
    let any = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_ANY", "1");
    let gate = any.env("TIDEGATE_POSTGRES_USERS_FILE", users.to_str().unwrap()).start();
    let mut ann = enter(&gate, "ann", "ann-secret").unwrap();
    assert_eq!(ann.one("select session_user"), "ann");
    assert_eq!(code(enter(&gate, "ann", "wrong-secret")), "28P01");
}

#[test]
fn where_it_is_of_no_use_it_is_refused() {
    let server = Postgres::stopped();
    for (any, query, part) in
        [("0", QUERY, "is of use only"), ("1", "SELECT 'ann', 'x'", "must ask for the user $1")]
    {
        let setup = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_ANY", any);
        let mut gate = setup.env("TIDEGATE_POSTGRES_AUTH_QUERY", query).launch();
        let status = gate.wait(Duration::from_secs(10)).and_then(|status| status.code());
        assert_eq!(status, Some(2));
        let log = gate.output();
        assert!(log.contains("TIDEGATE_POSTGRES_AUTH_QUERY") && log.contains(part), "{log}");
    }
}
