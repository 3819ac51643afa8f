//! What a repair says and leaves where it does not write: a plan that nobody has seen, rows that are equal, a subscription
//! that is blocked, an agent that is killed.

use std::time::Duration;

use anyhow::{Result, ensure};
use steep_tests::cluster::{Cluster, Output};
use steep_tests::wait;

const LIMIT: Duration = Duration::from_secs(90);

fn pair() -> Result<Cluster> {
    let cluster = Cluster::builder()
        .setting("node_b", "logging_collector", "on")
        .agent_argument("node_b", "--schema-check-interval=1s")
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .start()?;
    cluster.database("node_a").sql(
        "CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item SELECT n, 'v' || n FROM generate_series(1, 30000) n",
    )?;
    cluster.init(&[])?.expect(0)?;
    Ok(cluster)
}

fn repair(cluster: &Cluster, further: &[&str]) -> Result<Output> {
    cluster.cli(&[&["repair", "node_a", "node_b"], further].concat())
}

#[test]
fn a_plan_is_made_or_written_and_never_both() -> Result<()> {
    let cluster = pair()?;
    let target = cluster.database("node_b");
    let path = cluster.dir().join("plan.jsonl");
    let plan = path.to_string_lossy().into_owned();
    let equal = repair(&cluster, &["--yes"])?.expect(0)?;
    ensure!(equal.stdout.contains("nothing differs"), "{equal}");

    target.sql("DELETE FROM item WHERE id = 7")?;
    let missing = || target.sql("SELECT count(*) FROM item WHERE id = 7");
    let refused = repair(&cluster, &["--plan", &plan, "--yes"])?.expect(2)?;
    ensure!(refused.stderr.contains("there is no file"), "{refused}");
    ensure!(!path.exists() && missing()? == "0");
    // Without --yes it is made, and nothing else.
    let made = repair(&cluster, &["--plan", &plan])?.expect(3)?;
    ensure!(made.stderr.contains("give the command again"), "{made}");
    ensure!(path.exists() && missing()? == "0");
    repair(&cluster, &["--plan", &plan, "--yes"])?.expect(0)?;
    assert_eq!(missing()?, "1");

    let header: Vec<String> = std::fs::read_to_string(&path)?
        .lines()
        .take(1)
        .map(str::to_owned)
        .collect();
    std::fs::write(&path, header.join("\n"))?;
    let empty = repair(&cluster, &["--plan", &plan, "--yes"])?.expect(0)?;
    ensure!(empty.stdout.contains("the plan lists no rows"), "{empty}");
    // The wrong way round.
    for (command, said) in [
        (
            &["repair", "node_b", "node_a"][..],
            "steep-repl repair node_a node_b",
        ),
        (
            &["verify", "node_b", "node_a", "--every", "1d"],
            "steep-repl verify node_a node_b --every",
        ),
    ] {
        let refused = cluster.cli(command)?.expect(2)?;
        ensure!(
            refused.stderr.replace("\n", " ").contains(said),
            "{refused}"
        );
    }
    Ok(())
}

#[test]
fn a_row_that_blocks_the_subscription_is_named_with_what_helps() -> Result<()> {
    let cluster = pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    target.sql("INSERT INTO item VALUES (40000, 'of the replica')")?;
    source.sql("INSERT INTO item VALUES (40000, 'of the source')")?;
    wait::until_true("the cause to be known", LIMIT, || {
        let status = cluster.cli(&["status", "node_b"])?.expect(0)?.stdout;
        Ok(status.contains("insert_exists") || status.contains("duplicate key value"))
    })?;
    let refused = repair(&cluster, &["--yes"])?.expect(1)?;
    let words = refused
        .stderr
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for said in ["public.item", "Delete it there"] {
        ensure!(words.contains(said), "{said}: {refused}");
    }
    ensure!(!refused.stderr.contains("of the replica"), "{refused}");
    target.sql("DELETE FROM item WHERE id = 40000")?;
    cluster.wait_drained("node_a")?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    repair(&cluster, &["--yes"])?.expect(0)?;
    assert_eq!(
        target.sql("SELECT v FROM item WHERE id = 40000")?,
        "of the source"
    );
    Ok(())
}

#[test]
fn the_origin_of_a_repair_that_was_killed_is_removed_once_the_agent_is_back() -> Result<()> {
    let mut cluster = pair()?;
    let target = cluster.database("node_b");
    target.sql("DELETE FROM item WHERE id % 3 = 0")?;
    let running =
        cluster.cli_spawn(&["repair", "node_a", "node_b", "--yes", "--max-rate", "1MB"])?;
    let origins = || -> Result<u32> {
        target.value(
            "SELECT count(*) FROM pg_replication_origin WHERE roname LIKE 'steep_repl_repair%'",
        )
    };
    wait::until_true("rows to be written", LIMIT, || Ok(origins()? == 1))?;
    cluster.kill_agent("node_b")?;
    running.finish(LIMIT)?;
    assert_eq!(origins()?, 1);
    cluster.start_agent("node_b")?;
    wait::until_true("the origin to be removed", LIMIT, || Ok(origins()? == 0))
}
