//! Sums of row digests by bucket, and which buckets differ. Pure.
//!
//! Digests are summed, not combined by XOR: rows that are there twice do not cancel. Two different sets of
//! rows have the same count and the same two sums with a probability of about 2⁻¹²⁸, whoever has chosen them: the
//! seeds of the hashes are drawn later ([`Seeds`](steep_protocol::message::verify::Seeds)).

use steep_protocol::limits::VERIFY_BITS_MAX;
use steep_protocol::message::verify::{BucketSum, Sieve, SieveLevel};

/// Rows in a bucket, on average: few enough that a row that differs does not make many others be read.
const ROWS_PER_BUCKET: u64 = 64;

/// The bits of a bucket's number for so many rows.
pub(super) fn bits_for(rows: u64) -> u8 {
    let buckets = rows.div_ceil(ROWS_PER_BUCKET).max(1);
    let bits = u64::BITS - (buckets - 1).leading_zeros();
    u8::try_from(bits).map_or(VERIFY_BITS_MAX, |bits| bits.min(VERIFY_BITS_MAX))
}

/// The sums of one side, of fixed size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    bits: u8,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Bucket {
    rows: u64,
    sums: [i128; 2],
}

/// The buckets in which two sides differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unequal {
    /// One bit for each bucket.
    pub(super) level: SieveLevel,
    /// Rows in them, on the side that has more.
    pub(super) rows: u64,
}

impl Sums {
    pub(super) fn new(bits: u8) -> Self {
        let buckets = vec![Bucket::default(); 1 << bits];
        Self { bits, buckets }
    }

    /// Adds the sums of some rows. A bucket that does not exist is ignored: the other side then differs.
    pub(super) fn add(&mut self, sums: &[BucketSum]) {
        for sum in sums {
            if let Some(bucket) = self.buckets.get_mut(sum.bucket as usize) {
                bucket.rows = bucket.rows.wrapping_add(sum.rows);
                for (into, half) in bucket.sums.iter_mut().zip(sum.sums) {
                    *into = into.wrapping_add(half);
                }
            }
        }
    }

    /// Adds those of other rows.
    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            bucket.rows = bucket.rows.wrapping_add(more.rows);
            for (into, half) in bucket.sums.iter_mut().zip(more.sums) {
                *into = into.wrapping_add(half);
            }
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.buckets
            .iter()
            .fold(0, |sum, bucket| sum.saturating_add(bucket.rows))
    }

    /// `None` where both sides are equal.
    pub(super) fn unequal(&self, other: &Self) -> Option<Unequal> {
        let mut wanted = vec![0_u8; self.buckets.len().div_ceil(8)];
        let mut rows = 0_u64;
        let pairs = self.buckets.iter().zip(&other.buckets).enumerate();
        for (at, (here, there)) in pairs.filter(|(_, (here, there))| here != there) {
            wanted[at / 8] |= 1 << (at % 8);
            rows = rows.saturating_add(here.rows.max(there.rows));
        }
        let bits = self.bits;
        let level = SieveLevel { bits, wanted };
        level
            .wanted
            .iter()
            .any(|byte| *byte != 0)
            .then_some(Unequal { level, rows })
    }

    /// Splits the buckets that differ into groups of about `rows` rows.
    pub(super) fn groups(&self, other: &Self, rows: u64) -> Vec<SieveLevel> {
        let mut groups = Vec::new();
        let (bits, size) = (self.bits, self.buckets.len().div_ceil(8));
        let (mut wanted, mut within) = (vec![0_u8; size], 0_u64);
        let pairs = self.buckets.iter().zip(&other.buckets).enumerate();
        for (at, (here, there)) in pairs.filter(|(_, (here, there))| here != there) {
            let more = here.rows.saturating_add(there.rows);
            if within > 0 && within.saturating_add(more) > rows {
                let wanted = std::mem::replace(&mut wanted, vec![0; size]);
                groups.push(SieveLevel { bits, wanted });
                within = 0;
            }
            wanted[at / 8] |= 1 << (at % 8);
            within = within.saturating_add(more.max(1));
        }
        if within > 0 {
            groups.push(SieveLevel { bits, wanted });
        }
        groups
    }
}

/// The sieve with one more level.
pub(super) fn with(sieve: &Sieve, level: SieveLevel) -> Sieve {
    let mut sieve = sieve.clone();
    sieve.0.push(level);
    sieve
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BITS: u8 = 3;

    /// Rows as bucket and digest, summed in pieces.
    fn sums(rows: &[(u32, u128)], pieces: usize) -> Sums {
        let mut all = Sums::new(BITS);
        for piece in rows.chunks(rows.len().div_ceil(pieces).max(1)) {
            let mut part = Sums::new(BITS);
            for (bucket, digest) in piece {
                let halves = [(digest >> 64) as u64 as i64, *digest as u64 as i64];
                let sums = halves.map(i128::from);
                part.add(&[BucketSum {
                    bucket: *bucket,
                    rows: 1,
                    sums,
                }]);
            }
            all.merge(&part);
        }
        all
    }

    fn is_wanted(level: &SieveLevel, bucket: u32) -> bool {
        level.wanted[bucket as usize / 8] >> (bucket % 8) & 1 == 1
    }

    fn rows() -> impl Strategy<Value = Vec<(u32, u128)>> {
        proptest::collection::vec((0..1_u32 << BITS, any::<u128>()), 0..40)
    }

    proptest! {
        #[test]
        fn neither_order_nor_pieces_matter(mut rows in rows(), pieces in 1..5_usize) {
            let before = sums(&rows, 1);
            rows.reverse();
            prop_assert_eq!(before.unequal(&sums(&rows, pieces)), None);
        }

        #[test]
        fn exactly_the_buckets_of_rows_that_differ_are_unequal(rows in rows(), extra in rows(), place in any::<usize>()) {
            let (here, mut more) = (sums(&rows, 2), rows.clone());
            more.extend(&extra);
            if !more.is_empty() {
                let at = place % more.len();
                more.rotate_left(at);
            }
            let found = here.unequal(&sums(&more, 3));
            for bucket in 0..1 << BITS {
                let differs = extra.iter().any(|(b, _)| *b == bucket);
                prop_assert_eq!(found.as_ref().is_some_and(|f| is_wanted(&f.level, bucket)), differs);
            }
        }

        #[test]
        fn groups_are_the_unequal_buckets_each_once(rows in rows(), other in rows(), size in 1..20_u64) {
            let (here, there) = (sums(&rows, 1), sums(&other, 1));
            let groups = here.groups(&there, size);
            for bucket in 0..1 << BITS {
                let in_groups = groups.iter().filter(|g| is_wanted(g, bucket)).count();
                let unequal = here.unequal(&there).is_some_and(|u| is_wanted(&u.level, bucket));
                prop_assert_eq!(in_groups, usize::from(unequal));
            }
        }
    }

    #[test]
    fn a_row_that_is_there_twice_does_not_cancel() {
        let twice = sums(&[(1, 7), (1, 7)], 1);
        assert!(twice.unequal(&sums(&[], 1)).is_some());
        assert!(twice.unequal(&sums(&[(1, 7), (1, 7), (1, 7)], 1)).is_some());
        // Halves that change places.
        assert!(
            sums(&[(1, 1 << 64)], 1)
                .unequal(&sums(&[(1, 1)], 1))
                .is_some()
        );
    }

    #[test]
    fn buckets_grow_with_the_table_up_to_a_limit() {
        let bits = [0, 1, 64, 65, 128, 129, 1_000_000, u64::MAX].map(bits_for);
        assert_eq!(bits, [0, 0, 0, 1, 1, 2, 14, 15]);
    }
}
