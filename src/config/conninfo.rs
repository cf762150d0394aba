//! libpq's connection strings, taken apart as libpq does it: URLs and `keyword=value`. By hand, because a general URL parser
//! refuses what databases' URLs hold (raw `#` in a password, unix sockets, several hosts). Source: PostgreSQL documentation,
//! "Connection Strings", and `fe-connect.c`.

use std::fmt;

use super::uri::{decode, encode};
use super::written::Environment;

/// libpq's options up to 18, with the variable that each has its default from, if it has one.
pub(super) const OPTIONS: [(&str, &str); 51] = [
    ("application_name", "PGAPPNAME"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("client_encoding", "PGCLIENTENCODING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("dbname", "PGDATABASE"),
    ("fallback_application_name", ""),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("gsslib", "PGGSSLIB"),
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("keepalives", ""),
    ("keepalives_count", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("krbsrvname", "PGKRBSRVNAME"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("oauth_client_id", ""),
    ("oauth_client_secret", ""),
    ("oauth_issuer", ""),
    ("oauth_scope", ""),
    ("options", "PGOPTIONS"),
    ("passfile", "PGPASSFILE"),
    ("password", "PGPASSWORD"),
    ("port", "PGPORT"),
    ("replication", ""),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
    ("scram_client_key", ""),
    ("scram_server_key", ""),
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcert", "PGSSLCERT"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcompression", "PGSSLCOMPRESSION"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslkey", "PGSSLKEY"),
    ("sslkeylogfile", ""),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslpassword", ""),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslsni", "PGSSLSNI"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("tcp_user_timeout", ""),
    ("user", "PGUSER"),
];

/// What has a place of its own in a URL.
const IN_FRONT: [&str; 5] = ["user", "password", "host", "port", "dbname"];

const CODE_HINT: &str = "characters such as / ? @ : in a user name or a password must be percent-coded (%2F %3F %40 %3A)";

/// What is written in a connection string: options and their values. Of one that is written twice the last counts.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Conninfo {
    /// As it was written, but for its case; of `keyword=value` the one that libpq prefers.
    pub(super) scheme: String,
    /// In the order in which they were written.
    written: Vec<(String, String)>,
}

impl Conninfo {
    /// Takes `text` apart; the error says what is wrong without repeating any of it, for it may hold a password.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("is set but empty; give it a URL or unset it".to_owned());
        }
        match scheme_of(text) {
            Some(scheme) => {
                check_scheme(&scheme.to_ascii_lowercase())?;
                let scheme_bytes = scheme.len() + "://".len();
                Self::of_url(scheme.to_ascii_lowercase(), &text[scheme_bytes..])
            }
            None if text.starts_with("jdbc:") => check_scheme("jdbc").map(|()| Self::empty()),
            None if text.contains('=') => Self::of_pairs(text),
            None => Err("is not a URL: it has no ://".to_owned()),
        }
    }

    /// With these options.
    pub(super) fn new(scheme: &str, written: Vec<(String, String)>) -> Self {
        Self { scheme: scheme.to_owned(), written }
    }

    fn empty() -> Self {
        Self::new("postgresql", Vec::new())
    }

    /// libpq's `conninfo_uri_parse_options`, from behind the `://`.
    fn of_url(scheme: String, text: &str) -> Result<Self, String> {
        let mut url = Self::new(&scheme, Vec::new());
        let end = text.find(['@', '/']).unwrap_or(text.len());
        let mut rest = text;
        if text[end..].starts_with('@') {
            let (user, password) = text[..end].split_once(':').unwrap_or((&text[..end], ""));
            url.set_coded("user", user)?;
            url.set_coded("password", password)?;
            rest = &text[end + 1..];
        }
        let rest = url.take_hosts(rest)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.contains('@') {
            return Err(format!("has a raw slash in its password; {CODE_HINT}"));
        }
        url.set_coded("dbname", path.strip_prefix('/').unwrap_or_default())?;
        if !query.is_empty() {
            url.take_query(query)?;
        }
        Ok(url)
    }

    /// Reads `host:port,host:port`; gives what follows.
    fn take_hosts<'a>(&mut self, text: &'a str) -> Result<&'a str, String> {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        let mut rest = text;
        loop {
            let (host, after) = take_host(rest)?;
            let (port, after) = match after.strip_prefix(':') {
                None => ("", after),
                Some(port) => port.split_at(port.find(['/', '?', ',']).unwrap_or(port.len())),
            };
            // libpq takes it for a part of the host, which nobody can reach; whoever reads errors would be told of it.
            if host.contains('@') {
                return Err(format!("has a raw @ in its password; {CODE_HINT}"));
            }
            // The text itself may be a part of a password.
            if !is_port(port) {
                return Err(format!(
                    "has a port that is not a number from 1 to 65535; {CODE_HINT}"
                ));
            }
            hosts.push(host);
            ports.push(port);
            let Some(next) = after.strip_prefix(',') else {
                self.set_coded("host", &hosts.join(","))?;
                self.set_coded("port", &ports.join(","))?;
                return Ok(after);
            };
            rest = next;
        }
    }

    fn take_query(&mut self, query: &str) -> Result<(), String> {
        // As in libpq, one & at the end says nothing.
        for option in query.strip_suffix('&').unwrap_or(query).split('&') {
            let (key, value) = option.split_once('=').ok_or(
                "has an option without its = behind the question mark; write name=value, and an & that is part of \
                 a value as %26",
            )?;
            self.set(unspaced(key)?, unspaced(value)?);
        }
        Ok(())
    }

    /// libpq's `conninfo_parse`: `keyword=value`, with quotes and backslashes.
    fn of_pairs(text: &str) -> Result<Self, String> {
        let mut pairs = Self::empty();
        let mut rest = text.trim_start_matches(is_space);
        while !rest.is_empty() {
            let end = rest.find(|c| c == '=' || is_space(c)).unwrap_or(rest.len());
            let (key, after) = rest.split_at(end);
            let after = after.trim_start_matches(is_space);
            let value = after.strip_prefix('=').ok_or(
                "has a word without its =; it must be a URL, or option=value pairs in which a value with spaces \
                 stands between single quotes",
            )?;
            let (value, after) = take_value(value.trim_start_matches(is_space))?;
            if !is_known(key) && key != "requiressl" {
                return Err("has an option that libpq does not know; it must be a URL, or option=value pairs of \
                    libpq's options (host, port, user, password, dbname ..)"
                    .to_owned());
            }
            if value.contains('\0') {
                return Err("holds a NUL, which no server accepts".to_owned());
            }
            pairs.set(key.to_owned(), value);
            rest = after.trim_start_matches(is_space);
        }
        Ok(pairs)
    }

    /// The value of an option, if it is written and not empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.written.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Every option that is written.
    pub(super) fn written(&self) -> &[(String, String)] {
        &self.written
    }

    /// What others say of options that are not written.
    pub(super) fn add_missing(&mut self, others: Vec<(String, String)>) {
        for (key, value) in others {
            if !self.written.iter().any(|(known, _)| *known == key) {
                self.written.push((key, value));
            }
        }
    }

    /// The same, with what libpq's variables say of options that are not written.
    pub(super) fn with_variables(&self, environment: &Environment) -> Self {
        let inherited = OPTIONS.iter().filter_map(|(key, variable)| {
            let value = environment.get(*variable).cloned().flatten()?;
            (!value.is_empty()).then(|| ((*key).to_owned(), value))
        });
        let mut all = self.clone();
        all.add_missing(inherited.collect());
        if requires_ssl(environment) {
            all.add_missing(vec![("sslmode".to_owned(), "require".to_owned())]);
        }
        all
    }

    /// A URL that says all this. Holds the password.
    pub(super) fn to_url(&self) -> String {
        self.render(encode)
    }

    /// The same with `***` for what is secret.
    pub(super) fn masked(&self) -> String {
        self.render(|_secret| "***".to_owned())
    }

    fn render(&self, secret: impl Fn(&str) -> String) -> String {
        let mut text = format!("{}://", self.scheme);
        let (user, password) = (self.get("user"), self.get("password"));
        if user.is_some() || password.is_some() {
            text.push_str(&user.map(encode).unwrap_or_default());
            text.push_str(&password.map(|it| format!(":{}", secret(it))).unwrap_or_default());
            text.push('@');
        }
        text.push_str(&self.address());
        if let Some(database) = self.get("dbname") {
            text.push_str(&format!("/{}", encode(database)));
        }
        let behind = self.written.iter().filter(|(key, _)| !IN_FRONT.contains(&key.as_str()));
        for (index, (key, value)) in behind.enumerate() {
            let is_secret = ["pass", "secret", "key"].iter().any(|word| key.contains(word));
            let value = if is_secret { secret(value) } else { encode(value) };
            let sign = if index == 0 { '?' } else { '&' };
            text.push_str(&format!("{sign}{}={value}", encode(key)));
        }
        text
    }

    fn address(&self) -> String {
        let split = |key| self.get(key).map_or(Vec::new(), |list| list.split(',').collect());
        let (hosts, ports): (Vec<&str>, Vec<&str>) = (split("host"), split("port"));
        let one = |index: usize| {
            let host = hosts.get(index).map_or(String::new(), |host| match host.contains(':') {
                true => format!("[{host}]"),
                false => encode(host),
            });
            let port = ports.get(index).filter(|port| !port.is_empty());
            port.map_or(host.clone(), |port| format!("{host}:{port}"))
        };
        (0..hosts.len().max(ports.len())).map(one).collect::<Vec<_>>().join(",")
    }

    fn set_coded(&mut self, key: &str, coded: &str) -> Result<(), String> {
        let value = unspaced(coded)?;
        // libpq: nothing written is not an empty value.
        if !coded.is_empty() {
            self.set(key.to_owned(), value);
        }
        Ok(())
    }

    fn set(&mut self, key: String, value: String) {
        let (key, value) = match (key.as_str(), value.as_str()) {
            // What JDBC and older servers' clients said.
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            ("requiressl", "1") => ("sslmode".to_owned(), "require".to_owned()),
            ("requiressl", _) => ("sslmode".to_owned(), "prefer".to_owned()),
            _ => (key, value),
        };
        match self.written.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => self.written.push((key, value)),
        }
    }
}

/// What older clients were told by: counts where `PGSSLMODE` is not there, and begins with a 1 (libpq's
/// `conninfo_add_defaults`).
pub(super) fn requires_ssl(environment: &Environment) -> bool {
    let variable = |name: &str| environment.get(name).and_then(Option::as_deref);
    let asks = variable("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'));
    asks && !environment.contains_key("PGSSLMODE")
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

/// Whether libpq knows an option.
pub(super) fn is_known(key: &str) -> bool {
    OPTIONS.iter().any(|(known, _)| *known == key)
}

/// Whether a port can be what it says; none is said by nothing.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// What stands in front of a `://`.
fn scheme_of(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '.' | '-');
    let is_scheme =
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(named);
    is_scheme.then_some(scheme)
}

fn check_scheme(scheme: &str) -> Result<(), String> {
    // SQLAlchemy writes the driver behind a plus, GeoDjango calls it postgis.
    let plain = scheme.split_once('+').map_or(scheme, |(plain, _driver)| plain);
    if matches!(plain, "postgres" | "postgresql" | "postgis") {
        return Ok(());
    }
    let jdbc = if scheme.starts_with("jdbc") { "; a JDBC URL cannot be pooled" } else { "" };
    Err(format!("has the wrong scheme: it must begin with postgres:// or postgresql://{jdbc}"))
}

/// A host, without its brackets, and what follows it.
fn take_host(text: &str) -> Result<(&str, &str), String> {
    let Some(inside) = text.strip_prefix('[') else {
        return Ok(text.split_at(text.find([':', '/', '?', ',']).unwrap_or(text.len())));
    };
    let Some((host, after)) = inside.split_once(']') else {
        return Err("has a [ without its ] around an IPv6 address".to_owned());
    };
    if host.is_empty() {
        return Err("has no IPv6 address within [ ]".to_owned());
    }
    if after.is_empty() || after.starts_with([':', '/', '?', ',']) {
        return Ok((host, after));
    }
    Err("has something other than :port behind the ]".to_owned())
}

/// The value of a pair, and what follows it.
fn take_value(text: &str) -> Result<(String, &str), String> {
    let quoted = text.strip_prefix('\'');
    let inside = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut characters = inside.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, &inside[at + 1..])),
            space if quoted.is_none() && is_space(space) => return Ok((value, &inside[at..])),
            other => value.push(other),
        }
    }
    match quoted {
        Some(_) => Err("has a quote without its end".to_owned()),
        None => Ok((value, "")),
    }
}

/// Decodes percent-codes. As libpq since 18 does, leaves spaces at both ends out and refuses those between.
fn unspaced(coded: &str) -> Result<String, String> {
    let coded = coded.trim_matches(' ');
    if coded.contains(is_space) || coded.contains(char::is_control) {
        return Err("holds a space or a control character; code it as %20".to_owned());
    }
    decode(coded)
}

/// C's `isspace`.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}
