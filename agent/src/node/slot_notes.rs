//! Prepared slots as noted in this database's `steep_repl.init_slots`.

use jiff::Timestamp;
use steep_protocol::message::handover::{
    PREPARED_MAX, PreparedSlot, PreparedState, Replication, SlotName,
};
use steep_protocol::{ByteCount, Lsn, NodeId};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::pg::{OwnSchema, PgError, Session};

/// Whether this role can read the notes: the table may be missing or another role's.
const READABLE: &str = "SELECT coalesce(has_schema_privilege(to_regnamespace('steep_repl'), 'USAGE') \
     AND has_table_privilege(to_regclass('steep_repl.init_slots'), 'SELECT'), false)";

/// Deletes the note of a prepared slot, and the record of a snapshot of jobs that it is the template of. That of an
/// operator's snapshot stays as long as its files. Idempotent.
pub(crate) async fn forget(session: &Session, replication: &Replication) -> Result<(), PgError> {
    if readable(session).await? {
        let sql = "DELETE FROM steep_repl.init_slots WHERE slot_name = $1 AND job = $2";
        let job = replication.id.to_string();
        session
            .execute(sql, &[&replication.slot.as_str(), &job])
            .await?;
        // As JSON, since a schema of an older version has no such column.
        let sql = "DELETE FROM steep_repl.snapshots s \
             WHERE slot_name = $1 AND to_jsonb(s) ->> 'request' IS NULL";
        session.execute(sql, &[&replication.slot.as_str()]).await?;
    }
    Ok(())
}

pub(crate) async fn readable(session: &Session) -> Result<bool, PgError> {
    if session.own_schema().await? == OwnSchema::Absent {
        return Ok(false);
    }
    Ok(session.query_typed(READABLE, &[]).await?[0].get(0))
}

/// Whether another slot of the same publication is noted that has no position yet.
pub(crate) async fn is_being_made(
    session: &Session,
    replication: &Replication,
) -> Result<bool, PgError> {
    if !readable(session).await? {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM steep_repl.init_slots \
         WHERE job = $1 AND slot_name <> $2 AND lsn IS NULL)";
    let job = replication.id.to_string();
    let values: [&(dyn ToSql + Sync); 2] = [&job, &replication.slot.as_str()];
    Ok(session.query_one(sql, &values).await?.try_get(0)?)
}

/// Whether a publication that is named after a snapshot belongs to that target's slot. Those that are named after a job
/// are nobody else's.
pub(crate) async fn is_used_by(
    session: &Session,
    replication: &Replication,
    target: &NodeId,
) -> Result<bool, PgError> {
    if !replication.is_prepared() {
        return Ok(true);
    }
    let sql = "SELECT EXISTS (SELECT FROM steep_repl.init_slots \
         WHERE slot_name = $1 AND job = $2 AND target_node = $3)";
    let job = replication.id.to_string();
    let values: [&(dyn ToSql + Sync); 3] = [&replication.slot.as_str(), &job, &target.as_str()];
    Ok(session.query_one(sql, &values).await?.try_get(0)?)
}

pub(crate) fn time(row: &Row, at: usize) -> Result<Timestamp, PgError> {
    let micros: i64 = row.try_get(at)?;
    let bad = |_| PgError::Protocol("a time that is none".to_owned());
    Timestamp::from_microsecond(micros).map_err(bad)
}

pub(crate) fn lsn(row: &Row, at: usize) -> Result<Option<Lsn>, PgError> {
    let text: Option<&str> = row.try_get(at)?;
    let bad = |_| PgError::Protocol("an LSN that is none".to_owned());
    text.map(|text| text.parse().map_err(bad)).transpose()
}

/// Prepared slots by name; at most [`PREPARED_MAX`].
pub(crate) async fn prepared_slots(
    session: &Session,
    node: &NodeId,
) -> Result<Vec<PreparedSlot>, PgError> {
    if !readable(session).await? {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT i.slot_name, i.job, i.target_node, i.lsn::text, \
             (extract(epoch FROM i.created_at) * 1000000)::int8, \
             (extract(epoch FROM i.expires_at) * 1000000)::int8, i.expires_at <= now(), \
             s.slot_name IS NOT NULL, coalesce(s.wal_status, ''), \
             to_jsonb(s) ->> 'invalidation_reason', \
             coalesce(greatest(pg_wal_lsn_diff(wal.lsn, s.restart_lsn), 0), 0)::int8, \
             (SELECT nullif(setting, '-1')::int8 * 1048576 FROM pg_settings \
                 WHERE name = 'max_slot_wal_keep_size') \
         FROM steep_repl.init_slots i \
         LEFT JOIN pg_replication_slots s ON s.slot_name = i.slot_name \
         CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_lsn() END AS lsn) AS wal \
         WHERE i.source_node = $1 AND i.expires_at IS NOT NULL \
             AND (i.lsn IS NOT NULL OR i.expires_at <= now()) \
         ORDER BY i.slot_name LIMIT {PREPARED_MAX}"
    );
    let rows = session
        .query_typed(&sql, &[(&node.as_str(), Type::TEXT)])
        .await?;
    let mut slots = Vec::with_capacity(rows.len());
    for row in &rows {
        slots.extend(prepared_slot(row)?);
    }
    Ok(slots)
}

/// `None` where the note is not one of ours.
fn prepared_slot(row: &Row) -> Result<Option<PreparedSlot>, PgError> {
    let slot = SlotName::parse(row.try_get::<_, String>(0)?).ok();
    let id = row.try_get::<_, Option<&str>>(1)?;
    let id = id.and_then(|id| id.parse().ok());
    let (Some(slot), Some(id)) = (slot, id) else {
        return Ok(None);
    };
    let target = row.try_get::<_, Option<&str>>(2)?;
    let target = target.and_then(|target| NodeId::parse(target).ok());
    let (expired, there): (bool, bool) = (row.try_get(6)?, row.try_get(7)?);
    let (wal_status, reason): (&str, Option<String>) = (row.try_get(8)?, row.try_get(9)?);
    let held: i64 = row.try_get(10)?;
    let limit: Option<i64> = row.try_get(11)?;
    let state = match (target, expired, there) {
        (Some(target), ..) => PreparedState::Taken(target),
        (None, true, _) => PreparedState::Expired,
        (None, false, false) => PreparedState::Lost("somebody dropped it".to_owned()),
        (None, false, true) => match (reason, wal_status) {
            (Some(reason), _) => PreparedState::Lost(format!("it was invalidated: {reason}")),
            (None, "lost") => PreparedState::Lost("it has lost WAL that it needs".to_owned()),
            (None, _) => PreparedState::Waiting,
        },
    };
    Ok(Some(PreparedSlot {
        replication: Replication { id, slot },
        lsn: lsn(row, 3)?.unwrap_or_default(),
        created_at: time(row, 4)?,
        expires_at: time(row, 5)?,
        wal_held: ByteCount(u64::try_from(held).unwrap_or(0)),
        wal_limit: limit.and_then(|limit| u64::try_from(limit).ok().map(ByteCount)),
        state,
    }))
}
