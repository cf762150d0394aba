//! Deadlines, bounds, lifetimes, and a budget that changes.

use super::fake::*;
use crate::metrics::{Metrics, Protocol, Reason};
use crate::pool::*;

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_and_says_why() {
    let (_, _, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let mut first = queued(&pool);
    pass(4000).await;
    let mut second = queued(&pool);
    pass(5950).await;
    assert!(poll(&mut first).is_pending());
    pass(50).await;
    let Poll::Ready(Err(error)) = poll(&mut first) else { panic!("still waits") };
    assert_eq!(error.kind, CheckoutErrorKind::TimedOut);
    assert_eq!((error.limit, error.queue_length, error.pool.as_str()), (1, 2, "p"));
    assert_eq!(error.waited, Duration::from_secs(10));
    let text = error.to_string();
    for part in ["pool p", "10000 ms", "all 1", "2 clients", "raise the pool size"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(poll(&mut second).is_pending());
    held.give_back();
    granted(&mut second).give_back();
    assert_eq!(pool.metrics().rejected(Reason::WaitTimeout), 1);
}

#[tokio::test(start_paused = true)]
async fn the_timer_serves_the_next_generation_of_waiters_too() {
    let (_, _, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    for _ in 0..3 {
        let mut waiter = queued(&pool);
        pass(10_000).await;
        assert_eq!(failed(&mut waiter), CheckoutErrorKind::TimedOut);
        pass(700).await;
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let (server, budget) = (Server::new(), Budget::new(1));
    let pool = pool_with(&server, &budget, PoolSettings { queue_limit: 2, ..settings("p") });
    let held = lease(&pool).await.unwrap();
    let (first, _second) = (queued(&pool), queued(&pool));
    assert_eq!(failed(&mut queued(&pool)), CheckoutErrorKind::QueueFull);
    assert_eq!(pool.metrics().rejected(Reason::QueueFull), 1);
    drop(first);
    assert!(poll(&mut queued(&pool)).is_pending());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn the_reaper_closes_idle_and_dead_connections() {
    let (server, budget) = (Server::new(), Budget::new(3));
    let idle = Duration::from_secs(60);
    let pool = pool_with(&server, &budget, PoolSettings { idle, ..settings("p") });
    let reaper = tokio::spawn(pool.run_reaper());
    let (one, two) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    one.give_back();
    pass(30_000).await;
    two.give_back();
    pass(32_000).await;
    assert_eq!(server.open(), 1, "one was idle for 60 s");
    server.restart();
    pass(1000).await;
    assert_eq!((server.open(), budget.in_use()), (0, 0));
    drop(pool);
    pass(1000).await;
    assert!(reaper.is_finished(), "a dropped pool needs no reaper");
}

#[tokio::test(start_paused = true)]
async fn a_connection_past_its_lifetime_is_closed_when_given_back() {
    let (server, budget) = (Server::new(), Budget::new(1));
    let lifetime = Duration::from_secs(60);
    let pool = pool_with(&server, &budget, PoolSettings { lifetime, ..settings("p") });
    let reaper = tokio::spawn(pool.run_reaper());
    let held = lease(&pool).await.unwrap();
    let mut waiter = queued(&pool);
    pass(9000).await;
    held.give_back();
    let held = granted(&mut waiter);
    pass(52_000).await;
    let mut waiter = queued(&pool);
    held.give_back();
    assert_eq!(server.open(), 0);
    pass(50).await;
    assert_eq!(granted(&mut waiter).number, 1);
    pool.close();
    reaper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn jitter_cuts_lifetimes_by_chance_but_never_below() {
    let (server, budget) = (Server::new(), Budget::new(40));
    let lifetime = Duration::from_secs(100);
    let limits = PoolSettings { lifetime, jitter_percent: 20, ..settings("p") };
    let pool = pool_with(&server, &budget, limits);
    let reaper = tokio::spawn(pool.run_reaper());
    let mut tickets: Vec<_> = (0..40).map(|_| queued(&pool)).collect();
    pass(50).await;
    let leases: Vec<_> = tickets.iter_mut().map(granted).collect();
    leases.into_iter().for_each(Lease::give_back);
    pass(79_000).await;
    assert_eq!(server.open(), 40);
    pass(11_000).await;
    assert!((1..40).contains(&server.open()), "{}", server.open());
    pass(12_000).await;
    assert_eq!(server.open(), 0);
    reaper.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_is_a_debt_paid_at_give_back() {
    let (server, budget, pool) = pool_of(5);
    let mut leases = Vec::new();
    for _ in 0..5 {
        leases.push(lease(&pool).await.unwrap());
    }
    leases.pop().unwrap().give_back();
    budget.set_limit(2);
    assert_eq!((server.open(), budget.in_use()), (4, 4), "the idle one is closed at once");
    assert_eq!(pool.metrics().server_limit.get(), 2);
    // A dip that is over again before the debt is paid must not add permits.
    budget.set_limit(5);
    budget.set_limit(2);
    let mut waiter = queued(&pool);
    leases.pop().unwrap().give_back();
    leases.pop().unwrap().give_back();
    assert_eq!(budget.in_use(), 2);
    assert!(poll(&mut waiter).is_pending());
    leases.pop().unwrap().give_back();
    granted(&mut waiter).give_back();
    assert_eq!((server.attempts(), budget.in_use()), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_higher_limit_serves_waiters_at_once() {
    let (server, budget, pool) = pool_of(0);
    let mut tickets: Vec<_> = (0..3).map(|_| queued(&pool)).collect();
    pass(100).await;
    assert_eq!(server.attempts(), 0);
    budget.set_limit(2);
    pass(50).await;
    assert_eq!(server.attempts(), 2);
    let (first, _second) = (granted(&mut tickets[0]), granted(&mut tickets[1]));
    first.give_back();
    granted(&mut tickets[2]).give_back();
    budget.set_limit(usize::MAX);
    assert_eq!(budget.limit(), CONNECTIONS_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_full_lowers_the_limit_and_nobody_hears_of_it() {
    let (server, budget, pool) = pool_of(5);
    server.most(2);
    let mut waiters: Vec<_> = (0..5).map(|_| queued(&pool)).collect();
    let mut leases = Vec::new();
    for waiter in &mut waiters[..2] {
        leases.push(granted_within(waiter, 100).await);
    }
    let _reaper = tokio::spawn(pool.run_reaper());
    pass(200).await;
    assert_eq!((budget.limit(), budget.configured()), (2, 5));
    assert!(budget.shortfall().is_some_and(|words| words.contains("too many")), "{budget:?}");
    assert_eq!(pool.metrics().server_limit.get(), 2);
    assert_eq!(pool.metrics().server_refusals.get(), 3);
    assert_eq!(pool.state(), Reachability::Reachable, "it serves");
    let attempts = server.attempts();
    pass(3_000).await;
    assert_eq!(server.attempts(), attempts, "a known limit is not tried again at once");
    // Those who waited in vain hear that all are in use: two serve.
    pass(8_000).await;
    let Poll::Ready(Err(error)) = poll(&mut waiters[2]) else { panic!("still waits") };
    assert_eq!((error.kind, error.limit), (CheckoutErrorKind::TimedOut, 2));
    // The server has room again: one more is tried, then each second another.
    server.most(9);
    let mut more: Vec<_> = (0..3).map(|_| queued(&pool)).collect();
    for waiter in &mut more {
        leases.push(granted_within(waiter, 9_900).await);
    }
    assert_eq!((budget.limit(), budget.in_use()), (5, 5));
    assert_eq!(budget.shortfall(), None);
    leases.into_iter().for_each(Lease::give_back);
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_holds_for_all_pools_below_it_and_an_idle_one_makes_room() {
    let (server, budget) = (Server::new(), Budget::new(5));
    let ceiling = Ceiling::new(2);
    let below = |name: &str| {
        let ceilings = vec![Arc::clone(&ceiling)];
        pool_with(&server, &budget, PoolSettings { ceilings, ..settings(name) })
    };
    let (one, two, free) =
        (below("one"), below("two"), pool_with(&server, &budget, settings("free")));
    let (first, second) = (lease(&one).await.unwrap(), lease(&two).await.unwrap());
    let mut third = queued(&one);
    pass(200).await;
    assert!(poll(&mut third).is_pending(), "both places are taken");
    lease(&free).await.unwrap().give_back();
    assert_eq!(budget.in_use(), 3, "others are not kept from theirs");
    second.give_back();
    granted_within(&mut third, 100).await.give_back();
    assert_eq!(budget.in_use(), 3, "the idle one of the other pool made room");
    first.give_back();
    // However the places change hands they are never more.
    let leases = [lease(&two).await.unwrap(), lease(&two).await.unwrap()];
    let mut waiter = queued(&one);
    pass(200).await;
    assert!(poll(&mut waiter).is_pending());
    leases.into_iter().for_each(Lease::give_back);
    granted_within(&mut waiter, 1_000).await.give_back();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_closed_for_a_pool_that_its_ceiling_keeps_from_opening() {
    let (server, budget) = (Server::new(), Budget::new(4));
    let ceilings = vec![Ceiling::new(1)];
    let small = pool_with(&server, &budget, PoolSettings { ceilings, ..settings("small") });
    let large = pool_with(&server, &budget, settings("large"));
    let _held = lease(&small).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.push(lease(&large).await.unwrap());
    }
    let mut older = queued(&small);
    pass(200).await;
    for _ in 0..20 {
        let mut next = queued(&large);
        leases.pop().unwrap().give_back();
        leases.push(granted_within(&mut next, 100).await);
    }
    assert_eq!(server.attempts(), 4, "no connection was closed and opened again");
    assert!(poll(&mut older).is_pending());
}

#[tokio::test(start_paused = true)]
async fn waiters_of_pools_that_are_counted_together_add_up() {
    let (server, budget) = (Server::new(), Budget::new(0));
    let metrics = Metrics::new().unwrap().pool(Protocol::Redis, "p");
    let pool = || pool_counted(&server, &budget, settings("p"), Arc::clone(&metrics));
    let (one, two) = (pool(), pool());
    let waiters = [queued(&one), queued(&one), queued(&two)];
    assert_eq!(metrics.queue_length.get(), 3);
    drop(waiters);
    assert_eq!(metrics.queue_length.get(), 0);
}
