//! The hosts that a Postgres URL names, and which of them is wanted: libpq's `host`, `hostaddr`, `port`,
//! `target_session_attrs` and `load_balance_hosts`.

use std::fmt;
use std::net::IpAddr;

use super::conninfo::Conninfo;
use super::{Host, leads_to};
use crate::net::Address;

const DEFAULT_PORT: u16 = 5432;
/// Where Debian's and most others' servers keep their socket.
pub(super) const SOCKET_DIRECTORY: &str = "/var/run/postgresql";
/// Most hosts of one URL.
const HOSTS_MOST: usize = 32;

/// Where a server may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerHost {
    /// Its name, which its certificate bears, or the directory of its unix socket.
    pub host: Host,
    /// The address that is connected to, where nobody is to be asked for the name's.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for ServerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The hosts of one URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hosts {
    /// In its order; never empty.
    pub list: Vec<ServerHost>,
    /// What the server must be.
    pub target: TargetSession,
    /// Which is tried first.
    pub order: HostOrder,
}

/// libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TargetSession {
    /// Whoever answers.
    #[default]
    Any,
    /// Its transactions may write.
    ReadWrite,
    /// They may not.
    ReadOnly,
    /// It is no standby.
    Primary,
    /// It is one.
    Standby,
    /// The same, and whoever answers if there is none.
    PreferStandby,
}

/// libpq's `load_balance_hosts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HostOrder {
    /// The first that is named.
    #[default]
    AsWritten,
    /// Any: each connection draws anew.
    Random,
}

impl Hosts {
    /// As libpq counts them: a port for each host or one for all of them, and as many addresses as names if there are both.
    ///
    /// # Errors
    /// What is wrong; repeats nothing of the text.
    pub(super) fn read(all: &Conninfo) -> Result<Self, String> {
        let split = |key| all.get(key).map(|list| list.split(',').collect::<Vec<_>>());
        let (names, addresses) = (split("host"), split("hostaddr"));
        let ports = split("port").unwrap_or_default();
        let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
        if names.as_ref().is_some_and(|names| names.len() != count) {
            return Err("names other than one hostaddr for each host; name as many".to_owned());
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(
                "names other than one port for each host; name as many, or one for all".to_owned()
            );
        }
        if count > HOSTS_MOST {
            return Err(format!("names {count} hosts; name {HOSTS_MOST} at most"));
        }
        let list = (0..count).map(|index| {
            let at =
                |list: &Option<Vec<&str>>| list.as_ref().map_or("", |list| list[index]).to_owned();
            let port = ports.get(index).or(ports.first()).copied().unwrap_or_default();
            ServerHost::read(&at(&names), &at(&addresses), port)
        });
        let list = list.collect::<Result<_, _>>()?;
        Ok(Self { list, target: target(all)?, order: order(all)? })
    }

    /// One host, whatever it is.
    #[must_use]
    pub fn one(host: Host, port: u16) -> Self {
        let list = vec![ServerHost { host, address: None, port }];
        Self { list, target: TargetSession::Any, order: HostOrder::AsWritten }
    }

    /// All of them but for the last one's port: with that behind a colon it is all of them.
    #[must_use]
    pub fn names(&self) -> String {
        let all = self.to_string();
        all.rsplit_once(':').map_or(all.clone(), |(names, _)| names.to_owned())
    }

    /// Whether one of them is our own listener at `listen`.
    #[must_use]
    pub fn lead_to(&self, listen: &Address) -> bool {
        let mut list = self.list.iter();
        list.any(|one| match one.address {
            Some(address) => leads_to(&Host::Tcp(address.to_string()), one.port, listen),
            None => leads_to(&one.host, one.port, listen),
        })
    }

    /// The last one's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.list.last().map_or(0, |host| host.port)
    }
}

impl ServerHost {
    /// Whether it is reached over a unix socket.
    #[must_use]
    pub fn is_socket(&self) -> bool {
        self.address.is_none() && matches!(self.host, Host::Unix(_))
    }

    fn read(name: &str, address: &str, port: &str) -> Result<Self, String> {
        let address = match address {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| {
                "has a hostaddr that is not an IP address; a name belongs into host".to_owned()
            })?),
        };
        let host = match (name, address) {
            ("", None) => Host::Unix(SOCKET_DIRECTORY.into()),
            ("", Some(address)) => Host::Tcp(address.to_string()),
            // With an @ it is a name in Linux's abstract space.
            (path, _) if path.starts_with(['/', '@']) => Host::Unix(path.into()),
            (name, _) => Host::Tcp(name.to_owned()),
        };
        let port = match port.trim() {
            "" => DEFAULT_PORT,
            text => text
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or("has a port that is not a number from 1 to 65535")?,
        };
        Ok(Self { host, address, port })
    }
}

fn target(all: &Conninfo) -> Result<TargetSession, String> {
    match all.get("target_session_attrs") {
        None | Some("any") => Ok(TargetSession::Any),
        Some("read-write") => Ok(TargetSession::ReadWrite),
        Some("read-only") => Ok(TargetSession::ReadOnly),
        Some("primary") => Ok(TargetSession::Primary),
        Some("standby") => Ok(TargetSession::Standby),
        Some("prefer-standby") => Ok(TargetSession::PreferStandby),
        Some(_) => Err("has a target_session_attrs that is none of any, read-write, read-only, primary, standby, \
            prefer-standby (or PGTARGETSESSIONATTRS has)"
            .to_owned()),
    }
}

fn order(all: &Conninfo) -> Result<HostOrder, String> {
    match all.get("load_balance_hosts") {
        None | Some("disable") => Ok(HostOrder::AsWritten),
        Some("random") => Ok(HostOrder::Random),
        Some(_) => Err("has a load_balance_hosts that is neither disable nor random (or \
            PGLOADBALANCEHOSTS has)"
            .to_owned()),
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.list.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_are_told_with_the_last_port_apart() {
        let host =
            |name: &str, port| ServerHost { host: Host::Tcp(name.to_owned()), address: None, port };
        let one = Hosts::one(Host::Tcp("a".to_owned()), 1);
        assert_eq!((one.names(), one.port()), ("a".to_owned(), 1));
        let several = Hosts { list: vec![host("a", 1), host("::1", 2)], ..one };
        assert_eq!(several.to_string(), "a:1,[::1]:2");
        assert_eq!((several.names(), several.port()), ("a:1,[::1]".to_owned(), 2));
    }
}
