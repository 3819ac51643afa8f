//! Free capacity for the job: slots, walsenders, workers, connections, locks.

use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::Method;

use super::servers::quoted;
use super::text::counted;
use super::{End, Pair, Text, error, warning};

/// Connections besides the COPY workers on the source: the snapshot's session, `pg_dump`, the current
/// command, and the agent's observations of slots and of locks.
const SOURCE_EXTRA_CONNECTIONS: u64 = 5;

/// Connections besides the workers on the target: the current command, the ledger, the observations of
/// subscriptions and of locks, and the one that keeps the WAL writer busy.
const TARGET_EXTRA_CONNECTIONS: u64 = 5;

/// The share of the lock table's nominal size that one job may need; the rest is for other sessions. The
/// table can grow into unused shared memory, but nothing reserves that.
const LOCK_TABLE_SAFE: f64 = 0.9;

/// Above this share, the locks of other sessions can fill the table.
const LOCK_TABLE_COMFORT: f64 = 0.6;

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let (source, target) = (pair.source_end(), pair.target_end());
    let parallel = u64::from(pair.spec.parallel);
    let native = pair.spec.method == Method::Native;
    let table_workers = if native {
        sync_workers(pair).min(parallel)
    } else {
        0
    };

    findings.extend(wal_level(&source));
    let slots = 1 + table_workers;
    if pair.makes_slot() {
        findings.extend(slot_room(&source, slots));
    }
    findings.extend(room(
        &source,
        "wal_senders",
        "max_wal_senders",
        slots,
        WAL_SENDER,
    ));
    let copying = if native || pair.is_restored() {
        0
    } else {
        parallel
    };
    findings.extend(connections(&source, copying + SOURCE_EXTRA_CONNECTIONS));
    findings.extend(connections(&target, copying + TARGET_EXTRA_CONNECTIONS));

    // Before 18 the subscriber's origins were bounded by max_replication_slots.
    let origins = match target.server.capacity("max_active_replication_origins") {
        Some(_) => "max_active_replication_origins",
        None => "max_replication_slots",
    };
    findings.extend(room(&target, "replication_origins", origins, slots, ORIGIN));
    let workers = "max_logical_replication_workers";
    findings.extend(room(&target, "logical_workers", workers, slots, WORKER));
    findings.extend(room(
        &target,
        "worker_processes",
        "max_worker_processes",
        slots,
        WORKER,
    ));
    if native {
        findings.extend(native_workers(pair));
    }
    if !pair.is_restored() {
        findings.extend(locks(&source, pair.source.tables));
    }
}

/// Capacity for a prepared slot.
pub(super) fn judge_source(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let source = pair.source_end();
    findings.extend(wal_level(&source));
    findings.extend(slot_room(&source, 1));
}

fn slot_room(source: &End<'_>, slots: u64) -> Option<Finding> {
    let bound = "max_replication_slots";
    room(source, "replication_slots", bound, slots, SLOT)
}

/// How findings name a capacity and its use.
#[derive(Clone, Copy)]
struct Resource {
    one: &'static str,
    many: &'static str,
    why: &'static str,
}

const SLOT: Resource = Resource {
    one: "replication slot",
    many: "replication slots",
    why: "the slot keeps the changes that are made while the rows are copied",
};
const WAL_SENDER: Resource = Resource {
    one: "walsender",
    many: "walsenders",
    why: "a walsender sends the changes to the subscription, for as long as the replica lives",
};
const ORIGIN: Resource = Resource {
    one: "replication origin",
    many: "replication origins",
    why: "the origin remembers how far the subscription has come",
};
const WORKER: Resource = Resource {
    one: "background worker",
    many: "background workers",
    why: "a worker applies the changes of the subscription, for as long as the replica lives",
};

/// An error if fewer are free than needed, a warning if none would be left.
fn room(end: &End<'_>, code: &str, bound: &str, need: u64, of: Resource) -> Option<Finding> {
    let capacity = end.server.capacity(bound)?;
    let free = capacity.free();
    if free > need {
        return None;
    }
    let raised = capacity.used.max(capacity.limit) + need;
    let fix = format!("set {bound} to {raised} or more and restart this server");
    let what = format!(
        "{} {} free ({bound} is {}), the job needs {need}",
        counted(free, of.one, of.many),
        if free == 1 { "is" } else { "are" },
        capacity.limit
    );
    if free < need {
        return Some(error(code, end.node, Text::new(what, of.why, fix)));
    }
    let why = format!("{}; none would be left for others", of.why);
    Some(warning(code, end.node, Text::new(what, why, fix)))
}

fn wal_level(end: &End<'_>) -> Option<Finding> {
    let level = end.server.setting("wal_level")?;
    (level != "logical").then(|| {
        error(
            "wal_level",
            end.node,
            Text::new(
                format!("wal_level is {level}"),
                "changes can only be decoded from WAL written at level logical",
                "ALTER SYSTEM SET wal_level = 'logical', then restart this server",
            ),
        )
    })
}

fn connections(end: &End<'_>, need: u64) -> Option<Finding> {
    let bounds = [
        "max_connections",
        "role_connection_limit",
        "database_connection_limit",
    ];
    let tightest = bounds
        .iter()
        .filter_map(|bound| end.server.capacity(bound))
        .min_by_key(|capacity| capacity.free())?;
    let free = tightest.free();
    if free > need {
        return None;
    }
    let bound = &tightest.bound_by;
    let wanted = tightest.used + need + 1;
    let fix = match bound.as_str() {
        "role_connection_limit" => format!(
            "ALTER ROLE {} CONNECTION LIMIT {wanted}, or use a smaller --parallel",
            quoted(&end.server.role)
        ),
        "database_connection_limit" => format!(
            "ALTER DATABASE {} CONNECTION LIMIT {wanted}, or use a smaller --parallel",
            quoted(&end.server.database)
        ),
        _ => "close sessions, raise max_connections and restart, or use a smaller --parallel"
            .to_owned(),
    };
    let text = Text::new(
        format!(
            "{} free ({bound} allows this role {}), the job takes up to {need}",
            counted(free, "connection is", "connections are"),
            tightest.limit
        ),
        "each worker copies through a connection of its own",
        fix,
    );
    Some(if free < need {
        error("connections", end.node, text)
    } else {
        warning("connections", end.node, text)
    })
}

fn sync_workers(pair: &Pair<'_>) -> u64 {
    let setting = pair
        .target
        .server
        .number("max_sync_workers_per_subscription");
    setting.map_or(1, |n| u64::try_from(n).unwrap_or(0))
}

fn native_workers(pair: &Pair<'_>) -> Option<Finding> {
    let (available, parallel) = (sync_workers(pair), u64::from(pair.spec.parallel));
    if available >= parallel {
        return None;
    }
    let fix = format!(
        "ALTER SYSTEM SET max_sync_workers_per_subscription = {parallel}, then SELECT pg_reload_conf()"
    );
    let what = format!("max_sync_workers_per_subscription is {available}");
    let node = &pair.spec.target;
    Some(if available == 0 {
        let why = "the native method copies by these workers; without one no table is ever copied";
        error("sync_workers", node, Text::new(what, why, fix))
    } else {
        let why = format!("only {available} of {parallel} tables are copied at a time");
        warning("sync_workers", node, Text::new(what, why, fix))
    })
}

/// The number of sessions and workers by which the server sizes its lock table (`MaxBackends` in postinit.c
/// and `NLOCKENTS` in lock.c).
fn lock_holders(end: &End<'_>) -> Option<u64> {
    const HOLDERS: [&str; 3] = [
        "max_prepared_transactions",
        "max_worker_processes",
        "max_wal_senders",
    ];
    let number = |name| end.server.number(name).and_then(|n| u64::try_from(n).ok());
    let connections = number("max_connections")?;
    // Since 18 there are more slots for autovacuum workers than workers.
    let autovacuum = number("autovacuum_worker_slots").or_else(|| number("autovacuum_max_workers"));
    let others: u64 = HOLDERS.iter().filter_map(|name| number(name)).sum();
    Some(connections + others + autovacuum.unwrap_or(0))
}

/// `CREATE PUBLICATION` and `pg_dump`, which run one after the other, lock every table at once.
fn locks(end: &End<'_>, tables: u64) -> Option<Finding> {
    let each = end.server.number("max_locks_per_transaction")?;
    let holders = lock_holders(end)?;
    let nominal = u64::try_from(each).unwrap_or(0) * holders;
    if tables as f64 <= nominal as f64 * LOCK_TABLE_COMFORT {
        return None;
    }
    // Twice what is needed, rounded up to a multiple of 64.
    let wanted = (tables * 2).div_ceil(holders.max(1)).next_multiple_of(64);
    let text = Text::new(
        format!(
            "max_locks_per_transaction is {each}, which makes room for about {nominal} locks of all sessions; pg_dump and CREATE PUBLICATION hold {tables} at once"
        ),
        "a full lock table ends the job, and statements of other sessions too",
        format!(
            "on {}: ALTER SYSTEM SET max_locks_per_transaction = {wanted}, then restart its PostgreSQL",
            end.node
        ),
    );
    Some(if tables as f64 > nominal as f64 * LOCK_TABLE_SAFE {
        error("locks", end.node, text)
    } else {
        warning("locks", end.node, text)
    })
}
