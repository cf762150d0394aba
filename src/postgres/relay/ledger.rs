//! What the relay keeps of a session that prepares statements or leaves things behind.

use std::collections::{BTreeSet, VecDeque};

use super::super::sql::{Findings, SettingName, Suspects, Unlisten};
use super::super::statements::SessionStatements;
use super::super::truth;
use super::super::wire::{self, HEADER_BYTES, Head};

/// Most custom settings of one session whose names are kept; one with more keeps its connection.
const CUSTOM_NAMES: usize = 256;

/// What the relay keeps of a session that prepares statements or leaves things behind.
#[derive(Debug, Default)]
pub struct Ledger {
    pub(super) statements: SessionStatements,
    /// What may have been left behind since the server was asked last.
    suspects: Suspects,
    /// Whether a transaction that suspects come from has been committed.
    suspects_stay: Stay,
    /// What the server said was left behind, and what it can't be asked about.
    pins: Suspects,
    /// What the server is being asked about.
    asking: Suspects,
    /// What no statement takes away, not even DISCARD ALL.
    stuck: Suspects,
    /// Channels the hub hears for the session.
    channels: BTreeSet<Box<[u8]>>,
    /// Channels it heard until an UNLISTEN with which a LISTEN may have come: the server is asked whether they are listened to.
    parting: BTreeSet<Box<[u8]>>,
    /// What the running transaction wants to hear no more.
    unlistening: Vec<Unlisten>,
    /// What UNLISTENs on their way name: their command tags tell that they have run.
    unlistens_sent: VecDeque<Unlisten>,
    /// Custom settings this session may have changed.
    custom: Vec<String>,
    /// What is under way that takes names away.
    pub(super) discarding: Option<Discarding>,
}

/// What takes names of statements away if it works: its command tags tell.
#[derive(Debug, Default)]
pub(super) struct Discarding {
    /// By a DEALLOCATE of each, in this order.
    pub(super) each: VecDeque<Box<[u8]>>,
    /// By DISCARD ALL or DEALLOCATE ALL, with their statements.
    pub(super) all: Option<Vec<(Box<[u8]>, u64)>>,
}

/// Whether what may have been left behind stays if the connection is lost now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stay {
    /// It goes with the transaction that left it.
    #[default]
    No,
    /// The client has heard that it was committed.
    Committed,
}

/// Whether a session can go on without the connection it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keepsake {
    /// All that the session had on it went with its last transaction.
    None,
    /// Something was on it that the client may count on.
    Lost,
}

impl Ledger {
    /// What is known to keep the backend with the session.
    #[must_use]
    pub fn pins(&self) -> Suspects {
        self.pins
    }

    /// All that may lie on the backend beside settings.
    #[must_use]
    pub fn leavings(&self) -> Suspects {
        let mut all = self.pins;
        all.insert(self.suspects);
        all.insert(self.asking);
        all
    }

    /// What lies on the backend that nothing takes away: it must be closed after this session.
    pub fn take_stuck(&mut self) -> Suspects {
        self.stuck.insert(truth::uncleanable(self.leavings()));
        std::mem::take(&mut self.stuck)
    }

    /// Whether the backend may leave the session.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.leavings().is_empty()
    }

    /// A flight of whole frames goes again: the names it gives are to be given again.
    pub(super) fn unname(&mut self, flight: &[u8]) {
        let mut rest = flight;
        while let Head::Frame(header) = wire::head(rest) {
            let Some((frame, behind)) = rest.split_at_checked(header.frame()) else { return };
            let name = wire::cstr(&frame[HEADER_BYTES..]).map(|(name, _)| name);
            if let (b'P', Some(name)) = (header.tag, name) {
                self.statements.named.remove(name);
            }
            rest = behind;
        }
    }

    /// Channels the hub hears for the session.
    #[must_use]
    pub fn channels(&self) -> &BTreeSet<Box<[u8]>> {
        &self.channels
    }

    /// The hub has taken over what the session listened to on its connection.
    pub fn handed_over(&mut self, channels: Vec<Box<[u8]>>) {
        self.pins = self.pins.without(Suspects::LISTEN);
        self.channels.extend(channels);
    }

    /// Whether the hub brings what is said there.
    #[must_use]
    pub(super) fn is_heard_for(&self, channel: &[u8]) -> bool {
        self.channels.contains(channel) || self.parting.contains(channel)
    }

    /// Whether the server is still to tell of some channels whether the session listens to them.
    #[must_use]
    pub fn is_parting(&self) -> bool {
        !self.parting.is_empty()
    }

    /// Whether nothing but what it listens to keeps the connection with the session.
    #[must_use]
    pub fn only_listens(&self) -> bool {
        self.leavings() == Suspects::LISTEN && self.pins == Suspects::LISTEN
    }

    /// Whether the server's command tags tell something of this session.
    #[must_use]
    pub(super) fn minds_tags(&self) -> bool {
        self.discarding.is_some()
            || !self.suspects.is_empty()
            || !self.unlistening.is_empty()
            || !self.unlistens_sent.is_empty()
    }

    /// The client hears that a transaction has been committed.
    pub(super) fn committed(&mut self) {
        let mut gone = BTreeSet::new();
        for unlisten in self.unlistening.drain(..) {
            match unlisten {
                Unlisten::All => gone.append(&mut self.channels),
                Unlisten::Channel(name) => gone.extend(self.channels.take(&name)),
            }
        }
        if self.suspects.intersects(Suspects::LISTEN) {
            self.parting.append(&mut gone);
        }
        if !self.suspects.is_empty() {
            self.suspects_stay = Stay::Committed;
        }
    }

    /// A rollback: what the transaction did not want to hear any more it may want again.
    pub(super) fn rolled_back(&mut self) {
        self.unlistening.clear();
    }

    /// An error, which takes what is on its way with it.
    pub(super) fn undone(&mut self) {
        self.rolled_back();
        self.unlistens_sent.clear();
    }

    /// An UNLISTEN has run.
    pub(super) fn unlistened(&mut self) {
        self.unlistening.extend(self.unlistens_sent.pop_front());
    }

    /// A flight is over: an UNLISTEN of it that has not run was only bound.
    pub(super) fn flight_over(&mut self) {
        self.unlistens_sent.clear();
    }

    /// The connection is lost, and with it everything on it.
    pub(super) fn lost(&mut self) -> Keepsake {
        if !self.pins.is_empty() || !self.asking.is_empty() || self.suspects_stay != Stay::No {
            return Keepsake::Lost;
        }
        self.undone();
        self.suspects = Suspects::NONE;
        self.stuck = Suspects::NONE;
        self.discarding = None;
        Keepsake::None
    }

    /// Whether the server has to be asked.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Whether statements mean what they meant when the settings were asked for last.
    #[must_use]
    pub(super) fn knows_settings(&self) -> bool {
        let mut open = self.suspects;
        open.insert(self.asking);
        !open.intersects(Suspects::SETTING)
    }

    /// A query runs that may leave something behind.
    pub(super) fn suspect(&mut self, findings: &Findings) {
        let mut suspects = findings.suspects.pins();
        if findings.suspects.intersects(Suspects::RESET) {
            suspects.insert(Suspects::SETTING);
        }
        if findings.suspects.intersects(Suspects::ROUTINE) {
            // What it leaves when it is called in the same transaction nobody can tell yet.
            suspects.insert(truth::askable());
        }
        if findings.suspects.intersects(RELEASING) {
            // What the server is being asked about it tells as it was before this query.
            let mut left = self.asking.without(Suspects::SETTING);
            left.insert(self.pins.without(truth::unaskable(self.pins)));
            suspects.insert(left);
            if left.intersects(Suspects::PREPARE) {
                // A statement that SQL prepared may have changed some.
                suspects.insert(Suspects::SETTING);
            }
        }
        self.suspects.insert(suspects);
        if !self.channels.is_empty() {
            self.unlistens_sent.extend(findings.unlistens.iter().cloned());
            self.unlistening.extend(findings.unlistens_within.iter().cloned());
        }
        for name in &findings.settings {
            match name {
                SettingName::Named(name) => self.custom(name),
                // The Bind tells it; a simple Query has no parameters.
                SettingName::Parameter(_) => {}
                SettingName::Unknown => self.unnamed_setting(),
            }
        }
    }

    /// A statement that SQL prepared may be closed.
    pub(super) fn suspect_release(&mut self) {
        if self.leavings().intersects(Suspects::PREPARE) {
            self.suspects.insert(Suspects::PREPARE);
        }
    }

    /// A custom setting may be changed.
    pub(super) fn custom(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if !name.contains('.') || self.custom.contains(&name) {
            return;
        }
        if self.custom.len() < CUSTOM_NAMES && name.is_ascii() {
            self.custom.push(name);
        } else {
            self.unnamed_setting();
        }
    }

    /// A setting may be changed whose name nobody can tell: the server can't be asked about it.
    pub(super) fn unnamed_setting(&mut self) {
        self.suspects.insert(Suspects::UNNAMED_SETTING);
    }

    /// Anything may have been left that can be asked about.
    pub(super) fn suspect_all(&mut self) {
        self.suspects.insert(truth::askable());
    }

    /// Settings may have changed.
    pub(super) fn suspect_settings(&mut self) {
        self.suspects.insert(Suspects::SETTING);
    }

    /// Whether the server is being asked what its routines are.
    #[must_use]
    pub(super) fn asks_for_routines(&self) -> bool {
        self.asking.intersects(Suspects::ROUTINE)
    }

    /// Appends the question that is due, if there is one. What can't be asked is a pin at once.
    pub(super) fn put_question(&mut self, out: &mut Vec<u8>) -> Asked {
        if self.suspects.is_empty() || !self.asking.is_empty() {
            return Asked::No;
        }
        let unaskable = truth::unaskable(self.suspects);
        self.pins.insert(unaskable);
        self.asking = std::mem::take(&mut self.suspects).without(unaskable);
        self.suspects_stay = Stay::No;
        if self.asking.is_empty() {
            return Asked::No;
        }
        if self.pins.intersects(Suspects::LISTEN) {
            // The hub may take the channels over once nothing else is left: an answer that names none would lose them.
            self.asking.insert(Suspects::LISTEN);
        }
        truth::put_question(self.asking, &self.custom, out);
        Asked::Yes
    }

    /// The server has answered: this is left of what was asked, and these channels are listened to; without an answer all of
    /// it may be.
    pub(super) fn told(&mut self, left: Option<Suspects>, listened: &[Box<[u8]>]) {
        let asked = std::mem::take(&mut self.asking);
        if asked.intersects(Suspects::LISTEN) {
            let parting = std::mem::take(&mut self.parting);
            let stay = parting.into_iter().filter(|name| left.is_none() || listened.contains(name));
            self.channels.extend(stay);
        }
        self.pins = self.pins.without(asked);
        self.pins.insert(left.unwrap_or(asked.without(Suspects::ROUTINE)));
    }

    /// DISCARD ALL has taken everything away.
    pub(super) fn discarded(&mut self) {
        self.stuck.insert(truth::uncleanable(self.leavings()));
        self.suspects = Suspects::NONE;
        self.suspects_stay = Stay::No;
        self.pins = Suspects::NONE;
        self.channels.clear();
        self.parting.clear();
        self.undone();
        self.custom.clear();
    }
}

/// Whether the server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing was put on the line.
    No,
    /// A question of ours is on the line and must be flushed.
    Yes,
}

const RELEASING: Suspects = {
    let mut all = Suspects::RELEASE;
    all.insert(Suspects::UNLISTEN);
    all.insert(Suspects::DEALLOCATE_ALL);
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(suspects: Suspects) -> Findings {
        Findings { suspects, ..Findings::default() }
    }

    #[test]
    fn suspicion_is_asked_about_once_and_truth_decides() {
        let mut ledger = Ledger::default();
        ledger.suspect(&finds(Suspects::ADVISORY_LOCK));
        let mut out = Vec::new();
        assert_eq!(ledger.put_question(&mut out), Asked::Yes);
        assert_eq!(ledger.put_question(&mut out), Asked::No);
        assert!(!ledger.is_free());
        ledger.told(Some(Suspects::ADVISORY_LOCK), &[]);
        assert_eq!(ledger.pins(), Suspects::ADVISORY_LOCK);
        assert_eq!(ledger.put_question(&mut out), Asked::No);
        ledger.suspect(&finds(Suspects::RELEASE));
        assert_eq!(ledger.put_question(&mut out), Asked::Yes);
        ledger.told(Some(Suspects::NONE), &[]);
        assert!(ledger.is_free());
    }

    #[test]
    fn what_is_released_behind_a_question_is_asked_about_again() {
        let mut ledger = Ledger::default();
        ledger.suspect(&finds(Suspects::TEMPORARY));
        let mut out = Vec::new();
        assert_eq!(ledger.put_question(&mut out), Asked::Yes);
        ledger.suspect(&finds(Suspects::RELEASE));
        ledger.told(Some(Suspects::TEMPORARY), &[]);
        assert_eq!(ledger.put_question(&mut out), Asked::Yes);
        ledger.told(Some(Suspects::NONE), &[]);
        assert!(ledger.is_free());
    }

    #[test]
    fn what_listens_hears_of_its_channels_with_every_answer() {
        let mut ledger = Ledger::default();
        ledger.suspect(&finds(Suspects::LISTEN));
        ledger.put_question(&mut Vec::new());
        ledger.told(Some(Suspects::LISTEN), &[]);
        ledger.suspect(&finds(Suspects::TEMPORARY));
        ledger.put_question(&mut Vec::new());
        let mut both = Suspects::LISTEN;
        both.insert(Suspects::TEMPORARY);
        assert_eq!(ledger.asking, both);
    }

    fn heard_for(ledger: &Ledger, channel: &str) -> bool {
        ledger.is_heard_for(channel.as_bytes())
    }

    #[test]
    fn the_server_decides_what_an_unlisten_beside_a_listen_has_left() {
        let mut ledger = Ledger::default();
        let unlistens = Findings { unlistens_within: vec![Unlisten::All], ..Findings::default() };
        ledger.handed_over(vec![b"a"[..].into(), b"b"[..].into()]);
        ledger.suspect(&finds(Suspects::LISTEN));
        ledger.suspect(&unlistens);
        ledger.committed();
        assert!(ledger.is_parting() && heard_for(&ledger, "a") && ledger.channels().is_empty());
        ledger.put_question(&mut Vec::new());
        ledger.told(Some(Suspects::LISTEN), &[b"a"[..].into()]);
        assert!(!ledger.is_parting());
        assert!(heard_for(&ledger, "a") && !heard_for(&ledger, "b"));
        ledger.suspect(&finds(Suspects::LISTEN));
        ledger.suspect(&unlistens);
        ledger.committed();
        ledger.put_question(&mut Vec::new());
        ledger.told(None, &[]);
        assert!(ledger.channels().contains(&b"a"[..]), "it is not lost");
        assert_eq!(ledger.pins(), Suspects::LISTEN);
    }

    #[test]
    fn a_lost_connection_takes_what_was_not_committed() {
        let mut ledger = Ledger::default();
        ledger.suspect(&finds(Suspects::TEMPORARY));
        assert_eq!(ledger.lost(), Keepsake::None);
        assert!(ledger.is_free());
        ledger.suspect(&finds(Suspects::SETTING));
        ledger.committed();
        assert_eq!(ledger.lost(), Keepsake::Lost);
        ledger.put_question(&mut Vec::new());
        assert_eq!(ledger.lost(), Keepsake::Lost, "the answer is awaited");
        ledger.told(Some(Suspects::NONE), &[]);
        assert_eq!(ledger.lost(), Keepsake::None);
        ledger.suspect(&finds(Suspects::LOAD));
        ledger.put_question(&mut Vec::new());
        assert_eq!(ledger.lost(), Keepsake::Lost);
    }

    #[test]
    fn without_an_answer_all_stays() {
        let mut ledger = Ledger::default();
        ledger.suspect(&finds(Suspects::TEMPORARY));
        assert_eq!(ledger.put_question(&mut Vec::new()), Asked::Yes);
        ledger.told(None, &[]);
        assert_eq!(ledger.pins(), Suspects::TEMPORARY);
    }

    #[test]
    fn what_can_not_be_asked_pins_until_all_is_discarded() {
        let mut ledger = Ledger::default();
        ledger.suspect(&finds(Suspects::LOAD));
        assert_eq!(ledger.put_question(&mut Vec::new()), Asked::No);
        assert_eq!(ledger.pins(), Suspects::LOAD);
        ledger.suspect(&finds(Suspects::RELEASE));
        assert_eq!(ledger.put_question(&mut Vec::new()), Asked::No);
        assert_eq!(ledger.pins(), Suspects::LOAD);
        ledger.discarded();
        assert!(ledger.is_free());
        assert_eq!(ledger.take_stuck(), Suspects::LOAD);
        assert_eq!(ledger.take_stuck(), Suspects::NONE);
    }

    #[test]
    fn too_many_custom_names_keep_the_connection() {
        let mut ledger = Ledger::default();
        for n in 0..=CUSTOM_NAMES {
            ledger.custom(&format!("app.n{n}"));
        }
        ledger.put_question(&mut Vec::new());
        assert_eq!(ledger.pins(), Suspects::UNNAMED_SETTING);
    }
}
