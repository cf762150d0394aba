//! Every way to verify against every kind of certificate, over a real socket.

use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use rustls::HandshakeKind;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
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
            let pinned = Pins { keys: key_pin(&certificate).into_iter().collect(), file: None };
            let settings = TlsSettings { pins: pinned, ..settings };
            let outcome = handshake(&settings, certificate.clone(), &thiefs_key, &[version]).await;
            assert!(outcome.is_err(), "{verify:?} {version:?} took a pinned key's copy");
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

#[tokio::test]
async fn a_pinned_key_counts_in_every_mode() {
    let ours = Authority::new();
    for verify in [Verify::None, Verify::Ca, Verify::Full] {
        let settings = TlsSettings::verifying(verify, Some(ours.pem.path().to_owned()));
        let (certificate, key) = ours.issue("db.example.com");
        let (renewed, other_key) = ours.issue("db.example.com");
        let keys = vec![key_pin(&certificate).unwrap()];
        let pinned = TlsSettings { pins: Pins { keys, file: None }, ..settings.clone() };
        let versions = rustls::ALL_VERSIONS;
        assert_eq!(handshake(&pinned, certificate.clone(), &key, versions).await, Ok(()));
        let refused = handshake(&pinned, renewed.clone(), &other_key, versions).await;
        assert!(refused.unwrap_err().contains("another public key"), "{verify:?}");
        assert_eq!(handshake(&settings, renewed, &other_key, versions).await, Ok(()));
    }
}

/// A server of ours on a port of its own that says how it knows each client, by one byte more.
struct Greeter {
    port: u16,
    task: tokio::task::JoinHandle<()>,
    tls: ListenerTls,
}

impl Greeter {
    async fn start(settings: &ListenerTlsSettings) -> Self {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = ListenerTls::new(settings).unwrap();
        let ours = tls.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _peer) = listener.accept().await.unwrap();
                let Ok(encrypted) = ours.accept(stream).await else { continue };
                let mut stream = encrypted.stream;
                let name = stream.peer_certificate().and_then(common_name).unwrap_or_default();
                let words = format!("{name} {:?}\n", encrypted.agreed);
                let _gone = stream.write_all(words.as_bytes()).await;
                let _gone = stream.shutdown().await;
            }
        });
        Self { port, task, tls }
    }

    async fn greet(&self, settings: &TlsSettings) -> Result<(String, Stream), String> {
        self.meet(&Tls::new(settings).unwrap()).await
    }

    async fn meet(&self, tls: &Tls) -> Result<(String, Stream), String> {
        let tcp = connect(&Host::Tcp("127.0.0.1".into()), self.port).await.unwrap();
        let stream = tls.connect(tcp, "localhost").await;
        let mut stream = stream.map_err(|error| error.to_string())?;
        let mut words = String::new();
        let read = stream.read_to_string(&mut words).await;
        read.map_err(|error| error.to_string())?;
        Ok((words, stream))
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes a certificate for `name` and its key.
fn write_identity(directory: &std::path::Path, authority: &Authority, name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let identity =
        Identity { certificate: directory.join("cert.pem"), key: directory.join("key.pem") };
    std::fs::write(&identity.certificate, certificate.pem()).unwrap();
    std::fs::write(&identity.key, key.serialize_pem()).unwrap();
    identity
}

#[tokio::test]
async fn a_made_certificate_encrypts_and_is_nobodys() {
    let greeter = Greeter::start(&ListenerTlsSettings::default()).await;
    let any = TlsSettings::verifying(Verify::None, None);
    let (words, stream) = greeter.greet(&any).await.unwrap();
    assert_eq!(words, " No\n");
    let certificate = stream.peer_certificate().unwrap();
    assert_eq!(common_name(certificate).as_deref(), Some("tidegate"));
    assert_eq!(server_end_point(certificate).map(|hash| hash.len()), Some(32));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem(certificate)).unwrap();
    let trusting = TlsSettings::verifying(Verify::Full, Some(file.path().to_owned()));
    assert!(greeter.greet(&trusting).await.is_ok(), "it bears the names of this machine");
    let ours = Authority::new();
    let strict = TlsSettings::verifying(Verify::Ca, Some(ours.pem.path().to_owned()));
    assert!(greeter.greet(&strict).await.is_err());
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[tokio::test]
async fn versions_and_the_name_are_as_asked() {
    let greeter = Greeter::start(&ListenerTlsSettings::default()).await;
    for (versions, version) in [
        (TlsVersions::Both, rustls::ProtocolVersion::TLSv1_3),
        (TlsVersions::Older, rustls::ProtocolVersion::TLSv1_2),
        (TlsVersions::Newest, rustls::ProtocolVersion::TLSv1_3),
    ] {
        for naming in [Naming::Told, Naming::Kept] {
            let handshake = Handshake { versions, naming };
            let settings = TlsSettings { handshake, ..TlsSettings::verifying(Verify::None, None) };
            let config = client_config(&settings).unwrap();
            assert_eq!(config.enable_sni, naming == Naming::Told);
            let (_, stream) = greeter.greet(&settings).await.unwrap();
            let Stream::Tls(tls) = stream else { panic!("it is encrypted") };
            assert_eq!(tls.get_ref().1.protocol_version(), Some(version));
        }
    }
}

#[tokio::test]
async fn a_protocol_is_agreed_on_or_there_is_no_handshake() {
    let settings = ListenerTlsSettings { protocol: Some("postgresql"), ..Default::default() };
    let greeter = Greeter::start(&settings).await;
    let none = TlsSettings::verifying(Verify::None, None);
    let named = TlsSettings { protocol: Some("postgresql"), ..none.clone() };
    let other = TlsSettings { protocol: Some("http/1.1"), ..none.clone() };
    assert_eq!(greeter.greet(&none).await.unwrap().0, " No\n");
    assert_eq!(greeter.greet(&named).await.unwrap().0, " Yes\n");
    assert!(greeter.greet(&other).await.is_err());
    let silent = Greeter::start(&ListenerTlsSettings::default()).await;
    let refused = silent.greet(&named).await.unwrap_err();
    assert!(refused.contains("does not agree"), "{refused}");
}

#[tokio::test]
async fn a_client_must_show_a_certificate_where_it_must() {
    let (ours, others) = (Authority::new(), Authority::new());
    let client_ca = Some(ours.pem.path().to_owned());
    let greeter = Greeter::start(&ListenerTlsSettings { client_ca, ..Default::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let nobody = TlsSettings::verifying(Verify::None, None);
    assert!(greeter.greet(&nobody).await.is_err());
    let identity = Some(write_identity(directory.path(), &ours, "app"));
    let app = TlsSettings { identity, ..nobody.clone() };
    assert_eq!(greeter.greet(&app).await.unwrap().0, "app No\n");
    let tls = Tls::new(&app).unwrap();
    // Another certificate in the same files is shown when they have been read again, and not before.
    let _identity = write_identity(directory.path(), &others, "app");
    assert!(greeter.meet(&tls).await.is_ok());
    tls.reload().unwrap();
    assert!(greeter.meet(&tls).await.is_err());
    std::fs::write(directory.path().join("key.pem"), "garbage").unwrap();
    let told = tls.reload().unwrap_err().to_string();
    assert!(told.contains("key.pem") && !told.contains("garbage"), "{told}");
}

#[tokio::test]
async fn a_new_certificate_is_shown_when_it_has_been_read() {
    let ours = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let identity = write_identity(directory.path(), &ours, "first");
    let certificate = Certificate::Files(identity);
    let greeter = Greeter::start(&ListenerTlsSettings { certificate, ..Default::default() }).await;
    let any = TlsSettings::verifying(Verify::None, None);
    let shown = async || {
        let (_, stream) = greeter.greet(&any).await.unwrap();
        common_name(stream.peer_certificate().unwrap()).unwrap()
    };
    assert_eq!(shown().await, "first");
    // The key does not belong to the certificate: the old pair stays.
    let other = tempfile::tempdir().unwrap();
    let second = write_identity(other.path(), &ours, "second");
    std::fs::copy(&second.certificate, directory.path().join("cert.pem")).unwrap();
    assert!(greeter.tls.reload().is_err());
    assert_eq!(shown().await, "first");
    std::fs::copy(&second.key, directory.path().join("key.pem")).unwrap();
    greeter.tls.reload().unwrap();
    assert_eq!(shown().await, "second");
}

#[tokio::test]
async fn sessions_are_resumed_and_their_server_stays_known() {
    for version in rustls::ALL_VERSIONS {
        let (certificate, key) = self_signed("localhost");
        let config =
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key)
                .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            loop {
                let (Stream::Tcp(tcp), _peer) = listener.accept().await.unwrap() else { return };
                let mut tls = acceptor.accept(tcp).await.unwrap();
                tls.write_all(b"x").await.unwrap();
                tls.shutdown().await.unwrap();
            }
        });
        let tls = Tls::new(&TlsSettings::verifying(Verify::None, None)).unwrap();
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            // Clones are one: each database of a server, each cancel request.
            let tcp = connect(&Host::Tcp("127.0.0.1".into()), port).await.unwrap();
            let mut stream = tls.clone().connect(tcp, "localhost").await.unwrap();
            let mut words = Vec::new();
            stream.read_to_end(&mut words).await.unwrap();
            let Stream::Tls(inner) = &stream else { panic!("plain") };
            assert_eq!(inner.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
            assert_eq!(stream.peer_certificate(), Some(&certificate));
        }
        server.abort();
    }
}
