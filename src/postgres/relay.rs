//! The relay: how many bytes may pass, what rides along, and what is kept back, in both directions.
//!
//! A run of frames that nobody must understand passes as it was read. Frames that name prepared statements are
//! rewritten, missing statements are parsed in the same flight, and the answers to what tidegate added are swallowed.
//! No IO: bytes in, bytes out.
mod handover;
mod ledger;
mod loss;
mod replies;
mod reports;
mod requests;
mod sequences;
mod shapes;
#[cfg(test)]
mod tests;
mod waiting;
mod words;

use std::sync::Arc;

use super::exchange::{Exchange, Owed, Verdict};
use super::message::{self, ErrorFields};
use super::settings::{Applied, Reset, Settings};
use super::sql::Lexer;
use super::statements::{Registry, ServerStatements, Shape};
use super::truth::{self, Truth};
use super::wire::{self, Head, Header};
use handover::Handover;
use reports::{Reports, Whose};
use sequences::{Before, Sequences};
use shapes::{Bound, Checking};

pub use ledger::{Asked, Ledger};
pub use loss::{Aftermath, Late, Loss, Pace, Transaction, lose};
pub use replies::{Given, replies};
pub use requests::{Goodbye, Listening, Output, Surroundings, Taken, requests};
pub use sequences::Draw;
pub use waiting::{Stance, Waiting, Work, is_rollback, waiting};
pub use words::Words;

/// The number no statement has: for parses that are kept in no map.
const NO_STATEMENT: u64 = u64::MAX;

/// Most names kept of statements that are gone.
const GHOSTS: usize = 64;

/// Fails, and leaves a failed transaction: PostgreSQL documentation, "Message Flow", multiple statements in a simple
/// query. The server's log shows the name.
const FAILING: &str =
    "BEGIN; ROLLBACK TO SAVEPOINT \"the connection of this transaction was lost\"";

/// Takes off what a session may have left: DISCARD ALL, but for the plans, in what may run inside a transaction block.
/// PostgreSQL documentation, "DISCARD".
const EMPTYING: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *; \
                        SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

/// Most bytes of an unfinished frame that are filled up.
const FILLED_BYTES: usize = 1024 * 1024;

/// One server connection, as the protocol sees it.
#[derive(Debug)]
pub struct Line {
    /// What is owed on it.
    pub exchange: Exchange,
    /// What it has parsed.
    pub statements: ServerStatements,
    /// What was counted since it was last asked.
    pub tally: Tally,
    /// The latest statement.
    pub words: Arc<Words>,
    applied: Option<Arc<Settings>>,
    /// Whether the connection still has what was applied.
    settled: Settled,
    gate: Gate,
    unnamed: Unnamed,
    doubt: Doubt,
    client_rest: u32,
    server_rest: u32,
    server_rest_verdict: Verdict,
    server_row: Row,
    /// Reads a Query that is too long to be gathered.
    lexer: Option<Box<Lexer>>,
    /// Names clients used that may exist on the server and must not when the next session comes.
    strays: Vec<Box<[u8]>>,
    /// What the client called statements that are gone, by the numbers of their names on the server.
    ghosts: Vec<(u64, Box<[u8]>)>,
    /// Why the server ends the connection, once it has said so.
    farewell: Option<Box<ErrorFields>>,
    writing: Writing,
    pace: Pace,
    /// What the server is saying of the session.
    answer: truth::Answer,
    news: Option<News>,
    resettle: Resettle,
    reset: Reset,
    /// The client's bytes of the latest flight, while they may have to be sent again.
    flight: Vec<u8>,
    retry: Retry,
    /// How many answers to its Parses the client has had of a flight that may go again, or goes again.
    told_parses: u32,
    plans: Plans,
    epoch: u64,
    names: Names,
    pinning: Pinning,
    passed: Passed,
    /// How the rows of the unnamed statement look, once that was described.
    unnamed_shape: Option<Shape>,
    bound: Bound,
    checking: Checking,
    sequences: Sequences,
    reports: Reports,
    handover: Handover,
}

/// Whether the server has said that it writes nothing (25006).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It has not.
    Unrefused,
    /// It has, if only to a transaction that its client had made READ ONLY.
    Refused,
}

/// Whether anything of the session's has passed since it took the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    Nothing,
    Something,
}

/// Whether the session may run what keeps its connection with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pinning {
    /// It has to ask.
    Unasked,
    /// Its next frame is such a statement.
    Wanted(Leave),
    /// It may listen, and nothing more.
    MayListen,
    Allowed,
}

/// What the server is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Suspicion {
    /// What a transaction's words may have left.
    #[default]
    OfWords,
    /// Whatever any transaction can leave.
    OfAll,
}

/// Whether all that a session may have left is taken off a connection before the next one gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Emptied {
    /// What is known of is; what nobody knows of passes on.
    #[default]
    No,
    /// It is.
    Yes,
}

/// What a statement may have to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Leave to pin the connection: see [`Line::allow_pin`].
    Pin,
    /// The hub: see [`Line::allow_listen`].
    Listen,
}

/// Whether names of statements and routines mean what the maps say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Certain,
    /// A portal that takes them all away is bound.
    Threatened,
    /// What takes them all away is sent: whether it works, its answer tells.
    Doubtful,
    /// And the client's next words wait for that answer.
    Awaited,
}

impl Names {
    /// Behind words that may take some away: at once in a Query, when its portal runs in a Bind.
    fn until_told(resettle: Resettle) -> Self {
        match resettle {
            Resettle::AtSync => Self::Threatened,
            Resettle::Now | Resettle::No => Self::Doubtful,
        }
    }
}

/// Whether the latest flight can be sent again without anybody noticing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    No,
    /// It is one transaction of which the client has seen nothing yet but that it was parsed; only a server that goes before it ran any of it
    /// makes it go again.
    IfUnrun,
    /// And a plan of ours that turns out to be void does, too.
    Possible,
    /// It failed for no fault of the client's: its end is awaited, then it goes again.
    Due,
    /// It is being sent again, for the last time.
    Spent,
}

/// Whether the server refused a plan of ours since this was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plans {
    Good,
    Void,
}

/// What the relay has learnt of its session.
#[derive(Debug)]
pub enum News {
    /// The server was asked, and this is what it said.
    Told(Truth),
    /// DISCARD ALL has worked: nothing is left, and the settings are those of startup.
    Discarded,
    /// The server would not say what is left.
    Untold,
    /// The session listens no more on the connection: the hub hears for it.
    HandedOver,
    /// It goes on listening there.
    Kept,
}

/// What the server's frame that is being read is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// A row of an answer to what we asked about the session.
    OfTruth,
    Other,
}

/// Whether the client's startup settings have to be brought back behind a RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resettle {
    No,
    /// Behind the client's next Sync.
    AtSync,
    /// At the next frame boundary.
    Now,
}

/// Whether a connection still has the settings that were applied to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Yes,
    /// Some may be back at what they were at login.
    Perhaps,
}

/// Counts for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Transactions ended.
    pub transactions: u64,
    /// Queries, and runs up to a Sync, that ended inside a transaction.
    pub steps: u64,
    /// Queries, Executes and FunctionCalls sent.
    pub requests: u64,
}

/// Whether the client's bytes may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// Not before the server has answered our change of identity.
    Shut,
    /// Never: the server refused the session's settings.
    Refused,
}

/// Whether an error may have taken with it what brought statements to the server. Behind the Sync of such a flight the next one
/// must not rely on them before the answer is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    None,
    /// In the flight that goes out now the unnamed statement was changed.
    UnnamedHere,
    /// In one before it.
    Unnamed,
    /// In the flight that goes out now a Parse of ours stands behind something of the client's.
    NamesHere,
}

/// Whose the server's unnamed statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unnamed {
    /// The same as the session's.
    Session,
    /// Unknown: perhaps another session's.
    Foreign,
}

/// A frame that ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No client frame has this type.
    #[error("invalid frontend message type {0}")]
    Type(u8),
    /// Its length can't be right.
    #[error("invalid message length")]
    Length,
    /// One prepared statement more than a client, or all together, may have.
    #[error("too many prepared statements")]
    TooManyStatements,
    /// It is longer than what is gathered to be understood.
    #[error("a message of type '{}' is longer than understood_frame_bytes", char::from(*.0))]
    TooLong(u8),
}

impl Line {
    /// For a new server connection, with what the server reported at login.
    #[must_use]
    pub fn new(statements: ServerStatements, parameters: &[(String, String)]) -> Self {
        Self {
            exchange: Exchange::default(),
            statements,
            tally: Tally::default(),
            words: Arc::default(),
            applied: None,
            settled: Settled::Yes,
            gate: Gate::Open,
            unnamed: Unnamed::Foreign,
            doubt: Doubt::None,
            client_rest: 0,
            server_rest: 0,
            server_rest_verdict: Verdict::Relay,
            server_row: Row::Other,
            lexer: None,
            strays: Vec::new(),
            ghosts: Vec::new(),
            farewell: None,
            writing: Writing::Unrefused,
            pace: Pace::InTurn,
            answer: truth::Answer::default(),
            news: None,
            resettle: Resettle::No,
            reset: Reset::default(),
            flight: Vec::new(),
            retry: Retry::No,
            told_parses: 0,
            plans: Plans::Good,
            epoch: 0,
            names: Names::Certain,
            pinning: Pinning::Unasked,
            passed: Passed::Nothing,
            unnamed_shape: None,
            bound: Bound::default(),
            checking: Checking::No,
            sequences: Sequences::default(),
            reports: Reports::at_login(parameters),
            handover: Handover::None,
        }
    }

    /// What the client's next frame waits for.
    #[must_use]
    pub fn wants(&self) -> Option<Leave> {
        match self.pinning {
            Pinning::Wanted(leave) => Some(leave),
            Pinning::Unasked | Pinning::MayListen | Pinning::Allowed => None,
        }
    }

    /// The session may LISTEN, until another begins: the hub takes that over.
    pub fn allow_listen(&mut self) {
        self.pinning = Pinning::MayListen;
    }

    /// The session may pin the connection, until another begins.
    pub fn allow_pin(&mut self) {
        self.pinning = Pinning::Allowed;
    }

    /// The flight that must go again, once it has failed to its end; to be passed to [`requests`] before anything else.
    pub fn take_retry(&mut self, ledger: &mut Option<Box<Ledger>>) -> Option<Vec<u8>> {
        if self.retry != Retry::Due || self.exchange.owed() > 0 {
            return None;
        }
        self.retry = Retry::Spent;
        let flight = std::mem::take(&mut self.flight);
        if let Some(ledger) = ledger {
            ledger.unname(&flight);
        }
        Some(flight)
    }

    /// Whether the server has refused a plan, or a flight must go again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.plans == Plans::Void || self.retry == Retry::Due
    }

    /// Whether the server refused a plan since this was last asked: other connections' plans are void, too.
    pub fn take_void_plans(&mut self) -> bool {
        std::mem::replace(&mut self.plans, Plans::Good) == Plans::Void
    }

    /// Keeps what the client called a statement, for errors that requests under way may still bring.
    fn remember(&mut self, number: u64, name: &[u8]) {
        if self.ghosts.len() == GHOSTS {
            self.ghosts.remove(0);
        }
        self.ghosts.push((number, name.into()));
    }

    /// What the client calls the statement whose name on the server has this number.
    fn client_name<'a>(&'a self, ledger: &'a Ledger, number: u64) -> Option<&'a [u8]> {
        let id = self.statements.numbered(number);
        let mut named = ledger.statements.named.iter();
        let known = named.find(|(_, statement)| Some(statement.id) == id).map(|(name, _)| name);
        let mut ghosts = self.ghosts.iter().rev();
        let ghost = || ghosts.find(|(ghost, _)| *ghost == number).map(|(_, name)| name);
        known.or_else(ghost).map(|name| &**name)
    }

    /// Forgets what is parsed; the server's statements are closed before the next session comes.
    fn retire_statements(&mut self) {
        let names = self.statements.retire();
        self.strays.extend(names.iter().map(|name| Box::from(name.without_zero())));
    }

    /// Asks the server what the session has left, if that is due and the connection is at rest.
    pub fn ask_truth(&mut self, ledger: &mut Option<Box<Ledger>>, out: &mut Vec<u8>) -> Asked {
        let Some(ledger) = ledger.as_deref_mut().filter(|ledger| ledger.has_suspects()) else {
            return Asked::No;
        };
        if !self.is_over() {
            return Asked::No;
        }
        // What the session has anyway is no longer among its settings if it is not asked about.
        if let Some(applied) = &self.applied {
            let known = applied.asked.iter().chain(applied.asked_at_startup());
            known.for_each(|(name, _)| ledger.custom(name));
        }
        if ledger.put_question(out) == Asked::No {
            return Asked::No;
        }
        if ledger.asks_for_routines() {
            // What the client says next may mean something else when they are known.
            self.names = Names::Awaited;
        }
        self.answer = truth::Answer::default();
        self.sent_ours(Owed::Truth);
        Asked::Yes
    }

    /// A Query of ours goes out behind something of the session's: it drops the unnamed statement on the server.
    fn sent_ours(&mut self, owed: Owed) {
        self.exchange.sent_query(owed);
        self.unnamed = Unnamed::Foreign;
    }

    /// What was learnt of the session since this was last asked.
    pub fn take_news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// Whether it may go to another session: nothing owed, no transaction, both sides at a frame boundary.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.exchange.is_over() && self.at_boundary() && self.gate() == Gate::Open
    }

    /// Whether anything of the session's has passed since it took the connection: before that it has it for what is to
    /// come.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.passed == Passed::Something
    }

    /// Whether both sides are at a frame boundary.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.client_rest == 0 && self.server_rest == 0
    }

    /// Whether the client's frame has all been passed.
    #[must_use]
    pub fn client_at_boundary(&self) -> bool {
        self.client_rest == 0
    }

    /// The client has gone: nothing of its goes again or waits for leave, and COPY data that it left unfinished is filled
    /// up, as the copy is going to fail. Tells whether its side is at a frame boundary now.
    pub fn abandon(&mut self, out: &mut Vec<u8>) -> bool {
        self.retry = Retry::No;
        self.pinning = Pinning::Unasked;
        let missing = wire::widen(self.client_rest);
        if self.exchange.copies_in() && missing <= FILLED_BYTES {
            out.resize(out.len() + missing, 0);
            self.client_rest = 0;
        }
        self.client_at_boundary()
    }

    /// Whether the server's frame has all been read.
    #[must_use]
    pub fn server_at_boundary(&self) -> bool {
        self.server_rest == 0
    }

    /// Why the server ends the connection, if it has said so: an error of severity FATAL or PANIC, kept from the client.
    #[must_use]
    pub fn farewell(&self) -> Option<&ErrorFields> {
        self.farewell.as_deref()
    }

    /// Whether the server writes, as far as it has said.
    #[must_use]
    pub fn writing(&self) -> Writing {
        self.writing
    }

    /// What the server has reported last of one of its parameters.
    #[must_use]
    pub fn reported(&self, name: &str) -> Option<&str> {
        self.reports.value(name)
    }

    /// The server reports while nobody uses it: the body of a ParameterStatus.
    pub fn hears(&mut self, report: &[u8]) {
        self.reports.hear(report, Whose::Ours);
    }

    /// How the session has sent its requests since it took the connection.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Whether the client's bytes may pass.
    #[must_use]
    pub fn gate(&self) -> Gate {
        match self.gate {
            Gate::Open if self.retry == Retry::Due || self.wants().is_some() => Gate::Shut,
            Gate::Open if self.handover != Handover::None => Gate::Shut,
            Gate::Open if self.names == Names::Awaited && self.exchange.owed() > 0 => Gate::Shut,
            Gate::Open if self.checking == Checking::Awaited && self.exchange.owed() > 0 => {
                Gate::Shut
            }
            gate => gate,
        }
    }

    /// The session with this number takes the connection: appends what must ride ahead of its bytes.
    pub fn begin(
        &mut self,
        session: i32,
        settings: &Arc<Settings>,
        registry: &Registry,
        emptied: Emptied,
        out: &mut Vec<u8>,
    ) {
        let epoch = registry.epoch();
        if std::mem::replace(&mut self.epoch, epoch) != epoch {
            self.retire_statements();
        }
        self.retry = Retry::No;
        self.names = Names::Certain;
        (self.checking, self.bound, self.unnamed_shape) = (Checking::No, Bound::default(), None);
        self.pinning = Pinning::Unasked;
        self.passed = Passed::Nothing;
        self.handover = Handover::None;
        self.pace = Pace::InTurn;
        (self.unnamed, self.doubt) = (Unnamed::Foreign, Doubt::None);
        (self.resettle, self.reset) = (Resettle::No, Reset::default());
        self.news = None;
        self.ghosts.clear();
        for name in std::mem::take(&mut self.strays) {
            wire::put_frame(out, b'C', &[b"S", &name, b"\0"]);
            self.exchange.sent_ahead(Owed::CloseOurs);
        }
        let before = self.sequences.begin(session);
        if emptied == Emptied::Yes && before == Before::Another {
            out.extend_from_slice(&message::query(EMPTYING));
            self.exchange.sent_query(Owed::QueryOurs);
            self.sequences.clean();
            (self.applied, self.settled) = (None, Settled::Yes);
        }
        if registry.reads_sequences() {
            self.discard_sequences(out);
        }
        let same = self.applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, settings));
        if same && self.settled == Settled::Yes {
            return;
        }
        let applied = match self.settled {
            Settled::Yes => settings.put_change(self.applied.as_deref(), out),
            Settled::Perhaps => settings.put_anew(self.applied.as_deref(), out),
        };
        self.settled = Settled::Yes;
        self.applied = Some(Arc::clone(settings));
        if applied != Applied::Unchanged {
            self.exchange.sent_query(Owed::QueryOurs);
        }
        if applied == Applied::AwaitReply {
            self.gate = Gate::Shut;
        }
    }

    /// Takes away what other sessions' sequences gave last, if something of the kind may be there.
    fn discard_sequences(&mut self, out: &mut Vec<u8>) {
        if self.sequences.clean() {
            out.extend_from_slice(&message::query("DISCARD SEQUENCES"));
            self.exchange.sent_query(Owed::QueryOurs);
        }
    }

    /// What the transactions since this was last asked did with sequences.
    pub fn take_draw(&mut self) -> Draw {
        self.sequences.take_draw()
    }

    /// Behind [`Line::begin`]: brings the server into a failed transaction, as the session's own was when its
    /// connection was lost.
    pub fn begin_failed(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&message::query(FAILING));
        self.exchange.sent_query(Owed::Failing);
        self.gate = Gate::Shut;
    }

    /// Settings were reset: what was applied has to be applied again for the next session.
    pub fn resettled(&mut self) {
        if self.applied.as_ref().is_some_and(|applied| !applied.asked.is_empty()) {
            self.settled = Settled::Perhaps;
        }
    }

    /// The connection was brought to these settings by other means.
    pub fn set_applied(&mut self, settings: Arc<Settings>) {
        self.applied = Some(settings);
        self.settled = Settled::Yes;
    }

    /// The settings it was brought to last, some of which it may have lost; `None`: it is as logged in.
    #[must_use]
    pub fn applied(&self) -> Option<&Arc<Settings>> {
        self.applied.as_ref()
    }

    /// The server has been told DISCARD ALL: it is as after login.
    pub fn discarded(&mut self) {
        self.applied = None;
        self.settled = Settled::Yes;
        self.statements.clear();
        self.strays.clear();
        self.sequences = Sequences::default();
    }

    /// Takes the counts.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

/// The header at the start of a client's bytes, if it is there; judged by its type first, as the server does.
fn client_header(bytes: &[u8]) -> Result<Option<Header>, Violation> {
    let (tag, header) = match wire::head(bytes) {
        Head::Short => return Ok(None),
        Head::Absurd { tag } => (tag, None),
        Head::Frame(header) => (header.tag, Some(header)),
    };
    let fits = wire::client_body_fits(header.unwrap_or(Header { tag, body: 0 }));
    match (fits, header) {
        (None, _) => Err(Violation::Type(tag)),
        (Some(true), Some(header)) => Ok(Some(header)),
        (Some(_), _) => Err(Violation::Length),
    }
}
