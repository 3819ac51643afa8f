//! Room for a spool. The source's own files often lie on the same disk: some of it always stays free for them.

use std::path::Path;

use rustix::fs::statvfs;
use steep_protocol::{ByteCount, Fault, FaultKind, NodeId, Retry};

/// The share of the disk that a spool leaves free…
const RESERVE_SHARE: u64 = 20;

/// …at least: a WAL segment of every client of a busy server…
const RESERVE_MIN: u64 = 256 << 20;

/// …and at most.
const RESERVE_MAX: u64 = 32 << 30;

/// The state of the disk that a directory is on, which need not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    free: u64,
    reserve: u64,
}

impl Disk {
    fn of(total: u64, free: u64) -> Self {
        let reserve = (total / RESERVE_SHARE).clamp(RESERVE_MIN, RESERVE_MAX);
        Self { free, reserve }
    }

    fn look(directory: &Path) -> Option<Self> {
        let there = directory.ancestors().find(|path| path.is_dir())?;
        let stat = statvfs(there).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(Self::of(bytes(stat.f_blocks), bytes(stat.f_bavail)))
    }

    fn room(self) -> u64 {
        self.free.saturating_sub(self.reserve)
    }
}

/// How much can be spooled in a directory; `None` if that cannot be seen.
pub(crate) fn room(directory: &Path) -> Option<ByteCount> {
    Disk::look(directory).map(|disk| ByteCount(disk.room()))
}

/// Fails, for now, where a spool has used up its room.
pub(super) fn check(directory: &Path, node: &NodeId) -> Result<(), Fault> {
    match Disk::look(directory) {
        Some(disk) if disk.room() == 0 => {
            let text = format!(
                "the disk of the spool in {} has {} MB left, and {} MB of it stay free for the source",
                directory.display(),
                disk.free / 1_000_000,
                disk.reserve / 1_000_000
            );
            Err(Fault::new(FaultKind::Failed, text)
                .on(node)
                .hint("make room there; until then the targets read the source itself")
                .retry(Retry::Backoff))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_the_disk_stays_free_within_bounds() {
        let room = |total, free| Disk::of(total, free).room();
        assert_eq!(room(100 << 30, 50 << 30), 45 << 30);
        assert_eq!(room(1 << 30, 1 << 30), (1 << 30) - RESERVE_MIN);
        assert_eq!(room(64 << 40, 1 << 40), (1 << 40) - RESERVE_MAX);
        assert_eq!(room(100 << 30, 4 << 30), 0);
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_has_the_room_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert!(room(&dir.path().join("not/yet")).is_some());
    }
}
