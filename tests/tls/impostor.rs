//! Somebody in the middle who has the server's certificate, which everybody can get, and not its key.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tidegate::net::key_pin;
use tidegate::postgres::exchange::Status;
use tidegate::postgres::message::{
    ErrorFields, authentication_ok, error_frame, ready, ssl_request,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::authority::{Authority, Issued, text};
use crate::upstream::{NEGOTIATIONS, prepared, reach};

/// What clients have told it, of which nothing is meant for it.
type Heard = Arc<Mutex<Vec<&'static str>>>;

/// Plays a Postgres server on a port of its own.
struct Impostor {
    address: SocketAddr,
    heard: Heard,
    task: tokio::task::JoinHandle<()>,
}

/// Presents a certificate with a key that need not be its own: rustls would not build that from files.
#[derive(Debug)]
struct Present(Arc<CertifiedKey>);

impl ResolvesServerCert for Present {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl Impostor {
    async fn start(certificate: &Issued, key: &Issued) -> Self {
        let chain = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.key.as_bytes()).unwrap();
        let provider = ring::default_provider();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let shown = Arc::new(CertifiedKey::new(vec![chain], key));
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Present(shown)));
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Heard::default());
        let ours = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _peer) = listener.accept().await.unwrap();
                tokio::spawn(play(tcp, acceptor.clone(), Arc::clone(&ours)));
            }
        });
        Self { address, heard, task }
    }

    fn take_heard(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn play(mut tcp: TcpStream, acceptor: TlsAcceptor, heard: Heard) {
    let note = |what| heard.lock().unwrap().push(what);
    let mut first = [0; 8];
    tcp.peek(&mut first).await.unwrap();
    if first[..] == ssl_request()[..] {
        tcp.read_exact(&mut first).await.unwrap();
        tcp.write_all(b"S").await.unwrap();
    } else if first[0] != 0x16 {
        return note("a startup packet without encryption");
    }
    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
    let mut words = [0; 512];
    if tls.read(&mut words).await.is_ok_and(|bytes| bytes > 0) {
        note("a startup packet");
        let _gone = tls.write_all(&[authentication_ok(), ready(Status::Idle)].concat()).await;
        let _gone = tls.flush().await;
    }
}

#[tokio::test]
async fn a_copied_certificate_opens_nothing() {
    let ours = Authority::new();
    let (server, thief) = (ours.server(), ours.client("thief"));
    let pin = key_pin(&CertificateDer::from_pem_slice(server.certificate.as_bytes()).unwrap());
    let pin = pin.unwrap().to_string();
    let true_server = Impostor::start(&server, &server).await;
    let impostor = Impostor::start(&server, &thief).await;
    let root = format!("sslrootcert={}", text(&ours.root()));
    for sslmode in ["prefer", "require", "verify-ca", "verify-full"] {
        for negotiation in NEGOTIATIONS {
            for variables in [&[][..], &[("TIDEGATE_POSTGRES_PIN", pin.as_str())]] {
                let root = if sslmode.starts_with("verify") { &root } else { "" };
                let url = |address: SocketAddr| {
                    let options = format!("sslmode={sslmode}&sslnegotiation={negotiation}&{root}");
                    format!("postgres://app:secret@{address}/app?{options}")
                };
                if (sslmode, negotiation) == ("prefer", "direct") {
                    assert!(prepared(&url(impostor.address), variables).is_none());
                    continue;
                }
                let row = format!("{sslmode} {negotiation} {variables:?}");
                let entered = reach(&prepared(&url(true_server.address), variables).unwrap()).await;
                assert!(entered.is_ok(), "{row}: {entered:?}");
                assert_eq!(true_server.take_heard(), ["a startup packet"], "{row}");
                let refused = reach(&prepared(&url(impostor.address), variables).unwrap()).await;
                assert_eq!(refused.unwrap_err().code, "tls", "{row}");
                assert_eq!(impostor.take_heard(), Vec::<&str>::new(), "{row}");
            }
        }
    }
}

#[tokio::test]
async fn a_key_is_trusted_on_first_use_and_no_other_after_it() {
    let ours = Authority::new();
    let (first, second) = (ours.server(), ours.client("second"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pins");
    let variables = [("TIDEGATE_POSTGRES_PIN_FILE", text(&file))];
    let server = Impostor::start(&first, &first).await;
    for sslmode in ["prefer", "require"] {
        let url = format!("postgres://app:secret@{}/app?sslmode={sslmode}", server.address);
        assert!(reach(&prepared(&url, &variables).unwrap()).await.is_ok());
        let lines = std::fs::read_to_string(&file).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert!(lines.starts_with(&format!("{} sha256//", server.address)), "{lines}");
    }
    // Another key, rightly held, where the first one was.
    let other = Impostor::start(&second, &second).await;
    let lines = std::fs::read_to_string(&file).unwrap();
    let lines = lines.replace(&server.address.to_string(), &other.address.to_string());
    std::fs::write(&file, lines).unwrap();
    for sslmode in ["prefer", "require"] {
        let url = format!("postgres://app:secret@{}/app?sslmode={sslmode}", other.address);
        let refused = reach(&prepared(&url, &variables).unwrap()).await.unwrap_err();
        assert!(refused.message.contains("another public key"), "{}", refused.message);
        assert!(!refused.message.contains("secret"), "{}", refused.message);
        assert_eq!(other.take_heard(), Vec::<&str>::new());
    }
}

/// Whoever names a key does not speak to somebody who has no TLS at all.
#[tokio::test]
async fn a_pin_leaves_no_way_around_encryption() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        for answer in [b"N".to_vec(), error_frame(&ErrorFields::fatal("57P03", "no"))] {
            let (mut tcp, _peer) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            tcp.read_exact(&mut request).await.unwrap();
            tcp.write_all(&answer).await.unwrap();
            let mut more = Vec::new();
            // Its end may be a reset, as the answer lay unread.
            let _end = tcp.read_to_end(&mut more).await;
            assert_eq!(more, b"", "no word without encryption");
        }
    });
    let pin = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let url = format!("postgres://app:secret@{address}/app?sslmode=prefer");
    let prepared = prepared(&url, &[("TIDEGATE_POSTGRES_PIN", pin)]).unwrap();
    for _ in 0..2 {
        assert_eq!(reach(&prepared).await.unwrap_err().code, "tls");
    }
    server.await.unwrap();
}
