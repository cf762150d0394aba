//! The example applications of docs/examples, started as a platform starts them: each line of their Procfile, the program
//! on PATH, one environment for all. Twenty requests and as many jobs at once, over what two small pools allow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tempfile::TempDir;

use support::metrics::{self, Page};
use support::postgres::Postgres;
use support::process::Process;
use support::redis::Redis;
use support::tidegate::clean_command;
use support::{eventually, ports, programs};

/// Longest wait for anything: they load whole frameworks.
const LIMIT: Duration = Duration::from_secs(60);
/// As many as the web process has threads, or connections in its pool.
const REQUESTS: usize = 20;
/// The fewest jobs that any of the workers does at once.
const JOBS: f64 = 8.0;
/// The default pool of the web process, and what the Procfiles give the worker.
const POSTGRES_POOLS: usize = 5 + 2;
const REDIS_POOLS: usize = 4 + 4;

#[test]
fn rails_with_sidekiq() {
    let app = App::of("rails-sidekiq");
    app.once("bundle install --local");
    app.works().is_pooled();
}

#[test]
fn django_with_celery() {
    App::of("django-celery").works().is_pooled();
}

#[test]
fn node_with_bullmq() {
    let app = App::of("node-bullmq");
    let packages = programs::installed().join("node/node_modules");
    std::os::unix::fs::symlink(packages, app.home().join("node_modules")).unwrap();
    app.works();
}

/// What stands in this repository's own Procfile: both servers answer through the pool.
#[test]
fn the_smallest_procfile() {
    let app = App::empty();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Procfile");
    fs::create_dir(app.home()).unwrap();
    fs::copy(own, app.home().join("Procfile")).unwrap();
    let said = app.once(&app.procfile("web"));
    assert!(said.contains("(1 row)") && said.contains("PONG"), "{said}");
}

/// An application of its own, with the servers it works on.
struct App {
    /// Holds its copy, and a directory that stands for the one a buildpack puts on PATH.
    place: TempDir,
    postgres: Postgres,
    redis: Redis,
    port: u16,
}

/// One line of a Procfile, running, and its tidegate's admin port.
struct Line {
    process: Process,
    admin: u16,
}

/// The clients of Redis that there were in the end, and the connections that the server had for them. Of Postgres `works`
/// makes sure itself; not every application has many of Redis.
struct Crowd {
    redis: f64,
    connections: f64,
}

impl Crowd {
    fn is_pooled(&self) {
        assert!(self.redis > self.connections, "{} over {}", self.redis, self.connections);
    }
}

impl App {
    fn of(name: &str) -> Self {
        let app = Self::empty();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(name);
        let copied = Command::new("cp").arg("-r").arg(source).arg(app.home()).status();
        assert!(copied.unwrap().success());
        app
    }

    /// The servers, and no application yet.
    fn empty() -> Self {
        let place = tempfile::Builder::new().prefix("tidegate-app-").tempdir().unwrap();
        fs::create_dir(place.path().join("bin")).unwrap();
        let program = env!("CARGO_BIN_EXE_tidegate");
        std::os::unix::fs::symlink(program, place.path().join("bin/tidegate")).unwrap();
        let (postgres, redis) = (Postgres::start(), Redis::with_password());
        Self { place, postgres, redis, port: ports::free() }
    }

    fn home(&self) -> PathBuf {
        self.place.path().join("app")
    }

    /// Release, web, worker: what comes in is answered, what is to be done later is done, and the servers see few
    /// connections of many.
    fn works(&self) -> Crowd {
        self.once(&self.procfile("release"));
        let web = self.start(&self.procfile("web"));
        let answers = |web: &Line| {
            self.get("/orders/1").filter(|(status, _)| *status == 404).map(|_| web.admin)
        };
        self.until("it answers", &web, answers);
        let orders = self.while_the_table_is_locked(|release| {
            let waiting: Vec<_> = (0..REQUESTS).map(|n| self.post(n)).collect();
            self.until("all requests have a client", &web, |web| {
                (web.clients("postgres")? >= f64::from(u32::try_from(REQUESTS).ok()?)).then_some(())
            });
            self.assert_few();
            release();
            waiting.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        let worker = self.while_the_table_is_locked(|release| {
            let worker = self.start(&self.procfile("worker"));
            self.until("the jobs have clients", &worker, |worker| {
                (worker.clients("postgres")? >= JOBS).then_some(())
            });
            self.assert_few();
            release();
            worker
        });
        for (n, id) in orders.iter().enumerate() {
            let order = self.until("the order is fulfilled", &worker, |_| {
                let (status, order) = self.get(&format!("/orders/{id}"))?;
                assert_eq!(status, 200, "{order}");
                (order["state"] == "fulfilled").then_some(order)
            });
            assert_eq!(order["item"], format!("item {n}"));
        }
        self.assert_few();
        let redis = [&web, &worker].map(|line| line.clients("redis").unwrap()).iter().sum();
        let connections = u32::try_from(self.redis.connections()).unwrap();
        for line in [web, worker] {
            line.ends();
        }
        Crowd { redis, connections: connections.into() }
    }

    /// Runs `work` while whoever wants the table waits; what it is given lets them go.
    fn while_the_table_is_locked<T>(&self, work: impl FnOnce(&mut dyn FnMut()) -> T) -> T {
        let mut holder = self.postgres.superuser();
        holder.query("begin; lock table orders in access exclusive mode").expect_no_error();
        work(&mut || {
            holder.query("commit").expect_no_error();
        })
    }

    fn assert_few(&self) {
        let (postgres, redis) = (self.postgres.sessions_of("app"), self.redis.connections());
        assert!((1..=POSTGRES_POOLS).contains(&postgres), "{postgres} connections to Postgres");
        assert!(redis <= REDIS_POOLS, "{redis} connections to Redis");
    }

    /// The command of one process type.
    fn procfile(&self, kind: &str) -> String {
        let text = fs::read_to_string(self.home().join("Procfile")).unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix(&format!("{kind}: ")));
        found.unwrap_or_else(|| panic!("no {kind} in\n{text}")).to_owned()
    }

    /// Runs a line that ends by itself, well; what it said.
    fn once(&self, line: &str) -> String {
        let mut line = self.start(line);
        let status = line.process.wait(LIMIT);
        let said = line.process.output();
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{said}");
        said
    }

    fn start(&self, line: &str) -> Line {
        let admin = ports::free();
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(self.home()).process_group(0);
        // As clean as tidegate's own tests begin: nothing here of what the machine has in its environment.
        for (name, _) in clean_command().get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        let mut path = OsString::from(self.place.path().join("bin"));
        path.push(":");
        path.push(programs::installed().join("python/bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        command.env("DATABASE_URL", self.postgres.url()).env("REDIS_URL", self.redis.url());
        command.env("PORT", self.port.to_string()).env("HOST", "127.0.0.1");
        command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        command.env("RAILS_ENV", "production").env("PYTHONDONTWRITEBYTECODE", "1");
        for secret in ["SECRET_KEY", "SECRET_KEY_BASE"] {
            command.env(secret, "not much of one");
        }
        Line { process: Process::start(command, Signal::TERM), admin }
    }

    /// Polls while `line` runs.
    fn until<T>(
        &self,
        what: &str,
        line: &Line,
        mut condition: impl FnMut(&Line) -> Option<T>,
    ) -> T {
        let started = Instant::now();
        loop {
            if let Some(value) = condition(line) {
                return value;
            }
            let said = || line.process.output();
            assert!(started.elapsed() < LIMIT, "waited in vain: {what}\n{}", said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn get(&self, path: &str) -> Option<(u16, serde_json::Value)> {
        ask(self.port, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
    }

    /// Orders an item, in a thread of its own; the order's number.
    fn post(&self, n: usize) -> thread::JoinHandle<u64> {
        let (port, body) = (self.port, format!("{{\"item\": \"item {n}\"}}"));
        let request = format!(
            "POST /orders HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        thread::spawn(move || {
            let (status, order) = ask(port, &request).expect("an answer");
            assert_eq!(status, 201, "{order}");
            order["id"].as_u64().expect("a number")
        })
    }
}

/// One request, and what came: in HTTP/1.0, so that nothing comes in chunks.
fn ask(port: u16, request: &str) -> Option<(u16, serde_json::Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, serde_json::from_str(body).unwrap_or_default()))
}

impl Line {
    /// How many clients of `protocol` its tidegate has now.
    fn clients(&self, protocol: &str) -> Option<f64> {
        let page = Page(metrics::get(self.admin, "/metrics")?.body);
        Some(page.sum("tidegate_clients", &[("protocol", protocol)]))
    }

    /// Told to stop as a platform does it: all processes at once.
    fn ends(mut self) {
        let group = Pid::from_raw(i32::try_from(self.process.pid()).unwrap()).unwrap();
        kill_process_group(group, Signal::TERM).unwrap();
        let status = self.process.wait(LIMIT);
        // Puma dies of the signal once it has finished; the others end.
        let code = status.and_then(|status| status.code().or(status.signal().map(|n| 128 + n)));
        assert!(matches!(code, Some(0 | 143)), "{status:?}\n{}", self.process.output());
        eventually("all its processes are gone", || test_kill_process_group(group).err());
    }
}
