//! The clients that applications use, each with its own default greeting, through a pool that is
//! smaller than what they open. bin/setup installs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "clients/crowd.rs"]
mod crowd;
#[path = "clients/handshakes.rs"]
mod handshakes;
#[path = "clients/redis_rs.rs"]
mod redis_rs_client;
#[path = "clients/sqlx.rs"]
mod sqlx_client;
mod support;
#[path = "clients/tokio_postgres.rs"]
mod tokio_postgres_client;
#[path = "clients/tools.rs"]
mod tools;

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crowd::Crowd;
use support::postgres::Postgres;
use support::process::Process;
use support::programs;
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
fn postgres_js() {
    with_postgres("postgres_client.mjs");
}

#[test]
fn jdbc() {
    with_postgres("JdbcClient.java");
}

#[test]
fn python_at_the_console() {
    with_postgres("console_client.py");
}

#[test]
fn node_at_the_console() {
    with_postgres("console_client.mjs");
}

#[test]
fn jdbc_at_the_console() {
    with_postgres("ConsoleClient.java");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_postgres() {
    let (server, gate, url) = pooled_postgres();
    let mut crowd = Crowd::new(&server, &gate);
    tokio_postgres_client::work(&url, &mut crowd).await.unwrap();
    assert!(server.sessions_of("app") <= SERVER_CONNECTIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx() {
    let (server, gate, url) = pooled_postgres();
    let mut crowd = Crowd::new(&server, &gate);
    sqlx_client::work(&url, &mut crowd).await.unwrap();
    assert!(server.sessions_of("app") <= SERVER_CONNECTIONS);
}

#[test]
fn redis_py() {
    with_redis("redis_client.py");
}

#[test]
fn celery() {
    with_redis("celery_client.py");
}

#[test]
fn rq() {
    with_redis("rq_client.py");
}

#[test]
fn django_redis() {
    with_redis("django_redis_client.py");
}

#[test]
fn bullmq() {
    with_redis("bullmq_client.mjs");
}

#[test]
fn ioredis() {
    with_redis("ioredis_client.mjs");
}

#[test]
fn node_redis() {
    with_redis("node_redis_client.mjs");
}

/// Clients that know nothing of namespaces live in one.
#[test]
fn celery_in_a_namespace() {
    in_a_namespace("celery_client.py");
}

#[test]
fn rq_in_a_namespace() {
    in_a_namespace("rq_client.py");
}

#[test]
fn django_redis_in_a_namespace() {
    in_a_namespace("django_redis_client.py");
}

#[test]
fn bullmq_in_a_namespace() {
    in_a_namespace("bullmq_client.mjs");
}

#[test]
fn redis_py_in_a_namespace() {
    in_a_namespace("redis_client.py");
}

#[test]
fn ioredis_in_a_namespace() {
    in_a_namespace("ioredis_client.mjs");
}

#[test]
fn node_redis_in_a_namespace() {
    in_a_namespace("node_redis_client.mjs");
}

/// The README's example: `run` gives the command a URL for each.
#[test]
fn three_share_one_redis() {
    let server = Redis::with_password();
    let file = tempfile::NamedTempFile::new().unwrap();
    let names = ["cache", "session", "queue"];
    let tables =
        names.map(|name| format!("[[redis.namespaces]]\nname = \"{name}\"\nmode = \"prefix\"\n"));
    std::fs::write(file.path(), tables.concat()).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/one_redis_client.py");
    let mut command = support::tidegate::clean_command();
    command.env("REDIS_URL", server.url()).env("TIDEGATE_CONFIG", file.path());
    for (listener, port) in [("REDIS", support::ports::free()), ("ADMIN", support::ports::free())] {
        command.env(format!("TIDEGATE_{listener}_LISTEN"), format!("127.0.0.1:{port}"));
    }
    command.args(["run", "--"]).arg(programs::installed().join("python/bin/python")).arg(source);
    let mut run = Process::start(command, Signal::KILL);
    let status = run.wait(Duration::from_secs(60));
    let said = run.output();
    assert!(
        status.is_some_and(|status| status.success()) && said.contains("well"),
        "{status:?}\n{said}"
    );
    let mut direct = server.direct();
    assert_eq!(direct.command(&["KEYS", "queue:*"]).words(), Vec::<String>::new());
    let left = direct.command(&["KEYS", "*"]).words();
    assert!(
        left.iter().all(|key| key.starts_with("cache:") || key.starts_with("session:")),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_rs() {
    let server = Redis::with_password();
    let gate = Setup::new().redis(&server).pool_size(4).start();
    let url = server.url().replace(&server.port().to_string(), &gate.redis_port().to_string());
    redis_rs_client::work(&url).await.unwrap();
    assert!(server.connections() <= 4);
}

fn with_postgres(script: &str) {
    let (server, gate, url) = pooled_postgres();
    run(script, "DATABASE_URL", &url, &gate);
    assert!(server.sessions_of("app") <= SERVER_CONNECTIONS);
}

/// A server, the pool in front of it, and the pool's URL.
fn pooled_postgres() -> (Postgres, Tidegate, String) {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, SERVER_CONNECTIONS);
    let url = server.url().replace(&server.port().to_string(), &gate.postgres_port().to_string());
    (server, gate, url)
}

fn with_redis(script: &str) {
    let server = Redis::with_password();
    let gate = Setup::new().redis(&server).pool_size(4).start();
    let url = server.url().replace(&server.port().to_string(), &gate.redis_port().to_string());
    run(script, "REDIS_URL", &url, &gate);
    assert!(server.connections() <= 4);
}

fn in_a_namespace(script: &str) {
    let server = Redis::with_password();
    let file = tempfile::NamedTempFile::new().unwrap();
    let text =
        "[redis]\nnamespace = \"app\"\n[[redis.namespaces]]\nname = \"app\"\nmode = \"prefix\"\n";
    std::fs::write(file.path(), text).unwrap();
    let gate = Setup::new().redis(&server).pool_size(4).config(file.path()).start();
    let url = server.url().replace(&server.port().to_string(), &gate.redis_port().to_string());
    run(script, "REDIS_URL", &url, &gate);
    let keys = server.direct().command(&["KEYS", "*"]).words();
    assert!(keys.iter().all(|key| key.starts_with("app:")), "{keys:?}");
}

fn run(script: &str, variable: &str, url: &str, gate: &Tidegate) {
    let mut command = programs::interpreter(script);
    command.env(variable, url);
    let mut client = Process::start(command, Signal::KILL);
    let status = client.wait(Duration::from_secs(60));
    let said = client.output();
    let well = status.is_some_and(|status| status.success()) && said.contains("well");
    assert!(well, "{script}: {status:?}\n{said}\ntidegate said:\n{}", gate.output());
}
