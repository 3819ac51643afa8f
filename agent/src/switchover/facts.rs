//! What a switchover needs to know of a node before it changes anything.

use steep_protocol::message::facts::Listed;
use steep_protocol::message::switchover::{
    COMPARED_MAX, Needed, SMALL_MAX, SwitchoverFacts, WriteState,
};
use steep_protocol::{Fault, TableName};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::note::{self, State};
use super::sessions::{self, APPLICATIONS};
use crate::pg::catalog::{USER_RELATION, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Rights are those that `ALTER DATABASE`, `pg_stat_activity` and `pg_terminate_backend` ask for.
const RIGHTS: &str = "
SELECT current_database()::text, current_user::text, coalesce(o.rolname::text, d.datdba::text), r.rolsuper,
    pg_has_role(d.datdba, 'USAGE'), pg_has_role('pg_read_all_stats', 'USAGE'),
    pg_has_role('pg_signal_backend', 'USAGE'), pg_is_in_recovery(),
    current_setting('max_locks_per_transaction')::int8 * (current_setting('max_connections')::int8
        + current_setting('max_prepared_transactions')::int8),
    EXISTS (SELECT FROM pg_roles p WHERE p.rolname IN ('pg_create_subscription', 'rds_superuser')
        AND pg_has_role(p.oid, 'USAGE')),
    has_function_privilege('pg_replication_origin_advance(text, pg_lsn)', 'EXECUTE')
        AND has_function_privilege('pg_replication_origin_progress(text, boolean)', 'EXECUTE')
FROM pg_database d LEFT JOIN pg_roles o ON o.oid = d.datdba, pg_roles r
WHERE d.datname = current_database() AND r.rolname = current_user";

const PREPARED: &str =
    "SELECT x.gid FROM pg_prepared_xacts x WHERE x.database = current_database() ORDER BY 1";

/// Settings of roles, here or everywhere, go before those of the database.
const WRITABLE: &str = "
SELECT DISTINCT r.rolname::text FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
CROSS JOIN LATERAL unnest(s.setconfig) AS e (entry)
WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
    AND CASE split_part(e.entry, '=', 1) WHEN 'default_transaction_read_only'
        THEN NOT split_part(e.entry, '=', 2)::boolean ELSE false END ORDER BY 1";

const SUBSCRIPTIONS: &str = "
SELECT s.subname::text FROM pg_subscription s
WHERE s.subdbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    AND s.subenabled AND s.subname <> $1 ORDER BY 1";

const SLOTS: &str = "
SELECT s.slot_name::text FROM pg_replication_slots s
WHERE s.database = current_database() AND s.slot_name <> $1 AND NOT starts_with(s.slot_name, 'steep_repl_')
ORDER BY 1";

/// Every relation that the publication carries, with what is below it.
const CARRIED: &str = "
carried AS MATERIALIZED (
    SELECT p.relid FROM pg_publication own, pg_get_publication_tables(own.pubname::text) AS p WHERE own.pubname = $1
    UNION
    SELECT t.relid FROM pg_publication own, pg_get_publication_tables(own.pubname::text) AS p
        JOIN pg_class root ON root.oid = p.relid AND root.relkind = 'p', pg_partition_tree(p.relid) AS t
    WHERE own.pubname = $1
)";

/// Rows of the tables that are compared while writes are stopped: read on both sides in some milliseconds.
const SMALL_ROWS: i64 = 10_000;
const SMALL_PAGES: i64 = 1_000;

/// Published tables, the smallest first, with their rows and pages as far as statistics know. Locks none of them.
const SIZES: &str = "
SELECT n.nspname::text, c.relname::text, size.rows::int8, size.pages::int8
FROM pg_publication own, pg_get_publication_tables(own.pubname::text) AS p
JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT sum(greatest(l.reltuples, pg_stat_get_live_tuples(l.oid), 0)) AS rows, sum(l.relpages) AS pages
    FROM pg_class l WHERE l.oid = c.oid OR c.relkind = 'p' AND l.oid IN (SELECT t.relid FROM pg_partition_tree(c.oid) AS t)
) AS size
WHERE own.pubname = $1 ORDER BY size.rows, size.pages, 1, 2";

const TRIGGERS: &str = "
SELECT n.nspname::text || '.' || c.relname::text || ': ' || t.tgname::text
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') AND n.nspname <> 'steep_repl' ORDER BY 1";

/// Roles that can log in and own something here, are granted something here, or get that from a role that is.
const ROLES: &str = "
WITH RECURSIVE used AS (
    SELECT s.refobjid AS role FROM pg_shdepend s
    WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype IN ('o', 'a')
        AND s.dbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    UNION SELECT m.member FROM used JOIN pg_auth_members m ON m.roleid = used.role
)
SELECT DISTINCT r.rolname::text FROM used JOIN pg_roles r ON r.oid = used.role WHERE r.rolcanlogin ORDER BY 1";

const EXTENSIONS: &str =
    "SELECT e.extname::text FROM pg_extension e WHERE e.extname <> 'steep_repl' ORDER BY 1";

/// Those that belong to no table; the others come with theirs.
fn sequences() -> String {
    format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'S' AND {USER_RELATION} AND NOT EXISTS (SELECT FROM pg_depend d
             WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
             AND d.deptype IN ('a', 'i')) ORDER BY 1"
    )
}

/// Gathers facts and changes nothing.
pub(super) async fn gather(task: &Task, needed: &Needed) -> Result<SwitchoverFacts, Fault> {
    let session = task.connect("switchover").await?;
    let facts = look(task, &session, needed).await;
    session.give_back().await;
    facts.map_err(|error| task.fault(error))
}

async fn look(task: &Task, session: &Session, needed: &Needed) -> Result<SwitchoverFacts, PgError> {
    let row = session.query_one(RIGHTS, &[]).await?;
    let superuser: bool = row.try_get(3)?;
    let may = |at| -> Result<bool, PgError> { Ok(superuser || row.try_get(at)?) };
    let name = task.replication.name();
    let publication: &[&(dyn ToSql + Sync)] = &[&name.as_str()];
    let mut facts = SwitchoverFacts {
        database: row.try_get(0)?,
        role: row.try_get(1)?,
        owner: row.try_get(2)?,
        superuser,
        may_set_database: may(4)?,
        may_see_sessions: may(5)?,
        may_end_sessions: may(6)?,
        may_subscribe: may(9)?,
        may_advance_origin: may(10)?,
        standby: row.try_get(7)?,
        lock_room: count(&row, 8)?,
        prepared: listed(session, PREPARED, &[]).await?,
        writable_roles: listed(session, WRITABLE, &[]).await?,
        subscriptions: listed(session, SUBSCRIPTIONS, publication).await?,
        slots: listed(session, SLOTS, &[&task.replication.slot.as_str()]).await?,
        replica_triggers: listed(session, TRIGGERS, &[]).await?,
        needed: Needed {
            roles: names(session, ROLES, &[]).await?,
            extensions: names(session, EXTENSIONS, &[]).await?,
            sequences: names(session, &sequences(), &[]).await?,
        },
        read_only: note::is_on(note::setting(session).await?.as_deref()),
        ..SwitchoverFacts::default()
    };
    facts.needed.roles.truncate(COMPARED_MAX);
    facts.needed.extensions.truncate(COMPARED_MAX);
    facts.needed.sequences.truncate(COMPARED_MAX);
    let sql = format!(
        "SELECT count(*), count(*) FILTER (WHERE coalesce(r.rolsuper, false)) FROM {APPLICATIONS}"
    );
    let row = session.query_one(&sql, &[&sessions::ours(task)]).await?;
    (facts.sessions, facts.superuser_sessions) = (count(&row, 0)?, count(&row, 1)?);
    let sql = format!("WITH {CARRIED} SELECT count(*) FROM carried");
    facts.tables = count(&session.query_one(&sql, publication).await?, 0)?;
    let sql = format!(
        "WITH {CARRIED} SELECT n.nspname::text || '.' || c.relname::text FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND {USER_RELATION} AND c.oid NOT IN (SELECT relid FROM carried) ORDER BY 1"
    );
    facts.not_replicated = listed(session, &sql, publication).await?;
    (facts.small, facts.large) = sizes(&session.query(SIZES, publication).await?)?;
    let sql = "SELECT w.name FROM unnest($1::text[]) AS w (name) WHERE NOT EXISTS ( \
         SELECT FROM pg_roles r WHERE r.rolname = w.name AND r.rolcanlogin) ORDER BY 1";
    facts.lacking_roles = listed(session, sql, &[&needed.roles]).await?;
    let sql = "SELECT w.name FROM unnest($1::text[]) AS w (name) WHERE NOT EXISTS ( \
         SELECT FROM pg_extension e WHERE e.extname = w.name) ORDER BY 1";
    facts.lacking_extensions = listed(session, sql, &[&needed.extensions]).await?;
    let sql = "SELECT w.name FROM unnest($1::text[]) AS w (name) WHERE NOT EXISTS ( \
         SELECT FROM pg_class c WHERE c.oid = to_regclass(w.name) AND c.relkind = 'S') ORDER BY 1";
    facts.lacking_sequences = listed(session, sql, &[&needed.sequences]).await?;
    facts.write_state = note::read_any(session).await?.map(|note| match note.state {
        State::Closed => WriteState::Closed,
        State::Final => WriteState::Final,
        State::Open { position } => WriteState::Open { position },
    });
    Ok(facts)
}

/// The small tables, and the others.
fn sizes(rows: &[Row]) -> Result<(Vec<TableName>, Listed), PgError> {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    let (mut sum, mut pages) = (0, 0);
    for row in rows {
        let name = table_name(row, 0)?;
        sum += row.try_get::<_, i64>(2)?;
        pages += row.try_get::<_, i64>(3)?;
        match sum <= SMALL_ROWS && pages <= SMALL_PAGES && small.len() < SMALL_MAX {
            true => small.push(name),
            false => large.push(name.to_string()),
        }
    }
    Ok((small, large.into_iter().collect()))
}

fn count(row: &Row, at: usize) -> Result<u64, PgError> {
    Ok(u64::try_from(row.try_get::<_, i64>(at)?).unwrap_or(0))
}

async fn names(
    session: &Session,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<String>, PgError> {
    let rows = session.query(sql, values).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn listed(
    session: &Session,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Listed, PgError> {
    Ok(names(session, sql, values).await?.into_iter().collect())
}
