//! Scripts in a namespace, on real servers: they do what they would do on a server of their own, and nothing of them gets out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

#[path = "random/chance.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test uses its own part")]
mod chance;

use std::collections::{BTreeMap, BTreeSet};

use chance::Chance;
use support::redis::Redis;
use support::resp::{Connection, Value};
use tidegate::redis::command;
use tidegate::redis::namespace::sandbox::Sandbox;
use tidegate::redis::namespace::{Judgement, Mode, Namespace, Rights, ScriptRule};

const PREFIX: &str = "cache:";

fn namespace(mode: Mode) -> Namespace {
    Namespace {
        name: "cache".into(),
        mode,
        prefixes: vec![PREFIX.as_bytes().into()],
        readable: Vec::new(),
        rights: Rights::ReadWrite,
        allowed: BTreeSet::new(),
        scripts: ScriptRule::Sandbox,
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
            let own = script.outward(text.as_bytes());
            Value::Error(String::from_utf8(own.into_owned()).unwrap())
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
    (
        "local n = redis.call('INCR', KEYS[1]) if n == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end return n",
        &["rate:1"],
        &["100000"],
    ),
    // A lock given back by its holder alone.
    (
        "if redis.call('get', KEYS[1]) == ARGV[1] then\n  return redis.call('del', KEYS[1])\nelse\n  return 0\nend",
        &["lock"],
        &["token"],
    ),
    (
        "if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end return 0",
        &["lock"],
        &["token", "100000"],
    ),
    (
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end",
        &["lock"],
        &["token"],
    ),
    // An increment only of what exists.
    (
        "local exists = redis.call('EXISTS', KEYS[1])\nif (exists == 1) then\n    return redis.call('INCRBY', KEYS[1], ARGV[1])\nelse return false end",
        &["rate:1"],
        &["5"],
    ),
    // A sliding window.
    (
        "local now = tonumber(ARGV[1])\nlocal window = tonumber(ARGV[2])\nredis.call('ZREMRANGEBYSCORE', KEYS[1], 0, now - window)\nlocal count = redis.call('ZCARD', KEYS[1])\nif count < tonumber(ARGV[3]) then\n  redis.call('ZADD', KEYS[1], now, now .. '-' .. count)\n  redis.call('EXPIRE', KEYS[1], window)\n  return {1, count + 1}\nend\nreturn {0, count}",
        &["window"],
        &["1000", "60", "2"],
    ),
    // A bucket of tokens.
    (
        "local b = redis.call('HMGET', KEYS[1], 'tokens', 'at')\nlocal tokens = tonumber(b[1]) or 10\nlocal at = tonumber(b[2]) or 0\ntokens = math.min(10, tokens + (tonumber(ARGV[1]) - at) * 0.1)\nlocal ok = tokens >= 1\nif ok then tokens = tokens - 1 end\nredis.call('HSET', KEYS[1], 'tokens', tokens, 'at', ARGV[1])\nreturn {ok and 1 or 0, tostring(tokens)}",
        &["bucket"],
        &["13"],
    ),
    // Jobs, in the manner of BullMQ: an alias, computed keys, includes.
    (
        "local rcall = redis.call\nlocal function addJob(prefix, id, data)\n  local key = prefix .. id\n  rcall('HMSET', key, 'name', 'job', 'data', cjson.encode(data), 'opts', '{}')\n  rcall('LPUSH', prefix .. 'wait', id)\n  rcall('XADD', prefix .. 'events', '1-' .. id, 'event', 'waiting', 'jobId', id)\n  return key\nend\nlocal id = rcall('INCR', KEYS[1])\nlocal key = addJob(ARGV[1], id, {a = {1, 2}})\nif rcall('EXISTS', key) == 0 then return -1 end\nrcall('ZADD', KEYS[2], 'NX', id, id)\nreturn {id .. '', rcall('HGET', key, 'data')}",
        &["bull:q:id", "bull:q:prio"],
        &["bull:q:"],
    ),
    (
        "local rcall = redis.call\nlocal jobId = rcall('RPOPLPUSH', KEYS[1], KEYS[2])\nif jobId then\n  local key = ARGV[1] .. jobId\n  rcall('HSET', key, 'processedOn', ARGV[2])\n  return {rcall('HGETALL', key), jobId}\nend\nreturn {0, 0}",
        &["bull:q:wait", "bull:q:active"],
        &["bull:q:", "77"],
    ),
    (
        "local rcall = redis.call\nlocal keys = rcall('KEYS', ARGV[1] .. '*')\ntable.sort(keys)\nreturn keys",
        &[],
        &["bull:q:"],
    ),
    // Scheduled jobs, in the manner of Sidekiq.
    (
        "redis.call('zadd', KEYS[1], 5, 'job1') redis.call('zadd', KEYS[1], 7, 'job2') return redis.call('zcard', KEYS[1])",
        &["schedule"],
        &[],
    ),
    (
        "local key, now = KEYS[1], ARGV[1]\nlocal jobs = redis.call('zrangebyscore', key, '-inf', now, 'limit', 0, 1)\nif jobs[1] then\n  redis.call('zrem', key, jobs[1])\n  return jobs[1]\nend",
        &["schedule"],
        &["6"],
    ),
    // Deletes by pattern, with SCAN.
    (
        "redis.call('mset', 'view:1', 'a', 'view:2', 'b', 'other', 'c')\nlocal cursor = '0'\nlocal n = 0\nrepeat\n  local r = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)\n  cursor = r[1]\n  if #r[2] > 0 then n = n + redis.call('UNLINK', unpack(r[2])) end\nuntil cursor == '0'\nreturn n",
        &[],
        &["view:*"],
    ),
    // Moves between lists with many names.
    (
        "redis.call('rpush', KEYS[1], 1, 2.5, 'x', 10000000000) return redis.call('lmpop', 2, KEYS[2], KEYS[1], 'left', 'count', 2)",
        &["l1", "l2"],
        &[],
    ),
    (
        "redis.call('zadd', KEYS[1], 1, 'a', 2, 'b') return {redis.call('zmpop', 1, KEYS[1], 'min'), redis.call('blpop', 'l1', 0), redis.call('bzpopmin', KEYS[1], 0)}",
        &["z1"],
        &[],
    ),
    (
        "redis.call('sadd', 's1', 'a', 'b') redis.call('sadd', 's2', 'b') redis.call('sinterstore', 's3', 's1', 's2') return {redis.call('smembers', 's3'), redis.call('sintercard', 2, 's1', 's2'), redis.call('zunionstore', 'z3', 2, 's1', 's2', 'WEIGHTS', 1, 2)}",
        &[],
        &[],
    ),
    // Sorting by other keys.
    (
        "redis.call('rpush', 'ids', 2, 1) redis.call('mset', 'w_1', 5, 'w_2', 3, 'o_1', 'one', 'o_2', 'two') return redis.call('sort', 'ids', 'by', 'w_*', 'get', '#', 'get', 'o_*')",
        &[],
        &[],
    ),
    (
        "redis.call('sort', 'ids', 'BY', 'nosort', 'STORE', 'sorted') return redis.call('lrange', 'sorted', 0, -1)",
        &[],
        &[],
    ),
    // Streams, read in both protocols.
    (
        "redis.call('xadd', 's', '1-1', 'f', 'v') redis.call('xgroup', 'create', 's', 'g', '0') return {redis.call('xread', 'count', 1, 'streams', 's', 'none', 0, 0), redis.call('xreadgroup', 'group', 'g', 'c', 'streams', 's', '>')}",
        &[],
        &[],
    ),
    (
        "redis.setresp(3) local r = redis.call('xread', 'streams', 's', 0) local t = {} for k, v in pairs(r.map) do t[#t + 1] = k t[#t + 1] = #v end return t",
        &[],
        &[],
    ),
    (
        "redis.setresp(3) return {redis.call('hgetall', 'none'), redis.call('zscore', 'z3', 'b'), redis.call('keys', 's3')}",
        &[],
        &[],
    ),
    (
        "return {redis.pcall('xreadgroup', 'group', 'nogroup', 'c', 'streams', 's', '>')['err']}",
        &[],
        &[],
    ),
    // Places.
    (
        "redis.call('geoadd', 'g', 13, 38, 'a', 15, 37, 'b') redis.call('georadius', 'g', 15, 37, 300, 'km', 'STORE', 'near') return redis.call('zrange', 'near', 0, -1)",
        &[],
        &[],
    ),
    // The whole database.
    (
        "return {redis.call('dbsize') > 5, redis.call('object', 'encoding', 'rate:1'), redis.call('exists', redis.call('randomkey')), redis.call('type', 's')}",
        &[],
        &[],
    ),
    (
        "return {redis.call('copy', 'w_1', 'w_9'), redis.call('rename', 'w_9', 'w_8'), redis.call('get', 'w_8'), redis.call('publish', 'c', 'm'), redis.call('pubsub', 'numsub', 'c'), redis.call('pubsub', 'channels')}",
        &[],
        &[],
    ),
    // Names that are numbers.
    (
        "redis.call('set', 7, 'seven') redis.call('set', 0.1, 'tenth') redis.call('set', -3, 'x') redis.call('set', 1e20, 'y') redis.call('set', 123456789012, 'z') return {redis.call('get', '7'), redis.call('mget', 7, 123456789012), redis.call('exists', 0.1)}",
        &[],
        &[],
    ),
    // Libraries.
    (
        "local t = cjson.decode(ARGV[1]) t.b = {1, 2, cjson.null} return {cjson.encode(t.b), cmsgpack.unpack(cmsgpack.pack({1, 'a'}))[2], bit.band(7, 3), struct.unpack('>I2', struct.pack('>I2', 5)), string.format('%05d', 7), ('x'):rep(3), table.concat({1, 2}, '-'), math.floor(2.7), redis.sha1hex('')}",
        &[],
        &["{\"a\":1}"],
    ),
    ("cjson.encode_sparse_array(true) return cjson.encode({[1] = 1, [100] = 2})", &[], &[]),
    (
        "local co = coroutine.wrap(function(a) local b = coroutine.yield(redis.call('get', a)) return redis.call('get', b) end) return {co('7'), co('w_1')}",
        &[],
        &[],
    ),
    (
        "local t = setmetatable({}, {__index = function(t, k) return k .. '!' end, __call = function(self, x) return x end}) return {t.a, t('b'), tostring(rawget(t, 'a')), select('#', 1, 2), type(next)}",
        &[],
        &[],
    ),
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
    (
        "redis.replicate_commands() redis.set_repl(redis.REPL_ALL) redis.log(redis.LOG_DEBUG, 'x') return redis.status_reply('FINE')",
        &[],
        &[],
    ),
    ("return redis.error_reply('MINE of one')", &[], &[]),
    ("#!lua flags=no-writes\nreturn redis.call('get', KEYS[1])", &["w_1"], &[]),
    ("#!lua flags=no-writes\nreturn redis.call('set', KEYS[1], 1)", &["w_1"], &[]),
    ("#!lua name=x\nreturn 1", &[], &[]),
    ("#!js\nreturn 1", &[], &[]),
    ("#!lua", &[], &[]),
    ("return redis.call('ping')", &[], &[]),
    ("return redis.call('time')[3]", &[], &[]),
    ("return redis.call('echo', 'x') .. redis.call('select', 0)['ok']", &[], &[]),
    ("redis.call('flushdb') return redis.call('dbsize')", &[], &[]),
    ("return {redis.call('randomkey'), redis.call('keys', '*'), 1}", &[], &[]),
    ("redis.setresp(3) return {1, redis.call('randomkey'), 2}", &[], &[]),
    // Many words.
    (
        "local t = {} for i = 1, 7900 do t[i] = i end return {redis.call('sadd', 'many', unpack(t)), redis.call('scard', 'many'), redis.call('rpush', KEYS[1], unpack(t)), redis.call('del', 'many', unpack(t)), redis.call('del', KEYS[1])}",
        &["l"],
        &[],
    ),
    (
        "local t = {} for i = 1, 3900 do t[2 * i - 1] = 'm' .. i t[2 * i] = i end redis.call('mset', unpack(t)) local n = 0 for i = 1, 3900 do n = n + redis.call('del', 'm' .. i) end return n",
        &[],
        &[],
    ),
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
    (
        "local ok, e = pcall(function() local x = redis.call('lpush', 'a', 1) end) return e",
        &[],
        &[],
    ),
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
    ("function undefined.x() end", &[], &[]),
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

/// Tries to get out: to read, change, count, list or tell of what is not the namespace's. In the other one all strings are `s3cret`
/// and one key's name has `hidden` in it.
const ATTACKS: &[&str] = &[
    "return redis.call('get', 'queue:secret')",
    "return redis.pcall('get', 'queue:secret')",
    "return redis.call('GeT', 'queue:secret')",
    "local c = redis.call return c('get', 'queue:secret')",
    "return redis['call']('get', 'queue:secret')",
    "return _G.redis.call('get', 'queue:secret')",
    "return _G['redis']['call']('get', 'queue:secret')",
    "return _G._G._G.redis.call('get', 'queue:secret')",
    "return rawget(_G, 'redis').call('get', 'queue:secret')",
    "for k, v in pairs(_G) do if k == 'redis' then return v.call('get', 'queue:secret') end end",
    "for k, v in next, _G do if type(v) == 'table' and v.call then return v.call('get', 'queue:secret') end end",
    "return getfenv(1).redis.call('get', 'queue:secret')",
    "return getfenv(0).redis.call('get', 'queue:secret')",
    "setfenv(1, {redis = redis}) return redis.call('get', 'queue:secret')",
    "return loadstring(\"return redis.call('get', 'queue:secret')\")()",
    "local done return load(function() if not done then done = true return \"return redis.call('get', 'queue:secret')\" end end)()",
    "return _G.loadstring(\"return redis.call('get', 'queue:secret')\")()",
    "return _G['load' .. 'string'](\"return redis.call('get', 'queue:secret')\")()",
    "return loadstring(string.dump(function() return redis.call('get', 'queue:secret') end))()",
    "return coroutine.wrap(function() return redis.call('get', 'queue:secret') end)()",
    "return select(2, coroutine.resume(coroutine.create(redis.call), 'get', 'queue:secret'))",
    "local ok, r = pcall(redis.call, 'get', 'queue:secret') return r",
    "local ok, r = xpcall(function() return redis.call('get', 'queue:secret') end, function(e) return e end) return tostring(r)",
    "local r = {} xpcall(function() error({}) end, function(e) r = redis.call('get', 'queue:secret') end) return r",
    "end return redis.call('get', 'queue:secret') --",
    "return 1 end local x = redis.call('get', 'queue:secret') do return x",
    "]] ]=] end end redis.call('set', 'queue:secret', 1)",
    "--[[\n]] return redis.call('get', 'queue:secret')",
    "--[==[ ]] ]=] ]==] return redis.call('get', 'queue:secret')",
    "return [[x]] .. redis.call('get', [==[queue:secret]==])",
    "return redis.call 'get'",
    "local string = {} return redis.call('get', 'queue:secret')",
    "string.sub = function() return 'cache:' end return redis.call('get', 'queue:secret')",
    "getmetatable('').__index = function() return function() return 'cache:' end end return redis.call('get', 'queue:secret')",
    "getmetatable('').__concat = function() return 'queue:secret' end return redis.call('get', 'x')",
    "getmetatable('').__eq = function() return true end return redis.call('get', 'queue:secret')",
    "type = function() return 'string' end return redis.call('get', 'queue:secret')",
    "function type() return 'number' end return redis.call('get', 'queue:secret')",
    "local t = setmetatable({}, {__tostring = function() return 'queue:secret' end}) return redis.call('get', t)",
    "local t = setmetatable({}, {__concat = function(a, b) return 'queue:secret' end}) return redis.call('get', t)",
    "local t = setmetatable({}, {__index = function() return 'queue:secret' end}) return redis.call('get', unpack(t, 1, 1))",
    "KEYS[1] = 'queue:secret' return redis.call('get', KEYS[1])",
    "KEYS = {'queue:secret'} return redis.call('get', KEYS[1])",
    "local KEYS = {'queue:secret'} return redis.call('get', KEYS[1])",
    "setmetatable(KEYS, {__index = function() return 'queue:secret' end}) return redis.call('get', KEYS[9])",
    "setmetatable(_G, {__index = function() return redis end}) return x.call('get', 'queue:secret')",
    "return getmetatable(_G).__index(_G, 'redis').call('get', 'queue:secret')",
    "local m = getmetatable(_G) m.__index = m return redis.call('get', 'queue:secret')",
    "rawset(_G, 'x', 1) return redis.call('get', 'queue:secret')",
    "rawset(redis, 'x', 1) return redis.call('get', 'queue:secret')",
    "redis.call = redis.pcall return redis.call('get', 'queue:secret')",
    "return server.call('get', 'queue:secret')",
    "return redis.call('mget', 'cache:a', 'queue:secret', 'a')",
    "return redis.call('mset', 'cache:a', 1, 'queue:secret', 2)",
    "return redis.call('del', 'cache:a', 'queue:secret')",
    "return redis.call('unlink', 'queue:secret', 'queue:list')",
    "return redis.call('rename', 'queue:secret', 'cache:stolen')",
    "return redis.call('rename', 'cache:a', 'queue:secret')",
    "return redis.call('copy', 'queue:secret', 'cache:stolen')",
    "return redis.call('copy', 'cache:a', 'cache:b', 'DB', 1)",
    "return redis.call('move', 'queue:secret', 1)",
    "return redis.call('swapdb', 0, 1)",
    "return redis.call('migrate', '127.0.0.1', 1, 'queue:secret', 0, 10)",
    "return redis.call('dump', 'queue:secret')",
    "return redis.call('restore', 'queue:new', 0, redis.call('dump', 'cache:a'))",
    "return redis.call('set', 'queue:new', 1)",
    "return redis.call('lmove', 'queue:list', 'cache:l', 'left', 'left')",
    "return redis.call('rpoplpush', 'queue:list', 'cache:l')",
    "return redis.call('lmpop', 2, 'cache:none', 'queue:list', 'left')",
    "return redis.call('lmpop', '2', 'cache:none', 'queue:list', 'left')",
    "return redis.call('zmpop', 1, 'queue:zset', 'min')",
    "return redis.call('blpop', 'cache:none', 'queue:list', 0)",
    "return redis.call('brpoplpush', 'queue:list', 'cache:l', 0)",
    "return redis.call('bzpopmin', 'queue:zset', 0)",
    "return redis.call('sunionstore', 'cache:s', 'queue:set')",
    "return redis.call('sunion', 'cache:s', 'queue:set')",
    "return redis.call('sintercard', 1, 'queue:set')",
    "return redis.call('zunionstore', 'cache:z', 1, 'queue:zset')",
    "return redis.call('zunionstore', 'queue:zset', 1, 'cache:none')",
    "return redis.call('zrangestore', 'cache:z', 'queue:zset', 0, -1)",
    "return redis.call('zunion', '1', 'queue:zset')",
    "return redis.call('bitop', 'not', 'cache:b', 'queue:secret')",
    "return redis.call('pfmerge', 'queue:new', 'cache:none')",
    "redis.call('rpush', 'cache:ids', 'secret') return redis.call('sort', 'cache:ids', 'by', 'nosort', 'get', 'queue:*')",
    "redis.call('rpush', 'cache:ids', 'queue:secret') return redis.call('sort', 'cache:ids', 'by', 'nosort', 'get', '*')",
    "redis.call('rpush', 'cache:ids', 'queue:secret') return redis.call('sort_ro', 'cache:ids', 'by', 'nosort', 'get', '*')",
    "redis.call('rpush', 'cache:ids', 1) return redis.call('sort', 'cache:ids', 'by', 'nosort', 'store', 'cache:x', 'StOrE', 'queue:new')",
    "return redis.call('sort', 'queue:list', 'alpha')",
    "redis.call('geoadd', 'cache:g', 1, 1, 'm') return redis.call('georadius', 'cache:g', 1, 1, 5, 'km', 'store', 'cache:x', 'storedist', 'queue:new')",
    "redis.call('geoadd', 'cache:g', 1, 1, 'm') return redis.call('georadiusbymember', 'cache:g', 'm', 5, 'km', 'STORE', 'queue:new')",
    "redis.call('geoadd', 'cache:g', 1, 1, 'm') return redis.call('geosearchstore', 'queue:new', 'cache:g', 'frommember', 'm', 'byradius', 5, 'km')",
    "return redis.call('xread', 'streams', 'cache:none', 'queue:stream', 0, 0)",
    "return redis.call('xread', 'count', 'streams', 'streams', 'queue:stream', 0)",
    "return redis.call('xadd', 'queue:stream', '*', 'a', 'b')",
    "return redis.call('xgroup', 'create', 'queue:stream', 'g', 0)",
    "return redis.call('xinfo', 'STREAM', 'queue:stream')",
    "return redis.call('object', 'encoding', 'queue:secret') == redis.call('object', 'encoding', 'cache:nothing') or 'hidden'",
    "return redis.call('memory', 'usage', 'queue:secret') and 'hidden'",
    "return redis.call('keys', '*')",
    "return redis.call('keys', 'queue:*')",
    "return redis.call('keys', '[q]ueue:*')",
    "return redis.call('keys', '')",
    "return redis.call('scan', 0, 'count', 1000)",
    "return redis.call('scan', 0, 'match', 'queue:*', 'count', 1000)",
    "return redis.call('scan', 0, 'match', '*', 'count', 1000, 'match', 'queue:*')",
    "return redis.call('scan', '0', 'COUNT', '1000', 'MATCH')",
    "redis.setresp(3) return redis.call('keys', '*')",
    "redis.setresp(3) return redis.call('scan', 0, 'count', 1000)",
    "for i = 1, 100 do local k = redis.call('randomkey') if k and redis.call('exists', k) == 0 then return 'hidden' .. k end end",
    "return redis.call('dbsize') > 6 and 'hidden'",
    "return redis.call('flushdb')",
    "return redis.call('FlushAll', 'async')",
    "return redis.call('info', 'keyspace'):find('keys=') and 'hidden'",
    "return redis.call('info'):find('keys=') and 'hidden'",
    "redis.setresp(3) return redis.call('info', 'keyspace').verbatim_string.string:find('keys=') and 'hidden'",
    "return redis.call('publish', 'queue:ch', 's3cret')",
    "return redis.call('spublish', 'queue:ch', 's3cret')",
    "return redis.call('pubsub', 'channels')",
    "return redis.call('pubsub', 'channels', '*')",
    "return redis.call('PUBSUB', 'CHANNELS', 'queue:*')",
    "return redis.call('pubsub', 'numsub', 'queue:ch')[2] == 1 and 'hidden'",
    "return redis.call('pubsub', 'numpat') == 1 and 'hidden'",
    "return redis.call('eval', \"return redis.call('get', 'queue:secret')\", 0)",
    "return redis.call('evalsha', 'x', 0)",
    "return redis.call('fcall', 'x', 0)",
    "return redis.call('function', 'flush')",
    "return redis.call('script', 'flush')",
    "return redis.call('config', 'set', 'maxmemory', 1)",
    "return redis.call('config', 'get', '*')",
    "return redis.call('client', 'list')",
    "return redis.call('debug', 'object', 'queue:secret')",
    "return redis.call('slowlog', 'get')",
    "return redis.call('memory', 'stats')",
    "return redis.call('cluster', 'countkeysinslot', 1)",
    "return redis.call('multi')",
    "return redis.call('shutdown')",
    "return redis.call('replicaof', '127.0.0.1', 1)",
    "return redis.call('acl', 'list')",
    "return redis.call('monitor')",
    "return redis.call('subscribe', 'queue:ch')",
    "redis.call('select', 0) return redis.call('get', 'queue:secret')",
    "redis.call('command', 'getkeys', 'get', 'queue:secret') return redis.call('get', 'queue:secret')",
    "return redis.call('GET\\n', 'queue:secret')",
    "return redis.call('\\nGET', 'queue:secret')",
    "return redis.call('PING=-\\nGET', 'queue:secret')",
    "return redis.call('GET\\0', 'queue:secret')",
    "return redis.call('object|encoding', 'queue:secret')",
    "return redis.call('object', 'encoding\\n', 'queue:secret')",
    "return redis.call('get', 'cache:\\0/../queue:secret')",
    "return redis.call('', 'queue:secret')",
    "return redis.call('mget', 'cache:a', nil, 'queue:secret')",
    "return redis.call('del', 'a', nil, 'queue:secret')",
    "return redis.call('del', 'cache:a', 'queue:secret')",
    "return redis.call('unlink', 'a', unpack({nil, 'queue:secret'}, 1, 2))",
    "local c = 'mget' return redis.call(c, 'cache:a', 'queue:secret')",
    "return redis.call(ARGV[1] or 'get', 'queue:secret')",
    "return redis.call(nil, 'get', 'queue:secret')",
    "return redis.call({'get', 'queue:secret'})",
    "return redis.call(1, 'queue:secret')",
    "local t = {} for i = 1, 7000 do t[i] = 'queue:secret' end return redis.call('mget', unpack(t))[1]",
    "local function f() return f() + 1 end pcall(f) return redis.call('get', 'queue:secret')",
    "local function f(n) local ok, r = pcall(f, n + 1) if ok then return r end return redis.call('get', 'queue:secret') end return f(1)",
    "cjson.decode = redis.call return cjson.decode('get', 'queue:secret')",
    "return cjson.encode({redis = tostring(redis), g = cmsgpack.unpack(cmsgpack.pack({'get', 'queue:secret'}))[2]}):find('xx') or redis.call(unpack(cjson.decode('[\"get\",\"queue:secret\"]')))",
    "return redis.sha1hex(redis.call('get', 'queue:secret') or '') == '5d90ea8f0ca5a4e9e7ae1fbfa3d4ba1aa8d5e1a4' and 'hidden'",
    "return table.foreach(_G, function(k, v) if k == 'redis' then return v.call('get', 'queue:secret') end end)",
    "return string.gsub('queue:secret', '.+', function(k) return redis.call('get', k) or 'none' end)",
    "local _0 = {redis = {call = error}} local _1 = _0 return redis.call('get', 'queue:secret')",
    "return _0.redis.call('get', 'queue:secret')",
    "return rp('get', 'queue:secret')",
    "return redis_call('get', 'queue:secret')",
    "local function f(...) arg = nil return arg end f() return redis.call('get', 'queue:secret')",
    "repeat local redis = redis until redis.call('get', 'queue:secret') or true return redis.call('get', 'queue:secret')",
    "for redis = 1, 1 do end for _, redis in pairs({redis}) do return redis.call('get', 'queue:secret') end",
    "local redis = redis return redis.call('get', 'queue:secret')",
    "return __redis__err__handler('x').err and redis.call('get', 'queue:secret')",
    "collectgarbage() return redis.call('get', 'queue:secret')",
    "return redis.acl_check_cmd('get', 'queue:secret') and redis.call('get', 'queue:secret')",
    "return debug.getregistry()",
    "return redis.breakpoint and redis.call('get', 'queue:secret')",
    "return require and redis.call('get', 'queue:secret')",
    "#!lua flags=allow-cross-slot-keys\nreturn redis.call('get', 'queue:secret')",
    "#!lua\nend return redis.call('get', 'queue:secret')",
    "#!lua flags=allow-cross-slot-keys\r\n\rreturn redis.call('get', 'queue:secret')",
    "return redis.call('get', 'queue:secret')\r--\n",
    "return\u{b}redis\u{c}.\tcall\n('get', 'queue:secret')",
    "return redis --[[ ]] . --\n call('get', 'queue:secret')",
    "local a = 'x\\\n' return redis.call('get', 'queue:secret')",
    "local a = \"\\\"\" return redis.call('get', 'queue:secret') -- \"",
];

const OTHERS: &str = "queue:";

fn fill(connection: &mut Connection) {
    for words in [
        &["SET", "queue:secret", "s3cret"][..],
        &["SET", "queue:hidden", "s3cret"],
        &["RPUSH", "queue:list", "s3cret", "s3cret"],
        &["SADD", "queue:set", "s3cret"],
        &["ZADD", "queue:zset", "1", "s3cret"],
        &["HSET", "queue:hash", "s3cret", "s3cret"],
        &["XADD", "queue:stream", "1-1", "s3cret", "s3cret"],
        &["SET", "caches", "s3cret"],
        &["SET", "cache:a", "mine"],
    ] {
        assert!(!matches!(connection.command(words), Value::Error(_)), "{words:?}");
    }
}

/// What of the others' was told or changed.
fn breach(connection: &mut Connection, reply: &Value) -> Option<String> {
    let told = flat(reply);
    if told.contains("s3cret") || told.contains("hidden") {
        return Some(format!("told: {told}"));
    }
    let mut others = data(connection, OTHERS);
    others.extend(data(connection, "caches"));
    let intact = others.len() == 8 && others.values().all(|value| flat(value).contains("s3cret"));
    (!intact).then(|| format!("changed: {:?}", others.keys()))
}

fn flat(value: &Value) -> String {
    match value {
        Value::Array(items) | Value::Push(items) => {
            items.iter().map(flat).collect::<Vec<_>>().join(" ")
        }
        Value::Map(pairs) => {
            let pair = |(key, value): &(Value, Value)| flat(key) + " " + &flat(value);
            pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
        }
        value => value.text(),
    }
}

#[test]
fn no_script_gets_out_of_its_namespace() {
    for server in Redis::each() {
        for mode in [Mode::Prefix, Mode::Enforce] {
            let mut connection = server.direct();
            let mut listener = server.direct();
            listener.command(&["SUBSCRIBE", "queue:ch"]);
            let sandbox = Sandbox::new(&namespace(mode));
            let mut breaches = Vec::new();
            connection.command(&["FLUSHALL"]);
            fill(&mut connection);
            for attack in ATTACKS {
                let reply = inside(&mut connection, &sandbox, mode, (attack, &["a"], &[]));
                let found = breach(&mut connection, &reply);
                breaches.extend(found.map(|found| format!("{attack}\n  {found}")));
            }
            assert!(breaches.is_empty(), "{mode:?}\n{}", breaches.join("\n"));
            connection.command(&["PUBLISH", "queue:ch", "the end"]);
            assert_eq!(listener.reply().words()[2], "the end", "nothing came before it");
        }
    }
}

/// The attacks are such: without the sandbox many of them get out.
#[test]
fn the_same_scripts_get_out_without_a_sandbox() {
    let server = Redis::start();
    let mut connection = server.direct();
    let mut breaches = 0;
    for attack in ATTACKS {
        // Some would end the server, or make another its master.
        if attack.contains("shutdown") || attack.contains("replicaof") {
            continue;
        }
        connection.command(&["FLUSHALL"]);
        fill(&mut connection);
        let reply = alone(&mut connection, (attack, &["a"], &[]));
        breaches += usize::from(breach(&mut connection, &reply).is_some());
    }
    assert!(breaches > 80, "{breaches} of {}", ATTACKS.len());
    println!("{breaches} of {}", ATTACKS.len());
}

const PIECES: &[&str] = &[
    "local",
    "x",
    "redis",
    "type",
    "=",
    "function",
    "(",
    ")",
    "end",
    "do",
    "repeat",
    "until",
    "return",
    "...",
    "'s'",
    "[[",
    "]]",
    "--",
    "--[[",
    "\n",
    "{",
    "}",
    ",",
    ";",
    ".",
    ":",
    "for",
    "in",
    "if",
    "then",
    "else",
    "elseif",
    "while",
    "break",
    "arg",
    "_0",
    "not",
    "#",
    "..",
    "1",
    "3..2",
    "[",
    "]",
    "[=[",
    "]=]",
    "'",
    "\"",
    "\\",
    "nil",
    "self",
    "and",
    "\r",
    "KEYS",
    "f",
    "local x =",
    "local function f(...)",
    "end end",
    "goto",
    "0x",
    "1e",
    "~=",
    "==",
    "\u{b}",
    "@",
    "\u{e9}",
];

/// `source` with a few changes.
fn changed(source: &str, chance: &mut Chance) -> String {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut pieces: Vec<String> = Vec::new();
    for letter in source.chars() {
        match pieces.last_mut() {
            Some(last) if is_word(letter) && last.chars().all(is_word) => last.push(letter),
            _ => pieces.push(letter.to_string()),
        }
    }
    for _ in 0..=chance.below(3) {
        let at = chance.below(pieces.len() + 1);
        match chance.below(4) {
            0 if at < pieces.len() => drop(pieces.remove(at)),
            1 if at < pieces.len() => {
                let other = chance.below(pieces.len());
                pieces.swap(at, other);
            }
            2 if at < pieces.len() => pieces[at] = chance.pick(PIECES).to_owned(),
            _ => pieces.insert(at, format!(" {} ", chance.pick(PIECES))),
        }
    }
    pieces.concat()
}

/// Writes scripts whose few names stand for something else every other line.
struct Writer<'a> {
    chance: &'a mut Chance,
    text: String,
    depth: usize,
}

impl Writer<'_> {
    fn word(&mut self, word: &str) {
        self.text.push_str(word);
        self.text.push_str(self.chance.weighted(&[(9, " "), (1, "\n"), (1, " --[[ x ]] ")]));
    }

    fn name(&mut self) {
        let name = self.chance.pick(&["x", "y", "redis", "type", "arg", "_0", "self"]);
        self.word(name);
    }

    fn names(&mut self) {
        self.name();
        while self.chance.often(30) {
            self.word(",");
            self.name();
        }
    }

    fn block(&mut self) {
        self.depth += 1;
        for _ in 0..self.chance.below(if self.depth > 4 { 1 } else { 3 }) {
            self.statement();
            self.word(";");
        }
        self.depth -= 1;
    }

    fn body(&mut self) {
        self.word("(");
        match self.chance.below(3) {
            0 => self.names(),
            1 => self.word("..."),
            _ => {}
        }
        self.word(")");
        self.block();
        if self.chance.often(30) {
            self.word("return");
            self.expression();
        }
        self.word("end");
    }

    fn statement(&mut self) {
        match self.chance.below(12) {
            0 | 1 => {
                self.word("local");
                self.names();
                if self.chance.often(70) {
                    self.word("=");
                    self.expression();
                }
            }
            2 => {
                self.name();
                self.word("=");
                self.expression();
            }
            3 => {
                self.word("do");
                self.block();
                self.word("end");
            }
            4 => {
                self.word("if");
                self.expression();
                self.word("then");
                self.block();
                self.word("else");
                self.block();
                self.word("end");
            }
            5 => {
                self.word("while");
                self.expression();
                self.word("do");
                self.block();
                self.word("end");
            }
            other => self.other_statement(other),
        }
    }

    fn other_statement(&mut self, kind: usize) {
        match kind {
            6 => {
                self.word("repeat");
                self.block();
                self.word("until");
                self.expression();
            }
            7 => {
                self.word("for");
                self.name();
                self.word("=");
                self.expression();
                self.word(",");
                self.expression();
                self.word("do");
                self.block();
                self.word("end");
            }
            8 => {
                self.word("for");
                self.names();
                self.word("in");
                self.expression();
                self.word("do");
                self.block();
                self.word("end");
            }
            9 => {
                self.word("local function");
                self.name();
                self.body();
            }
            10 => {
                self.word("function");
                self.name();
                let rest = self.chance.pick(&["", ".x", ":x", ".x.y"]);
                self.word(rest);
                self.body();
            }
            _ => {
                self.name();
                self.word(". call (");
                self.expression();
                self.word(")");
            }
        }
    }

    fn expression(&mut self) {
        self.depth += 1;
        match self.chance.below(if self.depth > 5 { 2 } else { 9 }) {
            0 | 1 => self.name(),
            2 => self.word("'x'"),
            3 => {
                self.word("function");
                self.body();
            }
            4 => {
                self.word("{ x =");
                self.expression();
                self.word(", [");
                self.expression();
                self.word("] = 1 ;");
                self.expression();
                self.word("}");
            }
            5 => {
                self.name();
                self.text.push('(');
                self.expression();
                self.word(")");
            }
            6 => {
                self.word("(");
                self.expression();
                self.word(") .. not");
                self.expression();
            }
            7 => {
                self.name();
                self.word("[");
                self.expression();
                self.word("] . y");
            }
            _ => {
                self.word("#");
                self.name();
            }
        }
        self.depth -= 1;
    }
}

fn written(chance: &mut Chance) -> String {
    let mut writer = Writer { chance, text: String::new(), depth: 0 };
    for _ in 0..6 {
        writer.statement();
        writer.word(";");
    }
    writer.text
}

/// The server's own compiler is asked: what it compiles is wrapped, and of what was wrapped no instruction behind the first line
/// touches a global name.
#[test]
fn the_servers_compiler_finds_no_global_name_in_a_wrapped_script() {
    let server = Redis::start();
    let mut connection = server.direct();
    let sandbox = Sandbox::new(&namespace(Mode::Prefix));
    let seed = number("TIDEGATE_RANDOM_SEED").unwrap_or(1);
    let mut chance = Chance::new(seed);
    let bases: Vec<&str> =
        SCRIPTS.iter().map(|call| call.0).chain(ATTACKS.iter().copied()).collect();
    let bases: Vec<&str> = bases.into_iter().filter(|base| !base.starts_with("#!")).collect();
    let compile = "local its = loadstring(ARGV[1]) local ours, why = nil, nil if ARGV[2] ~= '' then ours, why = loadstring(ARGV[2], '@user_script') end \
        return {its and 1 or 0, ours and string.dump(ours) or '', why or ''}";
    let mut compiled = 0;
    let cases = number("TIDEGATE_RANDOM_SCRIPTS").unwrap_or(6_000);
    for case in 0..cases {
        let source = match chance.often(50) {
            true => written(&mut chance),
            false => changed(bases[chance.below(bases.len())], &mut chance),
        };
        let source = format!("\n{source}");
        let ours = sandbox.wrap(source.as_bytes());
        let sent = ours.as_deref().map(|sent| String::from_utf8(sent.to_vec()).unwrap());
        let reply =
            connection.command(&["EVAL", compile, "0", &source, sent.as_deref().unwrap_or("")]);
        let Value::Array(items) = reply else { panic!("{reply:?}: {source}") };
        let [Value::Integer(its), Value::Bulk(code), why] = &items[..] else { panic!("{items:?}") };
        // In a list of values the server's compiler takes a bracket on the next line for the name's, and nowhere else.
        if why.text().contains("ambiguous syntax") {
            continue;
        }
        assert_eq!(
            *its == 1,
            !code.is_empty(),
            "seed {seed}, case {case}: {:?} {why:?}\n{source:?}",
            ours.err()
        );
        if !code.is_empty() {
            compiled += 1;
            assert_eq!(globals(code), 0, "seed {seed}, case {case}:\n{source}");
        }
    }
    println!("{compiled} of {cases} were scripts");
    assert!(compiled > cases / 4, "{compiled}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many instructions of compiled Lua 5.1 code, behind the first line, read or write a global name.
fn globals(code: &[u8]) -> usize {
    assert_eq!(&code[..12], b"\x1bLua\x51\x00\x01\x04\x08\x04\x08\x00");
    let mut reader = Reader { code, at: 12 };
    let found = reader.function();
    assert_eq!(reader.at, code.len());
    found
}

struct Reader<'a> {
    code: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> &[u8] {
        self.at += length;
        &self.code[self.at - length..self.at]
    }

    fn int(&mut self) -> usize {
        usize::try_from(u32::from_le_bytes(self.take(4).try_into().unwrap())).unwrap()
    }

    fn string(&mut self) {
        let length = u64::from_le_bytes(self.take(8).try_into().unwrap());
        self.take(usize::try_from(length).unwrap());
    }

    fn function(&mut self) -> usize {
        self.string();
        self.take(4 + 4 + 4);
        let count = self.int();
        let codes: Vec<u8> = (0..count).map(|_| self.take(4)[0] & 0x3f).collect();
        for _ in 0..self.int() {
            match self.take(1)[0] {
                0 => {}
                1 => drop(self.take(1).len()),
                3 => drop(self.take(8).len()),
                4 => self.string(),
                other => panic!("constant of type {other}"),
            }
        }
        let mut found: usize = (0..self.int()).map(|_| self.function()).sum();
        assert_eq!(self.int(), codes.len());
        for code in codes {
            let line = self.int();
            // GETGLOBAL and SETGLOBAL.
            found += usize::from(line > 1 && matches!(code, 5 | 7));
        }
        for _ in 0..self.int() {
            self.string();
            self.take(8);
        }
        for _ in 0..self.int() {
            self.string();
        }
        found
    }
}

/// The words that scripts call commands with: of all kinds, by chance.
const WORDS: &[&str] = &[
    "a",
    "b",
    "cache:a",
    "cache:b",
    "shared:a",
    "queue:a",
    "1",
    "2",
    "0",
    "3",
    "STORE",
    "storedist",
    "STREAMS",
    "BY",
    "GET",
    "#",
    "cache:w_*",
    "queue:w_*",
    "LIMIT",
    "KEYS",
    "COUNT",
    "GROUP",
    "MATCH",
    "DB",
    "ASC",
    "LEFT",
    "AND",
    "km",
    "BLOCK",
    "*",
    "cache:*",
    "WEIGHTS",
    "CLAIM",
    "NOACK",
    "-1",
    "x",
];

/// A command in a script is judged as its client's own would be, and goes to the server with the same words: MONITOR tells.
#[test]
fn a_scripts_commands_are_judged_as_a_clients() {
    for server in Redis::each() {
        let mut read = namespace(Mode::Enforce);
        read.readable.push(b"shared:"[..].into());
        let mut only_read = read.clone();
        only_read.rights = Rights::ReadOnly;
        let mut several = namespace(Mode::Enforce);
        several.prefixes.push(b"queue:a"[..].into());
        for namespace in
            [namespace(Mode::Prefix), namespace(Mode::Enforce), read, only_read, several]
        {
            compare_judgements(&server, &namespace);
        }
    }
}

fn compare_judgements(server: &Redis, namespace: &Namespace) {
    let sandbox = Sandbox::new(namespace);
    let script = sandbox.learn(b"return redis.pcall(unpack(ARGV))").unwrap();
    let source = std::str::from_utf8(&script.sent).unwrap();
    let (mut connection, mut monitor) = (server.direct(), server.direct());
    let sha = connection.command(&["SCRIPT", "LOAD", source]).text();
    monitor.command(&["MONITOR"]);
    let mut chance = Chance::new(7);
    let mut seen = 0;
    let commands = command::all().iter().filter(|command| {
        !command.flags.has(command::Flags::NO_SCRIPT | command::Flags::CONTAINER)
            && !matches!(
                command.name,
                "KEYS" | "SCAN" | "RANDOMKEY" | "DBSIZE" | "FLUSHDB" | "FLUSHALL" | "INFO"
            )
            && !command.name.starts_with("PUBSUB|")
    });
    for command in commands {
        for _ in 0..12 {
            let mut words: Vec<&str> = command.name.split('|').collect();
            let more = match (chance.often(50), usize::from(command.arity.unsigned_abs())) {
                (true, arity) => arity.saturating_sub(words.len()) + chance.below(3),
                (false, _) => chance.below(9),
            };
            words.extend((0..more).map(|_| chance.pick(WORDS)));
            let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let judged: Result<Vec<String>, String> = match namespace.judge(&bytes) {
                Judgement::Passes => Ok(words.iter().map(|word| (*word).to_owned()).collect()),
                Judgement::Becomes(words, _) => {
                    let text = |word: &std::borrow::Cow<'_, [u8]>| {
                        String::from_utf8(word.to_vec()).unwrap()
                    };
                    Ok(words.iter().map(text).collect())
                }
                Judgement::Refused(refusal) => Err(refusal.text),
                Judgement::Errand(_) | Judgement::Script => panic!("{words:?}"),
            };
            let mut call = vec!["EVALSHA", &sha, "0"];
            call.extend(&words);
            let reply = connection.command(&call);
            let ran = ran(&mut connection, &mut monitor);
            match (judged, ran) {
                (Err(text), None) => assert_eq!(reply.error(), text, "{words:?}"),
                (Err(text), Some(ran)) => panic!("{words:?}: {text}, but {ran}"),
                // The server did not like it.
                (Ok(_), None) => {
                    assert!(!reply.error().starts_with("NOPERM"), "{words:?}: {reply:?}")
                }
                (Ok(words), Some(ran)) => {
                    seen += 1;
                    assert_eq!(
                        ran,
                        words
                            .iter()
                            .map(|word| format!("\"{word}\""))
                            .collect::<Vec<_>>()
                            .join(" ")
                    );
                }
            }
        }
    }
    println!("{seen} ran");
    assert!(seen > 150, "{seen}");
}

/// What the last script ran, as MONITOR tells it.
fn ran(connection: &mut Connection, monitor: &mut Connection) -> Option<String> {
    connection.command(&["ECHO", "so far"]);
    let mut ran = None;
    loop {
        let line = monitor.reply().text();
        if line.ends_with("\"ECHO\" \"so far\"") {
            return ran;
        }
        if let Some((_, words)) = line.split_once(" lua] ") {
            assert_eq!(ran, None, "one command alone");
            ran = Some(words.to_owned());
        }
    }
}

/// `cargo nextest run --test redis_sandbox --run-ignored all --success-output final cost`
#[test]
#[ignore = "measures"]
fn the_cost_of_a_script() {
    let one = "return redis.call('GET', KEYS[1])";
    let incr = "local n = redis.call('INCR', KEYS[1]) if n == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end return n";
    let ten =
        "for i = 1, 5 do redis.call('SET', KEYS[1], i) redis.call('GET', KEYS[1]) end return 1";
    let alias = "local rcall = redis.call for i = 1, 5 do rcall('SET', KEYS[1], i) rcall('GET', KEYS[1]) end return 1";
    let several = "return redis.call('MGET', KEYS[1], 'b', 'c')";
    let dynamic = "return redis.call(ARGV[2], KEYS[1])";
    let library =
        "return cjson.encode({redis.call('GET', KEYS[1]), string.format('%d', 7), tonumber('5')})";
    for server in Redis::each() {
        for (name, source) in [
            ("one", one),
            ("incr", incr),
            ("ten", ten),
            ("alias ten", alias),
            ("mget", several),
            ("dynamic", dynamic),
            ("library", library),
        ] {
            let mut line = format!("{name:10}");
            for mode in [None, Some(Mode::Prefix), Some(Mode::Enforce)] {
                let sent = match mode {
                    Some(mode) => Sandbox::new(&namespace(mode)).wrap(source.as_bytes()).unwrap(),
                    None => source.as_bytes().to_vec(),
                };
                line.push_str(&cost(&server, &sent));
            }
            println!("{line}");
        }
    }
}

/// Microseconds of the server's for a call, the least of some tries; the bytes of the script, and of the server's memory for it.
fn cost(server: &Redis, source: &[u8]) -> String {
    let mut connection = server.direct();
    connection.command(&["FLUSHALL"]);
    let source = std::str::from_utf8(source).unwrap();
    connection.command(&["SCRIPT", "FLUSH"]);
    let memory = |connection: &mut Connection| {
        let info = connection.command(&["INFO", "memory"]).text();
        let field = |name: &str| -> i64 {
            let at = info.split("\r\n").find_map(|line| line.strip_prefix(name));
            at.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        field("used_memory_lua:") + field("used_memory_scripts:")
    };
    let before = memory(&mut connection);
    let copies = 50;
    for copy in 0..copies {
        connection.command(&["SCRIPT", "LOAD", &format!("{source} -- {copy}")]);
    }
    connection.command(&["EVAL", "collectgarbage() return 1", "0"]);
    let bytes = (memory(&mut connection) - before) / copies;
    let sha = connection.command(&["SCRIPT", "LOAD", source]).text();
    let call = ["EVALSHA", &sha, "1", "cache:key", "1000", "GET"];
    let calls: Vec<&[&str]> = (0..500).map(|_| &call[..]).collect();
    let mut least = f64::MAX;
    for _ in 0..20 {
        connection.command(&["CONFIG", "RESETSTAT"]);
        connection.pipeline(&calls);
        let info = connection.command(&["INFO", "commandstats"]).text();
        let line = info.split("\r\n").find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
        let each = line.split("usec_per_call=").nth(1).unwrap().split(',').next().unwrap();
        least = least.min(each.parse().unwrap());
    }
    format!("  {least:6.2} us {:5} B {bytes:6} B", source.len())
}

/// Where there are several prefixes, some to be read only, the whole database is what lies under them.
#[test]
fn the_whole_database_is_the_namespaces() {
    for server in Redis::each() {
        let mut connection = server.direct();
        let mut enforced = namespace(Mode::Enforce);
        enforced.prefixes.push(b"files:"[..].into());
        enforced.readable.push(b"shared:"[..].into());
        let sandbox = Sandbox::new(&enforced);
        connection.command(&[
            "MSET", "cache:a", "1", "files:b", "2", "shared:c", "3", "queue:d", "4", "cachet", "5",
        ]);
        let mut run =
            |source: &str| inside(&mut connection, &sandbox, Mode::Enforce, (source, &[], &[]));
        let sorted = |value: Value| {
            let mut words = value.words();
            words.sort();
            words.join(" ")
        };
        assert_eq!(sorted(run("return redis.call('keys', '*')")), "cache:a files:b shared:c");
        assert_eq!(sorted(run("return redis.call('keys', '*:[bd]')")), "files:b");
        assert_eq!(
            sorted(run("return redis.call('scan', 0, 'count', 1000)[2]")),
            "cache:a files:b shared:c"
        );
        assert_eq!(run("return redis.call('dbsize')"), Value::Integer(3));
        assert_eq!(run("return redis.call('get', 'shared:c')").text(), "3");
        assert_eq!(run("return redis.call('mget', 'shared:c', 'cache:a')").words(), ["3", "1"]);
        for (source, told) in [
            (
                "return redis.call('set', 'shared:c', 1)",
                "NOPERM 'set' names the key 'shared:c', which may only be read by namespace 'cache'",
            ),
            (
                "return redis.call('del', 'shared:c')",
                "NOPERM 'del' names the key 'shared:c', which may only be read by namespace 'cache'",
            ),
            (
                "return redis.call('get', 'queue:d')",
                "NOPERM 'get' names the key 'queue:d', which is outside of namespace 'cache'",
            ),
            (
                "return redis.call('nosuch', 'cache:a')",
                "NOPERM 'nosuch' is not known to tidegate, which can't tell what it touches; it is refused in namespace 'cache' (if it must be, list it in the namespace's allow)",
            ),
        ] {
            assert!(run(source).error().starts_with(told), "{:?}", run(source));
            let caught =
                format!("return {}.err", source.replace("return redis.call", "redis.pcall"));
            assert_eq!(run(&caught).text(), told);
        }
        assert_eq!(run("return redis.call('flushall')").text(), "OK");
        assert_eq!(sorted(connection.command(&["KEYS", "*"])), "cachet queue:d shared:c");
    }
}

/// What is allowed by name is not looked at.
#[test]
fn what_is_allowed_passes() {
    let server = Redis::start();
    let mut connection = server.direct();
    let mut prefixed = namespace(Mode::Prefix);
    prefixed.allowed = BTreeSet::from(["DBSIZE".into(), "NO.SUCH".into(), "SLOWLOG|LEN".into()]);
    let sandbox = Sandbox::new(&prefixed);
    connection.command(&["MSET", "cache:a", "1", "queue:b", "2"]);
    let mut run =
        |source: &str| inside(&mut connection, &sandbox, Mode::Prefix, (source, &[], &[]));
    assert_eq!(run("return redis.call('DbSize')"), Value::Integer(2));
    assert!(
        run("return redis.call('no.such', 'a')").error().starts_with("ERR Unknown Redis command")
    );
    assert!(matches!(run("return redis.call('slowlog', 'len')"), Value::Integer(_)));
    assert!(
        run("return redis.call('slowlog', 'get')")
            .error()
            .starts_with("NOPERM 'slowlog get' is about")
    );
}
