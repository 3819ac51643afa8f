//! Makes a target ready for rows: its schema there, its tables empty, what slows loading put aside.

use steep_protocol::message::agent::IndexTiming;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::{ExistingRows, SchemaMode, TableFilter};
use steep_protocol::message::peer::TablePlan;
use steep_protocol::{Fault, FaultKind};
use tokio_postgres::error::SqlState;

use super::books::{self, Origin, Progress};
use super::build::{build_constraints, build_indexes};
use super::conn::Conn;
use super::{bootstrap, existing, objects, schema};
use crate::chunk::PartReader;
use crate::task::Task;

/// What is wanted of a target.
#[derive(Debug, Clone)]
pub struct PrepareRequest {
    /// Which tables take part.
    pub filter: TableFilter,
    /// What to do about rows that are there.
    pub existing: ExistingRows,
    /// What to do about differences in schema.
    pub schema_mode: SchemaMode,
    /// When indexes are built.
    pub indexes: IndexTiming,
}

/// Prepares the target for `plan`. In a database without tables the schema is made of the two
/// dumps; otherwise they are not read and the tables that are there are used.
///
/// Done again for the same job, it does nothing once it has succeeded (rows may be there by then),
/// and begins anew where it had not.
///
/// # Errors
/// `SchemaMismatch` where planned tables or columns are missing; a fault that names tables with
/// rows; what the server refuses.
pub async fn prepare<P: PartReader, Q: PartReader>(
    task: &Task,
    request: &PrepareRequest,
    plan: &[TablePlan],
    pre_data: P,
    post_data: Q,
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "prepare").await?;
    let installed = schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    match books::load(&conn, task.job).await? {
        Some(book) if book.progress == Progress::Prepared => return Ok(Vec::new()),
        Some(book) if book.origin == Origin::Bootstrap => {
            objects::drop_created(&conn, task.job).await?;
            let forgotten = conn.transact(&books::forget(task.job)).await;
            forgotten.map_err(|error| conn.fault(&error))?;
        }
        _ => {}
    }
    if request.indexes == IndexTiming::Deferred {
        replica_role(&conn).await?;
    }
    let mut findings = Vec::new();
    let prepared = books::note(task.job, Progress::Prepared);
    if objects::has_user_tables(&conn).await? {
        existing::make_ready(task, &conn, request, plan).await?;
        conn.execute(&prepared).await?;
        return Ok(findings);
    }
    findings.extend(bootstrap::make(task, &conn, plan, pre_data, post_data).await?);
    existing::check_shape(&conn, plan, request.schema_mode).await?;
    if request.indexes == IndexTiming::Upfront {
        findings.extend(build_indexes(task, 1).await?);
        findings.extend(build_constraints(task, 1).await?);
    }
    let listed = format!("{};\n{prepared}", objects::note_created(task.job));
    let noted = conn.transact(&listed).await;
    noted.map_err(|error| conn.fault(&error))?;
    Ok(findings)
}

/// Makes this session load as a replica does: triggers do not fire, foreign keys are not checked.
pub(super) async fn replica_role(conn: &Conn) -> Result<(), Fault> {
    let sql = "SET session_replication_role = replica";
    match conn.attempt(sql).await {
        Ok(()) => Ok(()),
        Err(error) if error.is(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let what = "the agent's role may not set session_replication_role, so triggers would fire on every row";
            Err(conn.own(Fault::new(FaultKind::Unauthorized, what)).hint(
                "let the agent connect as a superuser, or GRANT SET ON PARAMETER session_replication_role to its role (PostgreSQL 15 and newer)",
            ))
        }
        Err(error) => Err(conn.fault(&error)),
    }
}
