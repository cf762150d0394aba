//! What is found in a script, and what is not taken for one.

use super::*;

fn of(source: &str) -> String {
    match scoped(source.as_bytes(), 1, "n") {
        Ok(scoped) => String::from_utf8(scoped.source).unwrap(),
        Err(fault) => format!("{}: {}", fault.line, fault.text),
    }
}

const SAYS: &str = "Script attempted to access nonexistent global variable";

#[test]
fn global_names_are_fields_and_local_ones_are_not() {
    let x = format!("_0.__error(\"{SAYS} 'x'\")");
    for (source, becomes) in [
        ("return KEYS[1]", "return _0.KEYS[1]".to_owned()),
        ("local redis = redis redis.x()", "local redis = _0.redis redis.x()".into()),
        ("local x = x", format!("local x = {x}")),
        (
            "local x, y = 1, function() return x, y end",
            format!("local x, y = 1, function() return {x}, _0.__error(\"{SAYS} 'y'\") end"),
        ),
        ("local function x() return x, {x} end", "local function x() return x, {x} end".into()),
        ("do local x = 1 end return x", format!("do local x = 1 end return {x}")),
        (
            "for x = x, 1 do x = 2 end return {x}",
            format!("for x = {x}, 1 do x = 2 end return {{{x}}}"),
        ),
        ("for x in x do x() end", format!("for x in {x} do x() end")),
        ("repeat local x = 1 until x", "repeat local x = 1 until x".into()),
        ("while x do local x end", format!("while {x} do local x end")),
        ("return {x = 1, [x] = 2; x}", format!("return {{x = 1, [{x}] = 2; {x}}}")),
        ("x = 1", "_0.x = 1".into()),
        ("x, y.z = 1", format!("_0.x, _0.__error(\"{SAYS} 'y'\").z = 1")),
        ("function x() end", "function _0.x() end".into()),
        ("function x.y() end", "function _0.x.y() end".into()),
        (
            "function type.y:z(a) return self, a end",
            "function _0.type.y:z(a) return self, a end".into(),
        ),
        (
            "local function f(...) return arg end return {arg}",
            format!("local function f(...) return arg end return {{_0.__error(\"{SAYS} 'arg'\")}}"),
        ),
        (
            "return _0, _1",
            format!("return _2.__error(\"{SAYS} '_0'\"), _2.__error(\"{SAYS} '_1'\")"),
        ),
        ("return redis.call('get', KEYS[1])", "return (_0.redis.call('get', _0.KEYS[1]))".into()),
        ("local a=1;(type)(a)", "local a=1;(_0.type)(a)".into()),
        (
            "return #KEYS, -type'x', not type{}",
            "return #_0.KEYS, -_0.type'x', not _0.type{}".into(),
        ),
        ("-- x\nreturn --[[x]] 'x' .. [[x]]", "-- x\nreturn --[[x]] 'x' .. [[x]]".into()),
        (
            "if type then elseif type then else type() end",
            "if _0.type then elseif _0.type then else _0.type() end".into(),
        ),
        (
            "return loadstring",
            "return _0.__error(\"'loadstring' is refused in namespace 'n'\")".into(),
        ),
    ] {
        assert_eq!(of(source), becomes, "{source}");
    }
}

#[test]
fn what_the_server_would_not_compile_is_refused_with_its_words() {
    for (source, told) in [
        ("return (", "1: unexpected symbol near '<eof>'"),
        ("x x", "1: '=' expected near 'x'"),
        ("return 1 end redis.call('get', 'x')", "1: '<eof>' expected near 'end'"),
        ("end", "1: '<eof>' expected near 'end'"),
        ("if x then\n", "2: 'end' expected (to close 'if' at line 1) near '<eof>'"),
        ("(x) = 1", "1: syntax error near '='"),
        ("f() = 1", "1: unexpected symbol near '='"),
        ("break", "1: no loop to break near '<eof>'"),
        (
            "local function f() return ... end",
            "1: cannot use '...' outside a vararg function near '...'",
        ),
        ("for x do end", "1: '=' or 'in' expected near 'do'"),
        ("local 1", "1: '<name>' expected near '1'"),
        ("return 1 2", "1: '<eof>' expected near '2'"),
        ("goto x", "1: '=' expected near 'x'"),
        ("return 'x", "1: unfinished string near '<eof>'"),
    ] {
        assert_eq!(of(source), told, "{source}");
    }
    let deep = format!("return {}1{}", "(".repeat(300), ")".repeat(300));
    assert_eq!(of(&deep), "1: chunk has too many syntax levels");
}

#[test]
fn many_names_take_little_time() {
    let locals: String = (0..20_000).map(|n| format!("local a{n} ")).collect();
    let source = format!("{locals}{}", "a1() ".repeat(100_000));
    assert!(scoped(source.as_bytes(), 1, "n").is_ok());
    let calls: String = (0..10_000).map(|n| format!("redis.call('{n}') ")).collect();
    let scoped = scoped(calls.as_bytes(), 1, "n").unwrap();
    assert_eq!((scoped.uses.commands.len(), scoped.uses.others), (COMMANDS, Others::Some));
}

#[test]
fn what_a_source_uses_is_known() {
    let uses = |source: &str| {
        let scoped = scoped(source.as_bytes(), 1, "n").unwrap();
        let text = |bytes: &&[u8]| String::from_utf8_lossy(bytes).into_owned();
        let commands: Vec<String> = scoped.uses.commands.iter().map(text).collect();
        (commands.join(" "), scoped.uses.others)
    };
    let none = |commands: &str| (commands.to_owned(), Others::None);
    assert_eq!(uses("redis.call('get', 'x') redis.pcall('PING')"), none("PING get"));
    assert_eq!(uses("local c = redis.call c('get', 'x') return c'ping'"), none("get ping"));
    for source in [
        "redis.call(x)",
        "redis.call('get' .. x)",
        "local c = redis.call c(x)",
        "local c = redis.call f(c)",
        "local c = redis.call c = 1",
        "local c = redis.call or x",
        "local c, d = redis.call",
        "local r = redis r.call('get')",
        "redis['call']('get')",
        "return _G.redis",
        "f(redis.call)",
        "local c c = redis.call",
        "redis.call()",
        "(redis).call('get')",
        "function redis.x() end",
    ] {
        assert_eq!(uses(source).1, Others::Some, "{source}");
    }
}
