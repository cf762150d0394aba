//! All who wait for values of one kind in one database: what each has got so far, and what each class's station is to do.
//!
//! Nothing here waits itself; whoever changes something wakes the tasks that it concerns.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{Outcome, Way};
use crate::redis::pop::{Catch, Class, KeyName};
use crate::redis::roster::{Roster, Ticket};

/// Those who wait, and the stations that serve them.
#[derive(Debug)]
pub(super) struct Hall {
    pub(super) roster: Roster,
    seats: HashMap<Ticket, Place>,
    pub(super) stations: HashMap<Arc<Class>, Station>,
    pub(super) way: Way,
    /// Who waits for a key without having tried it.
    untried: BTreeMap<Ticket, Vec<KeyName>>,
    look: Look,
}

/// One class's side of a station.
#[derive(Debug, Default)]
pub(super) struct Station {
    /// What its calls brought and nobody has yet.
    offers: VecDeque<Catch>,
    /// Those who have waited long enough, and what they are told when no call is running that may still bring them something.
    leaving: Vec<(Ticket, Outcome)>,
    /// Of the station's own task, which finds a connection when one is needed.
    task: Option<Waker>,
    crew: Crew,
}

/// Whether a connection works for a station; the task that has it.
#[derive(Debug, Default)]
enum Crew {
    #[default]
    None,
    Working(Option<Waker>),
    /// It has nothing to do now, and would work for any station of the hall.
    Lingering(Option<Waker>),
}

/// A waiter's place.
#[derive(Debug)]
enum Place {
    Waiting(Option<Waker>),
    Served(Outcome),
}

/// Whether a task looks at untried keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Off,
    On,
}

/// What a station's task is to do.
#[derive(Debug)]
pub(super) enum Wish {
    /// Put these back: they are nobody's.
    PutBack(Vec<Catch>),
    /// Wait for what its waiters want.
    Call,
    Nothing,
}

impl Hall {
    pub(super) fn new(way: Way) -> Self {
        Self {
            roster: Roster::default(),
            seats: HashMap::new(),
            stations: HashMap::new(),
            way,
            untried: BTreeMap::new(),
            look: Look::Off,
        }
    }

    /// Whether nothing is left to do for anybody.
    pub(super) fn is_empty(&self) -> bool {
        self.stations.is_empty() && self.seats.is_empty() && self.look == Look::Off
    }

    pub(super) fn sit_down(&mut self, ticket: Ticket, class: &Arc<Class>, keys: &[KeyName]) {
        self.roster.join(ticket, class, keys);
        self.seats.insert(ticket, Place::Waiting(None));
        self.hand_over(class);
    }

    /// Gives up its place, and what came for it.
    pub(super) fn stand_up(&mut self, ticket: Ticket) -> Option<Catch> {
        self.leave(ticket);
        match self.seats.remove(&ticket) {
            Some(Place::Served(Outcome::Caught(catch))) => Some(catch),
            _ => None,
        }
    }

    fn leave(&mut self, ticket: Ticket) {
        self.roster.leave(ticket);
        self.untried.remove(&ticket);
    }

    pub(super) fn is_waiting(&self, ticket: Ticket) -> bool {
        matches!(self.seats.get(&ticket), Some(Place::Waiting(_)))
    }

    pub(super) fn serve(&mut self, ticket: Ticket, outcome: Outcome) {
        self.leave(ticket);
        let place = self.seats.insert(ticket, Place::Served(outcome));
        if let Some(Place::Waiting(Some(session))) = place {
            session.wake();
        }
    }

    pub(super) fn serve_all(&mut self, class: &Arc<Class>, outcome: &Outcome) {
        for ticket in self.roster.everybody(class) {
            self.serve(ticket, outcome.clone());
        }
    }

    pub(super) fn serve_first(&mut self, class: &Arc<Class>, outcome: Outcome) {
        if let Some(ticket) = self.roster.first(class) {
            self.serve(ticket, outcome);
        }
    }

    /// What became of the waiting; once.
    pub(super) fn poll_outcome(&mut self, ticket: Ticket, cx: &Context<'_>) -> Poll<Outcome> {
        if let Some(Place::Waiting(waker)) = self.seats.get_mut(&ticket) {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match self.seats.remove(&ticket) {
            Some(Place::Served(outcome)) => Poll::Ready(outcome),
            _ => Poll::Ready(Outcome::Alone),
        }
    }

    /// Somebody waits no longer than until the call is over that may bring it something: that is still theirs, as the server has it.
    pub(super) fn give_up(&mut self, ticket: Ticket, outcome: Outcome) {
        if !self.is_waiting(ticket) {
            return;
        }
        let class = self.roster.class_of(ticket).filter(|_| self.roster.may_receive(ticket));
        match class.and_then(|class| self.stations.get_mut(class)) {
            Some(station) => {
                station.leaving.push((ticket, outcome));
                station.wake();
            }
            None => self.serve(ticket, outcome),
        }
    }

    /// No call of this class is running: whoever has given up is told so.
    fn dismiss(&mut self, class: &Arc<Class>) {
        let leaving = self.stations.get_mut(class).map(|one| std::mem::take(&mut one.leaving));
        for (ticket, outcome) in leaving.unwrap_or_default() {
            if self.is_waiting(ticket) {
                self.serve(ticket, outcome);
            }
        }
    }

    /// Gives what is offered to those whose turn it is; what is left goes back, and its key is nobody's until it is there.
    fn hand_over(&mut self, class: &Arc<Class>) {
        let offers = self.stations.get_mut(class).map(|one| std::mem::take(&mut one.offers));
        let (mut left, mut handed) = (VecDeque::new(), Vec::new());
        for catch in offers.unwrap_or_default() {
            match self.roster.receiver(class, &catch.key) {
                Some(ticket) => {
                    handed.push(KeyName::clone(&catch.key));
                    self.serve(ticket, Outcome::Caught(catch));
                }
                None => left.push_back(catch),
            }
        }
        for catch in &left {
            self.roster.begin_return(class, &catch.key);
        }
        if let Some(station) = self.stations.get_mut(class) {
            station.offers = left;
        }
        self.end_return(class, &handed);
    }

    /// Nothing of these keys is on its way back any more, but for what is offered.
    pub(super) fn end_return(&mut self, class: &Arc<Class>, keys: &[KeyName]) {
        let offers = self.stations.get(class).map(|station| &station.offers);
        for key in keys {
            if !offers.is_some_and(|offers| offers.iter().any(|catch| catch.key == *key)) {
                self.roster.end_return(class, key);
            }
        }
    }

    /// These are offered, ahead of what came later.
    pub(super) fn offer(&mut self, class: &Arc<Class>, catches: Vec<Catch>) {
        if let Some(station) = self.stations.get_mut(class) {
            catches.into_iter().rev().for_each(|catch| station.offers.push_front(catch));
            station.wake();
        }
        self.hand_over(class);
    }

    pub(super) fn wish(&mut self, class: &Arc<Class>) -> Wish {
        self.hand_over(class);
        self.dismiss(class);
        let offers =
            self.stations.get_mut(class).map(|station| std::mem::take(&mut station.offers));
        match offers {
            Some(offers) if !offers.is_empty() => Wish::PutBack(offers.into()),
            _ if self.roster.has_keys(class) => Wish::Call,
            _ => Wish::Nothing,
        }
    }

    /// The call is over, and brought this.
    pub(super) fn end_call(&mut self, class: &Arc<Class>, catch: Option<Catch>) {
        self.roster.end_call(class);
        if let Some(station) = self.stations.get_mut(class) {
            station.offers.extend(catch);
        }
        self.hand_over(class);
        self.dismiss(class);
    }

    /// Whether a station has nothing to do for which it needs a connection.
    pub(super) fn is_idle(&self, class: &Arc<Class>) -> bool {
        !self.roster.has_keys(class)
            && self.stations.get(class).is_none_or(|station| station.offers.is_empty())
    }

    /// Whether a station has something to do, and no connection works for it.
    pub(super) fn lacks_crew(&self, class: &Arc<Class>) -> bool {
        let crew = self.stations.get(class).map(|station| &station.crew);
        matches!(crew, Some(Crew::None)) && !self.is_idle(class)
    }

    /// Whether the station must find itself a connection: there is none that has nothing to do; if there is, it is called.
    pub(super) fn must_find_crew(&mut self, class: &Arc<Class>) -> bool {
        if !self.lacks_crew(class) {
            return false;
        }
        for station in self.stations.values_mut() {
            if let Crew::Lingering(task) = &mut station.crew {
                task.take().into_iter().for_each(Waker::wake);
                return false;
            }
        }
        true
    }

    /// A connection works for the station from now on, if none does.
    pub(super) fn take_up(&mut self, class: &Arc<Class>) -> Option<()> {
        let station = self.stations.get_mut(class)?;
        let free = matches!(station.crew, Crew::None);
        free.then(|| station.crew = Crew::Working(None))
    }

    /// A connection works for the station no more; others may have relied on it.
    pub(super) fn lay_down(&mut self, class: &Arc<Class>) {
        self.set_crew(class, Crew::None);
        self.call_stations();
    }

    /// The station that has nothing to do leaves its connection to the one that lacks one for the longest waiter.
    pub(super) fn change_over(&mut self, from: &Arc<Class>) -> Option<Arc<Class>> {
        let lacking = self.stations.keys().filter(|class| self.lacks_crew(class));
        let class = lacking.min_by_key(|class| self.roster.first(class)).cloned()?;
        self.set_crew(from, Crew::None);
        self.set_crew(&class, Crew::Working(None));
        self.call_stations();
        Some(class)
    }

    fn set_crew(&mut self, class: &Arc<Class>, crew: Crew) {
        if let Some(station) = self.stations.get_mut(class) {
            station.crew = crew;
        }
    }

    /// Those that wait for a connection which will not come are to find one.
    fn call_stations(&mut self) {
        for station in self.stations.values_mut() {
            station.task.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Whether a connection that has nothing to do for this station has something to do for one of the hall; if not, its task is
    /// noted.
    pub(super) fn linger(&mut self, class: &Arc<Class>, cx: &Context<'_>) -> Poll<()> {
        if self.is_idle(class) && !self.stations.keys().any(|one| self.lacks_crew(one)) {
            self.set_crew(class, Crew::Lingering(Some(cx.waker().clone())));
            return Poll::Pending;
        }
        self.set_crew(class, Crew::Working(None));
        self.call_stations();
        Poll::Ready(())
    }

    /// Whether a station's running call must end.
    pub(super) fn is_stale(&self, class: &Arc<Class>) -> bool {
        self.roster.must_end_call(class)
            || self
                .stations
                .get(class)
                .is_some_and(|one| !one.offers.is_empty() || !one.leaving.is_empty())
    }

    /// Whether nobody needs the station any more.
    pub(super) fn is_over(&self, class: &Arc<Class>) -> bool {
        let crew = self.stations.get(class).map(|station| &station.crew);
        self.roster.first(class).is_none()
            && self.is_idle(class)
            && matches!(crew, None | Some(Crew::None))
    }

    /// Of the station.
    pub(super) fn note_task(&mut self, class: &Arc<Class>, cx: &Context<'_>) {
        if let Some(station) = self.stations.get_mut(class) {
            station.task = Some(cx.waker().clone());
        }
    }

    /// Of the connection that works for it.
    pub(super) fn note_crew(&mut self, class: &Arc<Class>, cx: &Context<'_>) {
        self.set_crew(class, Crew::Working(Some(cx.waker().clone())));
    }

    /// Wakes the tasks of those stations for which something has changed.
    pub(super) fn wake_changed(&mut self) {
        for class in self.roster.take_changed() {
            if let Some(station) = self.stations.get_mut(&class) {
                station.wake();
            }
        }
    }

    /// Notes that somebody has not tried these keys; what it was with the looking until then.
    pub(super) fn note_untried(&mut self, ticket: Ticket, keys: &[KeyName]) -> Option<Look> {
        if !self.is_waiting(ticket) {
            return None;
        }
        self.untried.insert(ticket, keys.to_vec());
        Some(std::mem::replace(&mut self.look, Look::On))
    }

    /// Who has not tried its keys; if that is nobody, nobody looks any more.
    pub(super) fn take_untried(&mut self) -> BTreeMap<Ticket, Vec<KeyName>> {
        if self.untried.is_empty() {
            self.look = Look::Off;
        }
        std::mem::take(&mut self.untried)
    }
}

impl Station {
    fn wake(&mut self) {
        self.task.take().into_iter().for_each(Waker::wake);
        if let Crew::Working(task) | Crew::Lingering(task) = &mut self.crew {
            task.take().into_iter().for_each(Waker::wake);
        }
    }
}
