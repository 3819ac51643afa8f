//! Detects how long a job has not moved. Pure: time comes in as a value.
//!
//! A rate does not show a stall: it is smoothed, phases that count items have none, and a long statement
//! has no counts at all. The time without any change does; how long is too long depends on the phase.

use jiff::Timestamp;
use steep_protocol::message::agent::WorkProgress;
use steep_protocol::{ByteCount, Phase};

use super::super::{Job, Stage, Step, Totals};
use super::current_phase;
use crate::job::copy_progress::CopyProgress;

/// Values of which at least one changes whenever a job moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sign {
    phase: Option<Phase>,
    step: Option<Step>,
    done: Totals,
    bytes: ByteCount,
    wire: ByteCount,
    parts: u64,
}

impl Sign {
    pub(super) fn of(job: &Job, copied: &CopyProgress) -> Self {
        Self {
            phase: current_phase(job),
            step: match job.stage {
                Stage::Working(step) => Some(step),
                Stage::Ending(_) | Stage::Kept(_) | Stage::Closed(_) => None,
            },
            done: copied.counted().done,
            bytes: copied.bytes(),
            wire: copied.wire(),
            // Another part in flight may happen to have the same byte count.
            parts: copied.flight().iter().map(|f| u64::from(f.part.0)).sum(),
        }
    }
}

/// A report on work that is not counted in parts. Without its total, which grows with the work left to do.
#[derive(Debug, Clone, PartialEq, Default)]
struct Report {
    done: u64,
    workers: u8,
    current: Option<String>,
}

impl Report {
    fn replace(&mut self, work: &WorkProgress) -> bool {
        let same =
            self.done == work.done && self.workers == work.workers && self.current == work.current;
        if !same {
            self.done = work.done;
            self.workers = work.workers;
            self.current.clone_from(&work.current);
        }
        !same
    }
}

/// Since when a job has not moved.
#[derive(Debug, Clone, Default)]
pub(super) struct Stall {
    sign: Option<Sign>,
    shown: Report,
    background: Report,
    /// Whether a report since the last observation showed movement.
    moved: bool,
    since: Option<Timestamp>,
}

impl Stall {
    pub(super) fn heard(&mut self, work: &WorkProgress) {
        self.moved |= self.shown.replace(work);
    }

    pub(super) fn heard_background(&mut self, work: &WorkProgress) {
        self.moved |= self.background.replace(work);
    }

    pub(super) fn observe(&mut self, sign: Sign, now: Timestamp) {
        let moved = std::mem::take(&mut self.moved) || self.sign != Some(sign);
        if moved || self.since.is_none() {
            self.since = Some(now);
        }
        self.sign = Some(sign);
    }

    pub(super) fn seconds(&self, now: Timestamp) -> f64 {
        let since = self.since.unwrap_or(now);
        (now.as_millisecond() - since.as_millisecond()).max(0) as f64 / 1e3
    }
}
