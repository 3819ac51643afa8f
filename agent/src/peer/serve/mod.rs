//! The source's end: answers the targets that the coordinator named, from snapshots held open. [`shared`]
//! answers those that share a snapshot, also as one of them.

mod epochs;
mod part;
mod plan;
mod shared;
mod stored;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use steep_daemon::{Throttle, say_panic};
use steep_protocol::close::CloseCode;
use steep_protocol::limits::PEER_REQUEST_MAX;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::Compression;
use steep_protocol::message::peer::{PartAs, PeerReply, PeerRequest};
use steep_protocol::quic::{
    Accepted, Arrival, Connection, ConnectionLimits, Endpoint, Listener, Role, Sender, StreamError,
};
use steep_protocol::{Epoch, Fault, FaultKind, JobId, NodeId, Retry};
use tokio::runtime::Handle;
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::plan::{send_plan, send_text};
use self::shared::Claim;
use crate::budget::Budget;
use crate::kept;
use crate::pg::{Conninfo, catalog};
use crate::replication::sequence_use;
use crate::replication::sequences::sequences;
use crate::shutdown::Shutdown;
use crate::snapshot::stored::Holder;
use crate::snapshot::{SourceJob, SourceJobs};
use crate::task::{CopyTerms, Patience, Progress, Task};
use crate::telemetry::Telemetry;

/// Concurrent streams per peer; more wait in QUIC's own limit.
const STREAMS_AT_ONCE: usize = 128;

/// Some jobs with every node of a large cluster. Each connection may make us buffer half a megabyte of
/// requests.
const CONNECTIONS: ConnectionLimits = ConnectionLimits {
    total: 512,
    per_identity: 16,
};

/// How long a peer that opened a stream may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How long a refused peer may take to read the reason.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

/// An unused connection is closed after this; the peer can dial again.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) node: NodeId,
    pub(crate) conninfo: Arc<Conninfo>,
    pub(crate) replication_conninfo: Arc<Conninfo>,
    pub(crate) jobs: Arc<SourceJobs>,
    pub(crate) budget: Budget,
    pub(crate) kept: Arc<kept::Store>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) shutdown: Shutdown,
    pub(crate) throttle: Arc<Throttle>,
}

/// A part that is to be read for a job.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    job: JobId,
    epoch: Epoch,
    part: PartAs,
    compression: Compression,
}

impl Server {
    /// Accepts peers until the agent halts. During a shutdown requests are still answered, but no new read
    /// under a snapshot starts.
    pub(crate) async fn run(self, endpoint: Arc<Endpoint>) {
        let mut peers = JoinSet::new();
        let mut listener = Listener::new(endpoint, CONNECTIONS);
        loop {
            tokio::select! {
                () = self.shutdown.halt.cancelled() => break,
                arrival = listener.next() => match arrival {
                    None => break,
                    Some(Arrival::Accepted(accepted)) => {
                        let server = self.clone();
                        peers.spawn(async move { server.attend(accepted).await });
                    }
                    Some(Arrival::Failed { remote, error }) => {
                        if let Some(left_out) = self.throttle.pass("handshake") {
                            warn!(%remote, %error, left_out, "peer turned away");
                        }
                    }
                    Some(Arrival::Refused { remote, role, name }) => {
                        if let Some(left_out) = self.throttle.pass("connections") {
                            warn!(%remote, %role, peer = %name, left_out, "peer refused: it has too many connections");
                        }
                    }
                },
                Some(ended) = peers.join_next() => say_panic(ended),
            }
        }
        peers.shutdown().await;
    }

    async fn attend(&self, accepted: Accepted) {
        let Accepted { connection, place } = accepted;
        let peer = connection.peer().clone();
        if peer.role != Role::Agent {
            if let Some(left_out) = self.throttle.pass("role") {
                warn!(peer = %peer.name, role = %peer.role, left_out, "peer refused: only agents fetch rows");
            }
            connection.close(CloseCode::Forbidden);
            return;
        }
        debug!(peer = %peer.name, "peer connected");
        let _watched = self.telemetry.links.watch(&connection);
        let mut streams = JoinSet::new();
        let cancel = self.shutdown.cut.child_token();
        loop {
            tokio::select! {
                () = self.shutdown.halt.cancelled() => {
                    connection.close(CloseCode::ShuttingDown);
                    break;
                }
                accepted = connection.accept(), if streams.len() < STREAMS_AT_ONCE => {
                    let Ok((sender, mut receiver)) = accepted else { break };
                    let server = self.clone();
                    let connection = connection.clone();
                    let cancel = cancel.child_token();
                    let busy = place.busy();
                    streams.spawn(async move {
                        let _busy = busy;
                        let asked = receiver.recv_short::<PeerRequest>(PEER_REQUEST_MAX);
                        let Ok(asked) = tokio::time::timeout(REQUEST_LIMIT, asked).await else {
                            debug!("a peer opened a stream and sent no request in time");
                            receiver.stop(CloseCode::Malformed);
                            return;
                        };
                        match asked {
                            Ok(Some(PeerRequest::Verify { job })) => {
                                let (peer, stream) = (&connection.peer().name, (sender, receiver));
                                server.compare_rows(peer, job, stream, cancel).await;
                            }
                            Ok(Some(request)) => {
                                let _answering = server.shutdown.answers.token();
                                server.attend_to(connection, request, sender, cancel).await;
                            }
                            Ok(None) => {}
                            Err(error) => {
                                debug!(%error, "unreadable request");
                                receiver.stop(CloseCode::Malformed);
                            }
                        }
                    });
                }
                Some(ended) = streams.join_next() => say_panic(ended),
                () = tokio::time::sleep(IDLE_LIMIT), if streams.is_empty() => {
                    connection.close(CloseCode::Done);
                    break;
                }
            }
        }
        // Nobody waits for the parts any more: this ends their COPYs.
        cancel.cancel();
        streams.shutdown().await;
        debug!(peer = %peer.name, "peer gone");
    }

    /// A part is read, packed and digested on a thread of its own, so that the event loop is free for QUIC.
    /// The request counts as answered when the peer has received everything, since closing the connection
    /// loses what is in flight.
    async fn attend_to(
        self,
        connection: Connection,
        request: PeerRequest,
        sender: Sender,
        cancel: CancellationToken,
    ) {
        // A request may wait for its turn here, where it takes no thread.
        let claim = self.claim(&connection.peer().name, &request).await;
        let is_part = match &request {
            PeerRequest::FetchPart { .. } | PeerRequest::FetchKept(_) => true,
            _ => claim.as_ref().is_some_and(Claim::reads),
        };
        let answer = async move {
            self.answer(&connection, (request, claim), sender, cancel)
                .await
        };
        let answered = if is_part {
            let runtime = Handle::current();
            task::spawn_blocking(move || runtime.block_on(answer)).await
        } else {
            Ok(answer.await)
        };
        match answered {
            Ok(Some(mut sender)) => {
                // An error means that the peer has gone or given up.
                let _ = sender.drained().await;
            }
            Ok(None) => {}
            Err(error) => say_panic(Err(error)),
        }
    }

    /// Returns the stream where an answer is still being delivered.
    async fn answer(
        &self,
        connection: &Connection,
        (request, claim): (PeerRequest, Option<Claim>),
        mut sender: Sender,
        cancel: CancellationToken,
    ) -> Option<Sender> {
        let job = request.job();
        let peer = &connection.peer().name;
        // Who was named for a comparison of rows may ask for nothing else.
        let entry = self
            .jobs
            .get(job)
            .filter(|j| j.target == *peer && j.compares.is_none());
        let outcome = match (entry, request) {
            (_, PeerRequest::FetchKept(wanted)) if self.kept.admits(wanted.snapshot, peer) => {
                self.send_kept(wanted, &mut sender).await
            }
            (Some(entry), request) => {
                let request = (request, claim);
                Box::pin(self.fulfil(&entry, connection, request, &mut sender, cancel)).await
            }
            (None, _) => {
                if let Some(left_out) = self.throttle.pass("job") {
                    warn!(job_id = %job, %peer, left_out, "request refused: the coordinator named no such job for it");
                }
                let fault = Fault::new(
                    FaultKind::Unauthorized,
                    format!("{} holds nothing for {peer} under job {job}", self.node),
                )
                .on(&self.node)
                .hint("its agent may have been restarted, which ends its snapshots")
                // The coordinator may be about to tell a restarted process who may ask.
                .retry(Retry::Backoff);
                return refuse(sender, fault).await;
            }
        };
        sender.finish();
        if let Err(error) = outcome {
            debug!(job_id = %job, %peer, %error, "answer not delivered");
            return None;
        }
        Some(sender)
    }

    async fn fulfil(
        &self,
        entry: &SourceJob,
        connection: &Connection,
        (request, claim): (PeerRequest, Option<Claim>),
        sender: &mut Sender,
        cancel: CancellationToken,
    ) -> Result<(), StreamError> {
        if let Some(claim) = claim {
            return self.send_claimed(claim, connection, sender, cancel).await;
        }
        let reply = match request {
            PeerRequest::Ping { .. } => Ok(PeerReply::Pong {
                unix_micros: Timestamp::now().as_microsecond(),
            }),
            PeerRequest::FetchConninfo { .. } => {
                Ok(PeerReply::Conninfo(self.replication_conninfo.libpq()))
            }
            PeerRequest::FetchSequences { job } => {
                sequences(&self.task(job, cancel), &entry.filter)
                    .await
                    .map(PeerReply::Sequences)
            }
            PeerRequest::FetchSequencesUsed { job } => {
                let task = self.task(job, cancel);
                let used = sequence_use::used(&task, &entry.filter, entry.replication).await;
                used.map(PeerReply::SequencesUsed)
            }
            PeerRequest::FetchStoredSequences { .. } => match self.opened(entry) {
                Ok(Holder::Stored(stored)) => {
                    let sequences = stored.sequences(&self.node).await;
                    sequences.map(PeerReply::Sequences)
                }
                Ok(Holder::Live(_) | Holder::Shared(_)) => {
                    let text = "the job's snapshot is not a stored one";
                    Err(Fault::new(FaultKind::BadRequest, text).on(&self.node))
                }
                Err(fault) => Err(fault),
            },
            PeerRequest::FetchSettings { .. } => catalog::database_settings(&self.conninfo)
                .await
                .map(PeerReply::Settings)
                .map_err(|error| error.to_fault(&self.node)),
            PeerRequest::DescribeSchema { .. } => return self.describe(entry, sender).await,
            PeerRequest::FetchPlan { .. } => match self.opened(entry) {
                Ok(open) => return send_plan(&open, sender).await,
                Err(fault) => Err(fault),
            },
            PeerRequest::FetchSchema { section, .. } => match self.opened(entry) {
                Ok(holder) => match holder.or_sealed() {
                    Holder::Live(open) | Holder::Shared(open) => {
                        match open.schema(section, cancel).await {
                            Ok(dump) => return send_text(dump, connection, sender).await,
                            Err(fault) => Err(fault),
                        }
                    }
                    Holder::Stored(stored) => match stored.schema(section, &self.node).await {
                        Ok(text) => return send_text(text, connection, sender).await,
                        Err(fault) => Err(fault),
                    },
                },
                Err(fault) => Err(fault),
            },
            PeerRequest::FetchPart {
                job,
                epoch,
                part,
                format,
                compression,
            } => {
                let wanted = Wanted {
                    job,
                    epoch,
                    part: PartAs { part, format },
                    compression,
                };
                match self.opened(entry) {
                    Ok(holder) => {
                        let reply = (connection, PeerReply::FramesFollow);
                        let sending = self.send_part(holder, wanted, reply, sender, cancel);
                        return sending.await.map(drop);
                    }
                    Err(fault) => Err(fault),
                }
            }
            PeerRequest::PartsReceived { kept, dropped, .. } => {
                self.note_received(entry, &kept, &dropped)
            }
            PeerRequest::MoveTables { job, from, into } => {
                self.move_tables(entry, job, (from, into), cancel).await
            }
            PeerRequest::DropEpoch { job, epoch } => {
                self.drop_epoch(entry, job, epoch, cancel).await
            }
            PeerRequest::PassFence { job, epoch } => {
                self.pass_fence(entry, (job, epoch), cancel).await
            }
            PeerRequest::LeaveTables { job } => self.leave_tables(entry, job, cancel).await,
            // A comparison is a conversation, begun elsewhere.
            PeerRequest::NextPart(_) | PeerRequest::FetchKept(_) | PeerRequest::Verify { .. } => {
                let text = "the coordinator has named no shared snapshot for this request";
                Err(Fault::new(FaultKind::Unauthorized, text).on(&self.node))
            }
        };
        sender.send(&reply.unwrap_or_else(PeerReply::Fault)).await
    }

    fn opened(&self, entry: &SourceJob) -> Result<Holder, Fault> {
        if self.shutdown.drain.is_cancelled() {
            let stored = entry.open.as_ref().is_some_and(Holder::is_stored);
            let (text, hint) = match stored {
                true => (
                    "the agent is being stopped; what it has stored is there again when it is back",
                    "start the agent again: the job goes on by itself",
                ),
                false => (
                    "the agent is being stopped, and the job's snapshot ends with it",
                    "run init again once the agent is up",
                ),
            };
            let fault = Fault::new(FaultKind::Cancelled, text);
            return Err(fault.on(&self.node).hint(hint));
        }
        entry.open.clone().ok_or_else(|| {
            Fault::new(FaultKind::Failed, "the job's snapshot is not open")
                .on(&self.node)
                .retry(Retry::Backoff)
                .hint("run init again: rows can only be read under the snapshot of its slot")
        })
    }

    fn task(&self, job: JobId, cancel: CancellationToken) -> Task {
        Task {
            node: self.node.clone(),
            job,
            replication: Replication::of(job),
            conninfo: Arc::clone(&self.conninfo),
            cancel,
            drain: self.shutdown.drain.clone(),
            progress: Progress::nowhere(),
            patience: Patience::default(),
            index_memory: None,
            terms: CopyTerms::fixed(),
        }
    }
}

/// Sends the reason, for a limited time, to a peer that may not read it.
async fn refuse(mut sender: Sender, fault: Fault) -> Option<Sender> {
    let told = async {
        if sender.send(&PeerReply::Fault(fault)).await.is_ok() {
            sender.finish();
            // An error means that the peer has gone.
            let _ = sender.drained().await;
        }
    };
    if tokio::time::timeout(REFUSAL_LIMIT, told).await.is_err() {
        sender.reset(CloseCode::Forbidden);
    }
    None
}
