//! The clients of one upstream, as CLIENT LIST shows them and CLIENT KILL ends them: the server's own list has tidegate's few
//! connections instead.
//!
//! Source: Redis documentation, "CLIENT LIST", "CLIENT KILL".

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::greeting::{Identity, Subscriptions};
use super::mailbox::Mailbox;
use super::unblock::Wait;
use crate::metrics::Phase;
use crate::status::Holder;

/// All of them, by their numbers.
#[derive(Debug, Default)]
pub struct Clients(Mutex<BTreeMap<u64, Card>>);

#[derive(Debug)]
struct Card {
    identity: Identity,
    subscriptions: Subscriptions,
    born: Instant,
    mailbox: Arc<Mailbox>,
    /// Where it waits for the server on a connection of its own, if it ever did.
    wait: Option<Arc<Wait>>,
    /// Why it has a connection of its own, and since when.
    holds: Option<(&'static str, Instant)>,
}

/// A connection that one client has for itself, noted on its card until this is dropped.
#[derive(Debug)]
pub struct Holding {
    clients: Arc<Clients>,
    id: u64,
}

/// Which clients CLIENT LIST or CLIENT KILL means; every condition must hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Filter {
    ids: Option<Vec<u64>>,
    address: Option<String>,
    local: Option<String>,
    user: Option<String>,
    kind: Option<Kind>,
    least_age: Option<u64>,
    spared: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Pubsub,
    /// Replicas and masters are no clients here.
    Server,
}

/// A command that the server would refuse; an error's line.
pub type Refusal = &'static str;

const SYNTAX: Refusal = "ERR syntax error";

impl Filter {
    /// Reads what follows CLIENT LIST.
    ///
    /// # Errors
    /// In the server's words.
    pub fn of_list(words: &[&[u8]]) -> Result<Self, Refusal> {
        match words {
            [] => Ok(Self::default()),
            [word, kind] if is(word, "TYPE") => {
                Ok(Self { kind: Some(read_kind(kind)?), ..Self::default() })
            }
            [word, ids @ ..] if is(word, "ID") && !ids.is_empty() => {
                let ids = ids.iter().map(|id| number(id)).collect::<Option<Vec<_>>>();
                let ids = ids.ok_or("ERR Invalid client ID")?;
                Ok(Self { ids: Some(ids), ..Self::default() })
            }
            _ => Err(SYNTAX),
        }
    }

    /// Reads what follows CLIENT KILL of the client with the number `own`, in its newer form.
    ///
    /// # Errors
    /// In the server's words.
    pub fn of_kill(words: &[&[u8]], own: u64) -> Result<Self, Refusal> {
        let mut filter = Self { spared: Some(own), ..Self::default() };
        if words.is_empty() || !words.len().is_multiple_of(2) {
            return Err(SYNTAX);
        }
        for pair in words.chunks_exact(2) {
            let (word, value) = (pair[0], pair[1]);
            let text = || String::from_utf8_lossy(value).into_owned();
            match () {
                () if is(word, "ID") => {
                    let id = number(value).filter(|id| *id > 0);
                    filter.ids = Some(vec![id.ok_or("ERR client-id should be greater than 0")?]);
                }
                () if is(word, "ADDR") => filter.address = Some(text()),
                () if is(word, "LADDR") => filter.local = Some(text()),
                () if is(word, "USER") => filter.user = Some(text()),
                () if is(word, "TYPE") => filter.kind = Some(read_kind(value)?),
                () if is(word, "MAXAGE") => filter.least_age = Some(number(value).ok_or(SYNTAX)?),
                () if is(word, "SKIPME") && is(value, "yes") => filter.spared = Some(own),
                () if is(word, "SKIPME") && is(value, "no") => filter.spared = None,
                () => return Err(SYNTAX),
            }
        }
        Ok(filter)
    }

    /// The client at this address.
    #[must_use]
    pub fn at(address: &[u8]) -> Self {
        let address = Some(String::from_utf8_lossy(address).into_owned());
        Self { address, ..Self::default() }
    }

    /// Whether the client is meant by one of namespace `realm`, or of none, who sees all.
    fn takes(&self, id: u64, card: &Card, realm: Option<usize>) -> bool {
        let identity = &card.identity;
        if realm.is_some() && realm != identity.namespace {
            return false;
        }
        let kind = match card.subscriptions.is_empty() {
            true => Kind::Normal,
            false => Kind::Pubsub,
        };
        self.ids.as_ref().is_none_or(|ids| ids.contains(&id))
            && self.address.as_ref().is_none_or(|one| **one == *identity.address)
            && self.local.as_ref().is_none_or(|one| **one == *identity.local)
            && self.user.as_ref().is_none_or(|one| one == "default")
            && self.kind.is_none_or(|one| one == kind)
            && self.least_age.is_none_or(|age| card.born.elapsed().as_secs() >= age)
            && self.spared != Some(id)
    }
}

fn is(word: &[u8], text: &str) -> bool {
    word.eq_ignore_ascii_case(text.as_bytes())
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn read_kind(word: &[u8]) -> Result<Kind, Refusal> {
    match () {
        () if is(word, "normal") => Ok(Kind::Normal),
        () if is(word, "pubsub") => Ok(Kind::Pubsub),
        () if ["master", "replica", "slave"].iter().any(|name| is(word, name)) => Ok(Kind::Server),
        () => Err("ERR Unknown client type"),
    }
}

fn realm(all: &BTreeMap<u64, Card>, id: u64) -> Option<usize> {
    all.get(&id).and_then(|card| card.identity.namespace)
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Card>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has come.
    pub fn enter(&self, identity: &Identity, mailbox: &Arc<Mailbox>) {
        let card = Card {
            identity: identity.clone(),
            subscriptions: Subscriptions::default(),
            born: Instant::now(),
            mailbox: Arc::clone(mailbox),
            wait: None,
            holds: None,
        };
        self.lock().insert(identity.id, card);
    }

    /// It has told something of itself.
    pub fn note(&self, identity: &Identity, subscriptions: Subscriptions) {
        if let Some(card) = self.lock().get_mut(&identity.id) {
            card.identity.clone_from(identity);
            card.subscriptions = subscriptions;
        }
    }

    /// Where the client with the number `id` waits for the server.
    pub fn note_wait(&self, id: u64, wait: &Arc<Wait>) {
        if let Some(card) = self.lock().get_mut(&id) {
            card.wait = Some(Arc::clone(wait));
        }
    }

    /// Where the client with the number `id` waits for the server, if it ever did.
    #[must_use]
    pub fn wait_of(&self, id: u64) -> Option<Arc<Wait>> {
        self.lock().get(&id).and_then(|card| card.wait.clone())
    }

    /// Whether the client with the number `id` is of the same namespace as `own`, or `own` is of none.
    #[must_use]
    pub fn may_reach(&self, own: u64, id: u64) -> bool {
        let all = self.lock();
        let realm = realm(&all, own);
        realm.is_none() || all.get(&id).is_some_and(|card| card.identity.namespace == realm)
    }

    /// It has a connection of its own now, for this reason.
    #[must_use]
    pub fn hold(self: &Arc<Self>, id: u64, reason: &'static str) -> Holding {
        if let Some(card) = self.lock().get_mut(&id) {
            card.holds = Some((reason, Instant::now()));
        }
        Holding { clients: Arc::clone(self), id }
    }

    /// Who has a connection of its own, the longest first.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        let all = self.lock();
        let mut holders: Vec<_> = all
            .iter()
            .filter_map(|(id, card)| {
                let (reason, since) = card.holds?;
                let held_seconds = since.elapsed().as_secs_f64();
                Some(Holder {
                    client: *id,
                    application_name: card.identity.shown_name().chars().take(64).collect(),
                    database: card.identity.db.to_string(),
                    address: card.identity.address.to_string(),
                    phase: Phase::Pinned.as_str().to_owned(),
                    phase_seconds: held_seconds,
                    held_seconds,
                    pin: Some(reason.to_owned()),
                    ..Holder::default()
                })
            })
            .collect();
        holders.sort_by(|one, other| other.held_seconds.total_cmp(&one.held_seconds));
        holders
    }

    /// It has left.
    pub fn leave(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// One line for each client that `filter` takes; `command` is what the one with the number `own` says now.
    #[must_use]
    pub fn list(&self, filter: &Filter, own: u64, command: &str) -> String {
        let all = self.lock();
        let realm = realm(&all, own);
        let mut text = String::new();
        for (id, card) in all.iter().filter(|(id, card)| filter.takes(**id, card, realm)) {
            let says = if *id == own { command } else { "NULL" };
            let age = card.born.elapsed().as_secs();
            text.push_str(&card.identity.line(age, card.subscriptions, says));
        }
        text
    }

    /// Ends all clients that `filter` takes; tells how many, and whether the one with the number `own` is among them, which is
    /// left to it.
    pub fn kill(&self, filter: &Filter, own: u64) -> (usize, bool) {
        let all = self.lock();
        let realm = realm(&all, own);
        let (mut count, mut own_too) = (0, false);
        for (id, card) in all.iter().filter(|(id, card)| filter.takes(**id, card, realm)) {
            count += 1;
            if *id == own {
                own_too = true;
            } else {
                card.mailbox.kill();
            }
        }
        (count, own_too)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(card) = self.clients.lock().get_mut(&self.id) {
            card.holds = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(line: &str) -> Result<Filter, Refusal> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Filter::of_kill(&words, 7)
    }

    #[test]
    fn kill_is_read_as_the_server_reads_it() {
        let filter = kill("id 3 skipme no").unwrap();
        assert_eq!((filter.ids, filter.spared), (Some(vec![3]), None));
        assert_eq!(kill("TYPE pubsub").unwrap().spared, Some(7));
        assert_eq!(kill("ID 0"), Err("ERR client-id should be greater than 0"));
        assert_eq!(kill("TYPE nobody"), Err("ERR Unknown client type"));
        for line in ["ID", "NOSUCH 1", "SKIPME maybe", "ID 1 ADDR"] {
            assert_eq!(kill(line), Err(SYNTAX), "{line}");
        }
    }

    #[test]
    fn list_is_read_as_the_server_reads_it() {
        assert_eq!(Filter::of_list(&[]), Ok(Filter::default()));
        assert!(Filter::of_list(&[b"ID", b"1", b"2"]).is_ok());
        assert_eq!(Filter::of_list(&[b"ID", b"x"]), Err("ERR Invalid client ID"));
        assert_eq!(Filter::of_list(&[b"NOSUCH"]), Err(SYNTAX));
    }
}
