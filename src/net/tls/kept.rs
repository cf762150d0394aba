//! What is made of files, and made again when whoever watches them says so: certificates are renewed while we run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::TlsError;

/// Something made of files.
pub(super) struct Kept<T> {
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    made: Mutex<T>,
}

impl<T: Clone> Kept<T> {
    /// Makes it for the first time; `make` reads the files.
    pub(super) fn new(
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let made = Mutex::new(make()?);
        Ok(Self { make: Box::new(make), made })
    }

    /// As it is.
    pub(super) fn current(&self) -> T {
        self.made().clone()
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// What is wrong with them; what was made before stays.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        // Not under the lock: others need not wait for the disk.
        let made = (self.make)()?;
        *self.made() = made;
        Ok(())
    }

    fn made(&self) -> MutexGuard<'_, T> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_wrong_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "1").unwrap();
        let path = file.clone();
        let kept = Kept::new(move || {
            let text = fs::read_to_string(&path).unwrap();
            text.parse::<u32>().map_err(|error| rustls::Error::General(error.to_string()).into())
        });
        let kept = kept.unwrap_or_else(|error| panic!("{error}"));
        fs::write(&file, "22").unwrap();
        assert_eq!(kept.current(), 1);
        assert!(kept.reload().is_ok());
        assert_eq!(kept.current(), 22);
        fs::write(&file, "not a number").unwrap();
        assert!(kept.reload().is_err());
        assert_eq!(kept.current(), 22);
    }
}
