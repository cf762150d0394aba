//! The command line: what may be said, and how it is read.

mod papers;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{AdminSettings, Environment};

pub use papers::{completions, manual};

/// Carries many Postgres and Redis clients over the few connections a plan allows.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings given as flags.
    #[command(flatten)]
    pub flags: Flags,
}

const EXAMPLES: &str = "\
Examples:
  tidegate run -- bundle exec puma       pool DATABASE_URL and REDIS_URL for one process
  tidegate run --postgres-pool-size 3 -- gunicorn app:app
  tidegate serve                         stand beside the process, as a line of its own
  tidegate check                         say what the configuration means
  tidegate top                           who holds the connections, now

In a Procfile:
  web: tidegate run -- npm start

Settings come from flags, then the environment, then a TOML file, then the defaults.
Status page: http://127.0.0.1:9127/, metrics: http://127.0.0.1:9127/metrics";

/// The ways to start.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command with its database URLs leading through the pool
    ///
    /// Listens first, then starts CMD with DATABASE_URL and REDIS_URL rewritten to the local
    /// listeners. Passes signals on, serves until CMD is gone, and ends as CMD did: with its status, or
    /// by the same signal (127 if it was not found, 126 if it cannot be executed).
    #[command(after_help = "Example:\n  tidegate run -- sh -c 'psql \"$DATABASE_URL\"'")]
    Run {
        /// The command and its arguments
        #[arg(
            value_name = "CMD",
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        command: Vec<OsString>,
    },
    /// How tidegate starts the command of `run`; not for people
    #[command(hide = true)]
    Become {
        /// Who started it
        #[arg(long)]
        parent: i32,
        /// What to become
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Serve without a command, until SIGTERM or SIGINT
    ///
    /// The application must be pointed at the listeners by hand; where it reads DATABASE_URL, set
    /// that to the local URL and TIDEGATE_DATABASE_URL to the server's.
    Serve,
    /// Say what the configuration means, with secrets masked
    ///
    /// Exits with 0, or with 2 and the setting that cannot be taken.
    Check,
    /// Show who holds the connections of a tidegate that runs, and who waits
    ///
    /// What the status page shows, in a terminal, asked each second from the admin port. q quits, Tab shows the next pool,
    /// arrow keys scroll. Without a terminal, or with --once, writes it once as plain text.
    #[command(after_help = "Example:\n  tidegate top --once | grep LEAK")]
    Top {
        /// The admin port [default: where the settings say, http://127.0.0.1:9127]
        #[arg(long, value_name = "URL")]
        admin: Option<String>,
        /// Write it once as plain text
        #[arg(long)]
        once: bool,
    },
    /// Write completions for a shell
    #[command(
        hide = true,
        after_help = "Example:\n  tidegate completions bash >/usr/share/bash-completion/completions/tidegate"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page, or that of a command
    #[command(
        hide = true,
        after_help = "Example:\n  tidegate man >/usr/local/share/man/man1/tidegate.1"
    )]
    Man {
        /// The command; without it the whole program
        command: Option<String>,
    },
}

/// The settings that have a flag. Their texts are read by the same rules as the environment's.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct Flags {
    /// TOML file with settings [env: TIDEGATE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Names of the variables that hold Postgres URLs [env: TIDEGATE_POSTGRES_URLS]
    /// [default: DATABASE_URL]
    #[arg(long, global = true, value_name = "NAMES")]
    postgres_urls: Option<String>,
    /// Names of those whose servers are only read: followers [env: TIDEGATE_POSTGRES_READ_ONLY_URLS]
    #[arg(long, global = true, value_name = "NAMES")]
    postgres_read_only_urls: Option<String>,
    /// Where Postgres clients connect [env: TIDEGATE_POSTGRES_LISTEN] [default: 127.0.0.1:6432]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    postgres_listen: Option<String>,
    /// Most connections to one Postgres server [env: TIDEGATE_POSTGRES_POOL_SIZE] [default: 5]
    #[arg(long, global = true, value_name = "COUNT")]
    postgres_pool_size: Option<String>,
    /// Longest wait for a Postgres connection [env: TIDEGATE_POSTGRES_WAIT_MS] [default: 10000]
    #[arg(long, global = true, value_name = "MS")]
    postgres_wait_ms: Option<String>,
    /// Serve any user and database of the URL's server [env: TIDEGATE_POSTGRES_ANY] [default: off]
    #[arg(long, global = true, value_name = "0|1", num_args = 0..=1, default_missing_value = "1",
        require_equals = true)]
    postgres_any: Option<String>,
    /// password, or trust (loopback only) [env: TIDEGATE_POSTGRES_AUTH] [default: password]
    #[arg(long, global = true, value_name = "WORD")]
    postgres_auth: Option<String>,
    /// File with the users that --postgres-any serves, "user" "password" a line [env: TIDEGATE_POSTGRES_USERS_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    postgres_users_file: Option<String>,
    /// Who may use the console; * for users of the URLs from this machine [env: TIDEGATE_POSTGRES_CONSOLE_USERS]
    /// [default: *]
    #[arg(long, global = true, value_name = "USERS")]
    postgres_console_users: Option<String>,
    /// transaction, session or statement; USER@DATABASE=MODE for some, * for any [env: TIDEGATE_POSTGRES_POOL_MODE]
    /// [default: transaction]
    #[arg(long, global = true, value_name = "MODES")]
    postgres_pool_mode: Option<String>,
    /// When the server is asked what a session has left: suspects or always [env: TIDEGATE_POSTGRES_PROBE]
    /// [default: suspects]
    #[arg(long, global = true, value_name = "WORD")]
    postgres_probe: Option<String>,
    /// Take everything off a connection before another session gets it [env: TIDEGATE_POSTGRES_STRICT] [default: off]
    #[arg(long, global = true, value_name = "0|1", num_args = 0..=1, default_missing_value = "1",
        require_equals = true)]
    postgres_strict: Option<String>,
    /// Names of the variables that hold Redis URLs [env: TIDEGATE_REDIS_URLS] [default: REDIS_URL]
    #[arg(long, global = true, value_name = "NAMES")]
    redis_urls: Option<String>,
    /// Where Redis clients connect [env: TIDEGATE_REDIS_LISTEN] [default: 127.0.0.1:6380]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    redis_listen: Option<String>,
    /// Most connections to one Redis server [env: TIDEGATE_REDIS_POOL_SIZE] [default: 4]
    #[arg(long, global = true, value_name = "COUNT")]
    redis_pool_size: Option<String>,
    /// Longest wait for a Redis connection [env: TIDEGATE_REDIS_WAIT_MS] [default: 10000]
    #[arg(long, global = true, value_name = "MS")]
    redis_wait_ms: Option<String>,
    /// password, or trust (loopback only) [env: TIDEGATE_REDIS_AUTH] [default: password]
    #[arg(long, global = true, value_name = "WORD")]
    redis_auth: Option<String>,
    /// Where status page, metrics and health are served [env: TIDEGATE_ADMIN_LISTEN] [default: 127.0.0.1:9127]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
    /// Threads that carry traffic [env: TIDEGATE_WORKERS] [default: 1]
    #[arg(long, global = true, value_name = "COUNT")]
    workers: Option<String>,
    /// off, error, warn, info, debug or trace [env: TIDEGATE_LOG] [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// logfmt or json [env: TIDEGATE_LOG_FORMAT] [default: logfmt]
    #[arg(long, global = true, value_name = "WORD")]
    log_format: Option<String>,
}

impl Flags {
    /// The flags that were given: the setting's path in the file, and the text.
    #[must_use]
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("postgres.urls", &self.postgres_urls),
            ("postgres.read_only_urls", &self.postgres_read_only_urls),
            ("postgres.listen", &self.postgres_listen),
            ("postgres.pool_size", &self.postgres_pool_size),
            ("postgres.wait_ms", &self.postgres_wait_ms),
            ("postgres.any", &self.postgres_any),
            ("postgres.auth", &self.postgres_auth),
            ("postgres.users_file", &self.postgres_users_file),
            ("postgres.console_users", &self.postgres_console_users),
            ("postgres.pool_mode", &self.postgres_pool_mode),
            ("postgres.probe", &self.postgres_probe),
            ("postgres.strict", &self.postgres_strict),
            ("redis.urls", &self.redis_urls),
            ("redis.listen", &self.redis_listen),
            ("redis.pool_size", &self.redis_pool_size),
            ("redis.wait_ms", &self.redis_wait_ms),
            ("redis.auth", &self.redis_auth),
            ("admin.listen", &self.admin_listen),
            ("workers", &self.workers),
            ("log.level", &self.log),
            ("log.format", &self.log_format),
        ];
        all.into_iter().filter_map(|(path, text)| Some((path, text.clone()?))).collect()
    }
}

/// The process's environment, read once.
#[must_use]
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok())))
        .collect()
}

/// Where somebody on this machine reaches the admin port.
#[must_use]
pub fn admin_url(settings: &AdminSettings) -> String {
    let mut address = settings.listen;
    // Everywhere is no place to connect to.
    if address.ip().is_unspecified() {
        let loopback: IpAddr = match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_wrapped_command_keeps_its_own_flags() {
        for line in [
            &["tidegate", "run", "--workers", "2", "--", "psql", "--log", "-c", "x"][..],
            &["tidegate", "--workers", "2", "run", "psql", "--log", "-c", "x"],
            &["tidegate", "run", "--workers=2", "psql", "--log", "-c", "x"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.flags.given(), [("workers", "2".to_owned())], "{line:?}");
            let Command::Run { command } = cli.command else { panic!("not run") };
            assert_eq!(command, ["psql", "--log", "-c", "x"], "{line:?}");
        }
    }

    #[test]
    fn top_asks_where_it_can_connect_to() {
        for (listen, url) in [
            ("127.0.0.1:9127", "http://127.0.0.1:9127"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
        ] {
            let listen = listen.parse().unwrap();
            assert_eq!(admin_url(&AdminSettings { listen, ..AdminSettings::default() }), url);
        }
    }

    #[test]
    fn a_switch_needs_no_value() {
        let cli = Cli::try_parse_from(["tidegate", "serve", "--postgres-any"]).unwrap();
        assert_eq!(cli.flags.given(), [("postgres.any", "1".to_owned())]);
        assert!(Cli::try_parse_from(["tidegate", "run"]).is_err(), "run needs a command");
    }
}
