//! Creates the source's schema in a database without tables: pre-data now, post-data deferred.

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::message::facts::Finding;
use steep_protocol::message::peer::TablePlan;
use steep_protocol::{Fault, FaultKind, JobId, Phase, TableName};

use super::Dumps;
use crate::chunk::{PartReader, ReadStep};
use crate::deferred::objects::{Deferred, DeferredWriter};
use crate::node::connection::Conn;
use crate::node::job_records::{self, Origin};
use crate::node::own_schema;
use crate::schema::batch::{Batches, Item, Strictness};
use crate::schema::missing;
use crate::schema::objects;
use crate::schema::sql_split::{SplitError, Splitter};
use crate::schema::statement::{self, Class};
use crate::task::Task;

const READ: usize = 256 * 1024;

/// Statements between two progress reports.
const TELL_EVERY: u64 = 100;

/// Creates the schema and stores what waits. The job's record then says `Begun`; the caller lists what was
/// created and sets `Prepared`.
pub(super) async fn make<R: PartReader, Q: PartReader>(
    task: &Task,
    conn: &Conn,
    (plan, note): (&[TablePlan], Option<&str>),
    dumps: Dumps<R, Q>,
) -> Result<Vec<Finding>, Fault> {
    conn.execute("BEGIN").await?;
    job_records::open(conn, task.job, Origin::Bootstrap, (plan, note)).await?;
    objects::note_baseline(conn, task.job).await?;
    conn.execute(missing::FORGET_ALL).await?;
    conn.execute("COMMIT").await?;
    let planned = plan.iter().map(|table| table.name.clone()).collect();
    let structure = Strictness::Structure(&planned);
    let beside = Conn::open(task, "prepare").await?;
    let batches = Batches::new(conn, task.job, structure).beside(&beside);
    let mut findings = apply(task, conn, dumps.pre_data, batches).await?;
    beside.session.close().await;
    // Users' foreign keys may need these rows; everything else holds without them.
    let batches = Batches::new(conn, task.job, Strictness::Afterwards);
    findings.extend(apply(task, conn, dumps.extension_rows, batches).await?);
    findings.extend(store_post_data(conn, task.job, dumps.post_data).await?);
    Ok(findings)
}

/// Reads a dump statement by statement.
pub(super) struct Dump<R> {
    reader: R,
    splitter: Splitter,
    ended: bool,
}

impl<R: PartReader> Dump<R> {
    pub(super) fn new(reader: R) -> Self {
        let splitter = Splitter::default();
        Self {
            reader,
            splitter,
            ended: false,
        }
    }

    pub(super) async fn next(&mut self, conn: &Conn) -> Result<Option<String>, Fault> {
        let bad = |error: SplitError| {
            conn.own(Fault::new(FaultKind::Failed, error.to_string())).hint(
                "run pg_dump --schema-only on the source by hand and look for what is unusual in it",
            )
        };
        let mut buffer = Vec::new();
        loop {
            if let Some(statement) = self.splitter.next().map_err(bad)? {
                return Ok(Some(statement));
            }
            if self.ended {
                return self.splitter.finish().map_err(bad);
            }
            buffer.clear();
            let step = self.reader.read(&mut buffer, READ).await?;
            self.splitter.push(&buffer);
            self.ended = matches!(step, ReadStep::End { .. });
        }
    }
}

/// Settings of the dump that this session makes itself.
fn is_ours(setting: &str) -> bool {
    matches!(
        setting,
        "" | "statement_timeout"
            | "lock_timeout"
            | "idle_in_transaction_session_timeout"
            | "transaction_timeout"
            | "client_encoding"
            | "client_min_messages"
            | "row_security"
            | "xmloption"
    )
}

/// Where the source's `steep_repl` is an extension, its dump would create it here too.
fn is_our_extension(sql: &str) -> bool {
    let mut words = sql
        .split(|c: char| c.is_whitespace() || c == ';')
        .filter(|word| !["IF", "NOT", "EXISTS", "ON", ""].contains(word));
    let verb = words.next();
    matches!(verb, Some("CREATE" | "COMMENT"))
        && words.next() == Some("EXTENSION")
        && words.next() == Some(own_schema::NAME)
}

async fn apply<R: PartReader>(
    task: &Task,
    conn: &Conn,
    reader: R,
    mut batches: Batches<'_>,
) -> Result<Vec<Finding>, Fault> {
    let mut dump = Dump::new(reader);
    let me: String = conn.row("SELECT current_user::text", &[]).await?.get(0);
    let mut made = None;
    while let Some(sql) = dump.next(conn).await? {
        let item = Item::new(sql);
        match &item.class {
            Class::Setting { name } if is_ours(name) => continue,
            Class::Replication => continue,
            // Each node has its own.
            Class::Extension | Class::Comment if is_our_extension(&item.sql) => continue,
            // What this role has just made is its own.
            Class::Privilege
                if made
                    .as_ref()
                    .is_some_and(|made| statement::gives(&item.sql, made, &me)) =>
            {
                continue;
            }
            _ => {}
        }
        made = item
            .sql
            .starts_with("CREATE ")
            .then(|| statement::subject(&item.sql))
            .flatten();
        batches.add(item).await?;
        let done = batches.count();
        if done.is_multiple_of(TELL_EVERY) {
            task.items(Phase::Schema, (done, done), None);
        }
    }
    batches.finish().await
}

async fn store_post_data<Q: PartReader>(
    conn: &Conn,
    job: JobId,
    reader: Q,
) -> Result<Vec<Finding>, Fault> {
    let mut dump = Dump::new(reader);
    let mut writer = DeferredWriter::new(conn, job).await?;
    let mut place = String::new();
    let mut missing = BTreeSet::new();
    let mut late_views = BTreeSet::new();
    let mut policies = Policies::default();
    while let Some(sql) = dump.next(conn).await? {
        let item = Item::new(sql);
        match &item.class {
            Class::Setting { name } => {
                if name == "default_tablespace" {
                    place = tablespace(conn, &item.sql, &mut missing).await?;
                }
                continue;
            }
            Class::MaterializedView { view } => _ = late_views.insert(view.clone()),
            Class::Policy { table } => {
                policies.add(table.clone(), &item.sql);
                continue;
            }
            Class::PolicyDetail => {
                policies.details.push(item);
                continue;
            }
            _ => {}
        }
        if let Some(mut deferred) = Deferred::of_dump(item) {
            if !place.is_empty() && deferred.makes_storage() {
                deferred.sql = format!("{place};\n{}", deferred.sql);
            }
            if deferred
                .table
                .as_ref()
                .is_some_and(|table| late_views.contains(table))
            {
                deferred = deferred.after_its_table();
            }
            writer.store(deferred).await?;
        }
    }
    for item in policies.into_items() {
        if let Some(deferred) = Deferred::of_dump(item) {
            writer.store(deferred).await?;
        }
    }
    writer.finish().await?;
    let finding = |setting: String| {
        conn.warning(
            "setting",
            format!("indexes belong to a tablespace this server does not have ({setting})"),
            "they are made in the database's default tablespace",
            "make the tablespace before, or move the indexes later",
        )
    };
    Ok(missing.into_iter().map(finding).collect())
}

/// The statements of a dump that fill materialised views, in order.
pub(super) async fn refreshes<Q: PartReader>(
    conn: &Conn,
    reader: Q,
) -> Result<Vec<(TableName, String)>, Fault> {
    let mut dump = Dump::new(reader);
    let mut found = Vec::new();
    while let Some(sql) = dump.next(conn).await? {
        if let Class::Refresh { view: Some(view) } = statement::classify(&sql) {
            found.push((view, sql));
        }
    }
    Ok(found)
}

/// A dump's policies, by table. A table's policies are one statement, created together or not at all:
/// without a restrictive one, others would admit whom it excludes. A table with row security and no
/// policies admits only its owner.
#[derive(Debug, Default)]
struct Policies {
    tables: BTreeMap<TableName, String>,
    details: Vec<Item>,
}

impl Policies {
    fn add(&mut self, table: TableName, sql: &str) {
        let all = self.tables.entry(table).or_default();
        if !all.is_empty() {
            all.push_str(";\n");
        }
        all.push_str(sql);
    }

    fn into_items(self) -> impl Iterator<Item = Item> {
        let whole = self.tables.into_values().map(Item::new);
        whole.chain(self.details)
    }
}

/// For the statements after a `SET default_tablespace`: the same setting for one transaction, or nothing
/// where the tablespace is the default or missing here.
async fn tablespace(
    conn: &Conn,
    sql: &str,
    missing: &mut BTreeSet<String>,
) -> Result<String, Fault> {
    let value = sql.split_once('=').map_or("", |(_, value)| value.trim());
    if value == "''" || value.is_empty() {
        return Ok(String::new());
    }
    let local = format!("SET LOCAL default_tablespace = {value}");
    if conn.transact(&local).await.is_ok() {
        return Ok(local);
    }
    missing.insert(value.to_owned());
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_of_a_table_are_one_statement() {
        let mut policies = Policies::default();
        let [a, b] = ["a", "b"].map(|name| TableName::new("s", name).unwrap());
        for (table, sql) in [
            (&a, "CREATE POLICY p ON s.a USING (true)"),
            (&b, "CREATE POLICY p ON s.b USING (true)"),
            (&a, "CREATE POLICY r ON s.a AS RESTRICTIVE USING (x)"),
        ] {
            policies.add(table.clone(), sql);
        }
        let all: Vec<String> = policies.into_items().map(|item| item.sql).collect();
        assert_eq!(
            all,
            [
                "CREATE POLICY p ON s.a USING (true);\nCREATE POLICY r ON s.a AS RESTRICTIVE USING (x)",
                "CREATE POLICY p ON s.b USING (true)",
            ]
        );
    }

    #[test]
    fn only_our_own_extension_is_left_out_of_a_dump() {
        for ours in [
            "CREATE EXTENSION IF NOT EXISTS steep_repl WITH SCHEMA steep_repl;",
            "COMMENT ON EXTENSION steep_repl IS 'books';",
        ] {
            assert!(is_our_extension(ours), "{ours}");
        }
        for other in [
            "CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA steep_repl",
            "COMMENT ON TABLE steep_repl IS ''",
            "CREATE EXTENSION steep_repl_more",
        ] {
            assert!(!is_our_extension(other), "{other}");
        }
    }
}
