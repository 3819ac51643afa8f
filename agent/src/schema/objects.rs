//! Which objects of a database are a job's own: those that a list, taken when the schema was complete, adds
//! to the baseline from before.
//!
//! Until the list is taken everything outside the baseline counts as the job's, for the seconds in which a
//! schema is created in a database without tables. After that only listed objects do, so a table that
//! somebody creates meanwhile is never dropped.

use std::collections::HashSet;

use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, JobId, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::batch::is_of_the_statement;
use super::{namespaces, privileges};
use crate::node::connection::Conn;
use crate::pg::PgError;

/// Every independent object that a schema dump can create: not initdb's (below 16384), not an extension's,
/// not an inner part of another, not ours.
const USER_OBJECTS: &str = "
    SELECT o.classid, o.objid, o.xmin FROM (
        SELECT 'pg_namespace'::regclass::oid AS classid, oid AS objid, xmin FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname <> 'steep_repl'
        UNION ALL SELECT 'pg_class'::regclass, oid, xmin FROM pg_class
            WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'
            AND relnamespace IS DISTINCT FROM to_regnamespace('steep_repl')
        UNION ALL SELECT 'pg_type'::regclass, oid, xmin FROM pg_type
            WHERE (typtype IN ('b', 'c', 'd', 'e', 'r') OR NOT typisdefined)
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

/// The DROP statement of each object of `o (classid, objid)`, as PostgreSQL names it, in the order in which
/// most succeed: first what fires, then what holds rows, extensions last. Routines and transforms are
/// dropped by another name than their identity.
const DROPS: &str = "
    SELECT CASE o.classid
            WHEN 'pg_proc'::regclass THEN (
                SELECT format('%s IF EXISTS %I.%I(%s)',
                    CASE p.prokind WHEN 'a' THEN 'AGGREGATE' WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
                    n.nspname, p.proname,
                    CASE WHEN p.prokind = 'a' AND p.pronargs = 0 THEN '*'
                        ELSE pg_get_function_identity_arguments(p.oid) END)
                FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = o.objid)
            WHEN 'pg_transform'::regclass THEN (
                SELECT format('TRANSFORM IF EXISTS FOR %s LANGUAGE %I', format_type(t.trftype, NULL), l.lanname)
                FROM pg_transform t JOIN pg_language l ON l.oid = t.trflang WHERE t.oid = o.objid)
            ELSE format('%s IF EXISTS %s', CASE made.type
                WHEN 'composite type' THEN 'TYPE' WHEN 'statistics object' THEN 'STATISTICS'
                WHEN 'foreign-data wrapper' THEN 'FOREIGN DATA WRAPPER' ELSE upper(made.type) END,
                made.identity)
        END
    FROM (SELECT DISTINCT classid, objid FROM mine) AS o
    CROSS JOIN LATERAL pg_identify_object(o.classid, o.objid, 0) AS made
    WHERE made.identity IS NOT NULL AND (o.classid = 'pg_namespace'::regclass) = $2
    ORDER BY o.classid <> 'pg_event_trigger'::regclass, o.classid <> 'pg_class'::regclass,
        o.classid = 'pg_extension'::regclass, o.objid";

/// The job's list; where the job created the schema and never took a list, what the baseline lacks.
fn mine(only_listed: bool) -> String {
    let unlisted = match only_listed {
        true => String::new(),
        false => format!(
            "UNION ALL
             SELECT classid, objid FROM ({USER_OBJECTS}) AS there
             WHERE EXISTS (SELECT FROM steep_repl.jobs j WHERE job = $1 AND NOT j.owns_listed)
             AND (classid, objid) NOT IN
                (SELECT classid, objid FROM steep_repl.baseline WHERE job = $1)"
        ),
    };
    format!(
        "WITH mine AS (
             SELECT classid, objid FROM steep_repl.created JOIN steep_repl.jobs j USING (job)
             WHERE job = $1 AND j.owns_listed {unlisted}) {DROPS}"
    )
}

/// The tables and sequences that a job has listed as its own.
pub(crate) async fn created_relations(
    conn: &Conn,
    job: JobId,
) -> Result<HashSet<TableName>, Fault> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM steep_repl.created JOIN pg_class c ON c.oid = objid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE job = $1 AND classid = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'S')";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    let name = |row: &Row| TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok();
    Ok(rows.iter().filter_map(name).collect())
}

/// What is dropped along with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dependants {
    /// Everything: the job created the whole schema.
    Dropped,
    /// Nothing: it stays while other objects use it.
    Kept,
}

impl Dependants {
    fn keyword(self) -> &'static str {
        match self {
            Self::Dropped => "CASCADE",
            Self::Kept => "RESTRICT",
        }
    }
}

#[derive(Debug)]
struct Left {
    statement: String,
    error: PgError,
}

/// Objects dropped per transaction: a table with indexes, TOAST and sequences holds about ten locks, and
/// the default lock table has 6,400 places, for everybody.
const DROP_BATCH: usize = 100;

/// Stores what exists. Runs in the caller's transaction.
pub(crate) async fn note_baseline(conn: &Conn, job: JobId) -> Result<(), Fault> {
    conn.execute(&format!(
        "DELETE FROM steep_repl.baseline WHERE job = '{job}';
         INSERT INTO steep_repl.baseline (job, classid, objid)
         SELECT '{job}', classid, objid FROM ({USER_OBJECTS}) AS there;
         {};
         {}",
        namespaces::note(job),
        privileges::note(job)
    ))
    .await
}

/// Lists what the job created; the list is complete from then on. In a database with tables, others create
/// objects between baseline and list: there the job creates all of its own in the transaction that lists
/// them.
pub(crate) fn note_created(job: JobId) -> String {
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

/// Adds what its transaction creates to an existing list.
pub(crate) fn note_made(job: JobId) -> String {
    format!(
        "INSERT INTO steep_repl.created (job, classid, objid)
         SELECT '{job}', classid, objid FROM ({USER_OBJECTS}) AS there
         WHERE there.xmin = pg_current_xact_id()::xid
         AND EXISTS (SELECT FROM steep_repl.jobs WHERE job = '{job}' AND owns_listed)
         ON CONFLICT DO NOTHING"
    )
}

/// Drops what the job created and what depends on it. What cannot be dropped is reported and stops neither
/// the rest nor the node's next job.
pub(crate) async fn drop_created(conn: &Conn, job: JobId) -> Result<Vec<Finding>, Fault> {
    let mut left = drop_all(conn, job, Dependants::Dropped).await?;
    left.extend(drop_schemas(conn, job).await?);
    namespaces::restore(conn, job).await?;
    let mut findings: Vec<Finding> = left.iter().map(|one| stays(conn, one)).collect();
    findings.extend(privileges::restore(conn, job).await?);
    Ok(findings)
}

/// Drops what the job listed in a database with tables, except what others' objects use: their columns may
/// be of the job's types.
pub(crate) async fn drop_listed(conn: &Conn, job: JobId) -> Result<Vec<Finding>, Fault> {
    let sql = "SELECT EXISTS (SELECT FROM steep_repl.jobs WHERE job = $1 AND owns_listed)";
    if !conn.row(sql, &[&job.to_string()]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    // Foreign keys to the job's tables are newer than these, and hold no data.
    drop_references(conn, job).await?;
    let mut left = drop_all(conn, job, Dependants::Kept).await?;
    left.extend(drop_schemas(conn, job).await?);
    namespaces::restore(conn, job).await?;
    Ok(left.iter().map(|one| stays(conn, one)).collect())
}

/// Objects that use one another are dropped from the outside in, in rounds, until one changes nothing.
async fn drop_all(conn: &Conn, job: JobId, dependants: Dependants) -> Result<Vec<Left>, Fault> {
    let sql = mine(dependants == Dependants::Kept);
    let mut before = usize::MAX;
    loop {
        let rows = conn.rows(&sql, &[&job.to_string(), &false]).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let drop = |row: &Row| format!("DROP {} {}", row.get::<_, &str>(0), dependants.keyword());
        let drops: Vec<String> = rows.iter().map(drop).collect();
        let left = drop_round(conn, &drops).await?;
        if left.is_empty() || left.len() >= before {
            return Ok(left);
        }
        before = left.len();
    }
}

/// Returns what it could not drop.
async fn drop_round(conn: &Conn, drops: &[String]) -> Result<Vec<Left>, Fault> {
    let mut left = Vec::new();
    for batch in drops.chunks(DROP_BATCH) {
        match conn.transact(&batch.join(";\n")).await {
            Ok(()) => continue,
            Err(error) if is_about_one(&error) => {}
            Err(error) => return Err(conn.fault(&error)),
        }
        for statement in batch {
            match conn.transact(statement).await {
                Ok(()) => {}
                Err(error) if is_about_one(&error) => left.push(Left {
                    statement: statement.clone(),
                    error,
                }),
                Err(error) => return Err(conn.fault(&error)),
            }
        }
    }
    Ok(left)
}

/// Whether a retry would fail the same way: anything but locks, the server and the connection.
fn is_about_one(error: &PgError) -> bool {
    error.sqlstate().is_some_and(is_of_the_statement)
}

/// Schemas come last. One that is not empty holds what somebody else put there.
async fn drop_schemas(conn: &Conn, job: JobId) -> Result<Vec<Left>, Fault> {
    let rows = conn.rows(&mine(false), &[&job.to_string(), &true]).await?;
    let drop = |row: &Row| format!("DROP {} RESTRICT", row.get::<_, &str>(0));
    let drops: Vec<String> = rows.iter().map(drop).collect();
    drop_round(conn, &drops).await
}

fn stays(conn: &Conn, left: &Left) -> Finding {
    let Left { statement, error } = left;
    let why = match error.is(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) {
        true => "objects that are not the job's use it",
        false => "a later job is refused only if it needs an object of that name",
    };
    let fix = format!("remove what is in the way, then run here: {statement};");
    conn.warning(
        "not_removed",
        format!("what the job made stays, since {statement} fails: {error}"),
        why,
        &fix,
    )
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

/// Whether the database has user tables; if so, the job does not create the schema.
pub(crate) async fn has_user_tables(conn: &Conn) -> Result<bool, Fault> {
    let sql = "SELECT EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
        AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'steep_repl')
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
            AND d.objid = c.oid AND d.deptype = 'e'))";
    Ok(conn.row(sql, &[]).await?.get(0))
}
