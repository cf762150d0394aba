//! Several pools, one budget.

use super::fake::*;
use crate::pool::*;

fn pools(limit: usize, count: usize) -> (Arc<Server>, Arc<Budget>, Vec<Arc<Pool<Fake>>>) {
    let (server, budget) = (Server::new(), Budget::new(limit));
    let pool = |at: usize| pool_with(&server, &budget, settings(&format!("p{at}")));
    let pools = (0..count).map(pool).collect();
    (Arc::clone(&server), Arc::clone(&budget), pools)
}

#[tokio::test(start_paused = true)]
async fn another_pools_idle_connection_is_closed_to_make_room() {
    let (server, budget, pools) = pools(2, 2);
    let (one, two) = (lease(&pools[0]).await.unwrap(), lease(&pools[0]).await.unwrap());
    one.give_back();
    let mut waiter = queued(&pools[1]);
    pass(50).await;
    granted(&mut waiter).give_back();
    assert_eq!((server.open(), budget.in_use()), (2, 2));
    // The same at give-back: the connection is idle for no time at all.
    let held = ready(&pools[1]);
    let mut waiter = queued(&pools[1]);
    two.give_back();
    pass(50).await;
    granted(&mut waiter).give_back();
    held.give_back();
    assert_eq!((server.open(), pools[1].metrics().servers_idle.get()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_free_permit_goes_to_the_oldest_waiter_of_all_pools() {
    let (_, _, pools) = pools(1, 3);
    let held = lease(&pools[2]).await.unwrap();
    let mut late = queued(&pools[0]);
    drop(late);
    let mut early = queued(&pools[1]);
    pass(50).await;
    late = queued(&pools[0]);
    held.close("test");
    pass(50).await;
    assert!(poll(&mut late).is_pending());
    granted(&mut early).close("test");
    pass(50).await;
    granted(&mut late).give_back();
}

/// Clients that come back as soon as they are served, for `ms`; how often each pool served.
async fn crowd(pools: &[Arc<Pool<Fake>>], clients: usize, ms: u64) -> Vec<u64> {
    let mut tasks = Vec::new();
    for pool in pools {
        for _ in 0..clients {
            let pool = Arc::clone(pool);
            tasks.push(tokio::spawn(async move {
                loop {
                    let lease = lease(&pool).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(7)).await;
                    lease.give_back();
                }
            }));
        }
    }
    for _ in 0..ms {
        tokio::time::advance(Duration::from_millis(1)).await;
        breathe().await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    breathe().await;
    pools.iter().map(|pool| pool.metrics().checkouts.get()).collect()
}

#[tokio::test(start_paused = true)]
async fn busy_pools_come_to_equal_shares_without_churn() {
    let (server, budget, pools) = pools(6, 2);
    // The first pool has taken everything before the second one's clients come.
    let first = {
        let pool = Arc::clone(&pools[0]);
        tokio::spawn(async move { crowd(&[pool], 20, 3000).await })
    };
    breathe().await;
    let served = crowd(&pools[1..], 20, 2000).await;
    assert!(served[0] > 500, "{served:?}");
    assert_eq!(budget.in_use(), 6);
    assert!(server.attempts() < 15, "{} connections for 6", server.attempts());
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn no_pool_starves_when_there_are_more_pools_than_connections() {
    let (server, budget, pools) = pools(2, 5);
    let served = crowd(&pools, 5, 10_000).await;
    // No wait of 10 s ran out (the tasks would have panicked), and everyone was served often.
    assert!(served.iter().all(|served| *served > 50), "{served:?}");
    assert!(budget.in_use() <= 2);
    assert!(server.open_most.load(std::sync::atomic::Ordering::SeqCst) <= 2);
    // At 7 ms a transaction there would be thousands if each gave its connection to another pool.
    assert!(server.attempts() < 300, "{}", server.attempts());
}
