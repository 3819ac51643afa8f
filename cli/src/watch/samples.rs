//! A cluster in which everything happens at once, and screens of it as text, for tests.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use steep_protocol::encryption::{Encryption, Recipients};
use steep_protocol::message::api::{JobView, PhaseTime};
use steep_protocol::message::facts::Severity;
use steep_protocol::message::job::{Confirmation, JobSpec};
use steep_protocol::message::snapshot::SnapshotState;
use steep_protocol::{JobId, NodeState, Phase};

use super::keys::{Effect, Input, press};
use super::model::Drawn;
use super::model::{Model, Update};
use super::view;
use super::view::theme::{Colours, Signs, Theme};
use crate::render::samples::{at, event, finding, id, node, progress, snapshot, table};

pub(super) const COLOURED: Theme = Theme {
    colours: Colours::Yes,
    signs: Signs::UNICODE,
};

pub(super) const PLAIN: Theme = Theme {
    colours: Colours::No,
    signs: Signs::ASCII,
};

/// The screen as it is written to a terminal of that size, and what drawing it found out.
pub(super) fn drawn(
    model: &Model,
    theme: &Theme,
    columns: u16,
    lines: u16,
) -> (Terminal<TestBackend>, Drawn) {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    let mut drawn = Drawn::default();
    terminal
        .draw(|frame| drawn = view::draw(model, theme, frame.area(), frame.buffer_mut()))
        .unwrap();
    (terminal, drawn)
}

/// The screen as it is written to a terminal of that size.
pub(super) fn terminal(
    model: &Model,
    theme: &Theme,
    columns: u16,
    lines: u16,
) -> Terminal<TestBackend> {
    drawn(model, theme, columns, lines).0
}

/// As text, without spaces at the ends of lines.
pub(super) fn screen(model: &Model, columns: u16, lines: u16) -> String {
    let terminal = terminal(model, &COLOURED, columns, lines);
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in 0..lines {
        let cells = (0..columns).map(|column| buffer[(column, line)].symbol());
        let row: String = cells.collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn spec() -> JobSpec {
    JobSpec {
        confirmation: Confirmation::Given,
        ..JobSpec::new(id("node_a"), id("node_b"))
    }
}

pub(super) fn job() -> JobView {
    let mut done = table("pgbench_branches", 100.0);
    done.rows = 100;
    done.bytes = 4_000;
    let mut pending = table("orders", 0.0);
    pending.state = steep_protocol::message::api::TableState::Pending;
    JobView {
        job_id: JobId(0xfeed),
        spec: spec(),
        operator: "dba".to_owned(),
        accepted_at: at(0),
        ended_at: None,
        phase_times: vec![
            PhaseTime {
                phase: Phase::Preflight,
                seconds: 2.5,
            },
            PhaseTime {
                phase: Phase::Snapshot,
                seconds: 0.25,
            },
            PhaseTime {
                phase: Phase::Schema,
                seconds: 3.0,
            },
        ],
        current_phase: Some((Phase::Copy, at(6))),
        findings: vec![
            finding(Severity::Info, "sequences"),
            finding(Severity::Warning, "no_replica_identity"),
        ],
        tables: vec![
            table("pgbench_accounts", 12.0),
            table("pgbench_history", 7.0),
            pending,
            done,
        ],
        end: None,
    }
}

/// A cluster in which everything happens at once.
pub(super) fn cluster() -> Model {
    let mut model = Model::new("coordinator.example.net:7400", at(0));
    model.apply(Update::Connected, at(20));
    let mut copying = node("node_b", NodeState::Copying);
    copying.source_node = Some(id("node_a"));
    copying.wal_held_bytes = Some(48_000_000);
    let mut following = node("node_c", NodeState::Synchronized);
    following.source_node = Some(id("node_a"));
    following.lag_bytes = Some(1_234_567);
    following.wal_held_bytes = Some(16_777_216);
    let mut failed = node("berlin-replica-2", NodeState::Failed);
    failed.source_node = Some(id("node_a"));
    failed.error_message = Some("the disk is full: could not extend file".to_owned());
    let mut away = node("node_e", NodeState::Diverged);
    away.agent_online = false;
    away.source_node = Some(id("node_a"));
    let mut down = node("node_f", NodeState::Uninitialized);
    down.postgres_error = Some("connection refused".to_owned());
    let mut source = node("node_a", NodeState::Uninitialized);
    source.replicas = ["node_b", "node_c", "berlin-replica-2", "node_e"]
        .map(id)
        .to_vec();
    let nodes = vec![source, copying, following, failed, away, down];
    model.apply(Update::Nodes(nodes), at(20));
    for second in 0..9u32 {
        let mut view = progress();
        view.throughput_bytes_sec = 85_200_000.0 - f64::from(second % 4) * 9_000_000.0;
        model.apply(Update::Progress(Box::new(view)), at(21 + i64::from(second)));
    }
    for (seq, level, text) in [
        (1, "info", "node_b: preparing to copying"),
        (2, "warn", "node_a: 3 tables without replica identity"),
        (3, "info", "copying public.pgbench_accounts"),
        (4, "error", "cannot write to its disk"),
    ] {
        let mut event = event();
        event.seq = seq;
        event.timestamp = at(seq as i64);
        event.level = level.to_owned();
        event.message = text.to_owned();
        if seq == 4 {
            event.node_id = Some(id("berlin-replica-2"));
        }
        model.apply(Update::Event(event), at(30));
    }
    model
}

/// [`cluster`], with a snapshot that is read, one that holds much WAL, and one that is well.
/// To one recipient.
fn encryption() -> Encryption {
    let recipient = format!("age1{}", "q".repeat(58)).parse();
    let recipients = vec![recipient.expect("58 characters")];
    Encryption::age(Recipients::try_from(recipients).expect("one recipient"))
}

pub(super) fn with_snapshots() -> Model {
    let mut model = cluster();
    let mut read = snapshot(0xa1, SnapshotState::Live);
    (read.bytes, read.bytes_total) = (430_000_000, 1_000_000_000);
    let mut well = snapshot(0xb2, SnapshotState::Sealed);
    well.wal_held_bytes = Some(16_777_216);
    well.expires_at = Some(at(30 + 3 * 3_600));
    well.encryption = Some(encryption());
    let mut holds = snapshot(0xc3, SnapshotState::Sealed);
    holds.wal_held_bytes = Some(600_000_000);
    holds.expires_at = Some(at(30 + 40 * 3_600));
    holds.warnings = vec!["its slot holds 600 MB of WAL".to_owned()];
    model.apply(Update::Snapshots(vec![well, holds, read]), at(30));
    model
}

pub(super) fn opened() -> Model {
    let mut model = cluster();
    model.selected = Some(id("node_b"));
    assert_eq!(
        press(&mut model, Input::Enter),
        Some(Effect::Open(id("node_b")))
    );
    model.apply(Update::Job(Box::new(job())), at(30));
    model
}
