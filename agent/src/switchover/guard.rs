//! Gives writes back when the time of a switchover is over, with or without a coordinator.
//!
//! It looks at the note when the agent starts and after each step of a switchover, and then by the server's clock. So
//! a node whose switchover nobody goes on with takes writes again within its deadline and a second, or as soon as its
//! agent runs.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::NodeId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::note::{self, Note, State};
use super::open;
use crate::pg::{Conninfo, PgError, Session};

/// How often it tries again while PostgreSQL does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest wait between two looks at a note with a deadline: clocks can be set.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A slower look counts as a server that does not answer. Deciding holds the row for as long as it takes.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Watches the deadline.
#[derive(Debug)]
pub(crate) struct Guard {
    node: NodeId,
    conninfo: Arc<Conninfo>,
    /// Notified after each step.
    steps: Arc<Notify>,
    /// Why writes that are due are not given back, as last told.
    told: Option<String>,
}

impl Guard {
    pub(crate) fn new(node: &NodeId, conninfo: &Arc<Conninfo>, steps: Arc<Notify>) -> Self {
        Self {
            node: node.clone(),
            conninfo: Arc::clone(conninfo),
            steps,
            told: None,
        }
    }

    /// Runs until cancelled.
    pub(crate) async fn run(mut self, halt: CancellationToken) {
        loop {
            let looked = tokio::time::timeout(LOOK_TIMEOUT, self.look()).await;
            let wait = match looked {
                Ok(Ok(wait)) => wait,
                Ok(Err(error)) => {
                    debug!(node_id = %self.node, %error, "whether a switchover is overdue is not known");
                    Some(AGAIN)
                }
                Err(_) => Some(AGAIN),
            };
            tokio::select! {
                () = halt.cancelled() => return,
                () = self.steps.notified() => {}
                () = pause(wait) => {}
            }
        }
    }

    /// Gives writes back where they are due; returns when to look again, if that does not depend on a step.
    async fn look(&mut self) -> Result<Option<Duration>, PgError> {
        let session = Session::connect(&self.conninfo, "switchover-guard").await?;
        let known = note::read_any(&session).await?;
        let wait = wait(known.as_ref());
        if wait == Some(Duration::ZERO) {
            let ours = self.conninfo.application_name("");
            match open::expire((&self.node, &session), &ours).await {
                Ok(given_back) => {
                    self.told = None;
                    if given_back {
                        warn!(event = "switchover.writes_given_back", node_id = %self.node, "the time of a switchover is over: sessions may write again");
                    }
                }
                Err(fault) => {
                    if self.told.as_ref() != Some(&fault.message) {
                        warn!(node_id = %self.node, error = %fault, hint = %fault.hint, "the time of a switchover is over, but writes are not given back yet");
                    }
                    self.told = Some(fault.message);
                    // Dropped, since it may be within a transaction.
                    return Ok(Some(AGAIN));
                }
            }
        }
        session.give_back().await;
        Ok(wait.map(|wait| wait.max(AGAIN)))
    }
}

/// How long nothing is due. Pure.
fn wait(known: Option<&Note>) -> Option<Duration> {
    let note = known?;
    match (note.state, note.left) {
        (State::Closed, Some(left)) => {
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            Some(left.min(LOOK_EVERY))
        }
        // An agent was killed before it had ended the sessions that would stay read-only.
        (State::Open { .. }, _) if !note.swept => Some(Duration::ZERO),
        (State::Closed | State::Final | State::Open { .. }, _) => None,
    }
}

async fn pause(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::{JobId, Lsn};

    use super::*;

    #[test]
    fn only_a_deadline_and_an_unfinished_end_are_waited_for() {
        let note = |state, left, swept| Note {
            switchover: JobId(1),
            state,
            previous: None,
            left,
            swept,
        };
        let open = State::Open { position: Lsn(1) };
        assert_eq!(wait(None), None);
        assert_eq!(wait(Some(&note(State::Closed, None, true))), None);
        assert_eq!(wait(Some(&note(State::Final, None, true))), None);
        assert_eq!(wait(Some(&note(open, None, true))), None);
        assert_eq!(wait(Some(&note(open, None, false))), Some(Duration::ZERO));
        let closed = |left| wait(Some(&note(State::Closed, Some(left), true)));
        assert_eq!(closed(900), Some(Duration::from_millis(900)));
        assert_eq!(closed(900_000), Some(LOOK_EVERY));
        assert_eq!(closed(-1), Some(Duration::ZERO));
    }
}
