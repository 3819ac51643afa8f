//! Whether a subscriber can find the rows of a publisher's changes, if the two tables differ.
//!
//! The rule is PostgreSQL's (`logicalrep_rel_mark_updatable` in relation.c): a subscriber looks up
//! rows by its own replica identity's index, or else by its own primary key. The publisher must
//! send every column of that index. Without one, the subscriber compares whole rows, which works
//! only if the publisher's identity is FULL.

use std::collections::BTreeSet;

use steep_protocol::message::schema::{ColumnValue, ObjectKind, ObjectModel};
use steep_protocol::{Identifier, TableName};

use crate::Schema;

/// Why a subscriber finds no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfindable {
    /// It has no key, and the publisher does not send whole rows.
    NoKey,
    /// The publisher does not send this column of its key.
    NotSent(Identifier),
}

/// Common tables whose keys differ so that the subscriber finds no row; in order.
#[must_use]
pub fn unfindable(publisher: &Schema, subscriber: &Schema) -> Vec<(TableName, Unfindable)> {
    let both = publisher
        .tables()
        .filter(|table| subscriber.table(&table.name).is_some());
    both.filter_map(|table| {
        let name = &table.name;
        let sent = Sent::of(publisher, name)?;
        let missed = match lookup(subscriber, name) {
            Some(key) => key
                .into_iter()
                .find(|column| !sent.columns.contains(column))
                .map(Unfindable::NotSent),
            None => (!sent.whole).then_some(Unfindable::NoKey),
        };
        Some((name.clone(), missed?))
    })
    .collect()
}

/// What a publisher sends of an old row.
struct Sent {
    whole: bool,
    columns: BTreeSet<Identifier>,
}

impl Sent {
    /// `None` if it sends nothing: then the change fails on the publisher.
    fn of(schema: &Schema, name: &TableName) -> Option<Self> {
        let table = schema.table(name)?;
        // Generated columns are not sent.
        let sendable = table.columns.iter().filter(|column| {
            !matches!(
                column.value,
                ColumnValue::Stored(_) | ColumnValue::Virtual(_)
            )
        });
        let sendable: BTreeSet<Identifier> = sendable.map(|c| c.name.clone()).collect();
        if identity(schema, name) == Some("FULL") {
            return Some(Self {
                whole: true,
                columns: sendable,
            });
        }
        let key = identity_key(schema, name)?;
        Some(Self {
            whole: false,
            columns: key.intersection(&sendable).cloned().collect(),
        })
    }
}

/// The columns by which a subscriber looks up rows.
fn lookup(schema: &Schema, name: &TableName) -> Option<BTreeSet<Identifier>> {
    identity_key(schema, name).or_else(|| primary_key(schema, name))
}

fn identity<'a>(schema: &'a Schema, name: &TableName) -> Option<&'a str> {
    let mut objects = schema.objects_of(name);
    let identity = objects.find(|object| object.kind == ObjectKind::ReplicaIdentity);
    identity.map(|object| object.definition.as_str())
}

/// The columns of the key that is the replica identity.
fn identity_key(schema: &Schema, name: &TableName) -> Option<BTreeSet<Identifier>> {
    match identity(schema, name)? {
        "DEFAULT" => primary_key(schema, name),
        other => {
            let index = take_name(other.strip_prefix("USING INDEX ")?)?.0;
            let mut objects = schema.objects_of(name);
            objects
                .find(|object| {
                    let keys = [
                        ObjectKind::PrimaryKey,
                        ObjectKind::Unique,
                        ObjectKind::Index,
                    ];
                    keys.contains(&object.kind) && object.name == index
                })
                .and_then(key_columns)
        }
    }
}

/// `None` if it is deferrable, which cannot be used to look up rows.
fn primary_key(schema: &Schema, name: &TableName) -> Option<BTreeSet<Identifier>> {
    let mut objects = schema.objects_of(name);
    let key = objects.find(|object| object.kind == ObjectKind::PrimaryKey)?;
    let deferrable = key
        .definition
        .rsplit_once(')')
        .is_some_and(|(_, rest)| rest.contains("DEFERRABLE"));
    (!deferrable).then(|| key_columns(key)).flatten()
}

/// The names in the first parentheses of a definition: `PRIMARY KEY (a, "B")`,
/// `UNIQUE USING btree (a DESC)`.
fn key_columns(object: &ObjectModel) -> Option<BTreeSet<Identifier>> {
    let (_, mut rest) = object.definition.split_once('(')?;
    let mut columns = BTreeSet::new();
    loop {
        let (column, after) = take_name(rest.trim_start())?;
        columns.insert(Identifier::parse(column).ok()?);
        // Skips operator classes, directions and the like.
        let end = after.find([',', ')'])?;
        if after[end..].starts_with(')') {
            return Some(columns);
        }
        rest = &after[end + 1..];
    }
}

/// A leading name as PostgreSQL writes it, and the rest.
fn take_name(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', ')', '(']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{column, name, object, schema, table};

    /// One table with its objects.
    fn one(columns: &[&str], generated: &[&str], objects: &[(ObjectKind, &str, &str)]) -> Schema {
        let plain = columns.iter().map(|name| column(name));
        let stored = generated.iter().map(|name| {
            let mut column = column(name);
            column.value = ColumnValue::Stored("1".to_owned());
            column
        });
        let columns = plain.chain(stored).collect();
        let objects = objects
            .iter()
            .map(|(kind, called, definition)| object(*kind, Some("t"), called, definition));
        schema(vec![table("t", columns)], objects.collect())
    }

    const DEFAULT: (ObjectKind, &str, &str) = (ObjectKind::ReplicaIdentity, "", "DEFAULT");
    const FULL: (ObjectKind, &str, &str) = (ObjectKind::ReplicaIdentity, "", "FULL");

    fn key(definition: &str) -> (ObjectKind, &str, &str) {
        (ObjectKind::PrimaryKey, "t_pkey", definition)
    }

    fn missed(publisher: &Schema, subscriber: &Schema) -> Option<Unfindable> {
        let mut found = unfindable(publisher, subscriber);
        assert!(found.len() <= 1);
        found.pop().map(|(table, missed)| {
            assert_eq!(table, name("t"));
            missed
        })
    }

    fn not_sent(column: &str) -> Option<Unfindable> {
        Some(Unfindable::NotSent(Identifier::parse(column).unwrap()))
    }

    #[test]
    fn a_key_must_be_sent_whole() {
        let keyed = one(&["a", "b"], &[], &[DEFAULT, key("PRIMARY KEY (a)")]);
        let wider = one(&["a", "b"], &[], &[DEFAULT, key("PRIMARY KEY (a, b)")]);
        let none = one(&["a", "b"], &[], &[DEFAULT]);
        let full = one(&["a", "b"], &[], &[FULL]);
        assert_eq!(missed(&keyed, &keyed), None);
        assert_eq!(missed(&wider, &keyed), None);
        assert_eq!(missed(&keyed, &wider), not_sent("b"));
        assert_eq!(missed(&keyed, &none), Some(Unfindable::NoKey));
        assert_eq!(missed(&full, &none), None);
        assert_eq!(missed(&full, &wider), None);
        // The source rejects the change itself.
        assert_eq!(missed(&none, &keyed), None);
        let deferrable = one(&["a"], &[], &[DEFAULT, key("PRIMARY KEY (a) DEFERRABLE")]);
        assert_eq!(missed(&keyed, &deferrable), Some(Unfindable::NoKey));
    }

    #[test]
    fn generated_columns_are_not_sent() {
        let keyed = one(&["a"], &["g"], &[FULL]);
        let by_generated = one(&["a"], &["g"], &[FULL, key("PRIMARY KEY (g)")]);
        assert_eq!(missed(&keyed, &by_generated), not_sent("g"));
    }

    #[test]
    fn an_index_may_be_the_identity() {
        let identity = (
            ObjectKind::ReplicaIdentity,
            "",
            "USING INDEX \"By \"\"b\"\"\"",
        );
        let index = (
            ObjectKind::Index,
            "By \"b\"",
            "UNIQUE USING btree (b DESC, \"C, d\")",
        );
        let by_index = one(&["a", "b", "C, d"], &[], &[identity, index]);
        let by_a = one(&["a", "b", "C, d"], &[], &[DEFAULT, key("PRIMARY KEY (a)")]);
        assert_eq!(missed(&by_index, &by_index), None);
        assert_eq!(missed(&by_index, &by_a), not_sent("a"));
        assert_eq!(missed(&by_a, &by_index), not_sent("C, d"));
    }

    #[test]
    fn any_definition_is_read_without_harm() {
        for text in ["", "(", "PRIMARY KEY (", "(\"", "(a", "(,)", "()"] {
            let odd = one(&["a"], &[], &[DEFAULT, key(text)]);
            let keyed = one(&["a"], &[], &[DEFAULT, key("PRIMARY KEY (a)")]);
            assert_eq!(missed(&odd, &keyed), None, "{text:?}");
        }
    }
}
