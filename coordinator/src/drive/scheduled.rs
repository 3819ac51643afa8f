//! Comparisons of rows that the coordinator begins by itself (`verify --every`).
//!
//! The schedule is stored with the node; the next time is set when a comparison ends, so one that a restart
//! interrupts begins again at once. Never two at once per node. A node whose rows differ is DIVERGED until a
//! comparison of the same tables, whoever begins it, finds them equal.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::verify::{
    Comparing, ModifiedBy, RowValues, ScheduleSpec, ScheduleView, TableReport, VerifyReport,
    VerifySpec,
};
use steep_protocol::{Fault, FaultKind, NodeId, TableName};

use super::lineage::follows;
use super::{Answer, Driver, Ticket};
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::{LastVerify, NodeRecord, RegularVerify, Store, Write};

/// The shortest interval.
const EVERY_MIN: Duration = Duration::from_secs(60);

/// The longest.
const EVERY_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A comparison that could not be completed is tried again so soon, or after the interval if that is shorter.
const FAILED_AGAIN: Duration = Duration::from_secs(300);

/// Tables named in a reason.
const NAMED: usize = 5;

/// Differing tables that are stored with a node.
const TABLES_KEPT: usize = 100;

/// Who begins them, in events.
pub(super) const SCHEDULE: &str = "schedule";

impl RegularVerify {
    fn every(&self) -> Duration {
        Duration::from_secs(self.schedule.every_seconds)
    }
}

/// What a comparison says of the rows.
#[derive(Debug, Default)]
struct Rows {
    /// Which differ, as [`RegularVerify::differ`].
    differ: Option<String>,
    /// Their tables, as [`RegularVerify::differing`].
    differing: Vec<TableName>,
}

impl<S: Store> Driver<S> {
    /// Begins or ends the regular comparisons of a node.
    pub(super) fn schedule_verify(
        &mut self,
        spec: ScheduleSpec,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let ScheduleSpec {
            node_a,
            node_b,
            schedule,
        } = spec;
        self.known(&node_a)?;
        self.known(&node_b)?;
        let regular = match schedule {
            None => None,
            Some(schedule) => {
                let reversed = format!("verify {node_b} {node_a} --every 1h");
                self.check_replica(&node_b, &node_a, &reversed)?;
                let every = Duration::from_secs(schedule.every_seconds);
                if !(EVERY_MIN..=EVERY_MAX).contains(&every) {
                    let text = "rows are compared every minute at most, and at least once a year";
                    return Err(Fault::new(FaultKind::BadRequest, text).on(&node_b));
                }
                Some(RegularVerify {
                    source: node_a,
                    schedule,
                    next_at: now,
                    differ: None,
                    differing: Vec::new(),
                    last: None,
                })
            }
        };
        if let Some(record) = self.nodes.get_mut(&node_b) {
            record.verify = regular;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        // Nobody would find out whether rows are equal again.
        self.settle(&node_b, now);
        self.out.observed = true;
        self.answer(ticket, Ok(Answer::Replies(Vec::<ApiReply>::new())));
        Ok(())
    }

    /// Begins what is due.
    pub(super) fn tick_scheduled(&mut self, now: Timestamp) {
        let due = |record: &&NodeRecord| {
            let regular = record.verify.as_ref();
            regular.is_some_and(|regular| regular.next_at <= now) && follows(record.state)
        };
        let answers = |node: &NodeId| {
            let agent = self.registry.get(node);
            agent.is_some_and(Agent::postgres_answers)
        };
        let ready = |record: &&NodeRecord| {
            let source = record.verify.as_ref().map(|regular| &regular.source);
            source == record.source.as_ref()
                && source.is_some_and(answers)
                && answers(&record.id)
                && self.live_job(&record.id).is_none()
                && !self.is_compared(&record.id)
        };
        let due: Vec<NodeRecord> = self
            .nodes
            .values()
            .filter(due)
            .filter(ready)
            .cloned()
            .collect();
        for record in due {
            let Some(RegularVerify {
                source, schedule, ..
            }) = record.verify
            else {
                continue;
            };
            self.compare_regularly(
                VerifySpec {
                    node_a: source,
                    node_b: record.id,
                    comparing: Comparing::Equality,
                    tables: schedule.tables,
                    values: RowValues::Hidden,
                    parallel: schedule.parallel,
                    max_rate: schedule.max_rate,
                    modified: ModifiedBy::NotAsked,
                },
                now,
            );
        }
    }

    /// A comparison is complete. If it is the one that is made regularly, its result counts, whoever began it.
    pub(super) fn note_compared(
        &mut self,
        spec: &VerifySpec,
        report: &VerifyReport,
        now: Timestamp,
    ) {
        let unread = report.tables.iter().filter(|table| table.is_unreadable());
        let unread = unread.count();
        let differs = |table: &&TableReport| !table.is_equal() && !table.is_unreadable();
        let differ = report.tables.iter().filter(differs);
        let mut tables: Vec<TableName> = differ.map(|table| table.name.clone()).collect();
        let differing = tables.len();
        let names = tables.iter().take(NAMED).map(ToString::to_string);
        let names: Vec<String> = names.collect();
        let more = match differing.saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (equal, message) = match (differing, unread) {
            (0, 0) => (Some(true), None),
            (0, unread) => (None, Some(format!("{unread} tables could not be read"))),
            _ => (Some(false), Some(format!("{}{more}", names.join(", ")))),
        };
        let (a, b) = (&spec.node_a, &spec.node_b);
        // What differed does so until it is known to be equal.
        let rows = match equal {
            Some(true) => Some(Rows::default()),
            Some(false) => {
                if differing > TABLES_KEPT {
                    tables.clear();
                }
                let text = message.as_ref().map(|tables| {
                format!("rows differ from those of {a} in {tables}: steep-repl verify {a} {b} lists them, steep-repl repair {a} {b} writes them")
                });
                Some(Rows {
                    differ: text,
                    differing: tables,
                })
            }
            None => None,
        };
        let last = LastVerify {
            at: now,
            equal,
            message,
        };
        self.note_result(spec, (last, rows), RegularVerify::every, now);
    }

    /// One that was begun regularly could not be completed.
    pub(super) fn not_compared(&mut self, spec: &VerifySpec, fault: &Fault, now: Timestamp) {
        let last = LastVerify {
            at: now,
            equal: None,
            message: Some(fault.to_string()),
        };
        let soon = |regular: &RegularVerify| regular.every().min(FAILED_AGAIN);
        self.note_result(spec, (last, None), soon, now);
    }

    fn note_result(
        &mut self,
        spec: &VerifySpec,
        (last, rows): (LastVerify, Option<Rows>),
        again: impl Fn(&RegularVerify) -> Duration,
        now: Timestamp,
    ) {
        let Some(record) = self.nodes.get_mut(&spec.node_b) else {
            return;
        };
        let same = |regular: &&mut RegularVerify| {
            regular.source == spec.node_a && regular.schedule.tables == spec.tables
        };
        let Some(regular) = record.verify.as_mut().filter(same) else {
            return;
        };
        regular.last = Some(last);
        if let Some(Rows { differ, differing }) = rows {
            regular.differ = differ;
            regular.differing = differing;
        }
        regular.next_at = after(now, again(regular));
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        self.out.observed = true;
        self.settle(&spec.node_b, now);
    }

    /// Rows were repaired: whether they are equal is found out soon.
    pub(super) fn compare_soon(&mut self, node: &NodeId, now: Timestamp) {
        let record = self.nodes.get_mut(node);
        if let Some(record) = record
            && let Some(regular) = record.verify.as_mut()
        {
            regular.next_at = now;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
    }

    /// What is shown of it.
    pub(super) fn schedule_view(&self, record: &NodeRecord) -> Option<ScheduleView> {
        let regular = record.verify.as_ref()?;
        let last = regular.last.as_ref();
        Some(ScheduleView {
            every_seconds: regular.schedule.every_seconds,
            tables: regular.schedule.tables.clone(),
            running: self.is_compared(&record.id),
            next_at: regular.next_at,
            last_at: last.map(|last| last.at),
            equal: last.and_then(|last| last.equal),
            message: last.and_then(|last| last.message.clone()),
            differing: regular.differing.clone(),
        })
    }
}
