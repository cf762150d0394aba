//! The admin port: the status page, /status.json, /metrics, /healthz, /readyz over HTTP/1.1.
//!
//! Everything a stranger could hold on to is bounded: connections, headers, the time to send them, the life of a connection.

mod host;
mod page;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinHandle;

use crate::config::AdminSettings;
use crate::lifecycle::Drain;
use crate::metrics::Metrics;
use crate::net::{Listener, Stream};
use crate::pool::Reachability;
use crate::status::Watcher;

use host::Names;
use page::Page;

/// Tells, for each pool, whether its server could be reached.
pub type Readiness = Arc<dyn Fn() -> Vec<(String, Reachability)> + Send + Sync>;

/// What one may ask of the admin port at most.
#[derive(Clone, Copy, Debug)]
pub struct AdminLimits {
    /// Connections at once; the oldest makes room for one more.
    pub client_limit: usize,
    /// Longest time for a request's headers to arrive, and for a silent connection.
    pub header_timeout: Duration,
    /// Most headers of a request.
    pub header_limit: usize,
    /// Most bytes of a request's headers; hyper needs at least 8192.
    pub header_bytes: usize,
}

impl From<&AdminSettings> for AdminLimits {
    fn from(settings: &AdminSettings) -> Self {
        Self {
            client_limit: settings.client_limit,
            header_timeout: settings.header_timeout,
            header_limit: settings.header_limit,
            header_bytes: settings.header_bytes,
        }
    }
}

impl Default for AdminLimits {
    fn default() -> Self {
        Self::from(&AdminSettings::default())
    }
}

/// Longest life of a connection, whatever it does: a scraper that keeps one comes back.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// hyper's least buffer.
const HEADER_BYTES_LEAST: usize = 8192;
/// Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON_TYPE: &str = "application/json";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What the admin port tells about.
#[derive(Clone)]
pub struct Admin {
    /// For /metrics.
    pub metrics: Arc<Metrics>,
    /// For /readyz.
    pub readiness: Readiness,
    /// For /status.json.
    pub watcher: Watcher,
    /// Serving ends with its deadline; /readyz says no from its start.
    pub drain: Drain,
}

/// Serves the admin port until the drain's deadline, until another process takes it over, or until the listening socket fails.
pub async fn serve(listener: Listener, admin: Admin, limits: AdminLimits) {
    let drain = admin.drain.clone();
    let (mut end, mut taken) =
        (std::pin::pin!(drain.deadline()), std::pin::pin!(drain.handed_over()));
    let names = Names::of(listener.local_addr().ok());
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = &mut end => return,
            () = &mut taken => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "the admin port is closed: its listening socket failed");
                return;
            }
        };
        make_room(&mut open, limits.client_limit);
        open.push_back(tokio::spawn(converse(stream, admin.clone(), limits, names)));
    }
}

/// Ends the oldest connection if there are as many as may be: silent ones must not keep the platform from learning that we
/// live.
fn make_room(open: &mut VecDeque<JoinHandle<()>>, limit: usize) {
    open.retain(|connection| !connection.is_finished());
    while open.len() >= limit.max(1) {
        let Some(oldest) = open.pop_front() else { return };
        tracing::warn!(limit, "too many admin connections at once: the oldest is closed");
        oldest.abort();
    }
}

async fn converse(stream: Stream, admin: Admin, limits: AdminLimits, names: Names) {
    let drain = admin.drain.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let uri = request.uri();
        let response = if names.allow(request.headers()) {
            admin.answer(request.method(), uri.path(), uri.query().unwrap_or_default())
        } else {
            let text = "not answered by this name; ask for localhost or an address\n".to_owned();
            response(StatusCode::MISDIRECTED_REQUEST, TEXT_TYPE, text)
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.header_limit)
        .max_buf_size(limits.header_bytes.max(HEADER_BYTES_LEAST))
        .serve_connection(TokioIo::new(stream), answer);
    // A client that sends nonsense or hangs up is its own affair.
    tokio::select! {
        _ = connection => {}
        () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
        () = drain.deadline() => {}
    }
}

impl Admin {
    /// The answer to a request; hyper leaves the body out for HEAD.
    fn answer(&self, method: &Method, path: &str, query: &str) -> Response<Full<Bytes>> {
        if !matches!(path, "/" | "/metrics" | "/healthz" | "/readyz" | "/status.json") {
            let text =
                "not found; there are /, /status.json, /metrics, /healthz and /readyz\n".to_owned();
            return response(StatusCode::NOT_FOUND, TEXT_TYPE, text);
        }
        if method != Method::GET && method != Method::HEAD {
            let text = "only GET and HEAD are answered here\n".to_owned();
            let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT_TYPE, text);
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match path {
            "/metrics" => self.metrics(),
            "/readyz" => self.readiness(),
            "/" => Page::new().answer(),
            "/status.json" => self.status(since(query)),
            _ => response(StatusCode::OK, TEXT_TYPE, "ok\n".to_owned()),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.metrics.render() {
            Ok(text) => response(StatusCode::OK, METRICS_TYPE, text),
            Err(error) => {
                let text = format!("metrics cannot be written down: {error}\n");
                response(StatusCode::INTERNAL_SERVER_ERROR, TEXT_TYPE, text)
            }
        }
    }

    /// Of the pools' history only what is newer than `since_ms`: who asks every other second has the rest.
    fn status(&self, since_ms: u64) -> Response<Full<Bytes>> {
        let mut status = self.watcher.status();
        for pool in &mut status.pools {
            pool.history.retain(|sample| sample.at_ms > since_ms);
        }
        match serde_json::to_string(&status) {
            Ok(text) => response(StatusCode::OK, JSON_TYPE, text),
            Err(error) => {
                let text = format!("the status cannot be written down: {error}\n");
                response(StatusCode::INTERNAL_SERVER_ERROR, TEXT_TYPE, text)
            }
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let mut status = StatusCode::OK;
        let mut text = String::new();
        if self.drain.is_draining() {
            status = StatusCode::SERVICE_UNAVAILABLE;
            text.push_str("shutting down\n");
        }
        for (pool, reachability) in (self.readiness)() {
            // Writing to a string can't fail.
            let _ = match reachability {
                Reachability::NotTried => writeln!(text, "{pool}: not tried yet"),
                Reachability::Reachable => writeln!(text, "{pool}: reachable"),
                Reachability::Failing { code, message } => {
                    status = StatusCode::SERVICE_UNAVAILABLE;
                    let message = message.replace(['\r', '\n'], " ");
                    writeln!(text, "{pool}: failing: {message} ({code})")
                }
            };
        }
        if text.is_empty() {
            text.push_str("listening\n");
        }
        response(status, TEXT_TYPE, text)
    }
}

/// What `since=` says in a query; from the start if it says nothing that can be read.
fn since(query: &str) -> u64 {
    let said = query.split('&').find_map(|pair| pair.strip_prefix("since="));
    said.and_then(|ms| ms.parse().ok()).unwrap_or(0)
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{DrainTrigger, Newcomers};
    use crate::metrics::Protocol;
    use crate::status::{ClientStatus, PoolStatus, Sample, Status, Watch};
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    struct Port {
        addr: SocketAddr,
        pools: Arc<Mutex<Vec<(String, Reachability)>>>,
        trigger: DrainTrigger,
        task: tokio::task::JoinHandle<()>,
    }

    /// Sees one pool, sampled twice.
    struct Lookout;

    impl Watch for Lookout {
        fn status(&self) -> Status {
            let history = [10, 20].map(|at_ms| Sample { at_ms, ..Sample::default() }).to_vec();
            let pools = vec![PoolStatus { history, ..PoolStatus::default() }];
            Status { pools, ..Status::default() }
        }

        fn clients(&self) -> Vec<ClientStatus> {
            Vec::new()
        }
    }

    async fn port(limits: AdminLimits) -> Port {
        let mut listener = None;
        for port in 21_270..21_370 {
            if let Ok(bound) = crate::net::bind(([127, 0, 0, 1], port).into()).await {
                listener = Some(bound);
                break;
            }
        }
        let listener = listener.expect("no free port");
        let addr = listener.local_addr().unwrap();
        let metrics = Metrics::new().unwrap();
        metrics.pool(Protocol::Redis, "REDIS_URL").checkouts.inc();
        let pools = Arc::new(Mutex::new(Vec::new()));
        let readiness: Readiness = {
            let pools = Arc::clone(&pools);
            Arc::new(move || pools.lock().unwrap().clone())
        };
        let (trigger, drain) = Drain::new();
        let admin = Admin { metrics, readiness, watcher: Arc::new(Lookout), drain };
        let task = tokio::spawn(serve(listener, admin, limits));
        Port { addr, pools, trigger, task }
    }

    async fn ask(port: &Port, request: &str) -> String {
        let mut client = TcpStream::connect(port.addr).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(port: &Port, method: &str, path: &str) -> String {
        ask(
            port,
            &format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"),
        )
        .await
    }

    #[tokio::test]
    async fn it_answers_what_it_knows_and_refuses_the_rest() {
        let port = port(AdminLimits::default()).await;
        let foreign =
            ask(&port, "GET / HTTP/1.1\r\nhost: evil.example.com\r\nconnection: close\r\n\r\n");
        assert!(foreign.await.starts_with("HTTP/1.1 421 "));
        let metrics = get(&port, "GET", "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("version=0.0.4"), "{metrics}");
        assert!(
            metrics.contains("tidegate_checkouts_total{pool=\"REDIS_URL\",protocol=\"redis\"} 1")
        );
        assert!(get(&port, "GET", "/healthz").await.ends_with("\r\n\r\nok\n"));
        let head = get(&port, "HEAD", "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(get(&port, "GET", "/other").await.starts_with("HTTP/1.1 404"));
        let refusal = get(&port, "POST", "/metrics").await;
        assert!(refusal.starts_with("HTTP/1.1 405"), "{refusal}");
        assert!(refusal.contains("allow: GET, HEAD"), "{refusal}");
        assert!(ask(&port, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    }

    #[tokio::test]
    async fn the_page_and_what_it_asks_for() {
        let port = port(AdminLimits::default()).await;
        let page = get(&port, "GET", "/").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("text/html"), "{page}");
        assert!(page.contains("content-security-policy: default-src 'none';"), "{page}");
        assert!(get(&port, "POST", "/").await.starts_with("HTTP/1.1 405"));
        for (query, samples) in [("", 2), ("?since=10", 1), ("?x&since=20", 0), ("?since=-1", 2)] {
            let answer = get(&port, "GET", &format!("/status.json{query}")).await;
            let (_, json) = answer.split_once("\r\n\r\n").unwrap();
            let status: Status = serde_json::from_str(json).unwrap();
            assert_eq!(status.pools[0].history.len(), samples, "{query}");
        }
    }

    /// Nothing can be changed here, whatever is asked.
    #[tokio::test]
    async fn it_is_for_reading_alone() {
        let port = port(AdminLimits::default()).await;
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE"] {
            for path in ["/", "/status.json", "/metrics", "/healthz", "/readyz", "/nothing"] {
                let answer = get(&port, method, path).await;
                let refused = ["405", "404", "400"];
                let code = answer.split(' ').nth(1).unwrap_or_default();
                assert!(refused.contains(&code), "{method} {path}: {answer}");
            }
        }
    }

    /// However much of it comes: nobody reads it.
    #[tokio::test]
    async fn a_body_is_not_waited_for_and_a_long_header_not_kept() {
        let port = port(AdminLimits::default()).await;
        for body in ["content-length: 1000000000000", "transfer-encoding: chunked"] {
            let request = format!("POST /metrics HTTP/1.1\r\nhost: localhost\r\n{body}\r\n\r\n");
            let answer = ask(&port, &request).await;
            assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        }
        for request in [
            format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000)),
            format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(20_000)),
        ] {
            let mut client = TcpStream::connect(port.addr).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // What was sent and not read may end it with a reset.
            let _reset = client.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
        assert!(get(&port, "GET", "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn readiness_names_each_pool() {
        let port = port(AdminLimits::default()).await;
        assert!(get(&port, "GET", "/readyz").await.starts_with("HTTP/1.1 200"));
        *port.pools.lock().unwrap() = vec![
            ("A".to_owned(), Reachability::NotTried),
            ("B".to_owned(), Reachability::Reachable),
        ];
        let ready = get(&port, "GET", "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(ready.ends_with("A: not tried yet\nB: reachable\n"), "{ready}");
        let failing =
            Reachability::Failing { code: "io".to_owned(), message: "no\nroute".to_owned() };
        port.pools.lock().unwrap().push(("C".to_owned(), failing));
        let ready = get(&port, "GET", "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
        assert!(ready.ends_with("C: failing: no route (io)\n"), "{ready}");
    }

    #[tokio::test]
    async fn it_is_not_ready_while_draining_and_ends_at_the_deadline() {
        let port = port(AdminLimits::default()).await;
        port.trigger.start(Duration::from_millis(300), Newcomers::LeftToOthers);
        assert!(get(&port, "GET", "/readyz").await.starts_with("HTTP/1.1 503"));
        port.task.await.unwrap();
    }

    #[tokio::test]
    async fn slow_wide_and_many_clients_are_turned_away() {
        let header_timeout = Duration::from_millis(200);
        let limits = AdminLimits { client_limit: 1, header_timeout, ..AdminLimits::default() };
        let port = port(limits).await;
        let mut slow = TcpStream::connect(port.addr).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        // The second one takes the only place.
        let second = get(&port, "GET", "/healthz").await;
        assert!(second.starts_with("HTTP/1.1 200"), "{second}");
        let mut answer = Vec::new();
        let _ = slow.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "the oldest made room");
        // Left alone, a slow one has its time.
        let mut slow = TcpStream::connect(port.addr).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        slow.read_to_end(&mut answer).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        let header = "x: y\r\n".repeat(100);
        let request = format!("GET /healthz HTTP/1.1\r\n{header}\r\n");
        let wide = ask(&port, &request).await;
        assert!(wide.starts_with("HTTP/1.1 431"), "{wide}");
    }
}
