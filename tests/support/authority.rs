//! A certificate authority for one test, and the files of what it issues.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use tempfile::TempDir;

use super::kept;

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate and its key, as PEM and as files.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temp dir");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("our own directory");
        Self { issuer, directory }
    }

    /// The PEM file with the root.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// For a server on this machine.
    pub fn server(&self) -> Issued {
        self.issue("server", &["localhost", "127.0.0.1"])
    }

    /// For a client with this name.
    pub fn client(&self, name: &str) -> Issued {
        self.issue(name, &[])
    }

    fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |kind: &str| self.directory.path().join(format!("{name}-{kind}.pem"));
        let issued = Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            certificate_file: file("cert"),
            key_file: file("key"),
        };
        kept::key(&issued.key);
        issued.write();
        issued
    }
}

impl Issued {
    /// Puts the texts into the files; libpq wants the key for us alone.
    pub fn write(&self) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(&self.certificate_file, &self.certificate).expect("our own directory");
        std::fs::write(&self.key_file, &self.key).expect("our own directory");
        let alone = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&self.key_file, alone).expect("our own file");
    }
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a temp path is UTF-8")
}
