//! The relay: how many bytes may pass, what rides along, and what is kept back, in both directions.
//!
//! A run of frames that nobody must understand passes as it was read. Frames that name prepared statements are
//! rewritten, missing statements are parsed in the same flight, and the answers to what tidegate added are swallowed.
//! No IO: bytes in, bytes out.

use std::sync::Arc;

use super::exchange::{Desync, Exchange, Named, Outcome, Owed, Status, Verdict};
use super::settings::{Applied, Settings};
use super::sql::{self, Findings, Lexer, Suspects};
use super::statements::{Registry, ServerStatements, SessionStatements, Statement};
use super::wire::{self, HEADER_BYTES, Head, Header};

/// Longest Query that is gathered before it is read; a longer one is read as it passes.
const GATHERED_QUERY_BYTES: usize = 64 * 1024;

/// Longest portal and statement name of a Bind, together.
const BIND_NAMES_BYTES: usize = 8 * 1024;

/// One server connection, as the protocol sees it.
#[derive(Debug)]
pub struct Line {
    /// What is owed on it.
    pub exchange: Exchange,
    /// What it has parsed.
    pub statements: ServerStatements,
    /// What was counted since it was last asked.
    pub tally: Tally,
    applied: Option<Arc<Settings>>,
    gate: Gate,
    unnamed: Unnamed,
    client_rest: u32,
    server_rest: u32,
    server_rest_verdict: Verdict,
    /// Reads a Query that is too long to be gathered.
    lexer: Option<Box<Lexer>>,
    /// Names clients used that may exist on the server and must not when the next session comes.
    strays: Vec<Box<[u8]>>,
    farewell: Farewell,
}

/// Whether the server has said why it ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Not yet.
    Unsaid,
    /// With an error of severity FATAL or PANIC.
    Said,
}

/// Counts for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Transactions ended.
    pub transactions: u64,
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

/// Whose the server's unnamed statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unnamed {
    /// The same as the session's.
    Session,
    /// Unknown: perhaps another session's.
    Foreign,
}

/// What the relay keeps of a session that prepares statements or leaves things behind.
#[derive(Debug, Default)]
pub struct Ledger {
    statements: SessionStatements,
    pins: Suspects,
    /// Names that a DISCARD ALL or DEALLOCATE ALL under way will take, with their statements.
    discarding: Option<Vec<(Box<[u8]>, u64)>>,
}

impl Ledger {
    /// What keeps the backend with the session.
    #[must_use]
    pub fn pins(&self) -> Suspects {
        self.pins
    }
}

/// What the relay must know of a session's surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The pool's statements.
    pub registry: &'a Registry,
    /// The session's startup settings.
    pub settings: &'a Settings,
    /// Longest frame that is gathered to be understood, in bytes.
    pub understood_bytes: usize,
}

/// What [`requests`] did with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// Where the bytes to send are.
    pub output: Output,
    /// Bytes of what is left that are needed before more can be done.
    pub need: usize,
    /// Whether the client said goodbye.
    pub goodbye: Goodbye,
}

/// Where the bytes to send are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The consumed bytes as they are.
    Input,
    /// All appended to the output.
    Appended,
}

/// Whether the client said goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// No.
    No,
    /// It sent Terminate.
    Said,
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
    /// It is longer than what is gathered to be understood.
    #[error("a message of type '{}' is longer than understood_frame_bytes", char::from(*.0))]
    TooLong(u8),
}

/// What [`replies`] did with the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Bytes at the start of the buffer that go to the client.
    pub relay: usize,
    /// Where the bytes begin that have to be seen again with what follows them.
    pub rest: usize,
}

impl Line {
    /// For a new server connection.
    #[must_use]
    pub fn new(statements: ServerStatements) -> Self {
        Self {
            exchange: Exchange::default(),
            statements,
            tally: Tally::default(),
            applied: None,
            gate: Gate::Open,
            unnamed: Unnamed::Foreign,
            client_rest: 0,
            server_rest: 0,
            server_rest_verdict: Verdict::Relay,
            lexer: None,
            strays: Vec::new(),
            farewell: Farewell::Unsaid,
        }
    }

    /// Whether it may go to another session: nothing owed, no transaction, both sides at a frame boundary.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.exchange.is_over() && self.at_boundary() && self.gate == Gate::Open
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

    /// Whether the server's frame has all been read.
    #[must_use]
    pub fn server_at_boundary(&self) -> bool {
        self.server_rest == 0
    }

    /// Whether the server has said why it ends the connection.
    #[must_use]
    pub fn farewell(&self) -> Farewell {
        self.farewell
    }

    /// Whether the client's bytes may pass.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate
    }

    /// A session takes the connection: appends what must ride ahead of its bytes.
    pub fn begin(&mut self, settings: &Arc<Settings>, out: &mut Vec<u8>) {
        self.unnamed = Unnamed::Foreign;
        for name in std::mem::take(&mut self.strays) {
            wire::put_frame(out, b'C', &[b"S", &name, b"\0"]);
            self.exchange.sent_ahead(Owed::CloseOurs);
        }
        if self.applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, settings)) {
            return;
        }
        let applied = settings.put_change(self.applied.as_deref(), out);
        self.applied = Some(Arc::clone(settings));
        if applied != Applied::Unchanged {
            self.exchange.sent_query(Owed::QueryOurs);
        }
        if applied == Applied::AwaitReply {
            self.gate = Gate::Shut;
        }
    }

    /// The connection was brought to these settings by other means.
    pub fn set_applied(&mut self, settings: Arc<Settings>) {
        self.applied = Some(settings);
    }

    /// The settings it was brought to last; `None`: as logged in.
    #[must_use]
    pub fn applied(&self) -> Option<&Arc<Settings>> {
        self.applied.as_ref()
    }

    /// The server has been told DISCARD ALL: it is as after login.
    pub fn discarded(&mut self) {
        self.applied = None;
        self.statements.clear();
        self.strays.clear();
    }

    /// Takes the counts.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

/// Passes a client's bytes on. What must be sent is the consumed part of the input as it is, or has been appended to
/// `out`, as [`Taken::output`] says.
///
/// # Errors
/// [`Violation`] for what can't be a frame; nothing may be sent after it.
pub fn requests(
    line: &mut Line,
    ledger: &mut Option<Box<Ledger>>,
    around: Surroundings<'_>,
    input: &[u8],
    out: &mut Vec<u8>,
) -> Result<Taken, Violation> {
    let mut pass =
        Pass { line, ledger, around, input, out, at: 0, copied: 0, output: Output::Input };
    let (need, goodbye) = pass.run()?;
    let Pass { at, output, .. } = pass;
    if output == Output::Appended {
        pass.copy_run();
    }
    Ok(Taken { consumed: at, output, need, goodbye })
}

/// One call of [`requests`].
struct Pass<'a> {
    line: &'a mut Line,
    ledger: &'a mut Option<Box<Ledger>>,
    around: Surroundings<'a>,
    input: &'a [u8],
    out: &'a mut Vec<u8>,
    /// How far the input is done with.
    at: usize,
    /// How far it has been copied or dropped.
    copied: usize,
    output: Output,
}

/// What became of a frame.
enum Step {
    Passed,
    /// It takes this many bytes to go on.
    Wait(usize),
    Goodbye,
}

impl Pass<'_> {
    fn run(&mut self) -> Result<(usize, Goodbye), Violation> {
        loop {
            self.pass_rest();
            let header = match wire::head(&self.input[self.at..]) {
                Head::Short => return Ok((HEADER_BYTES, Goodbye::No)),
                Head::Absurd { tag } => return Err(absurd(tag)),
                Head::Frame(header) => header,
            };
            match wire::client_body_fits(header) {
                None => return Err(Violation::Type(header.tag)),
                Some(false) => return Err(Violation::Length),
                Some(true) => {}
            }
            match self.frame(header)? {
                Step::Passed => {}
                Step::Wait(need) => return Ok((need, Goodbye::No)),
                Step::Goodbye => return Ok((HEADER_BYTES, Goodbye::Said)),
            }
        }
    }

    /// Passes what is here of a frame begun before.
    fn pass_rest(&mut self) {
        if self.line.client_rest == 0 {
            return;
        }
        let here = self.input.len() - self.at;
        let take = here.min(wire::widen(self.line.client_rest));
        if let Some(lexer) = &mut self.line.lexer {
            lexer.feed(&self.input[self.at..self.at + take]);
        }
        self.at += take;
        self.line.client_rest -= u32::try_from(take).unwrap_or(self.line.client_rest);
        if self.line.client_rest == 0
            && let Some(lexer) = self.line.lexer.take()
        {
            self.leaves(&lexer.finish());
        }
    }

    fn frame(&mut self, header: Header) -> Result<Step, Violation> {
        let here = self.input.len() - self.at;
        match header.tag {
            b'X' => return Ok(Step::Goodbye),
            b'S' => self.line.exchange.sent_sync(),
            b'c' | b'f' => self.line.exchange.sent_copy_end(),
            b'E' => {
                self.line.tally.requests += 1;
                self.line.exchange.sent(Owed::Execute);
            }
            b'F' => {
                self.line.tally.requests += 1;
                self.line.exchange.sent_query(Owed::Function);
            }
            b'Q' => return Ok(self.query(header)),
            b'B' => return self.bind(header),
            b'P' | b'D' | b'C' => {
                let whole = header.frame();
                if whole > self.around.understood_bytes {
                    return Err(Violation::TooLong(header.tag));
                }
                if here < whole {
                    return Ok(Step::Wait(whole));
                }
                let input = self.input;
                let body = &input[self.at + HEADER_BYTES..self.at + whole];
                match header.tag {
                    b'P' => self.parse(header, body),
                    b'D' => self.describe(header, body),
                    _ => self.close(header, body),
                }
                return Ok(Step::Passed);
            }
            // Flush, CopyData.
            _ => {}
        }
        self.pass(header);
        Ok(Step::Passed)
    }

    /// Lets a frame pass as it is, as far as it is here.
    fn pass(&mut self, header: Header) {
        self.at += HEADER_BYTES;
        self.line.client_rest = header.body;
        self.pass_rest();
    }

    fn query(&mut self, header: Header) -> Step {
        let whole = header.frame();
        let body_at = self.at + HEADER_BYTES;
        let gathered = whole <= GATHERED_QUERY_BYTES;
        if gathered && self.input.len() - self.at < whole {
            return Step::Wait(whole);
        }
        if !self.line.exchange.answers() {
            self.line.exchange.sent_query(Owed::Query);
            self.pass(header);
            return Step::Passed;
        }
        let quoting = self.around.settings.quoting();
        if gathered {
            let input = self.input;
            let body = &input[body_at..self.at + whole];
            let text = body.strip_suffix(b"\0").unwrap_or(body);
            let findings = sql::read(text, quoting);
            self.leaves(&findings);
            self.shield(&findings);
        } else {
            self.line.lexer = Some(Box::new(Lexer::new(quoting)));
        }
        // The server drops its unnamed statement when a simple Query begins.
        if let Some(ledger) = self.ledger {
            ledger.statements.unnamed = None;
        }
        self.line.unnamed = Unnamed::Session;
        self.line.tally.requests += 1;
        self.line.exchange.sent_query(Owed::Query);
        self.pass(header);
        Step::Passed
    }

    fn parse(&mut self, header: Header, body: &[u8]) {
        let Some((name, rest)) = wire::cstr(body).filter(|(_, rest)| is_parse_rest(rest)) else {
            // Not a Parse the server will take: its error is the best answer.
            self.line.exchange.sent(Owed::ParsePlain);
            return self.pass(header);
        };
        if !self.line.exchange.answers() {
            self.line.exchange.sent(Owed::ParsePlain);
            return self.pass(header);
        }
        let quoting = self.around.settings.quoting();
        let registry = self.around.registry;
        let ledger = self.ledger.get_or_insert_default();
        if name.is_empty() {
            let before = ledger.statements.unnamed.take();
            let now = match &before {
                Some(same) if *same.body == *rest => Arc::clone(same),
                _ => registry.lone(rest, quoting),
            };
            ledger.statements.unnamed = Some(now);
            self.line.unnamed = Unnamed::Session;
            self.line.exchange.sent(Owed::ParseUnnamed(before));
            return self.pass(header);
        }
        if ledger.statements.named.contains_key(name) {
            // Give the server a statement of this name, so that its own words refuse the second.
            self.line.strays.push(name.into());
            self.inject(b'P', &[name, b"\0\0\0\0"], Owed::ParseOurs(NO_STATEMENT));
            self.line.exchange.sent(Owed::ParsePlain);
            return self.pass(header);
        }
        let statement = registry.intern(rest, self.around.settings.id, quoting);
        ledger.statements.named.insert(name.into(), Arc::clone(&statement));
        let named = Box::new(Named { name: name.into(), statement });
        self.parse_named(header, named);
    }

    /// A new name of the client's: parsed under a name of ours, unless the server has the statement already.
    fn parse_named(&mut self, header: Header, named: Box<Named>) {
        let id = named.statement.id;
        self.drop_frame(header);
        // In a failed transaction a Parse is refused, and a Close is not: let the server say it.
        let failed = self.line.exchange.status() == Status::Failed;
        if !failed && self.line.statements.name_of(id).is_some() {
            let none = self.line.statements.name_of_none();
            self.put(b'C', &[b"S", none.with_zero()]);
            self.line.exchange.sent(Owed::ParseKnown(named));
            return;
        }
        let name = self.new_name(id);
        self.put(b'P', &[name.with_zero(), &named.statement.body]);
        self.line.exchange.sent(Owed::ParseNamed(named));
    }

    fn bind(&mut self, header: Header) -> Result<Step, Violation> {
        let here = self.input.len() - self.at;
        let frame_end = self.at + header.frame().min(here);
        let input = self.input;
        let body = &input[self.at + HEADER_BYTES..frame_end];
        let names = wire::cstr(body)
            .and_then(|(portal, rest)| wire::cstr(rest).map(|(name, _)| (portal, name)));
        let Some((portal, name)) = names else {
            if here >= header.frame() {
                self.line.exchange.sent(Owed::Bind);
                self.pass(header);
                return Ok(Step::Passed);
            }
            if body.len() >= BIND_NAMES_BYTES {
                return Err(Violation::TooLong(b'B'));
            }
            return Ok(Step::Wait(header.frame().min(here + 1)));
        };
        let statement = self.understood(name);
        if let Some(statement) = &statement {
            self.leaves(&statement.findings);
            self.shield_statement(&statement.findings);
        }
        match statement.filter(|_| !name.is_empty()) {
            None => {
                self.line.exchange.sent(Owed::Bind);
                self.pass(header);
            }
            Some(statement) => {
                let server = self.server_name(&statement);
                let names_len = portal.len() + name.len() + 2;
                let rest = wire::widen(header.body) - names_len;
                let server = server.with_zero();
                self.flush_run();
                wire::put_header(self.out, b'B', portal.len() + 1 + server.len() + rest);
                self.out.extend_from_slice(portal);
                self.out.push(0);
                self.out.extend_from_slice(server);
                self.line.exchange.sent(Owed::Bind);
                self.at += HEADER_BYTES + names_len;
                self.copied = self.at;
                self.line.client_rest = u32::try_from(rest).unwrap_or_default();
                self.pass_rest();
            }
        }
        Ok(Step::Passed)
    }

    fn describe(&mut self, header: Header, body: &[u8]) {
        let name = body.strip_prefix(b"S").and_then(wire::cstr).map(|(name, _)| name);
        let statement = name.and_then(|name| self.understood(name));
        match statement.filter(|_| name.is_some_and(|name| !name.is_empty())) {
            None => self.pass(header),
            Some(statement) => {
                let server = self.server_name(&statement);
                self.drop_frame(header);
                self.put(b'D', &[b"S", server.with_zero()]);
            }
        }
        self.line.exchange.sent(Owed::Describe);
    }

    fn close(&mut self, header: Header, body: &[u8]) {
        let name = body.strip_prefix(b"S").and_then(wire::cstr).map(|(name, _)| name);
        let owed = match (name, self.ledger.as_deref_mut()) {
            _ if !self.line.exchange.answers() => Owed::ClosePlain,
            (Some(b""), Some(ledger)) => Owed::CloseUnnamed(ledger.statements.unnamed.take()),
            // Passed on under the client's name, which the server doesn't know: it answers all the same.
            (Some(name), Some(ledger)) => match ledger.statements.named.remove_entry(name) {
                Some((name, statement)) => Owed::CloseNamed(Box::new(Named { name, statement })),
                None => Owed::ClosePlain,
            },
            _ => Owed::ClosePlain,
        };
        if name == Some(b"") {
            self.line.unnamed = Unnamed::Session;
        }
        self.line.exchange.sent(owed);
        self.pass(header);
    }

    /// The session's statement of this name, if the server is going to look. The unnamed one is put in place.
    fn understood(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        if !self.line.exchange.answers() {
            return None;
        }
        if !name.is_empty() {
            return self.ledger.as_ref()?.statements.named.get(name).cloned();
        }
        let statement = self.ledger.as_ref().and_then(|ledger| ledger.statements.unnamed.clone());
        if self.line.unnamed == Unnamed::Foreign {
            match &statement {
                Some(known) => {
                    self.inject(b'P', &[b"\0", &known.body], Owed::ParseOurs(NO_STATEMENT));
                }
                // The server's own words say that there is none.
                None => self.inject(b'C', &[b"S\0"], Owed::CloseOurs),
            }
            self.line.unnamed = Unnamed::Session;
        }
        statement
    }

    /// The server's name for a statement, parsed now if it must be.
    fn server_name(&mut self, statement: &Statement) -> super::statements::ServerName {
        if let Some(name) = self.line.statements.name_of(statement.id) {
            return name;
        }
        let name = self.new_name(statement.id);
        let owed = Owed::ParseOurs(statement.id);
        self.inject(b'P', &[name.with_zero(), &statement.body], owed);
        name
    }

    fn new_name(&mut self, id: u64) -> super::statements::ServerName {
        let (name, evicted) = self.line.statements.name_new(id);
        if let Some(evicted) = evicted {
            self.inject(b'C', &[b"S", evicted.with_zero()], Owed::CloseOurs);
        }
        name
    }

    /// Notes what a query leaves behind.
    fn leaves(&mut self, findings: &Findings) {
        let suspects = findings.suspects;
        if suspects.is_empty() {
            return;
        }
        let ledger = self.ledger.get_or_insert_default();
        ledger.pins.insert(suspects.pins());
        if suspects.intersects(ALL_GONE) {
            // The server's are gone if it works, and parsed anew if it doesn't; the session's only if it works.
            self.line.statements.clear();
            let named = &ledger.statements.named;
            let names =
                named.iter().map(|(name, statement)| (name.clone(), statement.id)).collect();
            ledger.discarding = Some(names);
        }
    }

    /// DEALLOCATE of a name the server doesn't know must succeed: give it one to take away.
    fn shield(&mut self, findings: &Findings) {
        for name in &findings.deallocates {
            let Some(ledger) = self.ledger.as_deref_mut() else { return };
            // A statement that SQL prepared may have the name on the server itself.
            if ledger.pins.intersects(Suspects::PREPARE) {
                return;
            }
            if ledger.statements.named.remove(name).is_some() {
                self.flush_run();
                wire::put_frame(self.out, b'C', &[b"S", name, b"\0"]);
                wire::put_frame(self.out, b'P', &[name, b"\0\0\0\0"]);
                self.line.exchange.sent_ahead(Owed::CloseOurs);
                self.line.exchange.sent_ahead(Owed::ParseOurs(NO_STATEMENT));
                self.line.strays.push(name.clone());
            }
        }
    }

    fn shield_statement(&mut self, findings: &Findings) {
        if !findings.deallocates.is_empty() {
            self.shield(findings);
        }
    }

    /// Sends a frame of ours ahead of the client's next.
    fn inject(&mut self, tag: u8, parts: &[&[u8]], owed: Owed) {
        self.put(tag, parts);
        self.line.exchange.sent(owed);
    }

    fn put(&mut self, tag: u8, parts: &[&[u8]]) {
        self.flush_run();
        wire::put_frame(self.out, tag, parts);
    }

    /// Takes a whole frame out of what is passed on.
    fn drop_frame(&mut self, header: Header) {
        self.flush_run();
        self.at += header.frame();
        self.copied = self.at;
    }

    /// From here on the output is what was appended.
    fn flush_run(&mut self) {
        self.output = Output::Appended;
        self.copy_run();
    }

    fn copy_run(&mut self) {
        self.out.extend_from_slice(&self.input[self.copied..self.at]);
        self.copied = self.at;
    }
}

/// The number no statement has: for parses that are kept in no map.
const NO_STATEMENT: u64 = u64::MAX;

const ALL_GONE: Suspects = {
    let mut both = Suspects::DISCARD_ALL;
    both.insert(Suspects::DEALLOCATE_ALL);
    both
};

fn absurd(tag: u8) -> Violation {
    match wire::client_body_fits(Header { tag, body: 0 }) {
        None => Violation::Type(tag),
        Some(_) => Violation::Length,
    }
}

/// Whether a Parse's body behind the name is a text, a count, and as many parameter types.
fn is_parse_rest(rest: &[u8]) -> bool {
    let Some((_, types)) = wire::cstr(rest) else { return false };
    let [high, low, types @ ..] = types else { return false };
    usize::from(u16::from_be_bytes([*high, *low])) * 4 == types.len()
}

/// What a client's bytes say while its session has no server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Bytes that are done with: frames no server need see.
    pub dropped: usize,
    /// What follows them.
    pub work: Work,
}

/// Whether a session without a server connection needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Not before this many bytes are there.
    Wait(usize),
    /// Now.
    Ready,
    /// The end of the refused request has passed: its ReadyForQuery is due.
    RefusalEnds,
    /// The client said goodbye.
    Goodbye,
}

/// What a session without a server connection does with its client's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// Looks for work.
    Open,
    /// Drops everything up to the end of a request that was refused.
    Refusing,
}

/// Looks at a client's bytes while its session has no server connection: drops what no server need see (the rest of a
/// COPY that failed, a Flush), and says when there is work. `rest` counts the bytes still to come of a dropped frame.
/// A frame up to `gather` bytes long is waited for, so that a slow sender holds no connection.
///
/// # Errors
/// [`Violation`] for what can't be a frame.
pub fn waiting(
    rest: &mut u32,
    stance: Stance,
    input: &[u8],
    gather: usize,
) -> Result<Waiting, Violation> {
    let mut at = 0;
    loop {
        let take = (input.len() - at).min(wire::widen(*rest));
        at += take;
        *rest -= u32::try_from(take).unwrap_or(*rest);
        let done = |work| Ok(Waiting { dropped: at, work });
        let header = match wire::head(&input[at..]) {
            Head::Short => return done(Work::Wait(HEADER_BYTES)),
            Head::Absurd { tag } => return Err(absurd(tag)),
            Head::Frame(header) => header,
        };
        match wire::client_body_fits(header) {
            None => return Err(Violation::Type(header.tag)),
            Some(false) => return Err(Violation::Length),
            Some(true) => {}
        }
        let ends = matches!(header.tag, b'S' | b'Q' | b'F');
        match (stance, header.tag) {
            (_, b'X') => return done(Work::Goodbye),
            (_, b'd' | b'c' | b'f' | b'H') => {}
            (Stance::Open, _) => {
                let whole = header.frame().min(gather);
                let here = input.len() - at;
                return done(if here < whole { Work::Wait(whole) } else { Work::Ready });
            }
            (Stance::Refusing, _) if ends => {
                *rest = header.body;
                let take = (input.len() - at - HEADER_BYTES).min(wire::widen(*rest));
                *rest -= u32::try_from(take).unwrap_or(*rest);
                let dropped = at + HEADER_BYTES + take;
                return Ok(Waiting { dropped, work: Work::RefusalEnds });
            }
            (Stance::Refusing, _) => {}
        }
        at += HEADER_BYTES;
        *rest = header.body;
    }
}

/// Sorts the server's bytes: what goes to the client is moved to the front of the buffer.
///
/// # Errors
/// [`Desync`] if the server sent what nobody asked for; the connection must be closed.
pub fn replies(
    line: &mut Line,
    ledger: &mut Option<Box<Ledger>>,
    buffer: &mut [u8],
) -> Result<Given, Desync> {
    let mut read = 0;
    let mut write = 0;
    loop {
        let here = buffer.len() - read;
        let take = here.min(wire::widen(line.server_rest));
        if take > 0 {
            if line.server_rest_verdict != Verdict::Swallow {
                write = keep(buffer, read, write, take);
            }
            read += take;
            line.server_rest -= u32::try_from(take).unwrap_or(line.server_rest);
        }
        let header = match wire::head(&buffer[read..]) {
            Head::Short => return Ok(Given { relay: write, rest: read }),
            Head::Absurd { tag } => return Err(Desync { tag }),
            Head::Frame(header) => header,
        };
        let whole = buffer.len() - read >= header.frame();
        if !whole && is_understood(header, ledger.as_deref()) {
            return Ok(Given { relay: write, rest: read });
        }
        let body_end = (read + header.frame()).min(buffer.len());
        let verdict = reply(line, ledger, header, &buffer[read + HEADER_BYTES..body_end])?;
        if let Verdict::RelayAs(tag) = verdict {
            buffer[read] = tag;
        }
        if verdict != Verdict::Swallow {
            write = keep(buffer, read, write, HEADER_BYTES);
        }
        read += HEADER_BYTES;
        line.server_rest = header.body;
        line.server_rest_verdict = verdict;
    }
}

/// Moves `length` bytes from `read` to `write`; gives where the next go.
fn keep(buffer: &mut [u8], read: usize, write: usize, length: usize) -> usize {
    if read != write {
        buffer.copy_within(read..read + length, write);
    }
    write + length
}

/// Whether a reply must be whole to be understood.
fn is_understood(header: Header, ledger: Option<&Ledger>) -> bool {
    match header.tag {
        b'Z' => true,
        b'C' => ledger.is_some_and(|ledger| ledger.discarding.is_some()) && header.body < 64,
        _ => false,
    }
}

fn reply(
    line: &mut Line,
    ledger: &mut Option<Box<Ledger>>,
    header: Header,
    body: &[u8],
) -> Result<Verdict, Desync> {
    let status = if header.tag == b'Z' && header.body == 1 { body.first() } else { None };
    let (verdict, outcome) = line.exchange.replied(header.tag, status.copied().unwrap_or(0))?;
    match outcome {
        Outcome::Went => {}
        Outcome::OursFailed => line.gate = Gate::Refused,
        Outcome::Lost => line.unnamed = Unnamed::Foreign,
    }
    match header.tag {
        b'E' | b'G' => {
            undo(line, ledger);
            // The severity that is never translated; the fields' order is the server's own.
            let fatal = [&b"\0VFATAL\0"[..], b"\0VPANIC\0"];
            if fatal.iter().any(|mark| memchr::memmem::find(body, mark).is_some()) {
                line.farewell = Farewell::Said;
            }
            // A statement is gone that our map still has: something hidden took it. Parse all anew.
            if memchr::memmem::find(body, b"\0C26000\0").is_some() {
                line.statements.clear();
            }
        }
        b'Z' if verdict == Verdict::Swallow && line.gate == Gate::Shut => line.gate = Gate::Open,
        b'Z' if verdict == Verdict::Relay && line.exchange.status() == Status::Idle => {
            line.tally.transactions += 1;
        }
        b'C' => discard_done(line, ledger, body),
        _ => {}
    }
    Ok(verdict)
}

/// Takes back what requests did to the maps that an error took with it.
fn undo(line: &mut Line, ledger: &mut Option<Box<Ledger>>) {
    let mut lost = line.exchange.take_lost();
    let Some(ledger) = ledger.as_deref_mut() else { return };
    let statements = &mut ledger.statements;
    while let Some(owed) = lost.pop() {
        match owed {
            Owed::ParseNamed(named) => {
                line.statements.forget(named.statement.id);
                statements.named.remove(&named.name);
            }
            Owed::ParseKnown(named) => {
                statements.named.remove(&named.name);
            }
            Owed::ParseOurs(id) => line.statements.forget(id),
            // The one that failed has still dropped what was there before.
            Owed::ParseUnnamed(before) => {
                statements.unnamed = if lost.is_empty() { None } else { before };
            }
            Owed::CloseUnnamed(before) => statements.unnamed = before,
            Owed::CloseNamed(named) => {
                statements.named.insert(named.name, named.statement);
            }
            _ => {}
        }
    }
}

/// DISCARD ALL or DEALLOCATE ALL has worked, if that is what the command tag says.
fn discard_done(line: &mut Line, ledger: &mut Option<Box<Ledger>>, tag: &[u8]) {
    let Some(ledger) = ledger.as_deref_mut() else { return };
    if ledger.discarding.is_none() {
        return;
    }
    let all = match tag {
        b"DISCARD ALL\0" => true,
        b"DEALLOCATE ALL\0" => false,
        _ => return,
    };
    for (name, id) in ledger.discarding.take().unwrap_or_default() {
        if ledger.statements.named.get(&name).is_some_and(|statement| statement.id == id) {
            ledger.statements.named.remove(&name);
        }
    }
    let gone = if all { ledger.pins } else { Suspects::PREPARE };
    ledger.pins = ledger.pins.without(gone);
    if all {
        line.applied = None;
        line.strays.clear();
    }
}
