//! Tables of a node that follows: those that join or leave its replication while all others go on.

use serde::{Deserialize, Serialize};

use super::agent::PeerAddress;
use super::handover::Replication;
use super::job::{ExistingRows, SchemaMode, TableFilter};
use super::lineage::ChangeOrigin;
use crate::wire::{ByteCount, NodeId, TableName};

/// Most tables that one order names.
pub const CHANGED_MAX: usize = 1_000;

/// The replication that a node follows by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its publication, slot and subscription.
    pub replication: Replication,
    /// Its tables, once the change is done.
    pub filter: TableFilter,
    /// Which of the source's changes its subscription requests.
    pub origin: ChangeOrigin,
    /// Tables that entered it later and are known to be complete.
    pub complete: Vec<TableName>,
    /// What becomes of it.
    #[serde(default)]
    pub outcome: FollowedOutcome,
}

/// What becomes of the replication that a node follows by when its tables change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FollowedOutcome {
    /// It goes on.
    #[default]
    GoesOn,
    /// It has lost changes: the job's own takes its place.
    Replaced,
}

/// Tables that join or leave the replication of a node that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedTables {
    /// The source's agent.
    pub source: PeerAddress,
    /// The replication that goes on.
    pub followed: Followed,
    /// The tables.
    pub tables: Vec<TableName>,
}

/// Arguments of an order to change the tables of a node that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSpec {
    /// The node.
    pub node: NodeId,
    /// The tables, at most [`CHANGED_MAX`]. None at all where a node that follows no longer is reinitialised as a whole.
    pub tables: Vec<TableName>,
    /// What happens to them.
    pub change: Change,
}

/// What happens to tables of a node that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// They are copied and followed from then on.
    Add(Adding),
    /// They are no longer followed. Their rows stay.
    Drop,
    /// Their rows are copied again, and take the place of the old ones all at once.
    Reinit(Reinit),
}

/// How tables are reinitialised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reinit {
    /// The source to copy from, which must be the one that the node follows.
    pub source: Option<NodeId>,
    /// Workers; those of the node's initialisation by default.
    pub parallel: Option<u8>,
    /// Maximum COPY bytes a second over all workers; that of the node's initialisation by default.
    pub max_rate: Option<ByteCount>,
}

/// How tables are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adding {
    /// What to do about tables that differ. Those that are not there are created.
    pub schema_mode: SchemaMode,
    /// What to do about rows in those that are there.
    pub existing: ExistingRows,
    /// Workers; those of the node's initialisation by default.
    pub parallel: Option<u8>,
    /// Maximum COPY bytes a second over all workers; that of the node's initialisation by default.
    pub max_rate: Option<ByteCount>,
}

/// Most tables that are listed; more are only counted. Together they fit a control frame.
pub const LISTED_TABLES_MAX: usize = 50_000;

/// The tables of a replication at its source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableList {
    /// By name, those that are not followed first, those that are left out last; at most [`LISTED_TABLES_MAX`].
    pub tables: Vec<ListedTable>,
    /// How many are followed.
    pub followed: u64,
    /// How many are not.
    pub not_followed: u64,
}

/// A table at the source, or a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedTable {
    /// Its name.
    pub table: TableName,
    /// The size of its file and its TOAST table there.
    pub bytes: ByteCount,
    /// Whether it is followed.
    pub carried: Carried,
}

/// Whether a replication carries a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// Yes.
    Followed,
    /// No, though its filter admits it: it was created, or attached, since.
    NotFollowed,
    /// No: it was dropped from the replication, or excluded from the start.
    LeftOut,
}
