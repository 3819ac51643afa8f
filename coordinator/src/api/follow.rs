//! Follows jobs until they end, and events until the operator leaves.

use steep_protocol::message::api::{ApiReply, EndView, EventView, Query};
use steep_protocol::message::snapshot::{SnapshotState, SnapshotView};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, Retry, SnapshotId};

use super::{Ended, Stream};
use crate::drive::{Answer, Follow, Interest, Question};
use crate::store::EventQuery;

/// Events in one question to the loop.
const PAGE: u32 = 500;

/// A followed job.
pub(super) struct Watched {
    pub(super) follow: Follow,
    /// The version sent last.
    version: Option<u64>,
}

impl Stream {
    /// [`steep_protocol::message::api::ApiRequest::Events`].
    pub(super) async fn events(
        &mut self,
        node: Option<NodeId>,
        follow: bool,
        mut after: u64,
    ) -> Result<(), Ended> {
        let mut pulse = self.handle.pulse.clone();
        loop {
            pulse.mark_unchanged();
            self.send_events(node.as_ref(), &mut after, None).await?;
            if !follow {
                return Ok(());
            }
            pulse.changed().await.map_err(|_| stopping())?;
        }
    }

    /// [`steep_protocol::message::api::ApiRequest::Snapshot`].
    pub(super) async fn snapshot(&mut self, snapshot: SnapshotId) -> Result<(), Ended> {
        let mut pulse = self.handle.pulse.clone();
        let mut sent = None;
        loop {
            pulse.mark_unchanged();
            let query = Query::Snapshots {
                snapshot: Some(snapshot),
                source: None,
            };
            let Answer::Replies(replies) = self.ask(Question::Query(query)).await? else {
                return Ok(());
            };
            let Some(ApiReply::Snapshots(views)) = replies.into_iter().next() else {
                return Ok(());
            };
            let Some(view) = views.into_iter().next() else {
                return Ok(());
            };
            let more = matches!(view.state, SnapshotState::Opening | SnapshotState::Live);
            // The time alone is no news.
            let news = SnapshotView {
                duration_seconds: 0.0,
                ..view.clone()
            };
            if sent.as_ref() != Some(&news) {
                sent = Some(news);
                self.reply(&ApiReply::Snapshots(vec![view])).await?;
            }
            if !more {
                return Ok(());
            }
            pulse.changed().await.map_err(|_| stopping())?;
        }
    }

    /// [`steep_protocol::message::api::ApiRequest::Audit`].
    pub(super) async fn audit(&mut self, node: Option<NodeId>) -> Result<(), Ended> {
        let mut after = 0;
        loop {
            let query = EventQuery {
                node: node.clone(),
                after,
                limit: PAGE,
            };
            let Answer::Audit(page) = self.ask(Question::Audit(query)).await? else {
                return Ok(());
            };
            let full = page.len() >= PAGE as usize;
            after = page.last().map_or(after, |entry| entry.seq);
            self.reply(&ApiReply::Audit(page)).await?;
            if !full {
                return Ok(());
            }
        }
    }

    /// [`steep_protocol::message::api::ApiRequest::Progress`].
    pub(super) async fn progress(&mut self, node: NodeId, interest: Interest) -> Result<(), Ended> {
        let answer = self.ask(Question::Progress { node, interest }).await?;
        let Answer::Progress { view, follow, end } = answer else {
            return Ok(());
        };
        self.reply(&ApiReply::Progress(view)).await?;
        if interest == Interest::Once {
            return Ok(());
        }
        match (follow, end) {
            (Some(follow), _) => self.watch(vec![follow], None).await,
            (None, Some(end)) => Ok(self.reply(&ApiReply::Ended(end)).await?),
            (None, None) => Ok(()),
        }
    }

    /// Sends each job's newest view whenever it changes, its events after `events_after`, if given,
    /// and its end. Returns when all jobs have ended.
    pub(super) async fn watch(
        &mut self,
        jobs: Vec<Follow>,
        mut events_after: Option<u64>,
    ) -> Result<(), Ended> {
        let mut pulse = self.handle.pulse.clone();
        let ids: Vec<JobId> = jobs.iter().map(|follow| follow.job).collect();
        // The store can filter by one node. For several, all events are read and filtered here.
        let node = match &jobs[..] {
            [only] => Some(only.node.clone()),
            _ => None,
        };
        let mut watched: Vec<Watched> = jobs.into_iter().map(Watched::new).collect();
        while !watched.is_empty() {
            pulse.mark_unchanged();
            // Views are read before events, so that the events that led to an end precede it.
            let news: Vec<_> = watched.iter_mut().filter_map(Watched::news).collect();
            if let Some(after) = &mut events_after {
                self.send_events(node.as_ref(), after, Some(&ids)).await?;
            }
            for (view, end) in news {
                self.reply(&view).await?;
                if let Some(end) = end {
                    watched.retain(|w| w.follow.job != end.job_id);
                    self.reply(&ApiReply::Ended(end)).await?;
                }
            }
            if !watched.is_empty() {
                pulse.changed().await.map_err(|_| stopping())?;
            }
        }
        Ok(())
    }

    /// Sends events after number `after`, only those of `jobs` if given, and advances `after`.
    pub(super) async fn send_events(
        &mut self,
        node: Option<&NodeId>,
        after: &mut u64,
        jobs: Option<&[JobId]>,
    ) -> Result<(), Ended> {
        loop {
            let query = EventQuery {
                node: node.cloned(),
                after: *after,
                limit: PAGE,
            };
            let Answer::Events(page) = self.ask(Question::Events(query)).await? else {
                return Ok(());
            };
            let full = page.len() >= PAGE as usize;
            for event in page {
                *after = (*after).max(event.seq);
                if is_wanted(&event, jobs) {
                    self.reply(&ApiReply::Event(event)).await?;
                }
            }
            if !full {
                return Ok(());
            }
        }
    }
}

impl Watched {
    pub(super) fn new(follow: Follow) -> Self {
        Self {
            follow,
            version: None,
        }
    }

    /// The newest view, if it was not sent yet, and the end, if there is one.
    pub(super) fn news(&mut self) -> Option<(ApiReply, Option<Box<EndView>>)> {
        let feed = self.follow.feed.borrow_and_update();
        if self.version == Some(feed.version) {
            return None;
        }
        self.version = Some(feed.version);
        let view = ApiReply::Progress(Box::new((*feed.view).clone()));
        let end = feed.end.as_ref().map(|end| Box::new((**end).clone()));
        Some((view, end))
    }
}

fn is_wanted(event: &EventView, jobs: Option<&[JobId]>) -> bool {
    let of_job = |jobs: &[JobId]| event.job_id.is_some_and(|id| jobs.contains(&id));
    jobs.is_none_or(of_job)
}

pub(super) fn stopping() -> Fault {
    Fault::new(FaultKind::Unreachable, "the coordinator is stopping")
        .hint("jobs continue; ask again when it is back")
        .retry(Retry::NewConnection)
}
