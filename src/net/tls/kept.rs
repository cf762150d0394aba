//! What is made of files, and made again when they change: certificates are renewed while we run.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::TlsError;

/// How often files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Something made of files.
pub(super) struct Kept<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    made: T,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl<T: Clone + Send + 'static> Kept<T> {
    /// Makes it for the first time; `make` reads `files`.
    pub(super) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before they are read: a change meanwhile is seen the next time.
        let stamps = stamps(&files);
        let state = State { made: make()?, stamps, looked: Instant::now() };
        Ok(Self { files, make: Box::new(make), state: Mutex::new(state) })
    }

    /// As it is; at most once a minute after a look at the files. Cancel safe.
    pub(super) async fn current(self: &Arc<Self>) -> T {
        if self.is_due() {
            let kept = Arc::clone(self);
            // The runtime is going: then what is there will do.
            let _looked = tokio::task::spawn_blocking(move || kept.look()).await;
        }
        self.state().made.clone()
    }

    /// Reads the files again, whether they have changed or not.
    ///
    /// # Errors
    /// What is wrong with them; what was made before stays.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let stamps = stamps(&self.files);
        // Not under the lock: others need not wait for the disk.
        let made = (self.make)()?;
        *self.state() = State { made, stamps, looked: Instant::now() };
        Ok(())
    }

    /// Reads the files again if they have changed.
    pub(super) fn look(&self) {
        if stamps(&self.files) == self.state().stamps {
            return;
        }
        match self.reload() {
            Ok(()) => tracing::info!(files = ?self.files, "TLS files have changed: read again"),
            // One of a pair may be there before the other: looked at again in a minute.
            Err(error) => {
                tracing::warn!(%error, "TLS files have changed, and the new ones are not taken")
            }
        }
    }

    fn is_due(&self) -> bool {
        let mut state = self.state();
        let due = !self.files.is_empty() && state.looked.elapsed() >= LOOK_EVERY;
        if due {
            state.looked = Instant::now();
        }
        due
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |path: &PathBuf| {
        let known = fs::metadata(path).ok()?;
        let modified = known.modified().ok();
        Some(Stamp { modified, bytes: known.len(), inode: known.ino() })
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_read_and_what_is_wrong_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "1").unwrap();
        let path = file.clone();
        let kept = Kept::new(vec![file.clone()], move || {
            let text = fs::read_to_string(&path).unwrap();
            text.parse::<u32>().map_err(|error| rustls::Error::General(error.to_string()).into())
        });
        let kept = Arc::new(kept.unwrap_or_else(|error| panic!("{error}")));
        let now = || kept.state().made;
        kept.look();
        assert_eq!(now(), 1);
        fs::write(&file, "22").unwrap();
        assert!(!kept.is_due(), "not within the minute");
        kept.look();
        assert_eq!(now(), 22);
        fs::write(&file, "not a number").unwrap();
        kept.look();
        assert!(kept.reload().is_err());
        assert_eq!(now(), 22);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "333").unwrap();
        kept.look();
        assert_eq!(now(), 333);
    }

    #[tokio::test]
    async fn files_are_looked_at_by_whoever_comes_after_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "1").unwrap();
        let path = file.clone();
        let kept = Kept::new(vec![file.clone()], move || Ok(fs::read_to_string(&path).unwrap()));
        let kept = Arc::new(kept.unwrap_or_else(|error| panic!("{error}")));
        fs::write(&file, "22").unwrap();
        assert_eq!(kept.current().await, "1", "within the minute");
        let minute_ago = Instant::now().checked_sub(LOOK_EVERY).unwrap();
        kept.state().looked = minute_ago;
        assert_eq!(kept.current().await, "22");
        assert!(!kept.is_due());
    }
}
