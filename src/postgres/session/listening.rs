//! What a session listens to once the hub has taken it over, and the way there.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{Admitted, End, Phase, Session};
use crate::config::PoolMode;
use crate::postgres::backend::PgPool;
use crate::postgres::hub::{Channel, Delivery, Join, Mailbox, marker_payload, notification};
use crate::postgres::listen;
use crate::postgres::message::ErrorFields;
use crate::postgres::relay::{self, Leave};
use crate::postgres::wire::{self, HEADER_BYTES, Head};

/// A session's place at the hub; dropping it gives the place up.
pub(super) struct Listening {
    pool: Arc<PgPool>,
    session: i32,
    mailbox: Arc<Mailbox>,
    /// The channels the hub knows of.
    registered: BTreeSet<Channel>,
    tickets: u64,
    handing: Option<Handing>,
}

/// A handover under way.
struct Handing {
    channels: Vec<Channel>,
    step: Step,
}

enum Step {
    /// The hub is about to listen.
    Joining(oneshot::Receiver<()>),
    /// It listens.
    Joined,
    /// The marker is sent.
    Marked,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.pool.connector().hub().leave(self.session, None);
    }
}

impl Listening {
    fn new(pool: &Arc<PgPool>, session: i32) -> Self {
        Self {
            pool: Arc::clone(pool),
            session,
            mailbox: Arc::default(),
            registered: BTreeSet::new(),
            tickets: 0,
            handing: None,
        }
    }

    fn join(&mut self, channels: Vec<Channel>) {
        self.tickets += 1;
        let join = Join {
            session: self.session,
            mailbox: Arc::clone(&self.mailbox),
            channels: channels.clone(),
            ticket: self.tickets,
        };
        let joined = listen::join(&self.pool, join);
        self.registered.extend(channels.iter().cloned());
        self.handing = Some(Handing { channels, step: Step::Joining(joined) });
    }
}

impl Session {
    /// Whether the hub can hear for sessions of this pool: there is a connection to spare, and they come and go.
    pub(super) fn pool_listens(&self) -> relay::Listening {
        if self.pool.limit() > 1 && self.pool.connector().mode() == PoolMode::Transaction {
            relay::Listening::Shared
        } else {
            relay::Listening::Pins
        }
    }

    /// Whether it can hear for this one, too: names and payloads are in UTF-8.
    fn shares_listening(&self) -> bool {
        self.pool_listens() == relay::Listening::Shared && self.settings.speaks_utf8()
    }

    /// Waits for the hub until `ends`.
    pub(super) fn admission_to_hub(
        &self,
        ends: tokio::time::Instant,
    ) -> Pin<Box<dyn Future<Output = Admitted> + Send>> {
        let up = tokio::time::timeout_at(ends, listen::wait_up(&self.pool));
        Box::pin(async move {
            if up.await.unwrap_or(false) { Admitted::Hub } else { Admitted::No(Leave::Listen) }
        })
    }

    /// The server has told what the session listens to on its connection: the hub takes that over, if nothing else
    /// keeps the connection.
    pub(super) fn offer(&mut self, channels: Vec<Channel>) {
        let alone = self.ledger.as_ref().is_some_and(|ledger| ledger.only_listens());
        if !alone || !self.shares_listening() {
            if let Some(listening) = self.rare.as_mut().and_then(|rare| rare.listening.as_mut()) {
                listening.handing = None;
            }
            return;
        }
        let (pool, session) = (&self.pool, self.cancel.pid());
        let rare = self.rare.get_or_insert_default();
        let listening =
            rare.listening.get_or_insert_with(|| Box::new(Listening::new(pool, session)));
        listening.join(channels);
    }

    /// Goes on with a handover, when its turn has come; tells whether something is on the line to be flushed.
    pub(super) fn hand_over(&mut self, cx: &mut Context<'_>) -> bool {
        // A cancel request under way would hit a query of ours.
        if self.is_cancelling() {
            return false;
        }
        let Phase::Linked(lease) = &mut self.phase else { return false };
        let Some(listening) = self.rare.as_mut().and_then(|rare| rare.listening.as_mut()) else {
            return false;
        };
        let Some(handing) = &mut listening.handing else { return false };
        if let Step::Joining(joined) = &mut handing.step {
            match Pin::new(joined).poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => handing.step = Step::Joined,
                Poll::Ready(Err(_)) => {
                    // The hub has gone: the connection stays with the session.
                    listening.handing = None;
                    return false;
                }
            }
        }
        let backend = &mut **lease;
        if matches!(handing.step, Step::Marked) {
            return backend.line.end_handover(backend.to_server.bytes());
        }
        let alone = self.ledger.as_ref().is_some_and(|ledger| ledger.only_listens());
        if !alone || !backend.line.is_over() || !backend.to_server.is_empty() {
            return false;
        }
        handing.step = Step::Marked;
        let payload = marker_payload(listening.session, listening.tickets);
        let channel = self.pool.connector().hub().marker();
        backend.line.hand_over(channel, &payload, backend.to_server.bytes());
        self.run_question_clock();
        true
    }

    /// The handover is over, well or not.
    pub(super) fn handed_over(&mut self, done: HandedOver) {
        let Some(rare) = &mut self.rare else { return };
        rare.question = None;
        let Some(listening) = rare.listening.as_mut() else { return };
        let Some(handing) = listening.handing.take() else { return };
        if let (HandedOver::Yes, Some(ledger)) = (done, &mut self.ledger) {
            ledger.handed_over(handing.channels);
        }
    }

    /// Tells the hub what the session does not listen to any more.
    pub(super) fn leave_channels(&mut self) {
        let Some(rare) = &mut self.rare else { return };
        let Some(listening) = &mut rare.listening else { return };
        let none = BTreeSet::new();
        let now = self.ledger.as_ref().map_or(&none, |ledger| ledger.channels());
        if now == &listening.registered {
            return;
        }
        if now.is_empty() {
            rare.listening = None;
            return;
        }
        let gone: Vec<Channel> = listening.registered.difference(now).cloned().collect();
        listening.registered.clone_from(now);
        listening.pool.connector().hub().leave(listening.session, Some(gone));
    }

    /// Notifications for the client, when it may hear of them. Pending keeps the waker.
    ///
    /// # Errors
    /// When the client has left too many unread.
    pub(super) fn poll_notifications(&mut self, cx: &mut Context<'_>) -> Result<Vec<u8>, End> {
        let Some(listening) = self.rare.as_ref().and_then(|rare| rare.listening.as_ref()) else {
            return Ok(Vec::new());
        };
        if listening.handing.is_some() {
            return Ok(Vec::new());
        }
        // What is not for the client leaves no waker behind: look again.
        loop {
            match listening.mailbox.poll_take(cx) {
                Poll::Pending => return Ok(Vec::new()),
                Poll::Ready(Delivery::Frames(frames)) => {
                    let wanted = self.wanted(&frames);
                    if !wanted.is_empty() {
                        return Ok(wanted);
                    }
                }
                Poll::Ready(Delivery::Overflow) => {
                    let words = "too many notifications were left unread by this client";
                    let hint = "Read notifications as they come, or UNLISTEN.";
                    return Err(End::Dismissed(ErrorFields::fatal("53400", words).hint(hint)));
                }
            }
        }
    }

    /// What is left when channels are taken out that the session does not listen to any more.
    fn wanted(&self, frames: &[u8]) -> Vec<u8> {
        let mut wanted = Vec::with_capacity(frames.len());
        let mut rest = frames;
        while let Head::Frame(header) = wire::head(rest) {
            let Some((frame, behind)) = rest.split_at_checked(header.frame()) else { break };
            let channel = notification(&frame[HEADER_BYTES..]).map(|(channel, _)| channel);
            let known = |channel| {
                self.ledger.as_ref().is_some_and(|ledger| ledger.channels().contains(channel))
            };
            if header.tag != b'A' || channel.is_some_and(known) {
                wanted.extend_from_slice(frame);
            }
            rest = behind;
        }
        wanted
    }
}

/// How a handover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandedOver {
    Yes,
    No,
}
