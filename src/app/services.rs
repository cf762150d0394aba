//! Everything that listens, started; each part ends with the drain.

use std::sync::Arc;

use anyhow::Context as _;

use super::listeners::Bound;
use crate::admin;
use crate::config::Settings;
use crate::lifecycle::Drain;
use crate::metrics::Metrics;
use crate::pool::Reachability;
use crate::{postgres, redis};

/// Tells what one service knows of its pools.
type Probe = Box<dyn Fn() -> Vec<(String, Reachability)> + Send + Sync>;

/// Builds the services of what was bound and spawns them; call it inside the runtime.
pub(super) fn start(settings: &Settings, bound: Bound, drain: &Drain) -> anyhow::Result<()> {
    let metrics = Metrics::new().context("cannot set up the metrics")?;
    let mut probes: Vec<Probe> = Vec::new();
    if let Some(settings) = &settings.postgres {
        let service = postgres::service::Service::new(settings, &metrics, drain.clone())?;
        for (index, listener) in bound.postgres.into_iter().enumerate() {
            tokio::spawn(service.serve(index, listener));
        }
        probes.push(Box::new(move || service.readiness()));
    }
    if let Some(settings) = &settings.redis {
        let service = Arc::new(redis::service::Service::new(settings, &metrics, drain.clone())?);
        for (index, listener) in bound.redis.into_iter().enumerate() {
            let service = Arc::clone(&service);
            tokio::spawn(async move { service.serve(index, listener).await });
        }
        probes.push(Box::new(move || service.readiness()));
    }
    let readiness: admin::Readiness =
        Arc::new(move || probes.iter().flat_map(|probe| probe()).collect());
    let admin = admin::Admin { metrics, readiness, drain: drain.clone() };
    tokio::spawn(admin::serve(bound.admin, admin, (&settings.admin).into()));
    Ok(())
}
