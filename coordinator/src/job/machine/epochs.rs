//! A job whose snapshot was lost goes on with another one: tables that are complete stay and follow the source from the
//! first snapshot's position, and the others are copied anew, in an epoch with its own slot, publication and
//! subscription (G1). In the end the epochs are folded into one.

use steep_protocol::limits::EPOCHS_MAX;
use steep_protocol::message::agent::EarlierEpoch;
use steep_protocol::message::api::LostSnapshot;
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, Fault, Lsn};

use super::super::change::Joining;
use super::super::retry::RESTARTS_MAX;
use super::super::{Attempt, Complete, Side, Work};
use super::{Effect, Step, Turn};

/// Whether that command belongs to a snapshot that is lost. It is being stopped, and its end is all that counts.
pub(super) fn is_over(step: Step, work: Work) -> bool {
    step == Step::OpenSource && matches!(work, Work::Copy | Work::PrepareTarget)
}

impl Turn {
    /// Whether the snapshot after a lost one is open.
    pub(super) fn next_is_open(&self, step: Step) -> bool {
        step == Step::OpenSource && self.job.attempt.plan.is_some()
    }

    /// Whether the job has complete tables that are worth more than a fresh start.
    pub(super) fn keeps_tables(&self, step: Step) -> bool {
        let live = matches!(self.job.spec.method, Method::Snapshot | Method::TwoPhase);
        let some = self.counted.complete.sum.bytes > ByteCount(0);
        live && step <= Step::Copy && some && self.job.epoch.0 < EPOCHS_MAX
    }

    /// Goes on with another snapshot by itself, unless that has happened too often.
    pub(super) fn next_epoch(&mut self, fault: Fault) {
        let too_often = self.job.restarts >= RESTARTS_MAX;
        self.job.restarts = self.job.restarts.saturating_add(1);
        self.begin_epoch(fault.clone());
        if !too_often {
            return self.enter(Step::OpenSource);
        }
        let mut fault = fault;
        fault.message = format!(
            "{}; the job had already gone on with another snapshot {RESTARTS_MAX} times",
            fault.message
        );
        self.give_up(Step::OpenSource, fault);
    }

    /// Closes the present epoch, if it has completed a table, and begins the next.
    pub(super) fn begin_epoch(&mut self, fault: Fault) {
        let complete = self.counted.complete;
        let plan = self.job.attempt.plan.filter(|_| self.counted.planned > 0);
        if let Some(plan) = plan {
            self.note_lost(plan.lsn, &fault);
        }
        if complete.tables > self.job.kept.tables {
            let lsn = plan.map_or(Lsn(0), |plan| plan.lsn);
            let replication = match self.job.shared {
                // The others' publication is not to be altered.
                Some(_) => self.job.replication().apart(self.job.id),
                None => self.job.replication(),
            };
            self.job.earlier.push(EarlierEpoch { replication, lsn });
            // It copies the rest by itself, while the source holds its next snapshot open.
            self.job.shared = None;
            self.job.epoch.0 += 1;
            self.job.kept = complete;
        }
        // Without a plan the tables that are left are still those of the epoch before.
        self.effects.push(match self.job.attempt.plan {
            Some(_) => Effect::EpochBegins { fault },
            None => Effect::PlanDropped,
        });
        self.job.attempt = Attempt::default();
        self.job.adopted = None;
        self.job.retrying.clear();
        // Nothing that ran on the source is of use any more; what runs on the target is stopped.
        self.job.running.retain(|r| r.work.side() == Side::Target);
        self.abort_all();
    }

    fn note_lost(&mut self, lsn: Lsn, fault: &Fault) {
        let (complete, kept) = (self.counted.complete, self.job.kept);
        let lost = &mut self.job.lost_snapshots;
        if lost.len() >= EPOCHS_MAX as usize {
            lost.remove(0);
        }
        lost.push(LostSnapshot {
            lsn,
            tables: complete.tables.saturating_sub(kept.tables),
            rows: complete.sum.rows.0.saturating_sub(kept.sum.rows.0),
            bytes: complete.sum.bytes.0.saturating_sub(kept.sum.bytes.0),
            bytes_again: self
                .counted
                .done
                .bytes
                .0
                .saturating_sub(complete.sum.bytes.0),
            lost_at: self.now,
            reason: fault.message.clone(),
        });
    }

    /// Whether tables were copied under several snapshots. Their rows fit together, as foreign keys and materialised
    /// views need it, only once one subscription carries all of them and has passed a fence.
    pub(super) fn has_epochs(&self) -> bool {
        self.job.kept.tables > 0
    }

    /// Whether several subscriptions become one.
    pub(super) fn unites(&self) -> bool {
        self.has_epochs() || self.job.change.is_some() && !self.job.replaces()
    }

    /// The job's subscriptions have caught up. Where that is one again, what had to wait for it follows.
    pub(super) fn fence_passed(&mut self, step: Step) {
        let united = match self.job.change {
            Some(_) => self.job.joining() == Joining::Done,
            None => self.has_epochs() && self.job.earlier.is_empty(),
        };
        if step == Step::Converge && united {
            self.issue(Work::Finish);
        }
    }

    /// The present epoch's replication carries all tables.
    pub(super) fn folded(&mut self) {
        self.job.earlier.clear();
        self.job.unfinished.clear();
        self.effects.push(Effect::Folded);
    }

    /// The job starts over: what earlier epochs have copied is removed.
    pub(super) fn forget_epochs(&mut self) {
        self.job.epoch.0 = 0;
        self.job.earlier.clear();
        self.job.unfinished.clear();
        self.job.kept = Complete::default();
        self.job.lost_snapshots.clear();
    }
}
