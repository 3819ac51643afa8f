//! Nodes for people: the table of all, and one in full.

use steep_protocol::NodeState;
use steep_protocol::message::api::NodeView;
use steep_protocol::message::handover::PreparedSlot;

use super::table::{pairs, table};
use super::waiting::waiting;
use super::{Paint, clean, missing, prepared};
use crate::units;

/// Every node, a line each; errors below.
pub(crate) fn nodes(nodes: &[NodeView], paint: Paint) -> String {
    if nodes.is_empty() {
        return "No agent has registered yet: start one with `steep-agent run`.\n".to_owned();
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                paint.bold(node.node_id.as_str()),
                state(node.state, paint),
                node.source_node
                    .as_ref()
                    .map_or_else(dash, ToString::to_string),
                node.progress.map_or_else(dash, units::percent),
                node.lag_bytes.map_or_else(dash, units::size),
                agent(node, paint),
                postgres(node, paint),
            ]
        })
        .collect();
    let header = [
        "NODE",
        "STATE",
        "SOURCE",
        "PROGRESS",
        "LAG",
        "AGENT",
        "POSTGRESQL",
    ];
    let mut text = table(&header, &rows, paint);
    for node in nodes {
        if let Some(waits) = &node.waiting {
            text.push_str(&format!("{}: {}\n", node.node_id, waiting(waits)));
        }
        for error in node.error_message.iter().chain(&node.postgres_error) {
            let error = clean(error);
            text.push_str(&format!("{}: {}\n", node.node_id, paint.red(&error)));
        }
        if node.missing_objects > 0 {
            let line = missing::line(&node.node_id, node.missing_objects, paint);
            text.push_str(&format!("{}: {line}\n", node.node_id));
        }
        for warning in &node.warnings {
            let warning = clean(warning);
            text.push_str(&format!("{}: {}\n", node.node_id, paint.yellow(&warning)));
        }
    }
    text
}

/// One node in full.
pub(crate) fn status(node: &NodeView, slots: &[PreparedSlot], paint: Paint) -> String {
    let mut lines = vec![
        (
            "source",
            node.source_node
                .as_ref()
                .map_or_else(dash, ToString::to_string),
        ),
        (
            "agent",
            match &node.agent_version {
                Some(version) => format!("{}, version {}", agent(node, paint), clean(version)),
                None => agent(node, paint),
            },
        ),
        ("postgresql", postgres(node, paint)),
    ];
    if let Some(error) = &node.postgres_error {
        lines.push(("", paint.red(&clean(error))));
    }
    if let Some(started) = node.init_started_at {
        let text = match node
            .init_completed_at
            .filter(|completed| *completed >= started)
        {
            Some(completed) => {
                let seconds = completed.duration_since(started).as_secs_f64();
                format!(
                    "{started:.0} to {completed:.0}, {}",
                    units::duration(seconds)
                )
            }
            None => format!("since {started:.0}"),
        };
        lines.push(("initialised", text));
    }
    if let Some(progress) = node.progress {
        lines.push(("progress", units::percent(progress)));
    }
    if let Some(lag) = node.lag_bytes {
        lines.push(("lag", format!("{} of WAL not confirmed", units::size(lag))));
    }
    if let Some(held) = node.wal_held_bytes {
        lines.push(("WAL held", format!("{} on the source", units::size(held))));
    }
    if node.missing_objects > 0 {
        let line = missing::line(&node.node_id, node.missing_objects, paint);
        lines.push(("missing", line));
    }
    for slot in slots {
        lines.push(("prepared", prepared::line(slot, paint)));
    }
    if let Some(error) = &node.error_message {
        lines.push(("error", paint.red(&clean(error))));
    }
    for warning in &node.warnings {
        lines.push(("warning", paint.yellow(&clean(warning))));
    }
    if let Some(waits) = &node.waiting {
        lines.push(("waiting", waiting(waits)));
    }
    let id = node.node_id.as_str();
    if let Some(until) = node.kept_until {
        lines.push(("kept", format!("what it has, until {until:.0}")));
    }
    lines.extend(next_step(node).map(|step| ("next", step)));
    format!(
        "{}  {}\n{}",
        paint.bold(id),
        state(node.state, paint),
        pairs(&lines, 2, paint)
    )
}

/// What somebody who reads the node's state would do next.
fn next_step(node: &NodeView) -> Option<String> {
    let id = node.node_id.as_str();
    let source = node.source_node.as_ref().map_or("SOURCE", |s| s.as_str());
    match node.state {
        NodeState::Failed if node.kept_until.is_some() => Some(format!(
            "steep-repl init {id} --from {source} --resume, or steep-repl init cancel --node {id}"
        )),
        NodeState::Failed => Some(format!(
            "steep-repl init {id} --from {source}, or steep-repl init cancel --node {id}"
        )),
        NodeState::Diverged => Some(format!(
            "mend the cause, or steep-repl init cancel --node {id}, then init {id} --from {source} --force"
        )),
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Reinitializing => {
            Some(format!("steep-repl init progress --node {id} --follow"))
        }
        NodeState::Uninitialized | NodeState::Synchronized => None,
    }
}

/// A state in its colour.
pub(crate) fn state(state: NodeState, paint: Paint) -> String {
    let text = state.as_str();
    match state {
        NodeState::Uninitialized => paint.dim(text),
        NodeState::Synchronized => paint.green(text),
        NodeState::Diverged | NodeState::Failed => paint.red(text),
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Reinitializing => paint.cyan(text),
    }
}

fn agent(node: &NodeView, paint: Paint) -> String {
    if node.agent_online {
        "online".to_owned()
    } else {
        paint.red("offline")
    }
}

/// `server_version_num` as PostgreSQL writes it since version 10: `180006` is 18.6.
fn postgres(node: &NodeView, paint: Paint) -> String {
    match (&node.postgres_error, node.postgres_version) {
        (Some(_), _) => paint.red("error"),
        (None, Some(version)) => format!("{}.{}", version / 10_000, version % 10_000),
        (None, None) => dash(),
    }
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::samples::{at, id, node};
    use super::*;

    fn all() -> Vec<NodeView> {
        let mut following = node("node_b", NodeState::Synchronized);
        following.source_node = Some(id("node_a"));
        following.init_started_at = Some(at(0));
        following.init_completed_at = Some(at(65));
        following.lag_bytes = Some(1_234_567);
        following.wal_held_bytes = Some(16_777_216);
        let mut copying = node("node_c", NodeState::Copying);
        copying.source_node = Some(id("node_a"));
        copying.progress = Some(43.19);
        let mut failed = node("a-much-longer-name", NodeState::Failed);
        failed.agent_online = false;
        failed.postgres_version = None;
        failed.error_message = Some("the disk is full".to_owned());
        let mut down = node("node_d", NodeState::Uninitialized);
        down.postgres_error = Some("connection refused".to_owned());
        vec![
            node("node_a", NodeState::Uninitialized),
            following,
            copying,
            failed,
            down,
        ]
    }

    #[test]
    fn all_nodes_are_a_table_with_errors_below() {
        insta::assert_snapshot!(nodes(&all(), Paint::Plain));
        insta::assert_snapshot!(nodes(&[], Paint::Plain));
    }

    #[test]
    fn colours_do_not_move_columns() {
        let painted = nodes(&all(), Paint::Ansi);
        assert_eq!(
            console::strip_ansi_codes(&painted),
            nodes(&all(), Paint::Plain)
        );
    }

    #[test]
    fn one_node_is_shown_in_full_with_the_next_step() {
        let text: Vec<_> = all()
            .iter()
            .map(|node| status(node, &[], Paint::Plain))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
