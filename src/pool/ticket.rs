//! A place in the queue, and the slot through which a connection is handed to it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::metrics::{Lent, Outcome, Reason};

use super::{CheckoutError, CheckoutErrorKind, Connect, Lease, Object, Pool};

/// A place in a pool's queue. Dropping it leaves the queue, and passes on a connection that was already handed to it.
pub struct Ticket<C: Connect> {
    slot: Arc<Slot<C>>,
}

/// Shared by a ticket and the pool's queue.
pub(super) struct Slot<C: Connect> {
    pub(super) pool: Arc<Pool<C>>,
    /// Position in the queue: ascending.
    pub(super) number: u64,
    pub(super) since: Instant,
    /// The same by the budget's clock.
    pub(super) stamp: u64,
    /// And by the metrics'.
    since_ns: u64,
    place: Mutex<Place<C>>,
}

enum Place<C: Connect> {
    /// Left by the pool with a connection or an error, or by the ticket.
    Waiting(Option<Waker>),
    Granted(Box<Object<C>>),
    Failed(Box<CheckoutError>),
    /// The ticket has taken its answer or is gone.
    Over,
}

impl<C: Connect> Slot<C> {
    pub(super) fn new(pool: Arc<Pool<C>>, number: u64) -> Self {
        let place = Mutex::new(Place::Waiting(None));
        let since = Instant::now();
        let metrics = pool.metrics();
        metrics.checkout_waits.inc();
        let (stamp, since_ns) = (pool.account.budget().stamp(since), metrics.times.at_ns(since));
        metrics.times.wait_began(since_ns);
        Self { pool, number, since, stamp, since_ns, place }
    }

    /// Hands a connection over; the waker is to be called after the pool is unlocked.
    ///
    /// # Errors
    /// Gives it back if the ticket waits no more.
    pub(super) fn grant(&self, object: Box<Object<C>>) -> Result<Option<Waker>, Box<Object<C>>> {
        let mut place = self.place();
        match &mut *place {
            Place::Waiting(waker) => {
                let waker = waker.take();
                *place = Place::Granted(object);
                Ok(waker)
            }
            _ => Err(object),
        }
    }

    /// Ends the wait with an error; the waker is to be called after the pool is unlocked.
    pub(super) fn fail(&self, error: CheckoutError) -> Option<Waker> {
        let mut place = self.place();
        match &mut *place {
            Place::Waiting(waker) => {
                let waker = waker.take();
                *place = Place::Failed(Box::new(error));
                waker
            }
            _ => None,
        }
    }

    fn place(&self) -> MutexGuard<'_, Place<C>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the end of the wait; the moment, by the metrics' clock.
    fn wait_ended(&self, outcome: Outcome) -> u64 {
        let times = &self.pool.metrics().times;
        let now_ns = times.now_ns();
        times.wait_ended(self.since_ns, now_ns, outcome);
        now_ns
    }
}

impl<C: Connect> Ticket<C> {
    pub(super) fn new(slot: Arc<Slot<C>>) -> Self {
        Self { slot }
    }

    /// Polls for the lease; the task of the latest call is woken when it is there, and no other. Bounded by the pool's
    /// wait. After it was ready once it is always [`CheckoutErrorKind::Closed`].
    pub fn poll_lease(&mut self, cx: &mut Context<'_>) -> Poll<Result<Lease<C>, CheckoutError>> {
        let mut place = self.slot.place();
        if let Place::Waiting(waker) = &mut *place {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let answer = std::mem::replace(&mut *place, Place::Over);
        drop(place);
        let pool = &self.slot.pool;
        match answer {
            Place::Granted(object) => {
                let now_ns = self.slot.wait_ended(Outcome::Ok);
                pool.metrics().checkouts.inc();
                Poll::Ready(Ok(Lease::new(object, Arc::clone(pool), now_ns, Lent::Otherwise)))
            }
            Place::Failed(error) => {
                self.slot.wait_ended(error.kind.outcome());
                let reason = error.kind.reason();
                pool.metrics().reject(reason);
                if reason != Reason::Shutdown {
                    let message = format!("{}. {}", error.what(), error.figures());
                    pool.metrics().note(reason.as_str(), message, error.advice().to_owned());
                }
                Poll::Ready(Err(*error))
            }
            Place::Waiting(_) | Place::Over => {
                Poll::Ready(Err(pool.checkout_error(CheckoutErrorKind::Closed, self.slot.since, 0)))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        matches!(&*self.slot.place(), Place::Waiting(_))
    }

    /// Waits for the lease. Cancel safe: see [`Ticket`].
    ///
    /// # Errors
    /// See [`CheckoutErrorKind`].
    pub async fn lease(mut self) -> Result<Lease<C>, CheckoutError> {
        std::future::poll_fn(|cx| self.poll_lease(cx)).await
    }
}

impl<C: Connect> Drop for Ticket<C> {
    fn drop(&mut self) {
        if matches!(&*self.slot.place(), Place::Over) {
            return;
        }
        // Once out of the queue nothing more is handed to it.
        self.slot.pool.leave_queue(self.slot.number);
        let answer = std::mem::replace(&mut *self.slot.place(), Place::Over);
        let now_ns = self.slot.wait_ended(Outcome::Gone);
        if let Place::Granted(object) = answer {
            // Nobody has used it, so it is as clean as it came.
            let pool = Arc::clone(&self.slot.pool);
            Lease::new(object, pool, now_ns, Lent::Otherwise).give_back();
        }
    }
}

impl<C: Connect> fmt::Debug for Ticket<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("number", &self.slot.number).finish_non_exhaustive()
    }
}
