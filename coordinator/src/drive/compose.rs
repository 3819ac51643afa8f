//! From a piece of work to the command that tells an agent to do it.
//!
//! Arguments are put together each time a command is sent: addresses may have changed since, and a
//! Copy that is given again names only the parts that are missing.

use steep_protocol::message::agent::{
    Command, CoordinatorMessage, Export, IndexTiming, PeerAddress, SubscriptionStart,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::Method;
use steep_protocol::{CommandId, Epoch, JobId, Lsn, NodeId, limits};

use super::{Driver, Live};
use crate::assign::{self, WorkerLimits};
use crate::job::handover::{Handover, SlotFate};
use crate::job::{Job, Stage, Work};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// The command for that work, and the workers it is given.
    pub(super) fn compose(&self, live: &Live, work: Work) -> (Command, u8) {
        let spec = &live.job.spec;
        let source = || self.peer(&spec.source);
        let filter = || spec.filter.clone();
        let workers = self.workers(&live.job);
        let native = spec.method == Method::Native;
        if let Some(handover) = &live.job.handover
            && let Some(command) = self.compose_handover(live, handover, work)
        {
            return (command, workers);
        }
        let command = match work {
            Work::GatherSource | Work::Regrant => Command::GatherSource {
                target: spec.target.clone(),
                filter: filter(),
            },
            Work::GatherTarget => Command::GatherTarget {
                source: source(),
                filter: filter(),
            },
            Work::OpenSource => Command::OpenSource {
                target: spec.target.clone(),
                filter: filter(),
                export: if native {
                    Export::Slot
                } else {
                    Export::SlotAndSnapshot
                },
                parallel: workers,
                large_table_threshold: spec.large_table_threshold,
                yield_to_ddl: spec.yield_to_ddl,
            },
            Work::TakeSlot => Command::TakeSlot {
                target: spec.target.clone(),
            },
            Work::PrepareTarget => Command::PrepareTarget {
                source: source(),
                filter: filter(),
                existing: spec.existing,
                schema_mode: spec.schema_mode,
                indexes: if native {
                    IndexTiming::Upfront
                } else {
                    IndexTiming::Deferred
                },
            },
            Work::Copy => Command::Copy {
                source: source(),
                epoch: Epoch(0),
                parallel: workers,
                compression: spec.compression,
                max_rate: spec.max_rate,
                order: assign::order(&live.tally),
            },
            Work::CloseSnapshot => Command::CloseSnapshot,
            Work::BuildIndexes => Command::BuildIndexes { parallel: workers },
            Work::BuildConstraints => Command::BuildConstraints { parallel: workers },
            Work::Subscribe => Command::Subscribe {
                source: source(),
                start: if native {
                    SubscriptionStart::NativeCopy
                } else {
                    SubscriptionStart::AtSlot(live.job.plan.map_or(Lsn(0), |p| p.lsn))
                },
                origin: live.job.origin,
            },
            Work::AwaitNativeCopy => Command::AwaitNativeCopy,
            Work::AwaitFence => Command::AwaitFence,
            Work::Finish => Command::Finish {
                source: source(),
                parallel: workers,
            },
            Work::ProveTarget => Command::ProveTarget,
            Work::ProveSource => Command::ProveSource,
            Work::ReleaseTarget => Command::ReleaseTarget,
            Work::ReleaseSource => Command::ReleaseSource,
            Work::CleanupTarget(data) => Command::CleanupTarget { data },
            Work::CleanupSource => Command::CleanupSource {
                sync_slots: live.job.sync_slots,
            },
        };
        (command, workers)
    }

    /// What is another command where the rows come from a backup.
    fn compose_handover(&self, live: &Live, handover: &Handover, work: Work) -> Option<Command> {
        let spec = &live.job.spec;
        let (target, filter) = (spec.target.clone(), spec.filter.clone());
        match work {
            Work::GatherSource => Some(Command::GatherHandover { target, filter }),
            Work::PrepareTarget => Some(Command::MatchSchema {
                source: self.peer(&spec.source),
                filter,
                existing: spec.existing,
                schema_mode: spec.schema_mode,
                check: handover.schema,
            }),
            Work::Subscribe => Some(Command::Subscribe {
                source: self.peer(&spec.source),
                start: SubscriptionStart::AtOrigin(handover.lsn),
                origin: live.job.origin,
            }),
            Work::CleanupSource => {
                let fate = match &live.job.stage {
                    Stage::Ending(ending) => ending.slot,
                    Stage::Working(_) | Stage::Closed(_) => SlotFate::Returned,
                };
                let used = fate.returned()?;
                Some(Command::ReturnSlot { target, used })
            }
            _ => None,
        }
    }

    /// Where a node's agent is reached: what it says now, or said last.
    pub(super) fn peer(&self, node: &NodeId) -> PeerAddress {
        let now = self
            .registry
            .get(node)
            .map(|agent| agent.registration.advertise.clone());
        let last = || {
            self.nodes
                .get(node)
                .and_then(|record| record.advertise.clone())
        };
        PeerAddress {
            node: node.clone(),
            address: now.or_else(last).unwrap_or_default(),
        }
    }

    /// Workers for that job, given what other jobs use on the same agents.
    fn workers(&self, job: &Job) -> u8 {
        let max = |node: &NodeId| {
            let agent = self.registry.get(node);
            agent.map_or(limits::WORKERS_MAX, |a| a.registration.max_workers)
        };
        let used = |node: &NodeId| {
            let others = self.jobs.values().filter(|other| {
                other.job.id != job.id
                    && other.job.is_running(Work::Copy)
                    && other.job.side_of(node).is_some()
            });
            others.fold(0u8, |sum, other| sum.saturating_add(other.workers))
        };
        assign::workers(WorkerLimits {
            asked: job.spec.parallel,
            source_max: max(&job.spec.source),
            source_used: used(&job.spec.source),
            target_max: max(&job.spec.target),
            target_used: used(&job.spec.target),
        })
    }
}

/// The command as it is sent: with the names of the job's replication, where those are not its own.
pub(super) fn addressed(
    id: CommandId,
    job: JobId,
    replication: Option<Replication>,
    command: Command,
) -> CoordinatorMessage {
    match replication {
        None => CoordinatorMessage::Command { id, job, command },
        Some(replication) => CoordinatorMessage::CommandOn {
            id,
            job,
            replication,
            command,
        },
    }
}
