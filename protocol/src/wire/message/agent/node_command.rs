//! What any agent is asked about its own node.

use serde::{Deserialize, Serialize};

use super::super::job::TableFilter;
use super::super::merge::SetSequences;
use super::super::schema::SchemaCursor;
use super::super::snapshot::StoredPlace;
use super::super::switchover::SwitchoverCommand;
use crate::wire::{JobId, TableName};

/// Commands to any agent about its own node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeCommand {
    /// Read the schema, or return the next page of a reading.
    DescribeSchema {
        /// The tables; only for the first page.
        filter: TableFilter,
        /// The page, unless the first.
        cursor: Option<SchemaCursor>,
    },
    /// Store the current fingerprint of every table.
    CaptureFingerprints,
    /// Read the manifest of the stored snapshot at that place.
    FindStored {
        /// A path on this host, or a URL.
        location: String,
    },
    /// See whether a stored snapshot can be loaded from that place: it is that one, this agent can read it and, if so
    /// wished, all its files are there. Changes nothing.
    CheckStored {
        /// The place.
        place: StoredPlace,
    },
    /// See whether a snapshot can be stored at that place.
    CheckPlace {
        /// A path on this host, or a URL.
        location: String,
    },
    /// A step of a switchover, on either of its nodes.
    Switchover(SwitchoverCommand),
    /// List the tables that a replication from here carries, and those that its filter admits and it does not carry.
    ListTables {
        /// The replication's id.
        replication: JobId,
        /// Its filter.
        filter: TableFilter,
    },
    /// See whether a replication from here carries these tables. Otherwise a fault names those that it does not.
    CheckFollowed {
        /// The replication's id.
        replication: JobId,
        /// The tables; a partitioned one stands for its partitions.
        tables: Vec<TableName>,
    },
    /// How far the sequences of users are used.
    ReadSequences,
    /// Give sequences other values.
    SetSequences(SetSequences),
}
