//! Notices that a file has changed that settings were read from: by its time, size and number first, and by what it holds if
//! one of these is another.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

/// Of a longer file only this many bytes are compared.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Longest time between the look that finds a change and the one that must find it again: who writes a file in pieces must
/// not be read in the middle.
const SETTLE: Duration = Duration::from_secs(1);
/// Longest time for one look; one that takes longer is waited for the next time.
const LOOK: Duration = Duration::from_secs(10);
/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(10);

/// The files, and what they were when settings were last read.
#[derive(Debug)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    taken: Vec<Print>,
    /// What the latest look found, if that was something else.
    candidate: Option<Vec<Print>>,
    /// A look that is under way in a thread of its own: a file may lie where reading hangs.
    look: Option<JoinHandle<Vec<Print>>>,
}

/// One file at one moment.
#[derive(Clone, Debug, Default)]
struct Print {
    stamp: Option<Stamp>,
    /// Of what it holds; `None`: it can't be read.
    hash: Option<[u8; 32]>,
}

/// Device, number, size, and the times of the latest changes of content and of anything.
type Stamp = (u64, u64, u64, [i64; 4]);

impl Files {
    /// Takes `paths` as they are now.
    pub(super) async fn new(paths: Vec<PathBuf>) -> Self {
        let mut files = Self { paths, taken: Vec::new(), candidate: None, look: None };
        files.take().await;
        files
    }

    /// Takes all as they are now: what they hold is about to be read. Cancel safe.
    pub(super) async fn take(&mut self) {
        // One that began earlier may have seen less.
        self.look = None;
        self.taken = self.look_again().await;
        self.candidate = None;
    }

    /// Looks at these from now on.
    pub(super) async fn follow(&mut self, paths: Vec<PathBuf>) {
        if self.paths != paths {
            self.paths = paths;
            self.take().await;
        }
    }

    /// Waits until one is not what it was, and two looks have found the same; looks each `every`, or never if that is
    /// nought. Cancel safe.
    pub(super) async fn changed(&mut self, every: Duration) {
        if every.is_zero() || self.paths.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let pause = if self.candidate.is_some() { every.min(SETTLE) } else { every };
            tokio::time::sleep(pause.max(SHORTEST)).await;
            let now = self.look_again().await;
            if same(&now, &self.taken) {
                self.candidate = None;
                self.taken = now;
            } else if self.candidate.as_ref().is_some_and(|before| same(before, &now)) {
                return;
            } else {
                self.candidate = Some(now);
            }
        }
    }

    async fn look_again(&mut self) -> Vec<Print> {
        let look = self.look.get_or_insert_with(|| {
            let (paths, before) = (self.paths.clone(), self.taken.clone());
            tokio::task::spawn_blocking(move || look(&paths, &before))
        });
        let Ok(found) = tokio::time::timeout(LOOK, look).await else {
            return self.taken.clone();
        };
        self.look = None;
        // The thread can't fail but by a panic: then nothing has changed.
        found.unwrap_or_else(|_| self.taken.clone())
    }
}

fn same(one: &[Print], other: &[Print]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.hash == other.hash)
}

fn look(paths: &[PathBuf], before: &[Print]) -> Vec<Print> {
    let before = before.iter().map(Some).chain(std::iter::repeat(None));
    paths.iter().zip(before).map(|(path, before)| print(path, before)).collect()
}

fn print(path: &Path, before: Option<&Print>) -> Print {
    let stamp = std::fs::metadata(path).ok().map(|about| stamp(&about));
    match before {
        Some(before) if stamp.is_some() && before.stamp == stamp => before.clone(),
        _ => Print { stamp, hash: hash(path).ok() },
    }
}

fn stamp(about: &Metadata) -> Stamp {
    let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
    (about.dev(), about.ino(), about.size(), times)
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?.take(FILE_BYTES);
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&piece[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFTEN: Duration = Duration::from_millis(20);
    const SOON: Duration = Duration::from_secs(5);

    async fn changes(files: &mut Files) -> bool {
        tokio::time::timeout(SOON, files.changed(OFTEN)).await.is_ok()
    }

    #[tokio::test]
    async fn a_change_is_noticed_and_a_touch_is_none() {
        let home = tempfile::tempdir().unwrap();
        let (path, other) = (home.path().join("settings"), home.path().join("new"));
        std::fs::write(&path, "one").unwrap();
        let mut files = Files::new(vec![path.clone()]).await;
        std::fs::write(&path, "two").unwrap();
        assert!(changes(&mut files).await, "of the same length");
        files.take().await;
        std::fs::write(&other, "six").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(changes(&mut files).await, "another file in its place");
        files.take().await;
        std::fs::remove_file(&path).unwrap();
        assert!(changes(&mut files).await, "it is gone");
        files.take().await;
        std::fs::write(&path, "six").unwrap();
        assert!(changes(&mut files).await, "it is back");
        files.take().await;
        // Other times and the same words.
        std::fs::write(&path, "six").unwrap();
        let touched = tokio::time::timeout(OFTEN * 10, files.changed(OFTEN)).await;
        assert!(touched.is_err());
    }

    #[tokio::test]
    async fn what_goes_on_changing_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("settings");
        std::fs::write(&path, "").unwrap();
        let mut files = Files::new(vec![path.clone()]).await;
        let mut changed = std::pin::pin!(files.changed(OFTEN * 2));
        for length in 1..20 {
            std::fs::write(&path, "x".repeat(length)).unwrap();
            let early = tokio::time::timeout(OFTEN, changed.as_mut()).await;
            assert!(early.is_err(), "after {length} bytes");
        }
        assert!(tokio::time::timeout(SOON, changed).await.is_ok());
    }
}
