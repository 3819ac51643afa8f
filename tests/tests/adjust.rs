//! `init adjust`: workers and rate of a running job change while it runs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::{compare, scrape, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// A limit is to hold over any time of this length.
const WINDOW: Duration = Duration::from_secs(10);

/// Tables of two megabytes, none of which is split: enough for all that is tried at a slow rate.
fn create(database: &Database) -> Result<()> {
    let sql = "SELECT format('CREATE TABLE t%s (id integer PRIMARY KEY, body text);
            INSERT INTO t%1$s SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 2100) AS n', n)
        FROM generate_series(1, 60) AS n
        \\gexec";
    database.sql(sql).map(drop)
}

/// COPY bytes that have arrived at `node_b`.
fn arrived(cluster: &Cluster) -> Result<f64> {
    let page = scrape::scrape(&cluster.node("node_b").agent_address())?;
    let bytes = page.value("steep_agent_copy_bytes_total", &[("direction", "received")]);
    bytes.context("the agent counts bytes")
}

/// Time is what is tested here.
fn expect_rate(cluster: &Cluster, per_second: f64) -> Result<()> {
    let (began, before) = (Instant::now(), arrived(cluster)?);
    thread::sleep(WINDOW);
    let bytes = arrived(cluster)? - before;
    let share = bytes / began.elapsed().as_secs_f64() / per_second;
    // A busy machine may be slower, and never faster.
    ensure!(
        (0.75..=1.05).contains(&share),
        "{share:.3} of {per_second} bytes a second"
    );
    Ok(())
}

fn adjust(cluster: &Cluster, further: &[&str]) -> Result<Value> {
    let arguments = ["init", "adjust", "--node", "node_b", "--json"];
    let arguments: Vec<&str> = arguments.iter().chain(further).copied().collect();
    cluster.cli(&arguments)?.expect(0)?.last_object()
}

fn wait_workers(cluster: &Cluster, workers: u64) -> Result<()> {
    wait::until_true(&format!("{workers} workers"), LIMIT, || {
        Ok(cluster.progress("node_b")?["parallel_workers"] == workers)
    })
}

fn refused(cluster: &Cluster, node: &str, code: i32, text: &str) -> Result<()> {
    let mut arguments = vec!["init", "adjust", "--node", node];
    if code == 1 {
        arguments.extend(["--parallel", "2"]);
    }
    let output = cluster.cli(&arguments)?.expect(code)?;
    ensure!(output.text().contains(text), "{output}");
    Ok(())
}

#[test]
fn workers_and_rate_of_a_running_copy_change_at_once_and_outlive_the_coordinator() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    create(&source)?;
    refused(&cluster, "node_b", 1, "it is uninitialized")?;
    cluster
        .init(&["--detach", "--parallel", "2", "--max-rate", "1MB"])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    wait_workers(&cluster, 2)?;
    expect_rate(&cluster, 1e6)?;
    refused(&cluster, "node_b", 2, "--max-rate")?;
    refused(&cluster, "node_a", 1, "no job of it is running")?;

    let adjusted = adjust(&cluster, &["--parallel", "8"])?;
    assert_eq!(adjusted["event"], "init.adjusted");
    assert_eq!(
        (&adjusted["parallel"], &adjusted["max_rate"]),
        (&8.into(), &1_000_000.into())
    );
    assert!(adjusted["from_phase"].is_null(), "{adjusted}");
    wait_workers(&cluster, 8)?;
    expect_rate(&cluster, 1e6)?;

    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    wait_workers(&cluster, 8)?;
    let fewer = adjust(&cluster, &["--parallel", "3", "--max-rate", "3MB"])?;
    assert_eq!(
        (&fewer["parallel"], &fewer["max_rate"]),
        (&3.into(), &3_000_000.into())
    );
    wait_workers(&cluster, 3)?;

    let began = Instant::now();
    adjust(&cluster, &["--max-rate", "none", "--parallel", "8"])?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    ensure!(began.elapsed() < LIMIT, "it took {:?}", began.elapsed());
    refused(&cluster, "node_b", 1, "it is synchronized")?;
    compare::rows(&source, &cluster.database("node_b"))?.none()?;

    let events = cluster
        .cli(&["events", "node_b", "--json"])?
        .expect(0)?
        .objects();
    let orders = events
        .iter()
        .filter(|event| event["event"] == "init.adjusted");
    let parallel: Vec<&Value> = orders.map(|event| &event["parallel"]).collect();
    assert_eq!(parallel, [8, 3, 8]);
    let audit = cluster.cli(&["events", "--audit"])?.expect(0)?.text();
    ensure!(
        audit.contains("init.adjust") && audit.contains("max_rate=none"),
        "{audit}"
    );
    Ok(())
}

#[test]
fn a_limit_holds_for_stored_snapshots_too_and_is_removed_from_a_running_job() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    create(&source)?;
    let place = cluster.dir().join("stored");
    let place = place.to_str().context("UTF-8")?;
    let made = cluster.cli(&[
        "snapshot",
        "generate",
        "--source",
        "node_a",
        "--output",
        place,
        "--json",
        "--max-rate",
        "6MB",
        "--parallel",
        "16",
    ])?;
    let made = made.expect(0)?.last_object()?;
    let (bytes, seconds) = (made["bytes"].as_f64(), made["duration_seconds"].as_f64());
    let rate = bytes.context("bytes")? / seconds.context("a duration")?;
    // Its slot and its schema take a moment.
    ensure!(
        (0.7 * 6e6..1.05 * 6e6).contains(&rate),
        "{rate} bytes a second: {made}"
    );

    cluster
        .cli(&[
            "snapshot",
            "apply",
            "--target",
            "node_b",
            "--input",
            place,
            "--yes",
            "--detach",
            "--max-rate",
            "1MB",
            "--parallel",
            "16",
        ])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    expect_rate(&cluster, 1e6)?;
    adjust(&cluster, &["--max-rate", "none"])?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    compare::rows(&source, &cluster.database("node_b"))?.none()
}
