//! Any process may be killed during the copy: the job says within fifteen seconds what it waits
//! for, and continues once the process is back; `init cancel` cleans up; `init` works again.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::Grouping;
use steep_tests::session::Session;
use steep_tests::{compare, residue, sample};

/// The contract: the job says within this time what it waits for.
const FAILURE_LIMIT: Duration = Duration::from_secs(15);

/// A new coordinator has sessions at once, and the first look at a busy server takes some seconds.
const ADOPTED_LIMIT: Duration = Duration::from_secs(60);

/// For a part of some megabytes at [`RATE`].
const COMMITTED_LIMIT: Duration = Duration::from_secs(60);

/// The copy takes about twenty seconds at this rate, so that the kill falls into it.
const RATE: &str = "1500kB";

/// The target's disk soon has only what was waited for.
fn cluster() -> Result<Cluster> {
    let cluster = Cluster::builder()
        .setting("node_b", "wal_writer_delay", "10s")
        .start()?;
    sample::create(&cluster.database("node_a"), 2)?;
    Ok(cluster)
}

/// A cluster during the copy, with the job detached.
fn copying() -> Result<Cluster> {
    let cluster = cluster()?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    cluster.wait_copying("node_b")?;
    Ok(cluster)
}

/// Waits until the job says that it waits for that node.
fn waits_for(cluster: &Cluster, node: &str) -> Result<()> {
    let what = format!("a wait for {node} to be said");
    steep_tests::wait::until_true(&what, FAILURE_LIMIT, || {
        let view = cluster.node_view("node_b")?.context("node_b is known")?;
        Ok(view["waiting"]["node_id"] == node)
    })
}

/// Waits until the job has continued to its end by itself.
fn ends_well(cluster: &Cluster) -> Result<()> {
    let limit = Duration::from_secs(180);
    let state = cluster.wait_state("node_b", &["failed", "synchronized"], limit)?;
    assert_eq!(state, "synchronized", "{:?}", cluster.node_view("node_b")?);
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}

/// Cleans up after a job, and initialises again.
fn cancel_and_init_work(cluster: &Cluster) -> Result<()> {
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    residue::of_jobs(&source)?.none()?;
    residue::of_everything(&target)?.none()?;
    cluster.init(&[])?.expect(0)?;
    source.sql("UPDATE pgbench_tellers SET tbalance = 1")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()
}

#[test]
fn of_the_sources_agent() -> Result<()> {
    let mut cluster = copying()?;
    cluster.kill_agent("node_a")?;
    waits_for(&cluster, "node_a")?;
    cluster.start_agent("node_a")?;
    // The snapshot ended with the agent: the job starts over.
    ends_well(&cluster)
}

#[test]
fn of_the_targets_agent() -> Result<()> {
    let mut cluster = copying()?;
    cluster.kill_agent("node_b")?;
    waits_for(&cluster, "node_b")?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    cancel_and_init_work(&cluster)
}

#[test]
fn of_the_targets_agent_that_is_back_at_once() -> Result<()> {
    let mut cluster = copying()?;
    cluster.kill_agent("node_b")?;
    cluster.start_agent("node_b")?;
    ends_well(&cluster)
}

#[test]
fn of_the_coordinator_does_not_stop_rows_on_their_way() -> Result<()> {
    let mut cluster = copying()?;
    cluster.kill_coordinator()?;
    // The copy must continue without a coordinator.
    let target = cluster.database("node_b");
    let ledger = || target.value::<u64>("SELECT pg_database_size(current_database())");
    let before = ledger()?;
    steep_tests::wait::until_true("rows to go on arriving", FAILURE_LIMIT, || {
        Ok(ledger()? > before + 2_000_000)
    })?;
    cluster.start_coordinator()?;
    ends_well(&cluster)
}

#[test]
fn of_the_coordinator_and_of_the_targets_agent_for_long_lets_the_sources_vacuum_go_on() -> Result<()>
{
    let mut cluster = Cluster::builder()
        .agent_argument("node_a", "--snapshot-grace=3s")
        .start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    cluster.wait_committed("node_b", COMMITTED_LIMIT)?;
    cluster.kill_coordinator()?;
    let held =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'steep-repl snapshot%'";
    // Somebody reads under it for longer than that.
    std::thread::sleep(Duration::from_secs(5));
    ensure!(source.value::<u32>(held)? == 1, "rows do not flow on");
    cluster.kill_agent("node_b")?;
    steep_tests::wait::until_true("the snapshot to be closed", COMMITTED_LIMIT, || {
        Ok(source.value::<u32>(held)? == 0)
    })?;
    cluster.start_agent("node_b")?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    ends_well(&cluster)
}

/// The coordinator loses its store, and adopts the job. Returns the job's id.
fn lose_store(cluster: &mut Cluster) -> Result<String> {
    let progress = cluster.progress("node_b")?;
    let job = progress["job_id"].as_str().context("its job")?.to_owned();
    cluster.kill_coordinator()?;
    std::fs::remove_dir_all(cluster.dir().join("coordinator"))?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let adopted = |cluster: &Cluster| {
        let coordinator = cluster.coordinator().context("the coordinator runs")?;
        coordinator.events("init.adopted")
    };
    steep_tests::wait::until_true("the job to be adopted", ADOPTED_LIMIT, || {
        Ok(!adopted(cluster)?.is_empty())
    })?;
    let events = adopted(cluster)?;
    ensure!(events.len() == 1, "{events:?}");
    ensure!(
        events[0]["job_id"] == job.as_str(),
        "{events:?} is not {job}"
    );
    Ok(job)
}

#[test]
fn of_the_coordinator_with_its_store_costs_no_committed_row() -> Result<()> {
    let mut cluster = cluster()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let following = cluster.init_spawn(&["--max-rate", RATE])?;
    let writing = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    cluster.wait_committed("node_b", COMMITTED_LIMIT)?;
    let ledger = "SELECT epoch, part, finished_at FROM steep_repl.copy_ledger WHERE rows > 0";
    let before = target.rows(ledger)?;
    let job = lose_store(&mut cluster)?;
    cluster.wait_copying("node_b")?;
    let mut after = Vec::new();
    steep_tests::wait::until_true("more parts to be committed", COMMITTED_LIMIT, || {
        after = target.rows(ledger)?;
        Ok(after.len() > before.len())
    })?;
    ensure!(!before.is_empty(), "nothing was committed");
    for part in &before {
        ensure!(after.contains(part), "{part:?} was copied again: {after:?}");
    }
    writing.stop()?;
    // The command that follows the job has followed it all along.
    let end = following.finish(Duration::from_secs(180))?.expect(0)?;
    let end = end.last_object()?;
    ensure!(end["event"] == "init.completed", "{end}");
    ensure!(cluster.state("node_b")? == "synchronized", "{end}");
    let progress = cluster.progress("node_b")?;
    ensure!(progress["job_id"] == job.as_str(), "{progress}");
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    let left = "SELECT (SELECT count(*) FROM steep_repl.jobs) + (SELECT count(*) FROM steep_repl.copy_ledger)";
    ensure!(
        target.value::<u32>(left)? == 0,
        "records of the job are left"
    );
    Ok(())
}

/// Copies the coordinator's store.
fn copy_store(from: &Path, to: &Path) -> Result<()> {
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

#[test]
fn of_the_coordinator_whose_old_store_is_put_back_costs_no_replica() -> Result<()> {
    let mut cluster = cluster()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let following = cluster.init_spawn(&["--max-rate", RATE])?;
    cluster.wait_committed("node_b", COMMITTED_LIMIT)?;
    cluster.kill_coordinator()?;
    let (store, old) = (cluster.dir().join("coordinator"), tempfile::tempdir()?);
    copy_store(&store, old.path())?;
    cluster.start_coordinator()?;
    following.finish(Duration::from_secs(180))?.expect(0)?;
    let slot = "SELECT slot_name, restart_lsn IS NOT NULL FROM pg_replication_slots";
    let before = source.rows(slot)?;
    cluster.kill_coordinator()?;
    copy_store(old.path(), &store)?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    cluster.wait_state("node_b", &["synchronized"], ADOPTED_LIMIT)?;
    ensure!(
        source.rows(slot)? == before,
        "the replica's slot is another one"
    );
    let coordinator = cluster.coordinator().context("the coordinator runs")?;
    let outdated = coordinator.events("init.outdated")?;
    ensure!(outdated.len() == 1, "{outdated:?}");
    source.sql("UPDATE pgbench_tellers SET tbalance = tbalance + 1")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

/// An index whose build takes some ten seconds where `steep_test.slow` is on.
const SLOW_INDEX: &str = "
    CREATE FUNCTION slowly(n integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF coalesce(current_setting('steep_test.slow', true), '') = 'on' THEN PERFORM pg_sleep(0.01); END IF;
        RETURN n;
    END $$;
    CREATE TABLE indexed (id integer PRIMARY KEY);
    INSERT INTO indexed SELECT generate_series(1, 1000);
    CREATE INDEX by_slowly ON indexed (slowly(id));";

/// The apply worker of a slow server waits for a lock before each row.
const HELD_UP: &str = "
    CREATE TABLE held_up (id integer PRIMARY KEY);
    CREATE FUNCTION held_up() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('cluster_name') = 'slow' THEN PERFORM pg_advisory_xact_lock(1); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER held_up BEFORE INSERT ON held_up FOR EACH ROW EXECUTE FUNCTION held_up();
    ALTER TABLE held_up ENABLE ALWAYS TRIGGER held_up";

/// The coordinator loses its store and the source's agent dies while an index is built.
fn lose_store_and_source(method: &str) -> Result<Cluster> {
    let mut cluster = Cluster::builder()
        .setting("node_b", "steep_test.slow", "on")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    source.sql(SLOW_INDEX)?;
    let following = cluster.init_spawn(&["--method", method])?;
    let writing = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    cluster.wait_phase("node_b", "indexes")?;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    steep_tests::wait::until_true("the snapshot to be removed", FAILURE_LIMIT, || {
        Ok(source.value::<u32>(slots)? == 1)
    })?;
    let copied = cluster.progress("node_b")?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    let job = lose_store(&mut cluster)?;
    let ledger = "SELECT count(*) FROM steep_repl.copy_ledger";
    ensure!(target.value::<u32>(ledger)? > 0, "the rows were not kept");
    writing.wait_for(20, COMMITTED_LIMIT)?;
    writing.stop()?;
    let end = following.finish(Duration::from_secs(180))?.expect(0)?;
    let end = end.last_object()?;
    ensure!(end["event"] == "init.completed", "{end}");
    let progress = cluster.progress("node_b")?;
    for same in [
        "job_id",
        "rows_copied",
        "bytes_copied",
        "tables_total",
        "tables_completed",
    ] {
        ensure!(
            progress[same] == copied[same],
            "{same}: {copied} became {progress}"
        );
    }
    ensure!(progress["job_id"] == job.as_str(), "{progress}");
    ensure!(progress["restarts"] == 0, "{progress}");
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;
    Ok(cluster)
}

#[test]
fn of_the_coordinator_with_its_store_and_of_the_sources_agent_cost_no_row_once_all_are_copied()
-> Result<()> {
    lose_store_and_source("snapshot").map(drop)
}

#[test]
fn of_the_coordinator_with_its_store_and_of_the_sources_agent_cost_no_row_of_a_spool() -> Result<()>
{
    let cluster = lose_store_and_source("two-phase")?;
    let source = cluster.database("node_a");
    ensure!(cluster.state("node_b")? == "synchronized");
    source.sql("UPDATE pgbench_tellers SET tbalance = tbalance + 1")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &cluster.database("node_b"))?.none()
}

#[test]
fn of_the_coordinator_with_its_store_costs_nothing_while_the_target_catches_up() -> Result<()> {
    let mut cluster = Cluster::builder()
        .setting("node_b", "cluster_name", sample::SLOW)
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    source.sql(HELD_UP)?;
    let holder = Session::sleeping(&target, "holder", "SELECT pg_advisory_lock(1)")?;
    let following = cluster.init_spawn(&["--max-rate", RATE])?;
    cluster.wait_phase("node_b", "copy")?;
    source.sql("INSERT INTO held_up VALUES (1)")?;
    cluster.wait_phase("node_b", "catch_up")?;
    let job = lose_store(&mut cluster)?;
    drop(holder);
    let end = following.finish(Duration::from_secs(180))?.expect(0)?;
    let end = end.last_object()?;
    ensure!(end["event"] == "init.completed", "{end}");
    let progress = cluster.progress("node_b")?;
    ensure!(progress["job_id"] == job.as_str(), "{progress}");
    ensure!(cluster.state("node_b")? == "synchronized");
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn of_the_coordinator_with_its_store_leaves_a_job_that_can_be_cancelled() -> Result<()> {
    let mut cluster = copying()?;
    lose_store(&mut cluster)?;
    let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
    cluster.cli(&cancel)?.expect(0)?;
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn of_the_sources_postgresql() -> Result<()> {
    let mut cluster = copying()?;
    cluster.node_mut("node_a").server_mut().crash()?;
    waits_for(&cluster, "node_a")?;
    cluster.node_mut("node_a").server_mut().restart()?;
    ends_well(&cluster)
}

#[test]
fn of_the_targets_postgresql() -> Result<()> {
    let mut cluster = copying()?;
    cluster.node_mut("node_b").server_mut().crash()?;
    waits_for(&cluster, "node_b")?;
    cluster.node_mut("node_b").server_mut().restart()?;
    ends_well(&cluster)
}

#[test]
fn of_the_command_line_stops_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let following = cluster.init_spawn(&["--max-rate", "3MB"])?;
    cluster.wait_copying("node_b")?;
    following.kill()?;
    cluster.wait_state("node_b", &["synchronized"], Duration::from_secs(60))?;
    compare::rows(&source, &cluster.database("node_b"))?.none()
}

#[test]
fn of_everything_at_once() -> Result<()> {
    let mut cluster = copying()?;
    cluster.kill_coordinator()?;
    for node in ["node_a", "node_b"] {
        cluster.kill_agent(node)?;
        cluster.node_mut(node).server_mut().crash()?;
    }
    for node in ["node_a", "node_b"] {
        cluster.node_mut(node).server_mut().restart()?;
    }
    cluster.start_coordinator()?;
    for node in ["node_a", "node_b"] {
        cluster.start_agent(node)?;
    }
    cluster.wait_online(&["node_a", "node_b"])?;
    ends_well(&cluster)
}
