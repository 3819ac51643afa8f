//! Stands between the product and its store, counts requests and makes some of them fail.

use std::io::Write as _;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::http::{self, Message};
use crate::ports::Port;
use crate::wait;

/// What happens to a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The store is not asked: it answers with that status and code.
    Answer(u16, &'static str),
    /// The store does what it is asked for; the first half of its answer arrives.
    Cut,
    /// The same, and the connection stays open that long.
    Stall(Duration),
}

/// Which requests fail, and how.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Their method.
    pub method: &'static str,
    /// What their target contains.
    pub target: &'static str,
    /// How many of them pass before.
    pub after: usize,
    /// How many fail.
    pub times: usize,
    /// How they fail.
    pub fault: Fault,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// The bytes asked for, in a request for content.
    pub range: Option<String>,
    /// Bytes of content that were sent back.
    pub answered: usize,
    /// The status that was sent back.
    pub status: u16,
    /// Whether it was made to fail.
    pub failed: bool,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    refuse_until: Option<Instant>,
    stopped: bool,
}

#[derive(Debug)]
struct Shared {
    store: String,
    state: Mutex<State>,
}

/// A running proxy, stopped when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(super) fn start(store: String) -> Result<Self> {
        let port = Port::take()?;
        let listener = TcpListener::bind(port.address())?;
        let shared = Arc::new(Shared {
            store,
            state: Mutex::default(),
        });
        let (accepts, address) = (Arc::clone(&shared), port.address());
        let accepting = std::thread::spawn(move || accept(&accepts, listener, &address));
        Ok(Self {
            port,
            shared,
            accepting: Some(accepting),
        })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// From now on, these rules instead of the former ones. The first that a request matches counts.
    pub fn set(&self, rules: &[Rule]) {
        self.shared.state().rules = rules.to_vec();
    }

    /// Refuses connections for a while.
    pub fn refuse_for(&self, time: Duration) {
        self.shared.state().refuse_until = Some(Instant::now() + time);
        self.wake();
    }

    /// What came since the last call.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.state().seen)
    }

    /// Waits for a request that was made to fail since the last [`Proxy::take_seen`].
    ///
    /// # Errors
    /// None came.
    pub fn wait_failed(&self, limit: Duration) -> Result<()> {
        wait::until_true("a request to fail", limit, || {
            Ok(self.shared.state().seen.iter().any(|seen| seen.failed))
        })
    }

    /// Waits for a request of that method whose target contains that.
    ///
    /// # Errors
    /// None came.
    pub fn wait_for(&self, method: &str, target: &str, limit: Duration) -> Result<()> {
        wait::until_true(&format!("{method} of {target}"), limit, || {
            let state = self.shared.state();
            Ok(state
                .seen
                .iter()
                .any(|seen| seen.method == method && seen.target.contains(target)))
        })
    }

    /// The thread waits for connections.
    fn wake(&self) {
        drop(TcpStream::connect(self.address()));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.wake();
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of a request, if a rule has one for it.
    fn fault(&self, request: &Message) -> Option<Fault> {
        let (method, target) = (request.word(0), request.word(1));
        let mut state = self.state();
        let rule = state
            .rules
            .iter_mut()
            .filter(|rule| rule.times > 0)
            .find(|rule| rule.method == method && target.contains(rule.target))?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }

    fn serve(&self, client: &TcpStream) -> Result<()> {
        let Some(request) = http::read_request(client)? else {
            return Ok(());
        };
        let fault = self.fault(&request);
        let answer = match fault {
            Some(Fault::Answer(status, code)) => Message::answer(status, code),
            _ => http::exchange(&self.store, &request)?,
        };
        let (head, body) = answer.to_bytes();
        let body = match request.word(0) {
            "HEAD" => &[][..],
            _ => &body[..],
        };
        let is_half = matches!(fault, Some(Fault::Cut | Fault::Stall(_)));
        // Of an answer without content, half of its head.
        let (head, body) = match (is_half, body.len()) {
            (false, _) => (&head[..], body),
            (true, 0) => (&head[..head.len() / 2], body),
            (true, length) => (&head[..], &body[..length / 2]),
        };
        self.state().seen.push(Seen {
            method: request.word(0).to_owned(),
            target: request.word(1).to_owned(),
            range: request.header("range").map(str::to_owned),
            answered: body.len(),
            status: answer.word(1).parse()?,
            failed: fault.is_some(),
        });
        let mut client = client;
        client.write_all(head)?;
        client.write_all(body)?;
        if let Some(Fault::Stall(time)) = fault {
            self.stall(time);
        }
        client.shutdown(Shutdown::Both)?;
        Ok(())
    }

    /// Waits, but not longer than the test runs.
    fn stall(&self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time && !self.state().stopped {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Accepts connections, each for one request, until the proxy is stopped.
fn accept(shared: &Arc<Shared>, mut listener: TcpListener, address: &str) {
    loop {
        let accepted = listener.accept();
        if shared.state().stopped {
            return;
        }
        let refuse = shared.state().refuse_until.take();
        if let Some(until) = refuse {
            drop(accepted);
            drop(listener);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            match TcpListener::bind(address) {
                Ok(again) => listener = again,
                Err(error) => return eprintln!("the proxy cannot listen again: {error}"),
            }
            continue;
        }
        let Ok((client, _)) = accepted else {
            continue;
        };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that gives up is no error.
            if let Err(error) = shared.serve(&client) {
                eprintln!("the proxy: {error:#}");
            }
        });
    }
}
