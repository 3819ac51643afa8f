//! What this database records of its snapshots: the note of the template slot, as of a prepared one, and a
//! row in `steep_repl.snapshots` once a snapshot is complete.
//!
//! The row of an operator's snapshot says all that a coordinator without memory needs to go on with it. It is the last
//! that goes: whoever finds it knows whose files may be left.

use jiff::Timestamp;
use steep_archive::{Location, Manifest};
use steep_protocol::message::snapshot::{
    ORDERS_MAX, RecordedFate, RecordedSnapshot, SNAPSHOTS_MAX, SealedSnapshot, SnapshotOrder,
};
use steep_protocol::{Fault, Lsn, NodeId, SnapshotId};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use tracing::debug;

use crate::node::own_schema;
use crate::node::slot_notes::{lsn, readable, time};
use crate::pg::{PgError, Session};
use crate::task::Task;

type Values<'a> = [&'a (dyn ToSql + Sync)];

/// The shortest time that an unfinished snapshot's slot is kept without a renewal, in seconds.
const UNFINISHED_SECONDS: u64 = 3_600;

/// Notes the template slot before it is made: one that nobody knows would fill the disk (G5).
pub(crate) async fn note(task: &Task, kept_seconds: u64) -> Result<(), Fault> {
    let session = task.connect("snapshot").await?;
    let noted = async {
        own_schema::install(&session).await?;
        let sql = "INSERT INTO steep_repl.init_slots (slot_name, job, source_node, expires_at) \
             VALUES ($1, $2, $3, now() + $4::int8 * interval '1 second') \
             ON CONFLICT (slot_name) DO UPDATE SET job = excluded.job, target_node = NULL, lsn = NULL, \
                 source_node = excluded.source_node, created_at = now(), \
                 expires_at = excluded.expires_at";
        let job = task.replication.id.to_string();
        let seconds = seconds(kept_seconds.max(UNFINISHED_SECONDS));
        let values: &Values<'_> = &[&slot(task), &job, &task.node.as_str(), &seconds];
        session
            .run(&task.cancel, session.execute(sql, values))
            .await
    };
    let noted = noted.await;
    session.give_back().await;
    noted.map(drop).map_err(|error: PgError| task.fault(error))
}

/// Notes the slot's position.
pub(crate) async fn opened(task: &Task, lsn: Lsn) -> Result<(), Fault> {
    let sql = "UPDATE steep_repl.init_slots SET lsn = $2::text::pg_lsn WHERE slot_name = $1";
    let session = task.connect("snapshot").await?;
    let values: &Values<'_> = &[&slot(task), &lsn.to_string()];
    let noted = session
        .run(&task.cancel, session.execute(sql, values))
        .await;
    session.give_back().await;
    noted.map(drop).map_err(|error| task.fault(error))
}

/// Keeps the slot of a snapshot that is still being read.
pub(crate) async fn renew(session: &Session, task: &Task) -> Result<(), PgError> {
    let sql = "UPDATE steep_repl.init_slots \
         SET expires_at = greatest(expires_at, now() + $2::int8 * interval '1 second') \
         WHERE slot_name = $1";
    let values: &Values<'_> = &[&slot(task), &seconds(UNFINISHED_SECONDS)];
    session
        .run(&task.cancel, session.execute(sql, values))
        .await?;
    Ok(())
}

/// Records that it is complete, with the order of the operator whose it is. Returns when it expires.
pub(crate) async fn sealed(
    session: &Session,
    task: &Task,
    (location, manifest): (&Location, &Manifest),
    (expires_seconds, order): (u64, Option<&SnapshotOrder>),
) -> Result<Timestamp, PgError> {
    let sql = "WITH kept AS (UPDATE steep_repl.init_slots \
             SET expires_at = now() + $2::int8 * interval '1 second' WHERE slot_name = $1 \
             RETURNING expires_at), \
         written AS (INSERT INTO steep_repl.snapshots (snapshot_id, source_node, location, lsn, \
                 slot_name, rows, bytes, recipients, expires_at, \
                 tables, parts, stored_bytes, manifest, request) \
             SELECT $3, $4, $5, $6::text::pg_lsn, $1, $7, $8, $9::text[], expires_at, \
                 $10, $11, $12, $13, $14::jsonb FROM kept \
             ON CONFLICT (snapshot_id) DO UPDATE SET location = excluded.location, lsn = excluded.lsn, \
                 rows = excluded.rows, bytes = excluded.bytes, recipients = excluded.recipients, \
                 expires_at = excluded.expires_at, tables = excluded.tables, parts = excluded.parts, \
                 stored_bytes = excluded.stored_bytes, manifest = excluded.manifest, \
                 request = excluded.request) \
         SELECT (extract(epoch FROM expires_at) * 1000000)::int8 FROM kept";
    let recipients = manifest.encryption.as_ref().map(|encryption| {
        let all = encryption.recipients.iter();
        all.map(ToString::to_string).collect::<Vec<String>>()
    });
    let order = order.map(serde_json::to_value).transpose();
    let order = order.map_err(|error| PgError::Protocol(format!("an order as JSON: {error}")))?;
    let values: &Values<'_> = &[
        &slot(task),
        &seconds(expires_seconds),
        &manifest.snapshot_id.to_string(),
        &task.node.as_str(),
        &location.to_string(),
        &manifest.lsn.to_string(),
        &count(manifest.totals.rows.0),
        &count(manifest.totals.bytes.0),
        &recipients,
        &count(manifest.totals.tables),
        &count(manifest.totals.parts),
        &count(manifest.totals.stored_bytes.0),
        &manifest.checksum.map(|sum| sum.to_string()),
        &order,
    ];
    let row = session
        .run(&task.cancel, session.query_one(sql, values))
        .await?;
    time(&row, 0)
}

/// Notes that the removal of the task's snapshot has begun. Idempotent.
pub(crate) async fn removal_begins(task: &Task) -> Result<(), Fault> {
    let sql = "UPDATE steep_repl.snapshots SET removing = true \
         WHERE snapshot_id = $1 AND source_node = $2 AND NOT removing";
    change(task, sql).await
}

/// Deletes the record of the task's snapshot, of which nothing else is left. Idempotent.
pub(crate) async fn removed(task: &Task) -> Result<(), Fault> {
    let sql = "DELETE FROM steep_repl.snapshots WHERE snapshot_id = $1 AND source_node = $2";
    change(task, sql).await
}

async fn change(task: &Task, sql: &str) -> Result<(), Fault> {
    let session = task.connect("snapshot").await?;
    let changed = async {
        if !is_newest(&session).await? {
            return Ok(());
        }
        let snapshot = SnapshotId(task.replication.id.0).to_string();
        let values: &Values<'_> = &[&snapshot, &task.node.as_str()];
        session
            .run(&task.cancel, session.execute(sql, values))
            .await?;
        Ok(())
    };
    let changed = changed.await;
    session.give_back().await;
    changed.map_err(|error: PgError| task.fault(error))
}

/// Whether this role can read the records, and they have all columns.
async fn is_newest(session: &Session) -> Result<bool, PgError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_attribute \
         WHERE attrelid = to_regclass('steep_repl.snapshots') AND attname = 'removing')";
    Ok(readable(session).await? && session.query_typed(sql, &[]).await?[0].try_get(0)?)
}

/// The node's complete snapshots of operators, newest first: at most [`SNAPSHOTS_MAX`], and [`ORDERS_MAX`] bytes of
/// orders. Records that are not ours are left out, such as those in a physical copy of another node's database.
pub(crate) async fn recorded(
    session: &Session,
    node: &NodeId,
) -> Result<Vec<RecordedSnapshot>, PgError> {
    if !is_newest(session).await? {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT snapshot_id, request::text, lsn::text, tables, parts, rows, bytes, stored_bytes, manifest, \
             (extract(epoch FROM expires_at) * 1000000)::int8, \
             (extract(epoch FROM created_at) * 1000000)::int8, expires_at <= now(), removing \
         FROM (SELECT *, sum(octet_length(request::text)) \
                 OVER (ORDER BY created_at DESC, snapshot_id) AS bytes_so_far \
             FROM steep_repl.snapshots \
             WHERE source_node = $1 AND request IS NOT NULL AND manifest IS NOT NULL \
                 AND expires_at IS NOT NULL) AS newest \
         WHERE bytes_so_far <= {ORDERS_MAX} \
         ORDER BY created_at DESC, snapshot_id LIMIT {SNAPSHOTS_MAX}"
    );
    let rows = session
        .query_typed(&sql, &[(&node.as_str(), Type::TEXT)])
        .await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        match recorded_snapshot(row, node)? {
            Some(snapshot) => all.push(snapshot),
            None => {
                let id: &str = row.try_get(0)?;
                debug!(snapshot_id = id, "a snapshot's record is not one of ours");
            }
        }
    }
    Ok(all)
}

/// `None` where the record is not one of ours.
fn recorded_snapshot(row: &Row, node: &NodeId) -> Result<Option<RecordedSnapshot>, PgError> {
    let id = row.try_get::<_, &str>(0)?.parse::<SnapshotId>();
    let order = serde_json::from_str::<SnapshotOrder>(row.try_get(1)?);
    let manifest = row.try_get::<_, &str>(8)?.parse();
    let (Ok(snapshot), Ok(order), Ok(manifest)) = (id, order, manifest) else {
        return Ok(None);
    };
    let counted = |at: usize| -> Result<u64, PgError> {
        let count: Option<i64> = row.try_get(at)?;
        Ok(u64::try_from(count.unwrap_or(0)).unwrap_or(0))
    };
    let (expired, removing): (bool, bool) = (row.try_get(11)?, row.try_get(12)?);
    let recorded = RecordedSnapshot {
        snapshot,
        order,
        lsn: lsn(row, 2)?.unwrap_or_default(),
        sealed: SealedSnapshot {
            tables: counted(3)?,
            parts: counted(4)?,
            rows: counted(5)?,
            bytes: counted(6)?,
            stored_bytes: counted(7)?,
            manifest,
            expires_at: time(row, 9)?,
        },
        sealed_at: time(row, 10)?,
        fate: match (removing, expired) {
            (true, _) => RecordedFate::Removed,
            (false, true) => RecordedFate::Expired,
            (false, false) => RecordedFate::Kept,
        },
    };
    let own = recorded.order.spec.source == *node && recorded.is_bounded();
    Ok(own.then_some(recorded))
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn slot(task: &Task) -> &str {
    task.replication.slot.as_str()
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
