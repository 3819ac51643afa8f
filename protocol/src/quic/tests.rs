//! Two endpoints over real UDP with real certificates.

mod crowd;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use steep_certs::{Credentials, Role};

use super::{ConnectError, Connection, Endpoint, Expect, StreamError, Tuning};
use crate::close::CloseCode;
use crate::frame::FrameHead;
use crate::message::api::{ApiReply, ApiRequest, Query};
use crate::{ByteCount, FaultKind, NodeId, RowCount};

fn ca() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    steep_certs::init_ca(dir.path()).unwrap();
    dir
}

fn credentials(dir: &Path, role: Role, name: &str) -> Credentials {
    let files = steep_certs::issue(dir, role, name, &[], None).unwrap();
    Credentials::load(&dir.join("ca.pem"), &files.certificate, &files.key).unwrap()
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

struct Pair {
    dialled: Connection,
    accepted: Connection,
    // Dropping an endpoint closes its connections.
    _endpoints: (Endpoint, Endpoint),
}

async fn pair() -> Pair {
    let dir = ca();
    let listener = Endpoint::listen(
        local(),
        &credentials(dir.path(), Role::Agent, "a"),
        Tuning::BULK,
    )
    .unwrap();
    let dialer =
        Endpoint::dialer(&credentials(dir.path(), Role::Agent, "b"), Tuning::BULK).unwrap();
    let address = listener.local_addr().to_string();
    let expect = Expect::Agent(node("a"));
    let accept = async { listener.accept().await.unwrap().handshake().await };
    let (dialled, accepted) = tokio::join!(dialer.dial(&address, &expect), accept);
    Pair {
        dialled: dialled.unwrap(),
        accepted: accepted.unwrap(),
        _endpoints: (listener, dialer),
    }
}

#[tokio::test]
async fn both_ends_know_who_the_other_is() {
    let pair = pair().await;
    assert_eq!(
        (pair.dialled.peer().role, pair.dialled.peer().name.as_str()),
        (Role::Agent, "a")
    );
    assert_eq!(
        (
            pair.accepted.peer().role,
            pair.accepted.peer().name.as_str()
        ),
        (Role::Agent, "b")
    );
}

#[tokio::test]
async fn messages_and_frames_arrive_as_they_were_sent() {
    let pair = pair().await;
    let end = FrameHead::End {
        chunks: 1,
        raw: ByteCount(2),
        rows: RowCount(3),
    };
    let send = async {
        let (mut sender, mut receiver) = pair.dialled.open().await.unwrap();
        let ask = ApiRequest::Progress {
            node: node("b"),
            follow: true,
        };
        sender.send(&ask).await.unwrap();
        sender.send_head(end).await.unwrap();
        sender.finish();
        let reply: Option<ApiReply> = receiver.recv().await.unwrap();
        (reply, receiver.recv::<ApiReply>().await.unwrap())
    };
    let answer = async {
        let (mut sender, mut receiver) = pair.accepted.accept().await.unwrap();
        let asked: Option<ApiRequest> = receiver.recv().await.unwrap();
        assert_eq!(
            asked,
            Some(ApiRequest::Progress {
                node: node("b"),
                follow: true
            })
        );
        assert_eq!(receiver.recv_head().await.unwrap(), end);
        sender.send(&ApiReply::End).await.unwrap();
        sender.finish();
        sender.drained().await.unwrap();
    };
    let (replies, ()) = tokio::join!(send, answer);
    assert_eq!(replies, (Some(ApiReply::End), None));
}

#[tokio::test]
async fn a_peer_with_another_name_is_not_taken_for_the_one_expected() {
    let dir = ca();
    let listener = Endpoint::listen(
        local(),
        &credentials(dir.path(), Role::Agent, "a"),
        Tuning::BULK,
    )
    .unwrap();
    let dialer =
        Endpoint::dialer(&credentials(dir.path(), Role::Agent, "b"), Tuning::BULK).unwrap();
    let address = listener.local_addr().to_string();
    for expect in [Expect::Agent(node("c")), Expect::Coordinator] {
        let accept = async { listener.accept().await.unwrap().handshake().await };
        let (dialled, accepted) = tokio::join!(dialer.dial(&address, &expect), accept);
        let error = dialled.unwrap_err();
        assert!(
            matches!(error, ConnectError::Certificate { .. }),
            "{error:?}"
        );
        assert_eq!(error.to_fault().kind, FaultKind::Unauthorized);
        assert!(accepted.is_err());
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_both() {
    let (ours, theirs) = (ca(), ca());
    let listener = Endpoint::listen(
        local(),
        &credentials(ours.path(), Role::Agent, "a"),
        Tuning::BULK,
    )
    .unwrap();
    let dialer =
        Endpoint::dialer(&credentials(theirs.path(), Role::Agent, "b"), Tuning::BULK).unwrap();
    let address = listener.local_addr().to_string();
    let expect = Expect::Agent(node("a"));
    let accept = async { listener.accept().await.unwrap().handshake().await };
    let (dialled, accepted) = tokio::join!(dialer.dial(&address, &expect), accept);
    assert!(
        matches!(dialled, Err(ConnectError::Certificate { .. })),
        "{dialled:?}"
    );
    assert!(accepted.is_err());
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_worth_another_try() {
    let dir = ca();
    let silent = std::net::UdpSocket::bind(local()).unwrap();
    let dialer =
        Endpoint::dialer(&credentials(dir.path(), Role::Agent, "b"), Tuning::CONTROL).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = dialer
        .dial(&address, &Expect::Coordinator)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    assert_eq!(error.retry(), crate::Retry::Backoff);
}

#[tokio::test]
async fn reasons_to_reset_and_to_close_arrive() {
    let pair = pair().await;
    let give_up = async {
        let (mut sender, mut receiver) = pair.dialled.open().await.unwrap();
        sender
            .send(&ApiRequest::Query(Query::Nodes { node: None }))
            .await
            .unwrap();
        receiver.recv::<ApiReply>().await.unwrap_err()
    };
    let refuse = async {
        let (mut sender, mut receiver) = pair.accepted.accept().await.unwrap();
        receiver.recv::<ApiRequest>().await.unwrap();
        sender.reset(CloseCode::Forbidden);
    };
    let (error, ()) = tokio::join!(give_up, refuse);
    assert!(
        matches!(error, StreamError::Reset(CloseCode::Forbidden)),
        "{error:?}"
    );
    pair.accepted.close(CloseCode::Superseded);
    assert_eq!(pair.dialled.closed().await, Some(CloseCode::Superseded));
}

#[tokio::test]
async fn a_receive_that_was_dropped_midway_loses_nothing() {
    let pair = pair().await;
    let reply = ApiReply::Fault(crate::Fault::new(FaultKind::Failed, "x".repeat(300_000)));
    let send = async {
        let (mut sender, _receiver) = pair.dialled.open().await.unwrap();
        sender.send(&reply).await.unwrap();
        sender.finish();
        sender.drained().await.unwrap();
    };
    let receive = async {
        let (_sender, mut receiver) = pair.accepted.accept().await.unwrap();
        loop {
            let patience = Duration::from_micros(50);
            match tokio::time::timeout(patience, receiver.recv::<ApiReply>()).await {
                Ok(received) => break received.unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let ((), received) = tokio::join!(send, receive);
    assert_eq!(received, Some(reply));
}
