//! Keeps others from writing to tables while their rows are loaded.
//!
//! Another's row would be indistinguishable from the source's. So each planned table, and each table above
//! it, gets an ordinary statement trigger that refuses writes. Sessions that load or apply are replicas and
//! do not fire it, and COPY pays nothing for it. It is dropped before the subscription begins, or with the
//! ledger where there is none; a cleanup finds it by its function.
//!
//! A table's owner can drop or disable it. So `steep_repl.guards` says which trigger was set by which
//! transaction, and an entry is deleted only together with that trigger, under a lock, while its row in
//! `pg_trigger` is still that transaction's. Any change in between writes the row anew, also one that was
//! undone. An entry that outlives its trigger is of a table that others could write to.
//!
//! No trigger fires for a statement that rewrites values (`ALTER COLUMN .. TYPE .. USING`) or attaches a
//! table with rows. So the entry also has the transactions that last altered the columns, and the tables below,
//! and goes only while both are the same. Keys that the job itself builds alter columns too: from then on a
//! changed column counts only together with another file.

mod notes;

use std::collections::HashSet;
use std::time::Duration;

use steep_protocol::message::facts::{Finding, Listed};
use steep_protocol::{Fault, FaultKind, JobId, Retry, TableName};
use tokio_postgres::error::SqlState;

pub(crate) use self::notes::held;
use self::notes::{judged, note};
use crate::node::connection::Conn;
use crate::node::job_records;
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

/// Whether guards are noted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notes {
    Kept,
    None,
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
    // Whatever happened since an earlier try, tables are looked at again.
    let make = format!("{};\n{make}", job_records::forget_guards(job));
    match conn.transact(&make).await {
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
    set_on(conn, job, &tables).await
}

/// Guards some of the job's tables anew, which were emptied and are loaded again.
pub(crate) async fn set_again(
    conn: &Conn,
    job: JobId,
    emptied: &HashSet<&TableName>,
) -> Result<Vec<Finding>, Fault> {
    let mut tables = tables(conn, job).await?;
    tables.retain(|table| emptied.contains(&table.name));
    set_on(conn, job, &tables).await
}

async fn set_on(conn: &Conn, job: JobId, tables: &[Guarded]) -> Result<Vec<Finding>, Fault> {
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
        Some(Guarded {
            name: table(row)?,
            planned: row.get(2),
        })
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
        let names: Vec<String> = tables.iter().map(|table| table.name.quoted()).collect();
        conn.fetch(&note(), &[&job.to_string(), &names, &TRIGGER])
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

/// Removes the job's guards, and the notes of those that are as they were set. Fails where a table is in use
/// without a pause.
pub(crate) async fn lift(conn: &Conn, job: JobId) -> Result<(), Fault> {
    // Somebody may have renamed it.
    let sql =
        "SELECT n.nspname::text, c.relname::text, c.oid, quote_ident(t.tgname) FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE t.tgfoid = to_regprocedure($1)::oid ORDER BY 1, 2";
    let function = function(job);
    let notes = match job_records::notes_guards(conn).await? {
        true => Notes::Kept,
        false => Notes::None,
    };
    for attempt in 1.. {
        let rows = conn.rows(sql, &[&function]).await?;
        let set = |row: &tokio_postgres::Row| {
            Some(Set {
                table: table(row)?,
                relation: row.get(2),
                trigger: row.get(3),
            })
        };
        let triggers: Vec<Set> = rows.iter().filter_map(set).collect();
        if triggers.is_empty() {
            break;
        }
        let mut busy = None;
        for batch in triggers.chunks(BATCH) {
            match conn.transact(&removal(job, batch, notes)).await {
                Ok(()) => {}
                // Somebody has dropped or renamed a table since it was read.
                Err(error) if error.is(&SqlState::UNDEFINED_TABLE) => busy = Some(error),
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

/// A trigger that is set, its name quoted.
struct Set {
    table: TableName,
    relation: u32,
    trigger: String,
}

/// The statements that drop some triggers. Under the lock nobody changes a trigger, or writes without one.
fn removal(job: JobId, triggers: &[Set], notes: Notes) -> String {
    let tables: Vec<String> = triggers.iter().map(|set| set.table.quoted()).collect();
    let mut sql = format!(
        "SET LOCAL lock_timeout = '{DROP_WAIT}';\nLOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE;\n",
        tables.join(", ONLY ")
    );
    if notes == Notes::Kept {
        let oids: Vec<String> = triggers
            .iter()
            .map(|set| set.relation.to_string())
            .collect();
        // Looks up each note by its key, whatever the planner thinks of a table that was filled just now.
        let noted = format!(
            "SELECT g.* FROM unnest(ARRAY[{}]::oid[]) AS n (relation) CROSS JOIN LATERAL (
                SELECT a.ctid AS place, a.* FROM steep_repl.guards a
                WHERE a.job = '{job}' AND a.relation = n.relation OFFSET 0) AS g",
            oids.join(", ")
        );
        sql.push_str(&format!(
            "{} DELETE FROM steep_repl.guards
            WHERE ctid = ANY (ARRAY(SELECT place FROM judged WHERE change IS NULL));\n",
            judged(&noted)
        ));
    }
    let drops = triggers
        .iter()
        .zip(tables)
        .map(|(set, table)| format!("DROP TRIGGER IF EXISTS {} ON {table}", set.trigger));
    sql.push_str(&drops.collect::<Vec<_>>().join(";\n"));
    sql
}

/// The table in the first two columns.
fn table(row: &tokio_postgres::Row) -> Option<TableName> {
    TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_tables_are_named_by_the_first_and_a_number() {
        let names: Vec<String> = (0..7).map(|n| format!("s.t{n}")).collect();
        assert_eq!(few(&names), "s.t0, s.t1, s.t2, s.t3, s.t4 and 2 more");
        assert_eq!(few(&names[..1]), "s.t0");
    }

    #[test]
    fn a_note_goes_with_its_trigger_and_under_the_lock() {
        let set = |(name, relation)| Set {
            table: TableName::new("s", name).unwrap(),
            relation,
            trigger: "\"Its\"".to_owned(),
        };
        let triggers = [("t", 17_000), ("a'b", 17_001)].map(set);
        let job = JobId(7);
        let sql = removal(job, &triggers, Notes::Kept);
        let at = |text: &str| sql.find(text).unwrap_or_else(|| panic!("{text}: {sql}"));
        let lock = at("LOCK TABLE ONLY \"s\".\"t\", ONLY \"s\".\"a'b\" IN ACCESS EXCLUSIVE");
        assert!(lock < at("DELETE FROM"));
        assert!(at("ARRAY[17000, 17001]") < at("DROP TRIGGER IF EXISTS \"Its\" ON \"s\".\"t\""));
        assert!(!removal(job, &triggers, Notes::None).contains("guards"));
    }
}
