//! A node that stops following for good keeps its rows, takes numbers of its own, and leaves nothing on either server.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::{residue, wait};

const LIMIT: Duration = Duration::from_secs(60);

const SHAPE: &str = "CREATE TABLE item (id bigserial PRIMARY KEY, body text);
    CREATE TABLE told (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
    CREATE SEQUENCE ticket;
    INSERT INTO item (body) SELECT 'row' FROM generate_series(1, 100);";

const WRITES: &str = "INSERT INTO item (body) SELECT 'later' FROM generate_series(1, 50);
    INSERT INTO told (body) SELECT 'later' FROM generate_series(1, 50);
    SELECT nextval('ticket') FROM generate_series(1, 7)";

fn detach<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["detach", "--node", "node_b", "--yes"], more].concat()
}

fn named(cluster: &Cluster, event: &str) -> Result<usize> {
    let events = cluster.cli(&["events", "--json"])?.expect(0)?.objects();
    Ok(events.iter().filter(|e| e["event"] == event).count())
}

fn nothing_left(cluster: &Cluster) -> Result<()> {
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_jobs(&cluster.database("node_b"))?.none()
}

fn slots(database: &Database) -> Result<String> {
    database.sql("SELECT count(*) FROM pg_replication_slots")
}

#[test]
fn a_detached_node_has_all_rows_numbers_of_its_own_and_nothing_of_ours() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(SHAPE)?;
    let early = cluster.cli(&detach(&[]))?.expect(1)?;
    ensure!(early.text().contains("it follows nobody"), "{early}");
    cluster.init(&[])?.expect(0)?;

    let plan = || -> Result<serde_json::Value> {
        let plan = cluster.cli(&detach(&["--dry-run", "--json"]))?;
        plan.expect(0)?.last_object()
    };
    assert_eq!(plan()?["event"], "detach.plan");
    assert_eq!(plan()?["source_node"], "node_a");
    wait::until_true("the slot to be seen", LIMIT, || {
        Ok(plan()?["lag_bytes"].is_number())
    })?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    assert_eq!(slots(&source)?, "1");

    let unasked = cluster.cli(&["detach", "--node", "node_b"])?.expect(2)?;
    ensure!(unasked.text().contains("--yes"), "{unasked}");
    assert_eq!(slots(&source)?, "1");

    // Nothing arrives, so the wait ends and nothing has changed.
    let name = target.sql("SELECT subname FROM pg_subscription")?;
    let held = steep_tests::session::Session::sleeping(
        &target,
        "held",
        "BEGIN; LOCK item IN EXCLUSIVE MODE",
    )?;
    source.sql(WRITES)?;
    let late = cluster
        .cli(&detach(&["--wait", "--timeout", "2s"]))?
        .expect(5)?;
    ensure!(late.text().contains("nothing was changed"), "{late}");
    assert_eq!(target.sql("SELECT subname FROM pg_subscription")?, name);
    drop(held);

    source.sql(WRITES)?;
    let both = [
        cluster.cli_spawn(&detach(&["--wait", "--json"]))?,
        cluster.cli_spawn(&detach(&["--wait", "--json"]))?,
    ];
    for one in both {
        let done = one.finish(LIMIT)?.expect(0)?.last_object()?;
        assert_eq!(done["event"], "node.detached", "{done}");
        assert_eq!(done["left"].as_array().context("left")?.len(), 0, "{done}");
    }
    nothing_left(&cluster)?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    assert_eq!(named(&cluster, "node.detached")?, 1);
    let rows = "SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM told)";
    assert_eq!(target.sql(rows)?, source.sql(rows)?);
    assert_eq!(target.sql("SELECT nextval('ticket')")?, "15");
    target.sql("INSERT INTO item (body) VALUES ('own'); INSERT INTO told (body) VALUES ('own')")?;
    let view = cluster.node_view("node_b")?.context("node_b")?;
    assert_eq!(view["detached"]["source_node"], "node_a", "{view}");
    let status = cluster.cli(&["status", "node_b"])?.expect(0)?.text();
    ensure!(
        status.contains("detached") && status.contains("its rows are its own"),
        "{status}"
    );
    let audit = cluster
        .cli(&["events", "node_b", "--audit", "--json"])?
        .expect(0)?
        .text();
    ensure!(audit.contains("\"detach\""), "{audit}");
    let again = cluster
        .cli(&detach(&["--json"]))?
        .expect(0)?
        .last_object()?;
    assert_eq!(again["already"], true);
    Ok(())
}

#[test]
fn a_detach_without_the_source_or_struck_by_deaths_ends_clean() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(SHAPE)?;
    cluster.init(&[])?.expect(0)?;
    cluster.kill_agent("node_a")?;
    wait::until_true("the source's agent to be missed", LIMIT, || {
        let view = cluster.node_view("node_a")?;
        Ok(view.is_some_and(|view| view["agent_online"] == false))
    })?;
    let refused = cluster.cli(&detach(&[]))?.expect(6)?;
    ensure!(refused.text().contains("--force"), "{refused}");
    let alone = cluster
        .cli(&detach(&["--force", "--json"]))?
        .expect(0)?
        .last_object()?;
    let left = alone["left"].to_string();
    for said in [
        "and publication",
        "removed as soon as its agent is back",
        "sequences here were not set",
    ] {
        ensure!(left.contains(said), "{said}: {left}");
    }
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    let status = cluster.cli(&["status", "node_b"])?.expect(0)?.text();
    ensure!(status.contains("still on node_a"), "{status}");
    residue::of_jobs(&target)?.none()?;
    assert_eq!(slots(&source)?, "1");
    cluster.start_agent("node_a")?;
    wait::until_true("what is left to be removed", LIMIT, || {
        Ok(residue::of_jobs(&source)?.none().is_ok())
    })?;
    assert_eq!(named(&cluster, "node.left_removed")?, 1);

    // Whoever dies, and when: the detach goes on.
    for (round, victim) in [
        (0, "node_b"),
        (1, "node_b"),
        (2, "coordinator"),
        (3, "node_a"),
    ] {
        cluster.init(&["--force"])?.expect(0)?;
        source.sql(WRITES)?;
        let order = cluster.cli_spawn(&detach(&["--json"]))?;
        std::thread::sleep(Duration::from_millis(150 + 60 * round));
        match victim {
            "coordinator" => {
                cluster.kill_coordinator()?;
                cluster.start_coordinator()?;
            }
            agent => {
                cluster.kill_agent(agent)?;
                cluster.start_agent(agent)?;
            }
        }
        let ended = order.finish(LIMIT)?;
        cluster.wait_online(&["node_a", "node_b"])?;
        // A death before the order was taken leaves the node as it was: the order is given again.
        wait::until_true("the detach to be done", LIMIT, || {
            let state = cluster.state("node_b")?;
            if state == "synchronized" || state == "diverged" {
                cluster.cli(&detach(&[]))?;
            }
            Ok(state == "uninitialized")
        })
        .with_context(|| format!("{victim}: {ended}"))?;
        nothing_left(&cluster).with_context(|| format!("{victim}: {ended}"))?;
        target.sql("INSERT INTO item (body) VALUES ('own')")?;
    }
    Ok(())
}
