//! The server's half of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), with `tls-server-end-point` for channel
//! binding (RFC 5929).
//!
//! Passwords are kept as verifiers, so a login costs a few HMACs and no PBKDF2, and the password
//! itself is not needed. A user who does not exist goes through the same exchange and fails at its
//! end, so that nobody can ask who exists.

mod client;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub use client::{Bindable, ClientError, Knowledge, ScramClient, ScramKeys};

/// The mechanism that is always offered.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The one that is bound to the encryption it runs over.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// How a bound client begins.
const BOUND: &str = "p=tls-server-end-point";

/// What the client chose, and what there is to bind to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding<'a> {
    /// [`MECHANISM`], where [`MECHANISM_PLUS`] was not offered.
    Unavailable,
    /// [`MECHANISM`], though [`MECHANISM_PLUS`] was offered: the client can't, or does not want to.
    Declined,
    /// [`MECHANISM_PLUS`], with the hash of the certificate the client was shown.
    Bound(&'a [u8]),
}

/// The iteration count of Postgres and of `postgres_protocol::password`; mock verifiers must not
/// differ from real ones.
const MOCK_ITERATIONS: u32 = 4096;

/// What a server must know to check a password and to prove that it knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    salt: String,
    iterations: u32,
    keys: Keys,
    /// Of other passwords with the same salt that open, too.
    also: Vec<Keys>,
    standing: Standing,
}

/// What is kept of one password.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Keys {
    stored: [u8; 32],
    server: [u8; 32],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Genuine,
    /// Stands in for a user who does not exist: never succeeds.
    Mock,
}

/// A client has proved that it knows the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    /// The server's last message.
    pub answer: String,
    /// What the client has shown with its proof.
    pub keys: ScramKeys,
}

/// Why an exchange failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The client's message does not follow the RFC.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client asks for what is not offered (channel binding without TLS, extensions), or somebody took an offer away.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The proof is wrong, or the user does not exist.
    #[error("the password is wrong")]
    WrongPassword,
}

impl Verifier {
    /// Reads a verifier as Postgres stores it in `pg_authid.rolpassword`:
    /// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
    #[must_use]
    pub fn parse(stored: &str) -> Option<Self> {
        let rest = stored.strip_prefix("SCRAM-SHA-256$")?;
        let (spice, keys) = rest.split_once('$')?;
        let (iterations, salt) = spice.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        BASE64.decode(salt).ok().filter(|salt| !salt.is_empty())?;
        Some(Self {
            salt: salt.to_owned(),
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
            keys: Keys { stored: key(stored_key)?, server: key(server_key)? },
            also: Vec::new(),
            standing: Standing::Genuine,
        })
    }

    /// The verifier of a password that is known. With the same `seed` all of a user's passwords have the same salt, so that one
    /// exchange can be open to several; it is the salt of [`Verifier::mock`]. Costs some thousand HMACs.
    #[must_use]
    pub fn of(password: &str, user: &str, seed: &[u8; 32]) -> Self {
        let salt = salt(user, seed);
        let ScramKeys { client, server, .. } = ScramKeys::of(password, &salt, MOCK_ITERATIONS);
        Self {
            salt: BASE64.encode(salt),
            iterations: MOCK_ITERATIONS,
            keys: Keys { stored: Sha256::digest(client).into(), server },
            also: Vec::new(),
            standing: Standing::Genuine,
        }
    }

    /// Opens to the other's password, too, if that has the same salt: only then can one exchange try both.
    #[must_use]
    pub fn accepting(mut self, other: &Self) -> Self {
        let alike = self.salt == other.salt && self.iterations == other.iterations;
        if alike && self.standing == Standing::Genuine && other.standing == Standing::Genuine {
            self.also.push(other.keys);
            self.also.extend(&other.also);
        }
        self
    }

    /// A verifier for a user who does not exist. The same user gets the same salt each time, as a
    /// user who exists does; `seed` is random and stays the same as long as the process lives.
    #[must_use]
    pub fn mock(user: &str, seed: &[u8; 32]) -> Self {
        Self {
            salt: BASE64.encode(salt(user, seed)),
            iterations: MOCK_ITERATIONS,
            keys: Keys {
                stored: hmac(seed, &[b"stored", user.as_bytes()]),
                server: hmac(seed, &[b"server", user.as_bytes()]),
            },
            also: Vec::new(),
            standing: Standing::Mock,
        }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(***)")
    }
}

/// An exchange that has answered the client's first message and waits for its last.
#[derive(Debug)]
pub struct Exchange<'a> {
    verifier: &'a Verifier,
    /// The client's nonce and ours, as one string.
    nonce: String,
    /// base64 of the header that the client must repeat, and of what it is bound to.
    channel_binding: String,
    /// `client-first-message-bare "," server-first-message`.
    spoken: String,
}

impl<'a> Exchange<'a> {
    /// Takes the client's first message and gives the server's first. `nonce` is fresh random bytes.
    ///
    /// # Errors
    /// When the message is malformed or asks for another channel binding than `binding`. The user name in it is not
    /// looked at: the startup packet's counts, as in Postgres.
    pub fn begin(
        verifier: &'a Verifier,
        client_first: &[u8],
        nonce: &[u8; 18],
        binding: Binding<'_>,
    ) -> Result<(Self, String), ScramError> {
        let text = std::str::from_utf8(client_first)
            .map_err(|_| ScramError::Malformed("the first message is not UTF-8"))?;
        let bare = strip_header(text, binding)?;
        let header = &text[..text.len() - bare.len()];
        let mut attributes = bare.split(',');
        if bare.starts_with("m=") {
            return Err(ScramError::Unsupported("client requires an unsupported SCRAM extension"));
        }
        attributes
            .next()
            .filter(|user| user.starts_with("n="))
            .ok_or(ScramError::Malformed("the user name is missing"))?;
        let client_nonce = attributes
            .next()
            .and_then(|nonce| nonce.strip_prefix("r="))
            .filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()))
            .ok_or(ScramError::Malformed("the nonce is missing or not printable"))?;
        let nonce = format!("{client_nonce}{}", BASE64.encode(nonce));
        let first = format!("r={nonce},s={},i={}", verifier.salt, verifier.iterations);
        let spoken = format!("{bare},{first}");
        let channel_binding = match binding {
            Binding::Bound(hash) => BASE64.encode([header.as_bytes(), hash].concat()),
            Binding::Unavailable | Binding::Declined => BASE64.encode(header),
        };
        Ok((Self { verifier, nonce, channel_binding, spoken }, first))
    }

    /// Takes the client's last message and gives the server's, which proves that we know the
    /// password too.
    ///
    /// # Errors
    /// When the message is malformed or the proof is wrong.
    pub fn finish(self, client_final: &[u8]) -> Result<Proved, ScramError> {
        let text = std::str::from_utf8(client_final)
            .map_err(|_| ScramError::Malformed("the last message is not UTF-8"))?;
        let (without_proof, proof) =
            text.rsplit_once(",p=").ok_or(ScramError::Malformed("the proof is missing"))?;
        let proof = key(proof).ok_or(ScramError::Malformed("the proof is not a key"))?;
        let expected = format!("c={},r={}", self.channel_binding, self.nonce);
        // Extensions may follow the nonce; none is known, so all are ignored, as the RFC says.
        let rest = without_proof
            .strip_prefix(&expected)
            .ok_or(ScramError::Malformed("channel binding or nonce do not match"))?;
        if !rest.is_empty() && !rest.starts_with(',') {
            return Err(ScramError::Malformed("the nonce does not match"));
        }
        let message = format!("{},{without_proof}", self.spoken);
        // All are tried whichever fits, so that the time tells nothing.
        let known = [self.verifier.keys].into_iter().chain(self.verifier.also.iter().copied());
        let shown = known.map(|keys| (keys, opens(&keys, &proof, message.as_bytes())));
        let right: Vec<_> = shown.filter_map(|(keys, shown)| Some((keys, shown?))).collect();
        match (right.first(), self.verifier.standing) {
            (Some((keys, client_key)), Standing::Genuine) => {
                let proof = hmac(&keys.server, &[message.as_bytes()]);
                let answer = format!("v={}", BASE64.encode(proof));
                Ok(Proved { answer, keys: ScramKeys::new(self.verifier, *client_key, keys.server) })
            }
            _ => Err(ScramError::WrongPassword),
        }
    }
}

/// The client's key, if its proof shows the password that these are of.
fn opens(keys: &Keys, proof: &[u8; 32], message: &[u8]) -> Option<[u8; 32]> {
    let signature = hmac(&keys.stored, &[message]);
    let mut client_key = *proof;
    client_key.iter_mut().zip(signature).for_each(|(byte, mask)| *byte ^= mask);
    let known: [u8; 32] = Sha256::digest(client_key).into();
    same(&known, &keys.stored).then_some(client_key)
}

/// Sixteen bytes, as Postgres has.
fn salt(user: &str, seed: &[u8; 32]) -> [u8; 16] {
    let mut salt = [0; 16];
    salt.copy_from_slice(&hmac(seed, &[b"salt", user.as_bytes()])[..16]);
    salt
}

/// `Hi()` of RFC 5802: PBKDF2 with one block.
fn hi(password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
    // HMAC takes keys of any length (RFC 2104).
    let Ok(keyed) = Hmac::<Sha256>::new_from_slice(password) else { return [0; 32] };
    let turn = |parts: &[&[u8]]| -> [u8; 32] {
        let mut mac = keyed.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let mut last = turn(&[salt, &[0, 0, 0, 1]]);
    let mut all = last;
    for _ in 1..iterations {
        last = turn(&[&last]);
        all.iter_mut().zip(last).for_each(|(byte, mask)| *byte ^= mask);
    }
    all
}

/// Takes the GS2 header off the client's first message. The texts are those of `read_client_first_message` in Postgres.
fn strip_header<'a>(text: &'a str, binding: Binding<'_>) -> Result<&'a str, ScramError> {
    let rest = match (text.as_bytes().first(), binding) {
        (Some(b'n'), Binding::Unavailable | Binding::Declined) => &text[1..],
        // The client could bind, but thinks that we can't.
        (Some(b'y'), Binding::Unavailable) => &text[1..],
        (Some(b'y'), Binding::Declined) => {
            return Err(ScramError::Unsupported("SCRAM channel binding negotiation error"));
        }
        (Some(b'p'), Binding::Bound(_)) => text
            .strip_prefix(BOUND)
            .ok_or(ScramError::Unsupported("unsupported SCRAM channel-binding type"))?,
        (Some(b'p'), _) => {
            return Err(ScramError::Unsupported(
                "client wants channel binding, which was not offered",
            ));
        }
        (Some(b'n' | b'y'), Binding::Bound(_)) => {
            return Err(ScramError::Malformed(
                "the client selected SCRAM-SHA-256-PLUS, but the message has no channel binding",
            ));
        }
        _ => return Err(ScramError::Malformed("the channel-binding flag is missing")),
    };
    if rest.starts_with(",a=") {
        return Err(ScramError::Unsupported(
            "client uses authorization identity, but it is not supported",
        ));
    }
    rest.strip_prefix(",,").ok_or(ScramError::Malformed("the header is not as expected"))
}

/// Compares without telling by its time where the difference is.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn key(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // Block-sized keys are HMAC's native form (RFC 2104: shorter ones are padded with zeros).
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use postgres_protocol::password::scram_sha_256;
    use proptest::prelude::*;

    use super::*;

    const NONCE: [u8; 18] = [7; 18];

    fn verifier(password: &str) -> Verifier {
        Verifier::parse(&scram_sha_256(password.as_bytes())).unwrap()
    }

    fn log_in(
        verifier: &Verifier,
        password: &str,
        asked: ChannelBinding,
    ) -> Result<(), ScramError> {
        bound(verifier, password, asked, Binding::Unavailable)
    }

    fn bound(
        verifier: &Verifier,
        password: &str,
        asked: ChannelBinding,
        binding: Binding<'_>,
    ) -> Result<(), ScramError> {
        let mut client = ScramSha256::new(password.as_bytes(), asked);
        let (exchange, first) = Exchange::begin(verifier, client.message(), &NONCE, binding)?;
        client.update(first.as_bytes()).unwrap();
        let last = exchange.finish(client.message())?;
        client.finish(last.answer.as_bytes()).unwrap();
        Ok(())
    }

    #[test]
    fn the_right_password_opens_and_a_wrong_one_does_not() {
        for password in ["secret", "pa,ss=wörd\u{a0}", ""] {
            let known = verifier(password);
            assert_eq!(log_in(&known, password, ChannelBinding::unsupported()), Ok(()));
            assert_eq!(log_in(&known, password, ChannelBinding::unrequested()), Ok(()));
            assert_eq!(
                log_in(&known, "wrong", ChannelBinding::unsupported()),
                Err(ScramError::WrongPassword)
            );
        }
    }

    #[test]
    fn a_verifier_of_our_own_is_the_librarys() {
        for password in ["secret", "pa,ss=wörd\u{a0}", "\u{7}", "", &"long".repeat(100)] {
            let known = Verifier::of(password, "ann", &[5; 32]);
            assert_eq!(log_in(&known, password, ChannelBinding::unsupported()), Ok(()));
            let wrong = log_in(&known, "wrong", ChannelBinding::unsupported());
            assert_eq!(wrong, Err(ScramError::WrongPassword));
        }
        assert_eq!(Verifier::of("x", "ann", &[5; 32]).salt, Verifier::mock("ann", &[5; 32]).salt);
    }

    #[test]
    fn several_passwords_open_if_they_have_one_salt() {
        let of = |password| Verifier::of(password, "ann", &[5; 32]);
        let known = of("new").accepting(&of("old")).accepting(&of("older"));
        for (password, right) in [("new", true), ("old", true), ("older", true), ("oldest", false)]
        {
            let opened = log_in(&known, password, ChannelBinding::unsupported());
            assert_eq!(opened.is_ok(), right, "{password}");
        }
        let elsewhere = of("new").accepting(&verifier("old"));
        assert!(log_in(&elsewhere, "old", ChannelBinding::unsupported()).is_err());
        let mock = Verifier::mock("ann", &[5; 32]).accepting(&of("old"));
        assert!(log_in(&mock, "old", ChannelBinding::unsupported()).is_err());
    }

    #[test]
    fn channel_binding_that_was_not_offered_is_refused() {
        let asked = ChannelBinding::tls_server_end_point(vec![1]);
        let refused = log_in(&verifier("x"), "x", asked);
        assert!(matches!(refused, Err(ScramError::Unsupported(_))));
    }

    #[test]
    fn a_bound_login_opens_over_the_same_certificate_alone() {
        let known = verifier("x");
        let over = |hash: &[u8]| ChannelBinding::tls_server_end_point(hash.to_vec());
        assert_eq!(bound(&known, "x", over(b"ours"), Binding::Bound(b"ours")), Ok(()));
        let elsewhere = bound(&known, "x", over(b"theirs"), Binding::Bound(b"ours"));
        assert!(matches!(elsewhere, Err(ScramError::Malformed(_))), "{elsewhere:?}");
        let wrong = bound(&known, "y", over(b"ours"), Binding::Bound(b"ours"));
        assert_eq!(wrong, Err(ScramError::WrongPassword));
    }

    #[test]
    fn an_offer_that_somebody_took_away_is_noticed() {
        let known = verifier("x");
        let could = bound(&known, "x", ChannelBinding::unrequested(), Binding::Declined);
        assert!(matches!(could, Err(ScramError::Unsupported(_))), "{could:?}");
        assert_eq!(bound(&known, "x", ChannelBinding::unsupported(), Binding::Declined), Ok(()));
        let unbound = bound(&known, "x", ChannelBinding::unsupported(), Binding::Bound(b"ours"));
        assert!(matches!(unbound, Err(ScramError::Malformed(_))), "{unbound:?}");
    }

    #[test]
    fn a_mock_never_opens_and_keeps_its_salt() {
        let mock = Verifier::mock("nobody", &[3; 32]);
        assert_eq!(
            log_in(&mock, "x", ChannelBinding::unsupported()),
            Err(ScramError::WrongPassword)
        );
        assert_eq!(mock, Verifier::mock("nobody", &[3; 32]));
        assert_ne!(mock, Verifier::mock("nobodies", &[3; 32]));
        assert_eq!(mock.salt.len(), verifier("x").salt.len());
    }

    #[test]
    fn a_replayed_last_message_fails() {
        let known = verifier("secret");
        let mut client = ScramSha256::new(b"secret", ChannelBinding::unsupported());
        let first = client.message().to_vec();
        let (_, answer) = Exchange::begin(&known, &first, &NONCE, Binding::Unavailable).unwrap();
        client.update(answer.as_bytes()).unwrap();
        let (other, _) = Exchange::begin(&known, &first, &[8; 18], Binding::Unavailable).unwrap();
        assert!(matches!(other.finish(client.message()), Err(ScramError::Malformed(_))));
    }

    #[test]
    fn stored_verifiers_are_checked() {
        for wrong in ["", "md5abc", "SCRAM-SHA-256$0:AAAA$A:B", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA"]
        {
            assert_eq!(Verifier::parse(wrong), None);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_opens(
            first in "(n,,n=|y,,n=|p=|)[ -~é]{0,20}(,r=)?[ -~]{0,9}",
            last in "(c=biws,r=)?[ -~é]{0,60}(,p=[A-Za-z0-9+/=]{0,50})?",
        ) {
            if let Ok((exchange, _)) = Exchange::begin(&verifier_once(), first.as_bytes(), &NONCE, Binding::Unavailable) {
                prop_assert!(exchange.finish(last.as_bytes()).is_err());
            }
        }
    }

    fn verifier_once() -> Verifier {
        Verifier { standing: Standing::Genuine, ..Verifier::mock("x", &[1; 32]) }
    }
}
