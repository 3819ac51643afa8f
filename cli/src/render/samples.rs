//! Views for tests, all alike but for what the test is about.

use jiff::Timestamp;
use steep_protocol::message::agent::LockRole;
use steep_protocol::message::api::{
    AuditView, EndView, EventView, LockView, LostSnapshot, NodeView, PhaseSeconds, PhaseTime,
    ProgressDetail, ProgressView, Report, TableState, TableTime, TableView,
};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::Method;
use steep_protocol::message::snapshot::{LoadedSnapshot, SnapshotState, SnapshotView};
use steep_protocol::{JobId, Lsn, NodeId, NodeState, Phase, SnapshotId};

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

pub(crate) fn node(name: &str, state: NodeState) -> NodeView {
    NodeView {
        node_id: id(name),
        state,
        source_node: None,
        init_started_at: None,
        init_completed_at: None,
        error_message: None,
        agent_online: true,
        lag_bytes: None,
        progress: None,
        agent_version: Some("0.1.0".to_owned()),
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
        switchover: None,
        sequences: None,
        verify: None,
    }
}

/// What job 7 has loaded without replication.
pub(crate) fn loaded() -> LoadedSnapshot {
    LoadedSnapshot {
        snapshot_id: SnapshotId(0x5135_8f15_3ac8_daae),
        job_id: JobId(7),
        source_node: id("node_a"),
        lsn: Lsn(0x16_B374_D848),
        rows: 4_100_000,
        loaded_at: at(65),
    }
}

pub(crate) fn table(name: &str, percent: f64) -> TableView {
    TableView {
        schema: "public".to_owned(),
        table: name.to_owned(),
        rows: 4_100_000,
        bytes: 512_000_000,
        state: if percent >= 100.0 {
            TableState::Completed
        } else {
            TableState::Copying
        },
        percent,
    }
}

pub(crate) fn progress() -> ProgressView {
    ProgressView {
        node_id: id("node_b"),
        job_id: Some(JobId(0xfeed)),
        source_node: Some(id("node_a")),
        state: NodeState::Copying,
        phase: Some(Phase::Copy),
        overall_percent: 38.25,
        phase_percent: Some(43.1),
        tables_total: 40,
        tables_completed: 12,
        current_table: Some("public.pgbench_accounts".to_owned()),
        current_table_percent: Some(62.1),
        rows_copied: 9_876_543,
        bytes_copied: 1_250_000_000,
        bytes_total: 2_900_000_000,
        wire_bytes: 387_500_000,
        throughput_rows_sec: 120_345.4,
        throughput_bytes_sec: 85_200_000.0,
        eta_seconds: Some(19),
        parallel_workers: 4,
        started_at: Some(at(0)),
        error_message: None,
        tables: vec![
            table("pgbench_accounts", 62.1),
            table("pgbench_history", 7.0),
        ],
        detail: ProgressDetail {
            throughput_wire_bytes_sec: 26_400_000.0,
            compression_ratio: Some(3.23),
            retries: 1,
            phase_bytes_done: Some(1_250_000_000),
            phase_bytes_total: Some(2_900_000_000),
            phase_bytes_sec: Some(85_200_000.0),
            phase_times: vec![
                PhaseTime {
                    phase: Phase::Preflight,
                    seconds: 0.5,
                },
                PhaseTime {
                    phase: Phase::Copy,
                    seconds: 14.0,
                },
            ],
            history: Vec::new(),
            locks: Vec::new(),
            waiting: None,
            restarts: 0,
            tables_kept: 0,
            spool_percent: None,
            spool_note: None,
        },
    }
}

pub(crate) fn lock(role: LockRole) -> LockView {
    LockView {
        node_id: id("node_a"),
        role,
        ours: "copy".to_owned(),
        pid: 4711,
        application: "psql".to_owned(),
        statement: "ALTER TABLE public.orders ADD note text".to_owned(),
        table: "public.orders".to_owned(),
        waited_seconds: 7,
        queued: 3,
    }
}

pub(crate) fn finding(severity: Severity, code: &str) -> Finding {
    Finding {
        severity,
        code: code.to_owned(),
        node: Some(id("node_a")),
        what: format!("{code} is not as it should be"),
        why: "replication would stop".to_owned(),
        fix: "change it and try again".to_owned(),
    }
}

pub(crate) fn end() -> EndView {
    EndView {
        node_id: id("node_b"),
        job_id: JobId(0xfeed),
        source_node: id("node_a"),
        state: NodeState::Synchronized,
        fault: None,
        tables: 40,
        rows_copied: 20_000_000,
        bytes_copied: 2_900_000_000,
        wire_bytes: 899_000_000,
        duration_seconds: 65.25,
        phases: PhaseSeconds {
            preparing: 1.5,
            copying: 40.25,
            indexing: 21.0,
            catching_up: 2.5,
        },
        warnings: vec![finding(Severity::Warning, "no_replica_identity")],
        report: report(),
    }
}

pub(crate) fn report() -> Report {
    let times = [
        (Phase::Preflight, 1.0),
        (Phase::Snapshot, 0.5),
        (Phase::Copy, 40.25),
        (Phase::Indexes, 21.0),
        (Phase::CatchUp, 2.5),
    ];
    let took = |table: &str, seconds| TableTime {
        schema: "public".to_owned(),
        table: table.to_owned(),
        rows: 10_000_000,
        bytes: 1_300_000_000,
        seconds,
    };
    Report {
        started_at: Some(at(0)),
        ended_at: Some(at(65)),
        method: Some(Method::Snapshot),
        parallel_workers: 4,
        phase_times: times
            .map(|(phase, seconds)| PhaseTime { phase, seconds })
            .to_vec(),
        slowest_tables: vec![
            took("pgbench_accounts", 38.5),
            took("pgbench_history", 4.25),
        ],
        not_copied: vec!["unlogged tables: public.cache".to_owned()],
        kept_until: None,
        lost_snapshots: vec![LostSnapshot {
            lsn: Lsn(0x16B_3748),
            tables: 3,
            rows: 10_000_000,
            bytes: 1_300_000_000,
            bytes_again: 250_000_000,
            lost_at: at(20),
            reason: "node_a: its agent was restarted".to_owned(),
        }],
    }
}

pub(crate) fn audit_entry() -> AuditView {
    AuditView {
        seq: 4,
        timestamp: at(3),
        operator: "alice".to_owned(),
        certificate: "0a:1b".to_owned(),
        address: "192.0.2.7".to_owned(),
        action: "init".to_owned(),
        node_id: id("node_b"),
        source_node: Some(id("node_a")),
        job_id: Some(JobId(0xfeed)),
        arguments: vec![
            ("method".to_owned(), "snapshot".to_owned()),
            ("parallel".to_owned(), "4".to_owned()),
        ],
        refused: None,
    }
}

pub(crate) fn event() -> EventView {
    EventView {
        seq: 7,
        timestamp: at(3),
        level: "info".to_owned(),
        event: "init.state_change".to_owned(),
        node_id: Some(id("node_b")),
        source_node: Some(id("node_a")),
        job_id: Some(JobId(0xfeed)),
        message: "node_b goes from preparing to copying".to_owned(),
        fields: vec![
            ("from".to_owned(), "preparing".to_owned()),
            ("to".to_owned(), "copying".to_owned()),
            ("rows_copied".to_owned(), "42".to_owned()),
            ("seq".to_owned(), "forged".to_owned()),
        ],
    }
}

pub(crate) fn snapshot(number: u64, state: SnapshotState) -> SnapshotView {
    let snapshot_id = SnapshotId(number);
    SnapshotView {
        snapshot_id,
        source_node: id("node_a"),
        lsn: Some(Lsn(7)),
        state,
        created_at: at(0),
        expires_at: None,
        slot_name: Replication::template(snapshot_id).slot,
        wal_held_bytes: None,
        tables: 4,
        parts: 9,
        rows: 1_000,
        bytes: 512_000_000,
        stored_bytes: 128_000_000,
        holders: Vec::new(),
        location: Some("/backup/app".to_owned()),
        codec: None,
        bytes_total: 0,
        current_table: None,
        parallel_workers: 0,
        operator: "dba".to_owned(),
        error_message: None,
        hint: None,
        warnings: Vec::new(),
        duration_seconds: 20.0,
        encryption: None,
        manifest_checksum: None,
    }
}
