//! What runs libpq: psql of the system, and psycopg with the one it brings.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::postgres::tool;
use crate::support::programs::interpreter;

/// Which libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Libpq {
    /// The system's, by psql.
    Systems,
    /// 18, by psycopg.
    Eighteen,
}

/// How a connection string fares: `tls`, `plain`, or the beginning of the error.
pub(crate) type Outcome = String;

impl Libpq {
    pub(crate) const BOTH: [Self; 2] = [Self::Systems, Self::Eighteen];

    /// Tries each of them.
    pub(crate) fn attempts(self, conninfos: &[String]) -> Vec<Outcome> {
        match self {
            Self::Systems => conninfos.iter().map(|conninfo| psql(conninfo)).collect(),
            Self::Eighteen => psycopg(conninfos, &[]),
        }
    }

    pub(crate) fn attempt(self, conninfo: &str) -> Outcome {
        self.attempts(&[conninfo.to_owned()]).remove(0)
    }
}

fn psql(conninfo: &str) -> Outcome {
    let mut command = clean(Command::new(tool("psql")));
    command.args(["-X", "-A", "-t", "-w", "-c", "select 1 + 1", "-c", "\\conninfo"]);
    let output = command.arg(conninfo).env("PGCONNECT_TIMEOUT", "10").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return format!("refused: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(said.starts_with("2\n"), "{said}");
    let encrypted = said.contains("SSL connection");
    if encrypted { "tls" } else { "plain" }.to_owned()
}

/// By psycopg; with `cancel` among the words a query is cancelled, too.
pub(crate) fn psycopg(conninfos: &[String], words: &[&str]) -> Vec<Outcome> {
    let mut command = clean(interpreter("tls_client.py"));
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = conninfos.join("\n") + "\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines = said.lines().map(str::to_owned);
    let version: u32 = lines.next().expect("it runs").parse().unwrap();
    assert!(version >= 180_000, "psycopg brings libpq {version}: bin/setup pins one with 18");
    let outcomes: Vec<_> = lines.collect();
    assert_eq!(outcomes.len(), conninfos.len(), "{outcomes:?}");
    outcomes
}

/// Without anybody's settings for libpq, nor files in a home directory.
fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG")) {
            command.env_remove(name);
        }
    }
    command.env("HOME", "/nonexistent");
    command
}
