//! One operator's connection: a stream per request, replies until everything is said.
//!
//! Turns wire requests into questions to the loop and what it answers into replies. Owns no state of
//! the cluster. A follower watches (`follow` a job, `watch` them all): it looks at the newest view when it has sent the
//! last, so a slow one skips views and delays nobody.

mod follow;
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

/// Requests of one connection at once; more wait in QUIC's flow control.
const STREAMS_MAX: usize = 32;

/// How long an operator has to say what it wants on a stream it opened.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// A connection on which nobody asks anything for so long is closed. A question that a person has to
/// think about is answered sooner.
const IDLE_LIMIT: Duration = Duration::from_secs(1_800);

/// How long an operator may leave an answer unread. A terminal that was stopped for longer, or a reader
/// that does not read, has to ask again.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// How long answers under way get once the coordinator stops. The loop has answered by then, or has
/// gone, which is an answer too.
const ANSWERS_LIMIT: Duration = Duration::from_secs(1);

/// Serves an operator's connection until either side ends it. When the coordinator stops, no request is
/// taken any more; what is being answered is answered to its end, if only by saying that.
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
    // Who does not take the answer has had the time.
    let _ = tokio::time::timeout(ANSWERS_LIMIT, answered).await;
    connection.close(CloseCode::ShuttingDown);
}

/// One request.
struct Stream {
    sender: Sender,
    handle: Handle,
    operator: Operator,
    /// The connection is in use as long as this request.
    _busy: Busy,
}

/// What a request's `follow` means.
fn interest(follow: bool) -> Interest {
    if follow {
        Interest::GoesOn
    } else {
        Interest::Once
    }
}

/// Why a request ends before everything is said.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// It is answered with this.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The operator has gone.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Stream {
    /// Reads the request and answers it to its end.
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
                // Jobs go on without their watcher.
                tracing::debug!(operator = %self.operator.name, %error, "an operator's stream ended");
                return;
            }
        };
        if self.reply(&last).await.is_ok() {
            self.sender.finish();
            // A connection that is closed takes along what has not arrived.
            let _ = tokio::time::timeout(READ_LIMIT, self.sender.drained()).await;
        }
    }

    /// The fault of a coordinator that stops, with the reason where its store failed.
    fn explained(&self, mut fault: Fault) -> Fault {
        if fault.retry == Retry::NewConnection
            && let Some(why) = self.handle.failure.get()
        {
            fault.message = format!("{}: {why}", fault.message);
        }
        fault
    }

    /// Sends a reply, to somebody who reads what he asked for.
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
            ApiRequest::Watch => self.watch_all().await,
            ApiRequest::Schema { node, filter } => self.schema(&node, &filter).await,
        }
    }

    /// What is asked once, and the jobs that it began.
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
            // No answer to a query or an order.
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

    /// Page by page, the next one asked for when the operator has the last: a schema of any size
    /// passes through here without being held.
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
