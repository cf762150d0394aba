//! The commands that wait for an element: what one asks for, its attempt without waiting, the call that waits for many, and
//! its reply in either protocol.
//!
//! Only what is understood beyond doubt is read here; everything else goes to the server as it is, which then says what is wrong
//! with it. Source: Redis documentation, "BLPOP", "BLMPOP", "BZPOPMIN", "BZMPOP", "BLMOVE", "BRPOPLPUSH".

mod reply;

use std::sync::Arc;
use std::time::Duration;

use super::greeting::Proto;
use super::wire::write_command;

pub use reply::{Answer, Head};

/// The name of a key.
pub type KeyName = Arc<[u8]>;

/// Longest time that is understood: more is as good as for ever, but not the same.
const LONGEST_SECONDS: f64 = 1e9;
/// Most elements of one pop.
const MOST_ELEMENTS: u32 = 1024;

/// An end of a list or of a sorted set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// LEFT, MIN.
    First,
    /// RIGHT, MAX.
    Last,
}

/// What one call to the server can wait for on behalf of many.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Class {
    /// Elements of a list.
    List {
        /// From where.
        end: End,
        /// At most so many.
        count: u32,
    },
    /// Members of a sorted set.
    Sorted {
        /// From where.
        end: End,
        /// At most so many.
        count: u32,
    },
    /// An element of one list that goes to another.
    Move {
        /// From here.
        source: KeyName,
        /// To there.
        destination: KeyName,
        /// From this end.
        from: End,
        /// To that end.
        to: End,
    },
}

/// What kind of value a class waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Lists.
    List,
    /// Sorted sets.
    Sorted,
}

/// How the reply is shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Key and element: BLPOP, BRPOP.
    Pair,
    /// Key, member, score: BZPOPMIN, BZPOPMAX.
    Triple,
    /// Key and elements: BLMPOP, BZMPOP.
    Nested,
    /// The element: BLMOVE, BRPOPLPUSH.
    Alone,
}

/// What a client waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pop {
    /// What it wants.
    pub class: Class,
    /// From which keys, the first one first.
    pub keys: Vec<KeyName>,
    /// How long; `None`: for ever.
    pub timeout: Option<Duration>,
    form: Form,
}

/// What the server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catch {
    /// The key it came from.
    pub key: KeyName,
    /// Elements; of sorted sets member and score by turns.
    pub items: Vec<Vec<u8>>,
}

impl End {
    fn of_list(self) -> &'static str {
        match self {
            Self::First => "LEFT",
            Self::Last => "RIGHT",
        }
    }

    fn of_set(self) -> &'static str {
        match self {
            Self::First => "MIN",
            Self::Last => "MAX",
        }
    }
}

impl Pop {
    /// Reads a command.
    #[must_use]
    pub fn parse(words: &[&[u8]]) -> Option<Self> {
        let name = words.first()?.to_ascii_uppercase();
        let list = |end| Class::List { end, count: 1 };
        let sorted = |end| Class::Sorted { end, count: 1 };
        match name.as_slice() {
            b"BLPOP" => Self::of_keys(words, list(End::First), Form::Pair),
            b"BRPOP" => Self::of_keys(words, list(End::Last), Form::Pair),
            b"BZPOPMIN" => Self::of_keys(words, sorted(End::First), Form::Triple),
            b"BZPOPMAX" => Self::of_keys(words, sorted(End::Last), Form::Triple),
            b"BLMPOP" => Self::of_count(words, Kind::List),
            b"BZMPOP" => Self::of_count(words, Kind::Sorted),
            b"BLMOVE" => {
                let [_, source, destination, from, to, timeout] = words else { return None };
                let (from, to) = (end(from, Kind::List)?, end(to, Kind::List)?);
                Self::of_move(source, destination, (from, to), timeout)
            }
            b"BRPOPLPUSH" => {
                let [_, source, destination, timeout] = words else { return None };
                Self::of_move(source, destination, (End::Last, End::First), timeout)
            }
            _ => None,
        }
    }

    /// `name key … timeout`.
    fn of_keys(words: &[&[u8]], class: Class, form: Form) -> Option<Self> {
        let [_, keys @ .., timeout] = words else { return None };
        Self::new(class, keys, timeout, form)
    }

    /// `name timeout numkeys key … end [COUNT count]`.
    fn of_count(words: &[&[u8]], kind: Kind) -> Option<Self> {
        let [_, timeout, numkeys, rest @ ..] = words else { return None };
        let numkeys = usize::try_from(number(numkeys)?).ok()?;
        let keys = rest.get(..numkeys)?;
        let (side, count) = match rest.get(numkeys..)? {
            [side] => (side, 1),
            [side, word, count] if word.eq_ignore_ascii_case(b"COUNT") => (side, number(count)?),
            _ => return None,
        };
        let end = end(side, kind)?;
        if count > MOST_ELEMENTS {
            return None;
        }
        let class = match kind {
            Kind::List => Class::List { end, count },
            Kind::Sorted => Class::Sorted { end, count },
        };
        Self::new(class, keys, timeout, Form::Nested)
    }

    fn of_move(
        source: &[u8],
        destination: &[u8],
        (from, to): (End, End),
        timeout: &[u8],
    ) -> Option<Self> {
        let class =
            Class::Move { source: source.into(), destination: destination.into(), from, to };
        Self::new(class, &[source], timeout, Form::Alone)
    }

    fn new(class: Class, keys: &[&[u8]], timeout: &[u8], form: Form) -> Option<Self> {
        if keys.is_empty() {
            return None;
        }
        let keys = keys.iter().map(|key| KeyName::from(*key)).collect();
        Some(Self { class, keys, timeout: seconds(timeout)?, form })
    }

    /// Writes the command that takes what is there from the first of `keys` that has something, and does not wait.
    pub fn write_attempt(&self, keys: &[KeyName], out: &mut Vec<u8>) {
        let numkeys = keys.len().to_string();
        let mut words: Vec<&[u8]> = Vec::new();
        match &self.class {
            Class::List { .. } => words.extend([b"LMPOP", numkeys.as_bytes()]),
            Class::Sorted { .. } => words.extend([b"ZMPOP", numkeys.as_bytes()]),
            Class::Move { .. } => words.push(b"LMOVE"),
        }
        self.class.write_rest(&words, keys, None, out);
    }
}

impl Class {
    /// What kind of value it waits for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::List { .. } | Self::Move { .. } => Kind::List,
            Self::Sorted { .. } => Kind::Sorted,
        }
    }

    fn count(&self) -> u32 {
        match self {
            Self::List { count, .. } | Self::Sorted { count, .. } => *count,
            Self::Move { .. } => 1,
        }
    }

    /// Writes the call that waits for any of `keys`.
    pub fn write_call(&self, keys: &[KeyName], wait: Duration, out: &mut Vec<u8>) {
        let numkeys = keys.len().to_string();
        let wait = format!("{:.3}", wait.as_secs_f64());
        let mut words: Vec<&[u8]> = Vec::new();
        match self {
            Self::List { .. } => words.extend([b"BLMPOP", wait.as_bytes(), numkeys.as_bytes()]),
            Self::Sorted { .. } => words.extend([b"BZMPOP", wait.as_bytes(), numkeys.as_bytes()]),
            Self::Move { .. } => words.push(b"BLMOVE"),
        }
        self.write_rest(&words, keys, Some(&wait), out);
    }

    /// The words that attempt and call have in common.
    fn write_rest(&self, begin: &[&[u8]], keys: &[KeyName], wait: Option<&str>, out: &mut Vec<u8>) {
        let count = self.count().to_string();
        let mut words = begin.to_vec();
        match self {
            Self::List { end, .. } | Self::Sorted { end, .. } => {
                words.extend(keys.iter().map(AsRef::as_ref));
                let end = match self.kind() {
                    Kind::List => end.of_list(),
                    Kind::Sorted => end.of_set(),
                };
                words.extend([end.as_bytes(), b"COUNT", count.as_bytes()]);
            }
            Self::Move { source, destination, from, to } => {
                words.extend([source.as_ref(), destination.as_ref()]);
                words.extend([from.of_list().as_bytes(), to.of_list().as_bytes()]);
                words.extend(wait.map(str::as_bytes));
            }
        }
        write_command(&words, out);
    }

    /// Writes the command that puts `catch` back where it came from, if one command can.
    pub fn write_return(&self, catch: &Catch, out: &mut Vec<u8>) {
        let mut words: Vec<&[u8]> = Vec::new();
        match self {
            Self::List { end, .. } => {
                words.push(if *end == End::First { b"LPUSH" } else { b"RPUSH" });
                words.push(&catch.key);
                words.extend(catch.items.iter().rev().map(Vec::as_slice));
            }
            Self::Sorted { .. } => {
                // What was added since is newer.
                words.extend([b"ZADD".as_slice(), &catch.key, b"NX"]);
                for pair in catch.items.chunks_exact(2) {
                    words.extend([pair[1].as_slice(), pair[0].as_slice()]);
                }
            }
            Self::Move { source, destination, from, to } => {
                words.extend([b"LMOVE", destination.as_ref(), source.as_ref()]);
                words.extend([to.of_list().as_bytes(), from.of_list().as_bytes()]);
            }
        }
        write_command(&words, out);
    }

    /// Where the element of a move lies now: the list, and its index there.
    #[must_use]
    pub fn moved_to(&self) -> Option<(&KeyName, &'static str)> {
        match self {
            Self::Move { destination, to, .. } => {
                Some((destination, if *to == End::First { "0" } else { "-1" }))
            }
            Self::List { .. } | Self::Sorted { .. } => None,
        }
    }
}

impl Catch {
    /// How many elements it is.
    #[must_use]
    pub fn elements(&self, kind: Kind) -> usize {
        match kind {
            Kind::List => self.items.len(),
            Kind::Sorted => self.items.len() / 2,
        }
    }
}

fn end(word: &[u8], kind: Kind) -> Option<End> {
    [End::First, End::Last].into_iter().find(|end| {
        let name = match kind {
            Kind::List => end.of_list(),
            Kind::Sorted => end.of_set(),
        };
        word.eq_ignore_ascii_case(name.as_bytes())
    })
}

/// A number above nought, written as Redis has it.
fn number(word: &[u8]) -> Option<u32> {
    let plain = word.iter().all(u8::is_ascii_digit) && word.first() != Some(&b'0');
    plain.then(|| std::str::from_utf8(word).ok()?.parse().ok())?
}

/// A time to wait; the inner `None` is for ever.
fn seconds(word: &[u8]) -> Option<Option<Duration>> {
    let digits = word.iter().filter(|byte| byte.is_ascii_digit()).count();
    let points = word.iter().filter(|byte| **byte == b'.').count();
    if digits == 0 || points > 1 || digits + points < word.len() || word.len() > 20 {
        return None;
    }
    let seconds: f64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    match seconds {
        0.0 => Some(None),
        _ if seconds > LONGEST_SECONDS => None,
        // As Redis does: less than a millisecond is one.
        _ => Some(Some(Duration::from_secs_f64((seconds * 1e3).ceil() / 1e3))),
    }
}

#[cfg(test)]
mod tests;
