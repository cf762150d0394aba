//! Our own addresses: how a client on this machine reaches them, and when an upstream is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Host;

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
pub fn leads_to(host: &Host, port: u16, listen: SocketAddr) -> bool {
    let Host::Tcp(name) = host else { return false };
    if port != listen.port() {
        return false;
    }
    let same_machine = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    match name.parse::<IpAddr>() {
        Ok(ip) if ip == listen.ip() => true,
        // The whole of 127/8 reaches a listener on all addresses, 0.0.0.0 reaches a loopback one.
        Ok(ip) => same_machine(ip) && (listen.ip().is_unspecified() || ip.is_unspecified()),
        Err(_) => name.eq_ignore_ascii_case("localhost") && same_machine(listen.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_address_is_known_under_all_its_names() {
        for (host, port, listen, ours) in [
            ("127.0.0.1", 6432, "127.0.0.1:6432", true),
            ("localhost", 6432, "127.0.0.1:6432", true),
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
            assert_eq!(leads_to(&host, port, listen.parse().unwrap()), ours, "{host} {listen}");
        }
        assert!(!leads_to(&Host::Unix("/tmp".into()), 6432, "127.0.0.1:6432".parse().unwrap()));
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
