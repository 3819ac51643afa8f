//! The conversation with the coordinator: what it says becomes [`News`], what a person wants becomes
//! requests. A coordinator that goes away is dialled again for as long as somebody watches.

use std::time::Duration;

use steep_protocol::message::agent::CancelledData;
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::message::job::JobSpec;
use steep_protocol::{Fault, FaultKind, NodeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::keys::Effect;
use super::model::News;
use crate::client::{Broken, Client, Replies};
use crate::failure::Failure;
use crate::redial;

/// News that wait to be drawn; the coordinator's own flow control holds back the rest.
const QUEUE: usize = 256;

/// How long leaving may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Requests at once: one for each key that was pressed meanwhile.
const ACTIONS_MAX: usize = 16;

/// The conversation, for as long as it is kept.
#[derive(Debug)]
pub(super) struct Conversation {
    orders: mpsc::Sender<Effect>,
    news: mpsc::Receiver<News>,
    task: JoinSet<()>,
}

impl Conversation {
    /// Begins with a connection that stands.
    pub(super) fn begin(client: Client) -> Self {
        let (orders, taken) = mpsc::channel(ACTIONS_MAX);
        let (told, news) = mpsc::channel(QUEUE);
        let talker = Talker {
            client,
            orders: taken,
            news: told,
            detail: None,
        };
        let mut task = JoinSet::new();
        task.spawn(talker.run());
        Self { orders, news, task }
    }

    /// The next news; `None` where there will be none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Says goodbye to the coordinator.
    pub(super) async fn end(self) {
        let Self {
            orders,
            news,
            mut task,
        } = self;
        drop((orders, news));
        // The client's own goodbye has a limit; whatever else holds it up is not waited for.
        let _ = tokio::time::timeout(GOODBYE, task.join_next()).await;
    }

    /// What has come already.
    pub(super) fn ready(&mut self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// Has something done; what becomes of it is news. False where too much waits already.
    pub(super) fn order(&self, effect: Effect) -> bool {
        self.orders.try_send(effect).is_ok()
    }
}

struct Talker {
    client: Client,
    orders: mpsc::Receiver<Effect>,
    news: mpsc::Sender<News>,
    /// Whose job is looked at, whatever becomes of the connection.
    detail: Option<NodeId>,
}

/// Nobody watches any more.
struct Gone;

impl Talker {
    async fn run(mut self) {
        // Ends when the other half is dropped.
        let _ = self.talk().await;
        self.client.close().await;
    }

    async fn talk(&mut self) -> Result<(), Gone> {
        loop {
            self.tell(News::Connected).await?;
            let mut why = self.converse().await?;
            loop {
                self.tell(News::Lost(*why.0)).await?;
                self.pause().await?;
                match self.client.reconnect().await {
                    Ok(()) => break,
                    Err(failure) => why = failure,
                }
            }
        }
    }

    async fn tell(&self, news: News) -> Result<(), Gone> {
        self.news.send(news).await.map_err(|_| Gone)
    }

    /// Listens until the conversation breaks; says why.
    async fn converse(&mut self) -> Result<Failure, Gone> {
        let mut actions = JoinSet::new();
        let mut all = match self.client.ask(&ApiRequest::Watch).await {
            Ok(replies) => replies,
            Err(failure) => return Ok(failure),
        };
        let mut detail = match self.detail.clone() {
            Some(node) => self.look(node).await,
            None => None,
        };
        loop {
            tokio::select! {
                reply = all.next() => match reply {
                    Ok(Some(reply)) => self.told(reply).await?,
                    Ok(None) => return Ok(ended()),
                    Err(Broken::Said(failure) | Broken::Lost(failure)) => return Ok(failure),
                },
                reply = next_of(&mut detail) => match reply {
                    Ok(Some(reply)) => self.told(reply).await?,
                    Ok(None) | Err(Broken::Lost(_)) => detail = None,
                    Err(Broken::Said(failure)) => {
                        detail = None;
                        self.tell(News::Answer(Err(*failure.0))).await?;
                    }
                },
                effect = self.orders.recv() => match effect.ok_or(Gone)? {
                    Effect::Open(node) => {
                        self.detail = Some(node.clone());
                        detail = self.look(node).await;
                    }
                    Effect::Close => {
                        self.detail = None;
                        detail = None;
                    }
                    Effect::AskLast(node) => {
                        let request = ApiRequest::Job { node: node.clone(), follow: false };
                        let asked = self.client.ask(&request).await;
                        actions.spawn(last(node, asked));
                    }
                    Effect::Cancel(node, data) => {
                        let request = ApiRequest::Cancel { node: node.clone(), data };
                        let asked = self.client.ask(&request).await;
                        actions.spawn(cancelled(node, data, asked));
                    }
                    Effect::Init(spec) => {
                        let request = ApiRequest::Init { specs: vec![(*spec).clone()] };
                        let asked = self.client.ask(&request).await;
                        actions.spawn(started(*spec, asked));
                    }
                    // Both are the screen's.
                    Effect::Quit | Effect::Redraw => {}
                },
                Some(done) = actions.join_next() => {
                    if let Ok(news) = done {
                        self.tell(news).await?;
                    }
                }
            }
        }
    }

    async fn look(&self, node: NodeId) -> Option<Replies> {
        let request = ApiRequest::Job { node, follow: true };
        // Where it fails, the whole conversation has broken and is begun again.
        self.client.ask(&request).await.ok()
    }

    async fn told(&self, reply: ApiReply) -> Result<(), Gone> {
        let news = match reply {
            ApiReply::Nodes(nodes) => News::Nodes(nodes),
            ApiReply::Progress(view) => News::Progress(view),
            ApiReply::Ended(end) => News::Ended(end),
            ApiReply::Event(event) => News::Event(event),
            ApiReply::Job(view) => News::Job(view),
            // Answers to other questions; a stream's end and faults never get here.
            ApiReply::Findings { .. }
            | ApiReply::Accepted { .. }
            | ApiReply::Audit(_)
            | ApiReply::Schema(_)
            | ApiReply::Captured { .. }
            | ApiReply::End
            | ApiReply::Fault(_) => return Ok(()),
        };
        self.tell(news).await
    }

    /// Waits until the next attempt; what is wanted meanwhile cannot be done.
    async fn pause(&mut self) -> Result<(), Gone> {
        let over = tokio::time::sleep(redial::PAUSE);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                effect = self.orders.recv() => match effect.ok_or(Gone)? {
                    Effect::Open(node) => self.detail = Some(node),
                    Effect::Close => self.detail = None,
                    Effect::AskLast(_) | Effect::Cancel(..) | Effect::Init(_) => {
                        let text = "the coordinator is away: nothing was asked of it";
                        let fault = Fault::new(FaultKind::Unreachable, text)
                            .hint("try again once it is back");
                        self.tell(News::Answer(Err(fault))).await?;
                    }
                    Effect::Quit | Effect::Redraw => {}
                },
            }
        }
    }
}

async fn next_of(replies: &mut Option<Replies>) -> Result<Option<ApiReply>, Broken> {
    match replies {
        Some(replies) => replies.next().await,
        None => std::future::pending().await,
    }
}

fn ended() -> Failure {
    Failure::new(FaultKind::Unreachable, "the coordinator stopped telling")
}

/// Every reply that leads to the end of an answer, one after another.
async fn drain(
    asked: Result<Replies, Failure>,
    mut each: impl FnMut(ApiReply) -> Going,
) -> Result<(), Fault> {
    let mut replies = asked.map_err(|failure| *failure.0)?;
    while let Some(reply) = replies
        .next()
        .await
        .map_err(|broken| *Failure::from(broken).0)?
    {
        if each(reply) == Going::Enough {
            break;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    On,
    Enough,
}

async fn last(node: NodeId, asked: Result<Replies, Failure>) -> News {
    let mut found = None;
    let done = drain(asked, |reply| {
        if let ApiReply::Job(view) = reply {
            found = Some(view);
        }
        Going::On
    });
    match done.await {
        Ok(()) => News::Last(node, found),
        Err(fault) => News::Answer(Err(fault)),
    }
}

async fn cancelled(node: NodeId, data: CancelledData, asked: Result<Replies, Failure>) -> News {
    let rows = match data {
        CancelledData::Remove => "what the job made is removed",
        CancelledData::Keep => "its tables and rows are kept",
    };
    let done = drain(asked, |_| Going::On).await;
    News::Answer(done.map(|()| format!("{node} is uninitialized; {rows}")))
}

async fn started(spec: JobSpec, asked: Result<Replies, Failure>) -> News {
    let mut accepted = None;
    let done = drain(asked, |reply| match reply {
        ApiReply::Accepted { jobs } => {
            accepted = jobs.first().map(|(_, job)| *job);
            Going::Enough
        }
        _ => Going::On,
    });
    let (target, source) = (&spec.target, &spec.source);
    News::Answer(match (done.await, accepted) {
        (Err(fault), _) => Err(fault),
        (Ok(()), Some(job)) => Ok(format!("{target} is initialised from {source}: job {job}")),
        (Ok(()), None) => Err(Fault::new(
            FaultKind::Failed,
            "the coordinator did not say that it has the job",
        )),
    })
}
