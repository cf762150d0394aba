//! The server connection is lost with the session on it: the session goes on if its client can't be misled by that.

use std::task::{Context, Poll};

use super::{End, Lost, Phase, Session, Turn, Wish};
use crate::pool::Lease;
use crate::postgres::backend::PgConnect;
use crate::postgres::exchange::Status;
use crate::postgres::message::{ErrorFields, Severity, error_frame};
use crate::postgres::relay::{self, Aftermath, Late, Loss, Pace, Stance};

impl Session {
    /// Goes on without the connection, or ends.
    pub(super) fn lose(&mut self, lost: Lost, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.is_leaving() {
            return Turn::End(End::ServerLost(lost));
        }
        if let Err(end) = self.look_ahead(cx, buffer) {
            return Turn::End(end);
        }
        let Phase::Linked(lease) = &mut self.phase else { return Turn::Again };
        let fields = lost.fields(lease, Severity::Error);
        let loss = match lost {
            Lost::Closed => relay::lose(&mut lease.line, &mut self.ledger, self.pace, &fields),
            Lost::Desync(_) | Lost::SettingsRefused | Lost::Silent => Loss::Ends,
        };
        match loss {
            Loss::Ends => return Turn::End(End::ServerLost(lost)),
            Loss::Unrun(mut flight) => {
                let inbox = self.inbox.get_or_insert_default();
                flight.append(&mut inbox.bytes);
                inbox.bytes = flight;
                self.part(&lost);
            }
            Loss::GoesOn(aftermath) => {
                let unsent = self.part(&lost);
                self.go_on(unsent, aftermath, fields);
            }
        }
        if let Some(inbox) = &mut self.inbox {
            inbox.need = 0;
        }
        Turn::Again
    }

    /// Whether the client has sent more already than what is under way.
    fn look_ahead(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<(), End> {
        let Phase::Linked(lease) = &self.phase else { return Ok(()) };
        let exchange = &lease.line.exchange;
        if !exchange.owes_client() || exchange.copies_in() || !lease.line.client_at_boundary() {
            return Ok(());
        }
        if self.inbox.is_none() {
            match self.client.poll_read_on(cx, buffer, &mut self.registered) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(n)) if n > 0 => self.park(&buffer[..n], 0),
                Poll::Ready(_) => return Err(End::Vanished),
            }
        }
        self.pace = Pace::Ahead;
        Ok(())
    }

    /// Leaves the connection; gives what the client has not taken of its last answers.
    fn part(&mut self, lost: &Lost) -> Vec<u8> {
        let Phase::Linked(mut lease) = self.enter(Phase::Idle) else { return Vec::new() };
        let unsent = lease.to_client.take();
        lease.unpin();
        lease.close(lost.reason());
        if let Some(rare) = &mut self.rare {
            // The key of a connection that is no more hits nobody.
            (rare.cancelling, rare.stall, rare.silence, rare.question) = (None, None, None, None);
            (rare.hold, rare.wish, rare.overrun) = (None, Wish::None, None);
            rare.share = None;
            (rare.permit, rare.admission, rare.admission_ends) = (None, None, None);
        }
        self.cancel.clear();
        unsent
    }

    fn go_on(&mut self, unsent: Vec<u8>, aftermath: Aftermath, fields: ErrorFields) {
        let Aftermath { words, stance, late, transaction, dropping } = aftermath;
        self.dropping = dropping;
        let rare = self.rare.get_or_insert_default();
        rare.words.bytes().extend_from_slice(&unsent);
        rare.words.bytes().extend_from_slice(&words);
        rare.stance = stance;
        rare.transaction = transaction;
        rare.late = (late == Late::NextRequest).then_some(fields);
    }

    /// Tells the client now, if it has to hear of a loss before anything is done for it. A ROLLBACK gets what it wants.
    pub(super) fn hears_late(&mut self, request: &[u8]) -> bool {
        let Some(rare) = &mut self.rare else { return false };
        let Some(fields) = rare.late.take() else { return false };
        if rare.status() == Status::Failed && relay::is_rollback(request) {
            return false;
        }
        rare.stance = Stance::Refusing;
        rare.words.bytes().extend_from_slice(&error_frame(&fields));
        true
    }
}

impl Lost {
    /// The reason, as metrics name it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "server_closed",
            Self::Desync(_) => "desync",
            Self::SettingsRefused => "settings_refused",
            Self::Silent => "question_timeout",
        }
    }

    /// What the client is told: the server's own words, if it had any.
    pub(super) fn fields(&self, lease: &Lease<PgConnect>, severity: Severity) -> ErrorFields {
        let text = match self {
            Self::Closed => return closed(lease, severity),
            Self::Desync(what) => {
                tracing::error!(
                    pool = lease.pool().settings().name,
                    what,
                    "server connection closed"
                );
                "the database server broke the protocol; the connection was closed"
            }
            Self::SettingsRefused => {
                "the database server refused settings of this session that it accepted before"
            }
            Self::Silent => {
                "the database server did not say in time what this session has left on its connection; the connection \
                 was closed"
            }
        };
        ErrorFields::new(severity, "08006", text)
    }
}

fn closed(lease: &Lease<PgConnect>, severity: Severity) -> ErrorFields {
    let mut fields = match lease.line.farewell() {
        Some(said) => said.clone(),
        None if lease.line.exchange.owes_client() => ErrorFields::error(
            "08006",
            "the database server closed the connection while this request was under way; it may or may not have been \
             carried out",
        ),
        // As a server says it that goes on purpose; nothing was under way.
        None => ErrorFields::error("57P01", "the database server closed this session's connection"),
    };
    fields.severity = severity;
    if severity == Severity::Error && lease.line.exchange.status() != Status::Idle {
        fields = fields.hint("The transaction is lost: ROLLBACK, then begin it again.");
    }
    fields
}
