//! What a server's catalog says of tables.

use std::collections::BTreeMap;

use steep_protocol::message::verify::{ListedTables, OpenedTable, TableSize, VerifyColumn};
use steep_protocol::{ByteCount, Fault, FaultKind, Identifier, NodeId, TableName};
use tokio_postgres::Row;

use super::choice;
use super::sql::{KeyColumn, ReadColumn, TextForm};
use crate::pg::catalog::{USER_RELATION, identifier, table_name};
use crate::pg::{PgError, Session};

/// Bytes of a heap page, unless PostgreSQL was built otherwise; only progress and rate depend on it.
pub(super) const PAGE: u64 = 8192;

/// A table as it is on this server.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: TableName,
    /// How all its rows are addressed at once.
    pub(super) from: String,
    /// Its leaf partitions, or itself.
    pub(super) leaves: Vec<TableName>,
    columns: Vec<Column>,
    /// The equality of each column that is in a unique index.
    equals: BTreeMap<Identifier, String>,
    pub(super) opened: OpenedTable,
}

#[derive(Debug)]
struct Column {
    name: Identifier,
    text: TextForm,
    /// The type of a literal; `None` where its input may run code of users.
    literal: Option<String>,
}

/// The topmost relation above `$oid`, itself if it is no partition.
macro_rules! root {
    ($oid:literal) => {
        concat!("coalesce(pg_partition_root(", $oid, "), ", $oid, ")")
    };
}

/// Lists tables with the size of their heaps, partitions included.
pub(super) async fn list(
    session: &Session,
    which: &ListedTables,
) -> Result<Vec<TableSize>, PgError> {
    let (roots, names) = match which {
        ListedTables::All => (
            format!(
                "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
                 AND {USER_RELATION} AND $1::text[] IS NOT NULL"
            ),
            Vec::new(),
        ),
        ListedTables::Named(tables) => (
            "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND format('%I.%I', n.nspname, c.relname) = ANY ($1)"
                .to_owned(),
            formatted(session, tables).await?,
        ),
        ListedTables::Published(names) => (
            concat!(
                "SELECT ",
                root!("c.oid"),
                " FROM pg_publication_tables p \
                 JOIN pg_namespace n ON n.nspname = p.schemaname \
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
                 WHERE p.pubname = ANY ($1)"
            )
            .to_owned(),
            texts(names),
        ),
        // Before PostgreSQL 15, there is no such thing.
        ListedTables::Filtered(_) if session.server_version() < 150_000 => return Ok(Vec::new()),
        ListedTables::Filtered(names) => (
            concat!(
                "SELECT ",
                root!("r.prrelid"),
                " FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
                 WHERE (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL) AND p.pubname = ANY ($1)"
            )
            .to_owned(),
            texts(names),
        ),
        ListedTables::Subscribed(names) => (
            concat!(
                "SELECT ",
                root!("r.srrelid"),
                " FROM pg_subscription_rel r \
                 JOIN pg_subscription s ON s.oid = r.srsubid \
                 JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database() \
                 WHERE s.subname = ANY ($1)"
            )
            .to_owned(),
            texts(names),
        ),
    };
    let sized = |size: &str| {
        format!(
            "SELECT n.nspname::text, c.relname::text, \
             coalesce((SELECT sum({size}) FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid \
                 WHERE p.isleaf AND c.relkind = 'p'), (SELECT {size} FROM pg_class l WHERE l.oid = c.oid), 0)::bigint \
         FROM (SELECT DISTINCT w.oid FROM ({roots}) AS w (oid)) AS r \
         JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
        )
    };
    let exact = session
        .query(&sized("pg_relation_size(l.oid)"), &[&names])
        .await;
    let rows = match exact.map_err(PgError::from) {
        // Somebody alters a table: that must not hold up the others.
        Err(error) if error.is_locked() => {
            let estimate = format!("greatest(l.relpages, 0)::bigint * {PAGE}");
            session.query(&sized(&estimate), &[&names]).await?
        }
        exact => exact?,
    };
    let size = |row: &Row| {
        let bytes: i64 = row.try_get(2)?;
        Ok(TableSize {
            name: table_name(row, 0)?,
            bytes: ByteCount(u64::try_from(bytes).unwrap_or(0)),
        })
    };
    rows.iter().map(size).collect()
}

/// As `format('%I.%I')` writes them, which depends on the server's keywords.
async fn formatted(session: &Session, tables: &[TableName]) -> Result<Vec<String>, PgError> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables
        .iter()
        .map(|t| (t.schema.as_str(), t.table.as_str()))
        .unzip();
    let sql = "SELECT format('%I.%I', t.s, t.n) FROM unnest($1::text[], $2::text[]) AS t (s, n)";
    let rows = session.query(sql, &[&schemas, &names]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

pub(super) fn texts(names: &[Identifier]) -> Vec<String> {
    names.iter().map(|name| name.as_str().to_owned()).collect()
}

const RELATION: &str = "
SELECT c.oid, c.relkind::text, n.nspname::text, c.relname::text, pg_relation_size(c.oid), c.reltuples::float8,
    has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), current_user::text
FROM pg_class r JOIN pg_namespace rn ON rn.oid = r.relnamespace
CROSS JOIN LATERAL (SELECT r.oid UNION
    SELECT p.relid FROM pg_partition_tree(r.oid) p WHERE r.relkind = 'p') AS l (oid)
JOIN pg_class c ON c.oid = l.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE rn.nspname = $1 AND r.relname = $2 AND r.relkind IN ('r', 'p')
ORDER BY c.oid <> r.oid, c.oid";

/// Whether a column `a` has no NULLs. Since PostgreSQL 18 `attnotnull` is also set for a constraint that is not valid.
macro_rules! not_null {
    () => {
        "(a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint u WHERE u.conrelid = a.attrelid AND u.contype = 'n'
        AND u.conkey[1] = a.attnum AND NOT u.convalidated))"
    };
}

/// A literal's type is the base type below domains, whose constraints could run functions of users.
const COLUMNS: &str = concat!(
    "
SELECT a.attname::text, a.attgenerated <> '', b.oid = 'bytea'::regtype, format_type(b.oid, -1),
    b.typtype IN ('b', 'e') AND b.typcategory <> 'A', NOT ",
    not_null!(),
    "
FROM pg_attribute a CROSS JOIN LATERAL (
    WITH RECURSIVE d AS (
        SELECT t.oid, t.typtype, t.typcategory, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
        UNION ALL
        SELECT t.oid, t.typtype, t.typcategory, t.typbasetype FROM d JOIN pg_type t ON t.oid = d.typbasetype
        WHERE d.typtype = 'd')
    SELECT d.oid, d.typtype, d.typcategory FROM d WHERE d.typtype <> 'd' LIMIT 1) AS b
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
);

/// The columns of unique B-tree indexes (403) of whole columns without NULLs, with their equality (strategy 3).
/// Rows are found by the column's collation: where it or the index's is not deterministic, it may not tell apart what
/// the index does, or the other side.
const KEYS: &str = concat!(
    "
SELECT i.indexrelid, a.attname::text, format('OPERATOR(%I.%s)', n.nspname, o.oprname), ",
    not_null!(),
    "
FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (att, opc, n)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.att
JOIN pg_opclass c ON c.oid = k.opc AND c.opcmethod = 403
JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
    AND m.amopstrategy = 3
JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    AND k.n <= i.indnkeyatts
    AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[], i.indcollation::oid[]) AS m (att, coll)
        JOIN pg_attribute b ON b.attrelid = i.indrelid AND b.attnum = m.att
        JOIN pg_collation l ON l.oid IN (m.coll, b.attcollation) WHERE NOT l.collisdeterministic)
ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid, k.n"
);

/// How the server hashes text.
///
/// # Errors
/// The error of PostgreSQL.
pub(super) async fn hashing(session: &Session) -> Result<String, tokio_postgres::Error> {
    let sql = "SELECT hashtextextended('Grüße, 0123456789 and more than a block' COLLATE \"C\", 1)";
    let hash: i64 = session.query_one(sql, &[]).await?.try_get(0)?;
    Ok(format!("{} {hash}", session.server_encoding()))
}

/// Reads what is needed to compare a table; `None` if there is no table of that name.
///
/// # Errors
/// A fault that says what right is missing, or the error of PostgreSQL.
pub(super) async fn open(
    session: &Session,
    node: &NodeId,
    (name, hashing): (&TableName, &str),
) -> Result<Option<Table>, Fault> {
    choice::no_system_table(node, name)?;
    let fault = |error: PgError| error.to_fault(node).at(name);
    let (schema, table) = (name.schema.as_str(), name.table.as_str());
    let relations = session.query(RELATION, &[&schema, &table]).await;
    let relations = relations.map_err(|error| fault(error.into()))?;
    let Some(root) = relations.first() else {
        return Ok(None);
    };
    let oid: u32 = get(root, 0).map_err(fault)?;
    let mut found = Leaves::default();
    for relation in &relations {
        found.add(relation, node, name)?;
    }
    let columns = session.query(COLUMNS, &[&oid]).await;
    let columns = columns.map_err(|error| fault(error.into()))?;
    let keys = session.query(KEYS, &[&oid]).await;
    let keys = keys.map_err(|error| fault(error.into()))?;
    let (equals, uniques) = unique_keys(&keys).map_err(fault)?;
    let columns: Result<Vec<(Column, VerifyColumn)>, PgError> =
        columns.iter().map(column).collect();
    let columns = columns.map_err(fault)?;
    let usable = |key: &Vec<Identifier>| {
        let literal = |name: &Identifier| {
            columns
                .iter()
                .any(|(c, _)| c.name == *name && c.literal.is_some())
        };
        key.iter().all(literal)
    };
    let opened = OpenedTable {
        columns: columns.iter().map(|(_, told)| told.clone()).collect(),
        keys: uniques
            .iter()
            .filter(|(not_null, key)| *not_null && usable(key))
            .map(|(_, key)| key.clone())
            .collect(),
        uniques: uniques
            .into_iter()
            .map(|(_, columns)| columns)
            .filter(usable)
            .collect(),
        pages: found.pages,
        rows_estimate: found.rows,
        hashing: hashing.to_owned(),
    };
    let only = if found.partitioned { "" } else { "ONLY " };
    Ok(Some(Table {
        name: name.clone(),
        from: format!("{only}{}", name.quoted()),
        leaves: found.leaves,
        columns: columns.into_iter().map(|(column, _)| column).collect(),
        equals,
        opened,
    }))
}

/// What is read of a table's partitions, or of itself.
#[derive(Debug, Default)]
struct Leaves {
    partitioned: bool,
    leaves: Vec<TableName>,
    pages: Vec<u32>,
    rows: u64,
}

impl Leaves {
    fn add(&mut self, row: &Row, node: &NodeId, table: &TableName) -> Result<(), Fault> {
        let fault = |error: PgError| error.to_fault(node).at(table);
        let kind: String = get(row, 1).map_err(fault)?;
        let name = table_name(row, 2).map_err(fault)?;
        let (usage, select): (bool, bool) =
            (get(row, 6).map_err(fault)?, get(row, 7).map_err(fault)?);
        let role: String = get(row, 8).map_err(fault)?;
        if !(usage && select) {
            let text = format!("the agent's role {role} may not read {name}");
            let fault = Fault::new(FaultKind::Unauthorized, text).on(node).at(table);
            let (schema, role) = (name.schema.quoted(), quoted(&role));
            return Err(fault.hint(format!(
                "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {} TO {role};",
                name.quoted()
            )));
        }
        match kind.as_str() {
            "p" => {
                self.partitioned = true;
                return Ok(());
            }
            "r" => {}
            _ => {
                let text =
                    format!("{name} is a foreign table, which cannot be compared by its pages");
                let fault = Fault::new(FaultKind::Failed, text).on(node).at(table);
                return Err(fault.hint("name the tables to be compared with --tables"));
            }
        }
        let bytes: i64 = get(row, 4).map_err(fault)?;
        let pages = u64::try_from(bytes).unwrap_or(0).div_ceil(PAGE);
        let rows: f64 = get(row, 5).map_err(fault)?;
        self.leaves.push(name);
        self.pages.push(u32::try_from(pages).unwrap_or(u32::MAX));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate, -1 if unknown"
        )]
        let rows = rows.max(0.0) as u64;
        self.rows = self.rows.saturating_add(rows);
        Ok(())
    }
}

fn quoted(role: &str) -> String {
    Identifier::parse(role).map_or_else(|_| role.to_owned(), |role| role.quoted())
}

fn column(row: &Row) -> Result<(Column, VerifyColumn), PgError> {
    let (bytes, plain): (bool, bool) = (get(row, 2)?, get(row, 4)?);
    let type_name: String = get(row, 3)?;
    let name = identifier(get(row, 0)?)?;
    let told = VerifyColumn {
        name: name.clone(),
        generated: get(row, 1)?,
        nullable: get(row, 5)?,
    };
    let column = Column {
        name,
        text: if bytes {
            TextForm::Digest
        } else {
            TextForm::Output
        },
        literal: plain.then_some(type_name),
    };
    Ok((column, told))
}

/// Equalities by column, and the columns of each unique index with whether none of them may be NULL.
type Keys = (BTreeMap<Identifier, String>, Vec<(bool, Vec<Identifier>)>);

fn unique_keys(rows: &[Row]) -> Result<Keys, PgError> {
    let mut equals = BTreeMap::new();
    let mut uniques: Vec<(u32, (bool, Vec<Identifier>))> = Vec::new();
    for row in rows {
        let index: u32 = get(row, 0)?;
        let name = identifier(get(row, 1)?)?;
        let not_null: bool = get(row, 3)?;
        equals.entry(name.clone()).or_insert(get(row, 2)?);
        if uniques.last().is_none_or(|(last, _)| *last != index) {
            uniques.push((index, (true, Vec::new())));
        }
        if let Some((_, (all_not_null, columns))) = uniques.last_mut() {
            *all_not_null &= not_null;
            columns.push(name);
        }
    }
    let uniques = uniques.into_iter().map(|(_, unique)| unique);
    Ok((equals, uniques.collect()))
}

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    at: usize,
) -> Result<T, PgError> {
    Ok(row.try_get(at)?)
}

impl Table {
    /// How a column is digested; `None` if there is no such column.
    pub(super) fn read(&self, name: &Identifier) -> Option<ReadColumn> {
        let column = self.columns.iter().find(|column| column.name == *name)?;
        let (name, text) = (column.name.clone(), column.text);
        Some(ReadColumn { name, text })
    }

    /// An expression that orders rows by when they were modified, by that column; `None` where it is none that can tell.
    pub(super) fn modified(&self, name: &Identifier) -> Option<String> {
        let column = self.columns.iter().find(|column| column.name == *name)?;
        let value = format!("t.{}", column.name.quoted());
        match column.literal.as_deref()? {
            "timestamp with time zone" | "timestamp without time zone" | "date" => Some(format!(
                "trunc(EXTRACT(epoch FROM {value}) OPERATOR(pg_catalog.*) 1000000)"
            )),
            "smallint" | "integer" | "bigint" => Some(value),
            _ => None,
        }
    }

    /// How a column of the key is compared; `None` if it cannot be.
    pub(super) fn key(&self, name: &Identifier) -> Option<KeyColumn> {
        let column = self.columns.iter().find(|column| column.name == *name)?;
        let plain = || "OPERATOR(pg_catalog.=)".to_owned();
        Some(KeyColumn {
            name: column.name.clone(),
            type_name: column.literal.clone()?,
            equals: self.equals.get(name).cloned().unwrap_or_else(plain),
        })
    }
}

/// The foreign keys between these tables: each with the table that it refers to, partitions as their roots.
pub(super) async fn references(
    session: &Session,
    tables: &[TableName],
) -> Result<Vec<(TableName, TableName)>, PgError> {
    let sql = concat!(
        "SELECT DISTINCT cn.nspname::text, c.relname::text, rn.nspname::text, r.relname::text \
         FROM pg_constraint k \
         JOIN pg_class c ON c.oid = ",
        root!("k.conrelid"),
        " JOIN pg_namespace cn ON cn.oid = c.relnamespace \
         JOIN pg_class r ON r.oid = ",
        root!("k.confrelid"),
        " JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         WHERE k.contype = 'f' AND c.oid <> r.oid \
         AND (cn.nspname::text, c.relname::text) IN (SELECT * FROM unnest($1::text[], $2::text[])) \
         AND (rn.nspname::text, r.relname::text) IN (SELECT * FROM unnest($1::text[], $2::text[]))"
    );
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables
        .iter()
        .map(|t| (t.schema.as_str(), t.table.as_str()))
        .unzip();
    let rows = session.query(sql, &[&schemas, &names]).await?;
    let pair = |row: &Row| Ok((table_name(row, 0)?, table_name(row, 2)?));
    rows.iter().map(pair).collect()
}
