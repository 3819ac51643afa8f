//! The beginning of a session: the agent registers, and the coordinator welcomes or rejects it.

use std::time::{Duration, Instant};

use steep_protocol::message::agent::{AgentMessage, CoordinatorMessage};
use steep_protocol::quic::{Connection, Receiver, Sender};
use steep_protocol::{Fault, NodeState};

use super::control::{send, unwelcome};

/// How long a process that was never welcomed keeps trying. Its predecessor may have died on another
/// machine, which the coordinator notices within 8 s.
const REJECTED_LIMIT: Duration = Duration::from_secs(20);

/// Registers and waits for the welcome; returns the session's stream and the node's state.
pub(super) async fn greet(
    connection: &Connection,
    registration: &AgentMessage,
) -> Result<(Sender, Receiver, NodeState), Unwelcome> {
    let opened = connection.open().await;
    let (mut sender, mut receiver) = opened.map_err(|error| Unwelcome::Lost(error.to_fault()))?;
    let sent = send(&mut sender, registration).await;
    sent.map_err(Unwelcome::Lost)?;
    match receiver.recv::<CoordinatorMessage>().await {
        Ok(Some(CoordinatorMessage::Welcome { state })) => Ok((sender, receiver, state)),
        Ok(Some(CoordinatorMessage::Rejected(fault))) => Err(Unwelcome::Rejected(fault)),
        Ok(_) => Err(Unwelcome::Lost(unwelcome())),
        Err(error) => Err(Unwelcome::Lost(error.to_fault())),
    }
}

/// Why there is no session.
pub(super) enum Unwelcome {
    Lost(Fault),
    /// Another process is the node's agent.
    Rejected(Fault),
}

/// How the coordinator has received this process so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    New,
    /// Once welcomed. If another process took its place during a network failure, parts may still be
    /// running here, so it keeps trying.
    Welcomed,
    /// Rejected each time, since then.
    RejectedSince(Instant),
}

impl Standing {
    pub(super) fn rejected(self, now: Instant) -> Self {
        match self {
            Self::New => Self::RejectedSince(now),
            Self::Welcomed | Self::RejectedSince(_) => self,
        }
    }

    pub(super) fn is_hopeless(self, now: Instant) -> bool {
        match self {
            Self::RejectedSince(since) => now.duration_since(since) >= REJECTED_LIMIT,
            Self::New | Self::Welcomed => false,
        }
    }
}
