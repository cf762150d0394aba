//! Nobody can go on trying passwords, and a worker with a wrong one locks nobody out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::eventually;
use support::pg::{Connection, Login};
use support::postgres::Postgres;
use support::redis::{PASSWORD as REDIS_PASSWORD, Redis};
use support::resp;
use support::tidegate::{Setup, Tidegate};
use tempfile::NamedTempFile;

/// What a delayed answer takes at least; no other takes so long.
const LATER: Duration = Duration::from_millis(950);

struct Stage {
    gate: Tidegate,
    _servers: (Postgres, Redis),
    file: NamedTempFile,
}

impl Stage {
    fn new(failures: usize, setup: impl FnOnce(Setup) -> Setup) -> Self {
        let servers = (Postgres::start(), Redis::with_password());
        let file = NamedTempFile::new().unwrap();
        std::fs::write(&file, format!("login_failures_per_minute = {failures}")).unwrap();
        let both = Setup::new().postgres(&servers.0).redis(&servers.1).config(file.path());
        Self { gate: setup(both).start(), _servers: servers, file }
    }

    fn limited(&self, protocol: &str, outcome: &str) -> f64 {
        let labels = [("protocol", protocol), ("outcome", outcome)];
        self.gate.page().sum("tidegate_logins_limited_total", &labels)
    }
}

/// How long it takes to hear that the password is wrong, or that nobody looks.
fn refused(login: impl FnOnce() -> String) -> (String, Duration) {
    let begun = Instant::now();
    (login(), begun.elapsed())
}

fn wrong_postgres(gate: &Tidegate) -> (String, Duration) {
    let wrong = Login::of("app", "mistyped", "app");
    refused(|| gate.try_client(&wrong).err().expect("it is wrong").code)
}

fn wrong_redis(gate: &Tidegate) -> (String, Duration) {
    let mut client = gate.redis_client();
    refused(|| client.command(&["AUTH", "mistyped"]).error().to_owned())
}

#[test]
fn on_the_loopback_wrong_passwords_wait_and_right_ones_do_not() {
    let stage = Stage::new(4, |setup| setup);
    let gate = &stage.gate;
    for _ in 0..2 {
        let (code, took) = wrong_postgres(gate);
        assert!(code == "28P01" && took < LATER, "{code} {took:?}");
        let (error, took) = wrong_redis(gate);
        assert!(error.starts_with("WRONGPASS") && took < LATER, "{error} {took:?}");
    }
    std::thread::scope(|scope| {
        let postgres = scope.spawn(|| wrong_postgres(gate));
        let redis = scope.spawn(|| wrong_redis(gate));
        // Meanwhile who knows it comes in.
        let begun = Instant::now();
        for _ in 0..3 {
            assert_eq!(gate.client().one("select 1"), "1");
            let mut client = gate.redis_client();
            assert_eq!(client.command(&["AUTH", REDIS_PASSWORD]).text(), "OK");
        }
        assert!(begun.elapsed() < LATER, "{:?}", begun.elapsed());
        let (code, took) = postgres.join().unwrap();
        assert!(code == "28P01" && took >= LATER, "{code} {took:?}");
        let (error, took) = redis.join().unwrap();
        assert!(error.starts_with("WRONGPASS") && took >= LATER, "{error} {took:?}");
    });
    assert_eq!(
        (stage.limited("postgres", "delayed"), stage.limited("redis", "delayed")),
        (1.0, 1.0)
    );
    assert_eq!(stage.limited("postgres", "refused") + stage.limited("redis", "refused"), 0.0);
}

/// Many in one write would be many at once.
#[test]
fn passwords_in_one_write_wait_one_after_the_other() {
    let stage = Stage::new(1, |setup| setup);
    let mut client = stage.gate.redis_client();
    let begun = Instant::now();
    let attempt: &[&str] = &["AUTH", "mistyped"];
    let answers =
        client.pipeline(&[attempt, attempt, attempt, &["AUTH", REDIS_PASSWORD], &["PING"]]);
    assert!(begun.elapsed() >= 2 * LATER, "{:?}", begun.elapsed());
    let said: Vec<_> = answers.iter().map(|answer| answer.text()).collect();
    assert!(said[..3].iter().all(|word| word.starts_with("WRONGPASS")), "{said:?}");
    assert_eq!(said[3..], ["OK", "PONG"]);
    assert_eq!(stage.limited("redis", "delayed"), 2.0);
}

#[test]
fn nought_is_no_limit_and_a_reload_is_enough() {
    let stage = Stage::new(1, |setup| setup);
    wrong_postgres(&stage.gate);
    assert!(wrong_postgres(&stage.gate).1 >= LATER);
    std::fs::write(&stage.file, "login_failures_per_minute = 0").unwrap();
    stage.gate.signal(Signal::HUP);
    eventually("it is taken", || {
        let taken = stage.gate.page().sum("tidegate_reloads_total", &[("outcome", "taken")]);
        (taken > 0.0).then_some(())
    });
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(wrong_postgres(&stage.gate).0, "28P01");
    }
    assert!(begun.elapsed() < 10 * LATER);
    assert_eq!(stage.limited("postgres", "delayed"), 1.0);
}

/// An address of this machine that is not the loopback: what is sent there does not leave it.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Nothing is sent: the system only chooses the way.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Whoever begins many at once has no more guesses.
#[test]
fn passwords_that_come_at_once_are_no_more() {
    let Some(address) = own_address() else {
        eprintln!("skipped: this machine has no address but the loopback's");
        return;
    };
    let stage = Stage::new(3, Setup::on_all_addresses);
    let place = SocketAddr::new(address, stage.gate.postgres_port());
    let guess = || Connection::try_open_at(place, &Login::of("app", "mistyped", "app"));
    let codes: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..30).map(|_| scope.spawn(|| guess().err().unwrap().code)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let of = |code: &str| codes.iter().filter(|known| *known == code).count();
    assert_eq!((of("28P01"), of("28000")), (3, 27), "{codes:?}");
}

#[test]
fn from_elsewhere_no_password_is_looked_at_until_the_minute_is_over() {
    let Some(address) = own_address() else {
        eprintln!("skipped: this machine has no address but the loopback's");
        return;
    };
    let stage = Stage::new(2, Setup::on_all_addresses);
    let gate = &stage.gate;
    let enter = |password: &str| {
        let login = Login::of("app", password, "app");
        Connection::try_open_at(SocketAddr::new(address, gate.postgres_port()), &login)
    };
    assert!(enter("app-secret").is_ok());
    assert_eq!(enter("mistyped").err().unwrap().code, "28P01");
    let redis = SocketAddr::new(address, gate.redis_port());
    let mut before = resp::Connection::try_open_at(redis).unwrap();
    assert!(before.command(&["AUTH", "mistyped"]).error().starts_with("WRONGPASS"));
    // Both protocols count together, and not even the right one is looked at.
    for password in ["mistyped", "app-secret"] {
        let refusal = enter(password).err().unwrap();
        assert_eq!(refusal.code, "28000");
        assert_eq!(refusal.message, format!("too many failed logins from {address}"));
        assert!(
            refusal.detail.contains(" s.") && refusal.hint.contains("login_failures_per_minute")
        );
    }
    for words in [&["AUTH", REDIS_PASSWORD][..], &["HELLO", "3", "AUTH", "default", REDIS_PASSWORD]]
    {
        let error = before.command(words).error().to_owned();
        assert!(
            error.starts_with(&format!("ERR tidegate: too many failed logins from {address}")),
            "{error}"
        );
    }
    assert!(before.command(&["PING"]).error().starts_with("NOAUTH"));
    assert_eq!(
        (stage.limited("postgres", "refused"), stage.limited("redis", "refused")),
        (2.0, 2.0)
    );
    // The loopback is another address.
    assert_eq!(gate.client().one("select 1"), "1");
}
