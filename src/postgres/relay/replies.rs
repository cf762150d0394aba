//! Server to client: answers to what tidegate added are swallowed, the rest passes as it is.

use std::sync::Arc;

use super::super::exchange::{Answers, Desync, Outcome, Owed, Refusal, Status, Verdict};
use super::super::message::ErrorFields;
use super::super::statements::{SessionStatements, Statement};
use super::super::wire::{self, HEADER_BYTES, Head, Header, Tags};
use super::reports::{Left, Whose};
use super::shapes::{self, Told};
use super::{Gate, Ledger, Line, NO_STATEMENT, News, Plans, Retry, Row, Unnamed, Writing};

/// Longest error that is awaited whole, in bytes.
const GATHERED_ERROR_BYTES: u32 = 8 * 1024;

/// Longest notification that is awaited whole, in bytes: a payload is shorter than 8000.
const GATHERED_NOTIFICATION_BYTES: u32 = 16 * 1024;

/// Longest report of a setting that is awaited whole, in bytes.
const GATHERED_REPORT_BYTES: u32 = 16 * 1024;

/// Longest description of parameters that is held back until it is known whether its statement is void.
const HELD_PARAMETERS_BYTES: u32 = 8 * 1024;

/// Rows, and what is copied out.
const ROWS: Tags = Tags::of(b"Dd");

/// Those, their description, and that a command is done.
const PLAIN_ANSWERS: Tags = Tags::of(b"TDdC");

/// The field of an error by which a server refuses to write.
const READ_ONLY: &[u8] = b"\0C25006\0";

/// A description of a statement's parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameters {
    /// None, or one that the client may have.
    Sure,
    /// What follows it is not here yet.
    Unsure,
    /// The statement is void: its flight goes again, and brings another.
    OfVoid,
}

/// What [`replies`] did with the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Bytes at the start of the buffer that go to the client.
    pub relay: usize,
    /// Where the bytes begin that have to be seen again with what follows them.
    pub rest: usize,
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
            } else if line.server_row == Row::OfTruth {
                line.answer.add(&buffer[read..read + take]);
            }
            read += take;
            line.server_rest -= u32::try_from(take).unwrap_or(line.server_rest);
        }
        let header = match wire::head(&buffer[read..]) {
            Head::Short => return Ok(Given { relay: write, rest: read }),
            Head::Absurd { tag } => return Err(Desync { tag }),
            Head::Frame(header) => header,
        };
        let plain = line.plain(ledger.as_deref(), header, &buffer[read..]);
        if plain > 0 {
            write = keep(buffer, read, write, plain);
            read += plain;
            continue;
        }
        let whole = buffer.len() - read >= header.frame();
        if !whole && is_understood(line, header, ledger.as_deref()) {
            return Ok(Given { relay: write, rest: read });
        }
        let body_end = (read + header.frame()).min(buffer.len());
        line.server_row = Row::Other;
        if header.tag == b'D' && line.exchange.hears_truth() {
            line.server_row = Row::OfTruth;
            line.answer.row(header.body);
        }
        let body = &buffer[read + HEADER_BYTES..body_end];
        if header.tag == b'E' && is_last(body) {
            // Nothing follows it. What the client is told depends on what becomes of its session.
            line.farewell = Some(Box::new(ErrorFields::parse(body)));
            return Ok(Given { relay: write, rest: buffer.len() });
        }
        let parameters = match line.parameters(header, &buffer[read..]) {
            Parameters::Unsure => return Ok(Given { relay: write, rest: read }),
            sure => sure,
        };
        let errors = if header.tag == b'E' && whole { Errors::Mended } else { Errors::None };
        let (mut verdict, other) = reply_or_other(line, ledger, (header, body), errors)?;
        if let Some(frame) = other.filter(|frame| frame.len() <= header.frame())
            && verdict == Verdict::Relay
        {
            // No longer than the server's own: there is room for it.
            buffer[write..write + frame.len()].copy_from_slice(&frame);
            write += frame.len();
            read += header.frame();
            line.tells(b'E');
            continue;
        }
        if let Verdict::RelayAs(tag) = verdict {
            (buffer[read], verdict) = (tag, Verdict::Relay);
        }
        if parameters == Parameters::OfVoid || line.has_told(buffer[read], verdict) {
            verdict = Verdict::Swallow;
        }
        if verdict != Verdict::Swallow {
            write = keep(buffer, read, write, HEADER_BYTES);
            line.tells(buffer[read]);
        }
        read += HEADER_BYTES;
        line.server_rest = header.body;
        line.server_rest_verdict = verdict;
    }
}

/// Whether a reply is a whole error, which may have to be another for the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Errors {
    None,
    Mended,
}

/// As [`reply`], with what the client gets instead of an error that is of our making, or says our names.
fn reply_or_other(
    line: &mut Line,
    ledger: &mut Option<Box<Ledger>>,
    (header, body): (Header, &[u8]),
    errors: Errors,
) -> Result<(Verdict, Option<Vec<u8>>), Desync> {
    if errors == Errors::None {
        return Ok((reply(line, ledger, header, body)?, None));
    }
    let refused = line.exchange.refusal().map(refused);
    let renamed_before = renamed(line, ledger, body);
    let verdict = reply(line, ledger, header, body)?;
    // Names may come back with what the error has undone.
    let other = refused.or(renamed_before).or_else(|| renamed(line, ledger, body));
    Ok((verdict, other))
}

impl Line {
    /// How many bytes begin here that are the client's, end nothing, and change nothing that is kept: rows, and what is copied out,
    /// which are most of what servers say; of the answer to a Query all but its end, where no ledger minds what has been done.
    fn plain(&mut self, ledger: Option<&Ledger>, header: Header, bytes: &[u8]) -> usize {
        let tags = match (self.exchange.answering(), ledger) {
            (Answers::Query, None) => PLAIN_ANSWERS,
            (Answers::Query | Answers::Execute, _) => ROWS,
            (Answers::Otherwise, _) => return 0,
        };
        if !tags.has(header.tag) {
            return 0;
        }
        let run = wire::run_of(tags, bytes);
        if run > 0 {
            self.server_row = Row::Other;
            self.tells(header.tag);
        }
        run
    }

    /// The client gets a frame of this type: a flight of which it has seen something does not go again.
    fn tells(&mut self, tag: u8) {
        match (self.retry, tag) {
            (_, b'N' | b'S' | b'A') => {}
            // That a statement is parsed it need not hear twice.
            (Retry::Possible, b'1') => self.told_parses += 1,
            (Retry::Possible | Retry::IfUnrun, _) => {
                (self.retry, self.told_parses) = (Retry::No, 0);
            }
            _ => {}
        }
    }

    /// What becomes of a description of parameters at the start of `bytes`, if its flight may go again. What follows it comes
    /// with it.
    fn parameters(&self, header: Header, bytes: &[u8]) -> Parameters {
        let held = header.tag == b't' && header.body <= HELD_PARAMETERS_BYTES;
        if !held || self.retry != Retry::Possible {
            return Parameters::Sure;
        }
        let behind = bytes.get(header.frame()..).unwrap_or_default();
        match wire::head(behind) {
            Head::Short => Parameters::Unsure,
            Head::Frame(next) if next.tag == b'E' && next.body <= GATHERED_ERROR_BYTES => {
                match behind.get(HEADER_BYTES..next.frame()) {
                    None => Parameters::Unsure,
                    Some(error) if self.is_void(error) => Parameters::OfVoid,
                    Some(_) => Parameters::Sure,
                }
            }
            _ => Parameters::Sure,
        }
    }

    /// Whether a statement is gone that our map still has, or its plan is void: all are to be parsed anew.
    fn is_void(&self, error: &[u8]) -> bool {
        let has = |field: &[u8]| memchr::memmem::find(error, field).is_some();
        has(b"\0C0A000\0") && has(b"\0RRevalidateCachedQuery\0")
            || has(b"\0C26000\0") && self.statements.name_in(error).is_some()
    }

    /// Whether the client has had this answer when its flight was sent first.
    fn has_told(&mut self, tag: u8, verdict: Verdict) -> bool {
        let again = tag == b'1' && verdict == Verdict::Relay && self.retry == Retry::No;
        if again && self.told_parses > 0 {
            self.told_parses -= 1;
            return true;
        }
        false
    }
}

/// An error that names a statement as the server knows it, as a frame that names it as the client does; no longer than
/// it was.
fn renamed(line: &Line, ledger: &Option<Box<Ledger>>, body: &[u8]) -> Option<Vec<u8>> {
    let (found, number) = line.statements.name_in(body)?;
    let name = line.client_name(ledger.as_deref()?, number)?;
    let new = [&body[..found.start], name, &body[found.end..]].concat();
    let new = if new.len() > body.len() { without_place(&new) } else { new };
    let mut frame = Vec::with_capacity(HEADER_BYTES + new.len());
    wire::put_frame(&mut frame, b'E', &[&new]);
    (new.len() <= body.len()).then_some(frame)
}

/// An error without the place in the server's source that raised it.
fn without_place(body: &[u8]) -> Vec<u8> {
    let fields = body.split_inclusive(|byte| *byte == 0);
    fields
        .filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')))
        .flatten()
        .copied()
        .collect()
}

/// Moves `length` bytes from `read` to `write`; gives where the next go.
fn keep(buffer: &mut [u8], read: usize, write: usize, length: usize) -> usize {
    if read != write {
        buffer.copy_within(read..read + length, write);
    }
    write + length
}

/// Whether a reply must be whole to be understood.
fn is_understood(line: &Line, header: Header, ledger: Option<&Ledger>) -> bool {
    match header.tag {
        b'T' => header.body <= shapes::GATHERED_BYTES && line.exchange.describes().is_some(),
        b'Z' => true,
        b'C' => ledger.is_some_and(Ledger::minds_tags) && header.body < 64,
        b'E' => header.body <= GATHERED_ERROR_BYTES,
        b'A' => header.body <= GATHERED_NOTIFICATION_BYTES,
        b'S' => header.body <= GATHERED_REPORT_BYTES,
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
    match line.exchange.describes() {
        Some(&Owed::Describe(Some(id))) if matches!(header.tag, b'T' | b'n') => {
            line.described(ledger, (id, Told::Client), (header.tag, header.body, body));
        }
        Some(&Owed::DescribeOurs(id)) if matches!(header.tag, b'T' | b'n') => {
            line.described(ledger, (id, Told::Us), (header.tag, header.body, body));
        }
        _ => {}
    }
    if header.tag == b'Z'
        && let Some(ledger) = ledger
    {
        ledger.flight_over();
    }
    let of_refusal = line.exchange.refusal().is_some();
    let of_truth = line.exchange.hears_truth();
    let of_handover = line.exchange.hands_over();
    let (mut verdict, outcome) = line.exchange.replied(header.tag, status.copied().unwrap_or(0))?;
    match outcome {
        Outcome::Went | Outcome::Lost => {}
        Outcome::OursFailed => line.gate = Gate::Refused,
        Outcome::HandOverFailed => line.handover_failed(),
        // Said when all of it is here: see `told`.
        Outcome::TruthFailed => line.answer.spoil(),
        Outcome::ResettleFailed => {
            if let Some(ledger) = ledger.as_deref_mut() {
                ledger.suspect_settings();
            }
        }
    }
    match header.tag {
        b'S' => {
            let whose = if verdict == Verdict::Swallow { Whose::Ours } else { Whose::Session };
            line.reports.hear(body, whose);
        }
        b'A' if !line.is_for_client(ledger.as_deref(), body) => verdict = Verdict::Swallow,
        b'E' | b'G' => {
            undo(line, ledger);
            if let Some(ledger) = ledger.as_deref_mut().filter(|_| header.tag == b'E') {
                ledger.undone();
            }
            if header.tag == b'E' && memchr::memmem::find(body, READ_ONLY).is_some() {
                line.writing = Writing::Refused;
            }
            if header.tag == b'E' && !of_refusal && line.is_void(body) {
                line.retire_statements();
                line.plans = Plans::Void;
                if line.retry == Retry::Possible && line.exchange.take_sync_over() {
                    line.retry = Retry::Due;
                    verdict = Verdict::Swallow;
                }
            }
        }
        b'Z' if of_truth => told(line, ledger),
        b'Z' if of_handover => line.handover_answered(),
        b'Z' if line.gate == Gate::Shut && line.exchange.owed() == 0 => line.gate = Gate::Open,
        b'Z' if verdict == Verdict::Relay && line.exchange.status() == Status::Idle => {
            line.tally.transactions += 1;
            if line.reports.end() == Left::Changed {
                ledger.get_or_insert_default().suspect_settings();
            }
            if let Some(ledger) = ledger {
                ledger.committed();
            }
        }
        b'Z' if verdict == Verdict::Relay => line.tally.steps += 1,
        b'C' => command_done(line, ledger, body),
        _ => {}
    }
    Ok(verdict)
}

/// The error that a client gets for a Bind which the server was made to refuse, as a frame. Drivers know the first by its
/// code and routine, and prepare the statement again.
fn refused(why: Refusal) -> Vec<u8> {
    let words: &[u8] = match why {
        Refusal::Plan => {
            b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0Fplancache.c\0\
              RRevalidateCachedQuery\0\0"
        }
        Refusal::Sequence => {
            b"SERROR\0VERROR\0C55000\0Mthis session has no value of a sequence yet\0Fsequence.c\0\0"
        }
    };
    let mut frame = Vec::new();
    wire::put_frame(&mut frame, b'E', &[words]);
    frame
}

/// Whether an error is the last that is heard of the server: its severity as it is never translated.
fn is_last(body: &[u8]) -> bool {
    let marks = [&b"\0VFATAL\0"[..], b"\0VPANIC\0"];
    marks.iter().any(|mark| memchr::memmem::find(body, mark).is_some())
}

/// Takes back what requests did to the maps that an error took with it.
pub(super) fn undo(line: &mut Line, ledger: &mut Option<Box<Ledger>>) {
    let mut lost = line.exchange.take_lost();
    if lost.iter().any(may_change_unnamed) {
        line.unnamed = Unnamed::Foreign;
    }
    while let Some(owed) = lost.pop() {
        undo_one(line, ledger.as_deref_mut().map(|ledger| &mut ledger.statements), owed, &lost);
    }
}

/// Whether the server would have another unnamed statement behind it.
fn may_change_unnamed(owed: &Owed) -> bool {
    matches!(
        owed,
        Owed::ParseUnnamed(_)
            | Owed::CloseUnnamed(_)
            | Owed::ParseOurs(NO_STATEMENT)
            | Owed::CloseOurs
    )
}

/// Takes one request back; `before` are those sent before it that are lost, too. The server's side of it holds whoever
/// hears the error: a client that has gone has no ledger any more.
fn undo_one(
    line: &mut Line,
    mut session: Option<&mut SessionStatements>,
    owed: Owed,
    before: &[Owed],
) {
    match &owed {
        Owed::ParseNamed(named) => {
            let number = line.statements.forget(named.statement.id);
            // Requests under way may name it.
            if let Some(number) = number.filter(|_| line.exchange.owed() > 0) {
                line.remember(number, &named.name);
            }
        }
        Owed::ParseOurs(id) => drop(line.statements.forget(*id)),
        Owed::CloseEvicted(number) => {
            let name = line.statements.name(*number);
            line.strays.push(name.without_zero().into());
        }
        _ => {}
    }
    let Some(statements) = session.take() else { return };
    match owed {
        Owed::ParseNamed(named) | Owed::ParseKnown(named) => {
            statements.named.remove(&named.name);
        }
        // The one that failed has still dropped what was there before.
        Owed::ParseUnnamed(earlier) => {
            let earlier = if before.is_empty() { None } else { earlier };
            unnamed_again(line, statements, earlier);
        }
        Owed::CloseUnnamed(earlier) => unnamed_again(line, statements, earlier),
        Owed::CloseNamed(named) => {
            statements.named.insert(named.name, named.statement);
        }
        _ => {}
    }
}

/// The unnamed statement is what it was, unless a later request has changed it, too.
fn unnamed_again(
    line: &mut Line,
    statements: &mut SessionStatements,
    earlier: Option<Arc<Statement>>,
) {
    match line.exchange.next_unnamed() {
        None => statements.unnamed = earlier,
        Some(Some(before)) => *before = earlier,
        Some(None) => {}
    }
}

/// What a command tag says of the session: DISCARD ALL or DEALLOCATE ALL has worked, a transaction is committed.
fn command_done(line: &mut Line, ledger: &mut Option<Box<Ledger>>, tag: &[u8]) {
    let Some(ledger) = ledger.as_deref_mut() else { return };
    if matches!(tag, b"COMMIT\0" | b"PREPARE TRANSACTION\0") {
        ledger.committed();
    }
    match tag {
        b"ROLLBACK\0" => ledger.rolled_back(),
        b"UNLISTEN\0" => ledger.unlistened(),
        _ => {}
    }
    let Some(discarding) = &mut ledger.discarding else { return };
    let named = &mut ledger.statements.named;
    match tag {
        b"DEALLOCATE\0" => {
            if let Some(name) = discarding.each.pop_front() {
                named.remove(&name);
            }
        }
        b"DISCARD ALL\0" | b"DEALLOCATE ALL\0" => {
            // There is nothing left to be closed.
            line.strays.clear();
            for (name, id) in discarding.all.take().unwrap_or_default() {
                if named.get(&name).is_some_and(|statement| statement.id == id) {
                    named.remove(&name);
                }
            }
        }
        _ => return,
    }
    let over = discarding.each.is_empty() && discarding.all.is_none();
    if over {
        ledger.discarding = None;
    }
    if tag == b"DISCARD ALL\0" {
        ledger.discarded();
        line.news = Some(News::Discarded);
        line.applied = None;
        line.settled = super::Settled::Yes;
        line.strays.clear();
    }
}

/// The answer about what the session has left is complete.
fn told(line: &mut Line, ledger: &mut Option<Box<Ledger>>) {
    let truth = std::mem::take(&mut line.answer).read();
    if let Some(ledger) = ledger.as_deref_mut() {
        match &truth {
            Some(truth) => ledger.told(Some(truth.left), &truth.channels),
            None => ledger.told(None, &[]),
        }
    }
    line.news = Some(truth.map_or(News::Untold, News::Told));
}
