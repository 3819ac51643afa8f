//! Nodes whose replication has failed get their rows again: readers keep the old ones until then, and both sides are equal
//! in the end.

use std::time::Duration;

use anyhow::{Result, ensure};
use steep_tests::cluster::{Cluster, Output};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::session::Session;
use steep_tests::{compare, residue, sample, wait};

const LIMIT: Duration = Duration::from_secs(120);

const TABLES: &str = "CREATE SCHEMA app;
    CREATE TABLE app.orders (id integer PRIMARY KEY, v text);
    INSERT INTO app.orders SELECT n, 'v' || n FROM generate_series(1, 3000) n;
    CREATE TABLE app.items (id integer PRIMARY KEY, v text);
    INSERT INTO app.items SELECT n, 'v' || n FROM generate_series(1, 3000) n;
    CREATE VIEW app.total AS SELECT count(*) AS orders FROM app.orders";

/// The old rows of the replica, which it has until the swap.
const OLD: &str = "SELECT count(*) FROM app.items WHERE v = 'old'";

/// Synchronized, and written to all the time.
fn following() -> Result<(Cluster, Load)> {
    let cluster = Cluster::builder()
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .setting("node_b", "logging_collector", "on")
        .start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    source.sql(TABLES)?;
    let load = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    cluster.init(&[])?.expect(0)?;
    let old = "SET session_replication_role = replica; UPDATE app.items SET v = 'old'";
    cluster.database("node_b").sql(old)?;
    Ok((cluster, load))
}

fn reinit(cluster: &Cluster, further: &[&str]) -> Result<Output> {
    cluster.cli(&[&["reinit", "--node", "node_b", "--yes"], further].concat())
}

/// What a command has said to people.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// Both sides are equal, and what is written from now on arrives.
fn follows(cluster: &Cluster, load: Load) -> Result<()> {
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    load.wait_for(20, LIMIT)?;
    load.stop()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "UPDATE app.orders SET v = 'later' WHERE id = 1; INSERT INTO app.items VALUES (0, 'later')",
    )?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    for (database, what) in [
        (&source, "pg_replication_slots"),
        (&source, "pg_publication"),
        (&target, "pg_subscription"),
        (&target, "pg_replication_origin"),
    ] {
        let one = || Ok(database.value::<u32>(&format!("SELECT count(*) FROM {what}"))? == 1);
        wait::until_true(what, LIMIT, one)?;
    }
    assert_eq!(
        target.value::<u32>("SELECT count(*) FROM steep_repl.jobs")?,
        0
    );
    Ok(())
}

fn subscription(target: &Database, alter: &str) -> Result<()> {
    target.sql(&format!(
        "SELECT format('ALTER SUBSCRIPTION %I {alter}', subname) FROM pg_subscription \\gexec"
    ))?;
    Ok(())
}

/// Neither counts errors nor disables subscriptions for them.
fn is_old(target: &Database) -> Result<bool> {
    let major = "SELECT current_setting('server_version_num')::int / 10000";
    let old = target.value::<u32>(major)? < 15;
    if old {
        println!("NOT TESTED: errors of subscriptions before PostgreSQL 15");
    }
    Ok(old)
}

#[test]
fn a_subscription_that_has_disabled_itself_goes_on_with_its_table_anew_and_loses_nothing_of_others()
-> Result<()> {
    let (cluster, load) = following()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    if is_old(&target)? {
        return Ok(());
    }
    subscription(&target, "SET (disable_on_error = true)")?;
    target.sql("INSERT INTO app.orders VALUES (9000, 'in the way')")?;
    // Others are written to in the same transaction.
    source.sql(
        "BEGIN; UPDATE app.items SET v = 'with it' WHERE id = 7; INSERT INTO app.orders VALUES (9000, 'v');
         UPDATE pgbench_branches SET filler = 'with it'; COMMIT; INSERT INTO app.items VALUES (9000, 'after')",
    )?;
    wait::until_true("the subscription to disable itself", LIMIT, || {
        Ok(target.sql("SELECT subenabled FROM pg_subscription")? == "f")
    })?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    let other = reinit(&cluster, &["--tables", "app.items"])?.expect(1)?;
    ensure!(
        said(&other).contains("fails at a row of app.orders"),
        "{other}"
    );
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    ensure!(target.value::<u32>(OLD)? > 2_900, "the old rows are gone");
    reinit(&cluster, &["--tables", "app.orders"])?.expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    let set = "SELECT subdisableonerr FROM pg_subscription";
    assert_eq!(target.sql(set)?, "t");
    reinit(&cluster, &["--tables", "app.items"])?.expect(0)?;
    follows(&cluster, load)
}

#[test]
fn a_row_of_another_table_that_stops_the_subscription_next_is_waited_for() -> Result<()> {
    let (cluster, load) = following()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    if is_old(&target)? {
        return Ok(());
    }
    for table in ["app.orders", "app.items"] {
        target.sql(&format!("INSERT INTO {table} VALUES (9000, 'in the way')"))?;
        source.sql(&format!("INSERT INTO {table} VALUES (9000, 'v')"))?;
    }
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    reinit(&cluster, &["--tables", "app.orders", "--detach"])?.expect(0)?;
    cluster.wait_phase("node_b", "catch_up")?;
    let errors = "SELECT sum(apply_error_count) FROM pg_stat_subscription_stats";
    let before: u64 = target.value(errors)?;
    wait::until_true("the subscription to fail at the other table", LIMIT, || {
        Ok(target.value::<u64>(errors)? > before + 2)
    })?;
    assert_eq!(cluster.state("node_b")?, "reinitializing");
    target.sql("DELETE FROM app.items WHERE id = 9000")?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    reinit(&cluster, &["--tables", "app.items"])?.expect(0)?;
    follows(&cluster, load)
}

/// The slot is gone, and with it what was written since.
fn lose_slot(cluster: &Cluster) -> Result<()> {
    let source = cluster.database("node_a");
    subscription(&cluster.database("node_b"), "DISABLE")?;
    wait::until_true("the slot to be free", LIMIT, || {
        Ok(source.value::<u32>("SELECT count(*) FROM pg_replication_slots WHERE active")? == 0)
    })?;
    source.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    wait::until_true("the loss to be known", LIMIT, || {
        let view = cluster.node_view("node_b")?;
        Ok(view.is_some_and(|view| view.to_string().contains("must be initialised anew")))
    })
}

#[test]
fn a_node_whose_slot_is_lost_follows_by_a_new_one_and_its_readers_see_the_old_rows_until_then()
-> Result<()> {
    let (mut cluster, load) = following()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    lose_slot(&cluster)?;
    source.sql(
        "UPDATE app.orders SET v = 'missed' WHERE id = 2; DELETE FROM app.items WHERE id = 3",
    )?;
    let one = reinit(&cluster, &["--tables", "app.items"])?.expect(1)?;
    ensure!(said(&one).contains("--full"), "{one}");
    let slowly = [
        "--full",
        "--parallel",
        "1",
        "--max-rate",
        "100kB",
        "--detach",
    ];
    reinit(&cluster, &slowly)?.expect(0)?;
    cluster.wait_phase("node_b", "copy")?;
    ensure!(target.value::<u32>(OLD)? == 3_000, "the old rows are gone");
    // Until the swap nothing is lost by a cancel.
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    reinit(&cluster, &slowly)?.expect(0)?;
    cluster.wait_phase("node_b", "copy")?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.kill_coordinator()?;
        cluster.start_coordinator()?;
        cluster.start_agent(node)?;
        cluster.wait_online(&["node_a", "node_b"])?;
    }
    cluster.wait_phase("node_b", "copy")?;
    ensure!(target.value::<u32>(OLD)? == 3_000, "the old rows are gone");
    let adjust = ["init", "adjust", "--node", "node_b", "--max-rate", "none"];
    cluster.cli(&adjust)?.expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    follows(&cluster, load)?;
    // It is a replica like any other.
    reinit(&cluster, &["--tables", "app.items"])?.expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    cluster
        .cli(&["detach", "--node", "node_b", "--yes"])?
        .expect(0)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()
}

/// The new rows wait for a writer on the node, by the processes that run now.
fn swaps_in_vain(cluster: &Cluster) -> Result<()> {
    wait::until_true("the swap to wait for a writer", LIMIT, || {
        let waiting = &cluster.progress("node_b")?["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        Ok(reason.contains("somebody on this server writes"))
    })
}

#[test]
fn a_lost_node_whose_swap_is_given_up_keeps_its_rows_and_begins_again() -> Result<()> {
    let (mut cluster, load) = following()?;
    let target = cluster.database("node_b");
    lose_slot(&cluster)?;
    let open =
        "SET session_replication_role = replica; BEGIN; UPDATE app.orders SET v = v WHERE id = 1";
    let writer = Session::sleeping(&target, "writer", open)?;
    reinit(&cluster, &["--full", "--detach"])?.expect(0)?;
    swaps_in_vain(&cluster)?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.start_agent(node)?;
        swaps_in_vain(&cluster)?;
    }
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    swaps_in_vain(&cluster)?;
    let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
    let late = cluster.cli(&cancel)?.expect(1)?;
    ensure!(said(&late).contains("too late to cancel"), "{late}");
    cluster
        .cli(&[&cancel[..], &["--force-cleanup"]].concat())?
        .expect(0)?;
    drop(writer);
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    assert_eq!(target.value::<u32>(OLD)?, 3_000);
    reinit(&cluster, &["--full"])?.expect(0)?;
    follows(&cluster, load)
}

#[test]
fn a_node_whose_init_failed_begins_it_again() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(TABLES)?;
    target.sql(TABLES)?;
    cluster.init(&[])?.expect(1)?;
    cluster.wait_state("node_b", &["failed"], LIMIT)?;
    let one = reinit(&cluster, &["--tables", "app.items"])?.expect(1)?;
    ensure!(said(&one).contains("--full"), "{one}");
    reinit(&cluster, &["--full"])?.expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    compare::rows(&source, &target)?.none()
}
