//! Before the login: how long it may take, who makes room for others, and what is done about many wrong passwords.

use std::future::Future as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::Context;

use tokio::time::Sleep;

use super::{Closing, End, Session, write_error};
use crate::metrics::Happening;
use crate::net::{Address, Stream};
use crate::redis::greeting::Standing;
use crate::redis::upstream::Upstream;

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
        looks_away(&self.upstream, &self.stream, self.identity.id, &mut self.out.bytes)
    }

    /// Counts a failed login, the answer to which is written; it leaves later if there are too many.
    pub(super) fn note_wrong_password(&mut self) {
        let later = note_wrong_password(&self.upstream, &self.stream, self.identity.id);
        self.held = later.or(self.held.take());
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
}

/// As [`Session::looks_away`], for the client with the number `id`; what it is told goes to `out`.
pub(super) fn looks_away(upstream: &Upstream, stream: &Stream, id: u64, out: &mut Vec<u8>) -> bool {
    let peer = peer(stream);
    let Some(left) = upstream.failures.barred(peer) else { return false };
    let metrics = &upstream.metrics;
    metrics.login_failures.inc();
    metrics.logins_refused.inc();
    let detail = format_args!("client {id}: too many failed logins from {peer}");
    metrics.lines.tell(Happening::Refused, detail);
    let words = format!(
        "ERR tidegate: too many failed logins from {peer}: the next one is looked at in {} s; correct the password that is \
         wrong, or raise login_failures_per_minute",
        left.as_secs() + 1
    );
    write_error(&words, out);
    true
}

/// As [`Session::note_wrong_password`], for the client with the number `id`: when it may have the answer, if not at once.
pub(super) fn note_wrong_password(
    upstream: &Upstream,
    stream: &Stream,
    id: u64,
) -> Option<Pin<Box<Sleep>>> {
    let metrics = &upstream.metrics;
    metrics.login_failures.inc();
    metrics.lines.tell(Happening::Refused, format_args!("client {id}: a wrong user or password"));
    let delay = upstream.failures.note(peer(stream))?;
    metrics.logins_delayed.inc();
    Some(Box::pin(tokio::time::sleep(delay)))
}

fn peer(stream: &Stream) -> IpAddr {
    Address::ip_of(stream.peer())
}
