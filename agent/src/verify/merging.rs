//! What a plan of a merge says beside the rows that differ: which of two was modified last, and which rows stand in each
//! other's way in a unique index.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use steep_protocol::limits::VERIFY_ROWS_MAX;
use steep_protocol::message::repair::{Clash, MergeSide, PlannedRow, RowChange};
use steep_protocol::message::verify::{ModifiedBy, RowKey, VerifyAsk, VerifyReply};
use steep_protocol::{Fault, Identifier};

use super::Dial;
use super::pool::{Pool, Subject};
use super::table::Comparison;

/// Rows whose unique columns are looked up at once: their values may be long.
const AT_ONCE: usize = VERIFY_ROWS_MAX / 4;

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// Of each row that both sides have, which one was modified last, where that was asked and can be told.
    pub(super) async fn newer(
        &self,
        of: &Subject,
        keys: &[RowKey],
    ) -> Result<Vec<Option<MergeSide>>, Fault> {
        if self.modified == ModifiedBy::NotAsked || keys.is_empty() {
            return Ok(vec![None; keys.len()]);
        }
        let (a, b) = tokio::try_join!(
            self.modified_at(&self.a, of, keys),
            self.modified_at(&self.b, of, keys)
        )?;
        let newer = a.into_iter().zip(b).map(|(a, b)| match a?.cmp(&b?) {
            Ordering::Greater => Some(MergeSide::A),
            Ordering::Less => Some(MergeSide::B),
            Ordering::Equal => None,
        });
        Ok(newer.collect())
    }

    async fn modified_at<D: Dial>(
        &self,
        side: &Pool<D>,
        of: &Subject,
        keys: &[RowKey],
    ) -> Result<Vec<Option<i128>>, Fault> {
        let mut all = Vec::with_capacity(keys.len());
        for keys in keys.chunks(VERIFY_ROWS_MAX) {
            let count = keys.len();
            let (keys, by) = (keys.to_vec(), self.modified.clone());
            match side.about(of, VerifyAsk::Modified { keys, by }).await? {
                VerifyReply::Modified(found) if found.len() == count => all.extend(found),
                _ => return Err(side.unexpected()),
            }
        }
        Ok(all)
    }

    /// Notes with each row another one that has its values in a unique index of the side where it may be written.
    pub(super) async fn look_for_clashes(
        &self,
        of: &Subject,
        uniques: &[Vec<Vec<Identifier>>; 2],
        rows: &mut [PlannedRow],
    ) -> Result<(), Fault> {
        let [of_a, of_b] = uniques.each_ref().map(|uniques| other(uniques, of));
        for columns in of_b {
            let goes = |change: &RowChange| change.source().is_some();
            let sides = (&self.a, &self.b, MergeSide::B);
            clashes(of, sides, columns, rows, goes).await?;
        }
        for columns in of_a {
            let goes = |change: &RowChange| change.target().is_some();
            let sides = (&self.b, &self.a, MergeSide::A);
            clashes(of, sides, columns, rows, goes).await?;
        }
        Ok(())
    }
}

/// Unique columns that the key does not imply.
fn other(uniques: &[Vec<Identifier>], of: &Subject) -> Vec<Vec<Identifier>> {
    let key: BTreeSet<&Identifier> = of.shape.key.iter().collect();
    let stored = |column: &Identifier| of.shape.columns.contains(column);
    let own = uniques.iter().filter(|columns| {
        !columns.iter().all(|column| key.contains(column)) && columns.iter().all(stored)
    });
    own.cloned().collect()
}

/// Looks up the rows that may go from one side to the other there.
async fn clashes<F: Dial, T: Dial>(
    of: &Subject,
    (from, to, on): (&Pool<F>, &Pool<T>, MergeSide),
    columns: Vec<Identifier>,
    rows: &mut [PlannedRow],
    goes: impl Fn(&RowChange) -> bool,
) -> Result<(), Fault> {
    let mut rows: Vec<&mut PlannedRow> = rows
        .iter_mut()
        .filter(|row| row.clash.is_none() && goes(&row.change))
        .collect();
    for rows in rows.chunks_mut(AT_ONCE) {
        let keys: Vec<RowKey> = rows.iter().map(|row| row.key.clone()).collect();
        let count = keys.len();
        let ask = VerifyAsk::Values {
            keys,
            columns: columns.clone(),
        };
        let values = match from.about(of, ask).await? {
            VerifyReply::Values(values) if values.len() == count => values,
            _ => return Err(from.unexpected()),
        };
        let asked: Vec<usize> = (0..count).filter(|at| values[*at].is_some()).collect();
        let values: Vec<RowKey> = values.into_iter().flatten().collect();
        if values.is_empty() {
            continue;
        }
        let ask = VerifyAsk::Holders {
            columns: columns.clone(),
            values,
        };
        let holders = match to.about(of, ask).await? {
            VerifyReply::Holders(holders) if holders.len() == asked.len() => holders,
            _ => return Err(to.unexpected()),
        };
        for (at, holder) in asked.into_iter().zip(holders) {
            let row = &mut rows[at];
            row.clash = holder.filter(|key| *key != row.key).map(|key| Clash {
                on,
                columns: columns.clone(),
                key,
            });
        }
    }
    Ok(())
}
