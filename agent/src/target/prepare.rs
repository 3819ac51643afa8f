//! Prepares a target for rows: schema created, tables empty, indexes that slow loading dropped.

use std::collections::HashSet;

use steep_protocol::message::agent::IndexTiming;
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::{AbsentTables, ExistingRows, SchemaMode, TableFilter};
use steep_protocol::message::peer::{DatabaseSetting, TablePlan};
use steep_protocol::{Fault, FaultKind, NodeId, TableName};
use steep_schema::Schema;

use super::{belongings, bootstrap, existing, sync};
use crate::chunk::PartReader;
use crate::deferred::build::{Purpose, build_constraints, build_indexes};
use crate::deferred::checks::{self, LoadedBy, Reach};
use crate::deferred::indexes;
use crate::node::connection::Conn;
use crate::node::job_records::{self, Origin, Progress};
use crate::node::own_schema;
use crate::part::ledger;
use crate::replication::keep_out;
use crate::schema::{fingerprints, missing, objects, settings};
use crate::task::{Patience, Task};

#[derive(Debug)]
pub(crate) struct PrepareRequest {
    pub(crate) schema: SchemaRequest,
    pub(crate) indexes: IndexTiming,
    /// Settings of the source's database that affect values.
    pub(crate) settings: Vec<DatabaseSetting>,
}

/// Dumps of the source's schema, read only where the schema is created from them.
#[derive(Debug)]
pub(crate) struct Dumps<R, Q> {
    /// Types, functions, tables, views, defaults.
    pub(crate) pre_data: R,
    /// User data in extensions' tables.
    pub(crate) extension_rows: R,
    /// Indexes, constraints, triggers, rules, policies.
    pub(crate) post_data: Q,
}

#[derive(Debug)]
pub(crate) struct SchemaRequest {
    pub(crate) filter: TableFilter,
    pub(crate) existing: ExistingRows,
    pub(crate) schema_mode: SchemaMode,
    pub(crate) absent: AbsentTables,
    pub(crate) source: NodeId,
    pub(crate) described: Schema,
    /// The coordinator's, kept with the job's record.
    pub(crate) note: Option<String>,
}

/// Prepares the target for `plan`. In a database without tables the schema is created from the dumps;
/// otherwise they are not read and the existing tables are used.
///
/// Repeated for the same job, it does nothing after a success, when rows may exist, and starts over after a
/// failure. Fails with `SchemaMismatch` where the schemas differ in strict mode or planned tables or
/// columns are missing, and where tables hold rows.
pub(crate) async fn prepare<R: PartReader, Q: PartReader>(
    task: &Task,
    request: &PrepareRequest,
    plan: &[TablePlan],
    dumps: Dumps<R, Q>,
) -> Result<Vec<Finding>, Fault> {
    let task = &Task {
        patience: Patience::Long,
        ..task.clone()
    };
    let conn = Conn::open(task, "prepare").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    let record = job_records::load(&conn, task.job).await?;
    match record {
        Some(record) if record.progress == Progress::Prepared => return Ok(Vec::new()),
        Some(record) if record.origin == Origin::Bootstrap => {
            objects::drop_created(&conn, task.job).await?;
            settings::take_back(&conn, task.job).await?;
            let forget = format!(
                "{};\n{}",
                job_records::forget(task.job),
                missing::forget(task.job)
            );
            let forgotten = conn.transact(&forget).await;
            forgotten.map_err(|error| conn.fault(&error))?;
        }
        _ => {}
    }
    let loaded_by = match request.indexes {
        IndexTiming::Deferred => LoadedBy::Us,
        IndexTiming::Upfront => LoadedBy::PostgreSql,
    };
    if loaded_by == LoadedBy::Us {
        conn.replica_role().await?;
    }
    let mut findings = Vec::new();
    let prepared = job_records::note(task.job, Progress::Prepared);
    let wanted = &request.schema;
    fingerprints::store(&conn, &wanted.source, &wanted.described, &wanted.filter).await?;
    if objects::has_user_tables(&conn).await? {
        if record.is_none() {
            // Later, indexes that this job drops would count as differences.
            findings.extend(sync::settle(task, &conn, wanted, plan).await?);
        }
        existing::make_ready(task, &conn, request, plan).await?;
        checks::defer(task, &conn, Reach::Planned, loaded_by).await?;
        let created = match wanted.absent {
            AbsentTables::Differ => {
                let filled = bootstrap::refreshes(&conn, dumps.post_data).await?;
                indexes::refreshes(task, &conn, filled).await?;
                None
            }
            AbsentTables::Created => Some((dumps.pre_data, dumps.post_data)),
        };
        findings.extend(keep_out::set(&conn, task.job).await?);
        conn.execute("BEGIN").await?;
        if let Some(dumps) = created {
            belongings::defer(&conn, (task.job, plan), dumps).await?;
        }
        conn.execute(&format!("{prepared}; COMMIT")).await?;
        return Ok(findings);
    }
    findings.extend(bootstrap::make(task, &conn, (plan, wanted.note.as_deref()), dumps).await?);
    findings.extend(settings::carry_over(task, &conn, &request.settings).await?);
    existing::check_shape(&conn, plan, wanted.schema_mode).await?;
    if request.indexes == IndexTiming::Upfront {
        findings.extend(build_indexes(task, 1, Purpose::Replication).await?);
        findings.extend(build_constraints(task, 1, Purpose::Replication).await?);
    }
    checks::defer(task, &conn, Reach::All, loaded_by).await?;
    findings.extend(keep_out::set(&conn, task.job).await?);
    let listed = format!("{};\n{prepared}", objects::note_created(task.job));
    let noted = conn.transact(&listed).await;
    noted.map_err(|error| conn.fault(&error))?;
    Ok(findings)
}

/// Empties the tables of a later epoch's plan, which an earlier one has not completed, and forgets their parts.
/// Idempotent. Fails with `SchemaMismatch` where a planned table is not as the source has it now. Warns of those of
/// `unfinished` that the source has no longer.
pub(crate) async fn prepare_again(
    task: &Task,
    request: &SchemaRequest,
    plan: &[TablePlan],
    unfinished: &[TableName],
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "prepare").await?;
    conn.replica_role().await?;
    let again: HashSet<&TableName> = plan.iter().map(|table| &table.name).collect();
    sync::check_tables(&conn, request, &again).await?;
    existing::check_shape(&conn, plan, request.schema_mode).await?;
    let planned = job_records::planned(&conn, task.job).await?;
    let mut emptied = planned;
    emptied.retain(|table| again.contains(&table.name));
    if emptied.len() < again.len() {
        let text = "the new plan has tables that the first one had not";
        return Err(conn.own(Fault::new(FaultKind::Failed, text)));
    }
    ledger::forget_tables(task, &conn, &emptied).await?;
    existing::truncate(&conn, &emptied).await?;
    // An operator may have altered them since, to what the source has now.
    let mut findings = keep_out::set_again(&conn, task.job, &again).await?;
    let gone = unfinished.iter().filter(|table| !again.contains(table));
    findings.extend(gone.map(|table| table_gone(task, table)));
    Ok(findings)
}

fn table_gone(task: &Task, table: &TableName) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "table_gone".to_owned(),
        node: Some(task.node.clone()),
        what: format!("{table} was dropped or renamed on the source before all its rows were read"),
        why: "the table of that name here is empty and is not replicated".to_owned(),
        fix: format!("drop {table} here, or rename it and copy the table that the source has now"),
    }
}

/// Compares the schema of a target that has its rows with the source's, and acts by the mode. Touches no
/// row. Idempotent. Fails with `SchemaMismatch` where the schemas differ in strict mode.
pub(crate) async fn match_schema(
    task: &Task,
    request: &SchemaRequest,
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "prepare").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    let SchemaRequest {
        source,
        described,
        filter,
        ..
    } = request;
    fingerprints::store(&conn, source, described, filter).await?;
    sync::settle(task, &conn, request, &[]).await
}
