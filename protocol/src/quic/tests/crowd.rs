//! Many callers at once: attackers shut nobody out.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use steep_certs::Role;
use tokio::task::JoinSet;

use super::super::{Accepted, Arrival, ConnectionLimits, Listener};
use super::{
    CloseCode, Connection, Credentials, Endpoint, Expect, StreamError, Tuning, ca, credentials,
    local, node,
};
use crate::limits::PEER_REQUEST_MAX;
use crate::message::peer::PeerRequest;

/// Generous, because test machines are busy.
const LIMIT: Duration = Duration::from_secs(30);

const LIMITS: ConnectionLimits = ConnectionLimits {
    total: 8,
    per_identity: 4,
};

fn listener(certificate: &Credentials) -> (Listener, String) {
    let endpoint = Endpoint::listen(local(), certificate, Tuning::CONTROL).unwrap();
    let address = endpoint.local_addr().to_string();
    (Listener::new(Arc::new(endpoint), LIMITS), address)
}

async fn accepted(listener: &mut Listener) -> Accepted {
    match tokio::time::timeout(LIMIT, listener.next()).await.unwrap() {
        Some(Arrival::Accepted(accepted)) => accepted,
        other => panic!("{other:?}"),
    }
}

/// Forwards packets to `target` and drops the replies: its callers never finish a handshake.
struct OneWay {
    address: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OneWay {
    fn to(target: &str) -> Self {
        let socket = UdpSocket::bind(local()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let out = UdpSocket::bind(local()).unwrap();
        out.connect(target).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, _)) = socket.recv_from(&mut datagram) {
                    // The kernel may refuse while its buffers are full.
                    let _ = out.send(&datagram[..length]);
                }
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for OneWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_handshakes_are_bounded_and_shut_nobody_out() {
    let dir = ca();
    let (mut listener, address) = listener(&credentials(dir.path(), Role::Agent, "a"));
    let relay = OneWay::to(&address);
    let attacker = credentials(dir.path(), Role::Agent, "b");
    let attacker = Arc::new(Endpoint::dialer(&attacker, Tuning::CONTROL).unwrap());
    let honest =
        Endpoint::dialer(&credentials(dir.path(), Role::Agent, "c"), Tuning::CONTROL).unwrap();
    let expect = Expect::Agent(node("a"));
    let mut calls = JoinSet::new();
    for _ in 0..400 {
        let (attacker, expect, at) = (Arc::clone(&attacker), expect.clone(), relay.address.clone());
        calls.spawn(async move { attacker.dial(&at, &expect).await.err() });
    }
    // The attack has used up the handshakes that need no proof of address.
    let crowded = async {
        while listener.handshakes() < 32 {
            assert!(
                tokio::time::timeout(Duration::from_millis(10), listener.next())
                    .await
                    .is_err()
            );
        }
    };
    tokio::time::timeout(LIMIT, crowded).await.unwrap();
    let mut most = 0;
    let arrival = async {
        loop {
            let next = tokio::time::timeout(Duration::from_millis(10), listener.next());
            match next.await {
                Ok(Some(Arrival::Accepted(accepted))) => break accepted,
                Ok(Some(Arrival::Failed { .. })) | Err(_) => {}
                Ok(other) => panic!("{other:?}"),
            }
            most = most.max(listener.handshakes());
        }
    };
    let (dialled, accepted) = tokio::join!(honest.dial(&address, &expect), arrival);
    assert_eq!(dialled.unwrap().peer().name, node("a"));
    assert_eq!(accepted.connection.peer().name, node("c"));
    // Callers behind the relay never receive the request to prove their address.
    assert!(most <= 40, "{most} handshakes at once");
    calls.shutdown().await;
}

async fn call(dialer: &Endpoint, listener: &mut Listener, address: &str) -> (Connection, Accepted) {
    let expect = Expect::Agent(node("a"));
    let (dialled, accepted) = tokio::join!(dialer.dial(address, &expect), accepted(listener));
    (dialled.unwrap(), accepted)
}

#[tokio::test]
async fn an_identity_takes_its_share_of_connections_and_no_more() {
    let dir = ca();
    let (mut listener, address) = listener(&credentials(dir.path(), Role::Agent, "a"));
    let greedy =
        Endpoint::dialer(&credentials(dir.path(), Role::Agent, "b"), Tuning::CONTROL).unwrap();
    let modest =
        Endpoint::dialer(&credentials(dir.path(), Role::Agent, "c"), Tuning::CONTROL).unwrap();
    let mut all = Vec::new();
    for _ in 0..10 {
        all.push(call(&greedy, &mut listener, &address).await);
    }
    // The oldest idle connections were closed.
    for (dialled, _) in &all[..6] {
        let closed = tokio::time::timeout(LIMIT, dialled.closed());
        assert_eq!(closed.await.unwrap(), Some(CloseCode::TooMany));
    }
    assert!(all[6..].iter().all(|(dialled, _)| !dialled.is_closed()));
    let busy: Vec<_> = all[6..].iter().map(|(_, own)| own.place.busy()).collect();
    let expect = Expect::Agent(node("a"));
    let refused = tokio::time::timeout(LIMIT, listener.next());
    let (dialled, refused) = tokio::join!(greedy.dial(&address, &expect), refused);
    assert!(matches!(refused.unwrap(), Some(Arrival::Refused { name, .. }) if name == node("b")),);
    if let Ok(dialled) = dialled {
        let closed = tokio::time::timeout(LIMIT, dialled.closed());
        assert_eq!(closed.await.unwrap(), Some(CloseCode::TooMany));
    }
    let (other, _accepted) = call(&modest, &mut listener, &address).await;
    assert!(!other.is_closed());
    // Closed connections make room.
    drop(busy);
    drop(all);
    let (again, _accepted) = call(&greedy, &mut listener, &address).await;
    assert!(!again.is_closed());
}

#[tokio::test]
async fn a_request_that_claims_to_be_long_is_refused_by_its_length() {
    let pair = super::pair().await;
    let claim = async {
        let (mut sender, _receiver) = pair.dialled.open().await.unwrap();
        let length = u32::try_from(PEER_REQUEST_MAX + 1).unwrap();
        // Only one byte of it, and no end.
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.push(0);
        sender.send_bytes(bytes).await.unwrap();
        sender.drained().await
    };
    let answer = async {
        let (_sender, mut receiver) = pair.accepted.accept().await.unwrap();
        let asked = receiver.recv_short::<PeerRequest>(PEER_REQUEST_MAX).await;
        receiver.stop(CloseCode::Malformed);
        asked
    };
    let both = async { tokio::join!(claim, answer) };
    let (claimed, asked) = tokio::time::timeout(LIMIT, both).await.unwrap();
    assert!(matches!(asked, Err(StreamError::Codec(_))), "{asked:?}");
    assert!(
        matches!(claimed, Err(StreamError::Reset(CloseCode::Malformed))),
        "{claimed:?}"
    );
}
