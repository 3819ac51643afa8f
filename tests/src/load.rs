//! A write load that runs until dropped: pgbench's own transactions, inserts, updates and deletes on the shop, and
//! transactions that are rolled back.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::pg::{Database, Grouping};
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait;

/// One transaction of the shop. Each adds exactly one row to `shop.event`, which counts them.
const SHOP: &str = include_str!("sql/shop_load.sql");

/// Scripts of a weight of one, by the names of their files.
const SCRIPTS: [(&str, &str); 2] = [
    ("shop.sql", SHOP),
    ("rolled_back.sql", include_str!("sql/rolled_back.sql")),
];

/// The first transactions follow pgbench's connection.
const BEGIN_LIMIT: Duration = Duration::from_secs(20);

/// The intensity of a load.
#[derive(Debug, Clone, Copy)]
pub struct Intensity {
    /// Connections.
    pub clients: u32,
    /// Transactions a second over all connections; unlimited if `None`.
    pub rate: Option<u32>,
}

impl Intensity {
    /// One that leaves a busy machine room.
    pub const LIGHT: Self = Self {
        clients: 2,
        rate: Some(40),
    };
}

/// The result of a load.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Transactions committed.
    pub transactions: u64,
    /// Its running time.
    pub took: Duration,
}

impl Done {
    /// Transactions a second.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "transactions of one run stay below 2^52"
    )]
    pub fn per_second(&self) -> f64 {
        self.transactions as f64 / self.took.as_secs_f64()
    }
}

/// A running load, killed when dropped.
#[derive(Debug)]
pub struct Load {
    pgbench: Process,
    database: Database,
    before: u64,
    begun: Instant,
    _scratch: Scratch,
}

impl Load {
    /// Starts writing to a database with the sample, and returns once rows arrive.
    ///
    /// # Errors
    /// pgbench does not start, or nothing arrives.
    pub fn start(database: &Database, intensity: Intensity, grouping: Grouping) -> Result<Self> {
        let scratch = Scratch::new()?;
        for (name, script) in SCRIPTS {
            fs::write(scratch.path().join(name), script)?;
        }
        let before = transactions(database)?;
        let mut command = database.client("pgbench");
        arguments(&mut command, intensity);
        command.current_dir(scratch.path());
        let log = scratch.path().join("pgbench.log");
        let pgbench = Process::spawn("pgbench", &mut command, &log, grouping)?;
        let load = Self {
            pgbench,
            database: database.clone(),
            before,
            begun: Instant::now(),
            _scratch: scratch,
        };
        load.wait_for(1, BEGIN_LIMIT)?;
        Ok(load)
    }

    /// Waits for that many more committed transactions.
    ///
    /// # Errors
    /// They do not come, with pgbench's output.
    pub fn wait_for(&self, transactions_more: u64, limit: Duration) -> Result<()> {
        let goal = transactions(&self.database)? + transactions_more;
        let what = format!("{transactions_more} transactions of pgbench");
        wait::until_true(&what, limit, || {
            anyhow::ensure!(
                crate::usage::is_alive(self.pgbench.pid()),
                "pgbench has ended"
            );
            Ok(transactions(&self.database)? >= goal)
        })
        .with_context(|| crate::process::tail(self.pgbench.log(), 10))
    }

    /// Stops writing and returns what was written.
    ///
    /// # Errors
    /// pgbench has failed before, with its output.
    pub fn stop(self) -> Result<Done> {
        if !crate::usage::is_alive(self.pgbench.pid()) {
            anyhow::bail!(
                "pgbench ended early:\n{}",
                crate::process::tail(self.pgbench.log(), 10)
            );
        }
        let took = self.begun.elapsed();
        self.pgbench.kill()?;
        // A transaction still commits or aborts after its client is gone.
        let alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        wait::until_true("the last transactions of pgbench", BEGIN_LIMIT, || {
            Ok(self.database.value::<u64>(alive)? == 0)
        })?;
        let transactions = transactions(&self.database)? - self.before;
        Ok(Done { transactions, took })
    }
}

fn arguments(command: &mut Command, intensity: Intensity) {
    command
        .env("PGAPPNAME", "pgbench")
        .args(["--no-vacuum", "--time", "86400", "--builtin", "tpcb-like@3"])
        .args(SCRIPTS.iter().flat_map(|(name, _)| ["--file", name]))
        .args(["--client", &intensity.clients.to_string()]);
    if let Some(rate) = intensity.rate {
        command.args(["--rate", &rate.to_string()]);
    }
}

/// Every committed transaction of the load adds one row to one of these.
fn transactions(database: &Database) -> Result<u64> {
    database.value(
        "SELECT (SELECT count(*) FROM public.pgbench_history) + (SELECT count(*) FROM shop.event)",
    )
}
