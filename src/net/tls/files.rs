//! PEM files: roots to trust, certificates to show and their keys.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// Who we are: the files of a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// PEM file with the certificate, and those between it and its root behind it.
    pub certificate: PathBuf,
    /// PEM file with its private key, without a password.
    pub key: PathBuf,
}

impl Identity {
    pub(super) fn files(&self) -> [PathBuf; 2] {
        [self.certificate.clone(), self.key.clone()]
    }

    pub(super) fn read(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| TlsError::Key {
            path: self.key.clone(),
            message: error.to_string(),
        })?;
        Ok((chain, key))
    }

    /// That rustls does not take the pair.
    pub(super) fn refused(&self, error: &rustls::Error) -> TlsError {
        TlsError::Key { path: self.key.clone(), message: error.to_string() }
    }
}

/// The roots in `file`, or the system's.
pub(super) fn roots(file: Option<&Path>) -> Result<RootCertStore, TlsError> {
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
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong(path, &error))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, &error))?;
    let read: Result<Vec<_>, _> = read.collect();
    let certificates = read.map_err(|error| wrong(path, &error))?;
    if certificates.is_empty() {
        return Err(wrong(path, &"it holds no certificate"));
    }
    Ok(certificates)
}

fn wrong(path: &Path, error: &dyn Display) -> TlsError {
    TlsError::Certificates { path: path.to_owned(), message: error.to_string() }
}
