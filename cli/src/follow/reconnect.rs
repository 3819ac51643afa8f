//! Reconnecting to the coordinator, and finding out what happened to the jobs meanwhile.

use std::time::Duration;

use steep_protocol::message::api::{
    ApiReply, EndView, NodeView, PhaseSeconds, ProgressView, Query, Report,
};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState};
use tokio::time::Instant;

use super::Follower;
use super::feed::Feed;
use crate::client::ReplyError;
use crate::failure::{self, Failure};
use crate::redial::Redial;

/// How long a job may be unknown to the coordinator: one that has lost its store learns of it within half a minute,
/// once the agents are back.
const LEARNS_WITHIN: Duration = Duration::from_secs(60);

impl Follower<'_> {
    /// Reconnects; `None` if a signal came first.
    pub(super) async fn reconnect(&mut self, why: Failure) -> Result<Option<Feed>, Failure> {
        let told = !self.jobs.is_empty() || !self.last.is_empty();
        self.display.note(&format!(
            "{}; dialling {} again",
            failure::line(&why.0),
            self.client.address()
        ));
        let mut redial = Redial::begin(why);
        loop {
            let attempt = async {
                self.client.reconnect().await?;
                self.client.ask_all(Query::Nodes { node: None }).await
            };
            let failure = tokio::select! {
                tried = attempt => match tried {
                    Ok(replies) => {
                        self.display.note("connected again");
                        if !told && !self.all_active(&replies) {
                            // The coordinator never confirmed the jobs, and they are not running. Do
                            // not ask again: jobs that ended quickly would run twice.
                            return Err(redial.why());
                        }
                        match self.go_on(&replies).await {
                            Ok(feed) => {
                                self.unknown_since = None;
                                return Ok(Some(feed));
                            }
                            Err(failure) => failure,
                        }
                    }
                    Err(failure) => failure,
                },
                _ = self.signals.next() => return Ok(None),
            };
            let again = redial.failed(failure)?;
            tokio::select! {
                () = again.wait() => {}
                _ = self.signals.next() => return Ok(None),
            }
        }
    }

    /// Whether every target has a job at work.
    fn all_active(&self, replies: &[ApiReply]) -> bool {
        let views = replies.iter().filter_map(|reply| match reply {
            ApiReply::Nodes(views) => Some(views),
            _ => None,
        });
        let active: Vec<_> = views
            .flatten()
            .filter(|view| view.state.is_active())
            .map(|view| &view.node_id)
            .collect();
        self.targets.iter().all(|target| active.contains(&target))
    }

    /// Reports jobs that ended meanwhile, and follows the others.
    async fn go_on(&mut self, replies: &[ApiReply]) -> Result<Feed, Failure> {
        let views = replies.iter().filter_map(|reply| match reply {
            ApiReply::Nodes(views) => Some(views),
            _ => None,
        });
        let views: Vec<&NodeView> = views.flatten().collect();
        for node in self.running() {
            let view = views.iter().find(|view| view.node_id == node);
            let Some(view) = view else {
                if let Some(failure) = self.may_learn(&node) {
                    return Err(failure);
                }
                continue;
            };
            if view.state.is_active() {
                continue;
            }
            let reported = self.reported(&node).await?;
            if is_unknown(view, &reported)
                && let Some(failure) = self.may_learn(&node)
            {
                return Err(failure);
            }
            self.missed(view, reported);
        }
        self.feed().await
    }

    /// A reason to ask again, as long as a coordinator without its store may learn of the job from its agents.
    fn may_learn(&mut self, node: &NodeId) -> Option<Failure> {
        let since = *self.unknown_since.get_or_insert_with(Instant::now);
        let message = "the coordinator does not know the job, and may learn of it from the agents";
        (since.elapsed() < LEARNS_WITHIN)
            .then(|| Failure::new(FaultKind::Unreachable, message).on(node))
    }

    /// The streams ended without the end of some job: finds out how it ended.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        for node in self.running() {
            let request = Query::Nodes {
                node: Some(node.clone()),
            };
            for reply in self.client.ask_all(request).await? {
                let ApiReply::Nodes(views) = reply else {
                    continue;
                };
                for view in views.iter().filter(|view| view.node_id == node) {
                    let reported = self.reported(&node).await?;
                    self.missed(view, reported);
                }
            }
            if !self.ends.contains_key(&node) {
                let message = "the coordinator does not know the node any more";
                return Err(Failure::new(FaultKind::Failed, message).on(&node));
            }
        }
        Ok(())
    }

    /// The last report of a node.
    async fn reported(&self, node: &NodeId) -> Result<Reported, Failure> {
        let job = self.job_of(node);
        let request = Query::Report { node: node.clone() };
        let mut replies = self.client.ask(request).await?;
        let mut reported = Reported::Nothing;
        loop {
            match replies.next().await {
                Ok(Some(ApiReply::Ended(end))) if Some(end.job_id) == job => {
                    return Ok(Reported::End(end));
                }
                Ok(Some(_)) => reported = Reported::Another,
                Ok(None) | Err(ReplyError::Refused(_)) => return Ok(reported),
                Err(ReplyError::Lost(failure)) => return Err(failure),
            }
        }
    }

    fn job_of(&self, node: &NodeId) -> Option<JobId> {
        let last = self.last.get(node);
        let job = self.jobs.get(node).copied();
        job.or(last.and_then(|last| last.job_id))
    }

    /// Shows an end that was missed, from the stored report or else from the state of the node.
    fn missed(&mut self, view: &NodeView, reported: Reported) {
        let node = &view.node_id;
        let unknown = is_unknown(view, &reported);
        let end = match reported {
            Reported::End(end) => *end,
            Reported::Another | Reported::Nothing => {
                let mut end = reconstructed(view, self.last.get(node), self.job_of(node));
                if unknown {
                    let message = "the coordinator does not know the job any more";
                    let hint = format!("its store may be lost: see `steep-repl status {node}`");
                    let fault = Fault::new(FaultKind::Failed, message).hint(hint);
                    end.fault = Some(fault.on(node));
                }
                end
            }
        };
        self.end(end);
    }
}

/// What a coordinator has stored about the end of a node's last job.
enum Reported {
    /// That of the job that is followed.
    End(Box<EndView>),
    /// Another job's.
    Another,
    Nothing,
}

/// Whether the coordinator has no trace of the node's job.
fn is_unknown(view: &NodeView, reported: &Reported) -> bool {
    let blank = view.state == NodeState::Uninitialized && view.loaded.is_none();
    blank && matches!(reported, Reported::Nothing)
}

/// Derives an end from the state of the node and the last known progress of its job.
fn reconstructed(node: &NodeView, last: Option<&ProgressView>, job: Option<JobId>) -> EndView {
    let fault = match node.state {
        NodeState::Synchronized => None,
        // Without replication.
        NodeState::Uninitialized
            if node
                .loaded
                .as_ref()
                .is_some_and(|l| job.is_none_or(|job| job == l.job_id)) =>
        {
            None
        }
        NodeState::Uninitialized => Some(Fault::new(FaultKind::Cancelled, "the job was cancelled")),
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Reinitializing => Some(
            Fault::new(
                FaultKind::Failed,
                "the coordinator ended the stream before the job ended",
            )
            .hint(format!(
                "see `steep-repl init progress --node {} --follow`",
                node.node_id
            )),
        ),
        NodeState::Diverged | NodeState::Failed => {
            let message = node
                .error_message
                .as_deref()
                .unwrap_or("the cause was not recorded");
            let hint = format!("see `steep-repl events {}`", node.node_id);
            Some(Fault::new(FaultKind::Failed, message).hint(hint))
        }
    };
    let duration = match (node.init_started_at, node.init_completed_at) {
        (Some(started), Some(completed)) => {
            completed.duration_since(started).as_secs_f64().max(0.0)
        }
        _ => 0.0,
    };
    let source = node
        .source_node
        .as_ref()
        .or(last.and_then(|last| last.source_node.as_ref()));
    EndView {
        node_id: node.node_id.clone(),
        job_id: job.unwrap_or(JobId(0)),
        source_node: source.unwrap_or(&node.node_id).clone(),
        state: node.state,
        fault: fault.map(|fault| fault.on(&node.node_id)),
        tables: last.map_or(0, |last| last.tables_completed),
        rows_copied: last.map_or(0, |last| last.rows_copied),
        bytes_copied: last.map_or(0, |last| last.bytes_copied),
        wire_bytes: last.map_or(0, |last| last.wire_bytes),
        duration_seconds: duration,
        phases: PhaseSeconds::default(),
        warnings: Vec::new(),
        report: Report::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn an_end_that_was_missed_is_read_off_the_node() {
        let last = samples::progress();
        let end = |state| reconstructed(&samples::node("node_b", state), Some(&last), None);
        assert!(end(NodeState::Synchronized).fault.is_none());
        assert_eq!(end(NodeState::Synchronized).rows_copied, last.rows_copied);
        let kind = |state| end(state).fault.unwrap().kind;
        assert_eq!(kind(NodeState::Uninitialized), FaultKind::Cancelled);
        assert_eq!(kind(NodeState::Failed), FaultKind::Failed);
        let mut loaded = samples::node("node_b", NodeState::Uninitialized);
        loaded.loaded = Some(samples::loaded());
        let of = |job| reconstructed(&loaded, None, Some(JobId(job))).fault;
        assert_eq!(of(7), None);
        assert_eq!(of(8).unwrap().kind, FaultKind::Cancelled);
        let mut node = samples::node("node_b", NodeState::Failed);
        node.error_message = Some("the disk is full".to_owned());
        let fault = reconstructed(&node, None, None).fault.unwrap();
        assert_eq!(fault.message, "the disk is full");
    }
}
