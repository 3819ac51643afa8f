//! Targets that share a snapshot: as their source, which part each gets and from whom; as one of them, the
//! parts that are kept here.

use std::sync::Arc;

use steep_protocol::close::CloseCode;
use steep_protocol::limits::{ASKED_MAX, RECEIVED_MAX, WANTED_MAX};
use steep_protocol::message::peer::{FetchKept, NextPart, PartAs, PeerReply, PeerRequest};
use steep_protocol::quic::{Connection, Sender, StreamError};
use steep_protocol::{Fault, FaultKind, NodeId};
use tokio_util::sync::CancellationToken;

use super::super::{span, stream};
use super::{Server, Wanted};
use crate::kept::Reader;
use crate::snapshot::SourceJob;
use crate::snapshot::sharing::{Chosen, Sharing};
use crate::snapshot::stored::Holder;

/// What a target that shares a snapshot gets.
#[derive(Debug)]
pub(super) struct Claim {
    request: NextPart,
    chosen: Result<(Holder, Chosen), Fault>,
}

impl Claim {
    /// Whether a part is to be read for it.
    pub(super) fn reads(&self) -> bool {
        matches!(self.chosen, Ok((_, Chosen::Read(_))))
    }
}

impl Server {
    /// Chooses a part for a target that asks for the next one; waits for some seconds at most. `None` where
    /// that is not what it asks for, or it may not.
    pub(super) async fn claim(&self, peer: &NodeId, request: &PeerRequest) -> Option<Claim> {
        let PeerRequest::NextPart(request) = request else {
            return None;
        };
        let entry = self.jobs.get(request.job).filter(|j| j.target == *peer)?;
        Some(Claim {
            request: request.clone(),
            chosen: self.choose(&entry, request).await,
        })
    }

    async fn choose(
        &self,
        entry: &SourceJob,
        request: &NextPart,
    ) -> Result<(Holder, Chosen), Fault> {
        let (holder, sharing) = self.shared(entry)?;
        let (wanted, peers) = (&request.wanted, &request.peers);
        let fits = !wanted.is_empty() && wanted.len() <= WANTED_MAX && peers.len() <= ASKED_MAX;
        if !fits {
            return Err(self.unfit("a request for parts of a shared snapshot has no or too many"));
        }
        self.check(&holder, wanted)?;
        tokio::select! {
            chosen = sharing.next(&entry.target, request) => Ok((holder, chosen)),
            () = self.shutdown.drain.cancelled() => {
                self.opened(entry)?;
                Err(self.unfit("the agent is being stopped"))
            }
        }
    }

    pub(super) async fn send_claimed(
        &self,
        claim: Claim,
        connection: &Connection,
        sender: &mut Sender,
        cancel: CancellationToken,
    ) -> Result<(), StreamError> {
        let Claim { request, chosen } = claim;
        let reply = match chosen {
            Ok((holder, Chosen::Read(mut reading))) => {
                let wanted = Wanted {
                    job: request.job,
                    epoch: request.epoch,
                    part: reading.part(),
                    compression: request.compression,
                };
                let reply = (connection, PeerReply::Part(wanted.part.part));
                let sending = self.send_part(holder, wanted, reply, sender, cancel);
                if let Ok(sent) = sending.await? {
                    reading.sent(sent.sum());
                }
                return Ok(());
            }
            Ok((_, Chosen::Ask(part, peer, sent))) => PeerReply::AskPeer {
                part: part.part,
                peer,
                sent,
            },
            Ok((_, Chosen::Later)) => PeerReply::Later,
            Err(fault) => PeerReply::Fault(fault),
        };
        sender.send(&reply).await
    }

    /// Takes note of what a target did with parts.
    pub(super) fn note_received(
        &self,
        entry: &SourceJob,
        kept: &[PartAs],
        dropped: &[PartAs],
    ) -> Result<PeerReply, Fault> {
        let (holder, sharing) = self.shared(entry)?;
        if kept.len() + dropped.len() > RECEIVED_MAX {
            return Err(self.unfit("a target names too many parts at once"));
        }
        self.check(&holder, kept)?;
        self.check(&holder, dropped)?;
        sharing.received(&entry.target, kept, dropped);
        Ok(PeerReply::Noted)
    }

    /// Sends a part that was kept here for other targets.
    pub(super) async fn send_kept(
        &self,
        wanted: FetchKept,
        sender: &mut Sender,
    ) -> Result<(), StreamError> {
        let FetchKept { snapshot, lsn, .. } = wanted;
        let part = wanted.part.part;
        let mut span = span::serve(&self.node, wanted.job, wanted.epoch, part);
        let opened = match self.shutdown.drain.is_cancelled() {
            true => {
                let text = "the agent is being stopped";
                Err(Fault::new(FaultKind::Unreachable, text).on(&self.node))
            }
            false => self.kept.read(snapshot, lsn, wanted.part).ok_or_else(|| {
                let text = format!("part {part} is not kept here");
                Fault::new(FaultKind::Failed, text).on(&self.node)
            }),
        };
        let mut reader = match opened {
            Ok(reader) => reader,
            Err(fault) => {
                span::failed(&mut span, &fault);
                return sender.send(&PeerReply::Fault(fault)).await;
            }
        };
        let _share = self.budget.room_for(Reader::MEMORY).await;
        sender.send(&PeerReply::FramesFollow).await?;
        let sent = tokio::select! {
            sent = stream::send_frames(&mut reader, sender, &self.telemetry.sent) => sent?,
            () = self.shutdown.cut.cancelled() => {
                sender.reset(CloseCode::ShuttingDown);
                return Err(StreamError::Finished);
            }
        };
        span::served(&mut span, &sent);
        match sent {
            Ok(sent) => {
                self.kept.served.moved(sent.bytes, sent.wire);
                self.kept.served.completed(sent.rows);
            }
            Err(_) => self.kept.damaged(snapshot, wanted.part),
        }
        Ok(())
    }

    /// The snapshot that the job shares with others, or could, and the targets that share it.
    fn shared(&self, entry: &SourceJob) -> Result<(Holder, Arc<Sharing>), Fault> {
        let holder = self.opened(entry)?;
        let sharing = holder.sharing().cloned();
        let sharing =
            sharing.ok_or_else(|| self.unfit("the job shares no snapshot with others"))?;
        Ok((holder, sharing))
    }

    fn check(&self, holder: &Holder, parts: &[PartAs]) -> Result<(), Fault> {
        match parts.iter().all(|part| part.part.0 < holder.parts()) {
            true => Ok(()),
            false => Err(self.unfit("a part is asked for that the plan does not have")),
        }
    }

    fn unfit(&self, text: &str) -> Fault {
        Fault::new(FaultKind::BadRequest, text).on(&self.node)
    }
}
