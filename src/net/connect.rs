//! Connecting to a server: every resolved address in turn, with the socket options a pool needs.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::Stream;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name or an address, without port and without brackets.
    Tcp(String),
    /// The directory of Postgres' unix socket (the file is `.s.PGSQL.<port>` in it, as libpq has
    /// it), or the socket file itself for Redis.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name) if name.contains(':') => write!(f, "[{name}]"),
            Self::Tcp(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How long one of several addresses may hold up the next.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);

/// One socket of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spot {
    /// An address of its name.
    Tcp(SocketAddr),
    /// The socket file. With an `@` in front it is a name in Linux's abstract space.
    Unix(PathBuf),
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How a TCP connection notices that the other end has vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vigilance {
    /// Idle time before the first keepalive probe, and time between probes; `None`: no probes.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged before the kernel gives the connection up; `None`: as the system has it.
    pub user_timeout: Option<Duration>,
}

/// Probes of an idle connection; what is `None` is as the system has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first.
    pub idle: Option<Duration>,
    /// Time between them.
    pub interval: Option<Duration>,
    /// How many without an answer are the end.
    pub retries: Option<u32>,
}

impl Default for Vigilance {
    /// A server that vanished is noticed within 30 + 3 * 10 s although nobody writes to it.
    fn default() -> Self {
        let keepalive = Keepalive {
            idle: Some(Duration::from_secs(30)),
            interval: Some(Duration::from_secs(10)),
            retries: Some(3),
        };
        Self { keepalive: Some(keepalive), user_timeout: Some(Duration::from_secs(30)) }
    }
}

/// Connects to `host`: resolves it and tries every address in turn; an address that does not answer
/// delays the next by 2 s. Without an overall deadline: that is the caller's. For
/// [`Host::Unix`] `port` is not looked at: the path must be the socket file.
///
/// Cancel safe: a dropped attempt leaves no connection.
///
/// # Errors
/// The last address's error, with the address in its text; `NotFound` if the name has no address.
pub async fn connect(host: &Host, port: u16) -> io::Result<Stream> {
    let spots = match host {
        Host::Unix(path) => vec![Spot::Unix(path.clone())],
        Host::Tcp(name) => addresses(name, port).await?.into_iter().map(Spot::Tcp).collect(),
    };
    let vigilance = Vigilance::default();
    let mut refused = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for (index, spot) in spots.iter().enumerate() {
        let more = spots.len() - index - 1;
        match connect_to(spot, more, &vigilance).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Every address of a name, in the resolver's order; at least one.
///
/// # Errors
/// The resolver's; `NotFound` if the name has no address.
pub async fn addresses(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((name, port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| at(error, &name))?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address")));
    }
    Ok(addresses)
}

/// Connects to one socket. When `more` are to be tried after it, it may not take longer than 2 s. Cancel safe.
///
/// # Errors
/// The system's, with the address in its text; `TimedOut` after those 2 s.
pub async fn connect_to(spot: &Spot, more: usize, vigilance: &Vigilance) -> io::Result<Stream> {
    let attempt = async {
        match spot {
            Spot::Unix(path) => UnixStream::connect(file_of(path)).await.map(Stream::Unix),
            Spot::Tcp(address) => {
                let tcp = TcpStream::connect(address).await?;
                set_options(&tcp, vigilance)?;
                Ok(Stream::Tcp(tcp))
            }
        }
    };
    let connected = match more {
        0 => attempt.await,
        _ => tokio::time::timeout(ADDRESS_PATIENCE, attempt)
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())),
    };
    connected.map_err(|error| at(error, spot))
}

/// The system marks abstract names by a nought.
fn file_of(path: &Path) -> PathBuf {
    let abstract_name = path.to_str().and_then(|path| path.strip_prefix('@'));
    abstract_name.map_or_else(|| path.to_owned(), |name| PathBuf::from(format!("\0{name}")))
}

fn set_options(tcp: &TcpStream, vigilance: &Vigilance) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    if let Some(Keepalive { idle, interval, retries }) = vigilance.keepalive {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(retries) = retries {
            keepalive = keepalive.with_retries(retries);
        }
        socket.set_keepalive(true)?;
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if vigilance.user_timeout.is_some() {
        socket.set_tcp_user_timeout(vigilance.user_timeout)?;
    }
    Ok(())
}

fn at(error: io::Error, place: &dyn fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("{place}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::bind;

    #[tokio::test]
    async fn a_server_s_connection_notices_its_end() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = connect(&Host::Tcp("127.0.0.1".into()), address.port()).await.unwrap();
        let tcp = stream.tcp().unwrap();
        let socket = SockRef::from(tcp);
        assert!(tcp.nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Vigilance::default().user_timeout);
    }

    #[tokio::test]
    async fn it_is_as_watchful_as_it_is_told_to_be() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let spot = Spot::Tcp(listener.local_addr().unwrap());
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let keepalive = Keepalive { idle: seconds(7), interval: seconds(8), retries: Some(9) };
        let vigilance = Vigilance { keepalive: Some(keepalive), user_timeout: seconds(10) };
        let stream = connect_to(&spot, 0, &vigilance).await.unwrap();
        let socket = SockRef::from(stream.tcp().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(8));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), seconds(10));
        let asleep = Vigilance { keepalive: None, user_timeout: None };
        let stream = connect_to(&spot, 0, &asleep).await.unwrap();
        assert!(!SockRef::from(stream.tcp().unwrap()).keepalive().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_may_have_a_name_and_no_file() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("tidegate-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let spot = Spot::Unix(format!("@{name}").into());
        let stream = connect_to(&spot, 0, &Vigilance::default()).await.unwrap();
        assert_eq!(stream.peer_user(), Some(rustix::process::geteuid().as_raw()));
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        // localhost is ::1 and 127.0.0.1 where there is IPv6; only the latter listens.
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = connect(&Host::Tcp("localhost".into()), port).await.unwrap();
        assert_eq!(stream.peer(), Some(listener.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn an_error_names_the_place() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = connect(&Host::Tcp("127.0.0.1".into()), port).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(refused.to_string().contains(&format!("127.0.0.1:{port}")), "{refused}");
        let socket = connect(&Host::Unix("/nonexistent/socket".into()), 0).await.unwrap_err();
        assert!(socket.to_string().contains("/nonexistent/socket"), "{socket}");
        let name = connect(&Host::Tcp("no-such-host.invalid".into()), 1).await.unwrap_err();
        assert!(name.to_string().contains("no-such-host.invalid"), "{name}");
    }
}
