//! The health of a node's replication, part by part: slot, publication, subscription, tables, columns,
//! reachability.
//!
//! In memory only, since agents report everything again. What must survive is in the node's record.

use steep_protocol::message::agent::{SlotStatus, SubscriptionStatus};
use steep_protocol::{JobId, Lsn, NodeId};

use super::columns::Differing;
use crate::job::apply_health::{ApplyHealth, ApplyWatch};
use crate::job::membership::Watched;
use crate::job::standing::{self, SUSPICIONS};

/// The beginning of a reason.
const KEEPS_FAILING: &str = "the subscription keeps failing";

/// Why a part of a replication is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) why: String,
    pub(super) lasts: Lasts,
}

/// How long a cause applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// While it is observed.
    WhileSeen,
    /// Until the node is initialised again.
    ForGood,
}

impl Cause {
    pub(super) fn temporary(why: String) -> Self {
        Self {
            why,
            lasts: Lasts::WhileSeen,
        }
    }

    pub(super) fn permanent(why: String) -> Self {
        Self {
            why,
            lasts: Lasts::ForGood,
        }
    }
}

/// A part's health in one observation.
pub(super) type Health = standing::Health<Cause>;

/// A part's health over several observations.
pub(super) type Part = standing::Part<Cause>;

/// The health of one node's replication.
#[derive(Debug)]
pub(super) struct Following {
    /// The replication; another one starts afresh.
    pub(super) job: JobId,
    pub(super) slot: Part,
    pub(super) publication: Part,
    pub(super) subscription: Part,
    pub(super) carried: Part,
    pub(super) columns: Part,
    /// Whether both ends can be reached.
    pub(super) reachability: Part,
    pub(super) apply: ApplyWatch,
    pub(super) parked: Parked,
    pub(super) watched: Watched,
    /// Set while the digests differ.
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
            reachability: Part::default(),
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
            &self.reachability,
        ]
    }

    /// Why the subscription keeps failing, if it does.
    pub(super) fn failing(&self) -> Option<&str> {
        let cause = self.subscription.cause()?;
        cause
            .why
            .starts_with(KEEPS_FAILING)
            .then_some(cause.why.as_str())
    }

    pub(super) fn is_sound(&self) -> bool {
        self.parts().iter().all(|part| part.is_sound())
    }

    pub(super) fn is_decided(&self) -> bool {
        self.parts().iter().all(|part| part.is_decided())
    }
}

/// The slot's position while its subscription is disabled: then only a person can advance it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parked {
    /// [`SubscriptionStatus::altered_by`].
    by: u64,
    /// Observations of the slot since then.
    looks: u8,
    at: Option<Lsn>,
}

impl Parked {
    /// Takes an observation of the slot. Returns whether somebody has moved it.
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
        // The first observations may be older than the disabling.
        self.looks = self.looks.saturating_add(1);
        if self.looks < SUSPICIONS {
            return false;
        }
        slot.confirmed > *self.at.get_or_insert(slot.confirmed)
    }
}

/// A subscription's health from that of its apply worker. `trouble` is the known cause of its errors,
/// `risks` are warnings of the preflight.
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
        ApplyHealth::Unseen | ApplyHealth::Wavering => Health::Unknown,
        ApplyHealth::Well => Health::Good,
        // Without the count of errors, so that the reason stays the same.
        ApplyHealth::KeepsFailing { .. } => {
            Health::Bad(Cause::temporary(format!("{KEEPS_FAILING}: {log}")))
        }
        ApplyHealth::Absent => Health::Bad(Cause::temporary(format!(
            "the subscription has had no worker for a minute: {log}"
        ))),
    }
}
