//! A command of ours over a lane, whose reply nobody else gets.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::Way;
use crate::redis::lane::{Fate, Submitted, Work, is_unsent};
use crate::redis::mailbox::{Backlog, MailState, Mailbox};
use crate::redis::wire::write_command;

/// Connections over which a command is tried that must go over the one that is there.
const TRIES: usize = 3;

/// Sends `bytes`, one command, and waits for its reply.
pub(super) async fn ask(way: Way, bytes: Vec<u8>, backlog: Arc<Backlog>) -> Vec<u8> {
    ask_all(way, bytes, 1, backlog).await
}

/// As [`ask`], for so many commands.
pub(super) async fn ask_all(
    way: Way,
    bytes: Vec<u8>,
    replies: u32,
    backlog: Arc<Backlog>,
) -> Vec<u8> {
    let work = Work { bytes: &bytes, silent: 0, replies };
    send(&way, work, Fate::Carried, &backlog).await.unwrap_or_default()
}

/// As [`ask`], for a command that names another connection by its number: the server that the lane finds when it has lost this one
/// may have given the number to somebody else.
pub(in crate::redis) async fn ask_here(way: Way, bytes: Vec<u8>, backlog: Arc<Backlog>) -> Vec<u8> {
    let mut reply = Vec::new();
    for _ in 0..TRIES {
        let work = Work { bytes: &bytes, silent: 0, replies: 1 };
        match send(&way, work, Fate::Here, &backlog).await {
            Some(answer) if is_unsent(&answer) => reply = answer,
            Some(answer) => return answer,
            None => {
                let mut ping = Vec::new();
                write_command(&["PING"], &mut ping);
                reply = ask(way.clone(), ping, Arc::clone(&backlog)).await;
            }
        }
    }
    reply
}

/// `None` if there is no connection that it could go over.
async fn send(way: &Way, work: Work<'_>, fate: Fate, backlog: &Arc<Backlog>) -> Option<Vec<u8>> {
    let mailbox = Arc::new(Mailbox::new(Arc::clone(backlog)));
    let submitted = poll_fn(|cx| match way.lane.submit_as(cx, way.key, work, &mailbox, fate) {
        // It is woken when there is room.
        Submitted::Full => Poll::Pending,
        submitted => Poll::Ready(submitted),
    });
    if submitted.await == Submitted::Shut {
        return None;
    }
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
    Some(reply)
}
