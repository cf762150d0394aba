//! What a script's environment is told of the commands: one line each, which it reads when a script calls the command.
//!
//! `NAME=1` is a command with one key, its first word, which most are; `2` the same, which only reads; of `3` and `4` all words are
//! keys. `-` passes as it is, `+` is a container, `x` is never for scripts, `!n` is refused for the reason with this number. What is about the whole database is a
//! `w` and a letter. Everything else is what its reply names, a colon, and where its names stand.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::super::policy::{Policy, Whole, policy};
use super::super::replies::Shape;
use super::super::{Namespace, Rights, is_told_to_others};
use crate::redis::command::{self, Access, Begins, Channels, Command, Flags, KeySpec, Keys, Touch};

/// Lines for a namespace, and the reasons that they name.
#[derive(Debug)]
pub(super) struct Specs {
    /// By the commands' names, in upper case.
    pub(super) lines: Vec<(String, String)>,
    pub(super) reasons: Vec<&'static str>,
}

/// Not a reason of a policy's: the namespace's own.
const ONLY_READ: &str = "";

impl Specs {
    pub(super) fn new(namespace: &Namespace) -> Self {
        let mut specs = Self { lines: Vec::new(), reasons: vec![ONLY_READ] };
        for command in command::all() {
            let spec = specs.spec(namespace, command);
            specs.lines.push((command.name.to_owned(), spec));
        }
        let known: BTreeSet<&str> = command::all().iter().map(|command| command.name).collect();
        for name in namespace.allowed.iter().filter(|name| !known.contains(&***name)) {
            specs.lines.push((name.to_string(), "-".to_owned()));
        }
        specs
    }

    /// The spec of a command that stands in a script as `name`, if it is one.
    pub(super) fn of(&self, name: &[u8]) -> Option<&str> {
        let is_it = |line: &&(String, String)| line.0.as_bytes().eq_ignore_ascii_case(name);
        self.lines.iter().find(is_it).map(|line| &*line.1)
    }

    fn spec(&mut self, namespace: &Namespace, command: &Command) -> String {
        if command.flags.has(Flags::CONTAINER) && command.keys.is_empty() {
            return "+".to_owned();
        }
        if namespace.allowed.contains(command.name) {
            return "-".to_owned();
        }
        if command.flags.has(Flags::NO_SCRIPT) {
            return "x".to_owned();
        }
        let writes = command.access == Access::Writes || is_told_to_others(command);
        if namespace.rights == Rights::ReadOnly && writes {
            return "!0".to_owned();
        }
        match policy(command, &[b"", b"", b""]) {
            Policy::Keyless if command.name == "INFO" => "wI".to_owned(),
            Policy::Keyless => "-".to_owned(),
            Policy::Script | Policy::Function | Policy::Tracking => "x".to_owned(),
            Policy::Refused(why) => format!("!{}", self.reason(why)),
            Policy::Whole(whole) => format!("w{}", letter(whole)),
            Policy::Names => names(command).unwrap_or_else(|| {
                format!("!{}", self.reason("has names that a script's environment can't tell"))
            }),
        }
    }

    fn reason(&mut self, why: &'static str) -> usize {
        if let Some(at) = self.reasons.iter().position(|reason| *reason == why) {
            return at;
        }
        self.reasons.push(why);
        self.reasons.len() - 1
    }
}

fn letter(whole: Whole) -> char {
    match whole {
        Whole::Keys => 'K',
        Whole::Scan => 'S',
        Whole::RandomKey => 'R',
        Whole::Size => 'D',
        Whole::Flush(_) => 'F',
        Whole::Channels => 'C',
    }
}

/// What the reply names.
fn reply(command: &str) -> char {
    match Shape::of(command) {
        Shape::First => 'f',
        Shape::Streams => 's',
        Shape::Alternate => 'a',
        Shape::Errors => 'e',
        _ => 'n',
    }
}

fn names(command: &Command) -> Option<String> {
    let reply = reply(command.name);
    if let ('n', Channels::None, [spec]) = (reply, command.channels, command.keys)
        && spec.begins == Begins::At(1)
        && !has_words_of_its_own(command.name)
    {
        match (spec.keys, spec.touch) {
            (Keys::Range { last: 0, .. }, Touch::Write) => return Some("1".to_owned()),
            (Keys::Range { last: 0, .. }, Touch::Read) => return Some("2".to_owned()),
            (Keys::Range { last: -1, step: 1, limit: 0 | 1 }, Touch::Write) => {
                return Some("3".to_owned());
            }
            (Keys::Range { last: -1, step: 1, limit: 0 | 1 }, Touch::Read) => {
                return Some("4".to_owned());
            }
            _ => {}
        }
    }
    let mut text = format!("{reply}:");
    match command.name {
        "SORT" | "SORT_RO" => text.push_str("S;"),
        "GEORADIUS" => text.push_str("G6;"),
        "GEORADIUSBYMEMBER" => text.push_str("G5;"),
        "XREAD" => text.push_str("X;"),
        "XREADGROUP" => text.push_str("Y;"),
        _ => command.keys.iter().try_for_each(|spec| key_spec(spec, &mut text))?,
    }
    if command.name == "COPY" {
        text.push_str("D;");
    }
    match command.channels {
        Channels::None => {}
        Channels::One(at) => write!(text, "t{at},0,1,0;").ok()?,
        Channels::All(from) => write!(text, "t{from},-1,1,0;").ok()?,
        Channels::Patterns(_) => return None,
    }
    Some(text)
}

fn has_words_of_its_own(name: &str) -> bool {
    matches!(name, "SORT" | "SORT_RO" | "GEORADIUS" | "GEORADIUSBYMEMBER" | "XREAD" | "COPY")
}

fn key_spec(spec: &KeySpec, text: &mut String) -> Option<()> {
    let Begins::At(at) = spec.begins else { return None };
    let touch = if spec.touch == Touch::Read { 'r' } else { 'w' };
    match spec.keys {
        Keys::Range { last, step, limit } => {
            write!(text, "{touch}{at},{last},{},{limit};", step.max(1)).ok()
        }
        Keys::Counted { count, first, step } => {
            let counted = touch.to_ascii_uppercase();
            write!(text, "{counted}{at},{count},{first},{};", step.max(1)).ok()
        }
        Keys::Untold => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Mode;
    use super::*;

    #[test]
    fn every_command_has_a_line() {
        let namespace = super::super::tests::namespace(Mode::Prefix);
        let specs = Specs::new(&namespace);
        for (name, spec) in [
            ("get", "2"),
            ("HSET", "1"),
            ("DEL", "3"),
            ("MGET", "4"),
            ("MSET", "n:w1,-1,2,0;"),
            ("LMPOP", "f:W1,0,1,1;"),
            ("COPY", "n:r1,0,1,0;w2,0,1,0;D;"),
            ("Sort", "n:S;"),
            ("PUBLISH", "n:t1,0,1,0;"),
            ("PUBSUB|NUMSUB", "a:t2,-1,1,0;"),
            ("KEYS", "wK"),
            ("INFO", "wI"),
            ("PING", "-"),
            ("OBJECT", "+"),
            ("EVAL", "x"),
            ("CONFIG|GET", "x"),
        ] {
            assert_eq!(specs.of(name.as_bytes()), Some(spec), "{name}");
        }
        assert!(specs.of(b"SWAPDB").is_some_and(|spec| spec.starts_with('!')));
        assert_eq!(specs.of(b"NOSUCH"), None);
        assert!(!specs.reasons.contains(&"has names that a script's environment can't tell"));
    }
}
