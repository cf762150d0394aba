//! What the written settings mean: checked values, upstreams laid out over listeners.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::namespaces;
use super::postgres_url::PostgresUrl;
use super::push;
use super::redis_url::RedisUrl;
use super::sockets;
use super::sources::{url_file, url_source};
use super::suggest;
use super::tls;
use super::users::UsersFile;
use super::written::{Entry, Environment, Written};
use super::{
    Access, AdminSettings, Auth, ChildPassword, ConfigError, ConsoleUsers, LogFormat, LogLevel,
    LogSettings, Passing, PoolMode, PoolModeRule, PoolModes, PooledUrl, PooledVariable, Portions,
    PostgresLimits, PostgresListener, PostgresSettings, PostgresUpstream, Probe, RedisLimits,
    RedisListener, RedisSettings, RedisTls, Settings, UserSecret, Users,
};

const POSTGRES_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6432);
const REDIS_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6380);

/// An hour: the longest time that a wait may be set to.
const HOUR_MS: u64 = 3_600_000;
/// Any count of connections; nought means something else.
const COUNT: RangeInclusive<usize> = 0..=10_000;
/// Any part that is something.
const PERCENT: RangeInclusive<usize> = 1..=100;
/// Any time up to that.
const HOUR: RangeInclusive<u64> = 0..=HOUR_MS;
/// A month: the longest lifetime.
const MONTH_MS: u64 = 31 * 24 * HOUR_MS;
/// Largest value of a setting in bytes.
const GIB: usize = 1024 * 1024 * 1024;
/// Largest value of a setting that counts things.
const MILLION: usize = 1_000_000;

/// Settings, the variables they came from, and what deserves a word in the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resolved {
    pub(super) settings: Settings,
    pub(super) variables: Vec<PooledVariable>,
    pub(super) warnings: Vec<String>,
}

/// Resolves everything that was written. A process that runs already has a place for each of the variables `running`.
pub(super) fn resolve(
    written: &Written,
    environment: &Environment,
    running: &[PooledVariable],
) -> Result<Resolved, ConfigError> {
    let default = Settings::default();
    let mut variables = Vec::new();
    let mut warnings = Vec::new();
    let running = Running(running);
    let postgres = postgres(written, environment, running, &mut variables, &mut warnings)?;
    let redis = redis(written, environment, running, &mut variables, &mut warnings)?;
    let settings = Settings {
        workers: written.count("workers", default.workers, 1..=64)?,
        log: log(written, default.log)?,
        admin: admin(written)?,
        push: push::resolve(written, environment, &mut warnings)?,
        postgres,
        redis,
        sockets: sockets::resolve(written)?,
        drain: written.millis("drain_ms", default.drain, 0..=HOUR_MS)?,
        handover: written.millis("handover_ms", default.handover, HOUR)?,
        child_grace: written.millis("child_grace_ms", default.child_grace, 0..=HOUR_MS)?,
        child_password: written.choice(
            "child_credentials",
            default.child_password,
            &[("own", ChildPassword::Own), ("url", ChildPassword::OfUrl)],
        )?,
        login_failures_per_minute: written.count(
            "login_failures_per_minute",
            default.login_failures_per_minute,
            0..=MILLION,
        )?,
        reload_check: written.millis("reload_check_ms", default.reload_check, HOUR)?,
    };
    check_addresses(&settings)?;
    Ok(Resolved { settings, variables, warnings })
}

/// The variables of a process that runs.
#[derive(Clone, Copy)]
struct Running<'a>(&'a [PooledVariable]);

impl Running<'_> {
    /// The listener that leads to the variable's own pool. Its clients come there by what the variable said before, so it must
    /// stay, though the variable names the server of another by now.
    fn listener_of(self, name: &str) -> Option<usize> {
        let known = self.0.iter().find(|known| known.name == name && known.pool == name);
        known.map(|known| known.listener)
    }
}

/// The names of the variables to pool, in both protocols.
pub(super) fn pooled_names(written: &Written) -> Vec<String> {
    let (postgres, _) = names(written, "postgres.urls", Some("DATABASE_URL"));
    let (followers, _) = names(written, "postgres.read_only_urls", None);
    let (redis, _) = names(written, "redis.urls", Some("REDIS_URL"));
    [postgres, followers, redis].concat()
}

/// The files that URLs are read from.
pub(super) fn url_files(written: &Written, environment: &Environment) -> Vec<PathBuf> {
    let names = pooled_names(written);
    names.iter().filter_map(|name| url_file(environment, name)).collect()
}

fn log(written: &Written, default: LogSettings) -> Result<LogSettings, ConfigError> {
    let levels = [
        ("off", LogLevel::Off),
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let formats = [("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)];
    Ok(LogSettings {
        level: written.choice("log.level", default.level, &levels)?,
        format: written.choice("log.format", default.format, &formats)?,
    })
}

fn admin(written: &Written) -> Result<AdminSettings, ConfigError> {
    let default = AdminSettings::default();
    let (listen, explicit) = listen(written, "admin.listen", default.listen)?;
    let count = |path, default, range| written.count(path, default, range);
    Ok(AdminSettings {
        listen,
        explicit,
        client_limit: count("admin.client_limit", default.client_limit, 1..=10_000)?,
        header_timeout: written.millis(
            "admin.header_timeout_ms",
            default.header_timeout,
            100..=HOUR_MS,
        )?,
        header_limit: count("admin.header_limit", default.header_limit, 8..=1_000)?,
        header_bytes: count("admin.header_bytes", default.header_bytes, 8_192..=1_048_576)?,
    })
}

fn postgres(
    written: &Written,
    environment: &Environment,
    running: Running<'_>,
    variables: &mut Vec<PooledVariable>,
    warnings: &mut Vec<String>,
) -> Result<Option<PostgresSettings>, ConfigError> {
    let settings = postgres_but_urls(written, warnings)?;
    check_any(written, &settings)?;
    let (listen, explicit) = listen(written, "postgres.listen", POSTGRES_LISTEN)?;
    check_trust(written, settings.auth, "postgres", listen)?;
    let pins = tls::pins(written, "postgres")?;
    let mut listeners: Vec<PostgresListener> = Vec::new();
    for (name, text, access) in postgres_texts(written, environment)? {
        let mut url = PostgresUrl::parse(&name, &text.text, environment)
            .map_err(|problem| ConfigError::new(&text.source, problem))?;
        if access == Access::Read {
            url = url.of_follower();
        }
        if let (None, Some(UserSecret::Clear(password))) =
            (&url.upstream.password, settings.users.get(&url.upstream.user))
        {
            url.upstream.password = Some(password.clone());
        }
        url.upstream.pins = pins.clone();
        warnings.extend(url.warnings.iter().cloned());
        warnings.extend(url.upstream.vain_pins());
        let secret =
            url.upstream.password.is_some() || settings.users.get(&url.upstream.user).is_some();
        check_password(secret, settings.auth, listen, &text.source)?;
        let first = (listen, explicit);
        let settled = running
            .listener_of(&name)
            .and_then(|index| settle_postgres(&mut listeners, &url, settings.any, first, index));
        let place =
            settled
                .or_else(|| place_postgres(&mut listeners, &url, settings.any, first))
                .ok_or_else(|| ConfigError::new(&text.source, "no port is left for a listener"))?;
        variables.push(PooledVariable::new(name, place, PooledUrl::Postgres(Box::new(url))));
    }
    let served = !listeners.is_empty();
    let settings = PostgresSettings { listeners, ..settings };
    check_console(written, &settings)?;
    Ok(served.then_some(settings))
}

/// All of it but where the URLs lead.
fn postgres_but_urls(
    written: &Written,
    warnings: &mut Vec<String>,
) -> Result<PostgresSettings, ConfigError> {
    let default = PostgresSettings::default();
    Ok(PostgresSettings {
        listeners: Vec::new(),
        pool_size: written.count("postgres.pool_size", default.pool_size, 1..=10_000)?,
        wait: written.millis("postgres.wait_ms", default.wait, 1..=HOUR_MS)?,
        queue_limit: written.count("postgres.queue_limit", default.queue_limit, 0..=MILLION)?,
        connect_timeout: written.millis(
            "postgres.connect_timeout_ms",
            default.connect_timeout,
            1..=HOUR_MS,
        )?,
        server_lifetime: written.millis(
            "postgres.server_lifetime_ms",
            default.server_lifetime,
            1_000..=MONTH_MS,
        )?,
        server_idle: written.millis(
            "postgres.server_idle_ms",
            default.server_idle,
            1_000..=MONTH_MS,
        )?,
        login_timeout: written.millis(
            "postgres.login_timeout_ms",
            default.login_timeout,
            1..=HOUR_MS,
        )?,
        password_overlap: password_overlap(written, default.password_overlap)?,
        portions: portions(written)?,
        encryption: tls::listener(written, "tls.postgres")?,
        client_certificate: tls::client_certificate(written)?,
        any: written.switch("postgres.any")?,
        auth: auth(written, "postgres.auth")?,
        users: users(written, warnings)?,
        auth_query: written.entry("postgres.auth_query").map(|entry| entry.text.clone()),
        auth_query_kept: written.millis(
            "postgres.auth_query_kept_ms",
            default.auth_query_kept,
            HOUR,
        )?,
        console: console(written),
        pool_modes: pool_modes(written, "postgres.pool_mode")?,
        probe: written.choice(
            "postgres.probe",
            default.probe,
            &[("suspects", Probe::Suspects), ("always", Probe::Always)],
        )?,
        passing: passing(written)?,
        limits: postgres_limits(written)?,
    })
}

fn password_overlap(written: &Written, default: Duration) -> Result<Duration, ConfigError> {
    written.millis("password_overlap_ms", default, 0..=MONTH_MS)
}

fn passing(written: &Written) -> Result<Passing, ConfigError> {
    let strict = written.switch("postgres.strict")?;
    Ok(if strict { Passing::Strict } else { Passing::Difference })
}

fn portions(written: &Written) -> Result<Portions, ConfigError> {
    let default = Portions::default();
    let count = |path, default, range| written.count(path, default, range);
    Ok(Portions {
        database_limit: count("postgres.database_limit", default.database_limit, COUNT)?,
        user_limit: count("postgres.user_limit", default.user_limit, COUNT)?,
        total_limit: count("postgres.total_limit", default.total_limit, COUNT)?,
        application_share_percent: count(
            "postgres.application_share_percent",
            default.application_share_percent,
            PERCENT,
        )?,
        idle_min: count("postgres.idle_min", default.idle_min, COUNT)?,
        reserve_size: count("postgres.reserve_size", default.reserve_size, COUNT)?,
        reserve_after: written.millis("postgres.reserve_after_ms", default.reserve_after, HOUR)?,
    })
}

/// Serving any user, there must be something to tell users by; and a users file is of use then only.
fn check_any(written: &Written, settings: &PostgresSettings) -> Result<(), ConfigError> {
    let any_entry = written.entry("postgres.any").filter(|_| settings.any);
    let file_entry = written.entry("postgres.users_file");
    check_auth_query(written, settings)?;
    match (any_entry, file_entry) {
        (Some(entry), None)
            if settings.auth != Auth::Trust && settings.auth_query.is_none() =>
        {
            Err(entry.wrong(
                "serving any user needs a users file (TIDEGATE_POSTGRES_USERS_FILE), a query for them \
                 (TIDEGATE_POSTGRES_AUTH_QUERY), or trust on both sides: TIDEGATE_POSTGRES_AUTH=trust (loopback \
                 listeners only)",
            ))
        }
        (None, Some(entry)) if settings.console == ConsoleUsers::OfUrls => Err(entry.wrong(
            "is of use only if any user is served, or some may use the console: set TIDEGATE_POSTGRES_ANY=1 or \
             TIDEGATE_POSTGRES_CONSOLE_USERS too, or take it out",
        )),
        _ => Ok(()),
    }
}

/// The query is for users whom nobody else knows.
fn check_auth_query(written: &Written, settings: &PostgresSettings) -> Result<(), ConfigError> {
    let Some(entry) = written.entry("postgres.auth_query") else { return Ok(()) };
    if !entry.text.contains("$1") {
        return Err(entry.wrong("must ask for the user $1 and bring its name and verifier"));
    }
    if !settings.any || settings.auth == Auth::Trust {
        return Err(entry.wrong(
            "is of use only if any user is served who has a password: set TIDEGATE_POSTGRES_ANY=1 and not \
             TIDEGATE_POSTGRES_AUTH=trust, or take it out",
        ));
    }
    Ok(())
}

/// `*` for whoever may use the pool of a URL, names, or nothing for nobody.
fn console(written: &Written) -> ConsoleUsers {
    match written.entry("postgres.console_users") {
        None => ConsoleUsers::OfUrls,
        Some(entry) if entry.text == "*" => ConsoleUsers::OfUrls,
        Some(entry) => {
            ConsoleUsers::Named(entry.text.split_ascii_whitespace().map(str::to_owned).collect())
        }
    }
}

/// Who may use the console must be able to come in.
fn check_console(written: &Written, settings: &PostgresSettings) -> Result<(), ConfigError> {
    let (ConsoleUsers::Named(users), Auth::Password) = (&settings.console, settings.auth) else {
        return Ok(());
    };
    let of_url = |user: &str| {
        let mut upstreams = settings.listeners.iter().flat_map(|listener| &listener.upstreams);
        upstreams.any(|upstream| upstream.user == user)
    };
    let unknown = users.iter().find(|user| settings.users.get(user).is_none() && !of_url(user));
    match (written.entry("postgres.console_users"), unknown) {
        (Some(entry), Some(user)) if !settings.listeners.is_empty() => Err(entry.wrong(format!(
            "names {user}, whose password nobody knows; name users of the URLs or of the users file \
             (TIDEGATE_POSTGRES_USERS_FILE)"
        ))),
        _ => Ok(()),
    }
}

fn users(written: &Written, warnings: &mut Vec<String>) -> Result<Arc<Users>, ConfigError> {
    let Some(entry) = written.entry("postgres.users_file") else { return Ok(Arc::default()) };
    let file = UsersFile::read(Path::new(&entry.text)).map_err(|problem| entry.wrong(problem))?;
    warnings.extend(file.warning);
    Ok(Arc::new(file.users))
}

/// The listener that leads to the variable's own pool already, if it may lead to `url`.
fn settle_postgres(
    listeners: &mut Vec<PostgresListener>,
    url: &PostgresUrl,
    any: bool,
    first: (SocketAddr, bool),
    index: usize,
) -> Option<(usize, String)> {
    let upstream = &url.upstream;
    if index == listeners.len() {
        return add_postgres(listeners, upstream, first);
    }
    let listener = listeners.get_mut(index)?;
    let confused = |known: &Arc<PostgresUpstream>| {
        are_confused(known, upstream, any) && **known != renamed_postgres(upstream, &known.name)
    };
    if listener.upstreams.iter().any(confused) {
        return None;
    }
    listener.upstreams.push(Arc::new(upstream.clone()));
    Some((index, upstream.name.clone()))
}

/// Whether one listener can't lead to both.
fn are_confused(known: &PostgresUpstream, upstream: &PostgresUpstream, any: bool) -> bool {
    let same_route = known.user == upstream.user && known.database == upstream.database;
    same_route || (any && known.hosts != upstream.hosts)
}

/// The listener that may lead to `url` without two upstreams being confused, a new one on the next
/// port if none may; and the name of its pool. `None` when ports run out.
fn place_postgres(
    listeners: &mut Vec<PostgresListener>,
    url: &PostgresUrl,
    any: bool,
    first: (SocketAddr, bool),
) -> Option<(usize, String)> {
    let upstream = &url.upstream;
    for (index, listener) in listeners.iter_mut().enumerate() {
        let mut known = listener.upstreams.iter();
        // The same server under another name: one pool.
        if let Some(known) = known.find(|known| ***known == renamed_postgres(upstream, &known.name))
        {
            return Some((index, known.name.clone()));
        }
        let mut known = listener.upstreams.iter();
        if !known.any(|known| are_confused(known, upstream, any)) {
            listener.upstreams.push(Arc::new(upstream.clone()));
            return Some((index, upstream.name.clone()));
        }
    }
    add_postgres(listeners, upstream, first)
}

/// A listener for this one, behind those that there are.
fn add_postgres(
    listeners: &mut Vec<PostgresListener>,
    upstream: &PostgresUpstream,
    (listen, explicit): (SocketAddr, bool),
) -> Option<(usize, String)> {
    let (listen, explicit) = following(listen, explicit, listeners.len())?;
    listeners.push(PostgresListener {
        listen,
        explicit,
        upstreams: vec![Arc::new(upstream.clone())],
    });
    Some((listeners.len() - 1, upstream.name.clone()))
}

fn renamed_postgres(upstream: &PostgresUpstream, name: &str) -> PostgresUpstream {
    PostgresUpstream { name: name.to_owned(), ..upstream.clone() }
}

fn postgres_limits(written: &Written) -> Result<PostgresLimits, ConfigError> {
    let default = PostgresLimits::default();
    let count =
        |key: &str, default, range| written.count(&format!("postgres.{key}"), default, range);
    let time = |path: &str, default| written.millis(path, default, 0..=MONTH_MS);
    Ok(PostgresLimits {
        client_limit: count("client_limit", default.client_limit, 1..=MILLION)?,
        login_limit: count("login_limit", default.login_limit, 1..=MILLION)?,
        startup_bytes: count("startup_bytes", default.startup_bytes, 256..=MILLION)?,
        login_frame_bytes: count("login_frame_bytes", default.login_frame_bytes, 1_024..=MILLION)?,
        understood_frame_bytes: count(
            "understood_frame_bytes",
            default.understood_frame_bytes,
            65_536..=GIB,
        )?,
        parked_bytes: count("parked_bytes", default.parked_bytes, 65_536..=GIB)?,
        statements_per_backend: count(
            "statements_per_backend",
            default.statements_per_backend,
            1..=MILLION,
        )?,
        statements_per_client: count(
            "statements_per_client",
            default.statements_per_client,
            1..=MILLION,
        )?,
        statements_total: count("statements_total", default.statements_total, 1..=MILLION)?,
        pinned_limit: count("pinned_limit", default.pinned_limit, 0..=10_000)?,
        statements_total_bytes: count(
            "statements_total_bytes",
            default.statements_total_bytes,
            65_536..=GIB,
        )?,
        settings_combinations: count(
            "settings_combinations",
            default.settings_combinations,
            1..=MILLION,
        )?,
        any_pools: count("any_pools", default.any_pools, 1..=MILLION)?,
        cleanup_timeout: written.millis(
            "postgres.cleanup_timeout_ms",
            default.cleanup_timeout,
            1..=HOUR_MS,
        )?,
        slow_reader: written.millis("postgres.slow_reader_ms", default.slow_reader, 1..=HOUR_MS)?,
        query_timeout: time("postgres.query_timeout_ms", default.query_timeout)?,
        transaction_timeout: time("postgres.transaction_timeout_ms", default.transaction_timeout)?,
        idle_transaction_timeout: time(
            "postgres.idle_transaction_timeout_ms",
            default.idle_transaction_timeout,
        )?,
        pinned_timeout: time("postgres.pinned_timeout_ms", default.pinned_timeout)?,
        client_idle_timeout: time("postgres.client_idle_timeout_ms", default.client_idle_timeout)?,
        leak: time("postgres.leak_ms", default.leak)?,
        slow: time("postgres.slow_ms", default.slow)?,
        plan_every: time("postgres.plan_every_ms", default.plan_every)?,
        sequence_hold: written.millis(
            "postgres.sequence_hold_ms",
            default.sequence_hold,
            0..=HOUR_MS,
        )?,
    })
}

fn redis(
    written: &Written,
    environment: &Environment,
    running: Running<'_>,
    variables: &mut Vec<PooledVariable>,
    warnings: &mut Vec<String>,
) -> Result<Option<RedisSettings>, ConfigError> {
    let settings = redis_but_urls(written)?;
    let file = |path| written.entry(path).map(|entry| PathBuf::from(&entry.text));
    let pins = tls::pins(written, "redis")?;
    let shown = tls::identity(file("redis.tls_cert"), file("redis.tls_key"));
    let shown = shown.map_err(|tls::OneOfTwo| {
        ConfigError::new(
            "redis.tls_cert",
            "a certificate and its key go together: set redis.tls_key, too",
        )
    })?;
    let tls = RedisTls::On {
        verify: written.switch("redis.tls_verify")?,
        ca: written.entry("redis.tls_ca").map(|entry| PathBuf::from(&entry.text)),
    };
    let (listen, explicit) = listen(written, "redis.listen", REDIS_LISTEN)?;
    check_trust(written, settings.auth, "redis", listen)?;
    let mut listeners: Vec<RedisListener> = Vec::new();
    for (name, text) in upstream_texts(written, environment, "redis.urls", Some("REDIS_URL"))? {
        let mut url = RedisUrl::parse(&name, &text.text, &tls)
            .map_err(|problem| ConfigError::new(&text.source, problem))?;
        url.upstream.pins = pins.clone();
        url.upstream.identity = url.upstream.identity.or_else(|| shown.clone());
        warnings.extend(url.upstream.vain_pins());
        warnings.extend(url.warnings.iter().cloned());
        check_password(url.upstream.password.is_some(), settings.auth, listen, &text.source)?;
        let same = |known: &RedisListener| {
            let name = known.upstream.name.clone();
            *known.upstream == super::RedisUpstream { name, ..url.upstream.clone() }
        };
        let own = running.listener_of(&name) == Some(listeners.len());
        let index = match listeners.iter().position(same).filter(|_| !own) {
            Some(index) => index,
            None => {
                let (listen, explicit) =
                    following(listen, explicit, listeners.len()).ok_or_else(|| {
                        ConfigError::new(&text.source, "no port is left for a listener")
                    })?;
                let upstream = Arc::new(url.upstream.clone());
                listeners.push(RedisListener {
                    listen,
                    explicit,
                    upstream,
                    namespaces: Vec::new(),
                    first_namespace: None,
                });
                listeners.len() - 1
            }
        };
        let pool = listeners[index].upstream.name.clone();
        variables.push(PooledVariable::new(name, (index, pool), PooledUrl::Redis(Box::new(url))));
    }
    namespaces::resolve(written, environment, settings.auth, &mut listeners, variables, warnings)?;
    let served = !listeners.is_empty();
    Ok(served.then_some(RedisSettings { listeners, ..settings }))
}

/// All of it but where the URLs lead.
fn redis_but_urls(written: &Written) -> Result<RedisSettings, ConfigError> {
    let default = RedisSettings::default();
    let millis = |path, default, range| written.millis(path, default, range);
    Ok(RedisSettings {
        listeners: Vec::new(),
        pool_size: written.count("redis.pool_size", default.pool_size, 1..=10_000)?,
        wait: millis("redis.wait_ms", default.wait, 1..=HOUR_MS)?,
        queue_limit: written.count("redis.queue_limit", default.queue_limit, 0..=MILLION)?,
        connect_timeout: millis("redis.connect_timeout_ms", default.connect_timeout, 1..=HOUR_MS)?,
        server_lifetime: millis(
            "redis.server_lifetime_ms",
            default.server_lifetime,
            1_000..=MONTH_MS,
        )?,
        server_idle: millis("redis.server_idle_ms", default.server_idle, 1_000..=MONTH_MS)?,
        login_timeout: millis("redis.login_timeout_ms", default.login_timeout, 1..=HOUR_MS)?,
        password_overlap: password_overlap(written, default.password_overlap)?,
        encryption: tls::listener(written, "tls.redis")?,
        auth: auth(written, "redis.auth")?,
        limits: redis_limits(written)?,
    })
}

fn redis_limits(written: &Written) -> Result<RedisLimits, ConfigError> {
    let default = RedisLimits::default();
    let count = |key: &str, default, range| written.count(&format!("redis.{key}"), default, range);
    Ok(RedisLimits {
        client_limit: count("client_limit", default.client_limit, 1..=MILLION)?,
        login_limit: count("login_limit", default.login_limit, 1..=MILLION)?,
        login_frame_bytes: count("login_frame_bytes", default.login_frame_bytes, 1_024..=MILLION)?,
        understood_frame_bytes: count(
            "understood_frame_bytes",
            default.understood_frame_bytes,
            65_536..=GIB,
        )?,
        frame_bytes: count("frame_bytes", default.frame_bytes, 65_536..=GIB)?,
        reply_bytes_per_client: count(
            "reply_bytes_per_client",
            default.reply_bytes_per_client,
            65_536..=GIB,
        )?,
        reply_bytes_total: count(
            "reply_bytes_total",
            default.reply_bytes_total,
            65_536..=16 * GIB,
        )?,
        reply_stall: written.millis("redis.reply_stall_ms", default.reply_stall, 1..=HOUR_MS)?,
        subscription_limit: count("subscription_limit", default.subscription_limit, 1..=MILLION)?,
        pipeline_depth: count("pipeline_depth", default.pipeline_depth, 1..=MILLION)?,
        cleanup_timeout: written.millis(
            "redis.cleanup_timeout_ms",
            default.cleanup_timeout,
            1..=HOUR_MS,
        )?,
        slow_reader: written.millis("redis.slow_reader_ms", default.slow_reader, 1..=HOUR_MS)?,
        plan_every: written.millis("redis.plan_every_ms", default.plan_every, HOUR)?,
        namespace_census: written.millis(
            "redis.namespace_census_ms",
            default.namespace_census,
            0..=HOUR_MS,
        )?,
    })
}

/// `MODE` for everybody, `USER@DATABASE=MODE` for some; `*` is any.
fn pool_modes(written: &Written, path: &str) -> Result<PoolModes, ConfigError> {
    const MODES: [(&str, PoolMode); 3] = [
        ("transaction", PoolMode::Transaction),
        ("session", PoolMode::Session),
        ("statement", PoolMode::Statement),
    ];
    let mut modes = PoolModes::default();
    let Some(entry) = written.entry(path) else { return Ok(modes) };
    for word in entry.text.split_ascii_whitespace() {
        let (who, mode) =
            word.rsplit_once('=').map_or((None, word), |(who, mode)| (Some(who), mode));
        let known = MODES.iter().find(|(name, _)| *name == mode.to_ascii_lowercase());
        let mode = known.map(|(_, mode)| *mode).ok_or_else(|| {
            let hint = suggest::hint(mode, MODES.iter().map(|(name, _)| *name));
            entry.wrong(format!(
                "must be transaction, session or statement, or USER@DATABASE=MODE with * for any{hint}"
            ))
        })?;
        let Some(who) = who else {
            modes.default = mode;
            continue;
        };
        let (user, database) = who.rsplit_once('@').ok_or_else(|| {
            entry.wrong(format!("\"{who}\" must be USER@DATABASE, with * for any: {who}@*"))
        })?;
        let pattern = |name: &str| (name != "*").then(|| name.to_owned());
        modes.rules.push(PoolModeRule { user: pattern(user), database: pattern(database), mode });
    }
    Ok(modes)
}

fn auth(written: &Written, path: &str) -> Result<Auth, ConfigError> {
    written.choice(path, Auth::Password, &[("password", Auth::Password), ("trust", Auth::Trust)])
}

fn listen(
    written: &Written,
    path: &str,
    default: SocketAddr,
) -> Result<(SocketAddr, bool), ConfigError> {
    let Some(entry) = written.entry(path) else { return Ok((default, false)) };
    let text = entry.text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    match text.as_ref().unwrap_or(&entry.text).parse() {
        Ok(address) => Ok((address, true)),
        Err(_) => Err(entry.wrong(format!(
            "must be an IP address and a port such as {default} or [::1]:{}",
            default.port()
        ))),
    }
}

/// The `index`-th listener's address: the first as written, the others on the ports after it. Port 0
/// stays 0 (a free one each).
fn following(listen: SocketAddr, explicit: bool, index: usize) -> Option<(SocketAddr, bool)> {
    if index == 0 || listen.port() == 0 {
        return Some((listen, explicit));
    }
    let port = listen.port().checked_add(u16::try_from(index).ok()?)?;
    Some((SocketAddr::new(listen.ip(), port), false))
}

/// The variables to pool, and whether somebody named them.
fn names(written: &Written, path: &str, default: Option<&str>) -> (Vec<String>, Option<Entry>) {
    match written.entry(path) {
        None => (default.into_iter().map(str::to_owned).collect(), None),
        Some(entry) => {
            let mut names: Vec<String> = Vec::new();
            for name in entry.text.split_ascii_whitespace() {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
            (names, Some(entry.clone()))
        }
    }
}

/// Those of Postgres: the servers that are written to, and the followers.
fn postgres_texts(
    written: &Written,
    environment: &Environment,
) -> Result<Vec<(String, Entry, Access)>, ConfigError> {
    let urls = upstream_texts(written, environment, "postgres.urls", Some("DATABASE_URL"))?;
    let followers = upstream_texts(written, environment, "postgres.read_only_urls", None)?;
    let both = followers.iter().find(|(name, _)| urls.iter().any(|(known, _)| known == name));
    if let (Some((name, _)), Some(entry)) = (both, written.entry("postgres.read_only_urls")) {
        return Err(entry.wrong(format!(
            "names {name}, which postgres.urls (TIDEGATE_POSTGRES_URLS) names, too; leave it in one of them"
        )));
    }
    let with = |texts: Vec<(String, Entry)>, access| {
        texts.into_iter().map(move |(name, text)| (name, text, access))
    };
    Ok(with(urls, Access::Write).chain(with(followers, Access::Read)).collect())
}

/// Each pooled variable's name with the URL of its upstream: `TIDEGATE_<name>` if set, else `<name>`; or what is in the file that
/// one of them with `_FILE` behind it names.
fn upstream_texts(
    written: &Written,
    environment: &Environment,
    path: &str,
    default: Option<&str>,
) -> Result<Vec<(String, Entry)>, ConfigError> {
    let (names, named_by) = names(written, path, default);
    let mut texts = Vec::new();
    for name in names {
        match (url_source(environment, &name), &named_by) {
            (Some(source), _) => texts.push((name, source.read(environment)?)),
            (None, None) => {}
            // Somebody wrote a URL where its variable's name belongs: it is not shown.
            (None, Some(entry)) if name.contains("://") => {
                return Err(ConfigError::new(
                    &entry.source,
                    "holds a URL; it must hold the names of variables that hold URLs",
                ));
            }
            (None, Some(entry)) => {
                return Err(entry.wrong(format!(
                    "names {name}, which is not set (nor is {name}_FILE); the value is the names of variables that \
                     hold URLs, separated by spaces"
                )));
            }
        }
    }
    Ok(texts)
}

fn check_trust(
    written: &Written,
    auth: Auth,
    section: &str,
    listen: SocketAddr,
) -> Result<(), ConfigError> {
    let entry = written.entry(&format!("{section}.auth"));
    match entry.filter(|_| auth == Auth::Trust && !listen.ip().is_loopback()) {
        None => Ok(()),
        Some(entry) => Err(entry.wrong(format!(
            "trust lets everybody in who reaches the listener, and {listen} is not a loopback \
             address; use password, or listen on 127.0.0.1"
        ))),
    }
}

/// Without a password to ask for, only this machine may come in.
fn check_password(
    secret: bool,
    auth: Auth,
    listen: SocketAddr,
    source: &str,
) -> Result<(), ConfigError> {
    if secret || auth == Auth::Trust || listen.ip().is_loopback() {
        return Ok(());
    }
    Err(ConfigError::new(
        source,
        format!(
            "has no password, so anybody who reaches {listen} could use the server; put the \
             password into the URL, or listen on 127.0.0.1"
        ),
    ))
}

/// No two listeners on one address.
fn check_addresses(settings: &Settings) -> Result<(), ConfigError> {
    let mut taken: Vec<(SocketAddr, &str)> = vec![(settings.admin.listen, "admin.listen")];
    let postgres = settings.postgres.iter().flat_map(|postgres| &postgres.listeners);
    let redis = settings.redis.iter().flat_map(|redis| &redis.listeners);
    let addresses = postgres
        .map(|listener| (listener.listen, "postgres.listen"))
        .chain(redis.map(|listener| (listener.listen, "redis.listen")));
    for (address, setting) in addresses {
        let mut others = taken.iter().filter(|(known, _)| *known == address && address.port() != 0);
        if let Some((_, other)) = others.next() {
            return Err(ConfigError::new(
                setting,
                format!(
                    "{address} is also {other}; several upstreams take ports one after \
                    another, so leave room between them"
                ),
            ));
        }
        taken.push((address, setting));
    }
    Ok(())
}
