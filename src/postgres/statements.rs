//! Prepared statements: what a session calls them, and what a server connection calls them.
//!
//! A statement is known by its text. Sessions map their names to statements; each server connection has given some of
//! them names of its own, which are never used twice there, so that no client's name can collide with them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::fast::RandomState;

use super::sql::{self, Findings, Quoting, Routines};

/// One distinct statement.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process, never used again.
    pub id: u64,
    /// The body of a Parse behind the name: text, zero, parameter types.
    pub body: Box<[u8]>,
    /// What running it may leave behind.
    pub findings: Findings,
    /// Which routines that was found with: see [`Registry::findings`].
    lore: u64,
}

/// The statements all sessions of a pool know, so that equal ones are one.
#[derive(Debug)]
pub struct Registry {
    /// Most statements known at once, and most bytes of them.
    limit: AtomicUsize,
    limit_bytes: AtomicUsize,
    next: AtomicU64,
    /// How often a plan was found to be void.
    epoch: AtomicU64,
    /// Whether a session has called `currval()` or `lastval()`.
    reads_sequences: AtomicBool,
    /// How often other routines were found than before; 0: none was ever that leaves something.
    lore: AtomicU64,
    routines: Mutex<Arc<Routines>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    hasher: RandomState,
    by_hash: HashMap<u64, Vec<Entry>, RandomState>,
    /// Entries at which those that nobody holds any more are swept out.
    sweep_at: usize,
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    settings: u64,
    statement: Weak<Statement>,
}

/// The registry holds as many statements as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Registry {
    /// For at most `limit` statements of at most `limit_bytes` bytes in all.
    #[must_use]
    pub fn new(limit: usize, limit_bytes: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            limit_bytes: AtomicUsize::new(limit_bytes),
            next: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            reads_sequences: AtomicBool::new(false),
            lore: AtomicU64::new(0),
            routines: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Changes how many statements it may know; those that are there stay.
    pub fn set_limits(&self, limit: usize, limit_bytes: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// How often a plan was found to be void, on whatever connection: older statements are to be parsed anew.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A plan was found to be void: a table has changed under it.
    pub fn plans_are_void(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a session of the pool has ever called `currval()` or `lastval()`.
    #[must_use]
    pub fn reads_sequences(&self) -> bool {
        self.reads_sequences.load(Ordering::Relaxed)
    }

    /// A session calls `currval()` or `lastval()`.
    pub fn sequence_read(&self) {
        self.reads_sequences.store(true, Ordering::Relaxed);
    }

    /// The routines of the database whose calls leave something; `None` while there are none.
    #[must_use]
    pub fn routines(&self) -> Option<Arc<Routines>> {
        if self.lore.load(Ordering::Acquire) == 0 {
            return None;
        }
        let routines = self.routines.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&routines))
    }

    /// The database has these.
    pub fn learn_routines(&self, routines: Routines) {
        let mut known = self.routines.lock().unwrap_or_else(PoisonError::into_inner);
        if **known != routines {
            *known = Arc::new(routines);
            self.lore.fetch_add(1, Ordering::Release);
        }
    }

    /// What running a statement may leave behind as things stand now: the routines it calls may have changed since.
    #[must_use]
    pub fn findings<'a>(&self, statement: &'a Statement, quoting: Quoting) -> Cow<'a, Findings> {
        if statement.lore == self.lore.load(Ordering::Acquire) {
            return Cow::Borrowed(&statement.findings);
        }
        Cow::Owned(self.read(&statement.body, quoting))
    }

    fn read(&self, body: &[u8], quoting: Quoting) -> Findings {
        let text = memchr::memchr(0, body).map_or(body, |end| &body[..end]);
        sql::read(text, quoting, self.routines().as_ref())
    }

    /// A statement that no other session shares (an unnamed one).
    #[must_use]
    pub fn lone(&self, body: &[u8], quoting: Quoting) -> Arc<Statement> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // Read first: routines that change meanwhile make the findings old, not wrong.
        let lore = self.lore.load(Ordering::Acquire);
        Arc::new(Statement { id, body: body.into(), findings: self.read(body, quoting), lore })
    }

    /// The statement with this body for sessions with these startup settings: under another `search_path` the same
    /// text is another statement, and so it is at another time if it says `'now'`.
    ///
    /// # Errors
    /// [`Full`] if it is a new one too many.
    pub fn intern(
        &self,
        body: &[u8],
        settings: u64,
        quoting: Quoting,
    ) -> Result<Arc<Statement>, Full> {
        if is_of_its_moment(body) {
            return Ok(self.lone(body, quoting));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = known.hasher.hash_one((settings, body));
        let entries = known.by_hash.get(&hash).map(Vec::as_slice).unwrap_or_default();
        let same = entries
            .iter()
            .filter(|entry| entry.settings == settings)
            .filter_map(|entry| entry.statement.upgrade())
            .find(|statement| *statement.body == *body);
        if let Some(statement) = same {
            return Ok(statement);
        }
        if known.is_full(self) {
            known.sweep();
            if known.is_full(self) {
                return Err(Full);
            }
        }
        let statement = self.lone(body, quoting);
        let entry = Entry { settings, statement: Arc::downgrade(&statement) };
        known.by_hash.entry(hash).or_default().push(entry);
        known.len += 1;
        known.bytes += body.len();
        if known.len >= known.sweep_at.max(1024) {
            known.sweep();
        }
        Ok(statement)
    }
}

impl Known {
    fn is_full(&self, registry: &Registry) -> bool {
        self.len >= registry.limit.load(Ordering::Relaxed)
            || self.bytes >= registry.limit_bytes.load(Ordering::Relaxed)
    }

    /// Drops the entries nobody holds; again when there are twice as many as are left.
    fn sweep(&mut self) {
        let mut bytes = 0;
        self.by_hash.retain(|_, entries| {
            entries.retain(|entry| match entry.statement.upgrade() {
                Some(statement) => {
                    bytes += statement.body.len();
                    true
                }
                None => false,
            });
            !entries.is_empty()
        });
        self.bytes = bytes;
        self.len = self.by_hash.values().map(Vec::len).sum();
        self.sweep_at = self.len * 2;
    }
}

/// Whether it may hold a literal that the server reads as the time at which it parses (PostgreSQL documentation,
/// "Special Values" of date and time).
fn is_of_its_moment(body: &[u8]) -> bool {
    memchr::memchr_iter(b'\'', body).any(|quote| {
        let text = body[quote + 1..].trim_ascii_start();
        let word = text.split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
        ["now", "today", "tomorrow", "yesterday"]
            .iter()
            .any(|moment| word.eq_ignore_ascii_case(moment.as_bytes()))
    })
}

/// How the rows of a statement look, as the server describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// There are none.
    NoRows,
    /// A fingerprint of the columns' names and types.
    Columns(u64),
    /// The description is too long to be read.
    Long,
}

/// A session's statements by the names the client gave them.
#[derive(Debug, Default)]
pub struct SessionStatements {
    /// By name.
    pub named: HashMap<Box<[u8]>, Arc<Statement>, RandomState>,
    /// The unnamed one.
    pub unnamed: Option<Arc<Statement>>,
    /// What the client was told of the rows of statements, by their numbers.
    told: HashMap<u64, Shape, RandomState>,
}

/// Statements of which more is remembered than there are names, before what has no name any more is forgotten.
const TOLD_SPARE: usize = 64;

impl SessionStatements {
    /// Forgets them all.
    pub fn clear(&mut self) {
        self.named = HashMap::default();
        self.unnamed = None;
        self.told = HashMap::default();
    }

    /// The names, with the numbers of their statements.
    #[must_use]
    pub fn names(&self) -> Vec<(Box<[u8]>, u64)> {
        self.named.iter().map(|(name, statement)| (name.clone(), statement.id)).collect()
    }

    /// What the client was told of a statement's rows.
    #[must_use]
    pub fn told(&self, statement: u64) -> Option<Shape> {
        self.told.get(&statement).copied()
    }

    /// The client is told. What is too long to be compared it counts as never told.
    pub fn note_told(&mut self, statement: u64, shape: Shape) {
        if self.told.len() > 2 * self.named.len() + TOLD_SPARE {
            let named: HashSet<u64, RandomState> =
                self.named.values().map(|statement| statement.id).collect();
            self.told.retain(|id, _| named.contains(id));
        }
        if shape == Shape::Long {
            self.told.remove(&statement);
        } else {
            self.told.insert(statement, shape);
        }
    }

    /// Whether a statement that gets a name may be one that the session has already: not if the client was told of its rows,
    /// which may look otherwise to whoever names it now.
    pub fn may_share(&mut self, statement: u64) -> bool {
        let told = self.told.contains_key(&statement);
        let named = told && self.named.values().any(|known| known.id == statement);
        if told && !named {
            self.told.remove(&statement);
        }
        !named
    }
}

/// The statements a server connection has parsed, and its names for them.
#[derive(Debug)]
pub struct ServerStatements {
    nonce: u64,
    next: u64,
    limit: usize,
    parsed: HashMap<u64, Parsed, RandomState>,
    clock: u64,
}

#[derive(Debug)]
struct Parsed {
    number: u64,
    used: u64,
    /// Kept, so that the next session with the same text finds it though no session has it now.
    _statement: Arc<Statement>,
    /// How its rows look here, once the server has said so: it never changes, or the server refuses it.
    shape: Option<Shape>,
}

/// A server-side name, written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerName([u8; Self::BYTES]);

impl ServerName {
    const BYTES: usize = 36;
    /// What all names of one connection begin with.
    const PREFIX: usize = 20;

    fn new(nonce: u64, number: u64) -> Self {
        let mut name = *b"tg_0000000000000000_000000000000000\0";
        hex(&mut name[3..19], nonce);
        hex(&mut name[20..35], number);
        Self(name)
    }

    /// The name alone.
    #[must_use]
    pub fn without_zero(&self) -> &[u8] {
        &self.0[..Self::BYTES - 1]
    }

    /// The name with its terminating zero.
    #[must_use]
    pub fn with_zero(&self) -> &[u8] {
        &self.0
    }
}

fn hex(out: &mut [u8], mut value: u64) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for slot in out.iter_mut().rev() {
        let digit = usize::try_from(value & 0xf).unwrap_or_default();
        *slot = DIGITS[digit];
        value >>= 4;
    }
}

impl ServerStatements {
    /// For a new server connection; `nonce` is random, so that no client can guess its names; at most `limit`
    /// statements are kept parsed.
    #[must_use]
    pub fn new(nonce: u64, limit: usize) -> Self {
        Self { nonce, next: 0, limit: limit.max(1), parsed: HashMap::default(), clock: 0 }
    }

    /// The server's name for a statement it has, which counts as a use.
    pub fn name_of(&mut self, id: u64) -> Option<ServerName> {
        self.clock += 1;
        let parsed = self.parsed.get_mut(&id)?;
        parsed.used = self.clock;
        Some(ServerName::new(self.nonce, parsed.number))
    }

    /// The name with this number.
    #[must_use]
    pub fn name(&self, number: u64) -> ServerName {
        ServerName::new(self.nonce, number)
    }

    /// A new name for a statement about to be parsed, and the number of the name that must be closed to stay in the
    /// limit.
    pub fn name_new(&mut self, statement: &Arc<Statement>) -> (ServerName, Option<u64>) {
        let evicted = if self.parsed.len() >= self.limit { self.evict() } else { None };
        self.clock += 1;
        self.next += 1;
        let kept = Arc::clone(statement);
        let parsed = Parsed { number: self.next, used: self.clock, _statement: kept, shape: None };
        self.parsed.insert(statement.id, parsed);
        (ServerName::new(self.nonce, self.next), evicted)
    }

    /// How the rows of a statement look here, if that was described.
    #[must_use]
    pub fn shape_of(&self, id: u64) -> Option<Shape> {
        self.parsed.get(&id)?.shape
    }

    /// The server has described a statement.
    pub fn note_shape(&mut self, id: u64, shape: Shape) {
        if let Some(parsed) = self.parsed.get_mut(&id) {
            parsed.shape = Some(shape);
        }
    }

    /// The server doesn't have it after all; gives the number of its name.
    pub fn forget(&mut self, id: u64) -> Option<u64> {
        self.parsed.remove(&id).map(|parsed| parsed.number)
    }

    /// The number of the name of a statement it has.
    #[must_use]
    pub fn number_of(&self, id: u64) -> Option<u64> {
        self.parsed.get(&id).map(|parsed| parsed.number)
    }

    /// The statement whose name has this number.
    #[must_use]
    pub fn numbered(&self, number: u64) -> Option<u64> {
        self.parsed.iter().find(|(_, parsed)| parsed.number == number).map(|(id, _)| *id)
    }

    /// Where a text holds a name of ours, and its number.
    #[must_use]
    pub fn name_in(&self, text: &[u8]) -> Option<(Range<usize>, u64)> {
        let known = ServerName::new(self.nonce, 0);
        let prefix = &known.without_zero()[..ServerName::PREFIX];
        let start = memchr::memmem::find(text, prefix)?;
        let end = start + known.without_zero().len();
        let digits = std::str::from_utf8(text.get(start + prefix.len()..end)?).ok()?;
        Some((start..end, u64::from_str_radix(digits, 16).ok()?))
    }

    /// Their plans may be void: forgets them all, and gives their names, so that they can be closed.
    pub fn retire(&mut self) -> Vec<ServerName> {
        let nonce = self.nonce;
        self.parsed.drain().map(|(_, parsed)| ServerName::new(nonce, parsed.number)).collect()
    }

    /// The server has none any more.
    pub fn clear(&mut self) {
        self.parsed.clear();
    }

    /// A name that no statement has or ever had.
    #[must_use]
    pub fn name_of_none(&self) -> ServerName {
        ServerName::new(self.nonce, 0)
    }

    fn evict(&mut self) -> Option<u64> {
        let (&id, _) = self.parsed.iter().min_by_key(|(_, parsed)| parsed.used)?;
        Some(self.parsed.remove(&id)?.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_statement_per_settings() {
        let registry = Registry::new(2_000, 1 << 20);
        let a = registry.intern(b"select 1\0\0\0", 0, Quoting::Standard).unwrap();
        let b = registry.intern(b"select 1\0\0\0", 0, Quoting::Standard).unwrap();
        let c = registry.intern(b"select 1\0\0\0", 1, Quoting::Standard).unwrap();
        assert!(Arc::ptr_eq(&a, &b));
        assert_ne!(a.id, c.id);
    }

    #[test]
    fn what_says_now_is_nobody_elses() {
        let registry = Registry::new(2_000, 1 << 20);
        for (text, shared) in [
            ("select 'now'::timestamptz", false),
            ("select date ' Yesterday'", false),
            ("select 'TODAY 12:00'::timestamp", false),
            ("select now(), 'nowhere', 'at now'", true),
            ("select '", true),
        ] {
            let twice = [(); 2].map(|()| registry.intern(text.as_bytes(), 0, Quoting::Standard));
            let [one, other] = twice.map(Result::unwrap);
            assert_eq!(Arc::ptr_eq(&one, &other), shared, "{text}");
        }
    }

    #[test]
    fn a_full_registry_refuses_new_ones_and_gives_known_ones() {
        let registry = Registry::new(2, 1 << 20);
        let a = registry.intern(b"a\0\0\0", 0, Quoting::Standard).unwrap();
        let b = registry.intern(b"b\0\0\0", 0, Quoting::Standard).unwrap();
        assert_eq!(registry.intern(b"c\0\0\0", 0, Quoting::Standard).unwrap_err(), Full);
        let again = registry.intern(b"a\0\0\0", 0, Quoting::Standard).unwrap();
        assert!(Arc::ptr_eq(&a, &again));
        drop(b);
        assert!(registry.intern(b"c\0\0\0", 0, Quoting::Standard).is_ok());
        let small = Registry::new(100, 8);
        let _held = small.intern(b"0123456789\0\0\0", 0, Quoting::Standard).unwrap();
        assert_eq!(small.intern(b"a\0\0\0", 0, Quoting::Standard).unwrap_err(), Full);
    }

    #[test]
    fn statements_nobody_holds_are_swept() {
        let registry = Registry::new(2_000, 1 << 20);
        for n in 0..10_000 {
            drop(
                registry
                    .intern(format!("select {n}\0\0\0").as_bytes(), 0, Quoting::Standard)
                    .unwrap(),
            );
        }
        assert!(registry.known.lock().unwrap().len <= 1024);
    }

    #[test]
    fn least_recently_used_is_evicted_and_names_are_never_reused() {
        let registry = Registry::new(2_000, 1 << 20);
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| registry.lone(text, Quoting::Standard));
        let mut server = ServerStatements::new(7, 2);
        let (one, _) = server.name_new(&a);
        let (two, evicted) = server.name_new(&b);
        assert_eq!(evicted, None);
        assert_eq!(server.name_of(a.id), Some(one));
        let (three, evicted) = server.name_new(&c);
        assert_eq!(evicted.map(|number| server.name(number)), Some(two));
        assert_eq!(server.name_of(b.id), None);
        let (again, evicted) = server.name_new(&b);
        assert_eq!(evicted.map(|number| server.name(number)), Some(one));
        assert_ne!(again, two);
        assert_ne!(again, three);
    }

    #[test]
    fn names_are_terminated_and_tell_their_parts() {
        let name = ServerName::new(0xab, 0x1f);
        assert_eq!(name.with_zero(), b"tg_00000000000000ab_00000000000001f\0");
        let server = ServerStatements::new(0xab, 1);
        let text = b"a tg_00000000000000ab_00000000000001f b";
        assert_eq!(server.name_in(text), Some((2..37, 0x1f)));
        assert_eq!(server.name_in(&text[..36]), None);
        assert_eq!(ServerStatements::new(0xac, 1).name_in(text), None);
    }
}
