//! Commands about a node itself, which belong to no job.

use steep_protocol::Fault;
use steep_protocol::message::agent::{NodeCommand, Outcome};

use super::dispatch::Agent;
use crate::replication::apart;
use crate::task::Task;
use crate::{snapshot, stored, switchover, target};

impl Agent {
    pub(super) async fn as_node(
        &self,
        task: &Task,
        command: NodeCommand,
    ) -> Result<Outcome, Fault> {
        match command {
            NodeCommand::DescribeSchema { filter, cursor } => self.describe(&filter, cursor).await,
            NodeCommand::CaptureFingerprints => {
                let tables = target::capture_fingerprints(task).await?;
                Ok(Outcome::Captured { tables })
            }
            NodeCommand::FindStored { location } => {
                let found = stored::carried::find(&self.reader(), &location).await?;
                Ok(Outcome::Found(found))
            }
            NodeCommand::ListTables {
                replication,
                filter,
            } => {
                let listed = snapshot::list(task, replication, &filter).await?;
                Ok(Outcome::Listed(listed))
            }
            NodeCommand::CheckFollowed {
                replication,
                tables,
            } => {
                snapshot::check_replicated(task, replication, &tables).await?;
                Ok(Outcome::Done)
            }
            NodeCommand::CheckPlace { location } => {
                stored::check_place(&location, &self.node).await?;
                Ok(Outcome::Done)
            }
            NodeCommand::CheckStored { place } => {
                stored::check_loadable(&self.reader(), &place).await?;
                Ok(Outcome::Done)
            }
            NodeCommand::Switchover(command) => {
                let steps = &self.switchover_steps;
                let done = Box::pin(switchover::perform(task, command, steps)).await;
                steps.notify_one();
                done
            }
            NodeCommand::ReadSequences => apart::read(task).await.map(Outcome::Sequences),
            NodeCommand::SetSequences(wanted) => apart::set(task, &wanted)
                .await
                .map(Outcome::SequencesPassed),
        }
    }
}
