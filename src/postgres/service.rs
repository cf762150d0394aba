//! The Postgres side as a whole: accepts clients, greets each in a task of its own, keeps the pools.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::backend::PgPool;
use super::cancel::{CancelRegistry, ForeignCancel};
use super::connect::Dial;
use super::console::{Console, Parts};
use super::greet::{Reception, greet};
use super::message::BackendKey;
use super::overdue;
use super::plan;
use super::routes::{Foundry, Keeping, Routes};
use super::view;
use crate::config::{
    Auth, ChildCredentials, POSTGRES_PROTOCOL, PostgresListener, PostgresSettings,
    PostgresUpstream, postgres_without_restart,
};
use crate::lifecycle::{Drain, ReloadRequest, StopRequest};
use crate::metrics::{Metrics, Protocol};
use crate::net::{Listener, ListenerTls, LoginFailures, Porch, TlsError};
use crate::pool::Reachability;
use crate::status::{ClientStatus, PoolStatus};

/// How often to look whether servers are to be asked for their limits by now.
const PLAN_OFF: Duration = Duration::from_secs(5);

/// The Postgres side. Made once by the composition root.
pub struct Service {
    listeners: Vec<Hall>,
    console: Arc<Console>,
    foundry: Foundry,
    cancels: Arc<CancelRegistry>,
    porch: Arc<Porch>,
    tls: Option<ListenerTls>,
    drain: Drain,
}

/// What ties the service to the process that it lives in.
#[derive(Debug, Default)]
pub struct Ties {
    /// How a client of the console may stop the process, if it may.
    pub stop: Option<StopRequest>,
    /// How it may have the settings read again.
    pub reload: Option<ReloadRequest>,
    /// What the wrapped command comes in with.
    pub child: ChildCredentials,
    /// Whose logins have failed.
    pub failures: Arc<LoginFailures>,
    /// Where cancel requests go for sessions that are not here, if anywhere.
    pub elsewhere: Option<mpsc::Sender<ForeignCancel>>,
}

/// Settings that can be taken: everything that could fail has been done.
pub struct Change {
    settings: PostgresSettings,
    /// How the upstreams of each listener are reached.
    dials: Vec<Vec<Dial>>,
}

/// One listener's share.
struct Hall {
    reception: Arc<Reception>,
}

impl Service {
    /// Makes the pools of every listener; opens nothing and spawns nothing.
    ///
    /// # Errors
    /// When root certificates cannot be had, a setting would let strangers in, or the system has no
    /// random numbers.
    pub fn new(
        settings: &PostgresSettings,
        metrics: &Arc<Metrics>,
        drain: Drain,
        ties: Ties,
    ) -> anyhow::Result<Self> {
        let limits = &settings.limits;
        let porch = Porch::new(limits.login_limit);
        let mut mock_seed = [0; 32];
        getrandom::fill(&mut mock_seed).context("the system has no random numbers")?;
        let Ties { stop, reload, child, failures, elsewhere } = ties;
        let cancels = CancelRegistry::before(limits.client_limit, elsewhere);
        let keeping = Keeping { seed: mock_seed, child };
        let foundry = Foundry::new(settings, metrics, drain.clone(), keeping);
        let tls = settings.encryption.tls(Some(POSTGRES_PROTOCOL))?;
        let mut routes = Vec::with_capacity(settings.listeners.len());
        for listener in &settings.listeners {
            check_access(settings, listener)?;
            routes.push(Arc::new(Routes::new(listener, foundry.clone())?));
        }
        let console = Console::new(Parts {
            settings: Arc::clone(foundry.settings()),
            routes: routes.clone(),
            cancels: Arc::clone(&cancels),
            orders: Arc::clone(foundry.orders()),
            stop,
            reload,
        });
        let mut listeners = Vec::with_capacity(settings.listeners.len());
        for (listener, routes) in settings.listeners.iter().zip(routes) {
            let Some(first) = listener.upstreams.first() else {
                bail!("the Postgres listener {} leads to no upstream", listener.listen);
            };
            let reception = Arc::new(Reception {
                routes,
                console: Arc::clone(&console),
                settings: Arc::clone(foundry.settings()),
                tls: tls.clone(),
                tls_mode: settings.encryption.mode,
                client_certificate: settings.client_certificate,
                cancels: Arc::clone(&cancels),
                failures: Arc::clone(&failures),
                drain: drain.clone(),
                metrics: metrics.pool(Protocol::Postgres, &first.name),
                mock_seed,
            });
            listeners.push(Hall { reception });
        }
        Ok(Self { listeners, console, foundry, cancels, porch, tls, drain })
    }

    /// Gets ready to take other settings; nothing changes yet. What a running process can't change stays as it is: see
    /// [`crate::config::needs_restart`].
    ///
    /// # Errors
    /// As [`Service::new`].
    pub fn prepare(&self, wanted: &PostgresSettings) -> anyhow::Result<Change> {
        let settings = postgres_without_restart(&self.foundry.settings().get(), wanted);
        let mut dials = Vec::with_capacity(settings.listeners.len());
        for listener in &settings.listeners {
            check_access(&settings, listener)?;
            dials.push(Routes::dials(listener, &settings)?);
        }
        Ok(Change { settings, dials })
    }

    /// Takes them. Clients that are logged in stay. What deserves a word in the log. Call it inside the runtime.
    pub fn apply(&self, change: Change) -> Vec<String> {
        let Change { settings, dials } = change;
        self.porch.set_limit(settings.limits.login_limit);
        self.cancels.set_limit(settings.limits.client_limit);
        self.foundry.change(settings);
        for (hall, dials) in self.listeners.iter().zip(dials) {
            hall.reception.routes.change(dials);
        }
        let whole = self.foundry.share_out(&self.pools());
        let parted = "postgres.urls: a server that several pools lead to by now is shared by halves until a restart";
        if whole { Vec::new() } else { vec![parted.to_owned()] }
    }

    fn pools(&self) -> Vec<Arc<PgPool>> {
        self.listeners.iter().flat_map(|hall| hall.reception.routes.all()).collect()
    }

    /// Accepts clients on the listener with this index in the settings, until the drain closes it or
    /// the socket is of no use any more. Who comes while we drain is told so. Greetings and sessions run in tasks of their own: call it
    /// inside the runtime.
    pub fn serve(
        &self,
        listener_index: usize,
        listener: Listener,
    ) -> impl Future<Output = ()> + Send + 'static {
        let drain = self.drain.clone();
        let console = (listener_index == 0).then(|| Arc::clone(&self.console));
        let hall = self.listeners.get(listener_index).map(|hall| Arc::clone(&hall.reception));
        let (foundry, porch) = (self.foundry.clone(), Arc::clone(&self.porch));
        async move {
            let Some(reception) = hall else { return };
            reception.routes.fixed().iter().for_each(|pool| foundry.spawn_reaper(pool));
            tokio::spawn(watch(Arc::clone(&reception), drain.clone()));
            tokio::spawn(watch_plans(Arc::clone(&reception), drain.clone()));
            if let Some(console) = console {
                tokio::spawn(console.keep(drain.clone()));
            }
            let mut closing = std::pin::pin!(drain.listeners_close());
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = &mut closing => return,
                    accepted = listener.accept() => accepted,
                };
                let (client, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::error!(%error, "the Postgres listener broke; no new clients");
                        return;
                    }
                };
                let place = tokio::select! {
                    biased;
                    () = drain.listeners_close() => return,
                    place = porch.enter() => place,
                };
                tokio::spawn(greet(Arc::clone(&reception), client, peer, place));
            }
        }
    }

    /// The pools at this moment, those made on demand included.
    #[must_use]
    pub fn status(&self) -> Vec<PoolStatus> {
        self.pools().iter().map(view::pool).collect()
    }

    /// Reads the files about TLS again, the listeners' and those of the way to the servers; blocking. What is no good is not
    /// taken, and what was read before stays; so do all connections.
    ///
    /// # Errors
    /// The first thing that is wrong with them; the others are read all the same.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        let pools = self.listeners.iter().flat_map(|hall| hall.reception.routes.all());
        let servers = pools.map(|pool| pool.connector().dial().reload_tls());
        let listener = self.tls.iter().map(ListenerTls::reload);
        listener.chain(servers).fold(Ok(()), Result::and)
    }

    /// Hears of a cancel request that has come to another process. It asks all that were before it, so it goes no further.
    pub fn cancel(&self, key: &BackendKey) {
        self.cancels.tell(key);
    }

    /// Another process has closed its connections to the servers.
    pub fn room_made(&self) {
        self.pools().iter().for_each(|pool| pool.room_made());
    }

    /// Every client that is logged in.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientStatus> {
        view::clients(&self.cancels, &self.pools())
    }

    /// Each configured pool's name and whether its server can be reached, for /readyz. Pools made on
    /// demand are not in it: a client that names a database that is not there must not make us unready.
    #[must_use]
    pub fn readiness(&self) -> Vec<(String, Reachability)> {
        let pools = self.listeners.iter().flat_map(|hall| hall.reception.routes.fixed());
        pools.map(|pool| (pool.settings().name.clone(), pool.state())).collect()
    }
}

/// Keeps the limits on time of one listener's clients until the drain's deadline.
async fn watch(reception: Arc<Reception>, drain: Drain) {
    let settings = || reception.settings.get();
    let mut next = Instant::now();
    let mut slow = tokio::time::interval(Duration::from_secs(1));
    slow.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drain.deadline() => return,
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + overdue::round(&settings().limits);
                reception.routes.all().iter().for_each(|pool| overdue::look_at_pool(pool));
            }
            _ = slow.tick() => {
                overdue::look_at_idle(&settings().limits, &reception.cancels);
                reception.routes.sweep();
            }
        }
    }
}

/// Asks the servers of one listener how many connections they allow, now and then and if there was work meanwhile, until
/// the drain starts.
async fn watch_plans(reception: Arc<Reception>, drain: Drain) {
    let mut asked = HashMap::new();
    loop {
        let every = reception.settings.get().limits.plan_every;
        tokio::select! {
            () = drain.started() => return,
            () = tokio::time::sleep(if every.is_zero() { PLAN_OFF } else { every }) => {}
        }
        if every.is_zero() {
            continue;
        }
        let pools = reception.routes.all();
        asked.retain(|name, _| pools.iter().any(|pool| pool.settings().name == *name));
        for pool in pools {
            let checkouts = pool.metrics().checkouts.get();
            if asked.insert(pool.settings().name.clone(), checkouts) != Some(checkouts) {
                plan::ask(&pool).await;
            }
        }
    }
}

/// What would let strangers in is refused here, whatever the configuration has let through.
fn check_access(settings: &PostgresSettings, listener: &PostgresListener) -> anyhow::Result<()> {
    let nobody = settings.users.is_empty() && settings.auth_query.is_none();
    if settings.any && settings.auth != Auth::Trust && nobody {
        bail!(
            "serving any database (TIDEGATE_POSTGRES_ANY) needs users in TIDEGATE_POSTGRES_USERS_FILE, a query for \
             them in TIDEGATE_POSTGRES_AUTH_QUERY, or TIDEGATE_POSTGRES_AUTH=trust"
        );
    }
    if listener.listen.ip().is_loopback() {
        return Ok(());
    }
    if settings.auth == Auth::Trust {
        bail!(
            "TIDEGATE_POSTGRES_AUTH=trust on {}: anybody could use the database; \
             listen on 127.0.0.1 or use password",
            listener.listen
        );
    }
    let is_open = |upstream: &&Arc<PostgresUpstream>| {
        upstream.password.is_none() && settings.users.get(&upstream.user).is_none()
    };
    if let Some(open) = listener.upstreams.iter().find(is_open) {
        bail!(
            "{} has no password and its listener {} is not on loopback: anybody could use the \
             database; listen on 127.0.0.1 or put a password into the URL",
            open.name,
            listener.listen
        );
    }
    Ok(())
}
