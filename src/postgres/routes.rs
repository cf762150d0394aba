//! Which pool serves a (user, database), and how the client proves that it may use it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use postgres_protocol::password::scram_sha_256;

use super::backend::{PgConnect, PgPool, Rules};
use super::connect::Dial;
use super::orders::{Entry, Orders, Passage, Place};
use super::scram::Verifier;
use crate::config::{
    Auth, Host, PostgresListener, PostgresSettings, PostgresUpstream, Secret, UserSecret,
};
use crate::lifecycle::Drain;
use crate::metrics::{Metrics, Protocol};
use crate::net::TlsError;
use crate::pool::{Budget, Ceiling, Pool, PoolSettings, ReserveSettings};

/// By how many per cent lifetimes differ, so that connections opened together don't close together.
const JITTER_PERCENT: u32 = 10;

/// The pools behind one listener.
pub struct Routes {
    /// Those of the configuration, in its order; the first is the one for `any`.
    fixed: Vec<Fixed>,
    any: Option<Any>,
    /// Of the users file.
    users: HashMap<String, Known, RandomState>,
    auth: Auth,
    foundry: Foundry,
}

struct Fixed {
    user: String,
    database: String,
    proof: Proof,
    pool: Arc<PgPool>,
}

/// How a client proves that it may use a pool.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Not at all: `trust`, or the upstream URL has no password that one could know.
    Nothing,
    /// By the upstream URL's password.
    Password(Verifier),
}

/// A user of the users file.
struct Known {
    secret: UserSecret,
    /// Made when the user comes first: a verifier takes a while.
    proof: OnceLock<Proof>,
}

impl Known {
    fn proof(&self) -> &Proof {
        self.proof.get_or_init(|| match &self.secret {
            UserSecret::Clear(password) => Proof::Password(verifier(password)),
            UserSecret::Verifier(verifier) => Proof::Password(verifier.clone()),
        })
    }

    fn password(&self) -> Option<&Secret> {
        match &self.secret {
            UserSecret::Clear(password) => Some(password),
            UserSecret::Verifier(_) => None,
        }
    }
}

/// Pools made on demand.
struct Any {
    dial: Dial,
    budget: Arc<Budget>,
    limit: usize,
    made: Mutex<MadePools>,
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

/// What it takes to make pools. The budgets are per upstream server, whatever listener leads there.
#[derive(Clone)]
pub(super) struct Foundry {
    settings: Arc<PostgresSettings>,
    metrics: Arc<Metrics>,
    drain: Drain,
    budgets: Arc<Mutex<Budgets>>,
    /// By what they are of.
    ceilings: Arc<Mutex<HashMap<String, Arc<Ceiling>, RandomState>>>,
    orders: Arc<Orders>,
}

/// By upstream server.
type Budgets = HashMap<(Host, u16), Arc<Budget>, RandomState>;

impl Foundry {
    pub(super) fn new(settings: &PostgresSettings, metrics: &Arc<Metrics>, drain: Drain) -> Self {
        Self {
            settings: Arc::new(settings.clone()),
            metrics: Arc::clone(metrics),
            drain,
            budgets: Arc::default(),
            ceilings: Arc::default(),
            orders: Arc::default(),
        }
    }

    fn budget(&self, upstream: &PostgresUpstream) -> Arc<Budget> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let server = (upstream.host.clone(), upstream.port);
        let budget = budgets.entry(server).or_insert_with(|| {
            let pinned = self.settings.limits.pinned_limit;
            let size = self.size();
            let budget = Budget::with_pins(size, (pinned > 0).then_some(pinned));
            budget.set_reserve(ReserveSettings {
                size: self.settings.portions.reserve_size,
                after: self.settings.portions.reserve_after,
            });
            budget
        });
        Arc::clone(budget)
    }

    /// Most connections to one server: all together stay within `total_limit`, which is shared out among them.
    fn size(&self) -> usize {
        let settings = &self.settings;
        if settings.portions.total_limit == 0 {
            return settings.pool_size;
        }
        let upstreams = settings.listeners.iter().flat_map(|listener| &listener.upstreams);
        let servers: HashSet<_> = upstreams.map(|one| (&one.host, one.port)).collect();
        settings.pool_size.min(settings.portions.total_limit / servers.len().max(1)).max(1)
    }

    /// The limits of the upstream's database and of its user.
    fn ceilings(&self, upstream: &PostgresUpstream) -> Vec<Arc<Ceiling>> {
        let settings = &self.settings;
        let server = format!("{}:{}", upstream.host, upstream.port);
        let wanted = [
            (settings.portions.database_limit, format!("database {server}/{}", upstream.database)),
            (settings.portions.user_limit, format!("user {server}/{}", upstream.user)),
        ];
        let mut ceilings = self.ceilings.lock().unwrap_or_else(PoisonError::into_inner);
        let known = wanted.into_iter().filter(|(limit, _)| *limit > 0).map(|(limit, name)| {
            Arc::clone(ceilings.entry(name).or_insert_with(|| Ceiling::new(limit)))
        });
        known.collect()
    }

    fn pool(&self, name: String, dial: Dial, budget: Arc<Budget>, idle_min: usize) -> Arc<PgPool> {
        let settings = &self.settings;
        let metrics = self.metrics.pool(Protocol::Postgres, &name);
        let pool_settings = PoolSettings {
            name: name.clone(),
            wait: settings.wait,
            queue_limit: settings.queue_limit,
            connect_timeout: settings.connect_timeout,
            lifetime: settings.server_lifetime,
            idle: settings.server_idle,
            ceilings: self.ceilings(dial.upstream()),
            idle_min,
            jitter_percent: JITTER_PERCENT,
        };
        let mode = settings.pool_modes.of(&dial.upstream().user, &dial.upstream().database);
        let (probe, passing) = (settings.probe, settings.passing);
        let (connections, share_percent) =
            (self.size(), settings.portions.application_share_percent);
        let rules = Rules { mode, probe, passing, connections, share_percent };
        let place = Place::of(dial.upstream());
        let connect = PgConnect::new(&name, dial, Arc::new(settings.limits.clone()), rules);
        // The metrics may be older: of a pool of that name that was given up.
        connect.seats().tick(metrics.times.now_ns());
        let pool = Pool::new(connect, pool_settings, budget, metrics);
        if self.orders.passage(&place) == Passage::Paused {
            pool.pause();
        }
        pool
    }

    /// What was ordered of databases.
    pub(super) fn orders(&self) -> &Arc<Orders> {
        &self.orders
    }

    /// Keeps house in a pool until it is closed, which the drain's deadline does at the latest.
    pub(super) fn spawn_reaper(&self, pool: &Arc<PgPool>) {
        let (pool, drain) = (Arc::clone(pool), self.drain.clone());
        tokio::spawn(async move {
            let leave = async {
                drain.noticed().await;
                pool.keep_none_idle();
                drain.deadline().await;
            };
            tokio::select! {
                () = pool.run_reaper() => {}
                () = leave => pool.close(),
            }
        });
    }
}

impl Routes {
    /// Makes the listener's pools; spawns nothing.
    ///
    /// # Errors
    /// When an upstream's root certificates cannot be had.
    pub(super) fn new(listener: &PostgresListener, foundry: Foundry) -> Result<Self, TlsError> {
        let settings = Arc::clone(&foundry.settings);
        let mut fixed = Vec::with_capacity(listener.upstreams.len());
        let mut any = None;
        for upstream in &listener.upstreams {
            let dial = Dial::new(Arc::clone(upstream), settings.connect_timeout)?;
            let budget = foundry.budget(upstream);
            if settings.any && any.is_none() {
                any = Some(Any {
                    dial: dial.clone(),
                    budget: Arc::clone(&budget),
                    limit: settings.limits.any_pools,
                    made: Mutex::default(),
                });
            }
            fixed.push(Fixed {
                user: upstream.user.clone(),
                database: upstream.database.clone(),
                proof: proof(settings.auth, upstream.password.as_ref()),
                pool: foundry.pool(upstream.name.clone(), dial, budget, settings.portions.idle_min),
            });
        }
        let known = |secret: &UserSecret| Known { secret: secret.clone(), proof: OnceLock::new() };
        let users = settings.users.iter().map(|(name, secret)| (name.to_owned(), known(secret)));
        Ok(Self { fixed, any, users: users.collect(), auth: settings.auth, foundry })
    }

    /// The pools of the configuration.
    pub(super) fn fixed(&self) -> impl Iterator<Item = &Arc<PgPool>> {
        self.fixed.iter().map(|fixed| &fixed.pool)
    }

    /// Those, and the pools made on demand.
    pub(super) fn all(&self) -> Vec<Arc<PgPool>> {
        let mut all: Vec<_> = self.fixed().map(Arc::clone).collect();
        if let Some(any) = &self.any {
            let mut made: Vec<_> = any.lock().values().map(|made| Arc::clone(&made.pool)).collect();
            made.sort_by(|one, other| one.settings().name.cmp(&other.settings().name));
            all.extend(made);
        }
        all
    }

    /// A pool for one replication connection to where `pool` leads, within the same budget. Call it inside the runtime.
    pub(super) fn apart(&self, pool: &PgPool, parameters: Vec<(String, String)>) -> Arc<PgPool> {
        let dial = pool.connector().dial().saying(parameters);
        let budget = self.foundry.budget(dial.upstream());
        let apart = self.foundry.pool(pool.settings().name.clone(), dial, budget, 0);
        // It is not among those that are told of orders: who makes it waits for the one that is.
        apart.resume();
        self.foundry.spawn_reaper(&apart);
        apart
    }

    /// What this user must prove; `None` if nobody knows its password. The password of the named
    /// database counts, and another of the user's if there is no such database: whether there is one
    /// is for those who know a password.
    #[must_use]
    pub fn proof(&self, user: &str, database: &str) -> Option<&Proof> {
        let mine = || self.fixed.iter().filter(|fixed| fixed.user == user);
        let exact = mine().find(|fixed| fixed.database == database);
        let by_url = exact.or_else(|| mine().next()).map(|fixed| &fixed.proof);
        // The users file is for whom the URLs have no password for.
        let by_file = || self.users.get(user).map(Known::proof);
        let known = match (by_url, self.auth) {
            (None | Some(Proof::Nothing), Auth::Password) => by_file().or(by_url),
            _ => by_url,
        };
        match (known, self.auth) {
            // As in Postgres: trusted first, and told later that there is no such role.
            (None, Auth::Trust) => Some(&Proof::Nothing),
            (known, _) => known,
        }
    }

    /// The pool for a client that has proved itself. May make one, so call it inside the runtime.
    ///
    /// # Errors
    /// When there is none and none can be made.
    pub fn find(&self, user: &str, database: &str) -> Result<Route, NoRoute> {
        let exact =
            self.fixed.iter().find(|fixed| fixed.user == user && fixed.database == database);
        let route = match (exact, &self.any) {
            (Some(fixed), _) => Route { pool: Arc::clone(&fixed.pool), visit: None },
            (None, Some(any)) => self.make(any, user, database)?,
            (None, None) if self.has_user(user) => return Err(NoRoute::Database),
            (None, None) => return Err(NoRoute::User),
        };
        let place = Place::of(route.pool.connector().dial().upstream());
        match self.foundry.orders.entry(&place) {
            Entry::Allowed => Ok(route),
            Entry::Disabled => Err(NoRoute::Disabled),
        }
    }

    /// Whether a URL is this user's.
    #[must_use]
    pub fn has_user(&self, user: &str) -> bool {
        self.fixed.iter().any(|fixed| fixed.user == user)
    }

    /// Whether a URL leads to a database of this name.
    #[must_use]
    pub fn has_database(&self, database: &str) -> bool {
        self.fixed.iter().any(|fixed| fixed.database == database)
    }

    fn make(&self, any: &Any, user: &str, database: &str) -> Result<Route, NoRoute> {
        let mut made = any.lock();
        let name = (user.to_owned(), database.to_owned());
        if let Some(known) = made.get(&name) {
            return Ok(known.route());
        }
        if made.len() >= any.limit {
            let unused = made.iter().find(|(_, made)| Arc::strong_count(&made.visits) == 1);
            let Some(unused) = unused.map(|(name, _)| name.clone()) else {
                return Err(NoRoute::TooMany(any.limit));
            };
            if let Some(unused) = made.remove(&unused) {
                unused.pool.close();
            }
        }
        let upstream = any.dial.upstream();
        // The URL's password is its user's alone; whom the users file has no password for the server must trust.
        let by_url = upstream.password.clone().filter(|_| upstream.user == user);
        let password = by_url.or_else(|| self.users.get(user)?.password().cloned());
        let dial = any.dial.entered_as(user, database, password);
        let title = format!("{user}@{database}");
        let pool = self.foundry.pool(title, dial, Arc::clone(&any.budget), 0);
        self.foundry.spawn_reaper(&pool);
        let new = Made { pool, visits: Arc::new(()) };
        let route = new.route();
        made.insert(name, new);
        Ok(route)
    }
}

impl Any {
    fn lock(&self) -> MutexGuard<'_, MadePools> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn route(&self) -> Route {
        Route { pool: Arc::clone(&self.pool), visit: Some(Arc::clone(&self.visits)) }
    }
}

fn proof(auth: Auth, password: Option<&Secret>) -> Proof {
    match (auth, password) {
        (Auth::Trust, _) | (Auth::Password, None) => Proof::Nothing,
        (Auth::Password, Some(password)) => Proof::Password(verifier(password)),
    }
}

/// PBKDF2 once; logins then cost a few HMACs. What postgres-protocol writes always parses; if it ever did not, the
/// door stays closed.
fn verifier(password: &Secret) -> Verifier {
    let stored = scram_sha_256(password.expose().as_bytes());
    Verifier::parse(&stored).unwrap_or_else(|| Verifier::mock("", &[0; 32]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, load};

    #[tokio::test(start_paused = true)]
    async fn a_new_pool_has_the_time_of_older_metrics_of_its_name() {
        let variable = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let variables = [variable("DATABASE_URL", "postgres://u:p@db/app"), variable("USER", "me")];
        let settings = load(None, &Environment::from(variables), &[]).unwrap().settings;
        let (settings, metrics) = (settings.postgres.unwrap(), Metrics::new().unwrap());
        let _of_an_older_pool = metrics.pool(Protocol::Postgres, "DATABASE_URL");
        tokio::time::advance(std::time::Duration::from_secs(3600)).await;
        let foundry = Foundry::new(&settings, &metrics, Drain::new().1);
        let routes = Routes::new(&settings.listeners[0], foundry).unwrap();
        // Or its first clients would have been idle for an hour when the clock is looked at.
        assert_eq!(routes.all()[0].connector().seats().now_ms(), 3_600_000);
    }
}
