//! Judgements of a namespace, by the line; works of several steps.

use super::*;

pub(super) fn namespace(mode: Mode) -> Namespace {
    Namespace {
        name: "cache".into(),
        mode,
        prefixes: vec![b"cache:"[..].into()],
        readable: match mode {
            Mode::Enforce => vec![b"shared:"[..].into()],
            Mode::Prefix => vec![],
        },
        rights: Rights::ReadWrite,
        allowed: BTreeSet::from(["LATENCY|DOCTOR".into(), "JSON.GET".into()]),
        scripts: ScriptRule::Sandbox,
        value_bytes: 100,
    }
}

fn judged(namespace: &Namespace, line: &str) -> String {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    match namespace.judge(&words) {
        Judgement::Passes => "passes".into(),
        Judgement::Becomes(words, _) => String::from_utf8(words.join(&b' ')).unwrap(),
        Judgement::Refused(refusal) => format!("{}: {}", refusal.ground.label(), refusal.text),
        Judgement::Errand(_) => "errand".into(),
        Judgement::Script => "script".into(),
    }
}

#[test]
fn what_is_inside_passes_and_what_is_outside_is_refused() {
    let enforced = namespace(Mode::Enforce);
    for line in [
        "GET cache:a",
        "get shared:a",
        "MSET cache:a 1 cache:b 2",
        "COPY shared:a cache:b",
        "SORT cache:l BY nosort GET # GET cache:w_*",
        "PUBLISH cache:c hi",
        "PSUBSCRIBE cache:*",
        "SUBSCRIBE __keyspace@0__:cache:a __keyevent@0__:del",
        "PSUBSCRIBE __keyevent@*__:* __key*__:* __keyspace@0__:cache:*",
        "KEYS cache:*",
        "PING",
        "client setname x",
        "CONFIG GET maxmemory save",
        "LATENCY DOCTOR",
        "JSON.GET queue:x",
    ] {
        let is_kept = |told: &str| told == "passes" || told == line;
        assert!(is_kept(&judged(&enforced, line)), "{line}: {}", judged(&enforced, line));
    }
    for (line, ground) in [
        ("GET queue:a", "key"),
        ("MGET cache:a queue:b", "key"),
        ("SET shared:a 1", "read_only"),
        ("COPY cache:a queue:b", "key"),
        ("COPY cache:a cache:b DB 1", "command"),
        ("SORT cache:l BY queue:w_*", "pattern"),
        ("SORT cache:l GET *", "pattern"),
        ("SORT cache:l STORE queue:x", "key"),
        ("PUBLISH queue:c hi", "channel"),
        ("PUBLISH __keyevent@0__:del queue:a", "channel"),
        ("PSUBSCRIBE *", "pattern"),
        ("PSUBSCRIBE _*", "pattern"),
        ("SUBSCRIBE __keyspace@0__:queue:a", "channel"),
        ("PSUBSCRIBE __keyspace@0__:*", "pattern"),
        ("CONFIG GET requirepass", "command"),
        ("CONFIG GET *", "command"),
        ("CONFIG SET maxmemory 1", "command"),
        ("CLIENT REPLY OFF", "command"),
        ("MONITOR", "command"),
        ("FUNCTION FLUSH", "command"),
        ("SWAPDB 0 1", "command"),
        ("NOSUCH queue:a", "command"),
        ("JSON.SET queue:a", "command"),
        ("LATENCY HISTORY x", "command"),
        ("PUBSUB NUMPAT", "command"),
        ("PUBSUB NUMSUB queue:c", "channel"),
    ] {
        let told = judged(&enforced, line);
        assert!(told.starts_with(&format!("{ground}: NOPERM ")), "{line}: {told}");
        assert!(
            told.contains("namespace 'cache'")
                && (line.contains("shared") || !told.contains("shared:")),
            "{line}: {told}"
        );
    }
    let long = format!("SET cache:a {}", "x".repeat(101));
    assert!(judged(&enforced, &long).starts_with("size: NOPERM 'set' is too long"), "{long}");
}

#[test]
fn names_get_the_prefix_wherever_they_stand() {
    let prefixed = namespace(Mode::Prefix);
    for (line, becomes) in [
        ("GET a", "GET cache:a"),
        ("mset a 1 b 2", "mset cache:a 1 cache:b 2"),
        ("BLPOP a b 0", "BLPOP cache:a cache:b 0"),
        ("ZUNIONSTORE d 2 a b", "ZUNIONSTORE cache:d 2 cache:a cache:b"),
        (
            "SORT l BY nosort GET # GET w_*->f STORE d",
            "SORT cache:l BY nosort GET # GET cache:w_*->f STORE cache:d",
        ),
        ("XREADGROUP GROUP g c STREAMS s >", "XREADGROUP GROUP g c STREAMS cache:s >"),
        ("KEYS a*", "KEYS cache:a*"),
        ("SCAN 0", "SCAN 0 MATCH cache:*"),
        ("SCAN 7 COUNT 5 MATCH x MATCH y* TYPE set", "SCAN 7 COUNT 5 TYPE set MATCH cache:y*"),
        ("SUBSCRIBE c", "SUBSCRIBE cache:c"),
        ("PSUBSCRIBE c*", "PSUBSCRIBE cache:c*"),
        ("PUBLISH c hi", "PUBLISH cache:c hi"),
        ("PUBLISH __keyevent@0__:del x", "PUBLISH cache:__keyevent@0__:del x"),
        ("SUBSCRIBE __keyspace@0__:a", "SUBSCRIBE __keyspace@0__:cache:a"),
        ("PSUBSCRIBE __keyspace@*__:*", "PSUBSCRIBE __keyspace@*__:cache:*"),
        ("PSUBSCRIBE __keyevent@*__:*", "PSUBSCRIBE __keyevent@*__:*"),
        ("PUBSUB CHANNELS", "PUBSUB CHANNELS cache:*"),
        ("OBJECT ENCODING k", "OBJECT ENCODING cache:k"),
    ] {
        assert_eq!(judged(&prefixed, line), becomes);
    }
}

#[test]
fn a_list_is_narrowed_to_the_namespace() {
    let mut enforced = namespace(Mode::Enforce);
    let shape = |namespace: &Namespace, line: &str| {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        match namespace.judge(&words) {
            Judgement::Becomes(words, shape) => {
                (String::from_utf8(words.join(&b' ')).unwrap(), shape)
            }
            other => panic!("{other:?}"),
        }
    };
    let (words, chosen) = shape(&enforced, "KEYS *");
    assert_eq!(words, "KEYS *");
    assert!(matches!(chosen, Shape::Chosen(choice) if choice.prefixes.len() == 2));
    enforced.readable.clear();
    assert_eq!(shape(&enforced, "KEYS *"), ("KEYS cache:*".into(), Shape::Plain));
    assert!(
        matches!(shape(&enforced, "KEYS *a"), (words, Shape::Chosen(_)) if words == "KEYS cache:*")
    );
    assert!(
        matches!(shape(&enforced, "SCAN 0 MATCH queue:*"), (words, Shape::ChosenScan(_)) if words == "SCAN 0 MATCH cache:*")
    );
}

#[test]
fn messages_come_only_from_inside() {
    let of = |namespace: &Namespace, channel: &str, payload: &str| {
        namespace.message(channel.as_bytes(), payload.as_bytes()).map(|(channel, payload)| {
            format!("{} {}", String::from_utf8_lossy(&channel), String::from_utf8_lossy(payload))
        })
    };
    let (enforced, prefixed) = (namespace(Mode::Enforce), namespace(Mode::Prefix));
    assert_eq!(of(&enforced, "cache:c", "hi").as_deref(), Some("cache:c hi"));
    assert_eq!(of(&prefixed, "cache:c", "hi").as_deref(), Some("c hi"));
    assert_eq!(
        of(&enforced, "__keyevent@0__:del", "cache:a").as_deref(),
        Some("__keyevent@0__:del cache:a")
    );
    assert_eq!(
        of(&prefixed, "__keyevent@0__:del", "cache:a").as_deref(),
        Some("__keyevent@0__:del a")
    );
    assert_eq!(
        of(&prefixed, "__keyspace@0__:cache:a", "del").as_deref(),
        Some("__keyspace@0__:a del")
    );
    for namespace in [&enforced, &prefixed] {
        assert_eq!(of(namespace, "__keyevent@0__:del", "queue:a"), None);
        assert_eq!(of(namespace, "__keyspace@0__:queue:x__:cache:a", "del"), None);
        assert_eq!(of(namespace, "queue:c", "hi"), None);
    }
    assert_eq!(&*prefixed.outward(b"cache:a*", IsPattern::Yes), b"a*");
    assert_eq!(&*prefixed.outward(b"__keyspace@*__:cache:*", IsPattern::Yes), b"__keyspace@*__:*");
}

#[test]
fn a_namespace_that_may_only_be_read_is_not_written() {
    let mut read = namespace(Mode::Enforce);
    read.rights = Rights::ReadOnly;
    assert_eq!(judged(&read, "GET cache:a"), "passes");
    for line in ["SET cache:a 1", "PUBLISH cache:a x", "FLUSHDB", "EVAL x 0"] {
        assert!(judged(&read, line).starts_with("read_only: NOPERM "), "{line}");
    }
}

#[test]
fn works_go_step_by_step() {
    let words = |errand: &Errand| {
        let mut bytes = Vec::new();
        errand.write_step(&mut bytes);
        crate::redis::wire::Arguments::new(&bytes)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let work = |namespace: &Namespace, name: &str| match namespace.judge(&[name.as_bytes()]) {
        Judgement::Errand(errand) => errand,
        other => panic!("{other:?}"),
    };
    let prefixed = namespace(Mode::Prefix);
    let mut flush = work(&prefixed, "FLUSHDB");
    assert_eq!(words(&flush), "SCAN 0 MATCH cache:* COUNT 1000");
    assert_eq!(flush.advance(b"*2\r\n$1\r\n7\r\n*1\r\n$7\r\ncache:a\r\n"), Next::Step);
    assert_eq!(words(&flush), "UNLINK cache:a");
    assert_eq!(flush.advance(b":1\r\n"), Next::Step);
    assert_eq!(words(&flush), "SCAN 7 MATCH cache:* COUNT 2000");
    assert_eq!(flush.advance(b"*2\r\n$1\r\n0\r\n*0\r\n"), Next::Answer(Answer::Done));
    let mut size = work(&namespace(Mode::Enforce), "DBSIZE");
    assert_eq!(size.advance(b"*2\r\n$1\r\n0\r\n*1\r\n$7\r\ncache:a\r\n"), Next::Step);
    assert_eq!(words(&size), "SCAN 0 MATCH shared:* COUNT 2000");
    assert_eq!(
        size.advance(b"*2\r\n$1\r\n0\r\n*1\r\n$8\r\nshared:a\r\n"),
        Next::Answer(Answer::Count(2))
    );
    let mut random = work(&prefixed, "RANDOMKEY");
    assert_eq!(random.advance(b"$7\r\nqueue:a\r\n"), Next::Step);
    assert_eq!(random.advance(b"$7\r\ncache:a\r\n"), Next::Answer(Answer::Name(b"a".to_vec())));
    assert_eq!(work(&prefixed, "RANDOMKEY").advance(b"$-1\r\n"), Next::Answer(Answer::Nothing));
    let mut failing = work(&prefixed, "DBSIZE");
    assert_eq!(
        failing.advance(b"-LOADING\r\n"),
        Next::Answer(Answer::Error(b"-LOADING\r\n".to_vec()))
    );
}
