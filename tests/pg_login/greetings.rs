//! Greetings as clients make them, good and bad, at a service in front of a real server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate::config::{Auth, PostgresListener, PostgresSettings, PostgresUpstream, SslMode};
use tidegate::lifecycle::{Drain, DrainTrigger, Newcomers};
use tidegate::metrics::Metrics;
use tidegate::postgres::message::{
    BackendKey, ErrorFields, VERSION_3_2, cancel_request, next_frame, parse_backend_key, query,
    ssl_request, startup,
};
use tidegate::postgres::service::{Service, Ties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use super::server::{Server, free_port};

const PATIENCE: Duration = Duration::from_secs(20);
const GSS_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x30";

/// A service on a port of its own, until dropped.
struct Gate {
    port: u16,
    trigger: DrainTrigger,
    metrics: Arc<Metrics>,
}

fn settings(upstream_port: u16) -> PostgresSettings {
    let upstream = PostgresUpstream {
        database: "shop".into(),
        sslmode: SslMode::Prefer,
        ..super::upstream(upstream_port, "app", Some("secret"))
    };
    let listener = PostgresListener {
        listen: SocketAddr::from(([127, 0, 0, 1], free_port())),
        explicit: true,
        upstreams: vec![Arc::new(upstream)],
    };
    PostgresSettings { listeners: vec![listener], ..PostgresSettings::default() }
}

async fn open(settings: &PostgresSettings) -> Gate {
    let (trigger, drain) = Drain::new();
    let metrics = Metrics::new().unwrap();
    let service = Service::new(settings, &metrics, drain, Ties::default()).unwrap();
    let listen = settings.listeners[0].listen;
    let listener = tidegate::net::bind(listen).await.unwrap();
    tokio::spawn(service.serve(0, listener));
    Gate { port: listen.port(), trigger, metrics }
}

async fn upstream_server() -> Server {
    let server = Server::start("host all all 127.0.0.1/32 trust", None);
    server.run("create role app login; create role other login").await;
    server.run("create database shop").await;
    server
}

impl Gate {
    async fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// What a real client library is told.
    async fn log_in(&self, user: &str, password: &str, database: &str) -> Result<String, String> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).password(password).dbname(database);
        match tokio::time::timeout(PATIENCE, config.connect(NoTls)).await.unwrap() {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                let row = client.query_one("select current_user || '@' || current_database()", &[]);
                Ok(tokio::time::timeout(PATIENCE, row).await.unwrap().unwrap().get(0))
            }
            Err(error) => {
                let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
                Err(format!("{}: {}", error.code().code(), error.message()))
            }
        }
    }
}

/// Everything until the stream's end, as (tag, body); a leading `N` answers an SSLRequest.
async fn rest(mut stream: TcpStream) -> Vec<(u8, Vec<u8>)> {
    let mut received = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    let mut frames = Vec::new();
    let mut bytes = received.as_slice();
    while let Some(frame) = next_frame(bytes, 1_000_000).unwrap() {
        frames.push((frame.tag, frame.body.to_vec()));
        bytes = &bytes[frame.bytes..];
    }
    assert_eq!(bytes, b"");
    frames
}

/// The code of the one error that the client is sent before the end.
async fn refusal(stream: TcpStream) -> String {
    let frames = rest(stream).await;
    let [(b'E', body)] = frames.as_slice() else { panic!("{frames:?}") };
    ErrorFields::parse(body).code
}

async fn until_ready(stream: &mut TcpStream) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    loop {
        let tag = tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
        let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await.unwrap();
        frames.push((tag, body));
        if tag == b'Z' || tag == b'E' {
            return frames;
        }
    }
}

fn hello() -> Vec<u8> {
    startup(&[("user", "app"), ("database", "shop")]).unwrap()
}

#[tokio::test]
async fn passwords_users_and_databases() {
    let server = upstream_server().await;
    let gate = open(&settings(server.port)).await;
    assert_eq!(gate.log_in("app", "secret", "shop").await, Ok("app@shop".into()));
    let failed = |user| Err(format!("28P01: password authentication failed for user \"{user}\""));
    assert_eq!(gate.log_in("app", "wrong", "shop").await, failed("app"));
    assert_eq!(gate.log_in("app", "wrong", "nowhere").await, failed("app"));
    assert_eq!(gate.log_in("stranger", "secret", "shop").await, failed("stranger"));
    let none = Err("3D000: database \"nowhere\" does not exist".to_owned());
    assert_eq!(gate.log_in("app", "secret", "nowhere").await, none);

    let trusting = PostgresSettings { auth: Auth::Trust, ..settings(server.port) };
    let gate = open(&trusting).await;
    assert_eq!(gate.log_in("app", "any", "shop").await, Ok("app@shop".into()));
    let none = Err("28000: role \"other\" does not exist".to_owned());
    assert_eq!(gate.log_in("other", "any", "shop").await, none);

    let mut anything = PostgresSettings { any: true, ..trusting };
    anything.listeners = settings(server.port).listeners;
    anything.limits.any_pools = 1;
    let gate = open(&anything).await;
    assert_eq!(gate.log_in("other", "any", "shop").await, Ok("other@shop".into()));
    // The only pool is free again as soon as its session has ended.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match gate.log_in("other", "any", "postgres").await {
            Err(error) if error.starts_with("53300") => {
                assert!(tokio::time::Instant::now() < deadline, "{error}");
            }
            reached => break assert_eq!(reached, Ok("other@postgres".into())),
        }
    }
}

#[tokio::test]
async fn hostile_and_unlucky_greetings() {
    let server = upstream_server().await;
    let mut settings = settings(server.port);
    settings.login_timeout = Duration::from_millis(400);
    let gate = open(&settings).await;
    for absurd in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\0", b"\0\0\x27\x11", b"GET / HTTP/1.1\r\n"] {
        assert_eq!(refusal(gate.raw(absurd).await).await, "08P01", "{absurd:?}");
    }
    // Half a greeting, a whole one without a password, and nothing: then silence.
    for silence in [&hello()[..9], b""] {
        assert_eq!(refusal(gate.raw(silence).await).await, "57014");
    }
    let frames = rest(gate.raw(&hello()).await).await;
    assert_eq!(frames.iter().map(|frame| frame.0).collect::<Vec<_>>(), b"RE");
    // Half a greeting, then goodbye.
    let mut half = gate.raw(&hello()[..9]).await;
    half.shutdown().await.unwrap();
    assert_eq!(rest(half).await, []);

    // Behind a request for encryption nothing may lie that came before the answer.
    let pipelined = [ssl_request(), hello()].concat();
    assert_eq!(refusal(gate.raw(&pipelined).await).await, "08P01");
    let pipelined = [GSS_REQUEST, &hello()].concat();
    let mut stream = gate.raw(&pipelined).await;
    assert_eq!(stream.read_u8().await.unwrap(), b'N');
    assert_eq!(refusal(stream).await, "08P01");
    // Nor may anything but TLS come after it.
    let mut stream = gate.raw(&ssl_request()).await;
    assert_eq!(stream.read_u8().await.unwrap(), b'S');
    stream.write_all(&hello()).await.unwrap();
    let mut alert = Vec::new();
    stream.read_to_end(&mut alert).await.unwrap();
    assert_eq!(alert.first(), Some(&21), "an alert of TLS: {alert:?}");

    assert_eq!(refusal(gate.raw(&startup(&[("database", "shop")]).unwrap()).await).await, "28000");

    // A password longer than allowed, a frame that is no password, and a wrong mechanism.
    for (frame, code) in [
        (&b"p\x00\x10\x00\x00"[..], "08P01"),
        (b"Q\0\0\0\x05\0", "08P01"),
        (b"p\0\0\0\x0dPLAIN\0\0\0\0", "08P01"),
        (b"p\0\0\0\x04", "08P01"),
    ] {
        let frames = rest(gate.raw(&[&hello(), frame].concat()).await).await;
        let Some((b'E', body)) = frames.last() else { panic!("{frames:?}") };
        assert_eq!(ErrorFields::parse(body).code, code, "{frame:?}");
    }
    // Nobody is left in the greeting once the last has noticed that we are gone.
    let nobody =
        "tidegate_clients{pool=\"DATABASE_URL\",protocol=\"postgres\",state=\"greeting\"} 0\n";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !gate.metrics.render().unwrap().contains(nobody) {
        assert!(tokio::time::Instant::now() < deadline, "{}", gate.metrics.render().unwrap());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn limits_keys_cancels_and_drain() {
    let server = upstream_server().await;
    let mut settings = PostgresSettings { auth: Auth::Trust, ..settings(server.port) };
    settings.limits.client_limit = 1;
    let gate = open(&settings).await;

    // One NegotiateProtocolVersion, a long key, and a query behind the greeting in one write.
    let mut greeting = hello();
    greeting[4..8].copy_from_slice(&0x0003_270f_u32.to_be_bytes());
    let mut first = gate.raw(&[greeting, query("select pg_sleep(60)")].concat()).await;
    let frames = until_ready(&mut first).await;
    let tags: Vec<u8> = frames.iter().map(|frame| frame.0).collect();
    assert_eq!((tags[0], tags[1], tags[tags.len() - 2]), (b'v', b'R', b'K'));
    assert_eq!(tags.iter().filter(|tag| **tag == b'v').count(), 1);
    assert_eq!(frames[0].1[..4], VERSION_3_2.to_be_bytes());
    let key = parse_backend_key(&frames[frames.len() - 2].1).unwrap();
    assert_eq!(key.secret.len(), 32);

    // The house is full, and says so; a cancel request still gets through.
    let frames = rest(gate.raw(&hello()).await).await;
    let Some((b'E', body)) = frames.last() else { panic!("{frames:?}") };
    assert_eq!(ErrorFields::parse(body).code, "53300");
    let wrong = BackendKey { pid: key.pid, secret: vec![0; 32] };
    assert_eq!(rest(gate.raw(&cancel_request(&wrong)).await).await, []);
    // The query may not have begun when a cancel comes: then it is nobody's, as in Postgres.
    let cancelled = tokio::time::timeout(PATIENCE, async {
        loop {
            assert_eq!(rest(gate.raw(&cancel_request(&key)).await).await, []);
            let answer = until_ready(&mut first);
            if let Ok(frames) = tokio::time::timeout(Duration::from_secs(1), answer).await {
                return frames;
            }
        }
    });
    let frames = cancelled.await.unwrap();
    let body = &frames.iter().find(|frame| frame.0 == b'E').unwrap().1;
    assert_eq!(ErrorFields::parse(body).code, "57014");

    // A client in its greeting is told of the drain; nobody new is let in.
    let mut half = gate.raw(GSS_REQUEST).await;
    assert_eq!(half.read_u8().await.unwrap(), b'N');
    half.write_all(&hello()[..9]).await.unwrap();
    gate.trigger.start(Duration::from_secs(5), Newcomers::LeftToOthers);
    let told = tokio::time::timeout(PATIENCE, refusal(half)).await.unwrap();
    assert_eq!(told, "57P01");
    drop(first);
    assert!(gate.trigger.finished().await);
    assert!(TcpStream::connect(("127.0.0.1", gate.port)).await.is_err());
}

#[tokio::test]
async fn strangers_are_kept_out_at_start() {
    let (_trigger, drain) = Drain::new();
    let metrics = Metrics::new().unwrap();
    let mut settings = settings(1);
    settings.listeners[0].listen = SocketAddr::from(([0, 0, 0, 0], 15_000));
    assert!(Service::new(&settings, &metrics, drain.clone(), Ties::default()).is_ok());
    settings.auth = Auth::Trust;
    assert!(Service::new(&settings, &metrics, drain.clone(), Ties::default()).is_err());
    settings.auth = Auth::Password;
    settings.any = true;
    assert!(Service::new(&settings, &metrics, drain.clone(), Ties::default()).is_err());
    settings.any = false;
    let open = PostgresUpstream {
        password: None,
        ..PostgresUpstream::clone(&settings.listeners[0].upstreams[0])
    };
    settings.listeners[0].upstreams = vec![Arc::new(open)];
    assert!(Service::new(&settings, &metrics, drain, Ties::default()).is_err());
}
