//! The hub: what all sessions have subscribed to, over one connection to the server.
//!
//! A channel is asked for when the first session wants it and given up when the last one has left. A session is told that it is
//! subscribed when the server has said so; from then on it gets every message, in the order in which they came. Each
//! session has a box of its own: who does not read is dropped alone. When the connection is lost another one takes its place, and
//! all is subscribed anew. Source: Redis documentation, "Redis Pub/sub".

mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::backend::{RedisPool, checkout_error};
use super::mailbox::{Backlog, MailLimits};
use super::wire::Arguments;
use crate::pool::{Checkout, CheckoutErrorKind};
use watch::{Ending, Watch};

/// Between two attempts to subscribe anew.
const PAUSE: Duration = Duration::from_millis(50);

/// Most bytes of what is subscribed to, all sessions together: each keeps its names.
const NAME_BYTES: usize = 64 * 1024 * 1024;

/// The name of a channel, or a pattern.
pub type Name = Arc<[u8]>;

/// What can be subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SUBSCRIBE.
    Channel,
    /// PSUBSCRIBE.
    Pattern,
    /// SSUBSCRIBE.
    Shard,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Channel, Self::Pattern, Self::Shard];

    /// The command that subscribes.
    #[must_use]
    pub fn subscribe(self) -> &'static str {
        match self {
            Self::Channel => "subscribe",
            Self::Pattern => "psubscribe",
            Self::Shard => "ssubscribe",
        }
    }

    /// The command that ends it.
    #[must_use]
    pub fn unsubscribe(self) -> &'static str {
        match self {
            Self::Channel => "unsubscribe",
            Self::Pattern => "punsubscribe",
            Self::Shard => "sunsubscribe",
        }
    }

    /// Its place among all.
    #[must_use]
    pub fn place(self) -> usize {
        match self {
            Self::Channel => 0,
            Self::Pattern => 1,
            Self::Shard => 2,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Channel => "message",
            Self::Pattern => "pmessage",
            Self::Shard => "smessage",
        }
    }
}

/// The hub of one upstream.
#[derive(Debug)]
pub struct Hub {
    pool: Arc<RedisPool>,
    /// Most subscriptions of all sessions.
    limit: usize,
    /// How much may wait for one session, and for all.
    mail: MailLimits,
    backlog: Arc<Backlog>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: [HashMap<Name, Topic>; 3],
    /// Whose state at the server may have to change.
    changed: VecDeque<(Kind, Name)>,
    subscriptions: usize,
    /// Of the names of all subscriptions.
    name_bytes: usize,
    task: Task,
}

#[derive(Debug, Default)]
enum Task {
    #[default]
    None,
    Running(Option<Waker>),
}

/// What somebody subscribes to.
#[derive(Debug, Default)]
struct Topic {
    members: BTreeMap<u64, Member>,
    stand: Stand,
}

/// How a topic stands at the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stand {
    #[default]
    Absent,
    Asked,
    Subscribed,
    Leaving,
}

#[derive(Debug)]
struct Member {
    letters: Arc<Letters>,
    standing: Standing,
}

/// Whether the session was told that it is subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Told,
    /// Since then.
    Waits(Instant),
}

/// A message as the server sent it. However many it is for it lies here once, and is counted once.
#[derive(Debug)]
pub struct Message {
    frame: Vec<u8>,
    backlog: Arc<Backlog>,
}

impl Message {
    fn new(frame: Vec<u8>, backlog: &Arc<Backlog>) -> Arc<Self> {
        backlog.add(frame.len());
        Arc::new(Self { frame, backlog: Arc::clone(backlog) })
    }

    /// All of it.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    fn is_of(&self, kind: Kind, names: &[Name]) -> bool {
        let mut words = Arguments::new(&self.frame);
        words.next() == Some(kind.message().as_bytes())
            && words.next().is_some_and(|name| names.iter().any(|one| **one == *name))
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.backlog.settle(self.frame.len());
    }
}

/// What comes for one session.
#[derive(Debug)]
pub struct Letters {
    limits: MailLimits,
    backlog: Arc<Backlog>,
    inner: Mutex<Post>,
}

#[derive(Debug, Default)]
struct Post {
    messages: VecDeque<Arc<Message>>,
    bytes: usize,
    overflow: Overflow,
    /// Subscriptions that the server has not confirmed.
    unsettled: usize,
    refusal: Option<Arc<str>>,
    session: Option<Waker>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Overflow {
    #[default]
    No,
    Yes,
}

/// How this hub, with so many sessions, stands to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The server counts it as one subscriber.
    Counted(usize),
    /// It does not count it.
    Absent(usize),
    /// Nobody can tell.
    Moving(usize),
}

impl Presence {
    /// The server's count with all sessions in it.
    #[must_use]
    pub fn correct(self, count: u64) -> u64 {
        let (hub, sessions) = match self {
            Self::Counted(sessions) => (1, sessions),
            Self::Absent(sessions) => (0, sessions),
            // If somebody is counted, it is the hub more often than not.
            Self::Moving(sessions) => (1, sessions),
        };
        count.saturating_sub(hub).saturating_add(u64::try_from(sessions).unwrap_or(u64::MAX))
    }

    /// Whether it was the same all the time, if this was before and `later` is now.
    #[must_use]
    pub fn is_as_steady_as(self, later: Self) -> bool {
        matches!(
            (self, later),
            (Self::Counted(_), Self::Counted(_)) | (Self::Absent(_), Self::Absent(_))
        )
    }
}

/// What became of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// All of it is confirmed.
    Confirmed,
    /// The server, or the hub, refuses: the text.
    Refused(Arc<str>),
}

impl Letters {
    fn new(limits: MailLimits, backlog: Arc<Backlog>) -> Arc<Self> {
        Arc::new(Self { limits, backlog, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Post> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: &Arc<Message>) {
        let mut inner = self.lock();
        let length = message.frame.len();
        let full = inner.bytes + length > self.limits.client_bytes
            || self.limits.are_reached(inner.bytes, self.backlog.bytes());
        // One message may be longer than what may wait.
        if full && !inner.messages.is_empty() {
            inner.overflow = Overflow::Yes;
        }
        if inner.overflow == Overflow::No {
            inner.bytes += length;
            inner.messages.push_back(Arc::clone(message));
        }
        wake(&inner);
    }

    /// What has come of these is not for the session: it was told that it has not subscribed to them.
    pub fn forget(&self, kind: Kind, names: &[Name]) {
        let mut inner = self.lock();
        inner.messages.retain(|message| !message.is_of(kind, names));
        inner.bytes = inner.messages.iter().map(|message| message.frame.len()).sum();
    }

    fn settle(&self, refusal: Option<&Arc<str>>) {
        let mut inner = self.lock();
        inner.unsettled = inner.unsettled.saturating_sub(1);
        if let Some(text) = refusal {
            inner.refusal.get_or_insert_with(|| Arc::clone(text));
        }
        wake(&inner);
    }

    /// Its session is to be disconnected.
    fn cut(&self) {
        let mut inner = self.lock();
        inner.overflow = Overflow::Yes;
        wake(&inner);
    }

    /// What became of the latest SUBSCRIBE; once. The task is woken when it is known.
    pub fn poll_settled(&self, cx: &Context<'_>) -> Poll<Settled> {
        let mut inner = self.lock();
        if inner.unsettled > 0 {
            inner.session = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(inner.refusal.take().map_or(Settled::Confirmed, Settled::Refused))
    }

    /// Whether too much came that was not read.
    pub fn are_flooded(&self) -> bool {
        self.lock().overflow == Overflow::Yes
    }

    /// The next message; the task is woken when there is one.
    pub fn poll_next(&self, cx: &Context<'_>) -> Poll<Arc<Message>> {
        let mut inner = self.lock();
        match inner.messages.pop_front() {
            Some(message) => {
                inner.bytes -= message.frame.len();
                Poll::Ready(message)
            }
            None => {
                inner.session = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn wake(inner: &Post) {
    if let Some(session) = &inner.session {
        session.wake_by_ref();
    }
}

impl Hub {
    /// Without a connection, until somebody subscribes.
    #[must_use]
    pub fn new(
        pool: Arc<RedisPool>,
        limit: usize,
        mail: MailLimits,
        backlog: Arc<Backlog>,
    ) -> Arc<Self> {
        Arc::new(Self { pool, limit, mail, backlog, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A box for a session.
    #[must_use]
    pub fn letters(&self) -> Arc<Letters> {
        Letters::new(self.mail, Arc::clone(&self.backlog))
    }

    /// A session subscribes; [`Letters::poll_settled`] tells when the server has confirmed it.
    pub fn join(self: &Arc<Self>, kind: Kind, name: &Name, session: u64, letters: &Arc<Letters>) {
        letters.lock().unsettled += 1;
        let mut inner = self.lock();
        if let Some(text) = self.refusal_of_one_more(&inner, name) {
            drop(inner);
            return letters.settle(Some(&text.into()));
        }
        inner.subscriptions += 1;
        inner.name_bytes += name.len();
        self.pool.metrics().subscriptions.inc();
        let topic = inner.topics[kind.place()].entry(Arc::clone(name)).or_default();
        let told = topic.stand == Stand::Subscribed;
        let standing = if told { Standing::Told } else { Standing::Waits(Instant::now()) };
        topic.members.insert(session, Member { letters: Arc::clone(letters), standing });
        if told {
            drop(inner);
            return letters.settle(None);
        }
        inner.changed.push_back((kind, Arc::clone(name)));
        match &mut inner.task {
            Task::Running(waker) => {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            Task::None => {
                inner.task = Task::Running(None);
                tokio::spawn(Arc::clone(self).serve());
            }
        }
    }

    /// A session gives up what it has subscribed to, or has asked for: nothing comes any more.
    pub fn leave(&self, kind: Kind, name: &Name, session: u64) {
        let mut inner = self.lock();
        let Some(topic) = inner.topics[kind.place()].get_mut(name) else { return };
        if topic.members.remove(&session).is_none() {
            return;
        }
        let deserted = topic.members.is_empty();
        inner.forget(1, name.len());
        self.pool.metrics().subscriptions.dec();
        if deserted {
            inner.changed.push_back((kind, Arc::clone(name)));
            inner.wake();
        }
    }

    /// Whether the server counts this hub among a channel's subscribers, and how many sessions that stands for.
    #[must_use]
    pub fn presence(&self, kind: Kind, name: &[u8]) -> Presence {
        let inner = self.lock();
        let Some(topic) = inner.topics[kind.place()].get(name) else { return Presence::Absent(0) };
        let told = |member: &&Member| member.standing == Standing::Told;
        let sessions = topic.members.values().filter(told).count();
        match (topic.stand, topic.members.is_empty()) {
            (Stand::Subscribed, false) => Presence::Counted(sessions),
            (Stand::Absent, _) => Presence::Absent(sessions),
            (Stand::Asked | Stand::Leaving, _) | (Stand::Subscribed, true) => {
                Presence::Moving(sessions)
            }
        }
    }

    async fn serve(self: Arc<Self>) {
        while !self.close_if_idle() {
            let lease = match self.pool.checkout() {
                Checkout::Ready(lease) => Ok(lease),
                Checkout::Queued(ticket) => ticket.lease().await,
            };
            match lease {
                Ok(lease) => {
                    // To be replaced because all are to lead to another server.
                    let outdated = lease.until_outdated();
                    let ending = tokio::select! {
                        ending = Watch::new(Arc::clone(&self), lease).run() => ending,
                        () = outdated => Ending::Lost("renewed".into()),
                    };
                    if let Ending::Lost(reason) = ending {
                        self.lost(&reason);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(error) if error.kind == CheckoutErrorKind::Closed => return,
                Err(error) => {
                    self.refuse_waiting(Duration::ZERO, &checkout_error(&error).into());
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn refusal_of_one_more(&self, inner: &Inner, name: &[u8]) -> Option<String> {
        if inner.subscriptions >= self.limit {
            return Some(format!(
                "ERR tidegate: all clients together have {} subscriptions, which is redis.subscription_limit; \
                 raise it, or use patterns",
                self.limit
            ));
        }
        let too_long = inner.name_bytes + name.len() > NAME_BYTES;
        too_long.then(|| {
            "ERR tidegate: what all clients together have subscribed to has names of more than 64 MiB; \
             use shorter names, or patterns"
                .to_owned()
        })
    }

    /// Ends the task if nothing is subscribed.
    fn close_if_idle(&self) -> bool {
        let mut inner = self.lock();
        let idle = inner.is_idle();
        if idle {
            inner.changed.clear();
            inner.topics = Default::default();
            inner.task = Task::None;
        }
        idle
    }

    /// The connection is lost: everything must be asked for again, over the next one.
    fn lost(&self, reason: &str) {
        self.pool.metrics().subscription_losses.inc();
        tracing::warn!(
            pool = self.pool.settings().name,
            reason,
            "the connection with all subscriptions was lost; messages may have been missed until it is replaced"
        );
        let text =
            "ERR tidegate: the Redis server does not confirm the subscription; look at its log";
        self.refuse_waiting(self.pool.settings().wait(), &text.into());
    }

    /// There is no connection: tells those who have waited for so long that they are not subscribed; all others' wishes stand.
    fn refuse_waiting(&self, since: Duration, text: &Arc<str>) {
        let mut inner = self.lock();
        let late = |member: &Member| match member.standing {
            Standing::Told => false,
            Standing::Waits(begun) => begun.elapsed() >= since,
        };
        let (mut gone, mut bytes) = (0, 0);
        for (name, topic) in inner.topics.iter_mut().flatten() {
            topic.members.retain(|_, member| {
                if !late(member) {
                    return true;
                }
                member.letters.settle(Some(text));
                (gone, bytes) = (gone + 1, bytes + name.len());
                false
            });
        }
        inner.forget(gone, bytes);
        inner.start_over();
        self.pool.metrics().subscriptions.sub(i64::try_from(gone).unwrap_or(i64::MAX));
    }

    /// What the server is to be asked for, in this order. Nothing, if something has changed all the same.
    fn poll_changes(&self, cx: &Context<'_>) -> Poll<Vec<(Kind, Name, Change)>> {
        let mut inner = self.lock();
        let mut changes = Vec::new();
        let changed = !inner.changed.is_empty();
        while let Some((kind, name)) = inner.changed.pop_front() {
            let topics = &mut inner.topics[kind.place()];
            let Some(topic) = topics.get_mut(&name) else { continue };
            match (topic.stand, topic.members.is_empty()) {
                (Stand::Absent, true) => {
                    topics.remove(&name);
                }
                (Stand::Absent, false) => {
                    topic.stand = Stand::Asked;
                    changes.push((kind, name, Change::Join));
                }
                (Stand::Subscribed, true) => {
                    topic.stand = Stand::Leaving;
                    changes.push((kind, name, Change::Leave));
                }
                (Stand::Subscribed, false) | (Stand::Asked | Stand::Leaving, _) => {}
            }
        }
        if !changed {
            if let Task::Running(waker) = &mut inner.task {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(changes)
    }

    /// The server has done what it was asked for.
    fn done(&self, kind: Kind, name: &Name, change: Change) {
        let mut inner = self.lock();
        let Some(topic) = inner.topics[kind.place()].get_mut(name) else { return };
        topic.stand = match change {
            Change::Join => Stand::Subscribed,
            Change::Leave => Stand::Absent,
        };
        if change == Change::Join {
            for member in topic.members.values_mut() {
                if member.standing != Standing::Told {
                    member.standing = Standing::Told;
                    member.letters.settle(None);
                }
            }
        }
        // Somebody may have come or gone meanwhile.
        inner.changed.push_back((kind, Arc::clone(name)));
    }

    /// The server has refused a subscription, for good or for now. Then those who were told that they are subscribed wait for it.
    fn refused(&self, kind: Kind, name: &Name, text: &Arc<str>, refusal: Refusal) {
        let mut inner = self.lock();
        let Some(topic) = inner.topics[kind.place()].get_mut(name) else { return };
        topic.stand = Stand::Absent;
        let before = topic.members.len();
        topic.members.retain(|_, member| match (member.standing, refusal) {
            (Standing::Told, Refusal::Passing) => true,
            (Standing::Told, Refusal::Lasting) => {
                // It believes that it is subscribed: only a new connection tells it otherwise.
                member.letters.cut();
                false
            }
            (Standing::Waits(_), _) => {
                member.letters.settle(Some(text));
                false
            }
        });
        let (left, gone) = (topic.members.len(), before - topic.members.len());
        if left == 0 {
            inner.topics[kind.place()].remove(name);
        }
        inner.forget(gone, gone * name.len());
        self.pool.metrics().subscriptions.sub(i64::try_from(gone).unwrap_or(i64::MAX));
    }

    /// What the server has refused for a while is asked for again.
    fn ask_again(&self) {
        let mut inner = self.lock();
        let Inner { topics, changed, .. } = &mut *inner;
        for kind in Kind::ALL {
            let absent =
                topics[kind.place()].iter().filter(|(_, topic)| topic.stand == Stand::Absent);
            changed.extend(absent.map(|(name, _)| (kind, Arc::clone(name))));
        }
    }

    /// A message has come.
    fn publish(&self, kind: Kind, name: &[u8], frame: Vec<u8>) {
        let inner = self.lock();
        let Some(topic) = inner.topics[kind.place()].get(name) else { return };
        let message = Message::new(frame, &self.backlog);
        for member in topic.members.values() {
            if member.standing == Standing::Told {
                member.letters.push(&message);
            }
        }
    }

    /// Whether the server knows of no subscription of ours, and is not to be asked for any.
    fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.changed.is_empty() && inner.topics.iter().all(HashMap::is_empty)
    }
}

/// What the server is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Join,
    Leave,
}

/// Whether a refusal is the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Lasting,
    /// The server does something else now.
    Passing,
}

impl Refusal {
    fn of(text: &str) -> Self {
        let passing = ["BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"];
        let code = text.split(' ').next().unwrap_or_default();
        if passing.contains(&code) { Self::Passing } else { Self::Lasting }
    }
}

impl Inner {
    fn is_idle(&self) -> bool {
        self.topics.iter().flat_map(HashMap::values).all(|topic| topic.members.is_empty())
    }

    /// Without a connection nothing is subscribed at the server: what somebody wants is to be asked for, and nothing else.
    fn start_over(&mut self) {
        self.changed.clear();
        for kind in Kind::ALL {
            let topics = &mut self.topics[kind.place()];
            topics.retain(|_, topic| !topic.members.is_empty());
            topics.values_mut().for_each(|topic| topic.stand = Stand::Absent);
            self.changed.extend(topics.keys().map(|name| (kind, Arc::clone(name))));
        }
    }

    fn wake(&mut self) {
        if let Task::Running(waker) = &mut self.task
            && let Some(waker) = waker.take()
        {
            waker.wake();
        }
    }

    fn forget(&mut self, subscriptions: usize, name_bytes: usize) {
        self.subscriptions = self.subscriptions.saturating_sub(subscriptions);
        self.name_bytes = self.name_bytes.saturating_sub(name_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MailLimits =
        MailLimits { client_bytes: 1_000_000, total_bytes: 200_000, stall: Duration::ZERO };

    fn message(channel: &str, length: usize, backlog: &Arc<Backlog>) -> Arc<Message> {
        let mut frame = Vec::new();
        let payload = "x".repeat(length);
        crate::redis::wire::write_command(&["message", channel, &payload], &mut frame);
        Message::new(frame, backlog)
    }

    #[test]
    fn nothing_is_left_of_what_was_asked_for_in_vain() {
        let mut inner = Inner::default();
        for n in 0..100 {
            let name: Name = format!("c{n}").into_bytes().into();
            let topic = Topic { stand: Stand::Asked, ..Topic::default() };
            inner.topics[n % 3].insert(Arc::clone(&name), topic);
            inner.changed.extend([(Kind::ALL[n % 3], Arc::clone(&name)), (Kind::ALL[n % 3], name)]);
        }
        let letters = Letters::new(LIMITS, Arc::default());
        let kept = inner.topics[0].values_mut().next().unwrap();
        kept.members.insert(1, Member { letters, standing: Standing::Told });
        inner.start_over();
        assert_eq!(inner.topics.each_ref().map(HashMap::len), [1, 0, 0]);
        assert_eq!(inner.changed.len(), 1);
        assert!(inner.topics[0].values().all(|topic| topic.stand == Stand::Absent));
    }

    #[test]
    fn a_message_for_many_is_counted_once_and_until_nobody_has_it() {
        let backlog = Arc::<Backlog>::default();
        let boxes = [(); 3].map(|()| Letters::new(LIMITS, Arc::clone(&backlog)));
        let said = message("c", 1_000, &backlog);
        let length = said.frame().len();
        boxes.iter().for_each(|letters| letters.push(&said));
        drop(said);
        assert_eq!(backlog.bytes(), length);
        drop(boxes);
        assert_eq!(backlog.bytes(), 0);
    }

    #[test]
    fn when_all_together_have_too_much_who_has_much_is_cut() {
        let backlog = Arc::<Backlog>::default();
        let [slow, quick] = [(); 2].map(|()| Letters::new(LIMITS, Arc::clone(&backlog)));
        for _ in 0..2 {
            slow.push(&message("c", 90_000, &backlog));
        }
        quick.push(&message("c", 90_000, &backlog));
        assert!(!slow.are_flooded() && !quick.are_flooded());
        slow.push(&message("c", 1, &backlog));
        assert!(slow.are_flooded() && !quick.are_flooded());
    }

    #[test]
    fn what_is_forgotten_is_of_one_kind_and_name() {
        let backlog = Arc::<Backlog>::default();
        let letters = Letters::new(LIMITS, Arc::clone(&backlog));
        for channel in ["a", "b", "a"] {
            letters.push(&message(channel, 1, &backlog));
        }
        letters.forget(Kind::Shard, &[Name::from(&b"b"[..])]);
        letters.forget(Kind::Channel, &[Name::from(&b"a"[..])]);
        let left =
            letters.lock().messages.iter().map(|one| one.frame().to_vec()).collect::<Vec<_>>();
        assert_eq!(left.len(), 1);
        assert_eq!(letters.lock().bytes, left[0].len());
    }
}
