//! Passes datagrams on. Each caller gets a socket of its own towards the target, so that answers find
//! their way back.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Condition, Shared};
use crate::ports::Port;

/// How often a waiting thread looks whether the relay is stopped.
const LOOK: Duration = Duration::from_millis(100);

/// A caller that has been silent for so long is forgotten.
const SILENCE: Duration = Duration::from_secs(90);

/// The largest datagram there is.
const DATAGRAM_MAX: usize = 65_535;

/// Percent of the datagrams that a poor network loses, doubles and delays.
const EACH: u32 = 10;

/// A running relay, stopped when dropped.
#[derive(Debug)]
pub struct UdpRelay {
    port: Port,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl UdpRelay {
    /// Starts a relay to that address. The seed decides which datagrams a poor network drops.
    ///
    /// # Errors
    /// There is no port.
    pub fn to(target: &str, seed: u64) -> Result<Self> {
        let port = Port::take()?;
        let socket = UdpSocket::bind(port.address())?;
        socket.set_read_timeout(Some(LOOK))?;
        let target: SocketAddr = target.parse()?;
        let shared = Arc::new(Shared::default());
        let listener = Listener {
            socket: Arc::new(socket),
            target,
            shared: Arc::clone(&shared),
            seed,
        };
        Ok(Self {
            port,
            shared,
            listening: Some(std::thread::spawn(move || listener.run())),
        })
    }

    /// The address to call instead of the target's.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// From now on, the network is like that.
    pub fn set(&self, condition: Condition) {
        self.shared.change(|state| state.condition = condition);
    }
}

impl Drop for UdpRelay {
    fn drop(&mut self) {
        self.shared.change(|state| state.stopped = true);
        if let Some(listening) = self.listening.take() {
            drop(listening.join());
        }
    }
}

struct Listener {
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    shared: Arc<Shared>,
    seed: u64,
}

impl Listener {
    fn run(&self) {
        let mut callers: HashMap<SocketAddr, (Arc<UdpSocket>, Instant)> = HashMap::new();
        let mut way = Way::new(Arc::clone(&self.shared), self.seed);
        let mut buffer = vec![0; DATAGRAM_MAX];
        while !self.shared.read().stopped {
            // A target that is gone is reported here as an error of a former datagram: no matter.
            let Ok((length, caller)) = self.socket.recv_from(&mut buffer) else {
                continue;
            };
            callers.retain(|_, (_, heard)| heard.elapsed() < SILENCE);
            let seed = self.seed ^ callers.len() as u64;
            let entry = match callers.get_mut(&caller) {
                Some(entry) => entry,
                None => match self.answer(caller, seed) {
                    Ok(socket) => callers.entry(caller).or_insert((socket, Instant::now())),
                    Err(error) => return eprintln!("the relay to {}: {error:#}", self.target),
                },
            };
            entry.1 = Instant::now();
            let socket = Arc::clone(&entry.0);
            way.pass(&buffer[..length], |datagram| drop(socket.send(datagram)));
        }
    }

    /// Opens a socket towards the target, whose answers go to that caller.
    fn answer(&self, caller: SocketAddr, seed: u64) -> Result<Arc<UdpSocket>> {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0")?);
        socket.connect(self.target)?;
        socket.set_read_timeout(Some(LOOK))?;
        let (answers, back) = (Arc::clone(&socket), Arc::clone(&self.socket));
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            let mut way = Way::new(Arc::clone(&shared), seed);
            let mut buffer = vec![0; DATAGRAM_MAX];
            // Until the listener forgets the caller, however long the target is silent.
            while !shared.read().stopped && Arc::strong_count(&answers) > 1 {
                let Ok(length) = answers.recv(&mut buffer) else {
                    // An error is repeated at once, a time-out is not.
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                way.pass(&buffer[..length], |datagram| {
                    drop(back.send_to(datagram, caller));
                });
            }
        });
        Ok(socket)
    }
}

/// One direction.
struct Way {
    shared: Arc<Shared>,
    random: StdRng,
    /// A datagram that is sent after the next one.
    late: Option<Vec<u8>>,
}

impl Way {
    fn new(shared: Arc<Shared>, seed: u64) -> Self {
        Self {
            shared,
            random: StdRng::seed_from_u64(seed),
            late: None,
        }
    }

    fn pass(&mut self, datagram: &[u8], send: impl Fn(&[u8])) {
        match self.shared.read().condition {
            Condition::Cut => self.late = None,
            Condition::Clear => {
                send(datagram);
                self.late.take().iter().for_each(|late| send(late));
            }
            Condition::Poor => {
                let before = self.late.take();
                match self.random.random_range(0..100) / EACH {
                    0 => {}
                    1 => {
                        send(datagram);
                        send(datagram);
                    }
                    2 => self.late = Some(datagram.to_vec()),
                    _ => send(datagram),
                }
                before.iter().for_each(|late| send(late));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (UdpSocket, UdpSocket, UdpRelay) {
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        target
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let relay = UdpRelay::to(&target.local_addr().unwrap().to_string(), 1).unwrap();
        let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
        caller.connect(relay.address()).unwrap();
        caller
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        (caller, target, relay)
    }

    #[test]
    fn datagrams_and_answers_pass_unless_the_network_is_cut() {
        let (caller, target, relay) = ends();
        let mut buffer = [0; 10];
        caller.send(b"one").unwrap();
        let (length, from) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"one");
        target.send_to(b"two", from).unwrap();
        assert_eq!(caller.recv(&mut buffer).unwrap(), 3);

        relay.set(Condition::Cut);
        caller.send(b"three").unwrap();
        assert!(target.recv_from(&mut buffer).is_err());
        relay.set(Condition::Clear);
        caller.send(b"four").unwrap();
        let (length, _) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"four");
    }

    #[test]
    fn a_poor_network_loses_doubles_and_reorders() {
        let shared = Arc::new(Shared::default());
        shared.change(|state| state.condition = Condition::Poor);
        let mut way = Way::new(shared, 7);
        let arrived = std::cell::RefCell::new(Vec::new());
        for n in 0..=200_u8 {
            way.pass(&[n], |datagram| arrived.borrow_mut().push(datagram[0]));
        }
        let arrived = arrived.into_inner();
        let count = |n: u8| arrived.iter().filter(|a| **a == n).count();
        assert!((0..=200).any(|n| count(n) == 0), "none is lost");
        assert!((0..=200).any(|n| count(n) == 2), "none comes twice");
        assert!(
            arrived.windows(2).any(|two| two[0] > two[1]),
            "all in order"
        );
        assert!(arrived.len() > 150, "most arrive: {}", arrived.len());
    }
}
