//! A connection for one job: every statement can be cancelled, every error becomes a fault of this node,
//! and the server shows the job in `application_name`.

use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use crate::pg::{PgError, Session};
use crate::task::Task;

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Loads as a replica does: triggers do not fire, foreign keys are not checked.
pub(crate) const REPLICA_ROLE: &str = "SET session_replication_role = replica";

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) session: Session,
    node: NodeId,
    cancel: CancellationToken,
}

/// Target connections are named `sink-WHAT JOB`, so that a later agent finds and ends those left behind.
pub(crate) fn purpose(job: JobId, what: &str) -> String {
    format!("sink-{what} {job}")
}

/// `LIKE` pattern of those names.
pub(crate) fn application_names(job: JobId) -> String {
    format!("% sink-% {job}")
}

impl Conn {
    /// For statements that may run code of the database: in constraints, indexes, materialised views.
    pub(crate) async fn open(task: &Task, what: &str) -> Result<Self, Fault> {
        let conn = Self::to_catalog(task, what).await?;
        let allowed = conn.session.read_user_views().await;
        allowed.map_err(|error| conn.fault(&error))?;
        Ok(conn)
    }

    /// For catalogs and the schema `steep_repl`: user views and foreign tables are refused. May be given back.
    pub(crate) async fn to_catalog(task: &Task, what: &str) -> Result<Self, Fault> {
        let session = task.connect(&purpose(task.job, what)).await?;
        let (node, cancel) = (task.node.clone(), task.cancel.clone());
        let conn = Self {
            session,
            node,
            cancel,
        };
        if let Some(setting) = task.patience.setting() {
            conn.execute(setting).await?;
        }
        Ok(conn)
    }

    /// As [`Session::give_back`].
    pub(crate) async fn give_back(self) {
        self.session.give_back().await;
    }

    pub(crate) fn node(&self) -> &NodeId {
        &self.node
    }

    pub(crate) fn fault(&self, error: &PgError) -> Fault {
        error.to_fault(&self.node)
    }

    pub(crate) fn own(&self, fault: Fault) -> Fault {
        fault.on(&self.node)
    }

    /// Runs `work`, statements of this session, until the job is cancelled.
    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PgError> {
        self.session.run(&self.cancel, work).await
    }

    /// Statements without parameters; the caller handles the error.
    pub(crate) async fn attempt(&self, sql: &str) -> Result<(), PgError> {
        self.run(self.session.batch_execute(sql)).await
    }

    /// Statements without parameters.
    pub(crate) async fn execute(&self, sql: &str) -> Result<(), Fault> {
        self.attempt(sql).await.map_err(|error| self.fault(&error))
    }

    pub(crate) async fn replica_role(&self) -> Result<(), Fault> {
        let set = self.attempt(REPLICA_ROLE).await;
        set.map_err(|error| no_replica_role(&error, &self.node))
    }

    /// One transaction, rolled back on error.
    pub(crate) async fn transact(&self, sql: &str) -> Result<(), PgError> {
        let outcome = self.attempt(&format!("BEGIN;\n{sql};\nCOMMIT")).await;
        if outcome.is_err() {
            self.roll_back().await?;
        }
        outcome
    }

    /// Ends a failed transaction, also after a cancellation, so it ignores the token.
    pub(crate) async fn roll_back(&self) -> Result<(), PgError> {
        Ok(self.session.batch_execute("ROLLBACK").await?)
    }

    /// Rows of a query; the caller handles the error.
    pub(crate) async fn fetch(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, PgError> {
        self.run(self.session.query(sql, params)).await
    }

    pub(crate) async fn rows(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Fault> {
        let rows = self.fetch(sql, params).await;
        rows.map_err(|error| self.fault(&error))
    }

    /// The only row of a query that always returns one.
    pub(crate) async fn row(&self, sql: &str, params: Params<'_>) -> Result<Row, Fault> {
        let row = self.run(self.session.query_one(sql, params)).await;
        row.map_err(|error| self.fault(&error))
    }

    pub(crate) fn warning(&self, code: &str, what: String, why: &str, fix: &str) -> Finding {
        Finding {
            severity: Severity::Warning,
            code: code.to_owned(),
            node: Some(self.node.clone()),
            what,
            why: why.to_owned(),
            fix: fix.to_owned(),
        }
    }
}

/// The fault of a role that may not set `session_replication_role`.
pub(crate) fn no_replica_role(error: &PgError, node: &NodeId) -> Fault {
    if !error.is(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return error.to_fault(node);
    }
    let what = "the agent's role may not set session_replication_role, so triggers would fire on every row";
    Fault::new(FaultKind::Unauthorized, what).on(node).hint(
        "let the agent connect as a superuser, or GRANT SET ON PARAMETER session_replication_role to its role (PostgreSQL 15 and newer)",
    )
}
