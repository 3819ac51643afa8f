//! Snapshots as metrics.

use std::collections::BTreeMap;

use jiff::Timestamp;
use steep_protocol::NodeId;
use steep_protocol::message::snapshot::SnapshotState;

use super::super::{Driver, SourceGauges};
use crate::store::Store;

impl<S: Store> Driver<S> {
    pub(in crate::drive) fn snapshots_in(&self, state: SnapshotState) -> u64 {
        let all = self.snapshots.values();
        all.filter(|stored| stored.snapshot.state() == state)
            .count() as u64
    }

    /// What is kept of each source. A source whose snapshots are all gone is absent.
    pub(in crate::drive) fn source_gauges(&self, now: Timestamp) -> Vec<(NodeId, SourceGauges)> {
        let mut sources: BTreeMap<NodeId, SourceGauges> = BTreeMap::new();
        for stored in self.snapshots.values().filter(|s| !s.snapshot.is_over()) {
            let snapshot = &stored.snapshot;
            let source = sources.entry(snapshot.spec.source.clone()).or_default();
            let agent = self.registry.get(&snapshot.spec.source);
            let slot = agent.and_then(|agent| agent.template(snapshot.id));
            source.wal_held = source.wal_held.max(slot.map(|slot| slot.wal_held.0));
            let least = |a: Option<f64>, b: f64| Some(a.map_or(b, |a| a.min(b)));
            if let Some(sealed) = snapshot.sealed {
                let left = sealed.expires_at.duration_since(now).as_secs_f64();
                source.stored += sealed.stored_bytes;
                source.expires = least(source.expires, left.max(0.0));
            }
            if snapshot.state() == SnapshotState::Live {
                let age = now.duration_since(snapshot.asked_at).as_secs_f64();
                source.live_age = Some(source.live_age.unwrap_or(0.0).max(age));
            }
        }
        sources.into_iter().collect()
    }
}
