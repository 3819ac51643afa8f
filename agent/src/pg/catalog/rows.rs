//! Which tables hold rows, themselves or in anything below them.

use std::collections::BTreeSet;

use steep_protocol::TableName;
use tokio_util::sync::CancellationToken;

use super::table_name;
use crate::pg::{PgError, Session};

/// Tables per statement: each is locked, with all below it, until the statement ends.
const BATCH: usize = 50;

/// Names, and whether they can be asked for rows: not without privileges, under row security, or where some
/// are on another server.
const READABLE: &str = "
    WITH RECURSIVE tree AS (
        SELECT c.oid AS root, c.oid AS below
        FROM unnest($1::text[], $2::text[]) AS wanted (schema_name, table_name)
        JOIN pg_namespace n ON n.nspname = wanted.schema_name
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
        UNION SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.below
    )
    SELECT n.nspname::text, c.relname::text,
        coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false)
        AND NOT (c.relrowsecurity AND row_security_active(c.oid))
        AND NOT EXISTS (SELECT FROM tree t JOIN pg_class k ON k.oid = t.below
            WHERE t.root = c.oid AND k.relkind NOT IN ('r', 'p'))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid IN (SELECT root FROM tree)
    ORDER BY 1, 2";

/// Those of `tables` that hold a row or have partitions or children that do, planned or not. A table that
/// cannot be asked counts as having rows.
pub(crate) async fn holding_rows(
    session: &Session,
    cancel: &CancellationToken,
    tables: &BTreeSet<TableName>,
) -> Result<BTreeSet<TableName>, PgError> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.table.as_str()).collect();
    let (mut ask, mut full) = (Vec::new(), BTreeSet::new());
    let readable = session
        .run(cancel, session.query(READABLE, &[&schemas, &names]))
        .await?;
    for row in readable {
        let table = table_name(&row, 0)?;
        if row.try_get(2)? {
            ask.push(table);
        } else {
            full.insert(table);
        }
    }
    for batch in ask.chunks(BATCH) {
        let sql = probe(batch);
        for row in session.run(cancel, session.query(&sql, &[])).await? {
            let at = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
            full.extend(batch.get(at).cloned());
        }
    }
    Ok(full)
}

/// Returns the positions in `tables` of those that hold a row.
fn probe(tables: &[TableName]) -> String {
    let asks = tables.iter().enumerate().map(|(at, table)| {
        let table = table.quoted();
        format!("SELECT {at} WHERE EXISTS (SELECT FROM {table})")
    });
    asks.collect::<Vec<_>>().join(" UNION ALL ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_table_is_asked_with_it() {
        let names = [
            TableName::new("a", "t").unwrap(),
            TableName::new("B", "x\"; DROP TABLE y; --").unwrap(),
        ];
        assert_eq!(
            probe(&names),
            "SELECT 0 WHERE EXISTS (SELECT FROM \"a\".\"t\") UNION ALL \
             SELECT 1 WHERE EXISTS (SELECT FROM \"B\".\"x\"\"; DROP TABLE y; --\")"
        );
    }
}
