//! An agent that pretends to have a server.

use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, Observed, Outcome, PartDone, Registration, Seat,
    SourceCommand, TableSummary, TargetCommand,
};
use steep_protocol::message::facts::{SourceFacts, TargetFacts};
use steep_protocol::quic::{Connection, Sender, StreamError};
use steep_protocol::{
    ByteCount, CommandId, Fault, FaultKind, JobId, Lsn, PartNo, RowCount, TableName, TableNo,
};

use super::healthy::server;

pub(crate) fn registration() -> AgentMessage {
    AgentMessage::Register(Registration {
        advertise: "127.0.0.1:7401".to_owned(),
        version: "0.1.0".to_owned(),
        incarnation: 1,
        open_snapshots: Vec::new(),
        admitted: Vec::new(),
        max_workers: 4,
        spool: None,
        seat: Seat(1),
        sequence_interval_seconds: 0,
    })
}

/// Performs every command at once, except those that it holds back until they are aborted.
pub(crate) async fn good_agent(connection: Connection, holds: fn(&Command) -> bool) {
    let (mut sender, mut receiver) = connection.open().await.unwrap();
    sender.send(&registration()).await.unwrap();
    let observed = Observed {
        postgres: Some(Ok(180_000)),
        ..Observed::default()
    };
    sender
        .send(&AgentMessage::Observed(observed))
        .await
        .unwrap();
    while let Ok(Some(message)) = receiver.recv::<CoordinatorMessage>().await {
        let answered = match message {
            CoordinatorMessage::Command {
                id, job, command, ..
            } if !holds(&command) => perform(&mut sender, id, job, command).await,
            CoordinatorMessage::Abort { id, .. } => {
                let outcome = Err(Fault::new(FaultKind::Cancelled, "aborted"));
                finish(&mut sender, id, outcome).await
            }
            CoordinatorMessage::Command { .. }
            | CoordinatorMessage::Welcome { .. }
            | CoordinatorMessage::Forget { .. }
            | CoordinatorMessage::Audit(_)
            | CoordinatorMessage::Mirror(_)
            | CoordinatorMessage::ReportInterval(_) => Ok(()),
            CoordinatorMessage::Rejected(_) => return,
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn perform(
    sender: &mut Sender,
    id: CommandId,
    job: JobId,
    command: Command,
) -> Result<(), StreamError> {
    let outcome = match command {
        Command::Source(SourceCommand::Gather { .. }) => {
            Outcome::SourceFacts(Box::new(source_facts()))
        }
        Command::Target(TargetCommand::Gather { .. }) => {
            Outcome::TargetFacts(Box::new(target_facts()))
        }
        Command::Source(SourceCommand::Open(_)) => {
            let table = TableSummary {
                no: TableNo(0),
                name: TableName::new("public", "t").unwrap(),
                rows_estimate: RowCount(5),
                bytes_estimate: ByteCount(500),
                first_part: PartNo(0),
                parts: 1,
            };
            sender
                .send(&AgentMessage::PlanPage {
                    job,
                    tables: vec![table],
                })
                .await?;
            Outcome::SourceOpened {
                lsn: Lsn(1),
                tables: 1,
                parts: 1,
            }
        }
        Command::Target(TargetCommand::Copy(_)) => {
            let part = PartDone {
                part: PartNo(0),
                rows: RowCount(5),
                bytes: ByteCount(400),
                wire: ByteCount(90),
            };
            sender
                .send(&AgentMessage::PartsDone {
                    job,
                    parts: vec![part],
                })
                .await?;
            Outcome::Done
        }
        Command::Source(SourceCommand::Prove) | Command::Target(TargetCommand::Prove) => {
            Outcome::Totals {
                parts: 1,
                rows: RowCount(5),
                bytes: ByteCount(400),
            }
        }
        _ => Outcome::Done,
    };
    finish(sender, id, Ok(outcome)).await
}

async fn finish(
    sender: &mut Sender,
    command: CommandId,
    outcome: Result<Outcome, Fault>,
) -> Result<(), StreamError> {
    sender
        .send(&AgentMessage::Finished { command, outcome })
        .await
}

fn source_facts() -> SourceFacts {
    SourceFacts {
        server: server(1),
        tables: 1,
        total_bytes: ByteCount(500),
        replication_link: Some(Ok(())),
        pg_dump: Some(Ok(18)),
        ..SourceFacts::default()
    }
}

fn target_facts() -> TargetFacts {
    TargetFacts {
        server: server(2),
        disk_free: Some(ByteCount(1 << 40)),
        agent_link: Some(Ok(300)),
        server_link: Some(Ok(())),
        ..TargetFacts::default()
    }
}
