//! Helpers for the tests of several modules.

use steep_protocol::NodeId;
use steep_protocol::message::job::{Confirmation, JobSpec};

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// A confirmed job with defaults.
pub(crate) fn spec(source: &str, target: &str) -> JobSpec {
    JobSpec {
        confirmation: Confirmation::Given,
        ..JobSpec::new(node(source), node(target))
    }
}
