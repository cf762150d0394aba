//! The session with a server connection: full duplex, both directions polled in every turn.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::listening::HandedOver;
use super::unlinked::{count, dismissed};
use super::{Admitted, End, Inbox, Lost, Phase, Presence, Session, Turn, Wish};
use crate::config::PoolMode;
use crate::postgres::backend::PgBackend;
use crate::postgres::connect::send_cancel;
use crate::postgres::exchange::Status;
use crate::postgres::message::{ErrorFields, Severity};
use crate::postgres::relay::{
    self, Asked, Draw, Gate, Goodbye, Leave, News, Output, Pace, Surroundings, Taken,
};
use crate::postgres::sql::Routines;
use crate::postgres::truth::Truth;

/// Replies owed beyond which no more is read from the client.
const OWED_LIMIT: usize = 64 * 1024;

/// Bytes waiting for the server beyond which no more of the inbox is passed on.
const TO_SERVER_BYTES: usize = 64 * 1024;

/// Whether a direction moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Yes,
    No,
}

type Side = Result<Moved, End>;

impl Session {
    /// One look at both directions, and the release when all is over.
    pub(super) fn linked(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.cancels_unsent() {
            self.release();
            self.refuse_cancelled();
            return Turn::Again;
        }
        let moved = match self.both_sides(cx, buffer) {
            Ok(moved) => moved,
            // Whoever has said goodbye may close before the last answer.
            Err(End::Vanished) if self.is_leaving() => return Turn::End(End::Goodbye),
            Err(End::ServerLost(lost)) => return self.lose(lost, cx, buffer),
            Err(end) => return Turn::End(end),
        };
        if self.is_leaving() {
            if self.is_answered() {
                return Turn::End(End::Goodbye);
            }
        } else if self.is_over() && !self.holds(cx) {
            self.release();
            return Turn::Again;
        }
        self.mark();
        match moved {
            Moved::Yes => Turn::Again,
            Moved::No => Turn::Sleep,
        }
    }

    fn both_sides(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Side {
        self.poll_rare(cx)?;
        let replies = self.server_to_client(cx, buffer)?;
        if replies == Moved::Yes {
            self.hear_out(cx)?;
            self.hear_farewell()?;
            self.refuse_block()?;
        }
        self.ask_truth(cx);
        if replies == Moved::Yes && self.is_over() {
            // The client's next request is another transaction: it begins with a checkout of its own.
            self.count();
            return Ok(Moved::Yes);
        }
        let requests = self.client_to_server(cx, buffer)?;
        let listens = self.listen(cx)?;
        self.count();
        let admitted = self.seek_permit(cx)?;
        let moved = [replies, requests, listens, admitted].contains(&Moved::Yes);
        Ok(if moved { Moved::Yes } else { Moved::No })
    }

    /// Server to client: what is left over first, then one read.
    fn server_to_client(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Side {
        let Phase::Linked(lease) = &mut self.phase else { return Ok(Moved::No) };
        let backend: &mut PgBackend = lease;
        match backend.to_client.poll_send(&mut self.client, cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Err(End::Vanished),
            // The client doesn't read: neither do we.
            Poll::Pending => return self.stalled(cx),
        }
        if let Some(rare) = &mut self.rare {
            rare.stall = None;
        }
        let kept = backend.rest.len();
        buffer[..kept].copy_from_slice(&backend.rest);
        let n = match backend.stream.poll_read_into(cx, &mut buffer[kept..]) {
            Poll::Pending => return Ok(Moved::No),
            Poll::Ready(Ok(n)) if n > 0 => n,
            Poll::Ready(_) => return Err(End::ServerLost(Lost::Closed)),
        };
        let bytes = &mut buffer[..kept + n];
        let given = relay::replies(&mut backend.line, &mut self.ledger, bytes)
            .map_err(|desync| End::ServerLost(Lost::Desync(desync.to_string())))?;
        backend.rest.clear();
        backend.rest.extend_from_slice(&bytes[given.rest..]);
        if backend.line.gate() == Gate::Refused {
            return Err(End::ServerLost(Lost::SettingsRefused));
        }
        let metrics = self.pool.metrics();
        metrics.bytes_received_server.inc_by(count(n));
        metrics.bytes_sent_client.inc_by(count(given.relay));
        backend
            .to_client
            .send(&mut self.client, cx, &bytes[..given.relay])
            .map_err(|_| End::Vanished)?;
        Ok(Moved::Yes)
    }

    /// Client to server: the inbox first, then what is left over, then one read.
    fn client_to_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Side {
        let mut moved = self.inbox_on()?;
        let Phase::Linked(lease) = &mut self.phase else { return Ok(moved) };
        let backend: &mut PgBackend = lease;
        match backend.to_server.poll_send(&mut backend.stream, cx) {
            Poll::Ready(Ok(())) => {}
            // What the server said last is still to be read, and its end of stream tells the rest.
            Poll::Ready(Err(_)) => backend.to_server.clear(),
            Poll::Pending => return Ok(moved),
        }
        if !self.takes_requests() {
            return Ok(moved);
        }
        if self.inbox.as_ref().is_some_and(|inbox| inbox.is_ready()) {
            // It had to wait for what has just been sent.
            return Ok(Moved::Yes);
        }
        // What came is mostly all there is: whoever knows that at once need not look at both sides again.
        for _ in 0..2 {
            let n = match self.client.poll_read_on(cx, buffer, &mut self.registered) {
                Poll::Pending if self.is_inside() => return self.silent(cx).map(|()| moved),
                Poll::Pending if self.is_settled(cx) => return Ok(Moved::No),
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(_) => return Err(End::Vanished),
            };
            moved = Moved::Yes;
            self.take_from_client(cx, &buffer[..n])?;
            if !self.is_settled(cx) {
                break;
            }
        }
        Ok(moved)
    }

    fn take_from_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), End> {
        if let Some(rare) = &mut self.rare {
            rare.silence = None;
        }
        self.pool.metrics().bytes_received_client.inc_by(count(bytes.len()));
        let Some(inbox) = &mut self.inbox else { return self.pass_on(Some(cx), bytes) };
        inbox.bytes.extend_from_slice(bytes);
        self.inbox_on()?;
        if let Phase::Linked(lease) = &mut self.phase {
            flush(lease, cx);
        }
        Ok(())
    }

    /// Whether all that the client said is on its way to the server, and nothing but their next words, and what the sockets take,
    /// brings more to do.
    fn is_settled(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Linked(lease) = &mut self.phase else { return false };
        lease.stream.poll_flushed(cx).is_ready()
            && lease.to_server.is_empty()
            && self.inbox.is_none()
            && self.rare.is_none()
            && self.ledger.as_ref().is_none_or(|ledger| !ledger.has_suspects())
            && lease.to_client.is_empty()
            && self.takes_requests()
            && !self.is_inside()
    }

    /// Whether the client has begun a message and not ended it.
    fn is_inside(&self) -> bool {
        matches!(&self.phase, Phase::Linked(lease) if !lease.line.client_at_boundary())
    }

    /// First bytes after a checkout that did not wait.
    pub(super) fn inbox_first(&mut self, bytes: &[u8]) -> Turn {
        if !self.takes_requests() {
            self.park(bytes, 0);
            return Turn::Again;
        }
        match self.pass_on(None, bytes) {
            Ok(()) => Turn::Again,
            Err(end) => Turn::End(end),
        }
    }

    /// Passes on what is in the inbox, if enough is there and the server may have it.
    fn inbox_on(&mut self) -> Side {
        if self.cancels_unsent() {
            return Ok(Moved::Yes);
        }
        let Phase::Linked(lease) = &self.phase else { return Ok(Moved::No) };
        if lease.to_server.len() > TO_SERVER_BYTES || !self.takes_requests() {
            return Ok(Moved::No);
        }
        let Some(inbox) = self.inbox.take_if(|inbox| inbox.is_ready()) else {
            return Ok(Moved::No);
        };
        let Inbox { bytes, .. } = *inbox;
        self.pass_on(None, &bytes)?;
        Ok(Moved::Yes)
    }

    /// Passes bytes of the client's on; with a context they are written at once. What must wait is parked.
    fn pass_on(&mut self, cx: Option<&mut Context<'_>>, bytes: &[u8]) -> Result<(), End> {
        let listening = self.pool_listens();
        let Phase::Linked(lease) = &mut self.phase else { return Ok(()) };
        let backend: &mut PgBackend = lease;
        let around = Surroundings {
            registry: self.pool.connector().registry(),
            settings: &self.settings,
            understood_bytes: self.pool.connector().bounds().understood_frame_bytes(),
            statements: self.pool.connector().bounds().statements_per_client(),
            listening,
            suspicion: self.pool.connector().suspicion(),
        };
        let out = backend.to_server.bytes();
        let before = out.len();
        let taken = relay::requests(&mut backend.line, &mut self.ledger, around, bytes, out);
        let Taken { consumed, output, need, goodbye } = taken.map_err(dismissed)?;
        let sent = match output {
            Output::Input => consumed,
            Output::Appended => backend.to_server.bytes().len() - before,
        };
        self.pool.metrics().bytes_sent_server.inc_by(count(sent));
        match (output, cx) {
            // A broken stream shows when it is read.
            (Output::Input, Some(cx)) => {
                let stream = &mut backend.stream;
                let _shows = backend.to_server.send(stream, cx, &bytes[..consumed]);
            }
            (Output::Input, None) => {
                backend.to_server.bytes().extend_from_slice(&bytes[..consumed]);
            }
            (Output::Appended, Some(cx)) => flush(backend, cx),
            (Output::Appended, None) => {}
        }
        self.park(&bytes[consumed..], need);
        if goodbye == Goodbye::Said {
            self.inbox = None;
            self.rare.get_or_insert_default().presence = Presence::Leaving;
        }
        Ok(())
    }

    /// Whether the server may get more of the client's.
    fn takes_requests(&self) -> bool {
        let Phase::Linked(lease) = &self.phase else { return false };
        let line = &lease.line;
        let open = line.gate() == Gate::Open && line.exchange.owed() < OWED_LIMIT;
        open && !self.is_leaving() && (!self.is_cancelling() || line.exchange.owes_client())
    }

    /// Whether a cancel request may still hit what runs: what it meant may be over before the server has it, and the
    /// server may signal twice for one.
    pub(super) fn is_cancelling(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.cancelling.is_some())
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.presence == Presence::Leaving)
    }

    /// Whether everything sent has its answer, and the client has it; or no answer can come: the server keeps answers
    /// back until a Sync.
    fn is_answered(&self) -> bool {
        let Phase::Linked(lease) = &self.phase else { return true };
        let exchange = &lease.line.exchange;
        if (exchange.wants_sync() && !exchange.owes_ready()) || exchange.copies_in() {
            return true;
        }
        exchange.owed() == 0 && lease.to_server.is_empty() && lease.to_client.is_empty()
    }

    /// What few replies bring with them beside themselves.
    fn hear_out(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Phase::Linked(lease) = &self.phase else { return Ok(()) };
        if lease.line.has_failed() {
            self.try_again(cx)?;
        }
        if self.ledger.is_some() {
            self.learn();
        }
        Ok(())
    }

    /// A server that has said why it goes says nothing more. One that went while nothing was under way harms nobody: the
    /// connection is closed when it is given back.
    fn hear_farewell(&self) -> Result<(), End> {
        let Phase::Linked(lease) = &self.phase else { return Ok(()) };
        if lease.line.farewell().is_some() && !self.is_over() {
            return Err(End::ServerLost(Lost::Closed));
        }
        Ok(())
    }

    /// Sends a flight again that failed because a plan of ours was void.
    fn try_again(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Phase::Linked(lease) = &mut self.phase else { return Ok(()) };
        if lease.line.take_void_plans() {
            self.pool.connector().registry().plans_are_void();
        }
        match lease.line.take_retry(&mut self.ledger) {
            Some(flight) => self.pass_on(Some(cx), &flight),
            None => Ok(()),
        }
    }

    /// Asks the server what the session has left, when that is due; the client's next words go behind the question.
    fn ask_truth(&mut self, cx: &mut Context<'_>) {
        if self.ledger.as_ref().is_none_or(|ledger| !ledger.has_suspects()) {
            return;
        }
        // A cancel request under way would hit the question.
        if self.rare.as_ref().is_some_and(|rare| rare.cancelling.is_some()) {
            return;
        }
        let Phase::Linked(lease) = &mut self.phase else { return };
        let backend: &mut PgBackend = lease;
        if !backend.to_client.is_empty() || backend.line.farewell().is_some() {
            return;
        }
        if backend.line.ask_truth(&mut self.ledger, backend.to_server.bytes()) == Asked::Yes {
            flush(backend, cx);
            self.run_question_clock();
        }
        // What can't be asked about is a pin without an answer.
        self.count_pins();
    }

    /// The server has so long to answer a question of ours.
    pub(super) fn run_question_clock(&mut self) {
        let limit = self.pool.connector().bounds().cleanup_timeout();
        let clock = Box::pin(tokio::time::sleep(limit));
        self.rare.get_or_insert_default().question = Some(clock);
    }

    /// Notifications, while the client is between two transactions; and what brings the session to the hub.
    fn listen(&mut self, cx: &mut Context<'_>) -> Side {
        if self.rare.as_ref().is_none_or(|rare| rare.listening.is_none()) {
            return Ok(Moved::No);
        }
        if self.hand_over(cx)
            && let Phase::Linked(lease) = &mut self.phase
        {
            flush(lease, cx);
            return Ok(Moved::Yes);
        }
        let Phase::Linked(lease) = &self.phase else { return Ok(Moved::No) };
        let line = &lease.line;
        let between = line.exchange.is_fresh() && line.at_boundary() && lease.to_client.is_empty();
        if !between {
            return Ok(Moved::No);
        }
        let frames = self.poll_notifications(cx)?;
        let Phase::Linked(lease) = &mut self.phase else { return Ok(Moved::No) };
        if frames.is_empty() {
            return Ok(Moved::No);
        }
        lease.to_client.bytes().extend_from_slice(&frames);
        Ok(Moved::Yes)
    }

    /// Takes what the server said of the session: its settings, and what keeps its connection.
    fn learn(&mut self) {
        let Phase::Linked(lease) = &mut self.phase else { return };
        let Some(news) = lease.line.take_news() else { return };
        let channels = match &news {
            News::HandedOver => {
                self.handed_over(HandedOver::Yes);
                return self.count_pins();
            }
            News::Kept => {
                self.handed_over(HandedOver::No);
                return self.count_pins();
            }
            News::Told(truth) => Some(truth.channels.clone()),
            News::Discarded | News::Untold => None,
        };
        let Phase::Linked(lease) = &mut self.phase else { return };
        if let Some(rare) = &mut self.rare {
            rare.question = None;
        }
        if let News::Told(Truth { routines: Some(routines), .. }) = &news {
            self.pool.connector().registry().learn_routines(Routines::read(routines));
        }
        let startup = self.settings.at_startup();
        let settings = match news {
            News::Told(Truth { settings: Some(asked), .. }) => {
                Some(self.pool.connector().derive(startup, asked))
            }
            News::Discarded => Some(Arc::clone(startup)),
            News::Told(_) | News::Untold | News::HandedOver | News::Kept => None,
        };
        if let Some(settings) = settings {
            lease.line.set_applied(Arc::clone(&settings));
            self.cancel.card().settled(&settings);
            self.settings = settings;
        }
        self.offer(channels);
        self.count_pins();
    }

    /// Whether the session keeps its connection for a while after it may have drawn from a sequence, where sessions are
    /// known to ask for the value afterwards. Only if others have enough left.
    fn holds(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Linked(lease) = &mut self.phase else { return false };
        let connector = self.pool.connector();
        match lease.line.take_draw() {
            Draw::Drawn if connector.registry().reads_sequences() => {
                let rare = self.rare.get_or_insert_default();
                if rare.permit.is_none() {
                    rare.permit = self.pool.try_pin();
                }
                let limit = connector.bounds().sequence_hold();
                rare.hold = rare.permit.is_some().then(|| Box::pin(tokio::time::sleep(limit)));
                if rare.hold.is_some() {
                    lease.pin("sequence");
                }
            }
            Draw::Drawn | Draw::None => {}
            Draw::Read => {
                if let Some(rare) = &mut self.rare {
                    rare.hold = None;
                }
            }
        }
        let hold = self.rare.as_mut().and_then(|rare| rare.hold.as_mut());
        hold.is_some_and(|hold| hold.as_mut().poll(cx).is_pending())
    }

    /// Counts the pin when the session has something to keep its connection for, and its end.
    pub(super) fn count_pins(&mut self) {
        let Phase::Linked(lease) = &mut self.phase else { return };
        let pins = self.ledger.as_ref().map(|ledger| ledger.pins()).unwrap_or_default();
        let Some(reason) = pins.reason() else { return lease.unpin() };
        lease.pin(reason);
        // What its words did not say took no leave: it counts from now on. What is handed over the hub counts: on a small
        // pool there is no leave for both.
        let rare = self.rare.get_or_insert_default();
        if rare.permit.is_none() && !rare.hands_over() {
            rare.permit = self.pool.try_pin();
        }
    }

    /// A cancel request under way, and the clock of a server that doesn't answer us.
    fn poll_rare(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(rare) = &mut self.rare else { return Ok(()) };
        if std::mem::take(&mut rare.wish) == Wish::Cancel {
            self.cancel_at_server();
        }
        let Some(rare) = &mut self.rare else { return Ok(()) };
        if let Some(cancelling) = &mut rare.cancelling
            && cancelling.as_mut().poll(cx).is_ready()
        {
            rare.cancelling = None;
        }
        let Some(rare) = &mut self.rare else { return Ok(()) };
        if let Some(question) = &mut rare.question
            && question.as_mut().poll(cx).is_ready()
        {
            return Err(End::ServerLost(Lost::Silent));
        }
        Ok(())
    }

    /// The client leaves bytes unread while it holds a connection: not for ever.
    fn stalled(&mut self, cx: &mut Context<'_>) -> Side {
        let limit = self.pool.connector().bounds().slow_reader();
        let rare = self.rare.get_or_insert_default();
        let clock = &mut rare.stall;
        if runs_out(clock, limit, cx) {
            let name = &self.pool.settings().name;
            tracing::warn!(pool = %name, seconds = limit.as_secs(), "client sent away: it reads nothing");
            return Err(End::Vanished);
        }
        Ok(Moved::No)
    }

    /// The client stops inside a message while it holds a connection: not for ever.
    fn silent(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let limit = self.pool.connector().bounds().slow_reader();
        let rare = self.rare.get_or_insert_default();
        if runs_out(&mut rare.silence, limit, cx) {
            let name = &self.pool.settings().name;
            tracing::warn!(pool = %name, seconds = limit.as_secs(), "client sent away: it stopped inside a message");
            return Err(End::Vanished);
        }
        Ok(())
    }

    /// Asks the server to cancel what runs for this client; the lease stays until that is done.
    pub(super) fn cancel_at_server(&mut self) {
        let Phase::Linked(lease) = &self.phase else { return };
        let exchange = &lease.line.exchange;
        let waits = exchange.owes_client() || self.inbox.is_some();
        if !waits || self.rare.as_ref().is_some_and(|rare| rare.cancelling.is_some()) {
            return;
        }
        let rare = self.rare.get_or_insert_default();
        if exchange.end_of_ours().is_some() || !exchange.owes_client() {
            rare.wish = Wish::Cancel;
            return;
        }
        let pool = Arc::clone(&self.pool);
        let (key, reached) = (lease.key.clone(), Arc::clone(&lease.reached));
        rare.cancelling = Some(Box::pin(async move {
            if let Err(error) = send_cancel(&reached, &key).await {
                tracing::warn!(pool = %pool.settings().name, %error, "cancel request not delivered");
            }
        }));
    }

    /// Whether the connection can go back: nothing owed, nothing unsent, nothing kept. Not before what it was taken for has
    /// passed: the server's answer to our settings is no reason.
    fn is_over(&self) -> bool {
        let Phase::Linked(lease) = &self.phase else { return false };
        let used = lease.line.has_passed() || self.inbox.is_none();
        used && lease.line.is_over() && self.is_at_rest() && !self.keeps_connection()
    }

    /// Whether the connection is the client's until it leaves.
    pub(super) fn keeps_connection(&self) -> bool {
        self.pool.connector().mode() == PoolMode::Session
    }

    /// In statement mode a transaction block ends the session that opens it, as it would hold the connection.
    fn refuse_block(&self) -> Result<(), End> {
        let Phase::Linked(lease) = &self.phase else { return Ok(()) };
        if lease.mode != PoolMode::Statement || lease.line.exchange.status() == Status::Idle {
            return Ok(());
        }
        let words = "transaction blocks are not allowed where pool_mode is statement";
        let hint = "Use autocommit, or set postgres.pool_mode (TIDEGATE_POSTGRES_POOL_MODE) to transaction for this user \
                    and database.";
        Err(End::Dismissed(ErrorFields::fatal("0A000", words).hint(hint)))
    }

    /// Whether nothing is unsent, nothing kept, no cancel request under way.
    fn is_at_rest(&self) -> bool {
        let Phase::Linked(lease) = &self.phase else { return false };
        lease.to_server.is_empty()
            && lease.to_client.is_empty()
            && lease.rest.is_empty()
            && self.ledger.as_ref().is_none_or(|ledger| ledger.is_free())
            && !self.is_cancelling()
    }

    /// Gets leave to pin the connection, if the client's next statement needs it. Who has to wait for it lets the
    /// connection go if nothing is under way on it.
    fn seek_permit(&mut self, cx: &mut Context<'_>) -> Side {
        let Phase::Linked(lease) = &mut self.phase else { return Ok(Moved::No) };
        let Some(leave) = lease.line.wants() else { return Ok(Moved::No) };
        let rare = self.rare.get_or_insert_default();
        let admitted = match (&mut rare.admission, leave) {
            // It may have leave already, to keep its connection for what a sequence gave.
            (None, Leave::Pin) => {
                rare.permit.take().or_else(|| self.pool.try_pin()).map(Admitted::Pin)
            }
            (None, Leave::Listen) => self.pool.connector().hub().is_up().then_some(Admitted::Hub),
            (Some(admission), _) => match admission.as_mut().poll(cx) {
                Poll::Pending => None,
                Poll::Ready(admitted) => Some(admitted),
            },
        };
        if let Some(admitted) = admitted {
            rare.admission = None;
            match admitted {
                Admitted::Pin(permit) => {
                    rare.permit = Some(permit);
                    lease.line.allow_pin();
                }
                Admitted::Hub => lease.line.allow_listen(),
                // Asked for by sessions without a connection only.
                Admitted::Share(_) | Admitted::NoShare => {}
                Admitted::No(leave) => {
                    return Err(End::Dismissed(self.too_many_pins(leave, Severity::Fatal)));
                }
            }
            rare.admission_ends = None;
            // At once: a connection on which nothing is under way goes back.
            self.inbox_on()?;
            return Ok(Moved::Yes);
        }
        if rare.admission.is_none() {
            let ends = *rare.admission_ends.get_or_insert_with(|| {
                self.pool.metrics().pin_waits.inc();
                tokio::time::Instant::now() + self.pool.settings().wait()
            });
            let admission = match leave {
                Leave::Pin => {
                    let permit = self.pool.wait_to_pin(ends);
                    Box::pin(
                        async move { permit.await.map_or(Admitted::No(Leave::Pin), Admitted::Pin) },
                    )
                }
                Leave::Listen => self.admission_to_hub(ends),
            };
            self.rare.get_or_insert_default().admission = Some(admission);
            // It has not been polled.
            return Ok(Moved::Yes);
        }
        if !self.may_step_back() {
            return Ok(Moved::No);
        }
        let admission = self.rare.as_mut().and_then(|rare| rare.admission.take());
        self.release();
        if let Some(admission) = admission {
            self.enter(Phase::Barred(admission));
        }
        Ok(Moved::Yes)
    }

    /// Whether nothing is under way on the connection, nor kept on it.
    fn may_step_back(&self) -> bool {
        let Phase::Linked(lease) = &self.phase else { return false };
        lease.line.exchange.is_over() && lease.line.at_boundary() && self.is_at_rest()
    }

    /// Whether a request that the client wants cancelled is still here, and needs no more than to be refused.
    fn cancels_unsent(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.wish == Wish::Cancel)
            && self.inbox.is_some()
            && self.may_step_back()
            && !self.keeps_connection()
    }

    fn release(&mut self) {
        if let Phase::Linked(mut lease) = self.enter(Phase::Idle) {
            lease.unpin();
            if lease.line.pace() == Pace::Ahead {
                self.pace = Pace::Ahead;
            }
            let stuck = self.ledger.as_mut().map(|ledger| ledger.take_stuck()).unwrap_or_default();
            match lease.line.farewell() {
                Some(_) => lease.close("server"),
                None if !stuck.is_empty() => lease.close("not_cleanable"),
                None if lease.is_misplaced() => lease.close("role"),
                None => lease.give_back(),
            }
        }
        if let Some(rare) = &mut self.rare {
            (rare.permit, rare.hold, rare.wish) = (None, None, Wish::None);
            (rare.overrun, rare.share) = (None, None);
        }
        self.leave_channels();
        // A request that came too late for the one it meant must not hit the next.
        self.cancel.clear();
        if let Some(inbox) = &mut self.inbox {
            inbox.need = 0;
        }
    }

    fn count(&mut self) {
        let Phase::Linked(lease) = &mut self.phase else { return };
        let tally = lease.line.take_tally();
        let metrics = self.pool.metrics();
        if tally.transactions + tally.steps > 0 && lease.line.exchange.owed() > 0 {
            let now_ns = metrics.times.now_ns();
            match tally.transactions {
                0 => lease.seat.next_statement(now_ns),
                _ => lease.seat.next_transaction(now_ns),
            }
            // What ran too long was the one before.
            if let Some(rare) = &mut self.rare {
                rare.overrun = None;
            }
        }
        if tally.transactions > 0 {
            metrics.transactions.inc_by(tally.transactions);
        }
        if tally.requests > 0 {
            metrics.requests.inc_by(tally.requests);
        }
    }
}

/// Whether the time is over; the clock starts when it is asked first.
fn runs_out(
    clock: &mut Option<Pin<Box<tokio::time::Sleep>>>,
    limit: std::time::Duration,
    cx: &mut Context<'_>,
) -> bool {
    let clock = clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
    clock.as_mut().poll(cx).is_ready()
}

/// Writes what waits for the server; a broken stream shows when it is read.
fn flush(backend: &mut PgBackend, cx: &mut Context<'_>) {
    let sent: Poll<io::Result<()>> = backend.to_server.poll_send(&mut backend.stream, cx);
    if let Poll::Ready(Err(_)) = sent {
        backend.to_server.clear();
    }
}
