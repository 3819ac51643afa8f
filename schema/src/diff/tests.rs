//! Each change gives one difference, with the right name.

use proptest::prelude::*;
use proptest::sample::Index;
use steep_protocol::Identifier;
use steep_protocol::message::schema::{Identity, ObjectKind};

use super::*;
use crate::fingerprint;
use crate::samples::{any_schema, column, name, object, schema, settle, table};

type Named = (Option<String>, Subject, Option<String>, Change);

fn names(comparison: &Comparison) -> Vec<Named> {
    let about = |d: &SchemaDifference| {
        let table = d.table.as_ref().map(ToString::to_string);
        (table, d.subject, d.name.clone(), d.change)
    };
    comparison.differences().map(about).collect()
}

fn of_columns(local: &[&str], remote: &[&str]) -> Vec<(Option<String>, Change)> {
    let side = |names: &[&str]| {
        schema(
            vec![table("t", names.iter().map(|n| column(n)).collect())],
            Vec::new(),
        )
    };
    let named = names(&compare(&side(local), &side(remote)));
    named
        .into_iter()
        .map(|(_, _, name, change)| (name, change))
        .collect()
}

#[test]
fn columns_are_missing_extra_renamed_or_moved() {
    let a = |name: &str, change| (Some(name.to_owned()), change);
    assert_eq!(of_columns(&["a", "b"], &["a"]), [a("b", Change::Missing)]);
    assert_eq!(of_columns(&["a"], &["a", "b"]), [a("b", Change::Extra)]);
    assert_eq!(
        of_columns(&["a", "b"], &["a", "c"]),
        [a("b", Change::Renamed)]
    );
    assert_eq!(
        of_columns(&["a", "b", "c"], &["c", "a", "b"]),
        [a("c", Change::Order)]
    );
    // In another place of the table it is another column.
    assert_eq!(
        of_columns(&["a", "b"], &["x", "b"]),
        [a("a", Change::Renamed)]
    );
    assert_eq!(
        of_columns(&["a", "b"], &["b", "x"]),
        [a("a", Change::Missing), a("x", Change::Extra)]
    );
}

#[test]
fn what_is_renamed_is_not_also_missing() {
    let with = |called: &str| {
        let key = object(ObjectKind::Unique, Some("t"), called, "UNIQUE (a)");
        schema(vec![table("t", vec![column("a")])], vec![key])
    };
    let comparison = compare(&with("one"), &with("two"));
    let [(_, subject, name, change)] = &names(&comparison)[..] else {
        panic!("{comparison:?}")
    };
    assert_eq!(*subject, Subject::Object(ObjectKind::Unique));
    assert_eq!((name.as_deref(), *change), (Some("one"), Change::Renamed));
}

#[test]
fn what_is_made_of_a_renamed_column_does_not_differ() {
    let with = |own: &str, theirs: &str| {
        let mut computed = column("x");
        computed.value = ColumnValue::Stored(format!("({own} + 1)"));
        schema(
            vec![
                table("t", vec![column(own), computed]),
                table("u", vec![column("id"), column(theirs)]),
            ],
            vec![
                object(
                    ObjectKind::Unique,
                    Some("t"),
                    "k",
                    &format!("UNIQUE ({own})"),
                ),
                object(
                    ObjectKind::Index,
                    Some("t"),
                    "i",
                    &format!("USING btree (lower('a'), {own})"),
                ),
                object(
                    ObjectKind::Check,
                    Some("t"),
                    "c",
                    &format!("CHECK (({own} > 0))"),
                ),
                object(
                    ObjectKind::ForeignKey,
                    Some("u"),
                    "f",
                    &format!("FOREIGN KEY ({theirs}) REFERENCES app.t({own}) ON DELETE CASCADE"),
                ),
                object(
                    ObjectKind::Sequence,
                    None,
                    "s",
                    &format!(
                        "AS bigint OWNED BY \"app\".\"t\".\"{}\"",
                        own.trim_matches('"')
                    ),
                ),
            ],
        )
    };
    let mut there = with("b", "t_b");
    // PostgreSQL's spelling if `b` were a keyword.
    let spelled = object(ObjectKind::Unique, Some("t"), "k", "UNIQUE (\"b\")");
    there.objects.insert(Key::of(&spelled), spelled);
    let found = names(&compare(&with("a", "t_a"), &there));
    let changes: Vec<_> = found
        .into_iter()
        .map(|(_, _, name, change)| (name, change))
        .collect();
    let renamed = |name: &str| (Some(name.to_owned()), Change::Renamed);
    assert_eq!(changes, [renamed("a"), renamed("t_a")]);
}

#[test]
fn words_that_only_some_versions_quote_make_no_difference() {
    let with = |name: &str| {
        let mut computed = column("x");
        computed.value = ColumnValue::Stored(format!("upper({name})"));
        schema(
            vec![table("t", vec![column("json"), computed])],
            vec![
                object(
                    ObjectKind::Index,
                    Some("t"),
                    "i",
                    &format!("USING btree ({name})"),
                ),
                object(
                    ObjectKind::PartitionKey,
                    Some("t"),
                    "",
                    &format!("PARTITION BY LIST ({name})"),
                ),
                object(
                    ObjectKind::Domain,
                    None,
                    "d",
                    &format!("text CHECK (VALUE <> {name}(1))"),
                ),
            ],
        )
    };
    let (older, newer) = (with("json"), with("\"json\""));
    assert_eq!(names(&compare(&older, &newer)), []);
    let table = name("t");
    let print = |schema: &Schema| fingerprint(&schema.tables[&table].columns);
    assert_eq!(print(&older), print(&newer));
}

#[test]
fn names_with_dots_are_told_apart() {
    let with = |definition: &str| {
        let named = |schema: &str, name: &str, definition: &str| ObjectModel {
            schema: Identifier::parse(schema).ok(),
            ..object(ObjectKind::Enum, None, name, definition)
        };
        schema(
            Vec::new(),
            vec![named("a", "b.c", definition), named("a.b", "c", "'x'")],
        )
    };
    let found = names(&compare(&with("'y'"), &with("'z'")));
    assert_eq!(found[0].2.as_deref(), Some("a.\"b.c\""));
    assert_eq!(found.len(), 1);
}

#[test]
fn what_cannot_stop_replication_does_not_stop_an_init() {
    let here = schema(
        vec![table("t", vec![column("a")])],
        vec![
            object(ObjectKind::Extension, None, "hstore", "1.8"),
            object(ObjectKind::Enum, None, "mood", "'a'"),
        ],
    );
    let there = schema(
        vec![table("t", vec![column("a")]), table("mine", vec![])],
        vec![
            object(ObjectKind::Extension, None, "hstore", "1.7"),
            object(ObjectKind::Publication, Some("t"), "p", ""),
            object(ObjectKind::Enum, None, "mood", "'a'"),
            object(ObjectKind::Domain, None, "own", "integer"),
        ],
    );
    let comparison = compare(&here, &there);
    assert_eq!(comparison.differences().count(), 4);
    assert_eq!(comparison.differences().filter(|d| gates(d)).count(), 0);
    // In the other direction, a table and a type are missing.
    let back = compare(&there, &here);
    assert_eq!(back.differences().filter(|d| gates(d)).count(), 2);
}

#[test]
fn a_difference_reads_as_a_sentence() {
    let here = schema(vec![table("t", vec![column("a")])], Vec::new());
    let mut other = column("a");
    other.not_null = true;
    let there = schema(vec![table("t", vec![other])], Vec::new());
    let comparison = compare(&here, &there);
    let said: Vec<_> = comparison
        .differences()
        .map(|d| named(d, "node_a", "node_b"))
        .collect();
    assert_eq!(
        said,
        [
            "column a of app.t differs (nullability_change): integer on node_a, integer NOT NULL on node_b"
        ]
    );
}

/// A change to one side.
#[derive(Debug, Clone)]
enum Edit {
    DropColumn,
    AddColumn,
    RenameColumn,
    Type,
    Nullability,
    Default,
    Identity,
    Collation,
    DropTable,
    Object,
    NewObject,
}

fn any_edit() -> impl Strategy<Value = Edit> {
    prop::sample::select(vec![
        Edit::DropColumn,
        Edit::AddColumn,
        Edit::RenameColumn,
        Edit::Type,
        Edit::Nullability,
        Edit::Default,
        Edit::Identity,
        Edit::Collation,
        Edit::DropTable,
        Edit::Object,
        Edit::NewObject,
    ])
}

fn perform_on_table(edit: &Edit, remote: &mut Schema, chosen: &TableName) -> Named {
    match edit {
        Edit::DropTable => {
            remote.tables.remove(chosen);
            remote
                .objects
                .retain(|key, _| key.table.as_ref() != Some(chosen));
            (
                Some(chosen.to_string()),
                Subject::Table,
                None,
                Change::Missing,
            )
        }
        Edit::Object => {
            let kind = ObjectKind::ReplicaIdentity;
            let found = remote
                .objects
                .values_mut()
                .find(|o| o.kind == kind && o.table.as_ref() == Some(chosen));
            found.unwrap().definition = "FULL".to_owned();
            (
                Some(chosen.to_string()),
                Subject::Object(kind),
                None,
                Change::Definition,
            )
        }
        _ => {
            let kind = ObjectKind::Check;
            let mut page = steep_protocol::message::schema::SchemaPage::default();
            let mut check = object(kind, Some("t0"), "positive", "CHECK (c0 > 0)");
            check.table = Some(chosen.clone());
            page.objects.push(check);
            remote.add(page);
            let name = Some("positive".to_owned());
            (
                Some(chosen.to_string()),
                Subject::Object(kind),
                name,
                Change::Extra,
            )
        }
    }
}

/// Applies a change to `remote` and returns the expected difference.
fn perform(edit: &Edit, remote: &mut Schema, table: Index, place: Index) -> Named {
    let at = table.index(remote.tables.len());
    let chosen = remote.tables.keys().nth(at).unwrap().clone();
    let model = remote.tables.get_mut(&chosen).unwrap();
    let place = place.index(model.columns.len());
    let column_name = model.columns[place].name.to_string();
    let of_column = |name: String, change| {
        (
            Some(chosen.to_string()),
            Subject::Column,
            Some(name),
            change,
        )
    };
    let target = &mut model.columns[place];
    let named = match edit {
        Edit::DropColumn => {
            model.columns.remove(place);
            of_column(column_name, Change::Missing)
        }
        Edit::AddColumn => {
            model.columns.insert(place, column("brand_new"));
            of_column("brand_new".to_owned(), Change::Extra)
        }
        Edit::RenameColumn => {
            target.name = Identifier::parse("other_name").unwrap();
            let anew = |text: &mut String| *text = text.replace(&column_name, "other_name");
            for column in &mut model.columns {
                match &mut column.value {
                    ColumnValue::Stored(text) | ColumnValue::Virtual(text) => anew(text),
                    ColumnValue::Nothing | ColumnValue::Default(_) => {}
                }
            }
            for object in remote
                .objects
                .values_mut()
                .filter(|o| o.table.as_ref() == Some(&chosen))
            {
                if object.kind != ObjectKind::ReplicaIdentity {
                    anew(&mut object.definition);
                }
            }
            of_column(column_name, Change::Renamed)
        }
        Edit::Type => {
            target.type_name.push_str("[]");
            of_column(column_name, Change::Type)
        }
        Edit::Nullability => {
            target.not_null = !target.not_null;
            of_column(column_name, Change::Nullability)
        }
        Edit::Default => {
            let change = match &mut target.value {
                value @ ColumnValue::Nothing => {
                    *value = ColumnValue::Default("7".to_owned());
                    Change::Default
                }
                ColumnValue::Default(text) => {
                    text.push_str(" + 1");
                    Change::Default
                }
                ColumnValue::Stored(text) | ColumnValue::Virtual(text) => {
                    text.push_str(" + 1");
                    Change::Generation
                }
            };
            of_column(column_name, change)
        }
        Edit::Identity => {
            target.identity = match target.identity {
                Identity::No => Identity::Always,
                Identity::Always | Identity::ByDefault => Identity::No,
            };
            of_column(column_name, Change::Identity)
        }
        Edit::Collation => {
            target.collation = Some("\"pg_catalog\".\"POSIX\"".to_owned());
            of_column(column_name, Change::Collation)
        }
        Edit::DropTable | Edit::Object | Edit::NewObject => perform_on_table(edit, remote, &chosen),
    };
    settle(remote);
    named
}

proptest! {
    #[test]
    fn a_schema_does_not_differ_from_itself(schema in any_schema()) {
        let comparison = compare(&schema, &schema);
        prop_assert_eq!(names(&comparison), Vec::new());
        prop_assert_eq!(comparison.count(Status::Match), schema.tables().len());
    }

    #[test]
    fn one_deed_makes_just_the_difference_that_names_it(
        local in any_schema(), edit in any_edit(), table: Index, place: Index,
    ) {
        let mut remote = local.clone();
        let expected = perform(&edit, &mut remote, table, place);
        prop_assert_eq!(names(&compare(&local, &remote)), vec![expected]);
    }

    #[test]
    fn fingerprints_differ_just_where_columns_do(
        local in any_schema(), edit in any_edit(), table: Index, place: Index,
    ) {
        let mut remote = local.clone();
        perform(&edit, &mut remote, table, place);
        for compared in compare(&local, &remote).tables {
            let columns = compared.differences.iter().any(|d| d.subject != Subject::Table
                && d.subject == Subject::Column);
            if let (Some(here), Some(there)) = (compared.local_fingerprint, compared.remote_fingerprint) {
                prop_assert_eq!(here != there, columns);
            }
        }
    }
}
