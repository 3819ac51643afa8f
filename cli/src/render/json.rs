//! Machine output: the keys of the contract, in its order, then what else is known.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use steep_certs::CertificateInfo;
use steep_protocol::message::api::{
    AuditView, EndView, EventView, NodeView, PhaseSeconds, ProgressDetail, ProgressView, Report,
    TableView,
};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::handover::{PreparedSlot, PreparedState, SlotName};
use steep_protocol::message::job::SchemaMode;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, Phase};

use super::findings;

/// Fields of events that are numbers, as docs/logs.md has them.
const NUMERIC: [&str; 12] = [
    "rows_copied",
    "bytes_copied",
    "duration_ms",
    "overall_progress",
    "parallel",
    "part",
    "statements",
    "commands",
    "answers",
    "interrupted",
    "made",
    "missing",
];

/// One line, without its end.
pub(crate) fn line<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own structures have string keys and no failing fields")
}

/// Every node: `{"nodes":[…]}`.
#[derive(Debug, Serialize)]
pub(crate) struct Nodes<'a> {
    /// The nodes, whose fields are named as the contract names them.
    pub(crate) nodes: &'a [NodeView],
}

/// One node, with its job where one is at work.
#[derive(Debug, Serialize)]
pub(crate) struct Status<'a> {
    /// The node's own keys.
    #[serde(flatten)]
    pub(crate) node: &'a NodeView,
    /// Its job.
    pub(crate) job: Option<Progress<'a>>,
    /// Slots that are prepared on it.
    pub(crate) prepared_slots: Vec<PreparedSlotView<'a>>,
    /// What it lacks of its source's schema.
    pub(crate) missing: &'a [Finding],
}

/// A slot that is prepared on a node.
#[derive(Debug, Serialize)]
pub(crate) struct PreparedSlotView<'a> {
    slot: &'a str,
    consistent_point: String,
    created_at: Timestamp,
    expires_at: Timestamp,
    wal_held_bytes: u64,
    state: &'static str,
    target_node: Option<&'a NodeId>,
    error_message: Option<&'a str>,
}

impl<'a> From<&'a PreparedSlot> for PreparedSlotView<'a> {
    fn from(slot: &'a PreparedSlot) -> Self {
        let (state, target_node, error_message) = match &slot.state {
            PreparedState::Waiting => ("waiting", None, None),
            PreparedState::Taken(by) => ("taken", Some(by), None),
            PreparedState::Expired => ("expired", None, None),
            PreparedState::Lost(why) => ("lost", None, Some(why.as_str())),
        };
        Self {
            slot: slot.replication.slot.as_str(),
            consistent_point: slot.lsn.to_string(),
            created_at: slot.created_at,
            expires_at: slot.expires_at,
            wal_held_bytes: slot.wal_held.0,
            state,
            target_node,
            error_message,
        }
    }
}

/// What `init prepare` made.
#[derive(Debug, Serialize)]
pub(crate) struct Prepared<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    #[serde(flatten)]
    slot: PreparedSlotView<'a>,
    publication: String,
    next: &'a str,
    warnings: &'a [Finding],
}

impl<'a> Prepared<'a> {
    /// On that node.
    pub(crate) fn new(
        node_id: &'a NodeId,
        slot: &'a PreparedSlot,
        next: &'a str,
        warnings: &'a [Finding],
    ) -> Self {
        Self {
            event: "init.prepared",
            node_id,
            slot: PreparedSlotView::from(slot),
            publication: slot.replication.name().to_string(),
            next,
            warnings,
        }
    }
}

/// What `init prepare --drop` took back.
#[derive(Debug, Serialize)]
pub(crate) struct Unprepared<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    slot: &'a str,
}

impl<'a> Unprepared<'a> {
    /// On that node.
    pub(crate) fn new(node_id: &'a NodeId, slot: &'a SlotName) -> Self {
        Self {
            event: "init.unprepared",
            node_id,
            slot: slot.as_str(),
        }
    }
}

/// How far a job is.
#[derive(Debug, Serialize)]
pub(crate) struct Progress<'a> {
    node_id: &'a NodeId,
    state: NodeState,
    phase: Option<Phase>,
    overall_percent: f64,
    tables_total: u64,
    tables_completed: u64,
    current_table: Option<&'a str>,
    current_table_percent: Option<f64>,
    rows_copied: u64,
    bytes_copied: u64,
    wire_bytes: u64,
    throughput_rows_sec: f64,
    throughput_bytes_sec: f64,
    eta_seconds: Option<u64>,
    parallel_workers: u8,
    started_at: Option<Timestamp>,
    error_message: Option<&'a str>,
    tables: &'a [TableView],
    event: &'static str,
    job_id: Option<String>,
    source_node: Option<&'a NodeId>,
    phase_percent: Option<f64>,
    bytes_total: u64,
    #[serde(flatten)]
    detail: &'a ProgressDetail,
}

impl<'a> From<&'a ProgressView> for Progress<'a> {
    fn from(view: &'a ProgressView) -> Self {
        Self {
            node_id: &view.node_id,
            state: view.state,
            phase: view.phase,
            overall_percent: view.overall_percent,
            tables_total: view.tables_total,
            tables_completed: view.tables_completed,
            current_table: view.current_table.as_deref(),
            current_table_percent: view.current_table_percent,
            rows_copied: view.rows_copied,
            bytes_copied: view.bytes_copied,
            wire_bytes: view.wire_bytes,
            throughput_rows_sec: view.throughput_rows_sec,
            throughput_bytes_sec: view.throughput_bytes_sec,
            eta_seconds: view.eta_seconds,
            parallel_workers: view.parallel_workers,
            started_at: view.started_at,
            error_message: view.error_message.as_deref(),
            tables: &view.tables,
            event: "init.progress",
            job_id: view.job_id.map(|job| job.to_string()),
            source_node: view.source_node.as_ref(),
            phase_percent: view.phase_percent,
            bytes_total: view.bytes_total,
            detail: &view.detail,
        }
    }
}

/// Something that happened.
#[derive(Debug, Serialize)]
pub(crate) struct Event<'a> {
    timestamp: Timestamp,
    level: &'a str,
    event: &'a str,
    node_id: Option<&'a NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_node: Option<&'a NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<String>,
    message: &'a str,
    seq: u64,
    #[serde(flatten)]
    fields: BTreeMap<&'a str, Value>,
}

impl<'a> From<&'a EventView> for Event<'a> {
    fn from(view: &'a EventView) -> Self {
        const FIXED: [&str; 8] = [
            "timestamp",
            "level",
            "event",
            "node_id",
            "source_node",
            "job_id",
            "message",
            "seq",
        ];
        let fields = view
            .fields
            .iter()
            .filter(|(name, _)| !FIXED.contains(&name.as_str()));
        Self {
            timestamp: view.timestamp,
            level: &view.level,
            event: &view.event,
            node_id: view.node_id.as_ref(),
            source_node: view.source_node.as_ref(),
            job_id: view.job_id.map(|job| job.to_string()),
            message: &view.message,
            seq: view.seq,
            fields: fields
                .map(|(name, value)| (name.as_str(), typed(name, value)))
                .collect(),
        }
    }
}

/// What an operator wanted.
#[derive(Debug, Serialize)]
pub(crate) struct Wish<'a> {
    timestamp: Timestamp,
    operator: &'a str,
    certificate: &'a str,
    address: &'a str,
    action: &'a str,
    node_id: &'a NodeId,
    source_node: Option<&'a NodeId>,
    job_id: Option<String>,
    arguments: BTreeMap<&'a str, &'a str>,
    refused: Option<&'a str>,
    seq: u64,
}

impl<'a> From<&'a AuditView> for Wish<'a> {
    fn from(view: &'a AuditView) -> Self {
        let arguments = view.arguments.iter();
        Self {
            timestamp: view.timestamp,
            operator: &view.operator,
            certificate: &view.certificate,
            address: &view.address,
            action: &view.action,
            node_id: &view.node_id,
            source_node: view.source_node.as_ref(),
            job_id: view.job_id.map(|job| job.to_string()),
            arguments: arguments
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
            refused: view.refused.as_deref(),
            seq: view.seq,
        }
    }
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

/// How a job ended: `init.completed`, `init.failed` or `init.cancelled`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum End<'a> {
    /// Well.
    Completed {
        event: &'static str,
        node_id: &'a NodeId,
        state: NodeState,
        rows_copied: u64,
        bytes_copied: u64,
        duration_seconds: f64,
        phases: PhaseSeconds,
        job_id: String,
        source_node: &'a NodeId,
        tables: u64,
        wire_bytes: u64,
        warnings: &'a [Finding],
        #[serde(flatten)]
        report: &'a Report,
    },
    /// Or not.
    Failed {
        event: &'static str,
        node_id: &'a NodeId,
        state: NodeState,
        error_message: &'a str,
        hint: &'a str,
        kind: FaultKind,
        error_node: Option<&'a NodeId>,
        rows_copied: u64,
        bytes_copied: u64,
        duration_seconds: f64,
        phases: PhaseSeconds,
        job_id: String,
        source_node: &'a NodeId,
        tables: u64,
        wire_bytes: u64,
        warnings: &'a [Finding],
        #[serde(flatten)]
        report: &'a Report,
    },
}

impl<'a> From<&'a EndView> for End<'a> {
    fn from(view: &'a EndView) -> Self {
        let job_id = view.job_id.to_string();
        match &view.fault {
            None => Self::Completed {
                event: "init.completed",
                node_id: &view.node_id,
                state: view.state,
                rows_copied: view.rows_copied,
                bytes_copied: view.bytes_copied,
                duration_seconds: view.duration_seconds,
                phases: view.phases,
                job_id,
                source_node: &view.source_node,
                tables: view.tables,
                wire_bytes: view.wire_bytes,
                warnings: &view.warnings,
                report: &view.report,
            },
            Some(fault) => Self::Failed {
                event: failed_event(fault.kind),
                node_id: &view.node_id,
                state: view.state,
                error_message: &fault.message,
                hint: &fault.hint,
                kind: fault.kind,
                error_node: fault.node.as_ref(),
                rows_copied: view.rows_copied,
                bytes_copied: view.bytes_copied,
                duration_seconds: view.duration_seconds,
                phases: view.phases,
                job_id,
                source_node: &view.source_node,
                tables: view.tables,
                wire_bytes: view.wire_bytes,
                warnings: &view.warnings,
                report: &view.report,
            },
        }
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
        | FaultKind::SourceChanged => "init.failed",
    }
}

/// A command that failed before, or without, a job.
#[derive(Debug, Serialize)]
pub(crate) struct Failed<'a> {
    event: &'static str,
    node_id: Option<&'a NodeId>,
    error_message: &'a str,
    hint: &'a str,
    kind: FaultKind,
}

impl<'a> Failed<'a> {
    /// Of a command that is not about a job: `{"event":"error",…}`.
    pub(crate) fn command(fault: &'a Fault) -> Self {
        Self {
            event: "error",
            node_id: fault.node.as_ref(),
            error_message: &fault.message,
            hint: &fault.hint,
            kind: fault.kind,
        }
    }

    /// Of a job that could not begin, for that target.
    pub(crate) fn job(fault: &'a Fault, target: &'a NodeId) -> Self {
        Self {
            event: failed_event(fault.kind),
            node_id: Some(target),
            ..Self::command(fault)
        }
    }
}

/// A job that goes on without being watched.
#[derive(Debug, Serialize)]
pub(crate) struct Detached<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    job_id: String,
}

impl<'a> Detached<'a> {
    /// That job of that node.
    pub(crate) fn new(node_id: &'a NodeId, job: JobId) -> Self {
        Self {
            event: "init.detached",
            node_id,
            job_id: job.to_string(),
        }
    }
}

/// A node that was given up: its job, or itself.
#[derive(Debug, Serialize)]
pub(crate) struct GivenUp<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    state: &'a str,
    left: &'a [String],
}

impl<'a> GivenUp<'a> {
    /// That node, as it is now, and what stays on servers that could not be reached.
    pub(crate) fn new(node_id: &'a NodeId, state: &'a str, left: &'a [String]) -> Self {
        Self {
            event: "init.given_up",
            node_id,
            state,
            left,
        }
    }
}

/// A node whose job was cancelled.
#[derive(Debug, Serialize)]
pub(crate) struct Cancelled<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    state: NodeState,
}

impl<'a> Cancelled<'a> {
    /// That node.
    pub(crate) fn new(node_id: &'a NodeId) -> Self {
        Self {
            event: "init.cancelled",
            node_id,
            state: NodeState::Uninitialized,
        }
    }
}

/// What preflight found for all targets: `{"findings":[…],"errors":n,"warnings":n}`.
#[derive(Debug, Serialize)]
pub(crate) struct Doctor<'a> {
    findings: Vec<TargetFinding<'a>>,
    errors: usize,
    warnings: usize,
}

#[derive(Debug, Serialize)]
struct TargetFinding<'a> {
    target: &'a NodeId,
    #[serde(flatten)]
    finding: &'a Finding,
}

impl<'a> Doctor<'a> {
    /// Of all targets.
    pub(crate) fn new(found: &'a [(NodeId, Vec<Finding>)]) -> Self {
        let findings: Vec<_> = found
            .iter()
            .flat_map(|(target, findings)| {
                findings
                    .iter()
                    .map(move |finding| TargetFinding { target, finding })
            })
            .collect();
        let count = |severity| {
            findings
                .iter()
                .filter(|f| f.finding.severity == severity)
                .count()
        };
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        Self {
            findings,
            errors,
            warnings,
        }
    }
}

/// What preflight found for one target, within a stream.
#[derive(Debug, Serialize)]
pub(crate) struct Preflight<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    findings: &'a [Finding],
}

impl<'a> Preflight<'a> {
    /// For that target.
    pub(crate) fn new(node_id: &'a NodeId, findings: &'a [Finding]) -> Self {
        Self {
            event: "init.preflight",
            node_id,
            findings,
        }
    }
}

/// What would be done about schemas that differ.
#[derive(Debug, Serialize)]
pub(crate) struct Plan<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    schema_sync: SchemaMode,
    differences: Vec<&'a Finding>,
    statements: Vec<&'a Finding>,
}

impl<'a> Plan<'a> {
    /// For that target, of what preflight found about schemas.
    pub(crate) fn new(
        node_id: &'a NodeId,
        schema_sync: SchemaMode,
        findings: &'a [Finding],
    ) -> Self {
        let (mut statements, differences): (Vec<_>, Vec<_>) =
            findings.iter().partition(|f| f.code == findings::PLAN);
        statements.sort_by_key(|finding| findings::place(finding));
        Self {
            event: "init.plan",
            node_id,
            schema_sync,
            differences,
            statements,
        }
    }
}

/// A certificate.
#[derive(Debug, Serialize)]
pub(crate) struct Certificate<'a> {
    role: Option<&'static str>,
    name: Option<&'a str>,
    ca: bool,
    sans: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
    valid: bool,
    subject: &'a str,
    issuer: &'a str,
    serial: &'a str,
}

impl<'a> Certificate<'a> {
    /// As it is at that moment.
    pub(crate) fn new(info: &'a CertificateInfo, now: Timestamp) -> Self {
        let addresses = info.addresses.iter().map(ToString::to_string);
        Self {
            role: info
                .identity
                .as_ref()
                .map(|identity| identity.role.as_str()),
            name: info
                .identity
                .as_ref()
                .map(|identity| identity.name.as_str()),
            ca: info.is_ca,
            sans: info.dns_names.iter().cloned().chain(addresses).collect(),
            not_before: info.validity.not_before,
            not_after: info.validity.not_after,
            valid: info.is_valid_at(now),
            subject: &info.subject,
            issuer: &info.issuer,
            serial: &info.serial,
        }
    }
}
