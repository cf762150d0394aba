//! Unix sockets beside the listeners: the usual clients over them, who may open them, and what becomes of the files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use support::pg::{Frame, Login, SSL, VERSION_3_0, startup};
use support::postgres::{Postgres, tool};
use support::process::Process;
use support::redis::Redis;
use support::tidegate::{Setup, Tidegate};
use support::{DEADLINE, eventually};
use tempfile::TempDir;

const GSSENC: u32 = 80_877_104;

/// A tidegate with sockets for both sides in a directory of its own.
struct Stage {
    home: TempDir,
    server: Postgres,
    _redis: Redis,
    gate: Tidegate,
}

fn with_sockets(setup: Setup, home: &Path) -> Setup {
    let redis = home.join("redis.sock");
    setup
        .env("TIDEGATE_POSTGRES_SOCKET_DIR", home.to_str().unwrap())
        .env("TIDEGATE_REDIS_SOCKET", redis.to_str().unwrap())
}

/// Started, with this socket open: TCP is first, and what waits for that alone may be too early.
fn started(setup: Setup, path: impl Fn(&Tidegate) -> PathBuf) -> Tidegate {
    let gate = setup.start();
    let path = path(&gate);
    eventually("the socket is open", || UnixStream::connect(&path).ok());
    gate
}

impl Stage {
    fn new() -> Self {
        let (home, server, redis) =
            (tempfile::tempdir().unwrap(), Postgres::start(), Redis::start());
        let setup = Setup::new().postgres(&server).redis(&redis).pool_size(2);
        let path = home.path().join("redis.sock");
        let gate = started(with_sockets(setup, home.path()), |_| path.clone());
        Self { home, server, _redis: redis, gate }
    }

    fn postgres(&self) -> PathBuf {
        self.home.path().join(format!(".s.PGSQL.{}", self.gate.postgres_port()))
    }

    fn redis(&self) -> PathBuf {
        self.home.path().join("redis.sock")
    }

    fn psql(&self, database: &str) -> Command {
        let login = Login::app();
        let mut command = Command::new(tool("psql"));
        command.env("PGPASSWORD", &login.password).env("PGUSER", &login.user);
        command.env("PGHOST", self.home.path()).env("PGDATABASE", database);
        command.env("PGPORT", self.gate.postgres_port().to_string()).arg("-XAt");
        command
    }

    fn redis_cli(&self, words: &[&str]) -> String {
        stdout(Command::new("redis-cli").arg("-s").arg(self.redis()).args(words).output().unwrap())
    }
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// What comes until the end.
fn rest(mut stream: UnixStream) -> Vec<u8> {
    stream.shutdown(Shutdown::Write).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn psql_and_redis_cli_come_in() {
    let stage = Stage::new();
    let app = Login::app().database;
    let many =
        "select generate_series(1, 3); prepare p as select 4; execute p; begin; select 5; commit;";
    let said = stdout(stage.psql(&app).args(["-c", many]).output().unwrap());
    assert_eq!(said, "1\n2\n3\nPREPARE\n4\nBEGIN\n5\nCOMMIT");
    let long = "select length(repeat('x', 1000000)), repeat('y', 1000000)";
    let said = stdout(stage.psql(&app).args(["-c", long]).output().unwrap());
    assert_eq!(said.len(), "1000000|".len() + 1_000_000);
    assert_eq!(stage.redis_cli(&["SET", "k", "v"]), "OK");
    assert_eq!(stage.redis_cli(&["-3", "GET", "k"]), "v");
    // The wrong password is as wrong as elsewhere.
    let refused = stage.psql(&app).env("PGPASSWORD", "wrong").args(["-c", "select 1"]).output();
    let refused = String::from_utf8(refused.unwrap().stderr).unwrap();
    assert!(refused.contains("password authentication failed"), "{refused}");
}

#[test]
fn who_comes_over_a_socket_is_shown_so() {
    let stage = Stage::new();
    let shown = stage.redis_cli(&["CLIENT", "LIST"]);
    let path = stage.redis().display().to_string();
    assert!(shown.contains(&format!("addr={path}:0 laddr={path}:0 ")), "{shown}");
    assert!(shown.contains(" flags=U "), "{shown}");
    // Sleeping in a transaction, so that it is a client while the console is asked.
    let mut sleeper = stage.psql(&Login::app().database);
    sleeper.args(["-c", "select pg_sleep(60)"]);
    let mut sleeper = Process::start(sleeper, Signal::KILL);
    let row = eventually("the client is seen", || {
        let clients =
            stdout(stage.psql("pgbouncer").args(["-c", "show clients"]).output().unwrap());
        let of_app = |line: &&str| line.contains(&format!("|{}|", Login::app().database));
        clients.lines().find(of_app).map(str::to_owned)
    });
    let port = stage.gate.postgres_port();
    assert!(row.contains(&format!("|unix|{port}|unix|{port}|")), "{row}");
    sleeper.end(Signal::KILL, DEADLINE);
}

#[test]
fn a_query_over_a_socket_can_be_cancelled() {
    let stage = Stage::new();
    let mut command = stage.psql(&Login::app().database);
    command.args(["-c", "select pg_sleep(60)"]);
    let mut psql = Process::start(command, Signal::KILL);
    eventually("it runs", || {
        let running = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
        (stage.server.superuser().one(running) == "1").then_some(())
    });
    psql.signal(Signal::INT);
    psql.wait(DEADLINE).expect("psql ends");
    assert!(psql.output().contains("canceling statement due to user request"), "{}", psql.output());
}

#[test]
fn encryption_is_declined() {
    let stage = Stage::new();
    let mut stream = connect(&stage.postgres());
    for request in [SSL, GSSENC] {
        stream.write_all(&[8_u32.to_be_bytes(), request.to_be_bytes()].concat()).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"N");
    }
    stream.write_all(&startup(VERSION_3_0, &Login::app())).unwrap();
    let mut kind = [0];
    stream.read_exact(&mut kind).unwrap();
    assert_eq!(kind, *b"R", "it goes on in the clear");
    // The beginning of a handshake.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut direct = connect(&stage.postgres());
    direct.write_all(&hello).unwrap();
    let said = rest(direct);
    let refusal = Frame { tag: said[0], body: said[5..].to_vec() }.refusal();
    assert_eq!(refusal.code, "08P01");
    assert!(refusal.message.contains("no TLS"), "{refusal:?}");
    let mut direct = connect(&stage.redis());
    direct.write_all(&hello).unwrap();
    let said = String::from_utf8(rest(direct)).unwrap();
    assert!(said.starts_with("-ERR tidegate: a unix socket has no TLS"), "{said}");
}

/// Where TCP must be encrypted, and where nobody has a password.
#[test]
fn what_is_for_the_network_is_not_asked_of_a_socket() {
    let (home, redis) = (tempfile::tempdir().unwrap(), Redis::start());
    let setup = Setup::new().redis(&redis).env("TIDEGATE_TLS_REDIS", "require");
    let path = home.path().join("redis.sock");
    let _gate = started(with_sockets(setup, home.path()), |_| path.clone());
    let mut stream = connect(&path);
    stream.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");

    let server = Postgres::start();
    let setup = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_AUTH", "trust");
    let path = |gate: &Tidegate| home.path().join(format!(".s.PGSQL.{}", gate.postgres_port()));
    let gate = started(with_sockets(setup, home.path()), path);
    let mut stream = connect(&path(&gate));
    stream.write_all(&startup(VERSION_3_0, &Login::app())).unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"R\0\0\0\x08\0\0\0\0", "AuthenticationOk");
}

#[test]
fn files_have_the_mode_that_was_set_and_go_at_the_end() {
    let mut stage = Stage::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let paths = [stage.postgres(), stage.redis()];
    assert_eq!(paths.each_ref().map(|path| mode(path)), [0o600; 2]);
    stage.gate.signal(Signal::TERM);
    assert_eq!(stage.gate.wait(DEADLINE).and_then(|status| status.code()), Some(0));
    assert!(paths.iter().all(|path| !path.exists()));

    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("redis.sock");
    let setup = Setup::new().redis_url("redis://127.0.0.1:1").env("TIDEGATE_SOCKET_MODE", "0666");
    let setup = with_sockets(setup, home.path()).arguments(&["run", "--", "sleep", "60"]);
    let mut gate = started(setup, |_| path.clone());
    assert_eq!(mode(&path), 0o666);
    // Somebody puts another socket there.
    fs::remove_file(&path).unwrap();
    let _others = UnixListener::bind(&path).unwrap();
    gate.signal(Signal::TERM);
    gate.wait(DEADLINE).expect("it ends");
    assert!(path.exists(), "it is not ours");
}

#[test]
fn under_run_the_files_go_too() {
    for workers in ["1", "2"] {
        let home = tempfile::tempdir().unwrap();
        let setup = Setup::new().redis_url("redis://127.0.0.1:1").env("TIDEGATE_WORKERS", workers);
        let path = home.path().join("redis.sock");
        let there = format!("test -S {}", path.display());
        let mut gate =
            with_sockets(setup, home.path()).arguments(&["run", "--", "sh", "-c", &there]).launch();
        let status = gate.wait(DEADLINE).and_then(|status| status.code());
        assert_eq!(status, Some(0), "it is there while the command runs: {}", gate.output());
        assert!(!path.exists());
    }
}

#[test]
fn a_socket_after_a_kill_is_replaced_and_a_live_one_refused() {
    let mut stage = Stage::new();
    let path = stage.redis();
    stage.gate.signal(Signal::KILL);
    stage.gate.wait(DEADLINE).expect("it is killed");
    assert!(path.exists());
    let start = || with_sockets(Setup::new().redis_url("redis://127.0.0.1:1"), stage.home.path());
    let mut first = started(start(), |_| path.clone());
    connect(&path);
    let mut second = start().launch();
    let status = second.wait(DEADLINE).and_then(|status| status.code());
    assert_eq!(status, Some(1));
    let said = second.output();
    assert!(said.contains("redis.sock") && said.contains("another process listens"), "{said}");
    connect(&path);
    first.assert_alive();
}

#[test]
fn another_kind_of_file_and_a_missing_directory_are_left_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("redis.sock");
    fs::write(&path, "words").unwrap();
    let start =
        |directory: &Path| with_sockets(Setup::new().redis_url("redis://127.0.0.1:1"), directory);
    let mut gate = start(home.path()).launch();
    assert_eq!(gate.wait(DEADLINE).and_then(|status| status.code()), Some(1));
    assert!(gate.output().contains("no socket"), "{}", gate.output());
    assert_eq!(fs::read_to_string(&path).unwrap(), "words");
    let none = home.path().join("none");
    let mut gate = start(&none).launch();
    assert_eq!(gate.wait(DEADLINE).and_then(|status| status.code()), Some(1));
    assert!(gate.output().contains("there is no directory"), "{}", gate.output());
    assert!(!none.exists());
}

#[test]
fn an_upstream_that_is_our_own_socket_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let url = format!("unix://{}", home.path().join("redis.sock").display());
    let mut gate = with_sockets(Setup::new().redis_url(&url), home.path()).launch();
    assert_eq!(gate.wait(DEADLINE).and_then(|status| status.code()), Some(2), "{}", gate.output());
    assert!(gate.output().contains("tidegate's own listener"), "{}", gate.output());
}

#[test]
fn a_change_of_them_waits_for_a_restart() {
    let (home, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let write = |path: &str| {
        let text = format!("[redis]\nsocket = {:?}\n", home.path().join(path));
        fs::write(file.path(), text).unwrap();
    };
    write("one");
    let setup = Setup::new().redis_url("redis://127.0.0.1:1").config(file.path());
    let gate = started(setup, |_| home.path().join("one"));
    write("two");
    gate.signal(Signal::HUP);
    eventually("it says so", || {
        gate.output().contains("redis.socket has changed and needs a restart").then_some(())
    });
    connect(&home.path().join("one"));
    assert!(!home.path().join("two").exists());
}

#[test]
fn check_says_where_they_will_be() {
    let home = tempfile::tempdir().unwrap();
    let setup =
        Setup::new().redis_url("redis://127.0.0.1:1").database_url("postgres://u@127.0.0.1:1/d");
    let setup = setup.env("TIDEGATE_SOCKET_MODE", "0660").arguments(&["check"]);
    let mut check = with_sockets(setup, home.path()).launch();
    assert_eq!(
        check.wait(DEADLINE).and_then(|status| status.code()),
        Some(0),
        "{}",
        check.output()
    );
    let postgres = format!(".s.PGSQL.{}", check.postgres_port());
    for name in [postgres.as_str(), "redis.sock"] {
        let line = format!("socket    {}, mode 0660\n", home.path().join(name).display());
        assert!(check.output().contains(&line), "{}", check.output());
        assert!(!home.path().join(name).exists(), "it makes none");
    }
}

/// Idle clients at both doors, and a crowd that comes and goes over the socket.
#[test]
fn a_crowd_comes_and_goes() {
    let stage = Stage::new();
    let path = stage.redis();
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    let mut stream = connect(&path);
                    stream.write_all(b"PING\r\n").unwrap();
                    let mut answer = [0; 7];
                    stream.read_exact(&mut answer).unwrap();
                }
            })
        })
        .collect();
    for _ in 0..50 {
        let mut client = stage.gate.redis_client();
        assert_eq!(client.command(&["PING"]).text(), "PONG");
    }
    crowd.into_iter().for_each(|one| one.join().unwrap());
    let gone = || stage.gate.redis_metric("tidegate_clients", &[("state", "idle")]) == 0.0;
    support::within(Duration::from_secs(5), "all have gone", || gone().then_some(()));
}
