//! The patterns that a platform's guide to its add-ons shows, in programs that `tidegate run` starts with no setting at
//! all: only `DATABASE_URL` and `REDIS_URL`, as a dyno has them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::postgres::Postgres;
use support::process::Process;
use support::programs;
use support::redis::Redis;
use support::tidegate::clean_command;

const LIMIT: Duration = Duration::from_secs(60);
/// What the README says of the default.
const POSTGRES_POOL: usize = 5;
const REDIS_POOL: usize = 4;

#[test]
fn psycopg2_with_the_urls_parts() {
    Guest::of("guide_psycopg2.py").stays();
}

#[test]
fn django_with_its_cache_and_sessions_in_redis() {
    Guest::of("guide_django.py").stays();
}

#[test]
fn ioredis_with_expiry_and_a_subscriber() {
    Guest::of("guide_ioredis.mjs").stays();
}

/// A program that `tidegate run` wraps, and the servers it works on.
struct Guest {
    postgres: Postgres,
    redis: Redis,
    program: Process,
    most: Connections,
}

#[derive(Debug, Default)]
struct Connections {
    postgres: usize,
    redis: usize,
}

impl Guest {
    fn of(script: &str) -> Self {
        let (postgres, redis) = (Postgres::start(), Redis::with_password());
        let interpreter = programs::interpreter(script);
        let mut command = clean_command();
        command.env("DATABASE_URL", postgres.url()).env("REDIS_URL", redis.url());
        command.args(["run", "--"]).arg(interpreter.get_program()).args(interpreter.get_args());
        let program = Process::start(command, Signal::KILL);
        Self { postgres, redis, program, most: Connections::default() }
    }

    /// Until it has ended well, while the servers are asked again and again how many connections they see.
    fn stays(mut self) {
        let started = Instant::now();
        let status = loop {
            let (postgres, redis) = (self.postgres.sessions_of("app"), self.redis.connections());
            self.most.postgres = self.most.postgres.max(postgres);
            self.most.redis = self.most.redis.max(redis);
            if let Some(status) = self.program.wait(Duration::from_millis(5)) {
                break status;
            }
            assert!(started.elapsed() < LIMIT, "it does not end:\n{}", self.program.output());
        };
        let said = self.program.output();
        assert!(status.success(), "{status:?}\n{said}");
        let counts = said.lines().find_map(|line| line.strip_prefix("well: ")).expect(&said);
        for (name, most, pool) in [
            ("postgres", self.most.postgres, POSTGRES_POOL),
            ("redis", self.most.redis, REDIS_POOL),
        ] {
            let clients = clients_of(counts, name);
            assert!(most <= pool, "{most} connections to {name}\n{said}");
            assert!(clients == 0 || (1..clients).contains(&most), "{most} of {clients}: {name}");
        }
    }
}

/// How many clients of `name` the program had at once: `postgres 20 redis 20`, as it says in the end.
fn clients_of(counts: &str, name: &str) -> usize {
    let mut words = counts.split(' ').skip_while(|word| *word != name);
    words.nth(1).map_or(0, |count| count.parse().expect("a count"))
}
