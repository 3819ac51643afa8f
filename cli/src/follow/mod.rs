//! Follows jobs to their end: a loop over replies, signals and answers.
//!
//! [`display`] decides how things look, [`interrupt`] (pure) what a signal means. If the connection is
//! lost, the follower reconnects; jobs do not depend on it.

mod display;
mod feed;
mod interrupt;
mod reconnect;

use std::collections::BTreeMap;

use steep_protocol::message::api::{ApiReply, ApiRequest, EndView, Order, ProgressView, Query};
use steep_protocol::message::job::CancelledData;
use steep_protocol::{JobId, NodeId, NodeState};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::display::Display;
use self::feed::{Feed, Item};
use self::interrupt::{Answer, Follows, Input, Intent, Mode};
use crate::client::{Client, ReplyError};
use crate::failure::{self, Failure};
use crate::signals::Signals;
use crate::terminal::{self, Terminal};

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All jobs have ended. The exit code of the first that failed, else success.
    Ended(u8),
    /// The user left; the jobs go on.
    Running(LeftBy),
    /// The user cancelled the jobs.
    Cancelled,
}

/// How the user left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftBy {
    /// By choosing so when asked.
    Choice,
    /// By a signal.
    Signal,
}

impl Outcome {
    /// The exit code. Leaving by choice is success, leaving by signal before the end is a failure.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Ended(code) => code,
            Self::Running(LeftBy::Choice) => failure::SUCCESS,
            Self::Running(LeftBy::Signal) => failure::ERROR,
            Self::Cancelled => failure::CANCELLED,
        }
    }
}

/// Follows the jobs of some targets.
#[derive(Debug)]
pub(crate) struct Follower<'a> {
    client: &'a mut Client,
    signals: &'a mut Signals,
    who: Follows,
    display: Display,
    targets: Vec<NodeId>,
    jobs: BTreeMap<NodeId, JobId>,
    last: BTreeMap<NodeId, ProgressView>,
    ends: BTreeMap<NodeId, EndView>,
    /// Since when the coordinator does not know a job that it has confirmed.
    unknown_since: Option<Instant>,
}

/// The next step of the loop.
enum Next {
    On,
    Over(Outcome),
    /// The connection was lost.
    Again(Failure),
}

impl<'a> Follower<'a> {
    /// A follower of those targets' jobs.
    pub(crate) fn new(
        client: &'a mut Client,
        signals: &'a mut Signals,
        terminal: Terminal,
        targets: Vec<NodeId>,
    ) -> Self {
        Self {
            client,
            signals,
            who: match terminal.interactive {
                true => Follows::Starter,
                false => Follows::Program,
            },
            display: Display::new(terminal, targets.len()),
            targets,
            jobs: BTreeMap::new(),
            last: BTreeMap::new(),
            ends: BTreeMap::new(),
            unknown_since: None,
        }
    }

    /// Starts jobs and follows them. Reports every failure itself, so that no end is reported twice.
    pub(crate) async fn start(mut self, order: impl Into<Order>) -> Outcome {
        let replies = self.client.ask(order.into()).await;
        let feed = replies.map(|replies| Feed::of(vec![replies]));
        self.run(feed).await
    }

    /// Follows running jobs of somebody else, without offering to cancel them.
    pub(crate) async fn look_on(mut self) -> Outcome {
        if self.who == Follows::Starter {
            self.who = Follows::Onlooker;
        }
        self.attach().await
    }

    /// Follows jobs that are already running.
    pub(crate) async fn attach(mut self) -> Outcome {
        let feed = self.feed().await;
        self.run(feed).await
    }

    async fn run(&mut self, feed: Result<Feed, Failure>) -> Outcome {
        let followed = match feed {
            Ok(feed) => self.follow(feed).await,
            Err(failure) => Err(failure),
        };
        self.display.finish();
        match followed {
            Ok(left) => {
                if let Outcome::Running(_) = left {
                    self.say_how_to_follow();
                }
                left
            }
            Err(failure) => {
                self.display.failed(&self.running(), &self.jobs, &failure);
                Outcome::Ended(failure.exit_code())
            }
        }
    }

    async fn follow(&mut self, mut feed: Feed) -> Result<Outcome, Failure> {
        let mut mode = Mode::Following;
        let mut answer: Option<oneshot::Receiver<Option<String>>> = None;
        loop {
            let next = tokio::select! {
                item = feed.next() => self.take(item).await?,
                interrupt = self.signals.next() => {
                    if mode == Mode::Asking {
                        // The question's line is still open.
                        terminal::tell("");
                    }
                    let input = Input::Interrupt(interrupt);
                    let intent = interrupt::after(mode, input, self.who);
                    self.act(intent, &mut mode, &mut answer).await?
                }
                input = heard(&mut answer) => {
                    answer = None;
                    let input = Input::Answer(Answer::of(input.as_deref()));
                    let intent = interrupt::after(mode, input, self.who);
                    self.act(intent, &mut mode, &mut answer).await?
                }
            };
            match next {
                Next::On => {}
                Next::Over(left) => return Ok(left),
                Next::Again(failure) => match self.reconnect(failure).await? {
                    Some(again) => feed = again,
                    None => return Ok(Outcome::Running(LeftBy::Signal)),
                },
            }
        }
    }

    async fn take(&mut self, item: Item) -> Result<Next, Failure> {
        match item {
            Item::Reply(reply) => self.reply(*reply),
            Item::Failed(ReplyError::Refused(failure)) => return Err(failure),
            Item::Failed(ReplyError::Lost(failure)) => return Ok(Next::Again(failure)),
            Item::Over => self.settle().await?,
        }
        let over = self
            .targets
            .iter()
            .all(|target| self.ends.contains_key(target));
        Ok(if over {
            Next::Over(Outcome::Ended(self.exit_code()))
        } else {
            Next::On
        })
    }

    fn reply(&mut self, reply: ApiReply) {
        match reply {
            ApiReply::Accepted { jobs } => {
                self.display.accepted(&jobs);
                self.jobs.extend(jobs);
            }
            ApiReply::Progress(view) => {
                if let Some(job) = view.job_id {
                    self.jobs.insert(view.node_id.clone(), job);
                }
                self.display.progress(&view);
                self.last.insert(view.node_id.clone(), *view);
            }
            ApiReply::Event(event) => self.display.event(&event),
            ApiReply::Findings { target, findings } => self.display.findings(&target, &findings),
            ApiReply::Ended(view) => self.end(*view),
            // Replies to other requests. `Replies` handles the end of the stream and faults.
            ApiReply::Nodes(_)
            | ApiReply::Audit(_)
            | ApiReply::Schema(_)
            | ApiReply::Captured { .. }
            | ApiReply::Job(_)
            | ApiReply::Prepared(_)
            | ApiReply::Missing(_)
            | ApiReply::DetachPlan(_)
            | ApiReply::Tables(_)
            | ApiReply::Rebuilt(_)
            | ApiReply::Left(_)
            | ApiReply::Snapshots(_)
            | ApiReply::Verified(_)
            | ApiReply::Found(_)
            | ApiReply::End
            | ApiReply::Adjusted(_)
            | ApiReply::Verifying(_)
            | ApiReply::Compared(_)
            | ApiReply::Switchover(_)
            | ApiReply::Repaired(_)
            | ApiReply::TableCompared(_)
            | ApiReply::Fault(_) => {}
        }
    }

    fn end(&mut self, view: EndView) {
        if self.ends.contains_key(&view.node_id) {
            return;
        }
        self.display.end(&view);
        self.ends.insert(view.node_id.clone(), view);
    }

    /// The exit code of the first target that failed.
    fn exit_code(&self) -> u8 {
        let ends = self
            .targets
            .iter()
            .filter_map(|target| self.ends.get(target));
        let faults = ends.filter_map(|end| end.fault.as_ref());
        faults
            .map(|fault| failure::exit_code(fault.kind))
            .next()
            .unwrap_or(failure::SUCCESS)
    }

    async fn act(
        &mut self,
        intent: Intent,
        mode: &mut Mode,
        answer: &mut Option<oneshot::Receiver<Option<String>>>,
    ) -> Result<Next, Failure> {
        match intent {
            Intent::Ask => {
                *mode = Mode::Asking;
                self.display.pause();
                let jobs = if self.running().len() == 1 {
                    "the job"
                } else {
                    "the jobs"
                };
                *answer = Some(terminal::ask(&format!(
                    "\nCancel {jobs}, leave {jobs} running, or go on watching? [c/l/w]"
                )));
            }
            Intent::Watch => {
                *mode = Mode::Following;
                self.display.resume();
            }
            Intent::Leave(by) => {
                // No bars are drawn again.
                self.display.finish();
                self.display.resume();
                return Ok(Next::Over(Outcome::Running(by)));
            }
            Intent::Cancel => {
                self.display.resume();
                return Ok(Next::Over(self.cancel().await?));
            }
        }
        Ok(Next::On)
    }

    fn running(&self) -> Vec<NodeId> {
        let running = self
            .targets
            .iter()
            .filter(|target| !self.ends.contains_key(*target));
        running.cloned().collect()
    }

    /// A node's state after a cancel: of one that follows, what it was before.
    async fn state_of(&self, node: &NodeId) -> NodeState {
        let query = Query::Nodes {
            node: Some(node.clone()),
        };
        let replies = self.client.ask_all(query).await.unwrap_or_default();
        let found = replies.into_iter().find_map(|reply| match reply {
            ApiReply::Nodes(views) => views.first().map(|view| view.state),
            _ => None,
        });
        found.unwrap_or(NodeState::Uninitialized)
    }

    /// Cancels the jobs that have not ended, one by one. Another signal stops the waiting.
    async fn cancel(&mut self) -> Result<Outcome, Failure> {
        for node in self.running() {
            self.display.note(&format!(
                "{node}: cancelling, and removing what the job made"
            ));
            let request = Order::Cancel {
                node: node.clone(),
                data: CancelledData::Remove,
            };
            let mut replies = self.client.ask(request).await?;
            loop {
                tokio::select! {
                    reply = replies.next() => match reply? {
                        Some(ApiReply::Event(event)) => self.display.event(&event),
                        Some(_) => {}
                        None => break,
                    },
                    _ = self.signals.next() => return Ok(Outcome::Running(LeftBy::Signal)),
                }
            }
            let state = self.state_of(&node).await;
            self.display.cancelled(&node, state);
        }
        Ok(Outcome::Cancelled)
    }

    /// One stream for each job that has not ended.
    async fn feed(&self) -> Result<Feed, Failure> {
        let mut all = Vec::new();
        for node in self.running() {
            all.push(
                self.client
                    .ask(ApiRequest::Progress { node, follow: true })
                    .await?,
            );
        }
        Ok(Feed::of(all))
    }

    fn say_how_to_follow(&mut self) {
        for node in self.running() {
            self.display.detached(&node, self.jobs.get(&node).copied());
        }
    }
}

/// The answer to the open question; pends without one.
async fn heard(answer: &mut Option<oneshot::Receiver<Option<String>>>) -> Option<String> {
    match answer {
        Some(answer) => answer.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_by_choice_is_no_error_and_leaving_by_signal_is() {
        assert_eq!(Outcome::Running(LeftBy::Choice).exit_code(), 0);
        assert_eq!(Outcome::Running(LeftBy::Signal).exit_code(), 1);
        assert_eq!(Outcome::Cancelled.exit_code(), 4);
        assert_eq!(Outcome::Ended(3).exit_code(), 3);
    }
}
