//! The source loses a job's snapshot in mid-copy: tables that are complete stay, the others are copied under another
//! snapshot, and in the end one subscription carries all of them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::session::Session;
use steep_tests::{compare, residue, sample, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// Tables of the same size that are copied one after another, after the larger ones.
const MORE: u32 = 4;

/// Targets that share a snapshot.
const BOTH: [&str; 2] = ["node_b", "node_c"];

/// A cluster whose job has completed a table, and has others to copy. Rows change all the time.
fn in_mid_copy(method: &str) -> Result<(Cluster, Load)> {
    begin(Cluster::pair()?, method)
}

fn begin(cluster: Cluster, method: &str) -> Result<(Cluster, Load)> {
    fill(&cluster.database("node_a"))?;
    let load = load(&cluster)?;
    init(&cluster, &["node_b"], method)?;
    Ok((cluster, load))
}

fn fill(source: &Database) -> Result<()> {
    sample::create(source, 2)?;
    for n in 1..=MORE {
        source.sql(&format!(
            "CREATE TABLE more_{n} AS SELECT g AS id, repeat(md5(g::text), 4) AS body
                 FROM generate_series(1, 50000) AS g;
             ALTER TABLE more_{n} ADD PRIMARY KEY (id)"
        ))?;
    }
    // One partition is complete early, the other is not.
    source.sql(
        "CREATE TABLE parted (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100000);
         CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100000) TO (200000);
         INSERT INTO parted SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 100100) AS g",
    )?;
    Ok(())
}

/// Begins to copy slowly, and returns once each target has two complete tables.
fn init(cluster: &Cluster, targets: &[&str], method: &str) -> Result<()> {
    let slowly = ["--parallel", "1", "--max-rate", "5MB", "--method", method];
    let begin = [
        &["init"],
        targets,
        &["--from", "node_a", "--yes", "--detach"],
        &slowly,
    ];
    cluster.cli(&begin.concat())?.expect(0)?;
    for target in targets {
        wait::until_true("two tables to be complete", LIMIT, || {
            Ok(cluster.progress(target)?["tables_completed"].as_u64() > Some(1))
        })?;
    }
    Ok(())
}

/// Two targets that share a snapshot. Each has complete tables, and others to copy.
fn both_in_mid_copy() -> Result<(Cluster, Load)> {
    let builder = Cluster::builder().nodes(3);
    let cluster = builder
        .setting("node_a", "max_replication_slots", "20")
        .start()?;
    fill(&cluster.database("node_a"))?;
    let load = load(&cluster)?;
    init(&cluster, &BOTH, "snapshot")?;
    Ok((cluster, load))
}

fn load(cluster: &Cluster) -> Result<Load> {
    let intensity = Intensity::LIGHT;
    Load::start(&cluster.database("node_a"), intensity, Grouping::Shared)
}

fn events(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    events_of(cluster, "node_b", name)
}

fn events_of(cluster: &Cluster, node: &str, name: &str) -> Result<Vec<Value>> {
    let events = cluster.cli(&["events", node, "--json"])?.expect(0)?;
    let named = |event: &&Value| event["event"] == name;
    Ok(events.objects().iter().filter(named).cloned().collect())
}

fn crash_the_source(cluster: &mut Cluster, times: usize) -> Result<()> {
    let server = cluster.node_mut("node_a").server_mut();
    server.crash()?;
    server.restart()?;
    wait::until_true("another epoch to begin", LIMIT, || {
        Ok(events(cluster, "epoch.started")?.len() == times)
    })
}

/// Synchronized, equal, and replicated like any other node.
fn ends_like_any_other(cluster: &Cluster, load: Load) -> Result<()> {
    all_end_like_any_other(cluster, &["node_b"], load)
}

fn all_end_like_any_other(cluster: &Cluster, targets: &[&str], load: Load) -> Result<()> {
    for target in targets {
        // The rest need not be slow, if it is still being copied.
        cluster.cli(&["init", "adjust", "--node", target, "--max-rate", "none"])?;
    }
    for target in targets {
        let states = ["failed", "synchronized"];
        let state = cluster.wait_state(target, &states, LIMIT * 2)?;
        let view = cluster.node_view(target)?;
        assert_eq!(state, "synchronized", "{view:?}");
    }
    load.stop()?;
    let source = cluster.database("node_a");
    source.sql(
        "UPDATE more_1 SET body = 'late'; DELETE FROM more_2 WHERE id < 100;
         UPDATE parted SET body = 'late' WHERE id > 99900",
    )?;
    cluster.wait_drained("node_a")?;
    let roots = "c.relkind = 'p' AND NOT c.relispartition";
    let each = targets.len();
    let published = format!(
        "SELECT count(*) = {each} * (SELECT count(*) FROM pg_class c WHERE {roots})
             FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid WHERE {roots}"
    );
    assert_eq!(
        source.sql(&published)?,
        "t",
        "later partitions belong to it"
    );
    for what in ["pg_replication_slots", "pg_publication"] {
        let left = source.value::<usize>(&format!("SELECT count(*) FROM {what}"))?;
        assert_eq!(left, each, "{what}");
    }
    for target in targets {
        let target = cluster.database(target);
        compare::rows(&source, &target)?.none()?;
        compare::schema(&source, &target)?.none()?;
        for what in ["pg_subscription", "pg_replication_origin"] {
            let left = target.value::<u32>(&format!("SELECT count(*) FROM {what}"))?;
            assert_eq!(left, 1, "{what}");
        }
    }
    Ok(())
}

/// An epoch began at that target, which has copied no table twice.
fn kept_its_tables(cluster: &Cluster, target: &str) -> Result<()> {
    let begun = events_of(cluster, target, "epoch.started")?;
    let begun = begun.first().context("an epoch began")?;
    assert!(begun["tables_kept"].as_u64() > Some(1), "{begun}");
    assert_eq!(events_of(cluster, target, "epoch.folded")?.len(), 1);
    assert_eq!(events_of(cluster, target, "init.restarted")?.len(), 0);
    let mut copied: Vec<String> = events_of(cluster, target, "init.table_complete")?
        .iter()
        .map(|event| event["table"].to_string())
        .collect();
    let all = copied.len();
    copied.sort();
    copied.dedup();
    assert_eq!(copied.len(), all, "a table was copied twice");
    Ok(())
}

fn epochs_begin(cluster: &Cluster) -> Result<()> {
    for target in BOTH {
        wait::until_true("another epoch to begin", LIMIT, || {
            Ok(!events_of(cluster, target, "epoch.started")?.is_empty())
        })?;
    }
    Ok(())
}

#[test]
fn complete_tables_stay_when_the_source_crashes_and_in_the_end_one_subscription_has_all()
-> Result<()> {
    let (mut cluster, before) = in_mid_copy("snapshot")?;
    crash_the_source(&mut cluster, 1)?;
    drop(before);
    // What was kept is in the coordinator's store.
    cluster.wait_phase("node_b", "copy")?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let during = load(&cluster)?;
    ends_like_any_other(&cluster, during)?;
    let begun = events(&cluster, "epoch.started")?;
    let begun = begun.first().context("an epoch began")?;
    assert!(begun["tables_kept"].as_u64() > Some(0), "{begun}");
    assert_eq!(events(&cluster, "epoch.folded")?.len(), 1);
    assert_eq!(events(&cluster, "init.restarted")?.len(), 0);
    // The largest table was complete, and was not copied again.
    let copied = events(&cluster, "init.table_complete")?;
    let large = copied
        .iter()
        .filter(|e| e["table"] == "public.pgbench_accounts");
    assert_eq!(large.count(), 1);
    Ok(())
}

#[test]
fn a_job_whose_source_stays_away_is_resumed_with_its_tables_and_says_what_it_reads_again()
-> Result<()> {
    let patience = Cluster::builder().coordinator_argument("--retry-for=2s");
    let (mut cluster, load) = begin(patience.start()?, "snapshot")?;
    drop(load);
    cluster.node_mut("node_a").server_mut().stop()?;
    cluster.wait_state("node_b", &["failed"], LIMIT)?;
    cluster.node_mut("node_a").server_mut().restart()?;
    let load = self::load(&cluster)?;
    let preflight = cluster.init(&["--resume", "--dry-run"])?.expect(0)?.text();
    for said in [
        "resumed",
        "are kept",
        "under another snapshot",
        "are read again",
    ] {
        assert!(preflight.contains(said), "{said}: {preflight}");
    }
    let end = cluster.init(&["--resume"])?.expect(0)?.last_object()?;
    let lost = &end["lost_snapshots"];
    assert!(lost[0]["tables"].as_u64() > Some(1), "{end}");
    ends_like_any_other(&cluster, load)?;
    assert_eq!(events(&cluster, "init.restarted")?.len(), 0);
    Ok(())
}

/// Tables that have not been completed, the last to be copied first.
fn begun_or_waiting(cluster: &Cluster) -> Result<Vec<String>> {
    let progress = cluster.progress("node_b")?;
    let tables = progress["tables"].as_array().context("tables")?;
    let open = tables.iter().filter(|table| table["state"] != "completed");
    let mut names: Vec<String> = open
        .filter_map(|table| table["table"].as_str())
        .filter(|name| name.starts_with("more_"))
        .map(str::to_owned)
        .collect();
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

#[test]
fn a_table_that_is_truncated_or_dropped_on_the_source_meanwhile_costs_no_complete_one() -> Result<()>
{
    let (cluster, load) = in_mid_copy("snapshot")?;
    let source = cluster.database("node_a");
    let open = begun_or_waiting(&cluster)?;
    let (emptied, dropped) = (&open[0], &open[1]);
    source.sql(&format!(
        "TRUNCATE {emptied}; INSERT INTO {emptied} VALUES (1, 'later')"
    ))?;
    source.sql(&format!("DROP TABLE {dropped}"))?;
    wait::until_true("another epoch to begin", LIMIT, || {
        Ok(!events(&cluster, "epoch.started")?.is_empty())
    })?;
    let end = cluster.wait_state("node_b", &["failed", "synchronized"], LIMIT)?;
    assert_eq!(end, "synchronized", "{:?}", cluster.node_view("node_b")?);
    load.stop()?;
    cluster.wait_drained("node_a")?;
    let target = cluster.database("node_b");
    compare::rows_except(&source, &target, &[&format!("public.{dropped}")])?.none()?;
    assert_eq!(
        target.value::<u32>(&format!("SELECT count(*) FROM {dropped}"))?,
        0
    );
    let report = cluster
        .cli(&["status", "node_b", "--last-report"])?
        .expect(0)?
        .text();
    assert!(
        report.contains("table_gone") && report.contains(dropped.as_str()),
        "{report}"
    );
    assert_eq!(events(&cluster, "init.restarted")?.len(), 0);
    Ok(())
}

#[test]
fn a_table_that_is_altered_on_the_source_meanwhile_is_altered_here_and_the_job_resumed()
-> Result<()> {
    let (cluster, load) = in_mid_copy("snapshot")?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let altered = &begun_or_waiting(&cluster)?[0];
    let alter = format!("ALTER TABLE {altered} ADD COLUMN added integer NOT NULL DEFAULT 7");
    source.sql(&alter)?;
    cluster.wait_state("node_b", &["failed"], LIMIT)?;
    let report = cluster
        .cli(&["status", "node_b", "--last-report"])?
        .expect(0)?
        .text();
    for said in ["altered on the source", altered, "added", "--resume"] {
        assert!(report.contains(said), "{said}: {report}");
    }
    let again = cluster.init(&["--resume"])?;
    assert_eq!(again.code, 3, "{again}");
    target.sql(&alter)?;
    cluster.init(&["--resume"])?.expect(0)?;
    ends_like_any_other(&cluster, load)?;
    assert_eq!(events(&cluster, "init.restarted")?.len(), 0);
    Ok(())
}

#[test]
fn complete_tables_stay_when_a_spool_is_lost_and_what_it_was_made_from_is_folded_too() -> Result<()>
{
    let (mut cluster, load) = in_mid_copy("two-phase")?;
    let sealed = |one: &Value| one["state"] == "sealed";
    wait::until_true("the spool to be complete", LIMIT, || {
        let listed = cluster.cli(&["snapshot", "list", "--json"])?.expect(0)?;
        Ok(listed.last_object()?["snapshots"]
            .as_array()
            .is_some_and(|all| all.iter().any(sealed)))
    })?;
    cluster.stop_agent("node_a")?;
    std::fs::remove_dir_all(cluster.dir().join("agent-node_a").join("spool"))?;
    cluster.start_agent("node_a")?;
    wait::until_true("another epoch to begin", LIMIT, || {
        Ok(events(&cluster, "epoch.started")?.len() == 1)
    })?;
    ends_like_any_other(&cluster, load)?;
    assert_eq!(events(&cluster, "epoch.folded")?.len(), 1);
    assert_eq!(events(&cluster, "init.restarted")?.len(), 0);
    let notes = "SELECT count(*) FROM steep_repl.init_slots";
    assert_eq!(cluster.database("node_a").value::<u32>(notes)?, 0);
    Ok(())
}

#[test]
fn a_table_with_an_open_writer_is_moved_once_that_has_ended_whoever_dies_meanwhile() -> Result<()> {
    let (mut cluster, before) = in_mid_copy("snapshot")?;
    crash_the_source(&mut cluster, 1)?;
    drop(before);
    cluster.wait_phase("node_b", "copy")?;
    let source = cluster.database("node_a");
    let write = "BEGIN; UPDATE pgbench_accounts SET abalance = 7 WHERE aid = 1";
    let writer = Session::sleeping(&source, "writer", write)?;
    waits_for_the_writer(&cluster)?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.start_agent(node)?;
        waits_for_the_writer(&cluster)?;
    }
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    drop(writer);
    let during = load(&cluster)?;
    ends_like_any_other(&cluster, during)?;
    assert_eq!(events(&cluster, "epoch.folded")?.len(), 1);
    Ok(())
}

/// The fold has been tried, by the agents that run now.
fn waits_for_the_writer(cluster: &Cluster) -> Result<()> {
    wait::until_true("the fold to wait for the writer", LIMIT, || {
        let waiting = &cluster.progress("node_b")?["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        Ok(reason.contains("nobody writes to public.pgbench_accounts"))
    })
}

#[test]
fn complete_tables_stay_when_the_agent_of_the_source_is_stopped() -> Result<()> {
    let (mut cluster, load) = in_mid_copy("snapshot")?;
    assert_eq!(cluster.stop_agent("node_a")?.code(), Some(0));
    cluster.start_agent("node_a")?;
    ends_like_any_other(&cluster, load)?;
    assert_eq!(events(&cluster, "epoch.started")?.len(), 1);
    assert_eq!(events(&cluster, "init.restarted")?.len(), 0);
    Ok(())
}

#[test]
fn a_cancel_after_two_lost_snapshots_leaves_nothing() -> Result<()> {
    let (mut cluster, load) = in_mid_copy("snapshot")?;
    crash_the_source(&mut cluster, 1)?;
    drop(load);
    let complete = cluster.progress("node_b")?["tables_completed"].as_u64();
    wait::until_true("another table to be complete", LIMIT, || {
        Ok(cluster.progress("node_b")?["tables_completed"].as_u64() > complete)
    })?;
    crash_the_source(&mut cluster, 2)?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn targets_that_share_a_snapshot_keep_their_complete_tables_when_the_source_crashes() -> Result<()>
{
    let (mut cluster, before) = both_in_mid_copy()?;
    let server = cluster.node_mut("node_a").server_mut();
    server.crash()?;
    server.restart()?;
    epochs_begin(&cluster)?;
    drop(before);
    let during = load(&cluster)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    all_end_like_any_other(&cluster, &BOTH, during)?;
    for target in BOTH {
        kept_its_tables(&cluster, target)?;
    }
    Ok(())
}

#[test]
fn a_target_that_is_cancelled_between_two_epochs_leaves_nothing_and_costs_the_other_nothing()
-> Result<()> {
    let (mut cluster, load) = both_in_mid_copy()?;
    let source = cluster.database("node_a");
    // It began before the complete tables have publications of their own, and ends after that.
    let writer = Session::start(
        &source,
        "writer",
        "BEGIN; UPDATE pgbench_accounts SET abalance = 7 WHERE aid = 1; SELECT pg_sleep(10);
         UPDATE pgbench_accounts SET abalance = 8 WHERE aid = 2; COMMIT",
    )?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    epochs_begin(&cluster)?;
    writer.succeeds()?;
    for target in BOTH {
        cluster.wait_phase(target, "copy")?;
    }
    // What is left may be little, and must not be there before the cancel.
    let slowly = ["init", "adjust", "--node", "node_b", "--max-rate", "1kB"];
    cluster.cli(&slowly)?.expect(0)?;
    for node in ["node_a", "node_b"] {
        cluster.kill_agent(node)?;
    }
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    for node in ["node_a", "node_b"] {
        cluster.start_agent(node)?;
    }
    cluster.wait_online(&["node_a", "node_b", "node_c"])?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    residue::of_everything(&cluster.database("node_b"))?.none()?;
    all_end_like_any_other(&cluster, &["node_c"], load)?;
    kept_its_tables(&cluster, "node_c")
}
