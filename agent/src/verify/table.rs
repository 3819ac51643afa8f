//! One table: whether it can be compared, its sums, and what to do where they differ.

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::future::try_join_all;
use steep_protocol::limits::{VERIFY_COLUMNS, VERIFY_EXAMPLES};
use steep_protocol::message::repair::{PlannedRow, PlannedTable};
use steep_protocol::message::verify::{
    Comparing, DifferenceKind, ModifiedBy, OpenedTable, RowKey, RowValues, Seeds, Sieve,
    TableProblem, TableReport,
};
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, TableName};

use super::Dial;
use super::choice::{shape, summed};
use super::digest::{Sums, Unequal, bits_for, with};
use super::fence::Following;
use super::plan::Room;
use super::pool::dropped;
use super::pool::{Pool, Subject, Within};
use super::progress::Progress;
use super::scan::{Step, Stretch, Walk, lanes};

/// Rows in buckets that differ, above which these are divided further before any row is looked at.
const REFINED_ABOVE: u64 = 20_000;

/// Levels of buckets.
const LEVELS: usize = 3;

/// A comparison at work.
#[derive(Debug)]
pub(super) struct Comparison<A: Dial, B: Dial> {
    pub(super) a: Pool<A>,
    pub(super) b: Pool<B>,
    pub(super) following: Following,
    /// How the source follows the target, where each follows the other.
    pub(super) back: Following,
    pub(super) progress: Progress,
    pub(super) values: RowValues,
    pub(super) comparing: Comparing,
    pub(super) modified: ModifiedBy,
    pub(super) parallel: u8,
    /// Of a repair's plan.
    pub(super) room: Room,
}

/// What came of a table, with what is to be done about it.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) report: TableReport,
    pub(super) planned: Option<PlannedTable>,
}

impl From<TableReport> for Compared {
    fn from(report: TableReport) -> Self {
        let planned = None;
        Self { report, planned }
    }
}

/// Rows that differ so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) missing: u64,
    pub(super) extra: u64,
    pub(super) different: u64,
    pub(super) changing: u64,
    /// By column, rows with the same key.
    pub(super) columns: BTreeMap<Identifier, u64>,
    /// Some of them.
    pub(super) examples: Vec<(DifferenceKind, RowKey)>,
    /// What is to be done about them.
    pub(super) planned: Vec<PlannedRow>,
}

impl Tally {
    /// Counts rows of one kind; `key` is that of one of them.
    pub(super) fn count(&mut self, kind: DifferenceKind, rows: u64, key: RowKey) {
        let counter = match kind {
            DifferenceKind::Missing => &mut self.missing,
            DifferenceKind::Extra => &mut self.extra,
            DifferenceKind::Different => &mut self.different,
        };
        *counter = counter.saturating_add(rows);
        if self.examples.len() < VERIFY_EXAMPLES {
            self.examples.push((kind, key));
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.missing = self.missing.saturating_add(other.missing);
        self.extra = self.extra.saturating_add(other.extra);
        self.different = self.different.saturating_add(other.different);
        self.changing = self.changing.saturating_add(other.changing);
        for (column, rows) in other.columns {
            *self.columns.entry(column).or_default() += rows;
        }
        let room = VERIFY_EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
        self.planned.extend(other.planned);
    }
}

/// The columns in which most rows differ.
fn most(columns: BTreeMap<Identifier, u64>) -> Vec<(Identifier, u64)> {
    let mut columns: Vec<_> = columns.into_iter().collect();
    columns.sort_by(|(a, rows_a), (b, rows_b)| rows_b.cmp(rows_a).then_with(|| a.cmp(b)));
    columns.truncate(VERIFY_COLUMNS);
    columns
}

/// The pages of a table on both sides.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) a: Vec<u32>,
    pub(super) b: Vec<u32>,
}

impl Pages {
    fn count(&self) -> u64 {
        self.a
            .iter()
            .chain(&self.b)
            .map(|pages| u64::from(*pages))
            .sum()
    }
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// Compares a table. What only one side has is a result, not an error.
    pub(super) async fn table(&self, name: TableName) -> Result<Compared, Fault> {
        let mut report = TableReport::new(name.clone());
        let (a, b) = tokio::try_join!(self.a.open(&name), self.b.open(&name))?;
        let (a, b): (OpenedTable, OpenedTable) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => {
                report.problem = Some(TableProblem::OnlyOnA);
                return Ok(report.into());
            }
            (None, Some(_)) => {
                report.problem = Some(TableProblem::OnlyOnB);
                return Ok(report.into());
            }
            (None, None) => return Err(dropped(self.a.node(), &name)),
        };
        let shape = match shape(&a, &b) {
            Ok(shape) => shape,
            Err(problem) => {
                report.problem = Some(problem);
                return Ok(report.into());
            }
        };
        report.key.clone_from(&shape.key);
        let by_key = matches!(self.comparing, Comparing::Overlap | Comparing::Merge);
        if by_key && shape.key.is_empty() {
            report.problem = Some(TableProblem::NoKey);
            return Ok(report.into());
        }
        let summed = summed(&a, &b, Seeds(rand::random()));
        let of = Subject {
            table: name,
            shape,
            summed,
        };
        let uniques = [a.uniques, b.uniques];
        let bits = bits_for(a.rows_estimate.max(b.rows_estimate));
        let pages = Pages {
            a: a.pages,
            b: b.pages,
        };
        let (sums_a, sums_b) = self
            .both_sums(&of, &pages, (&Sieve::default(), bits))
            .await?;
        (report.rows_a, report.rows_b) = (sums_a.rows(), sums_b.rows());
        let Some(unequal) = sums_a.unequal(&sums_b) else {
            return Ok(report.into());
        };
        let tally = if of.shape.key.is_empty() {
            let sums = (&sums_a, &sums_b);
            Box::pin(self.narrow_multiset(&of, &pages, sums)).await?
        } else {
            match Box::pin(self.refine(&of, &pages, unequal)).await? {
                Some(sieve) => Box::pin(self.narrow_keyed(&of, &pages, &sieve)).await?,
                None => return Ok(report.into()),
            }
        };
        report.missing = tally.missing;
        report.extra = tally.extra;
        report.different = tally.different;
        report.changing = tally.changing;
        report.columns = most(tally.columns);
        if matches!(self.comparing, Comparing::Repair | Comparing::Merge) {
            let mut rows = tally.planned;
            if self.comparing == Comparing::Merge {
                Box::pin(self.look_for_clashes(&of, &uniques, &mut rows)).await?;
            }
            let planned = PlannedTable {
                name: of.table,
                shape: of.shape,
                rows,
            };
            let fits = !planned.rows.is_empty() && self.room.take_names(&planned);
            let planned = fits.then_some(planned);
            return Ok(Compared { report, planned });
        }
        report.examples = self.examples(&of, tally.examples).await?;
        Ok(report.into())
    }

    /// Divides buckets that differ as long as this leaves out most of their rows. `None` if nothing differs any
    /// more: what did was on its way.
    async fn refine(
        &self,
        of: &Subject,
        pages: &Pages,
        unequal: Unequal,
    ) -> Result<Option<Sieve>, Fault> {
        let (mut sieve, mut rows) = (with(&Sieve::default(), unequal.level), unequal.rows);
        while rows > REFINED_ABOVE && sieve.0.len() < LEVELS {
            self.progress.more(pages.count());
            let bits = bits_for(rows);
            let (a, b) = self.both_sums(of, pages, (&sieve, bits)).await?;
            let Some(unequal) = a.unequal(&b) else {
                return Ok(None);
            };
            let useful = unequal.rows < rows / 2;
            rows = unequal.rows;
            sieve = with(&sieve, unequal.level);
            if !useful {
                break;
            }
        }
        Ok(Some(sieve))
    }

    async fn both_sums(
        &self,
        of: &Subject,
        pages: &Pages,
        buckets: (&Sieve, u8),
    ) -> Result<(Sums, Sums), Fault> {
        let (a, b) = (
            lanes(&pages.a, self.parallel),
            lanes(&pages.b, self.parallel),
        );
        let here = self.sums(&self.a, of, a, buckets);
        let there = self.sums(&self.b, of, b, buckets);
        tokio::try_join!(here, there)
    }

    async fn sums<D: Dial>(
        &self,
        side: &Pool<D>,
        of: &Subject,
        lanes: Vec<Vec<Stretch>>,
        buckets: (&Sieve, u8),
    ) -> Result<Sums, Fault> {
        let read = lanes
            .into_iter()
            .map(|lane| self.lane_sums(side, of, lane, buckets));
        let mut all = Sums::new(buckets.1);
        for sums in try_join_all(read).await? {
            all.merge(&sums);
        }
        Ok(all)
    }

    async fn lane_sums<D: Dial>(
        &self,
        side: &Pool<D>,
        of: &Subject,
        lane: Vec<Stretch>,
        buckets: (&Sieve, u8),
    ) -> Result<Sums, Fault> {
        let mut sums = Sums::new(buckets.1);
        let mut walk = Walk::new(lane, side.piece());
        while let Some(step) = walk.step() {
            side.admit(step.pages).await;
            let began = Instant::now();
            let read = side.sums(of, step.range, buckets).await?;
            if let Some(read) = self.stepped(side.node(), of, &mut walk, (step, began), read)? {
                sums.add(&read);
            }
        }
        Ok(sums)
    }

    /// Advances a walk; `None` where the step must be smaller.
    pub(super) fn stepped<T>(
        &self,
        node: &NodeId,
        of: &Subject,
        walk: &mut Walk,
        (step, began): (Step, Instant),
        read: Within<T>,
    ) -> Result<Option<T>, Fault> {
        match read {
            Within::All(read) => {
                walk.done(step, began.elapsed());
                self.progress.read(step.pages);
                Ok(Some(read))
            }
            Within::TooMuch => {
                self.progress.alive();
                walk.too_much(step).map_err(|_stuck| {
                    let text = format!("one page of {} could not be read in a statement", of.table);
                    let fault = Fault::new(FaultKind::Timeout, text).on(node).at(&of.table);
                    fault.hint("the server is too busy, or the rows are too large: try again at another time")
                })?;
                Ok(None)
            }
        }
    }
}
