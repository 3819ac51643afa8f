//! Commands that follow jobs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use steep_protocol::message::api::{ApiReply, ApiRequest, InitRequest, Order, Query};
use steep_protocol::message::facts::Severity;
use steep_protocol::message::job::Confirmation;
use steep_protocol::{Fault, FaultKind, JobId, NodeState, Phase};

use crate::coordinator::{Coordinator, Ran, Step};
use crate::views::{accepted, all, ended, event, findings, id, node, progress};

fn good() -> Vec<ApiReply> {
    vec![
        accepted("node_b"),
        event("init.state_change", "info"),
        progress("node_b", NodeState::Preparing, Phase::Snapshot),
        progress("node_b", NodeState::Copying, Phase::Copy),
        progress("node_b", NodeState::Copying, Phase::Copy),
        progress("node_b", NodeState::Copying, Phase::Indexes),
        event("init.completed", "info"),
        ended("node_b", NodeState::Synchronized, None),
    ]
}

#[test]
fn a_good_job_is_a_calm_log_and_exit_0() {
    let coordinator = Coordinator::start(|_| all(good()));
    let ran = coordinator.run("init node_b --from node_a");
    assert_eq!(ran.code, 0, "{ran:?}");
    let of_job: Vec<_> = ran
        .out
        .lines()
        .filter(|line| line.contains("overall"))
        .collect();
    assert_eq!(of_job.len(), 3, "one line a change: {}", ran.out);
    assert!(
        ran.out
            .contains("node_b is synchronized with node_a after 3.5s"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("copying 2.0s"), "{}", ran.out);
}

#[test]
fn json_ends_with_exactly_one_end_and_it_is_last() {
    let coordinator = Coordinator::start(|_| all(good()));
    let ran = coordinator.run("init node_b --from node_a --json");
    assert_eq!(ran.code, 0, "{ran:?}");
    let objects = ran.objects();
    let ends: Vec<_> = objects
        .iter()
        .filter(|o| o["event"] == "init.completed")
        .collect();
    assert_eq!(ends.len(), 1);
    let last = objects.last().unwrap();
    assert_eq!(last["event"], "init.completed");
    assert_eq!(last["state"], "synchronized");
    assert_eq!(last["rows_copied"], 1_000);
    assert_eq!(last["phases"]["catching_up"], 0.5);
    assert_eq!(objects[1]["state"], "preparing");
}

#[test]
fn a_failed_job_ends_with_cause_and_hint_and_its_exit_code() {
    for (kind, code, last) in [
        (FaultKind::Failed, 1, "init.failed"),
        (FaultKind::SchemaMismatch, 3, "init.failed"),
        (FaultKind::Cancelled, 4, "init.cancelled"),
        (FaultKind::Timeout, 5, "init.failed"),
    ] {
        let coordinator = Coordinator::start(move |_| {
            let fault = Fault::new(kind, "it broke").hint("mend it");
            all(vec![
                accepted("node_b"),
                ended("node_b", NodeState::Failed, Some(fault)),
            ])
        });
        let ran = coordinator.run("init node_b --from node_a --json");
        assert_eq!(ran.code, code, "{ran:?}");
        let object = ran.objects().pop().unwrap();
        assert_eq!(object["event"], last);
        assert_eq!(object["error_message"], "it broke");
        assert_eq!(object["hint"], "mend it");
        let ran = coordinator.run("init node_b --from node_a");
        assert!(
            ran.out.contains("error: node_b: it broke\nhint: mend it\n"),
            "{}",
            ran.out
        );
    }
}

#[test]
fn of_several_targets_the_first_that_failed_decides() {
    let coordinator = Coordinator::start(|_| {
        let fault = |kind| Some(Fault::new(kind, "it broke"));
        all(vec![
            ended("node_d", NodeState::Failed, fault(FaultKind::Timeout)),
            ended("node_b", NodeState::Synchronized, None),
            ended(
                "node_c",
                NodeState::Failed,
                fault(FaultKind::SchemaMismatch),
            ),
        ])
    });
    let ran = coordinator.run("init node_b node_c node_d --from node_a --json");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(ran.objects().len(), 3);
}

#[test]
fn a_refused_job_is_init_failed_for_its_target() {
    let coordinator = Coordinator::start(|_| {
        let fault = Fault::new(FaultKind::Failed, "busy").on(&id("node_c"));
        vec![Step::Say(ApiReply::Fault(fault))]
    });
    let ran = coordinator.run("init node_b node_c --from node_a --json");
    assert_eq!(ran.code, 1);
    let objects = ran.objects();
    assert_eq!(objects.len(), 1, "{}", ran.out);
    assert_eq!(objects[0]["event"], "init.failed");
    assert_eq!(objects[0]["node_id"], "node_c");
    // Refused before dialling, with the same output.
    let ran = coordinator.run("init node_b --from node_b --json");
    assert_eq!(
        (ran.code, ran.objects()[0]["event"].as_str()),
        (2, Some("init.failed"))
    );
}

#[test]
fn detach_prints_the_job_and_goes() {
    let coordinator = Coordinator::start(|_| vec![Step::Say(accepted("node_b")), Step::Hold]);
    let ran = coordinator.run("init node_b --from node_a --detach");
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "node_b: job 0000000000000001\n")
    );
    let ran = coordinator.run("init node_b --from node_a --detach --json");
    assert_eq!(ran.objects()[0]["job_id"], "0000000000000001");
}

#[test]
fn a_coordinator_that_comes_back_is_followed_on() {
    let coordinator = Coordinator::start(|request| match request {
        ApiRequest::Order(Order::Init(_)) => vec![
            Step::Say(accepted("node_b")),
            Step::Say(progress("node_b", NodeState::Copying, Phase::Copy)),
            Step::Leave,
        ],
        ApiRequest::Query(Query::Nodes { .. }) => all(vec![ApiReply::Nodes(vec![node(
            "node_b",
            NodeState::Copying,
        )])]),
        ApiRequest::Progress { follow: true, .. } => {
            all(vec![ended("node_b", NodeState::Synchronized, None)])
        }
        other => panic!("{other:?}"),
    });
    let ran = coordinator.run("init node_b --from node_a");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("connected again"), "{}", ran.out);
    let starts = coordinator.requests();
    let starts = starts
        .iter()
        .filter(|request| matches!(request, ApiRequest::Order(Order::Init(_))));
    assert_eq!(starts.count(), 1, "a job must not be started twice");
}

#[test]
fn an_end_missed_while_away_is_read_off_the_node() {
    for (state, code) in [(NodeState::Synchronized, 0), (NodeState::Failed, 1)] {
        let coordinator = Coordinator::start(move |request| match request {
            ApiRequest::Order(Order::Init(_)) => vec![Step::Say(accepted("node_b")), Step::Leave],
            ApiRequest::Query(Query::Nodes { .. }) => {
                all(vec![ApiReply::Nodes(vec![node("node_b", state)])])
            }
            ApiRequest::Query(Query::Report { .. }) => {
                let fault = Fault::new(FaultKind::Failed, "no job of the node has ended");
                vec![Step::Say(ApiReply::Fault(fault))]
            }
            other => panic!("{other:?}"),
        });
        let ran = coordinator.run("init node_b --from node_a --json");
        assert_eq!(ran.code, code, "{ran:?}");
        assert_eq!(ran.objects().last().unwrap()["state"], state.as_str());
    }
}

#[test]
fn an_end_missed_while_away_is_told_as_it_was_kept() {
    for (kind, code) in [(FaultKind::SchemaMismatch, 3), (FaultKind::Timeout, 5)] {
        let coordinator = Coordinator::start(move |request| match request {
            ApiRequest::Order(Order::Init(_)) => vec![Step::Say(accepted("node_b")), Step::Leave],
            ApiRequest::Query(Query::Nodes { .. }) => all(vec![ApiReply::Nodes(vec![node(
                "node_b",
                NodeState::Failed,
            )])]),
            ApiRequest::Query(Query::Report { .. }) => {
                let fault = Fault::new(kind, "it broke").hint("mend it");
                all(vec![ended("node_b", NodeState::Failed, Some(fault))])
            }
            other => panic!("{other:?}"),
        });
        let ran = coordinator.run("init node_b --from node_a --json");
        assert_eq!(ran.code, code, "{ran:?}");
        let last = ran.objects().pop().unwrap();
        assert_eq!(last["hint"], "mend it");
        assert_eq!(
            (&last["tables"], &last["wire_bytes"]),
            (&2.into(), &5_000.into())
        );
        assert_eq!(last["phases"]["copying"], 2.0);
    }
}

#[test]
fn the_end_of_another_job_is_not_taken_for_the_one_that_was_followed() {
    let coordinator = Coordinator::start(|request| match request {
        ApiRequest::Order(Order::Init(_)) => vec![
            Step::Say(ApiReply::Accepted {
                jobs: vec![(id("node_b"), JobId(2))],
            }),
            Step::Leave,
        ],
        ApiRequest::Query(Query::Nodes { .. }) => all(vec![ApiReply::Nodes(vec![node(
            "node_b",
            NodeState::Failed,
        )])]),
        // Of job 1.
        ApiRequest::Query(Query::Report { .. }) => {
            all(vec![ended("node_b", NodeState::Synchronized, None)])
        }
        other => panic!("{other:?}"),
    });
    let ran = coordinator.run("init node_b --from node_a --json");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.objects().last().unwrap()["state"], "failed");
}

#[test]
fn a_request_that_may_not_have_arrived_is_not_sent_again() {
    for (state, code) in [(NodeState::Uninitialized, 6), (NodeState::Preparing, 0)] {
        let coordinator = Coordinator::start(move |request| match request {
            ApiRequest::Order(Order::Init(_)) => vec![Step::Leave],
            ApiRequest::Query(Query::Nodes { .. }) => {
                all(vec![ApiReply::Nodes(vec![node("node_b", state)])])
            }
            _ => all(vec![ended("node_b", NodeState::Synchronized, None)]),
        });
        let ran = coordinator.run("init node_b --from node_a");
        assert_eq!(ran.code, code, "{ran:?}");
        let starts = coordinator.requests();
        let starts = starts
            .iter()
            .filter(|request| matches!(request, ApiRequest::Order(Order::Init(_))));
        assert_eq!(starts.count(), 1);
    }
}

#[test]
fn resume_follows_a_job_at_work_and_else_lets_the_failed_one_go_on() {
    for (state, attached) in [(NodeState::Copying, true), (NodeState::Failed, false)] {
        let coordinator = Coordinator::start(move |request| match request {
            ApiRequest::Query(Query::Nodes { .. }) => {
                let mut view = node("node_b", state);
                view.kept_until = (!attached).then_some(jiff::Timestamp::UNIX_EPOCH);
                all(vec![ApiReply::Nodes(vec![view])])
            }
            ApiRequest::Query(Query::Doctor(InitRequest::Resume(_))) => {
                all(vec![findings("node_b", Severity::Info, "resumed")])
            }
            _ => all(vec![ended("node_b", NodeState::Synchronized, None)]),
        });
        let ran = coordinator.run("init node_b --from node_a --resume");
        assert_eq!(ran.code, 0, "{ran:?}");
        // What is kept is said before anything is done.
        assert_eq!(
            ran.err.contains("something is the case"),
            !attached,
            "{ran:?}"
        );
        let last = coordinator.requests().pop().unwrap();
        let asked = match &last {
            ApiRequest::Progress { follow: true, .. } => attached,
            ApiRequest::Order(Order::Init(InitRequest::Resume(specs))) => {
                !attached && specs[0].target.as_str() == "node_b"
            }
            _ => false,
        };
        assert!(asked, "{last:?}");
        assert_eq!(
            ran.err.contains("what it has kept"),
            !attached,
            "{}",
            ran.err
        );
    }
}

#[test]
fn resume_of_a_job_at_work_says_which_flags_change_nothing_and_can_detach() {
    let coordinator = Coordinator::start(move |request| match request {
        ApiRequest::Query(Query::Nodes { .. }) => all(vec![ApiReply::Nodes(vec![node(
            "node_b",
            NodeState::Copying,
        )])]),
        ApiRequest::Progress { follow: false, .. } => {
            all(vec![progress("node_b", NodeState::Copying, Phase::Copy)])
        }
        other => panic!("{other:?}"),
    });
    let ran = coordinator.run("init node_b --from node_a --resume --max-rate 2MB --detach --json");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("--max-rate changes nothing"), "{ran:?}");
    let said = &ran.objects()[0];
    assert_eq!(said["event"], "init.detached");
    assert_eq!(said["job_id"], "0000000000000001");
}

#[test]
fn past_events_are_chosen_by_level_and_number() {
    let coordinator = Coordinator::start(|_| {
        let levels = ["info", "warn", "info", "error", "warn"];
        all(levels.map(|level| event("agent.lost", level)).to_vec())
    });
    let levels = |line: &str| -> Vec<String> {
        let ran = coordinator.run(line);
        assert_eq!(ran.code, 0, "{ran:?}");
        let objects = ran.objects();
        let levels = objects.iter().map(|event| event["level"].as_str());
        levels.map(|level| level.unwrap().to_owned()).collect()
    };
    assert_eq!(levels("events --json").len(), 5);
    assert_eq!(
        levels("events --json --level warn"),
        ["warn", "error", "warn"]
    );
    assert_eq!(
        levels("events --json --level warn --limit 2"),
        ["error", "warn"]
    );
    assert_eq!(levels("events --json --level error"), ["error"]);
    assert!(levels("events --json --since 10s").is_empty());
}

#[test]
fn manual_mode_wants_a_word_before_it_starts() {
    let started = |coordinator: &Coordinator| {
        let requests = coordinator.requests();
        requests.into_iter().find_map(|request| match request {
            ApiRequest::Order(Order::Init(InitRequest::Copy(specs))) => Some(specs[0].confirmation),
            _ => None,
        })
    };
    let differing = |request: &ApiRequest| match request {
        ApiRequest::Query(Query::Doctor(_)) => {
            all(vec![findings("node_b", Severity::Error, "schema_mismatch")])
        }
        _ => all(vec![ended("node_b", NodeState::Synchronized, None)]),
    };
    let line = "init node_b --from node_a --schema-sync manual";
    let coordinator = Coordinator::start(differing);
    let ran = coordinator.run(line);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.err.contains("something is the case") && ran.err.contains("--yes"),
        "{}",
        ran.err
    );
    assert_eq!(started(&coordinator), None);
    assert_eq!(coordinator.run(&format!("{line} --yes")).code, 0);
    assert_eq!(started(&coordinator), Some(Confirmation::Given));

    let alike = Coordinator::start(|request| match request {
        ApiRequest::Query(Query::Doctor(_)) => {
            all(vec![findings("node_b", Severity::Warning, "clock")])
        }
        _ => all(vec![ended("node_b", NodeState::Synchronized, None)]),
    });
    assert_eq!(alike.run(line).code, 0);
    assert_eq!(started(&alike), Some(Confirmation::Given));
}

#[test]
fn findings_and_warnings_on_the_way_are_shown() {
    let coordinator = Coordinator::start(|_| {
        all(vec![
            findings("node_b", Severity::Warning, "clock"),
            event("init.table_failed", "warn"),
            ended("node_b", NodeState::Synchronized, None),
        ])
    });
    let ran = coordinator.run("init node_b --from node_a");
    assert!(
        ran.out.contains("[clock]") && ran.out.contains("it happened"),
        "{}",
        ran.out
    );
}

/// A child that follows an endless job, after its first line.
fn following(
    coordinator: &Coordinator,
    line: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = coordinator.command(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(!first.is_empty());
    (child, out)
}

#[test]
fn a_signal_without_a_terminal_leaves_the_job_running() {
    for signal in [Signal::INT, Signal::TERM] {
        let coordinator = Coordinator::start(|_| {
            vec![
                Step::Say(accepted("node_b")),
                Step::Say(progress("node_b", NodeState::Copying, Phase::Copy)),
                Step::Hold,
            ]
        });
        let (child, out) = following(&coordinator, "init node_b --from node_a");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let rest: Vec<_> = out.lines().map(Result::unwrap).collect();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 1, "{ran:?}");
        let how = "init progress --node node_b --follow";
        assert!(rest.iter().any(|line| line.contains(how)), "{rest:?}");
        let cancels = coordinator.requests();
        assert!(
            !cancels
                .iter()
                .any(|request| matches!(request, ApiRequest::Order(Order::Cancel { .. })))
        );
    }
}

#[test]
fn a_signal_is_how_watching_events_ends() {
    let coordinator = Coordinator::start(|request| match request {
        ApiRequest::Events { follow: false, .. } => all(vec![]),
        ApiRequest::Events { follow: true, .. } => {
            vec![Step::Say(event("agent.connected", "info")), Step::Hold]
        }
        other => panic!("{other:?}"),
    });
    let (child, _out) = following(&coordinator, "events --follow --json");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(Ran::of(child.wait_with_output().unwrap()).code, 0);
}

#[test]
fn followed_events_go_on_where_they_were_when_the_coordinator_is_back() {
    let mut connections = 0;
    let coordinator = Coordinator::start(move |request| {
        let ApiRequest::Events { follow, after, .. } = request else {
            panic!("{request:?}");
        };
        if !follow {
            return all(vec![]);
        }
        connections += 1;
        match (connections, after) {
            (1, 0) => vec![Step::Say(event("agent.connected", "info")), Step::Leave],
            // A coordinator that is stopping says so and is dialled again nevertheless.
            (2, 1) => all(vec![ApiReply::Fault(
                Fault::new(FaultKind::Unreachable, "the coordinator is stopping")
                    .retry(steep_protocol::Retry::NewConnection),
            )]),
            (3, 1) => all(vec![event("agent.lost", "warn")]),
            unexpected => panic!("{unexpected:?}"),
        }
    });
    let ran = coordinator.run("events --follow --json");
    assert_eq!(ran.code, 0, "{ran:?}");
    let kinds: Vec<_> = ran
        .objects()
        .iter()
        .map(|event| event["event"].clone())
        .collect();
    assert_eq!(kinds, ["agent.connected", "agent.lost"]);
    assert_eq!(ran.err.matches("dialling").count(), 2, "{ran:?}");
}
