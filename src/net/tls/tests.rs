//! Every way to verify against every kind of certificate, over a real socket.

use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::net::{Host, bind, connect};

struct Authority {
    pem: tempfile::NamedTempFile,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let pem = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(pem.path(), certificate.pem()).unwrap();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), private(&key))
    }
}

fn self_signed(name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().der().clone(), private(&key))
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// Presents a certificate with a key that need not be its own.
#[derive(Debug)]
struct Present(Arc<CertifiedKey>);

impl ResolvesServerCert for Present {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Shakes hands with a server that presents `certificate` and signs with `key`; on success echoes.
async fn handshake(
    settings: &TlsSettings,
    certificate: CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<(), String> {
    let provider = crypto::ring::default_provider();
    let key = provider.key_provider.load_private_key(key.clone_key()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Present(Arc::new(CertifiedKey::new(vec![certificate], key)))));
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (Stream::Tcp(tcp), _peer) = listener.accept().await.unwrap() else { return };
        let Ok(mut tls) = TlsAcceptor::from(Arc::new(server)).accept(tcp).await else { return };
        let mut word = [0; 4];
        if tls.read_exact(&mut word).await.is_ok() {
            let _gone = tls.write_all(&word).await;
            let _gone = tls.flush().await;
        }
    });
    let tls = Tls::new(settings).map_err(|error| error.to_string())?;
    let tcp = connect(&Host::Tcp("127.0.0.1".into()), port).await.unwrap();
    let outcome = match tls.connect(tcp, "db.example.com").await {
        Err(error) => Err(error.to_string()),
        Ok(mut stream) => {
            stream.write_all(b"ping").await.unwrap();
            stream.flush().await.unwrap();
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"ping");
            assert!(stream.peer().is_some());
            Ok(())
        }
    };
    echo.abort();
    outcome
}

#[tokio::test]
async fn each_way_to_verify_accepts_and_refuses_what_libpq_would() {
    let (ours, others) = (Authority::new(), Authority::new());
    // verify, certificate, good?
    let cases = [
        (Verify::None, self_signed("db.example.com"), true),
        (Verify::None, self_signed("elsewhere.example.com"), true),
        (Verify::None, others.issue("db.example.com"), true),
        (Verify::Ca, ours.issue("db.example.com"), true),
        (Verify::Ca, ours.issue("elsewhere.example.com"), true),
        (Verify::Ca, others.issue("db.example.com"), false),
        (Verify::Ca, self_signed("db.example.com"), false),
        (Verify::Full, ours.issue("db.example.com"), true),
        (Verify::Full, ours.issue("elsewhere.example.com"), false),
        (Verify::Full, others.issue("db.example.com"), false),
        (Verify::Full, self_signed("db.example.com"), false),
    ];
    for (row, (verify, (certificate, key), good)) in cases.into_iter().enumerate() {
        let settings = TlsSettings::verifying(verify, Some(ours.pem.path().to_owned()));
        let outcome = handshake(&settings, certificate, &key, rustls::ALL_VERSIONS).await;
        assert_eq!(outcome.is_ok(), good, "row {row}, {verify:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn nobody_gets_in_with_a_copied_certificate() {
    let ours = Authority::new();
    let (certificate, _key) = ours.issue("db.example.com");
    let (_, thiefs_key) = self_signed("db.example.com");
    for version in rustls::ALL_VERSIONS {
        for verify in [Verify::None, Verify::Ca, Verify::Full] {
            let settings = TlsSettings::verifying(verify, Some(ours.pem.path().to_owned()));
            let outcome = handshake(&settings, certificate.clone(), &thiefs_key, &[version]).await;
            assert!(outcome.is_err(), "{verify:?} {version:?} took a signature of another key");
        }
    }
}

#[test]
fn roots_that_are_no_roots_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "not a certificate").unwrap();
    for path in [file.path().to_owned(), PathBuf::from("/nonexistent/roots.pem")] {
        let settings = TlsSettings::verifying(Verify::Full, Some(path.clone()));
        let error = Tls::new(&settings).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        let lenient = TlsSettings::verifying(Verify::None, Some(path));
        assert!(Tls::new(&lenient).is_ok(), "roots are not read when nothing is verified");
    }
}
