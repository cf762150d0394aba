//! Which commands a namespace lets through, and why others are refused.

use crate::redis::command::{Command, Flags, Way};

/// What is to be done about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// It touches nothing.
    Keyless,
    /// It touches what it names.
    Names,
    /// It is about the whole database, of which the namespace is shown.
    Whole(Whole),
    /// It has the client told of changes.
    Tracking,
    /// It runs a script, or is about scripts.
    Script,
    /// It calls a function, of which nobody knows what it touches.
    Function,
    /// Refused; the text says why.
    Refused(&'static str),
}

/// Commands about the whole database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    Keys,
    Scan,
    RandomKey,
    Size,
    Flush(Reach),
    Channels,
}

/// Which databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    One,
    All,
}

const SERVER: &str = "is about the whole server";
const CONNECTION: &str = "changes how a connection answers, and connections are shared";
const OTHER_DATABASE: &str = "moves keys between databases";
pub(super) const SCRIPTS: &str = "runs or changes code that tidegate can't see through";

/// Without keys or channels, and harmless.
const KEYLESS: &[&str] = &[
    "AUTH",
    // About the client's own tracking; on a connection of others it is an error.
    "CLIENT|CACHING",
    "CLIENT|GETNAME",
    "CLIENT|GETREDIR",
    "CLIENT|ID",
    "CLIENT|INFO",
    "CLIENT|KILL",
    "CLIENT|LIST",
    "CLIENT|NO-EVICT",
    "CLIENT|SETINFO",
    "CLIENT|SETNAME",
    "CLIENT|UNBLOCK",
    "DISCARD",
    "ECHO",
    "EXEC",
    "HELLO",
    "INFO",
    "LASTSAVE",
    "LOLWUT",
    "MULTI",
    "PING",
    "QUIT",
    "RESET",
    "SELECT",
    "TIME",
    "UNWATCH",
    "WAIT",
    "WAITAOF",
];

/// What may be asked of the configuration: nothing secret, nothing about others.
const OPEN_SETTINGS: &[&str] = &[
    "appendonly",
    "databases",
    "maxclients",
    "maxmemory",
    "maxmemory-policy",
    "notify-keyspace-events",
    "proto-max-bulk-len",
    "save",
    "timeout",
];

/// Judges a command by itself.
pub(super) fn policy(command: &Command, words: &[&[u8]]) -> Policy {
    let says = |at: usize, text: &str| {
        words.get(at).is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()))
    };
    let name = command.name;
    match name {
        "KEYS" => Policy::Whole(Whole::Keys),
        "SCAN" => Policy::Whole(Whole::Scan),
        "RANDOMKEY" => Policy::Whole(Whole::RandomKey),
        "DBSIZE" => Policy::Whole(Whole::Size),
        "FLUSHDB" => Policy::Whole(Whole::Flush(Reach::One)),
        "FLUSHALL" => Policy::Whole(Whole::Flush(Reach::All)),
        "PUBSUB|CHANNELS" | "PUBSUB|SHARDCHANNELS" => Policy::Whole(Whole::Channels),
        "COPY" if words.iter().skip(3).any(|word| word.eq_ignore_ascii_case(b"DB")) => {
            Policy::Refused(OTHER_DATABASE)
        }
        "MOVE" | "SWAPDB" => Policy::Refused(OTHER_DATABASE),
        "MIGRATE" => Policy::Refused("sends keys to another server"),
        "CLIENT|REPLY" if says(2, "ON") => Policy::Keyless,
        "CLIENT|TRACKING" if says(2, "OFF") => Policy::Keyless,
        "CLIENT|TRACKINGINFO" => Policy::Names,
        "CLIENT|TRACKING" if command.takes(words.len()) => Policy::Tracking,
        "CONFIG|GET" if words.iter().skip(2).all(|word| is_open(word)) => Policy::Keyless,
        // The server says that a word is missing.
        _ if words.len() == 1 && command.flags.has(Flags::CONTAINER) => Policy::Keyless,
        _ if name.ends_with("|HELP") || name == "COMMAND" || name.starts_with("COMMAND|") => {
            Policy::Keyless
        }
        _ if KEYLESS.contains(&name) => Policy::Keyless,
        "EVAL" | "EVAL_RO" | "EVALSHA" | "EVALSHA_RO" | "SCRIPT|LOAD" | "SCRIPT|EXISTS" => {
            Policy::Script
        }
        "FCALL" | "FCALL_RO" => Policy::Function,
        _ if is_code(name) => Policy::Refused(SCRIPTS),
        _ if command.flags.has(Flags::ADMIN) => Policy::Refused(SERVER),
        _ => match command.way {
            Way::Stream => Policy::Refused(CONNECTION),
            Way::Unknown | Way::Refused => Policy::Refused(SERVER),
            _ if command.keys.is_empty() && !command.flags.has(Flags::PUBSUB) => {
                Policy::Refused(SERVER)
            }
            _ if name == "PUBSUB|NUMPAT" => Policy::Refused("counts the patterns of all"),
            _ => Policy::Names,
        },
    }
}

fn is_open(setting: &[u8]) -> bool {
    OPEN_SETTINGS.iter().any(|name| setting.eq_ignore_ascii_case(name.as_bytes()))
}

fn is_code(name: &str) -> bool {
    matches!(name.split('|').next().unwrap_or_default(), "FUNCTION" | "SCRIPT")
}
