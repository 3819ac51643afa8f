//! Compares a target's existing schema with its source's before a job touches anything: strict stops at a
//! difference, auto makes the target match, manual has been confirmed.
//!
//! Auto runs its whole plan in one transaction, with the list of what it creates, so that a cancel finds
//! and removes the tables; it reads the catalog again before it commits. Rows to be replaced are removed
//! first, in the same transaction, so that they block no statement; other rows stop it before anything is
//! altered. `steep_schema` decides what counts as a difference.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::{AbsentTables, ExistingRows, SchemaMode};
use steep_protocol::message::peer::TablePlan;
use steep_protocol::message::schema::{PlannedStatement, SchemaDifference, Subject};
use steep_protocol::{Fault, FaultKind, Retry, TableName};
use steep_schema::{
    Comparison, Plan, Schema, at_stake, blocker, compare, creates, gates, named, parents_elsewhere,
    plan,
};
use tokio_postgres::error::SqlState;

use super::{SchemaRequest, existing};
use crate::node::connection::Conn;
use crate::node::job_records::{self, Origin, Progress};
use crate::pg::PgError;
use crate::pg::catalog::{holding_rows, read_target_at_once};
use crate::schema::fingerprints::read;
use crate::schema::objects;
use crate::task::Task;

const NAMED: usize = 20;

/// How long a statement waits for a lock, with others waiting behind it.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Compares again as the job begins, and acts by the mode. `tables` are those to be filled, which may hold
/// no rows except those to be replaced. Returns what was run, as findings.
pub(super) async fn settle(
    task: &Task,
    conn: &Conn,
    request: &SchemaRequest,
    tables: &[TablePlan],
) -> Result<Vec<Finding>, Fault> {
    let here = read_target_at_once(&conn.session, &request.filter, &request.described).await;
    let here = here.map_err(|error| conn.fault(&error))?;
    let compared = compare(&request.described, &here);
    let differing: Vec<&SchemaDifference> = compared.differences().filter(|d| gates(d)).collect();
    if differing.is_empty() {
        return Ok(Vec::new());
    }
    if request.absent == AbsentTables::Created {
        check_parents(conn, request, &here).await?;
    }
    let mode = match request.absent {
        AbsentTables::Created if differing.iter().all(|d| creates(d)) => SchemaMode::Auto,
        AbsentTables::Created | AbsentTables::Differ => request.schema_mode,
    };
    match mode {
        SchemaMode::Manual => Ok(Vec::new()),
        SchemaMode::Strict => {
            let what = format!(
                "the schema differs from the source's: {}",
                listed(
                    differing
                        .iter()
                        .map(|d| named(d, "the source", "the target"))
                )
            );
            Err(conn
                .own(Fault::new(FaultKind::SchemaMismatch, what))
                .hint("make the two schemas equal, or use --schema-sync auto"))
        }
        SchemaMode::Auto => {
            let outcome = apply(task, conn, request, tables, (&here, &compared)).await;
            if outcome.is_err() {
                conn.roll_back().await.map_err(|error| conn.fault(&error))?;
            }
            outcome
        }
    }
}

/// Fails, naming it, where a table would be created whose parent is not here.
async fn check_parents(conn: &Conn, request: &SchemaRequest, here: &Schema) -> Result<(), Fault> {
    for (table, parent) in parents_elsewhere(&request.described) {
        if here.table(&table).is_some() {
            continue;
        }
        let sql = "SELECT to_regclass($1) IS NOT NULL";
        let quoted = parent.quoted();
        if conn.row(sql, &[&quoted]).await?.get(0) {
            continue;
        }
        let text = format!("{table} is a partition or child of {parent}, which is not there");
        return Err(conn
            .own(Fault::new(FaultKind::Failed, text))
            .hint(format!(
                "name {parent} instead: a partitioned table is added with all its partitions; nothing was changed"
            )));
    }
    Ok(())
}

/// Compares some tables again, after the source's may have been altered. Fails with `SchemaMismatch`.
pub(super) async fn check_tables(
    conn: &Conn,
    request: &SchemaRequest,
    tables: &HashSet<&TableName>,
) -> Result<(), Fault> {
    let here = read_target_at_once(&conn.session, &request.filter, &request.described).await;
    let here = here.map_err(|error| conn.fault(&error))?;
    let compared = compare(&request.described, &here);
    // Indexes and constraints are put aside while rows are loaded.
    let of_columns = |d: &&SchemaDifference| {
        let known = d.table.as_ref().is_some_and(|table| tables.contains(table));
        known && matches!(d.subject, Subject::Table | Subject::Column) && gates(d)
    };
    let differing: Vec<String> = compared
        .differences()
        .filter(of_columns)
        .map(|d| named(d, "the source", "the target"))
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "tables were altered on the source while they were copied: {}",
        listed(differing.into_iter())
    );
    let hint = "alter them here in the same way";
    Err(conn
        .own(Fault::new(FaultKind::SchemaMismatch, what))
        .hint(hint))
}

/// Runs the plan in one transaction, which stays open on failure.
async fn apply(
    task: &Task,
    conn: &Conn,
    request: &SchemaRequest,
    tables: &[TablePlan],
    (here, compared): (&Schema, &Comparison),
) -> Result<Vec<Finding>, Fault> {
    let began = Instant::now();
    let patience = LOCK_PATIENCE.as_millis();
    conn.execute(&format!("BEGIN; SET LOCAL lock_timeout = {patience}"))
        .await?;
    let noted = (tables, request.note.as_deref());
    job_records::open(conn, task.job, Origin::Existing, noted).await?;
    objects::note_baseline(conn, task.job).await?;
    let planned = job_records::planned(conn, task.job).await?;
    let full = existing::with_rows(conn, &planned).await?;
    existing::refuse(conn, request.existing, &full)?;
    let stakes = at_stake(&request.described, here, compared);
    lock(conn, &stakes).await?;
    let holding = holding_rows(&conn.session, &task.cancel, &stakes).await;
    let holding = holding.map_err(|error| conn.fault(&error))?;
    let plan = plan(&request.described, here, compared, &|table| {
        holding.contains(table)
    });
    may_run(conn, &plan, request.existing)?;
    if !full.is_empty() {
        existing::truncate_within(conn, &planned).await?;
        conn.execute(&job_records::note(task.job, Progress::OwnsRows))
            .await?;
    }
    for statement in &plan.statements {
        run(conn, statement).await?;
    }
    let late = existing::with_rows(conn, &planned).await?;
    existing::refuse(conn, request.existing, &late)?;
    check(conn, request).await?;
    conn.execute(&objects::note_created(task.job)).await?;
    conn.execute("COMMIT").await?;
    tracing::info!(
        event = "schema.sync_applied",
        node_id = %task.node,
        source_node = %request.source,
        job_id = %task.job,
        statements = plan.statements.len(),
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "the schema was made like the source's"
    );
    Ok(plan.statements.iter().map(|s| applied(task, s)).collect())
}

/// From here on nobody writes to these tables, so what is known of their rows holds.
async fn lock(conn: &Conn, tables: &BTreeSet<TableName>) -> Result<(), Fault> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let sql = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", names.join(", "));
    match conn.attempt(&sql).await {
        Ok(()) => Ok(()),
        Err(error) => Err(failed(conn, &sql, &error).await),
    }
}

fn may_run(conn: &Conn, plan: &Plan, existing: ExistingRows) -> Result<(), Fault> {
    if !plan.unplanned.is_empty() {
        let said = |d| {
            format!(
                "{} ({})",
                named(d, "the source", "the target"),
                blocker(d).0
            )
        };
        let what = format!(
            "there is no plan for these differences: {}",
            listed(plan.unplanned.iter().map(said))
        );
        let hint = "make these changes on the target yourself; nothing was changed";
        return Err(conn.own(Fault::new(FaultKind::Failed, what)).hint(hint));
    }
    let losing: Vec<String> = plan
        .statements
        .iter()
        .filter_map(|s| Some(format!("{} (loses {})", s.sql, s.loses.as_ref()?)))
        .collect();
    if losing.is_empty() || existing == ExistingRows::Replace {
        return Ok(());
    }
    let what = format!(
        "these statements would lose data: {}",
        listed(losing.into_iter())
    );
    let hint = "give --force to allow it; nothing was changed";
    Err(conn.own(Fault::new(FaultKind::Failed, what)).hint(hint))
}

async fn run(conn: &Conn, statement: &PlannedStatement) -> Result<(), Fault> {
    match conn.attempt(&statement.sql).await {
        Ok(()) => Ok(()),
        Err(error) => Err(failed(conn, &statement.sql, &error).await),
    }
}

/// The fault of a failed statement. After a lock timeout the transaction is ended first, so that nobody
/// waits for us while we look up the lock's holder.
async fn failed(conn: &Conn, sql: &str, error: &PgError) -> Fault {
    let mut fault = conn.fault(error);
    if !error.is(&SqlState::LOCK_NOT_AVAILABLE) {
        fault.message = format!(
            "a statement of the schema plan failed, {sql}: {}",
            fault.message
        );
        return fault.hint("make this change on the target yourself; nothing was changed");
    }
    let mut holders = String::new();
    if conn.roll_back().await.is_ok()
        && let Ok(rows) = conn.rows(HOLDERS, &[&sql]).await
    {
        let said: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if !said.is_empty() {
            holders = format!("; locks are held by {}", said.join(", "));
        }
    }
    fault.message = format!(
        "a statement of the schema plan waited {} s for a lock, {sql}{holders}",
        LOCK_PATIENCE.as_secs()
    );
    // No automatic retry: others wait behind each attempt.
    fault
        .hint("end what holds the table, then try again; nothing was changed")
        .retry(Retry::Never)
}

/// Sessions that hold locks on tables that a statement names: whose they are, not their statements.
const HOLDERS: &str = r#"SELECT format('%s on %s.%s', CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
        ELSE format('process %s (user %s, application %s)', l.pid, coalesce(a.usename, '-'),
            coalesce(nullif(a.application_name, ''), '-')) END, n.nspname, c.relname)
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    AND strpos($1, '"' || replace(n.nspname, '"', '""') || '"."' || replace(c.relname, '"', '""') || '"') > 0
    GROUP BY 1 LIMIT 5"#;

/// Whether the schema matches now; tolerated differences stay.
async fn check(conn: &Conn, request: &SchemaRequest) -> Result<(), Fault> {
    let here = read(conn, &request.filter, &request.described).await?;
    let compared = compare(&request.described, &here);
    let left = plan(&request.described, &here, &compared, &|_| true);
    if left.statements.is_empty() && left.unplanned.is_empty() {
        return Ok(());
    }
    let differing = compared
        .differences()
        .filter(|d| gates(d) && !left.tolerated.contains(d));
    let what = format!(
        "after all statements of the plan the schemas would still differ: {}",
        listed(differing.map(|d| named(d, "the source", "the target")))
    );
    Err(conn
        .own(Fault::new(FaultKind::Failed, what))
        .hint("make these changes on the target yourself; nothing was changed"))
}

fn listed(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let mut text = all
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if all.len() > NAMED {
        text.push_str(&format!("; and {} more", all.len() - NAMED));
    }
    text
}

fn applied(task: &Task, statement: &PlannedStatement) -> Finding {
    Finding {
        severity: Severity::Info,
        code: "schema_sync_applied".to_owned(),
        node: Some(task.node.clone()),
        what: statement.sql.clone(),
        why: "run by --schema-sync auto to make the target match its source".to_owned(),
        fix: String::new(),
    }
}
