//! A Postgres URL: what it means for us, and how the wrapped command sees it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::conninfo::{Conninfo, requires_ssl};
use super::local::local_host;
use super::postgres_options::{self, is_ours, is_tls_option};
use super::tls::PostgresTls;
use super::written::Environment;
use super::{
    Access, Hosts, PostgresUpstream, Secret, SslMode, TargetSession, TlsMode, passfile, service,
};
use crate::net::Pins;

/// A parsed URL and the upstream it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PostgresUrl {
    conninfo: Conninfo,
    pub(super) upstream: PostgresUpstream,
    pub(super) warnings: Vec<String>,
    /// What was read beside it: libpq's service file and password file.
    pub(super) files: Vec<PathBuf>,
    /// Whether a client without an `sslmode` in its URL would insist on TLS.
    environment_insists: bool,
    /// Takes back what libpq's variables would ask of a plain listener.
    taken_back: Vec<(String, String)>,
}

impl PostgresUrl {
    /// Parses the value of the variable `name`; `environment` gives libpq's defaults (PGUSER ..).
    /// The error repeats nothing of the text.
    pub(super) fn parse(name: &str, text: &str, environment: &Environment) -> Result<Self, String> {
        let mut conninfo = Conninfo::parse(text)?;
        let service_file = service::add(&mut conninfo, environment)?;
        let all = conninfo.with_variables(environment);
        postgres_options::check(&all)?;
        let pg =
            |variable: &str| environment.get(variable).cloned().flatten().filter(|v| !v.is_empty());
        let hosts = Hosts::read(&all)?;
        let Some(user) = all.get("user").map(str::to_owned).or_else(|| pg("USER")) else {
            return Err("names no user, and neither PGUSER nor USER is set".to_owned());
        };
        let database = all.get("dbname").unwrap_or(&user).to_owned();
        let found = match all.get("password") {
            Some(password) => passfile::Found::written(password),
            None => passfile::look_up(&all, environment, &hosts, (&user, &database))?,
        };
        let (sslmode, sslrootcert) = encryption(&all)?;
        let tls = PostgresTls::read(&all, sslmode)?;
        let mut warnings = postgres_options::warnings(name, &all);
        warnings.extend(found.warning.map(|warning| format!("{name}: {warning}")));
        let options = conninfo.written().iter().filter(|(key, _)| !is_ours(key));
        let options = options.cloned().collect();
        let upstream = PostgresUpstream {
            name: name.to_owned(),
            hosts,
            connect_timeout: postgres_options::connect_timeout(&all)?,
            vigilance: postgres_options::vigilance(&all)?,
            required_peer: postgres_options::required_peer(&all)?,
            methods: postgres_options::methods(&all)?,
            access: Access::Write,
            user,
            password: found.password,
            database,
            options,
            sslmode,
            sslrootcert,
            handshake: postgres_options::handshake(&all)?,
            sslnegotiation: tls.negotiation,
            channel_binding: tls.channel_binding,
            identity: tls.identity,
            pins: Pins::default(),
        };
        let environment_insists =
            pg("PGSSLMODE").is_some_and(|mode| insists(&mode)) || requires_ssl(environment);
        let taken_back = taken_back(environment);
        let files = service_file.into_iter().chain(found.file).collect();
        Ok(Self { conninfo, upstream, warnings, files, environment_insists, taken_back })
    }

    /// The URL for the wrapped command: the same user, database and options, the same password or its own credential, our
    /// address, and no TLS asked of a listener on the same machine unless it insists.
    pub(super) fn local(&self, listen: SocketAddr, tls: TlsMode, own: Option<&Secret>) -> String {
        let asked_for_tls = self.conninfo.written().iter().any(|(key, _)| is_tls_option(key));
        let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut written = vec![
            option("user", &self.upstream.user),
            option("host", &local_host(listen)),
            option("port", &listen.port().to_string()),
            option("dbname", &self.upstream.database),
        ];
        let password = own.or(self.upstream.password.as_ref());
        written.extend(password.map(|secret| option("password", secret.expose())));
        written.extend(self.upstream.options.iter().cloned());
        if tls == TlsMode::Require {
            written.push(option("sslmode", "require"));
        } else {
            if asked_for_tls || self.environment_insists {
                written.push(option("sslmode", "disable"));
            }
            written.extend(self.taken_back.iter().cloned());
        }
        Conninfo::new(&self.conninfo.scheme, written).to_url()
    }

    /// The same for a follower: of several hosts a standby comes first, unless the URL says which it is to be.
    pub(super) fn of_follower(mut self) -> Self {
        let hosts = &mut self.upstream.hosts;
        let says_which = self.conninfo.get("target_session_attrs").is_some();
        if hosts.list.len() > 1 && hosts.target == TargetSession::Any && !says_which {
            hosts.target = TargetSession::PreferStandby;
        }
        self.upstream.access = Access::Read;
        self
    }

    /// The URL with its secrets masked.
    pub(super) fn masked(&self) -> String {
        self.conninfo.masked()
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

fn insists(mode: &str) -> bool {
    matches!(mode, "require" | "verify-ca" | "verify-full" | "no-verify")
}

/// libpq's rules: a root certificate turns `require` into `verify-ca`, and `sslrootcert=system`
/// means the system's roots and the name. `allow` is served as `prefer`.
fn encryption(all: &Conninfo) -> Result<(SslMode, Option<PathBuf>), String> {
    let root = all.get("sslrootcert");
    let system = root == Some("system");
    let ssl = all.get("ssl") == Some("1");
    let mode = match all.get("sslmode") {
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
