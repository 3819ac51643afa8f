//! How the fake agents perform commands, and what they report.

use jiff::Timestamp;
use steep_protocol::message::agent::{Export, OpenSource};
use steep_protocol::message::snapshot::{
    Compared, FoundSnapshot, SealedSnapshot, VerifiedSnapshot,
};
use steep_protocol::message::switchover::{
    SwitchoverCommand, SwitchoverFacts, WriteState, WritesStopped,
};
use steep_protocol::{SnapshotId, Sum};

use super::*;

/// The checksum of every stored snapshot's manifest.
const MANIFEST: Sum = Sum([1; 32]);

impl World {
    /// Sends the command's messages and returns its outcome.
    pub(super) fn perform(&mut self, name: &str, job: JobId, command: &Command) -> Outcome {
        match command {
            Command::Source(command) => self.as_source(name, job, command),
            Command::Target(command) => self.as_target(name, job, command),
            Command::Node(NodeCommand::DescribeSchema { cursor, .. }) => Outcome::SchemaPage {
                page: Box::default(),
                next: cursor.is_none().then_some(SchemaCursor {
                    reading: 7,
                    page: 1,
                }),
            },
            Command::Node(NodeCommand::ListTables { .. }) => Outcome::Listed(Default::default()),
            Command::Node(NodeCommand::CheckFollowed { .. }) => Outcome::Done,
            Command::Node(NodeCommand::CaptureFingerprints) => Outcome::Captured { tables: 3 },
            Command::Node(NodeCommand::FindStored { .. }) => Outcome::Found(FoundSnapshot {
                snapshot: SnapshotId(job.0),
                unreadable: None,
            }),
            Command::Node(NodeCommand::CheckStored { .. } | NodeCommand::CheckPlace { .. }) => {
                Outcome::Done
            }
            Command::Node(NodeCommand::Switchover(command)) => self.switch(name, job, command),
            Command::Node(NodeCommand::ReadSequences) => Outcome::Sequences(Vec::new()),
            Command::Node(NodeCommand::SetSequences(_)) => Outcome::SequencesPassed(Vec::new()),
        }
    }

    /// As an agent does it, in no more detail than who may write.
    fn switch(&mut self, name: &str, job: JobId, command: &SwitchoverCommand) -> Outcome {
        let able = SwitchoverFacts {
            may_set_database: true,
            may_see_sessions: true,
            may_end_sessions: true,
            may_subscribe: true,
            may_advance_origin: true,
            lock_room: 100,
            ..SwitchoverFacts::default()
        };
        let open = WriteState::Open { position: Lsn(11) };
        let agent = self.agent(name);
        let state = match (command, agent.write_stop) {
            (SwitchoverCommand::Look { .. }, _) => {
                return Outcome::SwitchoverFacts(Box::new(able));
            }
            (SwitchoverCommand::Close(_), _) => {
                agent.write_stop = Some((job, WriteState::Closed));
                return Outcome::WritesStopped(WritesStopped {
                    reopen: "ALTER DATABASE app RESET default_transaction_read_only".to_owned(),
                    ..WritesStopped::default()
                });
            }
            (SwitchoverCommand::ProveOpen, _) => return Outcome::Done,
            (SwitchoverCommand::Decide, _) => WriteState::Final,
            (SwitchoverCommand::Reopen, Some((_, WriteState::Final))) => WriteState::Final,
            (SwitchoverCommand::Open | SwitchoverCommand::Reopen, _) => open,
        };
        agent.write_stop = Some((job, state));
        Outcome::WriteState(state)
    }

    fn as_source(&mut self, name: &str, job: JobId, command: &SourceCommand) -> Outcome {
        match command {
            SourceCommand::Gather { slot, .. } => {
                self.agent(name).admitted.insert(job);
                let prepared = *slot == SlotOrigin::Prepared;
                Outcome::SourceFacts(Box::new(SourceFacts {
                    slot: prepared.then(SlotFacts::default),
                    ..self.facts.clone()
                }))
            }
            SourceCommand::Admit { .. } | SourceCommand::AdmitChange { .. } => {
                self.agent(name).admitted.insert(job);
                Outcome::Done
            }
            SourceCommand::Open(OpenSource { export, .. })
            | SourceCommand::OpenFollowed(OpenSource { export, .. }) => {
                self.agent(name).admitted.insert(job);
                if matches!(export, Export::Template { .. }) {
                    return Outcome::Done;
                }
                self.agent(name).snapshots.insert(job);
                self.agent(name).sums.insert(job, (PARTS, 60, 6_000));
                self.opened(name, job)
            }
            SourceCommand::Prove => self.sums(name, job),
            SourceCommand::AwaitFence { .. } | SourceCommand::AwaitFenceAfterWriters { .. } => {
                Outcome::FencePassed { lsn: Lsn(10) }
            }
            SourceCommand::PrepareSlot { .. } => Outcome::SlotPrepared(Box::new(prepared(job))),
            SourceCommand::CloseSnapshot => {
                self.agent(name).snapshots.remove(&job);
                Outcome::Done
            }
            SourceCommand::Cleanup { .. } => {
                self.agent(name).admitted.remove(&job);
                self.agent(name).snapshots.remove(&job);
                Outcome::Done
            }
            SourceCommand::Release | SourceCommand::ReturnSlot { .. } => {
                self.agent(name).admitted.remove(&job);
                Outcome::Done
            }
            SourceCommand::AdmitVerify { .. } => {
                self.agent(name).admitted.insert(job);
                Outcome::Done
            }
            SourceCommand::TakeSlot { .. } | SourceCommand::DropPrepared => Outcome::Done,
            SourceCommand::Store(_) => Outcome::Sealed(SealedSnapshot {
                tables: TABLES.into(),
                parts: PARTS.into(),
                rows: 60,
                bytes: 6_000,
                stored_bytes: 600,
                manifest: MANIFEST,
                expires_at: Timestamp::MAX,
            }),
            SourceCommand::VerifyStored { .. } => Outcome::Verified(Box::new(VerifiedSnapshot {
                snapshot: SnapshotId(job.0),
                manifest: Some(MANIFEST),
                parts: PARTS.into(),
                rows: 60,
                bytes: 6_000,
                unread: None,
                problems: Vec::new(),
                problems_total: 0,
                compared: Compared::Nothing { why: String::new() },
            })),
            SourceCommand::DeleteSnapshot { .. } => {
                self.agent(name).admitted.remove(&job);
                self.agent(name).snapshots.remove(&job);
                Outcome::Done
            }
        }
    }

    /// Sends the plan.
    fn opened(&mut self, name: &str, job: JobId) -> Outcome {
        let tables = plan();
        self.say(name, AgentMessage::PlanPage { job, tables });
        Outcome::SourceOpened {
            lsn: Lsn(9),
            tables: TABLES,
            parts: PARTS,
        }
    }

    fn as_target(&mut self, name: &str, job: JobId, command: &TargetCommand) -> Outcome {
        match command {
            TargetCommand::Gather { .. } => Outcome::TargetFacts(Box::default()),
            TargetCommand::Open { .. } => self.opened(name, job),
            TargetCommand::Copy(CopyParts { order, .. }) => {
                let parts: Vec<PartDone> = order.iter().map(|part| done(part.0)).collect();
                self.agent(name).sums.insert(job, (PARTS, 60, 6_000));
                self.say(name, AgentMessage::PartsDone { job, parts });
                Outcome::Done
            }
            TargetCommand::Prove => self.sums(name, job),
            TargetCommand::Prepare(_)
            | TargetCommand::BuildIndexes { .. }
            | TargetCommand::BuildConstraints { .. } => Outcome::Warned(Vec::new()),
            TargetCommand::Finish { .. } => Outcome::Finished {
                findings: Vec::new(),
                missing: self.missing.clone(),
            },
            TargetCommand::RaiseSequences { .. } => {
                Outcome::SequencesRaised(super::super::detach::raised())
            }
            TargetCommand::Verify(_) | TargetCommand::VerifyRest(..) => {
                Outcome::Compared(Box::default())
            }
            TargetCommand::Repair(_) => Outcome::Repaired(Box::default()),
            TargetCommand::RebuildMissing => Outcome::Rebuilt(Rebuilt {
                made: 1,
                missing: self.missing.clone(),
            }),
            TargetCommand::Subscribe { .. }
            | TargetCommand::Fold { .. }
            | TargetCommand::Join(_)
            | TargetCommand::Leave(_)
            | TargetCommand::Swap(_)
            | TargetCommand::PrepareShadows { .. }
            | TargetCommand::AwaitNativeCopy
            | TargetCommand::Release
            | TargetCommand::Cleanup { .. } => Outcome::Done,
            TargetCommand::Compare { .. } => Outcome::Reviewed(Box::new(self.review.clone())),
        }
    }

    fn sums(&mut self, name: &str, job: JobId) -> Outcome {
        let (parts, rows, bytes) = self.agent(name).sums[&job];
        Outcome::Totals {
            parts,
            rows: RowCount(rows),
            bytes: ByteCount(bytes),
        }
    }

    /// Reports an observation with that slot and subscription.
    pub(in super::super) fn observe(
        &mut self,
        name: &str,
        slot: Option<SlotStatus>,
        subscription: Option<SubscriptionStatus>,
    ) {
        let publications = slot.iter().map(|slot| super::super::publication(slot.job));
        let observed = Observed {
            postgres: Some(Ok(180_000)),
            publications: publications.collect(),
            slots: slot.into_iter().collect(),
            subscriptions: subscription.into_iter().collect(),
            ..Observed::default()
        };
        self.say(name, AgentMessage::Observed(observed));
    }

    /// Reports good observations of both ends of a job, with these digests.
    pub(in super::super) fn observe_columns(&mut self, job: JobId, source: &str, target: &str) {
        let digests = |digest: &str| {
            vec![ReplicatedDigest {
                job,
                digest: digest.to_owned(),
            }]
        };
        let seen = |digest| Observed {
            postgres: Some(Ok(180_000)),
            digests: digests(digest),
            carried: super::super::carried(job),
            ..Observed::default()
        };
        let of_source = Observed {
            slots: vec![super::super::slot(job, "reserved")],
            publications: vec![super::super::publication(job)],
            ..seen(source)
        };
        let of_target = Observed {
            subscriptions: vec![super::super::subscription(job, true)],
            ..seen(target)
        };
        self.say("a", AgentMessage::Observed(of_source));
        self.say("b", AgentMessage::Observed(of_target));
    }
}

pub(super) fn plan() -> Vec<TableSummary> {
    let tables = (0..TABLES).map(|no| TableSummary {
        no: TableNo(no),
        name: TableName::new("public", format!("t{no}")).unwrap(),
        rows_estimate: RowCount(20),
        bytes_estimate: ByteCount(2_000),
        first_part: PartNo(no * 2),
        parts: 2,
    });
    tables.collect()
}

/// A prepared slot that waits for a backup.
pub(in super::super) fn prepared(id: JobId) -> PreparedSlot {
    PreparedSlot {
        replication: Replication {
            id,
            slot: SlotName::parse("monday").unwrap(),
        },
        lsn: Lsn(7),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::MAX,
        wal_held: ByteCount(5),
        wal_limit: None,
        state: PreparedState::Waiting,
    }
}

pub(in super::super) fn done(part: u32) -> PartDone {
    PartDone {
        part: PartNo(part),
        rows: RowCount(10),
        bytes: ByteCount(1_000),
        wire: ByteCount(300),
    }
}
