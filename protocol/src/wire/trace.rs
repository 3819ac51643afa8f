//! Trace and span ids of a job, derived from the job alone.
//!
//! So the coordinator and both agents agree on them without a message, even across versions, and a
//! person can find the trace by the job's id. Frozen by a test.

use super::{Epoch, JobId, PartNo, Phase};

/// The job's trace id: the job's id twice.
#[must_use]
pub fn trace_id(job: JobId) -> u128 {
    u128::from(job.0) << 64 | u128::from(job.0)
}

/// The id of the job's span.
#[must_use]
pub fn job_span(job: JobId) -> u64 {
    span(job, Kind::Job, 0)
}

/// The id of a phase's span.
#[must_use]
pub fn phase_span(job: JobId, phase: Phase) -> u64 {
    let place = Phase::ALL.iter().position(|p| *p == phase);
    span(job, Kind::Phase, place.unwrap_or(Phase::ALL.len()) as u64)
}

/// The id of a part's span on the target.
#[must_use]
pub fn part_span(job: JobId, epoch: Epoch, part: PartNo) -> u64 {
    span(
        job,
        Kind::Part,
        u64::from(epoch.0) << 32 | u64::from(part.0),
    )
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Job = 1,
    Phase = 2,
    Part = 3,
}

/// Injective for each kind, because each step is. Zero is not a valid span id.
fn span(job: JobId, kind: Kind, number: u64) -> u64 {
    mix(mix(job.0 ^ kind as u64) ^ number).max(1)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const JOB: JobId = JobId(0x4f0d_1e62_a7b3_4c58);

    #[test]
    fn ids_are_those_that_other_versions_come_to() {
        let of = |id: u64| format!("{id:016x}");
        assert_eq!(
            format!("{:032x}", trace_id(JOB)),
            "4f0d1e62a7b34c584f0d1e62a7b34c58"
        );
        assert_eq!(of(job_span(JOB)), "b4798cf780a8aac7");
        assert_eq!(of(phase_span(JOB, Phase::Copy)), "797b845fcf45c685");
        assert_eq!(of(part_span(JOB, Epoch(1), PartNo(7))), "f3990c3259217708");
    }

    #[test]
    fn no_two_spans_of_a_job_have_one_id() {
        let phases = Phase::ALL.map(|phase| phase_span(JOB, phase));
        let parts = (0..20_000)
            .flat_map(|part| [Epoch(0), Epoch(1)].map(|epoch| part_span(JOB, epoch, PartNo(part))));
        let all: Vec<u64> = parts.chain(phases).chain([job_span(JOB)]).collect();
        let different: HashSet<u64> = all.iter().copied().collect();
        assert_eq!(different.len(), all.len());
    }
}
