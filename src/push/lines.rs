//! Lines in the log for whoever makes metrics of logs: `source=web.1 sample#tidegate.pg.waiting=3 …`, as Heroku's log metrics
//! and l2met read them. `sample#` is what is so at the moment, `measure#` a time, `count#` what was added since the line before.
//!
//! They go to standard error, as the log does, since standard output is the wrapped command's; but past the logger: who reads
//! them looks for exactly this form, which neither a level, nor a time stamp in front, nor JSON around it may spoil.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::lifecycle::Drain;
use crate::status::{PoolStatus, Totals, Watcher};

/// The pools whose lines name the protocol alone: those that a platform's own variables lead to.
const PLAIN: [&str; 2] = ["DATABASE_URL", "REDIS_URL"];
/// Most lines at once; with pools made on demand there may be many more, and the busiest matter.
const LINES: usize = 20;

/// Writes them.
pub(super) struct Lines {
    source: String,
    watcher: Watcher,
    /// What each pool had counted at the line before, by protocol and name.
    before: HashMap<(String, String), Totals>,
    at: Instant,
    at_ms: u64,
}

impl Lines {
    pub(super) fn new(source: String, watcher: Watcher) -> Self {
        Self { source, watcher, before: HashMap::new(), at: Instant::now(), at_ms: 0 }
    }

    /// Once in each period, and at the start of the drain.
    pub(super) async fn write(mut self, every: Duration, drain: Drain) {
        let mut rounds = tokio::time::interval_at(Instant::now() + every, every);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.text();
        loop {
            let last = tokio::select! {
                () = drain.started() => true,
                _ = rounds.tick() => false,
            };
            // One write, so that nothing comes in between. Nobody reads it any more: nothing is lost.
            let _reader_gone = io::stderr().lock().write_all(self.text().as_bytes());
            if last {
                return;
            }
        }
    }

    /// The lines of now, and what the next are counted from.
    fn text(&mut self) -> String {
        let status = self.watcher.status();
        let mut pools: Vec<&PoolStatus> = status.pools.iter().collect();
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.queue.length + pool.servers.in_use()));
        let seconds = self.at.elapsed().as_secs_f64();
        let mut text = String::new();
        for pool in pools.into_iter().take(LINES) {
            let before = self.before.get(&key(pool)).copied().unwrap_or_default();
            let line = Line { source: &self.source, pool, before, seconds, since_ms: self.at_ms };
            // Writing to a String cannot fail.
            let _unfailing = line.write(&mut text);
        }
        (self.at, self.at_ms) = (Instant::now(), status.at_ms);
        self.before = status.pools.iter().map(|pool| (key(pool), pool.totals)).collect();
        text
    }
}

fn key(pool: &PoolStatus) -> (String, String) {
    (pool.protocol.clone(), pool.name.clone())
}

/// One pool, and the time since its line before.
struct Line<'a> {
    source: &'a str,
    pool: &'a PoolStatus,
    before: Totals,
    seconds: f64,
    since_ms: u64,
}

impl Line<'_> {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Self { pool, before, .. } = self;
        let name = name(pool);
        write!(text, "source={}", self.source)?;
        let servers = &pool.servers;
        for (what, count) in [
            ("waiting", pool.queue.length),
            ("waiting.max", self.waiting_max()),
            ("active", servers.active),
            ("idle_in_transaction", servers.idle_in_transaction),
            ("pinned", servers.pinned),
            ("idle", servers.idle),
            ("opening", servers.opening),
            ("limit", pool.limit),
            ("limit.configured", pool.limit_configured),
            ("clients", self.clients()),
        ] {
            write!(text, " sample#{name}.{what}={count}")?;
        }
        write!(text, " sample#{name}.saturated={:.3}", self.saturated())?;
        if let Some(seconds) = pool.exhaustion_seconds {
            write!(text, " sample#{name}.exhaustion={seconds:.0}s")?;
        }
        for plan in &pool.plan {
            let name = format!("{name}.plan.{}", plan.scope);
            write!(text, " sample#{name}={} sample#{name}.limit={}", plan.used, plan.limit)?;
        }
        write!(text, " sample#{name}.wait.oldest={:.3}ms", pool.queue.oldest_wait_ms)?;
        if let Some(wait_ms) = self.mean_wait_ms() {
            write!(text, " measure#{name}.wait={wait_ms:.3}ms")?;
        }
        let totals = &pool.totals;
        for (what, now, before) in [
            ("checkouts", totals.checkouts, before.checkouts),
            ("waits", totals.waits, before.waits),
            ("rejections", totals.rejections, before.rejections),
            ("transactions", totals.transactions, before.transactions),
            ("requests", totals.requests, before.requests),
        ] {
            write!(text, " count#{name}.{what}={}", now.saturating_sub(before))?;
        }
        text.push('\n');
        Ok(())
    }

    fn clients(&self) -> usize {
        let clients = &self.pool.clients;
        clients.idle + clients.active + clients.waiting + clients.greeting
    }

    /// Most waiters at once since the line before.
    fn waiting_max(&self) -> usize {
        let samples = self.pool.history.iter().filter(|sample| sample.at_ms > self.since_ms);
        samples.map(|sample| sample.queue_max).max().unwrap_or(0).max(self.pool.queue.length)
    }

    /// The part of the time since the line before during which somebody waited and no connection could be had.
    fn saturated(&self) -> f64 {
        let more = self.pool.totals.saturated_seconds - self.before.saturated_seconds;
        if self.seconds > 0.0 { (more / self.seconds).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// What a checkout waited on average, those that didn't have to included; waits that still last count, too. Nothing
    /// where nobody asked: nought would pull down the averages of whoever reads it.
    fn mean_wait_ms(&self) -> Option<f64> {
        let totals = &self.pool.totals;
        let ended = totals.checkouts.saturating_sub(self.before.checkouts)
            + totals.rejections.saturating_sub(self.before.rejections);
        let asked = ended + u64::try_from(self.pool.queue.length).unwrap_or(u64::MAX);
        let waited = (totals.waiting_seconds - self.before.waiting_seconds).max(0.0);
        let asked = f64::from(u32::try_from(asked).unwrap_or(u32::MAX));
        (asked > 0.0).then(|| 1e3 * waited / asked)
    }
}

/// `tidegate.pg`, and the pool's own name if it is not the one that everybody has.
fn name(pool: &PoolStatus) -> String {
    let protocol = if pool.protocol == "postgres" { "pg" } else { pool.protocol.as_str() };
    if PLAIN.contains(&pool.name.as_str()) {
        return format!("tidegate.{protocol}");
    }
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let own: String = pool.name.chars().map(word).collect();
    format!("tidegate.{protocol}.{own}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{
        ClientStatus, PlanLimit, QueueStatus, Sample, ServerCounts, Status, Watch,
    };
    use std::sync::{Arc, Mutex};

    struct Stage(Mutex<Status>);

    impl Watch for Stage {
        fn status(&self) -> Status {
            self.0.lock().unwrap().clone()
        }

        fn clients(&self) -> Vec<ClientStatus> {
            Vec::new()
        }
    }

    fn pool(name: &str) -> PoolStatus {
        PoolStatus {
            protocol: "postgres".to_owned(),
            name: name.to_owned(),
            limit: 5,
            limit_configured: 5,
            servers: ServerCounts { active: 5, ..ServerCounts::default() },
            queue: QueueStatus { length: 3, oldest_wait_ms: 12.5, ..QueueStatus::default() },
            ..PoolStatus::default()
        }
    }

    fn lines(pools: Vec<PoolStatus>) -> (Arc<Stage>, Lines) {
        let status = Status { at_ms: 1_000, pools, ..Status::default() };
        let stage = Arc::new(Stage(Mutex::new(status)));
        let watcher: Watcher = Arc::clone(&stage) as Watcher;
        (stage, Lines::new("web.1".to_owned(), watcher))
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_the_form_that_is_read() {
        let (_stage, mut lines) = lines(vec![pool("DATABASE_URL")]);
        let text = lines.text();
        let start = "source=web.1 sample#tidegate.pg.waiting=3 sample#tidegate.pg.waiting.max=3 \
                     sample#tidegate.pg.active=5 ";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains(" sample#tidegate.pg.wait.oldest=12.500ms "), "{text}");
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap();
            let known = ["sample#tidegate.", "measure#tidegate.", "count#tidegate.", "source"];
            assert!(known.iter().any(|known| name.starts_with(known)), "{word}");
            assert!(!value.is_empty(), "{word}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn counts_and_times_are_those_since_the_line_before() {
        let (stage, mut lines) = lines(vec![pool("DATABASE_URL")]);
        stage.0.lock().unwrap().pools[0].totals.checkouts = 100;
        stage.0.lock().unwrap().pools[0].queue.length = 0;
        assert!(lines.text().contains(" measure#"));
        assert!(!lines.text().contains(" measure#"), "nobody asked");
        lines.text();
        tokio::time::advance(Duration::from_secs(10)).await;
        {
            let mut status = stage.0.lock().unwrap();
            status.at_ms = 11_000;
            let pool = &mut status.pools[0];
            pool.queue.length = 0;
            pool.totals.checkouts = 104;
            pool.totals.waiting_seconds = 0.2;
            pool.totals.saturated_seconds = 2.5;
            for (at_ms, queue_max) in [(900, 99), (6_000, 7), (11_000, 2)] {
                pool.history.push(Sample { at_ms, queue_max, ..Sample::default() });
            }
            pool.exhaustion_seconds = Some(90.0);
            pool.plan = vec![PlanLimit { scope: "role".to_owned(), used: 18, limit: 20 }];
        }
        let text = lines.text();
        for word in [
            "count#tidegate.pg.checkouts=4",
            "measure#tidegate.pg.wait=50.000ms",
            "sample#tidegate.pg.saturated=0.250",
            "sample#tidegate.pg.waiting.max=7",
            "sample#tidegate.pg.exhaustion=90s",
            "sample#tidegate.pg.plan.role=18",
            "sample#tidegate.pg.plan.role.limit=20",
        ] {
            assert!(text.contains(&format!(" {word}")), "{word}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pools_are_told_apart_and_the_busiest_come_first() {
        let mut pools: Vec<PoolStatus> = (0..100).map(|one| pool(&format!("db/u{one}"))).collect();
        pools[77].queue.length = 50;
        let redis = PoolStatus { protocol: "redis".to_owned(), ..pool("REDIS_URL") };
        pools.push(redis);
        let (stage, mut lines) = lines(pools);
        let text = lines.text();
        assert_eq!(text.lines().count(), LINES);
        assert!(text.starts_with("source=web.1 sample#tidegate.pg.db_u77.waiting=50 "), "{text}");
        stage.0.lock().unwrap().pools.drain(..100);
        let text = lines.text();
        assert!(text.starts_with("source=web.1 sample#tidegate.redis.waiting=3 "), "{text}");
    }
}
