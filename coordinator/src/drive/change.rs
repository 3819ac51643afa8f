//! Orders that change which tables a node follows: `tables add` and `tables drop`.
//!
//! The node's job, which has ended, stays its job; the one that changes it runs beside that
//! ([`NodeRecord::change`]). When it has succeeded, the filter of the former tells which tables the node has.

use jiff::Timestamp;
use steep_protocol::message::agent::NodeCommand;
use steep_protocol::message::handover::{Replication, SlotOwner};
use steep_protocol::message::job::{
    AbsentTables, Confirmation, ExistingRows, JobSpec, Method, TableFilter,
};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::tables::{Adding, CHANGED_MAX, Change, ChangeSpec, Followed};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, SnapshotId, TableName, limits};

use super::log::Note;
use super::query::Purpose;
use super::requests::unreadable;
use super::{Answer, Driver, Ticket};
use crate::job::change::Changing;
use crate::job::{COMMANDS_PER_JOB, Job, Stage, Step};
use crate::store::{NodeRecord, Store, Write};

impl<S: Store> Driver<S> {
    /// Starts a job that changes the tables of a node that follows.
    pub(super) fn change_tables(
        &mut self,
        spec: ChangeSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<JobId, Fault> {
        let after = self.next_event - 1;
        let id = self.begin_change(spec, operator, now)?;
        let jobs = self.follow(id, now).into_iter().collect();
        self.answer(ticket, Ok(Answer::Accepted { jobs, after }));
        Ok(id)
    }

    /// Asks the source for the tables of the node's replication.
    pub(super) fn list_tables(
        &mut self,
        node: &NodeId,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.known(node)?;
        let record = &self.nodes[node];
        let follows = matches!(
            record.state,
            NodeState::Synchronized | NodeState::Diverged | NodeState::Reinitializing
        );
        let (true, Some(job), Some(replication), Some(source)) = (
            follows,
            record.job,
            record.replication(),
            record.source.clone(),
        ) else {
            return Err(self.follows_nobody(node));
        };
        let stored = self.store.job(job).map_err(unreadable)?;
        let filter = stored.map_or_else(TableFilter::default, |stored| stored.job.spec.filter);
        self.check_query(&source)?;
        let command = NodeCommand::ListTables {
            replication,
            filter,
        };
        self.begin_query(&source, command, Purpose::ListTables(ticket), now);
        Ok(())
    }

    /// Starts the job, if the node's state allows it.
    pub(super) fn begin_change(
        &mut self,
        spec: ChangeSpec,
        operator: &str,
        now: Timestamp,
    ) -> Result<JobId, Fault> {
        let ChangeSpec {
            node,
            mut tables,
            change,
        } = spec;
        tables.sort();
        tables.dedup();
        self.check_change(&node, &tables)?;
        let record = self.nodes[&node].clone();
        let (Some(base), Some(source)) = (record.job, record.source.clone()) else {
            return Err(self.follows_nobody(&node));
        };
        if self.are_merged(&node, &source) {
            let text =
                format!("{node} and {source} are merged: a table would have to be merged too");
            let hint = format!(
                "end the merge with steep-repl detach --node {node} and --node {source}, then merge them anew with all tables"
            );
            return Err(Fault::new(FaultKind::Failed, text).on(&node).hint(hint));
        }
        self.check_online(&source)?;
        self.check_online(&node)?;
        let former = self.store.job(base).map_err(unreadable)?;
        let former = former.map(|stored| stored.job);
        let mut job_spec = former.as_ref().map_or_else(
            || JobSpec::new(source.clone(), node.clone()),
            |former| former.spec.clone(),
        );
        let filter = match change {
            Change::Add(_) => job_spec.filter.with(&tables),
            Change::Drop => job_spec.filter.without(&tables),
        };
        let replication = self.followed_by(&record, (base, former.as_ref()))?;
        let followed = Followed {
            origin: origin(&record, former.as_ref(), &replication),
            replication,
            filter,
            complete: record.complete.iter().map(|c| c.table.clone()).collect(),
        };
        job_spec.filter = TableFilter::only(tables.clone());
        job_spec.existing = ExistingRows::Refuse;
        job_spec.confirmation = Confirmation::Given;
        job_spec.absent = AbsentTables::Created;
        job_spec.method = match change {
            Change::Add(adding) => add(&mut job_spec, adding)?,
            Change::Drop => Method::Drop,
        };
        let id = self.new_job_id();
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut job = Job::new(id, job_spec, operator, first, now);
        if job.spec.method == Method::Drop {
            job.stage = Stage::Working(Step::Leave);
        }
        job.change = Some(Changing::new(base, followed, tables));
        let text = format!("{node} from {source}, by {operator}");
        let note = Note::info("init.started", text)
            .job(&job)
            .field("operator", operator)
            .field("method", job.spec.method.name())
            .field("parallel", job.spec.parallel);
        self.start(job, note, now);
        Ok(id)
    }

    /// Refuses by the form of the request and the state of the node.
    fn check_change(&self, node: &NodeId, tables: &[TableName]) -> Result<(), Fault> {
        if tables.is_empty() || tables.len() > CHANGED_MAX {
            let text = format!("name 1 to {CHANGED_MAX} tables, not {}", tables.len());
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        self.known(node)?;
        let state = self.state_of(node);
        if let Some(id) = self.live_job(node) {
            let text = format!("a job of it is running or being cleaned up ({state}, job {id})");
            let hint = format!(
                "follow it with steep-repl init progress --node {node} --follow, and try again when it has ended"
            );
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        self.check_follows(node)?;
        if let Some(lost) = &self.nodes[node].lost {
            let text = format!("it does not follow its source completely any more: {lost}");
            let hint =
                "tables can only join or leave a replication that works: initialise the node again";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        self.check_rebuilding(node)
    }

    /// Refuses a node that is no replica.
    pub(super) fn check_follows(&self, node: &NodeId) -> Result<(), Fault> {
        match self.state_of(node) {
            NodeState::Synchronized | NodeState::Diverged | NodeState::Reinitializing => Ok(()),
            NodeState::Uninitialized
            | NodeState::Preparing
            | NodeState::Copying
            | NodeState::CatchingUp
            | NodeState::Failed => Err(self.follows_nobody(node)),
        }
    }

    fn follows_nobody(&self, node: &NodeId) -> Fault {
        let text = format!("it follows no source: it is {}", self.state_of(node));
        let hint =
            "tables join or leave the replication of a node that is synchronized or diverged";
        Fault::new(FaultKind::Failed, text).on(node).hint(hint)
    }

    /// What the node follows by. Refuses a publication that others follow too.
    fn followed_by(
        &self,
        record: &NodeRecord,
        (base, former): (JobId, Option<&Job>),
    ) -> Result<Replication, Fault> {
        let name = record.replication().unwrap_or(base);
        let noted = || match &record.slot {
            Some(slot) => Replication {
                id: name,
                slot: slot.clone(),
            },
            None => Replication::of(name),
        };
        let replication = former.map_or_else(noted, Job::replication);
        let shares = |other: &&NodeRecord| {
            other.id != record.id && other.replication() == Some(replication.id)
        };
        let mut others: Vec<String> = self
            .nodes
            .values()
            .filter(shares)
            .map(|other| other.id.to_string())
            .collect();
        if let Some(SlotOwner::Made(snapshot, _)) = SlotOwner::of(replication.slot.as_str())
            && self.snapshots.contains_key(&snapshot)
            && replication.id == JobId(snapshot.0)
        {
            others.push(described(snapshot));
        }
        if others.is_empty() {
            return Ok(replication);
        }
        let text = format!(
            "its publication {} belongs to others too: {}",
            replication.name(),
            others.join(", ")
        );
        let hint = "nodes that were made from one snapshot share its publication, and tables cannot join or leave it for one of them";
        Err(Fault::new(FaultKind::Failed, text)
            .on(&record.id)
            .hint(hint))
    }

    /// The job has succeeded: from now on the node has those tables.
    pub(super) fn tables_changed(&mut self, id: JobId) {
        let Some(change) = self.jobs.get(&id).and_then(|live| live.job.change.clone()) else {
            return;
        };
        match self.store.job(change.base) {
            Ok(Some(mut stored)) => {
                stored.job.spec.filter = change.followed.filter;
                self.out.writes.push(Write::Job(Box::new(stored.job)));
            }
            // That of an adopted replica is unknown.
            Ok(None) => {}
            Err(error) => {
                tracing::error!(job_id = %change.base, %error, "which tables the node follows could not be stored");
            }
        }
    }
}

fn described(snapshot: SnapshotId) -> String {
    format!("snapshot {snapshot}")
}

/// How tables are added.
fn add(spec: &mut JobSpec, adding: Adding) -> Result<Method, Fault> {
    spec.schema_mode = adding.schema_mode;
    spec.existing = adding.existing;
    spec.max_rate = adding.max_rate.or(spec.max_rate);
    if let Some(parallel) = adding.parallel {
        if !(1..=limits::WORKERS_MAX).contains(&parallel) {
            let text = format!("use 1 to {} parallel workers", limits::WORKERS_MAX);
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        spec.parallel = parallel;
    }
    Ok(Method::Add)
}

/// Which of the source's changes the node's subscription requests: what its agent has seen, or its job said.
fn origin(record: &NodeRecord, former: Option<&Job>, replication: &Replication) -> ChangeOrigin {
    let name = replication.name();
    let lineage = record.lineage.as_deref();
    let seen = lineage.and_then(|lineage| {
        let mut all = lineage.subscriptions.iter();
        all.find(|subscription| subscription.name == name.as_str())
    });
    let said = former.map_or(ChangeOrigin::Any, |former| former.origin);
    seen.map_or(said, |subscription| subscription.origin)
}
