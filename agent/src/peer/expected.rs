//! What another target has to send of a part: what the source sent, and told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use steep_protocol::message::peer::PartSum;
use steep_protocol::{ByteCount, Fault, FaultKind, NodeId, Retry};

/// A part's digest, and whoever has to send that part.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) sum: PartSum,
    pub(super) peer: NodeId,
    /// Whether that peer has sent anything else.
    pub(super) distrusted: Arc<AtomicBool>,
}

impl Expected {
    /// Fails once there are more bytes than the part has.
    pub(super) fn admit(&self, bytes: ByteCount) -> Result<(), Fault> {
        match bytes <= self.sum.bytes {
            true => Ok(()),
            false => Err(self.differs(&format!("more than {} bytes", self.sum.bytes.0))),
        }
    }

    /// Fails where something else has arrived.
    pub(super) fn compare(&self, arrived: PartSum) -> Result<(), Fault> {
        if arrived == self.sum {
            return Ok(());
        }
        let (rows, bytes) = (arrived.rows, arrived.bytes);
        Err(self.differs(&format!(
            "{} rows in {} bytes, digest {}",
            rows.0, bytes.0, arrived.heads
        )))
    }

    fn differs(&self, arrived: &str) -> Fault {
        self.distrusted.store(true, Ordering::Relaxed);
        let PartSum { heads, rows, bytes } = self.sum;
        let text = format!(
            "the agent of {} does not pass on what the source has sent: {arrived} arrived; the source sent {} rows in {} bytes, digest {heads}",
            self.peer, rows.0, bytes.0
        );
        Fault::new(FaultKind::Failed, text)
            .hint("nothing of it stays, and that agent is asked for nothing more in this copy: look at its host")
            .retry(Retry::NewConnection)
    }
}
