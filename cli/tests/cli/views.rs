//! Replies for scripts.

use jiff::Timestamp;
use steep_protocol::message::api::{
    ApiReply, EndView, EventView, JobView, NodeView, PhaseSeconds, ProgressDetail, ProgressView,
    Report,
};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::JobSpec;
use steep_protocol::{Fault, JobId, NodeId, NodeState, Phase};

use crate::coordinator::Step;

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub(crate) fn node(name: &str, state: NodeState) -> NodeView {
    NodeView {
        node_id: id(name),
        state,
        source_node: Some(id("node_a")),
        init_started_at: Some(Timestamp::UNIX_EPOCH),
        init_completed_at: None,
        error_message: None,
        agent_online: true,
        lag_bytes: None,
        progress: None,
        agent_version: None,
        postgres_version: Some(180_006),
        postgres_error: None,
        wal_held_bytes: None,
        missing_objects: 0,
        unseen_since: None,
        warnings: Vec::new(),
        waiting: None,
        kept_until: None,
        replicas: Vec::new(),
        subscription_name: None,
        needs_init: false,
        loaded: None,
        detached: None,
        sequences: None,
        switchover: None,
        verify: None,
    }
}

pub(crate) fn progress(name: &str, state: NodeState, phase: Phase) -> ApiReply {
    ApiReply::Progress(Box::new(ProgressView {
        node_id: id(name),
        job_id: Some(JobId(1)),
        source_node: Some(id("node_a")),
        state,
        phase: Some(phase),
        overall_percent: 10.0,
        phase_percent: None,
        tables_total: 2,
        tables_completed: 1,
        current_table: None,
        current_table_percent: None,
        rows_copied: 100,
        bytes_copied: 1_000,
        bytes_total: 10_000,
        wire_bytes: 500,
        throughput_rows_sec: 10.0,
        throughput_bytes_sec: 100.0,
        eta_seconds: Some(90),
        parallel_workers: 4,
        started_at: None,
        error_message: None,
        tables: Vec::new(),
        detail: ProgressDetail::default(),
    }))
}

pub(crate) fn ended(name: &str, state: NodeState, fault: Option<Fault>) -> ApiReply {
    ApiReply::Ended(Box::new(EndView {
        node_id: id(name),
        job_id: JobId(1),
        source_node: id("node_a"),
        state,
        fault,
        tables: 2,
        rows_copied: 1_000,
        bytes_copied: 10_000,
        wire_bytes: 5_000,
        duration_seconds: 3.5,
        phases: PhaseSeconds {
            preparing: 0.5,
            copying: 2.0,
            indexing: 0.5,
            catching_up: 0.5,
        },
        warnings: Vec::new(),
        report: Report::default(),
    }))
}

pub(crate) fn accepted(name: &str) -> ApiReply {
    ApiReply::Accepted {
        jobs: vec![(id(name), JobId(1))],
    }
}

pub(crate) fn event(kind: &str, level: &str) -> ApiReply {
    ApiReply::Event(EventView {
        seq: 1,
        timestamp: Timestamp::UNIX_EPOCH,
        level: level.to_owned(),
        event: kind.to_owned(),
        node_id: Some(id("node_b")),
        source_node: None,
        job_id: Some(JobId(1)),
        message: "it happened".to_owned(),
        fields: vec![("from".to_owned(), "preparing".to_owned())],
    })
}

/// A finished job with default options.
pub(crate) fn job(name: &str) -> ApiReply {
    let spec = JobSpec::new(id("node_a"), id(name));
    ApiReply::Job(Box::new(JobView {
        job_id: JobId(1),
        spec,
        operator: "dba".to_owned(),
        accepted_at: Timestamp::UNIX_EPOCH,
        ended_at: Some(Timestamp::UNIX_EPOCH),
        phase_times: Vec::new(),
        current_phase: None,
        findings: Vec::new(),
        tables: Vec::new(),
        end: None,
    }))
}

pub(crate) fn findings(name: &str, severity: Severity, code: &str) -> ApiReply {
    ApiReply::Findings {
        target: id(name),
        findings: vec![Finding {
            severity,
            code: code.to_owned(),
            node: Some(id(name)),
            what: "something is the case".to_owned(),
            why: "it matters".to_owned(),
            fix: "change it".to_owned(),
        }],
    }
}

/// Those replies, then the end of the stream.
pub(crate) fn all(replies: Vec<ApiReply>) -> Vec<Step> {
    replies
        .into_iter()
        .chain([ApiReply::End])
        .map(Step::Say)
        .collect()
}
