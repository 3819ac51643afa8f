//! What is kept, and what goes when room is needed. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use steep_protocol::limits::PEERS_MAX;
use steep_protocol::message::agent::{PeerAddress, SharedParts};
use steep_protocol::message::peer::{CopyFormat, PartAs};
use steep_protocol::{ByteCount, JobId, Lsn, SnapshotId};

/// Parts that nobody has asked for this long are not needed, once their own copy has ended.
const UNUSED: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Index {
    limit: ByteCount,
    used: ByteCount,
    serial: u64,
    snapshots: HashMap<SnapshotId, Kept>,
}

#[derive(Debug)]
struct Kept {
    job: JobId,
    lsn: Lsn,
    peers: Vec<PeerAddress>,
    /// Copies at work here.
    copying: usize,
    used_at: Instant,
    parts: HashMap<PartAs, Part>,
    /// Complete ones by age.
    complete: BTreeMap<u64, PartAs>,
}

#[derive(Debug, Clone)]
struct Part {
    /// Larger for newer ones.
    serial: u64,
    bytes: ByteCount,
    state: State,
    file: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Arriving,
    Complete,
}

/// The right to write a part.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    snapshot: SnapshotId,
    part: PartAs,
    serial: u64,
    pub(super) file: String,
}

/// Names of files to remove.
pub(super) type Gone = Vec<String>;

impl Index {
    pub(super) fn new(limit: ByteCount) -> Self {
        Self {
            limit,
            used: ByteCount(0),
            serial: 0,
            snapshots: HashMap::new(),
        }
    }

    pub(super) fn limit(&self) -> ByteCount {
        self.limit
    }

    pub(super) fn used(&self) -> ByteCount {
        self.used
    }

    /// A copy begins. Parts of another snapshot of that id, or of another job, are other rows.
    pub(super) fn begin(
        &mut self,
        shared: &SharedParts,
        (job, lsn): (JobId, Lsn),
        now: Instant,
    ) -> Gone {
        let id = shared.snapshot;
        let known = self.snapshots.get(&id);
        let gone = match known.is_some_and(|kept| (kept.job, kept.lsn) != (job, lsn)) {
            true => self.remove(id),
            false => Gone::new(),
        };
        let kept = self.snapshots.entry(id).or_insert_with(|| Kept {
            job,
            lsn,
            peers: Vec::new(),
            copying: 0,
            used_at: now,
            parts: HashMap::new(),
            complete: BTreeMap::new(),
        });
        kept.copying += 1;
        kept.used_at = now;
        self.name_peers(shared);
        gone
    }

    /// The newest list counts.
    pub(super) fn name_peers(&mut self, shared: &SharedParts) {
        if let Some(kept) = self.snapshots.get_mut(&shared.snapshot) {
            kept.peers = shared.peers.iter().take(PEERS_MAX).cloned().collect();
        }
    }

    pub(super) fn peers(&self, snapshot: SnapshotId) -> Vec<PeerAddress> {
        let kept = self.snapshots.get(&snapshot);
        kept.map(|kept| kept.peers.clone()).unwrap_or_default()
    }

    pub(super) fn ended(&mut self, snapshot: SnapshotId, now: Instant) {
        if let Some(kept) = self.snapshots.get_mut(&snapshot) {
            kept.copying = kept.copying.saturating_sub(1);
            kept.used_at = now;
        }
    }

    /// `None` where the part is there already. An earlier, unfinished attempt loses its right.
    pub(super) fn claim(&mut self, snapshot: SnapshotId, part: PartAs) -> Option<Ticket> {
        let kept = self.snapshots.get_mut(&snapshot)?;
        if let Some(there) = kept.parts.get(&part) {
            if there.state == State::Complete {
                return None;
            }
            self.used = self.used - there.bytes;
        }
        self.serial += 1;
        let serial = self.serial;
        let format = match part.format {
            CopyFormat::Binary => "binary",
            CopyFormat::Text => "text",
        };
        let file = format!("{snapshot}-{}-{format}.{serial}", part.part);
        let new = Part {
            serial,
            bytes: ByteCount(0),
            state: State::Arriving,
            file: file.clone(),
        };
        kept.parts.insert(part, new);
        Some(Ticket {
            snapshot,
            part,
            serial,
            file,
        })
    }

    /// Makes room by removing the oldest parts of the least recently used snapshot. Fails where that does
    /// not suffice, or the right is lost; what was removed is gone all the same.
    pub(super) fn grow(&mut self, ticket: &Ticket, bytes: ByteCount) -> Result<Gone, Gone> {
        let limit = self.limit;
        let own = self.claimed(ticket);
        if own.is_none_or(|own| own.bytes + bytes > limit) {
            return Err(Gone::new());
        }
        let mut gone = Gone::new();
        while self.used + bytes > limit {
            let Some((snapshot, part)) = self.oldest() else {
                return Err(gone);
            };
            gone.extend(self.drop_part(snapshot, part));
        }
        self.used += bytes;
        if let Some(own) = self.claimed(ticket) {
            own.bytes += bytes;
        }
        Ok(gone)
    }

    /// Whether the part can be served from here on.
    pub(super) fn complete(&mut self, ticket: &Ticket) -> bool {
        let Some(own) = self.claimed(ticket) else {
            return false;
        };
        own.state = State::Complete;
        if let Some(kept) = self.snapshots.get_mut(&ticket.snapshot) {
            kept.complete.insert(ticket.serial, ticket.part);
        }
        true
    }

    /// Returns whether the right was not lost before.
    pub(super) fn abandon(&mut self, ticket: &Ticket) -> bool {
        let claimed = self.claimed(ticket).is_some();
        if claimed {
            self.drop_part(ticket.snapshot, ticket.part);
        }
        claimed
    }

    /// The file of a complete part.
    pub(super) fn find(
        &mut self,
        (snapshot, lsn): (SnapshotId, Lsn),
        part: PartAs,
        now: Instant,
    ) -> Option<String> {
        let kept = self.snapshots.get_mut(&snapshot)?;
        if kept.lsn != lsn {
            return None;
        }
        kept.used_at = now;
        let part = kept.parts.get(&part)?;
        (part.state == State::Complete).then(|| part.file.clone())
    }

    pub(super) fn drop_part(&mut self, snapshot: SnapshotId, part: PartAs) -> Option<String> {
        let kept = self.snapshots.get_mut(&snapshot)?;
        let gone = kept.parts.remove(&part)?;
        kept.complete.remove(&gone.serial);
        self.used = self.used - gone.bytes;
        Some(gone.file)
    }

    pub(super) fn forget(&mut self, job: JobId) -> Gone {
        self.remove_all(|kept| kept.job == job)
    }

    pub(super) fn expire(&mut self, now: Instant) -> Gone {
        let unused = |kept: &Kept| now.saturating_duration_since(kept.used_at) >= UNUSED;
        self.remove_all(|kept| kept.copying == 0 && unused(kept))
    }

    /// Takes nothing any more.
    pub(super) fn close(&mut self) {
        *self = Self::new(ByteCount(0));
    }

    fn remove_all(&mut self, which: impl Fn(&Kept) -> bool) -> Gone {
        let all = self.snapshots.iter();
        let ids: Vec<_> = all
            .filter(|(_, kept)| which(kept))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().flat_map(|id| self.remove(id)).collect()
    }

    fn remove(&mut self, snapshot: SnapshotId) -> Gone {
        let parts = self.snapshots.remove(&snapshot).map(|kept| kept.parts);
        let parts = parts.into_iter().flat_map(HashMap::into_values);
        let mut gone = Gone::new();
        for part in parts {
            self.used = self.used - part.bytes;
            gone.push(part.file);
        }
        gone
    }

    fn claimed(&mut self, ticket: &Ticket) -> Option<&mut Part> {
        let kept = self.snapshots.get_mut(&ticket.snapshot)?;
        let part = kept.parts.get_mut(&ticket.part)?;
        let arriving = part.state == State::Arriving && part.serial == ticket.serial;
        arriving.then_some(part)
    }

    fn oldest(&self) -> Option<(SnapshotId, PartAs)> {
        let snapshots = self.snapshots.iter();
        let having = snapshots.filter(|(_, kept)| !kept.complete.is_empty());
        let (id, kept) = having.min_by_key(|(_, kept)| kept.used_at)?;
        let (_, part) = kept.complete.first_key_value()?;
        Some((*id, *part))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use steep_protocol::PartNo;

    use super::*;

    const JOB: JobId = JobId(9);
    const S: SnapshotId = SnapshotId(1);

    fn shared(snapshot: u64) -> SharedParts {
        SharedParts {
            snapshot: SnapshotId(snapshot),
            peers: Vec::new(),
        }
    }

    fn part(no: u32) -> PartAs {
        PartAs {
            part: PartNo(no),
            format: CopyFormat::Text,
        }
    }

    /// An index that holds parts 0, 1, … of these sizes.
    fn filled(limit: u64, sizes: &[u64]) -> Index {
        let mut index = Index::new(ByteCount(limit));
        index.begin(&shared(1), (JOB, Lsn(5)), Instant::now());
        for (no, size) in (0..).zip(sizes) {
            let ticket = index.claim(S, part(no)).unwrap();
            index.grow(&ticket, ByteCount(*size)).unwrap();
            assert!(index.complete(&ticket));
        }
        index
    }

    fn found(index: &mut Index, no: u32) -> bool {
        let found = index.find((S, Lsn(5)), part(no), Instant::now());
        found.is_some()
    }

    #[test]
    fn the_oldest_parts_make_room() {
        let mut index = filled(100, &[40, 40]);
        let ticket = index.claim(S, part(2)).unwrap();
        let gone = index.grow(&ticket, ByteCount(30)).unwrap();
        assert_eq!(gone, ["0000000000000001-0-text.1"]);
        assert_eq!(index.used(), ByteCount(70));
        assert!(!found(&mut index, 0) && found(&mut index, 1));
        assert!(!found(&mut index, 2), "it is not complete");
        assert!(index.complete(&ticket) && found(&mut index, 2));
    }

    #[test]
    fn a_part_that_can_never_fit_costs_no_other() {
        let mut index = filled(100, &[40, 40]);
        let ticket = index.claim(S, part(2)).unwrap();
        assert!(index.grow(&ticket, ByteCount(101)).is_err());
        index.abandon(&ticket);
        assert!(found(&mut index, 0) && found(&mut index, 1));
        assert_eq!(index.used(), ByteCount(80));
    }

    #[test]
    fn the_same_snapshot_opened_anew_has_other_rows() {
        let mut index = filled(100, &[40]);
        let again = index.begin(&shared(1), (JOB, Lsn(5)), Instant::now());
        assert!(again.is_empty() && found(&mut index, 0));
        let gone = index.begin(&shared(1), (JOB, Lsn(6)), Instant::now());
        assert_eq!((gone.len(), index.used()), (1, ByteCount(0)));
        assert!(!found(&mut index, 0));
    }

    #[test]
    fn parts_go_with_their_job_and_when_nobody_asks() {
        let mut index = filled(100, &[40]);
        assert_eq!(index.forget(JobId(8)), Gone::new());
        assert_eq!(index.forget(JOB).len(), 1);
        let mut index = filled(100, &[40]);
        let later = Instant::now() + 2 * UNUSED;
        assert_eq!(index.expire(later), Gone::new(), "its copy runs");
        index.ended(S, Instant::now());
        assert_eq!(index.expire(Instant::now()), Gone::new());
        assert_eq!(index.expire(later).len(), 1);
        assert!(index.claim(S, part(7)).is_none());
    }

    #[test]
    fn an_attempt_that_was_replaced_writes_no_more() {
        let mut index = filled(100, &[]);
        let first = index.claim(S, part(0)).unwrap();
        index.grow(&first, ByteCount(60)).unwrap();
        let second = index.claim(S, part(0)).unwrap();
        assert_ne!(first.file, second.file);
        assert!(index.grow(&first, ByteCount(1)).is_err() && !index.complete(&first));
        index.abandon(&first);
        index.grow(&second, ByteCount(60)).unwrap();
        assert!(index.complete(&second));
        assert_eq!(index.used(), ByteCount(60));
    }

    proptest! {
        #[test]
        fn what_is_kept_never_exceeds_the_limit(
            steps in proptest::collection::vec((0..8u32, 0..60u64, 0..6u8), 0..200),
        ) {
            let mut index = filled(100, &[]);
            let mut tickets: Vec<Ticket> = Vec::new();
            for (no, bytes, what) in steps {
                match (what, tickets.len()) {
                    (0, _) => tickets.extend(index.claim(S, part(no))),
                    (1, _) => drop(index.drop_part(S, part(no))),
                    (_, 0) => {}
                    (2, n) => { index.complete(&tickets[no as usize % n]); }
                    (3, n) => { index.abandon(&tickets[no as usize % n]); }
                    (_, n) => drop(index.grow(&tickets[no as usize % n], ByteCount(bytes))),
                }
                prop_assert!(index.used() <= ByteCount(100));
                let parts = index.snapshots[&S].parts.values();
                prop_assert_eq!(parts.map(|p| p.bytes).sum::<ByteCount>(), index.used());
            }
        }
    }
}
