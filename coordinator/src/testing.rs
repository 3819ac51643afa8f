//! What tests of several modules need.

use steep_protocol::NodeId;
use steep_protocol::message::job::{Confirmation, JobSpec};

/// A node's name.
pub(crate) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// An ordinary job.
pub(crate) fn spec(source: &str, target: &str) -> JobSpec {
    JobSpec {
        confirmation: Confirmation::Given,
        ..JobSpec::new(node(source), node(target))
    }
}
