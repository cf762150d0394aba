//! How many of a pool's connections one application may hold at once, by its `application_name`: so that a batch job does not
//! keep the web process waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Names remembered while nobody of theirs is here.
const NAMES: usize = 1_000;

/// The shares of a pool.
#[derive(Debug)]
pub struct Shares {
    /// Connections for each name.
    each: usize,
    names: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A part of a share, in use until it is dropped.
pub type Share = OwnedSemaphorePermit;

impl Shares {
    /// Of a pool of `connections`, of which each application may hold `percent`, at least one. None if it may have all.
    #[must_use]
    pub fn new(connections: usize, percent: usize) -> Option<Self> {
        let each = (connections * percent.min(100) / 100).max(1);
        (percent < 100).then(|| Self { each, names: Mutex::default() })
    }

    /// The share of the application with this name; those without one have one together.
    #[must_use]
    pub fn of(&self, name: &str) -> Arc<Semaphore> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES {
            names.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let share = names.entry(name.to_owned());
        Arc::clone(share.or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_own() {
        let shares = Shares::new(5, 40).unwrap();
        let one = shares.of("a").try_acquire_owned().unwrap();
        let two = shares.of("a").try_acquire_owned().unwrap();
        assert!(shares.of("a").try_acquire_owned().is_err());
        assert!(shares.of("b").try_acquire_owned().is_ok());
        drop((one, two));
        assert!(shares.of("a").try_acquire_owned().is_ok());
        assert!(Shares::new(5, 100).is_none());
        assert_eq!(Shares::new(5, 1).unwrap().each, 1);
        let held = shares.of("held").try_acquire_owned().unwrap();
        for number in 0..5_000 {
            let _forgotten = shares.of(&number.to_string());
        }
        assert!(shares.names.lock().unwrap().len() <= NAMES);
        assert!(shares.of("held").available_permits() < 2);
        drop(held);
    }
}
