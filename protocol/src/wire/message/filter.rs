//! Which tables take part in a job, and which ones a node follows.

use serde::{Deserialize, Serialize};

use crate::wire::{Identifier, TableName};

/// Which tables take part. By default every table of the database but our own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct TableFilter {
    /// Only tables of these schemas, if any schema or table is named.
    pub include_schemas: Vec<Identifier>,
    /// Without these tables.
    pub exclude_tables: Vec<TableName>,
    /// These tables too, whatever their schema, with everything attached to them.
    #[serde(default)]
    pub include_tables: Vec<TableName>,
}

impl TableFilter {
    /// A filter that admits these tables alone.
    #[must_use]
    pub fn only(tables: Vec<TableName>) -> Self {
        Self {
            include_tables: tables,
            ..Self::default()
        }
    }

    /// Whether the filter admits everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.includes_all() && self.exclude_tables.is_empty()
    }

    /// Whether it names nothing to include, and so includes everything.
    #[must_use]
    pub fn includes_all(&self) -> bool {
        self.include_schemas.is_empty() && self.include_tables.is_empty()
    }

    /// Whether it includes the schema, or a table of it.
    #[must_use]
    pub fn reaches(&self, schema: &str) -> bool {
        self.includes_all()
            || self.include_schemas.iter().any(|s| s.as_str() == schema)
            || self
                .include_tables
                .iter()
                .any(|t| t.schema.as_str() == schema)
    }

    /// Whether it names tables alone, as where tables are added.
    #[must_use]
    pub fn names_tables_alone(&self) -> bool {
        self.include_schemas.is_empty() && !self.include_tables.is_empty()
    }

    /// Whether the filter admits that table.
    #[must_use]
    pub fn admits(&self, table: &TableName) -> bool {
        let included = self.includes_all()
            || self.include_schemas.contains(&table.schema)
            || self.include_tables.contains(table);
        included && !self.exclude_tables.contains(table)
    }

    /// The same filter, which also admits these tables.
    #[must_use]
    pub fn with(mut self, tables: &[TableName]) -> Self {
        self.exclude_tables.retain(|table| !tables.contains(table));
        for table in tables {
            if !self.admits(table) {
                self.include_tables.push(table.clone());
            }
        }
        self
    }

    /// The same filter, which does not admit these tables.
    #[must_use]
    pub fn without(mut self, tables: &[TableName]) -> Self {
        for table in tables {
            if self.admits(table) {
                self.exclude_tables.push(table.clone());
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_whole_schemas_and_leaves_out_single_tables() {
        let name = |s: &str, t: &str| TableName::new(s, t).unwrap();
        let filter = TableFilter {
            include_schemas: vec![Identifier::parse("app").unwrap()],
            exclude_tables: vec![name("app", "log")],
            include_tables: vec![name("other", "rates")],
        };
        assert!(filter.admits(&name("other", "rates")));
        assert!(filter.reaches("other") && !filter.reaches("public"));
        assert!(filter.admits(&name("app", "orders")));
        assert!(!filter.admits(&name("app", "log")));
        assert!(!filter.admits(&name("public", "orders")));
        assert!(TableFilter::default().admits(&name("any", "thing")));
        let only = TableFilter::only(vec![name("app", "orders")]);
        assert!(only.admits(&name("app", "orders")));
        assert!(!only.admits(&name("app", "log")));
    }

    #[test]
    fn a_filter_admits_what_was_added_and_not_what_was_dropped() {
        let name = |s: &str, t: &str| TableName::new(s, t).unwrap();
        let (log, rates) = (name("app", "log"), name("other", "rates"));
        let filter = TableFilter {
            include_schemas: vec![Identifier::parse("app").unwrap()],
            exclude_tables: vec![log.clone()],
            ..TableFilter::default()
        };
        let added = filter.clone().with(&[log.clone(), rates.clone()]);
        assert!(added.admits(&log) && added.admits(&rates));
        assert_eq!(added.clone().with(&[log.clone(), rates.clone()]), added);
        let dropped = added.without(&[log.clone(), rates.clone()]);
        assert!(!dropped.admits(&log) && !dropped.admits(&rates));
        assert!(dropped.admits(&name("app", "orders")));
        // What a filter of everything admits need not be named.
        assert!(TableFilter::default().with(&[rates]).is_everything());
    }
}
