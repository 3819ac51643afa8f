//! A whole schema in memory.

use std::collections::BTreeMap;

use steep_protocol::limits::SCHEMA_PAGE_BYTES;
use steep_protocol::message::schema::{
    ColumnModel, ObjectKind, ObjectModel, SchemaPage, TableModel,
};
use steep_protocol::{Identifier, TableName};

use crate::columns::line;

/// The key of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: ObjectKind,
    pub(crate) table: Option<TableName>,
    pub(crate) schema: Option<Identifier>,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn of(object: &ObjectModel) -> Self {
        Self {
            kind: object.kind,
            table: object.table.clone(),
            schema: object.schema.clone(),
            name: object.name.clone(),
        }
    }
}

/// A node's schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schema {
    pub(crate) tables: BTreeMap<TableName, TableModel>,
    pub(crate) objects: BTreeMap<Key, ObjectModel>,
}

impl Schema {
    /// Adds a page and replaces entries of the same name.
    pub fn add(&mut self, page: SchemaPage) {
        for table in page.tables {
            self.tables.insert(table.name.clone(), table);
        }
        for object in page.objects {
            self.objects.insert(Key::of(&object), object);
        }
    }

    /// The whole schema as one page.
    #[must_use]
    pub fn into_page(self) -> SchemaPage {
        SchemaPage {
            tables: self.tables.into_values().collect(),
            objects: self.objects.into_values().collect(),
        }
    }

    /// The whole schema in pages of about [`SCHEMA_PAGE_BYTES`]; at least one.
    #[must_use]
    pub fn into_pages(self) -> Vec<SchemaPage> {
        let mut pages = Vec::new();
        let mut page = SchemaPage::default();
        let mut bytes = 0;
        let mut count = |page: &mut SchemaPage, more: usize| {
            bytes += more;
            if bytes >= SCHEMA_PAGE_BYTES {
                bytes = 0;
                pages.push(std::mem::take(page));
            }
        };
        for table in self.tables.into_values() {
            let text = |c: &ColumnModel| line(c).len();
            let size = 128 + table.columns.iter().map(text).sum::<usize>();
            page.tables.push(table);
            count(&mut page, size);
        }
        for object in self.objects.into_values() {
            let size = 128 + object.name.len() + object.definition.len();
            page.objects.push(object);
            count(&mut page, size);
        }
        pages.push(page);
        pages
    }

    /// Its tables, by name.
    pub fn tables(&self) -> impl ExactSizeIterator<Item = &TableModel> {
        self.tables.values()
    }

    /// A table by name.
    #[must_use]
    pub fn table(&self, name: &TableName) -> Option<&TableModel> {
        self.tables.get(name)
    }

    /// Only the contents of these schemas, and extensions; everything if none is named.
    #[must_use]
    pub fn within(mut self, schemas: &[Identifier]) -> Self {
        if schemas.is_empty() {
            return self;
        }
        self.tables.retain(|name, _| schemas.contains(&name.schema));
        self.objects
            .retain(|key, object| match (&key.table, &key.schema) {
                (Some(table), _) => schemas.contains(&table.schema),
                (None, Some(schema)) => schemas.contains(schema),
                (None, None) if object.kind == ObjectKind::Schema => {
                    schemas.iter().any(|schema| schema.as_str() == object.name)
                }
                (None, None) => true,
            });
        self
    }

    /// Without types, schemas and extensions that `other` has not.
    #[must_use]
    pub fn without_others_than(mut self, other: &Self) -> Self {
        self.objects.retain(|key, object| {
            let alone = object.kind.is_type()
                || matches!(
                    object.kind,
                    ObjectKind::Schema | ObjectKind::Extension | ObjectKind::ExtensionMember
                );
            !alone || other.objects.contains_key(key)
        });
        self
    }

    /// Whether it has a schema of that name, or anything in one.
    #[must_use]
    pub fn has_schema(&self, schema: &Identifier) -> bool {
        self.tables.keys().any(|name| name.schema == *schema)
            || self.objects.iter().any(|(key, object)| {
                key.schema.as_ref() == Some(schema)
                    || (object.kind == ObjectKind::Schema && object.name == schema.as_str())
            })
    }

    /// Only that table and its objects.
    #[must_use]
    pub fn only(mut self, table: &TableName) -> Self {
        self.tables.retain(|name, _| name == table);
        self.objects
            .retain(|key, _| key.table.as_ref() == Some(table));
        self
    }

    /// A table's objects, by kind and name.
    pub fn objects_of(&self, table: &TableName) -> impl Iterator<Item = &ObjectModel> {
        // Keys start with the kind, so this looks up each of the few kinds.
        KINDS_OF_TABLES.into_iter().flat_map(move |kind| {
            let from = Key {
                kind,
                table: Some(table.clone()),
                schema: None,
                name: String::new(),
            };
            self.objects
                .range(from..)
                .take_while(move |(key, _)| key.kind == kind && key.table.as_ref() == Some(table))
                .map(|(_, object)| object)
        })
    }

    /// Objects that belong to no table.
    pub(crate) fn objects_alone(&self) -> impl Iterator<Item = &ObjectModel> {
        let alone = |o: &&ObjectModel| o.table.is_none() && o.kind != ObjectKind::ExtensionMember;
        self.objects.values().filter(alone)
    }

    /// Extension members that tables use; the definition is the extension's name.
    pub(crate) fn extension_members(&self) -> impl Iterator<Item = &ObjectModel> {
        let members = self.objects.values();
        members.filter(|object| object.kind == ObjectKind::ExtensionMember)
    }

    /// Whether there is an object of that kind and name.
    pub(crate) fn has(&self, object: &ObjectModel) -> bool {
        self.objects.contains_key(&Key::of(object))
    }

    /// The object of that kind and name.
    pub(crate) fn like(&self, object: &ObjectModel) -> Option<&ObjectModel> {
        self.objects.get(&Key::of(object))
    }
}

/// Kinds that belong to a table, in the order in which they are listed.
const KINDS_OF_TABLES: [ObjectKind; 11] = [
    ObjectKind::PrimaryKey,
    ObjectKind::ReplicaIdentity,
    ObjectKind::Unique,
    ObjectKind::Check,
    ObjectKind::Exclusion,
    ObjectKind::ForeignKey,
    ObjectKind::Index,
    ObjectKind::PartitionKey,
    ObjectKind::Parent,
    ObjectKind::Persistence,
    ObjectKind::Publication,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{column, object, schema, table};

    #[test]
    fn a_schema_in_pages_is_the_same_schema() {
        let tables = (0..4_000).map(|n| table(&format!("t{n}"), vec![column("a"), column("b")]));
        let long = "x".repeat(SCHEMA_PAGE_BYTES);
        let objects = vec![object(ObjectKind::Enum, None, "mood", &long)];
        let whole = schema(tables.collect(), objects);
        let pages = whole.clone().into_pages();
        assert!(pages.len() > 2, "{} pages", pages.len());
        let mut again = Schema::default();
        pages.into_iter().for_each(|page| again.add(page));
        assert_eq!(again, whole);
        assert_eq!(Schema::default().into_pages().len(), 1);
    }
}
