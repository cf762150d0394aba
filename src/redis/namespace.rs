//! A namespace: the part of a Redis that a client sees, told by how its names begin.
//!
//! Every command is judged before it goes anywhere. In `enforce` the client says full names, and what is outside is refused; in
//! `prefix` it knows of nothing: names get the prefix on their way in and lose it on their way out. What is not known to the
//! table, what names nothing and acts on everything, and what can't be seen through is refused, unless it is allowed by name.

mod frequent;
mod glob;
mod policy;
mod scripts;
mod tracking;
mod whole;

pub mod pace;
pub mod replies;
pub mod sandbox;

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::command::{Access, Command, Named, Touch, Way, look_up, names};
use super::wire::{Arguments, write_line};
pub use frequent::Frequent;
use policy::{Policy, Reach, Whole, policy};
pub use whole::{Answer, Errand, Next, Zeal};

use replies::Shape;

/// Longest argument shown in an error, bytes.
const SHOWN_BYTES: usize = 128;

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// As its users know it.
    pub name: Box<str>,
    /// Who says the prefix.
    pub mode: Mode,
    /// What its names begin with; one in [`Mode::Prefix`].
    pub prefixes: Vec<Box<[u8]>>,
    /// What names begin with that may be read only; none in [`Mode::Prefix`].
    pub readable: Vec<Box<[u8]>>,
    /// Whether it may be written.
    pub rights: Rights,
    /// Commands that are not looked at, in upper case; subcommands behind a bar.
    pub allowed: BTreeSet<Box<str>>,
    /// What becomes of scripts.
    pub scripts: ScriptRule,
    /// Most bytes of one word of a command.
    pub value_bytes: usize,
}

/// What becomes of scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptRule {
    /// They run inside of the namespace.
    Sandbox,
    /// They are refused.
    Deny,
    /// They run as they are, and functions, too; the keys that they declare are looked at.
    Trust,
    /// Those with these SHA1s, in lower case, run as they are; others are refused.
    TrustSome(BTreeSet<Box<str>>),
}

/// Who says the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The client.
    Enforce,
    /// Nobody but tidegate.
    Prefix,
}

/// Whether a namespace may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// It names a key outside.
    Key,
    /// It names a channel outside.
    Channel,
    /// A pattern reaches outside.
    Pattern,
    /// The command itself.
    Command,
    /// The namespace, or the key, may only be read.
    ReadOnly,
    /// The script.
    Script,
    /// A word of it is too long.
    Size,
}

impl Ground {
    /// The word for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Channel => "channel",
            Self::Pattern => "pattern",
            Self::Command => "command",
            Self::ReadOnly => "read_only",
            Self::Script => "script",
            Self::Size => "size",
        }
    }
}

/// A refused command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub ground: Ground,
    /// The name in the table; `other` of one that is not there.
    pub command: &'static str,
    /// What the client is told.
    pub text: String,
}

/// What becomes of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement<'a> {
    /// It goes as it is, and so does its reply.
    Passes,
    /// It goes with other words, or its reply must be looked at.
    Becomes(Vec<Cow<'a, [u8]>>, Shape),
    /// It does not go.
    Refused(Refusal),
    /// It is a work of several steps.
    Errand(Errand),
    /// It is about scripts: [`Namespace::judge_script`].
    Script,
}

impl Namespace {
    /// Judges a command, all of which is in `words`.
    #[must_use]
    pub fn judge<'a>(&self, words: &[&'a [u8]]) -> Judgement<'a> {
        let judged = self.try_judge(words);
        judged.unwrap_or_else(Judgement::Refused)
    }

    fn try_judge<'a>(&self, words: &[&'a [u8]]) -> Result<Judgement<'a>, Refusal> {
        if words.iter().any(|word| word.len() > self.value_bytes) {
            return Err(self.refusal(look_up(words), words, Ground::Size, "is too long"));
        }
        let Some(command) = look_up(words) else { return self.unknown(words) };
        // Behind such a command nothing could be looked at any more.
        if self.allowed.contains(command.name) && command.way != Way::Stream {
            return Ok(Judgement::Passes);
        }
        let writes = command.access == Access::Writes || is_told_to_others(command);
        if self.rights == Rights::ReadOnly && writes {
            return Err(self.refuse_write(command));
        }
        match policy(command, words) {
            Policy::Keyless => Ok(Judgement::Passes),
            Policy::Refused(why) => Err(self.refusal(Some(command), words, Ground::Command, why)),
            Policy::Names => self.by_names(command, words),
            Policy::Script => Ok(Judgement::Script),
            Policy::Function if self.scripts == ScriptRule::Trust => self.by_names(command, words),
            Policy::Function => {
                Err(self.refusal(Some(command), words, Ground::Command, policy::SCRIPTS))
            }
            Policy::Whole(whole) => self.whole(command, whole, words),
            Policy::Tracking => self.track(command, words),
        }
    }

    /// What goes in the place of the beginning of a command that is not all here, and how much of it that is: the rest follows as it
    /// is. Only of commands that name one key, or channel, as their first word, whatever stands behind it.
    ///
    /// # Errors
    /// The refusal.
    pub fn large_form(&self, command: &[u8]) -> Result<(Vec<u8>, usize), Refusal> {
        let mut arguments = Arguments::new(command);
        let words: Vec<&[u8]> = arguments.by_ref().take(2).collect();
        let behind = command.len() - arguments.rest().len();
        let known = look_up(&words).filter(|command| command.names_its_second_word_only());
        // Without what ends it the name can't be told from what it would become.
        let ends = !arguments.rest().is_empty();
        let (Some(known), [name, _], true) = (known, &words[..], ends) else {
            let why = "is too long for tidegate to tell what it names";
            return Err(self.refusal(look_up(&words), &words, Ground::Command, why));
        };
        match self.try_judge(&words)? {
            Judgement::Passes => Ok((Vec::new(), 0)),
            Judgement::Becomes(becomes, _) => {
                let line = memchr::memchr(b'\n', command).map_or(0, |newline| newline + 1);
                let mut form = command[..line].to_vec();
                for word in [Cow::Borrowed(*name)].iter().chain(becomes.get(1)) {
                    write_line(b'$', word.len(), &mut form);
                    form.extend_from_slice(word);
                    form.extend_from_slice(b"\r\n");
                }
                Ok((form, behind))
            }
            _ => Err(self.refusal(Some(known), &words, Ground::Command, "is too long")),
        }
    }

    fn unknown<'a>(&self, words: &[&'a [u8]]) -> Result<Judgement<'a>, Refusal> {
        let [name, subcommand] = [0, 1].map(|at| {
            words
                .get(at)
                .map(|word| String::from_utf8_lossy(word).to_ascii_uppercase())
                .unwrap_or_default()
        });
        let both = format!("{name}|{subcommand}");
        let is_allowed = |name: &str| self.allowed.contains(name);
        if name.is_empty()
            || is_allowed(&name)
            || is_allowed(&both)
            || both == "CLIENT|MAINT_NOTIFICATIONS"
        {
            return Ok(Judgement::Passes);
        }
        let why = "is not known to tidegate, which can't tell what it touches";
        Err(self.refusal(None, words, Ground::Command, why))
    }

    /// A command that names what it touches.
    fn by_names<'a>(
        &self,
        command: &Command,
        words: &[&'a [u8]],
    ) -> Result<Judgement<'a>, Refusal> {
        match self.mode {
            Mode::Enforce => {
                let mut verdict = Ok(());
                names(command, words, &mut |at, named| {
                    if verdict.is_ok() && !self.holds(words[at], named) {
                        verdict = Err(self.outside(command, words[at], named));
                    }
                });
                verdict.map(|()| Judgement::Passes)
            }
            Mode::Prefix => {
                let mut becomes: Vec<Cow<'a, [u8]>> =
                    words.iter().map(|word| Cow::Borrowed(*word)).collect();
                names(command, words, &mut |at, named| becomes[at] = self.inward(words[at], named));
                Ok(Judgement::Becomes(becomes, Shape::of(command.name)))
            }
        }
    }

    /// Whether a name is inside.
    fn holds(&self, name: &[u8], named: Named) -> bool {
        match named {
            Named::Key(Touch::Write) => self.owns(name),
            Named::Key(Touch::Read) => self.sees(name),
            Named::KeysByElement => {
                // Without a star nothing is read.
                let star = memchr::memchr(b'*', name);
                name == b"#" || star.is_none_or(|star| self.sees(&name[..star]))
            }
            Named::Target => self.owns(name),
            Named::Channel => self.sees(about(name).unwrap_or(name)) || is_of_events(name),
            Named::Channels => {
                let head = glob::head(about(name).unwrap_or(name));
                self.sees(&head) || may_be_of_events(name)
            }
        }
    }

    /// Whether a name may be written.
    #[must_use]
    pub fn owns(&self, name: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Whether a name may be read.
    #[must_use]
    pub fn sees(&self, name: &[u8]) -> bool {
        self.owns(name) || self.readable.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The prefix; of several, the first.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        self.prefixes.first().map(|prefix| &**prefix).unwrap_or_default()
    }

    /// A name of the client's as the server knows it.
    fn inward<'a>(&self, name: &'a [u8], named: Named) -> Cow<'a, [u8]> {
        let prefix = self.prefix();
        match named {
            Named::Key(_) | Named::Target => Cow::Owned([prefix, name].concat()),
            Named::KeysByElement if name == b"#" || !name.contains(&b'*') => Cow::Borrowed(name),
            // The first star is the element's place: a prefix has none.
            Named::KeysByElement => Cow::Owned([prefix, name].concat()),
            Named::Channel if is_of_events(name) => Cow::Borrowed(name),
            Named::Channel => match split_about(name) {
                Some((about, key)) => Cow::Owned([about, prefix, key].concat()),
                None => Cow::Owned([prefix, name].concat()),
            },
            Named::Channels if may_be_of_events(name) => Cow::Borrowed(name),
            Named::Channels => {
                let (about, rest) = split_about(name).unwrap_or((&[], name));
                let mut pattern = about.to_vec();
                glob::literal(prefix, &mut pattern);
                pattern.extend_from_slice(rest);
                Cow::Owned(pattern)
            }
        }
    }

    /// A channel, or with `pattern` a pattern of channels, as the client knows it.
    #[must_use]
    pub fn outward<'a>(&self, name: &'a [u8], is_pattern: IsPattern) -> Cow<'a, [u8]> {
        let mut prefix = Vec::new();
        let as_it_is = match is_pattern {
            IsPattern::Yes => {
                glob::literal(self.prefix(), &mut prefix);
                may_be_of_events(name)
            }
            IsPattern::No => {
                prefix.extend_from_slice(self.prefix());
                is_of_events(name)
            }
        };
        if self.mode == Mode::Enforce || as_it_is {
            return Cow::Borrowed(name);
        }
        let (about, rest) = split_about(name).unwrap_or((&[], name));
        match rest.strip_prefix(&prefix[..]) {
            Some(rest) if about.is_empty() => Cow::Borrowed(rest),
            Some(rest) => Cow::Owned([about, rest].concat()),
            None => Cow::Borrowed(name),
        }
    }

    /// A message on `channel` as the client gets it: channel and payload; `None`: it is not for this namespace.
    #[must_use]
    pub fn message<'a>(
        &self,
        channel: &'a [u8],
        payload: &'a [u8],
    ) -> Option<(Cow<'a, [u8]>, &'a [u8])> {
        if is_of_events(channel) {
            let inside = self.sees(payload);
            let shown = match self.mode {
                Mode::Enforce => payload,
                Mode::Prefix => payload.strip_prefix(self.prefix()).unwrap_or(payload),
            };
            return inside.then_some((Cow::Borrowed(channel), shown));
        }
        let inside = self.sees(about(channel).unwrap_or(channel));
        inside.then(|| (self.outward(channel, IsPattern::No), payload))
    }

    fn outside(&self, command: &Command, word: &[u8], named: Named) -> Refusal {
        let seen = matches!(named, Named::Key(Touch::Write)) && self.sees(word);
        let (ground, what) = match named {
            _ if seen => (Ground::ReadOnly, "key"),
            Named::Key(_) => (Ground::Key, "key"),
            Named::Channel | Named::Target => (Ground::Channel, "channel"),
            Named::KeysByElement | Named::Channels => (Ground::Pattern, "pattern"),
        };
        let name = command.name.replace('|', " ").to_ascii_lowercase();
        let why = if seen { "may only be read by" } else { "is outside of" };
        let text = format!(
            "NOPERM '{name}' names the {what} '{}', which {why} namespace '{}'",
            shown(word),
            self.name
        );
        Refusal { ground, command: command.name, text }
    }

    fn refuse_write(&self, command: &Command) -> Refusal {
        let name = command.name.replace('|', " ").to_ascii_lowercase();
        let text =
            format!("NOPERM '{name}' may write, and namespace '{}' may only be read", self.name);
        Refusal { ground: Ground::ReadOnly, command: command.name, text }
    }

    fn refusal(
        &self,
        command: Option<&Command>,
        words: &[&[u8]],
        ground: Ground,
        why: &str,
    ) -> Refusal {
        let name = match command {
            Some(command) => command.name.replace('|', " ").to_ascii_lowercase(),
            None => shown(words.first().copied().unwrap_or_default()).to_ascii_lowercase(),
        };
        let remedy = match ground {
            Ground::Size => {
                format!("most: {} bytes, redis.namespaces.value_bytes", self.value_bytes)
            }
            _ if command.is_some_and(|command| command.way == Way::Stream) => {
                "send it as the user of the URL".to_owned()
            }
            _ => "if it must be, list it in the namespace's allow".to_owned(),
        };
        let text =
            format!("NOPERM '{name}' {why}; it is refused in namespace '{}' ({remedy})", self.name);
        Refusal { ground, command: command.map_or("other", |command| command.name), text }
    }
}

/// Whether a name is a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsPattern {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Not of the data, and yet not only read.
fn is_told_to_others(command: &Command) -> bool {
    matches!(command.name, "PUBLISH" | "SPUBLISH" | "EVAL" | "EVALSHA" | "FCALL")
}

fn shown(word: &[u8]) -> String {
    let cut = &word[..word.len().min(SHOWN_BYTES)];
    String::from_utf8_lossy(cut).replace(|letter: char| letter.is_control(), " ")
}

/// The beginnings of the channels on which the server tells what happens to keys. Source: Redis documentation, "Redis
/// keyspace notifications".
const SPACE: &[u8] = b"__keyspace@";
const EVENT: &[u8] = b"__keyevent@";

/// Whether on this channel the key is the message.
fn is_of_events(channel: &[u8]) -> bool {
    channel.starts_with(EVENT)
}

/// Whether a pattern may fit channels that tell of any key: which ones is seen in each message.
fn may_be_of_events(pattern: &[u8]) -> bool {
    let head = glob::head(pattern);
    let may_be = |begins: &[u8]| {
        head.starts_with(begins) || (begins.starts_with(&head) && head.starts_with(b"__key"))
    };
    may_be(EVENT) || (may_be(SPACE) && split_about(pattern).is_none())
}

/// The channel of what happens to one key, or a pattern of keys: up to the key, and the key.
fn split_about(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = name.strip_prefix(SPACE)?;
    let at = memchr::memmem::find(rest, b"__:")?;
    Some(name.split_at(SPACE.len() + at + 3))
}

fn about(name: &[u8]) -> Option<&[u8]> {
    split_about(name).map(|(_, key)| key)
}

#[cfg(test)]
mod tests;
