//! The conversation with the coordinator: what it says becomes [`News`], what a person wants becomes
//! requests. A coordinator that goes away is dialled again for as long as somebody watches.

use std::time::Duration;

use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::{Fault, FaultKind, NodeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::actions::{Actions, Done};
use super::keys::Effect;
use super::model::News;
use crate::client::{Broken, Client, Replies};
use crate::failure::Failure;
use crate::redial;

/// News that wait to be drawn; the coordinator's own flow control holds back the rest.
const QUEUE: usize = 256;

/// How long leaving may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Wishes that wait to be passed on: one for each key that was pressed meanwhile.
const ORDERS_MAX: usize = 16;

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
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
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
                match self.dial().await? {
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
        let mut actions = Actions::default();
        let why = self.listen(&mut actions).await?;
        for news in actions.abandon() {
            self.tell(news).await?;
        }
        Ok(why)
    }

    async fn listen(&mut self, actions: &mut Actions) -> Result<Failure, Gone> {
        let mut all = match self.client.ask(&ApiRequest::Watch).await {
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
                        self.told(reply).await?;
                        continue;
                    }
                    Ok(None) => return Ok(ended()),
                    Err(Broken::Said(failure) | Broken::Lost(failure)) => return Ok(failure),
                },
                reply = next_of(&mut detail) => {
                    match reply {
                        Ok(Some(reply)) => self.told(reply).await?,
                        Ok(None) | Err(Broken::Lost(_)) => detail = None,
                        Err(Broken::Said(failure)) => {
                            detail = None;
                            self.tell(News::Answer(Err(*failure.0))).await?;
                        }
                    }
                    continue;
                }
                Done { news, then } = actions.next() => {
                    self.tell(news).await?;
                    match then {
                        Some(effect) => effect,
                        None => continue,
                    }
                }
                effect = self.orders.recv() => effect.ok_or(Gone)?,
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
                Effect::Restart(spec) => actions.restart(&self.client, spec).await,
                // Both are the screen's.
                Effect::Quit | Effect::Redraw => {}
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
            | ApiReply::Prepared(_)
            | ApiReply::Missing(_)
            | ApiReply::Rebuilt(_)
            | ApiReply::Left(_)
            | ApiReply::End
            | ApiReply::Fault(_) => return Ok(()),
        };
        self.tell(news).await
    }

    /// Waits for a moment and dials. What is wanted meanwhile is refused at once: kept, it would be
    /// done later to a cluster that nobody has looked at.
    async fn dial(&mut self) -> Result<Result<(), Failure>, Gone> {
        let Self {
            client,
            orders,
            news,
            detail,
        } = self;
        let attempt = async {
            tokio::time::sleep(redial::PAUSE).await;
            client.reconnect().await
        };
        tokio::pin!(attempt);
        loop {
            tokio::select! {
                // Where both are there, the order came while we were away.
                biased;
                effect = orders.recv() => match effect.ok_or(Gone)? {
                    Effect::Open(node) => *detail = Some(node),
                    Effect::Close => *detail = None,
                    Effect::AskLast(_)
                    | Effect::Cancel(..)
                    | Effect::Init(_)
                    | Effect::Restart(_) => {
                        let text = "the coordinator is away: nothing was asked of it";
                        let fault = Fault::new(FaultKind::Unreachable, text)
                            .hint("try again once it is back");
                        let refused = News::Answer(Err(fault));
                        news.send(refused).await.map_err(|_| Gone)?;
                    }
                    Effect::Quit | Effect::Redraw => {}
                },
                done = &mut attempt => return Ok(done),
            }
        }
    }
}

/// Panics where a test asks for it, to see what a panic leaves of the terminal. Nothing in a release.
fn break_here(place: &str) {
    if cfg!(debug_assertions) && std::env::var_os("STEEP_BREAK_AT").is_some_and(|at| at == place) {
        panic!("asked to break at {place}");
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
