//! Two nodes that both have rows and are written to are merged: in the end both are equal and follow each other.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::pg::{Database, Grouping, Installation};
use steep_tests::process::Process;
use steep_tests::{compare, residue, wait};

/// Everything ends within this time.
const LIMIT: Duration = Duration::from_secs(120);

const SHAPE: &str = "CREATE TABLE item (id integer PRIMARY KEY, v text NOT NULL, changed timestamptz NOT NULL DEFAULT now());
    CREATE TABLE work (id serial PRIMARY KEY, side text NOT NULL, n integer NOT NULL DEFAULT 0);
    CREATE TABLE told (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, side text);
    CREATE TABLE parent (id uuid PRIMARY KEY, v text);
    CREATE TABLE child (id uuid PRIMARY KEY, parent uuid NOT NULL REFERENCES parent);
    CREATE SCHEMA \"odd \"\"s\";
    CREATE TABLE \"odd \"\"s\".\"odd \"\"one\" (tenant uuid, \"no \"\"1\" numeric, at timestamptz, body bytea, \"Ünï\" text,
        PRIMARY KEY (tenant, \"no \"\"1\", at));";

/// Rows 1 to 3,000 here, 2,001 to 5,000 there. Of the thousand that both have, 100 differ: 50 changed later here, 50 there.
const ON_A: &str = "INSERT INTO item SELECT n, 'row ' || n, '2026-01-01' FROM generate_series(1, 3000) AS n;
    UPDATE item SET v = 'a ' || id, changed = CASE WHEN id <= 2050 THEN timestamptz '2026-03-01' ELSE '2026-02-01' END
        WHERE id BETWEEN 2001 AND 2100;
    INSERT INTO work (side) SELECT 'a' FROM generate_series(1, 50);
    INSERT INTO parent VALUES (md5('both')::uuid, 'both'), (md5('a')::uuid, 'a');
    INSERT INTO \"odd \"\"s\".\"odd \"\"one\" SELECT md5(n::text)::uuid, n / 7.0, timestamptz '2026-01-01' + n * interval '1 s',
        decode(md5(n::text), 'hex'), 'ä' FROM generate_series(1, 60) AS n";
const ON_B: &str = "INSERT INTO item SELECT n, 'row ' || n, '2026-01-01' FROM generate_series(2001, 5000) AS n;
    UPDATE item SET v = 'b ' || id, changed = CASE WHEN id <= 2050 THEN timestamptz '2026-02-01' ELSE '2026-03-01' END
        WHERE id BETWEEN 2001 AND 2100;
    ALTER SEQUENCE work_id_seq RESTART 1001;
    INSERT INTO work (side) SELECT 'b' FROM generate_series(1, 50);
    INSERT INTO parent VALUES (md5('both')::uuid, 'both'), (md5('b')::uuid, 'b');
    INSERT INTO child SELECT md5(n::text)::uuid, md5('b')::uuid FROM generate_series(1, 20) AS n;
    INSERT INTO \"odd \"\"s\".\"odd \"\"one\" SELECT md5(n::text)::uuid, n / 7.0, timestamptz '2026-01-01' + n * interval '1 s',
        decode(md5(n::text), 'hex'), 'ä' FROM generate_series(31, 90) AS n";

/// New rows, and changes of rows that this side has made.
const WRITES: &str = "INSERT INTO work (side) VALUES ('SIDE');
    UPDATE work SET n = n + 1 WHERE id = (SELECT id FROM work WHERE side = 'SIDE' ORDER BY random() LIMIT 1);
    INSERT INTO told (side) VALUES ('SIDE');
    DELETE FROM told WHERE id = (SELECT id FROM told WHERE side = 'SIDE' ORDER BY random() LIMIT 1) AND random() < 0.3;";

/// A cluster of PostgreSQL 16 or newer whose nodes have these rows; `None` where there is none.
fn pair(settings: &[(&str, &str)]) -> Result<Option<Cluster>> {
    let mut builder = Cluster::builder();
    for node in ["node_a", "node_b"] {
        for (name, value) in settings {
            builder = builder.setting(node, name, value);
        }
    }
    let cluster = builder.start()?;
    for (node, rows) in [("node_a", ON_A), ("node_b", ON_B)] {
        let database = cluster.database(node);
        let major: u32 =
            database.value("SELECT current_setting('server_version_num')::int / 10000")?;
        if major < 16 {
            println!("NOT TESTED: merges before PostgreSQL 16");
            return Ok(None);
        }
        database.sql(SHAPE)?;
        database.sql(rows)?;
    }
    Ok(Some(cluster))
}

fn order<'a>(strategy: &'a str, further: &[&'a str]) -> Vec<&'a str> {
    let mut order = vec!["init", "node_a", "--from", "node_b"];
    order.extend(["--mode", "bidirectional-merge", "--strategy", strategy]);
    order.extend(further);
    order
}

fn merge(cluster: &Cluster, strategy: &str, further: &[&str]) -> Result<Output> {
    cluster.cli(&order(strategy, further))
}

/// Writes to a node until it is dropped.
fn load(cluster: &Cluster, node: &str, side: &str) -> Result<Process> {
    let script = cluster.dir().join(format!("writes_{side}.sql"));
    fs::write(&script, WRITES.replace("SIDE", side))?;
    let mut command = cluster.database(node).client("pgbench");
    command
        .args([
            "--no-vacuum",
            "--time",
            "86400",
            "--client",
            "2",
            "--rate",
            "40",
        ])
        .arg("--file")
        .arg(&script);
    let log = cluster.dir().join(format!("writes_{side}.log"));
    Process::spawn("pgbench", &mut command, &log, Grouping::Shared)
}

fn stop(cluster: &Cluster, loads: Vec<Process>) -> Result<()> {
    for load in loads {
        load.kill()?;
    }
    for node in ["node_a", "node_b"] {
        let database = cluster.database(node);
        wait::until_true("the last transactions", LIMIT, || {
            let alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
            Ok(database.value::<u64>(alive)? == 0)
        })?;
    }
    cluster.wait_drained("node_a")?;
    cluster.wait_drained("node_b")
}

/// Both nodes have the same rows and follow each other.
fn equal(cluster: &Cluster) -> Result<()> {
    for (node, other) in [("node_a", "node_b"), ("node_b", "node_a")] {
        let view = cluster.node_view(node)?.context("a node")?;
        assert_eq!(view["state"], "synchronized", "{view}");
        assert_eq!(view["source_node"], other, "{view}");
    }
    cluster.cli(&["verify", "node_a", "node_b"])?.expect(0)?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}

fn items(database: &Database, at: &str) -> Result<String> {
    database.sql(&format!(
        "SELECT string_agg(left(v, 1), '' ORDER BY id) FROM item WHERE id IN ({at})"
    ))
}

/// What is written to one node arrives on the other, once.
fn flows_both_ways(cluster: &Cluster) -> Result<()> {
    let (a, b) = (cluster.database("node_a"), cluster.database("node_b"));
    for (here, there, side) in [(&a, &b, "from a"), (&b, &a, "from b")] {
        here.sql(&format!(
            "INSERT INTO work (side) SELECT '{side}' FROM generate_series(1, 20)"
        ))?;
        let count = format!("SELECT count(*) FROM work WHERE side = '{side}'");
        wait::until_true("what was written", LIMIT, || {
            Ok(there.value::<u64>(&count)? == 20)
        })?;
        assert_eq!(here.value::<u64>(&count)?, 20);
    }
    cluster.wait_drained("node_a")?;
    cluster.wait_drained("node_b")?;
    let conflicts = "SELECT coalesce(sum(apply_error_count), 0) FROM pg_stat_subscription_stats";
    assert_eq!(
        (a.sql(conflicts)?, b.sql(conflicts)?),
        ("0".into(), "0".into())
    );
    // Neither has handed out a value of the other.
    let odd = "SELECT count(DISTINCT id % 2) FROM work WHERE side = 'from a' OR side = 'from b' GROUP BY side";
    assert_eq!(a.rows(odd)?, [["1"], ["1"]]);
    Ok(())
}

#[test]
fn two_nodes_that_are_written_to_are_equal_in_the_end_and_follow_each_other() -> Result<()> {
    let Some(cluster) = pair(&[])? else {
        return Ok(());
    };
    let (a, b) = (cluster.database("node_a"), cluster.database("node_b"));
    let planned = merge(&cluster, "prefer-node-a", &["--dry-run", "--json"])?;
    let planned = planned.expect(0)?.last_object()?;
    // 2,000 rows each, the other tables' and what both have.
    let item = planned["tables"].as_array().context("tables")?.iter();
    let item: Vec<&Value> = item.filter(|table| table["table"] == "item").collect();
    assert_eq!(
        ["only_a", "only_b", "conflicts", "to_a", "to_b"].map(|key| item[0][key].as_u64()),
        [Some(2000), Some(2000), Some(100), Some(2000), Some(2100)],
        "{planned}"
    );
    residue::of_jobs(&a)?.none()?;
    residue::of_jobs(&b)?.none()?;
    let asked = merge(&cluster, "prefer-node-a", &[])?.expect(2)?;
    ensure!(asked.stderr.contains("--yes"), "{asked}");

    let loads = vec![
        load(&cluster, "node_a", "a")?,
        load(&cluster, "node_b", "b")?,
    ];
    let merged = merge(&cluster, "prefer-node-a", &["--yes", "--json"])?;
    let merged = merged.expect(0)?.last_object()?;
    assert_eq!(merged["event"], "merge.completed", "{merged}");
    let written = ["rows_written_a", "rows_written_b"].map(|key| merged[key].as_u64());
    ensure!(
        written[0] >= Some(2000) && written[1] >= Some(2100),
        "{merged}"
    );
    stop(&cluster, loads)?;
    equal(&cluster)?;
    for database in [&a, &b] {
        assert_eq!(
            items(database, "1, 2000, 2001, 2100, 2101, 5000")?,
            "rraarr"
        );
        assert_eq!(database.value::<u64>("SELECT count(*) FROM item")?, 5000);
        assert_eq!(database.value::<u64>("SELECT count(*) FROM child")?, 20);
    }
    flows_both_ways(&cluster)?;
    equal(&cluster)?;
    let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
    ensure!(events.stdout.contains("merge.completed"), "{events}");
    let refused = cluster.cli(&["switchover", "--from", "node_a", "--to", "node_b", "--yes"])?;
    ensure!(refused.stderr.contains("are merged"), "{refused}");
    Ok(())
}

#[test]
fn the_row_that_was_modified_last_wins() -> Result<()> {
    let Some(cluster) = pair(&[])? else {
        return Ok(());
    };
    let refused = merge(&cluster, "last-modified", &["--yes"])?.expect(2)?;
    ensure!(
        refused.stderr.contains("track_commit_timestamp"),
        "{refused}"
    );
    // One that says the same on both sides is the operator's to decide.
    for node in ["node_a", "node_b"] {
        cluster
            .database(node)
            .sql("UPDATE item SET changed = '2026-05-01' WHERE id = 2060")?;
    }
    let column = ["--modified-column", "changed", "--yes"];
    let undecided = merge(&cluster, "last-modified", &column)?.expect(1)?;
    ensure!(
        undecided.stderr.contains("1 rows are undecided"),
        "{undecided}"
    );
    cluster
        .database("node_b")
        .sql("UPDATE item SET changed = '2026-05-02' WHERE id = 2060")?;
    merge(&cluster, "last-modified", &column)?.expect(0)?;
    equal(&cluster)?;
    assert_eq!(
        items(&cluster.database("node_a"), "2001, 2050, 2051, 2060, 2100")?,
        "aabbb"
    );
    Ok(())
}

#[test]
fn without_a_column_the_commit_tells_and_what_it_cannot_tell_is_the_operators() -> Result<()> {
    let Some(mut cluster) = pair(&[("wal_retrieve_retry_interval", "1s")])? else {
        return Ok(());
    };
    // Rows from before the setting have no time.
    let track = "ALTER SYSTEM SET track_commit_timestamp = on";
    for node in ["node_a", "node_b"] {
        let refused = merge(&cluster, "last-modified", &["--yes"])?.expect(2)?;
        let says = ["track_commit_timestamp is off", "restart that server"];
        ensure!(
            says.iter().all(|text| refused.stderr.contains(text)),
            "{refused}"
        );
        cluster.database(node).sql(track)?;
        cluster.node_mut(node).server_mut().restart()?;
    }
    wait::until_true("the servers to be seen again", LIMIT, || {
        let tried = merge(&cluster, "last-modified", &["--dry-run"])?;
        Ok(tried.code == 0)
    })?;
    let (a, b) = (cluster.database("node_a"), cluster.database("node_b"));
    let touch = |database: &Database, ids: &str| {
        database.sql(&format!("UPDATE item SET changed = changed WHERE id {ids}"))
    };
    touch(&a, "BETWEEN 2001 AND 2100")?;
    touch(&b, "BETWEEN 2001 AND 2099")?;
    touch(&a, "BETWEEN 2001 AND 2050")?;
    // A frozen row keeps its time.
    for database in [&a, &b] {
        database.sql("VACUUM FREEZE item")?;
    }
    let undecided = merge(&cluster, "last-modified", &["--yes"])?.expect(1)?;
    let says = ["1 rows are undecided", "of 1, nobody can tell"];
    ensure!(
        says.iter().all(|text| undecided.stderr.contains(text)),
        "{undecided}"
    );
    let path = cluster.dir().join("plan.jsonl");
    let file = path.to_string_lossy().into_owned();
    let plan = ["--plan", &file, "--sequence-ranges", "1000000", "--yes"];
    merge(&cluster, "last-modified", &plan)?.expect(1)?;
    let text = fs::read_to_string(&path)?;
    fs::write(
        &path,
        text.replace("\"decision\":null", "\"decision\":\"a\""),
    )?;
    merge(&cluster, "last-modified", &plan)?.expect(0)?;
    equal(&cluster)?;
    assert_eq!(items(&a, "2001, 2050, 2051, 2099, 2100")?, "aabba");
    // The first node has a million values, the second those beyond.
    for (database, side) in [(&b, "second"), (&a, "first")] {
        let insert = format!("INSERT INTO work (side) SELECT '{side}' FROM generate_series(1, 50)");
        database.sql(&insert)?;
    }
    cluster.wait_drained("node_a")?;
    cluster.wait_drained("node_b")?;
    let gap = "SELECT min(id) FILTER (WHERE side = 'second') - max(id) FILTER (WHERE side = 'first') FROM work";
    let gap: i64 = a.value(gap)?;
    ensure!((900_000..=1_000_000).contains(&gap), "{gap}");
    equal(&cluster)
}

#[test]
fn the_operator_decides_in_the_plan() -> Result<()> {
    let Some(cluster) = pair(&[])? else {
        return Ok(());
    };
    let (a, b) = (cluster.database("node_a"), cluster.database("node_b"));
    // A clash in another unique index than the key.
    for database in [&a, &b] {
        database.sql("CREATE TABLE account (id integer PRIMARY KEY, email text UNIQUE)")?;
    }
    a.sql("INSERT INTO account VALUES (1, 'x@example.org')")?;
    b.sql("INSERT INTO account VALUES (2, 'x@example.org')")?;
    let clash = merge(&cluster, "prefer-node-b", &["--yes"])?.expect(1)?;
    ensure!(
        clash
            .stderr
            .contains("public.account: the row (1) has the same email as (2) on node_b"),
        "{clash}"
    );
    let path: PathBuf = cluster.dir().join("plan.jsonl");
    let file = path.to_string_lossy().into_owned();
    let plan = ["--plan", &file, "--yes"];
    merge(&cluster, "manual", &plan)?.expect(3)?;
    residue::of_jobs(&a)?.none()?;
    let text = fs::read_to_string(&path)?;
    ensure!(
        !text.contains("row 1\"") && !text.contains("example.org"),
        "no values: {text}"
    );
    // Undecided rows are left: nothing is done.
    merge(&cluster, "manual", &plan)?.expect(3)?;
    residue::of_jobs(&a)?.none()?;
    let decide = |line: &str| {
        let first = line.contains("\"account\"") || line.contains("\"id\":\"2001\"");
        line.replace(
            "\"decision\":null",
            if first {
                "\"decision\":\"b\""
            } else {
                "\"decision\":\"a\""
            },
        )
    };
    let decided: Vec<String> = text.lines().map(decide).collect();
    // Row 7 is only on node_a, and is not wanted.
    let unwanted = |line: &String| match line.contains("\"table\":\"item\"")
        && line.contains("{\"id\":\"7\"}")
    {
        true => line.replace("\"decision\":\"a\"", "\"decision\":\"b\""),
        false => line.clone(),
    };
    fs::write(
        &path,
        decided.iter().map(unwanted).collect::<Vec<_>>().join("\n"),
    )?;
    merge(&cluster, "manual", &plan)?.expect(0)?;
    equal(&cluster)?;
    for database in [&a, &b] {
        assert_eq!(items(database, "2001, 2002, 2100")?, "baa");
        assert_eq!(
            database.value::<u64>("SELECT count(*) FROM item WHERE id = 7")?,
            0
        );
        assert_eq!(database.sql("SELECT id FROM account")?, "2");
    }
    Ok(())
}

#[test]
fn whoever_dies_in_the_middle_the_merge_goes_on_when_it_is_run_again() -> Result<()> {
    let Some(mut cluster) = pair(&[])? else {
        return Ok(());
    };
    let (a, b) = (cluster.database("node_a"), cluster.database("node_b"));
    let loads = vec![
        load(&cluster, "node_a", "a")?,
        load(&cluster, "node_b", "b")?,
    ];
    let slow = order("prefer-node-b", &["--yes", "--max-rate", "4MB"]);
    let running = cluster.cli_spawn(&slow)?;
    wait::until_true("rows that are merged", LIMIT, || {
        Ok(a.value::<u64>("SELECT count(*) FROM item")? != 3000
            || b.value::<u64>("SELECT count(*) FROM item")? != 3000)
    })?;
    running.kill()?;
    for node in ["node_a", "node_b"] {
        assert_ne!(cluster.state(node)?, "synchronized");
        let running = cluster.cli_spawn(&slow)?;
        cluster.kill_agent(node)?;
        running.finish(LIMIT)?;
        cluster.start_agent(node)?;
        cluster.wait_online(&["node_a", "node_b"])?;
    }
    let running = cluster.cli_spawn(&slow)?;
    cluster.kill_coordinator()?;
    running.finish(LIMIT)?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    merge(&cluster, "prefer-node-b", &["--yes"])?.expect(0)?;
    stop(&cluster, loads)?;
    equal(&cluster)?;
    assert_eq!(items(&a, "2001, 2100")?, "bb");
    flows_both_ways(&cluster)
}

#[test]
fn a_cancel_leaves_nothing_but_the_rows() -> Result<()> {
    let Some(cluster) = pair(&[])? else {
        return Ok(());
    };
    let (a, b) = (cluster.database("node_a"), cluster.database("node_b"));
    let steps = "SELECT string_agg(increment_by::text, ',' ORDER BY sequencename) FROM pg_sequences WHERE schemaname = 'public'";
    let before = (a.sql(steps)?, b.sql(steps)?);
    // All rows are lines that were taken out: changes flow, and nothing is written.
    let path = cluster.dir().join("plan.jsonl");
    let file = path.to_string_lossy().into_owned();
    merge(&cluster, "manual", &["--plan", &file, "--yes"])?.expect(3)?;
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text.lines().next().unwrap_or_default())?;
    let left = merge(&cluster, "manual", &["--plan", &file, "--yes"])?.expect(3)?;
    ensure!(left.stderr.contains("plan.jsonl.2"), "{left}");
    assert_ne!(cluster.state("node_a")?, "synchronized");
    assert_ne!(a.sql(steps)?, before.0);
    cluster
        .cli(&["init", "cancel", "--node", "node_a", "--yes"])?
        .expect(0)?;
    cluster.wait_state("node_a", &["uninitialized"], LIMIT)?;
    cluster.wait_state("node_b", &["uninitialized", "failed"], LIMIT)?;
    for database in [&a, &b] {
        wait::until_true("everything to be removed", LIMIT, || {
            Ok(residue::of_jobs(database)?.is_empty())
        })?;
        assert_eq!(database.value::<u64>("SELECT count(*) FROM item")?, 3000);
    }
    assert_eq!((a.sql(steps)?, b.sql(steps)?), before);
    // They can be merged all the same.
    merge(&cluster, "prefer-node-a", &["--yes"])?.expect(0)?;
    equal(&cluster)
}

#[test]
fn older_servers_and_rows_that_cannot_be_told_apart_are_refused() -> Result<()> {
    let Some(cluster) = pair(&[])? else {
        return Ok(());
    };
    for node in ["node_a", "node_b"] {
        cluster
            .database(node)
            .sql("CREATE TABLE log (line text); INSERT INTO log VALUES ('x')")?;
    }
    let refused = merge(&cluster, "prefer-node-a", &["--yes"])?.expect(1)?;
    ensure!(
        refused.stderr.contains("cannot be merged: public.log"),
        "{refused}"
    );
    drop(cluster);
    let Ok(old) = Installation::of_major(15) else {
        println!("NOT TESTED: PostgreSQL 15 is not on this machine");
        return Ok(());
    };
    let cluster = Cluster::builder()
        .postgres("node_a", &old)
        .postgres("node_b", &old)
        .start()?;
    for node in ["node_a", "node_b"] {
        cluster
            .database(node)
            .sql("CREATE TABLE item (id integer PRIMARY KEY)")?;
    }
    cluster
        .database("node_a")
        .sql("INSERT INTO item VALUES (1)")?;
    let refused = merge(&cluster, "prefer-node-a", &["--yes"])?.expect(1)?;
    ensure!(refused.stderr.contains("PostgreSQL 16"), "{refused}");
    residue::of_jobs(&cluster.database("node_a"))?.none()
}
