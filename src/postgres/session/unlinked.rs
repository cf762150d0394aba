//! The session without a server connection: it looks for work, waits in the queue, or says no.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Admission, Admitted, End, Inbox, Phase, Rare, Session, Turn};
use crate::metrics::Reason;
use crate::pool::{Checkout, CheckoutError, CheckoutErrorKind, Lease};
use crate::postgres::backend::{PgConnect, checkout_error, checkout_error_in};
use crate::postgres::message::{self, ErrorFields, Severity, error_frame};
use crate::postgres::relay::{self, Leave, Stance, Transaction, Violation, Waiting, Work};

/// Longest frame that is gathered before a server connection is asked for, in bytes.
const GATHERED_BYTES: usize = 64 * 1024;

impl Session {
    /// Idle: says what is to be said, then looks for work.
    pub(super) fn idle(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if let Some(rare) = &mut self.rare {
            match rare.words.poll_send(&mut self.client, cx) {
                Poll::Ready(Ok(())) if !rare.is_needed() => self.rare = None,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Turn::End(End::Vanished),
                // A client that reads nothing gets nothing more done.
                Poll::Pending => return Turn::Sleep,
            }
        }
        // With TLS the end of a reply may still be on its way when its connection has been given back.
        if let Poll::Ready(Err(_)) = self.client.poll_flushed(cx) {
            return Turn::End(End::Vanished);
        }
        match self.poll_notifications(cx) {
            Ok(frames) if frames.is_empty() => {}
            Ok(frames) => {
                self.rare.get_or_insert_default().words.bytes().extend_from_slice(&frames);
                return Turn::Again;
            }
            Err(end) => return Turn::End(end),
        }
        if let Some(inbox) = self.inbox.take_if(|inbox| inbox.bytes.len() >= inbox.need) {
            return self.look(&inbox.bytes);
        }
        match self.client.poll_read_on(cx, buffer, &mut self.registered) {
            Poll::Pending => Turn::Sleep,
            Poll::Ready(Ok(0) | Err(_)) => Turn::End(End::Vanished),
            Poll::Ready(Ok(n)) => {
                self.pool.metrics().bytes_received_client.inc_by(count(n));
                match self.inbox.take() {
                    None => self.look(&buffer[..n]),
                    Some(mut inbox) => {
                        inbox.bytes.extend_from_slice(&buffer[..n]);
                        self.inbox = Some(inbox);
                        Turn::Again
                    }
                }
            }
        }
    }

    /// Looks at bytes of the client's for work. They are parked until a server connection is there, which is at once
    /// if one is free: then this poll goes on with them.
    fn look(&mut self, bytes: &[u8]) -> Turn {
        let stance = self.rare.as_ref().map_or(Stance::Open, |rare| rare.stance);
        let understood = self.pool.connector().bounds().understood_frame_bytes();
        let looked = relay::waiting(&mut self.dropping, stance, bytes, GATHERED_BYTES, understood);
        let Waiting { dropped, work } = match looked {
            Ok(waiting) => waiting,
            Err(violation) => return Turn::End(dismissed(violation)),
        };
        let bytes = &bytes[dropped..];
        match work {
            Work::Wait(need) => self.park(bytes, need),
            Work::Goodbye => return Turn::End(End::Goodbye),
            Work::RefusalEnds => {
                let rare = self.rare.get_or_insert_default();
                rare.stance = Stance::Open;
                let ready = message::ready(rare.status());
                rare.words.bytes().extend_from_slice(&ready);
                self.park(bytes, 0);
            }
            Work::Ready if self.hears_late(bytes) => self.park(bytes, 0),
            Work::Ready => {
                if let Some(admission) = self.awaits_share() {
                    // As below: whoever has a part of the share may be waiting for it.
                    if let Some(rare) = &mut self.rare {
                        rare.permit = None;
                    }
                    self.enter(Phase::Barred(admission));
                    self.park(bytes, 0);
                    return Turn::Again;
                }
                match self.pool.checkout() {
                    Checkout::Ready(lease) => return self.link_with(lease, bytes),
                    Checkout::Queued(ticket) => {
                        // Not to be held in the queue: whoever holds a connection may be waiting for it.
                        if let Some(rare) = &mut self.rare {
                            rare.permit = None;
                        }
                        self.enter(Phase::Waiting(ticket));
                    }
                }
                self.park(bytes, 0);
            }
        }
        Turn::Again
    }

    /// In the queue: takes what the ticket brings, and notices a client that goes away meanwhile.
    pub(super) fn waiting(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        let Phase::Waiting(ticket) = &mut self.phase else { return Turn::Again };
        match ticket.poll_lease(cx) {
            Poll::Ready(Ok(lease)) => return self.link(lease),
            Poll::Ready(Err(error)) => return self.refuse(&error),
            Poll::Pending => {}
        }
        self.read_ahead(cx, buffer)
    }

    /// Waits for leave to pin a connection.
    pub(super) fn barred(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        let Phase::Barred(admission) = &mut self.phase else { return Turn::Again };
        match admission.as_mut().poll(cx) {
            Poll::Pending => self.read_ahead(cx, buffer),
            Poll::Ready(Admitted::Pin(permit)) => {
                self.rare.get_or_insert_default().permit = Some(permit);
                self.enter(Phase::Idle);
                Turn::Again
            }
            Poll::Ready(Admitted::Hub) => {
                self.enter(Phase::Idle);
                Turn::Again
            }
            Poll::Ready(Admitted::Share(share)) => {
                self.rare.get_or_insert_default().share = Some(share);
                self.enter(Phase::Idle);
                Turn::Again
            }
            Poll::Ready(Admitted::NoShare) => {
                let fields = self.share_used_up();
                self.refuse_with(&fields);
                Turn::Again
            }
            Poll::Ready(Admitted::No(leave)) => {
                let fields = self.too_many_pins(leave, Severity::Error);
                self.refuse_with(&fields);
                Turn::Again
            }
        }
    }

    /// Takes a part of its application's share; what brings it, if there is none.
    fn awaits_share(&mut self) -> Option<Admission> {
        let shares = self.pool.connector().shares()?;
        if self.rare.as_ref().is_some_and(|rare| rare.share.is_some()) {
            return None;
        }
        let share = shares.of(&self.cancel.card().application_name());
        match Arc::clone(&share).try_acquire_owned() {
            Ok(part) => {
                self.rare.get_or_insert_default().share = Some(part);
                None
            }
            Err(_) => {
                let pool = Arc::clone(&self.pool);
                Some(Box::pin(async move {
                    let part = pool.within_wait(share.acquire_owned()).await;
                    part.and_then(Result::ok).map_or(Admitted::NoShare, Admitted::Share)
                }))
            }
        }
    }

    fn share_used_up(&self) -> ErrorFields {
        let metrics = self.pool.metrics();
        metrics.reject(Reason::WaitTimeout);
        let name = self.cancel.card().application_name();
        let text = format!(
            "the connections of pool {} that clients with application_name {name:?} may have were in use for {} ms",
            self.pool.settings().name,
            self.pool.settings().wait().as_millis()
        );
        let hint = "Shorten its transactions, or raise postgres.application_share_percent.";
        metrics.note("share_timeout", text.clone(), hint.to_owned());
        ErrorFields::error("53300", text).hint(hint)
    }

    /// Leave to pin did not come in time.
    pub(super) fn too_many_pins(&self, leave: Leave, severity: Severity) -> ErrorFields {
        self.pool.metrics().pin_timeouts.inc();
        self.pool.metrics().reject(Reason::PinLimit);
        let settings = self.pool.settings();
        if leave == Leave::Listen {
            let text = format!(
                "no server connection of pool {} came free to listen on within {} ms",
                settings.name,
                settings.wait().as_millis()
            );
            return ErrorFields::new(severity, "53300", text).hint(
                "Raise the pool size, or end what pins connections: temporary tables, session advisory locks, WITH HOLD \
                 cursors, PREPARE.",
            );
        }
        let text = format!(
            "this statement would pin a server connection of pool {} to its session, and as many as may be were pinned \
             for {} ms",
            settings.name,
            settings.wait().as_millis()
        );
        ErrorFields::new(severity, "53300", text).hint(
            "End what pins them (LISTEN, temporary tables, session advisory locks, WITH HOLD cursors, PREPARE), or \
             raise the pool size or postgres.pinned_limit.",
        )
    }

    /// While it waits the client's words are parked, and its end is noticed.
    fn read_ahead(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if let Poll::Ready(Err(_)) = self.client.poll_flushed(cx) {
            return Turn::End(End::Vanished);
        }
        let parked = self.inbox.as_ref().map_or(0, |inbox| inbox.bytes.len());
        if parked >= self.pool.connector().bounds().parked_bytes() {
            // The kernel holds the rest; that the client hangs up is seen when the wait is over.
            return match self.client.poll_hangup_on(cx, &mut self.registered) {
                Poll::Ready(()) => Turn::End(End::Vanished),
                Poll::Pending => Turn::Sleep,
            };
        }
        match self.client.poll_read_on(cx, buffer, &mut self.registered) {
            Poll::Pending => Turn::Sleep,
            Poll::Ready(Ok(0) | Err(_)) => Turn::End(End::Vanished),
            Poll::Ready(Ok(n)) => {
                self.pool.metrics().bytes_received_client.inc_by(count(n));
                self.park(&buffer[..n], 0);
                Turn::Again
            }
        }
    }

    /// Takes the lease: what rides ahead goes first.
    pub(super) fn link(&mut self, mut lease: Lease<PgConnect>) -> Turn {
        let backend = &mut *lease;
        let connector = self.pool.connector();
        let (registry, emptied) = (connector.registry(), connector.empties());
        let session = self.cancel.pid();
        backend.mode = connector.mode();
        backend.line.begin(session, &self.settings, registry, emptied, backend.to_server.bytes());
        if let Some(rare) = &mut self.rare
            && rare.permit.is_some()
        {
            rare.admission_ends = None;
            backend.line.allow_pin();
        }
        if let Some(rare) = &mut self.rare
            && std::mem::take(&mut rare.transaction) == Transaction::Failed
        {
            backend.line.begin_failed(backend.to_server.bytes());
        }
        if self.keeps_connection() {
            // It is the session's in any case.
            backend.line.allow_pin();
        }
        self.enter(Phase::Linked(lease));
        Turn::Again
    }

    fn link_with(&mut self, lease: Lease<PgConnect>, bytes: &[u8]) -> Turn {
        self.link(lease);
        self.inbox_first(bytes)
    }

    /// There will be no server connection for this request: an error now, and the ReadyForQuery at its end.
    fn refuse(&mut self, error: &CheckoutError) -> Turn {
        if error.kind == CheckoutErrorKind::Closed {
            let fields = checkout_error(error, Severity::Fatal);
            return Turn::End(End::Dismissed(fields));
        }
        self.refuse_with(&checkout_error_in(&self.pool, error, Severity::Error));
        Turn::Again
    }

    /// As [`Session::refuse`], with the words given.
    pub(super) fn refuse_with(&mut self, fields: &ErrorFields) {
        self.enter(Phase::Idle);
        let rare: &mut Rare = self.rare.get_or_insert_default();
        rare.stance = Stance::Refusing;
        (rare.permit, rare.admission_ends, rare.share) = (None, None, None);
        rare.words.bytes().extend_from_slice(&error_frame(fields));
        if let Some(inbox) = &mut self.inbox {
            inbox.need = 0;
        }
    }

    /// The client asks for what it waits for to be cancelled.
    pub(super) fn cancel_requested(&mut self) {
        match &self.phase {
            Phase::Idle => {}
            Phase::Waiting(_) | Phase::Barred(_) => self.refuse_cancelled(),
            Phase::Linked(_) => self.cancel_at_server(),
        }
    }

    /// Cancels a request that no server has seen.
    pub(super) fn refuse_cancelled(&mut self) {
        let words = "canceling statement due to user request";
        self.refuse_with(&ErrorFields::error("57014", words));
    }
}

/// The words for a frame that ends the session.
pub(super) fn dismissed(violation: Violation) -> End {
    let fields = match violation {
        Violation::TooLong(_) => ErrorFields::fatal("54000", violation.to_string())
            .hint("Raise postgres.understood_frame_bytes in tidegate's configuration file."),
        Violation::TooManyStatements => ErrorFields::fatal("53400", violation.to_string()).hint(
            "Close or DEALLOCATE statements, or raise statements_per_client or statements_total in tidegate's \
             configuration file.",
        ),
        Violation::Type(_) | Violation::Length => {
            ErrorFields::fatal("08P01", violation.to_string())
        }
    };
    End::Dismissed(fields)
}

/// A length as a counter takes it.
pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Inbox {
    /// Whether enough is here to go on.
    pub(super) fn is_ready(&self) -> bool {
        self.bytes.len() >= self.need && !self.bytes.is_empty()
    }
}
