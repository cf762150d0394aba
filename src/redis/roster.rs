//! Who waits for which keys, in the order of their coming, and which call to the server asks for which of them.
//!
//! A call takes from one end of its keys, and so serves one class of waiters. Of two calls for one key the server would serve the
//! one it had first, whoever stands behind it. So a key is asked for by one call alone: that of the class whose waiter is first in
//! the key's line. Another class that comes to be first asks when that call is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::pop::{Class, KeyName};

type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
type HashSet<T> = std::collections::HashSet<T, RandomState>;

/// A waiter's number: whoever came later has a higher one.
pub type Ticket = u64;

/// Those who wait for values of one kind in one database.
#[derive(Debug, Default)]
pub struct Roster {
    lines: HashMap<KeyName, Line>,
    groups: HashMap<Arc<Class>, Group>,
    classes: HashMap<Ticket, Arc<Class>>,
    /// Classes whose call must end, or may be made, or that have a waiter less.
    changed: Vec<Arc<Class>>,
}

/// All who wait for one key.
#[derive(Debug, Default)]
struct Line {
    waiters: BTreeMap<Ticket, Arc<Class>>,
    held: Held,
}

/// Whose a key is for now.
#[derive(Debug, Default, PartialEq, Eq)]
enum Held {
    /// Nobody's: the first one's class may ask for it.
    #[default]
    Free,
    /// This class's call asks for it.
    Called(Arc<Class>),
    /// Something of it is on its way back that a call of this class took.
    Returning(Arc<Class>),
}

/// All waiters of one class.
#[derive(Debug, Default)]
struct Group {
    waiters: BTreeMap<Ticket, Vec<KeyName>>,
    /// How many of them want each key.
    wanted: HashMap<KeyName, usize>,
    /// Keys in whose lines one of them is first.
    leads: HashSet<KeyName>,
    call: Call,
}

/// A class's call to the server.
#[derive(Debug, Default)]
enum Call {
    #[default]
    None,
    /// For these keys.
    Running(Vec<KeyName>),
    /// It asks for a key in whose line another class is first, or nobody, or not for one that it could ask for.
    Stale(Vec<KeyName>),
}

impl Line {
    fn first(&self) -> Option<(Ticket, &Arc<Class>)> {
        self.waiters.first_key_value().map(|(ticket, class)| (*ticket, class))
    }

    fn first_class(&self) -> Option<&Arc<Class>> {
        self.first().map(|(_, class)| class)
    }

    fn is_over(&self) -> bool {
        self.waiters.is_empty() && self.held == Held::Free
    }
}

impl Call {
    fn spoil(&mut self) {
        if let Self::Running(keys) = self {
            *self = Self::Stale(std::mem::take(keys));
        }
    }
}

impl Roster {
    /// Somebody waits for any of `keys`.
    pub fn join(&mut self, ticket: Ticket, class: &Arc<Class>, keys: &[KeyName]) {
        let group = self.groups.entry(Arc::clone(class)).or_default();
        group.waiters.insert(ticket, keys.to_vec());
        self.classes.insert(ticket, Arc::clone(class));
        for key in keys {
            let come = |line: &mut Line| line.waiters.insert(ticket, Arc::clone(class)).is_none();
            if self.change(key, come)
                && let Some(group) = self.groups.get_mut(class)
            {
                *group.wanted.entry(KeyName::clone(key)).or_default() += 1;
            }
        }
    }

    /// It waits no more.
    pub fn leave(&mut self, ticket: Ticket) {
        let Some(class) = self.classes.remove(&ticket) else { return };
        let group = self.groups.get_mut(&class);
        for key in group.and_then(|group| group.waiters.remove(&ticket)).unwrap_or_default() {
            if self.change(&key, |line| line.waiters.remove(&ticket).is_some())
                && let Some(group) = self.groups.get_mut(&class)
                && let Some(count) = group.wanted.get_mut(&key)
            {
                *count -= 1;
                if *count == 0 {
                    group.wanted.remove(&key);
                }
            }
        }
        self.forget(&class);
        self.note_change(class);
    }

    /// Changes who stands in a key's line, and says whether that made a difference.
    fn change(&mut self, key: &KeyName, change: impl FnOnce(&mut Line) -> bool) -> bool {
        let line = self.lines.entry(KeyName::clone(key)).or_default();
        let before = line.first_class().cloned();
        let changed = change(line);
        let over = line.is_over();
        let first = line.first_class().cloned();
        if before != first {
            if let Some(group) = before.and_then(|class| self.groups.get_mut(&class)) {
                group.leads.remove(key);
            }
            if let Some(group) = first.as_ref().and_then(|class| self.groups.get_mut(class)) {
                group.leads.insert(KeyName::clone(key));
            }
            let concerned = match &line.held {
                Held::Free => first,
                Held::Called(class) => Some(Arc::clone(class)),
                Held::Returning(_) => None,
            };
            self.spoil(concerned);
        }
        if over {
            self.lines.remove(key);
        }
        changed
    }

    /// The call of this class, if one is running, asks for the wrong keys; if none is, one may be made.
    fn spoil(&mut self, class: Option<Arc<Class>>) {
        let Some(class) = class else { return };
        if let Some(group) = self.groups.get_mut(&class) {
            group.call.spoil();
        }
        self.note_change(class);
    }

    fn note_change(&mut self, class: Arc<Class>) {
        if !self.changed.contains(&class) {
            self.changed.push(class);
        }
    }

    /// The key is nobody's any more, `class`'s neither.
    fn free(&mut self, key: &KeyName, class: &Arc<Class>) {
        let Some(line) = self.lines.get_mut(key) else { return };
        line.held = Held::Free;
        match line.first_class() {
            None => {
                self.lines.remove(key);
            }
            Some(first) if first == class => {}
            Some(first) => {
                let first = Arc::clone(first);
                self.spoil(Some(first));
            }
        }
    }

    fn forget(&mut self, class: &Arc<Class>) {
        let over = |group: &Group| group.waiters.is_empty() && matches!(group.call, Call::None);
        if self.groups.get(class).is_some_and(over) {
            self.groups.remove(class);
        }
    }

    /// Who gets what a call of `class` has brought from `key`: the first one in its line. If that waits for another class, nobody
    /// does, and it goes back to where the first one takes it from. What was moved can't go back as if nothing had been: it is for
    /// the first one who wanted that.
    #[must_use]
    pub fn receiver(&self, class: &Arc<Class>, key: &[u8]) -> Option<Ticket> {
        if let Class::Move { .. } = **class {
            return self.first(class);
        }
        let (ticket, first) = self.lines.get(key)?.first()?;
        (first == class).then_some(ticket)
    }

    /// Whether a call is running that may bring it something.
    #[must_use]
    pub fn may_receive(&self, ticket: Ticket) -> bool {
        let Some(class) = self.classes.get(&ticket) else { return false };
        let called = |key: &KeyName| {
            let held = self.lines.get(key).map(|line| &line.held);
            matches!(held, Some(Held::Called(by)) if by == class)
        };
        let keys = self.groups.get(class).and_then(|group| group.waiters.get(&ticket));
        keys.is_some_and(|keys| {
            keys.iter().any(|key| called(key) && self.receiver(class, key) == Some(ticket))
        })
    }

    /// Who of `class` has waited longest.
    #[must_use]
    pub fn first(&self, class: &Arc<Class>) -> Option<Ticket> {
        self.groups.get(class)?.waiters.keys().next().copied()
    }

    /// All of `class`, in their order.
    #[must_use]
    pub fn everybody(&self, class: &Arc<Class>) -> Vec<Ticket> {
        self.groups
            .get(class)
            .map(|group| group.waiters.keys().copied().collect())
            .unwrap_or_default()
    }

    /// What it waits with.
    #[must_use]
    pub fn class_of(&self, ticket: Ticket) -> Option<&Arc<Class>> {
        self.classes.get(&ticket)
    }

    /// Whether somebody waits for `key`.
    #[must_use]
    pub fn wants(&self, key: &[u8]) -> bool {
        self.lines.get(key).is_some_and(|line| !line.waiters.is_empty())
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// How many keys those of `class` wait for.
    #[must_use]
    pub fn key_count(&self, class: &Arc<Class>) -> usize {
        self.groups.get(class).map_or(0, |group| group.wanted.len())
    }

    /// How many bytes they are.
    #[must_use]
    pub fn key_bytes(&self, class: &Arc<Class>) -> usize {
        let group = self.groups.get(class);
        group.map_or(0, |group| group.wanted.keys().map(|key| key.len()).sum())
    }

    fn may_ask(&self, key: &KeyName) -> bool {
        self.lines.get(key).is_some_and(|line| line.held == Held::Free)
    }

    /// Whether there is a key that `class` may ask for.
    #[must_use]
    pub fn has_keys(&self, class: &Arc<Class>) -> bool {
        self.groups.get(class).is_some_and(|group| group.leads.iter().any(|key| self.may_ask(key)))
    }

    /// The keys that `class` may ask for: the longest waiter's first, each one's in their own order.
    #[must_use]
    pub fn keys(&self, class: &Arc<Class>) -> Vec<KeyName> {
        let Some(group) = self.groups.get(class) else { return Vec::new() };
        let mut seen = HashSet::with_capacity_and_hasher(group.leads.len(), RandomState::default());
        let mut keys = Vec::with_capacity(group.leads.len());
        for key in group.waiters.values().flatten() {
            if seen.len() == group.leads.len() {
                break;
            }
            if group.leads.contains(key) && seen.insert(key) && self.may_ask(key) {
                keys.push(KeyName::clone(key));
            }
        }
        keys
    }

    /// A call of `class` asks from now on for what it gets here; of its keys, those in `beyond` can't be asked for, but nobody else
    /// asks for them either.
    pub fn begin_call(&mut self, class: &Arc<Class>, beyond: &[KeyName]) -> Vec<KeyName> {
        let mut keys = self.keys(class);
        for key in &keys {
            if let Some(line) = self.lines.get_mut(key) {
                line.held = Held::Called(Arc::clone(class));
            }
        }
        // Also of a class that nobody is left of: who comes then makes the call stale.
        self.groups.entry(Arc::clone(class)).or_default().call = Call::Running(keys.clone());
        let beyond: HashSet<&KeyName> = beyond.iter().collect();
        keys.retain(|key| !beyond.contains(key));
        keys
    }

    /// The call of `class` is over.
    pub fn end_call(&mut self, class: &Arc<Class>) {
        let Some(group) = self.groups.get_mut(class) else { return };
        if let Call::Running(keys) | Call::Stale(keys) = std::mem::take(&mut group.call) {
            keys.iter().for_each(|key| self.free(key, class));
        }
        self.forget(class);
    }

    /// Whether the call of `class` must end, to be made anew.
    #[must_use]
    pub fn must_end_call(&self, class: &Arc<Class>) -> bool {
        self.groups.get(class).is_some_and(|group| matches!(group.call, Call::Stale(_)))
    }

    /// What a call of `class` took from `key` goes back there. Nobody asks for the key before that is done, but for who does already.
    pub fn begin_return(&mut self, class: &Arc<Class>, key: &KeyName) {
        let line = self.lines.entry(KeyName::clone(key)).or_default();
        if line.held == Held::Free {
            line.held = Held::Returning(Arc::clone(class));
        }
    }

    /// Nothing that a call of `class` took is on its way back to `key`.
    pub fn end_return(&mut self, class: &Arc<Class>, key: &KeyName) {
        let returning = |line: &Line| matches!(&line.held, Held::Returning(held) if held == class);
        if self.lines.get(key).is_some_and(returning) {
            self.free(key, class);
            // Its own call may ask for the key, too.
            self.spoil(Some(Arc::clone(class)));
        }
    }

    /// Classes whose call must end, or may be made, or that have a waiter less, since this was asked last.
    pub fn take_changed(&mut self) -> Vec<Arc<Class>> {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests;
