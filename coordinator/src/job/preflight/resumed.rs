//! The preflight of `--resume`: what the failed job has kept, and what is read again.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::Finding;

use super::text::{bytes, counted};
use super::{Text, info};
use crate::job::copy_progress::CopyProgress;
use crate::job::{Job, Kept, Step};

/// What a resume keeps and reads.
#[must_use]
pub fn resumed(job: &Job, kept: &Kept, copied: &CopyProgress) -> Finding {
    let done = copied.counted().done;
    let rows = format!(
        "{} with {} rows ({})",
        counted(u64::from(copied.completed()), "table", "tables"),
        done.rows.0,
        bytes(done.bytes)
    );
    let (what, why) = match kept.step {
        Step::Copy => {
            let left = copied.expected().0.saturating_sub(done.bytes.0);
            (
                format!(
                    "{rows} of {} are kept, parts of others included; about {} are left to read",
                    copied.tables().len(),
                    bytes(ByteCount(left))
                ),
                "its snapshot is still there: nothing is read again".to_owned(),
            )
        }
        step if step < Step::Copy => {
            let again = job.lost_snapshots.last().map_or(0, |lost| lost.bytes_again);
            let left = counted(job.unfinished.len() as u64, "table", "tables");
            (
                format!("{rows} are kept; {left} are read under another snapshot"),
                format!(
                    "the one before is lost: {} that had been copied of them are read again",
                    bytes(ByteCount(again))
                ),
            )
        }
        _ => (
            format!("{rows} are kept"),
            "all rows are there: nothing is read again".to_owned(),
        ),
    };
    info("resumed", &job.spec.target, Text::new(what, why, ""))
}
