//! Checks that the data directory is the coordinator's alone: whoever can write to it, or replace a file
//! with a link, controls the coordinator.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

use super::StoreError;

/// Write permission of group and others.
const WRITE_BY_OTHERS: u32 = 0o022;

/// Checks the directory and its existing files.
///
/// # Errors
/// [`StoreError::Place`], which says what is wrong and how to fix it.
pub(super) fn check(directory: &Path, files: &[&str]) -> Result<(), StoreError> {
    let refuse = |path: &Path, why: String| {
        let path = path.to_owned();
        Err(StoreError::Place { path, why })
    };
    // The directory itself may be reached by a link: only its owner and mode matter.
    let found = std::fs::metadata(directory).map_err(|source| StoreError::File {
        what: "look at",
        path: directory.to_owned(),
        source,
    })?;
    if let Some(why) = misplaced(&found) {
        return refuse(directory, why);
    }
    for file in files {
        let path = directory.join(file);
        let Ok(found) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if !found.is_file() || found.nlink() != 1 {
            let why = "it is a link, or another name for a file elsewhere: move that file here";
            return refuse(&path, why.to_owned());
        }
        if let Some(why) = misplaced(&found) {
            return refuse(&path, why);
        }
    }
    Ok(())
}

fn misplaced(found: &Metadata) -> Option<String> {
    let own = geteuid().as_raw();
    if found.uid() != own {
        return Some(format!(
            "it belongs to user {}, and the coordinator runs as user {own}: chown it, or name another --data-dir",
            found.uid()
        ));
    }
    (found.mode() & WRITE_BY_OTHERS != 0).then(|| {
        format!(
            "others may write to it (mode {:o}): chmod go-w it",
            found.mode() & 0o7777
        )
    })
}
