//! What is sent out, for those who cannot come in and look: a line for each pool in the log, and all metrics by
//! Prometheus remote write. Both are off unless somebody asks for them.
//!
//! Neither may ever keep anybody waiting: what can't be sent now is never sent; the next time all is told anew.

mod http;
mod lines;
mod remote;
mod samples;

use std::sync::Arc;

use crate::config::PushSettings;
use crate::lifecycle::Drain;
use crate::metrics::Metrics;
use crate::net::{Tls, TlsError};
use crate::status::Watcher;

use lines::Lines;
use remote::Sender;

/// Spawns what was asked for; call it inside the runtime. Each part ends with the drain, with a last word at its start.
///
/// The TLS that remote write goes over, for whoever notices that its roots have changed.
///
/// # Errors
/// If the root certificates for remote write can't be had.
pub fn start(
    settings: &PushSettings,
    metrics: &Arc<Metrics>,
    watcher: &Watcher,
    drain: &Drain,
) -> Result<Option<Tls>, TlsError> {
    if !settings.log_every.is_zero() {
        let lines = Lines::new(settings.source.clone(), Arc::clone(watcher));
        tokio::spawn(lines.write(settings.log_every, drain.clone()));
    }
    let Some(target) = &settings.remote_write else { return Ok(None) };
    let sender = Sender::new(settings, target, metrics)?;
    let tls = sender.tls();
    tokio::spawn(sender.send(drain.clone()));
    Ok(tls)
}
