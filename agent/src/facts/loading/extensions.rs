//! Tables and sequences of extensions that hold user data (`pg_extension_config_dump`).

use steep_protocol::message::facts::Listed;
use steep_protocol::message::job::TableFilter;

use crate::pg::catalog::{ExtensionRelation, read_extension_tables};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Rows counted per table.
const COUNT_MAX: i64 = 100_000;

/// Those with user data, counted as `pg_dump` selects it, in read-only transactions.
pub(super) async fn rows(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<Listed, PgError> {
    let mut found = Vec::new();
    for table in read_extension_tables(session).await? {
        let (name, extension) = (&table.name, &table.extension);
        if !filter.admits(name) {
            continue;
        }
        let of = name.quoted();
        let text = match &table.kind {
            ExtensionRelation::Sequence => {
                let sql = format!("SELECT is_called::integer::int8 FROM {of}");
                match count(task, session, &sql).await? {
                    Some(0) => continue,
                    _ => format!("{name} (sequence, extension {extension})"),
                }
            }
            ExtensionRelation::Table { condition } => {
                let sql = format!(
                    "SELECT count(*) FROM (SELECT FROM ONLY {of} {condition} LIMIT {COUNT_MAX}) AS chosen"
                );
                match count(task, session, &sql).await? {
                    Some(0) => continue,
                    Some(COUNT_MAX) => {
                        format!("{name} ({COUNT_MAX} rows or more, extension {extension})")
                    }
                    Some(rows) => format!("{name} (rows: {rows}, extension {extension})"),
                    None => format!("{name} (rows not counted, extension {extension})"),
                }
            }
        };
        found.push(text);
    }
    Ok(found.into_iter().collect())
}

async fn count(task: &Task, session: &Session, sql: &str) -> Result<Option<i64>, PgError> {
    session
        .run(&task.cancel, session.batch_execute("BEGIN READ ONLY"))
        .await?;
    let counted = session.run(&task.cancel, session.query_one(sql, &[])).await;
    session.batch_execute("ROLLBACK").await?;
    match counted {
        Ok(row) => Ok(row.try_get(0)?),
        Err(PgError::Server(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
