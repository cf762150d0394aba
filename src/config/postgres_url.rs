//! A Postgres URL: what it means for us, and how the wrapped command sees it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::local::local_host;
use super::tls::PostgresTls;
use super::uri::{Uri, decode, encode};
use super::written::Environment;
use super::{Host, PostgresUpstream, Secret, SslMode, TlsMode};
use crate::net::Pins;

/// Options that say how to reach the server, or how to encrypt on the way to it: ours to keep,
/// useless or harmful towards our plain local listener.
const SERVER_OPTIONS: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "passfile",
    "channel_binding",
    "requiressl",
    "gssencmode",
    "requirepeer",
    "target_session_attrs",
    "load_balance_hosts",
];
const DEFAULT_PORT: u16 = 5432;
/// Where Debian's and most others' servers keep their socket.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// A parsed URL and the upstream it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PostgresUrl {
    uri: Uri,
    pub(super) upstream: PostgresUpstream,
    pub(super) warnings: Vec<String>,
    /// Whether a client without an `sslmode` in its URL would insist on TLS.
    environment_insists: bool,
    /// Takes back what libpq's variables would ask of a plain listener.
    taken_back: Vec<(String, String)>,
}

impl PostgresUrl {
    /// Parses the value of the variable `name`; `environment` gives libpq's defaults (PGUSER ..).
    /// The error repeats nothing of the text.
    pub(super) fn parse(name: &str, text: &str, environment: &Environment) -> Result<Self, String> {
        let mut uri = Uri::parse(text)?;
        check_scheme(&uri.scheme)?;
        let pg =
            |variable: &str| environment.get(variable).cloned().flatten().filter(|v| !v.is_empty());
        for unsupported in ["hostaddr"] {
            if uri.query.iter().any(|(key, _)| key == unsupported) {
                return Err(format!(
                    "has the option {unsupported}, which tidegate cannot honour; \
                    take it out"
                ));
            }
        }
        let path = decode(&uri.path)?;
        let port_option = match uri.take_option("port") {
            None => None,
            Some(port) => {
                Some(parse_port(&port).ok_or("has an option port that is not 1 to 65535")?)
            }
        };
        uri.host = uri.take_option("host").or(uri.host);
        uri.user = uri.take_option("user").or(uri.user);
        uri.password = uri.take_option("password").or(uri.password);
        let host = uri.host.clone().or_else(|| pg("PGHOST")).unwrap_or(SOCKET_DIRECTORY.into());
        if host.contains(',') {
            return Err("names several hosts; give it one".to_owned());
        }
        let port = port_option
            .or(uri.port)
            .or_else(|| pg("PGPORT").and_then(|port| parse_port(&port)))
            .unwrap_or(DEFAULT_PORT);
        let Some(user) = uri.user.clone().or_else(|| pg("PGUSER")).or_else(|| pg("USER")) else {
            return Err("names no user, and neither PGUSER nor USER is set".to_owned());
        };
        let database = uri.take_option("dbname").or((!path.is_empty()).then_some(path));
        let database = database.or_else(|| pg("PGDATABASE")).unwrap_or_else(|| user.clone());
        let password = uri.password.clone().or_else(|| pg("PGPASSWORD")).map(Secret::new);
        let (sslmode, sslrootcert) = encryption(&uri, environment)?;
        let tls = PostgresTls::read(&uri, environment, sslmode)?;
        let warnings = warnings(name, &uri);
        let host = if host.starts_with('/') { Host::Unix(host.into()) } else { Host::Tcp(host) };
        let ours = |key: &str| SERVER_OPTIONS.contains(&key) || is_tls_option(key);
        let options = uri.query.iter().filter(|(key, _)| !ours(key)).cloned().collect();
        let upstream = PostgresUpstream {
            name: name.to_owned(),
            host,
            port,
            user,
            password,
            database,
            options,
            sslmode,
            sslrootcert,
            sslnegotiation: tls.negotiation,
            channel_binding: tls.channel_binding,
            identity: tls.identity,
            pins: Pins::default(),
        };
        let environment_insists = pg("PGSSLMODE").is_some_and(|mode| insists(&mode));
        let taken_back = taken_back(environment);
        Ok(Self { uri, upstream, warnings, environment_insists, taken_back })
    }

    /// The URL for the wrapped command: the same user, database and options, the same password or its own credential, our
    /// address, and no TLS asked of a listener on the same machine unless it insists.
    pub(super) fn local(&self, listen: SocketAddr, tls: TlsMode, own: Option<&Secret>) -> String {
        let asked_for_tls = self.uri.query.iter().any(|(key, _)| is_tls_option(key));
        let mut uri = self.uri.clone();
        uri.user = Some(self.upstream.user.clone());
        let password = own.or(self.upstream.password.as_ref());
        uri.password = password.map(|secret| secret.expose().to_owned());
        uri.host = Some(local_host(listen));
        uri.port = Some(listen.port());
        uri.path = encode(&self.upstream.database);
        uri.query.clone_from(&self.upstream.options);
        if tls == TlsMode::Require {
            uri.query.push(("sslmode".to_owned(), "require".to_owned()));
            return uri.to_url();
        }
        if asked_for_tls || self.environment_insists {
            uri.query.push(("sslmode".to_owned(), "disable".to_owned()));
        }
        uri.query.extend(self.taken_back.iter().cloned());
        uri.to_url()
    }

    /// The URL with its secrets masked.
    pub(super) fn masked(&self) -> String {
        self.uri.masked()
    }
}

/// Only clients of libpq heed these variables, and only they know the options; others may stumble over them.
fn taken_back(environment: &Environment) -> Vec<(String, String)> {
    let variables = [
        ("PGSSLNEGOTIATION", "direct", "sslnegotiation", "postgres"),
        ("PGCHANNELBINDING", "require", "channel_binding", "disable"),
    ];
    let asked = |variable: &str, value: &str| {
        environment.get(variable).and_then(Option::as_deref) == Some(value)
    };
    let taken = variables.into_iter().filter(|(variable, value, ..)| asked(variable, value));
    taken.map(|(_, _, option, value)| (option.to_owned(), value.to_owned())).collect()
}

fn check_scheme(scheme: &str) -> Result<(), String> {
    // SQLAlchemy writes the driver behind a plus, GeoDjango calls it postgis.
    let plain = scheme.split_once('+').map_or(scheme, |(plain, _driver)| plain);
    if matches!(plain, "postgres" | "postgresql" | "postgis") {
        return Ok(());
    }
    let jdbc = if scheme.starts_with("jdbc") { "; a JDBC URL cannot be pooled" } else { "" };
    Err(format!("has the wrong scheme: it must begin with postgres:// or postgresql://{jdbc}"))
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn is_tls_option(key: &str) -> bool {
    key.starts_with("ssl")
}

fn insists(mode: &str) -> bool {
    matches!(mode, "require" | "verify-ca" | "verify-full" | "no-verify")
}

/// libpq's rules: a root certificate turns `require` into `verify-ca`, and `sslrootcert=system`
/// means the system's roots and the name. `allow` is served as `prefer`.
fn encryption(uri: &Uri, environment: &Environment) -> Result<(SslMode, Option<PathBuf>), String> {
    let option = |key: &str, variable: &str| {
        let written = uri.query.iter().rev().find(|(known, _)| known == key);
        let inherited = || environment.get(variable).cloned().flatten();
        written.map(|(_, value)| value.clone()).or_else(inherited).filter(|value| !value.is_empty())
    };
    let root = option("sslrootcert", "PGSSLROOTCERT");
    let system = root.as_deref() == Some("system");
    let ssl =
        uri.query.iter().any(|(key, value)| key == "ssl" && matches!(value.as_str(), "true" | "1"));
    let mode = match option("sslmode", "PGSSLMODE").as_deref() {
        None if system => SslMode::VerifyFull,
        None if ssl => SslMode::Require,
        None | Some("prefer" | "allow") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("require") if root.is_some() && !system => SslMode::VerifyCa,
        Some("require" | "no-verify") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(_) => {
            return Err("has an sslmode that is none of disable, allow, prefer, require, \
                verify-ca, verify-full (or PGSSLMODE has)"
                .to_owned());
        }
    };
    if system && mode != SslMode::VerifyFull {
        return Err("has sslrootcert=system, which goes with sslmode=verify-full only".to_owned());
    }
    Ok((mode, root.filter(|_| !system).map(PathBuf::from)))
}

fn warnings(name: &str, uri: &Uri) -> Vec<String> {
    let mut warnings = Vec::new();
    if uri.query.iter().any(|(key, value)| key == "gssencmode" && value == "require") {
        warnings.push(format!("{name} asks for gssencmode=require, which tidegate does not speak"));
    }
    warnings
}
