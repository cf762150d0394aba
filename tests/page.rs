//! The status page in a real browser, and `tidegate top` beside it: both name five clients that leak a pool of five.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use support::postgres::Postgres;
use support::process::Process;
use support::programs;
use support::redis::Redis;
use support::tidegate::{Setup, Tidegate};

const POOL_SIZE: usize = 5;

/// Who keeps a connection for a second without using it is named.
const SETTINGS: &str = "[postgres]\nleak_ms = 1000\n[redis]\n[[redis.namespaces]]\nname = \"cache\"\nmode = \"prefix\"\n";

#[test]
fn the_page_tells_a_browser_who_holds_the_connections() {
    let stage = Stage::new();
    stage.browse("page_reader.mjs", &[], Duration::from_secs(90));
}

/// Makes the picture in README: `cargo test --test page -- --ignored picture`.
#[test]
#[ignore = "it takes three minutes, and writes docs/status-page.png"]
fn the_picture() {
    let stage = Stage::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status-page.png");
    let file = file.to_str().unwrap();
    stage.browse("page_picture.mjs", &[("PICTURE", file)], Duration::from_secs(300));
    let length = std::fs::metadata(file).unwrap().len();
    assert!(length < 200_000, "{length} bytes are too many for a picture");
}

/// A Postgres and a Redis behind one tidegate.
struct Stage {
    postgres: Postgres,
    gate: Tidegate,
    _redis: Redis,
    _settings: tempfile::NamedTempFile,
}

impl Stage {
    fn new() -> Self {
        let (postgres, redis) = (Postgres::start(), Redis::with_password());
        let mut settings = tempfile::NamedTempFile::new().unwrap();
        settings.write_all(SETTINGS.as_bytes()).unwrap();
        let setup = Setup::new().postgres(&postgres).redis(&redis).config(settings.path());
        let gate = setup.pool_size(POOL_SIZE).wait_ms(120_000).start();
        Self { postgres, gate, _redis: redis, _settings: settings }
    }

    fn url(&self) -> String {
        let (server, gate) = (self.postgres.port(), self.gate.postgres_port());
        self.postgres.url().replace(&server.to_string(), &gate.to_string())
    }

    fn browse(&self, script: &str, more: &[(&str, &str)], limit: Duration) {
        let mut command = programs::interpreter(script);
        command.env("DATABASE_URL", self.url()).envs(more.iter().copied());
        command.env("ADMIN_URL", format!("http://127.0.0.1:{}", self.gate.admin_port()));
        command.env("TIDEGATE_PID", self.gate.pid().to_string());
        let mut program = Process::start(command, Signal::KILL);
        let status = program.wait(limit);
        let said = program.output();
        let well = status.is_some_and(|status| status.success()) && said.contains("well");
        assert!(well, "{script}: {status:?}\n{said}\ntidegate said:\n{}", self.gate.output());
    }
}
