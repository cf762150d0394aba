//! A lent connection.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::holder::EraMark;
use super::{Connect, Object, Pool};
use crate::metrics::{Lent, Phase};

/// A lent connection. Whoever holds it decides how it ends: [`Lease::give_back`] if the backend is clean,
/// [`Lease::close`] if not. Dropping it closes the backend, for nobody has said that it is clean.
pub struct Lease<C: Connect> {
    /// Taken only by the functions that consume the lease.
    object: Option<Box<Object<C>>>,
    pool: Arc<Pool<C>>,
}

impl<C: Connect> Lease<C> {
    /// Begins a loan now, by the metrics' clock.
    pub(super) fn new(
        mut object: Box<Object<C>>,
        pool: Arc<Pool<C>>,
        now_ns: u64,
        lent: Lent,
    ) -> Self {
        object.loan.begin(now_ns, lent);
        Self { object: Some(object), pool }
    }

    /// What the client does with the connection from now on: at first, a statement runs. Since when by the metrics'
    /// clock, if that is something else than before.
    pub fn turn(&mut self, phase: Phase) -> Option<u64> {
        let object = self.object.as_mut()?;
        let before = object.loan.phase();
        if phase == before {
            return None;
        }
        let now_ns = self.pool.metrics().times.now_ns();
        object.loan.turn(phase, now_ns);
        if object.pin.is_none() {
            self.pool.metrics().turned(before, phase);
        }
        Some(now_ns)
    }

    /// Since when the client does what it does, by the metrics' clock.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.object.as_ref().map_or(0, |object| object.loan.since_ns())
    }

    /// Ends the loan.
    fn settle(&self, object: &mut Object<C>) {
        let phase = object.loan.phase();
        object.loan.end(self.pool.metrics().times.now_ns());
        if phase != Phase::Query {
            self.pool.metrics().turned(phase, Phase::Query);
        }
    }

    /// Gives the clean backend to the first waiter, or to the idle ones, or closes it if its time is over or another
    /// pool has a better right to it.
    pub fn give_back(mut self) {
        self.unpin();
        if let Some(mut object) = self.object.take() {
            self.settle(&mut object);
            self.pool.take_back(object);
        }
    }

    /// Closes the backend; `reason` is counted, so it must be one of a few fixed words.
    pub fn close(mut self, reason: &'static str) {
        self.end(reason);
    }

    /// Whether its time is over: then it is closed when it is given back. Kept to the second.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.object.as_ref().is_some_and(|object| object.term.ended(self.pool.age_ms()).is_some())
    }

    pub(super) fn era(&self) -> Option<EraMark> {
        self.object.as_ref().map(|object| object.era.mark())
    }

    /// The pool it came from.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool<C>> {
        &self.pool
    }

    /// Counts that the backend stays with its session beyond a transaction; `reason` is one of a few fixed words. A
    /// second reason is not counted.
    pub fn pin(&mut self, reason: &'static str) {
        if let Some(object) = &mut self.object
            && object.pin.replace(reason).is_none()
        {
            self.pool.metrics().pin(reason, object.loan.phase());
        }
    }

    /// Why the backend stays with its session, if it does.
    #[must_use]
    pub fn pinned(&self) -> Option<&'static str> {
        self.object.as_ref().and_then(|object| object.pin)
    }

    /// Ends the pin, if there is one.
    pub fn unpin(&mut self) {
        if let Some(object) = &mut self.object
            && object.pin.take().is_some()
        {
            self.pool.metrics().unpin(object.loan.phase());
        }
    }

    fn end(&mut self, reason: &'static str) {
        self.unpin();
        if let Some(mut object) = self.object.take() {
            self.settle(&mut object);
            self.pool.discard(*object, reason);
        }
    }
}

impl<C: Connect> Drop for Lease<C> {
    fn drop(&mut self) {
        self.end("dropped");
    }
}

impl<C: Connect> Deref for Lease<C> {
    type Target = C::Backend;

    fn deref(&self) -> &C::Backend {
        match &self.object {
            Some(object) => &object.backend,
            None => unreachable!("only what consumes the lease takes its backend"),
        }
    }
}

impl<C: Connect> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut C::Backend {
        match &mut self.object {
            Some(object) => &mut object.backend,
            None => unreachable!("only what consumes the lease takes its backend"),
        }
    }
}

impl<C: Connect> fmt::Debug for Lease<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("pool", &self.pool.settings().name).finish_non_exhaustive()
    }
}
