//! Claims about `init adjust`.

use steep_protocol::message::adjust::{Adjusted, Adjustment, MaxRate};
use steep_protocol::message::agent::{Command, TargetCommand};
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, Fault, FaultKind, Phase};

use super::world::{World, replies};
use crate::testing::{node, spec};

use super::*;

const CHANGE: Adjustment = Adjustment {
    parallel: Some(8),
    max_rate: Some(MaxRate::Unlimited),
};

fn adjust(world: &mut World, name: &str, change: Adjustment) -> Result<Adjusted, Fault> {
    let node = node(name);
    let answer = world.ask(Order::Adjust { node, change })?;
    match &replies(Ok(answer))[..] {
        [ApiReply::Adjusted(adjusted)] => Ok(*adjusted),
        other => panic!("{other:?}"),
    }
}

/// Workers and rate of the copy at work, as the agent last heard of them.
fn terms(world: &mut World) -> (u8, Option<ByteCount>) {
    let mut at_work = world.agent("b").at_work.values();
    let copy = at_work.find_map(|(_, command)| match command {
        Command::Target(TargetCommand::Copy(copy)) => Some((copy.parallel, copy.max_rate)),
        _ => None,
    });
    copy.unwrap()
}

fn slow() -> steep_protocol::message::job::JobSpec {
    let mut slow = spec("a", "b");
    slow.parallel = 2;
    slow.max_rate = Some(ByteCount(1_000));
    slow
}

#[test]
fn new_terms_reach_the_copy_and_every_later_command_also_after_a_restart() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![slow()]).unwrap()[0].job;
    world.until("b", is_copy);
    assert_eq!(terms(&mut world), (2, Some(ByteCount(1_000))));
    let adjusted = adjust(&mut world, "b", CHANGE).unwrap();
    assert_eq!((adjusted.job_id, adjusted.from_phase), (job, None));
    assert_eq!((adjusted.parallel, adjusted.parallel_workers), (8, 8));
    assert_eq!(terms(&mut world), (8, None));
    // The last order counts, and says only what changes.
    let fewer = Adjustment {
        parallel: Some(3),
        max_rate: None,
    };
    assert_eq!(adjust(&mut world, "b", fewer).unwrap().max_rate, None);
    assert_eq!(terms(&mut world), (3, None));

    let mut world = world.restart(directory.path());
    let rate = Adjustment {
        parallel: None,
        max_rate: Some(MaxRate::Limited(ByteCount(7))),
    };
    // Nobody is there yet: the agent hears of it when it is back.
    adjust(&mut world, "b", rate).unwrap();
    world.join("a");
    world.join("b");
    assert_eq!(terms(&mut world), (3, Some(ByteCount(7))));
    world.until("b", |c| {
        matches!(c, Command::Target(TargetCommand::BuildIndexes { .. }))
    });
    let late = adjust(&mut world, "b", rate).unwrap_err();
    assert!(late.message.contains("rows are copied (indexes)"), "{late}");
    let fewer = adjust(&mut world, "b", fewer).unwrap();
    assert_eq!(fewer.from_phase, Some(Phase::Constraints));
    world.run_on();
    let gone = adjust(&mut world, "b", fewer_still()).unwrap_err();
    assert!(gone.message.contains("it is synchronized"), "{gone}");

    let events = world.events("b");
    let adjusted: Vec<_> = events
        .iter()
        .filter(|e| e.event == "init.adjusted")
        .collect();
    assert_eq!(adjusted.len(), 4);
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert!(adjusted[0].fields.contains(&field("parallel", "8")));
    assert!(adjusted[2].fields.contains(&field("max_rate", "7")));
    let audited = &world.agent("b").audited;
    let of = |entry: &&steep_protocol::message::api::AuditView| entry.action == "init.adjust";
    let entry = audited.iter().find(of).unwrap();
    assert_eq!(
        (entry.job_id, &entry.source_node),
        (Some(job), &Some(node("a")))
    );
}

fn fewer_still() -> Adjustment {
    Adjustment {
        parallel: Some(1),
        max_rate: None,
    }
}

#[test]
fn the_workers_of_other_jobs_are_not_taken_away() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let mut other = spec("a", "c");
    other.parallel = 14;
    world.init(vec![slow(), other]).unwrap();
    world.until("b", is_copy);
    // b's copy runs until c's copy starts.
    while !world.agent("c").at_work.values().any(|(_, c)| is_copy(c)) {
        world.end_one("a", None);
        world.end_one("c", None);
    }
    let adjusted = adjust(&mut world, "b", CHANGE).unwrap();
    let given = (adjusted.parallel, adjusted.parallel_workers);
    assert_eq!((given, terms(&mut world).0), ((8, 2), 2));
    assert_eq!(
        world.progress("b").0.parallel_workers,
        0,
        "none has said that it works"
    );
}

#[test]
fn what_cannot_be_adjusted_is_refused_with_what_helps() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let refused = adjust(&mut world, "nowhere", CHANGE).unwrap_err();
    assert_eq!(refused.kind, FaultKind::BadRequest);
    let refused = adjust(&mut world, "b", CHANGE).unwrap_err();
    assert!(refused.message.contains("it is uninitialized"), "{refused}");
    let mut native = spec("a", "c");
    native.method = Method::Native;
    world.init(vec![native, slow()]).unwrap();
    let refused = adjust(&mut world, "c", CHANGE).unwrap_err();
    assert!(
        refused.message.contains("the method is native"),
        "{refused}"
    );
    for (parallel, max_rate) in [(None, None), (Some(0), None), (Some(17), None)] {
        let change = Adjustment { parallel, max_rate };
        let refused = adjust(&mut world, "b", change).unwrap_err();
        assert_eq!(refused.kind, FaultKind::BadRequest, "{change:?}");
    }
    let early = adjust(&mut world, "b", CHANGE).unwrap();
    assert_eq!(early.from_phase, Some(Phase::Copy));
    world.until("b", is_copy);
    assert_eq!(terms(&mut world), (8, None));
    world.end_one("b", Some(Fault::new(FaultKind::Failed, "disk full")));
    let refused = adjust(&mut world, "b", CHANGE).unwrap_err();
    assert!(refused.hint.contains("--resume"), "{}", refused.hint);
    let _answer = world.cancel("b");
    let refused = adjust(&mut world, "b", CHANGE).unwrap_err();
    assert!(refused.message.contains("being stopped"), "{refused}");
}
