//! Which stored snapshots `snapshot generate --keep` removes. Pure.
//!
//! A **series** are the stored snapshots of one source that are in the same directory and were made with the same
//! choice of tables. The newest complete one decides, by its `--keep`, how many complete ones stay. What is not
//! complete, or cannot be applied any more, is neither counted nor removed: the first may fail, and the second
//! expires.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use steep_protocol::message::job::TableFilter;
use steep_protocol::message::snapshot::SnapshotState;
use steep_protocol::{NodeId, SnapshotId};

use super::{Owner, Snapshot};

/// A snapshot that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superseded {
    /// The snapshot.
    pub id: SnapshotId,
    /// The newest of its series.
    pub by: SnapshotId,
    /// How many of the series stay.
    pub keep: u16,
}

/// What makes snapshots a series.
type Series<'a> = (&'a NodeId, &'a str, &'a TableFilter);

/// The snapshots that newer ones of their series supersede.
#[must_use]
pub fn superseded<'a>(all: impl Iterator<Item = &'a Snapshot> + Clone) -> Vec<Superseded> {
    let complete = all.filter(|s| s.state() == SnapshotState::Sealed && s.owner == Owner::Operator);
    if complete
        .clone()
        .all(|snapshot| snapshot.spec.keep.is_none())
    {
        return Vec::new();
    }
    let mut series: BTreeMap<Series<'_>, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in complete {
        series
            .entry(series_of(snapshot))
            .or_default()
            .push(snapshot);
    }
    let of_one = |mut all: Vec<&Snapshot>| -> Option<Vec<Superseded>> {
        all.sort_by_key(|snapshot| Reverse((snapshot.asked_at, snapshot.id)));
        let newest = *all.first()?;
        let keep = newest.spec.keep?;
        let older = all.into_iter().skip(keep.max(1).into());
        let older = older.map(|older| Superseded {
            id: older.id,
            by: newest.id,
            keep,
        });
        Some(older.collect())
    };
    series.into_values().filter_map(of_one).flatten().collect()
}

fn series_of(snapshot: &Snapshot) -> Series<'_> {
    let spec = &snapshot.spec;
    let place = snapshot
        .location()
        .unwrap_or_default()
        .trim_end_matches('/');
    let directory = place
        .rsplit_once('/')
        .map_or("", |(directory, _)| directory);
    (&spec.source, directory, &spec.filter)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use steep_protocol::message::job::YieldToDdl;
    use steep_protocol::message::snapshot::{SealedSnapshot, SnapshotSpec, StoreSpec};
    use steep_protocol::stored::StoredCodec;
    use steep_protocol::{ByteCount, Fault, FaultKind, Identifier, Sum};

    use super::*;
    use crate::snapshot::Stage;

    /// The n-th snapshot, complete, in that place.
    fn snapshot(n: u64, place: &str, keep: Option<u16>) -> Snapshot {
        let spec = SnapshotSpec {
            source: NodeId::parse("a").unwrap(),
            store: Some(StoreSpec {
                location: place.to_owned(),
                codec: StoredCodec::None,
                max_rate: None,
                encrypt: steep_protocol::encryption::Encrypt::No,
            }),
            filter: TableFilter::default(),
            parallel: 1,
            large_table_threshold: ByteCount(1),
            yield_to_ddl: YieldToDdl::default(),
            expires_seconds: 60,
            keep,
        };
        let at = Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
        Snapshot {
            stage: Stage::Sealed,
            sealed: Some(SealedSnapshot {
                tables: 1,
                parts: 1,
                rows: 1,
                bytes: 1,
                stored_bytes: 1,
                manifest: Sum([1; 32]),
                expires_at: Timestamp::MAX,
            }),
            ..Snapshot::new(SnapshotId(n), spec, "dba", 1, at)
        }
    }

    fn removed(all: &[Snapshot]) -> Vec<u64> {
        superseded(all.iter()).iter().map(|s| s.id.0).collect()
    }

    #[test]
    fn the_newest_complete_snapshot_of_a_series_says_how_many_stay() {
        let mut all = vec![
            snapshot(3, "/backup/3", Some(2)),
            snapshot(1, "/backup/1", None),
            snapshot(2, "/backup/2", Some(1)),
        ];
        assert_eq!(removed(&all), [1]);
        let superseded = superseded(all.iter()).remove(0);
        assert_eq!((superseded.by, superseded.keep), (SnapshotId(3), 2));
        // The new one is not complete yet.
        let mut next = snapshot(4, "/backup/4", Some(1));
        next.stage = Stage::Storing;
        all.push(next);
        assert_eq!(removed(&all), [1]);
        all[3].stage = Stage::Sealed;
        assert_eq!(removed(&all), [3, 2, 1]);
        // The newest one keeps all.
        all.push(snapshot(5, "/backup/5", None));
        assert_eq!(removed(&all), [0; 0]);
    }

    #[test]
    fn only_the_same_series_counts() {
        let mut other_source = snapshot(1, "/backup/1", None);
        other_source.spec.source = NodeId::parse("b").unwrap();
        let mut other_tables = snapshot(2, "/backup/2", None);
        let schema = Identifier::parse("app").unwrap();
        other_tables.spec.filter.include_schemas.push(schema);
        let mut lost = snapshot(3, "/backup/3", None);
        lost.fault = Some(Fault::new(FaultKind::Failed, "its slot is gone"));
        let mut of_jobs = snapshot(4, "/backup/4", None);
        of_jobs.owner = Owner::Jobs;
        let all = [
            other_source,
            other_tables,
            lost,
            of_jobs,
            snapshot(5, "/backup/deeper/5", None),
            snapshot(6, "s3://backup/6", None),
            snapshot(7, "/backup", None),
            snapshot(8, "/backup/8/", None),
            snapshot(9, "/backup/9", Some(1)),
        ];
        assert_eq!(removed(&all), [8]);
    }
}
