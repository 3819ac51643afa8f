//! Whose rows count, the file, and the pages in both directions.

use steep_protocol::message::verify::{RowDigest, RowKey};

use super::*;

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

fn key(id: &str) -> RowKey {
    RowKey(vec![id.to_owned()])
}

/// Rows: only on a, only on b, a conflict that b wrote last, one of which nobody knows, and one that clashes.
fn plan(strategy: Strategy) -> Plan {
    let [one, two] = [1, 2].map(RowDigest);
    let row = |id, a, b| PlannedRow::new(key(id), RowChange::between(a, b).unwrap());
    let mut newer = row("3", Some(one), Some(two));
    newer.newer = Some(MergeSide::B);
    let mut clash = row("5", Some(one), None);
    clash.clash = Some(Clash {
        on: MergeSide::B,
        columns: vec![name("email")],
        key: key("9"),
    });
    let database = |system| DatabaseId {
        system,
        database: 5,
    };
    let table = PlannedTable {
        name: TableName::new("app", "item").unwrap(),
        shape: RowShape {
            columns: ["email", "id"].map(name).into(),
            key: vec![name("id")],
        },
        rows: vec![
            row("1", Some(one), None),
            row("2", None, Some(two)),
            newer,
            row("4", Some(one), Some(two)),
            clash,
        ],
    };
    let plan = RepairPlan {
        source: database(1),
        target: database(2),
        tables: vec![table],
    };
    let nodes = ["a", "b"].map(|node| NodeId::parse(node).unwrap());
    Plan::new(nodes.into(), plan, strategy)
}

fn decisions(plan: &Plan) -> String {
    let rows = plan.tables[0].rows.iter();
    rows.map(|(_, decision)| match decision {
        Some(MergeSide::A) => 'a',
        Some(MergeSide::B) => 'b',
        None => '-',
    })
    .collect()
}

#[test]
fn the_strategy_decides_conflicts_and_no_clash() {
    let decided = |strategy| decisions(&plan(strategy));
    assert_eq!(decided(Strategy::PreferNodeA), "abaa-");
    assert_eq!(decided(Strategy::PreferNodeB), "abbb-");
    assert_eq!(decided(Strategy::LastModified), "abb--");
    assert_eq!(decided(Strategy::Manual), "ab---");
}

#[test]
fn a_file_is_read_as_it_was_written_and_with_decisions() {
    let plan = plan(Strategy::Manual);
    let text = plan.to_lines(Strategy::Manual, "2026-11-30T12:00:00Z");
    assert_eq!(Plan::parse(&text), Ok(plan));
    let decided = text.replace("\"decision\":null", "\"decision\":\"b\"");
    let plan = Plan::parse(&decided).unwrap();
    assert_eq!((decisions(&plan).as_str(), plan.undecided()), ("abbbb", 0));
    let wrong = text.replace("\"decision\":null", "\"decision\":\"c\"");
    assert_eq!(Plan::parse(&wrong).unwrap_err().line, 4);
    assert!(Plan::parse("{\"repair_plan\":1}").is_err());
}

#[test]
fn rows_go_to_the_node_whose_row_does_not_count() {
    let text = plan(Strategy::Manual).to_lines(Strategy::Manual, "");
    let text = text.replace("\"decision\":null", "\"decision\":\"b\"");
    let [one, two] = [1, 2].map(RowDigest);
    let mut pages = Plan::parse(&text).unwrap().pages().into_iter();
    let (to, page) = pages.next().unwrap();
    assert_eq!(
        (to, page.source.system, page.target.system),
        (MergeSide::B, 1, 2)
    );
    let rows = &page.tables[0].rows;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].change, RowChange::Insert { source: one });
    let (to, page) = pages.next().unwrap();
    assert_eq!(
        (to, page.source.system, page.target.system),
        (MergeSide::A, 2, 1)
    );
    // What is deleted comes first: the row that clashes leaves the node that has it.
    let changes = page.tables.iter().flat_map(|table| &table.rows);
    let changes: Vec<_> = changes
        .map(|row| (row.key.0[0].as_str(), row.change))
        .collect();
    let replace = RowChange::Replace {
        source: two,
        target: one,
    };
    let expected = [
        ("5", RowChange::Delete { target: one }),
        ("2", RowChange::Insert { source: two }),
        ("3", replace),
        ("4", replace),
    ];
    assert_eq!(changes, expected);
    assert!(pages.next().is_none());
}
