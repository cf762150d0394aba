//! The status page in a real browser, and `tidegate top` beside it: both name five clients that leak a pool of five.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use support::eventually;
use support::pg::{Connection, Login};
use support::postgres::Postgres;
use support::process::Process;
use support::programs;
use support::redis::Redis;
use support::tidegate::{Setup, Tidegate, clean_command};

const POOL_SIZE: usize = 5;

/// Who keeps a connection for a second without using it is named.
const SETTINGS: &str = "[postgres]\nleak_ms = 1000\n[redis]\n[[redis.namespaces]]\nname = \"cache\"\nmode = \"prefix\"\n";

#[test]
fn the_page_tells_a_browser_who_holds_the_connections() {
    let stage = Stage::new();
    stage.browse("page_reader.mjs", &[], Duration::from_secs(90));
}

/// The same without a browser: `top`, whose standard output is no terminal here, writes it once.
#[test]
fn top_names_a_client_that_leaks() {
    let stage = Stage::new();
    let admin = format!("127.0.0.1:{}", stage.gate.admin_port());
    let login = Login::app().with("application_name", "web.1\u{1b}[2J");
    let mut leaking = Connection::open(stage.gate.postgres_port(), &login);
    leaking.query("begin").expect_no_error();
    leaking.query("select 'a secret'").expect_no_error();
    let said = eventually("top names it", || {
        let said = top(&["--once", "--admin", &admin]).0;
        said.contains("LEAK idle in trans.").then_some(said)
    });
    assert!(said.contains(&format!("at http://{admin}, up for")), "{said}");
    assert!(said.contains("Leaking: 1 client keeps a connection unused; 1 of 5 in use"), "{said}");
    assert!(said.contains("[2J (client"), "{said}");
    assert!(said.contains("select ?") && !said.contains("a secret"), "{said}");
    assert!(said.contains("namespace cache: 0 clients"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    // Without flags it asks where the settings say; a pipe is no terminal.
    let (found, _) = top_with(&[("TIDEGATE_ADMIN_LISTEN", &admin)], &[]);
    assert!(found.contains("Leaking: 1 client"), "{found}");
    drop(stage);
    let (said, success) = top(&["--admin", &admin]);
    assert!(!success && said.contains("is tidegate running?"), "{said}");
}

/// In a real terminal: it draws, scrolls, and gives the terminal back, whatever ends it.
#[test]
fn top_gives_the_terminal_back() {
    let stage = Stage::new();
    let url = format!("http://127.0.0.1:{}", stage.gate.admin_port());
    let mut command = programs::interpreter("top_terminal.py");
    command.env("ADMIN_URL", url).env("TIDEGATE", env!("CARGO_BIN_EXE_tidegate"));
    let mut program = Process::start(command, Signal::KILL);
    let status = program.wait(Duration::from_secs(60));
    let said = program.output();
    assert!(status.is_some_and(|status| status.success()) && said.contains("well"), "{said}");
}

/// What `tidegate top` says, and whether it succeeded.
fn top(arguments: &[&str]) -> (String, bool) {
    top_with(&[], arguments)
}

fn top_with(environment: &[(&str, &str)], arguments: &[&str]) -> (String, bool) {
    let mut command = clean_command();
    command.arg("top").args(arguments).envs(environment.iter().copied());
    let mut process = Process::start(command, Signal::KILL);
    let status = process.wait(Duration::from_secs(20)).expect("it ends by itself");
    (process.output(), status.success())
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
