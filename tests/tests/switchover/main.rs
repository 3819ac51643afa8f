//! Writes move from a node to its replica under a load of applications that connect again: every acknowledged row is
//! there, no number is given out twice, and whatever dies, exactly one node takes writes in the end.

mod deaths;
mod held;
mod lifted;
mod refused;
mod way_back;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::application::{self, Applications};
use steep_tests::cluster::{Cluster, Running};
use steep_tests::pg::Database;
use steep_tests::session::Session;
use steep_tests::{residue, wait};

const LIMIT: Duration = Duration::from_secs(90);

/// Tables and sequences with names that must be quoted.
const SHAPE: &str = r#"CREATE SCHEMA "Fr""ück";
    CREATE TABLE "Fr""ück"."a;b" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
    CREATE TABLE parted (id bigserial, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE SEQUENCE "Ticket";
    INSERT INTO "Fr""ück"."a;b" (body) SELECT 'row' FROM generate_series(1, 100);
    INSERT INTO parted (at) SELECT '2026-05-05' FROM generate_series(1, 50);
    SELECT nextval('"Ticket"') FROM generate_series(1, 7)"#;

fn switchover<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [
        &[
            "switchover",
            "--from",
            "node_a",
            "--to",
            "node_b",
            "--yes",
            "--json",
        ],
        more,
    ]
    .concat()
}

fn back<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [
        &[
            "switchover",
            "--from",
            "node_b",
            "--to",
            "node_a",
            "--yes",
            "--json",
        ],
        more,
    ]
    .concat()
}

fn ready() -> Result<Cluster> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    source.sql(application::TABLE)?;
    source.sql(SHAPE)?;
    cluster.init(&[])?.expect(0)?;
    Ok(cluster)
}

/// Whether new sessions of applications can write. One that began while they could not is ended when they can.
fn writable(database: &Database) -> Result<bool> {
    let shown = || database.sql("SHOW default_transaction_read_only");
    Ok(shown().or_else(|_| shown())? == "off")
}

fn both(cluster: &Cluster) -> [Database; 2] {
    [cluster.database("node_a"), cluster.database("node_b")]
}

fn applications(cluster: &Cluster) -> Result<Applications> {
    Applications::start(&both(cluster), 3)
}

/// Waits until somebody has written that many rows more on that node.
fn written(database: &Database, rows: u64) -> Result<()> {
    let count = || database.value::<u64>("SELECT count(*) FROM \"Work\"");
    let before = count()?;
    wait::until_true("rows of applications", LIMIT, || {
        Ok(count()? >= before + rows)
    })
}

/// No number was given out twice: the table's key would have refused it.
fn no_duplicate(done: &application::Done) -> Result<()> {
    ensure!(!done.errors.contains("duplicate key"), "{}", done.errors);
    let mut ids: Vec<u64> = done.rows.iter().map(|row| row.id).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    ensure!(ids.len() == all, "a number was given out twice");
    Ok(())
}

fn view(cluster: &Cluster) -> Result<Value> {
    let view = cluster.node_view("node_a")?.context("node_a")?;
    Ok(view["switchover"].clone())
}

fn step(cluster: &Cluster) -> Result<String> {
    Ok(view(cluster)?["step"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Begins one, and waits until it is at that step. On a busy machine a server may not answer at first; then nothing was
/// changed.
fn begun(cluster: &Cluster, arguments: &[&str], step: &str) -> Result<Running> {
    let said = format!("\"step\":\"{step}\"");
    wait::until(&format!("the step {step}"), LIMIT, || {
        let mut running = cluster.cli_spawn(arguments)?;
        loop {
            let text = running.stdout_so_far()?.replace(": ", ":");
            if text.contains(&said) {
                return Ok(Some(running));
            }
            if !running.is_running()? {
                let ended = running.finish(LIMIT)?;
                ensure!(ended.code == 6, "{ended}");
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// Runs one to its end, as [`begun`].
fn completed(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let ended = wait::until("servers to answer", LIMIT, || {
        let ended = cluster.cli(arguments)?;
        Ok((ended.code != 6).then_some(ended))
    })?;
    ended.expect(0)?.last_object()
}

#[test]
fn writes_move_under_load_and_nothing_acknowledged_is_lost() -> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    let plan = cluster
        .cli(&switchover(&["--dry-run"]))?
        .expect(0)?
        .last_object()?;
    assert_eq!(plan["event"], "switchover.plan");
    let unasked = cluster
        .cli(&["switchover", "--from", "node_a", "--to", "node_b"])?
        .expect(2)?;
    ensure!(unasked.text().contains("--yes"), "{unasked}");
    ensure!(writable(&source)? && writable(&target)?);

    let applications = applications(&cluster)?;
    // A session that has begun before, and would not notice a setting.
    wait::until_true("both servers to answer", LIMIT, || {
        Ok(cluster.cli(&switchover(&["--dry-run"]))?.code == 0)
    })?;
    let old = Session::start(&source, "old", "SELECT 1; SELECT pg_sleep(600)")?;
    let twice = [
        cluster.cli_spawn(&switchover(&["--terminate-after", "1s"]))?,
        cluster.cli_spawn(&switchover(&["--terminate-after", "1s"]))?,
    ];
    for one in twice {
        let done = one.finish(LIMIT)?.expect(0)?.last_object()?;
        assert_eq!(done["event"], "switchover.completed", "{done}");
        let stopped = done["stopped_seconds"]
            .as_f64()
            .context("stopped_seconds")?;
        println!("writes were stopped for {stopped} s");
        assert_eq!(done["writable"], "node_b", "{done}");
        // Idle ones as well.
        ensure!(done["ended_sessions"].as_u64() > Some(1), "{done}");
        let reopen = done["reopen"].as_str().context("reopen")?;
        ensure!(
            reopen.contains("RESET default_transaction_read_only"),
            "{done}"
        );
    }
    drop(old);
    written(&target, 50)?;
    let done = applications.stop()?;
    println!("no commit for {:?}", done.longest_gap());
    assert_eq!(done.missing(&target)?, []);
    no_duplicate(&done)?;
    let old_port = source.port();
    ensure!(done.rows.iter().any(|row| row.port == target.port()));
    let first_new = done.rows.iter().position(|row| row.port != old_port);
    let last_old = done.rows.iter().rposition(|row| row.port == old_port);
    ensure!(last_old < first_new, "both took writes");

    ensure!(!writable(&source)? && writable(&target)?);
    let refused = source.sql("INSERT INTO \"Work\" (writer, n) VALUES (9, 9)");
    ensure!(format!("{:#}", refused.unwrap_err()).contains("read-only transaction"));
    // Sequences that nobody wrote through, and identities.
    assert_eq!(target.sql("SELECT nextval('\"Ticket\"')")?, "8");
    target.sql("INSERT INTO \"Fr\"\"ück\".\"a;b\" (body) VALUES ('own'); INSERT INTO parted (at) VALUES ('2026-06-06')")?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;

    let nodes = cluster.cli(&["nodes"])?.expect(0)?.text();
    ensure!(nodes.contains("takes writes in place of node_a"), "{nodes}");
    ensure!(nodes.contains("read-only, in favour of node_b"), "{nodes}");
    let status = cluster.cli(&["status", "node_a"])?.expect(0)?.text();
    ensure!(status.contains("ALTER DATABASE"), "{status}");
    let events = cluster.cli(&["events", "--json"])?.expect(0)?.objects();
    let ended: Vec<_> = events
        .iter()
        .filter(|e| e["event"] == "switchover.completed")
        .collect();
    assert_eq!(ended.len(), 1);
    ensure!(ended[0]["stopped_ms"].is_number(), "{}", ended[0]);
    let again = completed(&cluster, &switchover(&[]))?;
    assert_eq!(again["switchover_id"], view(&cluster)?["switchover_id"]);
    let wrong = cluster.cli(&back(&[]))?.expect(1)?;
    ensure!(wrong.text().contains("does not follow node_b"), "{wrong}");
    Ok(())
}

#[test]
fn with_a_way_back_writes_move_there_and_back_and_nothing_is_lost() -> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    let applications = applications(&cluster)?;
    let there = completed(&cluster, &switchover(&["--reverse", "--verify"]))?;
    assert_eq!(there["event"], "switchover.completed", "{there}");
    assert_eq!(there["warnings"], Value::Array(Vec::new()), "{there}");
    assert_eq!(cluster.state("node_a")?, "synchronized");
    written(&target, 30)?;
    // The old node follows although it is read-only, and TRUNCATE arrives as well.
    target.sql(
        "TRUNCATE \"Fr\"\"ück\".\"a;b\"; INSERT INTO \"Fr\"\"ück\".\"a;b\" (body) VALUES ('new')",
    )?;
    wait::until_true("the old node to follow", LIMIT, || {
        Ok(source.sql("SELECT count(*) FROM \"Fr\"\"ück\".\"a;b\"")? == "1")
    })?;
    ensure!(!writable(&source)? && writable(&target)?);
    let nodes = cluster.cli(&["nodes"])?.expect(0)?.text();
    ensure!(nodes.contains("replica of node_b"), "{nodes}");

    let home = completed(&cluster, &back(&["--reverse"]))?;
    assert_eq!(home["writable"], "node_a", "{home}");
    written(&source, 30)?;
    ensure!(writable(&source)? && !writable(&target)?);
    let done = applications.stop()?;
    assert_eq!(done.missing(&source)?, []);
    no_duplicate(&done)?;
    wait::until_true("both to be equal", LIMIT, || {
        Ok(done.missing(&target)?.is_empty())
    })?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    Ok(())
}
