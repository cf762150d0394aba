//! What becomes of libpq's options that are about the way to the server: applied here, or refused with a word on what to do
//! instead. None is dropped without a word that would be missed.

use std::time::Duration;

use super::conninfo::Conninfo;
use crate::net::{Handshake, Keepalive, Naming, TlsVersions, Vigilance};
use crate::postgres::login::Methods;

/// Options that are ours to keep, useless or harmful towards our plain local listener; beside those about TLS (`ssl..`).
const OF_THE_WAY: [&str; 24] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "passfile",
    "service",
    "servicefile",
    "channel_binding",
    "require_auth",
    "requirepeer",
    "target_session_attrs",
    "load_balance_hosts",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "gssencmode",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "ssl",
];
/// An hour: a connect timeout that is longer is that.
const CONNECT_TIMEOUT_MOST: u64 = 3_600;
/// The kernel's bounds of keepalive's times and number (`tcp(7)`).
const KEEPALIVE_SECONDS_MOST: u64 = 32_767;
const KEEPALIVE_COUNT_MOST: u64 = 127;

/// Whether an option is not passed on to the wrapped command.
pub(super) fn is_ours(key: &str) -> bool {
    OF_THE_WAY.contains(&key) || is_tls_option(key)
}

pub(super) fn is_tls_option(key: &str) -> bool {
    key.starts_with("ssl")
}

/// Refuses what cannot be honoured and would be missed.
///
/// # Errors
/// What it is, and what to do; repeats nothing of the values.
pub(super) fn check(all: &Conninfo) -> Result<(), String> {
    for (key, value) in all.written().iter().filter(|(_, value)| !value.is_empty()) {
        let advice = match (key.as_str(), value.as_str()) {
            ("gssencmode", "disable" | "prefer") => continue,
            ("gssencmode", "require") => {
                "tidegate does not speak GSSAPI; use gssencmode=disable, with sslmode=require to encrypt"
            }
            ("gssencmode", _) => "it must be disable or prefer",
            ("sslpassword", _) if all.get("sslkey").is_none() => continue,
            ("sslpassword", _) => "take the password off the key's file, and the option out",
            ("sslcrl" | "sslcrldir", _) => {
                "it reads no lists of revoked certificates; take it out, or name the server's key in postgres.pin"
            }
            ("sslcertmode", "require") => {
                "it shows its certificate to a server that asks; use allow"
            }
            ("sslkeylogfile", _) => "it writes no keys down; take it out",
            ("scram_client_key" | "scram_server_key", _) => "write the password instead",
            ("oauth_issuer" | "oauth_client_id" | "oauth_client_secret" | "oauth_scope", _) => {
                "it logs in with passwords and certificates alone; take it out"
            }
            _ => continue,
        };
        return Err(format!(
            "has the option {key} (or libpq's variable for it is set), which tidegate cannot honour as it is: {advice}"
        ));
    }
    Ok(())
}

/// A word on options that do nothing here.
pub(super) fn warnings(name: &str, all: &Conninfo) -> Vec<String> {
    let vain = ["krbsrvname", "gsslib", "gssdelegation"].into_iter();
    let vain = vain.filter(|key| all.get(key).is_some_and(|value| value != "0"));
    vain.map(|key| {
        format!("{name}: {key} is about GSSAPI, which tidegate does not speak: it is ignored")
    })
    .collect()
}

/// `connect_timeout`, in seconds; nought, and less, is none.
///
/// # Errors
/// When it is no number.
pub(super) fn connect_timeout(all: &Conninfo) -> Result<Option<Duration>, String> {
    let seconds = number(all, "connect_timeout", CONNECT_TIMEOUT_MOST)?.unwrap_or(0);
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

/// How the connection notices that the server has vanished: what is not written stays as it is without a URL's word, and
/// nought means the system's value.
///
/// # Errors
/// When something is no number.
pub(super) fn vigilance(all: &Conninfo) -> Result<Vigilance, String> {
    let usual = Vigilance::default();
    let own = |key: &str, usual: Option<Duration>, of: fn(u64) -> Duration, most: u64| {
        let number = number(all, key, most)?;
        Ok::<_, String>(number.map_or(usual, |number| (number > 0).then(|| of(number))))
    };
    let keepalive = match (number(all, "keepalives", 1)?, usual.keepalive) {
        (Some(0), _) | (_, None) => None,
        (_, Some(usual)) => {
            let seconds = |key, usual| own(key, usual, Duration::from_secs, KEEPALIVE_SECONDS_MOST);
            let count = number(all, "keepalives_count", KEEPALIVE_COUNT_MOST)?;
            let count = count.map(|count| u32::try_from(count).unwrap_or(0));
            Some(Keepalive {
                idle: seconds("keepalives_idle", usual.idle)?,
                interval: seconds("keepalives_interval", usual.interval)?,
                retries: count.map_or(usual.retries, |count| (count > 0).then_some(count)),
            })
        }
    };
    let most_ms = u64::from(i32::MAX.unsigned_abs());
    let user_timeout = own("tcp_user_timeout", usual.user_timeout, Duration::from_millis, most_ms)?;
    Ok(Vigilance { keepalive, user_timeout })
}

/// An option's number: less than nought is nought, more than `most` is that.
fn number(all: &Conninfo, key: &str, most: u64) -> Result<Option<u64>, String> {
    let Some(text) = all.get(key) else { return Ok(None) };
    match text.trim().parse::<i32>() {
        Ok(number) => Ok(Some(u64::try_from(number).unwrap_or(0).min(most))),
        Err(_) => Err(format!("has an option {key} that is not a number")),
    }
}

/// The user whose server alone may be behind a unix socket (`requirepeer`), by number.
///
/// # Errors
/// When the system has no such user.
pub(super) fn required_peer(all: &Conninfo) -> Result<Option<u32>, String> {
    let Some(name) = all.get("requirepeer") else { return Ok(None) };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    });
    found.map(Some).ok_or_else(|| {
        "has a requirepeer (or PGREQUIREPEER names one) that is no user of /etc/passwd; name the one that the server runs as"
            .to_owned()
    })
}

/// The ways in which the server may ask who we are (`require_auth`).
///
/// # Errors
/// When it names none that there is.
pub(super) fn methods(all: &Conninfo) -> Result<Methods, String> {
    let Some(text) = all.get("require_auth") else { return Ok(Methods::default()) };
    Methods::parse(text).ok_or_else(|| {
        "has a require_auth (or PGREQUIREAUTH) that is no list of password, md5, scram-sha-256, none, all of them with \
         a ! in front or none"
            .to_owned()
    })
}

/// Which TLS is spoken, and whether the server is told by which name it is reached.
///
/// # Errors
/// When there is no such version, or none left.
pub(super) fn handshake(all: &Conninfo) -> Result<Handshake, String> {
    let version = |key| match all.get(key) {
        None => Ok(None),
        Some("TLSv1" | "TLSv1.1") => Ok(Some(1)),
        Some("TLSv1.2") => Ok(Some(2)),
        Some("TLSv1.3") => Ok(Some(3)),
        Some(_) => {
            Err(format!("has an option {key} that is none of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3"))
        }
    };
    let (least, most) =
        (version("ssl_min_protocol_version")?, version("ssl_max_protocol_version")?);
    let versions = match (least, most) {
        (_, Some(1)) => {
            return Err("has an ssl_max_protocol_version before TLSv1.2, the oldest that tidegate speaks; raise it"
                .to_owned());
        }
        (Some(3), Some(2)) => {
            return Err(
                "has an ssl_max_protocol_version below its ssl_min_protocol_version".to_owned()
            );
        }
        (Some(3), _) => TlsVersions::Newest,
        (_, Some(2)) => TlsVersions::Older,
        _ => TlsVersions::Both,
    };
    let naming = match all.get("sslsni") {
        None | Some("1") => Naming::Told,
        Some("0") => Naming::Kept,
        Some(_) => return Err("has an sslsni that is neither 0 nor 1".to_owned()),
    };
    Ok(Handshake { versions, naming })
}
