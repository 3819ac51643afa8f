//! Every flag of `init` does what it says.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::{compare, residue, sample};

fn wire_and_copied(end: &Value) -> (u64, u64) {
    let number = |key: &str| end[key].as_u64().unwrap_or_default();
    (number("wire_bytes"), number("bytes_copied"))
}

#[test]
fn every_compression_carries_the_same_rows_in_fewer_bytes_or_not() -> Result<()> {
    let cluster = Cluster::builder().nodes(5).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let cases = [
        ("node_b", "none"),
        ("node_c", "lz4"),
        ("node_d", "zstd:9"),
        ("node_e", "auto"),
    ];
    for (node, compression) in cases {
        cluster
            .cli(&[
                "init",
                node,
                "--from",
                "node_a",
                "--yes",
                "--json",
                "--compress",
                compression,
            ])?
            .expect(0)?;
        let (wire, copied) = wire_and_copied(&cluster.progress(node)?);
        assert!(copied > 10_000_000, "{compression}: {copied} bytes copied");
        if compression == "none" {
            assert!(
                wire >= copied,
                "none: {wire} bytes on the wire for {copied}"
            );
        } else {
            assert!(
                wire < copied / 2,
                "{compression}: {wire} bytes on the wire for {copied}"
            );
        }
        compare::rows(&source, &cluster.database(node))?.none()?;
    }
    Ok(())
}

#[test]
fn a_rate_is_not_exceeded() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 3)?;
    let end = cluster
        .init(&["--max-rate", "8MB"])?
        .expect(0)?
        .last_object()?;
    let copied = end["bytes_copied"].as_f64().unwrap_or_default();
    let seconds = end["phases"]["copying"].as_f64().unwrap_or_default();
    assert!(copied > 24e6, "{end}");
    // The first second's worth may be sent at once.
    assert!(
        copied <= 8e6 * (seconds + 1.5),
        "{} bytes a second: {end}",
        copied / seconds
    );
    Ok(())
}

#[test]
fn only_the_tables_that_are_asked_for_take_part() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    source
        .sql("CREATE SCHEMA \"Odd Schema\"; CREATE TABLE \"Odd Schema\".t (id int PRIMARY KEY)")?;
    let names = |node: &str| -> Result<BTreeSet<String>> {
        Ok(compare::contents(&cluster.database(node))?
            .into_keys()
            .collect())
    };

    cluster
        .init(&["--include-schema", "shop", "--include-schema", "Odd Schema"])?
        .expect(0)?;
    let all = names("node_a")?;
    let included: BTreeSet<String> = all
        .iter()
        .filter(|name| !name.starts_with("public."))
        .cloned()
        .collect();
    assert_eq!(names("node_b")?, included);

    let arguments = [
        "init",
        "node_c",
        "--from",
        "node_a",
        "--yes",
        "--exclude-table",
    ];
    let excluded = ["pgbench_history", "--exclude-table", "shop.order_item"];
    cluster
        .cli(&[arguments.as_slice(), excluded.as_slice()].concat())?
        .expect(0)?;
    let left_out = ["public.pgbench_history", "shop.order_item"];
    compare::rows_except(&source, &cluster.database("node_c"), &left_out)?.none()?;
    let copied = compare::contents(&cluster.database("node_c"))?;
    for name in left_out {
        assert!(
            copied.get(name).is_none_or(|table| table.rows == 0),
            "{name} was copied"
        );
    }
    // Later writes to them must not stop the others.
    source.sql(
        "INSERT INTO pgbench_history (tid) VALUES (1); UPDATE pgbench_tellers SET tbalance = 1",
    )?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &cluster.database("node_c"), &left_out)?.none()
}

#[test]
fn one_worker_and_sixteen_do_the_same_and_seventeen_are_refused() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    for (node, parallel) in [("node_b", "1"), ("node_c", "16")] {
        cluster
            .cli(&[
                "init",
                node,
                "--from",
                "node_a",
                "--yes",
                "--parallel",
                parallel,
            ])?
            .expect(0)?;
        compare::rows(&source, &cluster.database(node))?.none()?;
    }
    for parallel in ["0", "17", "many"] {
        cluster.init(&["--parallel", parallel])?.expect(2)?;
    }
    Ok(())
}

#[test]
fn a_job_whose_time_is_over_fails_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let output = cluster
        .init(&["--timeout", "4s", "--max-rate", "1MB"])?
        .expect(5)?;
    let end = output.last_object()?;
    assert_eq!(end["event"], "init.failed");
    assert!(
        end["error_message"].is_string() && end["hint"].is_string(),
        "{end}"
    );
    assert!(output.took < Duration::from_secs(20), "{output}");
    assert_eq!(cluster.state("node_b")?, "failed");
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn a_detached_job_goes_on_and_can_be_followed() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    let started = cluster
        .init(&["--detach", "--max-rate", "10MB"])?
        .expect(0)?;
    assert_ne!(cluster.state("node_b")?, "synchronized", "{started}");
    let follow = cluster.cli(&["init", "progress", "--node", "node_b", "--follow", "--json"])?;
    let updates = follow.expect(0)?.objects();
    // At least one every half second over some four seconds.
    assert!(updates.len() >= 5, "{} updates", updates.len());
    cluster.wait_state("node_b", &["synchronized"], Duration::from_secs(10))?;
    compare::rows(&source, &cluster.database("node_b"))?.none()
}

#[test]
fn postgresqls_own_copy_goes_through_the_same_states() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    let end = cluster
        .init(&["--method", "native"])?
        .expect(0)?
        .last_object()?;
    assert_eq!(end["event"], "init.completed", "{end}");
    source.sql("UPDATE pgbench_tellers SET tbalance = 1")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;
    let events = cluster
        .cli(&["events", "node_b", "--json"])?
        .expect(0)?
        .objects();
    let states: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "init.state_change")
        .filter_map(|event| event["to"].as_str())
        .collect();
    assert_eq!(
        states,
        ["preparing", "copying", "catching_up", "synchronized"]
    );
    Ok(())
}

#[test]
fn a_database_becomes_the_replica_of_another_of_the_same_server_by_either_method() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(3).start_servers()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let methods = [("node_b", "snapshot"), ("node_c", "native")];
    let mut targets = Vec::new();
    for (node, method) in methods {
        let server = cluster.node("node_a").server();
        targets.push(server.create_database(method)?);
        let (conninfo, password) = (server.conninfo(method), server.password().to_owned());
        cluster.node_mut(node).set_elsewhere(conninfo, password);
    }
    cluster.start_coordinator()?;
    for node in ["node_a", "node_b", "node_c"] {
        cluster.start_agent(node)?;
    }
    cluster.wait_online(&["node_a", "node_b", "node_c"])?;
    for (node, method) in methods {
        let arguments = [
            "init", node, "--from", "node_a", "--yes", "--method", method,
        ];
        cluster.cli(&arguments)?.expect(0)?;
    }
    source.sql("UPDATE pgbench_tellers SET tbalance = 1")?;
    cluster.wait_drained("node_a")?;
    for target in targets {
        compare::rows(&source, &target)?.none()?;
    }
    Ok(())
}

#[test]
fn several_targets_are_initialised_by_one_command() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    cluster
        .cli(&["init", "node_b", "node_c", "--from", "node_a", "--yes"])?
        .expect(0)?;
    for node in ["node_b", "node_c"] {
        compare::rows(&source, &cluster.database(node))?.none()?;
    }
    Ok(())
}
