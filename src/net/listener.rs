//! Accepting clients, through the hours when the process has no file descriptor left: over TCP, and over a unix socket beside it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, UnixListener};

use super::socket_file::{self, SocketError, SocketFile};
use super::{Address, Stream};

/// A bound TCP listener, and the unix socket that leads to the same place, if there is one.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    opener: Opener,
    unix: Option<UnixDoor>,
    /// Counts looks, as the two take turns in being looked at first.
    looks: AtomicUsize,
}

/// Who has opened a TCP socket that we listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// We, or a tidegate before us, as its settings said.
    Tidegate,
    /// The service manager, which keeps it open: somebody must answer there.
    Manager,
}

/// A unix socket that we listen on.
#[derive(Debug)]
struct UnixDoor {
    listener: UnixListener,
    path: Arc<Path>,
    /// None of ours if another process has opened it.
    file: Option<Arc<SocketFile>>,
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        self.file.iter().for_each(|file| file.remove());
    }
}

/// First and longest pause after an accept that failed for lack of resources.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Connections the kernel keeps for us until we accept them (it takes the smaller of this and
/// `net.core.somaxconn`): a whole fleet's reconnect must fit.
const BACKLOG: u16 = 4096;

/// Binds `addr`; port 0 takes a free one (see [`Listener::local_addr`]).
///
/// # Errors
/// `AddrInUse`, `AddrNotAvailable`, `PermissionDenied`, as the system reports it.
pub async fn bind(addr: SocketAddr) -> io::Result<Listener> {
    let socket = if addr.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    }?;
    // Without it a restart within the TIME_WAIT of old clients could not bind.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(Listener::new(socket.listen(BACKLOG.into())?, Opener::Tidegate))
}

impl Listener {
    /// Of a socket that listens already and does not block. Call it inside the runtime.
    ///
    /// # Errors
    /// As the system reports it.
    pub fn of(socket: std::net::TcpListener, opener: Opener) -> io::Result<Self> {
        Ok(Self::new(TcpListener::from_std(socket)?, opener))
    }

    fn new(tcp: TcpListener, opener: Opener) -> Self {
        Self { tcp, opener, unix: None, looks: AtomicUsize::new(0) }
    }

    /// Listens on the unix socket `path`, too, whose file has `mode` and is removed with the listener. Takes the place of a
    /// socket that nobody listens on. Call it inside the runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open_socket(&mut self, path: &Path, mode: u32) -> Result<(), SocketError> {
        let (listener, file) = socket_file::listen(path, mode, BACKLOG.into())?;
        self.take_socket(listener, path, Some(file))?;
        Ok(())
    }

    /// Accepts on a unix socket, too, that listens on `path` already and does not block; `file` if it is ours to remove. Call it
    /// inside the runtime.
    ///
    /// # Errors
    /// As the system reports it.
    pub fn take_socket(
        &mut self,
        socket: std::os::unix::net::UnixListener,
        path: &Path,
        file: Option<SocketFile>,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(socket)?;
        self.unix = Some(UnixDoor { listener, path: path.into(), file: file.map(Arc::new) });
        Ok(())
    }

    /// Copies of the sockets, for another process: TCP's, and the unix socket's.
    ///
    /// # Errors
    /// As the system reports it.
    pub fn duplicates(&self) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let unix = self.unix.as_ref().map(|unix| unix.listener.as_fd().try_clone_to_owned());
        Ok((self.tcp.as_fd().try_clone_to_owned()?, unix.transpose()?))
    }

    /// Who has opened the TCP socket.
    #[must_use]
    pub fn opener(&self) -> Opener {
        self.opener
    }

    /// The unix socket's file, if there is one and it is ours.
    #[must_use]
    pub fn socket_file(&self) -> Option<&Arc<SocketFile>> {
        self.unix.as_ref().and_then(|unix| unix.file.as_ref())
    }

    /// The unix socket's path, if there is one.
    #[must_use]
    pub fn socket_path(&self) -> Option<&Path> {
        self.unix.as_ref().map(|unix| unix.path.as_ref())
    }

    /// The next client, with TCP_NODELAY set if it comes over TCP. Clients that are gone before we take them are passed
    /// over; a lack of file descriptors or memory is waited out (5 ms, doubling to 1 s, logged).
    /// Cancel safe. One task at a time: it is woken for all doors.
    ///
    /// # Errors
    /// Only when a listening socket itself is of no use any more.
    pub async fn accept(&self) -> io::Result<(Stream, Address)> {
        let mut pause = PAUSE_FIRST;
        loop {
            match poll_fn(|cx| self.poll_accept(cx)).await {
                Ok(client) => return Ok(client),
                Err(error) => match Ailment::of(&error) {
                    Ailment::Client => {}
                    Ailment::Process => {
                        tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept a client now");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PAUSE_LONGEST);
                    }
                    Ailment::Socket => return Err(error),
                },
            }
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Address)>> {
        let Some(unix) = &self.unix else { return poll_tcp(&self.tcp, cx) };
        // A crowd at one door must not keep those at the other waiting for ever.
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            if let Poll::Ready(client) = poll_tcp(&self.tcp, cx) {
                return Poll::Ready(client);
            }
            return unix.poll_accept(cx);
        }
        if let Poll::Ready(client) = unix.poll_accept(cx) {
            return Poll::Ready(client);
        }
        poll_tcp(&self.tcp, cx)
    }

    /// The address bound over TCP, with the port that was chosen if 0 was asked for.
    ///
    /// # Errors
    /// As the system reports it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl UnixDoor {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Address)>> {
        let (stream, _nameless) = ready!(self.listener.poll_accept(cx))?;
        Poll::Ready(Ok((Stream::Unix(stream), Address::Unix(Arc::clone(&self.path)))))
    }
}

fn poll_tcp(tcp: &TcpListener, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Address)>> {
    let (stream, peer) = ready!(tcp.poll_accept(cx))?;
    // It fails when the client is gone already: as if it had been gone before.
    stream.set_nodelay(true).map_err(|_| io::Error::from(Errno::CONNABORTED))?;
    Poll::Ready(Ok((Stream::Tcp(stream), Address::Tcp(peer))))
}

/// Who suffers from a failed accept.
#[derive(Debug, PartialEq, Eq)]
enum Ailment {
    /// That one client: take the next.
    Client,
    /// The process or the machine (EMFILE, ENFILE, ENOBUFS, ENOMEM ..): wait, then go on.
    Process,
    /// The listening socket: nothing more will come of it.
    Socket,
}

impl Ailment {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Self::Socket,
            // accept(2): errors already pending on the new connection are handed to accept.
            Some(
                Errno::CONNABORTED
                | Errno::INTR
                | Errno::PROTO
                | Errno::PERM
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NOPROTOOPT
                | Errno::TIMEDOUT
                | Errno::CONNRESET,
            ) => Self::Client,
            _ => Self::Process,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_suffers_decides_what_happens_next() {
        for (errno, ailment) in [
            (Errno::MFILE, Ailment::Process),
            (Errno::NFILE, Ailment::Process),
            (Errno::NOBUFS, Ailment::Process),
            (Errno::NOMEM, Ailment::Process),
            (Errno::CONNABORTED, Ailment::Client),
            (Errno::PROTO, Ailment::Client),
            (Errno::BADF, Ailment::Socket),
            (Errno::INVAL, Ailment::Socket),
        ] {
            assert_eq!(Ailment::of(&io::Error::from(errno)), ailment, "{errno:?}");
        }
        assert_eq!(Ailment::of(&io::Error::other("?")), Ailment::Process);
    }

    #[tokio::test]
    async fn a_client_is_accepted_without_delay_of_small_writes() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match bind(address.parse().unwrap()).await {
                Ok(listener) => listener,
                // A machine without IPv6.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => continue,
                Err(error) => panic!("{error}"),
            };
            let bound = listener.local_addr().unwrap();
            let client = tokio::net::TcpStream::connect(bound).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, Address::Tcp(client.local_addr().unwrap()));
            assert_eq!(stream.peer(), peer.tcp());
            assert!(stream.tcp().unwrap().nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn clients_of_both_doors_are_accepted_in_turn() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let mut listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        listener.open_socket(&path, 0o600).unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(
                tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap(),
            );
        }
        let _beside = tokio::net::UnixStream::connect(&path).await.unwrap();
        let mut doors = Vec::new();
        for _ in 0..4 {
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(
                matches!(stream, Stream::Unix(_)),
                peer == Address::Unix(path.as_path().into())
            );
            doors.push(peer.tcp().is_some());
        }
        assert!(
            !doors[..2].iter().all(|tcp| *tcp),
            "the second door is not kept waiting: {doors:?}"
        );
        assert_eq!(doors.iter().filter(|tcp| **tcp).count(), 3);
        drop(listener);
        assert!(!path.exists(), "the file goes with the listener");
    }

    #[tokio::test]
    async fn a_taken_port_is_said() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(listener.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
