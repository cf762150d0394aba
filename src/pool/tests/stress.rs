//! Real threads.

use super::fake::*;
use crate::pool::*;
use std::sync::atomic::Ordering::SeqCst;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_that_lend_leave_and_close_lose_nothing() {
    let (server, budget) = (Server::new(), Budget::new(4));
    *server.delay.lock().unwrap() = Duration::ZERO;
    let pools: Vec<_> =
        ["a", "b"].iter().map(|name| pool_with(&server, &budget, settings(name))).collect();
    let mut tasks = Vec::new();
    for client in 0..40_usize {
        let pool = Arc::clone(&pools[client % 2]);
        tasks.push(tokio::spawn(async move {
            for turn in 0..200_usize {
                let kind = (client * 31 + turn * 17) % 20;
                match pool.checkout() {
                    Checkout::Queued(ticket) if kind < 4 => {
                        if kind < 2 {
                            tokio::task::yield_now().await;
                        }
                        drop(ticket);
                    }
                    checkout => {
                        let lease = match checkout {
                            Checkout::Ready(lease) => lease,
                            Checkout::Queued(ticket) => ticket.lease().await.unwrap(),
                        };
                        if kind % 3 == 0 {
                            tokio::task::yield_now().await;
                        }
                        if kind == 19 { lease.close("test") } else { lease.give_back() }
                    }
                }
            }
        }));
    }
    for limit in [4, 2, 5, 1, 3, 4].into_iter().cycle().take(60) {
        budget.set_limit(limit);
        tokio::task::yield_now().await;
    }
    budget.set_limit(4);
    for task in tasks {
        task.await.unwrap();
    }
    assert!(server.open_most.load(SeqCst) <= 5, "{}", server.open_most.load(SeqCst));
    pools.iter().for_each(|pool| pool.close());
    // Openers for waiters that are gone may still be under way.
    let all_closed = async {
        while budget.in_use() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all_closed).await.expect("a permit leaked");
    assert_eq!(server.open(), 0);
    for pool in &pools {
        assert_eq!(pool.metrics().servers_active.get(), 0);
        assert_eq!(pool.metrics().servers_idle.get(), 0);
        assert_eq!(pool.metrics().queue_length.get(), 0);
    }
}
