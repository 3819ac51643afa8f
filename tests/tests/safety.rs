//! Jobs that lose what they depend on: each fails within seconds with its cause and leaves nothing
//! behind, or continues and is exact.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::session::Session;
use steep_tests::{compare, residue, wait};

/// The contract's limit.
const FAILURE_LIMIT: Duration = Duration::from_secs(15);

/// Some fifteen seconds of errors, plus time for a busy machine.
const APPLY_LIMIT: Duration = Duration::from_secs(40);

/// Any job here ends within this time once a test has seen what it wanted.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A small table and one of 20 MB, which takes some ten seconds at this rate.
const TABLES: &str = "
    CREATE TABLE small (id integer PRIMARY KEY, body text);
    CREATE TABLE large (id integer PRIMARY KEY, body text);
    INSERT INTO small SELECT n, 'early' FROM generate_series(1, 100) AS n;
    INSERT INTO large SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 20000) AS n;";
const RATE: &str = "2MB";

/// A condition for the job's slot on its source.
const OURS: &str = "slot_name LIKE 'steep\\_repl\\_%'";

/// That cluster during the copy, with the job detached.
fn copying(cluster: &Cluster) -> Result<()> {
    cluster.database("node_a").sql(TABLES)?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    cluster.wait_copying("node_b")
}

/// The job fails within `limit`, its cause or hint contains each word, and nothing is left.
fn fails(cluster: &Cluster, limit: Duration, words: &[&str]) -> Result<()> {
    fails_saying(cluster, limit, words)?;
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

/// The job fails within `limit`, and its cause or hint contains each word.
fn fails_saying(cluster: &Cluster, limit: Duration, words: &[&str]) -> Result<()> {
    cluster.wait_state("node_b", &["failed"], limit)?;
    let end = cluster
        .cli(&["status", "node_b", "--last-report", "--json"])?
        .text();
    let view = cluster.node_view("node_b")?.context("node_b is known")?;
    for word in words {
        anyhow::ensure!(
            end.contains(word) || view["error_message"].to_string().contains(word),
            "{word:?} is not said: {end}\n{view}"
        );
    }
    Ok(())
}

/// Later writes arrive too, and both sides are equal.
fn follows(cluster: &Cluster) -> Result<()> {
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("INSERT INTO small VALUES (900000, 'late')")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()
}

#[test]
fn a_slot_that_is_dropped_during_the_copy_fails_the_job_within_seconds() -> Result<()> {
    let cluster = Cluster::pair()?;
    copying(&cluster)?;
    cluster.database("node_a").sql(&format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE {OURS}"
    ))?;
    fails(
        &cluster,
        FAILURE_LIMIT,
        &["node_a", "does not exist any more"],
    )
}

#[test]
fn a_slot_that_loses_its_wal_during_the_copy_fails_the_job_within_seconds() -> Result<()> {
    let cluster = Cluster::pair()?;
    copying(&cluster)?;
    let source = cluster.database("node_a");
    source.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")?;
    source.sql("SELECT pg_reload_conf()")?;
    // Segments have 16 MB; WAL beyond the limit is removed at the next checkpoint.
    for _ in 0..3 {
        source.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")?;
        source.sql("SELECT pg_switch_wal()")?;
    }
    source.sql("CHECKPOINT")?;
    let words = ["node_a", "lost", "max_slot_wal_keep_size"];
    fails(&cluster, FAILURE_LIMIT, &words)
}

#[test]
fn a_snapshot_whose_slot_holds_half_of_what_its_server_allows_is_warned_of() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_a", "max_slot_wal_keep_size", "64MB")
        .start()?;
    let source = cluster.database("node_a");
    source.sql(TABLES)?;
    let place = cluster.dir().join("stored").display().to_string();
    let generate = ["snapshot", "generate", "--source", "node_a", "--output"];
    cluster
        .cli(&[&generate[..], &[&place]].concat())?
        .expect(0)?;
    let list = || -> Result<Value> {
        cluster
            .cli(&["snapshot", "list", "--json"])?
            .expect(0)?
            .last_object()
    };
    wait::until_true("the WAL that the slot holds to be known", END_LIMIT, || {
        Ok(list()?["snapshots"][0]["wal_held_bytes"].is_u64())
    })?;
    assert_eq!(list()?["snapshots"][0]["warnings"].to_string(), "[]");
    source.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 40000000))")?;
    wait::until_true("a warning", END_LIMIT, || {
        let warnings = list()?["snapshots"][0]["warnings"].to_string();
        Ok(warnings.contains("max_slot_wal_keep_size"))
    })?;
    for (arguments, word) in [
        (&["snapshot", "list"][..], "max_slot_wal_keep_size"),
        (&["nodes", "--snapshots"], "max_slot_wal_keep_size"),
        (
            &["doctor", "node_b", "--from", "node_a", "--json"],
            "snapshot_wal_held",
        ),
    ] {
        let said = cluster.cli(arguments)?;
        ensure!(said.text().contains(word), "{word} is not in {said}");
    }
    let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
    assert_eq!(events.text().matches("\"snapshot.wal_held\"").count(), 1);
    Ok(())
}

#[test]
fn wal_and_snapshot_are_held_no_longer_than_the_coordinator_allows() -> Result<()> {
    let cluster = Cluster::builder()
        .coordinator_argument("--max-wal-held")
        .coordinator_argument("20MB")
        .start()?;
    copying(&cluster)?;
    cluster
        .database("node_a")
        .sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 30000000))")?;
    fails(&cluster, FAILURE_LIMIT, &["of WAL", "--max-wal-held"])?;

    let cluster = Cluster::builder()
        .coordinator_argument("--max-snapshot-age")
        .coordinator_argument("4s")
        .start()?;
    cluster.database("node_a").sql(TABLES)?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    let words = ["snapshot", "--max-snapshot-age"];
    fails(&cluster, END_LIMIT, &words)
}

#[test]
fn a_row_in_the_way_of_replication_fails_the_catch_up_which_goes_on_once_it_is_gone() -> Result<()>
{
    let cluster = Cluster::builder()
        .setting("node_b", "wal_retrieve_retry_interval", "2s")
        .start()?;
    copying(&cluster)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    wait::until_true("the small table", END_LIMIT, || {
        Ok(target.value::<u32>("SELECT count(*) FROM small")? == 100)
    })?;
    // Ordinary sessions cannot write while rows are loaded; a replica's can.
    target.sql(
        "SET session_replication_role = replica; INSERT INTO small VALUES (500, 'in the way')",
    )?;
    source.sql("INSERT INTO small VALUES (500, 'late')")?;
    cluster.wait_state("node_b", &["catching_up"], END_LIMIT)?;
    let words = ["node_b", "subscription", "keeps failing", "log"];
    fails_saying(&cluster, APPLY_LIMIT, &words)?;
    target.sql("DELETE FROM small WHERE id = 500")?;
    // A resume also gives the subscription its connection string again.
    let name: String = target.value("SELECT subname FROM pg_subscription")?;
    target.sql(&format!(
        "ALTER SUBSCRIPTION {name} CONNECTION 'host=/nowhere dbname=none'"
    ))?;
    cluster.init(&["--resume"])?.expect(0)?;
    follows(&cluster)
}

/// Makes the target apply late rows slowly, until [`at_once`].
fn slowly(cluster: &Cluster) -> Result<()> {
    cluster.database("node_a").sql(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF current_setting('steep.slow', true) = 'on' THEN PERFORM pg_sleep(0.1); END IF;
             RETURN NEW;
         END $$;
         CREATE TABLE slow (id integer PRIMARY KEY, body text);
         INSERT INTO slow SELECT n, 'early' FROM generate_series(1, 300) AS n;
         CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION slowly();
         ALTER TABLE slow ENABLE ALWAYS TRIGGER slow;",
    )?;
    let target = cluster.database("node_b");
    target
        .sql("ALTER DATABASE app SET steep.slow = 'on'")
        .map(drop)
}

/// Makes new sessions fast again.
fn at_once(cluster: &Cluster) -> Result<()> {
    let target = cluster.database("node_b");
    target.sql("ALTER DATABASE app RESET steep.slow").map(drop)
}

/// Whether the target's agent has completed that command.
fn has_ended(cluster: &Cluster, command: &str) -> Result<bool> {
    let agent = cluster.node("node_b").agent().context("an agent")?;
    let ended = agent.events("command.completed")?;
    Ok(ended.iter().any(|event| event["command"] == command))
}

#[test]
fn a_target_that_crashes_in_the_catch_up_and_is_back_goes_on_and_loses_no_row() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    cluster.database("node_a").sql(TABLES)?;
    slowly(&cluster)?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    cluster.wait_copying("node_b")?;
    let source = cluster.database("node_a");
    source.sql("INSERT INTO slow SELECT n, 'late' FROM generate_series(1001, 1300) AS n")?;
    // From here on only the subscription works on the target.
    wait::until_true("the catch-up alone", END_LIMIT, || {
        has_ended(&cluster, "finish")
    })?;
    assert_eq!(cluster.state("node_b")?, "catching_up");
    at_once(&cluster)?;
    cluster.node_mut("node_b").server_mut().crash()?;
    cluster.node_mut("node_b").server_mut().restart()?;
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    follows(&cluster)
}

#[test]
fn a_snapshot_whose_session_is_ended_by_somebody_lets_the_job_begin_again() -> Result<()> {
    let cluster = Cluster::pair()?;
    copying(&cluster)?;
    let source = cluster.database("node_a");
    source.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name = 'steep-repl snapshot'",
    )?;
    source.sql("INSERT INTO large SELECT n, 'late' FROM generate_series(30001, 30100) AS n")?;
    wait::until_true("the job to begin again", FAILURE_LIMIT, || {
        Ok(cluster.progress("node_b")?["restarts"] == 1)
    })?;
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    follows(&cluster)
}

#[test]
fn tables_that_have_been_read_are_free_and_new_ones_disturb_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    copying(&cluster)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    wait::until_true("the small table", END_LIMIT, || {
        Ok(target.value::<u32>("SELECT count(*) FROM small")? == 100)
    })?;
    source.sql("SET lock_timeout = '200ms'; CLUSTER small USING small_pkey")?;
    source.sql("CREATE TABLE new (id integer PRIMARY KEY); INSERT INTO new VALUES (1)")?;
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    source.sql("INSERT INTO small VALUES (900000, 'late')")?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &target, &["public.new"])?.none()
}

#[test]
fn a_node_whose_own_tables_are_locked_is_still_seen() -> Result<()> {
    let cluster = Cluster::pair()?;
    copying(&cluster)?;
    let target = cluster.database("node_b");
    let lock = "BEGIN; LOCK steep_repl.nodes";
    let user = Session::sleeping(&target, "locks", lock)?;
    wait::until_true("the agent to say so", FAILURE_LIMIT, || {
        let agent = cluster.node("node_b").agent().context("an agent")?;
        Ok(!agent.events("mirror.failed")?.is_empty())
    })?;
    let log = cluster.dir().join("agent-node_b.log");
    assert!(!std::fs::read_to_string(log)?.contains("cannot be asked"));
    let view = cluster.node_view("node_b")?.context("node_b is known")?;
    assert_eq!(view["postgres_error"], Value::Null, "{view}");
    drop(user);
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    follows(&cluster)
}

/// PostgreSQL's own copy, running slowly.
fn copying_natively(cluster: &Cluster) -> Result<()> {
    slowly(cluster)?;
    cluster
        .init(&["--detach", "--method", "native"])?
        .expect(0)?;
    cluster.wait_state("node_b", &["copying"], END_LIMIT)?;
    Ok(())
}

#[test]
fn postgresqls_own_copy_can_be_cancelled_and_nothing_is_left() -> Result<()> {
    let cluster = Cluster::pair()?;
    cluster.database("node_a").sql(TABLES)?;
    copying_natively(&cluster)?;
    let cancelled = cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    assert!(cancelled.took < Duration::from_secs(30), "{cancelled}");
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn postgresqls_own_copy_leaves_no_slot_on_the_source_when_its_target_is_lost() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    cluster.database("node_a").sql(TABLES)?;
    copying_natively(&cluster)?;
    let source = cluster.database("node_a");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    // Its own slot and at least the slow table's.
    wait::until_true("the slots of the copy", END_LIMIT, || {
        Ok(source.value::<u32>(slots)? >= 2)
    })?;
    cluster.node_mut("node_b").server_mut().crash()?;
    cluster.kill_agent("node_b")?;
    // The target cannot be cleaned up yet, but the source is cleaned up without waiting.
    cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    wait::until_true("the source to be free of slots", END_LIMIT, || {
        Ok(source.value::<u32>(slots)? == 0)
    })?;
    cluster.node_mut("node_b").server_mut().restart()?;
    cluster.start_agent("node_b")?;
    cluster.wait_state("node_b", &["uninitialized"], END_LIMIT)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn postgresqls_own_copy_survives_the_death_of_the_agent_beside_it() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    cluster.database("node_a").sql(TABLES)?;
    copying_natively(&cluster)?;
    cluster.kill_agent("node_b")?;
    at_once(&cluster)?;
    cluster.start_agent("node_b")?;
    ends_well(&cluster)
}

/// The job goes on by itself.
fn ends_well(cluster: &Cluster) -> Result<()> {
    let state = cluster.wait_state("node_b", &["failed", "synchronized"], END_LIMIT)?;
    assert_eq!(state, "synchronized", "{:?}", cluster.node_view("node_b")?);
    follows(cluster)
}

/// Kills and restarts the target's agent during `command`. An administrator's event trigger makes
/// the command slow: at statements with that tag where the condition `slow` holds.
fn dies_in(command: &str, tag: &str, slow: &str) -> Result<()> {
    let mut cluster = Cluster::pair()?;
    cluster.database("node_a").sql(
        "CREATE TABLE small (id integer PRIMARY KEY, body text);
         CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES small);
         CREATE INDEX small_body ON small (body);
         INSERT INTO small SELECT n, 'early' FROM generate_series(1, 1000) AS n;
         INSERT INTO child SELECT n, n FROM generate_series(1, 1000) AS n;",
    )?;
    let target = cluster.database("node_b");
    target.sql(&format!(
        "CREATE FUNCTION public.slowly() RETURNS event_trigger LANGUAGE plpgsql AS $$
         BEGIN IF {slow} THEN PERFORM pg_sleep(120); END IF; END $$;
         CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('{tag}')
             EXECUTE FUNCTION public.slowly();
         ALTER EVENT TRIGGER slow ENABLE ALWAYS;"
    ))?;
    cluster.init(&["--detach"])?.expect(0)?;
    wait::until_true(&format!("{command} to be at work"), END_LIMIT, || {
        let sleeping = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name LIKE 'steep-repl%' AND wait_event = 'PgSleep'";
        Ok(target.value::<u32>(sleeping)? > 0)
    })?;
    let agent = cluster.node("node_b").agent().context("an agent")?;
    let begun = agent.events("command.started")?;
    let last = begun.last().context("a command")?;
    assert_eq!(last["command"], command);
    cluster.kill_agent("node_b")?;
    target.sql("DROP EVENT TRIGGER slow; DROP FUNCTION public.slowly()")?;
    cluster.start_agent("node_b")?;
    ends_well(&cluster)
}

#[test]
fn an_agent_that_dies_while_it_prepares_the_schema_lets_its_job_go_on() -> Result<()> {
    // Not statements that the agent runs for itself.
    let slow = "current_query() ILIKE '%public.small%'";
    dies_in("prepare_target", "CREATE TABLE", slow)
}

#[test]
fn an_agent_that_dies_while_it_builds_indexes_lets_its_job_go_on() -> Result<()> {
    dies_in("build_indexes", "CREATE INDEX", "true")
}

#[test]
fn an_agent_that_dies_while_it_builds_constraints_lets_its_job_go_on() -> Result<()> {
    let slow = "current_query() ILIKE '%VALIDATE CONSTRAINT%'";
    dies_in("build_constraints", "ALTER TABLE", slow)
}

#[test]
fn an_agent_that_dies_while_it_subscribes_lets_its_job_go_on() -> Result<()> {
    // Preflight tries one too, on a target that is still empty.
    let slow = "to_regclass('public.small') IS NOT NULL";
    dies_in("subscribe", "CREATE SUBSCRIPTION", slow)
}

#[test]
fn agents_that_die_in_the_catch_up_let_the_job_go_on() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    cluster.database("node_a").sql(TABLES)?;
    slowly(&cluster)?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    cluster.wait_copying("node_b")?;
    let source = cluster.database("node_a");
    source.sql("INSERT INTO slow SELECT n, 'late' FROM generate_series(1001, 1200) AS n")?;
    cluster.wait_state("node_b", &["catching_up"], END_LIMIT)?;
    for node in ["node_a", "node_b"] {
        cluster.kill_agent(node)?;
        cluster.start_agent(node)?;
    }
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    follows(&cluster)
}
