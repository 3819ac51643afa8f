//! The audit trail of operators' orders: all of them in the store, and accepted ones in the audit logs
//! of the nodes concerned.
//!
//! An accepted entry is sent to a node in every session, and every minute, until its agent confirms
//! that it is in `steep_repl.audit_log`.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::adjust::{Adjustment, MaxRate};
use steep_protocol::message::agent::CoordinatorMessage;
use steep_protocol::message::api::{AbsentSource, Afterwards, AuditView, InitRequest, Order};
use steep_protocol::message::handover::{CompleteSpec, SchemaCheck, SlotName};
use steep_protocol::message::job::{
    CancelledData, Confirmation, ExistingRows, JobSpec, SchemaMode,
};
use steep_protocol::message::repair::RepairSpec;
use steep_protocol::message::switchover::{Lacking, RowsCheck, SwitchoverSpec, WayBack};
use steep_protocol::message::tables::Change;
use steep_protocol::message::verify::{RowValues, ScheduleSpec};
use steep_protocol::{Fault, JobId, NodeId};

use super::verify::command_of;
use super::{Driver, Operator};
use crate::job::time::after;
use crate::store::{AuditDue, Store, Write};

/// How often unconfirmed entries are sent again.
const AGAIN_EVERY: Duration = Duration::from_secs(60);

/// Maximum number of unconfirmed entries of a node; newer ones are only in the store (G8).
const DUE_MAX: usize = 1_000;

/// An order about one node.
#[derive(Debug, Clone)]
pub(super) struct AuditEntry {
    action: &'static str,
    node: NodeId,
    source: Option<NodeId>,
    arguments: Vec<(String, String)>,
}

impl AuditEntry {
    /// One entry for each job of an order, or a single one.
    pub(super) fn of(order: &Order) -> Vec<Self> {
        let (action, node) = match order {
            Order::Init(request) => return Self::init(request),
            Order::Cancel { node, .. } => ("cancel", node),
            Order::GiveUp {
                node, afterwards, ..
            } => match afterwards {
                Afterwards::Keep => ("cancel", node),
                Afterwards::Forget => ("nodes.remove", node),
            },
            Order::Capture { node, .. } => ("schema.capture", node),
            Order::Prepare(spec) => ("init.prepare", &spec.node),
            Order::DropPrepared { node, .. } => ("init.prepare", node),
            Order::Rebuild { node } => ("init.rebuild", node),
            Order::Adjust { node, .. } => ("init.adjust", node),
            Order::Detach(spec) => ("detach", &spec.node),
            Order::Switchover(spec) => ("switchover", &spec.to),
            Order::SetNewTables { node, .. } => ("tables.policy", node),
            Order::ChangeTables(spec) => match &spec.change {
                Change::Add(_) => ("tables.add", &spec.node),
                Change::Drop => ("tables.drop", &spec.node),
                Change::Reinit(_) => ("reinit", &spec.node),
            },
            Order::Generate(spec) => ("snapshot.generate", &spec.source),
            Order::Verify(spec) | Order::VerifyRest { spec, .. } => {
                (command_of(spec.comparing), &spec.node_b)
            }
            Order::Repair(spec) => ("repair", &spec.node_b),
            Order::Merge(spec) => ("merge", &spec.node_a),
            Order::MergePage(spec) => ("merge", &spec.node_b),
            Order::ScheduleVerify(spec) => ("verify.schedule", &spec.node_b),
            // Without its snapshot, nobody knows which node it is about.
            Order::DeleteSnapshot { .. } => return Vec::new(),
        };
        let keeps = |data: &CancelledData| (*data == CancelledData::Keep).to_string();
        let arguments = match order {
            Order::Init(_) | Order::Rebuild { .. } => Vec::new(),
            Order::Adjust { change, .. } => adjust_arguments(*change),
            Order::Detach(spec) => {
                let wait = spec
                    .wait_seconds
                    .map(|seconds| ("wait", format!("{seconds}s")));
                let force =
                    (spec.absent == AbsentSource::LeaveBehind).then(|| ("force", true.to_string()));
                wait.into_iter().chain(force).collect()
            }
            Order::Switchover(spec) => switchover_arguments(spec),
            Order::SetNewTables { policy, .. } => vec![("new_tables", policy.name().to_owned())],
            Order::ChangeTables(spec) => vec![("tables", listed(spec.tables.iter()))],
            Order::Cancel { data, .. } => vec![("keep_data", keeps(data))],
            Order::GiveUp { data, .. } => {
                vec![
                    ("keep_data", keeps(data)),
                    ("force_cleanup", true.to_string()),
                ]
            }
            Order::Capture { peer, .. } => {
                peer.iter().map(|peer| ("peer", peer.to_string())).collect()
            }
            Order::Prepare(spec) => vec![
                ("slot", spec.slot.to_string()),
                ("expires", format!("{}s", spec.expires_seconds)),
            ],
            Order::Generate(spec) => {
                let output = spec
                    .store
                    .iter()
                    .map(|store| ("output", store.location.clone()));
                let expires = ("expires", format!("{}s", spec.expires_seconds));
                let keep = spec.keep.iter().map(|keep| ("keep", keep.to_string()));
                output.chain([expires]).chain(keep).collect()
            }
            Order::Verify(spec) | Order::VerifyRest { spec, .. } => {
                let shown = (spec.values == RowValues::Shown).to_string();
                let tables = (!spec.tables.is_empty()).then(|| listed(spec.tables.iter()));
                let tables = tables.map(|tables| ("tables", tables));
                [("show_values", shown)].into_iter().chain(tables).collect()
            }
            Order::Repair(spec) | Order::MergePage(spec) => repair_arguments(spec),
            Order::Merge(spec) => vec![("sequence_ranges", spec.sequences.to_string())],
            Order::ScheduleVerify(spec) => schedule_arguments(spec),
            Order::DeleteSnapshot { .. } => Vec::new(),
            Order::DropPrepared { slot, .. } => {
                vec![("slot", slot.to_string()), ("drop", true.to_string())]
            }
        };
        let source = match order {
            Order::Capture { peer, .. } => peer.clone(),
            Order::Verify(spec) | Order::VerifyRest { spec, .. } => Some(spec.node_a.clone()),
            Order::Switchover(spec) => Some(spec.from.clone()),
            Order::Repair(spec) | Order::MergePage(spec) => Some(spec.node_a.clone()),
            Order::Merge(spec) => Some(spec.node_b.clone()),
            Order::ScheduleVerify(spec) => Some(spec.node_a.clone()),
            _ => None,
        };
        vec![Self {
            action,
            node: node.clone(),
            source,
            arguments: owned(arguments),
        }]
    }

    /// The nodes that it is about.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        [Some(&self.node), self.source.as_ref()]
            .into_iter()
            .flatten()
    }

    fn init(request: &InitRequest) -> Vec<Self> {
        let (action, backup) = match request {
            InitRequest::Copy(_) => ("init", Vec::new()),
            InitRequest::Resume(_) => ("init.resume", Vec::new()),
            InitRequest::Complete(spec) => ("init.complete", backup_arguments(spec)),
            InitRequest::Apply(spec) => {
                let snapshot = spec.snapshot.to_string();
                ("snapshot.apply", vec![("snapshot", snapshot)])
            }
        };
        let entry = |spec: &JobSpec| {
            let mut arguments = job_arguments(spec);
            arguments.extend(backup.clone());
            Self {
                action,
                node: spec.target.clone(),
                source: Some(spec.source.clone()),
                arguments: owned(arguments),
            }
        };
        request.specs().iter().map(entry).collect()
    }
}

fn switchover_arguments(spec: &SwitchoverSpec) -> Vec<Argument> {
    let set = |name, set: bool| set.then(|| (name, true.to_string()));
    let seconds = |name, seconds: u32| Some((name, format!("{seconds}s")));
    [
        set("reverse", spec.way_back == WayBack::Follow),
        set("verify", spec.rows == RowsCheck::Compared),
        set("force", spec.lacking == Lacking::Accepted),
        seconds("terminate_after", spec.terminate_after_seconds),
        seconds("max_stop", spec.max_stop_seconds),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Name and value.
type Argument = (&'static str, String);

fn schedule_arguments(spec: &ScheduleSpec) -> Vec<Argument> {
    let Some(schedule) = &spec.schedule else {
        return vec![("every", "off".to_owned())];
    };
    let tables = (!schedule.tables.is_empty()).then(|| listed(schedule.tables.iter()));
    let tables = tables.map(|tables| ("tables", tables));
    let every = ("every", format!("{}s", schedule.every_seconds));
    [every].into_iter().chain(tables).collect()
}

fn repair_arguments(spec: &RepairSpec) -> Vec<Argument> {
    let place = &spec.place;
    vec![
        (
            "tables",
            listed(spec.plan.tables.iter().map(|table| &table.name)),
        ),
        ("rows", spec.plan.rows().to_string()),
        ("page", format!("{} of {}", place.page, place.pages)),
    ]
}

fn owned(arguments: Vec<Argument>) -> Vec<(String, String)> {
    arguments
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl<S: Store> Driver<S> {
    /// The entries of an order.
    pub(super) fn audit_entries(&self, order: &Order) -> Vec<AuditEntry> {
        let Order::DeleteSnapshot { snapshot, .. } = order else {
            return AuditEntry::of(order);
        };
        let node = self.snapshot_source(*snapshot);
        let entry = |node| AuditEntry {
            action: "snapshot.delete",
            node,
            source: None,
            arguments: owned(vec![("snapshot", snapshot.to_string())]),
        };
        node.map(entry).into_iter().collect()
    }

    /// Records the outcome of an order: each entry's job, in order, or why it was refused.
    pub(super) fn audit_order(
        &mut self,
        entries: Vec<AuditEntry>,
        operator: &Operator,
        outcome: &Result<Vec<JobId>, Fault>,
        now: Timestamp,
    ) {
        let mut jobs = outcome.iter().flatten().copied();
        for entry in entries {
            let result = match outcome {
                Ok(_) => Ok(jobs.next()),
                Err(fault) => Err(fault.to_string()),
            };
            self.audit(entry, operator, result, now);
        }
    }

    fn audit(
        &mut self,
        entry: AuditEntry,
        operator: &Operator,
        outcome: Result<Option<JobId>, String>,
        now: Timestamp,
    ) {
        let (job_id, refused) = match outcome {
            Ok(job) => (job, None),
            Err(why) => (None, Some(why)),
        };
        let source = entry.source.or_else(|| {
            let job = self.jobs.get(&job_id?)?;
            Some(job.job.spec.source.clone())
        });
        let view = AuditView {
            seq: self.next_audit,
            timestamp: now,
            operator: operator.name.clone(),
            certificate: operator.certificate.clone(),
            address: operator.address.clone(),
            action: entry.action.to_owned(),
            node_id: entry.node,
            source_node: source,
            job_id,
            arguments: entry.arguments,
            refused,
        };
        self.next_audit += 1;
        tracing::info!(
            event = "operator.audit",
            node_id = %view.node_id,
            source_node = view.source_node.as_ref().map(NodeId::as_str),
            job_id = view.job_id.map(tracing::field::display),
            operator = view.operator,
            certificate = view.certificate,
            address = view.address,
            action = view.action,
            refused = view.refused,
            "an operator's order"
        );
        let mut due = Vec::new();
        if view.refused.is_none() {
            due.push(view.node_id.clone());
            due.extend(view.source_node.clone());
            due.retain(|node| self.nodes.contains_key(node));
        }
        for node in &due {
            let queue = self.audit_due.entry(node.clone()).or_default();
            if queue.len() < DUE_MAX {
                queue.push(view.clone());
            }
            let told = CoordinatorMessage::Audit(Box::new(view.clone()));
            self.send(node, told);
        }
        self.out.writes.push(Write::Audit {
            view: Box::new(view),
            due,
        });
    }

    /// Restores unconfirmed entries from the store.
    pub(super) fn restore_audit(&mut self, due: Vec<AuditDue>) {
        for AuditDue { node, view } in due {
            let queue = self.audit_due.entry(node).or_default();
            if queue.len() < DUE_MAX {
                queue.push(view);
            }
        }
    }

    /// Sends a node unconfirmed entries.
    pub(super) fn tell_audit(&mut self, node: &NodeId) {
        let Some(queue) = self.audit_due.get_mut(node) else {
            return;
        };
        // Few at a time, since an agent whose outbox overflows is disconnected. The next time, others
        // come first, so that entries that cannot be written do not block the rest.
        let page = queue.len().min(TOLD_AT_ONCE);
        let told = queue[..page].to_vec();
        queue.rotate_left(page);
        for view in told {
            self.send(node, CoordinatorMessage::Audit(Box::new(view)));
        }
    }

    /// Sends unconfirmed entries again every [`AGAIN_EVERY`].
    pub(super) fn tick_audit(&mut self, now: Timestamp) {
        if now < after(self.audit_told, AGAIN_EVERY) {
            return;
        }
        self.audit_told = now;
        for node in self.audit_due.keys().cloned().collect::<Vec<_>>() {
            if self.registry.is_online(&node) {
                self.tell_audit(&node);
            }
        }
    }

    /// A node has confirmed an entry.
    pub(super) fn on_audited(&mut self, node: &NodeId, seq: u64) {
        let Some(queue) = self.audit_due.get_mut(node) else {
            return;
        };
        let before = queue.len();
        queue.retain(|view| view.seq != seq);
        if queue.len() == before {
            return;
        }
        if queue.is_empty() {
            self.audit_due.remove(node);
        }
        let node = node.clone();
        self.out.writes.push(Write::Audited { node, seq });
    }
}

/// Entries sent to a node at once; the rest follow a minute later.
const TOLD_AT_ONCE: usize = 50;

/// A job's arguments, named as on the command line.
fn job_arguments(spec: &JobSpec) -> Vec<Argument> {
    let schema = match spec.schema_mode {
        SchemaMode::Strict => "strict",
        SchemaMode::Auto => "auto",
        SchemaMode::Manual => "manual",
    };
    let force = spec.existing == ExistingRows::Replace;
    let yes = spec.confirmation == Confirmation::Given;
    let mut all = vec![
        ("method", spec.method.name().to_owned()),
        ("parallel", spec.parallel.to_string()),
        ("schema_sync", schema.to_owned()),
        ("force", force.to_string()),
        ("yes", yes.to_string()),
        ("compress", spec.compression.to_string()),
        ("timeout_seconds", spec.timeout_seconds.to_string()),
        (
            "large_table_threshold",
            spec.large_table_threshold.0.to_string(),
        ),
        ("yield_to_ddl", spec.yield_to_ddl.to_string()),
    ];
    if let Some(rate) = spec.max_rate {
        all.push(("max_rate", rate.0.to_string()));
    }
    // Long lists are truncated (G8).
    if !spec.filter.include_schemas.is_empty() {
        let names = spec.filter.include_schemas.iter();
        all.push(("include_schema", listed(names)));
    }
    if !spec.filter.exclude_tables.is_empty() {
        all.push(("exclude_table", listed(spec.filter.exclude_tables.iter())));
    }
    if !spec.filter.include_tables.is_empty() {
        all.push(("include_table", listed(spec.filter.include_tables.iter())));
    }
    all
}

/// The further arguments of `init complete`.
fn backup_arguments(spec: &CompleteSpec) -> Vec<Argument> {
    let slot = spec.slot.as_ref().map_or("-", SlotName::as_str);
    let skip = spec.schema == SchemaCheck::Skipped;
    vec![
        ("slot", slot.to_owned()),
        ("source_lsn", spec.source_lsn.to_string()),
        ("skip_schema_check", skip.to_string()),
    ]
}

fn adjust_arguments(change: Adjustment) -> Vec<Argument> {
    let parallel = change.parallel.map(|n| ("parallel", n.to_string()));
    let rate = change.max_rate.map(|rate| match rate {
        MaxRate::Unlimited => ("max_rate", "none".to_owned()),
        MaxRate::Limited(bytes) => ("max_rate", bytes.0.to_string()),
    });
    parallel.into_iter().chain(rate).collect()
}

fn listed<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let all = names.len();
    let limit = steep_protocol::limits::LISTED_MAX;
    let names: Vec<String> = names.take(limit).map(|name| name.to_string()).collect();
    let mut text = names.join(",");
    if all > limit {
        text.push_str(&format!(" and {} more", all - limit));
    }
    text
}
