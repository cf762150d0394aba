//! Reading and writing pops.

use super::*;

fn parse(line: &str) -> Option<Pop> {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    Pop::parse(&words)
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).unwrap().replace("\r\n", " ")
}

fn attempt(line: &str) -> String {
    let pop = parse(line).unwrap();
    let all = text(|out| pop.write_attempt(&pop.keys, out));
    all.split(' ').filter(|word| !word.starts_with(['*', '$'])).collect::<Vec<_>>().join(" ")
}

fn call(line: &str) -> String {
    let pop = parse(line).unwrap();
    let all = text(|out| pop.class.write_call(&pop.keys, Duration::from_millis(1500), out));
    all.split(' ').filter(|word| !word.starts_with(['*', '$'])).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_command_has_its_attempt_and_its_call() {
    assert_eq!(attempt("BLPOP a b 0").trim(), "LMPOP 2 a b LEFT COUNT 1");
    assert_eq!(attempt("brpop a 1.5").trim(), "LMPOP 1 a RIGHT COUNT 1");
    assert_eq!(attempt("BZPOPMAX a 0").trim(), "ZMPOP 1 a MAX COUNT 1");
    assert_eq!(attempt("BLMPOP 0 2 a b right count 7").trim(), "LMPOP 2 a b RIGHT COUNT 7");
    assert_eq!(attempt("BRPOPLPUSH a b 0").trim(), "LMOVE a b RIGHT LEFT");
    assert_eq!(call("BLPOP a b 0").trim(), "BLMPOP 1.500 2 a b LEFT COUNT 1");
    assert_eq!(call("BZMPOP 0 1 a MIN").trim(), "BZMPOP 1.500 1 a MIN COUNT 1");
    assert_eq!(call("BLMOVE a b left right 3").trim(), "BLMOVE a b LEFT RIGHT 1.500");
}

#[test]
fn commands_that_one_call_serves_share_a_class() {
    let class = |line: &str| parse(line).unwrap().class;
    assert_eq!(class("BLPOP a 0"), class("BLMPOP 3 1 b LEFT"));
    assert_eq!(class("BZPOPMIN a 0"), class("BZMPOP 3 1 b MIN COUNT 1"));
    assert_eq!(class("BRPOPLPUSH a b 0"), class("BLMOVE a b RIGHT LEFT 1"));
    assert_ne!(class("BLPOP a 0"), class("BRPOP a 0"));
    assert_ne!(class("BLPOP a 0"), class("BLMPOP 3 1 b LEFT COUNT 2"));
}

#[test]
fn what_may_be_wrong_is_left_to_the_server() {
    for line in [
        "BLPOP",
        "BLPOP a",
        "BLPOP 0",
        "BLPOP a x",
        "BLPOP a -1",
        "BLPOP a 1e3",
        "BLPOP a .",
        "BLPOP a 1.2.3",
        "BLPOP a 99999999999",
        "BLMPOP 0 0 a LEFT",
        "BLMPOP 0 01 a LEFT",
        "BLMPOP 0 2 a LEFT",
        "BLMPOP 0 1 a UP",
        "BLMPOP 0 1 a LEFT COUNT 0",
        "BLMPOP 0 1 a LEFT COUNT",
        "BLMPOP 0 1 a MIN",
        "BLMOVE a b LEFT UP 0",
        "BLMOVE a b LEFT RIGHT",
        "GET a",
    ] {
        assert_eq!(parse(line), None, "{line}");
    }
}

#[test]
fn times_are_read_as_redis_reads_them() {
    let time = |word: &str| parse(&format!("BLPOP a {word}")).unwrap().timeout;
    assert_eq!(time("0"), None);
    assert_eq!(time("0.0"), None);
    assert_eq!(time("0.0000001"), Some(Duration::from_millis(1)));
    assert_eq!(time(".25"), Some(Duration::from_millis(250)));
    assert_eq!(time("2"), Some(Duration::from_secs(2)));
}

#[test]
fn the_attempts_reply_becomes_the_commands_at_any_split() {
    for (line, reply, wanted) in [
        ("BLPOP a 0", "*2\r\n$1\r\na\r\n*1\r\n$2\r\nxy\r\n", "*2\r\n$1\r\na\r\n$2\r\nxy\r\n"),
        (
            "BZPOPMIN a 0",
            "*2\r\n$1\r\na\r\n*1\r\n*2\r\n$1\r\nm\r\n,1.5\r\n",
            "*3\r\n$1\r\na\r\n$1\r\nm\r\n,1.5\r\n",
        ),
        (
            "BLMPOP 0 1 a LEFT",
            "*2\r\n$1\r\na\r\n*1\r\n$1\r\nx\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n$1\r\nx\r\n",
        ),
        ("BLMOVE a b LEFT LEFT 0", "$1\r\nx\r\n", "$1\r\nx\r\n"),
    ] {
        let pop = parse(line).unwrap();
        let cuts = (0..=reply.len()).map(|cut| pop.read_head(&reply.as_bytes()[..cut]));
        let mut found = 0;
        for (cut, head) in cuts.enumerate() {
            let Head::Found { used, begins } = head else {
                assert_eq!((head, found), (Head::More, 0), "{line} at {cut}");
                continue;
            };
            found += 1;
            assert_eq!([&begins, &reply.as_bytes()[used..]].concat(), wanted.as_bytes(), "{line}");
        }
        assert!(found > 0, "{line}");
    }
    let pop = parse("BLPOP a 0").unwrap();
    assert_eq!(pop.read_head(b"*-1\r\n"), Head::Nothing);
    assert_eq!(pop.read_head(b"_\r\n"), Head::Nothing);
    assert_eq!(pop.read_head(b"-WRONGTYPE x\r\n"), Head::Refused);
}

#[test]
fn a_catch_is_told_and_put_back() {
    let pop = parse("BLMPOP 0 1 a LEFT COUNT 2").unwrap();
    let reply = b"*2\r\n$1\r\na\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n";
    let Some(Answer::Caught(catch)) = pop.class.read_answer(reply) else { panic!("no catch") };
    let told = text(|out| pop.write_reply(&catch, Proto::Resp2, out));
    assert_eq!(told.as_bytes(), String::from_utf8_lossy(reply).replace("\r\n", " ").as_bytes());
    let back = text(|out| pop.class.write_return(&catch, out));
    assert_eq!(back, "*4 $5 LPUSH $1 a $1 2 $1 1 ");

    let pop = parse("BZPOPMAX a 0").unwrap();
    let reply = b"*2\r\n$1\r\na\r\n*1\r\n*2\r\n$1\r\nm\r\n$3\r\n1.5\r\n";
    let Some(Answer::Caught(catch)) = pop.class.read_answer(reply) else { panic!("no catch") };
    let told = text(|out| pop.write_reply(&catch, Proto::Resp3, out));
    assert_eq!(told, "*3 $1 a $1 m ,1.5 ");
    let told = text(|out| pop.write_reply(&catch, Proto::Resp2, out));
    assert_eq!(told, "*3 $1 a $1 m $3 1.5 ");
    let back = text(|out| pop.class.write_return(&catch, out));
    assert_eq!(back, "*5 $4 ZADD $1 a $2 NX $3 1.5 $1 m ");

    let pop = parse("BLMOVE a b LEFT RIGHT 0").unwrap();
    assert_eq!(pop.class.read_answer(b"*-1\r\n"), Some(Answer::Nothing));
    assert_eq!(pop.class.read_answer(b"-ERR no\r\n"), Some(Answer::Refused("ERR no".into())));
    let Some(Answer::Caught(catch)) = pop.class.read_answer(b"$1\r\nx\r\n") else { panic!() };
    assert_eq!(text(|out| pop.write_reply(&catch, Proto::Resp3, out)), "$1 x ");
}
