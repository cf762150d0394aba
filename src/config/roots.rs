//! Which TLS an upstream asks for, and whether the certificates can be had.

use std::path::{Path, PathBuf};

use super::{
    ConfigError, ListenerEncryption, PostgresUpstream, RedisTls, RedisUpstream, ServerHost,
    Settings, SslMode, SslNegotiation,
};
use crate::net::{Tls, TlsSettings, Verify};

/// What Postgres is called in a TLS handshake (IANA's list of ALPN protocol IDs).
pub const POSTGRES_PROTOCOL: &str = "postgresql";

/// The setting that errors about its roots name.
const REMOTE_WRITE: &str = "push.remote_write_url";

impl PostgresUpstream {
    /// The TLS its `sslmode` asks for; `None` for none. As with libpq, `prefer` takes any certificate, a root
    /// certificate turns `require` into `verify-ca`, and a unix socket has no TLS whatever is asked.
    #[must_use]
    pub fn tls(&self) -> Option<TlsSettings> {
        if self.hosts.list.iter().all(ServerHost::is_socket) {
            return None;
        }
        // libpq's word for the system's roots, which are what we take when no file is named.
        let roots = self.sslrootcert.clone().filter(|path| path != Path::new("system"));
        let verify = match self.sslmode {
            SslMode::Disable => return None,
            SslMode::Require if roots.is_some() => Verify::Ca,
            SslMode::Prefer | SslMode::Require => Verify::None,
            SslMode::VerifyCa => Verify::Ca,
            SslMode::VerifyFull => Verify::Full,
        };
        Some(TlsSettings {
            verify,
            roots,
            identity: self.identity.clone(),
            pins: self.pins.clone(),
            handshake: self.handshake,
            // Towards an SSLRequest it would bring nothing, and might disturb what stands before an older server.
            protocol: (self.sslnegotiation == SslNegotiation::Direct).then_some(POSTGRES_PROTOCOL),
        })
    }

    /// A word on keys that nobody will look at.
    pub(super) fn vain_pins(&self) -> Option<String> {
        let vain = self.tls().is_none() && !self.pins.is_empty();
        vain.then(|| vain_pins(&self.name, "sslmode=require"))
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
                Some(TlsSettings {
                    identity: self.identity.clone(),
                    pins: self.pins.clone(),
                    ..TlsSettings::verifying(verify, ca.clone())
                })
            }
        }
    }

    /// A word on keys that nobody will look at.
    pub(super) fn vain_pins(&self) -> Option<String> {
        let vain = self.tls().is_none() && !self.pins.is_empty();
        vain.then(|| vain_pins(&self.name, "rediss://"))
    }
}

fn vain_pins(name: &str, cure: &str) -> String {
    format!(
        "{name} is served without TLS, so nobody looks at the server's public key; write {cure}"
    )
}

impl Settings {
    /// Reads every certificate once, so that `check` and a start find what is wrong with them, and not the first client.
    pub(super) fn check_roots(&self) -> Result<(), ConfigError> {
        self.encryptions().try_for_each(check_listener)?;
        for (name, tls) in self.ways_with_tls() {
            Tls::new(&tls).map_err(|error| ConfigError::new(name, error.to_string()))?;
        }
        Ok(())
    }

    /// Every file about TLS that is read.
    pub(super) fn tls_files(&self) -> Vec<PathBuf> {
        let ways = self.ways_with_tls().flat_map(|(_, tls)| tls.files());
        self.encryptions().flat_map(ListenerEncryption::files).chain(ways).collect()
    }

    fn encryptions(&self) -> impl Iterator<Item = &ListenerEncryption> {
        let postgres = self.postgres.iter().map(|side| &side.encryption);
        postgres.chain(self.redis.iter().map(|side| &side.encryption))
    }

    /// What is reached with TLS, by the setting or variable that says so.
    fn ways_with_tls(&self) -> impl Iterator<Item = (&str, TlsSettings)> {
        let postgres = self.postgres.iter().flat_map(|side| &side.listeners);
        let postgres = postgres.flat_map(|known| &known.upstreams).map(|up| (&*up.name, up.tls()));
        let redis = self.redis.iter().flat_map(|side| &side.listeners);
        let redis = redis.map(|known| (&*known.upstream.name, known.upstream.tls()));
        let push = self.push.remote_write.iter().map(|target| (REMOTE_WRITE, target.tls.clone()));
        postgres.chain(redis).chain(push).filter_map(|(name, tls)| Some((name, tls?)))
    }
}

fn check_listener(encryption: &ListenerEncryption) -> Result<(), ConfigError> {
    encryption.tls(None).map(drop).map_err(|error| ConfigError::new("tls", error.to_string()))
}
