//! The binary on a pseudo-terminal: bars, questions, answers.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::message::facts::Severity;
use steep_protocol::{NodeState, Phase};

use crate::coordinator::{Coordinator, Step};
use crate::views::{accepted, all, ended, findings, node, progress};

/// The longest a text may take to appear before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A child with a terminal, and what it has written there.
struct OnTerminal {
    child: Child,
    master: File,
    screen: Arc<(Mutex<String>, Condvar)>,
}

impl OnTerminal {
    fn start(coordinator: &Coordinator, line: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name)
            .unwrap();
        let mut command = coordinator.command(line);
        command.env("TERM", "xterm");
        command.stdin(Stdio::from(slave.try_clone().unwrap()));
        command.stdout(Stdio::from(slave.try_clone().unwrap()));
        command.stderr(Stdio::from(slave));
        let child = command.spawn().unwrap();
        // Ours of the slave are closed with `command`, so that the master ends with the child.
        drop(command);
        let master = File::from(master);
        let screen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (writes, mut reads) = (Arc::clone(&screen), master.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The master fails once nobody has the slave any more.
            while let Ok(length @ 1..) = reads.read(&mut bytes) {
                writes
                    .0
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..length]));
                writes.1.notify_all();
            }
        });
        Self {
            child,
            master,
            screen,
        }
    }

    fn wait_for(&self, text: &str) {
        let screen = self.screen.0.lock().unwrap();
        let waiting = |screen: &mut String| !screen.contains(text);
        let (screen, _) = self
            .screen
            .1
            .wait_timeout_while(screen, PATIENCE, waiting)
            .unwrap();
        assert!(
            screen.contains(text),
            "{text:?} did not appear in {screen:?}"
        );
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn answer(&mut self, line: &str) {
        writeln!(self.master, "{line}").unwrap();
    }

    fn code(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

/// A job that goes on until it is cancelled.
fn endless() -> Coordinator {
    Coordinator::start(|request| match request {
        ApiRequest::Init { .. } => vec![
            Step::Say(accepted("node_b")),
            Step::Say(progress("node_b", NodeState::Copying, Phase::Copy)),
            Step::Hold,
        ],
        ApiRequest::Nodes { .. } => all(vec![ApiReply::Nodes(vec![node(
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
        .filter(|request| matches!(request, ApiRequest::Cancel { .. }))
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
    let terminal = OnTerminal::start(&coordinator, "init node_b --from node_a");
    terminal.wait_for("4 workers");
    terminal.wait_for("time");
    let screen = terminal.screen.0.lock().unwrap().clone();
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
    for (answer, code) in [(Some("l"), 0), (None, 1)] {
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
    }
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
            ApiRequest::Doctor { .. } => {
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
