//! Two nodes that are merged: what their jobs have in common, and how their sequences are set apart. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use steep_protocol::message::merge::{SequenceApart, SequenceRanges, SequenceState};
use steep_protocol::message::repair::MergeSide;
use steep_protocol::{Fault, FaultKind, TableName};

use super::{Job, Stage, Step};

/// What a job merges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merging {
    /// Which of the two nodes is its target.
    pub side: MergeSide,
    /// How sequences are set apart.
    pub sequences: SequenceRanges,
    /// Rows that were written to its target.
    pub rows_written: u64,
}

impl Job {
    /// The step of a job that merges and is at work.
    #[must_use]
    pub fn merge_step(&self) -> Option<Step> {
        match &self.stage {
            Stage::Working(step) if self.merge.is_some() => Some(*step),
            Stage::Working(_) | Stage::Ending(_) | Stage::Kept(_) | Stage::Closed(_) => None,
        }
    }
}

/// How both nodes' sequences are to be, in the order of the two. Those that only one node has, or that begin anew after
/// their last value, are left as they are.
///
/// Both begin beyond `margin` steps after the last value of either. Whoever sets one looks whether it has passed that
/// meanwhile: then nothing is set, and this is done again with a larger margin.
///
/// # Errors
/// A sequence that has no room for that.
pub fn apart(
    (a, b): (&[SequenceState], &[SequenceState]),
    ranges: SequenceRanges,
    margin: u32,
) -> Result<(Vec<SequenceApart>, Vec<SequenceApart>), Fault> {
    let there: BTreeMap<&TableName, &SequenceState> = b.iter().map(|s| (&s.name, s)).collect();
    let both = a.iter().filter_map(|a| Some((a, *there.get(&a.name)?)));
    let both = both.filter(|(a, b)| !a.cycles && !b.cycles);
    let mut sets = (Vec::new(), Vec::new());
    for (a, b) in both {
        let (of_a, of_b) = pair((a, b), ranges, margin).ok_or_else(|| no_room(&a.name))?;
        sets.0.push(of_a);
        sets.1.push(of_b);
    }
    Ok(sets)
}

fn no_room(name: &TableName) -> Fault {
    let text = format!("sequence {name} has not enough values left to be set apart");
    Fault::new(FaultKind::Failed, text).hint(
        "give it and its column a larger type, or use --sequence-ranges keep and make sure yourself that both nodes never hand out the same value",
    )
}

/// `None` where there is no room, or the two go different ways.
fn pair(
    (a, b): (&SequenceState, &SequenceState),
    ranges: SequenceRanges,
    margin: u32,
) -> Option<(SequenceApart, SequenceApart)> {
    let step = i128::from(a.increment);
    if step == 0 || a.increment.signum() != b.increment.signum() {
        return None;
    }
    // Whichever has the larger steps: the other's values then fit between.
    let step = if i128::from(b.increment).abs() > step.abs() {
        i128::from(b.increment)
    } else {
        step
    };
    let (up, end) = match step > 0 {
        true => (true, i128::from(a.max.min(b.max))),
        false => (false, i128::from(a.min.max(b.min))),
    };
    let last = [a.last, b.last].map(i128::from);
    let last = if up {
        last[0].max(last[1])
    } else {
        last[0].min(last[1])
    };
    let base = last + step * (i128::from(margin) + 1);
    let (second, increment, end_a) = match ranges {
        SequenceRanges::Interleaved => (base + step, step * 2, end),
        SequenceRanges::Apart(values) => {
            let second = base + step * i128::from(values);
            (second, step, second - step.signum())
        }
        SequenceRanges::Keep => return None,
    };
    let fits = |value: i128| if up { value <= end } else { value >= end };
    if !fits(second) || !fits(base) {
        return None;
    }
    let set = |start: i128, end: i128| {
        Some(SequenceApart {
            name: a.name.clone(),
            below: i64::try_from(base).ok()?,
            start: i64::try_from(start).ok()?,
            increment: i64::try_from(increment).ok()?,
            end: i64::try_from(end).ok()?,
        })
    };
    Some((set(base, end_a)?, set(second, end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(last: i64, increment: i64) -> SequenceState {
        SequenceState {
            name: TableName::new("public", "s").unwrap(),
            last,
            increment,
            min: -1_000_000,
            max: 1_000_000,
            cycles: false,
        }
    }

    /// The first values of both.
    fn values(a: &SequenceState, b: &SequenceState, ranges: SequenceRanges) -> [Vec<i64>; 2] {
        let states = (std::slice::from_ref(a), std::slice::from_ref(b));
        let (a, b) = apart(states, ranges, 10).unwrap();
        [a, b].map(|of| {
            let set = &of[0];
            (0..200).map(|n| set.start + n * set.increment).collect()
        })
    }

    #[test]
    fn both_never_hand_out_the_same_value_and_none_that_either_has_handed_out() {
        for (a, b) in [(7, 100), (100, 7), (0, 0)] {
            for (step_a, step_b) in [(1, 1), (10, 1), (-1, -1), (-1, -5), (50, 50)] {
                for ranges in [SequenceRanges::Interleaved, SequenceRanges::Apart(300)] {
                    let (a, b) = (sequence(a, step_a), sequence(b, step_b));
                    let [of_a, of_b] = values(&a, &b, ranges);
                    assert!(
                        of_a.iter().all(|value| !of_b.contains(value)),
                        "{a:?} {b:?}"
                    );
                    let beyond = |value: &i64| match step_a > 0 {
                        true => *value > a.last.max(b.last),
                        false => *value < a.last.min(b.last),
                    };
                    assert!(of_a.iter().chain(&of_b).all(beyond), "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_nodes_range_ends_before_the_seconds() {
        let (a, b) = (sequence(5, 1), sequence(9, 1));
        let sets = apart((&[a], &[b]), SequenceRanges::Apart(100), 10).unwrap();
        assert_eq!(
            (sets.0[0].start, sets.0[0].end, sets.1[0].start),
            (20, 119, 120)
        );
        assert_eq!(sets.0[0].increment, 1);
    }

    #[test]
    fn what_has_no_room_is_named_and_what_cycles_stays() {
        let mut small = sequence(999_995, 1);
        let refused = apart(
            (std::slice::from_ref(&small), std::slice::from_ref(&small)),
            SequenceRanges::Interleaved,
            10,
        );
        assert!(refused.unwrap_err().message.contains("public.s"));
        small.cycles = true;
        let left = apart(
            (&[small], &[sequence(1, 1)]),
            SequenceRanges::Interleaved,
            10,
        )
        .unwrap();
        assert_eq!(left, (Vec::new(), Vec::new()));
    }
}
