//! Snapshots that were carried elsewhere: the agents of targets that find them load from them themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, residue, sample, wait};

const LIMIT: Duration = Duration::from_secs(90);

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// Makes a snapshot and takes its files away from where the source's agent has them.
fn carry(cluster: &Cluster) -> Result<(String, PathBuf)> {
    let (made, carried) = (cluster.dir().join("made"), cluster.dir().join("carried"));
    let generated = cluster.generated(&made, &[])?;
    fs::rename(&made, &carried)?;
    let id = generated["snapshot_id"].as_str().context("an id")?;
    Ok((id.to_owned(), carried))
}

fn largest_part(place: &Path) -> Result<PathBuf> {
    let parts = fs::read_dir(place.join("parts"))?.filter_map(Result::ok);
    let largest = parts.max_by_key(|entry| entry.metadata().map_or(0, |data| data.len()));
    Ok(largest.context("parts")?.path())
}

#[test]
fn a_carried_snapshot_is_loaded_by_its_targets_and_nothing_written_meanwhile_is_lost() -> Result<()>
{
    let mut cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    let (id, place) = carry(&cluster)?;
    let input = place.to_str().context("UTF-8")?;
    let nowhere = cluster.dir().join("elsewhere");
    let both = ["node_b", "node_c"];

    let unknown = cluster.apply(&both, &nowhere, &[])?;
    let unknown = unknown.expect(1)?.text();
    for part in ["node_b: ", "node_c: ", "snapshot list"] {
        ensure!(unknown.contains(part), "{part} is not in {unknown}");
    }
    // By its id it is read where it was stored, and there is nothing.
    let gone = cluster.apply(&both, &id, &[])?.expect(1)?.text();
    ensure!(gone.contains("node_a") && gone.contains("made"), "{gone}");

    // A part that is damaged is named before anything is changed.
    let largest = largest_part(&place)?;
    let whole = fs::read(&largest)?;
    fs::write(&largest, &whole[..whole.len() / 2])?;
    let refused = cluster.apply(&both, input, &[])?.expect(1)?.text();
    let name = largest.file_name().and_then(|name| name.to_str());
    for part in [name.context("a name")?, "truncated", "node_b"] {
        ensure!(refused.contains(part), "{part} is not in {refused}");
    }
    for node in ["node_b", "node_c"] {
        assert!(cluster.database(node).is_empty()?, "{node}");
    }
    wait::until_true("the failed jobs to be cleaned up", LIMIT, || {
        Ok(source.value::<u32>(SLOTS)? == 1)
    })?;
    fs::write(&largest, &whole)?;

    source.sql("UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 100 = 0")?;
    let intensity = Intensity::LIGHT;
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    let applying = cluster.apply_spawn(&both, input, &["--max-rate", "4MB", "--json"])?;
    cluster.wait_committed("node_b", LIMIT)?;
    // The agents of both ends of a job lose what they have in memory.
    cluster.kill_agent("node_b")?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    cluster.start_agent("node_b")?;
    let applied = applying.finish(LIMIT)?.expect(0)?.text();
    load.stop()?;
    cluster.wait_drained("node_a")?;
    for node in ["node_b", "node_c"] {
        assert_eq!(cluster.state(node)?, "synchronized", "{applied}");
        compare::rows(&source, &cluster.database(node))?.none()?;
        compare::schema(&source, &cluster.database(node))?.none()?;
    }
    // What is gone at its first place is no hindrance.
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    assert_eq!(source.value::<u32>(SLOTS)?, 2);
    ensure!(place.join("manifest.json").exists(), "it was carried away");
    Ok(())
}

/// What is not among the rows: positions of sequences, and how many indexes and constraints there are.
fn beside_rows(database: &Database) -> Result<Vec<Vec<String>>> {
    database.rows(
        "SELECT sequencename, last_value::text FROM pg_sequences WHERE schemaname NOT LIKE 'steep%'
         UNION ALL SELECT 'indexes', count(*)::text FROM pg_indexes WHERE schemaname NOT LIKE 'steep%'
         UNION ALL SELECT 'constraints', count(*)::text FROM pg_constraint AS c
             WHERE c.connamespace::regnamespace::text NOT LIKE 'steep%' AND contype IN ('p', 'f', 'c', 'u')
                 AND c.connamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
         ORDER BY 1, 2",
    )
}

/// Of what a cancelled load has made, nothing stays.
fn cancel_a_load(cluster: &Cluster, node: &str, input: &str) -> Result<()> {
    let slowly = ["--no-subscribe", "--max-rate", "2MB"];
    let loading = cluster.apply_spawn(&[node], input, &slowly)?;
    cluster.wait_committed(node, LIMIT)?;
    let cancel = ["init", "cancel", "--node", node, "--yes"];
    cluster.cli(&cancel)?.expect(0)?;
    loading.finish(LIMIT)?.expect(4)?;
    residue::of_everything(&cluster.database(node))?.none()
}

#[test]
fn a_snapshot_is_loaded_without_replication_even_where_its_slot_is_gone() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    source.sql("CREATE SEQUENCE tickets; SELECT setval('tickets', 41)")?;
    let made = cluster.dir().join("made");
    let generated = cluster.generated(&made, &[])?;
    let id = generated["snapshot_id"].as_str().context("an id")?;
    let (rows, rest) = (compare::contents(&source)?, beside_rows(&source)?);
    // None of this is in the snapshot.
    source.sql(
        "UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 100 = 0;
         DELETE FROM pgbench_accounts WHERE aid % 1000 = 1; SELECT nextval('tickets');
         INSERT INTO pgbench_tellers SELECT n, 1, 0 FROM generate_series(1001, 2000) AS n",
    )?;
    let alone = ["--no-subscribe", "--json"];
    let plan = ["--no-subscribe", "--dry-run"];
    cluster.apply(&["node_b"], id, &plan)?.expect(0)?;

    let slowly = ["--no-subscribe", "--json", "--max-rate", "4MB"];
    let loading = cluster.apply_spawn(&["node_b"], id, &slowly)?;
    cluster.wait_committed("node_b", LIMIT)?;
    cluster.kill_agent("node_b")?;
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    cluster.start_agent("node_b")?;
    let loaded = loading.finish(LIMIT)?.expect(0)?;
    let end = loaded.last_object()?;
    assert_eq!(
        (&end["event"], &end["state"], &end["loaded"]),
        (
            &"init.completed".into(),
            &"uninitialized".into(),
            &true.into()
        ),
        "{loaded}"
    );
    cancel_a_load(&cluster, "node_c", id)?;
    assert_eq!(source.value::<u32>(SLOTS)?, 1, "the template");
    compare::schema(&source, &cluster.database("node_b"))?.none()?;

    // The template is gone: for those who would follow, nothing can be made from it. The tables change, too.
    source.sql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots;
         ALTER TABLE pgbench_tellers ADD COLUMN late integer; DROP TABLE pgbench_history",
    )?;
    wait::until_true("the snapshot to be lost", LIMIT, || {
        Ok(cluster.show_snapshot(id)?["state"] == "lost")
    })?;
    let carried = cluster.dir().join("carried");
    fs::rename(&made, &carried)?;
    let input = carried.to_str().context("UTF-8")?;
    let refused = cluster.apply(&["node_c"], input, &[])?.expect(1)?;
    ensure!(refused.text().contains("--no-subscribe"), "{refused}");
    cluster.apply(&["node_c"], input, &alone)?.expect(0)?;

    for node in ["node_b", "node_c"] {
        let database = cluster.database(node);
        assert_eq!(cluster.state(node)?, "uninitialized");
        assert_eq!(compare::contents(&database)?, rows, "{node}");
        assert_eq!(beside_rows(&database)?, rest, "{node}");
        compare::schema(&cluster.database("node_b"), &database)?.none()?;
        residue::of_jobs(&database)?.none()?;
        let view = cluster.node_view(node)?.context("a node")?;
        assert_eq!(view["loaded"]["snapshot_id"], id);
        assert_eq!(view["loaded"]["rows"], generated["rows"]);
        let status = cluster.cli(&["status", node])?.expect(0)?.text();
        for part in [id, "loaded from node_a", "does not follow node_a"] {
            ensure!(status.contains(part), "{part} is not in {status}");
        }
        let events = cluster
            .cli(&["events", node, "--json"])?
            .expect(0)?
            .objects();
        let applied = events
            .iter()
            .find(|event| event["event"] == "snapshot.applied");
        assert_eq!(applied.context("an event")?["replication"], "none");
        // Others may write again.
        database.sql("INSERT INTO pgbench_tellers VALUES (5000, 1, 0)")?;
    }
    assert_eq!(source.value::<u32>(SLOTS)?, 0);
    // Tables that exist are compared with the source as it is.
    let again = cluster.apply(&["node_b"], input, &alone)?.expect(3)?;
    for part in ["use --force", "column late"] {
        ensure!(again.text().contains(part), "{part} is not in {again}");
    }
    cluster
        .cli(&["snapshot", "delete", id, "--yes"])?
        .expect(0)?;
    residue::of_jobs(&source)?.none()
}
