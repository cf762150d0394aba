//! One server connection that listens for all sessions of a pool, and what brings its notifications to them.
//!
//! A session's LISTEN runs on the connection the session has; what came of it is asked of the server. Then this one
//! listens too, and a marker is notified: everybody hears notifications in one order, so what comes before the marker
//! reaches the session over its own connection and what comes behind it over this one, each exactly once. Source:
//! PostgreSQL documentation, "NOTIFY": one order for all, own notifications included.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::backend::{PgBackend, PgConnect, PgPool};
use super::hub::{
    Channel, Join, Mailbox, Need, Order, Outlook, Phase, marker_frame, notification, read_marker,
};
use super::message::{self, ErrorFields, Severity};
use super::wire::{self, HEADER_BYTES, Head};
use crate::pool::{Checkout, CheckoutErrorKind, Lease, PinPermit};

/// Longest frame the hub's server may send: a notification has a payload below 8000 bytes.
const FRAME_BYTES: usize = 64 * 1024;
/// For how long the connection is kept when nobody listens any more.
const LINGER: Duration = Duration::from_millis(500);
/// Pause between attempts to listen again after a loss.
const PAUSE: Duration = Duration::from_millis(500);
/// The reason of the hub's pin.
const REASON: &str = "listen";

/// Starts to listen, if nothing does, and waits until that is decided; `false`: there is no connection to be had. Where the
/// server refuses, as a standby does, the session's own LISTEN may go on to hear so. Cancel safe. Call it inside the runtime.
pub fn wait_up(pool: &Arc<PgPool>) -> impl Future<Output = bool> + Send + use<> {
    let station = pool.connector().hub().station(start(pool));
    let phase = station.as_ref().map(|station| station.phase.clone());
    drop(station);
    async move {
        let Some(mut phase) = phase else { return false };
        let decided = phase.wait_for(|phase| *phase != Phase::Opening).await;
        decided.is_ok_and(|phase| *phase != Phase::Closed)
    }
}

/// Has it listen to a session's channels; tells when it does.
pub fn join(pool: &Arc<PgPool>, join: Join) -> oneshot::Receiver<()> {
    let (done, joined) = oneshot::channel();
    // Under the lock: the task that ends takes its station away under it, too.
    let station = pool.connector().hub().station(start(pool));
    if let Some(station) = &*station {
        let sent = station.orders.send(Order::Join(join, done));
        drop(sent);
    }
    joined
}

fn start(pool: &Arc<PgPool>) -> impl FnOnce(Outlook) + use<> {
    let pool = Arc::clone(pool);
    move |Outlook { orders, phase }| {
        let channels = HashMap::default();
        let task = Task { pool, orders, phase, channels, owed: VecDeque::new() };
        tokio::spawn(task.run());
    }
}

/// What runs while somebody listens.
struct Task {
    pool: Arc<PgPool>,
    orders: mpsc::UnboundedReceiver<Order>,
    phase: watch::Sender<Phase>,
    channels: HashMap<Channel, HashMap<i32, Listener, RandomState>, RandomState>,
    /// Who waits for the answers to what was sent.
    owed: VecDeque<Vec<oneshot::Sender<()>>>,
}

struct Listener {
    mailbox: Arc<Mailbox>,
    hears: Hears,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hears {
    /// Its own connection brings it what comes before this marker.
    FromMarker(u64),
    All,
}

/// Whether somebody was listened for before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    /// After a loss.
    Again,
}

/// Why the hub stops to serve.
enum Stop {
    Lost,
    /// All connections of the pool are to be replaced.
    Outdated,
    Unused,
}

type Open = (Lease<PgConnect>, PinPermit);

impl Task {
    async fn run(mut self) {
        let mut start = Start::First;
        while let Some((mut lease, permit)) = self.open(start).await {
            start = Start::Again;
            self.phase.send_replace(Phase::Up);
            lease.pin(REASON);
            let _since = lease.turn(crate::metrics::Phase::Pinned);
            let outdated = lease.until_outdated();
            let stop = tokio::select! {
                stop = self.serve(&mut lease) => stop,
                () = outdated => Stop::Outdated,
            };
            lease.unpin();
            drop(permit);
            match stop {
                Stop::Unused => {
                    if clean(&self.pool, &mut lease).await {
                        lease.give_back();
                    }
                    return;
                }
                Stop::Lost => self.lost(lease, "server_closed"),
                Stop::Outdated => self.lost(lease, "renewed"),
            }
        }
    }

    fn lost(&mut self, lease: Lease<PgConnect>, reason: &'static str) {
        lease.close(reason);
        self.pool.metrics().listen_losses.inc();
        tracing::warn!(
            pool = self.pool.settings().name,
            channels = self.channels.len(),
            reason,
            "the listening connection is lost: notifications are missed until there is another"
        );
        self.phase.send_replace(Phase::Lost);
        // They listen as soon as there is a connection; the gap is stated then.
        self.owed.drain(..).flatten().for_each(tell);
    }

    /// A connection that listens; `None`: there is none, and nobody is left who needs one.
    async fn open(&mut self, start: Start) -> Option<Open> {
        loop {
            let why = match self.try_open(start).await {
                Ok(open) => return Some(open),
                Err(why) => why,
            };
            if why == NotOpen::Closed || start == Start::First || self.channels.is_empty() {
                self.pool.connector().hub().vacate(|| Need::Gone);
                let refused = why == NotOpen::Refused;
                self.phase.send_replace(if refused { Phase::Refused } else { Phase::Closed });
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_open(&mut self, start: Start) -> Result<Open, NotOpen> {
        let opening = open(Arc::clone(&self.pool));
        let mut opening = pin!(opening);
        let (mut lease, permit) = loop {
            tokio::select! {
                opened = &mut opening => break opened?,
                Some(order) = self.orders.recv(), if start == Start::Again => self.take_unheard(order),
            }
        };
        let why = match self.listen_on(&mut lease, start).await {
            Ok(()) => return Ok((lease, permit)),
            Err(why) => why,
        };
        // A refusal does the connection no harm.
        if why == NotOpen::Refused && clean(&self.pool, &mut lease).await {
            lease.give_back();
        } else {
            lease.close(REASON);
        }
        Err(why)
    }

    /// An order while there is no connection.
    fn take_unheard(&mut self, order: Order) {
        match order {
            Order::Join(join, done) => {
                self.enter(join);
                tell(done);
            }
            Order::Leave { session, channels } => drop(self.remove(session, channels)),
        }
    }

    /// Listens to all that somebody wants to hear.
    async fn listen_on(&mut self, backend: &mut PgBackend, start: Start) -> Result<(), NotOpen> {
        let mut words = format!("LISTEN {}; SET client_encoding TO 'UTF8'", self.marker());
        for channel in self.channels.keys() {
            words.push_str("; LISTEN ");
            put_channel(&mut words, channel);
        }
        let words = message::query(&words);
        let asked = backend.ask(&words);
        let limit = self.pool.settings().connect_timeout();
        let Ok(Ok(answer)) = tokio::time::timeout(limit, asked).await else {
            return Err(NotOpen::NotNow);
        };
        if let Some(error) = answer.error {
            let pool = &self.pool.settings().name;
            tracing::debug!(
                pool,
                code = error.code,
                error = error.message,
                "the server refuses LISTEN"
            );
            return Err(NotOpen::Refused);
        }
        if start == Start::Again {
            self.state_gap();
            tracing::info!(pool = self.pool.settings().name, "listening again");
        }
        Ok(())
    }

    /// Tells everybody that something may be missing, once each. A marker that was sent by now may be among what is
    /// missing: it is taken to have come here.
    fn state_gap(&mut self) {
        let gap = ErrorFields::new(
            Severity::Warning,
            "01000",
            "notifications may have been missed: the server connection that listens for this pool was lost and replaced",
        );
        let gap = message::notice_frame(&gap);
        let marker = self.pool.connector().hub().marker();
        let mut told: HashSet<i32> = HashSet::new();
        for (session, listener) in self.channels.values_mut().flatten() {
            if told.insert(*session) {
                listener.mailbox.push(&gap);
            }
            if let Hears::FromMarker(ticket) = listener.hears
                && listener.mailbox.is_marked(ticket)
            {
                listener.hears = Hears::All;
                listener.mailbox.push(&marker_frame(marker, *session, ticket));
            }
        }
    }

    fn marker(&self) -> &str {
        self.pool.connector().hub().marker()
    }

    async fn serve(&mut self, backend: &mut PgBackend) -> Stop {
        let mut linger = pin!(tokio::time::sleep(LINGER));
        poll_fn(|cx| {
            loop {
                while let Poll::Ready(Some(order)) = self.orders.poll_recv(cx) {
                    self.take(order, backend.to_server.bytes());
                }
                if let Poll::Ready(Err(_)) = backend.to_server.poll_send(&mut backend.stream, cx) {
                    return Poll::Ready(Stop::Lost);
                }
                if !self.channels.is_empty() {
                    linger.as_mut().reset(Instant::now() + LINGER);
                } else if linger.as_mut().poll(cx).is_ready()
                    && self.owed.is_empty()
                    && self.is_unused()
                {
                    return Poll::Ready(Stop::Unused);
                }
                // Some may have come with the answer to its first words.
                if self.hear(&mut backend.rest).is_err() {
                    return Poll::Ready(Stop::Lost);
                }
                let mut piece = [0; 8192];
                match backend.stream.poll_read_into(cx, &mut piece) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(n)) if n > 0 => backend.rest.extend_from_slice(&piece[..n]),
                    Poll::Ready(_) => return Poll::Ready(Stop::Lost),
                }
            }
        })
        .await
    }

    /// Ends the station unless an order has come meanwhile.
    fn is_unused(&mut self) -> bool {
        let orders = &self.orders;
        let need = || if orders.is_empty() { Need::Gone } else { Need::There };
        self.pool.connector().hub().vacate(need) == Need::Gone
    }

    fn take(&mut self, order: Order, out: &mut Vec<u8>) {
        match order {
            Order::Join(join, done) => {
                let new = self.enter(join);
                if new.is_empty() && self.owed.is_empty() {
                    return tell(done);
                }
                self.say("LISTEN", &new, vec![done], out);
            }
            Order::Leave { session, channels } => {
                let gone = self.remove(session, channels);
                if !gone.is_empty() {
                    self.say("UNLISTEN", &gone, Vec::new(), out);
                }
            }
        }
    }

    fn say(
        &mut self,
        verb: &str,
        channels: &[Channel],
        waiting: Vec<oneshot::Sender<()>>,
        out: &mut Vec<u8>,
    ) {
        let mut words = String::new();
        for channel in channels {
            words.push_str(verb);
            words.push(' ');
            put_channel(&mut words, channel);
            words.push(';');
        }
        out.extend_from_slice(&message::query(&words));
        self.owed.push_back(waiting);
    }

    /// Notes who listens to what; gives the channels nobody listened to before.
    fn enter(&mut self, join: Join) -> Vec<Channel> {
        let Join { session, mailbox, channels, ticket } = join;
        let mut new = Vec::new();
        for channel in channels {
            let listeners = self.channels.entry(channel.clone()).or_insert_with(|| {
                new.push(channel);
                HashMap::default()
            });
            let mailbox = Arc::clone(&mailbox);
            listeners.insert(session, Listener { mailbox, hears: Hears::FromMarker(ticket) });
        }
        new
    }

    /// Gives the channels that nobody listens to any more.
    fn remove(&mut self, session: i32, channels: Option<Vec<Channel>>) -> Vec<Channel> {
        let channels = channels.unwrap_or_else(|| {
            let mine = self.channels.iter().filter(|(_, all)| all.contains_key(&session));
            mine.map(|(channel, _)| channel.clone()).collect()
        });
        let mut gone = Vec::new();
        for channel in channels {
            let Some(listeners) = self.channels.get_mut(&channel) else { continue };
            listeners.remove(&session);
            if listeners.is_empty() {
                self.channels.remove(&channel);
                gone.push(channel);
            }
        }
        gone
    }

    /// Reads whole frames of the server's.
    fn hear(&mut self, rest: &mut Vec<u8>) -> Result<(), Unfit> {
        let mut at = 0;
        loop {
            let header = match wire::head(&rest[at..]) {
                Head::Frame(header) if header.frame() <= FRAME_BYTES => header,
                Head::Short => break,
                _ => return Err(Unfit),
            };
            let Some(frame) = rest.get(at..at + header.frame()) else { break };
            match header.tag {
                b'A' => self.notified(frame),
                b'Z' => self.owed.pop_front().unwrap_or_default().into_iter().for_each(tell),
                b'E' => {
                    let error = ErrorFields::parse(&frame[HEADER_BYTES..]);
                    tracing::warn!(
                        pool = self.pool.settings().name,
                        code = error.code,
                        error = error.message,
                        "the listening connection was refused something"
                    );
                    return Err(Unfit);
                }
                _ => {}
            }
            at += header.frame();
        }
        rest.drain(..at);
        Ok(())
    }

    fn notified(&mut self, frame: &[u8]) {
        let Some((channel, payload)) = notification(&frame[HEADER_BYTES..]) else { return };
        if channel == self.marker().as_bytes() {
            if let Some((session, ticket)) = read_marker(payload) {
                self.marked(frame, session, ticket);
            }
        } else if let Some(listeners) = self.channels.get(channel) {
            let hearing = listeners.values().filter(|listener| listener.hears == Hears::All);
            hearing.for_each(|listener| listener.mailbox.push(frame));
        }
    }

    /// From here on a session hears of the channels it has joined with this ticket. It is told where that is.
    fn marked(&mut self, frame: &[u8], session: i32, ticket: u64) {
        let mut mailbox = None;
        for listeners in self.channels.values_mut() {
            let Some(listener) = listeners.get_mut(&session) else { continue };
            if listener.hears == Hears::FromMarker(ticket) {
                listener.hears = Hears::All;
            }
            mailbox = Some(&listener.mailbox);
        }
        if let Some(mailbox) = mailbox {
            mailbox.push(frame);
        }
    }
}

/// A name, quoted.
fn put_channel(words: &mut String, channel: &[u8]) {
    words.push('"');
    words.push_str(&String::from_utf8_lossy(channel).replace('"', "\"\""));
    words.push('"');
}

/// The server said what ends the connection.
struct Unfit;

/// Who has gone meanwhile needs no answer.
fn tell(waiting: oneshot::Sender<()>) {
    let _gone = waiting.send(());
}

/// Why there is no connection to listen on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NotOpen {
    /// There will be none.
    Closed,
    /// It could not be had in time.
    NotNow,
    /// There is one, but the server refuses to listen.
    Refused,
}

/// A connection to listen on, without anything of sessions before.
async fn open(pool: Arc<PgPool>) -> Result<Open, NotOpen> {
    let permit = pool.wait_to_pin(Instant::now() + pool.settings().wait()).await;
    let permit = permit.ok_or(NotOpen::NotNow)?;
    let lease = match pool.checkout() {
        Checkout::Ready(lease) => Ok(lease),
        Checkout::Queued(ticket) => ticket.lease().await,
    };
    let mut lease = lease.map_err(|error| match error.kind {
        CheckoutErrorKind::Closed => NotOpen::Closed,
        _ => NotOpen::NotNow,
    })?;
    if clean(&pool, &mut lease).await {
        return Ok((lease, permit));
    }
    lease.close("server_closed");
    Err(NotOpen::NotNow)
}

/// Takes everything of a session off a connection, in time; if not, it is to be closed.
async fn clean(pool: &PgPool, backend: &mut PgBackend) -> bool {
    let words = message::query("DISCARD ALL");
    let asked = backend.ask(&words);
    match tokio::time::timeout(pool.settings().connect_timeout(), asked).await {
        Ok(Ok(answer)) if answer.error.is_none() => {
            backend.line.discarded();
            true
        }
        _ => false,
    }
}
