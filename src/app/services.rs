//! Everything that listens, started; each part ends with the drain.

use std::sync::Arc;

use anyhow::Context as _;

use super::listeners::Bound;
use super::watch::Tower;
use crate::admin;
use crate::config::Settings;
use crate::lifecycle::{Drain, StopRequest};
use crate::metrics::Metrics;
use crate::push;
use crate::status::Watcher;
use crate::{postgres, redis};

/// Builds the services of what was bound and spawns them; call it inside the runtime. `stop`: what a client of the console may
/// ask for.
pub(super) fn start(
    settings: &Settings,
    bound: Bound,
    drain: &Drain,
    stop: Option<StopRequest>,
) -> anyhow::Result<()> {
    let metrics = Metrics::new().context("cannot set up the metrics")?;
    let postgres = match &settings.postgres {
        Some(settings) => {
            Some(postgres::service::Service::new(settings, &metrics, drain.clone(), stop)?)
        }
        None => None,
    };
    let redis = match &settings.redis {
        Some(settings) => {
            Some(Arc::new(redis::service::Service::new(settings, &metrics, drain.clone())?))
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
    let tower = Tower::new(Arc::clone(&metrics), postgres, redis, drain.clone());
    tokio::spawn(Arc::clone(&tower).keep());
    let readiness: admin::Readiness = {
        let tower = Arc::clone(&tower);
        Arc::new(move || tower.readiness())
    };
    let watcher: Watcher = tower;
    push::start(&settings.push, &metrics, &watcher, drain).context("cannot push metrics")?;
    let admin = admin::Admin { metrics, readiness, watcher, drain: drain.clone() };
    tokio::spawn(admin::serve(bound.admin, admin, (&settings.admin).into()));
    Ok(())
}
