//! The file of a unix socket that we listen on: made so that it is never more open than it shall be, put in the place of one that
//! nobody listens on, and removed at the end if it is still ours.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// Longest path that the kernel takes: 108 bytes with the nought at its end (unix(7)).
pub const PATH_BYTES: usize = 107;
/// How long to wait for another process that looks after files in the same directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A socket's file that is ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    owner: Mutex<Owner>,
}

/// Whose it is.
#[derive(Clone, Copy, Debug)]
enum Owner {
    /// Ours to remove, as long as it is this one.
    We(Inode),
    /// Another process', which listens on the same socket, until it leaves it to us: this one.
    Predecessor(Inode),
    /// Not ours any more.
    Others,
}

/// Device and number of a file. While our socket is open nobody else's file can have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.number)
    }
}

impl FromStr for Inode {
    type Err = std::num::ParseIntError;

    /// As it is displayed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (device, number) = text.split_once(':').unwrap_or_default();
        Ok(Self { device: device.parse()?, number: number.parse()? })
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path is longer than the kernel takes.
    #[error("the path has {0} bytes and the system takes {PATH_BYTES}: choose a shorter one")]
    Long(usize),
    /// Somebody listens there.
    #[error("another process listens there; stop it or choose another path")]
    Taken,
    /// What lies there is no socket.
    #[error(
        "a file lies there that is no socket, and is left alone: remove it or choose another path"
    )]
    Occupied,
    /// The directory is not there.
    #[error("there is no directory {}: make it, with this process's user as its owner", .0.display())]
    NoDirectory(PathBuf),
    /// The system says no.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Listens on `path`, whose file has `mode` from the moment that it can be connected to. Takes the place of a socket that nobody
/// listens on.
///
/// # Errors
/// See [`SocketError`].
pub fn listen(
    path: &Path,
    mode: u32,
    backlog: i32,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let bytes = path.as_os_str().len();
    if bytes > PATH_BYTES {
        return Err(SocketError::Long(bytes));
    }
    // Two that start at once must not both take a file for forsaken.
    let _lock = lock(path, LOCK_PATIENCE)?;
    make_room(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // Nobody can connect before we listen, so what the umask has left open until here is open to nobody.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from(socket), file))
}

/// Removes a socket that nobody listens on; anything else is an error.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let about = match fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !about.file_type().is_socket() {
        return Err(SocketError::Occupied);
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A listener whose queue is full must not keep us: it is there.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(fs::remove_file(path)?)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error.into()),
        _ => Err(SocketError::Taken),
    }
}

/// Keeps others of our kind off the directory; the lock ends with the file. `None` when it can't be had in time: whoever may read the
/// directory may keep it for ever, and then it keeps nobody off.
fn lock(path: &Path, patience: Duration) -> Result<Option<File>, SocketError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let opened = File::open(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SocketError::NoDirectory(directory.to_owned()),
        _ => error.into(),
    })?;
    let started = Instant::now();
    loop {
        match opened.try_lock() {
            Ok(()) => return Ok(Some(opened)),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
            Err(fs::TryLockError::WouldBlock) if started.elapsed() >= patience => return Ok(None),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
        }
    }
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let owner = Mutex::new(Owner::We(inode(path)?));
        Ok(Self { path: path.to_owned(), owner })
    }

    /// The file of a socket that another process has passed to us, which calls it `inode`: not ours before
    /// [`SocketFile::claim`].
    #[must_use]
    pub fn of_another(path: &Path, inode: Inode) -> Self {
        Self { path: path.to_owned(), owner: Mutex::new(Owner::Predecessor(inode)) }
    }

    /// Which file it is, unless it is somebody else's already.
    #[must_use]
    pub fn inode(&self) -> Option<Inode> {
        match *self.owner.lock().unwrap_or_else(PoisonError::into_inner) {
            Owner::We(inode) | Owner::Predecessor(inode) => Some(inode),
            Owner::Others => None,
        }
    }

    /// Ours from now on, with this mode, if it was the predecessor's, and lies there still.
    ///
    /// # Errors
    /// As the system reports it, or when another file lies there: then it stays nobody's.
    pub fn claim(&self, mode: u32) -> io::Result<()> {
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Owner::Predecessor(known) = *owner {
            if inode(&self.path)? != known {
                let other = format!("another file lies at {}", self.path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, other));
            }
            *owner = Owner::We(known);
            fs::set_permissions(&self.path, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// Removes it, unless another process has put its own there. Call it while the socket is open.
    pub fn remove(&self) {
        let Owner::We(ours) = self.disown() else { return };
        // Without the lock it stays: whoever has the lock will find that nobody listens on it. Others are served meanwhile, so
        // nobody is waited for.
        if let Ok(Some(_lock)) = lock(&self.path, Duration::ZERO)
            && inode(&self.path).is_ok_and(|there| there == ours)
        {
            let _gone_already = fs::remove_file(&self.path);
        }
    }

    /// It is somebody else's from now on: nothing is removed.
    pub fn leave(&self) {
        let _theirs = self.disown();
    }

    fn disown(&self) -> Owner {
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut owner, Owner::Others)
    }
}

fn inode(path: &Path) -> io::Result<Inode> {
    let about = fs::symlink_metadata(path)?;
    Ok(Inode { device: about.dev(), number: about.ino() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const BACKLOG: i32 = 8;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn who_keeps_the_directory_locked_keeps_nobody_off() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let locked = File::open(home.path()).unwrap();
        locked.lock().unwrap();
        let (listener, file) = listen(&path, 0o600, BACKLOG).unwrap();
        UnixStream::connect(&path).unwrap();
        let asked = Instant::now();
        file.remove();
        assert!(path.exists() && asked.elapsed() < LOCK_PATIENCE);
        drop(listener);
    }

    #[test]
    fn the_file_has_its_mode_whatever_the_umask_and_goes_with_the_listener() {
        let home = tempfile::tempdir().unwrap();
        for wanted in [0o600, 0o660, 0o777] {
            let path = home.path().join("socket");
            let (_listener, file) = listen(&path, wanted, BACKLOG).unwrap();
            assert_eq!(mode(&path), wanted);
            UnixStream::connect(&path).unwrap();
            file.remove();
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_forsaken_socket_is_replaced_and_a_live_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let (listener, _file) = listen(&path, 0o600, BACKLOG).unwrap();
        assert!(matches!(listen(&path, 0o600, BACKLOG), Err(SocketError::Taken)));
        UnixStream::connect(&path).unwrap();
        // As after a kill: the socket is closed and its file lies there.
        drop(listener);
        assert!(path.exists());
        let (_listener, _file) = listen(&path, 0o600, BACKLOG).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_listener_with_a_full_queue_is_there() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let (_listener, _file) = listen(&path, 0o600, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path, 0o600, BACKLOG), Err(SocketError::Taken)));
    }

    #[test]
    fn no_other_file_is_touched() {
        let home = tempfile::tempdir().unwrap();
        let (path, aim) = (home.path().join("socket"), home.path().join("aim"));
        fs::write(&path, "words").unwrap();
        assert!(matches!(listen(&path, 0o600, BACKLOG), Err(SocketError::Occupied)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "words");
        fs::remove_file(&path).unwrap();
        drop(listen(&aim, 0o600, BACKLOG).unwrap());
        std::os::unix::fs::symlink(&aim, &path).unwrap();
        assert!(matches!(listen(&path, 0o600, BACKLOG), Err(SocketError::Occupied)));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(listen(&path, 0o600, BACKLOG), Err(SocketError::Occupied)));
    }

    #[test]
    fn another_s_file_in_our_place_stays() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let (_listener, file) = listen(&path, 0o600, BACKLOG).unwrap();
        fs::remove_file(&path).unwrap();
        let (_other, _others) = listen(&path, 0o600, BACKLOG).unwrap();
        file.remove();
        assert!(path.exists());
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_was_left_to_others_stays() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let (_listener, file) = listen(&path, 0o600, BACKLOG).unwrap();
        file.leave();
        file.remove();
        assert!(path.exists());
    }

    #[test]
    fn what_was_passed_is_ours_when_it_is_claimed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let (_listener, file) = listen(&path, 0o600, BACKLOG).unwrap();
        let passed = SocketFile::of_another(&path, file.inode().unwrap());
        passed.claim(0o660).unwrap();
        assert_eq!(mode(&path), 0o660);
        passed.remove();
        assert!(!path.exists());
        let (_listener, file) = listen(&path, 0o600, BACKLOG).unwrap();
        let unclaimed = SocketFile::of_another(&path, file.inode().unwrap());
        unclaimed.remove();
        assert!(path.exists(), "it is the predecessor's");
        unclaimed.claim(0o660).unwrap();
        assert_eq!(mode(&path), 0o600, "too late");
        file.remove();
    }

    /// A name may have come to mean another file since it was told.
    #[test]
    fn only_the_very_file_is_claimed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let (_listener, file) = listen(&path, 0o600, BACKLOG).unwrap();
        let told = file.inode().unwrap();
        assert_eq!(told.to_string().parse::<Inode>().ok(), Some(told));
        fs::remove_file(&path).unwrap();
        let (_other, _others) = listen(&path, 0o600, BACKLOG).unwrap();
        let passed = SocketFile::of_another(&path, told);
        assert!(passed.claim(0o660).is_err());
        passed.remove();
        assert!(path.exists() && mode(&path) == 0o600, "it is another's");
    }

    #[test]
    fn what_cannot_be_is_said() {
        let home = tempfile::tempdir().unwrap();
        let long = home.path().join("x".repeat(PATH_BYTES));
        let error = listen(&long, 0o600, BACKLOG).unwrap_err().to_string();
        assert!(error.contains(&format!("{} bytes", long.as_os_str().len())), "{error}");
        let nowhere = home.path().join("none").join("socket");
        let error = listen(&nowhere, 0o600, BACKLOG).unwrap_err().to_string();
        assert!(error.contains("no directory"), "{error}");
    }
}
