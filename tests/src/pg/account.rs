//! The account servers run under. PostgreSQL refuses to run as root; root's servers run as
//! `postgres` where that account exists, else as `nobody`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// Who a server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Whoever runs the tests.
    Own,
    /// Somebody without privileges, because the tests run as root.
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
    /// That this process is root and there is nobody else.
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

    /// Creates a directory that belongs to this account alone.
    ///
    /// # Errors
    /// That it cannot be created or given away.
    pub fn create_dir(self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        self.give(dir)
    }

    /// Gives a file or directory to this account.
    ///
    /// # Errors
    /// That it cannot be given.
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

/// Whether everybody may pass through every directory on the way to `path`, links resolved, and
/// `path` itself.
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
