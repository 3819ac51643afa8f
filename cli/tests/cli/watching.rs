//! `watch` on a pseudo-terminal, and as lines for programs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use steep_protocol::message::api::{
    ApiReply, ApiRequest, EventView, InitRequest, NodeView, Order, Query,
};
use steep_protocol::message::job::{CancelledData, ExistingRows};
use steep_protocol::{Fault, FaultKind, NodeState, Phase};

use crate::coordinator::{Coordinator, Hearing, PATIENCE, Relay, Step};
use crate::pty::OnTerminal;
use crate::views::{accepted, all, ended, event, job, node, progress};

/// Leaves the alternate screen and shows the cursor.
const GIVEN_BACK: [&str; 2] = ["\u{1b}[?1049l", "\u{1b}[?25h"];

fn nodes() -> Vec<NodeView> {
    let mut source = node("node_a", NodeState::Uninitialized);
    source.source_node = None;
    let mut failed = node("node_c", NodeState::Failed);
    failed.error_message = Some("evil \u{1b}[2J\u{9b}31m\u{7} text".to_owned());
    vec![source, node("node_b", NodeState::Copying), failed]
}

/// A cluster with an endless job.
fn cluster() -> Coordinator {
    Coordinator::start(|request| match request {
        ApiRequest::Watch => vec![
            Step::Say(event("init.started", "info")),
            Step::Say(ApiReply::Nodes(nodes())),
            Step::Say(progress("node_b", NodeState::Copying, Phase::Copy)),
            Step::Hold,
        ],
        ApiRequest::Job { follow: true, .. } => vec![Step::Hold],
        _ => all(vec![]),
    })
}

fn assert_given_back(terminal: &OnTerminal) {
    for sequence in GIVEN_BACK {
        terminal.wait_for(sequence);
    }
    assert!(terminal.is_for_lines(), "the terminal was left raw");
}

#[test]
fn watch_draws_takes_keys_and_gives_the_terminal_back() {
    let coordinator = cluster();
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    terminal.wait_on_screen("live");
    terminal.wait_on_screen("node_b");
    terminal.wait_on_screen("1 copying");
    assert!(terminal.screen().screen().alternate_screen());
    assert!(!terminal.is_for_lines());
    // Down twice, to the node whose error would clear the screen and ring the bell.
    terminal.press("jj");
    // Checks the raw output, because the emulator drops the replacement character.
    terminal.wait_for("node_c: evil \u{fffd}[2J\u{fffd}31m\u{fffd} text");
    assert!(!terminal.written().contains("\u{1b}[2J\u{9b}"));
    terminal.press("k\r");
    terminal.wait_on_screen("node_b \u{2190} node_a");
    terminal.press("c");
    terminal.wait_on_screen("Cancel its job?");
    terminal.press("x");
    terminal.press("k");
    terminal.wait_on_screen("its tables and rows are kept");
    let cancels: Vec<_> = coordinator
        .requests()
        .into_iter()
        .filter(|request| matches!(request, ApiRequest::Order(Order::Cancel { .. })))
        .collect();
    let [ApiRequest::Order(Order::Cancel { node, data })] = &cancels[..] else {
        panic!("{cancels:?}");
    };
    assert_eq!((node.as_str(), *data), ("node_b", CancelledData::Keep));
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
    assert_given_back(&terminal);
}

#[test]
fn signals_and_ctrl_c_end_watching_and_give_the_terminal_back() {
    for signal in [Some(Signal::TERM), Some(Signal::HUP), None] {
        let coordinator = cluster();
        let mut terminal = OnTerminal::start(&coordinator, "watch");
        terminal.wait_on_screen("node_b");
        match signal {
            Some(signal) => terminal.signal(signal),
            None => terminal.press("\u{3}"),
        }
        assert_eq!(terminal.code(), 0, "{signal:?}");
        assert_given_back(&terminal);
        let cancels =
            |request: &ApiRequest| matches!(request, ApiRequest::Order(Order::Cancel { .. }));
        assert!(!coordinator.requests().iter().any(cancels));
    }
}

#[test]
fn a_coordinator_that_comes_back_is_found_again() {
    let watches = AtomicUsize::new(0);
    let coordinator = Coordinator::start(move |request| {
        let ApiRequest::Watch = request else {
            return all(vec![]);
        };
        match watches.fetch_add(1, Ordering::Relaxed) {
            0 => vec![Step::Say(ApiReply::Nodes(nodes())), Step::Leave],
            1 => all(vec![ApiReply::Fault(Fault::new(
                FaultKind::Unreachable,
                "the coordinator is stopping",
            ))]),
            _ => {
                let back = node("node_z", NodeState::Synchronized);
                vec![Step::Say(ApiReply::Nodes(vec![back])), Step::Hold]
            }
        }
    });
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    // Checks the raw output, because the screen shows it only briefly.
    terminal.wait_for("reconnecting");
    terminal.wait_on_screen("node_z");
    terminal.wait_on_screen("live");
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
}

#[test]
fn a_coordinator_that_falls_silent_is_said_to_be_gone_within_three_seconds() {
    let coordinator = cluster();
    let relay = Relay::start(&coordinator.address);
    let variables = [("STEEP_REPL_COORDINATOR", relay.address.as_str())];
    let mut terminal = OnTerminal::start_with(&coordinator, "watch", &variables);
    terminal.wait_on_screen("live");
    // Longer than the idle timeout: it stays connected while the coordinator answers.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!terminal.written().contains("reconnecting"));
    relay.fall_silent();
    let silent = Instant::now();
    terminal.wait_for("reconnecting");
    // 3 s from the last answer, plus the time a busy machine needs to draw.
    assert!(silent.elapsed() < Duration::from_secs(4), "{silent:?}");
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
}

/// A cluster that runs `cancel` when a job is cancelled.
fn cancelling(cancel: impl Fn() -> Vec<Step> + Send + 'static) -> Coordinator {
    Coordinator::start(move |request| match request {
        ApiRequest::Watch => vec![Step::Say(ApiReply::Nodes(nodes())), Step::Hold],
        ApiRequest::Order(Order::Cancel { .. }) => cancel(),
        _ => all(vec![]),
    })
}

#[test]
fn a_cancel_whose_answer_is_lost_is_said_to_be() {
    let coordinator = cancelling(|| vec![Step::Leave]);
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    terminal.wait_on_screen("node_b");
    terminal.press("gjcy");
    terminal.wait_on_screen("node_b: the connection broke before an answer");
    terminal.wait_on_screen("live");
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
}

#[test]
fn keys_pressed_while_dialling_are_refused_and_not_kept() {
    let coordinator = cancelling(|| vec![Step::Leave]);
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    coordinator.wait_for_a_knock();
    terminal.wait_on_screen("node_b");
    coordinator.hear(Hearing::None);
    terminal.press("gjcy");
    coordinator.wait_for_a_knock();
    // All earlier keys have been handled once the list of keys is shown.
    terminal.press("xcy?");
    terminal.wait_on_screen("this list");
    coordinator.hear(Hearing::Good);
    terminal.wait_on_screen("live");
    terminal.wait_on_screen("the coordinator cannot be reached: nothing was sent to it");
    // Pressed after any buffered keys.
    terminal.press("x\r");
    terminal.wait_on_screen("no job yet");
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
    let cancels =
        |request: &&ApiRequest| matches!(request, ApiRequest::Order(Order::Cancel { .. }));
    assert_eq!(coordinator.requests().iter().filter(cancels).count(), 1);
}

#[test]
fn a_diverged_node_is_initialised_again_only_once_its_cancel_is_done() {
    for refused in [false, true] {
        let coordinator = Coordinator::start(move |request| match request {
            ApiRequest::Watch => {
                let nodes = vec![node("node_b", NodeState::Diverged)];
                vec![Step::Say(ApiReply::Nodes(nodes)), Step::Hold]
            }
            ApiRequest::Job { .. } => all(vec![job("node_b")]),
            ApiRequest::Order(Order::Cancel { .. }) if refused => {
                let fault = Fault::new(FaultKind::Failed, "the slot is in use");
                vec![Step::Say(ApiReply::Fault(fault))]
            }
            ApiRequest::Order(Order::Init(_)) => all(vec![accepted("node_b")]),
            _ => all(vec![]),
        });
        let mut terminal = OnTerminal::start(&coordinator, "watch");
        terminal.wait_on_screen("diverged");
        terminal.press("r");
        terminal.wait_on_screen("EMPTIED FIRST");
        terminal.press("y");
        terminal.wait_on_screen(if refused {
            "the slot is in use"
        } else {
            "job 0000000000000001 has begun"
        });
        terminal.press("q");
        assert_eq!(terminal.code(), 0);
        let mut asked = coordinator.requests();
        asked.retain(|request| {
            matches!(
                request,
                ApiRequest::Order(Order::Cancel { .. }) | ApiRequest::Order(Order::Init(_))
            )
        });
        match (&asked[..], refused) {
            (
                [
                    ApiRequest::Order(Order::Cancel { data, .. }),
                    ApiRequest::Order(Order::Init(InitRequest::Copy(specs))),
                ],
                false,
            ) => {
                assert_eq!(*data, CancelledData::Remove);
                assert_eq!(specs[0].existing, ExistingRows::Replace);
            }
            ([ApiRequest::Order(Order::Cancel { .. })], true) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn pasted_text_cancels_nothing_and_can_be_a_filter() {
    let coordinator = cluster();
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    terminal.wait_for("\u{1b}[?2004h");
    terminal.wait_on_screen("node_b");
    terminal.press("j\u{1b}[200~cy\u{1b}[201~/\u{1b}[200~ode_b\u{1b}[201~");
    terminal.wait_on_screen("filter: ode_b");
    terminal.wait_on_screen("1 of 3 nodes");
    terminal.press("\rq");
    assert_eq!(terminal.code(), 0);
    terminal.wait_for("\u{1b}[?2004l");
    let cancels = |request: &ApiRequest| matches!(request, ApiRequest::Order(Order::Cancel { .. }));
    assert!(!coordinator.requests().iter().any(cancels));
}

#[test]
fn a_terminal_that_takes_nothing_holds_up_neither_keys_nor_the_coordinator_nor_the_end() {
    let (asked, heard) = mpsc::channel();
    let coordinator = Coordinator::start(move |request| {
        // The test may be over.
        let _ = asked.send(request.clone());
        match request {
            ApiRequest::Watch => vec![Step::Say(ApiReply::Nodes(nodes())), Step::Hold],
            _ => vec![Step::Hold],
        }
    });
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    terminal.wait_on_screen("node_b");
    terminal.stall();
    // Each node draws a different screen and sends a different request.
    for node in ["node_a", "node_b", "node_c"] {
        terminal.press(if node == "node_a" { "g\r" } else { "n" });
        loop {
            match heard.recv_timeout(PATIENCE).unwrap() {
                ApiRequest::Job { node: asked, .. } if asked.as_str() == node => break,
                _ => {}
            }
        }
    }
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.code(), 0);
    assert!(terminal.is_for_lines(), "the terminal was left raw");
}

#[test]
fn a_panic_gives_the_terminal_back_and_is_an_error() {
    let coordinator = cluster();
    let variables = [("STEEP_BREAK_AT", "watch.open")];
    let mut terminal = OnTerminal::start_with(&coordinator, "watch", &variables);
    terminal.wait_on_screen("node_b");
    assert!(!terminal.is_for_lines());
    terminal.press("\r");
    assert_eq!(terminal.code(), 1);
    assert_given_back(&terminal);
    terminal.wait_for("asked to break");
    terminal.wait_for("an error of this program");
    let written = terminal.written();
    let after = written.rsplit("\u{1b}[?1049l").next().unwrap();
    assert!(
        after.contains("asked to break"),
        "told after the screen is gone: {after:?}"
    );
    assert!(
        !after.contains("\u{1b}[?2026h"),
        "drawn after that: {after:?}"
    );
}

#[test]
fn another_size_clears_and_draws_in_one_frame() {
    let coordinator = cluster();
    let mut terminal = OnTerminal::start(&coordinator, "watch");
    terminal.wait_on_screen("1 copying");
    for columns in (60..100).rev() {
        terminal.resize(columns, 24);
    }
    // Columns that do not fit into 80.
    terminal.resize(160, 30);
    terminal.wait_for("ELAPSED");
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
    let written = terminal.written();
    let clears = written.matches("\u{1b}[2J").count();
    let framed = written.matches("\u{1b}[?2026h\u{1b}[2J").count();
    assert_eq!(clears, framed, "a screen was cleared outside of a frame");
    assert!(clears < 40, "one frame for each of the sizes: {clears}");
}

#[test]
fn no_color_means_none() {
    let coordinator = cluster();
    let mut terminal = OnTerminal::start_with(&coordinator, "watch", &[("NO_COLOR", "1")]);
    terminal.wait_on_screen("node_b");
    let parser = terminal.screen();
    for row in 0..24 {
        for column in 0..80 {
            let cell = parser.screen().cell(row, column).unwrap();
            assert_eq!(cell.fgcolor(), vt100::Color::Default, "{row} {column}");
            assert_eq!(cell.bgcolor(), vt100::Color::Default, "{row} {column}");
        }
    }
    terminal.press("q");
    assert_eq!(terminal.code(), 0);
}

#[test]
fn without_a_terminal_watch_says_what_else_there_is_and_writes_lines_for_programs() {
    let coordinator = cluster();
    let ran = coordinator.run("watch");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("watch --json"), "{ran:?}");

    let asked = AtomicUsize::new(0);
    let coordinator = Coordinator::start(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => all(vec![
            event("init.started", "info"),
            ApiReply::Nodes(nodes()),
            progress("node_b", NodeState::Copying, Phase::Copy),
            ended("node_b", NodeState::Synchronized, None),
        ]),
        // Dials again after the end, because it watches a service that may restart.
        _ => all(vec![ApiReply::Fault(Fault::new(
            FaultKind::Unauthorized,
            "not any more",
        ))]),
    });
    let ran = coordinator.run("watch --json");
    assert_eq!(ran.code, 6, "{ran:?}");
    let objects = ran.objects();
    assert_eq!(objects[0]["event"], "init.started");
    assert_eq!(objects[1]["nodes"][1]["node_id"], "node_b");
    assert_eq!(objects[2]["event"], "init.progress");
    assert_eq!(objects[3]["event"], "init.completed");
    assert_eq!(objects[4]["event"], "error");
}

#[test]
fn lines_for_programs_say_each_event_once_over_all_connections() {
    let numbered = |seq| match event("init.started", "info") {
        ApiReply::Event(event) => ApiReply::Event(EventView { seq, ..event }),
        other => other,
    };
    let asked = AtomicUsize::new(0);
    let coordinator = Coordinator::start(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => all(vec![numbered(1), numbered(2)]),
        1 => all(vec![numbered(1), numbered(2), numbered(3)]),
        _ => all(vec![ApiReply::Fault(Fault::new(
            FaultKind::Unauthorized,
            "not any more",
        ))]),
    });
    let ran = coordinator.run("watch --json");
    let objects = ran.objects();
    let seqs: Vec<_> = objects.iter().filter_map(|o| o["seq"].as_u64()).collect();
    assert_eq!(seqs, [1, 2, 3], "{ran:?}");
}

#[test]
fn the_last_report_is_asked_for_by_its_flag() {
    let coordinator = Coordinator::start(|request| {
        assert!(
            matches!(request, ApiRequest::Query(Query::Report { .. })),
            "{request:?}"
        );
        all(vec![ended("node_b", NodeState::Synchronized, None)])
    });
    let ran = coordinator.run("status node_b --last-report");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.starts_with("node_b is synchronized with node_a"),
        "{ran:?}"
    );
    let ran = coordinator.run("status node_b --last-report --json");
    assert_eq!(ran.objects()[0]["event"], "init.completed");
    assert_eq!(coordinator.run("status --last-report").code, 2);
}
