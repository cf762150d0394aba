//! What changes while a pool is in use: its limits, and what its server wants to hear.

use super::fake::*;
use crate::pool::*;

#[tokio::test(start_paused = true)]
async fn waits_that_last_end_by_the_new_limit() {
    let (_, _, pool) = pool_of(1);
    let held = lease(&pool).await.unwrap();
    let (mut first, mut second) = (queued(&pool), queued(&pool));
    pass(1_000).await;
    pool.reconfigure(&PoolSettings { wait: Duration::from_secs(3), ..settings("p") });
    pass(1_900).await;
    assert!(poll(&mut first).is_pending());
    pass(200).await;
    assert_eq!(failed(&mut first), CheckoutErrorKind::TimedOut);
    assert_eq!(failed(&mut second), CheckoutErrorKind::TimedOut);
    let mut third = queued(&pool);
    pool.reconfigure(&PoolSettings { wait: Duration::from_secs(60), ..settings("p") });
    pass(50_000).await;
    assert!(poll(&mut third).is_pending());
    held.give_back();
    granted(&mut third).give_back();
}

#[tokio::test(start_paused = true)]
async fn connections_serve_until_one_with_the_new_password_is_there() {
    let (server, _, pool) = pool_of(2);
    tokio::spawn(pool.run_reaper());
    let (one, two) = (lease(&pool).await.unwrap(), lease(&pool).await.unwrap());
    let (first, second) = (one.number, two.number);
    two.give_back();
    server.set(Mood::Fails(Fault::Rejected));
    let before = server.attempts();
    pool.renew_when_opened();
    pass(100).await;
    assert_eq!(server.attempts(), before + 1, "one is tried at once, in the place of an idle one");
    one.give_back();
    let again = ready(&pool);
    assert_eq!(again.number, first, "what is there serves");
    pass(60_000).await;
    let tried = server.attempts() - before;
    assert!((3..=6).contains(&tried), "{tried} attempts in a minute");
    again.give_back();
    assert_eq!(server.open(), 1, "no second connection is given up for an attempt");
    server.set(Mood::Accepts);
    let lent = ready(&pool);
    pool.retry();
    pass(1_100).await;
    assert_eq!(server.open(), 2);
    let new = ready(&pool);
    assert!(new.number > second);
    assert_eq!(pool.outdated(), 1);
    lent.give_back();
    assert_eq!((pool.outdated(), server.open()), (0, 1), "it is closed when it comes back");
    new.give_back();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_with_the_old_password_tells_nothing_of_the_new() {
    let (server, _, pool) = pool_of(2);
    let held = lease(&pool).await.unwrap();
    server.set(Mood::Fails(Fault::Rejected));
    *server.delay.lock().unwrap() = Duration::from_millis(500);
    let mut waiter = queued(&pool);
    pass(100).await;
    pool.renew_when_opened();
    pass(450).await;
    // The attempt that was under way has failed.
    server.set(Mood::Accepts);
    granted_within(&mut waiter, 700).await.give_back();
    held.give_back();
}

#[tokio::test(start_paused = true)]
async fn a_hold_off_that_was_ended_does_not_end_the_next() {
    let (server, _, pool) = pool_of(4);
    server.set(Mood::Fails(Fault::Rejected));
    let mut first = queued(&pool);
    pass(50).await;
    assert!(matches!(failed(&mut first), CheckoutErrorKind::Rejected { .. }));
    pool.retry();
    let before = server.attempts();
    let mut waiters: Vec<_> = (0..4).map(|_| queued(&pool)).collect();
    pass(50).await;
    assert_eq!(server.attempts(), before + 1, "one is tried, though four wait");
    for waiter in &mut waiters {
        assert!(matches!(failed(waiter), CheckoutErrorKind::Rejected { .. }));
    }
    // Both hold-offs last 3.75 s at least; the first began 100 ms earlier.
    for _ in 0..3 {
        pool.retry();
        drop(lease(&pool).await);
    }
    let before = server.attempts();
    let held_off = Instant::now();
    while server.attempts() == before {
        drop(lease(&pool).await);
        pass(50).await;
    }
    assert!(held_off.elapsed() >= Duration::from_millis(3_700), "{:?}", held_off.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_may_be_chosen_anew() {
    let (_, budget, pool) = pool_of(4);
    let mut pins: Vec<_> = std::iter::from_fn(|| pool.try_pin()).collect();
    assert_eq!(pins.len(), 3);
    budget.set_pins(Some(1));
    pins.truncate(1);
    assert!(pool.try_pin().is_none());
    budget.set_pins(Some(2));
    assert!(pool.try_pin().is_some());
    budget.set_pins(None);
    assert_eq!(std::iter::from_fn(|| pool.try_pin()).take(9).collect::<Vec<_>>().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_ceiling_is_noticed() {
    let (server, budget) = (Server::new(), Budget::new(4));
    let ceiling = Ceiling::new(3);
    let ceilings = vec![Arc::clone(&ceiling)];
    let pool = pool_with(&server, &budget, PoolSettings { ceilings, ..settings("p") });
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(lease(&pool).await.unwrap());
    }
    let mut waiter = queued(&pool);
    ceiling.set_limit(4);
    pool.retry();
    held.push(granted_within(&mut waiter, 100).await);
    ceiling.set_limit(1);
    assert!(pool.exceeds_a_ceiling());
    pool.renew();
    held.into_iter().for_each(Lease::give_back);
    assert_eq!(server.open(), 0);
    lease(&pool).await.unwrap().give_back();
    assert!(!pool.exceeds_a_ceiling());
}
