//! The prepared slot that a restored target continues from, and the backup's position in its WAL.

use steep_protocol::NodeId;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::{
    PreparedSlot, PreparedState, SchemaCheck, ServerSlot, SlotFacts,
};

use super::super::handover::{Handover, Position, position};
use super::super::health::Bounds;
use super::super::health::wal_held::{WalHeld, template_of};
use super::text::{bytes, counted, names};
use super::{Pair, Text, error, info, warning};

/// What to do if the slot can no longer be used.
fn anew(pair: &Pair<'_>) -> &'static str {
    match pair.is_restored() {
        true => {
            "prepare another slot with steep-repl init prepare, and take a new backup after that"
        }
        false => {
            "generate another snapshot with steep-repl snapshot generate, or load this one without replication: \
             snapshot apply --no-subscribe"
        }
    }
}

pub(super) fn judge(
    pair: &Pair<'_>,
    handover: &Handover,
    facts: &SlotFacts,
    findings: &mut Vec<Finding>,
) {
    if pair.is_restored() {
        findings.extend(no_backup(pair));
    }
    findings.extend(schema_unchecked(pair, handover));
    let obstacles = obstacles(pair, handover, facts);
    if obstacles.is_empty() {
        // The position can be judged only against a usable slot.
        findings.extend(source_lsn(pair, handover, facts));
    }
    findings.extend(obstacles);
}

/// Findings about prepared slots that no job uses, and about templates of snapshots, for every check of the
/// node.
#[must_use]
pub fn standing<'a>(
    node: &NodeId,
    slots: impl Iterator<Item = &'a PreparedSlot>,
    bounds: Bounds,
) -> Vec<Finding> {
    slots
        .filter_map(|slot| unused(node, slot, bounds))
        .collect()
}

fn unused(node: &NodeId, slot: &PreparedSlot, bounds: Bounds) -> Option<Finding> {
    let name = &slot.replication.slot;
    let drop = format!(
        "steep-repl init prepare --node {node} --slot {name} --drop, once it is not needed"
    );
    let held = WalHeld::of(slot, bounds);
    if let Some(snapshot) = template_of(slot) {
        let held = held?;
        let what = format!("the slot of snapshot {snapshot} {}", held.what());
        let fix = held.fix(snapshot);
        return Some(warning(
            "snapshot_wal_held",
            node,
            Text::new(what, held.why(), fix),
        ));
    }
    match (&slot.state, held) {
        (PreparedState::Waiting, Some(held)) => {
            let what = format!("slot {name}, prepared for a backup, {}", held.what());
            let fix = format!("complete the backup soon, or {drop}");
            Some(warning(
                "prepared_slot",
                node,
                Text::new(what, held.why(), fix),
            ))
        }
        (PreparedState::Waiting, None) => {
            let what = format!(
                "slot {name} is prepared for a backup until {:.0} and holds {} of WAL",
                slot.expires_at,
                bytes(slot.wal_held)
            );
            let why = "WAL that a slot holds stays on this server's disk";
            Some(info("prepared_slot", node, Text::new(what, why, drop)))
        }
        (PreparedState::Lost(reason), _) => {
            let what = format!("slot {name}, prepared for a backup, is lost: {reason}");
            let why = "no backup can be completed with it any more";
            Some(warning("prepared_slot", node, Text::new(what, why, drop)))
        }
        (PreparedState::Taken(_) | PreparedState::Expired, _) => None,
    }
}

fn no_backup(pair: &Pair<'_>) -> Option<Finding> {
    (pair.target.user_tables == 0).then(|| {
        error(
            "no_backup",
            &pair.spec.target,
            Text::new(
                format!("there is no table in database {}", pair.target.server.database),
                "init complete continues from rows restored from a backup, and copies none",
                "restore the backup first, or check --postgres of this agent; to have the rows copied use steep-repl init",
            ),
        )
    })
}

fn schema_unchecked(pair: &Pair<'_>, handover: &Handover) -> Option<Finding> {
    (handover.schema == SchemaCheck::Skipped).then(|| {
        warning(
            "unchecked_schema",
            &pair.spec.target,
            Text::new(
                "the schema was not compared with the source's (--skip-schema-check)",
                "a table or column that is missing or of another type stops the subscription at the first change that needs it",
                "steep-repl schema compare shows the differences at any time",
            ),
        )
    })
}

/// Why the slot cannot be used.
fn obstacles(pair: &Pair<'_>, handover: &Handover, facts: &SlotFacts) -> Vec<Finding> {
    let slot = &handover.replication.slot;
    let node = &pair.spec.source;
    let mut found = Vec::new();
    let mut add = |code: &str, what: String, why: &str, fix: &str| {
        found.push(error(code, node, Text::new(what, why, fix)));
    };
    let anew = anew(pair);
    let lost = match pair.is_restored() {
        true => "only the slot had the changes since the backup",
        false => "only the slot had the changes since the snapshot",
    };
    match &facts.noted {
        None => add(
            "prepared_slot_missing",
            format!("slot {slot} is not prepared here any more"),
            lost,
            anew,
        ),
        Some(noted) => match &noted.target {
            Some(by) if *by != pair.spec.target => add(
                "prepared_slot_taken",
                format!("slot {slot} is used by {by}"),
                "a slot yields its changes to one subscription",
                anew,
            ),
            None if noted.expired => add(
                "prepared_slot_expired",
                format!(
                    "slot {slot} expired at {:.0} and is being dropped",
                    noted.expires_at
                ),
                lost,
                anew,
            ),
            Some(_) | None => {}
        },
    }
    match &facts.slot {
        None => add(
            "prepared_slot_missing",
            format!("there is no replication slot {slot}: somebody dropped it"),
            lost,
            anew,
        ),
        Some(seen) => {
            if let Some(why) = invalid(seen) {
                add(
                    "prepared_slot_lost",
                    format!("slot {slot} cannot be used any more: {why}"),
                    lost,
                    &format!(
                        "raise max_slot_wal_keep_size, or idle_replication_slot_timeout (PostgreSQL 18), then {anew}"
                    ),
                );
            } else if seen.active {
                add(
                    "prepared_slot_active",
                    format!("slot {slot} is in use: something is connected to it"),
                    "what another reader confirms is not sent to this node",
                    "end that reader (pg_replication_slots.active_pid), then try again",
                );
            }
        }
    }
    if facts.noted.is_some() && !facts.published {
        add(
            "prepared_publication_missing",
            format!("the publication {} is gone", handover.replication.name()),
            "it must be older than the slot, so a new publication does not help",
            anew,
        );
    } else if facts.published && !facts.unpublished.is_empty() {
        let tables = &facts.unpublished;
        add(
            "not_prepared",
            format!(
                "{} not in the publication that was prepared: {}",
                counted(tables.count, "table is", "tables are"),
                names(tables)
            ),
            "they were made after init prepare, so their changes are not among what the slot yields",
            anew,
        );
    }
    found
}

/// Why an existing slot cannot be used.
fn invalid(slot: &ServerSlot) -> Option<String> {
    match (&slot.plugin, &slot.invalidated) {
        (_, Some(reason)) => Some(format!("it was invalidated ({reason})")),
        _ if slot.wal_status == "lost" => {
            Some("it has lost WAL that it needs (wal_status is lost)".to_owned())
        }
        (None, _) => Some("it is a physical slot".to_owned()),
        (Some(plugin), _) if plugin != "pgoutput" => Some(format!("it decodes with {plugin}")),
        _ if !slot.own_database => Some("it belongs to another database".to_owned()),
        _ => None,
    }
}

fn source_lsn(pair: &Pair<'_>, handover: &Handover, facts: &SlotFacts) -> Option<Finding> {
    let (lsn, slot) = (handover.lsn, &handover.replication.slot);
    let node = &pair.spec.source;
    match position(lsn, facts) {
        Position::Fits => None,
        Position::BeforeSlot(begins) => Some(error(
            "source_lsn_behind",
            node,
            Text::new(
                format!("slot {slot} yields changes from {begins} on, and --source-lsn is {lsn}"),
                "changes between the two are neither in the backup nor in the slot",
                "check --source-lsn: it is where the backup ends, not where it begins; a backup must end after its slot was prepared, and after any earlier init complete that was cancelled",
            ),
        )),
        Position::AfterEnd(end) => Some(error(
            "source_lsn_ahead",
            node,
            Text::new(
                format!("the source's WAL ends at {end}, and --source-lsn is {lsn}"),
                "changes up to there would be skipped as part of the backup",
                "check --source-lsn, and that the backup is of this source",
            ),
        )),
    }
}
