//! Before the login: how long it may take, who makes room for others, and what is done about many wrong passwords.

use std::future::Future as _;
use std::net::{IpAddr, Ipv4Addr};
use std::task::Context;

use super::{Closing, End, Session, write_error};
use crate::metrics::Happening;
use crate::redis::greeting::Standing;

const CROWDED: &str = "ERR tidegate: too many clients that have not logged in; send AUTH at once, or raise redis.login_limit";

impl Session {
    /// Whether a client that is not logged in may stay.
    pub(super) fn watch_login(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if self.identity.standing == Standing::Known {
            (self.deadline, self.porch) = (None, None);
            return Ok(());
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Err(End("the client did not authenticate in time"));
        }
        if let Some(place) = &mut self.porch
            && place.poll_crowded_out(cx).is_ready()
        {
            self.porch = None;
            self.upstream.metrics.login_failures.inc();
            self.upstream.metrics.logins_crowded_out.inc();
            write_error(CROWDED, &mut self.out.bytes);
            self.closing = Closing::AfterReplies;
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Whether too many logins from the client's address have failed for this one to be looked at; then it is told so.
    pub(super) fn looks_away(&mut self) -> bool {
        let peer = self.peer();
        let Some(left) = self.upstream.failures.barred(peer) else { return false };
        let metrics = &self.upstream.metrics;
        metrics.login_failures.inc();
        metrics.logins_refused.inc();
        let detail =
            format_args!("client {}: too many failed logins from {peer}", self.identity.id);
        metrics.lines.tell(Happening::Refused, detail);
        let words = format!(
            "ERR tidegate: too many failed logins from {peer}: the next one is looked at in {} s; correct the password that is \
             wrong, or raise login_failures_per_minute",
            left.as_secs() + 1
        );
        write_error(&words, &mut self.out.bytes);
        true
    }

    /// Counts a failed login, the answer to which is written; it leaves later if there are too many.
    pub(super) fn note_wrong_password(&mut self) {
        let metrics = &self.upstream.metrics;
        metrics.login_failures.inc();
        let detail = format_args!("client {}: a wrong user or password", self.identity.id);
        metrics.lines.tell(Happening::Refused, detail);
        if let Some(delay) = self.upstream.failures.note(self.peer()) {
            metrics.logins_delayed.inc();
            self.held = Some(Box::pin(tokio::time::sleep(delay)));
        }
    }

    /// Whether the client is still to wait for the answer.
    pub(super) fn is_held(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(held) = &mut self.held else { return false };
        if held.as_mut().poll(cx).is_pending() {
            return true;
        }
        self.held = None;
        false
    }

    /// A client whose address is not to be had is on this machine, or gone.
    fn peer(&self) -> IpAddr {
        self.stream.peer().map_or(Ipv4Addr::LOCALHOST.into(), |peer| peer.ip())
    }
}
