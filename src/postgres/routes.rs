//! Which pool serves a (user, database), and how the client proves that it may use it.

mod change;
mod foundry;
mod lookup;
mod passwords;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::backend::PgPool;
use super::connect::Dial;
use super::message::ErrorFields;
use super::orders::{Entry, Place};
use super::scram::ScramKeys;
use crate::config::{
    Auth, ChildCredentials, Current, PostgresListener, PostgresSettings, PostgresUpstream,
    UserSecret, Users,
};
use crate::net::TlsError;
use crate::pool::Budget;

pub(super) use foundry::{Foundry, Keeping};
use lookup::Lookups;
use passwords::Passwords;
pub use passwords::Proof;

/// The pools behind one listener.
pub struct Routes {
    ways: Current<Ways>,
    any: Option<Any>,
    /// Of pools that no new client is led to; they go with their last client.
    left: Mutex<Vec<Arc<PgPool>>>,
    auth: Auth,
    foundry: Foundry,
}

/// What leads to the pools; replaced as a whole when the configuration changes.
struct Ways {
    /// Those of the configuration, in its order; the first is the one for `any`.
    fixed: Vec<Fixed>,
    /// Of the users file.
    users: HashMap<String, Passwords, RandomState>,
}

struct Fixed {
    name: Name,
    /// Names that the URL gave before, which still lead here.
    former: Vec<Name>,
    pool: Arc<PgPool>,
}

/// What clients say to come to a pool, and must know.
#[derive(Clone)]
struct Name {
    user: String,
    database: String,
    passwords: Passwords,
    /// Until when it leads to the pool; `None`: as long as the process lives, or until another takes its place.
    until: Option<Instant>,
}

/// Pools made on demand.
struct Any {
    dial: Current<Dial>,
    budget: Arc<Budget>,
    made: Mutex<MadePools>,
    lookups: Lookups,
}

/// By user and database.
type MadePools = HashMap<(String, String), Made, RandomState>;

struct Made {
    pool: Arc<PgPool>,
    /// Held by each session besides: nobody uses the pool when this is the only one.
    visits: Arc<()>,
}

/// A pool found for a client.
pub struct Route {
    /// The pool.
    pub pool: Arc<PgPool>,
    /// Must live as long as the session: it keeps a pool made on demand.
    pub visit: Option<Arc<()>>,
}

/// Why there is no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// The user is known, the database is not.
    Database,
    /// Neither is known.
    User,
    /// No more pools may be made on demand; with the limit.
    TooMany(usize),
    /// No new clients are let in for now.
    Disabled,
}

impl Routes {
    /// Makes the listener's pools; spawns nothing.
    ///
    /// # Errors
    /// When an upstream's root certificates cannot be had.
    pub(super) fn new(listener: &PostgresListener, foundry: Foundry) -> Result<Self, TlsError> {
        let settings = foundry.settings().get();
        let dials = Self::dials(listener, &settings)?;
        let first = dials.first().filter(|_| settings.any);
        let any = first.map(|dial| Any {
            dial: Current::new(dial.clone()),
            budget: foundry.budget(dial.upstream()),
            made: Mutex::default(),
            lookups: Lookups::new(),
        });
        let child = &foundry.keeping().child;
        let fixed = dials.into_iter().map(|dial| Fixed::new(dial, &foundry, child));
        let ways = Ways { fixed: fixed.collect(), users: known(&settings.users) };
        let (left, auth) = (Mutex::default(), settings.auth);
        Ok(Self { ways: Current::new(ways), any, left, auth, foundry })
    }

    /// How a listener's upstreams are reached.
    ///
    /// # Errors
    /// When an upstream's root certificates cannot be had.
    pub(super) fn dials(
        listener: &PostgresListener,
        settings: &PostgresSettings,
    ) -> Result<Vec<Dial>, TlsError> {
        let upstreams = listener.upstreams.iter();
        upstreams.map(|one| Dial::new(Arc::clone(one), settings.connect_timeout)).collect()
    }

    /// The pools of the configuration.
    pub(super) fn fixed(&self) -> Vec<Arc<PgPool>> {
        self.ways.get().fixed.iter().map(|fixed| Arc::clone(&fixed.pool)).collect()
    }

    /// Those, the pools made on demand, and those that are left while they still have clients.
    pub(super) fn all(&self) -> Vec<Arc<PgPool>> {
        let mut all = self.fixed();
        if let Some(any) = &self.any {
            let mut made: Vec<_> = any.lock().values().map(|made| Arc::clone(&made.pool)).collect();
            made.sort_by(|one, other| one.settings().name.cmp(&other.settings().name));
            all.extend(made);
            all.extend(any.lookups.pool().map(Arc::clone));
        }
        all.extend(self.left().iter().map(Arc::clone));
        all
    }

    /// A pool for one replication connection to where `pool` leads, within the same budget. Call it inside the runtime.
    pub(super) fn apart(&self, pool: &PgPool, parameters: Vec<(String, String)>) -> Arc<PgPool> {
        let dial = pool.connector().dial().saying(parameters);
        let budget = Arc::clone(pool.budget());
        let apart = self.foundry.pool(pool.settings().name.clone(), dial, budget, 0);
        // It is not among those that are told of orders: who makes it waits for the one that is.
        apart.resume();
        self.foundry.spawn_reaper(&apart);
        apart
    }

    /// What this user must prove; `None` if nobody knows its password. The password of the named database counts, with what
    /// opens the user's others that have the same one; or any of the user's if there is no such database: whether there is one
    /// is for those who know a password.
    #[must_use]
    pub fn proof(&self, user: &str, database: &str) -> Option<Proof> {
        if self.auth == Auth::Trust {
            // As in Postgres: trusted first, and told later if there is no such role.
            return Some(Proof::Nothing);
        }
        let ways = self.ways.get();
        let seed = &self.foundry.keeping().seed;
        let mine = || ways.names().map(|(name, _)| name).filter(|name| name.user == user);
        let exact = mine().find(|name| name.database == database);
        // Who has one database's URL may use it for another as with the server itself.
        let open = mine().filter(|name| {
            exact.is_none_or(|exact| name.passwords.has_the_secret_of(&exact.passwords))
        });
        let by_url = open.map(|name| name.passwords.proof(seed)).reduce(Proof::or);
        // The users file is for whom the URLs have no password for.
        let by_file = || ways.users.get(user).map(|passwords| passwords.proof(seed));
        match by_url {
            None | Some(Proof::Nothing) => by_file().or(by_url),
            Some(Proof::Password(_)) => by_url,
        }
    }

    /// As [`Routes::proof`], for a user whom the configuration doesn't know: the server is asked, if it is to be. Call it inside
    /// the runtime. Cancel safe.
    ///
    /// # Errors
    /// When the server could not be asked.
    pub async fn looked_up(&self, user: &str) -> Result<Option<Proof>, ErrorFields> {
        let Some(any) = &self.any else { return Ok(None) };
        let dial = any.dial.get();
        let found = any.lookups.of(user, (&self.foundry, &dial, &any.budget)).await?;
        Ok(found.map(Proof::Password))
    }

    /// The user's password was wrong: the server may know another by now.
    pub fn doubt(&self, user: &str) {
        if let Some(any) = &self.any {
            any.lookups.doubt(user);
        }
    }

    /// The pool for a client that has proved itself, if it had to by showing `keys`. May make one, so call it inside the
    /// runtime.
    ///
    /// # Errors
    /// When there is none and none can be made.
    pub fn find(
        &self,
        user: &str,
        database: &str,
        keys: Option<ScramKeys>,
    ) -> Result<Route, NoRoute> {
        let ways = self.ways.get();
        let mut names = ways.names();
        let exact = names.find(|(name, _)| name.user == user && name.database == database);
        let route = match (exact, &self.any) {
            (Some((_, pool)), _) => Route { pool: Arc::clone(pool), visit: None },
            (None, Some(any)) => self.make(any, user, database, keys)?,
            (None, None) if self.has_user(user) => return Err(NoRoute::Database),
            (None, None) => return Err(NoRoute::User),
        };
        let place = Place::of(route.pool.connector().dial().upstream());
        match self.foundry.orders().entry(&place) {
            Entry::Allowed => Ok(route),
            Entry::Disabled => Err(NoRoute::Disabled),
        }
    }

    /// Whether a URL is this user's.
    #[must_use]
    pub fn has_user(&self, user: &str) -> bool {
        self.ways.get().names().any(|(name, _)| name.user == user)
    }

    /// Whether a URL leads to a database of this name.
    #[must_use]
    pub fn has_database(&self, database: &str) -> bool {
        self.ways.get().names().any(|(name, _)| name.database == database)
    }

    fn make(
        &self,
        any: &Any,
        user: &str,
        database: &str,
        keys: Option<ScramKeys>,
    ) -> Result<Route, NoRoute> {
        let mut made = any.lock();
        let name = (user.to_owned(), database.to_owned());
        if let Some(known) = made.get(&name) {
            known.learn(keys);
            return Ok(known.route());
        }
        let limit = self.foundry.settings().get().limits.any_pools;
        if made.len() >= limit {
            let unused = made.iter().find(|(_, made)| Arc::strong_count(&made.visits) == 1);
            let Some(unused) = unused.map(|(name, _)| name.clone()) else {
                return Err(NoRoute::TooMany(limit));
            };
            if let Some(unused) = made.remove(&unused) {
                unused.pool.close();
            }
        }
        let dial = any.dial_of(&self.ways.get(), user, database).with_keys(keys);
        let title = format!("{user}@{database}");
        let pool = self.foundry.pool(title, dial, Arc::clone(&any.budget), 0);
        self.foundry.spawn_reaper(&pool);
        let new = Made { pool, visits: Arc::new(()) };
        let route = new.route();
        made.insert(name, new);
        Ok(route)
    }
}

impl Fixed {
    fn new(dial: Dial, foundry: &Foundry, child: &ChildCredentials) -> Self {
        let upstream = dial.upstream();
        let name = Name::new(upstream, child);
        let (title, budget) = (upstream.name.clone(), foundry.budget(upstream));
        let idle_min = foundry.settings().get().portions.idle_min;
        let pool = foundry.pool(title, dial, budget, idle_min);
        Self { name, former: Vec::new(), pool }
    }
}

impl Name {
    fn new(upstream: &PostgresUpstream, child: &ChildCredentials) -> Self {
        let (user, database) = (upstream.user.clone(), upstream.database.clone());
        let passwords = Passwords::of_url(upstream, child);
        Self { user, database, passwords, until: None }
    }

    fn leads(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Ways {
    /// What leads to a pool now: first what the URLs say, then what they said before.
    fn names(&self) -> impl Iterator<Item = (&Name, &Arc<PgPool>)> {
        let now = Instant::now();
        let current = self.fixed.iter().map(|fixed| (&fixed.name, &fixed.pool));
        let former = self
            .fixed
            .iter()
            .flat_map(|fixed| fixed.former.iter().map(move |name| (name, &fixed.pool)));
        current.chain(former.filter(move |(name, _)| name.leads(now)))
    }
}

impl Any {
    /// How the pool for this user and database reaches the server.
    fn dial_of(&self, ways: &Ways, user: &str, database: &str) -> Dial {
        let dial = self.dial.get();
        let upstream = dial.upstream();
        // The URL's password is its user's alone; whom the users file has no password for the server must trust.
        let by_url = upstream.password.clone().filter(|_| upstream.user == user);
        let password = by_url.or_else(|| ways.users.get(user)?.password().cloned());
        dial.entered_as(user, database, password)
    }

    fn lock(&self) -> MutexGuard<'_, MadePools> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    /// A client has shown keys: if they are other ones than before, its password has changed.
    fn learn(&self, keys: Option<ScramKeys>) {
        let dial = self.pool.connector().dial();
        if keys.is_some() && dial.upstream().password.is_none() && dial.keys() != keys.as_ref() {
            self.pool.connector().redial(Dial::clone(&dial).with_keys(keys));
            self.pool.renew_when_opened();
        }
    }

    fn route(&self) -> Route {
        Route { pool: Arc::clone(&self.pool), visit: Some(Arc::clone(&self.visits)) }
    }
}

fn known(users: &Users) -> HashMap<String, Passwords, RandomState> {
    let known = |secret: &UserSecret, name: &str| Passwords::new(name, Some(secret.clone()));
    users.iter().map(|(name, secret)| (name.to_owned(), known(secret, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, load};
    use crate::lifecycle::Drain;
    use crate::metrics::{Metrics, Protocol};

    #[tokio::test(start_paused = true)]
    async fn a_new_pool_has_the_time_of_older_metrics_of_its_name() {
        let variable = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let variables = [variable("DATABASE_URL", "postgres://u:p@db/app"), variable("USER", "me")];
        let settings = load(None, &Environment::from(variables), &[]).unwrap().settings;
        let (settings, metrics) = (settings.postgres.unwrap(), Metrics::new().unwrap());
        let _of_an_older_pool = metrics.pool(Protocol::Postgres, "DATABASE_URL");
        tokio::time::advance(std::time::Duration::from_secs(3600)).await;
        let foundry = Foundry::new(&settings, &metrics, Drain::new().1, Keeping::default());
        let routes = Routes::new(&settings.listeners[0], foundry).unwrap();
        // Or its first clients would have been idle for an hour when the clock is looked at.
        assert_eq!(routes.all()[0].connector().seats().now_ms(), 3_600_000);
    }
}
