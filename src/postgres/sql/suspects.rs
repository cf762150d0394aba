//! What a query was found to say: which things it may leave behind, and their names.

use super::SettingName;

/// What a query may leave behind, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspects(u32);

impl Suspects {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A changed setting: SET, RESET, `set_config()`.
    pub const SETTING: Self = Self(1);
    /// A LISTEN.
    pub const LISTEN: Self = Self(1 << 1);
    /// A statement made by SQL's PREPARE.
    pub const PREPARE: Self = Self(1 << 2);
    /// A cursor WITH HOLD.
    pub const CURSOR: Self = Self(1 << 3);
    /// A temporary table, view, function or sequence.
    pub const TEMPORARY: Self = Self(1 << 4);
    /// An advisory lock of the session.
    pub const ADVISORY_LOCK: Self = Self(1 << 5);
    /// A library loaded by LOAD.
    pub const LOAD: Self = Self(1 << 6);
    /// A seed of `random()`.
    pub const SEED: Self = Self(1 << 7);
    /// A named connection of the dblink extension.
    pub const DBLINK: Self = Self(1 << 8);
    /// A custom setting whose name can't be told.
    pub const UNNAMED_SETTING: Self = Self(1 << 9);
    /// A changed function, procedure or trigger.
    pub const ROUTINE: Self = Self(1 << 10);
    /// A call of `currval()` or `lastval()`: it reads what the session's sequences gave last.
    pub const SEQUENCE_READ: Self = Self(1 << 18);
    /// What may draw from a sequence.
    pub const SEQUENCE_DRAW: Self = Self(1 << 19);
    /// An UNLISTEN.
    pub const UNLISTEN: Self = Self(1 << 16);
    /// What may take something of the above away.
    pub const RELEASE: Self = Self(1 << 17);
    /// A RESET: back to what the connection had at login.
    pub const RESET: Self = Self(1 << 13);
    /// As [`Suspects::RESET`], of the role or the session's user. RESET ALL does not reset these.
    pub const RESET_IDENTITY: Self = Self(1 << 12);
    /// DISCARD ALL, which takes all of the above away.
    pub const DISCARD_ALL: Self = Self(1 << 14);
    /// DEALLOCATE ALL.
    pub const DEALLOCATE_ALL: Self = Self(1 << 15);

    /// What a block of code may leave behind that can be asked about.
    pub(super) const OF_A_BLOCK: Self = Self(
        Self::SETTING.0
            | Self::LISTEN.0
            | Self::TEMPORARY.0
            | Self::ADVISORY_LOCK.0
            | Self::CURSOR.0
            | Self::PREPARE.0
            | Self::SEQUENCE_DRAW.0,
    );

    const REASONS: [(Self, &'static str); 10] = [
        (Self::SETTING, "setting"),
        (Self::UNNAMED_SETTING, "unnamed_setting"),
        (Self::LISTEN, "listen"),
        (Self::PREPARE, "prepare"),
        (Self::CURSOR, "cursor_with_hold"),
        (Self::TEMPORARY, "temporary_object"),
        (Self::ADVISORY_LOCK, "advisory_lock"),
        (Self::LOAD, "load"),
        (Self::SEED, "setseed"),
        (Self::DBLINK, "dblink"),
    ];

    /// Whether nothing is suspected.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any of `other` is in this set.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Adds all of `other`.
    pub const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Those that may still keep a backend with its session when the server has been asked; settings and routines don't.
    #[must_use]
    pub fn lasting(self) -> Self {
        self.pins().without(Self::SETTING).without(Self::ROUTINE)
    }

    /// Those that keep a backend with its session.
    #[must_use]
    pub fn pins(self) -> Self {
        let passing = Self::RESET.0
            | Self::RESET_IDENTITY.0
            | Self::DISCARD_ALL.0
            | Self::DEALLOCATE_ALL.0
            | Self::UNLISTEN.0
            | Self::SEQUENCE_READ.0
            | Self::SEQUENCE_DRAW.0
            | Self::RELEASE.0;
        Self(self.0 & !passing)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The first reason for a pin, as metrics name it.
    #[must_use]
    pub fn reason(self) -> Option<&'static str> {
        Self::REASONS.iter().find(|(one, _)| self.intersects(*one)).map(|(_, reason)| *reason)
    }
}

/// What a query was found to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What it may leave behind.
    pub suspects: Suspects,
    /// Statements it names in DEALLOCATE.
    pub deallocates: Vec<Box<[u8]>>,
    /// Statements it names in EXECUTE.
    pub executes: Vec<Box<[u8]>>,
    /// Custom settings that it may change.
    pub settings: Vec<SettingName>,
    /// What it names in UNLISTEN, one for each.
    pub unlistens: Vec<Unlisten>,
    /// As [`Findings::unlistens`], where no command tag tells whether they have run: in blocks and routines.
    pub unlistens_within: Vec<Unlisten>,
}

impl Findings {
    /// Adds what another query, or a routine that is called, was found to say.
    pub(super) fn add(&mut self, other: &Self) {
        self.suspects.insert(other.suspects);
        add_new(&mut self.settings, &other.settings);
        add_new(&mut self.deallocates, &other.deallocates);
        add_new(&mut self.unlistens_within, &other.unlistens);
        add_new(&mut self.unlistens_within, &other.unlistens_within);
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }
}

fn add_new<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
    for one in from {
        if !to.contains(one) {
            to.push(one.clone());
        }
    }
}

/// What an UNLISTEN names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlisten {
    /// Every channel.
    All,
    /// One.
    Channel(Box<[u8]>),
}
