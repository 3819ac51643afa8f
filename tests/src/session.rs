//! Another session on a server: a `psql` that runs its statements, ended when dropped.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::pg::Database;
use crate::wait;

/// A statement that waits for a job takes no longer than the job.
const LIMIT: Duration = Duration::from_secs(90);

/// A session, identified by its `application_name`.
#[derive(Debug)]
pub struct Session {
    database: Database,
    name: &'static str,
    psql: Child,
}

impl Session {
    /// Starts `sql` without waiting for it.
    ///
    /// # Errors
    /// psql cannot be run.
    pub fn start(database: &Database, name: &'static str, sql: &str) -> Result<Self> {
        let mut psql = database.client("psql");
        psql.env("PGAPPNAME", name)
            .args(["-X", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .stdout(Stdio::null());
        Ok(Self {
            database: database.clone(),
            name,
            psql: psql.spawn()?,
        })
    }

    /// Runs `sql`, and returns once it is done and the session sleeps with its transaction open.
    ///
    /// # Errors
    /// It does not get there.
    pub fn sleeping(database: &Database, name: &'static str, sql: &str) -> Result<Self> {
        let session = Self::start(database, name, &format!("{sql}; SELECT pg_sleep(600)"))?;
        let asleep = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE application_name = '{name}' AND wait_event = 'PgSleep'"
        );
        wait::until_true(&format!("the session {name} to sleep"), LIMIT, || {
            Ok(database.value::<u32>(&asleep)? == 1)
        })?;
        Ok(session)
    }

    /// Waits for its statements to succeed.
    ///
    /// # Errors
    /// One failed, or does not end.
    pub fn succeeds(mut self) -> Result<()> {
        let what = format!("the end of the session {}", self.name);
        let status = wait::until(&what, LIMIT, || Ok(self.psql.try_wait()?))?;
        ensure!(status.success(), "the session {} failed", self.name);
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = '{}'",
            self.name
        );
        drop(self.database.sql(&end));
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}
