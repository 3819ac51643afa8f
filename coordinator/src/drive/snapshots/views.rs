//! Stored snapshots as operators see them.

use jiff::Timestamp;
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::snapshot::{Holder, SnapshotState, SnapshotView};
use steep_protocol::{Fault, NodeId, SnapshotId};

use super::super::Driver;
use super::super::handle::SNAPSHOTS_WATCHED;
use super::{Stored, unknown};
use crate::snapshot::{Point, Stage, Why};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// The snapshots that match, oldest first.
    pub(in crate::drive) fn snapshots_reply(
        &self,
        snapshot: Option<SnapshotId>,
        source: Option<&NodeId>,
        now: Timestamp,
    ) -> Result<ApiReply, Fault> {
        if let Some(source) = source {
            self.known(source)?;
        }
        if let Some(id) = snapshot {
            let stored = self.snapshots.get(&id).ok_or_else(|| unknown(id))?;
            return Ok(ApiReply::Snapshots(vec![self.snapshot_view(stored, now)]));
        }
        let matching = |stored: &&Stored| {
            let snapshot = &stored.snapshot;
            // One that its targets have done with is only being removed.
            let done = matches!(
                snapshot.stage,
                Stage::Removing(Why::Unneeded) | Stage::Over(Why::Unneeded)
            );
            !done && source.is_none_or(|s| snapshot.spec.source == *s)
        };
        let matching = self.snapshots.values().filter(matching);
        let mut views: Vec<_> = matching.map(|s| self.snapshot_view(s, now)).collect();
        views.sort_by_key(|view| (view.created_at, view.snapshot_id));
        Ok(ApiReply::Snapshots(views))
    }

    /// What watchers see: the newest snapshots of which something is left.
    pub(in crate::drive) fn watched_snapshots(&self, now: Timestamp) -> Vec<SnapshotView> {
        let left = self.snapshots.values().filter(|s| !s.snapshot.is_over());
        let mut left: Vec<&Stored> = left.collect();
        left.sort_by_key(|stored| (stored.snapshot.asked_at, stored.snapshot.id));
        let newest = left.len().saturating_sub(SNAPSHOTS_WATCHED);
        let newest = left[newest..].iter();
        newest
            .map(|stored| self.snapshot_view(stored, now))
            .collect()
    }

    pub(super) fn snapshot_view(&self, stored: &Stored, now: Timestamp) -> SnapshotView {
        let Stored {
            snapshot, progress, ..
        } = stored;
        let spec = &snapshot.spec;
        let state = snapshot.state();
        let agent = self.registry.get(&spec.source);
        let slot = agent.and_then(|agent| agent.template(snapshot.id));
        let holder = match state {
            SnapshotState::Live => Some("live"),
            SnapshotState::Sealed => snapshot.location(),
            // Without its slot, for those who do not follow.
            SnapshotState::Lost => snapshot.location().filter(|_| snapshot.has_files()),
            SnapshotState::Opening | SnapshotState::Expired => None,
        };
        let holder = holder.map(|location| Holder {
            node_id: spec.source.clone(),
            location: location.to_owned(),
        });
        let progress = progress.as_ref().filter(|_| state == SnapshotState::Live);
        let sealed = snapshot.sealed;
        let point = snapshot.point;
        let planned = |of: fn(&Point) -> u32| point.map_or(0, |p| of(&p).into());
        let so_far = progress.map_or(0, |work| work.done);
        let mut warnings = Vec::new();
        if matches!(snapshot.stage, Stage::Removing(_)) && snapshot.trouble.is_some() {
            warnings.push(
                "what is left of it could not be removed yet; that is tried again".to_owned(),
            );
        }
        if snapshot.trouble.is_some() && !self.registry.is_online(&spec.source) {
            warnings.push(format!("the agent of {} has no session", spec.source));
        }
        if let Some(held) = self.much_wal_held(snapshot) {
            let (what, why, fix) = (held.what(), held.why(), held.fix(snapshot.id));
            warnings.push(format!("its slot {what}: {why}; {fix}"));
        }
        SnapshotView {
            snapshot_id: snapshot.id,
            source_node: spec.source.clone(),
            lsn: point.map(|point| point.lsn),
            state,
            created_at: snapshot.asked_at,
            expires_at: sealed.map(|sealed| sealed.expires_at),
            slot_name: snapshot.replication().slot,
            wal_held_bytes: slot.map(|slot| slot.wal_held.0),
            tables: sealed.map_or(planned(|p| p.tables), |sealed| sealed.tables),
            parts: sealed.map_or(planned(|p| p.parts), |sealed| sealed.parts),
            rows: sealed.map_or(0, |sealed| sealed.rows),
            bytes: sealed.map_or(so_far, |sealed| sealed.bytes),
            stored_bytes: sealed.map_or(0, |sealed| sealed.stored_bytes),
            holders: holder.into_iter().collect(),
            location: snapshot.location().map(str::to_owned),
            codec: spec.store.as_ref().map(|store| store.codec),
            bytes_total: progress.map_or(0, |work| work.total),
            current_table: progress.and_then(|work| work.current.clone()),
            parallel_workers: progress.map_or(0, |work| work.workers),
            operator: snapshot.operator.clone(),
            error_message: snapshot.fault.as_ref().map(ToString::to_string),
            hint: snapshot.fault.as_ref().map(|fault| fault.hint.clone()),
            warnings,
            duration_seconds: snapshot.seconds(now),
            encryption: {
                let store = spec.store.as_ref();
                store.and_then(|store| store.encrypt.encryption()).cloned()
            },
            manifest_checksum: sealed.map(|sealed| sealed.manifest),
        }
    }
}
