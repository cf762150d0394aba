//! Properties of the relay: any split of the input gives the same result, and nothing is lost or made up.

use proptest::prelude::*;

use super::*;
use crate::postgres::statements::Registry;
use crate::postgres::wire::put_frame;

/// A frame a client may send.
#[derive(Clone, Debug)]
enum Sent {
    Query(&'static str),
    Parse(&'static str, &'static str),
    Bind(&'static str),
    Describe(&'static str),
    Close(&'static str),
    Execute,
    Sync,
    Flush,
    CopyData(usize),
    CopyDone,
}

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(""), Just("a"), Just("b"), Just("a_rather_long_name")]
}

fn sent() -> impl Strategy<Value = Sent> {
    let text = || {
        prop_oneof![
            Just("select 1"),
            Just("select $1::int"),
            Just("set x = 1"),
            Just("deallocate a"),
            Just("discard all"),
        ]
    };
    prop_oneof![
        text().prop_map(Sent::Query),
        (name(), text()).prop_map(|(name, text)| Sent::Parse(name, text)),
        name().prop_map(Sent::Bind),
        name().prop_map(Sent::Describe),
        name().prop_map(Sent::Close),
        Just(Sent::Execute),
        Just(Sent::Sync),
        Just(Sent::Flush),
        (0usize..300).prop_map(Sent::CopyData),
        Just(Sent::CopyDone),
    ]
}

fn frames(sent: &[Sent]) -> Vec<u8> {
    let mut out = Vec::new();
    for one in sent {
        match one {
            Sent::Query(text) => put_frame(&mut out, b'Q', &[text.as_bytes(), b"\0"]),
            Sent::Parse(name, text) => {
                let parts = [name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"];
                put_frame(&mut out, b'P', &parts);
            }
            Sent::Bind(name) => {
                let parts: [&[u8]; 3] = [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"];
                put_frame(&mut out, b'B', &parts);
            }
            Sent::Describe(name) => put_frame(&mut out, b'D', &[b"S", name.as_bytes(), b"\0"]),
            Sent::Close(name) => put_frame(&mut out, b'C', &[b"S", name.as_bytes(), b"\0"]),
            Sent::Execute => put_frame(&mut out, b'E', &[b"\0\0\0\0\0"]),
            Sent::Sync => put_frame(&mut out, b'S', &[]),
            Sent::Flush => put_frame(&mut out, b'H', &[]),
            Sent::CopyData(n) => put_frame(&mut out, b'd', &[&vec![b'x'; *n]]),
            Sent::CopyDone => put_frame(&mut out, b'c', &[]),
        }
    }
    out
}

struct Bench {
    line: Line,
    ledger: Option<Box<Ledger>>,
    registry: Registry,
    settings: Arc<Settings>,
    /// How much of what went to the server it has answered.
    served: usize,
    /// What the client got while its own words had to wait for an answer.
    given: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let settings = Settings::new(1, None, Vec::new(), Vec::new());
        Self {
            line: Line::new(ServerStatements::new(1, 3), &[]),
            ledger: None,
            registry: Registry::new(1000, 1 << 20),
            settings: Arc::new(settings),
            served: 0,
            given: Vec::new(),
        }
    }

    /// Feeds the pieces one after the other as a session would; gives what goes to the server. Where the
    /// client's words have to wait for an answer, the server gives it.
    fn send(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut kept: Vec<u8> = Vec::new();
        let mut out = Vec::new();
        self.served = 0;
        self.line.allow_pin();
        for piece in pieces {
            kept.extend_from_slice(piece);
            while self.pass(&mut kept, &mut out) == Gate::Shut {
                assert!(self.served < out.len(), "it waits for something that was asked");
                let given = self.receive(&[&serve(&out[self.served..])]).expect("no desync");
                self.given.extend_from_slice(&given);
                self.served = out.len();
            }
        }
        assert!(kept.is_empty(), "whole frames are taken");
        out
    }

    /// Takes what it may of the client's words; tells whether some are held back.
    fn pass(&mut self, kept: &mut Vec<u8>, out: &mut Vec<u8>) -> Gate {
        let around = Surroundings {
            registry: &self.registry,
            settings: &self.settings,
            understood_bytes: 1 << 20,
            statements: 1000,
            listening: Listening::Pins,
            suspicion: Suspicion::OfWords,
        };
        let taken =
            requests(&mut self.line, &mut self.ledger, around, kept, out).expect("no violation");
        if taken.output == Output::Input {
            out.extend_from_slice(&kept[..taken.consumed]);
        }
        kept.drain(..taken.consumed);
        match taken.need > kept.len() {
            true => Gate::Open,
            false => {
                assert_eq!(self.line.gate(), Gate::Shut, "it asks for more than it has");
                Gate::Shut
            }
        }
    }

    fn receive(&mut self, pieces: &[&[u8]]) -> Result<Vec<u8>, crate::postgres::exchange::Desync> {
        let mut kept: Vec<u8> = Vec::new();
        let mut out = Vec::new();
        for piece in pieces {
            kept.extend_from_slice(piece);
            let given = replies(&mut self.line, &mut self.ledger, &mut kept)?;
            out.extend_from_slice(&kept[..given.relay]);
            kept.drain(..given.rest);
        }
        Ok(out)
    }
}

/// Cuts bytes at the given places.
fn cut<'a>(bytes: &'a [u8], at: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|n| n % (bytes.len() + 1)).collect();
    at.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for cut in at {
        pieces.push(&bytes[from..cut]);
        from = cut;
    }
    pieces.push(&bytes[from..]);
    pieces
}

/// A server that answers frames as Postgres would, none of them failing.
fn serve(requests: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let wire::Head::Frame(header) = wire::head(&requests[at..]) {
        let body = &requests[at + 5..at + header.frame()];
        match header.tag {
            b'Q' => {
                put_frame(&mut out, b'C', &[b"SELECT 1\0"]);
                put_frame(&mut out, b'Z', &[b"I"]);
            }
            b'P' => put_frame(&mut out, b'1', &[]),
            b'B' => put_frame(&mut out, b'2', &[]),
            b'D' if body[0] == b'S' => {
                put_frame(&mut out, b't', &[b"\0\0"]);
                put_frame(&mut out, b'n', &[]);
            }
            b'C' => put_frame(&mut out, b'3', &[]),
            b'E' => put_frame(&mut out, b'C', &[b"SELECT 1\0"]),
            b'S' => put_frame(&mut out, b'Z', &[b"I"]),
            _ => {}
        }
        at += header.frame();
    }
    assert_eq!(at, requests.len(), "the server gets whole frames");
    out
}

/// The types of the frames in a byte string.
fn tags(bytes: &[u8]) -> String {
    let mut tags = String::new();
    let mut at = 0;
    while let wire::Head::Frame(header) = wire::head(&bytes[at..]) {
        tags.push(char::from(header.tag));
        at += header.frame();
    }
    tags
}

/// The types a direct server's answers would have, duplicates of a name aside.
fn direct(sent: &[Sent]) -> String {
    let mut tags = String::new();
    for one in sent {
        tags.push_str(match one {
            Sent::Query(_) => "CZ",
            Sent::Parse(..) => "1",
            Sent::Bind(_) => "2",
            Sent::Describe(_) => "tn",
            Sent::Close(_) => "3",
            Sent::Execute => "C",
            Sent::Sync => "Z",
            Sent::Flush | Sent::CopyData(_) | Sent::CopyDone => "",
        });
    }
    tags
}

proptest! {
    #[test]
    fn any_split_of_requests_sends_the_same(
        sent in proptest::collection::vec(sent(), 0..30),
        at in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let bytes = frames(&sent);
        let whole = Bench::new().send(&[&bytes]);
        let split = Bench::new().send(&cut(&bytes, &at));
        prop_assert_eq!(whole, split);
    }

    #[test]
    fn the_client_gets_exactly_its_answers(
        sent in proptest::collection::vec(sent(), 0..30),
        at in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let mut bench = Bench::new();
        let to_server = bench.send(&[&frames(&sent)]);
        let answers = serve(&to_server[bench.served..]);
        let got = bench.receive(&cut(&answers, &at)).expect("no desync");
        prop_assert_eq!(tags(&bench.given) + &tags(&got), direct(&sent));
        prop_assert_eq!(bench.line.exchange.owed(), 0);
    }

    #[test]
    fn unnamed_traffic_passes_byte_for_byte(
        texts in proptest::collection::vec("[a-z ]{0,40}", 1..10),
    ) {
        let mut bytes = Vec::new();
        for text in &texts {
            put_frame(&mut bytes, b'P', &[b"\0", text.as_bytes(), b"\0\0\0"]);
            put_frame(&mut bytes, b'B', &[b"\0\0\0\0\0\0\0\0"]);
            put_frame(&mut bytes, b'E', &[b"\0\0\0\0\0"]);
            put_frame(&mut bytes, b'S', &[]);
        }
        prop_assert_eq!(Bench::new().send(&[&bytes]), bytes);
    }

    #[test]
    fn garbage_neither_panics_nor_hangs(
        input in proptest::collection::vec(any::<u8>(), 0..200),
        answers in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bench = Bench::new();
        let around = Surroundings {
            registry: &bench.registry,
            settings: &bench.settings,
            understood_bytes: 1 << 20,
                statements: 1000,
            listening: Listening::Pins,
            suspicion: Suspicion::OfWords,
        };
        let mut out = Vec::new();
        let _any = requests(&mut bench.line, &mut bench.ledger, around, &input, &mut out);
        let _any = bench.receive(&[&answers]);
        let mut rest = 0;
        let _any = waiting(&mut rest, Stance::Open, &input, 1000, 5000);
        let _any = waiting(&mut rest, Stance::Refusing, &input, 1000, 5000);
    }

    #[test]
    fn any_split_drops_the_same_while_waiting(
        sent in proptest::collection::vec(sent(), 0..30),
        at in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        // Refusing: everything up to the end of the first request goes.
        let bytes = frames(&sent);
        let run = |pieces: &[&[u8]]| {
            let mut rest = 0;
            let mut kept = Vec::new();
            let mut dropped = 0;
            for piece in pieces {
                kept.extend_from_slice(piece);
                let looked = waiting(&mut rest, Stance::Refusing, &kept, 1000, 5000).expect("fine");
                kept.drain(..looked.dropped);
                dropped += looked.dropped;
                if looked.work == Work::RefusalEnds {
                    return dropped + wire::widen(rest);
                }
            }
            dropped + kept.len()
        };
        prop_assert_eq!(run(&[&bytes]), run(&cut(&bytes, &at)));
    }
}

#[test]
fn a_statement_parsed_by_another_session_is_not_parsed_again() {
    let mut bench = Bench::new();
    let first = frames(&[Sent::Parse("a", "select 1"), Sent::Sync]);
    let answers = serve(&bench.send(&[&first]));
    bench.receive(&[&answers]).unwrap();
    // Another session: another ledger, another name, the same text.
    bench.ledger = None;
    let again = frames(&[Sent::Parse("b", "select 1"), Sent::Bind("b"), Sent::Execute, Sent::Sync]);
    let to_server = bench.send(&[&again]);
    assert_eq!(tags(&to_server), "CBES");
    assert_eq!(tags(&bench.receive(&[&serve(&to_server)]).unwrap()), "12CZ");
}

#[test]
fn a_missing_statement_is_parsed_in_the_same_flight() {
    let mut bench = Bench::new();
    let parse = frames(&[Sent::Parse("a", "select 1"), Sent::Sync]);
    let answers = serve(&bench.send(&[&parse]));
    bench.receive(&[&answers]).unwrap();
    // The session meets another server connection.
    bench.line = Line::new(ServerStatements::new(2, 3), &[]);
    let to_server = bench.send(&[&frames(&[Sent::Bind("a"), Sent::Execute, Sent::Sync])]);
    assert_eq!(tags(&to_server), "PBES");
    assert_eq!(tags(&bench.receive(&[&serve(&to_server)]).unwrap()), "2CZ");
}

#[test]
fn another_sessions_unnamed_statement_is_out_of_reach() {
    let mut bench = Bench::new();
    let parse = frames(&[Sent::Parse("", "select 'secret'"), Sent::Sync]);
    let answers = serve(&bench.send(&[&parse]));
    bench.receive(&[&answers]).unwrap();
    let settings = Arc::clone(&bench.settings);
    let mut ahead = Vec::new();
    bench.line.begin(2, &settings, &bench.registry, Emptied::No, &mut ahead);
    bench.ledger = None;
    let to_server = bench.send(&[&frames(&[Sent::Bind(""), Sent::Execute, Sent::Sync])]);
    assert_eq!(tags(&to_server), "CBES", "the unnamed statement is closed first");
}

#[test]
fn a_failed_parse_is_forgotten() {
    let mut bench = Bench::new();
    bench.send(&[&frames(&[Sent::Parse("a", "select 1"), Sent::Bind("a"), Sent::Sync])]);
    let mut error = Vec::new();
    put_frame(&mut error, b'E', &[b"SERROR\0VERROR\0C42601\0Mno\0\0"]);
    put_frame(&mut error, b'Z', &[b"I"]);
    assert_eq!(tags(&bench.receive(&[&error]).unwrap()), "EZ");
    let to_server = bench.send(&[&frames(&[Sent::Parse("a", "select 1"), Sent::Sync])]);
    assert_eq!(tags(&to_server), "PS", "it is parsed as a new one");
}

#[test]
fn settings_ride_ahead_and_their_answer_is_swallowed() {
    let mut bench = Bench::new();
    let asked = vec![("application_name".to_owned(), "a".to_owned())];
    let settings = Arc::new(Settings::new(1, None, asked, Vec::new()));
    let mut ahead = Vec::new();
    bench.line.begin(1, &settings, &bench.registry, Emptied::No, &mut ahead);
    assert_eq!(tags(&ahead), "Q");
    ahead.extend(bench.send(&[&frames(&[Sent::Query("select 1")])]));
    assert_eq!(tags(&bench.receive(&[&serve(&ahead)]).unwrap()), "CZ");
    let mut again = Vec::new();
    bench.line.begin(1, &settings, &bench.registry, Emptied::No, &mut again);
    assert!(again.is_empty(), "they are in force already");
}

/// An answer that comes in pieces is an answer when it is whole: half a refusal is not "nothing is left".
#[test]
fn a_refused_question_is_untold_however_its_answer_comes() {
    let error = crate::postgres::message::ErrorFields::error("42501", "permission denied");
    let mut answer = crate::postgres::message::error_frame(&error);
    let refusal = answer.len();
    answer.extend_from_slice(b"Z\0\0\0\x05I");
    for split in [refusal, answer.len()] {
        let mut line = Line::new(crate::postgres::statements::ServerStatements::new(1, 10), &[]);
        let mut ledger = Some(Box::<Ledger>::default());
        let suspects = crate::postgres::sql::Suspects::LISTEN;
        let findings = crate::postgres::sql::Findings { suspects, ..Default::default() };
        ledger.as_mut().unwrap().suspect(&findings);
        assert_eq!(line.ask_truth(&mut ledger, &mut Vec::new()), Asked::Yes);
        let (mut first, mut second) = (answer[..split].to_vec(), answer[split..].to_vec());
        assert_eq!(replies(&mut line, &mut ledger, &mut first).unwrap().relay, 0);
        if split < answer.len() {
            assert!(line.take_news().is_none(), "not before its end");
            assert_eq!(replies(&mut line, &mut ledger, &mut second).unwrap().relay, 0);
        }
        assert!(matches!(line.take_news(), Some(News::Untold)), "{split}");
        assert_eq!(ledger.unwrap().pins().reason(), Some("listen"));
    }
}
