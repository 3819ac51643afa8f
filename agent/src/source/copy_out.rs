//! One part, read: a COPY under the job's snapshot.

use std::sync::Arc;

use steep_protocol::message::peer::{ColumnPlan, CopyFormat, CtidRange, TablePlan};
use steep_protocol::{ByteCount, Fault, FaultKind, PartNo, RowCount};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::pool::{Lease, Origin};
use super::snapshot::OpenSnapshot;
use crate::chunk::{PartReader, ReadStep};
use crate::pg::raw::CopyStep;
use crate::pg::{PgError, literal};

/// The bytes of one part. Dropped before its end, it cancels the server's COPY.
#[derive(Debug)]
pub struct CopyOut {
    snapshot: Arc<OpenSnapshot>,
    /// `None` after the end.
    lease: Option<Lease>,
    part: PartNo,
    /// For errors.
    what: String,
    bytes: u64,
    rows: RowCount,
    cancel: CancellationToken,
}

/// Begins to read a part under the snapshot. Waits for a free connection where all are at work.
///
/// # Errors
/// A [`Fault`]: no such part, no snapshot any more, or PostgreSQL refused.
pub async fn read_part(
    snapshot: &Arc<OpenSnapshot>,
    part: PartNo,
    format: CopyFormat,
    cancel: CancellationToken,
) -> Result<CopyOut, Fault> {
    let (pool, export) = snapshot.readable()?;
    let (table, range) = snapshot.locate(part)?;
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}; \
         SET LOCAL client_encoding = {}; {}; COMMIT",
        literal(&export),
        literal(snapshot.encoding()),
        copy_statement(table, range, format),
    );
    let what = format!("reading {} (part {part})", table.name);
    let fault = |error: PgError| explain(snapshot, &what, &error);
    let mut lease = pool.take(&cancel).await.map_err(fault)?;
    let started = match start(&mut lease, &sql, &cancel).await {
        Err(PgError::Closed | PgError::Io(_)) if lease.origin() == Origin::Reused => {
            lease.renew(&cancel).await.map_err(fault)?;
            start(&mut lease, &sql, &cancel).await
        }
        other => other,
    };
    started.map_err(fault)?;
    Ok(CopyOut {
        snapshot: Arc::clone(snapshot),
        lease: Some(lease),
        part,
        what,
        bytes: 0,
        rows: RowCount(0),
        cancel,
    })
}

async fn start(lease: &mut Lease, sql: &str, cancel: &CancellationToken) -> Result<(), PgError> {
    let connection = lease.connection()?;
    tokio::select! {
        started = connection.copy_start(sql) => started,
        () = cancel.cancelled() => Err(PgError::Cancelled),
    }
}

impl PartReader for CopyOut {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        let Some(lease) = &mut self.lease else {
            return Ok(ReadStep::End { rows: self.rows });
        };
        let before = into.len();
        let step = async {
            let connection = lease.connection()?;
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(PgError::Cancelled),
                step = connection.copy_read(into, limit) => step,
            }
        };
        let step = step
            .await
            .map_err(|error| explain(&self.snapshot, &self.what, &error))?;
        self.bytes += (into.len() - before) as u64;
        match step {
            CopyStep::More => Ok(ReadStep::More),
            CopyStep::End(rows) => {
                self.rows = rows;
                if let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
                self.snapshot.count(self.part, rows, ByteCount(self.bytes));
                Ok(ReadStep::End { rows })
            }
        }
    }
}

/// What the error means while a snapshot is read.
fn explain(snapshot: &OpenSnapshot, what: &str, error: &PgError) -> Fault {
    let lost = [
        SqlState::INVALID_PARAMETER_VALUE,
        SqlState::UNDEFINED_OBJECT,
    ];
    if error.sqlstate().is_some_and(|code| lost.contains(code)) || snapshot.is_lost() {
        return Fault::new(
            FaultKind::Failed,
            format!("{what}: the snapshot is gone, because the session that held it has ended"),
        )
        .hint("see the source's log for why the session ended, then run init again")
        .on(snapshot.node());
    }
    let mut fault = error.to_fault(snapshot.node());
    if fault.kind != FaultKind::Cancelled {
        fault.message = format!("{what}: {}", fault.message);
    }
    fault
}

/// The COPY of one range. A whole table is copied by name, which spares the executor; that reads the
/// table itself and never its children, as `ONLY` does in the other form.
fn copy_statement(table: &TablePlan, range: CtidRange, format: CopyFormat) -> String {
    let format = match format {
        CopyFormat::Binary => "binary",
        CopyFormat::Text => "text",
    };
    let columns = column_list(&table.columns);
    let name = table.name.quoted();
    if range == CtidRange::ALL {
        // Without a list, COPY takes every column that is not generated: none, if there is none.
        let list = if columns.is_empty() {
            columns
        } else {
            format!(" ({columns})")
        };
        return format!("COPY {name}{list} TO STDOUT (FORMAT {format})");
    }
    let from = range.from.map(|page| format!("ctid >= '({page},0)'::tid"));
    let to = range.to.map(|page| format!("ctid < '({page},0)'::tid"));
    let bounds: Vec<String> = from.into_iter().chain(to).collect();
    let bounds = bounds.join(" AND ");
    format!("COPY (SELECT {columns} FROM ONLY {name} WHERE {bounds}) TO STDOUT (FORMAT {format})")
}

fn column_list(columns: &[ColumnPlan]) -> String {
    let names: Vec<String> = columns.iter().map(|column| column.name.quoted()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::{Identifier, TableName, TableNo};

    fn table(columns: &[&str]) -> TablePlan {
        let columns = columns.iter().map(|name| ColumnPlan {
            name: Identifier::parse(*name).unwrap(),
            type_name: "integer".to_owned(),
            binary: true,
        });
        TablePlan {
            no: TableNo(0),
            name: TableName::new("S", "t\"x").unwrap(),
            columns: columns.collect(),
            first_part: PartNo(0),
            ranges: vec![CtidRange::ALL],
        }
    }

    #[test]
    fn a_whole_table_is_copied_by_name_and_a_range_by_its_pages() {
        let range = |from, to| CtidRange { from, to };
        let copy =
            |columns: &[&str], range| copy_statement(&table(columns), range, CopyFormat::Binary);
        assert_eq!(
            copy(&["a", "B b"], CtidRange::ALL),
            r#"COPY "S"."t""x" ("a", "B b") TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            copy(&[], CtidRange::ALL),
            r#"COPY "S"."t""x" TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            copy(&["a"], range(None, Some(7))),
            r#"COPY (SELECT "a" FROM ONLY "S"."t""x" WHERE ctid < '(7,0)'::tid) TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            copy(&["a"], range(Some(7), Some(9))),
            r#"COPY (SELECT "a" FROM ONLY "S"."t""x" WHERE ctid >= '(7,0)'::tid AND ctid < '(9,0)'::tid) TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            copy(&[], range(Some(9), None)),
            r#"COPY (SELECT  FROM ONLY "S"."t""x" WHERE ctid >= '(9,0)'::tid) TO STDOUT (FORMAT binary)"#
        );
    }
}
