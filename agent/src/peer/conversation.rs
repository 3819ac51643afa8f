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
        let begin = async {
            let (mut sender, mut receiver) = self.agent.stream().await?;
            let job = self.agent.job();
            let sent = sender.send(&PeerRequest::Verify { job }).await;
            sent.map_err(|error| error.to_fault())?;
            let reply = receive::<PeerReply>(&mut receiver).await?;
            Ok((sender, receiver, reply))
        };
        let begun = tokio::select! {
            begun = begin => begun,
            () = self.cancel.cancelled() => Err(PgError::Cancelled.to_fault(self.agent.source())),
        };
        match begun.map_err(|fault| lost(&self.agent, fault))? {
            (sender, receiver, PeerReply::Noted) => Ok(Conversation {
                agent: self.agent.clone(),
                sender,
                receiver,
                cancel: self.cancel.clone(),
            }),
            (_, _, PeerReply::Fault(fault)) => Err(fault),
            _ => Err(self.agent.unexpected()),
        }
    }
}

impl Ask for Conversation {
    async fn ask(&mut self, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        let talk = async {
            let sent = self.sender.send(&ask).await;
            sent.map_err(|error| error.to_fault())?;
            receive::<VerifyReply>(&mut self.receiver).await
        };
        let reply = tokio::select! {
            reply = talk => reply,
            () = self.cancel.cancelled() => Err(PgError::Cancelled.to_fault(self.agent.source())),
        };
        match reply {
            Ok(VerifyReply::Fault(fault)) => Err(fault),
            Ok(reply) => Ok(reply),
            Err(fault) => Err(lost(&self.agent, fault)),
        }
    }
}

/// What goes wrong on the way does not say by itself which agent is gone.
fn lost(agent: &SourceAgent, fault: Fault) -> Fault {
    if fault.node.is_some() {
        return fault;
    }
    let node = agent.source();
    let message = format!("no answer from the agent of {node}: {}", fault.message);
    Fault { message, ..fault }
        .on(node)
        .hint(Fault::ONCE_IT_IS_BACK)
}
