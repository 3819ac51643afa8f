//! Stores what is built after the rows and drops it, in one transaction, so that a crash leaves either the
//! object or its definition.
//!
//! What others depend on stays, and so does what would not come back unchanged: that costs time, not rows.

use std::collections::HashSet;

use steep_protocol::{Fault, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

mod queries;
mod trees;

use self::queries::{FOREIGN_KEYS, INDEXES, REFRESHES, WHOLE};
use self::trees::{Holds, Index, Tree, trees};
use crate::deferred::objects::{Deferred, DeferredWriter, Kind};
use crate::node::connection::Conn;
use crate::node::job_records::Planned;
use crate::pg::{PgError, Session};
use crate::schema::batch::{Batches, Item, Strictness};
use crate::schema::statement::Stage;
use crate::task::Task;

/// Foreign keys that prevent emptying the planned tables and dropping their indexes.
pub(crate) async fn foreign_keys(
    task: &Task,
    conn: &Conn,
    planned: &[Planned],
) -> Result<(), Fault> {
    let rows = found(conn, planned, FOREIGN_KEYS).await?;
    let mut writer = DeferredWriter::new(conn, task.job).await?;
    let mut batches = Batches::new(conn, task.job, Strictness::Deferred);
    for row in &rows {
        let Some(deferred) = foreign_key(row) else {
            continue;
        };
        let drop: &str = row.get(3);
        let sql = format!("{};\n{drop}", writer.insert(&deferred));
        batches.add(Item::new(sql)).await?;
    }
    batches.finish().await.map(|_| ())
}

/// Indexes, and constraints that are indexes, of tables that hold nothing but planned rows.
pub(crate) async fn indexes(task: &Task, conn: &Conn, planned: &[Planned]) -> Result<(), Fault> {
    let rows = found(conn, planned, INDEXES).await?;
    let all = trees(rows.iter().filter_map(index).collect());
    let (single, grown): (Vec<Tree>, Vec<Tree>) = all
        .into_iter()
        .filter(Tree::may_go)
        .partition(Tree::is_single);
    let mut writer = DeferredWriter::new(conn, task.job).await?;
    let mut batches = Batches::new(conn, task.job, Strictness::Deferred);
    for tree in &single {
        let sql = format!("{};\n{}", writer.insert(&tree.deferred()), tree.root().drop);
        batches.add(Item::new(sql)).await?;
    }
    batches.finish().await?;
    for tree in &grown {
        let store = writer.insert(&tree.deferred());
        let outcome = store_and_drop(conn, tree, &store).await;
        if !matches!(outcome, Ok(Outcome::Gone)) {
            conn.roll_back().await.map_err(|error| conn.fault(&error))?;
        }
        let stays = match outcome {
            Ok(Outcome::Gone) => continue,
            Ok(Outcome::Changed) => "its partitions are being changed".to_owned(),
            Err(error) if leaves_it(&error) => error.to_string(),
            Err(error) => return Err(conn.fault(&error)),
        };
        let root = tree.root();
        tracing::info!(
            job_id = %task.job,
            table = %root.table,
            index = %root.name,
            reason = %stays,
            "a partitioned index stays while rows are loaded"
        );
    }
    Ok(())
}

/// Which indexes [`indexes`] would drop for a copy of these tables, unless something depends on one.
pub(crate) async fn dropped(
    task: &Task,
    session: &Session,
    planned: &[u32],
) -> Result<HashSet<u32>, PgError> {
    let sql = format!("{WHOLE}{INDEXES}");
    let rows = session
        .run(&task.cancel, session.query(&sql, &[&planned]))
        .await?;
    let all = trees(rows.iter().filter_map(index).collect());
    let go = all.iter().filter(|tree| tree.may_go());
    Ok(go.flat_map(Tree::oids).collect())
}

/// Materialised views to refresh at the end: those that hold rows here, and those here that hold rows on
/// the source (`filled`, as statements).
pub(crate) async fn refreshes(
    task: &Task,
    conn: &Conn,
    filled: Vec<(TableName, String)>,
) -> Result<(), Fault> {
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
    let mut writer = DeferredWriter::new(conn, task.job).await?;
    let mut here = HashSet::new();
    for row in conn.rows(REFRESHES, &[]).await? {
        let view: &str = row.get(0);
        let sql = format!("REFRESH MATERIALIZED VIEW {view}");
        writer.store(said(Stage::Refresh, sql)).await?;
        here.extend(table(&row, 1));
    }
    let is_view =
        "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind = 'm')";
    for (view, sql) in filled {
        let wanted = !here.contains(&view)
            && conn
                .row(is_view, &[&view.quoted()])
                .await?
                .get::<_, bool>(0);
        if wanted {
            writer.store(said(Stage::Refresh, sql)).await?;
        }
    }
    writer.finish().await
}

async fn found(conn: &Conn, planned: &[Planned], query: &str) -> Result<Vec<Row>, Fault> {
    let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
    conn.rows(&format!("{WHOLE}{query}"), &[&oids]).await
}

enum Outcome {
    /// Stored and dropped.
    Gone,
    /// Not what was read any more.
    Changed,
}

/// Its own transaction, left open unless the tree is dropped: it locks every partition, and the lock table
/// is shared. It does not wait for the disk; store and drop are lost or kept together.
async fn store_and_drop(conn: &Conn, tree: &Tree, store: &str) -> Result<Outcome, PgError> {
    let root = tree.root();
    let table = root.table.quoted();
    conn.attempt(&format!(
        "BEGIN; SET LOCAL synchronous_commit = off; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
    ))
    .await?;
    // A partition added meanwhile would lose an index that is not stored.
    let there = "SELECT relid::oid FROM pg_partition_tree($1::oid::regclass) ORDER BY 1";
    let there = conn.fetch(there, &[&root.oid]).await?;
    if there.iter().map(|row| row.get::<_, u32>(0)).ne(tree.oids()) {
        return Ok(Outcome::Changed);
    }
    let sql = format!("{store};\n{};\nCOMMIT", root.drop);
    conn.attempt(&sql).await.map(|()| Outcome::Gone)
}

/// Something depends on it, or it has too many partitions for the lock table.
fn leaves_it(error: &PgError) -> bool {
    error.is(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) || error.is(&SqlState::OUT_OF_MEMORY)
}

/// A statement of an ordered stage.
fn said(stage: Stage, sql: String) -> Deferred {
    Deferred {
        stage,
        kind: Kind::Other,
        table: None,
        name: None,
        sql,
    }
}

fn foreign_key(row: &Row) -> Option<Vec<Deferred>> {
    let made = Deferred {
        stage: Stage::ForeignKeys,
        kind: Kind::ForeignKey,
        table: Some(table(row, 0)?),
        name: Some(row.get(2)),
        sql: row.get(4),
    };
    // Comments come after all of them.
    let details: Vec<String> = row.get(5);
    let details = details.into_iter().map(|sql| said(Stage::Rest, sql));
    Some(std::iter::once(made).chain(details).collect())
}

fn index(row: &Row) -> Option<Index> {
    let partitions: Option<i64> = row.get(6);
    Some(Index {
        oid: row.get(0),
        parent: row.get(1),
        table: table(row, 2)?,
        name: row.get(4),
        kind: if row.get(5) { Kind::Key } else { Kind::Index },
        holds: match partitions {
            None => Holds::Entries,
            Some(count) => Holds::Partitions(usize::try_from(count).unwrap_or(usize::MAX)),
        },
        valid: row.get(7),
        repeatable: row.get(8),
        drop: row.get(9),
        create: row.get(10),
        statistics: row.get(11),
        attach: row.get(12),
        details: row.get(13),
    })
}

/// The table whose schema is in column `at` and its name in the next.
fn table(row: &Row, at: usize) -> Option<TableName> {
    TableName::new(row.get::<_, &str>(at), row.get::<_, &str>(at + 1)).ok()
}
