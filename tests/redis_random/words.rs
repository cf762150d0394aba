//! The commands that sessions say: patterns whose signs a seed fills in.

use super::chance::Chance;
use super::script::Command;

/// `K`: a key; `V`: a value; `M`: a short member; `N`: a number; `I`: a stream's id; `F`: a score.
const PLAIN: &[&str] = &[
    "GET K",
    "SET K V",
    "SET K V NX",
    "SET K V XX GET",
    "SET K N",
    "SETNX K V",
    "GETSET K V",
    "GETDEL K",
    "APPEND K M",
    "STRLEN K",
    "GETRANGE K N N",
    "SETRANGE K 3 M",
    "INCR K",
    "DECR K",
    "INCRBY K N",
    "INCRBYFLOAT K F",
    "MSET K V K V",
    "MSETNX K V K V",
    "MGET K K K",
    "SETBIT K N 1",
    "GETBIT K N",
    "BITCOUNT K",
    "BITPOS K 1",
    "BITOP AND K K K",
    "BITFIELD K SET u8 0 N GET u4 2",
    "LCS K K",
    "LPUSH K M M",
    "RPUSH K V",
    "RPUSH K M M M",
    "LPOP K",
    "RPOP K 2",
    "LRANGE K 0 -1",
    "LLEN K",
    "LINDEX K N",
    "LSET K 0 M",
    "LREM K 0 M",
    "LTRIM K 0 5",
    "LINSERT K BEFORE M M",
    "LMOVE K K LEFT RIGHT",
    "RPOPLPUSH K K",
    "LPOS K M",
    "LMPOP 2 K K LEFT",
    "SADD K M M M",
    "SREM K M",
    "SCARD K",
    "SISMEMBER K M",
    "SMISMEMBER K M M",
    "SMOVE K K M",
    "SINTERCARD 2 K K",
    "SUNIONSTORE K K K",
    "SDIFFSTORE K K K",
    "ZADD K F M F M",
    "ZADD K NX GT F M",
    "ZADD K INCR F M",
    "ZRANGE K 0 -1 WITHSCORES",
    "ZREVRANGE K 0 2",
    "ZSCORE K M",
    "ZMSCORE K M M",
    "ZRANK K M",
    "ZINCRBY K F M",
    "ZPOPMIN K",
    "ZCOUNT K -inf +inf",
    "ZRANGEBYSCORE K F F LIMIT 0 2",
    "ZUNION 2 K K WITHSCORES",
    "ZINTERSTORE K 2 K K",
    "ZRANGESTORE K K 0 -1",
    "ZREM K M",
    "ZMPOP 1 K MIN",
    "HSET K M M M M",
    "HGET K M",
    "HGETALL K",
    "HDEL K M",
    "HINCRBY K M N",
    "HINCRBYFLOAT K M F",
    "HMGET K M M",
    "HKEYS K",
    "HLEN K",
    "HEXISTS K M",
    "HSETNX K M M",
    "HSTRLEN K M",
    "XADD K I M M",
    "XADD K I M M M",
    "XRANGE K - +",
    "XREVRANGE K + - COUNT 2",
    "XLEN K",
    "XDEL K I",
    "XTRIM K MAXLEN 3",
    "XREAD COUNT 2 STREAMS K 0",
    "XGROUP CREATE K g 0 MKSTREAM",
    "XGROUP DESTROY K g",
    "XACK K g I",
    "XGROUP CREATECONSUMER K g M",
    "GEOADD K 13.36 38.11 M",
    "GEODIST K M M",
    "GEOPOS K M",
    "GEOHASH K M",
    "GEOSEARCH K FROMLONLAT 13 38 BYRADIUS 200 km ASC",
    "PFADD K M M",
    "PFCOUNT K K",
    "PFMERGE K K",
    "DEL K K",
    "UNLINK K",
    "EXISTS K K",
    "TYPE K",
    "RENAME K K",
    "RENAMENX K K",
    "COPY K K",
    "COPY K K REPLACE",
    "TOUCH K",
    "OBJECT ENCODING K",
    "EXPIREAT K 4000000000",
    "PEXPIREAT K 4000000000000 NX",
    "EXPIRETIME K",
    "PERSIST K",
    "EXPIREAT K 1",
    "SORT K ALPHA",
    "SORT K",
    "DBSIZE",
    "MOVE K 1",
    "SWAPDB 0 0",
    "LOLWUT VERSION x",
    "COMMAND COUNT",
    "COMMAND GETKEYS SET K V",
    "COMMAND INFO get",
    "PING",
    "PING V",
    "ECHO V",
    "EVAL return{1,2,3.5,'x'} 0",
    "EVAL return(redis.call('GET',KEYS[1])) 1 K",
    "EVAL return(redis.pcall('INCR',KEYS[1])) 1 K",
    "EVAL return(ARGV[1]) 0 V",
    "EVAL nonsense( 0",
    "EVAL_RO return(redis.call('SET',KEYS[1],1)) 1 K",
    "EVAL return{err='MY_own'} 0",
    "EVAL return(1) 2 K",
    "SCRIPT LOAD return(7)",
    "EVALSHA 06a3e24f9b8be3f3bd64a24f4dfb0f1e94d7d3b5 0",
    "SCRIPT EXISTS 06a3 abc",
    "SCRIPT FLUSH",
    "EVALSHA abc 0",
    "FCALL one 1 K",
    "FCALL none 0",
    "FUNCTION DELETE lib",
    "FUNCTION LIST",
    "PUBLISH nobody V",
    "PUBSUB NUMSUB nobody",
    // Wrong in one way or another.
    "GET",
    "GET K K",
    "SET K",
    "SET K V EX",
    "SET K V EX 0",
    "SET K V NX XX",
    "NOSUCH K V",
    "NOSUCH",
    "INCRBY K x",
    "LPUSH K",
    "ZADD K x M",
    "HSET K M",
    "XADD K 0-0 M M",
    "XADD K x M M",
    "OBJECT NOTHING K",
    "CONFIG NOTHING",
    "BITOP NOT K K K",
    "SETBIT K -1 1",
    "EXPIRE K x",
    "SELECT x",
    "LMPOP 0 K LEFT",
    "EVAL",
    "EVALSHA abc",
    "XGROUP NOTHING",
    "ZUNION 0 K",
    "SORT K BY",
    "WATCH",
    "MULTI x",
    "EXEC",
    "DISCARD",
    "UNWATCH",
    "",
];

const SESSION: &[&str] = &[
    "SELECT 0",
    "SELECT 1",
    "SELECT 99",
    "HELLO",
    "HELLO 2",
    "HELLO 3",
    "HELLO 3 SETNAME me",
    "HELLO 4",
    "HELLO x",
    "HELLO 3 NOTHING",
    "CLIENT SETNAME M",
    "CLIENT GETNAME",
    "CLIENT NO-EVICT ON",
    "CLIENT NO-EVICT OFF",
    "CLIENT REPLY ON",
    "CLIENT NOTHING",
    "CLIENT SETNAME",
    "RESET",
    "CLIENT TRACKINGINFO",
];

pub fn line(text: &str) -> Command {
    text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

pub fn plain(chance: &mut Chance) -> Command {
    if chance.often(1) && chance.often(20) {
        let code = b"#!lua name=lib\nredis.register_function('one', function(k) return redis.call('TYPE', k[1]) end)";
        return vec![b"FUNCTION".to_vec(), b"LOAD".to_vec(), b"REPLACE".to_vec(), code.to_vec()];
    }
    if chance.often(3) {
        let line = chance.pick(&[
            " PING",
            " SET k1 inline",
            " get k1",
            " echo \"a b\\n\"",
            " NOSUCH 'x'",
            " INCR k2",
        ]);
        return vec![line.as_bytes().to_vec()];
    }
    filled(chance, PLAIN)
}

pub fn session(chance: &mut Chance) -> Command {
    filled(chance, SESSION)
}

/// MULTI, something, and its end.
pub fn transaction(chance: &mut Chance) -> Vec<Command> {
    let mut all = vec![line("MULTI")];
    if chance.often(20) {
        all.insert(0, filled(chance, &["WATCH K", "WATCH K K"]));
        if chance.often(30) {
            all.insert(1, filled(chance, &["SET K V", "INCR K"]));
        }
    }
    for _ in 0..chance.below(6) {
        all.push(match chance.below(20) {
            0 => filled(
                chance,
                &["BLPOP K 0", "BLMOVE K K LEFT LEFT 0", "BZPOPMIN K 0", "BLMPOP 0 1 K LEFT"],
            ),
            1 => filled(chance, &["MULTI", "WATCH K", "SELECT 1", "CLIENT GETNAME", "UNWATCH"]),
            _ => filled(chance, &PLAIN[..PLAIN.len() - 6]),
        });
    }
    all.push(line(if chance.often(85) { "EXEC" } else { "DISCARD" }));
    all
}

/// A blocking command that need not wait.
pub fn found_at_once(chance: &mut Chance) -> Vec<Command> {
    let list = [
        "BLPOP wait 0",
        "BRPOP none wait 0",
        "BLMOVE wait moved LEFT RIGHT 0",
        "BLMPOP 0 2 none wait LEFT COUNT 2",
        "BRPOPLPUSH wait moved 0",
    ];
    let set = ["BZPOPMIN zwait 0", "BZPOPMAX zwait 0", "BZMPOP 0 1 zwait MAX"];
    match chance.below(4) {
        0 => vec![line("ZADD zwait 1 a 2 b"), line(chance.pick(&set))],
        1 => vec![line("BLPOP k1"), line("BLPOP k1 x"), line("BLPOP k1 -1")],
        _ => vec![line("RPUSH wait one"), line(chance.pick(&list))],
    }
}

/// A blocking command that has to wait, and what ends that.
pub fn wait(chance: &mut Chance) -> (Command, Command) {
    let (wait, push) = [
        ("BLPOP empty 20", "RPUSH empty a"),
        ("BRPOP none empty 20", "LPUSH empty a"),
        ("BLMOVE empty other LEFT RIGHT 20", "RPUSH empty a"),
        ("BZPOPMIN zempty 20", "ZADD zempty 1 a"),
        ("BLMPOP 20 1 empty LEFT", "RPUSH empty a"),
    ][chance.below(5)];
    (line(wait), line(push))
}

fn filled(chance: &mut Chance, patterns: &[&str]) -> Command {
    let pattern = chance.pick(patterns);
    if pattern.is_empty() {
        return vec![Vec::new()];
    }
    pattern.split(' ').map(|sign| filled_sign(chance, sign)).collect()
}

fn filled_sign(chance: &mut Chance, sign: &str) -> Vec<u8> {
    match sign {
        "K" => format!("k{}", chance.below(12)).into_bytes(),
        "M" => chance.pick(&["a", "b", "c", "d", "5", "7"]).as_bytes().to_vec(),
        "N" => chance.pick(&["0", "1", "-1", "7", "63", "1000"]).as_bytes().to_vec(),
        "F" => chance.pick(&["0", "1.5", "-2", "3e3", "inf", "10"]).as_bytes().to_vec(),
        "I" => format!("{}-{}", 1 + chance.below(30), chance.below(3)).into_bytes(),
        "V" => value(chance),
        word => word.as_bytes().to_vec(),
    }
}

fn value(chance: &mut Chance) -> Vec<u8> {
    match chance.below(1000) {
        0 => vec![b'x'; chance.below(300_000)],
        1..50 => Vec::new(),
        50..150 => b"\0\r\n$-1\r\n\xff".to_vec(),
        150..400 => chance.below(100).to_string().into_bytes(),
        _ => format!("value-{}", chance.below(50)).into_bytes(),
    }
}
