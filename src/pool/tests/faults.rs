//! The server is down, full, deaf, or does not let us in.

use super::fake::*;
use crate::pool::*;

#[tokio::test(start_paused = true)]
async fn an_unreachable_server_is_retried_with_back_off_until_the_deadline() {
    let (server, budget, pool) = pool_of(5);
    server.set(Mood::Fails(Fault::Unreachable));
    assert_eq!(pool.state(), Reachability::NotTried);
    let mut tickets: Vec<_> = (0..100).map(|_| queued(&pool)).collect();
    pass(9900).await;
    assert!(tickets.iter_mut().all(|ticket| poll(ticket).is_pending()));
    // Five at once, then one at a time after 100, 200, 400 … ms.
    assert!((9..=14).contains(&server.attempts()), "{}", server.attempts());
    assert!(matches!(pool.state(), Reachability::Failing { code, .. } if code == "io"));
    pass(100).await;
    let Poll::Ready(Err(error)) = poll(&mut tickets[0]) else { panic!("still waits") };
    assert!(matches!(error.kind, CheckoutErrorKind::Unreachable { .. }));
    assert!(error.to_string().contains("connection refused (io)"), "{error}");
    assert!(error.to_string().contains("host and port"), "{error}");
    // The reaper's probe of a server that is not there may be under way.
    assert!(budget.in_use() <= 1);
}

#[tokio::test(start_paused = true)]
async fn waiters_go_on_when_the_server_is_back() {
    let (server, _, pool) = pool_of(5);
    server.set(Mood::Fails(Fault::Unreachable));
    let mut tickets: Vec<_> = (0..5).map(|_| queued(&pool)).collect();
    pass(1000).await;
    server.set(Mood::Accepts);
    pass(2000).await;
    let leases: Vec<_> = tickets.iter_mut().map(granted).collect();
    assert_eq!((leases.len(), pool.state()), (5, Reachability::Reachable));
}

#[tokio::test(start_paused = true)]
async fn back_off_never_blocks_a_waiter_whom_an_existing_connection_serves() {
    for fault in [Fault::Unreachable, Fault::Refused, Fault::Rejected] {
        let (server, _, pool) = pool_of(5);
        let held = lease(&pool).await.unwrap();
        server.set(Mood::Fails(fault));
        let mut waiter = queued(&pool);
        pass(500).await;
        assert!(poll(&mut waiter).is_pending(), "{fault:?}");
        held.give_back();
        granted(&mut waiter).give_back();
        ready(&pool).give_back();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_server_is_an_honest_error_at_the_deadline() {
    let (server, _, pool) = pool_of(5);
    server.set(Mood::Fails(Fault::Refused));
    let mut waiter = queued(&pool);
    pass(10_000).await;
    let Poll::Ready(Err(error)) = poll(&mut waiter) else { panic!("still waits") };
    assert!(matches!(&error.kind, CheckoutErrorKind::Refused { code, .. } if code == "53300"));
    assert!(error.to_string().contains("too many clients"), "{error}");
    assert!(error.to_string().contains("lower the pool size"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_fails_all_at_once_and_does_not_hammer() {
    let (server, budget, pool) = pool_of(1);
    server.set(Mood::Fails(Fault::Rejected));
    let mut tickets: Vec<_> = (0..50).map(|_| queued(&pool)).collect();
    pass(50).await;
    for ticket in &mut tickets {
        assert!(
            matches!(failed(ticket), CheckoutErrorKind::Rejected { code, .. } if code == "28P01")
        );
    }
    for _ in 0..100 {
        assert!(matches!(failed(&mut queued(&pool)), CheckoutErrorKind::Rejected { .. }));
    }
    assert_eq!(server.attempts(), 1);
    // After the hold-off the next checkout asks again, and gets the server's own answer.
    pass(5000).await;
    assert_eq!(server.attempts(), 1, "nobody asked");
    let mut waiter = queued(&pool);
    assert!(poll(&mut waiter).is_pending());
    pass(50).await;
    assert!(matches!(failed(&mut waiter), CheckoutErrorKind::Rejected { .. }));
    assert_eq!(server.attempts(), 2);
    pass(10_000).await;
    server.set(Mood::Accepts);
    let mut waiter = queued(&pool);
    pass(50).await;
    granted(&mut waiter).give_back();
    assert_eq!((pool.state(), budget.in_use()), (Reachability::Reachable, 1));
}

#[tokio::test(start_paused = true)]
async fn a_deaf_server_is_given_up_after_the_connect_timeout() {
    let (server, _, pool) = pool_of(1);
    server.set(Mood::Hangs);
    let mut waiter = queued(&pool);
    pass(2950).await;
    assert_eq!(pool.metrics().servers_opening.get(), 1);
    pass(100).await;
    assert!(matches!(pool.state(), Reachability::Failing { code, .. } if code == "timeout"));
    server.set(Mood::Accepts);
    pass(200).await;
    granted(&mut waiter).give_back();
}

/// Where the wait is shorter than an attempt may last: nobody is told to shorten transactions.
#[tokio::test(start_paused = true)]
async fn a_deaf_server_is_named_as_such_before_the_first_attempt_ends() {
    let (server, _, pool) = pool_of(1);
    pool.reconfigure(&PoolSettings { wait: Duration::from_millis(500), ..settings("p") });
    server.set(Mood::Hangs);
    let mut waiter = queued(&pool);
    pass(600).await;
    let kind = failed(&mut waiter);
    assert!(
        matches!(&kind, CheckoutErrorKind::Unreachable { code, .. } if code == "timeout"),
        "{kind:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_connector_is_a_failure_with_back_off() {
    let (server, budget, pool) = pool_of(1);
    server.set(Mood::Panics);
    let mut waiter = queued(&pool);
    pass(1000).await;
    assert!((2..=6).contains(&server.attempts()), "{}", server.attempts());
    assert_eq!((budget.in_use(), pool.metrics().servers_opening.get()), (0, 0));
    server.set(Mood::Accepts);
    pass(2000).await;
    granted(&mut waiter).give_back();
}

#[tokio::test(start_paused = true)]
async fn readiness_recovers_although_nobody_asks() {
    let (server, budget, pool) = pool_of(1);
    let reaper = tokio::spawn(pool.run_reaper());
    server.set(Mood::Fails(Fault::Unreachable));
    drop(queued(&pool));
    pass(60_000).await;
    assert!(matches!(pool.state(), Reachability::Failing { .. }));
    assert!(server.attempts() < 25, "{}", server.attempts());
    server.set(Mood::Accepts);
    pass(7000).await;
    assert_eq!((pool.state(), budget.in_use()), (Reachability::Reachable, 1));
    reaper.abort();
}
