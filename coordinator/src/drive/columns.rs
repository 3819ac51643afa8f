//! Decides whether differences between a node's columns and its source's are drift.
//!
//! Pure. Digests that differ only show that something does, and may be of different moments; a
//! comparison names the differences. A single comparison is not enough: a change made on one end and
//! then on the other is a difference in between, and a digest can be older than what was compared. So
//! a difference is drift if a second comparison, after the grace time, still finds it. Likewise,
//! unequal digests are harmless if a second comparison, with the same digests, finds only accepted
//! differences. After that, nothing is compared until a digest changes.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::job::SchemaMode;
use steep_protocol::message::schema::{Change, SchemaDifference, SchemaReview, Subject};

use crate::job::time::after;
use crate::store::Accepted;

/// When a comparison that failed, or found no difference, is repeated.
const AGAIN: Duration = Duration::from_secs(60);

/// The longest pause between comparisons that find nothing. Each reads two whole catalogs.
const AGAIN_MAX: Duration = Duration::from_secs(3_600);

/// Digests over the replicated columns of both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) source: String,
    pub(super) node: String,
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// No difference: one digest is older than the other.
    Nothing,
    /// Only accepted differences.
    Accepted,
    /// These differences that are not accepted, and the number of further ones.
    Objected(Vec<SchemaDifference>, u64),
}

/// What the unequal digests mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Only accepted differences.
    Accepted,
    /// These differences, and the number of further ones.
    Drifted(Vec<SchemaDifference>, u64),
}

/// A node whose digest differs from its source's.
#[derive(Debug)]
pub(super) struct Differing {
    digests: Digests,
    stage: Stage,
    /// Differences that every comparison found, and since when.
    lasting: Option<(Vec<SchemaDifference>, Timestamp)>,
    /// Since when comparisons with these digests find only accepted differences.
    harmless: Option<Timestamp>,
    pause: Duration,
}

#[derive(Debug)]
enum Stage {
    Due(Timestamp),
    /// A comparison is running; if it fails, the next one is due at `again`.
    Asked {
        of: Digests,
        again: Timestamp,
    },
    /// Until a digest changes, or until that time, for differences that can end without it.
    Judged(Judgement, Option<Timestamp>),
}

impl Differing {
    /// A first observation of unequal digests; a comparison is due.
    pub(super) fn new(digests: Digests, now: Timestamp) -> Self {
        Self {
            digests,
            stage: Stage::Due(now),
            lasting: None,
            harmless: None,
            pause: AGAIN,
        }
    }

    /// Takes an observation of the digests.
    pub(super) fn observe(&mut self, digests: Digests, now: Timestamp) {
        if self.digests == digests {
            return;
        }
        self.digests = digests;
        self.harmless = None;
        self.pause = AGAIN;
        // A running comparison must end first.
        if !matches!(self.stage, Stage::Asked { .. }) {
            self.stage = Stage::Due(now);
        }
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        match &self.stage {
            Stage::Due(at) => *at <= now,
            Stage::Asked { again, .. } => *again <= now,
            Stage::Judged(_, again) => again.is_some_and(|at| at <= now),
        }
    }

    /// Notes that a comparison was started.
    pub(super) fn asked(&mut self, now: Timestamp) {
        self.stage = Stage::Asked {
            of: self.digests.clone(),
            again: after(now, AGAIN),
        };
    }

    /// What the current digests mean, once that is decided.
    pub(super) fn judgement(&self) -> Option<&Judgement> {
        match &self.stage {
            Stage::Judged(judgement, _) => Some(judgement),
            Stage::Due(_) | Stage::Asked { .. } => None,
        }
    }

    /// Takes the result of the running comparison.
    pub(super) fn compared(&mut self, found: Found, now: Timestamp, grace: Duration) {
        let Stage::Asked { of, .. } = &self.stage else {
            return;
        };
        let current = *of == self.digests;
        self.stage = match found {
            Found::Objected(differences, unlisted) => {
                self.harmless = None;
                let confirmed = self.note_lasting(&differences, now, grace);
                if confirmed > now {
                    Stage::Due(confirmed)
                } else if current {
                    // A table created on the node changes no digest until it is subscribed to.
                    let missing = |d: &SchemaDifference| {
                        d.subject == Subject::Table && d.change == Change::Missing
                    };
                    let again = differences
                        .iter()
                        .any(missing)
                        .then(|| self.next_repeat(now));
                    Stage::Judged(Judgement::Drifted(differences, unlisted), again)
                } else {
                    Stage::Due(now)
                }
            }
            Found::Nothing | Found::Accepted => {
                self.lasting = None;
                let confirmed = after(*self.harmless.get_or_insert(now), grace);
                if !current {
                    self.harmless = None;
                    Stage::Due(now)
                } else if confirmed > now {
                    Stage::Due(confirmed)
                } else if found == Found::Accepted {
                    Stage::Judged(Judgement::Accepted, None)
                } else {
                    // One digest stays old, perhaps because its agent cannot read the tables.
                    Stage::Due(self.next_repeat(now))
                }
            }
        };
    }

    /// The time of the next repetition; each pause is twice the one before.
    fn next_repeat(&mut self, now: Timestamp) -> Timestamp {
        let next = after(now, self.pause);
        self.pause = (self.pause * 2).min(AGAIN_MAX);
        next
    }

    /// Notes which differences last; returns when they are drift.
    fn note_lasting(
        &mut self,
        found: &[SchemaDifference],
        now: Timestamp,
        grace: Duration,
    ) -> Timestamp {
        let (before, since) = self.lasting.take().unwrap_or((Vec::new(), now));
        let still: Vec<_> = before.into_iter().filter(|d| found.contains(d)).collect();
        let (lasting, since) = if still.is_empty() && !found.is_empty() {
            (found.to_vec(), now)
        } else {
            (still, since)
        };
        self.lasting = Some((lasting, since));
        after(since, grace)
    }
}

/// The differences in the first comparison after a job that its schema mode allows. Every mode allows
/// another order of columns, since columns are replicated by name and a created schema has those of an
/// inheritance parent first. Manual allows everything, since the operator confirmed it.
pub(super) fn first_seen(review: &SchemaReview, mode: SchemaMode) -> Accepted {
    let allowed = |d: &&SchemaDifference| match mode {
        SchemaMode::Strict | SchemaMode::Auto => d.change == Change::Order,
        SchemaMode::Manual => true,
    };
    Accepted {
        differences: review.differences.iter().filter(allowed).cloned().collect(),
        unlisted: unlisted(review),
    }
}

/// The differences of a review that are not accepted.
pub(super) fn weigh(review: &SchemaReview, accepted: Option<&Accepted>) -> Found {
    if review.differences_total == 0 {
        return Found::Nothing;
    }
    let covered =
        |d: &SchemaDifference| accepted.is_some_and(|a| a.differences.iter().any(|a| same(a, d)));
    let left: Vec<_> = review
        .differences
        .iter()
        .filter(|d| !covered(d))
        .cloned()
        .collect();
    let unlisted = unlisted(review).saturating_sub(accepted.map_or(0, |a| a.unlisted));
    if left.is_empty() && unlisted == 0 {
        Found::Accepted
    } else {
        Found::Objected(left, unlisted)
    }
}

/// The accepted differences that are still there.
pub(super) fn still(accepted: Accepted, review: &SchemaReview) -> Accepted {
    let found = |known: &SchemaDifference| review.differences.iter().any(|d| same(known, d));
    Accepted {
        differences: accepted.differences.into_iter().filter(found).collect(),
        unlisted: accepted.unlisted.min(unlisted(review)),
    }
}

fn unlisted(review: &SchemaReview) -> u64 {
    let listed = review.differences.len() as u64;
    review.differences_total.saturating_sub(listed)
}

/// Whether they are the same difference. An order of columns is accepted for the whole table, since
/// each place changes with every other column.
fn same(accepted: &SchemaDifference, found: &SchemaDifference) -> bool {
    if accepted.change == Change::Order {
        return found.change == Change::Order && found.table == accepted.table;
    }
    accepted == found
}

#[cfg(test)]
mod tests {
    use steep_protocol::TableName;

    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn digests(source: &str) -> Digests {
        Digests {
            source: source.to_owned(),
            node: "node".to_owned(),
        }
    }

    fn difference(name: &str, change: Change, local: &str) -> SchemaDifference {
        SchemaDifference {
            table: Some(TableName::new("app", "t").unwrap()),
            subject: Subject::Column,
            name: Some(name.to_owned()),
            change,
            local: local.to_owned(),
            remote: String::new(),
        }
    }

    fn review(differences: &[SchemaDifference]) -> SchemaReview {
        SchemaReview {
            differences: differences.to_vec(),
            differences_total: differences.len() as u64,
            ..SchemaReview::default()
        }
    }

    fn objected(names: &[&str]) -> Found {
        let all = names
            .iter()
            .map(|n| difference(n, Change::Missing, "integer"));
        Found::Objected(all.collect(), 0)
    }

    fn compared(differing: &mut Differing, seconds: i64, found: Found) {
        assert!(differing.is_due(at(seconds)));
        differing.asked(at(seconds));
        differing.compared(found, at(seconds), GRACE);
    }

    #[test]
    fn a_difference_is_drift_when_it_lasts_though_others_come_and_go() {
        let mut differing = Differing::new(digests("1"), at(0));
        compared(&mut differing, 0, objected(&["a", "b"]));
        assert_eq!(differing.judgement(), None);
        assert!(!differing.is_due(at(59)));
        differing.observe(digests("2"), at(30));
        compared(&mut differing, 30, objected(&["b", "c"]));
        compared(&mut differing, 60, objected(&["b", "c"]));
        let Some(Judgement::Drifted(all, 0)) = differing.judgement() else {
            panic!("{differing:?}");
        };
        assert_eq!(all.len(), 2);
        assert!(!differing.is_due(at(100_000)), "nothing new to compare");
    }

    #[test]
    fn a_table_that_is_missing_is_looked_for_again_though_no_digest_changes() {
        let mut gone = difference("", Change::Missing, "(id integer)");
        gone.subject = Subject::Table;
        let found = || Found::Objected(vec![gone.clone()], 0);
        let mut differing = Differing::new(digests("1"), at(0));
        compared(&mut differing, 0, found());
        compared(&mut differing, 60, found());
        assert!(differing.judgement().is_some());
        compared(&mut differing, 120, found());
        assert!(differing.judgement().is_some());
        assert!(!differing.is_due(at(200)), "ever less often");
    }

    #[test]
    fn a_change_on_both_ends_one_after_the_other_is_none() {
        let mut differing = Differing::new(digests("1"), at(0));
        compared(&mut differing, 0, objected(&["a"]));
        differing.observe(digests("2"), at(50));
        compared(&mut differing, 50, objected(&["b"]));
        assert!(!differing.is_due(at(60)), "b is not there for long");
        compared(&mut differing, 110, objected(&["c"]));
        assert_eq!(differing.judgement(), None);
    }

    #[test]
    fn accepted_differences_are_believed_of_digests_that_stay() {
        let mut differing = Differing::new(digests("1"), at(0));
        compared(&mut differing, 0, Found::Accepted);
        differing.observe(digests("2"), at(40));
        compared(&mut differing, 40, Found::Accepted);
        assert!(!differing.is_due(at(60)));
        compared(&mut differing, 100, Found::Accepted);
        assert_eq!(differing.judgement(), Some(&Judgement::Accepted));
        assert!(!differing.is_due(at(100_000)));
    }

    #[test]
    fn digests_that_differ_for_no_reason_are_compared_ever_less_often() {
        let mut differing = Differing::new(digests("1"), at(0));
        let mut now = 0;
        let mut times = 0;
        while now < 24 * 3_600 {
            if differing.is_due(at(now)) {
                compared(&mut differing, now, Found::Nothing);
                times += 1;
            }
            now += 1;
        }
        assert!((20..40).contains(&times), "{times} times a day");
        assert_eq!(differing.judgement(), None);
    }

    #[test]
    fn a_comparison_without_an_end_is_begun_again() {
        let mut differing = Differing::new(digests("1"), at(0));
        differing.asked(at(0));
        assert!(!differing.is_due(at(59)));
        assert!(differing.is_due(at(60)));
    }

    #[test]
    fn what_was_accepted_is_subtracted_and_nothing_else() {
        let order = |place: &str| difference("a", Change::Order, place);
        let seen = review(&[difference("c", Change::Missing, "integer"), order("3 of 5")]);
        let accepted = first_seen(&seen, SchemaMode::Manual);
        assert_eq!(weigh(&seen, Some(&accepted)), Found::Accepted);
        assert_eq!(weigh(&review(&[]), Some(&accepted)), Found::Nothing);
        let later = review(&[difference("c", Change::Missing, "integer"), order("3 of 6")]);
        assert_eq!(weigh(&later, Some(&accepted)), Found::Accepted);
        for other in [
            difference("c", Change::Missing, "bigint"),
            difference("d", Change::Missing, "integer"),
            difference("c", Change::Extra, "integer"),
        ] {
            let left = Found::Objected(vec![other.clone()], 0);
            assert_eq!(weigh(&review(&[order("1"), other]), Some(&accepted)), left);
        }
        for mode in [SchemaMode::Auto, SchemaMode::Strict] {
            assert_eq!(first_seen(&seen, mode).differences, [order("3 of 5")]);
        }
    }

    #[test]
    fn differences_that_are_only_counted_count() {
        let mut many = review(&[difference("c", Change::Missing, "integer")]);
        many.differences_total = 300;
        let accepted = first_seen(&many, SchemaMode::Manual);
        assert_eq!(weigh(&many, Some(&accepted)), Found::Accepted);
        many.differences_total = 301;
        assert_eq!(
            weigh(&many, Some(&accepted)),
            Found::Objected(Vec::new(), 1)
        );
    }
}
