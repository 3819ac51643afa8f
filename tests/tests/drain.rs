//! Daemons that are told to stop: they finish their work within limits and exit with 0; a job
//! continues if it can, and otherwise fails at once with the cause.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::{compare, residue, sample, scrape, wait};

/// An agent's own limit is 30 s, plus time for a busy machine.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

/// The longest shutdown after a second signal.
const HURRIED_LIMIT: Duration = Duration::from_secs(10);

/// The longest shutdown of an idle daemon: half of what a waiting drain may take.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// For a copy that continues.
const COPY_LIMIT: Duration = Duration::from_secs(90);

/// Many parts of a few seconds each: well within a drain's limit.
const SHORT_PARTS: [&str; 4] = ["--max-rate", "1500kB", "--large-table-threshold", "1MB"];

/// One part that takes minutes.
const LONG_PARTS: [&str; 4] = ["--max-rate", "200kB", "--parallel", "1"];

/// A cluster during the copy, with the job detached.
fn copying(further: &[&str]) -> Result<Cluster> {
    // Its rows are read while they are copied.
    let cluster = Cluster::builder().without_data_dir("node_a").start()?;
    sample::create(&cluster.database("node_a"), 2)?;
    let arguments: Vec<&str> = ["--detach"].iter().chain(further).copied().collect();
    cluster.init(&arguments)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    Ok(cluster)
}

/// Parts in the target's ledger, and parts being copied.
fn parts(cluster: &Cluster) -> Result<(u64, u64)> {
    let counts = cluster.database("node_b").sql(
        "SELECT (SELECT count(*) FROM steep_repl.copy_ledger),
                (SELECT count(*) FROM pg_stat_progress_copy)",
    )?;
    let (done, active) = counts.split_once('|').context("two counts")?;
    Ok((done.parse()?, active.parse()?))
}

/// The `drained` event in that agent's log.
fn drained(cluster: &Cluster, node: &str) -> Result<serde_json::Value> {
    let log = cluster.dir().join(format!("agent-{node}.log"));
    let text = std::fs::read_to_string(log)?;
    let mut lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .find(|line: &serde_json::Value| line["event"] == "drained")
        .context("no end of the drain in the log")
}

/// A job whose source was stopped starts over by itself once the agent is back.
fn begins_again(cluster: &mut Cluster) -> Result<()> {
    assert_eq!(cluster.state("node_b")?, "copying");
    cluster.start_agent("node_a")?;
    let state = cluster.wait_state("node_b", &["failed", "synchronized"], COPY_LIMIT)?;
    assert_eq!(state, "synchronized", "{:?}", cluster.node_view("node_b")?);
    assert_eq!(cluster.progress("node_b")?["restarts"], 1);
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}

#[test]
fn a_target_ends_the_parts_under_way_and_its_next_process_goes_on() -> Result<()> {
    let mut cluster = copying(&SHORT_PARTS)?;
    let target = cluster.database("node_b");
    let (done, active) = wait::until("parts under way", COPY_LIMIT, || {
        let (done, active) = parts(&cluster)?;
        Ok((active >= 2).then_some((done, active)))
    })?;
    let begun = Instant::now();
    cluster.begin_stop_of_agent("node_b")?;
    let address = cluster.node("node_b").agent_address();
    // An agent that has exited does not answer; the parts take longer than that.
    let (status, body) = scrape::get(&address, "/healthz")?;
    assert!(
        status.contains("503") && body == "stopping\n",
        "{status} {body}"
    );
    assert_eq!(cluster.end_of_agent("node_b")?.code(), Some(0));
    assert!(begun.elapsed() < DRAIN_LIMIT, "{:?}", begun.elapsed());

    let (kept, _) = parts(&cluster)?;
    assert!(kept >= done + active, "{kept} of {done} and {active}");
    let end = drained(&cluster, "node_b")?;
    assert_eq!(end["interrupted"], 1, "no part was left: {end}");
    // All of them were reported to the coordinator.
    let rows: u64 = target.value("SELECT sum(rows)::bigint FROM steep_repl.copy_ledger")?;
    assert_eq!(cluster.progress("node_b")?["rows_copied"], rows);

    cluster.start_agent("node_b")?;
    let state = cluster.wait_state("node_b", &["failed", "synchronized"], COPY_LIMIT)?;
    assert_eq!(state, "synchronized", "{:?}", cluster.node_view("node_b")?);
    compare::rows(&cluster.database("node_a"), &target)?.none()
}

#[test]
fn a_source_says_so_and_takes_its_slot_along() -> Result<()> {
    let mut cluster = copying(&SHORT_PARTS)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let begun = Instant::now();
    cluster.begin_stop_of_agent("node_a")?;
    assert_eq!(cluster.end_of_agent("node_a")?.code(), Some(0));
    assert!(begun.elapsed() < DRAIN_LIMIT, "{:?}", begun.elapsed());
    residue::of_jobs(&source)?.none()?;
    residue::of_everything(&target)?.none()?;
    begins_again(&mut cluster)
}

#[test]
fn a_source_whose_parts_take_too_long_goes_all_the_same() -> Result<()> {
    let mut cluster = copying(&LONG_PARTS)?;
    let begun = Instant::now();
    assert_eq!(cluster.stop_agent("node_a")?.code(), Some(0));
    assert!(begun.elapsed() < DRAIN_LIMIT, "{:?}", begun.elapsed());
    let end = drained(&cluster, "node_a")?;
    assert!(end["duration_ms"].as_u64() >= Some(20_000), "{end}");
    assert_eq!(cluster.state("node_b")?, "copying");
    // At that rate it would take minutes again.
    cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    cluster.start_agent("node_a")?;
    cluster.wait_state("node_b", &["uninitialized"], COPY_LIMIT)?;
    cluster.init(&[])?.expect(0)?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}

#[test]
fn told_twice_an_agent_cancels_what_runs() -> Result<()> {
    let mut cluster = copying(&LONG_PARTS)?;
    cluster.begin_stop_of_agent("node_b")?;
    let begun = Instant::now();
    assert_eq!(cluster.stop_agent("node_b")?.code(), Some(0));
    assert!(begun.elapsed() < HURRIED_LIMIT, "{:?}", begun.elapsed());
    assert_eq!(drained(&cluster, "node_b")?["interrupted"], 1);
    // The job waits for the next process, as after any other exit.
    assert_eq!(cluster.state("node_b")?, "copying");
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_b"])?;
    let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
    cluster.cli(&cancel)?.expect(0)?;
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn an_index_that_may_take_hours_is_not_waited_for_and_is_begun_again() -> Result<()> {
    let mut cluster = Cluster::builder()
        .setting("node_b", "cluster_name", sample::SLOW)
        .start()?;
    sample::slowly(&cluster.database("node_a"))?;
    cluster.database("node_a").sql(
        "CREATE TABLE t (id integer PRIMARY KEY);
         CREATE INDEX t_slowly ON t (public.slowly(id));
         INSERT INTO t SELECT generate_series(1, 1000);",
    )?;
    let target = cluster.database("node_b");
    let building = || -> Result<bool> {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE state = 'active' AND query ILIKE '%CREATE INDEX%t_slowly%'
                     AND pid <> pg_backend_pid()";
        Ok(target.value::<u32>(sql)? > 0)
    };
    cluster.init(&["--detach"])?.expect(0)?;
    wait::until_true("the index to be built", COPY_LIMIT, building)?;
    let begun = Instant::now();
    assert_eq!(cluster.stop_agent("node_b")?.code(), Some(0));
    assert!(begun.elapsed() < HURRIED_LIMIT, "{:?}", begun.elapsed());
    assert!(!building()?, "the statement goes on without its agent");
    cluster.start_agent("node_b")?;
    wait::until_true("the index to be built again", COPY_LIMIT, building)?;
    assert_eq!(cluster.state("node_b")?, "copying");
    Ok(())
}

#[test]
fn a_cancel_works_while_an_agent_drains_and_ends_the_drain() -> Result<()> {
    for node in ["node_a", "node_b"] {
        let mut cluster = copying(&LONG_PARTS)?;
        cluster.begin_stop_of_agent(node)?;
        let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
        cluster.cli(&cancel)?.expect(0)?;
        assert_eq!(cluster.state("node_b")?, "uninitialized");
        assert_eq!(cluster.end_of_agent(node)?.code(), Some(0));
        residue::of_jobs(&cluster.database("node_a"))?.none()?;
        residue::of_everything(&cluster.database("node_b"))?.none()?;
    }
    Ok(())
}

#[test]
fn whoever_has_nothing_to_do_goes_at_once() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    for node in ["node_a", "node_b"] {
        let begun = Instant::now();
        assert_eq!(cluster.stop_agent(node)?.code(), Some(0), "agent of {node}");
        assert!(begun.elapsed() < IDLE_LIMIT, "{:?}", begun.elapsed());
    }
    let begun = Instant::now();
    assert_eq!(cluster.stop_coordinator()?.code(), Some(0));
    assert!(begun.elapsed() < IDLE_LIMIT, "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn who_follows_a_job_goes_on_when_the_coordinator_that_was_stopped_is_back() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let following = cluster.init_spawn(&["--max-rate", "3MB"])?;
    cluster.wait_copying("node_b")?;
    assert_eq!(cluster.stop_coordinator()?.code(), Some(0));
    cluster.start_coordinator()?;
    let output = following.finish(COPY_LIMIT)?.expect(0)?;
    assert_eq!(output.last_object()?["event"], "init.completed");
    compare::rows(&source, &cluster.database("node_b"))?.none()
}
