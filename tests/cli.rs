//! The program as its user meets it: exit codes, signals, messages, rewritten variables.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Longest life of a process under test: far beyond what any needs, so that a hang is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

const DB: (&str, &str) = ("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:9/app?sslmode=require");
const REDIS: (&str, &str) = ("REDIS_URL", "rediss://:hunter2@127.0.0.1:9/1");

/// Kept by the tests that need to know who holds the default ports.
static DEFAULT_PORTS: Mutex<()> = Mutex::new(());

/// A port that is free now, below the ephemeral range; each call tries another.
fn port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests are processes with neighbouring ids: apart by more ports than one of them takes.
    let spread = u16::try_from(std::process::id().wrapping_mul(37) % 15_000).unwrap();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 15_000 + (spread + step) % 15_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// tidegate with nothing in its environment but a path, what is given, and free ports.
fn tidegate(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("USER", "me");
    for section in ["ADMIN", "POSTGRES", "REDIS"] {
        command.env(format!("TIDEGATE_{section}_LISTEN"), format!("127.0.0.1:{}", port()));
    }
    command.envs(variables.iter().copied());
    // A group of its own: never a terminal's foreground group, whoever runs the tests.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(child: Child) -> Output {
    let pid = pid(&child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("still running after {PATIENCE:?}");
    })
}

fn output(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    text(finish(tidegate(arguments, variables).spawn().unwrap()))
}

fn text(output: Output) -> (Option<i32>, String, String) {
    let words = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), words(output.stdout), words(output.stderr))
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Waits for the child's first line on standard output.
/// With `OWN` for each credential that was made for the command.
fn without_credentials(text: &str) -> String {
    let mut parts: Vec<String> = text.split('@').map(str::to_owned).collect();
    let last = parts.len() - 1;
    for part in &mut parts[..last] {
        let (before, credential) = part.rsplit_once(':').unwrap();
        assert!(credential.len() == 32 && credential.bytes().all(|byte| byte.is_ascii_hexdigit()));
        *part = format!("{before}:OWN");
    }
    parts.join("@")
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let mut byte = [0];
    // Byte by byte: what follows stays for `finish`.
    while child.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    line
}

#[test]
fn the_command_sees_rewritten_urls_and_its_own_streams() {
    let script = "cat; echo \"$DATABASE_URL $REDIS_URL $PGHOST\"; echo err >&2";
    let (postgres, redis) = (port(), port());
    let mut command = tidegate(&["run", "--", "sh", "-c", script], &[DB, REDIS, ("PGHOST", "pg")]);
    command.env("TIDEGATE_POSTGRES_LISTEN", format!("127.0.0.1:{postgres}"));
    command.env("TIDEGATE_REDIS_LISTEN", format!("127.0.0.1:{redis}"));
    let mut child = command.env("TIDEGATE_LOG", "off").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let (status, stdout, stderr) = text(finish(child));
    assert_eq!(status, Some(0));
    assert_eq!(
        without_credentials(&stdout),
        format!(
            "in\npostgres://u:OWN@127.0.0.1:{postgres}/app?sslmode=disable \
             redis://:OWN@127.0.0.1:{redis}/1 pg\n"
        )
    );
    assert_eq!(stderr, "err\n", "the log is off and the command's standard error its own");
}

#[test]
fn run_without_anything_to_pool_still_runs() {
    let (status, stdout, stderr) = output(&["run", "echo", "hello"], &[]);
    assert_eq!((status, stdout.as_str()), (Some(0), "hello\n"));
    assert!(stderr.contains("nothing to pool"), "{stderr}");
}

#[test]
fn signals_are_passed_on() {
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::QUIT, "QUIT"),
        (Signal::WINCH, "WINCH"),
    ] {
        // The shell cannot be interrupted in `read`, so it waits for a job.
        let script = format!("trap 'exit 9' {name}; sleep 30 & echo ready; wait; kill $!");
        let mut child = tidegate(&["run", "--", "sh", "-c", &script], &[DB]).spawn().unwrap();
        // The sleeper would hold our pipes open beyond the shell's end.
        assert_eq!(first_line(&mut child), "ready", "{name}");
        drop((child.stdout.take(), child.stderr.take()));
        kill_process(pid(&child), signal).unwrap();
        assert_eq!(finish(child).status.code(), Some(9), "SIG{name}");
    }
}

/// As under nohup: neither we nor the command take notice.
#[test]
fn a_signal_that_we_were_started_to_ignore_ends_nobody() {
    let script = "echo ready; read line; exit 4";
    let plain = tidegate(&["run", "--", "sh", "-c", script], &[DB]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    command.arg(plain.get_program()).args(plain.get_args()).env_clear();
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    kill_process(pid(&child), Signal::HUP).unwrap();
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert_eq!(finish(child).status.code(), Some(4));
}

#[test]
fn a_command_that_does_not_mind_sigterm_is_waited_for() {
    let script = "trap '' TERM; echo ready; read line; exit 5";
    let grace = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(grace.path(), "child_grace_ms = 0\ndrain_ms = 0").unwrap();
    let path = grace.path().to_str().unwrap();
    let mut command = tidegate(&["run", "--config", path, "--", "sh", "-c", script], &[DB]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    kill_process(pid(&child), Signal::TERM).unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("has not ended in time")));
    drop(child.stdin.take());
    assert_eq!(finish(child).status.code(), Some(5));
}

#[test]
fn serve_stops_when_told() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut child = tidegate(&["serve"], &[DB]).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().contains("listener=postgres")), "it never listened");
        kill_process(pid(&child), signal).unwrap();
        assert!(log.any(|line| line.unwrap().contains("told to stop")));
        assert_eq!(finish(child).status.code(), Some(0));
    }
}

#[test]
fn a_port_that_was_asked_for_and_is_taken_is_an_error() {
    let holder = TcpListener::bind(("127.0.0.1", port())).unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for section in ["POSTGRES", "REDIS", "ADMIN"] {
        let variable = format!("TIDEGATE_{section}_LISTEN");
        for arguments in [&["run", "echo", "ran"][..], &["serve"]] {
            let (status, stdout, stderr) = output(arguments, &[DB, REDIS, (&variable, &taken)]);
            assert_eq!((status, stdout.as_str()), (Some(1), ""), "{arguments:?}");
            assert!(stderr.contains(&taken) && stderr.contains(&variable), "{stderr}");
        }
    }
}

#[test]
fn run_takes_another_port_when_the_default_is_taken_and_serve_says_so() {
    let _alone = DEFAULT_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    // Held by us or by somebody else: either way it is taken.
    let _holder = TcpListener::bind(("127.0.0.1", 6432));
    let mut run = tidegate(&["run", "--", "sh", "-c", "echo $DATABASE_URL"], &[DB]);
    let (status, stdout, stderr) =
        text(finish(run.env_remove("TIDEGATE_POSTGRES_LISTEN").spawn().unwrap()));
    assert_eq!(status, Some(0), "{stderr}");
    let stdout = without_credentials(&stdout);
    let port = stdout.trim().strip_prefix("postgres://u:OWN@127.0.0.1:").unwrap();
    let port: u16 = port.split_once('/').unwrap().0.parse().unwrap();
    assert!(port > 6432 && port < 32_768, "{stdout}");
    let mut serve = tidegate(&["serve"], &[DB]);
    let (status, _, stderr) =
        text(finish(serve.env_remove("TIDEGATE_POSTGRES_LISTEN").spawn().unwrap()));
    assert_eq!(status, Some(1));
    assert!(stderr.contains("127.0.0.1:6432"), "{stderr}");
}

#[test]
fn an_upstream_that_is_ourselves_is_refused() {
    let own = port().to_string();
    let listen = format!("127.0.0.1:{own}");
    let url = format!("postgres://u:hunter2@localhost:{own}/app");
    let variables = [("DATABASE_URL", url.as_str()), ("TIDEGATE_POSTGRES_LISTEN", &listen)];
    for arguments in [&["run", "echo", "ran"][..], &["serve"], &["check"]] {
        let (status, stdout, stderr) = output(arguments, &variables);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?} {stderr}");
        assert!(stderr.contains("TIDEGATE_DATABASE_URL"), "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
    let real = [&variables[..], &[("TIDEGATE_DATABASE_URL", DB.1)]].concat();
    let (status, stdout, _) = output(&["run", "sh", "-c", "echo $DATABASE_URL"], &real);
    assert_eq!(status, Some(0));
    let stdout = without_credentials(&stdout);
    assert!(stdout.starts_with(&format!("postgres://u:OWN@{listen}/app")), "{stdout}");
}

/// What the outer one listens on is not asked for once more.
#[test]
fn one_inside_another_wants_no_socket_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let (socket, listen) = (home.path().join("redis"), format!("127.0.0.1:{}", port()));
    let variables = [
        REDIS,
        ("TIDEGATE_REDIS_SOCKET", socket.to_str().unwrap()),
        ("TIDEGATE_REDIS_PIN", "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
        ("TIDEGATE_REDIS_LISTEN", &listen),
    ];
    let listeners = ["-u", "TIDEGATE_REDIS_LISTEN", "-u", "TIDEGATE_ADMIN_LISTEN"];
    let inner = [env!("CARGO_BIN_EXE_tidegate"), "run", "env"];
    let arguments = [&["run", "env"], &listeners[..], &inner[..]].concat();
    let (status, stdout, stderr) = output(&arguments, &variables);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(!stdout.contains("TIDEGATE_REDIS_SOCKET") && !stdout.contains("_PIN"), "{stdout}");
}

/// The servers' own URLs, under whatever names, and what only tidegate is to know.
#[test]
fn the_command_has_nothing_that_leads_past() {
    let listen = format!("127.0.0.1:{}", port());
    let variables = [
        ("DATABASE_URL", "postgres://u:local@localhost/app"),
        ("TIDEGATE_DATABASE_URL", "postgres://u:hunter2@past.example/app"),
        ("TIDEGATE_DATABASE_URL_FILE", "/run/past"),
        ("DATABASE_URL_FILE", "/run/past"),
        ("TIDEGATE_POSTGRES_LISTEN", &listen),
        ("TIDEGATE_POSTGRES_POOL_SIZE", "7"),
        ("TIDEGATE_PUSH_REMOTE_WRITE_URL", "http://127.0.0.1:9/past"),
        ("TIDEGATE_PUSH_REMOTE_WRITE_TOKEN", "past"),
        ("PGHOSTADDR", "192.0.2.7"),
        ("PGREQUIREAUTH", "md5"),
        ("PGSSLROOTCERT", "/run/roots.pem"),
    ];
    let (status, stdout, stderr) = output(&["run", "env"], &variables);
    assert_eq!(status, Some(0), "{stderr}");
    let stdout = without_credentials(&stdout);
    let found = |wanted: &str| stdout.lines().any(|line| line.starts_with(wanted));
    assert!(!stdout.contains("past") && !stdout.contains("hunter2"), "{stdout}");
    assert!(found(&format!("DATABASE_URL=postgres://u:OWN@{listen}/app")), "{stdout}");
    assert!(
        !found("PGHOSTADDR") && !found("PGREQUIREAUTH"),
        "they were meant for the server: {stdout}"
    );
    for stays in ["TIDEGATE_POSTGRES_POOL_SIZE=7", "PGSSLROOTCERT=/run/roots.pem"] {
        assert!(found(stays), "settings stay: {stdout}");
    }
}

/// Others are handed on, as variables with plain settings are.
#[test]
fn a_file_with_a_secret_of_ours_is_not_handed_on() {
    let listen = format!("127.0.0.1:{}", port());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let namespace = "[[redis.namespaces]]\nname = \"cache\"\n";
    for (text, handed_on) in [
        ("[postgres]\npool_size = 2".to_owned(), true),
        (namespace.to_owned(), true),
        (format!("{namespace}password = \"word\""), false),
        (format!("[redis]\nnamespace = \"cache\"\n{namespace}"), false),
        ("[push]\nremote_write_url = \"http://127.0.0.1:9/w\"".to_owned(), false),
    ] {
        std::fs::write(file.path(), &text).unwrap();
        let redis = ("TIDEGATE_REDIS_LISTEN", &*listen);
        let (status, stdout, stderr) =
            output(&["run", "env"], &[REDIS, redis, ("TIDEGATE_CONFIG", path)]);
        assert_eq!(status, Some(0), "{stderr}");
        assert_eq!(stdout.contains(path), handed_on, "{text}: {stdout}");
    }
}

#[test]
fn one_tidegate_inside_another_goes_through_it() {
    let _alone = DEFAULT_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let program = env!("CARGO_BIN_EXE_tidegate");
    let script = format!("echo $DATABASE_URL; {program} run -- sh -c 'echo $DATABASE_URL'");
    let mut command = tidegate(&["run", "--", "sh", "-c", &script], &[DB]);
    for section in ["ADMIN", "POSTGRES", "REDIS"] {
        command.env_remove(format!("TIDEGATE_{section}_LISTEN"));
    }
    let (status, stdout, stderr) = text(finish(command.spawn().unwrap()));
    assert_eq!(status, Some(0), "{stderr}");
    let (outer, inner) = stdout.trim().split_once('\n').unwrap();
    assert_ne!(outer, inner, "the inner one listens elsewhere");
}

#[test]
fn check_says_what_it_means_with_secrets_masked() {
    let (status, stdout, stderr) = output(&["check"], &[DB, REDIS, ("TIDEGATE_WORKRS", "2")]);
    assert_eq!(status, Some(0), "{stderr}");
    for part in [
        "postgres://u:***@127.0.0.1:9/app?sslmode=require",
        "rediss://:***@127.0.0.1:9/1",
        "at most 5 connections",
        "at most 4 connections",
        "did you mean TIDEGATE_WORKERS?",
    ] {
        assert!(stdout.contains(part), "{stdout} lacks {part}");
    }
    assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"));
}

#[test]
fn a_wrong_setting_exits_with_2_and_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[postgres]\npool_sise = 1\n").unwrap();
    let path = file.path().to_str().unwrap();
    for (arguments, variable, parts) in [
        (&["check"][..], ("TIDEGATE_WORKERS", "x"), &["TIDEGATE_WORKERS", "\"x\"", "1 to 64"][..]),
        (&["serve", "--workers", "x"], DB, &["--workers", "\"x\""]),
        (&["--config", path, "check"], DB, &[path, "line 2", "did you mean postgres.pool_size?"]),
        (&["check"], ("TIDEGATE_CONFIG", path), &[path, "line 2"]),
        (&["run", "true"], ("DATABASE_URL", "postgres://u:hun@ter2@a/d"), &["raw @"]),
        (&["serve"], ("A", "b"), &["nothing to serve", "DATABASE_URL"]),
        (&["serve", "--wrokers", "2"], DB, &["--wrokers", "--workers"]),
        (&["sevre"], DB, &["serve"]),
        (&["run"], DB, &["CMD"]),
        (
            &["check"],
            ("TIDEGATE_POSTGRES_AUTH", "trst"),
            &["password, trust", "did you mean trust"],
        ),
    ] {
        let (status, stdout, stderr) = output(arguments, &[variable]);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{arguments:?}: {stderr:?} lacks {part:?}");
        }
        assert!(!stderr.contains("hun") && !stderr.contains("ter2"), "{stderr}");
    }
}

#[test]
fn help_and_version_help() {
    let (status, stdout, _) = output(&["--version"], &[]);
    assert_eq!((status, stdout), (Some(0), format!("tidegate {}\n", env!("CARGO_PKG_VERSION"))));
    let (status, stdout, _) = output(&["--help"], &[]);
    assert_eq!(status, Some(0));
    for part in ["run", "serve", "check", "tidegate run -- bundle exec puma", "TIDEGATE_CONFIG"] {
        assert!(stdout.contains(part), "{stdout} lacks {part}");
    }
}

/// Neither needs settings, or a server.
#[test]
fn the_manual_and_completions_are_written() {
    let wrong = ("TIDEGATE_WORKERS", "x");
    let (status, manual, _) = output(&["man"], &[wrong]);
    assert_eq!(status, Some(0));
    assert!(manual.contains(".TH tidegate 1") && manual.contains("TIDEGATE_CONFIG"), "{manual}");
    let (status, manual, _) = output(&["man", "run"], &[wrong]);
    assert!(status == Some(0) && manual.contains(".TH tidegate-run 1"), "{manual}");
    let (status, stdout, stderr) = output(&["man", "sevre"], &[]);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("sevre"), "{stderr}");
    let (status, script, _) = output(&["completions", "bash"], &[wrong]);
    assert!(status == Some(0) && script.contains("--redis-pool-size"), "{script}");
    let checked = Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
    assert!(checked.success());
    let (status, _, stderr) = output(&["completions", "bahs"], &[]);
    assert!(status == Some(2) && stderr.contains("bash"), "{stderr}");
}

#[test]
fn log_lines_have_the_form_that_was_set() {
    let (_, _, logfmt) = output(&["run", "true"], &[DB]);
    assert!(logfmt.lines().all(|line| line.contains("level=")), "{logfmt}");
    let (_, _, json) = output(&["run", "--log-format", "json", "true"], &[DB]);
    assert!(json.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{json}");
    let (_, _, silent) = output(&["run", "--log", "error", "true"], &[DB]);
    assert_eq!(silent, "");
}
