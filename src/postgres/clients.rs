//! Who the clients are and who of them holds which server connection, for whoever looks: the page, `top`, the console, the
//! words of errors, and the limits on time. Written by the sessions, by the way.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::relay::Words;
use super::settings::Settings;
use crate::metrics::{Phase, now_ms, seconds};
use crate::net::{Address, Stream};
use crate::status::Holder;

/// Longest name of an application that is shown.
const APPLICATION_NAME_CHARS: usize = 64;

/// What a client does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// Nothing, without a connection.
    #[default]
    Idle,
    /// It waits for a connection.
    Waiting,
    /// It has one.
    Linked,
}

/// One client: what it does, and where its session hears what is wanted of it. As small as can be: a client that does nothing
/// is not much more than this. In this order: what each turn of its session looks at lies in one line of the cache.
#[derive(Debug)]
#[repr(C)]
pub struct Card {
    pid: i32,
    wanted: AtomicU8,
    doing: AtomicU8,
    /// Since when it does that, by the clock of its pool's seats.
    since_ms: AtomicU64,
    session: Mutex<OfSession>,
    who: OnceLock<Who>,
}

/// What changes of a client.
#[derive(Debug, Default)]
struct OfSession {
    waker: Option<Waker>,
    /// Once it is logged in.
    settings: Option<Arc<Settings>>,
}

/// What is known of a client once it is logged in.
#[derive(Debug)]
struct Who {
    address: Address,
    /// Our end.
    local: Option<Arc<Address>>,
    born_ms: u64,
    seats: Arc<Seats>,
}

/// What is wanted of a session: several things at once, perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(u8);

impl Wanted {
    /// To cancel what its client waits for.
    pub const CANCEL: Self = Self(1);
    /// To look whether one of its limits on time is over.
    pub const CLOCK: Self = Self(2);
    /// To send its client away.
    pub const LEAVE: Self = Self(4);

    /// Whether `one` is among them.
    #[must_use]
    pub fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }
}

impl Card {
    /// For a client that is being greeted.
    #[must_use]
    pub fn new(pid: i32) -> Self {
        Self {
            pid,
            wanted: AtomicU8::new(0),
            doing: AtomicU8::new(Doing::Idle as u8),
            since_ms: AtomicU64::new(0),
            session: Mutex::default(),
            who: OnceLock::new(),
        }
    }

    /// It is logged in, and comes from `address` to `local`. Once only; the first word counts.
    pub fn introduce(
        &self,
        (address, local): (Address, Option<Address>),
        settings: &Arc<Settings>,
        seats: &Arc<Seats>,
    ) {
        self.since_ms.store(seats.now_ms(), Relaxed);
        let local = local.map(|local| seats.local(local));
        let seats = Arc::clone(seats);
        if self.who.set(Who { address, local, born_ms: now_ms(), seats }).is_ok() {
            self.settled(settings);
        }
    }

    /// The number it was told at login.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Wants something of the session, and wakes it.
    pub fn want(&self, what: Wanted) {
        self.wanted.fetch_or(what.0, Release);
        // It stays: the session keeps it here once and for all.
        if let Some(waker) = &lock(&self.session).waker {
            waker.wake_by_ref();
        }
    }

    /// Whether something is wanted that was not taken yet. For a task that [`Card::poll_wanted`] wakes already.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Acquire) != 0
    }

    /// Ready when something is wanted that was not taken yet. Wakes the task of the last call, from then on each time.
    pub fn poll_wanted(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_wanted() {
            return Poll::Ready(());
        }
        {
            let waker = &mut lock(&self.session).waker;
            match waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        // It may have come between the look and the keeping.
        if self.is_wanted() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes all that is wanted.
    pub fn take_wanted(&self) -> Wanted {
        Wanted(self.wanted.swap(0, AcqRel))
    }

    /// Forgets one thing: it has been served, or came too late for anything.
    pub fn forget(&self, what: Wanted) {
        self.wanted.fetch_and(!what.0, AcqRel);
    }

    /// The connections of its pool, once it is logged in.
    #[must_use]
    pub fn seats(&self) -> Option<&Arc<Seats>> {
        self.who.get().map(|who| &who.seats)
    }

    /// When it logged in: milliseconds since 1970; 0 before that.
    #[must_use]
    pub fn born_ms(&self) -> u64 {
        self.who.get().map_or(0, |who| who.born_ms)
    }

    /// It does something else from now on, by the clock of its pool's seats or one that is finer.
    pub fn turn(&self, doing: Doing, now_ms: u64) {
        self.doing.store(doing as u8, Relaxed);
        self.since_ms.store(now_ms, Relaxed);
    }

    /// What it does, and since when by the clock of its pool's seats, in milliseconds.
    #[must_use]
    pub fn doing(&self) -> (Doing, u64) {
        let doing = match self.doing.load(Relaxed) {
            0 => Doing::Idle,
            1 => Doing::Waiting,
            _ => Doing::Linked,
        };
        (doing, self.since_ms.load(Relaxed))
    }

    /// Its settings have changed, and with them perhaps how it names itself.
    pub fn settled(&self, settings: &Arc<Settings>) {
        lock(&self.session).settings = Some(Arc::clone(settings));
    }

    /// How it names itself; empty if it doesn't.
    #[must_use]
    pub fn application_name(&self) -> String {
        let Some(settings) = lock(&self.session).settings.clone() else { return String::new() };
        let named = settings.asked.iter().find(|(name, _)| name == "application_name");
        let name = named.map_or("", |(_, value)| value);
        name.chars().filter(|one| !one.is_control()).take(APPLICATION_NAME_CHARS).collect()
    }

    /// Where it comes from, once it is logged in.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        self.who.get().map(|who| &who.address)
    }

    /// Our end of its connection, once it is logged in.
    #[must_use]
    pub fn local_address(&self) -> Option<&Address> {
        self.who.get().and_then(|who| who.local.as_deref())
    }
}

/// A server connection, and who holds it.
#[derive(Debug)]
pub struct Seat {
    /// The server's process.
    pub server_pid: i32,
    /// The way there.
    pub way: Way,
    words: Arc<Words>,
    /// Whether `held` tells of the present: who leaves needs no lock for that.
    taken: AtomicBool,
    held: Mutex<Option<Held>>,
}

/// How a server connection goes.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// When it was opened: milliseconds since 1970.
    pub born_ms: u64,
    /// The server's address and ours; `None` over a unix socket.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// Version and cipher; empty without encryption.
    pub encryption: String,
}

impl Way {
    /// Of a stream that was opened now.
    #[must_use]
    pub fn of(stream: &Stream) -> Self {
        Self { born_ms: now_ms(), ends: stream.ends(), encryption: stream.encryption() }
    }
}

/// Moments are those of the pool's metrics.
#[derive(Clone, Debug)]
pub struct Held {
    /// By whom.
    pub card: Arc<Card>,
    /// Since when.
    pub since_ns: u64,
    /// What is done with it.
    pub phase: Phase,
    /// Since when.
    pub phase_ns: u64,
    /// Since when there is a transaction, if there is one.
    pub transaction_ns: Option<u64>,
    /// What pins it.
    pub pin: Option<&'static str>,
    /// Whether it was reported as kept unused.
    pub reported: Reported,
}

/// Whether a connection that is kept unused was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// Not in this phase.
    No,
    /// Once.
    Yes,
}

impl Seat {
    /// Of a connection whose latest statement is kept in `words`.
    #[must_use]
    pub fn new(server_pid: i32, way: Way, words: Arc<Words>) -> Arc<Self> {
        let (taken, held) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { server_pid, way, words, taken, held })
    }

    /// A session has it from now on.
    pub fn take(&self, card: Arc<Card>, now_ns: u64) {
        self.words.clear();
        *lock(&self.held) = Some(Held {
            card,
            since_ns: now_ns,
            phase: Phase::Query,
            phase_ns: now_ns,
            transaction_ns: Some(now_ns),
            pin: None,
            reported: Reported::No,
        });
        self.taken.store(true, Release);
    }

    /// The session does something else with it, and whether something pins it.
    pub fn turn(&self, phase: Phase, pin: Option<&'static str>, now_ns: u64) {
        if let Some(held) = &mut *lock(&self.held) {
            held.transaction_ns = match phase {
                Phase::Pinned => None,
                Phase::Query | Phase::IdleInTransaction => held.transaction_ns.or(Some(now_ns)),
            };
            (held.phase, held.phase_ns, held.pin) = (phase, now_ns, pin);
            held.reported = Reported::No;
        }
    }

    /// One statement of several in a transaction has ended, the next has begun.
    pub fn next_statement(&self, now_ns: u64) {
        if let Some(held) = &mut *lock(&self.held) {
            held.phase_ns = now_ns;
            held.reported = Reported::No;
        }
    }

    /// One transaction of several has ended, the next has begun.
    pub fn next_transaction(&self, now_ns: u64) {
        if let Some(held) = &mut *lock(&self.held) {
            held.phase_ns = now_ns;
            held.transaction_ns = Some(now_ns);
            held.reported = Reported::No;
        }
    }

    /// Nobody has it from now on.
    pub fn leave(&self) {
        self.taken.store(false, Release);
    }

    /// Who has it.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        if self.taken.load(Acquire) { lock(&self.held).clone() } else { None }
    }

    /// It was reported as kept unused; `false` if that was done before.
    pub fn report(&self) -> bool {
        let mut held = lock(&self.held);
        let before = held.as_mut().map(|held| std::mem::replace(&mut held.reported, Reported::Yes));
        before == Some(Reported::No)
    }

    /// The latest statement on it, without literals.
    #[must_use]
    pub fn statement(&self) -> String {
        self.words.shape()
    }

    /// Who has it, as it is shown; `leak_ns`: from when on it counts as kept unused.
    #[must_use]
    pub fn holder(&self, user: &str, database: &str, now_ns: u64, leak_ns: u64) -> Option<Holder> {
        let held = self.held()?;
        let phase_ns = now_ns.saturating_sub(held.phase_ns);
        Some(Holder {
            client: u64::try_from(held.card.pid()).unwrap_or(0),
            application_name: held.card.application_name(),
            user: user.to_owned(),
            database: database.to_owned(),
            address: held.card.address().map(|address| address.to_string()).unwrap_or_default(),
            server_pid: i64::from(self.server_pid),
            phase: held.phase.as_str().to_owned(),
            phase_seconds: seconds(phase_ns),
            held_seconds: seconds(now_ns.saturating_sub(held.since_ns)),
            pin: held.pin.map(str::to_owned),
            statement: self.statement(),
            leaks: held.phase != Phase::Query && phase_ns >= leak_ns,
        })
    }
}

/// The server connections of one pool, and what all its clients have in common.
#[derive(Debug)]
pub struct Seats {
    /// The pool's name.
    pub pool: String,
    /// Its user.
    pub user: String,
    /// Its database.
    pub database: String,
    /// The metrics' clock, kept to the second: spares the hot path the real one.
    now_ms: AtomicU64,
    seats: Mutex<Vec<Weak<Seat>>>,
    /// Our ends of the clients' connections: mostly all have the same.
    locals: Mutex<Vec<Arc<Address>>>,
}

impl Seats {
    /// Of a pool without connections.
    #[must_use]
    pub fn new(pool: &str, user: &str, database: &str) -> Arc<Self> {
        let (pool, user, database) = (pool.to_owned(), user.to_owned(), database.to_owned());
        Arc::new(Self {
            pool,
            user,
            database,
            now_ms: AtomicU64::new(0),
            seats: Mutex::default(),
            locals: Mutex::default(),
        })
    }

    /// Our end of a client's connection, kept once for all who have the same.
    fn local(&self, address: Address) -> Arc<Address> {
        let mut locals = lock(&self.locals);
        if let Some(known) = locals.iter().find(|known| ***known == address) {
            return Arc::clone(known);
        }
        locals.retain(|known| Arc::strong_count(known) > 1);
        let local = Arc::new(address);
        locals.push(Arc::clone(&local));
        local
    }

    /// One more was opened.
    pub fn admit(&self, seat: &Arc<Seat>) {
        let mut seats = lock(&self.seats);
        seats.retain(|seat| seat.strong_count() > 0);
        seats.push(Arc::downgrade(seat));
    }

    /// Those that are open.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Seat>> {
        lock(&self.seats).iter().filter_map(Weak::upgrade).collect()
    }

    /// Sets the clock.
    pub fn tick(&self, now_ns: u64) {
        self.now_ms.store(now_ns / 1_000_000, Relaxed);
    }

    /// The clock: milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Who has one, the longest first. `now_ns` by the metrics' clock; `leak`: from when on one counts as kept unused, nought:
    /// never.
    #[must_use]
    pub fn holders(&self, now_ns: u64, leak: Duration) -> Vec<Holder> {
        let leak_ns = match leak.as_nanos() {
            0 => u64::MAX,
            leak => u64::try_from(leak).unwrap_or(u64::MAX),
        };
        let seats = self.all();
        let mut holders: Vec<_> = seats
            .iter()
            .filter_map(|seat| seat.holder(&self.user, &self.database, now_ns, leak_ns))
            .collect();
        holders.sort_by(|one, other| other.held_seconds.total_cmp(&one.held_seconds));
        holders
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
