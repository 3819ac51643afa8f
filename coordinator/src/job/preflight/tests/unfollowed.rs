//! Jobs whose target will not follow: what only replication needs, and what reading the source needs, is not judged.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::{OwnedTables, ReachedDatabase};
use steep_protocol::message::job::Method;

use super::Severity::{Error, Warning};
use super::walk_from;
use super::world::{World, healthy, set, some, take};

fn loading() -> World {
    let mut world = healthy();
    world.spec.method = Method::Load;
    world
}

fn theirs() -> Vec<OwnedTables> {
    vec![OwnedTables {
        owner: "ann".to_owned(),
        tables: some("app.theirs"),
    }]
}

#[test]
fn a_load_asks_neither_for_replication_nor_for_a_source_to_read() {
    assert_eq!(loading().judge(), []);
    let mut world = loading();
    let source = &mut world.source;
    for (name, value) in [
        ("wal_level", "replica"),
        ("max_slot_wal_keep_size", "1"),
        ("idle_replication_slot_timeout", "20"),
        ("wal_sender_timeout", "2000"),
        ("old_snapshot_threshold", "60"),
    ] {
        set(&mut source.server, name, value);
    }
    for bound in ["max_replication_slots", "max_wal_senders"] {
        take(&mut source.server, bound, 0, 0);
    }
    take(&mut source.server, "max_connections", 97, 90);
    source.server.replication = false;
    source.server.can_create = false;
    source.server.in_recovery = true;
    source.server.event_triggers = some("audit");
    source.replication_link = Some(Err("no entry in pg_hba.conf".to_owned()));
    source.pg_dump = Some(Err("not installed".to_owned()));
    source.unreadable = some("app.secret");
    source.row_security = some("app.mine");
    source.not_owned = theirs();
    source.owner_denied = some("app.theirs");
    source.firing_triggers = some("app.audited");
    source.sequences = 1;
    // Its tables were dropped since.
    source.tables = 0;
    source.filter.split = some("app.part");
    let target = &mut world.target;
    set(&mut target.server, "transaction_timeout", "60000");
    for bound in [
        "max_active_replication_origins",
        "max_logical_replication_workers",
        "max_worker_processes",
    ] {
        take(&mut target.server, bound, 0, 0);
    }
    target.server.can_subscribe = false;
    target.server.can_advance_origin = false;
    target.server_link = Some(Err("connection refused".to_owned()));
    target.server_reached = Some(ReachedDatabase {
        system: 1,
        oid: 7,
        name: "postgres".to_owned(),
    });
    assert_eq!(world.judge(), []);
}

#[test]
fn what_loading_needs_is_judged_as_for_any_job() {
    walk_from(
        loading,
        &[
            ("standby", Error, |w| w.target.server.in_recovery = true),
            ("agent_link", Error, |w| {
                w.target.agent_link = Some(Err("timed out".to_owned()));
            }),
            ("create_privilege", Error, |w| {
                w.target.server.can_create = false;
            }),
            ("not_owner", Error, |w| w.target.not_owned = theirs()),
            ("trigger_privilege", Error, |w| {
                w.target.server.can_silence_triggers = false;
            }),
            ("connections", Error, |w| {
                take(&mut w.target.server, "max_connections", 97, 90);
            }),
            ("target_not_empty", Error, |w| {
                w.target.user_tables = 1;
                w.target.not_empty = some("app.t");
            }),
            ("disk_space", Error, |w| {
                w.target.disk_free = Some(ByteCount(0));
            }),
            ("unlogged", Warning, |w| {
                w.source.unlogged = some("app.cache");
            }),
        ],
    );
}
