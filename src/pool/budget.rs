//! The budget: how many connections to one upstream server may be open, shared fairly by its pools.
//!
//! Each connection holds a [`Permit`], from before it is opened until it is closed. Counting takes no lock, so a permit
//! may be dropped anywhere; whoever may have freed one then calls [`Budget::settle`] without holding a pool's lock.
//! Locks are taken in this order: members, a pool's state, a waiter's slot.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::ceiling::{Ceiling, Places};
use super::pins::Pins;

/// Most connections that a budget allows, however high its limit is set.
pub const CONNECTIONS_MAX: usize = 10_000;

/// How long a busy pool may keep a new connection, and how long a pool without any waits for one of a busy pool: bounds
/// how often connections are closed and opened when there are more busy pools than connections.
const TURN: Duration = Duration::from_millis(100);

/// How long after the server has refused a connection one more is tried, for those who wait: at first, and at most after
/// further refusals.
const RAISE_FIRST: Duration = Duration::from_secs(5);
const RAISE_LONGEST: Duration = Duration::from_secs(60);
/// How long after one more was given the next is tried.
const RAISE_AGAIN: Duration = Duration::from_secs(1);

/// The stamp of nobody.
pub(super) const NOBODY: u64 = u64::MAX;

/// How many connections to one upstream server may be open or being opened; shared by all pools of that server.
pub struct Budget {
    pins: Arc<Pins>,
    born: Instant,
    /// Most connections now.
    limit: AtomicUsize,
    plan: Mutex<Plan>,
    in_use: AtomicUsize,
    /// Idle connections of all members.
    idle: AtomicUsize,
    /// Members with a waiter for whom a connection should be opened.
    demanding: AtomicUsize,
    members: Mutex<Vec<Entry>>,
}

/// What the limit comes from.
struct Plan {
    configured: usize,
    /// What the server is known to give, if that is less.
    granted: Option<Granted>,
    reserve: Reserve,
}

/// The server has refused a connection: the limit goes down to what it gave, and up again one by one.
struct Granted {
    limit: usize,
    /// The server's words.
    words: String,
    pause: Duration,
    raise_at: Instant,
    step: Step,
}

/// Whether the latest change of the limit was a raise that nobody has tried yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Down,
    Up,
}

/// Connections kept for those who have waited long.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReserveSettings {
    /// How many.
    pub size: usize,
    /// How long one must have waited.
    pub after: Duration,
}

struct Reserve {
    settings: ReserveSettings,
    state: ReserveState,
}

/// Changed once a second.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReserveState {
    /// Left when somebody has waited long enough.
    Closed,
    /// Left when nobody waits any more.
    Open,
}

impl Plan {
    fn limit(&self) -> usize {
        let reserve = match self.reserve.state {
            ReserveState::Open => self.reserve.settings.size,
            ReserveState::Closed => 0,
        };
        let asked = self.configured.saturating_add(reserve).min(CONNECTIONS_MAX);
        self.granted.as_ref().map_or(asked, |granted| granted.limit.min(asked))
    }
}

struct Entry {
    account: Arc<Account>,
    pool: Weak<dyn Member>,
}

/// A pool, as its budget sees it. Called with the members' lock held.
pub(super) trait Member: Send + Sync {
    /// Opens a connection for a waiter.
    ///
    /// # Errors
    /// Gives the permit back if nobody needs it any more, having said so in its account.
    fn open(self: Arc<Self>, permit: Permit) -> Result<(), Permit>;
    /// Closes an idle connection to make room for another pool.
    fn evict_idle(&self) -> Option<Permit>;
    /// The budget has a new limit.
    fn limit_changed(&self, limit: usize);
}

/// What a budget knows of one of its pools without locking it. Only the pool writes, under its lock.
pub(super) struct Account {
    budget: Arc<Budget>,
    ceilings: Vec<Arc<Ceiling>>,
    held: AtomicUsize,
    idle: AtomicUsize,
    oldest: AtomicU64,
    demand: AtomicU64,
    /// When it opened its latest connection.
    opened: AtomicU64,
}

/// The right to have one connection open; dropping it ends the right.
pub(super) struct Permit {
    account: Arc<Account>,
    places: Places,
}

impl Budget {
    /// A budget of `limit` connections, at most [`CONNECTIONS_MAX`].
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Self::with_pins(limit, None)
    }

    /// As [`Budget::new`], with so many connections that may be pinned at once instead of all but one.
    #[must_use]
    pub fn with_pins(limit: usize, pinned: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            pins: Pins::new(limit, pinned),
            born: Instant::now(),
            limit: AtomicUsize::new(limit.min(CONNECTIONS_MAX)),
            plan: Mutex::new(Plan {
                configured: limit.min(CONNECTIONS_MAX),
                granted: None,
                reserve: Reserve {
                    settings: ReserveSettings::default(),
                    state: ReserveState::Closed,
                },
            }),
            in_use: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            demanding: AtomicUsize::new(0),
            members: Mutex::default(),
        })
    }

    /// Changes the limit, to at most [`CONNECTIONS_MAX`]. A lower one closes idle connections at once and lent ones
    /// as they are given back; a higher one serves waiters at once.
    pub fn set_limit(&self, limit: usize) {
        {
            let mut plan = self.plan();
            plan.configured = limit.min(CONNECTIONS_MAX);
            plan.granted = None;
        }
        self.apply_plan();
        // What is set has changed even where what holds has not.
        let members = self.members();
        for pool in members.iter().filter_map(|entry| entry.pool.upgrade()) {
            pool.limit_changed(self.limit());
        }
    }

    /// Changes how many connections may be pinned at once; `None`: all but one.
    pub fn set_pins(&self, pinned: Option<usize>) {
        // Under this lock the limit stays what it is.
        let _members = self.members();
        self.pins.choose(self.limit(), pinned);
    }

    /// Keeps connections beyond the limit for those who have waited long.
    pub fn set_reserve(&self, settings: ReserveSettings) {
        self.plan().reserve.settings = settings;
    }

    /// The limit as it was set.
    #[must_use]
    pub fn configured(&self) -> usize {
        self.plan().configured
    }

    /// Why the limit is less than what was set, in the server's words, if it is.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        let plan = self.plan();
        let granted = plan.granted.as_ref()?;
        (granted.limit < plan.configured).then(|| granted.words.clone())
    }

    /// The server refused a connection, as it has no more: the limit goes down to what is open. Call it after the permit
    /// for that connection is dropped.
    pub(super) fn refused(&self, words: &str) {
        let open = self.in_use().max(1);
        {
            let mut plan = self.plan();
            if open >= plan.limit() && plan.granted.is_none() {
                // Others closed theirs meanwhile, or opened them: it is tried again as any failure is.
                return;
            }
            let limit = open.min(plan.limit());
            let pause = match &plan.granted {
                Some(granted) if granted.step == Step::Up => {
                    granted.pause.saturating_mul(2).min(RAISE_LONGEST)
                }
                Some(granted) => granted.pause,
                None => RAISE_FIRST,
            };
            let raise_at = Instant::now() + pause;
            let words = words.to_owned();
            plan.granted = Some(Granted { limit, words, pause, raise_at, step: Step::Down });
        }
        self.apply_plan();
    }

    /// The server gave a connection: if that was one more than it had given before, the next is tried soon.
    pub(super) fn opened(&self) {
        let mut plan = self.plan();
        let Some(granted) = &mut plan.granted else { return };
        if granted.step == Step::Up && self.in_use() >= granted.limit {
            granted.step = Step::Down;
            granted.pause = RAISE_FIRST;
            granted.raise_at = Instant::now() + RAISE_AGAIN;
        }
    }

    /// Looks once a second whether the limit may go up: by one that the server refused before, or by the reserve.
    pub(super) fn review(&self) {
        let oldest = self.oldest_demand();
        {
            let mut plan = self.plan();
            let now = Instant::now();
            let configured = plan.configured.saturating_add(plan.reserve.settings.size);
            if let Some(granted) = &mut plan.granted
                && oldest == NOBODY
                && granted.step == Step::Up
                && self.in_use() < granted.limit
            {
                // Nobody has tried it: it is not known to be given.
                granted.limit = granted.limit.saturating_sub(1).max(1);
                granted.step = Step::Down;
            }
            if let Some(granted) = &mut plan.granted
                && oldest != NOBODY
                && granted.raise_at <= now
                && self.in_use() >= granted.limit
            {
                granted.limit += 1;
                granted.step = Step::Up;
                granted.raise_at = now + granted.pause;
            }
            if plan.granted.as_ref().is_some_and(|granted| granted.limit > configured) {
                plan.granted = None;
            }
            let reserve = &mut plan.reserve;
            let long = self.stamp(now).saturating_sub(oldest.min(self.stamp(now)));
            let long = Duration::from_nanos(long) >= reserve.settings.after;
            reserve.state = match reserve.state {
                _ if oldest == NOBODY || reserve.settings.size == 0 => ReserveState::Closed,
                ReserveState::Closed if long => ReserveState::Open,
                state => state,
            };
        }
        self.apply_plan();
    }

    /// The oldest waiter's stamp among all pools.
    fn oldest_demand(&self) -> u64 {
        let members = self.members();
        members.iter().map(|entry| entry.account.oldest.load(SeqCst)).min().unwrap_or(NOBODY)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the limit in line with the plan.
    fn apply_plan(&self) {
        let limit = self.plan().limit();
        if limit == self.limit() {
            return;
        }
        {
            let members = self.members();
            let before = self.limit.swap(limit, SeqCst);
            self.pins.connections_changed(before, limit);
            while self.is_overdrawn() {
                let Some(permit) = evict(&members, |_| true) else { break };
                drop(permit);
            }
            for pool in members.iter().filter_map(|entry| entry.pool.upgrade()) {
                pool.limit_changed(limit);
            }
        }
        self.settle();
    }

    /// Most connections that may be open.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.load(SeqCst)
    }

    /// Connections open or being opened. More than the limit for as long as a lowered limit is not paid off.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use.load(SeqCst)
    }

    pub(super) fn pins(&self) -> &Arc<Pins> {
        &self.pins
    }

    pub(super) fn is_overdrawn(&self) -> bool {
        self.in_use() > self.limit()
    }

    /// The order of waiters across pools: nanoseconds since the budget was made.
    pub(super) fn stamp(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_nanos()).unwrap_or(NOBODY - 1)
    }

    pub(super) fn join(self: &Arc<Self>, ceilings: Vec<Arc<Ceiling>>) -> Arc<Account> {
        Arc::new(Account {
            budget: Arc::clone(self),
            ceilings,
            held: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            oldest: AtomicU64::new(NOBODY),
            demand: AtomicU64::new(NOBODY),
            opened: AtomicU64::new(0),
        })
    }

    pub(super) fn admit(&self, account: &Arc<Account>, pool: Weak<dyn Member>) {
        let mut members = self.members();
        members.retain(|entry| entry.pool.strong_count() > 0);
        members.push(Entry { account: Arc::clone(account), pool });
    }

    /// Opens connections for the oldest waiters of all pools, as far as the limit and closing idle ones allows.
    ///
    /// Each change that could allow one more is published before this is called, so the last caller of two at the same
    /// time sees the other's change. Never called with a pool's lock held.
    pub(super) fn settle(&self) {
        if !self.may_open() {
            return;
        }
        let members = self.members();
        while self.may_open() {
            let able = members.iter().filter(|entry| may_have_one(&members, &entry.account));
            let oldest = able.min_by_key(|entry| entry.account.demand.load(SeqCst));
            let Some(entry) = oldest else { return };
            let Some(pool) = entry.pool.upgrade() else { return };
            if entry.account.demand.load(SeqCst) == NOBODY {
                return;
            }
            let Some(permit) = self.find_permit(&members, &entry.account) else { return };
            // Refused: the waiter is gone, which its account says now.
            drop(pool.open(permit));
        }
    }

    fn may_open(&self) -> bool {
        self.demanding.load(SeqCst) > 0
            && (self.in_use() < self.limit() || self.idle.load(SeqCst) > 0)
    }

    fn find_permit(&self, members: &[Entry], account: &Arc<Account>) -> Option<Permit> {
        loop {
            if let Some(permit) = account.reserve() {
                return Some(permit);
            }
            let full = account.full_ceilings().next();
            let below = |other: &Account| full.is_none_or(|full| other.is_below(full));
            // The last idle ones may have been closed by their server already.
            let Some(permit) = evict(members, below) else { return account.reserve() };
            if !self.is_overdrawn()
                && let Some(permit) = permit.hand_to(account)
            {
                return Some(permit);
            }
        }
    }

    /// Whether a connection that `mine` could hand to its own next waiter is owed to another pool: to one whose waiter
    /// came earlier and which has at least two connections less, or has none and waited for its turn while `mine` had
    /// one. Not to one whose ceiling would keep it from opening another all the same.
    pub(super) fn owes_elsewhere(&self, mine: &Account) -> bool {
        let oldest = mine.oldest.load(SeqCst);
        let mine_demands = usize::from(mine.demand.load(SeqCst) != NOBODY);
        if oldest == NOBODY || self.demanding.load(SeqCst) <= mine_demands {
            return false;
        }
        let members = self.members();
        if members.len() < 2 {
            return false;
        }
        let turn = u64::try_from(TURN.as_nanos()).unwrap_or(NOBODY);
        let due = self.stamp(Instant::now()).saturating_sub(turn);
        let had_turn = mine.opened.load(SeqCst) <= due;
        members.iter().any(|entry| {
            let demand = entry.account.demand.load(SeqCst);
            let held = entry.account.held();
            let owed = mine.held() >= held + 2 || (held == 0 && had_turn && demand <= due);
            demand < oldest && owed && entry.account.full_ceilings().all(|full| mine.is_below(full))
        })
    }

    fn members(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether its ceilings let a pool open one more connection, if need be by closing an idle one of another pool.
fn may_have_one(members: &[Entry], account: &Account) -> bool {
    let frees = |entry: &Entry, full| entry.account.idle() > 0 && entry.account.is_below(full);
    account.full_ceilings().all(|full| members.iter().any(|entry| frees(entry, full)))
}

/// Closes an idle connection of the pool that has most of them, among those that `may` lose one.
fn evict(members: &[Entry], may: impl Fn(&Account) -> bool) -> Option<Permit> {
    loop {
        let able = members.iter().filter(|entry| may(&entry.account));
        let entry = able.max_by_key(|entry| entry.account.idle())?;
        if entry.account.idle() == 0 {
            return None;
        }
        // None: the server had closed them all, and the account says so now.
        if let Some(permit) = entry.pool.upgrade()?.evict_idle() {
            return Some(permit);
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit())
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}

impl Account {
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// A permit, if the limit allows one more.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Permit> {
        let places = Places::take(&self.ceilings)?;
        let limit = self.budget.limit();
        self.budget
            .in_use
            .fetch_update(SeqCst, SeqCst, |used| (used < limit).then_some(used + 1))
            .ok()?;
        self.held.fetch_add(1, SeqCst);
        Some(Permit { account: Arc::clone(self), places })
    }

    /// Those of its ceilings that are reached.
    fn full_ceilings(&self) -> impl Iterator<Item = &Arc<Ceiling>> {
        self.ceilings.iter().filter(|ceiling| ceiling.is_reached())
    }

    /// Whether more connections are open below one of its ceilings than may be.
    pub(super) fn exceeds_a_ceiling(&self) -> bool {
        self.ceilings.iter().any(|ceiling| ceiling.is_exceeded())
    }

    fn is_below(&self, ceiling: &Arc<Ceiling>) -> bool {
        self.ceilings.iter().any(|mine| Arc::ptr_eq(mine, ceiling))
    }

    /// Connections of this pool, those being opened included.
    pub(super) fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.load(SeqCst)
    }

    pub(super) fn idle_added(&self) {
        self.idle.fetch_add(1, SeqCst);
        self.budget.idle.fetch_add(1, SeqCst);
    }

    pub(super) fn idle_removed(&self, count: usize) {
        self.idle.fetch_sub(count, SeqCst);
        self.budget.idle.fetch_sub(count, SeqCst);
    }

    pub(super) fn opened_now(&self) {
        self.opened.store(self.budget.stamp(Instant::now()), SeqCst);
    }

    /// Says who waits: the stamp of the oldest waiter, and of the oldest for whom no connection is being opened. Under the
    /// pool's lock.
    pub(super) fn publish(&self, oldest: u64, demand: u64) {
        // Nobody else writes here, and mostly it is somebody else at the end of the queue: then all is said already, and a
        // look costs less than a locked instruction.
        if self.oldest.load(SeqCst) != oldest {
            self.oldest.store(oldest, SeqCst);
        }
        let before = self.demand.load(SeqCst);
        if before == demand {
            return;
        }
        // Never fewer are counted than say so.
        if before == NOBODY {
            self.budget.demanding.fetch_add(1, SeqCst);
        }
        self.demand.store(demand, SeqCst);
        if demand == NOBODY {
            self.budget.demanding.fetch_sub(1, SeqCst);
        }
    }
}

impl Permit {
    /// Moves the permit to another pool of the same budget, if that one's ceilings allow it.
    fn hand_to(mut self, account: &Arc<Account>) -> Option<Self> {
        // The old places first: the two pools may share a ceiling.
        drop(std::mem::take(&mut self.places));
        self.places = Places::take(&account.ceilings)?;
        account.held.fetch_add(1, SeqCst);
        let before = std::mem::replace(&mut self.account, Arc::clone(account));
        before.held.fetch_sub(1, SeqCst);
        Some(self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.held.fetch_sub(1, SeqCst);
        self.account.budget.in_use.fetch_sub(1, SeqCst);
    }
}
