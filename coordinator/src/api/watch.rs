//! The whole cluster at a glance, and one job in full: streams for people who watch.
//!
//! A watcher costs the loop one question a look. Looks are spaced, so that a busy cluster costs no
//! more than a quiet one, and only what changed since the last look is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use steep_protocol::message::api::{ApiReply, JobView, NodeView};
use steep_protocol::{Fault, JobId, NodeId, limits};
use tokio::sync::watch;

use super::follow::{Watched, stopping};
use super::{Ended, Stream};
use crate::drive::{Answer, Interest, Question};

/// The least time from something sent to the next look. A change is looked for at once and waits only
/// where something was sent just before. An agent says what it did every 200 ms and the loop takes it
/// in at once, so that it is on its way within 350 ms; what only the loop's own tick of 250 ms brings
/// along, such as the rates of a job that stands still, within 600 ms.
const LOOK_PAUSE: Duration = Duration::from_millis(150);

/// Between two looks where nothing happens: what agents observe (lag, WAL held) makes no pulse.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// The same for one job in full, whose view is larger.
const JOB_PAUSE: Duration = Duration::from_millis(400);

/// Events of the node before its job.
const JOB_EVENTS: u32 = 100;

impl Stream {
    /// [`steep_protocol::message::api::ApiRequest::Watch`].
    pub(super) async fn watch_all(&mut self) -> Result<(), Ended> {
        let mut pulse = self.handle.pulse.clone();
        let mut seen: BTreeMap<NodeId, NodeView> = BTreeMap::new();
        let mut jobs: BTreeMap<JobId, Watched> = BTreeMap::new();
        let mut after = self.recent(None, limits::RECENT_EVENTS).await?;
        // Even where there is none: it says that all was said.
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
                let known = changed.iter().map(|node| (node.node_id.clone(), node));
                seen.extend(known.map(|(id, node)| (id, node.clone())));
                self.reply(&ApiReply::Nodes(changed)).await?;
            }
            for follow in open {
                jobs.entry(follow.job)
                    .or_insert_with(|| Watched::new(follow));
            }
            sent |= self.send_jobs(&mut jobs).await?;
            rest(&mut pulse, if sent { LOOK_PAUSE } else { Duration::ZERO }).await?;
        }
    }

    /// Sends what is new of those jobs, and forgets those that have ended. Says whether there was
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
            // The loop has let go of the job: nothing more will be said of it.
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
            let over = last
                .as_ref()
                .filter(|view: &&Box<_>| is_over(view))
                .map(|view| view.job_id);
            let question = Question::Job {
                node: node.clone(),
                seen: over,
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
            rest(&mut pulse, if sent { JOB_PAUSE } else { Duration::ZERO }).await?;
        }
    }

    /// Sends the newest events; says the number of the last.
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

/// Whether nothing of the job can change any more.
fn is_over(view: &JobView) -> bool {
    view.end.is_some() && view.ended_at.is_some()
}

/// Waits until it is worth looking again: at the next change, once the pause is over.
async fn rest(pulse: &mut watch::Receiver<u64>, pause: Duration) -> Result<(), Fault> {
    tokio::time::sleep(pause).await;
    match tokio::time::timeout(LOOK_ANYWAY, pulse.changed()).await {
        Ok(Err(_)) => Err(stopping()),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}
