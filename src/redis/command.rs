//! How each command is carried: on a shared lane, by the session itself, or on a backend of its own.
//!
//! The rule: a command may share a lane when its reply comes at once and it leaves nothing behind on the connection.
//! What is not in the table might do either, so it gets a backend of its own for its time (safe), and that backend is
//! reset before anybody else uses it.

mod places;
mod spec;
mod table;

use std::time::Duration;

pub use places::{Named, names};
pub use spec::{Access, Begins, Channels, Command, Flags, KeySpec, Keys, Touch, Way};
use table::COMMANDS;

/// How a command travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriage {
    /// With everybody else's, on a lane.
    Lane,
    /// Answered by the session.
    Session(Word),
    /// On a backend of its own, for a reason.
    Pinned(Reason),
    /// Not carried at all; the text says what to do instead.
    Refused(&'static str),
}

/// A command that the session answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// HELLO.
    Hello,
    /// AUTH.
    Auth,
    /// SELECT.
    Select,
    /// RESET.
    Reset,
    /// QUIT.
    Quit,
    /// CLIENT SETNAME.
    SetName,
    /// CLIENT GETNAME.
    GetName,
    /// CLIENT ID.
    Id,
    /// CLIENT SETINFO.
    SetInfo,
    /// CLIENT INFO.
    Info,
    /// CLIENT LIST.
    List,
    /// CLIENT KILL.
    Kill,
    /// CLIENT NO-EVICT: a hint about this one connection.
    NoEvict,
    /// CLIENT REPLY ON, which changes nothing.
    ReplyOn,
    /// CLIENT MAINT_NOTIFICATIONS, which libraries ask for in their handshake: of a connection that is not theirs alone
    /// there is nothing to notify.
    MaintNotifications,
}

/// Why a command needs a backend of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// WATCH, MULTI: until the transaction has ended.
    Transaction,
    /// May block: until it is answered.
    Blocking,
    /// WAIT, WAITAOF: about the connection's own writes, until answered.
    Wait,
    /// The SUBSCRIBE family: until nothing is subscribed.
    Subscription,
    /// MONITOR, PSYNC, CLIENT TRACKING, CLIENT REPLY OFF: the stream is no longer one reply per command,
    /// until the client leaves.
    Stream,
    /// CLIENT TRACKING in a namespace, where what comes unasked is looked at: until it is off.
    Tracking,
    /// Too large to hold in memory: until it is answered.
    Large,
    /// A database number that the server was not asked about yet: until answered.
    Database,
    /// SCRIPT KILL, FUNCTION KILL: until answered.
    Kill,
    /// Not in the table: until answered, and reset afterwards.
    Unknown,
}

impl Reason {
    /// Whether the hold ends by what its client has sent and the server does, without waiting for somebody else.
    #[must_use]
    pub fn ends_soon(self) -> bool {
        matches!(self, Self::Transaction | Self::Large | Self::Database | Self::Kill)
    }

    /// Whether the hold may last long, whatever its client does.
    #[must_use]
    pub fn may_last(self) -> bool {
        matches!(
            self,
            Self::Blocking | Self::Wait | Self::Subscription | Self::Stream | Self::Tracking
        )
    }

    /// The word for metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Blocking => "blocking",
            Self::Wait => "wait",
            Self::Subscription => "subscription",
            Self::Stream => "stream",
            Self::Tracking => "tracking",
            Self::Large => "large",
            Self::Database => "database",
            Self::Kill => "kill",
            Self::Unknown => "unknown",
        }
    }
}

/// What a command means to a transaction on a backend of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// WATCH.
    Watch,
    /// UNWATCH.
    Unwatch,
    /// MULTI.
    Multi,
    /// EXEC.
    Exec,
    /// DISCARD.
    Discard,
    /// Any other.
    Other,
}

/// Longest name in the table, bytes.
const NAME_LIMIT: usize = 32;

const UNBLOCK: &str = "ERR tidegate: CLIENT UNBLOCK can't stand inside MULTI, nor in a pool of one connection; \
     send it before the transaction or behind it, and set redis.pool_size to 2 or more";

/// Upper-case copy of a name, or of two with a bar between; empty when it is too long to be any of the table.
struct Upper {
    bytes: [u8; NAME_LIMIT],
    length: usize,
}

impl Upper {
    fn new(word: &[u8]) -> Self {
        let mut upper = Self { bytes: [0; NAME_LIMIT], length: 0 };
        upper.push(word);
        upper
    }

    /// The name of a container's subcommand.
    fn join(container: &[u8], subcommand: &[u8]) -> Self {
        let mut upper = Self::new(container);
        upper.push(b"|");
        upper.push(subcommand);
        upper
    }

    fn push(&mut self, word: &[u8]) {
        let end = self.length + word.len();
        let Some(place) = self.bytes.get_mut(self.length..end) else {
            self.length = 0;
            return;
        };
        for (to, from) in place.iter_mut().zip(word) {
            *to = from.to_ascii_uppercase();
        }
        self.length = end;
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A name as one number, for comparison with others that begin with a letter and are shorter than nine.
pub(super) const fn packed(name: &[u8]) -> u64 {
    let mut number = 0;
    let mut at = 0;
    while at < name.len() {
        // Letters of both cases come to the same.
        number = (number << 8) | (name[at] & 0xdf) as u64;
        at += 1;
    }
    number
}

/// They go over a lane, whatever their arguments: without a search.
const COMMON: &[u64] = &[
    packed(b"GET"),
    packed(b"SET"),
    packed(b"DEL"),
    packed(b"INCR"),
    packed(b"EXPIRE"),
    packed(b"HGET"),
    packed(b"HSET"),
    packed(b"PING"),
    packed(b"MGET"),
];

/// Whether it is one of the most common commands, which go over a lane and need no look at their words.
pub(super) fn is_common(name: &[u8]) -> bool {
    // What begins with a nought would pack like what follows it.
    name.len() <= 8
        && name.first().is_some_and(u8::is_ascii_alphabetic)
        && COMMON.contains(&packed(name))
}

fn find(name: &[u8]) -> Option<&'static Command> {
    let found = COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(name));
    COMMANDS.get(found.ok()?)
}

/// What the table says of a command; of a container's, of the subcommand that it names.
#[must_use]
pub fn look_up(words: &[&[u8]]) -> Option<&'static Command> {
    let (&name, rest) = words.split_first()?;
    let command = find(Upper::new(name).as_slice())?;
    let Some(sub) = rest.first().filter(|_| command.flags.has(Flags::CONTAINER)) else {
        return Some(command);
    };
    find(Upper::join(name, sub).as_slice())
}

/// All commands of the table, by name.
#[must_use]
pub fn all() -> &'static [Command] {
    COMMANDS
}

/// How the command with these arguments is carried. `arguments` begins with the name and may be cut short when the
/// command is too large to be held; what follows decides only for XREAD, XREADGROUP and CLIENT.
pub fn carriage<'a>(mut arguments: impl Iterator<Item = &'a [u8]>) -> Carriage {
    let name = arguments.next().unwrap_or_default();
    if is_common(name) { Carriage::Lane } else { uncommon_carriage(name, arguments) }
}

/// The same, of a command that isn't [`is_common`], with what follows its name.
pub(super) fn uncommon_carriage<'a>(
    name: &[u8],
    mut arguments: impl Iterator<Item = &'a [u8]>,
) -> Carriage {
    let name = Upper::new(name);
    let name = name.as_slice();
    match name {
        b"CLIENT" => return client(arguments.next().unwrap_or_default(), arguments.next()),
        b"SCRIPT" | b"FUNCTION" => return about_scripts(arguments.next().unwrap_or_default()),
        _ => {}
    }
    match find(name) {
        Some(command) if command.way == Way::BlockingIfTold => streams(arguments),
        Some(command) => carried(command),
        None if is_of_module(name) => Carriage::Lane,
        None => Carriage::Pinned(Reason::Unknown),
    }
}

fn carried(command: &Command) -> Carriage {
    match command.way {
        Way::Lane => Carriage::Lane,
        Way::Session => {
            word(command.name).map_or(Carriage::Pinned(Reason::Unknown), Carriage::Session)
        }
        Way::Transaction => Carriage::Pinned(Reason::Transaction),
        Way::Blocking | Way::BlockingIfTold => Carriage::Pinned(Reason::Blocking),
        Way::Wait => Carriage::Pinned(Reason::Wait),
        Way::Subscription => Carriage::Pinned(Reason::Subscription),
        Way::Stream => Carriage::Pinned(Reason::Stream),
        Way::Refused => Carriage::Refused(UNBLOCK),
        Way::Unknown => Carriage::Pinned(Reason::Unknown),
    }
}

/// The session's own answer to a command of this name.
fn word(name: &str) -> Option<Word> {
    Some(match name {
        "HELLO" => Word::Hello,
        "AUTH" => Word::Auth,
        "SELECT" => Word::Select,
        "RESET" => Word::Reset,
        "QUIT" => Word::Quit,
        "CLIENT|SETNAME" => Word::SetName,
        "CLIENT|GETNAME" => Word::GetName,
        "CLIENT|ID" => Word::Id,
        "CLIENT|SETINFO" => Word::SetInfo,
        "CLIENT|INFO" => Word::Info,
        "CLIENT|LIST" => Word::List,
        "CLIENT|KILL" => Word::Kill,
        "CLIENT|NO-EVICT" => Word::NoEvict,
        _ => return None,
    })
}

/// What ends a script must not stand behind it on the lane where the script's reply is awaited.
fn about_scripts(subcommand: &[u8]) -> Carriage {
    let kills = subcommand.eq_ignore_ascii_case(b"KILL");
    if kills { Carriage::Pinned(Reason::Kill) } else { Carriage::Lane }
}

fn client(subcommand: &[u8], value: Option<&[u8]>) -> Carriage {
    let name = Upper::join(b"CLIENT", subcommand);
    let says = |word: &[u8]| value.is_some_and(|value| value.eq_ignore_ascii_case(word));
    match name.as_slice() {
        b"CLIENT|" => Carriage::Lane,
        b"CLIENT|MAINT_NOTIFICATIONS" => Carriage::Session(Word::MaintNotifications),
        b"CLIENT|REPLY" if says(b"ON") => Carriage::Session(Word::ReplyOn),
        b"CLIENT|TRACKING" if says(b"OFF") => Carriage::Lane,
        name => find(name).map_or(Carriage::Pinned(Reason::Unknown), carried),
    }
}

/// How long an XREAD or XREADGROUP waits, and its words without that: then it takes what is there. `None` if it waits for ever, or
/// is not understood.
#[must_use]
pub fn read_at_once<'a>(words: &[&'a [u8]]) -> Option<(Duration, Vec<&'a [u8]>)> {
    let (at, time) = place_of_time(words)?;
    Some((time, [words.get(..at.checked_sub(1)?)?, words.get(at + 1..)?].concat()))
}

/// Which word of an XREAD or XREADGROUP tells in milliseconds how long it waits, and how long that is. `None` if it waits for ever,
/// or is not understood.
#[must_use]
pub fn place_of_time(words: &[&[u8]]) -> Option<(usize, Duration)> {
    let says = |at: usize, text: &str| {
        words.get(at).is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()))
    };
    // Behind the name; of XREADGROUP, behind GROUP and two names, too.
    let mut at = match (says(0, "XREAD"), says(0, "XREADGROUP") && says(1, "GROUP")) {
        (true, _) => 1,
        (_, true) => 4,
        _ => return None,
    };
    let mut found = None;
    while !says(at, "STREAMS") {
        at += match (says(at, "BLOCK"), says(at, "COUNT"), says(at, "NOACK")) {
            (true, ..) if found.is_none() => {
                found = Some((at + 1, milliseconds(words.get(at + 1)?)?));
                2
            }
            (_, true, _) => 2,
            (.., true) => 1,
            _ => return None,
        };
    }
    found.filter(|(_, time)| !time.is_zero())
}

fn milliseconds(word: &[u8]) -> Option<Duration> {
    let plain = word.len() < 12 && word.iter().all(u8::is_ascii_digit);
    let number = plain.then(|| std::str::from_utf8(word).ok()?.parse().ok())?;
    number.map(Duration::from_millis)
}

fn streams<'a>(mut arguments: impl Iterator<Item = &'a [u8]>) -> Carriage {
    // A group or consumer may be called "block"; then the command is pinned needlessly, which is safe.
    let blocks = arguments
        .by_ref()
        .take_while(|word| !word.eq_ignore_ascii_case(b"STREAMS"))
        .any(|word| word.eq_ignore_ascii_case(b"BLOCK"));
    if blocks { Carriage::Pinned(Reason::Blocking) } else { Carriage::Lane }
}

/// What the command called `name` means inside a transaction.
#[must_use]
pub fn step(name: &[u8]) -> Step {
    match Upper::new(name).as_slice() {
        b"WATCH" => Step::Watch,
        b"UNWATCH" => Step::Unwatch,
        b"MULTI" => Step::Multi,
        b"EXEC" => Step::Exec,
        b"DISCARD" => Step::Discard,
        _ => Step::Other,
    }
}

/// Whether this is CLIENT TRACKING, on or off.
#[must_use]
pub fn is_tracking(words: &[&[u8]]) -> bool {
    look_up(words).is_some_and(|command| command.name == "CLIENT|TRACKING")
}

/// Whether `name` gives up subscriptions.
#[must_use]
pub fn is_unsubscribe(name: &[u8]) -> bool {
    matches!(Upper::new(name).as_slice(), b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE")
}

/// The bundled data-structure modules: their commands are plain key commands.
fn is_of_module(name: &[u8]) -> bool {
    let family = name.split(|byte| *byte == b'.').next().unwrap_or_default();
    family.len() < name.len()
        && matches!(family, b"JSON" | b"BF" | b"CF" | b"CMS" | b"TOPK" | b"TDIGEST" | b"TS" | b"FT")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Carriage {
        carriage(line.split(' ').map(str::as_bytes))
    }

    #[test]
    fn a_librarys_handshake_needs_no_backend() {
        for line in [
            "HELLO 3",
            "CLIENT SETINFO LIB-NAME redis-py",
            "client setname worker",
            "CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type internal-ip",
            "SELECT 1",
        ] {
            assert!(matches!(of(line), Carriage::Session(_)), "{line}");
        }
    }

    #[test]
    fn plain_commands_share_a_lane_in_any_case() {
        for line in
            ["GET a", "set a b", "ZRevRangeByScore k 1 2", "json.get k", "EVAL x 0", "CLIENT HELP"]
        {
            assert_eq!(of(line), Carriage::Lane, "{line}");
        }
    }

    #[test]
    fn a_read_of_streams_is_told_without_its_waiting() {
        let of = |line: &'static str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let (time, words) = read_at_once(&words)?;
            Some((time.as_millis(), String::from_utf8(words.join(&b' ')).unwrap()))
        };
        let told = |millis, line: &str| Some((millis, line.to_owned()));
        let line = "xread count 1 block 20 streams BLOCK 3 0 0";
        assert_eq!(of(line), told(20, "xread count 1 streams BLOCK 3 0 0"));
        let line = "XREADGROUP GROUP block count NOACK BLOCK 7 COUNT 9 STREAMS s >";
        assert_eq!(of(line), told(7, "XREADGROUP GROUP block count NOACK COUNT 9 STREAMS s >"));
        for line in [
            "XREAD BLOCK 0 STREAMS s $",
            "XREAD STREAMS s 0",
            "XREAD BLOCK -1 STREAMS s 0",
            "XREAD BLOCK 1 BLOCK 1 STREAMS s 0",
            "XREAD BLOCK 1",
            "XREAD BLOCK",
            "XREADGROUP BLOCK 1 STREAMS s >",
            "BLPOP a 1",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn state_and_blocking_get_a_backend_of_their_own() {
        let blocking = Carriage::Pinned(Reason::Blocking);
        assert_eq!(of("BLPOP a 0"), blocking);
        assert_eq!(of("XREAD COUNT 1 block 0 STREAMS s $"), blocking);
        assert_eq!(of("XREAD STREAMS block 0"), Carriage::Lane);
        assert_eq!(of("XREADGROUP GROUP g c BLOCK 10 STREAMS s >"), blocking);
        assert_eq!(of("MULTI"), Carriage::Pinned(Reason::Transaction));
        assert_eq!(of("SSUBSCRIBE c"), Carriage::Pinned(Reason::Subscription));
        assert_eq!(of("CLIENT REPLY OFF"), Carriage::Pinned(Reason::Stream));
        assert_eq!(of("script kill"), Carriage::Pinned(Reason::Kill));
        assert_eq!(of("FUNCTION KILL"), Carriage::Pinned(Reason::Kill));
        assert_eq!(of("SCRIPT EXISTS kill"), Carriage::Lane);
        assert_eq!(of("CLIENT TRACKING ON"), Carriage::Pinned(Reason::Stream));
        assert_eq!(of("CLIENT TRACKING"), Carriage::Pinned(Reason::Stream));
        assert!(matches!(of("CLIENT UNBLOCK 3"), Carriage::Refused(_)));
        assert_eq!(of("CLIENT KILL ID 3"), Carriage::Session(Word::Kill));
    }

    #[test]
    fn the_table_is_in_order_and_holds_no_name_that_is_too_long() {
        assert!(COMMANDS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(COMMANDS.iter().all(|command| command.name.len() <= NAME_LIMIT));
        for command in COMMANDS.iter().filter(|command| command.way == Way::Session) {
            assert!(word(command.name).is_some(), "{}", command.name);
        }
    }

    #[test]
    fn a_subcommand_is_found_behind_its_container() {
        let name = |words: &[&str]| {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            look_up(&words).map(|command| command.name)
        };
        assert_eq!(name(&["config", "get", "x"]), Some("CONFIG|GET"));
        assert_eq!(name(&["config", "nothing"]), None);
        assert_eq!(name(&["config"]), Some("CONFIG"));
        assert_eq!(name(&["Get", "config"]), Some("GET"));
        assert_eq!(name(&["get|config"]), None);
        assert_eq!(name(&[]), None);
        assert!(
            look_up(&[b"SET"]).is_some_and(|set| !set.takes(2) && set.takes(3) && set.takes(9))
        );
    }

    #[test]
    fn what_is_not_known_is_pinned() {
        let unknown = Carriage::Pinned(Reason::Unknown);
        assert_eq!(of("NOSUCH a"), unknown);
        assert_eq!(of("RG.PYEXECUTE x"), unknown);
        assert_eq!(of("A-NAME-THAT-IS-MUCH-LONGER-THAN-ANY-OTHER a"), unknown);
        assert_eq!(of(""), unknown);
    }
}
