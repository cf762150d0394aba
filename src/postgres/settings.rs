//! What a client asked for in its startup packet, and how a server connection is brought to it.
//!
//! A combination of startup parameters is one [`Settings`]; sessions with the same combination share it. A server
//! connection remembers which combination it was brought to last, and gets the difference ahead of the next session's
//! first bytes. Every name and value travels as a literal that reads the same under every quoting setting.

use super::sql::Quoting;
use super::wire;

/// One combination of startup parameters, checked by a server.
#[derive(Debug)]
pub struct Settings {
    /// Unique in this process.
    pub id: u64,
    /// Names in lower case, sorted, each once, with their values.
    pub asked: Vec<(String, String)>,
    /// What the server reports of its settings (ParameterStatus) once these are in force.
    pub reported: Vec<(String, String)>,
}

/// Whether bytes of the client's may follow in the same write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// There was nothing to change.
    Unchanged,
    /// The change rides ahead.
    Ahead,
    /// It changes who the session is: nothing may run before the server has said yes.
    AwaitReply,
}

/// An `options` parameter that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid command-line argument in the startup options: {0}")]
pub struct BadOption(pub String);

impl Settings {
    /// How plain string literals of this session read.
    #[must_use]
    pub fn quoting(&self) -> Quoting {
        let off = self
            .reported
            .iter()
            .any(|(name, value)| name == "standard_conforming_strings" && value == "off");
        if off { Quoting::Backslash } else { Quoting::Standard }
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
    put(gone.map(|(name, _)| name), to.iter(), out)
}

/// Appends the Query that changes `from` into `to`.
pub fn put_change(
    from: &[(String, String)],
    to: &[(String, String)],
    out: &mut Vec<u8>,
) -> Applied {
    let gone = from.iter().filter(|(name, _)| !to.iter().any(|(other, _)| other == name));
    put(gone.map(|(name, _)| name), to.iter().filter(|pair| !from.contains(pair)), out)
}

fn put<'a>(
    gone: impl Iterator<Item = &'a String>,
    new: impl Iterator<Item = &'a (String, String)>,
    out: &mut Vec<u8>,
) -> Applied {
    let mut text = String::new();
    let mut who = false;
    for name in gone {
        text.push_str("RESET ");
        put_name(&mut text, name);
        text.push(';');
        who |= changes_identity(name);
    }
    let mut separator = "SELECT ";
    for (name, value) in new {
        text.push_str(separator);
        text.push_str("pg_catalog.set_config(");
        put_literal(&mut text, name);
        text.push(',');
        put_literal(&mut text, value);
        text.push_str(",false)");
        separator = ",";
        who |= changes_identity(name);
    }
    if text.is_empty() {
        return Applied::Unchanged;
    }
    text.push('\0');
    wire::put_frame(out, b'Q', &[text.as_bytes()]);
    if who { Applied::AwaitReply } else { Applied::Ahead }
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
    name == "role" || name == "session_authorization"
}

/// A string literal that reads the same whatever `standard_conforming_strings` says.
fn put_literal(out: &mut String, value: &str) {
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
        let from = pairs(&[("a.b", "1"), ("geqo", "off"), ("x", "1")]);
        let to = pairs(&[("geqo", "off"), ("x", "it's \\")]);
        assert_eq!(put_change(&from, &to, &mut out), Applied::Ahead);
        let text = "RESET \"a\".\"b\";SELECT pg_catalog.set_config(E'x',E'it''s \\\\',false)\0";
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
