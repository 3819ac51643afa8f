//! Slots prepared for a backup, and the jobs that complete one.

use steep_protocol::Lsn;
use steep_protocol::message::facts::Severity;
use steep_protocol::message::handover::{NotedSlot, SchemaCheck, ServerSlot, SlotFacts};
use steep_protocol::message::schema::Change;

use super::super::judge_source;
use super::identity::keyless;
use super::receiver::difference;
use super::walk_from;
use super::world::{World, healthy, restored, set, some, take};

fn slot(world: &mut World) -> &mut SlotFacts {
    &mut world.handover.as_mut().unwrap().1
}

fn server_slot(world: &mut World) -> &mut ServerSlot {
    slot(world).slot.as_mut().unwrap()
}

fn noted(world: &mut World) -> &mut NotedSlot {
    slot(world).noted.as_mut().unwrap()
}

#[test]
fn each_obstacle_to_completing_a_backup_is_its_own_finding() {
    assert_eq!(restored().judge(), []);
    walk_from(
        restored,
        &[
            ("prepared_slot_missing", Severity::Error, |w| {
                slot(w).slot = None;
            }),
            ("prepared_slot_missing", Severity::Error, |w| {
                slot(w).noted = None;
            }),
            ("prepared_slot_expired", Severity::Error, |w| {
                noted(w).expired = true;
            }),
            ("prepared_slot_taken", Severity::Error, |w| {
                noted(w).target = Some(crate::testing::node("c"));
            }),
            ("prepared_slot_active", Severity::Error, |w| {
                server_slot(w).active = true;
            }),
            ("prepared_slot_lost", Severity::Error, |w| {
                server_slot(w).wal_status = "lost".to_owned();
            }),
            ("prepared_slot_lost", Severity::Error, |w| {
                server_slot(w).invalidated = Some("wal_removed".to_owned());
            }),
            ("prepared_slot_lost", Severity::Error, |w| {
                server_slot(w).plugin = None;
            }),
            ("prepared_slot_lost", Severity::Error, |w| {
                server_slot(w).plugin = Some("test_decoding".to_owned());
            }),
            ("prepared_slot_lost", Severity::Error, |w| {
                server_slot(w).own_database = false;
            }),
            ("prepared_publication_missing", Severity::Error, |w| {
                slot(w).published = false;
            }),
            ("not_prepared", Severity::Error, |w| {
                slot(w).unpublished = some("public.new");
            }),
            ("source_lsn_behind", Severity::Error, |w| {
                w.handover.as_mut().unwrap().0.lsn = Lsn(99);
            }),
            ("source_lsn_ahead", Severity::Error, |w| {
                w.handover.as_mut().unwrap().0.lsn = Lsn(201);
            }),
            ("no_backup", Severity::Error, |w| w.target.user_tables = 0),
            ("origin_privilege", Severity::Error, |w| {
                w.target.server.can_advance_origin = false;
            }),
            ("subscription_privilege", Severity::Error, |w| {
                w.target.server.can_subscribe = false;
            }),
            ("schema_mismatch", Severity::Error, |w| {
                w.target.review.differences = vec![difference(None, Change::Missing)];
                w.target.review.differences_total = 1;
            }),
            ("unchecked_schema", Severity::Warning, |w| {
                w.target.review.differences = vec![difference(None, Change::Missing)];
                w.target.review.differences_total = 1;
                w.handover.as_mut().unwrap().0.schema = SchemaCheck::Skipped;
            }),
        ],
    );
}

#[test]
fn an_expired_slot_that_the_target_has_taken_may_be_used_again() {
    let mut world = restored();
    let target = world.spec.target.clone();
    noted(&mut world).expired = true;
    noted(&mut world).target = Some(target);
    assert_eq!(world.judge(), []);
}

#[test]
fn each_obstacle_to_preparing_a_source_is_its_own_finding() {
    let judged = |spoil: fn(&mut World)| {
        let mut world = healthy();
        spoil(&mut world);
        let findings = judge_source(&world.spec, &world.source);
        let codes = findings.into_iter().map(|f| (f.code, f.severity));
        codes.collect::<Vec<_>>()
    };
    let found = |code: &str, severity| vec![(code.to_owned(), severity)];
    assert_eq!(judged(|_| {}), []);
    let wal = judged(|w| set(&mut w.source.server, "wal_level", "replica"));
    assert_eq!(wal, found("wal_level", Severity::Error));
    let slots = judged(|w| take(&mut w.source.server, "max_replication_slots", 5, 5));
    assert_eq!(slots, found("replication_slots", Severity::Error));
    let identity = judged(|w| w.source.identities = vec![keyless(true)]);
    assert_eq!(identity, found("replica_identity_needed", Severity::Error));
    let idle = judged(|w| set(&mut w.source.server, "idle_replication_slot_timeout", "60"));
    assert_eq!(idle, found("prepared_slot_limit", Severity::Warning));
    let standby = judged(|w| w.source.server.in_recovery = true);
    assert_eq!(standby, found("standby", Severity::Error));
    let old = judged(|w| w.source.server.version = 130_000);
    assert_eq!(old, found("version_too_old", Severity::Error));
}
