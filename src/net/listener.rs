//! Accepting clients, through the hours when the process has no file descriptor left.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use super::Stream;

/// A bound TCP listener.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
}

/// First and longest pause after an accept that failed for lack of resources.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Connections the kernel keeps for us until we accept them (it takes the smaller of this and
/// `net.core.somaxconn`): a whole fleet's reconnect must fit.
const BACKLOG: u32 = 4096;

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
    Ok(Listener { tcp: socket.listen(BACKLOG)? })
}

impl Listener {
    /// The next client, with TCP_NODELAY set. Clients that are gone before we take them are passed
    /// over; a lack of file descriptors or memory is waited out (5 ms, doubling to 1 s, logged).
    /// Cancel safe.
    ///
    /// # Errors
    /// Only when the listening socket itself is of no use any more.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.tcp.accept().await {
                Ok((tcp, peer)) => {
                    if tcp.set_nodelay(true).is_ok() {
                        return Ok((Stream::Tcp(tcp), peer));
                    }
                }
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

    /// The address bound, with the port that was chosen if 0 was asked for.
    ///
    /// # Errors
    /// As the system reports it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
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
        use rustix::io::Errno;
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
    use rustix::io::Errno;

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
            assert_eq!(peer, client.local_addr().unwrap());
            assert_eq!(stream.peer(), Some(peer));
            assert!(stream.tcp().unwrap().nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_said() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(listener.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
