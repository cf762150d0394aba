//! The replies of a backend that one session holds: whose each is, and what it says of the hold.

use std::task::{Context, Poll, ready};

use super::head::{Head, MessageKind};
use super::{Condition, Expect, Hold, Loss, Meaning, Pinned, Settle, broken};
use crate::net::with_read_buffer;
use crate::redis::backend::Key;
use crate::redis::greeting::{Proto, write_error};
use crate::redis::namespace::replies::ReplyFilter;
use crate::redis::transaction::OwnCommand;
use crate::redis::wire::{Reply, ReplyError};

/// Longest answer to our own question about subscriptions.
const CAPTURE_LIMIT: usize = 8 * 1024;

/// Reads what the server tells of keys that have changed.
pub(super) struct Tracking {
    /// Keys are shown without this.
    prefix: Box<[u8]>,
    push: Option<ReplyFilter>,
}

impl Tracking {
    pub(super) fn new(prefix: &[u8]) -> Self {
        Self { prefix: prefix.into(), push: None }
    }

    fn pass(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), ReplyError> {
        let fresh = || ReplyFilter::of_invalidation(&self.prefix);
        let push = self.push.get_or_insert_with(fresh);
        push.advance(piece, out)?;
        if push.is_done() {
            self.push = None;
        }
        Ok(())
    }
}

impl Pinned {
    /// Reads once and appends what is the client's to `out`.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        settle: &mut Settle<'_>,
    ) -> Poll<Result<(), Loss>> {
        with_read_buffer(|buffer| {
            let n = ready!(self.lease.stream.poll_read_into(cx, buffer))
                .map_err(|error| broken(&error))?;
            if n == 0 {
                return Poll::Ready(Err(Loss::Broken("end of stream".into())));
            }
            let received = u64::try_from(n).unwrap_or(0);
            self.lease.pool().metrics().bytes_received_server.inc_by(received);
            Poll::Ready(self.receive(&buffer[..n], out, settle))
        })
    }

    fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        settle: &mut Settle<'_>,
    ) -> Result<(), Loss> {
        if self.hold == Hold::Stream {
            // Only to know where a reply ends; what is no RESP has no end.
            let mut rest = bytes;
            while let (false, Ok((used, _))) = (rest.is_empty(), self.replies.advance(rest)) {
                rest = &rest[used..];
            }
            out.extend_from_slice(bytes);
            return Ok(());
        }
        let mut at = 0;
        while at < bytes.len() {
            let begins = !self.replies.is_inside();
            let (used, reply) = self
                .replies
                .advance(&bytes[at..])
                .map_err(|error| Loss::Broken(error.to_string()))?;
            let piece = &bytes[at..at + used];
            at += used;
            self.head.feed(piece);
            if begins && self.is_of_exec() {
                self.outcome = std::mem::take(&mut self.transaction).into_outcome();
            }
            if self.goes_to_client() {
                self.pass(piece, out, settle)?;
            } else if self.captured.len() < CAPTURE_LIMIT {
                self.captured.extend_from_slice(piece);
            }
            if reply != Reply::Partial {
                self.end_of_frame(out, settle)?;
                self.head = Head::default();
            }
        }
        Ok(())
    }

    /// Gives the client a piece of a reply; in that to EXEC the session's own commands have answers of its own.
    fn pass(
        &mut self,
        piece: &[u8],
        out: &mut Vec<u8>,
        settle: &mut Settle<'_>,
    ) -> Result<(), Loss> {
        if let Some(tracking) = self.tracking.as_mut().filter(|_| self.replies.is_push()) {
            let read = tracking.pass(piece, out);
            return read.map_err(|error| Loss::Broken(error.to_string()));
        }
        let of_exec = self.expects.front() == Some(&Expect::Relay(Meaning::Exec));
        let Some(outcome) = self.outcome.as_mut().filter(|_| of_exec && !self.replies.is_push())
        else {
            out.extend_from_slice(piece);
            return Ok(());
        };
        let mut key = self.key;
        let mut answer = |command: &OwnCommand, reply: &[u8], out: &mut Vec<u8>| {
            key = settle(command, reply, out);
        };
        let read = outcome.advance(piece, out, &mut answer);
        self.set_key(key);
        read.map_err(|error| Loss::Broken(error.to_string()))
    }

    /// Whether the frame that has just begun, or ended, answers EXEC.
    fn is_of_exec(&self) -> bool {
        self.expects.front() == Some(&Expect::Relay(Meaning::Exec)) && !self.replies.is_push()
    }

    fn set_key(&mut self, key: Key) {
        (self.key, self.lease.key) = (key, key);
    }

    /// Of the frame that has just begun or ended.
    pub(super) fn goes_to_client(&self) -> bool {
        let message = self.replies.is_push() || self.is_resp2_message_type();
        let kept = matches!(
            self.expects.front(),
            Some(
                Expect::Swallow
                    | Expect::Fence
                    | Expect::Own
                    | Expect::Refusal(_)
                    | Expect::Replayed(_)
            )
        );
        message || !kept
    }

    /// In RESP2 messages are arrays; none of our own questions is answered by one while they can come.
    fn is_resp2_message_type(&self) -> bool {
        matches!(self.hold, Hold::Subscribed | Hold::Fencing)
            && self.key.proto == Proto::Resp2
            && self.replies.first() == b'*'
    }

    fn end_of_frame(&mut self, out: &mut Vec<u8>, settle: &mut Settle<'_>) -> Result<(), Loss> {
        let message = self.replies.is_push()
            || (self.is_resp2_message_type() && self.head.message_kind().is_some());
        if message {
            if self.head.message_kind() == Some(MessageKind::Confirmation) {
                self.confirm();
            }
            return Ok(());
        }
        let failed = self.replies.first() == b'-';
        match self.expects.pop_front() {
            Some(Expect::Swallow) if failed => {
                let said = String::from_utf8_lossy(&self.captured).trim().to_owned();
                Err(Loss::Refused(said.trim_start_matches('-').to_owned()))
            }
            Some(Expect::Swallow) => {
                self.captured.clear();
                self.prepared();
                Ok(())
            }
            Some(Expect::Own) => {
                let reply = std::mem::take(&mut self.captured);
                if let Some(command) = self.own.pop_front() {
                    let key = settle(&command, &reply, out);
                    self.set_key(key);
                }
                Ok(())
            }
            Some(Expect::Refusal(text)) => {
                self.captured.clear();
                write_error(&text, out);
                Ok(())
            }
            Some(Expect::Fence) => {
                self.fence();
                Ok(())
            }
            Some(Expect::Replayed(meaning)) => {
                self.captured.clear();
                self.apply(meaning);
                Ok(())
            }
            Some(Expect::Relay(meaning)) => {
                self.apply(meaning);
                Ok(())
            }
            Some(Expect::Confirmations(_)) => Ok(()),
            None if self.hold == Hold::Subscribed => Ok(()),
            None => Err(Loss::Broken("a reply that nobody asked for".into())),
        }
    }

    fn prepared(&mut self) {
        if let Hold::Preparing(reason) = self.hold
            && self.expects.is_empty()
        {
            self.lease.key = self.key;
            self.hold = Hold::First(reason);
        }
    }

    fn confirm(&mut self) {
        if let Some(Expect::Confirmations(left)) = self.expects.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.expects.pop_front();
            }
        }
    }

    /// In RESP2 a subscribed connection refuses the question, which is answer enough.
    fn fence(&mut self) {
        let text = String::from_utf8_lossy(&self.captured);
        let none_left = !text.starts_with('-')
            && text.contains(" sub=0 psub=0")
            && (text.contains(" ssub=0") || !text.contains(" ssub="));
        self.hold = if none_left { Hold::Ending } else { Hold::Subscribed };
        self.captured.clear();
    }

    fn apply(&mut self, meaning: Meaning) {
        let failed = self.replies.first() == b'-';
        match meaning {
            Meaning::Plain => {}
            Meaning::Began if failed => self.hold = self.rest(),
            Meaning::Tracks if failed => self.hold = Hold::Ending,
            Meaning::Began | Meaning::Tracks => {}
            Meaning::Queued if !failed => self.transaction.queued(),
            Meaning::Queued => {}
            Meaning::QueuedOwn if failed => self.transaction.refused_own(),
            Meaning::QueuedOwn => self.transaction.queued_own(),
            // What was to end goes on, perhaps.
            Meaning::Ends if failed => {
                self.condition = Condition::Spoilt;
                if self.tracking.is_some() {
                    self.hold = Hold::Tracking;
                }
            }
            Meaning::Ends => {}
            Meaning::Exec => {
                self.outcome = None;
                if failed {
                    self.condition = Condition::Spoilt;
                }
                if !failed && !self.head.is_null() {
                    self.lease.pool().metrics().transactions.inc();
                }
            }
        }
    }
}
