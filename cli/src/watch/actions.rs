//! The actions of the user. Each gets one answer: its result, or that the connection was lost first.

use std::collections::HashMap;
use std::ops::ControlFlow;

use steep_protocol::message::api::{ApiReply, ApiRequest, InitRequest, Order};
use steep_protocol::message::job::{CancelledData, JobSpec};
use steep_protocol::message::tables::ChangeSpec;
use steep_protocol::{Fault, FaultKind, NodeId};
use tokio::task::{Id, JoinSet};

use super::keys::Effect;
use super::model::Update;
use crate::client::{Client, Replies, ReplyError};
use crate::failure::Failure;

/// Actions without an answer.
#[derive(Debug, Default)]
pub(super) struct Actions {
    running: JoinSet<Done>,
    about: HashMap<Id, NodeId>,
}

/// An answered action.
#[derive(Debug)]
pub(super) struct Done {
    /// The answer.
    pub(super) update: Update,
    /// The action that follows it.
    pub(super) then: Option<Effect>,
}

impl From<Update> for Done {
    fn from(update: Update) -> Self {
        Self { update, then: None }
    }
}

impl Actions {
    /// Asks for the settings of the node's last job.
    pub(super) async fn last(&mut self, client: &Client, node: NodeId) {
        let request = ApiRequest::Job {
            node: node.clone(),
            follow: false,
        };
        let asked = client.ask(request).await;
        self.begin(node.clone(), async move { last(node, asked).await.into() });
    }

    pub(super) async fn cancel(&mut self, client: &Client, node: NodeId, data: CancelledData) {
        let asked = ask_cancel(client, &node, data).await;
        self.begin(node.clone(), async move {
            Update::Answer(cancelled(&node, data, asked).await).into()
        });
    }

    pub(super) async fn init(&mut self, client: &Client, spec: JobSpec) {
        let request = Order::Init(InitRequest::Copy(vec![spec.clone()]));
        let asked = client.ask(request).await;
        self.begin(spec.target.clone(), async move {
            Update::Answer(started(&spec.target, asked).await).into()
        });
    }

    pub(super) async fn reinit(&mut self, client: &Client, spec: ChangeSpec) {
        let node = spec.node.clone();
        let asked = client.ask(Order::ChangeTables(spec)).await;
        self.begin(node.clone(), async move {
            Update::Answer(started(&node, asked).await).into()
        });
    }

    /// Cancels, then initialises.
    pub(super) async fn restart(&mut self, client: &Client, spec: Box<JobSpec>) {
        let node = spec.target.clone();
        let asked = ask_cancel(client, &node, CancelledData::Remove).await;
        self.begin(node.clone(), async move {
            let answer = cancelled(&node, CancelledData::Remove, asked).await;
            let then = answer.is_ok().then_some(Effect::Init(spec));
            let update = Update::Answer(answer);
            Done { update, then }
        });
    }

    fn begin(&mut self, node: NodeId, work: impl Future<Output = Done> + Send + 'static) {
        let id = self.running.spawn(work).id();
        self.about.insert(id, node);
    }

    /// The next answer; pends without an action. Cancel-safe.
    pub(super) async fn next(&mut self) -> Done {
        match self.running.join_next_with_id().await {
            Some(Ok((id, done))) => {
                self.about.remove(&id);
                done
            }
            Some(Err(error)) => match self.about.remove(&error.id()) {
                Some(node) => Update::Answer(Err(unanswered(&node))).into(),
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Answers all open actions after the connection was lost.
    pub(super) fn abandon(mut self) -> Vec<Update> {
        let mut updates = Vec::new();
        while let Some(joined) = self.running.try_join_next_with_id() {
            if let Ok((id, done)) = joined {
                self.about.remove(&id);
                updates.push(done.update);
            }
        }
        let lost = self.about.values();
        updates.extend(lost.map(|node| Update::Answer(Err(unanswered(node)))));
        updates
    }
}

fn unanswered(node: &NodeId) -> Fault {
    let text = "the connection broke before an answer: it may have been done or not";
    Fault::new(FaultKind::Unreachable, text)
        .on(node)
        .hint("look at the node's state and events")
}

async fn ask_cancel(
    client: &Client,
    node: &NodeId,
    data: CancelledData,
) -> Result<Replies, Failure> {
    let request = Order::Cancel {
        node: node.clone(),
        data,
    };
    client.ask(request).await
}

/// Reads the replies until the end, or until `each` breaks.
async fn drain(
    node: &NodeId,
    asked: Result<Replies, Failure>,
    mut each: impl FnMut(ApiReply) -> ControlFlow<()>,
) -> Result<(), Fault> {
    // If sending failed, the request may have arrived all the same.
    let mut replies = asked.map_err(|_| unanswered(node))?;
    loop {
        match replies.next().await {
            Ok(Some(reply)) => match each(reply) {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(()) => return Ok(()),
            },
            Ok(None) => return Ok(()),
            Err(ReplyError::Refused(failure)) => return Err(*failure.0),
            Err(ReplyError::Lost(_)) => return Err(unanswered(node)),
        }
    }
}

async fn last(node: NodeId, asked: Result<Replies, Failure>) -> Update {
    let mut found = None;
    let done = drain(&node, asked, |reply| {
        if let ApiReply::Job(view) = reply {
            found = Some(view);
        }
        ControlFlow::Continue(())
    });
    match done.await {
        Ok(()) => Update::Last(node, found),
        Err(fault) => Update::Answer(Err(fault)),
    }
}

async fn cancelled(
    node: &NodeId,
    data: CancelledData,
    asked: Result<Replies, Failure>,
) -> Result<String, Fault> {
    drain(node, asked, |_| ControlFlow::Continue(())).await?;
    let rows = match data {
        CancelledData::Remove => "what the job made is removed",
        CancelledData::Keep | CancelledData::Detach => "its tables and rows are kept",
    };
    Ok(format!("{node} is uninitialized; {rows}"))
}

async fn started(target: &NodeId, asked: Result<Replies, Failure>) -> Result<String, Fault> {
    let mut accepted = None;
    drain(target, asked, |reply| match reply {
        ApiReply::Accepted { jobs } => {
            accepted = jobs.first().map(|(_, job)| *job);
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })
    .await?;
    match accepted {
        Some(job) => Ok(format!("{target}: job {job} has begun")),
        None => Err(Fault::new(
            FaultKind::Failed,
            "the coordinator did not say that it has the job",
        )
        .on(target)),
    }
}
