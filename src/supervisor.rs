//! The wrapped command of `tidegate run`: started after the listeners are up, its standard streams
//! its own, signals passed on, its end ours.
//!
//! **Which signals, and how often.** The command stays in our process group, so that it can read a
//! terminal (job control gives the terminal to one group). When a terminal's driver sends SIGINT,
//! SIGQUIT or SIGWINCH it sends it to that whole group: the command has it already, and a second
//! SIGINT means "at once" to many programs. So these three are passed on unless our group is the
//! terminal's foreground group. What stops and continues jobs (SIGTSTP and its like) is left alone where there is a terminal:
//! the shell stops the group as a whole. Without one it is passed on, for servers that take it as a word of their own. The
//! others are always passed on: no driver sends them to a group that lives on, and one too many is harmless where a lost one
//! is not. Real-time signals are not: nothing that may be told one safely knows their numbers.
//!
//! **Reaping.** Every child is waited for, not only the command: we inherit orphans.
//!
//! **Our death** is told to the command (`start`): without us it has no database.

mod ending;
mod orphans;
mod start;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::Instant;

pub use ending::Ended;
pub use orphans::left_behind;
pub use start::{StartError, become_command};

/// Closes our memory, which holds passwords, to all but root: no core file of ours is written, no other process of the same
/// user may look into it, and `/proc/<pid>/environ`, with the servers' URLs, is root's (prctl(2), PR_SET_DUMPABLE). The command,
/// being another program, is as open as it would be without us.
pub fn close_memory() {
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot close the memory to other processes of the same user");
    }
}

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

/// What we listen to in any case.
const CAUGHT: [Signal; 7] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// What a command may want to hear beside it.
const COMMANDS: [Signal; 6] =
    [Signal::ALARM, Signal::URG, Signal::VTALARM, Signal::PROF, Signal::IO, Signal::POWER];

/// What stops jobs and has them go on.
const JOB_CONTROL: [Signal; 4] = [Signal::TSTP, Signal::TTIN, Signal::TTOU, Signal::CONT];

impl Signals {
    /// Catches the signals from now on, except those that we were started to ignore, as under nohup: the command is to
    /// ignore them, too.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn new() -> io::Result<Self> {
        Self::catch(&CAUGHT)
    }

    /// As [`Signals::new`], and all others that are to be passed on to a command.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn for_command() -> io::Result<Self> {
        let job_control: &[_] = if has_terminal() { &[] } else { &JOB_CONTROL };
        Self::catch(&[&CAUGHT[..], &COMMANDS, job_control].concat())
    }

    fn catch(wanted: &[Signal]) -> io::Result<Self> {
        let ignored = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored_signals(&ignored);
        let streams: io::Result<Vec<_>> = wanted
            .iter()
            .copied()
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
                Event::Child => orphans::reap(),
            }
        }
    }
}

/// The set of ignored signals in the text of `/proc/self/status` (proc(5)), the lowest bit for signal 1.
fn ignored_signals(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// The running command.
#[derive(Debug)]
pub struct Supervised {
    pid: Pid,
    ended: Option<Ended>,
}

/// What [`Supervised::wait`] tells on the way, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The command was told to end.
    Told,
    /// It has not ended in time.
    Overdue,
}

impl Supervised {
    /// Starts `command` (never empty) with `variables` set over our own environment, of which those named in `hidden` are left
    /// out. To be called from a thread that lives as long as we do, as the first one does: the command takes its end for ours.
    ///
    /// # Errors
    /// When there is no process for it. Whether it can be executed shows later: then it ends with 127 or 126, and has said why.
    pub fn start(
        command: &[OsString],
        variables: &[(String, String)],
        hidden: &[String],
    ) -> Result<Self, StartError> {
        orphans::adopt_all();
        Ok(Self { pid: start::start(command, variables, hidden)?, ended: None })
    }

    /// The command's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Passes signals on until the command has ended, and says how. Tells of the first SIGTERM, and if the command still runs
    /// `grace` after it; and goes on waiting: whoever sent the signal decides about the next.
    ///
    /// Not cancel safe in one respect: a signal received and not yet passed on is lost.
    pub async fn wait(
        &mut self,
        signals: &mut Signals,
        grace: Duration,
        mut tell: impl FnMut(News),
    ) -> Ended {
        let mut deadline: Option<Instant> = None;
        let mut told = false;
        // It may have ended before the first SIGCHLD could be caught.
        self.reap();
        loop {
            if let Some(ended) = self.ended {
                return ended;
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
                        if known == Signal::TERM && deadline.is_none() {
                            deadline = Some(Instant::now() + grace);
                            tell(News::Told);
                        }
                    }
                },
                () = late => {
                    told = true;
                    tell(News::Overdue);
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
                self.ended = Some(Ended::from_wait_status(status.as_raw()));
            }
        }
    }
}

fn is_from_terminal(known: Signal) -> bool {
    matches!(known, Signal::INT | Signal::QUIT | Signal::WINCH)
}

/// Whether there is a terminal that controls us.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Whether our process group is the one the controlling terminal sends its signals to.
fn in_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\ttidegate\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004000\n";
        assert_eq!(ignored_signals(status), 1 | 1 << (Signal::PIPE.as_raw() - 1));
        assert_eq!(ignored_signals("Name:\ttidegate\n"), 0);
    }
}
