//! Snapshots stored in a bucket of a real S3 server that checks signatures and permissions, also while it
//! throttles, fails, breaks off its answers or refuses, and after the agent was killed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::bucket::{Bucket, Fault, Rule, Seen};
use steep_tests::cluster::{Cluster, snapshot_id};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{command, compare, residue, sample, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// What is packed would be too small for an upload in several parts.
const PLAIN: [&str; 2] = ["--compress", "none"];

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// A pair whose source's agent alone may use the bucket, and a source that is large enough for uploads in
/// several pieces.
fn cluster(bucket: &Bucket, further: &[(&str, &str)]) -> Result<Cluster> {
    let mut builder = Cluster::builder();
    for (name, value) in bucket.environment() {
        builder = builder.agent_variable("node_a", name, &value);
    }
    for (name, value) in further {
        builder = builder.agent_variable("node_a", name, value);
    }
    let cluster = builder.start()?;
    sample::create(&cluster.database("node_a"), 1)?;
    Ok(cluster)
}

fn delete(cluster: &Cluster, bucket: &Bucket, id: &str) -> Result<()> {
    cluster
        .cli(&["snapshot", "delete", id, "--yes"])?
        .expect(0)?;
    nothing_is_stored(bucket)
}

fn nothing_is_stored(bucket: &Bucket) -> Result<()> {
    assert_eq!(bucket.objects()?, Vec::<String>::new());
    assert_eq!(bucket.uploads()?, Vec::<String>::new());
    Ok(())
}

/// Slots, publications and our notes of them.
fn nothing_is_left(source: &Database) -> Result<()> {
    residue::of_jobs(source)?.none()?;
    for table in ["init_slots", "snapshots"] {
        let rows = format!("SELECT count(*) FROM steep_repl.{table}");
        assert_eq!(source.value::<u32>(&rows)?, 0, "{table}");
    }
    Ok(())
}

#[test]
fn a_node_is_made_from_a_bucket_while_its_source_is_written_and_nobody_sees_the_key() -> Result<()>
{
    let Some(bucket) = Bucket::start()? else {
        return Ok(());
    };
    let cluster = cluster(&bucket, &[])?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let intensity = Intensity::LIGHT;
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    let place = bucket.place("daily/one");
    let made = cluster.generate(&place, &PLAIN)?.expect(0)?;
    let id = snapshot_id(&made.last_object()?)?;
    let pieces = bucket.proxy().take_seen();
    ensure!(
        pieces
            .iter()
            .any(|seen| seen.target.contains("partNumber=2")),
        "no object has more than a piece"
    );
    assert_eq!(bucket.uploads()?, Vec::<String>::new());
    load.wait_for(40, LIMIT)?;
    let applied = cluster.apply(&["node_b"], &place, &["--json"])?.expect(0)?;
    ensure!(applied.text().contains("init.completed"), "{applied}");
    load.stop()?;
    cluster.wait_drained("node_a")?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;

    // By the agent, and by the command line itself, which needs the key too.
    cluster.cli(&["snapshot", "verify", &id])?.expect(0)?;
    let mut verify = cluster.cli_command(&["snapshot", "verify", &place]);
    command::output(verify.envs(bucket.environment()))?;
    delete(&cluster, &bucket, &id)?;
    is_nowhere(bucket.secret(), &cluster)
}

/// Looks for a secret in logs, output of commands, the coordinator's store, files of agents and arguments.
fn is_nowhere(secret: &str, cluster: &Cluster) -> Result<()> {
    let mut looked = 0;
    let mut look = |path: &Path| -> Result<()> {
        let content = fs::read(path)?;
        looked += 1;
        let found = String::from_utf8_lossy(&content).contains(secret);
        ensure!(!found, "the secret is in {}", path.display());
        Ok(())
    };
    for entry in fs::read_dir(cluster.dir())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() {
            look(&path)?;
        } else if name.starts_with("agent-") || name == "coordinator" {
            for entry in fs::read_dir(&path)? {
                let path = entry?.path();
                if path.is_file() {
                    look(&path)?;
                }
            }
        }
    }
    let agents = cluster.nodes().iter().filter_map(|node| node.agent());
    for process in agents.chain(cluster.coordinator()) {
        look(Path::new(&format!("/proc/{}/cmdline", process.pid())))?;
    }
    ensure!(looked > 8, "only {looked} files were there");
    Ok(())
}

/// What a busy store does, each several times, to every kind of request.
const TROUBLE_WRITING: [Rule; 10] = [
    fails("PUT", "snapshot.json", 0, 1, Fault::Cut),
    fails("GET", "list-type=2", 0, 1, Fault::Cut),
    // One upload is begun that nobody knows of.
    fails("POST", "?uploads", 0, 1, Fault::Cut),
    fails("PUT", "partNumber=1", 0, 2, SLOW_DOWN),
    fails("PUT", "partNumber=2", 0, 1, Fault::Cut),
    fails("POST", "?uploadId=", 0, 1, INTERNAL),
    fails("POST", "?uploadId=", 0, 1, Fault::Cut),
    fails("PUT", ".index", 1, 2, INTERNAL),
    fails("GET", "uploads=", 1, 1, SLOW_DOWN),
    fails("PUT", "manifest.json", 0, 1, Fault::Cut),
];

const TROUBLE_READING: [Rule; 6] = [
    fails("GET", "manifest.json", 0, 1, Fault::Cut),
    fails("HEAD", ".index", 0, 2, SLOW_DOWN),
    fails("GET", ".copy", 0, 2, Fault::Cut),
    fails("GET", ".copy", 0, 2, SLOW_DOWN),
    fails("GET", ".copy", 0, 1, Fault::Stall(Duration::from_secs(20))),
    fails("GET", ".copy", 0, 1, INTERNAL),
];

const SLOW_DOWN: Fault = Fault::Answer(503, "SlowDown");
const INTERNAL: Fault = Fault::Answer(500, "InternalError");

const fn fails(
    method: &'static str,
    target: &'static str,
    after: usize,
    times: usize,
    fault: Fault,
) -> Rule {
    Rule {
        method,
        target,
        after,
        times,
        fault,
    }
}

fn every_rule_was_used(rules: &[Rule], seen: &[Seen]) {
    let failed = seen.iter().filter(|seen| seen.failed).count();
    let expected: usize = rules.iter().map(|rule| rule.times).sum();
    assert_eq!(failed, expected, "{seen:#?}");
}

#[test]
fn a_store_that_throttles_fails_and_breaks_off_is_asked_again_for_what_is_missing_only()
-> Result<()> {
    let Some(bucket) = Bucket::start()? else {
        return Ok(());
    };
    let cluster = cluster(&bucket, &[("AWS_READ_TIMEOUT", "15s")])?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let place = bucket.place("busy");
    bucket.proxy().set(&TROUBLE_WRITING);
    let running = cluster.generate_spawn(&place, &PLAIN)?;
    bucket.proxy().wait_for("PUT", "partNumber=2", LIMIT)?;
    bucket.proxy().refuse_for(Duration::from_secs(2));
    let made = running.finish(LIMIT * 2)?.expect(0)?.last_object()?;
    let seen = bucket.proxy().take_seen();
    every_rule_was_used(&TROUBLE_WRITING, &seen);
    // Each piece arrived once more than its answer was lost.
    let mut arrived: HashMap<&str, usize> = HashMap::new();
    for piece in seen
        .iter()
        .filter(|seen| seen.method == "PUT" && !seen.failed)
    {
        *arrived.entry(&piece.target).or_default() += 1;
    }
    let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).collect();
    ensure!(twice.is_empty(), "{twice:?}");
    assert_eq!(bucket.uploads()?, Vec::<String>::new());

    bucket.proxy().set(&TROUBLE_READING);
    cluster.apply(&["node_b"], &place, &["--json"])?.expect(0)?;
    let seen = bucket.proxy().take_seen();
    every_rule_was_used(&TROUBLE_READING, &seen);
    let data = seen
        .iter()
        .filter(|seen| seen.method == "GET" && seen.target.contains(".copy"))
        .filter(|seen| seen.status < 300);
    let read: usize = data.map(|seen| seen.answered).sum();
    assert_eq!(
        made["stored_bytes"].as_u64(),
        Some(read as u64),
        "{seen:#?}"
    );
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;

    // Nobody above the store noticed.
    let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
    ensure!(!events.text().contains("snapshot.retried"), "{events}");
    bucket
        .proxy()
        .set(&[fails("POST", "?delete", 0, 1, Fault::Cut)]);
    delete(&cluster, &bucket, &snapshot_id(&made)?)
}

#[test]
fn a_refusal_says_what_to_do_and_leaves_nothing() -> Result<()> {
    let Some(bucket) = Bucket::start()? else {
        return Ok(());
    };
    let wrong = "hunter2hunter2hunter2hunter2hunter2hunter";
    let mut cluster = cluster(&bucket, &[("AWS_SECRET_ACCESS_KEY", wrong)])?;
    let source = cluster.database("node_a");
    let place = bucket.place("refused");
    let refused = cluster.generate(&place, &PLAIN)?.expect(1)?;
    for said in ["403 Forbidden", "credentials", "docs/snapshots.md"] {
        ensure!(
            refused.text().contains(said),
            "{said:?} is not in {refused}"
        );
    }
    is_nowhere(wrong, &cluster)?;
    wait::until_true("the slot to be dropped", LIMIT, || {
        Ok(source.value::<u32>(SLOTS)? == 0)
    })?;
    nothing_is_left(&source)?;
    nothing_is_stored(&bucket)?;

    // With the right key, one that may not write: what it had written goes.
    cluster.stop_agent("node_a")?;
    cluster
        .node_mut("node_a")
        .set_agent_variable("AWS_SECRET_ACCESS_KEY", bucket.secret());
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a"])?;
    let denied = Fault::Answer(403, "AccessDenied");
    bucket
        .proxy()
        .set(&[fails("PUT", "partNumber=2", 0, 1, denied)]);
    let refused = cluster
        .generate(bucket.place("denied"), &PLAIN)?
        .expect(1)?;
    for said in ["parts/", "AccessDenied", "docs/snapshots.md"] {
        ensure!(
            refused.text().contains(said),
            "{said:?} is not in {refused}"
        );
    }
    wait::until_true("what was written to be removed", LIMIT, || {
        Ok(bucket.objects()?.is_empty() && bucket.uploads()?.is_empty())
    })?;
    nothing_is_left(&source)?;

    // Another bucket than the one that its policy names.
    let elsewhere = "s3://steep-tests-elsewhere/one";
    let refused = cluster.generate(elsewhere, &PLAIN)?.expect(1)?;
    ensure!(refused.text().contains("403 Forbidden"), "{refused}");
    nothing_is_left(&source)
}

#[test]
fn a_killed_agent_leaves_no_upload_and_a_damaged_object_is_named_before_anything_is_changed()
-> Result<()> {
    let Some(bucket) = Bucket::start()? else {
        return Ok(());
    };
    let mut cluster = cluster(&bucket, &[])?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let place = bucket.place("killed");
    let stall = Fault::Stall(LIMIT);
    bucket
        .proxy()
        .set(&[fails("PUT", "partNumber=2", 0, 1, stall)]);
    let begun = cluster.generate(&place, &["--compress", "none", "--detach"])?;
    let id = snapshot_id(&begun.expect(0)?.last_object()?)?;
    bucket.proxy().wait_failed(LIMIT)?;
    cluster.kill_agent("node_a")?;
    ensure!(!bucket.uploads()?.is_empty(), "no upload was on its way");
    cluster.start_agent("node_a")?;
    wait::until_true("the snapshot to be complete", LIMIT, || {
        Ok(cluster.show_snapshot(&id)?["state"] == "sealed")
    })?;
    assert_eq!(bucket.uploads()?, Vec::<String>::new());
    cluster.cli(&["snapshot", "verify", &id])?.expect(0)?;

    let largest = largest_object(&bucket)?;
    let whole = bucket.read(&largest)?;
    let index = largest.replace(".copy", ".index");
    let index_whole = bucket.read(&index)?;
    let mut other = index_whole.clone();
    other[index_whole.len() / 2] ^= 1;
    bucket.write(&index, &other)?;
    refused(&cluster, &place, &index, "damaged")?;
    bucket.write(&index, &index_whole)?;
    bucket.write(&largest, &whole[..whole.len() / 2])?;
    refused(&cluster, &place, &largest, "truncated")?;
    bucket.remove(&largest)?;
    refused(&cluster, &place, &largest, "missing")?;
    wait::until_true("the failed jobs to be cleaned up", LIMIT, || {
        Ok(source.value::<u32>(SLOTS)? == 1)
    })?;
    residue::of_everything(&target)?.none()?;
    delete(&cluster, &bucket, &id)?;
    nothing_is_left(&source)
}

fn refused(cluster: &Cluster, place: &str, key: &str, problem: &str) -> Result<()> {
    let refused = cluster.apply(&["node_b"], place, &["--json"])?.expect(1)?;
    let name = key.rsplit('/').next().context("a name")?;
    for said in [name, problem] {
        ensure!(
            refused.text().contains(said),
            "{said:?} is not in {refused}"
        );
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(cluster.database("node_b").value::<u32>(tables)?, 0);
    Ok(())
}

fn largest_object(bucket: &Bucket) -> Result<String> {
    let mut sizes = BTreeMap::new();
    for key in bucket.objects()? {
        if key.contains("/parts/") && key.ends_with(".copy") {
            sizes.insert(bucket.read(&key)?.len(), key);
        }
    }
    let (_, largest) = sizes.pop_last().context("an object")?;
    Ok(largest)
}
