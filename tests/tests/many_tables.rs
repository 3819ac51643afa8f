//! Many tables: plan, schema and hand-off without rows.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::{compare, residue, sample};

/// Far above what it takes (a few seconds), far below what a query per table would.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_thousand_empty_tables_are_initialised_and_replicate() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::many_tables(&source, 1_000)?;
    let output = cluster.init(&[])?.expect(0)?;
    assert!(output.took < LIMIT, "{:?}", output.took);
    source.sql("INSERT INTO many.t1 VALUES (1, 'x'); INSERT INTO many.t1000 VALUES (1, 'x')")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    assert_eq!(compare::contents(&target)?.len(), 1_000);
    Ok(())
}

/// Does something whenever a table has been made.
fn at_each_table(target: &Database, what: &str) -> Result<()> {
    target.sql(&format!(
        "CREATE OR REPLACE FUNCTION public.at_each_table() RETURNS event_trigger LANGUAGE plpgsql AS $$
         DECLARE made text;
         BEGIN
             SELECT object_identity INTO made FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table';
             {what}
         END $$;
         DROP EVENT TRIGGER IF EXISTS at_each_table;
         CREATE EVENT TRIGGER at_each_table ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
             EXECUTE FUNCTION public.at_each_table();
         ALTER EVENT TRIGGER at_each_table ENABLE ALWAYS"
    ))?;
    Ok(())
}

/// The schema is made on two sessions.
#[test]
fn a_statement_that_fails_beside_others_is_named_and_a_session_that_ends_costs_nothing()
-> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::many_tables(&source, 600)?;
    at_each_table(
        &target,
        "IF made = 'many.t500' THEN RAISE EXCEPTION 'not this one'; END IF;",
    )?;
    let said = cluster.init(&[])?.expect(1)?.text();
    for word in [
        "the schema cannot be made",
        "CREATE TABLE many.t500",
        "a function raised an exception",
    ] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    residue::of_jobs(&source)?.none()?;
    residue::of_everything(&target)?.none()?;

    at_each_table(
        &target,
        "IF made LIKE 'many.t5%' AND (SELECT count(*) = 2 AND max(backend_start) =
                 max(backend_start) FILTER (WHERE pid = pg_backend_pid())
             FROM pg_stat_activity WHERE application_name LIKE '%sink-prepare%')
         THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;",
    )?;
    cluster.init(&[])?.expect(0)?;
    assert_eq!(compare::contents(&target)?.len(), 600);
    let ended = "terminating connection due to administrator command";
    let log = fs::read_to_string(cluster.node("node_b").server().log())?;
    assert!(log.contains(ended), "no session was ended");
    let agent = cluster.node("node_b").agent();
    let failed = agent.map(|agent| agent.events("command.failed"));
    let failed = failed.transpose()?.unwrap_or_default();
    assert_eq!(failed.len(), 1, "{failed:?}");
    Ok(())
}

/// Small parts are committed together: what a crash has undone is copied again.
#[test]
fn a_crash_while_small_tables_are_loaded_costs_no_row() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::small_tables(&source, 1..=300)?;
    // Some 60 tables a second.
    let init = cluster.init_spawn(&["--max-rate", "16KB", "--parallel", "2"])?;
    cluster.wait_committed("node_b", LIMIT)?;
    cluster.node_mut("node_b").server_mut().crash()?;
    cluster.node_mut("node_b").server_mut().restart()?;
    let output = init.finish(LIMIT)?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    assert_eq!(compare::contents(&target)?.len(), 300, "{output}");
    let rows = output.last_object()?["rows_copied"].clone();
    assert_eq!(rows, 1_500, "each row counts once");
    Ok(())
}
