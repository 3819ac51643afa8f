//! Reads sequence positions. Logical replication does not carry them; they are set at the end.

use backon::Retryable as _;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::{Fault, TableName};
use tokio_postgres::error::SqlState;

use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session, lock_timeout};
use crate::task::Task;

/// Sequences per statement: 200 short SELECTs plan in milliseconds.
const BATCH: usize = 200;

/// A sequence may be dropped between listing and reading; more failures than this have another cause.
const ATTEMPTS: u32 = 5;

/// Every sequence that `filter` admits; one that belongs to a table follows the table.
pub(crate) async fn sequences(
    task: &Task,
    filter: &TableFilter,
) -> Result<Vec<SequenceValue>, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = Session::connect_impatient(&task.conninfo, "sequences")
        .await
        .map_err(fault)?;
    let mut dropped = 0;
    let read = (|| read_all(&session, task, filter)).retry(lock_timeout::always());
    let read = read.when(|error| {
        dropped += u32::from(error.is(&SqlState::UNDEFINED_TABLE));
        error.is_locked() || error.is(&SqlState::UNDEFINED_TABLE) && dropped < ATTEMPTS
    });
    let values = read.await.map_err(fault)?;
    session.give_back().await;
    Ok(values)
}

async fn read_all(
    session: &Session,
    task: &Task,
    filter: &TableFilter,
) -> Result<Vec<SequenceValue>, PgError> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, tn.nspname::text, t.relname::text \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid \
             AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i') \
         LEFT JOIN pg_class t ON t.oid = o.refobjid \
         LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace \
         WHERE c.relkind = 'S' AND {USER_RELATION} ORDER BY n.nspname, c.relname"
    );
    let partitions = Partitions::load(session).await?;
    let mut names: Vec<TableName> = Vec::new();
    for row in session.run(&task.cancel, session.query(&sql, &[])).await? {
        let name = table_name(&row, 0)?;
        let owned = row.try_get::<_, Option<String>>(2)?.is_some();
        let admitted = match owned {
            true => partitions.owns(filter, &table_name(&row, 2)?, &name),
            false => filter.admits(&name),
        };
        // Owned by two columns it would appear twice; PostgreSQL does not do that, but could.
        if admitted && names.last() != Some(&name) {
            names.push(name);
        }
    }
    let mut values = Vec::with_capacity(names.len());
    for batch in names.chunks(BATCH) {
        let selects: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(n, name)| {
                format!(
                    "SELECT {n}::int4, last_value, is_called FROM {}",
                    name.quoted()
                )
            })
            .collect();
        let sql = selects.join(" UNION ALL ");
        for row in session.run(&task.cancel, session.query(&sql, &[])).await? {
            let at: i32 = row.try_get(0)?;
            let name = usize::try_from(at)
                .ok()
                .and_then(|at| batch.get(at))
                .cloned();
            let name =
                name.ok_or_else(|| PgError::Protocol("a sequence that was not asked for".into()))?;
            let (last_value, is_called) = (row.try_get(1)?, row.try_get(2)?);
            values.push(SequenceValue {
                name,
                last_value,
                is_called,
            });
        }
    }
    Ok(values)
}
