//! A tidegate process: the real binary, with nothing in its environment but what the test says.

use std::ffi::OsString;
use std::net::TcpStream;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;

use super::metrics::{self, Page};
use super::pg::{self, Login, Refusal};
use super::postgres::Postgres;
use super::process::Process;
use super::redis::Redis;
use super::{eventually, ports, resp};

/// How a process shall be started.
pub struct Setup {
    environment: Vec<(OsString, OsString)>,
    arguments: Vec<OsString>,
    postgres: Option<u16>,
    redis: Option<u16>,
    host: &'static str,
    admin: Option<u16>,
}

impl Setup {
    pub fn new() -> Self {
        Self {
            environment: Vec::new(),
            arguments: vec!["serve".into()],
            postgres: None,
            redis: None,
            host: "127.0.0.1",
            admin: None,
        }
    }

    /// Clients may come from elsewhere.
    pub fn on_all_addresses(mut self) -> Self {
        self.host = "0.0.0.0";
        self
    }

    /// On the ports of another one, which is about to leave them.
    pub fn in_place_of(mut self, before: &Tidegate) -> Self {
        (self.postgres, self.redis) = (before.postgres, before.redis);
        self.admin = Some(before.admin);
        self
    }

    pub fn postgres(self, server: &Postgres) -> Self {
        self.database_url(&server.url())
    }

    pub fn database_url(mut self, url: &str) -> Self {
        self.postgres = Some(ports::free());
        self.env("DATABASE_URL", url)
    }

    /// The URL in a file of its own, where it can change.
    pub fn database_url_file(mut self, file: &std::path::Path) -> Self {
        self.postgres = Some(ports::free());
        self.env("DATABASE_URL_FILE", file.to_str().expect("a temp path is UTF-8"))
    }

    pub fn redis_url_file(mut self, file: &std::path::Path) -> Self {
        self.redis = Some(ports::free());
        self.env("REDIS_URL_FILE", file.to_str().expect("a temp path is UTF-8"))
    }

    pub fn redis(self, server: &Redis) -> Self {
        self.redis_url(&server.url())
    }

    pub fn redis_url(mut self, url: &str) -> Self {
        self.redis = Some(ports::free());
        self.env("REDIS_URL", url)
    }

    pub fn pool_size(self, size: usize) -> Self {
        let size = size.to_string();
        self.env("TIDEGATE_POSTGRES_POOL_SIZE", &size).env("TIDEGATE_REDIS_POOL_SIZE", &size)
    }

    pub fn wait_ms(self, wait: usize) -> Self {
        let wait = wait.to_string();
        self.env("TIDEGATE_POSTGRES_WAIT_MS", &wait).env("TIDEGATE_REDIS_WAIT_MS", &wait)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Replaces `serve`, for example by `run -- CMD`.
    pub fn arguments(mut self, words: &[&str]) -> Self {
        self.arguments = words.iter().map(OsString::from).collect();
        self
    }

    /// A TOML file for what the environment has no variable for.
    pub fn config(self, file: &std::path::Path) -> Self {
        let path = file.to_str().expect("a temp path is UTF-8").to_owned();
        self.env("TIDEGATE_CONFIG", &path)
    }

    /// Starts it and waits until every listener takes connections.
    pub fn start(self) -> Tidegate {
        let mut gate = self.launch();
        for port in [gate.postgres, gate.redis, Some(gate.admin)].into_iter().flatten() {
            eventually("tidegate listens", || {
                let gone = gate.process.exited();
                assert!(gone.is_none(), "tidegate ended: {gone:?}\n{}", gate.output());
                TcpStream::connect(("127.0.0.1", port)).ok()
            });
        }
        gate
    }

    /// Starts it and waits for nothing.
    pub fn launch(self) -> Tidegate {
        let admin = self.admin.unwrap_or_else(ports::free);
        let mut command = clean_command();
        command.args(&self.arguments).envs(self.environment);
        command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        for (name, port) in [("POSTGRES", self.postgres), ("REDIS", self.redis)] {
            if let Some(port) = port {
                command.env(format!("TIDEGATE_{name}_LISTEN"), format!("{}:{port}", self.host));
            }
        }
        let process = Process::start(command, Signal::KILL);
        Tidegate { process, postgres: self.postgres, redis: self.redis, admin }
    }
}

/// The binary with an environment that holds nothing of tidegate's and no database.
pub fn clean_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| {
            name.starts_with("TIDEGATE_")
                || name.starts_with("PG")
                || name.ends_with("DATABASE_URL")
                || name.ends_with("REDIS_URL")
        });
        if ours {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
    command
}

pub struct Tidegate {
    process: Process,
    postgres: Option<u16>,
    redis: Option<u16>,
    admin: u16,
}

impl Tidegate {
    /// In front of one Postgres, with everything else as it comes.
    pub fn before(server: &Postgres, pool_size: usize) -> Self {
        Setup::new().postgres(server).pool_size(pool_size).start()
    }

    pub fn postgres_port(&self) -> u16 {
        self.postgres.expect("this tidegate has a Postgres listener")
    }

    pub fn redis_port(&self) -> u16 {
        self.redis.expect("this tidegate has a Redis listener")
    }

    pub fn admin_port(&self) -> u16 {
        self.admin
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A client of the pooled Postgres, logged in.
    pub fn client(&self) -> pg::Connection {
        pg::Connection::open(self.postgres_port(), &Login::app())
    }

    pub fn try_client(&self, login: &Login) -> Result<pg::Connection, Refusal> {
        pg::Connection::try_open(self.postgres_port(), login)
    }

    /// A client of the pooled Redis, before AUTH.
    pub fn redis_client(&self) -> resp::Connection {
        resp::Connection::open(self.redis_port())
    }

    pub fn page(&self) -> Page {
        let answer = metrics::get(self.admin, "/metrics").expect("the admin port answers");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Page(answer.body)
    }

    /// One metric of the Postgres pool.
    pub fn postgres_metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = [labels, &[("protocol", "postgres")]].concat();
        self.page().sum(name, &labels)
    }

    pub fn redis_metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = [labels, &[("protocol", "redis")]].concat();
        self.page().sum(name, &labels)
    }

    pub fn output(&self) -> String {
        self.process.output()
    }

    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// A process that answered is not one that merely has not died yet: asks it for its health.
    pub fn assert_alive(&mut self) {
        let gone = self.process.exited();
        assert!(gone.is_none(), "tidegate ended: {gone:?}\n{}", self.output());
        let answer = metrics::get(self.admin, "/healthz").expect("the admin port answers");
        assert_eq!(answer.status, 200);
        let log = self.output();
        assert!(!log.contains("panicked"), "a panic in the log:\n{log}");
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).expect("VmRSS in kB")
    }
}
