//! Replication connections (`replication=true|database`): a server connection each, opened for the client, taken from the
//! same budget, and closed when it leaves. Nothing is read in them: bytes pass both ways.
//!
//! Source: PostgreSQL documentation, "Streaming Replication Protocol".

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy, split};
use tokio::time::Instant;

use super::backend::{PgConnect, PgPool, checkout_error};
use super::cancel::CancelHandle;
use super::clients::Wanted;
use super::connect::{Reached, send_cancel};
use super::message::{ErrorFields, Severity};
use crate::lifecycle::Drain;
use crate::net::Stream;
use crate::pool::{Checkout, Lease, PinPermit};

/// The reason of the pin, and of the end.
const REASON: &str = "replication";

/// A server connection that serves one client for good.
pub(super) struct OwnConnection {
    lease: Lease<PgConnect>,
    _permit: PinPermit,
}

impl OwnConnection {
    /// Opens one in `pool`, which is nobody else's. Cancel safe.
    ///
    /// # Errors
    /// The words for the client when as many connections as may be are kept already, or the server can't be had.
    pub(super) async fn open(pool: &Arc<PgPool>) -> Result<Self, ErrorFields> {
        let deadline = Instant::now() + pool.settings().wait();
        let permit = pool.wait_to_pin(deadline).await.ok_or_else(|| {
            let text = format!(
                "a replication connection keeps a server connection of pool {}, and as many as may be are kept already",
                pool.settings().name
            );
            ErrorFields::fatal("53300", text).hint(
                "Raise the pool size or postgres.pinned_limit, or connect this client directly.",
            )
        })?;
        let lease = match pool.checkout() {
            Checkout::Ready(lease) => Ok(lease),
            Checkout::Queued(ticket) => ticket.lease().await,
        };
        let mut lease = lease.map_err(|error| checkout_error(&error, Severity::Fatal))?;
        lease.pin(REASON);
        let _since = lease.turn(crate::metrics::Phase::Pinned);
        Ok(Self { lease, _permit: permit })
    }

    /// What the server reported at login.
    pub(super) fn reported(&self) -> &[(String, String)] {
        &self.lease.parameters
    }

    /// Passes bytes until either side leaves or the drain starts.
    pub(super) async fn pass(
        mut self,
        client: Stream,
        leftover: Vec<u8>,
        cancel: CancelHandle,
        drain: Drain,
    ) {
        let pool = Arc::clone(self.lease.pool());
        let _guard = drain.guard();
        let metrics = pool.metrics();
        metrics.clients_active.inc();
        let (reached, key) = (Arc::clone(&self.lease.reached), self.lease.key.clone());
        let last_words = pool.connector().limits().cleanup_timeout;
        tokio::select! {
            () = relay(client, &mut self.lease.stream, leftover, last_words) => {}
            () = hear_cancels(&pool, &cancel, (&reached, &key)) => {}
            () = drain.started() => {}
        }
        metrics.clients_active.dec();
        self.lease.unpin();
        self.lease.close(REASON);
        pool.close();
    }
}

/// Ends when the server has, or `last_words` after the client.
async fn relay(client: Stream, server: &mut Stream, leftover: Vec<u8>, last_words: Duration) {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_server, mut to_server) = split(server);
    let up = async {
        let sent: io::Result<()> = async {
            to_server.write_all(&leftover).await?;
            to_server.flush().await?;
            copy(&mut from_client, &mut to_server).await?;
            to_server.shutdown().await
        }
        .await;
        // Whichever side broke: the other is told by the end of its stream.
        drop(sent);
        tokio::time::sleep(last_words).await;
    };
    let down = async {
        let sent = copy(&mut from_server, &mut to_client).await;
        drop(sent);
        let _told = to_client.shutdown().await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Ends when the client is to leave.
async fn hear_cancels(
    pool: &PgPool,
    cancel: &CancelHandle,
    (reached, key): (&Reached, &super::message::BackendKey),
) {
    loop {
        poll_fn(|cx| cancel.card().poll_wanted(cx)).await;
        let wanted = cancel.card().take_wanted();
        if wanted.has(Wanted::LEAVE) {
            return;
        }
        if !wanted.has(Wanted::CANCEL) {
            continue;
        }
        if let Err(error) = send_cancel(reached, key).await {
            tracing::warn!(pool = %pool.settings().name, %error, "cancel request not delivered");
        }
    }
}
