//! Sequences of a node that is merged with another one: read, set apart from the other's, given back.
//!
//! `ALTER SEQUENCE` waits until every transaction that has taken a value is over, so what they insert is committed before
//! the merge makes its slots; and it makes sessions forget the values that they have reserved (`CACHE`). New takers queue
//! behind it, so it leaves the queue after [`QUEUED`] and comes back.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use steep_protocol::limits::SEQUENCES_MAX;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::merge::{SequenceApart, SequenceState, SetSequences};
use steep_protocol::{Fault, FaultKind, JobId, Retry, TableName};

use crate::node::connection::Conn;
use crate::node::own_schema;
use crate::pg::PgError;
use crate::pg::catalog::{USER_RELATION, table_name};
use crate::task::Task;

/// How long takers of values may have to queue.
const QUEUED: &str = "SET lock_timeout = '200ms'";

/// The time away from the queue, and how often.
const PAUSE: Duration = Duration::from_millis(300);
const TRIES: usize = 100;

/// Sequences that are locked together.
const BATCH: usize = 20;

/// How far all sequences of users are used, with the steps and ends that they had before they were set apart.
pub(crate) async fn read(task: &Task) -> Result<Vec<SequenceState>, Fault> {
    let conn = Conn::to_catalog(task, "sequences").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    let states = read_all(&conn).await?;
    conn.give_back().await;
    Ok(states)
}

async fn read_all(conn: &Conn) -> Result<Vec<SequenceState>, Fault> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, has_sequence_privilege(c.oid, 'USAGE, SELECT'),
            CASE WHEN has_sequence_privilege(c.oid, 'USAGE, SELECT') THEN pg_sequence_last_value(c.oid::regclass) END,
            coalesce(m.increment, q.seqincrement), coalesce(m.min_value, q.seqmin), coalesce(m.max_value, q.seqmax),
            q.seqcycle
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence q ON q.seqrelid = c.oid
        LEFT JOIN steep_repl.merge_sequences m ON m.schema_name = n.nspname AND m.sequence_name = c.relname
        WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND {USER_RELATION} ORDER BY c.oid LIMIT {}",
        SEQUENCES_MAX + 1
    );
    let rows = conn.rows(&sql, &[]).await?;
    if rows.len() > SEQUENCES_MAX {
        let text = format!("more than {SEQUENCES_MAX} sequences cannot be set apart");
        let fault = conn.own(Fault::new(FaultKind::Failed, text));
        return Err(fault.hint("use --sequence-ranges keep and set them apart by hand"));
    }
    let mut states = Vec::with_capacity(rows.len());
    for row in &rows {
        let name = table_name(row, 0).map_err(|error| conn.fault(&error))?;
        if !row.get::<_, bool>(2) {
            let text = format!("the agent's role may not read sequence {name}");
            let fault = conn.own(Fault::new(FaultKind::Unauthorized, text));
            return Err(fault.hint("GRANT USAGE, SELECT, UPDATE on it, or make the role its owner"));
        }
        let increment: i64 = row.get(4);
        let last = match row.get::<_, Option<i64>>(3) {
            Some(last) => last,
            None => unused(conn, &name, increment).await?,
        };
        states.push(SequenceState {
            name,
            last,
            increment,
            min: row.get(5),
            max: row.get(6),
            cycles: row.get(7),
        });
    }
    Ok(states)
}

/// One step before the first value of a sequence that was never used; its last value if it is used by now.
async fn unused(conn: &Conn, name: &TableName, increment: i64) -> Result<i64, Fault> {
    let sql = format!("SELECT last_value, is_called FROM {}", name.quoted());
    let row = conn.row(&sql, &[]).await?;
    let value: i64 = row.get(0);
    Ok(match row.get(1) {
        true => value,
        false => value.saturating_sub(increment),
    })
}

/// Sets these sequences. Returns some that had handed out later values: then those, and the ones after them, are as they
/// were. Repeated, it sets them again; what is noted of before stays.
pub(crate) async fn set(task: &Task, wanted: &SetSequences) -> Result<Vec<TableName>, Fault> {
    if wanted.sequences.len() > SEQUENCES_MAX {
        let text = "more sequences than can be set apart";
        return Err(Fault::new(FaultKind::BadRequest, text).on(&task.node));
    }
    let conn = Conn::to_catalog(task, "sequences").await?;
    let installed = own_schema::install(&conn.session).await;
    installed.map_err(|error| conn.fault(&error))?;
    conn.execute(QUEUED).await?;
    for batch in wanted.sequences.chunks(BATCH) {
        let again = ConstantBuilder::new()
            .with_delay(PAUSE)
            .with_max_times(TRIES);
        let set = (|| set_batch(&conn, wanted.job, batch)).retry(again);
        let passed = set.when(PgError::is_locked).await;
        let passed = passed.map_err(|error| refused(&conn, &error))?;
        if !passed.is_empty() {
            conn.session.close().await;
            return Ok(passed);
        }
    }
    conn.session.close().await;
    Ok(Vec::new())
}

fn refused(conn: &Conn, error: &PgError) -> Fault {
    let fault = conn.fault(error);
    if error.is_locked() {
        return fault.retry(Retry::Backoff).hint(
            "transactions that have taken values of a sequence stay open: end them, or use --sequence-ranges keep",
        );
    }
    let hint = "only its owner may alter a sequence: let the agent connect as that role, or use --sequence-ranges keep";
    match fault.kind {
        FaultKind::Unauthorized => fault.hint(hint),
        _ => fault,
    }
}

async fn set_batch(
    conn: &Conn,
    job: JobId,
    batch: &[SequenceApart],
) -> Result<Vec<TableName>, PgError> {
    let outcome = set_together(conn, job, batch).await;
    let end = match &outcome {
        Ok(passed) if passed.is_empty() => "COMMIT",
        _ => "ROLLBACK",
    };
    let ended = conn.session.batch_execute(end).await;
    let passed = outcome?;
    ended?;
    Ok(passed)
}

async fn set_together(
    conn: &Conn,
    job: JobId,
    batch: &[SequenceApart],
) -> Result<Vec<TableName>, PgError> {
    conn.attempt("BEGIN").await?;
    let schemas: Vec<&str> = batch.iter().map(|s| s.name.schema.as_str()).collect();
    let names: Vec<&str> = batch.iter().map(|s| s.name.table.as_str()).collect();
    let sql = "INSERT INTO steep_repl.merge_sequences (schema_name, sequence_name, job, increment, min_value, max_value)
        SELECT w.s, w.n, $3, q.seqincrement, q.seqmin, q.seqmax FROM unnest($1::text[], $2::text[]) AS w (s, n)
        JOIN pg_namespace n ON n.nspname = w.s JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.n
        JOIN pg_sequence q ON q.seqrelid = c.oid
        ON CONFLICT (schema_name, sequence_name) DO UPDATE SET job = excluded.job";
    conn.fetch(sql, &[&schemas, &names, &job.to_string()])
        .await?;
    let mut passed = Vec::new();
    for sequence in batch {
        let name = sequence.name.quoted();
        let (step, start, end) = (sequence.increment, sequence.start, sequence.end);
        let bound = if step > 0 { "MAXVALUE" } else { "MINVALUE" };
        // Locks it; its values stay.
        conn.attempt(&format!("ALTER SEQUENCE {name} INCREMENT BY {step}"))
            .await?;
        let sql = format!("SELECT last_value, is_called FROM {name}");
        let row = conn.run(conn.session.query_one(&sql, &[])).await?;
        let last: i64 = row.get(0);
        let beyond = match step > 0 {
            true => last >= sequence.below,
            false => last <= sequence.below,
        };
        // Set before, and not used since.
        let set_before = last == start && !row.get::<_, bool>(1);
        if beyond && !set_before {
            passed.push(sequence.name.clone());
            continue;
        }
        let sql = format!("ALTER SEQUENCE {name} {bound} {end} RESTART WITH {start}");
        conn.attempt(&sql).await?;
    }
    Ok(passed)
}

/// Whether the job has set sequences apart.
pub(crate) async fn is_set(conn: &Conn, job: JobId) -> Result<bool, Fault> {
    if !exists(conn).await? {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM steep_repl.merge_sequences WHERE job = $1)";
    Ok(conn.row(sql, &[&job.to_string()]).await?.get(0))
}

async fn exists(conn: &Conn) -> Result<bool, Fault> {
    let sql = "SELECT to_regclass('steep_repl.merge_sequences') IS NOT NULL";
    Ok(conn.row(sql, &[]).await?.get(0))
}

/// Gives the job's sequences their steps and ends back. Their values stay. Those that cannot be altered are reported.
pub(crate) async fn give_back(conn: &Conn, job: JobId) -> Result<Vec<Finding>, Fault> {
    if !is_set(conn, job).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT m.schema_name, m.sequence_name, m.increment, m.min_value, m.max_value
        FROM steep_repl.merge_sequences m
        JOIN pg_namespace n ON n.nspname = m.schema_name
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = m.sequence_name AND c.relkind = 'S'
        WHERE m.job = $1 ORDER BY 1, 2";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    conn.execute(QUEUED).await?;
    let mut findings = Vec::new();
    for row in &rows {
        let name = table_name(row, 0).map_err(|error| conn.fault(&error))?;
        let [step, min, max] = [2, 3, 4].map(|at| row.get::<_, i64>(at));
        let sql = format!(
            "ALTER SEQUENCE {} INCREMENT BY {step} MINVALUE {min} MAXVALUE {max}",
            name.quoted()
        );
        let again = ConstantBuilder::new()
            .with_delay(PAUSE)
            .with_max_times(TRIES);
        let set = (|| conn.attempt(&sql))
            .retry(again)
            .when(PgError::is_locked);
        match set.await {
            Ok(()) => {}
            Err(error @ PgError::Server(_)) => findings.push(conn.warning(
                "sequence_not_given_back",
                format!("sequence {name} keeps the steps of the merge: {error}"),
                "it leaves out values that the other node would have handed out",
                "ALTER SEQUENCE … INCREMENT BY, MINVALUE and MAXVALUE as they are to be",
            )),
            Err(error) => return Err(conn.fault(&error)),
        }
    }
    let forget = "DELETE FROM steep_repl.merge_sequences WHERE job = $1";
    conn.rows(forget, &[&job.to_string()]).await?;
    conn.execute("RESET lock_timeout").await?;
    Ok(findings)
}
