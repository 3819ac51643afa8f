//! A healthy pair yields no finding; each defect yields exactly its own, with its severity.

mod backup;
mod content;
mod features;
mod identity;
mod lineage;
mod loading;
mod receiver;
mod size;
mod snapshot_key;
mod unfollowed;
pub(crate) mod world;

use std::collections::BTreeSet;

use steep_protocol::ByteCount;
use steep_protocol::message::facts::{
    Finding, OwnedTables, ReachedDatabase, Severity, SourceFacts, TargetFacts,
};
use steep_protocol::message::job::{AbsentTables, Confirmation, Method};

use world::{World, healthy, set, some, take};

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
        // Who adds tables is not told of flags that only init has.
        world.spec.method = Method::Add;
        // An addition excludes nothing.
        let of_filter = |finding: &Finding| finding.code.starts_with("filter_");
        for finding in world.judge().into_iter().filter(|f| !of_filter(f)) {
            let texts = [&finding.what, &finding.why, &finding.fix];
            for flag in [
                "--exclude-table",
                "--include-schema",
                "--dry-run",
                "--method",
            ] {
                let named = texts.iter().any(|text| text.contains(flag));
                assert!(!named, "{code} names {flag}: {finding:?}");
            }
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
        ("replication_conninfo", Error, |w| {
            w.target.server_reached = Some(ReachedDatabase {
                system: 1,
                oid: 7,
                name: "postgres".to_owned(),
            });
        }),
        ("subscription_password", Error, |w| {
            w.target.server_link = Some(Err("password is required".into()));
        }),
    ]);
}

fn theirs() -> Vec<OwnedTables> {
    vec![OwnedTables {
        owner: "ann".to_owned(),
        tables: some("app.theirs"),
    }]
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
            w.source.not_owned = theirs();
        }),
        ("not_owner", Error, |w| {
            w.target.not_owned = theirs();
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
    // Those of tables that are created beside them do.
    let created = |w: &mut World| {
        w.target.user_tables = 3;
        w.spec.absent = AbsentTables::Created;
    };
    assert!(warned(&created).is_some());
    // From 16 on, PostgreSQL uses each owner's own rights.
    assert_eq!(warned(&|w| w.spec.method = Method::Native), None);
    let old = warned(&|w| {
        w.spec.method = Method::Native;
        w.target.server.version = 150_000;
    });
    assert!(!old.unwrap().contains("--method native"));
    // PostgreSQL loads into tables that have all their indexes.
    let of_index = "app.key(text) of app by the index k of app.orders";
    let with_index = |spoil: &dyn Fn(&mut World)| {
        warned(&|w| {
            w.source.index_code = some(of_index);
            spoil(w);
        })
    };
    assert!(!with_index(&|_| {}).unwrap().contains(of_index));
    // Until all is made, tables beside others belong to the agent's role.
    assert!(with_index(&created).unwrap().contains(of_index));
    let old = with_index(&|w| {
        w.spec.method = Method::Native;
        w.target.server.version = 150_000;
    });
    assert!(old.unwrap().contains(of_index));
}

#[test]
fn code_of_owners_is_not_run_with_more_rights_where_nobody_has_asked_for_it() {
    let severity = |confirmation| {
        let mut world = healthy();
        world.source.owner_code = some("app.fine(integer) of app by a check of app.orders");
        world.target.server.powers = vec!["SUPERUSER".to_owned()];
        world.spec.method = Method::Add;
        world.spec.confirmation = confirmation;
        let found = world.judge();
        let found = found.iter().find(|finding| finding.code == "owner_code");
        found.unwrap().severity
    };
    assert_eq!(severity(Confirmation::Given), Warning);
    assert_eq!(severity(Confirmation::Needed), Error);
}
