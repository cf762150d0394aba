//! When the metrics are sent by remote write, and what becomes of an answer.
//!
//! Nothing is kept of what could not be sent: the counters say at the next time what they would have said, so memory is
//! bounded by one set of samples, and what takes them is not flooded when it comes back.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use tokio::time::Instant;

use crate::config::{PushSettings, RemoteWrite};
use crate::lifecycle::Drain;
use crate::metrics::{Metrics, PushMetrics, Reader, Sent, now_ms};
use crate::net::{Tls, TlsError};

use super::http::{Answer, Endpoint};
use super::samples;

/// The label `job` of all series.
const JOB: &str = "tidegate";
/// Longest time between two attempts, unless somebody asks for more.
const BACK_OFF_MOST: Duration = Duration::from_secs(300);
/// Most that may be asked for.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(3600);
/// Longest time that the process's end waits for the last sending.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Sends them.
pub(super) struct Sender {
    endpoint: Endpoint,
    metrics: Arc<Metrics>,
    counters: PushMetrics,
    source: String,
    timeout: Duration,
    pace: Pace,
    trouble: Trouble,
}

/// How one attempt went.
struct Attempt {
    sent: Sent,
    retry_after: Option<Duration>,
    /// What there is to say about it.
    words: String,
}

impl Sender {
    pub(super) fn new(
        settings: &PushSettings,
        target: &RemoteWrite,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            endpoint: Endpoint::new(target)?,
            metrics: Arc::clone(metrics),
            counters: metrics.push(),
            source: settings.source.clone(),
            timeout: settings.remote_write_timeout,
            pace: Pace::new(settings.remote_write_every, Instant::now()),
            trouble: Trouble::None,
        })
    }

    /// What it goes over, if that is TLS.
    pub(super) fn tls(&self) -> Option<Tls> {
        self.endpoint.tls()
    }

    /// At once, for ever, and a last time when the drain begins: what happened since the last time before it would be lost.
    pub(super) async fn send(mut self, drain: Drain) {
        // The process waits for that.
        let _guard = drain.guard();
        loop {
            tokio::select! {
                () = drain.started() => break,
                () = self.turn() => {}
            }
        }
        let last = self.attempt(LAST_PATIENCE.min(self.timeout));
        tokio::select! {
            () = drain.deadline() => {}
            attempt = last => self.counters.count(attempt.sent),
        }
    }

    /// One attempt, when its time has come.
    async fn turn(&mut self) {
        tokio::time::sleep_until(self.pace.next).await;
        let began = Instant::now();
        let attempt = self.attempt(self.timeout).await;
        self.counters.count(attempt.sent);
        self.pace.ended(&attempt, began, Instant::now());
        self.trouble.tell(&attempt, self.pace.next - began);
    }

    async fn attempt(&self, patience: Duration) -> Attempt {
        let Some(body) = self.body().await else {
            return Attempt::failed(Sent::Refused, "the samples could not be packed".to_owned());
        };
        match tokio::time::timeout(patience, self.endpoint.post(body)).await {
            Ok(Ok(answer)) => Attempt::answered(answer),
            Ok(Err(error)) => Attempt::failed(Sent::Unreachable, error.to_string()),
            Err(_) => {
                let words = format!("no answer within {} ms", patience.as_millis());
                Attempt::failed(Sent::Timeout, words)
            }
        }
    }

    /// Made in a thread of its own: with many pools it takes longer than a session should wait.
    async fn body(&self) -> Option<Bytes> {
        let (metrics, source) = (Arc::clone(&self.metrics), self.source.clone());
        let packed = tokio::task::spawn_blocking(move || {
            let families = metrics.gather(Reader::Push);
            let at_ms = i64::try_from(now_ms()).unwrap_or(i64::MAX);
            samples::packed(&families, at_ms, &[("instance", &source), ("job", JOB)])
        });
        packed.await.ok()?.ok().map(Bytes::from)
    }
}

impl Attempt {
    fn failed(sent: Sent, words: String) -> Self {
        Self { sent, retry_after: None, words }
    }

    /// A redirection is a refusal: what is sent, and the credentials, are for nobody else.
    fn answered(answer: Answer) -> Self {
        let Answer { status, retry_after, words } = answer;
        let sent = match status {
            status if status.is_success() => Sent::Taken,
            StatusCode::TOO_MANY_REQUESTS => Sent::Busy,
            status if status.is_server_error() => Sent::Busy,
            _ => Sent::Refused,
        };
        let colon = if words.is_empty() { "" } else { ": " };
        Self { sent, retry_after, words: format!("{status}{colon}{words}") }
    }
}

/// When the next attempt is.
struct Pace {
    every: Duration,
    next: Instant,
    /// Attempts since the last that was answered for good.
    failures: u32,
}

impl Pace {
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, next: now, failures: 0 }
    }

    fn ended(&mut self, attempt: &Attempt, began: Instant, now: Instant) {
        self.failures = match attempt.sent {
            Sent::Taken | Sent::Refused => 0,
            Sent::Busy | Sent::Unreachable | Sent::Timeout => self.failures.saturating_add(1),
        };
        let doubled = self.every.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        let wait = doubled.min(BACK_OFF_MOST.max(self.every));
        let asked = match attempt.sent {
            Sent::Busy => attempt.retry_after.unwrap_or_default().min(RETRY_AFTER_MOST),
            _ => Duration::ZERO,
        };
        self.next = (began + wait).max(now + asked);
    }
}

/// What was last said in the log: one line for each kind of failure in a row, and one when it is over.
enum Trouble {
    None,
    Told(Sent),
}

impl Trouble {
    fn tell(&mut self, attempt: &Attempt, wait: Duration) {
        let (outcome, wait_ms) = (attempt.words.as_str(), wait.as_millis());
        match (&*self, attempt.sent) {
            (Self::None, Sent::Taken) => return,
            (Self::Told(_), Sent::Taken) => {
                tracing::info!("metrics are sent by remote write again")
            }
            (Self::Told(told), sent) if *told == sent => return,
            (_, Sent::Refused) => tracing::warn!(
                outcome,
                "remote write was refused, and these samples are dropped: look at push.remote_write_url and its credentials"
            ),
            (_, _) => tracing::warn!(
                outcome,
                wait_ms,
                "metrics could not be sent by remote write: sent anew, with longer waits, until somebody takes them"
            ),
        }
        *self = if attempt.sent == Sent::Taken { Self::None } else { Self::Told(attempt.sent) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(sent: Sent, retry_after: Option<u64>) -> Attempt {
        Attempt { sent, retry_after: retry_after.map(Duration::from_secs), words: String::new() }
    }

    #[test]
    fn who_can_not_take_them_is_left_alone_for_longer_and_longer() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(15), start);
        let mut wait = |sent, retry_after| {
            pace.ended(&attempt(sent, retry_after), start, start);
            (pace.next - start).as_secs()
        };
        assert_eq!(wait(Sent::Taken, None), 15);
        let waits: Vec<_> = (0..7).map(|_| wait(Sent::Unreachable, None)).collect();
        assert_eq!(waits, [15, 30, 60, 120, 240, 300, 300]);
        assert_eq!(wait(Sent::Taken, None), 15, "and it is over");
        assert_eq!(wait(Sent::Busy, Some(100)), 100, "what is asked for counts");
        assert_eq!(wait(Sent::Busy, Some(1)), 30, "if it is longer");
        assert_eq!(wait(Sent::Busy, Some(u64::MAX)), 3600, "within bounds");
        assert_eq!(wait(Sent::Refused, Some(100)), 15, "a refusal asks for nothing");
        for _ in 0..100 {
            assert!(wait(Sent::Timeout, None) <= 300);
        }
    }

    #[test]
    fn an_attempt_that_took_long_is_followed_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), start);
        let now = start + Duration::from_secs(4);
        pace.ended(&attempt(Sent::Taken, None), start, now);
        assert_eq!(pace.next, now);
    }

    #[test]
    fn answers_are_told_apart() {
        for (status, sent) in [
            (200, Sent::Taken),
            (204, Sent::Taken),
            (301, Sent::Refused),
            (400, Sent::Refused),
            (401, Sent::Refused),
            (429, Sent::Busy),
            (500, Sent::Busy),
            (503, Sent::Busy),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let answer = Answer { status, retry_after: None, words: String::new() };
            assert_eq!(Attempt::answered(answer).sent, sent, "{status}");
        }
    }
}
