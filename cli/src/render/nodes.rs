//! Nodes as text: a table of all, and one in full.

use steep_protocol::message::api::NodeView;
use steep_protocol::message::handover::PreparedSlot;
use steep_protocol::message::switchover::SwitchoverStep;
use steep_protocol::{Fault, NodeId, NodeState};

use super::table::{pairs, table};
use super::waiting::waiting;
use super::{Paint, clean, missing, prepared, switchover};
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
                role(node).unwrap_or_else(dash),
                node_state(node).map_or_else(dash, |known| state(known, paint)),
                node.progress.map_or_else(dash, units::percent),
                node.lag_bytes.map_or_else(dash, units::size),
                agent(node, paint),
                postgres(node, paint),
            ]
        })
        .collect();
    let header = [
        "NODE",
        "ROLE",
        "STATE",
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
pub(crate) fn status(
    node: &NodeView,
    slots: &[PreparedSlot],
    fault: Option<&Fault>,
    paint: Paint,
) -> String {
    let mut lines = vec![
        ("role", role(node).unwrap_or_else(dash)),
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
    lines.extend(initialised(node));
    if let Some(loaded) = &node.loaded {
        let source = &loaded.source_node;
        let text = format!(
            "snapshot {} of {source}, {} rows as of {}; it does not follow {source}",
            loaded.snapshot_id,
            units::count(loaded.rows),
            loaded.lsn
        );
        lines.push(("loaded", text));
    }
    if let Some(detached) = &node.detached {
        let text = format!(
            "from {} since {:.0}, by {}; its rows are its own",
            detached.source_node,
            detached.detached_at,
            clean(&detached.operator)
        );
        lines.push(("detached", text));
    }
    if let Some(last) = &node.switchover {
        lines.push(("switchover", switchover::status(last)));
    }
    lines.extend(sequences(node));
    lines.extend(regularly(node));
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
    if let Some(fault) = fault.filter(|fault| !fault.hint.is_empty()) {
        lines.push(("hint", clean(&fault.hint)));
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
    for (step, label) in next_steps(node, fault).into_iter().zip(["next", "or"]) {
        lines.push((label, step));
    }
    let head = match node_state(node) {
        Some(known) => format!("{}  {}", paint.bold(id), state(known, paint)),
        None => paint.bold(id),
    };
    format!("{head}\n{}", pairs(&lines, 2, paint))
}

/// When its sequences were last set to its source's.
fn sequences(node: &NodeView) -> Option<(&'static str, String)> {
    let known = node.sequences.as_ref()?;
    let at = known.set_at?;
    let count = match known.followed {
        0 => String::new(),
        followed => format!("{} ", units::count(followed)),
    };
    let text = format!("{count}set to the source's at {at:.0}");
    Some(("sequences", text))
}

/// How its rows are compared regularly, and what came of it.
fn regularly(node: &NodeView) -> Option<(&'static str, String)> {
    let known = node.verify.as_ref()?;
    #[expect(clippy::cast_precision_loss, reason = "at most a year")]
    let every = units::duration(known.every_seconds as f64);
    let result = match (known.equal, &known.message) {
        (Some(true), _) => "equal".to_owned(),
        (Some(false), Some(tables)) => format!("other rows in {}", clean(tables)),
        (_, Some(why)) => format!("not known: {}", clean(why)),
        (_, None) => "not known".to_owned(),
    };
    let last = match known.last_at {
        Some(at) => format!("{result} at {at:.0}"),
        None => "not yet".to_owned(),
    };
    let next = match known.running {
        true => "at work now".to_owned(),
        false => format!("next at {:.0}", known.next_at),
    };
    Some(("rows", format!("compared every {every}: {last}; {next}")))
}

/// When its last job began and, if it succeeded, ended; under a label that is true of its state.
fn initialised(node: &NodeView) -> Option<(&'static str, String)> {
    let started = node.init_started_at?;
    let completed = node.init_completed_at.filter(|at| *at >= started);
    let text = match completed {
        Some(completed) => {
            let seconds = completed.duration_since(started).as_secs_f64();
            let took = units::duration(seconds);
            format!("{started:.0} to {completed:.0}, {took}")
        }
        None => format!("{started:.0}"),
    };
    let label = match (node.state, completed) {
        (NodeState::Synchronized | NodeState::Diverged, Some(_)) => "initialised",
        _ if node.loaded.is_some() => "last load",
        (state, None) if state.is_active() => "init began",
        _ => "last init",
    };
    Some((label, text))
}

/// What to do next, the best first.
fn next_steps(node: &NodeView, fault: Option<&Fault>) -> Vec<String> {
    let id = node.node_id.as_str();
    let source = node.source_node.as_ref().map_or("SOURCE", |s| s.as_str());
    let init = format!("steep-repl init {id} --from {source}");
    let cancel = format!("steep-repl init cancel --node {id}");
    match node.state {
        NodeState::Failed if node.kept_until.is_some() => {
            vec![format!("{init} --resume"), cancel]
        }
        NodeState::Failed => {
            let error = node.error_message.as_deref().unwrap_or_default();
            if has_flag(error, "--force-cleanup") {
                return vec![format!("{cancel} --force-cleanup")];
            }
            // The same command would fail again.
            let force = fault.is_some_and(|fault| has_flag(&fault.hint, "--force"));
            vec![
                format!("{init}{}", if force { " --force" } else { "" }),
                cancel,
            ]
        }
        NodeState::Diverged => {
            let anew = format!("{cancel}, then {init} --force");
            if node.needs_init {
                let reinit = format!("steep-repl reinit --node {id} --full");
                return vec![reinit, anew];
            }
            let error = node.error_message.as_deref().unwrap_or_default();
            let mend = match &node.subscription_name {
                Some(name) if error.contains("REFRESH PUBLICATION") => format!(
                    "make what is missing on {id}, empty, then run there in SQL: \
                     ALTER SUBSCRIPTION {name} REFRESH PUBLICATION;"
                ),
                _ => "remove the cause: the node is synchronized again by itself".to_owned(),
            };
            vec![mend, anew]
        }
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Reinitializing => {
            vec![format!("steep-repl init progress --node {id} --follow")]
        }
        NodeState::Uninitialized | NodeState::Synchronized => Vec::new(),
    }
}

/// Whether a text names that flag.
fn has_flag(text: &str, flag: &str) -> bool {
    text.split(|c: char| c.is_whitespace() || ",.;:()`".contains(c))
        .any(|word| word == flag)
}

/// Replicas named in a role.
const REPLICAS_NAMED: usize = 3;

/// `replica of node_a, source of node_c`, or `loaded from node_a`; `None` for a node that is none of it.
pub(crate) fn role(node: &NodeView) -> Option<String> {
    let replica = node.source_node.iter().filter(|_| is_replica(node));
    let mut parts: Vec<_> = replica
        .map(|source| format!("replica of {source}"))
        .collect();
    let loaded = node.loaded.as_ref();
    parts.extend(loaded.map(|loaded| format!("loaded from {}", loaded.source_node)));
    parts.extend(moved(node));
    let replicas: Vec<_> = node.replicas.iter().map(NodeId::as_str).collect();
    match replicas.len() {
        0 => {}
        1..=REPLICAS_NAMED => parts.push(format!("source of {}", replicas.join(", "))),
        more => parts.push(format!("source of {more} nodes")),
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What a completed switchover has made of a node that follows nobody.
fn moved(node: &NodeView) -> Option<String> {
    let last = node.switchover.as_deref().filter(|_| !is_replica(node))?;
    let completed = last.step == SwitchoverStep::Completed;
    completed.then(|| match last.to == node.node_id {
        true => format!("takes writes in place of {}", last.from),
        false if last.lifted => format!("no longer read-only, though {} takes writes", last.to),
        false => format!("read-only, in favour of {}", last.to),
    })
}

/// Whether it has rows of its source, or is to get them. A failed job that kept nothing leaves none.
fn is_replica(node: &NodeView) -> bool {
    match node.state {
        NodeState::Uninitialized => false,
        NodeState::Failed => node.kept_until.is_some(),
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Synchronized
        | NodeState::Diverged
        | NodeState::Reinitializing => true,
    }
}

/// The state; `None` for a node that is only a source.
fn node_state(node: &NodeView) -> Option<NodeState> {
    let is_source = node.state == NodeState::Uninitialized && !node.replicas.is_empty();
    (!is_source).then_some(node.state)
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
    use steep_protocol::FaultKind;

    use super::super::samples::{self, at, id, node};
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
        let mut source = node("node_a", NodeState::Uninitialized);
        source.replicas = vec![id("node_b"), id("node_c")];
        vec![source, following, copying, failed, down]
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
            .map(|node| status(node, &[], None, Paint::Plain))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn a_node_is_a_replica_and_initialised_only_where_that_is_true() {
        let of = |state| {
            let mut view = node("node_b", state);
            view.source_node = Some(id("node_a"));
            view.init_started_at = Some(at(0));
            view
        };
        let copying = of(NodeState::Copying);
        assert_eq!(initialised(&copying).unwrap().0, "init began");
        let mut failed = of(NodeState::Failed);
        assert_eq!(initialised(&failed).unwrap().0, "last init");
        assert_eq!(role(&failed), None);
        failed.kept_until = Some(at(1));
        assert_eq!(role(&failed).unwrap(), "replica of node_a");
        let mut cancelled = of(NodeState::Uninitialized);
        cancelled.init_completed_at = Some(at(5));
        assert_eq!(initialised(&cancelled).unwrap().0, "last init");
        cancelled.state = NodeState::Synchronized;
        assert_eq!(initialised(&cancelled).unwrap().0, "initialised");
    }

    #[test]
    fn a_node_that_was_loaded_says_of_what_and_that_it_does_not_follow() {
        let mut view = node("node_b", NodeState::Uninitialized);
        view.init_started_at = Some(at(0));
        view.init_completed_at = Some(at(65));
        view.loaded = Some(samples::loaded());
        assert_eq!(role(&view).unwrap(), "loaded from node_a");
        let text = status(&view, &[], None, Paint::Plain);
        for part in [
            "node_b  uninitialized",
            "51358f153ac8daae of node_a, 4,100,000 rows as of 16/B374D848",
            "it does not follow node_a",
            "last load",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn the_next_step_is_one_that_helps() {
        let mut failed = node("node_b", NodeState::Failed);
        failed.source_node = Some(id("node_a"));
        let fault = Fault::new(FaultKind::Failed, "tables hold rows").hint("use --force");
        assert_eq!(
            next_steps(&failed, Some(&fault))[0],
            "steep-repl init node_b --from node_a --force"
        );
        let pending = Fault::new(FaultKind::Failed, "stopped").hint("or use --force-cleanup");
        assert_eq!(
            next_steps(&failed, Some(&pending))[0],
            "steep-repl init node_b --from node_a"
        );
        failed.error_message = Some("given up: init cancel --force-cleanup removes it".to_owned());
        assert_eq!(
            next_steps(&failed, None),
            ["steep-repl init cancel --node node_b --force-cleanup"]
        );
        failed.kept_until = Some(at(0));
        assert_eq!(
            next_steps(&failed, None)[0],
            "steep-repl init node_b --from node_a --resume"
        );
        let mut diverged = node("node_b", NodeState::Diverged);
        diverged.subscription_name = Some("steep_repl_1".to_owned());
        assert!(next_steps(&diverged, None)[0].starts_with("remove the cause"));
        diverged.error_message = Some("run ALTER SUBSCRIPTION … REFRESH PUBLICATION".to_owned());
        let steps = next_steps(&diverged, None);
        assert!(steps[0].ends_with("ALTER SUBSCRIPTION steep_repl_1 REFRESH PUBLICATION;"));
        diverged.needs_init = true;
        assert_eq!(
            next_steps(&diverged, None),
            [
                "steep-repl reinit --node node_b --full",
                "steep-repl init cancel --node node_b, then steep-repl init node_b --from SOURCE --force"
            ]
        );
    }
}
