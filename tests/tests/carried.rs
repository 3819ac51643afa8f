//! Snapshots that were carried elsewhere: the agents of targets that find them load from them themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, sample, wait};

const LIMIT: Duration = Duration::from_secs(90);

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// Makes a snapshot and takes its files away from where the source's agent has them.
fn carry(cluster: &Cluster) -> Result<(String, PathBuf)> {
    let (made, carried) = (cluster.dir().join("made"), cluster.dir().join("carried"));
    let output = made.to_str().context("UTF-8")?;
    let arguments = [
        "snapshot", "generate", "--source", "node_a", "--output", output, "--json",
    ];
    let generated = cluster.cli(&arguments)?.expect(0)?.last_object()?;
    fs::rename(&made, &carried)?;
    let id = generated["snapshot_id"].as_str().context("an id")?;
    Ok((id.to_owned(), carried))
}

fn largest_part(place: &Path) -> Result<PathBuf> {
    let parts = fs::read_dir(place.join("parts"))?.filter_map(Result::ok);
    let largest = parts.max_by_key(|entry| entry.metadata().map_or(0, |data| data.len()));
    Ok(largest.context("parts")?.path())
}

fn is_empty(target: &Database) -> Result<bool> {
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    Ok(target.value::<u32>(tables)? == 0)
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
    let apply = |input: &str, further: &[&str]| {
        let arguments = [
            "snapshot", "apply", "--target", "node_b", "node_c", "--input", input, "--yes",
        ];
        let arguments: Vec<&str> = arguments.iter().chain(further).copied().collect();
        cluster.cli_spawn(&arguments)
    };

    let unknown = apply(nowhere.to_str().context("UTF-8")?, &[])?.finish(LIMIT)?;
    let unknown = unknown.expect(1)?.text();
    for part in ["node_b: ", "node_c: ", "snapshot list"] {
        ensure!(unknown.contains(part), "{part} is not in {unknown}");
    }
    // By its id it is read where it was stored, and there is nothing.
    let gone = apply(&id, &[])?.finish(LIMIT)?.expect(1)?.text();
    ensure!(gone.contains("node_a") && gone.contains("made"), "{gone}");

    // A part that is damaged is named before anything is changed.
    let largest = largest_part(&place)?;
    let whole = fs::read(&largest)?;
    fs::write(&largest, &whole[..whole.len() / 2])?;
    let refused = apply(input, &[])?.finish(LIMIT)?.expect(1)?.text();
    let name = largest.file_name().and_then(|name| name.to_str());
    for part in [name.context("a name")?, "truncated", "node_b"] {
        ensure!(refused.contains(part), "{part} is not in {refused}");
    }
    for node in ["node_b", "node_c"] {
        assert!(is_empty(&cluster.database(node))?, "{node}");
    }
    wait::until_true("the failed jobs to be cleaned up", LIMIT, || {
        Ok(source.value::<u32>(SLOTS)? == 1)
    })?;
    fs::write(&largest, &whole)?;

    source.sql("UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 100 = 0")?;
    let intensity = Intensity {
        clients: 2,
        rate: Some(40),
    };
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    let applying = apply(input, &["--max-rate", "4MB", "--json"])?;
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
