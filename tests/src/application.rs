//! Applications that write rows and connect again, as libpq does with several hosts and
//! `target_session_attrs=read-write`: to the first one that takes writes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::pg::Database;
use crate::wait;

/// The table that they write to. Its numbers come from a sequence.
pub const TABLE: &str =
    "CREATE TABLE \"Work\" (id bigserial PRIMARY KEY, writer int NOT NULL, n bigint NOT NULL)";

/// Between two attempts to connect, and between two rows.
const PAUSE: Duration = Duration::from_millis(20);

const LIMIT: Duration = Duration::from_secs(60);

/// A row whose commit was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acknowledged {
    /// Its number, from the sequence.
    pub id: u64,
    /// Whose it is.
    pub writer: u32,
    /// Which one of that writer's.
    pub n: u64,
    /// The port of the server that acknowledged it.
    pub port: u16,
    /// When.
    pub at: Instant,
}

/// Some applications, ended when dropped.
#[derive(Debug)]
pub struct Applications {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<Written>>>,
}

/// What one application has seen.
#[derive(Debug, Default)]
struct Written {
    rows: Vec<Acknowledged>,
    errors: String,
}

/// What all of them have seen.
#[derive(Debug)]
pub struct Done {
    /// Every row whose commit was acknowledged, in order of its time.
    pub rows: Vec<Acknowledged>,
    /// What servers have said.
    pub errors: String,
}

impl Done {
    /// The longest time without a commit.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let pairs = self.rows.windows(2);
        let gaps = pairs.map(|pair| pair[1].at.duration_since(pair[0].at));
        gaps.max().unwrap_or_default()
    }

    /// The acknowledged rows that a database does not have.
    ///
    /// # Errors
    /// The server's error.
    pub fn missing(&self, database: &Database) -> Result<Vec<Acknowledged>> {
        let there = database.rows("SELECT id, writer, n FROM \"Work\"")?;
        let there: std::collections::BTreeSet<String> =
            there.into_iter().map(|row| row.join(" ")).collect();
        let known =
            |row: &&Acknowledged| !there.contains(&format!("{} {} {}", row.id, row.writer, row.n));
        Ok(self.rows.iter().filter(known).copied().collect())
    }
}

impl Applications {
    /// Starts `count` of them against these databases.
    ///
    /// # Errors
    /// Nothing is written.
    pub fn start(databases: &[Database], count: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..count)
            .map(|writer| {
                let (stop, databases) = (Arc::clone(&stop), databases.to_vec());
                std::thread::spawn(move || write(&databases, writer, &stop))
            })
            .collect();
        let all = Self { stop, writers };
        wait::until_true("applications to write", LIMIT, || {
            let count: u64 = databases[0].value("SELECT count(*) FROM \"Work\"")?;
            Ok(count > u64::from(all.writers.len() as u32))
        })?;
        Ok(all)
    }

    /// Ends them.
    ///
    /// # Errors
    /// One of them could not be run.
    pub fn stop(mut self) -> Result<Done> {
        self.stop.store(true, Ordering::Relaxed);
        let mut done = Done {
            rows: Vec::new(),
            errors: String::new(),
        };
        for writer in std::mem::take(&mut self.writers) {
            let written = writer
                .join()
                .map_err(|_| anyhow::anyhow!("a writer panicked"))??;
            done.rows.extend(written.rows);
            done.errors.push_str(&written.errors);
        }
        done.rows.sort_by_key(|row| row.at);
        Ok(done)
    }
}

impl Drop for Applications {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A psql with its ends.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn connect(databases: &[Database]) -> Result<Self> {
        let hosts: Vec<String> = databases
            .iter()
            .map(|database| database.socket_dir().display().to_string())
            .collect();
        let ports: Vec<String> = databases.iter().map(|d| d.port().to_string()).collect();
        let mut psql = databases[0].client("psql");
        psql.env("PGHOST", hosts.join(","))
            .env("PGPORT", ports.join(","))
            .env("PGTARGETSESSIONATTRS", "read-write")
            .env("PGAPPNAME", "application")
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = psql.spawn()?;
        let input = child.stdin.take().context("stdin")?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self {
            child,
            input,
            output,
        })
    }

    /// Writes a row; `None` where that was not acknowledged.
    fn write(&mut self, writer: u32, n: u64) -> Option<(u64, u16)> {
        let sql = format!(
            "INSERT INTO \"Work\" (writer, n) VALUES ({writer}, {n}) \
             RETURNING id, current_setting('port');\n"
        );
        self.input.write_all(sql.as_bytes()).ok()?;
        self.input.flush().ok()?;
        let mut line = String::new();
        self.output.read_line(&mut line).ok()?;
        let (id, port) = line.trim().split_once('|')?;
        Some((id.parse().ok()?, port.parse().ok()?))
    }

    fn end(mut self) -> Result<String> {
        drop(self.input);
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut errors)?;
        }
        self.child.wait()?;
        Ok(errors)
    }
}

fn write(databases: &[Database], writer: u32, stop: &AtomicBool) -> Result<Written> {
    let mut written = Written::default();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut client = Client::connect(databases)?;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            let Some((id, port)) = client.write(writer, n) else {
                break;
            };
            written.rows.push(Acknowledged {
                id,
                writer,
                n,
                port,
                at: Instant::now(),
            });
            std::thread::sleep(PAUSE);
        }
        written.errors.push_str(&client.end()?);
        std::thread::sleep(PAUSE);
    }
    Ok(written)
}
