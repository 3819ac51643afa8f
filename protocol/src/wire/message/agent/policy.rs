//! How an agent handles each command: its name in logs, what a shutdown does to it, its time limit.

use std::time::Duration;

use super::super::switchover::{Closing, SwitchoverCommand};
use super::command::{Command, Comparison, RowsFrom, SlotOrigin, SourceCommand, TargetCommand};
use super::node_command::NodeCommand;

/// How an agent handles a command, besides running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Its name in logs and traces.
    pub name: &'static str,
    /// What happens to it when its agent is told to stop.
    pub at_stop: AtStop,
    /// What a stopping agent does when it receives it.
    pub after_stop: AfterStop,
    /// How long the coordinator waits for its outcome if it belongs to no job. Jobs have their own
    /// limits.
    pub limit: Duration,
    /// How loudly its begin and end are logged.
    pub logged: Logged,
}

/// How loudly a command's begin and end are logged. A failure always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logged {
    /// At level INFO.
    Info,
    /// At level DEBUG: it is repeated every minute, or changes nothing on the server.
    Debug,
}

/// What happens to a running command when its agent is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStop {
    /// It may finish until the deadline; of a copy, the parts in flight.
    Finish,
    /// It is cancelled at once and sent again to the next process.
    Cancel,
}

/// What a stopping agent does with a new command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterStop {
    /// Run it: the command ends or removes something.
    Do,
    /// Ignore it: the command belongs to a job and is sent again to the next process.
    Ignore,
    /// Refuse it: somebody waits for the answer and can ask again.
    Refuse,
}

impl Policy {
    /// A step of a job that takes seconds, or can be interrupted between two parts.
    const STEP: Self = Self {
        name: "",
        at_stop: AtStop::Finish,
        after_stop: AfterStop::Ignore,
        // Longer than any catalog query or dial.
        limit: Duration::from_secs(60),
        logged: Logged::Info,
    };
    /// A step of a job that is one statement, or one wait, and can take hours.
    const LONG_STEP: Self = Self {
        at_stop: AtStop::Cancel,
        ..Self::STEP
    };
    /// Ends or removes something. Old transactions and locks can delay it.
    const REMOVAL: Self = Self {
        after_stop: AfterStop::Do,
        limit: Duration::from_secs(600),
        ..Self::STEP
    };
    /// Somebody waits for the answer. Reading the largest catalog takes less than its limit.
    const QUESTION: Self = Self {
        after_stop: AfterStop::Refuse,
        limit: Duration::from_secs(120),
        ..Self::STEP
    };

    const fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    const fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

impl Command {
    /// The command's policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        match self {
            Self::Source(command) => command.policy(),
            Self::Target(command) => command.policy(),
            Self::Node(command) => command.policy(),
        }
    }
}

impl SourceCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::Gather { slot, .. } => Policy::STEP.named(match slot {
                SlotOrigin::Made => "gather_source",
                SlotOrigin::Prepared => "gather_handover",
            }),
            Self::Admit { replicated, .. } => Policy {
                logged: Logged::Debug,
                ..Policy::QUESTION.named(match replicated {
                    None => "admit",
                    Some(_) => "admit_replicated",
                })
            },
            Self::Open(_) | Self::OpenFollowed(_) => Policy::LONG_STEP.named("open_source"),
            Self::CloseSnapshot => Policy::REMOVAL.named("close_snapshot"),
            Self::AwaitFence { .. } | Self::AwaitFenceAfterWriters { .. } => {
                Policy::LONG_STEP.named("await_fence")
            }
            Self::Prove => Policy::STEP.named("prove_source"),
            Self::Release => Policy {
                logged: Logged::Debug,
                ..Policy::REMOVAL.named("release_source")
            },
            Self::Cleanup { .. } => Policy::REMOVAL.named("cleanup_source"),
            // A new slot waits for transactions that were already running.
            Self::PrepareSlot { .. } => Policy::QUESTION
                .named("prepare_slot")
                .within(Policy::REMOVAL.limit),
            Self::DropPrepared => Policy::REMOVAL.named("drop_prepared"),
            Self::TakeSlot { .. } => Policy::STEP.named("take_slot"),
            Self::Store(_) => Policy::LONG_STEP.named("store_snapshot"),
            Self::VerifyStored { .. } => Policy::QUESTION
                .named("verify_snapshot")
                .within(Duration::from_secs(24 * 3600)),
            Self::DeleteSnapshot { .. } => Policy::REMOVAL.named("delete_snapshot"),
            Self::ReturnSlot { .. } => Policy::REMOVAL.named("return_slot"),
            Self::AdmitVerify { .. } => Policy::QUESTION.named("admit_verify"),
            Self::AdmitChange { .. } => Policy {
                logged: Logged::Debug,
                ..Policy::QUESTION.named("admit_change")
            },
        }
    }
}

impl TargetCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::Gather { .. } => Policy::STEP.named("gather_target"),
            Self::Open { .. } => Policy::LONG_STEP.named("open_carried"),
            Self::Prepare(request) => Policy::STEP.named(match request.rows {
                RowsFrom::Copy(_) => "prepare_target",
                RowsFrom::Backup(_) => "match_schema",
            }),
            Self::Copy(_) => Policy::STEP.named("copy"),
            Self::BuildIndexes { .. } => Policy::LONG_STEP.named("build_indexes"),
            Self::BuildConstraints { .. } => Policy::LONG_STEP.named("build_constraints"),
            Self::Subscribe { .. } => Policy::STEP.named("subscribe"),
            Self::Fold { .. } => Policy::LONG_STEP.named("fold"),
            Self::AwaitNativeCopy => Policy::LONG_STEP.named("await_native_copy"),
            Self::Finish { .. } => Policy::LONG_STEP.named("finish"),
            Self::Prove => Policy::STEP.named("prove_target"),
            Self::Release => Policy::REMOVAL.named("release_target"),
            Self::Cleanup { .. } => Policy::REMOVAL.named("cleanup_target"),
            Self::Compare { what, .. } => Policy::QUESTION.named(match what {
                Comparison::Schemas => "compare_schemas",
                Comparison::Replicated(_) => "compare_replicated",
            }),
            // It may take days; its limit begins anew with each report of progress.
            Self::Verify(_) | Self::VerifyRest(..) => Policy {
                at_stop: AtStop::Cancel,
                ..Policy::QUESTION
                    .named("verify")
                    .within(Duration::from_secs(600))
            },
            // It waits until the replica has applied what the source has written, some times.
            Self::Repair(_) => Policy::QUESTION
                .named("repair")
                .within(Duration::from_secs(900)),
            // It may build indexes of large tables.
            Self::RebuildMissing => Policy {
                at_stop: AtStop::Cancel,
                ..Policy::QUESTION.named("rebuild_missing")
            }
            .within(Duration::from_secs(24 * 3600)),
            Self::Join(_) => Policy::LONG_STEP.named("join"),
            Self::Leave(_) => Policy::STEP.named("leave"),
            Self::PrepareShadows { .. } => Policy::STEP.named("prepare_shadows"),
            Self::Swap(_) => Policy::LONG_STEP.named("swap"),
            Self::RaiseSequences { .. } => Policy {
                logged: Logged::Debug,
                ..Policy::QUESTION.named("raise_sequences")
            },
        }
    }
}

impl NodeCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::DescribeSchema { .. } => Policy::QUESTION.named("describe_schema"),
            Self::CaptureFingerprints => Policy::QUESTION.named("capture_fingerprints"),
            Self::FindStored { .. } => Policy::QUESTION.named("find_snapshot"),
            Self::CheckPlace { .. } => Policy::QUESTION.named("check_place"),
            Self::ListTables { .. } => Policy::QUESTION.named("list_tables"),
            Self::CheckFollowed { .. } => Policy::QUESTION.named("check_followed"),
            // It reads the index of every part.
            Self::CheckStored { .. } => Policy::QUESTION
                .named("check_snapshot")
                .within(Policy::REMOVAL.limit),
            Self::Switchover(command) => command.policy(),
            Self::ReadSequences => Policy::QUESTION.named("read_sequences"),
            // It waits for transactions that use them.
            Self::SetSequences(_) => Policy::QUESTION
                .named("set_sequences")
                .within(Duration::from_secs(300)),
        }
    }
}

impl SwitchoverCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::Look { .. } => Policy::QUESTION.named("look_before_switchover"),
            Self::Close(Closing::Old { .. }) => Policy::STEP.named("stop_writes"),
            Self::Close(Closing::New) => Policy::STEP.named("close_database"),
            Self::ProveOpen => Policy::STEP.named("prove_open"),
            Self::Decide => Policy::STEP.named("decide_switchover"),
            Self::Open => Policy::REMOVAL.named("open_database"),
            Self::Reopen => Policy::REMOVAL.named("reopen_database"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_job_is_done_and_has_time_and_what_may_last_hours_has_none() {
        let cleanup = Command::from(SourceCommand::Cleanup {
            sync_slots: None,
            earlier: Vec::new(),
        })
        .policy();
        assert_eq!(cleanup.after_stop, AfterStop::Do);
        assert_eq!(cleanup.at_stop, AtStop::Finish);
        let index = Command::from(TargetCommand::BuildIndexes {
            parallel: 1,
            note: None,
        })
        .policy();
        assert_eq!(index.after_stop, AfterStop::Ignore);
        assert_eq!(index.at_stop, AtStop::Cancel);
        let capture = Command::from(NodeCommand::CaptureFingerprints).policy();
        assert_eq!(capture.after_stop, AfterStop::Refuse);
    }
}
