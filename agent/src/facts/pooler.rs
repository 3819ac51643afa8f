//! Whether a connection is one session of one server.
//!
//! A pooler in transaction or statement mode lends a session to whoever sends a statement, and a load
//! balancer sends each connection elsewhere. Both break exported snapshots, and both pass any test on a
//! single connection. So two connections are interleaved: while one is in a transaction the other speaks,
//! and each must find its own session again. Simple queries only, as such poolers break prepared statements
//! first. A pooler in session mode is not detected here.

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::pg::{PgError, Session};
use crate::task::Task;

/// Identifies the server process, its postmaster's start and the mark. Two sessions may have different time zones.
const WHO: &str = "SELECT pg_backend_pid(), extract(epoch FROM pg_postmaster_start_time()), \
    current_setting('steep_repl.mark', true)";

/// A customised option (manual, "Customized Options"), which any session accepts and keeps.
const MARK: &str = "SET steep_repl.mark = 'kept'";

/// Attempts to see a borrowed session: a pool may hand out a free one first.
const ROUNDS: usize = 3;

/// One answer to [`WHO`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Who {
    pid: String,
    started: String,
    marked: bool,
}

impl Who {
    async fn ask(session: &Session) -> Result<Self, tokio_postgres::Error> {
        let answer = session.simple_query(WHO).await?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let text = |at: usize| {
            row.and_then(|row: &SimpleQueryRow| row.get(at))
                .unwrap_or("")
        };
        Ok(Self {
            pid: text(0).to_owned(),
            started: text(1).to_owned(),
            marked: text(2) == "kept",
        })
    }
}

/// How a pooler shows, if it does.
pub(super) async fn detect(task: &Task, first: &Session) -> Result<Option<String>, PgError> {
    let second = Session::connect_anew(&task.conninfo, "preflight").await?;
    let seen = first.run(&task.cancel, interleave(first, &second)).await;
    second.close().await;
    let seen = match seen {
        Ok(seen) => seen,
        // A pooler that does not pass BEGIN on as a statement of its own, or lost the session.
        Err(PgError::Server(error)) => {
            return Ok(Some(format!("two interleaved sessions fail: {error}")));
        }
        Err(error) => return Err(error),
    };
    Ok(seen.iter().find_map(verdict))
}

/// The first connection, the second in its transaction, the first again, the second again.
type Round = [Who; 4];

async fn interleave(
    first: &Session,
    second: &Session,
) -> Result<Vec<Round>, tokio_postgres::Error> {
    first.batch_execute(MARK).await?;
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let a = Who::ask(first).await?;
        second.batch_execute("BEGIN").await?;
        let b = Who::ask(second).await?;
        let again_a = Who::ask(first).await?;
        let again_b = Who::ask(second).await?;
        second.batch_execute("ROLLBACK").await?;
        rounds.push([a, b, again_a, again_b]);
    }
    Ok(rounds)
}

fn verdict([a, b, again_a, again_b]: &Round) -> Option<String> {
    if a.started != b.started || a.started != again_a.started || b.started != again_b.started {
        return Some("two connections reached two different servers".to_owned());
    }
    if a.pid == b.pid || again_a.pid == again_b.pid {
        return Some("two connections were given one session of the server".to_owned());
    }
    if a.pid != again_a.pid || b.pid != again_b.pid {
        return Some("one connection's statements ran in two sessions of the server".to_owned());
    }
    (!a.marked || !again_a.marked || b.marked)
        .then(|| "a setting did not stay with the connection that made it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(pid: &str, started: &str, marked: bool) -> Who {
        Who {
            pid: pid.to_owned(),
            started: started.to_owned(),
            marked,
        }
    }

    #[test]
    fn one_connection_must_stay_one_session_of_one_server() {
        let straight = || {
            [
                who("1", "t", true),
                who("2", "t", false),
                who("1", "t", true),
                who("2", "t", false),
            ]
        };
        assert_eq!(verdict(&straight()), None);
        let cases: [(usize, Who); 6] = [
            (1, who("2", "u", false)),
            (1, who("1", "t", true)),
            (2, who("3", "t", true)),
            (3, who("1", "t", false)),
            (2, who("1", "t", false)),
            (1, who("2", "t", true)),
        ];
        for (at, other) in cases {
            let mut round = straight();
            round[at] = other.clone();
            assert!(
                verdict(&round).is_some(),
                "{other:?} at {at} was taken for a session"
            );
        }
    }
}
