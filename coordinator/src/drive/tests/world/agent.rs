//! A fake agent.

use steep_protocol::message::switchover::WriteState;

use super::*;

pub(in super::super) struct FakeAgent {
    pub(in super::super) session: SessionId,
    pub(in super::super) incarnation: u64,
    pub(super) queue: mpsc::Receiver<CoordinatorMessage>,
    pub(in super::super) online: bool,
    pub(in super::super) snapshots: BTreeSet<JobId>,
    /// The consistent point of all of them.
    pub(in super::super) held_at: Lsn,
    /// The target of all of them.
    pub(in super::super) snapshots_of: &'static str,
    /// Jobs whose target may send requests.
    pub(in super::super) admitted: BTreeSet<JobId>,
    /// Commands at work.
    pub(in super::super) at_work: BTreeMap<CommandId, (JobId, Command)>,
    /// Outcomes that the coordinator has not acknowledged.
    pub(in super::super) kept: BTreeMap<CommandId, Result<Outcome, Fault>>,
    /// Every command it received, in order, as it first came.
    pub(in super::super) history: Vec<(CommandId, Command)>,
    /// Every Copy command, repeated ones too.
    pub(in super::super) told: Vec<CopyParts>,
    pub(in super::super) mirrored: Vec<steep_protocol::message::agent::MirrorRow>,
    /// Audit entries it received; it confirms none by itself.
    pub(in super::super) audited: Vec<AuditView>,
    /// Rejections it received.
    pub(in super::super) rejected: Vec<Fault>,
    /// Paces it was told, in order.
    pub(in super::super) intervals: Vec<ReportInterval>,
    pub(super) sums: BTreeMap<JobId, (u32, u64, u64)>,
    /// The switchover that has closed its database, and whether that is final.
    pub(in super::super) write_stop: Option<(JobId, WriteState)>,
}

impl FakeAgent {
    pub(super) fn held(&self) -> impl Iterator<Item = HeldSnapshot> {
        let held = |job: &JobId| HeldSnapshot {
            job: *job,
            target: node(self.snapshots_of),
            lsn: self.held_at,
        };
        self.snapshots.iter().map(held)
    }
}
