//! The console: what clients of the databases `tidegate` and `pgbouncer` talk to. It answers PgBouncer's commands with
//! PgBouncer's columns, so that tools and habits made for it work here.
//!
//! Commands are read, and tables and frames made, by pure functions; [`visit`] is the session, [`control`] does to pools what a
//! command asks for.

mod averages;
mod command;
mod config;
mod control;
mod extended;
mod show;
mod table;
mod visit;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::averages::{Periods, Snapshot};
use self::control::Group;
use self::show::{Database, Sight};
use self::table::Table;
use super::backend::{PgBackend, PgPool};
use super::cancel::CancelRegistry;
use super::greeting::Startup;
use super::message::ErrorFields;
use super::orders::Orders;
use super::routes::{Proof, Routes};
use super::session::Running;
use super::view;
use crate::config::{ConsoleUsers, Current, PostgresSettings};
use crate::lifecycle::{Drain, ReloadRequest, StopRequest};
use crate::metrics::now_ms;
use crate::net::Address;

/// The databases that are the console.
const NAMES: [&str; 2] = ["tidegate", show::OURS];

/// Most clients of the console at once; they come on top of the client limit, so that a full house can be looked at.
pub(super) const CLIENTS_MOST: usize = 32;

/// What averages are over: PgBouncer's default.
const PERIOD: Duration = Duration::from_secs(60);

/// Tools look for PgBouncer's version in it, to know which columns there are.
const SERVER_VERSION: &str = "1.18.0/bouncer";
const VERSION: &str =
    concat!("PgBouncer 1.18.0 compatible (tidegate ", env!("CARGO_PKG_VERSION"), ")");

/// What all clients of the console share.
pub(super) struct Console {
    settings: Arc<Current<PostgresSettings>>,
    routes: Vec<Arc<Routes>>,
    cancels: Arc<CancelRegistry>,
    orders: Arc<Orders>,
    stop: Option<StopRequest>,
    reload: Option<ReloadRequest>,
    born: Instant,
    periods: Mutex<Periods>,
    chairs: Arc<Semaphore>,
    commands: AtomicU64,
}

/// What it is made of.
pub(super) struct Parts {
    /// What was set.
    pub(super) settings: Arc<Current<PostgresSettings>>,
    /// The ways of every listener.
    pub(super) routes: Vec<Arc<Routes>>,
    /// Every client.
    pub(super) cancels: Arc<CancelRegistry>,
    /// What was ordered.
    pub(super) orders: Arc<Orders>,
    /// How to stop the process, if a client may.
    pub(super) stop: Option<StopRequest>,
    /// How to have the settings read again.
    pub(super) reload: Option<ReloadRequest>,
}

/// One client's place at the console.
pub(super) struct Desk {
    console: Arc<Console>,
    user: String,
    database: String,
    parameters: Vec<(String, String)>,
    reported: Vec<(String, String)>,
    /// Held for as long as the client is here.
    _chair: OwnedSemaphorePermit,
}

impl Console {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts { settings, routes, cancels, orders, stop, reload } = parts;
        Arc::new(Self {
            settings,
            routes,
            cancels,
            orders,
            stop,
            reload,
            born: Instant::now(),
            periods: Mutex::default(),
            chairs: Arc::new(Semaphore::new(CLIENTS_MOST)),
            commands: AtomicU64::new(0),
        })
    }

    /// A place for a client that has proved itself, if it asks for the console and may use it. For anybody else there is no
    /// such database.
    ///
    /// # Errors
    /// When as many clients as may be are here.
    pub(super) fn desk(
        self: &Arc<Self>,
        routes: &Routes,
        startup: &Startup,
        from: &Address,
    ) -> Result<Option<Desk>, ErrorFields> {
        let Startup { user, database, parameters, replication, .. } = startup;
        let meant = NAMES.contains(&database.as_str()) && !routes.has_database(database);
        if !meant || replication.is_some() || !self.may_use(routes, startup, from) {
            return Ok(None);
        }
        let chair = Arc::clone(&self.chairs).try_acquire_owned().map_err(|_full| {
            let message = format!("the console has {CLIENTS_MOST} clients, as many as may be");
            ErrorFields::fatal("53300", message).hint("Close those that are done.")
        })?;
        let (user, database) = (user.clone(), database.clone());
        let (parameters, reported) = (parameters.clone(), reported(parameters));
        let console = Arc::clone(self);
        Ok(Some(Desk { console, user, database, parameters, reported, _chair: chair }))
    }

    fn may_use(&self, routes: &Routes, startup: &Startup, from: &Address) -> bool {
        let (user, database) = (startup.user.as_str(), startup.database.as_str());
        let here = from.is_local();
        match &self.settings.get().console {
            ConsoleUsers::OfUrls => here && routes.has_user(user),
            ConsoleUsers::Named(users) => {
                let proof = routes.proof(user, database);
                let proved = matches!(proof, Some(Proof::Password(_)));
                (here || proved) && users.iter().any(|known| known == user)
            }
        }
    }

    /// Keeps the averages until the drain's deadline.
    pub(super) async fn keep(self: Arc<Self>, drain: Drain) {
        let mut rounds = interval_at(Instant::now() + PERIOD, PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.deadline() => return,
                _ = rounds.tick() => {
                    let now = self.snapshot(&self.sight(Scope::Databases));
                    self.periods().end(now);
                }
            }
        }
    }

    fn pools(&self) -> Vec<Arc<PgPool>> {
        self.routes.iter().flat_map(|routes| routes.all()).collect()
    }

    /// The table of one SHOW.
    fn show(&self, show: command::Show) -> Table {
        if show == command::Show::Config {
            return config::table(&self.settings.get());
        }
        let scope = match show {
            command::Show::Clients
            | command::Show::Servers
            | command::Show::Sockets
            | command::Show::ActiveSockets => Scope::All,
            _ => Scope::Databases,
        };
        let sight = self.sight(scope);
        let now = self.snapshot(&sight);
        sight.table(show, &self.periods(), &now)
    }

    fn snapshot(&self, sight: &Sight) -> Snapshot {
        Snapshot { age: self.born.elapsed(), counts: sight.counts() }
    }

    fn sight(&self, scope: Scope) -> Sight {
        let groups = self.groups();
        let databases = groups.iter().map(|group| self.database(group)).collect();
        let (clients, servers) = match scope {
            Scope::Databases => (Vec::new(), Vec::new()),
            Scope::All => {
                let pools = self.pools();
                let servers = pools.iter().flat_map(|pool| view::servers(pool)).collect();
                (view::clients(&self.cancels, &pools), servers)
            }
        };
        let settings = self.settings.get();
        let mut names: Vec<&str> = settings.users.iter().map(|(name, _)| name).collect();
        let upstreams = settings.listeners.iter().flat_map(|listener| &listener.upstreams);
        names.extend(upstreams.map(|upstream| upstream.user.as_str()));
        names.sort_unstable();
        names.dedup();
        Sight {
            databases,
            clients,
            servers,
            used: self.cancels.len(),
            consoles: CLIENTS_MOST - self.chairs.available_permits(),
            now_ms: now_ms(),
            client_limit: self.cancels.limit(),
            reserve: settings.portions.reserve_size,
            users: names.into_iter().map(|name| (name.to_owned(), self.mode_of(name))).collect(),
            sizes: (size_of::<Running>(), size_of::<PgBackend>()),
            port: settings.listeners.first().map_or(0, |listener| listener.listen.port()),
            commands: self.commands.load(Relaxed),
        }
    }

    fn database(&self, group: &Group) -> Database {
        let pools: Vec<_> = group.pools.iter().map(view::pool).collect();
        let first = pools.first().map(|pool| pool.user.clone());
        let user = first
            .filter(|user| !self.settings.get().any && pools.iter().all(|pool| pool.user == *user));
        Database { name: group.name.clone(), pools, entry: self.orders.entry(&group.place), user }
    }

    /// The pool mode that a user has everywhere, if one was set.
    fn mode_of(&self, user: &str) -> Option<&'static str> {
        let settings = self.settings.get();
        let mut rules = settings.pool_modes.rules.iter();
        let rule = rules.find(|rule| rule.user.as_deref() == Some(user) && rule.database.is_none());
        rule.map(|rule| config::mode_word(rule.mode))
    }

    fn periods(&self) -> MutexGuard<'_, Periods> {
        self.periods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Databases,
    All,
}

/// What is reported at login: as PgBouncer does, and what drivers want besides.
fn reported(parameters: &[(String, String)]) -> Vec<(String, String)> {
    let asked = parameters.iter().find(|(name, _)| name == "application_name");
    let application_name = asked.map_or("", |(_, value)| value);
    let reported = [
        ("server_version", SERVER_VERSION),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("integer_datetimes", "on"),
        ("application_name", application_name),
    ];
    reported.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// What is no command.
fn invalid(words: &str) -> ErrorFields {
    syntax(&format!("invalid command '{words}', use SHOW HELP;"))
}

fn syntax(message: &str) -> ErrorFields {
    ErrorFields::error("42601", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, load};
    use crate::metrics::Metrics;
    use crate::postgres::greeting::CancelKeys;
    use crate::postgres::routes::{Foundry, Keeping};

    /// Whether the user of the URL may come from each of these.
    fn lets_in(url: &str, console: &str, from: &[&str]) -> Vec<bool> {
        let variable = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let variables = [
            variable("DATABASE_URL", url),
            variable("USER", "me"),
            variable("TIDEGATE_POSTGRES_CONSOLE_USERS", console),
        ];
        let loaded = load(None, &Environment::from(variables), &[]).unwrap();
        let settings = loaded.settings.postgres.unwrap();
        let (_, drain) = Drain::new();
        let foundry = Foundry::new(&settings, &Metrics::new().unwrap(), drain, Keeping::default());
        let routes = Arc::new(Routes::new(&settings.listeners[0], foundry.clone()).unwrap());
        let console = Console::new(Parts {
            settings: Arc::clone(foundry.settings()),
            routes: vec![Arc::clone(&routes)],
            cancels: CancelRegistry::new(1),
            orders: Arc::clone(foundry.orders()),
            stop: None,
            reload: None,
        });
        let startup = Startup {
            user: "u".to_owned(),
            database: "pgbouncer".to_owned(),
            keys: CancelKeys::Short,
            negotiation: None,
            replication: None,
            parameters: Vec::new(),
        };
        let may = |from: &&str| {
            let desk = console.desk(
                &routes,
                &startup,
                &Address::Tcp((from.parse::<std::net::IpAddr>().unwrap(), 1).into()),
            );
            desk.unwrap_or_else(|_| panic!("not full")).is_some()
        };
        from.iter().map(may).collect()
    }

    #[test]
    fn from_elsewhere_only_those_come_who_are_named_and_have_a_password() {
        let from = ["127.0.0.1", "::1", "::ffff:127.0.0.5", "10.0.0.1", "2001:db8::1"];
        let (here, everywhere) = ([true, true, true, false, false], [true; 5]);
        assert_eq!(lets_in("postgres://u:p@db/app", "*", &from), here);
        assert_eq!(lets_in("postgres://u:p@db/app", "u", &from), everywhere);
        assert_eq!(lets_in("postgres://u@db/app", "u", &from), here);
        assert_eq!(lets_in("postgres://u:p@db/pgbouncer", "*", &from), [false; 5]);
        assert_eq!(lets_in("postgres://v:p@db/app", "v", &from), [false; 5]);
    }
}
