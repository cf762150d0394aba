//! The command's start: a copy of ourselves that asks to be told of our death, and then becomes the command.
//!
//! The step between is there because only the process itself can ask for that (prctl(2), PR_SET_PDEATHSIG), and what it asked
//! for stays when it becomes another program. Whoever waits sees one process, with the command's own exit codes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal};

/// This very program, even where its file was replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// The command line of the step between: these words, then our process number, `--`, and the command.
const BECOME: [&str; 2] = ["become", "--parent"];

/// What the command gets when we die: its databases are gone with us.
const LAST_WORD: Signal = Signal::TERM;

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {command}: {why}")]
pub struct StartError {
    command: String,
    why: String,
    code: u8,
}

impl StartError {
    fn new(command: &OsStr, error: &io::Error) -> Self {
        let (why, code) = explain(command, error);
        Self { command: command.display().to_string(), why, code }
    }

    /// The exit code a shell would give: 127 for a command that is not there, 126 for one that
    /// cannot be executed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

/// Starts `command` (never empty) with `variables` set over our own environment, without those in `hidden`; its process number.
/// It is told of our death if the thread that calls this lives as long as we do.
pub(super) fn start(
    command: &[OsString],
    variables: &[(String, String)],
    hidden: &[String],
) -> Result<Pid, StartError> {
    let environment = |command: &mut Command| {
        for name in hidden {
            command.env_remove(name);
        }
        // Last: what is another's hidden place may be pooled itself.
        command.envs(variables.iter().map(|(name, value)| (name, value)));
    };
    let parent = rustix::process::getpid().as_raw_nonzero().to_string();
    let mut between = Command::new(OURSELVES);
    between.arg0("tidegate").args(BECOME).args([&parent, "--"]).args(command);
    environment(&mut between);
    let spawned = match between.spawn() {
        Ok(child) => Ok(child),
        // Without /proc the command starts all the same, and only is not told.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = command.first().cloned().unwrap_or_default();
            let mut plain = Command::new(&name);
            plain.args(command.iter().skip(1));
            environment(&mut plain);
            plain.spawn().map_err(|error| StartError::new(&name, &error))
        }
        Err(error) => Err(StartError::new(OsStr::new("the command's process"), &error)),
    };
    // Waiting is the supervisor's: dropping the handle neither kills nor waits.
    spawned.map(|child| Pid::from_child(&child))
}

/// The step between: becomes `command`. Returns only if that can't be done, or `parent` is gone already; the exit code, and why.
#[must_use]
pub fn become_command(parent: i32, command: &[OsString]) -> (u8, Option<StartError>) {
    // Refused, as a sandbox may do, the command starts all the same.
    let _untold = rustix::process::set_parent_process_death_signal(Some(LAST_WORD));
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if now != parent {
        return (super::Ended::Signal(LAST_WORD.as_raw()).code(), None);
    }
    let name = command.first().cloned().unwrap_or_default();
    let error = Command::new(&name).args(command.iter().skip(1)).exec();
    let error = StartError::new(&name, &error);
    (error.code, Some(error))
}

/// Why a command could not be executed, and the exit code that says so.
fn explain(command: &OsStr, error: &io::Error) -> (String, u8) {
    let found = find(command);
    let why = match (error.kind(), &found) {
        (io::ErrorKind::NotFound, None) if is_path(command) => "there is no such file".to_owned(),
        (io::ErrorKind::NotFound, None) => "there is no such program in PATH".to_owned(),
        (io::ErrorKind::NotFound, Some(path)) => what_it_lacks(path),
        (io::ErrorKind::PermissionDenied, Some(path)) => what_forbids(path),
        (io::ErrorKind::ArgumentListTooLong, _) => {
            "its arguments and environment are too long".to_owned()
        }
        (io::ErrorKind::WouldBlock, _) => {
            "the system gives no more processes (ulimit -u, or the container's limit)".to_owned()
        }
        _ => error.to_string(),
    };
    let missing = error.kind() == io::ErrorKind::NotFound && found.is_none();
    (why, if missing { 127 } else { 126 })
}

fn is_path(command: &OsStr) -> bool {
    command.as_encoded_bytes().contains(&b'/')
}

/// The file that was tried, if there is one.
fn find(command: &OsStr) -> Option<PathBuf> {
    let there = |path: &PathBuf| fs::metadata(path).is_ok();
    if is_path(command) {
        return Some(PathBuf::from(command)).filter(there);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(command)).find(there)
}

/// Of a file that is there, and yet something was not found.
fn what_it_lacks(path: &Path) -> String {
    let mut head = Vec::new();
    // Unreadable, it is no script.
    let _unread = File::open(path).and_then(|file| file.take(128).read_to_end(&mut head));
    match head.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next()) {
        Some(line) => {
            format!(
                "its first line wants {}, which is not there",
                String::from_utf8_lossy(line).trim()
            )
        }
        None => {
            "what it needs to be loaded is not there: it was built for another system".to_owned()
        }
    }
}

fn what_forbids(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(known) if known.is_dir() => "it is a directory".to_owned(),
        Ok(known) if known.permissions().mode() & 0o111 == 0 => {
            "it is not executable (chmod +x makes it so)".to_owned()
        }
        _ => "permission denied: to it, to its interpreter, or to all programs of its file system"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_start_has_the_shells_exit_codes_and_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "#!/nonexistent/ruby -w\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let (script, own) = (script.to_str().unwrap(), directory.path().to_str().unwrap());
        for (command, code, why) in [
            ("/nonexistent/command", 127, "no such file"),
            ("no-such-command-anywhere", 127, "no such program in PATH"),
            ("/etc/passwd", 126, "not executable"),
            (own, 126, "is a directory"),
            (script, 126, "wants /nonexistent/ruby -w"),
        ] {
            let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
            let (exit, error) = become_command(parent, &[command.into()]);
            let error = error.unwrap();
            assert_eq!((exit, error.exit_code()), (code, code), "{error}");
            let said = error.to_string();
            assert!(said.contains(command) && said.contains(why), "{said}");
        }
    }

    #[test]
    fn nothing_starts_when_the_parent_is_gone() {
        let (code, error) = become_command(i32::MAX, &["/nonexistent".into()]);
        assert_eq!((code, error.is_none()), (143, true));
    }
}
