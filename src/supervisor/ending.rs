//! How the command ended, and ending likewise: whoever waits for us can't tell us from the command.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};

use rustix::process::{Resource, Rlimit};

/// How the command, or our own work, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    pub(super) fn from_wait_status(raw: i32) -> Self {
        let status = ExitStatus::from_raw(raw);
        match (status.code().and_then(|code| u8::try_from(code).ok()), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(u8::MAX),
        }
    }

    /// The exit code a shell makes of it.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(signal).map_or(u8::MAX, |known| known | 128),
        }
    }

    /// Ends this process in the same way: by the same signal if it was one, without a core file of ours, which the command has
    /// left itself. To be called last, and its answer returned from `main`.
    ///
    /// Signals do nothing to process 1 of a container, and whoever waits for that sees exit codes alone: there it is 128 + n.
    #[must_use]
    pub fn end_likewise(self) -> ExitCode {
        if let Self::Signal(signal) = self
            && !rustix::process::getpid().is_init()
        {
            die_of(signal);
        }
        ExitCode::from(self.code())
    }
}

fn die_of(signal: i32) {
    // Where a sandbox did not let us close our memory.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _unlimited = rustix::process::setrlimit(Resource::Core, none);
    // Those it has no default for we don't catch either.
    if signal_hook::low_level::emulate_default_handler(signal).is_err() {
        let _alive = signal_hook::low_level::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_becomes_an_ending() {
        // wait(2): the exit code in the second byte, the ending signal in the first, 0x80 for a core file.
        for (raw, ended, code) in [
            (0, Ended::Code(0), 0),
            (7 << 8, Ended::Code(7), 7),
            (255 << 8, Ended::Code(255), 255),
            (9, Ended::Signal(9), 137),
            (11 | 0x80, Ended::Signal(11), 139),
            (64, Ended::Signal(64), 192),
        ] {
            assert_eq!(Ended::from_wait_status(raw), ended);
            assert_eq!(ended.code(), code);
        }
    }
}
