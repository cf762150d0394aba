//! What a user must know: one password, and for a while those it has replaced.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{FirstPasswords, Secret, UserSecret};
use crate::postgres::scram::Verifier;

/// Replaced passwords of one user that still open, at most.
const FORMER_MOST: usize = 8;

/// How a client proves that it may use a pool.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Not at all: `trust`, or the upstream URL has no password that one could know.
    Nothing,
    /// By a password.
    Password(Verifier),
}

/// The passwords of one user.
#[derive(Clone)]
pub(super) struct Passwords {
    user: String,
    secret: Option<UserSecret>,
    first: FirstPasswords,
    /// Made when the user comes first: a verifier takes a while.
    verifier: OnceLock<Verifier>,
    former: Vec<Former>,
}

/// A password that was replaced.
#[derive(Clone)]
struct Former {
    verifier: Verifier,
    /// `None`: as long as the process lives.
    until: Option<Instant>,
}

impl Former {
    fn opens(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Passwords {
    /// Of `user`; without a secret nobody needs to prove anything.
    pub(super) fn new(user: &str, secret: Option<UserSecret>, first: FirstPasswords) -> Self {
        let (user, verifier, former) = (user.to_owned(), OnceLock::new(), Vec::new());
        Self { user, secret, first, verifier, former }
    }

    /// Those of a URL.
    pub(super) fn of_url(user: &str, password: Option<&Secret>, first: FirstPasswords) -> Self {
        Self::new(user, password.cloned().map(UserSecret::Clear), first)
    }

    /// With another secret in the place of this one, which still opens for as long as `overlap`.
    pub(super) fn replaced(
        &self,
        secret: Option<UserSecret>,
        overlap: Duration,
        seed: &[u8; 32],
    ) -> Self {
        let now = Instant::now();
        let mut former: Vec<_> =
            self.former.iter().filter(|former| former.opens(now)).cloned().collect();
        let same = self.secret == secret;
        if !same && let Some(verifier) = self.verifier(seed) {
            let until = match self.first {
                FirstPasswords::Stay => None,
                FirstPasswords::Expire => Some(now + overlap),
            };
            former.push(Former { verifier: verifier.clone(), until });
        }
        while former.len() > FORMER_MOST
            && let Some(oldest) = former.iter().position(|former| former.until.is_some())
        {
            former.remove(oldest);
        }
        let first = if same { self.first } else { FirstPasswords::Expire };
        let verifier = if same { self.verifier.clone() } else { OnceLock::new() };
        Self { user: self.user.clone(), secret, first, verifier, former }
    }

    /// What must be proved now.
    pub(super) fn proof(&self, seed: &[u8; 32]) -> Proof {
        let Some(verifier) = self.verifier(seed) else { return Proof::Nothing };
        let now = Instant::now();
        let former = self.former.iter().filter(|former| former.opens(now));
        Proof::Password(former.fold(verifier.clone(), |all, one| all.accepting(&one.verifier)))
    }

    /// Whether the wrapped command has the password.
    pub(super) fn stays(&self) -> bool {
        self.first == FirstPasswords::Stay
    }

    /// The password, if it is known and not only its verifier.
    pub(super) fn password(&self) -> Option<&Secret> {
        match self.secret.as_ref()? {
            UserSecret::Clear(password) => Some(password),
            UserSecret::Verifier(_) => None,
        }
    }

    fn verifier(&self, seed: &[u8; 32]) -> Option<&Verifier> {
        let secret = self.secret.as_ref()?;
        Some(self.verifier.get_or_init(|| match secret {
            UserSecret::Clear(password) => Verifier::of(password.expose(), &self.user, seed),
            UserSecret::Verifier(verifier) => verifier.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    use super::*;
    use crate::postgres::scram::{Binding, Exchange};

    const SEED: [u8; 32] = [3; 32];
    const OVERLAP: Duration = Duration::from_secs(60);

    fn clear(password: &str) -> Option<UserSecret> {
        Some(UserSecret::Clear(Secret::new(password)))
    }

    fn opens(passwords: &Passwords, password: &str) -> bool {
        let Proof::Password(verifier) = passwords.proof(&SEED) else { return true };
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let begun = Exchange::begin(&verifier, client.message(), &[1; 18], Binding::Unavailable);
        let (exchange, first) = begun.unwrap();
        client.update(first.as_bytes()).unwrap();
        exchange.finish(client.message()).is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_password_opens_for_a_while() {
        let first = Passwords::new("ann", clear("one"), FirstPasswords::Expire);
        let second = first.replaced(clear("two"), OVERLAP, &SEED);
        let again = second.replaced(clear("two"), OVERLAP, &SEED);
        assert!(opens(&again, "one") && opens(&again, "two") && !opens(&again, "three"));
        tokio::time::advance(OVERLAP / 2).await;
        let third = again.replaced(clear("three"), OVERLAP, &SEED);
        assert!(["one", "two", "three"].iter().all(|word| opens(&third, word)));
        tokio::time::advance(OVERLAP / 2).await;
        assert!(!opens(&third, "one") && opens(&third, "two") && opens(&third, "three"));
        let none = third.replaced(clear("four"), Duration::ZERO, &SEED);
        assert!(!opens(&none, "three") && opens(&none, "four"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_command_was_given_opens_for_as_long_as_it_lives() {
        let mut passwords = Passwords::new("ann", clear("given"), FirstPasswords::Stay);
        for number in 0..20 {
            passwords = passwords.replaced(clear(&number.to_string()), OVERLAP, &SEED);
        }
        assert!(passwords.former.len() <= FORMER_MOST);
        tokio::time::advance(OVERLAP * 1_000).await;
        assert!(opens(&passwords, "given") && opens(&passwords, "19") && !opens(&passwords, "18"));
    }
}
