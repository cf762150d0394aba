//! The Postgres side as a whole: accepts clients, greets each in a task of its own, keeps the pools.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use super::cancel::CancelRegistry;
use super::console::{Console, Parts};
use super::greet::{Reception, greet};
use super::overdue;
use super::plan;
use super::routes::{Foundry, Routes};
use super::view;
use crate::config::{
    Auth, POSTGRES_PROTOCOL, PostgresListener, PostgresSettings, PostgresUpstream,
};
use crate::lifecycle::{Drain, StopRequest};
use crate::metrics::{Metrics, Protocol};
use crate::net::{Listener, ListenerTls, TlsError};
use crate::pool::Reachability;
use crate::status::{ClientStatus, PoolStatus};

/// Clients that may be in their greeting beyond the client limit, so that a full house can still
/// say that it is full, and cancel requests get through.
const GREETINGS_BEYOND_LIMIT: usize = 100;

/// The Postgres side. Made once by the composition root.
pub struct Service {
    listeners: Vec<Hall>,
    console: Arc<Console>,
    tls: Option<ListenerTls>,
    drain: Drain,
}

/// One listener's share.
struct Hall {
    reception: Arc<Reception>,
    foundry: Foundry,
    greetings: Arc<Semaphore>,
}

impl Service {
    /// Makes the pools of every listener; opens nothing and spawns nothing. `stop`: what a client of the console may ask for.
    ///
    /// # Errors
    /// When root certificates cannot be had, a setting would let strangers in, or the system has no
    /// random numbers.
    pub fn new(
        settings: &PostgresSettings,
        metrics: &Arc<Metrics>,
        drain: Drain,
        stop: Option<StopRequest>,
    ) -> anyhow::Result<Self> {
        let limits = &settings.limits;
        let cancels = CancelRegistry::new(limits.client_limit);
        let most = limits.client_limit.saturating_add(GREETINGS_BEYOND_LIMIT);
        let greetings = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let foundry = Foundry::new(settings, metrics, drain.clone());
        let mut mock_seed = [0; 32];
        getrandom::fill(&mut mock_seed).context("the system has no random numbers")?;
        let tls = settings.encryption.tls(Some(POSTGRES_PROTOCOL))?;
        let mut routes = Vec::with_capacity(settings.listeners.len());
        for listener in &settings.listeners {
            check_access(settings, listener)?;
            routes.push(Arc::new(Routes::new(listener, foundry.clone())?));
        }
        let console = Console::new(Parts {
            settings: Arc::new(settings.clone()),
            routes: routes.clone(),
            cancels: Arc::clone(&cancels),
            orders: Arc::clone(foundry.orders()),
            stop,
        });
        let mut listeners = Vec::with_capacity(settings.listeners.len());
        for (listener, routes) in settings.listeners.iter().zip(routes) {
            let Some(first) = listener.upstreams.first() else {
                bail!("the Postgres listener {} leads to no upstream", listener.listen);
            };
            let reception = Arc::new(Reception {
                routes,
                console: Arc::clone(&console),
                limits: Arc::new(limits.clone()),
                login_timeout: settings.login_timeout,
                tls: tls.clone(),
                tls_mode: settings.encryption.mode,
                client_certificate: settings.client_certificate,
                cancels: Arc::clone(&cancels),
                drain: drain.clone(),
                metrics: metrics.pool(Protocol::Postgres, &first.name),
                mock_seed,
            });
            let (foundry, greetings) = (foundry.clone(), Arc::clone(&greetings));
            listeners.push(Hall { reception, foundry, greetings });
        }
        Ok(Self { listeners, console, tls, drain })
    }

    /// Accepts clients on the listener with this index in the settings, until the drain starts or
    /// the socket is of no use any more. Greetings and sessions run in tasks of their own: call it
    /// inside the runtime.
    pub fn serve(
        &self,
        listener_index: usize,
        listener: Listener,
    ) -> impl Future<Output = ()> + Send + 'static {
        let drain = self.drain.clone();
        let console = (listener_index == 0).then(|| Arc::clone(&self.console));
        let hall = self.listeners.get(listener_index).map(|hall| {
            let Hall { reception, foundry, greetings } = hall;
            (Arc::clone(reception), foundry.clone(), Arc::clone(greetings))
        });
        async move {
            let Some((reception, foundry, greetings)) = hall else { return };
            reception.routes.fixed().for_each(|pool| foundry.spawn_reaper(pool));
            tokio::spawn(watch(Arc::clone(&reception), drain.clone()));
            tokio::spawn(watch_plans(Arc::clone(&reception), drain.clone()));
            if let Some(console) = console {
                tokio::spawn(console.keep(drain.clone()));
            }
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = drain.started() => return,
                    accepted = listener.accept() => accepted,
                };
                let (client, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::error!(%error, "the Postgres listener broke; no new clients");
                        return;
                    }
                };
                // Never waited for: slow greeters must not keep a cancel request out.
                let Ok(permit) = Arc::clone(&greetings).try_acquire_owned() else {
                    tracing::warn!(%peer, "too many clients in their greeting; closed one");
                    reception.metrics.login_failures.inc();
                    continue;
                };
                let reception = Arc::clone(&reception);
                tokio::spawn(async move {
                    greet(reception, client, peer).await;
                    drop(permit);
                });
            }
        }
    }

    /// The pools at this moment, those made on demand included.
    #[must_use]
    pub fn status(&self) -> Vec<PoolStatus> {
        let pools = self.listeners.iter().flat_map(|hall| hall.reception.routes.all());
        pools.map(|pool| view::pool(&pool)).collect()
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

    /// Every client that is logged in.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientStatus> {
        let pools: Vec<_> =
            self.listeners.iter().flat_map(|hall| hall.reception.routes.all()).collect();
        let cancels = self.listeners.first().map(|hall| &hall.reception.cancels);
        cancels.map_or_else(Vec::new, |cancels| view::clients(cancels, &pools))
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
    let mut rounds = tokio::time::interval(overdue::round(&reception.limits));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut slow = tokio::time::interval(Duration::from_secs(1));
    slow.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drain.deadline() => return,
            _ = rounds.tick() => {
                reception.routes.all().iter().for_each(|pool| overdue::look_at_pool(pool));
            }
            _ = slow.tick() => overdue::look_at_idle(&reception.limits, &reception.cancels),
        }
    }
}

/// Asks the servers of one listener how many connections they allow, now and then and if there was work meanwhile, until
/// the drain starts.
async fn watch_plans(reception: Arc<Reception>, drain: Drain) {
    let every = reception.limits.plan_every;
    if every.is_zero() {
        return;
    }
    let mut asked = HashMap::new();
    loop {
        tokio::select! {
            () = drain.started() => return,
            () = tokio::time::sleep(every) => {}
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
    if settings.any && settings.auth != Auth::Trust && settings.users.is_empty() {
        bail!(
            "serving any database (TIDEGATE_POSTGRES_ANY) needs users in TIDEGATE_POSTGRES_USERS_FILE, or \
             TIDEGATE_POSTGRES_AUTH=trust"
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
