//! Streams for `watch`: the whole cluster, and one job in full.
//!
//! A watcher asks the loop for each update. A pause between updates limits their number in a busy
//! cluster, and only changes are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use steep_protocol::message::api::{ApiReply, JobView, NodeView};
use steep_protocol::message::snapshot::SnapshotView;
use steep_protocol::{Fault, JobId, NodeId, limits};
use tokio::sync::watch;

use super::follow::{Watched, stopping};
use super::{Ended, Stream};
use crate::drive::{Answer, Interest, Question};

/// The pause after an update. A watched agent reports every 200 ms, so its changes are sent within
/// 350 ms; changes by the loop's tick of 250 ms, such as the rates of a stalled job, within 600 ms.
const UPDATE_PAUSE: Duration = Duration::from_millis(150);

/// How long to wait for a pulse before asking anyway.
const PULSE_WAIT: Duration = Duration::from_secs(1);

/// [`UPDATE_PAUSE`] for one job in full, whose view is larger.
const JOB_PAUSE: Duration = Duration::from_millis(400);

/// Number of the node's latest events to send first.
const JOB_EVENTS: u32 = 100;

impl Stream {
    /// [`steep_protocol::message::api::ApiRequest::Watch`].
    pub(super) async fn watch_all(&mut self) -> Result<(), Ended> {
        let mut pulse = self.handle.pulse.clone();
        let mut seen: BTreeMap<NodeId, NodeView> = BTreeMap::new();
        let mut jobs: BTreeMap<JobId, Watched> = BTreeMap::new();
        let mut stored = Vec::new();
        let mut after = self.recent(None, limits::RECENT_EVENTS).await?;
        // The first list is sent even if empty: it marks the end of the recent events.
        let mut first = true;
        loop {
            pulse.mark_unchanged();
            let overview = self
                .ask(Question::Overview {
                    known: jobs.keys().copied().collect(),
                })
                .await?;
            let Answer::Overview {
                nodes,
                jobs: open,
                snapshots,
                last_event,
            } = overview
            else {
                return Ok(());
            };
            let mut sent = last_event > after;
            if sent {
                self.send_events(None, &mut after, None).await?;
            }
            let changed: Vec<NodeView> = nodes
                .into_iter()
                .filter(|node| seen.get(&node.node_id) != Some(node))
                .collect();
            if !changed.is_empty() || first {
                (first, sent) = (false, true);
                seen.extend(
                    changed
                        .iter()
                        .map(|node| (node.node_id.clone(), node.clone())),
                );
                self.reply(&ApiReply::Nodes(changed)).await?;
            }
            sent |= self.send_snapshots(snapshots, &mut stored).await?;
            for follow in open {
                jobs.entry(follow.job)
                    .or_insert_with(|| Watched::new(follow));
            }
            sent |= self.send_jobs(&mut jobs).await?;
            pause(&mut pulse, if sent { UPDATE_PAUSE } else { Duration::ZERO }).await?;
        }
    }

    /// Sends all snapshots if one has changed, come or gone. Returns whether it sent anything.
    async fn send_snapshots(
        &mut self,
        mut now: Vec<SnapshotView>,
        told: &mut Vec<SnapshotView>,
    ) -> Result<bool, Ended> {
        // Its age grows though nothing happens.
        now.iter_mut().for_each(|view| view.duration_seconds = 0.0);
        if now == *told {
            return Ok(false);
        }
        told.clone_from(&now);
        self.reply(&ApiReply::Snapshots(now)).await?;
        Ok(true)
    }

    /// Sends new views of the jobs and removes those that have ended. Returns whether it sent
    /// anything.
    async fn send_jobs(&mut self, jobs: &mut BTreeMap<JobId, Watched>) -> Result<bool, Ended> {
        let mut over = Vec::new();
        let mut sent = false;
        for (id, watched) in jobs.iter_mut() {
            if let Some((view, end)) = watched.news() {
                sent = true;
                self.reply(&view).await?;
                if let Some(end) = end {
                    self.reply(&ApiReply::Ended(end)).await?;
                    over.push(*id);
                    continue;
                }
            }
            // The loop has closed the job.
            if watched.follow.feed.has_changed().is_err() {
                over.push(*id);
            }
        }
        for id in over {
            jobs.remove(&id);
        }
        Ok(sent)
    }

    /// [`steep_protocol::message::api::ApiRequest::Job`].
    pub(super) async fn job(&mut self, node: NodeId, interest: Interest) -> Result<(), Ended> {
        let mut pulse = self.handle.pulse.clone();
        self.recent(Some(&node), JOB_EVENTS).await?;
        let mut last = None;
        loop {
            pulse.mark_unchanged();
            let seen = last
                .as_ref()
                .filter(|view: &&Box<_>| is_over(view))
                .map(|view| view.job_id);
            let question = Question::Job {
                node: node.clone(),
                seen,
                interest,
            };
            let answer = self.ask(question).await?;
            let mut sent = false;
            if let Answer::Job(Some(view)) = answer
                && last.as_ref() != Some(&view)
            {
                sent = true;
                self.reply(&ApiReply::Job(view.clone())).await?;
                last = Some(view);
            }
            if interest == Interest::Once {
                return Ok(());
            }
            pause(&mut pulse, if sent { JOB_PAUSE } else { Duration::ZERO }).await?;
        }
    }

    /// Sends the newest events and returns the number of the last.
    async fn recent(&mut self, node: Option<&NodeId>, limit: u32) -> Result<u64, Ended> {
        let question = Question::Recent {
            node: node.cloned(),
            limit,
        };
        let Answer::Events(events) = self.ask(question).await? else {
            return Ok(0);
        };
        let last = events.last().map_or(0, |event| event.seq);
        for event in events {
            self.reply(&ApiReply::Event(event)).await?;
        }
        Ok(last)
    }
}

/// Whether the job can no longer change.
fn is_over(view: &JobView) -> bool {
    view.end.is_some() && view.ended_at.is_some()
}

/// Waits for `pause` and then for the next change, at most [`PULSE_WAIT`].
async fn pause(pulse: &mut watch::Receiver<u64>, pause: Duration) -> Result<(), Fault> {
    tokio::time::sleep(pause).await;
    match tokio::time::timeout(PULSE_WAIT, pulse.changed()).await {
        Ok(Err(_)) => Err(stopping()),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}
