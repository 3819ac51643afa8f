//! Makes new sessions read-only, and ends those that began before.

use std::time::Duration;

use steep_protocol::message::switchover::{Closing, WritesStopped};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use tokio::sync::Notify;

use super::holders::{self, Holders};
use super::note::{self, Note, Reading, State};
use super::sessions;
use crate::node::connection::Conn;
use crate::node::own_schema;
use crate::pg::{PgError, SHORT_LOCK_TIMEOUT};
use crate::task::Task;

/// Keeps two switchovers from writing the row at once; readers do not wait.
const LOCK: &str = "LOCK TABLE steep_repl.write_stop IN SHARE ROW EXCLUSIVE MODE";

const WRITE: &str = "INSERT INTO steep_repl.write_stop (switchover, state, previous, deadline) \
     VALUES ($1, 'closed', $2, clock_timestamp() + $3::int8 * interval '1 second') \
     ON CONFLICT (one) DO UPDATE SET switchover = excluded.switchover, state = 'closed', \
         previous = excluded.previous, began_at = clock_timestamp(), closed_at = NULL, \
         deadline = excluded.deadline, opened_at = NULL, position = NULL";

/// Closes the database. Repeated, it goes on; a stop that was lifted meanwhile stays lifted.
pub(super) async fn close(
    task: &Task,
    closing: Closing,
    steps: &Notify,
) -> Result<WritesStopped, Fault> {
    let conn = Conn::to_catalog(task, "switchover").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    conn.execute(SHORT_LOCK_TIMEOUT).await?;
    // On error the connection is dropped, and with it the transaction.
    let held = (&task.node, &conn.session);
    let written = holders::past(held, Holders::Stay, || write(&conn, task, closing));
    let reopen = written.await??;
    // The deadline counts from here on, whatever becomes of this command.
    steps.notify_one();
    let stamp =
        "UPDATE steep_repl.write_stop SET closed_at = clock_timestamp() WHERE closed_at IS NULL";
    conn.execute(stamp).await?;
    let mut stopped = match closing {
        Closing::Old {
            terminate_after_seconds,
            ..
        } => {
            let patience = Duration::from_secs(terminate_after_seconds.into());
            sessions::end_writers(&conn, task, patience).await?
        }
        Closing::New => WritesStopped::default(),
    };
    stopped.reopen = reopen;
    conn.give_back().await;
    Ok(stopped)
}

/// Writes setting and note together. Returns the statement that undoes the setting, or why it was refused.
async fn write(
    conn: &Conn,
    task: &Task,
    closing: Closing,
) -> Result<Result<String, Fault>, PgError> {
    conn.attempt(&format!("BEGIN; {LOCK}")).await?;
    let database = note::database(&conn.session).await?;
    let known = note::read(&conn.session, Reading::Plain).await?;
    let setting = note::setting(&conn.session).await?;
    let previous = match verdict(known, setting, task.job, closing, &task.node) {
        Ok(Verdict::Write { previous }) => {
            let seconds = match closing {
                Closing::Old {
                    max_stop_seconds, ..
                } => Some(i64::from(max_stop_seconds)),
                Closing::New => None,
            };
            let id = task.job.to_string();
            conn.fetch(WRITE, &[&id, &previous, &seconds]).await?;
            previous
        }
        Ok(Verdict::Keep { previous }) => previous,
        Err(fault) => return Ok(Err(fault)),
    };
    conn.attempt(&note::closed(&database)).await?;
    conn.attempt("COMMIT").await?;
    Ok(Ok(note::put_back(&database, previous.as_deref())))
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody has closed it, or nobody who comes back.
    Write { previous: Option<String> },
    /// It is closed.
    Keep { previous: Option<String> },
}

/// What to do about what is noted. Pure.
fn verdict(
    known: Option<Note>,
    setting: Option<String>,
    id: JobId,
    closing: Closing,
    node: &NodeId,
) -> Result<Verdict, Fault> {
    let refuse = |text: &str, hint: &str| {
        Err(Fault::new(FaultKind::Failed, text)
            .on(node)
            .hint(hint.to_owned()))
    };
    let Some(known) = known else {
        return Ok(Verdict::Write { previous: setting });
    };
    let previous = known.previous;
    let own = known.switchover == id;
    match (known.state, closing) {
        (State::Open { .. }, _) if own => refuse(
            "its agent has given writes back because the time of the switchover was over",
            "begin the switchover again, with a larger --max-stop if it needs one",
        ),
        (State::Open { .. }, _) => Ok(Verdict::Write { previous: setting }),
        (State::Closed | State::Final, _) if own => Ok(Verdict::Keep { previous }),
        // Nobody reads that setting any more: it was changed by hand.
        (State::Final, Closing::Old { .. }) if !note::is_on(setting.as_deref()) => {
            Ok(Verdict::Write { previous: setting })
        }
        (State::Final, Closing::Old { .. }) => refuse(
            "writes have moved away from it in an earlier switchover, and it is read-only",
            "name the node that takes writes with --from",
        ),
        // A node that followed since the last switchover.
        (State::Final, Closing::New) => Ok(Verdict::Keep { previous }),
        // Left by a coordinator that does not know of it any more.
        (State::Closed, _) if known.left.is_none() => Ok(Verdict::Write { previous }),
        (State::Closed, _) => refuse(
            "another switchover has stopped writes to it",
            "wait until that one has ended: see steep-repl status",
        ),
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::Lsn;

    use super::*;

    const OLD: Closing = Closing::Old {
        max_stop_seconds: 60,
        terminate_after_seconds: 30,
    };

    fn noted(switchover: u64, state: State, left: Option<i64>) -> Option<Note> {
        Some(Note {
            switchover: JobId(switchover),
            state,
            previous: Some("off".to_owned()),
            left,
            swept: true,
        })
    }

    fn judged(
        known: Option<Note>,
        setting: Option<&str>,
        closing: Closing,
    ) -> Result<Verdict, Fault> {
        let node = NodeId::parse("node_a").unwrap();
        verdict(known, setting.map(str::to_owned), JobId(1), closing, &node)
    }

    #[test]
    fn only_one_switchover_closes_a_node_and_what_was_set_before_is_kept() {
        let open = State::Open { position: Lsn(7) };
        let write = |previous: Option<&str>| Verdict::Write {
            previous: previous.map(str::to_owned),
        };
        let keep = Verdict::Keep {
            previous: Some("off".to_owned()),
        };
        for closing in [OLD, Closing::New] {
            assert_eq!(
                judged(None, Some("off"), closing).unwrap(),
                write(Some("off"))
            );
            assert_eq!(
                judged(noted(2, open, None), None, closing).unwrap(),
                write(None)
            );
            assert_eq!(
                judged(noted(1, State::Closed, Some(5)), Some("on"), closing).unwrap(),
                keep
            );
            assert_eq!(
                judged(noted(1, State::Final, None), Some("on"), closing).unwrap(),
                keep
            );
            let lifted = judged(noted(1, open, None), None, closing).unwrap_err();
            assert!(lifted.message.contains("given writes back"), "{lifted}");
            let other = judged(noted(2, State::Closed, Some(5)), Some("on"), closing).unwrap_err();
            assert!(other.message.contains("another switchover"), "{other}");
            let stale = judged(noted(2, State::Closed, None), Some("on"), closing).unwrap();
            assert_eq!(stale, write(Some("off")));
        }
        let moved = judged(noted(2, State::Final, None), Some("on"), OLD).unwrap_err();
        assert!(moved.message.contains("moved away"), "{moved}");
        assert_eq!(
            judged(noted(2, State::Final, None), None, OLD).unwrap(),
            write(None)
        );
        let replica = judged(noted(2, State::Final, None), Some("on"), Closing::New);
        assert_eq!(replica.unwrap(), keep);
    }
}
