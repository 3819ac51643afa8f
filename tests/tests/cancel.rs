//! Cancelling in any phase restores both servers.

use std::time::Duration;

use anyhow::Result;
use steep_tests::cluster::{Cluster, Running};
use steep_tests::session::Session;
use steep_tests::{compare, residue, sample, wait};

/// The contract: five seconds for running COPYs, thirty at worst.
const COPY_LIMIT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

/// Cancels, and checks that nothing is left and that the follower was notified.
fn cancel(cluster: &Cluster, following: Running, limit: Duration) -> Result<()> {
    let cancelled = cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    assert!(cancelled.took < limit, "{cancelled}");
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    residue::of_everything(&cluster.database("node_b"))?.none()?;
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    following.finish(Duration::from_secs(10))?.expect(4)?;
    // What agents have seen before the cleanup is not taken for leftovers.
    let again = cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    assert!(again.text().contains("nothing to cancel"), "{again}");
    Ok(())
}

#[test]
fn while_the_slot_waits_for_an_old_transaction() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    // A slot becomes consistent only after every open transaction has ended.
    let open = Session::sleeping(&source, "open", "BEGIN; SELECT txid_current()")?;
    let following = cluster.init_spawn(&[])?;
    cluster.wait_state("node_b", &["preparing"], Duration::from_secs(20))?;
    cancel(&cluster, following, LIMIT)?;
    drop(open);
    Ok(())
}

#[test]
fn a_node_removed_during_its_copy_comes_back_with_the_command_that_cleans_it_up() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 2)?;
    cluster
        .init(&["--max-rate", "2MB", "--detach"])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    cluster.kill_agent("node_b")?;
    let remove = ["nodes", "remove", "node_b", "--yes", "--json"];
    let removed = wait::until("node_b to be removable", LIMIT, || {
        let output = cluster.cli(&remove)?;
        Ok((output.code == 0).then_some(output))
    })?;
    let left = removed.last_object()?["left"].to_string();
    for said in ["tables and rows", "steep_repl_keep_out", "--force-cleanup"] {
        assert!(left.contains(said), "{said}: {left}");
    }
    residue::of_jobs(&source)?.none()?;
    let events = cluster.cli(&["events", "node_a", "--json"])?.text();
    assert!(
        !events.contains("everything that the job created is removed"),
        "{events}"
    );

    cluster.start_agent("node_b")?;
    wait::until_true("node_b to say what it still has", LIMIT, || {
        let view = cluster.node_view("node_b")?;
        Ok(view.is_some_and(|view| view["state"] == "failed"))
    })?;
    let status = cluster.cli(&["status", "node_b"])?.text();
    let clean = "init cancel --node node_b --force-cleanup";
    assert!(
        status.contains(&format!("steep-repl {clean}\n")),
        "{status}"
    );
    assert!(!status.contains("init node_b"), "{status}");
    let clean: Vec<&str> = clean.split(' ').chain(["--yes"]).collect();
    cluster.cli(&clean)?.expect(0)?;
    residue::of_everything(&target)?.none()?;
    let again = cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    let again = again.expect(1)?.text();
    assert!(again.contains("nothing to cancel"), "{again}");
    Ok(())
}

#[test]
fn while_rows_are_copied_and_a_second_attempt_works() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    let following = cluster.init_spawn(&["--max-rate", "2MB"])?;
    cluster.wait_copying("node_b")?;
    cancel(&cluster, following, COPY_LIMIT)?;

    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &cluster.database("node_b"))?.none()?;
    compare::schema(&source, &cluster.database("node_b"))?.none()
}

#[test]
fn while_an_index_is_built() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_b", "cluster_name", sample::SLOW)
        .start()?;
    let source = cluster.database("node_a");
    sample::slowly(&source)?;
    source.sql(
        "CREATE TABLE t (id integer PRIMARY KEY);
         CREATE INDEX t_slowly ON t (public.slowly(id));
         INSERT INTO t SELECT generate_series(1, 1000);",
    )?;
    let following = cluster.init_spawn(&[])?;
    cluster.wait_phase("node_b", "indexes")?;
    cancel(&cluster, following, LIMIT)
}

#[test]
fn while_a_foreign_key_is_validated() -> Result<()> {
    let cluster = Cluster::pair()?;
    cluster.database("node_a").sql(
        "CREATE TABLE parent (id integer PRIMARY KEY);
         CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent);
         INSERT INTO parent SELECT generate_series(1, 1000);
         INSERT INTO child SELECT n, n FROM generate_series(1, 1000) AS n;",
    )?;
    // An event trigger of the target's administrator makes that statement slow; it must stay.
    cluster.database("node_b").sql(
        "CREATE FUNCTION public.slowly() RETURNS event_trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF current_query() ILIKE '%VALIDATE CONSTRAINT%' THEN PERFORM pg_sleep(60); END IF;
         END $$;
         CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('ALTER TABLE')
             EXECUTE FUNCTION public.slowly();
         ALTER EVENT TRIGGER slow ENABLE ALWAYS;",
    )?;
    let following = cluster.init_spawn(&[])?;
    cluster.wait_phase("node_b", "constraints")?;
    cancel(&cluster, following, LIMIT)
}

#[test]
fn while_the_subscription_catches_up() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_b", "cluster_name", sample::SLOW)
        .start()?;
    let source = cluster.database("node_a");
    // A trigger that fires even for a subscription makes it slow.
    source.sql(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF current_setting('cluster_name') = 'slow' THEN PERFORM pg_sleep(0.5); END IF;
             RETURN NEW;
         END $$;
         CREATE TABLE t (id integer PRIMARY KEY, body text);
         INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) AS n;
         CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slowly();
         ALTER TABLE t ENABLE ALWAYS TRIGGER slow;",
    )?;
    let following = cluster.init_spawn(&["--max-rate", "1MB"])?;
    cluster.wait_copying("node_b")?;
    source.sql("INSERT INTO t SELECT n, 'late' FROM generate_series(10001, 11000) AS n")?;
    cluster.wait_state("node_b", &["catching_up"], Duration::from_secs(40))?;
    cancel(&cluster, following, LIMIT)
}

#[test]
fn rows_are_kept_when_that_is_asked_for() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 2)?;
    let following = cluster.init_spawn(&["--max-rate", "3MB"])?;
    cluster.wait_copying("node_b")?;
    cluster.wait_committed("node_b", LIMIT)?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--keep-data", "--yes"])?
        .expect(0)?;
    following.finish(Duration::from_secs(10))?.expect(4)?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;
    let (there, kept) = (compare::contents(&source)?, compare::contents(&target)?);
    assert!(kept.keys().eq(there.keys()), "{kept:?}");
    for (table, contents) in &kept {
        assert!(contents.rows <= there[table].rows, "{table}: {contents:?}");
    }
    assert!(kept.values().any(|contents| contents.rows > 0), "{kept:?}");
    Ok(())
}

#[test]
fn while_a_user_reads_a_table_on_the_target_and_the_source_does_not_wait_for_them() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 2)?;
    let following = cluster.init_spawn(&["--max-rate", "2MB"])?;
    cluster.wait_copying("node_b")?;
    let lock = "BEGIN; LOCK pgbench_tellers IN ACCESS SHARE MODE";
    let reader = Session::sleeping(&target, "reader", lock)?;
    let cancel = cluster.cli_spawn(&["init", "cancel", "--node", "node_b", "--yes"])?;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    wait::until_true("the source's slot to go", LIMIT, || {
        Ok(source.value::<u32>(slots)? == 0)
    })?;
    let told = cancel.finish(LIMIT)?.expect(1)?;
    drop(reader);
    assert!(told.text().contains("lock timeout"), "{told}");
    following.finish(LIMIT)?.expect(4)?;
    // No second request is needed.
    cluster.wait_state("node_b", &["uninitialized"], LIMIT)?;
    residue::of_everything(&target)?.none()
}

#[test]
fn tables_that_were_there_before_stay_and_are_emptied() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let schema = "CREATE TABLE t (id integer PRIMARY KEY, body text);
                  CREATE INDEX t_body ON t (md5(body));";
    source.sql(schema)?;
    target.sql(schema)?;
    source.sql("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) AS n")?;
    let following = cluster.init_spawn(&["--max-rate", "2MB"])?;
    cluster.wait_copying("node_b")?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    following.finish(Duration::from_secs(10))?.expect(4)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;
    assert_eq!(target.value::<u32>("SELECT count(*) FROM t")?, 0);
    compare::schema(&source, &target)?.none()
}

#[test]
fn cancelling_when_nothing_runs_says_so_and_changes_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    let output = cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    let output = output.expect(1)?;
    assert!(output.text().contains("node_b"), "{output}");
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    Ok(())
}
