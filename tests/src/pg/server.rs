//! A PostgreSQL server for a test: a copy of a template in its own directory, reached over TCP with
//! a password (like agents and subscriptions) and over a socket without (like tests), stopped and
//! removed when dropped.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::account::Account;
use super::database::Database;
use super::install::Installation;
use super::template::Template;
use crate::ports::Port;
use crate::process::tail;
use crate::scratch::Scratch;
use crate::{command, wait};

/// The superuser.
pub const SUPERUSER: &str = "postgres";

/// The database that every server has.
pub const DATABASE: &str = "app";

/// Includes recovery after a crash.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A fast shutdown writes a checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Other processes may take the port before PostgreSQL does.
const PORT_ATTEMPTS: usize = 5;

/// Whether commits wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `fsync = on`, as in production: for demonstrations and measurements.
    Full,
    /// `fsync = off`: tests do not lose power.
    Relaxed,
}

impl Durability {
    /// A directory for the server: on a disk where it is to be durable.
    pub(crate) fn scratch(self) -> Result<Scratch> {
        match self {
            Self::Full => Scratch::new(),
            Self::Relaxed => Scratch::in_memory(),
        }
    }
}

/// The process group of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// The caller's: a test runner that stops a test stops its servers too.
    Shared,
    /// Their own: Ctrl-C is for whoever holds the terminal.
    Own,
}

/// Options of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// For error messages and directory names.
    pub name: String,
    /// Whether commits wait for the disk.
    pub durability: Durability,
    /// Its process group.
    pub grouping: Grouping,
    /// Additional lines of `postgresql.conf`, which override the harness's.
    pub settings: Vec<(String, String)>,
    /// The number of its template. Servers of one cluster need different ones.
    pub template: usize,
    /// Its directory; by default a new one. A given one is not removed.
    pub dir: Option<PathBuf>,
}

impl Options {
    /// Options for a test.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            durability: Durability::Relaxed,
            grouping: Grouping::Shared,
            settings: Vec::new(),
            template: 0,
            dir: None,
        }
    }
}

/// A server, running unless stopped.
#[derive(Debug)]
pub struct Server {
    installation: Installation,
    options: Options,
    account: Account,
    dir: PathBuf,
    port: Port,
    password: String,
    postmaster: Option<Child>,
    /// Whether the server keeps running when dropped.
    released: bool,
    _scratch: Option<Scratch>,
}

impl Server {
    /// Creates a server and starts it.
    ///
    /// # Errors
    /// The error of initdb or the server.
    pub fn start(installation: &Installation, options: Options) -> Result<Self> {
        let (scratch, parent) = match &options.dir {
            Some(dir) => (None, dir.clone()),
            None => {
                let scratch = options.durability.scratch()?;
                let path = scratch.path().to_path_buf();
                (Some(scratch), path)
            }
        };
        let account = Account::for_servers()?;
        let dir = parent.join(&options.name);
        account.create_dir(&dir)?;
        let template = Template::of(installation, options.template)?;
        template.copy_to(&dir.join("data"), account)?;
        let mut server = Self {
            installation: installation.clone(),
            account,
            dir,
            port: Port::take()?,
            password: template.password().to_owned(),
            postmaster: None,
            released: false,
            options,
            _scratch: scratch,
        };
        server.configure()?;
        for attempt in 1.. {
            match server.restart() {
                Ok(()) => break,
                Err(error) if attempt < PORT_ATTEMPTS && server.port_was_taken() => {
                    eprintln!(
                        "{}: port {} was taken: {error:#}",
                        server.name(),
                        server.port()
                    );
                    server.port = Port::take()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(server)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its PostgreSQL.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The password of [`SUPERUSER`], needed over TCP.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A libpq connection string over TCP, without the password.
    #[must_use]
    pub fn conninfo(&self, database: &str) -> String {
        self.conninfo_as(SUPERUSER, database)
    }

    /// The same for another role.
    #[must_use]
    pub fn conninfo_as(&self, role: &str, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={role} dbname={database}",
            self.port()
        )
    }

    /// The postmaster's process, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    /// Its directory, which belongs to its account: data, log and socket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// One of its databases, which need not exist yet.
    #[must_use]
    pub fn database(&self, name: &str) -> Database {
        Database {
            installation: self.installation.clone(),
            socket_dir: self.dir.clone(),
            port: self.port(),
            name: name.to_owned(),
        }
    }

    /// Creates a database.
    ///
    /// # Errors
    /// The server's error.
    pub fn create_database(&self, name: &str) -> Result<Database> {
        self.database("postgres")
            .sql(&format!("CREATE DATABASE {name}"))?;
        Ok(self.database(name))
    }

    /// Starts it again, and returns once it accepts connections.
    ///
    /// # Errors
    /// Why it does not start, with the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let log = File::options().create(true).append(true).open(self.log())?;
        wait::watch(&self.log());
        let mut command = Command::new(self.installation.program("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port().to_string()])
            .arg("-k")
            .arg(&self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.account.apply(&mut command);
        if self.options.grouping == Grouping::Own {
            command.process_group(0);
        }
        self.postmaster = Some(command.spawn().context("cannot run postgres")?);
        let what = format!("{} to take connections", self.name());
        wait::until(&what, START_LIMIT, || {
            if let Some(status) = self.exited()? {
                bail!(
                    "{} ended ({status}):\n{}",
                    self.name(),
                    tail(&self.log(), 30)
                );
            }
            Ok(self.is_ready().then_some(()))
        })
    }

    /// Stops it like `pg_ctl stop -m fast`, and kills it if that takes too long.
    ///
    /// # Errors
    /// It cannot be stopped.
    pub fn stop(&mut self) -> Result<()> {
        for (signal, limit) in [
            (Signal::INT, STOP_LIMIT),
            (Signal::QUIT, STOP_LIMIT),
            (Signal::KILL, STOP_LIMIT),
        ] {
            if self.signal_and_wait(signal, limit)? {
                return Ok(());
            }
        }
        bail!("{} cannot be stopped", self.name())
    }

    /// Ends it without a checkpoint, like a crash of the machine: the next start recovers.
    ///
    /// # Errors
    /// It does not end.
    pub fn crash(&mut self) -> Result<()> {
        if self.signal_and_wait(Signal::QUIT, STOP_LIMIT)? {
            return Ok(());
        }
        bail!("{} did not end", self.name())
    }

    /// Replaces its data by a physical copy of another running server of the same version, and
    /// starts it. Returns the copy's position: everything before it in the other's WAL is in its
    /// rows.
    ///
    /// # Errors
    /// The error of `pg_basebackup` or the server.
    pub fn become_copy_of(&mut self, other: &Database, password: &str) -> Result<String> {
        self.stop()?;
        fs::remove_dir_all(self.data())?;
        let mut backup = other.client("pg_basebackup");
        backup
            .arg("-D")
            .arg(self.data())
            .args(["--wal-method=stream", "--checkpoint=fast", "--no-sync"])
            .current_dir(&self.dir);
        self.account.apply(&mut backup);
        command::output(&mut backup)?;
        password.clone_into(&mut self.password);
        self.restart()?;
        // The end of its recovery; empty without one.
        self.database(other.name())
            .sql("SELECT pg_last_wal_replay_lsn()")
    }

    /// Keeps the server running when dropped; returns its process id.
    #[must_use]
    pub fn release(&mut self) -> Option<u32> {
        self.released = true;
        self.pid()
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn configure(&self) -> Result<()> {
        let conf = self.data().join("postgresql.conf");
        let mut conf = File::options().append(true).open(conf)?;
        for (name, value) in self.settings() {
            writeln!(conf, "{name} = '{value}'")?;
        }
        Ok(())
    }

    /// Ours come first, so that the caller's override them: PostgreSQL uses the last.
    fn settings(&self) -> Vec<(String, String)> {
        let ours = defaults(self.options.durability);
        ours.into_iter()
            .chain(self.options.settings.iter().cloned())
            .collect()
    }

    fn exited(&mut self) -> Result<Option<std::process::ExitStatus>> {
        let Some(child) = &mut self.postmaster else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.postmaster = None;
        }
        Ok(status)
    }

    /// The eighth line of `postmaster.pid` is what `pg_ctl start -w` waits for (`LOCK_FILE_LINE_PM_STATUS`).
    fn is_ready(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.data().join("postmaster.pid")) else {
            return false;
        };
        let mut lines = text.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok());
        pid == self.pid() && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    fn port_was_taken(&self) -> bool {
        tail(&self.log(), 30).contains("could not bind")
    }

    /// Whether it has ended within `limit`.
    fn signal_and_wait(&mut self, signal: Signal, limit: Duration) -> Result<bool> {
        let Some(pid) = self
            .pid()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
        else {
            return Ok(true);
        };
        let _ = kill_process(pid, signal);
        let begun = std::time::Instant::now();
        // Not wait::until: the server must stop even after the user has interrupted everything
        // else.
        while begun.elapsed() < limit {
            if self.exited()?.is_some() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(false)
    }
}

/// The harness's settings.
fn defaults(durability: Durability) -> Vec<(String, String)> {
    let fsync = match durability {
        Durability::Full => "on",
        Durability::Relaxed => "off",
    };
    let ours = [
        ("listen_addresses", "127.0.0.1"),
        ("wal_level", "logical"),
        ("fsync", fsync),
        ("max_connections", "100"),
        ("max_wal_senders", "32"),
        ("max_replication_slots", "32"),
        ("max_worker_processes", "32"),
        ("max_logical_replication_workers", "16"),
        // Subscribers report every second instead of every ten.
        ("wal_receiver_status_interval", "1s"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "15min"),
        ("log_line_prefix", "%m [%p] %a "),
        ("max_prepared_transactions", "4"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    ours.into_iter().map(owned).collect()
}

/// Creates the data of a server that runs elsewhere, such as in a container, with further `settings` and
/// open to every address with the password, which it returns.
///
/// # Errors
/// The error of initdb, or the files cannot be written.
pub fn create_data(
    installation: &Installation,
    template: usize,
    data: &Path,
    settings: &[(&str, &str)],
) -> Result<String> {
    let template = Template::of(installation, template)?;
    template.copy_to(data, Account::for_servers()?)?;
    let append = |name: &str| File::options().append(true).open(data.join(name));
    let mut conf = append("postgresql.conf")?;
    for (name, value) in defaults(Durability::Relaxed) {
        writeln!(conf, "{name} = '{value}'")?;
    }
    for (name, value) in settings {
        writeln!(conf, "{name} = '{value}'")?;
    }
    let mut hba = append("pg_hba.conf")?;
    writeln!(hba, "host all all all scram-sha-256")?;
    writeln!(hba, "host replication all all scram-sha-256")?;
    Ok(template.password().to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // The output of a test is shown only if it fails.
        if self.options.grouping == Grouping::Shared {
            eprintln!("--- {}: end of {} ---", self.name(), self.log().display());
            eprintln!("{}", tail(&self.log(), 20));
        }
        // Data that will be removed needs no checkpoint.
        let ended = self.crash().or_else(|_| self.stop());
        if let Err(error) = ended {
            eprintln!("{error:#}");
        }
    }
}
