//! The clients that applications use, each with its own default greeting, through a pool that is
//! smaller than what they open. bin/setup installs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use support::postgres::Postgres;
use support::process::Process;
use support::redis::Redis;
use support::tidegate::{Setup, Tidegate};

/// The programs count on it: two held by others leave no third.
const SERVER_CONNECTIONS: usize = 2;

#[test]
fn psycopg() {
    with_postgres("psycopg_client.py");
}

#[test]
fn psycopg2() {
    with_postgres("psycopg2_client.py");
}

#[test]
fn sqlalchemy() {
    with_postgres("sqlalchemy_client.py");
}

#[test]
fn django() {
    with_postgres("django_client.py");
}

#[test]
fn asyncpg() {
    with_postgres("asyncpg_client.py");
}

#[test]
fn node_postgres() {
    with_postgres("pg_client.mjs");
}

#[test]
fn redis_py() {
    with_redis("redis_client.py");
}

#[test]
fn ioredis() {
    with_redis("ioredis_client.mjs");
}

#[test]
fn node_redis() {
    with_redis("node_redis_client.mjs");
}

fn with_postgres(script: &str) {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, SERVER_CONNECTIONS);
    let url = server.url().replace(&server.port().to_string(), &gate.postgres_port().to_string());
    run(script, "DATABASE_URL", &url, &gate);
    assert!(server.sessions_of("app") <= SERVER_CONNECTIONS);
}

fn with_redis(script: &str) {
    let server = Redis::with_password();
    let gate = Setup::new().redis(&server).pool_size(4).start();
    let url = server.url().replace(&server.port().to_string(), &gate.redis_port().to_string());
    run(script, "REDIS_URL", &url, &gate);
    assert!(server.connections() <= 4);
}

fn run(script: &str, variable: &str, url: &str, gate: &Tidegate) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let installed = installed();
    let mut command = if script.ends_with(".py") {
        Command::new(installed.join("python/bin/python"))
    } else {
        // Node looks for its packages beside the script: put a copy beside the packages.
        let copy = installed.join("node").join(script);
        std::fs::copy(&source, &copy).expect("bin/setup has made the place");
        let mut node = Command::new("node");
        node.arg(copy);
        node
    };
    if script.ends_with(".py") {
        command.arg(&source);
    }
    command.env(variable, url);
    let mut client = Process::start(command, Signal::KILL);
    let status = client.wait(Duration::from_secs(60));
    let said = client.output();
    let well = status.is_some_and(|status| status.success()) && said.contains("well");
    assert!(well, "{script}: {status:?}\n{said}\ntidegate said:\n{}", gate.output());
}

/// Where bin/setup puts the client libraries: beside what cargo builds.
fn installed() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp");
    let clients = target.join("clients");
    assert!(clients.exists(), "{} is missing: run bin/setup", clients.display());
    clients
}
