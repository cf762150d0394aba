//! CLIENT UNBLOCK, both sides: a session that ends another one's waiting, and one whose waiting is ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{Moved, Purpose, Session, Special, State};
use crate::redis::blocking::{Outcome, Unblocked, Way, ask_here};
use crate::redis::command::look_up;
use crate::redis::lane::{Submitted, Work};
use crate::redis::pop::Pop;
use crate::redis::unblock::{Doubt, How, Reached, Request, Wait};
use crate::redis::wire::{Arguments, write_command};

/// What the server says to whom another client has unblocked so.
const UNBLOCKED: &str = "UNBLOCKED client unblocked via CLIENT UNBLOCK";
/// What the client is told of whom nobody knows whether it was unblocked.
const GAVE_UP: &[u8] = b"-ERR tidegate: the server was not asked; try again\r\n";

impl Session {
    /// Whether this is a CLIENT UNBLOCK that is answered here.
    pub(super) fn unblocks(&self, words: &[&[u8]]) -> bool {
        let says = |at: usize, text: &str| {
            words.get(at).is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()))
        };
        self.upstream.stations.is_some() && says(0, "CLIENT") && says(1, "UNBLOCK")
    }

    /// CLIENT UNBLOCK, for a client of ours; everything before it is answered.
    pub(super) fn unblock(&mut self, cx: &mut Context<'_>, words: &[&[u8]]) -> Special {
        if let Some(answer) = &mut self.unblocking {
            let Poll::Ready(reply) = Pin::new(answer).poll(cx) else { return Special::Blocked };
            self.unblocking = None;
            return self.tell(&reply.unwrap_or_else(|_gone| GAVE_UP.to_vec()));
        }
        let Some((stations, (client, how))) =
            self.upstream.stations.clone().zip(whom_to_unblock(words))
        else {
            // The server says what is wrong with it.
            let mut bytes = Vec::new();
            write_command(words, &mut bytes);
            let work = Work { bytes: &bytes, silent: 0, replies: 1 };
            let blocked = self.room() == 0 || self.send(cx, work) != Submitted::Taken;
            return if blocked { Special::Blocked } else { Special::Taken };
        };
        let (own, clients) = (self.identity.id, &self.upstream.clients);
        let client = u64::try_from(client).ok().filter(|id| clients.may_reach(own, *id));
        let Some(client) = client else { return self.tell(b":0\r\n") };
        if stations.unblock(client, outcome(how)) == Unblocked::One {
            return self.tell(b":1\r\n");
        }
        match clients.wait_of(client).map(|wait| wait.end(how)) {
            None | Some(Reached::Nobody) => self.tell(b":0\r\n"),
            Some(Reached::Queued) => self.tell(b":1\r\n"),
            Some(Reached::Calling(request)) => {
                self.ask_server(request, how);
                // The answer is to wake it.
                self.unblock(cx, words)
            }
        }
    }

    fn tell(&mut self, reply: &[u8]) -> Special {
        self.out.bytes.extend_from_slice(reply);
        self.upstream.metrics.requests.inc();
        Special::Taken
    }

    /// Has the server end the call. That goes on when this client leaves: until it is answered the connection is nobody else's.
    fn ask_server(&mut self, request: Request, how: How) {
        let (key, mut bytes) = (self.key(), Vec::new());
        let how = match how {
            How::Timeout => "TIMEOUT",
            How::Error => "ERROR",
        };
        write_command(&["CLIENT", "UNBLOCK", &request.id().to_string(), how], &mut bytes);
        let way = Way { lane: Arc::clone(self.upstream.lane(key)), key };
        let backlog = Arc::clone(&self.upstream.backlog);
        let (teller, answer) = oneshot::channel();
        self.unblocking = Some(answer);
        tokio::spawn(async move {
            let reply = ask_here(way, bytes, backlog).await;
            request.answered(&reply);
            // Whoever asked may be gone.
            let _told = teller.send(reply);
        });
    }

    /// Where others see that it waits for the server.
    pub(super) fn place_to_wait(&mut self) -> &Wait {
        let (clients, id) = (&self.upstream.clients, self.identity.id);
        self.wait.get_or_insert_with(|| {
            let wait = Arc::default();
            clients.note_wait(id, &wait);
            wait
        })
    }

    /// Another client has ended the waiting for a connection.
    pub(super) fn end_waiting(&mut self, how: How, purpose: Purpose) -> Moved {
        self.waits_no_more();
        match how {
            How::Error => self.refuse_first(UNBLOCKED, purpose),
            How::Timeout => {
                let mut reply = Vec::new();
                self.write_time_is_over(&mut reply);
                self.finish_first(&reply);
            }
        }
        Moved::Yes
    }

    /// What the command in the inbox brings when its time is over and nothing has come.
    fn write_time_is_over(&self, out: &mut Vec<u8>) {
        let words: Vec<&[u8]> = Arguments::new(&self.inbox).take(1).collect();
        match look_up(&words).map(|command| command.name) {
            // Nobody has said that any replica has it.
            Some("WAIT") => out.extend_from_slice(b":0\r\n"),
            Some("WAITAOF") => out.extend_from_slice(b"*2\r\n:0\r\n:0\r\n"),
            _ => Pop::write_nothing(self.identity.proto, out),
        }
    }

    /// A command that blocks is on its way over the held connection.
    pub(super) fn note_call(&mut self) {
        let State::Pinned(pinned, _) = &self.state else { return };
        if let Some(id) = pinned.id() {
            self.place_to_wait().call(id);
        }
    }

    /// Whether the held connection may be somebody else's: no request to end a call is on its way to it.
    pub(super) fn poll_settled(&mut self, cx: &Context<'_>) -> Poll<()> {
        let (Some(wait), State::Pinned(pinned, _)) = (&self.wait, &mut self.state) else {
            return Poll::Ready(());
        };
        wait.poll_settled(cx).map(|doubt| {
            if doubt == Doubt::Some {
                pinned.spoil();
            }
        })
    }
}

fn outcome(how: How) -> Outcome {
    match how {
        How::Timeout => Outcome::Nothing,
        How::Error => Outcome::Failed(UNBLOCKED.to_owned()),
    }
}

fn whom_to_unblock(words: &[&[u8]]) -> Option<(i64, How)> {
    let how = match words {
        [_, _, _] => How::Timeout,
        [_, _, _, how] if how.eq_ignore_ascii_case(b"TIMEOUT") => How::Timeout,
        [_, _, _, how] if how.eq_ignore_ascii_case(b"ERROR") => How::Error,
        _ => return None,
    };
    let id = words.get(2).and_then(|id| std::str::from_utf8(id).ok()?.parse().ok())?;
    Some((id, how))
}
