//! Claims about jobs that were running when the coordinator's store was lost.

use std::path::Path;

use steep_protocol::message::agent::{AgentMessage, OpenSource};
use steep_protocol::message::lineage::{ChangeOrigin, Lineage, SubscriptionSeen, Tool};
use steep_protocol::{Fault, FaultKind, NodeState, Retry};

use super::world::*;
use super::*;
use crate::testing::{node, spec};

/// A job of `b` in the middle of its copy, and what its target tells a coordinator whose store is new. No agent has a
/// session yet.
fn lost(directory: &Path) -> (World, JobId, Lineage) {
    lost_at(directory, is_copy)
}

/// The same at another command.
fn lost_at(directory: &Path, at: fn(&Command) -> bool) -> (World, JobId, Lineage) {
    let mut world = World::open(directory, &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", at);
    let told = world.agent("b").history.iter().rev();
    let mut notes = told.filter_map(|(_, command)| match command {
        Command::Target(TargetCommand::Prepare(prepare)) => prepare.note.clone(),
        Command::Target(TargetCommand::BuildIndexes { note, .. }) => note.clone(),
        _ => None,
    });
    let note = notes.next();
    assert!(note.is_some());
    // What ran is ended by the next preparation.
    world.agent("b").at_work.clear();
    let world = world.restart_after(directory, || {
        for file in std::fs::read_dir(directory).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
    });
    let lineage = Lineage {
        jobs: vec![job],
        note,
        ..Lineage::default()
    };
    (world, job, lineage)
}

fn tell(world: &mut World, name: &str, lineage: &Lineage) {
    world.say(name, AgentMessage::Lineage(Box::new(lineage.clone())));
}

/// Every position that an open snapshot had to have, as the source was asked.
fn asked(world: &mut World) -> Vec<Option<Lsn>> {
    let told = world.agent("a").history.iter();
    told.filter_map(|(_, command)| match command {
        Command::Source(SourceCommand::Open(OpenSource { only_at, .. })) => Some(*only_at),
        _ => None,
    })
    .collect()
}

#[test]
fn a_job_goes_on_under_its_id_and_with_the_snapshot_that_is_open() {
    let directory = super::directory();
    let (mut world, job, lineage) = lost(directory.path());
    world.join("a");
    world.join("b");
    tell(&mut world, "b", &lineage);
    assert_eq!(world.node("b").state, NodeState::Preparing);
    assert_eq!(asked(&mut world), [None, Some(Lsn(9))]);
    // It is stored like any other.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Synchronized, "{view:?}");
    assert_eq!(world.progress("b").0.job_id, Some(job));
    let events = world.events("b");
    let adopted: Vec<_> = events
        .iter()
        .filter(|e| e.event == "init.adopted")
        .collect();
    assert_eq!(adopted.len(), 1);
    assert!(
        adopted[0]
            .fields
            .contains(&("operator".to_owned(), "dba".to_owned()))
    );
}

#[test]
fn a_job_with_all_rows_goes_on_without_its_snapshot_and_knows_what_it_copied() {
    let steps: [fn(&Command) -> bool; 4] = [
        |c| matches!(c, Command::Target(TargetCommand::BuildIndexes { .. })),
        |c| matches!(c, Command::Target(TargetCommand::BuildConstraints { .. })),
        |c| matches!(c, Command::Target(TargetCommand::Subscribe { .. })),
        |c| matches!(c, Command::Target(TargetCommand::Finish { .. })),
    ];
    for at in steps {
        let directory = super::directory();
        let (mut world, job, mut lineage) = lost_at(directory.path(), at);
        // One that was catching up has it.
        lineage.subscriptions.push(SubscriptionSeen {
            name: format!("steep_repl_{job}"),
            tool: Tool::PostgreSql,
            slot: Some(format!("steep_repl_{job}")),
            origin: ChangeOrigin::Any,
        });
        world.agent("a").snapshots.clear();
        world.agent("a").admitted.clear();
        world.join("a");
        world.join("b");
        tell(&mut world, "b", &lineage);
        assert_eq!(world.node("b").state, NodeState::Copying);
        let copied = world.progress("b").0;
        assert!(copied.rows_copied > 0 && copied.tables_completed == copied.tables_total);
        let told = &world.agent("a").history.last().unwrap().1;
        assert_eq!(*told, Command::Source(SourceCommand::CloseSnapshot));
        let admits = |c: &Command| matches!(c, Command::Source(SourceCommand::Admit { .. }));
        assert!(world.agent("a").history.iter().any(|(_, c)| admits(c)));
        // The sums are in the store.
        let mut world = world.restart(directory.path());
        world.join("a");
        world.join("b");
        world.run_on();
        let view = world.node("b");
        assert_eq!(view.state, NodeState::Synchronized, "{view:?}");
        let (progress, _) = world.progress("b");
        assert_eq!(
            (progress.job_id, progress.rows_copied),
            (Some(job), copied.rows_copied)
        );
        assert_eq!(progress.tables_completed, copied.tables_completed);
        assert_eq!(asked(&mut world), [None], "no snapshot is opened again");
    }
}

#[test]
fn a_job_waits_for_its_source_and_goes_on_even_if_that_is_late() {
    for late in [false, true] {
        let directory = super::directory();
        let (mut world, _, lineage) = lost(directory.path());
        world.join("b");
        tell(&mut world, "b", &lineage);
        world.skip(20);
        assert_eq!(world.node("b").state, NodeState::Uninitialized);
        if late {
            world.skip(10);
            let view = world.node("b");
            assert_eq!(view.state, NodeState::Failed);
            assert!(view.error_message.unwrap().contains("comes back"));
        }
        world.join("a");
        tell(&mut world, "a", &Lineage::default());
        assert_eq!(world.node("b").state, NodeState::Preparing);
        world.run_on();
        assert_eq!(world.node("b").state, NodeState::Synchronized);
    }
}

#[test]
fn what_may_have_rows_of_another_snapshot_is_left_to_an_operator() {
    type Change = fn(&mut World, &mut Lineage);
    let cases: [(&str, Change); 7] = [
        ("another snapshot", |world, _| {
            world.agent("a").held_at = Lsn(8);
        }),
        ("no longer holds", |world, _| {
            world.agent("a").snapshots.clear();
        }),
        ("no longer holds", |world, _| {
            world.agent("a").snapshots_of = "c";
        }),
        ("damaged", |_, lineage| lineage.note = Some("{}".to_owned())),
        ("--force-cleanup", |_, lineage| lineage.note = None),
        ("--force-cleanup", |_, lineage| lineage.jobs.push(JobId(1))),
        ("of another job", |_, lineage| lineage.jobs = vec![JobId(1)]),
    ];
    for (said, change) in cases {
        let directory = super::directory();
        let (mut world, _, mut lineage) = lost(directory.path());
        change(&mut world, &mut lineage);
        world.join("a");
        world.join("b");
        tell(&mut world, "b", &lineage);
        let view = world.node("b");
        assert_eq!(view.state, NodeState::Failed, "{said}");
        let reason = view.error_message.unwrap();
        assert!(reason.contains(said), "{reason}");
        assert!(reason.contains("--force-cleanup"), "{reason}");
        assert_eq!(asked(&mut world), [None]);
        assert!(world.agent("b").at_work.is_empty());
    }
}

#[test]
fn a_node_with_another_job_and_another_nodes_note_are_left_alone() {
    let directory = super::directory();
    let (mut world, job, lineage) = lost(directory.path());
    for name in ["a", "b", "c"] {
        world.join(name);
    }
    let other = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    tell(&mut world, "b", &lineage);
    tell(&mut world, "c", &lineage);
    assert_eq!(world.progress("b").0.job_id, Some(other));
    assert!(!world.driver.jobs.contains_key(&job));
    assert_eq!(world.node("c").state, NodeState::Failed);
    assert!(world.agents[&node("c")].at_work.is_empty());
}

#[test]
fn a_cancelled_job_is_not_adopted_again() {
    let directory = super::directory();
    let (mut world, _, lineage) = lost(directory.path());
    world.join("a");
    world.join("b");
    tell(&mut world, "b", &lineage);
    let mut cancelled = world.cancel("b");
    world.run_on();
    cancelled.try_recv().unwrap().unwrap();
    for name in ["a", "b"] {
        let told = &world.agent(name).history;
        assert!(
            told.iter().any(|(_, command)| is_cleanup(command)),
            "{name}"
        );
    }
    // A lineage that was read before.
    tell(&mut world, "b", &lineage);
    assert_eq!(world.node("b").state, NodeState::Uninitialized);
}

#[test]
fn a_job_whose_snapshot_is_gone_after_all_removes_its_rows_before_it_takes_another() {
    let directory = super::directory();
    let (mut world, _, lineage) = lost(directory.path());
    world.join("a");
    world.join("b");
    tell(&mut world, "b", &lineage);
    let gone = Fault::new(FaultKind::SourceChanged, "not open any more").retry(Retry::Never);
    world.end_one("a", Some(gone));
    let cleaned = world
        .agent("b")
        .at_work
        .values()
        .any(|(_, command)| is_cleanup(command));
    assert!(cleaned);
    assert_eq!(asked(&mut world).len(), 2);
    world.run_on();
    assert_eq!(asked(&mut world), [None, Some(Lsn(9)), None]);
    assert_eq!(world.node("b").state, NodeState::Synchronized);
}
