//! Finds the smallest set of columns that are out of order.

/// Returns the places outside a longest increasing subsequence, in the given order: moving only
/// these sorts all.
pub(crate) fn moved(places: &[usize]) -> Vec<usize> {
    // Patience sorting: for each length, the run with the lowest end, and each place's predecessor.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; places.len()];
    for (at, place) in places.iter().enumerate() {
        let length = ends.partition_point(|end| places[*end] < *place);
        before[at] = length.checked_sub(1).map(|shorter| ends[shorter]);
        if length == ends.len() {
            ends.push(at);
        } else {
            ends[length] = at;
        }
    }
    let mut keeps = vec![false; places.len()];
    let mut at = ends.last().copied();
    while let Some(kept) = at {
        keeps[kept] = true;
        at = before[kept];
    }
    (0..places.len()).filter(|at| !keeps[*at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_that_moved_is_the_only_one_named() {
        assert_eq!(moved(&[0, 1, 2, 3]), Vec::<usize>::new());
        assert_eq!(moved(&[1, 2, 3, 0]), [3]);
        assert_eq!(moved(&[3, 0, 1, 2]), [0]);
        assert_eq!(moved(&[]), Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn without_the_moved_ones_the_rest_is_in_order(places in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle()) {
            let moved = moved(&places);
            let rest: Vec<_> = (0..places.len()).filter(|at| !moved.contains(at)).map(|at| places[at]).collect();
            prop_assert!(rest.is_sorted());
        }
    }
}
