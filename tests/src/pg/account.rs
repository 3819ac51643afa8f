//! The account of the servers. PostgreSQL refuses to run as root, so root's servers run as
//! `postgres` if that account exists, otherwise as `nobody`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// The account that a server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// The user who runs the tests.
    Own,
    /// An unprivileged account, because the tests run as root.
    Unprivileged {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Account {
    /// The account for servers of this process.
    ///
    /// # Errors
    /// This process is root and there is no other account.
    pub fn for_servers() -> Result<Self> {
        if !rustix::process::getuid().is_root() {
            return Ok(Self::Own);
        }
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| find(&passwd, name))
            .context("neither postgres nor nobody is in /etc/passwd, and PostgreSQL refuses root")
    }

    /// Makes `command` run under this account.
    pub fn apply(self, command: &mut Command) {
        if let Self::Unprivileged { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Creates a directory that only this account can use.
    ///
    /// # Errors
    /// It cannot be created or its owner not changed.
    pub fn create_dir(self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        self.give(dir)
    }

    /// Changes the owner of a file or directory to this account.
    ///
    /// # Errors
    /// The owner cannot be changed.
    pub fn give(self, path: &Path) -> Result<()> {
        if let Self::Unprivileged { uid, gid } = self {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to uid {uid}", path.display()))?;
        }
        Ok(())
    }

    /// Whether this account can reach `path` and read it.
    #[must_use]
    pub fn can_read(self, path: &Path) -> bool {
        match self {
            Self::Own => fs::metadata(path).is_ok(),
            Self::Unprivileged { uid, .. } => {
                open_to_others(path) || fs::metadata(path).is_ok_and(|meta| meta.uid() == uid)
            }
        }
    }
}

/// Whether everybody may enter every directory above `path`, links resolved, and read `path`.
#[must_use]
pub fn open_to_others(path: &Path) -> bool {
    let Ok(real) = path.canonicalize() else {
        return false;
    };
    real.ancestors()
        .all(|step| fs::metadata(step).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

/// An account's line in `/etc/passwd` (passwd(5)).
fn find(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut numbers = fields.skip(1).map_while(|field| field.parse::<u32>().ok());
        Some(Account::Unprivileged {
            uid: numbers.next()?,
            gid: numbers.next()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533:n:/:/bin/false\n";
        assert_eq!(
            find(passwd, "nobody"),
            Some(Account::Unprivileged {
                uid: 65534,
                gid: 65533
            })
        );
        assert_eq!(find(passwd, "postgres"), None);
    }

    #[test]
    fn a_private_directory_is_not_open_to_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!open_to_others(dir.path()));
        assert!(open_to_others(Path::new("/usr")));
    }
}
