//! Dialling real servers: every authentication method, every sslmode, and the errors; and clients'
//! greetings, good and bad.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "pg_login/greetings.rs"]
mod greetings;
#[path = "pg_login/server.rs"]
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use server::{Certificate, Server, free_port};
use tempfile::NamedTempFile;
use tidegate::config::{
    Access, ChannelBinding, Host, Hosts, PostgresUpstream, Secret, SslMode, SslNegotiation,
};
use tidegate::net::{Handshake, Pins, Vigilance};
use tidegate::pool::{ConnectError, Fault};
use tidegate::postgres::connect::{Dial, Dialled, send_cancel};
use tidegate::postgres::hosts::dial;
use tidegate::postgres::login::Methods;
use tidegate::postgres::message::{ErrorFields, next_frame, query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn upstream(port: u16, user: &str, password: Option<&str>) -> PostgresUpstream {
    PostgresUpstream {
        name: "DATABASE_URL".into(),
        hosts: Hosts::one(Host::Tcp("127.0.0.1".into()), port),
        connect_timeout: None,
        vigilance: Vigilance::default(),
        required_peer: None,
        methods: Methods::default(),
        handshake: Handshake::default(),
        access: Access::Write,
        user: user.into(),
        password: password.map(Secret::new),
        database: "postgres".into(),
        options: Vec::new(),
        sslmode: SslMode::Disable,
        sslrootcert: None,
        sslnegotiation: SslNegotiation::Postgres,
        channel_binding: ChannelBinding::Prefer,
        identity: None,
        pins: Pins::default(),
    }
}

async fn reach(upstream: PostgresUpstream) -> Result<Dialled, ConnectError> {
    let prepared = Dial::new(Arc::new(upstream), Duration::from_secs(10)).unwrap();
    tokio::time::timeout(Duration::from_secs(20), dial(&prepared)).await.unwrap()
}

async fn refusal(upstream: PostgresUpstream) -> (Fault, String) {
    let error = reach(upstream).await.unwrap_err();
    assert!(!error.message.is_empty());
    (error.fault, error.code)
}

/// A conversation with a server: what was read and not yet looked at stays.
struct Talk {
    dialled: Dialled,
    received: Vec<u8>,
}

impl Talk {
    fn new(dialled: Dialled) -> Self {
        Self { dialled, received: Vec::new() }
    }

    async fn say(&mut self, sql: &str) {
        self.dialled.stream.write_all(&query(sql)).await.unwrap();
    }

    /// The next frame with one of these tags.
    async fn next(&mut self, wanted: &[u8]) -> (u8, Vec<u8>) {
        loop {
            while let Some(frame) = next_frame(&self.received, 1_000_000).unwrap() {
                let (tag, body, bytes) = (frame.tag, frame.body.to_vec(), frame.bytes);
                self.received.drain(..bytes);
                if wanted.contains(&tag) {
                    return (tag, body);
                }
            }
            assert!(self.dialled.stream.read_buf(&mut self.received).await.unwrap() > 0);
        }
    }

    /// The one value that `sql` gives.
    async fn ask(&mut self, sql: &str) -> String {
        self.say(sql).await;
        let (tag, body) = self.next(b"DE").await;
        assert_eq!(tag, b'D', "{}", String::from_utf8_lossy(&body));
        self.next(b"Z").await;
        String::from_utf8(body[6..].to_vec()).unwrap()
    }
}

const HBA: &str = "\
host all truster 127.0.0.1/32 trust
host all plainer 127.0.0.1/32 password
host all md5er 127.0.0.1/32 md5
host all scrammer,crowd 127.0.0.1/32 scram-sha-256";

const ROLES: &str = "\
set password_encryption = 'md5';
create role truster login; create role plainer login password 'plain é pass';
create role md5er login password 'md5 pass'; create role stranger login password 'x';
set password_encryption = 'scram-sha-256';
create role scrammer login password 'scram, p=ss\u{a0}wörd';
create role crowd login password 'x' connection limit 0";

#[tokio::test]
async fn every_authentication_method_and_its_refusals() {
    let server = Server::start(HBA, None);
    server.run(ROLES).await;
    let port = server.port;
    for (user, password) in [
        ("truster", None),
        ("plainer", Some("plain é pass")),
        ("md5er", Some("md5 pass")),
        ("scrammer", Some("scram, p=ss\u{a0}wörd")),
    ] {
        let dialled = reach(upstream(port, user, password)).await.unwrap();
        let version = dialled.parameters.iter().find(|(name, _)| name == "server_version");
        assert!(version.is_some(), "{:?}", dialled.parameters);
        assert_eq!((dialled.key.pid > 0, dialled.key.secret.len()), (true, 4));
        assert_eq!(Talk::new(dialled).ask("select current_user").await, user);
        if user == "truster" {
            continue;
        }
        let wrong = refusal(upstream(port, user, Some("wrong"))).await;
        assert_eq!(wrong, (Fault::Rejected, "28P01".into()), "{user}");
        let none = refusal(upstream(port, user, None)).await;
        assert_eq!(none, (Fault::Rejected, "28000".into()), "{user}");
    }
    let nobody = refusal(upstream(port, "stranger", Some("x"))).await;
    assert_eq!(nobody, (Fault::Rejected, "28000".into()));
    let crowd = refusal(upstream(port, "crowd", Some("x"))).await;
    assert_eq!(crowd, (Fault::Refused, "53300".into()));
    let elsewhere =
        PostgresUpstream { database: "nowhere".into(), ..upstream(port, "truster", None) };
    assert_eq!(refusal(elsewhere).await, (Fault::Rejected, "3D000".into()));
    let smuggler = PostgresUpstream {
        database: "x\0user\0postgres".into(),
        ..upstream(port, "truster", None)
    };
    assert_eq!(refusal(smuggler).await, (Fault::Rejected, "22021".into()));

    let socket = PostgresUpstream {
        hosts: Hosts::one(Host::Unix(server.socket_directory().to_owned()), port),
        options: vec![
            ("options".into(), "-c statement_timeout=4321".into()),
            ("connect_timeout".into(), "3".into()),
            ("application_name".into(), "shop".into()),
        ],
        sslmode: SslMode::VerifyFull,
        ..upstream(port, "truster", None)
    };
    let mut talk = Talk::new(reach(socket).await.unwrap());
    assert_eq!(talk.ask("show statement_timeout").await, "4321ms");
    assert_eq!(talk.ask("show application_name").await, "shop");
    no_tls(port).await;
    cancelling(port).await;
}

async fn no_tls(port: u16) {
    for sslmode in [SslMode::Require, SslMode::VerifyFull] {
        let wanting = PostgresUpstream { sslmode, ..upstream(port, "truster", None) };
        assert_eq!(refusal(wanting).await, (Fault::Unreachable, "tls".into()));
    }
    let prefer = PostgresUpstream { sslmode: SslMode::Prefer, ..upstream(port, "truster", None) };
    let mut talk = Talk::new(reach(prefer).await.unwrap());
    assert_eq!(talk.ask("select current_user").await, "truster");
}

async fn cancelling(port: u16) {
    let prepared = Dial::new(Arc::new(upstream(port, "truster", None)), Duration::from_secs(10));
    let prepared = prepared.unwrap();
    let mut talk = Talk::new(dial(&prepared).await.unwrap());
    // A notice is flushed at once, so the query is known to run.
    let slow = "do $$ begin raise notice 'running'; perform pg_sleep(60); end $$";
    talk.say(slow).await;
    talk.next(b"N").await;
    send_cancel(&talk.dialled.reached, &talk.dialled.key).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), talk.next(b"E"));
    let (_, body) = answer.await.unwrap();
    assert_eq!(ErrorFields::parse(&body).code, "57014");
}

#[tokio::test]
async fn servers_that_are_none() {
    let nobody = upstream(free_port(), "a", None);
    assert_eq!(refusal(nobody).await, (Fault::Unreachable, "io".into()));
    let nowhere = PostgresUpstream {
        hosts: Hosts::one(Host::Tcp("no.such.host.invalid".into()), 1),
        ..upstream(1, "a", None)
    };
    assert_eq!(refusal(nowhere).await, (Fault::Unreachable, "dns".into()));
    let no_socket = PostgresUpstream {
        hosts: Hosts::one(Host::Unix("/nonexistent".into()), 1),
        ..upstream(1, "a", None)
    };
    assert_eq!(refusal(no_socket).await, (Fault::Unreachable, "io".into()));

    // Answers, and the code that the answer must lead to.
    for (answer, sslmode, code) in [
        (&b""[..], SslMode::Disable, "io"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", SslMode::Disable, "08P01"),
        (b"R\xff\xff\xff\xff", SslMode::Disable, "08P01"),
        (b"R\0\0\0\x08\0\0", SslMode::Disable, "io"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", SslMode::Require, "08P01"),
        (b"E\0\0\0\x04", SslMode::Require, "tls"),
        // A man in the middle's login behind the S: it breaks the handshake and is never read.
        (b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", SslMode::Require, "tls"),
    ] {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut greeting = [0; 1000];
            assert!(stream.read(&mut greeting).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
        });
        let odd = PostgresUpstream { sslmode, ..upstream(port, "a", None) };
        assert_eq!(refusal(odd).await, (Fault::Unreachable, code.into()), "{answer:?}");
        server.await.unwrap();
    }
}

const TLS_HBA: &str = "\
hostssl all secret 127.0.0.1/32 scram-sha-256
hostnossl all open 127.0.0.1/32 trust";

#[tokio::test]
async fn every_sslmode() {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let other = {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let key = KeyPair::generate().unwrap();
    let named = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = named.signed_by(&key, &authority).unwrap();
    let chain = certificate.pem();
    let server =
        Server::start(TLS_HBA, Some(&Certificate { chain: &chain, key: &key.serialize_pem() }));
    server.run("create role secret login password 'pass'; create role open login").await;

    let right = pem_file(&authority.pem());
    let wrong = pem_file(&other.pem());
    let modes = [
        (SslMode::Disable, None, "localhost", Err("28000")),
        (SslMode::Prefer, None, "localhost", Ok("t")),
        (SslMode::Require, None, "localhost", Ok("t")),
        (SslMode::Require, None, "127.0.0.1", Ok("t")),
        (SslMode::Require, Some(&right), "127.0.0.1", Ok("t")),
        (SslMode::Require, Some(&wrong), "localhost", Err("tls")),
        (SslMode::VerifyCa, Some(&right), "127.0.0.1", Ok("t")),
        (SslMode::VerifyCa, Some(&wrong), "localhost", Err("tls")),
        (SslMode::VerifyFull, Some(&right), "localhost", Ok("t")),
        (SslMode::VerifyFull, Some(&right), "127.0.0.1", Err("tls")),
        (SslMode::VerifyFull, Some(&wrong), "localhost", Err("tls")),
    ];
    for (sslmode, roots, host, expected) in modes {
        let upstream = PostgresUpstream {
            hosts: Hosts::one(Host::Tcp(host.into()), server.port),
            sslmode,
            sslrootcert: roots.map(|file| PathBuf::from(file.path())),
            ..upstream(server.port, "secret", Some("pass"))
        };
        let said = match reach(upstream).await {
            Ok(dialled) => Ok(encrypted(dialled).await),
            Err(error) => Err(error.code),
        };
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(said, expected, "{sslmode:?} {host} {}", roots.is_some());
    }
    // What pg_hba.conf allows without TLS alone, `prefer` finds; a wrong password stays wrong.
    let open = PostgresUpstream { sslmode: SslMode::Prefer, ..upstream(server.port, "open", None) };
    assert_eq!(encrypted(reach(open).await.unwrap()).await, "f");
    let wrong = PostgresUpstream {
        sslmode: SslMode::Prefer,
        ..upstream(server.port, "secret", Some("wrong"))
    };
    assert_eq!(refusal(wrong).await, (Fault::Rejected, "28P01".into()));
}

async fn encrypted(dialled: Dialled) -> String {
    Talk::new(dialled).ask("select ssl from pg_stat_ssl where pid = pg_backend_pid()").await
}

fn pem_file(pem: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    file
}
