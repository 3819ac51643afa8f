//! A target whose tables exist: checks them, empties them if told to, and stores and drops their indexes
//! and constraints ([`indexes`]).

use std::collections::BTreeMap;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::agent::IndexTiming;
use steep_protocol::message::job::{ExistingRows, SchemaMode};
use steep_protocol::message::peer::TablePlan;
use steep_protocol::{Fault, FaultKind, Identifier, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::PrepareRequest;
use crate::deferred::{indexes, objects};
use crate::node::connection::Conn;
use crate::node::job_records::{self, Origin, Planned, Progress};
use crate::pg::PgError;
use crate::task::Task;

const NAMED: usize = 20;

/// Checks and empties the tables and defers their indexes. Goes on where it stopped after a crash.
pub(super) async fn make_ready(
    task: &Task,
    conn: &Conn,
    request: &PrepareRequest,
    plan: &[TablePlan],
) -> Result<(), Fault> {
    check_shape(conn, plan, request.schema.schema_mode).await?;
    conn.execute("BEGIN").await?;
    let noted = (plan, request.schema.note.as_deref());
    job_records::open(conn, task.job, Origin::Existing, noted).await?;
    objects::adopt(conn, task.job).await?;
    conn.execute("COMMIT").await?;
    let planned = job_records::planned(conn, task.job).await?;
    let full = with_rows(conn, &planned).await?;
    refuse(conn, request.schema.existing, &full)?;
    let owned = job_records::note(task.job, Progress::OwnsRows);
    if full.is_empty() {
        conn.execute(&owned).await?;
    }
    if request.indexes == IndexTiming::Deferred {
        indexes::foreign_keys(task, conn, &planned).await?;
    }
    if !full.is_empty() {
        replace_rows(conn, &planned, &owned).await?;
    }
    if request.indexes == IndexTiming::Deferred {
        indexes::indexes(task, conn, &planned).await?;
    }
    Ok(())
}

/// Refuses existing rows, unless they are to be replaced.
pub(super) fn refuse(conn: &Conn, existing: ExistingRows, full: &[TableName]) -> Result<(), Fault> {
    if existing == ExistingRows::Replace || full.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{} tables to be copied hold rows here: {}",
        full.len(),
        some(full)
    );
    Err(conn
        .own(Fault::new(FaultKind::Failed, what))
        .hint("empty them, or replace their rows with --force"))
}

fn some(names: &[TableName]) -> String {
    let mut text = names
        .iter()
        .take(NAMED)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

/// Every planned column must exist and accept values.
pub(super) async fn check_shape(
    conn: &Conn,
    plan: &[TablePlan],
    mode: SchemaMode,
) -> Result<(), Fault> {
    let there = columns(conn).await?;
    let mut lacking = Vec::new();
    for table in plan {
        match there.get(&table.name) {
            None => lacking.push(format!("{} (missing)", table.name)),
            Some(columns) => {
                let missing = |c: &&Identifier| !columns.contains(c);
                let names: Vec<&str> = table
                    .columns
                    .iter()
                    .map(|c| &c.name)
                    .filter(missing)
                    .map(Identifier::as_str)
                    .collect();
                if !names.is_empty() {
                    lacking.push(format!("{} (column {})", table.name, names.join(", ")));
                }
            }
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    let count = lacking.len();
    lacking.truncate(LISTED_MAX.min(NAMED));
    let hint = match mode {
        SchemaMode::Strict => "make the schemas equal, or begin with a database without tables",
        SchemaMode::Auto | SchemaMode::Manual => {
            "make the missing tables and columns by hand, or begin with a database without tables"
        }
    };
    let what = format!(
        "{count} tables to be copied are not as the source has them: {}",
        lacking.join("; ")
    );
    Err(conn
        .own(Fault::new(FaultKind::SchemaMismatch, what))
        .hint(hint))
}

/// The columns that accept values, by table.
async fn columns(conn: &Conn) -> Result<BTreeMap<TableName, Vec<Identifier>>, Fault> {
    let sql = "SELECT n.nspname::text, c.relname::text, array_agg(a.attname::text)
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND a.attgenerated = ''
        WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        GROUP BY 1, 2
        UNION ALL
        SELECT n.nspname::text, c.relname::text, '{}'::text[]
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
            AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                AND NOT a.attisdropped AND a.attgenerated = '')";
    let rows = conn.rows(sql, &[]).await?;
    let entry = |row: &Row| {
        let name = TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()?;
        let columns = row.get::<_, Vec<String>>(2);
        let columns = columns
            .into_iter()
            .filter_map(|c| Identifier::parse(c).ok());
        Some((name, columns.collect()))
    };
    Ok(rows.iter().filter_map(entry).collect())
}

/// Tables asked for rows by one query, each locked until it ends.
const ASK_BATCH: usize = 200;

/// Which tables hold rows. A file of no bytes holds none, so only the others are read, up to the first row.
pub(super) async fn with_rows(conn: &Conn, planned: &[Planned]) -> Result<Vec<TableName>, Fault> {
    let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
    let sql = "SELECT oid FROM unnest($1::oid[]) AS t (oid) WHERE pg_relation_size(oid) > 0";
    let rows = conn.rows(sql, &[&oids]).await?;
    let sized: std::collections::HashSet<u32> = rows.iter().map(|row| row.get(0)).collect();
    let candidates: Vec<&Planned> = planned.iter().filter(|p| sized.contains(&p.oid)).collect();
    let mut full = Vec::new();
    for batch in candidates.chunks(ASK_BATCH) {
        let asks = batch.iter().enumerate().map(|(at, p)| {
            let table = p.name.quoted();
            format!("SELECT {at} WHERE EXISTS (SELECT FROM ONLY {table})")
        });
        let sql = asks.collect::<Vec<_>>().join(" UNION ALL ");
        let rows = conn.rows(&sql, &[]).await?;
        let at = |row: &Row| usize::try_from(row.get::<_, i32>(0)).unwrap_or(0);
        full.extend(rows.iter().map(|row| batch[at(row)].name.clone()));
    }
    Ok(full)
}

/// Tables per TRUNCATE where all at once are too many for the lock table.
const TRUNCATE_BATCH: usize = 200;

/// Empties the planned tables and records that rows in them now belong to the job (`owned`), both or
/// neither: where a table is locked, its rows remain their owner's.
async fn replace_rows(conn: &Conn, planned: &[Planned], owned: &str) -> Result<(), Fault> {
    let all = to_empty(conn, planned).await?;
    let emptied = conn
        .transact(&format!("{};\n{owned}", truncation(&all)))
        .await;
    match emptied {
        Err(error) if error.is(&SqlState::OUT_OF_MEMORY) => {
            conn.execute(owned).await?;
            in_batches(conn, &all).await
        }
        outcome => outcome.map_err(|error| not_emptied(conn, &error)),
    }
}

/// Empties the planned tables in one statement, as remaining foreign keys demand. Partitioned parents whose
/// partitions are all planned go along for the same reason.
pub(super) async fn truncate(conn: &Conn, planned: &[Planned]) -> Result<(), Fault> {
    let all = to_empty(conn, planned).await?;
    if all.is_empty() {
        return Ok(());
    }
    match conn.transact(&truncation(&all)).await {
        Err(error) if error.is(&SqlState::OUT_OF_MEMORY) => in_batches(conn, &all).await,
        outcome => outcome.map_err(|error| not_emptied(conn, &error)),
    }
}

async fn in_batches(conn: &Conn, tables: &[String]) -> Result<(), Fault> {
    for batch in tables.chunks(TRUNCATE_BATCH) {
        let outcome = conn.transact(&truncation(batch)).await;
        outcome.map_err(|error| conn.fault(&error))?;
    }
    Ok(())
}

/// [`truncate`] inside the caller's transaction.
pub(super) async fn truncate_within(conn: &Conn, planned: &[Planned]) -> Result<(), Fault> {
    let all = to_empty(conn, planned).await?;
    if all.is_empty() {
        return Ok(());
    }
    let emptied = conn.attempt(&truncation(&all)).await;
    emptied.map_err(|error| not_emptied(conn, &error))
}

async fn to_empty(conn: &Conn, planned: &[Planned]) -> Result<Vec<String>, Fault> {
    let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
    let sql = "SELECT format('%I.%I', n.nspname, c.relname)
        FROM (SELECT DISTINCT a.relid FROM unnest($1::oid[]) AS t (oid),
            pg_partition_ancestors(t.oid) AS a (relid)) AS up
        JOIN pg_class c ON c.oid = up.relid AND c.relkind = 'p'
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE NOT EXISTS (SELECT FROM pg_partition_tree(up.relid) AS leaf
            WHERE leaf.isleaf AND NOT leaf.relid::oid = ANY ($1))";
    let rows = conn.rows(sql, &[&oids]).await?;
    let leaves = planned.iter().map(|p| format!("ONLY {}", p.name.quoted()));
    Ok(leaves.chain(rows.iter().map(|row| row.get(0))).collect())
}

fn truncation(tables: &[String]) -> String {
    format!("TRUNCATE {}", tables.join(", "))
}

fn not_emptied(conn: &Conn, error: &PgError) -> Fault {
    let fault = conn.fault(error);
    if error.is(&SqlState::FEATURE_NOT_SUPPORTED) {
        return fault.hint(
            "a table that is not copied refers to one that is: drop that foreign key, or empty both by hand",
        );
    }
    fault
}
