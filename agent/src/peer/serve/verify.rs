//! The conversation with a target's agent that compares rows: one session on the server for each stream.

use steep_protocol::limits::CONTROL_FRAME_MAX;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::message::verify::{RowAccess, VerifyAsk, VerifyReply};
use steep_protocol::quic::{Receiver, Sender, StreamError};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Server, refuse};
use crate::verify::{Answerer, Ask};

/// The longest question of an admitted peer: keys of as many rows as fit an answer.
const ASK_MAX: usize = CONTROL_FRAME_MAX;

impl Server {
    /// Answers until the peer ends the stream.
    pub(super) async fn compare_rows(
        &self,
        peer: &NodeId,
        job: JobId,
        (mut sender, mut receiver): (Sender, Receiver),
        cancel: CancellationToken,
    ) {
        let access = match self.admitted_rows(peer, job) {
            Ok(access) => access,
            Err(fault) => {
                refuse(sender, fault).await;
                return;
            }
        };
        // Whoever ends the stream ends the statement too.
        let cancel = cancel.child_token();
        let _ended = cancel.clone().drop_guard();
        let task = self.task(job, cancel);
        let mut answerer = match Answerer::connect(&task, access).await {
            Ok(answerer) => answerer,
            Err(fault) => {
                refuse(sender, fault).await;
                return;
            }
        };
        let talk = talk(&mut answerer, &mut sender, &mut receiver);
        if let Err(error) = Box::pin(talk).await {
            debug!(job_id = %job, %peer, %error, "a comparison of rows broke off");
        }
        answerer.close().await;
    }

    /// Whether the coordinator has named the peer for a comparison or repair, and what it may see (G7).
    fn admitted_rows(&self, peer: &NodeId, job: JobId) -> Result<RowAccess, Fault> {
        let entry = self.jobs.get(job).filter(|entry| entry.target == *peer);
        entry.and_then(|entry| entry.compares).ok_or_else(|| {
            let text = format!(
                "{peer} may not compare rows with {} under job {job}",
                self.node
            );
            Fault::new(FaultKind::Unauthorized, text).on(&self.node).hint(
                "its agent may have been restarted, which ends a comparison: run the command again",
            )
        })
    }
}

async fn talk(
    answerer: &mut Answerer,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<(), StreamError> {
    sender.send(&PeerReply::Noted).await?;
    while let Some(ask) = receiver.recv_short::<VerifyAsk>(ASK_MAX).await? {
        let reply = answerer.ask(ask).await;
        let reply = reply.unwrap_or_else(VerifyReply::Fault);
        sender.send(&reply).await?;
    }
    Ok(())
}
