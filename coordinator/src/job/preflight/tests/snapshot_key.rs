//! The key of an encrypted snapshot: whoever reads it needs one.

use steep_protocol::encryption::{Encryption, KeyFacts, Recipient, Recipients};
use steep_protocol::message::facts::Severity;
use steep_protocol::{Lsn, SnapshotId, Sum};

use super::super::super::Totals;
use super::super::super::handover::{Reader, Replaced, StoredRows};
use super::walk_from;
use super::world::{World, healthy};

/// A recipient whose last characters are those.
fn recipient(end: &str) -> Recipient {
    let zeros = "q".repeat(58 - end.len());
    format!("age1{zeros}{end}").parse().unwrap()
}

fn key(ends: &[&str]) -> KeyFacts {
    let reads: Vec<Recipient> = ends.iter().map(|end| recipient(end)).collect();
    let first = reads.first().cloned().unwrap_or_else(|| recipient("0"));
    KeyFacts {
        encrypts: Encryption::age(Recipients::try_from(vec![first]).unwrap()),
        reads,
    }
}

fn encrypted(reader: Reader) -> World {
    let recipients = vec![recipient("a"), recipient("c")];
    World {
        stored: Some(StoredRows {
            snapshot: SnapshotId(9),
            reader,
            location: "/backup".to_owned(),
            manifest: Sum([1; 32]),
            lsn: Lsn(5),
            verify: true,
            encryption: Some(Encryption::age(Recipients::try_from(recipients).unwrap())),
            made: None,
            instead_of: None,
        }),
        ..healthy()
    }
}

fn by_source() -> World {
    let mut world = encrypted(Reader::Source);
    world.source.snapshot_key = Some(key(&["8", "c"]));
    world
}

fn by_target() -> World {
    let mut world = encrypted(Reader::Target(Totals::default()));
    world.target.snapshot_key = Some(key(&["a"]));
    world
}

#[test]
fn the_reader_of_an_encrypted_snapshot_needs_its_key_and_nobody_else_does() {
    assert_eq!(by_source().judge(), []);
    assert_eq!(by_target().judge(), []);
    let mut plain = by_source();
    plain.source.snapshot_key = None;
    if let Some(stored) = &mut plain.stored {
        stored.encryption = None;
    }
    assert_eq!(plain.judge(), []);
    walk_from(
        by_source,
        &[
            ("snapshot_key", Severity::Error, |w| {
                w.source.snapshot_key = None;
            }),
            ("snapshot_key", Severity::Error, |w| {
                w.source.snapshot_key = Some(key(&["8"]));
                w.target.snapshot_key = Some(key(&["a"]));
            }),
            ("snapshot_key", Severity::Error, |w| {
                w.source.snapshot_key = Some(key(&[]));
            }),
        ],
    );
    walk_from(
        by_target,
        &[("snapshot_key", Severity::Error, |w| {
            w.target.snapshot_key = None;
        })],
    );
    let mut world = by_source();
    world.source.snapshot_key = Some(key(&["8"]));
    let finding = world.judge().remove(0);
    for part in [recipient("a"), recipient("8")] {
        assert!(finding.what.contains(part.as_str()), "{}", finding.what);
    }
    assert_eq!(finding.node, Some(world.spec.source));
}

#[test]
fn another_snapshot_than_expected_is_a_warning_that_names_both() {
    let made = |text: &str| text.parse().unwrap();
    let world = |replaced| {
        let mut world = by_target();
        if let Some(stored) = &mut world.stored {
            stored.made = Some(made("2026-11-29T12:00:00.5Z"));
            stored.instead_of = Some(replaced);
        }
        world
    };
    let snapshot = SnapshotId(8);
    let stored = Replaced::Stored {
        snapshot,
        made: made("2026-11-28T12:00:00Z"),
    };
    let applied = Replaced::Applied {
        snapshot,
        made: None,
    };
    for (replaced, time) in [
        (stored, "2026-11-28T12:00:00Z"),
        (applied, "made from there"),
    ] {
        let findings = world(replaced).judge();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        let found = &findings[0];
        let code = (found.code.as_str(), found.severity);
        assert_eq!(code, ("snapshot_replaced", Severity::Warning));
        let parts = [SnapshotId(9).to_string(), SnapshotId(8).to_string()];
        for part in parts
            .iter()
            .map(String::as_str)
            .chain([time, "2026-11-29T12:00:00Z"])
        {
            assert!(found.what.contains(part), "{part} is not in {}", found.what);
        }
    }
}
