//! Which objects of a database are a job's own: those that were not there before it made the
//! schema, as a list taken when it had.
//!
//! Until the list is taken everything that is not in the baseline counts as the job's, which is
//! right for the seconds in which a schema is made in a database without tables. After that only
//! listed objects are, so that a table somebody makes meanwhile is never dropped for it.

use std::collections::BTreeMap;

use steep_protocol::{Fault, JobId};
use tokio_postgres::error::SqlState;

use super::conn::Conn;
use super::schemas;

/// Every object a schema dump can make that stands by itself: not made by initdb (below 16384), not
/// part of an extension, not an inner part of another object, not ours.
const USER_OBJECTS: &str = "
    SELECT o.classid, o.objid, o.xmin FROM (
        SELECT 'pg_namespace'::regclass::oid AS classid, oid AS objid, xmin FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname <> 'steep_repl'
        UNION ALL SELECT 'pg_class'::regclass, oid, xmin FROM pg_class
            WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'
            AND relnamespace IS DISTINCT FROM to_regnamespace('steep_repl')
        UNION ALL SELECT 'pg_type'::regclass, oid, xmin FROM pg_type
            WHERE typtype IN ('b', 'c', 'd', 'e', 'r')
            AND typnamespace IS DISTINCT FROM to_regnamespace('steep_repl')
            AND (typrelid = 0 OR typrelid IN (SELECT oid FROM pg_class WHERE relkind = 'c'))
        UNION ALL SELECT 'pg_proc'::regclass, oid, xmin FROM pg_proc
        UNION ALL SELECT 'pg_operator'::regclass, oid, xmin FROM pg_operator
        UNION ALL SELECT 'pg_opclass'::regclass, oid, xmin FROM pg_opclass
        UNION ALL SELECT 'pg_opfamily'::regclass, oid, xmin FROM pg_opfamily
        UNION ALL SELECT 'pg_am'::regclass, oid, xmin FROM pg_am
        UNION ALL SELECT 'pg_cast'::regclass, oid, xmin FROM pg_cast
        UNION ALL SELECT 'pg_collation'::regclass, oid, xmin FROM pg_collation
        UNION ALL SELECT 'pg_conversion'::regclass, oid, xmin FROM pg_conversion
        UNION ALL SELECT 'pg_ts_config'::regclass, oid, xmin FROM pg_ts_config
        UNION ALL SELECT 'pg_ts_dict'::regclass, oid, xmin FROM pg_ts_dict
        UNION ALL SELECT 'pg_ts_parser'::regclass, oid, xmin FROM pg_ts_parser
        UNION ALL SELECT 'pg_ts_template'::regclass, oid, xmin FROM pg_ts_template
        UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, xmin FROM pg_statistic_ext
        UNION ALL SELECT 'pg_transform'::regclass, oid, xmin FROM pg_transform
        UNION ALL SELECT 'pg_language'::regclass, oid, xmin FROM pg_language
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid, xmin FROM pg_foreign_server
        UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, xmin FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'pg_event_trigger'::regclass, oid, xmin FROM pg_event_trigger
        UNION ALL SELECT 'pg_extension'::regclass, oid, xmin FROM pg_extension
    ) o
    WHERE o.objid >= 16384 AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = o.classid AND d.objid = o.objid
        AND d.objsubid = 0 AND d.deptype IN ('e', 'i'))";

/// Kinds in the order they are dropped in, as `pg_identify_object` calls them, and as `DROP` does.
/// What others hang on comes late; where the job made the whole schema, CASCADE does the rest.
const KINDS: [(&str, &str); 28] = [
    ("event trigger", "EVENT TRIGGER"),
    ("materialized view", "MATERIALIZED VIEW"),
    ("view", "VIEW"),
    ("statistics object", "STATISTICS"),
    ("table", "TABLE"),
    ("foreign table", "FOREIGN TABLE"),
    ("sequence", "SEQUENCE"),
    ("cast", "CAST"),
    ("transform", "TRANSFORM"),
    ("conversion", "CONVERSION"),
    ("operator class", "OPERATOR CLASS"),
    ("operator family", "OPERATOR FAMILY"),
    ("operator", "OPERATOR"),
    ("aggregate", "AGGREGATE"),
    ("procedure", "PROCEDURE"),
    ("function", "FUNCTION"),
    ("composite type", "TYPE"),
    ("type", "TYPE"),
    ("text search configuration", "TEXT SEARCH CONFIGURATION"),
    ("text search dictionary", "TEXT SEARCH DICTIONARY"),
    ("text search parser", "TEXT SEARCH PARSER"),
    ("text search template", "TEXT SEARCH TEMPLATE"),
    ("collation", "COLLATION"),
    ("server", "SERVER"),
    ("foreign-data wrapper", "FOREIGN DATA WRAPPER"),
    ("access method", "ACCESS METHOD"),
    ("language", "LANGUAGE"),
    ("extension", "EXTENSION"),
];

/// Objects dropped in one transaction: a table with its indexes, TOAST and sequences holds about ten
/// locks, and the default lock table has 6,400 places for everybody.
const DROP_BATCH: usize = 100;

/// Remembers what is there. Inside the caller's transaction.
pub(super) async fn note_baseline(conn: &Conn, job: JobId) -> Result<(), Fault> {
    conn.execute(&format!(
        "DELETE FROM steep_repl.baseline WHERE job = '{job}';
         INSERT INTO steep_repl.baseline (job, classid, objid)
         SELECT '{job}', classid, objid FROM ({USER_OBJECTS}) AS there;
         {}",
        schemas::note(job)
    ))
    .await
}

/// The statement that lists what the job has made, complete from then on. In a database that had
/// tables, others work meanwhile and their objects appear between baseline and list: there all of the
/// job's are made in the transaction that lists them, which tells them from those.
pub(super) fn note_created(job: JobId) -> String {
    format!(
        "INSERT INTO steep_repl.created (job, classid, objid)
         SELECT '{job}', classid, objid FROM ({USER_OBJECTS}) AS there
         WHERE (classid, objid) NOT IN
            (SELECT classid, objid FROM steep_repl.baseline WHERE job = '{job}')
         AND (there.xmin = pg_current_xact_id()::xid OR EXISTS (
            SELECT FROM steep_repl.jobs WHERE job = '{job}' AND origin = 'bootstrap'))
         ON CONFLICT DO NOTHING;
         UPDATE steep_repl.jobs SET owns_listed = true WHERE job = '{job}'"
    )
}

/// Drops what the job has made, and nothing else but what depends on it.
pub(super) async fn drop_created(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let mut mine = mine(conn, job).await?;
    for (kind, keyword) in KINDS {
        let drops: Vec<String> = mine
            .remove(kind)
            .unwrap_or_default()
            .iter()
            .map(|identity| format!("DROP {keyword} IF EXISTS {identity} CASCADE"))
            .collect();
        for batch in drops.chunks(DROP_BATCH) {
            let outcome = conn.transact(&batch.join(";\n")).await;
            outcome.map_err(|error| conn.fault(&error))?;
        }
    }
    for schema in mine.remove("schema").unwrap_or_default() {
        drop_schema(conn, &schema).await?;
    }
    for (kind, left) in mine {
        tracing::warn!(
            kind,
            count = left.len(),
            "objects of this kind are not removed"
        );
    }
    schemas::restore(conn, job).await
}

/// Drops what the job has made in a database that had tables, and only what nobody else uses: a type
/// that a column of before was changed to stays, and so does a table that somebody's view reads. Needs a
/// complete list.
pub(super) async fn drop_listed(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let sql = "SELECT EXISTS (SELECT FROM steep_repl.jobs WHERE job = $1 AND owns_listed)";
    if !conn.row(sql, &[&job.to_string()]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    let mut mine = mine(conn, job).await?;
    let mut left = Vec::new();
    for (kind, keyword) in KINDS {
        let identities = mine.remove(kind).unwrap_or_default();
        left.extend(identities.into_iter().map(|identity| (keyword, identity)));
    }
    // A foreign key to a table of the job's can only have come after it, and holds no data.
    drop_references(conn, job).await?;
    // What uses one another goes from the outside in: until a round changes nothing.
    loop {
        let before = left.len();
        left = drop_unused(conn, left).await?;
        if left.len() == before || left.is_empty() {
            break;
        }
    }
    for (keyword, identity) in left {
        tracing::warn!(
            job_id = %job,
            kind = keyword,
            object = %identity,
            "what the job has made stays: objects that are not the job's use it"
        );
    }
    for schema in mine.remove("schema").unwrap_or_default() {
        drop_schema(conn, &schema).await?;
    }
    schemas::restore(conn, job).await
}

/// One round over the objects; those that are still used.
async fn drop_unused<'a>(
    conn: &Conn,
    objects: Vec<(&'a str, String)>,
) -> Result<Vec<(&'a str, String)>, Fault> {
    let mut used = Vec::new();
    for (keyword, identity) in objects {
        let drop = format!("DROP {keyword} IF EXISTS {identity} RESTRICT");
        match conn.transact(&drop).await {
            Ok(()) => {}
            Err(error) if error.is(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
                used.push((keyword, identity));
            }
            Err(error) => return Err(conn.fault(&error)),
        }
    }
    Ok(used)
}

/// Drops foreign keys to tables on the job's list.
async fn drop_references(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let sql = "SELECT format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS %I', n.nspname, c.relname, k.conname)
        FROM steep_repl.created m
        JOIN pg_constraint k ON k.contype = 'f' AND k.confrelid = m.objid AND k.conparentid = 0
        JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE m.job = $1 AND m.classid = 'pg_class'::regclass";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    let drops: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for batch in drops.chunks(DROP_BATCH) {
        let outcome = conn.transact(&batch.join(";\n")).await;
        outcome.map_err(|error| conn.fault(&error))?;
    }
    Ok(())
}

/// Identities of the job's objects, ready for SQL, by kind.
async fn mine(conn: &Conn, job: JobId) -> Result<BTreeMap<String, Vec<String>>, Fault> {
    let sql = format!(
        "SELECT made.type, made.identity FROM (
             SELECT classid, objid FROM steep_repl.created JOIN steep_repl.jobs j USING (job)
             WHERE job = $1 AND j.owns_listed
             UNION ALL
             SELECT classid, objid FROM ({USER_OBJECTS}) AS there
             WHERE EXISTS (SELECT FROM steep_repl.jobs j WHERE job = $1 AND NOT j.owns_listed)
             AND (classid, objid) NOT IN
                (SELECT classid, objid FROM steep_repl.baseline WHERE job = $1)
         ) AS o
         CROSS JOIN LATERAL pg_identify_object(o.classid, o.objid, 0) AS made
         WHERE made.identity IS NOT NULL"
    );
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for row in conn.rows(&sql, &[&job.to_string()]).await? {
        found.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(found)
}

/// Schemas come last: they are empty by now, or hold what somebody else has put there, which is not
/// ours to drop.
async fn drop_schema(conn: &Conn, schema: &str) -> Result<(), Fault> {
    let sql = format!("DROP SCHEMA IF EXISTS {schema} RESTRICT");
    match conn.transact(&sql).await {
        Ok(()) => Ok(()),
        Err(error) if error.is(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
            tracing::warn!(%schema, "a schema stays, it holds objects that are not the job's");
            Ok(())
        }
        Err(error) => Err(conn.fault(&error)),
    }
}

/// Whether the database has tables of a user's: then its schema is not for us to make.
pub(super) async fn has_user_tables(conn: &Conn) -> Result<bool, Fault> {
    let sql = "SELECT EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
        AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'steep_repl')
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
            AND d.objid = c.oid AND d.deptype = 'e'))";
    Ok(conn.row(sql, &[]).await?.get(0))
}
