//! A backend that one session holds: what may be sent on it now, what is owed, and when it can be given back.
//!
//! Replies are counted, except where the protocol does not (subscriptions: then the server is asked whether any are
//! left; streams: then the connection is never shared again).

mod head;
mod replies;
mod take;

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use super::backend::{Key, RedisConnect};
use super::clients::Holding;
use super::command::{Reason, Word};
use super::transaction::{Outcome, OwnCommand, Queue, Transaction};
use super::upstream::Place;
use super::wire::ReplyScanner;
use crate::pool::Lease;
use head::Head;
use replies::Tracking;

/// Bytes of requests kept for the server, and of replies for the client, before the other side has to wait.
pub const PINNED_BUFFER: usize = 256 * 1024;

/// Why the session holds the backend, and what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Our commands that set database and protocol are on their way.
    Preparing(Reason),
    /// Ready for the command it was taken for.
    First(Reason),
    /// One command: ends when it is answered.
    Once,
    /// WATCH without MULTI: ends with EXEC after MULTI, or UNWATCH.
    Watching,
    /// MULTI: ends with EXEC or DISCARD.
    Queueing,
    /// The last command of a transaction is sent: ends when everything is answered.
    Ending,
    /// Something is, or was, subscribed: ends when the server says that nothing is.
    Subscribed,
    /// The server was asked whether anything is still subscribed.
    Fencing,
    /// Bytes of which nothing is known: ends with the connection.
    Stream,
    /// The server tells of keys that have changed: ends with CLIENT TRACKING OFF.
    Tracking,
}

/// A reply that will come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expect {
    Relay(Meaning),
    /// To a command of ours.
    Swallow,
    /// To our question about subscriptions.
    Fence,
    /// So many confirmations of one SUBSCRIBE.
    Confirmations(usize),
    /// To a command of a transaction that the session had begun to queue, and has answered.
    Replayed(Meaning),
    /// To a command of the session's own, which learns from it.
    Own,
    /// To what makes the server abort the transaction; the client is told this.
    Refusal(Box<str>),
}

/// What a reply means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Plain,
    /// Of the WATCH or MULTI that began the hold: an error ends it.
    Began,
    /// Of a command inside MULTI.
    Queued,
    /// Of one of the session's own.
    QueuedOwn,
    /// Of EXEC.
    Exec,
    /// Of DISCARD or UNWATCH.
    Ends,
    /// Of the CLIENT TRACKING that began the hold.
    Tracks,
}

/// What to do with a command of the session that holds the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing yet: something must be answered first.
    Wait,
    /// It was taken.
    Taken,
    /// The session answers it, now that everything before is answered.
    Answer(Word),
    /// It can't be carried here.
    Refuse(&'static str),
}

/// Learns from the server's reply to a command of the session's own, and writes the answer: what the session then expects
/// of the connection.
pub type Settle<'a> = dyn FnMut(&OwnCommand, &[u8], &mut Vec<u8>) -> Key + 'a;

/// Why the backend is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// It broke, or what it said is not RESP.
    Broken(String),
    /// It refused the session's database or protocol.
    Refused(String),
}

/// The request bytes now on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inflow {
    /// Whole commands.
    Whole,
    /// A command whose end is not here yet; its bytes pass as they come.
    Inside,
}

/// Condition of the backend at the end of the hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Clean,
    /// Something of the session may be left on it.
    Spoilt,
}

/// The held backend.
pub struct Pinned {
    lease: Lease<RedisConnect>,
    hold: Hold,
    key: Key,
    expects: VecDeque<Expect>,
    requests: Vec<u8>,
    sent: usize,
    replies: ReplyScanner,
    head: Head,
    captured: Vec<u8>,
    condition: Condition,
    reason: Reason,
    transaction: Transaction,
    /// What the session had queued of the transaction.
    queue: Option<Box<Queue>>,
    /// Reads the answer to EXEC, if something in it is the session's own.
    outcome: Option<Outcome>,
    /// Commands of the session's own on their way, outside MULTI.
    own: VecDeque<OwnCommand>,
    /// The request bytes now on their way.
    pub inflow: Inflow,
    /// Leave of the session's namespace.
    _place: Option<Place>,
    /// What comes unasked is read.
    tracking: Option<Tracking>,
    /// Its client's card says so.
    _holding: Option<Holding>,
}

impl Pinned {
    /// Takes up `lease` for a command that is carried for `reason` and expects `key`, and what was queued of its
    /// transaction, if it is inside one.
    #[must_use]
    pub fn new(
        (mut lease, place): (Lease<RedisConnect>, Option<Place>),
        reason: Reason,
        key: Key,
        queue: Option<Box<Queue>>,
    ) -> Self {
        lease.pin(reason.label());
        let _since = lease.turn(crate::metrics::Phase::Pinned);
        let mut requests = Vec::new();
        let replies = lease.write_switch(key, &mut requests);
        let hold = if replies > 0 { Hold::Preparing(reason) } else { Hold::First(reason) };
        Self {
            lease,
            hold,
            key,
            expects: (0..replies).map(|_| Expect::Swallow).collect(),
            requests,
            sent: 0,
            replies: ReplyScanner::default(),
            head: Head::default(),
            captured: Vec::new(),
            condition: Condition::Clean,
            reason,
            transaction: Transaction::default(),
            queue,
            outcome: None,
            own: VecDeque::new(),
            inflow: Inflow::Whole,
            _place: place,
            tracking: None,
            _holding: None,
        }
    }

    /// The client will be told of keys that have changed, by their names without `prefix`.
    pub fn track(&mut self, prefix: &[u8]) {
        self.tracking = Some(Tracking::new(prefix));
    }

    /// What follows a transaction.
    fn rest(&self) -> Hold {
        if self.tracking.is_some() { Hold::Tracking } else { Hold::Ending }
    }

    /// Whether it is only held for what the server may tell.
    #[must_use]
    pub fn only_listens(&self) -> bool {
        self.hold == Hold::Tracking && self.expects.is_empty() && self.requests.is_empty()
    }

    /// Notes on its client's card that it has it, until it has it no more.
    pub fn note(&mut self, holding: Holding) {
        self._holding = Some(holding);
    }

    /// Why it is held.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// The connection's number at the server.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.lease.id
    }

    /// The connection can't be anybody else's any more.
    pub fn spoil(&mut self) {
        self.condition = Condition::Spoilt;
    }

    /// Takes back what was queued of the transaction, if none of it was sent yet.
    pub fn take_queue(&mut self) -> Option<Box<Queue>> {
        self.queue.take()
    }

    /// Whether more requests may be added.
    #[must_use]
    pub fn has_room(&self, depth: usize) -> bool {
        self.requests.len() - self.sent < PINNED_BUFFER && self.expects.len() < depth
    }

    /// Whether the hold has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.hold, Hold::Once | Hold::Ending)
            && self.expects.is_empty()
            && self.requests.is_empty()
            && self.inflow == Inflow::Whole
    }

    /// Whether the hold lasts until the client leaves.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        matches!(self.hold, Hold::Subscribed | Hold::Stream)
    }

    /// Whether the server queues what it is sent now.
    #[must_use]
    pub fn is_queueing(&self) -> bool {
        self.hold == Hold::Queueing || (self.queue.is_some() && matches!(self.hold, Hold::First(_)))
    }

    /// Whether a transaction has begun that is not run yet.
    #[must_use]
    pub fn is_in_transaction(&self) -> bool {
        matches!(self.hold, Hold::Watching | Hold::Queueing)
    }

    /// Whether the hold will end by itself, with nothing more than what the client has sent. What blocks does not: a client that
    /// is gone must not take an element with it.
    #[must_use]
    pub fn has_an_end(&self, more_is_here: bool) -> bool {
        if self.inflow == Inflow::Inside && !more_is_here {
            return false;
        }
        match self.hold {
            Hold::Preparing(_) | Hold::First(_) | Hold::Once => self.reason.ends_soon(),
            Hold::Ending => true,
            Hold::Tracking => more_is_here || !self.expects.is_empty(),
            Hold::Watching | Hold::Queueing => more_is_here,
            Hold::Subscribed | Hold::Fencing | Hold::Stream => false,
        }
    }

    /// Gives the backend back, or closes it if something may be left on it. Only when [`Self::is_over`].
    pub fn release(mut self) {
        self.lease.unpin();
        match self.condition {
            Condition::Clean => self.lease.give_back(),
            Condition::Spoilt => self.lease.close("state unknown"),
        }
    }

    /// Closes the backend: the hold did not end.
    pub fn abandon(mut self, reason: &'static str) {
        self.lease.unpin();
        self.lease.close(reason);
    }

    /// Replies that the client still waits for; `None` if it already has a part of the next one.
    #[must_use]
    pub fn unanswered(&self) -> Option<usize> {
        if self.replies.is_inside() && self.goes_to_client() {
            return None;
        }
        let ours = |expect: &&Expect| {
            matches!(
                expect,
                Expect::Swallow | Expect::Fence | Expect::Confirmations(_) | Expect::Replayed(_)
            )
        };
        Some(self.expects.iter().filter(|expect| !ours(expect)).count())
    }

    /// Bytes that are relayed without being looked at.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.requests.extend_from_slice(bytes);
    }

    /// Sends what there is to send.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Loss>> {
        if self.requests.is_empty() {
            return self.lease.stream.poll_flushed(cx).map_err(|error| broken(&error));
        }
        while self.sent < self.requests.len() {
            let n = ready!(self.lease.stream.poll_write_from(cx, &self.requests[self.sent..]))
                .map_err(|error| broken(&error))?;
            if n == 0 {
                return Poll::Ready(Err(Loss::Broken("the connection takes no bytes".into())));
            }
            self.sent += n;
        }
        let sent = u64::try_from(self.sent).unwrap_or(0);
        self.lease.pool().metrics().bytes_sent_server.inc_by(sent);
        (self.requests, self.sent) = (Vec::new(), 0);
        self.lease.stream.poll_flushed(cx).map_err(|error| broken(&error))
    }

    /// Whether the client has no part of a reply whose rest is to come.
    #[must_use]
    pub fn is_between_replies(&self) -> bool {
        !self.replies.is_inside()
    }

    /// Whether requests wait to be sent.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }
}

fn broken(error: &std::io::Error) -> Loss {
    Loss::Broken(error.to_string())
}
