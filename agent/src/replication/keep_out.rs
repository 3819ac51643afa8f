//! Keeps others from writing to tables while their rows are loaded.
//!
//! Another's row would be indistinguishable from the source's. So each planned table, and each table above
//! it, gets an ordinary statement trigger that refuses writes. Sessions that load or apply are replicas and
//! do not fire it, and COPY pays nothing for it. It is dropped before the subscription begins, or with the
//! ledger where there is none; a cleanup finds it by its function.

use std::collections::HashSet;
use std::time::Duration;

use steep_protocol::message::facts::{Finding, Listed};
use steep_protocol::{Fault, FaultKind, JobId, Retry, TableName};
use tokio_postgres::error::SqlState;

use crate::node::connection::Conn;
use crate::pg::PgError;
use crate::schema::batch::is_of_the_statement;

/// Tables per transaction, each locked until its end.
const BATCH: usize = 200;

/// How long to wait for a table while others wait behind us.
const DROP_WAIT: &str = "2s";

const DROP_ATTEMPTS: u32 = 30;
const DROP_PAUSE: Duration = Duration::from_secs(1);

const NAMED: usize = 5;

const TRIGGER: &str = "steep_repl_keep_out";

struct Guarded {
    name: TableName,
    /// Its rows are loaded; otherwise it is above such a table.
    planned: bool,
}

fn function(job: JobId) -> String {
    format!("steep_repl.keep_out_{job}()")
}

/// Guards the job's tables and checks that they hold no rows. Idempotent. Fails where somebody has written
/// to them; a missing right to create triggers is a finding.
pub(crate) async fn set(conn: &Conn, job: JobId) -> Result<Vec<Finding>, Fault> {
    let make = format!(
        "CREATE OR REPLACE FUNCTION {} RETURNS trigger LANGUAGE plpgsql AS $refuse$
         BEGIN
            RAISE EXCEPTION USING ERRCODE = 'object_in_use',
                MESSAGE = pg_catalog.format('table %I.%I is being initialised by steep-repl', TG_TABLE_SCHEMA, TG_TABLE_NAME),
                HINT = 'write to it once the job has ended, or cancel the init';
         END $refuse$",
        function(job)
    );
    match conn.attempt(&make).await {
        Ok(()) => {}
        Err(error) if is_refused(&error) => {
            return Ok(vec![unguarded(
                conn,
                "the planned tables",
                &error.to_string(),
            )]);
        }
        Err(error) => return Err(conn.fault(&error)),
    }
    let tables = tables(conn, job).await?;
    let (mut written, mut open) = (Vec::new(), Vec::new());
    let mut why = String::new();
    for batch in tables.chunks(BATCH) {
        match guard(conn, job, batch, &mut written).await {
            Ok(()) => {}
            Err(error) if is_refused(&error) => {
                for one in batch {
                    match guard(conn, job, std::slice::from_ref(one), &mut written).await {
                        Ok(()) => {}
                        Err(error) if is_refused(&error) => {
                            open.push(one.name.to_string());
                            why = error.to_string();
                        }
                        Err(error) => return Err(conn.fault(&error)),
                    }
                }
            }
            Err(error) => return Err(conn.fault(&error)),
        }
    }
    if !written.is_empty() {
        let text = format!(
            "somebody writes to tables that are to be loaded: {}",
            few(&written)
        );
        let fault = Fault::new(FaultKind::Failed, text);
        return Err(conn
            .own(fault)
            .hint("end what writes to this node, then run init again"));
    }
    if open.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![unguarded(conn, &few(&open), &why)])
}

/// Whether the server refuses, rather than somebody being in the way.
fn is_refused(error: &PgError) -> bool {
    let code = error.sqlstate();
    code.is_some_and(|code| *code != SqlState::LOCK_NOT_AVAILABLE && is_of_the_statement(code))
}

fn few(names: &[String]) -> String {
    let listed: Listed = names.iter().cloned().collect();
    let mut named = listed.names[..listed.names.len().min(NAMED)].join(", ");
    let more = names.len().saturating_sub(NAMED);
    if more > 0 {
        named.push_str(&format!(" and {more} more"));
    }
    named
}

fn unguarded(conn: &Conn, tables: &str, why: &str) -> Finding {
    conn.warning(
        "writes_not_kept_out",
        format!("writes of others to {tables} cannot be refused while rows are loaded: {why}"),
        "a row that somebody else writes or deletes meanwhile is not noticed",
        "let nobody else write to this node until it is synchronized",
    )
}

/// The planned tables and those above them, by inheritance or as partitions: a statement fires the triggers
/// of the table that it names.
async fn tables(conn: &Conn, job: JobId) -> Result<Vec<Guarded>, Fault> {
    let sql = "WITH RECURSIVE planned AS MATERIALIZED (
            SELECT c.oid FROM steep_repl.job_tables t JOIN pg_namespace n ON n.nspname = t.schema_name
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name WHERE t.job = $1
        ), guarded AS (
            SELECT oid FROM planned
            UNION SELECT i.inhparent FROM guarded g JOIN pg_inherits i ON i.inhrelid = g.oid
        )
        SELECT n.nspname::text, c.relname::text, EXISTS (SELECT FROM planned p WHERE p.oid = g.oid)
        FROM guarded g JOIN pg_class c ON c.oid = g.oid AND c.relkind IN ('r', 'p')
        JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    let guarded = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()?;
        let planned = row.get(2);
        Some(Guarded { name, planned })
    };
    Ok(rows.iter().filter_map(guarded).collect())
}

/// Guards some tables in one transaction, which waits for current writers, and looks for rows.
async fn guard(
    conn: &Conn,
    job: JobId,
    tables: &[Guarded],
    written: &mut Vec<String>,
) -> Result<(), PgError> {
    let triggers = tables.iter().map(|table| {
        format!(
            "CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} \
             FOR EACH STATEMENT EXECUTE FUNCTION {}",
            table.name.quoted(),
            function(job)
        )
    });
    let triggers: Vec<String> = triggers.collect();
    let outcome = async {
        conn.attempt(&format!("BEGIN; {}", triggers.join("; ")))
            .await?;
        // A file of no bytes holds no row, and to ask for its size is cheaper than to plan a query.
        let planned: Vec<String> = tables
            .iter()
            .filter(|table| table.planned)
            .map(|table| table.name.quoted())
            .collect();
        let sized = "SELECT name FROM unnest($1::text[]) AS t (name)
            WHERE pg_relation_size(name::regclass) > 0";
        let sized = conn.fetch(sized, &[&planned]).await?;
        let sized: HashSet<&str> = sized.iter().map(|row| row.get(0)).collect();
        let asked = tables
            .iter()
            .enumerate()
            .filter(|(_, table)| table.planned && sized.contains(table.name.quoted().as_str()));
        let asked = asked.map(|(at, table)| {
            let quoted = table.name.quoted();
            format!("SELECT {at} WHERE EXISTS (SELECT FROM ONLY {quoted})")
        });
        let asked: Vec<String> = asked.collect();
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        conn.fetch(&asked.join(" UNION ALL "), &[]).await
    };
    let rows = match outcome.await {
        Ok(rows) => rows,
        Err(error) => {
            conn.roll_back().await?;
            return Err(error);
        }
    };
    conn.attempt("COMMIT").await?;
    let at = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i32>(0)).ok();
    let tables = rows.iter().filter_map(at).filter_map(|at| tables.get(at));
    written.extend(tables.map(|table| table.name.to_string()));
    Ok(())
}

/// Removes the job's guards. Fails where a table is in use without a pause.
pub(crate) async fn lift(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE t.tgfoid = to_regprocedure($1)::oid ORDER BY 1, 2";
    let function = function(job);
    for attempt in 1.. {
        let rows = conn.rows(sql, &[&function]).await?;
        let name = |row: &tokio_postgres::Row| {
            TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()
        };
        let tables: Vec<TableName> = rows.iter().filter_map(name).collect();
        if tables.is_empty() {
            break;
        }
        let mut busy = None;
        for batch in tables.chunks(BATCH) {
            let drops = batch
                .iter()
                .map(|table| format!("DROP TRIGGER IF EXISTS {TRIGGER} ON {}", table.quoted()));
            let drops: Vec<String> = drops.collect();
            let sql = format!(
                "SET LOCAL lock_timeout = '{DROP_WAIT}'; {}",
                drops.join("; ")
            );
            match conn.transact(&sql).await {
                Ok(()) => {}
                Err(error) if error.is(&SqlState::LOCK_NOT_AVAILABLE) => busy = Some(error),
                Err(error) => return Err(conn.fault(&error)),
            }
        }
        match busy {
            Some(error) if attempt >= DROP_ATTEMPTS => {
                let text = format!(
                    "the trigger {TRIGGER} cannot be dropped from a table that others use: {error}"
                );
                return Err(conn.own(
                    Fault::new(FaultKind::Failed, text)
                        .hint("end the sessions that use the node's tables")
                        .retry(Retry::Backoff),
                ));
            }
            Some(_) => tokio::time::sleep(DROP_PAUSE).await,
            None => {}
        }
    }
    conn.execute(&format!("DROP FUNCTION IF EXISTS {function}"))
        .await
}
