//! What a sandbox makes of a script, without a server.

use std::collections::BTreeSet;

use super::super::{Rights, ScriptRule};
use super::*;

pub(super) fn namespace(mode: Mode) -> Namespace {
    Namespace {
        name: "cache".into(),
        mode,
        prefixes: vec![b"cache:"[..].into()],
        readable: Vec::new(),
        rights: Rights::ReadWrite,
        allowed: BTreeSet::new(),
        scripts: ScriptRule::Sandbox,
        value_bytes: 1000,
    }
}

#[test]
fn a_script_keeps_its_lines_and_its_first_line() {
    let sandbox = Sandbox::new(&namespace(Mode::Prefix));
    let sent = |source: &str| String::from_utf8(sandbox.wrap(source.as_bytes()).unwrap()).unwrap();
    let wrapped = sent("return 1\n-- two\n");
    assert_eq!(wrapped.lines().count(), 2);
    assert!(wrapped.starts_with("local _0 do ") && wrapped.contains(" return 1\n-- two\n"));
    let wrapped = sent("#!lua flags=no-writes\nreturn KEYS[1]");
    assert!(wrapped.starts_with("#!lua flags=no-writes\nlocal _0 do "), "{wrapped}");
    assert_eq!(wrapped.lines().count(), 2);
}

#[test]
fn what_can_not_be_seen_through_is_refused() {
    let sandbox = Sandbox::new(&namespace(Mode::Prefix));
    let refused = |source: &[u8]| sandbox.wrap(source).unwrap_err();
    assert!(refused(b"return '\0'").starts_with("NOPERM the script has a NUL"));
    assert!(refused(b"\x1bLuaQ").starts_with("NOPERM the script is compiled"));
    assert_eq!(refused(b"#!lua"), "ERR Invalid script shebang");
    assert_eq!(refused(b"#!js x\n1"), "ERR Unexpected engine in script shebang: #!js");
    assert_eq!(
        refused(b"#!lua\nreturn 1 end return 2"),
        "ERR Error compiling script (new function): user_script:2: '<eof>' expected near 'end'"
    );
}

#[test]
fn a_script_is_known_by_the_sha1_that_its_client_knows() {
    let sandbox = Sandbox::new(&namespace(Mode::Prefix));
    assert_eq!(sandbox.look_up(b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"), None);
    let script = sandbox.learn(b"return 1").unwrap();
    assert_eq!(&script.sha, b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    assert_eq!(script.sent_sha, hexadecimal(&script.sent));
    let found = sandbox.look_up(b"E0E1F9FABFC9D4800C877A703B823AC0578FF8DB");
    assert_eq!(found, Some(Arc::clone(&script)));
    assert_eq!(sandbox.look_up(&script.sent_sha), None);
    let line = [b"ERR x script: ", &script.sent_sha[..], b", on @user_script:1."].concat();
    let own = [b"ERR x script: ", &script.sha[..], b", on @user_script:1."].concat();
    assert_eq!(&*script.outward(&line), &own[..]);
    assert_eq!(&*script.outward(b"ERR x"), b"ERR x");
    assert_eq!(sandbox.look_up(b"e0"), None);
    for number in 0..SCRIPTS {
        sandbox.learn(format!("return {number} ").as_bytes()).unwrap();
    }
    assert_eq!(sandbox.look_up(&script.sha), None);
    assert_eq!(sandbox.lock().scripts.len(), SCRIPTS);
}

#[test]
fn strings_survive_being_written() {
    assert_eq!(quoted(b"a\"\\\n\r\x00\xff1"), "\"a\\\"\\\\\\n\\013\\000\\2551\"");
}
