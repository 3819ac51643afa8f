//! What is on the source.

use steep_protocol::message::facts::{FeatureUse, OwnedTables, UnmatchedFilter};
use steep_protocol::message::feature::Feature;

use super::world::some;
use super::{Error, Info, Warning, walk};

#[test]
fn each_oddity_of_the_source_is_its_own_finding() {
    walk(&[
        ("nothing_to_copy", Error, |w| w.source.tables = 0),
        ("xml", Error, |w| {
            w.source.xml = some("app.letters");
            w.target.xml = Some(false);
        }),
        ("firing_triggers", Error, |w| {
            w.target.firing_triggers = some("app.orders");
        }),
        ("firing_triggers", Warning, |w| {
            w.source.firing_triggers = some("app.orders");
        }),
        ("enum_hash_partition", Error, |w| {
            w.source.features = vec![FeatureUse {
                feature: Feature::EnumHashPartition,
                locale: String::new(),
                objects: some("app.moods"),
            }];
        }),
        ("row_security_forced", Error, |w| {
            w.target.roles.push("ann".to_owned());
            w.source.forced_security = vec![OwnedTables {
                owner: "ann".to_owned(),
                tables: some("app.tenants"),
            }];
        }),
        ("owner_privileges", Warning, |w| {
            w.source.owner_denied = some("app.audit");
        }),
        ("unlogged", Warning, |w| {
            w.source.unlogged = some("app.cache");
        }),
        ("large_objects", Warning, |w| w.source.large_objects = 3),
        ("foreign_tables", Info, |w| {
            w.source.foreign_tables = some("app.remote");
        }),
        ("materialized_views", Info, |w| {
            w.source.materialized_views = some("app.totals");
        }),
        ("sequences", Info, |w| w.source.sequences = 7),
        ("filter_splits", Error, |w| {
            w.source.filter.split = some("app.child");
        }),
        ("filter_leaves_out", Warning, |w| {
            w.source.filter.left_out = some("view app.totals");
        }),
        ("filter_brings_along", Info, |w| {
            w.source.filter.along = some("type util.mood");
        }),
        ("filter_matches_nothing", Error, |w| {
            w.source.unmatched = vec![UnmatchedFilter {
                option: "--exclude-table".into(),
                name: "app.oders".into(),
                near: vec!["app.orders".into()],
            }];
        }),
        ("missing_extension", Error, |w| {
            w.source
                .server
                .extensions
                .push(("postgis".into(), "3.5".into()));
        }),
        ("missing_extension", Error, |w| {
            w.source
                .server
                .extensions
                .push(("hstore".into(), "1.8".into()));
            w.target.extensions_available[0].may_create = false;
        }),
        ("missing_extension", Warning, |w| {
            w.source
                .server
                .extensions
                .push(("postgis".into(), "3.5".into()));
            w.target.user_tables = 3;
        }),
        ("event_triggers", Warning, |w| {
            w.source.server.event_triggers = some("log_ddl (sql_drop, ENABLE ALWAYS)");
        }),
        ("event_triggers", Warning, |w| {
            w.target.server.event_triggers = some("guard (ddl_command_start, enabled)");
        }),
        ("missing_role", Warning, |w| {
            w.source.roles.push("auditor".into());
        }),
        ("pg_dump", Error, |w| {
            w.source.pg_dump = Some(Err("not in PATH".into()));
        }),
        ("pg_dump", Error, |w| w.source.pg_dump = Some(Ok(16))),
        ("pg_dump", Info, |w| {
            w.source.pg_dump = Some(Ok(16));
            w.target.user_tables = 3;
        }),
    ]);
}
