//! A session that waits for a connection of its own; its command stays in the inbox until there is one, or none can be had.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::sync::{AcquireError, OwnedSemaphorePermit};
use tokio::time::Sleep;

use super::{Closing, Moved, Pinned, Session, Slow, State};
use crate::pool::{Checkout, Lease, Ticket};
use crate::redis::backend::{RedisConnect, checkout_error};
use crate::redis::blocking::{Patience, Stations};
use crate::redis::command::Reason;
use crate::redis::greeting::write_error;
use crate::redis::upstream::Place;
use crate::redis::wire::{Progress, RequestScanner};

/// What a session waits for.
pub(in crate::redis) struct Waiting {
    line: Line,
    pub(super) purpose: Purpose,
    /// Runs out when the command has waited as long as it wanted.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    _patience: Option<Patience>,
}

/// Where it stands.
enum Line {
    /// For leave of its namespace, until then.
    ForPlace(Pin<Box<dyn Future<Output = Permit> + Send>>, Pin<Box<Sleep>>),
    /// For a connection.
    ForLease(Ticket<RedisConnect>, Option<Place>),
}

type Permit = Result<OwnedSemaphorePermit, AcquireError>;

/// What the connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::redis) enum Purpose {
    Hold(Reason),
    /// The first connection was lost before the command was sent.
    Again(Reason),
    /// To learn what HELLO must say.
    Facts,
}

impl Purpose {
    fn may_last(self) -> bool {
        matches!(self, Self::Hold(reason) | Self::Again(reason) if reason.may_last())
    }

    /// Whether the client waits for what may be long in coming.
    fn blocks(self) -> bool {
        matches!(
            self,
            Self::Hold(Reason::Blocking | Reason::Wait)
                | Self::Again(Reason::Blocking | Reason::Wait)
        )
    }

    fn is_transaction(self) -> bool {
        matches!(self, Self::Hold(Reason::Transaction) | Self::Again(Reason::Transaction))
    }
}

impl Session {
    /// Waits for a connection.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> Moved {
        let State::Waiting(waiting) = &mut self.state else { return Moved::No };
        let purpose = waiting.purpose;
        if let Some(how) = self.wait.as_ref().and_then(|wait| wait.poll_ended(cx)) {
            return self.end_waiting(how, purpose);
        }
        let State::Waiting(waiting) = &mut self.state else { return Moved::No };
        match &mut waiting.line {
            Line::ForPlace(permit, deadline) => {
                let permit = permit.as_mut().poll(cx);
                if permit.is_pending() && deadline.as_mut().poll(cx).is_pending() {
                    return self.wait_on(cx);
                }
                let timer = waiting.timer.take();
                self.waits_no_more();
                match permit {
                    Poll::Ready(Ok(permit)) => {
                        let place = self.realm().map(|realm| realm.place(Some(permit)));
                        self.check_out(cx, purpose, place);
                        if let State::Waiting(waiting) = &mut self.state {
                            waiting.timer = timer;
                        }
                    }
                    _ => self.refuse_place(purpose),
                }
            }
            Line::ForLease(ticket, place) => {
                let Poll::Ready(result) = ticket.poll_lease(cx) else { return self.wait_on(cx) };
                let place = place.take();
                self.waits_no_more();
                match result {
                    Ok(lease) => self.use_lease(lease, place, purpose),
                    Err(error) => self.refuse_first(&checkout_error(&error), purpose),
                }
            }
        }
        Moved::Yes
    }

    /// It no longer waits for a connection.
    pub(super) fn waits_no_more(&mut self) {
        self.upstream.waiting.fetch_sub(1, Ordering::Relaxed);
        self.state = State::Shared;
        if let Some(wait) = &self.wait {
            wait.rest();
        }
    }

    fn refuse_place(&mut self, purpose: Purpose) {
        let Some(text) = self.realm().map(|realm| realm.refusal_of_place(self.upstream.wait()))
        else {
            return;
        };
        self.refuse_first(&text, purpose);
    }

    /// Answers the command that waits in the inbox with an error.
    pub(super) fn refuse_first(&mut self, text: &str, purpose: Purpose) {
        let mut scanner = RequestScanner::default();
        let whole = match scanner.advance(&self.inbox, self.request_limits()) {
            Ok((used, progress)) if progress != Progress::Partial => Some(used),
            _ => None,
        };
        self.scanner = RequestScanner::default();
        match (whole, purpose) {
            (Some(used), purpose) if !purpose.is_transaction() => {
                self.inbox.drain(..used);
                write_error(text, &mut self.out.bytes);
            }
            // What follows must not run outside the transaction it was meant for, and what was not read whole can't
            // be told from what follows it.
            _ => {
                let text = format!(
                    "{text}; the connection is closed, because the commands that follow would run without it"
                );
                write_error(&text, &mut self.out.bytes);
                self.closing = Closing::AfterReplies;
            }
        }
    }

    /// Takes a connection for itself, now or when one is free.
    pub(super) fn hold(&mut self, cx: &mut Context<'_>, purpose: Purpose) {
        let realm = self.realm().filter(|_| purpose != Purpose::Facts);
        let place = match realm.map(|realm| (realm, realm.places.as_ref())) {
            None => None,
            Some((realm, None)) => Some(realm.place(None)),
            Some((realm, Some(places))) => match Arc::clone(places).try_acquire_owned() {
                Ok(permit) => Some(realm.place(Some(permit))),
                Err(_none_left) => {
                    realm.metrics.waits_pinned.inc();
                    let permit = Box::pin(Arc::clone(places).acquire_owned());
                    let deadline = Box::pin(tokio::time::sleep(self.upstream.wait()));
                    return self.stand_in(cx, Line::ForPlace(permit, deadline), purpose);
                }
            },
        };
        self.check_out(cx, purpose, place);
    }

    fn check_out(&mut self, cx: &mut Context<'_>, purpose: Purpose, place: Option<Place>) {
        match self.upstream.holds().checkout() {
            Checkout::Ready(lease) => {
                self.use_lease(lease, place, purpose);
                // The command is not sent yet.
                cx.waker().wake_by_ref();
            }
            Checkout::Queued(ticket) => {
                self.stand_in(cx, Line::ForLease(ticket, place), purpose);
                self.upstream.nudge_lanes();
            }
        }
    }

    fn stand_in(&mut self, cx: &mut Context<'_>, line: Line, purpose: Purpose) {
        let asks = matches!(line, Line::ForLease(..)) && purpose.may_last();
        let stations = self.upstream.stations.as_ref().filter(|_| asks);
        let _patience = stations.map(Stations::patience);
        let waiting = Waiting { line, purpose, timer: None, _patience };
        self.state = State::Waiting(Box::new(waiting));
        self.upstream.waiting.fetch_add(1, Ordering::Relaxed);
        if purpose.blocks() {
            self.place_to_wait().queue();
        }
        // What it waits for is not polled yet.
        cx.waker().wake_by_ref();
    }

    fn use_lease(&mut self, lease: Lease<RedisConnect>, place: Option<Place>, purpose: Purpose) {
        let (reason, slow) = match purpose {
            Purpose::Facts => return lease.give_back(),
            Purpose::Hold(reason) => (reason, Slow::default()),
            Purpose::Again(reason) => (reason, Slow::again()),
        };
        self.forget_filter();
        let mut pinned = Pinned::new((lease, place), reason, self.key(), self.queue.take());
        pinned.note(self.upstream.clients.hold(self.identity.id, reason.label()));
        if reason == Reason::Tracking {
            pinned.track(self.shown_without());
        }
        self.state = State::Pinned(Box::new(pinned), slow);
    }
}
