//! The tables that a node follows.

use serde_json::{Value, json};
use steep_protocol::message::job::NewTables;
use steep_protocol::message::tables::{Carried, TableList};
use steep_protocol::{NodeId, TableName};

use super::table::table;
use super::{Paint, clean};
use crate::units::size;

/// Tables named in a question.
const NAMED: usize = 5;

/// As a table, those that are not followed first.
pub(crate) fn list(node: &NodeId, listed: &TableList, paint: Paint) -> String {
    let rows: Vec<Vec<String>> = listed
        .tables
        .iter()
        .map(|one| {
            let state = match one.carried {
                Carried::Followed => paint.green("followed"),
                Carried::NotFollowed => paint.yellow("not followed"),
                Carried::LeftOut => "left out (dropped or excluded)".to_owned(),
            };
            vec![clean(&one.table.to_string()), size(one.bytes.0), state]
        })
        .collect();
    let mut text = table(&["TABLE", "SIZE", "STATE"], &rows, paint);
    let counted = listed.tables.iter();
    let counted = counted
        .filter(|one| one.carried != Carried::LeftOut)
        .count() as u64;
    let unlisted = (listed.followed + listed.not_followed).saturating_sub(counted);
    if unlisted > 0 {
        text.push_str(&format!("and {unlisted} more\n"));
    }
    let followed = format!(
        "{}: {} followed",
        paint.bold(node.as_str()),
        listed.followed
    );
    text.push_str(&match listed.not_followed {
        0 => format!("{followed}\n"),
        others => format!(
            "{followed}, {others} not; steep-repl tables add --node {node} TABLE copies and follows one\n"
        ),
    });
    text
}

/// In JSON.
pub(crate) fn json(node: &NodeId, listed: &TableList) -> Value {
    let tables: Vec<Value> = listed
        .tables
        .iter()
        .map(|one| {
            json!({
                "schema": one.table.schema.as_str(),
                "table": one.table.table.as_str(),
                "bytes": one.bytes.0,
                "state": match one.carried {
                    Carried::Followed => "followed",
                    Carried::NotFollowed => "not_followed",
                    Carried::LeftOut => "left_out",
                },
            })
        })
        .collect();
    json!({
        "node_id": node.as_str(),
        "tables": tables,
        "followed": listed.followed,
        "not_followed": listed.not_followed,
    })
}

/// What a node does from now on.
pub(crate) fn policy(node: &NodeId, policy: NewTables) -> String {
    match policy {
        NewTables::Report => format!("{node}: tables that are created on its source are reported"),
        NewTables::Add => {
            format!("{node}: tables that are created on its source are copied and followed")
        }
    }
}

/// The same in JSON.
pub(crate) fn policy_json(node: &NodeId, policy: NewTables) -> Value {
    json!({ "node_id": node.as_str(), "new_tables": policy.name() })
}

/// The first few tables, for a question.
pub(crate) fn named(tables: &[TableName]) -> String {
    let first = tables.iter().take(NAMED);
    let first: Vec<String> = first.map(|table| clean(&table.to_string())).collect();
    match tables.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::ByteCount;
    use steep_protocol::message::tables::ListedTable;

    use super::super::samples::id;
    use super::*;

    fn listed() -> TableList {
        let table = |name: &str, bytes, carried| ListedTable {
            table: TableName::new("app", name).unwrap(),
            bytes: ByteCount(bytes),
            carried,
        };
        TableList {
            tables: vec![
                table("new\u{202e}est", 8_192, Carried::NotFollowed),
                table("orders", 1_500_000_000, Carried::Followed),
                table("audit", 0, Carried::LeftOut),
            ],
            followed: 1,
            not_followed: 1,
        }
    }

    #[test]
    fn what_is_not_followed_comes_first_with_what_to_do() {
        insta::assert_snapshot!(list(&id("node_b"), &listed(), Paint::Plain));
    }

    #[test]
    fn scripts_get_every_table_with_its_state() {
        let value = json(&id("node_b"), &listed());
        assert_eq!(value["tables"][0]["state"], "not_followed");
        assert_eq!(value["tables"][1]["bytes"], 1_500_000_000u64);
        assert_eq!(value["not_followed"], 1);
    }
}
