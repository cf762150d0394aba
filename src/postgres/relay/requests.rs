//! Client to server: names are mapped, missing statements parsed, the rest passes as it is.

mod statements;

use super::super::exchange::{Owed, Status};
use super::super::settings::{self, Applied, Reset, Settings};
use super::super::sql::{self, Findings, Lexer, Suspects};
use super::super::statements::Registry;
use super::super::wire::{self, HEADER_BYTES, Header};
use super::shapes::Checking;
use super::{
    Doubt, Leave, Ledger, Line, Names, Pace, Pinning, Resettle, Retry, Suspicion, Unnamed,
    Violation, client_header,
};

/// Longest Query that is gathered before it is read; a longer one is read as it passes.
const GATHERED_QUERY_BYTES: usize = 64 * 1024;

/// Longest flight that is kept to be sent again.
const RETRY_BYTES: usize = 16 * 1024;

/// Longest portal and statement name of a Bind, together.
const BIND_NAMES_BYTES: usize = 8 * 1024;

/// What the relay must know of a session's surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The pool's statements.
    pub registry: &'a Registry,
    /// The session's settings, as far as the server has told them.
    pub settings: &'a Settings,
    /// Longest frame that is gathered to be understood, in bytes.
    pub understood_bytes: usize,
    /// Most named statements of one session.
    pub statements: usize,
    /// What becomes of a LISTEN of a session that speaks UTF-8; of others it pins.
    pub listening: Listening,
    /// What the server is asked about when a transaction is over.
    pub suspicion: Suspicion,
}

/// What becomes of a LISTEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// The hub takes it over.
    Shared,
    /// It keeps its connection with the session.
    Pins,
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
    let fresh = line.exchange.is_fresh() && line.client_rest == 0;
    if line.exchange.owed() == 0 {
        hear_of_names(line, ledger);
    }
    let mut pass = Pass {
        line,
        ledger,
        around,
        input,
        out,
        at: 0,
        copied: 0,
        output: Output::Input,
        flight: Flight::Plain,
        sight: Sight::Clear,
    };
    let (need, goodbye) = pass.run()?;
    let Pass { at, output, .. } = pass;
    pass.keep_flight(fresh);
    if at > 0 {
        pass.line.passed = super::Passed::Something;
    }
    if output == Output::Appended {
        pass.copy_run();
    }
    Ok(Taken { consumed: at, output, need, goodbye })
}

/// Every answer has come, or is lost: nothing is awaited any more. Only a portal may still take names away.
fn hear_of_names(line: &mut Line, ledger: &mut Option<Box<Ledger>>) {
    line.checking = Checking::No;
    if matches!(line.names, Names::Doubtful | Names::Awaited) {
        line.names = Names::Certain;
        if let Some(ledger) = ledger {
            ledger.discarding = None;
        }
    }
}

/// All names may be taken away: the server's statements are parsed anew, whether it works or not; the session's names go
/// only if it works.
fn lose_names(line: &mut Line, ledger: &mut Ledger) {
    for (name, statement) in &ledger.statements.named {
        if let Some(number) = line.statements.number_of(statement.id) {
            line.remember(number, name);
        }
    }
    line.retire_statements();
    ledger.discarding.get_or_insert_default().all = Some(ledger.statements.names());
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
    flight: Flight,
    sight: Sight,
}

/// Whether the client will read rows by what it was told of them before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    Clear,
    /// It will: sent again, a statement must not bring others.
    Blind,
}

/// How a statement's rows look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looks {
    /// As the client was told, if it was.
    AsTold,
    Otherwise,
    /// The server is being asked.
    Awaited,
}

/// What the input holds, as far as it matters for sending it again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// Frames of the extended protocol, or none.
    Plain,
    /// Among them a statement that may have been parsed before its tables changed.
    Named,
    /// As [`Flight::Plain`] with the Sync behind it, and nothing more.
    Synced,
    /// As [`Flight::Named`] with the Sync behind it, and nothing more.
    NamedAndSynced,
    /// What can't be sent again.
    Other,
}

/// Whether the server was given statements under the client's own names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lent {
    Nothing,
    Something,
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
            self.resettle();
            let Some(header) = client_header(&self.input[self.at..])? else {
                return Ok((HEADER_BYTES, Goodbye::No));
            };
            match self.frame(header)? {
                Step::Passed => {}
                Step::Wait(need) => return Ok((need, Goodbye::No)),
                Step::Goodbye => return Ok((HEADER_BYTES, Goodbye::Said)),
            }
        }
    }

    /// Keeps a flight that can be sent again.
    fn keep_flight(&mut self, fresh: bool) {
        if self.at == 0 {
            return;
        }
        let spent = self.line.retry == Retry::Spent;
        self.line.retry = Retry::No;
        if !spent {
            self.line.told_parses = 0;
        }
        let whole = self.at == self.input.len() && self.line.client_rest == 0;
        let short = self.input.len() <= RETRY_BYTES;
        if fresh && whole && short && !spent {
            self.line.retry = match (self.flight, self.sight) {
                (Flight::NamedAndSynced, Sight::Clear) => Retry::Possible,
                (Flight::Synced | Flight::NamedAndSynced, _) => Retry::IfUnrun,
                (Flight::Plain | Flight::Named | Flight::Other, _) => return,
            };
            self.line.flight.clear();
            self.line.flight.extend_from_slice(self.input);
        }
    }

    fn fly(&mut self, tag: u8) {
        self.flight = match (self.flight, tag) {
            (Flight::Plain | Flight::Named, b'P' | b'B' | b'D' | b'E' | b'C' | b'H') => self.flight,
            (Flight::Plain, b'S') => Flight::Synced,
            (Flight::Named, b'S') => Flight::NamedAndSynced,
            _ => Flight::Other,
        };
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
            self.leaves(&lexer.finish(), Resettle::Now);
        }
    }

    fn frame(&mut self, header: Header) -> Result<Step, Violation> {
        let here = self.input.len() - self.at;
        if self.must_wait_for_names(header.tag) {
            return Ok(Step::Wait(HEADER_BYTES));
        }
        self.fly(header.tag);
        if self.line.pace == Pace::InTurn
            && matches!(header.tag, b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C')
            && self.line.exchange.is_behind()
        {
            self.line.pace = Pace::Ahead;
        }
        match header.tag {
            b'X' => return Ok(Step::Goodbye),
            b'S' => {
                self.doubt_behind_sync();
                self.line.exchange.sent_sync();
                if self.line.resettle == Resettle::AtSync {
                    self.line.resettle = Resettle::Now;
                }
            }
            b'c' | b'f' => self.line.exchange.sent_copy_end(),
            b'E' => {
                self.line.tally.requests += 1;
                self.suspect_all();
                self.line.exchange.sent(Owed::Execute);
            }
            b'F' => {
                self.line.tally.requests += 1;
                self.suspect_all();
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
                    b'P' => return self.parse(header, body),
                    b'D' if self.must_wait_for_unnamed(body.strip_prefix(b"S"), b'D') => {
                        return Ok(Step::Wait(HEADER_BYTES));
                    }
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

    /// Whether a frame that may name statements must wait until it is known whether all have been taken away.
    fn must_wait_for_names(&mut self, tag: u8) -> bool {
        match (self.line.names, tag) {
            (Names::Certain, _) => return false,
            (Names::Threatened, b'E') => {
                // Those given since it was bound, too, and its own statement's.
                if let Some(ledger) = self.ledger
                    && ledger.discarding.as_ref().is_some_and(|discarding| discarding.all.is_some())
                {
                    lose_names(self.line, ledger);
                }
                self.line.names = Names::Doubtful;
                return false;
            }
            (Names::Doubtful | Names::Awaited, b'P' | b'B' | b'D' | b'C' | b'Q' | b'F') => {}
            _ => return false,
        }
        if self.line.exchange.owed() == 0 {
            hear_of_names(self.line, self.ledger);
            return false;
        }
        if self.line.names == Names::Doubtful {
            // Behind an Execute without a Sync the server keeps its answer back until it is told to send it.
            self.put(b'H', &[]);
            self.line.names = Names::Awaited;
        }
        true
    }

    /// A Sync goes out: what the flight before it has changed may be lost.
    fn doubt_behind_sync(&mut self) {
        self.line.doubt = match self.line.doubt {
            Doubt::None => Doubt::None,
            Doubt::UnnamedHere | Doubt::Unnamed => Doubt::Unnamed,
            Doubt::NamesHere => {
                if self.line.names == Names::Certain {
                    self.line.names = Names::Doubtful;
                }
                Doubt::Unnamed
            }
        };
    }

    /// The unnamed statement is changed.
    fn note_unnamed(&mut self) {
        self.line.unnamed = Unnamed::Session;
        if self.line.doubt != Doubt::NamesHere {
            self.line.doubt = Doubt::UnnamedHere;
        }
    }

    /// Whether a frame that uses the statement whose name `body` begins with must wait until it is known whether that is there.
    fn must_wait_for_unnamed(&mut self, body: Option<&[u8]>, tag: u8) -> bool {
        let unnamed = body.is_some_and(|body| body.first() == Some(&0));
        if !unnamed || self.line.doubt != Doubt::Unnamed {
            return false;
        }
        if self.line.exchange.owed() == 0 {
            self.line.doubt = Doubt::None;
            return false;
        }
        if self.line.names == Names::Certain {
            self.line.names = Names::Doubtful;
        }
        self.must_wait_for_names(tag)
    }

    /// Whether an UNLISTEN must wait for the answers before it: an error among them takes back what is noted by then.
    fn must_wait_to_unlisten(&mut self, findings: &Findings, tag: u8) -> bool {
        let unlistens = findings.unlistens.len() + findings.unlistens_within.len();
        if unlistens == 0 || self.line.exchange.owed() == 0 {
            return false;
        }
        if self.line.names == Names::Certain {
            self.line.names = Names::Doubtful;
        }
        self.must_wait_for_names(tag)
    }

    /// Lets a frame pass as it is, as far as it is here.
    fn pass(&mut self, header: Header) {
        self.at += HEADER_BYTES;
        self.line.client_rest = header.body;
        self.pass_rest();
    }

    /// Brings back what the client gave at startup, behind a RESET that went to what the server's login gave.
    fn resettle(&mut self) {
        let due = self.line.resettle == Resettle::Now && self.line.client_rest == 0;
        if !due || !self.line.exchange.answers() {
            return;
        }
        self.line.resettle = Resettle::No;
        let startup = self.around.settings.asked_at_startup();
        let reset = std::mem::take(&mut self.line.reset);
        self.flush_run();
        if settings::put_back(startup, reset, self.out) != Applied::Unchanged {
            self.line.exchange.sent_query(Owed::Resettle);
        }
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
        let mut lent = Lent::Nothing;
        if gathered {
            let input = self.input;
            let body = &input[body_at..self.at + whole];
            let text = body.strip_suffix(b"\0").unwrap_or(body);
            self.line.words.note(text);
            let findings = sql::read(text, quoting, self.around.registry.routines().as_ref());
            if self.must_wait_to_unlisten(&findings, b'Q')
                || Self::bars(self.line, &findings, self.around)
            {
                return Step::Wait(HEADER_BYTES);
            }
            self.leaves(&findings, Resettle::Now);
            self.shield(&findings, Resettle::Now);
            lent = self.lend(&findings, Resettle::Now);
        } else {
            self.line.words.note(&self.input[body_at..]);
            let routines = self.around.registry.routines();
            self.line.lexer = Some(Box::new(Lexer::new(quoting, routines.as_ref())));
        }
        // The server drops its unnamed statement when a simple Query begins.
        if let Some(ledger) = self.ledger {
            ledger.statements.unnamed = None;
        }
        self.line.unnamed = Unnamed::Session;
        self.line.tally.requests += 1;
        self.suspect_all();
        self.line.exchange.sent_query(Owed::Query);
        self.pass(header);
        if lent == Lent::Something {
            // If the server refuses what was lent it reads nothing behind it up to a Sync.
            self.put(b'S', &[]);
            self.line.exchange.sent_spare();
        }
        Step::Passed
    }

    /// Whether a statement that may keep the connection has to wait until the session may.
    fn bars(line: &mut Line, findings: &Findings, around: Surroundings<'_>) -> bool {
        let lasting = findings.suspects.lasting();
        if line.pinning == Pinning::Allowed || lasting.is_empty() {
            return false;
        }
        let listens = lasting == Suspects::LISTEN
            && around.listening == Listening::Shared
            && around.settings.speaks_utf8();
        if listens && line.pinning == Pinning::MayListen {
            return false;
        }
        line.pinning = Pinning::Wanted(if listens { Leave::Listen } else { Leave::Pin });
        true
    }

    /// Whether a statement would read what a sequence gave to another session, where that can't be discarded ahead of it.
    fn leaks_a_value(&self, findings: &Findings) -> bool {
        findings.suspects.intersects(Suspects::SEQUENCE_READ)
            && self.line.sequences.would_leak()
            && !self.is_between()
            && self.line.exchange.status() != Status::Failed
    }

    /// Whether a Query of ours may go here: inside a flight of the extended protocol it would end the implicit transaction.
    fn is_between(&self) -> bool {
        !self.line.exchange.wants_sync() && self.line.client_rest == 0
    }

    /// Whatever runs may leave something, where nobody trusts its words.
    fn suspect_all(&mut self) {
        if self.around.suspicion == Suspicion::OfAll && self.line.exchange.answers() {
            self.ledger.get_or_insert_default().suspect_all();
        }
    }

    /// Notes what a query leaves behind.
    fn leaves(&mut self, findings: &Findings, resettle: Resettle) {
        let suspects = findings.suspects;
        if suspects.is_empty() {
            return;
        }
        self.uses_sequences(suspects);
        let suspects = suspects.without(OF_SEQUENCES);
        if suspects.is_empty() {
            return;
        }
        let resets =
            suspects.intersects(Suspects::RESET) || suspects.intersects(Suspects::DISCARD_ALL);
        if resets && !self.around.settings.asked_at_startup().is_empty() {
            self.line.resettle = resettle;
            if suspects.intersects(OF_IDENTITY) {
                self.line.reset = Reset::Identity;
            }
        }
        let ledger = self.ledger.get_or_insert_default();
        ledger.suspect(findings);
        if suspects.intersects(ALL_GONE) {
            if self.line.names == Names::Certain {
                ledger.discarding = None;
            }
            lose_names(self.line, ledger);
            self.line.names = Names::until_told(resettle);
        }
    }

    fn uses_sequences(&mut self, suspects: Suspects) {
        self.reads_sequences(suspects);
        if suspects.intersects(Suspects::SEQUENCE_DRAW) {
            self.line.sequences.draws();
        }
    }

    /// A statement that reads what a sequence gave must not read what it gave to another session.
    fn reads_sequences(&mut self, suspects: Suspects) {
        if suspects.intersects(Suspects::SEQUENCE_READ) {
            self.around.registry.sequence_read();
            let able = self.is_between() && self.line.exchange.status() != Status::Failed;
            if self.line.sequences.reads() && able {
                self.flush_run();
                self.line.discard_sequences(self.out);
                // A Query drops the unnamed statement.
                self.line.unnamed = Unnamed::Foreign;
            }
        }
    }

    /// Sends a frame of ours ahead of the client's next.
    fn inject(&mut self, tag: u8, parts: &[&[u8]], owed: Owed) {
        if tag == b'P' && self.line.exchange.is_inside_flight() {
            self.line.doubt = Doubt::NamesHere;
        }
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

const OF_SEQUENCES: Suspects = {
    let mut both = Suspects::SEQUENCE_READ;
    both.insert(Suspects::SEQUENCE_DRAW);
    both
};

const OF_IDENTITY: Suspects = {
    let mut both = Suspects::RESET_IDENTITY;
    both.insert(Suspects::DISCARD_ALL);
    both
};

const ALL_GONE: Suspects = {
    let mut both = Suspects::DISCARD_ALL;
    both.insert(Suspects::DEALLOCATE_ALL);
    both
};

/// Whether a Parse's body behind the name is a text, a count, and as many parameter types.
fn is_parse_rest(rest: &[u8]) -> bool {
    let Some((_, types)) = wire::cstr(rest) else { return false };
    let [high, low, types @ ..] = types else { return false };
    usize::from(u16::from_be_bytes([*high, *low])) * 4 == types.len()
}
