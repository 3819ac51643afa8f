//! New rows for tables that the node follows already: they are copied into **shadow tables**, and take the place of the
//! old ones in one transaction ([`swap`]).
//!
//! A shadow table lies in the schema `steep_repl`, has the columns that are copied, and neither keys nor constraints.
//! Nobody but the agent's role reads it, not even who may read everything. Its name has the job and the table's oid, so
//! a table that is dropped and made again has none. Until the swap the table itself is not touched.

mod swap;

use std::collections::HashMap;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::job::SchemaMode;
use steep_protocol::message::peer::TablePlan;
use steep_protocol::message::tables::{ChangedTables, FollowedOutcome};
use steep_protocol::{Fault, FaultKind, Identifier, JobId, TableName, TableNo};

use super::existing;
use crate::node::connection::Conn;
use crate::node::job_records::{self, Origin, Planned};
use crate::node::own_schema;
use crate::replication::{join, server_log};
use crate::task::{Patience, Task};

pub(crate) use swap::swap;

/// Shadow tables made by one statement.
const BATCH: usize = 50;

/// Tables named in a fault.
const NAMED: usize = 5;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The tables have their old rows.
    Filling,
    /// The same, and they have left the replication that goes on.
    Parted,
    /// They have the new ones, and the shadow tables are gone.
    Swapped,
}

/// Makes an empty shadow table for each table of the plan. Repeated, does nothing after a success, when they may hold
/// rows, and starts over after a failure. Fails with `SchemaMismatch` where planned tables or columns are missing.
pub(crate) async fn make_shadows(
    task: &Task,
    plan: &[TablePlan],
    note: Option<&str>,
    changed: &ChangedTables,
) -> Result<(), Fault> {
    let task = &Task {
        patience: Patience::Long,
        ..task.clone()
    };
    let conn = Conn::open(task, "prepare").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    if state(&conn, task.job).await?.is_some() {
        return Ok(());
    }
    if changed.followed.outcome == FollowedOutcome::GoesOn {
        join::can_leave(&conn, &changed.followed).await?;
        refuse_stuck_elsewhere(&conn, plan, changed).await?;
    }
    existing::check_shape(&conn, plan, SchemaMode::Manual).await?;
    conn.execute("BEGIN").await?;
    job_records::open(&conn, task.job, Origin::Existing, (plan, note)).await?;
    let planned = job_records::planned(&conn, task.job).await?;
    refuse_unreplaceable(&conn, &planned).await?;
    let columns: HashMap<&TableName, &TablePlan> = plan.iter().map(|t| (&t.name, t)).collect();
    for batch in planned.chunks(BATCH) {
        let made = batch.iter().filter_map(|table| {
            let plan = columns.get(&table.name)?;
            Some(create(task.job, table, plan))
        });
        conn.execute(&made.collect::<Vec<_>>().join(";\n")).await?;
    }
    conn.execute(&revoke(task.job)).await?;
    let sql = "INSERT INTO steep_repl.reinits (job, state) VALUES ($1, 'filling')";
    conn.rows(sql, &[&task.job.to_string()]).await?;
    conn.execute("COMMIT").await?;
    conn.session.close().await;
    Ok(())
}

/// The tables to load instead of those of the plan, where the job fills shadow tables.
pub(crate) async fn shadows(
    task: &Task,
    plan: &[TablePlan],
) -> Result<HashMap<TableNo, TableName>, Fault> {
    let conn = Conn::to_catalog(task, "shadows").await?;
    let state = state(&conn, task.job).await?;
    let mut found = HashMap::new();
    if state == Some(State::Filling) {
        let planned = job_records::planned(&conn, task.job).await?;
        let oids: HashMap<&TableName, u32> = planned.iter().map(|t| (&t.name, t.oid)).collect();
        for table in plan {
            let Some(oid) = oids.get(&table.name) else {
                let text = format!("{} was dropped or renamed here", table.name);
                return Err(conn.own(Fault::new(FaultKind::Failed, text)));
            };
            found.insert(table.no, shadow(task.job, *oid));
        }
    }
    conn.give_back().await;
    Ok(found)
}

/// Removes what the job has made. Idempotent.
pub(super) async fn forget(conn: &Conn, job: JobId) -> Result<(), Fault> {
    if state(conn, job).await?.is_none() {
        return Ok(());
    }
    loop {
        let sql = "SELECT c.relname::text FROM pg_class c
            WHERE c.relnamespace = 'steep_repl'::regnamespace AND c.relkind = 'r'
            AND starts_with(c.relname::text, $1) ORDER BY 1 LIMIT $2";
        let most = i64::try_from(BATCH).unwrap_or(i64::MAX);
        let rows = conn.rows(sql, &[&prefix(job), &most]).await?;
        let names = rows.iter().filter_map(|row| {
            let name: &str = row.get(0);
            Some(TableName::new("steep_repl", name).ok()?.quoted())
        });
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            break;
        }
        conn.execute(&format!("DROP TABLE {}", names.join(", ")))
            .await?;
    }
    let sql = "DELETE FROM steep_repl.reinits WHERE job = $1";
    conn.rows(sql, &[&job.to_string()]).await?;
    Ok(())
}

/// `None` where the job has no shadow tables.
pub(super) async fn state(conn: &Conn, job: JobId) -> Result<Option<State>, Fault> {
    let there = "SELECT to_regclass('steep_repl.reinits') IS NOT NULL";
    if !job_records::installed(conn).await? || !conn.row(there, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT state FROM steep_repl.reinits WHERE job = $1";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    Ok(rows.first().map(|row| match row.get(0) {
        "swapped" => State::Swapped,
        "parted" => State::Parted,
        _ => State::Filling,
    }))
}

fn prefix(job: JobId) -> String {
    format!("reinit_{job}_")
}

/// The shadow of the table with that oid.
fn shadow(job: JobId, oid: u32) -> TableName {
    let name = Identifier::parse(format!("{}{oid}", prefix(job)));
    let schema = Identifier::parse(own_schema::NAME);
    TableName {
        schema: schema.expect("ten bytes of a-z and underscore"),
        table: name.expect("at most 50 bytes of a-z, 0-9 and underscore"),
    }
}

/// Row security without a policy, so that nobody reads it but its owner.
fn create(job: JobId, table: &Planned, plan: &TablePlan) -> String {
    let columns: Vec<String> = plan.columns.iter().map(|c| c.name.quoted()).collect();
    let (shadow, columns) = (shadow(job, table.oid).quoted(), columns.join(", "));
    format!(
        "CREATE TABLE {shadow} AS SELECT {columns} FROM ONLY {} WITH NO DATA;
         ALTER TABLE {shadow} ENABLE ROW LEVEL SECURITY",
        table.name.quoted()
    )
}

/// Takes back what default privileges have granted on the shadow tables.
fn revoke(job: JobId) -> String {
    format!(
        "DO $steep_repl$ DECLARE r record; BEGIN
            FOR r IN SELECT DISTINCT c.oid::pg_catalog.regclass AS shadow,
                CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS grantee
                FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
                WHERE c.relnamespace = 'steep_repl'::pg_catalog.regnamespace
                AND pg_catalog.starts_with(c.relname::text, '{}') AND a.grantee <> c.relowner
            LOOP
                EXECUTE pg_catalog.format('REVOKE ALL ON TABLE %s FROM %s CASCADE', r.shadow, r.grantee);
            END LOOP;
        END $steep_repl$",
        prefix(job)
    )
}

/// Refuses where the subscription fails at a table that is not among those of the plan: it would go on failing, and they
/// could never join it again.
async fn refuse_stuck_elsewhere(
    conn: &Conn,
    plan: &[TablePlan],
    changed: &ChangedTables,
) -> Result<(), Fault> {
    let replication = &changed.followed.replication;
    let stuck = server_log::stuck_at(&conn.session, replication.id).await;
    let stuck = stuck.map_err(|error| conn.fault(&error))?;
    let same = |at: &str, name: &TableName| format!("{}.{}", name.schema, name.table) == at;
    let Some(at) = stuck.filter(|at| !plan.iter().any(|table| same(at, &table.name))) else {
        return Ok(());
    };
    let text = format!(
        "subscription {} fails at a row of {at}, which is not among the tables to be copied",
        replication.name()
    );
    let hint = "name that table too, or all of them with --full";
    Err(conn.own(Fault::new(FaultKind::Failed, text)).hint(hint))
}

/// Refuses tables whose rows this server does not let be deleted, since it publishes them without an identity.
async fn refuse_unreplaceable(conn: &Conn, planned: &[Planned]) -> Result<(), Fault> {
    let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
    let sql =
        "SELECT DISTINCT c.oid FROM unnest($1::oid[]) AS t (oid) JOIN pg_class c ON c.oid = t.oid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_publication_tables pt ON pt.schemaname = n.nspname AND pt.tablename = c.relname
        JOIN pg_publication p ON p.pubname = pt.pubname AND p.pubdelete
        WHERE c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)";
    let rows = conn.rows(sql, &[&oids]).await?;
    let kept: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let kept = planned.iter().filter(|table| kept.contains(&table.oid));
    let names: Vec<String> = kept.map(|table| table.name.to_string()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let text = format!(
        "this server publishes the deletes of tables that have no replica identity, so that their rows cannot be replaced: {}",
        some(&names)
    );
    Err(conn.own(Fault::new(FaultKind::Failed, text)).hint(
        "on this server: ALTER TABLE … REPLICA IDENTITY FULL, or take them out of the publication",
    ))
}

fn some(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMED)].join(", ");
    let more = names.len().saturating_sub(NAMED).min(LISTED_MAX);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
