//! Writes what a plan says: the replica's rows become the source's, while both servers are written to.
//!
//! A group of rows is written in these steps:
//!
//! 1. The replica's versions of the rows are read, then the source's with their values. Only rows that are what the
//!    plan saw go on.
//! 2. A fence is taken on the source and waited for: the replica has applied everything that the source's values
//!    contain.
//! 3. In a transaction on the replica, the rows are locked, compared with step 1, deleted and inserted. Nothing
//!    waits here: a row that somebody has locked is left out.
//! 4. The source's versions are read again. Only if all are those of step 1, the transaction is committed.
//!
//! Why this is exact. A change of the source to one of the rows that is contained in the value has been applied
//! (2). One that is not contained, and that the replica applies after step 3, waits for our locks, also for rows
//! that we insert, and is applied to our row as to the source's. One that the replica applied before that must have
//! begun on the source before step 4. There it is seen: as another version, or, if it is not over, as the
//! `xmax` of the version (`judge::is_free`). A transaction of the source may be applied before it is over there
//! (`streaming = parallel`) and before others see it (synchronous replication), so the version alone would not do.
//! Rows that only the replica has are deleted while the source has none: whatever comes for them later creates or
//! does not find them.
//!
//! Where each of the two follows the other, as after a merge, the fence of (2) is taken in both directions. A change of the
//! replica's own that is not in its version of (1) makes that another one in (3); one that is in it has been applied on
//! the source before (4), where it makes another version. Without that, both would take the other's row.
//!
//! Nobody waits long, and nobody fails because of us: locks are held for one look at the source, at most
//! [`LOOK_WITHIN`]; we wait for others only at the beginning of a transaction and for less than `deadlock_timeout`
//! (`writer`), so that an apply worker that waits for us is never the one that is chosen to end a deadlock.
//!
//! As in a copy, the session is a replica's: triggers do not fire, and foreign keys are not checked. Its changes
//! have an origin of their own, so subscriptions with `origin = none` do not carry them back. Tables in which code
//! of others would run as our role are refused (`writer`).
//!
//! A page of a plan is idempotent: rows that are written are equal the next time.

mod judge;
mod leftover;
mod writer;

use std::time::Duration;

use steep_protocol::limits::{REPAIR_ROW_MAX, REPAIR_ROWS_AT_ONCE};
use steep_protocol::message::repair::{
    FetchedRow, Horizon, PlannedRow, PlannedTable, RepairCounts, RepairReport, RepairRows,
    RepairedTable, SeenRow,
};
use steep_protocol::message::verify::{
    Comparing, ModifiedBy, Relation, RowAccess, RowKey, RowValues, Seeds, Summed,
};
use steep_protocol::{Fault, FaultKind};

pub(crate) use self::leftover::{forget_origin, remove_origin};

use self::judge::{Look, first_look};
use self::writer::{Attempt, Writer};
use super::Dial;
use super::choice::shape;
use super::compare::{
    Local, is_about, not_followed, not_replicated, replicated, subscriptions, way_back,
};
use super::fence::Following;
use super::plan::Room;
use super::pool::{Pool, Subject, dropped};
use super::progress::Progress;
use super::table::Comparison;
use crate::task::Task;

/// How long the source may take to be looked at while rows are locked.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// Sessions that read on each server.
const READERS: u8 = 1;

/// The longest row that is read together with others.
const ROW_AT_ONCE: usize = REPAIR_ROW_MAX / REPAIR_ROWS_AT_ONCE;

/// A row on its way: what the plan says, and what both sides had before the fence.
#[derive(Debug)]
struct Candidate<'a> {
    row: &'a PlannedRow,
    source: Option<FetchedRow>,
    /// The source's transactions soon after its row was read.
    read: Horizon,
    target: Option<SeenRow>,
}

/// Writes a page of a plan.
///
/// # Errors
/// A fault before anything was written. Later ones are in the report.
pub(crate) async fn repair_rows<A: Dial>(
    task: &Task,
    source: A,
    request: RepairRows,
) -> Result<RepairReport, Fault> {
    let RepairRows {
        source: peer,
        plan,
        max_rate,
    } = request;
    let here = Local(task.clone(), RowAccess::Compare(RowValues::Hidden));
    let a = Pool::new(peer.node, source, READERS, max_rate);
    let b = Pool::new(task.node.clone(), here, READERS, None);
    for (found, wanted, node) in [
        (a.identity().await?, plan.source, a.node()),
        (b.identity().await?, plan.target, b.node()),
    ] {
        if found != wanted {
            let text =
                format!("the plan is for another database ({wanted}) than this one ({found})");
            let fault = Fault::new(FaultKind::BadRequest, text).on(node);
            return Err(fault.hint("make a new plan: steep-repl repair --dry-run --plan FILE"));
        }
    }
    let follows = subscriptions(&a, &b).await?;
    if follows.is_empty() {
        return Err(not_followed(a.node(), b.node()));
    }
    let replicated = replicated(&a, &b, &follows).await?;
    let back = way_back(&a, &b, &follows).await?;
    let slots = follows.into_iter().map(|subscription| subscription.slot);
    let sides = Comparison {
        following: Following::by(slots.collect()),
        back,
        progress: Progress::new((0, 0, READERS), |_| {}),
        a,
        b,
        values: RowValues::Hidden,
        comparing: Comparing::Repair,
        modified: ModifiedBy::NotAsked,
        parallel: READERS,
        room: Room::default(),
    };
    let writer = Writer::open(task).await?;
    let mut report = RepairReport::default();
    for table in &plan.tables {
        let mut repaired = RepairedTable::new(table.name.clone());
        let outcome = if replicated.contains(&table.name) {
            Box::pin(sides.repair(&writer, table, &mut repaired)).await
        } else {
            let (a, b) = (sides.a.node(), sides.b.node());
            Err(not_replicated(a, b, &table.name))
        };
        if let Err(fault) = outcome {
            if is_about(&fault, &table.name) {
                let left = (table.rows.len() as u64).saturating_sub(repaired.counts.rows());
                repaired.counts.failed += left;
                repaired.reason.get_or_insert(fault);
            } else {
                report.stopped = Some(fault);
            }
        }
        report.tables.push(repaired);
        if report.stopped.is_some() {
            break;
        }
    }
    writer.close().await;
    Ok(report)
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// Writes a table's rows, in groups.
    async fn repair(
        &self,
        writer: &Writer,
        table: &PlannedTable,
        repaired: &mut RepairedTable,
    ) -> Result<(), Fault> {
        let name = &table.name;
        let (a, b) = tokio::try_join!(self.a.open(name), self.b.open(name))?;
        let a = a.ok_or_else(|| dropped(self.a.node(), name))?;
        let b = b.ok_or_else(|| dropped(self.b.node(), name))?;
        if shape(&a, &b).as_ref() != Ok(&table.shape) || table.shape.key.is_empty() {
            let text =
                format!("{name} has other columns or another key than when the plan was made");
            let fault = Fault::new(FaultKind::Failed, text).on(self.b.node());
            return Err(fault.at(name).hint("make a new plan"));
        }
        let of = Subject {
            table: name.clone(),
            shape: table.shape.clone(),
            summed: Summed::Digest(Seeds::default()),
        };
        let writer = writer.table(name, &table.shape).await?;
        let mut long = Vec::new();
        for group in table.rows.chunks(REPAIR_ROWS_AT_ONCE) {
            let rows: Vec<&PlannedRow> = group.iter().collect();
            let too_long = self.write_group(&writer, &of, (&rows, ROW_AT_ONCE), repaired);
            long.extend(too_long.await?);
        }
        for row in long {
            let alone = [row];
            let too_long = self.write_group(&writer, &of, (&alone, REPAIR_ROW_MAX), repaired);
            if !too_long.await?.is_empty() {
                let limit = REPAIR_ROW_MAX / 1024 / 1024;
                let text = format!("a row has more than {limit} MiB of text");
                let hint = "copy it by hand, or initialise the node anew";
                let fault = Fault::new(FaultKind::Failed, text).on(self.a.node());
                refuse(repaired, fault.hint(hint));
            }
        }
        Ok(())
    }

    /// Writes these rows, except those that are longer, which are returned.
    async fn write_group<'a>(
        &self,
        writer: &writer::OpenTable<'_>,
        of: &Subject,
        (rows, longest): (&[&'a PlannedRow], usize),
        repaired: &mut RepairedTable,
    ) -> Result<Vec<&'a PlannedRow>, Fault> {
        let keys: Vec<RowKey> = rows.iter().map(|row| row.key.clone()).collect();
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        self.a.admit(keys.len() as u64).await;
        let (_, targets) = self.b.versions(of, &keys).await?;
        let sources = self.a.fetch(of, &keys, longest).await?;
        let (read, _) = self.a.versions(of, &[]).await?;
        let (mut ready, mut long) = (Vec::new(), Vec::new());
        for (row, (source, target)) in rows.iter().zip(sources.into_iter().zip(targets)) {
            match first_look(row.change, source.as_ref(), target.as_ref()) {
                Look::Equal => repaired.counts.equal += 1,
                Look::Changed => repaired.counts.changed += 1,
                Look::TooLong => long.push(*row),
                Look::Write => ready.push(Candidate {
                    row,
                    source,
                    read,
                    target,
                }),
            }
        }
        if ready.is_empty() {
            return Ok(long);
        }
        self.fence().await?;
        if self.relation() != Relation::Replicates {
            return Err(self.not_connected());
        }
        self.write(writer, of, ready, repaired).await?;
        Ok(long)
    }

    /// Writes these rows together; those that cannot be, in ever smaller groups.
    async fn write(
        &self,
        writer: &writer::OpenTable<'_>,
        of: &Subject,
        rows: Vec<Candidate<'_>>,
        repaired: &mut RepairedTable,
    ) -> Result<(), Fault> {
        let mut left = vec![rows];
        while let Some(mut rows) = left.pop() {
            if rows.is_empty() {
                continue;
            }
            let count = rows.len() as u64;
            match writer.attempt(&rows, self.look_again(of, &rows)).await? {
                Attempt::Written => repaired.counts.repaired += count,
                Attempt::Changed(which) => {
                    repaired.counts.changed += which.len() as u64;
                    let mut at = 0..;
                    rows.retain(|_| at.next().is_none_or(|at| !which.contains(&at)));
                    left.push(rows);
                }
                Attempt::Busy if count == 1 => repaired.counts.changed += 1,
                Attempt::Refused(fault) if count == 1 => refuse(repaired, fault),
                Attempt::Busy | Attempt::Refused(_) => {
                    let second = rows.split_off(rows.len() / 2);
                    left.extend([second, rows]);
                }
            }
        }
        Ok(())
    }

    /// Which of the rows are not, on the source, what they were before the fence.
    async fn look_again(&self, of: &Subject, rows: &[Candidate<'_>]) -> Result<Vec<usize>, Fault> {
        let keys: Vec<RowKey> = rows.iter().map(|row| row.row.key.clone()).collect();
        let look = tokio::time::timeout(LOOK_WITHIN, self.a.versions(of, &keys));
        let (now, found) = look.await.unwrap_or_else(|_| {
            let text = format!(
                "the source did not answer within {} s",
                LOOK_WITHIN.as_secs()
            );
            let fault = Fault::new(FaultKind::Timeout, text).on(self.a.node());
            Err(fault.hint("the server or the way to it is too busy: run the command again"))
        })?;
        let pairs = rows.iter().zip(found).enumerate();
        let moved = pairs.filter(|(_, (row, found))| {
            let first = row.source.as_ref().map(|fetched| &fetched.seen);
            !judge::is_unchanged((first, row.read), (found.as_ref(), now))
        });
        Ok(moved.map(|(at, _)| at).collect())
    }
}

/// Counts a row that cannot be written.
fn refuse(repaired: &mut RepairedTable, fault: Fault) {
    repaired.counts.add(&RepairCounts {
        failed: 1,
        ..RepairCounts::default()
    });
    repaired.reason.get_or_insert(fault);
}
