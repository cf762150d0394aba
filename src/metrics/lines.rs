//! Log lines about what happens all day: clients come and go, connections are pinned. One line for many of a kind, so that an
//! application which connects for each request doesn't pay for its log.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Least time between two lines of a kind and pool; what comes between is counted.
const APART: Duration = Duration::from_secs(10);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A client has logged in.
    Connected,
    /// A client has left.
    Disconnected,
    /// A connection stays with its client beyond a transaction.
    Pinned,
    /// A client was not let in.
    Refused,
}

impl Happening {
    const ALL: [Self; 4] = [Self::Connected, Self::Disconnected, Self::Pinned, Self::Refused];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "client connected",
            Self::Disconnected => "client disconnected",
            Self::Pinned => "server connection pinned",
            Self::Refused => "client refused",
        }
    }
}

/// The lines of one pool.
#[derive(Debug)]
pub struct Lines {
    pool: String,
    kinds: [Mutex<Line>; 4],
}

#[derive(Debug, Default)]
struct Line {
    told: Option<Instant>,
    /// Untold since then, and what the latest was.
    more: u64,
    latest: String,
}

impl Lines {
    pub(super) fn new(pool: &str) -> Self {
        Self { pool: pool.to_owned(), kinds: Default::default() }
    }

    /// It happened once more; `detail` says to whom, or why. Logged at once, or counted for the next line.
    pub fn tell(&self, what: Happening, detail: fmt::Arguments<'_>) {
        let mut line = self.line(what);
        let now = Instant::now();
        if line.told.is_some_and(|told| now - told < APART) {
            line.more += 1;
            line.latest.clear();
            // Writing to a string does not fail.
            let _written = fmt::Write::write_fmt(&mut line.latest, detail);
            return;
        }
        line.latest = detail.to_string();
        self.write(what, &mut line, now);
    }

    /// Logs what was only counted; to be called now and then.
    pub fn tell_rest(&self) {
        for what in Happening::ALL {
            let mut line = self.line(what);
            let now = Instant::now();
            if line.more > 0 && line.told.is_none_or(|told| now - told >= APART) {
                line.more -= 1;
                self.write(what, &mut line, now);
            }
        }
    }

    /// One line for the latest and those before it.
    fn write(&self, what: Happening, line: &mut Line, now: Instant) {
        let (pool, more, detail) = (&self.pool, line.more, &line.latest);
        match what {
            Happening::Refused => tracing::warn!(pool, detail, more, "{}", what.as_str()),
            _ => tracing::info!(pool, detail, more, "{}", what.as_str()),
        }
        (line.told, line.more) = (Some(now), 0);
    }

    fn line(&self, what: Happening) -> MutexGuard<'_, Line> {
        self.kinds[what as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_of_a_kind_are_one_line() {
        let lines = Lines::new("p");
        let told = |what| {
            let line = lines.line(what);
            (line.told, line.more)
        };
        let begun = Instant::now();
        for number in 0..1_000 {
            lines.tell(Happening::Connected, format_args!("client {number}"));
        }
        lines.tell(Happening::Pinned, format_args!("listen"));
        assert_eq!(told(Happening::Connected), (Some(begun), 999));
        assert_eq!(told(Happening::Pinned), (Some(begun), 0));
        lines.tell_rest();
        assert_eq!(told(Happening::Connected), (Some(begun), 999), "not yet");
        tokio::time::advance(APART).await;
        lines.tell_rest();
        assert_eq!(told(Happening::Connected), (Some(begun + APART), 0));
        assert_eq!(lines.line(Happening::Connected).latest, "client 999");
        lines.tell_rest();
        assert_eq!(told(Happening::Pinned), (Some(begun), 0), "nothing is left to tell");
    }
}
