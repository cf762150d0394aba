//! What the settings mean: plain values, checked, with every default applied. Nothing here knows
//! where a value came from, and nothing here may be wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{ChildPassword, Host, Hosts, Secret, SocketSettings, Users};
use crate::net::{
    Certificate, Handshake, Identity, ListenerTls, ListenerTlsSettings, Pins, TlsError,
    TlsSettings, Vigilance,
};
use crate::postgres::login::Methods;
use crate::redis::namespace::Namespace;

/// Everything the program was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Threads that carry traffic.
    pub workers: usize,
    /// How to log.
    pub log: LogSettings,
    /// The admin port.
    pub admin: AdminSettings,
    /// What is sent out, for those who cannot come in.
    pub push: PushSettings,
    /// Postgres, when there is an upstream for it.
    pub postgres: Option<PostgresSettings>,
    /// Redis, when there is an upstream for it.
    pub redis: Option<RedisSettings>,
    /// The unix sockets beside the listeners' addresses.
    pub sockets: SocketSettings,
    /// Longest time to finish owed work once a drain has started.
    pub drain: Duration,
    /// For how long `serve` goes on as before once another process has taken its listeners over; the drain follows.
    pub handover: Duration,
    /// Longest time `run` serves the wrapped command after SIGTERM was passed on; the drain follows.
    pub child_grace: Duration,
    /// Which password the wrapped command's URLs have.
    pub child_password: ChildPassword,
    /// Most failed logins from one address within a minute; nought: no limit.
    pub login_failures_per_minute: usize,
    /// How often the files that settings are read from are looked at; nought: never.
    pub reload_check: Duration,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The least important level shown.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// Levels of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing at all.
    Off,
    /// Something failed.
    Error,
    /// Something is about to.
    Warn,
    /// The life of the process.
    Info,
    /// The life of a session.
    Debug,
    /// Everything.
    Trace,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` pairs.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether `listen` was written by somebody: then a taken port is an error.
    pub explicit: bool,
    /// Most connections at once.
    pub client_limit: usize,
    /// Longest time for a request's headers to arrive.
    pub header_timeout: Duration,
    /// Most headers of a request.
    pub header_limit: usize,
    /// Most bytes of a request's headers.
    pub header_bytes: usize,
}

/// What is sent out by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushSettings {
    /// Who speaks: `source=` in the log, the label `instance` elsewhere.
    pub source: String,
    /// How often a line for each pool is logged; nought: never.
    pub log_every: Duration,
    /// Where all metrics are sent, if anywhere.
    pub remote_write: Option<RemoteWrite>,
    /// How often they are sent.
    pub remote_write_every: Duration,
    /// Longest time for one sending, connecting included.
    pub remote_write_timeout: Duration,
}

/// What takes Prometheus remote write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteWrite {
    /// Where it listens: a name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What the request names: the path and the query, which may hold a key.
    pub path: Secret,
    /// The value of the header `Authorization`.
    pub authorization: Option<Secret>,
    /// How to encrypt; `None`: not at all.
    pub tls: Option<TlsSettings>,
}

/// Who may use a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// The client must know the upstream URL's password.
    Password,
    /// Everybody who reaches the listener; loopback listeners only.
    Trust,
}

/// What becomes of the passwords that clients begin with when others replace them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstPasswords {
    /// They open for a while, as others do.
    #[default]
    Expire,
    /// They open for as long as the process lives: the wrapped command has them in its environment.
    Stay,
}

/// Encryption towards the clients of a side's listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerEncryption {
    /// Who encrypts.
    pub mode: TlsMode,
    /// What clients are shown.
    pub certificate: Certificate,
    /// The roots of the certificates that clients must show, if they must.
    pub client_ca: Option<PathBuf>,
}

/// Whether clients may encrypt, or must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// They can't.
    Off,
    /// They may.
    #[default]
    On,
    /// They must.
    Require,
}

/// What a client's certificate is good for; the words are those of `pg_hba.conf`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificate {
    /// It must lead to the root (`clientcert=verify-ca`).
    #[default]
    Any,
    /// Its common name must be the user's name, too (`clientcert=verify-full`).
    OfUser,
    /// Then no password is asked for (the method `cert`).
    InsteadOfPassword,
}

impl ListenerEncryption {
    /// Reads or makes the certificate, if clients may encrypt. `protocol` is what they may name (ALPN). Blocking.
    ///
    /// # Errors
    /// When certificate, key or roots cannot be had.
    pub fn tls(&self, protocol: Option<&'static str>) -> Result<Option<ListenerTls>, TlsError> {
        self.wanted(protocol).as_ref().map(ListenerTls::new).transpose()
    }

    /// The files that are read for it.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.wanted(None).map(|wanted| wanted.files()).unwrap_or_default()
    }

    fn wanted(&self, protocol: Option<&'static str>) -> Option<ListenerTlsSettings> {
        let (certificate, client_ca) = (self.certificate.clone(), self.client_ca.clone());
        (self.mode != TlsMode::Off).then_some(ListenerTlsSettings {
            certificate,
            client_ca,
            protocol,
        })
    }
}

/// For how long a client keeps a Postgres connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// For a transaction, or while something of its session lies on the connection.
    #[default]
    Transaction,
    /// From its first request until it leaves.
    Session,
    /// For one statement: transaction blocks are refused.
    Statement,
}

/// When the server is asked what a session has left on its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// Behind transactions whose words may have left something.
    #[default]
    Suspects,
    /// Behind every transaction.
    Always,
}

/// How a Postgres connection passes from one session to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passing {
    /// What is known to differ is changed.
    #[default]
    Difference,
    /// All that a session can leave is taken off first, whether anybody knows of it or not.
    Strict,
}

/// Who may use the console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleUsers {
    /// Whoever may use the pool of a URL, from this machine.
    #[default]
    OfUrls,
    /// These, from anywhere if they have a password.
    Named(Vec<String>),
}

/// Which user of which database has which mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolModes {
    /// The first that fits counts.
    pub rules: Vec<PoolModeRule>,
    /// When none fits.
    pub default: PoolMode,
}

/// One rule of [`PoolModes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolModeRule {
    /// Whose; `None`: everybody's.
    pub user: Option<String>,
    /// Where; `None`: everywhere.
    pub database: Option<String>,
    /// How.
    pub mode: PoolMode,
}

impl PoolModes {
    /// The mode for this user of this database.
    #[must_use]
    pub fn of(&self, user: &str, database: &str) -> PoolMode {
        let fits = |pattern: &Option<String>, name| pattern.as_deref().is_none_or(|p| p == name);
        let mut rules = self.rules.iter();
        let rule = rules.find(|rule| fits(&rule.user, user) && fits(&rule.database, database));
        rule.map_or(self.default, |rule| rule.mode)
    }
}

/// The Postgres side.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresSettings {
    /// One listener, and one more for each upstream that would be ambiguous on the first.
    pub listeners: Vec<PostgresListener>,
    /// Most connections to one upstream server, shared by all its pools.
    pub pool_size: usize,
    /// How the connections are portioned out.
    pub portions: Portions,
    /// Longest wait for a connection.
    pub wait: Duration,
    /// Most clients that may wait for one pool.
    pub queue_limit: usize,
    /// Longest time to open a connection, login included.
    pub connect_timeout: Duration,
    /// Age at which a connection is closed and replaced.
    pub server_lifetime: Duration,
    /// Idle time after which a connection is closed.
    pub server_idle: Duration,
    /// Longest greeting of a client.
    pub login_timeout: Duration,
    /// For how long a password that was replaced still lets clients in.
    pub password_overlap: Duration,
    /// Serve any database and user name of the URL's server.
    pub any: bool,
    /// Encryption of the listeners.
    pub encryption: ListenerEncryption,
    /// What a client's certificate is good for.
    pub client_certificate: ClientCertificate,
    /// Who may use it.
    pub auth: Auth,
    /// Who may use it besides, with `any`.
    pub users: Arc<Users>,
    /// With `any`: the query that brings the verifier of a user whom nobody else knows.
    pub auth_query: Option<String>,
    /// For how long its answer is remembered.
    pub auth_query_kept: Duration,
    /// Who may use the console.
    pub console: ConsoleUsers,
    /// For how long clients keep a connection.
    pub pool_modes: PoolModes,
    /// When the server is asked what a session has left.
    pub probe: Probe,
    /// How connections pass between sessions.
    pub passing: Passing,
    /// Everything else that has a bound.
    pub limits: PostgresLimits,
}

/// How the connections to Postgres are portioned out among databases, users and applications, and over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portions {
    /// Most connections to one database of a server; nought: as many as to the server.
    pub database_limit: usize,
    /// Most connections of one user to a server; nought: as many as to the server.
    pub user_limit: usize,
    /// Most connections to all servers together, shared out evenly; at least one each. Nought: no limit.
    pub total_limit: usize,
    /// Which part of a pool's connections clients with one `application_name` may have at once, in per cent.
    pub application_share_percent: usize,
    /// Connections kept open though nobody needs them, for each pool of the configuration.
    pub idle_min: usize,
    /// Connections beyond `pool_size` for those who have waited for `reserve_after`.
    pub reserve_size: usize,
    /// How long they must have waited.
    pub reserve_after: Duration,
}

impl Default for Portions {
    fn default() -> Self {
        Self {
            database_limit: 0,
            user_limit: 0,
            total_limit: 0,
            application_share_percent: 100,
            idle_min: 0,
            reserve_size: 0,
            reserve_after: Duration::from_secs(3),
        }
    }
}

/// Bounds of the Postgres side. Bytes and counts, unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresLimits {
    /// Most clients at once, all listeners together.
    pub client_limit: usize,
    /// Most clients that are not logged in.
    pub login_limit: usize,
    /// Most connections to one server that may be pinned to sessions at once; 0: all but one.
    pub pinned_limit: usize,
    /// Longest startup packet.
    pub startup_bytes: usize,
    /// Longest frame before a client is authenticated.
    pub login_frame_bytes: usize,
    /// Longest frame that must be understood whole (a Parse, a Query); others pass at any length.
    pub understood_frame_bytes: usize,
    /// Most bytes kept of a client that waits for a connection.
    pub parked_bytes: usize,
    /// Most prepared statements on one connection; the least recently used is closed.
    pub statements_per_backend: usize,
    /// Most prepared statements of one client.
    pub statements_per_client: usize,
    /// Most distinct prepared statements known in all.
    pub statements_total: usize,
    /// Most bytes of distinct prepared statements known in all.
    pub statements_total_bytes: usize,
    /// Most distinct combinations of session settings known in all.
    pub settings_combinations: usize,
    /// Most pools made on demand with `any`.
    pub any_pools: usize,
    /// Longest clean-up of a connection whose client has gone, before it is closed instead.
    pub cleanup_timeout: Duration,
    /// Longest time a client may leave bytes unread while it holds a connection.
    pub slow_reader: Duration,
    /// Longest statement; nought: no limit. The server is asked to cancel it.
    pub query_timeout: Duration,
    /// Longest transaction; nought: no limit.
    pub transaction_timeout: Duration,
    /// Longest time that a client says nothing inside a transaction; nought: no limit.
    pub idle_transaction_timeout: Duration,
    /// Longest time that a client keeps a pinned connection unused; nought: no limit.
    pub pinned_timeout: Duration,
    /// Longest time that a client says nothing at all; nought: no limit.
    pub client_idle_timeout: Duration,
    /// After how long a client that keeps a connection unused is named; nought: never.
    pub leak: Duration,
    /// How long a statement may run before it is named; nought: for ever.
    pub slow: Duration,
    /// How often a server is asked how many connections it allows; nought: never.
    pub plan_every: Duration,
    /// For how long a session keeps its connection after it may have drawn from a sequence, once a session of its pool
    /// has called `currval()` or `lastval()`.
    pub sequence_hold: Duration,
}

/// One listening address and the upstreams reached through it, told apart by (user, database).
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether the port was written by somebody: then a taken port is an error.
    pub explicit: bool,
    /// What it leads to; never empty.
    pub upstreams: Vec<Arc<PostgresUpstream>>,
}

/// A Postgres server as one variable names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresUpstream {
    /// The variable's name: the pool's name in metrics, logs and errors.
    pub name: String,
    /// Where it may be.
    pub hosts: Hosts,
    /// How long each of them may take to connect and log in, if the URL says so (`connect_timeout`).
    pub connect_timeout: Option<Duration>,
    /// How connections to them notice that they have vanished.
    pub vigilance: Vigilance,
    /// The number of the user that a server behind a unix socket must run as (`requirepeer`).
    pub required_peer: Option<u32>,
    /// How it may ask who we are (`require_auth`).
    pub methods: Methods,
    /// Whether its sessions write.
    pub access: Access,
    /// The user to log in as.
    pub user: String,
    /// The user's password.
    pub password: Option<Secret>,
    /// The database.
    pub database: String,
    /// The other options of the URL's query, decoded, in order.
    pub options: Vec<(String, String)>,
    /// Whether and how to encrypt.
    pub sslmode: SslMode,
    /// PEM file with the roots to trust.
    pub sslrootcert: Option<PathBuf>,
    /// Which TLS will do, and whether it begins with the host's name.
    pub handshake: Handshake,
    /// How encryption begins.
    pub sslnegotiation: SslNegotiation,
    /// Whether the login is bound to the encryption.
    pub channel_binding: ChannelBinding,
    /// The certificate that is shown to the server (`sslcert`, `sslkey`).
    pub identity: Option<Identity>,
    /// Which public keys the server may have.
    pub pins: Pins,
}

/// Whether sessions write, where they don't say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// They may.
    #[default]
    Write,
    /// They only read (`postgres.read_only_urls`).
    Read,
}

/// libpq's `sslnegotiation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslNegotiation {
    /// After an SSLRequest.
    #[default]
    Postgres,
    /// With the first byte: Postgres 17 and later.
    Direct,
}

/// libpq's `channel_binding`: SCRAM-SHA-256-PLUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    #[default]
    Prefer,
    /// A login without it is refused.
    Require,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server has it.
    Prefer,
    /// TLS; any certificate.
    Require,
    /// TLS; the chain must end at a trusted root.
    VerifyCa,
    /// TLS; the chain must end at a trusted root, and the name must match.
    VerifyFull,
}

/// The Redis side.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisSettings {
    /// One listener for each upstream.
    pub listeners: Vec<RedisListener>,
    /// Most connections to one upstream server.
    pub pool_size: usize,
    /// Longest wait for a connection.
    pub wait: Duration,
    /// Most clients that may wait for one pool.
    pub queue_limit: usize,
    /// Longest time to open a connection, login included.
    pub connect_timeout: Duration,
    /// Age at which a connection is closed and replaced.
    pub server_lifetime: Duration,
    /// Idle time after which a connection is closed.
    pub server_idle: Duration,
    /// Longest greeting of a client.
    pub login_timeout: Duration,
    /// For how long a password that was replaced still lets clients in.
    pub password_overlap: Duration,
    /// Encryption of the listeners.
    pub encryption: ListenerEncryption,
    /// Who may use it.
    pub auth: Auth,
    /// Everything else that has a bound.
    pub limits: RedisLimits,
}

/// Bounds of the Redis side. Bytes and counts, unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisLimits {
    /// Most clients at once, all listeners together.
    pub client_limit: usize,
    /// Most clients that are not logged in.
    pub login_limit: usize,
    /// Longest frame before a client is authenticated.
    pub login_frame_bytes: usize,
    /// Longest frame that must be understood whole.
    pub understood_frame_bytes: usize,
    /// Longest bulk string a client may send.
    pub frame_bytes: usize,
    /// Most bytes of replies owed to one client that does not read.
    pub reply_bytes_per_client: usize,
    /// Most bytes of replies owed to all clients together.
    pub reply_bytes_total: usize,
    /// Longest time that others on a lane wait for a client that does not read and has as many bytes as it may.
    pub reply_stall: Duration,
    /// Most channels and patterns subscribed to, all clients together.
    pub subscription_limit: usize,
    /// Most commands of one client on their way.
    pub pipeline_depth: usize,
    /// Longest time to bring the replies it still awaits to a client that has closed its side.
    pub cleanup_timeout: Duration,
    /// Longest time a client may leave bytes unread while it holds a connection.
    pub slow_reader: Duration,
    /// How often the keys of namespaces are estimated; nought: never.
    pub namespace_census: Duration,
    /// How often a server is asked how many clients it allows; nought: never.
    pub plan_every: Duration,
}

/// One listening address and the upstream reached through it.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether the port was written by somebody: then a taken port is an error.
    pub explicit: bool,
    /// What it leads to.
    pub upstream: Arc<RedisUpstream>,
    /// The parts of it that some clients are bound to.
    pub namespaces: Vec<NamespaceSettings>,
    /// Which of them those have who come with the upstream's own credentials, or none.
    pub first_namespace: Option<usize>,
}

/// A part of a Redis, and who may come into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceSettings {
    /// What it is; its name is the user that clients give.
    pub namespace: Namespace,
    /// The password that they give with it.
    pub password: Secret,
    /// Where that comes from.
    pub origin: PasswordOrigin,
    /// Most clients at once.
    pub client_limit: usize,
    /// Most connections that its clients keep for themselves at once, if there is a bound.
    pub pinned_limit: Option<usize>,
    /// Most commands of all its clients together, if there is a bound.
    pub commands_per_second: Option<u32>,
}

/// Where a namespace's password comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordOrigin {
    /// Somebody wrote it down.
    Written,
    /// It was made at random: the wrapped command alone is told of it.
    Made,
}

/// A Redis server as one variable names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUpstream {
    /// The variable's name: the pool's name in metrics, logs and errors.
    pub name: String,
    /// Where it listens.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// The user of `AUTH user password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// The database number.
    pub database: u32,
    /// Whether and how to encrypt.
    pub tls: RedisTls,
    /// The certificate that is shown to the server.
    pub identity: Option<Identity>,
    /// Which public keys the server may have.
    pub pins: Pins,
}

/// Encryption towards Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisTls {
    /// `redis://`
    Off,
    /// `rediss://`
    On {
        /// Whether chain and name must be right; self-signed certificates are the rule at hosts.
        verify: bool,
        /// PEM file with the roots to trust.
        ca: Option<PathBuf>,
    },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            log: LogSettings { level: LogLevel::Info, format: LogFormat::Logfmt },
            admin: AdminSettings::default(),
            push: PushSettings::default(),
            postgres: None,
            redis: None,
            sockets: SocketSettings::default(),
            drain: Duration::from_secs(4),
            handover: Duration::from_secs(1),
            child_grace: Duration::from_secs(25),
            child_password: ChildPassword::default(),
            login_failures_per_minute: 60,
            reload_check: Duration::from_secs(5),
        }
    }
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9127)),
            explicit: false,
            client_limit: 32,
            header_timeout: Duration::from_secs(5),
            header_limit: 32,
            header_bytes: 16 * 1024,
        }
    }
}

impl Default for PushSettings {
    /// Every default, and nothing sent.
    fn default() -> Self {
        Self {
            source: "tidegate".to_owned(),
            log_every: Duration::ZERO,
            remote_write: None,
            remote_write_every: Duration::from_secs(15),
            remote_write_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for PostgresSettings {
    /// Every default, and no listener.
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            pool_size: 5,
            portions: Portions::default(),
            wait: Duration::from_millis(10_000),
            queue_limit: 10_000,
            connect_timeout: Duration::from_secs(5),
            server_lifetime: Duration::from_secs(3600),
            server_idle: Duration::from_secs(600),
            login_timeout: Duration::from_secs(15),
            password_overlap: Duration::from_secs(60),
            any: false,
            encryption: ListenerEncryption::default(),
            client_certificate: ClientCertificate::default(),
            auth: Auth::Password,
            users: Arc::default(),
            auth_query: None,
            auth_query_kept: Duration::from_secs(60),
            console: ConsoleUsers::default(),
            pool_modes: PoolModes::default(),
            probe: Probe::default(),
            passing: Passing::default(),
            limits: PostgresLimits::default(),
        }
    }
}

impl Default for PostgresLimits {
    fn default() -> Self {
        Self {
            client_limit: 10_000,
            login_limit: 2_000,
            pinned_limit: 0,
            startup_bytes: 10_000,
            login_frame_bytes: 10_000,
            understood_frame_bytes: 16 * 1024 * 1024,
            parked_bytes: 1024 * 1024,
            statements_per_backend: 200,
            statements_per_client: 10_000,
            statements_total: 10_000,
            statements_total_bytes: 32 * 1024 * 1024,
            settings_combinations: 1_000,
            any_pools: 100,
            cleanup_timeout: Duration::from_secs(5),
            slow_reader: Duration::from_secs(60),
            query_timeout: Duration::ZERO,
            transaction_timeout: Duration::ZERO,
            idle_transaction_timeout: Duration::ZERO,
            pinned_timeout: Duration::ZERO,
            client_idle_timeout: Duration::ZERO,
            leak: Duration::from_secs(30),
            slow: Duration::ZERO,
            plan_every: Duration::from_secs(15),
            sequence_hold: Duration::from_millis(200),
        }
    }
}

impl Default for RedisSettings {
    /// Every default, and no listener.
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            pool_size: 4,
            wait: Duration::from_millis(10_000),
            queue_limit: 10_000,
            connect_timeout: Duration::from_secs(5),
            server_lifetime: Duration::from_secs(3600),
            server_idle: Duration::from_secs(600),
            login_timeout: Duration::from_secs(15),
            password_overlap: Duration::from_secs(60),
            encryption: ListenerEncryption::default(),
            auth: Auth::Password,
            limits: RedisLimits::default(),
        }
    }
}

impl Default for RedisLimits {
    fn default() -> Self {
        Self {
            client_limit: 10_000,
            login_limit: 2_000,
            login_frame_bytes: 16 * 1024,
            understood_frame_bytes: 1024 * 1024,
            frame_bytes: 512 * 1024 * 1024,
            reply_bytes_per_client: 8 * 1024 * 1024,
            reply_bytes_total: 128 * 1024 * 1024,
            reply_stall: Duration::from_secs(1),
            subscription_limit: 100_000,
            pipeline_depth: 10_000,
            cleanup_timeout: Duration::from_secs(5),
            slow_reader: Duration::from_secs(60),
            namespace_census: Duration::from_secs(60),
            plan_every: Duration::from_secs(15),
        }
    }
}
