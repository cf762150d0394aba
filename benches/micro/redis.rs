//! The Redis core: commands and replies are told apart, judged, written anew for a namespace, and given to whom they belong.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Waker};

use tidegate::redis::command::carriage;
use tidegate::redis::exchange::{Debt, Exchange};
use tidegate::redis::mailbox::{Backlog, Mailbox, Tail};
use tidegate::redis::namespace::replies::{ReplyFilter, Shape};
use tidegate::redis::namespace::{Frequent, Judgement, Mode, Namespace, Rights, ScriptRule};
use tidegate::redis::wire::{
    Arguments, Progress, Reply, ReplyScanner, RequestLimits, RequestScanner, write_command,
};
use tokio::runtime::Runtime;

use super::{Case, Operation};

pub(crate) const CASES: [Case; 12] = [
    Case { name: "redis: 16 commands are told apart", prepare: requests },
    Case { name: "redis: 16 short replies are told apart", prepare: short_replies },
    Case { name: "redis: a reply of 100 elements is read", prepare: long_reply },
    Case { name: "redis: how GET is carried", prepare: get },
    Case { name: "redis: how XREADGROUP is carried", prepare: xreadgroup },
    Case { name: "redis: a reply is owed and paid", prepare: debts },
    Case { name: "redis: a reply goes through a mailbox", prepare: mail },
    Case { name: "redis: a namespace enforces a frequent command", prepare: frequent_enforced },
    Case { name: "redis: a namespace prefixes a frequent command", prepare: frequent_prefixed },
    Case { name: "redis: a namespace enforces a command by the table", prepare: table_enforced },
    Case { name: "redis: a namespace prefixes a command by the table", prepare: table_prefixed },
    Case { name: "redis: a namespace strips 10 names of a reply", prepare: names },
];

const LIMITS: RequestLimits = RequestLimits::Work { bulk_bytes: 512 * 1024 * 1024 };

fn requests(_: &Runtime) -> Operation {
    let bytes = command(&["GET", "key:000000004711"]).repeat(16);
    Box::new(move || {
        let mut at = 0;
        while at < bytes.len() {
            let mut scanner = RequestScanner::default();
            let (used, progress) = scanner.advance(black_box(&bytes[at..]), LIMITS).unwrap();
            assert!(progress == Progress::Command);
            at += used;
        }
    })
}

fn short_replies(_: &Runtime) -> Operation {
    read(b"$3\r\nabc\r\n".repeat(16), 16)
}

fn long_reply(_: &Runtime) -> Operation {
    let mut reply = b"*100\r\n".to_vec();
    reply.extend(b"$12\r\na name of it\r\n".repeat(100));
    read(reply, 1)
}

fn read(bytes: Vec<u8>, replies: usize) -> Operation {
    let mut scanner = ReplyScanner::default();
    Box::new(move || {
        let (mut at, mut seen) = (0, 0);
        while at < bytes.len() {
            let (used, reply) = scanner.advance(black_box(&bytes[at..])).unwrap();
            seen += usize::from(reply == Reply::Whole);
            at += used;
        }
        assert_eq!(seen, replies);
    })
}

fn get(_: &Runtime) -> Operation {
    judge(&["GET", "key:000000004711"])
}

fn xreadgroup(_: &Runtime) -> Operation {
    judge(&["XREADGROUP", "GROUP", "g", "c", "COUNT", "10", "STREAMS", "mystream", ">"])
}

fn judge(words: &[&str]) -> Operation {
    let bytes = command(words);
    Box::new(move || {
        black_box(carriage(Arguments::new(black_box(&bytes))));
    })
}

fn debts(_: &Runtime) -> Operation {
    let (mut exchange, mut begins) = (Exchange::default(), 0);
    Box::new(move || {
        exchange.owe(Debt { creditor: black_box(4711), replies: 1, begins });
        black_box(exchange.front());
        exchange.pay(1);
        begins += 36;
    })
}

fn mail(_: &Runtime) -> Operation {
    let backlog = Arc::new(Backlog::default());
    let mailbox = Mailbox::new(Arc::clone(&backlog));
    Box::new(move || {
        mailbox.owe(1);
        mailbox.deliver(black_box(b"$3\r\nabc\r\n"), 1, Tail::Whole);
        let mut out = Vec::new();
        black_box(mailbox.poll_take(&Context::from_waker(Waker::noop()), &mut out));
        mailbox.note_taken(out.len());
        backlog.settle(out.len());
    })
}

fn frequent_enforced(_: &Runtime) -> Operation {
    frequent(Mode::Enforce, &["SET", "cache:000000004711", "abc"])
}

fn frequent_prefixed(_: &Runtime) -> Operation {
    frequent(Mode::Prefix, &["SET", "000000004711", "abc"])
}

fn frequent(mode: Mode, words: &[&str]) -> Operation {
    let (namespace, bytes) = (namespace(mode), command(words));
    let expected = if mode == Mode::Prefix { Frequent::Written } else { Frequent::AsSent };
    let mut written = Vec::new();
    Box::new(move || {
        written.clear();
        let judged = namespace.judge_frequent(black_box(&bytes), &mut written);
        assert!(judged == Some(expected));
    })
}

fn table_enforced(_: &Runtime) -> Operation {
    by_table(Mode::Enforce, &["MSET", "cache:a", "1", "cache:b", "2", "cache:c", "3"])
}

fn table_prefixed(_: &Runtime) -> Operation {
    by_table(Mode::Prefix, &["MSET", "a", "1", "b", "2", "c", "3"])
}

/// To the bytes that go to the server.
fn by_table(mode: Mode, words: &'static [&'static str]) -> Operation {
    let namespace = namespace(mode);
    let bytes = command(words);
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        let words: Vec<&[u8]> = Arguments::new(black_box(&bytes)).collect();
        match namespace.judge(&words) {
            Judgement::Passes => write_command(&words, &mut out),
            Judgement::Becomes(words, _) => write_command(&words, &mut out),
            _ => panic!("it goes"),
        }
    })
}

fn names(_: &Runtime) -> Operation {
    let mut reply = b"*10\r\n".to_vec();
    reply.extend(b"$18\r\ncache:000000004711\r\n".repeat(10));
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        let mut filter = ReplyFilter::new(b"cache:", Shape::Names);
        assert_eq!(filter.advance(black_box(&reply), &mut out).unwrap(), reply.len());
        assert!(filter.is_done());
    })
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    write_command(words, &mut out);
    out
}

fn namespace(mode: Mode) -> Namespace {
    Namespace {
        name: "cache".into(),
        mode,
        prefixes: vec![b"cache:"[..].into()],
        readable: Vec::new(),
        rights: Rights::ReadWrite,
        allowed: BTreeSet::new(),
        scripts: ScriptRule::Sandbox,
        value_bytes: 512 * 1024 * 1024,
    }
}
