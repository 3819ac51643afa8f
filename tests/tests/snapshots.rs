//! Snapshots stored in a directory: made, verified, expired, deleted.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use steep_tests::cluster::{Cluster, snapshot_id};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, paths, sample, scrape, wait};

const LIMIT: Duration = Duration::from_secs(30);

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";
const PUBLICATIONS: &str = "SELECT count(*) FROM pg_publication";

fn sent(cluster: &Cluster, node: &str) -> Result<f64> {
    let scrape = scrape::scrape(&cluster.node(node).agent_address())?;
    let sent = scrape.samples.iter();
    let sent = sent.filter(|s| s.name == "steep_agent_quic_sent_bytes_total");
    Ok(sent.map(|sample| sample.value).sum())
}

fn nothing_is_left(source: &Database) -> Result<()> {
    let slots = "SELECT count(*) FROM steep_repl.init_slots";
    let snapshots = "SELECT count(*) FROM steep_repl.snapshots";
    for counted in [SLOTS, PUBLICATIONS, slots, snapshots] {
        assert_eq!(source.value::<u32>(counted)?, 0, "{counted}");
    }
    Ok(())
}

#[test]
fn a_snapshot_is_made_verified_and_deleted() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    let place = cluster.dir().join("stored");
    let made = cluster.generated(&place, &["--compress", "gzip"])?;
    assert_eq!(made["event"], "snapshot.generated");
    assert_eq!(made["state"], "sealed");
    assert_eq!(source.value::<u32>(SLOTS)?, 1);
    // The source's transaction has ended.
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'steep-repl snapshot%'";
    wait::until_true("the snapshot's session to end", LIMIT, || {
        Ok(source.value::<u32>(open)? == 0)
    })?;
    let id = snapshot_id(&made)?;
    let shown = cluster.show_snapshot(&id)?;
    for key in [
        "rows",
        "bytes",
        "stored_bytes",
        "lsn",
        "slot_name",
        "expires_at",
    ] {
        assert_eq!(shown[key], made[key], "{key}");
    }
    let recorded = "SELECT location || ' ' || rows FROM steep_repl.snapshots";
    let expected = format!("{} {}", place.display(), made["rows"]);
    assert_eq!(source.value::<String>(recorded)?, expected);
    wait::until_true("the WAL that the slot holds to be known", LIMIT, || {
        Ok(cluster.show_snapshot(&id)?["wal_held_bytes"].is_u64())
    })?;

    // By the agent, and wherever the files are.
    for which in [id.as_str(), place.to_str().context("UTF-8")?] {
        let verified = cluster.cli(&["snapshot", "verify", which, "--json"])?;
        let verified = verified.expect(0)?.last_object()?;
        assert_eq!(
            (&verified["whole"], &verified["rows"]),
            (&Value::Bool(true), &made["rows"])
        );
    }
    let again = cluster.cli(&[
        "snapshot",
        "generate",
        "--source",
        "node_a",
        "--output",
        place.to_str().context("UTF-8")?,
    ])?;
    let again = again.expect(1)?;
    ensure!(again.text().contains(&id), "{again}");
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    assert!(!place.join("manifest.json").exists());
    nothing_is_left(&source)?;
    let gone = cluster.cli(&["snapshot", "show", &id])?.expect(1)?;
    ensure!(gone.text().contains("snapshot list"), "{gone}");
    Ok(())
}

#[test]
fn an_expired_snapshot_goes_with_slot_publication_and_files() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let place = cluster.dir().join("stored");
    let made = cluster.generated(&place, &["--expires", "2s"])?;
    let id = snapshot_id(&made)?;
    wait::until_true("the snapshot to expire", LIMIT, || {
        let recorded = source.value::<u32>("SELECT count(*) FROM steep_repl.snapshots")?;
        Ok(cluster.show_snapshot(&id)?["state"] == "expired" && recorded == 0)
    })?;
    assert!(!place.join("manifest.json").exists());
    nothing_is_left(&source)?;
    let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
    for event in ["snapshot.generated", "snapshot.expired"] {
        ensure!(
            events.text().contains(event),
            "{event} is not among {events}"
        );
    }
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    Ok(())
}

#[test]
fn a_source_agent_that_is_killed_meanwhile_begins_again_and_nothing_is_left_by_a_deletion()
-> Result<()> {
    let mut cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 3)?;
    let place = cluster.dir().join("stored");
    let text = place.to_str().context("UTF-8")?;
    let begin = |output: &str, rate: &str| -> Result<String> {
        let arguments = [
            "snapshot",
            "generate",
            "--source",
            "node_a",
            "--output",
            output,
            "--max-rate",
            rate,
            "--detach",
            "--json",
        ];
        snapshot_id(&cluster.cli(&arguments)?.expect(0)?.last_object()?)
    };
    let snapshot = begin(text, "8MB")?;
    let live = |cluster: &Cluster, id: &str| {
        wait::until_true("rows to be read", LIMIT, || {
            let shown = cluster.show_snapshot(id)?;
            Ok(shown["state"] == "live" && shown["bytes"].as_u64() > Some(0))
        })
    };
    live(&cluster, &snapshot)?;
    let first = cluster.show_snapshot(&snapshot)?["lsn"].clone();
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    wait::until_true("the snapshot to be complete", LIMIT * 2, || {
        Ok(cluster.show_snapshot(&snapshot)?["state"] == "sealed")
    })?;
    assert_ne!(cluster.show_snapshot(&snapshot)?["lsn"], first);
    cluster.cli(&["snapshot", "verify", text])?.expect(0)?;

    // One more, deleted while it is read.
    let other = cluster.dir().join("other");
    let begun = cluster.cli(&[
        "snapshot",
        "generate",
        "--source",
        "node_a",
        "--output",
        other.to_str().context("UTF-8")?,
        "--max-rate",
        "1MB",
        "--detach",
        "--json",
    ])?;
    let second = snapshot_id(&begun.expect(0)?.last_object()?)?;
    live(&cluster, &second)?;
    for id in [&second, &snapshot] {
        cluster
            .cli(&["snapshot", "delete", id, "--yes"])?
            .expect(0)?;
    }
    assert!(!other.join("parts").exists());
    nothing_is_left(&source)
}

#[test]
fn two_nodes_are_made_from_one_snapshot_while_its_source_is_written() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    source.sql(sample::WITHOUT_COLUMNS)?;
    let place = cluster.dir().join("stored");
    // Packed rows would be hardly more than what else is sent.
    let further = ["--compress", "none", "--large-table-threshold", "1MB"];
    let made = cluster.generated(&place, &further)?;
    let id = snapshot_id(&made)?;
    // Between the two, nothing is lost.
    let late = "INSERT INTO pgbench_tellers SELECT n, 1, 0 FROM generate_series(1001, 2000) AS n;
        UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 100 = 0;
        DELETE FROM pgbench_accounts WHERE aid % 1000 = 1;
        INSERT INTO nothing DEFAULT VALUES";
    source.sql(late)?;
    let load = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    let before = sent(&cluster, "node_a")?;
    let applied = cluster.apply(&["node_b", "node_c"], &id, &["--json"])?;
    let applied = applied.expect(0)?;
    let after = sent(&cluster, "node_a")?;
    ensure!(applied.text().contains("init.completed"), "{applied}");
    load.stop()?;
    // The targets exchange its parts.
    let one = made["stored_bytes"].as_f64().context("bytes")?;
    ensure!(
        after - before < 1.3 * one,
        "the source sent {} bytes, and the snapshot has {one}",
        after - before
    );
    cluster.wait_drained("node_a")?;
    for node in ["node_b", "node_c"] {
        assert_eq!(cluster.state(node)?, "synchronized");
        compare::rows(&source, &cluster.database(node))?.none()?;
        compare::schema(&source, &cluster.database(node))?.none()?;
    }
    let sent = applied.text();
    assert_eq!(source.value::<u32>(SLOTS)?, 3, "{sent}");

    // Without the snapshot, both still follow, and the publication goes with the last of them.
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    source
        .sql("INSERT INTO pgbench_tellers SELECT n, 1, 0 FROM generate_series(3001, 3010) AS n")?;
    cluster.wait_drained("node_a")?;
    for node in ["node_b", "node_c"] {
        compare::rows(&source, &cluster.database(node))?.none()?;
    }
    assert_eq!(source.value::<u32>(PUBLICATIONS)?, 1);
    for (node, left) in [("node_b", 1), ("node_c", 0)] {
        let database = cluster.database(node);
        let name: String = database.value("SELECT subname FROM pg_subscription")?;
        database.sql(&format!("ALTER SUBSCRIPTION \"{name}\" DISABLE"))?;
        cluster.wait_state(node, &["diverged"], LIMIT * 3)?;
        cluster
            .cli(&["init", "cancel", "--node", node, "--yes"])?
            .expect(0)?;
        assert_eq!(source.value::<u32>(PUBLICATIONS)?, left, "{node}");
        assert_eq!(source.value::<u32>(SLOTS)?, left, "{node}");
    }
    Ok(())
}

#[test]
fn a_damaged_snapshot_is_named_before_anything_is_changed() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    let place = cluster.dir().join("stored");
    let made = cluster.generated(&place, &[])?;
    let apply = |further: &[&str]| cluster.apply(&["node_b"], &place, further);
    let largest = paths::largest_in(&place.join("parts"))?;
    let whole = fs::read(&largest)?;
    fs::write(&largest, &whole[..whole.len() / 2])?;
    let refused = apply(&[])?.expect(1)?;
    let name = largest
        .file_name()
        .and_then(|n| n.to_str())
        .context("a name")?;
    ensure!(
        refused.text().contains(name) && refused.text().contains("truncated"),
        "{refused}"
    );
    assert_eq!(
        target.value::<u32>("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")?,
        0
    );
    wait::until_true("the failed job to be cleaned up", LIMIT, || {
        Ok(source.value::<u32>(SLOTS)? == 1)
    })?;

    // Of the right length, it is found when it is read; nothing wrong is committed.
    let mut other = whole.clone();
    other[whole.len() / 2] ^= 1;
    fs::write(&largest, &other)?;
    let failed = apply(&[])?.expect(1)?;
    ensure!(
        failed.text().contains(name) && failed.text().contains("damaged"),
        "{failed}"
    );
    let verified = cluster
        .cli(&["snapshot", "verify", &snapshot_id(&made)?])?
        .expect(1)?;
    ensure!(verified.text().contains(name), "{verified}");

    // Put back, the job goes on.
    fs::write(&largest, &whole)?;
    cluster.init(&["--resume"])?.expect(0)?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn a_manifest_that_was_edited_is_refused_though_its_checksum_fits() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    let place = cluster.dir().join("stored");
    let made = cluster.generated(&place, &[])?;
    let (id, text) = (snapshot_id(&made)?, place.to_str().context("UTF-8")?);
    let file = place.join("manifest.json");
    let whole = fs::read(&file)?;
    let mut manifest: Value = serde_json::from_slice(&whole)?;
    // Values would be loaded into each other's columns.
    for table in manifest["tables"].as_array_mut().context("tables")? {
        table["columns"]
            .as_array_mut()
            .context("columns")?
            .reverse();
    }
    manifest
        .as_object_mut()
        .context("an object")?
        .shift_remove("checksum");
    fs::write(&file, manifest.to_string())?;
    let sum = Command::new("sha256sum").arg(&file).output()?.stdout;
    let sum = String::from_utf8(sum)?;
    manifest["checksum"] = sum.split_whitespace().next().context("a sum")?.into();
    fs::write(&file, manifest.to_string())?;
    let apply = [
        "snapshot", "apply", "--target", "node_b", "--input", text, "--yes", "--json",
    ];
    let verify = |which| ["snapshot", "verify", which, "--json"];
    for command in [&verify(&id)[..], &verify(text), &apply] {
        let refused = cluster.cli(command)?.expect(1)?;
        ensure!(
            refused.text().contains("is not the one that was written"),
            "{refused}"
        );
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(target.value::<u32>(tables)?, 0);

    fs::write(&file, &whole)?;
    cluster.cli(&apply)?.expect(0)?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn a_snapshot_without_its_slot_is_refused_and_says_what_helps() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let place = cluster.dir().join("stored");
    let made = cluster.generated(&place, &[])?;
    let id = snapshot_id(&made)?;
    source.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")?;
    let refused = cluster
        .cli(&["init", "node_b", "--snapshot", &id, "--yes"])?
        .expect(1)?;
    ensure!(
        refused.text().contains("snapshot generate") || refused.text().contains("generate another"),
        "{refused}"
    );
    wait::until_true("the snapshot to be lost", LIMIT, || {
        Ok(cluster.show_snapshot(&id)?["state"] == "lost")
    })?;
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    nothing_is_left(&source)
}

#[test]
fn a_place_that_is_in_use_is_waited_for() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let place = cluster.dir().join("stored");
    fs::DirBuilder::new().mode(0o700).create(&place)?;
    let lock = fs::File::create(place.join(".lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let begun = cluster.cli(&[
        "snapshot",
        "generate",
        "--source",
        "node_a",
        "--output",
        place.to_str().context("UTF-8")?,
        "--detach",
        "--json",
    ])?;
    let id = snapshot_id(&begun.expect(0)?.last_object()?)?;
    wait::until_true("the snapshot to be tried again", LIMIT, || {
        let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
        Ok(events.text().contains("snapshot.retried"))
    })?;
    let shown = cluster.show_snapshot(&id)?;
    assert_eq!(shown["state"], "live");
    ensure!(
        shown["error_message"].to_string().contains("in use"),
        "{shown}"
    );
    drop(lock);
    wait::until_true("the snapshot to be complete", LIMIT * 2, || {
        Ok(cluster.show_snapshot(&id)?["state"] == "sealed")
    })?;
    assert!(cluster.show_snapshot(&id)?["error_message"].is_null());

    // Whoever deletes it hears that it cannot be removed now; it is removed once it can.
    let lock = fs::File::open(place.join(".lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let refused = cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(1)?;
    ensure!(refused.text().contains("--force"), "{refused}");
    ensure!(
        cluster.show_snapshot(&id)?["warnings"]
            .to_string()
            .contains("tried again")
    );
    drop(lock);
    wait::until_true("the snapshot to be removed", LIMIT * 2, || {
        Ok(cluster.cli(&["snapshot", "show", &id])?.code == 1)
    })?;
    nothing_is_left(&cluster.database("node_a"))
}

#[test]
fn a_snapshot_that_is_made_is_followed_over_a_restart_of_the_coordinator() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 3)?;
    let place = cluster.dir().join("stored");
    let text = place.to_str().context("UTF-8")?;
    let follower = cluster.cli_spawn(&[
        "snapshot",
        "generate",
        "--source",
        "node_a",
        "--output",
        text,
        "--max-rate",
        "8MB",
        "--json",
    ])?;
    wait::until_true("rows to be read", LIMIT, || {
        let said = follower.stdout_so_far()?;
        Ok(said.contains("\"live\"") && !said.trim_end().ends_with("\"bytes\":0"))
    })?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let followed = follower.finish(LIMIT * 2)?.expect(0)?;
    let end = followed.last_object()?;
    assert_eq!(end["event"], "snapshot.generated", "{followed}");
    assert_eq!(end["state"], "sealed");
    ensure!(followed.stderr.contains("connected again"), "{followed}");
    cluster.cli(&["snapshot", "verify", text])?.expect(0)?;
    Ok(())
}
