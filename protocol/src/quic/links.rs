//! QUIC statistics by peer: the current state of each connection, and totals over all of them.
//!
//! It holds a clone of each live connection, and a connection lives as long as its last clone. So
//! the owner of a connection must keep the [`Watched`] beside it and drop both together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Connection, PathStats, Role};

/// Every peer ever connected to; a cluster has few nodes.
#[derive(Debug, Clone, Default)]
pub struct Links {
    peers: Arc<Mutex<BTreeMap<String, Peer>>>,
}

#[derive(Debug, Default)]
struct Peer {
    next: u64,
    live: BTreeMap<u64, Connection>,
    /// Totals of closed connections.
    ended: Counted,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    sent_packets: u64,
    lost_packets: u64,
    sent: u64,
    received: u64,
}

impl Counted {
    fn add(&mut self, path: &PathStats) {
        self.sent_packets += path.sent_packets;
        self.lost_packets += path.lost_packets;
        self.sent += path.sent.0;
        self.received += path.received.0;
    }
}

/// Statistics of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStats {
    /// The node's name, `coordinator`, or `operators` for all of them.
    pub peer: String,
    /// Live connections.
    pub connections: u64,
    /// The longest round trip among its connections.
    pub rtt: Duration,
    /// The sum of its congestion windows, in bytes.
    pub congestion_window: u64,
    /// Packets sent, over all connections so far.
    pub sent_packets: u64,
    /// Of those, lost.
    pub lost_packets: u64,
    /// UDP payload sent, in bytes.
    pub sent: u64,
    /// UDP payload received, in bytes.
    pub received: u64,
}

/// Counts a connection until it is dropped.
#[derive(Debug)]
pub struct Watched {
    links: Links,
    peer: String,
    id: u64,
}

impl Links {
    /// Starts counting a connection.
    #[must_use]
    pub fn watch(&self, connection: &Connection) -> Watched {
        let peer = match connection.peer().role {
            Role::Coordinator => "coordinator".to_owned(),
            // Operators share one series: their names are not nodes of a network.
            Role::Operator => "operators".to_owned(),
            Role::Agent => connection.peer().name.to_string(),
        };
        let mut peers = self.lock();
        let entry = peers.entry(peer.clone()).or_default();
        let id = entry.next;
        entry.next += 1;
        entry.live.insert(id, connection.clone());
        Watched {
            links: self.clone(),
            peer,
            id,
        }
    }

    /// Statistics of every peer, sorted by name.
    #[must_use]
    pub fn stats(&self) -> Vec<PeerStats> {
        let peers = self.lock();
        peers.iter().map(|(name, peer)| peer.stats(name)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn stats(&self, name: &str) -> PeerStats {
        let mut counted = self.ended;
        let (mut rtt, mut window) = (Duration::ZERO, 0);
        for connection in self.live.values() {
            let path = connection.path();
            counted.add(&path);
            rtt = rtt.max(path.rtt);
            window += path.congestion_window.0;
        }
        PeerStats {
            peer: name.to_owned(),
            connections: self.live.len() as u64,
            rtt,
            congestion_window: window,
            sent_packets: counted.sent_packets,
            lost_packets: counted.lost_packets,
            sent: counted.sent,
            received: counted.received,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut peers = self.links.lock();
        if let Some(peer) = peers.get_mut(&self.peer)
            && let Some(connection) = peer.live.remove(&self.id)
        {
            peer.ended.add(&connection.path());
        }
    }
}
