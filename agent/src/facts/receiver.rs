//! What a target holds: its tables and their differences, rows, extensions, roles, disk space.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use steep_protocol::message::facts::{AvailableExtension, TargetFacts};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{ByteCount, TableName};
use steep_schema::{Status, Unfindable, at_stake, compare, plan, review, unfindable};

use super::PeerFacts;
use super::content::{add_owned, add_text};
use crate::pg::catalog::{USER_RELATION, holding_rows, read_target_at_once, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Tables per statement that asks whether they hold a row.
const PROBE_BATCH: usize = 200;

/// Tables asked in all; beyond that, a table with pages counts as having rows.
const PROBE_MAX: usize = 2_000;

/// Foreign tables count: a database that has any already has a schema.
fn tables_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text,
            pg_has_role(c.relowner, 'USAGE') AS owned, pg_get_userbyid(c.relowner)::text AS owner,
            c.relkind = 'r' AND c.relpersistence = 'p' AND pg_relation_size(c.oid) > 0 AS has_pages,
            coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false)
                AND NOT (c.relrowsecurity AND row_security_active(c.oid)) AS readable,
            c.relkind IN ('r', 'p') AS takes_part
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f') AND {USER_RELATION}"
    )
}

const EXTENSIONS_SQL: &str = "
    SELECT a.name::text, (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user)
        OR coalesce(bool_or(v.trusted OR NOT v.superuser), false)
    FROM pg_available_extensions a
    LEFT JOIN pg_available_extension_versions v
        ON v.name = a.name AND v.version = a.default_version
    GROUP BY a.name ORDER BY a.name";

/// Where the data directory is, if the role may know, and only where server and agent share a machine: over
/// a Unix socket, or over TCP with the same address on both ends.
const DATA_DIRECTORY_SQL: &str = "
    SELECT (SELECT s.setting FROM pg_settings s WHERE s.name = 'data_directory')
    WHERE inet_client_addr() IS NOT DISTINCT FROM inet_server_addr()";

/// Everything but the server's own facts and the links.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
    peer: &PeerFacts,
) -> Result<TargetFacts, PgError> {
    let mut facts = TargetFacts::default();
    let tables = tables(task, session).await?;
    facts.user_tables = tables.len() as u64;
    if peer.link.is_ok() && !tables.is_empty() {
        let here = read_target_at_once(session, filter, &peer.schema).await?;
        let mut suspects = Vec::new();
        for wanted in peer.schema.tables() {
            let Some(table) = tables.get(&wanted.name) else {
                continue;
            };
            if !table.owned && table.takes_part {
                add_owned(&mut facts.not_owned, &table.owner, &wanted.name);
            }
            if table.has_pages {
                suspects.push((&wanted.name, table));
            }
        }
        let full = with_rows(task, session, &suspects).await?;
        let compared = compare(&peer.schema, &here);
        // Not `full`: an altered table may stand above tables that hold rows and are not copied.
        let stakes = at_stake(&peer.schema, &here, &compared);
        let holding = holding_rows(session, &task.cancel, &stakes).await?;
        let plan = plan(&peer.schema, &here, &compared, &|table| {
            holding.contains(table)
        });
        facts.review = review(&compared, &plan);
        facts.not_empty = full.iter().map(ToString::to_string).collect();
        let extra = compared
            .tables
            .iter()
            .filter(|t| t.status == Status::RemoteOnly);
        for (table, missed) in unfindable(&peer.schema, &here) {
            let label = match missed {
                Unfindable::NoKey => format!("{table} (no key)"),
                Unfindable::NotSent(column) => format!("{table} (column {column} is not sent)"),
            };
            add_text(&mut facts.unfindable, label);
        }
        facts.extra_tables = extra.map(|t| t.name.to_string()).collect();
    }
    for row in session
        .run(&task.cancel, session.query(EXTENSIONS_SQL, &[]))
        .await?
    {
        let (name, may_create) = (row.try_get(0)?, row.try_get(1)?);
        facts
            .extensions_available
            .push(AvailableExtension { name, may_create });
    }
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY rolname";
    for row in session.run(&task.cancel, session.query(sql, &[])).await? {
        facts.roles.push(row.try_get(0)?);
    }
    facts.disk_free = disk_free(task, session).await?;
    Ok(facts)
}

struct Table {
    owned: bool,
    owner: String,
    has_pages: bool,
    readable: bool,
    takes_part: bool,
}

async fn tables(task: &Task, session: &Session) -> Result<HashMap<TableName, Table>, PgError> {
    let sql = tables_sql();
    let rows = session.run(&task.cancel, session.query(&sql, &[])).await?;
    let read = |row: &tokio_postgres::Row| {
        let table = Table {
            owned: row.try_get("owned")?,
            owner: row.try_get("owner")?,
            // NULL where the table has been dropped since.
            has_pages: row
                .try_get::<_, Option<bool>>("has_pages")?
                .unwrap_or(false),
            readable: row.try_get("readable")?,
            takes_part: row.try_get("takes_part")?,
        };
        Ok((table_name(row, 0)?, table))
    };
    rows.iter().map(read).collect()
}

/// Pages may be empty, so each table that has some is asked for one row. Tables that cannot be asked count
/// as having rows.
async fn with_rows(
    task: &Task,
    session: &Session,
    suspects: &[(&TableName, &Table)],
) -> Result<BTreeSet<TableName>, PgError> {
    let mut full = BTreeSet::new();
    let (ask, rest): (Vec<_>, Vec<_>) = suspects
        .iter()
        .enumerate()
        .partition(|(n, (_, table))| *n < PROBE_MAX && table.readable);
    for batch in ask.chunks(PROBE_BATCH) {
        let sql = probe_sql(batch.iter().map(|(_, (name, _))| *name));
        for row in session.run(&task.cancel, session.query(&sql, &[])).await? {
            let at = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
            if let Some((_, (name, _))) = batch.get(at) {
                full.insert((*name).clone());
            }
        }
    }
    full.extend(rest.into_iter().map(|(_, (name, _))| (*name).clone()));
    Ok(full)
}

/// Returns the positions in `names` of tables that hold a row, in order.
fn probe_sql<'a>(names: impl Iterator<Item = &'a TableName>) -> String {
    let mut sql = String::new();
    for (at, name) in names.enumerate() {
        let glue = if at == 0 { "" } else { " UNION ALL " };
        let table = name.quoted();
        // Writing to a String does not fail.
        let _ = write!(
            sql,
            "{glue}SELECT {at} AS at WHERE EXISTS (SELECT FROM ONLY {table})"
        );
    }
    sql.push_str(" ORDER BY at");
    sql
}

async fn disk_free(task: &Task, session: &Session) -> Result<Option<ByteCount>, PgError> {
    let row = session
        .run(&task.cancel, session.query_opt(DATA_DIRECTORY_SQL, &[]))
        .await?;
    let Some(row) = row else { return Ok(None) };
    // Hidden from roles without pg_read_all_settings.
    let directory: Option<String> = row.try_get(0)?;
    let stat = directory.and_then(|directory| rustix::fs::statvfs(directory.as_str()).ok());
    Ok(stat.map(|stat| ByteCount(stat.f_bavail.saturating_mul(stat.f_frsize))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes_in_a_probe() {
        let names = [
            TableName::new("a", "t").unwrap(),
            TableName::new("B", "x\"; DROP TABLE y; --").unwrap(),
        ];
        assert_eq!(
            probe_sql(names.iter()),
            "SELECT 0 AS at WHERE EXISTS (SELECT FROM ONLY \"a\".\"t\") UNION ALL \
             SELECT 1 AS at WHERE EXISTS (SELECT FROM ONLY \"B\".\"x\"\"; DROP TABLE y; --\") ORDER BY at"
        );
    }
}
