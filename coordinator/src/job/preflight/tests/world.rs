//! Two healthy servers, and helpers to break them.

use jiff::Timestamp;
use steep_protocol::message::facts::{
    AvailableExtension, Capacity, Finding, Listed, ServerFacts, SourceFacts, TargetFacts,
};
use steep_protocol::message::handover::{
    NotedSlot, Replication, SchemaCheck, ServerSlot, SlotFacts, SlotName,
};
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::lineage::{Identity, Lineage};
use steep_protocol::{ByteCount, JobId, Lsn, NodeId};

use super::super::super::handover::{Handover, StoredRows};
use super::super::super::lineage::Around;

/// A job and the facts of both ends.
pub(super) struct World {
    pub(super) spec: JobSpec,
    pub(super) source: SourceFacts,
    pub(super) target: TargetFacts,
    pub(super) handover: Option<(Handover, SlotFacts)>,
    pub(super) stored: Option<StoredRows>,
    pub(super) around: Around,
}

impl World {
    pub(super) fn judge(&self) -> Vec<Finding> {
        super::super::judge(&super::super::Case {
            spec: &self.spec,
            source: &self.source,
            target: &self.target,
            handover: self
                .handover
                .as_ref()
                .map(|(handover, slot)| (handover, slot)),
            stored: self.stored.as_ref(),
            around: &self.around,
        })
    }
}

pub(super) fn capacity(bound_by: &str, limit: u64, used: u64) -> Capacity {
    Capacity {
        bound_by: bound_by.to_owned(),
        limit,
        used,
    }
}

pub(super) fn healthy_server(identity: Identity) -> ServerFacts {
    let settings = [
        ("wal_level", "logical"),
        ("max_slot_wal_keep_size", "-1"),
        ("idle_replication_slot_timeout", "0"),
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("lock_timeout", "0"),
        ("transaction_timeout", "0"),
        ("wal_sender_timeout", "60000"),
        ("max_locks_per_transaction", "64"),
        ("max_connections", "100"),
        ("max_prepared_transactions", "0"),
        ("max_worker_processes", "8"),
        ("max_wal_senders", "10"),
        ("autovacuum_worker_slots", "16"),
        ("max_sync_workers_per_subscription", "4"),
        ("max_wal_size", "1024"),
    ];
    ServerFacts {
        event_triggers: Default::default(),
        version: 180_001,
        lineage: Lineage {
            identity: Some(identity),
            ..Lineage::default()
        },
        database: "shop".to_owned(),
        role: "steep".to_owned(),
        superuser: false,
        replication: true,
        can_create: true,
        can_subscribe: true,
        can_silence_triggers: true,
        can_advance_origin: true,
        in_recovery: false,
        encoding: "UTF8".to_owned(),
        collation: "libc en_US.UTF-8".to_owned(),
        collation_version: Some("2.36".to_owned()),
        settings: settings.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
        capacity: vec![
            capacity("max_replication_slots", 10, 0),
            capacity("max_wal_senders", 10, 0),
            capacity("max_connections", 97, 6),
            capacity("max_logical_replication_workers", 8, 0),
            capacity("max_worker_processes", 8, 1),
            capacity("max_active_replication_origins", 10, 0),
        ],
        extensions: vec![("plpgsql".to_owned(), "1.0".to_owned())],
        clock_ahead_seconds: 0.001,
        pooled: None,
        powers: Vec::new(),
    }
}

/// A source of which a preflight finds nothing.
pub(crate) fn healthy_source() -> SourceFacts {
    SourceFacts {
        server: healthy_server(identity(1)),
        tables: 12,
        total_bytes: ByteCount(50_000_000_000),
        sequences: 0,
        roles: vec!["owner".to_owned()],
        replication_link: Some(Ok(())),
        pg_dump: Some(Ok(18)),
        ..SourceFacts::default()
    }
}

pub(super) fn healthy() -> World {
    let source = healthy_source();
    let target = TargetFacts {
        server: healthy_server(identity(2)),
        extensions_available: vec![AvailableExtension {
            name: "hstore".to_owned(),
            may_create: true,
        }],
        roles: vec!["owner".to_owned(), "steep".to_owned()],
        disk_free: Some(ByteCount(200_000_000_000)),
        agent_link: Some(Ok(300)),
        server_link: Some(Ok(())),
        clock_ahead_seconds: -0.2,
        ..TargetFacts::default()
    };
    let spec = JobSpec::new(
        NodeId::parse("node_a").unwrap(),
        NodeId::parse("node_b").unwrap(),
    );
    World {
        spec,
        source,
        target,
        handover: None,
        stored: None,
        around: Around::default(),
    }
}

/// Server number `system`; the database is the same on each.
pub(super) fn identity(system: u64) -> Identity {
    Identity {
        system,
        database: 5,
        timeline: 1,
        started: 100,
    }
}

/// As [`healthy`], with a backup restored on the target.
pub(super) fn restored() -> World {
    let mut world = healthy();
    world.spec.method = Method::Backup;
    world.target.user_tables = 12;
    world.target.not_empty = some("public.t");
    let handover = Handover {
        replication: Replication {
            id: JobId(7),
            slot: SlotName::parse("monday").unwrap(),
        },
        lsn: Lsn(150),
        schema: SchemaCheck::Compared,
    };
    let slot = SlotFacts {
        noted: Some(NotedSlot {
            lsn: Lsn(100),
            expires_at: Timestamp::MAX,
            expired: false,
            target: None,
        }),
        slot: Some(ServerSlot {
            plugin: Some("pgoutput".to_owned()),
            own_database: true,
            active: false,
            wal_status: "reserved".to_owned(),
            invalidated: None,
            restart: Some(Lsn(90)),
            confirmed: Some(Lsn(100)),
        }),
        wal_end: Lsn(200),
        published: true,
        ..SlotFacts::default()
    };
    world.handover = Some((handover, slot));
    world
}

pub(super) fn set(server: &mut ServerFacts, name: &str, value: &str) {
    server.settings.retain(|(known, _)| known != name);
    server.settings.push((name.to_owned(), value.to_owned()));
}

pub(super) fn take(server: &mut ServerFacts, bound_by: &str, limit: u64, used: u64) {
    server.capacity.retain(|c| c.bound_by != bound_by);
    server.capacity.push(capacity(bound_by, limit, used));
}

pub(super) fn some(name: &str) -> Listed {
    std::iter::once(name.to_owned()).collect()
}
