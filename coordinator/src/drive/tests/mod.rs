//! The loop against a cluster in memory: requests, sessions, restarts, deaths, drift.

mod world;

use steep_protocol::message::agent::{
    AgentMessage, Command, Outcome, PartProgress, ProgressReport, SlotStatus, SubscriptionStatus,
};
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeState, PartNo, Phase};

use super::{Answer, Question, Wake};
use crate::store::NodeRecord;
use crate::testing::{node, spec};
use world::{PARTS, World};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn is_copy(command: &Command) -> bool {
    matches!(command, Command::Copy { .. })
}

fn is_cleanup(command: &Command) -> bool {
    matches!(
        command,
        Command::CleanupSource | Command::CleanupTarget { .. }
    )
}

fn slot(job: JobId, wal_status: &str) -> SlotStatus {
    SlotStatus {
        job,
        active: true,
        lag: ByteCount(77),
        wal_held: ByteCount(99),
        wal_status: wal_status.to_owned(),
    }
}

fn subscription(job: JobId, enabled: bool) -> SubscriptionStatus {
    SubscriptionStatus {
        job,
        enabled,
        running: true,
        apply_errors: 0,
    }
}

#[test]
fn an_init_runs_to_synchronized_and_tells_all_of_it() {
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
        "a job that is over leaves memory"
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
    let field = |event: &super::EventView, name: &str| {
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

    // Everything was acknowledged, and both nodes' own tables say the same.
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

    // What is asked afterwards comes out of the store.
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
    world.until("b", |c| matches!(c, Command::AwaitNativeCopy));
    assert_eq!(world.state("b"), NodeState::Copying);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert!(!world.agent("b").history.iter().any(|(_, c)| is_copy(c)));
}

#[test]
fn a_restarted_coordinator_goes_on_with_the_same_commands() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    let before = world.agent("b").history.last().unwrap().0;
    let job = *world.driver.jobs.keys().next().unwrap();
    world.say(
        "b",
        AgentMessage::PartsDone {
            job,
            parts: vec![world::done(0), world::done(5)],
        },
    );
    let mut world = world.restart(directory.path());
    assert_eq!(world.state("b"), NodeState::Copying);
    assert_eq!(
        world.progress("b").0.rows_copied,
        20,
        "what was counted is known"
    );
    world.skip(20);
    assert_eq!(
        world.state("b"),
        NodeState::Copying,
        "agents get time to come back"
    );
    world.join("a");
    world.join("b");
    assert_eq!(
        world.agent("b").history.last().unwrap().0,
        before,
        "sent again with its id"
    );
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_command_that_ended_while_the_coordinator_was_down_is_not_done_twice() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", |c| matches!(c, Command::BuildIndexes { .. }));
    let (id, _) = world.agent("b").at_work.pop_first().unwrap();
    world
        .agent("b")
        .kept
        .insert(id, Ok(Outcome::Warned(Vec::new())));
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let builds = world.agent("b").history.iter();
    assert_eq!(
        builds
            .filter(|(_, c)| matches!(c, Command::BuildIndexes { .. }))
            .count(),
        1
    );
    assert!(world.agent("b").kept.is_empty());
}

#[test]
fn ids_of_commands_are_never_used_again_after_a_restart() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let before: Vec<_> = world.agent("b").history.iter().map(|(id, _)| *id).collect();
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.join("c");
    world.init(vec![spec("a", "c")]).unwrap();
    world.run_on();
    assert_eq!(world.state("c"), NodeState::Synchronized);
    assert!(
        world
            .agent("c")
            .history
            .iter()
            .all(|(id, _)| !before.contains(id))
    );
}

#[test]
fn of_two_inits_of_one_node_exactly_one_wins() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    assert!(world.init(vec![spec("a", "b")]).is_ok());
    let fault = world.init(vec![spec("c", "b")]).unwrap_err();
    assert!(
        fault.message.contains("already being initialised"),
        "{fault}"
    );
    assert!(
        fault.hint.contains("init cancel --node b"),
        "{}",
        fault.hint
    );
    assert_eq!(world.driver.jobs.len(), 1);
    world.run_on();
    let fault = world.init(vec![spec("a", "b")]).unwrap_err();
    assert!(fault.message.contains("already synchronized") && fault.hint.contains("reinit"));
}

#[test]
fn what_cannot_be_initialised_is_refused_and_nothing_changes() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c", "off"]);
    world.leave("off");
    let kind = |world: &mut World, specs| world.init(specs).unwrap_err().kind;
    assert_eq!(kind(&mut world, vec![]), FaultKind::BadRequest);
    assert_eq!(
        kind(&mut world, vec![spec("a", "a")]),
        FaultKind::BadRequest
    );
    assert_eq!(
        kind(&mut world, vec![spec("a", "off")]),
        FaultKind::Unreachable
    );
    assert_eq!(
        kind(&mut world, vec![spec("off", "b")]),
        FaultKind::Unreachable
    );
    let fault = world.init(vec![spec("a", "nowhere")]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.hint.contains("a, b, c, off"), "{}", fault.hint);
    let mut two_phase = spec("a", "b");
    two_phase.method = Method::TwoPhase;
    let fault = world.init(vec![two_phase]).unwrap_err();
    assert!(fault.message.contains("not yet available"), "{fault}");
    for parallel in [0, 17] {
        let mut many = spec("a", "b");
        many.parallel = parallel;
        assert_eq!(kind(&mut world, vec![many]), FaultKind::BadRequest);
    }
    // All or none: the second target is not there.
    assert_eq!(
        kind(&mut world, vec![spec("a", "b"), spec("a", "off")]),
        FaultKind::Unreachable
    );
    assert_eq!(
        kind(&mut world, vec![spec("a", "b"), spec("c", "b")]),
        FaultKind::BadRequest
    );
    assert!(world.driver.jobs.is_empty());
    assert_eq!(world.state("b"), NodeState::Uninitialized);
}

#[test]
fn several_targets_begin_together_and_share_the_sources_workers() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let mut specs = vec![spec("a", "b"), spec("a", "c")];
    specs[0].parallel = 14;
    assert_eq!(world.init(specs).unwrap().len(), 2);
    world.until("b", is_copy);
    world.until("c", is_copy);
    let workers = |world: &mut World, name: &str| {
        let copies = world
            .agent(name)
            .history
            .iter()
            .filter_map(|(_, c)| match c {
                Command::Copy { parallel, .. } => Some(*parallel),
                _ => None,
            });
        copies.last().unwrap()
    };
    let given = u16::from(workers(&mut world, "b")) + u16::from(workers(&mut world, "c"));
    assert!(given <= 16, "{given} workers on one agent of 16");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert_eq!(world.state("c"), NodeState::Synchronized);
}

#[test]
fn a_node_at_work_is_no_source_and_a_source_at_work_is_no_target() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![spec("a", "b")]).unwrap();
    let fault = world.init(vec![spec("b", "c")]).unwrap_err();
    assert!(fault.message.contains("cannot be a source"), "{fault}");
    let fault = world.init(vec![spec("c", "a")]).unwrap_err();
    assert!(fault.message.contains("is the source of job"), "{fault}");
    world.run_on();
    // Emptying a would empty b, which follows it, and then there would be nothing to copy.
    let fault = world.init(vec![spec("b", "a")]).unwrap_err();
    assert!(fault.message.contains("follows"), "{fault}");
    // A chain is fine.
    world.init(vec![spec("b", "c")]).unwrap();
    world.run_on();
    assert_eq!(world.state("c"), NodeState::Synchronized);
}

#[test]
fn a_cancel_answers_when_everything_is_removed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("b", is_copy);
    let mut answer = world.cancel("b");
    assert!(
        answer.try_recv().is_err(),
        "answered before anything was removed"
    );
    let first: Vec<_> = world
        .agent("b")
        .at_work
        .values()
        .map(|(_, c)| c.clone())
        .collect();
    assert!(
        matches!(first[..], [Command::CleanupTarget { .. }]),
        "{first:?}"
    );
    assert!(
        world.agent("a").at_work.is_empty(),
        "the source waits for the target"
    );
    world.run_on();
    assert!(matches!(answer.try_recv(), Ok(Ok(Answer::Done))));
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    let end = follow.feed.borrow().end.clone().unwrap();
    assert_eq!(end.fault.as_ref().unwrap().kind, FaultKind::Cancelled);
    let events = world.events("b");
    let cancelled = events.iter().find(|e| e.event == "init.cancelled").unwrap();
    assert!(
        cancelled
            .fields
            .contains(&("operator".to_owned(), "dba".to_owned()))
    );
    // And again from the beginning.
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn there_is_nothing_to_cancel_on_a_node_without_a_job() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let fault = world.cancel("b").try_recv().unwrap().unwrap_err();
    assert!(fault.message.contains("b is uninitialized"), "{fault}");
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let fault = world.cancel("b").try_recv().unwrap().unwrap_err();
    assert!(fault.message.contains("b is synchronized"), "{fault}");
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_dead_agent_fails_the_job_and_is_cleaned_when_it_returns() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    world.kill("b");
    world.skip(9);
    assert_eq!(world.state("b"), NodeState::Copying);
    world.skip(1);
    world.run_on();
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    assert!(view.error_message.unwrap().contains("away"));
    let done = world.agent("a").history.last().unwrap().1.clone();
    assert_eq!(
        done,
        Command::CleanupSource,
        "the source is not left with a slot"
    );
    let fault = world.init(vec![spec("a", "b")]).unwrap_err();
    assert!(
        fault.hint.contains("bring the agent of b back"),
        "{}",
        fault.hint
    );

    // The coordinator's memory of what is owed is durable.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    assert!(world.agent("b").history.iter().any(|(_, c)| is_cleanup(c)));
    assert_eq!(world.state("b"), NodeState::Failed);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_failed_command_fails_the_job_with_its_cause_and_leaves_nothing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("b", is_copy);
    world.end_one(
        "b",
        Some(Fault::new(FaultKind::Failed, "disk full").hint("make room")),
    );
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Failed);
    let fault = follow
        .feed
        .borrow()
        .end
        .as_ref()
        .unwrap()
        .fault
        .clone()
        .unwrap();
    assert_eq!(
        (fault.message.as_str(), fault.hint.as_str()),
        ("disk full", "make room")
    );
    for name in ["a", "b"] {
        assert!(
            world.agent(name).history.iter().any(|(_, c)| is_cleanup(c)),
            "{name}"
        );
    }
    // A cancel of what is clean already only changes the state.
    let mut answer = world.cancel("b");
    assert!(matches!(answer.try_recv(), Ok(Ok(Answer::Done))));
    assert_eq!(world.state("b"), NodeState::Uninitialized);
}

#[test]
fn a_lost_slot_or_a_disabled_subscription_is_divergence_and_can_be_cancelled() {
    for lost in [true, false] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
        world.run_on();
        world.observe("a", Some(slot(job, "reserved")), None);
        world.observe("b", None, Some(subscription(job, true)));
        let view = world.node("b");
        assert_eq!(
            (view.state, view.lag_bytes),
            (NodeState::Synchronized, Some(77))
        );
        assert_eq!(
            (view.wal_held_bytes, view.postgres_version),
            (Some(99), Some(180_000))
        );
        if lost {
            world.observe("a", Some(slot(job, "lost")), None);
        } else {
            world.observe("b", None, Some(subscription(job, false)));
            assert_eq!(
                world.state("b"),
                NodeState::Synchronized,
                "once may be a passing state"
            );
            world.observe("b", None, Some(subscription(job, false)));
            world.observe("b", None, Some(subscription(job, false)));
        }
        let view = world.node("b");
        assert_eq!(view.state, NodeState::Diverged);
        assert!(view.error_message.is_some());
        assert!(world.init(vec![spec("a", "b")]).is_err());
        let mut answer = world.cancel("b");
        world.run_on();
        assert!(matches!(answer.try_recv(), Ok(Ok(Answer::Done))));
        assert_eq!(world.state("b"), NodeState::Uninitialized);
    }
}

#[test]
fn a_server_that_cannot_be_asked_is_no_divergence() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let down = steep_protocol::message::agent::Observed {
        postgres: Some(Err("connection refused".to_owned())),
        ..Default::default()
    };
    for _ in 0..10 {
        world.say("a", AgentMessage::Observed(down.clone()));
        world.say("b", AgentMessage::Observed(down.clone()));
    }
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Synchronized);
    assert_eq!(view.postgres_error.as_deref(), Some("connection refused"));
}

#[test]
fn the_preflight_alone_touches_nothing_and_takes_its_permission_back() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let specs = vec![spec("a", "b"), spec("a", "c")];
    let mut answer = world.ask_later(Question::Doctor { specs });
    world.run_on();
    let Ok(Ok(Answer::Findings(findings))) = answer.try_recv() else {
        panic!("no findings");
    };
    let targets: Vec<_> = findings.iter().map(|(target, _)| target.clone()).collect();
    assert_eq!(targets, [node("b"), node("c")]);
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    let last = &world.agent("a").history.last().unwrap().1;
    assert_eq!(*last, Command::CleanupSource);
    assert!(world.agents.values().all(|agent| agent.kept.is_empty()));

    let specs = vec![spec("a", "b")];
    let mut answer = world.ask_later(Question::Doctor { specs });
    world.leave("a");
    let fault = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unreachable);
    assert!(world.driver.doctors.is_empty());
}

#[test]
fn an_agent_speaks_for_its_own_commands_and_its_newest_session_only() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "evil"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    let job = *world.driver.jobs.keys().next().unwrap();
    let (command, _) = *world
        .agent("b")
        .at_work
        .first_key_value()
        .map(|(id, _)| (*id, ()))
        .as_ref()
        .unwrap();
    world.say(
        "evil",
        AgentMessage::Finished {
            command,
            outcome: Ok(Outcome::Done),
        },
    );
    let parts = (0..PARTS).map(world::done).collect();
    world.say("evil", AgentMessage::PartsDone { job, parts });
    assert_eq!(world.progress("b").0.rows_copied, 0);
    assert_eq!(world.state("b"), NodeState::Copying);
    // A second session of b takes the place of the first, whose words count no more.
    let old = world.agent("b").session;
    world.join("b");
    let stale = super::AgentInput::Said {
        node: node("b"),
        session: old,
        message: AgentMessage::Finished {
            command,
            outcome: Err(Fault::new(FaultKind::Failed, "x")),
        },
    };
    world.driver.turn(&mut vec![stale], Wake::Agents).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
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
    world.until("a", |c| matches!(c, Command::OpenSource { .. }));
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
    let parts = (0..10_000).map(world::done).collect();
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

#[test]
fn nodes_that_nobody_initialised_are_listed_too() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["b", "a"]);
    let Ok(Answer::Nodes(nodes)) = world.ask(Question::Nodes { node: None }) else {
        panic!("no nodes");
    };
    let names: Vec<_> = nodes.iter().map(|n| n.node_id.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(nodes.iter().all(|n| n.agent_online && n.progress.is_none()));
    let (view, end) = world.progress("a");
    assert_eq!((view.state, end), (NodeState::Uninitialized, None));
    world.leave("a");
    assert!(!world.node("a").agent_online);
    let record = NodeRecord::new(node("a"));
    assert_ne!(
        world.driver.nodes[&node("a")],
        record,
        "what the agent said of itself is kept"
    );
    assert!(world.ask(Question::Progress { node: node("x") }).is_err());
}
