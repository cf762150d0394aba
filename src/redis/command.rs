//! How each command is carried: on a shared lane, by the session itself, or on a backend of its own.
//!
//! The rule: a command may share a lane when its reply comes at once and it leaves nothing behind on the connection.
//! What is not in the table might do either, so it gets a backend of its own for its time (safe), and that backend is
//! reset before anybody else uses it.

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
    /// Too large to hold in memory: until it is answered.
    Large,
    /// A database number that the server was not asked about yet: until answered.
    Database,
    /// Not in the table: until answered, and reset afterwards.
    Unknown,
}

impl Reason {
    /// Whether the hold ends by what its client has sent and the server does, without waiting for somebody else.
    #[must_use]
    pub fn ends_soon(self) -> bool {
        matches!(self, Self::Transaction | Self::Large | Self::Database)
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
            Self::Large => "large",
            Self::Database => "database",
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

/// Longest command name in the table, bytes.
const NAME_LIMIT: usize = 20;

const KILL: &str = "ERR tidegate: CLIENT KILL and CLIENT UNBLOCK name connections of the server, which are shared here; \
     send them over a direct connection";

/// Upper-case copy of a short word; empty when it is too long to be any name of the table.
struct Upper {
    bytes: [u8; NAME_LIMIT],
    length: usize,
}

impl Upper {
    fn new(word: &[u8]) -> Self {
        let mut bytes = [0; NAME_LIMIT];
        let length = if word.len() <= NAME_LIMIT { word.len() } else { 0 };
        for (to, from) in bytes.iter_mut().zip(&word[..length]) {
            *to = from.to_ascii_uppercase();
        }
        Self { bytes, length }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// How the command with these arguments is carried. `arguments` begins with the name and may be cut short when the
/// command is too large to be held; what follows decides only for XREAD, XREADGROUP and CLIENT.
pub fn carriage<'a>(mut arguments: impl Iterator<Item = &'a [u8]>) -> Carriage {
    let name = Upper::new(arguments.next().unwrap_or_default());
    match name.as_slice() {
        b"GET" | b"SET" | b"DEL" | b"INCR" | b"EXPIRE" | b"HGET" | b"HSET" | b"PING" | b"MGET" => {
            Carriage::Lane
        }
        b"HELLO" => Carriage::Session(Word::Hello),
        b"AUTH" => Carriage::Session(Word::Auth),
        b"SELECT" => Carriage::Session(Word::Select),
        b"RESET" => Carriage::Session(Word::Reset),
        b"QUIT" => Carriage::Session(Word::Quit),
        b"CLIENT" => client(arguments.next().unwrap_or_default(), arguments.next()),
        b"XREAD" | b"XREADGROUP" => streams(arguments),
        // EXEC and DISCARD without MULTI are errors of the server's, at once.
        b"WATCH" | b"MULTI" => Carriage::Pinned(Reason::Transaction),
        b"BLPOP" | b"BRPOP" | b"BLMOVE" | b"BRPOPLPUSH" | b"BLMPOP" | b"BZPOPMIN" | b"BZPOPMAX"
        | b"BZMPOP" => Carriage::Pinned(Reason::Blocking),
        b"WAIT" | b"WAITAOF" => Carriage::Pinned(Reason::Wait),
        b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE"
        | b"SUNSUBSCRIBE" => Carriage::Pinned(Reason::Subscription),
        b"MONITOR" | b"SYNC" | b"PSYNC" | b"REPLCONF" => Carriage::Pinned(Reason::Stream),
        other if is_plain(other) => Carriage::Lane,
        _ => Carriage::Pinned(Reason::Unknown),
    }
}

fn client(subcommand: &[u8], value: Option<&[u8]>) -> Carriage {
    match Upper::new(subcommand).as_slice() {
        b"SETNAME" => Carriage::Session(Word::SetName),
        b"GETNAME" => Carriage::Session(Word::GetName),
        b"ID" => Carriage::Session(Word::Id),
        b"SETINFO" => Carriage::Session(Word::SetInfo),
        b"INFO" => Carriage::Session(Word::Info),
        b"NO-EVICT" => Carriage::Session(Word::NoEvict),
        b"MAINT_NOTIFICATIONS" => Carriage::Session(Word::MaintNotifications),
        b"REPLY" if value.is_some_and(|value| value.eq_ignore_ascii_case(b"ON")) => {
            Carriage::Session(Word::ReplyOn)
        }
        b"TRACKING" if value.is_some_and(|value| value.eq_ignore_ascii_case(b"OFF")) => {
            Carriage::Lane
        }
        b"REPLY" | b"TRACKING" | b"NO-TOUCH" => Carriage::Pinned(Reason::Stream),
        b"KILL" | b"UNBLOCK" => Carriage::Refused(KILL),
        b"LIST" | b"PAUSE" | b"UNPAUSE" | b"TRACKINGINFO" | b"GETREDIR" | b"CACHING" | b"HELP"
        | b"" => Carriage::Lane,
        _ => Carriage::Pinned(Reason::Unknown),
    }
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

/// Whether `name` gives up subscriptions.
#[must_use]
pub fn is_unsubscribe(name: &[u8]) -> bool {
    matches!(Upper::new(name).as_slice(), b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE")
}

/// Commands that answer at once and leave nothing on the connection, Redis 2.6 to 8.0 and its bundled modules.
fn is_plain(name: &[u8]) -> bool {
    is_keyed(name)
        || is_hash_or_list(name)
        || is_set(name)
        || is_stream(name)
        || is_general(name)
        || is_module(name)
}

/// Strings, bitmaps, counters, keys.
fn is_keyed(name: &[u8]) -> bool {
    matches!(
        name,
        b"APPEND"
            | b"BITCOUNT"
            | b"BITFIELD"
            | b"BITFIELD_RO"
            | b"BITOP"
            | b"BITPOS"
            | b"COPY"
            | b"DECR"
            | b"DECRBY"
            | b"DUMP"
            | b"EXISTS"
            | b"EXPIREAT"
            | b"EXPIRETIME"
            | b"GETBIT"
            | b"GETDEL"
            | b"GETEX"
            | b"GETRANGE"
            | b"GETSET"
            | b"INCRBY"
            | b"INCRBYFLOAT"
            | b"KEYS"
            | b"LCS"
            | b"MIGRATE"
            | b"MOVE"
            | b"MSET"
            | b"MSETNX"
            | b"MSETEX"
            | b"OBJECT"
            | b"PERSIST"
            | b"PEXPIRE"
            | b"PEXPIREAT"
            | b"PEXPIRETIME"
            | b"PFADD"
            | b"PFCOUNT"
            | b"PFMERGE"
            | b"PSETEX"
            | b"PTTL"
            | b"RANDOMKEY"
            | b"RENAME"
            | b"RENAMENX"
            | b"RESTORE"
            | b"SCAN"
            | b"SETBIT"
            | b"SETEX"
            | b"SETNX"
            | b"SETRANGE"
            | b"SORT"
            | b"SORT_RO"
            | b"STRLEN"
            | b"SUBSTR"
            | b"TOUCH"
            | b"TTL"
            | b"TYPE"
            | b"UNLINK"
            | b"DELEX"
            | b"DIGEST"
    )
}

/// Hashes and lists.
fn is_hash_or_list(name: &[u8]) -> bool {
    matches!(
        name,
        b"HDEL"
            | b"HEXISTS"
            | b"HEXPIRE"
            | b"HEXPIREAT"
            | b"HEXPIRETIME"
            | b"HGETALL"
            | b"HGETDEL"
            | b"HGETEX"
            | b"HINCRBY"
            | b"HINCRBYFLOAT"
            | b"HKEYS"
            | b"HLEN"
            | b"HMGET"
            | b"HMSET"
            | b"HPERSIST"
            | b"HPEXPIRE"
            | b"HPEXPIREAT"
            | b"HPEXPIRETIME"
            | b"HPTTL"
            | b"HRANDFIELD"
            | b"HSCAN"
            | b"HSETEX"
            | b"HSETNX"
            | b"HSTRLEN"
            | b"HTTL"
            | b"HVALS"
            | b"LINDEX"
            | b"LINSERT"
            | b"LLEN"
            | b"LMOVE"
            | b"LMPOP"
            | b"LPOP"
            | b"LPOS"
            | b"LPUSH"
            | b"LPUSHX"
            | b"LRANGE"
            | b"LREM"
            | b"LSET"
            | b"LTRIM"
            | b"RPOP"
            | b"RPOPLPUSH"
            | b"RPUSH"
            | b"RPUSHX"
    )
}

/// Sets and sorted sets.
fn is_set(name: &[u8]) -> bool {
    matches!(
        name,
        b"SADD"
            | b"SCARD"
            | b"SDIFF"
            | b"SDIFFSTORE"
            | b"SINTER"
            | b"SINTERCARD"
            | b"SINTERSTORE"
            | b"SISMEMBER"
            | b"SMEMBERS"
            | b"SMISMEMBER"
            | b"SMOVE"
            | b"SPOP"
            | b"SRANDMEMBER"
            | b"SREM"
            | b"SSCAN"
            | b"SUNION"
            | b"SUNIONSTORE"
            | b"ZADD"
            | b"ZCARD"
            | b"ZCOUNT"
            | b"ZDIFF"
            | b"ZDIFFSTORE"
            | b"ZINCRBY"
            | b"ZINTER"
            | b"ZINTERCARD"
            | b"ZINTERSTORE"
            | b"ZLEXCOUNT"
            | b"ZMPOP"
            | b"ZMSCORE"
            | b"ZPOPMAX"
            | b"ZPOPMIN"
            | b"ZRANDMEMBER"
            | b"ZRANGE"
            | b"ZRANGEBYLEX"
            | b"ZRANGEBYSCORE"
            | b"ZRANGESTORE"
            | b"ZRANK"
            | b"ZREM"
            | b"ZREMRANGEBYLEX"
            | b"ZREMRANGEBYRANK"
            | b"ZREMRANGEBYSCORE"
            | b"ZREVRANGE"
            | b"ZREVRANGEBYLEX"
            | b"ZREVRANGEBYSCORE"
            | b"ZREVRANK"
            | b"ZSCAN"
            | b"ZSCORE"
            | b"ZUNION"
            | b"ZUNIONSTORE"
    )
}

/// Geo and streams.
fn is_stream(name: &[u8]) -> bool {
    matches!(
        name,
        b"GEOADD"
            | b"GEODIST"
            | b"GEOHASH"
            | b"GEOPOS"
            | b"GEORADIUS"
            | b"GEORADIUS_RO"
            | b"GEORADIUSBYMEMBER"
            | b"GEORADIUSBYMEMBER_RO"
            | b"GEOSEARCH"
            | b"GEOSEARCHSTORE"
            | b"XACK"
            | b"XACKDEL"
            | b"XADD"
            | b"XAUTOCLAIM"
            | b"XCLAIM"
            | b"XDEL"
            | b"XDELEX"
            | b"XGROUP"
            | b"XINFO"
            | b"XLEN"
            | b"XPENDING"
            | b"XRANGE"
            | b"XREVRANGE"
            | b"XSETID"
            | b"XTRIM"
    )
}

/// Scripts, server, cluster, publishing; also what is only an error outside its context.
fn is_general(name: &[u8]) -> bool {
    matches!(
        name,
        b"ECHO"
            | b"TIME"
            | b"EVAL"
            | b"EVAL_RO"
            | b"EVALSHA"
            | b"EVALSHA_RO"
            | b"FCALL"
            | b"FCALL_RO"
            | b"FUNCTION"
            | b"SCRIPT"
            | b"PUBLISH"
            | b"SPUBLISH"
            | b"PUBSUB"
            | b"ACL"
            | b"BGREWRITEAOF"
            | b"BGSAVE"
            | b"COMMAND"
            | b"CONFIG"
            | b"DBSIZE"
            | b"DEBUG"
            | b"FLUSHALL"
            | b"FLUSHDB"
            | b"INFO"
            | b"LASTSAVE"
            | b"LATENCY"
            | b"LOLWUT"
            | b"MEMORY"
            | b"MODULE"
            | b"ROLE"
            | b"SAVE"
            | b"SHUTDOWN"
            | b"SLOWLOG"
            | b"SWAPDB"
            | b"CLUSTER"
            | b"FAILOVER"
            | b"REPLICAOF"
            | b"SLAVEOF"
            | b"UNWATCH"
            | b"EXEC"
            | b"DISCARD"
            | b"COMMANDLOG"
            | b"VADD"
            | b"VCARD"
            | b"VDIM"
            | b"VEMB"
            | b"VGETATTR"
            | b"VINFO"
            | b"VISMEMBER"
            | b"VLINKS"
            | b"VRANDMEMBER"
            | b"VREM"
            | b"VSETATTR"
            | b"VSIM"
    )
}

/// The bundled data-structure modules: their commands are plain key commands.
fn is_module(name: &[u8]) -> bool {
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
            ["GET a", "set a b", "ZRevRangeByScore k 1 2", "json.get k", "EVAL x 0", "CLIENT LIST"]
        {
            assert_eq!(of(line), Carriage::Lane, "{line}");
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
        assert_eq!(of("CLIENT TRACKING ON"), Carriage::Pinned(Reason::Stream));
        assert_eq!(of("CLIENT TRACKING"), Carriage::Pinned(Reason::Stream));
        assert!(matches!(of("CLIENT KILL ID 3"), Carriage::Refused(_)));
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
