//! A snapshot's parts while they are read into an archive from which targets load already.
//!
//! A part that a target asks for is read next, and sent from the archive once it is there, so that
//! PostgreSQL reads each part once. Where nothing is being stored, because the disk is full for example,
//! targets are served from PostgreSQL.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use steep_archive::{Finished, StoredReader, Writing};
use steep_protocol::PartNo;
use tokio::sync::Notify;

use crate::mutex::lock;
use crate::snapshot::stored::StoredSnapshot;

/// Where the parts of an open snapshot are besides PostgreSQL.
#[derive(Debug, Default)]
pub(crate) struct Spool {
    /// What was written, over all attempts: the snapshot is not open any longer than this is in memory.
    finished: Finished,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Off,
    Filling(Filling),
    Sealed(Arc<StoredSnapshot>),
}

#[derive(Debug)]
struct Filling {
    writing: Writing,
    planned: VecDeque<PartNo>,
    /// Targets wait for them.
    wanted: VecDeque<PartNo>,
    taken: HashSet<PartNo>,
}

/// A part that a target asks for.
#[derive(Debug)]
pub(crate) enum Spooled {
    /// To be read from PostgreSQL.
    No,
    /// Written a moment ago.
    Written(Box<StoredReader>),
    /// In the complete archive.
    Sealed(Arc<StoredSnapshot>),
}

/// Fills the spool while it lives.
#[derive(Debug)]
pub(super) struct Filler(Arc<Spool>);

impl Spool {
    pub(super) fn finished(&self) -> &Finished {
        &self.finished
    }

    /// The parts are about to be read into that archive, in that order.
    pub(super) fn fill(self: &Arc<Self>, writing: Writing, planned: VecDeque<PartNo>) -> Filler {
        *lock(&self.state) = State::Filling(Filling {
            writing,
            planned,
            wanted: VecDeque::new(),
            taken: HashSet::new(),
        });
        Filler(Arc::clone(self))
    }

    /// All parts are there.
    pub(super) fn seal(&self, stored: StoredSnapshot) {
        *lock(&self.state) = State::Sealed(Arc::new(stored));
        self.changed.notify_waiters();
    }

    /// Where a part is. Waits while it is being read. Cancel-safe.
    pub(crate) async fn find(&self, part: PartNo) -> Spooled {
        let mut asked = false;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            match &mut *lock(&self.state) {
                State::Off => return Spooled::No,
                State::Sealed(stored) => return Spooled::Sealed(Arc::clone(stored)),
                State::Filling(filling) => match filling.writing.reader(part) {
                    Some(reader) => return Spooled::Written(Box::new(reader)),
                    None if !std::mem::replace(&mut asked, true) => filling.wanted.push_back(part),
                    None => {}
                },
            }
            changed.await;
        }
    }

    pub(crate) fn sealed(&self) -> Option<Arc<StoredSnapshot>> {
        match &*lock(&self.state) {
            State::Sealed(stored) => Some(Arc::clone(stored)),
            State::Off | State::Filling(_) => None,
        }
    }
}

impl Filler {
    /// The next part to read.
    pub(super) fn take(&self) -> Option<PartNo> {
        match &mut *lock(&self.0.state) {
            State::Filling(filling) => filling.take(),
            State::Off | State::Sealed(_) => None,
        }
    }

    /// How many parts are left.
    pub(super) fn left(&self) -> usize {
        match &*lock(&self.0.state) {
            State::Filling(filling) => filling.planned.len(),
            State::Off | State::Sealed(_) => 0,
        }
    }

    /// A part is there.
    pub(super) fn written(&self) {
        self.0.changed.notify_waiters();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.0.state);
            if matches!(&*state, State::Filling(_)) {
                *state = State::Off;
            }
        }
        self.0.changed.notify_waiters();
    }
}

impl Filling {
    fn take(&mut self) -> Option<PartNo> {
        loop {
            let next = self.wanted.pop_front().or_else(|| self.planned.pop_front());
            let part = next?;
            if !self.writing.has(part) && self.taken.insert(part) {
                return Some(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use steep_archive::{Archive, Identity, Keys, Location};
    use steep_protocol::stored::StoredCodec;
    use steep_protocol::{Lsn, NodeId, RowCount, SnapshotId};

    use super::*;

    async fn writing(dir: &std::path::Path) -> Writing {
        let location = Location::parse(dir.join("spool").to_str().unwrap()).unwrap();
        let identity = Identity {
            snapshot_id: SnapshotId(1),
            node_id: NodeId::parse("a").unwrap(),
            lsn: Lsn(7),
            codec: StoredCodec::None,
            encryption: None,
        };
        let keys = Keys::default();
        let finished = Finished::default();
        let creating = Archive::create(&location, identity, &keys, &finished);
        creating.await.unwrap()
    }

    async fn write(writing: &Writing, part: PartNo) {
        let file = writing.part(part).await.unwrap();
        file.finish(RowCount(0)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_asked_for_is_read_next_and_served_once_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, writing) = (Arc::new(Spool::default()), writing(dir.path()).await);
        assert!(matches!(spool.find(PartNo(3)).await, Spooled::No));
        let filler = spool.fill(writing.clone(), (0..4).map(PartNo).collect());
        assert_eq!(filler.take(), Some(PartNo(0)));
        let asking = Arc::clone(&spool);
        let mut asked = Box::pin(asking.find(PartNo(3)));
        assert!((&mut asked).now_or_never().is_none());
        assert_eq!(filler.take(), Some(PartNo(3)));
        write(&writing, PartNo(3)).await;
        filler.written();
        assert!(matches!(asked.await, Spooled::Written(_)));
        // Each is read once.
        let rest: Vec<PartNo> = std::iter::from_fn(|| filler.take()).collect();
        assert_eq!(rest, [PartNo(1), PartNo(2)]);
    }

    #[tokio::test]
    async fn whoever_waits_is_sent_to_the_source_where_storing_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, writing) = (Arc::new(Spool::default()), writing(dir.path()).await);
        let filler = spool.fill(writing, (0..4).map(PartNo).collect());
        let asking = Arc::clone(&spool);
        let mut asked = Box::pin(asking.find(PartNo(2)));
        assert!((&mut asked).now_or_never().is_none());
        drop(filler);
        assert!(matches!(asked.await, Spooled::No));
    }
}
