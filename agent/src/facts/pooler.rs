//! Whether one connection of ours is one session of one server.
//!
//! A pooler in transaction or statement mode lends a server's session to whoever speaks; a load
//! balancer sends each connection elsewhere. Either breaks exported snapshots, and both pass every
//! test that asks one thing on one connection. So two connections are interleaved here: while one
//! is in a transaction, the other speaks, and each must find itself where it was. Simple queries
//! only, since prepared statements are what such poolers break first. A pooler in session mode is
//! one session for one connection, and not seen here.

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::pg::{PgError, Session};
use crate::task::Task;

/// Who answers: the server process, when its postmaster started, and the mark that was set.
const WHO: &str = "SELECT pg_backend_pid(), pg_postmaster_start_time(), \
    current_setting('steep_repl.mark', true)";

/// A customised option (manual, "Customized Options"): any session takes it, and keeps it.
const MARK: &str = "SET steep_repl.mark = 'kept'";

/// Times a borrowed session is looked for: a pool may hand out a free one first.
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

/// How it shows that something is in between, if it does.
pub(super) async fn detect(task: &Task, first: &Session) -> Result<Option<String>, PgError> {
    let second = Session::connect(&task.conninfo, "preflight").await?;
    let seen = first.run(&task.cancel, interleave(first, &second)).await;
    second.close().await;
    let seen = match seen {
        Ok(seen) => seen,
        // A pooler that keeps BEGIN from being a statement of its own, or lost the session.
        Err(PgError::Server(error)) => {
            return Ok(Some(format!("two interleaved sessions fail: {error}")));
        }
        Err(error) => return Err(error),
    };
    Ok(seen.iter().find_map(verdict))
}

/// What was seen in one round: the first connection, the second in its transaction, the first
/// again, the second again.
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
