//! `repair`: one page of a plan after another is written to a replica. Each page is an order and a query of its own, which
//! is completed whether or not its operator waits, so an operator who stops does so between two pages.

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, SourceCommand, TargetCommand};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::repair::{RepairReport, RepairRows, RepairSpec};
use steep_protocol::message::verify::RowAccess;
use steep_protocol::{Fault, FaultKind, NodeId, NodeState};

use super::following::Following;
use super::log::{Level, Note};
use super::query::Purpose;
use super::{Driver, Ticket};
use crate::store::Store;

/// What PostgreSQL says of a row that is there already; from 18 on it names the conflict.
const DUPLICATE: [&str; 4] = [
    "duplicate key value",
    "conflict=insert_exists",
    "conflict=update_exists",
    "conflict=multiple_unique_conflicts",
];

/// What a page is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// A repair, of a replica.
    Repair,
    /// A merge.
    Merge,
}

/// A page that is being written.
pub(super) struct Repairing {
    spec: RepairSpec,
    of: Writes,
    operator: String,
    ticket: Ticket,
}

impl<S: Store> Driver<S> {
    /// Starts a page. The answer is what came of it.
    pub(super) fn repair(
        &mut self,
        (spec, of): (RepairSpec, Writes),
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        match of {
            Writes::Repair => self.check_repair(&spec.node_a, &spec.node_b)?,
            Writes::Merge => self.check_merge_page(&spec.node_a, &spec.node_b)?,
        }
        if !spec.fits() {
            let text = "a page of a repair is longer than it may be";
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        let (source, target) = (spec.node_a.clone(), spec.node_b.clone());
        let repairing = Box::new(Repairing {
            spec,
            of,
            operator: operator.to_owned(),
            ticket,
        });
        let access = RowAccess::Repair;
        let command = SourceCommand::AdmitVerify { target, access };
        self.begin_query(&source, command, Purpose::AdmitRepair(repairing), now);
        Ok(())
    }

    /// Checks that one node is a replica of the other and can be asked.
    pub(super) fn check_repair(&self, source: &NodeId, target: &NodeId) -> Result<(), Fault> {
        self.check_query(source)?;
        self.check_query(target)?;
        self.check_replica(target, source, &format!("repair {target} {source}"))?;
        self.check_applying(target, source)
    }

    /// A replica whose subscription keeps failing never applies what its source has written, so nothing can be repaired.
    fn check_applying(&self, target: &NodeId, source: &NodeId) -> Result<(), Fault> {
        let failing = self.following.get(target).and_then(Following::failing);
        let Some(why) = failing else {
            return Ok(());
        };
        let hint = match DUPLICATE.iter().any(|said| why.contains(said)) {
            true => format!(
                "a row that {source} has inserted is on {target} already, where somebody else wrote it. Delete it there: \
                 its table is named above, its key is in PostgreSQL's log on {target} (DETAIL). The \
                 subscription tries again by itself and inserts the row of {source}; then run the command again"
            ),
            false => format!(
                "remove the cause on {target}; once it has caught up (steep-repl status {target}), run the command again"
            ),
        };
        let text = format!("{target} does not apply what {source} has written: {why}");
        Err(Fault::new(FaultKind::Failed, text).on(target).hint(hint))
    }

    /// Checks that one node is a replica of the other. `reversed` is the command for the case that it is the other way
    /// round.
    pub(super) fn check_replica(
        &self,
        target: &NodeId,
        source: &NodeId,
        reversed: &str,
    ) -> Result<(), Fault> {
        let bad = |text: String| Fault::new(FaultKind::BadRequest, text).on(target);
        let follows = |node: &NodeId| self.nodes.get(node).and_then(|n| n.source.as_ref());
        if follows(target) != Some(source) {
            let text = format!(
                "{target} is not a replica of {source}, so nobody knows which rows are right"
            );
            let hint = match follows(source) == Some(target) {
                true => format!(
                    "it is the other way round, {source} is its replica: steep-repl {reversed}"
                ),
                false => format!(
                    "only a replica's rows are repaired, by its source's; make it one with steep-repl init {target} --from {source}"
                ),
            };
            return Err(bad(text).hint(hint));
        }
        match self.state_of(target) {
            NodeState::Synchronized | NodeState::Diverged => Ok(()),
            state => {
                let hint =
                    format!("see steep-repl status {target}; repair it once it is synchronized");
                Err(bad(format!("the node is {state}")).hint(hint))
            }
        }
    }

    /// The source admits the replica, which writes the page.
    pub(super) fn write_page(&self, page: Box<Repairing>) -> (NodeId, Command, Purpose) {
        let spec = &page.spec;
        let on = spec.node_b.clone();
        let command = TargetCommand::Repair(Box::new(RepairRows {
            source: self.peer(&spec.node_a),
            plan: spec.plan.clone(),
            max_rate: spec.max_rate,
        }));
        (on, command.into(), Purpose::Repair(page))
    }

    /// The page is written, or as much of it as could be.
    pub(super) fn repaired(&mut self, page: Repairing, report: RepairReport, now: Timestamp) {
        let place = &page.spec.place;
        let mut all = place.before;
        all.add(&report.counts());
        let (a, b) = (&page.spec.node_a, &page.spec.node_b);
        if page.of == Writes::Merge {
            self.merge_written(b, report.counts().repaired, now);
            let reply = ApiReply::Repaired(Box::new(report));
            return self.answer(page.ticket, Ok(reply.into()));
        }
        let left = all.changed + all.failed;
        let (level, event, text) = match &report.stopped {
            Some(fault) => {
                let text = format!("rows of {b} are repaired only in part: {fault}");
                (Level::Warn, "repair.failed", text)
            }
            None if left > 0 => {
                let text = format!("{left} rows of {b} were not repaired");
                (Level::Warn, "repair.completed", text)
            }
            None => {
                let text = format!("the rows of {b} that differed from those of {a} are repaired");
                (Level::Info, "repair.completed", text)
            }
        };
        if report.stopped.is_some() || place.page >= place.pages {
            let note = Note::new(level, event, text)
                .node(b)
                .of(Some(a), None)
                .field("operator", &page.operator)
                .field("repaired", all.repaired)
                .field("changed", all.changed)
                .field("failed", all.failed);
            self.log(note, now);
            self.compare_soon(&page.spec.node_b, now);
        }
        let reply = ApiReply::Repaired(Box::new(report));
        self.answer(page.ticket, Ok(reply.into()));
    }

    /// Nothing is known of the page, or nothing of it was written.
    pub(super) fn repair_failed(&mut self, page: Repairing, fault: Fault, now: Timestamp) {
        let (a, b) = (&page.spec.node_a, &page.spec.node_b);
        if page.of == Writes::Merge {
            return self.answer(page.ticket, Err(fault));
        }
        let before = page.spec.place.before;
        let text = format!("rows of {b} are not repaired, or only in part: {fault}");
        let note = Note::warn("repair.failed", text)
            .node(b)
            .of(Some(a), None)
            .field("operator", &page.operator)
            .field("repaired", before.repaired)
            .field("changed", before.changed)
            .field("failed", before.failed);
        self.log(note, now);
        self.answer(page.ticket, Err(fault));
    }
}
