//! The client's half of SCRAM-SHA-256 (RFC 5802, RFC 7677) for whoever has no password, but the keys that are made of one: a
//! client that has proved its password to us by the server's own verifier has shown its key with that, and the key opens the
//! server, too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use super::{Verifier, hmac, same};

/// What a password comes to with one salt: enough to log in where the verifier has that salt.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    salt: String,
    iterations: u32,
    client: [u8; 32],
    server: [u8; 32],
}

impl ScramKeys {
    pub(super) fn new(verifier: &Verifier, client: [u8; 32], server: [u8; 32]) -> Self {
        Self { salt: verifier.salt.clone(), iterations: verifier.iterations, client, server }
    }
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramKeys(***)")
    }
}

/// One login.
pub struct KeyedScram {
    keys: ScramKeys,
    message: String,
    /// Our own nonce, then `client-first-message-bare`, then the whole `AuthMessage`.
    spoken: String,
}

/// What the server must not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyedError {
    /// It breaks the protocol.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// Its verifier is another one.
    #[error("the verifier that the client was known by is not the server's any more")]
    OtherVerifier,
    /// It does not know the password.
    #[error("its proof is wrong")]
    Impostor,
}

impl KeyedScram {
    /// Begins; `nonce` is fresh random bytes.
    #[must_use]
    pub fn new(keys: ScramKeys, nonce: &[u8; 18]) -> Self {
        let bare = format!("n=,r={}", BASE64.encode(nonce));
        Self { keys, message: format!("n,,{bare}"), spoken: bare }
    }

    /// What to send now.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.message.as_bytes()
    }

    /// Takes the server's first message.
    ///
    /// # Errors
    /// When it is malformed, or asks for what a password with another salt comes to.
    pub fn update(&mut self, server_first: &[u8]) -> Result<(), KeyedError> {
        let text = std::str::from_utf8(server_first).map_err(|_| KeyedError::Malformed("UTF-8"))?;
        let mut parts = text.split(',');
        let mut part = |name: &'static str| {
            let part = parts.next().and_then(|part| part.strip_prefix(name));
            part.ok_or(KeyedError::Malformed("nonce, salt and iterations are expected"))
        };
        let (nonce, salt, iterations) = (part("r=")?, part("s=")?, part("i=")?);
        let ours = self.spoken.strip_prefix("n=,r=").unwrap_or(&self.spoken);
        if !nonce.starts_with(ours) || nonce.len() == ours.len() {
            return Err(KeyedError::Malformed("the nonce is not ours"));
        }
        if salt != self.keys.salt || iterations.parse() != Ok(self.keys.iterations) {
            return Err(KeyedError::OtherVerifier);
        }
        // `biws` is the header `n,,`.
        let last = format!("c=biws,r={nonce}");
        self.spoken = format!("{},{text},{last}", self.spoken);
        let stored: [u8; 32] = Sha256::digest(self.keys.client).into();
        let mut proof = hmac(&stored, &[self.spoken.as_bytes()]);
        proof.iter_mut().zip(self.keys.client).for_each(|(byte, mask)| *byte ^= mask);
        self.message = format!("{last},p={}", BASE64.encode(proof));
        Ok(())
    }

    /// Takes the server's last message, which must prove that it knows the password.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn finish(&mut self, server_final: &[u8]) -> Result<(), KeyedError> {
        let said = server_final.strip_prefix(b"v=").and_then(|proof| BASE64.decode(proof).ok());
        let said: Option<[u8; 32]> = said.and_then(|proof| proof.try_into().ok());
        let said = said.ok_or(KeyedError::Malformed("the proof is missing"))?;
        let expected = hmac(&self.keys.server, &[self.spoken.as_bytes()]);
        if same(&said, &expected) { Ok(()) } else { Err(KeyedError::Impostor) }
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use postgres_protocol::password::scram_sha_256;

    use super::super::{Binding, Exchange};
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

    #[test]
    fn what_a_client_has_shown_opens_the_server_too() {
        let verifier = verifier("secret");
        let mut login = KeyedScram::new(keys(&verifier, "secret"), &[1; 18]);
        let (exchange, first) =
            Exchange::begin(&verifier, login.message(), &[2; 18], Binding::Unavailable).unwrap();
        login.update(first.as_bytes()).unwrap();
        let proved = exchange.finish(login.message()).unwrap();
        assert_eq!(login.finish(proved.answer.as_bytes()), Ok(()));
        let wrong = format!("v={}", BASE64.encode([0; 32]));
        assert_eq!(login.finish(wrong.as_bytes()), Err(KeyedError::Impostor));
        for malformed in ["", "v=", "v=AAAA", "e=other-error"] {
            assert!(matches!(login.finish(malformed.as_bytes()), Err(KeyedError::Malformed(_))));
        }
    }

    #[test]
    fn another_salt_is_told_before_anything_is_proved() {
        let (known, other) = (verifier("secret"), verifier("secret"));
        let mut login = KeyedScram::new(keys(&known, "secret"), &[1; 18]);
        let (_, first) =
            Exchange::begin(&other, login.message(), &[2; 18], Binding::Unavailable).unwrap();
        assert_eq!(login.update(first.as_bytes()), Err(KeyedError::OtherVerifier));
        for malformed in ["", "r=x,s=AAAA,i=4096", "s=AAAA", "r=BwcHBwcHBwcHBwcHBwcHBwcHBwcH"] {
            let mut login = KeyedScram::new(keys(&known, "secret"), &[1; 18]);
            let told = login.update(malformed.as_bytes());
            assert!(matches!(told, Err(KeyedError::Malformed(_))), "{malformed}: {told:?}");
        }
    }
}
