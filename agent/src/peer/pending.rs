//! A schema dump that the source makes while the target does something else.

use steep_protocol::message::peer::SchemaSection;
use steep_protocol::{Fault, FaultKind};
use tokio::task::JoinSet;

use super::connection::SourceAgent;
use super::stream::Incoming;
use crate::chunk::{PartReader, ReadStep};

/// Asked for at once, waited for when it is first read. Dropping it cancels the dump.
#[derive(Debug)]
pub(crate) struct PendingDump(State);

#[derive(Debug)]
enum State {
    /// Holds one task.
    Requested(JoinSet<Result<Incoming, Fault>>),
    Arriving(Box<Incoming>),
}

impl PendingDump {
    /// Asks the source for that section.
    pub(crate) fn request(source: &SourceAgent, section: SchemaSection) -> Self {
        let source = source.clone();
        let mut request = JoinSet::new();
        request.spawn(async move { source.schema(section).await });
        Self(State::Requested(request))
    }
}

impl PartReader for PendingDump {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        if let State::Requested(request) = &mut self.0 {
            let answer = match request.join_next().await {
                Some(Ok(answer)) => answer,
                Some(Err(error)) => Err(broken(&error.to_string())),
                None => Err(broken("it has failed before")),
            };
            self.0 = State::Arriving(Box::new(answer?));
        }
        match &mut self.0 {
            State::Arriving(incoming) => incoming.read(into, limit).await,
            State::Requested(_) => Err(broken("it has not arrived")),
        }
    }
}

fn broken(why: &str) -> Fault {
    let text = format!("the request for a schema dump broke: {why}");
    Fault::new(FaultKind::Failed, text)
}
