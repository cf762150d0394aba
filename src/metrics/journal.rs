//! What deserved a word lately: a bounded list for people to read, and one log line for many events of a kind.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::status::Event;

/// Most entries.
const ENTRIES: usize = 64;
/// Events of one kind and pool that come this close behind each other are one entry.
const SAME: Duration = Duration::from_secs(60);
/// Least time between two log lines of one kind and pool; what comes between is counted.
const LINES: Duration = Duration::from_secs(10);

/// The latest events, the newest last.
#[derive(Debug, Default)]
pub struct Journal(Mutex<VecDeque<Entry>>);

#[derive(Debug)]
struct Entry {
    event: Event,
    at: Instant,
    logged: Instant,
    unlogged: u64,
}

impl Journal {
    /// Something happened; `kind` is a short fixed word. Logged at once, unless one of its kind was just before: those are
    /// counted, and told by [`Journal::tell_rest`].
    pub fn note(&self, pool: &str, kind: &str, message: String, hint: String) {
        let (now, now_ms) = (Instant::now(), now_ms());
        let mut entries = self.lock();
        let known = entries.iter().position(|entry| {
            entry.event.pool == pool && entry.event.kind == kind && now - entry.at < SAME
        });
        let mut entry = match known.and_then(|index| entries.remove(index)) {
            Some(entry) => entry,
            None => {
                let event = Event {
                    first_ms: now_ms,
                    pool: pool.to_owned(),
                    kind: kind.to_owned(),
                    ..Event::default()
                };
                // So that the first is logged.
                Entry { event, at: now, logged: now, unlogged: u64::MAX }
            }
        };
        (entry.at, entry.event.at_ms) = (now, now_ms);
        entry.event.count += 1;
        (entry.event.message, entry.event.hint) = (message, hint);
        let first = entry.unlogged == u64::MAX;
        if first || now - entry.logged >= LINES {
            let more = if first { 0 } else { entry.unlogged };
            entry.tell(more, now);
        } else {
            entry.unlogged += 1;
        }
        if entries.len() >= ENTRIES {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// Logs how often things happened again that were logged before; to be called now and then.
    pub fn tell_rest(&self) {
        let now = Instant::now();
        for entry in self.lock().iter_mut() {
            if entry.unlogged > 0 && entry.unlogged < u64::MAX && now - entry.logged >= LINES {
                let more = entry.unlogged - 1;
                entry.tell(more, now);
            }
        }
    }

    /// All entries, the newest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.lock().iter().rev().map(|entry| entry.event.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// One line for this one and `more` before it.
    fn tell(&mut self, more: u64, now: Instant) {
        let Event { pool, kind, message, hint, .. } = &self.event;
        tracing::warn!(pool, kind, hint, more, "{message}");
        (self.logged, self.unlogged) = (now, 0);
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_of_a_kind_are_one_entry() {
        let journal = Journal::default();
        for _ in 0..1_000 {
            journal.note("p", "wait_timeout", "m".to_owned(), "h".to_owned());
        }
        journal.note("q", "wait_timeout", "m".to_owned(), "h".to_owned());
        let events = journal.events();
        assert_eq!(events.iter().map(|event| event.count).collect::<Vec<_>>(), [1, 1_000]);
        tokio::time::advance(LINES).await;
        journal.tell_rest();
        assert!(journal.lock().iter().all(|entry| entry.unlogged == 0));
        tokio::time::advance(SAME).await;
        journal.note("q", "wait_timeout", "m".to_owned(), "h".to_owned());
        assert_eq!(journal.events().len(), 3, "after a minute it is another");
        for kind in 0..200 {
            journal.note("p", &kind.to_string(), String::new(), String::new());
        }
        assert_eq!(journal.events().len(), ENTRIES);
    }
}
