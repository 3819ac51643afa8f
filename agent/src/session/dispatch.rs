//! From a command to the function that runs it. Decides nothing.

use std::path::PathBuf;
use std::sync::Arc;

use steep_archive::Keys;
use steep_protocol::message::agent::{
    Command, Comparison, CopyParts, Outcome, PeerAddress, SlotOrigin, SourceCommand, TargetCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::repair::RepairRows;
use steep_protocol::message::schema::SchemaCursor;
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::message::verify::VerifyTables;
use steep_protocol::quic::Endpoint;
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeId, TableName};
use steep_schema::Schema;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::opening::opened;
use super::readings::Readings;
use super::report::Reports;
use super::steps::{prepare, subscribe};
use super::told::Told;
use crate::budget::Budget;
use crate::deferred::build::Purpose;
use crate::facts::{self, PeerFacts};
use crate::kept;
use crate::peer::connection::SourceAgent;
use crate::peer::conversation::Remote;
use crate::peer::fetch::copy;
use crate::peer::rows::Rows;
use crate::pg::{Conninfo, catalog};
use crate::replication::join::Leaving;
use crate::replication::{fence, prepared};
use crate::snapshot::stored::Holder;
use crate::snapshot::stored::StoredSnapshot;
use crate::snapshot::{self, SourceJobs, slot};
use crate::stored::{self, Reader, carried::Carried};
use crate::target;
use crate::task::{CopyTerms, Patience, Progress, Task};
use crate::telemetry::Telemetry;
use crate::verify::{compare_rows, repair_rows};

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) node: NodeId,
    pub(crate) conninfo: Arc<Conninfo>,
    pub(crate) jobs: Arc<SourceJobs>,
    pub(crate) carried: Carried,
    /// For stored snapshots.
    pub(crate) keys: Keys,
    pub(crate) reports: Arc<Reports>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) budget: Budget,
    pub(crate) kept: Arc<kept::Store>,
    /// For all index builds together, where the operator sets it.
    pub(crate) index_memory: Option<ByteCount>,
    /// Where snapshots are spooled.
    pub(crate) spool: Option<PathBuf>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) readings: Readings,
    /// Notified after each step of a switchover.
    pub(crate) switchover_steps: Arc<Notify>,
    pub(crate) drain: CancellationToken,
}

impl Agent {
    /// Runs the command until it is done or cancelled.
    pub(crate) async fn fulfil(
        &self,
        (job, replication): (JobId, Replication),
        command: Command,
        terms: watch::Receiver<CopyTerms>,
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
            terms,
        };
        let running = self.telemetry.command_began();
        let _attended = self.jobs.locks().attend();
        let told = Told::began(&self.node, job, &command);
        // Boxed: otherwise every command would be as large as the largest future.
        let work = Box::pin(self.perform(&task, command));
        let outcome = tokio::select! {
            // The work watches the token itself and cancels its statement; this is for work that does not.
            () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => {
                Err(Fault::new(FaultKind::Cancelled, "cancelled"))
            }
            outcome = work => outcome,
        };
        running.ended(told.ended(outcome.as_ref().err()));
        outcome.map_err(|fault| {
            if fault.node.is_none() {
                fault.on(&self.node)
            } else {
                fault
            }
        })
    }

    async fn perform(&self, task: &Task, command: Command) -> Result<Outcome, Fault> {
        match command {
            Command::Source(command) => self.as_source(task, command).await,
            Command::Target(command) => self.as_target(task, command).await,
            Command::Node(command) => self.as_node(task, command).await,
        }
    }

    async fn as_source(&self, task: &Task, command: SourceCommand) -> Result<Outcome, Fault> {
        let job = task.job;
        match command {
            SourceCommand::Gather {
                target,
                filter,
                slot,
            } => {
                self.jobs.admit(job, target, filter.clone(), None);
                let mut facts = facts::source(task, &filter).await?;
                facts.spool_room = self.spool.as_deref().and_then(stored::room::room);
                facts.snapshot_key = self.keys.facts().cloned();
                if slot == SlotOrigin::Prepared {
                    facts.slot = Some(prepared::slot_facts(task, &filter).await?);
                }
                return Ok(Outcome::SourceFacts(Box::new(facts)));
            }
            SourceCommand::Admit {
                target,
                filter,
                replicated,
            } => self.jobs.admit(job, target, filter, replicated),
            SourceCommand::AdmitVerify { target, access } => {
                self.jobs.admit_comparison(job, target, access);
            }
            SourceCommand::AdmitChange {
                target,
                filter,
                followed,
            } => self.jobs.admit_change(job, target, filter, *followed),
            SourceCommand::Open(request) => return self.open(task, request).await,
            SourceCommand::OpenFollowed(request) => return self.open_followed(task, request).await,
            SourceCommand::CloseSnapshot => {
                if let Some(open) = self.jobs.released(job) {
                    open.close().await;
                }
            }
            SourceCommand::AwaitFence { earlier } => {
                for epoch in earlier {
                    fence::await_fence(&task.of(epoch)).await?;
                }
                let lsn = fence::await_fence(task).await?;
                return Ok(Outcome::FencePassed { lsn });
            }
            SourceCommand::AwaitFenceAfterWriters { earlier } => {
                snapshot::await_writers(task).await?;
                let command = SourceCommand::AwaitFence { earlier };
                return Box::pin(self.as_source(task, command)).await;
            }
            SourceCommand::Prove => {
                let known = self.jobs.get(job).and_then(|entry| entry.totals());
                let (parts, rows, bytes) = known.ok_or_else(|| {
                    Fault::new(FaultKind::Failed, "this agent no longer knows what it sent")
                        .hint("the agent was restarted during the job: run init again")
                })?;
                return Ok(Outcome::Totals { parts, rows, bytes });
            }
            SourceCommand::Release => self.forget(job).await,
            SourceCommand::Cleanup {
                sync_slots,
                earlier,
            } => {
                let entry = self.jobs.get(job);
                self.forget(job).await;
                if let Some(entry) = entry
                    && let Some(open) = entry.open
                {
                    open.left(&entry.target);
                }
                for epoch in earlier {
                    slot::cleanup(&task.of(epoch), None).await?;
                }
                slot::cleanup(task, sync_slots).await?;
            }
            SourceCommand::PrepareSlot { expires_seconds } => {
                let slot = prepared::prepare(task, expires_seconds).await?;
                return Ok(Outcome::SlotPrepared(Box::new(slot)));
            }
            SourceCommand::DropPrepared => prepared::drop_prepared(task).await?,
            SourceCommand::TakeSlot { target } => prepared::take(task, &target).await?,
            SourceCommand::Store(request) => {
                return self.store(task, request).await.map(Outcome::Sealed);
            }
            SourceCommand::VerifyStored { location } => {
                let verified = stored::check::verify(task, &location, &self.keys).await?;
                return Ok(Outcome::Verified(Box::new(verified)));
            }
            SourceCommand::DeleteSnapshot { location } => {
                self.forget(job).await;
                stored::check::delete(task, location.as_deref()).await?;
            }
            SourceCommand::ReturnSlot { target, used } => {
                self.forget(job).await;
                prepared::give_back(task, &target, used).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// From here on nobody may ask for the job, and no snapshot of its own is held (G7).
    pub(super) async fn forget(&self, job: JobId) {
        if let Some(open) = self.jobs.remove(job).and_then(|j| j.open) {
            open.close().await;
        }
        self.reports.forget(job);
    }

    async fn copy(&self, task: &Task, request: CopyParts) -> Result<Outcome, Fault> {
        let link = self.source_agent(request.source.clone(), task.job);
        let carried = self.carried(task.job, request.carried.as_ref()).await?;
        let rows = carried.map_or_else(|| Rows::Source(link.clone()), Rows::Carried);
        let (budget, kept) = (self.budget.clone(), &self.kept);
        copy(task, (link, rows), request, budget, kept).await?;
        Ok(Outcome::Done)
    }

    async fn as_target(&self, task: &Task, command: TargetCommand) -> Result<Outcome, Fault> {
        let job = task.job;
        match command {
            TargetCommand::Gather { source, filter } => {
                let peer = self.ask_peer(&self.source_agent(source, job)).await?;
                let mut facts = facts::target(task, &filter, peer).await?;
                facts.snapshot_key = self.keys.facts().cloned();
                Ok(Outcome::TargetFacts(Box::new(facts)))
            }
            TargetCommand::Open { carried } => {
                let text = "no snapshot was carried to it";
                let carried = self.carried(job, carried.as_ref()).await?;
                let carried = carried.ok_or_else(|| Fault::new(FaultKind::BadRequest, text))?;
                opened(&Holder::Stored(carried))
            }
            TargetCommand::Prepare(request) => {
                // Parts of an earlier epoch have other numbers.
                self.reports.forget(job);
                let link = self.source_agent(request.source.clone(), job);
                let carried = self.carried(job, request.carried.as_ref()).await?;
                let prepared = prepare(task, &link, carried.as_deref(), request);
                Box::pin(prepared).await.map(Outcome::Warned)
            }
            TargetCommand::PrepareShadows { prepare, changed } => {
                self.prepare_shadows(task, prepare, &changed).await
            }
            TargetCommand::Swap(changed) => self.swap(task, &changed).await,
            TargetCommand::Copy(request) => self.copy(task, request).await,
            TargetCommand::BuildIndexes { parallel, note } => {
                target::renew_note(task, note.as_deref()).await?;
                let built = target::build_indexes(task, parallel, Purpose::Replication);
                built.await.map(Outcome::Warned)
            }
            TargetCommand::BuildConstraints { parallel } => {
                let built = target::build_constraints(task, parallel, Purpose::Replication);
                built.await.map(Outcome::Warned)
            }
            TargetCommand::Subscribe {
                source,
                start,
                origin,
                earlier,
            } => {
                let link = self.source_agent(source, job);
                subscribe(task, &link, (start, origin), &earlier).await
            }
            TargetCommand::Fold {
                source,
                origin,
                earlier,
                note,
            } => {
                target::renew_note(task, note.as_deref()).await?;
                self.fold(task, source, (origin, &earlier)).await
            }
            TargetCommand::Join(changed) => self.join(task, &changed).await,
            TargetCommand::Leave(changed) => self.leave(task, &changed, Leaving::Ordered).await,
            TargetCommand::AwaitNativeCopy => {
                let copied = target::await_native_copy(task).await;
                copied.map(|()| Outcome::Done)
            }
            TargetCommand::Finish {
                source,
                parallel,
                sequences,
            } => self.finish(task, source, (parallel, sequences)).await,
            TargetCommand::Prove => target::totals(task)
                .await
                .map(|(parts, rows, bytes)| Outcome::Totals { parts, rows, bytes }),
            TargetCommand::Release => {
                self.reports.forget(job);
                self.carried.forget(job);
                target::release(task).await?;
                Ok(Outcome::Done)
            }
            TargetCommand::Cleanup {
                data,
                earlier,
                sequences,
                joined,
            } => {
                let what = (data, &earlier[..]);
                let cleaned = self.clean_up(task, what, sequences, joined.as_deref());
                Box::pin(cleaned).await
            }
            TargetCommand::RaiseSequences { source } => {
                let link = self.source_agent(source, job);
                let raised = target::raise_sequences(task, &link);
                raised.await.map(Outcome::SequencesRaised)
            }
            TargetCommand::Compare {
                source,
                filter,
                what,
            } => self.compare(task, source, (filter, what)).await,
            TargetCommand::Verify(request) => self.verify(task, (*request, Vec::new())).await,
            TargetCommand::VerifyRest(request, done) => self.verify(task, (*request, done)).await,
            TargetCommand::Repair(request) => self.repair(task, *request).await,
            TargetCommand::RebuildMissing => target::rebuild(task).await.map(Outcome::Rebuilt),
        }
    }

    async fn compare(
        &self,
        task: &Task,
        source: PeerAddress,
        (filter, what): (TableFilter, Comparison),
    ) -> Result<Outcome, Fault> {
        let link = self.source_agent(source, task.job);
        let described = link.described().await?;
        let review = match what {
            Comparison::Schemas => {
                target::compare_schemas(task, link.source(), &described, &filter).await?
            }
            Comparison::Replicated(replication) => {
                target::compare_replicated(task, &described, &filter, replication).await?
            }
        };
        Ok(Outcome::Reviewed(Box::new(review)))
    }

    /// For rows of the source.
    fn remote(&self, task: &Task, source: PeerAddress) -> Remote {
        Remote {
            agent: self.source_agent(source, task.job),
            cancel: task.cancel.clone(),
        }
    }

    async fn repair(&self, task: &Task, request: RepairRows) -> Result<Outcome, Fault> {
        let remote = self.remote(task, request.source.clone());
        let repaired = Box::pin(repair_rows(task, remote, request)).await;
        repaired.map(|report| Outcome::Repaired(Box::new(report)))
    }

    async fn verify(
        &self,
        task: &Task,
        request: (VerifyTables, Vec<TableName>),
    ) -> Result<Outcome, Fault> {
        let remote = self.remote(task, request.0.source.clone());
        let compared = Box::pin(compare_rows(task, remote, request)).await;
        self.reports.forget(task.job);
        Ok(Outcome::Compared(Box::new(compared?)))
    }

    /// A command has come again. It may name other targets that share the snapshot.
    pub(crate) fn repeated(&self, command: &Command) {
        if let Command::Target(TargetCommand::Copy(request)) = command
            && let Some(shared) = &request.shared
        {
            self.kept.name_peers(shared);
        }
    }

    /// The stored snapshot that the job loads from, if it was carried here.
    async fn carried(
        &self,
        job: JobId,
        place: Option<&StoredPlace>,
    ) -> Result<Option<Arc<StoredSnapshot>>, Fault> {
        let Some(place) = place else { return Ok(None) };
        self.carried
            .open(job, place, &self.reader())
            .await
            .map(Some)
    }

    /// How this agent reads stored snapshots.
    pub(super) fn reader(&self) -> Reader {
        Reader {
            node: self.node.clone(),
            keys: self.keys.clone(),
        }
    }

    /// Whose plan the coordinator hears of: that of what is open here for the job.
    pub(crate) fn opened(&self, job: JobId) -> Option<Holder> {
        let served = self.jobs.get(job).and_then(|j| j.open);
        served.or_else(|| self.carried.get(job).map(Holder::Stored))
    }

    pub(super) fn source_agent(&self, source: PeerAddress, job: JobId) -> SourceAgent {
        let links = &self.telemetry.links;
        SourceAgent::new(Arc::clone(&self.endpoint), source, job, links)
    }

    pub(super) async fn describe(
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

    /// What the source's agent says of itself. An unreachable agent is a fact, not an error.
    async fn ask_peer(&self, link: &SourceAgent) -> Result<PeerFacts, Fault> {
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

/// How long a cancelled command has to cancel its statement and clean up.
const GRACE: std::time::Duration = std::time::Duration::from_secs(8);
