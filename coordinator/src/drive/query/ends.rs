//! How queries end without an answer: by a fault, a time limit, a lost agent, or an operator who left.

use jiff::Timestamp;
use steep_protocol::message::agent::CoordinatorMessage;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, Retry};

use super::{After, AgentQuery, Course, Pair, Purpose};
use crate::drive::Driver;
use crate::drive::stored_check::was_not_looked_at;
use crate::drive::verify::Verification;
use crate::job::time::after;
use crate::store::Store;

impl AgentQuery {
    fn verification(&self) -> Option<&Verification> {
        match &self.purpose {
            Purpose::AdmitVerify(verification) | Purpose::Verify(verification) => {
                Some(verification)
            }
            _ => None,
        }
    }

    /// Whether it compares the rows of that node for the schedule.
    pub(in crate::drive) fn compares_rows_of(&self, node: &NodeId) -> bool {
        let verification = self.verification();
        verification.is_some_and(|verification| verification.is_scheduled_for(node))
    }
}

impl<S: Store> Driver<S> {
    pub(super) fn query_failed(&mut self, purpose: Purpose, fault: Fault, now: Timestamp) {
        match purpose {
            Purpose::LookAtSource(look) | Purpose::LookAtTarget(look, _) => {
                self.doctor_failed(look.doctor, fault, now);
            }
            Purpose::LookAtStored(look, ..) if was_not_looked_at(&fault) => {
                self.doctor_failed(look.doctor, fault, now);
            }
            Purpose::LookAtStored(look, source, target) => {
                self.looked(&look, &source, &target, Some(&fault));
            }
            Purpose::CheckStored(look) => self.stored_checked(look, Err(fault), now),
            Purpose::Describe(ticket)
            | Purpose::Capture { ticket, .. }
            | Purpose::Admit(_, After::Captured { ticket, .. })
            | Purpose::Compare(_, After::Captured { ticket, .. })
            | Purpose::LookBeforePrepare(_, ticket)
            | Purpose::Prepare(_, ticket)
            | Purpose::LookBeforeGenerate(_, _, ticket)
            | Purpose::LookAtPlace(_, _, _, ticket)
            | Purpose::VerifySnapshot(_, ticket)
            | Purpose::FindSnapshot(ticket)
            | Purpose::ListTables(_, ticket)
            | Purpose::CheckFollowed(_, _, ticket)
            | Purpose::DropPrepared(ticket)
            | Purpose::Rebuild(ticket) => self.answer(ticket, Err(fault)),
            Purpose::AdmitVerify(verification) | Purpose::Verify(verification) => {
                self.verify_failed(&verification, fault, now);
            }
            Purpose::AdmitRepair(page) | Purpose::Repair(page) => {
                self.repair_failed(*page, fault, now);
            }
            Purpose::RaiseSequences(node)
            | Purpose::Admit(Pair { node, .. }, After::Sequences { .. })
            | Purpose::Compare(Pair { node, .. }, After::Sequences { .. }) => {
                self.sequences_failed(&node, &fault, now);
            }
            Purpose::SetApart(setting) => self.not_set_apart(&setting, fault, now),
            Purpose::Sweep(sweep) => self.swept(*sweep, Some(&fault), now),
            Purpose::AwaitBeforeDetach(detaching) => self.not_waited(*detaching, fault, now),
            Purpose::RemoveLeft(node, left) => Self::left_stays(&node, &left, &fault),
            Purpose::LookAtWayBack(looking)
            | Purpose::LookAtFollower(looking, _)
            | Purpose::LookAtOld(looking)
            | Purpose::LookAtNew(looking, _) => {
                self.not_looked_before_switchover(*looking, fault);
            }
            Purpose::Admit(pair, After::Drift { .. })
            | Purpose::Compare(pair, After::Drift { .. }) => {
                Self::comparison_failed(&pair.node, &fault);
            }
        }
    }

    /// Revokes a source's permission, if the query needed one (G7).
    pub(super) fn query_over(&mut self, course: &Course) {
        if let Some(source) = &course.admitted {
            self.release_permission(course.job, course.next, source);
        }
    }

    /// Ends queries that take too long.
    pub(in crate::drive) fn tick_queries(&mut self, now: Timestamp) {
        let late = |query: &AgentQuery| {
            let Course { on, limit, .. } = &query.course;
            let text = format!("the agent did not answer within {} s", limit.as_secs());
            let fault = Fault::new(FaultKind::Timeout, text).on(on);
            (query.course.give_up <= now).then(|| fault.hint(query.purpose.hint()))
        };
        self.end_queries(late, now);
        let unwanted = |query: &AgentQuery| {
            let verification = query.verification()?;
            let text = "the comparison was cancelled";
            verification
                .is_unwanted()
                .then(|| Fault::new(FaultKind::Cancelled, text))
        };
        self.end_queries(unwanted, now);
    }

    /// The comparison of rows that the node is at, which may take as long again as it was given.
    pub(in crate::drive) fn verification_alive(
        &mut self,
        node: &NodeId,
        job: JobId,
        now: Timestamp,
    ) -> Option<&Verification> {
        // Whoever waits for something else has set a limit of their own.
        let own = |query: &&mut AgentQuery| {
            query.verification().is_some() && query.asks_as(job) && query.course.on == *node
        };
        let query = self.queries.iter_mut().find(own)?;
        query.course.give_up = after(now, query.course.limit);
        query.verification()
    }

    /// Of the query that was begun last.
    pub(in crate::drive) fn last_verification(&mut self) -> Option<&mut Verification> {
        match &mut self.queries.last_mut()?.purpose {
            Purpose::AdmitVerify(verification) => Some(verification),
            _ => None,
        }
    }

    /// Whether the schedule compares the rows of that node at the moment.
    pub(in crate::drive) fn is_compared(&self, node: &NodeId) -> bool {
        self.queries
            .iter()
            .any(|query| query.compares_rows_of(node))
    }

    /// Ends the queries that need an agent whose session ended.
    pub(in crate::drive) fn queries_lost(&mut self, node: &NodeId, now: Timestamp) {
        let text = "the agent disconnected before it answered";
        let fault = Fault::new(FaultKind::Unreachable, text).on(node);
        let fault = fault.hint(Fault::ONCE_IT_IS_BACK);
        let lost = |query: &AgentQuery| {
            query
                .needs(node)
                .then(|| fault.clone().retry(Retry::Backoff))
        };
        self.end_queries(lost, now);
    }

    /// Ends the queries for which `why` returns a fault.
    pub(in crate::drive) fn end_queries(
        &mut self,
        why: impl Fn(&AgentQuery) -> Option<Fault>,
        now: Timestamp,
    ) {
        let mut ended = Vec::new();
        for query in std::mem::take(&mut self.queries) {
            match why(&query) {
                Some(fault) => ended.push((query, fault)),
                None => self.queries.push(query),
            }
        }
        for (AgentQuery { course, purpose }, fault) in ended {
            let (id, job) = (course.command, course.job);
            self.send(&course.on, CoordinatorMessage::Abort { id, job });
            self.query_failed(purpose, fault, now);
            self.query_over(&course);
        }
    }
}
