//! What becomes of a listener's pools when the configuration changes: none of their clients notices.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::passwords::Passwords;
use super::{Fixed, Name, Routes, Ways};
use crate::config::{ChildCredentials, PostgresUpstream, STAYS_OPEN, UserSecret, Users};
use crate::postgres::backend::PgPool;
use crate::postgres::connect::Dial;

/// Names that a URL gave before and that still lead to its pool, at most.
const FORMER_MOST: usize = 8;

impl Routes {
    /// Leads to these upstreams from now on, under the foundry's present settings. Pools that are kept go on with their
    /// clients; those that are no longer led to end with their last one. Call it inside the runtime.
    pub(in crate::postgres) fn change(&self, dials: Vec<Dial>) {
        let settings = self.foundry.settings().get();
        if let (Some(any), Some(first)) = (&self.any, dials.first()) {
            any.dial.set(first.clone());
            if let Some(pool) = any.lookups.pool() {
                redial(pool, first.clone());
            }
        }
        let before = self.ways.get();
        let fixed: Vec<_> = dials.into_iter().map(|dial| self.way(&before, dial)).collect();
        let users = self.users(&before, &settings.users);
        let ways = Ways { fixed, users };
        self.leave(&before, &ways);
        self.redial_made(&ways);
        self.ways.set(ways);
        let idle_min = settings.portions.idle_min;
        self.fixed().iter().for_each(|pool| self.foundry.refit(pool, idle_min));
        let made = self.any.iter().flat_map(|any| any.pools());
        made.chain(self.left().clone()).for_each(|pool| self.foundry.refit(&pool, 0));
        self.sweep();
    }

    /// Lets go of left pools without clients.
    pub(in crate::postgres) fn sweep(&self) {
        let mut left = self.left();
        let unused = left.extract_if(.., |pool| Arc::strong_count(pool) == 1);
        let unused: Vec<_> = unused.collect();
        drop(left);
        for pool in unused {
            let goes_on = |other: &Arc<PgPool>| {
                other.settings().name == pool.settings().name
                    && Arc::ptr_eq(other.budget(), pool.budget())
            };
            if self.all().iter().any(goes_on) { pool.close() } else { pool.retire() }
        }
    }

    /// The way of one upstream: with the pool that it had, if it had one.
    fn way(&self, before: &Ways, dial: Dial) -> Fixed {
        let upstream = dial.upstream();
        let mut known = before.fixed.iter();
        let Some(known) = known.find(|known| known.is_of(upstream)) else {
            let new = Fixed::new(dial, &self.foundry, &ChildCredentials::default());
            self.foundry.spawn_reaper(&new.pool);
            return new;
        };
        let (overlap, seed) = self.overlap();
        let next = known.renamed(upstream, overlap, &seed);
        if next.name.passwords.let_all_in() && !known.name.passwords.let_all_in() {
            tracing::warn!(pool = upstream.name, "{STAYS_OPEN}");
        }
        redial(&next.pool, dial);
        next
    }

    fn overlap(&self) -> (Duration, [u8; 32]) {
        (self.foundry.settings().get().password_overlap, self.foundry.keeping().seed)
    }

    fn users(&self, before: &Ways, users: &Users) -> HashMap<String, Passwords, RandomState> {
        let (overlap, seed) = self.overlap();
        let passwords = users.iter().map(|(name, secret)| {
            let secret = Some(secret.clone());
            let passwords = match before.users.get(name) {
                Some(known) => known.replaced(secret, overlap, &seed),
                None => Passwords::new(name, secret),
            };
            (name.to_owned(), passwords)
        });
        passwords.collect()
    }

    /// Pools that were led to and are no more serve the clients that they have.
    fn leave(&self, before: &Ways, now: &Ways) {
        for Fixed { pool, .. } in &before.fixed {
            if !now.fixed.iter().any(|kept| Arc::ptr_eq(&kept.pool, pool)) {
                pool.renew();
                self.left().push(Arc::clone(pool));
            }
        }
    }

    fn redial_made(&self, ways: &Ways) {
        let Some(any) = &self.any else { return };
        for ((user, database), made) in any.lock().iter() {
            let keys = made.pool.connector().dial().keys().cloned();
            redial(&made.pool, any.dial_of(ways, user, database).with_keys(keys));
        }
    }

    pub(super) fn left(&self) -> MutexGuard<'_, Vec<Arc<PgPool>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl super::Any {
    fn pools(&self) -> Vec<Arc<PgPool>> {
        let made = self.lock();
        let made = made.values().map(|made| &made.pool);
        made.chain(self.lookups.pool()).map(Arc::clone).collect()
    }
}

impl Fixed {
    fn is_of(&self, upstream: &PostgresUpstream) -> bool {
        self.pool.settings().name == upstream.name
    }

    /// The same pool, for what the URL says now; what it said before leads there for a while.
    fn renamed(&self, upstream: &PostgresUpstream, overlap: Duration, seed: &[u8; 32]) -> Self {
        let now = Instant::now();
        let mut former: Vec<_> =
            self.former.iter().filter(|name| name.leads(now)).cloned().collect();
        let is_wanted =
            |name: &Name| name.user == upstream.user && name.database == upstream.database;
        let secret = upstream.password.clone().map(UserSecret::Clear);
        let again = |name: &Name| {
            let passwords = name.passwords.replaced(secret, overlap, seed);
            Name { passwords, until: None, ..name.clone() }
        };
        let name = if is_wanted(&self.name) {
            again(&self.name)
        } else {
            // It may be one that the URL had before: who came in by that goes on to.
            let before = former.iter().position(is_wanted).map(|at| former.remove(at));
            let passwords = &self.name.passwords;
            let until = (!passwords.stays()).then(|| now + overlap);
            let passwords = passwords.left_to_command(overlap, seed);
            former.push(Name { until, passwords, ..self.name.clone() });
            match before {
                Some(before) => again(&before),
                None => Name::new(upstream, &ChildCredentials::default()),
            }
        };
        while former.len() > FORMER_MOST
            && let Some(oldest) = former.iter().position(|name| name.until.is_some())
        {
            former.remove(oldest);
        }
        Self { name, former, pool: Arc::clone(&self.pool) }
    }
}

/// Has a pool's connections made in another way from now on. With another password those that are there serve until one could
/// be opened; where they would lead to another place, or say other things, they are replaced as they come back.
fn redial(pool: &Arc<PgPool>, dial: Dial) {
    let wanted = PostgresUpstream::clone(dial.upstream());
    let before = pool.connector().redial(dial);
    let before = before.upstream();
    if *before == wanted {
        return;
    }
    let password = wanted.password.clone();
    if (PostgresUpstream { password, ..before.clone() }) == wanted {
        tracing::info!(pool = pool.settings().name, "another password for the server");
        return pool.renew_when_opened();
    }
    let server = &wanted.hosts;
    tracing::info!(pool = pool.settings().name, %server, "connections are made anew");
    pool.connector().forget_server();
    let budget = pool.budget();
    // What the one server has refused the other may give.
    budget.set_limit(budget.configured());
    pool.renew();
}
