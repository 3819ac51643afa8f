//! The conversation with the source's agent about its rows, at the target.

use steep_protocol::Fault;
use steep_protocol::message::peer::{PeerReply, PeerRequest};
use steep_protocol::message::verify::{VerifyAsk, VerifyReply};
use steep_protocol::quic::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use super::connection::{SourceAgent, receive};
use crate::pg::PgError;
use crate::verify::{Ask, Dial};

/// The other node's PostgreSQL, through its agent.
#[derive(Debug)]
pub(crate) struct Remote {
    /// Its agent.
    pub(crate) agent: SourceAgent,
    /// Ends whatever is waited for.
    pub(crate) cancel: CancellationToken,
}

/// A stream to that agent. Dropped, it ends the session there.
#[derive(Debug)]
pub(crate) struct Conversation {
    agent: SourceAgent,
    sender: Sender,
    receiver: Receiver,
    cancel: CancellationToken,
}

impl Dial for Remote {
    type Side = Conversation;
    async fn dial(&self) -> Result<Conversation, Fault> {
        let (mut sender, mut receiver) = self.agent.stream().await?;
        let request = PeerRequest::Verify {
            job: self.agent.job(),
        };
        sender
            .send(&request)
            .await
            .map_err(|error| error.to_fault())?;
        match receive::<PeerReply>(&mut receiver).await? {
            PeerReply::Noted => Ok(Conversation {
                agent: self.agent.clone(),
                sender,
                receiver,
                cancel: self.cancel.clone(),
            }),
            PeerReply::Fault(fault) => Err(fault),
            _ => Err(self.agent.unexpected()),
        }
    }
}

impl Ask for Conversation {
    async fn ask(&mut self, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        let talk = async {
            self.sender
                .send(&ask)
                .await
                .map_err(|error| error.to_fault())?;
            receive::<VerifyReply>(&mut self.receiver).await
        };
        let reply = tokio::select! {
            reply = talk => reply,
            () = self.cancel.cancelled() => Err(PgError::Cancelled.to_fault(self.agent.source())),
        };
        match reply {
            Ok(VerifyReply::Fault(fault)) => Err(fault),
            Ok(reply) => Ok(reply),
            // What goes wrong on the way says nothing about which agent is gone.
            Err(fault) if fault.node.is_none() => {
                let node = self.agent.source();
                let hint = "check that its agent runs, see steep-repl nodes; then run steep-repl verify again";
                let message = format!(
                    "the connection to the agent of {node} broke: {}",
                    fault.message
                );
                Err(Fault { message, ..fault }.on(node).hint(hint))
            }
            Err(fault) => Err(fault),
        }
    }
}
