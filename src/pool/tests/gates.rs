//! Pauses, and replacing all connections.

use super::fake::*;
use crate::pool::*;

#[tokio::test(start_paused = true)]
async fn a_pause_lets_work_finish_and_keeps_the_others_waiting_without_a_deadline() {
    let (server, budget, pool) = pool_of(2);
    let (busy, idle) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    idle.give_back();
    assert!(pool.pause());
    assert!(!pool.pause(), "it was shut");
    assert_eq!((server.open(), pool.outdated()), (1, 1), "the idle one is closed");
    let mut waiter = queued(&pool);
    pass(30_000).await;
    assert!(poll(&mut waiter).is_pending());
    busy.give_back();
    assert_eq!((server.open(), pool.outdated(), budget.in_use()), (0, 0, 0));
    pass(30_000).await;
    assert!(poll(&mut waiter).is_pending() && server.open() == 0, "nothing is opened");
    assert!(pool.resume());
    assert!(!pool.resume(), "it was open");
    granted_within(&mut waiter, 100).await.give_back();
    ready(&pool).give_back();
}

#[tokio::test(start_paused = true)]
async fn behind_a_pause_the_whole_wait_begins() {
    let (_, _, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let mut waiter = queued(&pool);
    pass(9_000).await;
    pool.pause();
    pass(60_000).await;
    pool.resume();
    pass(9_900).await;
    assert!(poll(&mut waiter).is_pending());
    pass(100).await;
    assert_eq!(failed(&mut waiter), CheckoutErrorKind::TimedOut);
    held.give_back();
}

#[tokio::test(start_paused = true)]
async fn what_is_waited_for_beside_the_queue_has_its_time_too() {
    let (_, _, pool) = pool_of(1);
    let never = || pool.within_wait(std::future::pending::<()>());
    let begun = Instant::now();
    assert_eq!(never().await, None);
    assert_eq!(begun.elapsed().as_secs(), 10);
    pool.pause();
    let begun = Instant::now();
    let wait = async {
        assert_eq!(never().await, None);
        assert_eq!(begun.elapsed().as_secs(), 40);
    };
    let resume = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        pool.resume();
    };
    tokio::join!(wait, resume);
    pool.pause();
    assert_eq!(pool.within_wait(std::future::ready(7)).await, Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_pause_catches_connections_that_are_being_opened() {
    let (server, _, pool) = pool_of(1);
    let mut waiter = queued(&pool);
    breathe().await;
    assert_eq!(server.attempts(), 1);
    pool.pause();
    assert_eq!(pool.outdated(), 1);
    pass(1_000).await;
    assert_eq!((server.open(), pool.outdated()), (0, 0));
    assert!(poll(&mut waiter).is_pending());
    pool.resume();
    granted_within(&mut waiter, 100).await.give_back();
    pool.close();
}

#[tokio::test(start_paused = true)]
async fn a_paused_pool_can_be_closed() {
    let (_, _, pool) = pool_of(1);
    pool.pause();
    let mut waiter = queued(&pool);
    pool.close();
    assert_eq!(failed(&mut waiter), CheckoutErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn renewed_connections_are_closed_as_they_come_back() {
    let (server, _, pool) = pool_of(2);
    let (busy, idle) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    let (first, outdated) = (busy.number, busy.until_outdated());
    idle.give_back();
    pool.renew();
    assert_eq!((server.open(), pool.outdated()), (1, 1));
    tokio::time::timeout(Duration::from_secs(1), outdated).await.unwrap();
    let other = lease(&pool).await.unwrap();
    pool.renew();
    assert_eq!(pool.outdated(), 2, "of two eras");
    let mut waiter = queued(&pool);
    busy.give_back();
    let served = granted_within(&mut waiter, 100).await;
    assert_ne!(served.number, first);
    other.give_back();
    assert_eq!(pool.outdated(), 0);
    served.give_back();
    ready(&pool).give_back();
}
