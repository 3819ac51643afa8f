//! What an agent tells of a server with which nothing is wrong, and with room for a crowd of jobs.

use steep_protocol::message::facts::{Capacity, ServerFacts};
use steep_protocol::message::lineage::{Identity, Lineage};

/// A server with which nothing is wrong.
pub(crate) fn server(system: u64) -> ServerFacts {
    let settings = [
        ("wal_level", "logical"),
        ("max_slot_wal_keep_size", "-1"),
        ("max_connections", "500"),
        ("max_worker_processes", "64"),
        ("max_wal_senders", "100"),
        ("max_locks_per_transaction", "64"),
    ];
    let bounds = [
        "max_replication_slots",
        "max_wal_senders",
        "max_connections",
        "max_logical_replication_workers",
        "max_worker_processes",
        "max_active_replication_origins",
    ];
    ServerFacts {
        version: 180_001,
        lineage: Lineage {
            identity: Some(Identity {
                system,
                database: 5,
                timeline: 1,
                started: 100,
            }),
            ..Lineage::default()
        },
        database: "app".to_owned(),
        role: "postgres".to_owned(),
        superuser: true,
        replication: true,
        can_create: true,
        can_subscribe: true,
        can_silence_triggers: true,
        can_advance_origin: true,
        encoding: "UTF8".to_owned(),
        collation: "libc C".to_owned(),
        settings: settings.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
        capacity: bounds
            .map(|bound| Capacity {
                bound_by: bound.to_owned(),
                limit: 500,
                used: 0,
            })
            .to_vec(),
        ..ServerFacts::default()
    }
}
