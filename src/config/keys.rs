//! Every setting that exists: its place in the file, its variable and its flag.

/// The names of one setting.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.key` in the file.
    pub(super) path: &'static str,
    /// The environment variable, for the settings of the environment contract.
    pub(super) variable: Option<&'static str>,
    /// The flag, without the dashes.
    pub(super) flag: Option<&'static str>,
}

const fn everywhere(path: &'static str, variable: &'static str, flag: &'static str) -> Key {
    Key { path, variable: Some(variable), flag: Some(flag) }
}

/// For what is set where a platform keeps its settings, or must not show among the processes.
const fn in_environment(path: &'static str, variable: &'static str) -> Key {
    Key { path, variable: Some(variable), flag: None }
}

const fn in_file(path: &'static str) -> Key {
    Key { path, variable: None, flag: None }
}

/// Variables that are read by their own name and have no place in the file.
pub(super) const OTHER_VARIABLES: [&str; 5] = [
    "TIDEGATE_CONFIG",
    "TIDEGATE_DATABASE_URL",
    "TIDEGATE_DATABASE_URL_FILE",
    "TIDEGATE_REDIS_URL",
    "TIDEGATE_REDIS_URL_FILE",
];

/// Variables of ours that the wrapped command is not to have. Where we push to may hold a secret. And another tidegate in the
/// command would push the same names there once more, find our sockets taken, and take our certificate for an impostor's.
pub(super) const OURS_ALONE: [&str; 8] = [
    "TIDEGATE_PUSH_REMOTE_WRITE_URL",
    "TIDEGATE_PUSH_REMOTE_WRITE_TOKEN",
    "TIDEGATE_POSTGRES_SOCKET_DIR",
    "TIDEGATE_REDIS_SOCKET",
    "TIDEGATE_POSTGRES_PIN",
    "TIDEGATE_POSTGRES_PIN_FILE",
    "TIDEGATE_REDIS_PIN",
    "TIDEGATE_REDIS_PIN_FILE",
];

/// Those that it is not to have, besides, where the file is for us alone: the file's, and the one that names something in it.
pub(super) const OURS_WITH_THE_FILE: [&str; 2] = ["TIDEGATE_CONFIG", "TIDEGATE_REDIS_NAMESPACE"];

/// The settings of one `[[redis.namespaces]]`.
pub(super) const NAMESPACE_KEYS: &[&str] = &[
    "name",
    "prefix",
    "mode",
    "password",
    "password_env",
    "readable",
    "read_only",
    "allow",
    "scripts",
    "value_bytes",
    "client_limit",
    "pinned_limit",
    "commands_per_second",
    "variable",
    "url",
];

pub(super) const KEYS: &[Key] = &[
    everywhere("workers", "TIDEGATE_WORKERS", "workers"),
    in_file("drain_ms"),
    in_file("child_grace_ms"),
    in_environment("child_credentials", "TIDEGATE_CHILD_CREDENTIALS"),
    in_file("login_failures_per_minute"),
    in_file("reload_check_ms"),
    in_file("password_overlap_ms"),
    in_environment("control_socket", "TIDEGATE_CONTROL_SOCKET"),
    in_file("handover_ms"),
    in_environment("socket_mode", "TIDEGATE_SOCKET_MODE"),
    everywhere("log.level", "TIDEGATE_LOG", "log"),
    everywhere("log.format", "TIDEGATE_LOG_FORMAT", "log-format"),
    everywhere("admin.listen", "TIDEGATE_ADMIN_LISTEN", "admin-listen"),
    in_file("admin.client_limit"),
    in_file("admin.header_timeout_ms"),
    in_file("admin.header_limit"),
    in_file("admin.header_bytes"),
    in_environment("push.source", "TIDEGATE_PUSH_SOURCE"),
    in_environment("push.log_every_ms", "TIDEGATE_PUSH_LOG_EVERY_MS"),
    in_environment("push.remote_write_url", "TIDEGATE_PUSH_REMOTE_WRITE_URL"),
    in_environment("push.remote_write_token", "TIDEGATE_PUSH_REMOTE_WRITE_TOKEN"),
    in_environment("push.remote_write_every_ms", "TIDEGATE_PUSH_REMOTE_WRITE_EVERY_MS"),
    in_file("push.remote_write_timeout_ms"),
    in_file("push.remote_write_ca"),
    in_environment("tls.postgres", "TIDEGATE_TLS_POSTGRES"),
    in_environment("tls.redis", "TIDEGATE_TLS_REDIS"),
    in_environment("tls.cert", "TIDEGATE_TLS_CERT"),
    in_environment("tls.key", "TIDEGATE_TLS_KEY"),
    in_environment("tls.client_ca", "TIDEGATE_TLS_CLIENT_CA"),
    in_environment("tls.client_cert", "TIDEGATE_TLS_CLIENT_CERT"),
    everywhere("postgres.urls", "TIDEGATE_POSTGRES_URLS", "postgres-urls"),
    everywhere(
        "postgres.read_only_urls",
        "TIDEGATE_POSTGRES_READ_ONLY_URLS",
        "postgres-read-only-urls",
    ),
    everywhere("postgres.listen", "TIDEGATE_POSTGRES_LISTEN", "postgres-listen"),
    in_environment("postgres.socket_dir", "TIDEGATE_POSTGRES_SOCKET_DIR"),
    everywhere("postgres.pool_size", "TIDEGATE_POSTGRES_POOL_SIZE", "postgres-pool-size"),
    everywhere("postgres.wait_ms", "TIDEGATE_POSTGRES_WAIT_MS", "postgres-wait-ms"),
    everywhere("postgres.any", "TIDEGATE_POSTGRES_ANY", "postgres-any"),
    everywhere("postgres.auth", "TIDEGATE_POSTGRES_AUTH", "postgres-auth"),
    in_environment("postgres.auth_query", "TIDEGATE_POSTGRES_AUTH_QUERY"),
    in_file("postgres.auth_query_kept_ms"),
    everywhere("postgres.users_file", "TIDEGATE_POSTGRES_USERS_FILE", "postgres-users-file"),
    everywhere(
        "postgres.console_users",
        "TIDEGATE_POSTGRES_CONSOLE_USERS",
        "postgres-console-users",
    ),
    everywhere("postgres.pool_mode", "TIDEGATE_POSTGRES_POOL_MODE", "postgres-pool-mode"),
    everywhere("postgres.probe", "TIDEGATE_POSTGRES_PROBE", "postgres-probe"),
    everywhere("postgres.strict", "TIDEGATE_POSTGRES_STRICT", "postgres-strict"),
    in_environment("postgres.pin", "TIDEGATE_POSTGRES_PIN"),
    in_environment("postgres.pin_file", "TIDEGATE_POSTGRES_PIN_FILE"),
    in_file("postgres.queue_limit"),
    in_file("postgres.pinned_limit"),
    in_file("postgres.connect_timeout_ms"),
    in_file("postgres.server_lifetime_ms"),
    in_file("postgres.server_idle_ms"),
    in_file("postgres.login_timeout_ms"),
    in_file("postgres.login_limit"),
    in_file("postgres.client_limit"),
    in_file("postgres.startup_bytes"),
    in_file("postgres.login_frame_bytes"),
    in_file("postgres.understood_frame_bytes"),
    in_file("postgres.parked_bytes"),
    in_file("postgres.statements_per_backend"),
    in_file("postgres.statements_per_client"),
    in_file("postgres.statements_total"),
    in_file("postgres.statements_total_bytes"),
    in_file("postgres.settings_combinations"),
    in_file("postgres.any_pools"),
    in_file("postgres.cleanup_timeout_ms"),
    in_file("postgres.slow_reader_ms"),
    in_file("postgres.sequence_hold_ms"),
    in_file("postgres.query_timeout_ms"),
    in_file("postgres.transaction_timeout_ms"),
    in_file("postgres.idle_transaction_timeout_ms"),
    in_file("postgres.pinned_timeout_ms"),
    in_file("postgres.client_idle_timeout_ms"),
    in_file("postgres.leak_ms"),
    in_file("postgres.slow_ms"),
    in_file("postgres.plan_every_ms"),
    in_file("postgres.idle_min"),
    in_file("postgres.application_share_percent"),
    in_file("postgres.database_limit"),
    in_file("postgres.user_limit"),
    in_file("postgres.total_limit"),
    in_file("postgres.reserve_size"),
    in_file("postgres.reserve_after_ms"),
    everywhere("redis.urls", "TIDEGATE_REDIS_URLS", "redis-urls"),
    everywhere("redis.listen", "TIDEGATE_REDIS_LISTEN", "redis-listen"),
    in_environment("redis.socket", "TIDEGATE_REDIS_SOCKET"),
    everywhere("redis.pool_size", "TIDEGATE_REDIS_POOL_SIZE", "redis-pool-size"),
    everywhere("redis.wait_ms", "TIDEGATE_REDIS_WAIT_MS", "redis-wait-ms"),
    everywhere("redis.auth", "TIDEGATE_REDIS_AUTH", "redis-auth"),
    in_file("redis.tls_verify"),
    in_file("redis.tls_ca"),
    in_file("redis.tls_cert"),
    in_file("redis.tls_key"),
    in_environment("redis.pin", "TIDEGATE_REDIS_PIN"),
    in_environment("redis.pin_file", "TIDEGATE_REDIS_PIN_FILE"),
    in_file("redis.queue_limit"),
    in_file("redis.connect_timeout_ms"),
    in_file("redis.server_lifetime_ms"),
    in_file("redis.server_idle_ms"),
    in_file("redis.login_timeout_ms"),
    in_file("redis.login_limit"),
    in_file("redis.client_limit"),
    in_file("redis.login_frame_bytes"),
    in_file("redis.understood_frame_bytes"),
    in_file("redis.frame_bytes"),
    in_file("redis.reply_bytes_per_client"),
    in_file("redis.reply_bytes_total"),
    in_file("redis.reply_stall_ms"),
    in_file("redis.subscription_limit"),
    in_file("redis.pipeline_depth"),
    in_file("redis.cleanup_timeout_ms"),
    in_file("redis.slow_reader_ms"),
    in_file("redis.namespace_census_ms"),
    in_file("redis.plan_every_ms"),
    everywhere("redis.namespace", "TIDEGATE_REDIS_NAMESPACE", "redis-namespace"),
];
