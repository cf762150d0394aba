//! Where the sessions of a pool and the one connection that listens for them meet: orders go in, notifications come out.
//! `listen` is the connection's side of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{mpsc, oneshot, watch};

use super::wire;

/// The name of a channel, in UTF-8.
pub type Channel = Box<[u8]>;

/// Most bytes of notifications kept for one session that does not read them.
const MAILBOX_BYTES: usize = 1024 * 1024;

/// The way to a pool's listening connection.
#[derive(Debug)]
pub struct Hub {
    marker: String,
    /// How many tickets were given out.
    tickets: AtomicU64,
    station: Mutex<Option<Station>>,
}

/// The sessions' side of it.
#[derive(Debug)]
pub(super) struct Station {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) phase: watch::Receiver<Phase>,
}

/// The connection's side of it.
#[derive(Debug)]
pub(super) struct Outlook {
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) phase: watch::Sender<Phase>,
}

/// Whether there is a reason to go on listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    There,
    Gone,
}

/// How the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There was no connection yet.
    Opening,
    Up,
    /// The connection is lost; another is looked for.
    Lost,
    /// There will be none.
    Closed,
    /// There would be one, but the server refuses to listen.
    Refused,
}

/// What a session wants of it.
#[derive(Debug)]
pub(super) enum Order {
    Join(Join, oneshot::Sender<()>),
    Leave { session: i32, channels: Option<Vec<Channel>> },
}

/// A session that wants to hear of channels.
#[derive(Debug)]
pub struct Join {
    /// Its number.
    pub session: i32,
    /// Where notifications go.
    pub mailbox: Arc<Mailbox>,
    /// What it listens to on its own connection, and has not been listened for before.
    pub channels: Vec<Channel>,
    /// With the session's number it makes the marker from which the mailbox gets them; see [`Hub::ticket`].
    pub ticket: u64,
}

/// Notifications for one session.
#[derive(Debug, Default)]
pub struct Mailbox {
    post: Mutex<Post>,
}

#[derive(Debug, Default)]
struct Post {
    frames: Vec<u8>,
    overflow: bool,
    /// The ticket of the latest marker that its session has sent.
    marked: u64,
    waker: Option<Waker>,
}

/// What a mailbox gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Whole frames.
    Frames(Vec<u8>),
    /// More came than is kept: some are lost.
    Overflow,
}

impl Mailbox {
    /// Takes what is there. Pending: the task is woken when something comes.
    pub fn poll_take(&self, cx: &Context<'_>) -> Poll<Delivery> {
        let mut post = self.lock();
        if post.overflow {
            return Poll::Ready(Delivery::Overflow);
        }
        if !post.frames.is_empty() {
            return Poll::Ready(Delivery::Frames(std::mem::take(&mut post.frames)));
        }
        match &post.waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => post.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The session is about to send the marker with this ticket.
    pub fn mark(&self, ticket: u64) {
        self.lock().marked = ticket;
    }

    /// Whether the session has sent the marker with this ticket. It sends one behind the other.
    pub(super) fn is_marked(&self, ticket: u64) -> bool {
        self.lock().marked >= ticket
    }

    pub(super) fn push(&self, frame: &[u8]) {
        let waker = {
            let mut post = self.lock();
            if post.frames.len() + frame.len() > MAILBOX_BYTES {
                post.overflow = true;
                post.frames = Vec::new();
            }
            if !post.overflow {
                post.frames.extend_from_slice(frame);
            }
            post.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The marker's payload.
#[must_use]
pub fn marker_payload(session: i32, ticket: u64) -> String {
    format!("{session}:{ticket}")
}

/// The session and the ticket of a marker's payload.
#[must_use]
pub fn read_marker(payload: &[u8]) -> Option<(i32, u64)> {
    let (session, ticket) = std::str::from_utf8(payload).ok()?.split_once(':')?;
    Some((session.parse().ok()?, ticket.parse().ok()?))
}

/// A marker as a server brings it.
pub(super) fn marker_frame(channel: &str, session: i32, ticket: u64) -> Vec<u8> {
    let payload = marker_payload(session, ticket);
    let mut frame = Vec::new();
    let parts: [&[u8]; 5] = [&[0; 4], channel.as_bytes(), b"\0", payload.as_bytes(), b"\0"];
    wire::put_frame(&mut frame, b'A', &parts);
    frame
}

impl Hub {
    /// `nonce` makes the marker's channel one that nobody else uses.
    #[must_use]
    pub fn new(nonce: u64) -> Self {
        let marker = format!("tidegate_{nonce:016x}");
        Self { marker, tickets: AtomicU64::new(0), station: Mutex::new(None) }
    }

    /// The channel of the markers.
    #[must_use]
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// A number that no marker had before: one that comes late must not be taken for another.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether sessions can be taken over.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let station = self.lock();
        let phase = station.as_ref().map(|station| *station.phase.borrow());
        matches!(phase, Some(Phase::Up | Phase::Lost))
    }

    /// The way to what listens; `start` is called if nothing does.
    pub(super) fn station(&self, start: impl FnOnce(Outlook)) -> MutexGuard<'_, Option<Station>> {
        let mut station = self.lock();
        station.get_or_insert_with(|| {
            let (orders, received) = mpsc::unbounded_channel();
            let (phase, watched) = watch::channel(Phase::Opening);
            start(Outlook { orders: received, phase });
            Station { orders, phase: watched }
        });
        station
    }

    /// Nothing listens any more, unless `still` says that there is a reason to; `still` is asked while nobody can give an order.
    pub(super) fn vacate(&self, still: impl FnOnce() -> Need) -> Need {
        let mut station = self.lock();
        let need = still();
        if need == Need::Gone {
            *station = None;
        }
        need
    }

    /// A session listens no more: to these channels, or to any.
    pub fn leave(&self, session: i32, channels: Option<Vec<Channel>>) {
        if let Some(station) = &*self.lock() {
            let sent = station.orders.send(Order::Leave { session, channels });
            drop(sent);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Station>> {
        self.station.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Channel and payload of a NotificationResponse's body.
#[must_use]
pub fn notification(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (channel, rest) = wire::cstr(body.get(4..)?)?;
    let (payload, _) = wire::cstr(rest)?;
    Some((channel, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_keeps_so_much_and_no_more() {
        let mailbox = Mailbox::default();
        let cx = Context::from_waker(Waker::noop());
        assert!(mailbox.poll_take(&cx).is_pending());
        mailbox.push(b"one");
        mailbox.push(b"two");
        assert_eq!(mailbox.poll_take(&cx), Poll::Ready(Delivery::Frames(b"onetwo".to_vec())));
        for _ in 0..=MAILBOX_BYTES / 1024 {
            mailbox.push(&[0; 1024]);
        }
        assert_eq!(mailbox.poll_take(&cx), Poll::Ready(Delivery::Overflow));
        assert!(mailbox.lock().frames.is_empty());
    }

    #[test]
    fn a_marker_is_read_as_it_is_written() {
        let frame = marker_frame("tidegate_1", 7, 12);
        let (channel, payload) = notification(&frame[wire::HEADER_BYTES..]).unwrap();
        assert_eq!((channel, payload), (&b"tidegate_1"[..], &b"7:12"[..]));
        assert_eq!(read_marker(payload), Some((7, 12)));
        assert_eq!(read_marker(b"7"), None);
        assert_eq!(read_marker(b"x:12"), None);
    }

    #[test]
    fn no_ticket_is_given_out_twice() {
        let hub = Hub::new(1);
        let mailbox = Mailbox::default();
        let (first, second) = (hub.ticket(), hub.ticket());
        assert_ne!(first, second);
        assert!(!mailbox.is_marked(first));
        mailbox.mark(first);
        assert!(mailbox.is_marked(first) && !mailbox.is_marked(second));
    }

    #[test]
    fn a_notification_is_read() {
        assert_eq!(notification(b"\0\0\0\x01news\0hello\0"), Some((&b"news"[..], &b"hello"[..])));
        assert_eq!(notification(b"\0\0\0\x01news"), None);
        assert_eq!(notification(b""), None);
    }
}
