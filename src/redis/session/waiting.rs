//! A session that waits for a connection of its own; its command stays in the inbox until there is one, or none can be had.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::time::Sleep;

use super::{Closing, Moved, Pinned, Session, Slow, State};
use crate::pool::{Checkout, Lease, Ticket};
use crate::redis::backend::RedisConnect;
use crate::redis::blocking::{Patience, Stations};
use crate::redis::command::Reason;
use crate::redis::greeting::write_error;
use crate::redis::wire::{Progress, RequestScanner};

/// What a session waits for.
pub(in crate::redis) struct Waiting {
    ticket: Ticket<RedisConnect>,
    pub(super) purpose: Purpose,
    /// Runs out when the command has waited as long as it wanted.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    _patience: Option<Patience>,
}

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
        let Poll::Ready(result) = waiting.ticket.poll_lease(cx) else { return self.wait_on(cx) };
        self.waits_no_more();
        match (result, purpose) {
            (Ok(lease), Purpose::Facts) => lease.give_back(),
            (Ok(lease), Purpose::Hold(reason)) => self.pin(lease, reason, Slow::default()),
            (Ok(lease), Purpose::Again(reason)) => self.pin(lease, reason, Slow::again()),
            (Err(error), _) => self.refuse_first(&format!("ERR tidegate: {error}"), purpose),
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
        match (self.upstream.holds().checkout(), purpose) {
            (Checkout::Ready(lease), Purpose::Hold(reason)) => {
                self.pin(lease, reason, Slow::default());
            }
            (Checkout::Ready(lease), Purpose::Again(reason)) => {
                self.pin(lease, reason, Slow::again());
            }
            (Checkout::Ready(lease), Purpose::Facts) => lease.give_back(),
            (Checkout::Queued(ticket), purpose) => {
                let stations = self.upstream.stations.as_ref().filter(|_| purpose.may_last());
                let _patience = stations.map(Stations::patience);
                let waiting = Waiting { ticket, purpose, timer: None, _patience };
                self.state = State::Waiting(Box::new(waiting));
                self.upstream.waiting.fetch_add(1, Ordering::Relaxed);
                if purpose.blocks() {
                    self.place_to_wait().queue();
                }
                self.upstream.nudge_lanes();
            }
        }
        // The ticket is not polled yet, or the command not sent.
        cx.waker().wake_by_ref();
    }

    fn pin(&mut self, lease: Lease<RedisConnect>, reason: Reason, slow: Slow) {
        self.forget_filter();
        let pinned = Pinned::new(lease, reason, self.key(), self.queue.take());
        self.state = State::Pinned(Box::new(pinned), slow);
    }
}
