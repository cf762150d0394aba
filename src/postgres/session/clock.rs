//! Limits on time: what a session does when one of its is over. It is woken for that by [`super::super::overdue`].

use super::{End, Phase, Session};
use crate::metrics::Phase as LoanPhase;
use crate::postgres::clients::Doing;
use crate::postgres::exchange::Status;
use crate::postgres::message::ErrorFields;
use crate::postgres::overdue::Overdue;

impl Session {
    /// Looks at the clock.
    pub(super) fn judge(&mut self) -> Result<(), End> {
        let limits = self.pool.connector().limits().clone();
        let overdue = match &self.phase {
            Phase::Idle => Overdue::of_idle(&limits, self.cancel.card()),
            Phase::Waiting(_) | Phase::Barred(_) => None,
            Phase::Linked(lease) => {
                let now_ns = self.pool.metrics().times.now_ns();
                lease.seat.held().and_then(|held| Overdue::of_held(&limits, &held, now_ns))
            }
        };
        let Some(overdue) = overdue else { return Ok(()) };
        let since = self.rare.as_ref().and_then(|rare| rare.overrun);
        match (overdue, since) {
            (Overdue::Query, None) => {
                self.tell(overdue);
                self.cancel_at_server();
                let rare = self.rare.get_or_insert_default();
                rare.overrun = Some(tokio::time::Instant::now());
                Ok(())
            }
            // The server has its time to obey.
            (Overdue::Query, Some(since)) if since.elapsed() < limits.cleanup_timeout => Ok(()),
            (Overdue::Query, Some(_)) => Err(End::Dismissed(words(overdue))),
            _ => {
                self.tell(overdue);
                Err(End::Dismissed(words(overdue)))
            }
        }
    }

    fn tell(&self, overdue: Overdue) {
        let metrics = self.pool.metrics();
        metrics.timed_out(overdue.as_str());
        let client = self.cancel.card();
        let statement = match &self.phase {
            Phase::Linked(lease) => lease.seat.statement(),
            _ => String::new(),
        };
        let message = format!(
            "client {} (application_name {:?}) was over {}; its last statement: {statement}",
            client.pid(),
            client.application_name(),
            overdue.setting(),
        );
        metrics.note(overdue.as_str(), message, overdue.advice().to_owned());
    }

    /// What others see of the loan, after a turn.
    pub(super) fn mark(&mut self) {
        let Phase::Linked(lease) = &mut self.phase else { return };
        let (line, exchange) = (&lease.line, &lease.line.exchange);
        let runs = exchange.owed() > 0 || exchange.copies_in() || !line.client_at_boundary();
        let phase = match exchange.status() {
            _ if runs => LoanPhase::Query,
            Status::Idle if !exchange.wants_sync() => LoanPhase::Pinned,
            _ => LoanPhase::IdleInTransaction,
        };
        if let Some(now_ns) = lease.turn(phase) {
            lease.seat.turn(phase, lease.pinned(), now_ns);
            if let Some(rare) = &mut self.rare {
                rare.overrun = None;
            }
        }
    }

    /// What others see of the phase.
    pub(super) fn show(&self) {
        let doing = match self.phase {
            Phase::Idle => Doing::Idle,
            Phase::Barred(_) | Phase::Waiting(_) => Doing::Waiting,
            Phase::Linked(_) => Doing::Linked,
        };
        let now_ms = match doing {
            // Waits are told to the millisecond.
            Doing::Waiting => self.pool.metrics().times.now_ns() / 1_000_000,
            Doing::Idle | Doing::Linked => self.pool.connector().seats().now_ms(),
        };
        self.cancel.card().turn(doing, now_ms);
    }
}

/// What the client is told: in the words and with the code that a server has for it.
fn words(overdue: Overdue) -> ErrorFields {
    let (code, message) = match overdue {
        Overdue::Query => {
            ("57014", "terminating connection: the server did not end a statement in time")
        }
        Overdue::Transaction => ("25P04", "terminating connection due to transaction timeout"),
        Overdue::IdleInTransaction => {
            ("25P03", "terminating connection due to idle-in-transaction timeout")
        }
        Overdue::Pinned => {
            ("25P03", "terminating connection: it kept a pinned server connection unused")
        }
        Overdue::ClientIdle => ("57P05", "terminating connection due to idle-session timeout"),
    };
    let limit = format!("The limit is {} in tidegate's settings.", overdue.setting());
    ErrorFields::fatal(code, message).detail(limit).hint(overdue.advice())
}
