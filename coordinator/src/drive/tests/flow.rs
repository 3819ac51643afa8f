//! Claims about jobs that go well.

use steep_protocol::message::agent::{
    AgentMessage, Command, Outcome, PartProgress, ProgressReport, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::EventView;
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, NodeState, PartNo, Phase};

use super::world::World;
use crate::testing::{node, spec};

use super::*;

#[test]
fn an_init_runs_to_synchronized_and_logs_every_step() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.run_on();
    let view = world.node("b");
    assert_eq!(
        (view.state, view.source_node),
        (NodeState::Synchronized, Some(node("a")))
    );
    assert!(view.init_completed_at.is_some() && view.error_message.is_none());
    let feed = follow.feed.borrow().clone();
    let end = feed.end.unwrap();
    assert_eq!(
        (end.rows_copied, end.bytes_copied, end.wire_bytes),
        (60, 6_000, 1_800)
    );
    assert_eq!((end.tables, end.fault.clone()), (3, None));
    assert_eq!(feed.view.overall_percent, 100.0);
    assert!(
        world.driver.jobs.is_empty(),
        "a job that has ended is dropped from memory"
    );

    let events = world.events("b");
    let names: Vec<&str> = events.iter().map(|e| e.event.as_str()).collect();
    for wanted in [
        "init.started",
        "init.state_change",
        "init.phase_started",
        "init.phase_completed",
        "init.table_started",
        "init.table_complete",
        "init.completed",
        "agent.connected",
    ] {
        assert!(names.contains(&wanted), "{wanted} is missing in {names:?}");
    }
    let field = |event: &EventView, name: &str| {
        event
            .fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.clone())
    };
    let changes = events.iter().filter(|e| e.event == "init.state_change");
    let changes: Vec<_> = changes.map(|e| field(e, "to").unwrap()).collect();
    assert_eq!(
        changes,
        ["preparing", "copying", "catching_up", "synchronized"]
    );
    let started = events.iter().find(|e| e.event == "init.started").unwrap();
    assert_eq!(field(started, "operator").as_deref(), Some("dba"));

    // All outcomes were acknowledged, and the target's mirror row agrees.
    assert!(
        world
            .agents
            .values()
            .all(|agent| agent.kept.is_empty() && agent.at_work.is_empty())
    );
    let row = world.agent("b").mirrored.last().unwrap().clone();
    assert_eq!(
        (row.state, row.overall_percent),
        (NodeState::Synchronized, 100.0)
    );

    // From now on answers come from the store.
    let (view, end) = world.progress("b");
    assert_eq!(
        (view.tables.len(), view.tables_completed, view.rows_copied),
        (3, 3, 60)
    );
    assert_eq!(end.unwrap().wire_bytes, 1_800);
}

#[test]
fn the_native_method_goes_through_the_same_states() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let mut native = spec("a", "b");
    native.method = Method::Native;
    world.init(vec![native]).unwrap();
    world.until("b", |c| {
        matches!(c, Command::Target(TargetCommand::AwaitNativeCopy))
    });
    assert_eq!(world.state("b"), NodeState::Copying);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert!(!world.agent("b").history.iter().any(|(_, c)| is_copy(c)));
}

#[test]
fn progress_is_shown_while_it_moves_and_mirrored_every_second() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("b", is_copy);
    let mirrored = world.agent("b").mirrored.len();
    let mut versions = vec![follow.feed.borrow().version];
    for step in 1..=4u64 {
        let active = vec![PartProgress {
            part: PartNo(0),
            bytes: ByteCount(200 * step),
            wire: ByteCount(50),
        }];
        let report = ProgressReport {
            job: follow.job,
            phase: Phase::Copy,
            active,
            work: None,
            retries: 0,
        };
        world.say("b", AgentMessage::Progress(report));
        world.skip(1);
        versions.push(follow.feed.borrow().version);
    }
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    let view = follow.feed.borrow().view.clone();
    assert_eq!(view.current_table.as_deref(), Some("public.t0"));
    assert_eq!((view.bytes_copied, view.parallel_workers), (800, 1));
    assert!(view.throughput_bytes_sec > 0.0 && view.eta_seconds.is_some());
    assert!(world.agent("b").mirrored.len() >= mirrored + 4);
    let row = world.agent("b").mirrored.last().unwrap();
    assert_eq!(
        (row.phase, row.tables, row.bytes),
        (Some(Phase::Copy), (0, 3), ByteCount(800))
    );
}

#[test]
fn a_job_of_many_tables_is_cheap_and_logs_large_ones_only() {
    use steep_protocol::message::agent::TableSummary;
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("a", |c| {
        matches!(c, Command::Source(SourceCommand::Open(_)))
    });
    let mut tables: Vec<TableSummary> = (0..10_000u32)
        .map(|no| TableSummary {
            no: steep_protocol::TableNo(no),
            name: steep_protocol::TableName::new("public", format!("t{no}")).unwrap(),
            rows_estimate: steep_protocol::RowCount(0),
            bytes_estimate: ByteCount(0),
            first_part: PartNo(no),
            parts: 1,
        })
        .collect();
    tables[17].bytes_estimate = ByteCount(1 << 30);
    let (command, _) = world.agent("a").at_work.pop_first().unwrap();
    for page in tables.chunks(5_000) {
        let tables = page.to_vec();
        world.say(
            "a",
            AgentMessage::PlanPage {
                job: follow.job,
                tables,
            },
        );
    }
    let lsn = steep_protocol::Lsn(1);
    let outcome = Ok(Outcome::SourceOpened {
        lsn,
        tables: 10_000,
        parts: 10_000,
    });
    world.say("a", AgentMessage::Finished { command, outcome });
    world.until("b", is_copy);
    let parts = (0..10_000).map(super::world::done).collect();
    world.say(
        "b",
        AgentMessage::PartsDone {
            job: follow.job,
            parts,
        },
    );
    let events = world.events("b");
    let completed = events.iter().filter(|e| e.event == "init.table_complete");
    let completed: Vec<_> = completed.collect();
    assert_eq!(completed.len(), 1);
    assert!(completed[0].message.contains("public.t17"));
    assert!(
        events
            .iter()
            .any(|e| e.message.contains("only those of 64 MiB and more"))
    );
    assert_eq!(world.progress("b").0.tables.len(), 10_000);
}
