//! A backend that one session holds: what may be sent on it now, what is owed, and when it can be given back.
//!
//! Replies are counted, except where the protocol does not (subscriptions: then the server is asked whether any are
//! left; streams: then the connection is never shared again).

mod head;

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use super::backend::{Key, RedisConnect};
use super::clients::Holding;
use super::command::{Carriage, Reason, Step, Word, is_tracking, is_unsubscribe, step};
use super::greeting::{Proto, write_error};
use super::namespace::replies::ReplyFilter;
use super::transaction::{Outcome, OwnCommand, Queue, Transaction, UNKNOWN_COMMAND};
use super::upstream::Place;
use super::wire::{Reply, ReplyError, ReplyScanner, write_command};
use crate::net::with_read_buffer;
use crate::pool::Lease;
use head::{Head, MessageKind};

/// Bytes of requests kept for the server, and of replies for the client, before the other side has to wait.
pub const PINNED_BUFFER: usize = 256 * 1024;
/// Longest answer to our own question about subscriptions.
const CAPTURE_LIMIT: usize = 8 * 1024;

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

const TOO_MANY: &str = "ERR tidegate: too many commands about the connection inside one MULTI; \
     send them before it, or in several transactions";
const NO_KILL: &str = "ERR tidegate: CLIENT KILL can't stand inside MULTI; send it before the transaction or behind it";
/// A server that doesn't know it says the same.
const NO_NOTIFICATIONS: &str = "ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.";

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

/// Reads what the server tells of keys that have changed.
struct Tracking {
    /// Keys are shown without this.
    prefix: Box<[u8]>,
    push: Option<ReplyFilter>,
}

impl Tracking {
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
        self.tracking = Some(Tracking { prefix: prefix.into(), push: None });
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

    /// Decides about a command, of which at least the name is in `words`; if taken, `bytes` are to be sent and a reply is expected.
    pub fn take(&mut self, words: &[&[u8]], carriage: Carriage, bytes: &[u8]) -> Decision {
        let name = words.first().copied().unwrap_or_default();
        // Behind a WATCH that is refused the session goes on over its lane.
        let begins = [Meaning::Began, Meaning::Tracks].map(Expect::Relay);
        if self.expects.iter().any(|expect| begins.contains(expect)) {
            return Decision::Wait;
        }
        match self.hold {
            Hold::Preparing(_) | Hold::Once | Hold::Ending | Hold::Fencing => Decision::Wait,
            Hold::First(_) if self.queue.is_some() => {
                self.replay();
                self.take_queueing(name, words, carriage, bytes)
            }
            Hold::First(reason) => self.take_first(reason, words, bytes),
            Hold::Watching => self.take_watching(name, words, carriage, bytes),
            Hold::Queueing => self.take_queueing(name, words, carriage, bytes),
            Hold::Subscribed => self.take_subscribed(name, words, carriage, bytes),
            Hold::Stream => self.stream(bytes),
            Hold::Tracking => self.take_tracking(name, words, carriage, bytes),
        }
    }

    fn relay(&mut self, bytes: &[u8], expect: Option<Expect>, hold: Hold) -> Decision {
        self.requests.extend_from_slice(bytes);
        self.expects.extend(expect);
        self.hold = hold;
        Decision::Taken
    }

    /// From here on the bytes of both sides pass as they are. Not before all that is not simply relayed is answered.
    fn stream(&mut self, bytes: &[u8]) -> Decision {
        let relayed =
            |expect: &Expect| matches!(expect, Expect::Relay(_) | Expect::Confirmations(_));
        if !self.expects.iter().all(relayed) {
            return Decision::Wait;
        }
        self.expects.clear();
        self.relay(bytes, None, Hold::Stream)
    }

    /// The server runs a command of the session's own, whose state is on both sides.
    fn run_own(&mut self, word: Word, words: &[&[u8]], bytes: &[u8], hold: Hold) -> Decision {
        // What rides along with HELLO (AUTH, SETNAME) stays on the connection.
        if word == Word::Hello && words.len() > 2 {
            self.condition = Condition::Spoilt;
        }
        self.own.push_back(OwnCommand::new(word, words));
        self.relay(bytes, Some(Expect::Own), hold)
    }

    /// Refuses a command inside MULTI so that EXEC fails, as it does behind any other refusal.
    pub fn refuse_queued(&mut self, text: &str) -> Decision {
        write_command(&[UNKNOWN_COMMAND], &mut self.requests);
        self.expects.push_back(Expect::Refusal(text.into()));
        Decision::Taken
    }

    fn queue(&mut self, bytes: &[u8]) -> Decision {
        self.relay(bytes, Some(Expect::Relay(Meaning::Queued)), Hold::Queueing)
    }

    fn queue_own(&mut self, word: Word, words: &[&[u8]], bytes: &[u8]) -> Decision {
        if !self.transaction.has_room() {
            return self.refuse_queued(TOO_MANY);
        }
        let plain_hello = word == Word::Hello && words.len() <= 2;
        let asks = matches!(word, Word::Select | Word::GetName | Word::Id | Word::Info);
        if !plain_hello && !asks {
            self.condition = Condition::Spoilt;
        }
        self.transaction.send_own(OwnCommand::new(word, words));
        self.relay(bytes, Some(Expect::Relay(Meaning::QueuedOwn)), Hold::Queueing)
    }

    fn plain(&mut self, bytes: &[u8]) -> Decision {
        self.relay(bytes, Some(Expect::Relay(Meaning::Plain)), self.hold)
    }

    /// Brings the server to where the session is in its transaction.
    fn replay(&mut self) {
        let Some(queue) = self.queue.take() else { return };
        write_command(&["MULTI"], &mut self.requests);
        self.requests.extend_from_slice(&queue.bytes);
        self.expects.push_back(Expect::Replayed(Meaning::Plain));
        self.expects.extend((0..queue.commands).map(|_| Expect::Replayed(Meaning::Queued)));
        self.hold = Hold::Queueing;
    }

    fn take_first(&mut self, reason: Reason, words: &[&[u8]], bytes: &[u8]) -> Decision {
        let name = words.first().copied().unwrap_or_default();
        let plain = Some(Expect::Relay(Meaning::Plain));
        match reason {
            Reason::Transaction => {
                let hold = if step(name) == Step::Multi { Hold::Queueing } else { Hold::Watching };
                self.relay(bytes, Some(Expect::Relay(Meaning::Began)), hold)
            }
            Reason::Subscription => {
                self.hold = Hold::Subscribed;
                self.take_subscribed(name, words, Carriage::Pinned(reason), bytes)
            }
            Reason::Stream => self.stream(bytes),
            Reason::Tracking => {
                self.condition = Condition::Spoilt;
                self.relay(bytes, Some(Expect::Relay(Meaning::Tracks)), Hold::Tracking)
            }
            Reason::Database => self.run_own(Word::Select, words, bytes, Hold::Once),
            Reason::Wait => {
                // WAIT is about the connection's own last write. The session's writes went over a lane, before this one,
                // so waiting for a later write of this connection covers them. A publication is replicated and stores nothing.
                write_command(&["PUBLISH", "tidegate:wait", ""], &mut self.requests);
                self.expects.push_back(Expect::Swallow);
                self.relay(bytes, plain, Hold::Once)
            }
            Reason::Blocking | Reason::Large | Reason::Kill => self.relay(bytes, plain, Hold::Once),
            Reason::Unknown => {
                self.condition = Condition::Spoilt;
                self.relay(bytes, plain, Hold::Once)
            }
        }
    }

    fn answer(&self, word: Word) -> Decision {
        if self.expects.is_empty() { Decision::Answer(word) } else { Decision::Wait }
    }

    fn refuse(&self, text: &'static str) -> Decision {
        if self.expects.is_empty() { Decision::Refuse(text) } else { Decision::Wait }
    }

    fn take_watching(
        &mut self,
        name: &[u8],
        words: &[&[u8]],
        carriage: Carriage,
        bytes: &[u8],
    ) -> Decision {
        let [plain, ends] = [Meaning::Plain, Meaning::Ends].map(|one| Some(Expect::Relay(one)));
        match (step(name), carriage) {
            (Step::Multi, _) if words.len() == 1 => self.relay(bytes, plain, Hold::Queueing),
            (Step::Unwatch, _) if words.len() == 1 => self.relay(bytes, ends, self.rest()),
            (_, Carriage::Session(word @ (Word::Select | Word::Hello))) => {
                self.run_own(word, words, bytes, Hold::Watching)
            }
            (_, Carriage::Session(word)) => self.answer(word),
            (_, Carriage::Refused(text)) => self.refuse(text),
            (_, Carriage::Pinned(Reason::Stream)) => self.stream(bytes),
            (_, Carriage::Pinned(Reason::Subscription)) => {
                self.condition = Condition::Spoilt;
                self.hold = Hold::Subscribed;
                self.take_subscribed(name, words, carriage, bytes)
            }
            (_, Carriage::Pinned(Reason::Unknown)) => {
                self.condition = Condition::Spoilt;
                self.plain(bytes)
            }
            _ => self.plain(bytes),
        }
    }

    fn take_queueing(
        &mut self,
        name: &[u8],
        words: &[&[u8]],
        carriage: Carriage,
        bytes: &[u8],
    ) -> Decision {
        match (step(name), carriage) {
            // With more words it ends the transaction, too.
            (Step::Exec, _) => self.relay(bytes, Some(Expect::Relay(Meaning::Exec)), self.rest()),
            (Step::Discard, _) if words.len() == 1 => {
                self.relay(bytes, Some(Expect::Relay(Meaning::Ends)), self.rest())
            }
            (_, Carriage::Session(Word::Reset | Word::Quit)) => match carriage {
                Carriage::Session(word) => self.answer(word),
                _ => Decision::Wait,
            },
            // Where their answers will stand in EXEC's nobody can tell.
            (_, Carriage::Pinned(Reason::Subscription | Reason::Stream)) => self.stream(bytes),
            (_, Carriage::Refused(text)) => self.refuse_queued(text),
            (_, Carriage::Session(Word::MaintNotifications)) => {
                self.refuse_queued(NO_NOTIFICATIONS)
            }
            // There it would end connections of the server, which are everybody's.
            (_, Carriage::Session(Word::Kill)) => self.refuse_queued(NO_KILL),
            (_, Carriage::Session(word)) => self.queue_own(word, words, bytes),
            (_, Carriage::Pinned(Reason::Unknown)) => {
                self.condition = Condition::Spoilt;
                self.queue(bytes)
            }
            _ => self.queue(bytes),
        }
    }

    /// Its namespace lets nothing through that changes what comes unasked.
    fn take_tracking(
        &mut self,
        name: &[u8],
        words: &[&[u8]],
        carriage: Carriage,
        bytes: &[u8],
    ) -> Decision {
        let [began, ends] = [Meaning::Began, Meaning::Ends].map(|one| Some(Expect::Relay(one)));
        match (step(name), carriage) {
            (Step::Multi, _) if words.len() == 1 => self.relay(bytes, began, Hold::Queueing),
            (Step::Watch, _) if words.len() > 1 => self.relay(bytes, began, Hold::Watching),
            (_, Carriage::Session(word @ (Word::Select | Word::Hello))) => {
                self.run_own(word, words, bytes, Hold::Tracking)
            }
            (_, Carriage::Session(word)) => self.answer(word),
            (_, Carriage::Refused(text)) => self.refuse(text),
            (_, Carriage::Lane) if is_tracking(words) => self.relay(bytes, ends, Hold::Ending),
            _ => self.plain(bytes),
        }
    }

    fn take_subscribed(
        &mut self,
        name: &[u8],
        words: &[&[u8]],
        carriage: Carriage,
        bytes: &[u8],
    ) -> Decision {
        match carriage {
            _ if is_unsubscribe(name) => {
                self.requests.extend_from_slice(bytes);
                write_command(&["CLIENT", "INFO"], &mut self.requests);
                self.captured.clear();
                self.expects.push_back(Expect::Fence);
                self.hold = Hold::Fencing;
                Decision::Taken
            }
            Carriage::Pinned(Reason::Subscription) => {
                let confirmations = Expect::Confirmations(words.len().saturating_sub(1).max(1));
                self.relay(bytes, Some(confirmations), Hold::Subscribed)
            }
            Carriage::Session(word @ (Word::Reset | Word::Quit)) => self.answer(word),
            // A subscriber that speaks RESP2 is refused all this, which is the server's to do.
            Carriage::Session(_) if self.key.proto == Proto::Resp2 => self.plain(bytes),
            Carriage::Session(word @ (Word::Select | Word::Hello)) => {
                self.run_own(word, words, bytes, Hold::Subscribed)
            }
            Carriage::Session(word) => self.answer(word),
            Carriage::Refused(text) => self.refuse(text),
            Carriage::Pinned(Reason::Stream) => self.stream(bytes),
            Carriage::Pinned(Reason::Transaction | Reason::Unknown) => {
                self.condition = Condition::Spoilt;
                self.plain(bytes)
            }
            Carriage::Lane | Carriage::Pinned(_) => self.plain(bytes),
        }
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
    fn goes_to_client(&self) -> bool {
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

fn broken(error: &std::io::Error) -> Loss {
    Loss::Broken(error.to_string())
}
