//! Which other agent a command has to do with.

use super::command::{Command, CopyParts, PeerAddress, PrepareTarget, TargetCommand};

impl Command {
    /// The source's agent, if the command needs it.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerAddress> {
        let Self::Target(command) = self else {
            return None;
        };
        match command {
            TargetCommand::Gather { source, .. }
            | TargetCommand::Prepare(PrepareTarget { source, .. })
            | TargetCommand::Copy(CopyParts { source, .. })
            | TargetCommand::Subscribe { source, .. }
            | TargetCommand::Fold { source, .. }
            | TargetCommand::Finish { source, .. }
            | TargetCommand::Compare { source, .. }
            | TargetCommand::RaiseSequences { source } => Some(source),
            TargetCommand::Cleanup {
                sequences, joined, ..
            } => sequences.as_ref().or(joined.as_ref().map(|j| &j.source)),
            TargetCommand::Verify(request) | TargetCommand::VerifyRest(request, _) => {
                Some(&request.source)
            }
            TargetCommand::Repair(request) => Some(&request.source),
            TargetCommand::Join(changed)
            | TargetCommand::Leave(changed)
            | TargetCommand::Swap(changed)
            | TargetCommand::PrepareShadows { changed, .. } => Some(&changed.source),
            TargetCommand::Open { .. }
            | TargetCommand::BuildIndexes { .. }
            | TargetCommand::BuildConstraints { .. }
            | TargetCommand::AwaitNativeCopy
            | TargetCommand::Prove
            | TargetCommand::Release
            | TargetCommand::RebuildMissing => None,
        }
    }
}
