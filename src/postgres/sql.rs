//! A lexer that suspects: which words of a query may leave something behind in the server's session.
//!
//! It reads SQL only as far as strings, quoted names, comments and dollar quotes have to be told from words (PostgreSQL
//! documentation, "Lexical Structure"), in pieces of any size, so that a query of any length passes without being
//! gathered. It may suspect what turns out harmless; what it misses is what code hides in functions.

mod names;
mod quick;
mod routines;
mod shape;
mod suspects;

use std::sync::Arc;

use names::Resets;
pub use names::SettingName;
pub use routines::{Routine, Routines, Runs};
pub use shape::shape;
pub use suspects::{Findings, Suspects, Unlisten};

/// Longest name Postgres keeps (NAMEDATALEN less the zero); longer words are cut as Postgres cuts them.
const NAME_BYTES: usize = 63;

/// Longest tag of a dollar quote that is read. Unlike names tags have no limit on the server.
const TAG_BYTES: usize = 16 * 1024;

/// What makes it worth looking for names of settings.
const SETTINGS: Suspects = {
    let mut all = Suspects::SETTING;
    all.insert(Suspects::RESET);
    all
};

/// What a name may stand for that is written in code points (`U&"d\0061ta"`), with an escape character that may be given behind it:
/// it is not read.
const OF_ANY_NAME: Suspects = {
    let mut all = Suspects::OF_A_BLOCK;
    all.insert(Suspects::SEED);
    all.insert(Suspects::DBLINK);
    all.insert(Suspects::SEQUENCE_READ);
    all.insert(Suspects::RELEASE);
    all
};

/// What words may do that are not read at all.
const OF_ANYTHING: Suspects = {
    let mut all = OF_ANY_NAME;
    all.insert(Suspects::UNNAMED_SETTING);
    all.insert(Suspects::LOAD);
    all
};

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Reads one query, in pieces of any size.
#[derive(Clone, Debug)]
pub struct Lexer {
    place: Place,
    word: [u8; NAME_BYTES],
    word_len: usize,
    verb: Verb,
    index: u32,
    before: Before,
    temporary: Temporary,
    findings: Findings,
    quoting: Quoting,
    call: Option<Call>,
    /// The byte before the next, if it means nothing by itself and was looked at; nought if not.
    last: u8,
    /// Behind an `E'..'`, as long as another string would go on with it.
    adjacent: Adjacent,
    /// Inside a DO block: its dollar quote, and the body is read as SQL.
    block: Option<Vec<u8>>,
    /// What calls leave behind.
    routines: Option<Arc<Routines>>,
    /// What is left by what is called here.
    by_calls: Findings,
}

/// How the next string reads, if it is one with the string before it: only spaces with a line's end, and line comments, stand
/// between (PostgreSQL documentation, "String Constants").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adjacent {
    /// As any other: nothing is behind it that it would go on with.
    No,
    /// With backslashes that escape.
    Escapes,
}

/// A call of `set_config()` being read: with `true` as its last argument it ends with the transaction.
#[derive(Clone, Copy, Debug)]
struct Call {
    depth: u32,
    last: Last,
    /// Tokens of the argument being read: `not true` is not `true`.
    tokens: u32,
}

/// The latest token of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    True,
    Other,
}

/// How a plain string literal treats backslashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quoting {
    /// As the standard does: a backslash is a backslash.
    #[default]
    Standard,
    /// `standard_conforming_strings = off`: a backslash escapes.
    Backslash,
}

/// Where in the text the lexer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Plain,
    Word,
    /// In a string; `true` where a backslash escapes.
    Text {
        escapes: bool,
    },
    /// Behind a backslash of such a string.
    Escaped,
    /// Behind a quote that ends a string, or doubles.
    TextEnd {
        escapes: bool,
    },
    Name,
    NameEnd,
    Dash,
    LineComment,
    Slash,
    BlockComment {
        depth: u32,
        last: u8,
    },
    DollarTag(Vec<u8>),
    DollarBody {
        tag: Vec<u8>,
        matched: Option<usize>,
    },
}

/// A statement's first word, where it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Other,
    Set,
    Reset,
    Discard,
    Deallocate,
    Declare,
    Do,
    Unlisten,
    /// CREATE, ALTER or DROP.
    Define,
}

/// The word before this one, where it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Other,
    /// CREATE, INTO, and what may stand between them and TEMP.
    Making,
    With,
    On,
    OnCommit,
    Execute,
}

/// Whether the statement makes something temporary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temporary {
    No,
    Made,
    /// With ON COMMIT DROP: nothing is left of it behind the transaction.
    Dropped,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoted {
    No,
    Yes,
}

/// What a whole query says, where calls of these routines leave something.
#[must_use]
pub fn read(text: &[u8], quoting: Quoting, routines: Option<&Arc<Routines>>) -> Findings {
    if routines.is_none() && quoting == Quoting::Standard && quick::is_harmless(text) {
        return Findings::default();
    }
    let mut lexer = Lexer::new(quoting, routines);
    lexer.feed(text);
    let by_calls = std::mem::take(&mut lexer.by_calls);
    let mut findings = lexer.finish();
    if findings.settings == [SettingName::Unknown] {
        let named = names::read(text, quoting);
        findings.settings = named.names;
        if named.resets != Resets::No {
            findings.suspects.insert(Suspects::RESET);
        }
        if named.resets == Resets::Identity {
            findings.suspects.insert(Suspects::RESET_IDENTITY);
        }
    }
    if !by_calls.is_empty() {
        findings.add(&by_calls);
    }
    findings
}

impl Lexer {
    /// A lexer at the start of a query.
    #[must_use]
    pub fn new(quoting: Quoting, routines: Option<&Arc<Routines>>) -> Self {
        Self {
            place: Place::Plain,
            word: [0; NAME_BYTES],
            word_len: 0,
            verb: Verb::Other,
            index: 0,
            before: Before::Other,
            temporary: Temporary::No,
            findings: Findings::default(),
            quoting,
            call: None,
            last: 0,
            adjacent: Adjacent::No,
            block: None,
            routines: routines.cloned(),
            by_calls: Findings::default(),
        }
    }

    /// A lexer at the start of a routine's body, which has no end of its own.
    fn within(quoting: Quoting) -> Self {
        Self { block: Some(vec![0]), ..Self::new(quoting, None) }
    }

    /// Reads on.
    pub fn feed(&mut self, text: &[u8]) {
        let mut rest = text;
        while let [byte, behind @ ..] = rest {
            // Runs of bytes that mean the same are passed over at once; what is between them goes byte by byte.
            let skipped = self.skip(rest);
            if skipped > 0 {
                rest = &rest[skipped..];
            } else if self.step(*byte) == Taken::Yes {
                rest = behind;
            }
        }
    }

    /// Ends the query. Which custom settings it names takes the whole text to tell: see [`read`].
    #[must_use]
    pub fn finish(mut self) -> Findings {
        self.end_word();
        self.end_statement();
        if self.findings.suspects.intersects(SETTINGS) {
            self.findings.settings.push(SettingName::Unknown);
        }
        self.findings.add(&self.by_calls);
        self.findings
    }

    /// How many bytes can be passed over without a look at each; nought if the next one needs a look.
    fn skip(&mut self, rest: &[u8]) -> usize {
        let found = match &self.place {
            Place::Plain => return self.words(rest),
            Place::Word => {
                return quick::take_word(rest, &mut self.word, &mut self.word_len);
            }
            Place::Text { escapes: false } => memchr::memchr(b'\'', rest),
            Place::Text { escapes: true } => memchr::memchr2(b'\'', b'\\', rest),
            Place::LineComment => memchr::memchr2(b'\n', b'\r', rest),
            Place::DollarBody { matched: None, .. } => memchr::memchr(b'$', rest),
            _ => return 0,
        };
        found.unwrap_or(rest.len())
    }

    /// Reads words and what means nothing between them, as far as they are whole.
    fn words(&mut self, rest: &[u8]) -> usize {
        let mut at = 0;
        while self.call.is_none() {
            let dull = quick::dull(&rest[at..]);
            if dull > 0 {
                self.last = 0;
                if !rest[at..at + dull].iter().copied().all(is_space) {
                    self.adjacent = Adjacent::No;
                }
            }
            at += dull;
            let Some(word) = quick::whole_word(&rest[at..]) else { break };
            if word.len() > NAME_BYTES {
                break;
            }
            at += word.len();
            (self.last, self.adjacent) = (0, Adjacent::No);
            if self.routines.is_none() && self.means_nothing_here(word) {
                self.pass_over();
                continue;
            }
            for (slot, byte) in self.word.iter_mut().zip(word) {
                *slot = byte.to_ascii_lowercase();
            }
            self.word_len = word.len();
            self.word_done(Quoted::No);
        }
        at
    }

    /// Reads one byte, or changes place so that it is read there.
    fn step(&mut self, byte: u8) -> Taken {
        match &mut self.place {
            Place::Plain => return self.plain(byte),
            Place::Word => return self.in_word(byte),
            Place::Text { escapes } => {
                let escapes = *escapes;
                self.place = match byte {
                    b'\'' => Place::TextEnd { escapes },
                    b'\\' if escapes => Place::Escaped,
                    _ => Place::Text { escapes },
                };
            }
            Place::Escaped => self.place = Place::Text { escapes: true },
            Place::TextEnd { escapes } => {
                let escapes = *escapes;
                if byte != b'\'' {
                    self.place = Place::Plain;
                    self.adjacent = if escapes { Adjacent::Escapes } else { Adjacent::No };
                    return Taken::No;
                }
                self.place = Place::Text { escapes };
            }
            Place::Name => match byte {
                b'"' => self.place = Place::NameEnd,
                _ => self.push(byte),
            },
            Place::NameEnd => {
                if byte != b'"' {
                    self.place = Place::Plain;
                    self.word_done(Quoted::Yes);
                    return Taken::No;
                }
                self.push(byte);
                self.place = Place::Name;
            }
            Place::Dash | Place::Slash => return self.maybe_comment(byte),
            Place::LineComment => {
                if matches!(byte, b'\n' | b'\r') {
                    self.place = Place::Plain;
                }
            }
            Place::BlockComment { depth, last } => {
                match (*last, byte) {
                    (b'/', b'*') => (*depth, *last) = (*depth + 1, 0),
                    (b'*', b'/') => (*depth, *last) = (depth.saturating_sub(1), 0),
                    _ => *last = byte,
                }
                if *depth == 0 {
                    self.place = Place::Plain;
                }
            }
            Place::DollarTag(_) => return self.dollar_tag(byte),
            Place::DollarBody { .. } => self.dollar_body(byte),
        }
        Taken::Yes
    }

    fn plain(&mut self, byte: u8) -> Taken {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => {
                self.place = Place::Word;
                self.push(byte.to_ascii_lowercase());
            }
            b'\'' => {
                let escapes =
                    self.quoting == Quoting::Backslash || self.adjacent == Adjacent::Escapes;
                self.place = Place::Text { escapes };
            }
            b'"' => {
                if self.last == b'&' {
                    self.suspect(OF_ANY_NAME);
                }
                self.place = Place::Name;
            }
            b'-' => self.place = Place::Dash,
            b'/' => self.place = Place::Slash,
            b'$' => self.place = Place::DollarTag(Vec::new()),
            b';' => self.end_statement(),
            b'*' if self.verb == Verb::Unlisten && self.index == 1 => {
                self.unlisten(Unlisten::All);
            }
            // SET local.x names a setting, as SET LOCAL x does not.
            b'.' if self.verb == Verb::Set && self.index == 2 => self.suspect(Suspects::SETTING),
            _ => {}
        }
        self.last = byte;
        if !is_space(byte) {
            // What a dash begins is seen behind it.
            if byte != b'-' {
                self.adjacent = Adjacent::No;
            }
            self.in_call(byte);
        }
        Taken::Yes
    }

    /// Follows the parentheses of a `set_config()` call.
    fn in_call(&mut self, byte: u8) {
        let Some(call) = &mut self.call else { return };
        match byte {
            b'(' => call.depth += 1,
            b')' if call.depth > 1 => call.depth -= 1,
            b')' => {
                let local = call.last == Last::True && call.tokens == 1;
                self.call = None;
                if !local {
                    self.suspect(Suspects::SETTING);
                }
                return;
            }
            // The first letter of a word; what the word is, is said when it ends.
            b'a'..=b'z' | b'A'..=b'Z' => return,
            b',' if call.depth == 1 => {
                call.tokens = 0;
                return;
            }
            _ => {}
        }
        call.tokens = call.tokens.saturating_add(1);
        call.last = Last::Other;
    }

    fn in_word(&mut self, byte: u8) -> Taken {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'$' | 0x80.. => {
                self.push(byte.to_ascii_lowercase());
                Taken::Yes
            }
            // E'..' is a string in which backslashes escape; the other prefixes (B, X, N, U&) change nothing here.
            b'\'' if self.word[..self.word_len] == *b"e" => {
                self.word_len = 0;
                self.place = Place::Text { escapes: true };
                Taken::Yes
            }
            _ => {
                self.place = Place::Plain;
                self.word_done(Quoted::No);
                Taken::No
            }
        }
    }

    fn maybe_comment(&mut self, byte: u8) -> Taken {
        let (next, taken) = match (&self.place, byte) {
            (Place::Dash, b'-') => (Place::LineComment, Taken::Yes),
            (Place::Slash, b'*') => (Place::BlockComment { depth: 1, last: 0 }, Taken::Yes),
            _ => {
                self.adjacent = Adjacent::No;
                (Place::Plain, Taken::No)
            }
        };
        self.place = next;
        taken
    }

    fn dollar_tag(&mut self, byte: u8) -> Taken {
        let Place::DollarTag(tag) = &mut self.place else { return Taken::Yes };
        match byte {
            b'$' => {
                let tag = std::mem::take(tag);
                self.place = Place::Plain;
                if self.block.as_ref() == Some(&tag) {
                    self.block = None;
                } else if self.verb == Verb::Do && self.block.is_none() {
                    self.block = Some(tag);
                    self.end_statement();
                } else {
                    self.place = Place::DollarBody { tag, matched: None };
                }
            }
            b'0'..=b'9' if tag.is_empty() => {
                // $1 is a parameter.
                self.place = Place::Plain;
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80.. if tag.len() < TAG_BYTES => {
                tag.push(byte);
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80.. => {
                // What its string hides, and what stands behind it, may be anything.
                self.suspect(OF_ANYTHING);
                self.place = Place::Plain;
            }
            _ => {
                self.place = Place::Plain;
                return Taken::No;
            }
        }
        Taken::Yes
    }

    /// Looks for `$tag$`: `matched` counts the bytes of the tag seen behind a dollar sign.
    fn dollar_body(&mut self, byte: u8) {
        let Place::DollarBody { tag, matched } = &mut self.place else { return };
        *matched = match *matched {
            Some(n) if byte == b'$' && n == tag.len() => {
                self.place = Place::Plain;
                return;
            }
            Some(n) if tag.get(n) == Some(&byte) => Some(n + 1),
            _ if byte == b'$' => Some(0),
            _ => None,
        };
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.word.get_mut(self.word_len) {
            *slot = byte;
            self.word_len += 1;
        }
    }

    fn end_word(&mut self) {
        match self.place {
            Place::Word => self.word_done(Quoted::No),
            Place::NameEnd => self.word_done(Quoted::Yes),
            _ => {}
        }
    }

    fn end_statement(&mut self) {
        if self.call.take().is_some() {
            self.suspect(Suspects::SETTING);
        }
        if std::mem::replace(&mut self.temporary, Temporary::No) == Temporary::Made {
            self.suspect(Suspects::TEMPORARY);
        }
        self.verb = Verb::Other;
        self.index = 0;
        self.before = Before::Other;
    }

    fn word_done(&mut self, quoted: Quoted) {
        let word = self.word;
        let word = &word[..self.word_len];
        self.word_len = 0;
        if quoted == Quoted::No && self.means_nothing_here(word) {
            self.runs(word, quoted);
            return self.pass_over();
        }
        let begins = matches!(word, b"begin" | b"then" | b"else" | b"loop");
        if self.block.is_some() && begins && quoted == Quoted::No {
            return self.end_statement();
        }
        self.called(word, quoted);
        self.runs(word, quoted);
        self.deallocated(word, quoted);
        // In a block it runs a text.
        if self.before == Before::Execute && self.block.is_none() {
            self.findings.executes.push(word.into());
        }
        if self.verb == Verb::Reset && self.index == 1 && names::is_identity(word) {
            self.suspect(Suspects::RESET_IDENTITY);
        }
        if self.verb == Verb::Unlisten && self.index == 1 {
            self.unlisten(Unlisten::Channel(word.into()));
        }
        if quoted == Quoted::No {
            if self.index == 0 {
                self.first(word);
            } else {
                self.later(word);
            }
            self.before = self.follows(word);
        } else {
            if self.verb == Verb::Set && self.index == 1 {
                self.suspect(Suspects::SETTING);
            }
            self.before = Before::Other;
        }
        self.index = self.index.saturating_add(1);
    }

    /// Whether a word is one that only the database's routines may be called by, where no name is waited for.
    fn means_nothing_here(&self, word: &[u8]) -> bool {
        self.verb == Verb::Other
            && self.before != Before::Execute
            && self.call.is_none()
            && !quick::may_matter(word)
    }

    fn pass_over(&mut self) {
        self.before = Before::Other;
        self.index = self.index.saturating_add(1);
    }

    fn unlisten(&mut self, what: Unlisten) {
        let within = self.block.is_some();
        let findings = &mut self.findings;
        let list = if within { &mut findings.unlistens_within } else { &mut findings.unlistens };
        list.push(what);
    }

    fn suspect(&mut self, what: Suspects) {
        self.findings.suspects.insert(what);
    }

    /// Functions that leave something behind, wherever they are called.
    fn called(&mut self, word: &[u8], quoted: Quoted) {
        if let Some(call) = &mut self.call {
            let local = word == b"true" && quoted == Quoted::No;
            call.last = if local { Last::True } else { Last::Other };
            call.tokens = call.tokens.saturating_add(1);
        }
        let what = match word {
            b"set_config" => {
                // A call within a call is not followed: it counts as lasting.
                if self.call.replace(Call { depth: 0, last: Last::Other, tokens: 0 }).is_some() {
                    self.suspect(Suspects::SETTING);
                }
                return;
            }
            b"setseed" => Suspects::SEED,
            b"pg_settings" => Suspects::SETTING,
            b"currval" | b"lastval" => Suspects::SEQUENCE_READ,
            // MERGE and INSERT may stand inside WITH.
            b"nextval" | b"setval" | b"insert" | b"merge" => Suspects::SEQUENCE_DRAW,
            _ if word.starts_with(b"pg_advisory_unlock") => Suspects::RELEASE,
            _ if word.starts_with(b"pg_advisory_lock") => Suspects::ADVISORY_LOCK,
            _ if word.starts_with(b"pg_try_advisory_lock") => Suspects::ADVISORY_LOCK,
            _ if word.starts_with(b"pg_temp") => Suspects::TEMPORARY,
            _ if word.starts_with(b"dblink_connect") => Suspects::DBLINK,
            _ => return,
        };
        self.suspect(what);
    }

    /// Routines that are called by this name, or by a trigger.
    fn runs(&mut self, word: &[u8], quoted: Quoted) {
        let Some(routines) = &self.routines else { return };
        if let Some(findings) = routines.call(word) {
            self.by_calls.add(findings);
        }
        let changes = [&b"insert"[..], b"update", b"delete", b"merge", b"copy", b"truncate"];
        if quoted == Quoted::No && changes.contains(&word) {
            self.by_calls.add(routines.change());
        }
    }

    /// The statement that DEALLOCATE names.
    fn deallocated(&mut self, word: &[u8], quoted: Quoted) {
        let noise = quoted == Quoted::No && (word == b"prepare" || word == b"all");
        if self.verb == Verb::Deallocate && self.index >= 1 && !noise {
            self.findings.deallocates.push(word.into());
            self.verb = Verb::Other;
        }
    }

    fn first(&mut self, word: &[u8]) {
        self.verb = match word {
            b"set" => Verb::Set,
            b"reset" => Verb::Reset,
            b"discard" => Verb::Discard,
            b"deallocate" => Verb::Deallocate,
            b"declare" => Verb::Declare,
            b"do" => Verb::Do,
            b"unlisten" => Verb::Unlisten,
            b"create" | b"alter" | b"drop" => Verb::Define,
            _ => Verb::Other,
        };
        match word {
            b"reset" => self.suspect(Suspects::RESET),
            b"do" => self.suspect(Suspects::OF_A_BLOCK),
            b"unlisten" => self.suspect(Suspects::UNLISTEN),
            b"drop" | b"close" | b"deallocate" | b"discard" => self.suspect(Suspects::RELEASE),
            b"listen" => self.suspect(Suspects::LISTEN),
            b"load" => self.suspect(Suspects::LOAD),
            b"copy" | b"call" | b"execute" => self.suspect(Suspects::SEQUENCE_DRAW),
            b"prepare" => self.suspect(Suspects::PREPARE),
            _ => {}
        }
    }

    fn later(&mut self, word: &[u8]) {
        match (self.verb, word) {
            (Verb::Set, b"local" | b"transaction" | b"constraints") if self.index == 1 => {}
            (Verb::Set, b"seed") if self.index <= 2 => self.suspect(Suspects::SEED),
            (Verb::Set, _) if self.index == 1 => self.suspect(Suspects::SETTING),
            (Verb::Discard, b"all") => self.suspect(Suspects::DISCARD_ALL),
            (Verb::Define, b"function" | b"procedure" | b"routine" | b"trigger" | b"extension")
                if self.index <= 4 =>
            {
                self.suspect(Suspects::ROUTINE);
            }
            (Verb::Deallocate, b"all") => self.suspect(Suspects::DEALLOCATE_ALL),
            (Verb::Declare, b"hold") if self.before == Before::With => {
                self.suspect(Suspects::CURSOR);
            }
            (_, b"temp" | b"temporary") if self.before == Before::Making => {
                self.temporary = Temporary::Made;
            }
            (_, b"drop") if self.before == Before::OnCommit && self.temporary != Temporary::No => {
                self.temporary = Temporary::Dropped;
            }
            _ => {}
        }
    }

    fn follows(&self, word: &[u8]) -> Before {
        match word {
            b"create" | b"into" => Before::Making,
            b"or" | b"replace" | b"local" | b"global" => self.before,
            b"with" => Before::With,
            b"on" => Before::On,
            b"execute" => Before::Execute,
            b"commit" if self.before == Before::On => Before::OnCommit,
            _ => Before::Other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    No,
}

#[cfg(test)]
mod tests;
