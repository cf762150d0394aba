//! The login against frames written by ours and by pgwire, and against our own SCRAM server.

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::startup::Authentication;
use proptest::prelude::*;

use super::super::message::{
    authentication_ok, authentication_sasl, authentication_sasl_continue,
    authentication_sasl_final, backend_key_data, error_frame, notice_frame, parameter_status,
    parse_sasl_initial, ready,
};
use super::super::scram::{Exchange, Verifier};
use super::*;
use crate::postgres::exchange::Status;

fn enter(user: &str, knowledge: Option<Knowledge>) -> Login {
    Login::new(user, knowledge, [1; 18], Binding::Never)
}

fn password(text: &str) -> Option<Knowledge> {
    Some(Knowledge::Password(text.to_owned(), None))
}

fn frame(message: &Authentication) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes).unwrap();
    bytes.to_vec()
}

fn tail() -> Vec<u8> {
    [
        authentication_ok(),
        parameter_status("server_version", "15.4"),
        notice_frame(&ErrorFields::new(super::super::message::Severity::Notice, "00000", "hi")),
        parameter_status("TimeZone", "UTC"),
        backend_key_data(&BackendKey { pid: 9, secret: vec![1, 2, 3, 4] }),
        ready(Status::Idle),
    ]
    .concat()
}

fn logged_in() -> LoggedIn {
    LoggedIn {
        parameters: vec![
            ("server_version".into(), "15.4".into()),
            ("TimeZone".into(), "UTC".into()),
        ],
        key: Some(BackendKey { pid: 9, secret: vec![1, 2, 3, 4] }),
    }
}

fn sent(login: &mut Login, bytes: &[u8]) -> Vec<u8> {
    match login.step(bytes).unwrap() {
        (consumed, Step::Send(answer)) => {
            assert_eq!(consumed, bytes.len());
            answer
        }
        other => panic!("{other:?}"),
    }
}

fn body(frame: &[u8]) -> &[u8] {
    let frame = next_frame(frame, usize::MAX).unwrap().unwrap();
    assert_eq!(frame.tag, b'p');
    frame.body
}

#[test]
fn trust_sends_nothing() {
    let bytes = tail();
    let step = enter("a", None).step(&bytes).unwrap();
    assert_eq!(step, (bytes.len(), Step::Done(logged_in())));
}

#[test]
fn passwords_are_sent_as_asked() {
    let mut login = enter("md5_user", password("password"));
    assert_eq!(body(&sent(&mut login, &frame(&Authentication::CleartextPassword))), b"password\0");
    let mut login = enter("md5_user", password("password"));
    let salted = frame(&Authentication::MD5Password(vec![0x2a, 0x3d, 0x8f, 0xe0]));
    assert_eq!(body(&sent(&mut login, &salted)), b"md562af4dd09bbb41884907a838a3233294\0");
    assert_eq!(login.step(&tail()).unwrap().1, Step::Done(logged_in()));
}

#[test]
fn a_server_that_asks_in_another_way_than_is_allowed_gets_nothing() {
    let cleartext = frame(&Authentication::CleartextPassword);
    let md5 = frame(&Authentication::MD5Password(vec![0; 4]));
    let scram = authentication_sasl(&["SCRAM-SHA-256"]);
    let nothing = authentication_ok();
    let requests = [&cleartext, &md5, &scram, &nothing];
    for (list, allowed) in [
        ("password", [true, false, false, false]),
        ("md5,scram-sha-256", [false, true, true, false]),
        ("!password,!none", [false, true, true, false]),
        ("none", [false, false, false, true]),
        ("gss", [false; 4]),
        ("!gss", [true; 4]),
    ] {
        for (request, allowed) in requests.iter().zip(allowed) {
            let login = enter("a", password("b"));
            let step = login.by(Methods::parse(list).unwrap()).step(request);
            let ruled_out = matches!(step, Err(LoginError::Unwanted(_)));
            assert_eq!(ruled_out, !allowed, "{list}: {step:?}");
        }
    }
    for list in ["", "password,", "kerberos", "password,!md5", "!!md5"] {
        assert_eq!(Methods::parse(list), None, "{list}");
    }
}

#[test]
fn no_password_is_said_before_anything_is_sent() {
    for request in [
        frame(&Authentication::CleartextPassword),
        frame(&Authentication::MD5Password(vec![0; 4])),
        authentication_sasl(&["SCRAM-SHA-256"]),
    ] {
        assert_eq!(enter("a", None).step(&request), Err(LoginError::NoPassword));
    }
}

/// A login up to the server's last SCRAM message.
fn scram(login: &mut Login, known: &str) -> String {
    let verifier = Verifier::of(known, "a", &[5; 32]);
    let first = sent(login, &authentication_sasl(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]));
    let (mechanism, data) = parse_sasl_initial(body(&first)).unwrap();
    assert_eq!(mechanism, "SCRAM-SHA-256");
    let (exchange, answer) =
        Exchange::begin(&verifier, data, &[1; 18], scram::Binding::Declined).unwrap();
    let proof = sent(login, &authentication_sasl_continue(answer.as_bytes()));
    exchange.finish(body(&proof)).unwrap().answer
}

#[test]
fn scram_goes_both_ways() {
    let mut login = enter("a", password("secret"));
    let last = scram(&mut login, "secret");
    let rest = [authentication_sasl_final(last.as_bytes()), tail()].concat();
    assert_eq!(login.take_proved(), None);
    assert_eq!(login.step(&rest).unwrap(), (rest.len(), Step::Done(logged_in())));
    let keys = login.take_proved().unwrap();

    // What the password came to opens a server with the same salt, whichever password is beside it.
    let known = Some(Knowledge::Password("another".to_owned(), Some(keys)));
    for knowledge in [known, password("secret")] {
        let mut login = enter("a", knowledge);
        let last = scram(&mut login, "secret");
        let rest = [authentication_sasl_final(last.as_bytes()), tail()].concat();
        assert!(matches!(login.step(&rest).unwrap().1, Step::Done(_)));
    }
}

#[test]
fn what_was_proved_counts_though_the_server_is_full() {
    let mut login = enter("a", password("secret"));
    let last = scram(&mut login, "secret");
    let full = error_frame(&ErrorFields::fatal("53300", "sorry, too many clients already"));
    let rest = [authentication_sasl_final(last.as_bytes()), full].concat();
    assert!(matches!(login.step(&rest), Err(LoginError::Server(_))));
    assert!(login.take_proved().is_some());
}

#[test]
fn a_server_that_does_not_know_the_password_is_unmasked() {
    let mut login = enter("a", password("secret"));
    scram(&mut login, "secret");
    let proof = authentication_sasl_final(format!("v={}=", "A".repeat(43)).as_bytes());
    assert!(matches!(login.step(&proof), Err(LoginError::Impostor(_))));
    assert_eq!(login.take_proved(), None);

    let mut login = enter("a", password("secret"));
    scram(&mut login, "secret");
    assert!(matches!(login.step(&authentication_ok()), Err(LoginError::Protocol(_))));

    let mut login = enter("a", password("secret"));
    sent(&mut login, &authentication_sasl(&["SCRAM-SHA-256"]));
    let cleartext = frame(&Authentication::CleartextPassword);
    assert!(matches!(login.step(&cleartext), Err(LoginError::Protocol(_))));
}

#[test]
fn what_we_cannot_do_is_said() {
    let oauth = authentication_sasl(&["OAUTHBEARER"]);
    let error = enter("a", password("b")).step(&oauth).unwrap_err();
    assert_eq!(error, LoginError::Unsupported("OAUTHBEARER".into()));
    let kerberos = frame(&Authentication::KerberosV5);
    let error = enter("a", password("b")).step(&kerberos).unwrap_err();
    assert!(matches!(error, LoginError::Unsupported(_)));
}

#[test]
fn a_server_that_wants_too_much_hashing_is_told_what_to_do() {
    let mut login = enter("a", password("secret"));
    let first = sent(&mut login, &authentication_sasl(&["SCRAM-SHA-256"]));
    let (_, data) = parse_sasl_initial(body(&first)).unwrap();
    let nonce = std::str::from_utf8(data).unwrap().split_once("r=").unwrap().1;
    let asked = format!("r={nonce}x,s=AAAA,i=2000000");
    let error = login.step(&authentication_sasl_continue(asked.as_bytes())).unwrap_err();
    assert!(error.to_string().contains("lower its scram_iterations"), "{error}");
}

#[test]
fn the_servers_own_words_are_kept() {
    let fields = ErrorFields::fatal("28P01", "password authentication failed for user \"a\"");
    let error = enter("a", None).step(&error_frame(&fields)).unwrap_err();
    assert_eq!(error.to_string(), "password authentication failed for user \"a\" (28P01)");
    assert_eq!(error, LoginError::Server(Box::new(fields)));
}

#[test]
fn nonsense_is_not_believed() {
    for bytes in [&b"HTTP/1.1 400 Bad"[..], b"R\0\0\0\x04", b"Z\0\0\0\x05I", b"X\0\0\0\x04"] {
        let error = enter("a", None).step(bytes).unwrap_err();
        assert!(matches!(error, LoginError::Protocol(_)), "{error:?}");
    }
    let endless = [authentication_ok(), parameter_status("a", "b").repeat(501)].concat();
    assert!(matches!(enter("a", None).step(&endless), Err(LoginError::Protocol(_))));
}

proptest! {
    #[test]
    fn any_split_gives_the_same(cuts in proptest::collection::vec(0_usize..200, 0..9)) {
        let bytes = tail();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut login = enter("a", None);
        let mut pending = Vec::new();
        let mut last = Step::NeedMore;
        for pair in cuts.windows(2) {
            prop_assert_eq!(last, Step::NeedMore);
            pending.extend_from_slice(&bytes[pair[0]..pair[1]]);
            let (consumed, step) = login.step(&pending).unwrap();
            pending.drain(..consumed);
            last = step;
        }
        prop_assert_eq!(last, Step::Done(logged_in()));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), tag in "[RSKZEN]") {
        let _ = enter("a", password("b")).step(&bytes);
        let length = u32::try_from(bytes.len() + 4).unwrap().to_be_bytes();
        let framed = [tag.as_bytes(), &length, &bytes].concat();
        let mut login = enter("a", password("b"));
        let _ = login.step(&framed);
        let mut login = enter("a", password("b"));
        login.step(&authentication_ok()).unwrap();
        let _ = login.step(&framed);
    }
}
