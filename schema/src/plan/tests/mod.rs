//! What is planned, in which order, and what it is said to lose.

mod server;

use proptest::prelude::*;
use steep_protocol::message::schema::{ColumnModel, ColumnValue, TableModel};

use super::*;
use crate::compare;
use crate::samples::{any_schema, column, object, schema, table};

fn planned(source: &Schema, target: &Schema, rows: bool) -> Plan {
    plan(source, target, &compare(source, target), &|_| rows)
}

fn sql(plan: &Plan) -> Vec<&str> {
    plan.statements.iter().map(|s| s.sql.as_str()).collect()
}

fn losses(plan: &Plan) -> usize {
    plan.statements.iter().filter(|s| s.loses.is_some()).count()
}

#[test]
fn what_others_are_made_of_comes_first() {
    let mut with_mood = column("m");
    with_mood.type_name = "app.mood[]".to_owned();
    let mut numbered = column("n");
    numbered.value = ColumnValue::Default("nextval('app.numbers'::regclass)".to_owned());
    let source = schema(
        vec![
            table("t", vec![with_mood, numbered]),
            table("u", vec![column("t_m")]),
        ],
        vec![
            object(ObjectKind::Schema, None, "app", ""),
            object(ObjectKind::Enum, None, "mood", "'a', 'b'"),
            object(ObjectKind::Domain, None, "always", "app.mood NOT NULL"),
            object(
                ObjectKind::Sequence,
                None,
                "numbers",
                "AS bigint START WITH 1 OWNED BY \"app\".\"t\".\"n\"",
            ),
            object(
                ObjectKind::PrimaryKey,
                Some("t"),
                "t_pkey",
                "PRIMARY KEY (n)",
            ),
            object(
                ObjectKind::ForeignKey,
                Some("u"),
                "u_fkey",
                "FOREIGN KEY (t_m) REFERENCES app.t(n)",
            ),
            object(
                ObjectKind::Index,
                Some("t"),
                "t_m",
                "UNIQUE USING btree (m)",
            ),
            object(ObjectKind::ReplicaIdentity, Some("t"), "", "FULL"),
        ],
    );
    let plan = planned(&source, &Schema::default(), true);
    assert_eq!(
        sql(&plan),
        [
            "CREATE SCHEMA \"app\"",
            "CREATE SEQUENCE \"app\".\"numbers\" AS bigint START WITH 1",
            "CREATE TYPE \"app\".\"mood\" AS ENUM ('a', 'b')",
            "CREATE DOMAIN \"app\".\"always\" AS app.mood NOT NULL",
            "CREATE TABLE \"app\".\"t\" (\"m\" app.mood[], \"n\" integer DEFAULT nextval('app.numbers'::regclass))",
            "CREATE TABLE \"app\".\"u\" (\"t_m\" integer)",
            "ALTER SEQUENCE \"app\".\"numbers\" OWNED BY \"app\".\"t\".\"n\"",
            "ALTER TABLE \"app\".\"t\" ADD CONSTRAINT \"t_pkey\" PRIMARY KEY (n)",
            "CREATE UNIQUE INDEX \"t_m\" ON \"app\".\"t\" USING btree (m)",
            "ALTER TABLE \"app\".\"t\" REPLICA IDENTITY FULL",
            "ALTER TABLE \"app\".\"u\" ADD CONSTRAINT \"u_fkey\" FOREIGN KEY (t_m) REFERENCES app.t(n)",
        ]
    );
    assert_eq!(losses(&plan), 0);
    assert!(plan.unplanned.is_empty());
}

fn altered(from: impl Fn(&mut ColumnModel), to: impl Fn(&mut ColumnModel)) -> (Schema, Schema) {
    let side = |change: &dyn Fn(&mut ColumnModel)| {
        let mut changed = column("a");
        change(&mut changed);
        schema(vec![table("t", vec![changed, column("b")])], Vec::new())
    };
    (side(&to), side(&from))
}

#[test]
fn a_type_that_may_lose_values_says_so_where_there_are_rows() {
    let (source, target) = altered(
        |c| c.type_name = "text".into(),
        |c| c.type_name = "date".into(),
    );
    let lossy = planned(&source, &target, true);
    assert_eq!(losses(&lossy), 1);
    assert_eq!(losses(&planned(&source, &target, false)), 0);
    let (source, target) = altered(|_| {}, |c| c.type_name = "bigint".into());
    assert_eq!(losses(&planned(&source, &target, true)), 0);
}

#[test]
fn each_aspect_of_a_column_has_its_statement() {
    type Edit = fn(&mut ColumnModel);
    let cases: [(Edit, Edit, &[&str]); 6] = [
        (
            |_| {},
            |c| c.not_null = true,
            &["ALTER COLUMN \"a\" SET NOT NULL"],
        ),
        (
            |c| c.value = ColumnValue::Default("1".into()),
            |_| {},
            &["ALTER COLUMN \"a\" DROP DEFAULT"],
        ),
        (
            |_| {},
            |c| {
                c.identity = steep_protocol::message::schema::Identity::Always;
                c.not_null = true;
            },
            &[
                "ALTER COLUMN \"a\" SET NOT NULL",
                "ALTER COLUMN \"a\" ADD GENERATED ALWAYS AS IDENTITY",
            ],
        ),
        (
            |c| c.value = ColumnValue::Stored("b".into()),
            |_| {},
            &["ALTER COLUMN \"a\" DROP EXPRESSION"],
        ),
        (
            |_| {},
            |c| c.value = ColumnValue::Stored("b".into()),
            &[
                "DROP COLUMN \"a\"",
                "ADD COLUMN \"a\" integer GENERATED ALWAYS AS (b) STORED",
            ],
        ),
        (
            |_| {},
            |c| c.collation = Some("\"pg_catalog\".\"C\"".into()),
            &[
                "ALTER COLUMN \"a\" SET DATA TYPE integer COLLATE \"pg_catalog\".\"C\" USING \"a\"::integer",
            ],
        ),
    ];
    for (from, to, expected) in cases {
        let (source, target) = altered(from, to);
        let plan = planned(&source, &target, false);
        let said: Vec<_> = sql(&plan)
            .into_iter()
            .map(|sql| sql.strip_prefix("ALTER TABLE \"app\".\"t\" ").unwrap())
            .collect();
        assert_eq!(said, expected);
    }
}

#[test]
fn what_stays_as_it_is_and_what_cannot_be_planned_are_told_apart() {
    let source = schema(
        vec![table("t", vec![column("a"), column("b")])],
        vec![object(ObjectKind::Domain, None, "d", "integer")],
    );
    let target = schema(
        vec![table("t", vec![column("b"), column("a")])],
        vec![
            object(ObjectKind::Domain, None, "d", "bigint"),
            object(ObjectKind::Index, Some("t"), "mine", "USING btree (a)"),
            object(
                ObjectKind::Index,
                Some("t"),
                "only_one",
                "UNIQUE USING btree (b)",
            ),
        ],
    );
    let plan = planned(&source, &target, true);
    assert_eq!(sql(&plan), ["DROP INDEX \"app\".\"only_one\""]);
    assert_eq!(plan.tolerated.len(), 2);
    assert_eq!(plan.unplanned.len(), 1);
}

#[test]
fn what_a_partitioned_table_gets_its_partitions_get_with_it() {
    let parent = |columns| {
        schema(
            vec![table("p", Vec::clone(&columns)), table("p1", columns)],
            vec![object(
                ObjectKind::Parent,
                Some("p1"),
                "",
                "PARTITION OF \"app\".\"p\" FOR VALUES FROM (0) TO (9)",
            )],
        )
    };
    let source = parent(vec![column("a"), column("b")]);
    let target = parent(vec![column("a")]);
    let plan = planned(&source, &target, false);
    assert_eq!(
        sql(&plan),
        ["ALTER TABLE \"app\".\"p\" ADD COLUMN \"b\" integer"]
    );
    let fresh = planned(&source, &Schema::default(), false);
    assert_eq!(
        sql(&fresh).last().copied(),
        Some("CREATE TABLE \"app\".\"p1\" PARTITION OF \"app\".\"p\" FOR VALUES FROM (0) TO (9)")
    );
}

#[test]
fn a_review_is_bounded_and_counts_the_rest() {
    let wide = |n: usize| table(&format!("t{n}"), vec![column("a")]);
    let source = schema((0..REVIEW_MAX + 20).map(wide).collect(), Vec::new());
    let comparison = compare(&source, &Schema::default());
    let plan = plan(&source, &Schema::default(), &comparison, &|_| false);
    let review = review(&comparison, &plan);
    assert_eq!(review.differences.len(), REVIEW_MAX);
    assert_eq!(review.differences_total, REVIEW_MAX as u64 + 20);
    assert_eq!(review.plan.len(), REVIEW_MAX);
    assert_eq!(review.plan_total, REVIEW_MAX as u64 + 20);
}

proptest! {
    /// Run by a server that refuses what PostgreSQL would, a plan leaves what it tolerates and no more;
    /// and no column with values goes without a word.
    #[test]
    fn a_plan_makes_the_target_like_the_source(source in any_schema(), target in any_schema()) {
        let comparison = compare(&source, &target);
        let plan = plan(&source, &target, &comparison, &|_| true);
        prop_assert_eq!(&plan.unplanned, &[]);
        let run = server::run(target.clone(), &source, sql(&plan).into_iter());
        let run = run.map_err(TestCaseError::fail)?;
        let after = compare(&source, &run);
        let kept = |d: &&SchemaDifference| gates(d) && d.change != Change::Order
            && !plan.tolerated.iter().any(|t| (&t.table, &t.name) == (&d.table, &d.name));
        let left: Vec<_> = after.differences().filter(kept).collect();
        prop_assert!(left.is_empty(), "{left:#?} after {:#?}", sql(&plan));
        for statement in plan.statements.iter().filter(|s| s.sql.contains(" DROP COLUMN ")) {
            let (on, name) = statement.sql.split_once(" DROP COLUMN ").unwrap();
            let of = |t: &&TableModel| on.ends_with(&t.name.quoted());
            let column = target.tables().find(of).unwrap().columns.iter().find(|c| c.name.quoted() == name);
            let computed = crate::diff::is_generated(column.unwrap());
            prop_assert!(statement.loses.is_some() || computed, "{}", statement.sql);
        }
        // Done once, there is nothing left to do.
        let again = super::plan(&source, &run, &after, &|_| true);
        prop_assert_eq!(sql(&again), Vec::<&str>::new());
    }

    #[test]
    fn what_is_at_stake_is_what_a_plan_may_lose(source in any_schema(), target in any_schema()) {
        let comparison = compare(&source, &target);
        let stakes = at_stake(&source, &target, &comparison);
        let none = plan(&source, &target, &comparison, &|_| false);
        prop_assert_eq!(losses(&none), 0);
        for table in &stakes {
            let one = plan(&source, &target, &comparison, &|t| t == table);
            prop_assert!(losses(&one) > 0);
        }
    }
}
