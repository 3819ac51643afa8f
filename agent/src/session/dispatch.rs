//! From a command to the function that does it. Nothing is decided here.

use std::sync::Arc;
use std::time::Instant;

use steep_protocol::message::agent::{Command, Outcome, SubscriptionStart};
use steep_protocol::message::handover::{HandoverFacts, Replication, SchemaCheck};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::peer::SchemaSection;
use steep_protocol::message::schema::SchemaCursor;
use steep_protocol::quic::Endpoint;
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeId};
use steep_schema::Schema;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::readings::Readings;
use super::report::Reports;
use crate::budget::Budget;
use crate::facts::{self, PeerFacts};
use crate::peer::connection::SourceAgent as Link;
use crate::peer::fetch::{CopyRequest, copy};
use crate::pg::{Conninfo, catalog};
use crate::source::{self, OpenRequest, SourceJobs};
use crate::target::{self as sink, Dumps, PrepareRequest, SchemaRequest};
use crate::task::{Patience, Progress, Task};
use crate::telemetry::{CommandEnd, Telemetry};

/// What commands work with.
#[derive(Debug)]
pub struct Agent {
    /// This node.
    pub node: NodeId,
    /// Its database.
    pub conninfo: Arc<Conninfo>,
    /// Jobs for which it is the source.
    pub jobs: Arc<SourceJobs>,
    /// Where progress goes.
    pub reports: Arc<Reports>,
    /// Dials sources.
    pub endpoint: Arc<Endpoint>,
    /// For the parts it fetches.
    pub budget: Budget,
    /// What all index builds at once may use, where the operator says so.
    pub index_memory: Option<ByteCount>,
    /// Counts what is done.
    pub telemetry: Arc<Telemetry>,
    /// Schemas being handed out.
    pub readings: Readings,
    /// Cancelled when the agent is told to stop.
    pub drain: CancellationToken,
}

/// A command, as the log tells of it.
struct Told {
    job: JobId,
    name: &'static str,
    source: Option<NodeId>,
    began: Instant,
}

impl Told {
    fn source(&self) -> Option<&str> {
        self.source.as_ref().map(NodeId::as_str)
    }
}

impl Agent {
    /// Does what the command says, until it is done or cancelled.
    ///
    /// # Errors
    /// The fault that ended it, naming this node.
    pub async fn fulfil(
        &self,
        (job, replication): (JobId, Replication),
        command: Command,
        cancel: CancellationToken,
    ) -> Result<Outcome, Fault> {
        let task = Task {
            node: self.node.clone(),
            job,
            replication,
            conninfo: Arc::clone(&self.conninfo),
            cancel: cancel.clone(),
            drain: self.drain.clone(),
            progress: Progress::new(Arc::clone(&self.reports) as _),
            patience: Patience::default(),
            index_memory: self.index_memory,
        };
        let running = self.telemetry.command_began();
        let _attended = self.jobs.locks().attend();
        let told = Told {
            job,
            name: command.name(),
            source: self.source_of(&command),
            began: Instant::now(),
        };
        info!(event = "command.started", node_id = %self.node, source_node = told.source(), job_id = %job, command = told.name, "command began");
        // Boxed: the largest of these futures would otherwise be every command's size.
        let work = Box::pin(self.perform(&task, command));
        let outcome = tokio::select! {
            // The work hears of a cancel by itself and tells PostgreSQL; this is for what does not.
            () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => {
                Err(Fault::new(FaultKind::Cancelled, "cancelled"))
            }
            outcome = work => outcome,
        };
        running.ended(self.say_ended(&told, outcome.as_ref().err()));
        outcome.map_err(|fault| {
            if fault.node.is_none() {
                fault.on(&self.node)
            } else {
                fault
            }
        })
    }

    fn say_ended(&self, told: &Told, fault: Option<&Fault>) -> CommandEnd {
        let took = u64::try_from(told.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (node, source) = (&self.node, told.source());
        let Told { job, name, .. } = told;
        match fault {
            None => {
                info!(event = "command.completed", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, "command done");
                CommandEnd::Done
            }
            Some(fault) if fault.kind == FaultKind::Cancelled => {
                info!(event = "command.cancelled", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, "command stopped");
                CommandEnd::Cancelled
            }
            Some(fault) => {
                warn!(event = "command.failed", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, table = fault.table.as_ref().map(tracing::field::display), error = %fault, hint = %fault.hint, "command failed");
                CommandEnd::Failed
            }
        }
    }

    /// The node that has the rows, where the command says it: this one, or the one it names.
    fn source_of(&self, command: &Command) -> Option<NodeId> {
        match command {
            Command::GatherSource { .. }
            | Command::Admit { .. }
            | Command::AdmitReplicated { .. }
            | Command::OpenSource { .. }
            | Command::CloseSnapshot
            | Command::AwaitFence
            | Command::ProveSource
            | Command::ReleaseSource
            | Command::CleanupSource { .. }
            | Command::PrepareSlot { .. }
            | Command::DropPrepared
            | Command::GatherHandover { .. }
            | Command::TakeSlot { .. }
            | Command::ReturnSlot { .. } => Some(self.node.clone()),
            Command::GatherTarget { source, .. }
            | Command::PrepareTarget { source, .. }
            | Command::Copy { source, .. }
            | Command::Subscribe { source, .. }
            | Command::Finish { source, .. }
            | Command::CompareSchemas { source, .. }
            | Command::MatchSchema { source, .. }
            | Command::CompareReplicated { source, .. } => Some(source.node.clone()),
            Command::BuildIndexes { .. }
            | Command::BuildConstraints { .. }
            | Command::AwaitNativeCopy
            | Command::ProveTarget
            | Command::ReleaseTarget
            | Command::CleanupTarget { .. }
            | Command::DescribeSchema { .. }
            | Command::CaptureFingerprints
            | Command::RebuildMissing => None,
        }
    }

    async fn perform(&self, task: &Task, command: Command) -> Result<Outcome, Fault> {
        match command {
            Command::GatherSource { .. }
            | Command::Admit { .. }
            | Command::AdmitReplicated { .. }
            | Command::OpenSource { .. }
            | Command::CloseSnapshot
            | Command::AwaitFence
            | Command::ProveSource
            | Command::ReleaseSource
            | Command::CleanupSource { .. } => self.as_source(task, command).await,
            Command::PrepareSlot { .. }
            | Command::DropPrepared
            | Command::GatherHandover { .. }
            | Command::TakeSlot { .. }
            | Command::ReturnSlot { .. }
            | Command::MatchSchema { .. } => self.hand_over(task, command).await,
            Command::GatherTarget { .. }
            | Command::PrepareTarget { .. }
            | Command::Copy { .. }
            | Command::BuildIndexes { .. }
            | Command::BuildConstraints { .. }
            | Command::Subscribe { .. }
            | Command::AwaitNativeCopy
            | Command::Finish { .. }
            | Command::ProveTarget
            | Command::ReleaseTarget
            | Command::CleanupTarget { .. }
            | Command::RebuildMissing => self.as_target(task, command).await,
            Command::CompareSchemas { .. } | Command::CompareReplicated { .. } => {
                self.compare(task, command).await
            }
            Command::DescribeSchema { filter, cursor } => self.describe(&filter, cursor).await,
            Command::CaptureFingerprints => sink::capture_fingerprints(task)
                .await
                .map(|tables| Outcome::Captured { tables }),
        }
    }

    async fn as_source(&self, task: &Task, command: Command) -> Result<Outcome, Fault> {
        let job = task.job;
        match command {
            Command::GatherSource { target, filter } => {
                self.jobs.admit(job, target, filter.clone());
                let facts = facts::source(task, &filter).await?;
                Ok(Outcome::SourceFacts(Box::new(facts)))
            }
            Command::Admit { target, filter } => {
                self.jobs.admit(job, target, filter);
                Ok(Outcome::Done)
            }
            Command::AdmitReplicated {
                target,
                filter,
                replication,
            } => {
                self.jobs.admit_replicated(job, target, filter, replication);
                Ok(Outcome::Done)
            }
            Command::OpenSource {
                target,
                filter,
                export,
                parallel,
                large_table_threshold,
                yield_to_ddl,
            } => {
                self.jobs.admit(job, target, filter.clone());
                self.jobs.locks().set_rule(job, yield_to_ddl);
                if let Some(open) = self.jobs.get(job).and_then(|j| j.open) {
                    if !open.is_broken() {
                        return opened(&open);
                    }
                    // No row has been read under it yet: it is made anew.
                    open.close().await;
                }
                let request = OpenRequest {
                    filter,
                    export,
                    parallel,
                    large_table_threshold,
                    locks: Arc::clone(self.jobs.locks()),
                };
                let open = Arc::new(source::open(task, request).await?);
                self.jobs.open(job, Arc::clone(&open));
                opened(&open)
            }
            Command::CloseSnapshot => {
                if let Some(open) = self.jobs.get(job).and_then(|j| j.open) {
                    open.close().await;
                    self.jobs.released(job);
                }
                Ok(Outcome::Done)
            }
            Command::AwaitFence => source::await_fence(task)
                .await
                .map(|lsn| Outcome::FencePassed { lsn }),
            Command::ProveSource => {
                let open = self.jobs.get(job).and_then(|j| j.open).ok_or_else(|| {
                    Fault::new(FaultKind::Failed, "what was sent is no longer known here")
                        .hint("the agent was restarted during the job: run init again")
                })?;
                let (parts, rows, bytes) = open.totals();
                Ok(Outcome::Totals { parts, rows, bytes })
            }
            Command::ReleaseSource => {
                self.forget(job).await;
                Ok(Outcome::Done)
            }
            Command::CleanupSource { sync_slots } => {
                self.forget(job).await;
                source::cleanup(task, sync_slots)
                    .await
                    .map(|()| Outcome::Done)
            }
            other => Err(misdirected(&other)),
        }
    }

    /// As either end of a node whose rows come from a backup.
    async fn hand_over(&self, task: &Task, command: Command) -> Result<Outcome, Fault> {
        let job = task.job;
        match command {
            Command::PrepareSlot { expires_seconds } => source::prepare(task, expires_seconds)
                .await
                .map(|slot| Outcome::SlotPrepared(Box::new(slot))),
            Command::DropPrepared => source::drop_prepared(task).await.map(|()| Outcome::Done),
            Command::GatherHandover { target, filter } => {
                self.jobs.admit(job, target, filter.clone());
                let facts = HandoverFacts {
                    source: facts::source(task, &filter).await?,
                    slot: source::slot_facts(task, &filter).await?,
                };
                Ok(Outcome::HandoverFacts(Box::new(facts)))
            }
            Command::TakeSlot { target } => {
                source::take(task, &target).await.map(|()| Outcome::Done)
            }
            Command::ReturnSlot { target, used } => {
                self.forget(job).await;
                let returned = source::give_back(task, &target, used).await;
                returned.map(|()| Outcome::Done)
            }
            Command::MatchSchema {
                check: SchemaCheck::Skipped,
                ..
            } => Ok(Outcome::Done),
            Command::MatchSchema {
                source,
                filter,
                existing,
                schema_mode,
                check: SchemaCheck::Compared,
            } => {
                let links = &self.telemetry.links;
                let link = Link::new(Arc::clone(&self.endpoint), source, job, links);
                let request = SchemaRequest {
                    source: link.source().clone(),
                    described: link.described().await?,
                    filter,
                    existing,
                    schema_mode,
                };
                let matched = sink::match_schema(task, &request).await;
                matched.map(Outcome::Warned)
            }
            other => Err(misdirected(&other)),
        }
    }

    /// From here on nobody may ask for that job, and no snapshot of it is held (G7).
    async fn forget(&self, job: JobId) {
        if let Some(open) = self.jobs.remove(job).and_then(|j| j.open) {
            open.close().await;
        }
        self.reports.forget(job);
    }

    async fn as_target(&self, task: &Task, command: Command) -> Result<Outcome, Fault> {
        let job = task.job;
        let links = &self.telemetry.links;
        let link = |source| Link::new(Arc::clone(&self.endpoint), source, job, links);
        match command {
            Command::GatherTarget { source, filter } => {
                let peer = self.ask_peer(&link(source)).await?;
                let facts = facts::target(task, &filter, peer).await?;
                Ok(Outcome::TargetFacts(Box::new(facts)))
            }
            Command::PrepareTarget {
                source,
                filter,
                existing,
                schema_mode,
                indexes,
            } => {
                let link = link(source);
                let plan = link.plan().await?;
                let dumps = Dumps {
                    pre_data: link.schema(SchemaSection::PreData).await?,
                    extension_rows: link.schema(SchemaSection::ExtensionRows).await?,
                    post_data: link.schema(SchemaSection::PostData).await?,
                };
                let settings = link.settings().await?;
                let schema = SchemaRequest {
                    source: link.source().clone(),
                    described: link.described().await?,
                    filter,
                    existing,
                    schema_mode,
                };
                let request = PrepareRequest {
                    schema,
                    indexes,
                    settings,
                };
                sink::prepare(task, &request, &plan.tables, dumps)
                    .await
                    .map(Outcome::Warned)
            }
            Command::Copy {
                source,
                epoch,
                parallel,
                compression,
                max_rate,
                order,
            } => {
                let request = CopyRequest {
                    epoch,
                    parallel,
                    compression,
                    max_rate,
                    order,
                };
                copy(task, link(source), request, self.budget.clone())
                    .await
                    .map(|()| Outcome::Done)
            }
            Command::BuildIndexes { parallel } => sink::build_indexes(task, parallel)
                .await
                .map(Outcome::Warned),
            Command::BuildConstraints { parallel } => sink::build_constraints(task, parallel)
                .await
                .map(Outcome::Warned),
            Command::Subscribe {
                source,
                start,
                origin,
            } => subscribe(task, &link(source), start, origin).await,
            Command::AwaitNativeCopy => sink::await_native_copy(task).await.map(|()| Outcome::Done),
            Command::Finish { source, parallel } => {
                let sequences = link(source).sequences().await?;
                let finished = sink::finish(task, sequences, parallel).await;
                finished.map(|(findings, missing)| Outcome::Finished { findings, missing })
            }
            Command::RebuildMissing => sink::rebuild(task).await.map(Outcome::Rebuilt),
            Command::ProveTarget => {
                let (parts, rows, bytes) = sink::totals(task).await?;
                Ok(Outcome::Totals { parts, rows, bytes })
            }
            Command::ReleaseTarget => {
                self.reports.forget(job);
                sink::release(task).await.map(|()| Outcome::Done)
            }
            Command::CleanupTarget { data } => {
                self.reports.forget(job);
                sink::cleanup(task, data).await.map(Outcome::Warned)
            }
            other => Err(misdirected(&other)),
        }
    }

    /// With a source that was told to describe itself to this node.
    async fn compare(&self, task: &Task, command: Command) -> Result<Outcome, Fault> {
        let links = &self.telemetry.links;
        let link = |source| Link::new(Arc::clone(&self.endpoint), source, task.job, links);
        let review = match command {
            Command::CompareSchemas { source, filter } => {
                let link = link(source);
                let described = link.described().await?;
                sink::compare_schemas(task, link.source(), &described, &filter).await?
            }
            Command::CompareReplicated {
                source,
                filter,
                replication,
            } => {
                let described = link(source).described().await?;
                sink::compare_replicated(task, &described, &filter, replication).await?
            }
            other => return Err(misdirected(&other)),
        };
        Ok(Outcome::Reviewed(Box::new(review)))
    }

    async fn describe(
        &self,
        filter: &TableFilter,
        cursor: Option<SchemaCursor>,
    ) -> Result<Outcome, Fault> {
        let (page, next) = match cursor {
            Some(cursor) => self.readings.go_on(cursor)?,
            None => {
                let read = catalog::describe(&self.conninfo, filter).await;
                let schema = read.map_err(|error| error.to_fault(&self.node))?;
                self.readings.begin(schema.into_pages())
            }
        };
        let page = Box::new(page);
        Ok(Outcome::SchemaPage { page, next })
    }

    /// What the source's agent says of itself. That it cannot be reached is a fact like others.
    async fn ask_peer(&self, link: &Link) -> Result<PeerFacts, Fault> {
        match link.ping().await {
            Ok(ping) => Ok(PeerFacts {
                link: Ok(ping.rtt),
                clock_ahead: ping.clock_ahead,
                conninfo: Some(link.conninfo().await?),
                schema: link.described().await?,
                settings: link.settings().await?,
            }),
            Err(fault) => Ok(PeerFacts {
                link: Err(fault.message),
                clock_ahead: 0.0,
                conninfo: None,
                schema: Schema::default(),
                settings: Vec::new(),
            }),
        }
    }
}

async fn subscribe(
    task: &Task,
    link: &Link,
    start: SubscriptionStart,
    origin: ChangeOrigin,
) -> Result<Outcome, Fault> {
    let conninfo = link.conninfo().await?;
    let sync_slots = sink::subscribe(task, &conninfo, start, origin).await?;
    if let SubscriptionStart::AtSlot(lsn) | SubscriptionStart::AtOrigin(lsn) = start {
        tracing::info!(job_id = %task.job, %lsn, "subscribed");
    }
    let subscribed = |sync_slots| Outcome::Subscribed { sync_slots };
    Ok(sync_slots.map_or(Outcome::Done, subscribed))
}

/// How long a cancelled command gets to tell PostgreSQL and clean up behind itself.
const GRACE: std::time::Duration = std::time::Duration::from_secs(8);

fn opened(open: &source::OpenSnapshot) -> Result<Outcome, Fault> {
    let tables = u32::try_from(open.tables().len())
        .map_err(|_| Fault::new(FaultKind::Failed, "more tables than PostgreSQL can hold"))?;
    Ok(Outcome::SourceOpened {
        lsn: open.lsn(),
        tables,
        parts: open.parts(),
    })
}

fn misdirected(command: &Command) -> Fault {
    // `perform` sends each command to its own end; reaching this is our mistake, not the peer's.
    Fault::new(
        FaultKind::Failed,
        format!("no way to do {command:?} on this end"),
    )
}
