//! `verify`: one node compares its rows with another's. A query that may last for days: progress keeps it alive,
//! and it ends when its operator leaves.

use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::message::agent::{SourceCommand, TargetCommand, WorkProgress};
use steep_protocol::message::repair::RepairPlan;
use steep_protocol::message::verify::{
    Comparing, RowAccess, TableReport, VerifyReport, VerifySpec, VerifyTables,
};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};
use tokio::sync::watch;

use super::handle::VerifyFeed;
use super::log::{Level, Note};
use super::query::Purpose;
use super::scheduled::SCHEDULE;
use super::{Answer, Driver, Ticket};
use crate::store::Store;

/// The command that asks for such a comparison.
pub(super) fn command_of(comparing: Comparing) -> &'static str {
    match comparing {
        Comparing::Equality => "verify",
        Comparing::Overlap => "analyze-overlap",
        Comparing::Repair => "repair.plan",
        Comparing::Merge => "merge.plan",
    }
}

/// A comparison of rows.
pub(super) struct Verification {
    spec: VerifySpec,
    /// What an earlier attempt has compared.
    done: Vec<TableReport>,
    /// The node that reads the other one: the replica, where there is one.
    pub(super) node: NodeId,
    /// The other one.
    pub(super) peer: NodeId,
    operator: String,
    began: Timestamp,
    feed: watch::Sender<VerifyFeed>,
    /// Of one that is begun by the schedule, which nobody follows.
    scheduled: Option<watch::Receiver<VerifyFeed>>,
}

impl Verification {
    /// Whether the operator has left.
    pub(super) fn is_unwanted(&self) -> bool {
        self.feed.is_closed()
    }

    /// Whether it is one of the schedule's, of that node.
    pub(super) fn is_scheduled_for(&self, node: &NodeId) -> bool {
        self.scheduled.is_some() && self.spec.node_b == *node
    }

    /// Whether the node that reads is the one that counts as right.
    fn is_reversed(&self) -> bool {
        self.node == self.spec.node_a
    }

    fn tell(&self, change: impl FnOnce(&mut VerifyFeed)) {
        self.feed.send_modify(change);
    }
}

impl<S: Store> Driver<S> {
    /// Starts a comparison. The answer is the feed of its progress and result.
    pub(super) fn verify(
        &mut self,
        request: (VerifySpec, Vec<TableReport>),
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let feed = self.begin_verify(request, operator, now)?;
        self.answer(ticket, Ok(Answer::Verifying(feed)));
        Ok(())
    }

    /// Starts one that the schedule wants. That it cannot be started at this moment is no event.
    pub(super) fn compare_regularly(&mut self, spec: VerifySpec, now: Timestamp) {
        let node = spec.node_b.clone();
        match self.begin_verify((spec, Vec::new()), SCHEDULE, now) {
            Ok(feed) => {
                if let Some(verification) = self.last_verification() {
                    verification.scheduled = Some(feed);
                }
            }
            Err(error) => tracing::debug!(node_id = %node, %error, "rows are compared later"),
        }
    }

    fn begin_verify(
        &mut self,
        (spec, done): (VerifySpec, Vec<TableReport>),
        operator: &str,
        now: Timestamp,
    ) -> Result<watch::Receiver<VerifyFeed>, Fault> {
        let (a, b) = (&spec.node_a, &spec.node_b);
        if a == b {
            let text = "a node is equal to itself: name two nodes";
            return Err(Fault::new(FaultKind::BadRequest, text).on(a));
        }
        match spec.comparing {
            Comparing::Equality | Comparing::Overlap | Comparing::Merge => {
                self.check_query(a)?;
                self.check_query(b)?;
            }
            Comparing::Repair => self.check_repair(a, b)?,
        }
        // Who follows can wait until it has applied what the other one wrote.
        let follows = |node: &NodeId, other| {
            self.nodes.get(node).and_then(|node| node.source.as_ref()) == Some(other)
        };
        let (node, peer) = if follows(a, b) && !follows(b, a) {
            (a.clone(), b.clone())
        } else {
            (b.clone(), a.clone())
        };
        let (feed, receiver) = watch::channel(VerifyFeed::default());
        let command = SourceCommand::AdmitVerify {
            target: node.clone(),
            access: match spec.comparing {
                // Values of unique columns are looked up on the other side.
                Comparing::Merge => RowAccess::Repair,
                _ => RowAccess::Compare(spec.values),
            },
        };
        let on = peer.clone();
        let verification = Verification {
            spec,
            done,
            node,
            peer,
            operator: operator.to_owned(),
            began: now,
            feed,
            scheduled: None,
        };
        let purpose = Purpose::AdmitVerify(Box::new(verification));
        self.begin_query(&on, command, purpose, now);
        Ok(receiver)
    }

    /// The command that compares.
    pub(super) fn verify_command(&self, verification: &Verification) -> TargetCommand {
        let spec = &verification.spec;
        let request = Box::new(VerifyTables {
            source: self.peer(&verification.peer),
            comparing: spec.comparing,
            tables: spec.tables.clone(),
            values: spec.values,
            parallel: spec.parallel,
            max_rate: spec.max_rate,
            modified: spec.modified.clone(),
        });
        let done = verification.done.iter().map(|table| table.name.clone());
        match verification.done.is_empty() {
            true => TargetCommand::Verify(request),
            false => TargetCommand::VerifyRest(request, done.collect()),
        }
    }

    /// A report of progress, if it is one of a comparison: it may take as long again.
    pub(super) fn verify_progress(
        &mut self,
        node: &NodeId,
        job: JobId,
        work: Option<WorkProgress>,
        now: Timestamp,
    ) {
        let Some(verification) = self.verification_alive(node, job, now) else {
            return;
        };
        if let Some(work) = work {
            verification.tell(|feed| feed.work = Some(work));
        }
    }

    /// A table of a comparison that goes on is compared.
    pub(super) fn table_compared(
        &mut self,
        node: &NodeId,
        job: JobId,
        report: TableReport,
        now: Timestamp,
    ) {
        let Some(verification) = self.verification_alive(node, job, now) else {
            return;
        };
        let report = match verification.is_reversed() {
            true => report.reversed(),
            false => report,
        };
        verification.tell(|feed| feed.tables.push(Arc::new(report)));
    }

    /// A comparison has its result.
    pub(super) fn verified(
        &mut self,
        verification: &Verification,
        report: VerifyReport,
        now: Timestamp,
    ) {
        let mut report = if verification.is_reversed() {
            report.reversed()
        } else {
            report
        };
        report.tables.extend(verification.done.iter().cloned());
        report
            .tables
            .sort_by(|one, other| one.name.cmp(&other.name));
        let sum = |count: fn(&TableReport) -> u64| report.tables.iter().map(count).sum::<u64>();
        let (a, b) = (&verification.spec.node_a, &verification.spec.node_b);
        let unequal = report
            .tables
            .iter()
            .filter(|table| !table.is_equal())
            .count();
        let comparing = verification.spec.comparing;
        let (level, text) = match unequal {
            _ if comparing == Comparing::Overlap => {
                (Level::Info, format!("the rows of {a} and {b} are counted"))
            }
            _ if comparing == Comparing::Repair => {
                let rows = report.plan.as_ref().map_or(0, RepairPlan::rows);
                let text = format!("{rows} rows of {b} can be repaired by those of {a}");
                (Level::Info, text)
            }
            _ if comparing == Comparing::Merge => {
                let rows = report.plan.as_ref().map_or(0, RepairPlan::rows);
                let text = format!("{rows} rows of {a} and {b} are to be merged");
                (Level::Info, text)
            }
            0 => (Level::Info, format!("{b} has the rows of {a}")),
            1 => (Level::Warn, format!("{b} differs from {a} in 1 table")),
            more => (
                Level::Warn,
                format!("{b} differs from {a} in {more} tables"),
            ),
        };
        let took = now.as_millisecond() - verification.began.as_millisecond();
        let event = match comparing {
            Comparing::Equality => "verify.completed",
            Comparing::Overlap => "overlap.completed",
            Comparing::Repair => "repair.planned",
            Comparing::Merge => "merge.planned",
        };
        let note = Note::new(level, event, text)
            .node(b)
            .of(Some(a), None)
            .field("operator", &verification.operator)
            .field("tables", report.tables.len())
            .field("tables_unequal", unequal)
            .field("missing", sum(|table| table.missing))
            .field("extra", sum(|table| table.extra))
            .field("different", sum(|table| table.different))
            .field("duration_ms", took.max(0));
        self.log(note, now);
        if comparing == Comparing::Equality {
            self.note_compared(&verification.spec, &report, now);
        }
        if comparing == Comparing::Merge {
            self.merge_compared(&verification.spec, &report, now);
        }
        let ended = Ok(Arc::new(report));
        verification.tell(|feed| feed.ended = Some(ended));
    }

    /// A comparison could not be completed.
    pub(super) fn verify_failed(
        &mut self,
        verification: &Verification,
        fault: Fault,
        now: Timestamp,
    ) {
        let (a, b) = (&verification.spec.node_a, &verification.spec.node_b);
        let event = match verification.spec.comparing {
            Comparing::Equality => "verify.failed",
            Comparing::Overlap => "overlap.failed",
            Comparing::Repair => "repair.not_planned",
            Comparing::Merge => "merge.not_planned",
        };
        let text = format!("{b} was not compared with {a}: {fault}");
        let note = Note::warn(event, text)
            .node(b)
            .of(Some(a), None)
            .field("operator", &verification.operator)
            .field("hint", &fault.hint);
        self.log(note, now);
        if verification.scheduled.is_some() {
            self.not_compared(&verification.spec, &fault, now);
        }
        verification.tell(|feed| feed.ended = Some(Err(fault)));
    }
}
