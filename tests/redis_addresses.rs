//! Redis servers behind TLS, a unix socket and an ACL user, as URLs name them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use support::process::Process;
use support::redis::Redis;
use support::resp::{Connection, Value};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, ports};
use tempfile::TempDir;

/// A server that listens on `port` with TLS and on a unix socket, ended with the test.
struct Server {
    process: Process,
    directory: TempDir,
    port: u16,
}

impl Server {
    /// With a certificate for 127.0.0.1 of an authority whose own is in `ca.pem`.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        std::fs::write(path("ca.pem"), ca.pem()).unwrap();
        std::fs::write(path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        let port = ports::free();
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        for (option, file) in [
            ("--tls-cert-file", "cert.pem"),
            ("--tls-key-file", "key.pem"),
            ("--tls-ca-cert-file", "ca.pem"),
            ("--unixsocket", "redis.sock"),
        ] {
            command.arg(option).arg(path(file));
        }
        command.arg("--dir").arg(directory.path());
        let process = Process::start(command, Signal::KILL);
        eventually("Redis listens", || path("redis.sock").exists().then_some(()));
        eventually("Redis takes connections", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { process, directory, port }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }
}

/// In front of the server that `url` names.
fn before(url: &str, config: Option<&Path>) -> Tidegate {
    let setup = Setup::new().redis(&Redis::stopped()).env("REDIS_URL", url).wait_ms(2_000);
    match config {
        Some(file) => setup.config(file).start(),
        None => setup.start(),
    }
}

fn ping(gate: &Tidegate) -> Value {
    let mut client = Connection::open(gate.redis_port());
    let told = client.command(&["PING"]);
    if told == Value::simple("PONG") {
        let replies = client.pipeline(&[&["MULTI"], &["PING"], &["EXEC"]]);
        assert_eq!(replies[2].words(), ["PONG"]);
        let long = "x".repeat(300_000);
        assert_eq!(client.command(&["ECHO", &long]), Value::bulk(&long));
    }
    told
}

#[test]
fn rediss_takes_any_certificate_unless_it_is_told_to_verify() {
    let mut server = Server::start();
    let url = format!("rediss://127.0.0.1:{}/0", server.port);
    let config = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(ping(&before(&url, None)), Value::simple("PONG"));

    std::fs::write(config.path(), "[redis]\ntls_verify = true\n").unwrap();
    let refused = ping(&before(&url, Some(config.path())));
    assert!(refused.error().contains("certificate"), "{refused:?}");

    let ca = server.path("ca.pem");
    std::fs::write(config.path(), format!("[redis]\ntls_verify = true\ntls_ca = \"{ca}\"\n"))
        .unwrap();
    assert_eq!(ping(&before(&url, Some(config.path()))), Value::simple("PONG"));

    let verified = format!("{url}?ssl_cert_reqs=required&ssl_ca_certs={ca}");
    assert_eq!(ping(&before(&verified, None)), Value::simple("PONG"));
    // The certificate is for the address, not for the name.
    let misnamed = verified.replace("127.0.0.1", "localhost");
    let refused = ping(&before(&misnamed, None));
    assert!(refused.error().contains("certificate"), "{refused:?}");
    assert!(server.process.exited().is_none());
}

#[test]
fn a_server_behind_tls_that_is_asked_without_it_is_an_honest_error() {
    let server = Server::start();
    let told = ping(&before(&format!("redis://127.0.0.1:{}/0", server.port), None));
    assert!(told.error().starts_with("TRYAGAIN tidegate"), "{told:?}");
}

#[test]
fn a_unix_socket_is_a_server_too() {
    let server = Server::start();
    let gate = before(&format!("unix://{}?db=2", server.path("redis.sock")), None);
    assert_eq!(ping(&gate), Value::simple("PONG"));
    let mut client = Connection::open(gate.redis_port());
    assert!(client.command(&["CLIENT", "INFO"]).text().contains("db=2"));
}

#[test]
fn user_password_and_database_may_be_options() {
    let server = Redis::start();
    let mut direct = server.direct();
    let rules = ["ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all"];
    assert_eq!(direct.command(&rules), Value::simple("OK"));
    let url = format!("redis://127.0.0.1:{}?username=ann&password=hunter2&db=3", server.port());
    let gate = before(&url, None);
    let mut client = Connection::open(gate.redis_port());
    assert!(client.command(&["PING"]).error().starts_with("NOAUTH"), "it has a password now");
    assert_eq!(client.command(&["AUTH", "ann", "hunter2"]), Value::simple("OK"));
    assert_eq!(client.command(&["ACL", "WHOAMI"]), Value::bulk("ann"));
    client.command(&["SET", "where", "three"]);
    direct.command(&["SELECT", "3"]);
    assert_eq!(direct.command(&["GET", "where"]), Value::bulk("three"));
}
