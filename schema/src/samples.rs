//! Schemas for tests, fixed and random.

use proptest::prelude::*;
use steep_protocol::message::schema::{
    ColumnModel, ColumnValue, Identity, ObjectKind, ObjectModel, SchemaPage, TableModel,
};
use steep_protocol::{Identifier, TableName};

use crate::{Schema, fingerprint};

pub(crate) fn column(name: &str) -> ColumnModel {
    ColumnModel {
        name: Identifier::parse(name).unwrap(),
        type_name: "integer".to_owned(),
        collation: None,
        not_null: false,
        identity: Identity::No,
        value: ColumnValue::Nothing,
    }
}

pub(crate) fn name(table: &str) -> TableName {
    TableName::new("app", table).unwrap()
}

pub(crate) fn table(table: &str, columns: Vec<ColumnModel>) -> TableModel {
    TableModel {
        name: name(table),
        fingerprint: fingerprint(&columns),
        rank: 0,
        columns,
    }
}

pub(crate) fn object(
    kind: ObjectKind,
    table: Option<&str>,
    called: &str,
    definition: &str,
) -> ObjectModel {
    let alone = table.is_none() && !matches!(kind, ObjectKind::Schema | ObjectKind::Extension);
    ObjectModel {
        kind,
        table: table.map(name),
        schema: alone.then(|| Identifier::parse("app").unwrap()),
        name: called.to_owned(),
        definition: definition.to_owned(),
        rank: 0,
    }
}

pub(crate) fn schema(tables: Vec<TableModel>, objects: Vec<ObjectModel>) -> Schema {
    let mut schema = Schema::default();
    schema.add(SchemaPage { tables, objects });
    schema
}

/// Recomputes fingerprints after columns were changed.
pub(crate) fn settle(schema: &mut Schema) {
    for table in schema.tables.values_mut() {
        table.fingerprint = fingerprint(&table.columns);
    }
}

const TYPES: [&str; 5] = ["integer", "bigint", "text", "numeric(10,2)", "app.mood[]"];

/// The first column is plain, and others are generated from it.
fn any_column(at: usize) -> impl Strategy<Value = ColumnModel> {
    let kinds = (0..TYPES.len(), 0..7u8);
    (kinds, any::<[bool; 3]>()).prop_map(move |((kind, value), [not_null, other, sorted])| {
        let called = if other && at > 0 { "d" } else { "c" };
        let value = match value {
            1 | 2 if at == 0 => 0,
            value => value,
        };
        let identity = match value {
            5 => Identity::ByDefault,
            6 => Identity::Always,
            _ => Identity::No,
        };
        let numbers = identity != Identity::No || matches!(value, 1 | 2);
        let type_name = if numbers {
            TYPES[kind % 2]
        } else {
            TYPES[kind]
        };
        ColumnModel {
            type_name: type_name.to_owned(),
            collation: (sorted && type_name == "text").then(|| "\"pg_catalog\".\"C\"".to_owned()),
            not_null: not_null || identity != Identity::No,
            identity,
            value: match value {
                0 => ColumnValue::Default("1".to_owned()),
                1 => ColumnValue::Stored("(c0 + 1)".to_owned()),
                2 => ColumnValue::Virtual("(c0 + 1)".to_owned()),
                _ => ColumnValue::Nothing,
            },
            ..column(&format!("{called}{at}"))
        }
    })
}

fn any_table(at: usize) -> impl Strategy<Value = (TableModel, Vec<ObjectModel>)> {
    let columns = (1..6usize).prop_flat_map(|count| (0..count).map(any_column).collect::<Vec<_>>());
    (columns, any::<[bool; 6]>()).prop_map(move |(mut columns, has)| {
        let [key, index, own, foreign, by_index, check] = has;
        let called = format!("t{at}");
        let last = columns[columns.len() - 1].name.to_string();
        let mut objects = Vec::new();
        let mut add = |kind, name: &str, definition: &str| {
            objects.push(object(kind, Some(&called), name, definition));
        };
        if key {
            columns[0].not_null = true;
            add(ObjectKind::PrimaryKey, "key", "PRIMARY KEY (c0)");
            if foreign {
                let definition = format!("FOREIGN KEY ({last}) REFERENCES app.{called}(c0)");
                add(ObjectKind::ForeignKey, "up", &definition);
            }
        }
        let identity = match (key, by_index) {
            (true, true) => "USING INDEX \"key\"",
            _ => "DEFAULT",
        };
        add(ObjectKind::ReplicaIdentity, "", identity);
        if index {
            let name = format!("by_c0_{at}");
            add(ObjectKind::Index, &name, "USING btree (c0)");
        }
        if own {
            let name = format!("{}_{at}", if key { "only" } else { "one" });
            add(
                ObjectKind::Index,
                &name,
                &format!("UNIQUE USING btree ({last})"),
            );
        }
        if check {
            add(
                ObjectKind::Check,
                "some",
                &format!("CHECK ({last} IS NOT NULL)"),
            );
        }
        (table(&called, columns), objects)
    })
}

/// One to four tables of one to five columns, with an enum.
pub(crate) fn any_schema() -> impl Strategy<Value = Schema> {
    (1..5usize)
        .prop_flat_map(|count| (0..count).map(any_table).collect::<Vec<_>>())
        .prop_map(|made| {
            let (tables, objects): (Vec<_>, Vec<_>) = made.into_iter().unzip();
            let mut objects: Vec<_> = objects.into_iter().flatten().collect();
            objects.push(object(ObjectKind::Enum, None, "mood", "'sad', 'ok'"));
            schema(tables, objects)
        })
}
