//! PostgreSQL restarts during a job, and connections to agents break: the job continues by itself
//! and ends synchronized and equal. A job that fails with all rows copied keeps them and resumes
//! from there.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use steep_tests::cluster::Cluster;
use steep_tests::{compare, sample, wait};

/// For a job of a few seconds with restarts on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(240);

/// The job says within this time what it waits for.
const SAID_LIMIT: Duration = Duration::from_secs(15);

/// The copy takes long enough at this rate for a restart to fall into it.
const RATE: &str = "1MB";

/// How long a server stays away.
const AWAY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];

/// Longer than most failovers take.
const AWAY_FOR_LONG: [Duration; 1] = [Duration::from_secs(60)];

/// Crashes its PostgreSQL and starts it again after `away`. Time is what is tested here.
fn restart(cluster: &mut Cluster, node: &str, away: Duration) -> Result<()> {
    let server = cluster.node_mut(node).server_mut();
    server.crash()?;
    std::thread::sleep(away);
    server.restart()
}

/// [`restart`] during a phase.
fn restart_in(cluster: &mut Cluster, phase: &str, node: &str, away: Duration) -> Result<()> {
    cluster.wait_phase("node_b", phase)?;
    restart(cluster, node, away)
}

fn ends_synchronized_and_equal(cluster: &Cluster) -> Result<()> {
    let states = ["failed", "synchronized"];
    let state = cluster.wait_state("node_b", &states, END_LIMIT)?;
    let view = cluster.node_view("node_b")?;
    assert_eq!(state, "synchronized", "{view:?}");
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("UPDATE pgbench_tellers SET tbalance = tbalance + 1")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()
}

/// A cluster during the copy with a part committed and the job detached.
fn copying() -> Result<Cluster> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 2)?;
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    cluster.wait_committed("node_b", Duration::from_secs(60))?;
    Ok(cluster)
}

fn restarts(cluster: &Cluster) -> Result<u64> {
    let progress = cluster.progress("node_b")?;
    progress["restarts"].as_u64().context("restarts are told")
}

fn targets_in_mid_copy(away: &[Duration]) -> Result<()> {
    let mut cluster = copying()?;
    for away in away {
        restart_in(&mut cluster, "copy", "node_b", *away)?;
        wait::until_true("rows to go on arriving", END_LIMIT, || {
            Ok(cluster.progress("node_b")?["waiting"].is_null())
        })?;
    }
    assert_eq!(restarts(&cluster)?, 0);
    ends_synchronized_and_equal(&cluster)
}

#[test]
fn of_the_targets_postgresql_in_mid_copy_cost_no_part_that_was_committed() -> Result<()> {
    targets_in_mid_copy(&AWAY)
}

#[test]
#[ignore = "takes minutes"]
fn of_the_targets_postgresql_for_a_minute_in_mid_copy_cost_no_part_that_was_committed() -> Result<()>
{
    targets_in_mid_copy(&AWAY_FOR_LONG)
}

fn sources_in_mid_copy(away: &[Duration]) -> Result<()> {
    let mut cluster = copying()?;
    for (n, away) in (1..).zip(away) {
        cluster.wait_phase("node_b", "copy")?;
        cluster.wait_committed("node_b", Duration::from_secs(60))?;
        restart(&mut cluster, "node_a", *away)?;
        wait::until_true("the job to begin again", END_LIMIT, || {
            Ok(restarts(&cluster)? == n)
        })?;
    }
    ends_synchronized_and_equal(&cluster)?;
    assert_eq!(restarts(&cluster)?, away.len() as u64);
    let events = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    // Whether a table was complete by then decides which of the two it is.
    let begun = |event: &serde_json::Value| {
        ["init.restarted", "epoch.started"]
            .map(serde_json::Value::from)
            .contains(&event["event"])
    };
    let begun = events.objects().iter().filter(|e| begun(e)).count();
    assert_eq!(begun, away.len());
    Ok(())
}

#[test]
fn of_the_sources_postgresql_in_mid_copy_are_followed_by_another_snapshot() -> Result<()> {
    sources_in_mid_copy(&AWAY)
}

#[test]
#[ignore = "takes minutes"]
fn of_the_sources_postgresql_for_a_minute_in_mid_copy_are_followed_by_another_snapshot()
-> Result<()> {
    sources_in_mid_copy(&AWAY_FOR_LONG)
}

#[test]
#[ignore = "takes minutes"]
fn of_the_sources_postgresql_for_a_minute_while_postgresql_copies_by_itself_are_waited_out()
-> Result<()> {
    let mut cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    // Enough for a restart to fall into it: PostgreSQL copies two tables at a time.
    source.sql(
        "DO $$ BEGIN FOR n IN 1..60 LOOP
             EXECUTE format('CREATE TABLE many_%s AS SELECT 1 AS id', n);
             EXECUTE format('ALTER TABLE many_%s ADD PRIMARY KEY (id)', n);
         END LOOP; END $$",
    )?;
    cluster
        .init(&["--detach", "--method", "native"])?
        .expect(0)?;
    restart_in(&mut cluster, "copy", "node_a", AWAY_FOR_LONG[0])?;
    ends_synchronized_and_equal(&cluster)
}

fn either_while_indexes_are_built_and_changes_caught_up(away: &[Duration]) -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    // Long enough for a restart to fall into it: a build of 10 s, and changes that are applied at
    // 10 a second.
    source.sql(
        "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN IF $1 % 100 = 0 THEN PERFORM pg_sleep(0.05); END IF; RETURN $1; END $$;
         CREATE TABLE built AS SELECT n AS id FROM generate_series(1, 20000) n;
         ALTER TABLE built ADD PRIMARY KEY (id);
         CREATE INDEX built_slowly ON built (slow(id));
         CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_sleep(0.1); RETURN new; END $$;
         CREATE TABLE applied (id int PRIMARY KEY);
         CREATE TRIGGER slowly BEFORE INSERT ON applied FOR EACH ROW EXECUTE FUNCTION dawdle();
         ALTER TABLE applied ENABLE REPLICA TRIGGER slowly;",
    )?;
    cluster.init(&["--detach"])?.expect(0)?;
    cluster.wait_phase("node_b", "indexes")?;
    source.sql(
        "DO $$ BEGIN FOR n IN 1..200 LOOP INSERT INTO applied VALUES (n); COMMIT; END LOOP; END $$",
    )?;
    for phase in ["indexes", "catch_up"] {
        for node in ["node_b", "node_a"] {
            for away in away {
                restart_in(&mut cluster, phase, node, *away)?;
            }
        }
    }
    let at_once = "CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
                       $$ BEGIN RETURN new; END $$";
    source.sql(at_once)?;
    target.sql(at_once)?;
    ends_synchronized_and_equal(&cluster)
}

#[test]
fn of_either_postgresql_while_indexes_are_built_and_changes_caught_up_are_waited_out() -> Result<()>
{
    either_while_indexes_are_built_and_changes_caught_up(&AWAY)
}

#[test]
#[ignore = "takes minutes"]
fn of_either_postgresql_for_a_minute_while_indexes_are_built_and_changes_caught_up_are_waited_out()
-> Result<()> {
    either_while_indexes_are_built_and_changes_caught_up(&AWAY_FOR_LONG)
}

#[test]
fn of_a_path_to_the_coordinator_stop_no_rows_and_are_said() -> Result<()> {
    let mut cluster = copying()?;
    let target = cluster.database("node_b");
    // The coordinator and the agents cannot reach each other.
    cluster
        .coordinator()
        .context("it runs")?
        .signal(Signal::STOP);
    let size = || target.value::<u64>("SELECT pg_database_size(current_database())");
    let before = size()?;
    // Time is what is tested: longer than a session lives without an answer.
    std::thread::sleep(Duration::from_secs(12));
    assert!(size()? > before + 2_000_000, "rows have stopped");
    cluster
        .coordinator()
        .context("it runs")?
        .signal(Signal::CONT);
    cluster.wait_online(&["node_a", "node_b"])?;
    // The job says that it waits for the killed agent, and continues with its next process.
    cluster.kill_agent("node_b")?;
    wait::until_true("the wait to be said", SAID_LIMIT, || {
        let view = cluster.node_view("node_b")?.context("it is known")?;
        Ok(view["waiting"]["what"] == "agent" && view["waiting"]["gives_up_seconds"].is_u64())
    })?;
    cluster.start_agent("node_b")?;
    ends_synchronized_and_equal(&cluster)
}

#[test]
fn a_job_that_fails_with_its_rows_copied_keeps_them_and_is_resumed() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    // This is no missing object: replication needs the key that cannot be built.
    source.sql(
        "CREATE FUNCTION may_build() RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'go_on') THEN RETURN 1; END IF;
                RAISE disk_full USING MESSAGE = 'no space left on device'; END $$;
         CREATE FUNCTION slot_of(int) RETURNS int IMMUTABLE LANGUAGE sql AS
             $$ SELECT $1 * public.may_build() $$;",
    )?;
    source.sql(
        "CREATE ROLE go_on; CREATE TABLE kept AS SELECT n AS id FROM generate_series(1, 100) n;
                CREATE UNIQUE INDEX kept_key ON kept (slot_of(id));",
    )?;
    let failed = cluster.init(&[])?;
    assert_eq!(failed.code, 1, "{failed}");
    let end = failed.last_object()?;
    assert_eq!(end["event"], "init.failed");
    assert!(end["kept_until"].is_string(), "{end}");
    let hint = end["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("init node_b --from node_a --resume"), "{end}");
    assert!(target.value::<u64>("SELECT count(*) FROM pgbench_accounts")? > 0);
    let again = cluster.init(&[])?;
    assert!(
        again.code == 1 && again.text().contains("--resume"),
        "{again}"
    );

    target.sql("CREATE ROLE go_on")?;
    let copied =
        target.sql("SELECT oid, relfilenode FROM pg_class WHERE relname = 'pgbench_history'")?;
    let preflight = cluster.init(&["--resume", "--dry-run"])?.expect(0)?.text();
    assert!(preflight.contains("nothing is read again"), "{preflight}");
    cluster.init(&["--resume"])?.expect(0)?;
    ends_synchronized_and_equal(&cluster)?;
    let now =
        target.sql("SELECT oid, relfilenode FROM pg_class WHERE relname = 'pgbench_history'")?;
    assert_eq!(
        copied, now,
        "the rows that were there are the rows that are there"
    );
    let nothing = cluster.init(&["--resume"])?;
    assert_eq!(nothing.code, 1, "{nothing}");
    Ok(())
}
