//! Where a target's rows come from: the source's agent, or a stored snapshot that it reads itself.

use std::sync::Arc;

use steep_archive::StoredReader;
use steep_protocol::message::job::Compression;
use steep_protocol::message::peer::CopyFormat;
use steep_protocol::{Epoch, Fault, NodeId, PartNo};

use super::connection::{Plan, SourceAgent};
use super::stream::Incoming;
use crate::chunk::context_bytes;
use crate::snapshot::stored::StoredSnapshot;

/// Who has the plan and its parts.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    /// The source's agent.
    Source(SourceAgent),
    /// This one.
    Carried(Arc<StoredSnapshot>),
}

impl Rows {
    pub(super) async fn plan(&self) -> Result<Plan, Fault> {
        match self {
            Self::Source(source) => source.plan().await,
            Self::Carried(stored) => Ok(Plan {
                lsn: stored.lsn(),
                encoding: stored.encoding().to_owned(),
                tables: stored.tables().to_vec(),
            }),
        }
    }

    /// A part. A stored one stands as it was packed.
    pub(super) async fn part(
        &self,
        (epoch, part): (Epoch, PartNo),
        format: CopyFormat,
        compression: Compression,
        node: &NodeId,
    ) -> Result<Incoming, Fault> {
        match self {
            Self::Source(source) => source.part(epoch, part, format, compression).await,
            Self::Carried(stored) => Ok(Incoming::stored(stored.part(part, node).await?)),
        }
    }

    /// What a part on its way takes of the memory, beside its chunks.
    pub(super) fn memory(&self, compression: Compression) -> usize {
        match self {
            Self::Source(_) => context_bytes(compression),
            Self::Carried(_) => StoredReader::MEMORY,
        }
    }
}
