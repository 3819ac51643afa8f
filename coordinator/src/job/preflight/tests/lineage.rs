//! Who follows whom, and what earlier jobs left.

use steep_protocol::JobId;
use steep_protocol::message::facts::{Severity, SubscribedTables};
use steep_protocol::message::lineage::{ChangeOrigin, SubscriptionSeen, Tool};

use super::super::super::lineage::tests::{around, lineage};
use super::super::{Case, origin};
use super::world::{World, healthy, identity, restored, some};
use super::{Error, Warning, walk, walk_from};

fn subscription(slot: &str, origin: ChangeOrigin) -> SubscriptionSeen {
    SubscriptionSeen {
        name: format!("sub_{slot}"),
        tool: Tool::PostgreSql,
        slot: Some(slot.to_owned()),
        origin,
    }
}

/// Makes the source follow the target by a subscription with that origin.
fn source_follows_target(world: &mut World, origin: ChangeOrigin) {
    world.target.server.lineage.slots = vec!["back".to_owned()];
    world.source.server.lineage.subscriptions = vec![subscription("back", origin)];
}

/// A target restored from a backup that its source already follows.
fn both_ways() -> World {
    let mut world = restored();
    source_follows_target(&mut world, ChangeOrigin::None);
    world
}

fn origin_of(world: &World) -> ChangeOrigin {
    origin(&Case {
        spec: &world.spec,
        source: &world.source,
        target: &world.target,
        handover: None,
        stored: None,
        around: &world.around,
    })
}

#[test]
fn changes_that_would_come_back_or_conflict_stop_the_job() {
    walk(&[
        ("source_follows_target", Error, |w| {
            source_follows_target(w, ChangeOrigin::Any);
        }),
        // Through another node, and to a database with two names.
        ("source_follows_target", Error, |w| {
            let far = lineage(9, &["to_source"], &["from_alias"]);
            let mut alias = lineage(8, &["from_alias"], &[]);
            alias.identity = w.target.server.lineage.identity;
            w.around = around(&[("far", far), ("alias", alias)]);
            w.source.server.lineage.subscriptions =
                vec![subscription("to_source", ChangeOrigin::Any)];
        }),
        ("target_is_followed", Error, |w| {
            let below = lineage(9, &[], &["below"]);
            w.around = around(&[("below", below)]);
            w.target.server.lineage.slots = vec!["below".to_owned()];
        }),
        ("source_follows_unknown", Warning, |w| {
            w.source.server.lineage.subscriptions =
                vec![subscription("elsewhere", ChangeOrigin::Any)];
            w.target.server.lineage.slots = vec!["to_whom".to_owned()];
        }),
        ("live_subscription", Error, |w| {
            w.target.subscribed = vec![SubscribedTables {
                subscription: "others".to_owned(),
                tool: Tool::Pglogical,
                tables: some("app.orders"),
            }];
        }),
        ("forgotten_job", Error, |w| {
            w.target.server.lineage.jobs = vec![JobId(3)];
        }),
        ("forgotten_slot", Warning, |w| {
            w.source.server.lineage.slots = vec!["steep_repl_0000000000000003".to_owned()];
        }),
    ]);
}

#[test]
fn a_source_that_follows_others_passes_on_their_changes() {
    let mut world = healthy();
    world.source.server.lineage.subscriptions = vec![
        subscription("from_a", ChangeOrigin::Any),
        subscription("unknown", ChangeOrigin::Any),
    ];
    world.around = around(&[("a", lineage(9, &["from_a"], &[]))]);
    assert_eq!(world.judge(), []);
    assert_eq!(origin_of(&world), ChangeOrigin::Any);
}

#[test]
fn circular_changes_are_filtered_only_if_no_others_are_missed() {
    assert_eq!(both_ways().judge(), []);
    assert_eq!(origin_of(&both_ways()), ChangeOrigin::None);
    walk_from(
        both_ways,
        &[
            ("changes_would_circle", Severity::Error, |w| {
                w.source.server.version = 150_006;
            }),
            ("changes_would_circle", Severity::Error, |w| {
                source_follows_target(w, ChangeOrigin::Any);
            }),
            ("changes_would_be_missed", Severity::Error, |w| {
                let others = subscription("from_others", ChangeOrigin::Any);
                w.source.server.lineage.subscriptions.push(others);
            }),
        ],
    );
}

#[test]
fn a_physical_copy_is_another_database_and_a_known_job_is_no_leftover() {
    let mut copy = restored();
    let mut of_the_copy = identity(1);
    of_the_copy.started = 200;
    copy.source.server.lineage.identity = Some(identity(1));
    copy.target.server.lineage.identity = Some(of_the_copy);
    assert_eq!(copy.judge(), []);
    let mut known = healthy();
    known.source.server.lineage.slots = vec!["steep_repl_0000000000000003".to_owned()];
    known.around.remembered = vec![JobId(3)];
    assert_eq!(known.judge(), []);
}
