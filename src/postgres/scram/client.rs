//! The client's half of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), for whoever has the password, and for whoever
//! has only the keys that are made of one: a client that has proved its password to us by the server's own verifier has shown
//! its key with that, and the key opens the server, too. A password comes to the same keys as long as the server's salt is the
//! same: then what it came to at the last login spares some thousand HMACs, during which nobody is served.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use super::{BOUND, Verifier, hi, hmac, same};

/// Most rounds of hashing that a server may ask for: a quarter of a second. Postgres asks for 4096, if `scram_iterations` doesn't
/// say another number.
const ITERATIONS_MOST: u32 = 1_000_000;

/// What a password comes to with one salt: enough to log in where the verifier has that salt.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    salt: String,
    iterations: u32,
    pub(super) client: [u8; 32],
    pub(super) server: [u8; 32],
}

impl ScramKeys {
    pub(super) fn new(verifier: &Verifier, client: [u8; 32], server: [u8; 32]) -> Self {
        Self { salt: verifier.salt.clone(), iterations: verifier.iterations, client, server }
    }

    /// Costs as many HMACs as there are `iterations`.
    pub(in crate::postgres) fn of(password: &str, salt: &[u8], iterations: u32) -> Self {
        let prepared = stringprep::saslprep(password).unwrap_or(Cow::Borrowed(password));
        let salted = hi(prepared.as_bytes(), salt, iterations);
        let (client, server) = (hmac(&salted, &[b"Client Key"]), hmac(&salted, &[b"Server Key"]));
        Self { salt: BASE64.encode(salt), iterations, client, server }
    }

    fn are_for(&self, salt: &str, iterations: u32) -> bool {
        self.salt == salt && self.iterations == iterations
    }
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramKeys(***)")
    }
}

/// What a client logs in with.
#[derive(Clone)]
pub enum Knowledge {
    /// The password, and what it came to the last time.
    Password(String, Option<ScramKeys>),
    /// What it comes to with one salt.
    Keys(ScramKeys),
}

/// What a client says of channel binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bindable {
    /// It can't, or does not want to.
    No,
    /// It could, but the server has not offered it.
    NotOffered,
    /// It is bound to `tls-server-end-point`: the hash of the server's certificate (RFC 5929).
    Bound(Vec<u8>),
}

/// One login.
pub struct ScramClient {
    knowledge: Knowledge,
    /// base64 of the header, and of what the login is bound to.
    channel_binding: String,
    message: String,
    /// `client-first-message-bare`, then the whole `AuthMessage`.
    spoken: String,
    /// Used for the proof.
    keys: Option<ScramKeys>,
}

/// What the server must not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// It breaks the protocol.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// It asks for more hashing than is good for those who are served meanwhile.
    #[error("{0} rounds of hashing, more than {ITERATIONS_MOST}")]
    TooManyIterations(u32),
    /// Its verifier is another one than the keys'.
    #[error("the verifier that the client was known by is not the server's any more")]
    OtherVerifier,
    /// It does not know the password.
    #[error("its proof is wrong")]
    Impostor,
}

impl ScramClient {
    /// Begins; `nonce` is fresh random bytes.
    #[must_use]
    pub fn new(knowledge: Knowledge, bindable: &Bindable, nonce: &[u8; 18]) -> Self {
        let (header, hash) = match bindable {
            Bindable::No => ("n,,".to_owned(), &[][..]),
            Bindable::NotOffered => ("y,,".to_owned(), &[][..]),
            Bindable::Bound(hash) => (format!("{BOUND},,"), hash.as_slice()),
        };
        let spoken = format!("n=,r={}", BASE64.encode(nonce));
        let message = format!("{header}{spoken}");
        let channel_binding = BASE64.encode([header.as_bytes(), hash].concat());
        Self { knowledge, channel_binding, message, spoken, keys: None }
    }

    /// What to send now.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.message.as_bytes()
    }

    /// Takes the server's first message. May take a millisecond and more, if the password's keys for its salt are not known yet.
    ///
    /// # Errors
    /// When it is malformed, asks for what keys with another salt are needed, or for very many rounds of hashing.
    pub fn update(&mut self, server_first: &[u8]) -> Result<(), ClientError> {
        let text =
            std::str::from_utf8(server_first).map_err(|_| ClientError::Malformed("UTF-8"))?;
        let mut parts = text.split(',');
        let mut part = |name: &'static str| {
            let part = parts.next().and_then(|part| part.strip_prefix(name));
            part.ok_or(ClientError::Malformed("nonce, salt and iterations are expected"))
        };
        let (nonce, salt, iterations) = (part("r=")?, part("s=")?, part("i=")?);
        let ours = self.spoken.strip_prefix("n=,r=").unwrap_or(&self.spoken);
        if !nonce.starts_with(ours) || nonce.len() == ours.len() {
            return Err(ClientError::Malformed("the nonce is not ours"));
        }
        let iterations = iterations.parse().ok().filter(|rounds| *rounds > 0);
        let iterations =
            iterations.ok_or(ClientError::Malformed("the iterations are no number"))?;
        let keys = self.knowledge.keys(salt, iterations)?;
        let last = format!("c={},r={nonce}", self.channel_binding);
        self.spoken = format!("{},{text},{last}", self.spoken);
        let stored: [u8; 32] = Sha256::digest(keys.client).into();
        let mut proof = hmac(&stored, &[self.spoken.as_bytes()]);
        proof.iter_mut().zip(keys.client).for_each(|(byte, mask)| *byte ^= mask);
        self.message = format!("{last},p={}", BASE64.encode(proof));
        self.keys = Some(keys);
        Ok(())
    }

    /// Takes the server's last message, which must prove that it knows the password; gives the keys that have been right.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn finish(self, server_final: &[u8]) -> Result<ScramKeys, ClientError> {
        let said = server_final.strip_prefix(b"v=").and_then(|proof| BASE64.decode(proof).ok());
        let said: Option<[u8; 32]> = said.and_then(|proof| proof.try_into().ok());
        let (said, keys) =
            said.zip(self.keys).ok_or(ClientError::Malformed("the proof is missing"))?;
        let expected = hmac(&keys.server, &[self.spoken.as_bytes()]);
        if same(&said, &expected) { Ok(keys) } else { Err(ClientError::Impostor) }
    }
}

impl Knowledge {
    fn keys(&self, salt: &str, iterations: u32) -> Result<ScramKeys, ClientError> {
        match self {
            Self::Password(_, Some(keys)) | Self::Keys(keys) if keys.are_for(salt, iterations) => {
                Ok(keys.clone())
            }
            Self::Keys(_) => Err(ClientError::OtherVerifier),
            Self::Password(..) if iterations > ITERATIONS_MOST => {
                Err(ClientError::TooManyIterations(iterations))
            }
            Self::Password(password, _) => match BASE64.decode(salt) {
                Ok(salt) => Ok(ScramKeys::of(password, &salt, iterations)),
                Err(_) => Err(ClientError::Malformed("the salt is not base64")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use postgres_protocol::password::scram_sha_256;

    use super::super::{Binding, Exchange, ScramError};
    use super::*;

    const NONCE: [u8; 18] = [7; 18];

    fn verifier(password: &str) -> Verifier {
        Verifier::parse(&scram_sha_256(password.as_bytes())).unwrap()
    }

    /// What a client that knows the password leaves with us.
    fn keys(verifier: &Verifier, password: &str) -> ScramKeys {
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let (exchange, first) =
            Exchange::begin(verifier, client.message(), &NONCE, Binding::Unavailable).unwrap();
        client.update(first.as_bytes()).unwrap();
        exchange.finish(client.message()).unwrap().keys
    }

    fn proving(keys: &ScramKeys) -> ScramClient {
        ScramClient::new(Knowledge::Keys(keys.clone()), &Bindable::No, &[1; 18])
    }

    #[test]
    fn what_a_client_has_shown_opens_the_server_too() {
        let verifier = verifier("secret");
        let keys = keys(&verifier, "secret");
        let finished = |said: Option<&str>| {
            let mut login = proving(&keys);
            let (exchange, first) =
                Exchange::begin(&verifier, login.message(), &[2; 18], Binding::Unavailable)
                    .unwrap();
            login.update(first.as_bytes()).unwrap();
            let proved = exchange.finish(login.message()).unwrap();
            login.finish(said.unwrap_or(&proved.answer).as_bytes())
        };
        assert_eq!(finished(None), Ok(keys.clone()));
        let wrong = format!("v={}", BASE64.encode([0; 32]));
        assert_eq!(finished(Some(&wrong)), Err(ClientError::Impostor));
        for malformed in ["", "v=", "v=AAAA", "e=other-error"] {
            assert!(matches!(finished(Some(malformed)), Err(ClientError::Malformed(_))));
        }
        assert!(matches!(proving(&keys).finish(b"v="), Err(ClientError::Malformed(_))));
    }

    #[test]
    fn another_salt_is_told_before_anything_is_proved() {
        let (known, other) = (verifier("secret"), verifier("secret"));
        let keys = keys(&known, "secret");
        let mut login = proving(&keys);
        let (_, first) =
            Exchange::begin(&other, login.message(), &[2; 18], Binding::Unavailable).unwrap();
        assert_eq!(login.update(first.as_bytes()), Err(ClientError::OtherVerifier));
        let ours = BASE64.encode([1; 18]);
        for malformed in [
            "",
            "r=x,s=AAAA,i=4096",
            "s=AAAA",
            &format!("r={ours}"),
            &format!("r={ours}x,s=AAAA,i="),
            &format!("r={ours}x,s=AAAA,i=0"),
            &format!("r={ours}x,s=AAAA,i=-1"),
        ] {
            let told = proving(&keys).update(malformed.as_bytes());
            assert!(matches!(told, Err(ClientError::Malformed(_))), "{malformed}: {told:?}");
        }
    }

    #[test]
    fn a_password_is_hashed_once_for_each_salt() {
        let (one, two) = (verifier("pässword"), verifier("pässword"));
        let learned = |verifier: &Verifier, password: &str, before: Option<ScramKeys>| {
            let knowledge = Knowledge::Password(password.to_owned(), before);
            let mut login = ScramClient::new(knowledge, &Bindable::NotOffered, &[1; 18]);
            let (exchange, first) =
                Exchange::begin(verifier, login.message(), &[2; 18], Binding::Unavailable).unwrap();
            login.update(first.as_bytes()).unwrap();
            let proved = exchange.finish(login.message())?;
            Ok::<_, ScramError>(login.finish(proved.answer.as_bytes()).unwrap())
        };
        let first = learned(&one, "pässword", None).unwrap();
        // What is remembered is what proves: the password beside it is not looked at.
        assert_eq!(learned(&one, "another", Some(first.clone())), Ok(first.clone()));
        let second = learned(&two, "pässword", Some(first.clone())).unwrap();
        assert_ne!(second, first);
        assert_eq!(second, keys(&two, "pässword"));
        assert_eq!(learned(&one, "another", None), Err(ScramError::WrongPassword));
    }

    #[test]
    fn keys_and_passwords_are_bound_alike() {
        let verifier = verifier("x");
        let knowing =
            [Knowledge::Keys(keys(&verifier, "x")), Knowledge::Password("x".to_owned(), None)];
        for knowledge in knowing {
            for (hash, fits) in [(b"ours", true), (b"them", false)] {
                let bindable = Bindable::Bound(hash.to_vec());
                let mut login = ScramClient::new(knowledge.clone(), &bindable, &[1; 18]);
                let binding = Binding::Bound(b"ours");
                let (exchange, first) =
                    Exchange::begin(&verifier, login.message(), &[2; 18], binding).unwrap();
                login.update(first.as_bytes()).unwrap();
                assert_eq!(exchange.finish(login.message()).is_ok(), fits);
            }
        }
    }

    #[test]
    fn a_server_can_not_keep_us_busy() {
        let knowledge = Knowledge::Password("x".to_owned(), None);
        let mut login = ScramClient::new(knowledge, &Bindable::No, &[1; 18]);
        let first = format!("r={}x,s=AAAA,i={}", BASE64.encode([1; 18]), u32::MAX);
        assert_eq!(login.update(first.as_bytes()), Err(ClientError::TooManyIterations(u32::MAX)));
    }
}
