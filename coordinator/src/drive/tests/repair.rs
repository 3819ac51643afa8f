//! Repairs: of whom, what an operator is answered, and what is logged.

use steep_protocol::message::agent::{AgentMessage, Command, Outcome, TargetCommand};
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::repair::{
    DatabaseId, PagePlace, PlannedRow, PlannedTable, RepairCounts, RepairPlan, RepairReport,
    RepairSpec, RepairedTable, RowChange,
};
use steep_protocol::message::verify::{RowDigest, RowKey, RowShape};
use steep_protocol::{Fault, FaultKind, TableName};

use super::directory;
use super::world::World;
use crate::drive::Answer;
use crate::testing::{node, spec};

fn page(a: &str, b: &str, (page, pages): (u32, u32), rows: usize) -> RepairSpec {
    let digest = RowDigest(1);
    let change = RowChange::Insert { source: digest };
    let row = PlannedRow::new(RowKey(vec!["7".to_owned()]), change);
    let database = DatabaseId {
        system: 1,
        database: 1,
    };
    RepairSpec {
        node_a: node(a),
        node_b: node(b),
        plan: RepairPlan {
            source: database,
            target: database,
            tables: vec![PlannedTable {
                name: TableName::new("app", "t").unwrap(),
                shape: RowShape {
                    columns: Vec::new(),
                    key: Vec::new(),
                },
                rows: vec![row; rows],
            }],
        },
        max_rate: None,
        place: PagePlace {
            page,
            pages,
            before: RepairCounts {
                repaired: 1_000 * u64::from(page - 1),
                ..RepairCounts::default()
            },
        },
    }
}

fn repaired(stopped: Option<Fault>) -> RepairReport {
    let counts = RepairCounts {
        repaired: 3,
        changed: 1,
        ..RepairCounts::default()
    };
    let table = RepairedTable::new(TableName::new("app", "t").unwrap());
    RepairReport {
        tables: vec![RepairedTable { counts, ..table }],
        stopped,
    }
}

fn is_repair(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Repair(_)))
}

/// Orders a page and answers its command.
fn order(
    world: &mut World,
    spec: RepairSpec,
    outcome: Result<RepairReport, Fault>,
) -> Result<Answer, Fault> {
    let mut asked = world.ask_later(Order::Repair(Box::new(spec)));
    world.until("b", is_repair);
    assert_eq!(
        world.agent("a").admitted.len(),
        1,
        "the source lets it read"
    );
    let (command, _) = world.agent("b").at_work.pop_first().unwrap();
    let outcome = outcome.map(|report| Outcome::Repaired(Box::new(report)));
    world.say("b", AgentMessage::Finished { command, outcome });
    world.run_on();
    assert!(
        world.agent("a").admitted.is_empty(),
        "nobody may read any more"
    );
    asked.try_recv().expect("an answer")
}

#[test]
fn only_a_synchronized_replica_is_repaired_by_its_source() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let refused = |world: &mut World, a, b| {
        let order = Order::Repair(Box::new(page(a, b, (1, 1), 1)));
        world.ask(order).unwrap_err()
    };
    assert_eq!(refused(&mut world, "a", "b").kind, FaultKind::BadRequest);
    world.init(vec![spec("a", "b")]).unwrap();
    let early = refused(&mut world, "a", "b");
    assert!(early.message.contains("the node is"), "{early}");
    world.run_on();
    let other_way = refused(&mut world, "b", "a");
    assert!(other_way.hint.contains("repair a b"), "{other_way:?}");
    assert_eq!(refused(&mut world, "c", "b").kind, FaultKind::BadRequest);
    let long = Order::Repair(Box::new(page("a", "b", (1, 1), 1_001)));
    assert_eq!(world.ask(long).unwrap_err().kind, FaultKind::BadRequest);
}

#[test]
fn a_page_is_answered_and_the_last_one_is_told() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let events = |world: &mut World| {
        let events = world.events("b");
        let repairs = events
            .into_iter()
            .filter(|event| event.event.starts_with("repair."));
        repairs.collect::<Vec<_>>()
    };
    let answer = order(&mut world, page("a", "b", (1, 2), 4), Ok(repaired(None)));
    let Ok(Answer::Replies(replies)) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(replies, [ApiReply::Repaired(Box::new(repaired(None)))]);
    assert!(events(&mut world).is_empty());
    order(&mut world, page("a", "b", (2, 2), 4), Ok(repaired(None))).unwrap();
    let told = events(&mut world).pop().unwrap();
    assert_eq!(told.event, "repair.completed");
    let field = |name: &str| {
        told.fields
            .iter()
            .find(|(n, _)| n == name)
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(
        (field("repaired"), field("changed")),
        ("1003".to_owned(), "1".to_owned())
    );

    let fault = Fault::new(FaultKind::Unreachable, "gone");
    order(
        &mut world,
        page("a", "b", (1, 2), 4),
        Ok(repaired(Some(fault.clone()))),
    )
    .unwrap();
    assert_eq!(events(&mut world).pop().unwrap().event, "repair.failed");
    let failed = order(&mut world, page("a", "b", (1, 2), 4), Err(fault)).unwrap_err();
    assert_eq!(failed.kind, FaultKind::Unreachable);
    assert_eq!(events(&mut world).len(), 3);
}
