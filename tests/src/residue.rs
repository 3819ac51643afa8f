//! Checks that a cancelled or failed job has left nothing of ours on a server.

use anyhow::Result;

use crate::compare::Differences;
use crate::pg::Database;

/// Our slots, publications, subscriptions, origins, ledger rows and sessions. An agent observes its server
/// for as long as it runs.
const OURS: &str = "
    SELECT 'slot ' || slot_name FROM pg_replication_slots
    UNION ALL SELECT 'publication ' || pubname FROM pg_publication
    UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
    UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
    UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts
    UNION ALL SELECT 'walsender ' || pid FROM pg_stat_replication
    UNION ALL SELECT 'a transaction of ' || application_name FROM pg_stat_activity
              WHERE application_name LIKE 'steep-repl%' AND state LIKE 'idle in transaction%'
                  AND application_name <> 'steep-repl observer'";

/// What is left of ours on a server.
///
/// # Errors
/// The server's error.
pub fn of_jobs(database: &Database) -> Result<Differences> {
    let mut left: Vec<String> = database.rows(OURS)?.into_iter().flatten().collect();
    let ledger = "SELECT to_regclass('steep_repl.copy_ledger') IS NOT NULL";
    if database.sql(ledger)? == "t" {
        let rows: u64 = database.value("SELECT count(*) FROM steep_repl.copy_ledger")?;
        if rows > 0 {
            left.push(format!("{rows} rows of the ledger"));
        }
    }
    Ok(Differences(left))
}

/// [`of_jobs`], plus every object in users' schemas, for a target that was empty.
///
/// # Errors
/// The server's error.
pub fn of_everything(database: &Database) -> Result<Differences> {
    let mut left = of_jobs(database)?;
    let objects = database.rows(
        "SELECT 'relation ' || c.oid::regclass::text
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'steep_repl')
         UNION ALL
         SELECT 'schema ' || nspname FROM pg_namespace
         WHERE nspname NOT LIKE 'pg\\_%'
           AND nspname NOT IN ('information_schema', 'steep_repl', 'public')
         UNION ALL
         SELECT 'type ' || t.oid::regtype::text
         FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
         WHERE n.nspname = 'public' AND t.typtype <> 'b'
         UNION ALL
         SELECT 'extension ' || extname FROM pg_extension WHERE extname <> 'plpgsql'",
    )?;
    left.0.extend(objects.into_iter().flatten());
    Ok(left)
}
