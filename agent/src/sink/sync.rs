//! What a target's existing schema is held against before anything of a job touches it: strict stops
//! at a difference, auto makes the target match, manual has been confirmed.
//!
//! Auto runs its whole plan in one transaction, together with the list of what it makes, so that a
//! cancel finds and removes the tables; it reads the catalog again before it commits. Decides nothing
//! about what a difference is: that is `steep_schema`'s.

use std::collections::BTreeSet;
use std::time::Instant;

use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::{ExistingRows, SchemaMode};
use steep_protocol::message::peer::TablePlan;
use steep_protocol::message::schema::{PlannedStatement, SchemaDifference};
use steep_protocol::{Fault, FaultKind, TableName};
use steep_schema::{Comparison, Plan, Schema, compare, gates, named, plan};

use super::books::{self, Origin};
use super::conn::Conn;
use super::fingerprints::read;
use super::{PrepareRequest, existing, objects};
use crate::task::Task;

/// Differences or statements named in an error.
const NAMED: usize = 20;

/// Compares once more, now that the job begins, and does as the mode says. What was run, as findings.
pub(super) async fn settle(
    task: &Task,
    conn: &Conn,
    request: &PrepareRequest,
    tables: &[TablePlan],
) -> Result<Vec<Finding>, Fault> {
    let here = read(conn, &request.filter).await?;
    let compared = compare(&request.described, &here);
    let differing: Vec<&SchemaDifference> = compared.differences().filter(|d| gates(d)).collect();
    if differing.is_empty() {
        return Ok(Vec::new());
    }
    match request.schema_mode {
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

/// The plan, in one transaction, which stays open where this fails.
async fn apply(
    task: &Task,
    conn: &Conn,
    request: &PrepareRequest,
    tables: &[TablePlan],
    (here, compared): (&Schema, &Comparison),
) -> Result<Vec<Finding>, Fault> {
    let began = Instant::now();
    conn.execute("BEGIN").await?;
    books::open(conn, task.job, Origin::Existing, tables).await?;
    objects::note_baseline(conn, task.job).await?;
    let planned = books::planned(conn, task.job).await?;
    let full: BTreeSet<TableName> = existing::with_rows(conn, &planned)
        .await?
        .into_iter()
        .collect();
    let known: BTreeSet<&TableName> = planned.iter().map(|p| &p.name).collect();
    // Of a partitioned table it is not known which of its partitions hold rows.
    let holds_rows =
        |table: &TableName| full.contains(table) || (!known.contains(table) && !full.is_empty());
    let plan = plan(&request.described, here, compared, &holds_rows);
    may_run(conn, &plan, request.existing)?;
    for statement in &plan.statements {
        run(conn, statement).await?;
    }
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

fn may_run(conn: &Conn, plan: &Plan, existing: ExistingRows) -> Result<(), Fault> {
    if !plan.unplanned.is_empty() {
        let all = plan.unplanned.iter();
        let what = format!(
            "these differences cannot be altered in place: {}",
            listed(all.map(|d| named(d, "the source", "the target")))
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
    let ran = conn.attempt(&statement.sql).await;
    ran.map_err(|error| {
        let mut fault = conn.fault(&error);
        fault.message = format!(
            "a statement of the schema plan failed, {}: {}",
            statement.sql, fault.message
        );
        fault.hint("make this change on the target yourself; nothing was changed")
    })
}

/// Whether all is as it should be now; what is tolerated stays.
async fn check(conn: &Conn, request: &PrepareRequest) -> Result<(), Fault> {
    let here = read(conn, &request.filter).await?;
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
