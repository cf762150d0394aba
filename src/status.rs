//! What there is to see of the program at one moment, as plain data: for the status page, `top`, the console and the
//! samples in the log. Holds no secret and no literal of anybody's statements.

mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use verdict::{Level, Verdict, span};

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// tidegate's own.
    pub version: String,
    /// When it was looked at: milliseconds since 1970.
    pub at_ms: u64,
    /// How long the process has lived.
    pub uptime_seconds: f64,
    /// Whether it shuts down.
    pub draining: bool,
    /// One for each upstream and, with `any`, each user and database.
    pub pools: Vec<PoolStatus>,
    /// What deserved a word lately, the latest first.
    pub events: Vec<Event>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// `postgres` or `redis`.
    pub protocol: String,
    /// Its name: the variable its URL came from.
    pub name: String,
    /// How it stands, in words.
    pub verdict: Verdict,
    /// Where its server is.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// Who it logs in as; empty for Redis without users.
    pub user: String,
    /// The database; a number for Redis.
    pub database: String,
    /// `transaction`, `session` or `statement`; `lanes` for Redis.
    pub mode: String,
    /// Most server connections now.
    pub limit: usize,
    /// Most server connections as it was set; more than `limit` while the server gives no more.
    pub limit_configured: usize,
    /// Why `limit` is below what was set, in the server's words.
    pub limit_reason: Option<String>,
    /// Whether nobody gets a connection for now, because somebody wants it so.
    pub paused: bool,
    /// Connections kept open though nobody needs them.
    pub idle_min: usize,
    /// Its server connections.
    pub servers: ServerCounts,
    /// Its clients.
    pub clients: ClientCounts,
    /// Who waits.
    pub queue: QueueStatus,
    /// Counted since the start.
    pub totals: Totals,
    /// Whether its server can be reached.
    pub reach: Reach,
    /// What the server says of its own limits, as far as it was asked.
    pub plan: Vec<PlanLimit>,
    /// Seconds until the connections run out if use goes on growing as it does; none while it doesn't grow.
    pub exhaustion_seconds: Option<f64>,
    /// Pins since the start, by reason.
    pub pins: BTreeMap<String, u64>,
    /// Who has a connection now; the longest first.
    pub holders: Vec<Holder>,
    /// The last quarter of an hour, the oldest first.
    pub history: Vec<Sample>,
    /// Redis: its lanes.
    pub lanes: Vec<LaneStatus>,
    /// Redis: its namespaces.
    pub namespaces: Vec<NamespaceStatus>,
}

/// Server connections by what they do; they add up to all there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCounts {
    /// Ready to use.
    pub idle: usize,
    /// Lent, and running a statement.
    pub active: usize,
    /// Lent, and waiting for the client inside a transaction.
    pub idle_in_transaction: usize,
    /// Kept by one client across transactions.
    pub pinned: usize,
    /// Connecting and logging in.
    pub opening: usize,
}

impl ServerCounts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        self.idle + self.active + self.idle_in_transaction + self.pinned + self.opening
    }

    /// Those that serve a client now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.active + self.idle_in_transaction + self.pinned
    }
}

/// Clients by what they do; they add up to all there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCounts {
    /// Between two transactions.
    pub idle: usize,
    /// With a server connection.
    pub active: usize,
    /// Waiting for one.
    pub waiting: usize,
    /// Not yet logged in.
    pub greeting: usize,
}

/// The queue for a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Waiters now.
    pub length: usize,
    /// Most waiters.
    pub limit: usize,
    /// Milliseconds the first of them has waited; 0 if nobody waits.
    pub oldest_wait_ms: f64,
    /// Longest wait.
    pub wait_limit_ms: u64,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Clients that logged in.
    pub logins: u64,
    /// Transactions ended.
    pub transactions: u64,
    /// Queries or commands.
    pub requests: u64,
    /// Server connections lent.
    pub checkouts: u64,
    /// Those that had to wait.
    pub waits: u64,
    /// Waits in vain, and refusals because the queue was full.
    pub rejections: u64,
    /// Bytes read from clients.
    pub received_bytes: u64,
    /// Bytes written to clients.
    pub sent_bytes: u64,
    /// Time of all waits together.
    pub waiting_seconds: f64,
    /// Time during which somebody waited and no connection could be had.
    pub saturated_seconds: f64,
    /// Time connections ran statements.
    pub query_seconds: f64,
    /// Time connections waited for their client inside a transaction.
    pub idle_in_transaction_seconds: f64,
    /// Time connections lay pinned and unused.
    pub pinned_seconds: f64,
}

/// Whether a server can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Reach {
    /// Nobody has needed it yet.
    #[default]
    NotTried,
    /// The latest attempt succeeded.
    Reachable,
    /// The latest attempt failed.
    Failing {
        /// The server's code, or `io`, `dns`, `tls`, `timeout`.
        code: String,
        /// Its words.
        message: String,
    },
}

/// One limit of the server's on connections, and how many there are, whoever's they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanLimit {
    /// Of what: `role`, `database`, `server`.
    pub scope: String,
    /// Connections now.
    pub used: u64,
    /// Most of them.
    pub limit: u64,
}

/// A client that has a server connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// The number the client was told at login.
    pub client: u64,
    /// How it names itself; may be empty.
    pub application_name: String,
    /// Its user.
    pub user: String,
    /// Its database.
    pub database: String,
    /// Where it comes from.
    pub address: String,
    /// The server's process, or connection number.
    pub server_pid: i64,
    /// `query`, `idle_in_transaction` or `pinned`.
    pub phase: String,
    /// How long it has been in that phase.
    pub phase_seconds: f64,
    /// How long it has had the connection.
    pub held_seconds: f64,
    /// What pins the connection, if it is pinned.
    pub pin: Option<String>,
    /// The latest statement, without literals; empty if none was seen.
    pub statement: String,
    /// Whether it keeps the connection unused for longer than `leak_ms`.
    pub leaks: bool,
}

/// A pool at one moment of the past, or over a few seconds before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When: milliseconds since 1970.
    pub at_ms: u64,
    /// Connections in use.
    pub in_use: usize,
    /// Most connections allowed.
    pub limit: usize,
    /// Most waiters at once since the sample before.
    pub queue_max: usize,
    /// Which part of the time since the sample before the pool was saturated: 0 to 1.
    pub saturated: f64,
}

/// A lane of Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// What travels on it.
    pub name: String,
    /// Runs of commands that wait to be sent.
    pub batches: usize,
    /// Their bytes.
    pub pending_bytes: usize,
}

/// A namespace of Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStatus {
    /// Its name.
    pub name: String,
    /// Its clients.
    pub clients: u64,
    /// Commands since the start.
    pub commands: u64,
    /// Bytes both ways since the start.
    pub bytes: u64,
    /// Its keys, estimated.
    pub keys: u64,
    /// Their bytes in Redis, estimated.
    pub memory_bytes: u64,
}

/// Something that deserved a word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened last: milliseconds since 1970.
    pub at_ms: u64,
    /// When it happened first.
    pub first_ms: u64,
    /// How often since then.
    pub count: u64,
    /// Whose.
    pub pool: String,
    /// A short fixed word, such as `wait_timeout`.
    pub kind: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A client, for the console.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The pool's name.
    pub pool: String,
    /// As a holder is described; what needs a connection is empty without one.
    pub holder: Holder,
    /// `idle`, `active`, `waiting`.
    pub state: String,
    /// When it logged in: milliseconds since 1970.
    pub since_ms: u64,
    /// How long it has been in its state.
    pub state_seconds: f64,
    /// Our end of its connection.
    pub local_address: String,
}

/// A server connection, for the console.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// The pool's name.
    pub pool: String,
    /// Its user.
    pub user: String,
    /// Its database.
    pub database: String,
    /// The server's process.
    pub server_pid: i64,
    /// When it was opened: milliseconds since 1970.
    pub since_ms: u64,
    /// Where the server is, and our end of the connection; empty over a unix socket.
    pub address: String,
    /// See `address`.
    pub local_address: String,
    /// How it is encrypted; empty if it is not.
    pub encryption: String,
    /// Who has it, if anybody has.
    pub holder: Option<Holder>,
}

/// What can be asked of the services. Built by the composition root.
pub trait Watch: Send + Sync {
    /// Everything, the clients without a connection left out.
    fn status(&self) -> Status;
    /// Every Postgres client.
    fn clients(&self) -> Vec<ClientStatus>;
}

/// As it is handed down.
pub type Watcher = Arc<dyn Watch>;
