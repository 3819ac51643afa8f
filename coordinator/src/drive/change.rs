//! Orders about some tables of a node that follows: `tables add`, `tables drop` and `reinit`.
//!
//! The node's job, which has ended, stays its job; the one that changes it runs beside that
//! ([`NodeRecord::change`]). When it has succeeded, the filter of the former tells which tables the node has.

mod anew;

use anew::Extent;
use jiff::Timestamp;
use steep_protocol::message::agent::NodeCommand;
use steep_protocol::message::handover::{Replication, SlotOwner};
use steep_protocol::message::job::{
    AbsentTables, Confirmation, ExistingRows, JobSpec, Method, SchemaMode, TableFilter,
};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::tables::{
    Adding, CHANGED_MAX, Carried, Change, ChangeSpec, Followed, FollowedOutcome, TableList,
};
use steep_protocol::{
    ByteCount, Fault, FaultKind, JobId, NodeId, NodeState, SnapshotId, TableName, limits,
};

use super::log::Note;
use super::query::Purpose;
use super::requests::unreadable;
use super::{Answer, Driver, Ticket};
use crate::job::change::{Changing, Joining};
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
        let id = self.begin_change(spec, (operator, Confirmation::Given), now)?;
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
        let purpose = Purpose::ListTables(node.clone(), ticket);
        self.begin_query(&source, command, purpose, now);
        Ok(())
    }

    /// The source has listed them. It does not know what the node has not subscribed to yet.
    pub(super) fn tables_listed(&self, node: &NodeId, mut listed: TableList) -> TableList {
        let untaken = self.untaken(node);
        for one in &mut listed.tables {
            if one.carried == Carried::Followed && untaken.contains(&one.table) {
                one.carried = Carried::NotFollowed;
                listed.followed = listed.followed.saturating_sub(1);
                listed.not_followed += 1;
            }
        }
        let place = |carried| match carried {
            Carried::NotFollowed => 0,
            Carried::Followed => 1,
            Carried::LeftOut => 2,
        };
        listed.tables.sort_by_key(|one| place(one.carried));
        listed
    }

    /// Before tables are dropped, sees that the node follows them.
    pub(super) fn drop_tables(
        &mut self,
        spec: ChangeSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_change(&spec.node, &spec.tables, Extent::Tables)?;
        let record = &self.nodes[&spec.node];
        let (Some(replication), Some(source)) = (record.replication(), record.source.clone())
        else {
            return Err(self.follows_nobody(&spec.node));
        };
        self.check_online(&spec.node)?;
        self.check_query(&source)?;
        let command = NodeCommand::CheckFollowed {
            replication,
            tables: spec.tables.clone(),
        };
        let purpose = Purpose::CheckFollowed(Box::new(spec), operator.to_owned(), ticket);
        self.begin_query(&source, command, purpose, now);
        Ok(())
    }

    /// The node follows the tables: they are dropped.
    pub(super) fn drop_followed(
        &mut self,
        spec: ChangeSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) {
        if let Err(fault) = self.change_tables(spec, operator, ticket.clone(), now) {
            self.answer(ticket, Err(fault));
        }
    }

    /// Starts the job, if the node's state allows it.
    pub(super) fn begin_change(
        &mut self,
        spec: ChangeSpec,
        (operator, confirmation): (&str, Confirmation),
        now: Timestamp,
    ) -> Result<JobId, Fault> {
        let ChangeSpec {
            node,
            mut tables,
            change,
        } = spec;
        tables.sort();
        tables.dedup();
        let extent = Extent::of(&tables, &change);
        if let (Extent::Node(reinit), NodeState::Failed) = (extent, self.state_of(&node)) {
            return self.start_over(&node, reinit, operator, now);
        }
        self.check_change(&node, &tables, extent)?;
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
        let filter = match &change {
            Change::Add(_) => job_spec.filter.clone().with(&tables),
            Change::Drop => job_spec.filter.clone().without(&tables),
            Change::Reinit(reinit) => {
                self.check_source(reinit, &node)?;
                job_spec.filter.clone()
            }
        };
        let replication = followed_by(&record, (base, former.as_ref()));
        let outcome = match extent {
            Extent::Tables => {
                self.check_own(&record, &replication)?;
                FollowedOutcome::GoesOn
            }
            Extent::Node(_) => FollowedOutcome::Replaced,
        };
        let followed = Followed {
            origin: origin(&record, former.as_ref(), &replication),
            replication,
            filter,
            complete: record.complete.iter().map(|c| c.table.clone()).collect(),
            outcome,
        };
        if outcome == FollowedOutcome::GoesOn {
            job_spec.filter = TableFilter::only(tables.clone());
        }
        job_spec.existing = ExistingRows::Refuse;
        job_spec.confirmation = confirmation;
        job_spec.absent = AbsentTables::Created;
        job_spec.method = match change {
            Change::Add(adding) => add(&mut job_spec, adding)?,
            Change::Drop => Method::Drop,
            Change::Reinit(reinit) => {
                job_spec.absent = AbsentTables::Differ;
                job_spec.schema_mode = SchemaMode::Manual;
                terms(&mut job_spec, (reinit.parallel, reinit.max_rate))?;
                Method::Reinit
            }
        };
        let id = self.new_job_id();
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut job = Job::new(id, job_spec, operator, first, now);
        if job.spec.method == Method::Drop {
            job.stage = Stage::Working(Step::Leave);
        }
        job.change = Some(Changing {
            diverged: (record.state == NodeState::Diverged)
                .then(|| record.error_message.clone().unwrap_or_default()),
            ..Changing::new(base, followed, tables)
        });
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
    fn check_change(
        &self,
        node: &NodeId,
        tables: &[TableName],
        extent: Extent<'_>,
    ) -> Result<(), Fault> {
        let whole = matches!(extent, Extent::Node(_));
        if tables.is_empty() && !whole || tables.len() > CHANGED_MAX {
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
        if let Some(lost) = self.nodes[node].lost.as_ref().filter(|_| !whole) {
            let text = format!("it does not follow its source completely any more: {lost}");
            let hint = format!(
                "tables can only join, leave or be copied again one by one in a replication that works: steep-repl reinit --node {node} --full copies all of them, under a new slot"
            );
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        if whole && self.nodes[node].lost.is_none() {
            let text = "its replication works, so its tables are copied again by name";
            return Err(Fault::new(FaultKind::BadRequest, text).on(node));
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
        let state = self.state_of(node);
        let text = format!("it follows no source: it is {state}");
        let next = match state {
            NodeState::Failed => {
                format!("steep-repl reinit --node {node} --full starts its init over")
            }
            _ => format!("steep-repl init {node} --from SOURCE --force copies all of it"),
        };
        let hint = format!(
            "tables join, leave or are copied again where a node is synchronized or diverged; {next}"
        );
        Fault::new(FaultKind::Failed, text).on(node).hint(hint)
    }

    /// Refuses a publication that others follow too.
    fn check_own(&self, record: &NodeRecord, replication: &Replication) -> Result<(), Fault> {
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
            return Ok(());
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
    pub(super) fn tables_changed(&mut self, id: JobId, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let change = live.job.change.clone();
        let (target, method) = (live.job.spec.target.clone(), live.job.spec.method);
        if let Some(change) = &change {
            self.keep_filter(change, change.followed.filter.clone());
        }
        if let (Some(change), Some(record)) = (change, self.nodes.get_mut(&target)) {
            let changed = |table: &TableName| change.tables.contains(table);
            record.appeared.retain(|table| !changed(table));
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        // Whether the rows are equal now, the next comparison says.
        if method == Method::Reinit
            && let Some(record) = self.nodes.get_mut(&target)
            && let Some(regular) = &mut record.verify
        {
            regular.next_at = now;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
    }

    /// A job that was to give tables new rows has ended otherwise. Returns what to do where it had taken them out of the
    /// node's replication: changes may be missing, so they cannot join it again.
    pub(super) fn tables_unfollowed(&mut self, id: JobId) -> Option<String> {
        let live = self.jobs.get(&id)?;
        let change = live.job.change.clone()?;
        if live.job.spec.method != Method::Reinit || change.joining == Joining::NotYet {
            return None;
        }
        let node = live.job.spec.target.clone();
        if live.job.replaces() {
            return Some(format!(
                "{node} follows nothing any more, since its old subscription is dropped: steep-repl reinit --node {node} --full copies it again"
            ));
        }
        let filter = change.followed.filter.clone().without(&change.tables);
        self.keep_filter(&change, filter);
        let named = change.tables.iter().take(NAMED).map(ToString::to_string);
        let named = named.collect::<Vec<_>>().join(" ");
        let more = match change.tables.len() > NAMED {
            true => " …",
            false => "",
        };
        Some(format!(
            "{node} no longer follows them, since they had left its replication: steep-repl tables add --node {node} {named}{more} --force copies them and follows them again"
        ))
    }

    /// Notes which tables the node's replication has.
    fn keep_filter(&mut self, change: &Changing, filter: TableFilter) {
        match self.store.job(change.base) {
            Ok(Some(mut stored)) => {
                stored.job.spec.filter = filter;
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

/// Tables named in a hint.
const NAMED: usize = 5;

fn described(snapshot: SnapshotId) -> String {
    format!("snapshot {snapshot}")
}

/// How tables are added.
fn add(spec: &mut JobSpec, adding: Adding) -> Result<Method, Fault> {
    spec.schema_mode = adding.schema_mode;
    spec.existing = adding.existing;
    terms(spec, (adding.parallel, adding.max_rate))?;
    Ok(Method::Add)
}

/// How fast tables are copied, where that is not as at first.
fn terms(
    spec: &mut JobSpec,
    (parallel, max_rate): (Option<u8>, Option<ByteCount>),
) -> Result<(), Fault> {
    spec.max_rate = max_rate.or(spec.max_rate);
    if let Some(parallel) = parallel {
        if !(1..=limits::WORKERS_MAX).contains(&parallel) {
            let text = format!("use 1 to {} parallel workers", limits::WORKERS_MAX);
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        spec.parallel = parallel;
    }
    Ok(())
}

/// What the node follows by.
fn followed_by(record: &NodeRecord, (base, former): (JobId, Option<&Job>)) -> Replication {
    let name = record.replication().unwrap_or(base);
    let noted = || match &record.slot {
        Some(slot) => Replication {
            id: name,
            slot: slot.clone(),
        },
        None => Replication::of(name),
    };
    former.map_or_else(noted, Job::replication)
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
