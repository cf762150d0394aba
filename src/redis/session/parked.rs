//! A session that waits for an element: first it takes what is there, over its lane and so behind all that it sent before; then it
//! waits at a station with others.
//!
//! The command stays in the inbox until it is answered, so that it can still go to a backend of its own: there the server says
//! itself what is wrong with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use super::{End, Moved, Purpose, Session, Special, State};
use crate::redis::blocking::{Outcome, Seat, Stations, Terms, Way};
use crate::redis::command::{Reason, place_of_time, read_at_once};
use crate::redis::greeting::{ServerFacts, write_error};
use crate::redis::lane::{Submitted, Work};
use crate::redis::pop::{Catch, Head, KeyName, Pop};
use crate::redis::roster::Ticket;
use crate::redis::wire::{Arguments, Progress, RequestScanner, write_command};

/// An attempt's error with this beginning is ours, and says that it may have been applied.
const OURS: &[u8] = b"-ERR tidegate: ";
/// The first version that has LMPOP, BLMPOP, ZMPOP and BZMPOP.
const FIRST_VERSION: u32 = 7;

/// What a session waits for, and how far it is.
pub(in crate::redis) struct Parked {
    waiter: Waiter,
    stage: Stage,
}

struct Waiter {
    pop: Pop,
    /// Its place in the order of all: taken when it came, not when the attempt was answered.
    ticket: Ticket,
    /// Keys that are no part of the attempt, because others wait for them already.
    untried: Vec<KeyName>,
    /// Runs out when it has waited as long as it wanted.
    timer: Option<Pin<Box<Sleep>>>,
}

enum Stage {
    /// The lane owes the reply to the attempt, of which this much is here.
    Attempt(Vec<u8>),
    /// At the station.
    Seated(Seat),
}

impl Parked {
    /// Whether the lane owes the reply to the attempt.
    fn is_attempt(&self) -> bool {
        matches!(self.stage, Stage::Attempt(_))
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.waiter.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }
}

impl Session {
    /// A command that may block; everything before it is answered.
    pub(super) fn block(&mut self, cx: &mut Context<'_>, words: &[&[u8]]) -> Special {
        let shared = self.upstream.stations.clone().zip(Pop::parse(words));
        let Some((stations, pop)) = shared else { return self.block_alone(cx, words) };
        // Of a server that was not reached yet the attempt's reply tells.
        let able = self.upstream.facts.get().is_none_or(|facts| has_pops_of_many(&facts));
        if able && stations.terms() == Terms::Granted {
            return self.park(cx, &stations, pop);
        }
        self.block_alone(cx, words)
    }

    /// There is no connection for the first command yet. If it has waited as long as it wanted, it is asked over the lane what is
    /// there.
    pub(super) fn wait_on(&mut self, cx: &mut Context<'_>) -> Moved {
        let State::Waiting(waiting) = &mut self.state else { return Moved::No };
        let Some(timer) = &mut waiting.timer else { return Moved::No };
        if timer.as_mut().poll(cx).is_pending() {
            return Moved::No;
        }
        waiting.timer = None;
        let found = RequestScanner::default().advance(&self.inbox, self.request_limits());
        let Ok((used, Progress::Command)) = found else { return Moved::No };
        let words: Vec<&[u8]> = Arguments::new(&self.inbox[..used]).collect();
        let Some((_, words)) = read_at_once(&words) else { return Moved::No };
        let Some((words, shape)) = self.judged_anew(&words) else { return Moved::No };
        let mut bytes = Vec::new();
        write_command(&words, &mut bytes);
        let work = Work { bytes: &bytes, silent: 0, replies: 1 };
        // A lane that is full has the command wait for a connection, after all.
        if self.send(cx, work) != Submitted::Taken {
            return Moved::No;
        }
        self.waits_no_more();
        self.scanner = RequestScanner::default();
        self.await_shape(shape);
        self.consume(used);
        Moved::Yes
    }

    fn block_alone(&mut self, cx: &mut Context<'_>, words: &[&[u8]]) -> Special {
        self.wants_since = Some(Instant::now());
        self.hold(cx, Purpose::Hold(Reason::Blocking));
        self.time_the_wait(words);
        Special::Blocked
    }

    /// The connection of the command in the inbox was lost before it was sent: it waits for another one, no longer than it wanted.
    pub(super) fn hold_again(&mut self, cx: &mut Context<'_>, reason: Reason) {
        self.hold(cx, Purpose::Again(reason));
        let inbox = std::mem::take(&mut self.inbox);
        let found = RequestScanner::default().advance(&inbox, self.request_limits());
        if let Ok((used, Progress::Command)) = found {
            let words: Vec<&[u8]> = Arguments::new(&inbox[..used]).collect();
            self.time_the_wait(&words);
        }
        self.inbox = inbox;
    }

    fn time_the_wait(&mut self, words: &[&[u8]]) {
        let (State::Waiting(waiting), Some((_, time))) = (&mut self.state, place_of_time(words))
        else {
            return;
        };
        let ends = self.wants_since.unwrap_or_else(Instant::now) + time;
        waiting.timer = Some(Box::pin(tokio::time::sleep_until(ends)));
    }

    /// A read of streams that is to wait only for what is left of its time; `None` if that is all of it.
    pub(super) fn with_time_left(&self, words: &[&[u8]]) -> Option<Vec<u8>> {
        let (at, time) = place_of_time(words)?;
        let gone = self.wants_since?.elapsed();
        if gone.as_millis() == 0 {
            return None;
        }
        // Nought would be for ever.
        let left = time.saturating_sub(gone).as_millis().max(1).to_string();
        let mut words = words.to_vec();
        *words.get_mut(at)? = left.as_bytes();
        let mut bytes = Vec::new();
        write_command(&words, &mut bytes);
        Some(bytes)
    }

    fn park(&mut self, cx: &mut Context<'_>, stations: &Arc<Stations>, pop: Pop) -> Special {
        let timer = pop.timeout.map(|time| Box::pin(tokio::time::sleep(time)));
        let free = stations.free_keys(self.identity.db, &pop);
        let untried = pop.keys.iter().filter(|key| !free.contains(*key)).cloned().collect();
        let waiter = Waiter { pop, ticket: stations.ticket(), untried, timer };
        if free.is_empty() {
            self.upstream.metrics.requests.inc();
            self.sit_down(cx, stations, waiter);
            return Special::Blocked;
        }
        let mut bytes = Vec::new();
        waiter.pop.write_attempt(&free, &mut bytes);
        let work = Work { bytes: &bytes, silent: 0, replies: 1 };
        if self.room() == 0 || self.send(cx, work) != Submitted::Taken {
            return Special::Blocked;
        }
        let stage = Stage::Attempt(Vec::new());
        self.state = State::Parked(Box::new(Parked { waiter, stage }));
        Special::Blocked
    }

    /// Takes a place at the station.
    fn sit_down(&mut self, cx: &mut Context<'_>, stations: &Arc<Stations>, waiter: Waiter) {
        let key = self.key();
        let way = Way { lane: Arc::clone(self.upstream.lane(key)), key };
        match stations.join(waiter.ticket, key.db, &waiter.pop, self.identity.id, &way) {
            Some(seat) => {
                seat.has_not_tried(&waiter.untried);
                let stage = Stage::Seated(seat);
                self.state = State::Parked(Box::new(Parked { waiter, stage }));
            }
            None => self.hold(cx, Purpose::Hold(Reason::Blocking)),
        }
        cx.waker().wake_by_ref();
    }

    /// Looks whether what the session waits for has come.
    pub(super) fn look_for_element(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        match &self.state {
            State::Parked(parked) if parked.is_attempt() => Ok(self.attempt(cx)),
            State::Parked(_) => self.wait_seated(cx),
            _ => Ok(Moved::No),
        }
    }

    fn attempt(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut piece = Vec::new();
        let mail = self.mailbox.poll_take(cx, &mut piece);
        let State::Parked(parked) = &mut self.state else { return Moved::No };
        let Stage::Attempt(head) = &mut parked.stage else { return Moved::No };
        self.upstream.backlog.settle(piece.len());
        self.mailbox.note_taken(piece.len());
        head.append(&mut piece);
        let found = parked.waiter.pop.read_head(head);
        let head = std::mem::take(head);
        match found {
            Head::More if mail.owed > 0 => {
                parked.stage = Stage::Attempt(head);
                return Moved::No;
            }
            // The server has gone inside the reply.
            Head::More => self.closing = super::Closing::AfterReplies,
            Head::Nothing => self.stay(cx),
            Head::Refused if head.starts_with(OURS) => self.finish_first(&head),
            Head::Refused => {
                self.state = State::Shared;
                self.hold(cx, Purpose::Hold(Reason::Blocking));
            }
            // The rest comes as any other reply does.
            Head::Found { used, begins } => {
                self.tail = mail.tail;
                self.finish_first(&[&begins, &head[used..]].concat());
            }
        }
        Moved::Yes
    }

    /// There was nothing: the session waits.
    fn stay(&mut self, cx: &mut Context<'_>) {
        let State::Parked(parked) = std::mem::replace(&mut self.state, State::Shared) else {
            return;
        };
        if let Some(stations) = self.upstream.stations.clone() {
            self.sit_down(cx, &stations, parked.waiter);
        }
    }

    fn wait_seated(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        let State::Parked(parked) = &mut self.state else { return Ok(Moved::No) };
        let late = parked.is_late(cx);
        if late {
            parked.waiter.timer = None;
        }
        let Stage::Seated(seat) = &parked.stage else { return Ok(Moved::No) };
        if late {
            seat.give_up();
        }
        let Poll::Ready(outcome) = seat.poll_outcome(cx) else { return Ok(Moved::No) };
        let mut reply = Vec::new();
        match outcome {
            Outcome::Caught(catch) => return self.deliver(cx, catch),
            Outcome::Nothing => Pop::write_nothing(self.identity.proto, &mut reply),
            Outcome::Failed(line) => write_error(&line, &mut reply),
            Outcome::Alone => {
                self.state = State::Shared;
                self.hold(cx, Purpose::Hold(Reason::Blocking));
                return Ok(Moved::Yes);
            }
        }
        self.finish_first(&reply);
        Ok(Moved::Yes)
    }

    /// The element has come: it is the client's if the client is still there.
    fn deliver(&mut self, cx: &mut Context<'_>, catch: Catch) -> Result<Moved, End> {
        let State::Parked(parked) = &mut self.state else { return Ok(Moved::No) };
        let Stage::Seated(seat) = &parked.stage else { return Ok(Moved::No) };
        if self.stream.is_shut() {
            seat.pass_on(catch);
            return Err(End("the client is gone"));
        }
        let mut reply = Vec::new();
        parked.waiter.pop.write_reply(&catch, self.identity.proto, &mut reply);
        let reply = self.look_at(reply);
        let State::Parked(parked) = &mut self.state else { return Ok(Moved::No) };
        let Stage::Seated(seat) = &parked.stage else { return Ok(Moved::No) };
        let mut sent = 0;
        if self.out.bytes.is_empty() {
            match self.stream.poll_write_from(cx, &reply) {
                Poll::Ready(Ok(n)) if n > 0 => sent = n,
                Poll::Ready(_) => {
                    seat.pass_on(catch);
                    return Err(End("the client is gone"));
                }
                Poll::Pending => {}
            }
        }
        self.upstream.metrics.elements_handed.inc();
        self.upstream.metrics.bytes_sent_client.inc_by(u64::try_from(sent).unwrap_or(0));
        self.finish_first(&reply[sent..]);
        Ok(Moved::Yes)
    }

    /// Answers the command that waits in the inbox.
    pub(super) fn finish_first(&mut self, reply: &[u8]) {
        let mut scanner = RequestScanner::default();
        if let Ok((used, _whole)) = scanner.advance(&self.inbox, self.request_limits()) {
            self.consume(used);
        }
        self.scanner = RequestScanner::default();
        self.state = State::Shared;
        self.out.bytes.extend_from_slice(reply);
    }
}

fn has_pops_of_many(facts: &ServerFacts) -> bool {
    let major = facts.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= FIRST_VERSION)
}
