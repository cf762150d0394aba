//! Who waits for which keys, in the order of their coming, and whether the call that waits for all of them still asks for the right
//! ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::pop::KeyName;

/// A waiter's number: whoever came later has a higher one.
pub type Ticket = u64;

/// Those who wait for elements that one call can bring.
#[derive(Debug, Default)]
pub struct Roster {
    waiters: BTreeMap<Ticket, Vec<KeyName>>,
    wanted: HashMap<KeyName, BTreeSet<Ticket>>,
    call: Call,
}

/// The call to the server.
#[derive(Debug, Default)]
enum Call {
    #[default]
    None,
    /// For these keys.
    Running(HashSet<KeyName>),
    /// Somebody waits for a key that it doesn't ask for, or it asks for one that nobody waits for.
    Stale,
}

impl Roster {
    /// Somebody waits for any of `keys`.
    pub fn join(&mut self, ticket: Ticket, keys: &[KeyName]) {
        for key in keys {
            self.wanted.entry(KeyName::clone(key)).or_default().insert(ticket);
        }
        if let Call::Running(called) = &self.call
            && !keys.iter().all(|key| called.contains(key))
        {
            self.call = Call::Stale;
        }
        self.waiters.insert(ticket, keys.to_vec());
    }

    /// It waits no more.
    pub fn leave(&mut self, ticket: Ticket) {
        for key in self.waiters.remove(&ticket).unwrap_or_default() {
            let Some(tickets) = self.wanted.get_mut(&key) else { continue };
            tickets.remove(&ticket);
            if !tickets.is_empty() {
                continue;
            }
            self.wanted.remove(&key);
            if let Call::Running(called) = &self.call
                && called.contains(&key)
            {
                self.call = Call::Stale;
            }
        }
    }

    /// Who has waited longest for `key`.
    #[must_use]
    pub fn first_for(&self, key: &[u8]) -> Option<Ticket> {
        self.wanted.get(key).and_then(BTreeSet::first).copied()
    }

    /// Who has waited longest.
    #[must_use]
    pub fn first(&self) -> Option<Ticket> {
        self.waiters.keys().next().copied()
    }

    /// Everybody, in their order.
    #[must_use]
    pub fn everybody(&self) -> Vec<Ticket> {
        self.waiters.keys().copied().collect()
    }

    /// Whether somebody waits for `key`.
    #[must_use]
    pub fn wants(&self, key: &[u8]) -> bool {
        self.wanted.contains_key(key)
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// How many keys are waited for.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.wanted.len()
    }

    /// How many bytes they are.
    #[must_use]
    pub fn key_bytes(&self) -> usize {
        self.wanted.keys().map(|key| key.len()).sum()
    }

    /// All keys: the longest waiter's first, each one's in their own order.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyName> {
        let mut seen = HashSet::with_capacity(self.wanted.len());
        let mut keys = Vec::with_capacity(self.wanted.len());
        for key in self.waiters.values().flatten() {
            if keys.len() == self.wanted.len() {
                break;
            }
            if seen.insert(key) {
                keys.push(KeyName::clone(key));
            }
        }
        keys
    }

    /// The call asks for `keys` from now on; `beyond` are waited for, too, but can't be asked for.
    pub fn begin_call(&mut self, keys: &[KeyName], beyond: &HashSet<KeyName>) {
        let called: HashSet<KeyName> = keys.iter().chain(beyond).cloned().collect();
        let right = called.len() == self.wanted.len()
            && called.iter().all(|key| self.wanted.contains_key(key));
        self.call = if right { Call::Running(called) } else { Call::Stale };
    }

    /// The call is over.
    pub fn end_call(&mut self) {
        self.call = Call::None;
    }

    /// Whether the call must end, to be made anew.
    #[must_use]
    pub fn must_end_call(&self) -> bool {
        matches!(self.call, Call::Stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &str) -> Vec<KeyName> {
        names.split(' ').map(|name| KeyName::from(name.as_bytes())).collect()
    }

    fn call(roster: &mut Roster) {
        let keys = roster.keys();
        roster.begin_call(&keys, &HashSet::new());
    }

    #[test]
    fn the_longest_waiter_for_a_key_comes_first() {
        let mut roster = Roster::default();
        roster.join(1, &keys("a b"));
        roster.join(2, &keys("b"));
        roster.join(3, &keys("c b"));
        assert_eq!(roster.first_for(b"b"), Some(1));
        assert_eq!(roster.first_for(b"c"), Some(3));
        assert_eq!(roster.first_for(b"d"), None);
        roster.leave(1);
        assert_eq!(roster.first_for(b"b"), Some(2));
        assert!(!roster.wants(b"a"));
        assert_eq!((roster.key_count(), roster.key_bytes()), (2, 2));
        assert_eq!((roster.first(), roster.everybody()), (Some(2), vec![2, 3]));
    }

    #[test]
    fn who_came_first_is_first_however_late_it_joins() {
        let mut roster = Roster::default();
        roster.join(2, &keys("a"));
        roster.join(1, &keys("a"));
        assert_eq!((roster.first_for(b"a"), roster.first()), (Some(1), Some(1)));
    }

    #[test]
    fn keys_come_in_the_order_of_those_who_wait() {
        let mut roster = Roster::default();
        roster.join(1, &keys("b a"));
        roster.join(2, &keys("c a b"));
        assert_eq!(roster.keys(), keys("b a c"));
        roster.leave(1);
        assert_eq!(roster.keys(), keys("c a b"));
        roster.leave(2);
        assert!(roster.is_empty() && roster.keys().is_empty());
    }

    #[test]
    fn a_call_is_stale_when_it_asks_for_too_little_or_too_much() {
        let mut roster = Roster::default();
        roster.join(1, &keys("a"));
        call(&mut roster);
        roster.join(2, &keys("a a"));
        assert!(!roster.must_end_call());
        roster.leave(1);
        assert!(!roster.must_end_call());
        roster.join(3, &keys("a b"));
        assert!(roster.must_end_call());
        call(&mut roster);
        assert!(!roster.must_end_call());
        roster.leave(3);
        assert!(roster.must_end_call(), "nobody waits for b");
        roster.end_call();
        assert!(!roster.must_end_call());
    }

    #[test]
    fn a_call_made_of_old_keys_is_stale_from_the_start() {
        let mut roster = Roster::default();
        roster.join(1, &keys("a"));
        let old = roster.keys();
        roster.join(2, &keys("b"));
        roster.begin_call(&old, &HashSet::new());
        assert!(roster.must_end_call());
        roster.begin_call(&old, &keys("b").into_iter().collect());
        assert!(!roster.must_end_call());
    }
}
