//! Reconnecting to the coordinator, and finding out what happened to the jobs meanwhile.

use steep_protocol::message::api::{
    ApiReply, EndView, NodeView, PhaseSeconds, ProgressView, Query, Report,
};
use steep_protocol::{Fault, FaultKind, JobId, NodeState};

use super::Follower;
use super::feed::Feed;
use crate::client::ReplyError;
use crate::failure::{self, Failure};
use crate::redial::Redial;

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
                            Ok(feed) => return Ok(Some(feed)),
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
        for reply in replies {
            let ApiReply::Nodes(views) = reply else {
                continue;
            };
            for view in views.iter().filter(|view| !view.state.is_active()) {
                if self.running().contains(&view.node_id) {
                    self.missed(view).await?;
                }
            }
        }
        self.feed().await
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
                    self.missed(view).await?;
                }
            }
            if !self.ends.contains_key(&node) {
                let message = "the coordinator does not know the node any more";
                return Err(Failure::new(FaultKind::Failed, message).on(&node));
            }
        }
        Ok(())
    }

    /// Reports an end that was missed, from the stored report or else from the state of the node.
    async fn missed(&mut self, view: &NodeView) -> Result<(), Failure> {
        let node = &view.node_id;
        let last = self.last.get(node);
        let job = self.jobs.get(node).copied();
        let job = job.or(last.and_then(|last| last.job_id));
        let request = Query::Report { node: node.clone() };
        let mut replies = self.client.ask(request).await?;
        let reported = loop {
            match replies.next().await {
                // The report may be about another job.
                Ok(Some(ApiReply::Ended(end))) if Some(end.job_id) == job => break Some(*end),
                Ok(Some(_)) => {}
                Ok(None) | Err(ReplyError::Refused(_)) => break None,
                Err(ReplyError::Lost(failure)) => return Err(failure),
            }
        };
        let end = reported.unwrap_or_else(|| reconstructed(view, last, job));
        self.end(end);
        Ok(())
    }
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
