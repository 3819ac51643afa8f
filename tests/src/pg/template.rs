//! Data directories created once by initdb and copied for each server, because initdb takes longer
//! than most tests.
//!
//! Each template has its own system identifier. The product takes two servers with the same
//! identifier for physical copies of one database, so the servers of a cluster need different
//! templates.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};

use super::account::Account;
use super::install::Installation;
use super::server::{DATABASE, SUPERUSER};
use crate::scratch::Scratch;
use crate::{command, paths};

/// C.UTF-8 sorts the same everywhere; C is for systems without it.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

const INITDB: [&str; 8] = [
    "-U",
    SUPERUSER,
    "-E",
    "UTF8",
    "--no-sync",
    "--no-instructions",
    "--auth-local=trust",
    "--auth-host=scram-sha-256",
];

/// One hash in place of the 4,096 by which a login slows down those who guess: each connection of an
/// unoptimised build takes milliseconds less. From PostgreSQL 16 on.
const QUICK_LOGINS: [&str; 2] = ["--set", "scram_iterations=1"];

/// Removes a quarter of the files to copy: nobody needs the second template.
const NO_TEMPLATE0: &str =
    "UPDATE pg_database SET datistemplate = false WHERE datname = 'template0'
DROP DATABASE template0
";

/// A data directory to copy, with the database [`DATABASE`].
#[derive(Debug)]
pub(super) struct Template {
    data: PathBuf,
    password: String,
}

impl Template {
    /// The template with that number, created if it does not exist.
    pub(super) fn of(installation: &Installation, number: usize) -> Result<Self> {
        let password = format!("secret of {number}");
        let mut how = DefaultHasher::new();
        (installation.bin(), LOCALES, INITDB).hash(&mut how);
        (QUICK_LOGINS, NO_TEMPLATE0, DATABASE, &password).hash(&mut how);
        let name = format!("{}-{:016x}-{number}", installation.version(), how.finish());
        let home = paths::target_dir()?.join("postgres-templates");
        let template = Self {
            data: home.join(&name),
            password,
        };
        if template.data.is_dir() {
            return Ok(template);
        }
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        // Tests are many processes; the first one creates the template.
        let lock = File::create(home.join(format!(".{name}.lock")))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        if !template.data.is_dir() {
            template.make(installation, &home.join(format!(".{name}")))?;
        }
        Ok(template)
    }

    /// The password of [`SUPERUSER`].
    pub(super) fn password(&self) -> &str {
        &self.password
    }

    /// Copies it to `data`, owned by `account`.
    pub(super) fn copy_to(&self, data: &Path, account: Account) -> Result<()> {
        copy(&self.data, data, account)
            .with_context(|| format!("cannot copy {} to {}", self.data.display(), data.display()))
    }

    /// initdb runs elsewhere, because the servers' account may be unable to enter the target
    /// directory.
    fn make(&self, installation: &Installation, staging: &Path) -> Result<()> {
        let account = Account::for_servers()?;
        let scratch = Scratch::new()?;
        let dir = scratch.path().join("template");
        account.create_dir(&dir)?;
        let (data, password_file) = (dir.join("data"), dir.join("password"));
        fs::write(&password_file, &self.password)?;
        account.give(&password_file)?;
        let run = |mut command: Command, input: &str| {
            account.apply(command.current_dir(&dir));
            command::output_with_input(&mut command, input)
        };
        let initdb = |locale: &str| {
            let mut initdb = Command::new(installation.program("initdb"));
            initdb.arg("-D").arg(&data).args(INITDB);
            if installation.major() >= 16 {
                initdb.args(QUICK_LOGINS);
            }
            initdb.arg(format!("--locale={locale}"));
            initdb.arg(format!("--pwfile={}", password_file.display()));
            run(initdb, "")
        };
        initdb(LOCALES[0]).or_else(|_| {
            drop(fs::remove_dir_all(&data));
            initdb(LOCALES[1])
        })?;
        let mut single = Command::new(installation.program("postgres"));
        single.arg("--single").arg("-D").arg(&data);
        single.args(["-c", "fsync=off", "-c", "exit_on_error=on", "postgres"]);
        run(
            single,
            &format!("{NO_TEMPLATE0}CREATE DATABASE {DATABASE}\n"),
        )?;
        drop(fs::remove_dir_all(staging));
        copy(&data, staging, Account::Own)?;
        fs::rename(staging, &self.data)?;
        Ok(())
    }
}

/// Copies files with their modes.
fn copy(from: &Path, to: &Path, account: Account) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    account.give(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to, account)?;
        } else {
            fs::copy(&from, &to)?;
            account.give(&to)?;
        }
    }
    Ok(())
}
