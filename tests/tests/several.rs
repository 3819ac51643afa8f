//! Several targets of one source: they share its snapshot and exchange what they have received.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Builder, Cluster};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, sample, scrape, wait};

const LIMIT: Duration = Duration::from_secs(60);

const TARGETS: [&str; 3] = ["node_b", "node_c", "node_d"];

/// A cluster whose source logs every statement.
fn builder() -> Builder {
    let builder = Cluster::builder().nodes(4);
    let builder = builder.setting("node_a", "log_statement", "all");
    builder.setting("node_a", "max_replication_slots", "20")
}

fn cluster() -> Result<Cluster> {
    builder().start()
}

/// A source without a spool: its rows are read while they are copied.
fn live() -> Result<Cluster> {
    builder().without_data_dir("node_a").start()
}

/// How often each range of each table was read from the source's PostgreSQL.
fn reads(cluster: &Cluster) -> Result<BTreeMap<String, u32>> {
    let log = fs::read_to_string(cluster.node("node_a").server().log())?;
    let mut reads = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("TO STDOUT")) {
        let (_, statement) = line.split_once("COPY").context("a COPY")?;
        *reads.entry(statement.to_owned()).or_default() += 1;
    }
    Ok(reads)
}

/// Fails where more ranges than that were read again.
fn read_once(cluster: &Cluster, but: u32) -> Result<()> {
    let reads = reads(cluster)?;
    let again: Vec<_> = reads.iter().filter(|(_, n)| **n > 1).collect();
    let times: u32 = again.iter().map(|(_, n)| **n - 1).sum();
    ensure!(
        times <= but,
        "of {} ranges, read again: {again:?}",
        reads.len()
    );
    Ok(())
}

fn sent(cluster: &Cluster, node: &str) -> Result<f64> {
    let address = cluster.node(node).agent_address();
    let scrape = scrape::scrape(&address)?;
    let sent = scrape.samples.iter();
    let sent = sent.filter(|s| s.name == "steep_agent_quic_sent_bytes_total");
    Ok(sent.map(|sample| sample.value).sum())
}

/// Begins to copy to all targets, slowly, and returns when each has rows.
fn copy_to_all(cluster: &Cluster) -> Result<()> {
    let mut arguments = vec!["init"];
    arguments.extend(TARGETS);
    arguments.extend(["--from", "node_a", "--yes", "--detach", "--max-rate", "6MB"]);
    cluster.cli(&arguments)?.expect(0)?;
    for target in TARGETS {
        cluster.wait_copying(target)?;
    }
    Ok(())
}

fn nothing_is_left(source: &Database, slots: u32) -> Result<()> {
    let templates = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%template'";
    wait::until_true("the shared snapshot to be removed", LIMIT, || {
        Ok(source.value::<u32>(templates)? == 0)
    })?;
    assert_eq!(
        source.value::<u32>("SELECT count(*) FROM pg_replication_slots")?,
        slots
    );
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'steep-repl snapshot%'";
    wait::until_true("the snapshot's session to end", LIMIT, || {
        Ok(source.value::<u32>(open)? == 0)
    })
}

#[test]
fn three_targets_cost_their_source_one_reading_and_not_three_times_the_bytes() -> Result<()> {
    let cluster = live()?;
    let source = cluster.database("node_a");
    sample::create(&source, 4)?;
    let load = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    let before = sent(&cluster, "node_a")?;
    let mut arguments = vec!["init"];
    arguments.extend(TARGETS);
    // Packed rows would be hardly more than what else is said.
    let further = [
        "--from",
        "node_a",
        "--yes",
        "--json",
        "--compress",
        "none",
        "--large-table-threshold",
        "1MB",
    ];
    arguments.extend(further);
    let done = cluster.cli(&arguments)?.expect(0)?;
    let after = sent(&cluster, "node_a")?;
    load.stop()?;
    cluster.wait_drained("node_a")?;
    for target in TARGETS {
        assert_eq!(cluster.state(target)?, "synchronized");
        compare::rows(&source, &cluster.database(target))?.none()?;
        compare::schema(&source, &cluster.database(target))?.none()?;
    }
    read_once(&cluster, 0)?;
    let one = done
        .objects()
        .iter()
        .filter(|object| object["event"] == "init.completed")
        .filter_map(|object| object["wire_bytes"].as_f64())
        .fold(0.0, f64::max);
    ensure!(
        after - before < 1.3 * one,
        "the source sent {} bytes, and one copy is {one}",
        after - before
    );
    nothing_is_left(&source, 3)?;
    assert_eq!(
        source.value::<u32>("SELECT count(*) FROM pg_publication")?,
        1
    );
    Ok(())
}

#[test]
fn a_target_that_is_cancelled_and_one_that_dies_do_not_concern_the_third() -> Result<()> {
    let mut cluster = cluster()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    copy_to_all(&cluster)?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    cluster.kill_agent("node_c")?;
    cluster.wait_state("node_d", &["synchronized"], LIMIT * 2)?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    assert_eq!(
        cluster
            .database("node_b")
            .value::<u32>("SELECT count(*) FROM pg_class WHERE relname LIKE 'pgbench%'")?,
        0
    );
    cluster.start_agent("node_c")?;
    cluster.wait_state("node_c", &["synchronized"], LIMIT * 2)?;
    for target in ["node_c", "node_d"] {
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    nothing_is_left(&source, 2)
}

#[test]
fn a_source_whose_agent_dies_lets_all_its_targets_go_on_with_another_snapshot() -> Result<()> {
    let mut cluster = cluster()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    copy_to_all(&cluster)?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    for target in TARGETS {
        cluster.wait_state(target, &["synchronized"], LIMIT * 2)?;
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    nothing_is_left(&source, 3)
}

fn snapshots(cluster: &Cluster) -> Result<Vec<Value>> {
    let listed = cluster.cli(&["snapshot", "list", "--json"])?.expect(0)?;
    let listed = listed.last_object()?;
    Ok(listed["snapshots"].as_array().cloned().unwrap_or_default())
}

#[test]
fn a_node_joins_a_snapshot_that_others_are_being_made_from() -> Result<()> {
    let cluster = live()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    cluster
        .cli(&[
            "init",
            "node_b",
            "node_c",
            "--from",
            "node_a",
            "--yes",
            "--detach",
            "--max-rate",
            "2MB",
            "--large-table-threshold",
            "1MB",
        ])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    let live = snapshots(&cluster)?;
    let [live] = live.as_slice() else {
        anyhow::bail!("{live:?}")
    };
    assert_eq!(live["state"], "live");
    assert_eq!(live["holders"][0]["location"], "live");
    let id = live["snapshot_id"].as_str().context("an id")?;
    cluster
        .cli(&["init", "node_d", "--snapshot", id, "--yes"])?
        .expect(0)?;
    for target in TARGETS {
        cluster.wait_state(target, &["synchronized"], LIMIT * 2)?;
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    // Those that are on their way to a slow target are not waited for: four workers of each.
    read_once(&cluster, 8)?;
    nothing_is_left(&source, 3)?;
    assert!(snapshots(&cluster)?.is_empty());
    Ok(())
}

#[test]
fn two_phases_overlap_release_the_source_early_and_survive_its_restart() -> Result<()> {
    let mut cluster = cluster()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    source.sql(sample::WITHOUT_COLUMNS)?;
    cluster
        .cli(&[
            "init",
            "node_b",
            "node_c",
            "--from",
            "node_a",
            "--method",
            "two-phase",
            "--yes",
            "--detach",
            "--max-rate",
            "4MB",
        ])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    let held = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL \
         AND application_name LIKE 'steep-repl snapshot%'";
    wait::until_true("the source to be free", LIMIT, || {
        Ok(source.value::<u32>(held)? == 0)
    })?;
    assert_eq!(cluster.state("node_b")?, "copying", "long before its end");
    wait::until_true("the snapshot to be complete", LIMIT, || {
        Ok(snapshots(&cluster)?[0]["state"] == "sealed")
    })?;
    let spool = cluster.dir().join("agent-node_a").join("spool");
    assert_eq!(fs::read_dir(&spool)?.count(), 1);
    source.sql("UPDATE pgbench_tellers SET tbalance = 5 WHERE tid % 3 = 0")?;
    source.sql("INSERT INTO nothing DEFAULT VALUES")?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    for target in ["node_b", "node_c"] {
        cluster.wait_state(target, &["synchronized"], LIMIT * 2)?;
    }
    cluster.wait_drained("node_a")?;
    for target in ["node_b", "node_c"] {
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    read_once(&cluster, 0)?;
    nothing_is_left(&source, 2)?;
    wait::until_true("the spool to be empty", LIMIT, || {
        Ok(fs::read_dir(&spool)?.count() == 0)
    })
}

#[test]
fn two_phases_that_are_cancelled_leave_nothing_and_need_no_spool_to_end_well() -> Result<()> {
    let cluster = cluster()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    cluster
        .cli(&[
            "init",
            "node_b",
            "--from",
            "node_a",
            "--method",
            "two-phase",
            "--yes",
            "--detach",
            "--max-rate",
            "2MB",
        ])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    nothing_is_left(&source, 0)?;
    let spool = cluster.dir().join("agent-node_a").join("spool");
    wait::until_true("the spool to be empty", LIMIT, || {
        Ok(fs::read_dir(&spool)?.count() == 0)
    })?;
    assert_eq!(
        source.value::<u32>("SELECT count(*) FROM pg_publication")?,
        0
    );

    // Where nothing can be spooled, the targets read the source.
    fs::remove_dir(&spool)?;
    fs::write(&spool, "no directory")?;
    cluster.init(&["--method", "two-phase"])?.expect(0)?;
    compare::rows(&source, &cluster.database("node_b"))?.none()?;
    let events = cluster.cli(&["events", "node_a", "--json"])?.text();
    ensure!(events.contains("snapshot.not_spooled"), "{events}");
    nothing_is_left(&source, 1)?;
    wait::until_true("the snapshot to be forgotten", LIMIT, || {
        Ok(snapshots(&cluster)?.is_empty())
    })
}

/// Begins to load a source with a large table, slowly, and returns once all of it is spooled.
fn spooled(cluster: &Cluster) -> Result<()> {
    let source = cluster.database("node_a");
    sample::create(&source, 4)?;
    let further = [
        "--detach",
        "--max-rate",
        "2MB",
        "--large-table-threshold",
        "1MB",
    ];
    cluster.init(&further)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    wait::until_true("the snapshot to be complete", LIMIT, || {
        let all = snapshots(cluster)?;
        Ok(all.first().is_some_and(|one| one["state"] == "sealed"))
    })
}

/// The rest of the copy need not be slow.
fn unlimited(cluster: &Cluster) -> Result<()> {
    let adjust = ["init", "adjust", "--node", "node_b", "--max-rate", "none"];
    cluster.cli(&adjust)?.expect(0).map(drop)
}

#[test]
fn a_database_with_a_large_table_is_spooled_and_rows_flow_from_there_without_its_server()
-> Result<()> {
    let mut cluster = cluster()?;
    spooled(&cluster)?;
    let source = cluster.database("node_a");
    let held = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL \
         AND application_name LIKE 'steep-repl snapshot%'";
    assert_eq!(source.value::<u32>(held)?, 0);
    let copied = |cluster: &Cluster| -> Result<u64> {
        let view = cluster.progress("node_b")?;
        assert!(view["waiting"].is_null(), "{view}");
        view["bytes_copied"].as_u64().context("bytes")
    };
    cluster.node_mut("node_a").server_mut().stop()?;
    wait::until_true("the stop to be noticed", LIMIT, || {
        let node = cluster.node_view("node_a")?.context("node_a")?;
        Ok(!node["postgres_error"].is_null())
    })?;
    let before = copied(&cluster)?;
    wait::until_true("more rows to arrive", LIMIT, || {
        Ok(copied(&cluster)? > before)
    })?;
    cluster.node_mut("node_a").server_mut().restart()?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    unlimited(&cluster)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT * 2)?;
    compare::rows(&source, &cluster.database("node_b"))?.none()?;
    read_once(&cluster, 0)
}

#[test]
fn a_spool_that_is_damaged_or_gone_is_read_anew_by_itself() -> Result<()> {
    let mut cluster = cluster()?;
    spooled(&cluster)?;
    let first = snapshots(&cluster)?[0]["snapshot_id"].clone();
    let spool = cluster.dir().join("agent-node_a").join("spool");
    cluster.stop_agent("node_a")?;
    fs::remove_dir_all(&spool)?;
    cluster.start_agent("node_a")?;
    let coordinator = cluster.coordinator().context("a coordinator")?;
    wait::until_true("the job to begin again", LIMIT, || {
        Ok(!coordinator.events("init.restarted")?.is_empty())
    })?;
    let sealed = |one: &Value| one["snapshot_id"] == first && one["state"] == "sealed";
    assert!(!snapshots(&cluster)?.iter().any(sealed));
    unlimited(&cluster)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT * 2)?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()?;
    assert!(!coordinator.events("snapshot.lost")?.is_empty());
    nothing_is_left(&cluster.database("node_a"), 1)
}

#[test]
fn a_large_table_without_a_spool_is_read_live_and_that_is_said() -> Result<()> {
    let cluster = live()?;
    sample::create(&cluster.database("node_a"), 2)?;
    let further = [
        "--detach",
        "--max-rate",
        "2MB",
        "--large-table-threshold",
        "1MB",
    ];
    cluster.init(&further)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    let status = cluster.cli(&["status", "node_b"])?.expect(0)?.text();
    ensure!(status.contains("no room for a spool on node_a"), "{status}");
    let events = cluster.cli(&["events", "node_b", "--json"])?.text();
    ensure!(events.contains("snapshot.not_spooled"), "{events}");
    cluster.wait_state("node_b", &["synchronized"], LIMIT * 2)?;
    Ok(())
}
