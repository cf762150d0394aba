//! Listening sockets that another process has opened for us: the service manager (systemd's socket activation,
//! `sd_listen_fds(3)`).

use std::env;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use socket2::SockRef;

/// The names by which sockets are told apart (`FileDescriptorName=`), in the order that counts where they have none of these.
const NAMES: [&str; 3] = ["postgres", "redis", "admin"];

/// Sockets that wait to be taken.
#[derive(Debug, Default)]
pub(super) struct Passed {
    sockets: Vec<PassedSocket>,
}

#[derive(Debug)]
struct PassedSocket {
    name: String,
    socket: Kind,
}

/// What it listens on.
#[derive(Debug)]
enum Kind {
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
            sockets.push(PassedSocket { name: name.to_owned(), socket });
        }
        Ok(Self { sockets })
    }

    /// Gives those that have no name of ours one by their order: each kind goes to `postgres` so many times, then to `redis`, then
    /// to `admin`.
    pub(super) fn name_by_order(&mut self, postgres: usize, redis: usize) -> anyhow::Result<()> {
        let known = |one: &PassedSocket| NAMES.contains(&one.name.as_str());
        if let Some(odd) = self.sockets.iter().find(|one| !known(one)) {
            if self.sockets.iter().any(known) {
                bail!(
                    "LISTEN_FDNAMES has {:?} beside names of ours: call each socket postgres, redis or admin \
                     (FileDescriptorName=), or none",
                    odd.name
                );
            }
            let places = [("postgres", postgres), ("redis", redis), ("admin", 1)];
            let names =
                || places.iter().flat_map(|(name, count)| std::iter::repeat_n(*name, *count));
            let (mut tcp, mut unix) = (names(), names());
            for one in &mut self.sockets {
                let name = match one.socket {
                    Kind::Tcp(_) => tcp.next(),
                    Kind::Unix(..) => unix.next(),
                };
                one.name = name.unwrap_or_default().to_owned();
            }
        }
        Ok(())
    }

    /// The next TCP socket for the listeners called `name`.
    pub(super) fn take_tcp(&mut self, name: &str) -> Option<TcpListener> {
        let at = |one: &PassedSocket| one.name == name && matches!(one.socket, Kind::Tcp(_));
        match self.take(at)? {
            Kind::Tcp(socket) => Some(socket),
            Kind::Unix(..) => None,
        }
    }

    /// The next unix socket for the listeners called `name`, and its path.
    pub(super) fn take_unix(&mut self, name: &str) -> Option<(UnixListener, PathBuf)> {
        let at = |one: &PassedSocket| one.name == name && matches!(one.socket, Kind::Unix(..));
        match self.take(at)? {
            Kind::Unix(socket, path) => Some((socket, path)),
            Kind::Tcp(_) => None,
        }
    }

    fn take(&mut self, wanted: impl Fn(&PassedSocket) -> bool) -> Option<Kind> {
        let at = self.sockets.iter().position(wanted)?;
        Some(self.sockets.remove(at).socket)
    }

    /// Nobody would ever answer on a socket that is left.
    pub(super) fn refuse_rest(&self) -> anyhow::Result<()> {
        let Some(PassedSocket { name, socket }) = self.sockets.first() else { return Ok(()) };
        let kind = socket.word();
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
