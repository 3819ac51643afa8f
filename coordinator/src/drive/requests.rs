//! Answers operators' queries and the questions of followers and watchers. `orders` has the orders.

use jiff::Timestamp;
use steep_protocol::message::api::{ApiReply, Query};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use super::views::{idle_view, job_view};
use super::{Answer, Driver, Interest, Live, Question, Reply, Ticket};
use crate::job::progress::Detail;
use crate::store::{EventQuery, Store, StoreError};

/// The answer if it needs a record that cannot be read; other answers are not affected.
pub(super) fn unreadable(error: StoreError) -> Fault {
    tracing::error!(event = "store.unreadable", error = %error, "a record of the store cannot be read");
    Fault::new(FaultKind::Failed, format!("coordinator: {error}")).hint(
        "nothing else is affected; keep a copy of the coordinator's --data-dir and report this",
    )
}

/// Maximum number of events in a page.
const EVENTS_PAGE: u32 = 500;

impl<S: Store> Driver<S> {
    /// Answers a question, now or when an agent or a job has done what it asks for. An invalid question
    /// and an unreadable record are answered with a fault.
    pub(super) fn take_question(&mut self, question: Question, reply: Reply, now: Timestamp) {
        let ticket = Ticket::new(reply);
        let answer = match question {
            Question::Query(query) => self.query(query, ticket.clone(), now),
            Question::Order(order, operator) => self
                .order(order, &operator, ticket.clone(), now)
                .map(|()| None),
            Question::Events(query) => self.events_answer(query).map(Some),
            Question::Recent { node, limit } => self.recent_answer(node.as_ref(), limit).map(Some),
            Question::Audit(query) => self.audit_answer(query).map(Some),
            Question::Progress { node, interest } => {
                self.progress_answer(&node, interest, now).map(Some)
            }
            Question::Overview { known } => {
                self.cluster_lease.take(now);
                Ok(Some(self.overview(&known, now)))
            }
            Question::Job {
                node,
                seen,
                interest,
            } => {
                if let Some(id) = self.live_job(&node) {
                    self.renew_lease(id, interest, now);
                }
                self.job_answer(&node, seen, now).map(Some)
            }
            Question::Schema {
                node,
                filter,
                cursor,
            } => self
                .describe(&node, filter, cursor, ticket.clone(), now)
                .map(|()| None),
            Question::Gauges => Ok(Some(Answer::Gauges(Box::new(self.gauges(now))))),
            Question::Alive => Ok(Some(Answer::Alive)),
        };
        if let Some(answer) = answer.transpose() {
            self.answer(ticket, answer);
        }
    }

    /// The answer to a query, or `None` if an agent must be asked first.
    fn query(
        &mut self,
        query: Query,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Option<Answer>, Fault> {
        let reply = match query {
            Query::Nodes { node } => self.nodes_reply(node.as_ref(), now)?,
            Query::Doctor(request) => {
                return self.doctor(request, ticket, now).map(|()| None);
            }
            Query::Report { node } => self.report_reply(&node)?,
            Query::Prepared { node } => ApiReply::Prepared(self.prepared_on(&node)?.to_vec()),
            Query::Snapshots { snapshot, source } => {
                self.snapshots_reply(snapshot, source.as_ref(), now)?
            }
            Query::VerifySnapshot { snapshot } => {
                return self.verify_snapshot(snapshot, ticket, now).map(|()| None);
            }
            Query::FindSnapshot { node, location } => {
                let finding = self.find_snapshot(&node, location, ticket, now);
                return finding.map(|()| None);
            }
            Query::DetachPlan { node, absent } => self.detach_plan(&node, absent)?,
            Query::SwitchoverPlan(spec) => {
                return self.switchover_plan(*spec, ticket, now).map(|()| None);
            }
            Query::Tables { node } => {
                return self.list_tables(&node, ticket, now).map(|()| None);
            }
            Query::Missing { node } => {
                self.known(&node)?;
                ApiReply::Missing(self.nodes[&node].missing.clone())
            }
        };
        Ok(Some(reply.into()))
    }

    fn report_reply(&mut self, node: &NodeId) -> Result<ApiReply, Fault> {
        self.known(node)?;
        let end = self.store.last_end(node).map_err(unreadable)?;
        end.map(|end| ApiReply::Ended(Box::new(end)))
            .ok_or_else(|| {
                let text = "no job of the node has ended yet, so there is no report";
                let hint = format!("`steep-repl status {node}` shows what it is doing");
                Fault::new(FaultKind::Failed, text).on(node).hint(hint)
            })
    }

    fn nodes_reply(&self, node: Option<&NodeId>, now: Timestamp) -> Result<ApiReply, Fault> {
        if let Some(node) = node {
            self.known(node)?;
        }
        let wanted = self
            .nodes
            .values()
            .filter(|r| node.is_none_or(|n| r.id == *n));
        Ok(ApiReply::Nodes(self.node_views(wanted, now)))
    }

    fn events_answer(&mut self, query: EventQuery) -> Result<Answer, Fault> {
        if let Some(node) = query.node.as_ref() {
            self.known(node)?;
        }
        let limit = query.limit.min(EVENTS_PAGE);
        let events = self.store.events(&EventQuery { limit, ..query });
        events.map(Answer::Events).map_err(unreadable)
    }

    fn audit_answer(&mut self, query: EventQuery) -> Result<Answer, Fault> {
        if let Some(node) = query.node.as_ref() {
            self.known(node)?;
        }
        let limit = query.limit.min(EVENTS_PAGE);
        let entries = self.store.audit(&EventQuery { limit, ..query });
        entries.map(Answer::Audit).map_err(unreadable)
    }

    fn overview(&mut self, known: &[JobId], now: Timestamp) -> Answer {
        let nodes = self.node_views(self.nodes.values(), now);
        let new = |(id, live): &(&JobId, &Live)| live.end.is_none() && !known.contains(id);
        let new: Vec<JobId> = self.jobs.iter().filter(new).map(|(id, _)| *id).collect();
        Answer::Overview {
            nodes,
            jobs: new
                .into_iter()
                .filter_map(|id| self.follow(id, now))
                .collect(),
            snapshots: self.watched_snapshots(now),
            last_event: self.next_event - 1,
        }
    }

    fn recent_answer(&mut self, node: Option<&NodeId>, limit: u32) -> Result<Answer, Fault> {
        if let Some(node) = node {
            self.known(node)?;
        }
        let events = self.store.recent_events(node, limit.min(EVENTS_PAGE));
        events.map(Answer::Events).map_err(unreadable)
    }

    fn job_answer(
        &mut self,
        node: &NodeId,
        seen: Option<JobId>,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        self.known(node)?;
        if let Some(id) = self.live_job(node) {
            let view = self.live_job_view(id, now);
            return Ok(Answer::Job(view.map(Box::new)));
        }
        let last = self.nodes[node].job.filter(|id| Some(*id) != seen);
        let stored = match last {
            Some(id) => self.store.job(id).map_err(unreadable)?,
            None => None,
        };
        let Some(stored) = stored else {
            return Ok(Answer::Job(None));
        };
        let (copied, meter) = self.look_at(&stored, now).map_err(unreadable)?;
        let state = self.state_of(node);
        let shown = meter.view(&stored.job, state, &copied, Detail::Shown, now);
        let view = job_view(&stored.job, shown.tables, stored.end);
        Ok(Answer::Job(Some(Box::new(view))))
    }

    fn progress_answer(
        &mut self,
        node: &NodeId,
        interest: Interest,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        self.known(node)?;
        if let Some(id) = self.live_job(node)
            && let Some(view) = self.full_view(id, now)
        {
            let end = self
                .jobs
                .get(&id)
                .and_then(|live| live.end.as_deref().cloned());
            let follow = match interest {
                Interest::Ongoing => self.follow(id, now).filter(|_| end.is_none()),
                Interest::Once => None,
            };
            return Ok(Answer::Progress {
                view: Box::new(view),
                follow,
                end: end.map(Box::new),
            });
        }
        let record = &self.nodes[node];
        let (state, idle) = (record.state, idle_view(record));
        let error = record.error_message.clone();
        let stored = match record.job {
            Some(id) => self.store.job(id).map_err(unreadable)?,
            None => None,
        };
        let Some(stored) = stored else {
            return Ok(Answer::Progress {
                view: Box::new(idle),
                follow: None,
                end: None,
            });
        };
        let (copied, meter) = self.look_at(&stored, now).map_err(unreadable)?;
        let mut view = meter.view(&stored.job, state, &copied, Detail::All, now);
        view.detail.history = self.store.samples(stored.job.id).map_err(unreadable)?;
        view.error_message = error;
        if let Some(end) = &stored.end {
            view.bytes_copied = end.bytes_copied;
            view.bytes_total = view.bytes_total.max(end.bytes_copied);
            view.tables_completed = end.tables;
        }
        Ok(Answer::Progress {
            view: Box::new(view),
            follow: None,
            end: stored.end.map(Box::new),
        })
    }

    /// Loads a node's last job into memory.
    pub(super) fn revive_last(
        &mut self,
        node: &NodeId,
        now: Timestamp,
    ) -> Result<Option<JobId>, StoreError> {
        let Some(id) = self.nodes.get(node).and_then(|record| record.job) else {
            return Ok(None);
        };
        let Some(stored) = self.store.job(id)? else {
            return Ok(None);
        };
        self.revive(stored, now)?;
        Ok(Some(id))
    }
}
