//! One command at work: what every long operation gets, whichever end it is on.

use std::sync::Arc;

use steep_protocol::message::agent::{PartDone, PartProgress, WorkProgress};
use steep_protocol::message::handover::Replication;
use steep_protocol::{ByteCount, JobId, NodeId, Phase};
use tokio_util::sync::CancellationToken;

use crate::pg::Conninfo;

/// What a running command knows. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// This node.
    pub(crate) node: NodeId,
    /// The job it is for.
    pub(crate) job: JobId,
    /// What carries the job's changes.
    pub(crate) replication: Replication,
    /// This node's database.
    pub(crate) conninfo: Arc<Conninfo>,
    /// Cancelled when the command is aborted or the agent waits no longer. Whoever runs a statement must
    /// select on it and send PostgreSQL a cancel request.
    pub(crate) cancel: CancellationToken,
    /// Cancelled when the agent is told to stop. Whoever does one thing after the other begins no other
    /// then, where what is left is found again.
    pub(crate) drain: CancellationToken,
    /// Where progress goes.
    pub(crate) progress: Progress,
    /// How long its statements wait for locks of others.
    pub(crate) patience: Patience,
    /// What all index builds at once may use; chosen from what is free where it is not set.
    pub(crate) index_memory: Option<ByteCount>,
}

/// How long a statement waits for somebody else's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Patience {
    /// Until the job's own limits end it.
    #[default]
    Endless,
    /// Ten seconds: whoever wants a table that we wait for waits behind us.
    Long,
    /// Some seconds: what a cleanup cannot get now it tries again later, while the source is let go.
    Short,
}

impl Patience {
    /// What a session sets, where it is not what every session begins with.
    #[must_use]
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

/// Where progress ends up: the session in the agent, a recorder in tests.
pub(crate) trait ProgressSink: Send + Sync + std::fmt::Debug {
    /// Work that is not counted in parts.
    fn work(&self, job: JobId, phase: Phase, work: WorkProgress);
    /// A part on its way.
    fn part(&self, job: JobId, progress: PartProgress);
    /// A part is committed.
    fn done(&self, job: JobId, done: PartDone);
    /// A part failed and is begun again.
    fn retried(&self, job: JobId);
    /// So many parts wait for a worker.
    fn waiting(&self, job: JobId, parts: usize);
}

impl Progress {
    /// Progress that goes to `sink`.
    pub(crate) fn new(sink: Arc<dyn ProgressSink>) -> Self {
        Self { inner: sink }
    }

    /// Progress that nobody watches.
    #[must_use]
    pub(crate) fn nowhere() -> Self {
        #[derive(Debug)]
        struct Nowhere;
        impl ProgressSink for Nowhere {
            fn work(&self, _: JobId, _: Phase, _: WorkProgress) {}
            fn part(&self, _: JobId, _: PartProgress) {}
            fn done(&self, _: JobId, _: PartDone) {}
            fn retried(&self, _: JobId) {}
            fn waiting(&self, _: JobId, _: usize) {}
        }
        Self::new(Arc::new(Nowhere))
    }
}

impl Task {
    /// Says how far work that is not counted in parts has come.
    pub(crate) fn work(&self, phase: Phase, work: WorkProgress) {
        self.progress.inner.work(self.job, phase, work);
    }

    /// Says how far a part has come.
    pub(crate) fn part(&self, progress: PartProgress) {
        self.progress.inner.part(self.job, progress);
    }

    /// Says that a part is committed.
    pub(crate) fn done(&self, done: PartDone) {
        self.progress.inner.done(self.job, done);
    }

    /// Says that a part failed and is begun again.
    pub(crate) fn retried(&self) {
        self.progress.inner.retried(self.job);
    }

    /// Says how many parts wait for a worker.
    pub(crate) fn waiting(&self, parts: usize) {
        self.progress.inner.waiting(self.job, parts);
    }
}
