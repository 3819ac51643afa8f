//! Builds the command for a piece of a job's work.
//!
//! Arguments are current each time a command is sent: addresses may have changed, and a repeated Copy
//! names only the missing parts.

use steep_protocol::message::agent::{
    Command, CopyParts, EarlierEpoch, Export, IndexTiming, OpenSource, PeerAddress, PrepareTarget,
    RowsAs, RowsFrom, SequencesFrom, SlotOrigin, SourceCommand, SubscriptionStart, TargetCommand,
};
use steep_protocol::message::handover::SchemaCheck;
use steep_protocol::message::job::{CancelledData, JobSpec, Method};
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::message::tables::{ChangedTables, Followed, FollowedOutcome};
use steep_protocol::{Lsn, NodeId, PartNo, limits};

use super::{Driver, Live};
use crate::assign::{self, WorkerLimits};
use crate::job::change::Joining;
use crate::job::handover::{SlotFate, StoredRows};
use crate::job::note::JobNote;
use crate::job::{Job, Stage, Work};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// The command for that work, and its workers.
    pub(super) fn compose(&self, live: &Live, work: Work) -> (Command, u8) {
        let job = &live.job;
        let spec = &job.spec;
        let source = || self.peer(&spec.source);
        let earlier = || job.earlier.clone();
        let (target, filter) = (|| spec.target.clone(), || spec.filter.clone());
        let parallel = self.workers(job);
        let native = spec.method == Method::Native;
        let stored = job.stored.as_ref();
        let carried = || stored.and_then(StoredRows::carried);
        let command = match work {
            Work::GatherSource => Command::from(SourceCommand::Gather {
                target: target(),
                filter: filter(),
                slot: match job.starts_from() {
                    None => SlotOrigin::Made,
                    Some(_) => SlotOrigin::Prepared,
                },
            }),
            Work::Regrant => self.regrant(job, parallel),
            Work::GatherTarget => Command::from(TargetCommand::Gather {
                source: source(),
                filter: filter(),
            }),
            Work::OpenSource => self.open_command(job, parallel),
            Work::OpenCarried => TargetCommand::Open { carried: carried() }.into(),
            Work::TakeSlot => SourceCommand::TakeSlot { target: target() }.into(),
            Work::PrepareTarget => self.prepare_command(job),
            Work::Copy => Command::from(TargetCommand::Copy(CopyParts {
                source: source(),
                epoch: job.epoch,
                parallel,
                compression: spec.compression,
                max_rate: spec.max_rate,
                order: assign::share(order(live, parallel), self.share(job)),
                shared: self.shared_parts(job),
                carried: carried(),
            })),
            Work::CloseSnapshot => SourceCommand::CloseSnapshot.into(),
            Work::BuildIndexes => Command::from(TargetCommand::BuildIndexes {
                parallel,
                note: JobNote::of(job, Some(live.copied.whole())),
            }),
            Work::BuildConstraints => TargetCommand::BuildConstraints { parallel }.into(),
            Work::Subscribe => Command::from(TargetCommand::Subscribe {
                source: source(),
                start: match (&job.handover, native) {
                    (Some(handover), _) => SubscriptionStart::AtOrigin(handover.lsn),
                    (None, true) => SubscriptionStart::NativeCopy,
                    (None, false) => {
                        SubscriptionStart::AtSlot(job.attempt.plan.map_or(Lsn(0), |plan| plan.lsn))
                    }
                },
                origin: job.origin,
                earlier: earlier(),
            }),
            Work::Fold => Command::from(TargetCommand::Fold {
                source: source(),
                origin: job.origin,
                earlier: earlier(),
                note: JobNote::of(job, Some(live.copied.whole())),
            }),
            Work::Join => TargetCommand::Join(self.changed_tables(job)).into(),
            Work::Leave => TargetCommand::Leave(self.changed_tables(job)).into(),
            Work::AwaitNativeCopy => TargetCommand::AwaitNativeCopy.into(),
            Work::Swap => TargetCommand::Swap(self.changed_tables(job)).into(),
            Work::AwaitFence => fence_command(job).into(),
            Work::Finish => Command::from(TargetCommand::Finish {
                source: source(),
                parallel,
                sequences: match carried() {
                    _ if job.follows() => SequencesFrom::Source,
                    Some(place) => SequencesFrom::Carried(place),
                    None => SequencesFrom::Stored,
                },
            }),
            Work::ProveTarget => TargetCommand::Prove.into(),
            Work::ProveSource => SourceCommand::Prove.into(),
            Work::ReleaseTarget => TargetCommand::Release.into(),
            Work::ReleaseSource => SourceCommand::Release.into(),
            Work::CleanupTarget(data) => self.clean_target(job, data).into(),
            Work::CleanupSource => clean_source(job).into(),
        };
        (command, parallel)
    }

    /// Lets the target ask the source about its job again.
    fn regrant(&self, job: &Job, parallel: u8) -> Command {
        let spec = &job.spec;
        match &job.change {
            _ if reads(job) && self.archive(job).is_some() => self.open_command(job, parallel),
            Some(change) if !job.replaces() => Command::from(SourceCommand::AdmitChange {
                target: spec.target.clone(),
                filter: spec.filter.clone(),
                followed: Box::new(change.followed.clone()),
            }),
            Some(_) | None => admit(spec),
        }
    }

    fn prepare_command(&self, job: &Job) -> Command {
        let spec = &job.spec;
        let prepare = PrepareTarget {
            source: self.peer(&spec.source),
            filter: spec.filter.clone(),
            existing: spec.existing,
            schema_mode: spec.schema_mode,
            absent: spec.absent,
            epoch: job.epoch,
            unfinished: job.unfinished.clone(),
            rows: rows_from(job),
            carried: job.stored.as_ref().and_then(StoredRows::carried),
            note: JobNote::of(job, None),
        };
        Command::from(match spec.method {
            Method::Reinit => TargetCommand::PrepareShadows {
                prepare,
                changed: self.changed_tables(job),
            },
            _ => TargetCommand::Prepare(prepare),
        })
    }

    fn clean_target(&self, job: &Job, data: CancelledData) -> TargetCommand {
        let source = &job.spec.source;
        // Without its agent nobody can be asked.
        let asks = data == CancelledData::Detach && self.registry.is_online(source);
        TargetCommand::Cleanup {
            data,
            earlier: job.earlier.clone(),
            sequences: asks.then(|| self.peer(source)),
            joined: (job.joining() != Joining::NotYet && !job.replaces())
                .then(|| self.changed_tables(job)),
        }
    }

    /// The tables that join or leave what the node follows by.
    fn changed_tables(&self, job: &Job) -> Box<ChangedTables> {
        let change = job.change.as_ref();
        Box::new(ChangedTables {
            source: self.peer(&job.spec.source),
            followed: change.map_or_else(
                || Followed {
                    replication: job.replication(),
                    filter: job.spec.filter.clone(),
                    origin: job.origin,
                    complete: Vec::new(),
                    outcome: FollowedOutcome::GoesOn,
                },
                |change| change.followed.clone(),
            ),
            tables: change.map_or_else(Vec::new, |change| change.tables.clone()),
        })
    }

    fn open_command(&self, job: &Job, parallel: u8) -> Command {
        let spec = &job.spec;
        let export = match (job.snapshot(), self.archive(job)) {
            // The target reads it, and needs no slot.
            (_, None) if !job.follows() => return admit(spec),
            (_, Some(place)) if !job.follows() => Export::Files(place),
            (Some(snapshot), _) if job.carried().is_some() => Export::Template { snapshot },
            (Some(_), Some(place)) => Export::Stored(place),
            (Some(snapshot), None) => Export::Shared { snapshot },
            (None, _) if matches!(spec.method, Method::Native | Method::Merge) => Export::Slot,
            (None, _) => Export::SlotAndSnapshot,
        };
        let open = OpenSource {
            target: spec.target.clone(),
            filter: spec.filter.clone(),
            epoch: job.epoch,
            restarts: job.restarts,
            unfinished: job.unfinished.clone(),
            earlier: job.earlier.clone(),
            export,
            parallel,
            large_table_threshold: spec.large_table_threshold,
            yield_to_ddl: spec.yield_to_ddl,
            rows_as: RowsAs::TypesAllow,
            kept_seconds: None,
            only_at: job.adopted.map(|plan| plan.lsn),
            followed: job
                .change
                .as_ref()
                .filter(|_| !job.replaces())
                .map(|change| Box::new(change.followed.clone())),
        };
        Command::from(match spec.method {
            Method::Reinit => SourceCommand::OpenFollowed(open),
            _ => SourceCommand::Open(open),
        })
    }

    /// What the source's agent reads for the job, if it is stored.
    fn archive(&self, job: &Job) -> Option<StoredPlace> {
        match (&job.stored, job.shared) {
            (Some(_), _) if job.carried().is_some() => None,
            (Some(stored), _) => Some(stored.place()),
            (None, Some(shared)) => self.spool(shared),
            (None, None) => None,
        }
    }

    /// The address of a node's agent, from its session or else its record.
    pub(super) fn peer(&self, node: &NodeId) -> PeerAddress {
        let address = match self.registry.get(node) {
            Some(agent) => Some(agent.registration.advertise.clone()),
            None => self.nodes.get(node).and_then(|n| n.advertise.clone()),
        };
        PeerAddress {
            node: node.clone(),
            address: address.unwrap_or_default(),
        }
    }

    /// Workers for that job, given what other jobs use on the same agents.
    pub(super) fn workers(&self, job: &Job) -> u8 {
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

/// Tables that are reinitialised have been out of the replication that they join again, but a transaction that wrote to
/// them before may still be open.
fn fence_command(job: &Job) -> SourceCommand {
    let earlier = before_fence(job);
    match (job.spec.method, job.joining()) {
        (Method::Reinit, Joining::Begun) if !job.replaces() => {
            SourceCommand::AwaitFenceAfterWriters { earlier }
        }
        _ => SourceCommand::AwaitFence { earlier },
    }
}

/// Where a job's rows come from.
fn rows_from(job: &Job) -> RowsFrom {
    match (&job.handover, job.spec.method) {
        // The preflight has compared the schemas; sequences differ by now.
        (_, Method::Merge) => RowsFrom::Backup(SchemaCheck::Skipped),
        (Some(handover), _) => RowsFrom::Backup(handover.schema),
        (None, Method::Native) => RowsFrom::Copy(IndexTiming::Upfront),
        (None, _) => RowsFrom::Copy(IndexTiming::Deferred),
    }
}

/// What has to pass the fence besides the present epoch. The replication that tables join may send changes of them from
/// before they were copied, those of a partition by its parent: it has to be past these before it lists them.
fn before_fence(job: &Job) -> Vec<EarlierEpoch> {
    let lsn = job.attempt.plan.map_or(Lsn(0), |plan| plan.lsn);
    let goes_on = job.change.as_ref().filter(|_| !job.replaces());
    let joined = goes_on.map(|change| EarlierEpoch {
        replication: change.followed.replication.clone(),
        lsn,
    });
    job.earlier.iter().cloned().chain(joined).collect()
}

/// The parts that are left, with the plan's numbers.
fn order(live: &Live, parallel: u8) -> Vec<PartNo> {
    let mut order = assign::order(&live.copied, parallel);
    for part in &mut order {
        *part = live.copied.planned(*part);
    }
    order
}

/// Whether the job still has something to read from its snapshot.
fn reads(job: &Job) -> bool {
    matches!(job.stage, Stage::Working(step) if step.reads_snapshot(job.spec.method))
}

/// Lets the target ask the source about its job.
fn admit(spec: &JobSpec) -> Command {
    Command::from(SourceCommand::Admit {
        target: spec.target.clone(),
        filter: spec.filter.clone(),
        replicated: None,
    })
}

/// Removes what the job created on its source; a prepared slot is returned unless it is to be removed.
fn clean_source(job: &Job) -> SourceCommand {
    let fate = match (&job.handover, &job.stage) {
        (None, _) => SlotFate::Removed,
        (Some(_), Stage::Ending(ending)) => ending.slot,
        (Some(_), Stage::Working(_) | Stage::Kept(_) | Stage::Closed(_)) => SlotFate::Returned,
    };
    let sync_slots = job.attempt.sync_slots;
    let target = job.spec.target.clone();
    let returned = |used| SourceCommand::ReturnSlot { target, used };
    let removed = SourceCommand::Cleanup {
        sync_slots,
        earlier: job.earlier.clone(),
    };
    fate.returned().map_or(removed, returned)
}
