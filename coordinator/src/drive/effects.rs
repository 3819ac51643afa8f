//! Carries out the effects of a job's step.

use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::message::agent::{CoordinatorMessage, MissingObjects};
use steep_protocol::message::api::{Afterwards, ApiReply, DetachedFrom};
use steep_protocol::message::job::CancelledData;
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeState, Phase};

use super::ended::{cancelled, changed, loaded};
use super::jobs::table_events;
use super::log::{Level, Note, last_phase};
use super::{Answer, Driver, Ticket, span};
use crate::job::change::Joining;
use crate::job::machine::{Effect, Finish, JobEvent};
use crate::job::preflight;
use crate::job::state::{NodeEvent, transition};
use crate::job::{Closed, Side, Stage, Work};
use crate::store::{Columns, Store, Write};

impl<S: Store> Driver<S> {
    pub(super) fn execute(&mut self, id: JobId, effect: Effect, now: Timestamp) {
        match effect {
            Effect::Send {
                id: command,
                work: Work::OpenSource,
            } => self.open_source(id, command, now),
            Effect::Send { id: command, work } => self.send_command(id, command, work),
            Effect::Abort { id: command, .. } if self.is_unsent(id, command) => {
                let outcome = Box::new(Err(Fault::new(FaultKind::Cancelled, "cancelled")));
                let ended = JobEvent::Ended {
                    id: command,
                    outcome,
                };
                self.advance(id, ended, now);
            }
            Effect::Abort { id: command, side } => {
                let (job, id) = (id, command);
                self.send_to(job, side, CoordinatorMessage::Abort { id, job });
            }
            Effect::Forget { id: command, side } => {
                self.send_to(id, side, CoordinatorMessage::Forget { id: command });
            }
            Effect::Node(event) => self.change_node(id, event, now),
            Effect::PhaseStarted(phase) => self.phase_started(id, phase, now),
            Effect::PhaseCompleted { phase, millis } => {
                self.phase_completed(id, phase, millis, now);
            }
            Effect::Found(findings) => self.found(id, &findings, now),
            Effect::Missing(missing) => self.job_misses(id, missing),
            Effect::TriesAgain { work, fault } => self.tries_again(id, work, &fault, now),
            Effect::BeginsAgain { fault, restarts } => {
                self.begins_again(id, &fault, restarts, now);
            }
            Effect::EpochBegins { fault } => self.epoch_begins(id, &fault, now),
            Effect::Folded => self.epochs_folded(id, now),
            Effect::PlanDropped => self.drop_plan(id, now),
            Effect::Resumed => self.resumed(id),
            Effect::KeepEnds { why } => self.keep_ends(id, &why, now),
            Effect::CleanupFailed { side, why } => self.cleanup_failed(id, side, &why, now),
            Effect::GivenUp { side, why } => self.given_up(id, side, &why, now),
            Effect::Finished(finish) => self.finished(id, finish, now),
            Effect::Closed => self.closed(id, now),
        }
    }

    /// A job that shares a snapshot waits until that is open.
    fn open_source(&mut self, id: JobId, command: CommandId, now: Timestamp) {
        let shared = self.shared_of(id);
        if shared.is_none_or(|shared| self.join_shared(id, shared, now)) {
            self.send_command(id, command, Work::OpenSource);
        }
    }

    pub(super) fn send_command(&mut self, id: JobId, command_id: CommandId, work: Work) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let (command, workers) = self.compose(live, work);
        let node = work.side().node(&live.job.spec).clone();
        let replication = match (live.job.starts_from(), work) {
            // The tables have joined it.
            (_, Work::AwaitFence) if live.job.joining() == Joining::Done => live.job.followed(),
            // Before the job has a slot, the facts are those of the template.
            (Some(template), Work::GatherSource) => template.replication,
            _ => live.job.replication(),
        };
        let message = CoordinatorMessage::Command {
            id: command_id,
            job: id,
            replication,
            command,
        };
        self.send(&node, message);
        if work == Work::Copy
            && let Some(live) = self.jobs.get_mut(&id)
        {
            live.workers = workers;
            if live.copy.replace(command_id) != Some(command_id) {
                self.name_newcomer(id);
            }
        }
    }

    fn send_to(&mut self, id: JobId, side: Side, message: CoordinatorMessage) {
        if let Some(live) = self.jobs.get(&id) {
            let node = side.node(&live.job.spec).clone();
            self.send(&node, message);
        }
    }

    /// Changes the state of the job's target, if this is the target's last job.
    fn change_node(&mut self, id: JobId, event: NodeEvent, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let target = live.job.spec.target.clone();
        let source = live.job.spec.source.clone();
        let note = Note::info("init.state_change", "").job(&live.job);
        let accepted_at = live.job.accepted_at;
        let risks = preflight::risks(&live.job.warnings);
        let detached = (event == NodeEvent::Detached).then(|| {
            let from = DetachedFrom {
                source_node: source.clone(),
                detached_at: now,
                operator: live.job.cancelled_by.clone().unwrap_or_default(),
            };
            (from, live.left_on_source())
        });
        let way_back = match event {
            NodeEvent::Cancelled => self.way_back_left(&target),
            _ => None,
        };
        let change = live.job.change.as_ref();
        let diverged = change.and_then(|change| change.diverged.clone());
        let (new_tables, replication) = (live.job.spec.new_tables, live.job.replication());
        let loaded = match event {
            NodeEvent::Loaded => live.loaded(now),
            _ => None,
        };
        let Some(record) = self
            .nodes
            .get_mut(&target)
            .filter(|r| r.newest_job() == Some(id))
        else {
            return;
        };
        let from = record.state;
        let to = match transition(from, event) {
            Ok(to) => to,
            Err(illegal) => {
                tracing::error!(node_id = %target, job_id = %id, error = %illegal, "a node's state was not changed");
                return;
            }
        };
        record.state = to;
        match to {
            NodeState::Preparing => {
                record.source = Some(source);
                record.init_started_at = Some(accepted_at);
                record.error_message = None;
                record.missing = MissingObjects::default();
                record.loaded = None;
                record.detached = None;
                record.forget_following();
            }
            NodeState::Synchronized if event == NodeEvent::Returned => {
                record.change = None;
                // What was observed meanwhile says nothing.
                self.following.remove(&target);
            }
            NodeState::Synchronized => {
                record.followed_anew((id, accepted_at), &replication);
                record.init_completed_at = Some(now);
                record.new_tables = new_tables;
                record.risks = risks;
                record.error_message = None;
                record.forget_following();
                record.columns = Columns::AsFirstSeen;
            }
            NodeState::Uninitialized => {
                record.source = None;
                record.error_message = None;
                record.forget_following();
                if loaded.is_some() {
                    record.init_completed_at = Some(now);
                } else {
                    record.missing = MissingObjects::default();
                }
                record.loaded = loaded;
                let (from, left) = detached.unzip();
                record.detached = from;
                record.left.extend(left.into_iter().flatten());
                record.left.extend(way_back);
            }
            NodeState::Reinitializing => record.error_message = None,
            NodeState::Diverged if event == NodeEvent::ReturnedDiverged => {
                record.change = None;
                record.error_message = diverged;
                self.following.remove(&target);
            }
            NodeState::Copying
            | NodeState::CatchingUp
            | NodeState::Diverged
            | NodeState::Failed => {}
        }
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let note = note.field("from", from).field("to", to);
        self.log(note.text(format!("{target}: from {from} to {to}")), now);
        if to == NodeState::Synchronized {
            self.way_back_found(&target);
        }
        self.mirror(&target, now);
    }

    fn phase_started(&mut self, id: JobId, phase: Phase, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let mut text = format!("phase {phase} began");
        if phase == Phase::Copy {
            text.push_str(&table_events(live).unwrap_or_default());
        }
        let note = Note::info("init.phase_started", text)
            .job(&live.job)
            .field("phase", phase);
        self.log(note, now);
    }

    fn phase_completed(&mut self, id: JobId, phase: Phase, millis: u64, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        live.meter.observe(&live.job, &live.copied, now);
        let seconds = millis as f64 / 1e3;
        let counted = live.copied.counted().done;
        span::phase(&live.job, phase, millis, counted, now);
        let text = format!("phase {phase} took {seconds:.1} s");
        let note = Note::info("init.phase_completed", text)
            .job(&live.job)
            .field("phase", phase)
            .field("duration_ms", millis);
        self.log(note, now);
    }

    fn cleanup_failed(&mut self, id: JobId, side: Side, why: &str, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let complaint = (side, why.to_owned());
        if live.complaints.contains(&complaint) {
            return;
        }
        live.complaints.retain(|(of, _)| *of != side);
        live.complaints.push(complaint);
        let node = side.node(&live.job.spec);
        let text = format!("cleanup on {node} failed and is retried until it succeeds: {why}");
        let note = Note::warn("init.cleanup_failed", text)
            .job(&live.job)
            .field("cleanup_on", node);
        self.log(note, now);
    }

    fn finished(&mut self, id: JobId, finish: Finish, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        live.meter.observe(&live.job, &live.copied, now);
        if finish == Finish::Changed {
            self.tables_changed(id, now);
        }
        let unfollowed = match finish {
            Finish::Failed(_) | Finish::Cancelled(_) => self.tables_unfollowed(id),
            Finish::Synchronized | Finish::Loaded | Finish::Changed | Finish::CancelPending(_) => {
                None
            }
        };
        if let Finish::Failed(fault) = &finish {
            self.table_failed(id, fault, now);
            self.schema_differs(id, fault, now);
        }
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let operator = live.job.cancelled_by.clone().unwrap_or_default();
        let accepted_at = live.job.accepted_at;
        let target = self.nodes.get(&live.job.spec.target);
        let completed_at = target.and_then(|node| node.init_completed_at);
        let completed = completed_at.is_some_and(|at| at >= accepted_at);
        let stopped_in = last_phase(&live.job);
        let waiting = std::mem::take(&mut live.waiting);
        let given_up = !live.left_on.is_empty();
        let mut left = std::mem::take(&mut live.given_up);
        let counted = live.copied.counted().done;
        let seconds = live.job.elapsed_seconds(now);
        let (fault, note) = match finish {
            Finish::Synchronized => {
                let text = format!(
                    "{} follows {}: {} rows in {seconds:.1} s",
                    live.job.spec.target, live.job.spec.source, counted.rows.0
                );
                (None, Note::info("init.completed", text))
            }
            Finish::Loaded => (None, loaded(live, seconds)),
            Finish::Changed => (None, changed(live, seconds)),
            Finish::Failed(mut fault) => {
                if let Some(next) = unfollowed {
                    fault.hint = next;
                }
                let note = Note::new(Level::Error, "init.failed", fault.to_string());
                let note = note.field("hint", &fault.hint);
                (Some(fault), note)
            }
            Finish::Cancelled(CancelledData::Detach) => {
                let (target, source) = (&live.job.spec.target, &live.job.spec.source);
                let text = format!(
                    "{target} no longer follows {source}, detached by {operator}; its tables and rows are its own"
                );
                left = Self::detach_left(&live.job, left);
                let note = Note::info("node.detached", text.clone()).field("operator", &operator);
                (Some(Fault::new(FaultKind::Cancelled, text)), note)
            }
            Finish::Cancelled(data) => {
                let what = match &unfollowed {
                    Some(next) => next.as_str(),
                    None => cancelled(data, completed, given_up),
                };
                let stay = live.job.merge.as_ref().map_or_else(String::new, |merge| {
                    format!(
                        "; {} rows that the merge has written stay",
                        merge.rows_written
                    )
                });
                let text = format!("cancelled by {operator}; {what}{stay}");
                let note = Note::info("init.cancelled", text.clone()).field("operator", &operator);
                (Some(Fault::new(FaultKind::Cancelled, text)), note)
            }
            Finish::CancelPending(fault) => {
                let text = format!("cancelled by {operator}; {}", fault.message);
                let note = Note::warn("init.cleanup_pending", text.clone());
                let note = note.field("operator", &operator).stopped_in(stopped_in);
                self.replied(waiting, &Err(fault.clone()));
                let shown = Fault::new(FaultKind::Cancelled, text).hint(fault.hint);
                return self.record_end(id, Some(shown), note, now);
            }
        };
        let millis = (seconds * 1e3).round();
        let note = note.field("duration_ms", millis).stopped_in(stopped_in);
        let applied = fault
            .is_none()
            .then(|| self.applied_note(id, seconds))
            .flatten();
        self.record_end(id, fault, note, now);
        if let Some(note) = applied {
            self.log(note, now);
        }
        self.replied(waiting, &Ok(left));
    }

    /// Logs at which table a job failed, if at one.
    fn table_failed(&mut self, id: JobId, fault: &Fault, now: Timestamp) {
        let (Some(live), Some(table)) = (self.jobs.get(&id), &fault.table) else {
            return;
        };
        let note = Note::new(Level::Error, "init.table_failed", fault.to_string())
            .job(&live.job)
            .field("table", table)
            .field("hint", &fault.hint)
            .stopped_in(last_phase(&live.job));
        self.log(note, now);
    }

    /// Answers operators waiting for a removal with what could not be removed.
    pub(super) fn replied(&mut self, waiting: Vec<Ticket>, how: &Result<Vec<String>, Fault>) {
        for ticket in waiting {
            self.answer(ticket, how.clone().map(removed));
        }
    }

    /// Stores and publishes how a job ended.
    pub(super) fn record_end(
        &mut self,
        id: JobId,
        fault: Option<Fault>,
        note: Note,
        now: Timestamp,
    ) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        span::job(&live.job, fault.as_ref(), live.copied.counted().done, now);
        let note = note.job(&live.job);
        let target = live.job.spec.target.clone();
        let changes = live.job.change.is_some();
        let record = self
            .nodes
            .get_mut(&target)
            .filter(|r| r.job == Some(id) || changes);
        let state = record.as_ref().map_or(NodeState::Failed, |r| r.state);
        if let Some(record) = record
            && let Some(fault) = fault.as_ref().filter(|fault| {
                // What is wrong with a diverged node counts for more than what could not be added.
                let tells = changes && state != NodeState::Diverged;
                state == NodeState::Failed || tells && fault.kind != FaultKind::Cancelled
            })
        {
            record.error_message = Some(crate::job::progress::told_of(fault, &target));
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        let end = Arc::new(self.end_view(&id, state, fault, now));
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        live.end = Some(Arc::clone(&end));
        let end = Box::new(Arc::unwrap_or_clone(end));
        let write = Self::end_write(&live.job, end, live.table_sums());
        self.out.writes.push(write);
        self.counters.ended(note.event());
        self.log(note, now);
        self.mirror(&target, now);
        self.touch(id);
    }

    fn closed(&mut self, id: JobId, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let (target, afterwards) = (live.job.spec.target.clone(), live.afterwards);
        let job = live.job.clone();
        let stays = live.left_on.clone();
        if !matches!(job.stage, Stage::Closed(Closed::Synchronized)) {
            for side in Side::BOTH.into_iter().filter(|side| !stays.contains(side)) {
                self.unlist_job(&job, side, now);
            }
        }
        if matches!(job.stage, Stage::Closed(Closed::Failed(_))) {
            let text = "everything that the failed job had created is removed";
            let note = Note::info("init.cleanup_completed", text).job(&job);
            self.log(note, now);
        }
        self.out.closed.push(id);
        self.tick_shared(now);
        if afterwards == Afterwards::Forget {
            self.forget_node(&target, now);
        }
    }
}

/// The answer when a job is removed: what could not be removed, if anything.
pub(super) fn removed(left: Vec<String>) -> Answer {
    let left = (!left.is_empty()).then_some(ApiReply::Left(left));
    Answer::Replies(left.into_iter().collect())
}
