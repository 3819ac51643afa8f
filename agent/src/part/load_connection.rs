//! A bare connection that loads for one job, without the per-row cost of the driver.
//!
//! Every call can be cancelled and every error becomes a fault of this node. A call that was cancelled or
//! dropped leaves the connection in an unknown state; [`LoadConnection::roll_back`] then opens a new one.

use steep_protocol::{Fault, NodeId, RowCount};
use tokio_util::sync::CancellationToken;

use crate::node::connection::{REPLICA_ROLE, no_replica_role, purpose};
use crate::pg::PgError;
use crate::pg::raw::{Canceller, Mode, RawConnection, TextRow};
use crate::task::Task;

#[derive(Debug)]
pub(super) struct LoadConnection {
    raw: RawConnection,
    node: NodeId,
    cancel: CancellationToken,
    canceller: Canceller,
    /// A call is running, or ended so that no other can follow.
    busy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rolled {
    Same,
    /// A new session, without the settings of the old one.
    Anew,
}

impl LoadConnection {
    /// Connects and sets `session_replication_role = replica`.
    pub(super) async fn open(task: &Task, what: &str) -> Result<Self, Fault> {
        let purpose = purpose(task.job, what);
        let raw = RawConnection::connect(&task.conninfo, &purpose, Mode::Plain)
            .await
            .map_err(|error| task.fault(error))?;
        let mut line = Self {
            canceller: raw.canceller(),
            raw,
            node: task.node.clone(),
            cancel: task.cancel.clone(),
            busy: false,
        };
        match line.attempt(REPLICA_ROLE).await? {
            Ok(_) => Ok(line),
            Err(error) => Err(no_replica_role(&error, &task.node)),
        }
    }

    pub(super) fn own(&self, fault: Fault) -> Fault {
        fault.on(&self.node)
    }

    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<TextRow>, Fault> {
        self.busy = true;
        let rows = self.canceller.run(&self.cancel, self.raw.query(sql)).await;
        self.ended(rows)
    }

    /// As [`LoadConnection::rows`]; the caller handles an error of the server.
    pub(super) async fn attempt(
        &mut self,
        sql: &str,
    ) -> Result<Result<Vec<TextRow>, PgError>, Fault> {
        self.busy = true;
        match self.canceller.run(&self.cancel, self.raw.query(sql)).await {
            Err(error @ PgError::Server(_)) => {
                self.busy = false;
                Ok(Err(error))
            }
            other => self.ended(other).map(Ok),
        }
    }

    /// Begins a COPY, the last statement of `sql`.
    pub(super) async fn copy_start(&mut self, sql: &str) -> Result<(), Fault> {
        self.busy = true;
        let start = self.raw.copy_in_start(sql);
        let begun = self.canceller.run(&self.cancel, start).await;
        self.ended(begun)
    }

    pub(super) async fn copy_write(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.busy = true;
        let write = self.raw.copy_in_write(data);
        let written = self.canceller.run(&self.cancel, write).await;
        self.ended_with_rows(written)
    }

    /// Returns the rows that PostgreSQL counted.
    pub(super) async fn copy_end(&mut self) -> Result<RowCount, Fault> {
        self.busy = true;
        let end = self.raw.copy_in_end();
        let ended = self.canceller.run(&self.cancel, end).await;
        self.ended_with_rows(ended)
    }

    /// Rolls back, on a new connection if this one's state is unknown.
    pub(super) async fn roll_back(&mut self, task: &Task, what: &str) -> Result<Rolled, Fault> {
        if self.busy || !self.raw.is_idle() {
            // The server rolls back when it sees the old connection closed.
            *self = Self::open(task, what).await?;
            return Ok(Rolled::Anew);
        }
        self.rows("ROLLBACK").await.map(|_| Rolled::Same)
    }

    /// As [`LoadConnection::ended`], with a hint where rows were refused.
    fn ended_with_rows<T>(&mut self, outcome: Result<T, PgError>) -> Result<T, Fault> {
        let code = outcome.as_ref().err().and_then(PgError::sqlstate);
        let hint = code.and_then(|code| refused_rows(code.code()));
        self.ended(outcome).map_err(|fault| match hint {
            Some(hint) if fault.hint.is_empty() => fault.hint(hint),
            _ => fault,
        })
    }

    /// Notes whether the next call can begin.
    fn ended<T>(&mut self, outcome: Result<T, PgError>) -> Result<T, Fault> {
        self.busy = !matches!(outcome, Ok(_) | Err(PgError::Server(_)));
        outcome.map_err(|error| error.to_fault(&self.node))
    }
}

/// What to do about rows of the source that are refused with that SQLSTATE.
fn refused_rows(code: &str) -> Option<&'static str> {
    Some(match code {
        "22021" | "22P05" => {
            "the source holds bytes that are not valid text in its encoding, or characters that this database's encoding lacks: correct these rows on the source, or create the target database in SQL_ASCII or in the source's encoding"
        }
        "42883" | "42P01" | "42704" | "42703" => {
            "a function that rows run does not find what it names, since search_path is empty here and when changes are applied: ALTER FUNCTION … SET search_path on the source; or a column names an object or role that this server does not have"
        }
        "23502" | "23514" | "P0001" | "22P02" => {
            "the source holds rows that its own constraints no longer accept: correct them there, or leave the table out with --exclude-table"
        }
        _ => return None,
    })
}
