//! Any user and database of one server: who may come in, and as whom tidegate logs in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use support::pg::Login;
use support::postgres::{PASSWORD, Postgres};
use support::tidegate::{Setup, Tidegate, clean_command};
use tempfile::NamedTempFile;

fn file(text: &str, mode: u32) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// Serves anybody of `users` on the server of `url`.
fn serving(url: &str, users: &NamedTempFile) -> Tidegate {
    let setup = Setup::new().database_url(url).pool_size(4).wait_ms(3_000);
    setup.env("TIDEGATE_POSTGRES_ANY", "1").env("TIDEGATE_POSTGRES_USERS_FILE", path(users)).start()
}

fn code(gate: &Tidegate, login: &Login) -> String {
    gate.try_client(login).map(|_| "came in".to_owned()).unwrap_or_else(|refusal| refusal.code)
}

#[test]
fn users_of_the_file_come_in_with_their_passwords_and_nobody_else() {
    let server = Postgres::start();
    // The superuser is trusted by the server: a verifier does.
    let mut stored = server.superuser();
    stored.query("set password_encryption = 'scram-sha-256'").expect_no_error();
    stored.query("create role scratch password 'boss-secret'").expect_no_error();
    let verifier = stored.one("select rolpassword from pg_authid where rolname = 'scratch'");
    let text = format!("; ours\n\"reader\" \"reader-secret\"\n\"postgres\" \"{verifier}\"\n");
    let gate = serving(&server.url(), &file(&text, 0o600));
    for (login, sees) in [
        (Login::of("app", PASSWORD, "app"), "app@app"),
        (Login::of("app", PASSWORD, "other"), "app@other"),
        (Login::of("reader", "reader-secret", "app"), "reader@app"),
        (Login::of("reader", "reader-secret", "postgres"), "reader@postgres"),
        (Login::of("postgres", "boss-secret", "other"), "postgres@other"),
    ] {
        let mut client = gate.try_client(&login).unwrap();
        assert_eq!(client.one("select current_user || '@' || current_database()"), sees);
    }
    for wrong in [
        Login::of("reader", PASSWORD, "app"),
        Login::of("reader", "", "app"),
        Login::of("app", "reader-secret", "other"),
        Login::of("postgres", "reader-secret", "app"),
        Login::of("scratch", "boss-secret", "app"),
        Login::of("nobody", "reader-secret", "app"),
    ] {
        assert_eq!(code(&gate, &wrong), "28P01", "{wrong:?}");
    }
    assert_eq!(code(&gate, &Login::of("reader", "reader-secret", "nowhere")), "3D000");
    assert!(!gate.output().contains("secret"), "{}", gate.output());
}

#[test]
fn a_password_that_the_server_does_not_take_is_told_and_a_verifier_of_the_servers_opens_it() {
    let server = Postgres::start();
    let users = file("\"reader\" \"outdated-word\"\n", 0o600);
    let gate = serving(&server.url(), &users);
    let refusal =
        gate.try_client(&Login::of("reader", "outdated-word", "app")).map(|_| ()).unwrap_err();
    assert_eq!(refusal.code, "28P01", "{refusal:?}");
    // What the client shows of its password opens the server, too.
    let mut superuser = server.superuser();
    let verifier = superuser.one("select rolpassword from pg_authid where rolname = 'reader'");
    let gate = serving(&server.url(), &file(&format!("\"reader\" \"{verifier}\"\n"), 0o600));
    let mut client = gate.try_client(&Login::of("reader", "reader-secret", "app")).unwrap();
    assert_eq!(client.one("select current_user"), "reader");
}

#[test]
fn the_urls_user_may_have_its_password_in_the_file() {
    let server = Postgres::start();
    let url = format!("postgres://app@127.0.0.1:{}/app", server.port());
    let gate = serving(&url, &file(&format!("\"app\" \"{PASSWORD}\"\n"), 0o600));
    let mut client = gate.client();
    assert_eq!(client.one("select current_user"), "app");
    assert_eq!(code(&gate, &Login::of("app", "wrong", "app")), "28P01");
    assert_eq!(code(&gate, &Login::of("app", "wrong", "other")), "28P01");
}

#[test]
fn any_with_trust_lets_in_whom_the_server_trusts() {
    let server = Postgres::start();
    let gate = Setup::new()
        .postgres(&server)
        .env("TIDEGATE_POSTGRES_ANY", "1")
        .env("TIDEGATE_POSTGRES_AUTH", "trust")
        .start();
    let mut boss = gate.try_client(&Login::of("postgres", "", "other")).unwrap();
    assert_eq!(boss.one("select current_user || '@' || current_database()"), "postgres@other");
    let mut app = gate.try_client(&Login::of("app", "whatever", "other")).unwrap();
    assert_eq!(app.one("select current_user"), "app");
    let refusal =
        gate.try_client(&Login::of("reader", "reader-secret", "app")).map(|_| ()).unwrap_err();
    assert!(refusal.message.contains("asks for a password"), "{refusal:?}");
}

/// What `check` says with these variables besides DATABASE_URL, and its exit code.
fn check(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = clean_command();
    command.arg("check").env("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:9/app");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!said.contains("hunter"), "{said}");
    (output.status.code(), said)
}

#[test]
fn a_users_file_that_does_not_do_is_refused_before_anybody_comes() {
    const FILE: &str = "TIDEGATE_POSTGRES_USERS_FILE";
    let any = ("TIDEGATE_POSTGRES_ANY", "1");
    let good = file("\"ann\" \"hunter3\"\n", 0o600);
    let open = file("\"ann\" \"hunter3\"\n", 0o644);
    let bad = file("\"ann\" \"hunter3\"\n\"bob\" hunter4\n", 0o600);
    for (variables, status, parts) in [
        (&[any, (FILE, path(&good))][..], 0, &["users file: 1 users"][..]),
        (&[any, (FILE, path(&open))], 0, &["warning", path(&open), "mode 644", "chmod 600"]),
        (&[any, (FILE, path(&bad))], 2, &[FILE, path(&bad), "line 2", "double quotes"]),
        (&[any, (FILE, "/nowhere/users")], 2, &[FILE, "/nowhere/users", "cannot be read"]),
        (&[(FILE, path(&good))], 2, &[FILE, "TIDEGATE_POSTGRES_ANY=1"]),
        (&[any], 2, &["TIDEGATE_POSTGRES_ANY", FILE, "TIDEGATE_POSTGRES_AUTH=trust"]),
    ] {
        let (code, said) = check(variables);
        assert_eq!(code, Some(status), "{variables:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{variables:?}: {said} lacks {part}");
        }
    }
}
