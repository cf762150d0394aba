//! One connection to the Redis server, as the pool keeps it: it knows its database and protocol, so whoever takes it
//! sends only the difference.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::greeting::{Proto, ServerFacts};
use super::login::{LOGIN_REPLY_LIMIT, Login, Step};
use super::scripts::Scripts;
use super::wire::{Reply, ReplyScanner, write_command};
use crate::config::{Current, RedisUpstream};
use crate::net::{self, Stream, Tls, TlsError};
use crate::pool::{Backend, CheckoutError, CheckoutErrorKind, Connect, ConnectError, Fault, Pool};

/// A pool of Redis connections.
pub type RedisPool = Pool<RedisConnect>;

/// What a command expects of the connection it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Database number.
    pub db: u32,
    /// Protocol of the replies.
    pub proto: Proto,
}

/// Opens connections to one upstream.
#[derive(Debug)]
pub struct RedisConnect {
    way: Current<Way>,
    facts: Arc<FactsCell>,
    scripts: Arc<Scripts>,
}

/// How to reach an upstream and log in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Way {
    upstream: Arc<RedisUpstream>,
    tls: Option<Tls>,
}

impl Way {
    /// Prepares TLS, which may read certificates.
    ///
    /// # Errors
    /// When the root certificates cannot be had.
    pub fn new(upstream: Arc<RedisUpstream>) -> Result<Self, TlsError> {
        let tls = upstream.tls().as_ref().map(Tls::new).transpose()?;
        Ok(Self { upstream, tls })
    }

    /// Reads the files about TLS again; blocking. The next connections are made with what they say.
    ///
    /// # Errors
    /// What is wrong with them; what was read before stays.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), Tls::reload)
    }

    /// Where it leads.
    #[must_use]
    pub fn upstream(&self) -> &Arc<RedisUpstream> {
        &self.upstream
    }
}

/// What the server said of itself at the last login; empty until then.
#[derive(Debug, Default)]
pub struct FactsCell(Mutex<Option<Arc<ServerFacts>>>);

impl FactsCell {
    /// The facts, if any server was reached yet.
    pub fn get(&self) -> Option<Arc<ServerFacts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that the server has database `db`.
    pub fn note_database(&self, db: u32) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(facts) = slot.as_mut()
            && facts.known_db < db
        {
            Arc::make_mut(facts).known_db = db;
        }
    }

    fn learn(&self, mut facts: ServerFacts) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        facts.known_db = slot.as_ref().map_or(0, |known| known.known_db);
        *slot = Some(Arc::new(facts));
    }
}

impl Key {
    /// Of a connection that is new.
    pub const FRESH: Self = Self { db: 0, proto: Proto::Resp2 };
}

impl RedisConnect {
    /// For one upstream; every login is noted in `facts`, and tells the server of `scripts`.
    #[must_use]
    pub fn new(way: Way, facts: Arc<FactsCell>, scripts: Arc<Scripts>) -> Self {
        Self { way: Current::new(way), facts, scripts }
    }

    /// Changes how connections are made from now on.
    pub fn redial(&self, way: Way) {
        self.way.set(way);
    }

    /// As [`Way::reload_tls`], of the present one.
    ///
    /// # Errors
    /// As there.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.way.get().reload_tls()
    }

    async fn open(&self) -> Result<RedisBackend, ConnectError> {
        let way = self.way.get();
        let (host, port) = (&way.upstream.host, way.upstream.port);
        let mut stream =
            net::connect(host, port).await.map_err(|error| unreachable("io", &error))?;
        if let (Some(tls), net::Host::Tcp(name)) = (&way.tls, host) {
            stream = tls.connect(stream, name).await.map_err(|error| unreachable("tls", &error))?;
        }
        let password = way.upstream.password.as_ref().map(|secret| secret.expose());
        let (mut login, mut words) = Login::begin(way.upstream.user.as_deref(), password);
        loop {
            stream.write_all(&words).await.map_err(|error| unreachable("io", &error))?;
            stream.flush().await.map_err(|error| unreachable("io", &error))?;
            let reply = read_reply(&mut stream).await?;
            match login.take(&reply) {
                Step::Send(next) => words = next,
                Step::Done(facts) => {
                    let role = if facts.role == "master" { Role::Master } else { Role::Replica };
                    self.facts.learn(facts);
                    self.load_scripts(&mut stream).await?;
                    let id = login.id();
                    return Ok(RedisBackend { stream, key: Key::FRESH, role, id });
                }
                Step::Failed(refusal) => return Err(refused(refusal.code, refusal.message)),
            }
        }
    }
}

impl RedisConnect {
    /// The server may be another one than the last, or a restarted one. What it refuses its clients will see for themselves.
    async fn load_scripts(&self, stream: &mut Stream) -> Result<(), ConnectError> {
        for text in self.scripts.all() {
            let mut words = Vec::with_capacity(text.len() + 64);
            write_command(&[&b"SCRIPT"[..], b"LOAD", &text], &mut words);
            stream.write_all(&words).await.map_err(|error| unreachable("io", &error))?;
            stream.flush().await.map_err(|error| unreachable("io", &error))?;
            let _sha_or_refusal = read_reply(stream).await?;
        }
        Ok(())
    }
}

/// What a client is told when there is no connection for its command, which was not sent then. With `TRYAGAIN` it may try again,
/// and some client libraries do; with `ERR` somebody has to change something first.
#[must_use]
pub fn checkout_error(error: &CheckoutError) -> String {
    let word = match error.kind {
        CheckoutErrorKind::TimedOut
        | CheckoutErrorKind::QueueFull
        | CheckoutErrorKind::Unreachable { .. }
        | CheckoutErrorKind::Refused { .. } => "TRYAGAIN",
        CheckoutErrorKind::Rejected { .. } | CheckoutErrorKind::Closed => "ERR",
    };
    format!("{word} tidegate: {error}")
}

impl Connect for RedisConnect {
    type Backend = RedisBackend;

    fn connect(&self) -> impl Future<Output = Result<RedisBackend, ConnectError>> + Send {
        Box::pin(self.open())
    }
}

async fn read_reply(stream: &mut Stream) -> Result<Vec<u8>, ConnectError> {
    let mut reply = Vec::new();
    let mut scanner = ReplyScanner::default();
    let mut byte = [0; 512];
    loop {
        let n = stream.read(&mut byte).await.map_err(|error| unreachable("io", &error))?;
        if n == 0 {
            let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(unreachable("io", &error));
        }
        let (used, state) = scanner.advance(&byte[..n]).map_err(|error| ConnectError {
            fault: Fault::Rejected,
            code: "protocol".into(),
            message: error.to_string(),
        })?;
        reply.extend_from_slice(&byte[..used]);
        if state != Reply::Partial {
            return Ok(reply);
        }
        if reply.len() > LOGIN_REPLY_LIMIT {
            return Err(refused("ERR".into(), "the answer to the login is too long".into()));
        }
    }
}

fn unreachable(code: &str, error: &std::io::Error) -> ConnectError {
    ConnectError { fault: Fault::Unreachable, code: code.into(), message: error.to_string() }
}

fn refused(code: String, message: String) -> ConnectError {
    let fault = match code.as_str() {
        _ if message.contains("max number of clients") => Fault::Refused,
        "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" => Fault::Unreachable,
        _ => Fault::Rejected,
    };
    ConnectError { fault, code, message }
}

/// A connection, logged in, with nothing owed.
#[derive(Debug)]
pub struct RedisBackend {
    /// The bytes.
    pub stream: Stream,
    /// What it is set to.
    pub key: Key,
    /// What the server was when the connection was opened.
    pub role: Role,
    /// Its number at the server, if that has told it.
    pub id: Option<u64>,
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Master,
    /// It only reads.
    Replica,
}

impl RedisBackend {
    /// Writes the commands that bring it to `key` and tells how many replies (none of them pushes) they will have.
    /// [`RedisBackend::key`] is to be set when all of them came and none was an error.
    pub fn write_switch(&self, key: Key, out: &mut Vec<u8>) -> u32 {
        let mut replies = 0;
        if self.key.proto != key.proto {
            write_command(&["HELLO", &key.proto.number().to_string()], out);
            replies += 1;
        }
        if self.key.db != key.db {
            write_command(&["SELECT", &key.db.to_string()], out);
            replies += 1;
        }
        replies
    }
}

impl Backend for RedisBackend {
    /// A connection at rest has nothing to say: end of stream and bytes both mean that it is of no use.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0; 64];
        self.stream.poll_read_into(cx, &mut byte).map(|_| ())
    }
}
