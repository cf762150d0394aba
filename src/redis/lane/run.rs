//! A lane at work on one connection: batches out, replies in, both at any time.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::loss::{Behind, Sent, Share, TRIES, is_of_the_server, judge};
use super::{Batch, Fate, Lane, Part, UNSENT, fail};
use crate::net::with_read_buffer;
use crate::pool::Lease;
use crate::redis::backend::{Key, RedisConnect, Role};
use crate::redis::exchange::{Debt, Exchange};
use crate::redis::mailbox::{MailLimits, Mailbox, Progress, Tail};
use crate::redis::wire::{Reply, ReplyScanner};

/// While others wait behind a client that is being sent a large reply, how often the lane looks whether that client reads. If it
/// doesn't, or not fast enough, the lane goes on for the sake of the others and lets the bytes pile up to the client's limit. There
/// it waits once more, for [`MailLimits::stall`] at a time, and then cuts the client.
const LOOK: Duration = Duration::from_millis(5);

/// How often a lane looks whether it still needs its connection, and whether that may live on.
const ROUND: Duration = Duration::from_secs(1);
/// The same when it leaves: a connection for each command would be dear, and a client's next one comes soon or not at all.
const ROUND_LEAVING: Duration = Duration::from_millis(100);

/// What commands in flight are told when their connection ends.
const LOST: &str = "ERR tidegate: the Redis server closed the connection while this command was in flight; \
     it may or may not have been applied";

/// How a lane's use of one connection ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// Given back: somebody waits for it, nobody needs it, its time is over, or the lane was closed.
    GivenBack,
    /// The connection ended.
    Lost {
        /// Why, for people.
        reason: String,
    },
}

#[derive(Debug, Clone)]
enum Creditor {
    Session(Arc<Mailbox>, Piece),
    /// Nobody: the session has answered these itself. What it is owed for the same piece comes next.
    Nobody,
    /// Our own commands that bring the connection to another key.
    Switch,
}

/// Of a session's commands: how many replies come first that nobody is to get, and how many connections they have seen end.
#[derive(Debug, Clone, Copy)]
struct Piece {
    silent: u32,
    tries: u8,
    fate: Fate,
}

/// The connection's way from one key to another.
#[derive(Debug)]
enum Course {
    Steady,
    /// The batch goes out when the server has confirmed its key.
    Switching(Batch),
}

/// Progress of one look at one side.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    Yes,
    No,
}

/// The future of a lane on one connection. Dropping it closes the connection.
pub(super) struct LaneRun {
    lane: Arc<Lane>,
    lease: Option<Lease<RedisConnect>>,
    exchange: Exchange<Creditor>,
    replies: ReplyScanner,
    course: Course,
    out: Vec<u8>,
    /// Bytes of `out` that were sent.
    sent: usize,
    /// Bytes sent before `out`.
    sent_before: u64,
    /// What was sent and not answered.
    kept: Sent,
    /// From here on nothing was applied, though it was sent.
    void_from: Option<u64>,
    waiting: Option<Standstill>,
    round: Pin<Box<Sleep>>,
    round_length: Duration,
    tenure: Tenure,
    proof: Proof,
}

/// Whether the connection has shown that it is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    None,
    /// It has answered.
    Answered,
}

/// Whether the lane keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenure {
    /// It was used since the last round.
    Used,
    /// It was not.
    Unused,
    /// It goes back as soon as nothing is owed.
    Over,
}

/// The lane does not read, for a client that must make room first.
struct Standstill {
    mailbox: Arc<Mailbox>,
    /// Bytes that the client had taken at the last look.
    taken: u64,
    /// Runs while others wait, too.
    look: Option<Pin<Box<Sleep>>>,
}

impl Standstill {
    fn new(mailbox: &Arc<Mailbox>) -> Self {
        Self { mailbox: Arc::clone(mailbox), taken: mailbox.taken(), look: None }
    }

    /// Ready when the lane reads on. As long as nobody else is kept waiting, the client has all the time that it needs.
    fn poll_end(
        &mut self,
        cx: &mut Context<'_>,
        limits: MailLimits,
        others_wait: impl Fn() -> bool,
    ) -> Poll<()> {
        while self.mailbox.poll_room(cx, limits).is_pending() {
            if !others_wait() {
                self.look = None;
                return Poll::Pending;
            }
            let last = self.mailbox.is_given_up();
            let stuck = || self.mailbox.stuck_for(Instant::now().into_std());
            // Of clients that have long taken nothing each would have its own time, one behind the other.
            let time = if last { limits.stall.saturating_sub(stuck()) } else { LOOK };
            let fresh = || Box::pin(tokio::time::sleep(time));
            ready!(self.look.get_or_insert_with(fresh).as_mut().poll(cx));
            let taken = self.mailbox.taken();
            match if taken > self.taken { Progress::Some } else { Progress::None } {
                // It has taken less than would have made room.
                _ if last => self.mailbox.cut(),
                progress => self.mailbox.look(progress),
            }
            (self.taken, self.look) = (taken, None);
        }
        Poll::Ready(())
    }
}

impl LaneRun {
    pub(super) fn new(lane: Arc<Lane>, lease: Lease<RedisConnect>) -> Self {
        Self {
            lane,
            lease: Some(lease),
            exchange: Exchange::default(),
            replies: ReplyScanner::default(),
            course: Course::Steady,
            out: Vec::new(),
            sent: 0,
            sent_before: 0,
            kept: Sent::default(),
            void_from: None,
            waiting: None,
            round: Box::pin(tokio::time::sleep(ROUND)),
            round_length: ROUND,
            tenure: Tenure::Used,
            proof: Proof::None,
        }
    }

    /// Looks, once in a while, whether the connection is still needed and may live on.
    fn look_around(&mut self, cx: &mut Context<'_>) {
        if self.lane.leaves() && self.round_length != ROUND_LEAVING {
            self.round_length = ROUND_LEAVING;
            self.round.as_mut().reset(Instant::now() + ROUND_LEAVING);
        }
        while self.round.as_mut().poll(cx).is_ready() {
            self.round.as_mut().reset(Instant::now() + self.round_length);
            let ends = |lease: &Lease<RedisConnect>| lease.has_expired() || lease.is_outdated();
            let expired = self.lease.as_ref().is_some_and(ends);
            let quiet = self.exchange.is_empty() && self.out.is_empty();
            self.tenure = match self.tenure {
                Tenure::Over => Tenure::Over,
                _ if expired => Tenure::Over,
                Tenure::Unused if quiet => Tenure::Over,
                Tenure::Used | Tenure::Unused => Tenure::Unused,
            };
            if self.tenure == Tenure::Over {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Loads the next batch when the last one is on its way.
    fn load(&mut self, cx: &Context<'_>) -> Poll<Option<()>> {
        if !self.out.is_empty() || matches!(self.course, Course::Switching(_)) {
            self.lane.listen(cx);
            return Poll::Pending;
        }
        if self.lane.must_yield() || self.tenure == Tenure::Over {
            // What a spare lane has taken it sends, and takes no more.
            self.lane.shut();
            if !(self.lane.is_spare() && self.lane.has_batch()) {
                self.lane.listen(cx);
                // What is owed is awaited; then the connection goes to whoever waits for it.
                return if self.exchange.is_empty() { Poll::Ready(None) } else { Poll::Pending };
            }
        }
        let Some(batch) = ready!(self.lane.poll_batch(cx)) else {
            return if self.exchange.is_empty() { Poll::Ready(None) } else { Poll::Pending };
        };
        self.tenure = Tenure::Used;
        self.begin(batch);
        Poll::Ready(Some(()))
    }

    fn begin(&mut self, batch: Batch) {
        let mut switch = Vec::new();
        let Some(lease) = &self.lease else { return };
        let replies = lease.write_switch(batch.key, &mut switch);
        if replies > 0 {
            let begins = self.sent_before;
            self.exchange.owe(Debt { creditor: Creditor::Switch, replies, begins });
            self.out = switch;
            self.course = Course::Switching(batch);
            return;
        }
        for part in batch.parts {
            let begins = self.sent_before + u64::try_from(part.begins).unwrap_or(0);
            let Part { silent, tries, fate, .. } = part;
            if silent > 0 {
                self.exchange.owe(Debt { creditor: Creditor::Nobody, replies: silent, begins });
            }
            let creditor = Creditor::Session(part.mailbox, Piece { silent, tries, fate });
            self.exchange.owe(Debt { creditor, replies: part.replies, begins });
        }
        self.out = batch.bytes;
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let Some(lease) = &mut self.lease else { return Poll::Pending };
        while self.sent < self.out.len() {
            let n = ready!(lease.stream.poll_write_from(cx, &self.out[self.sent..]))
                .map_err(|error| error.to_string())?;
            if n == 0 {
                return Poll::Ready(Err("the connection takes no more bytes".into()));
            }
            self.sent += n;
        }
        let length = self.out.len();
        lease.pool().metrics().bytes_sent_server.inc_by(u64::try_from(length).unwrap_or(0));
        self.kept.keep(self.sent_before, std::mem::take(&mut self.out));
        self.sent_before += u64::try_from(length).unwrap_or(0);
        self.sent = 0;
        ready!(lease.stream.poll_flushed(cx)).map_err(|error| error.to_string())?;
        Poll::Ready(Ok(()))
    }

    /// One read, so that the sessions get their turn to write before the next.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        if let Some(standstill) = &mut self.waiting {
            let (lane, exchange) = (&self.lane, &self.exchange);
            let mailbox = Arc::clone(&standstill.mailbox);
            let is_it = |creditor: &Creditor| matches!(creditor, Creditor::Session(known, _) if Arc::ptr_eq(known, &mailbox));
            let others_wait =
                || lane.has_batch() || lane.must_yield() || exchange.owes_other_than(is_it);
            ready!(standstill.poll_end(cx, lane.limits(), others_wait));
            self.waiting = None;
        }
        with_read_buffer(|buffer| {
            let Some(lease) = &mut self.lease else { return Poll::Pending };
            let n = ready!(lease.stream.poll_read_into(cx, buffer))
                .map_err(|error| error.to_string())?;
            if n == 0 {
                return Poll::Ready(Err("end of stream".into()));
            }
            lease.pool().metrics().bytes_received_server.inc_by(u64::try_from(n).unwrap_or(0));
            Poll::Ready(self.distribute(cx, &buffer[..n]))
        })
    }

    fn distribute(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Result<(), String> {
        let (mut at, mut run, mut replies) = (0, 0, 0);
        while at < bytes.len() {
            let begins = at;
            let (used, reply) =
                self.replies.advance(&bytes[at..]).map_err(|error| error.to_string())?;
            at += used;
            if self.replies.is_push() {
                // Nothing on a lane asks for pushes, so nobody waits for this one.
                self.hand_over(cx, &bytes[run..begins], replies)?;
                (run, replies) = (at, 0);
                continue;
            }
            let Some((_creditor, owed)) = self.exchange.front() else {
                let said = String::from_utf8_lossy(&bytes[begins..at]).trim().to_owned();
                return Err(format!("unasked reply: {said:.200}"));
            };
            if reply == Reply::Whole && self.is_demoted(&bytes[begins..at], replies) {
                self.hand_over(cx, &bytes[run..begins], replies)?;
                self.void_from = self.exchange.begins();
                return Err("the server takes no more writes".into());
            }
            if reply == Reply::Whole {
                replies += 1;
                if replies == owed {
                    self.hand_over(cx, &bytes[run..at], replies)?;
                    (run, replies) = (at, 0);
                }
            }
        }
        self.hand_over(cx, &bytes[run..], replies)
    }

    /// Whether a reply tells that a server that was the master is none any more. Then nothing behind it is applied here, either, and
    /// another server is to be found at the address; if it is the same one, it says so at login. One that never does is believed.
    fn is_demoted(&self, reply: &[u8], replies: u32) -> bool {
        if !reply.starts_with(b"-READONLY ") {
            return false;
        }
        let Some((Creditor::Session(_, piece), owed)) = self.exchange.front() else { return false };
        let was_master = self.lease.as_ref().is_some_and(|lease| lease.role == Role::Master);
        let ends = self.exchange.next_begins().unwrap_or(self.sent_before);
        let sent = self.exchange.begins().and_then(|begins| self.kept.get(begins, ends));
        was_master
            && piece.tries < TRIES
            && sent.is_some_and(|bytes| is_of_the_server(bytes, owed - replies))
    }

    fn hand_over(&mut self, cx: &Context<'_>, bytes: &[u8], replies: u32) -> Result<(), String> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self.exchange.front() {
            Some((Creditor::Session(mailbox, _), owed)) => {
                let inside = self.replies.is_inside() && !self.replies.is_push();
                let tail = if inside { Tail::Partial } else { Tail::Whole };
                mailbox.deliver(bytes, replies, tail);
                // Behind its last reply nothing more comes for it.
                if (inside || replies < owed)
                    && self.waiting.is_none()
                    && mailbox.poll_room(cx, self.lane.limits()).is_pending()
                {
                    self.waiting = Some(Standstill::new(mailbox));
                }
            }
            Some((Creditor::Switch, _)) if self.replies.first() == b'-' => {
                let said = String::from_utf8_lossy(bytes).trim().to_owned();
                return Err(format!("the server refused to change database or protocol: {said}"));
            }
            Some((Creditor::Switch | Creditor::Nobody, _)) | None => {}
        }
        self.exchange.pay(replies);
        if replies > 0 {
            if self.proof == Proof::None {
                self.lane.forget_retries();
                self.proof = Proof::Answered;
            }
            self.kept.answered(self.exchange.begins().unwrap_or(self.sent_before));
        }
        if self.exchange.is_empty()
            && let Course::Switching(batch) = std::mem::replace(&mut self.course, Course::Steady)
        {
            if let Some(lease) = &mut self.lease {
                lease.key = batch.key;
            }
            self.begin(batch);
        }
        Ok(())
    }

    /// The connection is gone: tells those whose commands may have been applied, keeps the others' for the next one.
    fn settle(&mut self, reason: &str) {
        let written = self.sent_before + u64::try_from(self.sent).unwrap_or(0);
        let written = self.void_from.map_or(written, |from| from.min(written));
        let end = self.sent_before + u64::try_from(self.out.len()).unwrap_or(0);
        self.kept.close(self.sent_before, std::mem::take(&mut self.out));
        let torn = self.replies.is_inside() && !self.replies.is_push();
        let debts = self.exchange.take();
        if torn && let Some(Debt { creditor: Creditor::Session(mailbox, _), .. }) = debts.front() {
            mailbox.tear();
        }
        let (errors, batch) = self.judge_all(debts, written, end);
        if errors > 0 {
            tracing::warn!(reason, in_flight = errors, "a lane lost its connection");
        } else {
            tracing::info!(reason, "a lane lost its connection; the next command opens another");
        }
        if !batch.parts.is_empty() {
            self.lane.put_back(batch);
        }
        if let Course::Switching(batch) = std::mem::replace(&mut self.course, Course::Steady) {
            self.lane.put_back(batch);
        }
    }

    /// Tells the sessions of their errors; how many these are, and what is to be sent again.
    fn judge_all(&self, debts: VecDeque<Debt<Creditor>>, written: u64, end: u64) -> (u32, Batch) {
        let key = self.lease.as_ref().map_or(Key::FRESH, |lease| lease.key);
        let mut batch = Batch { key, bytes: Vec::new(), parts: Vec::new() };
        let mut verdicts = Vec::with_capacity(debts.len());
        // Sessions of which something that was sent later may have been applied.
        let mut wrote: Vec<Arc<Mailbox>> = Vec::new();
        let (mut ends, mut next) = (end, end);
        for Debt { creditor, replies, begins } in debts.into_iter().rev() {
            if begins < next {
                (ends, next) = (next, begins);
            }
            let Creditor::Session(mailbox, piece) = creditor else { continue };
            let Piece { silent, tries, .. } = piece;
            let known = wrote.iter().any(|one| Arc::ptr_eq(one, &mailbox));
            let behind = if known { Behind::Written } else { Behind::Nothing };
            let share = Share { begins, ends, silent, replies, tries };
            let verdict = judge(&share, &self.kept, written, behind);
            if verdict.errors > 0 && !known {
                wrote.push(Arc::clone(&mailbox));
            }
            verdicts.push((mailbox, piece, verdict));
        }
        let mut errors = 0;
        for (mailbox, Piece { tries, fate, .. }, verdict) in verdicts.into_iter().rev() {
            if verdict.errors > 0 {
                fail(&mailbox, verdict.errors, LOST);
                errors += verdict.errors;
            }
            let Some((bytes, silent, replies)) = verdict.again else { continue };
            if fate == Fate::Here {
                fail(&mailbox, replies, UNSENT);
                continue;
            }
            let begins = batch.bytes.len();
            batch.bytes.extend_from_slice(bytes);
            batch.parts.push(Part { mailbox, silent, replies, begins, tries: tries + 1, fate });
        }
        (errors, batch)
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Moved, Ending> {
        let lost = |reason| Ending::Lost { reason };
        let mut moved = Moved::No;
        match self.load(cx) {
            Poll::Ready(Some(())) => moved = Moved::Yes,
            Poll::Ready(None) => return Err(Ending::GivenBack),
            Poll::Pending => {}
        }
        if !self.out.is_empty() {
            if self.write(cx).map_err(lost)?.is_ready() {
                moved = Moved::Yes;
            }
        } else if let Some(lease) = &mut self.lease {
            // TLS may still hold a part of what it took.
            let _flushed =
                lease.stream.poll_flushed(cx).map_err(|error| lost(error.to_string()))?;
        }
        if self.read(cx).map_err(lost)?.is_ready() {
            moved = Moved::Yes;
        }
        Ok(moved)
    }
}

impl Future for LaneRun {
    type Output = Ending;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ending> {
        let run = self.get_mut();
        let mut turns = 0;
        loop {
            match run.turn(cx) {
                Ok(Moved::No) => {
                    run.look_around(cx);
                    return Poll::Pending;
                }
                Ok(Moved::Yes) => {
                    turns += 1;
                    if turns > 1 {
                        run.look_around(cx);
                        // The sessions that were just served come first.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Err(ending) => {
                    if let Ending::Lost { reason } = &ending {
                        run.settle(reason);
                    }
                    if let Some(lease) = run.lease.take() {
                        match &ending {
                            Ending::GivenBack => lease.give_back(),
                            Ending::Lost { .. } => lease.close("connection lost"),
                        }
                    }
                    return Poll::Ready(ending);
                }
            }
        }
    }
}
