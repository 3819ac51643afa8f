//! A session that wants a table being read waits no longer than the operator allows and is named
//! meanwhile, and no row is read from a table that has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::session::Session;
use steep_tests::{compare, residue, wait};

/// A small table, and one of 20 MB that takes twenty seconds at that rate.
const TABLES: &str = "
    CREATE TABLE small (id integer PRIMARY KEY, body text);
    CREATE TABLE large (id integer PRIMARY KEY, body text);
    INSERT INTO small SELECT n, 'early' FROM generate_series(1, 100) AS n;
    CREATE SEQUENCE late START 1000000;";
const ROWS: &str =
    "INSERT INTO large SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 20000) AS n";
const RATE: &str = "1MB";

/// With compression, all rows would be in flight at once, and the source done with them.
const SLOWLY: [&str; 5] = ["--detach", "--compress", "none", "--max-rate", RATE];

/// The limit in the tests, and the longest wait of the application then: the limit, the statement
/// itself and time for a busy machine.
const YIELD: &str = "2s";
const WAIT_LIMIT: Duration = Duration::from_secs(9);

/// Any job here ends within this time once a test has seen what it wanted.
const END_LIMIT: Duration = Duration::from_secs(90);

/// An application that keeps writing into `large`.
struct Application {
    stop: Arc<AtomicBool>,
    at_work: Option<JoinHandle<Duration>>,
}

impl Application {
    fn start(database: &Database) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, database) = (Arc::clone(&stop), database.clone());
        let at_work = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::SeqCst) {
                let begun = Instant::now();
                // The table may be missing for a while.
                let insert = "INSERT INTO large VALUES (nextval('late'), 'late')";
                drop(database.sql(insert));
                longest = longest.max(begun.elapsed());
                // Each insert is a process: without a pause they take the machine.
                std::thread::sleep(Duration::from_millis(50));
            }
            longest
        });
        Self {
            stop,
            at_work: Some(at_work),
        }
    }

    /// Stops it and returns the longest time of an insert.
    fn stop(mut self) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        let at_work = self.at_work.take();
        at_work
            .and_then(|thread| thread.join().ok())
            .unwrap_or(Duration::MAX)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Starts a slow job.
fn begin(cluster: &Cluster, target: &str, further: &[&str]) -> Result<()> {
    let ends = ["init", target, "--from", "node_a", "--yes"];
    let arguments: Vec<&str> = ends.iter().chain(&SLOWLY).chain(further).copied().collect();
    cluster.cli(&arguments)?.expect(0).map(drop)
}

/// Waits until `status` names a session with that name in that role.
fn named(cluster: &Cluster, target: &str, role: &str, application: &str) -> Result<Value> {
    wait::until("status to name the session", END_LIMIT, || {
        let view = cluster.progress(target)?;
        let locks = view["locks"].as_array().cloned().unwrap_or_default();
        Ok(locks
            .into_iter()
            .find(|lock| lock["role"] == role && lock["application"] == application))
    })
}

/// Waits until only the large table is being read.
fn reading(cluster: &Cluster) -> Result<()> {
    let source = cluster.database("node_a");
    wait::until_true("the large table to be read", END_LIMIT, || {
        let held = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE l.relation = to_regclass('large') AND l.granted
                AND a.application_name LIKE 'steep-repl copy %'";
        Ok(source.value::<u32>(held)? > 0)
    })
}

/// Whether there is an event of that name for the job.
fn has_event(cluster: &Cluster, event: &str) -> Result<bool> {
    let events = cluster.cli(&["events", "node_b", "--json"])?.objects();
    Ok(events.iter().any(|seen| seen["event"] == event))
}

fn equal(cluster: &Cluster) -> Result<()> {
    cluster.wait_drained("node_a")?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}

#[test]
fn a_statement_that_changes_a_table_being_read_goes_first_and_costs_no_other_table() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    source.sql(TABLES)?;
    source.sql(ROWS)?;
    let added = "ALTER TABLE large ADD COLUMN more integer";
    let altered = "ALTER TABLE large ALTER COLUMN id TYPE bigint";
    for (target, change, state, said) in [
        ("node_b", added, "failed", "column more was added"),
        ("node_b", altered, "failed", "was altered"),
        (
            "node_b",
            "TRUNCATE large",
            "synchronized",
            "was truncated or rewritten",
        ),
        (
            "node_c",
            "DROP TABLE large",
            "synchronized",
            "was dropped or renamed",
        ),
    ] {
        begin(&cluster, target, &["--yield-to-ddl", YIELD])?;
        reading(&cluster)?;
        let application = Application::start(&source);
        let migration = Session::start(&source, "migration", change)?;
        let lock = named(&cluster, target, "blocked_by_us", "migration")?;
        assert_eq!(lock["statement"], change);
        assert_eq!(lock["table"], "public.large");
        assert_eq!(lock["node_id"], "node_a");
        migration.succeeds().context(change)?;
        let end = cluster.wait_state(target, &["failed", "synchronized"], END_LIMIT)?;
        let longest = application.stop();
        assert!(longest < WAIT_LIMIT, "{change}: {longest:?}");
        let report = cluster.cli(&["status", target, "--last-report", "--json"])?;
        assert_eq!(end, state, "{change}: {report}");
        for word in ["node_a", "public.large", said, "migration"] {
            assert!(report.stdout.contains(word), "{word}: {report}");
        }
        if end == "failed" {
            // Its tables are kept for a resume.
            cluster
                .cli(&["init", "cancel", "--node", target, "--yes"])?
                .expect(0)?;
            residue::of_jobs(&source)?.none()?;
            residue::of_everything(&cluster.database(target))?.none()?;
        }
        if change.starts_with("TRUNCATE") {
            equal(&cluster)?;
            source.sql(&ROWS.replace("30)", "30), 0"))?;
        }
    }
    for event in ["lock.blocking", "lock.gave_way", "epoch.started"] {
        assert!(has_event(&cluster, event)?, "{event}");
    }
    Ok(())
}

#[test]
fn a_lock_that_changes_nothing_is_given_way_to_or_not_and_the_job_goes_on() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    source.sql(TABLES)?;
    source.sql(ROWS)?;
    begin(&cluster, "node_b", &["--yield-to-ddl", YIELD])?;
    reading(&cluster)?;
    let application = Application::start(&source);
    let lock = "BEGIN; LOCK TABLE large";
    let holder = Session::sleeping(&source, "maintenance", lock)?;
    // Now it holds the table, and the part waits outside of the queue.
    let waits = named(&cluster, "node_b", "blocks_us", "maintenance")?;
    assert_eq!(waits["table"], "public.large");
    assert_eq!(waits["ours"], "copy");
    let queued = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.relation = 'large'::regclass AND NOT l.granted
            AND a.application_name LIKE 'steep-repl%'";
    wait::until_true("nobody of ours to be in the queue", END_LIMIT, || {
        Ok(source.value::<u32>(queued)? == 0)
    })?;
    drop(holder);
    let longest = application.stop();
    assert!(longest < 2 * WAIT_LIMIT, "{longest:?}");
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    assert!(has_event(&cluster, "lock.gave_way")?);
    equal(&cluster)?;

    begin(&cluster, "node_c", &["--yield-to-ddl", "never"])?;
    reading(&cluster)?;
    let lock = "BEGIN; LOCK TABLE large; COMMIT";
    let migration = Session::start(&source, "migration", lock)?;
    wait::until_true("more than the other limit to pass", END_LIMIT, || {
        let lock = named(&cluster, "node_c", "blocked_by_us", "migration")?;
        Ok(lock["waited_seconds"].as_u64() >= Some(4))
    })?;
    migration.succeeds()?;
    cluster.wait_state("node_c", &["synchronized"], END_LIMIT)?;
    compare::rows(&source, &cluster.database("node_c"))?.none()
}

#[test]
fn a_table_that_is_rewritten_between_its_parts_fails_the_job_by_name() -> Result<()> {
    let cluster = Cluster::builder().without_data_dir("node_a").start()?;
    let source = cluster.database("node_a");
    source.sql(TABLES)?;
    source.sql(ROWS)?;
    begin(
        &cluster,
        "node_b",
        &["--large-table-threshold", "1MB", "--parallel", "1"],
    )?;
    cluster.wait_committed("node_b", END_LIMIT)?;
    // Nobody holds the table between two parts.
    source.sql("CLUSTER large USING large_pkey")?;
    cluster.wait_state("node_b", &["failed"], END_LIMIT)?;
    let view = cluster.node_view("node_b")?.context("node_b is known")?;
    let cause = view["error_message"].as_str().unwrap_or_default();
    for word in ["public.large", "was truncated or rewritten"] {
        assert!(cause.contains(word), "{word}: {view}");
    }
    residue::of_jobs(&source)?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

#[test]
fn a_build_that_waits_for_somebody_on_the_target_says_for_whom() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    source.sql(TABLES)?;
    source.sql(
        "INSERT INTO large SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 4000) AS n",
    )?;
    begin(&cluster, "node_b", &[])?;
    cluster.wait_copying("node_b")?;
    let target = cluster.database("node_b");
    let lock = "BEGIN; LOCK TABLE small IN ACCESS SHARE MODE";
    let reader = Session::sleeping(&target, "reader", lock)?;
    let waits = named(&cluster, "node_b", "blocks_us", "reader")?;
    assert_eq!(waits["node_id"], "node_b");
    assert_eq!(waits["table"], "public.small");
    let status = cluster.cli(&["status", "node_b"])?;
    assert!(status.stdout.contains("(reader"), "{status}");
    drop(reader);
    cluster.wait_state("node_b", &["synchronized"], END_LIMIT)?;
    equal(&cluster)
}
