//! INFO: the server's own words, and a section that says how it is reached.

use std::task::Context;

use super::{Amending, Session, Special};
use crate::metrics::PoolMetrics;
use crate::redis::lane::{Submitted, Work};
use crate::redis::wire::write_command;

/// Whether the section belongs into the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::redis) enum Wanted {
    Yes,
    No,
}

/// What INFO asks for; a server says nothing to a section that it does not know.
fn wanted(sections: &[&[u8]]) -> Wanted {
    let with_ours = ["tidegate", "default", "all", "everything"];
    let is_with = |section: &&[u8]| {
        with_ours.iter().any(|name| section.eq_ignore_ascii_case(name.as_bytes()))
    };
    if sections.is_empty() || sections.iter().any(is_with) { Wanted::Yes } else { Wanted::No }
}

/// The section, as Redis writes its own.
fn section(metrics: &PoolMetrics) -> String {
    let clients = [&metrics.clients_idle, &metrics.clients_active, &metrics.clients_waiting]
        .map(|one| one.get());
    let servers = [&metrics.servers_idle, &metrics.servers_active].map(|one| one.get());
    format!(
        "# Tidegate\r\ntidegate_version:{}\r\ntidegate_clients:{}\r\ntidegate_clients_waiting:{}\r\n\
         tidegate_server_connections:{}\r\ntidegate_server_connections_limit:{}\r\n\
         tidegate_commands_processed:{}\r\ntidegate_clients_aborted:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        clients.iter().sum::<i64>(),
        metrics.clients_waiting.get(),
        servers.iter().sum::<i64>(),
        metrics.server_limit.get(),
        metrics.requests.get(),
        metrics.clients_aborted.get(),
    )
}

/// The reply with the section behind it: a bulk or verbatim string; whatever else it is, it stays.
fn amended(reply: &[u8], section: &str, keyspace: Keyspace) -> Option<Vec<u8>> {
    let end = memchr::memchr(b'\n', reply)? + 1;
    let kind = *reply.first().filter(|kind| matches!(kind, b'$' | b'='))?;
    let length: usize = std::str::from_utf8(reply.get(1..end - 2)?).ok()?.parse().ok()?;
    let body = reply.get(end..end + length)?;
    let without = (keyspace == Keyspace::Hidden).then(|| without_keyspace(body));
    let body = without.as_deref().unwrap_or(body);
    let between = if body.len() > "txt:".len() { "\r\n" } else { "" };
    let mut whole = Vec::with_capacity(reply.len() + section.len() + 16);
    let between = if section.is_empty() { "" } else { between };
    let total = body.len() + between.len() + section.len();
    whole.push(kind);
    whole.extend_from_slice(format!("{total}\r\n").as_bytes());
    whole.extend_from_slice(body);
    whole.extend_from_slice(between.as_bytes());
    whole.extend_from_slice(section.as_bytes());
    whole.extend_from_slice(b"\r\n");
    Some(whole)
}

/// Whether the client may know how many keys there are in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keyspace {
    Shown,
    Hidden,
}

/// The lines without those that count the keys of a database (`db0:keys=...`).
fn without_keyspace(body: &[u8]) -> Vec<u8> {
    let counts = |line: &&[u8]| {
        line.strip_prefix(b"db").is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit))
    };
    let lines = body.split_inclusive(|byte| *byte == b'\n').filter(|line| !counts(line));
    lines.flatten().copied().collect()
}

impl Session {
    /// INFO, with nothing owed.
    pub(super) fn inform(&mut self, cx: &mut Context<'_>, words: &[&[u8]]) -> Special {
        let wanted = wanted(words.get(1..).unwrap_or_default());
        let mut bytes = Vec::new();
        write_command(words, &mut bytes);
        let work = Work { bytes: &bytes, silent: 0, replies: 1 };
        if self.room() == 0 || self.send(cx, work) != Submitted::Taken {
            return Special::Blocked;
        }
        let changes = wanted == Wanted::Yes || self.gate.is_some();
        self.amending = changes.then_some(Amending::Information(wanted));
        Special::Taken
    }

    /// Adds to the reply to INFO, which is here whole.
    pub(super) fn add_section(&mut self, wanted: Wanted) {
        let text = match wanted {
            Wanted::Yes => section(&self.upstream.metrics),
            Wanted::No => String::new(),
        };
        let keyspace = if self.gate.is_some() { Keyspace::Hidden } else { Keyspace::Shown };
        if let Some(whole) = amended(&self.out.bytes, &text, keyspace) {
            self.out.bytes = whole;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_stands_behind_the_servers() {
        let told = |reply: &str| amended(reply.as_bytes(), "# T\r\nx:1\r\n", Keyspace::Shown);
        let text = |reply: &str| told(reply).map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(text("$5\r\na:1\r\n\r\n").unwrap(), "$17\r\na:1\r\n\r\n# T\r\nx:1\r\n\r\n");
        assert_eq!(text("$0\r\n\r\n").unwrap(), "$10\r\n# T\r\nx:1\r\n\r\n");
        assert_eq!(text("=4\r\ntxt:\r\n").unwrap(), "=14\r\ntxt:# T\r\nx:1\r\n\r\n");
        for other in ["-ERR no\r\n", "$-1\r\n", "", "$9\r\nshort\r\n"] {
            assert_eq!(told(other), None, "{other}");
        }
    }

    #[test]
    fn a_namespace_is_not_told_how_many_keys_there_are() {
        let body = "# Keyspace\r\ndb0:keys=7,expires=0\r\ndb12:keys=1\r\ndbx:1\r\n";
        let reply = format!("${}\r\n{body}\r\n", body.len());
        let told = amended(reply.as_bytes(), "", Keyspace::Hidden).unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), "$19\r\n# Keyspace\r\ndbx:1\r\n\r\n");
    }

    #[test]
    fn who_asks_for_something_else_gets_that_alone() {
        assert_eq!(wanted(&[]), Wanted::Yes);
        assert_eq!(wanted(&[b"Tidegate"]), Wanted::Yes);
        assert_eq!(wanted(&[b"server", b"ALL"]), Wanted::Yes);
        assert_eq!(wanted(&[b"server", b"clients"]), Wanted::No);
    }
}
