//! A pooled server connection: its stream, its line, and the bytes not yet sent either way.

use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::bounds::{Bounds, Rules};
use super::clients::{Seat, Seats, Way};
use super::connect::{Dial, Dialled, Reached};
use super::hosts;
use super::hub::Hub;
use super::message::{self, BackendKey, ErrorFields};
use super::relay::{Emptied, Line, Suspicion};
use super::settings::{self, Settings};
use super::shares::Shares;
use super::sql::{Routines, Suspects};
use super::statements::{Registry, ServerStatements};
use super::truth;
use super::wire::{self, HEADER_BYTES, Head};
use crate::config::{Current, Passing, PoolMode, PostgresLimits, Probe};
use crate::net::Stream;
use crate::pool::{
    Backend, Checkout, CheckoutError, CheckoutErrorKind, Connect, ConnectError, Fault, Pool,
};

/// Longest frame of an answer to a question of ours.
const ANSWER_FRAME_BYTES: usize = 1024 * 1024;

/// Longest frame an idle connection may hear; the part of it that is here must fit a session's read buffer.
const IDLE_FRAME_BYTES: usize = 8 * 1024;

/// For how long what was read of the database's routines is not read again by the next connection that is opened. What
/// sessions of the pool change is read at once.
const ROUTINES_KEPT: Duration = Duration::from_secs(60);

/// Capacity an outbox keeps when it is empty.
const OUTBOX_KEPT_BYTES: usize = 16 * 1024;

/// A pool of Postgres connections.
pub type PgPool = Pool<PgConnect>;

/// Opens the connections of one pool, and keeps what its sessions share.
#[derive(Debug)]
pub struct PgConnect {
    dial: Current<Dial>,
    limits: Current<PostgresLimits>,
    bounds: Bounds,
    registry: Registry,
    combinations: Mutex<Combinations>,
    hub: Hub,
    shares: Shares,
    seats: Arc<Seats>,
    /// When the database's routines were read last.
    routines_read: Mutex<Option<Instant>>,
}

/// The combinations of startup parameters that a server has checked.
#[derive(Debug)]
struct Combinations {
    limit: usize,
    /// The server's reports at login that `known` was made with: another server version makes it void.
    version: Option<String>,
    known: HashMap<Pairs, Arc<Settings>, RandomState>,
    /// What sessions have made of those by SET, by the startup combination's plan and the list.
    derived: HashMap<(Pairs, Pairs), Arc<Settings>, RandomState>,
    plans: HashMap<Pairs, u64, RandomState>,
    next_plan: u64,
}

/// Names and values.
type Pairs = Vec<(String, String)>;

/// One server connection.
#[derive(Debug)]
pub struct PgBackend {
    /// The connection.
    pub stream: Stream,
    /// What is owed on it, and what it has prepared.
    pub line: Line,
    /// Bytes read from the server that make no whole frame yet.
    pub rest: Vec<u8>,
    /// Bytes for the server that its socket did not take.
    pub to_server: Outbox,
    /// Bytes for the client that its socket did not take.
    pub to_client: Outbox,
    /// For a cancel request.
    pub key: BackendKey,
    /// Who has it.
    pub seat: Arc<Seat>,
    /// Where the server is: another connection may lead elsewhere.
    pub reached: Arc<Reached>,
    /// The pool's mode when it was lent: what a session has begun it ends.
    pub mode: PoolMode,
    /// What the server reported at login.
    pub parameters: Vec<(String, String)>,
}

/// Bytes that a socket did not take yet.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

/// What a server answered to a question of ours.
#[derive(Debug, Default)]
pub struct Answer {
    /// The settings it reported meanwhile.
    pub parameters: Vec<(String, String)>,
    /// Its error, if it had one.
    pub error: Option<ErrorFields>,
    /// Its rows.
    rows: truth::Answer,
}

impl Answer {
    /// Its rows, a null as an empty column.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<Vec<u8>>> {
        self.rows.raw()
    }
}

impl Outbox {
    /// Whether all is sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes still to be sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Where to append.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Sends what is there. Ready when it is empty and with the kernel.
    ///
    /// # Errors
    /// As the stream says.
    pub fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let n = ready!(stream.poll_write_from(cx, &self.bytes[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        self.clear();
        stream.poll_flushed(cx)
    }

    /// Sends `bytes` after what is there; keeps what the stream does not take.
    ///
    /// # Errors
    /// As the stream says.
    pub fn send(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        if self.is_empty() {
            while !bytes.is_empty() {
                match stream.poll_write_from(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
        if self.bytes.capacity() > OUTBOX_KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Takes what is left.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..self.sent);
        self.sent = 0;
        bytes
    }
}

impl PgConnect {
    /// For the pool with this name, of connections made by `dial`.
    #[must_use]
    pub fn new(name: &str, dial: Dial, limits: PostgresLimits, rules: &Rules) -> Self {
        let upstream = dial.upstream();
        let seats = Seats::new(name, &upstream.user, &upstream.database);
        Self {
            seats,
            shares: Shares::new(rules.connections, rules.share_percent),
            dial: Current::new(dial),
            bounds: Bounds::new(rules, &limits),
            registry: Registry::new(limits.statements_total, limits.statements_total_bytes),
            combinations: Mutex::new(Combinations {
                limit: limits.settings_combinations.max(1),
                version: None,
                known: HashMap::default(),
                derived: HashMap::default(),
                plans: HashMap::default(),
                next_plan: 0,
            }),
            limits: Current::new(limits),
            hub: Hub::new(RandomState::default().hash_one(std::process::id())),
            routines_read: Mutex::default(),
        }
    }

    /// What listens for its sessions.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Its server connections, and who has them.
    #[must_use]
    pub fn seats(&self) -> &Arc<Seats> {
        &self.seats
    }

    /// What each application may have of them, if there is a limit.
    #[must_use]
    pub fn shares(&self) -> Option<&Shares> {
        self.shares.are_limited().then_some(&self.shares)
    }

    /// How connections are made from now on.
    #[must_use]
    pub fn dial(&self) -> Arc<Dial> {
        self.dial.get()
    }

    /// Changes how connections are made from now on; what it was.
    pub fn redial(&self, dial: Dial) -> Arc<Dial> {
        self.dial.set(dial)
    }

    /// Connections lead to another server from now on: what was learnt of the old one is void.
    pub fn forget_server(&self) {
        let mut combinations = self.combinations.lock().unwrap_or_else(PoisonError::into_inner);
        combinations.known.clear();
        combinations.derived.clear();
        drop(combinations);
        *self.routines_read.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Changes what its sessions keep to.
    pub fn reconfigure(&self, limits: PostgresLimits, rules: &Rules) {
        self.bounds.set(rules, &limits);
        self.shares.set(rules.connections, rules.share_percent);
        self.registry.set_limits(limits.statements_total, limits.statements_total_bytes);
        self.combinations.lock().unwrap_or_else(PoisonError::into_inner).limit =
            limits.settings_combinations.max(1);
        self.limits.set(limits);
    }

    /// For how long its clients keep a connection.
    #[must_use]
    pub fn mode(&self) -> PoolMode {
        self.bounds.mode()
    }

    /// Whose words decide what the server is asked.
    #[must_use]
    pub fn suspicion(&self) -> Suspicion {
        match self.bounds.probe() {
            Probe::Suspects => Suspicion::OfWords,
            Probe::Always => Suspicion::OfAll,
        }
    }

    /// Whether a connection is emptied before another session gets it.
    #[must_use]
    pub fn empties(&self) -> Emptied {
        match self.bounds.passing() {
            Passing::Difference => Emptied::No,
            Passing::Strict => Emptied::Yes,
        }
    }

    /// The bounds its sessions keep. For what is looked at in each transaction see [`PgConnect::bounds`].
    #[must_use]
    pub fn limits(&self) -> Arc<PostgresLimits> {
        self.limits.get()
    }

    /// Those of them that are looked at in each transaction.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The statements of all its sessions.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    fn known(&self, asked: &[(String, String)]) -> Option<Arc<Settings>> {
        let combinations = self.combinations.lock().unwrap_or_else(PoisonError::into_inner);
        combinations.known.get(asked).cloned()
    }

    fn learn(
        &self,
        asked: Vec<(String, String)>,
        reported: Vec<(String, String)>,
    ) -> Arc<Settings> {
        let mut combinations = self.combinations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = combinations.known.get(&asked) {
            return Arc::clone(known);
        }
        if combinations.known.len() >= combinations.limit {
            combinations.known.retain(|_, settings| Arc::strong_count(settings) > 1);
        }
        let plan = combinations.plan(&asked);
        let settings = Arc::new(Settings::new(plan, None, asked.clone(), reported));
        // Past the limit, with all in use, a combination serves its session and is not remembered.
        if combinations.known.len() < combinations.limit {
            combinations.known.insert(asked, Arc::clone(&settings));
        }
        settings
    }

    /// The combination that a session which began with `startup` has come to, as the server told it.
    pub(super) fn derive(&self, startup: &Arc<Settings>, mut asked: Pairs) -> Arc<Settings> {
        let dial = self.dial.get();
        let login = &dial.upstream().user;
        asked.retain(|(name, value)| name != "session_authorization" || value != login);
        if asked == startup.asked {
            return Arc::clone(startup);
        }
        let mut combinations = self.combinations.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (startup.asked.clone(), asked);
        if let Some(known) = combinations.derived.get(&key) {
            return Arc::clone(known);
        }
        let (plan, reported) = (combinations.plan(&key.1), startup.reported.clone());
        let settings = Settings::new(plan, Some(Arc::clone(startup)), key.1.clone(), reported);
        let settings = Arc::new(settings);
        if combinations.derived.len() >= combinations.limit {
            combinations.derived.retain(|_, settings| Arc::strong_count(settings) > 1);
        }
        if combinations.derived.len() < combinations.limit {
            combinations.derived.insert(key, Arc::clone(&settings));
        }
        settings
    }

    /// Reads what the database's own routines leave behind when they are called, unless that was done lately.
    async fn read_routines(&self, backend: &mut PgBackend) -> Result<(), ConnectError> {
        {
            let mut read = self.routines_read.lock().unwrap_or_else(PoisonError::into_inner);
            if read.is_some_and(|read| read.elapsed() < ROUTINES_KEPT) {
                return Ok(());
            }
            *read = Some(Instant::now());
        }
        let mut question = Vec::new();
        truth::put_question(Suspects::ROUTINE, &[], &mut question);
        let answer = backend.ask(&question).await.map_err(|error| ConnectError {
            fault: Fault::Unreachable,
            code: "io".to_owned(),
            message: format!("the connection was lost behind its login: {error}"),
        })?;
        let error = answer.error.map(|error| error.message);
        match answer.rows.read().and_then(|truth| truth.routines) {
            Some(routines) => self.registry.learn_routines(Routines::read(&routines)),
            None => tracing::warn!(
                error,
                "the database's functions could not be read: what they leave behind is not seen; set postgres.probe to \
                 always if they SET, LISTEN or lock"
            ),
        }
        Ok(())
    }

    /// A server of another version reports other things: what was learnt from the old one is void.
    fn met(&self, parameters: &[(String, String)]) {
        let version = parameters.iter().find(|(name, _)| name == "server_version");
        let version = version.map(|(_, value)| value.clone());
        let mut combinations = self.combinations.lock().unwrap_or_else(PoisonError::into_inner);
        if combinations.version != version {
            combinations.version = version;
            combinations.known.clear();
            combinations.derived.clear();
        }
    }
}

impl Combinations {
    /// The number of the plans that statements have under these settings. Past the limit each combination has a number
    /// of its own: nothing is shared, nothing is mixed up.
    fn plan(&mut self, asked: &[(String, String)]) -> u64 {
        let matters = settings::matters_to_plans(asked);
        if let Some(plan) = self.plans.get(&matters) {
            return *plan;
        }
        self.next_plan += 1;
        if self.plans.len() < self.limit {
            self.plans.insert(matters, self.next_plan);
        }
        self.next_plan
    }
}

impl Connect for PgConnect {
    type Backend = PgBackend;

    async fn connect(&self) -> Result<PgBackend, ConnectError> {
        let way = self.dial.get();
        let Dialled { stream, parameters, key, reached } = hosts::dial(&way).await?;
        let nonce = getrandom::u64().map_err(|error| ConnectError {
            fault: Fault::Unreachable,
            code: "io".to_owned(),
            message: format!("the system has no random numbers: {error}"),
        })?;
        self.met(&parameters);
        let statements = ServerStatements::new(nonce, self.limits.get().statements_per_backend);
        let line = Line::new(statements, &parameters);
        let seat = Seat::new(key.pid, Way::of(&stream), Arc::clone(&line.words));
        self.seats.admit(&seat);
        let mut backend = PgBackend {
            stream,
            line,
            seat,
            rest: Vec::new(),
            to_server: Outbox::default(),
            to_client: Outbox::default(),
            key,
            reached,
            mode: self.mode(),
            parameters,
        };
        self.read_routines(&mut backend).await?;
        Ok(backend)
    }
}

impl Backend for PgBackend {
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_misplaced() {
            return Poll::Ready(());
        }
        let mut piece = [0; 512];
        loop {
            match ready!(self.stream.poll_read_into(cx, &mut piece)) {
                Ok(n) if n > 0 => self.rest.extend_from_slice(&piece[..n]),
                _ => return Poll::Ready(()),
            }
            if self.take_idle_frames().is_err() {
                return Poll::Ready(());
            }
        }
    }
}

/// The server said something that ends an idle connection.
struct Ended;

impl PgBackend {
    /// Reads what a server may say to an idle connection: notices and changed settings.
    fn take_idle_frames(&mut self) -> Result<(), Ended> {
        let mut at = 0;
        while let Head::Frame(header) = wire::head(&self.rest[at..]) {
            if !matches!(header.tag, b'N' | b'S' | b'A') || header.frame() > IDLE_FRAME_BYTES {
                return Err(Ended);
            }
            let Some(body) = self.rest.get(at + HEADER_BYTES..at + header.frame()) else { break };
            if header.tag == b'S' {
                self.line.hears(body);
            }
            at += header.frame();
        }
        self.rest.drain(..at);
        Ok(())
    }

    /// Whether the server is not any more what the pool's URL asks for. Then the connection is not to be kept, and the next
    /// one is made to whichever host is what is asked for by then.
    #[must_use]
    pub fn is_misplaced(&self) -> bool {
        let (target, writing) = (self.reached.target(), self.line.writing());
        hosts::has_changed(target, writing, &self.parameters, |name| self.line.reported(name))
    }

    /// Asks the server something of ours while no session uses it, and waits for the whole answer.
    ///
    /// # Errors
    /// When the connection fails or says what was not asked for; it must be closed then.
    /// Not cancel safe: a dropped question leaves its answer on the wire.
    pub async fn ask(&mut self, question: &[u8]) -> io::Result<Answer> {
        self.to_server.bytes().extend_from_slice(question);
        poll_fn(|cx| self.to_server.poll_send(&mut self.stream, cx)).await?;
        let mut answer = Answer::default();
        let mut piece = [0; 2048];
        loop {
            if self.take_answer(&mut answer)? == Finished::Yes {
                return Ok(answer);
            }
            let n = poll_fn(|cx| self.stream.poll_read_into(cx, &mut piece)).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rest.extend_from_slice(&piece[..n]);
        }
    }

    fn take_answer(&mut self, answer: &mut Answer) -> io::Result<Finished> {
        let mut at = 0;
        let mut finished = Finished::No;
        while finished == Finished::No {
            let header = match wire::head(&self.rest[at..]) {
                Head::Frame(header) if header.frame() <= ANSWER_FRAME_BYTES => header,
                Head::Short => break,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            let Some(body) = self.rest.get(at + HEADER_BYTES..at + header.frame()) else { break };
            match header.tag {
                b'S' => {
                    answer.parameters.extend(message::parse_parameter_status(body));
                    self.line.hears(body);
                }
                b'E' => answer.error = Some(ErrorFields::parse(body)),
                b'D' => {
                    answer.rows.row(header.body);
                    answer.rows.add(body);
                }
                // Ours are asked outside transactions, or end one.
                b'Z' if body == b"I" => finished = Finished::Yes,
                b'Z' => return Err(io::ErrorKind::InvalidData.into()),
                _ => {}
            }
            at += header.frame();
        }
        self.rest.drain(..at);
        Ok(finished)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finished {
    No,
    Yes,
}

/// The settings of a session with these startup parameters, checked by a server of the pool.
///
/// # Errors
/// The error to give the client: the server's own, or why there is no server. Cancel safe.
pub async fn settings_for(
    pool: &Arc<PgPool>,
    parameters: Vec<(String, String)>,
) -> Result<Arc<Settings>, ErrorFields> {
    let asked = settings::normalize(&parameters)
        .map_err(|error| ErrorFields::fatal("22023", error.to_string()))?;
    if let Some(known) = pool.connector().known(&asked) {
        return Ok(known);
    }
    let lease = match pool.checkout() {
        Checkout::Ready(lease) => Ok(lease),
        Checkout::Queued(ticket) => ticket.lease().await,
    };
    let mut lease =
        lease.map_err(|error| checkout_error_in(pool, &error, message::Severity::Fatal))?;
    let bound = pool.settings().connect_timeout();
    let answer = match tokio::time::timeout(bound, try_settings(&mut lease, &asked)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => {
            lease.close("settings_failed");
            return Err(ErrorFields::fatal(
                "08006",
                "the database server did not answer while the session's settings were applied",
            ));
        }
    };
    if let Some(mut error) = answer.error {
        // The change was one transaction: nothing of it holds.
        lease.give_back();
        error.severity = message::Severity::Fatal;
        return Err(error);
    }
    let mut reported = lease.parameters.clone();
    overlay(&mut reported, &answer.parameters);
    let settings = pool.connector().learn(asked, reported);
    lease.line.set_applied(Arc::clone(&settings));
    lease.give_back();
    Ok(settings)
}

/// Brings a connection to settings that no server has checked yet, from what it was at login, so that its reports tell
/// all that differs.
async fn try_settings(backend: &mut PgBackend, asked: &[(String, String)]) -> io::Result<Answer> {
    let before = backend.line.applied().cloned();
    if before.is_some() {
        backend.ask(&message::query("RESET ALL")).await?;
    }
    let mut change = Vec::new();
    let from = before.as_ref().map_or(&[][..], |before| &before.asked);
    settings::put_anew(from, asked, &mut change);
    if change.is_empty() {
        return Ok(Answer::default());
    }
    let answer = backend.ask(&change).await?;
    if answer.error.is_some() {
        backend.line.resettled();
    }
    Ok(answer)
}

/// Puts newer reports over older ones.
fn overlay(reported: &mut Vec<(String, String)>, newer: &[(String, String)]) {
    for (name, value) in newer {
        match reported.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.clone_from(value),
            None => reported.push((name.clone(), value.clone())),
        }
    }
}

/// What a client is told when there is no server for it.
#[must_use]
pub fn checkout_error(error: &CheckoutError, severity: message::Severity) -> ErrorFields {
    let code = match &error.kind {
        CheckoutErrorKind::TimedOut | CheckoutErrorKind::QueueFull => "53300",
        CheckoutErrorKind::Closed => "57P01",
        CheckoutErrorKind::Unreachable { code, .. }
        | CheckoutErrorKind::Refused { code, .. }
        | CheckoutErrorKind::Rejected { code, .. } => {
            // A label such as `io` is no SQLSTATE.
            if code.len() == 5 { code } else { "08006" }
        }
    };
    ErrorFields::new(severity, code, error.what()).detail(error.figures()).hint(error.advice())
}

/// As [`checkout_error`], for a client of the pool: names whoever has had a connection for longest. Those have the same user
/// and database, so they may know of each other.
#[must_use]
pub fn checkout_error_in(
    pool: &PgPool,
    error: &CheckoutError,
    severity: message::Severity,
) -> ErrorFields {
    let fields = checkout_error(error, severity);
    if !matches!(error.kind, CheckoutErrorKind::TimedOut | CheckoutErrorKind::QueueFull) {
        return fields;
    }
    let now_ns = pool.metrics().times.now_ns();
    let holders = pool.connector().seats().holders(now_ns, pool.connector().limits().leak);
    let Some(holder) = holders.first() else { return fields };
    let what = match (holder.phase.as_str(), &holder.pin) {
        ("idle_in_transaction", _) => "idle in a transaction".to_owned(),
        ("pinned", Some(pin)) => format!("pinned by {pin}"),
        ("pinned", None) => "pinned".to_owned(),
        _ => "running a statement".to_owned(),
    };
    let hint = format!(
        "{} Longest holder: client {} (application_name {:?}), server process {}, has had a connection for {:.1} s, \
         {what} for {:.1} s; its last statement: {}",
        error.advice(),
        holder.client,
        holder.application_name,
        holder.server_pid,
        holder.held_seconds,
        holder.phase_seconds,
        if holder.statement.is_empty() { "none yet" } else { &holder.statement },
    );
    fields.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_reports_win() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let mut reported = vec![pair("a", "1"), pair("b", "1")];
        overlay(&mut reported, &[pair("b", "2"), pair("c", "3")]);
        assert_eq!(reported, [pair("a", "1"), pair("b", "2"), pair("c", "3")]);
    }

    #[test]
    fn an_outbox_gives_what_is_left_and_keeps_no_large_buffer() {
        let mut outbox = Outbox { bytes: vec![1; 100_000], sent: 99_999 };
        assert_eq!(outbox.len(), 1);
        assert_eq!(outbox.take(), [1]);
        outbox.bytes().resize(100_000, 0);
        outbox.clear();
        assert!(outbox.bytes.capacity() <= OUTBOX_KEPT_BYTES);
    }
}
