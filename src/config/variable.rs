//! A variable that holds a URL: where it leads, and what the wrapped command gets instead.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::postgres_url::PostgresUrl;
use super::redis_url::RedisUrl;
use super::{ChildCredentials, Secret, TlsMode};
use crate::net::Address;

/// Which of the two sides a variable belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Postgres.
    Postgres,
    /// Redis.
    Redis,
}

/// A pooled variable.
#[derive(Clone, Debug, PartialEq)]
pub struct PooledVariable {
    /// Its name, such as `DATABASE_URL`.
    pub name: String,
    /// Which listener of its protocol leads to its upstream.
    pub listener: usize,
    /// Its upstream's pool: another variable may have named the same server first.
    pub(super) pool: String,
    /// Whose name it is.
    pub(super) origin: Origin,
    url: PooledUrl,
}

/// Who gave a variable its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It holds the upstream's URL.
    Environment,
    /// A namespace: the wrapped command finds it beside the others.
    Namespace,
}

/// The URL of either protocol.
#[derive(Clone, Debug, PartialEq)]
#[expect(private_interfaces, reason = "what a URL consists of stays in config")]
pub enum PooledUrl {
    /// A Postgres URL.
    Postgres(Box<PostgresUrl>),
    /// A Redis URL.
    Redis(Box<RedisUrl>),
}

impl PooledVariable {
    /// One whose URL leads to `pool` by way of the listener of that number.
    pub(super) fn new(name: String, (listener, pool): (usize, String), url: PooledUrl) -> Self {
        Self { name, listener, pool, origin: Origin::Environment, url }
    }

    /// A variable more, for clients of a namespace of this one's upstream.
    pub(super) fn of_namespace(&self, name: String, user: &str, password: &Secret) -> Option<Self> {
        let PooledUrl::Redis(url) = &self.url else { return None };
        let url = PooledUrl::Redis(Box::new(url.of_user(user, password)));
        let (listener, pool) = (self.listener, self.pool.clone());
        Some(Self { name, listener, pool, origin: Origin::Namespace, url })
    }

    /// Which side it belongs to.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.url {
            PooledUrl::Postgres(_) => Protocol::Postgres,
            PooledUrl::Redis(_) => Protocol::Redis,
        }
    }

    /// The value for the wrapped command: the upstream's URL, leading to our listener at `listen` with this encryption, and with
    /// the command's own credential in place of the password, if it has one.
    #[must_use]
    pub fn local_url(&self, listen: SocketAddr, tls: TlsMode, child: &ChildCredentials) -> String {
        let own = child.of(&self.pool).filter(|_| self.origin == Origin::Environment);
        match &self.url {
            PooledUrl::Postgres(url) => url.local(listen, tls, own),
            PooledUrl::Redis(url) => url.local(listen, tls, own),
        }
    }

    /// The server's password; a namespace's is none.
    pub(super) fn server_password(&self) -> Option<&Secret> {
        if self.origin == Origin::Namespace {
            return None;
        }
        match &self.url {
            PooledUrl::Postgres(url) => url.upstream.password.as_ref(),
            PooledUrl::Redis(url) => url.upstream.password.as_ref(),
        }
    }

    /// The files that were read for it.
    pub(super) fn files(&self) -> &[PathBuf] {
        match &self.url {
            PooledUrl::Postgres(url) => &url.files,
            PooledUrl::Redis(_) => &[],
        }
    }

    /// The upstream's URL with its secrets masked.
    #[must_use]
    pub fn masked_url(&self) -> String {
        match &self.url {
            PooledUrl::Postgres(url) => url.masked(),
            PooledUrl::Redis(url) => url.masked(),
        }
    }

    /// Whether the upstream is, or may be, our own listener at `listen`.
    #[must_use]
    pub fn leads_to(&self, listen: &Address) -> bool {
        match &self.url {
            PooledUrl::Postgres(url) => url.upstream.hosts.lead_to(listen),
            PooledUrl::Redis(url) => super::leads_to(&url.upstream.host, url.upstream.port, listen),
        }
    }
}
