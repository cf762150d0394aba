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

/// The server's reply to INFO, while the namespace's keys are counted.
pub(in crate::redis) struct PutBy {
    pub(super) reply: Vec<u8>,
    pub(super) wanted: Wanted,
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
fn amended(reply: &[u8], section: &str, keyspace: &Keyspace) -> Option<Vec<u8>> {
    let end = memchr::memchr(b'\n', reply)? + 1;
    let kind = *reply.first().filter(|kind| matches!(kind, b'$' | b'='))?;
    let length: usize = std::str::from_utf8(reply.get(1..end - 2)?).ok()?.parse().ok()?;
    let body = reply.get(end..end + length)?;
    let own = match keyspace {
        Keyspace::Shown => None,
        Keyspace::Of(counts) => Some(own_keyspace(body, counts)),
    };
    let body = own.as_deref().unwrap_or(body);
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

/// How many keys the client may be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Keyspace {
    /// All that there are.
    Shown,
    /// So many in these databases; of others nothing.
    Of(Vec<(u32, u64)>),
}

/// The lines with those that count the keys of a database (`db0:keys=...`) for the namespace alone.
fn own_keyspace(body: &[u8], counts: &[(u32, u64)]) -> Vec<u8> {
    let is_of_database = |line: &[u8]| {
        line.strip_prefix(b"db").is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit))
    };
    let mut own = Vec::with_capacity(body.len());
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        if !is_of_database(line) {
            own.extend_from_slice(line);
            continue;
        }
        let is_here = |(database, _): &&(u32, u64)| {
            line.starts_with(format!("db{database}:keys=").as_bytes())
        };
        if let Some((database, keys)) = counts.iter().find(is_here).filter(|(_, keys)| *keys > 0) {
            let line = format!("db{database}:keys={keys},expires=0,avg_ttl=0\r\n");
            own.extend_from_slice(line.as_bytes());
        }
    }
    own
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
    pub(super) fn add_section(&mut self, cx: &Context<'_>, wanted: Wanted) {
        if self.count_keyspace(cx, wanted) {
            return;
        }
        let keyspace = match self.gate {
            Some(_) => Keyspace::Of(Vec::new()),
            None => Keyspace::Shown,
        };
        let reply = std::mem::take(&mut self.out.bytes);
        self.out.bytes = self.with_section(reply, wanted, &keyspace);
    }

    fn with_section(&self, reply: Vec<u8>, wanted: Wanted, keyspace: &Keyspace) -> Vec<u8> {
        let text = match wanted {
            Wanted::Yes => section(&self.upstream.metrics),
            Wanted::No => String::new(),
        };
        amended(&reply, &text, keyspace).unwrap_or(reply)
    }

    /// The reply to INFO that was put by while keys were counted; without counts it has none.
    pub(super) fn write_information(&mut self, put_by: PutBy, counts: Vec<(u32, u64)>) {
        let PutBy { reply, wanted } = put_by;
        let whole = self.with_section(reply, wanted, &Keyspace::Of(counts));
        self.out.bytes.extend_from_slice(&whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_stands_behind_the_servers() {
        let told = |reply: &str| amended(reply.as_bytes(), "# T\r\nx:1\r\n", &Keyspace::Shown);
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
        let told = |counts: &[(u32, u64)]| {
            let told = amended(reply.as_bytes(), "", &Keyspace::Of(counts.to_vec())).unwrap();
            String::from_utf8(told).unwrap()
        };
        assert_eq!(told(&[]), "$19\r\n# Keyspace\r\ndbx:1\r\n\r\n");
        assert_eq!(
            told(&[(0, 0), (1, 2), (12, 3)]),
            "$52\r\n# Keyspace\r\ndb12:keys=3,expires=0,avg_ttl=0\r\ndbx:1\r\n\r\n"
        );
    }

    #[test]
    fn who_asks_for_something_else_gets_that_alone() {
        assert_eq!(wanted(&[]), Wanted::Yes);
        assert_eq!(wanted(&[b"Tidegate"]), Wanted::Yes);
        assert_eq!(wanted(&[b"server", b"ALL"]), Wanted::Yes);
        assert_eq!(wanted(&[b"server", b"clients"]), Wanted::No);
    }
}
