//! Admission of callers, from the first packet to a connection that may be served.
//!
//! The listener owns all unfinished handshakes of an endpoint and counts its connections.
//! Handshakes have their own limit, so an unauthenticated caller takes no connection's place. At
//! that limit, the oldest handshake is dropped: it is the one that has stalled. With many
//! handshakes under way, callers must first prove that they receive at their address (RFC 9000,
//! 8.1.2), so forged addresses cost nothing. No identity can exceed its share of the connections.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use steep_certs::Role;
use tokio::task::{AbortHandle, JoinSet};

use super::connection::Connection;
use super::endpoint::{Endpoint, Incoming};
use super::error::ConnectError;
use crate::wire::NodeId;
use crate::wire::close::CloseCode;

/// Maximum number of unfinished handshakes. A normal one takes a few round trips, so 256 allow some
/// thousand callers a second; each holds about 100 kB.
const HANDSHAKES_MAX: usize = 256;

/// From this many unfinished handshakes on, callers must prove their address, which costs them a
/// round trip.
const PROVE_ADDRESS_FROM: usize = 32;

/// Limits on a listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In total.
    pub total: usize,
    /// Per identity, which is a role and a name.
    pub per_identity: usize,
}

/// Yields an endpoint's callers one by one.
#[derive(Debug)]
pub struct Listener {
    endpoint: Arc<Endpoint>,
    places: Places,
    handshakes: JoinSet<(SocketAddr, Result<Connection, ConnectError>)>,
    /// The handshake tasks, oldest first.
    started: VecDeque<AbortHandle>,
}

/// The result of a call.
#[derive(Debug)]
pub enum Arrival {
    /// The caller is authenticated and may be served.
    Accepted(Accepted),
    /// The handshake failed.
    Failed {
        /// The caller's address.
        remote: SocketAddr,
        /// The error.
        error: ConnectError,
    },
    /// The caller is authenticated, but there are too many connections.
    Refused {
        /// The caller's address.
        remote: SocketAddr,
        /// Its role, from its certificate.
        role: Role,
        /// Its name.
        name: NodeId,
    },
}

/// A connection to serve, and its place among the connections.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub connection: Connection,
    /// Must be kept while the connection is served.
    pub place: Place,
}

impl Listener {
    /// Listens on that endpoint.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, limits: ConnectionLimits) -> Self {
        Self {
            endpoint,
            places: Places {
                limits,
                table: Arc::default(),
            },
            handshakes: JoinSet::new(),
            started: VecDeque::new(),
        }
    }

    /// Waits for the next handshake to end, well or not; `None` once the endpoint is closed.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Arrival> {
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => self.begin(incoming?),
                Some(ended) = self.handshakes.join_next() => {
                    // A dropped or panicked handshake has closed its connection.
                    let Ok((remote, greeted)) = ended else { continue };
                    return Some(match greeted {
                        Ok(connection) => self.places.seat(connection),
                        Err(error) => Arrival::Failed { remote, error },
                    });
                }
            }
        }
    }

    /// Unfinished handshakes, as of the last call of `next`.
    #[cfg(test)]
    pub(super) fn handshakes(&mut self) -> usize {
        self.started.retain(|handshake| !handshake.is_finished());
        self.started.len()
    }

    fn begin(&mut self, incoming: Incoming) {
        while self.started.front().is_some_and(AbortHandle::is_finished) {
            self.started.pop_front();
        }
        if self.started.len() >= PROVE_ADDRESS_FROM {
            self.started.retain(|handshake| !handshake.is_finished());
        }
        let incoming = if self.started.len() >= PROVE_ADDRESS_FROM {
            match incoming.with_proved_address() {
                Some(proved) => proved,
                None => return,
            }
        } else {
            incoming
        };
        if self.started.len() >= HANDSHAKES_MAX
            && let Some(oldest) = self.started.pop_front()
        {
            oldest.abort();
        }
        let remote = incoming.remote();
        let handshake = async move { (remote, incoming.handshake().await) };
        self.started.push_back(self.handshakes.spawn(handshake));
    }
}

#[derive(Debug, Clone)]
struct Places {
    limits: ConnectionLimits,
    table: Arc<Mutex<Table<Connection>>>,
}

/// Connections in order of arrival.
#[derive(Debug)]
struct Table<C> {
    next: u64,
    held: BTreeMap<u64, Holder<C>>,
}

#[derive(Debug)]
struct Holder<C> {
    role: Role,
    name: NodeId,
    busy: Arc<AtomicUsize>,
    connection: C,
}

/// Whether there is room for another connection of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Free,
    /// After closing that one: the identity's oldest idle connection.
    InPlaceOf(u64),
    None,
}

impl<C> Default for Table<C> {
    fn default() -> Self {
        let held = BTreeMap::new();
        Self { next: 0, held }
    }
}

impl<C> Table<C> {
    fn room(&self, limits: ConnectionLimits, role: Role, name: &NodeId) -> Room {
        let own = || {
            let all = self.held.iter();
            all.filter(move |(_, holder)| holder.role == role && holder.name == *name)
        };
        if own().count() < limits.per_identity && self.held.len() < limits.total {
            return Room::Free;
        }
        let idle = own().find(|(_, holder)| holder.busy.load(Ordering::Relaxed) == 0);
        idle.map_or(Room::None, |(id, _)| Room::InPlaceOf(*id))
    }

    fn take(&mut self, holder: Holder<C>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.held.insert(id, holder);
        id
    }
}

impl Places {
    fn seat(&self, connection: Connection) -> Arrival {
        let peer = connection.peer().clone();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.room(self.limits, peer.role, &peer.name) {
            Room::Free => {}
            Room::InPlaceOf(id) => {
                if let Some(idle) = table.held.remove(&id) {
                    idle.connection.close(CloseCode::TooMany);
                }
            }
            Room::None => {
                connection.close(CloseCode::TooMany);
                return Arrival::Refused {
                    remote: connection.remote(),
                    role: peer.role,
                    name: peer.name,
                };
            }
        }
        let busy = Arc::new(AtomicUsize::new(0));
        let id = table.take(Holder {
            role: peer.role,
            name: peer.name,
            busy: Arc::clone(&busy),
            connection: connection.clone(),
        });
        let place = Place {
            id,
            busy,
            table: Arc::clone(&self.table),
        };
        Arrival::Accepted(Accepted { connection, place })
    }
}

/// A connection's place. Dropping it makes room for another.
#[derive(Debug)]
pub struct Place {
    id: u64,
    busy: Arc<AtomicUsize>,
    table: Arc<Mutex<Table<Connection>>>,
}

/// Marks a connection as busy until dropped: it is not closed in favour of another.
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl Place {
    /// Marks the connection as busy.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.busy))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        total: 5,
        per_identity: 2,
    };

    fn take(table: &mut Table<()>, role: Role, name: &str) -> Arc<AtomicUsize> {
        let busy = Arc::new(AtomicUsize::new(0));
        table.take(Holder {
            role,
            name: NodeId::parse(name).unwrap(),
            busy: Arc::clone(&busy),
            connection: (),
        });
        busy
    }

    #[test]
    fn an_identity_has_its_share_and_its_oldest_idle_connection_gives_way() {
        let a = NodeId::parse("a").unwrap();
        let mut table = Table::default();
        assert_eq!(table.room(LIMITS, Role::Agent, &a), Room::Free);
        let first = take(&mut table, Role::Agent, "a");
        let second = take(&mut table, Role::Agent, "a");
        assert_eq!(table.room(LIMITS, Role::Agent, &a), Room::InPlaceOf(0));
        first.store(1, Ordering::Relaxed);
        assert_eq!(table.room(LIMITS, Role::Agent, &a), Room::InPlaceOf(1));
        second.store(1, Ordering::Relaxed);
        assert_eq!(table.room(LIMITS, Role::Agent, &a), Room::None);
        // An operator of the same name is another identity.
        assert_eq!(table.room(LIMITS, Role::Operator, &a), Room::Free);
    }

    #[test]
    fn nobody_gives_way_to_another_identity() {
        let mut table = Table::default();
        for name in ["a", "b", "c", "d", "e"] {
            take(&mut table, Role::Agent, name);
        }
        let (a, f) = (NodeId::parse("a").unwrap(), NodeId::parse("f").unwrap());
        assert_eq!(table.room(LIMITS, Role::Agent, &f), Room::None);
        assert_eq!(table.room(LIMITS, Role::Agent, &a), Room::InPlaceOf(0));
    }
}
