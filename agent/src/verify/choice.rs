//! Which tables and columns are compared, and by which key. Pure.

use std::collections::BTreeSet;

use steep_protocol::message::verify::{
    OpenedTable, RowShape, Seeds, Summed, TableProblem, VerifyColumn,
};
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, TableName};

use crate::node::own_schema;

/// How two tables of one name are compared, or why they are not.
///
/// Columns go by name, in one order for both sides. What a server computes is left out: it is not
/// replicated. The key must be unique on both sides, so it contains a unique key of each.
///
/// # Errors
/// The columns that only one side has.
pub(super) fn shape(a: &OpenedTable, b: &OpenedTable) -> Result<RowShape, TableProblem> {
    let (here, there) = (names(a, |_| true), names(b, |_| true));
    let only = |one: &BTreeSet<Identifier>, other: &BTreeSet<Identifier>| {
        one.difference(other).cloned().collect::<Vec<_>>()
    };
    let (only_a, only_b) = (only(&here, &there), only(&there, &here));
    if !(only_a.is_empty() && only_b.is_empty()) {
        return Err(TableProblem::Columns { only_a, only_b });
    }
    let stored = |table| names(table, |generated| !generated);
    let columns = stored(a).intersection(&stored(b)).cloned().collect();
    Ok(RowShape {
        columns,
        key: key(a, b).unwrap_or_default(),
    })
}

/// What the sums of a bucket are made of.
pub(super) fn summed(a: &OpenedTable, b: &OpenedTable, seeds: Seeds) -> Summed {
    match a.hashing == b.hashing {
        true => Summed::Text(seeds),
        false => Summed::Digest(seeds),
    }
}

/// Refuses a table of PostgreSQL or of our own, whose rows tell secrets or belong to one node.
///
/// # Errors
/// The fault, of that node.
pub(super) fn no_system_table(node: &NodeId, name: &TableName) -> Result<(), Fault> {
    let schema = name.schema.as_str();
    if !(schema.starts_with("pg_") || ["information_schema", own_schema::NAME].contains(&schema)) {
        return Ok(());
    }
    let text = format!("{name} is not compared: it is a table of PostgreSQL or of steep-repl");
    let fault = Fault::new(FaultKind::BadRequest, text).on(node).at(name);
    Err(fault.hint("name tables of users after --tables"))
}

fn names(table: &OpenedTable, wanted: impl Fn(bool) -> bool) -> BTreeSet<Identifier> {
    let columns = table
        .columns
        .iter()
        .filter(|column| wanted(column.generated));
    columns.map(|column| column.name.clone()).collect()
}

/// The first key of either side that contains a unique key of the other, and nothing that is NULL there.
fn key(a: &OpenedTable, b: &OpenedTable) -> Option<Vec<Identifier>> {
    let fits = |key: &[Identifier], other: &OpenedTable| {
        let contains = |unique: &Vec<Identifier>| unique.iter().all(|column| key.contains(column));
        let nullable = |column: &VerifyColumn| column.nullable && key.contains(&column.name);
        other.keys.iter().any(contains) && !other.columns.iter().any(nullable)
    };
    let of_a = a.keys.iter().find(|key| fits(key, b));
    let of_b = || b.keys.iter().find(|key| fits(key, a));
    of_a.or_else(of_b).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    /// Columns, of which those with a `*` are computed and those with a `?` may be NULL; keys as words.
    fn table(columns: &str, keys: &[&str]) -> OpenedTable {
        let split = |text: &str| text.split(' ').map(name).collect::<Vec<_>>();
        OpenedTable {
            columns: columns
                .split(' ')
                .map(|column| VerifyColumn {
                    name: name(column.trim_end_matches(['*', '?'])),
                    generated: column.ends_with('*'),
                    nullable: column.ends_with('?'),
                })
                .collect(),
            keys: keys.iter().map(|key| split(key)).collect(),
            uniques: Vec::new(),
            pages: vec![1],
            rows_estimate: 0,
            hashing: "UTF8 1".to_owned(),
        }
    }

    fn chosen(a: &OpenedTable, b: &OpenedTable) -> (String, String) {
        let shape = shape(a, b).unwrap();
        let text = |names: &[Identifier]| {
            names
                .iter()
                .map(Identifier::as_str)
                .collect::<Vec<_>>()
                .join(" ")
        };
        (text(&shape.columns), text(&shape.key))
    }

    #[test]
    fn columns_are_compared_by_name_and_computed_ones_not_at_all() {
        let a = table("id b a sum*", &["id"]);
        let b = table("a id sum* b", &["id"]);
        assert_eq!(chosen(&a, &b), ("a b id".to_owned(), "id".to_owned()));
        let plain = table("a id sum b", &["id"]);
        assert_eq!(chosen(&a, &plain).0, "a b id");
    }

    #[test]
    fn text_is_summed_where_both_servers_hash_it_alike() {
        let a = table("id", &["id"]);
        let seeds = Seeds([3, -4]);
        assert_eq!(summed(&a, &a, seeds), Summed::Text(seeds));
        let other = OpenedTable {
            hashing: "LATIN1 1".to_owned(),
            ..a.clone()
        };
        assert_eq!(summed(&a, &other, seeds), Summed::Digest(seeds));
    }

    #[test]
    fn only_tables_of_users_are_compared() {
        let refused = |schema| {
            let name = TableName::new(schema, "t").unwrap();
            no_system_table(&NodeId::parse("a").unwrap(), &name).is_err()
        };
        let system = ["pg_catalog", "pg_toast", "pg_temp_3", "information_schema"];
        assert!(system.into_iter().all(refused) && refused("steep_repl"));
        assert!(!refused("public") && !refused("pgbench"));
    }

    #[test]
    fn columns_of_one_side_are_named() {
        let problem = shape(&table("id a old", &[]), &table("id a new", &[])).unwrap_err();
        let expected = TableProblem::Columns {
            only_a: vec![name("old")],
            only_b: vec![name("new")],
        };
        assert_eq!(problem, expected);
    }

    #[test]
    fn the_key_is_unique_on_both_sides() {
        let key = |a: &[&str], b: &[&str]| chosen(&table("id day x?", a), &table("id day x", b)).1;
        assert_eq!(key(&["id"], &["id"]), "id");
        // Partitioned by day on one side only.
        assert_eq!(key(&["id day"], &["id"]), "id day");
        assert_eq!(key(&["id"], &["id day"]), "id day");
        assert_eq!(key(&["id", "day"], &["day"]), "day");
        assert_eq!(key(&["id"], &["id x"]), "");
        assert_eq!(key(&["id"], &["day"]), "");
        assert_eq!(key(&["id"], &[]), "");
    }
}
