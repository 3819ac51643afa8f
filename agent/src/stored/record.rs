//! What this database records of its snapshots: the note of the template slot, as of a prepared one, and a
//! row in `steep_repl.snapshots` once a snapshot is complete.

use jiff::Timestamp;
use steep_archive::{Location, Manifest};
use steep_protocol::{Fault, Lsn};
use tokio_postgres::types::ToSql;

use crate::node::own_schema;
use crate::node::slot_notes::time;
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

/// Records that it is complete. Returns when it expires.
pub(crate) async fn sealed(
    session: &Session,
    task: &Task,
    (location, manifest): (&Location, &Manifest),
    expires_seconds: u64,
) -> Result<Timestamp, PgError> {
    let sql = "WITH kept AS (UPDATE steep_repl.init_slots \
             SET expires_at = now() + $2::int8 * interval '1 second' WHERE slot_name = $1 \
             RETURNING expires_at), \
         written AS (INSERT INTO steep_repl.snapshots (snapshot_id, source_node, location, lsn, \
                 slot_name, rows, bytes, recipients, expires_at) \
             SELECT $3, $4, $5, $6::text::pg_lsn, $1, $7, $8, $9::text[], expires_at FROM kept \
             ON CONFLICT (snapshot_id) DO UPDATE SET location = excluded.location, lsn = excluded.lsn, \
                 rows = excluded.rows, bytes = excluded.bytes, recipients = excluded.recipients, \
                 expires_at = excluded.expires_at) \
         SELECT (extract(epoch FROM expires_at) * 1000000)::int8 FROM kept";
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let recipients = manifest.encryption.as_ref().map(|encryption| {
        let all = encryption.recipients.iter();
        all.map(ToString::to_string).collect::<Vec<String>>()
    });
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
    ];
    let row = session
        .run(&task.cancel, session.query_one(sql, values))
        .await?;
    time(&row, 0)
}

fn slot(task: &Task) -> &str {
    task.replication.slot.as_str()
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
