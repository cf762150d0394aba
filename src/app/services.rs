//! Everything that listens, built and started; each part ends with the drain.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc::{self, Receiver};

use super::herald::Herald;
use super::listeners::Bound;
use super::logging::LogSwitch;
use super::reload::{Hangup, Reloader};
use super::watch::Tower;
use crate::admin;
use crate::config::{AdminSettings, ChildCredentials, Loaded};
use crate::lifecycle::{Drain, ReloadAnswer, ReloadRequest, StopRequest};
use crate::metrics::Metrics;
use crate::net::LoginFailures;
use crate::postgres::cancel::ForeignCancel;
use crate::postgres::service::Ties;
use crate::push;
use crate::status::Watcher;
use crate::{postgres, redis};

/// What hears of it when the settings are to be read again.
pub(super) struct Reloading {
    pub(super) log: LogSwitch,
    pub(super) hangup: Hangup,
    pub(super) child: ChildCredentials,
    pub(super) herald: Herald,
}

/// How the Postgres side may reach others.
#[derive(Default)]
pub(super) struct Outward {
    /// What a client of the console may ask for.
    pub(super) stop: Option<StopRequest>,
    /// Where cancel requests go for sessions that are not here.
    pub(super) elsewhere: Option<mpsc::Sender<ForeignCancel>>,
}

/// All that serves, before anybody is let in.
pub(super) struct Built {
    bound: Bound,
    postgres: Option<Arc<postgres::service::Service>>,
    redis: Option<Arc<redis::service::Service>>,
    tower: Arc<Tower>,
    reloader: Reloader,
    hangup: Hangup,
    asked: Receiver<ReloadAnswer>,
    admin: AdminSettings,
    metrics: Arc<Metrics>,
    drain: Drain,
}

/// Both sides, at work.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) postgres: Option<Arc<postgres::service::Service>>,
    redis: Option<Arc<redis::service::Service>>,
}

/// Builds the services of what was bound: all that may fail. Call it inside the runtime.
pub(super) fn build(
    loaded: &Loaded,
    bound: Bound,
    drain: &Drain,
    outward: Outward,
    reloading: Reloading,
) -> anyhow::Result<Built> {
    let settings = &loaded.settings;
    let Reloading { log, hangup, child, herald } = reloading;
    let (reload, asked) = ReloadRequest::new();
    let addresses = bound.addresses();
    let metrics = Metrics::new().context("cannot set up the metrics")?;
    let failures = LoginFailures::new(settings.login_failures_per_minute);
    let postgres = match &settings.postgres {
        Some(settings) => {
            let Outward { stop, elsewhere } = outward;
            let (child, failures) = (child.clone(), Arc::clone(&failures));
            let ties = Ties { stop, reload: Some(reload), child, failures, elsewhere };
            let drain = drain.clone();
            Some(Arc::new(postgres::service::Service::new(settings, &metrics, drain, ties)?))
        }
        None => None,
    };
    let redis = match &settings.redis {
        Some(settings) => {
            let drain = drain.clone();
            let service =
                redis::service::Service::new(settings, &metrics, drain, &child, &failures);
            Some(Arc::new(service?))
        }
        None => None,
    };
    let tower = Tower::new(Arc::clone(&metrics), postgres.clone(), redis.clone(), drain.clone());
    let watcher: Watcher = Arc::clone(&tower) as Watcher;
    let push = push::start(&settings.push, &metrics, &watcher, drain);
    let push = push.context("cannot push metrics")?;
    let reloader = Reloader {
        started: loaded.clone(),
        postgres: postgres.clone(),
        redis: redis.clone(),
        push,
        addresses,
        failures,
        log,
        herald,
        metrics: Arc::clone(&metrics),
    };
    let (drain, admin) = (drain.clone(), settings.admin.clone());
    Ok(Built { bound, postgres, redis, tower, reloader, hangup, asked, admin, metrics, drain })
}

impl Built {
    /// Lets clients in: spawns all of it. Call it inside the runtime.
    pub(super) fn open(self) -> Serving {
        let Self { bound, postgres, redis, tower, reloader, drain, .. } = self;
        let serving = Serving { postgres: postgres.clone(), redis: redis.clone() };
        if let Some(service) = &postgres {
            for (index, listener) in bound.postgres.into_iter().enumerate() {
                tokio::spawn(service.serve(index, listener));
            }
        }
        if let Some(service) = &redis {
            for (index, listener) in bound.redis.into_iter().enumerate() {
                let service = Arc::clone(service);
                tokio::spawn(async move { service.serve(index, listener).await });
            }
        }
        tokio::spawn(Arc::clone(&tower).keep());
        tokio::spawn(reloader.herald.clone().keep(Arc::clone(&tower), drain.clone()));
        let readiness: admin::Readiness = {
            let tower = Arc::clone(&tower);
            Arc::new(move || tower.readiness())
        };
        tokio::spawn(reloader.keep(self.hangup, self.asked, drain.clone()));
        let metrics = self.metrics;
        let admin = admin::Admin { metrics, readiness, watcher: tower, drain };
        tokio::spawn(admin::serve(bound.admin, admin, (&self.admin).into()));
        serving
    }
}

impl Serving {
    /// Another process has closed its connections to the servers: there may be room for more of ours.
    pub(super) fn room_made(&self) {
        self.postgres.iter().for_each(|service| service.room_made());
        self.redis.iter().for_each(|service| service.room_made());
    }
}
