//! The fence: a position on the source that the subscriber must have passed.
//!
//! Transactions committed before the fence was taken lie before it in the WAL, so a subscriber that has
//! confirmed the fence has them all (G4), as far as they were published, which is proved separately.

use std::time::Duration;

use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::handover::SlotName;
use steep_protocol::{Fault, FaultKind, Lsn, Phase, Retry};

use crate::pg::{PgError, Session};
use crate::snapshot::published;
use crate::task::Task;

/// The subscriber confirms no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Reconnects to a source for a minute, enough for a restart.
const RECONNECT_EVERY: Duration = Duration::from_secs(2);
const RECONNECT_ATTEMPTS: u32 = 30;

/// Takes a fence and waits until the job's slot has confirmed it. Waits out a restart of the source and
/// takes a new fence. Fails where the slot is gone or unusable, the source stays away, or on cancel.
pub(crate) async fn await_fence(task: &Task) -> Result<Lsn, Fault> {
    let mut patience = Patience::default();
    loop {
        let error = match pass_fence(task, &mut patience).await {
            Ok(outcome) => return outcome,
            Err(error) => error,
        };
        let fault = error.to_fault(&task.node);
        if fault.retry == Retry::Never || patience.is_over() {
            return Err(fault);
        }
        tracing::warn!(job_id = %task.job, %error, "lost the source while waiting for the fence");
        tokio::select! {
            () = tokio::time::sleep(RECONNECT_EVERY) => {}
            () = task.cancel.cancelled() => return Err(PgError::Cancelled.to_fault(&task.node)),
        }
    }
}

/// How often in a row the source may be away. A catch-up may last for days, so a source that answered in
/// between starts from zero.
#[derive(Debug, Default)]
struct Patience {
    attempts: u32,
}

impl Patience {
    /// The source answered.
    fn renew(&mut self) {
        self.attempts = 0;
    }

    /// It was away again; whether that is too often.
    fn is_over(&mut self) -> bool {
        self.attempts += 1;
        self.attempts > RECONNECT_ATTEMPTS
    }
}

/// One connection: the fence, a verdict on the slot, or a transient error.
async fn pass_fence(task: &Task, patience: &mut Patience) -> Result<Result<Lsn, Fault>, PgError> {
    let session = Session::connect(&task.conninfo, "fence").await?;
    let fence = take_fence(&session, task).await?;
    let mut first = None;
    loop {
        let slot = match look(&session, task, &task.replication.slot).await? {
            Ok(slot) => slot,
            Err(verdict) => return Ok(Err(verdict.on(&task.node))),
        };
        patience.renew();
        if slot.confirmed >= fence {
            // The position alone does not prove that everything before it was published.
            let proved = published::prove(&session, task).await?;
            session.give_back().await;
            return Ok(proved.map(|()| fence));
        }
        let first = *first.get_or_insert(slot.confirmed);
        let current = (!slot.active).then(|| "waiting for the subscription to connect".to_owned());
        task.work(
            Phase::CatchUp,
            WorkProgress {
                done: slot.confirmed.distance_from(first).0,
                total: fence.distance_from(first).0,
                unit: WorkUnit::Bytes,
                current,
                workers: 1,
            },
        );
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = task.cancel.cancelled() => return Err(PgError::Cancelled),
        }
    }
}

/// A WAL message gives the subscriber something to confirm even without writes. Without the right to send
/// one, the current WAL position serves, and the next write confirms it.
async fn take_fence(session: &Session, task: &Task) -> Result<Lsn, PgError> {
    let emit = "SELECT pg_logical_emit_message(false, 'steep_repl', 'fence')::text";
    let row = match session
        .run(&task.cancel, session.query_one(emit, &[]))
        .await
    {
        Err(PgError::Server(_)) => {
            let sql = "SELECT pg_current_wal_insert_lsn()::text";
            session
                .run(&task.cancel, session.query_one(sql, &[]))
                .await?
        }
        other => other?,
    };
    lsn(row.try_get(0)?)
}

fn lsn(text: &str) -> Result<Lsn, PgError> {
    text.parse()
        .map_err(|_| PgError::Protocol("an LSN that is none".to_owned()))
}

struct Confirmed {
    confirmed: Lsn,
    active: bool,
}

async fn look(
    session: &Session,
    task: &Task,
    name: &SlotName,
) -> Result<Result<Confirmed, Fault>, PgError> {
    // As JSON, since only PostgreSQL 17 and newer have a column for the reason.
    let sql = "SELECT active, confirmed_flush_lsn::text, coalesce(wal_status, ''), \
             to_jsonb(s) ->> 'invalidation_reason' \
         FROM pg_replication_slots s WHERE slot_name = $1";
    let row = session
        .run(&task.cancel, session.query_opt(sql, &[&name.as_str()]))
        .await?;
    let dead = |why: String| {
        Err(Fault::new(
            FaultKind::Failed,
            format!("the replication slot {name} {why}"),
        )
        .hint(
            "the changes since the copy are gone with it: run init again with --force; \
             see max_slot_wal_keep_size and idle_replication_slot_timeout",
        ))
    };
    let Some(row) = row else {
        return Ok(dead("does not exist any more".to_owned()));
    };
    let wal_status: String = row.try_get(2)?;
    let reason: Option<String> = row.try_get(3)?;
    if let Some(reason) = reason {
        return Ok(dead(format!("was invalidated: {reason}")));
    }
    if wal_status == "lost" {
        return Ok(dead(
            "has lost WAL that it needs (wal_status is lost)".to_owned(),
        ));
    }
    let confirmed: Option<String> = row.try_get(1)?;
    let Some(confirmed) = confirmed else {
        return Ok(dead("is no logical slot".to_owned()));
    };
    Ok(Ok(Confirmed {
        confirmed: lsn(&confirmed)?,
        active: row.try_get(0)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_was_there_in_between_is_waited_for_as_long_as_at_first() {
        let mut patience = Patience::default();
        for _ in 0..3 {
            assert!((0..RECONNECT_ATTEMPTS).all(|_| !patience.is_over()));
            patience.renew();
        }
        assert!((0..RECONNECT_ATTEMPTS).all(|_| !patience.is_over()));
        assert!(patience.is_over());
    }
}
