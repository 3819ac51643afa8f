//! Machine output: the contract's keys in its order, then what else is known.
//!
//! A view that has the contract's shape is serialised as it is. The others are put together here: the
//! protocol's codec needs every field in place, and the coordinator stores events, ends and audit entries
//! as JSON of its own.

mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use steep_certs::CertificateInfo;
use steep_protocol::message::adjust::Adjusted;
use steep_protocol::message::agent::Rebuilt;
use steep_protocol::message::api::{
    AuditView, DetachPlan, EndView, EventView, NodeView, ProgressView,
};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::handover::{PreparedSlot, PreparedState, SlotName};
use steep_protocol::message::job::{Method, SchemaMode};
use steep_protocol::message::snapshot::SnapshotView;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState};

use super::{findings, switchover};

pub(crate) use snapshot::{generated, key, snapshot, snapshot_deleted, snapshots, verified};

/// Fields of events that are numbers, as docs/logs.md has them.
const NUMERIC: [&str; 28] = [
    "rows_copied",
    "bytes_copied",
    "duration_ms",
    "overall_progress",
    "parallel",
    "max_rate",
    "part",
    "statements",
    "commands",
    "answers",
    "interrupted",
    "made",
    "missing",
    "extra",
    "different",
    "repaired",
    "changed",
    "failed",
    "rows_written_a",
    "rows_written_b",
    "tables",
    "tables_unequal",
    "wal_held",
    "wal_limit",
    "epoch",
    "tables_kept",
    "tables_left",
    "stopped_ms",
];

type Object = Map<String, Value>;

/// The fields of a structure, in their order.
fn object(fields: impl Serialize) -> Object {
    match serde_json::to_value(fields) {
        Ok(Value::Object(object)) => object,
        _ => unreachable!("views are structures with string keys"),
    }
}

/// The fields of both, the first one's first.
pub(super) fn joined(first: impl Serialize, second: impl Serialize) -> Value {
    let mut all = object(first);
    all.extend(object(second));
    Value::Object(all)
}

fn job_text(job: Option<JobId>) -> Option<String> {
    job.map(|job| job.to_string())
}

/// Every node, `{"nodes":[…]}`, and with snapshots `{"nodes":[…],"snapshots":[…]}`.
pub(crate) fn nodes(nodes: &[NodeView], stored: Option<&[SnapshotView]>) -> Value {
    let nodes: Vec<Object> = nodes.iter().map(node).collect();
    let nodes = json!({ "nodes": nodes });
    stored.map_or_else(|| nodes.clone(), |stored| joined(&nodes, snapshots(stored)))
}

/// A node: ids and positions are text.
fn node(view: &NodeView) -> Object {
    let mut fields = object(view);
    if let Some(loaded) = &view.loaded {
        let rest = json!({
            "snapshot_id": loaded.snapshot_id.to_string(),
            "job_id": loaded.job_id.to_string(),
            "lsn": loaded.lsn.to_string(),
        });
        fields.insert("loaded".to_owned(), joined(loaded, rest));
    }
    if let Some(last) = &view.switchover {
        fields.insert("switchover".to_owned(), switchover::json(last));
    }
    fields
}

/// One node with its job, the slots prepared on it, and what it lacks of its source's schema.
pub(crate) fn status(
    view: &NodeView,
    job: Option<&ProgressView>,
    prepared: &[PreparedSlot],
    missing: &[Finding],
) -> Value {
    let prepared: Vec<_> = prepared.iter().map(prepared_slot).collect();
    let rest = json!({
        "job": job.map(progress),
        "prepared_slots": prepared,
        "missing": missing,
    });
    joined(node(view), rest)
}

fn prepared_slot(slot: &PreparedSlot) -> Value {
    let (state, target, error) = match &slot.state {
        PreparedState::Waiting => ("waiting", None, None),
        PreparedState::Taken(by) => ("taken", Some(by), None),
        PreparedState::Expired => ("expired", None, None),
        PreparedState::Lost(why) => ("lost", None, Some(why)),
    };
    json!({
        "slot": slot.replication.slot.as_str(),
        "consistent_point": slot.lsn.to_string(),
        "created_at": slot.created_at,
        "expires_at": slot.expires_at,
        "wal_held_bytes": slot.wal_held.0,
        "state": state,
        "target_node": target,
        "error_message": error,
    })
}

/// What `init prepare` made.
pub(crate) fn prepared(
    node: &NodeId,
    slot: &PreparedSlot,
    next: &str,
    warnings: &[Finding],
) -> Value {
    let mut all = object(json!({ "event": "init.prepared", "node_id": node }));
    all.extend(object(prepared_slot(slot)));
    let publication = slot.replication.name().to_string();
    let rest = json!({ "publication": publication, "next": next, "warnings": warnings });
    joined(all, rest)
}

/// What `init prepare --drop` took back.
pub(crate) fn unprepared(node: &NodeId, slot: &SlotName) -> Value {
    json!({ "event": "init.unprepared", "node_id": node, "slot": slot })
}

/// What `init rebuild` came to.
pub(crate) fn rebuilt(node: &NodeId, rebuilt: &Rebuilt) -> Value {
    json!({
        "event": "init.rebuilt",
        "node_id": node,
        "made": rebuilt.made,
        "missing_objects": rebuilt.missing.total,
        "missing": rebuilt.missing.findings,
    })
}

/// What `init adjust` came to.
pub(crate) fn adjusted(node: &NodeId, adjusted: &Adjusted) -> Value {
    json!({
        "event": "init.adjusted",
        "node_id": node,
        "job_id": adjusted.job_id.to_string(),
        "parallel": adjusted.parallel,
        "max_rate": adjusted.max_rate,
        "parallel_workers": adjusted.parallel_workers,
        "from_phase": adjusted.from_phase,
    })
}

/// How far a job is.
pub(crate) fn progress(view: &ProgressView) -> Value {
    let mut all = object(view);
    let detail = all.shift_remove("detail");
    all.insert("event".to_owned(), json!("init.progress"));
    // Not of the contract: behind its keys.
    for key in ["job_id", "source_node", "phase_percent", "bytes_total"] {
        let value = all.shift_remove(key);
        all.insert(key.to_owned(), value.unwrap_or_default());
    }
    all["job_id"] = json!(job_text(view.job_id));
    joined(all, detail)
}

/// Something that happened. A field never replaces a key that every event has.
pub(crate) fn event(view: &EventView) -> Value {
    let mut all = object(json!({
        "timestamp": view.timestamp,
        "level": view.level,
        "event": view.event,
        "node_id": view.node_id,
        "source_node": view.source_node,
        "job_id": job_text(view.job_id),
        "message": view.message,
        "seq": view.seq,
    }));
    let fields = view.fields.iter();
    let fields: BTreeMap<_, _> = fields
        .filter(|(name, _)| !all.contains_key(name))
        .map(|(name, value)| (name.clone(), typed(name, value)))
        .collect();
    all.extend(fields);
    for key in ["source_node", "job_id"] {
        if all[key].is_null() {
            all.shift_remove(key);
        }
    }
    Value::Object(all)
}

/// A number where the field is one, else the text.
fn typed(name: &str, value: &str) -> Value {
    let number = NUMERIC
        .contains(&name)
        .then(|| serde_json::from_str::<Value>(value).ok());
    match number.flatten() {
        Some(number @ Value::Number(_)) => number,
        _ => Value::from(value),
    }
}

/// What an operator asked for.
pub(crate) fn audit_entry(view: &AuditView) -> Value {
    let arguments: BTreeMap<_, _> = view.arguments.iter().cloned().collect();
    json!({
        "timestamp": view.timestamp,
        "operator": view.operator,
        "certificate": view.certificate,
        "address": view.address,
        "action": view.action,
        "node_id": view.node_id,
        "source_node": view.source_node,
        "job_id": job_text(view.job_id),
        "arguments": arguments,
        "refused": view.refused,
        "seq": view.seq,
    })
}

/// How a job ended: `init.completed`, `tables.added`, `tables.dropped`, `reinit.completed`, `init.failed` or `init.cancelled`.
pub(crate) fn end(view: &EndView) -> Value {
    let fault = view.fault.as_ref();
    let mut all = object(json!({
        "event": fault.map_or(good_event(view.report.method), |fault| failed_event(fault.kind)),
        "node_id": view.node_id,
        "state": view.state,
    }));
    if let Some(fault) = fault {
        all.extend(cause(fault));
        all.insert("error_node".to_owned(), json!(fault.node));
    }
    all.extend(object(json!({
        "rows_copied": view.rows_copied,
        "bytes_copied": view.bytes_copied,
        "duration_seconds": view.duration_seconds,
        "phases": view.phases,
        "job_id": view.job_id.to_string(),
        "source_node": view.source_node,
        "tables": view.tables,
        "wire_bytes": view.wire_bytes,
        "warnings": view.warnings,
    })));
    if view.report.method == Some(Method::Load) {
        all.insert("loaded".to_owned(), json!(fault.is_none()));
    }
    joined(all, &view.report)
}

/// The event of a job that ended well.
fn good_event(method: Option<Method>) -> &'static str {
    match method {
        Some(Method::Add) => "tables.added",
        Some(Method::Drop) => "tables.dropped",
        Some(Method::Reinit) => "reinit.completed",
        Some(
            Method::Snapshot
            | Method::TwoPhase
            | Method::Native
            | Method::Backup
            | Method::Stored
            | Method::Load
            | Method::Merge,
        )
        | None => "init.completed",
    }
}

fn failed_event(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Cancelled => "init.cancelled",
        FaultKind::Failed
        | FaultKind::BadRequest
        | FaultKind::SchemaMismatch
        | FaultKind::Timeout
        | FaultKind::Unreachable
        | FaultKind::Unauthorized
        | FaultKind::SourceChanged
        | FaultKind::StoreDamaged
        | FaultKind::KeyMissing
        | FaultKind::TargetChanged => "init.failed",
    }
}

fn cause(fault: &Fault) -> Object {
    object(json!({
        "error_message": fault.message,
        "hint": fault.hint,
        "kind": fault.kind,
    }))
}

/// A command failed that is not about a job: `{"event":"error",…}`.
pub(crate) fn error(fault: &Fault) -> Value {
    joined(
        json!({ "event": "error", "node_id": fault.node }),
        cause(fault),
    )
}

/// A job could not begin, for that target.
pub(crate) fn not_begun(fault: &Fault, target: &NodeId) -> Value {
    let event = failed_event(fault.kind);
    joined(json!({ "event": event, "node_id": target }), cause(fault))
}

/// A job that goes on without being followed.
pub(crate) fn detached(node: &NodeId, job: JobId) -> Value {
    json!({ "event": "init.detached", "node_id": node, "job_id": job.to_string() })
}

/// A job that is not followed to its end. One that has begun goes on without the connection to the coordinator:
/// nobody knows here that it failed.
pub(crate) fn unfollowed(fault: &Fault, target: &NodeId, job: Option<JobId>) -> Value {
    match job {
        Some(job) if fault.kind == FaultKind::Unreachable => {
            joined(detached(target, job), cause(fault))
        }
        _ => not_begun(fault, target),
    }
}

/// A node whose job was cancelled.
pub(crate) fn cancelled(node: &NodeId, state: NodeState) -> Value {
    json!({ "event": "init.cancelled", "node_id": node, "state": state })
}

/// What a detach would do.
pub(crate) fn detach_plan(plan: &DetachPlan) -> Value {
    joined(json!({ "event": "detach.plan" }), plan)
}

/// A node that was detached, and what stays where.
pub(crate) fn detached_from(plan: &DetachPlan, left: &[String]) -> Value {
    json!({
        "event": "node.detached",
        "node_id": plan.node_id,
        "source_node": plan.source_node,
        "state": NodeState::Uninitialized,
        "already": plan.detached_at.is_some(),
        "left": left,
    })
}

/// A node that was given up, as it is now, and what stays on servers that could not be reached.
pub(crate) fn given_up(node: &NodeId, state: &str, left: &[String]) -> Value {
    json!({ "event": "init.given_up", "node_id": node, "state": state, "left": left })
}

/// What preflight found for one target, within a stream.
pub(crate) fn preflight(node: &NodeId, findings: &[Finding]) -> Value {
    json!({ "event": "init.preflight", "node_id": node, "findings": findings })
}

/// What preflight found for all targets: `{"findings":[…],"errors":n,"warnings":n}`.
pub(crate) fn doctor(found: &[(NodeId, Vec<Finding>)]) -> Value {
    let count = |severity| {
        let all = found.iter().flat_map(|(_, findings)| findings);
        all.filter(|finding| finding.severity == severity).count()
    };
    let findings = found.iter().flat_map(|(target, findings)| {
        let target = json!({ "target": target });
        findings.iter().map(move |finding| joined(&target, finding))
    });
    json!({
        "findings": findings.collect::<Vec<_>>(),
        "errors": count(Severity::Error),
        "warnings": count(Severity::Warning),
    })
}

/// What would be done: about schemas that differ, and all else that preflight found.
pub(crate) fn plan(node: &NodeId, schema_sync: SchemaMode, found: &[Finding]) -> Value {
    let (schema, rest): (Vec<_>, Vec<_>) = found.iter().partition(|f| findings::is_about_schema(f));
    let (statements, differences) = findings::statements_and_differences(schema);
    json!({
        "event": "init.plan",
        "node_id": node,
        "schema_sync": schema_sync,
        "differences": differences,
        "statements": statements,
        "findings": rest,
    })
}

/// A certificate as it is at that moment.
pub(crate) fn certificate(info: &CertificateInfo, now: Timestamp) -> Value {
    let identity = info.identity.as_ref();
    let addresses = info.addresses.iter().map(ToString::to_string);
    let sans: Vec<_> = info.dns_names.iter().cloned().chain(addresses).collect();
    json!({
        "role": identity.map(|identity| identity.role.as_str()),
        "name": identity.map(|identity| identity.name.as_str()),
        "ca": info.is_ca,
        "sans": sans,
        "not_before": info.validity.not_before,
        "not_after": info.validity.not_after,
        "valid": info.is_valid_at(now),
        "subject": info.subject,
        "issuer": info.issuer,
        "serial": info.serial,
    })
}
