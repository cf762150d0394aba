//! The Postgres core: frames, what is owed, the words of SQL, and whole transactions through the relay.

use std::hint::black_box;
use std::sync::Arc;

use tidegate::postgres::exchange::{Exchange, Owed};
use tidegate::postgres::relay::{
    Emptied, Ledger, Line, Listening, Output, Stance, Surroundings, Suspicion, replies, requests,
    waiting,
};
use tidegate::postgres::settings::Settings;
use tidegate::postgres::sql::{self, Quoting};
use tidegate::postgres::statements::{Registry, ServerStatements};
use tidegate::postgres::wire::{self, Head, Tags, put_frame};
use tokio::runtime::Runtime;

use super::{Case, Operation};

pub(crate) const CASES: [Case; 10] = [
    Case { name: "postgres: 100 frames are told apart", prepare: frames },
    Case { name: "postgres: a client's frame is seen to be work", prepare: work },
    Case { name: "postgres: a simple query is owed and paid", prepare: debts },
    Case { name: "postgres: a SELECT leaves nothing behind", prepare: select },
    Case { name: "postgres: an INSERT leaves nothing behind", prepare: insert },
    Case { name: "postgres: a SET may leave something behind", prepare: set },
    Case { name: "postgres: a simple query, both ways", prepare: simple },
    Case { name: "postgres: an extended query, both ways", prepare: extended },
    Case { name: "postgres: a prepared query, both ways", prepare: prepared },
    Case { name: "postgres: a prepared query that the server has to be told", prepare: untold },
];

const SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;";
const INSERT: &str = "INSERT INTO \"articles\" (\"title\", \"body\", \"created_at\", \"updated_at\") VALUES \
     ('It''s a title', 'some words of a body', '2026-11-28 10:00:00.123', '2026-11-28 10:00:00.123') RETURNING \"id\"";
const SET: &str = "SET statement_timeout = '5s'";

fn frames(_: &Runtime) -> Operation {
    let mut rows = Vec::new();
    for _ in 0..100 {
        put_frame(&mut rows, b'D', &[b"\0\x01\0\0\0\x044711"]);
    }
    Box::new(move || {
        assert_eq!(wire::run_of(Tags::of(b"D"), black_box(&rows)), rows.len());
    })
}

fn work(_: &Runtime) -> Operation {
    let query = query(SELECT);
    let mut rest = 0;
    Box::new(move || {
        let seen = waiting(&mut rest, Stance::Open, black_box(&query), 64 * 1024, 1024 * 1024);
        black_box(seen.unwrap());
    })
}

fn debts(_: &Runtime) -> Operation {
    let mut exchange = Exchange::default();
    Box::new(move || {
        exchange.sent_query(Owed::Query);
        for tag in *b"TDCZ" {
            black_box(exchange.replied(black_box(tag), b'I').unwrap());
        }
        assert!(exchange.is_over());
    })
}

fn select(_: &Runtime) -> Operation {
    read(SELECT)
}

fn insert(_: &Runtime) -> Operation {
    read(INSERT)
}

fn set(_: &Runtime) -> Operation {
    read(SET)
}

fn read(text: &'static str) -> Operation {
    Box::new(move || {
        black_box(sql::read(black_box(text.as_bytes()), Quoting::Standard, None));
    })
}

fn simple(_: &Runtime) -> Operation {
    Talk::begin(Vec::new(), vec![query(SELECT)], 100)
}

fn extended(_: &Runtime) -> Operation {
    let mut words = parse("");
    words.extend(run(""));
    Talk::begin(Vec::new(), vec![words], 100)
}

fn prepared(_: &Runtime) -> Operation {
    Talk::begin(vec![parsed("P0_1")], vec![run("P0_1")], 100)
}

/// Of two statements the server keeps one.
fn untold(_: &Runtime) -> Operation {
    Talk::begin(vec![parsed("P0_1"), parsed("P0_2")], vec![run("P0_1"), run("P0_2")], 1)
}

fn query(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, b'Q', &[text.as_bytes(), b"\0"]);
    out
}

/// A text for each name.
fn parse(name: &str) -> Vec<u8> {
    let text = format!("SELECT abalance FROM pgbench_accounts{name} WHERE aid = $1;");
    let mut out = Vec::new();
    put_frame(&mut out, b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"]);
    out
}

fn parsed(name: &str) -> Vec<u8> {
    let mut out = parse(name);
    put_frame(&mut out, b'S', &[]);
    out
}

fn run(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let value = b"\0\0\0\0\x01\0\0\0\x044711\0\x01\0\0";
    put_frame(&mut out, b'B', &[b"\0", name.as_bytes(), value]);
    put_frame(&mut out, b'D', &[b"P\0"]);
    put_frame(&mut out, b'E', &[b"\0\0\0\0\0"]);
    put_frame(&mut out, b'S', &[]);
    out
}

/// One session on one connection; each transaction takes the connection anew.
struct Talk {
    line: Line,
    ledger: Option<Box<Ledger>>,
    registry: Registry,
    settings: Arc<Settings>,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl Talk {
    /// An operation that says one of `words` after the other, and hears what the server has answered to them before. It keeps
    /// `statements` statements.
    fn begin(first: Vec<Vec<u8>>, words: Vec<Vec<u8>>, statements: usize) -> Operation {
        let mut talk = Self {
            line: Line::new(ServerStatements::new(1, statements), &[]),
            ledger: None,
            registry: Registry::new(1000, 1 << 20),
            settings: Arc::new(Settings::new(1, None, Vec::new(), Vec::new())),
            sent: Vec::new(),
            received: Vec::new(),
        };
        for words in &first {
            talk.ask_and_answer(words);
        }
        // Another round for what the first one brings to the server.
        for words in &words {
            talk.ask_and_answer(words);
        }
        let answers: Vec<Vec<u8>> = words.iter().map(|words| talk.ask_and_answer(words)).collect();
        let mut turn = 0;
        Box::new(move || {
            talk.ask(black_box(&words[turn]));
            talk.hear(black_box(&answers[turn]));
            turn = (turn + 1) % words.len();
        })
    }

    fn ask_and_answer(&mut self, words: &[u8]) -> Vec<u8> {
        self.ask(words);
        let answers = serve(if self.sent.is_empty() { words } else { &self.sent });
        self.hear(&answers);
        answers
    }

    fn ask(&mut self, words: &[u8]) {
        self.sent.clear();
        self.line.begin(1, &self.settings, &self.registry, Emptied::No, &mut self.sent);
        let around = Surroundings {
            registry: &self.registry,
            settings: &self.settings,
            understood_bytes: 1 << 20,
            statements: 1000,
            listening: Listening::Pins,
            suspicion: Suspicion::OfWords,
        };
        let taken =
            requests(&mut self.line, &mut self.ledger, around, words, &mut self.sent).unwrap();
        assert_eq!(taken.consumed, words.len());
        assert_eq!(self.sent.is_empty(), taken.output == Output::Input);
    }

    fn hear(&mut self, answers: &[u8]) {
        self.received.clear();
        self.received.extend_from_slice(answers);
        let given = replies(&mut self.line, &mut self.ledger, &mut self.received).unwrap();
        assert_eq!(given.rest, answers.len());
        black_box(&self.received[..given.relay]);
        assert!(self.line.is_over());
    }
}

/// A server that answers with one row.
fn serve(frames: &[u8]) -> Vec<u8> {
    const COLUMN: &[u8] = b"\0\x01abalance\0\0\0\x40\x01\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";
    const ROW: &[u8] = b"\0\x01\0\0\0\x044711";
    const DONE: &[u8] = b"SELECT 1\0";
    let (mut out, mut at) = (Vec::new(), 0);
    while let Head::Frame(header) = wire::head(&frames[at..]) {
        let answers: &[(u8, &[u8])] = match header.tag {
            b'Q' => &[(b'T', COLUMN), (b'D', ROW), (b'C', DONE), (b'Z', b"I")],
            b'P' => &[(b'1', b"")],
            b'B' => &[(b'2', b"")],
            b'D' => &[(b'T', COLUMN)],
            b'C' => &[(b'3', b"")],
            b'E' => &[(b'D', ROW), (b'C', DONE)],
            b'S' => &[(b'Z', b"I")],
            tag => panic!("no answer to {}", char::from(tag)),
        };
        for (tag, body) in answers {
            put_frame(&mut out, *tag, &[body]);
        }
        at += header.frame();
    }
    out
}
