//! By which names the admin port may be asked for: a page in somebody's browser whose name was made to lead to the loopback must not
//! read who holds connections ("DNS rebinding").

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::HOST;

/// The names that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Those of this machine: whoever listens on the loopback is asked by no other.
    Local,
    /// All: who opened the port to others knows by which name they come.
    Any,
}

impl Names {
    /// For a listener at `address`, where that is known.
    pub(super) fn of(address: Option<SocketAddr>) -> Self {
        match address {
            Some(address) if !address.ip().is_loopback() => Self::Any,
            _ => Self::Local,
        }
    }

    /// Whether a request with these headers is answered. One without a host (HTTP/1.0) comes from no browser.
    pub(super) fn allow(self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(HOST) else { return true };
        self == Self::Any || host.to_str().is_ok_and(is_local)
    }
}

/// Whether a host is an address or localhost, whatever its port: those no foreign name server can give out.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn only_a_loopback_listener_minds_by_which_name_it_is_asked() {
        for (host, local) in [
            ("localhost:9127", true),
            ("LocalHost", true),
            ("127.0.0.1:9127", true),
            ("[::1]:9127", true),
            ("10.0.0.1", true),
            ("evil.example.com:9127", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com:9127", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            assert_eq!(Names::of("127.0.0.1:1".parse().ok()).allow(&headers), local, "{host}");
            assert!(Names::of("10.0.0.1:1".parse().ok()).allow(&headers), "{host}");
        }
        assert!(Names::Local.allow(&HeaderMap::new()));
    }
}
