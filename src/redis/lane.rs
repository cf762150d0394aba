//! A lane: one backend on which the commands of many sessions travel together.
//!
//! Sessions append whole commands to the lane's batch and wake its task; the task, which runs after all sessions that
//! were ready with it, sends the batch in one write and brings the replies to the mailboxes in the order of the
//! commands. Commands for another database or protocol wait until the lane has been switched, and the server has
//! confirmed it: nothing is ever sent to a database that is only hoped for.

mod loss;
mod run;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::backend::{Key, RedisPool, checkout_error};
use super::greeting::write_error;
use super::mailbox::{Called, MailLimits, Mailbox, Tail};
use crate::net::READ_BUFFER_BYTES;
use crate::pool::{Checkout, CheckoutError, Lease};
use crate::status::LaneStatus;
use run::{Ending, LaneRun};

/// Bytes that may wait for the lane's next write before sessions have to wait: more in one write saves nothing.
const PENDING_LIMIT: usize = 256 * 1024;
/// How many of those are called at a time when there is room again. Should they have little to say, the next ones are called.
const CALLED: usize = 2 * PENDING_LIMIT / READ_BUFFER_BYTES;
/// How long a spare lane that found no connection waits before it looks again.
const SPARE_PAUSE: Duration = Duration::from_millis(100);
/// How often a batch that was never sent is tried on a fresh connection.
const RETRY_LIMIT: u32 = 3;

/// Commands that go out together: the same database, the same protocol.
#[derive(Debug)]
pub struct Batch {
    /// What they expect of the connection.
    pub key: Key,
    /// The commands.
    pub bytes: Vec<u8>,
    /// Whose they are, in order.
    pub parts: Vec<Part>,
}

/// One session's share of a batch.
#[derive(Debug)]
pub struct Part {
    /// Where the replies go.
    pub mailbox: Arc<Mailbox>,
    /// How many replies come first that nobody is to get.
    pub silent: u32,
    /// How many replies.
    pub replies: u32,
    /// Where its bytes begin in the batch.
    pub begins: usize,
    /// How many connections have been lost under it.
    pub tries: u8,
    /// What becomes of it when its connection is lost.
    pub fate: Fate,
}

/// What becomes of commands that could not be sent before their connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They go over the next one.
    Carried,
    /// They mean something on this one's server only.
    Here,
}

/// What those are told whose commands were for a connection that is lost.
const UNSENT: &str = "TRYAGAIN tidegate: the connection to the Redis server was lost before this command was sent; try again";

/// Whether a reply says that its command was not sent.
#[must_use]
pub fn is_unsent(reply: &[u8]) -> bool {
    reply.get(1..).is_some_and(|line| line.starts_with(UNSENT.as_bytes()))
}

/// Whole commands to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The commands.
    pub bytes: &'a [u8],
    /// How many replies come first that nobody is to get.
    pub silent: u32,
    /// How many replies come then.
    pub replies: u32,
}

/// Who else takes connections from the lane's pool.
#[derive(Debug)]
pub enum Sharing {
    /// Nobody but lanes.
    Apart,
    /// Sessions with holds, of which so many wait: with one connection in all, lane and holds take turns.
    TakingTurns(Arc<AtomicUsize>),
    /// Sessions with holds, which come first. Only while there is a connection that nobody else needs, the lane takes commands;
    /// when that is lost, what was not sent goes over `home`.
    Spare {
        /// The lane of those who are not admitted here.
        home: Arc<Lane>,
    },
}

/// One lane; its task is [`Lane::run`].
#[derive(Debug)]
pub struct Lane {
    pool: Arc<RedisPool>,
    limits: MailLimits,
    sharing: Sharing,
    /// Beside the lock, as it is looked at in every turn.
    leaves: AtomicBool,
    /// Whether sessions have to wait: as `inner` has it, for those who are about to read.
    full: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    batches: VecDeque<Batch>,
    pending_bytes: usize,
    task: Option<Waker>,
    /// Who waits for room, each once.
    waiting: VecDeque<Arc<Mailbox>>,
    /// How long the latest batch was, in bytes and parts: the next one will be, too.
    usual: (usize, usize),
    retries: u32,
    life: Life,
    door: Door,
    link: Link,
}

/// Whether the lane is at work on a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Link {
    #[default]
    Down,
    Up,
}

/// Of a spare lane.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// It has no connection, and nobody has asked for it.
    #[default]
    Shut,
    /// Somebody has.
    Wanted,
    /// It has one.
    Open,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Open,
    Closed,
}

/// Whether a lane took a session's commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// It did.
    Taken,
    /// Too much waits already; the session is woken when there is room.
    Full,
    /// A spare lane, or one whose connection is wanted and no other, has none now.
    Shut,
}

impl Batch {
    fn is_for(&self, fate: Fate) -> bool {
        self.parts.iter().any(|part| part.fate == fate)
    }
}

impl Inner {
    /// Adds a session's commands behind all that it has here: a session has one key while anything of its is owed, so only batches
    /// of other keys may be overtaken.
    fn append(&mut self, key: Key, work: Work<'_>, mailbox: &Arc<Mailbox>, fate: Fate) {
        let Work { bytes, silent, replies } = work;
        self.pending_bytes += bytes.len();
        // What was put back stands before what has come since, which may be of the same key. What has another fate stands apart.
        let takes = |batch: &Batch| batch.key == key && batch.is_for(Fate::Carried);
        let at = match self.batches.iter().rposition(|batch| fate == Fate::Carried && takes(batch))
        {
            Some(at) => at,
            None => {
                let (length, parts) = self.usual;
                let bytes = Vec::with_capacity(length.max(bytes.len()));
                self.batches.push_back(Batch { key, bytes, parts: Vec::with_capacity(parts) });
                self.batches.len() - 1
            }
        };
        let batch = &mut self.batches[at];
        let begins = batch.bytes.len();
        let part = Part { mailbox: Arc::clone(mailbox), silent, replies, begins, tries: 0, fate };
        batch.bytes.extend_from_slice(bytes);
        batch.parts.push(part);
    }

    fn is_full(&self) -> bool {
        self.pending_bytes > PENDING_LIMIT
    }

    /// Has the session called when there is room.
    fn await_room(&mut self, cx: &Context<'_>, mailbox: &Arc<Mailbox>) {
        if mailbox.await_room(cx) == Called::Already {
            return;
        }
        if self.waiting.len() == self.waiting.capacity() {
            // Those who have left meanwhile take no room.
            self.waiting.retain(|mailbox| Arc::strong_count(mailbox) > 1);
        }
        self.waiting.push_back(Arc::clone(mailbox));
    }

    /// Calls those who have waited longest.
    fn call(&mut self) {
        let first = self.waiting.len().min(CALLED);
        self.waiting.drain(..first).for_each(|mailbox| mailbox.call());
    }

    fn put_back(&mut self, batch: Batch) {
        self.pending_bytes += batch.bytes.len();
        self.batches.push_front(batch);
    }

    /// Takes out what was for the connection that is lost.
    fn take_stranded(&mut self) -> Vec<Batch> {
        let all = std::mem::take(&mut self.batches);
        let (stranded, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|one| one.is_for(Fate::Here));
        self.batches = rest.into();
        self.pending_bytes -= stranded.iter().map(|batch| batch.bytes.len()).sum::<usize>();
        stranded
    }
}

impl Lane {
    /// A lane that takes its connection from `pool` when there is something to send.
    #[must_use]
    pub fn new(pool: Arc<RedisPool>, limits: MailLimits, sharing: Sharing) -> Arc<Self> {
        let (leaves, full) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { pool, limits, sharing, leaves, full, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bounds of every mailbox served here.
    #[must_use]
    pub fn limits(&self) -> MailLimits {
        self.limits
    }

    /// What waits on it now.
    #[must_use]
    pub fn status(&self, number: usize) -> LaneStatus {
        let inner = self.lock();
        let name = match self.sharing {
            Sharing::Spare { .. } => "spare".to_owned(),
            Sharing::Apart | Sharing::TakingTurns(_) => format!("lane {}", number + 1),
        };
        LaneStatus { name, batches: inner.batches.len(), pending_bytes: inner.pending_bytes }
    }

    /// The pool whose connection it takes.
    #[must_use]
    pub fn pool(&self) -> &Arc<RedisPool> {
        &self.pool
    }

    /// Hands over whole commands, to be sent in one piece.
    pub fn submit(
        &self,
        cx: &Context<'_>,
        key: Key,
        work: Work<'_>,
        mailbox: &Arc<Mailbox>,
    ) -> Submitted {
        self.submit_as(cx, key, work, mailbox, Fate::Carried)
    }

    /// As [`Lane::submit`], for commands with this fate.
    pub fn submit_as(
        &self,
        cx: &Context<'_>,
        key: Key,
        work: Work<'_>,
        mailbox: &Arc<Mailbox>,
        fate: Fate,
    ) -> Submitted {
        let mut inner = self.lock();
        if self.is_spare() && inner.door != Door::Open {
            return Submitted::Shut;
        }
        if fate == Fate::Here && inner.link == Link::Down {
            return Submitted::Shut;
        }
        if inner.is_full() {
            inner.await_room(cx, mailbox);
            return Submitted::Full;
        }
        mailbox.owe(work.replies);
        inner.append(key, work, mailbox, fate);
        self.note_full(&inner);
        if let Some(task) = inner.task.take() {
            task.wake();
        }
        Submitted::Taken
    }

    /// Ready when there is room for a session's commands: before that it need not read them. The session is woken then.
    pub fn poll_room(&self, cx: &Context<'_>, mailbox: &Arc<Mailbox>) -> Poll<()> {
        if !self.full.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        let mut inner = self.lock();
        if !inner.is_full() {
            return Poll::Ready(());
        }
        inner.await_room(cx, mailbox);
        Poll::Pending
    }

    /// Wakes the lane to look around (a session waits for its connection, or all is over).
    pub fn nudge(&self) {
        if let Some(task) = self.lock().task.take() {
            task.wake();
        }
    }

    /// From now on it gives its connection back soon after the last answer, for the process will end: others find room at
    /// the server. It carries as before.
    pub fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
        self.nudge();
    }

    pub(super) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    /// Ends the lane's task. Nobody waits for it any more.
    pub fn close(&self) {
        {
            let mut inner = self.lock();
            inner.life = Life::Closed;
            inner.waiting.drain(..).for_each(|mailbox| mailbox.call());
        }
        self.nudge();
    }

    /// Whether the connection should be given to somebody else for a while.
    #[must_use]
    pub fn must_yield(&self) -> bool {
        match &self.sharing {
            Sharing::Apart => false,
            Sharing::TakingTurns(waiting) => waiting.load(Ordering::Relaxed) > 0,
            Sharing::Spare { .. } => self.pool.has_waiters(),
        }
    }

    /// Whether it takes commands only at times.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        matches!(self.sharing, Sharing::Spare { .. })
    }

    /// Whether a spare lane takes commands now; if not, it looks for a connection.
    #[must_use]
    pub fn admits(&self) -> bool {
        let mut inner = self.lock();
        if inner.door == Door::Shut {
            inner.door = Door::Wanted;
            if let Some(task) = inner.task.take() {
                task.wake();
            }
        }
        inner.door == Door::Open
    }

    /// From now on it takes no commands.
    pub(super) fn shut(&self) {
        self.lock().door = Door::Shut;
    }

    fn poll_wanted(&self, cx: &Context<'_>) -> Poll<Option<()>> {
        let mut inner = self.lock();
        match (inner.door, &inner.life) {
            (_, Life::Closed) => Poll::Ready(None),
            (Door::Wanted, Life::Open) => Poll::Ready(Some(())),
            (Door::Shut | Door::Open, Life::Open) => {
                inner.task = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next batch to send; registers the task to be woken by the next one otherwise.
    pub(super) fn poll_batch(&self, cx: &Context<'_>) -> Poll<Option<Batch>> {
        let mut inner = self.lock();
        match inner.batches.pop_front() {
            Some(batch) => {
                inner.pending_bytes -= batch.bytes.len();
                inner.usual = (batch.bytes.len(), batch.parts.len());
                self.make_room(&mut inner);
                Poll::Ready(Some(batch))
            }
            None if inner.life == Life::Closed => Poll::Ready(None),
            None => {
                inner.task = Some(cx.waker().clone());
                if !inner.waiting.is_empty() {
                    // Perhaps those who were called have gone: it asks again behind the next ones.
                    inner.call();
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    fn note_full(&self, inner: &Inner) {
        if inner.is_full() {
            self.full.store(true, Ordering::Relaxed);
        }
    }

    /// There is room again, if there is.
    fn make_room(&self, inner: &mut Inner) {
        if !inner.is_full() {
            self.full.store(false, Ordering::Relaxed);
            inner.call();
        }
    }

    /// Whether a batch waits to be sent.
    pub(super) fn has_batch(&self) -> bool {
        !self.lock().batches.is_empty()
    }

    /// Registers the task without taking a batch.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        self.lock().task = Some(cx.waker().clone());
    }

    /// Something was answered: the connection is good.
    pub(super) fn forget_retries(&self) {
        self.lock().retries = 0;
    }

    /// Puts back what was never sent, ahead of everything else.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut inner = self.lock();
        inner.put_back(batch);
        self.note_full(&inner);
    }

    /// The lane's task: takes a connection when there is work, and another when that one has ended. Ends after
    /// [`Lane::close`] when everything was sent.
    pub async fn run(self: Arc<Self>) {
        while let Some(batch) = std::future::poll_fn(|cx| self.poll_batch(cx)).await {
            self.put_back(batch);
            match self.checkout().await {
                Ok(lease) => {
                    self.lock().link = Link::Up;
                    let ending = LaneRun::new(Arc::clone(&self), lease).await;
                    self.strand();
                    self.after(&ending);
                }
                Err(error) => self.fail_all(&checkout_error(&error)),
            }
        }
    }

    /// The connection is gone, and with it what was for its server only.
    fn strand(&self) {
        let stranded = {
            let mut inner = self.lock();
            inner.link = Link::Down;
            inner.take_stranded()
        };
        for part in stranded.into_iter().flat_map(|batch| batch.parts) {
            fail(&part.mailbox, part.replies, UNSENT);
        }
    }

    /// A spare lane's task, as [`Lane::run`]. Without effect on any other.
    pub async fn run_spare(self: Arc<Self>) {
        let Sharing::Spare { home } = &self.sharing else { return };
        while std::future::poll_fn(|cx| self.poll_wanted(cx)).await.is_some() {
            let lease = if self.pool.has_place() { self.checkout().await.ok() } else { None };
            let Some(lease) = lease else {
                self.shut();
                tokio::time::sleep(SPARE_PAUSE).await;
                continue;
            };
            self.lock().door = Door::Open;
            let _ending = LaneRun::new(Arc::clone(&self), lease).await;
            self.shut();
            home.adopt(self.take_all());
        }
    }

    /// Takes over what another lane could not send.
    fn adopt(&self, batches: VecDeque<Batch>) {
        let mut inner = self.lock();
        inner.pending_bytes += batches.iter().map(|batch| batch.bytes.len()).sum::<usize>();
        inner.batches.extend(batches);
        self.note_full(&inner);
        if let Some(task) = inner.task.take() {
            task.wake();
        }
    }

    /// All that was not sent.
    fn take_all(&self) -> VecDeque<Batch> {
        let mut inner = self.lock();
        inner.pending_bytes = 0;
        inner.retries = 0;
        self.full.store(false, Ordering::Relaxed);
        inner.waiting.drain(..).for_each(|mailbox| mailbox.call());
        std::mem::take(&mut inner.batches)
    }

    async fn checkout(&self) -> Result<Lease<super::backend::RedisConnect>, CheckoutError> {
        match self.pool.checkout() {
            Checkout::Ready(lease) => Ok(lease),
            Checkout::Queued(ticket) => ticket.lease().await,
        }
    }

    fn after(&self, ending: &Ending) {
        let Ending::Lost { reason } = ending else { return };
        let retries = {
            let mut inner = self.lock();
            inner.retries += 1;
            inner.retries
        };
        if retries > RETRY_LIMIT {
            self.fail_all(&format!(
                "TRYAGAIN tidegate: the Redis server closed {retries} connections in a row before anything could be \
                 sent ({reason}); nothing was applied, look at the server's log"
            ));
        }
    }

    /// Answers everything that waits with an error.
    fn fail_all(&self, text: &str) {
        for part in self.take_all().into_iter().flat_map(|batch| batch.parts) {
            fail(&part.mailbox, part.replies, text);
        }
    }
}

/// Answers `replies` commands with the same error.
pub(super) fn fail(mailbox: &Mailbox, replies: u32, text: &str) {
    let mut line = Vec::new();
    write_error(text, &mut line);
    let lines = line.repeat(usize::try_from(replies).unwrap_or(0));
    mailbox.deliver(&lines, replies, Tail::Whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_behind_a_loss_stays_behind_what_came_before() {
        let mailbox = Arc::new(Mailbox::new(Arc::default()));
        let (key, other) = (Key::FRESH, Key { db: 1, ..Key::FRESH });
        let mut inner = Inner::default();
        let say = |inner: &mut Inner, key, bytes: &[u8]| {
            let work = Work { bytes, silent: 0, replies: 1 };
            inner.append(key, work, &mailbox, Fate::Carried);
        };
        say(&mut inner, key, b"1");
        let on_its_way = inner.batches.pop_front().unwrap();
        say(&mut inner, key, b"2");
        say(&mut inner, other, b"-");
        inner.put_back(on_its_way);
        say(&mut inner, key, b"3");
        let all = inner.batches.iter().filter(|batch| batch.key == key);
        let all: Vec<u8> = all.flat_map(|batch| batch.bytes.iter().copied()).collect();
        assert_eq!(all, b"123");
    }

    #[test]
    fn whoever_leaves_while_it_waits_for_room_takes_none() {
        let (mut inner, cx) = (Inner::default(), Context::from_waker(Waker::noop()));
        let fresh = || Arc::new(Mailbox::new(Arc::default()));
        let staying: Vec<_> = (0..10).map(|_| fresh()).collect();
        for mailbox in staying.iter().chain(&staying) {
            inner.await_room(&cx, mailbox);
        }
        assert_eq!(inner.waiting.len(), 10, "each stands there once");
        for _ in 0..10_000 {
            inner.await_room(&cx, &fresh());
        }
        assert!(inner.waiting.len() < 100, "{}", inner.waiting.len());
        for mailbox in &staying {
            assert!(inner.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, mailbox)));
        }
        while !inner.waiting.is_empty() {
            inner.call();
        }
        assert_eq!(staying[0].await_room(&cx), Called::Later, "it was called");
    }

    #[test]
    fn what_is_for_one_connection_stands_apart_and_goes_with_it() {
        let mailbox = Arc::new(Mailbox::new(Arc::default()));
        let mut inner = Inner::default();
        for (bytes, fate) in [(b"1", Fate::Carried), (b"x", Fate::Here), (b"2", Fate::Carried)] {
            inner.append(Key::FRESH, Work { bytes, silent: 0, replies: 1 }, &mailbox, fate);
        }
        let stranded = inner.take_stranded();
        assert_eq!(stranded.iter().map(|batch| &batch.bytes[..]).collect::<Vec<_>>(), [b"x"]);
        assert_eq!(inner.batches.iter().map(|batch| &batch.bytes[..]).collect::<Vec<_>>(), [b"12"]);
        assert_eq!(inner.pending_bytes, 2);
    }
}
