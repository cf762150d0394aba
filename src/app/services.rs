//! Everything that listens, started; each part ends with the drain.

use std::sync::Arc;

use anyhow::Context as _;

use super::listeners::Bound;
use super::logging::LogSwitch;
use super::reload::{Hangup, Reloader};
use super::watch::Tower;
use crate::admin;
use crate::config::{ChildCredentials, Loaded};
use crate::lifecycle::{Drain, ReloadRequest, StopRequest};
use crate::metrics::Metrics;
use crate::net::LoginFailures;
use crate::postgres::service::Ties;
use crate::push;
use crate::status::Watcher;
use crate::{postgres, redis};

/// What hears of it when the settings are to be read again.
pub(super) struct Reloading {
    pub(super) log: LogSwitch,
    pub(super) hangup: Hangup,
    pub(super) child: ChildCredentials,
}

/// Builds the services of what was bound and spawns them; call it inside the runtime. `stop`: what a client of the console may
/// ask for.
pub(super) fn start(
    loaded: &Loaded,
    bound: Bound,
    drain: &Drain,
    stop: Option<StopRequest>,
    reloading: Reloading,
) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let Reloading { log, hangup, child } = reloading;
    let (reload, asked) = ReloadRequest::new();
    let addresses = bound.addresses();
    let metrics = Metrics::new().context("cannot set up the metrics")?;
    let failures = LoginFailures::new(settings.login_failures_per_minute);
    let postgres = match &settings.postgres {
        Some(settings) => {
            let (child, failures) = (child.clone(), Arc::clone(&failures));
            let ties = Ties { stop, reload: Some(reload), child, failures };
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
    let tower = Tower::new(Arc::clone(&metrics), postgres.clone(), redis.clone(), drain.clone());
    tokio::spawn(Arc::clone(&tower).keep());
    let readiness: admin::Readiness = {
        let tower = Arc::clone(&tower);
        Arc::new(move || tower.readiness())
    };
    let watcher: Watcher = tower;
    let push = push::start(&settings.push, &metrics, &watcher, drain);
    let push = push.context("cannot push metrics")?;
    let reloader = Reloader {
        started: loaded.clone(),
        postgres,
        redis,
        push,
        addresses,
        failures,
        log,
        metrics: Arc::clone(&metrics),
    };
    tokio::spawn(reloader.keep(hangup, asked, drain.clone()));
    let admin = admin::Admin { metrics, readiness, watcher, drain: drain.clone() };
    tokio::spawn(admin::serve(bound.admin, admin, (&settings.admin).into()));
    Ok(())
}
