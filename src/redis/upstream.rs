//! Everything the sessions of one upstream share: its lanes, the pool for holds, what is known of the server.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::backend::{FactsCell, Key, RedisConnect, RedisPool, Way};
use super::blocking::Stations;
use super::clients::Clients;
use super::entrance::{self, Entrance};
use super::lane::{Lane, Sharing};
use super::mailbox::{Backlog, MailLimits};
use super::namespace::Namespace;
use super::namespace::pace::{Leave, Pace};
use super::namespace::sandbox::Sandbox;
use super::pubsub::Hub;
use super::scripts::Scripts;
use crate::config::{
    ChildCredentials, Current, NamespaceSettings, RedisLimits, RedisListener, RedisSettings,
    RedisUpstream, STAYS_OPEN,
};
use crate::metrics::{Happening, NamespaceMetrics, PoolMetrics};
use crate::net::{Address, LoginFailures, TlsError};
use crate::pool::{Budget, Pool, PoolSettings};

/// One lane for so many connections.
const CONNECTIONS_PER_LANE: usize = 4;
/// More lanes than this bring nothing.
const LANE_LIMIT: usize = 4;
/// Keys whose lane is remembered; others share by number.
const KEY_LIMIT: usize = 64;

/// A namespace, and what its clients share.
#[derive(Debug)]
pub struct Realm {
    /// What it is.
    pub namespace: Namespace,
    /// Where its scripts run.
    pub sandbox: Sandbox,
    /// What is counted of it.
    pub metrics: NamespaceMetrics,
    /// How fast its clients may send commands, if there is a bound.
    pub pace: Option<Pace>,
    /// Places for those who keep a connection, if there is a bound.
    pub places: Option<Arc<Semaphore>>,
    client_limit: usize,
    began: Instant,
}

/// Leave to keep a connection. Gone with it.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    pinned: IntGauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pinned.dec();
    }
}

impl Realm {
    /// A namespace as it is set.
    #[must_use]
    pub fn new(settings: &NamespaceSettings, metrics: NamespaceMetrics) -> Arc<Self> {
        let namespace = settings.namespace.clone();
        let sandbox = Sandbox::new(&namespace);
        Arc::new(Self {
            namespace,
            sandbox,
            metrics,
            pace: settings.commands_per_second.map(Pace::new),
            places: settings.pinned_limit.map(|limit| Arc::new(Semaphore::new(limit))),
            client_limit: settings.client_limit,
            began: Instant::now(),
        })
    }

    /// Leave for commands now.
    #[must_use]
    pub fn leave(&self) -> Option<Leave> {
        self.pace.as_ref().map(|pace| pace.take(self.began.elapsed()))
    }

    /// The place that a permit stands for.
    #[must_use]
    pub fn place(&self, permit: Option<OwnedSemaphorePermit>) -> Place {
        self.metrics.pinned.inc();
        Place { _permit: permit, pinned: self.metrics.pinned.clone() }
    }

    /// What a client is told that has waited in vain for a place.
    #[must_use]
    pub fn refusal_of_place(&self, waited: Duration) -> String {
        format!(
            "ERR tidegate: no connection of its own for this client after {} ms: the clients of namespace '{}' keep as \
             many as they may; raise redis.namespaces.pinned_limit, or hold them for less time",
            waited.as_millis(),
            self.namespace.name
        )
    }

    /// What one client too many is told.
    #[must_use]
    pub fn refusal_of_one_more(&self) -> Option<String> {
        let clients = usize::try_from(self.metrics.clients.get()).unwrap_or(0);
        (clients > self.client_limit).then(|| {
            format!(
                "ERR max number of clients reached (tidegate: {} in namespace '{}'; raise \
                 redis.namespaces.client_limit or use fewer clients)",
                self.client_limit, self.namespace.name
            )
        })
    }
}

/// One upstream and what serves it.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    entrance: Current<Entrance>,
    /// Whose logins have failed.
    pub failures: Arc<LoginFailures>,
    /// Its namespaces, by their numbers.
    pub realms: Vec<Arc<Realm>>,
    lanes: Vec<Arc<Lane>>,
    /// For sessions whose replies are large, while the holds leave it a connection.
    spare: Option<Arc<Lane>>,
    keys: Mutex<Vec<Key>>,
    holds: Arc<RedisPool>,
    /// Where sessions wait for elements together; none if there is but one connection.
    pub stations: Option<Arc<Stations>>,
    /// Where all subscribe together; none if there is but one connection.
    pub hub: Option<Arc<Hub>>,
    /// Sessions that wait for a connection of their own.
    pub waiting: Arc<AtomicUsize>,
    /// What the server said of itself.
    pub facts: Arc<FactsCell>,
    /// Who is here.
    pub clients: Arc<Clients>,
    /// What it was given of scripts.
    pub scripts: Arc<Scripts>,
    /// Replies that lie here unread.
    pub backlog: Arc<Backlog>,
    /// Bounds of each session.
    pub limits: RedisLimits,
    /// Counters, resolved once.
    pub metrics: Arc<PoolMetrics>,
    next_id: AtomicU64,
}

impl Upstream {
    /// Builds lanes and pools; opens nothing.
    ///
    /// The connections are divided, not shared, between lanes and holds: blocked clients can't take a lane's, and
    /// lanes can't take a hold's. With one connection in all, both take turns.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new(
        settings: &RedisSettings,
        listener: &RedisListener,
        metrics: Arc<PoolMetrics>,
        realms: Vec<Arc<Realm>>,
        (child, failures): (&ChildCredentials, Arc<LoginFailures>),
    ) -> Result<Self, TlsError> {
        let config = &listener.upstream;
        let facts = Arc::new(FactsCell::default());
        let scripts = Arc::new(Scripts::default());
        let way = Way::new(Arc::clone(config))?;
        let pool = |limit: usize| {
            let (facts, scripts) = (Arc::clone(&facts), Arc::clone(&scripts));
            let connect = RedisConnect::new(way.clone(), facts, scripts);
            let pool_settings = pool_settings(settings, &config.name);
            Pool::new(connect, pool_settings, Budget::new(limit), Arc::clone(&metrics))
        };
        let mail = MailLimits {
            client_bytes: settings.limits.reply_bytes_per_client,
            total_bytes: settings.limits.reply_bytes_total,
            stall: settings.limits.reply_stall,
        };
        let waiting = Arc::new(AtomicUsize::new(0));
        let size = settings.pool_size.max(1);
        let (holds, lanes, spare) = if size == 1 {
            let only = pool(1);
            let sharing = Sharing::TakingTurns(Arc::clone(&waiting));
            (Arc::clone(&only), vec![Lane::new(only, mail, sharing)], None)
        } else {
            let count = (size / CONNECTIONS_PER_LANE).clamp(1, LANE_LIMIT);
            let for_lanes = pool(count);
            let lane = || Lane::new(Arc::clone(&for_lanes), mail, Sharing::Apart);
            let lanes: Vec<_> = std::iter::repeat_with(lane).take(count).collect();
            let holds = pool(size - count);
            let home = lanes.first().map(Arc::clone);
            let spare =
                home.map(|home| Lane::new(Arc::clone(&holds), mail, Sharing::Spare { home }));
            (holds, lanes, spare)
        };
        let backlog = Arc::<Backlog>::default();
        let stations = (size > 1).then(|| Stations::new(Arc::clone(&holds), Arc::clone(&backlog)));
        let limits = &settings.limits;
        let hub = (size > 1).then(|| {
            Hub::new(Arc::clone(&holds), limits.subscription_limit, mail, Arc::clone(&backlog))
        });
        Ok(Self {
            name: config.name.clone(),
            entrance: Current::new(Entrance::new(listener, settings.auth, child)),
            realms,
            lanes,
            spare,
            keys: Mutex::default(),
            holds,
            stations,
            hub,
            waiting,
            facts,
            clients: Arc::default(),
            scripts,
            backlog,
            limits: settings.limits.clone(),
            metrics,
            failures,
            next_id: AtomicU64::new(1),
        })
    }

    /// Where it is, and what a client must know.
    #[must_use]
    pub fn entrance(&self) -> Arc<Entrance> {
        entrance::now(&self.entrance)
    }

    /// Leads to where `way` does from now on, under these settings. What deserves a word in the log.
    pub(super) fn change(&self, settings: &RedisSettings, way: Way) -> Vec<String> {
        let config = Arc::clone(way.upstream());
        let before = self.entrance.get();
        let next = before.leading_to(&config, settings.password_overlap);
        if next.lets_all_in() && !before.lets_all_in() {
            tracing::warn!(pool = self.name, "{STAYS_OPEN}");
        }
        self.entrance.set(next);
        let before = before.config().clone();
        let mut pools = vec![Arc::clone(&self.holds)];
        pools.extend(self.lanes.first().map(|lane| Arc::clone(lane.pool())));
        pools.dedup_by(|one, other| Arc::ptr_eq(one, other));
        for pool in &pools {
            pool.reconfigure(&pool_settings(settings, &self.name));
            pool.connector().redial(way.clone());
            pool.retry();
        }
        // Connections outlive the password that they were opened with, and some are kept for subscribers.
        let password = config.password.clone();
        if (RedisUpstream { password, ..before }) != *config {
            tracing::info!(pool = self.name, host = %config.host, port = config.port, "connections are made anew");
            pools.iter().for_each(|pool| pool.renew());
        }
        self.resize(settings.pool_size)
    }

    /// The lanes stay as many as they are.
    fn resize(&self, size: usize) -> Vec<String> {
        let lanes = self.lanes.first().map(|lane| lane.pool().budget().configured());
        let apart = self.lanes.first().is_some_and(|lane| !Arc::ptr_eq(lane.pool(), &self.holds));
        let of_lanes = lanes.filter(|_| apart).unwrap_or(0);
        let now = of_lanes + self.holds.budget().configured();
        let fits = if apart { size > of_lanes } else { size == now };
        if !fits {
            return vec![format!("redis.pool_size needs a restart to become {size} from {now}")];
        }
        if size != now {
            self.holds.budget().set_limit(size - of_lanes);
        }
        Vec::new()
    }

    /// Longest wait for a connection.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.holds.settings().wait()
    }

    /// The database that a client begins in.
    #[must_use]
    pub fn first_database(&self) -> u32 {
        self.entrance.get().config().database
    }

    /// Counts a client that came to nothing before its first word.
    pub fn note_no_tls(&self, peer: &Address, reason: &dyn Display) {
        self.metrics.login_failures.inc();
        self.metrics.lines.tell(Happening::Refused, format_args!("{peer}: no TLS: {reason}"));
    }

    /// Reads the files about TLS again; blocking. The next connections are made with what they say.
    ///
    /// # Errors
    /// What is wrong with them; what was read before stays.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.holds.connector().reload_tls()
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number for the next client.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The connections for sessions with a hold.
    #[must_use]
    pub fn holds(&self) -> &Arc<RedisPool> {
        &self.holds
    }

    /// All lanes.
    #[must_use]
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The lane of sessions with this key: always the same one, so that their order holds.
    #[must_use]
    pub fn lane(&self, key: Key) -> &Arc<Lane> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match keys.iter().position(|known| *known == key) {
            Some(place) => place,
            None if keys.len() < KEY_LIMIT => {
                keys.push(key);
                keys.len() - 1
            }
            None => usize::try_from(key.db).unwrap_or(0),
        };
        &self.lanes[place % self.lanes.len()]
    }

    /// The lane of sessions whose replies are large.
    #[must_use]
    pub fn spare(&self) -> Option<&Arc<Lane>> {
        self.spare.as_ref()
    }

    /// From now on no connection lies idle: see [`Pool::keep_none_idle`].
    pub fn leave(&self) {
        self.holds.keep_none_idle();
        for lane in self.lanes.iter().chain(&self.spare) {
            lane.pool().keep_none_idle();
            lane.leave();
        }
    }

    /// Tells lanes that share their connection that somebody waits.
    pub fn nudge_lanes(&self) {
        for lane in self.lanes.iter().chain(&self.spare) {
            lane.nudge();
        }
    }
}

fn pool_settings(settings: &RedisSettings, name: &str) -> PoolSettings {
    PoolSettings {
        name: name.to_owned(),
        wait: settings.wait,
        queue_limit: settings.queue_limit,
        connect_timeout: settings.connect_timeout,
        lifetime: settings.server_lifetime,
        idle: settings.server_idle,
        ceilings: Vec::new(),
        idle_min: 0,
        jitter_percent: 10,
    }
}
