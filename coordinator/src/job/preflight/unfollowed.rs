//! What does not matter to a job whose target will not follow its source. It gets rows, schema and sequences from
//! what was stored, so nobody reads the source's tables, and no slot, publication or subscription is made.

use steep_protocol::message::facts::Finding;

use super::Pair;

/// Codes of findings about replication, on either node.
const OF_REPLICATION: [&str; 26] = [
    "logical_workers",
    "no_replica_identity",
    "origin_privilege",
    "owner_privileges",
    "replica_identity_equality",
    "replica_identity_generated",
    "replica_identity_needed",
    "replica_identity_not_sent",
    "replication_conninfo",
    "replication_connection",
    "replication_origins",
    "replication_privilege",
    "replication_slots",
    "row_security_forced",
    "sequences",
    "server_link",
    "slot_idle_timeout",
    "slot_wal_limit",
    "subscription_password",
    "subscription_privilege",
    "target_key",
    "transaction_timeout",
    "wal_level",
    "wal_sender_timeout",
    "wal_senders",
    "worker_processes",
];

/// Codes of findings about reading and publishing tables, where they are about the source.
const OF_THE_SOURCE: [&str; 16] = [
    "connections",
    "create_privilege",
    "event_triggers",
    "filter_brings_along",
    "filter_leaves_out",
    "filter_matches_nothing",
    "filter_splits",
    "firing_triggers",
    "locks",
    "not_owner",
    "nothing_to_copy",
    "old_snapshot_threshold",
    "pg_dump",
    "row_security",
    "standby",
    "unreadable",
];

/// Whether the finding is about something that the job depends on.
pub(super) fn matters(pair: &Pair<'_>, finding: &Finding) -> bool {
    if pair.spec.method.follows() {
        return true;
    }
    let code = finding.code.as_str();
    let of_the_source = finding.node.as_ref() == Some(&pair.spec.source);
    !(OF_REPLICATION.contains(&code) || of_the_source && OF_THE_SOURCE.contains(&code))
}
