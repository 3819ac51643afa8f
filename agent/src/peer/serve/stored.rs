//! Parts of a stored snapshot, as they stand in its archive.

use steep_archive::StoredReader;
use steep_daemon::traces::Span;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::quic::{Sender, StreamError};
use steep_protocol::{Fault, PartNo};

use super::super::{span, stream};
use super::Server;
use crate::budget::Share;
use crate::snapshot::stored::{StoredFrames, StoredSnapshot};

impl Server {
    /// Sends a stored part as it stands in its archive: neither the format nor the compression that the
    /// target asks for changes it.
    pub(super) async fn send_stored(
        &self,
        stored: &StoredSnapshot,
        part: PartNo,
        mut span: Span,
        sender: &mut Sender,
    ) -> Result<(), StreamError> {
        let (mut frames, _share) = match self.stored_part(stored, part).await {
            Ok(opened) => opened,
            Err(fault) => {
                span::failed(&mut span, &fault);
                return sender.send(&PeerReply::Fault(fault)).await;
            }
        };
        sender.send(&PeerReply::FramesFollow).await?;
        let sent = stream::send_frames(&mut frames, sender, &self.telemetry.sent).await?;
        if let Ok(sent) = &sent {
            stored.count(part, sent.rows, sent.bytes);
        }
        span::served(&mut span, &sent);
        Ok(())
    }

    /// A stored part, and its share of the memory.
    async fn stored_part(
        &self,
        stored: &StoredSnapshot,
        part: PartNo,
    ) -> Result<(StoredFrames, Share), Fault> {
        let share = self.budget.room_for(StoredReader::MEMORY).await;
        Ok((stored.part(part, &self.node).await?, share))
    }
}
