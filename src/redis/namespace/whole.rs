//! Commands about the whole database, as commands about the namespace: some with a pattern of ours, some as a work of several steps.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::replies::{Choice, Shape};
use super::{Ground, Judgement, Mode, Namespace, Refusal, Whole, glob};
use crate::redis::command::Command;
use crate::redis::wire::write_command;

/// Buckets looked at in one step of a work.
const STEP: &str = "1000";
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
            (Whole::Flush, [_]) => Ok(Judgement::Errand(Errand::new(self, Task::Flush))),
            (Whole::Flush, [_, option]) if flush_option(option) => {
                Ok(Judgement::Errand(Errand::new(self, Task::Flush)))
            }
            _ => Err(Refusal {
                ground: Ground::Command,
                command: command.name,
                text: "ERR syntax error".to_owned(),
            }),
        }
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
        words.extend([Cow::Borrowed(&b"MATCH"[..]), pattern]);
        // A word without a value: the server says so.
        words.extend(rest.iter().map(|word| Cow::Borrowed(*word)));
        Judgement::Becomes(words, shape)
    }

    /// Patterns that fit all names of the namespace, none twice.
    pub(super) fn patterns(&self, with_readable: bool) -> VecDeque<Vec<u8>> {
        let readable = self.readable.iter().filter(|_| with_readable);
        let all: Vec<&Box<[u8]>> = self.prefixes.iter().chain(readable).collect();
        let mut patterns = VecDeque::new();
        for (at, prefix) in all.iter().enumerate() {
            let covered = all.iter().enumerate().any(|(other, by)| {
                other != at && prefix.starts_with(by) && (by.len() < prefix.len() || other < at)
            });
            if !covered {
                let mut pattern = Vec::new();
                glob::literal(prefix, &mut pattern);
                pattern.push(b'*');
                patterns.push_back(pattern);
            }
        }
        patterns
    }
}

/// A work of several steps: each is one command and its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    task: Task,
    /// What is still to be searched; the first one now.
    patterns: VecDeque<Vec<u8>>,
    cursor: Vec<u8>,
    found: u64,
    /// Keys to be removed before the search goes on.
    condemned: Vec<Vec<u8>>,
    /// Names are shown without this, and are inside if they begin with one of [`Errand::inside`].
    strip: Box<[u8]>,
    inside: Vec<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Size,
    Flush,
    Random { tries: u32 },
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
        Self {
            task,
            patterns: namespace.patterns(task != Task::Flush),
            cursor: b"0".to_vec(),
            found: 0,
            condemned: Vec::new(),
            strip,
            inside: namespace.prefixes.iter().chain(&namespace.readable).cloned().collect(),
        }
    }

    /// How many keys were found so far, or removed.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// The command of the present step.
    pub fn write_step(&self, out: &mut Vec<u8>) {
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
        let words: [&[u8]; 6] =
            [b"SCAN", &self.cursor, b"MATCH", pattern, b"COUNT", STEP.as_bytes()];
        write_command(&words, out);
    }

    /// Takes the whole reply to the present step.
    pub fn advance(&mut self, reply: &[u8]) -> Next {
        if reply.first() == Some(&b'-') {
            return Next::Answer(Answer::Error(reply.to_vec()));
        }
        if !self.condemned.is_empty() {
            self.condemned.clear();
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
        match (self.patterns.is_empty(), self.task) {
            (false, _) => Next::Step,
            (true, Task::Size) => Next::Answer(Answer::Count(self.found)),
            (true, Task::Flush) => Next::Answer(Answer::Done),
            (true, Task::Random { .. }) => Next::Answer(Answer::Nothing),
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
