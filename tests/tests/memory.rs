//! What a coordinator finds that has lost its store: replicas, jobs that were running, and stored snapshots.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::Grouping;
use steep_tests::{compare, residue, sample, wait};

/// For what is noticed within seconds.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

const TABLE: &str = "
    CREATE TABLE kept (id integer PRIMARY KEY, body text);
    INSERT INTO kept SELECT n, 'early' FROM generate_series(1, 1000) AS n;";

/// Our slots.
const OURS: &str =
    "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'steep\\_repl\\_%'";

/// The coordinator loses its store, while these agents restart.
fn forget(cluster: &mut Cluster, restarted: &[&str]) -> Result<()> {
    cluster.kill_coordinator()?;
    for node in restarted {
        cluster.kill_agent(node)?;
        cluster.start_agent(node)?;
    }
    fs::remove_dir_all(cluster.dir().join("coordinator"))?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])
}

#[test]
fn a_coordinator_without_memory_takes_replicas_up_and_removes_what_is_half_made() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(TABLE)?;
    cluster.init(&[])?.expect(0)?;
    forget(&mut cluster, &[])?;
    cluster.wait_state("node_b", &["synchronized"], NOTICE_LIMIT)?;
    let view = cluster.node_view("node_b")?.context("node_b")?;
    ensure!(view["source_node"] == "node_a", "{view}");
    source.sql("INSERT INTO kept VALUES (5000, 'late')")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    let refused = cluster.init(&["--force"])?.expect(1)?.text();
    ensure!(refused.contains("already synchronized"), "{refused}");
    let found = cluster.findings(&["node_b", "--from", "node_a", "--force"])?;
    ensure!(
        found
            .iter()
            .any(|(code, what)| code == "live_subscription" && what.contains("public.kept")),
        "{found:?}"
    );
    let clean = [
        "init",
        "cancel",
        "--node",
        "node_b",
        "--force-cleanup",
        "--yes",
    ];
    cluster.cli(&clean)?.expect(0)?;
    cluster.wait_state("node_b", &["uninitialized"], NOTICE_LIMIT)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;
    compare::rows(&source, &target)?.none()?;

    // A job that is running when the store is lost, and whose snapshot ends meanwhile.
    source.sql("INSERT INTO kept SELECT n, repeat(md5(n::text), 30) FROM generate_series(6000, 26000) AS n")?;
    let slowly = ["--force", "--detach", "--max-rate", "1MB"];
    cluster.init(&slowly)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    forget(&mut cluster, &["node_a"])?;
    cluster.wait_state("node_b", &["failed"], NOTICE_LIMIT)?;
    let view = cluster.node_view("node_b")?.context("node_b")?;
    let why = view["error_message"].to_string();
    ensure!(why.contains("no longer holds its snapshot"), "{why}");
    let refused = cluster.init(&["--force"])?;
    ensure!(
        refused.code != 0 && refused.text().contains("does not remember"),
        "{refused}"
    );
    let refused = cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    ensure!(
        refused.code == 1 && refused.text().contains("--force-cleanup"),
        "{refused}"
    );
    cluster.cli(&clean)?.expect(0)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;
    ensure!(
        target.value::<i64>("SELECT count(*) FROM kept")? == 0,
        "rows of the job are left"
    );

    // The same with a snapshot of its own, which nobody remembers either: its slots are the source's.
    let spooled = [
        "--force",
        "--detach",
        "--max-rate",
        "1MB",
        "--method",
        "two-phase",
    ];
    cluster.init(&spooled)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    forget(&mut cluster, &[])?;
    cluster.wait_state("node_b", &["failed"], NOTICE_LIMIT)?;
    cluster.cli(&clean)?.expect(0)?;
    residue::of_jobs(&target)?.none()?;
    ensure!(
        source.value::<u32>(OURS)? == 1,
        "the template alone is left"
    );
    let clean = [
        "init",
        "cancel",
        "--node",
        "node_a",
        "--force-cleanup",
        "--yes",
    ];
    cluster.cli(&clean)?.expect(0)?;
    residue::of_jobs(&source)?.none()?;
    cluster.init(&["--force"])?.expect(0)?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn an_adopted_replica_is_detached_like_any_other() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE TABLE numbered (id serial PRIMARY KEY); INSERT INTO numbered SELECT FROM generate_series(1, 100)")?;
    cluster.init(&[])?.expect(0)?;
    forget(&mut cluster, &[])?;
    cluster.wait_state("node_b", &["synchronized"], NOTICE_LIMIT)?;
    source.sql("INSERT INTO numbered SELECT FROM generate_series(1, 100)")?;
    let detach = ["detach", "--node", "node_b", "--wait", "--yes"];
    cluster.cli(&detach)?.expect(0)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;
    compare::rows(&source, &target)?.none()?;
    target.sql("INSERT INTO numbered DEFAULT VALUES")?;
    ensure!(target.value::<u32>("SELECT max(id) FROM numbered")? > 200);
    Ok(())
}

/// All stored snapshots, without what changes with time and whose clock says how long it took.
fn snapshots(cluster: &Cluster) -> Result<Vec<Value>> {
    let listed = cluster.cli(&["snapshot", "list", "--json"])?.expect(0)?;
    let mut listed = listed.last_object()?["snapshots"].clone();
    let listed = listed.as_array_mut().context("a list")?;
    for snapshot in listed.iter_mut() {
        let fields = snapshot.as_object_mut().context("a snapshot")?;
        for changing in ["wal_held_bytes", "duration_seconds"] {
            fields.remove(changing).context(changing)?;
        }
    }
    Ok(std::mem::take(listed))
}

#[test]
fn a_coordinator_without_memory_goes_on_with_stored_snapshots_as_they_were() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 3)?;
    let place = |name: &str| cluster.dir().join(name).display().to_string();
    let places = ["kept", "short", "late"].map(place);
    cluster
        .generate(&places[0], &["--compress", "gzip", "--keep", "3"])?
        .expect(0)?;
    let before = snapshots(&cluster)?;
    // One expires while nobody remembers it, and one is not complete yet.
    cluster
        .generate(&places[1], &["--expires", "20s"])?
        .expect(0)?;
    cluster
        .generate(&places[2], &["--max-rate", "8MB", "--detach"])?
        .expect(0)?;
    wait::until_true("rows to be read", NOTICE_LIMIT, || {
        Ok(snapshots(&cluster)?
            .iter()
            .any(|s| s["bytes"].as_u64() > Some(0) && s["state"] == "live"))
    })?;
    cluster.kill_coordinator()?;
    fs::remove_dir_all(cluster.dir().join("coordinator"))?;
    let expired = "SELECT count(*) = 0 FROM steep_repl.init_slots WHERE expires_at < now() + interval '1 minute'";
    wait::until_true("one to expire", NOTICE_LIMIT, || {
        Ok(source.sql(expired)? == "t")
    })?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    wait::until_true("the others to be known", NOTICE_LIMIT, || {
        let sealed = snapshots(&cluster)?;
        Ok(sealed.iter().filter(|s| s["state"] == "sealed").count() == 2)
    })?;
    let known = snapshots(&cluster)?;
    ensure!(known.contains(&before[0]), "{before:?} became {known:?}");
    let late = known.iter().find(|s| s["location"] == places[2].as_str());
    let late = late.context("the one that was not complete")?["snapshot_id"].clone();
    wait::until_true(
        "the files of the one that has expired to go",
        NOTICE_LIMIT,
        || Ok(!Path::new(&places[1]).join("snapshot.json").exists()),
    )?;

    let writing = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    cluster
        .apply(&["node_b"], &places[0], &["--json"])?
        .expect(0)?;
    writing.wait_for(50, NOTICE_LIMIT)?;
    writing.stop()?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    for id in [&before[0]["snapshot_id"], &late] {
        let id = id.as_str().context("an id")?;
        cluster.cli(&["snapshot", "verify", id])?.expect(0)?;
        cluster
            .cli(&["snapshot", "delete", id, "--yes"])?
            .expect(0)?;
    }
    for place in &places {
        ensure!(!Path::new(place).join("manifest.json").exists(), "{place}");
    }
    ensure!(
        source.value::<u32>(OURS)? == 1,
        "the slot of node_b alone is left"
    );
    ensure!(source.value::<u32>("SELECT count(*) FROM steep_repl.snapshots")? == 0);
    let detach = ["detach", "--node", "node_b", "--yes"];
    cluster.cli(&detach)?.expect(0)?;
    residue::of_jobs(&source)?.none()
}
