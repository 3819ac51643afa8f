//! The keys of the contract, and what must not get among them.

use super::*;
use crate::render::samples;

/// The keys of an object, in the order they are written.
fn keys(text: &str) -> Vec<String> {
    let object: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
    let mut keys: Vec<_> = object.into_keys().collect();
    keys.sort_by_key(|key| text.find(&format!("\"{key}\":")));
    keys
}

#[test]
fn a_node_has_the_keys_of_the_contract_first() {
    let node = samples::node("node_b", NodeState::CatchingUp);
    let contract = "node_id state source_node init_started_at init_completed_at error_message \
                    agent_online lag_bytes progress";
    let contract: Vec<_> = contract.split_whitespace().collect();
    for text in [
        nodes(std::slice::from_ref(&node), None)["nodes"][0].to_string(),
        status(&node, None, &[], &[]).to_string(),
    ] {
        assert_eq!(keys(&text)[..contract.len()], contract);
        assert!(text.contains(r#""state":"catching_up""#), "{text}");
    }
}

#[test]
fn progress_has_the_keys_of_the_contract_first() {
    let view = samples::progress();
    let contract = "node_id state phase overall_percent tables_total tables_completed \
                    current_table current_table_percent rows_copied bytes_copied wire_bytes \
                    throughput_rows_sec throughput_bytes_sec eta_seconds parallel_workers \
                    started_at error_message tables";
    let contract: Vec<_> = contract.split_whitespace().collect();
    let object = progress(&view);
    let mut short = object.clone();
    short["tables"] = json!([]);
    let text = short.to_string();
    assert_eq!(keys(&text)[..contract.len()], contract);
    assert_eq!(
        keys(&object["tables"][0].to_string()),
        ["schema", "table", "rows", "bytes", "state", "percent"]
    );
    assert!(text.contains(r#""started_at":"2026-09-21T"#), "{text}");
    assert!(text.contains(r#""job_id":"000000000000feed""#), "{text}");
}

#[test]
fn a_good_end_is_init_completed() {
    insta::assert_snapshot!(end(&EndView {
        warnings: vec![],
        ..samples::end()
    }));
}

#[test]
fn a_bad_end_is_init_failed_with_its_hint() {
    let fault = Fault::new(FaultKind::Failed, "the disk is full").hint("free space");
    let view = EndView {
        fault: Some(fault),
        state: NodeState::Failed,
        warnings: vec![],
        ..samples::end()
    };
    insta::assert_snapshot!(end(&view));
    let cancelled = Fault::new(FaultKind::Cancelled, "cancelled");
    let view = EndView {
        fault: Some(cancelled),
        ..view
    };
    assert!(
        end(&view)
            .to_string()
            .starts_with(r#"{"event":"init.cancelled""#)
    );
}

#[test]
fn a_job_whose_coordinator_is_away_has_not_failed() {
    let node = NodeId::parse("node_b").unwrap();
    let away = Fault::new(FaultKind::Unreachable, "nobody answers").hint("look later");
    let begun = unfollowed(&away, &node, Some(JobId(7)));
    assert_eq!(begun["event"], "init.detached");
    assert_eq!(begun["job_id"], JobId(7).to_string());
    assert_eq!(begun["error_message"], "nobody answers");
    assert_eq!(begun["hint"], "look later");
    // Without a job, and where it was said that the job is not to be, it is a failure.
    assert_eq!(unfollowed(&away, &node, None)["event"], "init.failed");
    let refused = Fault::new(FaultKind::Failed, "no");
    let refused = unfollowed(&refused, &node, Some(JobId(7)));
    assert_eq!(refused["event"], "init.failed");
}

#[test]
fn a_load_is_completed_and_says_that_it_is_one() {
    let mut view = samples::end();
    view.state = NodeState::Uninitialized;
    view.report.method = Some(Method::Load);
    let loaded = end(&view);
    assert_eq!(loaded["event"], "init.completed");
    assert_eq!(loaded["state"], "uninitialized");
    assert_eq!(
        (&loaded["loaded"], &loaded["method"]),
        (&json!(true), &json!("load"))
    );
    let mut node = samples::node("node_b", NodeState::Uninitialized);
    node.loaded = Some(samples::loaded());
    let shown = &nodes(&[node.clone()], None)["nodes"][0]["loaded"];
    assert_eq!(shown["snapshot_id"], "51358f153ac8daae");
    assert_eq!(shown["lsn"], "16/B374D848");
    assert_eq!(&status(&node, None, &[], &[])["loaded"], shown);
}

#[test]
fn an_event_carries_its_fields_and_none_of_them_can_forge_another() {
    insta::assert_snapshot!(event(&samples::event()));
}

#[test]
fn an_end_has_the_same_sums_however_it_went() {
    let good = end(&samples::end()).to_string();
    let bad = end(&EndView {
        fault: Some(Fault::new(FaultKind::Failed, "the disk is full")),
        ..samples::end()
    })
    .to_string();
    let only_bad = ["error_message", "hint", "kind", "error_node"];
    let bad: Vec<_> = keys(&bad)
        .into_iter()
        .filter(|key| !only_bad.contains(&key.as_str()))
        .collect();
    assert_eq!(keys(&good), bad);
}

#[test]
fn numbers_of_events_are_those_that_the_page_about_logs_calls_numbers() {
    let page = include_str!("../../../../docs/logs.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (names, kind) = (cells.next()?, cells.next()?);
        (kind == "number").then_some(names)
    });
    let names = rows.flat_map(|names| names.split(", "));
    let mut documented: Vec<_> = names.map(|name| name.trim_matches('`')).collect();
    documented.sort_unstable();
    let mut numeric = NUMERIC;
    numeric.sort_unstable();
    assert_eq!(documented, numeric);
    let mut view = samples::event();
    view.fields = vec![("parallel".to_owned(), "4".to_owned())];
    assert_eq!(event(&view)["parallel"], 4);
}

#[test]
fn findings_are_counted_over_all_targets() {
    let found = vec![
        (
            samples::id("node_b"),
            vec![samples::finding(Severity::Error, "wal_level")],
        ),
        (
            samples::id("node_c"),
            vec![samples::finding(Severity::Warning, "clock")],
        ),
    ];
    insta::assert_snapshot!(doctor(&found));
}
