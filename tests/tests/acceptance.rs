//! The product's promise: an exact replica under write load, with a report.

use std::time::Duration;

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, residue, sample};

#[test]
fn a_node_initialised_under_write_load_holds_exactly_the_sources_rows() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 5)?;
    let intensity = Intensity {
        clients: 4,
        rate: Some(2_000),
    };
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    load.wait_for(1_000, Duration::from_secs(60))?;

    let end = cluster.init(&[])?.expect(0)?.last_object()?;
    load.wait_for(2_000, Duration::from_secs(60))?;
    let done = load.stop()?;

    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;
    assert_eq!(end["event"], "init.completed");
    assert_eq!(end["state"], "synchronized");
    assert!(end["rows_copied"].as_u64() >= Some(500_000), "{end}");
    assert!(done.transactions > 3_000, "{done:?}");
    assert_eq!(cluster.state("node_b")?, "synchronized");
    assert_eq!(cluster.state("node_a")?, "uninitialized");
    Ok(())
}

#[test]
fn a_synchronized_node_has_recorded_its_states_has_a_slot_and_no_ledger_and_needs_nothing_of_ours()
-> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    cluster.init(&[])?.expect(0)?;
    compare::sequences(&source, &target)?.none()?;
    every_state_is_recorded_in_order(&cluster)?;
    has_a_slot_a_subscription_and_no_ledger(&source, &target)?;

    cluster.kill_coordinator()?;
    cluster.kill_agent("node_a")?;
    cluster.kill_agent("node_b")?;
    source.sql(
        "UPDATE pgbench_accounts SET abalance = aid WHERE aid < 1000;
         DELETE FROM shop.order_item WHERE order_id < 50;
         INSERT INTO shop.event (at, kind) SELECT now(), 'after' FROM generate_series(1, 100);
         TRUNCATE pgbench_history",
    )?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

fn every_state_is_recorded_in_order(cluster: &Cluster) -> Result<()> {
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
    for name in [
        "init.started",
        "init.phase_started",
        "init.phase_completed",
        "init.completed",
    ] {
        let event = events.iter().find(|event| event["event"] == name);
        let event = event.with_context(|| format!("no {name} in {events:?}"))?;
        assert_eq!(event["node_id"], "node_b");
        assert!(
            event["timestamp"].is_string() && event["level"].is_string(),
            "{event}"
        );
    }
    Ok(())
}

fn has_a_slot_a_subscription_and_no_ledger(source: &Database, target: &Database) -> Result<()> {
    assert_eq!(
        source.sql("SELECT slot_type, plugin, temporary FROM pg_replication_slots")?,
        "logical|pgoutput|f"
    );
    assert_eq!(target.sql("SELECT subenabled FROM pg_subscription")?, "t");
    let left = residue::of_jobs(target)?;
    assert!(!left.0.iter().any(|line| line.contains("ledger")), "{left}");
    assert_eq!(
        target.sql("SELECT state FROM steep_repl.nodes WHERE node_id = 'node_b'")?,
        "synchronized"
    );
    // Our own schema is never published.
    let published = "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'steep_repl'";
    assert_eq!(source.value::<u32>(published)?, 0);
    Ok(())
}

#[test]
fn two_nodes_can_follow_one_source() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    sample::create(&cluster.database("node_a"), 1)?;
    cluster.init(&[])?.expect(0)?;
    cluster
        .cli(&["init", "node_c", "--from", "node_a", "--yes"])?
        .expect(0)?;
    cluster
        .database("node_a")
        .sql("UPDATE pgbench_tellers SET tbalance = 7")?;
    cluster.wait_drained("node_a")?;
    for node in ["node_b", "node_c"] {
        compare::rows(&cluster.database("node_a"), &cluster.database(node))?.none()?;
    }
    Ok(())
}
