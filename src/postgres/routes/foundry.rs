//! What it takes to make pools, and to change those that there are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use crate::config::{ChildCredentials, Current, Hosts, PostgresSettings, PostgresUpstream};
use crate::lifecycle::Drain;
use crate::metrics::{Metrics, Protocol};
use crate::pool::{Budget, Ceiling, Pool, PoolSettings, ReserveSettings};
use crate::postgres::backend::{PgConnect, PgPool};
use crate::postgres::bounds::Rules;
use crate::postgres::connect::Dial;
use crate::postgres::hosts;
use crate::postgres::orders::{Orders, Passage, Place};

/// By how many per cent lifetimes differ, so that connections opened together don't close together.
const JITTER_PERCENT: u32 = 10;
/// Ceilings remembered though no pool is below them any more.
const CEILINGS: usize = 1_000;

/// What it takes to make pools. The budgets are per upstream server, whatever listener leads there.
#[derive(Clone)]
pub(in crate::postgres) struct Foundry {
    settings: Arc<Current<PostgresSettings>>,
    metrics: Arc<Metrics>,
    drain: Drain,
    keeping: Keeping,
    budgets: Arc<Mutex<Budgets>>,
    ceilings: Arc<Mutex<HashMap<CeilingOf, Arc<Ceiling>, RandomState>>>,
    orders: Arc<Orders>,
}

/// How clients' passwords are kept.
#[derive(Clone, Debug, Default)]
pub(in crate::postgres) struct Keeping {
    /// Random, for as long as the process lives.
    pub(in crate::postgres) seed: [u8; 32],
    pub(in crate::postgres) child: ChildCredentials,
}

/// Each server's first budget is the one for new pools. The hosts of one URL are one server.
type Budgets = Vec<(Hosts, Arc<Budget>)>;

/// What a ceiling is over.
#[derive(Clone, PartialEq, Eq, Hash)]
enum CeilingOf {
    Database(Hosts, String),
    User(Hosts, String),
}

impl Foundry {
    pub(in crate::postgres) fn new(
        settings: &PostgresSettings,
        metrics: &Arc<Metrics>,
        drain: Drain,
        keeping: Keeping,
    ) -> Self {
        Self {
            settings: Arc::new(Current::new(settings.clone())),
            metrics: Arc::clone(metrics),
            drain,
            keeping,
            budgets: Arc::default(),
            ceilings: Arc::default(),
            orders: Arc::default(),
        }
    }

    /// What is set now.
    pub(in crate::postgres) fn settings(&self) -> &Arc<Current<PostgresSettings>> {
        &self.settings
    }

    pub(super) fn keeping(&self) -> &Keeping {
        &self.keeping
    }

    pub(super) fn budget(&self, upstream: &PostgresUpstream) -> Arc<Budget> {
        let server = upstream.hosts.clone();
        let mut budgets = self.budgets();
        if let Some((_, known)) = budgets.iter().find(|(known, _)| *known == server) {
            return Arc::clone(known);
        }
        let settings = self.settings.get();
        let budget = Budget::with_pins(size(&settings), pins(&settings));
        budget.set_reserve(reserve(&settings));
        budgets.push((server, Arc::clone(&budget)));
        budget
    }

    /// The limits of the upstream's database and of its user.
    fn ceilings(&self, upstream: &PostgresUpstream) -> Vec<Arc<Ceiling>> {
        let (settings, server) = (self.settings.get(), upstream.hosts.clone());
        let mut ceilings = self.ceilings.lock().unwrap_or_else(PoisonError::into_inner);
        if ceilings.len() >= CEILINGS {
            ceilings.retain(|_, ceiling| Arc::strong_count(ceiling) > 1);
        }
        let of = [
            CeilingOf::Database(server.clone(), upstream.database.clone()),
            CeilingOf::User(server, upstream.user.clone()),
        ];
        let known = of.into_iter().map(|of| {
            let limit = of.limit(&settings);
            Arc::clone(ceilings.entry(of).or_insert_with(|| Ceiling::new(limit)))
        });
        known.collect()
    }

    /// A pool; spawns nothing.
    pub(super) fn pool(
        &self,
        name: String,
        dial: Dial,
        budget: Arc<Budget>,
        idle_min: usize,
    ) -> Arc<PgPool> {
        self.pool_below(None, name, dial, budget, idle_min)
    }

    /// A pool that has fewer connections than others.
    pub(super) fn pool_below(
        &self,
        ceiling: Option<Arc<Ceiling>>,
        name: String,
        dial: Dial,
        budget: Arc<Budget>,
        idle_min: usize,
    ) -> Arc<PgPool> {
        let settings = self.settings.get();
        let metrics = self.metrics.pool(Protocol::Postgres, &name);
        let mut ceilings = self.ceilings(dial.upstream());
        ceilings.extend(ceiling);
        let pool_settings =
            PoolSettings { ceilings, ..pool_settings(&settings, &dial, name.clone(), idle_min) };
        let rules = rules(&settings, dial.upstream());
        let place = Place::of(dial.upstream());
        let connect = PgConnect::new(&name, dial, settings.limits.clone(), &rules);
        // The metrics may be older: of a pool of that name that was given up.
        connect.seats().tick(metrics.times.now_ns());
        let pool = Pool::new(connect, pool_settings, budget, metrics);
        if self.orders.passage(&place) == Passage::Paused {
            pool.pause();
        }
        pool
    }

    /// What was ordered of databases.
    pub(in crate::postgres) fn orders(&self) -> &Arc<Orders> {
        &self.orders
    }

    /// Keeps house in a pool until it is closed, which the drain's deadline does at the latest.
    pub(in crate::postgres) fn spawn_reaper(&self, pool: &Arc<PgPool>) {
        let (reaper, drain) = (pool.run_reaper(), self.drain.clone());
        // Not to be what keeps it alive.
        let pool = Arc::downgrade(pool);
        tokio::spawn(async move {
            let leave = async {
                drain.noticed().await;
                if let Some(pool) = pool.upgrade() {
                    pool.keep_none_idle();
                }
                drain.deadline().await;
            };
            tokio::select! {
                () = reaper => {}
                () = leave => {
                    if let Some(pool) = pool.upgrade() {
                        pool.close();
                    }
                }
            }
        });
    }

    /// Other settings hold from now on: for pools that are made later, and for what is common to pools.
    pub(in crate::postgres) fn change(&self, settings: PostgresSettings) {
        let ceilings = self.ceilings.lock().unwrap_or_else(PoisonError::into_inner);
        ceilings.iter().for_each(|(of, ceiling)| ceiling.set_limit(of.limit(&settings)));
        drop(ceilings);
        for (_, budget) in self.budgets().iter() {
            budget.set_pins(pins(&settings));
            budget.set_reserve(reserve(&settings));
        }
        self.settings.set(settings);
    }

    /// The settings as they are now, for a pool that was made under others.
    pub(super) fn refit(&self, pool: &PgPool, idle_min: usize) {
        let settings = self.settings.get();
        let connector = pool.connector();
        let name = pool.settings().name.clone();
        pool.reconfigure(&pool_settings(&settings, &connector.dial(), name, idle_min));
        let rules = rules(&settings, connector.dial().upstream());
        connector.reconfigure(settings.limits.clone(), &rules);
        if pool.exceeds_a_ceiling() {
            pool.renew();
        }
        pool.retry();
    }

    /// Shares the connections out anew among `pools`, which are all there are: some may lead to another server than before. A
    /// pool keeps its budget, so one server may have several budgets, which are parts of what it may have then. `false`: so it
    /// is.
    pub(in crate::postgres) fn share_out(&self, pools: &[Arc<PgPool>]) -> bool {
        let mut used = Budgets::new();
        for pool in pools {
            let server = pool.connector().dial().upstream().hosts.clone();
            let budget = pool.budget();
            if !used.iter().any(|(known, one)| *known == server && Arc::ptr_eq(one, budget)) {
                used.push((server, Arc::clone(budget)));
            }
        }
        let size = size(&self.settings.get());
        let parts = |server: &Hosts| used.iter().filter(|(known, _)| known == server).count();
        let mut whole = true;
        for (_, budget) in &used {
            let servers = used.iter().filter(|(_, one)| Arc::ptr_eq(one, budget));
            let most = servers.clone().map(|(server, _)| parts(server)).max().unwrap_or(1);
            whole &= most == 1 && servers.count() == 1;
            let limit = (size / most.max(1)).max(1);
            if budget.configured() != limit {
                budget.set_limit(limit);
            }
        }
        // Of a server that nobody leads to now the budget is kept: somebody may again.
        let mut budgets = self.budgets();
        let known = |one: &Arc<Budget>| used.iter().any(|(_, other)| Arc::ptr_eq(one, other));
        let unused: Vec<_> = budgets.drain(..).filter(|(_, one)| !known(one)).collect();
        *budgets = used;
        budgets.extend(unused);
        whole
    }

    fn budgets(&self) -> MutexGuard<'_, Budgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CeilingOf {
    /// Most connections; with nought the server's limit decides.
    fn limit(&self, settings: &PostgresSettings) -> usize {
        let limit = match self {
            Self::Database(..) => settings.portions.database_limit,
            Self::User(..) => settings.portions.user_limit,
        };
        if limit == 0 { usize::MAX } else { limit }
    }
}

/// Most connections to one server: all together stay within `total_limit`, which is shared out among them.
fn size(settings: &PostgresSettings) -> usize {
    if settings.portions.total_limit == 0 {
        return settings.pool_size;
    }
    let upstreams = settings.listeners.iter().flat_map(|listener| &listener.upstreams);
    let servers: HashSet<_> = upstreams.map(|one| &one.hosts).collect();
    settings.pool_size.min(settings.portions.total_limit / servers.len().max(1)).max(1)
}

fn pins(settings: &PostgresSettings) -> Option<usize> {
    let pinned = settings.limits.pinned_limit;
    (pinned > 0).then_some(pinned)
}

fn reserve(settings: &PostgresSettings) -> ReserveSettings {
    ReserveSettings { size: settings.portions.reserve_size, after: settings.portions.reserve_after }
}

/// Without ceilings.
fn pool_settings(
    settings: &PostgresSettings,
    dial: &Dial,
    name: String,
    idle_min: usize,
) -> PoolSettings {
    PoolSettings {
        name,
        wait: settings.wait,
        queue_limit: settings.queue_limit,
        connect_timeout: dial.patience().saturating_mul(hosts::attempts(dial)),
        lifetime: settings.server_lifetime,
        idle: settings.server_idle,
        ceilings: Vec::new(),
        idle_min,
        jitter_percent: JITTER_PERCENT,
    }
}

fn rules(settings: &PostgresSettings, upstream: &PostgresUpstream) -> Rules {
    Rules {
        mode: settings.pool_modes.of(&upstream.user, &upstream.database),
        probe: settings.probe,
        passing: settings.passing,
        connections: size(settings),
        share_percent: settings.portions.application_share_percent,
    }
}
