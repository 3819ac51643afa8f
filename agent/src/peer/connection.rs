//! The target's connection to the source's agent.

use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use steep_protocol::limits::{
    LISTED_MAX, PARTS_MAX, SCHEMA_PAGES_MAX, SEQUENCES_NAMED, TABLES_MAX,
};
use steep_protocol::message::agent::PeerAddress;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::Compression;
use steep_protocol::message::peer::{
    CopyFormat, DatabaseSetting, FetchKept, NextPart, PartAs, PartSum, PeerReply, PeerRequest,
    SchemaSection, Secret, SequenceValue, SequencesUsed, TablePlan,
};
use steep_protocol::quic::{Connection, Endpoint, Expect, Links, Receiver, Sender, Watched};
use steep_protocol::{Epoch, Fault, FaultKind, JobId, Lsn, NodeId, PartNo, Retry, TableName};
use steep_schema::Schema;
use tokio::sync::Mutex;

use super::stream::Incoming;

/// How often a request is repeated that the source refuses because it has not yet heard of this node: five seconds
/// cover two messages of one coordinator that overtake each other.
const ADMITTED_AGAIN: Duration = Duration::from_millis(500);
const ADMITTED_TRIES: usize = 10;

/// The source's agent, dialled when needed and redialled after a loss. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct SourceAgent {
    endpoint: Arc<Endpoint>,
    source: PeerAddress,
    job: JobId,
    links: Links,
    connection: Arc<Mutex<Option<(Connection, Watched)>>>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) lsn: Lsn,
    pub(crate) encoding: String,
    pub(crate) tables: Vec<TablePlan>,
}

/// A part of a shared snapshot, or where it is.
#[derive(Debug)]
pub(super) enum Offer {
    Part(PartNo, Box<Incoming>),
    /// Who has it, and what has to arrive.
    Ask(PartNo, NodeId, PartSum),
    /// All are on their way to other targets.
    Later,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ping {
    pub(crate) rtt: Duration,
    pub(crate) clock_ahead: f64,
}

impl SourceAgent {
    /// Does not dial yet. Its connections are counted in `links`.
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        source: PeerAddress,
        job: JobId,
        links: &Links,
    ) -> Self {
        Self {
            endpoint,
            source,
            job,
            links: links.clone(),
            connection: Arc::new(Mutex::new(None)),
        }
    }

    pub(crate) fn source(&self) -> &NodeId {
        &self.source.node
    }

    /// Another target's agent, asked for the same job.
    pub(super) fn beside(&self, peer: PeerAddress) -> Self {
        Self::new(Arc::clone(&self.endpoint), peer, self.job, &self.links)
    }

    pub(super) fn is_at(&self, address: &PeerAddress) -> bool {
        self.source == *address
    }

    pub(super) fn job(&self) -> JobId {
        self.job
    }

    /// Checks UDP, TLS and version; measures round trip and clock difference.
    pub(crate) async fn ping(&self) -> Result<Ping, Fault> {
        let begin = Timestamp::now();
        let (reply, _) = self.ask(&PeerRequest::Ping { job: self.job }).await?;
        let PeerReply::Pong { unix_micros } = reply else {
            return Err(self.unexpected());
        };
        let end = Timestamp::now();
        let middle = (begin.as_microsecond() + end.as_microsecond()) / 2;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a clock difference needs no 53 bits"
        )]
        let clock_ahead = (unix_micros.saturating_sub(middle)) as f64 / 1e6;
        Ok(Ping {
            rtt: self.connected().await?.rtt(),
            clock_ahead,
        })
    }

    pub(crate) async fn plan(&self) -> Result<Plan, Fault> {
        let (mut reply, mut receiver) = self.ask(&PeerRequest::FetchPlan { job: self.job }).await?;
        let mut plan = Plan {
            lsn: Lsn(0),
            encoding: String::new(),
            tables: Vec::new(),
        };
        let mut parts = 0;
        loop {
            let PeerReply::Plan {
                lsn,
                encoding,
                tables,
                last,
            } = reply
            else {
                return Err(self.unexpected());
            };
            plan.lsn = lsn;
            plan.encoding = encoding;
            parts += tables.iter().map(|table| table.ranges.len()).sum::<usize>();
            plan.tables.extend(tables);
            if plan.tables.len() > TABLES_MAX || parts > PARTS_MAX as usize {
                return Err(self.endless("plan"));
            }
            if last {
                return Ok(plan);
            }
            reply = self.next(&mut receiver).await?;
        }
    }

    /// The schema of what takes part.
    pub(crate) async fn described(&self) -> Result<Schema, Fault> {
        let request = PeerRequest::DescribeSchema { job: self.job };
        let (mut reply, mut receiver) = self.ask(&request).await?;
        let mut schema = Schema::default();
        for _ in 0..SCHEMA_PAGES_MAX {
            let PeerReply::Schema { page, last } = reply else {
                return Err(self.unexpected());
            };
            schema.add(page);
            if last {
                return Ok(schema);
            }
            reply = self.next(&mut receiver).await?;
        }
        Err(self.endless("schema"))
    }

    /// A dump of a schema section.
    pub(crate) async fn schema(&self, section: SchemaSection) -> Result<Incoming, Fault> {
        self.frames(&PeerRequest::FetchSchema {
            job: self.job,
            section,
        })
        .await
    }

    pub(crate) async fn part(
        &self,
        epoch: Epoch,
        part: PartNo,
        format: CopyFormat,
        compression: Compression,
    ) -> Result<Incoming, Fault> {
        let job = self.job;
        self.frames(&PeerRequest::FetchPart {
            job,
            epoch,
            part,
            format,
            compression,
        })
        .await
    }

    /// One of several parts of a shared snapshot, as the source chooses.
    pub(super) async fn next_part(&self, request: NextPart) -> Result<Offer, Fault> {
        match self.ask(&PeerRequest::NextPart(request)).await? {
            (PeerReply::Part(part), receiver) => {
                Ok(Offer::Part(part, Box::new(Incoming::new(receiver))))
            }
            (PeerReply::AskPeer { part, peer, sent }, _) => Ok(Offer::Ask(part, peer, sent)),
            (PeerReply::Later, _) => Ok(Offer::Later),
            _ => Err(self.unexpected()),
        }
    }

    /// Tells the source what became of parts of a shared snapshot.
    pub(super) async fn received(
        &self,
        kept: Vec<PartAs>,
        dropped: Vec<PartAs>,
    ) -> Result<(), Fault> {
        let job = self.job;
        let told = PeerRequest::PartsReceived { job, kept, dropped };
        match self.ask(&told).await?.0 {
            PeerReply::Noted => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// A part that another target keeps.
    pub(super) async fn kept(&self, request: FetchKept) -> Result<Incoming, Fault> {
        self.frames(&PeerRequest::FetchKept(request)).await
    }

    /// As they are now.
    pub(crate) async fn sequences(&self) -> Result<Vec<SequenceValue>, Fault> {
        self.sequences_by(PeerRequest::FetchSequences { job: self.job })
            .await
    }

    /// As they were stored with the job's snapshot.
    pub(crate) async fn stored_sequences(&self) -> Result<Vec<SequenceValue>, Fault> {
        self.sequences_by(PeerRequest::FetchStoredSequences { job: self.job })
            .await
    }

    /// How far they are used. The coordinator admits this node at the same time as it sends the command, so that the
    /// source may hear of it later.
    pub(crate) async fn sequences_used(&self) -> Result<SequencesUsed, Fault> {
        let ask = || async {
            let request = PeerRequest::FetchSequencesUsed { job: self.job };
            match self.ask(&request).await?.0 {
                PeerReply::SequencesUsed(used)
                    if used.unreadable.len().max(used.locked.len()) <= SEQUENCES_NAMED =>
                {
                    Ok(used)
                }
                PeerReply::SequencesUsed(_) => Err(self.endless("number of sequences")),
                _ => Err(self.unexpected()),
            }
        };
        let again = ConstantBuilder::new().with_delay(ADMITTED_AGAIN);
        let admitted = ask.retry(again.with_max_times(ADMITTED_TRIES));
        admitted
            .when(|fault: &Fault| fault.kind == FaultKind::Unauthorized)
            .await
    }

    async fn sequences_by(&self, request: PeerRequest) -> Result<Vec<SequenceValue>, Fault> {
        match self.ask(&request).await?.0 {
            PeerReply::Sequences(sequences) => Ok(sequences),
            _ => Err(self.unexpected()),
        }
    }

    /// How another PostgreSQL reaches the source's.
    pub(crate) async fn conninfo(&self) -> Result<Secret, Fault> {
        let request = PeerRequest::FetchConninfo { job: self.job };
        match self.ask(&request).await?.0 {
            PeerReply::Conninfo(conninfo) => Ok(conninfo),
            _ => Err(self.unexpected()),
        }
    }

    /// Has the tables of an earlier epoch published by the present one. Returns those that are left.
    pub(crate) async fn move_tables(
        &self,
        from: &Replication,
        into: JobId,
    ) -> Result<Vec<TableName>, Fault> {
        let (job, from) = (self.job, from.clone());
        let request = PeerRequest::MoveTables { job, from, into };
        match self.ask(&request).await?.0 {
            PeerReply::Moved { left } => Ok(left),
            _ => Err(self.unexpected()),
        }
    }

    /// Has the job's tables taken out of the publication that this node follows.
    pub(crate) async fn leave_tables(&self) -> Result<(), Fault> {
        let request = PeerRequest::LeaveTables { job: self.job };
        match self.ask(&request).await?.0 {
            PeerReply::Noted => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits until an earlier epoch's slot has confirmed a fence, and returns that.
    pub(crate) async fn pass_fence(&self, epoch: &Replication) -> Result<Lsn, Fault> {
        let (job, epoch) = (self.job, epoch.clone());
        match self.ask(&PeerRequest::PassFence { job, epoch }).await?.0 {
            PeerReply::Passed { lsn } => Ok(lsn),
            _ => Err(self.unexpected()),
        }
    }

    /// Has the publication and slot of an earlier epoch dropped.
    pub(crate) async fn drop_epoch(&self, epoch: &Replication) -> Result<(), Fault> {
        let (job, epoch) = (self.job, epoch.clone());
        match self.ask(&PeerRequest::DropEpoch { job, epoch }).await?.0 {
            PeerReply::Noted => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Settings of the source's database that affect values.
    pub(crate) async fn settings(&self) -> Result<Vec<DatabaseSetting>, Fault> {
        let request = PeerRequest::FetchSettings { job: self.job };
        match self.ask(&request).await?.0 {
            PeerReply::Settings(settings) if settings.len() <= LISTED_MAX => Ok(settings),
            PeerReply::Settings(_) => Err(self.endless("number of settings")),
            _ => Err(self.unexpected()),
        }
    }

    async fn frames(&self, request: &PeerRequest) -> Result<Incoming, Fault> {
        match self.ask(request).await? {
            (PeerReply::FramesFollow, receiver) => Ok(Incoming::new(receiver)),
            _ => Err(self.unexpected()),
        }
    }

    /// A stream for more than one question.
    pub(super) async fn stream(&self) -> Result<(Sender, Receiver), Fault> {
        let connection = self.connected().await?;
        connection.open().await.map_err(|error| error.to_fault())
    }

    /// Sends a request on a stream of its own; returns the first reply, and the stream for more.
    async fn ask(&self, request: &PeerRequest) -> Result<(PeerReply, Receiver), Fault> {
        let connection = self.connected().await?;
        let (mut sender, mut receiver) = connection.open().await.map_err(|e| e.to_fault())?;
        sender.send(request).await.map_err(|e| e.to_fault())?;
        sender.finish();
        let reply = self.next(&mut receiver).await?;
        Ok((reply, receiver))
    }

    async fn next(&self, receiver: &mut Receiver) -> Result<PeerReply, Fault> {
        match receive::<PeerReply>(receiver).await? {
            PeerReply::Fault(fault) => Err(fault),
            reply => Ok(reply),
        }
    }

    async fn connected(&self) -> Result<Connection, Fault> {
        let mut slot = self.connection.lock().await;
        if let Some((connection, _)) = slot.as_ref().filter(|(c, _)| !c.is_closed()) {
            return Ok(connection.clone());
        }
        let expect = Expect::Agent(self.source.node.clone());
        let dialled = self.endpoint.dial(&self.source.address, &expect).await;
        let connection = dialled.map_err(|error| {
            let mut fault = error.to_fault();
            fault.message = format!(
                "the agent of {} cannot be reached: {}",
                self.source.node, fault.message
            );
            fault
        })?;
        *slot = Some((connection.clone(), self.links.watch(&connection)));
        Ok(connection)
    }

    /// The peer's list is longer than any database needs (G9).
    fn endless(&self, what: &str) -> Fault {
        let node = &self.source.node;
        let message = format!("the agent of {node} lists a {what} larger than is accepted");
        Fault::new(FaultKind::Failed, message)
            .hint("take fewer tables at a time: --include-schema, --exclude-table")
    }

    pub(super) fn unexpected(&self) -> Fault {
        Fault::unexpected_answer(&self.source.node)
    }
}

pub(super) async fn receive<T: DeserializeOwned>(receiver: &mut Receiver) -> Result<T, Fault> {
    receiver
        .recv()
        .await
        .map_err(|e| e.to_fault())?
        .ok_or_else(|| {
            Fault::new(
                FaultKind::Unreachable,
                "the peer ended the stream without an answer",
            )
            .retry(Retry::NewConnection)
        })
}
