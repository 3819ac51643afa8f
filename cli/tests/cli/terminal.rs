//! The binary on a pseudo-terminal: bars, prompts, answers.

use rustix::process::Signal;
use steep_protocol::message::api::{ApiReply, ApiRequest, Order, Query};
use steep_protocol::message::facts::Severity;
use steep_protocol::{NodeState, Phase};

use crate::coordinator::{Coordinator, Step};
use crate::pty::OnTerminal;
use crate::views::{accepted, all, ended, findings, node, progress};

/// A job that runs until it is cancelled.
fn endless() -> Coordinator {
    Coordinator::start(|request| match request {
        ApiRequest::Order(Order::Init(_)) => vec![
            Step::Say(accepted("node_b")),
            Step::Say(progress("node_b", NodeState::Copying, Phase::Copy)),
            Step::Hold,
        ],
        ApiRequest::Query(Query::Nodes { .. }) => all(vec![ApiReply::Nodes(vec![node(
            "node_b",
            NodeState::Copying,
        )])]),
        _ => all(vec![]),
    })
}

fn cancels(coordinator: &Coordinator) -> usize {
    let requests = coordinator.requests();
    requests
        .iter()
        .filter(|request| matches!(request, ApiRequest::Order(Order::Cancel { .. })))
        .count()
}

#[test]
fn bars_are_drawn_and_leave_a_report() {
    let coordinator = Coordinator::start(|_| {
        all(vec![
            accepted("node_b"),
            progress("node_b", NodeState::Copying, Phase::Copy),
            ended("node_b", NodeState::Synchronized, None),
        ])
    });
    let mut terminal = OnTerminal::start(&coordinator, "init node_b --from node_a");
    terminal.wait_for("4 workers");
    terminal.wait_for("time");
    let screen = terminal.written();
    assert!(
        screen.contains("\u{1b}["),
        "no colours on a terminal: {screen}"
    );
    assert_eq!(terminal.code(), 0);
}

#[test]
fn ctrl_c_asks_and_c_cancels() {
    let coordinator = endless();
    let mut terminal = OnTerminal::start(&coordinator, "init node_b --from node_a");
    terminal.wait_for("4 workers");
    terminal.signal(Signal::INT);
    terminal.wait_for("[c/l/w]");
    assert_eq!(cancels(&coordinator), 0);
    terminal.answer("c");
    terminal.wait_for("what the job made is removed");
    assert_eq!(terminal.code(), 4);
    assert_eq!(cancels(&coordinator), 1);
}

#[test]
fn ctrl_c_then_l_or_ctrl_c_again_leaves_the_job_running() {
    for (answer, code) in [(Some("l"), 0), (None, 0)] {
        let coordinator = endless();
        let mut terminal = OnTerminal::start(&coordinator, "init node_b --from node_a");
        terminal.wait_for("4 workers");
        terminal.signal(Signal::INT);
        terminal.wait_for("[c/l/w]");
        match answer {
            Some(line) => terminal.answer(line),
            None => terminal.signal(Signal::INT),
        }
        terminal.wait_for("init progress --node node_b --follow");
        assert_eq!(terminal.code(), code);
        assert_eq!(cancels(&coordinator), 0);
        // The way back stands on lines of its own, below the question.
        let screen = terminal.screen().screen().contents();
        let after: Vec<&str> = screen.split("[c/l/w]").collect();
        assert_eq!(after.len(), 2, "{screen}");
        let mut lines = after[1].lines().skip(1);
        assert!(
            lines.any(|line| line.trim_start().starts_with("node_b: the job goes on")),
            "{screen}"
        );
        assert!(!after[1].contains("workers"), "bars again: {screen}");
    }
}

#[test]
fn who_follows_the_progress_of_a_job_leaves_with_ctrl_c_and_is_not_asked() {
    let coordinator = Coordinator::start(|request| match request {
        ApiRequest::Progress { .. } => vec![
            Step::Say(progress("node_b", NodeState::Copying, Phase::Copy)),
            Step::Hold,
        ],
        _ => all(vec![]),
    });
    let mut terminal = OnTerminal::start(&coordinator, "init progress --node node_b --follow");
    terminal.wait_for("4 workers");
    terminal.signal(Signal::INT);
    terminal.wait_for("the job goes on");
    assert_eq!(terminal.code(), 0);
    assert!(!terminal.written().contains("[c/l/w]"));
}

#[test]
fn an_unclear_answer_is_asked_again_and_w_goes_on() {
    let coordinator = endless();
    let mut terminal = OnTerminal::start(&coordinator, "init node_b --from node_a");
    terminal.wait_for("4 workers");
    terminal.signal(Signal::INT);
    terminal.wait_for("[c/l/w]");
    terminal.answer("x");
    terminal.answer("w");
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.code(), 1);
    assert_eq!(cancels(&coordinator), 0);
}

#[test]
fn init_cancel_asks_a_person_first() {
    for (answer, code, sent) in [("n", 1, 0), ("y", 0, 1)] {
        let coordinator = endless();
        let mut terminal = OnTerminal::start(&coordinator, "init cancel --node node_b");
        terminal.wait_for("[y/N]");
        terminal.answer(answer);
        assert_eq!(terminal.code(), code);
        assert_eq!(cancels(&coordinator), sent);
    }
}

#[test]
fn manual_differences_are_confirmed_by_a_person() {
    for (answer, code) in [("yes", 0), ("", 3)] {
        let coordinator = Coordinator::start(|request| match request {
            ApiRequest::Query(Query::Doctor(_)) => {
                all(vec![findings("node_b", Severity::Error, "schema_mismatch")])
            }
            _ => all(vec![ended("node_b", NodeState::Synchronized, None)]),
        });
        let line = "init node_b --from node_a --schema-sync manual";
        let mut terminal = OnTerminal::start(&coordinator, line);
        terminal.wait_for("[y/N]");
        terminal.answer(answer);
        assert_eq!(terminal.code(), code);
    }
}
