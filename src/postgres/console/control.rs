//! What commands do to pools. Nothing here waits.

use std::sync::Arc;

use super::Console;
use super::command::Target;
use crate::postgres::backend::PgPool;
use crate::postgres::clients::{Card, Wanted};
use crate::postgres::message::ErrorFields;
use crate::postgres::orders::{Entry, Passage, Place};

/// The pools of what clients know as one database.
#[derive(Clone)]
pub(super) struct Group {
    /// As the console names it: as clients do, or by its variable if another server has a database of that name.
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) pools: Vec<Arc<PgPool>>,
}

/// Whether a command changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Made,
    /// It was so already.
    None,
}

impl Console {
    /// Every database.
    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for pool in self.pools() {
            let place = Place::of(pool.connector().dial().upstream());
            if let Some(group) = groups.iter_mut().find(|group| group.place == place) {
                group.pools.push(pool);
                continue;
            }
            let taken = groups.iter().any(|group| group.name == place.database);
            let name = if taken { pool.settings().name.clone() } else { place.database.clone() };
            groups.push(Group { name, place, pools: vec![pool] });
        }
        groups
    }

    /// The databases that a command is for; each may be named by its variable, too.
    pub(super) fn named(&self, target: &Target) -> Result<Vec<Group>, ErrorFields> {
        let Target::Database(name) = target else { return Ok(self.groups()) };
        let groups = self.groups();
        let by_pool = |group: &&Group| group.pools.iter().any(|pool| pool.settings().name == *name);
        let found = groups.iter().find(|group| group.name == *name);
        match found.or_else(|| groups.iter().find(by_pool)) {
            Some(group) => Ok(vec![group.clone()]),
            None => Err(ErrorFields::error("3D000", format!("no such database: {name}"))),
        }
    }

    /// Lends no connections until [`Console::resume`].
    pub(super) fn pause(&self, target: &Target) -> Result<Change, ErrorFields> {
        // The order comes first: a pool made meanwhile obeys it.
        self.order(target, Passage::Paused)?;
        let mut change = Change::None;
        for pool in self.named(target)?.iter().flat_map(|group| &group.pools) {
            if pool.pause() {
                change = Change::Made;
            }
        }
        Ok(change)
    }

    /// Lends connections again.
    pub(super) fn resume(&self, target: &Target) -> Result<Change, ErrorFields> {
        self.order(target, Passage::Open)?;
        let mut change = Change::None;
        for pool in self.named(target)?.iter().flat_map(|group| &group.pools) {
            if pool.resume() {
                change = Change::Made;
            }
        }
        Ok(change)
    }

    fn order(&self, target: &Target, passage: Passage) -> Result<(), ErrorFields> {
        if *target == Target::All {
            self.orders.set_all(passage);
            return Ok(());
        }
        for group in self.named(target)? {
            self.orders.set(&group.place, passage);
        }
        Ok(())
    }

    /// Has every connection replaced as it comes back.
    pub(super) fn reconnect(&self, target: &Target) -> Result<(), ErrorFields> {
        let groups = self.named(target)?;
        groups.iter().flat_map(|group| &group.pools).for_each(|pool| pool.renew());
        Ok(())
    }

    /// How many connections are left of those that are to go.
    pub(super) fn outdated(&self, target: &Target) -> usize {
        let groups = self.named(target).unwrap_or_default();
        groups.iter().flat_map(|group| &group.pools).map(|pool| pool.outdated()).sum()
    }

    /// Whether every connection is kept back.
    pub(super) fn is_paused(&self, target: &Target) -> bool {
        let groups = self.named(target).unwrap_or_default();
        groups.iter().flat_map(|group| &group.pools).all(|pool| pool.is_paused())
    }

    /// Pauses a database and sends its clients away; those.
    pub(super) fn kill(&self, target: &Target) -> Result<Vec<Arc<Card>>, ErrorFields> {
        self.pause(target)?;
        let clients = self.clients_of(target);
        clients.iter().for_each(|card| card.want(Wanted::LEAVE));
        Ok(clients)
    }

    /// Whether any of these is still here.
    pub(super) fn has_any(&self, clients: &[Arc<Card>]) -> bool {
        let here = self.cancels.everybody();
        clients.iter().any(|card| here.iter().any(|one| Arc::ptr_eq(one, card)))
    }

    fn clients_of(&self, target: &Target) -> Vec<Arc<Card>> {
        let groups = self.named(target).unwrap_or_default();
        let pools: Vec<_> = groups.iter().flat_map(|group| &group.pools).collect();
        let is_theirs = |card: &Arc<Card>| {
            card.seats().is_some_and(|seats| {
                pools.iter().any(|pool| Arc::ptr_eq(pool.connector().seats(), seats))
            })
        };
        self.cancels.everybody().into_iter().filter(is_theirs).collect()
    }

    /// Lets new clients come to a database, or not.
    pub(super) fn admit(&self, database: &str, entry: Entry) -> Result<(), ErrorFields> {
        for group in self.named(&Target::Database(database.to_owned()))? {
            self.orders.admit(&group.place, entry);
        }
        Ok(())
    }
}
