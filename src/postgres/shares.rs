//! How many of a pool's connections one application may hold at once, by its `application_name`: so that a batch job does not
//! keep the web process waiting.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Names remembered while nobody of theirs is here.
const NAMES: usize = 1_000;

/// The shares of a pool.
#[derive(Debug)]
pub struct Shares {
    /// Connections for each name; nought: all.
    each: AtomicUsize,
    names: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A part of a share, in use until it is dropped.
pub type Share = OwnedSemaphorePermit;

impl Shares {
    /// Of a pool of `connections`, of which each application may hold `percent`, at least one.
    #[must_use]
    pub fn new(connections: usize, percent: usize) -> Self {
        Self { each: AtomicUsize::new(each(connections, percent)), names: Mutex::default() }
    }

    /// Changes the shares. What is held now is not counted against the new ones.
    pub fn set(&self, connections: usize, percent: usize) {
        let each = each(connections, percent);
        if self.each.swap(each, Relaxed) != each {
            self.lock().clear();
        }
    }

    /// Whether an application may not have all.
    #[must_use]
    pub fn are_limited(&self) -> bool {
        self.each.load(Relaxed) > 0
    }

    /// The share of the application with this name; those without one have one together.
    #[must_use]
    pub fn of(&self, name: &str) -> Arc<Semaphore> {
        let mut names = self.lock();
        if names.len() >= NAMES {
            names.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let share = names.entry(name.to_owned());
        Arc::clone(share.or_insert_with(|| Arc::new(Semaphore::new(self.each.load(Relaxed)))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Semaphore>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections for each name; nought: all.
fn each(connections: usize, percent: usize) -> usize {
    if percent < 100 { (connections * percent / 100).max(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_own() {
        let shares = Shares::new(5, 40);
        let one = shares.of("a").try_acquire_owned().unwrap();
        let two = shares.of("a").try_acquire_owned().unwrap();
        assert!(shares.of("a").try_acquire_owned().is_err());
        assert!(shares.of("b").try_acquire_owned().is_ok());
        drop((one, two));
        assert!(shares.of("a").try_acquire_owned().is_ok());
        assert!(!Shares::new(5, 100).are_limited());
        assert_eq!((each(5, 1), each(5, 100)), (1, 0));
        let held = shares.of("held").try_acquire_owned().unwrap();
        for number in 0..5_000 {
            let _forgotten = shares.of(&number.to_string());
        }
        assert!(shares.names.lock().unwrap().len() <= NAMES);
        assert!(shares.of("held").available_permits() < 2);
        drop(held);
        shares.set(5, 80);
        let all: Vec<_> = (0..4).map(|_| shares.of("a").try_acquire_owned()).collect();
        assert!(all.iter().all(Result::is_ok) && shares.of("a").try_acquire_owned().is_err());
    }
}
