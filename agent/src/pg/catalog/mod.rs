//! Tables and what they are like ([`read_schema`]), in a few queries for any number of tables.
//!
//! Only user relations: not PostgreSQL's own, `information_schema`, `steep_repl`, temporary ones, or
//! extension members (which the extension creates on the other side too).

mod database_settings;
mod enums;
mod extension_tables;
mod rows;
mod schema;

use std::collections::HashMap;

use steep_protocol::message::job::TableFilter;
use steep_protocol::{Identifier, TableName};
use tokio_postgres::Row;

pub(crate) use database_settings::database_settings;
pub(crate) use database_settings::{
    alter, differences, for_loading, is_carried, quoted, read_settings,
};
pub(crate) use enums::enum_labels;
pub(crate) use extension_tables::{ExtensionRelation, read_extension_tables};
pub(crate) use rows::holding_rows;
pub(crate) use schema::{describe, read_schema, read_target_at_once, read_target_schema};

use super::{PgError, Session};

/// Selects user relations, in a `WHERE` over `pg_class c` and `pg_namespace n`.
pub(crate) const USER_RELATION: &str = "c.relpersistence <> 't' \
     AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'steep_repl') \
     AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
         AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e')";

/// Which table each partition is attached to.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    parents: HashMap<TableName, TableName>,
}

impl Partitions {
    pub(crate) async fn load(session: &Session) -> Result<Self, PgError> {
        let sql = "SELECT n.nspname::text, c.relname::text, pn.nspname::text, p.relname::text \
             FROM pg_inherits i \
             JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition AND c.relkind IN ('r', 'p', 'f') \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_class p ON p.oid = i.inhparent \
             JOIN pg_namespace pn ON pn.oid = p.relnamespace";
        let mut parents = HashMap::new();
        for row in session.query(sql, &[]).await? {
            parents.insert(table_name(&row, 0)?, table_name(&row, 2)?);
        }
        Ok(Self { parents })
    }

    #[cfg(test)]
    pub(crate) fn of(pairs: Vec<(TableName, TableName)>) -> Self {
        Self {
            parents: pairs.into_iter().collect(),
        }
    }

    /// The tables above that one, nearest first.
    pub(crate) fn above<'a>(&'a self, table: &TableName) -> impl Iterator<Item = &'a TableName> {
        std::iter::successors(self.parents.get(table), |above| self.parents.get(*above))
            // The catalog should hold no cycle; if it does, this ends the walk.
            .take(self.parents.len())
    }

    /// Whether `filter` admits `table`, or names a table above it, and excludes nothing above it.
    pub(crate) fn admitted(&self, filter: &TableFilter, table: &TableName) -> bool {
        let named = |above: &TableName| filter.include_tables.contains(above);
        let excluded = |name: &TableName| filter.exclude_tables.contains(name);
        (filter.admits(table) || !excluded(table) && self.above(table).any(named))
            && !self.above(table).any(excluded)
    }
    /// Whether `filter` admits a sequence that `table` owns.
    pub(crate) fn owns(
        &self,
        filter: &TableFilter,
        table: &TableName,
        sequence: &TableName,
    ) -> bool {
        self.admitted(filter, table) && !filter.exclude_tables.contains(sequence)
    }
}

/// A table's name from two neighbouring text columns.
pub(crate) fn table_name(row: &Row, at: usize) -> Result<TableName, PgError> {
    Ok(TableName {
        schema: identifier(row.try_get(at)?)?,
        table: identifier(row.try_get(at + 1)?)?,
    })
}

/// A name from the catalog.
pub(crate) fn identifier(name: String) -> Result<Identifier, PgError> {
    Identifier::parse(name).map_err(|error| PgError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_goes_with_the_table_it_is_attached_to() {
        let name = |table: &str| TableName::new("public", table).unwrap();
        let partitions = Partitions::of(vec![
            (name("leaf"), name("middle")),
            (name("middle"), name("root")),
        ]);
        let excluding = |table: &str| TableFilter {
            include_schemas: Vec::new(),
            exclude_tables: vec![name(table)],
            ..TableFilter::default()
        };
        assert!(!partitions.admitted(&excluding("root"), &name("leaf")));
        assert!(!partitions.admitted(&excluding("leaf"), &name("leaf")));
        assert!(partitions.admitted(&excluding("leaf"), &name("middle")));
        assert!(partitions.admitted(&TableFilter::default(), &name("leaf")));
    }
}
