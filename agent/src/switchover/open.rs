//! Lets new sessions write: on the new node once the old one has decided, on either node to undo.

use steep_protocol::message::switchover::WriteState;
use steep_protocol::{Fault, Lsn, NodeId};

use super::holders::{self, Holders};
use super::note::{self, Note, Reading, State};
use super::sessions;
use crate::node::connection::Conn;
use crate::node::own_schema;
use crate::pg::{PgError, SHORT_LOCK_TIMEOUT, Session};
use crate::task::Task;

/// Whoever holds the row has a deadline: deciding ends with the switchover's time at the latest.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '5s'";

/// Whose stop is lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whose {
    /// This switchover's, or that of an earlier one after which the node followed.
    Any(String),
    /// This switchover's, unless it is final.
    Own(String),
    /// Any that is closed after its deadline.
    Overdue,
}

/// The new node takes writes from here on.
pub(super) async fn open(task: &Task) -> Result<WriteState, Fault> {
    lifted(task, &Whose::Any(task.job.to_string())).await
}

/// Undoes the stop of this switchover. What is final stays, and so does an earlier one's.
pub(super) async fn reopen(task: &Task) -> Result<WriteState, Fault> {
    lifted(task, &Whose::Own(task.job.to_string())).await
}

/// Finds out, on the new node before the old one decides, that nobody keeps [`open`] from succeeding. Changes nothing.
pub(super) async fn prove(task: &Task) -> Result<(), Fault> {
    let conn = Conn::to_catalog(task, "switchover").await?;
    conn.execute(SHORT_LOCK_TIMEOUT).await?;
    let whose = Whose::Any(task.job.to_string());
    let changed = || change(&conn.session, &whose, "ROLLBACK");
    holders::past((&task.node, &conn.session), Holders::Stay, changed).await?;
    conn.give_back().await;
    Ok(())
}

/// Gives writes back where a deadline has passed. Returns whether it did.
pub(super) async fn expire(
    (node, session): (&NodeId, &Session),
    ours: &str,
) -> Result<bool, Fault> {
    let fault = |error: PgError| error.to_fault(node);
    let patience = session.batch_execute(LOCK_TIMEOUT).await;
    patience.map_err(|error| fault(error.into()))?;
    let before = note::read(session, Reading::Plain).await.map_err(fault)?;
    let after = lift((node, session), &Whose::Overdue, ours).await?;
    Ok(before.is_some_and(|note| note.state == State::Closed)
        && matches!(after, WriteState::Open { .. }))
}

async fn lifted(task: &Task, whose: &Whose) -> Result<WriteState, Fault> {
    let conn = Conn::to_catalog(task, "switchover").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    conn.execute(LOCK_TIMEOUT).await?;
    let ours = sessions::ours(task);
    let state = lift((&task.node, &conn.session), whose, &ours).await?;
    conn.give_back().await;
    Ok(state)
}

/// Puts the setting back and notes that, together; then ends the sessions that would stay read-only. Idempotent.
async fn lift(
    (node, session): (&NodeId, &Session),
    whose: &Whose,
    ours: &str,
) -> Result<WriteState, Fault> {
    let fault = |error: PgError| error.to_fault(node);
    let noted = note::read(session, Reading::Plain).await.map_err(fault)?;
    let holders = match (whose, noted.and_then(|note| note.left)) {
        // No application waits for a replica that did not take over.
        (Whose::Own(_), None) => Holders::Stay,
        (Whose::Any(_) | Whose::Own(_) | Whose::Overdue, _) => Holders::AreEnded,
    };
    let changed = || change(session, whose, "COMMIT");
    let state = holders::past((node, session), holders, changed).await?;
    sweep(session, ours).await.map_err(fault)?;
    Ok(state)
}

/// One transaction, which `end` ends.
async fn change(session: &Session, whose: &Whose, end: &str) -> Result<WriteState, PgError> {
    session.batch_execute("BEGIN").await?;
    let noted = note::read(session, Reading::ForUpdate).await?;
    let state = match noted {
        None => WriteState::Open { position: Lsn(0) },
        Some(note) if is_lifted(&note, whose) => put_back(session, &note, whose).await?,
        Some(note) => left(&note, whose),
    };
    session.batch_execute(end).await?;
    Ok(state)
}

/// Ends the sessions that would stay read-only, once.
async fn sweep(session: &Session, ours: &str) -> Result<(), PgError> {
    let swept = "SELECT opened_at IS NOT NULL FROM steep_repl.write_stop WHERE state = 'open'";
    if let Some(row) = session.query_opt(swept, &[]).await?
        && !row.try_get::<_, bool>(0)?
    {
        sessions::end_read_only(session, ours).await?;
        let stamp = "UPDATE steep_repl.write_stop SET opened_at = clock_timestamp() \
             WHERE state = 'open' AND opened_at IS NULL";
        session.batch_execute(stamp).await?;
    }
    Ok(())
}

fn is_lifted(note: &Note, whose: &Whose) -> bool {
    let own = |id: &String| note.switchover.to_string() == *id;
    match (whose, note.state) {
        (_, State::Open { .. }) | (Whose::Own(_) | Whose::Overdue, State::Final) => false,
        (Whose::Any(_), State::Closed | State::Final) => true,
        (Whose::Own(id), State::Closed) => own(id),
        (Whose::Overdue, State::Closed) => note.left.is_some_and(|left| left <= 0),
    }
}

/// What is said of a note that stays. Another switchover's stop is no business of this one.
fn left(note: &Note, whose: &Whose) -> WriteState {
    match (note.state, whose) {
        (_, Whose::Own(id)) if note.switchover.to_string() != *id => {
            WriteState::Open { position: Lsn(0) }
        }
        (State::Open { position }, _) => WriteState::Open { position },
        (State::Closed, _) => WriteState::Closed,
        (State::Final, _) => WriteState::Final,
    }
}

async fn put_back(session: &Session, note: &Note, whose: &Whose) -> Result<WriteState, PgError> {
    let database = note::database(session).await?;
    let previous = note.previous.as_deref();
    let previous = match whose {
        // It takes writes now, although sessions may have been read-only before a replica was opened.
        Whose::Any(_) => previous.filter(|value| !note::is_on(Some(value))),
        Whose::Own(_) | Whose::Overdue => previous,
    };
    let sql = note::put_back(&database, previous);
    let id = match whose {
        Whose::Any(id) | Whose::Own(id) => id.clone(),
        Whose::Overdue => note.switchover.to_string(),
    };
    let update = "UPDATE steep_repl.write_stop SET state = 'open', switchover = $1, deadline = NULL, \
             opened_at = NULL, position = pg_current_wal_insert_lsn() RETURNING position::text";
    let row = session.query_one(update, &[&id]).await?;
    let position: &str = row.try_get(0)?;
    let bad = |_| PgError::Protocol("an LSN that is none".to_owned());
    let position = position.parse().map_err(bad)?;
    session.batch_execute(&sql).await?;
    Ok(WriteState::Open { position })
}

#[cfg(test)]
mod tests {
    use steep_protocol::JobId;

    use super::*;

    #[test]
    fn a_final_stop_is_lifted_only_by_a_switchover_to_its_node_and_a_deadline_only_when_it_has_passed()
     {
        let note = |state, left| Note {
            switchover: JobId(1),
            state,
            previous: None,
            left,
            swept: true,
        };
        let own = Whose::Own(JobId(1).to_string());
        let other = Whose::Own(JobId(2).to_string());
        let any = Whose::Any(JobId(2).to_string());
        let closed = note(State::Closed, Some(1));
        let late = note(State::Closed, Some(0));
        let last = note(State::Final, None);
        let open = note(State::Open { position: Lsn(1) }, None);
        for (whose, lifts) in [
            (&own, [true, true, false, false]),
            (&other, [false, false, false, false]),
            (&any, [true, true, true, false]),
            (&Whose::Overdue, [false, true, false, false]),
        ] {
            let notes = [&closed, &late, &last, &open];
            assert_eq!(notes.map(|note| is_lifted(note, whose)), lifts, "{whose:?}");
        }
        assert!(!is_lifted(&note(State::Closed, None), &Whose::Overdue));
        assert_eq!(left(&last, &own), WriteState::Final);
        assert_eq!(left(&last, &other), WriteState::Open { position: Lsn(0) });
    }
}
