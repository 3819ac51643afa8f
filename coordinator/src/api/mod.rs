//! An operator's connection: one stream for each request and its replies.
//!
//! Turns requests into questions to the loop, and its answers into replies. Owns no state of the
//! cluster. `follow` streams one job, `watch` all of them: each fetches the newest view after it has
//! sent the previous one, so a slow reader skips views and delays nobody.

mod follow;
mod switchover;
mod verify;
mod watch;

use std::time::Duration;

use steep_daemon::say_panic;
use steep_protocol::close::CloseCode;
use steep_protocol::limits::API_REQUEST_MAX;
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::message::job::TableFilter;
use steep_protocol::quic::{Busy, Connection, Place, Receiver, Sender, StreamError};
use steep_protocol::{Fault, NodeId, Retry};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::follow::stopping;
use crate::drive::{Answer, Ask, Handle, Interest, Operator, Question};

/// Concurrent requests of one connection; more wait in QUIC's flow control.
const STREAMS_MAX: usize = 32;

/// How long an operator has to send the request on a stream it opened.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// A connection without requests is closed after this time, which is longer than a person needs to
/// confirm something.
const IDLE_LIMIT: Duration = Duration::from_secs(1_800);

/// How long an operator may leave an answer unread. A terminal stopped for longer must ask again.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// How long open requests may take to be answered once the coordinator stops. The loop has answered or
/// ended by then; if it ended, the answer is a fault that says so.
const ANSWERS_LIMIT: Duration = Duration::from_secs(1);

/// Serves an operator's connection until either side ends it. When the coordinator stops, no more
/// requests are accepted, and open ones are answered, if only with the fault that it stops.
pub async fn serve(
    connection: Connection,
    place: &Place,
    handle: Handle,
    shutdown: CancellationToken,
) {
    let operator = Operator {
        name: connection.peer().name.to_string(),
        certificate: connection.peer().certificate.clone(),
        address: connection.remote().ip().to_canonical().to_string(),
    };
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            stream = connection.accept(), if streams.len() < STREAMS_MAX => {
                let Ok((sender, receiver)) = stream else {
                    return;
                };
                let stream = Stream {
                    sender,
                    handle: handle.clone(),
                    operator: operator.clone(),
                    _busy: place.busy(),
                };
                streams.spawn(stream.serve(receiver));
            }
            _ = connection.closed() => return,
            () = tokio::time::sleep(IDLE_LIMIT), if streams.is_empty() => {
                return connection.close(CloseCode::Done);
            }
            Some(ended) = streams.join_next() => say_panic(ended),
        }
    }
    let answered = async {
        while let Some(ended) = streams.join_next().await {
            say_panic(ended);
        }
    };
    // Who has not read the answer by then loses it.
    let _ = tokio::time::timeout(ANSWERS_LIMIT, answered).await;
    connection.close(CloseCode::ShuttingDown);
}

/// One request.
struct Stream {
    sender: Sender,
    handle: Handle,
    operator: Operator,
    /// Keeps the connection busy during this request.
    _busy: Busy,
}

fn interest(follow: bool) -> Interest {
    if follow {
        Interest::Ongoing
    } else {
        Interest::Once
    }
}

/// Why a request ended early.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// It is answered with this fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The operator has gone.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Stream {
    /// Reads the request and answers it.
    async fn serve(mut self, mut receiver: Receiver) {
        let received = receiver.recv_short::<ApiRequest>(API_REQUEST_MAX);
        let received = tokio::time::timeout(REQUEST_LIMIT, received).await;
        let Ok(Ok(Some(request))) = received else {
            self.sender.reset(CloseCode::Malformed);
            receiver.stop(CloseCode::Malformed);
            return;
        };
        let last = match self.answer(request).await {
            Ok(()) => ApiReply::End,
            Err(Ended::Fault(fault)) => ApiReply::Fault(self.explained(fault)),
            Err(Ended::Stream(error)) => {
                // Jobs continue without their follower.
                tracing::debug!(operator = %self.operator.name, %error, "an operator's stream ended");
                return;
            }
        };
        if self.reply(&last).await.is_ok() {
            self.sender.finish();
            // Closing the connection would discard what has not arrived.
            let _ = tokio::time::timeout(READ_LIMIT, self.sender.drained()).await;
        }
    }

    /// Adds the store's error, if there is one, to the fault of a stopping coordinator.
    fn explained(&self, mut fault: Fault) -> Fault {
        if fault.retry == Retry::NewConnection
            && let Some(why) = self.handle.failure.get()
        {
            fault.message = format!("{}: {why}", fault.message);
        }
        fault
    }

    /// Sends a reply, within [`READ_LIMIT`].
    async fn reply(&mut self, reply: &ApiReply) -> Result<(), StreamError> {
        let sent = tokio::time::timeout(READ_LIMIT, self.sender.send(reply)).await;
        sent.unwrap_or_else(|_| {
            self.sender.reset(CloseCode::Cancelled);
            Err(StreamError::Finished)
        })
    }

    async fn answer(&mut self, request: ApiRequest) -> Result<(), Ended> {
        match request {
            ApiRequest::Query(query) => self.once(Question::Query(query)).await,
            ApiRequest::Order(order) => {
                let operator = self.operator.clone();
                self.once(Question::Order(order, operator)).await
            }
            ApiRequest::Events {
                node,
                follow,
                after,
            } => self.events(node, follow, after).await,
            ApiRequest::Audit { node } => self.audit(node).await,
            ApiRequest::Progress { node, follow } => self.progress(node, interest(follow)).await,
            ApiRequest::Job { node, follow } => self.job(node, interest(follow)).await,
            ApiRequest::Snapshot { snapshot } => self.snapshot(snapshot).await,
            ApiRequest::Watch => self.watch_all().await,
            ApiRequest::Schema { node, filter } => self.schema(&node, &filter).await,
        }
    }

    /// Asks the loop once, and follows the jobs that were accepted.
    async fn once(&mut self, question: Question) -> Result<(), Ended> {
        match self.ask(question).await? {
            Answer::Replies(replies) => {
                for reply in replies {
                    self.reply(&reply).await?;
                }
            }
            Answer::Accepted { jobs, after } => {
                let ids = jobs.iter().map(|job| (job.node.clone(), job.job)).collect();
                self.reply(&ApiReply::Accepted { jobs: ids }).await?;
                self.watch(jobs, Some(after)).await?;
            }
            Answer::Verifying(feed) => self.verifying(feed).await?,
            Answer::Switching(feed) => self.switching(feed).await?,
            // Never the answer to a query or an order.
            Answer::Events(_)
            | Answer::Audit(_)
            | Answer::Progress { .. }
            | Answer::Overview { .. }
            | Answer::Job(_)
            | Answer::Schema { .. }
            | Answer::Gauges(_)
            | Answer::Alive => {}
        }
        Ok(())
    }

    /// Requests each page after the previous one is sent, so that no schema is held in memory as a
    /// whole.
    async fn schema(&mut self, node: &NodeId, filter: &TableFilter) -> Result<(), Ended> {
        let mut cursor = None;
        loop {
            let question = Question::Schema {
                node: node.clone(),
                filter: filter.clone(),
                cursor,
            };
            let Answer::Schema { page, next } = self.ask(question).await? else {
                return Ok(());
            };
            self.reply(&ApiReply::Schema(page)).await?;
            if next.is_none() {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Asks the loop.
    async fn ask(&self, question: Question) -> Result<Answer, Fault> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { question, reply };
        self.handle.asks.send(ask).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}
