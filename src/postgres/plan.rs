//! How many connections the server allows, and how many there are, whoever's they are: asked now and then over a connection
//! that lies idle, so that an application learns of a plan's limit before it hits it.
//!
//! Source: PostgreSQL documentation, `pg_roles.rolconnlimit`, `pg_database.datconnlimit`, "Connections and
//! Authentication" (`max_connections`). Every name and operator is qualified, as the session's `search_path` still holds.

use std::time::Duration;

use super::backend::PgPool;
use super::settings::put_literal;
use super::wire;
use crate::status::PlanLimit;

/// Until then the server must have answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is compared by name.
const EQUALS: &str = " OPERATOR(pg_catalog.=) ";

/// Asks, if a connection lies idle and nobody waits for one. Keeps what it hears in the pool's metrics.
pub(super) async fn ask(pool: &std::sync::Arc<PgPool>) {
    let Some(mut lease) = pool.spare() else { return };
    let mut question = Vec::new();
    put_question(&pool.connector().dial().upstream().user, &mut question);
    let answer = match tokio::time::timeout(PATIENCE, lease.ask(&question)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => return lease.close("plan"),
    };
    lease.give_back();
    if let Some(error) = answer.error {
        tracing::debug!(pool = %pool.settings().name, error = %error.message, "no limits of the server");
        return;
    }
    let limits: Vec<_> = answer.rows().iter().filter_map(|row| read(row)).collect();
    pool.metrics().plan(&limits);
}

fn put_question(user: &str, out: &mut Vec<u8>) {
    // What others' backends are for is not shown to everybody.
    let clients = |what: &str| {
        format!(
            "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE usename IS NOT NULL AND \
             (backend_type IS NULL OR backend_type{EQUALS}'client backend'){what})"
        )
    };
    let number = |setting: &str| {
        format!(
            "CAST(COALESCE(pg_catalog.current_setting('{setting}', true), '0') AS pg_catalog.int4)"
        )
    };
    let mut name = String::new();
    put_literal(&mut name, user);
    let text = format!(
        "SELECT 'role', {}, rolconnlimit FROM pg_catalog.pg_roles WHERE rolname{EQUALS}{name} \
         UNION ALL SELECT 'database', {}, datconnlimit FROM pg_catalog.pg_database WHERE datname{EQUALS}\
         pg_catalog.current_database() UNION ALL SELECT 'server', {}, {} OPERATOR(pg_catalog.-) {} \
         OPERATOR(pg_catalog.-) {}\0",
        clients(&format!(" AND usename{EQUALS}{name}")),
        clients(&format!(" AND datname{EQUALS}pg_catalog.current_database()")),
        clients(""),
        number("max_connections"),
        number("superuser_reserved_connections"),
        number("reserved_connections"),
    );
    wire::put_frame(out, b'Q', &[text.as_bytes()]);
}

/// One row; none if there is no such limit.
fn read(row: &[Vec<u8>]) -> Option<PlanLimit> {
    let [scope, used, limit] = row else { return None };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let (used, limit) = (text(used)?.parse().ok()?, text(limit)?.parse().ok()?);
    Some(PlanLimit { scope: text(scope)?, used, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_none() {
        let row = |limit: &str| {
            let cells = ["role", "7", limit].map(|cell| cell.as_bytes().to_vec());
            read(&cells)
        };
        let known = PlanLimit { scope: "role".to_owned(), used: 7, limit: 20 };
        assert_eq!(row("20"), Some(known));
        assert_eq!(row("-1"), None);
    }
}
