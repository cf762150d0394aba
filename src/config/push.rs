//! What `[push]` means: how often, to whom, and as whom.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::uri::Uri;
use super::written::{Entry, Environment, Written};
use super::{ConfigError, PushSettings, RemoteWrite, Secret};
use crate::net::{TlsSettings, Verify};

/// Who speaks, where the platform says so and the settings don't.
const SOURCES: [&str; 2] = ["DYNO", "HOSTNAME"];
/// Most bytes of a source.
const SOURCE_BYTES: usize = 128;
/// More often would be a burden to whoever takes it; who writes less has seconds in mind.
const EVERY_LEAST_MS: u64 = 1_000;
const EVERY_MOST_MS: u64 = 3_600_000;

pub(super) fn resolve(
    written: &Written,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<PushSettings, ConfigError> {
    let default = PushSettings::default();
    Ok(PushSettings {
        source: source(written, environment, default.source)?,
        log_every: log_every(written)?,
        remote_write: match written.entry("push.remote_write_url") {
            Some(entry) => Some(remote_write(written, entry, warnings)?),
            None => None,
        },
        remote_write_every: written.millis(
            "push.remote_write_every_ms",
            default.remote_write_every,
            EVERY_LEAST_MS..=EVERY_MOST_MS,
        )?,
        remote_write_timeout: written.millis(
            "push.remote_write_timeout_ms",
            default.remote_write_timeout,
            1..=EVERY_MOST_MS,
        )?,
    })
}

/// It stands unquoted in a log line, so it must be one word.
fn source(
    written: &Written,
    environment: &Environment,
    default: String,
) -> Result<String, ConfigError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
    if let Some(entry) = written.entry("push.source") {
        if entry.text.len() > SOURCE_BYTES || entry.text.is_empty() || !entry.text.chars().all(fits)
        {
            return Err(entry.wrong(format!(
                "must be one word of letters, digits and . _ - : / of at most {SOURCE_BYTES} bytes"
            )));
        }
        return Ok(entry.text.clone());
    }
    let named = SOURCES.iter().filter_map(|name| environment.get(*name)?.as_deref());
    let mut words = named
        .map(|text| -> String { text.chars().filter(|c| fits(*c)).take(SOURCE_BYTES).collect() });
    Ok(words.find(|word| !word.is_empty()).unwrap_or(default))
}

fn log_every(written: &Written) -> Result<Duration, ConfigError> {
    const PATH: &str = "push.log_every_ms";
    let every = written.millis(PATH, Duration::ZERO, 0..=EVERY_MOST_MS)?;
    match written.entry(PATH) {
        Some(entry) if !every.is_zero() && every < Duration::from_millis(EVERY_LEAST_MS) => {
            Err(entry.wrong(format!(
                "must be 0 (never), or milliseconds from {EVERY_LEAST_MS} to {EVERY_MOST_MS}"
            )))
        }
        _ => Ok(every),
    }
}

/// No error repeats the URL: it may hold a password anywhere.
fn remote_write(
    written: &Written,
    entry: &Entry,
    warnings: &mut Vec<String>,
) -> Result<RemoteWrite, ConfigError> {
    let wrong = |problem: &str| ConfigError::new(&entry.source, problem);
    let uri = Uri::parse(&entry.text).map_err(|problem| wrong(&problem))?;
    let (tls, default_port) = match uri.scheme.as_str() {
        "https" => {
            let roots = written.entry("push.remote_write_ca");
            let roots = roots.map(|entry| PathBuf::from(&entry.text));
            (Some(TlsSettings::verifying(Verify::Full, roots)), 443)
        }
        "http" => (None, 80),
        _ => return Err(wrong("has the wrong scheme: it must begin with https:// or http://")),
    };
    let host = uri.host.clone().ok_or_else(|| wrong("names no host"))?;
    let token = written.entry("push.remote_write_token");
    let authorization = match (uri.user.is_some() || uri.password.is_some(), token) {
        (true, Some(_)) => {
            return Err(wrong(
                "holds a user, and there is a token (push.remote_write_token) too: take one out",
            ));
        }
        (true, None) => Some(basic(&uri)),
        (false, Some(token)) => Some(bearer(token)?),
        (false, None) => None,
    };
    if tls.is_none() && authorization.is_some() && !is_here(&host) {
        let source = &entry.source;
        warnings.push(format!("{source} sends its credentials unencrypted: use https://"));
    }
    let path = Secret::new(path_of(&entry.text));
    if !path.expose().is_ascii() || hyper::Uri::try_from(path.expose()).is_err() {
        return Err(wrong(
            "has a path or query that HTTP can't carry: percent-code what is not a letter",
        ));
    }
    let port = uri.port.unwrap_or(default_port);
    Ok(RemoteWrite { host, port, path, authorization, tls })
}

/// Path and query as they were written.
fn path_of(url: &str) -> String {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = after_scheme.find(['/', '?']).map_or("", |at| &after_scheme[at..]);
    let rest = rest.split('#').next().unwrap_or_default();
    if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") }
}

fn basic(uri: &Uri) -> Secret {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let pair = format!("{}:{}", part(&uri.user), part(&uri.password));
    Secret::new(format!("Basic {}", STANDARD.encode(pair)))
}

fn bearer(token: &Entry) -> Result<Secret, ConfigError> {
    if token.text.is_empty() || !token.text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::new(&token.source, "must be one word without spaces"));
    }
    Ok(Secret::new(format!("Bearer {}", token.text)))
}

/// Whether nobody else can listen in on the way.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loaded, load};

    fn loaded(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let variables = variables.iter();
        let environment = variables
            .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
            .collect();
        load(None, &environment, &[])
    }

    const URL: &str = "TIDEGATE_PUSH_REMOTE_WRITE_URL";
    const TOKEN: &str = "TIDEGATE_PUSH_REMOTE_WRITE_TOKEN";

    fn target(variables: &[(&str, &str)]) -> RemoteWrite {
        loaded(variables).unwrap().settings.push.remote_write.unwrap()
    }

    #[test]
    fn nothing_is_sent_unless_said() {
        let push = loaded(&[]).unwrap().settings.push;
        assert_eq!(push, PushSettings::default());
        assert!(push.log_every.is_zero() && push.remote_write.is_none());
    }

    #[test]
    fn the_platform_says_who_speaks() {
        let source = |variables: &[(&str, &str)]| loaded(variables).unwrap().settings.push.source;
        assert_eq!(source(&[("DYNO", "web.1"), ("HOSTNAME", "h")]), "web.1");
        assert_eq!(source(&[("DYNO", ""), ("HOSTNAME", "my host")]), "myhost");
        assert_eq!(source(&[("DYNO", "web.1"), ("TIDEGATE_PUSH_SOURCE", "app:web")]), "app:web");
        let error = loaded(&[("TIDEGATE_PUSH_SOURCE", "two words")]).unwrap_err().to_string();
        assert!(error.contains("one word"), "{error}");
    }

    #[test]
    fn a_url_is_taken_apart() {
        let here = target(&[(URL, "http://127.0.0.1:9090/api/v1/write?k=v%20w")]);
        assert_eq!((here.host.as_str(), here.port), ("127.0.0.1", 9090));
        assert_eq!(here.path.expose(), "/api/v1/write?k=v%20w");
        assert!(here.tls.is_none() && here.authorization.is_none());
        let bare = target(&[(URL, "http://[::1]")]);
        assert_eq!((bare.host.as_str(), bare.port, bare.path.expose()), ("::1", 80, "/"));
        let user = target(&[(URL, "http://me:p%40ss@localhost/w")]);
        assert_eq!(user.authorization.unwrap().expose(), "Basic bWU6cEBzcw==");
        let token = target(&[(URL, "http://localhost/w"), (TOKEN, "t0ken")]);
        assert_eq!(token.authorization.unwrap().expose(), "Bearer t0ken");
    }

    #[test]
    fn a_wrong_url_is_told_of_and_not_shown() {
        for (url, token, words) in [
            ("ftp://me:hunter2@h/", None, "https://"),
            ("hunter2", None, "not a URL"),
            ("https:///hunter2", None, "names no host"),
            ("https://me:hunter2@h:port/", None, "port"),
            ("http://localhost/hunter2\u{e9}", None, "percent-code"),
            ("https://me:hunter2@h/", Some("t"), "take one out"),
            ("http://localhost/", Some("hunter2 \u{e9}"), "one word"),
        ] {
            let mut variables = vec![(URL, url)];
            variables.extend(token.map(|token| (TOKEN, token)));
            let error = loaded(&variables).unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for (name, value) in [
            ("TIDEGATE_PUSH_LOG_EVERY_MS", "15"),
            ("TIDEGATE_PUSH_REMOTE_WRITE_EVERY_MS", "15"),
            ("TIDEGATE_PUSH_REMOTE_WRITE_EVERY_MS", "0"),
        ] {
            let error = loaded(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("from 1000"), "{error}");
        }
    }

    #[test]
    fn nothing_that_is_shown_holds_a_credential() {
        let url = "http://me:hunter2@prometheus.example.com/hunter2?token=hunter2";
        let loaded = loaded(&[(URL, url), ("TIDEGATE_PUSH_LOG_EVERY_MS", "60000")]).unwrap();
        let shown = format!("{}\n{loaded:?}", crate::config::describe(&loaded));
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"), "{shown}");
        assert!(shown.contains("http://prometheus.example.com:80 every 15000 ms"), "{shown}");
        assert!(shown.contains("unencrypted"), "{shown}");
    }
}
