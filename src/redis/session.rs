//! One client from greeting to goodbye: a small future that owns the client's stream and decides, command by command,
//! which way each goes.
//!
//! Replies come in the order of the commands because only one way is in use at a time: while a lane owes replies, nothing
//! is answered by the session or sent on a backend of its own, and the other way round. An idle session owns no
//! buffer.

mod client;
mod counted;
mod entering;
mod farewell;
mod gate;
mod information;
mod others;
mod parked;
mod pinned;
mod queued;
mod subscribed;
mod unblock;
mod waiting;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::backend::Key;
use super::command::{Carriage, Reason, Step, Word, carriage, is_common, step, uncommon_carriage};
use super::greeting::{Effect, Identity, ServerFacts, Standing, TOO_LATE, write_error};
use super::lane::{Lane, Submitted, Work};
use super::mailbox::{MailState, Mailbox, Size, Tail};
use super::namespace::replies::Shape;
use super::pinned::Pinned;
use super::transaction::Queue;
use super::unblock::Wait;
use super::upstream::Upstream;
use super::wire::{
    Arguments, Progress, RequestError, RequestLimits, RequestScanner, split_inline, write_command,
};
use crate::lifecycle::DrainGuard;
use crate::metrics::Happening;
use crate::net::{Address, PorchPlace, Registered, Stream};
use gate::{Form, Gate, Passed};
use parked::Parked;
use pinned::Slow;
use subscribed::Subscribed;
use waiting::{Purpose, Waiting};

/// Unread replies, in bytes, from which on no more of the client's commands are carried.
const UNREAD_LIMIT: usize = 256 * 1024;
/// Most bytes read behind a command that blocks.
const READ_AHEAD: usize = 1024 * 1024;

/// How long until a client with unread bytes is looked at again, to see whether it is gone.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Looks at both sides before others get their turn.
const TURNS: usize = 32;

/// One client's session. Runs until the client leaves, breaks the protocol, does not read, or the drain finds it idle.
pub struct Session {
    pub(super) stream: Stream,
    pub(super) upstream: Arc<Upstream>,
    pub(super) mailbox: Arc<Mailbox>,
    lane: Option<Arc<Lane>>,
    pub(super) identity: Identity,
    /// Bytes of commands that were not carried yet.
    pub(super) inbox: Vec<u8>,
    /// Has looked at the first `length()` bytes of `inbox`.
    pub(super) scanner: RequestScanner,
    pub(super) out: Outbox,
    pub(super) state: State,
    /// The namespace that the client is bound to.
    gate: Option<Box<Gate>>,
    /// The transaction that has begun here.
    queue: Option<Box<Queue>>,
    /// A reply is owed that is not the client's as it comes; until then nothing else is carried.
    amending: Option<Amending>,
    /// How what was taken from the mailbox ends.
    tail: Tail,
    subscribed: Option<Box<Subscribed>>,
    /// Where it waits for the server on a connection of its own, if it ever did.
    wait: Option<Arc<Wait>>,
    /// When the command that waits on a connection of its own first asked for one.
    wants_since: Option<Instant>,
    /// The server's answer to its CLIENT UNBLOCK is awaited.
    unblocking: Option<oneshot::Receiver<Vec<u8>>>,
    pub(super) closing: Closing,
    sending: Sending,
    /// Until when the client must read on; runs while its commands wait because it doesn't.
    stuck: Option<Pin<Box<Sleep>>>,
    /// When the client with unread bytes is looked at again.
    next_look: Option<Pin<Box<Sleep>>>,
    guard: DrainGuard,
    /// Until when the client must have shown the password.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Its place among those who have not.
    porch: Option<Box<PorchPlace>>,
    /// Until when nothing more is said or carried, after one failed login too many.
    held: Option<Pin<Box<Sleep>>>,
    presence: Presence,
    unread: Unread,
    /// For the client's bytes.
    registered: Registered,
}

/// What a client that has not shown the password has.
pub struct Greeting {
    /// Until when it must have shown it.
    pub deadline: Sleep,
    /// Where it stands till then.
    pub place: Option<PorchPlace>,
}

/// Which gauge counts the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Idle,
    /// A reply is owed to it, or it holds a connection.
    Active,
    /// It waits for a connection of its own.
    Waiting,
}

/// Whether something of the client's may lie in the kernel because its lane has no room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unread {
    None,
    Perhaps,
}

/// What is to be done about a reply when it is here whole.
enum Amending {
    /// INFO's: something may be added.
    Information(information::Wanted),
    /// Subscribers are counted in it.
    Subscribers(Box<counted::Question>),
}

/// Replies on their way to the client.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) bytes: Vec<u8>,
    at: usize,
    /// How many of them are counted in the backlog.
    counted: usize,
}

/// Which way commands go now.
pub(super) enum State {
    /// Over the lane.
    Shared,
    /// Until a connection is free; the command waits in the inbox.
    Waiting(Box<Waiting>),
    /// Until an element comes; the command waits in the inbox.
    Parked(Box<Parked>),
    /// On a backend of the session's own.
    Pinned(Box<Pinned>, Slow),
}

/// How the session ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// When everything owed is written.
    AfterReplies,
}

/// Whether the client may send more.
pub(super) enum Sending {
    Open,
    /// It has closed its side, perhaps to read what it is owed: so long it is given.
    Closed(Pin<Box<Sleep>>),
    /// And all it sent is read.
    Ended(Pin<Box<Sleep>>),
}

/// The session is over.
#[derive(Debug)]
pub(super) struct End(pub(super) &'static str);

/// Whether anything happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Yes,
    No,
}

impl std::ops::BitOrAssign for Moved {
    fn bitor_assign(&mut self, other: Self) {
        if other == Self::Yes {
            *self = Self::Yes;
        }
    }
}

/// What became of a command that can't simply go over the lane.
enum Special {
    Taken,
    /// It stays in the inbox until something has happened.
    Blocked,
}

/// Whole lane commands in a row.
#[derive(Default)]
struct Run {
    begin: usize,
    end: usize,
    /// They, if they do not go as they were sent.
    written: Vec<u8>,
    replies: u32,
    /// How many there may be.
    room: u32,
}

impl Session {
    /// A client that has just connected over `stream`.
    #[must_use]
    pub fn new(
        stream: Stream,
        upstream: Arc<Upstream>,
        guard: DrainGuard,
        greeting: Greeting,
    ) -> Self {
        let entrance = upstream.entrance();
        let mut identity =
            Identity::new(upstream.next_id(), entrance.config().database, entrance.access());
        (identity.address, identity.local) = addresses(&stream);
        let Greeting { deadline, place } = greeting;
        let (deadline, porch) = match identity.standing {
            Standing::Stranger => (Some(Box::pin(deadline)), place.map(Box::new)),
            Standing::Known => (None, None),
        };
        upstream.metrics.clients_idle.inc();
        let mailbox = Arc::new(Mailbox::new(Arc::clone(&upstream.backlog)));
        upstream.clients.enter(&identity, &mailbox);
        let mut session = Self {
            stream,
            mailbox,
            upstream,
            lane: None,
            identity,
            inbox: Vec::new(),
            scanner: RequestScanner::default(),
            out: Outbox::default(),
            state: State::Shared,
            gate: None,
            queue: None,
            amending: None,
            tail: Tail::Whole,
            subscribed: None,
            wait: None,
            wants_since: None,
            unblocking: None,
            closing: Closing::No,
            sending: Sending::Open,
            stuck: None,
            next_look: None,
            guard,
            deadline,
            porch,
            held: None,
            presence: Presence::Idle,
            unread: Unread::None,
            registered: Registered::at_first(),
        };
        session.enter_namespace(0);
        session
    }

    /// Moves the client to the gauge where it belongs.
    fn count(&mut self) {
        let presence = match &self.state {
            State::Shared if self.mailbox.is_quiet() && self.unread == Unread::None => {
                Presence::Idle
            }
            State::Shared | State::Parked(_) | State::Pinned(..) => Presence::Active,
            State::Waiting(_) => Presence::Waiting,
        };
        if presence != self.presence {
            self.gauge().dec();
            self.presence = presence;
            self.gauge().inc();
        }
    }

    fn gauge(&self) -> &IntGauge {
        let metrics = &self.upstream.metrics;
        match self.presence {
            Presence::Idle => &metrics.clients_idle,
            Presence::Active => &metrics.clients_active,
            Presence::Waiting => &metrics.clients_waiting,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key { db: self.identity.db, proto: self.identity.proto }
    }

    pub(super) fn request_limits(&self) -> RequestLimits {
        match self.identity.standing {
            Standing::Stranger => {
                RequestLimits::Greeting { frame_bytes: self.upstream.limits.login_frame_bytes }
            }
            Standing::Known => RequestLimits::Work { bulk_bytes: self.longest_word() },
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        if self.is_held(cx) {
            self.watch_clock(cx)?;
            return Ok(Moved::No);
        }
        let plain = self.is_plain();
        let mut moved = self.flush(cx)?;
        moved |= self.read_letters(cx)?;
        moved |= match &self.state {
            State::Shared => Moved::No,
            State::Waiting(_) => self.wait(cx),
            State::Parked(_) => self.look_for_element(cx)?,
            State::Pinned(..) => self.relay(cx)?,
        };
        if self.closing == Closing::AfterReplies {
            return self.leave(cx, moved);
        }
        moved |= self.carry_inbox(cx)?;
        let read = self.read(cx)?;
        moved |= read;
        // All mail was taken and written, so of what another turn looks at there can only be more to read.
        let seen_all =
            plain && self.is_plain() && (read == Moved::No || self.read(cx)? == Moved::No);
        self.watch_clock(cx)?;
        Ok(if seen_all { Moved::No } else { moved })
    }

    /// Whether all there is to do is to bring the client what comes by mail, and to read on.
    fn is_plain(&self) -> bool {
        matches!(self.state, State::Shared)
            && self.out.bytes.is_empty()
            && self.inbox.len() == self.scanner.length()
            && self.closing == Closing::No
            && matches!(self.sending, Sending::Open)
            && self.amending.is_none()
            && self.subscribed.is_none()
            && self.unblocking.is_none()
            && self.gate.as_ref().is_none_or(|gate| !gate.runs_errand())
    }

    fn carry_inbox(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        if self.inbox.len() == self.scanner.length() {
            return Ok(Moved::No);
        }
        match &self.state {
            State::Waiting(_) | State::Parked(_) => Ok(Moved::No),
            State::Pinned(..) => self.carry_pinned(cx),
            State::Shared => {
                let inbox = std::mem::take(&mut self.inbox);
                let before = self.scanner.length();
                let used = self.digest(cx, &inbox, before)?;
                self.inbox = inbox;
                self.consume(used);
                self.bound_inbox(cx)?;
                let changed = used > 0 || !matches!(self.state, State::Shared);
                Ok(if changed { Moved::Yes } else { Moved::No })
            }
        }
    }

    /// Forgets the first `used` bytes of the inbox.
    pub(super) fn consume(&mut self, used: usize) {
        if used > 0 {
            // What is left is mostly little, and would keep the room of all.
            self.inbox = self.inbox[used..].to_vec();
        }
    }

    /// A command too large to be held goes, as far as it is here, on a backend of its own.
    fn bound_inbox(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let partial = self.inbox.len() == self.scanner.length();
        let large = self.inbox.len() > self.upstream.limits.understood_frame_bytes;
        let shared = matches!(self.state, State::Shared);
        if !(partial && large && shared) || self.awaits_replies() {
            return Ok(());
        }
        if let Err(refusal) = self.large_form(&self.inbox) {
            self.refuse_large(&refusal);
            return Ok(());
        }
        match carriage(Arguments::new(&self.inbox)) {
            _ if self.queue.is_some() => self.hold(cx, Purpose::Hold(Reason::Transaction)),
            Carriage::Lane => self.hold(cx, Purpose::Hold(Reason::Large)),
            Carriage::Pinned(reason) => self.hold(cx, Purpose::Hold(reason)),
            Carriage::Session(_) | Carriage::Refused(_) => {
                self.break_protocol(RequestError::Bulk);
            }
        }
        self.scanner = RequestScanner::default();
        Ok(())
    }

    /// Whether something is on its way for the client, or will be sent for it.
    fn awaits_replies(&self) -> bool {
        !self.mailbox.is_quiet() || self.gate.as_ref().is_some_and(|gate| gate.runs_errand())
    }

    /// Whether no more can be read: what the inbox holds is too large, and can't go on yet.
    pub(super) fn is_full(&self) -> bool {
        self.inbox.len() > self.upstream.limits.understood_frame_bytes && self.awaits_replies()
    }

    /// Carries as many whole commands of `bytes` as may go now, the first `seen` bytes of which were scanned before: how many bytes are
    /// done with.
    fn digest(&mut self, cx: &mut Context<'_>, bytes: &[u8], seen: usize) -> Result<usize, End> {
        let used = self.digest_with_leave(cx, bytes, seen);
        self.give_leave_back();
        used
    }

    fn digest_with_leave(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        seen: usize,
    ) -> Result<usize, End> {
        let mut begin = self.drop_rest(bytes);
        let (mut at, mut run) = (seen.max(begin), Run::default());
        while at < bytes.len() && self.closing == Closing::No {
            let progress = match self.scanner.advance(&bytes[at..], self.request_limits()) {
                Ok((used, progress)) => {
                    at += used;
                    progress
                }
                Err(error) => {
                    let begin = self.submit(cx, bytes, &mut run, begin);
                    self.scanner = RequestScanner::default();
                    if !self.mailbox.is_quiet() {
                        return Ok(begin);
                    }
                    self.break_protocol(error);
                    return Ok(bytes.len());
                }
            };
            if progress == Progress::Partial {
                break;
            }
            self.scanner = RequestScanner::default();
            let command = &bytes[begin..at];
            let before = run.written.len();
            let form = match progress {
                Progress::Command => self.lane_form(command, &mut run.written),
                _ => Form::Other,
            };
            if !matches!(form, Form::Other) {
                if run.replies == 0 {
                    if !self.has_leave(cx) {
                        return Ok(begin);
                    }
                    (run.begin, run.room) = (begin, self.room().min(self.commands_left()));
                }
                if run.replies >= run.room {
                    run.written.truncate(before);
                    return Ok(self.submit(cx, bytes, &mut run, begin));
                }
                (run.end, run.replies, begin) = (at, run.replies + 1, at);
                continue;
            }
            let from = self.submit(cx, bytes, &mut run, begin);
            if from != begin || !self.has_leave(cx) {
                return Ok(from);
            }
            if let Some((length, replies)) = self.transaction_here(command, &bytes[begin..]) {
                let work = Work { bytes: &bytes[begin..begin + length], silent: 0, replies };
                if self.room() == 0 || self.send(cx, work) != Submitted::Taken {
                    return Ok(begin);
                }
                self.upstream.metrics.transactions.inc();
                self.note_commands(replies);
                at = begin + length;
                begin = at;
                continue;
            }
            match self.special(cx, command, progress) {
                Special::Taken => begin = at,
                Special::Blocked => return Ok(begin),
            }
        }
        let from = self.submit(cx, bytes, &mut run, begin);
        if from != begin {
            self.scanner = RequestScanner::default();
        }
        Ok(from)
    }

    /// The transaction that begins with this command, if all of it is in `bytes` and it may go over the lane.
    fn transaction_here(&self, command: &[u8], bytes: &[u8]) -> Option<(usize, u32)> {
        let begins = step(Arguments::new(command).next().unwrap_or_default()) == Step::Multi;
        (begins && self.is_free()).then(|| self.whole_transaction(bytes)).flatten()
    }

    /// Whether the client's words are what they are anywhere.
    fn is_free(&self) -> bool {
        self.queue.is_none()
            && self.identity.standing == Standing::Known
            && (self.subscribed.is_none() || !self.listens_only())
    }

    fn goes_over_lane(&self, command: &[u8]) -> bool {
        if !self.is_free() {
            return false;
        }
        let words = Arguments::new(command);
        let mut behind = words.clone();
        let name = behind.next().unwrap_or_default();
        if is_common(name) {
            return true;
        }
        if uncommon_carriage(name, behind) != Carriage::Lane {
            return false;
        }
        match remark(words.clone()) {
            Remark::None => {}
            // What the server gets may be another one.
            Remark::Script if self.gate.is_some() => return false,
            Remark::Script => self.upstream.scripts.note(words),
            Remark::Information | Remark::Subscribers => return false,
        }
        true
    }

    /// Hands the run to the lane: where the bytes that are not done with begin (`begin`, or the run's own begin).
    fn submit(&mut self, cx: &Context<'_>, bytes: &[u8], run: &mut Run, begin: usize) -> usize {
        let Run { begin: from, end, written, replies, room: _ } = std::mem::take(run);
        if replies == 0 {
            return begin;
        }
        let bytes = if written.is_empty() { &bytes[from..end] } else { &written };
        let work = Work { bytes, silent: 0, replies };
        match self.send(cx, work) {
            Submitted::Taken => {
                self.note_commands(replies);
                begin
            }
            Submitted::Full | Submitted::Shut => from,
        }
    }

    fn send(&mut self, cx: &Context<'_>, work: Work<'_>) -> Submitted {
        self.send_to(cx, self.key(), work)
    }

    fn send_to(&mut self, cx: &Context<'_>, key: Key, work: Work<'_>) -> Submitted {
        self.choose_lane(key);
        let mut submitted = self.submit_work(cx, key, work);
        if submitted == Submitted::Shut && !self.mailbox.is_owed() {
            self.lane = None;
            self.choose_lane(key);
            submitted = self.submit_work(cx, key, work);
        }
        if submitted == Submitted::Taken {
            self.upstream.metrics.requests.inc_by(u64::from(work.replies));
        }
        submitted
    }

    fn submit_work(&self, cx: &Context<'_>, key: Key, work: Work<'_>) -> Submitted {
        let Some(lane) = &self.lane else { return Submitted::Shut };
        lane.submit(cx, key, work, &self.mailbox)
    }

    /// Sees to it that this session has a lane. While it is owed nothing it may go to another: large replies travel apart, if there
    /// is a connection for them.
    fn choose_lane(&mut self, key: Key) {
        let large = self.mailbox.size() == Size::Large;
        if let Some(lane) = &self.lane
            && (lane.is_spare() == large || self.mailbox.is_owed())
        {
            return;
        }
        let spare = self.upstream.spare().filter(|spare| large && spare.admits());
        self.lane = Some(Arc::clone(spare.unwrap_or_else(|| self.upstream.lane(key))));
    }

    /// Bytes of replies that the client has not taken.
    pub(super) fn unread(&self) -> usize {
        self.out.bytes.len() - self.out.at
    }

    /// How many commands may go over the lane now.
    fn room(&self) -> u32 {
        let busy =
            self.amending.is_some() || self.gate.as_ref().is_some_and(|gate| gate.runs_errand());
        if busy || self.unread() >= UNREAD_LIMIT {
            return 0;
        }
        let depth = u32::try_from(self.upstream.limits.pipeline_depth).unwrap_or(u32::MAX);
        self.mailbox.room(depth)
    }

    /// An inline command, or one that does not go over the lane.
    fn special(&mut self, cx: &mut Context<'_>, command: &[u8], progress: Progress) -> Special {
        // What the session answers by itself would pile up, too.
        if self.unread() >= UNREAD_LIMIT {
            return Special::Blocked;
        }
        let inline;
        let mut words: Vec<&[u8]> = Vec::new();
        match progress {
            Progress::Nothing | Progress::Partial => return Special::Taken,
            Progress::Command => words.extend(Arguments::new(command)),
            Progress::Inline => match split_inline(command) {
                Ok(split) if split.is_empty() => return Special::Taken,
                Ok(split) => {
                    inline = split;
                    words.extend(inline.iter().map(Vec::as_slice));
                }
                Err(_) if !self.mailbox.is_quiet() => return Special::Blocked,
                Err(error) => {
                    self.break_protocol(error);
                    return Special::Taken;
                }
            },
        }
        let how = self.carriage_here(&words);
        match self.pass_gate(cx, &words, how) {
            Passed::AsIs => self.carry(cx, &words, how, Shape::Plain),
            Passed::As(words, shape) => {
                let words: Vec<&[u8]> = words.iter().map(|word| &**word).collect();
                self.carry(cx, &words, how, shape)
            }
            Passed::Waits => Special::Blocked,
            Passed::Taken => Special::Taken,
        }
    }

    /// Carries a command that may go, and looks at its reply then.
    fn carry(
        &mut self,
        cx: &mut Context<'_>,
        words: &[&[u8]],
        how: Carriage,
        shape: Shape,
    ) -> Special {
        let in_transaction = self.queue.is_some();
        let carried = self.carry_words(cx, words, how);
        if carried.is_taken() {
            self.note_passed(words, shape, in_transaction);
        } else if let State::Parked(_) = self.state {
            self.note_commands(1);
            self.await_shape(shape);
        }
        carried
    }

    fn carry_words(&mut self, cx: &mut Context<'_>, words: &[&[u8]], how: Carriage) -> Special {
        let free = self.is_free();
        if how == Carriage::Lane && free {
            match remark(words.iter().copied()) {
                Remark::Information | Remark::Subscribers if !self.mailbox.is_quiet() => {
                    return Special::Blocked;
                }
                Remark::Information => return self.inform(cx, words),
                Remark::Subscribers => return self.count_subscribers(cx, words),
                Remark::None | Remark::Script => {}
            }
            self.upstream.scripts.note(words.iter().copied());
            let mut bytes = Vec::new();
            write_command(words, &mut bytes);
            let work = Work { bytes: &bytes, silent: 0, replies: 1 };
            let blocked = self.room() == 0 || self.send(cx, work) != Submitted::Taken;
            return if blocked { Special::Blocked } else { Special::Taken };
        }
        if !self.mailbox.is_quiet() {
            return Special::Blocked;
        }
        self.special_now(cx, words, how)
    }

    fn special_now(&mut self, cx: &mut Context<'_>, words: &[&[u8]], how: Carriage) -> Special {
        if self.queue.is_some() {
            return self.enqueue(cx, words, how);
        }
        if self.listens_only() {
            return self.say_while_listening(cx, words, how);
        }
        match how {
            Carriage::Session(word) => self.answer(cx, word, words),
            _ if self.identity.standing == Standing::Stranger => {
                self.out.bytes.extend_from_slice(Identity::refusal().as_bytes());
                Special::Taken
            }
            Carriage::Refused(_) if self.unblocks(words) => self.unblock(cx, words),
            Carriage::Refused(text) => {
                write_error(text, &mut self.out.bytes);
                Special::Taken
            }
            Carriage::Pinned(Reason::Blocking) => self.block(cx, words),
            Carriage::Pinned(Reason::Subscription) => self.subscription(cx, words),
            Carriage::Pinned(Reason::Transaction) => self.begin_transaction(cx, words),
            Carriage::Pinned(reason) => {
                self.hold(cx, Purpose::Hold(reason));
                Special::Blocked
            }
            Carriage::Lane => Special::Blocked,
        }
    }

    fn answer(&mut self, cx: &mut Context<'_>, word: Word, words: &[&[u8]]) -> Special {
        if self.held.is_some() {
            return Special::Blocked;
        }
        let facts = self.upstream.facts.get();
        if word == Word::Hello && facts.is_none() {
            self.hold(cx, Purpose::Facts);
            return Special::Blocked;
        }
        if matches!(word, Word::List | Word::Kill | Word::Info)
            && self.identity.standing == Standing::Known
        {
            self.tell_of_clients(word, words);
            return Special::Taken;
        }
        match self.answer_now(word, words, facts.as_deref()) {
            Effect::AskDatabase(_) => {
                self.hold(cx, Purpose::Hold(Reason::Database));
                Special::Blocked
            }
            Effect::Nothing | Effect::Close => Special::Taken,
        }
    }

    /// Answers a session command; everything before it is answered.
    pub(super) fn answer_now(
        &mut self,
        word: Word,
        words: &[&[u8]],
        facts: Option<&ServerFacts>,
    ) -> Effect {
        let unknown = ServerFacts::default();
        let (before, standing) = (self.key(), self.identity.standing);
        let upstream = Arc::clone(&self.upstream);
        let facts = facts.unwrap_or(&unknown);
        if self.changes_user_too_late(word, words) {
            write_error(TOO_LATE, &mut self.out.bytes);
            return Effect::Nothing;
        }
        if proves(word, words) && self.looks_away() {
            return Effect::Nothing;
        }
        let out = &mut self.out.bytes;
        let from = out.len();
        let entrance = upstream.entrance();
        let effect = self.identity.answer(word, words, entrance.access(), facts, out);
        if out[from..].starts_with(b"-WRONGPASS") {
            self.note_wrong_password();
        }
        if standing == Standing::Stranger && self.identity.standing == Standing::Known {
            upstream.metrics.logins.inc();
            upstream
                .metrics
                .lines
                .tell(Happening::Connected, format_args!("client {}", self.identity.id));
        }
        if self.key() != before {
            self.lane = None;
        }
        if word == Word::Reset {
            self.subscribed = None;
        }
        self.enter_namespace(from);
        self.note_client();
        if effect == Effect::Close {
            self.closing = Closing::AfterReplies;
        }
        effect
    }

    /// Whether the command may bring the client into another namespace while something of this one's lasts.
    fn changes_user_too_late(&self, word: Word, words: &[&[u8]]) -> bool {
        let lasts = self.subscribed.is_some()
            || self.queue.is_some()
            || matches!(self.state, State::Pinned(..));
        proves(word, words) && lasts && !self.upstream.realms.is_empty()
    }

    pub(super) fn break_protocol(&mut self, error: RequestError) {
        write_error(&format!("ERR {error}"), &mut self.out.bytes);
        self.closing = Closing::AfterReplies;
    }

    /// The server has taken the session to another database or protocol, whose lane is another.
    pub(super) fn moved(&mut self) {
        self.lane = None;
        self.upstream.facts.note_database(self.identity.db);
        self.note_client();
    }
}

/// Whether the command brings a password.
fn proves(word: Word, words: &[&[u8]]) -> bool {
    word == Word::Auth || (word == Word::Hello && words.len() > 2)
}

/// What there is to be done about a command that goes over a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remark {
    None,
    /// It may bring a script.
    Script,
    /// INFO: its reply is added to.
    Information,
    /// PUBSUB NUMSUB: who is subscribed here is counted, too.
    Subscribers,
}

/// Asked of each command: most are told by their first letter.
fn remark<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Remark {
    let name = words.next().unwrap_or_default();
    match (name.first(), name.len()) {
        (Some(b'E' | b'e'), 4 | 7) | (Some(b'S' | b's'), 6) => Remark::Script,
        (Some(b'I' | b'i'), 4) if name.eq_ignore_ascii_case(b"INFO") => Remark::Information,
        (Some(b'P' | b'p'), 6) if name.eq_ignore_ascii_case(b"PUBSUB") => {
            counted::remark(words.next().unwrap_or_default())
        }
        _ => Remark::None,
    }
}

impl Future for Session {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let session = self.get_mut();
        for _ in 0..TURNS {
            match session.turn(cx) {
                Ok(Moved::Yes) => {}
                Ok(Moved::No) => {
                    session.count();
                    return Poll::Pending;
                }
                Err(End(reason)) => {
                    let detail = format_args!("client {}: {reason}", session.identity.id);
                    session.upstream.metrics.lines.tell(Happening::Disconnected, detail);
                    session.stream.say_goodbye(cx);
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The client's address, and ours. Over a unix socket both are its path, as Redis has it.
fn addresses(stream: &Stream) -> (Box<str>, Box<str>) {
    let text = |address: Option<Address>| {
        address.map(|address| address.to_string()).unwrap_or_default().into_boxed_str()
    };
    let local = stream.local();
    let peer = stream.peer().map(Address::Tcp);
    let peer = if stream.tcp().is_none() { local.clone() } else { peer };
    (text(peer), text(local))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.upstream.clients.leave(self.identity.id);
        self.settle_backlog();
        self.mailbox.abandon();
        if let State::Waiting(_) = self.state {
            self.upstream.waiting.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        if let State::Pinned(pinned, _) = std::mem::replace(&mut self.state, State::Shared) {
            pinned.abandon("client gone");
        }
        self.gauge().dec();
    }
}
