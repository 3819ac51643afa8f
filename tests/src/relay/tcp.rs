//! Passes connections on.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use super::{Condition, Shared};
use crate::ports::Port;

/// How often a waiting thread looks at the network's condition.
const LOOK: Duration = Duration::from_millis(50);

/// A running relay, stopped when dropped; its connections break with it.
#[derive(Debug)]
pub struct TcpRelay {
    port: Port,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl TcpRelay {
    /// Starts a relay to that address.
    ///
    /// # Errors
    /// There is no port.
    pub fn to(target: &str) -> Result<Self> {
        let port = Port::take()?;
        let listener = TcpListener::bind(port.address())?;
        let target: SocketAddr = target.parse()?;
        let shared = Arc::new(Shared::default());
        let accepts = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || accept(&accepts, &listener, target));
        Ok(Self {
            port,
            shared,
            accepting: Some(accepting),
        })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// From now on, the network is like that.
    pub fn set(&self, condition: Condition) {
        self.shared.change(|state| state.condition = condition);
    }

    /// Breaks every connection; others can be made at once.
    pub fn reset(&self) {
        self.shared.change(|state| state.resets += 1);
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.shared.change(|state| state.stopped = true);
        // The thread waits for connections.
        drop(TcpStream::connect(self.port.address()));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, target: SocketAddr) {
    loop {
        let accepted = listener.accept();
        if shared.read().stopped {
            return;
        }
        let Ok((caller, _)) = accepted else {
            continue;
        };
        // A server that is away refuses; dropping the caller tells it so.
        let Ok(server) = TcpStream::connect(target) else {
            continue;
        };
        for (from, to) in [(&caller, &server), (&server, &caller)] {
            if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                let shared = Arc::clone(shared);
                std::thread::spawn(move || pass(&shared, from, to));
            }
        }
    }
}

/// Passes one direction on until its end, and ends both.
fn pass(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let resets = shared.read().resets;
    let mut buffer = vec![0; 64 * 1024];
    // Without it, the thread would not notice a reset.
    let timed = from.set_read_timeout(Some(LOOK));
    while timed.is_ok() {
        let state = shared.read();
        if state.stopped || state.resets != resets {
            break;
        }
        if state.condition == Condition::Cut {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) if to.write_all(&buffer[..length]).is_ok() => {}
            Ok(_) => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_while_the_network_is_cut_and_a_reset_ends_the_connection() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = TcpRelay::to(&server.local_addr().unwrap().to_string()).unwrap();
        let mut caller = TcpStream::connect(("127.0.0.1", relay.port())).unwrap();
        let (mut served, _) = server.accept().unwrap();
        served
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut buffer = [0; 10];
        caller.write_all(b"one").unwrap();
        assert_eq!(served.read(&mut buffer).unwrap(), 3);

        relay.set(Condition::Cut);
        // The thread may be reading already.
        std::thread::sleep(LOOK * 2);
        caller.write_all(b"later").unwrap();
        assert!(served.read(&mut buffer).is_err());
        relay.set(Condition::Clear);
        assert_eq!(served.read(&mut buffer).unwrap(), 5);

        relay.reset();
        assert_eq!(served.read(&mut buffer).unwrap(), 0);
        assert_eq!(caller.read(&mut buffer).unwrap(), 0);
    }
}
