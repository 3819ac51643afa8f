//! Commands that ask once and exit.

use std::fs;

use jiff::Timestamp;
use steep_certs::{Role, init_ca, issue};
use steep_protocol::message::api::{ApiReply, ApiRequest, Order, Query};
use steep_protocol::message::facts::Severity;
use steep_protocol::message::handover::{PreparedSlot, PreparedState, Replication, SlotName};
use steep_protocol::message::job::CancelledData;
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, Lsn, NodeState, Phase};

use crate::coordinator::{Coordinator, Ran, bare};
use crate::views::{all, event, findings, id, node, progress};

fn nodes() -> Coordinator {
    Coordinator::start(|request| match request {
        ApiRequest::Query(Query::Nodes { node: Some(name) }) if name.as_str() == "node_b" => all(
            vec![ApiReply::Nodes(vec![node("node_b", NodeState::Copying)])],
        ),
        ApiRequest::Query(Query::Nodes { node: Some(_) }) => all(vec![ApiReply::Nodes(vec![])]),
        ApiRequest::Query(Query::Nodes { node: None }) => {
            let views = [
                ("node_a", NodeState::Uninitialized),
                ("node_b", NodeState::Copying),
            ];
            all(vec![ApiReply::Nodes(
                views.map(|(name, state)| node(name, state)).into(),
            )])
        }
        ApiRequest::Progress { follow: false, .. } => {
            all(vec![progress("node_b", NodeState::Copying, Phase::Copy)])
        }
        ApiRequest::Query(Query::Prepared { .. }) => {
            all(vec![ApiReply::Prepared(vec![prepared_slot()])])
        }
        other => panic!("{other:?}"),
    })
}

fn prepared_slot() -> PreparedSlot {
    PreparedSlot {
        replication: Replication {
            id: JobId(7),
            slot: SlotName::parse("monday").unwrap(),
        },
        lsn: Lsn(0x16_B374_D848),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::UNIX_EPOCH,
        wal_held: ByteCount(12_000_000),
        wal_limit: None,
        state: PreparedState::Waiting,
    }
}

#[test]
fn a_slot_is_prepared_and_shown_and_dropped() {
    let coordinator = Coordinator::start(|request| match request {
        ApiRequest::Order(Order::Prepare(spec)) => {
            assert_eq!((&spec.node, spec.expires_seconds), (&id("node_a"), 3_600));
            all(vec![ApiReply::Prepared(vec![prepared_slot()])])
        }
        ApiRequest::Order(Order::DropPrepared { slot, .. }) => {
            assert_eq!(slot.as_str(), "monday");
            all(Vec::new())
        }
        other => panic!("{other:?}"),
    });
    let command = "init prepare --node node_a --slot monday --expires 1h";
    let ran = coordinator.run(command);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("16/B374D848"), "{}", ran.out);
    assert!(ran.out.contains("init complete"), "{}", ran.out);
    let said = coordinator.run(&format!("{command} --json")).objects();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0]["event"], "init.prepared");
    assert_eq!(said[0]["slot"], "monday");
    assert_eq!(said[0]["consistent_point"], "16/B374D848");
    assert_eq!(said[0]["expires_at"], "1970-01-01T00:00:00Z");
    let ran = coordinator.run("init prepare --node node_a --slot monday --drop");
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn nodes_are_a_table_or_one_object() {
    let coordinator = nodes();
    let ran = coordinator.run("nodes");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("NODE"), "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}'), "colours in a pipe");
    let ran = coordinator.run("nodes --json");
    assert_eq!(ran.objects()[0]["nodes"][1]["state"], "copying");
    assert_eq!(ran.out.lines().count(), 1);
}

#[test]
fn status_of_one_node_has_its_job_and_an_unknown_node_is_an_error() {
    let coordinator = nodes();
    let ran = coordinator.run("status node_b --json");
    assert_eq!(ran.code, 0, "{ran:?}");
    let object = &ran.objects()[0];
    assert_eq!(object["node_id"], "node_b");
    assert_eq!(object["job"]["rows_copied"], 100);
    assert_eq!(object["prepared_slots"][0]["wal_held_bytes"], 12_000_000);
    let ran = coordinator.run("status node_b");
    assert!(ran.out.contains("monday from 16/B374D848"), "{}", ran.out);
    assert!(
        coordinator
            .run("status")
            .out
            .contains("node_a  uninitialized")
    );
    let ran = coordinator.run("status node_x");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("node_x") && ran.err.contains("hint:"),
        "{}",
        ran.err
    );
}

#[test]
fn events_are_one_object_a_line() {
    let coordinator = Coordinator::start(|request| {
        assert!(matches!(
            request,
            ApiRequest::Events {
                node: None,
                follow: false,
                after: 0,
            }
        ));
        all(vec![
            event("init.state_change", "info"),
            event("agent.lost", "warn"),
        ])
    });
    let ran = coordinator.run("events --json");
    let objects = ran.objects();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0]["event"], "init.state_change");
    assert_eq!(objects[0]["from"], "preparing");
    assert_eq!(coordinator.run("events").out.lines().count(), 2);
}

#[test]
fn doctor_exits_by_what_it_finds() {
    let run = |severity, code: &'static str, line: &str| {
        let coordinator =
            Coordinator::start(move |_| all(vec![findings("node_b", severity, code)]));
        coordinator.run(line)
    };
    let line = "doctor node_b --from node_a";
    assert_eq!(run(Severity::Warning, "clock", line).code, 0);
    assert_eq!(run(Severity::Error, "schema_mismatch", line).code, 3);
    let ran = run(Severity::Error, "wal_level", line);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("why  it matters") && ran.out.contains("fix  change it"));
    let ran = run(
        Severity::Error,
        "wal_level",
        "doctor node_b --from node_a --json",
    );
    assert_eq!(ran.objects()[0]["findings"][0]["code"], "wal_level");
    // No reply is not a healthy coordinator.
    let silent = Coordinator::start(|_| all(vec![]));
    assert_eq!(silent.run(line).code, 1);
}

#[test]
fn cancel_tells_what_to_do_with_the_rows() {
    let coordinator = Coordinator::start(|request| match request {
        ApiRequest::Query(Query::Nodes { .. }) => all(vec![ApiReply::Nodes(vec![node(
            "node_b",
            NodeState::Copying,
        )])]),
        _ => all(vec![]),
    });
    assert_eq!(coordinator.run("init cancel --node node_b").code, 0);
    assert_eq!(
        coordinator
            .run("init cancel --node node_b --keep-data --json")
            .code,
        0
    );
    let asked: Vec<_> = coordinator
        .requests()
        .into_iter()
        .filter(|request| matches!(request, ApiRequest::Order(Order::Cancel { .. })))
        .collect();
    let cancel = |data| {
        ApiRequest::Order(Order::Cancel {
            node: id("node_b"),
            data,
        })
    };
    assert_eq!(
        asked,
        [cancel(CancelledData::Remove), cancel(CancelledData::Keep)]
    );
}

#[test]
fn a_fault_of_the_coordinator_is_told_with_its_exit_code() {
    for (kind, code) in [
        (FaultKind::Failed, 1),
        (FaultKind::BadRequest, 2),
        (FaultKind::SchemaMismatch, 3),
        (FaultKind::Cancelled, 4),
        (FaultKind::Timeout, 5),
        (FaultKind::Unreachable, 6),
        (FaultKind::Unauthorized, 6),
    ] {
        let coordinator = Coordinator::start(move |_| {
            let fault = Fault::new(kind, "no").on(&id("node_b")).hint("do it");
            vec![crate::coordinator::Step::Say(ApiReply::Fault(fault))]
        });
        for line in [
            "nodes",
            "init node_b --from node_a",
            "init node_b --from node_a --detach",
        ] {
            let ran = coordinator.run(line);
            assert_eq!(ran.code, code, "{line}: {ran:?}");
            assert_eq!(ran.err, "error: node_b: no\nhint: do it\n", "{line}");
        }
        let ran = coordinator.run("nodes --json");
        assert_eq!(ran.objects()[0]["error_message"], "no");
    }
}

#[test]
fn who_cannot_connect_or_is_nobody_gets_6() {
    // A bound socket that never answers would take long; a closed port fails at once or after the
    // dial's own limit.
    let coordinator = nodes();
    let elsewhere = tempfile::tempdir().unwrap();
    init_ca(elsewhere.path()).unwrap();
    issue(elsewhere.path(), Role::Operator, "operator", &[], None).unwrap();
    let with = |dir: &std::path::Path, name: &str| {
        let mut command = coordinator.command("nodes");
        command.env_remove("STEEP_REPL_CERTS");
        command.arg("--ca").arg(dir.join("ca.pem"));
        command.arg("--cert").arg(dir.join(format!("{name}.pem")));
        command.arg("--key").arg(dir.join(format!("{name}.key")));
        Ran::of(command.output().unwrap())
    };
    let ran = with(elsewhere.path(), "operator");
    assert_eq!(ran.code, 6, "another CA: {ran:?}");
    let ran = with(coordinator.certs.path(), "main");
    assert_eq!(ran.code, 6, "not an operator: {ran:?}");
    assert!(ran.err.contains("operator"), "{}", ran.err);
    let ran = with(coordinator.certs.path(), "nobody");
    assert_eq!(ran.code, 6, "no such file: {ran:?}");
    assert_eq!(with(coordinator.certs.path(), "operator").code, 0);

    let mut nowhere = coordinator.command("nodes");
    nowhere.env("STEEP_REPL_COORDINATOR", "no.such.host.invalid:7400");
    let ran = Ran::of(nowhere.output().unwrap());
    assert_eq!(ran.code, 6, "no such host: {ran:?}");
    assert!(ran.err.contains("hint:"), "{}", ran.err);
}

#[test]
fn bad_arguments_are_2_before_anything_is_dialled() {
    for line in [
        "",
        "frobnicate",
        "nodes",
        "init node_b",
        "init node_b --from node_b --coordinator h:1",
        "init node_b --from node_a --method two-phase --coordinator h:1",
        "nodes --config /nonexistent/config.toml",
    ] {
        let ran = Ran::of(bare(line).output().unwrap());
        assert_eq!(ran.code, 2, "{line}: {ran:?}");
        assert!(!ran.err.is_empty(), "{line}");
    }
    let mut wrong = bare("nodes");
    wrong.env("STEEP_REPL_PARALLEL", "99");
    assert_eq!(Ran::of(wrong.output().unwrap()).code, 2);
}

#[test]
fn printed_settings_are_those_that_hold() {
    let mut command = bare("--print-config --ca /flag.pem");
    command
        .env("STEEP_REPL_CERTS", "/env")
        .env("STEEP_REPL_PARALLEL", "7");
    let ran = Ran::of(command.output().unwrap());
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.out,
        "ca = \"/flag.pem\"\ncert = \"/env/operator.pem\"\nkey = \"/env/operator.key\"\nparallel = 7\n\
         schema_sync = \"strict\"\nyield_to_ddl = \"10s\"\n# coordinator is not set\n\
         # log_format is not set: text on a terminal, json otherwise\n"
    );
}

#[test]
fn certificates_are_made_shown_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("pki").display().to_string();
    let run = |line: &str| Ran::of(bare(line).output().unwrap());
    assert_eq!(run(&format!("certs init --dir {at}")).code, 0);
    let issue = format!("certs issue --dir {at} --role agent --name node_a --san db.example.org");
    assert_eq!(run(&issue).code, 0);
    let key = fs::read(format!("{at}/node_a.key")).unwrap();
    let again = run(&issue);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("exists already"), "{}", again.err);
    assert_eq!(fs::read(format!("{at}/node_a.key")).unwrap(), key);

    let shown = run(&format!("certs show {at}/node_a.pem"));
    assert!(
        shown.out.contains("agent") && shown.out.contains("db.example.org"),
        "{}",
        shown.out
    );
    let shown = run(&format!("certs show {at}/node_a.pem --json"));
    assert_eq!(shown.objects()[0]["role"], "agent");
    assert_eq!(shown.objects()[0]["valid"], true);
    assert_eq!(
        run(&format!("certs issue --dir {at} --role agent --name ../x")).code,
        2
    );
    assert_eq!(run(&format!("certs show {at}/node_a.key")).code, 1);
    assert_eq!(
        run("certs issue --dir /nonexistent --role agent --name x").code,
        1
    );
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = Ran::of(bare(&format!("completions {shell}")).output().unwrap());
        assert_eq!(ran.code, 0);
        for word in ["doctor", "large-table-threshold", "keep-data"] {
            assert!(ran.out.contains(word), "{shell} lacks {word}");
        }
    }
}
