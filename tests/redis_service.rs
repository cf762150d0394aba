//! The Redis service in front of a real redis-server: order, isolation, holds, bad days.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tidegate::config::{
    Auth, ChildCredentials, Host, RedisListener, RedisSettings, RedisTls, RedisUpstream, Secret,
};
use tidegate::lifecycle::{Drain, DrainTrigger};
use tidegate::metrics::Metrics;
use tidegate::net;
use tidegate::redis::service::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A redis-server of this test's own, ended with it.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
    options: Vec<String>,
}

/// No two tests of this process look at the same one, or both would find it free.
fn free_port() -> u16 {
    static LOOKED_AT: AtomicU16 = AtomicU16::new(0);
    let from = u16::try_from(std::process::id() % 10_000).unwrap();
    std::iter::repeat_with(|| LOOKED_AT.fetch_add(1, Ordering::Relaxed))
        .take(5_000)
        .map(|step| 15_000 + (from + step % 2_000 * 7) % 15_000)
        .find(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}

impl Server {
    async fn start(options: &[&str]) -> Self {
        let port = free_port();
        let dir = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let child = Self::spawn(port, &dir.path().to_path_buf(), &options);
        let server = Self { child, port, _dir: dir, options };
        server.ready().await;
        server
    }

    fn spawn(port: u16, dir: &PathBuf, options: &[String]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed")
    }

    async fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            tokio::task::yield_now().await;
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.child = Self::spawn(self.port, &self._dir.path().to_path_buf(), &self.options);
        self.ready().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The service in front of `server`, and its address.
struct Proxy {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    _trigger: DrainTrigger,
}

fn settings(
    port: u16,
    change: impl FnOnce(&mut RedisSettings, &mut RedisUpstream),
) -> RedisSettings {
    let mut upstream = RedisUpstream {
        name: "REDIS_URL".into(),
        host: Host::Tcp("127.0.0.1".into()),
        port,
        user: None,
        password: None,
        database: 0,
        tls: RedisTls::Off,
        identity: None,
        pins: net::Pins::default(),
    };
    let mut settings = RedisSettings { wait: Duration::from_millis(500), ..Default::default() };
    change(&mut settings, &mut upstream);
    settings.listeners = vec![RedisListener {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        explicit: true,
        upstream: Arc::new(upstream),
        namespaces: Vec::new(),
        first_namespace: None,
    }];
    settings
}

impl Proxy {
    async fn start(settings: RedisSettings) -> Self {
        let port = std::env::var("TIDEGATE_TEST_PORT").ok().and_then(|port| port.parse().ok());
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or_else(free_port)));
        let listener = net::bind(wanted).await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new().unwrap();
        let (trigger, drain) = Drain::new();
        let service =
            Service::new(&settings, &metrics, drain, &ChildCredentials::default(), &Arc::default())
                .unwrap();
        tokio::spawn(async move { service.serve(0, listener).await });
        Self { address, metrics, _trigger: trigger }
    }

    async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream }
    }
}

struct Client {
    stream: TcpStream,
}

impl Client {
    async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Reads exactly `expected`.
    async fn expect(&mut self, expected: &str) {
        let mut got = vec![0; expected.len()];
        let read = self.stream.read_exact(&mut got);
        match tokio::time::timeout(Duration::from_secs(10), read).await {
            Ok(Ok(_)) => assert_eq!(String::from_utf8_lossy(&got), expected),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&got)),
        }
    }

    async fn say(&mut self, line: &str, expected: &str) {
        self.send(&format!("{line}\r\n")).await;
        self.expect(expected).await;
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let byte = tokio::time::timeout(Duration::from_secs(10), self.stream.read_u8());
            line.push(byte.await.expect("a line in time").expect("a line"));
        }
        String::from_utf8(line).unwrap()
    }

    async fn bulk(&mut self) -> String {
        let header = self.line().await;
        let length: usize = header.trim_start_matches('$').trim().parse().unwrap();
        let mut body = vec![0; length + 2];
        self.stream.read_exact(&mut body).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = self.stream.read_to_end(&mut rest);
        let _reset = tokio::time::timeout(Duration::from_secs(10), end).await.expect("closed");
    }
}

#[tokio::test]
async fn replies_keep_the_order_of_a_mixed_pipeline() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    let mut client = proxy.client().await;
    client
        .send(
            "SET a 1\r\nINCR a\r\nCLIENT ID\r\nMULTI\r\nINCR a\r\nGET a\r\nEXEC\r\nLPUSH l x\r\nBLPOP l 0\r\nGET a\r\n\
             CLIENT GETNAME\r\nNOSUCH\r\nPING\r\nSELECT 3\r\nGET a\r\nSELECT 0\r\nGET a\r\n",
        )
        .await;
    client
        .expect(
            "+OK\r\n:2\r\n:1\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:3\r\n$1\r\n3\r\n:1\r\n*2\r\n$1\r\nl\r\n$1\r\nx\r\n$1\r\n3\r\n\
             $-1\r\n-ERR unknown command 'NOSUCH', with args beginning with: \r\n+PONG\r\n+OK\r\n$-1\r\n+OK\r\n$1\r\n3\r\n",
        )
        .await;
    let page = proxy.metrics.render().unwrap();
    for reason in ["transaction", "unknown", "database"] {
        assert!(page.contains(reason), "{reason} in\n{page}");
    }
}

#[tokio::test]
async fn protocols_and_databases_of_two_clients_do_not_mix_on_one_lane() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    let (mut old, mut new) = (proxy.client().await, proxy.client().await);
    new.send("HELLO 3\r\nHSET h f v\r\nSELECT 5\r\n").await;
    let mut hello = String::new();
    while !hello.contains(":1\r\n+OK\r\n") {
        hello.push_str(&new.line().await);
    }
    assert!(hello.starts_with("%7\r\n"), "{hello}");
    for round in 0..200 {
        old.send("HGETALL h\r\nSET k old\r\n").await;
        new.send(&format!("HGETALL h\r\nSET k new{round:03}\r\nGET k\r\nGET none\r\n")).await;
        old.expect("*2\r\n$1\r\nf\r\n$1\r\nv\r\n+OK\r\n").await;
        new.expect(&format!("%0\r\n+OK\r\n$6\r\nnew{round:03}\r\n_\r\n")).await;
    }
    old.say("GET k", "$3\r\nold\r\n").await;
}

#[tokio::test]
async fn subscriptions_hold_a_backend_until_nothing_is_subscribed() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    for proto in [2, 3] {
        let mut client = proxy.client().await;
        let mut other = proxy.client().await;
        client.send(&format!("HELLO {proto}\r\nECHO end\r\n")).await;
        while client.line().await != "end\r\n" {}
        let kind = if proto == 2 { '*' } else { '>' };
        client.send("SUBSCRIBE c d\r\n").await;
        client
            .expect(&format!(
                "{kind}3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n{kind}3\r\n$9\r\nsubscribe\r\n$1\r\nd\r\n:2\r\n"
            ))
            .await;
        other.say("PUBLISH c hey", ":1\r\n").await;
        client.expect(&format!("{kind}3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$3\r\nhey\r\n")).await;
        client.send("UNSUBSCRIBE c\r\nPING\r\n").await;
        client.expect(&format!("{kind}3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:1\r\n")).await;
        client
            .expect(if proto == 2 { "*2\r\n$4\r\npong\r\n$0\r\n\r\n" } else { "+PONG\r\n" })
            .await;
        client.send("UNSUBSCRIBE\r\nSET after 1\r\n").await;
        client.expect(&format!("{kind}3\r\n$11\r\nunsubscribe\r\n$1\r\nd\r\n:0\r\n+OK\r\n")).await;
        other.say("PUBLISH d hey", ":0\r\n").await;
        // The connection is kept for a moment, for whoever subscribes next.
        let begun = Instant::now();
        loop {
            let page = proxy.metrics.render().unwrap();
            let pinned = page
                .lines()
                .find(|line| line.contains("state=\"pinned\"") && line.contains("redis"));
            if pinned.is_none_or(|line| line.ends_with(" 0")) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{pinned:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn watch_sees_another_clients_write_and_a_lost_client_leaves_nothing() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    let (mut one, mut two) = (proxy.client().await, proxy.client().await);
    one.say("WATCH k", "+OK\r\n").await;
    one.say("CLIENT GETNAME", "$-1\r\n").await;
    two.say("SET k 1", "+OK\r\n").await;
    one.send("MULTI\r\nSET k 2\r\nEXEC\r\nGET k\r\n").await;
    one.expect("+OK\r\n+QUEUED\r\n*-1\r\n$1\r\n1\r\n").await;
    for _ in 0..20 {
        let mut lost = proxy.client().await;
        lost.send("MULTI\r\nSET k lost\r\n").await;
        lost.expect("+OK\r\n+QUEUED\r\n").await;
        drop(lost);
    }
    two.send("MULTI\r\nGET k\r\nEXEC\r\n").await;
    two.expect("+OK\r\n+QUEUED\r\n*1\r\n$1\r\n1\r\n").await;
}

#[tokio::test]
async fn a_full_pool_answers_honestly_and_the_connection_stays() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |settings, _| settings.pool_size = 2)).await;
    let (mut blocked, mut other) = (proxy.client().await, proxy.client().await);
    blocked.send("XREAD BLOCK 0 STREAMS never 0\r\n").await;
    other.say("PING", "+PONG\r\n").await;
    other.send("XREAD BLOCK 0 STREAMS never 0\r\n").await;
    let error = other.line().await;
    assert!(error.starts_with("-TRYAGAIN tidegate: "), "{error}");
    assert!(error.contains("REDIS_URL"), "{error}");
    other.say("PING", "+PONG\r\n").await;
    other.say("XADD never 1-1 a x", "$3\r\n1-1\r\n").await;
    blocked
        .expect("*1\r\n*2\r\n$5\r\nnever\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nx\r\n")
        .await;
}

#[tokio::test]
async fn one_connection_serves_lane_and_holds_in_turn() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |settings, _| settings.pool_size = 1)).await;
    let (mut one, mut two) = (proxy.client().await, proxy.client().await);
    for _ in 0..50 {
        one.send("SET a 1\r\nMULTI\r\nINCR a\r\nEXEC\r\nGET a\r\n").await;
        two.send("MULTI\r\nPING\r\nEXEC\r\nPING\r\n").await;
        one.expect("+OK\r\n+OK\r\n+QUEUED\r\n*1\r\n:2\r\n$1\r\n2\r\n").await;
        two.expect("+OK\r\n+QUEUED\r\n*1\r\n+PONG\r\n+PONG\r\n").await;
    }
}

#[tokio::test]
async fn a_client_that_dies_mid_pipeline_takes_nobodys_replies() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    let mut steady = proxy.client().await;
    for round in 0..100 {
        let mut dying = proxy.client().await;
        dying.send(&"ECHO dying\r\n".repeat(50)).await;
        drop(dying);
        steady.say(&format!("ECHO {round:03}"), &format!("$3\r\n{round:03}\r\n")).await;
    }
}

#[tokio::test]
async fn a_slow_reader_is_disconnected_and_stalls_nobody() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |settings, _| {
        settings.limits.reply_bytes_per_client = 4 * 1024 * 1024;
    }))
    .await;
    let (mut slow, mut other) = (proxy.client().await, proxy.client().await);
    other.say("SETRANGE big 999999 x", ":1000000\r\n").await;
    slow.send(&"GET big\r\n".repeat(100)).await;
    for round in 0..20 {
        let begun = Instant::now();
        other.say(&format!("ECHO {round:03}"), &format!("$3\r\n{round:03}\r\n")).await;
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
    slow.closed().await;
}

#[tokio::test]
async fn a_large_reply_reaches_a_client_that_reads() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    let mut client = proxy.client().await;
    client.say("SETRANGE big 59999999 x", ":60000000\r\n").await;
    client.send("GET big\r\nPING\r\n").await;
    client.expect("$60000000\r\n").await;
    let mut body = vec![0; 60_000_000];
    client.stream.read_exact(&mut body).await.unwrap();
    client.expect("\r\n+PONG\r\n").await;
}

#[tokio::test]
async fn a_large_value_passes_without_being_held() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    let mut client = proxy.client().await;
    let value = "v".repeat(40_000_000);
    client
        .send(&format!("*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$40000000\r\n{value}\r\nSTRLEN b\r\n"))
        .await;
    client.expect("+OK\r\n:40000000\r\n").await;
}

#[tokio::test]
async fn a_restarted_server_is_noticed_only_by_what_was_in_flight() {
    let mut server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |settings, _| {
        settings.wait = Duration::from_secs(10);
    }))
    .await;
    let (mut idle, mut busy, mut blocked) =
        (proxy.client().await, proxy.client().await, proxy.client().await);
    idle.say("PING", "+PONG\r\n").await;
    blocked.send("BLPOP never 0\r\n").await;
    // What the pause would keep from logging in must be there before.
    loop {
        idle.send("INFO clients\r\n").await;
        if idle.bulk().await.contains("blocked_clients:1") {
            break;
        }
    }
    busy.say("CLIENT PAUSE 60000", "+OK\r\n").await;
    busy.send("GET a\r\nINCR b\r\nGET c\r\n").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.kill();
    // What stands before the INCR must not be answered from behind it; what stands behind it can wait.
    for _ in 0..2 {
        let error = busy.line().await;
        assert!(error.contains("may or may not have been applied"), "{error}");
    }
    idle.send("PING\r\n").await;
    server.restart().await;
    idle.expect("+PONG\r\n").await;
    busy.expect("$-1\r\n").await;
    busy.say("LPUSH never x", ":1\r\n").await;
    blocked.expect("*2\r\n$5\r\nnever\r\n$1\r\nx\r\n").await;
}

#[tokio::test]
async fn no_server_is_an_honest_error() {
    let proxy = Proxy::start(settings(free_port(), |_, _| {})).await;
    let mut client = proxy.client().await;
    client.send("GET a\r\n").await;
    let error = client.line().await;
    assert!(error.starts_with("-TRYAGAIN tidegate: "), "{error}");
    client.send("HELLO 3\r\n").await;
    let error = client.line().await;
    assert!(error.starts_with("-TRYAGAIN tidegate: "), "{error}");
}

#[tokio::test]
async fn passwords_are_asked_and_given() {
    let server = Server::start(&["--requirepass", "pw"]).await;
    let proxy = Proxy::start(settings(server.port, |_, upstream| {
        upstream.password = Some(Secret::new("pw"));
    }))
    .await;
    let mut client = proxy.client().await;
    client.say("GET a", "-NOAUTH Authentication required.\r\n").await;
    client.send("AUTH no\r\nAUTH pw\r\nGET a\r\n").await;
    assert!(client.line().await.starts_with("-WRONGPASS"));
    client.expect("+OK\r\n$-1\r\n").await;
    let trust = Proxy::start(settings(server.port, |settings, upstream| {
        settings.auth = Auth::Trust;
        upstream.password = Some(Secret::new("pw"));
    }))
    .await;
    trust.client().await.say("GET a", "$-1\r\n").await;
    let wrong = Proxy::start(settings(server.port, |settings, upstream| {
        settings.auth = Auth::Trust;
        upstream.password = Some(Secret::new("wrong"));
    }))
    .await;
    let mut client = wrong.client().await;
    client.send("GET a\r\n").await;
    let error = client.line().await;
    assert!(error.contains("WRONGPASS"), "{error}");
}

#[tokio::test]
async fn broken_requests_are_answered_as_redis_does_and_closed() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(settings(server.port, |_, _| {})).await;
    for (request, error) in [
        (
            "PING\r\n*1\r\n$999999999999\r\n",
            "+PONG\r\n-ERR Protocol error: invalid bulk length\r\n",
        ),
        ("*1\r\n+x\r\n", "-ERR Protocol error: expected '$', got '+'\r\n"),
        ("SET \"a\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
    ] {
        let mut client = proxy.client().await;
        client.send(request).await;
        client.expect(error).await;
        client.closed().await;
    }
}
