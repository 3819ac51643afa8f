//! The `age` tool, which opens encrypted snapshots without steep-repl: the machine's, or Debian's package unpacked
//! once in the target directory, which needs no privileges.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::required::or_not_tested;
use crate::{command, paths};

/// An installed `age`.
#[derive(Debug, Clone)]
pub struct Age {
    bin: PathBuf,
}

impl Age {
    /// Finds or unpacks it; `None`, and says so, where that cannot be done: on CI, that is an error.
    ///
    /// # Errors
    /// It cannot be installed on CI.
    pub fn installed() -> Result<Option<Self>> {
        or_not_tested(Self::find(), "there is no age on this machine")
    }

    /// The directory of its programs.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).find(|dir| dir.join("age").is_file());
        match on_path {
            Some(bin) => Ok(Self { bin }),
            None => Self::unpacked(),
        }
    }

    fn unpacked() -> Result<Self> {
        let home = paths::target_dir()?.join("age");
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        // Tests are many processes that start at the same time.
        let lock = File::create(home.join(".lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let dir = home.join("debian");
        if !dir.is_dir() {
            eprintln!(
                "age is not here: unpacking Debian's package into {}",
                home.display()
            );
            let staging = home.join(".debian");
            drop(fs::remove_dir_all(&staging));
            fs::create_dir_all(&staging)?;
            download(&staging)?;
            let package = fs::read_dir(&staging)?.filter_map(Result::ok);
            let mut package = package.map(|entry| entry.path());
            let package = package.find(|path| path.extension().is_some_and(|end| end == "deb"));
            let mut unpack = Command::new("dpkg-deb");
            unpack
                .arg("--extract")
                .arg(package.context("a package")?)
                .arg(&staging);
            command::output(&mut unpack)?;
            // It gets its final name only once it is complete.
            fs::rename(&staging, &dir)?;
        }
        let bin = dir.join("usr/bin");
        ensure!(bin.join("age").is_file(), "Debian's package has no age");
        Ok(Self { bin })
    }
}

/// Downloads the package. A new machine has no lists of packages yet, and only root gets them.
fn download(into: &Path) -> Result<()> {
    let get = || {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet", "download", "age"]).current_dir(into);
        command::output(&mut apt).map(drop)
    };
    get().or_else(|_| {
        command::output(Command::new("apt-get").args(["--quiet", "update"]))?;
        get()
    })
}
