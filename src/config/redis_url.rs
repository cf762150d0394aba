//! A Redis URL: what it means for us, and how the wrapped command sees it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::local::local_host;
use super::tls::redis_identity;
use super::uri::{Uri, decode};
use super::{Host, RedisTls, RedisUpstream, Secret, TlsMode};
use crate::net::Pins;

/// What libraries call a URL that leads to a unix socket: redis-py and go-redis, redis-rs, Celery, Lettuce.
const SOCKET_SCHEMES: [&str; 5] = ["unix", "redis+unix", "redis+socket", "socket", "redis-socket"];
const DEFAULT_PORT: u16 = 6379;
const DEFAULT_HOST: &str = "127.0.0.1";

/// A parsed URL and the upstream it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RedisUrl {
    uri: Uri,
    pub(super) upstream: RedisUpstream,
    pub(super) warnings: Vec<String>,
}

impl RedisUrl {
    /// Parses the value of the variable `name`; `tls` is what `rediss://` means when the URL does
    /// not say. The error repeats nothing of the text.
    pub(super) fn parse(name: &str, text: &str, tls: &RedisTls) -> Result<Self, String> {
        let mut uri = if text.starts_with('/') { of_path(text)? } else { Uri::parse(text)? };
        let socket = SOCKET_SCHEMES.contains(&uri.scheme.as_str());
        if !socket && !matches!(uri.scheme.as_str(), "redis" | "rediss") {
            return Err("has the wrong scheme: it must begin with redis://, rediss:// or unix://"
                .to_owned());
        }
        refuse_what_cannot_be_honoured(&uri)?;
        let path = decode(&uri.path)?;
        let mut warnings = Vec::new();
        // Libraries differ in the name, and agree that what stands in front of the @ counts.
        let user = option(&mut uri, &["username", "user"]);
        uri.user = prefer(uri.user.take(), user, name, "user", &mut warnings);
        let password = option(&mut uri, &["password", "pass"]);
        uri.password = prefer(uri.password.take(), password, name, "password", &mut warnings);
        // redis-py lets an option db win over the path.
        let number = match option(&mut uri, &["db", "database", "virtual_host"]) {
            Some(number) => number,
            None if socket => String::new(),
            None => path.clone(),
        };
        let database = if number.is_empty() { 0 } else { parse_database(&number)? };
        let (host, port) = if socket {
            if path.is_empty() || uri.host.is_some() {
                return Err("has no path to a socket: write unix:///path/to/redis.sock".to_owned());
            }
            (Host::Unix(format!("/{path}").into()), DEFAULT_PORT)
        } else {
            let host = option(&mut uri, &["host"]);
            uri.host = prefer(uri.host.take(), host, name, "host", &mut warnings);
            let host = uri.host.clone().unwrap_or(DEFAULT_HOST.to_owned());
            (Host::Tcp(host), port(&mut uri)?)
        };
        let tls = if uri.scheme == "rediss" { url_tls(&uri, tls) } else { RedisTls::Off };
        let upstream = RedisUpstream {
            name: name.to_owned(),
            host,
            port,
            user: uri.user.clone(),
            password: uri.password.clone().map(Secret::new),
            database,
            tls,
            identity: redis_identity(&uri)?,
            pins: Pins::default(),
        };
        Ok(Self { uri, upstream, warnings })
    }

    /// The URL for the wrapped command: Redis at our address, plain unless the listener insists on TLS, with the same
    /// user, database number and options, and the same password or its own credential; options about TLS go, but for whether to
    /// verify if there is any.
    pub(super) fn local(&self, listen: SocketAddr, tls: TlsMode, own: Option<&Secret>) -> String {
        let mut uri = self.uri.clone();
        if let Some(own) = own {
            uri.password = Some(own.expose().to_owned());
        }
        let scheme = if tls == TlsMode::Require { "rediss" } else { "redis" };
        scheme.clone_into(&mut uri.scheme);
        uri.host = Some(local_host(listen));
        uri.port = Some(listen.port());
        uri.path = self.upstream.database.to_string();
        let stays = |key: &str| tls == TlsMode::Require && key == "ssl_cert_reqs";
        uri.query.retain(|(key, _)| !is_tls_option(key) || stays(key));
        uri.to_url()
    }

    /// The same, for another user: a namespace of it.
    pub(super) fn of_user(&self, user: &str, password: &Secret) -> Self {
        let mut other = self.clone();
        other.uri.user = Some(user.to_owned());
        other.uri.password = Some(password.expose().to_owned());
        other
    }

    /// The URL with its secrets masked.
    pub(super) fn masked(&self) -> String {
        self.uri.masked()
    }
}

/// A socket's path and nothing else, as ioredis takes it.
fn of_path(path: &str) -> Result<Uri, String> {
    Uri::parse(&format!("unix://{}", path.replace('%', "%25").replace('?', "%3F")))
}

fn parse_database(number: &str) -> Result<u32, String> {
    number
        .parse()
        .map_err(|_| "has a database that is not a number: write redis://host:port/0".to_owned())
}

fn is_tls_option(key: &str) -> bool {
    key.starts_with("ssl") || key.starts_with("tls")
}

/// The value of an option that has several names.
fn option(uri: &mut Uri, names: &[&str]) -> Option<String> {
    // Each is taken out, so that the wrapped command does not meet it again.
    let values: Vec<String> = names.iter().filter_map(|name| uri.take_option(name)).collect();
    values.into_iter().find(|value| !value.is_empty())
}

/// What the URL says in its own place counts before an option; both are worth a word if they differ.
fn prefer(
    own: Option<String>,
    option: Option<String>,
    name: &str,
    what: &str,
    warnings: &mut Vec<String>,
) -> Option<String> {
    if own.is_some() && option.is_some() && own != option {
        warnings.push(format!(
            "{name} names two {what}s: the one in front of the question mark counts, the option is ignored"
        ));
    }
    own.or(option)
}

fn port(uri: &mut Uri) -> Result<u16, String> {
    let written = option(uri, &["port"]).map(|port| port.parse().ok().filter(|port| *port != 0));
    match (uri.port, written) {
        (Some(port), _) | (None, Some(Some(port))) => Ok(port),
        (None, None) => Ok(DEFAULT_PORT),
        (None, Some(None)) => Err("has an option port that is not 1 to 65535".to_owned()),
    }
}

/// Options that would be missed: what they ask for concerns the way to the server, which is ours.
fn refuse_what_cannot_be_honoured(uri: &Uri) -> Result<(), String> {
    for (key, value) in &uri.query {
        let advice = match key.as_str() {
            "ssl_keyfile_password" | "ssl_password" => {
                "take the password off the key's file, and the option out"
            }
            "ssl_ca_data" | "ssl_ca_path" => {
                "put the roots into one PEM file and name that in redis.tls_ca"
            }
            "addr" | "sentinels" | "sentinel" | "sentinelMasterId" => {
                "tidegate connects to one server for each variable; take it out"
            }
            "ssl" | "tls" if uri.scheme == "redis" && is_yes(value) => {
                "a URL that begins with redis:// is served without TLS; write rediss://"
            }
            _ => continue,
        };
        return Err(format!("has the option {key}, which tidegate cannot honour: {advice}"));
    }
    Ok(())
}

fn is_yes(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on" | "required")
}

/// redis-py's `ssl_cert_reqs` says whether to verify, and `ssl_ca_certs` against which roots; both win over the settings.
fn url_tls(uri: &Uri, setting: &RedisTls) -> RedisTls {
    let RedisTls::On { verify, ca } = setting else {
        return RedisTls::On { verify: false, ca: None };
    };
    let asked = uri.query.iter().rev().find(|(key, _)| key == "ssl_cert_reqs");
    let asked = asked.map(|(_, value)| value.to_ascii_lowercase());
    let verify = match asked.as_deref() {
        Some("required" | "cert_required") => true,
        Some("none" | "cert_none") => false,
        _ => *verify,
    };
    let roots =
        uri.query.iter().rev().find(|(key, value)| key == "ssl_ca_certs" && !value.is_empty());
    let ca = roots.map(|(_, path)| PathBuf::from(path)).or_else(|| ca.clone());
    RedisTls::On { verify, ca }
}
