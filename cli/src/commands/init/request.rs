//! The jobs to start, and their preflight.

use steep_protocol::message::api::ApiRequest;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::{CompleteSpec, SchemaCheck};
use steep_protocol::message::job::{Confirmation, JobSpec, SchemaMode};
use steep_protocol::{FaultKind, NodeId};

use crate::client::Client;
use crate::commands::doctor;
use crate::failure::Failure;
use crate::signals::Signals;

/// The jobs to start.
#[derive(Debug, Clone)]
pub(super) enum InitRequest {
    /// Copy rows to each target.
    Copies(Vec<JobSpec>),
    /// Resume the failed job of each target.
    Resumed(Vec<JobSpec>),
    /// Start replication to a restored backup.
    Backup(Box<CompleteSpec>),
}

impl InitRequest {
    pub(super) fn specs(&self) -> &[JobSpec] {
        match self {
            Self::Copies(specs) | Self::Resumed(specs) => specs,
            Self::Backup(spec) => std::slice::from_ref(&spec.job),
        }
    }

    pub(super) fn targets(&self) -> Vec<NodeId> {
        self.specs().iter().map(|s| s.target.clone()).collect()
    }

    fn preflight(&self) -> ApiRequest {
        match self.clone() {
            Self::Copies(specs) | Self::Resumed(specs) => ApiRequest::Doctor { specs },
            Self::Backup(spec) => ApiRequest::DoctorComplete(spec),
        }
    }

    /// The request that starts the jobs.
    pub(super) fn begin(self) -> ApiRequest {
        match self {
            Self::Copies(specs) => ApiRequest::Init { specs },
            Self::Resumed(specs) => ApiRequest::Resume { specs },
            Self::Backup(spec) => ApiRequest::Complete(spec),
        }
    }

    /// Whether the user must confirm differing schemas.
    pub(super) fn asks(&self) -> bool {
        let compared = match self {
            Self::Copies(_) => true,
            // The schema exists already.
            Self::Resumed(_) => false,
            Self::Backup(spec) => spec.schema == SchemaCheck::Compared,
        };
        let asks = |spec: &JobSpec| {
            spec.schema_mode == SchemaMode::Manual && spec.confirmation == Confirmation::Needed
        };
        compared && self.specs().iter().any(asks)
    }

    /// Marks differing schemas as confirmed.
    pub(super) fn confirm(&mut self) {
        match self {
            Self::Copies(specs) | Self::Resumed(specs) => {
                for spec in specs {
                    spec.confirmation = Confirmation::Given;
                }
            }
            Self::Backup(spec) => spec.job.confirmation = Confirmation::Given,
        }
    }

    /// Runs the preflight alone. Returns findings by target.
    pub(super) async fn look(
        &self,
        client: &Client,
        signals: &mut Signals,
    ) -> Result<Vec<(NodeId, Vec<Finding>)>, Failure> {
        let (request, targets) = (self.preflight(), self.targets());
        tokio::select! {
            found = doctor::ask(client, &request, &targets) => found,
            _ = signals.next() => {
                let text = "interrupted before anything was changed";
                Err(Failure::new(FaultKind::Cancelled, text))
            }
        }
    }
}
