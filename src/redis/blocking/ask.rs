//! A command of ours over a lane, whose reply nobody else gets.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::Way;
use crate::redis::lane::{Submitted, Work};
use crate::redis::mailbox::{Backlog, MailState, Mailbox};

/// Sends `bytes`, one command, and waits for its reply.
pub(super) async fn ask(way: Way, bytes: Vec<u8>, backlog: Arc<Backlog>) -> Vec<u8> {
    let mailbox = Arc::new(Mailbox::new(Arc::clone(&backlog)));
    let work = Work { bytes: &bytes, silent: 0, replies: 1 };
    poll_fn(|cx| match way.lane.submit(cx, way.key, work, &mailbox) {
        Submitted::Taken => Poll::Ready(()),
        // It is no spare lane, which alone can be shut.
        Submitted::Full | Submitted::Shut => Poll::Pending,
    })
    .await;
    let mut reply = Vec::new();
    poll_fn(|cx| {
        let mut piece = Vec::new();
        let mail = mailbox.poll_take(cx, &mut piece);
        backlog.settle(piece.len());
        mailbox.note_taken(piece.len());
        reply.append(&mut piece);
        if mail.owed == 0 || mail.state != MailState::Open {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    reply
}
