//! Reads a database's schema with a few queries for any number of tables.
//!
//! Defines the form of every definition ([`steep_protocol::message::schema`]): with an empty `search_path`
//! and fixed formats, as this server spells it; the comparison knows what versions spell differently. Reads
//! only the catalog and takes only the short locks of `pg_get_expr`. An object dropped meanwhile is left
//! out, as PostgreSQL's functions return NULL for it.

mod alone;
mod needed;

use std::collections::{BTreeSet, HashMap};

use backon::Retryable as _;
use steep_protocol::TableName;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::{
    ColumnModel, ColumnValue, Identity, ObjectKind, ObjectModel, SchemaPage, TableModel,
};
use steep_schema::{Schema, bounded, fingerprint};
use tokio_postgres::Row;

use super::{Partitions, USER_RELATION, identifier, table_name};
use crate::pg::{Conninfo, PgError, Session, lock_timeout};

/// What the text of expressions depends on, beyond every session's settings.
const PINNED: &str = "SET timezone = 'UTC'; SET quote_all_identifiers = off; \
     SET standard_conforming_strings = on";

/// Bytes of a column's expression that are kept whole: the 1,600 columns that a table can have still fit
/// one control frame.
const EXPRESSION_MAX: usize = 8 * 1024;

/// The same for the definition of another object.
const DEFINITION_MAX: usize = 256 * 1024;

/// Everything that `filter` admits: tables and what belongs to them, types, sequences and extensions. Where it names
/// tables alone, only the types and extensions that these use.
pub(crate) async fn read_schema(
    session: &Session,
    filter: &TableFilter,
) -> Result<Schema, PgError> {
    read(session, filter, Others::Needed).await
}

/// The same of a target of the node with the schema `source`. Where `filter` names tables alone, they may not be there
/// yet: then of types and extensions those that the source's tables use.
pub(crate) async fn read_target_schema(
    session: &Session,
    filter: &TableFilter,
    source: &Schema,
) -> Result<Schema, PgError> {
    let schema = read(session, filter, Others::All).await?;
    Ok(match filter.names_tables_alone() {
        true => schema.without_others_than(source),
        false => schema,
    })
}

/// Which types and extensions are read where a filter names tables alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Needed,
    All,
}

async fn read(session: &Session, filter: &TableFilter, others: Others) -> Result<Schema, PgError> {
    session.batch_execute(PINNED).await?;
    let partitions = Partitions::load(session).await?;
    let admitted = |name: &TableName| partitions.admitted(filter, name);
    let mut reader = Reader {
        session,
        page: SchemaPage::default(),
        oids: Vec::new(),
    };
    reader.tables().await?;
    reader.page.tables.retain(|table| admitted(&table.name));
    reader.constraints().await?;
    reader.indexes().await?;
    reader.traits().await?;
    reader.publications().await?;
    let tables: BTreeSet<TableName> = reader.page.tables.iter().map(|t| t.name.clone()).collect();
    reader
        .page
        .objects
        .retain(|object| object.table.as_ref().is_some_and(|t| tables.contains(t)));
    reader.types(filter).await?;
    reader.sequences(filter, &tables).await?;
    reader.extension_members().await?;
    if filter.names_tables_alone() && others == Others::Needed {
        reader.drop_unneeded().await?;
    }
    reader.rank();
    let mut schema = Schema::default();
    schema.add(reader.page);
    Ok(schema)
}

/// [`read_schema`] in a transaction, at one moment.
async fn read_schema_at_once(session: &Session, filter: &TableFilter) -> Result<Schema, PgError> {
    at_once(session, read_schema(session, filter)).await
}

/// [`read_target_schema`] in a transaction, at one moment.
pub(crate) async fn read_target_at_once(
    session: &Session,
    filter: &TableFilter,
    source: &Schema,
) -> Result<Schema, PgError> {
    at_once(session, read_target_schema(session, filter, source)).await
}

async fn at_once(
    session: &Session,
    reading: impl Future<Output = Result<Schema, PgError>>,
) -> Result<Schema, PgError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    session.batch_execute(begin).await?;
    let read = reading.await;
    let end = if read.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = session.batch_execute(end).await;
    let schema = read?;
    ended?;
    Ok(schema)
}

/// [`read_schema_at_once`] on a connection of its own.
pub(crate) async fn describe(conninfo: &Conninfo, filter: &TableFilter) -> Result<Schema, PgError> {
    let session = Session::connect_impatient(conninfo, "describe").await?;
    let schema = (|| read_schema_at_once(&session, filter))
        .retry(lock_timeout::a_few_times())
        .when(PgError::is_locked)
        .await?;
    session.give_back().await;
    Ok(schema)
}

struct Reader<'a> {
    session: &'a Session,
    page: SchemaPage,
    /// Of tables and types: the values of `rank` until it is made dense.
    oids: Vec<u32>,
}

impl Reader<'_> {
    /// Columns in the form that gives the fingerprint of `steep_repl.fingerprints` (`extension/`).
    /// Partitions have their parent's identity only since PostgreSQL 17, so it is left out. A default names no
    /// column: to be told its table, the server would open it.
    async fn tables(&mut self) -> Result<(), PgError> {
        let sql = format!(
            r#"SELECT c.oid, n.nspname::text, c.relname::text, a.attname::text,
                format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attcollation <> t.typcollation THEN (
                    SELECT '"' || replace(ln.nspname, '"', '""') || '"."' || replace(l.collname, '"', '""') || '"'
                    FROM pg_collation l JOIN pg_namespace ln ON ln.oid = l.collnamespace
                    WHERE l.oid = a.attcollation) END,
                a.attnotnull, CASE WHEN c.relispartition THEN '' ELSE a.attidentity::text END,
                a.attgenerated::text,
                CASE WHEN a.atthasdef THEN (SELECT pg_get_expr(d.adbin,
                    CASE a.attgenerated WHEN '' THEN 0 ELSE d.adrelid END) FROM pg_attrdef d
                    WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) END
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            LEFT JOIN pg_type t ON t.oid = a.atttypid
            WHERE c.relkind IN ('r', 'p') AND {USER_RELATION}
            ORDER BY n.nspname, c.relname, c.oid, a.attnum"#
        );
        let mut last = None;
        // Fingerprints cover the whole text, however long.
        let mut whole: Vec<ColumnModel> = Vec::new();
        for row in self.session.query(&sql, &[]).await? {
            let oid: u32 = row.try_get(0)?;
            if last != Some(oid) {
                self.settle(&mut whole);
                last = Some(oid);
                self.oids.push(oid);
                self.page.tables.push(TableModel {
                    name: table_name(&row, 1)?,
                    fingerprint: String::new(),
                    rank: oid,
                    columns: Vec::new(),
                });
            }
            whole.extend(column(&row)?);
        }
        self.settle(&mut whole);
        Ok(())
    }

    /// The columns are those of the last table.
    fn settle(&mut self, whole: &mut Vec<ColumnModel>) {
        let Some(table) = self.page.tables.last_mut() else {
            return;
        };
        table.fingerprint = fingerprint(whole);
        table.columns = whole.drain(..).map(bounded_column).collect();
    }

    /// A table's own constraints, without those of a parent.
    async fn constraints(&mut self) -> Result<(), PgError> {
        let sql = format!(
            "SELECT n.nspname::text, c.relname::text, k.conname::text, pg_get_constraintdef(k.oid), \
                    k.contype::text \
             FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE k.contype IN ('p', 'u', 'x', 'c', 'f') AND k.conparentid = 0 AND k.conislocal \
             AND c.relkind IN ('r', 'p') AND {USER_RELATION}"
        );
        for row in self.session.query(&sql, &[]).await? {
            let kind = match row.try_get(4)? {
                "p" => ObjectKind::PrimaryKey,
                "u" => ObjectKind::Unique,
                "x" => ObjectKind::Exclusion,
                "c" => ObjectKind::Check,
                _ => ObjectKind::ForeignKey,
            };
            self.of_table(&row, kind)?;
        }
        Ok(())
    }

    /// Without those of constraints and those attached to a parent's. What follows the table's name in
    /// `CREATE INDEX`; unfinished and failed ones are left out.
    async fn indexes(&mut self) -> Result<(), PgError> {
        let sql = format!(
            "SELECT n.nspname::text, c.relname::text, x.relname::text, \
                CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || substr(pg_get_indexdef(x.oid), \
                    length(format('CREATE %sINDEX %I ON %s%I.%I ', \
                        CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, x.relname, \
                        CASE WHEN c.relkind = 'p' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname)) + 1) \
             FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_class x ON x.oid = i.indexrelid \
             WHERE (i.indisvalid OR c.relkind = 'p') AND NOT x.relispartition \
             AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.oid \
                 AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x')) \
             AND c.relkind IN ('r', 'p') AND {USER_RELATION}"
        );
        for row in self.session.query(&sql, &[]).await? {
            self.of_table(&row, ObjectKind::Index)?;
        }
        Ok(())
    }

    /// Properties that a table has at most once.
    async fn traits(&mut self) -> Result<(), PgError> {
        const QUOTED: &str = r#"'"' || replace(pn.nspname, '"', '""') || '"."' || replace(p.relname, '"', '""') || '"'"#;
        let sql = format!(
            r#"SELECT n.nspname::text, c.relname::text,
                CASE c.relreplident WHEN 'd' THEN 'DEFAULT' WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING'
                    ELSE coalesce((SELECT 'USING INDEX "' || replace(x.relname, '"', '""') || '"'
                        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                        WHERE i.indrelid = c.oid AND i.indisreplident), 'NOTHING') END,
                CASE WHEN c.relpersistence = 'u' THEN 'UNLOGGED' END,
                CASE WHEN c.relkind = 'p' THEN 'PARTITION BY ' || pg_get_partkeydef(c.oid) END,
                (SELECT CASE WHEN c.relispartition
                    THEN 'PARTITION OF ' || min({QUOTED}) || ' ' || pg_get_expr(c.relpartbound, c.oid)
                    ELSE 'INHERITS ' || string_agg({QUOTED}, ', ' ORDER BY h.inhseqno) END
                 FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
                 JOIN pg_namespace pn ON pn.oid = p.relnamespace
                 WHERE h.inhrelid = c.oid HAVING count(*) > 0)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND {USER_RELATION}"#
        );
        const KINDS: [(usize, ObjectKind); 4] = [
            (2, ObjectKind::ReplicaIdentity),
            (3, ObjectKind::Persistence),
            (4, ObjectKind::PartitionKey),
            (5, ObjectKind::Parent),
        ];
        for row in self.session.query(&sql, &[]).await? {
            let table = table_name(&row, 0)?;
            for (at, kind) in KINDS {
                if let Some(definition) = row.try_get::<_, Option<String>>(at)? {
                    self.page.objects.push(ObjectModel {
                        kind,
                        table: Some(table.clone()),
                        schema: None,
                        name: String::new(),
                        definition: bounded(definition, DEFINITION_MAX),
                        rank: 0,
                    });
                }
            }
        }
        Ok(())
    }

    /// Without our own, which their names tell.
    async fn publications(&mut self) -> Result<(), PgError> {
        let details = match self.session.server_version() {
            150_000.. => {
                "concat_ws(' ', (SELECT '(' || string_agg(quote_ident(a.attname), ', ' ORDER BY k.at) || ')' \
                     FROM unnest(r.prattrs::int2[]) WITH ORDINALITY AS k (attnum, at) \
                     JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = k.attnum), \
                 'WHERE ' || pg_get_expr(r.prqual, r.prrelid))"
            }
            _ => "''::text",
        };
        let sql = format!(
            "SELECT t.schemaname::text, t.tablename::text, t.pubname::text, {details} \
             FROM pg_publication_tables t \
             JOIN pg_publication p ON p.pubname = t.pubname \
             JOIN pg_namespace n ON n.nspname = t.schemaname \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename \
             LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
             WHERE NOT starts_with(t.pubname::text, '{}')",
            steep_protocol::message::job::ReplicationNames::PREFIX
        );
        for row in self.session.query(&sql, &[]).await? {
            self.of_table(&row, ObjectKind::Publication)?;
        }
        Ok(())
    }

    /// Schema, table, name, definition.
    fn of_table(&mut self, row: &Row, kind: ObjectKind) -> Result<(), PgError> {
        let Some(definition) = row.try_get::<_, Option<String>>(3)? else {
            return Ok(());
        };
        self.page.objects.push(ObjectModel {
            kind,
            table: Some(table_name(row, 0)?),
            schema: None,
            name: row.try_get(2)?,
            definition: bounded(definition, DEFINITION_MAX),
            rank: 0,
        });
        Ok(())
    }

    /// Oids differ between servers; only their order matters.
    fn rank(&mut self) {
        self.oids.sort_unstable();
        let ranks: HashMap<u32, u32> = (0..).zip(&self.oids).map(|(at, oid)| (*oid, at)).collect();
        let rank = |oid: u32| ranks.get(&oid).copied().unwrap_or(0);
        for table in &mut self.page.tables {
            table.rank = rank(table.rank);
        }
        for object in &mut self.page.objects {
            object.rank = rank(object.rank);
        }
    }
}

/// `None` for a table without columns.
fn column(row: &Row) -> Result<Option<ColumnModel>, PgError> {
    let Some(name) = row.try_get::<_, Option<String>>(3)? else {
        return Ok(None);
    };
    let expression: Option<String> = row.try_get(9)?;
    Ok(Some(ColumnModel {
        name: identifier(name)?,
        type_name: row.try_get(4)?,
        collation: row.try_get(5)?,
        not_null: row.try_get(6)?,
        identity: match row.try_get(7)? {
            "a" => Identity::Always,
            "d" => Identity::ByDefault,
            _ => Identity::No,
        },
        value: match (row.try_get(8)?, expression) {
            (_, None) => ColumnValue::Nothing,
            ("s", Some(text)) => ColumnValue::Stored(text),
            ("", Some(text)) => ColumnValue::Default(text),
            (_, Some(text)) => ColumnValue::Virtual(text),
        },
    }))
}

fn bounded_column(mut column: ColumnModel) -> ColumnModel {
    if let ColumnValue::Default(text) | ColumnValue::Stored(text) | ColumnValue::Virtual(text) =
        &mut column.value
    {
        *text = bounded(std::mem::take(text), EXPRESSION_MAX);
    }
    column
}
