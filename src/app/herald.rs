//! Tells the service manager how we are (systemd's `sd_notify(3)`): ready, reading settings again, ending, alive, and a line on the
//! pools. Nothing is told, and nothing costs anything, where no manager has asked for it.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Interval, MissedTickBehavior};

use super::watch::Tower;
use crate::lifecycle::Drain;

/// What a service manager says to the process that it starts, and to no other: the wrapped command is not to have it.
pub(super) const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// Shortest time between two lines on the pools.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Herald {
    post: Option<Arc<Post>>,
    /// How often the manager wants to hear that we live.
    alive_every: Option<Duration>,
}

#[derive(Debug)]
struct Post {
    socket: UnixDatagram,
    to: SocketAddr,
    service: Mutex<Service>,
}

/// Whether the service is ours to speak for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Ours,
    /// It ends, or another process goes on with it: that we are ready would be wrong.
    Over,
}

impl Herald {
    /// As the environment says.
    pub(super) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let post = Post::to(name.as_bytes());
        let post = post.inspect_err(|error| {
            tracing::warn!(%error, "the service manager's NOTIFY_SOCKET cannot be used: it hears nothing");
        });
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|limit| ours && *limit > 0);
        // Half of what it waits for, as sd_watchdog_enabled(3) has it.
        let alive_every = limit.map(|limit| Duration::from_micros((limit / 2).max(1)));
        Self { post: post.ok().map(Arc::new), alive_every }
    }

    /// All listeners accept.
    pub(super) fn ready(&self) {
        self.tell_if_ours("READY=1", Service::Ours);
    }

    /// All listeners accept, and we are the service's main process now: another was it before.
    pub(super) fn ready_in_its_place(&self) {
        let words = format!("READY=1\nMAINPID={}", std::process::id());
        self.tell_if_ours(&words, Service::Ours);
    }

    /// The settings are being read again; [`Herald::ready`] says when that is over.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell_if_ours(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"), Service::Ours);
    }

    /// We are on the way out: the last word.
    pub(super) fn stopping(&self) {
        self.tell_if_ours("STOPPING=1\nSTATUS=draining", Service::Over);
    }

    /// Another process speaks for the service from now on.
    pub(super) fn handed_over(&self) {
        let Some(post) = &self.post else { return };
        *post.service.lock().unwrap_or_else(PoisonError::into_inner) = Service::Over;
    }

    /// Says so, unless it is over; a reload and a stop may cross in different threads.
    fn tell_if_ours(&self, words: &str, then: Service) {
        let Some(post) = &self.post else { return };
        let mut service = post.service.lock().unwrap_or_else(PoisonError::into_inner);
        if *service == Service::Ours {
            self.tell(words);
            *service = then;
        }
    }

    /// Says that we live, and how the pools are when that has changed, for as long as the process lives.
    pub(super) async fn keep(self, tower: Arc<Tower>, drain: Drain) {
        if self.post.is_none() {
            return;
        }
        let mut rounds = tokio::time::interval(STATUS_EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alive = self.alive_every.map(tokio::time::interval);
        let mut told = String::new();
        loop {
            tokio::select! {
                _ = rounds.tick() => {
                    let line = tower.line();
                    if line != told && !drain.is_draining() {
                        self.tell_if_ours(&status(&line), Service::Ours);
                        told = line;
                    }
                }
                () = next(alive.as_mut()) => self.tell("WATCHDOG=1"),
            }
        }
    }

    fn tell(&self, words: &str) {
        let Some(post) = &self.post else { return };
        if let Err(error) = post.socket.send_to_addr(words.as_bytes(), &post.to) {
            tracing::debug!(%error, words, "the service manager does not hear us");
        }
    }
}

/// One field: clients have a say in the names of pools, and a line's end would begin another.
fn status(line: &str) -> String {
    format!("STATUS={}", line.replace(char::is_control, " "))
}

async fn next(rounds: Option<&mut Interval>) {
    match rounds {
        Some(rounds) => drop(rounds.tick().await),
        None => std::future::pending().await,
    }
}

impl Post {
    /// To a path, or to an abstract name behind an `@`.
    fn to(name: &[u8]) -> io::Result<Self> {
        let to = match name.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to, service: Mutex::new(Service::Ours) })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_status_is_one_field() {
        assert_eq!(super::status("a\nMAINPID=1\0b"), "STATUS=a MAINPID=1 b");
    }
}
