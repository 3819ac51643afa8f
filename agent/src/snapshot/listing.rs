//! What the catalog says about the tables to copy, as values. One query for any number of tables.

use std::collections::{BTreeMap, HashMap};

use steep_protocol::message::job::TableFilter;
use steep_protocol::{Identifier, TableName};
use tokio_postgres::error::SqlState;

use crate::pg::catalog::{Partitions, USER_RELATION, identifier, table_name};
use crate::pg::{PgError, Session};

/// User relations that hold rows or partitions, by name.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) relations: BTreeMap<TableName, Relation>,
    pub(crate) partitions: Partitions,
}

/// Two are equal where nothing has changed that affects a COPY, including the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) oid: u32,
    pub(crate) kind: Kind,
    /// Changes when the table is rewritten or truncated.
    filenode: u32,
    /// Columns that store values, in order, so without generated ones.
    pub(crate) columns: Vec<Column>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Logged: copied and replicated.
    Table,
    Partitioned,
    /// Unlogged or foreign: neither copied nor replicated.
    NotReplicated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: Identifier,
    pub(crate) type_name: String,
    pub(crate) type_oid: u32,
}

impl Listing {
    /// Reads the catalog as `session`'s transaction sees it.
    pub(crate) async fn load(session: &Session) -> Result<Self, PgError> {
        let sql = format!(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, \
                    c.relfilenode, a.attname::text, format_type(a.atttypid, a.atttypmod), a.atttypid \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
                 AND NOT a.attisdropped AND a.attgenerated = '' AND c.relkind = 'r' \
             WHERE c.relkind IN ('r', 'p', 'f') AND {USER_RELATION} \
             ORDER BY c.oid, a.attnum"
        );
        let mut relations = BTreeMap::new();
        let mut current: Option<(TableName, Relation)> = None;
        for row in session.query(&sql, &[]).await? {
            let oid: u32 = row.try_get(0)?;
            if current
                .as_ref()
                .is_none_or(|(_, relation)| relation.oid != oid)
            {
                relations.extend(current.take());
                let kind = kind_of(row.try_get(3)?, row.try_get(4)?);
                let filenode = row.try_get(5)?;
                let relation = Relation {
                    oid,
                    kind,
                    filenode,
                    columns: Vec::new(),
                };
                current = Some((table_name(&row, 1)?, relation));
            }
            if let (Some((_, relation)), Some(name)) = (&mut current, row.try_get(6)?) {
                relation.columns.push(Column {
                    name: identifier(name)?,
                    type_name: row.try_get(7)?,
                    type_oid: row.try_get(8)?,
                });
            }
        }
        relations.extend(current.take());
        Ok(Self {
            relations,
            partitions: Partitions::load(session).await?,
        })
    }

    /// Whether the job copies and replicates the table.
    pub(crate) fn takes_part(&self, filter: &TableFilter, name: &TableName) -> bool {
        let table = self
            .relations
            .get(name)
            .is_some_and(|r| r.kind == Kind::Table);
        table && self.partitions.admitted(filter, name)
    }

    /// Relations that `filter` excludes by what they are attached to, not by their own names.
    pub(crate) fn excluded_with_root(&self, filter: &TableFilter) -> Vec<TableName> {
        self.relations
            .keys()
            .filter(|name| filter.admits(name) && !self.partitions.admitted(filter, name))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
impl Relation {
    pub(crate) fn for_test(oid: u32, kind: Kind) -> Self {
        Self {
            oid,
            kind,
            filenode: oid,
            columns: Vec::new(),
        }
    }
}

fn kind_of(relkind: &str, persistence: &str) -> Kind {
    match (relkind, persistence) {
        ("p", _) => Kind::Partitioned,
        ("r", "p") => Kind::Table,
        _ => Kind::NotReplicated,
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Size {
    /// Pages of the table itself.
    pub(crate) pages: u32,
    /// Bytes of the table and its TOAST table.
    pub(crate) bytes: u64,
    /// `reltuples`; 0 where unknown.
    pub(crate) rows: u64,
}

/// By file size, since `relpages` may be old or missing; by `relpages` where a table is locked.
pub(crate) async fn sizes(session: &Session, oids: &[u32]) -> Result<HashMap<u32, Size>, PgError> {
    match sizes_by(
        session,
        oids,
        ["pg_relation_size(c.oid)", "pg_relation_size(t.oid)"],
    )
    .await
    {
        Err(error) if error.is(&SqlState::LOCK_NOT_AVAILABLE) => {
            let block = "current_setting('block_size')::int8";
            let pages = ["c", "t"].map(|row| format!("greatest({row}.relpages, 0) * {block}"));
            sizes_by(session, oids, [&pages[0], &pages[1]]).await
        }
        sizes => sizes,
    }
}

/// The expressions refer to the table's `pg_class` row as `c` and its TOAST table's as `t`.
async fn sizes_by(
    session: &Session,
    oids: &[u32],
    [heap, toast]: [&str; 2],
) -> Result<HashMap<u32, Size>, PgError> {
    let sql = format!(
        "SELECT c.oid, coalesce({heap}, 0), coalesce({toast}, 0), \
             greatest(c.reltuples, 0)::float8, \
             current_setting('block_size')::int8 \
         FROM unnest($1::oid[]) AS wanted(oid) JOIN pg_class c ON c.oid = wanted.oid \
         LEFT JOIN pg_class t ON t.oid = c.reltoastrelid"
    );
    let mut sizes = HashMap::new();
    for row in session.query(&sql, &[&oids]).await? {
        let heap: i64 = row.try_get(1)?;
        let toast: i64 = row.try_get(2)?;
        let rows: f64 = row.try_get(3)?;
        let block: i64 = row.try_get(4)?;
        let pages = u32::try_from(heap / block.max(1)).unwrap_or(u32::MAX);
        let bytes = u64::try_from(heap.saturating_add(toast)).unwrap_or(0);
        // A `float4` that is never negative here; an estimate.
        sizes.insert(
            row.try_get(0)?,
            Size {
                pages,
                bytes,
                rows: rows as u64,
            },
        );
    }
    Ok(sizes)
}
