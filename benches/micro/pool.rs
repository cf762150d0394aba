//! The pool: checkout and give-back, with nobody else and with a queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidegate::metrics::{Metrics, Protocol};
use tidegate::pool::{
    Backend, Budget, Checkout, Connect, ConnectError, Lease, Pool, PoolSettings, Ticket,
};
use tokio::runtime::Runtime;

use super::{Case, Operation};

pub(crate) const CASES: [Case; 3] = [
    Case { name: "pool: checkout and give back, nobody waits", prepare: alone },
    Case { name: "pool: the same, 20 wait", prepare: with_20 },
    Case { name: "pool: the same, 1000 wait", prepare: with_1000 },
];

/// Connections that are always there.
struct Server;

struct Connection;

impl Connect for Server {
    type Backend = Connection;

    async fn connect(&self) -> Result<Connection, ConnectError> {
        Ok(Connection)
    }
}

impl Backend for Connection {
    fn poll_idle(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

fn alone(runtime: &Runtime) -> Operation {
    let pool = pool();
    runtime.block_on(first(&pool)).give_back();
    Box::new(move || match pool.checkout() {
        Checkout::Ready(lease) => lease.give_back(),
        Checkout::Queued(_) => panic!("nobody has it"),
    })
}

fn with_20(runtime: &Runtime) -> Operation {
    queued(runtime, 20)
}

fn with_1000(runtime: &Runtime) -> Operation {
    queued(runtime, 1000)
}

/// Who had the connection stands last in the queue, and the first in it has it now.
fn queued(runtime: &Runtime, waiters: usize) -> Operation {
    let pool = pool();
    let mut lease = Some(runtime.block_on(first(&pool)));
    let mut queue: VecDeque<_> = (0..waiters).map(|_| join(&pool)).collect();
    Box::new(move || {
        if let Some(lease) = lease.take() {
            lease.give_back();
        }
        let granted = queue.pop_front().map(|mut ticket| ticket.poll_lease(&mut context()));
        let Some(Poll::Ready(Ok(granted))) = granted else { panic!("the first one's turn") };
        lease = Some(granted);
        queue.push_back(join(&pool));
    })
}

fn join(pool: &Arc<Pool<Server>>) -> Ticket<Server> {
    let Checkout::Queued(mut ticket) = pool.checkout() else { panic!("it is lent") };
    assert!(ticket.poll_lease(&mut context()).is_pending());
    ticket
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

async fn first(pool: &Arc<Pool<Server>>) -> Lease<Server> {
    match pool.checkout() {
        Checkout::Ready(lease) => lease,
        Checkout::Queued(ticket) => ticket.lease().await.unwrap(),
    }
}

fn pool() -> Arc<Pool<Server>> {
    let settings = PoolSettings {
        name: "micro".to_owned(),
        // No wait ends while it is measured.
        wait: Duration::from_secs(3600),
        queue_limit: 10_000,
        connect_timeout: Duration::from_secs(3),
        lifetime: Duration::ZERO,
        idle: Duration::ZERO,
        ceilings: Vec::new(),
        idle_min: 0,
        jitter_percent: 0,
    };
    let metrics = Metrics::new().unwrap().pool(Protocol::Postgres, &settings.name);
    Pool::new(Server, settings, Budget::new(1), metrics)
}
