//! The connection to the coordinator: its replies become [`Update`]s, the user's actions become requests.
//! Reconnects for as long as the screen is open.

use std::time::Duration;

use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::{Fault, FaultKind, NodeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::actions::{Actions, Done};
use super::keys::Effect;
use super::model::Update;
use crate::client::{Client, Replies, ReplyError};
use crate::failure::Failure;
use crate::redial;

/// Updates waiting to be drawn; QUIC's flow control holds back the rest.
const QUEUE: usize = 256;

/// How long closing may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Actions waiting to be sent.
const ACTIONS_MAX: usize = 16;

/// A handle to the task that owns the connection.
#[derive(Debug)]
pub(super) struct Connection {
    actions: mpsc::Sender<Effect>,
    updates: mpsc::Receiver<Update>,
    task: JoinSet<()>,
}

impl Connection {
    /// Starts the task on an established connection.
    pub(super) fn start(client: Client) -> Self {
        let (actions, receiver) = mpsc::channel(ACTIONS_MAX);
        let (sender, updates) = mpsc::channel(QUEUE);
        let connection = ConnectionTask {
            client,
            actions: receiver,
            updates: sender,
            detail: None,
        };
        let mut task = JoinSet::new();
        task.spawn(connection.run());
        Self {
            actions,
            updates,
            task,
        }
    }

    /// The next update; `None` once the task has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Closes the connection.
    pub(super) async fn close(self) {
        let Self {
            actions,
            updates,
            mut task,
        } = self;
        drop((actions, updates));
        let _ = tokio::time::timeout(CLOSE_LIMIT, task.join_next()).await;
    }

    /// An update that has already arrived.
    pub(super) fn try_next(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }

    /// Sends an action, whose result comes as an update. False if too many are waiting.
    pub(super) fn send(&self, effect: Effect) -> bool {
        self.actions.try_send(effect).is_ok()
    }
}

struct ConnectionTask {
    client: Client,
    actions: mpsc::Receiver<Effect>,
    updates: mpsc::Sender<Update>,
    /// The node whose job is shown in detail. Kept across reconnects.
    detail: Option<NodeId>,
}

/// The handle was dropped.
struct Closed;

impl ConnectionTask {
    async fn run(mut self) {
        let _ = self.serve().await;
        self.client.close().await;
    }

    async fn serve(&mut self) -> Result<(), Closed> {
        loop {
            self.send(Update::Connected).await?;
            let mut why = self.session().await?;
            loop {
                self.send(Update::Lost(*why.0)).await?;
                match self.dial().await? {
                    Ok(()) => break,
                    Err(failure) => why = failure,
                }
            }
        }
    }

    async fn send(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }

    /// Runs until the connection is lost; returns the reason.
    async fn session(&mut self) -> Result<Failure, Closed> {
        let mut actions = Actions::default();
        let why = self.listen(&mut actions).await?;
        for update in actions.abandon() {
            self.send(update).await?;
        }
        Ok(why)
    }

    async fn listen(&mut self, actions: &mut Actions) -> Result<Failure, Closed> {
        let mut all = match self.client.ask(ApiRequest::Watch).await {
            Ok(replies) => replies,
            Err(failure) => return Ok(failure),
        };
        let mut detail = match self.detail.clone() {
            Some(node) => self.look(node).await,
            None => None,
        };
        loop {
            let effect = tokio::select! {
                reply = all.next() => match reply {
                    Ok(Some(reply)) => {
                        let back = detail.is_none() && self.shows_one_of(&reply);
                        self.reply(reply).await?;
                        // A removed node ends the stream, and may come back with another job.
                        if let (true, Some(node)) = (back, self.detail.clone()) {
                            detail = self.look(node).await;
                        }
                        continue;
                    }
                    Ok(None) => return Ok(ended()),
                    Err(ReplyError::Refused(failure) | ReplyError::Lost(failure)) => return Ok(failure),
                },
                reply = next_of(&mut detail) => {
                    match reply {
                        Ok(Some(reply)) => self.reply(reply).await?,
                        Ok(None) | Err(ReplyError::Lost(_)) => detail = None,
                        Err(ReplyError::Refused(failure)) => {
                            detail = None;
                            self.send(Update::Answer(Err(*failure.0))).await?;
                        }
                    }
                    continue;
                }
                Done { update, then } = actions.next() => {
                    self.send(update).await?;
                    match then {
                        Some(effect) => effect,
                        None => continue,
                    }
                }
                effect = self.actions.recv() => effect.ok_or(Closed)?,
            };
            match effect {
                Effect::Open(node) => {
                    break_here("watch.open");
                    self.detail = Some(node.clone());
                    detail = self.look(node).await;
                }
                Effect::Close => {
                    self.detail = None;
                    detail = None;
                }
                Effect::AskLast(node) => actions.last(&self.client, node).await,
                Effect::Cancel(node, data) => actions.cancel(&self.client, node, data).await,
                Effect::Init(spec) => actions.init(&self.client, *spec).await,
                Effect::Reinit(spec) => actions.reinit(&self.client, *spec).await,
                Effect::Restart(spec) => actions.restart(&self.client, spec).await,
                // Both are the screen's.
                Effect::Quit | Effect::Redraw => {}
            }
        }
    }

    /// Whether the node in detail is among those.
    fn shows_one_of(&self, reply: &ApiReply) -> bool {
        let ApiReply::Nodes(nodes) = reply else {
            return false;
        };
        let detail = self.detail.as_ref();
        nodes.iter().any(|view| Some(&view.node_id) == detail)
    }

    async fn look(&self, node: NodeId) -> Option<Replies> {
        let request = ApiRequest::Job { node, follow: true };
        // If this fails, the connection is lost and `listen` ends.
        self.client.ask(request).await.ok()
    }

    async fn reply(&self, reply: ApiReply) -> Result<(), Closed> {
        let update = match reply {
            ApiReply::Nodes(nodes) => Update::Nodes(nodes),
            ApiReply::Snapshots(views) => Update::Snapshots(views),
            ApiReply::Progress(view) => Update::Progress(view),
            ApiReply::Ended(end) => Update::Ended(end),
            ApiReply::Event(event) => Update::Event(event),
            ApiReply::Job(view) => Update::Job(view),
            // Replies to other requests. `Replies` handles the end of the stream and faults.
            ApiReply::Findings { .. }
            | ApiReply::Accepted { .. }
            | ApiReply::Audit(_)
            | ApiReply::Schema(_)
            | ApiReply::Captured { .. }
            | ApiReply::Prepared(_)
            | ApiReply::Missing(_)
            | ApiReply::DetachPlan(_)
            | ApiReply::Tables(_)
            | ApiReply::Rebuilt(_)
            | ApiReply::Left(_)
            | ApiReply::Verified(_)
            | ApiReply::Found(_)
            | ApiReply::End
            | ApiReply::Adjusted(_)
            | ApiReply::Verifying(_)
            | ApiReply::Compared(_)
            | ApiReply::Switchover(_)
            | ApiReply::Repaired(_)
            | ApiReply::TableCompared(_)
            | ApiReply::Fault(_) => return Ok(()),
        };
        self.send(update).await
    }

    /// Pauses, then dials once. Refuses actions meanwhile: if they were kept, they would later run on a
    /// cluster whose state the user has not seen.
    async fn dial(&mut self) -> Result<Result<(), Failure>, Closed> {
        let Self {
            client,
            actions,
            updates,
            detail,
        } = self;
        let attempt = async {
            tokio::time::sleep(redial::PAUSE).await;
            client.reconnect().await
        };
        tokio::pin!(attempt);
        loop {
            tokio::select! {
                // Refuse pending actions before the connection is up.
                biased;
                effect = actions.recv() => match effect.ok_or(Closed)? {
                    Effect::Open(node) => *detail = Some(node),
                    Effect::Close => *detail = None,
                    Effect::AskLast(_)
                    | Effect::Cancel(..)
                    | Effect::Init(_)
                    | Effect::Reinit(_)
                    | Effect::Restart(_) => {
                        let text = "the coordinator cannot be reached: nothing was sent to it";
                        let fault = Fault::new(FaultKind::Unreachable, text)
                            .hint("try again once it is back");
                        let refused = Update::Answer(Err(fault));
                        updates.send(refused).await.map_err(|_| Closed)?;
                    }
                    Effect::Quit | Effect::Redraw => {}
                },
                done = &mut attempt => return Ok(done),
            }
        }
    }
}

/// Panics where a test asks for it, to check that the terminal is restored. Does nothing in a release build.
fn break_here(place: &str) {
    if cfg!(debug_assertions) && std::env::var_os("STEEP_BREAK_AT").is_some_and(|at| at == place) {
        panic!("asked to break at {place}");
    }
}

async fn next_of(replies: &mut Option<Replies>) -> Result<Option<ApiReply>, ReplyError> {
    match replies {
        Some(replies) => replies.next().await,
        None => std::future::pending().await,
    }
}

fn ended() -> Failure {
    Failure::new(FaultKind::Unreachable, "the coordinator ended the stream")
}
