//! Connecting to a server: every resolved address in turn, with the socket options a pool needs.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
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
/// Idle time before the first keepalive probe, time between probes, and probes until the end: a
/// server that vanished is noticed within 30 + 3 * 10 s although nobody writes to it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged before the kernel gives the connection up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to `host`: resolves it and tries every address in turn; an address that does not answer
/// delays the next by 2 s. Without an overall deadline: that is the caller's. For
/// [`Host::Unix`] `port` is not looked at: the path must be the socket file.
///
/// Cancel safe: a dropped attempt leaves no connection.
///
/// # Errors
/// The last address's error, with the address in its text; `NotFound` if the name has no address.
pub async fn connect(host: &Host, port: u16) -> io::Result<Stream> {
    match host {
        Host::Unix(path) => {
            let unix = UnixStream::connect(path).await;
            unix.map(Stream::Unix).map_err(|error| at(error, &path.display()))
        }
        Host::Tcp(name) => connect_tcp(name, port).await.map(Stream::Tcp),
    }
}

async fn connect_tcp(name: &str, port: u16) -> io::Result<TcpStream> {
    let found = tokio::net::lookup_host((name, port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| at(error, &name))?.collect();
    let Some((last, earlier)) = addresses.split_last() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address")));
    };
    for address in earlier {
        let attempt = tokio::time::timeout(ADDRESS_PATIENCE, connect_address(*address)).await;
        if let Ok(Ok(tcp)) = attempt {
            return Ok(tcp);
        }
    }
    connect_address(*last).await
}

async fn connect_address(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await.map_err(|error| at(error, &address))?;
    set_options(&tcp).map_err(|error| at(error, &address))?;
    Ok(tcp)
}

fn set_options(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
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
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
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
