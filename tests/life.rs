//! `tidegate run` seen from outside: whoever waits for it, signals it, or shares a terminal with it can't tell it from the
//! command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use support::metrics::get;
use support::pg::{Connection, Login};
use support::postgres::{Postgres, USER};
use support::process::Process;
use support::tidegate::clean_command;
use support::{DEADLINE, eventually, programs};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// `tidegate run`, silent, at any free port.
fn run(command: &[&str]) -> Command {
    let mut run = clean_command();
    run.env("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0").env("TIDEGATE_LOG", "off");
    run.args(["run", "--"]).args(command);
    run
}

fn shell(script: &str) -> Command {
    run(&["sh", "-c", script])
}

fn status(mut command: Command) -> ExitStatus {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

#[test]
fn every_exit_code_and_signal_is_the_commands() {
    // Core files of the shells would litter the directory.
    let codes = (0..=255).map(|code| format!("exit {code}"));
    let signals = (1..=15).map(|signal| format!("ulimit -c 0; kill -{signal} $$"));
    let scripts = Mutex::new(codes.chain(signals).collect::<Vec<_>>());
    let seen = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(script) = { scripts.lock().unwrap().pop() } {
                    let mut plain = Command::new("sh");
                    plain.args(["-c", &script]);
                    let (with, without) = (status(shell(&script)), status(plain));
                    assert_eq!(with.into_raw(), without.into_raw(), "{script}");
                    seen.lock().unwrap().insert(with.into_raw());
                }
            });
        }
    });
    assert_eq!(seen.lock().unwrap().len(), 256 + 15, "each is another");
}

#[test]
fn what_cannot_start_says_why_once_and_has_the_shells_exit_code() {
    for (command, code, why) in [
        ("/nonexistent", 127, "there is no such file"),
        ("no-such-command", 127, "there is no such program in PATH"),
        ("/etc/passwd", 126, "it is not executable"),
    ] {
        let output = run(&[command]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(
            said,
            format!("tidegate: cannot start {command}: {}", said.rsplit_once(": ").unwrap().1)
        );
        assert!(said.contains(why), "{said}");
    }
}

/// Without a terminal each reaches the command, once.
#[test]
fn every_signal_is_passed_on_once() {
    let names = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CONT", Signal::CONT),
        ("TSTP", Signal::TSTP),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("URG", Signal::URG),
        ("VTALRM", Signal::VTALARM),
        ("PROF", Signal::PROF),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
    ];
    let traps = names.map(|(name, _)| format!("trap 'echo got {name}' {name};")).concat();
    let script =
        format!("{traps} trap 'exit 6' XFSZ; echo ready; while kill -0 $PPID; do sleep 0.01; done");
    let mut apart = Command::new("setsid");
    apart.arg(TIDEGATE).args(["run", "--", "bash", "-c", &script]);
    apart.env("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0").env("TIDEGATE_LOG", "off");
    let process = Process::start(apart, Signal::KILL);
    eventually("it is ready", || process.output().contains("ready").then_some(()));
    for round in 1..=2 {
        for (name, signal) in names {
            process.signal(signal);
            let line = format!("got {name}\n");
            eventually(&line, || (process.output().matches(&line).count() >= round).then_some(()));
        }
    }
    let said = process.output();
    assert_eq!(said.matches("got ").count(), 2 * names.len(), "{said}");
}

/// Job control and keys: `tests/clients/job_control.py` sits at a terminal, with a shell in it.
#[test]
fn a_terminal_is_the_commands_own() {
    let mut command = programs::interpreter("job_control.py");
    command.env("TIDEGATE", TIDEGATE);
    let mut program = Process::start(command, Signal::KILL);
    let status = program.wait(Duration::from_secs(60));
    let said = program.output();
    assert!(status.is_some_and(|status| status.success()) && said.contains("well"), "{said}");
}

/// A shell that leaves children behind, waits until they have ended, and looks for those that nobody has waited for.
const LEAVES_ORPHANS: &str = "(sleep 0.1 &); (sleep 0.1 &); sleep 0.1; sleep 0.5; \
    for one in /proc/[0-9]*/stat; do read -r line < $one; case $line in *'(sleep) Z'*) echo $line;; esac; done; exit 7";

#[test]
fn no_zombie_is_left_by_anybody() {
    // As process 1 of a container, where that may be tried.
    let container: Option<&[&str]> = [&["-p"][..], &["-r", "-p"]].into_iter().find(|way| {
        let mut unshare = Command::new("unshare");
        unshare.args(*way).args(["--fork", "--mount-proc", "true"]);
        status(unshare).success()
    });
    let mut ways = vec![shell(LEAVES_ORPHANS)];
    if let Some(way) = container {
        let mut first = Command::new("unshare");
        first.args(way).args(["--fork", "--mount-proc", TIDEGATE, "run", "--"]);
        first.args(["sh", "-c", "test $PPID = 1 || exit 8; eval \"$0\"", LEAVES_ORPHANS]);
        first.env("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0").env("TIDEGATE_LOG", "off");
        ways.push(first);
        let mut killed = Command::new("unshare");
        killed.args(way).args(["--fork", "--mount-proc", TIDEGATE, "run", "--"]);
        killed.args(["sh", "-c", "kill -9 $$"]).env("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0");
        assert_eq!(status(killed).code(), Some(137), "process 1 does not die of signals");
    }
    for mut way in ways {
        let output = way.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!((output.status.code(), said.as_ref()), (Some(7), ""), "{way:?}");
    }
}

#[test]
fn what_the_command_leaves_behind_is_named() {
    // Until it has become sleep it goes by the shell's name.
    let named = "until grep -q sleep /proc/$!/comm; do :; done";
    let mut command = shell(&format!("sleep 3 >/dev/null 2>&1 & {named}; exit 4"));
    command.env("TIDEGATE_LOG", "warn");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(said.contains("left processes behind") && said.contains("(sleep)"), "{said}");
}

#[test]
fn the_command_is_told_when_tidegate_dies() {
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    let script = format!(
        "trap 'echo > {}; exit' TERM; echo ready; while :; do sleep 0.02; done",
        told.display()
    );
    let mut process = Process::start(shell(&script), Signal::KILL);
    eventually("it is ready", || process.output().contains("ready").then_some(()));
    assert!(process.end(Signal::KILL, DEADLINE).is_some());
    eventually("the command is told", || told.exists().then_some(()));
}

/// A part of the tests below: as the command of `tidegate run`, twelve clients at once.
#[test]
#[ignore = "the command of others"]
fn a_crowd() {
    let (port, own) = local_door();
    let pids: BTreeSet<String> = std::thread::scope(|scope| {
        let own = &own;
        let clients: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(move || {
                    let mut client = Connection::open(port, own);
                    let sql = "select pg_backend_pid() from pg_sleep(0.02)";
                    (0..10).map(|_| client.one(sql)).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    println!("crowd at {port} served by {} ", pids.len());
}

/// Where the command's URL leads, and what it comes in with.
fn local_door() -> (u16, Login) {
    let url = std::env::var("DATABASE_URL").unwrap();
    let (info, place) = url.split_once('@').unwrap();
    let place = place.split_once('/').unwrap().0;
    let port = place.strip_prefix("127.0.0.1:").expect("rewritten").parse().unwrap();
    (port, Login { password: info.rsplit_once(':').unwrap().1.to_owned(), ..Login::app() })
}

/// The words that run [`a_crowd`].
fn crowd() -> Vec<String> {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    [own, "--ignored", "--exact", "a_crowd", "--nocapture"].map(str::to_owned).to_vec()
}

fn wrapped(pool_size: &str, command: &[String]) -> Vec<String> {
    let words = [TIDEGATE, "run", "--postgres-pool-size", pool_size, "--"].map(str::to_owned);
    [&words[..], command].concat()
}

/// Runs `tidegate run` with what may be others in it before one server that `variable` leads to; by how many connections each crowd was served, and the
/// most that were open at once.
fn crowds(server: &Postgres, variable: &str, command: &[String]) -> (Vec<usize>, usize) {
    let mut all = clean_command();
    // Beginning with the program itself. No port is asked for: each takes one that is free.
    all.args(&command[1..]).env(variable, server.url()).env("TIDEGATE_LOG", "warn");
    let mut process = Process::start(all, Signal::KILL);
    let (mut most, mut watcher) = (0, server.superuser());
    let sql = format!("select count(*) from pg_stat_activity where usename = '{USER}'");
    let ended = eventually("the crowds have been served", || {
        most = most.max(watcher.one(&sql).parse().unwrap());
        process.exited()
    });
    let said = process.output();
    assert!(ended.success(), "{ended:?}\n{said}");
    process.wait(DEADLINE);
    let said = process.output();
    let counts = said.lines().filter_map(|line| line.split_once(" served by "));
    let served = counts.map(|(_, count)| count.trim().parse().unwrap()).collect();
    (served, most)
}

#[test]
fn one_run_inside_another_pools_and_so_does_the_other() {
    let server = Postgres::start();
    for (outer, inner) in [("2", "5"), ("5", "2")] {
        let command = wrapped(outer, &wrapped(inner, &crowd()));
        // The second would lead the inner one past the outer, if it had it.
        for variable in ["DATABASE_URL", "TIDEGATE_DATABASE_URL"] {
            let (served, most) = crowds(&server, variable, &command);
            assert_eq!((&served[..], most), (&[2][..], 2), "{inner} inside {outer}");
        }
    }
}

/// A core file of ours would hold every password; the command's own is its user's business.
#[test]
fn tidegate_leaves_no_core_file_and_the_command_may() {
    // How it ended, and how many files it left: none, where the machine sends core files elsewhere or forbids them.
    let ended = |script: &str| {
        let directory = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -c unlimited; {script}")]).current_dir(directory.path());
        shell.env("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0").env("TIDEGATE_LOG", "off");
        let ended = status(shell);
        let files = std::fs::read_dir(directory.path()).unwrap().count();
        (ended.signal(), ended.core_dumped(), files)
    };
    let abort = Some(Signal::ABORT.as_raw());
    let (signal, dumps, files) = ended("kill -ABRT $$");
    assert_eq!(signal, abort);
    let inside = |command: &str| ended(&format!("exec {TIDEGATE} run -- sh -c '{command}'"));
    assert_eq!(inside("kill -ABRT $PPID; sleep 60"), (abort, false, 0), "without us: {dumps}");
    assert_eq!(inside("kill -ABRT $$"), (abort, false, files), "the command's own, if any");
}

#[test]
fn runs_side_by_side_pool_each_for_itself() {
    let server = Postgres::start();
    let one = wrapped("2", &crowd()).join(" ");
    let both = format!("{one} & {one} & wait $! && wait");
    let mut command = Command::new("sh");
    command.args(["-c", &both]).env("DATABASE_URL", server.url()).env("TIDEGATE_LOG", "warn");
    let mut process = Process::start(command, Signal::KILL);
    assert!(process.wait(DEADLINE).is_some_and(|status| status.success()), "{}", process.output());
    let said = process.output();
    assert_eq!(said.matches("served by 2 ").count(), 2, "{said}");
    let ports: BTreeSet<_> = said
        .lines()
        .filter_map(|line| line.split_once("crowd at ").map(|(_, rest)| rest.to_owned()))
        .collect();
    assert_eq!(ports.len(), 2, "each at a port of its own: {said}");
}

/// `/metrics` and `/healthz` answer as long as the command lives.
#[test]
fn the_admin_port_is_there_until_the_end() {
    let port = support::ports::free();
    let mut command = shell("trap '' TERM; echo ready; read line < fifo");
    let directory = tempfile::tempdir().unwrap();
    fifo(&directory.path().join("fifo"));
    command.current_dir(directory.path()).env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{port}"));
    let mut process = Process::start(command, Signal::KILL);
    eventually("it is ready", || process.output().contains("ready").then_some(()));
    process.signal(Signal::TERM);
    for _ in 0..3 {
        assert_eq!(get(port, "/healthz").map(|answer| answer.status), Some(200));
    }
    std::fs::write(directory.path().join("fifo"), "end\n").unwrap();
    assert!(process.wait(DEADLINE).is_some_and(|status| status.success()));
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}
