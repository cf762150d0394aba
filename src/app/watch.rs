//! What there is to see, put together: the pools of both sides, and their last quarter of an hour.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::lifecycle::Drain;
use crate::metrics::{Metrics, PoolMetrics, Protocol, now_ms};
use crate::pool::Reachability;
use crate::status::{ClientStatus, PoolStatus, Reach, Sample, Status, Verdict, Watch};
use crate::{postgres, redis};

/// Time between two samples, and how many are kept: a quarter of an hour.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const SAMPLES: usize = 180;
/// How many of the latest samples tell where the use is going: five minutes.
const TREND_SAMPLES: usize = 60;
/// Fewer tell nothing.
const TREND_SAMPLES_LEAST: usize = 6;

/// The services, as far as they can be asked.
pub(super) struct Tower {
    metrics: Arc<Metrics>,
    postgres: Option<Arc<postgres::service::Service>>,
    redis: Option<Arc<redis::service::Service>>,
    drain: Drain,
    born: Instant,
    past: Mutex<HashMap<(String, String), Past>>,
}

/// What is kept of one pool.
#[derive(Default)]
struct Past {
    samples: VecDeque<Sample>,
    saturated_seconds: f64,
    at: Option<Instant>,
}

impl Tower {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        postgres: Option<Arc<postgres::service::Service>>,
        redis: Option<Arc<redis::service::Service>>,
        drain: Drain,
    ) -> Arc<Self> {
        let born = Instant::now();
        Arc::new(Self { metrics, postgres, redis, drain, born, past: Mutex::default() })
    }

    /// Takes a sample now and then, and tells what the journal has held back, until the drain's deadline.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut rounds = tokio::time::interval(SAMPLE_EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.drain.deadline() => return,
                _ = rounds.tick() => self.sample(),
            }
        }
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let postgres = self.postgres.iter().flat_map(|service| service.status());
        let redis = self.redis.iter().flat_map(|service| service.status());
        postgres.chain(redis).collect()
    }

    /// Each configured pool's name and whether its server can be reached.
    pub(super) fn readiness(&self) -> Vec<(String, Reachability)> {
        let postgres = self.postgres.iter().flat_map(|service| service.readiness());
        let redis = self.redis.iter().flat_map(|service| service.readiness());
        postgres.chain(redis).collect()
    }

    /// How the pools are, in one line: server connections in use, most of them, and who waits.
    pub(super) fn line(&self) -> String {
        let words = |pool: &PoolStatus| {
            let (used, most, waiting) = (pool.servers.in_use(), pool.limit, pool.queue.length);
            let waiting = if waiting == 0 { String::new() } else { format!(", {waiting} waiting") };
            format!("{}: {used} of {most} connections in use{waiting}", pool.name)
        };
        self.pools().iter().map(words).collect::<Vec<_>>().join("; ")
    }

    fn metrics_of(&self, pool: &PoolStatus) -> Arc<PoolMetrics> {
        let protocol = match pool.protocol.as_str() {
            "redis" => Protocol::Redis,
            _ => Protocol::Postgres,
        };
        self.metrics.pool(protocol, &pool.name)
    }

    fn sample(&self) {
        let now = Instant::now();
        let pools = self.pools();
        let mut past = self.past();
        past.retain(|key, _| pools.iter().any(|pool| self::key(pool) == *key));
        for pool in &pools {
            let metrics = self.metrics_of(pool);
            let past = past.entry(key(pool)).or_default();
            let sample = past.add(pool, metrics.take_queue_peak(), now);
            metrics.server_reachable.set(i64::from(!matches!(pool.reach, Reach::Failing { .. })));
            metrics.times.set_oldest_wait(pool.queue.oldest_wait_ms / 1e3);
            metrics.times.set_exhaustion(past.exhaustion_seconds(sample.limit));
        }
        drop(past);
        self.metrics.tell_rest();
    }

    fn past(&self) -> MutexGuard<'_, HashMap<(String, String), Past>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(pool: &PoolStatus) -> (String, String) {
    (pool.protocol.clone(), pool.name.clone())
}

impl Past {
    fn add(&mut self, pool: &PoolStatus, queue_max: usize, now: Instant) -> Sample {
        let seconds = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let saturated = pool.totals.saturated_seconds - self.saturated_seconds;
        let sample = Sample {
            at_ms: now_ms(),
            in_use: pool.servers.in_use(),
            limit: pool.limit,
            queue_max,
            saturated: if seconds > 0.0 { (saturated / seconds).clamp(0.0, 1.0) } else { 0.0 },
        };
        (self.at, self.saturated_seconds) = (Some(now), pool.totals.saturated_seconds);
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        sample
    }

    /// When the line through the latest samples reaches the limit, if it rises; 0 when it is reached.
    fn exhaustion_seconds(&self, limit: usize) -> Option<f64> {
        let latest: Vec<_> = self.samples.iter().rev().take(TREND_SAMPLES).rev().collect();
        let last = latest.last()?;
        if last.in_use >= limit && last.saturated > 0.0 {
            return Some(0.0);
        }
        if latest.len() < TREND_SAMPLES_LEAST {
            return None;
        }
        let points: Vec<(f64, f64)> = latest
            .iter()
            .map(|sample| {
                let age = last.at_ms.saturating_sub(sample.at_ms);
                (-Duration::from_millis(age).as_secs_f64(), small(sample.in_use))
            })
            .collect();
        let (slope, now) = line_through(&points)?;
        let free = small(limit) - now;
        (slope > 0.0).then(|| (free / slope).max(0.0)).filter(|seconds| *seconds < 24.0 * 3600.0)
    }
}

/// A count of connections, exactly.
fn small(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The least squares line: its slope, and its height at 0.
fn line_through(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = small(points.len());
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let common: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    (spread > 0.0).then(|| {
        let slope = common / spread;
        (slope, mean_y - slope * mean_x)
    })
}

impl Watch for Tower {
    fn status(&self) -> Status {
        let mut pools = self.pools();
        let (past, at_ms) = (self.past(), now_ms());
        for pool in &mut pools {
            if let Some(past) = past.get(&key(pool)) {
                // The latest sample may be five seconds old, and what it saw over.
                let is_full = pool.servers.in_use() >= pool.limit;
                let left = past.exhaustion_seconds(pool.limit);
                pool.exhaustion_seconds = left.filter(|seconds| *seconds > 0.0 || is_full);
                pool.history = past.samples.iter().copied().collect();
            }
            pool.verdict = Verdict::of(pool, at_ms);
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms,
            uptime_seconds: self.born.elapsed().as_secs_f64(),
            draining: self.drain.is_draining(),
            pools,
            events: self.metrics.journal().events(),
        }
    }

    fn clients(&self) -> Vec<ClientStatus> {
        self.postgres.iter().flat_map(|service| service.clients()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(in_use: &[usize]) -> Past {
        let mut past = Past::default();
        for (number, in_use) in in_use.iter().enumerate() {
            let at_ms = 1_000_000 + u64::try_from(number).unwrap() * 5_000;
            past.samples.push_back(Sample {
                at_ms,
                in_use: *in_use,
                limit: 20,
                ..Sample::default()
            });
        }
        past
    }

    #[test]
    fn a_line_that_rises_meets_the_limit() {
        let rising = past(&[2, 3, 4, 5, 6, 7, 8]).exhaustion_seconds(20).unwrap();
        assert!((rising - 60.0).abs() < 1.0, "{rising}");
        assert_eq!(past(&[8, 7, 6, 5, 4, 3, 2]).exhaustion_seconds(20), None);
        assert_eq!(past(&[5; 20]).exhaustion_seconds(20), None);
        assert_eq!(past(&[2, 9]).exhaustion_seconds(20), None, "two points are no trend");
    }
}
