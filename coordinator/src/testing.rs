//! What tests of several modules need.

use steep_protocol::message::job::{
    Compression, Confirmation, ExistingRows, JobSpec, Method, SchemaMode, TableFilter,
};
use steep_protocol::{ByteCount, NodeId};

/// A node's name.
pub(crate) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// An ordinary job.
pub(crate) fn spec(source: &str, target: &str) -> JobSpec {
    JobSpec {
        source: node(source),
        target: node(target),
        method: Method::Snapshot,
        parallel: 4,
        schema_mode: SchemaMode::Strict,
        existing: ExistingRows::Refuse,
        confirmation: Confirmation::Given,
        compression: Compression::Auto,
        max_rate: None,
        filter: TableFilter::default(),
        large_table_threshold: ByteCount(10 << 30),
        timeout_seconds: 86_400,
    }
}
