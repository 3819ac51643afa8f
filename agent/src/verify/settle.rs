//! Whether rows that looked different do differ.
//!
//! A row is read on the source, then a fence is taken and waited for, then the row is read on the target, then
//! on the source again. If the source's row was the same both times, the target's must be that one. Where each follows
//! the other, both rows must have been the same both times, with a fence in each direction in between.

use std::time::Duration;

use steep_protocol::Fault;
use steep_protocol::limits::VERIFY_ROWS_MAX;
use steep_protocol::message::verify::{DifferenceKind, RowDigest, RowKey};

use tokio::time::Instant;

use super::Dial;
use super::pool::Subject;
use super::table::Comparison;

/// Looks under a fence before a row is sampled.
const LOOKS: usize = 4;

/// How long rows that change all the time are sampled on both sides at once.
const SAMPLED: Duration = Duration::from_secs(5);

/// Between two samples.
const PAUSE: Duration = Duration::from_millis(5);

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Differs(DifferenceKind),
    /// It changed too often to say.
    Changing,
}

/// What came of a row, and what the two sides had when that was certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) verdict: Verdict,
    pub(super) source: Option<RowDigest>,
    pub(super) target: Option<RowDigest>,
}

impl Settled {
    const CHANGING: Self = Self {
        verdict: Verdict::Changing,
        source: None,
        target: None,
    };
}

/// The verdict on what the source had before the fence, what the target had after it, and what the source
/// had then. `None` where the source's changed and the target has neither.
pub(super) fn judge<T: PartialEq>(
    before: &Option<T>,
    there: &Option<T>,
    after: &Option<T>,
) -> Option<Verdict> {
    if there == before || there == after {
        return Some(Verdict::Equal);
    }
    if before != after {
        return None;
    }
    Some(Verdict::Differs(match (before, there) {
        (Some(_), None) => DifferenceKind::Missing,
        (None, _) => DifferenceKind::Extra,
        (Some(_), Some(_)) => DifferenceKind::Different,
    }))
}

/// A row that is looked at again and again.
#[derive(Debug)]
struct Doubtful {
    at: usize,
    /// What each side had.
    seen: [Vec<Option<RowDigest>>; 2],
}

impl Doubtful {
    /// The target follows the source at some distance: if it had a version that the source had, it was right.
    fn followed(&self) -> bool {
        let [source, target] = &self.seen;
        target.iter().any(|version| source.contains(version))
    }
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// One verdict for each key.
    pub(super) async fn settle(
        &self,
        of: &Subject,
        keys: &[RowKey],
    ) -> Result<Vec<Settled>, Fault> {
        let mut settled = Vec::with_capacity(keys.len());
        for batch in keys.chunks(VERIFY_ROWS_MAX) {
            settled.extend(self.settle_batch(of, batch).await?);
        }
        Ok(settled)
    }

    async fn settle_batch(&self, of: &Subject, keys: &[RowKey]) -> Result<Vec<Settled>, Fault> {
        let mut settled = vec![Settled::CHANGING; keys.len()];
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let mut before = self.a.look_up(of, keys).await?;
        // Where the source follows too, a change of the target's own may be on its way to it.
        let mut held = match self.both_ways() {
            true => self.b.look_up(of, keys).await?,
            false => Vec::new(),
        };
        for _ in 0..LOOKS {
            let wanted: Vec<RowKey> = open.iter().map(|at| keys[*at].clone()).collect();
            self.fence().await?;
            let there = self.b.look_up(of, &wanted).await?;
            let after = self.a.look_up(of, &wanted).await?;
            let mut left = Vec::new();
            for (place, at) in open.iter().enumerate() {
                let moved = held.get(place).is_some_and(|held| *held != there[place]);
                match judge(&before[place], &there[place], &after[place]) {
                    Some(Verdict::Differs(_)) if moved => left.push(place),
                    Some(verdict) => {
                        settled[*at] = Settled {
                            verdict,
                            source: before[place],
                            target: there[place],
                        }
                    }
                    None => left.push(place),
                }
            }
            before = left.iter().map(|place| after[*place]).collect();
            if !held.is_empty() {
                held = left.iter().map(|place| there[*place]).collect();
            }
            open = left.iter().map(|place| open[*place]).collect();
            if open.is_empty() {
                return Ok(settled);
            }
        }
        for at in self.sample(of, keys, open).await? {
            settled[at].verdict = Verdict::Equal;
        }
        Ok(settled)
    }

    /// Those of the rows of which the target had a version that the source had.
    async fn sample(
        &self,
        of: &Subject,
        keys: &[RowKey],
        open: Vec<usize>,
    ) -> Result<Vec<usize>, Fault> {
        let doubtful = |at| Doubtful {
            at,
            seen: Default::default(),
        };
        let mut open: Vec<Doubtful> = open.into_iter().map(doubtful).collect();
        let mut followed = Vec::new();
        let until = Instant::now() + SAMPLED;
        while !open.is_empty() && Instant::now() < until {
            let wanted: Vec<RowKey> = open.iter().map(|row| keys[row.at].clone()).collect();
            let both = tokio::try_join!(self.a.look_up(of, &wanted), self.b.look_up(of, &wanted));
            let (source, target) = both?;
            for (row, (source, target)) in open.iter_mut().zip(source.into_iter().zip(target)) {
                row.seen[0].push(source);
                row.seen[1].push(target);
            }
            followed.extend(open.iter().filter(|row| row.followed()).map(|row| row.at));
            open.retain(|row| !row.followed());
            self.progress.alive();
            tokio::time::sleep(PAUSE).await;
        }
        Ok(followed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_differs_only_where_the_source_stood_still() {
        use DifferenceKind::{Different, Extra, Missing};
        let differs = |kind| Some(Verdict::Differs(kind));
        let cases = [
            ((Some(1), Some(1), Some(1)), Some(Verdict::Equal)),
            ((None, None, None), Some(Verdict::Equal)),
            // Behind, and up to date.
            ((Some(1), Some(1), Some(2)), Some(Verdict::Equal)),
            ((Some(1), Some(2), Some(2)), Some(Verdict::Equal)),
            ((None, None, Some(2)), Some(Verdict::Equal)),
            ((Some(1), Some(3), Some(1)), differs(Different)),
            ((Some(1), None, Some(1)), differs(Missing)),
            ((None, Some(1), None), differs(Extra)),
            ((Some(1), Some(3), Some(2)), None),
            ((Some(1), None, Some(2)), None),
            ((None, Some(3), Some(2)), None),
            ((Some(1), Some(3), None), None),
        ];
        for ((before, there, after), verdict) in cases {
            assert_eq!(
                judge(&before, &there, &after),
                verdict,
                "{before:?} {there:?} {after:?}"
            );
        }
    }
}
