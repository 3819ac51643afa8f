//! Facts of either end: our role, the server's settings, what is in use.

use jiff::Timestamp;
use steep_protocol::message::facts::{Capacity, ServerFacts};
use tokio_postgres::error::SqlState;

use crate::pg::{PgError, Session};
use crate::task::Task;

/// Settings that preflight judges. The query omits those that a version does not have.
const SETTINGS: &[&str] = &[
    "array_nulls",
    "autovacuum_max_workers",
    "autovacuum_worker_slots",
    "idle_in_transaction_session_timeout",
    "idle_replication_slot_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "max_active_replication_origins",
    "max_connections",
    "max_locks_per_transaction",
    "max_logical_replication_workers",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_sync_workers_per_subscription",
    "max_wal_senders",
    "max_wal_size",
    "max_worker_processes",
    "old_snapshot_threshold",
    "reserved_connections",
    "statement_timeout",
    "superuser_reserved_connections",
    "transaction_timeout",
    "wal_level",
    "wal_sender_timeout",
    "xmloption",
];

/// `reset_val` is the value in a session that sets nothing itself.
const SETTINGS_SQL: &str = "SELECT name, coalesce(reset_val, '') FROM pg_settings \
    WHERE name = ANY ($1) ORDER BY name";

/// Providers' roles stand for rights that plain PostgreSQL gives only by attribute. Columns that only some
/// versions of `pg_database` have are read through JSON.
const IDENTITY_SQL: &str = "
SELECT current_database()::text AS database,
       current_user::text AS role,
       r.rolsuper,
       r.rolsuper OR r.rolreplication OR EXISTS (
           SELECT FROM pg_roles p WHERE p.rolname = 'rds_replication'
           AND pg_has_role(p.oid, 'USAGE')) AS replication,
       has_database_privilege(d.oid, 'CREATE') AS can_create,
       r.rolsuper OR EXISTS (
           SELECT FROM pg_roles p WHERE p.rolname IN ('pg_create_subscription', 'rds_superuser')
           AND pg_has_role(p.oid, 'USAGE')) AS can_subscribe,
       has_function_privilege('pg_replication_origin_advance(text, pg_lsn)', 'EXECUTE')
           AND has_function_privilege('pg_replication_origin_progress(text, boolean)', 'EXECUTE')
           AS can_advance_origin,
       pg_is_in_recovery() AS in_recovery,
       pg_encoding_to_char(d.encoding)::text AS encoding,
       coalesce(j.db ->> 'datlocprovider', 'c') AS provider,
       coalesce(j.db ->> 'datlocale', j.db ->> 'daticulocale') AS locale,
       d.datcollate::text AS collate,
       d.datctype::text AS ctype,
       j.db ->> 'datcollversion' AS collation_version,
       r.rolconnlimit::int8 AS role_limit,
       d.datconnlimit::int8 AS database_limit,
       EXISTS (SELECT FROM pg_roles p WHERE p.rolname = 'pg_use_reserved_connections'
           AND pg_has_role(p.oid, 'USAGE')) AS may_use_reserved
FROM pg_database d
CROSS JOIN LATERAL (SELECT to_jsonb(d) AS db) j
JOIN pg_roles r ON r.rolname = current_user
WHERE d.datname = current_database()";

/// What is in use, from sources that every role may read. Where `backend_type` is hidden, a row with a
/// database counts as a client.
const IN_USE_SQL: &str = "
WITH backend AS (
    SELECT a.datname, a.usename, a.backend_type,
           a.backend_type = 'client backend'
           OR (a.backend_type IS NULL AND a.datid IS NOT NULL) AS client
    FROM pg_stat_activity a)
SELECT (SELECT count(*) FROM pg_replication_slots) AS slots,
       (SELECT count(*) FROM pg_stat_get_wal_senders()) AS wal_senders,
       (SELECT count(*) FROM backend WHERE client) AS clients,
       (SELECT count(*) FROM backend WHERE client AND usename = current_user) AS of_role,
       (SELECT count(*) FROM backend WHERE client AND datname = current_database()) AS of_database,
       (SELECT count(*) FROM pg_replication_origin) AS origins,
       (SELECT count(*) FROM pg_stat_get_subscription(NULL) WHERE pid IS NOT NULL) AS apply_workers,
       (SELECT count(*) FROM backend WHERE backend_type NOT IN (
           'client backend', 'autovacuum launcher', 'autovacuum worker', 'background writer',
           'checkpointer', 'walwriter', 'walsender', 'walreceiver', 'walsummarizer', 'startup',
           'archiver', 'logger', 'slotsync worker', 'io worker', 'standalone backend')) AS workers";

/// Adds everything to `facts`, which has the version already.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    mut facts: ServerFacts,
) -> Result<ServerFacts, PgError> {
    let names: Vec<&str> = SETTINGS.to_vec();
    let rows = session
        .run(&task.cancel, session.query(SETTINGS_SQL, &[&names]))
        .await?;
    for row in rows {
        facts.settings.push((row.try_get(0)?, row.try_get(1)?));
    }
    let limits = identity(task, session, &mut facts).await?;
    facts.capacity = capacities(task, session, &facts, &limits).await?;
    // Our own extension need not be on both ends.
    let sql = "SELECT extname::text, extversion FROM pg_extension \
        WHERE extname <> 'steep_repl' ORDER BY extname";
    for row in session.run(&task.cancel, session.query(sql, &[])).await? {
        facts.extensions.push((row.try_get(0)?, row.try_get(1)?));
    }
    facts.can_silence_triggers = can_silence_triggers(task, session).await?;
    facts.clock_ahead_seconds = clock_ahead(task, session).await?;
    Ok(facts)
}

/// Connection limits that are not settings; -1 means none.
struct ConnectionLimits {
    role: i64,
    database: i64,
    may_use_reserved: bool,
}

async fn identity(
    task: &Task,
    session: &Session,
    facts: &mut ServerFacts,
) -> Result<ConnectionLimits, PgError> {
    let row = session
        .run(&task.cancel, session.query_one(IDENTITY_SQL, &[]))
        .await?;
    facts.database = row.try_get("database")?;
    facts.role = row.try_get("role")?;
    facts.superuser = row.try_get("rolsuper")?;
    facts.replication = row.try_get("replication")?;
    facts.can_create = row.try_get("can_create")?;
    facts.can_subscribe = row.try_get("can_subscribe")?;
    facts.can_advance_origin = row.try_get("can_advance_origin")?;
    facts.in_recovery = row.try_get("in_recovery")?;
    facts.encoding = row.try_get("encoding")?;
    facts.collation_version = row.try_get("collation_version")?;
    facts.collation = collation(
        row.try_get("provider")?,
        row.try_get("locale")?,
        row.try_get("collate")?,
        row.try_get("ctype")?,
    );
    Ok(ConnectionLimits {
        role: row.try_get("role_limit")?,
        database: row.try_get("database_limit")?,
        may_use_reserved: row.try_get("may_use_reserved")?,
    })
}

/// Provider and name. With libc, differing categories are named separately; other providers have one locale
/// for both.
fn collation(provider: &str, locale: Option<&str>, collate: &str, ctype: &str) -> String {
    match (provider, locale) {
        ("i", Some(locale)) => format!("icu {locale}"),
        ("b", Some(locale)) => format!("builtin {locale}"),
        _ if collate == ctype => format!("libc {collate}"),
        _ => format!("libc {collate} (ctype {ctype})"),
    }
}

async fn capacities(
    task: &Task,
    session: &Session,
    facts: &ServerFacts,
    limits: &ConnectionLimits,
) -> Result<Vec<Capacity>, PgError> {
    let row = session
        .run(&task.cancel, session.query_one(IN_USE_SQL, &[]))
        .await?;
    let used = |column: &str| -> Result<u64, PgError> {
        Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0))
    };
    let setting = |name: &str| facts.number(name).and_then(|n| u64::try_from(n).ok());
    let mut found = Vec::new();
    let mut add = |bound_by: &str, limit: Option<u64>, used: u64| {
        found.extend(limit.map(|limit| Capacity {
            bound_by: bound_by.to_owned(),
            limit,
            used,
        }));
    };
    for (bound_by, column) in [
        ("max_replication_slots", "slots"),
        ("max_wal_senders", "wal_senders"),
        ("max_active_replication_origins", "origins"),
        ("max_logical_replication_workers", "apply_workers"),
        ("max_worker_processes", "workers"),
    ] {
        add(bound_by, setting(bound_by), used(column)?);
    }
    let mut reserved = 0;
    if !facts.superuser {
        reserved += setting("superuser_reserved_connections").unwrap_or(0);
        if !limits.may_use_reserved {
            reserved += setting("reserved_connections").unwrap_or(0);
        }
        // Neither limit holds for superusers.
        let limit = |n: i64| u64::try_from(n).ok();
        add(
            "role_connection_limit",
            limit(limits.role),
            used("of_role")?,
        );
        add(
            "database_connection_limit",
            limit(limits.database),
            used("of_database")?,
        );
    }
    let connections = setting("max_connections").map(|n| n.saturating_sub(reserved));
    add("max_connections", connections, used("clients")?);
    Ok(found)
}

/// Asks where the version can tell, since a refusal is an error in the server's log; otherwise tries and
/// rolls back.
async fn can_silence_triggers(task: &Task, session: &Session) -> Result<bool, PgError> {
    if session.server_version() >= 150_000 {
        let sql = "SELECT has_parameter_privilege('session_replication_role', 'SET')";
        let asked = session.query_one(sql, &[]);
        return Ok(session.run(&task.cancel, asked).await?.try_get(0)?);
    }
    let attempt = "BEGIN; SET LOCAL session_replication_role = replica";
    let outcome = session
        .run(&task.cancel, session.batch_execute(attempt))
        .await;
    session.batch_execute("ROLLBACK").await?;
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.is(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Seconds the server is ahead: its clock against the middle of the question's round trip.
async fn clock_ahead(task: &Task, session: &Session) -> Result<f64, PgError> {
    let sql = "SELECT extract(epoch FROM clock_timestamp())::float8";
    let statement = session.run(&task.cancel, session.prepare(sql)).await?;
    let seconds = || Timestamp::now().as_microsecond() as f64 / 1e6;
    let asked = seconds();
    let row = session
        .run(&task.cancel, session.query_one(&statement, &[]))
        .await?;
    let answered = seconds();
    let server: f64 = row.try_get(0)?;
    Ok(server - (asked + answered) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collation_is_named_by_what_makes_text_sort() {
        assert_eq!(collation("c", None, "C", "C"), "libc C");
        assert_eq!(
            collation("c", None, "C", "C.UTF-8"),
            "libc C (ctype C.UTF-8)"
        );
        assert_eq!(collation("i", Some("und"), "C", "C"), "icu und");
        assert_eq!(collation("b", Some("C.UTF-8"), "C", "C"), "builtin C.UTF-8");
    }

    #[test]
    fn settings_are_in_order_and_named_once() {
        assert!(SETTINGS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
