//! The queue in front of the connections: strict FIFO, bounded, one deadline timer for all waiters.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::NOBODY;
use super::gate::Gate;
use super::ticket::Slot;
use super::{
    CheckoutError, CheckoutErrorKind, Connect, ConnectError, Fault, Object, Pool, Reachability,
    Ticket,
};

/// What a pool's lock guards.
pub(super) struct State<C: Connect> {
    phase: Phase,
    pub(super) gate: Gate,
    queue: VecDeque<Arc<Slot<C>>>,
    next_number: u64,
    /// Openers under way.
    pub(super) openers: usize,
    pub(super) opening: Opening,
    outlook: Outlook,
    /// Attempts that failed since one succeeded.
    pub(super) failures: u32,
    /// The number of the latest hold-off: one that was ended early must not end the next.
    pub(super) hold_off: u64,
    timer: Timer,
    shortage: Shortage,
    /// Waiters that the metrics know of.
    counted: usize,
    /// The runtime of the first waiter: leases may be dropped outside of it.
    pub(super) runtime: Option<Handle>,
}

#[derive(PartialEq, Eq)]
enum Phase {
    /// Left by [`Pool::keep_none_idle`] and [`Pool::close`].
    Open,
    /// It lends as before, and no connection lies idle. Left by [`Pool::close`].
    Leaving,
    Closed,
}

/// How many connections may be opened at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// As many as there are waiters. Left by a failure.
    Free,
    /// None: an attempt failed just now. Left when the back-off has passed.
    HoldOff,
    /// One: to see whether it works again. Left by its success or failure.
    Probe,
}

/// What the latest attempt showed.
enum Outlook {
    NotTried,
    Reachable,
    Failing(ConnectError),
}

/// The task that ends waits at their deadline.
#[derive(PartialEq, Eq)]
enum Timer {
    Off,
    Running,
}

/// Whether somebody waits for whom there is no connection: left and entered when the queue or the openers change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shortage {
    No,
    Yes,
}

impl<C: Connect> Default for State<C> {
    fn default() -> Self {
        Self {
            phase: Phase::Open,
            gate: Gate::default(),
            queue: VecDeque::new(),
            next_number: 0,
            openers: 0,
            opening: Opening::Free,
            outlook: Outlook::NotTried,
            failures: 0,
            hold_off: 0,
            timer: Timer::Off,
            shortage: Shortage::No,
            counted: 0,
            runtime: None,
        }
    }
}

impl<C: Connect> State<C> {
    pub(super) fn may_take_idle(&self) -> bool {
        !self.is_closed() && self.gate.is_open() && self.queue.is_empty()
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn waiters(&self) -> usize {
        self.queue.len()
    }

    /// How long the first has waited.
    pub(super) fn oldest_wait(&self) -> Duration {
        self.queue.front().map_or(Duration::ZERO, |slot| slot.since.elapsed())
    }

    /// More wait than connections are being opened, though the server is there: they are exhausted.
    fn shortage(&self) -> Shortage {
        let away = self.failure().is_some_and(|error| error.fault != Fault::Refused);
        let short = self.queue.len() > self.openers && !away && self.gate.is_open();
        if short { Shortage::Yes } else { Shortage::No }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether a connection that nobody waits for is kept.
    pub(super) fn keeps_idle(&self) -> bool {
        self.phase == Phase::Open
    }

    pub(super) fn leave(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Leaving;
        }
    }

    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    pub(super) fn reachability(&self) -> Reachability {
        match &self.outlook {
            Outlook::NotTried => Reachability::NotTried,
            Outlook::Reachable => Reachability::Reachable,
            Outlook::Failing(ConnectError { code, message, .. }) => {
                Reachability::Failing { code: code.clone(), message: message.clone() }
            }
        }
    }

    pub(super) fn failure(&self) -> Option<&ConnectError> {
        match &self.outlook {
            Outlook::Failing(error) => Some(error),
            Outlook::NotTried | Outlook::Reachable => None,
        }
    }

    pub(super) fn attempt_failed(&mut self, error: ConnectError) {
        self.outlook = Outlook::Failing(error);
    }

    pub(super) fn attempt_succeeded(&mut self) {
        self.outlook = Outlook::Reachable;
        self.failures = 0;
        if self.opening == Opening::Probe {
            self.opening = Opening::Free;
        }
    }

    /// As if nothing had been tried yet, if the latest attempt failed. One is tried, and more when it has worked.
    pub(super) fn forget_failure(&mut self) {
        if self.failure().is_some() {
            self.outlook = Outlook::NotTried;
            self.opening = Opening::Probe;
        }
        self.failures = 0;
    }

    /// Hands a connection to the first waiter.
    ///
    /// # Errors
    /// Gives it back if nobody waits.
    pub(super) fn grant_first(
        &mut self,
        mut object: Box<Object<C>>,
    ) -> Result<Option<Waker>, Box<Object<C>>> {
        while let Some(slot) = self.queue.pop_front() {
            match slot.grant(object) {
                Ok(waker) => return Ok(waker),
                Err(back) => object = back,
            }
        }
        Err(object)
    }

    /// The oldest waiter for whom a connection should be opened now.
    pub(super) fn demand(&self) -> Option<&Slot<C>> {
        let at_once = match self.opening {
            Opening::Free => usize::MAX,
            Opening::Probe => 1,
            Opening::HoldOff => 0,
        };
        if self.is_closed() || !self.gate.is_open() || self.openers >= at_once {
            return None;
        }
        self.queue.get(self.openers).map(|slot| &**slot)
    }

    /// Nobody waits, nothing is tried: the server's state would stay unknown.
    pub(super) fn is_forgotten(&self) -> bool {
        let retry = self.failure().is_some_and(|error| error.fault != Fault::Rejected);
        retry && self.opening == Opening::Probe && self.openers == 0 && self.queue.is_empty()
    }
}

impl<C: Connect> Pool<C> {
    /// Tells the budget and the metrics who waits. Under the lock, after each change of queue, openers or opening.
    pub(super) fn publish(&self, state: &mut State<C>) {
        if state.queue.is_empty() && state.counted == 0 {
            // Nobody waits, and nobody did when this was told last: it is known.
            return;
        }
        // While the gate is shut nobody has a claim to a connection.
        let first = state.queue.front().filter(|_| state.gate.is_open());
        let oldest = first.map_or(NOBODY, |slot| slot.stamp);
        self.account.publish(oldest, state.demand().map_or(NOBODY, |slot| slot.stamp));
        let counted = std::mem::replace(&mut state.counted, state.queue.len());
        self.metrics.queue_changed(counted, state.queue.len());
        let (before, now) = (state.shortage, state.shortage());
        if before != now {
            state.shortage = now;
            let times = &self.metrics.times;
            match now {
                Shortage::Yes => times.saturation_began(times.now_ns()),
                Shortage::No => times.saturation_ended(times.now_ns()),
            }
        }
    }

    /// A ticket at the end of the queue, or one that has failed already. Under the lock.
    pub(super) fn join_queue(self: &Arc<Self>, state: &mut State<C>) -> Ticket<C> {
        let slot = Arc::new(Slot::new(Arc::clone(self), state.next_number));
        // A refused ticket uses up its number too, or by leaving it would take a later waiter along.
        state.next_number += 1;
        if state.runtime.is_none() {
            state.runtime = Handle::try_current().ok();
        }
        if let Some(kind) = self.refusal(state) {
            slot.fail(self.checkout_error(kind, slot.since, state.queue.len()));
            return Ticket::new(slot);
        }
        state.queue.push_back(Arc::clone(&slot));
        self.publish(state);
        self.start_timer(state);
        Ticket::new(slot)
    }

    /// Has the waits end at their deadlines, if somebody waits. Under the lock.
    pub(super) fn start_timer(self: &Arc<Self>, state: &mut State<C>) {
        if state.timer == Timer::Off
            && state.has_waiters()
            && let Some(runtime) = &state.runtime
        {
            state.timer = Timer::Running;
            runtime.spawn(end_waits(Arc::downgrade(self), Arc::clone(&self.rescheduled)));
        }
    }

    /// Why nobody may join the queue now, if so.
    fn refusal(&self, state: &State<C>) -> Option<CheckoutErrorKind> {
        if state.is_closed() || state.runtime.is_none() {
            return Some(CheckoutErrorKind::Closed);
        }
        if state.opening == Opening::HoldOff
            && let Some(kind) = self.rejection(state)
        {
            return Some(kind);
        }
        (state.queue.len() >= self.settings.queue_limit()).then_some(CheckoutErrorKind::QueueFull)
    }

    /// The server's rejection, if no connection is left that could serve a waiter all the same.
    pub(super) fn rejection(&self, state: &State<C>) -> Option<CheckoutErrorKind> {
        let error = state.failure().filter(|error| error.fault == Fault::Rejected)?;
        (self.account.held() <= state.openers).then(|| CheckoutErrorKind::of(error))
    }

    /// Takes a waiter out of the queue, if it is still there.
    pub(super) fn leave_queue(&self, number: u64) {
        let mut state = self.lock();
        if let Ok(index) = state.queue.binary_search_by_key(&number, |slot| slot.number) {
            // The slot may hold the last reference to the pool but for the ticket's own.
            let slot = state.queue.remove(index);
            self.publish(&mut state);
            drop(state);
            drop(slot);
        }
    }

    /// Ends all waits; the wakers are to be called after unlocking.
    pub(super) fn fail_waiters(
        &self,
        state: &mut State<C>,
        kind: &CheckoutErrorKind,
    ) -> Vec<Waker> {
        let length = state.queue.len();
        let queue = std::mem::take(&mut state.queue);
        self.publish(state);
        queue
            .into_iter()
            .filter_map(|slot| slot.fail(self.checkout_error(kind.clone(), slot.since, length)))
            .collect()
    }

    pub(super) fn checkout_error(
        &self,
        kind: CheckoutErrorKind,
        since: Instant,
        queue_length: usize,
    ) -> CheckoutError {
        CheckoutError {
            pool: self.settings.name.clone(),
            kind,
            in_use: self.account.budget().in_use(),
            limit: self.account.budget().limit(),
            queue_length,
            waited: since.elapsed(),
        }
    }

    /// Why a wait ends in vain. A server that is full is nobody's concern while connections to it serve: then there are
    /// so many and no more.
    fn kind_at_deadline(&self, state: &State<C>) -> CheckoutErrorKind {
        let serves = self.serves(state);
        let failure = state.failure().filter(|error| error.fault != Fault::Refused || !serves);
        match failure {
            Some(error) => CheckoutErrorKind::of(error),
            // Nothing is in use: the first attempt lasts longer than the wait.
            None if !serves && state.openers > 0 => CheckoutErrorKind::Unreachable {
                code: "timeout".to_owned(),
                message: "it has not answered yet".to_owned(),
            },
            None => CheckoutErrorKind::TimedOut,
        }
    }

    /// Whether any connection to its server is open, whichever pool's it is.
    pub(super) fn serves(&self, state: &State<C>) -> bool {
        self.account.budget().in_use() > state.openers
    }

    /// The first waiter's.
    fn deadline(&self, state: &State<C>) -> Option<Instant> {
        state.gate.deadline(state.queue.front()?.since, self.settings.wait())
    }

    /// Ends the waits that are over; the next deadline, if anybody still waits.
    fn end_overdue(&self) -> Option<Instant> {
        let mut wakers = Vec::new();
        let next = {
            let mut state = self.lock();
            let now = Instant::now();
            while self.deadline(&state).is_some_and(|deadline| deadline <= now)
                && let Some(slot) = state.queue.pop_front()
            {
                let kind = self.kind_at_deadline(&state);
                let error = self.checkout_error(kind, slot.since, state.queue.len() + 1);
                wakers.extend(slot.fail(error));
            }
            let next = self.deadline(&state);
            if next.is_none() {
                state.timer = Timer::Off;
            }
            self.publish(&mut state);
            next
        };
        wakers.into_iter().for_each(Waker::wake);
        // Whoever waited longest is gone: the next may have a claim now.
        self.account.budget().settle();
        next
    }
}

/// The pool's timer: sleeps from one deadline to the next (all waits are equally long, so the first waiter's is the
/// next one), and ends when nobody waits.
async fn end_waits<C: Connect>(pool: Weak<Pool<C>>, rescheduled: Arc<Notify>) {
    loop {
        let mut rescheduled = pin!(rescheduled.notified());
        // From here on no word is missed.
        rescheduled.as_mut().enable();
        let Some(next) = pool.upgrade().and_then(|pool| pool.end_overdue()) else { return };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = rescheduled => {}
        }
    }
}
