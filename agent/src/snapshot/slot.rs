//! A job's replication slot and publication: created, observed, removed. Both have the job's name unless
//! they were prepared.

use std::time::Duration;

use steep_protocol::message::agent::SlotStatus;
use steep_protocol::message::handover::{
    PreparedSlot, PreparedState, Replication, SlotName, SlotOwner,
};
use steep_protocol::message::job::{ReplicationNames, SyncSlots};
use steep_protocol::{ByteCount, Fault, FaultKind, Lsn, Phase, Retry};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::node::slot_notes;
use crate::pg::raw::{Mode, RawConnection};
use crate::pg::{Conninfo, PgError, Session};
use crate::task::Task;

/// How often to report what a slot waits for.
const WAITING_SAID_EVERY: Duration = Duration::from_secs(1);

/// A slot is free once its walsender has ended, but a subscriber may reconnect in between.
const DROP_ATTEMPTS: u32 = 100;

const DROP_PAUSE: Duration = Duration::from_millis(100);

/// A new slot. Its snapshot can be imported while the connection lives.
#[derive(Debug)]
pub(crate) struct NewSlot {
    pub(crate) connection: RawConnection,
    /// The snapshot has what was committed before it; the slot yields what comes after.
    pub(crate) lsn: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`.
    pub(crate) snapshot: String,
}

/// Creates the slot and exports its snapshot. Waits for older transactions, and says so; a cancel ends the
/// wait.
pub(crate) async fn create(
    task: &Task,
    conninfo: &Conninfo,
    watcher: &Session,
) -> Result<NewSlot, PgError> {
    let (connection, mut fields) = make(task, conninfo, watcher, "EXPORT_SNAPSHOT").await?;
    let lsn = consistent_point(&mut fields)?;
    let Some(snapshot) = fields.next().flatten() else {
        let text = "the new slot has no snapshot";
        return Err(PgError::Protocol(text.to_owned()));
    };
    Ok(NewSlot {
        connection,
        lsn,
        snapshot,
    })
}

/// Creates the slot alone, for a subscription that copies by itself or for a backup. The slot yields every
/// change from the returned position on.
pub(crate) async fn create_bare(
    task: &Task,
    conninfo: &Conninfo,
    watcher: &Session,
) -> Result<Lsn, PgError> {
    let (connection, mut fields) = make(task, conninfo, watcher, "NOEXPORT_SNAPSHOT").await?;
    connection.close().await;
    consistent_point(&mut fields)
}

/// The server's answer: `slot_name`, `consistent_point`, `snapshot_name`, `output_plugin` (PostgreSQL
/// manual, "Streaming Replication Protocol").
type SlotFields = std::vec::IntoIter<Option<String>>;

fn consistent_point(fields: &mut SlotFields) -> Result<Lsn, PgError> {
    let lsn = fields.nth(1).flatten().and_then(|text| text.parse().ok());
    lsn.ok_or_else(|| PgError::Protocol("the new slot has no LSN".to_owned()))
}

async fn make(
    task: &Task,
    conninfo: &Conninfo,
    watcher: &Session,
    snapshot: &str,
) -> Result<(RawConnection, SlotFields), PgError> {
    let mut connection = RawConnection::connect(conninfo, "slot", Mode::Replication).await?;
    let canceller = connection.canceller();
    let slot = &task.replication.slot;
    let sql = format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {snapshot}",
        slot.quoted()
    );
    let rows = {
        let mut creating = std::pin::pin!(connection.query(&sql));
        loop {
            tokio::select! {
                biased;
                made = &mut creating => break made?,
                () = task.cancel.cancelled() => {
                    if let Err(error) = canceller.cancel().await {
                        warn!(job_id = %task.job, %error, "making the slot could not be cancelled");
                    }
                    return Err(PgError::Cancelled);
                }
                () = tokio::time::sleep(WAITING_SAID_EVERY) => say_waiting(task, watcher).await,
            }
        }
    };
    let fields = rows.into_iter().next().unwrap_or_default().into_iter();
    Ok((connection, fields))
}

async fn say_waiting(task: &Task, watcher: &Session) {
    let sql = "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::int8 \
         FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start IS NOT NULL \
         ORDER BY xact_start LIMIT 1";
    let oldest = watcher
        .query_opt(sql, &[])
        .await
        .ok()
        .flatten()
        .and_then(|row| {
            let pid: i32 = row.try_get(0).ok()?;
            let age: i64 = row.try_get(1).ok()?;
            Some(format!("; the oldest is process {pid}, for {age} s"))
        });
    let current = format!(
        "the slot waits for older transactions{}",
        oldest.unwrap_or_default()
    );
    task.items(Phase::Snapshot, (0, 1), Some(current));
}

/// Our slots on this server: those of jobs, and prepared ones that a target uses.
pub(crate) async fn slot_statuses(
    session: &Session,
    prepared: &[PreparedSlot],
) -> Result<Vec<SlotStatus>, PgError> {
    let taken = |slot: &&PreparedSlot| matches!(slot.state, PreparedState::Taken(_));
    let taken: Vec<&PreparedSlot> = prepared.iter().filter(taken).collect();
    let names: Vec<&str> = taken.iter().map(|p| p.replication.slot.as_str()).collect();
    let sql = "SELECT slot_name::text, active, \
             greatest(pg_wal_lsn_diff(now.lsn, confirmed_flush_lsn), 0)::int8, \
             greatest(pg_wal_lsn_diff(now.lsn, restart_lsn), 0)::int8, coalesce(wal_status, ''), \
             confirmed_flush_lsn::text \
         FROM pg_replication_slots, \
             (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                          ELSE pg_current_wal_lsn() END AS lsn) now \
         WHERE slot_type = 'logical' AND database = current_database() \
             AND (starts_with(slot_name::text, $1) OR slot_name::text = ANY ($2))";
    let mut statuses = Vec::new();
    let of: [(&(dyn ToSql + Sync), Type); 2] = [
        (&ReplicationNames::PREFIX, Type::TEXT),
        (&names, Type::TEXT_ARRAY),
    ];
    for row in session.query_typed(sql, &of).await? {
        let slot: String = row.try_get(0)?;
        let prepared = taken.iter().find(|p| p.replication.slot.as_str() == slot);
        // Other slots may share our prefix; their names are not jobs.
        let named = || slot.strip_prefix(ReplicationNames::PREFIX)?.parse().ok();
        let Some(job) = prepared.map(|p| p.replication.id).or_else(named) else {
            continue;
        };
        let bytes = |at| -> Result<ByteCount, PgError> {
            let bytes: Option<i64> = row.try_get(at)?;
            Ok(ByteCount(
                bytes.and_then(|b| u64::try_from(b).ok()).unwrap_or(0),
            ))
        };
        let Ok(slot) = SlotName::parse(slot) else {
            continue;
        };
        statuses.push(SlotStatus {
            job,
            slot,
            active: row.try_get(1)?,
            lag: bytes(2)?,
            wal_held: bytes(3)?,
            wal_status: row.try_get(4)?,
            confirmed: row
                .try_get::<_, Option<&str>>(5)?
                .and_then(|lsn| lsn.parse().ok())
                .unwrap_or_default(),
        });
    }
    Ok(statuses)
}

/// Removes the job's publication and slot, ending whoever uses it, and the note of a prepared one.
/// Idempotent.
pub(crate) async fn cleanup(task: &Task, sync_slots: Option<SyncSlots>) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = task.connect("cleanup").await?;
    remove(&session, task, &task.cancel).await?;
    if task.replication.is_prepared() {
        let forgotten = slot_notes::forget(&session, &noted(&task.replication)).await;
        forgotten.map_err(fault)?;
    }
    if let Some(made) = sync_slots {
        for slot in left_by_own_copy(&session, made).await.map_err(fault)? {
            let gone = drop_slot(&session, &slot, &task.cancel).await;
            if gone.map_err(fault)? == SlotGone::StillInUse {
                return Err(still_in_use(task, &slot));
            }
        }
    }
    session.give_back().await;
    Ok(())
}

/// The replication under which a slot is noted that was not made under a job's own name.
pub(crate) fn noted(replication: &Replication) -> Replication {
    let shared = replication.shared();
    shared.unwrap_or_else(|| replication.clone())
}

/// The publications that a slot's changes are decoded for: one that was made from a snapshot may have its own, too.
fn published_for(replication: &Replication) -> Vec<Replication> {
    match SlotOwner::of(replication.slot.as_str()) {
        Some(SlotOwner::Made(snapshot, job)) => {
            let made = Replication::of_snapshot(snapshot, job);
            vec![made.clone().apart(job), made]
        }
        Some(SlotOwner::Job(_) | SlotOwner::Template(_)) | None => vec![replication.clone()],
    }
}

/// Removes publications and slot, on an open session. The note of a prepared slot stays.
pub(crate) async fn remove(
    session: &Session,
    task: &Task,
    cancel: &CancellationToken,
) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let slot = &task.replication.slot;
    let slot_gone = drop_slot(session, slot, cancel).await.map_err(fault)?;
    let dropped = async {
        for replication in published_for(&task.replication) {
            drop_publication(session, &replication).await?;
        }
        Ok(())
    };
    tokio::select! {
        dropped = dropped => dropped.map_err(fault)?,
        () = cancel.cancelled() => return Err(fault(PgError::Cancelled)),
    }
    match slot_gone {
        SlotGone::Yes => Ok(()),
        SlotGone::StillInUse => Err(still_in_use(task, slot)),
    }
}

/// Drops the publication with the last slot that it belongs to: nodes made from one snapshot share it.
/// Idempotent.
pub(crate) async fn drop_publication(
    session: &Session,
    replication: &Replication,
) -> Result<(), PgError> {
    if is_shared(session, replication).await? {
        return Ok(());
    }
    let sql = format!("DROP PUBLICATION IF EXISTS {}", replication.name().quoted());
    Ok(session.batch_execute(&sql).await?)
}

/// Whether the publication belongs to other slots, too. One that is being made counts: its publication comes first.
async fn is_shared(session: &Session, replication: &Replication) -> Result<bool, PgError> {
    let name = replication.name();
    let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical' \
             AND database = current_database() \
             AND slot_name <> $2 AND (slot_name = $1 OR starts_with(slot_name::text, $1 || '_')))";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&name.as_str(), &replication.slot.as_str()];
    let exists: bool = session.query_one(sql, &values).await?.try_get(0)?;
    Ok(exists || slot_notes::is_being_made(session, replication).await?)
}

fn still_in_use(task: &Task, slot: &SlotName) -> Fault {
    let message = format!("the replication slot {slot} is still in use and cannot be dropped");
    let name = task.replication.name();
    Fault::new(FaultKind::Failed, message)
        .hint(format!(
            "drop the subscription {name} on the target, then: SELECT pg_drop_replication_slot('{slot}')"
        ))
        .retry(Retry::Backoff)
        .on(&task.node)
}

/// Table synchronisation slots that the target's server could not drop.
async fn left_by_own_copy(session: &Session, made: SyncSlots) -> Result<Vec<SlotName>, PgError> {
    let sql =
        "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()";
    let rows = session.query(sql, &[]).await?;
    let names = rows.iter().map(|row| row.get::<_, &str>(0));
    let left = names.filter(|name| made.include(name));
    Ok(left.filter_map(|name| SlotName::parse(name).ok()).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotGone {
    Yes,
    StillInUse,
}

/// Drops a slot, ending whoever uses it. Idempotent.
pub(crate) async fn drop_slot(
    session: &Session,
    name: &SlotName,
    cancel: &CancellationToken,
) -> Result<SlotGone, PgError> {
    for _ in 0..DROP_ATTEMPTS {
        let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
        let slot = session
            .run(cancel, session.query_opt(sql, &[&name.as_str()]))
            .await?;
        let Some(slot) = slot else {
            return Ok(SlotGone::Yes);
        };
        if let Some(pid) = slot.try_get::<_, Option<i32>>(0)? {
            let sql = "SELECT pg_terminate_backend($1)";
            session.run(cancel, session.execute(sql, &[&pid])).await?;
        }
        let sql = "SELECT pg_drop_replication_slot($1)";
        match session
            .run(cancel, session.execute(sql, &[&name.as_str()]))
            .await
        {
            Ok(_) => {
                info!(slot = %name, "replication slot dropped");
                return Ok(SlotGone::Yes);
            }
            Err(error) if error.is(&SqlState::UNDEFINED_OBJECT) => return Ok(SlotGone::Yes),
            Err(error) if error.is(&SqlState::OBJECT_IN_USE) => {
                tokio::select! {
                    () = tokio::time::sleep(DROP_PAUSE) => {}
                    () = cancel.cancelled() => return Err(PgError::Cancelled),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(SlotGone::StillInUse)
}
