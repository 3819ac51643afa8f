//! Who wanted what: operators' entries, accepted or refused, in the store and in the audit logs of the
//! nodes they are about.
//!
//! A node is told of an accepted entry in every session, and every minute in between, until its agent
//! says that it is in `steep_repl.audit_log`. Refused entries changed nothing and are kept here alone.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::CoordinatorMessage;
use steep_protocol::message::api::{Afterwards, AuditView};
use steep_protocol::message::handover::{CompleteSpec, PrepareSpec, SchemaCheck, SlotName};
use steep_protocol::message::job::{
    CancelledData, Confirmation, ExistingRows, JobSpec, SchemaMode,
};
use steep_protocol::{Fault, JobId, NodeId};

use super::{Answer, Driver, Operator};
use crate::job::time::after;
use crate::store::{AuditDue, Store, Write};

/// How often a node that has not confirmed is told again.
const AGAIN_EVERY: Duration = Duration::from_secs(60);

/// Wishes that one node can be behind with; of more, the newest are not told to it (G8). They are in
/// the store like all others.
const DUE_MAX: usize = 1_000;

/// A entry that has been heard, before it is known what comes of it.
#[derive(Debug, Clone)]
pub(super) struct AuditEntry {
    pub(super) action: &'static str,
    pub(super) node: NodeId,
    pub(super) source: Option<NodeId>,
    pub(super) arguments: Vec<(String, String)>,
}

impl AuditEntry {
    pub(super) fn init(spec: &JobSpec) -> Self {
        Self {
            action: "init",
            node: spec.target.clone(),
            source: Some(spec.source.clone()),
            arguments: arguments(spec),
        }
    }

    pub(super) fn resume(spec: &JobSpec) -> Self {
        Self {
            action: "init.resume",
            ..Self::init(spec)
        }
    }

    pub(super) fn cancel(node: &NodeId, data: CancelledData) -> Self {
        let keep = match data {
            CancelledData::Remove => "false",
            CancelledData::Keep => "true",
        };
        Self {
            action: "cancel",
            node: node.clone(),
            source: None,
            arguments: vec![("keep_data".to_owned(), keep.to_owned())],
        }
    }

    pub(super) fn give_up(node: &NodeId, data: CancelledData, afterwards: Afterwards) -> Self {
        let action = match afterwards {
            Afterwards::Keep => "cancel",
            Afterwards::Forget => "nodes.remove",
        };
        let mut entry = Self {
            action,
            ..Self::cancel(node, data)
        };
        let forced = ("force_cleanup".to_owned(), "true".to_owned());
        entry.arguments.push(forced);
        entry
    }

    pub(super) fn prepare(spec: &PrepareSpec) -> Self {
        Self {
            action: "init.prepare",
            node: spec.node.clone(),
            source: None,
            arguments: vec![
                ("slot".to_owned(), spec.slot.to_string()),
                ("expires".to_owned(), format!("{}s", spec.expires_seconds)),
            ],
        }
    }

    pub(super) fn drop_prepared(node: &NodeId, slot: &SlotName) -> Self {
        Self {
            action: "init.prepare",
            node: node.clone(),
            source: None,
            arguments: vec![
                ("slot".to_owned(), slot.to_string()),
                ("drop".to_owned(), "true".to_owned()),
            ],
        }
    }

    pub(super) fn complete(spec: &CompleteSpec) -> Self {
        let mut arguments = arguments(&spec.job);
        let slot = spec.slot.as_ref().map_or("-", SlotName::as_str);
        let skip = match spec.schema {
            SchemaCheck::Compared => "false",
            SchemaCheck::Skipped => "true",
        };
        arguments.extend(
            [
                ("slot", slot),
                ("source_lsn", &spec.source_lsn.to_string()),
                ("skip_schema_check", skip),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        Self {
            action: "init.complete",
            node: spec.job.target.clone(),
            source: Some(spec.job.source.clone()),
            arguments,
        }
    }

    pub(super) fn rebuild(node: &NodeId) -> Self {
        Self {
            action: "init.rebuild",
            node: node.clone(),
            source: None,
            arguments: Vec::new(),
        }
    }

    pub(super) fn capture(node: &NodeId, peer: Option<&NodeId>) -> Self {
        let peer_argument = peer.map(|peer| ("peer".to_owned(), peer.to_string()));
        Self {
            action: "schema.capture",
            node: node.clone(),
            source: peer.cloned(),
            arguments: peer_argument.into_iter().collect(),
        }
    }
}

impl<S: Store> Driver<S> {
    /// Keeps what became of entries for jobs.
    pub(super) fn audit_init(
        &mut self,
        entries: Vec<AuditEntry>,
        operator: &Operator,
        answer: &Result<Answer, Fault>,
        now: Timestamp,
    ) {
        for entry in entries {
            let job = match answer {
                Ok(Answer::Accepted { jobs, .. }) => {
                    let own = jobs.iter().find(|follow| follow.node == entry.node);
                    Ok(own.map(|follow| follow.job))
                }
                Ok(_) => Ok(None),
                Err(fault) => Err(fault.to_string()),
            };
            self.audit(entry, operator, job, now);
        }
    }

    /// Keeps what became of a entry: its job, or why it was refused.
    pub(super) fn audit(
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
            "an operator's request"
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

    /// Takes what nodes have not confirmed out of the store.
    pub(super) fn restore_audit(&mut self, due: Vec<AuditDue>) {
        for AuditDue { node, view } in due {
            let queue = self.audit_due.entry(node).or_default();
            if queue.len() < DUE_MAX {
                queue.push(view);
            }
        }
    }

    /// Tells a node what it has not confirmed.
    pub(super) fn tell_audit(&mut self, node: &NodeId) {
        let Some(queue) = self.audit_due.get_mut(node) else {
            return;
        };
        // A page at a time: an agent that is told more than its session holds is disconnected. Others
        // come first the next time: one that cannot be written keeps none from being told.
        let page = queue.len().min(TOLD_AT_ONCE);
        let told = queue[..page].to_vec();
        queue.rotate_left(page);
        for view in told {
            self.send(node, CoordinatorMessage::Audit(Box::new(view)));
        }
    }

    /// Time has passed.
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

    /// A node has it.
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

/// Entries told to a node at once; the rest follow a minute later.
const TOLD_AT_ONCE: usize = 50;

/// What was asked for, as the command line would say it.
fn arguments(spec: &JobSpec) -> Vec<(String, String)> {
    let schema = match spec.schema_mode {
        SchemaMode::Strict => "strict",
        SchemaMode::Auto => "auto",
        SchemaMode::Manual => "manual",
    };
    let mut all = vec![
        ("method", spec.method.name().to_owned()),
        ("parallel", spec.parallel.to_string()),
        ("schema_sync", schema.to_owned()),
        (
            "force",
            (spec.existing == ExistingRows::Replace).to_string(),
        ),
        (
            "yes",
            (spec.confirmation == Confirmation::Given).to_string(),
        ),
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
    // Lists are cut where nobody reads on (G8).
    if !spec.filter.include_schemas.is_empty() {
        let names = spec.filter.include_schemas.iter();
        all.push(("include_schema", listed(names)));
    }
    if !spec.filter.exclude_tables.is_empty() {
        all.push(("exclude_table", listed(spec.filter.exclude_tables.iter())));
    }
    all.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn listed<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let all = names.len();
    let limit = steep_protocol::limits::LISTED_MAX;
    let mut text = names
        .take(limit)
        .map(|name| name.to_string())
        .collect::<Vec<_>>()
        .join(",");
    if all > limit {
        text.push_str(&format!(" and {} more", all - limit));
    }
    text
}
