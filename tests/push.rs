//! What is sent out by itself: that it arrives, and that nothing else suffers where it can't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::postgres::Postgres;
use support::prometheus::Prometheus;
use support::tidegate::{Setup, Tidegate};
use support::{DEADLINE, eventually, ports};

/// What must never be seen: it stands in the URL.
const SECRET: &str = "hunter2";

fn writing(server: &Postgres, port: u16, every_ms: &str) -> Setup {
    let url = format!("http://me:{SECRET}@127.0.0.1:{port}/api/v1/write?key={SECRET}");
    Setup::new()
        .postgres(server)
        .pool_size(2)
        .env("DYNO", "web.1")
        .env("TIDEGATE_PUSH_REMOTE_WRITE_URL", &url)
        .env("TIDEGATE_PUSH_REMOTE_WRITE_EVERY_MS", every_ms)
}

fn sent(gate: &Tidegate, outcome: &str) -> f64 {
    gate.page().sum("tidegate_push_total", &[("outcome", outcome)])
}

#[test]
fn a_prometheus_gets_every_series_and_the_last_word() {
    let server = Postgres::start();
    let prometheus = Prometheus::receiving();
    let mut gate = writing(&server, prometheus.port(), "60000").start();
    let mine = "{job=\"tidegate\",instance=\"web.1\"}";
    let count = |what: &str| prometheus.sum(&format!("count({what}{mine})"));
    eventually("the first has arrived", || (count("tidegate_build_info") == 1.0).then_some(()));
    assert_eq!(sent(&gate, "taken"), 1.0);
    let mut client = gate.client();
    for _ in 0..5 {
        client.query("select 1").expect_no_error();
    }
    drop(client);
    // Each sample of the page has a series of its own; those that came with the queries come with the last word.
    let page = gate.page().0;
    let samples = page.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(prometheus.sum(&format!("sum(tidegate_requests_total{mine})")), 0.0);
    gate.signal(Signal::TERM);
    assert!(gate.wait(DEADLINE).is_some(), "{}", gate.output());
    assert_eq!(prometheus.sum(&format!("sum(tidegate_requests_total{mine})")), 5.0);
    let arrived = prometheus.sum("count({__name__=~\"tidegate_.*\",instance=\"web.1\"})");
    assert!(arrived >= f64::from(u32::try_from(samples).unwrap()), "{arrived} of {samples}");
    let wait = "histogram_quantile(0.99, tidegate_checkout_wait_seconds_bucket{outcome=\"ok\"})";
    assert!(prometheus.query(wait).iter().any(|series| series.value < 10.0));
    assert!(!gate.output().contains(SECRET), "{}", gate.output());
}

#[test]
fn lines_in_the_log_have_the_form_that_is_read() {
    let server = Postgres::start();
    let gate = Setup::new()
        .postgres(&server)
        .env("DYNO", "web.1")
        .env("TIDEGATE_PUSH_LOG_EVERY_MS", "1000")
        .env("TIDEGATE_LOG_FORMAT", "json")
        .start();
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    let wanted = " sample#tidegate.pg.idle_in_transaction=1 ";
    let line = eventually("a line that says so", || {
        let output = gate.output();
        output.lines().find(|line| line.contains(wanted)).map(str::to_owned)
    });
    assert!(line.starts_with("source=web.1 sample#tidegate.pg.waiting=0 "), "{line}");
    assert!(line.contains(" sample#tidegate.pg.limit=5 "), "{line}");
    for line in gate.output().lines() {
        let json = line.starts_with('{') && line.ends_with('}');
        assert!(json || line.starts_with("source=web.1 sample#tidegate.pg."), "{line}");
    }
}

/// Whoever takes remote write: answers each request in turn as it is told, the last answer for ever.
struct Taker {
    port: u16,
    asked: Receiver<Instant>,
}

impl Taker {
    fn start(answers: &'static [&'static str]) -> Self {
        let port = ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (tell, asked) = channel();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let answer = answers[number.min(answers.len() - 1)];
                if tell.send(Instant::now()).is_err() {
                    return;
                }
                respond(stream.unwrap(), answer);
            }
        });
        Self { port, asked }
    }

    fn next(&self) -> Instant {
        self.asked.recv_timeout(DEADLINE).expect("another request")
    }
}

/// Reads the whole request first: an answer to a half one may be lost with the connection.
fn respond(mut stream: TcpStream, answer: &str) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut request, mut chunk) = (Vec::new(), [0; 65_536]);
    let complete = |request: &[u8]| {
        let head = request.windows(4).position(|four| four == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
        let length =
            text.split("content-length: ").nth(1)?.lines().next()?.parse::<usize>().ok()?;
        (request.len() >= head + 4 + length).then_some(())
    };
    while complete(&request).is_none() {
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => request.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    }
    if answer.is_empty() {
        // Says nothing until the other end has had enough.
        let _gone = stream.read(&mut chunk);
        return;
    }
    let _gone = write!(stream, "HTTP/1.1 {answer}Content-Length: 0\r\nConnection: close\r\n\r\n");
}

/// Serves as if nothing were; the clients of these tests wait for `DEADLINE` at most.
fn assert_unharmed(gate: &mut Tidegate) {
    let mut client = gate.client();
    for _ in 0..20 {
        client.query("select 1").expect_no_error();
    }
    gate.assert_alive();
    assert!(!gate.output().contains(SECRET), "{}", gate.output());
}

fn lines(gate: &Tidegate, words: &str) -> usize {
    gate.output().lines().filter(|line| line.contains(words)).count()
}

#[test]
fn nobody_suffers_where_nobody_listens() {
    let server = Postgres::start();
    let mut gate = writing(&server, ports::free(), "1000").start();
    // After a second and another; then the waits grow.
    eventually("two attempts", || (sent(&gate, "unreachable") >= 2.0).then_some(()));
    assert_unharmed(&mut gate);
    assert_eq!(lines(&gate, "could not be sent"), 1, "{}", gate.output());
    gate.signal(Signal::TERM);
    assert!(gate.wait(DEADLINE).is_some());
}

fn settings(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn who_says_nothing_is_given_up() {
    let server = Postgres::start();
    let taker = Taker::start(&[""]);
    let settings = settings("[push]\nremote_write_timeout_ms = 300\n");
    let mut gate = writing(&server, taker.port, "1000").config(settings.path()).start();
    eventually("two attempts", || (sent(&gate, "timeout") >= 2.0).then_some(()));
    assert_unharmed(&mut gate);
    assert_eq!(lines(&gate, "no answer within 300 ms"), 1, "{}", gate.output());
}

#[test]
fn who_says_nothing_is_waited_for_by_nobody_else() {
    let server = Postgres::start();
    let taker = Taker::start(&[""]);
    // Longer than this test may take: whoever waited for it would be seen.
    let settings = settings("drain_ms = 600000\n[push]\nremote_write_timeout_ms = 600000\n");
    let mut gate = writing(&server, taker.port, "1000").config(settings.path()).start();
    taker.next();
    assert_unharmed(&mut gate);
    assert_eq!(sent(&gate, "timeout"), 0.0, "it still waits");
    gate.signal(Signal::TERM);
    taker.next();
    assert!(gate.wait(DEADLINE).is_some(), "not even by the process's end");
}

#[test]
fn a_refusal_is_told_of_once_and_the_next_samples_are_sent() {
    let server = Postgres::start();
    let taker = Taker::start(&["400 Bad Request\r\n"]);
    let mut gate = writing(&server, taker.port, "1000").start();
    // With waits that grow, these would take half a minute.
    let started = Instant::now();
    for _ in 0..6 {
        taker.next();
    }
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    eventually("they are counted", || (sent(&gate, "refused") >= 6.0).then_some(()));
    assert_unharmed(&mut gate);
    assert_eq!(lines(&gate, "remote write was refused"), 1, "{}", gate.output());
}

#[test]
fn who_asks_for_time_gets_it() {
    let server = Postgres::start();
    let taker = Taker::start(&[
        "503 Service Unavailable\r\nRetry-After: 3\r\n",
        "500 Internal Server Error\r\n",
        "204 No Content\r\n",
    ]);
    let mut gate = writing(&server, taker.port, "1000").start();
    let first = taker.next();
    let second = taker.next();
    assert!(second - first > Duration::from_millis(2900), "{:?}", second - first);
    let third = taker.next();
    assert!(third - second > Duration::from_millis(1900), "{:?}", third - second);
    eventually("it is over", || (sent(&gate, "taken") >= 1.0).then_some(()));
    assert_eq!(sent(&gate, "busy"), 2.0);
    assert_unharmed(&mut gate);
    assert_eq!(lines(&gate, "could not be sent"), 1, "{}", gate.output());
    assert_eq!(lines(&gate, "sent by remote write again"), 1, "{}", gate.output());
}
