//! Fingerprints stored on this node: its own, and those of its source.

use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::SchemaReview;
use steep_protocol::{Fault, Identifier, NodeId, TableName};
use steep_schema::{Schema, compare, line, plan, review};

use crate::node::connection::Conn;
use crate::node::own_schema;
use crate::pg::catalog;
use crate::task::Task;

const STORE_BATCH: usize = 1_000;

/// Stores the current fingerprint of every table; returns how many.
pub(crate) async fn capture_fingerprints(task: &Task) -> Result<u64, Fault> {
    let conn = Conn::to_catalog(task, "capture").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    let sql = "SELECT steep_repl.capture_all_fingerprints()";
    let tables: i64 = conn.row(sql, &[]).await?.get(0);
    conn.give_back().await;
    Ok(u64::try_from(tables).unwrap_or(0))
}

/// How this node's schema differs from its source's; stores the source's fingerprints.
pub(crate) async fn compare_schemas(
    task: &Task,
    source: &NodeId,
    described: &Schema,
    filter: &TableFilter,
) -> Result<SchemaReview, Fault> {
    let conn = Conn::to_catalog(task, "compare").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    store(&conn, source, described, filter).await?;
    let here = read(&conn, filter, described).await?;
    conn.give_back().await;
    let compared = compare(described, &here);
    // Only the plan's differences are used; it is not run.
    let plan = plan(described, &here, &compared, &|_| true);
    Ok(review(&compared, &plan))
}

/// Reads this node's schema on that connection, in its transaction if there is one. It is a target of the node with the
/// schema `source`.
pub(crate) async fn read(
    conn: &Conn,
    filter: &TableFilter,
    source: &Schema,
) -> Result<Schema, Fault> {
    let read = catalog::read_target_schema(&conn.session, filter, source).await;
    read.map_err(|error| conn.fault(&error))
}

/// Replaces the stored fingerprints of the peer's tables that `filter` admits; others stay as they are.
pub(crate) async fn store(
    conn: &Conn,
    peer: &NodeId,
    schema: &Schema,
    filter: &TableFilter,
) -> Result<(), Fault> {
    let peer = peer.as_str();
    let within: Vec<&str> = filter
        .include_schemas
        .iter()
        .map(Identifier::as_str)
        .collect();
    let (schemas, names) = split(&filter.exclude_tables);
    let (of, named) = split(&filter.include_tables);
    conn.execute("BEGIN").await?;
    let forget = "DELETE FROM steep_repl.schema_fingerprints AS f WHERE f.node_id = $1
        AND (cardinality($2::text[]) + cardinality($5::text[]) = 0 OR f.schema_name = ANY ($2)
            OR (f.schema_name, f.table_name) IN (
                SELECT s, t FROM unnest($5::text[], $6::text[]) AS named (s, t)))
        AND (f.schema_name, f.table_name) NOT IN (
            SELECT s, t FROM unnest($3::text[], $4::text[]) AS without (s, t))";
    conn.rows(forget, &[&peer, &within, &schemas, &names, &of, &named])
        .await?;
    let tables: Vec<_> = schema.tables().collect();
    for batch in tables.chunks(STORE_BATCH) {
        let schemas: Vec<&str> = batch.iter().map(|t| t.name.schema.as_str()).collect();
        let names: Vec<&str> = batch.iter().map(|t| t.name.table.as_str()).collect();
        let prints: Vec<&str> = batch.iter().map(|t| t.fingerprint.as_str()).collect();
        let lines = batch.iter().map(|table| {
            let lines: Vec<String> = table.columns.iter().map(line).collect();
            serde_json::Value::from(lines)
        });
        let lines: Vec<serde_json::Value> = lines.collect();
        let sql = "INSERT INTO steep_repl.schema_fingerprints
                (node_id, schema_name, table_name, fingerprint, column_definitions)
            SELECT $1, s, t, f, d FROM unnest($2::text[], $3::text[], $4::text[], $5::jsonb[])
                AS captured (s, t, f, d)
            ON CONFLICT (node_id, schema_name, table_name) DO UPDATE
                SET fingerprint = excluded.fingerprint, column_definitions = excluded.column_definitions";
        conn.rows(sql, &[&peer, &schemas, &names, &prints, &lines])
            .await?;
    }
    conn.execute("COMMIT").await
}

/// Schemas and names of tables.
fn split(tables: &[TableName]) -> (Vec<&str>, Vec<&str>) {
    let tables = tables.iter();
    tables
        .map(|table| (table.schema.as_str(), table.table.as_str()))
        .unzip()
}
