//! How many clients the server allows, and how many it has, whoever's they are: asked now and then over the lane, if there was
//! work, so that an application learns of a plan's limit before it hits it.
//!
//! Source: Redis documentation, "INFO", section `clients`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::backend::Key;
use super::greeting::Proto;
use super::lane::{Submitted, Work};
use super::mailbox::{MailState, Mailbox};
use super::upstream::Upstream;
use super::wire::write_command;
use crate::status::PlanLimit;

/// Until then the server must have answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks every `period` until it is dropped; not at all if that is nought.
pub(super) async fn run(upstream: Arc<Upstream>, period: Duration) {
    if period.is_zero() {
        return;
    }
    let mut asked = 0;
    loop {
        tokio::time::sleep(period).await;
        let commands = upstream.metrics.requests.get();
        if commands == asked {
            continue;
        }
        asked = commands;
        let mailbox = Arc::new(Mailbox::new(Arc::clone(&upstream.backlog)));
        let answer = timeout(PATIENCE, ask(&upstream, &mailbox)).await;
        // What may still come is nobody's.
        mailbox.kill();
        if let Some((used, limit)) = answer.ok().flatten().as_deref().and_then(read) {
            upstream.metrics.plan(&[PlanLimit { scope: "server".to_owned(), used, limit }]);
        }
    }
}

/// The server's answer, if it is one.
async fn ask(upstream: &Upstream, mailbox: &Arc<Mailbox>) -> Option<Vec<u8>> {
    let key = Key { db: upstream.first_database(), proto: Proto::Resp2 };
    let lane = upstream.lanes().first()?;
    let mut question = Vec::new();
    write_command(&["INFO", "clients"], &mut question);
    let work = Work { bytes: &question, silent: 0, replies: 1 };
    let taken = |cx: &mut std::task::Context<'_>| match lane.submit(cx, key, work, mailbox) {
        Submitted::Taken => Poll::Ready(Some(())),
        Submitted::Full => Poll::Pending,
        Submitted::Shut => Poll::Ready(None),
    };
    poll_fn(taken).await?;
    let mut answer = Vec::new();
    let state = poll_fn(|cx| {
        let mail = mailbox.poll_take_whole(cx, &mut answer);
        let waits = mail.state == MailState::Open && mail.owed > 0;
        if waits { Poll::Pending } else { Poll::Ready(mail.state) }
    });
    let state = state.await;
    upstream.backlog.settle(answer.len());
    mailbox.note_taken(answer.len());
    (state == MailState::Open).then_some(answer)
}

/// Clients there are, and the most there may be.
fn read(answer: &[u8]) -> Option<(u64, u64)> {
    let text = String::from_utf8_lossy(answer);
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok())
    };
    Some((field("connected_clients")?, field("maxclients")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found() {
        let answer = b"$99\r\n# Clients\r\nconnected_clients:3\r\ncluster_connections:0\r\nmaxclients:20\r\n\r\n";
        assert_eq!(read(answer), Some((3, 20)));
        assert_eq!(read(b"-NOPERM\r\n"), None);
        assert_eq!(read(b"$9\r\nconnected_clients:3\r\n"), None, "some hosts hide it");
    }
}
