//! The client's side of a session: what it is owed is written, what it sends is read, and its end is noticed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::Sleep;

use super::{
    Amending, Closing, End, LOOK_AGAIN, MailState, Moved, Outbox, Purpose, READ_AHEAD, Sending,
    Session, State, Unread,
};
use crate::net::with_read_buffer;

impl Session {
    /// A client that asks for more and more and reads nothing would wait for us as we wait for it.
    pub(super) fn watch_reading(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let waits = matches!(self.state, State::Shared)
            && !self.out.bytes.is_empty()
            && (self.inbox.len() > self.scanner.length() || self.is_full());
        if !waits {
            self.stuck = None;
            return Ok(());
        }
        let limit = self.upstream.limits.slow_reader;
        let clock = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if clock.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        self.upstream.metrics.clients_aborted.inc();
        tracing::warn!(
            pool = self.upstream.name(),
            seconds = limit.as_secs(),
            "disconnected a client that sends commands and does not read the replies"
        );
        Err(End("too slow"))
    }

    /// Takes replies from the mailbox and writes them.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        let at_work = self.gate.as_ref().is_some_and(|gate| gate.runs_errand());
        let mail = match &self.amending {
            _ if at_work => self.run_errand(cx),
            Some(_) if self.out.bytes.is_empty() => self.amend(cx),
            _ => self.take_mail(cx),
        };
        self.look_at_replies();
        match mail {
            MailState::Open | MailState::Gone => {}
            MailState::Killed => return Err(End("killed by another client")),
            MailState::Torn => self.closing = Closing::AfterReplies,
            MailState::Flooded => {
                self.upstream.metrics.clients_aborted.inc();
                tracing::warn!(
                    pool = self.upstream.name(),
                    limit_bytes = self.upstream.limits.reply_bytes_per_client,
                    "disconnected a client that does not read its replies"
                );
                return Err(End("flooded"));
            }
        }
        let mut moved = Moved::No;
        while self.out.at < self.out.bytes.len() {
            match self.stream.poll_write_from(cx, &self.out.bytes[self.out.at..]) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    moved = Moved::Yes;
                    self.note_written(n);
                    self.stuck = None;
                }
                Poll::Ready(_) => return Err(End("the client is gone")),
                Poll::Pending => {
                    self.mailbox.note_stuck(Instant::now());
                    return Ok(moved);
                }
            }
        }
        if moved == Moved::Yes {
            let sent = u64::try_from(self.out.at).unwrap_or(0);
            self.upstream.metrics.bytes_sent_client.inc_by(sent);
            if let Some(gate) = &self.gate {
                gate.metrics().bytes_sent.inc_by(sent);
            }
            self.settle_backlog();
            self.out = Outbox::default();
            if let Some(gate) = &mut self.gate {
                gate.outbox_is_empty();
            }
        }
        if self.stream.poll_flushed(cx).map(|result| result.is_err()) == Poll::Ready(true) {
            return Err(End("the client is gone"));
        }
        Ok(moved)
    }

    pub(super) fn take_mail(&mut self, cx: &Context<'_>) -> MailState {
        if let State::Parked(_) = self.state {
            // What comes is looked at first.
            return match self.mailbox.state() {
                MailState::Killed => MailState::Killed,
                _ => MailState::Open,
            };
        }
        let empty = self.out.bytes.is_empty();
        let mail = self.mailbox.poll_take(cx, &mut self.out.bytes);
        if empty && !self.out.bytes.is_empty() {
            self.out.counted = self.out.bytes.len();
            self.tail = mail.tail;
        }
        mail.state
    }

    /// Takes the reply that is not the client's as it is, when it is here whole.
    fn amend(&mut self, cx: &Context<'_>) -> MailState {
        let mail = self.mailbox.poll_take_whole(cx, &mut self.out.bytes);
        if mail.owed > 0 && mail.state == MailState::Open {
            return mail.state;
        }
        self.tail = mail.tail;
        self.out.counted = self.out.bytes.len();
        match self.amending.take() {
            Some(Amending::Information(wanted)) => self.add_section(cx, wanted),
            Some(Amending::Subscribers(question)) => self.recount(cx, question),
            None => {}
        }
        mail.state
    }

    /// So many bytes more are with the client; what came by mail stands first.
    pub(super) fn note_written(&mut self, bytes: usize) {
        let mail_before = self.out.at.min(self.out.counted);
        self.out.at += bytes;
        let mail = self.out.at.min(self.out.counted) - mail_before;
        if mail > 0 {
            self.mailbox.note_taken(mail);
        }
    }

    pub(super) fn settle_backlog(&mut self) {
        self.upstream.backlog.settle(std::mem::take(&mut self.out.counted));
    }

    /// Reads from the client, unless commands still wait; then only its end is noticed.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        self.unread = Unread::None;
        if let Sending::Ended(_) = self.sending {
            return self.finish(cx);
        }
        let unseen = self.inbox.len() > self.scanner.length();
        let willing = match &self.state {
            // The beginning of a large command waits for what is owed.
            State::Shared => !unseen && !self.is_full(),
            State::Waiting(_) => false,
            // Read on behind a command that blocks: only so is the client's end seen.
            State::Parked(_) => !unseen || self.inbox.len() < READ_AHEAD,
            State::Pinned(pinned, _) => {
                (!unseen || self.inbox.len() < READ_AHEAD) && pinned.has_room(usize::MAX)
            }
        };
        if !willing || self.closing == Closing::AfterReplies {
            return self.watch_end(cx);
        }
        if matches!(self.state, State::Shared) && !self.lane_has_room(cx) {
            self.unread = Unread::Perhaps;
            return self.look_later(cx);
        }
        if self.next_look.as_ref().is_some_and(|look| look.is_elapsed()) {
            self.next_look = None;
        }
        with_read_buffer(|buffer| {
            // Behind the beginning of a command, which is moved there when more of it has come.
            let begun = match &self.state {
                State::Shared if self.inbox.len() <= buffer.len() / 2 => self.inbox.len(),
                _ => 0,
            };
            let n = match self.stream.poll_read_on(cx, &mut buffer[begun..], &mut self.registered) {
                Poll::Pending => return Ok(Moved::No),
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(Ok(_)) => return self.end_of_client(),
                Poll::Ready(Err(_)) => return Err(End("the client is gone")),
            };
            let received = u64::try_from(n).unwrap_or(0);
            self.upstream.metrics.bytes_received_client.inc_by(received);
            if let Some(gate) = &self.gate {
                gate.metrics().bytes_received.inc_by(received);
            }
            if self.inbox.len() == begun && matches!(self.state, State::Shared) {
                let inbox = std::mem::take(&mut self.inbox);
                buffer[..begun].copy_from_slice(&inbox);
                let used = self.digest(cx, &buffer[..begun + n], self.scanner.length())?;
                self.inbox = buffer[used..begun + n].to_vec();
                self.bound_inbox(cx)?;
            } else {
                self.inbox.extend_from_slice(&buffer[..n]);
                self.carry_inbox(cx)?;
            }
            Ok(Moved::Yes)
        })
    }

    /// Whether what the client says next could go on; if not, it stays in the kernel till then. In a drain all is read, as whoever has
    /// said nothing is sent away.
    fn lane_has_room(&self, cx: &Context<'_>) -> bool {
        self.guard.is_draining()
            || self.lane.as_ref().is_none_or(|lane| lane.poll_room(cx, &self.mailbox).is_ready())
    }

    /// Behind bytes that are not read yet no wake-up tells of the client's end: asks again in a while.
    pub(super) fn look_again(&mut self, cx: &mut Context<'_>) {
        if self.poll_look(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    /// Ready a while after it was asked first; the clock is wound up by the next call then.
    fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let fresh = || Box::pin(tokio::time::sleep(LOOK_AGAIN));
        ready!(self.next_look.get_or_insert_with(fresh).as_mut().poll(cx));
        self.next_look = None;
        Poll::Ready(())
    }

    /// As a lane has room again soon, the client's end is looked for only when it hasn't for a while. The clock runs on meanwhile,
    /// so that it is wound up once a second at most.
    fn look_later(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        if matches!(self.sending, Sending::Open) && self.poll_look(cx).is_pending() {
            return Ok(Moved::No);
        }
        self.watch_end(cx)
    }

    /// Notices that the client has closed its side while what it sent is still to be read.
    pub(super) fn watch_end(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        if let Sending::Closed(_) = self.sending {
            return self.finish(cx);
        }
        match self.stream.poll_hangup_on(cx, &mut self.registered) {
            Poll::Ready(()) => {
                self.sending = Sending::Closed(self.last_replies());
                Ok(Moved::Yes)
            }
            Poll::Pending => {
                self.look_again(cx);
                Ok(Moved::No)
            }
        }
    }

    /// The client has closed its side and all it sent is read: what it asked for is still answered, as a server does.
    pub(super) fn end_of_client(&mut self) -> Result<Moved, End> {
        self.sending = match std::mem::replace(&mut self.sending, Sending::Open) {
            Sending::Open => Sending::Ended(self.last_replies()),
            Sending::Closed(patience) | Sending::Ended(patience) => Sending::Ended(patience),
        };
        Ok(Moved::Yes)
    }

    /// Runs while a client that has closed its side waits for its replies.
    pub(super) fn last_replies(&self) -> Pin<Box<Sleep>> {
        Box::pin(tokio::time::sleep(self.upstream.limits.cleanup_timeout))
    }

    /// Goes on for a client that has closed its side, until it has all it can get.
    pub(super) fn finish(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        let (patience, all_read) = match &mut self.sending {
            Sending::Open => return Ok(Moved::No),
            Sending::Closed(patience) => (patience, false),
            Sending::Ended(patience) => (patience, true),
        };
        let late = patience.as_mut().poll(cx).is_ready();
        let unseen = self.inbox.len() > self.scanner.length();
        let more = unseen || !all_read;
        let owed = self.awaits_replies() || !self.out.bytes.is_empty();
        let pending = owed
            || match &self.state {
                State::Shared => more,
                State::Waiting(waiting) => match waiting.purpose {
                    Purpose::Hold(reason) | Purpose::Again(reason) => reason.ends_soon(),
                    Purpose::Facts => true,
                },
                // What is owed for the attempt comes; for more a client that is gone does not wait.
                State::Parked(_) => false,
                State::Pinned(pinned, _) => pinned.has_an_end(more),
            };
        if late || !pending { Err(End("the client is gone")) } else { Ok(Moved::No) }
    }
}
