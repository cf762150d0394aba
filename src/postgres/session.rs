//! One Postgres client from greeting to goodbye: the only place that holds both ends.
//!
//! A hand-written future, small because most sessions are idle: it owns its client's stream and, between checkout and
//! give back, a lease on a server connection. Bytes are read into the thread's one buffer and leave in the same poll;
//! what cannot leave is parked. It sleeps only when both sides have nothing to give and both wakers are kept.

mod clock;
mod linked;
mod listening;
mod lost;
mod unlinked;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::listening::Listening;
use super::backend::{Outbox, PgConnect, PgPool};
use super::cancel::CancelHandle;
use super::clean::{Departure, Leavings, clean};
use super::clients::Wanted;
use super::exchange::Status;
use super::message::{ErrorFields, Severity, error_frame};
use super::relay::{Leave, Ledger, Pace, Stance, Transaction};
use super::settings::Settings;
use super::shares::Share;
use crate::lifecycle::DrainGuard;
use crate::metrics::Happening;
use crate::net::{Registered, Stream, with_read_buffer};
use crate::pool::{Lease, PinPermit, Ticket};

/// Most turns of one session before others have theirs.
const TURNS: usize = 64;

/// Longest time to deliver the last words to a client that is being sent away.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Most reads of what such a client still sends.
const LAST_READS: usize = 64;

/// What a session is made of.
pub struct SessionParts {
    /// The client, greeted.
    pub client: Stream,
    /// Where its server connections come from.
    pub pool: Arc<PgPool>,
    /// What it asked for at startup.
    pub settings: Arc<Settings>,
    /// Where it hears of cancel requests.
    pub cancel: CancelHandle,
    /// Keeps a drain waiting for it.
    pub drain: DrainGuard,
    /// What the client sent behind its greeting.
    pub leftover: Vec<u8>,
}

/// The future of one session. Ends when the client has gone or is sent away; never fails.
pub struct Running(Option<Session>);

/// One client's session.
struct Session {
    client: Stream,
    phase: Phase,
    /// Bytes read from the client and not done with.
    inbox: Option<Box<Inbox>>,
    ledger: Option<Box<Ledger>>,
    rare: Option<Box<Rare>>,
    pool: Arc<PgPool>,
    settings: Arc<Settings>,
    cancel: CancelHandle,
    drain: DrainGuard,
    /// Bytes still to come of a frame that is dropped.
    dropping: u32,
    pace: Pace,
    hears: Hears,
    /// For the client's bytes.
    registered: Registered,
}

/// Whether what is wanted of a session wakes it: from its first poll on, in one task as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hears {
    Nothing,
    Words,
}

/// Where a session stands between two transactions.
enum Phase {
    /// Has no server connection and needs none.
    Idle,
    /// Waits for leave to pin a connection before it asks for one.
    Barred(Admission),
    /// Is in the pool's queue.
    Waiting(Ticket<PgConnect>),
    /// Has one.
    Linked(Lease<PgConnect>),
}

/// Brings what a statement waits for.
type Admission = Pin<Box<dyn Future<Output = Admitted> + Send>>;

/// What a statement waited for.
enum Admitted {
    /// Leave to pin a connection.
    Pin(PinPermit),
    /// The hub listens.
    Hub,
    /// A part of its application's share.
    Share(Share),
    /// None came in time.
    NoShare,
    /// It did not come in time.
    No(Leave),
}

/// Bytes read from the client and not done with.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// How many of them it takes to go on.
    need: usize,
}

/// What few sessions have.
struct Rare {
    /// Words of ours for the client.
    words: Outbox,
    stance: Stance,
    presence: Presence,
    cancelling: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    wish: Wish,
    /// Runs while the client leaves bytes unread and holds a connection.
    stall: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Runs while the client says nothing more inside a message that the server has begun to read.
    silence: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Runs while the server owes us what the session has left.
    question: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Runs while the session keeps its connection because it may ask what a sequence gave it.
    hold: Option<Pin<Box<tokio::time::Sleep>>>,
    /// What the hub hears for the session.
    listening: Option<Box<Listening>>,
    /// That a connection was lost, for a client that was owed nothing then.
    late: Option<ErrorFields>,
    /// What the loss has made of the client's transaction.
    transaction: Transaction,
    /// Leave to pin a connection, until that is given back.
    permit: Option<PinPermit>,
    /// A part of its application's share, until its connection is given back.
    share: Option<Share>,
    /// Brings it to a session that holds a connection meanwhile.
    admission: Option<Admission>,
    /// Since when the server is to end a statement that ran too long.
    overrun: Option<tokio::time::Instant>,
    /// Until when the session waits for it, once it has begun to.
    admission_ends: Option<tokio::time::Instant>,
}

/// Whether the client wants to have cancelled what the server has not begun yet.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    None,
    /// As soon as the server is at a request of the client's: now it is at one of ours.
    Cancel,
}

/// Whether the client will say more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Here,
    /// It said goodbye behind requests that are still to be answered, as a server would answer them.
    Leaving,
}

impl Default for Rare {
    fn default() -> Self {
        Self {
            words: Outbox::default(),
            stance: Stance::Open,
            presence: Presence::Here,
            cancelling: None,
            wish: Wish::None,
            stall: None,
            silence: None,
            question: None,
            hold: None,
            listening: None,
            late: None,
            transaction: Transaction::None,
            permit: None,
            share: None,
            admission: None,
            admission_ends: None,
            overrun: None,
        }
    }
}

impl Rare {
    /// Whether a session without a connection has to keep it.
    fn is_needed(&self) -> bool {
        self.stance != Stance::Open
            || self.admission_ends.is_some()
            || self.share.is_some()
            || self.late.is_some()
            || self.listening.is_some()
            || self.transaction != Transaction::None
    }

    /// Whether the hub is about to take over all that keeps the connection.
    fn hands_over(&self) -> bool {
        self.listening.as_ref().is_some_and(|listening| listening.hands_over())
    }

    /// What a client without a connection is in.
    fn status(&self) -> Status {
        match self.transaction {
            Transaction::None => Status::Idle,
            Transaction::Failed => Status::Failed,
        }
    }
}

/// What a turn came to.
enum Turn {
    /// Something moved: look again.
    Again,
    /// Nothing to do until somebody wakes us.
    Sleep,
    /// The session is over.
    End(End),
}

/// How a session ends.
enum End {
    /// The client closed its stream or broke it.
    Vanished,
    /// The client said goodbye.
    Goodbye,
    /// We send it away with these words; the server connection may be cleaned.
    Dismissed(ErrorFields),
    /// The server connection is lost.
    ServerLost(Lost),
}

/// How a server connection was lost.
enum Lost {
    /// It closed the stream or broke it.
    Closed,
    /// It said what nobody had asked for.
    Desync(String),
    /// It refused the session's settings.
    SettingsRefused,
    /// It did not tell in time what the session has left.
    Silent,
}

impl Running {
    /// A session ready to be spawned.
    #[must_use]
    pub fn new(parts: SessionParts) -> Self {
        let SessionParts { client, pool, settings, cancel, drain, leftover } = parts;
        let inbox = (!leftover.is_empty()).then(|| Box::new(Inbox { bytes: leftover, need: 0 }));
        pool.metrics().clients_idle.inc();
        Self(Some(Session {
            client,
            phase: Phase::Idle,
            inbox,
            ledger: None,
            rare: None,
            pool,
            settings,
            cancel,
            drain,
            dropping: 0,
            pace: Pace::InTurn,
            hears: Hears::Nothing,
            registered: Registered::at_first(),
        }))
    }
}

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(session) = &mut self.0 else { return Poll::Ready(()) };
        let end = match with_read_buffer(|buffer| session.run(cx, buffer)) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(end) => end,
        };
        if let Some(session) = self.0.take() {
            session.end(end);
        }
        Poll::Ready(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The runtime is going down with the session alive.
        if let Some(session) = self.0.take() {
            session.phase.gauge(&session.pool).dec();
        }
    }
}

impl Phase {
    /// The gauge that counts sessions in this phase.
    fn gauge<'a>(&self, pool: &'a Arc<PgPool>) -> &'a prometheus::IntGauge {
        let metrics = pool.metrics();
        match self {
            Self::Idle => &metrics.clients_idle,
            Self::Waiting(_) | Self::Barred(_) => &metrics.clients_waiting,
            Self::Linked(_) => &metrics.clients_active,
        }
    }
}

impl Session {
    fn run(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<End> {
        if self.hears == Hears::Nothing {
            // Ready: it is looked at now, and the next word may come before the task is known.
            self.hears = match self.cancel.card().poll_wanted(cx) {
                Poll::Ready(()) => Hears::Nothing,
                Poll::Pending => Hears::Words,
            };
        }
        if self.cancel.card().is_wanted() {
            if let Err(end) = self.heed(self.cancel.card().take_wanted()) {
                return Poll::Ready(end);
            }
            if self.hears == Hears::Nothing {
                cx.waker().wake_by_ref();
            }
        }
        let draining = self.drain.poll_started(cx).is_ready();
        if draining && self.drain.poll_over(cx).is_ready() {
            return Poll::Ready(End::Dismissed(shutting_down()));
        }
        for _ in 0..TURNS {
            let turn = match self.phase {
                Phase::Idle if draining && self.inbox.is_none() => {
                    Turn::End(End::Dismissed(shutting_down()))
                }
                Phase::Linked(ref lease) if draining && self.rests(lease) => {
                    Turn::End(End::Dismissed(shutting_down()))
                }
                Phase::Idle => self.idle(cx, buffer),
                Phase::Barred(_) => self.barred(cx, buffer),
                Phase::Waiting(_) => self.waiting(cx, buffer),
                Phase::Linked(_) => self.linked(cx, buffer),
            };
            match turn {
                Turn::Again => {}
                Turn::Sleep => return Poll::Pending,
                Turn::End(end) => return Poll::Ready(end),
            }
        }
        // Others have their turns too.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does what others want of it.
    fn heed(&mut self, wanted: Wanted) -> Result<(), End> {
        if wanted.has(Wanted::LEAVE) {
            return Err(End::Dismissed(shutting_down()));
        }
        if wanted.has(Wanted::CANCEL) {
            self.cancel_requested();
        }
        if wanted.has(Wanted::CLOCK) { self.judge() } else { Ok(()) }
    }

    /// Changes phase: the one place that does.
    fn enter(&mut self, phase: Phase) -> Phase {
        self.phase.gauge(&self.pool).dec();
        phase.gauge(&self.pool).inc();
        let before = std::mem::replace(&mut self.phase, phase);
        if let Phase::Linked(lease) = &before {
            lease.seat.leave();
        }
        if let Phase::Linked(lease) = &self.phase {
            lease.seat.take(Arc::clone(self.cancel.card()), lease.since_ns());
        }
        self.show();
        before
    }

    /// Keeps bytes of the client's, of which `need` are wanted before they are looked at again.
    fn park(&mut self, bytes: &[u8], need: usize) {
        if bytes.is_empty() {
            return;
        }
        let inbox = self.inbox.get_or_insert_default();
        inbox.bytes.extend_from_slice(bytes);
        inbox.need = need;
    }

    /// Whether a session keeps its connection without using it.
    fn rests(&self, lease: &Lease<PgConnect>) -> bool {
        lease.line.is_over() && lease.to_client.is_empty() && self.inbox.is_none()
    }

    /// Ends the session: the client gets its last words, the server connection goes back, is cleaned, or is closed.
    fn end(mut self, end: End) {
        let phase = self.enter(Phase::Idle);
        self.pool.metrics().clients_idle.dec();
        let mut words = self.rare.as_mut().map(|rare| rare.words.take()).unwrap_or_default();
        if let Phase::Linked(mut lease) = phase {
            lease.unpin();
            words.append(&mut lease.to_client.take());
            // Inside a reply cut short no words can follow.
            if lease.line.server_at_boundary() {
                words.append(&mut end.words(Some(&lease)));
            }
            self.leave(lease, &end);
        } else {
            words.append(&mut end.words(None));
        }
        let (metrics, client) = (self.pool.metrics(), self.cancel.card());
        let detail = format_args!("client {}: {}", client.pid(), end.as_str());
        metrics.lines.tell(Happening::Disconnected, detail);
        match end {
            End::Vanished => metrics.clients_aborted.inc(),
            End::Goodbye => {}
            End::Dismissed(_) | End::ServerLost(_) => say_goodbye(self.client, words, self.drain),
        }
    }

    fn leave(&mut self, lease: Lease<PgConnect>, end: &End) {
        if let End::ServerLost(lost) = end {
            lease.close(lost.reason());
            return;
        }
        let left = self.ledger.as_ref().map(|ledger| ledger.leavings()).unwrap_or_default();
        let leavings = if left.is_empty() { Leavings::None } else { Leavings::State };
        let cancelling = self.rare.as_mut().and_then(|rare| rare.cancelling.take());
        let unsent = lease.to_server.is_empty() && lease.to_client.is_empty();
        if lease.line.farewell().is_some() {
            lease.close("server");
            return;
        }
        let stuck = self.ledger.as_mut().map(|ledger| ledger.take_stuck()).unwrap_or_default();
        if !stuck.is_empty() {
            lease.close("not_cleanable");
            return;
        }
        if lease.is_misplaced() {
            lease.close("role");
            return;
        }
        if lease.line.is_over() && unsent && leavings == Leavings::None && cancelling.is_none() {
            lease.give_back();
            return;
        }
        let departure = match end {
            End::Goodbye => Departure::Goodbye,
            _ => Departure::Vanished,
        };
        let limit = self.pool.connector().bounds().cleanup_timeout();
        tokio::spawn(async move {
            // A cancel request under way must not hit whoever comes next.
            if let Some(cancelling) = cancelling {
                cancelling.await;
            }
            clean(lease, departure, leavings, limit).await;
        });
    }
}

impl End {
    /// Why the session ended, for the log.
    fn as_str(&self) -> &str {
        match self {
            Self::Vanished => "it closed the connection",
            Self::Goodbye => "it said goodbye",
            Self::Dismissed(fields) => &fields.message,
            Self::ServerLost(_) => "its server connection was lost",
        }
    }

    /// What the client is told, as frames.
    fn words(&self, lease: Option<&Lease<PgConnect>>) -> Vec<u8> {
        match (self, lease) {
            (Self::Dismissed(fields), _) => error_frame(fields),
            (Self::ServerLost(lost), Some(lease)) => {
                error_frame(&lost.fields(lease, Severity::Fatal))
            }
            _ => Vec::new(),
        }
    }
}

/// The words Postgres has for it.
fn shutting_down() -> ErrorFields {
    ErrorFields::fatal("57P01", "terminating connection due to administrator command")
}

/// Delivers the last words, in a task of its own if the socket does not take them at once.
fn say_goodbye(mut client: Stream, words: Vec<u8>, drain: DrainGuard) {
    tokio::spawn(async move {
        let _guard = drain;
        let send = async {
            client.write_all(&words).await?;
            client.shutdown().await?;
            // Closing a socket with bytes unread resets it, and the words could be lost with it.
            let mut piece = [0; 1024];
            for _ in 0..LAST_READS {
                if client.read(&mut piece).await? == 0 {
                    break;
                }
            }
            std::io::Result::Ok(())
        };
        // Whoever doesn't read its last words goes without them.
        let _sent = tokio::time::timeout(LAST_WORDS, send).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_is_small() {
        // With the task's header it must fit the runtime's 256-byte cell (reference: one cache-aligned allocation).
        assert!(size_of::<Running>() <= 176, "{}", size_of::<Running>());
    }
}
