//! The new rows take the place of the old ones.
//!
//! In one transaction, rows that differ are deleted and inserted. Nothing else would do: a `TRUNCATE` keeps readers out
//! and shows an empty table to transactions that began before; a table under another name, or another file, would lose
//! what hangs on the table, or keep readers out. So readers see all old rows, and after the commit all new ones; other
//! writers wait. Rows that are equal byte by byte stay where they are.
//!
//! Before that, the tables leave the replication that goes on, whose worker begins anew, so that it applies no change to
//! them any more: what was written since the copy began comes by the job's own. A replication that has lost changes ends.

use std::time::Duration;

use steep_protocol::message::tables::{ChangedTables, FollowedOutcome};
use steep_protocol::{Fault, FaultKind, Identifier, Phase, Retry, TableName};

use super::{State, shadow, state};
use crate::node::connection::Conn;
use crate::node::job_records::{self, Planned};
use crate::peer::connection::SourceAgent;
use crate::pg::catalog::for_loading;
use crate::pg::{DURABLE, PgError};
use crate::replication::join;
use crate::task::Task;

/// Writers of these tables wait for us so long, while we wait for one of them.
const LOCK_WAIT: &str = "2s";

/// How often the locks are tried before the command is.
const LOCK_TRIES: u32 = 4;

/// Between two tries, so that writers go on.
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Gives the tables their new rows. Idempotent. Until the commit they have their old ones, which stand still.
pub(crate) async fn swap(
    task: &Task,
    source: &SourceAgent,
    changed: &ChangedTables,
) -> Result<(), Fault> {
    let conn = Conn::open(task, "swap").await?;
    let state = state(&conn, task.job).await?;
    if state == Some(State::Swapped) {
        return Ok(());
    }
    // Computed columns and checks get the values that they get while rows are loaded.
    let settings = for_loading(&source.settings().await?);
    let tables = tables(task, &conn).await?;
    // Before anything is touched: the plan of a join of many rows depends on it.
    for table in &tables {
        conn.execute(&format!("ANALYZE {}", table.shadow.quoted()))
            .await?;
    }
    if state != Some(State::Parted) {
        match changed.followed.outcome {
            FollowedOutcome::GoesOn => join::part(&conn, task, source, changed).await?,
            FollowedOutcome::Replaced => join::end(&conn, &changed.followed).await?,
        }
        let sql = "UPDATE steep_repl.reinits SET state = 'parted' WHERE job = $1";
        conn.rows(sql, &[&task.job.to_string()]).await?;
    }
    conn.replica_role().await?;
    for setting in settings {
        if let Err(error) = conn.attempt(&setting).await {
            tracing::debug!(job_id = %task.job, %error, "a setting of the source is not accepted here");
        }
    }
    let outcome = in_one_transaction(task, &conn, &tables).await;
    if outcome.is_err() {
        let ended = conn.roll_back().await;
        ended.map_err(|error| conn.fault(&error))?;
    }
    outcome?;
    conn.session.close().await;
    tracing::info!(job_id = %task.job, tables = tables.len(), "tables have their new rows");
    Ok(())
}

/// A table, and how its rows are told apart.
struct Swapped {
    name: TableName,
    oid: u32,
    shadow: TableName,
    columns: Vec<Identifier>,
    /// A unique key without NULLs, with its equality; empty if there is none.
    key: Vec<(Identifier, String)>,
}

async fn in_one_transaction(task: &Task, conn: &Conn, tables: &[Swapped]) -> Result<(), Fault> {
    lock(task, conn, tables).await?;
    refuse_code(conn, tables).await?;
    let total = tables.len() as u64;
    for (done, table) in (0..).zip(tables) {
        task.items(Phase::Swap, (done, total), Some(table.name.to_string()));
        for statement in table.statements() {
            let replaced = conn.execute(&statement).await;
            replaced.map_err(|fault| refused(fault, &table.name))?;
        }
    }
    let shadows = tables.iter().map(|table| table.shadow.quoted());
    let shadows: Vec<String> = shadows.collect();
    let done = format!(
        "DROP TABLE {}; UPDATE steep_repl.reinits SET state = 'swapped' WHERE job = '{}'; {DURABLE}; COMMIT",
        shadows.join(", "),
        task.job
    );
    conn.execute(&done).await
}

impl Swapped {
    /// Deletes the rows that are not among the new ones, and inserts those that are missing.
    fn statements(&self) -> [String; 2] {
        let (table, shadow) = (self.name.quoted(), self.shadow.quoted());
        let listed = |of: &str| {
            let columns = self
                .columns
                .iter()
                .map(|c| format!("{of}{}", c.quoted()))
                .collect::<Vec<_>>();
            columns.join(", ")
        };
        let (names, new) = (listed(""), listed("new."));
        let into = match self.columns.is_empty() {
            true => format!("INSERT INTO {table} SELECT"),
            false => {
                format!("INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT {new}")
            }
        };
        if self.key.is_empty() {
            return [
                format!("DELETE FROM ONLY {table}"),
                format!("{into} FROM {shadow} AS new"),
            ];
        }
        let same = self
            .key
            .iter()
            .map(|(column, equals)| format!("old.{0} {equals} new.{0}", column.quoted()))
            .collect::<Vec<_>>()
            .join(" AND ");
        // Byte by byte, which works for every type and runs no operator of anybody's.
        let old = listed("old.");
        [
            format!(
                "DELETE FROM ONLY {table} AS old WHERE NOT EXISTS (SELECT FROM {shadow} AS new
                 WHERE {same} AND ROW({old}) OPERATOR(pg_catalog.*=) new.*)"
            ),
            format!(
                "{into} FROM {shadow} AS new WHERE NOT EXISTS (SELECT FROM ONLY {table} AS old WHERE {same})"
            ),
        ]
    }
}

/// Keeps other writers out, in the order of names, like every job.
async fn lock(task: &Task, conn: &Conn, tables: &[Swapped]) -> Result<(), Fault> {
    let names: Vec<String> = tables
        .iter()
        .map(|table| format!("ONLY {}", table.name.quoted()))
        .collect();
    let lock = format!(
        "BEGIN; SET LOCAL lock_timeout = '{LOCK_WAIT}';
         LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE; SET LOCAL lock_timeout = 0",
        names.join(", ")
    );
    for attempt in 1..=LOCK_TRIES {
        match conn.attempt(&lock).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_locked() && attempt == LOCK_TRIES => break,
            Err(error) if error.is_locked() => {
                let ended = conn.roll_back().await;
                ended.map_err(|error| conn.fault(&error))?;
            }
            Err(error) => return Err(full_table(conn, &error)),
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK_PAUSE) => {}
            () = task.cancel.cancelled() => return Err(conn.fault(&PgError::Cancelled)),
        }
    }
    let text = "somebody on this server writes to the tables all the time, or has them locked";
    Err(conn
        .own(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
        .hint("it is tried again; see pg_locks on the node for who it is"))
}

fn full_table(conn: &Conn, error: &PgError) -> Fault {
    let fault = conn.fault(error);
    if error.is(&tokio_postgres::error::SqlState::OUT_OF_MEMORY) {
        return fault.hint("raise max_locks_per_transaction on this server and restart it");
    }
    fault
}

/// Refuses what would run for each row with the agent's rights, and change rows. Under the lock nobody adds any.
async fn refuse_code(conn: &Conn, tables: &[Swapped]) -> Result<(), Fault> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT format('trigger %I on %s', tgname, tgrelid::regclass) FROM pg_trigger
            WHERE tgrelid = ANY ($1) AND tgenabled IN ('A', 'R') AND NOT tgisinternal
        UNION ALL SELECT format('rule %I on %s', rulename, ev_class::regclass) FROM pg_rewrite
            WHERE ev_class = ANY ($1) AND ev_enabled IN ('A', 'R') ORDER BY 1 LIMIT 5";
    let rows = conn.rows(sql, &[&oids]).await?;
    let found: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    if found.is_empty() {
        return Ok(());
    }
    let text = format!(
        "triggers or rules fire for replicated rows: {}; nothing is replaced while they do",
        found.join(", ")
    );
    Err(conn
        .own(Fault::new(FaultKind::Failed, text))
        .hint("ALTER TABLE … DISABLE TRIGGER (or RULE), or ENABLE it for rows of this node alone"))
}

fn refused(mut fault: Fault, table: &TableName) -> Fault {
    if fault.kind != FaultKind::Cancelled {
        fault.message = format!("the new rows of {table} are refused: {}", fault.message);
        fault = fault.at(table);
    }
    fault
}

/// The job's tables that have a shadow, by name.
async fn tables(task: &Task, conn: &Conn) -> Result<Vec<Swapped>, Fault> {
    let mut planned = job_records::planned(conn, task.job).await?;
    planned.sort_by(|a, b| a.name.cmp(&b.name));
    let sql = "SELECT count(*) FROM steep_repl.job_tables WHERE job = $1";
    let wanted: i64 = conn.row(sql, &[&task.job.to_string()]).await?.get(0);
    if usize::try_from(wanted) != Ok(planned.len()) {
        let text = "tables were dropped or renamed here since the copy began";
        return Err(conn.own(Fault::new(FaultKind::TargetChanged, text)));
    }
    let mut tables = Vec::with_capacity(planned.len());
    for Planned { oid, name } in planned {
        let shadow = shadow(task.job, oid);
        let columns = columns(conn, &shadow).await?.ok_or_else(|| {
            let text = format!("{name} was dropped and made again since the copy began");
            conn.own(Fault::new(FaultKind::TargetChanged, text))
        })?;
        let key = key(conn, oid, &columns).await?;
        tables.push(Swapped {
            name,
            oid,
            shadow,
            columns,
            key,
        });
    }
    Ok(tables)
}

/// `None` if there is no such table.
async fn columns(conn: &Conn, table: &TableName) -> Result<Option<Vec<Identifier>>, Fault> {
    let sql = "SELECT a.attname::text FROM pg_class c LEFT JOIN pg_attribute a
            ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.oid = to_regclass($1) ORDER BY a.attnum";
    let rows = conn.rows(sql, &[&table.quoted()]).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let name = |row: &tokio_postgres::Row| Identifier::parse(row.get::<_, Option<&str>>(0)?).ok();
    Ok(Some(rows.iter().filter_map(name).collect()))
}

/// A unique B-tree index (403) of whole columns that are copied and never NULL, with its equality (strategy 3).
async fn key(
    conn: &Conn,
    oid: u32,
    copied: &[Identifier],
) -> Result<Vec<(Identifier, String)>, Fault> {
    let sql = "SELECT i.indexrelid, a.attname::text, format('OPERATOR(%I.%s)', n.nspname, o.oprname), a.attnotnull
        FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (att, opc, n)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.att
        JOIN pg_opclass c ON c.oid = k.opc AND c.opcmethod = 403
        JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype
            AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
        JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
        WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
            AND k.n <= i.indnkeyatts
        ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid, k.n";
    let rows = conn.rows(sql, &[&oid]).await?;
    let indexes = rows.chunk_by(|a, b| a.get::<_, u32>(0) == b.get::<_, u32>(0));
    let fitting = indexes.map(|columns| {
        let column = |row: &tokio_postgres::Row| {
            let name = Identifier::parse(row.get::<_, &str>(1)).ok()?;
            let fits = row.get::<_, bool>(3) && copied.contains(&name);
            fits.then(|| (name, row.get(2)))
        };
        columns.iter().map(column).collect::<Option<Vec<_>>>()
    });
    Ok(fitting.flatten().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    fn swapped(columns: &[&str], key: &[&str]) -> [String; 2] {
        let equals = "OPERATOR(pg_catalog.=)".to_owned();
        let table = Swapped {
            name: TableName::new("app", "t").unwrap(),
            oid: 7,
            shadow: TableName::new("steep_repl", "s").unwrap(),
            columns: columns.iter().map(|c| name(c)).collect(),
            key: key.iter().map(|k| (name(k), equals.clone())).collect(),
        };
        table.statements()
    }

    #[test]
    fn rows_that_are_equal_byte_by_byte_stay() {
        let [delete, insert] = swapped(&["id", "V"], &["id"]);
        assert!(delete.contains(r#"ROW(old."id", old."V") OPERATOR(pg_catalog.*=) new.*"#));
        assert!(insert.contains(r#"("id", "V") OVERRIDING SYSTEM VALUE SELECT new."id", new."V""#));
        for statement in [delete, insert] {
            assert!(statement.contains(r#"old."id" OPERATOR(pg_catalog.=) new."id""#));
        }
    }

    #[test]
    fn a_table_without_a_key_or_without_columns_gets_all_rows_anew() {
        let [delete, insert] = swapped(&["v"], &[]);
        assert_eq!(delete, r#"DELETE FROM ONLY "app"."t""#);
        assert!(!insert.contains("WHERE"), "{insert}");
        let [_, insert] = swapped(&[], &[]);
        assert_eq!(
            insert,
            r#"INSERT INTO "app"."t" SELECT FROM "steep_repl"."s" AS new"#
        );
    }
}
