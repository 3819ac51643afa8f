//! Parts of a stored snapshot, as they stand in its archive.

use steep_archive::StoredReader;
use steep_protocol::Fault;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::quic::{Sender, StreamError};

use super::super::{span, stream};
use super::{Server, Wanted};
use crate::chunk::Sent;
use crate::snapshot::stored::StoredFrames;

impl Server {
    /// Sends a stored part after `reply`, as it stands in its archive: neither the format nor the compression
    /// that the target asks for changes it. Returns what was sent, or the fault that the peer got.
    pub(super) async fn send_stored(
        &self,
        opened: Result<StoredFrames, Fault>,
        wanted: Wanted,
        reply: &PeerReply,
        sender: &mut Sender,
    ) -> Result<Result<Sent, Fault>, StreamError> {
        let part = wanted.part.part;
        let mut span = span::serve(&self.node, wanted.job, wanted.epoch, part);
        let _share = self.budget.room_for(StoredReader::MEMORY).await;
        let mut frames = match opened {
            Ok(frames) => frames,
            Err(fault) => {
                span::failed(&mut span, &fault);
                sender.send(&PeerReply::Fault(fault.clone())).await?;
                return Ok(Err(fault));
            }
        };
        sender.send(reply).await?;
        let sent = stream::send_frames(&mut frames, sender, &self.telemetry.sent).await?;
        span::served(&mut span, &sent);
        Ok(sent)
    }
}
