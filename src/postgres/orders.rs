//! What was ordered of databases in the console, for pools that are made later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::PostgresUpstream;

/// A database of one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    hosts: String,
    /// Its name.
    pub database: String,
}

impl Place {
    /// Where `upstream` leads.
    #[must_use]
    pub fn of(upstream: &PostgresUpstream) -> Self {
        let PostgresUpstream { hosts, database, .. } = upstream;
        Self { hosts: hosts.to_string(), database: database.clone() }
    }
}

/// What holds now. Orders are given before the pools that there are hear of them, so that none is missed.
#[derive(Debug, Default)]
pub struct Orders {
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    /// What holds of those that have no word of their own.
    elsewhere: Passage,
    passages: BTreeMap<Place, Passage>,
    disabled: BTreeSet<Place>,
}

/// Whether connections to a database are lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// Yes.
    #[default]
    Open,
    /// Not for now: clients wait.
    Paused,
}

/// Whether new clients may come to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Yes.
    Allowed,
    /// No.
    Disabled,
}

impl Orders {
    /// One database.
    pub fn set(&self, place: &Place, passage: Passage) {
        self.lock().passages.insert(place.clone(), passage);
    }

    /// All of them.
    pub fn set_all(&self, passage: Passage) {
        let mut given = self.lock();
        given.elsewhere = passage;
        given.passages.clear();
    }

    /// What holds for a database.
    #[must_use]
    pub fn passage(&self, place: &Place) -> Passage {
        let given = self.lock();
        given.passages.get(place).copied().unwrap_or(given.elsewhere)
    }

    /// Whether new clients may come to it from now on.
    pub fn admit(&self, place: &Place, entry: Entry) {
        let mut given = self.lock();
        match entry {
            Entry::Allowed => given.disabled.remove(place),
            Entry::Disabled => given.disabled.insert(place.clone()),
        };
    }

    /// Whether new clients may come to a database.
    #[must_use]
    pub fn entry(&self, place: &Place) -> Entry {
        if self.lock().disabled.contains(place) { Entry::Disabled } else { Entry::Allowed }
    }

    fn lock(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
