//! Our readers against pgwire's and postgres-protocol's writers and readers.

use postgres_protocol::message::backend::Message as Oracle;
use postgres_protocol::message::frontend;
use proptest::prelude::*;

use super::*;
use crate::postgres::exchange::Status;

fn only_frame(bytes: &[u8]) -> Frame<'_> {
    let frame = next_frame(bytes, usize::MAX).unwrap().unwrap();
    assert_eq!(frame.bytes, bytes.len());
    frame
}

fn oracle(bytes: &[u8]) -> Oracle {
    let mut buffer = BytesMut::from(bytes);
    let message = Oracle::parse(&mut buffer).unwrap().unwrap();
    assert!(buffer.is_empty());
    message
}

#[test]
fn an_error_survives_the_wire() {
    let fields = ErrorFields::fatal("53300", "too\0many").detail("five").hint("wait");
    let bytes = error_frame(&fields);
    assert!(matches!(oracle(&bytes), Oracle::ErrorResponse(_)));
    let read = ErrorFields::parse(only_frame(&bytes).body);
    assert_eq!(read, ErrorFields { message: "toomany".into(), ..fields });
}

#[test]
fn a_translated_severity_does_not_mislead() {
    let read = ErrorFields::parse(b"SFEHLER\0VFATAL\0C28P01\0Mnein\0\0");
    assert_eq!((read.severity, read.code.as_str()), (Severity::Fatal, "28P01"));
}

#[test]
fn server_frames_agree_with_the_oracle() {
    assert!(matches!(oracle(&authentication_ok()), Oracle::AuthenticationOk));
    assert!(
        matches!(oracle(&ready(Status::Idle)), Oracle::ReadyForQuery(body) if body.status() == b'I')
    );
    let key = BackendKey { pid: 7, secret: vec![0, 0, 1, 2] };
    let Oracle::BackendKeyData(read) = oracle(&backend_key_data(&key)) else { panic!() };
    assert_eq!((read.process_id(), read.secret_key()), (7, 0x102));
    let long = BackendKey { pid: -7, secret: vec![9; 32] };
    assert_eq!(parse_backend_key(only_frame(&backend_key_data(&long)).body), Some(long));
    let absurd = BackendKey { pid: 1, secret: Vec::new() };
    assert!(backend_key_data(&absurd).is_empty() && cancel_request(&absurd).is_empty());
    let sasl = authentication_sasl(&["SCRAM-SHA-256"]);
    assert!(matches!(oracle(&sasl), Oracle::AuthenticationSasl(_)));
    assert_eq!(
        parse_auth_request(only_frame(&sasl).body),
        Some(AuthRequest::Sasl(vec!["SCRAM-SHA-256".into()]))
    );
    let status = parameter_status("TimeZone", "UTC");
    assert_eq!(
        parse_parameter_status(only_frame(&status).body),
        Some(("TimeZone".into(), "UTC".into()))
    );
}

#[test]
fn client_frames_agree_with_the_oracle() {
    let pairs = [("user", "a"), ("database", "b"), ("options", "-c x=y")];
    let mut expected = BytesMut::new();
    frontend::startup_message(pairs, &mut expected).unwrap();
    // The oracle adds nothing but the order of its input.
    assert_eq!(startup(&pairs).unwrap(), expected.to_vec());
    assert_eq!(startup(&[("user", "a\0x")]), Err(HasNul { what: "startup parameter" }));

    expected.clear();
    frontend::ssl_request(&mut expected);
    assert_eq!(ssl_request(), expected.to_vec());

    expected.clear();
    frontend::cancel_request(5, 6, &mut expected);
    let key = BackendKey { pid: 5, secret: vec![0, 0, 0, 6] };
    assert_eq!(cancel_request(&key), expected.to_vec());

    expected.clear();
    frontend::password_message(b"secret", &mut expected).unwrap();
    assert_eq!(password("secret").unwrap(), expected.to_vec());
    assert_eq!(password("se\0cret"), Err(HasNul { what: "password" }));

    expected.clear();
    frontend::sasl_initial_response("SCRAM-SHA-256", b"n,,", &mut expected).unwrap();
    let bytes = sasl_initial("SCRAM-SHA-256", b"n,,");
    assert_eq!(bytes, expected.to_vec());
    assert_eq!(
        parse_sasl_initial(only_frame(&bytes).body),
        Some(("SCRAM-SHA-256", b"n,,".as_slice()))
    );

    expected.clear();
    frontend::query("select 1", &mut expected).unwrap();
    assert_eq!(query("select 1"), expected.to_vec());
    expected.clear();
    frontend::terminate(&mut expected);
    assert_eq!(terminate(), expected.to_vec());
}

#[test]
fn lengths_are_judged_at_the_header() {
    for length in [0_u32, 3, 101, u32::MAX] {
        let mut bytes = vec![b'R'];
        bytes.extend_from_slice(&length.to_be_bytes());
        assert_eq!(next_frame(&bytes, 100), Err(BadLength { tag: b'R', length, limit: 100 }));
    }
    assert_eq!(next_frame(b"R\0\0\0", 100), Ok(None));
    assert_eq!(next_frame(b"R\0\0\0\x05", 100), Ok(None));
}

proptest! {
    #[test]
    fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..80), limit in 0_usize..90) {
        let _ = next_frame(&body, limit);
        let _ = ErrorFields::parse(&body);
        let _ = parse_auth_request(&body);
        let _ = parse_parameter_status(&body);
        let _ = parse_backend_key(&body);
        let _ = parse_ready(&body);
        let _ = parse_sasl_initial(&body);
    }

    #[test]
    fn a_frame_is_whole_or_not_there(body in proptest::collection::vec(any::<u8>(), 0..80)) {
        let bytes = with_length(Some(b'x'), &body);
        for end in 0..bytes.len() {
            prop_assert_eq!(next_frame(&bytes[..end], 1000), Ok(None));
        }
        let frame = next_frame(&bytes, 1000).unwrap().unwrap();
        prop_assert_eq!(frame, Frame { tag: b'x', body: &body, bytes: bytes.len() });
    }
}
