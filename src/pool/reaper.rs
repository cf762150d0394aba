//! The reaper: once a second, closes idle connections that are too old or that the server has closed.

use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior};

use super::budget::Member;
use super::holder::Term;
use super::opener::Cause;
use super::{Connect, Pool};

const ROUND: Duration = Duration::from_secs(1);

impl<C: Connect> Pool<C> {
    /// Looks after the idle connections, once a second, until the pool is closed or dropped. To be spawned once; without
    /// it lifetime and idle limits are not kept.
    pub fn run_reaper(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<C> {
        let (pool, closing): (Weak<Self>, _) = (Arc::downgrade(self), Arc::clone(&self.closing));
        async move {
            let mut rounds = tokio::time::interval(ROUND);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = closing.notified() => return,
                    _ = rounds.tick() => {}
                }
                let Some(pool) = pool.upgrade() else { return };
                pool.reap();
            }
        }
    }

    fn reap(self: &Arc<Self>) {
        let age_ms = self.age_ms_now();
        self.age_ms.store(age_ms, Relaxed);
        let (expired, forgotten) = {
            let state = self.lock();
            let mut spare = self.account.idle().saturating_sub(self.settings.idle_min());
            // The idle limit is for those beyond what is to be kept ready.
            let mut stays = |term: &Term| {
                let aged = term.ended(age_ms).is_some();
                let goes = aged || (spare > 0 && term.ended_idle(age_ms).is_some());
                spare -= usize::from(goes && spare > 0);
                !goes
            };
            let expired = self.connections.retain(|held, _| stays(&held.term)).removed;
            for held in &expired {
                self.count_closed(1, held.term.ended_idle(age_ms).unwrap_or("idle"));
            }
            self.poll_idle_ones();
            (expired, state.is_forgotten())
        };
        drop(expired);
        // One may have been given back while the limit was being lowered.
        while self.account.budget().is_overdrawn()
            && let Some(permit) = self.evict_idle()
        {
            drop(permit);
        }
        if forgotten && let Some(permit) = self.account.reserve() {
            drop(self.start_opener(permit, Cause::Doubt));
        }
        self.try_era();
        self.keep_warm();
        self.account.budget().review();
        // The permits of those closed, and a net under everything: nobody waits longer than a round for a free permit.
        self.account.budget().settle();
    }

    /// Opens what is missing of the connections to be kept ready.
    fn keep_warm(self: &Arc<Self>) {
        let missing = {
            let mut state = self.lock();
            if state.runtime.is_none() {
                state.runtime = Handle::try_current().ok();
            }
            let ready = self.account.idle() + state.openers;
            self.settings.idle_min().saturating_sub(ready)
        };
        for _ in 0..missing {
            let Some(permit) = self.account.reserve() else { return };
            drop(self.start_opener(permit, Cause::Warmth));
        }
    }

    /// Takes each idle connection out and puts it back, in the same order: deadpool's recycle drops the dead ones. Under
    /// the lock, so nobody sees them missing.
    fn poll_idle_ones(&self) {
        let mut alive = Vec::with_capacity(self.account.idle());
        while let Some(object) = self.take_idle() {
            alive.push((object.term.idle_since_ms, object));
        }
        while let Some((idle_since_ms, object)) = alive.pop() {
            self.put_idle_since(object, idle_since_ms);
        }
    }

    /// The pool's age by the clock.
    pub(super) fn age_ms_now(&self) -> u64 {
        let age = Instant::now().saturating_duration_since(self.born);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }
}
