//! Random histories of two pools against what must hold of any history.

use super::fake::*;
use crate::pool::*;
use proptest::prelude::*;
use std::collections::VecDeque;

#[derive(Clone, Debug)]
enum Step {
    Checkout(usize),
    /// A waiter hangs up.
    Leave(prop::sample::Index),
    /// A waiter looks whether it has been served.
    Look(prop::sample::Index),
    GiveBack(prop::sample::Index),
    Close(prop::sample::Index),
    Limit(usize),
    Restart,
    /// All are to be replaced.
    Renew(usize),
    /// All are to be replaced once one could be opened.
    Password(usize),
    Retry(usize),
    Mood(Mood),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use prop::sample::Index;
    let mood = prop_oneof![
        3 => Just(Mood::Accepts),
        1 => Just(Mood::Fails(Fault::Unreachable)),
        1 => Just(Mood::Fails(Fault::Refused)),
        1 => Just(Mood::Fails(Fault::Rejected)),
        1 => Just(Mood::Hangs),
    ];
    let step = prop_oneof![
        10 => (0..2_usize).prop_map(Step::Checkout),
        3 => any::<Index>().prop_map(Step::Leave),
        6 => any::<Index>().prop_map(Step::Look),
        8 => any::<Index>().prop_map(Step::GiveBack),
        2 => any::<Index>().prop_map(Step::Close),
        1 => (0..5_usize).prop_map(Step::Limit),
        1 => Just(Step::Restart),
        1 => (0..2_usize).prop_map(Step::Renew),
        1 => (0..2_usize).prop_map(Step::Password),
        1 => (0..2_usize).prop_map(Step::Retry),
        1 => mood.prop_map(Step::Mood),
        6 => prop_oneof![Just(0_u64), Just(50), Just(200), Just(6000)].prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..120)
}

struct World {
    server: Arc<Server>,
    budget: Arc<Budget>,
    pools: Vec<Arc<Pool<Fake>>>,
    /// In the order of their checkouts, with their pool.
    waiting: VecDeque<(usize, Ticket<Fake>)>,
    lent: Vec<Lease<Fake>>,
    /// No more than this may be open: what was open when the limit fell.
    allowed: usize,
}

impl World {
    fn new() -> Self {
        let (server, budget) = (Server::new(), Budget::new(3));
        let limits = |name: &str| PoolSettings {
            queue_limit: 12,
            idle: Duration::from_secs(20),
            lifetime: Duration::from_secs(40),
            jitter_percent: 10,
            ..settings(name)
        };
        let pools: Vec<_> =
            ["a", "b"].iter().map(|name| pool_with(&server, &budget, limits(name))).collect();
        for pool in &pools {
            tokio::spawn(pool.run_reaper());
        }
        let (waiting, lent) = (VecDeque::new(), Vec::new());
        Self { server, budget, pools, waiting, lent, allowed: 3 }
    }

    async fn step(&mut self, step: Step) {
        let waiting = self.waiting.len();
        let lent = self.lent.len();
        match step {
            Step::Checkout(at) => {
                assert!(
                    self.pools[at].lock().may_take_idle() || self.pools[at].account.idle() == 0
                );
                match self.pools[at].checkout() {
                    Checkout::Ready(lease) => self.lent.push(lease),
                    Checkout::Queued(ticket) => self.waiting.push_back((at, ticket)),
                }
            }
            Step::Leave(index) if waiting > 0 => {
                drop(self.waiting.remove(index.index(waiting)));
            }
            Step::Look(index) if waiting > 0 => self.look(index.index(waiting)),
            Step::GiveBack(index) if lent > 0 => {
                self.lent.swap_remove(index.index(lent)).give_back()
            }
            Step::Close(index) if lent > 0 => {
                self.lent.swap_remove(index.index(lent)).close("test")
            }
            Step::Limit(limit) => {
                self.allowed = self.budget.in_use().max(limit);
                self.budget.set_limit(limit);
            }
            Step::Restart => self.server.restart(),
            Step::Renew(at) => self.pools[at].renew(),
            Step::Password(at) => self.pools[at].renew_when_opened(),
            Step::Retry(at) => self.pools[at].retry(),
            Step::Mood(mood) => self.server.set(mood),
            Step::Pass(0) => tokio::task::yield_now().await,
            Step::Pass(ms) => pass(ms).await,
            _ => {}
        }
        self.check();
    }

    /// Looks at one waiter; whoever is served while an earlier one of the same pool waits has overtaken it.
    fn look(&mut self, index: usize) {
        let pool = self.waiting[index].0;
        let Poll::Ready(answer) = poll(&mut self.waiting[index].1) else { return };
        if answer.is_ok() {
            for (earlier, ticket) in self.waiting.iter_mut().take(index) {
                assert!(*earlier != pool || !ticket.is_waiting(), "overtaken");
            }
        }
        drop(self.waiting.remove(index));
        self.lent.extend(answer.ok());
    }

    fn check(&mut self) {
        let (limit, in_use) = (self.budget.limit(), self.budget.in_use());
        self.allowed = self.allowed.min(in_use).max(limit);
        assert!(in_use <= self.allowed, "{in_use} in use, {} allowed", self.allowed);
        assert!(self.server.open() <= in_use);
        let mut held = 0;
        for pool in &self.pools {
            let state = pool.lock();
            assert!(pool.account.idle() == 0 || state.may_take_idle(), "idle while somebody waits");
            assert_eq!(pool.connections.status().size + state.openers, pool.account.held());
            held += pool.account.held();
            let metrics = &pool.metrics;
            let gauges = metrics.servers_idle.get() + metrics.servers_active.get();
            assert_eq!(usize::try_from(gauges).unwrap(), pool.connections.status().size);
            // Whoever should have a connection opened and may, has one being opened.
            assert!(state.demand().is_none() || in_use >= limit, "a permit is free");
        }
        assert_eq!(held, in_use);
    }

    async fn end(mut self) {
        self.server.set(Mood::Accepts);
        self.budget.set_limit(2);
        self.lent.clear();
        pass(11_000).await;
        for (_, ticket) in &mut self.waiting {
            assert!(poll(ticket).is_ready(), "a waiter never ends");
        }
        self.waiting.clear();
        self.check();
        self.pools.iter().for_each(|pool| pool.close());
        pass(4000).await;
        assert_eq!((self.server.open(), self.budget.in_use()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_history_keeps_the_limit_the_order_and_every_permit(history in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for step in history {
                world.step(step).await;
            }
            world.end().await;
        });
    }
}
