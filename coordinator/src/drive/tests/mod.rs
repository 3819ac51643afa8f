//! The loop against a cluster in memory: requests, sessions, restarts, deaths, drift.

mod drift;
mod faults;
mod flow;
mod handover;
mod identity;
mod missing;
mod requests;
mod watching;
mod world;

use steep_protocol::message::agent::{Command, SlotStatus, SubscriptionStatus};
use steep_protocol::{ByteCount, JobId};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn is_copy(command: &Command) -> bool {
    matches!(command, Command::Copy { .. })
}

fn is_cleanup(command: &Command) -> bool {
    matches!(
        command,
        Command::CleanupSource { .. } | Command::CleanupTarget { .. }
    )
}

fn slot(job: JobId, wal_status: &str) -> SlotStatus {
    SlotStatus {
        job,
        active: true,
        lag: ByteCount(77),
        wal_held: ByteCount(99),
        wal_status: wal_status.to_owned(),
    }
}

fn subscription(job: JobId, enabled: bool) -> SubscriptionStatus {
    SubscriptionStatus {
        job,
        enabled,
        running: true,
        apply_errors: 0,
    }
}
