//! Which of a URL's hosts a connection is made to: each is tried, with all its addresses, until one answers that is what
//! `target_session_attrs` asks for. The rules are libpq's ("Specifying Multiple Hosts").

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::connect::{Dial, Dialled, dial_at, spots};
use super::message::{self, Frame};
use super::relay::Writing;
use crate::config::{HostOrder, ServerHost, TargetSession};
use crate::net::Spot;
use crate::pool::{ConnectError, Fault};

/// The word of [`ConnectError::code`] for a server that is not what was asked for.
const ROLE: &str = "role";
/// What servers since 14 report, and no session can change.
const IN_HOT_STANDBY: &str = "in_hot_standby";
/// Longest frame of the answer to a question of ours, in bytes.
const ANSWER_BYTES: usize = 8 * 1024;

/// What a session on a server may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trait {
    Writes,
    OnlyReads,
    OfPrimary,
    OfStandby,
}

/// What a server says of one pair of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It is so.
    Yes,
    /// It is the other.
    No,
    /// It has to be asked.
    Unknown,
}

/// Opens a connection and logs in. A single host has no deadline of its own; of several each has the dial's patience, so
/// that one which is silent doesn't keep the others from being tried. Cancel safe as [`dial_at`].
///
/// # Errors
/// The only host's, as [`dial_at`] says it. Of several those of all that could not be had: [`Fault::Unreachable`], with code
/// `role` if one of them answered and is not what was asked for. As with libpq the first one that says no, or that it is
/// full, ends the search.
pub async fn dial(dial: &Dial) -> Result<Dialled, ConnectError> {
    let list = in_order(dial);
    let mut failures = Vec::new();
    for wanted in passes(dial.upstream().hosts.target) {
        for (place, host) in &list {
            let attempt = try_host(dial, host, *wanted);
            let tried = match list.len() {
                1 => attempt.await,
                _ => timeout(dial.patience(), attempt)
                    .await
                    .unwrap_or_else(|_elapsed| Err(silent(dial))),
            };
            match tried {
                Err(error) if error.fault == Fault::Unreachable => failures.push((*host, error)),
                Ok(dialled) => {
                    dial.latest().store(*place, Ordering::Relaxed);
                    return Ok(dialled);
                }
                refused => return refused,
            }
        }
    }
    Err(all(failures))
}

/// The hosts, with their places in the URL's list, as they are to be tried. Where only one of them can be what is asked for,
/// the one that was it last comes first: libpq, which connects once, has to do with the order of the URL, and would wait
/// for a host that is gone each time.
fn in_order(dial: &Dial) -> Vec<(usize, &ServerHost)> {
    let hosts = &dial.upstream().hosts;
    let mut list: Vec<_> = hosts.list.iter().enumerate().collect();
    if hosts.order == HostOrder::Random {
        shuffle(&mut list);
    }
    if matches!(hosts.target, TargetSession::ReadWrite | TargetSession::Primary) {
        let latest = dial.latest().load(Ordering::Relaxed);
        list.sort_by_key(|(place, _)| *place != latest);
    }
    list
}

/// How many times as long as one host a connection may take.
pub(super) fn attempts(dial: &Dial) -> u32 {
    let hosts = &dial.upstream().hosts;
    u32::try_from(hosts.list.len() * passes(hosts.target).len()).unwrap_or(u32::MAX)
}

/// What is looked for first, and then.
fn passes(target: TargetSession) -> &'static [Option<Trait>] {
    match target {
        TargetSession::Any => &[None],
        TargetSession::ReadWrite => &[Some(Trait::Writes)],
        TargetSession::ReadOnly => &[Some(Trait::OnlyReads)],
        TargetSession::Primary => &[Some(Trait::OfPrimary)],
        TargetSession::Standby => &[Some(Trait::OfStandby)],
        TargetSession::PreferStandby => &[Some(Trait::OfStandby), None],
    }
}

async fn try_host(
    dial: &Dial,
    host: &ServerHost,
    wanted: Option<Trait>,
) -> Result<Dialled, ConnectError> {
    let mut spots = spots(host).await?;
    if dial.upstream().hosts.order == HostOrder::Random {
        shuffle(&mut spots);
    }
    let mut failures = Vec::new();
    let count = spots.len();
    for (index, spot) in spots.into_iter().enumerate() {
        match try_spot(dial, host, spot, count - index - 1, wanted).await {
            Err(error) if error.fault == Fault::Unreachable => failures.push((host, error)),
            done => return done,
        }
    }
    Err(all(failures))
}

async fn try_spot(
    dial: &Dial,
    host: &ServerHost,
    spot: Spot,
    more: usize,
    wanted: Option<Trait>,
) -> Result<Dialled, ConnectError> {
    let mut dialled = dial_at(dial, host, spot, more).await?;
    let Some(wanted) = wanted else { return Ok(dialled) };
    let fits = match wanted.told(|name| value(&dialled.parameters, name)) {
        Told::Yes => true,
        Told::No => false,
        Told::Unknown => ask(&mut dialled, wanted.question()).await? == Some(wanted.answer()),
    };
    if fits {
        return Ok(dialled);
    }
    // A courtesy, so that it has nothing to log.
    let _farewell = dialled.stream.write_all(&message::terminate()).await;
    Err(failure(ROLE, format!("the server {}", wanted.missing())))
}

/// Whether the server of a connection is not any more what was asked for, by what it has reported at login and reports
/// now: it was promoted, or does not write.
pub(super) fn has_changed<'a>(
    target: TargetSession,
    writing: Writing,
    at_login: &[(String, String)],
    now: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    match target {
        TargetSession::Any => false,
        // Where the server says that it writes, the client's own transaction was READ ONLY.
        TargetSession::ReadWrite | TargetSession::Primary => {
            writing == Writing::Refused && Trait::Writes.told(now) != Told::Yes
        }
        TargetSession::ReadOnly | TargetSession::Standby | TargetSession::PreferStandby => {
            let was_standby = value(at_login, IN_HOT_STANDBY) == Some("on");
            was_standby && now(IN_HOT_STANDBY) == Some("off")
        }
    }
}

impl Trait {
    /// What the parameters tell that servers report since 14.
    fn told<'a>(self, value: impl Fn(&str) -> Option<&'a str>) -> Told {
        let on = |name: &str| value(name).map(|value| value == "on");
        let standby = on(IN_HOT_STANDBY);
        let reads = match (on("default_transaction_read_only"), standby) {
            (Some(reads), Some(standby)) => Some(reads || standby),
            _ => None,
        };
        let told = |told: Option<bool>, wanted: bool| match told {
            None => Told::Unknown,
            Some(is) if is == wanted => Told::Yes,
            Some(_) => Told::No,
        };
        match self {
            Self::Writes => told(reads, false),
            Self::OnlyReads => told(reads, true),
            Self::OfPrimary => told(standby, false),
            Self::OfStandby => told(standby, true),
        }
    }

    /// For older servers.
    fn question(self) -> &'static str {
        match self {
            Self::Writes | Self::OnlyReads => "SHOW transaction_read_only",
            Self::OfPrimary | Self::OfStandby => {
                "SELECT case when pg_catalog.pg_is_in_recovery() then 'on' else 'off' end"
            }
        }
    }

    fn answer(self) -> Answered {
        match self {
            Self::Writes | Self::OfPrimary => Answered::Off,
            Self::OnlyReads | Self::OfStandby => Answered::On,
        }
    }

    fn missing(self) -> &'static str {
        match self {
            Self::Writes => "only reads (target_session_attrs=read-write)",
            Self::OnlyReads => "writes (target_session_attrs=read-only)",
            Self::OfPrimary => "is a standby (target_session_attrs=primary)",
            Self::OfStandby => "is no standby (target_session_attrs=standby)",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    On,
    Off,
}

/// Asks a server that nobody uses yet; reads its answer to the end, and no further.
async fn ask(dialled: &mut Dialled, question: &str) -> Result<Option<Answered>, ConnectError> {
    let lost = |error: std::io::Error| failure("io", error.to_string());
    let stream = &mut dialled.stream;
    stream.write_all(&message::query(question)).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut received = Vec::new();
    let mut answered = None;
    loop {
        let next = message::next_frame(&received, ANSWER_BYTES);
        let next = next.map_err(|error| failure("08P01", error.to_string()))?;
        let Some(Frame { tag, body, bytes }) = next else {
            if stream.read_buf(&mut received).await.map_err(lost)? == 0 {
                return Err(failure("io", "the server closed the connection after its login"));
            }
            continue;
        };
        match tag {
            // One column: its count, its length, its text.
            b'D' if body.get(6..) == Some(b"on") => answered = Some(Answered::On),
            b'D' if body.get(6..) == Some(b"off") => answered = Some(Answered::Off),
            b'Z' => return Ok(answered),
            _ => {}
        }
        received.drain(..bytes);
    }
}

fn value<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = parameters.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

/// A failure for all of them; a single one is as it was.
fn all(mut failures: Vec<(&ServerHost, ConnectError)>) -> ConnectError {
    if failures.len() == 1
        && let Some((_, only)) = failures.pop()
    {
        return only;
    }
    let of_role = failures.iter().any(|(_, error)| error.code == ROLE);
    let last = failures.last().map_or("io", |(_, error)| error.code.as_str());
    let code = if of_role { ROLE } else { last }.to_owned();
    let mut said: Vec<String> = Vec::new();
    for (host, error) in &failures {
        let place = host.to_string();
        let named = error.message.contains(&place);
        let words =
            if named { error.message.clone() } else { format!("{place}: {}", error.message) };
        // The second pass says the same of who can't be reached.
        if !said.contains(&words) {
            said.push(words);
        }
    }
    ConnectError { fault: Fault::Unreachable, code, message: said.join("; ") }
}

fn silent(dial: &Dial) -> ConnectError {
    let limit = dial.patience().as_millis();
    failure("timeout", format!("not connected and logged in within {limit} ms"))
}

fn failure(code: &str, message: impl Into<String>) -> ConnectError {
    ConnectError { fault: Fault::Unreachable, code: code.to_owned(), message: message.into() }
}

/// Fisher and Yates's.
fn shuffle<T>(list: &mut [T]) {
    for last in (1..list.len()).rev() {
        // Without randomness they stay in order, which is no reason to fail.
        let drawn = getrandom::u64().unwrap_or(0) % (last as u64 + 1);
        list.swap(last, usize::try_from(drawn).unwrap_or(last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_reports_tells_what_it_is() {
        let told = |wanted: Trait, standby: Option<&str>, reads: Option<&str>| {
            let mut parameters = Vec::new();
            let mut add = |name: &str, value: Option<&str>| {
                parameters.extend(value.map(|value| (name.to_owned(), value.to_owned())));
            };
            add("in_hot_standby", standby);
            add("default_transaction_read_only", reads);
            wanted.told(|name| value(&parameters, name))
        };
        use Told::{No, Unknown, Yes};
        let all = [Trait::Writes, Trait::OnlyReads, Trait::OfPrimary, Trait::OfStandby];
        for (standby, reads, expected) in [
            (Some("off"), Some("off"), [Yes, No, Yes, No]),
            (Some("off"), Some("on"), [No, Yes, Yes, No]),
            (Some("on"), Some("off"), [No, Yes, No, Yes]),
            (Some("on"), None, [Unknown, Unknown, No, Yes]),
            (None, Some("on"), [Unknown; 4]),
            (None, None, [Unknown; 4]),
        ] {
            assert_eq!(all.map(|wanted| told(wanted, standby, reads)), expected);
        }
    }

    #[test]
    fn chance_loses_nobody() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut list = [1, 2, 3];
            shuffle(&mut list);
            seen.insert(list);
        }
        assert_eq!(seen.len(), 6, "every order comes up: {seen:?}");
    }

    #[test]
    fn a_failure_of_several_hosts_names_each_once() {
        let host =
            |port| ServerHost { host: crate::net::Host::Tcp("h".to_owned()), address: None, port };
        let (one, other) = (host(1), host(2));
        let refused = || failure("io", "h:1: refused");
        let only = all(vec![(&one, refused())]);
        assert_eq!(only.message, "h:1: refused");
        let several = all(vec![
            (&one, refused()),
            (&other, failure(ROLE, "is a standby")),
            (&one, refused()),
        ]);
        assert_eq!(several.message, "h:1: refused; h:2: is a standby");
        assert_eq!(several.code, ROLE);
    }
}
