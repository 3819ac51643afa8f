//! A comparison outlives those whom it loses: what was compared stays so, and the rest is compared once they are back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{sample, wait};

const LIMIT: Duration = Duration::from_secs(120);

const TABLES: usize = 4;

/// What a server's sessions read at the moment: the table's number.
const READ: &str = "SELECT coalesce(min(substring(query FROM 'FROM ONLY \"app\"\\.\"t(\\d)\"')), '') FROM pg_stat_activity
    WHERE application_name LIKE 'steep-repl verify%' AND query LIKE '%FROM ONLY \"app\".\"t%'";

fn read(database: &Database) -> Result<usize> {
    Ok(database.sql(READ)?.parse().unwrap_or(0))
}

/// Notes which tables a server reads, in order.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<usize>>,
}

impl Observer {
    fn start(database: &Database) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (over, database) = (Arc::clone(&stop), database.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let now = read(&database).unwrap_or(0);
                if now > 0 && seen.last() != Some(&now) {
                    seen.push(now);
                }
            }
            seen
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<Vec<usize>> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join();
        seen.map_err(|_| anyhow::anyhow!("the observer panicked"))
    }
}

#[test]
fn a_comparison_goes_on_whoever_dies_and_compares_no_table_again() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    source.sql("CREATE SCHEMA app")?;
    for table in 1..=TABLES {
        source.sql(&format!(
            "CREATE TABLE app.t{table} (id integer PRIMARY KEY, body text);
             INSERT INTO app.t{table} SELECT n, repeat('x', 400) FROM generate_series(1, 40000) n"
        ))?;
    }
    cluster.init(&[])?.expect(0)?;
    // Found before anybody dies.
    target.sql("DELETE FROM app.t1 WHERE id = 77")?;
    let light = Intensity {
        clients: 2,
        rate: Some(50),
    };
    let load = Load::start(&source, light, Grouping::Shared)?;
    let observer = Observer::start(&target);
    let running = cluster.cli_spawn(&[
        "verify",
        "node_a",
        "node_b",
        "--parallel",
        "1",
        "--max-rate",
        "6MB",
    ])?;
    for (at, victim) in [(2, "node_b"), (3, "node_a"), (4, "coordinator")] {
        wait::until_true(&format!("table {at} to be read"), LIMIT, || {
            Ok(read(&target)? == at)
        })?;
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
    }
    let ended = running.finish(LIMIT)?.expect(3)?;
    load.stop()?;
    let seen = observer.stop()?;
    ensure!(seen.is_sorted(), "tables were compared again: {seen:?}");
    assert_eq!(seen.last(), Some(&TABLES), "{seen:?}");
    ensure!(ended.stderr.contains("waiting for up to"), "{ended}");
    let missing = ended.stdout.lines().find(|line| line.contains("app.t1"));
    ensure!(missing.context("app.t1")?.contains('1'), "{ended}");
    ensure!(ended.stdout.contains("77"), "{ended}");
    // One that never begins is refused at once.
    cluster.kill_agent("node_a")?;
    wait::until_true("the agent to be missed", LIMIT, || {
        let view = cluster.node_view("node_a")?.context("node_a")?;
        Ok(view["agent_online"] == false)
    })?;
    cluster.cli(&["verify", "node_a", "node_b"])?.expect(6)?;
    Ok(())
}
