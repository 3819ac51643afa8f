//! Makes a target ready for rows: its schema there, its tables empty, what slows loading dropped.

use steep_protocol::message::agent::IndexTiming;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::{ExistingRows, SchemaMode, TableFilter};
use steep_protocol::message::peer::{DatabaseSetting, TablePlan};
use steep_protocol::{Fault, NodeId};
use steep_schema::Schema;

use super::{bootstrap, existing, sync};
use crate::chunk::PartReader;
use crate::deferred::build::{build_constraints, build_indexes};
use crate::deferred::checks::{self, Reach};
use crate::deferred::indexes;
use crate::node::connection::Conn;
use crate::node::job_records::{self, Origin, Progress};
use crate::node::own_schema;
use crate::replication::keep_out;
use crate::schema::{fingerprints, missing, objects, settings};
use crate::task::{Patience, Task};

/// What is wanted of a target.
#[derive(Debug)]
pub struct PrepareRequest {
    /// Of its schema.
    pub schema: SchemaRequest,
    /// When indexes are built.
    pub indexes: IndexTiming,
    /// What decides values in the source's database.
    pub settings: Vec<DatabaseSetting>,
}

/// Dumps of the source's schema, read only where the schema is made of them.
#[derive(Debug)]
pub struct Dumps<R, Q> {
    /// Types, functions, tables, views, defaults.
    pub pre_data: R,
    /// Rows that users have put into tables of extensions.
    pub extension_rows: R,
    /// Indexes, constraints, triggers, rules, policies.
    pub post_data: Q,
}

/// What is wanted of a target's schema.
#[derive(Debug)]
pub struct SchemaRequest {
    /// Which tables take part.
    pub filter: TableFilter,
    /// What to do about rows that are there.
    pub existing: ExistingRows,
    /// What to do about differences in schema.
    pub schema_mode: SchemaMode,
    /// The source.
    pub source: NodeId,
    /// Its schema, as far as `filter` admits it.
    pub described: Schema,
}

/// Prepares the target for `plan`. In a database without tables the schema is made of the
/// dumps; otherwise they are not read and the tables that are there are used.
///
/// Done again for the same job, it does nothing once it has succeeded (rows may be there by then),
/// and begins anew where it had not.
///
/// # Errors
/// `SchemaMismatch` where the schemas differ and the mode is strict, or planned tables or columns are
/// missing; a fault that names tables with rows; what the server refuses.
pub async fn prepare<R: PartReader, Q: PartReader>(
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
    if request.indexes == IndexTiming::Deferred {
        conn.replica_role().await?;
    }
    let mut findings = Vec::new();
    let prepared = job_records::note(task.job, Progress::Prepared);
    let wanted = &request.schema;
    fingerprints::store(&conn, &wanted.source, &wanted.described, &wanted.filter).await?;
    if objects::has_user_tables(&conn).await? {
        if record.is_none() {
            // Later, indexes that this job has dropped would seem to be missing.
            findings.extend(sync::settle(task, &conn, wanted, plan).await?);
        }
        existing::make_ready(task, &conn, request, plan).await?;
        checks::defer(task, &conn, Reach::Planned).await?;
        let filled = bootstrap::refreshes(&conn, dumps.post_data).await?;
        indexes::refreshes(task, &conn, filled).await?;
        findings.extend(keep_out::set(&conn, task.job).await?);
        conn.execute(&prepared).await?;
        return Ok(findings);
    }
    findings.extend(bootstrap::make(task, &conn, plan, dumps).await?);
    findings.extend(settings::carry_over(task, &conn, &request.settings).await?);
    existing::check_shape(&conn, plan, wanted.schema_mode).await?;
    if request.indexes == IndexTiming::Upfront {
        findings.extend(build_indexes(task, 1).await?);
        findings.extend(build_constraints(task, 1).await?);
    }
    checks::defer(task, &conn, Reach::All).await?;
    findings.extend(keep_out::set(&conn, task.job).await?);
    let listed = format!("{};\n{prepared}", objects::note_created(task.job));
    let noted = conn.transact(&listed).await;
    noted.map_err(|error| conn.fault(&error))?;
    Ok(findings)
}

/// Holds the schema of a target whose rows are there already against the source's, and does as the mode
/// says. Touches no row. Done again for the same job, it finds alike what it has made alike.
///
/// # Errors
/// `SchemaMismatch` where the schemas differ and the mode is strict; what the server refuses.
pub async fn match_schema(task: &Task, request: &SchemaRequest) -> Result<Vec<Finding>, Fault> {
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
