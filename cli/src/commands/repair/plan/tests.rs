//! The file of a plan, there and back, and its pages.

use super::*;

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

fn row(key: &[&str], change: RowChange, columns: &[&str]) -> PlannedRow {
    let key = RowKey(key.iter().map(|part| (*part).to_owned()).collect());
    PlannedRow {
        columns: columns.iter().map(|column| name(column)).collect(),
        ..PlannedRow::new(key, change)
    }
}

fn sample() -> Plan {
    let [one, two] = [1, u128::MAX].map(RowDigest);
    let table = |table: &str, key: &[&str], rows| PlannedTable {
        name: TableName::new("app", table).unwrap(),
        shape: RowShape {
            columns: ["a", "id", "k\"y"].map(name).into(),
            key: key.iter().map(|part| name(part)).collect(),
        },
        rows,
    };
    let (insert, delete) = (
        RowChange::Insert { source: one },
        RowChange::Delete { target: two },
    );
    let replace = RowChange::Replace {
        source: one,
        target: two,
    };
    let parent = table(
        "parent",
        &["id"],
        vec![row(&["1"], insert, &[]), row(&["2"], delete, &[])],
    );
    let child = table(
        "child",
        &["id", "k\"y"],
        vec![
            row(&["7", "it's \u{e4}"], delete, &[]),
            row(&["8", ""], replace, &["a"]),
        ],
    );
    let database = |system| DatabaseId {
        system,
        database: 16_384,
    };
    let plan = RepairPlan {
        source: database(u64::MAX),
        target: database(7),
        tables: vec![parent, child],
    };
    let node = |name| NodeId::parse(name).unwrap();
    Plan::new((node("node_a"), node("node_b")), plan)
}

#[test]
fn a_plan_is_a_line_for_each_row_and_reads_back_as_itself() {
    let text = sample().to_lines("2026-01-02T03:04:05Z");
    insta::assert_snapshot!(text);
    assert_eq!(Plan::parse(&text).unwrap(), sample());
    let counts: Vec<[usize; 3]> = sample().tables().into_values().collect();
    assert_eq!(counts, [[0, 1, 1], [1, 1, 0]]);
}

#[test]
fn lines_may_be_taken_out_and_others_are_refused_by_number() {
    let text = sample().to_lines("");
    let lines: Vec<&str> = text.lines().collect();
    let fewer = Plan::parse(&[lines[0], "", lines[2]].join("\n")).unwrap();
    assert_eq!(fewer.rows(), 1);
    let refused = |line: &str| {
        let error = Plan::parse(&format!("{}\n{line}", lines[0])).unwrap_err();
        assert_eq!(error.line, 2);
        error.reason
    };
    assert!(refused("{").contains("EOF"));
    assert!(refused(&lines[1].replace("\"7\"", "7")).contains("has no text"));
    assert!(refused(&lines[1].replace("extra", "missing")).contains("do not belong"));
    assert!(refused(&lines[1].replace("child", "other")).contains("no table app.other"));
    assert!(refused(&lines[1].replace("ffff", "")).contains("32 hexadecimal"));
    assert!(refused(&lines[1].replace("\"key\"", "\"keys\"")).contains("keys"));
    for bad in ["", "{}", "[1]", "no JSON", "{\"repair_plan\":2}"] {
        assert_eq!(Plan::parse(bad).unwrap_err().line, 1, "{bad}");
    }
}

#[test]
fn pages_have_all_rows_in_order_and_none_is_too_long() {
    let mut plan = sample();
    let long = row(&[&"x".repeat(1_000)], plan.runs[2].rows[0].change, &[]);
    plan.runs[2].rows = vec![long; 1_500];
    let pages = plan.pages();
    let rows: Vec<usize> = pages.iter().map(RepairPlan::rows).collect();
    assert_eq!(rows.iter().sum::<usize>(), plan.rows());
    assert!(rows.iter().all(|rows| *rows <= REPAIR_PAGE_ROWS));
    for page in &pages {
        let bytes: usize = page
            .tables
            .iter()
            .flat_map(|t| &t.rows)
            .map(PlannedRow::size)
            .sum();
        assert!(bytes <= REPAIR_PAGE_BYTES, "{bytes}");
    }
    let all = pages.iter().flat_map(|page| &page.tables);
    let what = |row: &PlannedRow| (row.key.clone(), row.change);
    let all: Vec<_> = all.flat_map(|table| &table.rows).map(what).collect();
    let wanted = plan.runs.iter().flat_map(|run| &run.rows);
    assert_eq!(all, wanted.map(what).collect::<Vec<_>>());
}
