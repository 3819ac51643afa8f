//! Which database a node is, whose changes it applies, and what of ours is in it.
//!
//! Each agent reports its own node's lineage; the coordinator puts them together into the graph of who
//! follows whom (`coordinator/src/job/lineage`), whichever tool made the subscriptions.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::{JobId, NodeId, NodeState};

/// Subscriptions, slots, publications and books listed of one database; a server has a fixed number
/// of slots and workers, far below this.
pub const LINEAGE_MAX: usize = 256;

/// The longest name in a lineage, in bytes: an identifier of PostgreSQL, or of a tool built on it.
pub const LINEAGE_NAME_MAX: usize = 255;

/// One database of one running server.
///
/// A physical copy has the system identifier and the oid in common with its original, and the timeline
/// too unless it was promoted. What it never shares is the moment its postmaster started, which in turn
/// changes with every restart.
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

/// What two identities say about their databases.
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

/// What made a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tool {
    /// PostgreSQL itself, told by us or by anybody.
    PostgreSql,
    /// The extension pglogical.
    Pglogical,
    /// The extension spock.
    Spock,
}

impl Tool {
    /// The schema in which an extension keeps its subscriptions.
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

/// Which changes a subscription takes from its publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ChangeOrigin {
    /// All, those included that the publisher applied from others.
    #[default]
    Any,
    /// Only those that were made at the publisher.
    None,
}

/// A subscription in a node's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionSeen {
    /// Its name.
    pub name: String,
    /// What made it.
    pub tool: Tool,
    /// The slot on its publisher, where it has one. It tells who the publisher is: the database that
    /// has a slot of that name.
    pub slot: Option<String>,
    /// Which changes it takes.
    pub origin: ChangeOrigin,
}

/// What `steep_repl.nodes` says of the node: what a coordinator mirrored there last.
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

/// What an agent knows about its node's place among others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lineage {
    /// Which database it is; `None` until it could be asked.
    pub identity: Option<Identity>,
    /// Every subscription in the database, ours and others'; at most [`LINEAGE_MAX`].
    pub subscriptions: Vec<SubscriptionSeen>,
    /// Every logical slot of the database; at most [`LINEAGE_MAX`].
    pub slots: Vec<String>,
    /// Publications named like ours; at most [`LINEAGE_MAX`].
    pub publications: Vec<JobId>,
    /// Jobs with a book in `steep_repl.jobs`, so with tables that are theirs; at most [`LINEAGE_MAX`].
    pub books: Vec<JobId>,
    /// What a coordinator mirrored to this node last.
    pub mirrored: Option<MirroredNode>,
}

impl Lineage {
    /// Whether every list and name is as short as an agent may send it (G9).
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        let short = |name: &str| name.len() <= LINEAGE_NAME_MAX;
        let lists = [
            self.subscriptions.len(),
            self.slots.len(),
            self.publications.len(),
            self.books.len(),
        ];
        let mirrored = self.mirrored.as_ref().and_then(|m| m.error.as_deref());
        lists.iter().all(|length| *length <= LINEAGE_MAX)
            && self
                .subscriptions
                .iter()
                .all(|s| short(&s.name) && s.slot.as_deref().is_none_or(short))
            && self.slots.iter().all(|slot| short(slot))
            && mirrored.is_none_or(|error| error.len() <= MIRRORED_ERROR_MAX)
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
        // A promotion does not start the postmaster again.
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
