//! Schemas for tests, by hand and at random.

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

/// Recomputes fingerprints after columns were changed by hand.
pub(crate) fn settle(schema: &mut Schema) {
    for table in schema.tables.values_mut() {
        table.fingerprint = fingerprint(&table.columns);
    }
}

const TYPES: [&str; 5] = ["integer", "bigint", "text", "numeric(10,2)", "app.mood[]"];

fn any_column(at: usize) -> impl Strategy<Value = ColumnModel> {
    (0..TYPES.len(), any::<bool>(), 0..6u8).prop_map(move |(kind, not_null, value)| ColumnModel {
        type_name: TYPES[kind].to_owned(),
        not_null,
        identity: if value == 5 {
            Identity::ByDefault
        } else {
            Identity::No
        },
        value: match value {
            0 => ColumnValue::Default("1".to_owned()),
            1 => ColumnValue::Stored("(a + 1)".to_owned()),
            2 => ColumnValue::Virtual("(a + 1)".to_owned()),
            _ => ColumnValue::Nothing,
        },
        ..column(&format!("c{at}"))
    })
}

fn any_table(at: usize) -> impl Strategy<Value = (TableModel, Vec<ObjectModel>)> {
    let columns = (1..6usize).prop_flat_map(|count| (0..count).map(any_column).collect::<Vec<_>>());
    (columns, any::<bool>(), any::<bool>()).prop_map(move |(columns, key, index)| {
        let called = format!("t{at}");
        let mut objects = vec![object(
            ObjectKind::ReplicaIdentity,
            Some(&called),
            "",
            "DEFAULT",
        )];
        if key {
            let definition = "PRIMARY KEY (c0)";
            objects.push(object(
                ObjectKind::PrimaryKey,
                Some(&called),
                "key",
                definition,
            ));
        }
        if index {
            let definition = "USING btree (c0)";
            objects.push(object(
                ObjectKind::Index,
                Some(&called),
                "by_c0",
                definition,
            ));
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
