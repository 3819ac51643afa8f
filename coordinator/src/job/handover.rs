//! Jobs whose rows come from a backup or a stored snapshot: the slot they start from, if they follow, and whether a
//! backup's position fits a slot. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::encryption::Encryption;
use steep_protocol::message::handover::{
    PreparedSlot, PreparedState, Replication, SchemaCheck, SlotFacts, SlotName, Used,
};
use steep_protocol::message::job::JobSpec;
use steep_protocol::message::snapshot::{CarriedTo, SealedSnapshot, StoredPlace};
use steep_protocol::{ByteCount, Fault, FaultKind, Lsn, NodeId, RowCount, SnapshotId, Sum};

use super::{Job, Totals};

/// What a job from a backup starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The publication and slot that were prepared.
    pub replication: Replication,
    /// The backup's consistent point: the rows contain every change before it.
    pub lsn: Lsn,
    /// Whether schemas are compared.
    pub schema: SchemaCheck,
}

/// The stored snapshot that a job is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRows {
    /// Which.
    pub snapshot: SnapshotId,
    /// Who reads it.
    #[serde(default)]
    pub reader: Reader,
    /// Where the reader finds it.
    pub location: String,
    /// The checksum of its manifest.
    pub manifest: Sum,
    /// Its consistent point.
    pub lsn: Lsn,
    /// Whether all its files are looked at before anything is changed.
    pub verify: bool,
    /// How its files are encrypted, if they are.
    #[serde(default)]
    pub encryption: Option<Encryption>,
    /// When it was made.
    #[serde(default)]
    pub made: Option<Timestamp>,
    /// The snapshot that one would expect at the place, if it is another.
    #[serde(default)]
    pub instead_of: Option<Replaced>,
}

/// A snapshot that one would expect where another one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replaced {
    /// It was stored at that place.
    Stored {
        /// Which.
        snapshot: SnapshotId,
        /// When it was made.
        made: Timestamp,
    },
    /// The node was last made from it, at that place.
    Applied {
        /// Which.
        snapshot: SnapshotId,
        /// When it was made.
        made: Option<Timestamp>,
    },
}

/// Whose agent reads a stored snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Reader {
    /// The source's, which serves its parts.
    #[default]
    Source,
    /// The target's: the snapshot was carried there. What its parts add up to was counted when it was made.
    Target(Totals),
}

impl Reader {
    /// The node whose agent that is.
    #[must_use]
    pub fn node(self, spec: &JobSpec) -> &NodeId {
        match self {
            Self::Source => &spec.source,
            Self::Target(_) => &spec.target,
        }
    }
}

impl StoredRows {
    /// The same, read by the agent of a target that it was carried to.
    #[must_use]
    pub fn carried_to(self, to: &CarriedTo, sealed: &SealedSnapshot) -> Self {
        let totals = Totals {
            parts: u32::try_from(sealed.parts).unwrap_or(u32::MAX),
            rows: RowCount(sealed.rows),
            bytes: ByteCount(sealed.bytes),
        };
        Self {
            reader: Reader::Target(totals),
            location: to.location.clone(),
            ..self
        }
    }

    /// The place that the target's agent reads, if it does.
    #[must_use]
    pub fn carried(&self) -> Option<StoredPlace> {
        let place = self.place();
        matches!(self.reader, Reader::Target(_)).then_some(place)
    }

    /// The place, for whoever reads it.
    #[must_use]
    pub fn place(&self) -> StoredPlace {
        StoredPlace {
            snapshot: self.snapshot,
            location: self.location.clone(),
            manifest: self.manifest,
            verify: self.verify,
        }
    }

    /// The snapshot's template as a slot to start from, for the preflight.
    #[must_use]
    pub fn template(&self) -> Handover {
        Handover {
            replication: Replication::template(self.snapshot),
            lsn: self.lsn,
            schema: SchemaCheck::Compared,
        }
    }
}

impl Job {
    /// Whether its target follows its source in the end.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.spec.method.follows()
    }

    /// The slot that there was before it and that it starts from: a prepared one, or a snapshot's template.
    #[must_use]
    pub fn starts_from(&self) -> Option<Handover> {
        let stored = self.stored.as_ref().filter(|_| self.follows());
        let template = || stored.map(StoredRows::template);
        self.handover.clone().or_else(template)
    }

    /// The publication, slot and subscription that replicate its changes. Of a job that does not follow there are
    /// none of that name, and others' are not touched.
    #[must_use]
    pub fn replication(&self) -> Replication {
        match (&self.handover, self.snapshot().filter(|_| self.follows())) {
            (Some(handover), _) => handover.replication.clone(),
            (None, Some(snapshot)) => Replication::of_snapshot(snapshot, self.id),
            (None, None) => Replication::of(self.id.of_epoch(self.epoch)),
        }
    }
}

/// What happens to the prepared slot when its job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SlotFate {
    /// It is returned to the operator, for another try with the same backup.
    #[default]
    Returned,
    /// It is returned for a newer backup: changes may have been applied from it.
    ReturnedUsed,
    /// It is dropped with everything else: the job had succeeded and owned the slot.
    Removed,
}

impl SlotFate {
    /// Whether a returned slot was used; `None` if it is not returned.
    #[must_use]
    pub fn returned(self) -> Option<Used> {
        match self {
            Self::Returned => Some(Used::No),
            Self::ReturnedUsed => Some(Used::Perhaps),
            Self::Removed => None,
        }
    }
}

/// How a backup's position relates to a slot and its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The slot has every change after it.
    Fits,
    /// The slot starts later, here: changes between the backup and this position are lost.
    BeforeSlot(Lsn),
    /// The source's WAL ends before it, here.
    AfterEnd(Lsn),
}

/// Compares a backup's position with a slot.
#[must_use]
pub fn position(lsn: Lsn, facts: &SlotFacts) -> Position {
    let noted = facts.noted.as_ref().map(|noted| noted.lsn);
    let slot = facts.slot.as_ref();
    let restart = slot.and_then(|slot| slot.restart);
    let confirmed = slot.and_then(|slot| slot.confirmed);
    let begins = noted.max(restart).max(confirmed).unwrap_or_default();
    if lsn < begins {
        return Position::BeforeSlot(begins);
    }
    if lsn > facts.wal_end {
        return Position::AfterEnd(facts.wal_end);
    }
    Position::Fits
}

/// The slot to start from: the named one, or the only one waiting.
///
/// # Errors
/// A [`Fault`] that lists the prepared slots.
pub fn choose<'a>(
    prepared: &'a [PreparedSlot],
    wanted: Option<&SlotName>,
    source: &NodeId,
) -> Result<&'a PreparedSlot, Fault> {
    let bad = |text: String| Fault::new(FaultKind::BadRequest, text).on(source);
    let waits = |slot: &&PreparedSlot| slot.state == PreparedState::Waiting;
    let waiting: Vec<&PreparedSlot> = prepared.iter().filter(waits).collect();
    let Some(wanted) = wanted else {
        return match waiting.as_slice() {
            [only] => Ok(only),
            [] => Err(bad(format!("no prepared slot waits on {source}")).hint(listed(prepared))),
            _ => Err(
                bad(format!("{} prepared slots wait on {source}", waiting.len()))
                    .hint(format!("name one with --slot; {}", listed(prepared))),
            ),
        };
    };
    let slot = prepared
        .iter()
        .find(|p| p.replication.slot == *wanted && p.state != PreparedState::Expired);
    slot.ok_or_else(|| {
        bad(format!(
            "no slot {wanted} is prepared on {source}; one that has expired is dropped"
        ))
        .hint(listed(prepared))
    })
}

/// A hint that lists the prepared slots.
fn listed(prepared: &[PreparedSlot]) -> String {
    if prepared.is_empty() {
        return "prepare one with steep-repl init prepare, and take the backup after that"
            .to_owned();
    }
    let described = prepared.iter().map(|slot| {
        let name = &slot.replication.slot;
        match &slot.state {
            PreparedState::Waiting => {
                format!("{name} (from {}, until {:.0})", slot.lsn, slot.expires_at)
            }
            PreparedState::Taken(by) => format!("{name} (used by {by})"),
            PreparedState::Expired => format!("{name} (expired {:.0})", slot.expires_at),
            PreparedState::Lost(why) => format!("{name} (lost: {why})"),
        }
    });
    format!(
        "prepared slots: {}",
        described.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::handover::{NotedSlot, ServerSlot};
    use steep_protocol::{ByteCount, JobId};

    use super::*;

    fn slot(name: &str, state: PreparedState) -> PreparedSlot {
        PreparedSlot {
            replication: Replication {
                id: JobId(1),
                slot: SlotName::parse(name).unwrap(),
            },
            lsn: Lsn(100),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            wal_held: ByteCount(0),
            wal_limit: None,
            state,
        }
    }

    fn chosen(prepared: &[PreparedSlot], wanted: Option<&str>) -> Result<String, String> {
        let wanted = wanted.map(|name| SlotName::parse(name).unwrap());
        let source = NodeId::parse("a").unwrap();
        choose(prepared, wanted.as_ref(), &source)
            .map(|slot| slot.replication.slot.to_string())
            .map_err(|fault| format!("{}: {}", fault.message, fault.hint))
    }

    #[test]
    fn without_a_name_only_one_slot_may_wait() {
        let taken = || slot("old", PreparedState::Taken(NodeId::parse("c").unwrap()));
        let waiting = |name| slot(name, PreparedState::Waiting);
        assert_eq!(chosen(&[taken(), waiting("x")], None), Ok("x".to_owned()));
        let two = chosen(&[waiting("x"), waiting("y")], None).unwrap_err();
        assert!(two.contains("2 prepared slots") && two.contains("x (") && two.contains("y ("));
        let none = chosen(&[taken()], None).unwrap_err();
        assert!(none.contains("no prepared slot waits") && none.contains("old (used by c)"));
        assert!(chosen(&[], None).unwrap_err().contains("init prepare"));
    }

    #[test]
    fn a_name_is_taken_whatever_became_of_the_slot_and_preflight_says_more() {
        let lost = slot("x", PreparedState::Lost("gone".to_owned()));
        assert_eq!(chosen(&[lost], Some("x")), Ok("x".to_owned()));
        let expired = chosen(&[slot("x", PreparedState::Expired)], Some("x")).unwrap_err();
        assert!(expired.contains("expired is dropped"), "{expired}");
        let other = slot("x", PreparedState::Waiting);
        let missing = chosen(&[other], Some("y")).unwrap_err();
        assert!(missing.contains("no slot y") && missing.contains("x (from"));
    }

    #[test]
    fn a_position_fits_between_where_the_slot_begins_and_where_the_source_ends() {
        let facts = |noted: u64, confirmed: u64, end: u64| SlotFacts {
            noted: Some(NotedSlot {
                lsn: Lsn(noted),
                expires_at: Timestamp::MAX,
                expired: false,
                target: None,
            }),
            slot: Some(ServerSlot {
                plugin: Some("pgoutput".to_owned()),
                own_database: true,
                active: false,
                wal_status: "reserved".to_owned(),
                invalidated: None,
                restart: Some(Lsn(90)),
                confirmed: Some(Lsn(confirmed)),
            }),
            wal_end: Lsn(end),
            published: true,
            ..SlotFacts::default()
        };
        let at = |lsn, facts: &SlotFacts| position(Lsn(lsn), facts);
        let fresh = facts(100, 100, 200);
        assert_eq!(at(100, &fresh), Position::Fits);
        assert_eq!(at(200, &fresh), Position::Fits);
        assert_eq!(at(99, &fresh), Position::BeforeSlot(Lsn(100)));
        assert_eq!(at(201, &fresh), Position::AfterEnd(Lsn(200)));
        // Somebody read from it, or an earlier job had begun to apply changes.
        assert_eq!(
            at(140, &facts(100, 150, 200)),
            Position::BeforeSlot(Lsn(150))
        );
        assert_eq!(
            at(140, &facts(160, 150, 200)),
            Position::BeforeSlot(Lsn(160))
        );
    }
}
