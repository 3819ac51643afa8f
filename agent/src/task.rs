//! What every long operation gets, on either end.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::message::agent::{
    Command, EarlierEpoch, PartDone, PartProgress, TargetCommand, WorkProgress, WorkUnit,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::verify::TableReport;
use steep_protocol::{ByteCount, Fault, JobId, NodeId, Phase};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::pg::{Conninfo, PgError, Session};

/// Limit for removing what a failed attempt left.
const TIDY_UP: Duration = Duration::from_secs(10);

/// What a running command knows. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) node: NodeId,
    pub(crate) job: JobId,
    /// The slot, publication and subscription of the job.
    pub(crate) replication: Replication,
    pub(crate) conninfo: Arc<Conninfo>,
    /// Cancelled when the command is aborted or its time in a shutdown is over. Whoever runs a statement
    /// must select on it and send a cancel request.
    pub(crate) cancel: CancellationToken,
    /// Cancelled when the agent is told to stop: loops over items that can be resumed stop before the next
    /// one.
    pub(crate) drain: CancellationToken,
    pub(crate) progress: Progress,
    pub(crate) patience: Patience,
    /// For all index builds together; chosen from free memory where it is not set.
    pub(crate) index_memory: Option<ByteCount>,
    /// Of a copy; the newest ones count.
    pub(crate) terms: watch::Receiver<CopyTerms>,
}

/// What an operator may change while rows are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CopyTerms {
    /// Workers.
    pub(crate) parallel: u8,
    /// COPY bytes a second over all workers.
    pub(crate) max_rate: Option<ByteCount>,
}

impl Task {
    /// The same for an earlier epoch's slot, publication and subscription.
    pub(crate) fn of(&self, epoch: EarlierEpoch) -> Self {
        Self {
            replication: epoch.replication,
            ..self.clone()
        }
    }
}

impl CopyTerms {
    /// Those of a copy; other commands have none.
    pub(crate) fn of(command: &Command) -> Self {
        match command {
            Command::Target(TargetCommand::Copy(copy)) => Self {
                parallel: copy.parallel,
                max_rate: copy.max_rate,
            },
            Command::Source(_) | Command::Target(_) | Command::Node(_) => Self::default(),
        }
    }

    /// Terms that never change.
    pub(crate) fn fixed() -> watch::Receiver<Self> {
        watch::channel(Self::default()).1
    }
}

/// How long a statement waits for others' locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Patience {
    /// Until the job's own limits end it.
    #[default]
    Endless,
    /// Ten seconds: others who want the table wait behind us.
    Long,
    /// A cleanup tries again later, while the source is released.
    Short,
}

impl Patience {
    pub(crate) fn setting(self) -> Option<&'static str> {
        match self {
            Self::Endless => None,
            Self::Long => Some("SET lock_timeout = '10s'"),
            Self::Short => Some("SET lock_timeout = '5s'"),
        }
    }
}

/// The sending end of a job's progress. Reports replace one another; completed parts do not.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    inner: Arc<dyn ProgressSink>,
}

/// The session in the agent, a recorder in tests.
pub(crate) trait ProgressSink: Send + Sync + std::fmt::Debug {
    /// Work that is not counted in parts.
    fn work(&self, job: JobId, phase: Phase, work: WorkProgress);
    fn part(&self, job: JobId, progress: PartProgress);
    /// All of it has arrived and is committed.
    fn loaded(&self, job: JobId, loaded: &PartDone);
    /// No crash can undo it.
    fn done(&self, job: JobId, done: PartDone);
    fn retried(&self, job: JobId);
    fn waiting(&self, job: JobId, parts: usize);
    /// A comparison of rows has compared a table.
    fn compared(&self, job: JobId, table: TableReport);
}

impl Progress {
    pub(crate) fn new(sink: Arc<dyn ProgressSink>) -> Self {
        Self { inner: sink }
    }

    /// Discards everything.
    pub(crate) fn nowhere() -> Self {
        #[derive(Debug)]
        struct Nowhere;
        impl ProgressSink for Nowhere {
            fn work(&self, _: JobId, _: Phase, _: WorkProgress) {}
            fn part(&self, _: JobId, _: PartProgress) {}
            fn loaded(&self, _: JobId, _: &PartDone) {}
            fn done(&self, _: JobId, _: PartDone) {}
            fn retried(&self, _: JobId) {}
            fn waiting(&self, _: JobId, _: usize) {}
            fn compared(&self, _: JobId, _: TableReport) {}
        }
        Self::new(Arc::new(Nowhere))
    }
}

impl Task {
    /// Connects to this node's database.
    pub(crate) async fn connect(&self, purpose: &str) -> Result<Session, Fault> {
        let session = Session::connect(&self.conninfo, purpose).await;
        session.map_err(|error| self.fault(error))
    }

    /// The fault of an error of this node's database.
    pub(crate) fn fault(&self, error: impl Into<PgError>) -> Fault {
        let error: PgError = error.into();
        error.to_fault(&self.node)
    }

    /// Runs `removing` after a failed attempt, for a limited time. What is left is removed by the cleanup, or
    /// when its note expires.
    pub(crate) async fn tidy_up<E: std::fmt::Display>(
        &self,
        removing: impl Future<Output = Result<(), E>>,
    ) {
        match tokio::time::timeout(TIDY_UP, removing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(job_id = %self.job, %error, "could not tidy up"),
            Err(_) => warn!(job_id = %self.job, "could not tidy up in time"),
        }
    }

    pub(crate) fn work(&self, phase: Phase, work: WorkProgress) {
        self.progress.inner.work(self.job, phase, work);
    }

    /// Reports work of one worker, counted in items.
    pub(crate) fn items(&self, phase: Phase, (done, total): (u64, u64), current: Option<String>) {
        let (unit, workers) = (WorkUnit::Items, 1);
        let work = WorkProgress {
            done,
            total,
            unit,
            current,
            workers,
        };
        self.work(phase, work);
    }

    pub(crate) fn part(&self, progress: PartProgress) {
        self.progress.inner.part(self.job, progress);
    }

    pub(crate) fn loaded(&self, loaded: &PartDone) {
        self.progress.inner.loaded(self.job, loaded);
    }

    pub(crate) fn done(&self, done: PartDone) {
        self.progress.inner.done(self.job, done);
    }

    pub(crate) fn retried(&self) {
        self.progress.inner.retried(self.job);
    }

    pub(crate) fn waiting(&self, parts: usize) {
        self.progress.inner.waiting(self.job, parts);
    }

    pub(crate) fn compared(&self, table: TableReport) {
        self.progress.inner.compared(self.job, table);
    }
}
