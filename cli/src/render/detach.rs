//! What a detach does, as text.

use steep_protocol::message::api::DetachPlan;

use super::Paint;
use super::table::pairs;
use crate::units;

/// What would be dropped, and what is not applied yet.
pub(crate) fn plan(plan: &DetachPlan, paint: Paint) -> String {
    let (node, source) = (&plan.node_id, &plan.source_node);
    if let Some(at) = plan.detached_at {
        return format!(
            "{node} has been detached from {source} since {at:.0}: there is nothing to do\n"
        );
    }
    let publication = match plan.shared_with.as_slice() {
        [] => format!("publication {}", plan.publication),
        shared => {
            let shared: Vec<&str> = shared.iter().map(steep_protocol::NodeId::as_str).collect();
            format!(
                "publication {} stays for {}",
                plan.publication,
                shared.join(", ")
            )
        }
    };
    let dropped = match plan.source_reachable {
        true => format!("slot {}, {publication}", plan.slot),
        false => paint.yellow(&format!(
            "cannot be reached: until it is back, slot {} stays there with {}",
            plan.slot,
            plan.wal_held_bytes.map_or_else(
                || "its WAL".to_owned(),
                |held| format!("{} of WAL", units::size(held))
            )
        )),
    };
    let applied = match plan.lag_bytes {
        Some(0) => "everything, when it was last looked at; --wait makes sure".to_owned(),
        Some(lag) => paint.yellow(&format!(
            "all but {} of WAL, when it was last looked at; the rest never arrives without --wait",
            units::size(lag)
        )),
        None => paint.yellow("unknown; --wait makes sure"),
    };
    let sequences = match plan.source_reachable {
        true => "set to the source's",
        false => "stay as they are",
    };
    let lines = vec![
        ("applied", applied),
        ("kept", "tables, rows and settings".to_owned()),
        ("sequences", sequences.to_owned()),
        (
            "dropped here",
            format!("subscription {} and its origin", plan.subscription),
        ),
        ("on the source", dropped),
    ];
    format!(
        "{node} stops following {source} for good\n{}",
        pairs(&lines, 2, paint)
    )
}

/// That it is done.
pub(crate) fn done(plan: &DetachPlan) -> String {
    let (node, source) = (&plan.node_id, &plan.source_node);
    match plan.detached_at {
        Some(at) => format!("{node} has been detached from {source} since {at:.0}"),
        None => format!("{node} is detached from {source}: its tables and rows are its own"),
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::NodeState;

    use super::super::samples::{at, id};
    use super::*;

    #[test]
    fn a_plan_says_what_is_dropped_what_stays_and_what_never_arrives() {
        let known = DetachPlan {
            node_id: id("node_b"),
            source_node: id("node_a"),
            state: NodeState::Synchronized,
            source_reachable: true,
            subscription: "steep_repl_1".to_owned(),
            slot: "steep_repl_1".to_owned(),
            publication: "steep_repl_1".to_owned(),
            shared_with: Vec::new(),
            lag_bytes: Some(0),
            wal_held_bytes: Some(0),
            detached_at: None,
        };
        let away = DetachPlan {
            source_reachable: false,
            lag_bytes: Some(1_000_000),
            wal_held_bytes: Some(16_777_216),
            shared_with: vec![id("node_c")],
            ..known.clone()
        };
        let before = DetachPlan {
            detached_at: Some(at(0)),
            ..known.clone()
        };
        let text = [known, away, before].map(|one| plan(&one, Paint::Plain));
        insta::assert_snapshot!(text.join("\n"));
    }
}
