//! The Postgres listener: every `sslmode` and `sslnegotiation` of its clients.

use std::process::Command;

use tidegate::config::{ListenerEncryption, PostgresListener, PostgresSettings};
use tidegate::lifecycle::Drain;
use tidegate::metrics::Metrics;
use tidegate::net::{
    Certificate, Host, Identity, Stream, Tls, TlsSettings, Verify, common_name, connect,
};
use tidegate::postgres::message::{next_frame, query, ssl_request, startup};
use tidegate::postgres::service::{Service, Ties};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::clients::{Libpq, psycopg};
use crate::support::authority::{Authority, text};
use crate::support::pg::Connection;
use crate::support::postgres::{PASSWORD, Postgres, tool};
use crate::support::tidegate::{Setup, Tidegate};
use crate::support::{DEADLINE, eventually};

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What a client with this `sslmode` finds at a listener in this mode.
fn expected(listener: &str, sslmode: &str) -> &'static str {
    match (listener, sslmode) {
        ("off", "disable" | "allow" | "prefer") | ("on", "disable" | "allow") => "plain",
        ("off", _) | ("require", "disable") => "refused",
        _ => "tls",
    }
}

fn conninfo(gate: &Tidegate, more: &str) -> String {
    let port = gate.postgres_port();
    format!("host=127.0.0.1 port={port} user=app dbname=app password={PASSWORD} {more}")
}

#[test]
fn every_sslmode_and_negotiation_of_clients() {
    let server = Postgres::start();
    let ours = Authority::new();
    let shown = ours.server();
    for listener in ["off", "on", "require"] {
        let gate = Setup::new()
            .postgres(&server)
            .env("TIDEGATE_TLS_POSTGRES", listener)
            .env("TIDEGATE_TLS_CERT", text(&shown.certificate_file))
            .env("TIDEGATE_TLS_KEY", text(&shown.key_file))
            .start();
        let mut rows = Vec::new();
        for sslmode in MODES {
            let root = format!("sslmode={sslmode} sslrootcert={}", text(&ours.root()));
            let wanted = expected(listener, sslmode);
            rows.push((root.clone(), wanted));
            rows.push((format!("{root} sslnegotiation=postgres"), wanted));
            // libpq itself refuses what would not be sure to encrypt.
            let weak = matches!(sslmode, "disable" | "allow" | "prefer") || listener == "off";
            let wanted = if weak { "refused" } else { "tls" };
            rows.push((format!("{root} sslnegotiation=direct"), wanted));
            let plain = expected(listener, sslmode) != "tls";
            let wanted = if plain { "refused" } else { "tls" };
            if sslmode != "allow" {
                rows.push((format!("{root} channel_binding=require"), wanted));
            }
        }
        for libpq in Libpq::BOTH {
            // 15 does not know the option.
            let known = |row: &&(String, &str)| {
                libpq == Libpq::Eighteen || !row.0.contains("sslnegotiation")
            };
            let rows: Vec<_> = rows.iter().filter(known).collect();
            let asked: Vec<_> = rows.iter().map(|(more, _)| conninfo(&gate, more)).collect();
            let outcomes = libpq.attempts(&asked);
            for ((more, wanted), outcome) in rows.iter().zip(outcomes) {
                assert!(outcome.starts_with(wanted), "{listener}, {libpq:?}, {more}: {outcome}");
            }
        }
    }
}

#[test]
fn without_any_setting_a_client_that_insists_comes_in() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    for libpq in Libpq::BOTH {
        assert_eq!(libpq.attempt(&conninfo(&gate, "sslmode=require")), "tls");
        let bound = "sslmode=require channel_binding=require";
        assert_eq!(libpq.attempt(&conninfo(&gate, bound)), "tls");
        let wrong = conninfo(&gate, "sslmode=require").replace(PASSWORD, "wrong");
        assert!(libpq.attempt(&wrong).contains("password authentication failed"));
        let others = Authority::new();
        let strict = format!("sslmode=verify-ca sslrootcert={}", text(&others.root()));
        assert!(libpq.attempt(&conninfo(&gate, &strict)).starts_with("refused"));
    }
}

#[test]
fn a_cancel_request_comes_encrypted_too() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).env("TIDEGATE_TLS_POSTGRES", "require").start();
    let asked = ["postgres", "direct"].map(|negotiation| {
        conninfo(&gate, &format!("sslmode=require sslnegotiation={negotiation}"))
    });
    assert_eq!(psycopg(&asked, &["cancel"]), ["tls", "tls"]);
}

#[test]
fn a_client_shows_whose_it_is() {
    let server = Postgres::start();
    let (ours, others) = (Authority::new(), Authority::new());
    let (app, other) = (ours.client("app"), ours.client("other"));
    let stranger = others.client("app");
    let shows = |issued: &crate::support::authority::Issued| {
        let (certificate, key) = (text(&issued.certificate_file), text(&issued.key_file));
        format!("sslmode=require sslcert={certificate} sslkey={key}")
    };
    let nothing = "sslmode=require".to_owned();
    let wrong_password = format!("{} password=wrong", shows(&app));
    for (client_cert, rows) in [
        (
            "verify-ca",
            [(shows(&app), "tls"), (shows(&other), "tls"), (wrong_password.clone(), "refused")],
        ),
        (
            "verify-full",
            [(shows(&app), "tls"), (shows(&other), "refused"), (wrong_password.clone(), "refused")],
        ),
        (
            "cert",
            [(shows(&app), "tls"), (shows(&other), "refused"), (wrong_password.clone(), "tls")],
        ),
    ] {
        let gate = Setup::new()
            .postgres(&server)
            .env("TIDEGATE_TLS_CLIENT_CA", text(&ours.root()))
            .env("TIDEGATE_TLS_CLIENT_CERT", client_cert)
            .start();
        let everybody = [
            (nothing.clone(), "refused"),
            (shows(&stranger), "refused"),
            ("sslmode=disable".to_owned(), "refused"),
        ];
        for (more, wanted) in rows.iter().chain(&everybody) {
            for libpq in Libpq::BOTH {
                let outcome = libpq.attempt(&conninfo(&gate, more));
                assert!(outcome.starts_with(wanted), "{client_cert}, {libpq:?} {more}: {outcome}");
            }
        }
        assert!(!gate.output().contains(PASSWORD));
    }
}

#[test]
fn the_wrapped_command_is_told_to_encrypt_where_it_must() {
    let server = Postgres::start();
    let psql = tool("psql");
    let word = format!(
        "{} -X -A -t -w -c '\\conninfo' \"$DATABASE_URL\" && echo \"$DATABASE_URL\"",
        psql.display()
    );
    for (mode, option) in [("require", "?sslmode=require\n"), ("on", "/app\n"), ("off", "/app\n")] {
        let mut gate = Setup::new()
            .postgres(&server)
            .env("TIDEGATE_TLS_POSTGRES", mode)
            .arguments(&["run", "--", "sh", "-c", &word])
            .launch();
        let status = gate.wait(DEADLINE).expect("the command ends");
        let said = gate.output();
        assert!(status.success() && said.contains(option), "{mode}: {said}");
        // libpq prefers TLS where it is offered.
        assert_eq!(said.contains("SSL connection"), mode != "off", "{said}");
    }
}

/// A client over TLS in our own hands, past the greeting; nothing of it asks for a password.
async fn trusted(port: u16, receive_buffer: Option<u32>) -> Stream {
    let mut tcp = match receive_buffer {
        None => connect(&Host::Tcp("127.0.0.1".into()), port).await.unwrap(),
        Some(bytes) => {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(bytes).unwrap();
            // As over a network: the kernel buffers in proportion to the segments.
            socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            Stream::Tcp(socket.connect(address).await.unwrap())
        }
    };
    tcp.write_all(&ssl_request()).await.unwrap();
    assert_eq!(tcp.read_u8().await.unwrap(), b'S');
    let tls = Tls::new(&TlsSettings::verifying(Verify::None, None)).unwrap();
    let mut client = tls.connect(tcp, "localhost").await.unwrap();
    let hello = startup(&[("user", "app"), ("database", "app")]).unwrap();
    client.write_all(&hello).await.unwrap();
    until_ready(&mut client).await;
    client
}

/// Reads up to the next ReadyForQuery; how many bytes.
async fn until_ready(client: &mut Stream) -> usize {
    let (mut received, mut total) = (Vec::new(), 0);
    loop {
        while let Some(frame) = next_frame(&received, usize::MAX).unwrap() {
            let (tag, bytes) = (frame.tag, frame.bytes);
            assert_ne!(tag, b'E', "{}", String::from_utf8_lossy(frame.body));
            received.drain(..bytes);
            total += bytes;
            if tag == b'Z' {
                assert!(received.is_empty());
                return total;
            }
        }
        assert!(client.read_buf(&mut received).await.unwrap() > 0, "the stream ends");
    }
}

/// The end of a reply may lie with TLS when its connection is given back: it must come, though nobody writes any more.
#[tokio::test]
async fn a_slow_reader_gets_the_end_of_its_reply() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_AUTH", "trust").pool_size(1);
    let gate = gate.start();
    let server_s = [("peer", "server"), ("direction", "received")];
    let received = || gate.postgres_metric("tidegate_bytes_total", &server_s);
    // One of them is a little more than the kernel takes at once, and less than would make the server wait.
    for kib in (64..=256).step_by(16) {
        let mut client = trusted(gate.postgres_port(), Some(8 * 1024)).await;
        let before = received();
        let sql = format!("select repeat('x', {kib} * 1024 - 4096)");
        client.write_all(&query(&sql)).await.unwrap();
        client.flush().await.unwrap();
        let mut last = before;
        eventually("the reply is here as far as it goes", || {
            let now = received();
            (std::mem::replace(&mut last, now) == now && now > before).then_some(())
        });
        let all = tokio::time::timeout(DEADLINE, until_ready(&mut client));
        let bytes = all.await.unwrap_or_else(|_| panic!("the end of {kib} KiB does not come"));
        assert!(bytes > kib * 1024 - 4096);
    }
}

#[tokio::test]
async fn an_idle_client_over_tls_holds_little_memory() {
    const CLIENTS: usize = 400;
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).env("TIDEGATE_POSTGRES_AUTH", "trust").start();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(trusted(gate.postgres_port(), None).await);
    }
    let before = gate.resident_kib();
    for _ in 0..CLIENTS {
        let mut client = trusted(gate.postgres_port(), None).await;
        client.write_all(&query("select 1")).await.unwrap();
        until_ready(&mut client).await;
        clients.push(client);
    }
    let grown = gate.resident_kib().saturating_sub(before);
    let each = grown / u64::try_from(CLIENTS).unwrap();
    println!("{each} KiB for each idle client over TLS");
    assert!(each <= 16, "{each} KiB for each of {CLIENTS} idle clients");
}

/// Plain words behind a granted request never reach the session that might follow.
#[test]
fn nothing_is_taken_between_the_request_and_the_handshake() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let smuggled = [ssl_request(), startup(&[("user", "app")]).unwrap()].concat();
    let mut client = Connection::knock(gate.postgres_port()).unwrap();
    client.send(&smuggled);
    let words = client.last_words();
    let [refusal] = &words[..] else { panic!("{words:?}") };
    let said = String::from_utf8_lossy(&refusal.body);
    assert!(refusal.tag == b'E' && said.contains("received unencrypted data"), "{said}");
    gate.assert_alive();
}

/// Whose certificate a service shows, and what it is shown when the files have been read again.
#[tokio::test]
async fn a_renewed_certificate_needs_no_restart() {
    let ours = Authority::new();
    let shown = ours.server();
    let identity =
        Identity { certificate: shown.certificate_file.clone(), key: shown.key_file.clone() };
    let encryption =
        ListenerEncryption { certificate: Certificate::Files(identity), ..Default::default() };
    let url = "postgres://app:secret@127.0.0.1:9/app?sslmode=require";
    let upstream = crate::upstream::upstream(url, &[]).unwrap();
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], crate::support::ports::free()));
    let listener = PostgresListener { listen, explicit: true, upstreams: vec![upstream] };
    let settings = PostgresSettings { listeners: vec![listener], encryption, ..Default::default() };
    let (_trigger, drain) = Drain::new();
    let metrics = Metrics::new().unwrap();
    let service = Service::new(&settings, &metrics, drain, Ties::default()).unwrap();
    tokio::spawn(service.serve(0, tidegate::net::bind(listen).await.unwrap()));
    let name = async || {
        let mut tcp = connect(&Host::Tcp("127.0.0.1".into()), listen.port()).await.unwrap();
        tcp.write_all(&ssl_request()).await.unwrap();
        assert_eq!(tcp.read_u8().await.unwrap(), b'S');
        let tls = Tls::new(&TlsSettings::verifying(Verify::None, None)).unwrap();
        let client = tls.connect(tcp, "localhost").await.unwrap();
        common_name(client.peer_certificate().unwrap()).unwrap()
    };
    assert_eq!(name().await, "server");
    let renewed = ours.client("renewed");
    std::fs::write(&shown.certificate_file, &renewed.certificate).unwrap();
    assert!(service.reload_tls().is_err(), "a certificate and another's key");
    assert_eq!(name().await, "server");
    std::fs::write(&shown.key_file, &renewed.key).unwrap();
    service.reload_tls().unwrap();
    assert_eq!(name().await, "renewed");
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_at_the_start() {
    let server = Postgres::start();
    let (ours, others) = (Authority::new(), Authority::new());
    let (one, other) = (ours.server(), others.server());
    let url = server.url();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("check").env("DATABASE_URL", &url);
    command.env("TIDEGATE_TLS_CERT", &one.certificate_file);
    command.env("TIDEGATE_TLS_KEY", &other.key_file);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("server-key.pem"), "{said}");
}
