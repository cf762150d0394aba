//! The settings of a session, and how a server connection is brought to them.
//!
//! What a client asked for at startup is one combination, what it has SET since makes another; sessions with the same
//! combination share one [`Settings`]. A server connection remembers which combination it was brought to last, and gets
//! the difference ahead of the next session's first bytes. Every name and value travels as a literal that reads the same
//! under every quoting setting and client encoding.

use std::sync::Arc;

use super::sql::Quoting;
use super::wire;

/// Settings that decide neither what a statement's text means nor how its result looks.
const NO_MATTER_TO_PLANS: [&str; 9] = [
    "application_name",
    "client_min_messages",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "log_min_duration_statement",
    "statement_timeout",
    "transaction_timeout",
    "work_mem",
];

/// Settings whose values, once accepted, are accepted again on every connection to the same server; so are all names
/// with a dot, while nobody loads a library that owns them. For others the server's answer is awaited.
const NEVER_REFUSED: [&str; 24] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "lock_timeout",
    "maintenance_work_mem",
    "row_security",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "timezone",
    "transaction_timeout",
    "work_mem",
];

/// One combination of settings that a server has accepted.
#[derive(Debug)]
pub struct Settings {
    /// Equal for combinations under which equal statements have equal plans.
    pub plan: u64,
    /// What the client gave at startup, if this is no longer that: where RESET leads.
    pub startup: Option<Arc<Settings>>,
    /// Names in lower case, sorted, each once, with their values.
    pub asked: Vec<(String, String)>,
    /// What the server reports of its settings (ParameterStatus) once these are in force.
    pub reported: Vec<(String, String)>,
    /// How plain string literals read: asked for each statement.
    quoting: Quoting,
}

/// Whether bytes of the client's may follow in the same write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// There was nothing to change.
    Unchanged,
    /// The change rides ahead.
    Ahead,
    /// It changes who the session is, or may be refused: nothing may run before the server has said yes.
    AwaitReply,
}

/// An `options` parameter that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid command-line argument in the startup options: {0}")]
pub struct BadOption(pub String);

impl Settings {
    /// Of a session: for the fields see there.
    #[must_use]
    pub fn new(
        plan: u64,
        startup: Option<Arc<Self>>,
        asked: Vec<(String, String)>,
        reported: Vec<(String, String)>,
    ) -> Self {
        let mut both = asked.iter().chain(&reported);
        let value = both.find(|(name, _)| name == "standard_conforming_strings");
        let off = ["off", "false", "0", "no"];
        let quoting = match value {
            Some((_, value)) if off.contains(&value.as_str()) => Quoting::Backslash,
            _ => Quoting::Standard,
        };
        Self { plan, startup, asked, reported, quoting }
    }

    /// How plain string literals of this session read.
    #[must_use]
    pub fn quoting(&self) -> Quoting {
        self.quoting
    }

    /// Whether the client's texts are in UTF-8.
    #[must_use]
    pub fn speaks_utf8(&self) -> bool {
        let mut both = self.asked.iter().chain(&self.reported);
        let encoding = both.find(|(name, _)| name == "client_encoding");
        encoding.is_some_and(|(_, value)| {
            ["utf8", "utf-8", "unicode"].iter().any(|utf8| value.eq_ignore_ascii_case(utf8))
        })
    }

    /// What the client gave at startup.
    #[must_use]
    pub fn at_startup(self: &Arc<Self>) -> &Arc<Self> {
        self.startup.as_ref().unwrap_or(self)
    }

    /// As [`Settings::at_startup`], as a list.
    #[must_use]
    pub fn asked_at_startup(&self) -> &[(String, String)] {
        self.startup.as_ref().map_or(&self.asked, |startup| &startup.asked)
    }

    /// Appends the Query that brings a connection from `before` (`None`: as logged in) to this combination.
    pub fn put_change(&self, before: Option<&Self>, out: &mut Vec<u8>) -> Applied {
        put_change(before.map_or(&[], |before| &before.asked), &self.asked, out)
    }

    /// As [`Settings::put_change`], for a connection that may have lost some of `before`: all is applied again.
    pub fn put_anew(&self, before: Option<&Self>, out: &mut Vec<u8>) -> Applied {
        put_anew(before.map_or(&[], |before| &before.asked), &self.asked, out)
    }
}

/// Appends the Query that brings a connection that may have lost some of `from` to `to`.
pub fn put_anew(from: &[(String, String)], to: &[(String, String)], out: &mut Vec<u8>) -> Applied {
    let gone = from.iter().filter(|(name, _)| !to.iter().any(|(other, _)| other == name));
    put(gone.collect(), to.iter().collect(), out)
}

/// What a RESET may have taken back to what the server's login gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reset {
    /// Settings, but not who the session is.
    #[default]
    Settings,
    /// Who the session is, too.
    Identity,
}

/// The name of the statement, and of the portal, by which settings are brought back.
const PUT_BACK: &[u8] = b"tidegate put back\0";

/// Appends what brings those of `startup` back that a RESET has taken: what the session has changed since stays. It is
/// no Query, which would drop the session's unnamed statement and portal; it answers with one ReadyForQuery.
pub fn put_back(startup: &[(String, String)], reset: Reset, out: &mut Vec<u8>) -> Applied {
    let taken = |name: &str| reset == Reset::Identity || !changes_identity(name);
    let mut sorted: Vec<_> = startup.iter().filter(|(name, _)| taken(name)).collect();
    if sorted.is_empty() {
        return Applied::Unchanged;
    }
    sorted.sort_by_key(|(name, _)| rank(name));
    let mut text = String::new();
    for (name, value) in sorted {
        text.push_str(if text.is_empty() { "SELECT" } else { " UNION ALL SELECT" });
        text.push_str(" pg_catalog.set_config(");
        put_text(&mut text, name);
        text.push(',');
        put_text(&mut text, value);
        text.push_str(",false)");
        put_whether_reset(&mut text, name);
    }
    // An earlier one may have been left behind by an error.
    wire::put_frame(out, b'C', &[b"S", PUT_BACK]);
    wire::put_frame(out, b'P', &[PUT_BACK, text.as_bytes(), b"\0\0\0"]);
    wire::put_frame(out, b'B', &[PUT_BACK, PUT_BACK, &[0; 6]]);
    wire::put_frame(out, b'E', &[PUT_BACK, &[0; 4]]);
    wire::put_frame(out, b'C', &[b"P", PUT_BACK]);
    wire::put_frame(out, b'C', &[b"S", PUT_BACK]);
    wire::put_frame(out, b'S', &[]);
    Applied::AwaitReply
}

/// Appends the condition that the session has not set this. No catalog lists names with a dot, nor identities.
fn put_whether_reset(text: &mut String, name: &str) {
    if name.contains('.') || changes_identity(name) {
        let nothing = if name == "role" { "'none'" } else { "''" };
        text.push_str(" WHERE coalesce(pg_catalog.current_setting(");
        put_text(text, name);
        text.push_str(",true),");
        text.push_str(nothing);
        text.push_str(") OPERATOR(pg_catalog.=) ");
        text.push_str(nothing);
        return;
    }
    text.push_str(
        " FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) OPERATOR(pg_catalog.=) ",
    );
    put_text(text, name);
    text.push_str(" AND source OPERATOR(pg_catalog.<>) 'session'");
}

/// Appends the Query that changes `from` into `to`.
pub fn put_change(
    from: &[(String, String)],
    to: &[(String, String)],
    out: &mut Vec<u8>,
) -> Applied {
    let gone = from.iter().filter(|(name, _)| !to.iter().any(|(other, _)| other == name));
    let mut gone: Vec<_> = gone.collect();
    let mut new: Vec<_> = to.iter().filter(|pair| !from.contains(pair)).collect();
    if gone.is_empty() && new.is_empty() {
        return Applied::Unchanged;
    }
    // Settings change with the login's rights: identities are laid down first and taken on again.
    let identities = |list: &[(String, String)]| {
        list.iter().filter(|(name, _)| changes_identity(name)).cloned().collect::<Vec<_>>()
    };
    let (before, after) = (identities(from), identities(to));
    gone.retain(|(name, _)| !changes_identity(name));
    new.retain(|(name, _)| !changes_identity(name));
    gone.extend(&before);
    new.extend(&after);
    put(gone, new, out)
}

fn put(
    mut gone: Vec<&(String, String)>,
    mut new: Vec<&(String, String)>,
    out: &mut Vec<u8>,
) -> Applied {
    if gone.is_empty() && new.is_empty() {
        return Applied::Unchanged;
    }
    // An identity goes first and comes last; under it others may not be allowed.
    gone.sort_by_key(|(name, _)| std::cmp::Reverse(rank(name)));
    new.sort_by_key(|(name, _)| rank(name));
    let mut text = String::new();
    for (name, _) in &gone {
        text.push_str("RESET ");
        put_name(&mut text, name);
        text.push(';');
    }
    let mut separator = "SELECT ";
    for (name, value) in &new {
        text.push_str(separator);
        text.push_str("pg_catalog.set_config(");
        put_text(&mut text, name);
        text.push(',');
        put_text(&mut text, value);
        text.push_str(",false)");
        separator = ",";
    }
    text.push('\0');
    wire::put_frame(out, b'Q', &[text.as_bytes()]);
    let sure = |(name, _): &&(String, String)| !changes_identity(name) && is_never_refused(name);
    if gone.iter().all(sure) && new.iter().all(sure) { Applied::Ahead } else { Applied::AwaitReply }
}

/// The part of a combination that statements' plans depend on.
#[must_use]
pub fn matters_to_plans(asked: &[(String, String)]) -> Vec<(String, String)> {
    let matters = |name: &str| !name.contains('.') && !NO_MATTER_TO_PLANS.contains(&name);
    asked.iter().filter(|(name, _)| matters(name)).cloned().collect()
}

fn is_never_refused(name: &str) -> bool {
    name.contains('.') || NEVER_REFUSED.contains(&name)
}

/// The order in which settings are applied.
fn rank(name: &str) -> u8 {
    match name {
        "role" => 2,
        "session_authorization" => 1,
        _ => 0,
    }
}

/// Names in lower case, sorted, the last of equal names winning; `options` taken apart.
///
/// # Errors
/// [`BadOption`] if `options` holds anything but `-c name=value` and `--name=value`.
pub fn normalize(parameters: &[(String, String)]) -> Result<Vec<(String, String)>, BadOption> {
    let mut all: Vec<(String, String)> = Vec::new();
    // Postgres lets the startup packet's own names win over those in `options`.
    for (_, value) in parameters.iter().filter(|(name, _)| name == "options") {
        all.extend(read_options(value)?);
    }
    let own = parameters.iter().filter(|(name, _)| {
        !matches!(name.as_str(), "options" | "user" | "database" | "replication")
            && !name.starts_with("_pq_.")
    });
    all.extend(own.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
    all.reverse();
    // Stable: of equal names the one that came last stays.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.dedup_by(|a, b| a.0 == b.0);
    Ok(all)
}

/// Takes an `options` string apart as the server does: words separated by spaces, a backslash keeps the next
/// character; `-c name=value`, `-cname=value` and `--name=value`, in which dashes of the name stand for underscores.
fn read_options(options: &str) -> Result<Vec<(String, String)>, BadOption> {
    let words = split_words(options);
    let mut words = words.iter();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let bad = || BadOption(word.clone());
        let pair = if word == "-c" {
            words.next().ok_or_else(bad)?.as_str()
        } else if let Some(pair) = word.strip_prefix("--") {
            pair
        } else {
            word.strip_prefix("-c").ok_or_else(bad)?
        };
        let (name, value) = pair.split_once('=').ok_or_else(bad)?;
        found.push((name.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
    }
    Ok(found)
}

fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let kept = if c == '\\' { chars.next() } else { Some(c) };
        word.get_or_insert_default().extend(kept);
    }
    words.extend(word);
    words
}

fn changes_identity(name: &str) -> bool {
    rank(name) > 0
}

/// A text that arrives the same whatever `standard_conforming_strings` and `client_encoding` say.
fn put_text(out: &mut String, value: &str) {
    if value.is_ascii() {
        return put_literal(out, value);
    }
    out.push_str("pg_catalog.convert_from(pg_catalog.decode('");
    for byte in value.bytes() {
        out.push(hex_digit(byte >> 4));
        out.push(hex_digit(byte & 0xf));
    }
    out.push_str("','hex'),'UTF8')");
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

/// A string literal that reads the same whatever `standard_conforming_strings` says.
pub(super) fn put_literal(out: &mut String, value: &str) {
    out.push_str("E'");
    for c in value.chars() {
        if c == '\'' || c == '\\' {
            out.push(c);
        }
        out.push(c);
    }
    out.push('\'');
}

/// A setting's name, each part quoted.
fn put_name(out: &mut String, name: &str) {
    for (n, part) in name.split('.').enumerate() {
        if n > 0 {
            out.push('.');
        }
        out.push('"');
        out.push_str(&part.replace('"', "\"\""));
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn last_and_own_names_win() {
        let given = pairs(&[
            ("user", "u"),
            ("TimeZone", "UTC"),
            ("options", "-c timezone=CET --work-mem=4MB -cgeqo=off"),
            ("application_name", "a"),
        ]);
        let wanted = pairs(&[
            ("application_name", "a"),
            ("geqo", "off"),
            ("timezone", "UTC"),
            ("work_mem", "4MB"),
        ]);
        assert_eq!(normalize(&given).unwrap(), wanted);
    }

    #[test]
    fn options_keep_escaped_spaces() {
        let given = pairs(&[("options", "-c  search_path=a,\\ b\\\\c  ")]);
        assert_eq!(normalize(&given).unwrap(), pairs(&[("search_path", "a, b\\c")]));
    }

    #[test]
    fn other_options_are_refused() {
        for options in ["-e", "-c", "-c foo", "--foo", "bar"] {
            assert!(normalize(&pairs(&[("options", options)])).is_err(), "{options}");
        }
    }

    #[test]
    fn only_the_difference_is_sent() {
        let mut out = Vec::new();
        let from = pairs(&[("a.b", "1"), ("geqo", "off"), ("search_path", "1")]);
        let to = pairs(&[("geqo", "off"), ("search_path", "it's \\")]);
        assert_eq!(put_change(&from, &to, &mut out), Applied::Ahead);
        let text =
            "RESET \"a\".\"b\";SELECT pg_catalog.set_config(E'search_path',E'it''s \\\\',false)\0";
        assert_eq!(&out[5..], text.as_bytes());
        out.clear();
        assert_eq!(put_change(&to, &to, &mut out), Applied::Unchanged);
        assert!(out.is_empty());
    }

    #[test]
    fn a_change_of_role_waits_for_its_reply() {
        let mut out = Vec::new();
        let role = pairs(&[("role", "r")]);
        assert_eq!(put_change(&[], &role, &mut out), Applied::AwaitReply);
        assert_eq!(put_change(&role, &[], &mut out), Applied::AwaitReply);
    }
}
