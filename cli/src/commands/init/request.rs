//! The jobs to start, and their preflight.

use steep_protocol::message::api::InitRequest;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::SchemaCheck;
use steep_protocol::message::job::{Confirmation, JobSpec, SchemaMode};
use steep_protocol::{FaultKind, NodeId};

use crate::client::Client;
use crate::commands::doctor;
use crate::failure::Failure;
use crate::signals::Signals;

/// Whether the user must confirm differing schemas.
pub(super) fn asks(request: &InitRequest) -> bool {
    let compared = match request {
        InitRequest::Copy(_) | InitRequest::Apply(_) => true,
        // The schema exists already.
        InitRequest::Resume(_) => false,
        InitRequest::Complete(spec) => spec.schema == SchemaCheck::Compared,
    };
    let asks = |spec: &JobSpec| {
        spec.schema_mode == SchemaMode::Manual && spec.confirmation == Confirmation::Needed
    };
    compared && request.specs().iter().any(asks)
}

/// Marks differing schemas as confirmed.
pub(super) fn confirm(request: &mut InitRequest) {
    for spec in request.specs_mut() {
        spec.confirmation = Confirmation::Given;
    }
}

/// Runs the preflight alone. Returns findings by target.
pub(super) async fn look(
    request: &InitRequest,
    client: &Client,
    signals: &mut Signals,
) -> Result<Vec<(NodeId, Vec<Finding>)>, Failure> {
    tokio::select! {
        found = doctor::ask(client, request) => found,
        _ = signals.next() => {
            let text = "interrupted before anything was changed";
            Err(Failure::new(FaultKind::Cancelled, text))
        }
    }
}
