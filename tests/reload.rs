//! Settings, passwords and servers that change while clients are here: none of them notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::pg::{Connection, Login, Refusal, Reply};
use support::postgres::Postgres;
use support::redis::Redis;
use support::resp::Value;
use support::tidegate::{Setup, Tidegate};
use support::{eventually, within};
use tempfile::TempDir;

/// A configuration file, and one with the URL.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(TempDir::new().expect("a temp dir"));
        home.write("tidegate.toml", "");
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As whoever is careful does: nobody sees half of it.
    fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).expect("a temp file");
        fs::rename(new, self.path(name)).expect("the same directory");
    }

    /// Nothing but a word has the files read again.
    fn settings(&self, lines: &str) {
        self.write("tidegate.toml", &format!("reload_check_ms = 0\n{lines}"));
    }

    fn url(&self, url: &str) {
        self.write("url", &format!("{url}\n"));
    }

    fn file(&self) -> PathBuf {
        self.path("tidegate.toml")
    }
}

fn console(gate: &Tidegate, login: &Login) -> Connection {
    let login = Login { database: "tidegate".into(), ..login.clone() };
    gate.try_client(&login).unwrap_or_else(|refusal| panic!("{refusal:?}"))
}

/// RELOAD by a client that knows the password `word`.
fn reload_as(gate: &Tidegate, word: &str) -> Reply {
    console(gate, &known(word)).query("RELOAD")
}

fn reload(gate: &Tidegate) -> Vec<Refusal> {
    let reply = reload_as(gate, "app-secret");
    reply.expect_no_error();
    notices(&reply)
}

fn notices(reply: &Reply) -> Vec<Refusal> {
    reply.frames.iter().filter(|frame| frame.tag == b'N').map(|frame| frame.refusal()).collect()
}

fn known(password: &str) -> Login {
    Login { password: password.into(), ..Login::app() }
}

fn enters(gate: &Tidegate, password: &str) -> bool {
    match gate.try_client(&known(password)) {
        Ok(_) => true,
        Err(refusal) => {
            assert_eq!(refusal.code, "28P01", "{refusal:?}");
            false
        }
    }
}

fn limit(gate: &Tidegate) -> f64 {
    gate.postgres_metric("tidegate_server_connections_limit", &[])
}

fn reloads(gate: &Tidegate, outcome: &str) -> f64 {
    gate.page().sum("tidegate_reloads_total", &[("outcome", outcome)])
}

/// Postgres's log has so many refused passwords.
fn refused_logins(server: &Postgres) -> usize {
    server.log().matches("FATAL:  password authentication failed").count()
}

#[test]
fn pools_grow_and_shrink_under_their_clients() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("[postgres]\npool_size = 1\nwait_ms = 20000");
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    let (mut busy, mut idle, mut waiting) = (gate.client(), gate.client(), gate.client());
    idle.query("set work_mem = '5MB'").expect_no_error();
    busy.query("begin").expect_no_error();
    let backend = busy.backend();
    waiting.send(&support::pg::query("begin; select 1"));
    home.settings("[postgres]\npool_size = 3\nwait_ms = 20000");
    gate.signal(Signal::HUP);
    waiting.reply().expect_no_error();
    assert_eq!(limit(&gate), 3.0);
    let mut third = gate.client();
    third.query("begin").expect_no_error();
    assert_eq!(server.sessions_of("app"), 3);
    assert_eq!(busy.backend(), backend, "its transaction goes on");
    third.query("commit").expect_no_error();
    home.settings("[postgres]\npool_size = 1\nwait_ms = 20000");
    assert_eq!(reload(&gate), []);
    eventually("the idle one is closed", || (server.sessions_of("app") == 2).then_some(()));
    waiting.query("commit").expect_no_error();
    eventually("the next goes as it comes back", || (server.sessions_of("app") == 1).then_some(()));
    busy.query("commit").expect_no_error();
    assert_eq!(idle.one("show work_mem"), "5MB", "its session lives");
    assert_eq!((server.sessions_of("app"), limit(&gate)), (1, 1.0));
    assert_eq!((reloads(&gate, "taken"), reloads(&gate, "refused")), (2.0, 0.0));
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("[postgres]\npool_size = 2");
    let mut gate = Setup::new().postgres(&server).config(&home.file()).start();
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    let since = gate.page().sum("tidegate_reload_success_timestamp_seconds", &[]);
    assert!(since > 1.7e9, "{since}");
    for (text, problem) in [
        ("[postgres]\npool_size = 0", "postgres.pool_size = \"0\": must be a whole number"),
        ("[postgres]\npool_sise = 4", "did you mean postgres.pool_size?"),
        ("[postgres", "not a TOML file"),
        ("[postgres]\npool_size = 4\nconsole_users = [\"nobody\"]", "names nobody"),
        ("[postgres]\npool_size = 4\nurls = [\"NOT_SET\"]", "NOT_SET, which is not set"),
    ] {
        home.settings(text);
        let answer = reload_as(&gate, "app-secret");
        let told = answer.errors().into_iter().next().expect("an error");
        assert!(told.message.contains(problem), "{told:?} lacks {problem}");
        assert_eq!(told.code, "F0000");
    }
    fs::remove_file(home.file()).unwrap();
    gate.signal(Signal::HUP);
    eventually("the log says why", || gate.output().contains("cannot be read").then_some(()));
    assert_eq!((limit(&gate), reloads(&gate, "refused")), (2.0, 6.0));
    assert_eq!(gate.page().sum("tidegate_reload_success_timestamp_seconds", &[]), since);
    client.query("commit").expect_no_error();
    gate.assert_alive();
    home.settings("[postgres]\npool_size = 4");
    assert_eq!(reload(&gate), []);
    assert_eq!(limit(&gate), 4.0);
}

#[test]
fn a_url_that_leads_to_ourselves_is_no_url() {
    let (server, home) = (Postgres::start(), Home::new());
    home.url(&server.url());
    home.settings("");
    let gate = Setup::new().database_url_file(&home.path("url")).config(&home.file()).start();
    home.url(&format!("postgres://app:app-secret@localhost:{}/app", gate.postgres_port()));
    let told = reload_as(&gate, "app-secret").errors();
    assert!(told[0].message.contains("tidegate's own listener"), "{told:?}");
    gate.client().query("select 1").expect_no_error();
}

#[test]
fn what_waits_for_a_restart_is_named() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("");
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    home.settings(
        "workers = 2\ndrain_ms = 7\n[admin]\nclient_limit = 9\n[log]\nformat = \"json\"\n\
         [postgres]\nauth = \"trust\"\npool_size = 3",
    );
    let told = reload(&gate);
    let text = &told[0].message;
    for name in ["workers", "drain_ms", "admin.client_limit", "log.format", "postgres.auth"] {
        let words = format!("{name} has changed and needs a restart");
        assert!(text.contains(&words), "{text}");
        assert!(gate.output().contains(&words), "{name} is not in the log");
    }
    assert!(!text.contains("pool_size"), "{text}");
    assert_eq!(limit(&gate), 3.0);
    assert!(!enters(&gate, "wrong-secret"), "nobody is trusted before");
    let mut console = console(&gate, &Login::app());
    let rows = console.query("show config").rows();
    let row = |name: &str| rows.iter().find(|row| row[0].as_deref() == Some(name)).unwrap();
    let word = |word: &str| Some(word.to_owned());
    assert_eq!(row("postgres.pool_size")[1..], [word("3"), word("5"), word("yes")]);
    assert_eq!(row("postgres.auth")[1..], [word("password"), word("password"), word("no")]);
}

#[test]
fn a_change_of_a_file_is_noticed() {
    let (server, home) = (Postgres::start(), Home::new());
    let settings = |size: usize| format!("reload_check_ms = 20\n[postgres]\npool_size = {size}");
    home.write("tidegate.toml", &settings(2));
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    assert_eq!(limit(&gate), 2.0);
    home.write("tidegate.toml", &settings(3));
    eventually("another file is taken", || (limit(&gate) == 3.0).then_some(()));
    // In its place, of the same length, and at no moment empty.
    let mut file = fs::OpenOptions::new().write(true).open(home.file()).unwrap();
    file.write_all(settings(4).as_bytes()).unwrap();
    eventually("other words are taken", || (limit(&gate) == 4.0).then_some(()));
    home.write("tidegate.toml", "nonsense");
    eventually("it is refused", || (reloads(&gate, "refused") == 1.0).then_some(()));
    // Long enough for many looks: a file that is wrong is complained of once.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(reloads(&gate, "refused"), 1.0);
    home.write("tidegate.toml", &settings(5));
    eventually("it is mended", || (limit(&gate) == 5.0).then_some(()));
    eventually("it is counted", || (reloads(&gate, "taken") == 3.0).then_some(()));
    client.query("commit").expect_no_error();
}

#[test]
fn limits_on_time_and_modes_hold_from_then_on() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("[postgres]\npool_size = 1");
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    let (mut one, mut two) = (gate.client(), gate.client());
    one.query("select 1").expect_no_error();
    one.send(&support::pg::query("select pg_sleep(60)"));
    two.send(&support::pg::query("select 1"));
    eventually("it waits", || {
        (gate.postgres_metric("tidegate_queue_length", &[]) == 1.0).then_some(())
    });
    home.settings("[postgres]\npool_size = 1\nwait_ms = 300");
    reload(&gate);
    assert_eq!(two.reply().codes(), ["53300"], "its wait ends by the new limit");
    home.settings("[postgres]\npool_size = 1\nquery_timeout_ms = 200\npool_mode = \"statement\"");
    reload(&gate);
    assert_eq!(one.reply().codes(), ["57014"], "so does a statement that runs");
    let mut three = gate.client();
    three.send(&support::pg::query("begin"));
    let refusal = three.last_words().iter().find(|frame| frame.tag == b'E').unwrap().refusal();
    assert_eq!(refusal.code, "0A000", "transaction blocks are refused by now");
    home.settings("[postgres]\npool_size = 1");
    reload(&gate);
    one.query("begin").expect_no_error();
    home.settings("[postgres]\npool_size = 1\npool_mode = \"statement\"");
    reload(&gate);
    one.query("select 1").expect_no_error();
    one.query("commit").expect_no_error();
    home.settings("[postgres]\npool_size = 1\npool_mode = \"session\"\nwait_ms = 100");
    reload(&gate);
    one.query("select 1").expect_no_error();
    assert_eq!(two.query("select 1").codes(), ["53300"], "the other keeps its connection");
    home.settings("[postgres]\npool_size = 1");
    reload(&gate);
    one.query("select 1").expect_no_error();
    two.query("select 1").expect_no_error();
}

#[test]
fn clients_that_are_too_many_by_now_stay() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("");
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    let mut clients: Vec<_> = (0..4).map(|_| gate.client()).collect();
    home.settings("[postgres]\nclient_limit = 2");
    reload(&gate);
    assert_eq!(
        gate.try_client(&Login::app()).err().map(|refusal| refusal.code).as_deref(),
        Some("53300")
    );
    clients.iter_mut().for_each(|client| {
        client.query("select 1").expect_no_error();
    });
    home.settings("[postgres]\nclient_limit = 9");
    reload(&gate);
    gate.client().query("select 1").expect_no_error();
}

#[test]
fn the_logs_level_changes() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("");
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    drop(Connection::knock(gate.postgres_port()));
    home.settings("[log]\nlevel = \"debug\"");
    reload(&gate);
    eventually("details are told", || {
        drop(Connection::knock(gate.postgres_port()));
        gate.output().contains("level=debug").then_some(())
    });
    home.settings("[log]\nlevel = \"off\"");
    reload(&gate);
    let told = gate.output().len();
    reload(&gate);
    assert_eq!(gate.output().len(), told);
}

/// First the server, then the file.
#[test]
fn a_password_is_rotated() {
    let (server, home) = (Postgres::start(), Home::new());
    home.url(&server.url());
    home.settings("[postgres]\npool_size = 2");
    let gate = Setup::new().database_url_file(&home.path("url")).config(&home.file()).start();
    let (mut busy, mut idle, mut listener) = (gate.client(), gate.client(), gate.client());
    listener.query("listen news").expect_no_error();
    idle.query("set work_mem = '5MB'").expect_no_error();
    busy.query("begin").expect_no_error();
    let backend = busy.backend();
    server.superuser().query("alter role app password 'rotated-secret'").expect_no_error();
    home.url(&server.url_with("app", "rotated-secret", "app"));
    reload(&gate);
    assert_eq!(busy.backend(), backend, "what it has begun it ends");
    busy.query("commit").expect_no_error();
    let left = format!("select count(*) from pg_stat_activity where pid = {backend}");
    let mut superuser = server.superuser();
    within(Duration::from_secs(10), "the old connection is replaced", || {
        busy.query("select 1").expect_no_error();
        (superuser.one(&left) == "0").then_some(())
    });
    assert_eq!(idle.one("show work_mem"), "5MB");
    busy.query("notify news, 'x'").expect_no_error();
    let frames = listener.frames_until('A');
    assert!(frames.last().is_some_and(|frame| frame.body.ends_with(b"news\0x\0")));
    assert_eq!(gate.postgres_metric("tidegate_listen_losses_total", &[]), 0.0);
    assert_eq!(refused_logins(&server), 0);
    // For a while both open; a third never did.
    assert!(
        enters(&gate, "rotated-secret")
            && enters(&gate, "app-secret")
            && !enters(&gate, "third-secret")
    );
    home.settings("password_overlap_ms = 0\n[postgres]\npool_size = 2");
    assert!(reload_as(&gate, "rotated-secret").errors().is_empty());
    server.superuser().query("alter role app password 'third-secret'").expect_no_error();
    home.url(&server.url_with("app", "third-secret", "app"));
    assert!(reload_as(&gate, "rotated-secret").errors().is_empty());
    assert!(enters(&gate, "third-secret") && !enters(&gate, "rotated-secret"));
    for secret in ["rotated-secret", "third-secret", "app-secret"] {
        assert!(!gate.output().contains(secret), "{secret} is in the log");
    }
}

/// First the file, then the server: what is there serves, and the new password is tried now and then.
#[test]
fn a_password_that_the_server_does_not_know_yet_costs_nobody_anything() {
    let (server, home) = (Postgres::start(), Home::new());
    home.url(&server.url());
    home.settings("[postgres]\npool_size = 2");
    let gate = Setup::new().database_url_file(&home.path("url")).config(&home.file()).start();
    let mut clients = [gate.client(), gate.client()];
    for client in &mut clients {
        client.query("begin").expect_no_error();
    }
    let backends = clients.each_mut().map(Connection::backend);
    for client in &mut clients {
        client.query("commit").expect_no_error();
    }
    home.url(&server.url_with("app", "rotated-secret", "app"));
    reload(&gate);
    eventually("it is tried", || (refused_logins(&server) > 0).then_some(()));
    for _ in 0..200 {
        for client in &mut clients {
            assert!(backends.contains(&client.backend()));
        }
    }
    assert_eq!(refused_logins(&server), 1);
    server.superuser().query("alter role app password 'rotated-secret'").expect_no_error();
    assert!(reload_as(&gate, "rotated-secret").errors().is_empty());
    eventually("it is replaced", || {
        clients[0].query("begin").expect_no_error();
        let now = clients[0].backend();
        clients[0].query("commit").expect_no_error();
        (!backends.contains(&now)).then_some(())
    });
    assert_eq!(refused_logins(&server), 1);
}

/// The password was changed at the server alone, and every connection is gone.
#[test]
fn a_wrong_password_is_no_hammer_and_the_right_one_helps_at_once() {
    let (server, home) = (Postgres::start(), Home::new());
    home.url(&server.url());
    home.settings("[postgres]\npool_size = 4\nserver_lifetime_ms = 1000");
    let gate = Setup::new().database_url_file(&home.path("url")).config(&home.file()).start();
    let mut clients: Vec<_> = (0..8).map(|_| gate.client()).collect();
    clients[0].query("select 1").expect_no_error();
    let mut superuser = server.superuser();
    superuser.query("alter role app password 'rotated-secret'").expect_no_error();
    superuser
        .query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
        .expect_no_error();
    // Who is served by one until it goes hears that it goes.
    let left = "select count(*) from pg_stat_activity where usename = 'app'";
    eventually("the old ones are gone", || (superuser.one(left) == "0").then_some(()));
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        for mut client in clients.drain(..) {
            let (over, gate) = (&over, &gate);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let codes = client.query("select 1").codes();
                    assert!(codes.is_empty() || codes == ["28P01"], "{codes:?}");
                    // New ones come, too, and find no server that would have them.
                    drop(gate.try_client(&Login::app().with("application_name", "x")));
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        thread::sleep(Duration::from_secs(9));
        // The first four at once, then one each 3.75 s at the earliest, and later still.
        let (tried, seconds) = (refused_logins(&server), begun.elapsed().as_secs_f64());
        assert!((2..=4 + 3).contains(&tried), "{tried} attempts in {seconds:.1} s");
        home.url(&server.url_with("app", "rotated-secret", "app"));
        assert!(reload_as(&gate, "app-secret").errors().is_empty());
        let mut client = gate
            .try_client(&known("rotated-secret"))
            .unwrap_or_else(|refusal| panic!("{refusal:?}"));
        client.query("select 1").expect_no_error();
        over.store(true, Ordering::Relaxed);
        assert!(refused_logins(&server) <= tried + 1);
    });
}

#[test]
fn another_server_takes_over() {
    let (old, new, home) = (Postgres::start(), Postgres::start(), Home::new());
    home.url(&old.url());
    home.settings("[postgres]\npool_size = 2");
    let gate = Setup::new().database_url_file(&home.path("url")).config(&home.file()).start();
    for (server, name) in [(&old, "old"), (&new, "new")] {
        let create = format!("create table place as select '{name}' as name");
        server.direct().query(&create).expect_no_error();
    }
    let (mut busy, mut idle) = (gate.client(), gate.client());
    idle.query("set work_mem = '5MB'").expect_no_error();
    busy.query("begin").expect_no_error();
    assert_eq!(busy.one("select name from place"), "old");
    home.url(&new.url());
    reload(&gate);
    assert_eq!(idle.one("select name from place"), "new");
    assert_eq!(idle.one("show work_mem"), "5MB", "its session lives");
    assert_eq!(busy.one("select name from place"), "old", "what it has begun it ends");
    busy.send(&support::pg::query("select pg_sleep(60)"));
    eventually("it runs", || {
        let sleeping = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
        (old.superuser().one(sleeping) == "1").then_some(())
    });
    busy.cancel();
    assert_eq!(busy.reply().codes(), ["57014"], "a cancel request goes where the statement runs");
    busy.query("rollback").expect_no_error();
    assert_eq!(busy.one("select name from place"), "new");
    eventually("the old one is left", || (old.sessions_of("app") == 0).then_some(()));
    gate.client().query("select 1").expect_no_error();
}

/// The environment of a process that runs can't change, so neither does what opens the door for it.
#[test]
fn the_wrapped_command_keeps_its_password_and_hears_sighup() {
    let (server, home) = (Postgres::start(), Home::new());
    home.url(&server.url());
    home.settings("password_overlap_ms = 0\n[postgres]\npool_size = 2");
    let script = "trap 'echo heard' HUP; echo ready $DATABASE_URL ${DATABASE_URL_FILE-alone}; \
        while [ ! -e \"$0\" ]; do sleep 0.05; done";
    let ended = home.path("ended");
    let words = ["run", "--", "sh", "-c", script, ended.to_str().unwrap()];
    let setup = Setup::new().database_url_file(&home.path("url")).config(&home.file());
    let mut gate = setup.arguments(&words).start();
    eventually("the command runs", || gate.output().contains("alone").then_some(()));
    assert!(gate.output().contains("ready postgres://"), "{}", gate.output());
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    server.superuser().query("alter role app password 'rotated-secret'").expect_no_error();
    home.url(&server.url_with("app", "rotated-secret", "app"));
    gate.signal(Signal::HUP);
    eventually("both hear of it", || {
        (gate.output().contains("heard") && reloads(&gate, "taken") == 1.0).then_some(())
    });
    client.query("commit").expect_no_error();
    assert!(enters(&gate, "app-secret"), "what the command was given");
    assert!(enters(&gate, "rotated-secret"));
    home.url(&server.url_with("app", "third-secret", "app"));
    server.superuser().query("alter role app password 'third-secret'").expect_no_error();
    gate.signal(Signal::HUP);
    eventually("again", || (reloads(&gate, "taken") == 2.0).then_some(()));
    assert!(
        enters(&gate, "app-secret")
            && enters(&gate, "third-secret")
            && !enters(&gate, "rotated-secret")
    );
    fs::write(ended, "").unwrap();
    let status = gate.wait(Duration::from_secs(10));
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", gate.output());
}

/// As where each rotation makes a new user: the command goes on saying what it was given.
#[test]
fn another_user_takes_over() {
    let (server, home) = (Postgres::start(), Home::new());
    home.url(&server.url());
    home.settings("password_overlap_ms = 0");
    let ended = home.path("ended");
    let script = "trap '' HUP; : >\"$0.begun\"; while [ ! -e \"$0\" ]; do sleep 0.05; done";
    let words = ["run", "--", "sh", "-c", script, ended.to_str().unwrap()];
    let setup = Setup::new().database_url_file(&home.path("url")).config(&home.file());
    let mut gate = setup.arguments(&words).start();
    // The signal is the command's, too.
    eventually("the command has begun", || home.path("ended.begun").exists().then_some(()));
    let (mut busy, mut idle) = (gate.client(), gate.client());
    idle.query("set work_mem = '5MB'").expect_no_error();
    busy.query("begin").expect_no_error();
    let mut superuser = server.superuser();
    superuser
        .query("create role app2 login password 'second-secret' in role app")
        .expect_no_error();
    home.url(&server.url_with("app2", "second-secret", "app"));
    gate.signal(Signal::HUP);
    eventually("it is taken", || (reloads(&gate, "taken") == 1.0).then_some(()));
    assert_eq!(idle.one("select session_user"), "app2");
    assert_eq!(idle.one("show work_mem"), "5MB", "its session lives");
    assert_eq!(busy.one("select session_user"), "app", "what it has begun it ends");
    busy.query("commit").expect_no_error();
    eventually("the old user is left", || (server.sessions_of("app") == 0).then_some(()));
    superuser.query("alter role app nologin").expect_no_error();
    assert_eq!(gate.client().one("select session_user"), "app2", "by the name it was given");
    let second = Login { user: "app2".into(), ..known("second-secret") };
    assert_eq!(gate.try_client(&second).unwrap().one("select session_user"), "app2");
    assert_eq!(busy.one("select session_user"), "app2");
    fs::write(ended, "").unwrap();
    assert!(gate.wait(Duration::from_secs(10)).is_some());
}

#[test]
fn the_users_file_is_read_again() {
    let (server, home) = (Postgres::start(), Home::new());
    home.write("users", "\"reader\" \"reader-secret\"\n");
    let settings = format!(
        "password_overlap_ms = 0\n[postgres]\nany = true\nusers_file = \"{}\"",
        home.path("users").display()
    );
    home.settings(&settings);
    let gate = Setup::new().postgres(&server).config(&home.file()).start();
    let reader = |password: &str| {
        let login = Login { user: "reader".into(), ..known(password) };
        gate.try_client(&login).map_err(|refusal| refusal.code)
    };
    let mut client = reader("reader-secret").unwrap();
    client.query("select 1").expect_no_error();
    let mut superuser = server.superuser();
    superuser.query("create role late login password 'late-secret'").expect_no_error();
    superuser.query("alter role reader password 'rotated-secret'").expect_no_error();
    home.write("users", "\"reader\" \"rotated-secret\"\n\"late\" \"late-secret\"\n");
    reload(&gate);
    client.query("select 1").expect_no_error();
    let mut new = reader("rotated-secret").unwrap();
    new.query("select 1").expect_no_error();
    assert_eq!(reader("reader-secret").err().as_deref(), Some("28P01"));
    let late = Login { user: "late".into(), ..known("late-secret") };
    gate.try_client(&late).unwrap().query("select 1").expect_no_error();
    assert_eq!(refused_logins(&server), 0);
    home.write("users", "\"late\" \"late-secret\"\n");
    reload(&gate);
    assert_eq!(reader("rotated-secret").err().as_deref(), Some("28P01"), "it has gone");
    client.query("select 1").expect_no_error();
}

#[test]
fn a_url_that_goes_keeps_its_clients_and_one_that_comes_is_served() {
    let (server, home) = (Postgres::start(), Home::new());
    home.settings("[postgres]\nurls = [\"DATABASE_URL\", \"OTHER_URL\"]");
    let other = |database: &str| Login { database: database.into(), ..Login::app() };
    let setup = Setup::new()
        .postgres(&server)
        .env("OTHER_URL", &server.url_with("app", "app-secret", "other"));
    let gate = setup.config(&home.file()).start();
    let mut client = gate.try_client(&other("other")).unwrap();
    client.query("set work_mem = '5MB'").expect_no_error();
    client.query("begin").expect_no_error();
    home.settings("[postgres]\nurls = [\"DATABASE_URL\"]");
    reload(&gate);
    client.query("commit").expect_no_error();
    assert_eq!(client.one("select current_database()"), "other");
    assert_eq!(client.one("show work_mem"), "5MB");
    let refusal = gate.try_client(&other("other")).err();
    assert_eq!(refusal.map(|refusal| refusal.code).as_deref(), Some("3D000"));
    drop(client);
    let of_other =
        "select count(*) from pg_stat_activity where usename = 'app' and datname = 'other'";
    eventually("its connections go with its last client", || {
        (server.superuser().one(of_other) == "0").then_some(())
    });
    home.settings("[postgres]\nurls = [\"DATABASE_URL\", \"OTHER_URL\"]\npool_size = 3");
    reload(&gate);
    let mut again = gate.try_client(&other("other")).unwrap();
    assert_eq!(again.one("select current_database()"), "other");
    // The server's limit is counted once, whichever pools have had the name.
    let limit =
        |pool: &str| gate.page().sum("tidegate_server_connections_limit", &[("pool", pool)]);
    assert_eq!((limit("OTHER_URL"), limit("DATABASE_URL")), (3.0, 3.0));
}

#[test]
fn redis_changes_its_password_its_size_and_its_server() {
    let (old, new, home) = (Redis::with_password(), Redis::start(), Home::new());
    let url = |server: &Redis, password: &str| {
        format!("redis://:{password}@127.0.0.1:{}/0", server.port())
    };
    let secret = old.url().split([':', '@']).nth(2).unwrap().to_owned();
    home.url(&url(&old, &secret));
    home.settings("[redis]\npool_size = 4");
    let gate = Setup::new().redis_url_file(&home.path("url")).config(&home.file()).start();
    let enter = |password: &str| {
        let mut client = gate.redis_client();
        let answer = client.command(&["AUTH", password]);
        (answer == Value::simple("OK")).then_some(client)
    };
    let mut client = enter(&secret).unwrap();
    let mut subscriber = enter(&secret).unwrap();
    subscriber.command(&["SUBSCRIBE", "news"]);
    assert_eq!(client.command(&["SET", "place", "old"]), Value::simple("OK"));
    let hup = |times: f64| {
        gate.signal(Signal::HUP);
        eventually("it is taken", || (reloads(&gate, "taken") == times).then_some(()));
    };
    // Another password and a smaller pool.
    old.direct().command(&["CONFIG", "SET", "requirepass", "rotated-secret"]);
    home.url(&url(&old, "rotated-secret"));
    home.settings("[redis]\npool_size = 2");
    hup(1.0);
    assert_eq!(client.command(&["GET", "place"]), Value::bulk("old"));
    assert_eq!(gate.redis_metric("tidegate_server_connections_limit", &[]), 2.0);
    assert!(
        enter("rotated-secret").is_some()
            && enter(&secret).is_some()
            && enter("third-secret").is_none()
    );
    assert_eq!(gate.redis_metric("tidegate_subscription_losses_total", &[]), 0.0);
    // Another server.
    new.direct().command(&["CONFIG", "SET", "requirepass", "third-secret"]);
    home.url(&url(&new, "third-secret"));
    hup(2.0);
    eventually("commands go to the new one", || {
        (client.command(&["GET", "place"]) == Value::Null).then_some(())
    });
    assert_eq!(client.command(&["SET", "place", "new"]), Value::simple("OK"));
    let mut publisher = directly(&new);
    eventually("and so do subscriptions", || {
        (publisher.command(&["PUBLISH", "news", "x"]) == Value::Integer(1)).then_some(())
    });
    assert_eq!(subscriber.reply().words(), ["message", "news", "x"]);
    assert!(enter("third-secret").is_some());
    let lanes = "[redis]\npool_size = 1";
    home.settings(lanes);
    hup(3.0);
    let told = "redis.pool_size needs a restart to become 1 from 2";
    eventually("it is told", || gate.output().contains(told).then_some(()));
}

/// Past tidegate, with the password that the server was given later.
fn directly(server: &Redis) -> support::resp::Connection {
    let mut connection = support::resp::Connection::open(server.port());
    assert_eq!(connection.command(&["AUTH", "third-secret"]), Value::simple("OK"));
    connection
}
