//! The schema `steep_repl`: node state for people who query it, job records, and table fingerprints.
//!
//! Its SQL is the extension's (`extension/`), whether an administrator runs `CREATE EXTENSION` or the agent
//! installs it. Each version is a script from the one before, applied once, in order, in one transaction;
//! it writes its own number to `schema_version`. Published scripts never change, and nothing is granted to
//! PUBLIC. An agent leaves a newer version alone, since versions only add. Where the extension owns the
//! schema, the agent asks for its update and changes nothing itself.

use steep_protocol::NodeId;
use steep_protocol::message::agent::MirrorRow;
use steep_protocol::message::api::AuditView;

use crate::pg::{OwnSchema, PgError, Session};

/// Schema and extension name. Never copied, published or listed as a user's.
pub(crate) const NAME: &str = "steep_repl";

struct Version {
    name: &'static str,
    script: &'static str,
}

/// The first one is number 1 in `schema_version`.
const VERSIONS: [Version; 9] = [
    Version {
        name: "1.0",
        script: include_str!("../../../extension/steep_repl--1.0.sql"),
    },
    Version {
        name: "1.1",
        script: include_str!("../../../extension/steep_repl--1.0--1.1.sql"),
    },
    Version {
        name: "1.2",
        script: include_str!("../../../extension/steep_repl--1.1--1.2.sql"),
    },
    Version {
        name: "1.3",
        script: include_str!("../../../extension/steep_repl--1.2--1.3.sql"),
    },
    Version {
        name: "1.4",
        script: include_str!("../../../extension/steep_repl--1.3--1.4.sql"),
    },
    Version {
        name: "1.5",
        script: include_str!("../../../extension/steep_repl--1.4--1.5.sql"),
    },
    Version {
        name: "1.6",
        script: include_str!("../../../extension/steep_repl--1.5--1.6.sql"),
    },
    Version {
        name: "1.7",
        script: include_str!("../../../extension/steep_repl--1.6--1.7.sql"),
    },
    Version {
        name: "1.8",
        script: include_str!("../../../extension/steep_repl--1.7--1.8.sql"),
    },
];

/// Advisory lock that serialises concurrent installs; the number is arbitrary.
const INSTALL_LOCK: i64 = 0x7374_6565_705f_7631;

/// Creates or updates the schema. Costs one query where it is current; on error nothing has changed.
pub(crate) async fn install(session: &Session) -> Result<(), PgError> {
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
    if is_extension(session).await? {
        update_extension(session).await?;
    } else {
        let from = version(session).await?;
        if from == 0 && session.own_schema().await? == OwnSchema::Absent {
            // Fails if somebody creates one now; the next try checks that one like any other.
            session.batch_execute("CREATE SCHEMA steep_repl").await?;
        }
        for version in &VERSIONS[from.min(VERSIONS.len())..] {
            session.batch_execute(version.script).await?;
        }
    }
    session.batch_execute("COMMIT").await?;
    Ok(())
}

/// Whether an extension owns the schema, whose objects are then not ours to change.
async fn is_extension(session: &Session) -> Result<bool, PgError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'steep_repl')";
    Ok(session.query_typed(sql, &[]).await?[0].get(0))
}

async fn update_extension(session: &Session) -> Result<(), PgError> {
    let Some(newest) = VERSIONS.last() else {
        return Ok(());
    };
    let update = format!("ALTER EXTENSION steep_repl UPDATE TO '{}'", newest.name);
    let updated = session.batch_execute(&update).await.map_err(PgError::from);
    updated.map_err(|error| PgError::Extension {
        wanted: newest.name,
        reason: error.to_string(),
    })
}

/// 0 where there is none.
async fn version(session: &Session) -> Result<usize, PgError> {
    if !exists(session).await? {
        return Ok(0);
    }
    let sql = "SELECT coalesce(max(version), 0) FROM steep_repl.schema_version";
    let version: i32 = session.query_typed(sql, &[]).await?[0].get(0);
    Ok(usize::try_from(version).unwrap_or(0))
}

pub(crate) async fn exists(session: &Session) -> Result<bool, PgError> {
    if session.own_schema().await? == OwnSchema::Absent {
        return Ok(false);
    }
    let sql = "SELECT pg_catalog.to_regclass('steep_repl.schema_version') IS NOT NULL";
    Ok(session.query_typed(sql, &[]).await?[0].get(0))
}

/// Writes this node's row, its job's progress and, when the state changed, an audit entry. The schema must
/// be installed.
pub(crate) async fn mirror(
    session: &Session,
    node: &NodeId,
    row: &MirrorRow,
) -> Result<(), PgError> {
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
                &count(row.progress.bytes_total.0),
                &count(row.progress.wire_bytes.0),
                &row.progress.rows_sec,
                &row.progress.bytes_sec,
                &row.progress.eta_seconds.map(count),
                &i32::from(row.progress.workers),
                &count(row.progress.retries),
            ],
        )
        .await?;
    Ok(())
}

/// Writes an operator's request to the audit log. Idempotent. The schema must be installed.
pub(crate) async fn audit(
    session: &Session,
    node: &NodeId,
    entry: &AuditView,
) -> Result<(), PgError> {
    let arguments: serde_json::Map<_, _> = entry
        .arguments
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().into()))
        .collect();
    let detail = serde_json::json!({
        "seq": entry.seq,
        "operator": entry.operator,
        "certificate": entry.certificate,
        "address": entry.address,
        "target_node": entry.node_id,
        "source_node": entry.source_node,
        "arguments": arguments,
    });
    let job = entry.job_id.map(|job| job.to_string());
    let event = format!("operator.{}", entry.action);
    let at = entry.timestamp.as_microsecond();
    session
        .execute(AUDIT, &[&at, &node.as_str(), &job, &event, &detail])
        .await?;
    Ok(())
}

/// The same time and number are the same entry: only a new coordinator starts numbering again.
const AUDIT: &str = "
WITH entry AS (SELECT timestamptz 'epoch' + $1::int8 * interval '1 microsecond' AS at)
INSERT INTO steep_repl.audit_log (at, node_id, job, event, detail)
SELECT entry.at, $2, $3, $4, $5::jsonb FROM entry
WHERE NOT EXISTS (
    SELECT FROM steep_repl.audit_log a
    WHERE a.at = entry.at AND a.event = $4 AND a.detail -> 'seq' = $5::jsonb -> 'seq')";

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
    tables_completed, rows_copied, bytes_copied, error_message, bytes_total, wire_bytes,
    throughput_rows_sec, throughput_bytes_sec, eta_seconds, parallel_workers, retries)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
ON CONFLICT (node_id) DO UPDATE SET
    started_at = CASE WHEN p.job = $2 THEN p.started_at ELSE now() END,
    job = $2, phase = $3, overall_percent = $4, tables_total = $5, tables_completed = $6,
    rows_copied = $7, bytes_copied = $8, error_message = $9, bytes_total = $10, wire_bytes = $11,
    throughput_rows_sec = $12, throughput_bytes_sec = $13, eta_seconds = $14,
    parallel_workers = $15, retries = $16, updated_at = now()";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_control_file_and_numbers_agree() {
        let control = include_str!("../../../extension/steep_repl.control");
        let newest = VERSIONS.last().unwrap().name;
        assert!(control.contains(&format!("default_version = '{newest}'")));
        for (number, version) in (1..).zip(&VERSIONS) {
            let note = format!("schema_version (version) VALUES ({number});");
            assert!(version.script.contains(&note), "{}", version.name);
        }
    }

    /// CREATE EXTENSION and the agent both run scripts inside a transaction of their own.
    #[test]
    fn scripts_leave_transactions_alone() {
        for version in &VERSIONS {
            for line in version.script.lines() {
                let word = line.trim_end_matches(';').to_uppercase();
                assert!(!["BEGIN", "COMMIT", "ROLLBACK"].contains(&word.as_str()));
                assert!(!line.starts_with('\\'), "psql's own command: {line}");
            }
        }
    }
}
