//! URLs of one host: Redis' and others'. Taken apart by hand, because a general URL parser refuses what they hold (raw `#` in a
//! password, unix sockets). Postgres' are in `conninfo`.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// RFC 3986's unreserved characters stay, everything else is coded: safe in each part of a URL.
const CODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const CODE_HINT: &str = "characters such as / ? @ : in a user name or a password must be percent-coded (%2F %3F %40 %3A)";

/// A URL in parts, decoded. Knows no scheme's rules.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Uri {
    pub(super) scheme: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// Without brackets; a unix socket's directory when it was percent-coded into the host.
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// Without the leading slash; still coded, since only the scheme knows whether it is one part.
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
}

impl Uri {
    /// Takes `text` apart; the error says what is wrong without repeating any of it, for it may hold
    /// a password.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("is set but empty; give it a URL or unset it".to_owned());
        }
        if text.contains(char::is_whitespace) || text.contains(char::is_control) {
            return Err("holds a space or a control character; code it as %20".to_owned());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("is not a URL: it has no ://".to_owned());
        };
        let scheme = scheme.to_ascii_lowercase();
        let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = before_query.split_once('/').unwrap_or((before_query, ""));
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            // An @ further on means that the password broke off at a raw / or ?.
            None if before_query.contains('@') => return Err(CODE_HINT.to_owned()),
            None => (None, authority),
        };
        let (user, password) = match user_info {
            None => (None, None),
            Some(info) => match info.split_once(':') {
                None => (filled(decode(info)?), None),
                Some((user, password)) => (filled(decode(user)?), filled(decode(password)?)),
            },
        };
        let (host, port) = split_address(address)?;
        let query = split_query(query)?;
        Ok(Self { scheme, user, password, host, port, path: path.to_owned(), query })
    }

    /// Removes the query option `name` and gives its last value.
    pub(super) fn take_option(&mut self, name: &str) -> Option<String> {
        let value = self.query.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v.clone());
        self.query.retain(|(key, _)| key != name);
        value
    }

    /// The URL again, for logs: with `***` for the password and for secrets among the options.
    pub(super) fn masked(&self) -> String {
        self.render(|_secret| "***".to_owned())
    }

    /// The URL as text, each part coded again. Holds the password.
    pub(super) fn to_url(&self) -> String {
        self.render(encode)
    }

    fn render(&self, secret: impl Fn(&str) -> String) -> String {
        let mut text = format!("{}://", self.scheme);
        if self.user.is_some() || self.password.is_some() {
            text.push_str(&encode(self.user.as_deref().unwrap_or_default()));
            if let Some(password) = &self.password {
                text.push(':');
                text.push_str(&secret(password));
            }
            text.push('@');
        }
        match self.host.as_deref() {
            None => {}
            Some(host) if host.contains(':') => text.push_str(&format!("[{host}]")),
            Some(host) => text.push_str(&encode(host)),
        }
        if let Some(port) = self.port {
            text.push_str(&format!(":{port}"));
        }
        if !self.path.is_empty() {
            text.push('/');
            text.push_str(&self.path);
        }
        for (index, (key, value)) in self.query.iter().enumerate() {
            let is_secret = ["pass", "secret", "key"].iter().any(|word| key.contains(word));
            let value = if is_secret { secret(value) } else { encode(value) };
            text.push(if index == 0 { '?' } else { '&' });
            text.push_str(&format!("{}={value}", encode(key)));
        }
        text
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

/// Percent-codes all but letters, digits and `-._~`.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, CODED).to_string()
}

/// Decodes percent-codes; refuses half ones, as libpq does, and what is not text.
pub(super) fn decode(text: &str) -> Result<String, String> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        let code = after.get(..2).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        match code {
            None => {
                return Err("holds a % that is not followed by two hexadecimal digits; \
                    a % itself is written %25"
                    .to_owned());
            }
            Some("00") => return Err("holds %00, which no server accepts".to_owned()),
            Some(_) => rest = &after[2..],
        }
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| "holds percent-codes that are not UTF-8 text".to_owned())
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn split_address(address: &str) -> Result<(Option<String>, Option<u16>), String> {
    if address.contains(',') {
        return Err("names several hosts; tidegate connects to one server for each variable: \
            give it one host"
            .to_owned());
    }
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return Err("has a [ without its ] around an IPv6 address".to_owned());
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("has something other than an IPv6 address within [ ]".to_owned());
        }
        let port = after.strip_prefix(':').or(after.is_empty().then_some(""));
        (host.to_owned(), port.ok_or("has something other than :port behind the ]")?)
    } else {
        let (host, port) = address.split_once(':').unwrap_or((address, ""));
        (decode(host)?, port)
    };
    if port.is_empty() {
        return Ok((filled(host), None));
    }
    match port.parse() {
        Ok(number) if number != 0 => Ok((filled(host), Some(number))),
        // The text itself may be a part of a password.
        _ => Err(format!("has a port that is not a number from 1 to 65535; {CODE_HINT}")),
    }
}

fn split_query(query: &str) -> Result<Vec<(String, String)>, String> {
    query
        .split('&')
        .filter(|option| !option.is_empty())
        .map(|option| {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}
