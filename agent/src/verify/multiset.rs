//! From buckets to rows, where the table has no key: how often each row is there on either side.
//!
//! The buckets that differ are read in groups of bounded size. Without an index every look reads the table.

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::future::try_join_all;
use steep_protocol::Fault;
use steep_protocol::message::verify::{DifferenceKind, RowDigest, RowKey, Sieve};

use super::Dial;
use super::digest::{Sums, with};
use super::pool::{Pool, Subject};
use super::scan::{Stretch, Walk, lanes};
use super::settle::{Verdict, judge};
use super::table::{Comparison, Pages, Tally};

/// Rows of both sides in one group.
const GROUP: u64 = 200_000;

/// Looks under a fence at rows that differ.
const LOOKS: usize = 4;

/// How often each row is there, and where one of them is.
type Counts = BTreeMap<RowDigest, (u64, RowKey)>;

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// The rows that one side has more often, in the buckets that differ.
    pub(super) async fn narrow_multiset(
        &self,
        of: &Subject,
        pages: &Pages,
        (a, b): (&Sums, &Sums),
    ) -> Result<Tally, Fault> {
        let mut all = Tally::default();
        for level in a.groups(b, GROUP) {
            let sieve = with(&Sieve::default(), level);
            all.add(self.group(of, pages, &sieve).await?);
        }
        Ok(all)
    }

    async fn group(&self, of: &Subject, pages: &Pages, sieve: &Sieve) -> Result<Tally, Fault> {
        let mut tally = Tally::default();
        let mut before = self.counts(&self.a, of, &pages.a, (sieve, None)).await?;
        let mut open: Option<Vec<RowDigest>> = None;
        for _ in 0..LOOKS {
            self.fence().await?;
            let there = self
                .counts(&self.b, of, &pages.b, (sieve, open.as_deref()))
                .await?;
            let doubtful = open.take().unwrap_or_else(|| unequal(&before, &there));
            if doubtful.is_empty() {
                return Ok(tally);
            }
            let after = self
                .counts(&self.a, of, &pages.a, (sieve, Some(&doubtful)))
                .await?;
            let mut left = Vec::new();
            for digest in doubtful {
                match verdict(&digest, &before, &there, &after) {
                    Some((Verdict::Differs(kind), rows, key)) => tally.count(kind, rows, key),
                    Some(_) => {}
                    None => left.push(digest),
                }
            }
            if left.is_empty() {
                return Ok(tally);
            }
            (before, open) = (after, Some(left));
        }
        tally.changing += open.map_or(0, |open| open.len() as u64);
        Ok(tally)
    }

    /// Counts the rows in those buckets, only of these digests where given.
    async fn counts<D: Dial>(
        &self,
        side: &Pool<D>,
        of: &Subject,
        pages: &[u32],
        (sieve, only): (&Sieve, Option<&[RowDigest]>),
    ) -> Result<Counts, Fault> {
        let lanes = lanes(pages, self.parallel).into_iter();
        let read = lanes.map(|lane| self.lane_counts(side, of, lane, (sieve, only)));
        let mut all = Counts::new();
        for counts in try_join_all(read).await? {
            for (digest, (rows, key)) in counts {
                all.entry(digest).or_insert((0, key)).0 += rows;
            }
        }
        Ok(all)
    }

    async fn lane_counts<D: Dial>(
        &self,
        side: &Pool<D>,
        of: &Subject,
        lane: Vec<Stretch>,
        (sieve, only): (&Sieve, Option<&[RowDigest]>),
    ) -> Result<Counts, Fault> {
        let mut counts = Counts::new();
        let mut walk = Walk::new(lane, side.piece());
        while let Some(step) = walk.step() {
            self.progress.more(step.pages);
            side.admit(step.pages).await;
            let began = Instant::now();
            let read = side.rows(of, step.range, sieve).await?;
            let rows = self.stepped(side.node(), of, &mut walk, (step, began), read)?;
            for row in rows.unwrap_or_default() {
                // `only` is sorted, as it comes from an ordered map.
                if only.is_none_or(|only| only.binary_search(&row.digest).is_ok()) {
                    counts.entry(row.digest).or_insert((0, row.key)).0 += 1;
                }
            }
        }
        Ok(counts)
    }
}

/// The rows that are not there equally often, in order.
fn unequal(a: &Counts, b: &Counts) -> Vec<RowDigest> {
    let all: std::collections::BTreeSet<&RowDigest> = a.keys().chain(b.keys()).collect();
    let unequal = all
        .into_iter()
        .filter(|digest| rows(a, digest) != rows(b, digest));
    unequal.copied().collect()
}

fn rows(counts: &Counts, digest: &RowDigest) -> Option<u64> {
    counts.get(digest).map(|(rows, _)| *rows)
}

/// What came of a row, how many of it differ, and where one is.
fn verdict(
    digest: &RowDigest,
    before: &Counts,
    there: &Counts,
    after: &Counts,
) -> Option<(Verdict, u64, RowKey)> {
    let count = |counts| rows(counts, digest);
    let verdict = judge(&count(before), &count(there), &count(after))?;
    let place = |counts: &Counts| counts.get(digest).map(|(_, key)| key.clone());
    let (source, target) = (count(after).unwrap_or(0), count(there).unwrap_or(0));
    let (kind, side) = match source > target {
        true => (DifferenceKind::Missing, after),
        false => (DifferenceKind::Extra, there),
    };
    let verdict = match verdict {
        Verdict::Differs(_) => Verdict::Differs(kind),
        other => other,
    };
    let key = place(side).unwrap_or(RowKey(Vec::new()));
    Some((verdict, source.abs_diff(target), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rows: &[(u128, u64)]) -> Counts {
        let entry = |(digest, rows): &(u128, u64)| {
            (
                RowDigest(*digest),
                (*rows, RowKey(vec![format!("place of {digest}")])),
            )
        };
        rows.iter().map(entry).collect()
    }

    #[test]
    fn rows_that_one_side_has_more_often_are_missing_or_extra() {
        let (a, b) = (
            counts(&[(1, 1), (2, 3), (3, 1)]),
            counts(&[(1, 1), (2, 1), (4, 2)]),
        );
        let unequal = unequal(&a, &b);
        assert_eq!(unequal, [2, 3, 4].map(RowDigest));
        let found: Vec<_> = unequal
            .iter()
            .map(|digest| verdict(digest, &a, &b, &a).map(|(verdict, rows, _)| (verdict, rows)))
            .collect();
        let differs = |kind, rows| Some((Verdict::Differs(kind), rows));
        use DifferenceKind::{Extra, Missing};
        assert_eq!(
            found,
            [differs(Missing, 2), differs(Missing, 1), differs(Extra, 2)]
        );
    }

    #[test]
    fn a_row_whose_number_changes_on_the_source_is_looked_at_again() {
        let (before, there, after) = (counts(&[(1, 1)]), counts(&[(1, 5)]), counts(&[(1, 2)]));
        assert_eq!(verdict(&RowDigest(1), &before, &there, &after), None);
    }
}
