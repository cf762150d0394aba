//! Which TLS an upstream asks for, and whether its root certificates can be had.

use super::{ConfigError, Host, PostgresUpstream, RedisTls, RedisUpstream, Settings, SslMode};
use crate::net::{Tls, TlsSettings, Verify};

/// The setting that errors about its roots name.
const REMOTE_WRITE: &str = "push.remote_write_url";

impl PostgresUpstream {
    /// The TLS its `sslmode` asks for; `None` for none. As with libpq, `prefer` takes any
    /// certificate, and a unix socket has no TLS whatever is asked.
    #[must_use]
    pub fn tls(&self) -> Option<TlsSettings> {
        if matches!(self.host, Host::Unix(_)) {
            return None;
        }
        let verify = match self.sslmode {
            SslMode::Disable => return None,
            SslMode::Prefer | SslMode::Require => Verify::None,
            SslMode::VerifyCa => Verify::Ca,
            SslMode::VerifyFull => Verify::Full,
        };
        Some(TlsSettings { verify, roots: self.sslrootcert.clone() })
    }
}

impl RedisUpstream {
    /// The TLS its URL asks for; `None` for none.
    #[must_use]
    pub fn tls(&self) -> Option<TlsSettings> {
        match &self.tls {
            RedisTls::Off => None,
            RedisTls::On { verify, ca } => {
                let verify = if *verify { Verify::Full } else { Verify::None };
                Some(TlsSettings { verify, roots: ca.clone() })
            }
        }
    }
}

impl Settings {
    /// Reads every upstream's root certificates once, so that `check` and a start find what is wrong
    /// with them, and not the first client.
    pub(super) fn check_roots(&self) -> Result<(), ConfigError> {
        let postgres = self.postgres.iter().flat_map(|side| &side.listeners);
        let postgres = postgres.flat_map(|known| &known.upstreams).map(|up| (&up.name, up.tls()));
        let redis = self.redis.iter().flat_map(|side| &side.listeners);
        let redis = redis.map(|known| (&known.upstream.name, known.upstream.tls()));
        let push = self.push.remote_write.iter().map(|target| (REMOTE_WRITE, target.tls.clone()));
        let upstreams = postgres.chain(redis).map(|(name, tls)| (name.as_str(), tls));
        for (name, tls) in upstreams.chain(push) {
            if let Some(tls) = tls {
                Tls::new(&tls).map_err(|error| ConfigError::new(name, error.to_string()))?;
            }
        }
        Ok(())
    }
}
