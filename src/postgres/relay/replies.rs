//! Server to client: answers to what tidegate added are swallowed, the rest passes as it is.

use super::super::exchange::{Desync, Outcome, Owed, Status, Verdict};
use super::super::message::ErrorFields;
use super::super::sql::Suspects;
use super::super::wire::{self, HEADER_BYTES, Head, Header};
use super::{Gate, Ledger, Line, News, Plans, Retry, Row, Unnamed};

/// Longest error that is awaited whole, in bytes.
const GATHERED_ERROR_BYTES: u32 = 8 * 1024;

/// Longest notification that is awaited whole, in bytes: a payload is shorter than 8000.
const GATHERED_NOTIFICATION_BYTES: u32 = 16 * 1024;

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
        let whole = buffer.len() - read >= header.frame();
        if !whole && is_understood(header, ledger.as_deref()) {
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
        let is_error = header.tag == b'E' && whole;
        let renamed_before = if is_error { renamed(line, ledger, body) } else { None };
        let verdict = reply(line, ledger, header, body)?;
        // Names may come back with what the error has undone.
        let renamed_after = || if is_error { renamed(line, ledger, body) } else { None };
        let renamed = renamed_before.or_else(renamed_after);
        if let Some(frame) = renamed.filter(|_| verdict == Verdict::Relay) {
            buffer[write..write + frame.len()].copy_from_slice(&frame);
            write += frame.len();
            read += header.frame();
            continue;
        }
        if let Verdict::RelayAs(tag) = verdict {
            buffer[read] = tag;
        }
        if verdict != Verdict::Swallow {
            write = keep(buffer, read, write, HEADER_BYTES);
            if matches!(line.retry, Retry::Possible | Retry::IfUnrun)
                && !matches!(header.tag, b'N' | b'S' | b'A')
            {
                line.retry = Retry::No;
            }
        }
        read += HEADER_BYTES;
        line.server_rest = header.body;
        line.server_rest_verdict = verdict;
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
fn is_understood(header: Header, ledger: Option<&Ledger>) -> bool {
    match header.tag {
        b'Z' => true,
        b'C' => ledger.is_some_and(Ledger::minds_tags) && header.body < 64,
        b'E' => header.body <= GATHERED_ERROR_BYTES,
        b'A' => header.body <= GATHERED_NOTIFICATION_BYTES,
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
    let of_truth = line.exchange.hears_truth();
    let of_handover = line.exchange.hands_over();
    let (mut verdict, outcome) = line.exchange.replied(header.tag, status.copied().unwrap_or(0))?;
    match outcome {
        Outcome::Went => {}
        Outcome::OursFailed => line.gate = Gate::Refused,
        Outcome::HandOverFailed => line.handover_failed(),
        Outcome::TruthFailed => line.news = Some(News::Untold),
        Outcome::ResettleFailed => {
            if let Some(ledger) = ledger.as_deref_mut() {
                ledger.suspect_settings();
            }
        }
        Outcome::Lost => line.unnamed = Unnamed::Foreign,
    }
    match header.tag {
        b'A' if !line.is_for_client(ledger.as_deref(), body) => verdict = Verdict::Swallow,
        b'E' | b'G' => {
            undo(line, ledger);
            if let Some(ledger) = ledger.as_deref_mut().filter(|_| header.tag == b'E') {
                ledger.undone();
            }
            // A statement is gone that our map still has, or its plan is void: parse all anew.
            let has = |code: &[u8]| memchr::memmem::find(body, code).is_some();
            let of_ours = || line.statements.name_in(body).is_some();
            if has(b"\0C0A000\0") || has(b"\0C26000\0") && of_ours() {
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
            if let Some(ledger) = ledger {
                ledger.committed();
            }
        }
        b'C' => command_done(line, ledger, body),
        _ => {}
    }
    Ok(verdict)
}

/// Whether an error is the last that is heard of the server: its severity as it is never translated.
fn is_last(body: &[u8]) -> bool {
    let marks = [&b"\0VFATAL\0"[..], b"\0VPANIC\0"];
    marks.iter().any(|mark| memchr::memmem::find(body, mark).is_some())
}

/// Takes back what requests did to the maps that an error took with it.
pub(super) fn undo(line: &mut Line, ledger: &mut Option<Box<Ledger>>) {
    let mut lost = line.exchange.take_lost();
    let Some(ledger) = ledger.as_deref_mut() else { return };
    let statements = &mut ledger.statements;
    while let Some(owed) = lost.pop() {
        match owed {
            Owed::ParseNamed(named) => {
                let number = line.statements.forget(named.statement.id);
                statements.named.remove(&named.name);
                // Requests under way may name it.
                if let Some(number) = number.filter(|_| line.exchange.owed() > 0) {
                    line.remember(number, &named.name);
                }
            }
            Owed::ParseKnown(named) => {
                statements.named.remove(&named.name);
            }
            Owed::ParseOurs(id) => drop(line.statements.forget(id)),
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

/// What a command tag says of the session: DISCARD ALL or DEALLOCATE ALL has worked, a transaction is committed.
fn command_done(line: &mut Line, ledger: &mut Option<Box<Ledger>>, tag: &[u8]) {
    let Some(ledger) = ledger.as_deref_mut() else { return };
    if matches!(tag, b"COMMIT\0" | b"PREPARE TRANSACTION\0") {
        ledger.committed();
    }
    if tag == b"ROLLBACK\0" {
        ledger.undone();
    }
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
    if all {
        ledger.discarded();
        line.news = Some(News::Discarded);
        line.applied = None;
        line.settled = super::Settled::Yes;
        line.strays.clear();
    }
}

/// The answer about what the session has left is complete.
fn told(line: &mut Line, ledger: &mut Option<Box<Ledger>>) {
    let Answered { truth, news } = match line.news.take() {
        Some(News::Untold) => Answered { truth: None, news: News::Untold },
        _ => match std::mem::take(&mut line.answer).read() {
            Some(truth) => Answered { truth: Some(truth.left), news: News::Told(truth) },
            None => Answered { truth: None, news: News::Untold },
        },
    };
    line.news = Some(news);
    if let Some(ledger) = ledger.as_deref_mut() {
        ledger.told(truth);
    }
}

struct Answered {
    truth: Option<Suspects>,
    news: News,
}
