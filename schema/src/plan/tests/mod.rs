//! Which statements are planned, their order, and their losses.

mod server;

use proptest::prelude::*;
use steep_protocol::message::schema::{
    ColumnModel, ColumnValue, Identity, ObjectModel, TableModel,
};

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
                c.identity = Identity::Always;
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
fn a_serial_becomes_an_identity_and_back() {
    let owned = "AS bigint OWNED BY \"app\".\"t\".\"a\"";
    let mut serial = column("a");
    serial.not_null = true;
    serial.value = ColumnValue::Default("nextval('app.t_a_seq'::regclass)".into());
    let sequence = object(ObjectKind::Sequence, None, "t_a_seq", owned);
    let serial = schema(vec![table("t", vec![serial])], vec![sequence]);
    let mut identity = column("a");
    identity.not_null = true;
    identity.identity = Identity::Always;
    let identity = schema(vec![table("t", vec![identity])], Vec::new());
    assert_eq!(
        sql(&planned(&identity, &serial, true)),
        [
            "ALTER SEQUENCE \"app\".\"t_a_seq\" OWNED BY NONE",
            "ALTER TABLE \"app\".\"t\" ALTER COLUMN \"a\" DROP DEFAULT",
            "ALTER TABLE \"app\".\"t\" ALTER COLUMN \"a\" ADD GENERATED ALWAYS AS IDENTITY",
        ]
    );
    assert_eq!(
        sql(&planned(&serial, &identity, true)),
        [
            "ALTER TABLE \"app\".\"t\" ALTER COLUMN \"a\" DROP IDENTITY",
            "CREATE SEQUENCE \"app\".\"t_a_seq\" AS bigint",
            "ALTER TABLE \"app\".\"t\" ALTER COLUMN \"a\" SET DEFAULT nextval('app.t_a_seq'::regclass)",
            "ALTER SEQUENCE \"app\".\"t_a_seq\" OWNED BY \"app\".\"t\".\"a\"",
        ]
    );
}

#[test]
fn foreign_keys_go_before_the_key_they_need_and_come_again() {
    let with = |key: &str, foreign: bool| {
        let mut objects = vec![
            object(ObjectKind::PrimaryKey, Some("a"), "a_pkey", key),
            object(
                ObjectKind::ReplicaIdentity,
                Some("a"),
                "",
                "USING INDEX \"a_pkey\"",
            ),
        ];
        let mut add = |name: &str, definition: &str| {
            objects.push(object(ObjectKind::ForeignKey, Some("b"), name, definition));
        };
        add("kept", "FOREIGN KEY (a) REFERENCES app.a(a)");
        if foreign {
            add("own", "FOREIGN KEY (b) REFERENCES app.a(a)");
        }
        let tables = ["a", "b"].map(|name| table(name, vec![column("a"), column("b")]));
        schema(tables.into(), objects)
    };
    let source = with("PRIMARY KEY (a) INCLUDE (b)", false);
    let target = with("PRIMARY KEY (a)", true);
    assert_eq!(
        sql(&planned(&source, &target, true)),
        [
            "ALTER TABLE \"app\".\"b\" DROP CONSTRAINT \"own\"",
            "ALTER TABLE \"app\".\"b\" DROP CONSTRAINT \"kept\"",
            "ALTER TABLE \"app\".\"a\" DROP CONSTRAINT \"a_pkey\"",
            "ALTER TABLE \"app\".\"a\" ADD CONSTRAINT \"a_pkey\" PRIMARY KEY (a) INCLUDE (b)",
            "ALTER TABLE \"app\".\"a\" REPLICA IDENTITY USING INDEX \"a_pkey\"",
            "ALTER TABLE \"app\".\"b\" ADD CONSTRAINT \"kept\" FOREIGN KEY (a) REFERENCES app.a(a)",
        ]
    );
}

#[test]
fn what_a_partition_has_of_its_own_comes_after_its_parents_columns() {
    let set = |name: &str, not_null: bool, value: Option<&str>| {
        let mut column = column(name);
        column.not_null = not_null;
        if let Some(value) = value {
            column.value = ColumnValue::Default(value.to_owned());
        }
        column
    };
    let of = |child: &str| {
        let bounds = "PARTITION OF \"app\".\"p\" DEFAULT";
        object(ObjectKind::Parent, Some(child), "", bounds)
    };
    let own = vec![set("a", true, None), set("b", false, Some("2"))];
    let source = schema(
        vec![
            table(
                "p",
                vec![set("a", false, Some("1")), set("b", false, Some("1"))],
            ),
            table("p1", own.clone()),
            table("p2", own),
        ],
        vec![of("p1"), of("p2")],
    );
    let before = vec![set("a", false, None)];
    let target = schema(
        vec![table("p", before.clone()), table("p1", before)],
        vec![of("p1")],
    );
    assert_eq!(
        sql(&planned(&source, &target, true)),
        [
            "ALTER TABLE \"app\".\"p\" ALTER COLUMN \"a\" SET DEFAULT 1",
            "ALTER TABLE \"app\".\"p\" ADD COLUMN \"b\" integer DEFAULT 1",
            "CREATE TABLE \"app\".\"p2\" PARTITION OF \"app\".\"p\" DEFAULT",
            "ALTER TABLE ONLY \"app\".\"p1\" ALTER COLUMN \"a\" DROP DEFAULT",
            "ALTER TABLE \"app\".\"p1\" ALTER COLUMN \"a\" SET NOT NULL",
            "ALTER TABLE ONLY \"app\".\"p1\" ALTER COLUMN \"b\" SET DEFAULT 2",
            "ALTER TABLE ONLY \"app\".\"p2\" ALTER COLUMN \"a\" DROP DEFAULT",
            "ALTER TABLE \"app\".\"p2\" ALTER COLUMN \"a\" SET NOT NULL",
            "ALTER TABLE ONLY \"app\".\"p2\" ALTER COLUMN \"b\" SET DEFAULT 2",
        ]
    );
}

#[test]
fn a_label_that_the_plan_uses_is_told_and_one_that_it_does_not_is_added() {
    let with = |labels: &str, value: &str| {
        let mut mood = column("m");
        mood.type_name = "app.mood".to_owned();
        mood.value = ColumnValue::Default(value.to_owned());
        let mood = vec![table("t", vec![mood])];
        schema(mood, vec![object(ObjectKind::Enum, None, "mood", labels)])
    };
    let target = with("'a'", "'a'::app.mood");
    let free = planned(&with("'a', 'b'", "'a'::app.mood"), &target, true);
    assert_eq!(
        sql(&free),
        ["ALTER TYPE \"app\".\"mood\" ADD VALUE 'b' AFTER 'a'"]
    );
    let used = planned(&with("'a', 'b'", "'b'::app.mood"), &target, true);
    assert_eq!(used.unplanned.len(), 1);
    assert!(blocker(&used.unplanned[0]).1.contains("ADD VALUE"));
    assert!(!sql(&used).iter().any(|s| s.contains("ADD VALUE")));
}

#[test]
fn a_definition_that_was_cut_is_told_and_never_run() {
    let long = crate::bounded(format!("CHECK (a <> '{}')", "x".repeat(100)), 64);
    let check = |objects| schema(vec![table("t", vec![column("a")])], objects);
    let source = check(vec![object(ObjectKind::Check, Some("t"), "c", &long)]);
    for target in [check(Vec::new()), Schema::default()] {
        let plan = planned(&source, &target, true);
        assert_eq!(plan.unplanned.len(), 1);
        assert!(blocker(&plan.unplanned[0]).0.contains("too long") || target.tables().len() == 0);
        assert!(!sql(&plan).iter().any(|s| s.contains("CHECK")));
    }
}

#[test]
fn an_extension_that_is_missing_is_told_where_the_plan_needs_it() {
    let with = |type_name: &str| {
        let mut made = column("a");
        made.type_name = type_name.to_owned();
        schema(
            vec![table("t", vec![made])],
            vec![
                object(ObjectKind::Extension, None, "hstore", "1.8"),
                object(ObjectKind::ExtensionMember, None, "hstore", "hstore"),
            ],
        )
    };
    let target = schema(vec![table("mine", Vec::new())], Vec::new());
    let needs = planned(&with("app.hstore[]"), &target, true);
    assert_eq!(needs.unplanned.len(), 1);
    assert!(blocker(&needs.unplanned[0]).1.contains("CREATE EXTENSION"));
    assert!(planned(&with("text"), &target, true).unplanned.is_empty());
}

#[test]
fn names_with_dots_and_brackets_are_what_they_are() {
    let named = |kind, schema: &str, name: &str, definition: &str| ObjectModel {
        schema: Identifier::parse(schema).ok(),
        ..object(kind, None, name, definition)
    };
    let with = |labels: &str| {
        let one = named(ObjectKind::Enum, "a", "b.c", "'x'");
        let other = named(ObjectKind::Enum, "a.b", "c", labels);
        schema(Vec::new(), vec![one, other])
    };
    assert_eq!(
        sql(&planned(&with("'x', 'y'"), &with("'x'"), true)),
        ["ALTER TYPE \"a.b\".\"c\" ADD VALUE 'y' AFTER 'x'"]
    );
    let domain = ObjectModel {
        rank: 1,
        ..named(ObjectKind::Domain, "app", "d", "app.\"odd(1)\"[]")
    };
    let range = ObjectModel {
        rank: 2,
        ..named(ObjectKind::Range, "app", "odd(1)", "SUBTYPE = integer")
    };
    let source = schema(Vec::new(), vec![domain, range]);
    assert_eq!(
        sql(&planned(&source, &Schema::default(), true)),
        [
            "CREATE TYPE \"app\".\"odd(1)\" AS RANGE (SUBTYPE = integer)",
            "CREATE DOMAIN \"app\".\"d\" AS app.\"odd(1)\"[]",
        ]
    );
}

#[test]
fn what_depends_on_a_column_that_is_made_anew_is_made_again() {
    let with = |expression: &str| {
        let mut computed = column("c");
        computed.value = ColumnValue::Stored(expression.to_owned());
        schema(
            vec![table("t", vec![column("a"), computed])],
            vec![object(ObjectKind::Index, Some("t"), "i", "USING btree (c)")],
        )
    };
    assert_eq!(
        sql(&planned(&with("(a + 1)"), &with("(a + 2)"), true)),
        [
            "DROP INDEX \"app\".\"i\"",
            "ALTER TABLE \"app\".\"t\" DROP COLUMN \"c\"",
            "ALTER TABLE \"app\".\"t\" ADD COLUMN \"c\" integer GENERATED ALWAYS AS ((a + 1)) STORED",
            "CREATE INDEX \"i\" ON \"app\".\"t\" USING btree (c)",
        ]
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
    /// Run by a server that rejects what PostgreSQL would, a plan leaves exactly what it tolerates,
    /// and names every column whose values it drops.
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
        // A second run has nothing to do.
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
