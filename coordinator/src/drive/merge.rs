//! Merges: two nodes that both have rows and applications follow each other in the end.
//!
//! Each node has a job of [`Method::Merge`], with the other as its source. Here is what the two have to do together: both
//! pass their preflight and have their sequences set apart before either makes a slot; neither goes on without the other;
//! and both are synchronized once a comparison has found their rows to be equal while changes flow both ways. The rows are
//! compared and written by the command line, page by page, as those of a repair.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, NodeCommand, Outcome};
use steep_protocol::message::job::{CancelledData, Confirmation, JobSpec, Method};
use steep_protocol::message::merge::{MergeSpec, SequenceRanges, SequenceState, SetSequences};
use steep_protocol::message::repair::MergeSide;
use steep_protocol::message::verify::{Relation, VerifyReport, VerifySpec};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, Retry, TableName};

use super::log::Note;
use super::orders::Start;
use super::query::{Next, Purpose};
use super::{Answer, Driver, Ticket};
use crate::job::machine::{JobEvent, MergeNews};
use crate::job::merge::{Merging, apart};
use crate::job::time::after;
use crate::job::{Side, Stage, Step};
use crate::store::{NodeRecord, Store};

/// Steps beyond the last value of a sequence at which it is set apart, the first time.
const MARGIN: u32 = 1_000;

/// How often sequences are set apart before the merge is given up.
const TRIES: u32 = 12;

/// Between two tries that failed.
const PAUSE: Duration = Duration::from_secs(3);

/// What is known of merges in memory alone.
#[derive(Default)]
pub(super) struct Merges {
    /// Those that operators wait for.
    waiting: Vec<(NodeId, NodeId, Ticket)>,
    /// By the job of the first node, how often its sequences were tried to be set apart.
    tries: BTreeMap<JobId, Tries>,
}

#[derive(Debug, Clone, Copy)]
struct Tries {
    count: u32,
    margin: u32,
    again: Timestamp,
}

/// Sequences that are being set apart: both nodes are read, then set.
pub(super) struct SettingApart {
    /// The nodes with their jobs, the first one first.
    ends: [(NodeId, JobId); 2],
    ranges: SequenceRanges,
    margin: u32,
    /// What is read so far, then what the second node is still to be set to.
    read: Option<Vec<SequenceState>>,
    second: Option<SetSequences>,
}

impl SettingApart {
    /// Whether it is for that job or the other one.
    pub(super) fn is_for(&self, job: JobId) -> bool {
        self.ends.iter().any(|(_, id)| *id == job)
    }
}

/// Both jobs of a merge that are at work.
struct Both {
    a: JobId,
    b: JobId,
    steps: (Step, Step),
}

impl<S: Store> Driver<S> {
    /// Begins to merge two nodes, or goes on. Answered once changes flow both ways.
    pub(super) fn merge(
        &mut self,
        spec: &MergeSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Vec<JobId>, Fault> {
        let (a, b) = (&spec.node_a, &spec.node_b);
        if a == b {
            let text = "a node cannot be merged with itself: name two nodes";
            return Err(Fault::new(FaultKind::BadRequest, text).on(a));
        }
        self.known(a)?;
        self.known(b)?;
        if self.are_merged(a, b) {
            self.answer(ticket, Ok(Answer::Replies(Vec::new())));
            return Ok(Vec::new());
        }
        let mut begun = Vec::new();
        if self.both(a, b).is_none() {
            self.check_merge(a, b)?;
            for (side, target, source) in [(MergeSide::A, a, b), (MergeSide::B, b, a)] {
                let job = JobSpec {
                    method: Method::Merge,
                    confirmation: Confirmation::Given,
                    ..JobSpec::new(source.clone(), target.clone())
                };
                let merging = Merging {
                    side,
                    sequences: spec.sequences,
                    rows_written: 0,
                };
                begun.push(self.begin(job, Start::Merge(merging), operator, now));
            }
        }
        self.merges.waiting.push((a.clone(), b.clone(), ticket));
        Ok(begun)
    }

    /// Whether two nodes can begin to be merged, by their states.
    fn check_merge(&self, a: &NodeId, b: &NodeId) -> Result<(), Fault> {
        for (target, source) in [(a, b), (b, a)] {
            self.check_target(target, source)?;
            self.check_rebuilding(target)?;
            self.check_online(target)?;
        }
        Ok(())
    }

    /// Whether two nodes follow each other, or are about to.
    pub(super) fn are_merged(&self, a: &NodeId, b: &NodeId) -> bool {
        let follows = |node: &NodeId, other: &NodeId| {
            self.nodes.get(node).is_some_and(|record| {
                let state = matches!(
                    record.state,
                    NodeState::Synchronized | NodeState::Diverged | NodeState::Reinitializing
                );
                state && record.source.as_ref() == Some(other)
            })
        };
        follows(a, b) && follows(b, a)
    }

    /// Both jobs, if both are at work.
    fn both(&self, a: &NodeId, b: &NodeId) -> Option<Both> {
        let job = |node: &NodeId, other: &NodeId| {
            let live = self.jobs.get(&self.live_job(node)?)?;
            let step = live.job.merge_step()?;
            (live.job.spec.source == *other).then_some((live.job.id, step))
        };
        let ((id_a, step_a), (id_b, step_b)) = (job(a, b)?, job(b, a)?);
        Some(Both {
            a: id_a,
            b: id_b,
            steps: (step_a, step_b),
        })
    }

    /// Checks that the rows of these two may be merged now.
    pub(super) fn check_merge_page(&self, from: &NodeId, to: &NodeId) -> Result<(), Fault> {
        self.check_query(from)?;
        self.check_query(to)?;
        let both = self.both(from, to).map(|both| both.steps);
        if both == Some((Step::Merge, Step::Merge)) {
            return Ok(());
        }
        let text = format!("{from} and {to} are not being merged, or changes do not flow yet");
        Err(Fault::new(FaultKind::Failed, text).on(to).hint(format!(
            "see steep-repl status {to}, then run the merge again"
        )))
    }

    /// Rows were written to a node.
    pub(super) fn merge_written(&mut self, node: &NodeId, rows: u64, now: Timestamp) {
        if let Some(job) = self.live_job(node) {
            self.advance(job, JobEvent::Merge(MergeNews::Written(rows)), now);
        }
    }

    /// The rows of both were compared. If they are equal while changes flow both ways, the merge is complete.
    pub(super) fn merge_compared(
        &mut self,
        spec: &VerifySpec,
        report: &VerifyReport,
        now: Timestamp,
    ) {
        let (a, b) = (&spec.node_a, &spec.node_b);
        let whole = spec.tables.is_empty() && report.relation == Relation::Replicates;
        let settled = report.tables.iter().all(|table| table.changing == 0);
        let Some(both) = self.both(a, b) else { return };
        if both.steps != (Step::Merge, Step::Merge) || !whole || !settled || !report.is_equal() {
            return;
        }
        let written = |id: JobId| {
            let live = self.jobs.get(&id);
            let merge = live.and_then(|live| live.job.merge.as_ref());
            merge.map_or(0, |merge| merge.rows_written)
        };
        let (rows_a, rows_b) = (written(both.a), written(both.b));
        let began = self.jobs[&both.a].job.accepted_at;
        let took = (now.as_millisecond() - began.as_millisecond()).max(0);
        let text = format!(
            "{a} and {b} have the same rows and follow each other: {rows_a} rows were written to {a}, {rows_b} to {b}"
        );
        let note = Note::info("merge.completed", text)
            .job(&self.jobs[&both.a].job)
            .field("rows_written_a", rows_a)
            .field("rows_written_b", rows_b)
            .field("duration_ms", took);
        self.log(note, now);
        for id in [both.a, both.b] {
            self.advance(id, JobEvent::Merge(MergeNews::Proved), now);
        }
    }

    /// That a node's rows are being merged.
    pub(super) fn merge_warning(&self, record: &NodeRecord) -> Option<String> {
        let live = self.jobs.get(&record.newest_job()?)?;
        let merge = live.job.merge.as_ref()?;
        (live.job.merge_step()? == Step::Merge).then(|| {
            format!(
                "its rows are being merged with those of {}, {} are written to it so far: it is synchronized once both are \
                 equal; if no command is at that, run it again",
                live.job.spec.source, merge.rows_written
            )
        })
    }

    /// Does what is due of all merges.
    pub(super) fn tick_merges(&mut self, now: Timestamp) {
        let merging = self
            .jobs
            .values()
            .filter(|live| live.job.merge_step().is_some());
        let pairs: Vec<(JobId, NodeId, NodeId)> = merging
            .map(|live| {
                let spec = &live.job.spec;
                (live.job.id, spec.target.clone(), spec.source.clone())
            })
            .collect();
        for (id, node, other) in pairs {
            self.tick_merge(id, &node, &other, now);
        }
        let jobs = &self.jobs;
        self.merges.tries.retain(|id, _| jobs.contains_key(id));
        for (a, b, ticket) in std::mem::take(&mut self.merges.waiting) {
            match self.merge_answer(&a, &b) {
                None => self.merges.waiting.push((a, b, ticket)),
                Some(answer) => self.answer(ticket, answer.map(|()| Answer::Replies(Vec::new()))),
            }
        }
    }

    fn tick_merge(&mut self, id: JobId, node: &NodeId, other: &NodeId, now: Timestamp) {
        let Some(both) = self.both(node, other) else {
            let follows = self.nodes.get(other).is_some_and(|record| {
                record.state == NodeState::Synchronized && record.source.as_ref() == Some(node)
            });
            if !follows {
                self.end_with(id, other, now);
            }
            return;
        };
        match both.steps {
            (Step::Apart, Step::Apart) => self.set_apart(node, other, &both, now),
            // The other one has begun anew; sequences are set apart.
            (Step::Apart, step) if step > Step::Apart => {
                self.advance(both.a, JobEvent::Merge(MergeNews::Apart), now);
            }
            _ => {}
        }
    }

    /// Ends a job as the other node's has ended.
    fn end_with(&mut self, id: JobId, other: &NodeId, now: Timestamp) {
        let last = self.live_job(other).and_then(|last| self.jobs.get(&last));
        let by = last.and_then(|live| live.job.cancelled_by.clone());
        if let (Some(operator), Some(live)) = (by, self.jobs.get_mut(&id)) {
            live.job.cancelled_by = Some(operator);
            let data = CancelledData::Keep;
            return self.advance(id, JobEvent::Cancel { data }, now);
        }
        let fault = self.ended_with(other);
        let side = Side::Source;
        self.advance(id, JobEvent::Endangered { side, fault }, now);
    }

    /// Why a merge ends: because the other node's job does.
    fn ended_with(&mut self, node: &NodeId) -> Fault {
        let last = self.last_fault(node);
        let text = format!("the merge ended on {node}");
        match last {
            Some(fault) => {
                let text = format!("{text}: {}", fault.message);
                Fault::new(fault.kind, text).on(node).hint(fault.hint)
            }
            None => Fault::new(FaultKind::Failed, text).on(node),
        }
    }

    /// Why the last job of a node ended.
    fn last_fault(&mut self, node: &NodeId) -> Option<Fault> {
        let live = self.live_job(node).and_then(|id| self.jobs.get(&id));
        if let Some(Stage::Ending(ending)) = live.map(|live| &live.job.stage) {
            return match &ending.why {
                crate::job::Why::Failed(fault) | crate::job::Why::Again(fault) => {
                    Some(fault.clone())
                }
                crate::job::Why::Cancelled(_) => {
                    Some(Fault::new(FaultKind::Cancelled, "it was cancelled"))
                }
            };
        }
        let end = live.and_then(|live| live.end.as_deref().cloned());
        let end = end.or_else(|| self.store.last_end(node).ok().flatten());
        end.and_then(|end| end.fault)
    }

    /// What to tell operators who wait until changes flow both ways; `None` while that is not known.
    fn merge_answer(&mut self, a: &NodeId, b: &NodeId) -> Option<Result<(), Fault>> {
        if self.are_merged(a, b) {
            return Some(Ok(()));
        }
        if let Some(both) = self.both(a, b) {
            return (both.steps == (Step::Merge, Step::Merge)).then_some(Ok(()));
        }
        let at_work = [a, b]
            .into_iter()
            .any(|node| self.state_of(node).is_active());
        if at_work {
            return None;
        }
        let fault = self.last_fault(a).or_else(|| self.last_fault(b));
        let fault = fault.unwrap_or_else(|| Fault::new(FaultKind::Failed, "the merge has ended"));
        Some(Err(fault))
    }

    /// Begins to set the sequences of both nodes apart, unless that is under way.
    fn set_apart(&mut self, node: &NodeId, other: &NodeId, both: &Both, now: Timestamp) {
        let Some(merge) = self
            .jobs
            .get(&both.a)
            .and_then(|live| live.job.merge.clone())
        else {
            return;
        };
        if merge.side != MergeSide::A {
            return;
        }
        let ends = [(node.clone(), both.a), (other.clone(), both.b)];
        if merge.sequences == SequenceRanges::Keep {
            return self.are_apart(&ends, now);
        }
        let tries = self.merges.tries.entry(both.a).or_insert(Tries {
            count: 0,
            margin: MARGIN,
            again: now,
        });
        let online = ends.iter().all(|(node, _)| self.registry.is_online(node));
        let busy = self.queries.iter().any(|query| query.sets_apart(both.a));
        if tries.again > now || busy || !online {
            return;
        }
        tries.count += 1;
        tries.again = after(now, PAUSE);
        let setting = SettingApart {
            ends,
            ranges: merge.sequences,
            margin: tries.margin,
            read: None,
            second: None,
        };
        let purpose = Purpose::SetApart(Box::new(setting));
        self.begin_query(node, NodeCommand::ReadSequences, purpose, now);
    }

    fn are_apart(&mut self, ends: &[(NodeId, JobId); 2], now: Timestamp) {
        for (_, id) in ends {
            self.advance(*id, JobEvent::Merge(MergeNews::Apart), now);
        }
    }

    /// A node has answered while sequences are set apart.
    pub(super) fn setting_apart(
        &mut self,
        setting: SettingApart,
        (on, outcome): (&NodeId, Outcome),
        now: Timestamp,
    ) -> Next {
        match outcome {
            Outcome::Sequences(read) => self.sequences_read(setting, read, now),
            Outcome::SequencesPassed(passed) => self.sequences_set(setting, &passed, now),
            _ => {
                self.not_set_apart(&setting, Fault::unexpected_answer(on), now);
                None
            }
        }
    }

    /// A node's sequences are read.
    fn sequences_read(
        &mut self,
        mut setting: SettingApart,
        read: Vec<SequenceState>,
        now: Timestamp,
    ) -> Next {
        let [(first, job_a), (second, job_b)] = setting.ends.clone();
        let Some(of_a) = setting.read.take() else {
            setting.read = Some(read);
            let purpose = Purpose::SetApart(Box::new(setting));
            return Some((second, Command::from(NodeCommand::ReadSequences), purpose));
        };
        let (of_a, of_b) = match apart((&of_a, &read), setting.ranges, setting.margin) {
            Ok(sets) => sets,
            Err(fault) => {
                self.not_set_apart(&setting, fault.on(&first), now);
                return None;
            }
        };
        setting.second = Some(SetSequences {
            job: job_b,
            sequences: of_b,
        });
        let command = NodeCommand::SetSequences(SetSequences {
            job: job_a,
            sequences: of_a,
        });
        Some((first, command.into(), Purpose::SetApart(Box::new(setting))))
    }

    /// A node's sequences are set, unless some were past where they were to begin.
    fn sequences_set(
        &mut self,
        mut setting: SettingApart,
        passed: &[TableName],
        now: Timestamp,
    ) -> Next {
        if let Some(name) = passed.first() {
            if let Some(tries) = self.merges.tries.get_mut(&setting.ends[0].1) {
                tries.margin = tries.margin.saturating_mul(10);
                tries.again = now;
            }
            let text = format!("sequence {name} is used faster than it can be set apart");
            let fault = Fault::new(FaultKind::Failed, text).retry(Retry::Backoff);
            self.not_set_apart(&setting, fault, now);
            return None;
        }
        if let Some(second) = setting.second.take() {
            let node = setting.ends[1].0.clone();
            let command = NodeCommand::SetSequences(second);
            return Some((node, command.into(), Purpose::SetApart(Box::new(setting))));
        }
        self.are_apart(&setting.ends, now);
        None
    }

    /// They could not be set: that is tried again, unless that cannot help.
    pub(super) fn not_set_apart(&mut self, setting: &SettingApart, fault: Fault, now: Timestamp) {
        let id = setting.ends[0].1;
        let count = self.merges.tries.get(&id).map_or(0, |tries| tries.count);
        if fault.retry != Retry::Never && count < TRIES {
            tracing::warn!(job_id = %id, error = %fault, "sequences are not set apart yet");
            return;
        }
        let (side, text) = (Side::Source, "sequences cannot be set apart");
        let message = format!("{text}: {}", fault.message);
        let fault = Fault { message, ..fault };
        self.advance(id, JobEvent::Endangered { side, fault }, now);
    }
}
