//! Listening sockets that another process has opened for us: the service manager (systemd's socket activation,
//! `sd_listen_fds(3)`), or the tidegate that served before ([`super::takeover`]).

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use socket2::SockRef;

use crate::net::{Inode, Opener, SocketFile};

/// The names by which sockets are told apart (`FileDescriptorName=`), in the order that counts where they have none of these.
const NAMES: [&str; 3] = ["postgres", "redis", "admin"];

/// The mode of a file that is about to be removed.
const DISCARDED_MODE: u32 = 0o600;

/// Sockets that wait to be taken.
#[derive(Debug, Default)]
pub(super) struct Passed {
    sockets: Vec<PassedSocket>,
}

/// A socket, and which listeners it is for.
#[derive(Debug)]
pub(super) struct PassedSocket {
    pub(super) name: String,
    pub(super) socket: Kind,
    pub(super) keeper: Keeper,
}

/// Who has opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// The service manager: where it listens is its word, and its file is its own.
    Manager,
    /// The service manager, for the tidegate before us.
    PredecessorsManager,
    /// The tidegate before us; of use only where the settings want a listener.
    Predecessor,
    /// The same, and this file goes with it.
    PredecessorAndFile(Inode),
}

impl Keeper {
    const fn is_manager(self) -> bool {
        matches!(self, Self::Manager | Self::PredecessorsManager)
    }
}

/// What it listens on.
#[derive(Debug)]
pub(super) enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Kind {
    const fn word(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "TCP socket",
            Self::Unix(..) => "unix socket",
        }
    }
}

impl Passed {
    /// Those that the environment tells of; none if it is about another process. Call it once, before there are other threads.
    pub(super) fn from_environment() -> anyhow::Result<Self> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut fds = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(fds.len());
        for (index, name) in (0..fds.len()).zip(names.split(':').chain(std::iter::repeat(""))) {
            let socket = take(&mut fds, index)
                .with_context(|| format!("socket {} of LISTEN_FDS ({name:?})", index + 1))?;
            sockets.push(PassedSocket { name: name.to_owned(), socket, keeper: Keeper::Manager });
        }
        Ok(Self { sockets })
    }

    /// Adds those of a predecessor, which count where the manager has none. If it has passed some to us, those are all it has.
    pub(super) fn add(&mut self, sockets: Vec<PassedSocket>) {
        let told = self.sockets.iter().any(|one| one.keeper == Keeper::Manager);
        let counts = |one: &PassedSocket| !(told && one.keeper == Keeper::PredecessorsManager);
        self.sockets.extend(sockets.into_iter().filter(counts));
    }

    /// Gives those of the manager that have no name of ours one by their order: each kind goes to `postgres` so many times, then to
    /// `redis`, then to `admin`.
    pub(super) fn name_by_order(&mut self, postgres: usize, redis: usize) -> anyhow::Result<()> {
        let known = |one: &PassedSocket| NAMES.contains(&one.name.as_str());
        let managers = || self.sockets.iter().filter(|one| one.keeper == Keeper::Manager);
        let Some(odd) = managers().find(|one| !known(one)) else { return Ok(()) };
        if managers().any(known) {
            bail!(
                "LISTEN_FDNAMES has {:?} beside names of ours: call each socket postgres, redis or admin \
                 (FileDescriptorName=), or none",
                odd.name
            );
        }
        let places = [("postgres", postgres), ("redis", redis), ("admin", 1)];
        let names = || places.iter().flat_map(|(name, count)| std::iter::repeat_n(*name, *count));
        let (mut tcp, mut unix) = (names(), names());
        for one in self.sockets.iter_mut().filter(|one| one.keeper == Keeper::Manager) {
            let name = match one.socket {
                Kind::Tcp(_) => tcp.next(),
                Kind::Unix(..) => unix.next(),
            };
            one.name = name.unwrap_or_default().to_owned();
        }
        Ok(())
    }

    /// The next TCP socket for the listeners called `name`, and who has opened it: a predecessor's own only if it listens on
    /// `wanted`, where port 0 is any.
    pub(super) fn take_tcp(
        &mut self,
        name: &str,
        wanted: SocketAddr,
    ) -> Option<(TcpListener, Opener)> {
        let fits = |socket: &TcpListener, keeper: Keeper| {
            keeper.is_manager()
                || socket.local_addr().is_ok_and(|known| {
                    known == wanted || (wanted.port() == 0 && known.ip() == wanted.ip())
                })
        };
        let at = |one: &PassedSocket| match &one.socket {
            Kind::Tcp(socket) => one.name == name && fits(socket, one.keeper),
            Kind::Unix(..) => false,
        };
        let one = self.take(at)?;
        let opener = if one.keeper.is_manager() { Opener::Manager } else { Opener::Tidegate };
        match one.socket {
            Kind::Tcp(socket) => Some((socket, opener)),
            Kind::Unix(..) => None,
        }
    }

    /// The next unix socket for the listeners called `name`: a predecessor's own only if it lies at `wanted`.
    pub(super) fn take_unix(&mut self, name: &str, wanted: Option<&Path>) -> Option<PassedSocket> {
        self.take(|one| match &one.socket {
            Kind::Unix(_, path) => {
                let fits = one.keeper.is_manager() || Some(path.as_path()) == wanted;
                one.name == name && fits
            }
            Kind::Tcp(_) => false,
        })
    }

    /// Closes what is left of a predecessor's, which has left it to us: with the files that went with it.
    pub(super) fn discard(self) {
        for one in self.sockets {
            if let (Kind::Unix(_open, path), Keeper::PredecessorAndFile(inode)) =
                (&one.socket, one.keeper)
            {
                let file = SocketFile::of_another(path, inode);
                // It may be gone: then there is nothing to remove.
                if file.claim(DISCARDED_MODE).is_ok() {
                    file.remove();
                }
            }
        }
    }

    fn take(&mut self, wanted: impl Fn(&PassedSocket) -> bool) -> Option<PassedSocket> {
        let at = self.sockets.iter().position(wanted)?;
        Some(self.sockets.remove(at))
    }

    /// Nobody would ever answer on a socket of the manager's that is left.
    pub(super) fn refuse_rest(&self) -> anyhow::Result<()> {
        let mut managers = self.sockets.iter().filter(|one| one.keeper.is_manager());
        let Some(PassedSocket { name, socket, keeper }) = managers.next() else { return Ok(()) };
        let kind = socket.word();
        if *keeper == Keeper::PredecessorsManager {
            bail!(
                "the process before us has a {kind} of the service manager's, called {name}, for which there is no \
                 listener: set its URL, or stop that process first (control_socket)"
            );
        }
        if name.is_empty() {
            bail!("LISTEN_FDS brings a {kind} more than there are listeners: take it out");
        }
        bail!(
            "LISTEN_FDS brings a {kind} called {name} for which there is no listener: take it out, or set its URL"
        );
    }
}

fn take(fds: &mut ListenFd, index: usize) -> anyhow::Result<Kind> {
    const WANTED: &str = "is no stream socket of TCP or unix: ListenStream= makes what is wanted";
    if let Ok(Some(tcp)) = fds.take_tcp_listener(index) {
        must_listen(&SockRef::from(&tcp))?;
        tcp.set_nonblocking(true)?;
        return Ok(Kind::Tcp(tcp));
    }
    let Ok(Some(unix)) = fds.take_unix_listener(index) else { bail!(WANTED) };
    must_listen(&SockRef::from(&unix))?;
    unix.set_nonblocking(true)?;
    let address = unix.local_addr()?;
    let path =
        address.as_pathname().context("has no path: an abstract name is no place for clients")?;
    let path = path.to_owned();
    Ok(Kind::Unix(unix, path))
}

fn must_listen(socket: &SockRef<'_>) -> anyhow::Result<()> {
    if !socket.is_listener()? {
        bail!("does not listen: Accept=no makes what is wanted");
    }
    Ok(())
}
