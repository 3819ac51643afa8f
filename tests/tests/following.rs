//! Contents of a replication: tables and partitions that enter or leave it, enum labels, the
//! publication itself. What is missing is named, and a node recovers only when its rows are there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::{CLI_LIMIT, Cluster};
use steep_tests::pg::Database;
use steep_tests::{residue, wait};

/// A change is noticed within this time if the agents check every second.
const NOTICED: Duration = Duration::from_secs(60);

const SHAPE: &str = "CREATE SCHEMA metrics;
    CREATE TABLE metrics.sample (at date NOT NULL, id integer NOT NULL, PRIMARY KEY (at, id))
        PARTITION BY RANGE (at);
    CREATE TABLE metrics.sample_01 PARTITION OF metrics.sample
        FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');";

const ROWS: &str = "INSERT INTO metrics.sample
    SELECT date '2026-01-01' + n % 30, n FROM generate_series(1, 900) AS n;";

/// A partition that is created as one, and a table that is filled and then attached.
const GROWS: &str = "CREATE TABLE metrics.sample_05 PARTITION OF metrics.sample
        FOR VALUES FROM ('2026-05-01') TO ('2026-06-01');
    INSERT INTO metrics.sample SELECT date '2026-05-01' + n % 30, n FROM generate_series(1, 60) AS n;
    CREATE TABLE metrics.sample_06 (LIKE metrics.sample INCLUDING ALL);
    INSERT INTO metrics.sample_06 SELECT date '2026-06-01' + n % 30, n FROM generate_series(1, 60) AS n;
    ALTER TABLE metrics.sample ATTACH PARTITION metrics.sample_06
        FOR VALUES FROM ('2026-06-01') TO ('2026-07-01');
    INSERT INTO metrics.sample SELECT date '2026-06-15', 1000 + n FROM generate_series(1, 10) AS n;";

/// The same two, empty, on the target.
const FOLLOWS: &str = "CREATE TABLE metrics.sample_05 PARTITION OF metrics.sample
        FOR VALUES FROM ('2026-05-01') TO ('2026-06-01');
    CREATE TABLE metrics.sample_06 PARTITION OF metrics.sample
        FOR VALUES FROM ('2026-06-01') TO ('2026-07-01');";

fn watched() -> Result<Cluster> {
    Cluster::builder()
        .without_data_dir("node_a")
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .setting("node_b", "logging_collector", "on")
        .agent_argument("node_a", "--schema-check-interval=1s")
        .agent_argument("node_b", "--schema-check-interval=1s")
        .coordinator_argument("--drift-grace=2s")
        .start()
}

fn reason(cluster: &Cluster) -> Result<String> {
    let view = cluster.node_view("node_b")?.context("node_b")?;
    Ok(view["error_message"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Waits until the node is diverged and the reason contains all these words.
fn wait_diverged(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let mut said = String::new();
    let all = wait::until_true("the reason to be told", NOTICED, || {
        said = reason(cluster)?;
        let diverged = cluster.state("node_b")? == "diverged";
        Ok(diverged && words.iter().all(|word| said.contains(word)))
    });
    all.with_context(|| format!("{words:?} in {said:?}"))
}

fn wait_recovered(cluster: &Cluster) -> Result<()> {
    let state = cluster.wait_state("node_b", &["synchronized"], NOTICED);
    state
        .map(drop)
        .with_context(|| reason(cluster).unwrap_or_default())
}

fn refresh(target: &Database, options: &str) -> Result<()> {
    let name = "(SELECT subname FROM pg_subscription WHERE subname LIKE 'steep%')";
    target.sql(&format!(
        "SELECT format('ALTER SUBSCRIPTION %I REFRESH PUBLICATION {options}', {name}) \\gexec"
    ))?;
    Ok(())
}

/// Our publication, quoted for `ALTER PUBLICATION`.
fn publication(source: &Database) -> Result<String> {
    source.sql("SELECT quote_ident(pubname) FROM pg_publication WHERE pubname LIKE 'steep%'")
}

#[test]
fn what_enters_or_leaves_a_replication_is_named_and_heals_with_its_rows_only() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(&format!("{SHAPE} {ROWS}"))?;
    source.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE felt (id integer PRIMARY KEY, moods mood[]);
         CREATE TABLE t (id integer PRIMARY KEY);",
    )?;
    cluster.init(&[])?.expect(0)?;

    // Nobody requested it: an event, but no divergence.
    source.sql("CREATE TABLE later (id integer PRIMARY KEY)")?;
    wait::until_true("the new table to be told", NOTICED, || {
        let events = cluster
            .cli(&["events", "node_b", "--json"])?
            .expect(0)?
            .objects();
        let told = |e: &serde_json::Value| e["event"] == "table.appeared";
        Ok(events
            .iter()
            .any(|e| told(e) && e["table"] == "public.later"))
    })?;
    assert_eq!(cluster.state("node_b")?, "synchronized");

    source.sql(GROWS)?;
    wait_diverged(
        &cluster,
        &[
            "does not subscribe to",
            "metrics.sample_05",
            "metrics.sample_06",
        ],
    )?;
    // Created by hand and added without its earlier rows, it looks the same on both ends.
    target.sql(FOLLOWS)?;
    refresh(&target, "WITH (copy_data = false)")?;
    wait_diverged(&cluster, &["rows may be missing", "metrics.sample_06"])?;
    // A missing label stops the subscription, which continues by itself once the label exists.
    source.sql("ALTER TYPE mood ADD VALUE 'glad'")?;
    source.sql("INSERT INTO felt VALUES (1, '{glad}')")?;
    wait_diverged(
        &cluster,
        &["rows may be missing", "public.mood", "\"glad\""],
    )?;
    wait_diverged(
        &cluster,
        &[
            "PostgreSQL says: invalid input value for enum",
            "on public.felt",
        ],
    )?;
    target.sql("ALTER TYPE mood ADD VALUE 'glad'")?;
    wait::until_true("the row with the label", NOTICED, || {
        Ok(target.sql("SELECT count(*) FROM felt")? == "1")
    })?;
    wait::until_true("the label not to be missed", NOTICED, || {
        Ok(!reason(&cluster)?.contains("public.mood"))
    })?;
    wait_diverged(&cluster, &["rows may be missing", "metrics.sample_06"])?;
    // With their rows they are complete.
    target.sql("DROP TABLE metrics.sample_05, metrics.sample_06")?;
    target.sql(FOLLOWS)?;
    refresh(&target, "")?;
    wait_recovered(&cluster)?;
    cluster.wait_drained("node_a")?;
    let sum = "SELECT count(*), sum(id) FROM metrics.sample";
    assert_eq!(target.sql(sum)?, source.sql(sum)?);

    // Removed and added again: both ends look as before, and a row is missing.
    let name = publication(&source)?;
    source.sql(&format!(
        "ALTER PUBLICATION {name} DROP TABLE ONLY t; INSERT INTO t VALUES (1);
         ALTER PUBLICATION {name} ADD TABLE ONLY t; INSERT INTO t VALUES (2)"
    ))?;
    wait_diverged(&cluster, &["rows may be missing", "public.t"])?;
    target.sql("DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY)")?;
    refresh(&target, "")?;
    wait_recovered(&cluster)?;
    assert_eq!(target.sql("SELECT count(*) FROM t")?, "2");

    // Created again in the same way, it is another publication.
    let tables = "TABLE ONLY t, ONLY felt, ONLY metrics.sample";
    source.sql(&format!(
        "DROP PUBLICATION {name}; CREATE PUBLICATION {name} FOR {tables}"
    ))?;
    wait_diverged(&cluster, &["the publication on node_a", "initialised anew"])?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    residue::of_jobs(&target)?.none()
}

#[test]
fn a_job_keeps_others_out_and_fails_where_its_publication_changes() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(&format!("{SHAPE} {ROWS}"))?;
    source.sql(
        "CREATE TABLE filler (id integer PRIMARY KEY, body text);
         INSERT INTO filler SELECT n, repeat(md5(n::text), 16) FROM generate_series(1, 30000) AS n",
    )?;
    let ends = |what: &dyn Fn() -> Result<()>, words: &[&str]| -> Result<()> {
        let job = cluster.init_spawn(&["--max-rate", "1MB", "--large-table-threshold", "1MB"])?;
        cluster.wait_copying("node_b")?;
        what()?;
        let ended = job.finish(CLI_LIMIT)?.expect(1)?;
        let said = ended.to_string();
        ensure!(
            words.iter().all(|word| said.contains(word)),
            "{words:?} in {said}"
        );
        assert_eq!(cluster.state("node_b")?, "failed");
        Ok(())
    };
    let dropped = || -> Result<()> {
        for write in [
            "INSERT INTO filler VALUES (0, 'extra')",
            "DELETE FROM filler",
            "TRUNCATE metrics.sample_01",
            "INSERT INTO metrics.sample VALUES ('2026-01-02', 0)",
            "UPDATE metrics.sample_01 SET id = -id",
        ] {
            let refused = target.sql(write).map_err(|error| format!("{error:#}"));
            let said = refused.err().unwrap_or_default();
            ensure!(
                said.contains("is being initialised by steep-repl"),
                "{write}: {said:?}"
            );
        }
        let name = publication(&source)?;
        source.sql(&format!("DROP PUBLICATION {name}"))?;
        Ok(())
    };
    ends(&dropped, &["the publication", "is gone"])?;
    let grown = || source.sql(GROWS).map(drop);
    ends(&grown, &["metrics.sample_05", "metrics.sample_06"])?;
    // Nothing is left that would affect tables created before the next job.
    target.sql(&format!(
        "{SHAPE} {FOLLOWS} CREATE TABLE filler (id integer PRIMARY KEY, body text)"
    ))?;
    cluster.init(&[])?.expect(0)?;
    let guards = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'keep\\_out%'";
    assert_eq!(target.sql(guards)?, "0");
    let sum = "SELECT count(*), sum(id) FROM filler";
    assert_eq!(target.sql(sum)?, source.sql(sum)?);
    Ok(())
}
