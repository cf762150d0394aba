//! The part of a session that holds a backend: both directions are relayed at any time, and the backend goes back when
//! its hold has ended.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::entering::{looks_away, note_wrong_password};
use super::{Closing, End, Moved, Passed, Purpose, Session, Shape, Special, State};
use crate::redis::backend::Key;
use crate::redis::command::{Carriage, Reason, Word};
use crate::redis::greeting::write_error;
use crate::redis::namespace::Refusal;
use crate::redis::pinned::{Decision, Hold, Inflow, Loss, PINNED_BUFFER, Pinned};
use crate::redis::transaction::OwnCommand;
use crate::redis::wire::{Arguments, Progress, RequestScanner, split_inline, write_command};

const LOST: &str = "ERR tidegate: the Redis server closed the connection while this command was in flight; \
     it may or may not have been applied";

const NOT_SENT: &str = "ERR tidegate: the Redis server closed two connections in a row before this command could be \
     sent; it was not applied, look at the server's log";

/// The deadlines of a client that keeps others from the backend it holds.
#[derive(Default)]
pub(in crate::redis) struct Slow {
    /// Runs while it does not read.
    unread: Option<Pin<Box<Sleep>>>,
    /// Runs while it says nothing more inside a command that the server has begun to read.
    unsaid: Option<Pin<Box<Sleep>>>,
    trial: Trial,
}

/// Which connection it is for the command that it was taken for.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Trial {
    #[default]
    First,
    /// The first was lost before anything was sent.
    Second,
}

impl Slow {
    pub(super) fn again() -> Self {
        Self { trial: Trial::Second, ..Self::default() }
    }

    /// Whether the time of one of them is over; a clock starts when it is asked first.
    fn runs_out(
        clock: &mut Option<Pin<Box<Sleep>>>,
        limit: Duration,
        cx: &mut Context<'_>,
    ) -> bool {
        clock
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)))
            .as_mut()
            .poll(cx)
            .is_ready()
    }
}

impl Session {
    /// Moves bytes both ways on the held backend, and gives it back when the hold is over.
    pub(super) fn relay(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        let unread = self.out.bytes.len();
        let before = self.key();
        let State::Pinned(pinned, slow) = &mut self.state else { return Ok(Moved::No) };
        let mut moved = Moved::No;
        let had_requests = pinned.has_requests();
        match pinned.poll_send(cx) {
            Poll::Ready(Ok(())) if had_requests => moved = Moved::Yes,
            Poll::Ready(Err(loss)) => return self.lose(cx, &loss),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let limit = self.upstream.limits.slow_reader;
        let mut late = None;
        if unread < PINNED_BUFFER {
            slow.unread = None;
            let (identity, upstream, stream) = (&mut self.identity, &self.upstream, &self.stream);
            let mut settle = |command: &OwnCommand, reply: &[u8], out: &mut Vec<u8>| {
                let (from, proves) = (out.len(), command.word == Word::Auth);
                if !(proves && looks_away(upstream, stream, identity.id, out)) {
                    let facts = upstream.facts.get().as_deref().cloned().unwrap_or_default();
                    identity.settle(command, reply, upstream.entrance().access(), &facts, out);
                    if proves && out[from..].starts_with(b"-WRONGPASS") {
                        let later = note_wrong_password(upstream, stream, identity.id);
                        self.held = later.or(self.held.take());
                    }
                }
                Key { db: identity.db, proto: identity.proto }
            };
            match pinned.poll_receive(cx, &mut self.out.bytes, &mut settle) {
                Poll::Ready(Ok(())) => moved = Moved::Yes,
                Poll::Ready(Err(loss)) => return self.lose(cx, &loss),
                Poll::Pending => {}
            }
        } else if Slow::runs_out(&mut slow.unread, limit, cx) {
            late = Some("disconnected a client that holds a connection and does not read");
        }
        if pinned.inflow == Inflow::Whole || pinned.has_requests() {
            slow.unsaid = None;
        } else if Slow::runs_out(&mut slow.unsaid, limit, cx) {
            late = Some("disconnected a client that stopped inside a command");
        }
        if let Some(words) = late {
            self.upstream.metrics.clients_aborted.inc();
            tracing::warn!(pool = self.upstream.name(), seconds = limit.as_secs(), "{words}");
            return Err(End("too slow"));
        }
        if self.key() != before {
            self.moved();
        }
        self.release_if_over(cx, moved)
    }

    fn release_if_over(&mut self, cx: &Context<'_>, moved: Moved) -> Result<Moved, End> {
        let State::Pinned(pinned, _) = &self.state else { return Ok(moved) };
        let over = pinned.is_over();
        if let Some(wait) = &self.wait
            && pinned.unanswered() == Some(0)
        {
            wait.rest();
        }
        if over
            && self.poll_settled(cx).is_ready()
            && let Some(pinned) = self.unpin()
        {
            pinned.release();
            return Ok(Moved::Yes);
        }
        Ok(moved)
    }

    fn unpin(&mut self) -> Option<Pinned> {
        if let Some(wait) = &self.wait {
            wait.rest();
        }
        match std::mem::replace(&mut self.state, State::Shared) {
            State::Pinned(pinned, _) => Some(*pinned),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The held backend broke.
    fn lose(&mut self, cx: &mut Context<'_>, loss: &Loss) -> Result<Moved, End> {
        let trial = match &self.state {
            State::Pinned(_, slow) => slow.trial,
            _ => Trial::Second,
        };
        let Some(mut pinned) = self.unpin() else { return Ok(Moved::No) };
        if let (Hold::Preparing(reason) | Hold::First(reason), Inflow::Whole, Loss::Broken(said)) =
            (pinned.hold(), pinned.inflow, loss)
        {
            tracing::info!(pool = self.upstream.name(), said, "a connection was lost before use");
            self.queue = pinned.take_queue();
            pinned.abandon("connection lost");
            match trial {
                Trial::First => self.hold_again(cx, reason),
                Trial::Second => self.refuse_first(NOT_SENT, Purpose::Again(reason)),
            }
            return Ok(Moved::Yes);
        }
        let (hold, unanswered, inflow) = (pinned.hold(), pinned.unanswered(), pinned.inflow);
        pinned.abandon("connection lost");
        tracing::warn!(pool = self.upstream.name(), ?loss, ?hold, "a held connection was lost");
        let Some(unanswered) = unanswered else {
            self.closing = Closing::AfterReplies;
            return Ok(Moved::Yes);
        };
        for _ in 0..unanswered {
            write_error(LOST, &mut self.out.bytes);
        }
        match (hold, inflow, loss) {
            // The session's state was on that connection: as with a direct one, the client must begin anew.
            (Hold::Once | Hold::Ending, Inflow::Whole, _) => {}
            (Hold::Preparing(_) | Hold::First(_), _, Loss::Refused(text)) => {
                write_error(text, &mut self.out.bytes);
                self.closing = Closing::AfterReplies;
            }
            _ => self.closing = Closing::AfterReplies,
        }
        Ok(Moved::Yes)
    }

    /// Carries what lies in the inbox over the held backend, as far as the hold allows.
    pub(super) fn carry_pinned(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        let inbox = std::mem::take(&mut self.inbox);
        let (mut at, mut begin) = (self.scanner.length(), 0);
        let mut moved = Moved::No;
        while at < inbox.len() && self.closing == Closing::No && self.unread() < PINNED_BUFFER {
            let depth = self.upstream.limits.pipeline_depth;
            let limits = self.request_limits();
            let State::Pinned(pinned, slow) = &mut self.state else { break };
            if pinned.is_endless() && self.gate.is_some() {
                // What passes unseen is for no namespace.
                self.closing = Closing::AfterReplies;
                break;
            }
            if pinned.hold() == Hold::Stream {
                pinned.push_bytes(&inbox[begin..]);
                self.scanner = RequestScanner::default();
                (begin, moved) = (inbox.len(), Moved::Yes);
                break;
            }
            if !pinned.has_room(depth) {
                break;
            }
            let (used, progress) = match self.scanner.advance(&inbox[at..], limits) {
                Ok(found) => found,
                Err(error) => {
                    self.break_protocol(error);
                    begin = inbox.len();
                    break;
                }
            };
            at += used;
            if pinned.inflow == Inflow::Inside {
                slow.unsaid = None;
                pinned.push_bytes(&inbox[begin..at]);
                if progress != Progress::Partial {
                    pinned.inflow = Inflow::Whole;
                    self.scanner = RequestScanner::default();
                }
                (begin, moved) = (at, Moved::Yes);
                continue;
            }
            let large = at - begin > self.upstream.limits.understood_frame_bytes;
            if progress == Progress::Partial && !large {
                break;
            }
            let offered = match self.has_leave(cx) {
                true => self.offer(cx, &inbox[begin..at], progress),
                false => Offered::Kept,
            };
            match offered {
                Offered::Taken => {
                    (begin, moved) = (at, Moved::Yes);
                    if progress == Progress::Partial {
                        continue;
                    }
                }
                Offered::Kept => {
                    self.scanner = RequestScanner::default();
                    break;
                }
            }
            self.scanner = RequestScanner::default();
        }
        self.inbox = inbox;
        self.consume_pinned(begin);
        self.give_leave_back();
        Ok(moved)
    }

    /// While a large command passes, the scanner is ahead of the (empty) inbox; its count is then of no use.
    fn consume_pinned(&mut self, begin: usize) {
        self.consume(begin);
        let inside =
            matches!(&self.state, State::Pinned(pinned, _) if pinned.inflow == Inflow::Inside);
        if inside || self.inbox.len() < self.scanner.length() {
            self.scanner.forget_length();
        }
    }

    /// Offers one command, whole or (with [`Progress::Partial`]) too large to be held.
    fn offer(&mut self, cx: &mut Context<'_>, command: &[u8], progress: Progress) -> Offered {
        let (inline, mut bytes);
        let mut words: Vec<&[u8]> = Vec::new();
        let mut raw = command;
        match progress {
            Progress::Nothing => return Offered::Taken,
            Progress::Command | Progress::Partial => words.extend(Arguments::new(command)),
            Progress::Inline => match split_inline(command) {
                Ok(split) if split.is_empty() => return Offered::Taken,
                Ok(split) => {
                    inline = split;
                    words.extend(inline.iter().map(Vec::as_slice));
                    bytes = Vec::new();
                    write_command(&words, &mut bytes);
                    raw = &bytes;
                }
                Err(error) => {
                    self.break_protocol(error);
                    return Offered::Taken;
                }
            },
        }
        let how = self.carriage_here(&words);
        let large;
        if progress == Progress::Partial {
            let (begins, behind) = match self.large_form(raw) {
                Ok(form) => form,
                Err(refusal) => return self.refuse_large_here(&refusal),
            };
            if behind > 0 {
                large = [&begins, &raw[behind..]].concat();
                raw = &large;
            }
            return self.decide_and_note(cx, &words, how, raw, (progress, Shape::Plain));
        }
        match self.pass_gate_pinned(&words, how) {
            Passed::AsIs => {
                self.decide_and_note(cx, &words, how, raw, (Progress::Command, Shape::Plain))
            }
            Passed::As(words, shape) => {
                let words: Vec<&[u8]> = words.iter().map(|word| &**word).collect();
                let mut raw = Vec::new();
                write_command(&words, &mut raw);
                self.decide_and_note(cx, &words, how, &raw, (Progress::Command, shape))
            }
            Passed::Waits => Offered::Kept,
            Passed::Taken => Offered::Taken,
        }
    }

    /// On a backend of its own the session has nowhere to leave the rest of the command.
    fn refuse_large_here(&mut self, refusal: &Refusal) -> Offered {
        self.count_refusal(refusal);
        let text = format!("{}; the connection is closed", refusal.text);
        write_error(&text, &mut self.out.bytes);
        self.closing = Closing::AfterReplies;
        Offered::Kept
    }

    fn decide_and_note(
        &mut self,
        cx: &mut Context<'_>,
        words: &[&[u8]],
        how: Carriage,
        raw: &[u8],
        (progress, shape): (Progress, Shape),
    ) -> Offered {
        let queueing = matches!(&self.state, State::Pinned(pinned, _) if pinned.is_queueing());
        let offered = self.decide(cx, words, how, raw, progress);
        if matches!(offered, Offered::Taken) {
            self.note_passed(words, shape, queueing);
        }
        offered
    }

    fn decide(
        &mut self,
        cx: &mut Context<'_>,
        words: &[&[u8]],
        how: Carriage,
        raw: &[u8],
        progress: Progress,
    ) -> Offered {
        let State::Pinned(pinned, _) = &mut self.state else { return Offered::Kept };
        // What it has subscribed to at the hub counts, and can be given up, only there.
        let at_hub = pinned.hold() == Hold::Watching && self.subscribed.is_some();
        if at_hub && how == Carriage::Pinned(Reason::Subscription) {
            return match pinned.unanswered() {
                Some(0) => self.subscription(cx, words).into(),
                _ => Offered::Kept,
            };
        }
        let (watching, unanswered) = (pinned.hold() == Hold::Watching, pinned.unanswered());
        if watching && self.unblocks(words) {
            return match unanswered {
                Some(0) => self.unblock(cx, words).into(),
                _ => Offered::Kept,
            };
        }
        let State::Pinned(pinned, _) = &mut self.state else { return Offered::Kept };
        self.upstream.scripts.note_doubtful(words.iter().copied());
        let waits = pinned.hold() == Hold::First(Reason::Blocking);
        let shorter = match progress {
            Progress::Command if waits => self.with_time_left(words),
            _ => None,
        };
        let raw = shorter.as_deref().unwrap_or(raw);
        let State::Pinned(pinned, _) = &mut self.state else { return Offered::Kept };
        match pinned.take(words, how, raw) {
            Decision::Wait => Offered::Kept,
            Decision::Taken => {
                if progress == Progress::Partial {
                    pinned.inflow = Inflow::Inside;
                }
                let blocks = matches!(how, Carriage::Pinned(Reason::Blocking | Reason::Wait));
                if blocks && !pinned.is_queueing() {
                    self.note_call();
                }
                self.upstream.metrics.requests.inc();
                Offered::Taken
            }
            Decision::Refuse(text) => {
                write_error(text, &mut self.out.bytes);
                Offered::Taken
            }
            Decision::Answer(word) => {
                if word == Word::Reset
                    && let Some(pinned) = self.unpin()
                {
                    pinned.abandon("reset");
                }
                if matches!(word, Word::List | Word::Kill | Word::Info) {
                    self.tell_of_clients(word, words);
                    return Offered::Taken;
                }
                let facts = self.upstream.facts.get();
                self.answer_now(word, words, facts.as_deref());
                Offered::Taken
            }
        }
    }
}

/// Whether the held backend, or the session, took a command.
enum Offered {
    Taken,
    /// It stays in the inbox.
    Kept,
}

impl From<Special> for Offered {
    fn from(special: Special) -> Self {
        match special {
            Special::Taken => Self::Taken,
            Special::Blocked => Self::Kept,
        }
    }
}
