//! TLS by rustls with the ring provider: towards servers ([`Tls`]), and towards clients ([`ListenerTls`]).

mod certificate;
mod files;
mod kept;
mod listener;
mod pins;
mod verify;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, CertificateError, ClientConfig, Error, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

use super::Stream;
pub use certificate::{common_name, key_pin, server_end_point};
pub use files::Identity;
use kept::Kept;
pub use listener::{Agreed, Certificate, Encrypted, ListenerTls, ListenerTlsSettings};
pub use pins::{Pin, Pins};
use verify::Lenient;

/// How much of the server's certificate must be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Any certificate will do (self-signed ones of hosted databases), but the handshake's signature
    /// must be made with its key: encrypts, does not identify.
    None,
    /// The chain must end at a trusted root; the name is not looked at (libpq's `verify-ca`).
    Ca,
    /// The chain must end at a trusted root and the certificate must bear the host's name.
    Full,
}

/// Which TLS is spoken, and what the first words of it say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Handshake {
    /// The versions that will do.
    pub versions: TlsVersions,
    /// Whether they say the host's name.
    pub naming: Naming,
}

/// Versions of TLS; the older ones are broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2.
    Older,
    /// 1.3.
    Newest,
}

/// Whether the server, and whoever listens, is told by which name it is reached (SNI).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Naming {
    /// It is.
    #[default]
    Told,
    /// It is not.
    Kept,
}

/// What [`Tls::new`] needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// How much to verify.
    pub verify: Verify,
    /// PEM file with the trusted roots; the system's when absent. Not read with [`Verify::None`].
    pub roots: Option<PathBuf>,
    /// What is shown to a server that asks who we are.
    pub identity: Option<Identity>,
    /// Which keys the server may have.
    pub pins: Pins,
    /// The protocol that the server must agree to speak (ALPN, RFC 7301); none is named when absent.
    pub protocol: Option<&'static str>,
    /// How it begins.
    pub handshake: Handshake,
}

impl TlsSettings {
    /// To verify so much with these roots, and nothing else.
    #[must_use]
    pub fn verifying(verify: Verify, roots: Option<PathBuf>) -> Self {
        let handshake = Handshake::default();
        Self { verify, roots, identity: None, pins: Pins::default(), protocol: None, handshake }
    }

    /// The files that are read for it.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let roots = self.roots.clone().filter(|_| self.verify != Verify::None);
        roots.into_iter().chain(self.identity.iter().flat_map(Identity::files)).collect()
    }
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file with certificates cannot be read or holds none.
    #[error("cannot take certificates from {}: {message}; it must be a readable PEM file",
        path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A private key cannot be read, or does not belong to its certificate.
    #[error(
        "cannot take the private key from {}: {message}; it must be a readable PEM file, without a password, with the \
        key of the certificate beside it",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; nothing of its content.
        message: String,
    },
    /// The system has no trusted roots and none were named.
    #[error(
        "the system has no root certificates ({message}); name a PEM file with the roots, \
        or do not ask for verification"
    )]
    NoSystemRoots {
        /// What the search for them said.
        message: String,
    },
    /// No certificate could be made for the listeners.
    #[error("cannot make a certificate ({0}); name one in tls.cert and tls.key")]
    Made(#[from] rcgen::Error),
    /// rustls refuses the combination.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

/// A ready TLS client configuration. Cheap to clone; clones share the sessions that servers let us resume.
#[derive(Clone)]
pub struct Tls {
    kept: Arc<Kept<Arc<ClientConfig>>>,
    pins: Arc<Pins>,
    protocol: Option<&'static str>,
}

impl Tls {
    /// Reads the roots and prepares the configuration; blocking file reads, so do it at start.
    ///
    /// # Errors
    /// When the roots, or our own certificate and key, cannot be had.
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let (pins, protocol) = (Arc::new(settings.pins.clone()), settings.protocol);
        let settings = settings.clone();
        let kept = Kept::new(move || client_config(&settings))?;
        Ok(Self { kept: Arc::new(kept), pins, protocol })
    }

    /// Reads the files again; blocking. What was read before stays when they are no good, and connections that are open
    /// stay as they are.
    ///
    /// # Errors
    /// As [`Tls::new`].
    pub fn reload(&self) -> Result<(), TlsError> {
        self.kept.reload()
    }

    /// Shakes hands over `stream`, which must be plain TCP; `host` is the name for SNI and, with
    /// [`Verify::Full`], the one the certificate must bear. The deadline is the caller's.
    /// Not cancel safe: a dropped handshake drops the connection.
    ///
    /// # Errors
    /// What the handshake said ([`is_impostor`] looks into it); `PermissionDenied` for a server whose key is not the
    /// pinned one; `InvalidInput` for a stream that is not plain TCP or a host that is no name and no address.
    pub async fn connect(&self, stream: Stream, host: &str) -> io::Result<Stream> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
        let Stream::Tcp(tcp) = stream else {
            return Err(invalid("TLS needs a plain TCP stream".to_owned()));
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| invalid(format!("{host} cannot be a TLS server name: {error}")))?;
        let connector = TlsConnector::from(self.kept.current());
        // Its state is some kilobytes: not part of every login's.
        let tls = Box::pin(connector.connect(name, tcp)).await?;
        let agreed = tls.get_ref().1.alpn_protocol();
        if let Some(wanted) = self.protocol.filter(|wanted| agreed != Some(wanted.as_bytes())) {
            return Err(invalid(format!("the server does not agree to speak {wanted} (ALPN)")));
        }
        let stream = Stream::Tls(Box::new(tls.into()));
        self.check_key(&stream, host).await?;
        Ok(stream)
    }

    /// Before the first byte of ours. A resumed session brings the certificate of its first handshake.
    async fn check_key(&self, stream: &Stream, host: &str) -> io::Result<()> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let port = stream.peer().map_or(0, |peer| peer.port());
        let key = stream.peer_certificate().and_then(key_pin).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the server's public key cannot be read")
        })?;
        let (pins, place) = (Arc::clone(&self.pins), format!("{host}:{port}"));
        let checked = tokio::task::spawn_blocking(move || pins.check(&place, key)).await;
        checked.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Whether a handshake failed because the server showed a certificate whose key it has not, or has another key than the
/// pinned one: that is no server without TLS, but somebody in the middle.
#[must_use]
pub fn is_impostor(error: &io::Error) -> bool {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return true;
    }
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    matches!(
        cause,
        Some(Error::InvalidCertificate(
            CertificateError::BadSignature
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        ))
    )
}

impl TlsVersions {
    fn list(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::Both => ALL_VERSIONS.to_vec(),
            Self::Older => vec![&TLS12],
            Self::Newest => vec![&TLS13],
        }
    }
}

fn client_config(settings: &TlsSettings) -> Result<Arc<ClientConfig>, TlsError> {
    // Named, never the process's default: another crate cannot change what we link.
    let provider = Arc::new(crypto::ring::default_provider());
    let chain = match settings.verify {
        Verify::None => None,
        Verify::Ca | Verify::Full => {
            let roots = Arc::new(files::roots(settings.roots.as_deref())?);
            let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
            Some(builder.build().map_err(|error| Error::General(error.to_string()))?)
        }
    };
    let verifier: Arc<dyn ServerCertVerifier> = match (settings.verify, chain) {
        (Verify::Full, Some(chain)) => chain,
        (_, chain) => Arc::new(Lenient { chain, provider: Arc::clone(&provider) }),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&settings.handshake.versions.list())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &settings.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = identity.read()?;
            let shown = builder.with_client_auth_cert(chain, key);
            shown.map_err(|error| identity.refused(&error))?
        }
    };
    config.enable_sni = settings.handshake.naming == Naming::Told;
    config.alpn_protocols = settings.protocol.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
