//! What a session listens to once the hub has taken it over, and the way there.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{Admitted, End, Phase, Session};
use crate::config::PoolMode;
use crate::postgres::backend::PgPool;
use crate::postgres::hub::{
    Channel, Delivery, Join, Mailbox, marker_payload, notification, read_marker,
};
use crate::postgres::listen;
use crate::postgres::message::ErrorFields;
use crate::postgres::relay::{self, Leave, Ledger};
use crate::postgres::wire::{self, HEADER_BYTES, Head};

/// A session's place at the hub; dropping it gives the place up.
pub(super) struct Listening {
    pool: Arc<PgPool>,
    session: i32,
    mailbox: Arc<Mailbox>,
    /// The channels the hub knows of.
    registered: BTreeSet<Channel>,
    /// Of these the session's own connection brings what comes before the marker with this ticket.
    awaited: BTreeMap<Channel, u64>,
    handing: Option<Handing>,
}

/// A handover under way.
struct Handing {
    channels: Vec<Channel>,
    ticket: u64,
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
            awaited: BTreeMap::new(),
            handing: None,
        }
    }

    fn join(&mut self, channels: Vec<Channel>) {
        let ticket = self.pool.connector().hub().ticket();
        let join = Join {
            session: self.session,
            mailbox: Arc::clone(&self.mailbox),
            channels: channels.clone(),
            ticket,
        };
        let joined = listen::join(&self.pool, join);
        self.registered.extend(channels.iter().cloned());
        self.awaited.extend(channels.iter().map(|channel| (channel.clone(), ticket)));
        self.handing = Some(Handing { channels, ticket, step: Step::Joining(joined) });
    }

    /// Whether a handover is under way.
    pub(super) fn hands_over(&self) -> bool {
        self.handing.is_some()
    }

    /// Whether what the hub brings may be for channels of which nobody can tell yet whose they are.
    fn is_marked(&self) -> bool {
        self.handing.as_ref().is_some_and(|handing| matches!(handing.step, Step::Marked))
    }

    /// What is left of the hub's frames without what the session does not listen to any more, and what its own connection
    /// brings.
    fn sift(&mut self, ledger: &Ledger, frames: &[u8]) -> Vec<u8> {
        let mut wanted = Vec::with_capacity(frames.len());
        let mut rest = frames;
        while let Head::Frame(header) = wire::head(rest) {
            let Some((frame, behind)) = rest.split_at_checked(header.frame()) else { break };
            rest = behind;
            let told = (header.tag == b'A').then(|| notification(&frame[HEADER_BYTES..]));
            match told.flatten() {
                None => wanted.extend_from_slice(frame),
                Some((channel, payload)) if self.is_marker(channel) => {
                    let ticket = read_marker(payload).map(|(_, ticket)| ticket);
                    self.awaited.retain(|_, awaited| Some(*awaited) != ticket);
                }
                Some((channel, _)) => {
                    if ledger.channels().contains(channel) && !self.awaited.contains_key(channel) {
                        wanted.extend_from_slice(frame);
                    }
                }
            }
        }
        wanted
    }

    fn is_marker(&self, channel: &[u8]) -> bool {
        channel == self.pool.connector().hub().marker().as_bytes()
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
    /// keeps the connection. Without a word of the server's nobody knows what to take over.
    pub(super) fn offer(&mut self, told: Option<Vec<Channel>>) {
        let alone = self.ledger.as_ref().is_some_and(|ledger| ledger.only_listens());
        let Some(mut channels) = told.filter(|_| alone && self.shares_listening()) else {
            if let Some(listening) = self.rare.as_mut().and_then(|rare| rare.listening.as_mut()) {
                listening.handing = None;
            }
            return;
        };
        if let Some(ledger) = &self.ledger {
            channels.retain(|channel| !ledger.channels().contains(channel));
        }
        let (pool, session) = (&self.pool, self.cancel.pid());
        let rare = self.rare.get_or_insert_default();
        let listening =
            rare.listening.get_or_insert_with(|| Box::new(Listening::new(pool, session)));
        listening.join(channels);
        if rare.hold.is_none() {
            rare.permit = None;
        }
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
                    self.count_pins();
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
        listening.mailbox.mark(handing.ticket);
        let payload = marker_payload(listening.session, handing.ticket);
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
        listening.awaited.retain(|channel, _| now.contains(channel));
        listening.pool.connector().hub().leave(listening.session, Some(gone));
    }

    /// Notifications for the client, when it may hear of them. Pending keeps the waker.
    ///
    /// # Errors
    /// When the client has left too many unread.
    pub(super) fn poll_notifications(&mut self, cx: &mut Context<'_>) -> Result<Vec<u8>, End> {
        let Some(listening) = self.rare.as_mut().and_then(|rare| rare.listening.as_mut()) else {
            return Ok(Vec::new());
        };
        let Some(ledger) = &self.ledger else { return Ok(Vec::new()) };
        if listening.is_marked() || ledger.is_parting() {
            return Ok(Vec::new());
        }
        // What is not for the client leaves no waker behind: look again.
        loop {
            match listening.mailbox.poll_take(cx) {
                Poll::Pending => return Ok(Vec::new()),
                Poll::Ready(Delivery::Frames(frames)) => {
                    let wanted = listening.sift(ledger, &frames);
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
}

/// How a handover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandedOver {
    Yes,
    No,
}
