//! Who is let in: a listener's callers, from their first packet to a connection that may be served.
//!
//! Owns every unfinished handshake of an endpoint and counts its connections. A caller that has not
//! shown its certificate takes no connection's place: handshakes are bounded apart, and where there are
//! too many the oldest gives way, which is one that does not get on. While many are under way, callers
//! must first prove that they receive at their address (RFC 9000, 8.1.2), so forged addresses cost
//! nothing. No identity can take more than its share of the connections.

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

/// Unfinished handshakes. One that gets on is over within a few round trips, so 256 let some thousand
/// callers a second in; each holds about 100 kB.
const HANDSHAKES_MAX: usize = 256;

/// With so many unfinished handshakes callers have to prove their address, which costs a round trip.
const PROVE_ADDRESS_FROM: usize = 32;

/// How many connections a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// At once.
    pub total: usize,
    /// Of one identity, which is a role and a name.
    pub per_identity: usize,
}

/// An endpoint's callers, one after the other.
#[derive(Debug)]
pub struct Listener {
    endpoint: Arc<Endpoint>,
    places: Places,
    handshakes: JoinSet<(SocketAddr, Result<Connection, ConnectError>)>,
    /// The handshakes' tasks, oldest first.
    started: VecDeque<AbortHandle>,
}

/// What became of a caller.
#[derive(Debug)]
pub enum Arrival {
    /// It is known and may be served.
    Accepted(Accepted),
    /// It did not finish its handshake.
    Failed {
        /// Where it called from.
        remote: SocketAddr,
        /// Why.
        error: ConnectError,
    },
    /// It is known and was refused: too many connections.
    Refused {
        /// Where it called from.
        remote: SocketAddr,
        /// What its certificate says it is.
        role: Role,
        /// Its name.
        name: NodeId,
    },
}

/// A connection to be served, and its place among the others.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub connection: Connection,
    /// Kept as long as it is served.
    pub place: Place,
}

impl Listener {
    /// Listens with that endpoint.
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

    /// The next caller whose handshake has ended, well or not; `None` once the endpoint is closed.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Arrival> {
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => self.begin(incoming?),
                Some(ended) = self.handshakes.join_next() => {
                    // One that gave way, or broke by a mistake of ours, has closed its connection.
                    let Ok((remote, greeted)) = ended else { continue };
                    return Some(match greeted {
                        Ok(connection) => self.places.seat(connection),
                        Err(error) => Arrival::Failed { remote, error },
                    });
                }
            }
        }
    }

    /// Handshakes that have been begun and not ended, as far as it has been looked at.
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

/// The connections of a listener.
#[derive(Debug, Clone)]
struct Places {
    limits: ConnectionLimits,
    table: Arc<Mutex<Table<Connection>>>,
}

/// Connections by the order in which they came.
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

/// Whether another connection of an identity finds room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Free,
    /// That one has to go: the identity's oldest on which nothing happens.
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

/// A connection's place; dropping it makes room for another.
#[derive(Debug)]
pub struct Place {
    id: u64,
    busy: Arc<AtomicUsize>,
    table: Arc<Mutex<Table<Connection>>>,
}

/// Something happens on a connection, until it is dropped: the connection does not give way.
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl Place {
    /// Notes that something happens on the connection.
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
        // An operator of that name is somebody else.
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
