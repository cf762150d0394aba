//! What sessions say.

use std::collections::BTreeSet;
use std::fmt;

use tidegate::redis::namespace::{Judgement, Mode, Namespace, Rights, ScriptRule};

use super::chance::Chance;

/// One command.
#[derive(Debug, Clone)]
pub struct Command {
    words: Vec<Vec<u8>>,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Array,
    Inline,
}

impl Command {
    pub fn new(words: &[&str]) -> Self {
        let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        Self { words, form: Form::Array }
    }

    pub fn bytes(&self) -> Vec<u8> {
        if self.form == Form::Inline {
            return [self.words.join(&b' '), b"\r\n".to_vec()].concat();
        }
        let mut bytes = format!("*{}\r\n", self.words.len()).into_bytes();
        for word in &self.words {
            bytes.extend(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        }
        bytes
    }
}

impl fmt::Display for Command {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.form == Form::Inline {
            write!(to, "(inline) ")?;
        }
        for word in &self.words {
            match word.len() {
                ..200 => write!(to, "{} ", word.escape_ascii())?,
                length => write!(to, "({length} bytes) ")?,
            }
        }
        Ok(())
    }
}

/// `{k}` a key, `{l}` one that likely holds a list, and so `{s}` set, `{z}` sorted set, `{h}` hash, `{x}` stream; `{v}` a value, `{i}` a
/// small number, `{f}` a field, `{n}` a large or odd number, `{d}` a database, `{e}` a stream's entry, `{c}` a channel nobody hears.
const TEMPLATES: &[&str] = &[
    "GET {k}",
    "GET {k}",
    "GET {k}",
    "SET {k} {v}",
    "SET {k} {v}",
    "SET {k} {i}",
    "SET {k} {v} NX",
    "SET {k} {v} XX GET",
    "SET {k} {v} EX 10000",
    "SET {k} {v} PX nonsense",
    "SET {k}",
    "SETNX {k} {v}",
    "SETEX {k} 10000 {v}",
    "PSETEX {k} 0 {v}",
    "MGET {k} {k} {k}",
    "MSET {k} {v} {k} {v}",
    "MSET {k} {v} {k}",
    "MSETNX {k} {v} {k} {v}",
    "GETSET {k} {v}",
    "GETDEL {k}",
    "GETEX {k} PERSIST",
    "GETRANGE {k} {i} {n}",
    "SETRANGE {k} {i} {v}",
    "STRLEN {k}",
    "APPEND {k} {v}",
    "INCR {k}",
    "DECR {k}",
    "INCRBY {k} {n}",
    "DECRBY {k} {i}",
    "INCRBYFLOAT {k} 1.5",
    "LCS {k} {k}",
    "SUBSTR {k} 0 {i}",
    "DEL {k}",
    "DEL {k} {k}",
    "UNLINK {k}",
    "EXISTS {k} {k} {k}",
    "TYPE {k}",
    "RENAME {k} {k}",
    "RENAMENX {k} {k}",
    "COPY {k} {k}",
    "COPY {k} {k} REPLACE",
    "MOVE {k} {d}",
    "EXPIREAT {k} 9999999999",
    "PERSIST {k}",
    "EXPIRE {k} -1",
    "EXPIRE {k} nonsense",
    "OBJECT ENCODING {k}",
    "OBJECT HELP",
    "TOUCH {k} {k}",
    "DUMP {k}",
    "DBSIZE",
    "SETBIT {k} {i} 1",
    "SETBIT {k} {i} 2",
    "GETBIT {k} {i}",
    "BITCOUNT {k}",
    "BITPOS {k} 1",
    "BITOP XOR {k} {k} {k}",
    "BITFIELD {k} SET u8 0 {i} INCRBY i5 3 1",
    "BITFIELD_RO {k} GET u4 0",
    "LPUSH {l} {v} {i}",
    "RPUSH {l} {v}",
    "LPUSHX {l} {v}",
    "RPUSHX {l} {v} {v}",
    "LPOP {l}",
    "RPOP {l} 2",
    "LRANGE {l} 0 -1",
    "LRANGE {l} {i} {n}",
    "LLEN {l}",
    "LINDEX {l} {i}",
    "LSET {l} {i} {v}",
    "LREM {l} 0 {v}",
    "LINSERT {l} BEFORE {i} {v}",
    "LTRIM {l} 0 5",
    "LPOS {l} {i}",
    "LMOVE {l} {l} LEFT RIGHT",
    "RPOPLPUSH {l} {l}",
    "LMPOP 2 {l} {l} LEFT COUNT 2",
    "SORT {l}",
    "SORT {l} ALPHA DESC",
    "SORT {l} BY nosort GET # STORE {l}",
    "SORT_RO {l} LIMIT 0 2 ALPHA",
    "SADD {s} {i} {i}",
    "SREM {s} {i}",
    "SMEMBERS {s}",
    "SISMEMBER {s} {i}",
    "SMISMEMBER {s} {i} {v}",
    "SCARD {s}",
    "SMOVE {s} {s} {i}",
    "SINTER {s} {s}",
    "SUNIONSTORE {s} {s} {s}",
    "SDIFFSTORE {s} {s} {s}",
    "SINTERSTORE {s} {s} {s}",
    "SINTERCARD 2 {s} {s}",
    "ZADD {z} {i} {v}",
    "ZADD {z} {i} {f} {i} {f}",
    "ZADD {z} NX CH {i} {f}",
    "ZADD {z} INCR {i} {f}",
    "ZADD {z} nonsense {f}",
    "ZINCRBY {z} {i} {f}",
    "ZREM {z} {f}",
    "ZRANGE {z} 0 -1",
    "ZRANGE {z} 0 -1 WITHSCORES",
    "ZRANGE {z} (1 5 BYSCORE LIMIT 0 2",
    "ZREVRANGE {z} 0 {i} WITHSCORES",
    "ZRANGEBYSCORE {z} -inf +inf",
    "ZRANGEBYLEX {z} - +",
    "ZRANK {z} {f}",
    "ZREVRANK {z} {f}",
    "ZSCORE {z} {f}",
    "ZMSCORE {z} {f} {f}",
    "ZCARD {z}",
    "ZCOUNT {z} 1 {i}",
    "ZLEXCOUNT {z} - +",
    "ZPOPMIN {z}",
    "ZPOPMAX {z} 2",
    "ZMPOP 1 {z} MIN COUNT 2",
    "ZUNIONSTORE {z} 2 {z} {z} WEIGHTS 1 2",
    "ZINTER 2 {z} {z} WITHSCORES",
    "ZDIFF 2 {z} {z}",
    "ZRANGESTORE {z} {z} 0 2",
    "ZREMRANGEBYRANK {z} 0 1",
    "ZREMRANGEBYSCORE {z} 5 {i}",
    "HSET {h} {f} {v}",
    "HSET {h} {f} {v} {f} {i}",
    "HSET {h} {f}",
    "HSETNX {h} {f} {v}",
    "HGET {h} {f}",
    "HMGET {h} {f} {f}",
    "HGETALL {h}",
    "HDEL {h} {f}",
    "HLEN {h}",
    "HKEYS {h}",
    "HVALS {h}",
    "HEXISTS {h} {f}",
    "HINCRBY {h} {f} {i}",
    "HINCRBYFLOAT {h} {f} 0.5",
    "HSTRLEN {h} {f}",
    "HMSET {h} {f} {v}",
    "XADD {x} {e} {f} {v}",
    "XADD {x} {e} {f} {v}",
    "XADD {x} MAXLEN 3 {e} {f} {v}",
    "XLEN {x}",
    "XRANGE {x} - +",
    "XREVRANGE {x} + - COUNT 2",
    "XDEL {x} {e}",
    "XTRIM {x} MAXLEN 2",
    "XREAD COUNT 2 STREAMS {x} 0",
    "XREAD STREAMS {x} {x} 0 {e}",
    "XGROUP CREATE {x} g 0",
    "XGROUP CREATE {x} g $ MKSTREAM",
    "XGROUP DESTROY {x} g",
    "XACK {x} g {e}",
    "XINFO STREAM {x}",
    "XSETID {x} {e}",
    "GEOADD {z} 13.36 38.11 {f}",
    "GEOPOS {z} {f}",
    "GEODIST {z} {f} {f}",
    "GEOHASH {z} {f}",
    "PFADD {k} {v} {i}",
    "PFCOUNT {k}",
    "PFMERGE {k} {k}",
    "PING",
    "PING {v}",
    "PING a b",
    "ECHO {v}",
    "ECHO",
    "COMMAND COUNT",
    "COMMAND GETKEYS SET a b",
    "CONFIG GET maxmemory",
    "ACL WHOAMI",
    "NOSUCH {k} {v}",
    "GET",
    "get {k} {k}",
    "LRANGE {l} 0",
    "CONFIG NOSUCH",
    "OBJECT NOSUCH {k}",
    "XGROUP",
    "PUBLISH {c} {v}",
    "SPUBLISH {c} {v}",
    "PUBSUB NUMPAT",
    "PUBSUB CHANNELS",
    "WAIT 0 0",
    "LOLWUT VERSION x",
    "MEMORY HELP",
    "FLUSHDB",
    "SWAPDB 0 {d}",
    "READONLY",
    "BLPOP {l}",
    "BLPOP {l} nonsense",
    "BLPOP {l} -1",
    "BLMOVE {l} {l} LEFT UP 1",
];

/// What concerns the session, and scripts.
const RARE: &[&str] = &[
    "SELECT {d}",
    "SELECT {d}",
    "SELECT 0",
    "SELECT 99",
    "SELECT x",
    "HELLO",
    "HELLO 2",
    "HELLO 3",
    "HELLO 3 SETNAME me",
    "HELLO 4",
    "HELLO 3 NOSUCH",
    "AUTH x",
    "AUTH default x",
    "CLIENT SETNAME {f}",
    "CLIENT GETNAME",
    "CLIENT NO-EVICT ON",
    "CLIENT REPLY ON",
    "CLIENT NOSUCH",
    "CLIENT SETNAME",
    "RESET",
    "EVAL {lua} 1 {k} {v}",
    "EVAL {lua} 1 {k} {v}",
    "EVAL {lua} 0",
    "EVAL {lua} x",
    "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0",
    "SCRIPT LOAD return\u{a0}1",
    "SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "FUNCTION LOAD {lib}",
    "FUNCTION DELETE mine",
    "FCALL mine 1 {k} {v}",
    "FCALL_RO mine 1 {k} {v}",
    "EVAL_RO {lua} 1 {k} {v}",
];

/// What may wait.
const WAITING: &[&str] = &[
    "BLPOP {l} 0.001",
    "BRPOP {l} {l} 0.001",
    "BZPOPMIN {z} 0.001",
    "BLMOVE {l} {l} LEFT RIGHT 0.001",
    "BLMPOP 0.001 1 {l} LEFT COUNT 2",
    "BRPOPLPUSH {l} {l} 0.001",
    "BZMPOP 0.001 1 {z} MAX",
    "XREAD BLOCK 1 STREAMS {x} $",
    "XREAD BLOCK 1 STREAMS {x} 0",
];

const TRANSACTIONS: &[&str] =
    &["MULTI", "MULTI", "MULTI", "EXEC", "EXEC", "EXEC", "DISCARD", "UNWATCH", "MULTI x", "EXEC x"];

const SCRIPTS: &[&str] = &[
    "return 1",
    "return ARGV[1]",
    "return redis.call('GET', KEYS[1])",
    "return redis.call('SET', KEYS[1], ARGV[1])",
    "return redis.pcall('LPUSH', KEYS[1], ARGV[1])",
    "return {1, 'two', {3, false}, redis.status_reply('FOUR')}",
    "return redis.error_reply('MINE of my own')",
    "syntax error",
    "redis.setresp(3); return redis.call('HGETALL', KEYS[1])",
];

const LIBRARY: &str = "#!lua name=mine\nredis.register_function{function_name='mine', \
     callback=function(keys, args) return {keys[1], args[1]} end, flags={'no-writes'}}";

/// Where the sessions of the gate's side are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// They have the server.
    Alone,
    /// In a namespace of it, with a prefix that they don't know of.
    Namespace,
}

/// The name, and the prefix, of theirs.
pub const APART: &str = "apart";

fn namespace() -> Namespace {
    Namespace {
        name: APART.into(),
        mode: Mode::Prefix,
        prefixes: vec![format!("{APART}:").into_bytes().into()],
        readable: Vec::new(),
        rights: Rights::ReadWrite,
        allowed: BTreeSet::new(),
        scripts: ScriptRule::Sandbox,
        value_bytes: usize::MAX,
    }
}

/// Knows which sessions may hold a server connection.
pub struct Words {
    place: Place,
    holds: usize,
    sessions: Vec<Session>,
}

/// What a session has begun.
#[derive(Debug, Clone, Copy, Default)]
struct Session {
    watches: bool,
    is_in_multi: bool,
    /// Whether it may still watch something, for all that is known here.
    may_watch: bool,
}

impl Words {
    /// At most `holds` sessions are to hold one at once: a further one would wait for what the script brings later.
    pub fn new(sessions: usize, holds: usize, place: Place) -> Self {
        Self { place, holds, sessions: vec![Session::default(); sessions] }
    }

    pub fn command(&mut self, chance: &mut Chance, session: usize) -> Command {
        loop {
            let template = self.template(chance, session);
            let command = self.made(chance, session, template);
            if self.place == Place::Alone || self.is_the_same_in_a_namespace(&command, session) {
                self.note(template, session);
                return command;
            }
        }
    }

    /// Left out is what a namespace refuses, or does in several steps, which can't stand in a transaction; and what the server
    /// remembers of scripts, which others make it forget.
    fn is_the_same_in_a_namespace(&self, command: &Command, session: usize) -> bool {
        let words: Vec<&[u8]> = command.words.iter().map(Vec::as_slice).collect();
        let is = |name: &str| words[0].eq_ignore_ascii_case(name.as_bytes());
        let mine = &self.sessions[session];
        let holds = mine.may_watch || mine.is_in_multi;
        match namespace().judge(&words) {
            Judgement::Refused(_) => false,
            Judgement::Script => !holds && !is("EVALSHA") && !is("EVALSHA_RO") && !is("SCRIPT"),
            Judgement::Errand(_) => !holds,
            Judgement::Passes | Judgement::Becomes(..) => {
                !(holds && (is("AUTH") || is("HELLO") || is("INFO")))
            }
        }
    }

    fn note(&mut self, template: &str, session: usize) {
        let mine = &mut self.sessions[session];
        mine.may_watch |= template.starts_with("WATCH");
        match template {
            "MULTI" => mine.is_in_multi = true,
            "EXEC" | "DISCARD" if mine.is_in_multi => {
                *mine = Session { may_watch: mine.may_watch, ..Session::default() };
            }
            "UNWATCH" if !mine.is_in_multi => mine.watches = false,
            watch if watch.starts_with("WATCH ") && !mine.is_in_multi => mine.watches = true,
            "RESET" => *mine = Session::default(),
            _ => {}
        }
    }

    fn made(&self, chance: &mut Chance, session: usize, template: &str) -> Command {
        let words: Vec<Vec<u8>> =
            template.split(' ').map(|word| filled(word, chance, session)).collect();
        let plain = |word: &Vec<u8>| {
            (1..100).contains(&word.len()) && word.iter().all(u8::is_ascii_alphanumeric)
        };
        let inline = chance.below(50) == 0 && words.iter().all(plain);
        Command { words, form: if inline { Form::Inline } else { Form::Array } }
    }

    fn template(&self, chance: &mut Chance, session: usize) -> &'static str {
        let holds = |one: &Session| one.watches || one.is_in_multi;
        let holders = self.sessions.iter().filter(|one| holds(one)).count();
        let may_hold = holders < self.holds || holds(&self.sessions[session]);
        if chance.below(400) == 0 {
            return chance.pick(WAITING);
        }
        match chance.below(100) {
            0..6 if may_hold => chance.pick(TRANSACTIONS),
            6..8 if may_hold => "WATCH {k}",
            8..13 => chance.pick(RARE),
            _ => chance.pick(TEMPLATES),
        }
    }
}

fn filled(word: &str, chance: &mut Chance, session: usize) -> Vec<u8> {
    let likely = |chance: &mut Chance, kind: &str| {
        let kind = if chance.often(93) { kind } else { chance.pick(&["k", "l", "z", "h"]) };
        format!("{kind}{}", chance.below(4)).into_bytes()
    };
    match word {
        "{k}" => {
            let kind = if chance.often(70) { "k" } else { chance.pick(&["l", "s", "z", "h", "x"]) };
            format!("{kind}{}", chance.below(5)).into_bytes()
        }
        "{l}" => likely(chance, "l"),
        "{s}" => likely(chance, "s"),
        "{z}" => likely(chance, "z"),
        "{h}" => likely(chance, "h"),
        "{x}" => likely(chance, "x"),
        "{v}" => value(chance, session),
        "{i}" => chance.below(20).to_string().into_bytes(),
        "{f}" => format!("f{}", chance.below(8)).into_bytes(),
        "{n}" => {
            chance.pick(&["-1", "9223372036854775807", "1000000", "x", "", "1.5", "-3"]).into()
        }
        "{d}" => chance.below(3).to_string().into_bytes(),
        "{e}" => format!("{}-{}", 1 + chance.below(9), chance.below(9)).into_bytes(),
        "{c}" => b"nobody".to_vec(),
        "{lua}" => chance.pick(SCRIPTS).into(),
        "{lib}" => LIBRARY.into(),
        other => other.replace('\u{a0}', " ").into_bytes(),
    }
}

fn value(chance: &mut Chance, session: usize) -> Vec<u8> {
    match chance.below(200) {
        0..6 => Vec::new(),
        6..12 => vec![0, 13, 10, 255, b'*', b'3', b'\r', b'\n'],
        12..15 => vec![b'a' + u8::try_from(session).unwrap(); 1 + chance.below(20_000)],
        15 => vec![b'z'; 1 + chance.below(300_000)],
        _ => format!("s{session}-{}", chance.below(1000)).into_bytes(),
    }
}
