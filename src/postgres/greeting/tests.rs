//! The greeting, byte by byte, and against pgwire's writers and readers.

use bytes::BytesMut;
use pgwire::messages::startup::{GssEncRequest, NegotiateProtocolVersion, Startup as Theirs};
use pgwire::messages::{DecodeContext, Message};
use proptest::prelude::*;

use super::super::message::{cancel_request, ssl_request, startup as startup_3_0};
use super::*;

const MOST: usize = 10_000;

fn packet(version: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &version.to_be_bytes()[..], body].concat()
}

fn start(bytes: &[u8]) -> Result<Startup, Refusal> {
    match Greeting::new(MOST, Encryption::Unavailable).step(bytes)? {
        Step::Startup { bytes: consumed, startup } => {
            assert_eq!(consumed, bytes.len());
            Ok(startup)
        }
        other => panic!("{other:?}"),
    }
}

fn code(refusal: Refusal) -> String {
    match refusal {
        Refusal::Fatal(fields) => fields.code,
        Refusal::Silent(why) => why.into(),
    }
}

#[test]
fn a_startup_packet_is_understood() {
    let bytes =
        startup_3_0(&[("user", "app"), ("TimeZone", "UTC"), ("database", "shop"), ("options", "")])
            .unwrap();
    let startup = start(&bytes).unwrap();
    assert_eq!((startup.user.as_str(), startup.database.as_str()), ("app", "shop"));
    assert_eq!(
        startup.parameters,
        [("TimeZone".into(), "UTC".into()), ("options".into(), String::new())]
    );
    assert_eq!((startup.keys, startup.negotiation), (CancelKeys::Short, None));
}

#[test]
fn the_database_is_the_users_name_if_not_said() {
    let startup = start(&startup_3_0(&[("user", "app"), ("database", "")]).unwrap()).unwrap();
    assert_eq!(startup.database, "app");
}

#[test]
fn nobody_is_refused() {
    for pairs in [&[("database", "x")][..], &[("user", "")], &[]] {
        assert_eq!(code(start(&startup_3_0(pairs).unwrap()).unwrap_err()), "28000");
    }
}

#[test]
fn encryption_is_declined_once_each() {
    let mut gss = BytesMut::new();
    GssEncRequest::new().encode(&mut gss).unwrap();
    let mut greeting = Greeting::new(MOST, Encryption::Unavailable);
    assert_eq!(greeting.step(&gss), Ok(Step::Decline { bytes: 8 }));
    assert_eq!(greeting.step(&ssl_request()), Ok(Step::Decline { bytes: 8 }));
    assert_eq!(code(greeting.step(&ssl_request()).unwrap_err()), "0A000");
}

#[test]
fn bytes_sent_before_our_answer_are_refused() {
    let startup = startup_3_0(&[("user", "app")]).unwrap();
    let bytes = [ssl_request(), startup].concat();
    let mut greeting = Greeting::new(MOST, Encryption::Unavailable);
    assert_eq!(greeting.step(&bytes), Ok(Step::Decline { bytes: 8 }));
    assert_eq!(code(greeting.step(&bytes[8..]).unwrap_err()), "08P01");
}

#[test]
fn encryption_is_granted_and_nothing_may_lie_behind_the_request() {
    let mut gss = BytesMut::new();
    GssEncRequest::new().encode(&mut gss).unwrap();
    for encryption in [Encryption::Offered, Encryption::Required] {
        let mut greeting = Greeting::new(MOST, encryption);
        assert_eq!(greeting.step(&gss), Ok(Step::Decline { bytes: 8 }));
        assert_eq!(greeting.step(&ssl_request()), Ok(Step::Encrypt { bytes: 8 }));
        let smuggled = [ssl_request(), b"x".to_vec()].concat();
        let refusal = Greeting::new(MOST, encryption).step(&smuggled).unwrap_err();
        assert_eq!(code(refusal), "08P01");
    }
    for request in [&ssl_request()[..], &gss] {
        let refusal = Greeting::new(MOST, Encryption::Done).step(request).unwrap_err();
        assert_eq!(code(refusal), "0A000", "encrypted twice");
    }
}

#[test]
fn without_encryption_there_is_no_session_where_it_is_required() {
    let startup = startup_3_0(&[("user", "app")]).unwrap();
    let step = |encryption| Greeting::new(MOST, encryption).step(&startup);
    assert_eq!(code(step(Encryption::Required).unwrap_err()), "28000");
    assert!(matches!(step(Encryption::Offered), Ok(Step::Startup { .. })));
    assert!(matches!(step(Encryption::Done), Ok(Step::Startup { .. })));
    let key = BackendKey { pid: 1, secret: vec![5; 4] };
    let cancel = Greeting::new(MOST, Encryption::Required).step(&cancel_request(&key));
    assert_eq!(cancel, Ok(Step::Cancel(key)), "as in Postgres");
}

#[test]
fn cancel_requests_have_short_and_long_keys() {
    for length in [4, 32, 256] {
        let key = BackendKey { pid: -3, secret: vec![5; length] };
        let step = Greeting::new(MOST, Encryption::Unavailable).step(&cancel_request(&key));
        assert_eq!(step, Ok(Step::Cancel(key)));
    }
    for length in [0, 3, 4, 300] {
        let step = Greeting::new(MOST, Encryption::Unavailable)
            .step(&packet(CANCEL_REQUEST, &vec![0; length]));
        assert!(matches!(step, Err(Refusal::Silent(_))), "{length}");
    }
}

#[test]
fn absurd_lengths_are_refused_at_once() {
    for length in [0_u32, 7, 10_001, 0x1603_0102, u32::MAX] {
        let refusal =
            Greeting::new(MOST, Encryption::Unavailable).step(&length.to_be_bytes()).unwrap_err();
        assert_eq!(code(refusal), "08P01");
    }
    assert_eq!(Greeting::new(MOST, Encryption::Unavailable).step(b"\0\0\x27"), Ok(Step::NeedMore));
    assert_eq!(
        Greeting::new(MOST, Encryption::Unavailable).step(&10_000_u32.to_be_bytes()),
        Ok(Step::NeedMore)
    );
}

#[test]
fn newer_versions_and_options_are_negotiated_once() {
    let cases: [(u32, &[u8], Option<u32>); 6] = [
        (VERSION_3_0, b"", None),
        (0x0003_0001, b"", None),
        (VERSION_3_2, b"", None),
        (0x0003_270f, b"_pq_.test_protocol_negotiation\0\0", Some(VERSION_3_2)),
        (0x0003_0003, b"", Some(VERSION_3_2)),
        (VERSION_3_0, b"_pq_.x\0y\0", Some(VERSION_3_0)),
    ];
    for (version, options, expected) in cases {
        let body = [b"user\0app\0", options, b"\0"].concat();
        let startup = start(&packet(version, &body)).unwrap();
        assert_eq!(startup.parameters, []);
        let spoken = startup.negotiation.map(|frame| {
            let mut frame = BytesMut::from(&frame[..]);
            let read =
                NegotiateProtocolVersion::decode(&mut frame, &DecodeContext::default()).unwrap();
            assert!(frame.is_empty());
            u32::try_from(read.unwrap().newest_minor_protocol).unwrap()
        });
        assert_eq!(spoken, expected, "{version:x}");
        let long = version >= VERSION_3_2;
        assert_eq!(startup.keys == CancelKeys::Long, long);
    }
    for version in [0x0002_0000, 0x0004_0000, 0] {
        assert_eq!(code(start(&packet(version, b"user\0app\0\0")).unwrap_err()), "0A000");
    }
}

#[test]
fn replication_is_known_and_its_absence_too() {
    for value in ["true", "database", "1", "on", "nonsense"] {
        let bytes = startup_3_0(&[("user", "app"), ("replication", value)]).unwrap();
        assert_eq!(start(&bytes).unwrap().replication.as_deref(), Some(value));
    }
    for value in ["false", "0", "off", "no", "F"] {
        let bytes = startup_3_0(&[("user", "app"), ("replication", value)]).unwrap();
        let startup = start(&bytes).unwrap();
        assert_eq!((startup.replication, startup.parameters), (None, vec![]), "{value}");
    }
}

#[test]
fn a_wrong_layout_is_refused() {
    let bodies: [&[u8]; 6] =
        [b"", b"user", b"user\0", b"user\0app", b"user\0app\0", b"user\0app\0\0x"];
    for body in bodies {
        assert_eq!(code(start(&packet(VERSION_3_0, body)).unwrap_err()), "08P01");
    }
    let latin = packet(VERSION_3_0, b"user\0\xe9\0\0");
    assert_eq!(code(start(&latin).unwrap_err()), "22021");
}

proptest! {
    #[test]
    fn garbage_never_panics(
        version in prop_oneof![Just(VERSION_3_0), Just(VERSION_3_2), Just(CANCEL_REQUEST), any::<u32>()],
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = Greeting::new(MOST, Encryption::Unavailable).step(&body);
        let _ = Greeting::new(200, Encryption::Unavailable).step(&packet(version, &body));
    }

    #[test]
    fn any_split_gives_the_same(
        user in "[a-zé]{1,9}",
        pairs in proptest::collection::vec(("[a-z_]{1,9}x", "[ -~]{0,9}"), 0..5),
        tail in proptest::collection::vec(any::<u8>(), 0..5),
    ) {
        let mut all: Vec<(&str, &str)> = vec![("user", &user)];
        all.extend(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let packet = startup_3_0(&all).unwrap();
        let bytes = [packet.clone(), tail].concat();
        let whole = Greeting::new(MOST, Encryption::Unavailable).step(&bytes).unwrap();
        let mut greeting = Greeting::new(MOST, Encryption::Unavailable);
        for end in 0..packet.len() {
            prop_assert_eq!(greeting.step(&bytes[..end]).unwrap(), Step::NeedMore);
        }
        prop_assert_eq!(&greeting.step(&packet).unwrap(), &whole);

        // The oracle reads the same user and as many parameters as have distinct names.
        let theirs = Theirs::decode(&mut BytesMut::from(&packet[..]), &DecodeContext::default());
        let theirs = theirs.unwrap().unwrap();
        let Step::Startup { startup, .. } = whole else { panic!() };
        prop_assert_eq!(theirs.parameters.get("user"), Some(&startup.user));
        for (name, _) in &startup.parameters {
            prop_assert!(theirs.parameters.contains_key(name));
        }
    }
}
