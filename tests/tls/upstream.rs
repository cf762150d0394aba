//! The way to Postgres: every `sslmode` and `sslnegotiation` of its URL, client certificates, bound logins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate::config::{self, PostgresUpstream};
use tidegate::pool::ConnectError;
use tidegate::postgres::connect::{Dial, Dialled};
use tidegate::postgres::hosts::dial;
use tidegate::postgres::message::{next_frame, query};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::DEADLINE;
use crate::support::authority::{Authority, text};
use crate::support::pg::Login;
use crate::support::postgres::{DATABASE, PASSWORD, Postgres, USER, Version};
use crate::support::tidegate::Setup;

pub(crate) const MODES: [&str; 6] =
    ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
pub(crate) const NEGOTIATIONS: [&str; 2] = ["postgres", "direct"];

/// What the settings make of a URL; `None` where they refuse it.
pub(crate) fn upstream(url: &str, variables: &[(&str, &str)]) -> Option<Arc<PostgresUpstream>> {
    let all = [&[("DATABASE_URL", url)], variables].concat();
    let environment: BTreeMap<_, _> =
        all.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
    let loaded = config::load(None, &environment, &[]).ok()?;
    let settings = loaded.settings.postgres.unwrap();
    Some(Arc::clone(&settings.listeners[0].upstreams[0]))
}

/// The same, ready to be dialled.
pub(crate) fn prepared(url: &str, variables: &[(&str, &str)]) -> Option<Dial> {
    Some(Dial::new(upstream(url, variables)?, Duration::from_secs(10)).unwrap())
}

pub(crate) async fn reach(prepared: &Dial) -> Result<Dialled, ConnectError> {
    tokio::time::timeout(DEADLINE, dial(prepared)).await.unwrap()
}

/// The one value that `sql` gives.
async fn ask(dialled: &mut Dialled, sql: &str) -> String {
    dialled.stream.write_all(&query(sql)).await.unwrap();
    dialled.stream.flush().await.unwrap();
    let (mut received, mut value) = (Vec::new(), String::new());
    loop {
        while let Some(frame) = next_frame(&received, usize::MAX).unwrap() {
            assert_ne!(frame.tag, b'E', "{}", String::from_utf8_lossy(frame.body));
            if frame.tag == b'D' {
                value = String::from_utf8(frame.body[6..].to_vec()).unwrap();
            }
            let (tag, bytes) = (frame.tag, frame.bytes);
            received.drain(..bytes);
            if tag == b'Z' {
                return value;
            }
        }
        assert!(dialled.stream.read_buf(&mut received).await.unwrap() > 0);
    }
}

const ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

async fn outcome(url: &str) -> String {
    let Some(prepared) = prepared(url, &[]) else { return "no such setting".to_owned() };
    match reach(&prepared).await {
        Err(error) => format!("refused {}", error.code),
        Ok(mut dialled) => match ask(&mut dialled, ENCRYPTED).await.as_str() {
            "t" => "tls".to_owned(),
            _ => "plain".to_owned(),
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `ssl = off`
    Plain,
    /// `ssl = on`, anybody.
    Both,
    /// `hostssl` alone.
    TlsOnly,
    /// `hostnossl` alone.
    PlainOnly,
}

fn expected(version: Version, kind: Kind, sslmode: &str, negotiation: &str) -> &'static str {
    let may_be_plain = matches!(sslmode, "disable" | "allow" | "prefer");
    if negotiation == "direct" {
        return match kind {
            _ if may_be_plain => "no such setting",
            // It takes the handshake for a startup packet, or knows nothing of TLS.
            _ if version == Version::Installed || kind == Kind::Plain => "refused tls",
            Kind::PlainOnly => "refused 28000",
            _ => "tls",
        };
    }
    match (kind, sslmode) {
        (Kind::Plain, _) if may_be_plain => "plain",
        (Kind::Plain, _) => "refused tls",
        (Kind::Both | Kind::PlainOnly, "disable") => "plain",
        (Kind::TlsOnly, "disable") => "refused 28000",
        (Kind::PlainOnly, _) if may_be_plain => "plain",
        (Kind::PlainOnly, _) => "refused 28000",
        _ => "tls",
    }
}

#[tokio::test]
async fn every_sslmode_and_negotiation_of_servers() {
    let ours = Authority::new();
    let shown = ours.server();
    let files = [("server.crt", shown.certificate.as_str()), ("server.key", shown.key.as_str())];
    for version in [Version::Installed, Version::Eighteen] {
        for (kind, settings, host) in [
            (Kind::Plain, "ssl=off\n", "host"),
            (Kind::Both, "ssl=on\n", "host"),
            (Kind::TlsOnly, "ssl=on\n", "hostssl"),
            (Kind::PlainOnly, "ssl=on\n", "hostnossl"),
        ] {
            let hba = format!("{host} all all 127.0.0.1/32 scram-sha-256");
            let server = Postgres::with_tls(version, settings, &files, &hba);
            for sslmode in MODES {
                for negotiation in NEGOTIATIONS {
                    let verifies = sslmode.starts_with("verify");
                    let root = if verifies { text(&ours.root()).to_owned() } else { String::new() };
                    let url = format!(
                        "{}?sslmode={sslmode}&sslnegotiation={negotiation}&sslrootcert={root}",
                        server.url()
                    );
                    let wanted = expected(version, kind, sslmode, negotiation);
                    let found = outcome(&url).await;
                    assert_eq!(found, wanted, "{version:?} {kind:?} {sslmode} {negotiation}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_login_is_bound_to_its_encryption() {
    let ours = Authority::new();
    let shown = ours.server();
    let files = [("server.crt", shown.certificate.as_str()), ("server.key", shown.key.as_str())];
    let hba = "hostssl all all 127.0.0.1/32 scram-sha-256\nhostnossl all all 127.0.0.1/32 trust";
    for version in [Version::Installed, Version::Eighteen] {
        let server = Postgres::with_tls(version, "ssl=on\n", &files, hba);
        for (options, wanted) in [
            ("sslmode=require&channel_binding=require", "tls"),
            ("sslmode=require&channel_binding=disable", "tls"),
            ("sslmode=prefer&channel_binding=require", "tls"),
            ("channel_binding=require&sslmode=require&sslnegotiation=direct", "tls"),
        ] {
            let direct = options.contains("direct") && version == Version::Installed;
            let wanted = if direct { "refused tls" } else { wanted };
            let found = outcome(&format!("{}?{options}", server.url())).await;
            assert_eq!(found, wanted, "{version:?} {options}");
        }
    }
    // A server that lets everybody in proves nothing.
    let trusting = "host all all 127.0.0.1/32 trust";
    let server = Postgres::with_tls(Version::Installed, "ssl=on\n", &files, trusting);
    let url = format!("{}?sslmode=require&channel_binding=require", server.url());
    assert_eq!(outcome(&url).await, "refused 28000");
    let clear = "host all all 127.0.0.1/32 password";
    let server = Postgres::with_tls(Version::Installed, "ssl=on\n", &files, clear);
    let url = format!("{}?sslmode=require&channel_binding=require", server.url());
    assert_eq!(outcome(&url).await, "refused 28000", "the password is not shown");
}

/// What a client has shown of its password is bound as the password would be.
#[test]
fn a_login_with_a_client_s_keys_is_bound_as_well() {
    let shown = Authority::new().server();
    let files = [("server.crt", shown.certificate.as_str()), ("server.key", shown.key.as_str())];
    let hba = "hostssl all all 127.0.0.1/32 scram-sha-256";
    let server = Postgres::with_tls(Version::Installed, "ssl=on\n", &files, hba);
    let stored = server.superuser().one("select passwd from pg_shadow where usename = 'reader'");
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), format!("\"reader\" \"{stored}\"\n")).unwrap();
    let url = format!("{}?sslmode=require&channel_binding=require", server.url());
    let gate = Setup::new()
        .database_url(&url)
        .env("TIDEGATE_POSTGRES_ANY", "1")
        .env("TIDEGATE_POSTGRES_USERS_FILE", users.path().to_str().unwrap())
        .start();
    let mut reader = gate.try_client(&Login::of("reader", "reader-secret", DATABASE)).unwrap();
    assert_eq!(reader.one("select current_user"), "reader");
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_is_shown_one() {
    let ours = Authority::new();
    let (shown, app, other) = (ours.server(), ours.client(USER), ours.client("other"));
    let root = ours.root_pem();
    let files = [
        ("server.crt", shown.certificate.as_str()),
        ("server.key", shown.key.as_str()),
        ("root.crt", root.as_str()),
    ];
    let hba = "hostssl all all 127.0.0.1/32 cert";
    let server =
        Postgres::with_tls(Version::Installed, "ssl=on\nssl_ca_file='root.crt'\n", &files, hba);
    let shows = |issued: &crate::support::authority::Issued| {
        let (certificate, key) = (text(&issued.certificate_file), text(&issued.key_file));
        format!("{}?sslmode=require&sslcert={certificate}&sslkey={key}", server.url())
    };
    assert_eq!(outcome(&shows(&app)).await, "tls");
    assert_eq!(outcome(&shows(&other)).await, "refused 28000");
    assert_eq!(outcome(&format!("{}?sslmode=require", server.url())).await, "refused 28000");
    // And by libpq's variables, through the whole program; another certificate in the same files counts from the next look on.
    let gate = Setup::new()
        .postgres(&server)
        .env("PGSSLMODE", "require")
        .env("PGSSLCERT", text(&app.certificate_file))
        .env("PGSSLKEY", text(&app.key_file))
        .start();
    assert_eq!(gate.client().one(ENCRYPTED), "t");
    let url = format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", server.port());
    let variables = [
        ("PGSSLMODE", "require"),
        ("PGSSLCERT", text(&app.certificate_file)),
        ("PGSSLKEY", text(&app.key_file)),
    ];
    let prepared = prepared(&url, &variables).unwrap();
    assert!(reach(&prepared).await.is_ok());
    std::fs::write(&app.certificate_file, &other.certificate).unwrap();
    std::fs::write(&app.key_file, &other.key).unwrap();
    prepared.reload_tls().unwrap();
    assert_eq!(reach(&prepared).await.unwrap_err().code, "28000");
    app.write();
    prepared.reload_tls().unwrap();
    assert!(reach(&prepared).await.is_ok());
}
