//! Parts that this target has received and keeps for the other targets of a snapshot.
//!
//! [`Store`] owns them: `index` (pure) knows what is there and what goes when room is needed, `place` is the
//! directory, [`Writer`] writes a part's frames beside its load, [`Reader`] sends them on.
//!
//! Invariants: nothing is written for a job that shares no snapshot; only complete parts are served, and
//! only to targets that the coordinator named (G7); a part that cannot be kept costs its load next to
//! nothing; what is kept is bounded, goes with its job, and does not outlive the process.

mod index;
mod place;
mod reader;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steep_protocol::message::agent::{PeerAddress, SharedParts};
use steep_protocol::message::peer::{Keeping, PartAs};
use steep_protocol::{ByteCount, JobId, Lsn, NodeId, SnapshotId};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::index::{Index, Ticket};
use self::place::Place;
use crate::mutex::lock;
use crate::telemetry::Flow;

pub(crate) use self::place::default_size;
pub(crate) use self::reader::Reader;
pub(crate) use self::writer::{Writer, Written};

/// Nothing is kept for this long after the disk was slower than a load.
const PAUSE: Duration = Duration::from_secs(10);

/// How often parts that nobody needs any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Store {
    node: NodeId,
    index: Mutex<Index>,
    place: Place,
    paused_until: Mutex<Option<Instant>>,
    complained: AtomicBool,
    /// Parts that other targets sent here.
    pub(crate) fetched: Flow,
    /// Parts that were sent from here.
    pub(crate) served: Flow,
}

/// Keeps a snapshot's parts while its copy runs here.
#[derive(Debug)]
pub(crate) struct Copying {
    store: Arc<Store>,
    snapshot: SnapshotId,
}

impl Store {
    /// Keeps at most `limit` in a new directory within `parent`, once there is a part to keep.
    pub(crate) fn new(node: NodeId, parent: PathBuf, limit: ByteCount) -> Self {
        Self {
            node,
            index: Mutex::new(Index::new(limit)),
            place: Place::new(parent),
            paused_until: Mutex::default(),
            complained: AtomicBool::new(false),
            fetched: Flow::default(),
            served: Flow::default(),
        }
    }

    /// A copy of these parts begins. What was kept of an earlier snapshot of that id is removed.
    pub(crate) fn begin(
        self: &Arc<Self>,
        shared: &SharedParts,
        (job, lsn): (JobId, Lsn),
    ) -> Copying {
        let gone = lock(&self.index).begin(shared, (job, lsn), Instant::now());
        self.place.remove(&gone);
        Copying {
            store: Arc::clone(self),
            snapshot: shared.snapshot,
        }
    }

    /// The coordinator has named other targets.
    pub(crate) fn name_peers(&self, shared: &SharedParts) {
        lock(&self.index).name_peers(shared);
    }

    pub(crate) fn peers(&self, snapshot: SnapshotId) -> Vec<PeerAddress> {
        lock(&self.index).peers(snapshot)
    }

    /// Whether the coordinator named that node for the snapshot.
    pub(crate) fn admits(&self, snapshot: SnapshotId, node: &NodeId) -> bool {
        let peers = self.peers(snapshot);
        peers.iter().any(|peer| peer.node == *node)
    }

    pub(crate) fn keeping(&self) -> Keeping {
        match lock(&self.index).limit() > ByteCount(0) && !self.is_paused() {
            true => Keeping::Intended,
            false => Keeping::No,
        }
    }

    /// A writer for a part that begins to arrive; `None` where it is not kept.
    pub(crate) fn keep(self: &Arc<Self>, snapshot: SnapshotId, part: PartAs) -> Option<Writer> {
        if self.keeping() == Keeping::No {
            return None;
        }
        let ticket = lock(&self.index).claim(snapshot, part)?;
        Some(Writer::start(Arc::clone(self), ticket))
    }

    /// A complete part. Blocking.
    pub(crate) fn read(&self, snapshot: SnapshotId, lsn: Lsn, part: PartAs) -> Option<Reader> {
        let file = lock(&self.index).find((snapshot, lsn), part, Instant::now())?;
        match self.place.open(&file) {
            Ok(file) => Some(Reader::new(file)),
            Err(_) => {
                self.damaged(snapshot, part);
                None
            }
        }
    }

    /// A part that cannot be read.
    pub(crate) fn damaged(&self, snapshot: SnapshotId, part: PartAs) {
        let gone = lock(&self.index).drop_part(snapshot, part);
        self.place.remove(gone.as_slice());
    }

    /// Nothing of that job stays.
    pub(crate) fn forget(&self, job: JobId) {
        let gone = lock(&self.index).forget(job);
        self.place.remove(&gone);
    }

    /// Removes what nobody has asked for lately, until the agent halts.
    pub(crate) async fn run(self: Arc<Self>, halt: CancellationToken) {
        while halt
            .run_until_cancelled(tokio::time::sleep(SWEEP_EVERY))
            .await
            .is_some()
        {
            let gone = lock(&self.index).expire(Instant::now());
            self.place.remove(&gone);
        }
    }

    /// Removes everything. Nothing is kept from here on.
    pub(crate) fn close(&self) {
        lock(&self.index).close();
        self.place.close();
    }

    pub(crate) fn used(&self) -> ByteCount {
        lock(&self.index).used()
    }

    pub(crate) fn limit(&self) -> ByteCount {
        lock(&self.index).limit()
    }

    /// Makes room for more bytes of a part. Fails where there is none.
    fn grow(&self, ticket: &Ticket, bytes: u64) -> io::Result<()> {
        let grown = lock(&self.index).grow(ticket, ByteCount(bytes));
        let (Ok(gone) | Err(gone)) = &grown;
        self.place.remove(gone);
        let full = |_| io::Error::other("there is no room for it");
        grown.map(drop).map_err(full)
    }

    fn complete(&self, ticket: &Ticket) -> bool {
        self.complained.store(false, Ordering::Relaxed);
        lock(&self.index).complete(ticket)
    }

    /// An unfinished part is given up. Returns whether it was still wanted.
    fn abandon(&self, ticket: &Ticket) -> bool {
        let wanted = lock(&self.index).abandon(ticket);
        self.place.remove(std::slice::from_ref(&ticket.file));
        wanted
    }

    fn is_paused(&self) -> bool {
        lock(&self.paused_until).is_some_and(|until| Instant::now() < until)
    }

    fn pause(&self, why: &str) {
        *lock(&self.paused_until) = Some(Instant::now() + PAUSE);
        self.complain(why);
    }

    /// Once until a part is kept again.
    fn complain(&self, why: &str) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            warn!(node_id = %self.node, error = why, "parts are not kept for other targets");
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        lock(&self.store.index).ended(self.snapshot, Instant::now());
    }
}
