//! How the parts of one node's replication do, from one observation to the next: slot, publication,
//! subscription, what they carry, columns.
//!
//! In memory only: agents say everything again. What must outlive the coordinator is with the
//! node's record.

use steep_protocol::message::agent::{SlotStatus, SubscriptionStatus};
use steep_protocol::{JobId, Lsn, NodeId};

use super::columns::Differing;
use crate::job::apply_health::{ApplyHealth, ApplyWatch};
use crate::job::membership::Watched;
use crate::job::standing::{self, SUSPICIONS};

/// Why a part of a replication is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) why: String,
    pub(super) lasts: Lasts,
}

/// How long it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// While it is seen.
    WhileSeen,
    /// Until the node is initialised anew.
    ForGood,
}

impl Cause {
    pub(super) fn passing(why: String) -> Self {
        let lasts = Lasts::WhileSeen;
        Self { why, lasts }
    }

    pub(super) fn final_one(why: String) -> Self {
        let lasts = Lasts::ForGood;
        Self { why, lasts }
    }
}

/// What one observation says of a part.
pub(super) type Health = standing::Health<Cause>;

/// A part, from one observation to the next.
pub(super) type Part = standing::Part<Cause>;

/// What is known of one node's following.
#[derive(Debug)]
pub(super) struct Following {
    /// The job that began it: with the next one everything is new.
    pub(super) job: JobId,
    pub(super) slot: Part,
    pub(super) publication: Part,
    pub(super) subscription: Part,
    pub(super) carried: Part,
    pub(super) columns: Part,
    /// Whether somebody can look at both ends.
    pub(super) sight: Part,
    pub(super) apply: ApplyWatch,
    pub(super) parked: Parked,
    pub(super) watched: Watched,
    /// While the digests differ.
    pub(super) differing: Option<Differing>,
}

impl Following {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            slot: Part::default(),
            publication: Part::default(),
            subscription: Part::default(),
            carried: Part::default(),
            columns: Part::default(),
            sight: Part::default(),
            apply: ApplyWatch::default(),
            parked: Parked::default(),
            watched: Watched::default(),
            differing: None,
        }
    }

    pub(super) fn parts(&self) -> [&Part; 6] {
        [
            &self.slot,
            &self.publication,
            &self.subscription,
            &self.carried,
            &self.columns,
            &self.sight,
        ]
    }

    pub(super) fn is_sound(&self) -> bool {
        self.parts().iter().all(|part| part.is_sound())
    }

    pub(super) fn is_decided(&self) -> bool {
        self.parts().iter().all(|part| part.is_decided())
    }
}

/// The slot's position while its subscription is disabled: then nobody but a person moves it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parked {
    /// Who altered the subscription last.
    by: u64,
    /// Looks at the slot since.
    looks: u8,
    at: Option<Lsn>,
}

impl Parked {
    /// Takes what the source's agent says of the slot. Whether somebody has moved it.
    pub(super) fn is_moved(
        &mut self,
        slot: &SlotStatus,
        subscription: &SubscriptionStatus,
    ) -> bool {
        let idle = !subscription.enabled && !subscription.running && !slot.active;
        if !idle || self.by != subscription.altered_by {
            *self = Self {
                by: subscription.altered_by,
                ..Self::default()
            };
            return false;
        }
        // What is said first may have been seen before the subscription was disabled.
        self.looks = self.looks.saturating_add(1);
        if self.looks < SUSPICIONS {
            return false;
        }
        slot.confirmed > *self.at.get_or_insert(slot.confirmed)
    }
}

/// What its apply worker says of a subscription. `trouble` is what is known of its errors, `risks`
/// what preflight warned of.
pub(super) fn health(
    apply: ApplyHealth,
    trouble: Option<&str>,
    risks: &[String],
    node: &NodeId,
) -> Health {
    let mut log = match trouble {
        Some(trouble) => trouble.to_owned(),
        None => format!("the reason is in the log of PostgreSQL on {node}"),
    };
    if !risks.is_empty() {
        log = format!("{log}. Preflight warned: {}", risks.join("; "));
    }
    match apply {
        // Neither broken nor sound.
        ApplyHealth::Unseen | ApplyHealth::Wavering => Health::Unknown,
        ApplyHealth::Well => Health::Good,
        // No count of errors: a reason stays the same while nothing else is the matter.
        ApplyHealth::KeepsFailing { .. } => Health::Bad(Cause::passing(format!(
            "the subscription keeps failing: {log}"
        ))),
        ApplyHealth::Absent => Health::Bad(Cause::passing(format!(
            "the subscription has had no worker for a minute: {log}"
        ))),
    }
}
