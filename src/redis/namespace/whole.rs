//! Commands about the whole database, as commands about the namespace: some with a pattern of ours, some as a work of several steps.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::replies::{Choice, Shape};
use super::{Ground, Judgement, Mode, Namespace, Reach, Refusal, Whole, glob};
use crate::redis::command::Command;
use crate::redis::wire::write_command;

/// Keys looked at in one step of a work; more where few are inside.
const STEP: usize = 1_000;
/// Most keys looked at in one step, whoever asks for it: the server does nothing else meanwhile.
const STEP_LIMIT: usize = 10_000;
/// How many keys SCAN looks at when it is not told.
const SCAN_STEP: usize = 10;
/// Most keys of the databases that are counted for INFO: somebody may ask for it every second.
const COUNTED_KEYS: u64 = 20_000;
/// The command that brings the numbers of the databases.
const DATABASES: &[&str] = &["INFO", "keyspace"];
/// How often the server is asked for any key at all before the namespace is searched.
const TRIES: u32 = 16;

impl Namespace {
    pub(super) fn whole<'a>(
        &self,
        command: &Command,
        whole: Whole,
        words: &[&'a [u8]],
    ) -> Result<Judgement<'a>, Refusal> {
        let flush_option = |word: &&[u8]| {
            word.eq_ignore_ascii_case(b"ASYNC") || word.eq_ignore_ascii_case(b"SYNC")
        };
        match (whole, words) {
            // The server says what is wrong with it.
            _ if !command.takes(words.len()) => Ok(Judgement::Passes),
            (Whole::Keys, [name, pattern]) => {
                Ok(self.list(&[name], pattern, Shape::Names, Shape::Chosen))
            }
            (Whole::Channels, [container, name]) => {
                Ok(self.list(&[container, name], b"*", Shape::Names, Shape::Chosen))
            }
            (Whole::Channels, [container, name, pattern]) => {
                Ok(self.list(&[container, name], pattern, Shape::Names, Shape::Chosen))
            }
            (Whole::Scan, [name, cursor, options @ ..]) => Ok(self.scan(name, cursor, options)),
            (Whole::RandomKey, _) => {
                Ok(Judgement::Errand(Errand::new(self, Task::Random { tries: 0 })))
            }
            (Whole::Size, _) => Ok(Judgement::Errand(Errand::new(self, Task::Size))),
            (Whole::Flush(reach), [_]) => Ok(Judgement::Errand(self.flush(reach))),
            (Whole::Flush(reach), [_, option]) if flush_option(option) => {
                Ok(Judgement::Errand(self.flush(reach)))
            }
            _ => Err(Refusal {
                ground: Ground::Command,
                command: command.name,
                text: "ERR syntax error".to_owned(),
            }),
        }
    }

    fn flush(&self, reach: Reach) -> Errand {
        let databases = match reach {
            Reach::One => Databases::One,
            Reach::All => Databases::Asked,
        };
        Errand { databases, ..Errand::new(self, Task::Flush) }
    }

    /// A list of all names that fit `pattern`, whose reply is of the shape `all`, or `chosen`.
    fn list<'a>(
        &self,
        begins: &[&'a [u8]],
        pattern: &'a [u8],
        all: Shape,
        chosen: impl Fn(Choice) -> Shape,
    ) -> Judgement<'a> {
        let (pattern, shape) = self.narrow(pattern, all, chosen);
        let mut words: Vec<Cow<'a, [u8]>> =
            begins.iter().map(|word| Cow::Borrowed(*word)).collect();
        words.push(pattern);
        Judgement::Becomes(words, shape)
    }

    /// The pattern that the server is asked for, and what is to be done with its list.
    fn narrow<'a>(
        &self,
        pattern: &'a [u8],
        all: Shape,
        chosen: impl Fn(Choice) -> Shape,
    ) -> (Cow<'a, [u8]>, Shape) {
        let mut narrow = Vec::new();
        glob::literal(self.prefix(), &mut narrow);
        if self.mode == Mode::Prefix {
            narrow.extend_from_slice(pattern);
            return (Cow::Owned(narrow), all);
        }
        if self.sees(&glob::head(pattern)) {
            return (Cow::Borrowed(pattern), Shape::Plain);
        }
        let prefixes: Vec<Box<[u8]>> =
            self.prefixes.iter().chain(&self.readable).cloned().collect();
        let is_one = prefixes.len() == 1;
        let shape = match pattern {
            b"*" if is_one => Shape::Plain,
            pattern => chosen(Choice { pattern: pattern.to_vec(), prefixes }),
        };
        narrow.push(b'*');
        (if is_one { Cow::Owned(narrow) } else { Cow::Borrowed(pattern) }, shape)
    }

    fn scan<'a>(&self, name: &'a [u8], cursor: &'a [u8], options: &[&'a [u8]]) -> Judgement<'a> {
        let mut words: Vec<Cow<'a, [u8]>> = vec![Cow::Borrowed(name), Cow::Borrowed(cursor)];
        let mut pattern: &'a [u8] = b"*";
        let mut rest = options;
        while let [option, value, more @ ..] = rest {
            // The last one counts.
            if option.eq_ignore_ascii_case(b"MATCH") {
                pattern = value;
            } else {
                words.extend([Cow::Borrowed(*option), Cow::Borrowed(*value)]);
            }
            rest = more;
        }
        let (pattern, shape) = self.narrow(pattern, Shape::Scan, Shape::ChosenScan);
        // How many names come is counted in any case.
        let shape = if shape == Shape::Plain { Shape::Scan } else { shape };
        words.extend([Cow::Borrowed(&b"MATCH"[..]), pattern]);
        // A word without a value: the server says so.
        words.extend(rest.iter().map(|word| Cow::Borrowed(*word)));
        Judgement::Becomes(words, shape)
    }

    /// Patterns that fit all names of the namespace, none twice.
    pub(super) fn patterns(&self, with_readable: bool) -> VecDeque<Vec<u8>> {
        let pattern = |prefix: &[u8]| {
            let mut pattern = Vec::new();
            glob::literal(prefix, &mut pattern);
            pattern.push(b'*');
            pattern
        };
        self.heads(with_readable).into_iter().map(pattern).collect()
    }

    /// What all names of the namespace begin with, each with one.
    pub(super) fn heads(&self, with_readable: bool) -> Vec<&[u8]> {
        let readable = self.readable.iter().filter(|_| with_readable);
        let all: Vec<&[u8]> =
            self.prefixes.iter().chain(readable).map(|prefix| &**prefix).collect();
        let covered = |at: usize, prefix: &[u8]| {
            all.iter().enumerate().any(|(other, by)| {
                other != at && prefix.starts_with(by) && (by.len() < prefix.len() || other < at)
            })
        };
        let heads = all.iter().enumerate().filter(|(at, prefix)| !covered(*at, prefix));
        heads.map(|(_, prefix)| *prefix).collect()
    }
}

/// How much more a client's SCAN looks at than it says, because most of what it passes is not the namespace's: as much as brings
/// about as many names as the client expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zeal(usize);

impl Default for Zeal {
    fn default() -> Self {
        Self(1)
    }
}

impl Zeal {
    /// Has a SCAN look at more: how many keys it looks at now.
    pub fn raise(self, words: &mut Vec<Cow<'_, [u8]>>) -> usize {
        let mut counts = words.iter().skip(2).step_by(2).zip(words.iter().skip(3).step_by(2));
        let said = counts.rfind(|(option, _)| option.eq_ignore_ascii_case(b"COUNT"));
        let said = said.map_or(Some(SCAN_STEP), |(_, count)| {
            std::str::from_utf8(count).ok()?.parse().ok().filter(|count| *count > 0)
        });
        // The server says what is wrong with it.
        let Some(said) = said.filter(|_| words.len().is_multiple_of(2)) else { return 0 };
        let raised = said.saturating_mul(self.0).min(STEP_LIMIT).max(said);
        if raised > said {
            // The last one counts.
            words.push(Cow::Borrowed(b"COUNT"));
            words.push(Cow::Owned(raised.to_string().into_bytes()));
        }
        raised
    }

    /// So many keys were looked at, and so many names have come.
    pub fn learn(&mut self, looked_at: usize, names: usize) {
        if looked_at > 0 {
            let wanted = looked_at / names.max(1);
            let next = wanted.clamp(self.0 / 2, self.0.saturating_mul(2));
            self.0 = next.clamp(1, STEP_LIMIT / SCAN_STEP);
        }
    }
}

/// A work of several steps: each is one command and its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    task: Task,
    databases: Databases,
    /// Keys looked at in one step.
    step: usize,
    /// What is still to be searched; the first one now.
    patterns: VecDeque<Vec<u8>>,
    /// All that is searched for in each database.
    all: VecDeque<Vec<u8>>,
    cursor: Vec<u8>,
    found: u64,
    counts: Vec<(u32, u64)>,
    removed: u64,
    /// Keys to be removed before the search goes on.
    condemned: Vec<Vec<u8>>,
    /// Names are shown without this, and are inside if they begin with one of [`Errand::inside`].
    strip: Box<[u8]>,
    inside: Vec<Box<[u8]>>,
}

/// Where a work goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Databases {
    /// In the client's.
    One,
    /// In all that have keys; which ones is being asked.
    Asked,
    /// In the first of these, and then the next.
    Told(VecDeque<u32>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Size,
    Flush,
    Random {
        tries: u32,
    },
    /// As [`Task::Size`], of each database.
    Keyspace,
}

/// What comes of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Another step.
    Step,
    /// The work is done, and this is the answer.
    Answer(Answer),
}

/// The answer of a work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// So many.
    Count(u64),
    /// So many in each database.
    Counts(Vec<(u32, u64)>),
    /// This name.
    Name(Vec<u8>),
    /// There is none.
    Nothing,
    /// The server's error line.
    Error(Vec<u8>),
}

impl Errand {
    fn new(namespace: &Namespace, task: Task) -> Self {
        let strip = match namespace.mode {
            Mode::Enforce => Box::default(),
            Mode::Prefix => namespace.prefix().into(),
        };
        let patterns = namespace.patterns(task != Task::Flush);
        Self {
            task,
            databases: Databases::One,
            step: STEP,
            all: patterns.clone(),
            patterns,
            cursor: b"0".to_vec(),
            found: 0,
            counts: Vec::new(),
            removed: 0,
            condemned: Vec::new(),
            strip,
            inside: namespace.prefixes.iter().chain(&namespace.readable).cloned().collect(),
        }
    }

    /// Counts the keys of the namespace in the databases of which INFO has told this; nothing if there are none, or too many.
    #[must_use]
    pub fn of_keyspace(namespace: &Namespace, told: &[u8]) -> Option<Self> {
        let found: VecDeque<(u32, u64)> = databases(told).collect();
        let all = found.iter().fold(0_u64, |all, (_, keys)| all.saturating_add(*keys));
        let databases = Databases::Told(found.into_iter().map(|(database, _)| database).collect());
        let counts = (1..=COUNTED_KEYS).contains(&all);
        counts.then(|| Self { databases, step: STEP_LIMIT, ..Self::new(namespace, Task::Keyspace) })
    }

    /// How many keys were removed since this was asked last.
    pub fn take_removed(&mut self) -> u64 {
        std::mem::take(&mut self.removed)
    }

    /// The database of the present step, if it is another than the client's.
    #[must_use]
    pub fn database(&self) -> Option<u32> {
        match &self.databases {
            Databases::Told(databases) => databases.front().copied(),
            Databases::One | Databases::Asked => None,
        }
    }

    /// The command of the present step.
    pub fn write_step(&self, out: &mut Vec<u8>) {
        if self.databases == Databases::Asked {
            return write_command(DATABASES, out);
        }
        if !self.condemned.is_empty() {
            let mut words: Vec<&[u8]> = vec![b"UNLINK"];
            words.extend(self.condemned.iter().map(Vec::as_slice));
            return write_command(&words, out);
        }
        if let Task::Random { tries } = self.task
            && tries < TRIES
        {
            return write_command(&["RANDOMKEY"], out);
        }
        let pattern = self.patterns.front().map(Vec::as_slice).unwrap_or_default();
        let count = self.step.to_string();
        let words: [&[u8]; 6] =
            [b"SCAN", &self.cursor, b"MATCH", pattern, b"COUNT", count.as_bytes()];
        write_command(&words, out);
    }

    /// Takes the whole reply to the present step.
    pub fn advance(&mut self, reply: &[u8]) -> Next {
        if reply.first() == Some(&b'-') {
            return Next::Answer(Answer::Error(reply.to_vec()));
        }
        if self.databases == Databases::Asked {
            self.databases =
                Databases::Told(databases(reply).map(|(database, _)| database).collect());
            return if self.database().is_some() { Next::Step } else { Next::Answer(Answer::Done) };
        }
        if !self.condemned.is_empty() {
            self.condemned.clear();
            self.removed += integer(reply);
            return self.go_on();
        }
        if let Task::Random { tries } = &mut self.task
            && *tries < TRIES
        {
            *tries += 1;
            return self.look_at_any(reply);
        }
        let mut strings = Strings(reply);
        self.cursor = strings.next().unwrap_or(b"0").to_vec();
        let names: Vec<Vec<u8>> = strings.map(<[u8]>::to_vec).collect();
        self.found += u64::try_from(names.len()).unwrap_or(0);
        self.step = match names.len() {
            few if few < self.step / 10 => (self.step * 2).min(STEP_LIMIT),
            many if many > STEP * 2 => (self.step / 2).max(STEP),
            _ => self.step,
        };
        match self.task {
            Task::Random { .. } if !names.is_empty() => {
                // Any will do; which one depends on what the server says.
                let at = reply.iter().fold(0_usize, |sum, byte| {
                    sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
                });
                let name = names.into_iter().cycle().nth(at % 997).unwrap_or_default();
                return Next::Answer(Answer::Name(self.shown(&name)));
            }
            Task::Flush if !names.is_empty() => {
                self.condemned = names;
                return Next::Step;
            }
            _ => {}
        }
        self.go_on()
    }

    fn look_at_any(&mut self, reply: &[u8]) -> Next {
        match Strings(reply).next() {
            None => Next::Answer(Answer::Nothing),
            Some(name) if self.inside.iter().any(|prefix| name.starts_with(prefix)) => {
                Next::Answer(Answer::Name(self.shown(name)))
            }
            Some(_) => Next::Step,
        }
    }

    fn shown(&self, name: &[u8]) -> Vec<u8> {
        name.strip_prefix(&*self.strip).unwrap_or(name).to_vec()
    }

    fn go_on(&mut self) -> Next {
        if self.cursor == b"0" {
            self.patterns.pop_front();
        }
        if let Databases::Told(databases) = &mut self.databases
            && self.patterns.is_empty()
        {
            let counted = databases.pop_front().zip(Some(std::mem::take(&mut self.found)));
            self.counts.extend(counted);
            if !databases.is_empty() {
                self.patterns.clone_from(&self.all);
                return Next::Step;
            }
        }
        match (self.patterns.is_empty(), self.task) {
            (false, _) => Next::Step,
            (true, Task::Size) => Next::Answer(Answer::Count(self.found)),
            (true, Task::Flush) => Next::Answer(Answer::Done),
            (true, Task::Random { .. }) => Next::Answer(Answer::Nothing),
            (true, Task::Keyspace) => {
                Next::Answer(Answer::Counts(std::mem::take(&mut self.counts)))
            }
        }
    }
}

/// The strings of a whole reply, in order, whatever they stand in.
struct Strings<'a>(&'a [u8]);

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let end = memchr::memchr(b'\n', self.0)? + 1;
            let line = self.0.get(..end.checked_sub(2)?)?;
            let rest = &self.0[end..];
            self.0 = rest;
            let Some(digits) = line.strip_prefix(b"$") else { continue };
            let Some(length) =
                std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok())
            else {
                continue;
            };
            let string = rest.get(..length)?;
            self.0 = rest.get(length + 2..)?;
            return Some(string);
        }
    }
}

/// The databases that have keys, and how many, as INFO tells of them (`db0:keys=7,...`).
fn databases(reply: &[u8]) -> impl Iterator<Item = (u32, u64)> {
    let number = |line: &[u8]| {
        let (number, rest) =
            std::str::from_utf8(line).ok()?.strip_prefix("db")?.split_once(":keys=")?;
        Some((number.parse().ok()?, rest.split(',').next()?.parse().ok()?))
    };
    reply.split(|byte| *byte == b'\n').filter_map(number)
}

/// An integer reply.
fn integer(reply: &[u8]) -> u64 {
    let digits = reply.strip_prefix(b":").map(<[u8]>::trim_ascii_end).unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::namespace;
    use super::*;

    fn errand(command: &str) -> Errand {
        match namespace(Mode::Prefix).judge(&[command.as_bytes()]) {
            Judgement::Errand(errand) => errand,
            other => panic!("{other:?}"),
        }
    }

    fn step(errand: &Errand) -> String {
        let mut bytes = Vec::new();
        errand.write_step(&mut bytes);
        let words: Vec<String> = crate::redis::wire::Arguments::new(&bytes)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        format!("{:?} {}", errand.database(), words.join(" "))
    }

    #[test]
    fn a_flush_of_all_goes_from_database_to_database() {
        let mut errand = errand("flushall");
        assert_eq!(step(&errand), "None INFO keyspace");
        let told = b"$60\r\n# Keyspace\r\ndb0:keys=1,expires=0\r\ndb12:keys=7,expires=0\r\n\r\n";
        assert_eq!(errand.advance(told), Next::Step);
        assert_eq!(step(&errand), "Some(0) SCAN 0 MATCH cache:* COUNT 1000");
        assert_eq!(errand.advance(b"*2\r\n$1\r\n7\r\n*0\r\n"), Next::Step);
        assert_eq!(step(&errand), "Some(0) SCAN 7 MATCH cache:* COUNT 2000");
        assert_eq!(errand.advance(b"*2\r\n$1\r\n0\r\n*1\r\n$7\r\ncache:a\r\n"), Next::Step);
        assert_eq!(step(&errand), "Some(0) UNLINK cache:a");
        assert_eq!(errand.advance(b":1\r\n"), Next::Step);
        assert_eq!(errand.take_removed(), 1);
        assert_eq!(errand.take_removed(), 0);
        assert_eq!(step(&errand), "Some(12) SCAN 0 MATCH cache:* COUNT 4000");
        let last = errand.advance(b"*2\r\n$1\r\n0\r\n*0\r\n");
        assert_eq!(last, Next::Answer(Answer::Done));
    }

    #[test]
    fn an_empty_server_is_flushed_at_once() {
        let mut errand = errand("FLUSHALL");
        let told = errand.advance(b"$12\r\n# Keyspace\r\n\r\n");
        assert_eq!(told, Next::Answer(Answer::Done));
        let mut errand = super::tests::errand("FLUSHALL");
        let told = errand.advance(b"-NOPERM no\r\n");
        assert_eq!(told, Next::Answer(Answer::Error(b"-NOPERM no\r\n".to_vec())));
    }

    #[test]
    fn a_scan_looks_at_more_where_few_names_come() {
        let raised = |zeal: Zeal, line: &str| {
            let mut words: Vec<Cow<'_, [u8]>> =
                line.split(' ').map(|word| Cow::Borrowed(word.as_bytes())).collect();
            let count = zeal.raise(&mut words);
            (count, String::from_utf8(words.join(&b' ')).unwrap())
        };
        let mut zeal = Zeal::default();
        assert_eq!(raised(zeal, "SCAN 0 MATCH x*"), (10, "SCAN 0 MATCH x*".to_owned()));
        for _ in 0..20 {
            zeal.learn(10, 0);
        }
        assert_eq!(
            raised(zeal, "SCAN 5 count 2 MATCH x*"),
            (20, "SCAN 5 count 2 MATCH x* COUNT 20".to_owned())
        );
        for _ in 0..20 {
            zeal.learn(10_000, 0);
        }
        for (line, most) in [
            ("SCAN 0 MATCH x*", 10_000),
            ("SCAN 0 COUNT 50000 MATCH x*", 50_000),
            ("SCAN 0 COUNT 5 COUNT 1 MATCH x*", 1_000),
        ] {
            assert_eq!(raised(zeal, line).0, most, "{line}");
        }
        for line in ["SCAN 0 COUNT x MATCH x*", "SCAN 0 COUNT 0 MATCH x*", "SCAN 0 MATCH x* COUNT"]
        {
            assert_eq!(raised(zeal, line), (0, line.to_owned()));
        }
        for _ in 0..20 {
            zeal.learn(1_000, 500);
        }
        assert_eq!(raised(zeal, "SCAN 0 MATCH x*").0, 20);
    }
}
