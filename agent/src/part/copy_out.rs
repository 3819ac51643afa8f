//! Reads one part: a COPY under the job's snapshot.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::message::peer::{ColumnPlan, CopyFormat, CtidRange, PartAs, TablePlan};
use steep_protocol::{ByteCount, Fault, FaultKind, PartNo, Retry, RowCount};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use crate::chunk::{PartReader, ReadStep};
use crate::pg::raw::{CopyStep, Preamble};
use crate::pg::{PgError, literal};
use crate::snapshot::OpenSnapshot;
use crate::snapshot::pool::{Lease, Origin};
use crate::snapshot::table_state::{self, Change, TableState};

/// Pause before a locked table is tried again; doubled each time.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);
const LOCKED_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The bytes of one part. Dropped before its end, it cancels the server's COPY.
#[derive(Debug)]
pub(crate) struct CopyOut {
    snapshot: Arc<OpenSnapshot>,
    /// `None` after the end.
    lease: Option<Lease>,
    part: PartAs,
    what: String,
    bytes: u64,
    rows: RowCount,
    cancel: CancellationToken,
}

/// Starts reading a part under the snapshot. Waits for a free connection, and while the table is locked:
/// outside the lock queue, where nobody waits behind us.
///
/// Fails where there is no such part, the snapshot is gone, the table is not what the plan saw, or
/// PostgreSQL refuses.
pub(crate) async fn read_part(
    snapshot: &Arc<OpenSnapshot>,
    part: PartNo,
    format: CopyFormat,
    cancel: CancellationToken,
) -> Result<CopyOut, Fault> {
    let wanted = Wanted::locate(snapshot, part, format)?;
    let mut pause = LOCKED_PAUSE;
    let mut waits = None;
    loop {
        if let Some(lease) = attempt(snapshot, &wanted, &cancel).await? {
            return Ok(CopyOut {
                snapshot: Arc::clone(snapshot),
                lease: Some(lease),
                part: PartAs { part, format },
                what: wanted.what,
                bytes: 0,
                rows: RowCount(0),
                cancel,
            });
        }
        waits.get_or_insert_with(|| snapshot.wait_for(wanted.state.oid));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => {
                return Err(explain(snapshot, &wanted.what, &PgError::Cancelled));
            }
        }
        pause = (pause * 2).min(LOCKED_PAUSE_MAX);
    }
}

struct Wanted<'a> {
    table: &'a TablePlan,
    state: &'a TableState,
    sql: String,
    what: String,
}

impl<'a> Wanted<'a> {
    fn locate(snapshot: &'a OpenSnapshot, part: PartNo, format: CopyFormat) -> Result<Self, Fault> {
        let (_, export) = snapshot.readable()?;
        let (table, range) = snapshot.locate(part)?;
        let state = snapshot.state_of(table)?;
        // An index of the table may be locked by itself; it is not waited for in the queue either. Names
        // are resolved before the encoding changes.
        let encoding = match snapshot.encoding() {
            "UTF8" => String::new(),
            other => format!("SET LOCAL client_encoding = {}; ", literal(other)),
        };
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}; \
             SET LOCAL lock_timeout = '1s'; {}; {encoding}{}; COMMIT",
            literal(&export),
            table_state::lock_and_ask(&table.name, state),
            copy_statement(table, range, format),
        );
        Ok(Self {
            table,
            state,
            sql,
            what: format!("reading {} (part {part})", table.name),
        })
    }
}

/// The connection on which the COPY runs; `None` where the table is locked.
async fn attempt(
    snapshot: &OpenSnapshot,
    wanted: &Wanted<'_>,
    cancel: &CancellationToken,
) -> Result<Option<Lease>, Fault> {
    let (pool, _) = snapshot.readable()?;
    let fault = |error: PgError| explain(snapshot, &wanted.what, &error);
    let changed = |change: Change| {
        let who = snapshot.suspect(wanted.state.oid);
        change.to_fault(snapshot.node(), &wanted.table.name, who.as_deref())
    };
    let mut lease = pool.take(cancel).await.map_err(fault)?;
    let mut answer = Preamble::default();
    let started = match start(&mut lease, &wanted.sql, &mut answer, cancel).await {
        Err(PgError::Closed | PgError::Io(_)) if lease.origin() == Origin::Reused => {
            lease.renew(cancel).await.map_err(fault)?;
            answer = Preamble::default();
            start(&mut lease, &wanted.sql, &mut answer, cancel).await
        }
        other => other,
    };
    // Checked whether or not the COPY succeeded: it began before the table's state was known.
    if answer.row.is_some()
        && let Some(change) = table_state::judge(wanted.state, &answer)
    {
        return Err(changed(change));
    }
    match started {
        Ok(()) => Ok(Some(lease)),
        Err(error) if error.is(&SqlState::LOCK_NOT_AVAILABLE) => {
            let connection = lease.connection().map_err(fault)?;
            connection.query("ROLLBACK").await.map_err(fault)?;
            lease.give_back();
            Ok(None)
        }
        Err(error) if is_gone(&error) => Err(changed(Change::Gone)),
        Err(error) => {
            let ended = lease.connection().ok().map(|c| c.process_id());
            let who = ended.and_then(|pid| snapshot.ended_for(pid));
            Err(who.map_or_else(
                || fault(error),
                |who| gave_way(snapshot, &wanted.what, &who),
            ))
        }
    }
}

fn is_gone(error: &PgError) -> bool {
    let gone = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    error.sqlstate().is_some_and(|code| gone.contains(code))
}

/// The fault of a session that was ended because somebody waited for the table.
fn gave_way(snapshot: &OpenSnapshot, what: &str, who: &str) -> Fault {
    let text = format!("{what}: the job gave way to {who}");
    Fault::new(FaultKind::Failed, text)
        .hint("it reads the table again once that is over")
        .retry(Retry::Backoff)
        .on(snapshot.node())
}

async fn start(
    lease: &mut Lease,
    sql: &str,
    answer: &mut Preamble,
    cancel: &CancellationToken,
) -> Result<(), PgError> {
    let connection = lease.connection()?;
    tokio::select! {
        started = connection.copy_start(sql, answer) => started,
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
        let step = step.await.map_err(|error| {
            let pid = lease.connection().ok().map(|c| c.process_id());
            match pid.and_then(|pid| self.snapshot.ended_for(pid)) {
                Some(who) => gave_way(&self.snapshot, &self.what, &who),
                None => explain(&self.snapshot, &self.what, &error),
            }
        })?;
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

/// The fault of an error under the snapshot.
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
        // Not with this snapshot: the coordinator hears that it is lost and begins again with another.
        .retry(Retry::Backoff)
        .on(snapshot.node());
    }
    let mut fault = error.to_fault(snapshot.node());
    if fault.kind != FaultKind::Cancelled {
        fault.message = format!("{what}: {}", fault.message);
    }
    fault
}

/// The COPY of one range. A whole table is copied by name, which spares the executor; like `ONLY` in the
/// other form, that reads no child tables.
fn copy_statement(table: &TablePlan, range: CtidRange, format: CopyFormat) -> String {
    let format = match format {
        CopyFormat::Binary => "binary",
        CopyFormat::Text => "text",
    };
    let columns = column_list(&table.columns);
    let name = table.name.quoted();
    if range == CtidRange::ALL {
        // Without a list, COPY takes every column that is not generated.
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
