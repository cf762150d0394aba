//! One POST over a connection of its own: to whom, with which headers, and what is heard of the answer.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::config::RemoteWrite;
use crate::net::{self, Host, Stream, Tls, TlsError};

/// Most bytes that are read of what a refusal says.
const WORDS_BYTES: usize = 256;
/// Shorter words of a path are names.
const KEY_LEAST: usize = 16;
/// Nobody says so many characters of a secret by chance.
const BEGINNING: usize = 8;
/// Most bytes of the answer's head.
const HEAD_BYTES: usize = 16 * 1024;

/// Where requests go.
pub(super) struct Endpoint {
    host: Host,
    name: String,
    port: u16,
    tls: Option<Tls>,
    path: hyper::Uri,
    headers: HeaderMap,
    /// How each word of it that may be a secret begins.
    secrets: Vec<String>,
}

/// What was heard.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// What `Retry-After` asks for.
    pub(super) retry_after: Option<Duration>,
    /// The beginning of what it says, in one line; empty where it may say a secret again.
    pub(super) words: String,
}

/// Why nothing was heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    /// A connection that doesn't speak HTTP, or broke.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl Endpoint {
    pub(super) fn new(target: &RemoteWrite) -> Result<Self, TlsError> {
        let host = Host::Tcp(target.host.clone());
        let tls = target.tls.as_ref().map(Tls::new).transpose()?;
        // The settings have looked at all of these: nothing is left out.
        let mut headers = fixed_headers();
        if let Ok(value) = HeaderValue::try_from(format!("{host}:{}", target.port)) {
            headers.insert(HOST, value);
        }
        let secret = target.authorization.as_ref();
        if let Some(Ok(mut value)) = secret.map(|secret| HeaderValue::try_from(secret.expose())) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let path = hyper::Uri::try_from(target.path.expose()).unwrap_or_default();
        let (name, port, secrets) = (target.host.clone(), target.port, beginnings(target));
        Ok(Self { host, name, port, tls, path, headers, secrets })
    }

    pub(super) fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// Sends `body` and reads the answer. Without a deadline: that is the caller's. A dropped call drops the connection.
    pub(super) async fn post(&self, body: Bytes) -> Result<Answer, SendError> {
        let stream = self.connect().await?;
        let handshake =
            http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await?;
        let exchange = async {
            let response = sender.send_request(self.request(body)).await?;
            let mut answer = Answer::of(response).await;
            // Some say again what they were sent.
            if self.secrets.iter().any(|secret| answer.words.contains(secret)) {
                answer.words.clear();
            }
            Ok(answer)
        };
        // The connection moves the bytes; it may end, with the answer read, before the exchange has looked at it.
        let carried = async {
            let _heard_of_by_the_exchange = connection.await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            answer = exchange => answer,
            never = carried => match never {},
        }
    }

    async fn connect(&self) -> std::io::Result<Stream> {
        let stream = net::connect(&self.host, self.port).await?;
        match &self.tls {
            None => Ok(stream),
            Some(tls) => tls.connect(stream, &self.name).await,
        }
    }

    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

fn fixed_headers() -> HeaderMap {
    const AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
    headers.insert("x-prometheus-remote-write-version", HeaderValue::from_static("0.1.0"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    // The next sending is far away: nobody should keep this for us.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers
}

/// Of the credentials, and of what is long enough in path and query to be a key. The beginning: a text may be cut off in it.
fn beginnings(target: &RemoteWrite) -> Vec<String> {
    let credentials = target.authorization.iter().filter_map(|all| all.expose().rsplit(' ').next());
    let keys = target.path.expose().split(['/', '?', '&', '=']);
    let keys = keys.filter(|word| word.len() >= KEY_LEAST);
    credentials.chain(keys).map(|word| word.chars().take(BEGINNING).collect()).collect()
}

impl Answer {
    async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let secret = matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let words =
            if head.status.is_success() || secret { String::new() } else { words(body).await };
        Self {
            status: head.status,
            retry_after: retry_after.and_then(|text| wait_of(text, SystemTime::now())),
            words,
        }
    }
}

/// As many as fit, of one line.
async fn words(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < WORDS_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(WORDS_BYTES - bytes.len())]);
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    text.split(char::is_control).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// `Retry-After`: seconds, or a date.
fn wait_of(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// Takes one request, and answers it so; what was asked.
    async fn exchange(answer: &str) -> (Result<Answer, SendError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = RemoteWrite {
            host: "127.0.0.1".to_owned(),
            port,
            path: Secret::new("/api/v1/write?key=k"),
            authorization: Some(Secret::new("Bearer t0ken-of-mine")),
            tls: None,
        };
        let endpoint = Endpoint::new(&target).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"body") {
                stream.read_buf(&mut asked).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap().to_ascii_lowercase()
        };
        tokio::join!(endpoint.post(Bytes::from_static(b"body")), server)
    }

    #[tokio::test]
    async fn a_request_says_what_it_holds() {
        let (answer, asked) = exchange("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(answer.unwrap().status, 204);
        assert!(asked.starts_with("post /api/v1/write?key=k http/1.1\r\n"), "{asked}");
        for header in [
            "host: 127.0.0.1:",
            "content-type: application/x-protobuf",
            "content-encoding: snappy",
            "x-prometheus-remote-write-version: 0.1.0",
            "authorization: bearer t0ken-of-mine",
            "content-length: 4",
        ] {
            assert!(asked.contains(&format!("\r\n{header}")), "{header}: {asked}");
        }
    }

    /// Whatever its status: a proxy's page of errors may show the request.
    #[tokio::test]
    async fn an_answer_that_repeats_the_credentials_is_not_told() {
        for (said, told) in
            [("who is t0ken-of-mine?", ""), ("t0k", "t0k"), ("bad write", "bad write")]
        {
            let head = format!("HTTP/1.1 400 No\r\nContent-Length: {}\r\n\r\n", said.len());
            let (answer, _) = exchange(&format!("{head}{said}")).await;
            assert_eq!(answer.unwrap().words, told);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_heard_but_no_secret() {
        let long = "x".repeat(10_000);
        let body = format!("out of\norder{long}");
        let head = format!("Retry-After: 7\r\nContent-Length: {}\r\n\r\n", body.len());
        let (answer, _) = exchange(&format!("HTTP/1.1 400 No\r\n{head}{body}")).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status.as_u16(), answer.words.len()), (400, WORDS_BYTES));
        assert!(answer.words.starts_with("out of order"), "{}", answer.words);
        assert_eq!(answer.retry_after, Some(Duration::from_secs(7)));
        let head = "HTTP/1.1 401 No\r\nContent-Length: 12\r\n\r\n";
        let (answer, _) = exchange(&format!("{head}who is t0ken")).await;
        assert_eq!(answer.unwrap().words, "");
    }

    /// Over TLS, to a server whose certificate is for `name`, and is its own root: what became of it.
    async fn over_tls(name: &str) -> Result<Answer, SendError> {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let roots = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(roots.path(), certificate.pem()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let verify = crate::net::Verify::Full;
        let tls = crate::net::TlsSettings::verifying(verify, Some(roots.path().to_owned()));
        let target = RemoteWrite {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            path: Secret::new("/"),
            authorization: None,
            tls: Some(tls),
        };
        let endpoint = Endpoint::new(&target).unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut asked = Vec::new();
            while !asked.ends_with(b"body") {
                stream.read_buf(&mut asked).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
        };
        tokio::join!(endpoint.post(Bytes::from_static(b"body")), serve).0
    }

    #[tokio::test]
    async fn over_tls_the_right_server_alone_gets_it() {
        assert_eq!(over_tls("127.0.0.1").await.unwrap().status, 200);
        assert!(matches!(over_tls("other.example.com").await, Err(SendError::Connect(_))));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        assert!(matches!(exchange("SSH-2.0-x\r\n").await.0, Err(SendError::Http(_))));
        assert!(matches!(exchange("").await.0, Err(SendError::Http(_))));
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 08:00:00 GMT").unwrap();
        assert_eq!(wait_of("120", now), Some(Duration::from_secs(120)));
        let date = "Fri, 27 Nov 2026 08:00:30 GMT";
        assert_eq!(wait_of(date, now), Some(Duration::from_secs(30)));
        let past = "Fri, 27 Nov 2026 07:00:00 GMT";
        assert_eq!(wait_of(past, now), Some(Duration::ZERO));
        assert_eq!(wait_of("soon", now), None);
    }
}
