//! Sizes, round trips, and what is never printed.

use super::super::repair::{PlannedRow, PlannedTable, RepairPlan, RowChange};
use super::*;
use crate::wire::codec::{decode, encode};
use crate::wire::limits::{
    CONTROL_FRAME_MAX, REPAIR_BYTES_MAX, REPAIR_ROWS_MAX, VERIFY_EXAMPLES_ALL, VERIFY_ROWS_MAX,
    VERIFY_TABLES_MAX,
};

/// As long as a B-tree allows.
const KEY_MAX: usize = 2_704;

fn keys() -> Vec<RowKey> {
    vec![RowKey(vec!["x".repeat(KEY_MAX)]); VERIFY_ROWS_MAX]
}

#[test]
fn the_largest_questions_and_answers_fit_a_frame_and_round_trip() {
    let ask = VerifyAsk::LookUp(keys());
    let bytes = encode(&ask).unwrap();
    assert!(bytes.len() < CONTROL_FRAME_MAX, "{}", bytes.len());
    assert_eq!(decode::<VerifyAsk>(&bytes).unwrap(), ask);

    let row = |key| KeyedRow {
        key,
        digest: RowDigest(u128::MAX),
    };
    let sum = |bucket| BucketSum {
        bucket,
        rows: u64::MAX,
        sums: [i128::MIN, i128::MAX],
    };
    for reply in [
        VerifyReply::Rows(keys().into_iter().map(row).collect()),
        VerifyReply::Sums((0..1 << VERIFY_BITS_MAX).map(sum).collect()),
    ] {
        let bytes = encode(&reply).unwrap();
        assert!(bytes.len() < CONTROL_FRAME_MAX, "{}", bytes.len());
        assert_eq!(decode::<VerifyReply>(&bytes).unwrap(), reply);
    }
}

#[test]
fn the_longest_report_fits_a_frame() {
    let name = "n".repeat(63);
    let table = |_| TableReport {
        key: vec![Identifier::parse("id").unwrap()],
        ..TableReport::new(TableName::new(name.as_str(), name.as_str()).unwrap())
    };
    let mut report = VerifyReport {
        tables: (0..VERIFY_TABLES_MAX).map(table).collect(),
        relation: Relation::Replicates,
        plan: None,
    };
    report.tables[0].examples = vec![
        RowDifference {
            kind: DifferenceKind::Different,
            key: RowKey(vec!["x".repeat(KEY_MAX)]),
            columns: Vec::new(),
        };
        VERIFY_EXAMPLES_ALL
    ];
    let bytes = encode(&report).unwrap();
    assert!(bytes.len() < CONTROL_FRAME_MAX, "{}", bytes.len());

    // A plan takes the place of examples.
    let change = RowChange::Replace {
        source: RowDigest(u128::MAX),
        target: RowDigest(u128::MAX),
    };
    let row = PlannedRow::new(RowKey(vec!["x".to_owned()]), change);
    let database = DatabaseId {
        system: u64::MAX,
        database: u32::MAX,
    };
    report.tables[0].examples.clear();
    report.plan = Some(RepairPlan {
        source: database,
        target: database,
        tables: vec![PlannedTable {
            name: TableName::new(name.as_str(), name.as_str()).unwrap(),
            shape: RowShape {
                columns: Vec::new(),
                key: Vec::new(),
            },
            rows: vec![row.clone(); REPAIR_ROWS_MAX.min(REPAIR_BYTES_MAX / row.size())],
        }],
    });
    let bytes = encode(&report).unwrap();
    let text = 2 * 1024 * 1024;
    assert!(bytes.len() + text < CONTROL_FRAME_MAX, "{}", bytes.len());
    assert!(encode(&row).unwrap().len() <= row.size());
}

#[test]
fn values_are_in_no_debug_form() {
    let key = RowKey(vec!["4711".to_owned()]);
    let cell = ColumnText {
        digest: Some(1),
        text: Some("4711".to_owned()),
    };
    let column = ColumnDifference {
        column: Identifier::parse("c").unwrap(),
        a: Some("4711".to_owned()),
        b: None,
    };
    assert!(!format!("{key:?} {cell:?} {column:?}").contains("4711"));
}

#[test]
fn a_sieve_that_does_not_fit_the_hash_is_told() {
    let level = |bits: u8, bytes| SieveLevel {
        bits,
        wanted: vec![0; bytes],
    };
    let fits = |levels: &[SieveLevel], bits| Sieve(levels.to_vec()).fits(4, bits);
    assert!(fits(&[], 15) && fits(&[level(4, 2), level(0, 1)], 15));
    assert!(!fits(&[], 16) && !fits(&[level(4, 1)], 0) && !fits(&[level(200, 1)], 0));
    assert!(!fits(&vec![level(1, 1); 5], 0));
    assert!(!fits(&vec![level(15, 4_096); 4], 5) && fits(&vec![level(15, 4_096); 4], 4));
}
