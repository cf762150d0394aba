//! TLS towards a server, by rustls with the ring provider.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_rustls::TlsConnector;

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

/// Why a [`Tls`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file with the roots cannot be read or holds no certificate.
    #[error("cannot take root certificates from {}: {message}; it must be a readable PEM file",
        path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
    /// rustls refuses the combination.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

/// A ready TLS client configuration; cheap to clone.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
}

impl Tls {
    /// Reads the roots and prepares the configuration; blocking file reads, so do it at start.
    ///
    /// # Errors
    /// When the roots cannot be had.
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        // Named, never the process's default: another crate cannot change what we link.
        let provider = Arc::new(crypto::ring::default_provider());
        let chain = match settings.verify {
            Verify::None => None,
            Verify::Ca | Verify::Full => {
                let roots = Arc::new(read_roots(settings.roots.as_deref())?);
                let builder =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
                Some(builder.build().map_err(|error| Error::General(error.to_string()))?)
            }
        };
        let verifier: Arc<dyn ServerCertVerifier> = match (settings.verify, chain) {
            (Verify::Full, Some(chain)) => chain,
            (_, chain) => Arc::new(Lenient { chain, provider: Arc::clone(&provider) }),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Shakes hands over `stream`, which must be plain TCP; `host` is the name for SNI and, with
    /// [`Verify::Full`], the one the certificate must bear. The deadline is the caller's.
    /// Not cancel safe: a dropped handshake drops the connection.
    ///
    /// # Errors
    /// What the handshake said; `InvalidInput` for a stream that is not plain TCP or a host that is
    /// no name and no address.
    pub async fn connect(&self, stream: Stream, host: &str) -> io::Result<Stream> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
        let Stream::Tcp(tcp) = stream else {
            return Err(invalid("TLS needs a plain TCP stream".to_owned()));
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| invalid(format!("{host} cannot be a TLS server name: {error}")))?;
        let tls = self.connector.connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(tls.into())))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn read_roots(file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = file else {
        let found = rustls_native_certs::load_native_certs();
        // Odd certificates in the system's store are passed over, as every TLS client does.
        let (added, _odd) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(TlsError::NoSystemRoots { message: errors.join("; ") });
        }
        return Ok(roots);
    };
    let wrong = |message: String| TlsError::Roots { path: path.to_owned(), message };
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Asks less of the certificate than rustls does, and nothing less of the handshake: without a check
/// of its signature anybody who holds the public certificate could play the server.
#[derive(Debug)]
struct Lenient {
    /// Checks the chain ([`Verify::Ca`]); nothing is checked without it ([`Verify::None`]).
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // rustls looks at the name last, when the chain has been found good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
