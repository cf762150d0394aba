//! Opening connections: one task each, with the permit in its hands, and a back-off when it fails.

use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::time::timeout;

use super::budget::Permit;
use super::holder::{Era, Held, Term};
use super::queue::{Opening, State};
use super::{Connect, ConnectError, Fault, Pool};

/// First and longest pause after a failure that may pass by itself.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// The same after the server has rejected us: somebody must change something first, and some servers lock an account
/// after many attempts.
const REJECTED_FIRST: Duration = Duration::from_secs(5);
const REJECTED_LONGEST: Duration = Duration::from_secs(60);
/// By how many per cent a pause is cut at random, so that many processes don't come back at once.
const RETRY_JITTER_PERCENT: u32 = 25;

/// Why a connection is opened.
pub(super) enum Cause {
    /// Somebody waits for one.
    Waiter,
    /// The latest attempt failed and nobody has tried since.
    Doubt,
    /// Fewer lie idle than are to be kept ready.
    Warmth,
    /// All are to be replaced once one is there.
    Era,
}

/// One attempt; dropping it unfinished counts as a failure.
struct Opener<C: Connect> {
    pool: Arc<Pool<C>>,
    permit: Option<Permit>,
    era: Era,
}

impl<C: Connect> Opener<C> {
    async fn run(mut self) {
        let limit = self.pool.settings.connect_timeout();
        let attempt = timeout(limit, self.pool.connect.connect()).await;
        let outcome = attempt.unwrap_or_else(|_| {
            Err(ConnectError {
                fault: Fault::Unreachable,
                code: "timeout".to_owned(),
                message: format!("not connected and logged in within {} ms", limit.as_millis()),
            })
        });
        let Some(permit) = self.permit.take() else { return };
        match outcome {
            Ok(backend) => self.pool.opened(backend, permit, self.era.clone()),
            Err(error) => self.pool.failed_to_open(error, permit, &self.era),
        }
    }
}

impl<C: Connect> Drop for Opener<C> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let error = ConnectError {
                fault: Fault::Unreachable,
                code: "abandoned".to_owned(),
                message: "the attempt to connect was abandoned".to_owned(),
            };
            self.pool.failed_to_open(error, permit, &self.era);
        }
    }
}

impl<C: Connect> Pool<C> {
    /// Starts an attempt if it is still wanted. Called with the members' lock held, or with no lock.
    pub(super) fn start_opener(
        self: &Arc<Self>,
        permit: Permit,
        cause: Cause,
    ) -> Result<(), Permit> {
        let mut state = self.lock();
        let open = state.keeps_idle() && state.gate.is_open();
        let wanted = match cause {
            Cause::Waiter => state.demand().is_some(),
            Cause::Doubt => state.is_forgotten() && open,
            Cause::Warmth => state.opening == Opening::Free && open,
            Cause::Era => state.gate.awaits_era() && open,
        };
        // There is a runtime if there ever was a waiter.
        let Some(runtime) = state.runtime.clone().filter(|_| wanted) else {
            self.publish(&mut state);
            return Err(permit);
        };
        state.openers += 1;
        self.metrics.servers_opening.inc();
        self.publish(&mut state);
        let era = state.gate.era().clone();
        drop(state);
        runtime.spawn(Opener { pool: Arc::clone(self), permit: Some(permit), era }.run());
        Ok(())
    }

    fn opened(&self, backend: C::Backend, permit: Permit, era: Era) {
        let age_ms = self.age_ms_now();
        let term = Term {
            expires_ms: age_ms.saturating_add(self.limit_ms(self.settings.lifetime())),
            idle_limit_ms: self.limit_ms(self.settings.idle()),
            idle_since_ms: age_ms,
        };
        self.account.opened_now();
        self.account.budget().opened();
        let loan = self.metrics.times.open_account();
        let newest = era.clone();
        let held = Box::new(Held { backend, permit, pin: None, loan, term, era });
        let object = {
            let mut state = self.lock();
            state.openers -= 1;
            self.metrics.servers_opening.dec();
            if state.failure().is_some() {
                tracing::info!(pool = self.settings.name, "the server accepts connections again");
            }
            state.attempt_succeeded();
            self.era_opened(&mut state, &newest);
            drop(newest);
            self.adopt(held)
        };
        match object {
            Some(object) if self.account.budget().is_overdrawn() => self.discard(*object, "budget"),
            Some(object) => self.pass_on(object),
            None => {}
        }
        self.publish(&mut self.lock());
        self.account.budget().settle();
    }

    fn failed_to_open(self: &Arc<Self>, error: ConnectError, permit: Permit, era: &Era) {
        drop(permit);
        self.metrics.connect_error(&error.code);
        if error.code == "timeout" {
            self.metrics.timed_out("connect");
        }
        if error.fault == Fault::Refused {
            self.metrics.server_refusals.inc();
            self.account.budget().refused(&error.to_string());
        }
        let wakers = {
            let mut state = self.lock();
            state.openers -= 1;
            self.metrics.servers_opening.dec();
            if state.gate.is_newest(era) {
                self.hold_off(&mut state, error);
            }
            match self.rejection(&state) {
                Some(kind) => self.fail_waiters(&mut state, &kind),
                None => {
                    self.publish(&mut state);
                    Vec::new()
                }
            }
        };
        wakers.into_iter().for_each(Waker::wake);
        self.account.budget().settle();
    }

    /// Nothing is opened for a while. Under the lock.
    fn hold_off(self: &Arc<Self>, state: &mut State<C>, error: ConnectError) {
        if state.opening != Opening::HoldOff {
            state.opening = Opening::HoldOff;
            state.hold_off += 1;
            state.failures = state.failures.saturating_add(1);
            let pause = pause(error.fault, state.failures);
            self.report(&error, pause);
            if let Some(runtime) = &state.runtime {
                runtime.spawn(end_hold_off(Arc::downgrade(self), state.hold_off, pause));
            }
        }
        state.attempt_failed(error);
    }

    /// Ends a hold-off now: somebody has changed something, or wants to see whether somebody has.
    pub fn retry(&self) {
        {
            let mut state = self.lock();
            state.forget_failure();
            self.publish(&mut state);
        }
        self.account.budget().settle();
    }

    /// Others have closed connections to the server: what it refused before it may give now.
    pub fn room_made(&self) {
        let budget = self.account.budget();
        budget.set_limit(budget.configured());
        self.retry();
    }

    /// Once per hold-off, however many attempts fail and waiters hear of it.
    fn report(&self, error: &ConnectError, pause: Duration) {
        let ConnectError { fault, code, message } = error;
        let advice = match fault {
            Fault::Unreachable => {
                "check that the server runs and that the host and port of its URL are right"
            }
            Fault::Refused => "close other connections to the server, or lower the pool size",
            Fault::Rejected => "check the user, password and database of its URL",
        };
        let retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let pool = &self.settings.name;
        tracing::warn!(pool, code, message, retry_ms, advice, "cannot open a server connection");
    }

    fn hold_off_over(&self, number: u64) {
        {
            let mut state = self.lock();
            if state.hold_off != number || state.opening != Opening::HoldOff {
                return;
            }
            state.opening = if state.failures == 0 { Opening::Free } else { Opening::Probe };
            self.publish(&mut state);
        }
        self.account.budget().settle();
    }

    /// A limit on a connection's life, cut by chance; zero means none.
    fn limit_ms(&self, limit: Duration) -> u64 {
        if limit.is_zero() {
            return u64::MAX;
        }
        let limit = cut_at_random(limit, self.settings.jitter_percent);
        u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
    }
}

async fn end_hold_off<C: Connect>(pool: Weak<Pool<C>>, number: u64, pause: Duration) {
    tokio::time::sleep(pause).await;
    if let Some(pool) = pool.upgrade() {
        pool.hold_off_over(number);
    }
}

/// How long nothing is opened after the `failures`th failure in a row.
fn pause(fault: Fault, failures: u32) -> Duration {
    let (first, longest) = match fault {
        Fault::Unreachable | Fault::Refused => (RETRY_FIRST, RETRY_LONGEST),
        Fault::Rejected => (REJECTED_FIRST, REJECTED_LONGEST),
    };
    let doublings = failures.saturating_sub(1).min(16);
    cut_at_random(first.saturating_mul(1 << doublings).min(longest), RETRY_JITTER_PERCENT)
}

/// `whole`, less a random part of at most `percent` of it.
fn cut_at_random(whole: Duration, percent: u32) -> Duration {
    // Without randomness there is no jitter, which is no reason to fail.
    let permille = u32::try_from(getrandom::u64().unwrap_or(0) % 1001).unwrap_or(0);
    let most = whole / 100 * percent.min(100);
    whole.saturating_sub(most / 1000 * permille)
}
