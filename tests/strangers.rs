//! Clients that have not shown who they are: what each may cost is bounded, so is how many there are and for how long, and whoever
//! knows a password comes in past all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::{Resource, getrlimit, setrlimit};
use support::eventually;
use support::pg::{self, Login, startup};
use support::postgres::Postgres;
use support::redis::{PASSWORD as REDIS_PASSWORD, Redis};
use support::tidegate::{Setup, Tidegate};
use tempfile::NamedTempFile;

/// Server connections, which come and go with honest clients.
const SERVERS: usize = 9;
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const VERSION_3_0: u32 = 196_608;

/// How a stranger begins, to say no more then.
type Beginning = fn(&mut TcpStream);

struct Stage {
    gate: Tidegate,
    _servers: (Postgres, Redis),
    _file: NamedTempFile,
}

impl Stage {
    fn new(settings: &str) -> Self {
        raise_file_limit();
        let servers = (Postgres::start(), Redis::with_password());
        let file = NamedTempFile::new().unwrap();
        std::fs::write(&file, settings).unwrap();
        let setup = Setup::new().postgres(&servers.0).redis(&servers.1).config(file.path());
        let gate = setup.env("TIDEGATE_LOG", "warn").start();
        Self { gate, _servers: servers, _file: file }
    }

    /// Whoever knows a password comes in and is served.
    fn serves(&self) {
        assert_eq!(self.gate.client().one("select 1"), "1");
        let mut client = self.gate.redis_client();
        assert_eq!(client.command(&["AUTH", REDIS_PASSWORD]).text(), "OK");
        assert_eq!(client.command(&["SET", "k", "v"]).text(), "OK");
    }
}

/// Each stranger is a file here, too.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn strangers(port: u16, count: usize, begin: Beginning) -> Vec<TcpStream> {
    let one = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        begin(&mut stream);
        stream
    };
    std::iter::repeat_with(one).take(count).collect()
}

fn silent(_stream: &mut TcpStream) {}

fn asks_for_tls(stream: &mut TcpStream) {
    stream.write_all(&SSL_REQUEST).unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// As long as one may be, and nearly all of it.
fn half_a_startup(stream: &mut TcpStream) {
    let mut packet = 10_000_u32.to_be_bytes().to_vec();
    packet.extend(VERSION_3_0.to_be_bytes());
    packet.extend(b"user\0app\0options\0");
    packet.resize(9_900, b'x');
    stream.write_all(&packet).unwrap();
}

fn half_a_login(stream: &mut TcpStream) {
    stream.write_all(&startup(VERSION_3_0, &Login::app())).unwrap();
    read_frame(stream);
    let first = b"n,,n=,r=0123456789012345678901234567";
    let length = i32::try_from(first.len()).unwrap().to_be_bytes();
    let body = [b"SCRAM-SHA-256\0", &length[..], first].concat();
    stream.write_all(&pg::framed(b'p', &body)).unwrap();
    read_frame(stream);
}

fn read_frame(stream: &mut TcpStream) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], b'R');
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    stream.read_exact(&mut vec![0; usize::try_from(length).unwrap() - 4]).unwrap();
}

fn half_a_password(stream: &mut TcpStream) {
    stream.write_all(b"*2\r\n$4\r\nAUTH\r\n$16000\r\n").unwrap();
    stream.write_all(&[b'x'; 15_000]).unwrap();
}

fn endless_word(stream: &mut TcpStream) {
    stream.write_all(&[b'x'; 15_000]).unwrap();
}

/// What says nothing more, and what it may cost in bytes at most: its packet twice, as a buffer grows, and a few KiB.
const KINDS: [(&str, Side, Beginning, u64); 7] = [
    ("silent", Side::Postgres, silent, 10_000),
    ("asks for TLS", Side::Postgres, asks_for_tls, 20_000),
    ("half a startup packet", Side::Postgres, half_a_startup, 30_000),
    ("half a login", Side::Postgres, half_a_login, 12_000),
    ("silent", Side::Redis, silent, 6_000),
    ("half a password", Side::Redis, half_a_password, 40_000),
    ("an endless word", Side::Redis, endless_word, 40_000),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Postgres,
    Redis,
}

impl Stage {
    fn port(&self, side: Side) -> u16 {
        match side {
            Side::Postgres => self.gate.postgres_port(),
            Side::Redis => self.gate.redis_port(),
        }
    }

    /// How many descriptors tidegate has open.
    fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.gate.pid())).unwrap().count()
    }
}

/// What the last words of somebody who is sent away are.
fn last_words(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        // What was sent and not read may end it with a reset; who is still there has not been sent away.
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn count() -> usize {
    std::env::var("TIDEGATE_TEST_STRANGERS").map_or(2_000, |text| text.parse().unwrap())
}

#[test]
fn each_costs_some_kilobytes_and_honest_clients_come_in_meanwhile() {
    let count = count();
    for (kind, side, begin, most) in KINDS {
        let timeout = "login_limit = 10000\nlogin_timeout_ms = 60000";
        let stage = Stage::new(&format!("[postgres]\n{timeout}\n[redis]\n{timeout}"));
        stage.serves();
        let (before, files) = (stage.gate.resident_kib(), stage.files());
        let all = strangers(stage.port(side), count, begin);
        eventually("all are there", || (stage.files() + SERVERS >= files + count).then_some(()));
        stage.serves();
        let grown = stage.gate.resident_kib().saturating_sub(before) * 1024;
        let each = grown / u64::try_from(count).unwrap();
        println!("{side:?}, {kind}: {each} bytes");
        assert!(each <= most, "{side:?}, {kind}: {each} bytes each");
        drop(all);
    }
}

#[test]
fn everybody_has_a_deadline() {
    let timeout = "login_timeout_ms = 1500";
    let stage = Stage::new(&format!("[postgres]\n{timeout}\n[redis]\n{timeout}"));
    for (kind, side, begin, _) in KINDS {
        let mut all = strangers(stage.port(side), 20, begin);
        stage.serves();
        for one in &mut all {
            let words = last_words(one);
            let told = side == Side::Redis || words.contains("57014") || kind == "asks for TLS";
            assert!(told, "{side:?}, {kind}: {words}");
        }
    }
    let greeting = || stage.gate.page().sum("tidegate_clients", &[("state", "greeting")]);
    eventually("nobody is left", || (greeting() == 0.0).then_some(()));
}

/// A length that nobody could keep is no reason to wait.
#[test]
fn absurd_lengths_end_it_at_once() {
    let timeout = "login_timeout_ms = 600000";
    let stage = Stage::new(&format!("[postgres]\n{timeout}\n[redis]\n{timeout}"));
    for begin in [
        (|stream| stream.write_all(b"*2\r\n$4\r\nAUTH\r\n$999999999999999\r\n").unwrap())
            as Beginning,
        |stream| stream.write_all(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n").unwrap(),
        |stream| stream.write_all(b"*999999999\r\n").unwrap(),
        |stream| stream.write_all(&[b'x'; 100_000]).unwrap(),
    ] {
        let words = last_words(&mut strangers(stage.port(Side::Redis), 1, begin)[0]);
        assert!(words.is_empty() || words.starts_with("-ERR Protocol error"), "{words}");
    }
    let begin =
        |stream: &mut TcpStream| stream.write_all(&[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]).unwrap();
    let words = last_words(&mut strangers(stage.port(Side::Postgres), 1, begin)[0]);
    assert!(words.is_empty() || words.contains("08P01"), "{words}");
    stage.serves();
}

#[test]
fn who_has_stood_there_for_longest_makes_room() {
    let limit = "login_limit = 50\nlogin_timeout_ms = 600000";
    let stage = Stage::new(&format!("[postgres]\n{limit}\n[redis]\n{limit}"));
    for (side, protocol, words) in [
        (Side::Postgres, "postgres", "53300"),
        (Side::Redis, "redis", "-ERR tidegate: too many clients that have not logged in"),
    ] {
        stage.serves();
        let files = stage.files();
        let mut first = strangers(stage.port(side), 50, silent);
        let mut second = strangers(stage.port(side), 50, silent);
        stage.serves();
        for one in &mut first {
            let said = last_words(one);
            assert!(said.contains(words), "{said}");
        }
        let labels = [("protocol", protocol), ("outcome", "crowded_out")];
        let out = stage.gate.page().sum("tidegate_logins_limited_total", &labels);
        // One more for each honest client that came meanwhile.
        assert!((50.0..=52.0).contains(&out), "{out}");
        eventually("so many and no more are left", || {
            (stage.files() <= files + 50 + SERVERS).then_some(())
        });
        // The last one is still asked for its password.
        let last = second.last_mut().unwrap();
        match side {
            Side::Postgres => half_a_login(last),
            Side::Redis => {
                last.write_all(b"PING\r\n").unwrap();
                last.read_exact(&mut [0; 7]).unwrap();
            }
        }
    }
}

/// As after a restart, when everybody comes at once: they wait for their turn, and nobody is sent away.
#[test]
fn a_crowd_of_honest_clients_is_let_in() {
    let limit = "login_limit = 3";
    let stage = Stage::new(&format!("[postgres]\n{limit}\n[redis]\n{limit}"));
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| stage.serves());
        }
    });
    let out = stage.gate.page().sum("tidegate_logins_limited_total", &[("outcome", "crowded_out")]);
    assert_eq!(out, 0.0);
}
