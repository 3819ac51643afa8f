//! A node's lineage: its database's identity, its subscriptions and slots, and our objects in it.
//!
//! Each agent reports its own node's lineage. The coordinator combines them into the graph of who
//! follows whom (`coordinator/src/job/lineage`), whichever tool created the subscriptions.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::limits::JOB_NOTE_MAX;
use crate::wire::{JobId, NodeId, NodeState};

/// Maximum length of each list in a lineage; a server's slots and workers are far fewer.
pub const LINEAGE_MAX: usize = 256;

/// The longest name in a lineage, in bytes: an identifier of PostgreSQL or of a tool built on it.
pub const LINEAGE_NAME_MAX: usize = 255;

/// The identity of one database of one running server.
///
/// A physical copy shares the system identifier and the oid with its original, and the timeline too
/// unless it was promoted. It never shares the postmaster's start time, which changes with every
/// restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `pg_control_system().system_identifier`, without a sign.
    pub system: u64,
    /// `pg_database.oid`.
    pub database: u32,
    /// The timeline that WAL is written to, or replayed from on a standby.
    pub timeline: u32,
    /// `pg_postmaster_start_time()`, in microseconds since 1970.
    pub started: i64,
}

/// The result of comparing two identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sameness {
    /// One database of one running server.
    Same,
    /// One server before and after a restart, or a server and its physical copy.
    SameOrCopy,
    /// Two databases.
    Different,
}

impl Identity {
    /// Compares two identities that may have been read at different times.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Sameness {
        if (self.system, self.database) != (other.system, other.database) {
            Sameness::Different
        } else if self.started == other.started {
            Sameness::Same
        } else if self.timeline == other.timeline {
            Sameness::SameOrCopy
        } else {
            Sameness::Different
        }
    }
}

/// The tool that created a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tool {
    /// PostgreSQL's own `CREATE SUBSCRIPTION`.
    PostgreSql,
    /// The extension pglogical.
    Pglogical,
    /// The extension spock.
    Spock,
}

impl Tool {
    /// The schema in which an extension stores its subscriptions.
    #[must_use]
    pub fn schema(self) -> Option<&'static str> {
        match self {
            Self::PostgreSql => None,
            Self::Pglogical => Some("pglogical"),
            Self::Spock => Some("spock"),
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schema().unwrap_or("PostgreSQL"))
    }
}

/// Which changes a subscription requests from its publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ChangeOrigin {
    /// All, including those that the publisher applied from others.
    #[default]
    Any,
    /// Only those made at the publisher.
    None,
}

/// A subscription in a node's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionSeen {
    /// Its name.
    pub name: String,
    /// The tool that created it.
    pub tool: Tool,
    /// Its slot on the publisher, if any. The database that has a slot of that name is the
    /// publisher.
    pub slot: Option<String>,
    /// Which changes it requests.
    pub origin: ChangeOrigin,
}

/// The node's row in `steep_repl.nodes`: what a coordinator mirrored there last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirroredNode {
    /// The state.
    pub state: NodeState,
    /// Its source.
    pub source: Option<NodeId>,
    /// Its last job.
    pub job: Option<JobId>,
    /// Why it failed or diverged.
    pub error: Option<String>,
}

/// A node that a switchover has made read-only for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritesMoved {
    /// The switchover.
    pub switchover: JobId,
    /// Whether the database's own setting still makes new sessions read-only.
    pub read_only: bool,
    /// The database.
    pub database: String,
}

/// A node's place among others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lineage {
    /// Its database's identity; `None` until it has been read.
    pub identity: Option<Identity>,
    /// Every subscription in the database, ours and others'; at most [`LINEAGE_MAX`].
    pub subscriptions: Vec<SubscriptionSeen>,
    /// Every logical slot of the database; at most [`LINEAGE_MAX`].
    pub slots: Vec<String>,
    /// Publications with our names; at most [`LINEAGE_MAX`].
    pub publications: Vec<JobId>,
    /// Jobs with a row in `steep_repl.jobs`, which own tables; at most [`LINEAGE_MAX`].
    pub jobs: Vec<JobId>,
    /// What a coordinator mirrored to this node last.
    pub mirrored: Option<MirroredNode>,
    /// The coordinator's note of the job in `jobs`, where that is one; at most [`JOB_NOTE_MAX`] bytes.
    #[serde(default)]
    pub note: Option<String>,
    /// Where the node's writes have moved to another one.
    #[serde(default)]
    pub moved: Option<WritesMoved>,
}

impl Lineage {
    /// Whether every list and name is within its limit (G9).
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        let short = |name: &str| name.len() <= LINEAGE_NAME_MAX;
        let lists = [
            self.subscriptions.len(),
            self.slots.len(),
            self.publications.len(),
            self.jobs.len(),
        ];
        let mirrored = self.mirrored.as_ref().and_then(|m| m.error.as_deref());
        let moved = self.moved.as_ref().map(|moved| moved.database.as_str());
        lists.iter().all(|length| *length <= LINEAGE_MAX)
            && self
                .subscriptions
                .iter()
                .all(|s| short(&s.name) && s.slot.as_deref().is_none_or(short))
            && self.slots.iter().all(|slot| short(slot))
            && moved.is_none_or(short)
            && mirrored.is_none_or(|error| error.len() <= MIRRORED_ERROR_MAX)
            && (self.note.as_ref()).is_none_or(|note| note.len() <= JOB_NOTE_MAX)
    }
}

/// The longest mirrored error that is reported, in bytes.
pub const MIRRORED_ERROR_MAX: usize = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGINAL: Identity = Identity {
        system: 7,
        database: 5,
        timeline: 1,
        started: 100,
    };

    #[test]
    fn a_restart_and_a_copy_differ_from_the_original_in_what_they_can_prove() {
        let with = |change: fn(&mut Identity)| {
            let mut other = ORIGINAL;
            change(&mut other);
            ORIGINAL.compare(&other)
        };
        assert_eq!(with(|_| {}), Sameness::Same);
        assert_eq!(with(|i| i.started = 200), Sameness::SameOrCopy);
        assert_eq!(
            with(|i| (i.started, i.timeline) = (200, 2)),
            Sameness::Different
        );
        // A promotion does not restart the postmaster.
        assert_eq!(with(|i| i.timeline = 2), Sameness::Same);
        assert_eq!(with(|i| i.database = 6), Sameness::Different);
        assert_eq!(with(|i| i.system = 8), Sameness::Different);
    }

    #[test]
    fn a_lineage_that_is_too_long_is_seen_as_such() {
        let long = Lineage {
            slots: vec!["s".repeat(LINEAGE_NAME_MAX + 1)],
            ..Lineage::default()
        };
        assert!(Lineage::default().is_bounded() && !long.is_bounded());
    }
}
