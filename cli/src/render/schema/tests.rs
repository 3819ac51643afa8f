//! What a comparison looks like, with and without colours, wide and narrow.

use steep_protocol::Identifier;
use steep_protocol::message::schema::{ColumnValue, Identity, ObjectKind, SchemaPage, TableModel};
use steep_schema::{compare, fingerprint};

use super::*;

fn column(name: &str, type_name: &str) -> ColumnModel {
    ColumnModel {
        name: Identifier::parse(name).unwrap(),
        type_name: type_name.to_owned(),
        collation: None,
        not_null: false,
        identity: Identity::No,
        value: ColumnValue::Nothing,
    }
}

fn name(table: &str) -> TableName {
    TableName::new("app", table).unwrap()
}

fn sample(columns: Vec<ColumnModel>, more: &[&str], index: &str) -> Schema {
    let table = |called: &str, columns: Vec<ColumnModel>| TableModel {
        name: name(called),
        fingerprint: fingerprint(&columns),
        rank: 0,
        columns,
    };
    let mut tables = vec![
        table("orders", columns),
        table("same", vec![column("a", "text")]),
    ];
    tables.extend(
        more.iter()
            .map(|more| table(more, vec![column("a", "text")])),
    );
    let mut schema = Schema::default();
    schema.add(SchemaPage {
        tables,
        objects: vec![ObjectModel {
            kind: ObjectKind::Index,
            table: Some(name("orders")),
            schema: None,
            name: "by_id".to_owned(),
            definition: index.to_owned(),
            rank: 0,
        }],
    });
    schema
}

fn pair() -> (Schema, Schema) {
    let local = vec![
        column("id", "integer"),
        column("note", "text"),
        column("old", "date"),
    ];
    let mut note = column("note", "text");
    note.not_null = true;
    let remote = vec![
        column("id", "bigint"),
        note,
        column("e\u{1b}vil", "numeric"),
    ];
    (
        sample(local, &["here"], "USING btree (id)"),
        sample(remote, &["there"], "USING hash (id)"),
    )
}

#[test]
fn differences_stand_under_their_tables_and_are_counted() {
    let (local, remote) = pair();
    insta::assert_snapshot!(comparison(
        &compare(&local, &remote),
        "node_a",
        "node_b",
        Paint::Plain
    ));
    let same = comparison(&compare(&local, &local), "node_a", "node_b", Paint::Ansi);
    assert!(same.contains("tables: 3 match, 0 differ") && same.contains('\u{1b}'));
}

#[test]
fn two_sides_line_up_and_what_differs_is_marked() {
    let (local, remote) = pair();
    let table = name("orders");
    let (here, there) = (local.only(&table), remote.only(&table));
    let compared = compare(&here, &there);
    let sides = Sides {
        table: &table,
        local: ("node_a", &here),
        remote: ("node_b", &there),
    };
    let view = |width, paint| side_by_side(&compared.tables[0], &sides, width, paint);
    insta::assert_snapshot!(view(None, Paint::Plain));
    let narrow = view(Some(50), Paint::Plain);
    let halves = narrow
        .lines()
        .filter(|l| l.contains(" | ") || l.contains(" < "));
    assert!(
        halves
            .into_iter()
            .all(|line| measure_text_width(line) <= 50),
        "{narrow}"
    );
    assert!(
        !view(None, Paint::Plain).contains('\u{1b}'),
        "a name drove the terminal"
    );
    assert!(view(None, Paint::Ansi).contains('\u{1b}'));
}
