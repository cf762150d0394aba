//! Replies on their way out: where they name keys or channels the prefix goes, and what is outside of the namespace is left out.
//!
//! Bytes are taken as they come and given on at once; kept are headers, names, and of lists with a choice what was chosen.
//! Source: the reply descriptions of the commands in the Redis documentation, for RESP2 and RESP3.

use std::collections::VecDeque;
use std::sync::Arc;

use super::glob;
use super::sandbox::Script;
use crate::redis::wire::{Reply, ReplyError, ReplyScanner, write_line};

/// Most bytes of the names chosen from one list: it can't be begun before all of them are known.
const CHOSEN_BYTES: usize = 8 * 1024 * 1024;
/// Longest line that is held; of an error this much is looked at.
const LINE_BYTES: usize = 64 * 1024;

const TOO_MANY: &[u8] =
    b"-ERR tidegate: the list would be longer than 8 MiB, or than redis.reply_bytes_total has room for; use SCAN, \
    or a pattern that begins with what the names begin with\r\n";

/// What in a reply must be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// Nothing.
    Plain,
    /// An error's text may name a key.
    Errors,
    /// The first element is a name.
    First,
    /// Every element is.
    Names,
    /// Every other element is, from the first on.
    Alternate,
    /// The second element is a list of names.
    Scan,
    /// Streams: a list of pairs, or a map, by name.
    Streams,
    /// A list of names, not all of which belong into it.
    Chosen(Choice),
    /// As [`Shape::Scan`], with a choice.
    ChosenScan(Choice),
    /// A transaction's: replies at these places have these shapes.
    Exec(Vec<(u64, Shape)>),
    /// The reply, if it is no error, is this.
    Instead(Vec<u8>),
    /// A script's: an error tells of the script that was sent.
    Script(Arc<Script>),
}

/// Which names stay in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// They fit this.
    pub pattern: Vec<u8>,
    /// They begin with one of these.
    pub prefixes: Vec<Box<[u8]>>,
}

impl Choice {
    fn takes(&self, name: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| name.starts_with(prefix))
            && glob::fits(&self.pattern, name)
    }
}

impl Shape {
    /// Whether it is a page of names.
    #[must_use]
    pub fn is_of_scan(&self) -> bool {
        matches!(self, Self::Scan | Self::ChosenScan(_))
    }

    /// What it holds, in about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Chosen(choice) | Self::ChosenScan(choice) => choice.pattern.len(),
            Self::Instead(reply) => reply.len(),
            Self::Script(script) => script.sent.len(),
            _ => 0,
        }
    }

    /// Of the reply to a command with names.
    #[must_use]
    pub(super) fn of(command: &str) -> Self {
        match command {
            "BLPOP" | "BRPOP" | "BZPOPMIN" | "BZPOPMAX" | "LMPOP" | "ZMPOP" | "BLMPOP"
            | "BZMPOP" => Self::First,
            "XREAD" | "XREADGROUP" => Self::Streams,
            "PUBSUB|NUMSUB" | "PUBSUB|SHARDNUMSUB" => Self::Alternate,
            // Behind flags and redirect, as pairs: the prefixes.
            "CLIENT|TRACKINGINFO" => Self::Exec(vec![(5, Self::Names)]),
            "XPENDING"
            | "XCLAIM"
            | "XAUTOCLAIM"
            | "XACK"
            | "XACKDEL"
            | "XINFO|CONSUMERS"
            | "XINFO|GROUPS"
            | "XINFO|STREAM"
            | "XGROUP|CREATE"
            | "XGROUP|CREATECONSUMER"
            | "XGROUP|DELCONSUMER"
            | "XGROUP|DESTROY"
            | "XGROUP|SETID" => Self::Errors,
            _ => Self::Plain,
        }
    }
}

/// Reads one reply.
#[derive(Debug)]
pub struct ReplyFilter {
    prefix: Box<[u8]>,
    /// Most bytes of names chosen from one list.
    chosen_bytes: usize,
    levels: Vec<Level>,
    state: State,
    /// The reply's own shape, until it has begun.
    shape: Option<Shape>,
    /// Names that the client was given.
    names: usize,
}

/// An aggregate whose elements are looked at.
#[derive(Debug)]
struct Level {
    left: u64,
    index: u64,
    inside: Inside,
}

/// What the elements are.
#[derive(Debug)]
enum Inside {
    First,
    Names,
    Alternate,
    Scan,
    Pairs,
    Chosen {
        choice: Choice,
        kept: Kept,
    },
    ChosenScan(Option<Choice>),
    /// By their places, in order.
    Exec(VecDeque<(u64, Shape)>),
}

/// What is chosen from a list.
#[derive(Debug)]
enum Kept {
    /// So many elements, and their bytes.
    Some(u64, Vec<u8>),
    /// More than may be held.
    TooMany,
}

/// An element to come.
#[derive(Debug)]
enum Due {
    Name,
    Shaped(Shape),
}

#[derive(Debug)]
enum State {
    /// Before an element.
    Between,
    /// Within one that nobody looks at.
    Passing(ReplyScanner),
    /// Within one whose bytes are dropped, because something else stands for it.
    Dropping(ReplyScanner),
    /// Within the first line of one that is looked at.
    Header(Due, Vec<u8>),
    /// Within the beginning of a name.
    Name {
        length: u64,
        held: Vec<u8>,
    },
    /// Within the rest of a string, and so many bytes are left.
    Body(u64),
    /// Within the rest of a long line.
    Line,
    Done,
}

impl ReplyFilter {
    /// A filter for the next reply.
    #[must_use]
    pub fn new(prefix: &[u8], shape: Shape) -> Self {
        Self {
            prefix: prefix.into(),
            chosen_bytes: CHOSEN_BYTES,
            levels: Vec::new(),
            state: State::Between,
            shape: Some(shape),
            names: 0,
        }
    }

    /// A filter for a push that tells of keys that have changed.
    #[must_use]
    pub fn of_invalidation(prefix: &[u8]) -> Self {
        let state = State::Header(Due::Shaped(Shape::Scan), Vec::new());
        Self { state, shape: None, ..Self::new(prefix, Shape::Plain) }
    }

    /// So much room there is now for names that are chosen: of a list that needs more the client is told that there is none.
    pub fn make_room(&mut self, bytes: usize) {
        self.chosen_bytes = bytes.min(CHOSEN_BYTES);
    }

    /// How many names the client was given.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names
    }

    /// Whether the whole reply has passed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes the next bytes: how many were of this reply. What the client gets is added to `out`.
    ///
    /// # Errors
    /// When the bytes are not RESP.
    pub fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, ReplyError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            at += self.step(&bytes[at..], out)?;
        }
        Ok(at)
    }

    fn step(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, ReplyError> {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Done => {
                self.state = State::Done;
                Ok(0)
            }
            State::Between => {
                self.begin(bytes, out);
                Ok(0)
            }
            State::Passing(mut scanner) => {
                let (used, reply) = scanner.advance(bytes)?;
                self.give(&bytes[..used], out);
                self.after(reply, State::Passing(scanner), out);
                Ok(used)
            }
            State::Dropping(mut scanner) => {
                let (used, reply) = scanner.advance(bytes)?;
                self.after(reply, State::Dropping(scanner), out);
                Ok(used)
            }
            State::Header(due, mut line) => {
                let end = memchr::memchr(b'\n', bytes).map(|newline| newline + 1);
                let used = end.unwrap_or(bytes.len());
                if end.is_some() && line.is_empty() {
                    self.read_header(due, &bytes[..used], out)?;
                    return Ok(used);
                }
                line.extend_from_slice(&bytes[..used]);
                match end {
                    Some(_) => self.read_header(due, &line, out)?,
                    None if line.len() < LINE_BYTES => self.state = State::Header(due, line),
                    None => self.begin_line(&due, &line, out)?,
                }
                Ok(used)
            }
            State::Line => {
                let end = memchr::memchr(b'\n', bytes).map(|newline| newline + 1);
                let used = end.unwrap_or(bytes.len());
                self.give(&bytes[..used], out);
                match end {
                    Some(_) => self.end_element(out),
                    None => self.state = State::Line,
                }
                Ok(used)
            }
            State::Name { length, mut held } => {
                let wanted = self.wanted(length) - held.len();
                let used = wanted.min(bytes.len());
                if used == wanted && held.is_empty() {
                    self.read_name(length, &bytes[..used], out);
                    return Ok(used);
                }
                held.extend_from_slice(&bytes[..used]);
                match used == wanted {
                    true => self.read_name(length, &held, out),
                    false => self.state = State::Name { length, held },
                }
                Ok(used)
            }
            State::Body(left) => {
                let used = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.give(&bytes[..used], out);
                match left - u64::try_from(used).unwrap_or(left) {
                    0 => self.end_element(out),
                    left => self.state = State::Body(left),
                }
                Ok(used)
            }
        }
    }

    /// So much of a name, and of what ends it, must be here before it is clear what is to be done with it.
    fn wanted(&self, length: u64) -> usize {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match self.levels.last() {
            Some(Level { inside: Inside::Chosen { .. }, .. }) => length.saturating_add(2),
            _ => length.min(self.prefix.len()),
        }
    }

    /// What comes out. Of a list that is chosen from nothing does but what is chosen.
    fn give(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if !matches!(self.levels.last(), Some(Level { inside: Inside::Chosen { .. }, .. })) {
            out.extend_from_slice(bytes);
        }
    }

    /// Something else is part of the stream.
    fn after(&mut self, reply: Reply, same: State, out: &mut Vec<u8>) {
        match reply {
            Reply::Partial => self.state = same,
            Reply::Whole => self.end_element(out),
            // It answers nothing, and stands between two replies.
            Reply::Push => self.state = State::Between,
        }
    }

    /// The next element begins with `bytes`.
    fn begin(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if bytes.first() == Some(&b'>') && self.levels.is_empty() {
            self.state = State::Passing(ReplyScanner::default());
            return;
        }
        let due = match (self.shape.take(), self.levels.last_mut()) {
            (Some(shape), _) => Due::Shaped(shape),
            (None, Some(level)) => level.due(),
            (None, None) => {
                self.state = State::Done;
                return;
            }
        };
        self.state = match due {
            Due::Shaped(Shape::Plain) => State::Passing(ReplyScanner::default()),
            Due::Shaped(Shape::Errors | Shape::Script(_)) if bytes.first() != Some(&b'-') => {
                State::Passing(ReplyScanner::default())
            }
            Due::Shaped(Shape::Instead(reply)) if bytes.first() != Some(&b'-') => {
                self.give(&reply, out);
                State::Dropping(ReplyScanner::default())
            }
            due => State::Header(due, Vec::new()),
        };
    }

    /// A line is too long to be held whole: what is to be changed in it stands at its beginning.
    fn begin_line(&mut self, due: &Due, line: &[u8], out: &mut Vec<u8>) -> Result<(), ReplyError> {
        match (line.first(), due) {
            (Some(b'-'), Due::Shaped(Shape::Script(script))) => {
                self.give(&script.outward(line), out);
            }
            (Some(b'-'), _) => self.give(&without(line, &self.prefix), out),
            (Some(b'+'), _) => self.give(line, out),
            (kind, _) => return Err(ReplyError(kind.copied().unwrap_or_default(), "a number")),
        }
        self.state = State::Line;
        Ok(())
    }

    fn read_header(&mut self, due: Due, line: &[u8], out: &mut Vec<u8>) -> Result<(), ReplyError> {
        let kind = line.first().copied().unwrap_or_default();
        let number = || {
            let digits = line.get(1..line.len().saturating_sub(2)).unwrap_or_default();
            std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok())
        };
        match (kind, due) {
            (b'-', Due::Shaped(Shape::Script(script))) => {
                let end = line.len()
                    - line.iter().rev().take_while(|byte| b"\r\n".contains(byte)).count();
                let told = [&script.outward(&line[..end])[..], &line[end..]].concat();
                self.give(&told, out);
                self.end_element(out);
            }
            (b'-', _) => {
                let line = without(line, &self.prefix);
                self.give(&line, out);
                self.end_element(out);
            }
            (b'$' | b'=' | b'!', due) => {
                let length = number().ok_or(ReplyError(kind, "a length"))?;
                let Ok(length) = u64::try_from(length) else {
                    self.give(line, out);
                    self.end_element(out);
                    return Ok(());
                };
                match due {
                    Due::Name if self.is_too_long(length) => self.state = State::Body(length + 2),
                    Due::Name => self.state = State::Name { length, held: Vec::new() },
                    Due::Shaped(_) => {
                        self.give(line, out);
                        self.state = State::Body(length + 2);
                    }
                }
                if self.wanted(length) == 0 && matches!(self.state, State::Name { .. }) {
                    self.read_name(length, &[], out);
                }
            }
            (b'*' | b'~' | b'>' | b'%', Due::Shaped(shape)) => {
                let count = number().ok_or(ReplyError(kind, "a count"))?;
                self.begin_aggregate(kind, count, shape, line, out);
            }
            // A null, a number, a status.
            _ => {
                self.give(line, out);
                self.end_element(out);
            }
        }
        Ok(())
    }

    /// Whether a name is longer than all that may be chosen together; then there is no list.
    fn is_too_long(&mut self, length: u64) -> bool {
        let most = self.chosen_bytes;
        match self.levels.last_mut() {
            Some(Level { inside: Inside::Chosen { kept, .. }, .. })
                if usize::try_from(length).unwrap_or(usize::MAX) > most =>
            {
                *kept = Kept::TooMany;
                true
            }
            _ => false,
        }
    }

    fn begin_aggregate(
        &mut self,
        kind: u8,
        count: i64,
        shape: Shape,
        line: &[u8],
        out: &mut Vec<u8>,
    ) {
        let per_unit = if kind == b'%' { 2 } else { 1 };
        let left = u64::try_from(count).unwrap_or(0).saturating_mul(per_unit);
        let inside = match shape {
            Shape::First => Inside::First,
            Shape::Names => Inside::Names,
            Shape::Alternate => Inside::Alternate,
            Shape::Scan => Inside::Scan,
            Shape::Streams if kind == b'%' => Inside::Alternate,
            Shape::Streams => Inside::Pairs,
            Shape::Chosen(choice) if count >= 0 => {
                Inside::Chosen { choice, kept: Kept::Some(0, Vec::new()) }
            }
            Shape::ChosenScan(choice) => Inside::ChosenScan(Some(choice)),
            Shape::Exec(shapes) => Inside::Exec(shapes.into()),
            Shape::Plain
            | Shape::Errors
            | Shape::Instead(_)
            | Shape::Script(_)
            | Shape::Chosen(_) => Inside::Exec(VecDeque::new()),
        };
        if !matches!(inside, Inside::Chosen { .. }) {
            self.give(line, out);
        }
        self.levels.push(Level { left, index: 0, inside });
        self.close_levels(out);
    }

    fn read_name(&mut self, length: u64, held: &[u8], out: &mut Vec<u8>) {
        if let Some(Level { inside: Inside::Chosen { choice, kept }, .. }) = self.levels.last_mut()
        {
            let name = &held[..held.len().saturating_sub(2)];
            if choice.takes(name) {
                self.names += 1;
                kept.add(&[format!("${length}\r\n").as_bytes(), held], self.chosen_bytes);
            }
            return self.end_element(out);
        }
        self.names += 1;
        let stripped = held.strip_prefix(&*self.prefix).unwrap_or(held);
        let gone = u64::try_from(held.len() - stripped.len()).unwrap_or(0);
        write_line(b'$', usize::try_from(length - gone).unwrap_or(usize::MAX), out);
        out.extend_from_slice(stripped);
        self.state = State::Body(length - u64::try_from(held.len()).unwrap_or(length) + 2);
    }

    fn end_element(&mut self, out: &mut Vec<u8>) {
        self.state = State::Between;
        if let Some(level) = self.levels.last_mut() {
            level.left = level.left.saturating_sub(1);
            level.index += 1;
        }
        self.close_levels(out);
    }

    /// Ends aggregates of which nothing is left.
    fn close_levels(&mut self, out: &mut Vec<u8>) {
        while self.levels.last().is_some_and(|level| level.left == 0) {
            if let Some(Level { inside: Inside::Chosen { kept, .. }, .. }) = self.levels.pop() {
                match kept {
                    Kept::Some(count, names) => {
                        self.give(format!("*{count}\r\n").as_bytes(), out);
                        self.give(&names, out);
                    }
                    Kept::TooMany => self.give(TOO_MANY, out),
                }
            }
            if let Some(level) = self.levels.last_mut() {
                level.left -= 1;
                level.index += 1;
            }
        }
        self.state = if self.levels.is_empty() { State::Done } else { State::Between };
    }
}

impl Kept {
    /// One element more, if there is room for it.
    fn add(&mut self, parts: &[&[u8]], most: usize) {
        let Self::Some(count, bytes) = self else { return };
        *count += 1;
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        if bytes.len() > most {
            *self = Self::TooMany;
        }
    }
}

impl Level {
    fn due(&mut self) -> Due {
        let plain = Due::Shaped(Shape::Plain);
        match &mut self.inside {
            Inside::First if self.index == 0 => Due::Name,
            Inside::Names | Inside::Chosen { .. } => Due::Name,
            Inside::Alternate if self.index.is_multiple_of(2) => Due::Name,
            Inside::Scan if self.index == 1 => Due::Shaped(Shape::Names),
            Inside::Pairs => Due::Shaped(Shape::First),
            Inside::ChosenScan(choice) if self.index == 1 => {
                choice.take().map_or(plain, |choice| Due::Shaped(Shape::Chosen(choice)))
            }
            Inside::Exec(shapes) => {
                let is_here = shapes.front().is_some_and(|(place, _)| *place == self.index);
                let here = if is_here { shapes.pop_front() } else { None };
                here.map_or(plain, |(_, shape)| Due::Shaped(shape))
            }
            _ => plain,
        }
    }
}

/// An error's text without the prefix of the key that it names. A group is named in the same way, but is no key.
fn without(line: &[u8], prefix: &[u8]) -> Vec<u8> {
    let named = [&b"key '"[..], b"key name '"].into_iter().find_map(|begins| {
        let named = [begins, prefix].concat();
        memchr::memmem::find(line, &named).map(|at| (at + begins.len(), at + named.len()))
    });
    match named {
        Some((from, to)) if !prefix.is_empty() => [&line[..from], &line[to..]].concat(),
        _ => line.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(shape: &Shape, reply: &str, piece: usize) -> String {
        let mut filter = ReplyFilter::new(b"ns:", shape.clone());
        let mut out = Vec::new();
        let behind = format!("{reply}+NEXT\r\n");
        let mut used = 0;
        for bytes in behind.as_bytes().chunks(piece) {
            used += filter.advance(bytes, &mut out).unwrap();
            if filter.is_done() {
                break;
            }
        }
        assert_eq!(used, reply.len(), "{reply:?} in pieces of {piece}");
        assert!(filter.is_done());
        String::from_utf8(out).unwrap()
    }

    fn check(shape: Shape, reply: &str, expected: &str) {
        for piece in 1..=reply.len() + 8 {
            assert_eq!(through(&shape, reply, piece), expected, "{reply:?} in pieces of {piece}");
        }
    }

    #[test]
    fn the_prefix_goes_however_the_bytes_are_split() {
        check(
            Shape::First,
            "*2\r\n$4\r\nns:a\r\n$4\r\nns:v\r\n",
            "*2\r\n$1\r\na\r\n$4\r\nns:v\r\n",
        );
        check(Shape::First, "*-1\r\n", "*-1\r\n");
        check(Shape::First, "_\r\n", "_\r\n");
        check(
            Shape::First,
            "*2\r\n$4\r\nns:a\r\n*1\r\n*2\r\n$1\r\nm\r\n:1\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n*2\r\n$1\r\nm\r\n:1\r\n",
        );
        check(
            Shape::Names,
            "*3\r\n$4\r\nns:a\r\n$3\r\nns:\r\n$1\r\nx\r\n",
            "*3\r\n$1\r\na\r\n$0\r\n\r\n$1\r\nx\r\n",
        );
        check(Shape::Names, "*0\r\n", "*0\r\n");
        check(
            Shape::Alternate,
            "*4\r\n$4\r\nns:a\r\n:1\r\n$4\r\nns:b\r\n:0\r\n",
            "*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n:0\r\n",
        );
        check(
            Shape::Scan,
            "*2\r\n$4\r\nns:7\r\n*1\r\n$4\r\nns:a\r\n",
            "*2\r\n$4\r\nns:7\r\n*1\r\n$1\r\na\r\n",
        );
        check(Shape::Scan, "*2\r\n$1\r\n0\r\n*0\r\n", "*2\r\n$1\r\n0\r\n*0\r\n");
        check(Shape::Plain, "*1\r\n$4\r\nns:a\r\n", "*1\r\n$4\r\nns:a\r\n");
    }

    #[test]
    fn an_invalidation_names_keys_or_none() {
        for (push, expected) in [
            (
                ">2\r\n$10\r\ninvalidate\r\n*2\r\n$4\r\nns:a\r\n$4\r\nns:b\r\n",
                ">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
            ),
            (">2\r\n$10\r\ninvalidate\r\n_\r\n", ">2\r\n$10\r\ninvalidate\r\n_\r\n"),
            (">1\r\n$4\r\nns:a\r\n", ">1\r\n$4\r\nns:a\r\n"),
        ] {
            for piece in 1..=push.len() {
                let mut filter = ReplyFilter::of_invalidation(b"ns:");
                let mut out = Vec::new();
                for bytes in push.as_bytes().chunks(piece) {
                    filter.advance(bytes, &mut out).unwrap();
                }
                assert!(filter.is_done());
                assert_eq!(String::from_utf8(out).unwrap(), expected);
            }
        }
    }

    #[test]
    fn streams_are_known_in_both_protocols() {
        let entries = "*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$4\r\nns:f\r\n$1\r\nv\r\n";
        check(
            Shape::Streams,
            &format!("*1\r\n*2\r\n$4\r\nns:s\r\n{entries}"),
            &format!("*1\r\n*2\r\n$1\r\ns\r\n{entries}"),
        );
        check(
            Shape::Streams,
            &format!("%1\r\n$4\r\nns:s\r\n{entries}"),
            &format!("%1\r\n$1\r\ns\r\n{entries}"),
        );
        check(Shape::Streams, "*-1\r\n", "*-1\r\n");
        check(
            Shape::Errors,
            "-NOGROUP No such key 'ns:s' or\r\n",
            "-NOGROUP No such key 's' or\r\n",
        );
        check(
            Shape::Streams,
            "-NOGROUP No such key 'ns:s' or\r\n",
            "-NOGROUP No such key 's' or\r\n",
        );
        check(Shape::Errors, "$4\r\nns:a\r\n", "$4\r\nns:a\r\n");
    }

    #[test]
    fn what_is_not_chosen_is_left_out() {
        let choice = || Choice {
            pattern: b"*a".to_vec(),
            prefixes: vec![b"ns:"[..].into(), b"o:"[..].into()],
        };
        check(
            Shape::Chosen(choice()),
            "*4\r\n$4\r\nns:a\r\n$4\r\nns:b\r\n$3\r\no:a\r\n$3\r\nx:a\r\n",
            "*2\r\n$4\r\nns:a\r\n$3\r\no:a\r\n",
        );
        check(Shape::Chosen(choice()), "*0\r\n", "*0\r\n");
        check(
            Shape::ChosenScan(choice()),
            "*2\r\n$1\r\n7\r\n*1\r\n$1\r\nx\r\n",
            "*2\r\n$1\r\n7\r\n*0\r\n",
        );
    }

    #[test]
    fn what_is_held_is_bounded() {
        let choice = Choice { pattern: b"*".to_vec(), prefixes: vec![b""[..].into()] };
        let name = "n".repeat(1024 * 1024);
        let element = format!("${}\r\n{name}\r\n", name.len());
        let list = |count: usize| format!("*{count}\r\n{}", element.repeat(count));
        let told = String::from_utf8(TOO_MANY.to_vec()).unwrap();
        let through = |reply: &str| through(&Shape::Chosen(choice.clone()), reply, 60_000);
        assert!(through(&list(7)) == list(7));
        assert_eq!(through(&list(9)), told);
        let long = "n".repeat(9 * 1024 * 1024);
        assert_eq!(through(&format!("*2\r\n$1\r\na\r\n${}\r\n{long}\r\n", long.len())), told);
    }

    #[test]
    fn a_long_line_passes_as_it_comes() {
        let rest = "x".repeat(200_000);
        for piece in [1_000, 65_536, 300_000] {
            let told = through(&Shape::Streams, &format!("-ERR key 'ns:s' {rest}\r\n"), piece);
            assert!(told == format!("-ERR key 's' {rest}\r\n"));
            let status = format!("+{rest}\r\n");
            assert!(through(&Shape::Streams, &status, piece) == status);
        }
        let mut filter = ReplyFilter::new(b"ns:", Shape::Names);
        let number = format!("*{}\r\n", "1".repeat(100_000));
        assert!(filter.advance(number.as_bytes(), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_transaction_has_a_shape_for_each_place() {
        let shape = Shape::Exec(vec![
            (1, Shape::Names),
            (2, Shape::Chosen(Choice { pattern: b"*".to_vec(), prefixes: vec![] })),
        ]);
        check(
            shape.clone(),
            "*4\r\n+OK\r\n*1\r\n$4\r\nns:a\r\n*1\r\n$1\r\nx\r\n*1\r\n$4\r\nns:a\r\n",
            "*4\r\n+OK\r\n*1\r\n$1\r\na\r\n*0\r\n*1\r\n$4\r\nns:a\r\n",
        );
        check(shape.clone(), "*-1\r\n", "*-1\r\n");
        check(shape, "-EXECABORT no\r\n", "-EXECABORT no\r\n");
        check(
            Shape::Instead(b"+x\r\n".to_vec()),
            "$40\r\n0123456789012345678901234567890123456789\r\n",
            "+x\r\n",
        );
        check(Shape::Instead(b"+x\r\n".to_vec()), "-ERR\r\n", "-ERR\r\n");
    }
}
