//! How long a running job may take, hold its snapshot and wait.

use std::time::Duration;

use steep_protocol::message::job::Method;
use steep_protocol::{Fault, FaultKind};

use super::{Presence, ServerState, Side, Step, Turn, after};

impl Turn {
    /// Checks the time limit, the age of the snapshot, and how long the job has waited for an agent or server.
    pub(super) fn check_limits(&mut self, step: Step) {
        if self.only_goes_on() {
            return self.retry_due(step);
        }
        let limit = Duration::from_secs(self.job.spec.timeout_seconds);
        // Rows may be merged for days, as long as the operator takes to decide.
        if step != Step::Merge && after(self.job.began_at, limit) <= self.now {
            let text = format!("the job exceeded its time limit of {} s", limit.as_secs());
            let fault = Fault::new(FaultKind::Timeout, text)
                .on(&self.job.spec.target)
                .hint("run init again with a longer --timeout or more --parallel workers");
            return self.give_up(step, fault);
        }
        if let Some(fault) = self.aged_snapshot(step) {
            return self.fail(fault);
        }
        let budget = self.rules.patience.budget(step);
        for side in Side::BOTH {
            let end = self.job.end(side);
            if let Presence::Away { since } = end.presence
                && self.job.needs_agent(side, step)
                && after(since, budget) <= self.now
            {
                return self.give_up(step, self.gone(side, step, budget));
            }
            if let ServerState::Silent { since, why } = &end.server
                && self.job.needs_server(side, step)
                && after(*since, budget) <= self.now
            {
                let fault = self.server_gone(side, step, budget, why);
                return self.give_up(step, fault);
            }
        }
        self.retry_due(step);
    }

    /// The fault of a held snapshot that is too old (G5): vacuum cannot remove rows that died since. Its age
    /// counts from the command that opens it, since a slot that waits for old transactions holds back as
    /// much.
    fn aged_snapshot(&self, step: Step) -> Option<Fault> {
        let method = self.job.spec.method;
        let held = step.needs_snapshot(method) && !self.job.attempt.sealed;
        if method == Method::Native || !held {
            return None;
        }
        let limit = self.rules.bounds.snapshot_age?;
        let asked = self.job.attempt.snapshot_at?;
        (after(asked, limit) <= self.now).then(|| {
            let age = (self.now.as_millisecond() - asked.as_millisecond()) / 1000;
            let text = format!(
                "the job's snapshot is {age} s old, over the limit of {} s: it keeps vacuum on the \
                 source from removing what has died since",
                limit.as_secs()
            );
            Fault::new(FaultKind::Failed, text)
                .on(&self.job.spec.source)
                .hint(
                    "run init again with more --parallel workers or fewer tables at once, or raise \
                     --max-snapshot-age of the coordinator",
                )
        })
    }
}
