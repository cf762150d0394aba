//! A Redis URL: what it means for us, and how the wrapped command sees it.

use std::net::SocketAddr;

use super::local::local_host;
use super::uri::{Uri, decode};
use super::{Host, RedisTls, RedisUpstream, Secret};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_HOST: &str = "127.0.0.1";

/// A parsed URL and the upstream it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RedisUrl {
    uri: Uri,
    pub(super) upstream: RedisUpstream,
}

impl RedisUrl {
    /// Parses the value of the variable `name`; `tls` is what `rediss://` means when the URL does
    /// not say. The error repeats nothing of the text.
    pub(super) fn parse(name: &str, text: &str, tls: &RedisTls) -> Result<Self, String> {
        let mut uri = Uri::parse(text)?;
        let socket = matches!(uri.scheme.as_str(), "unix" | "redis+unix" | "redis+socket");
        if !socket && !matches!(uri.scheme.as_str(), "redis" | "rediss") {
            return Err("has the wrong scheme: it must begin with redis://, rediss:// or unix://"
                .to_owned());
        }
        let path = decode(&uri.path)?;
        // redis-py lets an option db win over the path.
        let number = match uri.take_option("db") {
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
            let host = uri.host.clone().unwrap_or(DEFAULT_HOST.to_owned());
            (Host::Tcp(host), uri.port.unwrap_or(DEFAULT_PORT))
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
        };
        Ok(Self { uri, upstream })
    }

    /// The URL for the wrapped command: plain Redis at our address, with the same user, password,
    /// database number and options; those about TLS go.
    pub(super) fn local(&self, listen: SocketAddr) -> String {
        let mut uri = self.uri.clone();
        "redis".clone_into(&mut uri.scheme);
        uri.host = Some(local_host(listen));
        uri.port = Some(listen.port());
        uri.path = self.upstream.database.to_string();
        uri.query.retain(|(key, _)| !is_tls_option(key));
        uri.to_url()
    }

    /// The URL with its secrets masked.
    pub(super) fn masked(&self) -> String {
        self.uri.masked()
    }
}

fn parse_database(number: &str) -> Result<u32, String> {
    number
        .parse()
        .map_err(|_| "has a database that is not a number: write redis://host:port/0".to_owned())
}

fn is_tls_option(key: &str) -> bool {
    key.starts_with("ssl") || key.starts_with("tls")
}

/// redis-py's `ssl_cert_reqs` says whether to verify, and wins over the setting.
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
    RedisTls::On { verify, ca: ca.clone() }
}
