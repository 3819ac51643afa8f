//! Features that the schema uses and the target lacks.

use steep_protocol::message::facts::FeatureUse;
use steep_protocol::message::feature::Feature;

use super::world::{World, healthy, some};
use super::{Error, Warning, walk};

fn uses(world: &mut World, feature: Feature) {
    world.source.features.push(FeatureUse {
        feature,
        locale: String::new(),
        objects: some("app.t (c)"),
    });
}

/// Gives both servers that version, so that the target is not older.
fn both(world: &mut World, version: u32) {
    world.source.server.version = version;
    world.target.server.version = version;
}

#[test]
fn features_that_the_target_lacks_are_named() {
    walk(&[
        ("lz4", Error, |w| {
            uses(w, Feature::Lz4);
            w.target.lz4 = Some(false);
        }),
        ("icu", Error, |w| {
            uses(w, Feature::IcuCollation);
            w.target.icu = Some(false);
        }),
        ("virtual_columns", Error, |w| {
            uses(w, Feature::VirtualColumn);
            both(w, 170_000);
        }),
        ("target_version", Error, |w| {
            uses(w, Feature::WithoutOverlaps);
            both(w, 170_000);
        }),
        ("target_version", Error, |w| {
            uses(w, Feature::NullsNotDistinct);
            both(w, 140_009);
        }),
        ("locale", Warning, |w| {
            uses(w, Feature::LibcCollation);
            w.source.features[0].locale = "de_DE.UTF-8".into();
            w.target.locales = vec!["C".into(), "en_US.utf8".into()];
        }),
    ]);
}

#[test]
fn features_that_the_target_has_or_need_not_create_yield_no_finding() {
    let mut world = healthy();
    for feature in [
        Feature::Lz4,
        Feature::IcuCollation,
        Feature::VirtualColumn,
        Feature::WithoutOverlaps,
        Feature::LibcCollation,
    ] {
        uses(&mut world, feature);
    }
    world.source.features[4].locale = "de_DE.UTF-8".into();
    world.target.locales = vec!["de_DE.utf8".into()];
    (world.target.lz4, world.target.icu) = (Some(true), Some(true));
    assert_eq!(world.judge(), []);
    both(&mut world, 170_000);
    world.target.user_tables = 3;
    (world.target.lz4, world.target.icu) = (Some(false), Some(false));
    assert_eq!(world.judge(), []);
}
