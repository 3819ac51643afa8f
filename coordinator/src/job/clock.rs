//! How long each phase of a job took.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::Phase;
use steep_protocol::message::api::PhaseSeconds;

/// Time by phase. Only one phase is current.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PhaseClock {
    /// The current phase and when it began.
    pub current: Option<(Phase, Timestamp)>,
    /// Milliseconds spent in finished phases.
    pub spent: Vec<(Phase, u64)>,
}

impl PhaseClock {
    /// Ends the current phase; returns it and its milliseconds.
    pub fn stop(&mut self, now: Timestamp) -> Option<(Phase, u64)> {
        let (phase, began) = self.current.take()?;
        let millis = u64::try_from(now.as_millisecond() - began.as_millisecond()).unwrap_or(0);
        self.spent.push((phase, millis));
        Some((phase, millis))
    }

    /// Begins a phase.
    pub fn start(&mut self, phase: Phase, now: Timestamp) {
        self.current = Some((phase, now));
    }

    /// The sums for the final report.
    #[must_use]
    pub fn seconds(&self) -> PhaseSeconds {
        let of = |phases: &[Phase]| {
            let spent = self
                .spent
                .iter()
                .filter(|(phase, _)| phases.contains(phase));
            seconds(spent.map(|(_, millis)| millis).sum())
        };
        PhaseSeconds {
            preparing: of(&[Phase::Preflight, Phase::Snapshot, Phase::Schema]),
            copying: of(&[Phase::Copy]),
            indexing: of(&[Phase::Indexes, Phase::Constraints]),
            catching_up: of(&[Phase::Swap, Phase::Subscribe, Phase::CatchUp, Phase::Prove]),
        }
    }
}

/// Milliseconds in seconds. Sums are made of whole milliseconds: those of fractions show it in their last digits.
#[must_use]
pub(super) fn seconds(millis: u64) -> f64 {
    // Those of any job are far below 2^52, where f64 is exact.
    millis as f64 / 1e3
}
