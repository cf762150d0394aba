//! TLS towards clients: the certificate that listeners show, and the one that clients must show if that is set.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::crypto;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{Error, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::files::{self, Identity};
use super::kept::Kept;
use super::{TlsError, certificate};
use crate::net::Stream;

/// Names of a certificate that we make ourselves: those by which this machine calls itself.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Which certificate clients are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// One that is made at start: encrypts, and nobody can verify it.
    #[default]
    Made,
    /// One of somebody's.
    Files(Identity),
}

/// What [`ListenerTls::new`] needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTlsSettings {
    /// What clients are shown.
    pub certificate: Certificate,
    /// PEM file with roots: a client must show a certificate that leads to one of them.
    pub client_ca: Option<PathBuf>,
    /// The protocol that clients may name (ALPN); none is looked at when absent.
    pub protocol: Option<&'static str>,
}

impl ListenerTlsSettings {
    /// The files that are read for it.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let shown = match &self.certificate {
            Certificate::Made => Vec::new(),
            Certificate::Files(identity) => identity.files().to_vec(),
        };
        shown.into_iter().chain(self.client_ca.clone()).collect()
    }
}

/// A ready TLS server configuration. Cheap to clone.
#[derive(Clone)]
pub struct ListenerTls {
    kept: Arc<Kept<Ready>>,
}

#[derive(Clone)]
struct Ready {
    config: Arc<ServerConfig>,
    end_point: Option<Arc<[u8]>>,
}

/// A client after the handshake.
#[derive(Debug)]
pub struct Encrypted {
    /// The stream.
    pub stream: Stream,
    /// What a login over it can be bound to (`tls-server-end-point`), if our certificate has it.
    pub end_point: Option<Arc<[u8]>>,
    /// Whether the client has named the protocol, and we agreed.
    pub agreed: Agreed,
}

/// Whether a protocol was agreed on (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// The client named it.
    Yes,
    /// The client named none.
    No,
}

impl ListenerTls {
    /// Reads or makes the certificate; blocking, so do it at start.
    ///
    /// # Errors
    /// When certificate, key or roots cannot be had.
    pub fn new(settings: &ListenerTlsSettings) -> Result<Self, TlsError> {
        let settings = settings.clone();
        let made = match &settings.certificate {
            Certificate::Made => Some(make_certificate()?),
            Certificate::Files(_) => None,
        };
        let kept = Kept::new(move || {
            let (chain, key) = match (&settings.certificate, &made) {
                (Certificate::Files(identity), _) => identity.read()?,
                (Certificate::Made, Some((chain, key))) => (chain.clone(), key.clone_key()),
                (Certificate::Made, None) => make_certificate()?,
            };
            ready(&settings, chain, key)
        })?;
        Ok(Self { kept: Arc::new(kept) })
    }

    /// Reads the files again; blocking. What was read before stays when they are no good; clients that are here stay.
    ///
    /// # Errors
    /// As [`ListenerTls::new`].
    pub fn reload(&self) -> Result<(), TlsError> {
        self.kept.reload()
    }

    /// Shakes hands with the client of `stream`, which must be plain TCP. The deadline is the caller's.
    /// Not cancel safe: a dropped handshake drops the connection.
    ///
    /// # Errors
    /// What the handshake said; the client has been told in TLS's own words.
    pub async fn accept(&self, stream: Stream) -> io::Result<Encrypted> {
        let Stream::Tcp(tcp) = stream else {
            let message = "TLS needs a plain TCP stream";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let Ready { config, end_point } = self.kept.current();
        // Its state is some kilobytes: not part of every greeting's.
        let tls = Box::pin(TlsAcceptor::from(config).accept(tcp)).await?;
        let named = tls.get_ref().1.alpn_protocol().is_some();
        let agreed = if named { Agreed::Yes } else { Agreed::No };
        Ok(Encrypted { stream: Stream::Tls(Box::new(tls.into())), end_point, agreed })
    }
}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").finish_non_exhaustive()
    }
}

fn ready(
    settings: &ListenerTlsSettings,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Ready, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let end_point = chain.first().and_then(certificate::server_end_point).map(Arc::from);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(files::roots(Some(path))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| Error::General(error.to_string()))?,
            )
        }
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|error| match &settings.certificate {
            Certificate::Files(identity) => identity.refused(&error),
            Certificate::Made => error.into(),
        })?;
    config.alpn_protocols = settings.protocol.iter().map(|name| name.as_bytes().to_vec()).collect();
    // Clients are near and stay: a session kept for each to resume would cost more memory than handshakes cost time. Nor
    // may anybody come back past roots that have been changed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Ready { config: Arc::new(config), end_point })
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// ECDSA on P-256, signed by itself, for as long as the process lives.
fn make_certificate() -> Result<Pair, TlsError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(OWN_NAMES.map(str::to_owned))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "tidegate");
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((vec![certificate.der().clone()], key))
}
