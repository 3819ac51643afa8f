//! A target that has the tables already: checks them, empties them where told to, and puts their
//! indexes and constraints aside.

use std::collections::BTreeMap;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::agent::IndexTiming;
use steep_protocol::message::job::{ExistingRows, SchemaMode};
use steep_protocol::message::peer::TablePlan;
use steep_protocol::{Fault, FaultKind, Identifier, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::PrepareRequest;
use super::batch::{Batches, Item, Strictness};
use super::books::{self, Origin, Planned, Progress};
use super::conn::Conn;
use super::deferred::{self, Aside, Deferred, Kind};
use super::statement::Stage;
use crate::pg::PgError;
use crate::task::Task;

/// Tables named in an error.
const NAMED: usize = 20;

/// Checks, empties and puts aside. Done again after a crash, it goes on where it was.
pub(super) async fn make_ready(
    task: &Task,
    conn: &Conn,
    request: &PrepareRequest,
    plan: &[TablePlan],
) -> Result<(), Fault> {
    check_shape(conn, plan, request.schema.schema_mode).await?;
    conn.execute("BEGIN").await?;
    books::open(conn, task.job, Origin::Existing, plan).await?;
    deferred::adopt(conn, task.job).await?;
    conn.execute("COMMIT").await?;
    let planned = books::planned(conn, task.job).await?;
    let full = with_rows(conn, &planned).await?;
    refuse(conn, request.schema.existing, &full)?;
    conn.execute(&books::note(task.job, Progress::OwnsRows))
        .await?;
    if request.indexes == IndexTiming::Deferred {
        put_aside(task, conn, &planned, Dropped::ForeignKeys).await?;
    }
    if !full.is_empty() {
        truncate(conn, &planned).await?;
    }
    if request.indexes == IndexTiming::Deferred {
        put_aside(task, conn, &planned, Dropped::Indexes).await?;
        store_refreshes(task, conn).await?;
    }
    Ok(())
}

/// Refuses rows that are there, unless they are to be replaced.
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

/// Every planned column must be there to take its values.
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

/// Names of the columns that can be copied into, by table.
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

/// Tables asked for rows by one query: each takes a lock until it ends.
const ASK_BATCH: usize = 200;

/// Which of them hold rows. A file of no bytes holds none, so only the others are read, to the
/// first row.
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

/// Tables emptied by one statement where all at once are too many for the lock table.
const TRUNCATE_BATCH: usize = 200;

/// Empties the planned tables: all in one statement, since foreign keys that remain allow no other.
/// Partitioned parents of which every partition is planned go along for the same reason.
pub(super) async fn truncate(conn: &Conn, planned: &[Planned]) -> Result<(), Fault> {
    let all = to_empty(conn, planned).await?;
    if all.is_empty() {
        return Ok(());
    }
    match conn.transact(&truncation(&all)).await {
        Ok(()) => Ok(()),
        Err(error) if error.is(&SqlState::OUT_OF_MEMORY) => {
            for batch in all.chunks(TRUNCATE_BATCH) {
                let outcome = conn.transact(&truncation(batch)).await;
                outcome.map_err(|error| conn.fault(&error))?;
            }
            Ok(())
        }
        Err(error) => Err(not_emptied(conn, &error)),
    }
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

/// What `TRUNCATE` takes.
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

/// What is put aside in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    /// Of and to the planned tables.
    ForeignKeys,
    /// And the constraints that are indexes.
    Indexes,
}

/// Stores definitions and drops, in one transaction each. What something depends on stays: it costs
/// time, not rows. Partitions keep theirs, which belong to their parents' indexes.
async fn put_aside(
    task: &Task,
    conn: &Conn,
    planned: &[Planned],
    dropped: Dropped,
) -> Result<(), Fault> {
    let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
    let sql = match dropped {
        Dropped::ForeignKeys => FOREIGN_KEYS,
        Dropped::Indexes => INDEXES,
    };
    let rows = conn.rows(sql, &[&oids]).await?;
    let mut aside = Aside::new(conn, task.job).await?;
    let mut batches = Batches::new(conn, Strictness::Aside);
    for row in &rows {
        let Some((all, drop)) = definition(row) else {
            continue;
        };
        let item = Item::new(format!("{};\n{drop}", aside.insert(&all)));
        batches.add(item).await?;
    }
    batches.finish().await.map(|_| ())
}

/// Columns of both queries: kind, schema, table, name, drop statement, create statement, details.
fn definition(row: &Row) -> Option<(Vec<Deferred>, String)> {
    let table = TableName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)).ok()?;
    let (kind, stage) = match row.get(0) {
        "f" => (Kind::ForeignKey, Stage::ForeignKeys),
        "i" => (Kind::Index, Stage::Indexes),
        _ => (Kind::Key, Stage::Indexes),
    };
    let made = Deferred {
        stage,
        kind,
        table: Some(table),
        name: Some(row.get(3)),
        sql: row.get(5),
    };
    // A comment on a foreign key comes after all of them.
    let later = match kind {
        Kind::ForeignKey => Stage::Rest,
        _ => Stage::IndexDetails,
    };
    let detail = |sql: String| Deferred {
        stage: later,
        kind: Kind::Other,
        table: None,
        name: None,
        sql,
    };
    let details: Vec<String> = row.get(6);
    let all = std::iter::once(made).chain(details.into_iter().map(detail));
    Some((all.collect(), row.get(4)))
}

const FOREIGN_KEYS: &str = "
SELECT 'f'::text, n.nspname::text, c.relname::text, k.conname::text,
    format('ALTER TABLE ONLY %I.%I DROP CONSTRAINT %I', n.nspname, c.relname, k.conname),
    format('ALTER TABLE ONLY %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname,
        pg_get_constraintdef(k.oid)),
    ARRAY(SELECT format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname, c.relname,
        d.description) FROM pg_description d
        WHERE d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid)
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid AND c.relkind = 'r' AND NOT c.relispartition
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0
    AND (k.conrelid = ANY ($1::oid[]) OR k.confrelid = ANY ($1::oid[]))
ORDER BY k.oid";

/// `pg_get_indexdef` and `pg_get_constraintdef` leave the tablespace out; it is set for the
/// transaction in which the index is made again.
const INDEXES: &str = "
SELECT CASE WHEN k.oid IS NULL THEN 'i' ELSE 'k' END, n.nspname::text, c.relname::text,
    coalesce(k.conname, x.relname)::text,
    CASE WHEN k.oid IS NULL THEN format('DROP INDEX %I.%I', n.nspname, x.relname)
        ELSE format('ALTER TABLE ONLY %I.%I DROP CONSTRAINT %I', n.nspname, c.relname, k.conname) END,
    CASE WHEN s.oid IS NULL THEN '' ELSE format('SET LOCAL default_tablespace = %L; ', s.spcname) END ||
    CASE WHEN k.oid IS NULL THEN pg_get_indexdef(x.oid)
        ELSE format('ALTER TABLE ONLY %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname,
            pg_get_constraintdef(k.oid)) END,
    ARRAY(
        SELECT format('ALTER TABLE ONLY %I.%I REPLICA IDENTITY USING INDEX %I',
            n.nspname, c.relname, x.relname) WHERE i.indisreplident
        UNION ALL SELECT format('ALTER TABLE %I.%I CLUSTER ON %I', n.nspname, c.relname, x.relname)
            WHERE i.indisclustered
        UNION ALL SELECT format('COMMENT ON INDEX %I.%I IS %L', n.nspname, x.relname, d.description)
            FROM pg_description d WHERE d.classoid = 'pg_class'::regclass AND d.objoid = x.oid
                AND d.objsubid = 0
        UNION ALL SELECT format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname,
            c.relname, d.description) FROM pg_description d
            WHERE d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid
        UNION ALL SELECT format('ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s', n.nspname,
            x.relname, a.attnum, a.attstattarget) FROM pg_attribute a
            WHERE a.attrelid = x.oid AND a.attstattarget >= 0
    )
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid AND c.relkind = 'r' AND NOT c.relispartition
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_tablespace s ON s.oid = x.reltablespace
LEFT JOIN pg_constraint k ON k.conindid = x.oid AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = ANY ($1::oid[]) AND i.indisvalid
ORDER BY x.oid";

/// Materialised views that hold rows are filled again at the end, those that others read first.
async fn store_refreshes(task: &Task, conn: &Conn) -> Result<(), Fault> {
    let sql = "WITH RECURSIVE reads AS (
            SELECT DISTINCT r.ev_class AS reader, d.refobjid AS read
            FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
        ), depth AS (
            SELECT oid AS view, 0 AS level FROM pg_class WHERE relkind IN ('m', 'v') AND oid >= 16384
            UNION SELECT reads.reader, depth.level + 1
            FROM depth JOIN reads ON reads.read = depth.view WHERE depth.level < 100
        )
        SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN depth ON depth.view = c.oid
        WHERE c.relkind = 'm' AND c.relispopulated
        GROUP BY c.oid, n.nspname, c.relname ORDER BY max(depth.level), 1";
    let mut aside = Aside::new(conn, task.job).await?;
    let already =
        "SELECT EXISTS (SELECT FROM steep_repl.deferred_objects WHERE job = $1 AND stage = $2)";
    let stage = Stage::Refresh.code();
    if conn
        .row(already, &[&task.job.to_string(), &stage])
        .await?
        .get(0)
    {
        return Ok(());
    }
    for row in conn.rows(sql, &[]).await? {
        let view: String = row.get(0);
        let deferred = Deferred {
            stage: Stage::Refresh,
            kind: Kind::Other,
            table: None,
            name: None,
            sql: format!("REFRESH MATERIALIZED VIEW {view}"),
        };
        aside.store(deferred).await?;
    }
    aside.finish().await
}
