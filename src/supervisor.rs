//! The wrapped command of `tidegate run`: started after the listeners are up, its standard streams
//! its own, signals passed on, its exit status ours.
//!
//! **Which signals, and how often.** The command stays in our process group, so that it can read a
//! terminal (job control gives the terminal to one group). When a terminal's driver sends SIGINT,
//! SIGQUIT or SIGWINCH it sends it to that whole group: the command has it already, and a second
//! SIGINT means "at once" to many programs. So these three are passed on unless our group is the
//! terminal's foreground group. SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are always passed on: no driver
//! sends them to a group that lives on, and one too many is harmless where a lost one is not.
//!
//! **Reaping.** Every child is waited for, not only the command: as process 1 of a container we
//! inherit orphans.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::Instant;

/// The signals that reach the program, in order of arrival. Made before the command starts, so that
/// none is lost.
#[derive(Debug)]
pub struct Signals {
    streams: Vec<(Signal, SignalStream)>,
    child: SignalStream,
}

/// What [`Signals::next`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal for us to act on or to pass on.
    Signal(Signal),
    /// Some child changed its state.
    Child,
}

const PASSED_ON: [Signal; 7] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

impl Signals {
    /// Catches the signals from now on, except those that we were started to ignore, as under nohup: the command is to
    /// ignore them, too.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn new() -> io::Result<Self> {
        let ignored = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored_signals(&ignored);
        let streams: io::Result<Vec<_>> = PASSED_ON
            .into_iter()
            .filter(|known| ignored >> (known.as_raw() - 1) & 1 == 0)
            .map(|known| Ok((known, signal(SignalKind::from_raw(known.as_raw()))?)))
            .collect();
        Ok(Self { streams: streams?, child: signal(SignalKind::child())? })
    }

    /// Whether a signal is caught: not if we were started to ignore it.
    #[must_use]
    pub fn hears(&self, wanted: Signal) -> bool {
        self.streams.iter().any(|(known, _)| *known == wanted)
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| {
            for (known, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(Event::Signal(*known));
                }
            }
            self.child.poll_recv(cx).map(|_| Event::Child)
        })
        .await
    }

    /// Waits for one of `wanted`; other signals are let go. Cancel safe.
    pub async fn any_of(&mut self, wanted: &[Signal]) -> Signal {
        loop {
            match self.next().await {
                Event::Signal(known) if wanted.contains(&known) => return known,
                Event::Signal(_) => {}
                Event::Child => reap_orphans(),
            }
        }
    }
}

/// The set of ignored signals in the text of `/proc/self/status` (proc(5)), the lowest bit for signal 1.
fn ignored_signals(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {command}")]
pub struct StartError {
    command: String,
    source: io::Error,
}

impl StartError {
    /// The exit code a shell would give: 127 for a command that is not there, 126 for one that
    /// cannot be executed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// The running command.
#[derive(Debug)]
pub struct Supervised {
    pid: Pid,
    ended: Option<u8>,
}

impl Supervised {
    /// Starts `command` (never empty) with `variables` set over our own environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &[OsString], variables: &[(String, String)]) -> Result<Self, StartError> {
        let name = command.first().cloned().unwrap_or_default();
        let mut program = Command::new(&name);
        program.args(command.iter().skip(1));
        for (name, value) in variables {
            // A file with the server's own URL would lead past us.
            program.env(name, value).env_remove(format!("{name}_FILE"));
        }
        let child = program
            .spawn()
            .map_err(|source| StartError { command: name.display().to_string(), source })?;
        // Waiting is ours (see `reap`): dropping the handle neither kills nor waits.
        Ok(Self { pid: Pid::from_child(&child), ended: None })
    }

    /// The command's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Passes signals on until the command has ended; its exit code. Calls `overdue` once, if the
    /// command still runs `grace` after the first SIGTERM, and goes on waiting: whoever sent the
    /// signal decides about the next.
    ///
    /// Not cancel safe in one respect: a signal received and not yet passed on is lost.
    pub async fn wait(
        &mut self,
        signals: &mut Signals,
        grace: Duration,
        mut overdue: impl FnMut(),
    ) -> u8 {
        let mut deadline: Option<Instant> = None;
        let mut told = false;
        // It may have ended before the first SIGCHLD could be caught.
        self.reap();
        loop {
            if let Some(code) = self.ended {
                return code;
            }
            let late = async {
                match deadline.filter(|_| !told) {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = signals.next() => match event {
                    Event::Child => self.reap(),
                    Event::Signal(known) => {
                        self.pass_on(known);
                        if known == Signal::TERM {
                            deadline.get_or_insert_with(|| Instant::now() + grace);
                        }
                    }
                },
                () = late => {
                    told = true;
                    overdue();
                }
            }
        }
    }

    fn pass_on(&self, known: Signal) {
        if self.ended.is_some() || (is_from_terminal(known) && in_foreground()) {
            return;
        }
        // Until we reap it, the number is the command's even when it has ended.
        if let Err(error) = rustix::process::kill_process(self.pid, known) {
            tracing::warn!(signal = known.as_raw(), pid = self.pid(), %error, "cannot pass the signal on");
        } else {
            tracing::info!(signal = known.as_raw(), pid = self.pid(), "signal passed on");
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.pid {
                self.ended = Some(exit_code(status.as_raw()));
            }
        }
    }
}

/// Whether children are left that nobody waits for: processes the command has left behind, seen only
/// when we are process 1 of a container.
#[must_use]
pub fn leaves_orphans() -> bool {
    matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(None))
}

fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

fn exit_code(raw: i32) -> u8 {
    let status = ExitStatus::from_raw(raw);
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn is_from_terminal(known: Signal) -> bool {
    matches!(known, Signal::INT | Signal::QUIT | Signal::WINCH)
}

/// Whether our process group is the one the controlling terminal sends its signals to.
fn in_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    #[test]
    fn what_cannot_start_has_the_shells_exit_codes() {
        for (command, code) in
            [("/nonexistent/command", 127), ("no-such-command-anywhere", 127), ("/etc/passwd", 126)]
        {
            let error = Supervised::start(&words(&[command]), &[]).unwrap_err();
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(error.to_string().contains(command), "{error}");
        }
    }

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\ttidegate\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004000\n";
        assert_eq!(ignored_signals(status), 1 | 1 << (Signal::PIPE.as_raw() - 1));
        assert_eq!(ignored_signals("Name:\ttidegate\n"), 0);
    }

    #[test]
    fn a_wait_status_becomes_an_exit_code() {
        // wait(2): the exit code in the second byte, the ending signal in the first.
        for (raw, code) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (9, 137), (15, 143)] {
            assert_eq!(exit_code(raw), code);
        }
    }
}
