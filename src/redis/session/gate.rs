//! A session that is bound to a namespace: its commands are judged before they go, its replies are looked at before they come.
//!
//! Where something is to be done about a reply, the command goes alone: with nothing owed before it, and nothing behind it until
//! the reply has come whole. So the next reply is always the one that is meant.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;

use tokio::time::Sleep;

use super::information::{PutBy, Wanted};
use super::{Closing, MailState, Session, Special, State};
use crate::metrics::NamespaceMetrics;
use crate::redis::backend::Key;
use crate::redis::command::{Carriage, Reason, Step, Word, carriage, is_tracking, look_up, step};
use crate::redis::greeting::{Proto, Standing, write_error};
use crate::redis::lane::{Submitted, Work};
use crate::redis::namespace::replies::{ReplyFilter, Shape};
use crate::redis::namespace::{
    Answer, Errand, Frequent, Ground, Judgement, Mode, Namespace, Next, Refusal, Zeal,
};
use crate::redis::pinned::Hold;
use crate::redis::upstream::Realm;
use crate::redis::wire::{Arguments, Progress, RequestScanner, write_command};

/// What a session keeps of its namespace.
pub(in crate::redis) struct Gate {
    realm: Arc<Realm>,
    /// Reads the reply that is owed.
    filter: Option<ReplyFilter>,
    /// It has read the outbox up to here.
    seen: usize,
    errand: Option<Box<Running>>,
    /// How much more SCAN looks at than the client says, and how much the one looks at whose reply is owed.
    zeal: Zeal,
    looks_at: usize,
    rest: Rest,
    /// For so many commands there is leave, behind this delay.
    leave: u32,
    delay: Option<Pin<Box<Sleep>>>,
    /// Commands of the transaction, and which of their replies are to be looked at.
    queued: u64,
    shapes: Vec<(u64, Shape)>,
    shape_bytes: usize,
}

/// What becomes of the rest of a command whose beginning is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It is awaited, or goes on.
    Heard,
    /// The command was refused.
    Dropped,
}

struct Running {
    errand: Errand,
    /// The answer that waits for it.
    put_by: Option<PutBy>,
    step: StepOf,
    /// What has come of the step's reply.
    reply: Vec<u8>,
}

/// How far the present step is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StepOf {
    /// It is to be sent.
    Due,
    /// The lane owes its reply.
    Sent,
}

/// A command that has passed the gate.
pub(super) enum Passed<'a> {
    /// With these words; this is to be done about its reply.
    As(Vec<Cow<'a, [u8]>>, Shape),
    /// As it is.
    AsIs,
    /// It waits until something else is over.
    Waits,
    /// It is answered, or will be.
    Taken,
}

/// What a command for the lane is like.
pub(super) enum Form {
    /// As the client has sent it.
    AsSent,
    /// As it was written for it.
    Written,
    /// It does not go over the lane, or not so simply.
    Other,
}

/// Words of a command that are looked at without memory of their own.
const FEW: usize = 16;

/// Most bytes of a reply within a work of several steps: a thousand names.
const PAGE_BYTES: usize = 64 * 1024 * 1024;
/// Replies of one transaction that are to be looked at, and most bytes of what is kept for them.
const SHAPES: usize = 10_000;
const SHAPE_BYTES: usize = 4 * 1024 * 1024;

const ANOTHER_USER: &str =
    "can't make a client another user while it holds a connection; do it before";
const WITHOUT_PUSHES: &str = "tells of changes in RESP3 only, in a namespace; say HELLO 3 before";

const TOO_LONG: &str = "ERR tidegate: the names of this namespace are too long to be told or removed by the thousand; \
     use SCAN with a small COUNT; the connection is closed";

impl Gate {
    fn new(realm: &Arc<Realm>) -> Box<Self> {
        realm.metrics.clients.inc();
        let realm = Arc::clone(realm);
        Box::new(Self {
            realm,
            filter: None,
            seen: 0,
            errand: None,
            zeal: Zeal::default(),
            looks_at: 0,
            rest: Rest::Heard,
            leave: 0,
            delay: None,
            queued: 0,
            shapes: Vec::new(),
            shape_bytes: 0,
        })
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.realm.namespace
    }

    pub(super) fn metrics(&self) -> &NamespaceMetrics {
        &self.realm.metrics
    }

    fn judge<'a>(&self, words: &[&'a [u8]]) -> Judgement<'a> {
        match self.namespace().judge(words) {
            Judgement::Script => self.namespace().judge_script(words, &self.realm.sandbox),
            Judgement::Becomes(mut becomes, shape) if shape.is_of_scan() => {
                self.zeal.raise(&mut becomes);
                Judgement::Becomes(becomes, shape)
            }
            judgement => judgement,
        }
    }

    fn is_busy(&self) -> bool {
        self.filter.is_some() || self.errand.is_some()
    }

    fn prefix(&self) -> &[u8] {
        match self.namespace().mode {
            Mode::Prefix => self.namespace().prefix(),
            Mode::Enforce => &[],
        }
    }

    fn run(&mut self, errand: Errand, put_by: Option<PutBy>) {
        let (step, reply) = (StepOf::Due, Vec::new());
        self.errand = Some(Box::new(Running { errand, put_by, step, reply }));
    }

    /// Whether a work of several steps goes on.
    pub(super) fn runs_errand(&self) -> bool {
        self.errand.is_some()
    }

    /// Whether a command may be sent now; if not, wakes when it may.
    fn has_leave(&mut self, cx: &mut Context<'_>) -> bool {
        if self.leave == 0 {
            let Some(leave) = self.realm.leave() else { return true };
            self.leave = leave.commands;
            if !leave.wait.is_zero() {
                self.metrics().waits_commands.inc();
                self.delay = Some(Box::pin(tokio::time::sleep(leave.wait)));
            }
        }
        let over = |delay: &mut Pin<Box<Sleep>>| delay.as_mut().poll(cx).is_ready();
        if self.delay.as_mut().is_none_or(over) {
            self.delay = None;
        }
        self.delay.is_none()
    }

    /// So many commands were sent.
    fn spend(&mut self, commands: u32) {
        self.metrics().commands.inc_by(u64::from(commands));
        if let Some(pace) = &self.realm.pace {
            pace.overrun(commands.saturating_sub(self.leave));
            self.leave = self.leave.saturating_sub(commands);
        }
    }

    fn give_leave_back(&mut self) {
        if let Some(pace) = &self.realm.pace {
            pace.give_back(std::mem::take(&mut self.leave));
        }
    }

    /// Everything that was to be read in the outbox is written.
    pub(super) fn outbox_is_empty(&mut self) {
        self.seen = 0;
    }

    fn has_room_for_shape(&self, shape: &Shape) -> bool {
        self.shapes.len() < SHAPES && self.shape_bytes + shape.bytes() <= SHAPE_BYTES
    }

    /// What is to be done about a reply in a transaction; `None`: it is one too many. An error's wording is worth no refusal.
    fn shape_in_transaction(&self, shape: Shape) -> Option<Shape> {
        match shape {
            Shape::Plain => Some(Shape::Plain),
            shape if self.has_room_for_shape(&shape) => Some(shape),
            Shape::Script(_) => Some(Shape::Plain),
            _ => None,
        }
    }

    fn keep_shape(&mut self, shape: Shape) {
        if shape != Shape::Plain {
            self.shape_bytes += shape.bytes();
            self.shapes.push((self.queued, shape));
        }
        self.queued += 1;
    }

    /// A transaction has begun or ended.
    fn forget_transaction(&mut self) -> Vec<(u64, Shape)> {
        (self.queued, self.shape_bytes) = (0, 0);
        std::mem::take(&mut self.shapes)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.give_leave_back();
        self.realm.metrics.clients.dec();
    }
}

impl Session {
    /// Takes up the namespace that the client has come into, or leaves the one it had. The answer to what brought it there begins
    /// at this place of the outbox.
    pub(super) fn enter_namespace(&mut self, answer: usize) {
        let known = self.identity.standing == Standing::Known;
        let number = self.identity.namespace.filter(|_| known);
        let realm = number.and_then(|at| self.upstream.realms.get(at));
        let has = self.gate.as_ref().map(|gate| Arc::as_ptr(&gate.realm));
        if has != realm.map(Arc::as_ptr) {
            self.gate = realm.map(Gate::new);
            let refusal = self.gate.as_ref().and_then(|gate| gate.realm.refusal_of_one_more());
            if let Some(text) = refusal {
                // In the place of the answer that would have let it in.
                self.out.bytes.truncate(answer);
                write_error(&text, &mut self.out.bytes);
                self.closing = Closing::AfterReplies;
            }
        }
    }

    /// Whether a command goes over the lane with others, and how; what was written for it is added to `written`.
    pub(super) fn lane_form(&self, command: &[u8], written: &mut Vec<u8>) -> Form {
        let Some(gate) = &self.gate else {
            return if self.goes_over_lane(command) { Form::AsSent } else { Form::Other };
        };
        if gate.is_busy() {
            return Form::Other;
        }
        if self.is_free()
            && let Some(found) = gate.namespace().judge_frequent(command, written)
        {
            return match found {
                Frequent::AsSent => Form::AsSent,
                Frequent::Written => Form::Written,
            };
        }
        if !self.goes_over_lane(command) {
            return Form::Other;
        }
        let mut few = [&[][..]; FEW];
        let (mut count, mut all) = (0, Vec::new());
        for word in Arguments::new(command) {
            match few.get_mut(count) {
                Some(place) => *place = word,
                None if all.is_empty() => {
                    all.extend_from_slice(&few);
                    all.push(word);
                }
                None => all.push(word),
            }
            count += 1;
        }
        let words = if all.is_empty() { &few[..count] } else { &all[..] };
        match (gate.judge(words), gate.namespace().mode) {
            (Judgement::Passes, Mode::Enforce) => Form::AsSent,
            (Judgement::Passes, Mode::Prefix) => {
                written.extend_from_slice(command);
                Form::Written
            }
            (Judgement::Becomes(words, Shape::Plain), Mode::Prefix) => {
                write_command(&words, written);
                Form::Written
            }
            _ => Form::Other,
        }
    }

    /// Whether the command may stand in a transaction that goes over the lane as it was sent.
    pub(super) fn passes_as_sent(&self, command: &[u8]) -> bool {
        let Some(gate) = &self.gate else { return true };
        let words: Vec<&[u8]> = Arguments::new(command).collect();
        gate.namespace().mode == Mode::Enforce
            && gate.judge(&words) == Judgement::Passes
            && !is_of_connection(&words, carriage(words.iter().copied()))
    }

    /// A command that does not simply go over the lane comes to the gate.
    pub(super) fn pass_gate<'a>(
        &mut self,
        cx: &mut Context<'_>,
        words: &[&'a [u8]],
        how: Carriage,
    ) -> Passed<'a> {
        if self.gate_is_busy() {
            return Passed::Waits;
        }
        let Some(gate) = &self.gate else { return Passed::AsIs };
        let (quiet, in_transaction) = (self.mailbox.is_quiet(), self.queue.is_some());
        match gate.judge(words) {
            Judgement::Becomes(..)
                if how == Carriage::Pinned(Reason::Tracking)
                    && self.identity.proto == Proto::Resp2 =>
            {
                if !quiet {
                    return Passed::Waits;
                }
                self.refuse_at_gate(&refusal(words, WITHOUT_PUSHES))
            }
            // It will be told that it listens, and nothing else comes.
            Judgement::Becomes(words, _) if self.listens_only() => Passed::As(words, Shape::Plain),
            Judgement::Errand(_) if self.listens_only() => Passed::AsIs,
            _ if in_transaction && is_of_connection(words, how) => {
                self.refuse_at_gate(&not_here(words))
            }
            Judgement::Errand(_) if in_transaction => self.refuse_at_gate(&not_here(words)),
            Judgement::Becomes(becomes, shape) if in_transaction => {
                match gate.shape_in_transaction(shape) {
                    Some(shape) => Passed::As(becomes, shape),
                    None => self.refuse_at_gate(&too_many(words)),
                }
            }
            Judgement::Passes => Passed::AsIs,
            // The wording of an error is not worth a round trip.
            Judgement::Becomes(words, Shape::Script(_)) if !quiet => {
                Passed::As(words, Shape::Plain)
            }
            Judgement::Becomes(words, shape) if shape == Shape::Plain || quiet => {
                Passed::As(words, shape)
            }
            Judgement::Becomes(..) => Passed::Waits,
            Judgement::Refused(_) | Judgement::Errand(_) if !quiet => Passed::Waits,
            // It is resolved above.
            Judgement::Script => Passed::Waits,
            Judgement::Refused(refusal) => self.refuse_at_gate(&refusal),
            Judgement::Errand(errand) => {
                if let Some(gate) = &mut self.gate {
                    gate.run(errand, None);
                }
                self.upstream.metrics.requests.inc();
                self.note_commands(1);
                self.send_step(cx);
                Passed::Taken
            }
        }
    }

    pub(super) fn note_commands(&mut self, count: u32) {
        if let Some(gate) = &mut self.gate {
            gate.spend(count);
        }
    }

    /// Whether the namespace lets a command go now; if not, the session is woken when it does.
    pub(super) fn has_leave(&mut self, cx: &mut Context<'_>) -> bool {
        self.gate.as_mut().is_none_or(|gate| gate.has_leave(cx))
    }

    /// No more commands are sent in this turn. Who waits for leave keeps its place.
    pub(super) fn give_leave_back(&mut self) {
        if let Some(gate) = &mut self.gate
            && gate.delay.is_none()
        {
            gate.give_leave_back();
        }
    }

    /// For how many commands there is leave.
    pub(super) fn commands_left(&self) -> u32 {
        let paced = self.gate.as_ref().filter(|gate| gate.realm.pace.is_some());
        paced.map_or(u32::MAX, |gate| gate.leave)
    }

    /// What the client's names begin with, and it does not know of.
    pub(super) fn shown_without(&self) -> &[u8] {
        self.gate.as_deref().map(Gate::prefix).unwrap_or_default()
    }

    /// How a command travels that is carried like this elsewhere.
    pub(super) fn carriage_here(&self, words: &[&[u8]]) -> Carriage {
        match carriage(words.iter().copied()) {
            Carriage::Pinned(Reason::Stream) if self.gate.is_some() && is_tracking(words) => {
                Carriage::Pinned(Reason::Tracking)
            }
            how => how,
        }
    }

    /// The client's namespace, and what its clients share.
    pub(super) fn realm(&self) -> Option<&Realm> {
        self.gate.as_ref().map(|gate| &*gate.realm)
    }

    /// Answers with a refusal; inside a transaction EXEC fails behind it.
    fn refuse_at_gate(&mut self, refusal: &Refusal) -> Passed<'static> {
        self.count_refusal(refusal);
        write_error(&refusal.text, &mut self.out.bytes);
        if let Some(queue) = &mut self.queue {
            queue.refuse();
        }
        Passed::Taken
    }

    pub(super) fn count_refusal(&mut self, refusal: &Refusal) {
        self.upstream.metrics.requests.inc();
        self.note_commands(1);
        let Some(gate) = &self.gate else { return };
        gate.metrics().refuse(refusal.command, refusal.ground.label());
        tracing::debug!(
            namespace = &*gate.namespace().name,
            text = refusal.text,
            "a command was refused"
        );
    }

    /// The command was carried, or waits at a station: its reply is looked at.
    pub(super) fn await_shape(&mut self, shape: Shape) {
        let seen = self.out.bytes.len();
        if let Some(gate) = &mut self.gate
            && shape != Shape::Plain
        {
            gate.filter = Some(ReplyFilter::new(gate.prefix(), shape));
            gate.seen = seen;
        }
    }

    /// What follows for the replies from a command that was taken with these words.
    pub(super) fn note_passed(&mut self, words: &[&[u8]], shape: Shape, in_transaction: bool) {
        self.note_commands(1);
        let Some(gate) = &mut self.gate else { return };
        match step(words.first().copied().unwrap_or_default()) {
            Step::Exec if in_transaction => {
                let shapes = gate.forget_transaction();
                if !shapes.is_empty() {
                    self.await_shape(Shape::Exec(shapes));
                }
            }
            // Another MULTI inside is an error, and changes nothing.
            Step::Multi if in_transaction => {}
            Step::Multi | Step::Discard => drop(gate.forget_transaction()),
            Step::Other | Step::Unwatch if in_transaction => {
                gate.keep_shape(shape);
            }
            _ => {
                if shape.is_of_scan() {
                    let mut words = words.iter().map(|word| Cow::Borrowed(*word)).collect();
                    gate.looks_at = Zeal::default().raise(&mut words);
                }
                self.await_shape(shape);
            }
        }
    }

    /// The words that go in the place of these, which have passed in another form before, and what is to be done about the reply.
    pub(super) fn judged_anew<'a>(
        &self,
        words: &[&'a [u8]],
    ) -> Option<(Vec<Cow<'a, [u8]>>, Shape)> {
        let as_they_are = || words.iter().map(|word| Cow::Borrowed(*word)).collect();
        let Some(gate) = &self.gate else { return Some((as_they_are(), Shape::Plain)) };
        match gate.judge(words) {
            Judgement::Passes => Some((as_they_are(), Shape::Plain)),
            Judgement::Becomes(becomes, shape) => Some((becomes, shape)),
            _ => None,
        }
    }

    /// Whether the gate keeps everything back until a reply has come.
    fn gate_is_busy(&mut self) -> bool {
        self.look_at_replies();
        self.gate.as_ref().is_some_and(|gate| gate.is_busy())
    }

    /// The command will be offered to a backend anew.
    pub(super) fn forget_filter(&mut self) {
        if let Some(gate) = &mut self.gate {
            gate.filter = None;
        }
    }

    /// Reads what has come into the outbox since.
    pub(super) fn look_at_replies(&mut self) {
        let Some(gate) = &mut self.gate else { return };
        let Some(filter) = &mut gate.filter else { return };
        let before = self.out.bytes.len();
        let room = self.upstream.limits.reply_bytes_total;
        filter.make_room(room.saturating_sub(self.upstream.backlog.bytes()));
        let raw = self.out.bytes.split_off(gate.seen.min(before));
        let read = filter.advance(&raw, &mut self.out.bytes);
        gate.seen = self.out.bytes.len();
        match read {
            Ok(used) => self.out.bytes.extend_from_slice(&raw[used..]),
            // The lane has read it as RESP before.
            Err(_broken) => self.closing = Closing::AfterReplies,
        }
        if filter.is_done() {
            gate.zeal.learn(std::mem::take(&mut gate.looks_at), filter.names());
            gate.filter = None;
        }
        // What has gone of what came by mail waits for the client no more.
        let mail = self.out.counted.saturating_sub(self.out.at);
        let gone = before.saturating_sub(self.out.bytes.len()).min(mail);
        self.out.counted -= gone;
        self.mailbox.note_taken(gone);
        self.upstream.backlog.settle(gone);
        // What the filter has kept until now waits for the client again.
        let kept = self.out.bytes.len().saturating_sub(before);
        if !matches!(self.state, State::Pinned(..)) {
            self.out.counted += kept;
            self.mailbox.note_kept(kept);
        }
    }

    /// A reply that does not pass through the outbox.
    pub(super) fn look_at(&mut self, reply: Vec<u8>) -> Vec<u8> {
        let Some(gate) = &mut self.gate else { return reply };
        let Some(mut filter) = gate.filter.take() else { return reply };
        let mut shown = Vec::with_capacity(reply.len());
        match filter.advance(&reply, &mut shown) {
            Ok(_) => shown,
            Err(_broken) => reply,
        }
    }

    /// Sends the present step, if there is room.
    fn send_step(&mut self, cx: &Context<'_>) {
        let Some(gate) = &self.gate else { return };
        let Some(running) = &gate.errand else { return };
        let mut bytes = Vec::new();
        running.errand.write_step(&mut bytes);
        let key = match running.errand.database() {
            Some(db) => Key { db, ..self.key() },
            None => self.key(),
        };
        let work = Work { bytes: &bytes, silent: 0, replies: 1 };
        let sent = self.send_to(cx, key, work) == Submitted::Taken;
        if sent
            && let Some(gate) = &mut self.gate
            && let Some(running) = &mut gate.errand
        {
            running.step = StepOf::Sent;
        }
    }

    /// Goes on with a work of several steps, as far as its replies have come.
    pub(super) fn run_errand(&mut self, cx: &mut Context<'_>) -> MailState {
        let due =
            |gate: &Gate| gate.errand.as_ref().is_some_and(|running| running.step == StepOf::Due);
        if self.gate.as_deref().is_some_and(due) {
            self.send_step(cx);
        }
        let mut piece = Vec::new();
        let mail = self.mailbox.poll_take(cx, &mut piece);
        self.mailbox.note_taken(piece.len());
        self.upstream.backlog.settle(piece.len());
        let Some(gate) = &mut self.gate else { return mail.state };
        let Some(mut running) = gate.errand.take() else { return mail.state };
        running.reply.append(&mut piece);
        if mail.owed > 0 && running.reply.len() > PAGE_BYTES {
            write_error(TOO_LONG, &mut self.out.bytes);
            self.closing = Closing::AfterReplies;
            return mail.state;
        }
        if mail.state != MailState::Open || mail.owed > 0 || running.reply.is_empty() {
            gate.errand = Some(running);
            return mail.state;
        }
        let next = running.errand.advance(&std::mem::take(&mut running.reply));
        gate.metrics().flushed_keys.inc_by(running.errand.take_removed());
        match next {
            Next::Step => {
                running.step = StepOf::Due;
                gate.errand = Some(running);
                self.send_step(cx);
            }
            Next::Answer(answer) => match (running.put_by, answer) {
                (Some(put_by), Answer::Counts(counts)) => self.write_information(put_by, counts),
                (Some(put_by), _) => self.write_information(put_by, Vec::new()),
                (None, answer) => self.write_answer(answer),
            },
        }
        cx.waker().wake_by_ref();
        mail.state
    }

    /// Whether the reply to INFO, which is all of the outbox, is put by until the namespace's keys are counted.
    pub(super) fn count_keyspace(&mut self, cx: &Context<'_>, wanted: Wanted) -> bool {
        let Some(gate) = &mut self.gate else { return false };
        let counts = Errand::of_keyspace(&gate.realm.namespace, &self.out.bytes);
        let Some(errand) = counts else { return false };
        let reply = std::mem::take(&mut self.out.bytes);
        gate.run(errand, Some(PutBy { reply, wanted }));
        let counted = std::mem::take(&mut self.out.counted);
        self.mailbox.note_taken(counted);
        self.upstream.backlog.settle(counted);
        cx.waker().wake_by_ref();
        true
    }

    fn write_answer(&mut self, answer: Answer) {
        let out = &mut self.out.bytes;
        match (answer, self.identity.proto) {
            (Answer::Done, _) => out.extend_from_slice(b"+OK\r\n"),
            (Answer::Count(count), _) => out.extend_from_slice(format!(":{count}\r\n").as_bytes()),
            (Answer::Name(name), _) => {
                out.extend_from_slice(format!("${}\r\n", name.len()).as_bytes());
                out.extend_from_slice(&name);
                out.extend_from_slice(b"\r\n");
            }
            (Answer::Counts(_), _) => {}
            (Answer::Nothing, Proto::Resp2) => out.extend_from_slice(b"$-1\r\n"),
            (Answer::Nothing, Proto::Resp3) => out.extend_from_slice(b"_\r\n"),
            (Answer::Error(line), _) => out.extend_from_slice(&line),
        }
    }

    /// Judges a command for the backend that the session holds.
    pub(super) fn pass_gate_pinned<'a>(&mut self, words: &[&'a [u8]], how: Carriage) -> Passed<'a> {
        if self.gate_is_busy() {
            return Passed::Waits;
        }
        let Some(gate) = &self.gate else { return Passed::AsIs };
        let State::Pinned(pinned, _) = &self.state else { return Passed::Waits };
        let (queueing, alone) = (pinned.is_queueing(), pinned.unanswered() == Some(0));
        let within = queueing || pinned.is_in_transaction() || pinned.hold() == Hold::Tracking;
        let exec = step(words.first().copied().unwrap_or_default()) == Step::Exec
            && !gate.shapes.is_empty();
        let refusal = match gate.judge(words) {
            Judgement::Refused(refusal) => refusal,
            Judgement::Errand(_) => not_here(words),
            // With WATCH alone the session still answers for itself.
            _ if brings_user(words) => refusal(words, ANOTHER_USER),
            _ if is_of_connection(words, how)
                && (queueing || (within && !matches!(how, Carriage::Session(_)))) =>
            {
                not_here(words)
            }
            Judgement::Becomes(becomes, shape) if queueing => {
                match gate.shape_in_transaction(shape) {
                    Some(shape) => return Passed::As(becomes, shape),
                    None => too_many(words),
                }
            }
            Judgement::Passes if exec && !alone => return Passed::Waits,
            Judgement::Passes => return Passed::AsIs,
            Judgement::Script => return Passed::Waits,
            Judgement::Becomes(words, Shape::Script(_)) if !alone => {
                return Passed::As(words, Shape::Plain);
            }
            Judgement::Becomes(_, shape) if shape != Shape::Plain && !alone => {
                return Passed::Waits;
            }
            Judgement::Becomes(words, shape) => return Passed::As(words, shape),
        };
        let State::Pinned(pinned, _) = &mut self.state else { return Passed::Waits };
        if queueing {
            pinned.refuse_queued(&refusal.text);
        } else if !alone {
            return Passed::Waits;
        } else {
            write_error(&refusal.text, &mut self.out.bytes);
        }
        self.count_refusal(&refusal);
        Passed::Taken
    }

    /// The beginning of a command too large to be held, as it goes on instead, and how much of the command that stands for.
    pub(super) fn large_form(&self, command: &[u8]) -> Result<(Vec<u8>, usize), Refusal> {
        let as_it_is = Ok((Vec::new(), 0));
        self.gate.as_ref().map_or(as_it_is, |gate| gate.namespace().large_form(command))
    }

    /// Refuses a command of which the inbox holds the beginning; everything before it is answered.
    pub(super) fn refuse_large(&mut self, refusal: &Refusal) {
        self.refuse_at_gate(refusal);
        self.inbox = Vec::new();
        self.scanner.forget_length();
        if let Some(gate) = &mut self.gate {
            gate.rest = Rest::Dropped;
        }
    }

    /// Passes over what of `bytes` belongs to a command that was refused: how much that is.
    pub(super) fn drop_rest(&mut self, bytes: &[u8]) -> usize {
        if !matches!(&self.gate, Some(gate) if gate.rest == Rest::Dropped) {
            return 0;
        }
        let (used, progress) = match self.scanner.advance(bytes, self.request_limits()) {
            Ok(found) => found,
            Err(error) => {
                self.break_protocol(error);
                return bytes.len();
            }
        };
        self.scanner.forget_length();
        if progress != Progress::Partial
            && let Some(gate) = &mut self.gate
        {
            gate.rest = Rest::Heard;
            self.scanner = RequestScanner::default();
        }
        used
    }

    /// Longest word of a command that is read on, in a namespace whose values are bounded: shorter ones are refused by themselves.
    pub(super) fn longest_word(&self) -> usize {
        let limits = &self.upstream.limits;
        let of_namespace = |gate: &Gate| {
            gate.namespace().value_bytes.max(limits.understood_frame_bytes).min(limits.frame_bytes)
        };
        self.gate.as_deref().map_or(limits.frame_bytes, of_namespace)
    }
}

/// A command that needs the session to be outside of transactions.
fn not_here(words: &[&[u8]]) -> Refusal {
    let why = "can't stand in a transaction, between WATCH and its end, or behind CLIENT TRACKING ON, in a namespace; send \
               it by itself";
    refusal(words, why)
}

fn too_many(words: &[&[u8]]) -> Refusal {
    refusal(
        words,
        "is one too many of its kind in this transaction, in a namespace; make it several",
    )
}

fn refusal(words: &[&[u8]], why: &str) -> Refusal {
    let name = String::from_utf8_lossy(words.first().copied().unwrap_or_default());
    let text = format!("NOPERM '{}' {why}", name.to_ascii_lowercase());
    let command = look_up(words).map_or("other", |command| command.name);
    Refusal { ground: Ground::Command, command, text }
}

/// HELLO as another user: the server would be asked, and not tidegate.
fn brings_user(words: &[&[u8]]) -> bool {
    let is = |word: &&[u8], text: &str| word.eq_ignore_ascii_case(text.as_bytes());
    words.first().is_some_and(|name| is(name, "HELLO")) && words.iter().any(|word| is(word, "AUTH"))
}

/// Commands about the connection that the server would answer for the connection that is shared.
fn is_of_connection(words: &[&[u8]], how: Carriage) -> bool {
    let is =
        |text: &str| words.first().is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()));
    match how {
        // Behind it nobody looks at what comes.
        Carriage::Pinned(
            Reason::Subscription | Reason::Stream | Reason::Tracking | Reason::Unknown,
        ) => true,
        Carriage::Session(Word::Auth | Word::Info | Word::List | Word::Kill) => true,
        Carriage::Session(Word::Hello) => words.len() > 2,
        _ => is("INFO"),
    }
}

impl Special {
    /// Whether the command is done with, as far as the inbox goes.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Taken)
    }
}
