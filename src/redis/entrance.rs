//! What clients of one upstream must know, and where it is; both may change while clients are here.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::greeting::{Access, Door, FormerKey, Main, Standing};
use crate::config::{
    Auth, ChildCredentials, Current, FirstPasswords, NamespaceSettings, RedisListener,
    RedisUpstream,
};

/// Replaced passwords that still open, at most.
const FORMER_MOST: usize = 8;

/// The way in, as it is at one moment.
#[derive(Clone, Debug)]
pub struct Entrance {
    config: Arc<RedisUpstream>,
    auth: Auth,
    doors: Arc<[Door]>,
    first_namespace: Option<usize>,
    first_password: FirstPasswords,
    /// What opens besides: the wrapped command's own credential, and what the URL gave before.
    former: Vec<FormerKey>,
    /// Until when each of them opens; `None`: as long as the process lives.
    until: Vec<Option<Instant>>,
}

impl Entrance {
    /// As it is at the start.
    pub(super) fn new(listener: &RedisListener, auth: Auth, child: &ChildCredentials) -> Self {
        let upstream = &listener.upstream;
        let user = || upstream.user.as_deref().map(Into::into);
        let own = child.of(&upstream.name);
        let own = own.map(|own| FormerKey { user: user(), password: Some(own.expose().into()) });
        Self {
            config: Arc::clone(&listener.upstream),
            auth,
            doors: listener.namespaces.iter().map(door).collect(),
            first_namespace: listener.first_namespace,
            first_password: child.first,
            until: own.iter().map(|_| None).collect(),
            former: own.into_iter().collect(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn config(&self) -> &RedisUpstream {
        &self.config
    }

    /// What a client must know.
    #[must_use]
    pub fn access(&self) -> Access<'_> {
        let main = match (self.auth, &self.config.password) {
            (Auth::Trust, _) => Main::Open,
            (Auth::Password, None) => Main::NoPassword { former: &self.former },
            (Auth::Password, Some(password)) => Main::Password {
                user: self.config.user.as_deref(),
                password: password.expose(),
                former: &self.former,
            },
        };
        Access { main, doors: &self.doors, first: self.first_namespace }
    }

    /// The same, leading elsewhere; a password that is replaced opens for as long as `overlap`, and where the wrapped command was
    /// told of none, none is asked for as long as it lives.
    pub(super) fn leading_to(&self, config: &Arc<RedisUpstream>, overlap: Duration) -> Self {
        let now = Instant::now();
        let mut next = self.pruned(now);
        let same = self.config.password == config.password && self.config.user == config.user;
        let stays = next.first_password == FirstPasswords::Stay;
        let password = self.config.password.as_ref().map(|replaced| replaced.expose().into());
        if !same && (password.is_some() || stays) {
            let user = self.config.user.as_deref().map(Into::into);
            next.former.push(FormerKey { user, password });
            next.until.push((!stays).then(|| now + overlap));
            next.first_password = FirstPasswords::Expire;
        }
        while next.former.len() > FORMER_MOST
            && let Some(oldest) = next.until.iter().position(Option::is_some)
        {
            next.former.remove(oldest);
            next.until.remove(oldest);
        }
        next.config = Arc::clone(config);
        next
    }

    /// Whether nothing is asked for though there is a password.
    pub(super) fn lets_all_in(&self) -> bool {
        let main = self.access().main;
        matches!(main, Main::Password { .. }) && main.standing() == Standing::Known
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.until.iter().flatten().any(|until| *until <= now)
    }

    fn pruned(&self, now: Instant) -> Self {
        let kept = |until: &Option<Instant>| until.is_none_or(|until| now < until);
        let both = self.former.iter().zip(&self.until).filter(|(_, until)| kept(until));
        let (former, until) = both.map(|(word, until)| (word.clone(), *until)).unzip();
        Self { former, until, ..self.clone() }
    }
}

/// The entrance as it is now: without passwords that have had their time.
pub(super) fn now(entrance: &Current<Entrance>) -> Arc<Entrance> {
    let known = entrance.get();
    // Mostly there are none: then the clock is not read.
    if known.until.iter().all(Option::is_none) {
        return known;
    }
    let now = Instant::now();
    if !known.is_stale(now) {
        return known;
    }
    entrance.set(known.pruned(now));
    entrance.get()
}

fn door(settings: &NamespaceSettings) -> Door {
    Door { user: settings.namespace.name.clone(), password: settings.password.expose().into() }
}
