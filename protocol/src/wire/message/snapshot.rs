//! Stored snapshots: what an operator asks for, and what is shown of them.
//!
//! A snapshot is read once and has a life of its own: its slot, the **template**, keeps the source's WAL
//! from its consistent point on, and every target gets a copy of that slot. Field names are those of the
//! CLI's JSON.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::handover::{Replication, SlotName};
use super::job::{JobSpec, ReplicationNames, TableFilter, YieldToDdl};
use crate::wire::encryption::{Encrypt, Encryption};
use crate::wire::stored::StoredCodec;
use crate::wire::{ByteCount, Fault, JobId, Lsn, NodeId, SnapshotId, Sum, limits};

/// Snapshots that the coordinator remembers.
pub const SNAPSHOTS_MAX: usize = 1_000;

/// The longest location, in bytes.
pub const LOCATION_MAX: usize = 4_096;

/// Bytes of all orders in one report of recorded snapshots, as JSON; older snapshots are left out. An order has some 400
/// bytes; one that names thousands of tables has a hundred kilobytes.
pub const ORDERS_MAX: usize = 4 * 1024 * 1024;

/// The longest name of an operator, in bytes: more than a certificate's name may have.
pub const OPERATOR_MAX: usize = 256;

/// A snapshot: of `snapshot generate`, or of several targets that are initialised together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// The node to read.
    pub source: NodeId,
    /// Where it is stored. `None`: its targets read it while the source holds it open.
    pub store: Option<StoreSpec>,
    /// The tables.
    pub filter: TableFilter,
    /// Workers, 1 to [`crate::limits::WORKERS_MAX`].
    pub parallel: u8,
    /// Larger tables are split finely enough for every worker.
    pub large_table_threshold: ByteCount,
    /// How long others may wait for a lock that it holds.
    pub yield_to_ddl: YieldToDdl,
    /// How long it is kept, in seconds.
    pub expires_seconds: u64,
    /// Once it is complete, how many of its series stay: the newest, itself included. 1 to
    /// [`SNAPSHOTS_MAX`].
    #[serde(default)]
    pub keep: Option<u16>,
}

/// Where and how a snapshot is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSpec {
    /// An absolute path on the source agent's host, or a URL. Never a credential.
    pub location: String,
    /// How its files are compressed.
    pub codec: StoredCodec,
    /// Maximum COPY bytes a second over all workers, before compression.
    pub max_rate: Option<ByteCount>,
    /// Whether its files are encrypted.
    #[serde(default)]
    pub encrypt: Encrypt,
}

/// Arguments of [`SourceCommand::Store`](super::agent::SourceCommand::Store).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSnapshot {
    /// Where and how.
    pub store: StoreSpec,
    /// Workers.
    pub parallel: u8,
    /// How long it is kept once it is complete, in seconds.
    pub expires_seconds: u64,
    /// What the source's database records with an operator's snapshot. Those of jobs are known as long as their jobs are.
    pub order: Option<Box<SnapshotOrder>>,
}

/// An operator's order, as the source's database records it: a coordinator that has lost its store learns it from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOrder {
    /// What was asked for.
    pub spec: SnapshotSpec,
    /// The name in the certificate of the operator who asked for it.
    pub operator: String,
    /// When, by the coordinator's clock.
    pub asked_at: Timestamp,
}

/// A complete snapshot of an operator, as its source's database records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedSnapshot {
    /// Its id.
    pub snapshot: SnapshotId,
    /// What was asked for.
    pub order: SnapshotOrder,
    /// Its consistent point.
    pub lsn: Lsn,
    /// What is stored.
    pub sealed: SealedSnapshot,
    /// When that was recorded, by the source's clock.
    pub sealed_at: Timestamp,
    /// What is to become of it.
    pub fate: RecordedFate,
}

/// What is to become of a snapshot that a source's database records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordedFate {
    /// It is kept.
    Kept,
    /// Its time is over, by the source's clock.
    Expired,
    /// Its removal has begun.
    Removed,
}

impl RecordedSnapshot {
    /// Whether it is within the limits for what operators ask for.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        let SnapshotOrder { spec, operator, .. } = &self.order;
        let location = spec.store.as_ref().map_or(0, |store| store.location.len());
        (1..=LOCATION_MAX).contains(&location)
            && operator.len() <= OPERATOR_MAX
            && (1..=limits::WORKERS_MAX).contains(&spec.parallel)
            && spec
                .keep
                .is_none_or(|keep| (1..=SNAPSHOTS_MAX).contains(&keep.into()))
    }
}

/// A snapshot that an agent reads where it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPlace {
    /// Which.
    pub snapshot: SnapshotId,
    /// A path on that agent's host, or a URL.
    pub location: String,
    /// The checksum of its manifest.
    pub manifest: Sum,
    /// Whether to look at all its files first.
    pub verify: bool,
}

/// A stored snapshot that an agent has found at a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSnapshot {
    /// Its id, according to its manifest.
    pub snapshot: SnapshotId,
    /// Why this agent cannot read its rows, if so: they are encrypted, and it has no key for them.
    pub unreadable: Option<Box<Fault>>,
}

/// A snapshot that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSnapshot {
    /// Tables.
    pub tables: u64,
    /// Parts.
    pub parts: u64,
    /// Rows.
    pub rows: u64,
    /// COPY bytes.
    pub bytes: u64,
    /// Bytes of the parts' files.
    pub stored_bytes: u64,
    /// The checksum of its manifest, and so of everything: whoever can write to the place cannot replace it.
    pub manifest: Sum,
    /// When it expires, by the source's clock.
    pub expires_at: Timestamp,
}

/// What reading a stored snapshot again showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedSnapshot {
    /// Its id, according to its manifest.
    pub snapshot: SnapshotId,
    /// The checksum of that manifest.
    pub manifest: Option<Sum>,
    /// Parts that are whole.
    pub parts: u64,
    /// Rows counted in them.
    pub rows: u64,
    /// COPY bytes in them.
    pub bytes: u64,
    /// Why the rows could not be read, if so: they are encrypted, and there was no key. Then files were checked as they
    /// are stored, and no rows and bytes counted.
    pub unread: Option<String>,
    /// What is wrong, a sentence each; at most [`crate::limits::LISTED_MAX`].
    pub problems: Vec<String>,
    /// How many problems there are.
    pub problems_total: u64,
    /// What the manifest was compared with.
    pub compared: Compared,
}

/// What the manifest of a snapshot was compared with that was read again. By itself it proves nothing: whoever can write
/// to its place can write another one, with other files that fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compared {
    /// With nothing.
    Nothing {
        /// Why not.
        why: String,
    },
    /// With the checksum that the coordinator has kept since the snapshot was made.
    Recorded,
}

impl VerifiedSnapshot {
    /// Compares the manifest with the one that was written, of that checksum. Another one is a problem.
    pub fn compare(&mut self, written: Sum) {
        self.compared = Compared::Recorded;
        if self.manifest != Some(written) {
            let text = "manifest.json is not the one that was written with the snapshot: its checksum is not the one \
                        that the coordinator keeps";
            self.problem(text.to_owned());
        }
    }

    /// Adds a problem before all others.
    pub fn problem(&mut self, text: String) {
        self.problems.insert(0, text);
        self.problems_total += 1;
    }
}

/// The states of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Its slot and plan are being made.
    Opening,
    /// The source holds it open, and its rows are being read.
    Live,
    /// Everything is stored; the source's session is released, the template slot stays.
    Sealed,
    /// It could not be completed, or its slot is gone: nothing can be made from it.
    Lost,
    /// Its time is over.
    Expired,
}

impl SnapshotState {
    /// All states, in the order of a snapshot's life.
    pub const ALL: [Self; 5] = [
        Self::Opening,
        Self::Live,
        Self::Sealed,
        Self::Lost,
        Self::Expired,
    ];

    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Live => "live",
            Self::Sealed => "sealed",
            Self::Lost => "lost",
            Self::Expired => "expired",
        }
    }
}

/// A snapshot, as the CLI shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// The node that it was read from.
    pub source_node: NodeId,
    /// The consistent point, once there is one.
    pub lsn: Option<Lsn>,
    /// Its state.
    pub state: SnapshotState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it expires, once it is complete.
    pub expires_at: Option<Timestamp>,
    /// The template slot.
    pub slot_name: SlotName,
    /// WAL that this slot keeps on the source, where that is known.
    pub wal_held_bytes: Option<u64>,
    /// Tables.
    pub tables: u64,
    /// Parts.
    pub parts: u64,
    /// Rows; 0 until it is complete.
    pub rows: u64,
    /// COPY bytes; so far, until it is complete.
    pub bytes: u64,
    /// Bytes of the parts' files; 0 until it is complete.
    pub stored_bytes: u64,
    /// Who can serve its parts.
    pub holders: Vec<Holder>,
    /// Where it is stored, if it is.
    pub location: Option<String>,
    /// How its files are compressed.
    pub codec: Option<StoredCodec>,
    /// Estimated COPY bytes in all, while it is read.
    pub bytes_total: u64,
    /// The table being read.
    pub current_table: Option<String>,
    /// Workers busy now.
    pub parallel_workers: u8,
    /// Who asked for it.
    pub operator: String,
    /// Why it is lost, or why it has to wait.
    pub error_message: Option<String>,
    /// What to do about that.
    pub hint: Option<String>,
    /// What a person should know about it, a sentence each.
    pub warnings: Vec<String>,
    /// Seconds from the request until it was complete, or so far.
    pub duration_seconds: f64,
    /// How its files are encrypted, if they are.
    pub encryption: Option<Encryption>,
    /// The checksum of its manifest, once it is complete.
    pub manifest_checksum: Option<Sum>,
}

/// Who can serve a snapshot's parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node whose agent reads them.
    pub node_id: NodeId,
    /// Where it reads them: `live` in the source's PostgreSQL, or the location.
    pub location: String,
}

/// What a node has of a stored snapshot that was loaded into it without replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedSnapshot {
    /// Which.
    pub snapshot_id: SnapshotId,
    /// The job that loaded it.
    pub job_id: JobId,
    /// The node that it was read from.
    pub source_node: NodeId,
    /// Its consistent point: no later change is among the rows.
    pub lsn: Lsn,
    /// Rows.
    pub rows: u64,
    /// When they were complete.
    pub loaded_at: Timestamp,
}

/// `snapshot apply`, and `init --snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplySpec {
    /// One per target. Source and tables are those of the snapshot, whatever is said here. Of the methods only
    /// [`Method::Load`](super::job::Method::Load) matters, which loads without replication.
    pub jobs: Vec<JobSpec>,
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// To which targets it was carried: their agents read it themselves. For the others, the source's agent
    /// reads it where it was stored.
    pub carried: Option<CarriedTo>,
    /// Whether all files are looked at before anything is changed. Each is checked while it is loaded,
    /// whatever is said here.
    pub verify: bool,
}

/// Where the agents of targets read a stored snapshot themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedTo {
    /// A path on each of their hosts, or a URL.
    pub location: String,
    /// These targets; at most as many as a request has.
    pub nodes: Vec<NodeId>,
}

impl Replication {
    /// The replication of a job from a stored snapshot: the snapshot's publication, a slot of its own.
    #[must_use]
    pub fn of_snapshot(snapshot: SnapshotId, job: JobId) -> Self {
        let id = JobId(snapshot.0);
        let slot = SlotName::parse(format!("{}_{job}", ReplicationNames(id).name()));
        Self {
            id,
            slot: slot.expect("44 bytes of a-z, 0-9 and underscore"),
        }
    }

    /// The publication and the template slot of a stored snapshot.
    #[must_use]
    pub fn template(snapshot: SnapshotId) -> Self {
        let id = JobId(snapshot.0);
        let slot = SlotName::parse(format!("{}_template", ReplicationNames(id).name()));
        Self {
            id,
            slot: slot.expect("36 bytes of a-z, 0-9 and underscore"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::handover::SlotOwner;

    #[test]
    fn a_template_is_reserved_kept_and_no_jobs_own() {
        let template = Replication::template(SnapshotId(7));
        assert!(template.slot.is_reserved() && template.is_prepared());
        assert_eq!(ReplicationNames::parse(template.slot.as_str()), None);
        assert_eq!(template.name(), Replication::of(JobId(7)).name());
    }

    #[test]
    fn a_slots_name_tells_its_owner() {
        let (snapshot, job) = (SnapshotId(7), JobId(u64::MAX));
        for owner in [
            SlotOwner::Job(job),
            SlotOwner::Made(snapshot, job),
            SlotOwner::Template(snapshot),
        ] {
            let name = owner.replication().slot;
            assert_eq!(SlotOwner::of(name.as_str()), Some(owner));
            for other in [format!("{name}_"), format!("x{name}"), format!("{name}0")] {
                assert_eq!(SlotOwner::of(&other), None, "{other}");
            }
        }
        assert_eq!(SlotOwner::of("steep_repl_monday"), None);
    }
}
