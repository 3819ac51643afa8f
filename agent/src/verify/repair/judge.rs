//! Whether a row may be written. Pure.

use steep_protocol::message::repair::{FetchedRow, Horizon, RowChange, SeenRow};

/// What is to be done about a row, by what both sides have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// What the plan says.
    Write,
    /// Nothing: the replica has the source's row.
    Equal,
    /// Nothing: one of the rows is not what the plan saw.
    Changed,
    /// It was not read, because it is long.
    TooLong,
}

/// Compares a row with the plan.
pub(super) fn first_look(
    planned: RowChange,
    source: Option<&FetchedRow>,
    target: Option<&SeenRow>,
) -> Look {
    let there = source.map(|row| row.seen.digest);
    let here = target.map(|row| row.digest);
    if there == here {
        Look::Equal
    } else if RowChange::between(there, here) != Some(planned) {
        Look::Changed
    } else if source.is_some_and(|row| row.values.is_none()) {
        Look::TooLong
    } else {
        Look::Write
    }
}

/// Whether there is the same version of a row as before, or none as before.
pub(super) fn is_same(before: Option<&SeenRow>, now: Option<&SeenRow>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => before.version.is(&now.version),
        _ => false,
    }
}

/// Whether nobody has changed the row on the source since it was read, or is at it.
pub(super) fn is_unchanged(
    (before, read): (Option<&SeenRow>, Horizon),
    (now, at): (Option<&SeenRow>, Horizon),
) -> bool {
    let free = match (before, now) {
        (Some(before), Some(now)) => is_free((before, read), (now, at)),
        _ => true,
    };
    free && is_same(before, now)
}

/// Whether no transaction that has changed the row is still going on. The mark is the same as at the first look, so
/// whoever made it had begun before `read` was taken, and all these transactions are over. `xmax` may also be that of
/// somebody who only locks the row, or several of them, and it stays when they are gone.
fn is_free((before, read): (&SeenRow, Horizon), (now, at): (&SeenRow, Horizon)) -> bool {
    now.version.xmax == 0 || (now.version.xmax == before.version.xmax && at.oldest >= read.next)
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::repair::RowVersion;
    use steep_protocol::message::verify::RowDigest;

    use super::*;

    fn seen(digest: u128, xmin: u32, xmax: u32) -> SeenRow {
        SeenRow {
            version: RowVersion {
                place: format!("16384 (0,{xmin})"),
                xmin,
                xmax,
            },
            digest: RowDigest(digest),
        }
    }

    fn fetched(digest: u128, values: Option<Vec<Option<String>>>) -> FetchedRow {
        FetchedRow {
            seen: seen(digest, 1, 0),
            values,
        }
    }

    #[test]
    fn only_what_the_plan_saw_is_written() {
        let [one, two] = [1, 2].map(RowDigest);
        let plan = |a, b| RowChange::between(a, b).unwrap();
        let short = || Some(fetched(1, Some(Vec::new())));
        let there = |digest| Some(seen(digest, 1, 0));
        let cases = [
            (plan(Some(one), Some(two)), short(), there(2), Look::Write),
            (plan(Some(one), Some(two)), short(), there(1), Look::Equal),
            (plan(Some(one), Some(two)), short(), there(3), Look::Changed),
            (plan(Some(two), Some(one)), short(), there(3), Look::Changed),
            (plan(Some(one), Some(two)), short(), None, Look::Changed),
            (plan(Some(one), Some(two)), None, there(2), Look::Changed),
            (plan(Some(one), None), short(), None, Look::Write),
            (plan(Some(one), None), short(), there(2), Look::Changed),
            (plan(Some(one), None), None, None, Look::Equal),
            (plan(None, Some(two)), None, there(2), Look::Write),
            (plan(None, Some(two)), None, None, Look::Equal),
            (plan(None, Some(two)), short(), there(2), Look::Changed),
        ];
        for (planned, source, target, expected) in cases {
            let look = first_look(planned, source.as_ref(), target.as_ref());
            assert_eq!(look, expected, "{planned:?} {source:?} {target:?}");
        }
        let long = fetched(1, None);
        let look = first_look(plan(Some(one), None), Some(&long), None);
        assert_eq!(look, Look::TooLong);
    }

    #[test]
    fn a_row_that_somebody_is_at_is_not_unchanged() {
        let horizon = |oldest, next| Horizon { oldest, next };
        let (read, later) = (horizon(90, 100), horizon(100, 120));
        let long = horizon(95, 120);
        let unchanged = |before: &SeenRow, now: &SeenRow, at| {
            is_unchanged((Some(before), read), (Some(now), at))
        };
        let quiet = seen(1, 5, 0);
        assert!(unchanged(&quiet, &quiet, later) && unchanged(&quiet, &quiet, long));
        // Another version, also one with the same content.
        assert!(!unchanged(&quiet, &seen(1, 6, 0), later));
        // Marked since, or marked before by somebody who may still be at it.
        let marked = seen(1, 5, 99);
        assert!(!unchanged(&quiet, &marked, later));
        assert!(!unchanged(&marked, &marked, long));
        assert!(unchanged(&marked, &marked, later));
        // Inserted, and deleted.
        assert!(!is_unchanged((None, read), (Some(&quiet), later)));
        assert!(!is_unchanged((Some(&quiet), read), (None, later)));
        assert!(is_unchanged((None, read), (None, later)));
    }
}
