//! One agent's session: bytes in, messages to the loop; messages of the loop, bytes out.
//!
//! Owns one connection and its one stream. Decides nothing: who the peer is comes from its
//! certificate, what its words mean is the loop's. Reading and writing run side by side, so that an
//! agent that only talks or only listens cannot hold up either.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use steep_daemon::Throttle;
use steep_protocol::NodeId;
use steep_protocol::close::CloseCode;
use steep_protocol::limits::REGISTRATION_MAX;
use steep_protocol::message::agent::{AgentMessage, CoordinatorMessage, Registration};
use steep_protocol::quic::{Connection, Receiver, Sender, StreamError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::drive::AgentInput;
use crate::job::machine::Parting;
use crate::registry::{Link, SessionId};

/// Messages to one agent that may wait; an agent that is further behind is disconnected and told
/// again what matters when it is back.
const OUTBOX: usize = 256;

/// Messages that are sent in one go, where so many wait.
const TOGETHER: usize = 16;

/// How long an agent has to open its stream and register.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);

/// How long it has, once it has said all, to say that its process ends: a round trip.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How long an agent may leave messages unread.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// The longest `HOST:PORT`: a DNS name, a colon and a port.
const ADVERTISE_MAX: usize = 253 + 6;

/// The longest version text.
const VERSION_MAX: usize = 64;

/// Snapshots one process can hold open; far more than servers have slots.
const SNAPSHOTS_MAX: usize = 10_000;

/// Serves an agent's connection until either side ends it. Cancelling drops it without a word to the
/// loop, which is right only when the loop is gone too.
pub async fn serve(
    connection: Connection,
    session: SessionId,
    loop_: mpsc::Sender<AgentInput>,
    throttle: &Throttle,
    shutdown: CancellationToken,
) {
    let node = connection.peer().name.clone();
    let begun = tokio::select! {
        begun = tokio::time::timeout(REGISTER_LIMIT, register(&connection)) => begun,
        () = shutdown.cancelled() => return connection.close(CloseCode::ShuttingDown),
    };
    let (sender, receiver, registration) = match begun {
        Ok(Ok(begun)) => begun,
        Ok(Err(refusal)) => {
            if let Some(left_out) = throttle.pass("unregistered") {
                tracing::warn!(node_id = %node, error = %refusal, left_out, "an agent did not register");
            }
            return connection.close(CloseCode::Malformed);
        }
        Err(_) => {
            if let Some(left_out) = throttle.pass("unregistered") {
                tracing::warn!(node_id = %node, left_out, "an agent connected and did not register in time");
            }
            return connection.close(CloseCode::Malformed);
        }
    };
    // Until the loop has heard of the end of the session, it takes messages for the agent.
    let (outbox, mut queue) = mpsc::channel(OUTBOX);
    let link = Link { session, outbox };
    let joined = AgentInput::Joined {
        node: node.clone(),
        link,
        registration,
    };
    if loop_.send(joined).await.is_err() {
        return connection.close(CloseCode::ShuttingDown);
    }
    let conversation = async {
        let end = tokio::select! {
            end = read(receiver, &node, session, &loop_) => end,
            end = write(sender, &mut queue) => end,
            // The loop stops, too: no agent has left it.
            () = shutdown.cancelled() => return (CloseCode::ShuttingDown, None),
        };
        match end {
            End::Ours(code) => (code, Some(Parting::Lost)),
            End::Theirs(code) => (code, Some(parting(connection.closed()).await)),
        }
    };
    let code = to_its_end(conversation, &node, session, &loop_).await;
    tracing::debug!(node_id = %node, reason = %code, "an agent's session ended");
    connection.close(code);
}

/// Who ended a session, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// This end.
    Ours(CloseCode),
    /// The agent, or what is between.
    Theirs(CloseCode),
}

/// What became of an agent that has said all it had to say: it closes the connection when it knows that
/// this was heard.
async fn parting(closed: impl Future<Output = Option<CloseCode>>) -> Parting {
    match tokio::time::timeout(LAST_WORD, closed).await {
        Ok(Some(CloseCode::ShuttingDown)) => Parting::Stopped,
        Ok(_) | Err(_) => Parting::Lost,
    }
}

/// Runs a session and tells the loop when its agent has parted, also where it broke: an agent whose
/// session broke by a mistake of ours would be taken to be there for ever. It dials again by itself.
async fn to_its_end(
    conversation: impl Future<Output = (CloseCode, Option<Parting>)>,
    node: &NodeId,
    session: SessionId,
    loop_: &mpsc::Sender<AgentInput>,
) -> CloseCode {
    let ended = AssertUnwindSafe(conversation).catch_unwind().await;
    let (code, parting) = ended.unwrap_or_else(|_| {
        tracing::error!(node_id = %node, "an agent's session panicked and is ended");
        (CloseCode::ShuttingDown, Some(Parting::Lost))
    });
    let Some(parting) = parting else {
        return code;
    };
    let left = AgentInput::Left {
        node: node.clone(),
        session,
        parting,
    };
    // A loop that is gone knows that its agents are gone.
    let _ = loop_.send(left).await;
    code
}

/// Why an agent's first words were not accepted.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("its first message is not a registration")]
    NotRegistered,
    #[error("its registration is not usable: {0}")]
    Unusable(&'static str),
}

async fn register(connection: &Connection) -> Result<(Sender, Receiver, Registration), Refusal> {
    let (sender, mut receiver) = connection.accept().await?;
    let Some(AgentMessage::Register(registration)) = receiver.recv_short(REGISTRATION_MAX).await?
    else {
        return Err(Refusal::NotRegistered);
    };
    check(&registration).map_err(Refusal::Unusable)?;
    Ok((sender, receiver, registration))
}

/// What an agent says of itself is kept and passed on to others, so it is bounded (G9).
fn check(registration: &Registration) -> Result<(), &'static str> {
    let port = registration
        .advertise
        .rsplit_once(':')
        .and_then(|(host, port)| {
            let port = port.parse::<u16>().ok()?;
            (!host.is_empty() && port > 0).then_some(port)
        });
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
    if registration.advertise.len() > ADVERTISE_MAX || port.is_none() {
        return Err("the address it advertises is not HOST:PORT");
    }
    if !plain(&registration.advertise) || !plain(&registration.version) {
        return Err("address or version has characters that neither can have");
    }
    if registration.version.len() > VERSION_MAX {
        return Err("its version is too long");
    }
    let jobs = [&registration.open_snapshots, &registration.admitted];
    if jobs.iter().any(|jobs| jobs.len() > SNAPSHOTS_MAX) {
        return Err("it claims too many jobs");
    }
    if registration.max_workers == 0 {
        return Err("it has no workers");
    }
    Ok(())
}

async fn read(
    mut receiver: Receiver,
    node: &NodeId,
    session: SessionId,
    loop_: &mpsc::Sender<AgentInput>,
) -> End {
    loop {
        let mut messages = Vec::new();
        let mut end = None;
        let mut next = Some(receiver.recv::<AgentMessage>().await);
        // What an agent says together mostly arrives together, and goes on together. Receiving is
        // cancel-safe: half a message is kept.
        while let Some(received) = next.take() {
            match received {
                // It did so when the session began. What it says after that is not listened to.
                Ok(Some(AgentMessage::Register(_))) => {
                    tracing::debug!(node_id = %node, "an agent registered twice in one session");
                    end = Some(CloseCode::Malformed);
                }
                Ok(Some(message)) => messages.push(message),
                Ok(None) => end = Some(CloseCode::Done),
                Err(error) => {
                    tracing::debug!(node_id = %node, %error, "an agent's stream broke");
                    end = Some(error.code().unwrap_or(CloseCode::Malformed));
                }
            }
            if end.is_none() && messages.len() < TOGETHER {
                next = receiver.recv::<AgentMessage>().now_or_never();
            }
        }
        let said = AgentInput::Said {
            node: node.clone(),
            session,
            messages,
        };
        if loop_.send(said).await.is_err() {
            return End::Ours(CloseCode::ShuttingDown);
        }
        if let Some(code) = end {
            return End::Theirs(code);
        }
    }
}

async fn write(mut sender: Sender, queue: &mut mpsc::Receiver<CoordinatorMessage>) -> End {
    let mut messages = Vec::with_capacity(TOGETHER);
    let mut rejected = false;
    while queue.recv_many(&mut messages, TOGETHER).await > 0 {
        rejected = matches!(messages.last(), Some(CoordinatorMessage::Rejected(_)));
        match tokio::time::timeout(WRITE_LIMIT, sender.send_all(&messages)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return End::Theirs(error.code().unwrap_or(CloseCode::Malformed)),
            // It is there and does not read; it is told again what matters when it dials again.
            Err(_) => return End::Ours(CloseCode::Superseded),
        }
        messages.clear();
    }
    // The loop has let go of this session. Why the agent was rejected is to arrive before the end does.
    if rejected {
        sender.finish();
        let _ = tokio::time::timeout(LAST_WORD, sender.drained()).await;
    }
    End::Ours(CloseCode::Superseded)
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::agent::Seat;

    use super::*;

    fn registration() -> Registration {
        Registration {
            advertise: "node-a.example:7401".to_owned(),
            version: "0.1.0".to_owned(),
            incarnation: 1,
            open_snapshots: Vec::new(),
            admitted: Vec::new(),
            max_workers: 4,
            seat: Seat(1),
        }
    }

    #[tokio::test]
    async fn a_session_that_panics_is_over_for_the_loop_too() {
        let node = NodeId::parse("node_a").unwrap();
        let (loop_, mut heard) = mpsc::channel(1);
        let panics = async { panic!("a mistake of ours") };
        let code = to_its_end(panics, &node, SessionId(3), &loop_).await;
        assert_eq!(code, CloseCode::ShuttingDown);
        let left = heard.try_recv().unwrap();
        let AgentInput::Left {
            node: of,
            session,
            parting,
        } = left
        else {
            panic!("{left:?}");
        };
        assert_eq!((of, session), (node, SessionId(3)));
        assert_eq!(parting, Parting::Lost);
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_agent_that_says_so_was_stopped() {
        let of = |code| parting(std::future::ready(code));
        assert_eq!(of(Some(CloseCode::ShuttingDown)).await, Parting::Stopped);
        assert_eq!(of(Some(CloseCode::Done)).await, Parting::Lost);
        assert_eq!(of(None).await, Parting::Lost);
        // One that says nothing more is not waited for.
        assert_eq!(parting(std::future::pending()).await, Parting::Lost);
    }

    #[test]
    fn what_an_agent_says_of_itself_is_bounded() {
        assert_eq!(check(&registration()), Ok(()));
        let advertise = |text: &str| Registration {
            advertise: text.to_owned(),
            ..registration()
        };
        assert_eq!(check(&advertise("[::1]:7401")), Ok(()));
        for bad in [
            "",
            "host",
            ":7401",
            "host:0",
            "host:99999",
            "ho st:1",
            "h\n:1",
        ] {
            assert!(check(&advertise(bad)).is_err(), "{bad:?} was taken");
        }
        assert!(check(&advertise(&format!("{}:1", "x".repeat(300)))).is_err());
        let lazy = Registration {
            max_workers: 0,
            ..registration()
        };
        assert!(check(&lazy).is_err());
    }
}
