//! What a client of one namespace says to get at another's: every command, in every form, with the names of both, and the tricks
//! that have worked elsewhere.

use tidegate::redis::command::{Command, Flags, all};

use super::chance::Chance;

/// What the attacker says in one try.
#[derive(Debug, Clone)]
pub struct Attack {
    /// Commands of one write.
    pub commands: Vec<Vec<Vec<u8>>>,
    /// Sent as lines.
    pub inline: bool,
}

impl Attack {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for words in &self.commands {
            if self.inline {
                bytes.extend_from_slice(&words.join(&b' '));
                bytes.extend_from_slice(b"\r\n");
                continue;
            }
            bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
            for word in words {
                bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend_from_slice(word);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        bytes
    }

    pub fn shown(&self) -> String {
        let line = |words: &Vec<Vec<u8>>| {
            words
                .iter()
                .map(|word| format!("{:?}", String::from_utf8_lossy(word)))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let lines: Vec<String> = self.commands.iter().map(line).collect();
        format!("{}{}", if self.inline { "inline " } else { "" }, lines.join("; "))
    }
}

/// Names that are the victim's, or reach them.
const THEIRS: &[&str] = &[
    "queue:string",
    "queue:list",
    "queue:set",
    "queue:zset",
    "queue:hash",
    "queue:stream",
    "queue:wait",
    "queue:news",
    "queue:new",
    "queue:*",
    "queue:stri?g",
    "[q]ueue:*",
    "q*",
    "*",
    "**",
    "?*",
    "[^x]*",
    "\\queue:*",
    "*:string",
    "__keyspace@0__:queue:string",
    "__keyspace@0__:*",
    "__keyevent@0__:set",
    "__keyevent@*__:*",
    "__key*__:*",
    "__*",
    "__keyspace@*__:queue:*",
    "__keyspace@0__:queue:x__:cache:*",
];
/// Names that are the attacker's own.
const OWN: &[&str] = &[
    "cache:string",
    "cache:list",
    "cache:set",
    "cache:zset",
    "cache:hash",
    "cache:stream",
    "cache:news",
    "cache:other",
    "cache:*",
    "cache:",
    "cache:{queue:string}",
    "cache:*->queue:string",
];
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "10",
    "-1",
    "100",
    "1.5",
    "+2",
    "02",
    "9223372036854775807",
    "(1",
    "+inf",
    "-",
    "+",
];
const OPTIONS: &[&str] = &[
    "STORE",
    "STOREDIST",
    "BY",
    "GET",
    "#",
    "LIMIT",
    "ASC",
    "DESC",
    "ALPHA",
    "STREAMS",
    "GROUP",
    "BLOCK",
    "COUNT",
    "MATCH",
    "TYPE",
    "string",
    "list",
    "NOVALUES",
    "KEYS",
    "AUTH",
    "AUTH2",
    "COPY",
    "REPLACE",
    "DB",
    "NX",
    "XX",
    "GT",
    "CH",
    "INCR",
    "WITHSCORES",
    "WEIGHTS",
    "AGGREGATE",
    "SUM",
    "LEFT",
    "RIGHT",
    "MIN",
    "MAX",
    "BEFORE",
    "AFTER",
    "EX",
    "PX",
    "KEEPTTL",
    "FROMMEMBER",
    "FROMLONLAT",
    "BYRADIUS",
    "BYBOX",
    "km",
    "m",
    "ANY",
    "NOMKSTREAM",
    "MAXLEN",
    "MINID",
    "~",
    "=",
    "*",
    ">",
    "$",
    "0-0",
    "IDLE",
    "TIME",
    "FORCE",
    "JUSTID",
    "LASTID",
    "ENTRIESREAD",
    "MKSTREAM",
    "ON",
    "OFF",
    "BCAST",
    "PREFIX",
    "REDIRECT",
    "OPTIN",
    "NOLOOP",
    "SKIP",
    "YES",
    "NO",
    "ID",
    "ADDR",
    "USER",
    "SKIPME",
    "ASYNC",
    "SYNC",
    "SAMPLES",
    "AND",
    "OR",
    "NOT",
    "g",
    "c",
    "f",
    "m1",
    "default",
    "127.0.0.1",
    "ABSTTL",
    "FREQ",
    "IDX",
    "LEN",
    "FIELDS",
    "PERSIST",
    "WITHVALUES",
    "REV",
    "BYSCORE",
    "BYLEX",
    "[a",
    "[z",
    "requirepass",
    "maxmemory",
    "*",
    "databases",
    "LIB-NAME",
];
const SCRIPTS: &[&str] = &[
    "return redis.call('GET','queue:string')",
    "return redis.call('KEYS','*')",
    "return redis.pcall('SET','queue:string','x')",
    "return _G.redis.call('GET','queue:string')",
    "return loadstring(\"return redis.call('GET','queue:string')\")()",
    "return redis.call(KEYS[1],ARGV[1])",
    "return redis.call('FLUSHALL')",
    "return redis.call('DEL',unpack(redis.call('KEYS','*')))",
    "return redis.call('PUBLISH','queue:news','x')",
    "local f=coroutine.wrap(function() return redis.call('GET','queue:string') end) return f()",
    "end redis.call('SET','queue:string','x') do",
    "return getfenv(0).redis.call('GET','queue:string')",
    "#!lua flags=allow-cross-slot-keys\nreturn redis.call('GET','queue:string')",
    "return redis.call('SORT','cache:list','BY','nosort','GET','queue:*')",
    "return redis.call('RANDOMKEY')",
    "return redis.call('SCAN',0)",
];

pub fn attack(chance: &mut Chance) -> Attack {
    let commands = match chance.weighted(&[(1, 0), (1, 1), (1, 2), (7, 3), (1, 4)]) {
        0 => vec![words(&["MULTI"]), command(chance), command(chance), words(&["EXEC"])],
        1 => vec![
            words(&["WATCH", chance.pick(OWN)]),
            words(&["MULTI"]),
            command(chance),
            words(&["EXEC"]),
            words(&["UNWATCH"]),
        ],
        4 => {
            let mut on = words(&["CLIENT", "TRACKING", "ON"]);
            match chance.below(3) {
                0 => {}
                1 => on.extend(words(&["BCAST"])),
                _ => on.extend(words(&["BCAST", "PREFIX", chance.pick(THEIRS)])),
            }
            vec![words(&["HELLO", "3"]), on, command(chance), command(chance), command(chance)]
        }
        2 => (0..2 + chance.below(4)).map(|_| command(chance)).collect(),
        _ => vec![command(chance)],
    };
    let plain = |word: &Vec<u8>| {
        !word.is_empty()
            && word.iter().all(|byte| byte.is_ascii_graphic() && !b"\"'\\".contains(byte))
    };
    let inline = chance.often(8)
        && commands.iter().flatten().all(plain)
        && !commands.iter().any(|words| words[0][0] == b'*');
    Attack { commands, inline }
}

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// Commands that end or hold the attacker's own connection, after which it would try nothing for a while.
fn is_of_no_use(command: &Command) -> bool {
    matches!(
        command.name,
        "QUIT" | "CLIENT|KILL" | "SHUTDOWN" | "WAIT" | "WAITAOF" | "CLIENT|PAUSE"
    )
}

fn command(chance: &mut Chance) -> Vec<Vec<u8>> {
    let table = all();
    let command = loop {
        let command = &table[chance.below(table.len())];
        if !is_of_no_use(command) {
            break command;
        }
    };
    let mut made: Vec<Vec<u8>> = command.name.split('|').map(|word| cased(word, chance)).collect();
    let least = usize::from(command.arity.unsigned_abs()).max(made.len());
    let more = if command.arity < 0 || chance.often(5) { chance.below(6) } else { 0 };
    let blocks = command.flags.has(Flags::BLOCKING);
    while made.len() < least + more {
        let word = match chance.below(20) {
            0..8 => chance.pick(THEIRS),
            8..12 => chance.pick(OWN),
            12..15 => chance.pick(NUMBERS),
            15..19 => chance.pick(OPTIONS),
            _ => "",
        };
        made.push(if chance.often(5) { cased(word, chance) } else { word.as_bytes().to_vec() });
    }
    if command.name.starts_with("EVAL") || command.name == "SCRIPT|LOAD" {
        let at = if command.name == "SCRIPT|LOAD" { 2 } else { 1 };
        made[at] = chance.pick(SCRIPTS).as_bytes().to_vec();
    }
    shape(command, &mut made, chance);
    if blocks {
        // Not for long.
        for word in made.iter_mut().skip(1) {
            if *word == b"BLOCK" {
                *word = b"COUNT".to_vec();
            }
        }
        if matches!(command.name, "BLMPOP" | "BZMPOP") {
            made[1] = b"0.001".to_vec();
        } else if let Some(last) = made.last_mut().filter(|_| command.name.starts_with('B')) {
            *last = b"0.001".to_vec();
        }
    }
    made
}

/// Half of the commands are made so that the server would take them.
fn shape(command: &Command, made: &mut Vec<Vec<u8>>, chance: &mut Chance) {
    if chance.often(50) {
        return;
    }
    let theirs = chance.pick(THEIRS);
    let shaped: Vec<&str> = match command.name {
        "SORT" | "SORT_RO" => {
            vec![command.name, "cache:list", "BY", "nosort", "GET", theirs, "GET", "#"]
        }
        "XREAD" => vec!["XREAD", "COUNT", "10", "STREAMS", "cache:stream", theirs, "0", "0"],
        "XREADGROUP" => vec!["XREADGROUP", "GROUP", "STREAMS", "c", "STREAMS", theirs, ">"],
        "GEORADIUS" => vec![
            "GEORADIUS",
            "cache:zset",
            "0",
            "0",
            "9999",
            "km",
            "STORE",
            "cache:other",
            "STORE",
            theirs,
        ],
        "COPY" => vec!["COPY", theirs, "cache:other", "REPLACE"],
        "RENAME" => vec!["RENAME", "cache:string", theirs],
        "RESTORE" => vec!["RESTORE", theirs, "0", "x", "REPLACE"],
        "MIGRATE" => vec!["MIGRATE", "127.0.0.1", "6379", "", "0", "10", "COPY", "KEYS", theirs],
        "EVAL" => vec!["EVAL", chance.pick(SCRIPTS), "1", theirs, theirs],
        "SCAN" => vec!["SCAN", "0", "MATCH", theirs, "COUNT", "1000"],
        "MGET" | "DEL" | "UNLINK" | "EXISTS" | "TOUCH" | "SUNION" | "SINTER" | "PFCOUNT"
        | "WATCH" => {
            vec![command.name, "cache:string", theirs]
        }
        "MSET" | "MSETNX" => vec![command.name, "cache:string", "x", theirs, "x"],
        "ZUNIONSTORE" | "ZINTERSTORE" => {
            vec![command.name, theirs, "2", "cache:zset", "queue:zset"]
        }
        "LMPOP" | "ZMPOP" => {
            let end = if command.name == "LMPOP" { "LEFT" } else { "MIN" };
            vec![command.name, "2", "cache:none", theirs, end]
        }
        "BITOP" => vec!["BITOP", "OR", "cache:other", theirs],
        "SMOVE" => vec!["SMOVE", "queue:set", "cache:set", "m1"],
        "LMOVE" => vec!["LMOVE", "queue:list", "cache:list", "LEFT", "RIGHT"],
        "PUBLISH" => vec!["PUBLISH", theirs, "forged"],
        "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" => vec![command.name, theirs],
        "SELECT" => vec!["SELECT", chance.pick(&["0", "0", "1"])],
        "HELLO" => vec!["HELLO", chance.pick(&["2", "3"])],
        "AUTH" => vec!["AUTH", "queue", "guessed"],
        "OBJECT|ENCODING" => vec!["OBJECT", "ENCODING", theirs],
        "DUMP" => vec!["DUMP", theirs],
        _ => return,
    };
    *made = words(&shaped);
}

fn cased(word: &str, chance: &mut Chance) -> Vec<u8> {
    match chance.below(4) {
        0 => word.to_ascii_lowercase().into_bytes(),
        1 => word
            .bytes()
            .map(|byte| if chance.often(50) { byte.to_ascii_lowercase() } else { byte })
            .collect(),
        _ => word.as_bytes().to_vec(),
    }
}
