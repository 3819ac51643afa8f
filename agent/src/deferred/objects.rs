//! What waits for the rows: its definition is stored in `steep_repl.deferred_objects` before it is skipped
//! or dropped, so that it survives any crash.

use std::collections::{BTreeSet, HashMap};

use steep_protocol::{Fault, JobId, TableName};
use tokio_postgres::Row;

use crate::node::connection::Conn;
use crate::pg::literal;
use crate::schema::batch::Item;
use crate::schema::statement::{Class, Only, Stage};

/// How a statement is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `CREATE INDEX`: shares its table with others of its kind.
    Index,
    /// A constraint that is an index: needs its table for itself.
    Key,
    /// Added first and checked later.
    ForeignKey,
    /// Of a partitioned table: added and checked at once.
    ForeignKeyAtOnce,
    /// Added first and checked later.
    Check,
    DomainCheck,
    DomainNotNull,
    Other,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Key => "key",
            Self::ForeignKey => "foreign_key",
            Self::ForeignKeyAtOnce => "foreign_key_at_once",
            Self::Check => "check",
            Self::DomainCheck => "domain_check",
            Self::DomainNotNull => "domain_not_null",
            Self::Other => "other",
        }
    }

    fn from_name(name: &str) -> Self {
        match name {
            "index" => Self::Index,
            "key" => Self::Key,
            "foreign_key" => Self::ForeignKey,
            "foreign_key_at_once" => Self::ForeignKeyAtOnce,
            "check" => Self::Check,
            "domain_check" => Self::DomainCheck,
            "domain_not_null" => Self::DomainNotNull,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Deferred {
    pub(crate) stage: Stage,
    pub(crate) kind: Kind,
    pub(crate) table: Option<TableName>,
    pub(crate) name: Option<String>,
    pub(crate) sql: String,
}

impl Deferred {
    /// A statement of the post-data section; `None` for one that is never run.
    pub(crate) fn of_dump(item: Item) -> Option<Self> {
        let stage = item.class.stage()?;
        let (kind, table, name) = match item.class {
            Class::Index { table, name } => (Kind::Index, Some(table), Some(name)),
            Class::Key { table, name } => (Kind::Key, Some(table), Some(name)),
            Class::ForeignKey { table, name, only } => {
                let kind = match only {
                    Only::Yes => Kind::ForeignKey,
                    Only::No => Kind::ForeignKeyAtOnce,
                };
                (kind, Some(table), Some(name.into()))
            }
            Class::Setting { .. }
            | Class::IndexDetail
            | Class::Identity { .. }
            | Class::Table { .. }
            | Class::Attach
            | Class::RowSecurity
            | Class::Policy { .. }
            | Class::PolicyDetail
            | Class::EventTrigger
            | Class::Privilege
            | Class::Comment
            | Class::Schema
            | Class::Extension
            | Class::Replication
            | Class::Refresh { .. }
            | Class::MaterializedView { .. }
            | Class::Other => (Kind::Other, None, None),
        };
        let sql = item.sql;
        Some(Self {
            stage,
            kind,
            table,
            name,
            sql,
        })
    }

    /// Moves it to the ordered stage, where its table is created.
    pub(crate) fn after_its_table(mut self) -> Self {
        self.stage = Stage::Rest;
        self.kind = Kind::Other;
        self
    }

    /// Whether it creates files, so that its tablespace matters.
    pub(crate) fn makes_storage(&self) -> bool {
        matches!(self.kind, Kind::Index | Kind::Key)
    }

    /// For display: table or domain, and object.
    pub(crate) fn label(&self) -> Option<String> {
        let (table, name) = (self.table.as_ref()?, self.name.as_ref()?);
        Some(format!("{table}: {name}"))
    }

    /// The VALUES row that stores it.
    fn values(&self, job: JobId, ord: i32) -> String {
        let text = |value: Option<&str>| value.map_or("NULL".to_owned(), literal);
        format!(
            "('{job}', {ord}, {}, '{}', {}, {}, {}, {})",
            self.stage.code(),
            self.kind.name(),
            text(self.table.as_ref().map(|t| t.schema.as_str())),
            text(self.table.as_ref().map(|t| t.table.as_str())),
            text(self.name.as_deref()),
            literal(&self.sql),
        )
    }
}

/// Rows and bytes per INSERT.
const STORE_ROWS: usize = 500;
const STORE_BYTES: usize = 1024 * 1024;

/// Stores deferred objects, in order, many at a time.
#[derive(Debug)]
pub(crate) struct DeferredWriter<'a> {
    conn: &'a Conn,
    job: JobId,
    next: i32,
    values: Vec<String>,
    bytes: usize,
}

impl<'a> DeferredWriter<'a> {
    /// Continues after what the job has stored.
    pub(crate) async fn new(conn: &'a Conn, job: JobId) -> Result<Self, Fault> {
        let sql =
            "SELECT coalesce(max(ord) + 1, 0) FROM steep_repl.deferred_objects WHERE job = $1";
        let next = conn.row(sql, &[&job.to_string()]).await?.get(0);
        Ok(Self {
            conn,
            job,
            next,
            values: Vec::new(),
            bytes: 0,
        })
    }

    pub(crate) fn insert(&mut self, all: &[Deferred]) -> String {
        let values: Vec<String> = all.iter().map(|one| self.row(one)).collect();
        insert(&values)
    }

    fn row(&mut self, deferred: &Deferred) -> String {
        let ord = self.next;
        self.next += 1;
        deferred.values(self.job, ord)
    }

    /// Stores one, batched.
    pub(crate) async fn store(&mut self, deferred: Deferred) -> Result<(), Fault> {
        let row = self.row(&deferred);
        self.bytes += row.len();
        self.values.push(row);
        if self.values.len() >= STORE_ROWS || self.bytes >= STORE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    pub(crate) async fn finish(mut self) -> Result<(), Fault> {
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.bytes = 0;
        let values = std::mem::take(&mut self.values);
        if values.is_empty() {
            return Ok(());
        }
        self.conn.execute(&insert(&values)).await
    }
}

fn insert(values: &[String]) -> String {
    format!(
        "INSERT INTO steep_repl.deferred_objects
         (job, ord, stage, kind, schema_name, table_name, name, create_sql) VALUES {}",
        values.join(",\n")
    )
}

/// One that is not done yet.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) ord: i32,
    pub(crate) kind: Kind,
    pub(crate) table: Option<TableName>,
    pub(crate) name: Option<String>,
    pub(crate) sql: String,
    /// Added and not yet checked.
    pub(crate) added: bool,
    /// Bytes of its table.
    pub(crate) weight: u64,
}

impl Waiting {
    /// For display: table and object.
    pub(crate) fn label(&self) -> Option<String> {
        let (table, name) = (self.table.as_ref()?, self.name.as_ref()?);
        Some(format!("{table}: {name}"))
    }

    fn from_row(row: &Row) -> Self {
        let name = |at| row.get::<_, Option<String>>(at);
        let table = name(2)
            .zip(name(3))
            .and_then(|(s, t)| TableName::new(s, t).ok());
        Self {
            ord: row.get(0),
            kind: Kind::from_name(row.get(1)),
            table,
            name: name(4),
            sql: row.get(5),
            added: row.get(6),
            weight: 0,
        }
    }
}

/// What is left of a stage, in order.
pub(crate) async fn waiting(conn: &Conn, job: JobId, stage: Stage) -> Result<Vec<Waiting>, Fault> {
    let sql = "SELECT ord, kind, schema_name, table_name, name, create_sql, state = 'added'
        FROM steep_repl.deferred_objects
        WHERE job = $1 AND stage = $2 AND state IN ('pending', 'added') ORDER BY ord";
    let rows = conn.rows(sql, &[&job.to_string(), &stage.code()]).await?;
    let mut all: Vec<Waiting> = rows.iter().map(Waiting::from_row).collect();
    let weights = weights(conn, job, &all).await?;
    for one in &mut all {
        let weight = one.table.as_ref().and_then(|table| weights.get(table));
        one.weight = weight.copied().unwrap_or(0);
    }
    Ok(all)
}

/// COPY bytes below which they stand for the table's own: narrow rows take up to four times as much
/// there.
const COPIED_SMALL: i64 = 256 * 1024;

/// Bytes of the tables. Of a small table that the job has copied, those in the ledger: to ask for its size,
/// the server opens it, its TOAST table and their files, which takes seconds for ten thousand tables.
async fn weights(
    conn: &Conn,
    job: JobId,
    all: &[Waiting],
) -> Result<HashMap<TableName, u64>, Fault> {
    let mut unknown: BTreeSet<&TableName> = all.iter().filter_map(|w| w.table.as_ref()).collect();
    if unknown.is_empty() {
        return Ok(HashMap::new());
    }
    let copied = "SELECT schema_name, table_name, sum(bytes)::int8 FROM steep_repl.copy_ledger
        WHERE job = $1 GROUP BY 1, 2 HAVING sum(bytes)::int8 <= $2";
    let small = conn
        .rows(copied, &[&job.to_string(), &COPIED_SMALL])
        .await?;
    let mut weights: HashMap<TableName, u64> = small.iter().filter_map(weight).collect();
    unknown.retain(|table| !weights.contains_key(*table));
    let schemas: Vec<&str> = unknown.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = unknown.iter().map(|t| t.table.as_str()).collect();
    let sized = "SELECT s, t, coalesce(pg_table_size(to_regclass(format('%I.%I', s, t))), 0)
        FROM unnest($1::text[], $2::text[]) AS tables (s, t)";
    let sized = conn.rows(sized, &[&schemas, &names]).await?;
    weights.extend(sized.iter().filter_map(weight));
    Ok(weights)
}

fn weight(row: &Row) -> Option<(TableName, u64)> {
    let name = TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()?;
    Some((name, u64::try_from(row.get::<_, i64>(2)).unwrap_or(0)))
}

/// Takes over what earlier jobs dropped and never rebuilt: a job abandoned without cleanup must not cost
/// tables their indexes. Runs in the caller's transaction.
pub(crate) async fn adopt(conn: &Conn, job: JobId) -> Result<(), Fault> {
    conn.execute(&format!(
        "UPDATE steep_repl.deferred_objects AS d SET job = '{job}', ord = taken.ord
         FROM (SELECT o.job, o.ord AS old, (row_number() OVER (ORDER BY j.started_at, o.job, o.ord)
                + (SELECT coalesce(max(ord), -1) FROM steep_repl.deferred_objects
                   WHERE job = '{job}'))::integer AS ord
               FROM steep_repl.deferred_objects o LEFT JOIN steep_repl.jobs j USING (job)
               WHERE o.job <> '{job}' AND o.state IN ('pending', 'added')) AS taken
         WHERE d.job = taken.job AND d.ord = taken.old"
    ))
    .await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Added, not checked.
    Added,
    Done,
    /// The finding says why.
    Failed,
}

pub(crate) fn mark(job: JobId, ord: i32, mark: Mark) -> String {
    mark_all(job, &[ord], mark)
}

/// The statement that notes it of several.
pub(crate) fn mark_all(job: JobId, ords: &[i32], mark: Mark) -> String {
    let state = match mark {
        Mark::Added => "added",
        Mark::Done => "done",
        Mark::Failed => "failed",
    };
    let ords: Vec<String> = ords.iter().map(ToString::to_string).collect();
    format!(
        "UPDATE steep_repl.deferred_objects SET state = '{state}' WHERE job = '{job}' AND ord IN ({})",
        ords.join(", ")
    )
}
