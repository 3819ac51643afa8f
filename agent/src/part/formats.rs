//! Chooses COPY's format for each table: binary where it means the same on both ends.

use std::collections::HashMap;

use steep_protocol::message::peer::{CopyFormat, TablePlan};
use steep_protocol::{Fault, TableName, TableNo};

use crate::node::connection::Conn;
use crate::task::Task;

/// A column as this server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    type_name: String,
    receives: bool,
}

/// Binary where the source says the columns allow it and the columns here have the same types and can
/// receive it; text everywhere else, as of tables without columns to copy.
pub(crate) async fn formats(
    task: &Task,
    plan: &[TablePlan],
) -> Result<HashMap<TableNo, CopyFormat>, Fault> {
    let conn = Conn::to_catalog(task, "formats").await?;
    let there = columns(&conn).await?;
    conn.give_back().await;
    let format = |table: &TablePlan| (table.no, judge(table, there.get(&table.name)));
    Ok(plan.iter().map(format).collect())
}

fn judge(table: &TablePlan, there: Option<&Vec<Column>>) -> CopyFormat {
    let there = there.map_or(&[][..], Vec::as_slice);
    let same = table.columns.iter().all(|column| {
        column.binary
            && there.iter().any(|c| {
                c.name == column.name.as_str() && c.type_name == column.type_name && c.receives
            })
    });
    if same && !table.columns.is_empty() {
        CopyFormat::Binary
    } else {
        CopyFormat::Text
    }
}

async fn columns(conn: &Conn) -> Result<HashMap<TableName, Vec<Column>>, Fault> {
    let sql = "SELECT n.nspname::text, c.relname::text, a.attname::text,
            format_type(a.atttypid, a.atttypmod), t.typreceive <> 0
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname !~ '^pg_'
            AND n.nspname NOT IN ('information_schema', 'steep_repl')";
    let mut found = HashMap::<TableName, Vec<Column>>::new();
    for row in conn.rows(sql, &[]).await? {
        let Ok(table) = TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)) else {
            continue;
        };
        found.entry(table).or_default().push(Column {
            name: row.get(2),
            type_name: row.get(3),
            receives: row.get(4),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::message::peer::{ColumnPlan, CtidRange};
    use steep_protocol::{Identifier, PartNo};

    fn plan(columns: &[(&str, &str, bool)]) -> TablePlan {
        let column = |(name, type_name, binary): &(&str, &str, bool)| ColumnPlan {
            name: Identifier::parse(*name).unwrap(),
            type_name: (*type_name).to_owned(),
            binary: *binary,
        };
        TablePlan {
            no: TableNo(0),
            name: TableName::new("s", "t").unwrap(),
            columns: columns.iter().map(column).collect(),
            first_part: PartNo(0),
            ranges: vec![CtidRange::ALL],
        }
    }

    fn there(name: &str, type_name: &str, receives: bool) -> Column {
        Column {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            receives,
        }
    }

    #[test]
    fn binary_needs_both_ends_to_mean_the_same() {
        let int = plan(&[("a", "integer", true)]);
        let judge = |column| judge(&int, Some(&vec![there("z", "text", false), column]));
        assert_eq!(judge(there("a", "integer", true)), CopyFormat::Binary);
        assert_eq!(judge(there("a", "bigint", true)), CopyFormat::Text);
        assert_eq!(judge(there("a", "integer", false)), CopyFormat::Text);
        assert_eq!(judge(there("b", "integer", true)), CopyFormat::Text);
        let unsafe_there = plan(&[("a", "integer", false)]);
        let columns = vec![there("a", "integer", true)];
        assert_eq!(
            super::judge(&unsafe_there, Some(&columns)),
            CopyFormat::Text
        );
        assert_eq!(super::judge(&int, None), CopyFormat::Text);
        // A stored part of it is text, whatever its columns say.
        assert_eq!(super::judge(&plan(&[]), None), CopyFormat::Text);
    }
}
