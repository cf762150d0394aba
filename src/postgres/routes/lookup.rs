//! Users whom the server knows and the configuration doesn't: their verifiers are asked for with `auth_query`, over connections
//! that serve nothing else, so that no session's settings change what the query means.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::foundry::Foundry;
use crate::config::Secret;
use crate::pool::{Budget, Ceiling, Checkout, Lease};
use crate::postgres::backend::{PgConnect, PgPool, checkout_error};
use crate::postgres::connect::Dial;
use crate::postgres::message::{ErrorFields, Severity};
use crate::postgres::scram::Verifier;
use crate::postgres::wire;

/// Most users remembered, those included whom the server doesn't know.
const USERS: usize = 10_000;
/// Longest name that is asked for, in bytes.
const NAME_BYTES: usize = 256;
/// For how long it is remembered at most that there is no such user, or that nobody could be asked.
const IN_VAIN: Duration = Duration::from_secs(5);
/// After a wrong password a user may be asked for again, if this long has passed.
const DOUBT: Duration = Duration::from_secs(1);
/// The statement's name; no other is ever parsed on these connections.
const STATEMENT: &[u8] = b"tidegate_auth_query\0";
/// Most connections for it: whoever knocks has not proved anything yet.
const CONNECTIONS: usize = 1;
/// The pool's name.
const POOL: &str = "auth_query";

/// What was asked.
pub(super) struct Lookups {
    pool: OnceLock<Arc<PgPool>>,
    users: Mutex<HashMap<String, Arc<Slot>, RandomState>>,
}

/// One user. Whoever comes first asks; the others wait for the same answer.
#[derive(Default)]
struct Slot(OnceCell<(Instant, Answer)>);

#[derive(Clone)]
enum Answer {
    Verifier(Verifier),
    Nobody,
    /// The server could not be asked.
    Failed(Box<ErrorFields>),
}

impl Slot {
    /// Whether its answer still counts; one that is being waited for does.
    fn counts(&self, kept: Duration) -> bool {
        let Some((at, answer)) = self.0.get() else { return true };
        let kept = match answer {
            Answer::Verifier(_) => kept,
            Answer::Nobody | Answer::Failed(_) => kept.min(IN_VAIN),
        };
        at.elapsed() < kept
    }

    /// Whether it can be forgotten at no cost.
    fn is_in_vain(&self) -> bool {
        self.0.get().is_some_and(|(_, answer)| !matches!(answer, Answer::Verifier(_)))
    }
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self { pool: OnceLock::new(), users: Mutex::default() }
    }

    /// The pool that asks, if anybody was asked for yet.
    pub(super) fn pool(&self) -> Option<&Arc<PgPool>> {
        self.pool.get()
    }

    /// The verifier of `user`; none if the server knows no such user, or has none that would do. Call it inside the runtime.
    /// Cancel safe: who waits for the same answer asks instead.
    ///
    /// # Errors
    /// When the server could not be asked.
    pub(super) async fn of(
        &self,
        user: &str,
        (foundry, dial, budget): (&Foundry, &Dial, &Arc<Budget>),
    ) -> Result<Option<Verifier>, ErrorFields> {
        let settings = foundry.settings().get();
        let Some(query) = &settings.auth_query else { return Ok(None) };
        if user.is_empty() || user.len() > NAME_BYTES {
            return Ok(None);
        }
        let slot = self.slot(user, settings.auth_query_kept);
        let asked = slot.0.get_or_init(async || {
            let pool = self.pool.get_or_init(|| {
                let (name, ceiling) = (POOL.to_owned(), Ceiling::new(CONNECTIONS));
                let (dial, budget) = (dial.clone(), Arc::clone(budget));
                let pool = foundry.pool_below(Some(ceiling), name, dial, budget, 0);
                foundry.spawn_reaper(&pool);
                pool
            });
            let answer = match ask(pool, query, user).await {
                Ok(answer) => answer,
                Err(error) => Answer::Failed(Box::new(error)),
            };
            (Instant::now(), answer)
        });
        match &asked.await.1 {
            Answer::Verifier(verifier) => Ok(Some(verifier.clone())),
            Answer::Nobody => Ok(None),
            Answer::Failed(error) => Err(ErrorFields::clone(error)),
        }
    }

    /// A client's password was wrong: it may have changed since it was asked for.
    pub(super) fn doubt(&self, user: &str) {
        let mut users = self.users();
        let old = |slot: &Arc<Slot>| slot.0.get().is_some_and(|(at, _)| at.elapsed() >= DOUBT);
        if users.get(user).is_some_and(old) {
            users.remove(user);
        }
    }

    fn slot(&self, user: &str, kept: Duration) -> Arc<Slot> {
        let mut users = self.users();
        if let Some(known) = users.get(user).filter(|slot| slot.counts(kept)) {
            return Arc::clone(known);
        }
        if users.len() >= USERS && !users.contains_key(user) {
            users.retain(|_, slot| slot.counts(kept) && !slot.is_in_vain());
        }
        let slot = Arc::<Slot>::default();
        // Past the limit nothing more is remembered.
        if users.len() < USERS || users.contains_key(user) {
            users.insert(user.to_owned(), Arc::clone(&slot));
        }
        slot
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, Arc<Slot>, RandomState>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(pool: &Arc<PgPool>, query: &str, user: &str) -> Result<Answer, ErrorFields> {
    let lease = match pool.checkout() {
        Checkout::Ready(lease) => Ok(lease),
        Checkout::Queued(ticket) => ticket.lease().await,
    };
    let lease = lease.map_err(|error| checkout_error(&error, Severity::Fatal))?;
    let answer = ask_over(lease, pool.settings().connect_timeout(), query, user).await;
    answer.map_err(|problem| {
        pool.metrics().note(
            "auth_query",
            format!("a user could not be looked up: {problem}"),
            "Try postgres.auth_query as the user of the URL.".to_owned(),
        );
        ErrorFields::fatal("58000", "the user could not be looked up at the server")
    })
}

async fn ask_over(
    mut lease: Lease<PgConnect>,
    limit: Duration,
    query: &str,
    user: &str,
) -> Result<Answer, String> {
    let question = question(query, user);
    let answer = match tokio::time::timeout(limit, lease.ask(&question)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            lease.close("auth_query");
            return Err(error.to_string());
        }
        Err(_late) => {
            lease.close("auth_query");
            return Err("no answer in time".to_owned());
        }
    };
    lease.give_back();
    match answer.error {
        Some(error) => Err(format!("{} ({})", error.message, error.code)),
        None => read(&answer.rows(), user),
    }
}

/// The query with the name as its parameter. A statement that an error has left behind is closed first.
fn question(query: &str, user: &str) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_frame(&mut out, b'C', &[b"S", STATEMENT]);
    wire::put_frame(&mut out, b'P', &[STATEMENT, query.as_bytes(), b"\0", &[0; 2]]);
    let length = i32::try_from(user.len()).unwrap_or(0).to_be_bytes();
    // The unnamed portal, all in text, one parameter.
    let head: [&[u8]; 4] = [b"\0", STATEMENT, &[0, 0, 0, 1], &length];
    let value: [&[u8]; 2] = [user.as_bytes(), &[0, 0]];
    wire::put_frame(&mut out, b'B', &[head.as_slice(), value.as_slice()].concat());
    wire::put_frame(&mut out, b'E', &[b"\0", &[0, 0, 0, 2]]);
    wire::put_frame(&mut out, b'C', &[b"S", STATEMENT]);
    wire::put_frame(&mut out, b'S', &[]);
    out
}

/// Name and verifier, as PgBouncer reads them. What is shown of the row is nothing.
fn read(rows: &[Vec<Vec<u8>>], user: &str) -> Result<Answer, String> {
    let row = match rows {
        [] => return Ok(Answer::Nobody),
        [row] => row,
        _ => return Err("the query brings more than one row".to_owned()),
    };
    let [name, secret] = row.as_slice() else {
        return Err(format!("the query brings {} columns, not name and verifier", row.len()));
    };
    if name != user.as_bytes() || secret.is_empty() {
        return Ok(Answer::Nobody);
    }
    let secret = std::str::from_utf8(secret).map(Secret::new).ok();
    match secret.and_then(|secret| Verifier::parse(secret.expose())) {
        Some(verifier) => Ok(Answer::Verifier(verifier)),
        None => {
            tracing::warn!(
                user,
                "the server has no SCRAM-SHA-256 verifier for this user, but an md5 hash or a plain password, which \
                 does not do: with password_encryption = 'scram-sha-256', set the password again"
            );
            Ok(Answer::Nobody)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn a_row_is_a_name_and_a_verifier() {
        let row = |cells: &[&str]| cells.iter().map(|cell| cell.as_bytes().to_vec()).collect();
        let read = |rows: &[Vec<Vec<u8>>]| match read(rows, "ann") {
            Ok(Answer::Verifier(_)) => "verifier",
            Ok(Answer::Nobody) => "nobody",
            Ok(Answer::Failed(_)) | Err(_) => "failed",
        };
        for (cells, wanted) in [
            (&["ann", VERIFIER][..], "verifier"),
            (&["bob", VERIFIER], "nobody"),
            (&["ann", ""], "nobody"),
            (&["ann", "md50123456789abcdef0123456789abcdef"], "nobody"),
            (&["ann", "hunter2"], "nobody"),
            (&[VERIFIER], "failed"),
            (&["ann", VERIFIER, "x"], "failed"),
        ] {
            assert_eq!(read(&[row(cells)]), wanted, "{cells:?}");
        }
        assert_eq!(read(&[]), "nobody");
        let two: Vec<Vec<u8>> = row(&["ann", VERIFIER]);
        assert_eq!(read(&[two.clone(), two]), "failed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_has_a_bound_and_an_age() {
        let lookups = Lookups::new();
        let kept = Duration::from_secs(60);
        let learn = |user: &str, answer: Answer| {
            let set = lookups.slot(user, kept).0.set((Instant::now(), answer));
            assert!(set.is_ok(), "{user}");
        };
        let known = Verifier::parse(VERIFIER).unwrap();
        learn("ann", Answer::Verifier(known));
        for number in 0..USERS * 2 {
            learn(&format!("stranger{number}"), Answer::Nobody);
            assert!(lookups.users().len() <= USERS);
        }
        assert!(lookups.slot("ann", kept).0.get().is_some(), "strangers drive nobody out");
        tokio::time::advance(IN_VAIN).await;
        assert!(lookups.slot("stranger1", kept).0.get().is_none(), "it is asked for again");
        lookups.doubt("ann");
        assert!(lookups.slot("ann", kept).0.get().is_none(), "so is who gave a wrong password");
    }
}
