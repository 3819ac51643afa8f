//! Comparisons of rows: who reads whom, what keeps one alive and what ends it.

use steep_protocol::message::agent::{
    AgentMessage, Command, Outcome, ProgressReport, SourceCommand, TargetCommand, WorkProgress,
    WorkUnit,
};
use steep_protocol::message::api::Order;
use steep_protocol::message::verify::{
    Comparing, ModifiedBy, RowValues, TableReport, VerifyReport, VerifySpec,
};
use steep_protocol::{FaultKind, Phase, TableName};
use tokio::sync::watch;

use super::directory;
use super::world::World;
use crate::drive::{Answer, VerifyFeed};
use crate::testing::{node, spec};

type Feed = watch::Receiver<VerifyFeed>;

fn wanted(a: &str, b: &str) -> VerifySpec {
    VerifySpec {
        comparing: Comparing::Equality,
        node_a: node(a),
        node_b: node(b),
        tables: Vec::new(),
        values: RowValues::Hidden,
        parallel: 2,
        max_rate: None,
        modified: ModifiedBy::NotAsked,
    }
}

fn verify(world: &mut World, a: &str, b: &str) -> Feed {
    match world.ask(Order::Verify(Box::new(wanted(a, b)))) {
        Ok(Answer::Verifying(feed)) => feed,
        other => panic!("{other:?}"),
    }
}

fn is_verify(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Verify(_)))
}

/// Ends the comparison that `name` is at, with that report.
fn end(world: &mut World, name: &str, report: VerifyReport) {
    let (command, _) = world.agent(name).at_work.pop_first().unwrap();
    let outcome = Ok(Outcome::Compared(Box::new(report)));
    world.say(name, AgentMessage::Finished { command, outcome });
}

fn progress(world: &mut World, name: &str) {
    let at_work = world.agent(name).at_work.first_key_value();
    let (_, (job, _)) = at_work.unwrap();
    let work = WorkProgress {
        done: 1,
        total: 2,
        unit: WorkUnit::Bytes,
        current: None,
        workers: 2,
    };
    let report = ProgressReport {
        job: *job,
        phase: Phase::Copy,
        active: Vec::new(),
        work: Some(work),
        retries: 0,
    };
    world.say(name, AgentMessage::Progress(report));
}

fn missing_one() -> VerifyReport {
    let table = TableReport {
        missing: 1,
        ..TableReport::new(TableName::new("app", "t").unwrap())
    };
    VerifyReport {
        tables: vec![table],
        ..VerifyReport::default()
    }
}

fn ended(feed: &Feed) -> VerifyReport {
    match &feed.borrow().ended {
        Some(Ok(report)) => report.as_ref().clone(),
        other => panic!("{other:?}"),
    }
}

fn failed(feed: &Feed) -> FaultKind {
    match &feed.borrow().ended {
        Some(Err(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_replica_reads_its_source_whichever_is_named_first() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    for (first, second) in [("a", "b"), ("b", "a")] {
        let feed = verify(&mut world, first, second);
        world.until("b", is_verify);
        assert!(
            world.agent("a").admitted.len() == 1,
            "the source lets it ask"
        );
        end(&mut world, "b", missing_one());
        let table = &ended(&feed).tables[0];
        let (missing, extra) = if first == "a" { (1, 0) } else { (0, 1) };
        assert_eq!((table.missing, table.extra), (missing, extra));
        world.run_on();
        assert!(
            world.agent("a").admitted.is_empty(),
            "nobody may ask any more"
        );
        let events = world.events(second);
        let event = events.last().unwrap();
        assert_eq!(
            (event.event.as_str(), event.level.as_str()),
            ("verify.completed", "warn")
        );
    }
    let history = &world.agent("a").history;
    let admits = |(_, command): &&(_, Command)| {
        matches!(command, Command::Source(SourceCommand::AdmitVerify { .. }))
    };
    assert_eq!(history.iter().filter(admits).count(), 2);
}

#[test]
fn what_was_compared_before_an_interruption_is_left_out_and_counts() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    // The replica is named first, so its agent sees the tables the other way round.
    let feed = verify(&mut world, "b", "a");
    world.until("b", is_verify);
    let job = world.agent("b").at_work.first_key_value().unwrap().1.0;
    let report = Box::new(missing_one().tables.remove(0));
    world.say("b", AgentMessage::TableCompared { job, report });
    let told = feed.borrow().tables[0].as_ref().clone();
    assert_eq!((told.missing, told.extra), (0, 1));
    drop(feed);
    world.skip(1);

    let order = Order::VerifyRest {
        spec: Box::new(wanted("b", "a")),
        done: vec![told.clone()],
    };
    let Ok(Answer::Verifying(feed)) = world.ask(order) else {
        panic!("it is not begun");
    };
    let rest = |command: &Command| match command {
        Command::Target(TargetCommand::VerifyRest(_, done)) => *done == [told.name.clone()],
        _ => false,
    };
    world.until("b", rest);
    end(&mut world, "b", VerifyReport::default());
    assert_eq!(ended(&feed).tables, [told]);
    let events = world.events("a");
    let event = events.last().unwrap();
    assert_eq!(event.event.as_str(), "verify.completed");
    assert!(event.message.contains("differs"), "{event:?}");
}

#[test]
fn progress_keeps_it_alive_and_silence_ends_it() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let feed = verify(&mut world, "a", "b");
    world.until("b", is_verify);
    for _ in 0..10 {
        world.skip(500);
        progress(&mut world, "b");
    }
    assert!(matches!(&feed.borrow().work, Some(work) if work.done == 1));
    world.skip(700);
    assert_eq!(failed(&feed), FaultKind::Timeout);
    assert!(
        !world
            .agent("b")
            .at_work
            .values()
            .any(|(_, command)| is_verify(command))
    );
}

#[test]
fn an_operator_who_leaves_and_an_agent_that_is_lost_end_it() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let feed = verify(&mut world, "a", "b");
    world.until("b", is_verify);
    drop(feed);
    world.skip(1);
    assert!(world.agent("b").at_work.is_empty(), "it was aborted");
    world.run_on();
    assert!(world.agent("a").admitted.is_empty());

    let feed = verify(&mut world, "a", "b");
    world.until("b", is_verify);
    world.leave("b");
    assert_eq!(failed(&feed), FaultKind::Unreachable);
}
