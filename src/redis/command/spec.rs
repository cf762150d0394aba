//! What is known of a command: how many words it has, what it touches, where its keys stand, which way it goes.
//! Source: Redis documentation, "COMMAND" and "Command key specifications".

/// One command, or one subcommand of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// In upper case; of a subcommand, the container's, a bar and its own.
    pub name: &'static str,
    /// Words, the name among them; below nought: at least so many.
    pub arity: i16,
    /// What it does to the data.
    pub access: Access,
    /// What else Redis says of it.
    pub flags: Flags,
    /// How it travels.
    pub way: Way,
    /// Which of its words are channels.
    pub channels: Channels,
    /// Where its keys stand.
    pub keys: &'static [KeySpec],
}

/// What a command does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It only reads.
    Reads,
    /// It may write.
    Writes,
    /// It is not about data; a script is, which nobody knows.
    Neither,
}

/// What Redis says of a command, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// It may wait for data.
    pub const BLOCKING: u16 = 1;
    /// It is refused inside MULTI.
    pub const NO_MULTI: u16 = 1 << 1;
    /// For administrators.
    pub const ADMIN: u16 = 1 << 2;
    /// It is refused in scripts.
    pub const NO_SCRIPT: u16 = 1 << 3;
    /// About publishing and subscribing.
    pub const PUBSUB: u16 = 1 << 4;
    /// Where its keys stand depends on its words.
    pub const MOVABLE_KEYS: u16 = 1 << 5;
    /// It touches keys that it does not name.
    pub const ARBITRARY_KEYS: u16 = 1 << 6;

    /// Its second word names a subcommand.
    pub const CONTAINER: u16 = 1 << 7;

    /// Whether any of `flags` is set.
    #[must_use]
    pub const fn has(self, flags: u16) -> bool {
        self.0 & flags != 0
    }
}

/// How a command travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It answers at once and leaves nothing on the connection.
    Lane,
    /// It is about the client's own session.
    Session,
    /// It begins a transaction, or watches for one.
    Transaction,
    /// It may block.
    Blocking,
    /// It may block if its words say so.
    BlockingIfTold,
    /// It waits for what its connection wrote.
    Wait,
    /// It changes subscriptions.
    Subscription,
    /// Behind it the stream is no longer one reply for each command.
    Stream,
    /// It is not carried.
    Refused,
    /// Nothing is relied upon.
    Unknown,
}

/// Which words of a command are channels; numbers count from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// None.
    None,
    /// This one.
    One(u8),
    /// All from this one on.
    All(u8),
    /// All from this one on, as patterns.
    Patterns(u8),
}

/// Where some of a command's keys stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySpec {
    /// Where to begin.
    pub begins: Begins,
    /// What stands there.
    pub keys: Keys,
    /// What becomes of them.
    pub touch: Touch,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It is read.
    Read,
    /// It may be written.
    Write,
}

/// Where keys begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// At the word with this number, counted from the name.
    At(u8),
    /// Behind this word, looked for from the word with this number on; below nought: from the end, backwards.
    Behind {
        /// In upper case.
        word: &'static str,
        /// Where the search begins.
        from: i8,
    },
    /// Redis does not tell.
    Untold,
}

/// Which words are keys, from where they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Every `step`th word.
    Range {
        /// The last, counted from the first; below nought: counted from the command's end.
        last: i8,
        /// From key to key.
        step: u8,
        /// With a `last` of -1: only this part of the words that are left, as a divisor; 0 and 1: all.
        limit: u8,
    },
    /// As many as a word says.
    Counted {
        /// Where the count stands.
        count: u8,
        /// Where the first key stands.
        first: u8,
        /// From key to key.
        step: u8,
    },
    /// Redis does not tell.
    Untold,
}

/// A row of the table.
#[must_use]
pub(super) const fn command(
    name: &'static str,
    arity: i16,
    access: Access,
    flags: u16,
    way: Way,
    keys: &'static [KeySpec],
) -> Command {
    let channels = Channels::None;
    Command { name, arity, access, flags: Flags(flags), way, channels, keys }
}

/// Keys that are read.
#[must_use]
pub(super) const fn reads(begins: Begins, keys: Keys) -> KeySpec {
    KeySpec { begins, keys, touch: Touch::Read }
}

/// Keys that may be written.
#[must_use]
pub(super) const fn writes(begins: Begins, keys: Keys) -> KeySpec {
    KeySpec { begins, keys, touch: Touch::Write }
}

impl Command {
    pub(super) const fn with(self, channels: Channels) -> Self {
        Self { channels, ..self }
    }

    /// Whether its second word is its only key or channel, whatever its others are.
    #[must_use]
    pub fn names_its_second_word_only(&self) -> bool {
        let first = |spec: &KeySpec| {
            spec.begins == Begins::At(1) && matches!(spec.keys, Keys::Range { last: 0, .. })
        };
        let key = matches!(self.keys, [spec] if first(spec)) && self.channels == Channels::None;
        let channel = self.keys.is_empty() && self.channels == Channels::One(1);
        (key || channel) && !self.flags.has(Flags::MOVABLE_KEYS | Flags::CONTAINER)
    }

    /// Whether a command of so many words is long enough, and not too long.
    #[must_use]
    pub fn takes(&self, words: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { words >= arity } else { words == arity }
    }
}
