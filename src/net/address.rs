//! Where a listener is, and where its clients come from: an address of the network, or a file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// One end of a client's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over the unix socket with this path: all that is known of who comes that way.
    Unix(Arc<Path>),
}

impl Address {
    /// Of the network, if it is.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Of whoever comes from there.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        Self::ip_of(self.tcp())
    }

    /// Of whoever comes from `network`: without such an address it is on this machine, as a unix socket's clients are, or gone.
    #[must_use]
    pub fn ip_of(network: Option<SocketAddr>) -> IpAddr {
        network.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
    }

    /// Whether only this machine's processes have it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    /// A path is followed by `:0`, as Redis shows it: so there is a port in either form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{}:0", path.display()),
        }
    }
}
