//! Bringing a server connection back after its client has gone: cancel, drain, roll back, discard; or close it.

use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};
use std::time::Duration;

use super::backend::{PgBackend, PgConnect};
use super::connect::send_cancel;
use super::exchange::{Owed, Status};
use super::message;
use super::relay;
use super::wire;
use crate::net::with_read_buffer;
use crate::pool::Lease;

/// How the client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It said goodbye: what it asked for before is finished, as a server would.
    Goodbye,
    /// It is gone: what runs for it is cancelled.
    Vanished,
}

/// What the session leaves on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leavings {
    /// Nothing that outlives a transaction.
    None,
    /// Something that DISCARD ALL takes away.
    State,
}

/// Cleans the connection and gives it back, or closes it if that takes longer than `limit` or fails.
pub async fn clean(
    mut lease: Lease<PgConnect>,
    departure: Departure,
    leavings: Leavings,
    limit: Duration,
) {
    match tokio::time::timeout(limit, tidy(&mut lease, departure, leavings)).await {
        Ok(Ok(())) if lease.is_misplaced() => lease.close("role"),
        Ok(Ok(())) => lease.give_back(),
        Ok(Err(reason)) => lease.close(reason),
        Err(_) => lease.close("cleanup_timeout"),
    }
}

async fn tidy(
    lease: &mut Lease<PgConnect>,
    departure: Departure,
    leavings: Leavings,
) -> Result<(), &'static str> {
    let backend: &mut PgBackend = lease;
    if !backend.line.abandon(backend.to_server.bytes()) {
        // The server waits for the rest of a frame that nobody has.
        return Err("client_gone_mid_frame");
    }
    backend.to_client.clear();
    if departure == Departure::Vanished {
        // An error in one request of several would let those behind it run without it: a BEGIN, say.
        drain(lease, |backend| {
            let exchange = &backend.line.exchange;
            exchange.is_last_flight() || exchange.copies_in()
        })
        .await?;
        if lease.line.exchange.owes_client() && !lease.line.exchange.copies_in() {
            cancel(lease).await;
        }
    }
    loop {
        end_requests(lease);
        drain(lease, |backend| {
            let exchange = &backend.line.exchange;
            exchange.copies_in() || (exchange.owed() == 0 && backend.to_server.is_empty())
        })
        .await?;
        if !lease.line.exchange.copies_in() && !lease.line.exchange.wants_sync() {
            break;
        }
    }
    if lease.line.exchange.status() != Status::Idle {
        ask(lease, "ROLLBACK").await?;
    }
    if leavings == Leavings::State {
        ask(lease, "DISCARD ALL").await?;
        lease.line.discarded();
    }
    if lease.line.is_over() { Ok(()) } else { Err("client_gone") }
}

/// Ends a COPY, and what no Sync has ended: the server would not have kept that, either.
fn end_requests(backend: &mut PgBackend) {
    let exchange = &mut backend.line.exchange;
    let out = backend.to_server.bytes();
    if exchange.copies_in() {
        wire::put_frame(out, b'f', &[b"the client has gone\0"]);
        exchange.sent_copy_end();
    }
    if exchange.wants_sync() {
        out.extend_from_slice(&message::query("ROLLBACK"));
        exchange.sent_query(Owed::QueryOurs);
        // Behind an error the server skips the ROLLBACK.
        wire::put_frame(out, b'S', &[]);
        exchange.sent_sync();
    }
}

/// Has the server cancel what runs. Whether or not that arrives, the answer tells; only then may other words follow.
async fn cancel(lease: &Lease<PgConnect>) {
    let (key, reached) = (lease.key.clone(), std::sync::Arc::clone(&lease.reached));
    let _told = send_cancel(&reached, &key).await;
}

/// Reads and forgets until `done`, and writes what waits for the server meanwhile.
async fn drain(
    backend: &mut PgBackend,
    done: impl Fn(&PgBackend) -> bool,
) -> Result<(), &'static str> {
    read_until(backend, done).await.map_err(|_| "client_gone")
}

async fn read_until(backend: &mut PgBackend, done: impl Fn(&PgBackend) -> bool) -> io::Result<()> {
    let mut ledger = None;
    poll_fn(|cx| {
        loop {
            if !backend.to_server.is_empty() {
                // A server that doesn't read may still be writing: look at both.
                if let Poll::Ready(sent) = backend.to_server.poll_send(&mut backend.stream, cx) {
                    sent?;
                }
            }
            if done(backend) {
                return Poll::Ready(Ok(()));
            }
            ready!(with_read_buffer(|buffer| {
                let kept = backend.rest.len();
                buffer[..kept].copy_from_slice(&backend.rest);
                let n = ready!(backend.stream.poll_read_into(cx, &mut buffer[kept..]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                let bytes = &mut buffer[..kept + n];
                let given = relay::replies(&mut backend.line, &mut ledger, bytes)
                    .map_err(|desync| io::Error::new(io::ErrorKind::InvalidData, desync))?;
                backend.rest.clear();
                backend.rest.extend_from_slice(&bytes[given.rest..]);
                Poll::Ready(Ok(()))
            }))?;
        }
    })
    .await
}

/// Has the server run one statement of ours.
async fn ask(lease: &mut Lease<PgConnect>, sql: &str) -> Result<(), &'static str> {
    let answer = lease.ask(&message::query(sql)).await.map_err(|_| "client_gone")?;
    if answer.error.is_some() {
        return Err("cleanup_refused");
    }
    // The answer ended in an idle ReadyForQuery: tell the exchange.
    lease.line.exchange.sent_query(Owed::QueryOurs);
    lease.line.exchange.replied(b'Z', b'I').map_err(|_| "client_gone")?;
    Ok(())
}
