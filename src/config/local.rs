//! Our own addresses: how a client on this machine reaches them, and when an upstream is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Host;
use crate::net::Address;

/// The host by which a client on this machine reaches a listener.
pub(super) fn local_host(listen: SocketAddr) -> String {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        ip => ip.to_string(),
    }
}

/// Whether connecting to `host`:`port` would reach `listen`. Names other than localhost are not
/// resolved: a remote server's name never means this machine's loopback.
#[must_use]
pub fn leads_to(host: &Host, port: u16, listen: &Address) -> bool {
    let (name, listen) = match (host, listen) {
        (Host::Tcp(name), Address::Tcp(listen)) => (name, *listen),
        // A file for Redis, a directory for Postgres.
        (Host::Unix(known), Address::Unix(path)) => {
            let file = known.join(format!(".s.PGSQL.{port}"));
            return *known == **path || file == **path;
        }
        _ => return false,
    };
    if port != listen.port() {
        return false;
    }
    let same_machine = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    match name.parse::<IpAddr>().ok().or_else(|| short_address(name)) {
        Some(ip) if ip == listen.ip() => true,
        // The whole of 127/8 reaches a listener on all addresses, 0.0.0.0 reaches a loopback one.
        Some(ip) => same_machine(ip) && (listen.ip().is_unspecified() || ip.is_unspecified()),
        None => name.eq_ignore_ascii_case("localhost") && same_machine(listen.ip()),
    }
}

/// An IPv4 address in the shorter forms that system resolvers take: `127.1`, `2130706433`, `0x7f.1` (POSIX `inet_addr`).
fn short_address(name: &str) -> Option<IpAddr> {
    let number = |part: &str| match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Vec<u32> = name.split('.').map(number).collect::<Option<_>>()?;
    let (last, bytes) = parts.split_last()?;
    let low = 32_u32.checked_sub(8 * u32::try_from(bytes.len()).ok()?)?;
    if low == 0 || bytes.iter().any(|byte| *byte > 255) || u64::from(*last) >> low != 0 {
        return None;
    }
    let high = bytes.iter().fold(0_u32, |all, byte| all << 8 | byte);
    let high = u64::from(high) << low;
    Some(Ipv4Addr::from(u32::try_from(high | u64::from(*last)).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_address_is_known_under_all_its_names() {
        for (host, port, listen, ours) in [
            ("127.0.0.1", 6432, "127.0.0.1:6432", true),
            ("localhost", 6432, "127.0.0.1:6432", true),
            ("127.1", 6432, "127.0.0.1:6432", true),
            ("2130706433", 6432, "127.0.0.1:6432", true),
            ("0x7f.0.1", 6432, "127.0.0.1:6432", true),
            ("127.2", 6432, "127.0.0.1:6432", false),
            ("1.2.3.4.5", 6432, "127.0.0.1:6432", false),
            ("LOCALHOST", 6432, "[::1]:6432", true),
            ("127.0.0.1", 6433, "127.0.0.1:6432", false),
            ("127.0.0.2", 6432, "127.0.0.1:6432", false),
            ("127.0.0.2", 6432, "0.0.0.0:6432", true),
            ("0.0.0.0", 6432, "127.0.0.1:6432", true),
            ("10.0.0.7", 6432, "10.0.0.7:6432", true),
            ("10.0.0.7", 6432, "127.0.0.1:6432", false),
            ("db.example.com", 6432, "127.0.0.1:6432", false),
        ] {
            let host = Host::Tcp(host.to_owned());
            assert_eq!(
                leads_to(&host, port, &Address::Tcp(listen.parse().unwrap())),
                ours,
                "{host} {listen}"
            );
        }
        let directory = Host::Unix("/tmp".into());
        assert!(!leads_to(&directory, 6432, &Address::Tcp("127.0.0.1:6432".parse().unwrap())));
        let socket = Address::Unix(std::path::Path::new("/tmp/.s.PGSQL.6432").into());
        assert!(leads_to(&directory, 6432, &socket) && !leads_to(&directory, 6433, &socket));
        assert!(leads_to(&Host::Unix("/tmp/.s.PGSQL.6432".into()), 1, &socket));
    }

    #[test]
    fn an_unspecified_listener_is_reached_by_loopback() {
        for (listen, host) in
            [("0.0.0.0:1", "127.0.0.1"), ("[::]:1", "::1"), ("127.0.0.9:1", "127.0.0.9")]
        {
            assert_eq!(local_host(listen.parse().unwrap()), host);
        }
    }
}
