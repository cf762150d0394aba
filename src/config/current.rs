//! A value that is replaced as a whole now and then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The value as it is now. Reading it takes a lock and counts a reference: not for what is done per transaction.
#[derive(Debug, Default)]
pub struct Current<T>(Mutex<Arc<T>>);

impl<T> Current<T> {
    /// Begins with `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Mutex::new(Arc::new(value)))
    }

    /// The value as it is now; it may be replaced while somebody still looks at this one.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.lock())
    }

    /// Replaces it; what it was.
    pub fn set(&self, value: T) -> Arc<T> {
        std::mem::replace(&mut self.lock(), Arc::new(value))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
