//! The schema `steep_repl` on a node, in plain SQL: node state for people who look by SQL, and the
//! books of jobs.
//!
//! Owns the schema's versions: each is a file, applied once, in order, in one transaction with its
//! row in `schema_version`; a published file never changes. Nothing here is granted to PUBLIC.
//! An agent that finds a newer version than it knows leaves it alone: versions only add.

use steep_protocol::NodeId;
use steep_protocol::message::agent::MirrorRow;

use crate::pg::{PgError, Session};

/// The schema's name. Never copied, published or listed as a user's.
pub const NAME: &str = "steep_repl";

/// One file per version, from 1.
const VERSIONS: [&str; 1] = [include_str!("v1.sql")];

/// Agents that install at the same time queue up here; the number says nothing.
const INSTALL_LOCK: i64 = 0x7374_6565_705f_7631;

/// Makes the schema or brings it to this agent's version. Costs one query where nothing is to do.
///
/// # Errors
/// [`PgError`] where the server refuses; the schema is then as it was.
pub async fn install(session: &Session) -> Result<(), PgError> {
    if version(session).await? >= VERSIONS.len() {
        return Ok(());
    }
    let outcome = install_locked(session).await;
    if outcome.is_err() {
        session.batch_execute("ROLLBACK").await?;
    }
    outcome
}

async fn install_locked(session: &Session) -> Result<(), PgError> {
    let lock = format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({INSTALL_LOCK})");
    session.batch_execute(&lock).await?;
    let from = version(session).await?;
    if from == 0 {
        session.batch_execute(FOUNDATION).await?;
    }
    for (at, sql) in VERSIONS.iter().enumerate().skip(from) {
        session.batch_execute(sql).await?;
        let number = at + 1;
        let note = format!("INSERT INTO steep_repl.schema_version (version) VALUES ({number})");
        session.batch_execute(&note).await?;
    }
    session.batch_execute(REVOKE).await?;
    session.batch_execute("COMMIT").await?;
    Ok(())
}

const FOUNDATION: &str = "
CREATE SCHEMA IF NOT EXISTS steep_repl;
COMMENT ON SCHEMA steep_repl IS 'Made and used by steep-repl; see steep_repl.nodes and steep_repl.init_progress.';
CREATE TABLE IF NOT EXISTS steep_repl.schema_version (
    version integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT now()
)";

const REVOKE: &str = "
REVOKE ALL ON SCHEMA steep_repl FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA steep_repl FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA steep_repl FROM PUBLIC";

/// The version installed; 0 where there is none.
async fn version(session: &Session) -> Result<usize, PgError> {
    if !exists(session).await? {
        return Ok(0);
    }
    let sql = "SELECT coalesce(max(version), 0) FROM steep_repl.schema_version";
    let version: i32 = session.query_typed(sql, &[]).await?[0].get(0);
    Ok(usize::try_from(version).unwrap_or(0))
}

/// Whether the schema is there, so that its tables can be asked.
pub(super) async fn exists(session: &Session) -> Result<bool, PgError> {
    let sql = "SELECT pg_catalog.to_regclass('steep_repl.schema_version') IS NOT NULL";
    Ok(session.query_typed(sql, &[]).await?[0].get(0))
}

/// Writes this node's row, its job's progress and, where the state changed, a line of the audit
/// log. The schema must be installed.
///
/// # Errors
/// [`PgError`] where the server refuses.
pub async fn mirror(session: &Session, node: &NodeId, row: &MirrorRow) -> Result<(), PgError> {
    let job = row.job.map(|job| job.to_string());
    let state = row.state.as_str();
    let source = row.source.as_ref().map(NodeId::as_str);
    session
        .execute(
            MIRROR_NODE,
            &[&node.as_str(), &state, &source, &job, &row.error],
        )
        .await?;
    let Some(job) = job else {
        let sql = "DELETE FROM steep_repl.init_progress WHERE node_id = $1";
        session.execute(sql, &[&node.as_str()]).await?;
        return Ok(());
    };
    let phase = row.phase.map(steep_protocol::Phase::as_str);
    let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let tables = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    session
        .execute(
            MIRROR_PROGRESS,
            &[
                &node.as_str(),
                &job,
                &phase,
                &row.overall_percent,
                &tables(row.tables.1),
                &tables(row.tables.0),
                &count(row.rows.0),
                &count(row.bytes.0),
                &row.error,
            ],
        )
        .await?;
    Ok(())
}

const MIRROR_NODE: &str = "
WITH before AS (SELECT state FROM steep_repl.nodes WHERE node_id = $1),
audit AS (
    INSERT INTO steep_repl.audit_log (node_id, job, event, detail)
    SELECT $1, $4, 'init.state_change', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'from', (SELECT state FROM before), 'to', $2::text, 'source_node', $3::text,
        'error_message', $5::text))
    WHERE (SELECT state FROM before) IS DISTINCT FROM $2
)
INSERT INTO steep_repl.nodes AS n
    (node_id, state, source_node, job, error_message, init_started_at, init_completed_at)
VALUES ($1, $2, $3, $4, $5,
    CASE WHEN $2 IN ('preparing', 'reinitializing') THEN now() END,
    CASE WHEN $2 = 'synchronized' THEN now() END)
ON CONFLICT (node_id) DO UPDATE SET
    state = $2, source_node = $3, job = $4, error_message = $5, updated_at = now(),
    init_started_at = CASE
        WHEN n.state IS DISTINCT FROM $2 AND $2 IN ('preparing', 'reinitializing') THEN now()
        ELSE n.init_started_at END,
    init_completed_at = CASE
        WHEN $2 = 'synchronized' THEN coalesce(n.init_completed_at, now())
        WHEN $2 = 'diverged' THEN n.init_completed_at END";

const MIRROR_PROGRESS: &str = "
INSERT INTO steep_repl.init_progress AS p (node_id, job, phase, overall_percent, tables_total,
    tables_completed, rows_copied, bytes_copied, error_message)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (node_id) DO UPDATE SET
    started_at = CASE WHEN p.job = $2 THEN p.started_at ELSE now() END,
    job = $2, phase = $3, overall_percent = $4, tables_total = $5, tables_completed = $6,
    rows_copied = $7, bytes_copied = $8, error_message = $9, updated_at = now()";
