//! Properties of the scanners: any split gives the same answer, redis-protocol agrees, garbage never panics.

use proptest::prelude::*;
use redis_protocol::{resp2, resp3};

use super::*;

const WORK: RequestLimits = RequestLimits::Work { bulk_bytes: 512 * 1024 * 1024 };
const GREETING: RequestLimits = RequestLimits::Greeting { frame_bytes: 16_384 };

fn requests(stream: &[u8], chunk: usize) -> Result<Vec<(usize, Progress)>, RequestError> {
    let mut found = Vec::new();
    let mut scanner = RequestScanner::default();
    for piece in stream.chunks(chunk.max(1)) {
        let mut at = 0;
        while at < piece.len() {
            let (used, progress) = scanner.advance(&piece[at..], WORK)?;
            assert!(used > 0, "consumes or asks for more");
            at += used;
            if progress != Progress::Partial {
                found.push((scanner.length(), progress));
                scanner = RequestScanner::default();
            }
        }
    }
    Ok(found)
}

fn replies(stream: &[u8], chunk: usize) -> Result<Vec<(usize, Reply)>, ReplyError> {
    let mut found = Vec::new();
    let mut scanner = ReplyScanner::default();
    let mut length = 0;
    for piece in stream.chunks(chunk.max(1)) {
        let mut at = 0;
        while at < piece.len() {
            let (used, reply) = scanner.advance(&piece[at..])?;
            assert!(used > 0, "consumes or asks for more");
            at += used;
            length += used;
            if reply != Reply::Partial {
                found.push((length, reply));
                length = 0;
            }
        }
    }
    Ok(found)
}

fn resp3_frame() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        "[a-z ]{0,12}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
        any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
        Just(b"_\r\n".to_vec()),
        Just(b"#t\r\n".to_vec()),
        Just(b",3.5\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|body| {
            let mut frame = format!("${}\r\n", body.len()).into_bytes();
            frame.extend(body);
            frame.extend(b"\r\n");
            frame
        }),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        (prop_oneof![Just('*'), Just('%')], proptest::collection::vec(inner, 0..6)).prop_map(
            |(kind, mut items)| {
                if kind == '%' && items.len() % 2 == 1 {
                    items.pop();
                }
                let count = if kind == '%' { items.len() / 2 } else { items.len() };
                let mut frame = format!("{kind}{count}\r\n").into_bytes();
                frame.extend(items.concat());
                frame
            },
        )
    })
}

proptest! {
    #[test]
    fn replies_do_not_depend_on_the_split(
        frames in proptest::collection::vec(resp3_frame(), 1..8), chunk in 1_usize..40,
    ) {
        let stream = frames.concat();
        let whole = replies(&stream, stream.len()).unwrap();
        prop_assert_eq!(&whole, &replies(&stream, chunk).unwrap());
        let lengths: Vec<_> = whole.iter().map(|(length, _)| *length).collect();
        let expected: Vec<_> = frames.iter().map(Vec::len).collect();
        prop_assert_eq!(lengths, expected);
    }

    #[test]
    fn redis_protocol_sees_the_same_reply(frame in resp3_frame()) {
        let oracle = resp3::decode::complete::decode_range(&frame);
        if let Ok(Some((_, length))) = oracle {
            prop_assert_eq!(replies(&frame, 7).unwrap(), [(length, Reply::Whole)]);
        }
    }

    #[test]
    fn requests_do_not_depend_on_the_split_and_agree_with_redis_protocol(
        commands in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..6), 1..6),
        chunk in 1_usize..40,
    ) {
        let mut stream = Vec::new();
        for command in &commands {
            let begins = stream.len();
            write_command(command, &mut stream);
            let (_, length) = resp2::decode::decode_range(&stream[begins..]).unwrap().unwrap();
            prop_assert_eq!(length, stream.len() - begins);
            let read: Vec<_> = Arguments::new(&stream[begins..]).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(&read, command);
        }
        let whole = requests(&stream, stream.len()).unwrap();
        prop_assert_eq!(whole.len(), commands.len());
        prop_assert_eq!(whole, requests(&stream, chunk).unwrap());
    }

    #[test]
    fn garbage_gives_the_same_answer_however_split(
        bytes in proptest::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), any::<u8>()],
            0..80),
        chunk in 1_usize..10,
    ) {
        prop_assert_eq!(requests(&bytes, 1000), requests(&bytes, chunk));
        prop_assert_eq!(replies(&bytes, 1000), replies(&bytes, chunk));
        let _words = split_inline(&bytes);
        let _arguments = Arguments::new(&bytes).count();
    }
}

#[test]
fn absurd_numbers_are_refused_at_once() {
    let fault = |bytes: &[u8]| requests(bytes, 1).unwrap_err().to_string();
    assert_eq!(fault(b"*99999999999\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(fault(b"*1\r\n$536870913\r\n"), "Protocol error: invalid bulk length");
    assert_eq!(fault(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
    // What the server would refuse must not reach a connection that others share.
    for odd in
        [&b"*01\r\n$4\r\nPING\r\n"[..], b"*-0\r\n", b"*1\r\n$04\r\nPING\r\n", b"*1\r\n$00\r\n\r\n"]
    {
        assert!(fault(odd).starts_with("Protocol error: invalid"), "{odd:?}");
    }
    assert_eq!(fault(b"*1\r\n:1\r\n"), "Protocol error: expected '$', got ':'");
    assert_eq!(fault(b"*111111111111111111111"), "Protocol error: too big mbulk count string");
    assert_eq!(fault(&[b'a'; INLINE_LIMIT + 2]), "Protocol error: too big inline request");
    let mut stranger = RequestScanner::default();
    let count = stranger.advance(b"*11\r\n", GREETING).unwrap_err();
    assert_eq!(count, RequestError::CountBeforeLogin);
    let mut stranger = RequestScanner::default();
    let bulk = stranger.advance(b"*1\r\n$16385\r\n", GREETING).unwrap_err();
    assert_eq!(bulk, RequestError::LongBeforeLogin(16_384));
    assert!(replies(b"$18446744073709551615\r\n", 1).is_err());
    assert!(replies(b"*18446744073709551615\r\n", 1).is_err());
}

#[test]
fn a_short_line_says_what_its_bytes_say_one_by_one() {
    let one_by_one = |line: &[u8]| {
        let mut number = Number::default();
        line.iter().map(|byte| number.take(*byte)).find_map(|taken| match taken {
            Line::More => None,
            Line::Number(number) => Some(number),
            Line::Bad | Line::Long => Some(None),
        })
    };
    for number in 0..=1000_u64 {
        let line = format!("{number}\r\n");
        let short = short_line(line.as_bytes());
        assert_eq!(short, (number < 1000).then_some((number, line.len())), "{number}");
        assert_eq!(one_by_one(line.as_bytes()), Some(Some(number)));
        for end in 0..line.len() {
            assert_eq!(short_line(&line.as_bytes()[..end]), None, "it may go on");
        }
    }
    for odd in ["-1", "-0", "+1", "00", "01", "007", "1a", "", " 1", "1\r1"] {
        assert_eq!(short_line(format!("{odd}\r\n").as_bytes()), None, "{odd}");
    }
    assert_eq!((short_line(b"1\n"), short_line(b"12\r\r\n")), (None, None));
}

#[test]
fn depth_costs_nothing() {
    let mut deep = b"*1\r\n".repeat(100_000);
    deep.extend(b":1\r\n");
    assert_eq!(replies(&deep, 4096).unwrap(), [(deep.len(), Reply::Whole)]);
}

#[test]
fn pushes_and_attributes_are_told_apart() {
    let stream =
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n|1\r\n+ttl\r\n:5\r\n$1\r\nv\r\n*-1\r\n";
    assert_eq!(
        replies(stream, 3).unwrap(),
        [(31, Reply::Push), (stream.len() - 36, Reply::Whole), (5, Reply::Whole)]
    );
}

#[test]
fn inline_commands_split_as_redis_splits_them() {
    let words = |line: &[u8]| split_inline(line).map(|words| words.join(&b'|'));
    assert_eq!(words(b"  SET a  'b c' \r\n").unwrap(), b"SET|a|b c");
    assert_eq!(words(b"SET \"a\\x41\\n\\\"\" ''\r\n").unwrap(), b"SET|aA\n\"|");
    assert_eq!(words(b"\r\n").unwrap(), b"");
    assert_eq!(words(b"SET \"a\r\n"), Err(RequestError::Quotes));
    assert_eq!(words(b"SET \"a\"b\r\n"), Err(RequestError::Quotes));
    assert_eq!(
        requests(b"PING\r\n*0\r\n*-1\r\n", 2).unwrap(),
        [(6, Progress::Inline), (4, Progress::Nothing), (5, Progress::Nothing)]
    );
}
