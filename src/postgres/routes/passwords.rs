//! What a user must know: one password, and for a while those it has replaced.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{ChildCredentials, FirstPasswords, PostgresUpstream, Secret, UserSecret};
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

impl Proof {
    /// By what this one asks for, or by what the other does if both ask for a password.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Password(one), Self::Password(other)) => Self::Password(one.accepting(&other)),
            (one, _) => one,
        }
    }
}

/// The passwords of one user.
#[derive(Clone)]
pub(super) struct Passwords {
    user: String,
    secret: Option<Known>,
    /// The wrapped command's, which has it for as long as it lives.
    own: Option<Known>,
    first: FirstPasswords,
    former: Vec<Former>,
    demand: Demand,
}

/// What is asked for where there is a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Password,
    /// Nothing: the wrapped command was told of none, and can't learn it.
    Nothing,
}

/// What is known of one password.
#[derive(Clone)]
struct Known {
    secret: UserSecret,
    /// Made when the user comes first: a verifier takes a while.
    verifier: OnceLock<Verifier>,
}

impl Known {
    fn new(secret: UserSecret) -> Self {
        Self { secret, verifier: OnceLock::new() }
    }

    fn verifier(&self, user: &str, seed: &[u8; 32]) -> &Verifier {
        self.verifier.get_or_init(|| match &self.secret {
            UserSecret::Clear(password) => Verifier::of(password.expose(), user, seed),
            UserSecret::Verifier(verifier) => verifier.clone(),
        })
    }
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
    pub(super) fn new(user: &str, secret: Option<UserSecret>) -> Self {
        let (user, secret) = (user.to_owned(), secret.map(Known::new));
        let (first, demand) = (FirstPasswords::Expire, Demand::Password);
        Self { user, secret, own: None, first, former: Vec::new(), demand }
    }

    /// Those of a URL, and what the wrapped command comes in with.
    pub(super) fn of_url(upstream: &PostgresUpstream, child: &ChildCredentials) -> Self {
        let secret = upstream.password.clone().map(UserSecret::Clear);
        let own = child.of(&upstream.name).cloned().map(UserSecret::Clear).map(Known::new);
        Self { own, first: child.first, ..Self::new(&upstream.user, secret) }
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
        let same = self.secret.as_ref().map(|known| &known.secret) == secret.as_ref();
        if !same && let Some(known) = &self.secret {
            let verifier = known.verifier(&self.user, seed);
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
        let open = self.secret.is_none() && self.first == FirstPasswords::Stay;
        let demand = if open && !same { Demand::Nothing } else { self.demand };
        let first = if same { self.first } else { FirstPasswords::Expire };
        let secret = if same { self.secret.clone() } else { secret.map(Known::new) };
        Self { secret, first, former, demand, ..self.clone() }
    }

    /// Those of a user whom the URL doesn't name any more: the wrapped command's own goes on to open.
    pub(super) fn left_to_command(&self, overlap: Duration, seed: &[u8; 32]) -> Self {
        let own = self.own.as_ref().map(|own| own.secret.clone());
        own.map_or_else(|| self.clone(), |own| self.replaced(Some(own), overlap, seed))
    }

    /// What must be proved now.
    pub(super) fn proof(&self, seed: &[u8; 32]) -> Proof {
        let known = match (&self.secret, self.demand) {
            (Some(known), Demand::Password) => known,
            (None, _) | (_, Demand::Nothing) => return Proof::Nothing,
        };
        let now = Instant::now();
        let own = self.own.iter().map(|own| own.verifier(&self.user, seed));
        let former = self.former.iter().filter(|former| former.opens(now));
        let others = own.chain(former.map(|former| &former.verifier));
        let verifier = known.verifier(&self.user, seed).clone();
        Proof::Password(others.fold(verifier, Verifier::accepting))
    }

    /// Whether nothing is asked for though there is a password.
    pub(super) fn let_all_in(&self) -> bool {
        self.secret.is_some() && self.demand == Demand::Nothing
    }

    /// Whether both ask for the same.
    pub(super) fn has_the_secret_of(&self, other: &Self) -> bool {
        let secret = |known: &Option<Known>| known.as_ref().map(|known| known.secret.clone());
        secret(&self.secret) == secret(&other.secret)
    }

    /// Whether the wrapped command has one of them.
    pub(super) fn stays(&self) -> bool {
        self.first == FirstPasswords::Stay || self.own.is_some()
    }

    /// The password, if it is known and not only its verifier.
    pub(super) fn password(&self) -> Option<&Secret> {
        match &self.secret.as_ref()?.secret {
            UserSecret::Clear(password) => Some(password),
            UserSecret::Verifier(_) => None,
        }
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
        let first = Passwords::new("ann", clear("one"));
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
        let own = Some(Known::new(UserSecret::Clear(Secret::new("own"))));
        let first = FirstPasswords::Stay;
        let mut passwords = Passwords { own, first, ..Passwords::new("ann", clear("given")) };
        for number in 0..20 {
            passwords = passwords.replaced(clear(&number.to_string()), OVERLAP, &SEED);
        }
        assert!(passwords.former.len() <= FORMER_MOST);
        tokio::time::advance(OVERLAP * 1_000).await;
        assert!(opens(&passwords, "given") && opens(&passwords, "19") && !opens(&passwords, "18"));
        assert!(opens(&passwords, "own") && passwords.stays());
    }
}
