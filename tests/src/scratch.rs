//! Temporary directories that a server under another account can use, removed when dropped; and
//! cleanup after killed runs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context as _, Result};
use rustix::fs::statvfs;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::pg::account;
use crate::usage;

/// The prefix of their names; the id of the owning process follows.
const PREFIX: &str = "steep-repl-run-";

/// Bytes that must be free in memory: a few clusters at once take up to half of it.
const MEMORY_MIN: u64 = 4 << 30;

/// If set, the directories of a run are kept, with logs and data.
pub const KEEP_VARIABLE: &str = "STEEP_TEST_KEEP";

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// Creates one on a disk.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn new() -> Result<Self> {
        Self::within(disk())
    }

    /// Creates one in memory, where the machine has enough: files of servers that are soon removed cost a
    /// file system more time than the tests that wrote them.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn in_memory() -> Result<Self> {
        Self::within(memory_or_disk())
    }

    fn within(base: PathBuf) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(|| {
            for base in memory().into_iter().chain([disk()]) {
                sweep(&base);
            }
        });
        let mut dir = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir_in(&base)
            .with_context(|| format!("cannot create a directory in {}", base.display()))?;
        // Other accounts may enter it, as the server's must, but not list it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        if std::env::var_os(KEEP_VARIABLE).is_some() {
            dir.disable_cleanup(true);
            eprintln!("keeping {}", dir.path().display());
        }
        Ok(Self { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Where servers keep their data best that are soon removed: in memory, where the machine has enough.
#[must_use]
pub fn memory_or_disk() -> PathBuf {
    memory().unwrap_or_else(disk)
}

/// The directory for temporary files, unless socket paths in it would be too long (107 bytes,
/// unix(7)) or the server's account cannot enter it.
fn disk() -> PathBuf {
    let usual = std::env::temp_dir();
    let short = usual.as_os_str().len() < 50;
    if short && account::open_to_others(&usual) {
        usual
    } else {
        PathBuf::from("/tmp")
    }
}

/// Linux's file system in memory, unless other programs or a container's limit leave it little space.
fn memory() -> Option<PathBuf> {
    let dir = PathBuf::from("/dev/shm");
    let free = statvfs(&dir).ok()?;
    let enough = free.f_bavail * free.f_frsize >= MEMORY_MIN;
    (enough && account::open_to_others(&dir)).then_some(dir)
}

/// Removes directories of runs whose process is gone, and ends the servers in them.
fn sweep(base: &Path) {
    let me = rustix::process::getuid().as_raw();
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        let ours = entry
            .metadata()
            .is_ok_and(|meta| meta.uid() == me && meta.is_dir());
        if let Some(owner) = owner
            && ours
            && !usage::is_alive(owner)
        {
            end_processes_in(&entry.path());
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// Ends every process whose working directory or arguments are in `dir`.
fn end_processes_in(dir: &Path) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok());
        let inside = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if let (true, Some(pid)) = (inside, pid.and_then(Pid::from_raw)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_value() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_path_buf();
        assert!(path.is_dir());
        drop(scratch);
        assert_eq!(path.exists(), std::env::var_os(KEEP_VARIABLE).is_some());
    }
}
