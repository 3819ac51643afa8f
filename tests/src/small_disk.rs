//! A disk that gets full.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rustix::fs::statvfs;

use crate::command;
use crate::pg::account::Account;

/// A file system in memory, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

/// How often a size is chosen anew.
const SIZES_TRIED: usize = 50;

impl SmallDisk {
    /// Mounts one of that many MiB, with a directory `space` for the servers' account. `None` if this process
    /// may not mount.
    ///
    /// # Errors
    /// The directories cannot be made.
    pub fn mount(at: &Path, mebibytes: u32) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let account = Account::for_servers()?;
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mebibytes}m,mode=0755"))
            .arg("tmpfs")
            .arg(at);
        if command::output(&mut mount).is_err() {
            return Ok(None);
        }
        let mounted = Self(at.to_path_buf());
        account.create_dir(&at.join("space"))?;
        Ok(Some(mounted))
    }

    /// The bytes of its files.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn used(&self) -> Result<u64> {
        let stat = statvfs(&self.0)?;
        Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
    }

    /// From now on, it has that many bytes free and no more, whatever it was mounted with.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn leave_bytes(&self, more: u64) -> Result<()> {
        // A size below what is used is refused, and others may be writing.
        let mut tried = 0;
        loop {
            // A size of zero is none.
            let size = (self.used()? + more).max(1);
            tried += 1;
            match self.remount(&format!("size={size}")) {
                Err(_) if tried < SIZES_TRIED => {}
                done => return done,
            }
        }
    }

    /// From now on, it takes `more` new files and directories and no other.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn leave_inodes(&self, more: u64) -> Result<()> {
        let stat = statvfs(&self.0)?;
        let used = stat.f_files - stat.f_ffree;
        self.remount(&format!("nr_inodes={}", used + more))
    }

    fn remount(&self, option: &str) -> Result<()> {
        let mut remount = Command::new("mount");
        remount
            .args(["-o", &format!("remount,{option}")])
            .arg(&self.0);
        command::output(&mut remount).map(drop)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because the server still has open files.
        drop(command::output(
            Command::new("umount").arg("-l").arg(&self.0),
        ));
    }
}
