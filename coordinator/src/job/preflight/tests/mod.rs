//! A healthy pair yields no finding; each defect yields exactly its own, with its severity.

mod backup;
mod features;
mod identity;
mod lineage;
mod loading;
mod size;
mod world;

use std::collections::BTreeSet;

use steep_protocol::message::facts::{
    FeatureUse, OwnedTables, Severity, SourceFacts, TargetFacts, UnmatchedFilter,
};
use steep_protocol::message::feature::Feature;
use steep_protocol::message::handover::{NotedSlot, SchemaCheck, ServerSlot, SlotFacts};
use steep_protocol::message::job::{Confirmation, ExistingRows, Method, SchemaMode};
use steep_protocol::message::schema::{Change, PlannedStatement, SchemaDifference, Subject};
use steep_protocol::{ByteCount, Lsn, TableName};

use identity::keyless;
use world::{World, healthy, restored, set, some, take};

fn difference(column: Option<&str>, change: Change) -> SchemaDifference {
    SchemaDifference {
        table: Some(TableName::new("app", "orders").unwrap()),
        subject: column.map_or(Subject::Table, |_| Subject::Column),
        name: column.map(str::to_owned),
        change,
        local: "integer".to_owned(),
        remote: "bigint".to_owned(),
    }
}

fn statement(loses: Option<&str>) -> PlannedStatement {
    PlannedStatement {
        sql: "ALTER TABLE t DROP COLUMN c".to_owned(),
        loses: loses.map(str::to_owned),
    }
}

type Defect = fn(&mut World);

/// Walks the cases: each defect, and nothing else, is found.
fn walk(cases: &[(&str, Severity, Defect)]) {
    walk_from(healthy, cases);
}

/// [`walk`], from another healthy world.
fn walk_from(start: fn() -> World, cases: &[(&str, Severity, Defect)]) {
    for (n, (code, severity, defect)) in cases.iter().enumerate() {
        let mut world = start();
        defect(&mut world);
        let findings = world.judge();
        let found: BTreeSet<_> = findings
            .iter()
            .map(|f| (f.code.as_str(), f.severity))
            .collect();
        assert_eq!(
            found,
            BTreeSet::from([(*code, *severity)]),
            "case {n}, {code}: {findings:#?}"
        );
        for finding in &findings {
            let texts = [&finding.what, &finding.why, &finding.fix];
            assert!(
                texts.iter().all(|t| !t.is_empty()),
                "{code} says too little"
            );
            assert!(finding.node.is_some(), "{code} names no node");
            assert!(
                texts.iter().all(|t| !t.ends_with('.')),
                "{code}: {finding:?}"
            );
        }
    }
}

use Severity::{Error, Info, Warning};

#[test]
fn a_healthy_pair_yields_no_finding() {
    assert_eq!(healthy().judge(), []);
}

#[test]
fn each_defect_of_servers_and_links_is_its_own_finding() {
    walk(&[
        ("same_database", Error, |w| {
            w.target.server.lineage.identity = w.source.server.lineage.identity;
        }),
        ("version_too_old", Error, |w| {
            w.target.server.version = 130_012;
        }),
        ("target_older", Warning, |w| {
            w.target.server.version = 170_004;
        }),
        ("standby", Error, |w| w.source.server.in_recovery = true),
        ("standby", Error, |w| w.target.server.in_recovery = true),
        ("pooler", Error, |w| {
            w.source.server.pooled = Some("one pid, two sessions".into());
        }),
        ("read_only", Error, |w| {
            set(&mut w.target.server, "default_transaction_read_only", "on");
        }),
        ("array_nulls", Error, |w| {
            set(&mut w.target.server, "array_nulls", "off");
        }),
        ("xmloption", Error, |w| {
            set(&mut w.target.server, "xmloption", "document");
        }),
        ("encoding", Error, |w| {
            w.target.server.encoding = "LATIN1".into();
        }),
        ("encoding_unchecked", Warning, |w| {
            w.source.server.encoding = "SQL_ASCII".into();
        }),
        ("collation", Warning, |w| {
            w.target.server.collation = "icu und".into();
        }),
        ("collation_version", Info, |w| {
            w.target.server.collation_version = Some("2.31".into());
        }),
        ("clocks", Warning, |w| w.target.clock_ahead_seconds = 7.5),
        ("clocks", Warning, |w| {
            w.target.server.clock_ahead_seconds = -6.0;
        }),
        ("replication_connection", Error, |w| {
            w.source.replication_link = Some(Err("no entry in pg_hba.conf".into()));
        }),
        ("agent_link", Error, |w| {
            w.target.agent_link = Some(Err("timed out".into()));
            w.target.server_link = None;
        }),
        ("server_link", Error, |w| {
            w.target.server_link = Some(Err("connection refused".into()));
        }),
        ("subscription_password", Error, |w| {
            w.target.server_link = Some(Err("password is required".into()));
        }),
    ]);
}

#[test]
fn each_missing_privilege_is_its_own_finding() {
    walk(&[
        ("replication_privilege", Error, |w| {
            w.source.server.replication = false;
        }),
        ("create_privilege", Error, |w| {
            w.source.server.can_create = false;
        }),
        ("create_privilege", Error, |w| {
            w.target.server.can_create = false;
        }),
        ("unreadable", Error, |w| {
            w.source.unreadable = some("app.secret");
        }),
        ("row_security", Error, |w| {
            w.source.row_security = some("app.mine");
        }),
        ("not_owner", Error, |w| {
            w.source.not_owned = some("app.theirs");
        }),
        ("not_owner", Error, |w| {
            w.target.not_owned = some("app.theirs");
        }),
        ("subscription_privilege", Error, |w| {
            w.target.server.can_subscribe = false;
        }),
        ("trigger_privilege", Error, |w| {
            w.target.server.can_silence_triggers = false;
        }),
        ("origin_privilege", Info, |w| {
            w.target.server.can_advance_origin = false;
        }),
        ("owner_code", Warning, |w| {
            w.source.owner_code = some("app.fine(integer) of app by a check of app.orders");
            w.target.server.powers = vec!["SUPERUSER".to_owned()];
        }),
    ]);
}

#[test]
fn each_shortage_is_its_own_finding() {
    walk(&[
        ("wal_level", Error, |w| {
            set(&mut w.source.server, "wal_level", "replica");
        }),
        ("replication_slots", Error, |w| {
            take(&mut w.source.server, "max_replication_slots", 3, 3);
        }),
        ("replication_slots", Warning, |w| {
            take(&mut w.source.server, "max_replication_slots", 3, 2);
        }),
        ("wal_senders", Error, |w| {
            take(&mut w.source.server, "max_wal_senders", 0, 0);
        }),
        ("wal_senders", Warning, |w| {
            take(&mut w.source.server, "max_wal_senders", 10, 9);
        }),
        ("connections", Error, |w| {
            take(&mut w.source.server, "max_connections", 97, 90);
        }),
        ("connections", Warning, |w| {
            take(&mut w.source.server, "max_connections", 97, 88);
        }),
        ("connections", Error, |w| {
            take(&mut w.target.server, "role_connection_limit", 5, 2);
        }),
        ("connections", Error, |w| {
            take(&mut w.target.server, "database_connection_limit", 5, 2);
        }),
        ("replication_origins", Error, |w| {
            take(&mut w.target.server, "max_active_replication_origins", 0, 0);
        }),
        ("replication_origins", Error, |w| {
            w.target
                .server
                .capacity
                .retain(|c| c.bound_by != "max_active_replication_origins");
            take(&mut w.target.server, "max_replication_slots", 2, 2);
        }),
        ("logical_workers", Error, |w| {
            take(
                &mut w.target.server,
                "max_logical_replication_workers",
                4,
                4,
            );
        }),
        ("worker_processes", Error, |w| {
            take(&mut w.target.server, "max_worker_processes", 8, 8);
        }),
        ("sync_workers", Error, |w| {
            w.spec.method = Method::Native;
            set(
                &mut w.target.server,
                "max_sync_workers_per_subscription",
                "0",
            );
        }),
        ("sync_workers", Warning, |w| {
            w.spec.method = Method::Native;
            set(
                &mut w.target.server,
                "max_sync_workers_per_subscription",
                "2",
            );
        }),
        ("replication_slots", Error, |w| {
            w.spec.method = Method::Native;
            take(&mut w.source.server, "max_replication_slots", 5, 1);
        }),
        ("locks", Error, |w| w.source.tables = 10_000),
        ("locks", Warning, |w| w.source.tables = 6_000),
    ]);
}

#[test]
fn each_limit_that_could_end_the_job_is_its_own_finding() {
    walk(&[
        ("slot_wal_limit", Warning, |w| {
            set(&mut w.source.server, "max_slot_wal_keep_size", "1024");
        }),
        ("slot_wal_limit", Info, |w| {
            set(&mut w.source.server, "max_slot_wal_keep_size", "1000000");
        }),
        ("slot_idle_timeout", Error, |w| {
            set(&mut w.source.server, "idle_replication_slot_timeout", "20");
        }),
        ("slot_idle_timeout", Warning, |w| {
            set(
                &mut w.source.server,
                "idle_replication_slot_timeout",
                "7200",
            );
        }),
        ("slot_idle_timeout", Error, |w| {
            set(
                &mut w.source.server,
                "idle_replication_slot_timeout",
                "7200",
            );
            w.spec.max_rate = Some(ByteCount(1_000_000));
        }),
        ("old_snapshot_threshold", Warning, |w| {
            set(&mut w.source.server, "old_snapshot_threshold", "60");
        }),
        ("wal_sender_timeout", Warning, |w| {
            set(&mut w.source.server, "wal_sender_timeout", "2000");
        }),
        ("transaction_timeout", Warning, |w| {
            set(&mut w.target.server, "transaction_timeout", "60000");
        }),
        ("timeouts", Info, |w| {
            set(
                &mut w.source.server,
                "idle_in_transaction_session_timeout",
                "60000",
            );
        }),
    ]);
}

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

#[test]
fn each_obstacle_on_the_target_is_its_own_finding() {
    fn differs(w: &mut World) {
        w.target.user_tables = 5;
        w.target.review.differences = vec![
            difference(None, Change::Missing),
            difference(Some("a"), Change::Extra),
            difference(Some("b"), Change::Type),
        ];
        w.target.review.differences_total = 3;
    }
    walk(&[
        ("target_not_empty", Error, |w| {
            w.target.not_empty = some("app.orders");
        }),
        ("target_not_empty", Warning, |w| {
            w.target.not_empty = some("app.orders");
            w.spec.existing = ExistingRows::Replace;
        }),
        ("schema_mismatch", Error, differs),
        ("schema_mismatch", Error, |w| {
            differs(w);
            w.spec.confirmation = Confirmation::Given;
        }),
        ("schema_mismatch", Warning, |w| {
            differs(w);
            w.spec.schema_mode = SchemaMode::Auto;
        }),
        ("schema_unplanned", Error, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.target.review.unplanned = vec![difference(None, Change::Definition)];
            w.target.review.unplanned_total = 1;
        }),
        ("schema_plan", Info, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.target.review.plan = vec![statement(None)];
            w.target.review.plan_total = 1;
        }),
        ("schema_plan", Error, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.target.review.plan = vec![statement(Some("the values of c"))];
            w.target.review.plan_total = 1;
        }),
        ("schema_plan", Warning, |w| {
            w.spec.schema_mode = SchemaMode::Auto;
            w.spec.existing = ExistingRows::Replace;
            w.target.review.plan = vec![statement(Some("the values of c"))];
            w.target.review.plan_total = 1;
        }),
        ("schema_mismatch", Error, |w| {
            differs(w);
            w.spec.schema_mode = SchemaMode::Manual;
        }),
        ("schema_mismatch", Warning, |w| {
            differs(w);
            w.spec.schema_mode = SchemaMode::Manual;
            w.spec.confirmation = Confirmation::Given;
        }),
        ("extra_tables", Info, |w| {
            w.target.extra_tables = some("app.local");
        }),
        ("disk_space", Error, |w| {
            w.target.disk_free = Some(ByteCount(10_000_000_000));
        }),
        ("disk_space", Warning, |w| {
            w.target.disk_free = Some(ByteCount(50_000_000_000));
        }),
        ("disk_unknown", Warning, |w| w.target.disk_free = None),
        ("disk_unknown", Info, |w| {
            w.target.disk_free = None;
            w.source.total_bytes = ByteCount(1_000_000);
        }),
    ]);
}

#[test]
fn a_full_disk_is_only_a_warning_if_replaced_rows_may_free_space() {
    let mut world = healthy();
    world.target.disk_free = Some(ByteCount(1_000_000_000));
    world.target.not_empty = some("app.orders");
    world.spec.existing = ExistingRows::Replace;
    let findings = world.judge();
    assert!(
        findings.iter().all(|f| f.severity == Warning),
        "{findings:#?}"
    );
    assert_eq!(findings.len(), 2);
}

#[test]
fn differences_are_bounded_and_all_are_counted() {
    let mut world = healthy();
    world.target.user_tables = 1;
    let many = |n| difference(Some(&format!("c{n}")), Change::Missing);
    world.target.review.differences = (0..107).map(many).collect();
    world.target.review.differences_total = 1_107;
    let findings = world.judge();
    assert_eq!(findings.len(), 107 + 1);
    let last = findings.last().unwrap();
    assert!(last.what.contains("1000"), "{last:?}");
}

#[test]
fn errors_come_first() {
    let mut world = healthy();
    world.source.sequences = 1;
    world.source.unlogged = some("app.cache");
    world.target.disk_free = Some(ByteCount(0));
    let severities: Vec<_> = world.judge().iter().map(|f| f.severity).collect();
    assert_eq!(severities, [Error, Warning, Info]);
}

#[test]
fn missing_facts_do_not_panic() {
    let mut world = healthy();
    world.source = SourceFacts::default();
    world.target = TargetFacts::default();
    assert!(world.judge().iter().any(|f| f.severity == Error));
}

#[test]
fn functions_of_owners_yield_a_warning_if_they_would_gain_rights() {
    let warned = |spoil: &dyn Fn(&mut World)| {
        let mut world = healthy();
        world.source.owner_code = some("app.fine(integer) of app by a check of app.orders");
        world.target.server.powers = vec!["CREATEROLE".to_owned()];
        spoil(&mut world);
        let found = world.judge();
        let found = found.iter().find(|finding| finding.code == "owner_code");
        found.map(|finding| format!("{} {}", finding.what, finding.fix))
    };
    let text = warned(&|_| {}).unwrap();
    for said in ["CREATEROLE", "app.fine(integer) of app", "--method native"] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
    // The loading role has no special rights.
    assert_eq!(warned(&|w| w.target.server.powers.clear()), None);
    // With existing tables, the source's functions do not matter.
    assert_eq!(warned(&|w| w.target.user_tables = 3), None);
    // From 16 on, PostgreSQL uses each owner's own rights.
    assert_eq!(warned(&|w| w.spec.method = Method::Native), None);
    let old = warned(&|w| {
        w.spec.method = Method::Native;
        w.target.server.version = 150_000;
    });
    assert!(!old.unwrap().contains("--method native"));
}
