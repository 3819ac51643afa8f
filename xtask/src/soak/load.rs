//! The write load: transactions that each write to every kind of table, from a pgbench that is started
//! again whenever its server comes back. Owns the tables and what can be checked about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use steep_tests::pg::Database;
use steep_tests::{sample, wait};

const TABLES: &str = include_str!("sql/tables.sql");
const TRANSACTION: &str = include_str!("sql/load.sql");
const SUMS: &str = include_str!("sql/sums.sql");

/// Connections, and transactions a second over all of them.
const CLIENTS: &str = "4";
const RATE: &str = "200";

/// Between the end of a pgbench and the next one.
const PAUSE: Duration = Duration::from_millis(200);

/// Transactions start and end within this time.
const LIMIT: Duration = Duration::from_secs(30);

/// A running load, stopped when dropped.
#[derive(Debug)]
pub(super) struct Load {
    database: Database,
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

/// Creates and fills the tables.
pub(super) fn create(database: &Database) -> Result<()> {
    sample::slowly(database)?;
    database.sql(TABLES).map(drop)
}

/// Transactions committed so far.
pub(super) fn transactions(database: &Database) -> Result<u64> {
    database.value("SELECT count(*) FROM soak.entry")
}

/// Checks that no transaction was applied in part.
pub(super) fn check_sums(database: &Database) -> Result<()> {
    let sums = database.rows(SUMS)?.pop().context("sums")?;
    ensure!(
        sums.windows(2).all(|two| two[0] == two[1]),
        "the sums of one amount differ: {}",
        sums.join(", ")
    );
    Ok(())
}

impl Load {
    /// Begins to write, and returns once rows arrive.
    pub(super) fn start(database: &Database, dir: &Path) -> Result<Self> {
        let script = dir.join("load.sql");
        fs::write(&script, TRANSACTION)?;
        let log = dir.join("load.log");
        let stop = Arc::new(AtomicBool::new(false));
        let (db, until) = (database.clone(), Arc::clone(&stop));
        let keeper = std::thread::spawn(move || keep_writing(&db, &script, &log, &until));
        let load = Self {
            database: database.clone(),
            stop,
            keeper: Some(keeper),
        };
        wait::until_true("the load to write", LIMIT, || {
            Ok(transactions(database)? > 0)
        })?;
        Ok(load)
    }

    /// Stops writing, and returns once the last transaction has ended.
    pub(super) fn stop(mut self) -> Result<u64> {
        self.end();
        let alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'soak load'";
        wait::until_true("the last transactions of the load", LIMIT, || {
            Ok(self.database.value::<u64>(alive)? == 0)
        })?;
        let written = transactions(&self.database)?;
        if written == 0 {
            bail!("the load wrote nothing");
        }
        Ok(written)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.take() {
            drop(keeper.join());
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn keep_writing(database: &Database, script: &PathBuf, log: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        if let Ok(mut pgbench) = spawn(database, script, log) {
            while !stop.load(Ordering::SeqCst) && matches!(pgbench.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(50));
            }
            drop(pgbench.kill());
            drop(pgbench.wait());
        }
        std::thread::sleep(PAUSE);
    }
}

fn spawn(database: &Database, script: &PathBuf, log: &Path) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(log)?;
    let mut command: Command = database.client("pgbench");
    command
        .env("PGAPPNAME", "soak load")
        .args(["--no-vacuum", "--time", "86400", "--client", CLIENTS])
        .args(["--rate", RATE, "--max-tries", "100", "--file"])
        .arg(script)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command.spawn()?)
}
