//! Rows of the statements of [`sql`](super::sql) as values. Pure. `None` is a row that was not asked for.

use steep_protocol::message::repair::{FetchedRow, Horizon, RowVersion, SeenRow};
use steep_protocol::message::verify::{BucketSum, KeyedRow, RowDigest, RowKey};
use tokio_postgres::SimpleQueryRow;

pub(super) fn number<T: std::str::FromStr>(row: &SimpleQueryRow, at: usize) -> Option<T> {
    row.get(at)?.parse().ok()
}

pub(super) fn digest(row: &SimpleQueryRow, at: usize) -> Option<RowDigest> {
    u128::from_str_radix(row.get(at)?, 16).ok().map(RowDigest)
}

/// A row of [`Reading::versions`], with its key's place.
pub(super) fn seen(row: &SimpleQueryRow) -> Option<(usize, SeenRow)> {
    let version = RowVersion {
        place: row.get(1)?.to_owned(),
        xmin: number(row, 2)?,
        xmax: number(row, 3)?,
    };
    let digest = digest(row, 4)?;
    Some((number(row, 0)?, SeenRow { version, digest }))
}

/// Columns of [`Reading::fetch`] before the values.
const VALUES_AT: usize = 6;

pub(super) fn fetched(row: &SimpleQueryRow) -> Option<(usize, FetchedRow)> {
    let (place, seen) = seen(row)?;
    let values = || (VALUES_AT..row.len()).map(|at| row.get(at).map(str::to_owned));
    let values = (row.get(VALUES_AT - 1)? == "t").then(|| values().collect());
    Some((place, FetchedRow { seen, values }))
}

pub(super) fn horizon(row: &SimpleQueryRow) -> Option<Horizon> {
    Some(Horizon {
        oldest: number(row, 0)?,
        next: number(row, 1)?,
    })
}

pub(super) fn sum(row: &SimpleQueryRow) -> Option<BucketSum> {
    Some(BucketSum {
        bucket: number(row, 0)?,
        rows: number(row, 1)?,
        sums: [number(row, 2)?, number(row, 3)?],
    })
}

pub(super) fn row(row: &SimpleQueryRow) -> Option<KeyedRow> {
    let key = (1..row.len()).map(|at| row.get(at).map(str::to_owned));
    Some(KeyedRow {
        digest: digest(row, 0)?,
        key: RowKey(key.collect::<Option<_>>()?),
    })
}
