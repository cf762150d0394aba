//! TLS towards Redis clients, on the port that plain ones use, and what servers ask for.

use std::process::Command;

use rustix::process::Signal;
use rustls::HandshakeKind;
use tidegate::net::{Host, Identity, Stream, Tls, TlsSettings, Verify, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::authority::{Authority, Issued, text};
use crate::support::process::Process;
use crate::support::programs::interpreter;
use crate::support::redis::Redis;
use crate::support::resp::{Connection, Value};
use crate::support::tidegate::{Setup, Tidegate};
use crate::support::{DEADLINE, eventually, ports};

fn cli(gate: &Tidegate, options: &[&str], words: &[&str]) -> Result<String, String> {
    let port = gate.redis_port().to_string();
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &port]).args(options).args(words);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && wrong.is_empty() { Ok(said) } else { Err(said + &wrong) }
}

#[test]
fn plain_and_encrypted_clients_share_a_port() {
    let server = Redis::start();
    let ours = Authority::new();
    let shown = ours.server();
    let gate = Setup::new()
        .redis(&server)
        .env("TIDEGATE_TLS_CERT", text(&shown.certificate_file))
        .env("TIDEGATE_TLS_KEY", text(&shown.key_file))
        .start();
    let root = ours.root();
    let secure = ["--tls", "--cacert", text(&root)];
    assert_eq!(cli(&gate, &[], &["set", "k", "v"]).unwrap(), "OK\n");
    assert_eq!(cli(&gate, &secure, &["get", "k"]).unwrap(), "v\n");
    let large = "x".repeat(100_000);
    assert_eq!(cli(&gate, &secure, &["set", "large", &large]).unwrap(), "OK\n");
    assert_eq!(cli(&gate, &secure, &["get", "large"]).unwrap(), large + "\n");
    let others = Authority::new().root();
    assert!(cli(&gate, &["--tls", "--cacert", text(&others)], &["ping"]).is_err());
    // Who says nothing at first is served, too.
    let mut silent = gate.redis_client();
    assert_eq!(silent.command(&["PING"]), Value::simple("PONG"));
}

#[test]
fn redis_py_works_over_tls() {
    let server = Redis::start();
    let gate = Setup::new().redis(&server).start();
    let mut command = interpreter("redis_client.py");
    let url = format!("rediss://127.0.0.1:{}/0?ssl_cert_reqs=none", gate.redis_port());
    let output = command.env("REDIS_URL", url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn where_tls_is_required_nobody_is_served_without() {
    let server = Redis::with_password();
    let ours = Authority::new();
    let app = ours.client("app");
    let gate =
        Setup::new().redis(&server).env("TIDEGATE_TLS_CLIENT_CA", text(&ours.root())).start();
    let mut plain = gate.redis_client();
    plain.send(b"PING\r\n");
    let Value::Error(words) = plain.reply() else { panic!("an error") };
    assert!(words.contains("rediss://"), "{words}");
    assert!(cli(&gate, &["--tls", "--insecure"], &["ping"]).is_err(), "without a certificate");
    let shows = |issued: &Issued, words: &[&str]| {
        let (certificate, key) = (text(&issued.certificate_file), text(&issued.key_file));
        cli(&gate, &["--tls", "--insecure", "--cert", certificate, "--key", key], words)
    };
    let refused = shows(&app, &["ping"]).unwrap();
    assert!(refused.starts_with("NOAUTH"), "the password is needed besides: {refused}");
    let password = ["--no-auth-warning", "-a", crate::support::redis::PASSWORD, "ping"];
    assert_eq!(shows(&app, &password).unwrap(), "PONG\n");
}

#[test]
fn the_wrapped_command_gets_a_url_with_tls_where_it_must() {
    let server = Redis::start();
    let word = "echo \"$REDIS_URL\" && redis-cli --insecure -u \"$REDIS_URL\" ping";
    let mut gate = Setup::new()
        .redis(&server)
        .env("TIDEGATE_TLS_REDIS", "require")
        .arguments(&["run", "--", "sh", "-c", word])
        .launch();
    let status = gate.wait(DEADLINE).expect("the command ends");
    let said = gate.output();
    assert!(status.success() && said.contains("rediss://127") && said.contains("PONG"), "{said}");
}

/// A server that asks its clients for a certificate.
fn strict_server(authority: &Authority, shown: &Issued) -> (Process, u16) {
    let port = ports::free();
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "yes"]);
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--tls-cert-file").arg(&shown.certificate_file);
    command.arg("--tls-key-file").arg(&shown.key_file);
    command.arg("--tls-ca-cert-file").arg(authority.root());
    let process = Process::start(command, Signal::KILL);
    eventually("Redis takes connections", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    (process, port)
}

#[test]
fn a_server_is_shown_a_certificate_and_has_the_pinned_key() {
    let ours = Authority::new();
    let (shown, app) = (ours.server(), ours.client("app"));
    let (_server, port) = strict_server(&ours, &shown);
    let directory = tempfile::tempdir().unwrap();
    let pins = directory.path().join("pins");
    let config = directory.path().join("tidegate.toml");
    let (certificate, key) = (text(&app.certificate_file), text(&app.key_file));
    let settings = format!("[redis]\ntls_cert = \"{certificate}\"\ntls_key = \"{key}\"\n");
    std::fs::write(&config, settings).unwrap();
    let url = format!("rediss://127.0.0.1:{port}/0");
    let in_url = format!("{url}?ssl_certfile={certificate}&ssl_keyfile={key}");
    let setup = |url: &str| {
        let setup = Setup::new().redis_url(url).wait_ms(2_000).pool_size(2);
        setup.env("TIDEGATE_REDIS_PIN_FILE", text(&pins))
    };
    let ping = |gate: &Tidegate| Connection::open(gate.redis_port()).command(&["PING"]);
    let pong = Value::simple("PONG");
    assert_ne!(ping(&setup(&url).start()), pong, "no certificate is shown");
    assert_eq!(ping(&setup(&url).config(&config).start()), pong);
    assert_eq!(ping(&setup(&in_url).start()), pong);
    let lines = std::fs::read_to_string(&pins).unwrap();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    let other = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    std::fs::write(&pins, format!("127.0.0.1:{port} {other}\n")).unwrap();
    let gate = setup(&in_url).start();
    let Value::Error(words) = ping(&gate) else { panic!("another key than the pinned one") };
    assert!(words.contains("another public key"), "{words}");
}

/// Redis keeps sessions, as Postgres does not: the second connection needs no certificate to be sent and checked.
#[tokio::test]
async fn a_server_s_session_is_resumed() {
    let ours = Authority::new();
    let (shown, app) = (ours.server(), ours.client("app"));
    let (_server, port) = strict_server(&ours, &shown);
    let identity =
        Identity { certificate: app.certificate_file.clone(), key: app.key_file.clone() };
    let settings = TlsSettings::verifying(Verify::Full, Some(ours.root()));
    let tls = Tls::new(&TlsSettings { identity: Some(identity), ..settings }).unwrap();
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let tcp = connect(&Host::Tcp("127.0.0.1".into()), port).await.unwrap();
        let mut client = tls.connect(tcp, "localhost").await.unwrap();
        client.write_all(b"PING\r\n").await.unwrap();
        client.flush().await.unwrap();
        let mut pong = [0; 7];
        client.read_exact(&mut pong).await.unwrap();
        let Stream::Tls(inner) = &client else { panic!("plain") };
        assert_eq!(inner.get_ref().1.handshake_kind(), Some(kind));
    }
}

#[tokio::test]
async fn an_idle_client_over_tls_holds_little_memory() {
    const CLIENTS: usize = 400;
    let server = Redis::start();
    let gate = Setup::new().redis(&server).start();
    let mut clients = Vec::new();
    let mut before = 0;
    for number in 0..CLIENTS + 20 {
        if number == 20 {
            before = gate.resident_kib();
        }
        let tcp = connect(&Host::Tcp("127.0.0.1".into()), gate.redis_port()).await.unwrap();
        let tls = Tls::new(&TlsSettings::verifying(Verify::None, None)).unwrap();
        let mut client = tls.connect(tcp, "localhost").await.unwrap();
        client.write_all(b"PING\r\n").await.unwrap();
        client.flush().await.unwrap();
        let mut pong = [0; 7];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"+PONG\r\n");
        clients.push(client);
    }
    let grown = gate.resident_kib().saturating_sub(before);
    let each = grown / u64::try_from(CLIENTS).unwrap();
    println!("{each} KiB for each idle client over TLS");
    assert!(each <= 16, "{each} KiB for each of {CLIENTS} idle clients");
}
