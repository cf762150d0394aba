//! What tidegate holds in its memory and its environment is for nobody else of the same user to read: a debugger left on the
//! machine, or the application itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, geteuid};
use support::eventually;
use support::process::Process;
use support::tidegate::clean_command;
use tempfile::TempDir;

const PASSWORD: &str = "hunter2-of-the-server";

/// What runs `program` as a user without privileges: root may read everything, and would see no difference.
fn unprivileged(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    command
}

/// Where that user may run it.
fn copy(home: &TempDir) -> PathBuf {
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = home.path().join("tidegate");
    fs::copy(env!("CARGO_BIN_EXE_tidegate"), &copy).unwrap();
    copy
}

/// What another process of the user reads of a process, or why not.
fn read(pid: &str, file: &str) -> Result<String, String> {
    // One byte tells: of a closed file there is none.
    let bytes = if file == "mem" { "1" } else { "100000" };
    let mut head = unprivileged(Path::new("/usr/bin/head"));
    let output = head.args(["-c", bytes, &format!("/proc/{pid}/{file}")]).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn start(tidegate: &Path, words: &[&str]) -> Process {
    let mut command = unprivileged(tidegate);
    for (name, value) in clean_command().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let url = format!("postgres://u:{PASSWORD}@127.0.0.1:9/app");
    command.env("DATABASE_URL", url).env("TIDEGATE_ADMIN_LISTEN", "127.0.0.1:0");
    command.env("TIDEGATE_POSTGRES_LISTEN", "127.0.0.1:0").args(words);
    Process::start(command, Signal::KILL)
}

#[test]
fn another_process_of_the_user_reads_nothing_of_ours() {
    let home = TempDir::new().unwrap();
    let tidegate = copy(&home);
    let script = "echo wrapped $$; while kill -0 $PPID; do sleep 0.05; done";
    for words in [&["run", "--", "sh", "-c", script][..], &["serve"]] {
        let process = start(&tidegate, words);
        let pid = process.pid().to_string();
        let sign = if words[0] == "run" { "wrapped " } else { "listener=postgres" };
        eventually("it has begun", || process.output().contains(sign).then_some(()));
        for file in ["environ", "mem", "maps"] {
            let Err(denied) = read(&pid, file) else { panic!("{file} can be read") };
            assert!(denied.contains("Permission denied"), "{file}: {denied}");
        }
        // The command is its user's: so this would have been seen.
        if let Some((_, rest)) = process.output().split_once("wrapped ") {
            let command = rest.lines().next().unwrap().trim().to_owned();
            let environment = read(&command, "environ").unwrap();
            assert!(environment.contains("DATABASE_URL=postgres://u:"));
            assert!(!environment.contains(PASSWORD));
        }
    }
}
