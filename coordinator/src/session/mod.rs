//! An agent's session: passes its messages to the loop and the loop's messages to it.
//!
//! Owns one connection and its one stream. Decides nothing: the certificate says who the peer is, and
//! the loop interprets messages. Reading and writing run concurrently, so that an agent that only
//! sends or only receives blocks neither.

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

/// Messages queued for one agent. An agent that is further behind is disconnected; what it must know
/// is sent again when it registers.
const OUTBOX: usize = 256;

/// Messages sent or passed on at once, if so many wait.
const BATCH: usize = 16;

/// How long an agent has to open its stream and register.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for the reason of a close after the last message: a round trip.
const CLOSE_REASON_LIMIT: Duration = Duration::from_secs(1);

/// How long an agent may leave messages unread.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// The longest `HOST:PORT`: a DNS name, a colon and a port.
const ADVERTISE_MAX: usize = 253 + 6;

/// The longest version text.
const VERSION_MAX: usize = 64;

/// Snapshots one process can hold open; far more than servers have slots.
const SNAPSHOTS_MAX: usize = 10_000;

/// Serves an agent's connection until either side ends it. Cancelling does not tell the loop, which is
/// right only if the loop has ended too.
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
    // The loop may queue messages until it hears that the session has ended.
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
            // The loop stops too and need not hear of it.
            () = shutdown.cancelled() => return (CloseCode::ShuttingDown, None),
        };
        match end {
            End::Ours(code) => (code, Some(Parting::Lost)),
            End::Theirs(code) => (code, Some(parting(connection.closed()).await)),
        }
    };
    let code = to_its_end(conversation, &node, session, &loop_).await;
    let code = reason(code, shutdown.is_cancelled() || loop_.is_closed());
    tracing::debug!(node_id = %node, reason = %code, "an agent's session ended");
    connection.close(code);
}

/// The reason for the agent: a coordinator that stops drops all sessions, and no newer connection
/// replaces them.
fn reason(code: CloseCode, stopping: bool) -> CloseCode {
    match code {
        CloseCode::Superseded if stopping => CloseCode::ShuttingDown,
        code => code,
    }
}

/// Who ended a session, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The coordinator.
    Ours(CloseCode),
    /// The agent, or the network.
    Theirs(CloseCode),
}

/// Whether an agent whose stream ended was stopped: it closes the connection, with the reason, once
/// its last message is acknowledged.
async fn parting(closed: impl Future<Output = Option<CloseCode>>) -> Parting {
    match tokio::time::timeout(CLOSE_REASON_LIMIT, closed).await {
        Ok(Some(CloseCode::ShuttingDown)) => Parting::Stopped,
        Ok(_) | Err(_) => Parting::Lost,
    }
}

/// Runs a session and tells the loop that it ended, even after a panic: otherwise the agent would seem
/// to be online for ever. The agent dials again by itself.
async fn to_its_end(
    conversation: impl Future<Output = (CloseCode, Option<Parting>)>,
    node: &NodeId,
    session: SessionId,
    loop_: &mpsc::Sender<AgentInput>,
) -> CloseCode {
    let ended = AssertUnwindSafe(conversation).catch_unwind().await;
    let (code, parting) = ended.unwrap_or_else(|_| {
        tracing::error!(node_id = %node, "an agent's session ended in a panic");
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
    // Fails only if the loop has ended.
    let _ = loop_.send(left).await;
    code
}

/// Why a registration was not accepted.
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

/// Checks the limits of a registration, which is stored and passed on to others (G9).
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
        return Err("its address or version has invalid characters");
    }
    if registration.version.len() > VERSION_MAX {
        return Err("its version is too long");
    }
    let jobs = [
        registration.open_snapshots.len(),
        registration.admitted.len(),
    ];
    if jobs.iter().any(|jobs| *jobs > SNAPSHOTS_MAX) {
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
        // Passes on in one batch what arrives together. Receiving is cancel-safe: half a message is
        // kept.
        while let Some(received) = next.take() {
            match received {
                // It registered when the session began. Later messages are ignored.
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
            if end.is_none() && messages.len() < BATCH {
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
    let mut messages = Vec::with_capacity(BATCH);
    let mut rejected = false;
    while queue.recv_many(&mut messages, BATCH).await > 0 {
        rejected = matches!(messages.last(), Some(CoordinatorMessage::Rejected(_)));
        match tokio::time::timeout(WRITE_LIMIT, sender.send_all(&messages)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return End::Theirs(error.code().unwrap_or(CloseCode::Malformed)),
            // It is connected but does not read. What it must know is sent again when it registers.
            Err(_) => return End::Ours(CloseCode::Superseded),
        }
        messages.clear();
    }
    // The loop has dropped this session. The reason of a rejection must arrive before the close.
    if rejected {
        sender.finish();
        let _ = tokio::time::timeout(CLOSE_REASON_LIMIT, sender.drained()).await;
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
            spool: None,
            seat: Seat(1),
            sequence_interval_seconds: 0,
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
        // A silent agent is not waited for.
        assert_eq!(parting(std::future::pending()).await, Parting::Lost);
    }

    #[test]
    fn a_stopping_coordinator_does_not_speak_of_a_newer_connection() {
        let superseded = CloseCode::Superseded;
        assert_eq!(reason(superseded, false), superseded);
        assert_eq!(reason(superseded, true), CloseCode::ShuttingDown);
        assert_eq!(reason(CloseCode::Malformed, true), CloseCode::Malformed);
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
