//! The end of a session at the end of a drain: what is owed can't be finished, and the client is told so.

use std::sync::atomic::Ordering;

use super::{Closing, Session, State};
use crate::redis::greeting::write_error;
use crate::redis::mailbox::Tail;

const UNANSWERED: &str = "ERR tidegate: shutting down before this command was answered; \
     it may or may not have been applied";
const NOT_RUN: &str =
    "ERR tidegate: shutting down; this command was not run, send it again over a new connection";
const NO_TRANSACTION: &str =
    "ERR tidegate: shutting down; the transaction was not run, send it again over a new connection";

impl Session {
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
