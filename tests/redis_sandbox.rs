//! Scripts in a namespace, on real servers: they do what they would do on a server of their own, and nothing of them gets out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use tidegate::redis::namespace::sandbox::Sandbox;
use tidegate::redis::namespace::{Judgement, Mode, Namespace, Rights};

const PREFIX: &str = "cache:";

fn namespace(mode: Mode) -> Namespace {
    Namespace {
        name: "cache".into(),
        mode,
        prefixes: vec![PREFIX.as_bytes().into()],
        readable: Vec::new(),
        rights: Rights::ReadWrite,
        allowed: BTreeSet::new(),
        value_bytes: 1 << 20,
    }
}

/// A script's call: its source, its keys and what else it gets.
type Call<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

fn eval(connection: &mut Connection, source: &[u8], keys: &[String], rest: &[&str]) -> Value {
    let source = std::str::from_utf8(source).expect("the tests' scripts are text");
    let count = keys.len().to_string();
    let mut words = vec!["EVAL", source, &count];
    words.extend(keys.iter().map(String::as_str));
    words.extend(rest);
    connection.command(&words)
}

/// In the namespace: the reply as its client gets it.
fn inside(connection: &mut Connection, sandbox: &Sandbox, mode: Mode, call: Call<'_>) -> Value {
    let (source, keys, rest) = call;
    let script = match sandbox.learn(source.as_bytes()) {
        Ok(script) => script,
        Err(text) => return Value::Error(text),
    };
    let before = if mode == Mode::Prefix { PREFIX } else { "" };
    let keys: Vec<String> = keys.iter().map(|key| format!("{before}{key}")).collect();
    match eval(connection, &script.sent, &keys, rest) {
        Value::Error(text) => {
            let sha = |sha: &[u8]| String::from_utf8(sha.to_vec()).unwrap();
            Value::Error(text.replace(&sha(&script.sent_sha), &sha(&script.sha)))
        }
        reply => reply,
    }
}

fn alone(connection: &mut Connection, call: Call<'_>) -> Value {
    let keys: Vec<String> = call.1.iter().map(|key| (*key).to_owned()).collect();
    eval(connection, call.0.as_bytes(), &keys, call.2)
}

/// All keys that begin with `prefix`, without it, and what is in them.
fn data(connection: &mut Connection, prefix: &str) -> BTreeMap<String, Value> {
    let names = connection.command(&["KEYS", &format!("{prefix}*")]).words();
    let dump = |name: String| {
        // A stream's dump has times in it, and a set's order is the server's own.
        let value = match connection.command(&["TYPE", &name]).text().as_str() {
            "stream" => connection.command(&["XRANGE", &name, "-", "+"]),
            "set" => {
                let mut members = connection.command(&["SMEMBERS", &name]).words();
                members.sort();
                Value::Other(members.join(" "))
            }
            _ => connection.command(&["DUMP", &name]),
        };
        (name[prefix.len()..].to_owned(), value)
    };
    names.into_iter().map(dump).collect()
}

/// In the manner of scripts that libraries bring.
const SCRIPTS: &[Call<'static>] = &[
    // A counter with an end.
    ("local n = redis.call('INCR', KEYS[1]) if n == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end return n", &["rate:1"], &["100000"]),
    // A lock given back by its holder alone.
    ("if redis.call('get', KEYS[1]) == ARGV[1] then\n  return redis.call('del', KEYS[1])\nelse\n  return 0\nend", &["lock"], &["token"]),
    ("if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end return 0", &["lock"], &["token", "100000"]),
    ("if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end", &["lock"], &["token"]),
    // An increment only of what exists.
    ("local exists = redis.call('EXISTS', KEYS[1])\nif (exists == 1) then\n    return redis.call('INCRBY', KEYS[1], ARGV[1])\nelse return false end", &["rate:1"], &["5"]),
    // A sliding window.
    ("local now = tonumber(ARGV[1])\nlocal window = tonumber(ARGV[2])\nredis.call('ZREMRANGEBYSCORE', KEYS[1], 0, now - window)\nlocal count = redis.call('ZCARD', KEYS[1])\nif count < tonumber(ARGV[3]) then\n  redis.call('ZADD', KEYS[1], now, now .. '-' .. count)\n  redis.call('EXPIRE', KEYS[1], window)\n  return {1, count + 1}\nend\nreturn {0, count}", &["window"], &["1000", "60", "2"]),
    // A bucket of tokens.
    ("local b = redis.call('HMGET', KEYS[1], 'tokens', 'at')\nlocal tokens = tonumber(b[1]) or 10\nlocal at = tonumber(b[2]) or 0\ntokens = math.min(10, tokens + (tonumber(ARGV[1]) - at) * 0.1)\nlocal ok = tokens >= 1\nif ok then tokens = tokens - 1 end\nredis.call('HSET', KEYS[1], 'tokens', tokens, 'at', ARGV[1])\nreturn {ok and 1 or 0, tostring(tokens)}", &["bucket"], &["13"]),
    // Jobs, in the manner of BullMQ: an alias, computed keys, includes.
    ("local rcall = redis.call\nlocal function addJob(prefix, id, data)\n  local key = prefix .. id\n  rcall('HMSET', key, 'name', 'job', 'data', cjson.encode(data), 'opts', '{}')\n  rcall('LPUSH', prefix .. 'wait', id)\n  rcall('XADD', prefix .. 'events', '1-' .. id, 'event', 'waiting', 'jobId', id)\n  return key\nend\nlocal id = rcall('INCR', KEYS[1])\nlocal key = addJob(ARGV[1], id, {a = {1, 2}})\nif rcall('EXISTS', key) == 0 then return -1 end\nrcall('ZADD', KEYS[2], 'NX', id, id)\nreturn {id .. '', rcall('HGET', key, 'data')}", &["bull:q:id", "bull:q:prio"], &["bull:q:"]),
    ("local rcall = redis.call\nlocal jobId = rcall('RPOPLPUSH', KEYS[1], KEYS[2])\nif jobId then\n  local key = ARGV[1] .. jobId\n  rcall('HSET', key, 'processedOn', ARGV[2])\n  return {rcall('HGETALL', key), jobId}\nend\nreturn {0, 0}", &["bull:q:wait", "bull:q:active"], &["bull:q:", "77"]),
    ("local rcall = redis.call\nlocal keys = rcall('KEYS', ARGV[1] .. '*')\ntable.sort(keys)\nreturn keys", &[], &["bull:q:"]),
    // Scheduled jobs, in the manner of Sidekiq.
    ("redis.call('zadd', KEYS[1], 5, 'job1') redis.call('zadd', KEYS[1], 7, 'job2') return redis.call('zcard', KEYS[1])", &["schedule"], &[]),
    ("local key, now = KEYS[1], ARGV[1]\nlocal jobs = redis.call('zrangebyscore', key, '-inf', now, 'limit', 0, 1)\nif jobs[1] then\n  redis.call('zrem', key, jobs[1])\n  return jobs[1]\nend", &["schedule"], &["6"]),
    // Deletes by pattern, with SCAN.
    ("redis.call('mset', 'view:1', 'a', 'view:2', 'b', 'other', 'c')\nlocal cursor = '0'\nlocal n = 0\nrepeat\n  local r = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)\n  cursor = r[1]\n  if #r[2] > 0 then n = n + redis.call('UNLINK', unpack(r[2])) end\nuntil cursor == '0'\nreturn n", &[], &["view:*"]),
    // Moves between lists with many names.
    ("redis.call('rpush', KEYS[1], 1, 2.5, 'x', 10000000000) return redis.call('lmpop', 2, KEYS[2], KEYS[1], 'left', 'count', 2)", &["l1", "l2"], &[]),
    ("redis.call('zadd', KEYS[1], 1, 'a', 2, 'b') return {redis.call('zmpop', 1, KEYS[1], 'min'), redis.call('blpop', 'l1', 0), redis.call('bzpopmin', KEYS[1], 0)}", &["z1"], &[]),
    ("redis.call('sadd', 's1', 'a', 'b') redis.call('sadd', 's2', 'b') redis.call('sinterstore', 's3', 's1', 's2') return {redis.call('smembers', 's3'), redis.call('sintercard', 2, 's1', 's2'), redis.call('zunionstore', 'z3', 2, 's1', 's2', 'WEIGHTS', 1, 2)}", &[], &[]),
    // Sorting by other keys.
    ("redis.call('rpush', 'ids', 2, 1) redis.call('mset', 'w_1', 5, 'w_2', 3, 'o_1', 'one', 'o_2', 'two') return redis.call('sort', 'ids', 'by', 'w_*', 'get', '#', 'get', 'o_*')", &[], &[]),
    ("redis.call('sort', 'ids', 'BY', 'nosort', 'STORE', 'sorted') return redis.call('lrange', 'sorted', 0, -1)", &[], &[]),
    // Streams, read in both protocols.
    ("redis.call('xadd', 's', '1-1', 'f', 'v') redis.call('xgroup', 'create', 's', 'g', '0') return {redis.call('xread', 'count', 1, 'streams', 's', 'none', 0, 0), redis.call('xreadgroup', 'group', 'g', 'c', 'streams', 's', '>')}", &[], &[]),
    ("redis.setresp(3) local r = redis.call('xread', 'streams', 's', 0) local t = {} for k, v in pairs(r.map) do t[#t + 1] = k t[#t + 1] = #v end return t", &[], &[]),
    ("redis.setresp(3) return {redis.call('hgetall', 'none'), redis.call('zscore', 'z3', 'b'), redis.call('keys', 's3')}", &[], &[]),
    ("return {redis.pcall('xreadgroup', 'group', 'nogroup', 'c', 'streams', 's', '>')['err']}", &[], &[]),
    // Places.
    ("redis.call('geoadd', 'g', 13, 38, 'a', 15, 37, 'b') redis.call('georadius', 'g', 15, 37, 300, 'km', 'STORE', 'near') return redis.call('zrange', 'near', 0, -1)", &[], &[]),
    // The whole database.
    ("return {redis.call('dbsize') > 5, redis.call('object', 'encoding', 'rate:1'), redis.call('exists', redis.call('randomkey')), redis.call('type', 's')}", &[], &[]),
    ("return {redis.call('copy', 'w_1', 'w_9'), redis.call('rename', 'w_9', 'w_8'), redis.call('get', 'w_8'), redis.call('publish', 'c', 'm'), redis.call('pubsub', 'numsub', 'c'), redis.call('pubsub', 'channels')}", &[], &[]),
    // Names that are numbers.
    ("redis.call('set', 7, 'seven') redis.call('set', 0.1, 'tenth') redis.call('set', -3, 'x') redis.call('set', 1e20, 'y') redis.call('set', 123456789012, 'z') return {redis.call('get', '7'), redis.call('mget', 7, 123456789012), redis.call('exists', 0.1)}", &[], &[]),
    // Libraries.
    ("local t = cjson.decode(ARGV[1]) t.b = {1, 2, cjson.null} return {cjson.encode(t.b), cmsgpack.unpack(cmsgpack.pack({1, 'a'}))[2], bit.band(7, 3), struct.unpack('>I2', struct.pack('>I2', 5)), string.format('%05d', 7), ('x'):rep(3), table.concat({1, 2}, '-'), math.floor(2.7), redis.sha1hex('')}", &[], &["{\"a\":1}"]),
    ("cjson.encode_sparse_array(true) return cjson.encode({[1] = 1, [100] = 2})", &[], &[]),
    ("local co = coroutine.wrap(function(a) local b = coroutine.yield(redis.call('get', a)) return redis.call('get', b) end) return {co('7'), co('w_1')}", &[], &[]),
    ("local t = setmetatable({}, {__index = function(t, k) return k .. '!' end, __call = function(self, x) return x end}) return {t.a, t('b'), tostring(rawget(t, 'a')), select('#', 1, 2), type(next)}", &[], &[]),
    ("return {pcall(function() error('x') end)}", &[], &[]),
    ("local function f(...) local a = {...} return #a, arg == nil end return {f(1, 2)}", &[], &[]),
    ("return {...}", &["a"], &["b"]),
    ("return {KEYS[1], #KEYS, KEYS[3], ARGV[1]}", &["a", "b"], &["c"]),
    ("return _G.KEYS[1] .. _G['ARGV'][1] .. tostring(_G._G == _G)", &["a"], &["c"]),
    ("KEYS[2] = 'w_1' return redis.call('get', KEYS[2])", &["a"], &[]),
    ("return redis.call(ARGV[1], unpack(ARGV, 2))", &[], &["mget", "w_1", "w_2"]),
    ("local op = ARGV[1] return redis.call('h' .. op, 'h', 'f', 'v')", &[], &["set"]),
    ("local c, p = redis.call, redis.pcall return {c('get', 'w_1'), p('get', 'w_2')}", &[], &[]),
    ("local r = redis return r.call('GeT', 'w_1')", &[], &[]),
    ("redis.replicate_commands() redis.set_repl(redis.REPL_ALL) redis.log(redis.LOG_DEBUG, 'x') return redis.status_reply('FINE')", &[], &[]),
    ("return redis.error_reply('MINE of one')", &[], &[]),
    ("#!lua flags=no-writes\nreturn redis.call('get', KEYS[1])", &["w_1"], &[]),
    ("#!lua flags=no-writes\nreturn redis.call('set', KEYS[1], 1)", &["w_1"], &[]),
    ("#!lua name=x\nreturn 1", &[], &[]),
    ("return redis.call('ping')", &[], &[]),
    ("return redis.call('time')[3]", &[], &[]),
    ("return redis.call('echo', 'x') .. redis.call('select', 0)['ok']", &[], &[]),
    ("redis.call('flushdb') return redis.call('dbsize')", &[], &[]),
    ("return {redis.call('randomkey'), redis.call('keys', '*'), 1}", &[], &[]),
    ("redis.setresp(3) return {1, redis.call('randomkey'), 2}", &[], &[]),
    // What goes wrong.
    ("return redis.call()", &[], &[]),
    ("return redis.call('get', nil)", &[], &[]),
    ("return redis.call('get', {})", &[], &[]),
    ("return redis.call('set', 'a', {})", &[], &[]),
    ("return redis.call('mget', 'a', true)", &[], &[]),
    ("return redis.call('get', 'a', 'b')", &[], &[]),
    ("redis.call('set', 'a', 1)\n\nlocal x = redis.call('lpush', 'a', 1)", &[], &[]),
    ("return redis.call('lpush', 'a', 1)", &[], &[]),
    ("local r = redis.call\n\nreturn r('lpush', 'a', 1)", &[], &[]),
    ("return redis.pcall('lpush', 'a', 1)", &[], &[]),
    ("local ok, e = pcall(redis.call, 'lpush', 'a', 1) return {type(e), e}", &[], &[]),
    ("local ok, e = pcall(redis.call, 'get', {}) return {type(e), e}", &[], &[]),
    ("local ok, e = pcall(function() local x = redis.call('lpush', 'a', 1) end) return e", &[], &[]),
    ("local e = redis.pcall('lpush', 'a', 1)\nerror(e)", &[], &[]),
    ("return redis.call('subscribe', 'c')", &[], &[]),
    ("return redis.call('eval', 'return 1', 0)", &[], &[]),
    ("return redis.call('config', 'get', 'maxmemory')", &[], &[]),
    ("return redis.call('object', 'encoding')", &[], &[]),
    ("return redis.call('zunionstore', 'd', 'x', 'a')", &[], &[]),
    ("return redis.call('zunionstore', 'd', 9, 'a')", &[], &[]),
    ("return redis.call('xread', 'streams', 'a', 'b', 0)", &[], &[]),
    ("return redis.call('sort', 'a', 'by')", &[], &[]),
    ("return redis.call('scan', 'x')", &[], &[]),
    ("return redis.call('scan')", &[], &[]),
    ("return redis.call('dbsize', 1)", &[], &[]),
    ("\n\nerror('boo')", &[], &[]),
    ("error({err = 'MINE own'})", &[], &[]),
    ("local x\nreturn x.y", &[], &[]),
    ("return undefined", &[], &[]),
    ("\nundefined.x = 1", &[], &[]),
    ("undefined()", &[], &[]),
    ("x = 1", &[], &[]),
    ("\nfunction x() end", &[], &[]),
    ("_G.x = 1", &[], &[]),
    ("return _G.x", &[], &[]),
    ("redis.call = 1", &[], &[]),
    ("redis = 1", &[], &[]),
    ("string.x = 1", &[], &[]),
    ("function redis.x() end", &[], &[]),
    ("return tostring(rawget(_G, 'x'))", &[], &[]),
    ("local i = 1 while true do i = i + 1 if i > 5 then break end end return i", &[], &[]),
    ("x x", &[], &[]),
    ("return (", &[], &[]),
    ("if true then\nreturn 1\n", &[], &[]),
    ("return 1 end return 2", &[], &[]),
    ("local s = 'abc\nreturn s", &[], &[]),
    ("return [[ a [[ b ]]", &[], &[]),
    ("for i = 1 do end", &[], &[]),
    ("return 3..2", &[], &[]),
    ("local a = type\n(a)('x')", &[], &[]),
    ("return '\\400'", &[], &[]),
    ("local t = {1, 2; x = 3, ['y'] = 4,} return {t[1], t.x, t['y'], #t}", &[], &[]),
    ("goto x", &[], &[]),
    ("f() = 1", &[], &[]),
    ("(a) = 1", &[], &[]),
    ("local function f() return ... end", &[], &[]),
    ("return a.1", &[], &[]),
    ("", &[], &[]),
    ("return", &[], &[]),
    ("return;", &[], &[]),
    ("-- nothing", &[], &[]),
];

#[test]
fn scripts_do_what_they_would_do_on_a_server_of_their_own() {
    for (crowded, own) in Redis::each().iter().zip(Redis::each().iter()) {
        let (mut crowded, mut own) = (crowded.direct(), own.direct());
        let sandbox = Sandbox::new(&namespace(Mode::Prefix));
        for key in ["queue:a", "w_1", "view:1", "ids"] {
            crowded.command(&["SET", key, "foreign"]);
        }
        let foreign = data(&mut crowded, "");
        let mut differences = Vec::new();
        for round in 0..3 {
            for call in SCRIPTS {
                let here = inside(&mut crowded, &sandbox, Mode::Prefix, *call);
                let there = alone(&mut own, *call);
                if same(&here) != same(&there) {
                    differences.push(format!("{round}: {}\n  {here:?}\n  {there:?}", call.0));
                }
                if data(&mut crowded, PREFIX) != data(&mut own, "") {
                    differences.push(format!("{round}: {}: other data", call.0));
                }
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        let mut left = data(&mut crowded, "");
        left.retain(|name, _| !name.starts_with(PREFIX));
        assert_eq!(left, foreign);
    }
}

/// Where two servers need not say the same.
fn same(value: &Value) -> String {
    let text = format!("{value:?}");
    let address = text.find("0x").map_or(text.len(), |at| at);
    // A field of a table is called so, and not a global.
    text[..address].replace("global 'undefined'", "field 'undefined'")
}
