//! Frames that name prepared statements: the client's names are mapped to the server's, and what the server lacks is given
//! to it in the same flight.

use std::sync::Arc;

use super::super::super::exchange::{Named, Owed, Refusal, Status};
use super::super::super::sql::{Findings, SettingName, Suspects};
use super::super::super::statements::{Full, ServerName, Statement};
use super::super::super::wire::{self, HEADER_BYTES, Header};
use super::super::shapes::Checking;
use super::super::{NO_STATEMENT, Names, Resettle, Unnamed, Violation, client_header};
use super::{BIND_NAMES_BYTES, Flight, Lent, Looks, Pass, Sight, Step, is_parse_rest};

/// A Parse's body behind the name that makes an empty statement.
const EMPTY_STATEMENT: &[u8] = b"\0\0\0";

impl Pass<'_> {
    pub(super) fn parse(&mut self, header: Header, body: &[u8]) -> Result<Step, Violation> {
        let Some((name, rest)) = wire::cstr(body).filter(|(_, rest)| is_parse_rest(rest)) else {
            // Not a Parse the server will take: its error is the best answer.
            self.line.exchange.sent(Owed::ParsePlain);
            self.pass(header);
            return Ok(Step::Passed);
        };
        if !self.line.exchange.answers() {
            self.line.exchange.sent(Owed::ParsePlain);
            self.pass(header);
            return Ok(Step::Passed);
        }
        self.line.words.note(rest);
        if name.is_empty() {
            Ok(self.parse_unnamed(header, rest))
        } else {
            self.parse_under(header, name, rest)
        }
    }

    fn parse_unnamed(&mut self, header: Header, rest: &[u8]) -> Step {
        let ledger = self.ledger.get_or_insert_default();
        let now = match &ledger.statements.unnamed {
            Some(same) if *same.body == *rest => Arc::clone(same),
            _ => self.around.registry.lone(rest, self.around.settings.quoting()),
        };
        if Self::bars(self.line, &now.findings, self.around) {
            return Step::Wait(HEADER_BYTES);
        }
        let suspects = now.findings.suspects;
        let before = ledger.statements.unnamed.replace(Arc::clone(&now));
        self.lend(&now.findings, Resettle::AtSync);
        self.reads_sequences(suspects);
        self.note_unnamed();
        self.line.unnamed_shape = None;
        self.line.exchange.sent(Owed::ParseUnnamed(before));
        self.pass(header);
        Step::Passed
    }

    fn parse_under(&mut self, header: Header, name: &[u8], rest: &[u8]) -> Result<Step, Violation> {
        let quoting = self.around.settings.quoting();
        let registry = self.around.registry;
        let ledger = self.ledger.get_or_insert_default();
        if ledger.statements.named.contains_key(name) {
            // So that the server's own words refuse the second.
            self.give(name, EMPTY_STATEMENT);
            self.line.exchange.sent(Owed::ParsePlain);
            self.pass(header);
            return Ok(Step::Passed);
        }
        if ledger.statements.named.len() >= self.around.statements {
            return Err(Violation::TooManyStatements);
        }
        let interned = if ledger.knows_settings() {
            registry.intern(rest, self.around.settings.plan, quoting)
        } else {
            // It may have been read under settings that nobody else has.
            Ok(registry.lone(rest, quoting))
        };
        let mut statement = interned.map_err(|Full| Violation::TooManyStatements)?;
        let shares = ledger.statements.may_share(statement.id);
        if !shares || !statement.findings.executes.is_empty() {
            // What it executes is this session's; and what the client was told of a name is not known of another.
            statement = registry.lone(rest, quoting);
        }
        if Self::bars(self.line, &statement.findings, self.around) {
            return Ok(Step::Wait(HEADER_BYTES));
        }
        let sql_prepares = ledger.leavings().intersects(Suspects::PREPARE);
        ledger.statements.named.insert(name.into(), Arc::clone(&statement));
        self.lend(&statement.findings, Resettle::AtSync);
        // Ahead of the flight others' values can be discarded; behind its first frame it is too late.
        self.reads_sequences(statement.findings.suspects);
        if sql_prepares && self.line.exchange.answers() {
            // SQL may have given the name: then the server's own words refuse it.
            self.inject(b'P', &[name, b"\0", EMPTY_STATEMENT], Owed::ParseOurs(NO_STATEMENT));
            self.inject(b'C', &[b"S", name, b"\0"], Owed::CloseOurs);
        }
        let named = Box::new(Named { name: name.into(), statement });
        self.parse_named(header, named);
        Ok(Step::Passed)
    }

    /// Gives the server a statement under the client's own name, whatever it has under that name; it is closed before the
    /// next session comes.
    fn give(&mut self, name: &[u8], body: &[u8]) {
        self.put(b'C', &[b"S", name, b"\0"]);
        self.put(b'P', &[name, b"\0", body]);
        self.line.exchange.sent_ahead(Owed::CloseOurs);
        self.line.exchange.sent_ahead(Owed::ParseOurs(NO_STATEMENT));
        if !self.line.strays.iter().any(|stray| **stray == *name) {
            self.line.strays.push(name.into());
        }
    }

    /// A new name of the client's: parsed under a name of ours, unless the server has the statement already.
    pub(super) fn parse_named(&mut self, header: Header, named: Box<Named>) {
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
        let name = self.new_name(&named.statement);
        self.put(b'P', &[name.with_zero(), &named.statement.body]);
        self.line.exchange.sent(Owed::ParseNamed(named));
    }

    pub(super) fn bind(&mut self, header: Header) -> Result<Step, Violation> {
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
        // The name behind that of the portal.
        if self.must_wait_for_unnamed(body.get(portal.len() + 1..), b'B') {
            return Ok(Step::Wait(HEADER_BYTES));
        }
        let statement = self.understood(name);
        let mut refusal = None;
        if let Some(statement) = &statement {
            let quoting = self.around.settings.quoting();
            let findings = self.around.registry.findings(statement, quoting);
            let by_parameter = |name: &SettingName| matches!(name, SettingName::Parameter(_));
            let whole = header.frame();
            if here < whole
                && whole <= self.around.understood_bytes
                && findings.settings.iter().any(by_parameter)
            {
                return Ok(Step::Wait(whole));
            }
            if self.must_wait_to_unlisten(&findings, b'B')
                || Self::bars(self.line, &findings, self.around)
            {
                return Ok(Step::Wait(HEADER_BYTES));
            }
            let looks = self.looks_as_told(name, statement, portal, header);
            if looks == Looks::Awaited {
                return Ok(Step::Wait(HEADER_BYTES));
            }
            if looks == Looks::Otherwise {
                refusal = Some(Refusal::Plan);
            } else if self.leaks_a_value(&findings) {
                refusal = Some(Refusal::Sequence);
            }
            self.leaves(&findings, Resettle::AtSync);
            if name.is_empty() {
                // A Query of ours may have dropped it.
                self.understood(name);
            }
            self.names_of_settings(&findings, header, body);
            self.shield(&findings, Resettle::AtSync);
        }
        if let Some(statement) = statement.as_ref().filter(|_| !name.is_empty()) {
            self.line.words.note(&statement.body);
        }
        self.line.bound.statement = statement.as_ref().map(|statement| statement.id);
        self.line.bound.portal = portal.into();
        match statement.filter(|_| !name.is_empty() || refusal.is_some()) {
            None => {
                self.line.exchange.sent(Owed::Bind);
                self.pass(header);
            }
            Some(statement) => self.bind_as(header, (portal, name), &statement, refusal),
        }
        Ok(Step::Passed)
    }

    /// Passes a Bind on with the server's name for its statement; with none, if it is to be refused.
    pub(super) fn bind_as(
        &mut self,
        header: Header,
        (portal, name): (&[u8], &[u8]),
        statement: &Arc<Statement>,
        refusal: Option<Refusal>,
    ) {
        let server = match refusal {
            Some(_) => self.line.statements.name_of_none(),
            None => self.server_name(statement),
        };
        let names_len = portal.len() + name.len() + 2;
        let rest = wire::widen(header.body) - names_len;
        let server = server.with_zero();
        self.flush_run();
        wire::put_header(self.out, b'B', portal.len() + 1 + server.len() + rest);
        self.out.extend_from_slice(portal);
        self.out.push(0);
        self.out.extend_from_slice(server);
        self.line.exchange.sent(refusal.map_or(Owed::Bind, Owed::Refused));
        self.at += HEADER_BYTES + names_len;
        self.copied = self.at;
        self.line.client_rest = u32::try_from(rest).unwrap_or_default();
        self.pass_rest();
    }

    /// Whether a client that was told how a statement's rows look gets such rows. If nobody knows, the server is asked.
    pub(super) fn looks_as_told(
        &mut self,
        name: &[u8],
        statement: &Arc<Statement>,
        portal: &[u8],
        header: Header,
    ) -> Looks {
        self.line.checking = Checking::No;
        let ledger = self.ledger.as_ref();
        let Some(told) = ledger.and_then(|ledger| ledger.statements.told(statement.id)) else {
            return Looks::AsTold;
        };
        if self.is_described_next(portal, header) {
            return Looks::AsTold;
        }
        self.sight = Sight::Blind;
        let shape = if name.is_empty() {
            self.line.unnamed_shape
        } else {
            self.line.statements.shape_of(statement.id)
        };
        match shape {
            Some(shape) if shape == told => return Looks::AsTold,
            Some(_) => return Looks::Otherwise,
            None => {}
        }
        let owed = Owed::DescribeOurs(statement.id);
        if name.is_empty() {
            self.inject(b'D', &[b"S\0"], owed);
        } else {
            let server = self.server_name(statement);
            self.inject(b'D', &[b"S", server.with_zero()], owed);
        }
        self.put(b'H', &[]);
        self.line.checking = Checking::Awaited;
        Looks::Awaited
    }

    /// Whether the frame behind a Bind asks for a description of its portal.
    pub(super) fn is_described_next(&self, portal: &[u8], bind: Header) -> bool {
        let Some(behind) = self.input.get(self.at + bind.frame()..) else { return false };
        let Ok(Some(header)) = client_header(behind) else { return false };
        let body = behind.get(HEADER_BYTES..header.frame());
        let described = body.and_then(|body| body.strip_prefix(b"P")).and_then(wire::cstr);
        header.tag == b'D' && described.is_some_and(|(name, _)| name == portal)
    }

    /// Settings that a Bind's parameters name.
    pub(super) fn names_of_settings(&mut self, findings: &Findings, header: Header, body: &[u8]) {
        let Some(ledger) = self.ledger.as_deref_mut() else { return };
        for name in &findings.settings {
            let SettingName::Parameter(number) = name else { continue };
            let whole = body.len() == wire::widen(header.body);
            let value = whole.then(|| wire::bound_value(body, *number)).flatten();
            match value.and_then(|value| std::str::from_utf8(value).ok()) {
                Some(name) => ledger.custom(name),
                None => ledger.unnamed_setting(),
            }
        }
    }

    pub(super) fn describe(&mut self, header: Header, body: &[u8]) {
        let name = body.strip_prefix(b"S").and_then(wire::cstr).map(|(name, _)| name);
        let statement = name.and_then(|name| self.understood(name));
        let portal = body.strip_prefix(b"P").and_then(wire::cstr).map(|(name, _)| name);
        let described = match portal {
            Some(portal) if *self.line.bound.portal == *portal => self.line.bound.statement,
            Some(_) => None,
            None => statement.as_ref().map(|statement| statement.id),
        };
        match statement.filter(|_| name.is_some_and(|name| !name.is_empty())) {
            None => self.pass(header),
            Some(statement) => {
                let server = self.server_name(&statement);
                self.drop_frame(header);
                self.put(b'D', &[b"S", server.with_zero()]);
            }
        }
        self.line.exchange.sent(Owed::Describe(described));
    }

    pub(super) fn close(&mut self, header: Header, body: &[u8]) {
        let name = body.strip_prefix(b"S").and_then(wire::cstr).map(|(name, _)| name);
        let owed = match (name, self.ledger.as_deref_mut()) {
            _ if !self.line.exchange.answers() => Owed::ClosePlain,
            (Some(b""), Some(ledger)) => Owed::CloseUnnamed(ledger.statements.unnamed.take()),
            // Passed on under the client's name, which the server doesn't know: it answers all the same.
            (Some(name), Some(ledger)) => match ledger.statements.named.remove_entry(name) {
                Some((name, statement)) => {
                    let number = self.line.statements.number_of(statement.id);
                    if let Some(number) = number.filter(|_| self.line.exchange.owed() > 0) {
                        self.line.remember(number, &name);
                    }
                    Owed::CloseNamed(Box::new(Named { name, statement }))
                }
                None => {
                    // SQL may have prepared it.
                    ledger.suspect_release();
                    Owed::ClosePlain
                }
            },
            _ => Owed::ClosePlain,
        };
        if name == Some(b"") {
            self.note_unnamed();
        }
        self.line.exchange.sent(owed);
        self.pass(header);
    }

    /// The session's statement of this name, if the server is going to look. The unnamed one is put in place.
    pub(super) fn understood(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        if !self.line.exchange.answers() {
            return None;
        }
        let statements = self.ledger.as_ref().map(|ledger| &ledger.statements);
        let statement = if name.is_empty() {
            statements.and_then(|statements| statements.unnamed.clone())
        } else {
            statements.and_then(|statements| statements.named.get(name).cloned())
        };
        if let Some(statement) = &statement {
            self.lend(&statement.findings, Resettle::AtSync);
        }
        if !name.is_empty() {
            return statement;
        }
        if self.line.unnamed == Unnamed::Foreign {
            match &statement {
                Some(known) => {
                    self.line.unnamed_shape = None;
                    self.inject(b'P', &[b"\0", &known.body], Owed::ParseOurs(NO_STATEMENT));
                }
                // The server's own words say that there is none.
                None => self.inject(b'C', &[b"S\0"], Owed::CloseOurs),
            }
            self.note_unnamed();
        }
        statement
    }

    /// The server's name for a statement, parsed now if it must be.
    pub(super) fn server_name(&mut self, statement: &Arc<Statement>) -> ServerName {
        if self.flight == Flight::Plain {
            self.flight = Flight::Named;
        }
        if let Some(name) = self.line.statements.name_of(statement.id) {
            return name;
        }
        let name = self.new_name(statement);
        let owed = Owed::ParseOurs(statement.id);
        self.inject(b'P', &[name.with_zero(), &statement.body], owed);
        name
    }

    pub(super) fn new_name(&mut self, statement: &Arc<Statement>) -> ServerName {
        let (name, evicted) = self.line.statements.name_new(statement);
        if let Some(number) = evicted {
            let evicted = self.line.statements.name(number);
            self.inject(b'C', &[b"S", evicted.with_zero()], Owed::CloseEvicted(number));
        }
        name
    }

    /// DEALLOCATE of a name the server doesn't know must succeed: give it one to take away. The session's goes when the
    /// server says so.
    pub(super) fn shield(&mut self, findings: &Findings, resettle: Resettle) {
        // In a failed transaction it is refused, and the statement stays.
        if findings.deallocates.is_empty() || self.line.exchange.status() == Status::Failed {
            return;
        }
        let Some(ledger) = self.ledger.as_deref_mut() else { return };
        let named = &ledger.statements.named;
        let known: Vec<_> =
            findings.deallocates.iter().filter(|name| named.contains_key(*name)).cloned().collect();
        if known.is_empty() {
            return;
        }
        if self.line.names == Names::Certain {
            ledger.discarding = None;
        }
        // Several may be bound before the first runs.
        let each = &mut ledger.discarding.get_or_insert_default().each;
        each.extend(findings.deallocates.iter().cloned());
        self.line.names = Names::until_told(resettle);
        for name in known {
            self.give(&name, EMPTY_STATEMENT);
        }
    }

    /// SQL may EXECUTE what the protocol prepared: gives the server such statements under the client's own names.
    pub(super) fn lend(&mut self, findings: &Findings, resettle: Resettle) -> Lent {
        let mut lent = Lent::Nothing;
        for name in &findings.executes {
            let named = self.ledger.as_ref().and_then(|ledger| ledger.statements.named.get(name));
            let Some(statement) = named.cloned() else { continue };
            let findings =
                self.around.registry.findings(&statement, self.around.settings.quoting());
            self.leaves(&findings, resettle);
            self.give(name, &statement.body);
            lent = Lent::Something;
        }
        lent
    }
}
