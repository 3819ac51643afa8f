//! What is on the target, and how its schema differs.

use steep_protocol::message::job::{Confirmation, ExistingRows, SchemaMode};
use steep_protocol::message::schema::{Change, PlannedStatement, SchemaDifference, Subject};
use steep_protocol::{ByteCount, TableName};

use super::world::{World, healthy, some};
use super::{Error, Info, Warning, walk};

pub(super) fn difference(column: Option<&str>, change: Change) -> SchemaDifference {
    SchemaDifference {
        table: Some(TableName::new("app", "orders").unwrap()),
        subject: column.map_or(Subject::Table, |_| Subject::Column),
        name: column.map(str::to_owned),
        change,
        local: "integer".to_owned(),
        remote: "bigint".to_owned(),
    }
}

fn statement(loses: Option<&str>) -> PlannedStatement {
    PlannedStatement {
        sql: "ALTER TABLE t DROP COLUMN c".to_owned(),
        loses: loses.map(str::to_owned),
    }
}

#[test]
fn each_obstacle_on_the_target_is_its_own_finding() {
    fn differs(w: &mut World) {
        w.target.user_tables = 5;
        w.target.review.differences = vec![
            difference(None, Change::Missing),
            difference(Some("a"), Change::Extra),
            difference(Some("b"), Change::Type),
        ];
        w.target.review.differences_total = 3;
    }
    walk(&[
        ("spool_room", Warning, |w| {
            w.source.largest_table = w.spec.large_table_threshold;
            w.source.table_bytes = ByteCount(40_000_000_000);
            w.source.spool_room = Some(ByteCount(19_000_000_000));
        }),
        ("target_not_empty", Error, |w| {
            w.target.not_empty = some("app.orders");
        }),
        ("target_not_empty", Warning, |w| {
            w.target.not_empty = some("app.orders");
            w.spec.existing = ExistingRows::Replace;
        }),
        ("schema_mismatch", Error, differs),
        ("schema_mismatch", Error, |w| {
            differs(w);
            w.spec.confirmation = Confirmation::Given;
        }),
        ("schema_mismatch", Warning, |w| {
            differs(w);
            w.spec.schema_mode = SchemaMode::Auto;
        }),
        ("schema_unplanned", Error, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.target.review.unplanned = vec![difference(None, Change::Definition)];
            w.target.review.unplanned_total = 1;
        }),
        ("schema_plan", Info, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.target.review.plan = vec![statement(None)];
            w.target.review.plan_total = 1;
        }),
        ("schema_plan", Error, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.target.review.plan = vec![statement(Some("the values of c"))];
            w.target.review.plan_total = 1;
        }),
        ("schema_plan", Warning, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.spec.existing = ExistingRows::Replace;
            w.target.review.plan = vec![statement(Some("the values of c"))];
            w.target.review.plan_total = 1;
        }),
        ("schema_mismatch", Error, |w| {
            differs(w);
            w.spec.schema_mode = SchemaMode::Manual;
        }),
        ("schema_mismatch", Warning, |w| {
            differs(w);
            w.spec.schema_mode = SchemaMode::Manual;
            w.spec.confirmation = Confirmation::Given;
        }),
        ("extra_tables", Info, |w| {
            w.target.extra_tables = some("app.local");
        }),
        ("disk_space", Error, |w| {
            w.target.disk_free = Some(ByteCount(10_000_000_000));
        }),
        ("disk_space", Warning, |w| {
            w.target.disk_free = Some(ByteCount(50_000_000_000));
        }),
        ("disk_unknown", Warning, |w| w.target.disk_free = None),
        ("disk_unknown", Info, |w| {
            w.target.disk_free = None;
            w.source.total_bytes = ByteCount(1_000_000);
        }),
    ]);
}

#[test]
fn a_full_disk_is_only_a_warning_if_replaced_rows_may_free_space() {
    let mut world = healthy();
    world.target.disk_free = Some(ByteCount(1_000_000_000));
    world.target.not_empty = some("app.orders");
    world.spec.existing = ExistingRows::Replace;
    let findings = world.judge();
    assert!(
        findings.iter().all(|f| f.severity == Warning),
        "{findings:#?}"
    );
    assert_eq!(findings.len(), 2);
}

#[test]
fn differences_are_bounded_and_all_are_counted() {
    let mut world = healthy();
    world.target.user_tables = 1;
    let many = |n| difference(Some(&format!("c{n}")), Change::Missing);
    world.target.review.differences = (0..107).map(many).collect();
    world.target.review.differences_total = 1_107;
    let findings = world.judge();
    assert_eq!(findings.len(), 107 + 1);
    let last = findings.last().unwrap();
    assert!(last.what.contains("1000"), "{last:?}");
}

#[test]
fn nobody_is_told_that_auto_changes_the_order_of_columns() {
    let fixes = |mode| {
        let mut world = healthy();
        world.spec.schema_mode = mode;
        let moved = difference(Some("c"), Change::Order);
        world.target.review.differences = vec![difference(Some("d"), Change::Missing), moved];
        world.target.review.differences_total = 2;
        let found = world.judge();
        let found = found.into_iter().filter(|f| f.code == "schema_mismatch");
        found.map(|f| f.fix).collect::<Vec<_>>()
    };
    let strict = fixes(SchemaMode::Strict);
    assert!(strict[0].contains("--schema-sync auto"), "{strict:?}");
    assert!(!strict[1].contains("auto"), "{strict:?}");
    assert!(fixes(SchemaMode::Auto)[1].starts_with("nothing"));
}
