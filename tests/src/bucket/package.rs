//! moto, an S3 server that keeps objects in memory, from Python packages. Installed once, in the target
//! directory, like PostgreSQL.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};

use crate::pip::{self, Dependencies};
use crate::{command, paths};

/// Another version may answer differently.
const VERSION: &str = "5.2.5";

/// An installed moto.
#[derive(Debug, Clone)]
pub struct S3Server {
    dir: PathBuf,
}

impl S3Server {
    /// Installs it unless it is installed.
    ///
    /// # Errors
    /// It cannot be downloaded, with the error of each attempt, or does not run here.
    pub fn installed() -> Result<Self> {
        let home = paths::target_dir()?.join("s3-server");
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        // Tests are many processes that start at the same time.
        let lock = File::create(home.join(".lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let found = Self {
            dir: home.join(format!("moto-{VERSION}")),
        };
        if !found.dir.is_dir() {
            eprintln!(
                "moto {VERSION} is not here: installing the Python package into {}",
                home.display()
            );
            let staging = Self {
                dir: home.join(".moto"),
            };
            drop(fs::remove_dir_all(&staging.dir));
            pip::install(
                &format!("moto[server]=={VERSION}"),
                Dependencies::All,
                &staging.dir,
            )
            .context("cannot install the Python package moto[server]")?;
            // Its modules are compiled when they are first loaded, which takes longer than a test waits.
            let mut load = staging.python();
            load.args(["-c", "import moto.server, moto.s3.urls, moto.iam.urls"]);
            command::output(&mut load).context("moto was installed and does not run")?;
            // It gets its final name only once it is complete.
            fs::rename(&staging.dir, &found.dir)?;
        }
        Ok(found)
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &'static str {
        VERSION
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Serves on that port of this machine.
    pub(super) fn command(&self, port: u16) -> Command {
        let mut command = self.python();
        command
            .args(["-m", "moto.server", "--host", "127.0.0.1", "--port"])
            .arg(port.to_string());
        command
    }

    fn python(&self) -> Command {
        let mut python = Command::new("python3");
        // Otherwise each server would compile all its modules again, for seconds.
        python
            .env("PYTHONPATH", &self.dir)
            .env_remove("PYTHONDONTWRITEBYTECODE");
        python
    }
}
