//! How the parts of one node's replication fare, from one observation to the next: slot, publication,
//! subscription, what they carry, columns.
//!
//! Pure, and in memory only: agents say everything again. What must outlive the coordinator is with the
//! node's record.

use steep_protocol::message::agent::{SlotStatus, SubscriptionStatus};
use steep_protocol::{JobId, Lsn, NodeId};

use super::columns::Differing;
use crate::job::applying::{Applying, Fares};
use crate::job::membership::Watched;

/// Observations in a row that must miss a slot or subscription: one may have been made while
/// PostgreSQL was just starting.
const SUSPICIONS: u8 = 3;

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

/// What is the case with one part of a replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    Good,
    /// Nothing can be said at this moment.
    Unknown,
    /// It may be a passing state; counted.
    Suspect(Cause),
    Bad(Cause),
}

/// Where a part stands, from one observation to the next. Bad until it is seen to be good.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    suspicions: u8,
    standing: Standing,
}

#[derive(Debug, Clone, Default)]
enum Standing {
    #[default]
    Undecided,
    Sound,
    Bad(Cause),
}

impl Part {
    /// Takes what is the case. Only its own observer's word is `News`: the other one says nothing new
    /// of it, and would be counted twice.
    pub(super) fn take(&mut self, health: Health, word: Word) {
        match health {
            Health::Good => {
                self.suspicions = 0;
                self.standing = Standing::Sound;
            }
            Health::Bad(cause) => self.standing = Standing::Bad(cause),
            Health::Suspect(cause) => {
                if word == Word::News {
                    self.suspicions = self.suspicions.saturating_add(1);
                }
                if self.suspicions >= SUSPICIONS {
                    self.standing = Standing::Bad(cause);
                } else {
                    self.doubt();
                }
            }
            Health::Unknown => self.doubt(),
        }
    }

    fn doubt(&mut self) {
        if let Standing::Sound = self.standing {
            self.standing = Standing::Undecided;
        }
    }

    pub(super) fn cause(&self) -> Option<&Cause> {
        match &self.standing {
            Standing::Bad(cause) => Some(cause),
            Standing::Undecided | Standing::Sound => None,
        }
    }
}

/// Whose word an observation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    News,
    Known,
}

impl Word {
    pub(super) fn of(observer: &NodeId, own: &NodeId) -> Self {
        if observer == own {
            Self::News
        } else {
            Self::Known
        }
    }
}

/// How one node's following fares.
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
    pub(super) applying: Applying,
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
            applying: Applying::default(),
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
        let parts = self.parts();
        let mut parts = parts.iter();
        parts.all(|part| matches!(part.standing, Standing::Sound))
    }

    pub(super) fn is_decided(&self) -> bool {
        let parts = self.parts();
        let mut parts = parts.iter();
        !parts.any(|part| matches!(part.standing, Standing::Undecided))
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

/// What a worker that fares so says of its subscription. `trouble` is what is known of its errors, `risks`
/// what preflight warned of.
pub(super) fn health(
    fares: Fares,
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
    match fares {
        // Neither broken nor sound.
        Fares::Unseen | Fares::Wavering => Health::Unknown,
        Fares::Well => Health::Good,
        // No count of errors: a reason stays the same while nothing else is the matter.
        Fares::KeepsFailing { .. } => Health::Bad(Cause::passing(format!(
            "the subscription keeps failing: {log}"
        ))),
        Fares::Absent => Health::Bad(Cause::passing(format!(
            "the subscription has had no worker for a minute: {log}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_missed_is_bad_only_when_its_own_observer_says_so_often_enough() {
        let mut part = Part::default();
        let missed = || Health::Suspect(Cause::passing("gone".to_owned()));
        part.take(Health::Good, Word::News);
        for _ in 0..SUSPICIONS - 1 {
            part.take(missed(), Word::News);
            part.take(missed(), Word::Known);
            assert_eq!(part.cause(), None);
        }
        part.take(missed(), Word::News);
        assert!(part.cause().is_some());
        part.take(Health::Unknown, Word::News);
        assert!(part.cause().is_some(), "bad until it is seen to be good");
        part.take(Health::Good, Word::Known);
        assert_eq!(part.cause(), None);
    }
}
