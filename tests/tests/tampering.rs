//! Stored snapshots in places that others can write to: what lies there is compared with what was written, and never
//! believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output, snapshot_id};
use steep_tests::paths::largest_in;
use steep_tests::small_disk::SmallDisk;
use steep_tests::{command, compare, sample, wait};

const LIMIT: Duration = Duration::from_secs(90);

fn copy(from: &Path, to: &Path) -> Result<()> {
    command::output(std::process::Command::new("cp").arg("-a").args([from, to]))?;
    Ok(())
}

/// The indexes of parts with rows.
fn indexes(place: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(place.join("parts"))?.filter_map(Result::ok);
    let indexes = entries.map(|entry| entry.path()).filter(|path| {
        let data = path.with_extension("copy");
        path.extension().is_some_and(|end| end == "index")
            && data.metadata().is_ok_and(|data| data.len() > 10_000)
    });
    let mut indexes: Vec<PathBuf> = indexes.collect();
    indexes.sort();
    Ok(indexes)
}

/// A part and its index fit together wherever they are: in the place of another one they would be rows that are there
/// twice, and others that are missing, in a snapshot whose checksums all fit.
#[test]
fn parts_that_were_replaced_while_a_full_disk_was_waited_for_are_not_in_the_snapshot() -> Result<()>
{
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::pgbench(&source, 5)?;
    let disk = cluster.dir().join("disk");
    let Some(_mounted) = SmallDisk::mount(&disk, 128)? else {
        eprintln!("NOT TESTED: a disk that is full needs the right to mount one");
        return Ok(());
    };
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![0; 100 << 20])?;
    let place = disk.join("stored");
    let begun = Instant::now();
    let following = cluster.cli_spawn(&[
        "snapshot",
        "generate",
        "--source",
        "node_a",
        "--compress",
        "none",
        "--parallel",
        "2",
        "--output",
        place.to_str().context("UTF-8")?,
    ])?;
    wait::until_true("the full disk to be named", LIMIT, || {
        let said = following.stdout_so_far()?;
        Ok(said.contains("it waits, and tries again") && said.contains("no space is left"))
    })?;
    eprintln!("a full disk was named after {:?}", begun.elapsed());
    let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
    ensure!(events.text().contains("snapshot.retried"), "{events}");

    // No attempt is under way meanwhile.
    let lock = fs::File::open(place.join(".lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let parts = indexes(&place)?;
    ensure!(parts.len() > 1, "{parts:?}");
    let (forged, others) = parts.split_first().context("parts")?;
    for other in others {
        fs::copy(forged, other)?;
        fs::copy(forged.with_extension("copy"), other.with_extension("copy"))?;
    }
    fs::remove_file(&ballast)?;
    drop(lock);
    following.finish(LIMIT)?.expect(0)?;
    cluster.apply(&["node_b"], &place, &[])?.expect(0)?;
    compare::rows(&source, &target)?.none()
}

fn verify(cluster: &Cluster, place: &Path, further: &[&str]) -> Result<Output> {
    let place = place.to_str().context("UTF-8")?;
    let arguments = ["snapshot", "verify", place];
    let arguments: Vec<&str> = arguments.iter().chain(further).copied().collect();
    cluster.cli(&arguments)
}

#[test]
fn a_place_is_verified_against_what_the_coordinator_has_recorded() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let (place, copied) = (cluster.dir().join("stored"), cluster.dir().join("copied"));
    let id = snapshot_id(&cluster.generated(&place, &[])?)?;
    let shown = cluster.show_snapshot(&id)?;
    let manifest: Value = serde_json::from_slice(&fs::read(place.join("manifest.json"))?)?;
    assert_eq!(shown["manifest_checksum"], manifest["checksum"]);
    let verified = verify(&cluster, &place, &["--json"])?.expect(0)?;
    assert_eq!(verified.last_object()?["manifest_compared"], true);
    copy(&place, &copied)?;

    // Without a coordinator, or with one that does not know it, it is whole and proves nothing.
    let mut alone = cluster.cli_command(&["snapshot", "verify"]);
    alone.arg(&copied).env_remove("STEEP_REPL_COORDINATOR");
    let alone = command::output(&mut alone)?;
    for part in ["whole", "compared with nothing", "no coordinator"] {
        ensure!(alone.contains(part), "{part} is not in {alone}");
    }
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    let unknown = verify(&cluster, &copied, &["--json"])?.expect(0)?;
    let unknown = unknown.last_object()?;
    assert_eq!(unknown["whole"], true);
    assert_eq!(unknown["manifest_compared"], false);
    ensure!(
        unknown["not_compared"]
            .to_string()
            .contains("does not know snapshot"),
        "{unknown}"
    );
    Ok(())
}

#[test]
fn another_snapshot_than_was_stored_at_a_place_is_named_with_both_ids() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let (first, second) = (cluster.dir().join("first"), cluster.dir().join("second"));
    let (old, new) = (
        snapshot_id(&cluster.generated(&first, &[])?)?,
        snapshot_id(&cluster.generated(&second, &[])?)?,
    );
    let shown = cluster
        .apply(&["node_b"], &first, &["--dry-run"])?
        .expect(0)?;
    ensure!(!shown.text().contains("snapshot_replaced"), "{shown}");
    fs::remove_dir_all(&first)?;
    copy(&second, &first)?;
    let verified = verify(&cluster, &first, &["--json"])?.expect(1)?;
    let verified = verified.last_object()?;
    let problem = verified["problems"][0].to_string();
    ensure!(
        problem.contains(&old) && problem.contains(&new),
        "{verified}"
    );
    let shown = cluster
        .apply(&["node_b"], &first, &["--dry-run", "--json"])?
        .expect(0)?;
    ensure!(shown.text().contains("snapshot_replaced"), "{shown}");
    for id in [&old, &new] {
        let made = cluster.show_snapshot(id)?;
        let made = made["created_at"].as_str().context("a time")?;
        let made = made.split('.').next().context("seconds")?;
        for part in [id.as_str(), made] {
            ensure!(shown.text().contains(part), "{part} is not in {shown}");
        }
    }
    // It is a warning: the job has it, too.
    let applied = cluster.apply(&["node_b"], &first, &["--json"])?.expect(0)?;
    ensure!(applied.text().contains("holds snapshot"), "{applied}");
    Ok(())
}

#[test]
fn a_dry_run_and_a_resume_look_at_files_as_the_job_does() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    let (made, carried) = (cluster.dir().join("made"), cluster.dir().join("carried"));
    snapshot_id(&cluster.generated(&made, &[])?)?;
    copy(&made, &carried)?;
    let (here, there) = (
        largest_in(&carried.join("parts"))?,
        largest_in(&made.join("parts"))?,
    );
    let whole = fs::read(&here)?;
    let name = here.file_name().and_then(|name| name.to_str());
    let name = name.context("a name")?;
    fs::remove_file(&here)?;
    let missing = cluster
        .apply(&["node_b"], &carried, &["--dry-run"])?
        .expect(1)?
        .text();
    for part in [name, "is missing", "node_b"] {
        ensure!(missing.contains(part), "{part} is not in {missing}");
    }

    // Damage that no cheap look shows ends the job midway.
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&here, &damaged)?;
    let failed = cluster.apply(&["node_b"], &carried, &[])?.expect(1)?.text();
    ensure!(
        failed.contains(name) && failed.contains("damaged"),
        "{failed}"
    );
    ensure!(!failed.contains("nothing was changed"), "{failed}");

    // Nobody has the file: nothing is resumed, and what was kept stays.
    fs::remove_file(&here)?;
    fs::remove_file(&there)?;
    for further in [&["--resume", "--dry-run"][..], &["--resume"]] {
        let refused = cluster.init(further)?.expect(1)?.text();
        for part in [name, "is missing", "node_b"] {
            ensure!(refused.contains(part), "{part} is not in {refused}");
        }
        ensure!(!refused.contains("nothing was changed"), "{refused}");
        assert_eq!(cluster.state("node_b")?, "failed");
    }

    // The source's agent has it.
    fs::write(&there, &whole)?;
    let shown = cluster.init(&["--resume", "--dry-run"])?.expect(0)?.text();
    ensure!(shown.contains("agent of node_a will read"), "{shown}");
    cluster.init(&["--resume"])?.expect(0)?;
    let events = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    ensure!(
        events.text().contains("snapshot.reader_changed"),
        "{events}"
    );
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn a_place_where_no_snapshot_can_be_stored_is_refused_and_leaves_no_entry() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let stored = cluster.dir().join("stored");
    let id = snapshot_id(&cluster.generated(&stored, &[])?)?;
    let copied = cluster.dir().join("copied");
    copy(&stored, &copied)?;
    let file = cluster.dir().join("file");
    fs::write(&file, "")?;
    for (place, said) in [
        (file.join("below"), "cannot"),
        (Path::new("/proc/no/such").to_path_buf(), "cannot"),
        (copied, id.as_str()),
    ] {
        let output = place.to_str().context("UTF-8")?;
        let refused = cluster.generate(output, &[])?.expect(1)?.text();
        for part in [said, output, "node_a"] {
            ensure!(refused.contains(part), "{part} is not in {refused}");
        }
    }
    let listed = cluster.cli(&["snapshot", "list", "--json"])?.expect(0)?;
    let listed = listed.last_object()?;
    assert_eq!(listed["snapshots"].as_array().context("a list")?.len(), 1);
    assert_eq!(
        source.sql("SELECT count(*) FROM pg_replication_slots")?,
        "1"
    );
    Ok(())
}
