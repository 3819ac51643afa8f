//! Which agents and servers a job needs at the moment: those it waits for, and gives up without.

use super::retry::Retrying;
use super::{Job, Side, Step};

impl Job {
    /// Whether the job needs that side in that step.
    #[must_use]
    pub fn needs(&self, side: Side, step: Step) -> bool {
        let own = |r: &Retrying| r.work.side() == side;
        self.is_busy(side)
            || self.retrying.iter().any(own)
            || match side {
                Side::Source => step.needs_source(),
                Side::Target => step.needs_subscription(self.spec.method),
            }
    }

    /// Whether rows come from files that need no PostgreSQL on the source.
    fn copies_files(&self, step: Step) -> bool {
        step == Step::Copy && (self.attempt.sealed || self.stored.is_some())
    }

    /// Whether it needs that side's agent in that step. A target that copies its own files needs no other's.
    #[must_use]
    pub fn needs_agent(&self, side: Side, step: Step) -> bool {
        let own = self.carried().is_some() && self.copies_files(step);
        self.needs_now(side, step, own)
    }

    /// Whether it needs that side's PostgreSQL in that step. The source's agent sends files without it.
    #[must_use]
    pub fn needs_server(&self, side: Side, step: Step) -> bool {
        self.needs_now(side, step, self.copies_files(step))
    }

    fn needs_now(&self, side: Side, step: Step, without_source: bool) -> bool {
        if side == Side::Target || !without_source {
            return self.needs(side, step);
        }
        // What it still has to tell the source, it tries again.
        let own = |r: &Retrying| r.work.side() == side;
        self.is_busy(side) || self.retrying.iter().any(own)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::{Presence, ServerState, Stage};
    use super::*;
    use crate::job::retry::{Patience, waiting};
    use crate::testing::spec;

    #[test]
    fn rows_that_flow_from_files_wait_for_no_server_of_the_source() {
        let now = Timestamp::UNIX_EPOCH;
        let mut job = Job::new(steep_protocol::JobId(1), spec("a", "b"), "dba", 1, now);
        job.stage = Stage::Working(Step::Copy);
        job.source.server = ServerState::Silent {
            since: now,
            why: "it is stopped".to_owned(),
        };
        let waits = |job: &Job| waiting(job, &Patience::default(), now);
        assert!(waits(&job).is_some());
        job.attempt.sealed = true;
        assert_eq!(waits(&job), None);
        // The subscription needs it.
        job.stage = Stage::Working(Step::Subscribe);
        assert!(waits(&job).is_some());
        // Its agent sends the files.
        job.stage = Stage::Working(Step::Copy);
        job.source.presence = Presence::Away { since: now };
        assert!(waits(&job).is_some());
    }
}
