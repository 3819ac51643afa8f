//! Sends parts: read under their snapshot, or as they are stored.

use std::sync::Arc;

use steep_protocol::Fault;
use steep_protocol::close::CloseCode;
use steep_protocol::message::peer::{PartAs, PeerReply};
use steep_protocol::quic::{Connection, Sender, StreamError};
use tokio_util::sync::CancellationToken;

use super::{Server, Wanted};
use crate::chunk::{Packer, Sent};
use crate::part::copy_out::read_part;
use crate::peer::{span, stream};
use crate::snapshot::OpenSnapshot;
use crate::snapshot::stored::{Holder, StoredFrames};
use crate::stored::spool::Spooled;

impl Server {
    /// Sends a part after `reply`. Returns what was sent, or the fault that the peer got.
    pub(super) async fn send_part(
        &self,
        holder: Holder,
        wanted: Wanted,
        (connection, reply): (&Connection, PeerReply),
        sender: &mut Sender,
        cancel: CancellationToken,
    ) -> Result<Result<Sent, Fault>, StreamError> {
        match holder {
            Holder::Live(open) if open.epoch() != wanted.epoch => self.refuse_old(sender).await,
            Holder::Live(open) => {
                let reply = (connection, reply);
                self.send_read(&open, wanted, reply, sender, cancel).await
            }
            Holder::Shared(open) => {
                let part = wanted.part.part;
                let found = tokio::select! {
                    found = open.spool().find(part) => found,
                    // The peer has gone, or the agent is being stopped.
                    () = cancel.cancelled() => return Err(StreamError::Finished),
                };
                let opened = match found {
                    Spooled::No => {
                        let reply = (connection, reply);
                        return Box::pin(self.send_read(&open, wanted, reply, sender, cancel))
                            .await;
                    }
                    Spooled::Written(reader) => Ok(StoredFrames::new(*reader, &self.node)),
                    Spooled::Sealed(stored) => stored.part(part, &self.node).await,
                };
                self.send_stored(opened, wanted, &reply, sender).await
            }
            Holder::Stored(stored) => {
                let opened = stored.part(wanted.part.part, &self.node).await;
                self.send_stored(opened, wanted, &reply, sender).await
            }
        }
    }

    /// Reads a part under its snapshot, and sends it.
    async fn send_read(
        &self,
        open: &Arc<OpenSnapshot>,
        wanted: Wanted,
        (connection, reply): (&Connection, PeerReply),
        sender: &mut Sender,
        cancel: CancellationToken,
    ) -> Result<Result<Sent, Fault>, StreamError> {
        let PartAs { part, format } = wanted.part;
        let mut span = span::serve(&self.node, wanted.job, wanted.epoch, part);
        let packer = Packer::new(wanted.compression, connection.rtt());
        let begun = async {
            if let Ok((table, _)) = open.locate(part) {
                span.text("table", &table.name);
            }
            let share = self.budget.part(wanted.compression).await;
            Ok((read_part(open, part, format, cancel).await?, share))
        };
        match begun.await {
            Ok((mut rows, _share)) => {
                sender.send(&reply).await?;
                let flow = &self.telemetry.sent;
                let sent = tokio::select! {
                    sent = stream::send(&mut rows, packer, sender, flow) => sent?,
                    // A slow target would read for long before it reached a fault frame.
                    () = self.shutdown.cut.cancelled() => {
                        sender.reset(CloseCode::ShuttingDown);
                        return Err(StreamError::Finished);
                    }
                };
                span::served(&mut span, &sent);
                Ok(sent)
            }
            Err(fault) => {
                span::failed(&mut span, &fault);
                sender.send(&PeerReply::Fault(fault.clone())).await?;
                Ok(Err(fault))
            }
        }
    }
}
