//! Checkout, queue, give back, and leaving at every point.

use super::fake::*;
use crate::metrics::Outcome;
use crate::pool::*;
use std::mem::size_of;
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn a_session_can_afford_them() {
    assert!(size_of::<Lease<Fake>>() <= 16, "{}", size_of::<Lease<Fake>>());
    assert!(size_of::<Option<Lease<Fake>>>() <= 24, "{}", size_of::<Option<Lease<Fake>>>());
    assert!(size_of::<Ticket<Fake>>() <= 8, "{}", size_of::<Ticket<Fake>>());
    assert!(size_of::<Checkout<Fake>>() <= 24, "{}", size_of::<Checkout<Fake>>());
    fn is_send<T: Send>() {}
    is_send::<Lease<Fake>>();
    is_send::<Ticket<Fake>>();
    is_send::<Arc<Pool<Fake>>>();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_lent_at_once_and_the_latest_first() {
    let (server, budget, pool) = pool_of(2);
    let (one, two) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    let number = two.number;
    one.give_back();
    two.give_back();
    assert_eq!(ready(&pool).number, number);
    assert_eq!((server.attempts(), budget.in_use()), (2, 1), "an unsaid lease is closed");
    assert_eq!(pool.metrics().servers_idle.get(), 1);
    assert_eq!(pool.metrics().servers_active.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_leaves_lends_and_keeps_nothing() {
    let (server, budget) = (Server::new(), Budget::new(2));
    let settings = PoolSettings { idle_min: 1, ..settings("leaving") };
    let pool = pool_with(&server, &budget, settings);
    tokio::spawn(pool.run_reaper());
    let (one, two) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    let mut waiting = queued(&pool);
    one.give_back();
    let waited = granted(&mut waiting);
    two.give_back();
    assert_eq!(pool.metrics().servers_idle.get(), 1);
    pool.keep_none_idle();
    assert_eq!((pool.metrics().servers_idle.get(), server.open()), (0, 1), "idle ones at once");
    let mut waiting = [queued(&pool), queued(&pool)];
    waited.give_back();
    let handed_on = granted(&mut waiting[0]);
    pass(50).await;
    let fresh = granted(&mut waiting[1]);
    assert_eq!(server.attempts(), 3, "one was handed on, one opened");
    drop((handed_on, fresh));
    let last = lease(&pool).await.unwrap();
    last.give_back();
    pass(5_000).await;
    assert_eq!((server.open(), budget.in_use(), pool.metrics().servers_idle.get()), (0, 0, 0));
    assert_eq!(server.attempts(), 4, "none is kept ready any more");
}

#[tokio::test(start_paused = true)]
async fn a_burst_opens_as_many_as_allowed_and_no_more() {
    let (server, budget, pool) = pool_of(3);
    let mut tickets: Vec<_> = (0..20).map(|_| queued(&pool)).collect();
    breathe().await;
    assert_eq!(pool.metrics().servers_opening.get(), 3);
    assert_eq!(pool.metrics().queue_length.get(), 20);
    pass(50).await;
    assert_eq!((server.attempts(), budget.in_use()), (3, 3));
    for ticket in &mut tickets {
        granted(ticket).give_back();
    }
    assert_eq!(server.attempts(), 3);
    assert_eq!(pool.metrics().checkouts.get(), 20);
    assert_eq!(pool.metrics().times.waits(Outcome::Ok), 20);
}

#[tokio::test(start_paused = true)]
async fn one_waiter_opens_one_connection() {
    let (server, _, pool) = pool_of(10);
    let mut ticket = queued(&pool);
    pass(50).await;
    granted(&mut ticket).give_back();
    assert_eq!(server.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_given_back_connection_wakes_the_first_waiter_only() {
    let (_, _, pool) = pool_of(1);
    let mut held = lease(&pool).await.unwrap();
    let mut tickets: Vec<_> = (0..3).map(|_| queued(&pool)).collect();
    let wakes: Vec<_> = tickets.iter().map(|_| Arc::new(Wakes::default())).collect();
    for (ticket, wakes) in tickets.iter_mut().zip(&wakes) {
        let waker = Waker::from(Arc::clone(wakes));
        assert!(ticket.poll_lease(&mut Context::from_waker(&waker)).is_pending());
    }
    let woken = || wakes.iter().map(|wakes| wakes.0.load(SeqCst)).collect::<Vec<_>>();
    for (turn, ticket) in tickets.iter_mut().enumerate() {
        held.give_back();
        let expected: Vec<_> = (0..3).map(|at| usize::from(at <= turn)).collect();
        assert_eq!(woken(), expected);
        held = granted(ticket);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_the_queue() {
    let (_, _, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let mut first = queued(&pool);
    held.give_back();
    // The connection is in the first one's slot already.
    let mut second = queued(&pool);
    assert!(poll(&mut second).is_pending());
    granted(&mut first).give_back();
    granted(&mut second).give_back();
}

#[tokio::test(start_paused = true)]
async fn leaving_the_queue_passes_on_what_was_handed_over() {
    let (server, budget, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let (first, second, mut third) = (queued(&pool), queued(&pool), queued(&pool));
    drop(second);
    assert_eq!(pool.metrics().queue_length.get(), 2);
    held.give_back();
    drop(first);
    granted(&mut third).give_back();
    ready(&pool).give_back();
    assert_eq!((server.attempts(), budget.in_use()), (1, 1));
    let times = &pool.metrics().times;
    assert_eq!(times.waits(Outcome::Ok) + times.waits(Outcome::Gone), 5, "the two that left too");
}

#[tokio::test(start_paused = true)]
async fn leaving_at_any_moment_of_opening_leaks_nothing() {
    for steps in 0..30_u64 {
        let (server, budget, pool) = pool_of(1);
        let ticket = queued(&pool);
        for _ in 0..steps {
            tokio::time::advance(Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
        }
        drop(ticket);
        pass(100).await;
        assert_eq!((server.open(), budget.in_use()), (1, 1), "kept for the next, step {steps}");
        ready(&pool).give_back();
        assert_eq!(pool.metrics().servers_opening.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_lease_is_closed_and_its_permit_serves_the_next() {
    let (server, budget, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let mut waiter = queued(&pool);
    drop(held);
    assert_eq!(server.open(), 0);
    pass(50).await;
    granted(&mut waiter).close("test");
    assert_eq!((server.attempts(), server.open(), budget.in_use()), (2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn pins_are_counted_and_end_with_the_lease() {
    let (_, _, pool) = pool_of(1);
    let mut held = lease(&pool).await.unwrap();
    held.pin("temp table");
    held.pin("lock");
    let metrics = Arc::clone(pool.metrics());
    assert_eq!((metrics.servers_active.get(), metrics.servers_pinned.get()), (0, 1));
    held.unpin();
    held.unpin();
    assert_eq!((metrics.servers_active.get(), metrics.servers_pinned.get()), (1, 0));
    held.pin("lock");
    held.give_back();
    assert_eq!((metrics.servers_active.get(), metrics.servers_pinned.get()), (0, 0));
    assert_eq!(metrics.servers_idle.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_that_the_server_closed_are_passed_over() {
    let (server, budget, pool) = pool_of(3);
    let leases = [lease(&pool).await, lease(&pool).await, lease(&pool).await];
    leases.into_iter().for_each(|lease| lease.unwrap().give_back());
    server.restart();
    let mut ticket = queued(&pool);
    assert_eq!(server.open(), 0);
    pass(50).await;
    assert_eq!(granted(&mut ticket).number, 3);
    assert_eq!((pool.metrics().servers_idle.get(), budget.in_use()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_tells_waiters_and_keeps_nothing() {
    let (server, budget, pool) = pool_of(2);
    let (idle, held) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    budget.set_limit(1);
    idle.close("test");
    let mut waiter = queued(&pool);
    pool.close();
    assert_eq!(failed(&mut waiter), CheckoutErrorKind::Closed);
    assert_eq!(failed(&mut queued(&pool)), CheckoutErrorKind::Closed);
    held.give_back();
    assert_eq!((server.open(), budget.in_use()), (0, 0));
    pool.run_reaper().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_may_outlive_the_runtime_call_and_be_dropped_on_any_thread() {
    let (server, _, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let mut waiter = queued(&pool);
    std::thread::spawn(move || drop(held)).join().unwrap();
    pass(50).await;
    granted(&mut waiter).give_back();
    assert_eq!(server.attempts(), 2);
}
