//! The end of a session: when all is said, when a drain finds it idle, and at the end of that, when what is owed can't be finished and
//! the client is told so.

use std::sync::atomic::Ordering;
use std::task::Context;

use super::{Closing, End, Moved, Session, State, Unread};
use crate::redis::greeting::write_error;
use crate::redis::mailbox::Tail;

const UNANSWERED: &str = "ERR tidegate: shutting down before this command was answered; \
     it may or may not have been applied";
const NOT_RUN: &str =
    "ERR tidegate: shutting down; this command was not run, send it again over a new connection";
const NO_TRANSACTION: &str =
    "ERR tidegate: shutting down; the transaction was not run, send it again over a new connection";

impl Session {
    /// The session closes when everything owed is written.
    pub(super) fn leave(&mut self, cx: &mut Context<'_>, moved: Moved) -> Result<Moved, End> {
        // With TLS what was taken may still be on its way.
        if self.stream.poll_flushed(cx).is_pending() {
            return Ok(moved);
        }
        if self.out.bytes.is_empty() && self.mailbox.is_quiet() {
            return Err(End("closed"));
        }
        Ok(moved)
    }

    /// The ends of login, of patience and of all: a drain sends those away who have nothing under way.
    pub(super) fn watch_clock(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.watch_login(cx)?;
        self.watch_reading(cx)?;
        if self.guard.poll_started(cx).is_ready() {
            if self.guard.poll_over(cx).is_ready() {
                self.give_up();
                cx.waker().wake_by_ref();
            }
            let idle = match &self.state {
                // The drain has begun behind the last look: the next one reads.
                State::Shared if self.unread == Unread::Perhaps => {
                    if self.held.is_none() {
                        cx.waker().wake_by_ref();
                    }
                    false
                }
                State::Shared => {
                    let at_work = self.gate.as_ref().is_some_and(|gate| gate.runs_errand());
                    let quiet = self.inbox.is_empty() && self.mailbox.is_quiet();
                    quiet && self.queue.is_none() && !at_work
                }
                State::Waiting(_) | State::Parked(_) => false,
                State::Pinned(pinned, _) => pinned.is_endless() || pinned.only_listens(),
            };
            if idle && self.out.bytes.is_empty() {
                return Err(End("drain"));
            }
        }
        Ok(())
    }

    /// Gives up what is owed: one error says so where a reply is due, or will be asked for, and the connection is closed.
    pub(super) fn give_up(&mut self) {
        if self.closing == Closing::AfterReplies {
            return;
        }
        let before = self.out.bytes.len();
        let (tail, owed) = self.mailbox.give_up(&mut self.out.bytes);
        self.out.counted += self.out.bytes.len() - before;
        let asked = !self.inbox.is_empty();
        let queue = self.queue.take();
        let words = match std::mem::replace(&mut self.state, State::Shared) {
            State::Shared if tail == Tail::Partial => None,
            State::Shared if owed > 0 => Some(UNANSWERED),
            State::Shared if queue.is_some() => Some(NO_TRANSACTION),
            State::Shared => asked.then_some(NOT_RUN),
            State::Waiting(_) => {
                self.upstream.waiting.fetch_sub(1, Ordering::Relaxed);
                Some(NOT_RUN)
            }
            State::Parked(_) if owed > 0 => Some(UNANSWERED),
            State::Parked(_) => Some(NOT_RUN),
            State::Pinned(pinned, _) => {
                let words = match pinned.unanswered() {
                    None => None,
                    Some(_) if pinned.is_in_transaction() => Some(NO_TRANSACTION),
                    Some(0) => asked.then_some(NOT_RUN),
                    Some(_) => Some(UNANSWERED),
                };
                pinned.abandon("drain");
                words
            }
        };
        if let Some(words) = words {
            write_error(words, &mut self.out.bytes);
        }
        self.inbox = Vec::new();
        self.closing = Closing::AfterReplies;
    }
}
